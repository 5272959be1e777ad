"""Arrays completed from some of their entries."""

__all__ = ["complete", "known_entries"]

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from .entries import EntryEvidence
from .law import HierarchicalLaw
from .posterior import Keep, codes_given, fits_of_evidence
from .window_law import Rounding

# Means of windows that are kept at once, for all draws.
BLOCK_NUMBERS = 2**23


def known_entries(value: Tensor, rounding: Rounding | None) -> EntryEvidence:
    """What arrays with gaps say: values, or the intervals that were rounded to them.

    Args:
        value: Shape (N, P, channels), NaN where nothing is known.
        rounding: How values were rounded.
    """
    known, value = ~value.isnan(), value.double()
    if rounding is None:
        none = torch.full_like(value, math.inf)
        variance = torch.where(known, 0.0, none)
        return EntryEvidence(torch.where(known, value, 0.0), variance, -none, none)
    step, low, high = rounding
    below = torch.where(known & (value >= low + step / 2), value - step / 2, -math.inf)
    above = torch.where(known & (value <= high - step / 2), value + step / 2, math.inf)
    none = torch.full_like(value, math.inf)
    return EntryEvidence(torch.where(known, value, 0.0), none, below, above)


@torch.no_grad()
def complete(
    law: HierarchicalLaw, value: Tensor, how: Keep, *, draws: int, mean: bool
) -> Iterator[Tensor]:
    """Completes arrays, block by block.

    Args:
        law: The law.
        value: Arrays (N, P, channels), NaN where entries are to be filled in.
        how: Which codes count.
        draws: Number of draws of codes.
        mean: Whether to return the mean, instead of draws. It is exact where all codes count, and
            else that over draws of codes.

    Yields:
        Arrays (n, P, channels), or (draws, n, P, channels).
    """
    windows, tree = law.windows, law.tree(how.max_codes) if mean else None
    numbers = draws * windows.mixture.dim if tree is None else len(tree.everything[0])
    size = max(1, BLOCK_NUMBERS // (numbers * windows.tiling.num_cells))
    for part in value.split(size):
        known, entries = ~part.isnan(), known_entries(part, windows.rounding)
        if tree is not None:
            fits = fits_of_evidence(law, tree, entries, are_values=True)
            own = windows.mean_of_arrays(tree.everything[0], tree.marginals(fits))
            yield torch.where(known, part, own)
            continue
        given = codes_given(law, entries, how, draws=draws, are_values=True)
        loc, scale = windows.moments_of_arrays(given.codes)  # (n, draws, P, channels)
        if mean:
            yield torch.where(known, part, loc.mean(1))
        else:
            drawn = loc + scale * torch.randn_like(loc)
            yield torch.where(known, part, drawn.movedim(1, 0))
