r"""Codes that evidence leaves likely, with weights.

Codes are built up layer by layer. A prefix h_<=l is weighed by :math:`p(h_{\le l})` times how
well the evidence agrees with the normal that it stands for, with the inner scale for noise: as
priors and constraints pass through the layers of the paper (section 3.6). Of all continuations of
all prefixes a fixed number is kept, each with a known probability, whose inverse becomes its
weight: those above a threshold for certain, others by systematic sampling (Fearnhead and Clifford
2003). So no code is held twice, sums over codes are unbiased, and they are exact if all fit.
"""

__all__ = ["Codes", "couples", "enumerate_codes", "find_codes", "prune", "thin"]

import math
from typing import NamedTuple

import torch
from torch import Size, Tensor

from ..evidence import LinearEvidence
from .law import ResidualMixture, take_entries
from .potential import LinearPotential

# Populations that are grown independently; their spread is the error of what they estimate.
ISLANDS = 8

# A prefix is judged with its inner scale, and with a small share with a larger one: what a layer
# leaves is not quite normal, and a prefix that is lost too early is missed by all that follows.
INFLATIONS = ((1.0, 0.8), (2.5, 0.2))

# Inequalities are integrated for all continuations where there are no more numbers than this, and
# else for this many times more of them than are kept.
MAX_INTEGRALS = 2**16
CANDIDATES = 4

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


def enumerate_codes(law: ResidualMixture) -> Codes:
    """All codes there are."""
    codes, log_prior = law.all_codes()
    return Codes(codes.unsqueeze(0), torch.zeros_like(log_prior).unsqueeze(0), None, len(codes))


@torch.no_grad()
def find_codes(
    law: ResidualMixture, known: LinearEvidence, batch_shape: Size, num_particles: int
) -> Codes:
    """Grows populations of codes from layer to layer.

    Args:
        law: The law.
        known: The evidence.
        batch_shape: Its shape, of E entries.
        num_particles: Number of codes that are held in all islands together. Fewer come out
            where inequalities depend on each other.
    """
    entries, k, dim = math.prod(batch_shape), law.num_components, law.loc.shape[-1]
    size = max(1, num_particles // ISLANDS)
    device = law.loc.device
    codes = torch.zeros(entries * ISLANDS, 1, 0, dtype=torch.long, device=device)
    mean = law.loc.new_zeros(entries * ISLANDS, 1, dim)
    log_prior = law.loc.new_zeros(entries * ISLANDS, 1)
    log_weight = torch.zeros_like(log_prior)
    # How well inequalities agree, judged with either scale.
    log_rows = law.loc.new_zeros(len(INFLATIONS), *log_prior.shape)
    logits = law.columns.start(entries * ISLANDS, 1)
    for layer in range(law.num_layers):
        last = layer == law.num_layers - 1
        if last and couples(known):
            size = min(size, MAX_COUPLED // ISLANDS)
        scales = (
            [law.scale]
            if last
            else [inflation * law.inner_scale[layer : layer + 1] for inflation, _ in INFLATIONS]
        )
        shares = [0.0] if last else [math.log(share) for _, share in INFLATIONS]
        potentials = [LinearPotential(known, batch_shape, scale) for scale in scales]
        count = codes.shape[1]
        conditional = law.log_conditional(layer, codes.flatten(0, 1)).reshape(-1, count, k)
        prior = log_prior.unsqueeze(-1) + conditional
        base = log_weight.unsqueeze(-1) + prior
        base = base + _columns_fit(law, known, batch_shape, layer, logits)
        fits = torch.stack(
            [
                share + potential.observations(_by_entry(mean, entries), law.loc[layer])
                for share, potential in zip(shares, potentials, strict=True)
            ]
        ).reshape(len(shares), -1, count, k)
        if not known.matrix:
            index, inclusion = thin((base + fits.logsumexp(0)).flatten(1), size)
        else:
            # The parent's inequalities stand in for those of its continuations, where these are
            # too many to integrate.
            guess = base + (fits + log_rows[: len(fits)].unsqueeze(-1)).logsumexp(0)
            few = guess.numel() * potentials[0].num_rows <= MAX_INTEGRALS
            wanted = count * k if few else CANDIDATES * size
            index, inclusion = thin(guess.flatten(1), wanted)
            means = take_entries(mean, index // k) + law.loc[layer][index % k]
            means, own = _by_entry(means, entries), _by_entry(index % k, entries)
            rows = torch.stack(
                [
                    potential.inequalities_of(means, own if last else None, rough=not last).sum(-1)
                    for potential in potentials
                ]
            ).reshape(len(shares), *index.shape)
            fits = fits.flatten(2).gather(2, index.expand(len(fits), -1, -1))
            score = base.flatten(1).gather(1, index) + (fits + rows).logsumexp(0) - inclusion
            second, more = thin(score, size)
            inclusion = inclusion.gather(1, second) + more
            index = index.gather(1, second)
            log_rows = rows.gather(2, second.expand(len(rows), -1, -1))
        parent, chosen = index // k, index % k
        codes = torch.cat([take_entries(codes, parent), chosen.unsqueeze(-1)], -1)
        mean = take_entries(mean, parent) + law.loc[layer][chosen]
        logits = tuple(
            take_entries(before, parent) + table[layer][chosen]
            for before, table in zip(logits, law.columns.tables, strict=True)
        )
        log_prior = prior.flatten(1).gather(1, index)
        log_weight = log_weight.gather(1, parent) - inclusion
    return _merge(codes, log_weight, entries)


def couples(known: LinearEvidence) -> bool:
    """Whether inequalities depend on each other: their probability has no closed form then."""
    if not known.matrix:
        return False
    free = [d for d in range(known.dim) if d not in known.observed]
    used = torch.cat(known.matrix)[:, free] != 0
    used = used[used.any(-1)].unique(dim=0)
    if known.gaussian:  # observations make coordinates depend on each other
        return len(used) > 1
    return int(used.sum(0).max()) > 1 if len(used) else False


def thin(log_weight: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Keeps some of many weighted items, so that sums over them are unbiased and vary least.

    Args:
        log_weight: Log-weights, shape (B, C).
        count: Number of items to keep.

    Returns:
        Their indices and log-probabilities of being kept, shape (B, min(count, C)). Where fewer
        have a positive weight, the rest is filled up with items of probability plus infinity, to
        be divided by.
    """
    if log_weight.shape[1] <= count:
        index = torch.arange(log_weight.shape[1], device=log_weight.device)
        return index.expand(log_weight.shape), torch.zeros_like(log_weight)
    weight = (log_weight - log_weight.amax(1, keepdim=True)).exp().nan_to_num(0.0)
    threshold = weight.sum(1, keepdim=True) / count
    certain = torch.zeros_like(threshold)
    for _ in range(count):  # nearly always a handful
        large = weight >= threshold
        now = large.sum(1, keepdim=True)
        rest = weight.masked_fill(large, 0.0).sum(1, keepdim=True)
        smallest = torch.finfo(weight.dtype).tiny
        threshold = (rest / (count - now).clamp(min=1)).clamp(min=smallest)
        if bool((now == certain).all()):
            break
        certain = now
    inclusion = (weight / threshold).clamp(max=1.0)
    total = inclusion.double().cumsum(1)
    start = torch.rand(len(weight), 1, dtype=torch.float64, device=weight.device)
    point = start + torch.arange(count, dtype=torch.float64, device=weight.device)
    # Rounding of the total must not drop the last item.
    filler = point >= total[:, -1:].ceil()
    point = torch.minimum(point, total[:, -1:] * (1 - 1e-15))
    index = torch.searchsorted(total, point, right=True).clamp(max=weight.shape[1] - 1)
    return index, inclusion.gather(1, index).log().masked_fill(filler, math.inf)


@torch.no_grad()
def prune(
    law: ResidualMixture,
    known: LinearEvidence,
    batch_shape: Size,
    codes: Codes,
    log_joint: Tensor,
) -> tuple[Codes, Tensor]:
    """Leaves out codes that inequalities make unlikely, before their probability is integrated.

    Args:
        law: The law.
        known: The evidence.
        batch_shape: Its shape, of E entries.
        codes: The codes.
        log_joint: Their log-weights without linear evidence, shape (E, C).

    Returns:
        What is left, the same number in every entry, and the indices of these codes, (E, C').
    """
    entries, count = log_joint.shape
    every = codes.codes.expand(entries, -1, -1)
    mean = law.mean_of(codes.codes.flatten(0, 1)).reshape(len(codes.codes), count, -1)
    mean, last = mean.expand(entries, -1, -1), every[..., -1]
    potential = LinearPotential(known, batch_shape, law.scale)
    seen = log_joint + potential.observations_of(mean, last)
    rows = potential.inequalities_of(mean, last)
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


def _columns_fit(
    law: ResidualMixture,
    known: LinearEvidence,
    batch_shape: Size,
    layer: int,
    logits: tuple[Tensor, ...],
) -> Tensor:
    """Log-probability of what is known about categorical columns, (E islands, P, K)."""
    total = law.columns.zero
    for column, log_q in known.categorical.items():
        table, before = law.columns.tables[column][layer], logits[column]
        values = before.unsqueeze(-2) + table  # (E islands, P, K, n)
        log_q = log_q.expand(*batch_shape, -1).reshape(-1, 1, 1, table.shape[-1])
        log_q = log_q.repeat_interleave(ISLANDS, 0).to(values.dtype)
        total = total + (values.log_softmax(-1) + log_q).logsumexp(-1)
    return total


def _merge(codes: Tensor, log_weight: Tensor, entries: int) -> Codes:
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
    island = order // size
    weights = torch.zeros(entries, ISLANDS * count, dtype=torch.float64, device=codes.device)
    weights.scatter_add_(1, island * count + group, weight.double().exp().gather(1, order))
    weights = weights.reshape(entries, ISLANDS, count)
    mean = weights.mean(1)
    relative = weights / torch.where(mean > 0, mean, 1.0).unsqueeze(1)
    return Codes(merged, mean.log().to(log_weight.dtype), relative, ISLANDS * size)


def _by_entry(t: Tensor, entries: int) -> Tensor:
    """From (E islands, P, *T) to (E, islands P, *T)."""
    return t.reshape(entries, -1, *t.shape[2:])
