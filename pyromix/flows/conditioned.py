"""The law of a flow through coordinatewise transforms, given evidence about its columns."""

__all__ = ["ConditionedFlow", "FlowPrior", "TakesEvidence"]

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from ..conditioning.law import ConditionedLaw, Prior, Statement
from ..conditioning.nonlinear import NonlinearLaw
from ..conditioning.polytope import Polytope
from ..conditioning.truncated import ConflictError
from ..conditioning.union import law_given_any
from ..core.checks import check_index, check_value
from ..core.random import generator_states
from ..evidence.collect import collect_alternatives
from ..evidence.linear import LinearEvidence, tightest_bounds
from ..evidence.pieces import AnyOf, Nonlinear, Number
from .borders import strictly_inside
from .coordinatewise import CoordinateChain

MAX_REDRAWS = 100


@runtime_checkable
class TakesEvidence(Protocol):
    """A law that can be given evidence about its columns, as mixtures and `DRMM`."""

    def evidence_prior(self, **options: Any) -> Prior:
        """The law as what evidence is added to; options are those of its own ``condition``."""


class FlowPrior:
    """A flow that is conditioned; see `pyromix.conditioning.law.Prior`.

    Args:
        base: The law before the transforms.
        chain: The transforms.
        flow: The flow's own law.
    """

    def __init__(self, base: Prior, chain: CoordinateChain, flow: Any) -> None:
        self.base, self.chain = base, chain
        self.dim, self.categories = base.dim, base.categories
        self.dtype, self.device = base.dtype, base.device
        self.is_sampled, self.correlates = base.is_sampled, base.correlates
        self.validate_args = bool(flow._validate_args)
        self.support = flow._known_support()
        self.event_shape = flow.event_shape
        for column, count in enumerate(self.categories):
            d = self.dim + column
            codes = self.centre.repeat(count, 1)
            codes[:, d] = torch.arange(count)
            if not torch.equal(chain.forward(codes)[:, d], codes[:, d]):
                raise ValueError(
                    f"Expected transforms that leave the categorical column {d} as it is. Join "
                    f"those of the others with identity_transform, by a CatTransform."
                )

    @property
    def centre(self) -> Tensor:
        """A point of the base, shape (D + categorical columns,), in float64."""
        return self.chain.inner.expand(self.event_shape)

    def with_options(self, **options: Any) -> "FlowPrior":
        """The prior with other options of the base's ``condition``."""
        base: Any = self.base
        changed = object.__new__(type(self))
        vars(changed).update({**vars(self), "base": base.with_options(**options)})
        return changed

    def given(
        self, evidence: LinearEvidence, *, allow_impossible_entries: bool = False
    ) -> ConditionedLaw:
        """The law given one set of linear statements."""
        pulled = self.pull(evidence)
        law = self.base.given(pulled, allow_impossible_entries=allow_impossible_entries)
        return ConditionedFlow(self, [evidence], law)

    def condition_on(self, evidence: Sequence[Statement]) -> ConditionedLaw:
        """The law given pieces of evidence, whose batch shapes broadcast."""
        start = generator_states(self.device)
        functions = [piece for piece in evidence if isinstance(piece, Nonlinear)]
        linear = [piece for piece in evidence if not isinstance(piece, Nonlinear)]
        alternatives = collect_alternatives(
            linear, self.dim, self.device, self.categories, self.dtype
        )
        kept: list[LinearEvidence] = []
        pulled: list[LinearEvidence] = []
        conflict = None
        for alternative in alternatives:
            try:
                pulled.append(self.pull(alternative, (kept[0], pulled[0]) if kept else None))
                kept.append(alternative)
            except ConflictError as error:
                conflict = error
        if conflict is not None and not kept:
            raise conflict
        if any(isinstance(piece, AnyOf) for piece in linear):
            law = law_given_any(self.base, pulled, len(alternatives))
        else:
            law = self.base.given(pulled[0])
        if functions:
            law = NonlinearLaw(law, [self._through(piece) for piece in functions])
        conditioned = ConditionedFlow(self, kept, law)
        conditioned._statements, conditioned._start = tuple(evidence), start
        return conditioned

    def _through(self, piece: Nonlinear) -> Nonlinear:
        """An observation of a function of the columns, as one of a function of the base's."""
        function, dim, categories = piece.function, self.dim, len(self.categories)

        def of_base(z: Tensor) -> Tensor:
            codes = z.new_zeros(len(z), categories)
            x = self.chain.forward(torch.cat([z, codes], -1).double())
            return function(x[:, :dim].to(z.dtype))

        return Nonlinear(of_base, piece.value, piece.noise, piece.num_draws)

    # ---- evidence -----------------------------------------------------------------------------

    def pull(
        self,
        known: LinearEvidence,
        last: tuple[LinearEvidence, LinearEvidence] | None = None,
    ) -> LinearEvidence:
        """Evidence about the flow's columns as evidence about those of the base.

        Args:
            known: The evidence.
            last: Other evidence, and what was returned for it: values and observations that the
                two share are used again.

        Raises:
            ConflictError: If values or bounds leave nothing that the transforms reach.
            ValueError: If a statement about several columns, or with noise, is about columns
                whose transforms are not affine.
        """
        parts = zip(known.matrix, known.low, known.high, strict=True)
        bounds = [self._pull_rows(*part) for part in parts]
        if last is not None and known.observes_what(last[0]):
            observed, gaussian = last[1].observed, last[1].gaussian
        else:
            observed = self._pull_values(known)
            gaussian = [self._pull_observation(*part) for part in known.gaussian]
        return replace(
            known,
            observed=observed,
            gaussian=gaussian,
            matrix=[matrix for matrix, _, _ in bounds],
            low=[low for _, low, _ in bounds],
            high=[high for _, _, high in bounds],
        )

    def _pull_values(self, known: LinearEvidence) -> dict[int, Tensor]:
        pulled = {}
        for d, value in known.observed.items():
            z, inside = self.chain.inverse(self._with_column(d, value.to(self.dtype).double()))
            if not bool(inside[..., d].all()):
                raise ConflictError(
                    f"Expected values of column {d} that the transforms reach, got "
                    f"{value.flatten()[:10].tolist()}."
                )
            pulled[d] = z[..., d]
        return pulled

    def _pull_rows(
        self, matrix: Tensor, low: Tensor, high: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Inequalities low <= A x <= high: (p, D), (*N, p) and (*N, p)."""
        rows, ends = [], []
        for i, row in enumerate(matrix):
            below, above = low[..., i], high[..., i]
            if int((row != 0).sum()) > 1:
                scale, shift = self._affine(row.unsqueeze(0), "An inequality of several columns")
                rows.append(row * scale)
                ends.append((below - row @ shift, above - row @ shift))
                continue
            d = int(row.abs().argmax())
            pair = torch.stack([below, above]) / row[d]
            pair = pair.sort(0).values.to(self.dtype).double()
            z = self.chain.pull_bounds(*(self._with_column(d, end) for end in pair))
            least, most = (end[..., d] for end in z)
            if bool((least >= most).all()):
                raise ConflictError(
                    f"Expected bounds of column {d} that leave room for what the transforms "
                    f"reach, got {below.flatten()[:10].tolist()} to "
                    f"{above.flatten()[:10].tolist()} for {row[d].item():g} x[{d}]."
                )
            rows.append((torch.arange(self.dim, device=row.device) == d).double())
            # What is not reached at some entries alone is between bounds that cross.
            crossed = least >= most
            ends.append((torch.where(crossed, 1.0, least), torch.where(crossed, -1.0, most)))
        if not rows:
            return matrix, low, high
        least, most = (torch.stack(part, -1) for part in zip(*ends, strict=True))
        return torch.stack(rows), least, most

    def _pull_observation(
        self, matrix: Tensor, y: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Observations y = A x + noise: (m, D), (*N, m) and (m, m)."""
        scale, shift = self._affine(
            matrix, "An observation of combinations of columns, or a prior"
        )
        return matrix * scale, y - matrix @ shift, noise

    def _affine(self, matrix: Tensor, what: str) -> tuple[Tensor, Tensor]:
        """Scale and shift (D,) of the real columns that rows (m, D) are about, zero elsewhere.

        Raises:
            ValueError: If one of them is not transformed by an affine function.
        """
        about = (matrix != 0).any(0)
        linear = self.chain.linear.expand(self.event_shape)[: self.dim]
        bent = (about & ~linear.to(about.device)).nonzero().flatten().tolist()
        if bent:
            raise ValueError(
                f"{what} does not go through transforms that are not affine, got one about "
                f"columns {bent}. Expected, of these columns, Observed values, Box bounds, "
                f"LinearInequality of one column, or Nonlinear, which takes any function."
            )
        centre = self.centre
        start = self.chain.forward(centre)
        scale = (self.chain.forward(centre + 1.0) - start)[: self.dim]
        shift = start[: self.dim] - scale * centre[: self.dim]
        return torch.where(about, scale, 0.0), torch.where(about, shift, 0.0)

    def _with_column(self, d: int, value: Tensor) -> Tensor:
        """Points (*N, D) with values (*N,) of a column, and anything that is reached in others."""
        whole = self.chain.forward(self.centre)
        points = whole.expand(*value.shape, -1).clone()
        points[..., d] = value
        return points


class ConditionedFlow(ConditionedLaw):
    r"""The law of the columns of a flow, given evidence: :math:`p(x) q(x) / Z`.

    Made by `Flow.condition`, where the base takes evidence and the transforms act on every
    coordinate alone: values and bounds then are values and bounds of the base's columns, whose law
    given these is taken through the transforms. It is as exact as that law is, and for the
    parameters that the flow has when it is made; there are no gradients in those of the
    transforms. Draws keep observed columns at their values, and lie within bounds in the dtype
    that they are returned in. Densities are with respect to the flow's own columns, and
    `log_evidence` counts the slopes at observed values.

    Args:
        prior: The flow.
        evidence: What is known about the flow's columns, once for every alternative.
        law: The law of the base's columns given that.

    Attributes:
        law: The law of the base's columns, given the evidence.
    """

    _prior: FlowPrior

    def __init__(
        self, prior: FlowPrior, evidence: Sequence[LinearEvidence], law: ConditionedLaw
    ) -> None:
        super().__init__(prior, law.batch_shape, prior.event_shape)
        self.law, self._evidence = law, list(evidence)
        known = self._evidence[0]
        self._values = {d: known.observed[d].to(self._dtype) for d in sorted(known.observed)}
        self._regions = [Polytope.of(part, self.batch_shape, self._dtype) for part in evidence]
        self._boxes = [self._box(part) for part in evidence]
        self._log_slope = self._slope_of_values()
        self._log_plane = self._change_of_plane(known)

    @property
    def route(self) -> tuple[Any, ...] | None:  # type: ignore[override]
        """How draws of the base under inequalities are made."""
        return self.law.route

    @property
    def observed(self) -> Mapping[int, Tensor]:
        r"""Columns that were observed, in ascending order -> their values, shape (\*B,)."""
        own = {d: value.expand(self.batch_shape) for d, value in self._values.items()}
        return {d: own.get(d, value) for d, value in self.law.observed.items()}

    def probs(self, index: int) -> Tensor:
        r"""Probabilities of the categories of a column, shape (\*B, categories).

        Args:
            index: The categorical column.

        Raises:
            NotImplementedError: If the base's law has none.
        """
        law: Any = self.law
        if not hasattr(law, "probs"):
            raise NotImplementedError(
                f"Not available: {type(law).__name__} has no probabilities of categories. Count "
                f"those of draws: sample((n,))[..., {index}]."
            )
        return law.probs(index)

    def quantile(self, column: int, probs: Number | Sequence[float]) -> Tensor:
        r"""Quantiles of a real column: those of the base's, moved.

        Args:
            column: The column.
            probs: Probabilities from 0 to 1, of any shape P.

        Returns:
            Tensor of shape (\*P, \*B), without a graph.

        Raises:
            NotImplementedError: Where the base's law has none: take quantiles of draws.
            ValueError: If there is no such real column, or for other probabilities.
        """
        d = check_index("column", column, self.event_shape[0])
        chain = self._prior.chain
        given: Any = probs
        rises = bool(chain.rises.expand(self.event_shape)[d])
        if not rises:
            given = 1 - torch.as_tensor(probs, dtype=torch.float64)
        z = self.law.quantile(d, given)
        if d in self._values:
            return self._values[d].expand(z.shape).clone()
        points = self._prior.centre.expand(*z.shape, -1).clone()
        points[..., d] = z
        return chain.forward(points)[..., d].to(self._dtype)

    def log_normalizer(self) -> tuple[Tensor, Tensor]:
        r"""Log Z of shape (\*B,) and its standard error, in float64."""
        log_normalizer, error = self.law.log_normalizer()
        return log_normalizer - self._log_slope, error

    def draw(self, entry: Tensor) -> Tensor:
        """Draws (n, D) of the laws at entries (n,) of the flattened batch; see `sample`."""
        x = self._push(self.law.draw(entry), entry)
        pending = torch.arange(len(x), device=x.device)
        for _ in range(MAX_REDRAWS):  # rounding may break what held before
            pending = pending[~self._contains(x[pending], entry[pending])]
            if not len(pending):
                return x
            x[pending] = self._push(self.law.draw(entry[pending]), entry[pending])
        raise RuntimeError(
            f"Expected inequalities with room for numbers of {self._dtype}, but {len(pending)} of "
            f"{len(x)} draws broke one in each of {MAX_REDRAWS} attempts, by rounding alone. "
            f"Relax those that lie close together, or use float64."
        )

    def _push(self, z: Tensor, entry: Tensor) -> Tensor:
        """Draws (n, D) of the base through the transforms, at entries (n,)."""
        x = self._prior.chain.forward(z.double()).to(self._dtype)
        x = strictly_inside(x, self._prior.support)
        if any(box is not None for box in self._boxes):
            x = self._clamp(x, entry)
        for d, value in self._values.items():
            x[:, d] = value.expand(self.batch_shape).reshape(-1)[entry]
        return x

    def _clamp(self, x: Tensor, entry: Tensor) -> Tensor:
        """Points (n, D) that rounding put outside of all boxes, moved to the nearest."""
        dim = self._prior.dim
        best, least = x, torch.full_like(x[:, 0], torch.inf)
        for box in self._boxes:
            if box is None:
                continue
            low, high = (bound[entry] for bound in box)
            moved = x.clone()
            moved[:, :dim] = torch.minimum(torch.maximum(x[:, :dim], low), high)
            distance = (moved - x).abs().sum(-1)
            nearer = distance < least
            best = torch.where(nearer.unsqueeze(-1), moved, best)
            least = torch.where(nearer, distance, least)
        return best

    def _contains(self, x: Tensor, entry: Tensor) -> Tensor:
        """Whether points (n, D) at entries (n,) lie within one of the regions, shape (n,)."""
        found = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        for region in self._regions:
            found = found | (True if region is None else region.contains(x, entry))
        return found

    def holds(self, value: Tensor) -> Tensor:
        r"""Whether points of shape (\*S, \*B, D) meet the inequalities; shape (\*S, \*B)."""
        leading = torch.broadcast_shapes(value.shape[:-1], self.batch_shape)
        points = value.expand(*leading, -1).reshape(-1, value.shape[-1]).to(self._dtype)
        return self._contains(points, self._entries(leading)).reshape(leading)

    def log_joint(self, value: Tensor) -> Tensor:
        r"""Log p(x) q(x) of points (\*S, \*B, D), in float64, as if there were no inequalities.

        Minus infinity for points that miss observed values or equations, or that the transforms
        do not reach.
        """
        like = torch.empty(0, dtype=self._dtype, device=self._prior.device)
        value = check_value(self, value, like=like)
        leading = torch.broadcast_shapes(value.shape[:-1], self.batch_shape)
        chain = self._prior.chain
        z, inside = chain.inverse(value.double().expand(*leading, -1))
        fits = inside.all(-1)
        slope = chain.log_slope(z).sum(-1)
        columns = list(z.to(self._dtype).unbind(-1))
        for d, expected in self._values.items():
            fits = fits & (value[..., d] == expected)
            columns[d] = self.law.observed[d].to(self._dtype).expand(leading)
        log_joint = self.law.log_joint(torch.stack(columns, -1)) - slope + self._log_plane
        return torch.where(fits, log_joint, -torch.inf)

    # ---- building -----------------------------------------------------------------------------

    def _box(self, known: LinearEvidence) -> tuple[Tensor, Tensor] | None:
        """Bounds (entries, D) of single columns; None if there are none."""
        if not known.num_rows:
            return None
        matrix, low, high = known.inequalities(self.batch_shape)
        alone = (matrix != 0).sum(-1) == 1
        column = matrix.abs().argmax(-1)[alone]
        entry = matrix[alone, column]
        low, high = (t[..., alone] / entry for t in (low, high))
        low, high = torch.minimum(low, high), torch.maximum(low, high)
        shape = self.batch_shape.numel(), known.dim
        bounds = tightest_bounds(low, high, column, known.dim)
        first, last = (bound.to(self._dtype).reshape(shape) for bound in bounds)
        return first, last

    def _slope_of_values(self) -> Tensor:
        r"""Sum of log |dx / dz| of the observed columns, shape (\*B,), in float64."""
        prior = self._prior
        total = torch.zeros(self.batch_shape, dtype=torch.float64, device=prior.device)
        for d in self._values:
            points = prior.centre.expand(*self.batch_shape, -1).clone()
            z, _ = prior.chain.inverse(prior._with_column(d, self._values[d].double()))
            points[..., d] = z[..., d]
            total = total + prior.chain.log_slope(points)[..., d]
        return total

    def _change_of_plane(self, known: LinearEvidence) -> Tensor:
        """What the transforms do to the measure on the plane that equations leave, a scalar."""
        matrix, _ = known.equations(())
        free = [d for d in range(known.dim) if d not in known.observed]
        if not len(matrix):
            return torch.zeros((), dtype=torch.float64, device=matrix.device)
        scale, _ = self._prior._affine(matrix, "An equation")
        before, after = (matrix * scale)[:, free], matrix[:, free]
        logs = [torch.linalg.slogdet(a @ a.mT).logabsdet for a in (before, after)]
        return 0.5 * (logs[0] - logs[1])

    def _shown(self) -> dict[str, Any]:
        return {"law": type(self.law).__name__}
