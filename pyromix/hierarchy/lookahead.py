"""What a part of an array says about entries to come, roughly: linear regressions on draws."""

__all__ = ["Lookahead"]

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..conditioning.truncated.interval import log_interval_probability
from ..numerics.diagonal_density import LOG_2PI
from .entries import EntryEvidence
from .tiling import Tiling, columns_of

# Variances of what regressions leave are taken to be so many times as large: dependence is not
# linear, and a particle that is dropped is lost.
INFLATION = 1.5
# Added to the diagonals of second moments, as a share of them.
RIDGE = 1e-4
# Entries to come, at most, the nearest first.
MAX_ENTRIES = 96


class _Regression(NamedTuple):
    """Of entries to come on those that windows to come are given."""

    given: Tensor
    wanted: Tensor
    centre: Tensor
    slope: Tensor
    offset: Tensor
    spread: Tensor


class Lookahead:
    """How likely what is known of entries to come is, after each window.

    Args:
        draws: Arrays that the model drew, (S, P channels).
        tiling: The windows.
        channels: Number of channels.
        entries: What is known of each entry, (P channels,).
    """

    def __init__(
        self,
        draws: Tensor,
        tiling: Tiling,
        channels: int,
        entries: EntryEvidence,
    ) -> None:
        self._entries, known = entries, entries.known
        owner = tiling.owner.repeat_interleave(channels)
        self._steps = [
            self._regress(
                draws.double(), _frontier(tiling, cell, channels), known & (owner > cell)
            )
            for cell in range(tiling.num_cells)
        ]
        none = known.nonzero()[:0].squeeze(-1)
        alone = self._regress(draws.double(), none, known)
        self._start = self._of(draws.new_zeros(1, 0).double(), alone)

    def _regress(self, x: Tensor, given: Tensor, wanted: Tensor) -> _Regression | None:
        index = wanted.nonzero().squeeze(-1)[:MAX_ENTRIES]
        if not len(index):
            return None
        y, z = x[:, index], x[:, given]
        centre, offset = z.mean(0), y.mean(0)
        z, y = z - centre, y - offset
        moments = z.mT @ z
        moments = moments + RIDGE * moments.diagonal().mean() * torch.eye(len(moments)).to(moments)
        slope = torch.linalg.solve(moments, z.mT @ y) if z.shape[1] else y.new_zeros(0, len(index))
        left = y - z @ slope
        spread = INFLATION * (left.mT @ left) / len(x)
        spread = spread + RIDGE * y.square().mean(0).diag()
        return _Regression(given, index, centre, slope, offset, spread)

    def start(self) -> Tensor:
        """Log-probability before the first window, shape ()."""
        return self._start.squeeze(0)

    def given(self, cell: int) -> Tensor | None:
        """Indices of entries that matter after a window; None if nothing more is known."""
        step = self._steps[cell]
        return None if step is None else step.given

    def after(self, cell: int, given: Tensor) -> Tensor:
        """Log-probabilities after a window, of entries (n, f) that matter: (n,)."""
        return self._of(given, self._steps[cell])

    def _of(self, x: Tensor, step: _Regression | None) -> Tensor:
        if step is None:
            return x.new_zeros(len(x))
        mean = (x - step.centre) @ step.slope + step.offset
        entries = self._entries.map(lambda t: t[step.wanted])
        seen = entries.variance.isfinite()
        total = x.new_zeros(len(x))
        if bool(seen.any()):
            spread = step.spread[seen][:, seen] + entries.variance[seen].diag()
            tril = torch.linalg.cholesky(spread)
            miss = (entries.value[seen] - mean[:, seen]).mT
            z = torch.linalg.solve_triangular(tril, miss, upper=False)
            total = total - 0.5 * z.square().sum(0) - tril.diagonal().log().sum()
            total = total - 0.5 * LOG_2PI * int(seen.sum())
        if not bool(seen.all()):
            scale = step.spread.diagonal()[~seen].sqrt()
            low, high = (
                (bound[~seen] - mean[:, ~seen]) / scale for bound in (entries.low, entries.high)
            )
            total = total + log_interval_probability(low, high).sum(-1)
        return total


def _frontier(tiling: Tiling, cell: int, channels: int) -> Tensor:
    """Indices of entries that windows up to one drew, and later ones are given."""
    later = tiling.place[cell + 1 :]
    shown: Sequence[int] = later[(later >= 0) & ~tiling.drawn[cell + 1 :]].unique().tolist()
    here = [place for place in shown if int(tiling.owner[place]) <= cell]
    index = torch.tensor(here, dtype=torch.long, device=tiling.place.device)
    return columns_of(index, channels)
