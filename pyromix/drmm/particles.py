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
from .law import ResidualMixture
from .thinning import INFLATIONS, thin

# Populations that are grown independently; their spread is the error of what they estimate.
ISLANDS = 8

# Inequalities are integrated for all continuations where there are no more numbers than this, and
# else for this many times more of them than are kept.
MAX_INTEGRALS = 2**16
CANDIDATES = 4

# Entries are worked on together as long as there are no more continuations than this.
MAX_SCORES = 2**23

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
    log_seen: Tensor | None = None
    """Log-densities of what was observed under each, (E, C), if a search has found them."""


def enumerate_codes(law: ResidualMixture) -> Codes:
    """All codes there are."""
    codes, log_prior = law.all_codes()
    return Codes(codes.unsqueeze(0), torch.zeros_like(log_prior).unsqueeze(0), None, len(codes))


@torch.no_grad()
def find_codes(
    law: ResidualMixture, evidence: LinearEvidence, batch_shape: Size, num_particles: int
) -> Codes:
    """Grows populations of codes from layer to layer.

    Args:
        law: The law.
        evidence: The evidence.
        batch_shape: Its shape, of E entries.
        num_particles: Number of codes that are held in all islands together. Fewer come out
            where inequalities depend on each other.
    """
    entries = math.prod(batch_shape)
    size = max(1, num_particles // ISLANDS)
    width = ISLANDS * size * law.num_components
    block = max(1, MAX_SCORES // (width * law.evidence_cost(evidence)))
    guide = evidence.with_rows_of_unions()
    searches = [
        _Search(law, guide, batch_shape, slice(start, min(start + block, entries)))
        for start in range(0, entries, block)
    ]
    for search in searches:
        for layer in range(law.num_layers):
            last = layer == law.num_layers - 1
            few = last and couples(law, evidence)
            search.grow(min(size, MAX_COUPLED // ISLANDS) if few else size)
    codes, log_weight, log_seen = (
        torch.cat([getattr(search, name) for search in searches])
        for name in ("codes", "log_weight", "log_seen")
    )
    return _merge(codes, log_weight, log_seen, entries)


class _Search:
    """Populations of prefixes of codes: B of them, one for every entry and island.

    Args:
        law: The law.
        evidence: The evidence.
        batch_shape: Its shape.
        entries: Entries of the flattened batch to search codes for.

    Attributes:
        log_weight: Logarithm of how many prefixes each stands for, shape (B, P).
        log_seen: Log-densities of what was observed under each, were the last layer of each the
            last of all, shape (B, P).
    """

    def __init__(
        self, law: ResidualMixture, evidence: LinearEvidence, batch_shape: Size, entries: slice
    ) -> None:
        self._law, self._evidence = law, evidence
        self._batch_shape, self._entries = batch_shape, entries
        populations = (entries.stop - entries.start) * ISLANDS
        self._steering = law.steered_by(evidence, batch_shape, entries, populations)
        zero = law.log_weight.new_zeros(populations, 1)
        self.log_weight = self.log_seen = zero
        self._log_prior = zero
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
        prior = self._log_prior.unsqueeze(-1) + conditional
        base = self.log_weight.unsqueeze(-1) + prior + self._columns_fit(layer)
        fits = self._steering.observations()
        if self._evidence.num_rows:
            index, log_inclusion = self._thin_within_inequalities(base, fits, size)
        else:
            index, log_inclusion = thin((base + fits.logsumexp(0)).flatten(1), size)
        parent, chosen = index // k, index % k
        self._steering.advance(parent, chosen)
        self._log_prior = prior.flatten(1).gather(1, index)
        self.log_seen = fits.logsumexp(0).flatten(1).gather(1, index)
        self.log_weight = self.log_weight.gather(1, parent) - log_inclusion

    def _thin_within_inequalities(
        self, base: Tensor, fits: Tensor, size: int
    ) -> tuple[Tensor, Tensor]:
        """Keeps continuations (B, P, K) in two steps, of which the second knows inequalities.

        The parent's inequalities stand in for those of its continuations in the first, where
        these are too many to integrate.
        """
        count, k = base.shape[1:]
        guess = base + (fits + self._log_rows[: len(fits)].unsqueeze(-1)).logsumexp(0)
        few = guess.numel() * self._evidence.num_rows <= MAX_INTEGRALS
        index, log_inclusion = thin(guess.flatten(1), count * k if few else CANDIDATES * size)
        rows = self._steering.inequalities(index // k, index % k)
        fits = fits.flatten(2).gather(2, index.expand(len(fits), -1, -1))
        score = base.flatten(1).gather(1, index) + (fits + rows).logsumexp(0) - log_inclusion
        second, more = thin(score, size)
        self._log_rows = rows.gather(2, second.expand(len(rows), -1, -1))
        return index.gather(1, second), log_inclusion.gather(1, second) + more

    def _columns_fit(self, layer: int) -> Tensor:
        """Log-probability of the evidence on categorical columns, (B, P, K)."""
        columns = self._law.columns
        total = columns.zero
        for column, log_q in self._evidence.categorical.items():
            table, before = columns.tables[column][layer], self._steering.prefix.logits[column]
            values = before.unsqueeze(-2) + table  # (B, P, K, n)
            log_q = log_q.expand(*self._batch_shape, -1).reshape(-1, 1, 1, table.shape[-1])
            log_q = log_q[self._entries].repeat_interleave(ISLANDS, 0).to(values.dtype)
            total = total + (values.log_softmax(-1) + log_q).logsumexp(-1)
        return total


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
) -> tuple[Codes, Tensor]:
    """Leaves out codes that inequalities make unlikely, before their probability is integrated.

    Args:
        law: The law.
        evidence: The evidence.
        batch_shape: Its shape, of E entries.
        codes: The codes.
        log_joint: Their log-weights without linear evidence, shape (E, C).

    Returns:
        What is left, the same number in every entry, and the indices of these codes, (E, C').
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
    return _select(codes, index), index


def _select(codes: Codes, index: Tensor) -> Codes:
    """The codes at indices (E, C')."""
    entries = len(index)
    every = codes.codes.expand(entries, -1, -1)
    islands = codes.islands
    if islands is not None:
        islands = islands.gather(2, index.unsqueeze(1).expand(-1, islands.shape[1], -1))
    return Codes(
        every.gather(1, index.unsqueeze(-1).expand(-1, -1, every.shape[-1])),
        codes.log_weight.expand(entries, -1).gather(1, index),
        islands,
        codes.size,
    )


def _merge(codes: Tensor, log_weight: Tensor, log_seen: Tensor, entries: int) -> Codes:
    """Puts islands together, every code once."""
    _, size, layers = codes.shape
    codes = codes.reshape(entries, ISLANDS * size, layers)
    weight = log_weight.reshape(entries, ISLANDS * size)
    # Equal codes have equal keys; others hardly ever, as keys are 64-bit numbers.
    generator = torch.Generator().manual_seed(0)
    factor = torch.randint(-(2**62), 2**62, (layers,), generator=generator)
    key = (codes * factor.to(codes.device)).sum(-1)
    key, order = key.sort(-1)
    first = torch.ones_like(key, dtype=torch.bool)
    first[:, 1:] = key[:, 1:] != key[:, :-1]
    group = first.cumsum(-1) - 1
    count = int(group.max()) + 1
    shape = (entries, count)
    merged = codes.new_zeros(*shape, layers)
    ordered = codes.gather(1, order.unsqueeze(-1).expand_as(codes))
    merged.scatter_(1, group.unsqueeze(-1).expand_as(ordered), ordered)
    seen = log_seen.reshape(entries, ISLANDS * size).gather(1, order)
    log_seen = torch.full_like(seen[:, :count], -math.inf).scatter_(1, group, seen)
    island = order // size
    weights = torch.zeros(entries, ISLANDS * count, dtype=torch.float64, device=codes.device)
    weights.scatter_add_(1, island * count + group, weight.double().exp().gather(1, order))
    weights = weights.reshape(entries, ISLANDS, count)
    mean = weights.mean(1)
    relative = weights / torch.where(mean > 0, mean, 1.0).unsqueeze(1)
    log_weight = mean.log().to(log_weight.dtype)
    return Codes(merged, log_weight, relative, ISLANDS * size, log_seen)
