r"""Codes that evidence leaves likely, with weights.

Codes are built up layer by layer. A prefix h_<=l is weighed by :math:`p(h_{\le l})` times how
well the evidence agrees with the normal that it stands for, with the inner scale for noise: as
priors and constraints pass through the layers of the paper (section 3.6). Of all continuations of
all prefixes a fixed number is kept, each with a probability that is computed; its inverse becomes
the weight. Those above a threshold are kept for certain, others by systematic sampling (Fearnhead
and Clifford 2003). So no code is held twice, sums over codes are unbiased, and they are exact if
all fit.
"""

__all__ = ["Codes", "couples", "enumerate_codes", "find_codes", "prune"]

import math
from typing import NamedTuple

import torch
from torch import Size, Tensor

from ..evidence.linear import LinearEvidence
from .column_evidence import ColumnEvidence
from .law import ResidualMixture
from .thinning import INFLATIONS, thin

# Populations that are grown independently; their spread is the error of what they estimate.
ISLANDS = 8

# Codes that are held by default at an entry: the most, the least, and about so many in all.
MOST_PARTICLES, LEAST_PARTICLES, ALL_PARTICLES = 1024, 128, 2**17

# Of what a prefix is worth, at most this share is taken to be covered by codes that are kept.
MOST_COVERED = 0.95

# Inequalities are integrated for all continuations where there are no more numbers than this, and
# else for this many times more of them than are kept.
MAX_INTEGRALS = 2**16
CANDIDATES = 4

# Entries are worked on together as long as there are no more continuations
# (of real columns) and numbers (of categorical ones) than this.
MAX_SCORES, MAX_NUMBERS = 2**19, 2**25

# Where the integrals have no closed form, so many codes are integrated at most.
MAX_COUPLED = 256

# Codes are left out of what is integrated exactly if all together are less likely than this.
NEGLIGIBLE = 1e-6


class Codes(NamedTuple):
    """Codes of E entries of a batch."""

    codes: Tensor
    """Shape (E, C, L), or (1, C, L) for all entries."""
    log_weight: Tensor
    """Logarithm of how many codes each stands for, (E, C) or (1, C); minus infinity for
    fillers."""
    islands: Tensor | None
    """Weights relative to that in every island, (E, islands, C), whose mean is one; None if no
    code was left out."""
    size: int
    """Number of codes that were held."""
    log_prior: Tensor | None = None
    """Log p(h) of each, (E, C), if a search has found them; without a graph."""
    log_seen: Tensor | None = None
    """Log-densities of what was observed under each, (E, C), if a search has found them."""


def enumerate_codes(law: ResidualMixture) -> Codes:
    """All codes there are."""
    codes, log_prior = law.all_codes()
    return Codes(codes.unsqueeze(0), torch.zeros_like(log_prior).unsqueeze(0), None, len(codes))


@torch.no_grad()
def find_codes(
    law: ResidualMixture,
    evidence: LinearEvidence,
    batch_shape: Size,
    num_particles: int | None = None,
    kept: Tensor | None = None,
) -> Codes:
    """Grows populations of codes from layer to layer.

    Args:
        law: The law.
        evidence: The evidence.
        batch_shape: Its shape, of E entries.
        num_particles: Number of codes that are held in all islands together; by default
            `MOST_PARTICLES`, and fewer in large batches. Fewer come out where inequalities depend
            on each other.
        kept: Codes that are held for certain, besides, shape (E, M, L), each once.
    """
    entries = math.prod(batch_shape)
    if num_particles is None:
        num_particles = min(MOST_PARTICLES, ALL_PARTICLES // max(1, entries))
        num_particles = max(LEAST_PARTICLES, num_particles)
    size = max(1, num_particles // ISLANDS)
    width = ISLANDS * size * law.num_components
    guide = evidence.with_rows_of_unions()
    columns, cost = None, 1
    if evidence.categorical:
        columns = ColumnEvidence(law.columns, evidence.categorical, batch_shape)
        cost = columns.cost
    block = max(1, min(MAX_SCORES // law.evidence_cost(evidence), MAX_NUMBERS // cost) // width)
    known = None if kept is None else _Kept.of(law, guide, batch_shape, columns, kept)
    searches = [
        _Search(law, guide, batch_shape, slice(start, min(start + block, entries)), columns, known)
        for start in range(0, entries, block)
    ]
    for search in searches:
        for layer in range(law.num_layers):
            last = layer == law.num_layers - 1
            few = last and couples(law, evidence)
            search.grow(min(size, MAX_COUPLED // ISLANDS) if few else size)
    codes, log_weight, log_prior, log_seen = (
        torch.cat([getattr(search, name) for search in searches])
        for name in ("codes", "log_weight", "log_prior", "log_seen")
    )
    if known is None:
        return _merge(codes, log_weight, (log_prior, log_seen), entries)
    count = ISLANDS * codes.shape[1] + known.codes.shape[1]
    # Sums over the kept codes are exact, and those over all others are estimated.
    log_weight = log_weight.masked_fill(known.finds(codes).any(-1), -math.inf)
    codes, log_weight, log_prior, log_seen = (
        torch.cat([own, more.to(own)], 1)
        for own, more in (
            (codes, known.codes),
            (log_weight, torch.zeros_like(known.log_prior)),
            (log_prior, known.log_prior),
            (log_seen, known.log_seen),
        )
    )
    return _merge(codes, log_weight, (log_prior, log_seen), entries)._replace(size=count)


class _Kept(NamedTuple):
    """Codes that are held for certain, in all islands of B = E islands populations."""

    codes: Tensor
    """Shape (B, M, L)."""
    log_prior: Tensor
    """Log p(h), shape (B, M)."""
    log_seen: Tensor
    """Log-densities of what was observed under each, shape (B, M)."""
    log_joint: Tensor
    """With that of categorical columns and, roughly, of inequalities, all together, (B, M)."""

    @classmethod
    def of(
        cls,
        law: ResidualMixture,
        evidence: LinearEvidence,
        batch_shape: Size,
        columns: ColumnEvidence | None,
        codes: Tensor,
    ) -> "_Kept":
        """Of codes (E, M, L)."""
        prior = law.log_prior(codes.flatten(0, 1)).reshape(codes.shape[:-1])
        seen, rows = law.agreement(evidence, batch_shape, codes)
        joint = prior + seen + evidence.log_all(rows)
        if columns is not None:
            joint = joint + columns.log_prob(codes)
        repeated = (t.repeat_interleave(ISLANDS, 0) for t in (codes, prior, seen, joint))
        return cls(*repeated)

    def at(self, populations: slice) -> "_Kept":
        """Those of some populations."""
        return _Kept(*(t[populations] for t in self))

    def finds(self, prefixes: Tensor) -> Tensor:
        """Which of prefixes (B, P, l) each code goes on from, shape (B, P, M)."""
        own = _keys(self.codes[..., : prefixes.shape[-1]])
        return _keys(prefixes).unsqueeze(-1) == own.unsqueeze(-2)

    def discount(self, score: Tensor, prefixes: Tensor) -> Tensor:
        """What to add to scores of continuations, as kept codes need not be found again.

        Args:
            score: Log of what continuations (B, P, K) and all that follows them are worth.
            prefixes: What they continue, shape (B, P, l).
        """
        layer = prefixes.shape[-1]
        population, parent, index = self.finds(prefixes).nonzero(as_tuple=True)
        code = self.codes[population, index, layer]
        at = population, parent, code
        shift = torch.zeros_like(score)
        if layer == self.codes.shape[-1] - 1:
            return shift.index_put_(at, torch.full_like(score[at], -math.inf))
        share = (self.log_joint[population, index] - score[at]).exp().clamp(max=1.0)
        covered = shift.index_put(at, share, accumulate=True).clamp(max=MOST_COVERED)
        return torch.log1p(-covered)


def _keys(codes: Tensor) -> Tensor:
    """Numbers (*) for codes (*, l): equal ones for equal codes, and else hardly ever."""
    generator = torch.Generator().manual_seed(0)
    factor = torch.randint(-(2**62), 2**62, codes.shape[-1:], generator=generator)
    return (codes * factor.to(codes.device)).sum(-1)


class _Search:
    """Populations of prefixes of codes: B of them, one for every entry and island.

    Args:
        law: The law.
        evidence: The evidence.
        batch_shape: Its shape.
        entries: Entries of the flattened batch to search codes for.
        columns: What the evidence says of categorical columns.
        kept: Codes that need not be found.

    Attributes:
        log_weight: Logarithm of how many prefixes each stands for, shape (B, P).
        log_prior: Log p of each, shape (B, P).
        log_seen: Log-densities of what was observed under each, were the last layer of each the
            last of all, shape (B, P).
    """

    def __init__(
        self,
        law: ResidualMixture,
        evidence: LinearEvidence,
        batch_shape: Size,
        entries: slice,
        columns: ColumnEvidence | None = None,
        kept: _Kept | None = None,
    ) -> None:
        self._law, self._evidence = law, evidence
        self._columns = None if columns is None else columns.at(entries)
        populations = (entries.stop - entries.start) * ISLANDS
        self._steering = law.steered_by(evidence, batch_shape, entries, populations)
        every = slice(entries.start * ISLANDS, entries.stop * ISLANDS)
        self._kept = None if kept is None else kept.at(every)
        zero = law.log_weight.new_zeros(populations, 1)
        self.log_weight = self.log_prior = self.log_seen = zero
        # How well inequalities agree, with each of the scales.
        self._log_rows = zero.expand(len(INFLATIONS), -1, -1)

    @property
    def codes(self) -> Tensor:
        """Prefixes, shape (B, P, l)."""
        return self._steering.prefix.codes

    def grow(self, size: int) -> None:
        """Goes on by a layer, and keeps at most so many codes in every population."""
        law, layer = self._law, self._steering.prefix.layer
        count, k = self.codes.shape[1], law.num_components
        conditional = law.log_conditional(layer, self.codes.flatten(0, 1)).reshape(-1, count, k)
        base = (self.log_weight + self.log_prior).unsqueeze(-1) + conditional
        if self._columns is not None:
            by_entry = self._steering.by_entry
            fit = self._columns.score(by_entry(self.codes))
            base = (by_entry(base) + fit).reshape(base.shape)
        fits = self._steering.observations()
        if self._evidence.num_rows:
            index, log_inclusion = self._thin_within_inequalities(base, fits, size)
        else:
            score = base + _log_sum(fits)
            index, log_inclusion = thin((score + self._discount(score)).flatten(1), size)
        parent, chosen = index // k, index % k
        self._steering.advance(parent, chosen)
        own = conditional.flatten(1).gather(1, index)
        self.log_prior = self.log_prior.gather(1, parent) + own
        self.log_seen = _log_sum(fits.flatten(2).gather(2, index.expand(len(fits), -1, -1)))
        self.log_weight = self.log_weight.gather(1, parent) - log_inclusion

    def _thin_within_inequalities(
        self, base: Tensor, fits: Tensor, size: int
    ) -> tuple[Tensor, Tensor]:
        """Keeps continuations (B, P, K) in two steps, of which the second knows inequalities.

        The parent's inequalities stand in for those of its continuations in the first, where
        these are too many to integrate.
        """
        count, k = base.shape[1:]
        told = _log_sum(fits + self._log_rows[: len(fits)].unsqueeze(-1))
        base = base + self._discount(base + told)
        guess = base + told
        few = guess.numel() * self._evidence.num_rows <= MAX_INTEGRALS
        index, log_inclusion = thin(guess.flatten(1), count * k if few else CANDIDATES * size)
        rows = self._steering.inequalities(index // k, index % k)
        fits = fits.flatten(2).gather(2, index.expand(len(fits), -1, -1))
        score = base.flatten(1).gather(1, index) + _log_sum(fits + rows) - log_inclusion
        second, more = thin(score, size)
        self._log_rows = rows.gather(2, second.expand(len(rows), -1, -1))
        return index.gather(1, second), log_inclusion.gather(1, second) + more

    def _discount(self, score: Tensor) -> Tensor | float:
        """What to add to scores of continuations (B, P, K), for codes that are kept anyway."""
        if self._kept is None:
            return 0.0
        return self._kept.discount(score - self.log_weight.unsqueeze(-1), self.codes)


def _log_sum(fits: Tensor) -> Tensor:
    """Log of the sum over one or two scales, the first axis."""
    return fits[0] if len(fits) == 1 else torch.logaddexp(fits[0], fits[1])


def couples(law: ResidualMixture, evidence: LinearEvidence) -> bool:
    """Whether inequalities depend on each other: their probability has no closed form then."""
    if not evidence.num_rows:
        return False
    _, free = evidence.split_columns()
    used = torch.cat(evidence.matrix)[:, free] != 0
    used = used[used.any(-1)].unique(dim=0)
    if evidence.gaussian or law.correlates:  # then all coordinates depend on each other
        return len(used) > 1
    return int(used.sum(0).max()) > 1 if len(used) else False


@torch.no_grad()
def prune(
    law: ResidualMixture,
    evidence: LinearEvidence,
    batch_shape: Size,
    codes: Codes,
    log_joint: Tensor,
) -> Codes:
    """Leaves out codes that inequalities make unlikely, before their probability is integrated.

    Args:
        law: The law.
        evidence: The evidence.
        batch_shape: Its shape, of E entries.
        codes: The codes.
        log_joint: Their log-weights without linear evidence, shape (E, C).

    Returns:
        What is left, the same number in every entry.
    """
    entries = len(log_joint)
    seen, rows = law.agreement(evidence, batch_shape, codes.codes.expand(entries, -1, -1))
    seen = log_joint + seen
    # The probability of all inequalities is at most that of the least likely, and near the
    # product.
    bound, guess = (seen + t for t in (rows.amin(-1), rows.sum(-1)))
    ordered, order = bound.sort(-1, descending=True)
    tail = ordered.flip(-1).logcumsumexp(-1).flip(-1)  # this code and all less likely ones
    kept = tail > guess.logsumexp(-1, keepdim=True) + math.log(NEGLIGIBLE)
    index = order[:, : max(1, int(kept.sum(-1).max()))]
    return _select(codes, index)


def _select(codes: Codes, index: Tensor) -> Codes:
    """The codes at indices (E, C')."""
    entries = len(index)
    every = codes.codes.expand(entries, -1, -1)
    islands = codes.islands
    if islands is not None:
        islands = islands.gather(2, index.unsqueeze(1).expand(-1, islands.shape[1], -1))
    log_prior = codes.log_prior
    return Codes(
        every.gather(1, index.unsqueeze(-1).expand(-1, -1, every.shape[-1])),
        codes.log_weight.expand(entries, -1).gather(1, index),
        islands,
        codes.size,
        None if log_prior is None else log_prior.expand(entries, -1).gather(1, index),
    )


def _merge(
    codes: Tensor, log_weight: Tensor, scores: tuple[Tensor, Tensor], entries: int
) -> Codes:
    """Puts islands together, every code once.

    Args:
        codes: Shape (entries times islands, size, L).
        log_weight: Logarithm of how many codes each stands for, (entries times islands, size).
        scores: Log p(h), and log-densities of what was observed, of that shape.
        entries: Number of entries.
    """
    _, size, layers = codes.shape
    codes = codes.reshape(entries, ISLANDS * size, layers)
    weight = log_weight.reshape(entries, ISLANDS * size)
    key, order = _keys(codes).sort(-1)
    first = torch.ones_like(key, dtype=torch.bool)
    first[:, 1:] = key[:, 1:] != key[:, :-1]
    group = first.cumsum(-1) - 1
    count = int(group.max()) + 1
    shape = (entries, count)
    merged = codes.new_zeros(*shape, layers)
    ordered = codes.gather(1, order.unsqueeze(-1).expand_as(codes))
    merged.scatter_(1, group.unsqueeze(-1).expand_as(ordered), ordered)
    log_prior, log_seen = (
        torch.full(shape, -math.inf)
        .to(t)
        .scatter_(1, group, t.reshape(entries, ISLANDS * size).gather(1, order))
        for t in scores
    )
    island = order // size
    weights = torch.zeros(entries, ISLANDS * count, dtype=torch.float64, device=codes.device)
    weights.scatter_add_(1, island * count + group, weight.double().exp().gather(1, order))
    weights = weights.reshape(entries, ISLANDS, count)
    mean = weights.mean(1)
    relative = weights / torch.where(mean > 0, mean, 1.0).unsqueeze(1)
    log_weight = mean.log().to(log_weight.dtype)
    return Codes(merged, log_weight, relative, ISLANDS * size, log_prior, log_seen)
