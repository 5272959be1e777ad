"""Laws given that at least one of several constraints holds."""

__all__ = ["UnionOfConditioned", "condition_on", "law_given_any"]

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..core.random import generator_states
from ..evidence.collect import (
    MAX_ALTERNATIVES,
    SMALLER,
    collect_unions,
    combine,
    describe_counts,
    possible,
)
from ..evidence.linear import LinearEvidence
from ..evidence.pieces import Nonlinear
from ..numerics.batches import choose
from ..numerics.no_gradient import raise_if_freed, raise_on_gradient
from .entries import LawsByEntry, at_entry, entries_apart
from .law import (
    FREED_GRAPH,
    UNKNOWN_EVIDENCE_GRADIENT,
    ConditionedLaw,
    Prior,
    Statement,
    WithinRegions,
)
from .nonlinear import NonlinearLaw
from .polytope import Polytope
from .rejection import LawWithinUnions
from .truncated import ConflictError

# Draws of the other evidence are taken if at least this share of them lies in the unions; the
# lower one counts where there are too many combinations.
ENOUGH, LEAST = 0.02, 0.001

# So few combinations are conditioned on one by one. Of independent columns any number is, up to
# `MAX_ALTERNATIVES`: their probabilities have a closed form.
FEW_COMBINATIONS = 8

# Beyond this many intersections that are not empty, their number may be anything up to 2^m.
MAX_INTERSECTIONS = 64
# An estimate takes rounds of draws of every alternative, until it reaches the error.
WANTED_ERROR = 0.003
ROUND_DRAWS = 4096
MIN_DRAWS = 256
MAX_ROUNDS = 32
MAX_NUMBERS = 2**25
CHUNK_NUMBERS = 2**22


class UnionOfConditioned(WithinRegions):
    r"""A law within a union of regions, :math:`p(x) q(x) \, 1[x \in A_1 \cup \dots \cup A_m] / Z`.

    A draw comes from an alternative, with probability proportional to its evidence, and is
    accepted with one over the number of alternatives that it lies in (Karp and Luby 1983): draws
    are exact, wherever those of the alternatives are, and independent.

    Z is a sum over alternatives and their intersections, by inclusion and exclusion: in closed
    form where those are. Where more than 64 intersections are not empty, or their errors add up to
    more than 0.01, it is also estimated, as :math:`\sum_b Z_b E_b[1 / \text{count}(x)]`, once, at
    construction, with PyTorch's global random state; the smaller error decides. `log_prob` is
    deterministic, and differentiable as those of the alternatives are, unless log Z was estimated.

    Args:
        prior: The law without evidence.
        evidence: The evidence with each alternative, which can hold. They differ in their
            inequalities alone.
        laws: The laws given these.

    Attributes:
        alternatives: The laws given each alternative.
        branches: Another name of `alternatives`.

    Raises:
        ValueError: If no alternative can hold at an entry of the batch.
    """

    def __init__(
        self, prior: Prior, evidence: Sequence[LinearEvidence], laws: Sequence[ConditionedLaw]
    ) -> None:
        self.alternatives = tuple(laws)
        self.branches = self.alternatives
        super().__init__(prior, laws[0].batch_shape, laws[0].event_shape)
        self._regions = [
            Polytope.about(linear, self.batch_shape, self._dtype) for linear in evidence
        ]
        normalizers = [law.log_normalizer() for law in laws]
        self._log_weight = torch.stack([z for z, _ in normalizers], -1)  # (*B, alternatives)
        self._weight_error = torch.stack([error for _, error in normalizers], -1)
        impossible = self._log_weight.isneginf().all(-1)
        if bool(impossible.any()):
            raise ConflictError(
                f"Expected alternatives of which one can hold, but {int(impossible.sum())} of "
                f"{impossible.numel()} entries of the batch contradict all."
            )
        log_total, self._error = self._normalize(evidence)
        self._log_total = raise_if_freed(log_total, FREED_GRAPH)

    @property
    def route(self) -> tuple[Any, ...]:  # type: ignore[override]
        """How the law given each alternative is drawn and normalised."""
        return tuple(law.route for law in self.alternatives)

    @property
    def observed(self) -> Mapping[int, Tensor]:
        r"""Coordinates that were observed, in ascending order -> their values, shape (\*B,)."""
        return self.alternatives[0].observed

    @property
    def acceptance(self) -> Tensor:
        r"""Share of the draws that are accepted, shape (\*B,): one without overlaps."""
        return (self._log_total - self._log_weight.logsumexp(-1)).exp().to(self._dtype)

    def log_normalizer(self) -> tuple[Tensor, Tensor]:
        r"""Log Z of shape (\*B,) and its standard error, in float64."""
        return self._log_total, self._error

    def draw(self, entry: Tensor) -> Tensor:
        """Draws (n, D) of the laws at entries (n,) of the flattened batch; see `sample`."""
        log_weight = self._log_weight.reshape(-1, len(self.alternatives))
        x = torch.empty(len(entry), *self.event_shape, dtype=self._dtype, device=entry.device)
        pending = torch.arange(len(entry), device=entry.device)
        while len(pending):  # of which at least one in as many as there are alternatives is done
            now = entry[pending]
            drawn = x[pending]
            chosen = choose(log_weight, now)
            for number, law in enumerate(self.alternatives):
                rows = (chosen == number).nonzero().squeeze(-1)
                if len(rows):
                    drawn[rows] = law.draw(now[rows])
            accepted = torch.rand(len(now), device=now.device) * self._count(drawn, now) < 1
            x[pending[accepted]] = drawn[accepted]
            pending = pending[~accepted]
        return x

    def mode_at(self, entry: Tensor) -> Tensor:
        """Modes (n, D) of the laws at entries (n,): the densest of those of the alternatives."""
        log_weight = self._log_weight.reshape(-1, len(self.alternatives))[entry]
        x = torch.empty(len(entry), *self.event_shape, dtype=self._dtype, device=entry.device)
        density = torch.full_like(log_weight[:, 0], -math.inf)
        for number, law in enumerate(self.alternatives):
            rows = (log_weight[:, number] > -math.inf).nonzero().squeeze(-1)
            if not len(rows):
                continue
            found = law.mode_at(entry[rows])
            reached = law.log_joint_at(found.unsqueeze(0), entry[rows])[0]
            better = reached > density[rows]
            x[rows[better]], density[rows[better]] = found[better], reached[better]
        return x

    def holds(self, value: Tensor) -> Tensor:
        r"""Whether points (\*S, \*B, D) lie in one of the regions; shape (\*S, \*B)."""
        leading = torch.broadcast_shapes(value.shape[:-1], self.batch_shape)
        points = value.expand(*leading, -1).reshape(-1, value.shape[-1])
        return (self._count(points, self._entries(leading)) > 0).reshape(leading)

    def log_joint(self, value: Tensor) -> Tensor:
        r"""Log p(x) q(x) of points, in float64, as if there were no inequalities."""
        return self.alternatives[0].log_joint(value)

    # ---- building -----------------------------------------------------------------------------

    def _count(self, x: Tensor, entry: Tensor) -> Tensor:
        """In how many of the alternatives points (n, D) lie."""
        count = torch.zeros(len(x), dtype=torch.long, device=x.device)
        for region in self._regions:
            count = count + region.contains(x, entry)  # not in place: `vmap` over points
        return count

    def _normalize(self, evidence: Sequence[LinearEvidence]) -> tuple[Tensor, Tensor]:
        """Log Z and its standard error, the best that can be had."""
        summed = self._include_and_exclude(evidence)
        if summed is not None and bool((summed[1] <= 0.01).all()):
            return summed
        log_total, error = self._estimate()
        if summed is not None:
            better = error < summed[1]
            log_total = torch.where(better, log_total, summed[0])
            error = torch.where(better, error, summed[1])
        log_total = raise_on_gradient(
            log_total, self._log_weight, message=UNKNOWN_EVIDENCE_GRADIENT
        )
        return log_total, error

    def _include_and_exclude(
        self, evidence: Sequence[LinearEvidence]
    ) -> tuple[Tensor, Tensor] | None:
        """Sums over intersections; None if there are too many."""
        bound = self._log_weight.logsumexp(-1)  # all terms are measured by it
        share = (self._log_weight - bound.unsqueeze(-1)).exp()
        total, square = share.sum(-1), (share.detach() * self._weight_error).square().sum(-1)
        for number, (chosen, law) in enumerate(_intersections(self._prior, evidence)):
            if number == MAX_INTERSECTIONS:
                return None
            log_weight, error = law.log_normalizer()
            term = (log_weight - bound).exp()
            total = total + (term if len(chosen) % 2 else -term)
            square = square + (term.detach() * error).square()
        # Estimates may stray: the union is at least as likely as any alternative.
        total = torch.maximum(total, share.amax(-1)).clamp(max=1.0)
        return bound + total.log(), square.sqrt() / total.detach()

    @torch.no_grad()
    def _estimate(self) -> tuple[Tensor, Tensor]:
        """The alternatives' evidence, each times the mean of one over the count in its draws."""
        num = len(self.alternatives)
        share = self._log_weight.softmax(-1).reshape(-1, num)  # (entries, alternatives)
        weight_error = self._weight_error.reshape(-1, num)
        total, squares = torch.zeros_like(share), torch.zeros_like(share)
        possible = share > 0
        draws, dim = 0, self.event_shape.numel()
        most = MAX_NUMBERS // (dim * int(possible.sum()))  # of every alternative, in all rounds
        size = max(MIN_DRAWS, min(ROUND_DRAWS, most))
        chunk = max(1, CHUNK_NUMBERS // (dim * size))
        for _ in range(max(1, min(MAX_ROUNDS, most // size))):
            draws += size
            for number, law in enumerate(self.alternatives):
                for entries in possible[:, number].nonzero().squeeze(-1).split(chunk):
                    entry = entries.repeat_interleave(size)
                    count = self._count(law.draw(entry), entry).clamp(min=1)
                    inverse = count.double().reciprocal().reshape(len(entries), size)
                    total[entries, number] += inverse.sum(-1)
                    squares[entries, number] += inverse.square().sum(-1)
            mean = total / draws
            # As if one more draw had met an overlap: none seen does not mean that there is none.
            spread = ((squares / draws - mean.square()).clamp(min=0.0) + 0.25 / draws) / draws
            covered = (share * mean).sum(-1)
            error = (share.square() * (spread + (mean * weight_error).square())).sum(-1).sqrt()
            drawing_error = (share.square() * spread).sum(-1).sqrt() / covered
            if bool((drawing_error <= WANTED_ERROR).all()):
                break
        log_total = self._log_weight.logsumexp(-1) + covered.log().reshape(self.batch_shape)
        return log_total, (error / covered).reshape(self.batch_shape)

    def _shown(self) -> dict[str, Any]:
        return {"alternatives": len(self.alternatives)}


def condition_on(prior: Prior, evidence: Sequence[Statement]) -> ConditionedLaw:
    """The law given pieces of evidence.

    Returns:
        The law given all of them; a `LawsByEntry` where more than values and bounds differ in a
        batch. With several alternatives that can hold a `UnionOfConditioned`,
        or, where there are too many combinations of them or log Z is estimated anyway, a
        `LawWithinUnions`.

    Raises:
        ConflictError: If no alternative can hold, in all the batch or at an entry of it.
        ValueError: If there are too many combinations of alternatives, and draws of the other
            evidence hardly ever meet them.
    """
    start = generator_states(prior.device)
    shape = entries_apart(evidence)
    if shape is not None:
        apart = LawsByEntry(
            prior,
            shape,
            lambda index: condition_on(prior, [at_entry(s, index, shape) for s in evidence]),
        )
        apart._statements, apart._start = tuple(evidence), start
        return apart
    nonlinear = [piece for piece in evidence if isinstance(piece, Nonlinear)]
    rest = [piece for piece in evidence if not isinstance(piece, Nonlinear)]
    known, unions = collect_unions(rest, prior.dim, prior.device, prior.categories)
    law: ConditionedLaw
    if not unions:
        law = prior.given(known)
    elif nonlinear:
        law = _law_within(prior, known, unions)
    else:
        law = _law_given_unions(prior, known, unions)
    if nonlinear:
        law = NonlinearLaw(law, nonlinear)
    law._statements, law._start = tuple(evidence), start
    return law


def _law_given_unions(
    prior: Prior, known: LinearEvidence, unions: Sequence[Sequence[LinearEvidence]]
) -> ConditionedLaw:
    """The law given all that is known, within unions, by the better of two ways."""
    counts = [len(union) for union in unions]
    many = math.prod(counts) > MAX_ALTERNATIVES
    few = math.prod(counts) <= FEW_COMBINATIONS or not prior.correlates
    least, enough = 0.0, LEAST if many else ENOUGH
    if prior.is_sampled or many or not few:
        try:
            law = _law_within(prior, known, unions)
        except ConflictError:
            if many:
                raise
        else:
            least = float(law.acceptance.min()) if isinstance(law, LawWithinUnions) else 1.0
            if least >= enough:
                return law
    if many:
        raise ValueError(
            f"Expected at most {MAX_ALTERNATIVES} combinations of alternatives, got "
            f"{describe_counts(counts)}, or such as {LEAST:.1%} of the draws given all other "
            f"evidence meet: {least:.2%} do. {SMALLER}"
        )
    return law_given_any(prior, combine(known, unions, prior.dtype), math.prod(counts))


def _law_within(
    prior: Prior, known: LinearEvidence, unions: Sequence[Sequence[LinearEvidence]]
) -> ConditionedLaw:
    """The law given all that is known, within unions, by rejection.

    Unions of which one alternative can hold are known, too.
    """
    parts = [possible(known, [(part,) for part in union], prior.dtype) for union in unions]
    known = known.join(*(part[0][0] for part in parts if len(part) == 1))
    left = [[region for (region,) in part] for part in parts if len(part) > 1]
    law = prior.given(replace(known, unions=left))
    if not left:
        return law
    bare = replace(known, matrix=[], low=[], high=[])
    regions = [
        [Polytope.about(bare.join(region), law.batch_shape, prior.dtype) for region in union]
        for union in left
    ]
    return LawWithinUnions(law, regions)


def law_given_any(
    prior: Prior, alternatives: Sequence[LinearEvidence], count: int
) -> ConditionedLaw:
    """The law given alternatives of which at least one holds; each is built once.

    Args:
        prior: The law without evidence.
        alternatives: The alternatives that may be possible.
        count: How many there were at first.
    """
    kept: list[LinearEvidence] = []
    laws: list[ConditionedLaw] = []
    first: ConflictError | None = None
    for alternative in alternatives:
        try:
            laws.append(prior.given(alternative, allow_impossible_entries=len(alternatives) > 1))
            kept.append(alternative)
        except ConflictError as conflict:
            first = first or conflict
    if not laws:
        raise ConflictError(
            f"Expected alternatives of which one can hold, but all {count} contradict themselves "
            f"or the other evidence. One says: {first}"
        )
    if len(laws) == 1:
        if len(alternatives) > 1:  # entries were allowed to be impossible
            laws[0].check_possible()
        return laws[0]
    return UnionOfConditioned(prior, kept, laws)


def _intersections(
    prior: Prior, evidence: Sequence[LinearEvidence]
) -> Iterator[tuple[tuple[int, ...], ConditionedLaw]]:
    """The laws within two alternatives and more at once, where that is possible."""
    level: set[tuple[int, ...]] = {(number,) for number in range(len(evidence))}
    while level:
        above: set[tuple[int, ...]] = set()
        for chosen in sorted(level):
            for number in range(chosen[-1] + 1, len(evidence)):
                wanted = (*chosen, number)
                # Every part of an intersection that is not empty is not empty.
                parts = (wanted[:i] + wanted[i + 1 :] for i in range(len(wanted)))
                if not all(part in level for part in parts):
                    continue
                first, *others = (evidence[i] for i in wanted)
                both = first.intersect(*others)
                if bool(both.contradicts_itself(prior.dtype).all()):
                    continue
                try:
                    law = prior.given(both, allow_impossible_entries=True)
                except ConflictError:
                    continue
                above.add(wanted)
                yield wanted, law
        level = above
