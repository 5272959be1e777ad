"""Arrays given evidence, drawn window by window: a particle filter.

Each particle is a part of an array. A window continues it: of the codes that are likely, given
what it is given, some stand for all, each with its normal of the entries to be drawn. Of these
normals draws are made that meet all that is known, with the probability of that as a weight, and
some of the many continuations are kept. A lookahead prefers those that may still meet what is
known of entries to come.
"""

__all__ = ["Particles", "draws_given", "lookahead_of"]

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..drmm.thinning import thin
from .law import HierarchicalLaw
from .lookahead import Lookahead
from .sequential import draw_sequentially
from .statements import StatementsByWindow

# Codes that stand for all of a window.
CANDIDATES = 4
# Draws that the lookahead is made from.
LOOKAHEAD_DRAWS = 2048
# Numbers in an intermediate result of a search for codes.
BLOCK_NUMBERS = 2**22


class Particles(NamedTuple):
    """Weighted draws."""

    value: Tensor
    """Arrays (M, P, channels)."""
    log_weight: Tensor
    """Normalised, (M,), float64."""
    log_evidence: Tensor
    """Logarithm of an unbiased estimate of Z, shape (), float64."""


@torch.no_grad()
def draws_given(
    law: HierarchicalLaw,
    known: StatementsByWindow,
    ahead: Lookahead,
    *,
    count: int,
    kept: int,
) -> Particles:
    """Draws arrays given evidence.

    Args:
        law: The hierarchy.
        known: What is known of the entries of an array.
        ahead: The lookahead, see `lookahead_of`.
        count: Number of particles on the way.
        kept: Number of particles in the end.
    """
    windows, tiling = law.windows, law.windows.tiling
    size = CANDIDATES * windows.mixture.dim * windows.prior.num_components
    size = max(1, BLOCK_NUMBERS // size)
    shift = law.shifts_of_windows(count)
    value = shift.new_zeros(count, tiling.num_entries, windows.channels)
    log_weight = torch.full((count,), -math.log(count), dtype=torch.float64, device=value.device)
    log_evidence = seen = ahead.start()
    for cell in range(tiling.num_cells):
        window = windows.window(cell)
        shown, flat = window.show(value), value.flatten(1)
        codes, logits = (
            torch.cat(parts)
            for parts in zip(
                *(
                    window.likely_codes(part, own, CANDIDATES)
                    for part, own in zip(
                        shown.split(size), shift[:, cell].split(size), strict=True
                    )
                ),
                strict=True,
            )
        )
        normals, gain = window.normals(shown, codes), logits.double()
        readings = ahead.readings(cell, flat, window.entries)
        pulled = 0  # of continuations, how many readings to come were taken account of in
        if readings is not None:
            # Half of them, in case the lookahead errs.
            pull, density = normals.given(readings)
            pulled = density.shape[1]
            normals = pull.join(normals)
            gain = torch.cat([gain + density, gain], 1) - math.log(2)
        drawn, here = draw_sequentially(normals, known.at(cell, flat, window.entries))
        met = known.meets_unions(cell, flat, window.entries, drawn)
        read, inside = _after(ahead, cell, flat, window.entries, drawn)
        gain[:, pulled:] += read[:, pulled:]
        gain, now = (gain + here + inside).masked_fill(~met, -math.inf), read + inside
        score = (log_weight.unsqueeze(-1) + gain - seen).flatten()  # (N B,)
        total = score.logsumexp(0)
        log_evidence = log_evidence + total
        if not bool(total.isfinite()):  # nothing meets it, or densities are too small for numbers
            log_evidence = torch.full_like(log_evidence, -math.inf)
            break
        most = kept if cell == tiling.num_cells - 1 else count
        index, log_inclusion = (t[0] for t in thin(score.unsqueeze(0), most))
        index, log_inclusion = (t[log_inclusion < math.inf] for t in (index, log_inclusion))
        log_weight = score[index] - log_inclusion - total
        parent = index // gain.shape[1]
        value, shift, seen = value[parent], shift[parent], now.flatten()[index].unsqueeze(-1)
        window.write(value, drawn.flatten(0, 1)[index].to(value))
    log_weight = log_weight - log_weight.logsumexp(0)
    return Particles(value, log_weight, log_evidence.reshape(()))


def lookahead_of(law: HierarchicalLaw, known: StatementsByWindow) -> Lookahead:
    """The lookahead to what is known of entries to come."""
    windows, draws = law.windows, law.sample(LOOKAHEAD_DRAWS).flatten(1)
    return Lookahead(draws, windows.tiling, windows.channels, known.single)


def _after(
    ahead: Lookahead, cell: int, value: Tensor, entries: Tensor, drawn: Tensor
) -> tuple[Tensor, Tensor]:
    """What the lookahead says of continuations (n, B, d) of arrays (n, D).

    Returns:
        Of readings to come, and of bounds, (n, B).
    """
    given, (n, count) = ahead.given(cell), drawn.shape[:2]
    if given is None:
        return drawn.new_zeros(n, count), drawn.new_zeros(n, count)
    whole = value[:, given].double().unsqueeze(1).repeat(1, count, 1)
    here = (given.unsqueeze(-1) == entries).nonzero()
    whole[..., here[:, 0]] = drawn[..., here[:, 1]]
    read, inside = ahead.after(cell, whole.flatten(0, 1))
    return read.reshape(n, count), inside.reshape(n, count)
