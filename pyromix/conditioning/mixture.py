r"""A mixture of normals, given linear evidence.

Within a component everything is a normal under linear statements. Exact values and noisy
observations are absorbed in closed form; what remains is a normal restricted to a polytope.
Bayes' rule then weighs the components by how well each predicted the evidence.
"""

__all__ = ["MODE_DRAWS", "ConditionedMixture", "MixturePrior", "log_factor", "mixture_prior"]

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Size, Tensor
from torch.distributions import Distribution, constraints

from ..core.checks import as_int, check_dims, check_index, check_value
from ..core.constraints import box, fixed_columns, half_space
from ..evidence.linear import LinearEvidence, tightest_bounds
from ..evidence.naming import coordinates, term
from ..evidence.pieces import Number
from ..numerics.batches import choose
from ..numerics.no_gradient import raise_if_freed, raise_on_gradient
from ..numerics.triangular import log_scale
from .components import Components, NormalMixture, tril_of
from .law import (
    FREED_GRAPH,
    UNKNOWN_EVIDENCE_GRADIENT,
    ConditionedLaw,
    Statement,
    copy_for_law,
)
from .modes import ModeSearch
from .parts import register_part
from .polytope import Polytope
from .quantiles import check_probs, mixture_quantile
from .truncated import ConflictError, TruncatedNormals
from .union import condition_on

# Equations hold for values that miss them by no more than this share of their terms.
EQUATION_TOLERANCE = 1e-5
# Terms count for no less than this share of what they are without equations: the tolerance is
# then some units in the last place of double precision.
LEAST = 1e-9

MAX_REDRAWS = 100

# Draws that searches for a mode may start from.
MODE_DRAWS = 64


def log_factor(
    observed: Mapping[int, Tensor],
    noisy: Sequence[tuple[Tensor, Tensor, Tensor]],
    batch_shape: Size,
    value: Tensor,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    r"""Log q(x) of noisy observations, in float64, and whether points have the observed values.

    Nothing is changed in place, and no branch depends on values: `vmap` over points.

    Args:
        observed: Columns -> values; see `LinearEvidence`.
        noisy: Observations with noise.
        batch_shape: A shape B that theirs expand to.
        value: Points, shape (\*S, \*B, D).
        dtype: In which observed values are compared.

    Returns:
        Two tensors of shape (\*S, \*B).
    """
    leading = torch.broadcast_shapes(value.shape[:-1], batch_shape)
    x = value.double()
    log_prob = x.new_zeros(()).expand(leading)
    fits = torch.ones_like(log_prob, dtype=torch.bool)
    for d, expected in observed.items():
        fits = fits & (value[..., d] == expected.to(dtype))
    for matrix, y, noise in noisy:
        tril = torch.linalg.cholesky(noise)
        residual = (y - x @ matrix.mT).unsqueeze(-1)
        z = torch.linalg.solve_triangular(tril, residual, upper=False)
        log_prob = log_prob - 0.5 * z.square().sum((-2, -1)) - log_scale(tril)
    return log_prob, fits


class MixturePrior:
    """A mixture that is conditioned; see `pyromix.conditioning.law.Prior`.

    Args:
        mixture: The mixture. Its tensors are copied: log Z is that of their present values.
        allow_all_observed: Whether all columns may be observed: then only the weights of the
            components are left to learn about.
        max_error: Standard error to aim at, where the logarithm of the probability of
            inequalities in a component has no closed form.
    """

    categories: tuple[int, ...] = ()
    is_sampled = False
    _components: type[Components] = Components

    @property
    def correlates(self) -> bool:
        """Whether coordinates depend on each other, given a component."""
        given, free = list[int](), list(range(self.dim))
        value = torch.zeros(0, dtype=self.dtype, device=self.device)
        return self.mixture.normals_given(given, free, value, correlated=False).scale is None

    def __init__(
        self,
        mixture: NormalMixture,
        *,
        allow_all_observed: bool = False,
        max_error: float = 0.01,
    ) -> None:
        self.mixture = mixture.map_tensors(copy_for_law)
        self.batch_shape = mixture.batch_shape  # which may be expanded
        self.validate_args = bool(mixture._validate_args)
        self.dim = mixture.event_shape[0]
        self.dtype, self.device = mixture.logits.dtype, mixture.logits.device
        self.allow_all_observed, self.max_error = allow_all_observed, max_error
        self._last: tuple[LinearEvidence, Components] | None = None

    def map_tensors(self, function: Callable[[Tensor], Tensor]) -> "MixturePrior":
        """Returns the prior with a function applied to the tensors of its mixture."""
        mixture = self.mixture.map_tensors(function)
        prior = type(self)(
            mixture, allow_all_observed=self.allow_all_observed, max_error=self.max_error
        )
        prior.batch_shape = self.batch_shape
        return prior

    def given(
        self, evidence: LinearEvidence, *, allow_impossible_entries: bool = False
    ) -> ConditionedLaw:
        """The law given one set of linear statements."""
        return ConditionedMixture(
            self, evidence, allow_impossible_entries=allow_impossible_entries
        )

    def condition_on(self, evidence: Sequence[Statement]) -> ConditionedLaw:
        """The law given pieces of evidence; their batch shapes broadcast with the mixture's."""
        return condition_on(self, evidence)

    def components_given(self, evidence: LinearEvidence) -> Components:
        """The components given values and observations.

        Those of the last call are used again if it was about the same ones, as those of
        alternatives are.
        """
        try:
            batch_shape = torch.broadcast_shapes(self.batch_shape, evidence.batch_shape)
        except RuntimeError:
            raise ValueError(
                f"Expected evidence whose batch shape broadcasts with the mixture's, "
                f"{tuple(self.batch_shape)}, got {tuple(evidence.batch_shape)}."
            ) from None
        if self._last is not None:
            last, components = self._last
            if components.batch_shape == batch_shape and evidence.observes_what(last):
                return components
        components = self._components(self.mixture, evidence, batch_shape)
        self._last = evidence, components
        return components


class ConditionedMixture(ConditionedLaw):
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
    The graph of log Z is made at construction, and freed by the first backward pass: condition
    within `torch.no_grad()` if it is not wanted, or if the law is kept for several. Copies and
    pickles are made without it.

    Args:
        prior: The mixture, of a batch shape that broadcasts with that of the evidence.
        evidence: The evidence.
        allow_impossible_entries: Whether entries of the batch may contradict themselves, and have
            an evidence of zero, as long as not all do.

    Raises:
        ValueError: If the evidence cannot hold, if its batch shape does not fit, or if all
            coordinates are observed and may not.

    Attributes:
        route: How components under inequalities are drawn and normalised, flattened over the
            batch and K; see `TruncatedNormals`. None without inequalities.
    """

    _prior: MixturePrior

    def __init__(
        self,
        prior: MixturePrior,
        evidence: LinearEvidence,
        *,
        allow_impossible_entries: bool = False,
    ) -> None:
        if len(evidence.observed) == evidence.dim and not prior.allow_all_observed:
            raise ValueError(
                "Expected coordinates that are not observed, got none. The density of values of "
                "all of them is log_prob of the law without evidence."
            )
        self._components = prior.components_given(evidence)
        super().__init__(prior, self._components.batch_shape, prior.mixture.event_shape)
        self._mixture, self._evidence = prior.mixture, evidence
        self._polytope = Polytope.of(evidence, self.batch_shape, self._dtype)
        self._fixed_box = None if self._polytope is None else self._polytope.fixed_box()
        equations = evidence.equations(self.batch_shape)
        self._equations = equations if len(equations[0]) else None
        self._noisy = evidence.noisy
        self._joint = self._components.log_joint
        self._error = torch.zeros_like(self._joint)
        self._truncated: TruncatedNormals | None = None
        if evidence.num_rows:
            self._truncate(allow_impossible_entries)
        self._joint = raise_if_freed(self._joint, FREED_GRAPH)
        impossible = self._joint.detach().logsumexp(-1).isneginf()
        if bool(impossible.all() if allow_impossible_entries else impossible.any()):
            raise ConflictError(
                f"Expected evidence that can hold, but {int(impossible.sum())} of "
                f"{impossible.numel()} entries of its batch contradict themselves."
            )

    @property
    def support(self) -> constraints.Constraint:
        """Where the density is positive, as NUTS and guides need it.

        Of the columns that were not observed all of space, a box, or a half-space; observed
        columns have their values.

        Raises:
            NotImplementedError: For other evidence, under which no bijection is known: draw with
                `sample` instead.
        """
        linear, given = self._evidence, self._components.given
        value = linear.observed_values(self._dtype)
        free = self._support_of_free()
        if not given:
            return free
        return fixed_columns(free, given, value.to(self._dtype), linear.dim)

    def _support_of_free(self) -> constraints.Constraint:
        """Where the columns that were not observed lie."""
        linear = self._evidence
        equations = self._equations is not None
        if not equations and not linear.matrix:
            return constraints.real_vector
        if not equations:
            matrix, low, high, _ = linear.inequalities_on_free(linear.batch_shape, self._dtype)
            if bool(((matrix != 0).sum(-1) == 1).all()) and bool((matrix.sum(-1) == 1).all()):
                count = linear.dim - len(linear.observed)
                bounds = tightest_bounds(low, high, matrix.argmax(-1), count)
                return box(*(bound.to(self._dtype) for bound in bounds))
            if len(matrix) == 1:
                for row, bound, other in ((matrix[0], low, high), (-matrix[0], -high, -low)):
                    if bool(other.isinf().all() and bound.isfinite().all()):
                        return half_space(row.to(self._dtype), -bound[..., 0].to(self._dtype))
        raise NotImplementedError(
            "No bijection onto the support of this evidence is known. Draw with sample()."
        )

    @property
    def observed(self) -> Mapping[int, Tensor]:
        r"""Coordinates that were observed, in ascending order -> their values, shape (\*B,)."""
        components = self._components
        value = components.value.to(self._dtype)
        return {
            d: value[..., place].expand(self.batch_shape)
            for place, d in enumerate(components.given)
        }

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
        return self._components.fill((weights * self._components.loc).sum(-2))

    @property
    def variance(self) -> Tensor:
        r"""Variance of every coordinate, shape (\*B, D); zero for observed ones.

        Raises:
            NotImplementedError: Under inequalities, where it has no closed form.
        """
        components = self._components
        mean = self.mean[..., components.free].double().unsqueeze(-2)
        weights = self.logits.double().exp().unsqueeze(-1)
        spread = components.variance + (components.loc - mean).square()
        full = torch.zeros(*self.batch_shape, self.event_shape[0], dtype=torch.float64)
        full = full.to(mean.device)
        full[..., components.free] = (weights * spread).sum(-2)
        return full.to(self._dtype)

    def free(self) -> Distribution:
        r"""The law of the coordinates that were not observed, of event shape (number of those,).

        If nothing but values is known it is a mixture of the kind of this one, in closed form.

        Raises:
            ValueError: If all coordinates were observed.
        """
        linear, components = self._evidence, self._components
        if linear.gaussian or linear.num_rows or not components.free:
            return super().free()
        law: Any = self._mixture
        if components.given:
            value = components.value.to(self._dtype)
            law = law.conditional(components.given, components.free, value)
        return law.expand(self.batch_shape)

    def marginal(self, dims: int | Iterable[object]) -> Distribution:
        """The law of some of the coordinates, a mixture.

        Of the kind of this one if nothing but values is known, else with full covariances.

        Args:
            dims: The coordinates to keep, in the order of the result, none of them observed.

        Raises:
            NotImplementedError: Under inequalities, and where equations leave these coordinates
                no density: draw with `sample` instead.
            ValueError: If a coordinate is out of range, named twice, or was observed.
        """
        if self._evidence.num_rows:
            return super().marginal(dims)
        single = as_int(dims)
        wanted = list(dims) if isinstance(dims, Iterable) and single is None else [dims]
        size, free = self.event_shape[0], self._components.free
        places = []
        for dim in wanted:
            d = as_int(dim)
            if d is not None and -size <= d < size and d % size not in free:
                raise ValueError(
                    f"Expected coordinates that were not observed, got {dim!r}: an observed one "
                    f"has no density."
                )
            places.append(free.index(d % size) if d is not None and -size <= d < size else dim)
        law: Any
        if not self._evidence.gaussian:
            law = self.free()
            return law.marginal(places)
        kept = check_dims(places, len(free))
        tril = self._components.marginal_tril(kept)
        if tril is None:
            raise NotImplementedError(
                f"Not available: equations leave coordinates {wanted} no density of their own. "
                f"Ask for fewer, or keep columns of draws: sample((n,))[..., dims]."
            )
        law = self._law_of(self._components.loc[..., kept], tril)
        law._validate_args = self._validate_args
        return law.expand(self.batch_shape)

    def _law_of(self, loc: Tensor, tril: Tensor) -> Distribution:
        """The mixture of components with these means (*B, K, D) and factors, in its dtype."""
        parts = (t.to(self._dtype) for t in (self.logits, loc, tril))
        law: Any = self._mixture.with_covariances(*parts)
        mixture: Distribution = law
        return mixture

    def quantile(self, column: int, probs: Number | Sequence[float]) -> Tensor:
        r"""Quantiles of a coordinate, by a search for the roots of its distribution function.

        Under inequalities where, within components, those on this coordinate are on it alone and
        others leave its law as it is. An observed coordinate has its value for all quantiles.

        Args:
            column: The coordinate.
            probs: Probabilities from 0 to 1, of any shape P.

        Returns:
            Tensor of shape (\*P, \*B), without a graph.

        Raises:
            NotImplementedError: Under other inequalities: take quantiles of draws.
            ValueError: If there is no such coordinate, or for other probabilities.
        """
        d = check_index("column", column, self.event_shape[0])
        levels = check_probs(probs, self._joint.device)
        shape = (*levels.shape, *self.batch_shape)
        if d in self.observed:
            return self.observed[d].detach().expand(shape).clone()
        place = self._components.free.index(d)
        scale = self._components.variance[..., place].sqrt().expand(self._joint.shape)
        found = self._quantiles_of(column, place, scale, levels.flatten())
        return found.reshape(shape).to(self._dtype)

    def _quantiles_of(self, column: int, place: int, scale: Tensor, levels: Tensor) -> Tensor:
        """Quantiles (P, entries) of a free coordinate, given its scales (*B, K) by component."""
        bounds = self._bounds_of(place)
        if bounds is None:
            raise NotImplementedError(self._no_quantile(column))
        low, high = (bound.unsqueeze(-1).expand(self._joint.shape) for bound in bounds)
        normals = (self._joint, self._components.loc[..., place], scale, low, high)
        k = self._joint.shape[-1]
        return mixture_quantile(levels, *(t.detach().reshape(-1, k) for t in normals))

    def _bounds_of(self, place: int) -> tuple[Tensor, Tensor] | None:
        r"""Bounds (\*B,) of a free coordinate; None if more shapes its law within components."""
        shape = self.batch_shape
        unbounded = torch.full(shape, math.inf, dtype=torch.float64, device=self._joint.device)
        if self._truncated is None:
            return -unbounded, unbounded
        rows, low, high, _ = self._evidence.inequalities_on_free(shape, self._dtype)
        about = rows[:, place] != 0
        alone = (rows != 0).sum(-1) == 1
        if bool((about & ~alone).any()):
            return None
        if self._components.scale is None and not bool(about.all()):
            return None
        if not bool(about.any()):
            return -unbounded, unbounded
        entry = rows[about, place]
        low, high = (t[..., about].to(self._dtype).double() / entry for t in (low, high))
        low, high = torch.where(entry < 0, high, low), torch.where(entry < 0, low, high)
        return low.amax(-1), high.amin(-1)

    def mode_at(self, entry: Tensor) -> Tensor:
        """Modes (n, D) of the laws at entries (n,) of the flattened batch, each named once."""
        draws = self.draw(entry.repeat_interleave(MODE_DRAWS)).unflatten(
            0, (len(entry), MODE_DRAWS)
        )
        x, _ = self.modes_from(entry, draws, torch.zeros(*draws.shape[:2], 0).to(entry))
        return x[:, 0]

    @torch.no_grad()
    def modes_from(
        self,
        entry: Tensor,
        draws: Tensor,
        codes: Tensor,
        tables: Sequence[Tensor] = (),
        log_factor: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Points of high density that climbs from draws lead to.

        Args:
            entry: Entries (n,) of the flattened batch, each named once.
            draws: Draws of theirs, shape (n, C, D).
            codes: The draws' categories in further columns, shape (n, C, columns).
            tables: Log-weights of these under the components, each (n or 1, K, categories).
            log_factor: What log-weights of components are changed by, shape (n or 1, K).

        Returns:
            Points (n, S, D), the densest first, and their categories (n, S, columns).
        """
        components, k = self._components, self._joint.shape[-1]
        entries = self.batch_shape.numel()
        log_weight = components.log_joint.reshape(entries, k)[entry]
        loc = components.loc.reshape(entries, *components.loc.shape[-2:])[entry]
        origin, basis = loc[:, :1], self._directions()
        scale = tril = None
        if components.scale is not None:
            scale = components.of_entries(components.scale, 1, entry)
        elif basis.shape[-1]:
            tril = components.of_entries(tril_of(basis.mT @ components.factor), 2, entry)
        else:
            scale = loc[..., :0]
        rows, low, high, _ = self._evidence.inequalities_on_free(self.batch_shape, self._dtype)
        low, high = (
            t.to(self._dtype).double().reshape(entries, len(rows))[entry] for t in (low, high)
        )
        shift = origin[:, 0] @ rows.mT
        search = ModeSearch(
            log_weight if log_factor is None else log_weight + log_factor,
            (loc - origin) @ basis,
            scale,
            tril,
            tuple(tables),
            rows @ basis,
            low - shift,
            high - shift,
        )
        start = (draws[..., components.free].double() - origin) @ basis
        x, codes = search.run(start, codes)
        count = x.shape[1]
        each = entry.repeat_interleave(count)
        x = components.fill((origin + x @ basis.mT).flatten(0, 1), each)
        x = self._pulled_inside(x, draws[:, :1].expand(-1, count, -1).flatten(0, 1), each)
        return x.unflatten(0, (len(entry), count)), codes

    def _directions(self) -> Tensor:
        """Directions (free, q) of the free columns that equations leave, orthonormal."""
        free = self._components.free
        if self._equations is None:
            return torch.eye(len(free), dtype=torch.float64, device=self._joint.device)
        matrix = self._equations[0][:, free]
        return torch.linalg.qr(matrix.mT, mode="complete").Q[:, len(matrix) :]

    def _pulled_inside(self, x: Tensor, inside: Tensor, entry: Tensor) -> Tensor:
        """Points (n, D), those that rounding put outside moved a little towards draws."""
        if self._fixed_box is not None:
            low, high = self._fixed_box
            x = torch.minimum(torch.maximum(x, low[entry]), high[entry])
        if self._polytope is None:
            return x
        moved = x
        for share in (0.0, *(2.0**power for power in range(-50, 0, 2)), 1.0):
            step = inside if share == 1.0 else x + share * (inside - x)
            inside_now = self._polytope.contains(moved, entry, safely=True)
            moved = torch.where(inside_now.unsqueeze(-1), moved, step)
        return moved

    def log_normalizer(self) -> tuple[Tensor, Tensor]:
        """Log Z and its standard error in float64, whatever the dtype of the mixture."""
        possible = (self._joint > -math.inf).any(-1)
        joint = torch.where(possible.unsqueeze(-1), self._joint, 0.0)  # no NaN in gradients
        error = (joint.detach().softmax(-1) * self._error).square().sum(-1).sqrt()
        return torch.where(possible, joint.logsumexp(-1), -math.inf), error

    def draw(self, entry: Tensor) -> Tensor:
        """Draws (n, D) of the laws at entries (n,) of the flattened batch; see `sample`."""
        return self.draw_with_component(entry)[0]

    @torch.no_grad()
    def normals(self) -> tuple[Tensor, Tensor, Tensor]:
        """Log-weights (K,), means (K, D) and factors (K, D, r) without inequalities, in float64.

        Of a law without a batch; covariances are F F^T, and zero in observed columns.
        """
        components = self._components
        k, free = self._joint.shape[-1], components.free
        loc = components.loc.expand(k, len(free)).double()
        if components.scale is not None:
            own = torch.diag_embed(components.scale.double().expand(k, len(free)))
        else:
            own = components.factor.double()
            own = own.expand(k, *own.shape[-2:])
        mean = loc.new_zeros(k, self.event_shape[0])
        mean[:, free] = loc
        mean[:, components.given] = components.value.double().reshape(len(components.given))
        factor = loc.new_zeros(*mean.shape, own.shape[-1])
        factor[:, free] = own
        return components.log_joint.reshape(k).double(), mean, factor

    @property
    def relative_weights(self) -> Tensor | None:
        """None: weights of components are exact; see `NonlinearLaw`."""
        return None

    def complete(self, real: Tensor, component: Tensor) -> Tensor:  # noqa: ARG002
        """Points with all columns, given the real ones (n, D) and their components (n,)."""
        components = self._components
        if components.given:
            real[:, components.given] = components.value.to(real).reshape(len(components.given))
        return real

    @torch.no_grad()
    def draw_with_component(self, entry: Tensor) -> tuple[Tensor, Tensor]:
        """Draws (n, D) at entries (n,) of the flattened batch, and their components (n,)."""
        k = self._joint.shape[-1]
        component = choose(self._joint.reshape(-1, k), entry)
        index = component + k * entry
        x = self._draw(index, entry)
        if self._polytope is None:
            return x, component
        broken = torch.arange(len(x), device=x.device)
        for _ in range(MAX_REDRAWS):  # rounding may break what held before
            inside = self._polytope.contains(x[broken], entry[broken], safely=True)
            broken = broken[~inside]
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
            x = self._components.draw(index, entry)
        x = self._components.fill(x, entry)
        if self._fixed_box is None:
            return x
        low, high = self._fixed_box
        return torch.minimum(torch.maximum(x, low[entry]), high[entry])

    def holds(self, value: Tensor) -> Tensor:
        r"""Whether points of shape (\*S, \*B, D) meet every inequality; shape (\*S, \*B)."""
        leading = torch.broadcast_shapes(value.shape[:-1], self.batch_shape)
        if self._polytope is None:
            return torch.ones(leading, dtype=torch.bool, device=value.device)
        points = value.expand(*leading, -1).reshape(-1, value.shape[-1]).to(self._dtype)
        return self._polytope.contains(points, self._entries(leading)).reshape(leading)

    def log_joint(self, value: Tensor) -> Tensor:
        r"""Log p(x) q(x) of points, in float64, as if there were no inequalities.

        Minus infinity for points that miss observed values or equations.
        """
        value = check_value(self, value, like=self._mixture.logits)
        return self._mixture.log_prob(value).double() + self.log_factor(value)

    def log_factor(self, value: Tensor) -> Tensor:
        """Log q(x) of points, in float64, as if there were no inequalities.

        With equations, relative to the measure on the plane that they leave.
        """
        components = self._components
        log_prob, fits = log_factor(
            self._evidence.observed, self._noisy, self.batch_shape, value, self._dtype
        )
        if self._equations is not None:
            matrix, y = self._equations
            x = value.double()
            terms = x.abs() if components.reach is None else x.abs() + LEAST * components.reach
            size = terms @ matrix.abs().mT + y.abs()
            close = (y - x @ matrix.mT).abs() <= EQUATION_TOLERANCE * size
            fits = fits & close.all(-1)
        return torch.where(fits, log_prob - components.log_plane, -math.inf)

    # ---- building -----------------------------------------------------------------------------

    def _truncate(self, allow_impossible_entries: bool) -> None:
        """Restricts the components to the inequalities."""
        components = self._components
        rows, low, high, broken = self._evidence.inequalities_on_free(
            self.batch_shape, self._dtype
        )
        if bool(broken.all()) or bool(broken.any() and not allow_impossible_entries):
            columns = sorted(self._evidence.observed)
            known = [f"the values of {coordinates(columns)}"] if columns else []
            known += ["the equations"] if self._evidence.gaussian else []
            raise ConflictError(
                f"Expected evidence that can hold, but {' and '.join(known)} break an inequality. "
                f"Relax it, or correct the other evidence."
            )
        self._joint = torch.where(broken.unsqueeze(-1), -math.inf, self._joint)
        if len(rows) == 0:
            return
        k = self._joint.shape[-1]
        bounds = [
            t.unsqueeze(-2).expand(*self.batch_shape, k, -1).to(self._dtype) for t in (low, high)
        ]
        try:
            law = self._truncated_normals(rows, bounds)
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
        log_normalizer = components.log_probability(rows, *bounds)
        if log_normalizer is None:
            depends_on = self._joint, components.loc, rows, low, high, components.spread
            joint = self._joint + law.log_normalizer.double()
            self._joint = raise_on_gradient(joint, *depends_on, message=UNKNOWN_EVIDENCE_GRADIENT)
        else:
            empty = law.log_normalizer.isneginf()
            self._joint = self._joint + torch.where(empty, -math.inf, log_normalizer)

    def _truncated_normals(self, rows: Tensor, bounds: Sequence[Tensor]) -> TruncatedNormals:
        components, max_error = self._components, self._prior.max_error
        loc = components.loc.to(self._dtype)
        # The error falls faster than the root of the number of points: start from a few.
        points = 2048 if max_error <= 0.01 else max(64, int(20 / max_error))
        effort: Any = {"num_points": points, "max_error": max_error}
        inequalities = rows.to(self._dtype), *bounds
        if components.scale is not None:
            scale = components.scale.expand(loc.shape).to(self._dtype)
            return TruncatedNormals.diagonal(loc, scale, *inequalities, **effort)
        factor = components.factor.expand(*loc.shape, -1).to(self._dtype)
        return TruncatedNormals(loc, factor, *inequalities, **effort)

    def _describe(self, row: Tensor, low: Tensor, high: Tensor) -> str:
        """An inequality on free coordinates, as a formula, at the first entry of the batch."""
        terms = []
        for d, value in zip(self._components.free, row.tolist(), strict=True):
            if value:
                terms.append(term(d) if value == 1 else f"{value:g} {term(d)}")
        formula = " + ".join(terms)
        below, above = low.flatten()[0].item(), high.flatten()[0].item()
        formula = formula if below == -math.inf else f"{below:g} <= {formula}"
        return formula if above == math.inf else f"{formula} <= {above:g}"

    def _shown(self) -> dict[str, Any]:
        return {"num_components": self._joint.shape[-1]}


def mixture_prior(
    mixture: Any,
    batch_shape: tuple[int, ...],
    validate_args: bool,
    kind: type[MixturePrior] = MixturePrior,
    **options: Any,
) -> MixturePrior:
    """What a file says of a mixture that is conditioned, as it was."""
    prior = kind(mixture, **options)
    prior.batch_shape, prior.validate_args = torch.Size(batch_shape), validate_args
    return prior


register_part(
    MixturePrior,
    lambda prior: {
        "mixture": prior.mixture,
        "batch_shape": tuple(prior.batch_shape),
        "validate_args": prior.validate_args,
        "allow_all_observed": prior.allow_all_observed,
        "max_error": prior.max_error,
    },
    mixture_prior,
)
