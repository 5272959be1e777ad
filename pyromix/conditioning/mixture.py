r"""A mixture of normals, given linear evidence.

Within a component everything is a normal under linear statements. Exact values and noisy
observations are absorbed in closed form; what remains is a normal restricted to a polytope.
Bayes' rule then weighs the components by how well each predicted the evidence.
"""

__all__ = ["ConditionedMixture", "condition_on"]

import math
from collections.abc import Sequence
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Size, Tensor
from torch.distributions import constraints
from torch.types import _size

from ..core.checks import check_value
from ..core.constraints import box, half_space
from ..evidence.collect import collect_branches
from ..evidence.linear import LinearEvidence, tightest_bounds
from ..evidence.pieces import Evidence
from ..numerics.batches import choose, flat_index, stack_observed
from ..numerics.no_gradient import raise_on_gradient
from ..numerics.triangular import log_scale
from .linear_normals import observe, solve
from .truncated import ConflictError, TruncatedNormals
from .truncated.interval import log_interval_probability
from .union import UNKNOWN_EVIDENCE_GRADIENT, UnionOfConditioned, condition_on_branches

# Equations hold for values that miss them by no more than this share of their terms.
EQUATION_TOLERANCE = 1e-5

MAX_REDRAWS = 100

# A row has no spread if it has less than this share of its length.
ZERO = 1e-12


class ConditionedMixture(TorchDistribution):
    r"""The law of all coordinates of a mixture, given evidence: :math:`p(x) q(x) / Z`.

    It is exact, in draws and density, or, where `route` says ``"hamiltonian"``, has draws of a
    Markov chain and an estimate of Z. Draws keep observed coordinates at their values, and meet
    every inequality in the dtype that they are returned in. `log_prob` is the density with
    respect to Lebesgue measure on the coordinates that are free, and, with linear equations, to
    the surface measure on the plane that they leave; values that break the evidence have minus
    infinity. Made by `GaussianMixture.condition`, for the parameters that the mixture has then:
    later changes of them do not reach it.

    `log_prob` and `log_evidence` are differentiable in the parameters of the mixture and in the
    tensors of the evidence, as long as inequalities are a box on diagonal components, or a single
    one; so are `mean` and `variance`, which there are without inequalities only. Under others, the
    gradient of log Z is not known: the backward pass raises `NotImplementedError` if it meets
    parameters that require one; gradients in points are always there. Observed values and
    equations enter `log_prob` through log Z alone: pass points that are made of the same tensors.
    The graph of log Z is made at construction; condition within `torch.no_grad()` if it is not
    wanted.

    Args:
        mixture: The mixture, of a batch shape that broadcasts with that of the evidence.
        known: The evidence.
        partly: Whether entries of the batch may contradict themselves, and have an evidence of
            zero, as long as not all do.
        whole: Whether all coordinates may be observed: then only the weights of the components
            are left to learn about.
        max_error: Standard error to aim at, where the logarithm of the probability of
            inequalities in a component has no closed form.

    Raises:
        ValueError: If the evidence cannot hold, if its batch shape does not fit, or if all
            coordinates are observed and may not.

    Attributes:
        route: How components under inequalities are drawn and normalised, flattened over the
            batch and K; see `TruncatedNormals`. None without inequalities.
    """

    arg_constraints = {}  # noqa: RUF012
    has_rsample = False
    _evidence: tuple[Evidence, ...]

    def __init__(
        self,
        mixture: Any,
        known: LinearEvidence,
        *,
        partly: bool = False,
        whole: bool = False,
        max_error: float = 0.01,
    ) -> None:
        make: Any = type(mixture)
        # Copies: log Z is that of these values, whatever becomes of the mixture's.
        tensors = [getattr(mixture, name).clone() for name in ("_logits", *mixture._tensors)]
        self._mixture: Any = make(*tensors, validate_args=False)
        self._mixture._validate_args = mixture._validate_args
        self._known, self._max_error = known, max_error
        dim = mixture.event_shape[0]
        self._given = sorted(known.observed)
        self._free = [d for d in range(dim) if d not in known.observed]
        if not self._free and not whole:
            raise ValueError("Expected coordinates that are not observed, got none.")
        self._value = self._stack(known)
        try:
            batch_shape = torch.broadcast_shapes(mixture.batch_shape, known.batch_shape)
        except RuntimeError:
            raise ValueError(
                f"Expected evidence whose batch shape broadcasts with the mixture's, "
                f"{tuple(mixture.batch_shape)}, got {tuple(known.batch_shape)}."
            ) from None
        super().__init__(batch_shape, mixture.event_shape, validate_args=False)
        self._validate_args = mixture._validate_args
        self._absorb()
        self._truncate(partly)
        impossible = self._joint.logsumexp(-1).isneginf()
        if bool(impossible.all() if partly else impossible.any()):
            raise ConflictError(
                f"Expected evidence that can hold, but {int(impossible.sum())} of "
                f"{impossible.numel()} entries of its batch contradict themselves."
            )

    @property
    def support(self) -> constraints.Constraint:
        """Where the density is positive, as NUTS and guides need it.

        All of space without hard evidence, a box, or a half-space.

        Raises:
            NotImplementedError: For other evidence, under which no bijection is known: draw with
                `sample` instead.
        """
        known = self._known
        hard = known.observed or any(bool((noise == 0).all()) for *_, noise in known.gaussian)
        if not hard and not known.matrix:
            return constraints.real_vector
        if not hard and not known.batch_shape:
            matrix, low, high = (torch.cat(t) for t in (known.matrix, known.low, known.high))
            if bool(((matrix != 0).sum(-1) == 1).all()) and bool((matrix.sum(-1) == 1).all()):
                bounds = tightest_bounds(low, high, matrix.argmax(-1), known.dim)
                return box(*(bound.to(self._dtype) for bound in bounds))
            if len(matrix) == 1 and bool(high.isinf().all()):
                return half_space(matrix[0].to(self._dtype), -low[0].to(self._dtype))
        raise NotImplementedError(
            "No bijection onto the support of this evidence is known. Draw with sample()."
        )

    @property
    def logits(self) -> Tensor:
        r"""Log-probabilities of the components given the evidence, shape (\*B, K)."""
        return (self._joint - self._joint.logsumexp(-1, keepdim=True)).to(self._dtype)

    @property
    def mean(self) -> Tensor:
        r"""Mean, shape (\*B, D).

        Raises:
            NotImplementedError: Under inequalities, where it has no closed form: average draws.
        """
        if self._truncated is not None:
            raise NotImplementedError(
                "Under inequalities the mean has no closed form. Use sample((n,)).mean(0)."
            )
        weights = self.logits.double().exp().unsqueeze(-1)
        return self._fill((weights * self._loc).sum(-2))

    @property
    def variance(self) -> Tensor:
        r"""Variance of every coordinate, shape (\*B, D); zero for observed ones.

        Raises:
            NotImplementedError: Under inequalities, where it has no closed form.
        """
        mean = self.mean[..., self._free].double().unsqueeze(-2)
        weights = self.logits.double().exp().unsqueeze(-1)
        within = self._factor.square().sum(-1) if self._scale is None else self._scale.square()
        spread = within + (self._loc - mean).square()
        full = torch.zeros(*self.batch_shape, self.event_shape[0], dtype=torch.float64)
        full = full.to(mean.device)
        full[..., self._free] = (weights * spread).sum(-2)
        return full.to(self._dtype)

    def condition(self, *evidence: Evidence) -> "ConditionedMixture | UnionOfConditioned":
        """The law given further evidence, on top of what it was made with."""
        return condition_on(self._mixture, (*self._evidence, *evidence))

    def log_evidence(self) -> tuple[Tensor, Tensor]:
        r"""Log of :math:`Z = \int p(x) q(x) dx`, and its standard error.

        Returns:
            Two tensors of shape (\*B,), in nats. The error is zero where all is in closed form.
        """
        log_normalizer, error = self.log_normalizer()
        return log_normalizer.to(self._dtype), error.to(self._dtype)

    def log_normalizer(self) -> tuple[Tensor, Tensor]:
        """The same in float64, whatever the dtype of the mixture."""
        possible = (self._joint > -math.inf).any(-1)
        joint = torch.where(possible.unsqueeze(-1), self._joint, 0.0)  # no NaN in gradients
        error = (joint.detach().softmax(-1) * self._error).square().sum(-1).sqrt()
        return torch.where(possible, joint.logsumexp(-1), -math.inf), error

    def sample(self, sample_shape: _size = Size()) -> Tensor:
        r"""Draws, shape (\*S, \*B, D).

        Raises:
            RuntimeError: If inequalities leave no room for numbers of the dtype.
        """
        with torch.no_grad():
            shape = Size((*sample_shape, *self.batch_shape))
            entry = flat_index(self.batch_shape, shape, self._joint.device)
            return self.draw(entry).reshape(*shape, -1)

    def draw(self, entry: Tensor) -> Tensor:
        """Draws (n, D) of the laws at entries (n,) of the flattened batch; see `sample`."""
        return self.draw_with_component(entry)[0]

    @torch.no_grad()
    def draw_with_component(self, entry: Tensor) -> tuple[Tensor, Tensor]:
        """The same, and which components they are from, (n,)."""
        k = self._joint.shape[-1]
        component = choose(self._joint.reshape(-1, k), entry)
        index = component + k * entry
        x = self._draw(index, entry)
        broken = torch.arange(len(x), device=x.device)
        for _ in range(MAX_REDRAWS):  # rounding may break what held before
            broken = broken[~self._safely_inside(x[broken], entry[broken])]
            if len(broken) == 0:
                return x, component
            x[broken] = self._draw(index[broken], entry[broken])
        raise RuntimeError(
            f"Expected inequalities with room for numbers of {self._dtype}, but {len(broken)} of "
            f"{len(x)} draws broke one in each of {MAX_REDRAWS} attempts, by rounding alone. "
            + ("Use float64, or relax" if self._dtype == torch.float32 else "Relax")
            + " the inequalities that lie close together. For equality use LinearEquality or "
            "Observed."
        )

    def _draw(self, index: Tensor, entry: Tensor) -> Tensor:
        """Draws of components, counted through the batch and K, at entries of the batch."""
        if self._truncated is not None:
            x = self._truncated.sample(index).double()
        else:
            loc = self._loc.flatten(0, -2)[index]
            k = index % self._joint.shape[-1]
            if self._scale is not None:
                x = loc + self._of_component(self._scale, 1, entry, k) * torch.randn_like(loc)
            else:
                noise = loc.new_empty(len(loc), self._factor.shape[-1], 1).normal_()
                x = loc + (self._of_component(self._factor, 2, entry, k) @ noise).squeeze(-1)
        return self._fill(x, entry)

    def _of_component(self, spread: Tensor, tail: int, entry: Tensor, k: Tensor) -> Tensor:
        """Selects scales or factors (*own, K, *T), whose batch expands to B: (n, *T)."""
        own = spread.shape[: spread.dim() - tail - 1]
        row = flat_index(own, self.batch_shape, entry.device)[entry]
        return spread.flatten(0, len(own))[row * self._joint.shape[-1] + k]

    def _safely_inside(self, x: Tensor, entry: Tensor) -> Tensor:
        """Whether points hold every inequality, in whatever order its terms are added up."""
        inside = torch.ones(len(x), dtype=torch.bool, device=x.device)
        known, eps = self._known, torch.finfo(x.dtype).eps
        for matrix, low, high in zip(known.matrix, known.low, known.high, strict=True):
            rows, matrix = x @ matrix.to(x.dtype).mT, matrix.to(x.dtype)
            low, high = (
                t.expand(*self.batch_shape, -1)
                .reshape(self.batch_shape.numel(), t.shape[-1])[entry]
                .to(x.dtype)
                for t in (low, high)
            )
            terms = (matrix != 0).sum(-1)
            size = x.abs() @ matrix.abs().mT + low.abs().nan_to_num(posinf=0.0)
            margin = torch.where(terms > 1, eps * terms * size, 0.0)
            inside &= ((rows - margin >= low) & (rows + margin <= high)).all(-1)
        return inside

    def log_prob(self, value: Tensor) -> Tensor:
        r"""Log-density of points of shape (\*S, \*B, D); shape (\*S, \*B)."""
        log_prob = self.log_joint(value) - self.log_normalizer()[0]
        return torch.where(self.holds(value), log_prob, -math.inf).to(self._dtype)

    def holds(self, value: Tensor) -> Tensor:
        r"""Whether points of shape (\*S, \*B, D) meet every inequality; shape (\*S, \*B)."""
        known = self._known
        leading = torch.broadcast_shapes(value.shape[:-1], self.batch_shape)
        fits = torch.ones(leading, dtype=torch.bool, device=value.device)
        for matrix, low, high in zip(known.matrix, known.low, known.high, strict=True):
            rows = value @ matrix.to(self._dtype).mT
            low, high = low.to(self._dtype), high.to(self._dtype)
            fits &= ((rows >= low) & (rows <= high)).all(-1)
        return fits

    def log_joint(self, value: Tensor) -> Tensor:
        r"""Log p(x) q(x) of points, in float64, as if there were no inequalities.

        Minus infinity for points that miss observed values or equations.
        """
        value = check_value(self, value, like=self._mixture._loc)
        return self._mixture.log_prob(value).double() + self.log_factor(value)

    def log_factor(self, value: Tensor) -> Tensor:
        """Log q(x) of points, in float64, as if there were no inequalities.

        With equations, relative to the measure on the plane that they leave.
        """
        known, x = self._known, value.double()
        leading = torch.broadcast_shapes(value.shape[:-1], self.batch_shape)
        log_prob = (-self._log_plane).expand(leading)
        fits = torch.ones_like(log_prob, dtype=torch.bool)
        for d, expected in known.observed.items():
            fits &= value[..., d] == expected.to(self._dtype)
        for matrix, y, noise in known.gaussian:
            residual = y - x @ matrix.mT
            if bool((noise == 0).all()):
                size = x.abs() @ matrix.abs().mT + y.abs() + 1e-12
                fits &= (residual.abs() <= EQUATION_TOLERANCE * size).all(-1)
            else:
                tril = torch.linalg.cholesky(noise)
                z = torch.linalg.solve_triangular(tril, residual.unsqueeze(-1), upper=False)
                log_prob = log_prob - 0.5 * z.square().sum((-2, -1)) - log_scale(tril)
        return torch.where(fits, log_prob, -math.inf)

    # ---- building -----------------------------------------------------------------------------

    @property
    def _dtype(self) -> torch.dtype:
        return self._mixture._loc.dtype

    def _stack(self, known: LinearEvidence) -> Tensor:
        """The observed values (*N, given), in the mixture's dtype, as float64."""
        if not known.observed:
            return torch.zeros(0, dtype=torch.float64, device=known.device)
        value = stack_observed([known.observed[d] for d in self._given])
        return value.to(self._dtype).double()

    def _absorb(self) -> None:
        """Takes in values and observations: what is left is N(loc, F F^T) for every component."""
        law, free = self._mixture, self._free
        joint = law._logits.double().log_softmax(-1)
        if self._given and not free:
            joint = law._marginal(self._given)._joint_log_prob(self._value.to(self._dtype))
            joint = joint.double()
        elif self._given:
            # The weights it leaves are not normalised: their sum is the density of the values.
            law = law._condition(self._given, free, self._value.to(self._dtype))
            joint = law._logits.double()
        k = law.num_components
        loc = law._loc[..., : len(free)].double().expand(*self.batch_shape, k, len(free))
        joint = joint.expand(*self.batch_shape, k)
        self._error = torch.zeros_like(joint)
        self._log_plane = torch.zeros((), dtype=torch.float64, device=loc.device)
        self._scale: Tensor | None = None
        if hasattr(law, "_scale") and not self._known.gaussian:
            self._loc, self._joint = loc, joint
            self._scale = law._scale[..., : len(free)].double()
            return
        covariance = law.component_covariance[..., : len(free), : len(free)]
        factor = torch.linalg.cholesky(covariance.double())  # (*own, K, free, free)
        noisy = []
        exact: list[tuple[Tensor, Tensor]] = []
        for matrix, y, noise in self._known.gaussian:
            rest = y - self._value @ matrix[:, self._given].mT if self._given else y
            if bool((noise != 0).any()):
                noisy.append((matrix[:, free], rest, noise))
            else:
                exact.append((matrix[:, free], rest.expand(*self.batch_shape, -1)))
        # Equations first, all at once: they leave fewer directions to the rest.
        if exact:
            matrix = torch.cat([a for a, _ in exact])
            loc, factor, gain = solve(loc, factor, matrix, torch.cat([y for _, y in exact], -1))
            joint = joint + gain
            self._log_plane = 0.5 * torch.linalg.slogdet(matrix @ matrix.mT).logabsdet
        for part in noisy:
            loc, factor, gain = observe(loc, factor, *part)
            joint = joint + gain
        self._loc, self._factor, self._joint = loc, factor, joint

    def _truncate(self, partly: bool) -> None:
        """Restricts the components to the inequalities."""
        self._truncated, self.route = None, None
        known, free = self._known, self._free
        if not known.matrix:
            return
        matrix, low, high = known.inequalities(self.batch_shape)
        if self._given:
            shift = self._value @ matrix[:, self._given].mT
            low, high = low - shift, high - shift
        rows = matrix[:, free]
        kept = (rows != 0).any(-1)
        broken = ((low > 0) | (high < 0))[..., ~kept].any(-1)
        if bool(broken.all()) or bool(broken.any() and not partly):
            raise ConflictError("Expected evidence that can hold, but observed values break it.")
        self._joint = torch.where(broken.unsqueeze(-1), -math.inf, self._joint)
        rows, low, high = rows[kept], low[..., kept], high[..., kept]
        if len(rows) == 0:
            return
        k = self._joint.shape[-1]
        bounds = [
            t.unsqueeze(-2).expand(*self.batch_shape, k, -1).to(self._dtype) for t in (low, high)
        ]
        loc = self._loc.to(self._dtype)
        # The error falls faster than the root of the number of points: start from a few.
        points = 2048 if self._max_error <= 0.01 else max(64, int(20 / self._max_error))
        effort: Any = {"num_points": points, "max_error": self._max_error}
        try:
            if self._scale is not None:
                scale = self._scale.expand(loc.shape).to(self._dtype)
                law = TruncatedNormals.diagonal(
                    loc, scale, rows.to(self._dtype), *bounds, **effort
                )
            else:
                factor = self._factor.expand(*loc.shape, -1).to(self._dtype)
                law = TruncatedNormals(loc, factor, rows.to(self._dtype), *bounds, **effort)
        except ConflictError as error:
            if not error.rows:
                raise
            named = [self._describe(rows[i], low[..., i], high[..., i]) for i in error.rows]
            raise ConflictError(
                f"Expected evidence that can hold, but these inequalities leave no room: "
                f"{'; '.join(named)}. Relax one of them; give exact values by Observed or "
                f"LinearEquality.",
                error.rows,
                error.planes,
                error.depth,
            ) from error
        self._truncated, self.route = law, law.route
        self._error = law.log_normalizer_error.double()
        log_normalizer = self._log_probability(rows, *bounds)
        if log_normalizer is None:
            depends_on = self._joint, self._loc, rows, low, high
            spread = self._factor if self._scale is None else self._scale
            known_joint = self._joint + law.log_normalizer.double()
            self._joint = raise_on_gradient(
                known_joint, *depends_on, spread, message=UNKNOWN_EVIDENCE_GRADIENT
            )
        else:
            empty = law.log_normalizer.isneginf()
            self._joint = self._joint + torch.where(empty, -math.inf, log_normalizer)

    def _describe(self, row: Tensor, low: Tensor, high: Tensor) -> str:
        """An inequality on free coordinates, as a formula, at the first entry of the batch."""
        terms = []
        for d, value in zip(self._free, row.tolist(), strict=True):
            if value:
                terms.append(f"x[{d}]" if value == 1 else f"{value:g} x[{d}]")
        formula = " + ".join(terms)
        below, above = low.flatten()[0].item(), high.flatten()[0].item()
        formula = formula if below == -math.inf else f"{below:g} <= {formula}"
        return formula if above == math.inf else f"{formula} <= {above:g}"

    def _log_probability(self, rows: Tensor, low: Tensor, high: Tensor) -> Tensor | None:
        """Log-probabilities (*B, K) of inequalities, with a graph; None if there is no such form.

        Args:
            rows: Shape (p, free).
            low: Shape (*B, K, p), in the dtype of draws.
            high: Shape (*B, K, p).
        """
        low, high = low.double(), high.double()
        if self._scale is not None and bool(((rows != 0).sum(-1) == 1).all()):
            column = (rows != 0).int().argmax(-1)
            entry = rows.gather(-1, column.unsqueeze(-1)).squeeze(-1)
            low, high = low / entry, high / entry
            low, high = torch.where(entry < 0, high, low), torch.where(entry < 0, low, high)
            low, high = tightest_bounds(low, high, column, rows.shape[-1])
            loc, scale = self._loc, self._scale
        elif len(rows) == 1:
            loc = self._loc @ rows.mT  # (*B, K, 1)
            seen = (
                rows * self._scale if self._scale is not None else (rows @ self._factor)[..., 0, :]
            )
            scale = seen.norm(dim=-1, keepdim=True)
        else:
            return None
        if not bool((scale > ZERO * rows.norm(dim=-1).amax()).all()):
            return None  # a row that equations fix
        low, high = (
            torch.where(t.isinf(), t, (torch.where(t.isinf(), 0.0, t) - loc) / scale)
            for t in (low, high)
        )
        return log_interval_probability(low, high).sum(-1)

    def _fill(self, free: Tensor, entry: Tensor | None = None) -> Tensor:
        """Puts observed values back among the free coordinates, in the mixture's dtype."""
        full = free.new_empty(*free.shape[:-1], self.event_shape[0])
        full[..., self._free] = free
        if self._given:
            value = self._value.expand(*self.batch_shape, -1)
            full[..., self._given] = (
                value if entry is None else value.reshape(-1, value.shape[-1])[entry]
            )
        return full.to(self._dtype)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(num_components={self._joint.shape[-1]}, "
            f"batch_shape={tuple(self.batch_shape)}, event_shape={tuple(self.event_shape)})"
        )


def condition_on(
    mixture: Any, evidence: Sequence[Evidence]
) -> "ConditionedMixture | UnionOfConditioned":
    """The law of a mixture, given evidence; their batch shapes broadcast."""

    def make(known: LinearEvidence, partly: bool) -> ConditionedMixture:
        return ConditionedMixture(mixture, known, partly=partly)

    branches = collect_branches(evidence, mixture.event_shape[0], mixture._loc.device)
    law: Any = condition_on_branches(make, branches, mixture._loc.dtype)
    law._validate_args = mixture._validate_args
    if isinstance(law, ConditionedMixture):
        law._evidence = tuple(evidence)
    return law
