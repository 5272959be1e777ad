r"""Codes of a hierarchy given what is known of single entries of arrays.

Messages go up as for a density, from what is known: a cell below which nothing is known has none.
Instead of the best codes of a cell a sample is kept, each with the number of codes that it stands
for, so that sums over codes are unbiased, and with them

.. math:: Z = \sum_h p(h) \prod_c \int p(x_c \mid h_c) \, q(x_c) \, dx_c .

Draws go down: a code of the top, then, for every cell, one of its codes in proportion to what the
cell above makes of it and to its message, or, where nothing is known, of the law itself. For
windows that do not overlap, of independent columns.
"""

__all__ = ["CodesGiven", "Keep", "codes_given", "fits_of_evidence"]

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..drmm.prefix import take_entries
from ..drmm.thinning import thin
from .beams import Beams
from .code_prior import CodePrior, draw_index
from .dense import DenseTree
from .entries import EntryEvidence
from .fits import CellFits, Masks
from .law import HierarchicalLaw

# Fits of prefixes are rough: with a share of the draws they count for half.
TEMPERED = 0.5, 0.2
# Numbers in an intermediate result of sums over all codes.
CHUNK_NUMBERS = 2**22


class CodesGiven(NamedTuple):
    """Draws of codes given evidence."""

    codes: Tensor
    """Codes of the windows, (N, C, P, L) for P draws of N arrays."""
    log_evidence: Tensor
    """Logarithm of an unbiased estimate of Z, (N,)."""


class Keep(NamedTuple):
    """Which codes of cells count."""

    width: int
    """Number of codes that are kept of a cell, where there are many."""
    top_width: int
    """The same at the top."""
    max_codes: int
    """All codes count, where no cell has more than this."""


@torch.no_grad()
def codes_given(
    law: HierarchicalLaw,
    entries: EntryEvidence,
    how: Keep,
    *,
    draws: int,
    sweeps: int = 1,
    are_values: bool = False,
) -> CodesGiven:
    """Draws codes given what is known of the entries of N arrays.

    Args:
        law: The hierarchy.
        entries: What is known, tensors (N, P, channels).
        how: Which codes count.
        draws: Number of draws of each array.
        sweeps: How many times codes are sought anew, by what the level above expects.
        are_values: Whether all that is known are values, rounded as the law says: a search by
            these takes a fraction of the time.
    """
    tree = law.tree(how.max_codes)
    if tree is not None:
        every = fits_of_evidence(law, tree, entries, are_values=are_values)
        return CodesGiven(tree.sample(every, draws), tree.log_prob(every))
    windows, count = law.windows, len(entries.value)
    like, shown = windows.mixture.log_weight, _shown(law, entries)
    active = [shown.known.any(-1).reshape(count, -1)]  # of each level, (N, C)
    for level in law.levels:
        active.append(level.tiling.sum_drawn(active[-1].float()) > 0)
    shifts: list[Tensor | None] = [None] * len(law.priors)
    for sweep in range(sweeps + 1):
        found: list[Beams] = []
        for place, prior in enumerate(law.priors):
            if place:
                fits = law.stream_fits(place, found[-1], shifts[place - 1], active[place - 1])
            elif are_values:
                known = Masks(shown.known.to(like), None)
                fits = windows.fits(shown.value.to(like), known)
            else:
                fits = windows.entry_fits(shown)
            wide = how.top_width if place == len(law.levels) else how.width
            cells = count * law.num_cells(place)
            codes, log_count = _sample(prior, fits, cells, wide, shifts[place])
            codes = codes.reshape(count, -1, *codes.shape[1:])
            if place == 0:
                mean, scale = (t.double() for t in windows.moments(codes.flatten(0, 1)))
                fit = _log_factor(shown, mean, scale).to(prior.log_weight)
                fit = fit.reshape(codes.shape[:-1])
            else:
                fit = law.messages(place, codes, found[-1], active[place - 1])
            found.append(Beams(codes, fit + log_count.reshape(fit.shape)))
        if sweep < sweeps:
            shifts = law.expectations(found)
    return _down(law, found, active, draws)


@torch.no_grad()
def fits_of_evidence(
    law: HierarchicalLaw, tree: DenseTree, entries: EntryEvidence, *, are_values: bool
) -> Tensor:
    """How well what is known of arrays fits all codes of windows, (N, C, J).

    Arguments are those of `codes_given`.
    """
    windows, shown = law.windows, _shown(law, entries)
    if are_values:
        like, mass = windows.mixture.log_weight, windows.rounding is not None
        known = shown.known
        return law.fits_of_all(tree, shown.value.to(like), mass=mass, known=known)
    mean, scale = (t.double() for t in windows.moments(tree.everything[0]))
    size = max(1, CHUNK_NUMBERS // mean.numel())
    parts = [
        _log_factor(EntryEvidence(*part), mean, scale)
        for part in zip(*(t.split(size) for t in shown), strict=True)
    ]
    fits = torch.cat(parts).to(windows.mixture.log_weight)
    return fits.reshape(len(entries.value), -1, fits.shape[-1])


def _shown(law: HierarchicalLaw, entries: EntryEvidence) -> EntryEvidence:
    """What is known of windows, (N C, D) each: nothing past the end."""
    windows = law.windows
    inside = windows.masks(len(entries.value)).drawn > 0
    shown = EntryEvidence(*(windows.windows(part) for part in entries))
    return shown._replace(
        variance=torch.where(inside, shown.variance, torch.inf),
        low=torch.where(inside, shown.low, -torch.inf),
        high=torch.where(inside, shown.high, torch.inf),
    )


def _log_factor(entries: EntryEvidence, mean: Tensor, scale: Tensor) -> Tensor:
    """Log of the evidence of windows (n, D) under normals (n, B, D): (n, B)."""
    return entries.map(lambda t: t.unsqueeze(1)).log_factor(mean, scale).sum(-1)


def _sample(
    prior: CodePrior, fits: CellFits, count: int, width: int, shift: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Codes (n, B, L) of n cells, and the log of how many codes each stands for, (n, B)."""
    k = prior.num_components
    codes = torch.zeros(count, 1, 0, dtype=torch.long, device=prior.log_weight.device)
    log_prior = log_weight = prior.log_weight.new_zeros(count, 1)
    power, share = TEMPERED
    for layer in range(prior.num_layers):
        joint = log_prior.unsqueeze(-1) + prior.log_conditional(layer, codes, shift)
        fit = fits.scores().fit
        sharp = (joint + fit).flatten(1).log_softmax(-1)
        flat = (joint + power * fit).flatten(1).log_softmax(-1)
        score = torch.logaddexp(
            sharp + torch.tensor(1 - share).log(), flat + torch.tensor(share).log()
        )
        score = (score.reshape(joint.shape) + log_weight.unsqueeze(-1)).flatten(1)
        index, log_inclusion = thin(score, width)
        parent, chosen = index // k, index % k
        log_prior = joint.flatten(1).gather(1, index)
        log_weight = log_weight.gather(1, parent) - log_inclusion
        codes = torch.cat([take_entries(codes, parent), chosen.unsqueeze(-1)], -1)
        if layer < prior.num_layers - 1:
            fits = fits.extend(parent, chosen)
    return codes, log_weight


def _down(
    law: HierarchicalLaw, found: Sequence[Beams], active: Sequence[Tensor], draws: int
) -> CodesGiven:
    """Draws from the top down."""
    top = found[-1]
    joint = (top.log_prior(law.priors[-1]) + top.fit).squeeze(1)  # (N, B)
    log_evidence, weight = joint.logsumexp(-1), joint.softmax(-1)
    index = torch.multinomial(weight, draws, replacement=True)
    codes = take_entries(top.codes.squeeze(1), index).unsqueeze(1)  # (N, 1, P, L)
    for place in reversed(range(len(law.levels))):
        level, prior, beams = law.levels[place], law.priors[place], found[place]
        shift = level.shifts(codes)  # (N, C, P, L, K)
        n, cells = shift.shape[:2]
        given = prior.log_prob_given(beams.codes.flatten(0, 1), shift.flatten(0, 1))
        joint = given.reshape(n, cells, draws, -1) + beams.fit.unsqueeze(2)
        where = active[place]
        codes = torch.empty(
            n, cells, draws, prior.num_layers, dtype=torch.long, device=index.device
        )
        if bool(where.any()):
            index = draw_index(joint[where].log_softmax(-1))
            codes[where] = take_entries(beams.codes[where], index)
        if not bool(where.all()):
            free = prior.sample(shift[~where].flatten(0, 1))
            codes[~where] = free.reshape(-1, draws, prior.num_layers)
    return CodesGiven(codes, log_evidence)
