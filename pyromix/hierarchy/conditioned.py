r"""A hierarchy given evidence.

Where windows do not overlap and columns are independent given a code, codes are drawn by messages
from what is known of single entries. Each stands for a normal of the whole array, and the mixture
of these is conditioned on all that is known, as any mixture is. Elsewhere arrays are drawn window
by window, by a particle filter. So all constraints hold in every draw.
"""

__all__ = ["ConditionedHierarchy", "condition_hierarchy"]

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Generator, Size, Tensor
from torch.distributions import constraints
from torch.types import _size

from ..conditioning.law import ConditionedLaw
from ..conditioning.mixture import MixturePrior, log_factor
from ..conditioning.polytope import Polytope
from ..conditioning.truncated import ConflictError
from ..core.advice import warn_user
from ..core.checks import check_value
from ..core.draws import without_graph
from ..core.expanded import Expandable
from ..core.random import draws_from, seeded, takes_generator
from ..evidence.collect import collect_unions
from ..evidence.linear import LinearEvidence
from ..evidence.naming import coordinate, term
from ..evidence.pieces import Evidence, GaussianPrior
from ..mixtures.diagonal import MixtureOfNormals
from .arrays import entries_called, flat_evidence
from .entries import EntryEvidence
from .filter import draws_given, lookahead_of
from .law import HierarchicalLaw
from .posterior import Keep, codes_given
from .statements import StatementsByWindow

# Independent estimates of log Z.
REPEATS = 8
# Particles on the way, for each that is kept.
BREADTH = 32
# A population that is worth fewer particles than this says little of the law.
FEW = 8
# Draws that moments are taken from.
MOMENT_DRAWS = 4096


class ArrayModel(Protocol):
    """A model of arrays, of whose law this is given evidence."""

    law: HierarchicalLaw
    event_shape: Size
    _validate_args: bool

    def log_prob_under(self, law: HierarchicalLaw, value: Tensor) -> Tensor:
        r"""Log-density of arrays of shape (\*S, \*event_shape)."""

    def flatten(self, value: Tensor) -> Tensor:
        r"""Arrays (\*S, \*event_shape) as (N, P, channels)."""

    def unflatten(self, flat: Tensor, shape: Sequence[int]) -> Tensor:
        r"""Arrays (N, P, channels) as (\*S, \*event_shape)."""


@dataclass(frozen=True)
class Settings:
    """How a law given evidence is made."""

    num_particles: int
    keep: Keep


class ConditionedHierarchy(Expandable):
    """The law of an array given evidence.

    Where windows do not overlap, draws are made anew each time; else weighted draws stand for the
    law, as many as there are particles. It is exact in the limit of many particles.

    Args:
        model: The model.
        law: Its law, of which later changes of parameters are no part.
        known: What is known of entries, flattened to (P channels,).
        unions: Alternatives of which one holds, for each union.
        log_evidence: Independent estimates of log Z, (R,).
        weight: Weights of particles, (M,).
        draws: What draws are made from: a law of flattened arrays, or the particles (M, D).
        error: Of log Z, which all estimates have in common, ().

    Attributes:
        effective_sample_size: Number of equally weighted particles that these are worth, by
            their weights. Particles of a filter may have early parts in common; that, and what
            none has found, shows in the error of `log_evidence`.
    """

    arg_constraints = {}  # noqa: RUF012
    has_rsample = False

    def __init__(
        self,
        model: ArrayModel,
        law: HierarchicalLaw,
        known: LinearEvidence,
        unions: Sequence[Sequence[LinearEvidence]],
        log_evidence: Tensor,
        weight: Tensor,
        draws: ConditionedLaw | Tensor,
        error: Tensor | None = None,
    ) -> None:
        self._model, self._law, self._known, self._draws = model, law, known, draws
        self._like = law.windows.mixture.log_weight
        self._regions = _regions(known, unions, self._like.dtype)
        self._log_evidence, self._weight = log_evidence.double(), weight.double()
        self._error = self._log_evidence.new_zeros(()) if error is None else error.double()
        self.effective_sample_size = 1 / self._weight.square().sum()
        if self.effective_sample_size < FEW <= len(self._weight):
            warn_user(
                f"The {len(self._weight)} particles are worth "
                f"{float(self.effective_sample_size):.1f} by their weights: what is asked is rare "
                f"under the model. Take more, by num_particles.",
            )
        super().__init__(Size(), model.event_shape, validate_args=False)
        self._validate_args = model._validate_args

    @property
    def support(self) -> constraints.Constraint:
        """Not available: evidence may leave a set of any shape."""
        raise NotImplementedError(
            "Not available: the support of a hierarchy given evidence has no bijection to all of "
            "space. Draw from it with sample((n,))."
        )

    def log_evidence(self) -> tuple[Tensor, Tensor]:
        """Log Z and its standard error, from independent estimates of Z; scalars, in nats."""
        mean = self._log_mean()
        ratio = (self._log_evidence - mean).exp()
        error = (ratio.var() / len(ratio) + self._error.square()).sqrt()
        return mean.to(self._like), error.to(self._like)

    @without_graph
    @takes_generator
    def sample(
        self, sample_shape: _size = Size(), *, generator: Generator | None = None
    ) -> Tensor:
        r"""Draws, shape (\*S, \*event_shape); every one meets all constraints.

        Args:
            sample_shape: Shape S of the draws.
            generator: Where random numbers come from; by default PyTorch's global generator.
        """
        count = Size(sample_shape).numel()
        if isinstance(self._draws, Tensor):
            flat = self._draws[torch.multinomial(self._weight, max(1, count), True)[:count]]
        else:
            flat = self._draws.sample((count,))
        return self._arrays(flat, sample_shape)

    def _arrays(self, flat: Tensor, shape: Sequence[int]) -> Tensor:
        channels = self.event_shape[0]
        places = self.event_shape.numel() // channels
        return self._model.unflatten(flat.reshape(len(flat), places, channels), shape)

    @property
    def mean(self) -> Tensor:
        """Means of all entries, of the event shape.

        Given the particles in closed form, or under inequalities that of draws.
        """
        return self._arrays(self._moments()[0].unsqueeze(0), ())

    @property
    def variance(self) -> Tensor:
        """Variances of all entries, of the event shape."""
        return self._arrays(self._moments()[1].unsqueeze(0), ())

    def _moments(self) -> tuple[Tensor, Tensor]:
        if not isinstance(self._draws, Tensor):
            law: Any = self._draws
            try:
                return law.mean, law.variance
            except NotImplementedError:  # under inequalities: the same draws each time
                with draws_from(*seeded(0, self._like.device)):
                    x = law.sample((MOMENT_DRAWS,))
                return x.mean(0), x.var(0)
        weight = self._weight.unsqueeze(-1).to(self._draws)
        mean = (weight * self._draws).sum(0)
        return mean, (weight * (self._draws - mean).square()).sum(0)

    def log_prob(self, value: Tensor) -> Tensor:
        r"""Log-density of arrays of shape (\*S, \*event_shape); shape (\*S).

        With the model's own bound for that of the array without evidence, with respect to
        Lebesgue measure on the entries that were not observed.
        """
        check_value(self, value, like=self._like)
        shape = value.shape[: value.dim() - len(self.event_shape)]
        flat = self._model.flatten(value).flatten(1)
        factor, fits = log_factor(
            self._known.observed, self._known.noisy, Size(), flat, flat.dtype
        )
        for regions in self._regions:
            fits = fits & _within(regions, flat)
        total = self._model.log_prob_under(self._law, value).double() + factor.reshape(shape)
        total = total - self._log_mean()
        return torch.where(fits.reshape(shape), total, -math.inf).to(value)

    def _log_mean(self) -> Tensor:
        """Logarithm of the mean of the estimates of Z."""
        return self._log_evidence.logsumexp(0) - math.log(len(self._log_evidence))

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(event_shape={tuple(self.event_shape)}, "
            f"effective_sample_size={float(self.effective_sample_size):.0f})"
        )


def condition_hierarchy(
    model: ArrayModel, evidence: Sequence[Any], settings: Settings
) -> ConditionedHierarchy:
    """The law of a model given pieces of evidence about entries of the array.

    Raises:
        ValueError: If the evidence does not fit the array, is for a batch of laws, or cannot hold.
    """
    with entries_called(model.event_shape):
        return _condition(model, evidence, settings)


def _condition(
    model: ArrayModel, evidence: Sequence[Any], settings: Settings
) -> ConditionedHierarchy:
    pieces = [flat_evidence(piece, model.event_shape) for piece in evidence]
    device = model.law.windows.mixture.log_weight.device
    known, unions = collect_unions(pieces, model.event_shape.numel(), device)
    if known.batch_shape or any(part.batch_shape for union in unions for part in union):
        raise ValueError(
            "Expected evidence for one array, got a batch. Condition on each by itself; for known "
            "entries of many arrays use impute."
        )
    _check_values(known)
    with torch.no_grad():
        law = model.law.copied()
        if law.windows.tiling.overlaps or law.windows.correlates:
            return _by_filter(model, law, known, unions, settings)
        return _by_messages(model, law, pieces, known, unions, settings)


def _check_values(known: LinearEvidence) -> None:
    """Checks that values lie within bounds of their own."""
    entries = StatementsByWindow.singles(known)
    low, value, high = (
        part.to(known.coarsest) for part in (entries.low, entries.value, entries.high)
    )
    crossed = (low >= high).nonzero()
    if len(crossed):
        d = int(crossed[0])
        raise ConflictError(
            f"Expected evidence that can hold, but these bounds leave no room: "
            f"{float(low[d]):g} <= {term(d)} <= {float(high[d]):g}. Relax one of them; give exact "
            f"values by a mapping."
        )
    broken = ((entries.variance == 0) & ((value < low) | (value > high))).nonzero()
    if len(broken):
        raise ConflictError(
            f"Expected evidence that can hold, but the value of {coordinate(int(broken[0]))} "
            f"breaks a bound. Relax the bound, or correct the value."
        )


def _by_messages(
    model: ArrayModel,
    law: HierarchicalLaw,
    pieces: Sequence[Evidence],
    known: LinearEvidence,
    unions: Sequence[Sequence[LinearEvidence]],
    settings: Settings,
) -> ConditionedHierarchy:
    windows, count = law.windows, -(-settings.num_particles // REPEATS)
    single = StatementsByWindow.singles(known)
    # Priors on single entries leave normals independent: other evidence meets these.
    priors = [piece for piece in pieces if isinstance(piece, GaussianPrior)]
    others = [piece for piece in pieces if not isinstance(piece, GaussianPrior)]
    readings = StatementsByWindow.singles(collect_unions(priors, known.dim, known.device)[0])
    rest = collect_unions(others, known.dim, known.device)[0]
    shape = (REPEATS, windows.tiling.num_entries, windows.channels)
    entries = EntryEvidence(*(part.expand(REPEATS, -1).reshape(shape) for part in single))
    given = codes_given(law, entries, settings.keep, draws=count)
    mean, scale = windows.moments_of_arrays(given.codes)  # (R, draws, P, channels)
    # What codes were drawn by is taken back, and put in again with all that is known.
    own = entries.map(lambda t: t.unsqueeze(1)).log_factor(mean.double(), scale.double())
    logits = given.log_evidence.double().unsqueeze(-1) - math.log(count) - own.sum((-2, -1))
    loc, spread = (t.flatten(0, 1).flatten(1).double() for t in (mean, scale))
    weights = logits.flatten() - math.log(REPEATS)
    seen, loc, spread = readings.posterior(loc, spread)
    weights = weights + seen.sum(-1)
    total = weights.logsumexp(0)  # which a mixture leaves out
    if not bool(total.isfinite()):
        raise ConflictError(
            "Expected evidence that can hold, but its density is too small for numbers: values "
            "or priors are far from all that the model knows."
        )
    weights = weights - total
    mixture = MixtureOfNormals(
        weights.to(mean), loc.to(mean), spread.to(mean), validate_args=False
    )
    prior = MixturePrior(mixture, allow_all_observed=True)
    prior.is_sampled = True  # unions are met by rejection: alternatives would take one law each
    base = prior.given(rest)
    conditioned = prior.condition_on(others) if unions else base
    joint = base._joint.reshape(REPEATS, count).double() + total + math.log(REPEATS)
    weight = base._joint.softmax(-1)
    estimates = joint.logsumexp(-1)
    change, error = conditioned.log_normalizer()
    estimates = estimates + change - base.log_normalizer()[0]
    return ConditionedHierarchy(model, law, known, unions, estimates, weight, conditioned, error)


def _by_filter(
    model: ArrayModel,
    law: HierarchicalLaw,
    known: LinearEvidence,
    unions: Sequence[Sequence[LinearEvidence]],
    settings: Settings,
) -> ConditionedHierarchy:
    kept = -(-settings.num_particles // REPEATS)
    windows = law.windows
    statements = StatementsByWindow(known, unions, windows.tiling, windows.channels)
    ahead = lookahead_of(law, statements)
    runs = [
        draws_given(law, statements, ahead, count=BREADTH * kept, kept=kept)
        for _ in range(REPEATS)
    ]
    estimates = torch.stack([run.log_evidence for run in runs])
    value = torch.cat([run.value for run in runs]).flatten(1)
    log_weight = torch.cat([run.log_weight + run.log_evidence for run in runs])
    # Rounding to the dtype of draws may break what held before.
    for own in _regions(known, unions, value.dtype):
        log_weight = log_weight.masked_fill(~_within(own, value), -math.inf)
    if bool(log_weight.isneginf().all()) or bool(log_weight.isnan().any()):
        raise ConflictError(
            "Expected evidence that can hold, but no particle meets it. Take more particles, or "
            "relax what is known."
        )
    return ConditionedHierarchy(model, law, known, unions, estimates, log_weight.softmax(0), value)


def _regions(
    known: LinearEvidence, unions: Sequence[Sequence[LinearEvidence]], dtype: torch.dtype
) -> list[list[Polytope]]:
    """Sets of regions of each of which one has to hold."""
    sets = [*unions, [known]] if known.num_rows else unions
    return [[Polytope.about(part, (), dtype) for part in parts] for parts in sets]


def _within(regions: Sequence[Polytope], flat: Tensor) -> Tensor:
    """Whether points (n, D) lie in one of several regions, (n,)."""
    entry = torch.zeros(len(flat), dtype=torch.long, device=flat.device)
    return torch.stack([region.contains(flat, entry) for region in regions]).any(0)
