"""What a part of an array says about entries to come, roughly: linear regressions on draws."""

__all__ = ["Lookahead"]

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..conditioning.truncated.interval import log_interval_probability
from ..numerics.diagonal_density import LOG_2PI
from .entries import EntryEvidence
from .normals import LinearReadings
from .tiling import Tiling, columns_of

# Variances of what regressions leave are taken to be so many times as large: dependence is not
# linear, and a particle that is dropped is lost.
INFLATION = 1.5
# Added to the diagonals of second moments, as a share of them.
RIDGE = 1e-4
# Entries to come, at most, the nearest first.
MAX_ENTRIES = 96


class _Regression(NamedTuple):
    """Of entries to come on those that windows to come are given.

    Readings and bounds are told apart: the first leave normals normal.
    """

    given: Tensor
    """Indices of what later windows are given, (f,)."""
    centre: Tensor
    """Means of those, (f,)."""
    entries: EntryEvidence
    """What is known of the entries to come, readings first."""
    slope: Tensor
    offset: Tensor
    tril: Tensor
    """Factor of the covariance of readings about what is expected, (q, q)."""
    spread: Tensor
    """Standard deviations of bounded entries about what is expected."""

    @property
    def num_readings(self) -> int:
        """Number q of readings."""
        return len(self.tril)

    @property
    def log_scale(self) -> Tensor:
        """Logarithm of the determinant of the precision of readings, halved."""
        return -self.tril.diagonal().log().sum()

    def expected(self, given: Tensor) -> Tensor:
        """Expected values of the entries to come."""
        return (given - self.centre) @ self.slope + self.offset

    def whiten(self, expected: Tensor) -> Tensor:
        """What is left of readings, (n, q), standard normal."""
        q = self.num_readings
        miss = (self.entries.value[:q] - expected[:, :q]).mT
        return torch.linalg.solve_triangular(self.tril, miss, upper=False).mT

    def log_prob(self, given: Tensor) -> tuple[Tensor, Tensor]:
        """Log-density of readings of the entries to come, and log-probability of bounds, (n,)."""
        q, expected = self.num_readings, self.expected(given)
        square = self.whiten(expected).square().sum(-1)
        low, high = (
            (bound[q:] - expected[:, q:]) / self.spread
            for bound in (self.entries.low, self.entries.high)
        )
        read = self.log_scale - 0.5 * (square + q * LOG_2PI)
        return read, log_interval_probability(low, high).sum(-1)


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
        known, draws = entries.known, draws.double()
        owner = tiling.owner.repeat_interleave(channels)
        self._steps = [
            _regress(draws, _frontier(tiling, cell, channels), known & (owner > cell), entries)
            for cell in range(tiling.num_cells)
        ]
        none = known.nonzero()[:0].squeeze(-1)
        alone = _regress(draws, none, known, entries)
        zero = draws.new_zeros(1, 0)
        self._start = zero.sum() if alone is None else torch.cat(alone.log_prob(zero)).sum()

    def start(self) -> Tensor:
        """Log-probability before the first window, shape ()."""
        return self._start

    def given(self, cell: int) -> Tensor | None:
        """Indices of entries that matter after a window; None if nothing more is known."""
        step = self._steps[cell]
        return None if step is None else step.given

    def after(self, cell: int, given: Tensor) -> tuple[Tensor, Tensor]:
        """What entries (n, f) that matter say after a window.

        Returns:
            Log-densities of readings to come, and log-probabilities of bounds, (n,).
        """
        step, none = self._steps[cell], given.new_zeros(len(given))
        return (none, none) if step is None else step.log_prob(given)

    def readings(self, cell: int, value: Tensor, entries: Tensor) -> LinearReadings | None:
        """What readings to come say of the entries that a window draws.

        Args:
            cell: The window.
            value: Arrays (n, D) as far as windows before it drew them.
            entries: Indices of what it draws, (d,).
        """
        step = self._steps[cell]
        if step is None or not step.num_readings:
            return None
        new = step.given.unsqueeze(-1) == entries  # (f, d)
        past = torch.where(new.any(-1), 0.0, value[:, step.given].double())
        slope = new.to(step.slope).mT @ step.slope[:, : step.num_readings]
        rows = torch.linalg.solve_triangular(step.tril, slope.mT, upper=False)
        return LinearReadings(step.whiten(step.expected(past)), rows, step.log_scale)


def _regress(
    x: Tensor, given: Tensor, wanted: Tensor, entries: EntryEvidence
) -> _Regression | None:
    """Regressions on draws (S, D) of entries that are wanted, (D,), on those at given indices."""
    index = wanted.nonzero().squeeze(-1)[:MAX_ENTRIES]
    if not len(index):
        return None
    read = entries.variance[index].isfinite()
    index, q = torch.cat([index[read], index[~read]]), int(read.sum())
    own = entries.map(lambda t: t[index])
    y, z = x[:, index], x[:, given]
    centre, offset = z.mean(0), y.mean(0)
    z, y = z - centre, y - offset
    moments = z.mT @ z
    moments = moments + RIDGE * moments.diagonal().mean() * torch.eye(len(moments)).to(moments)
    slope = torch.linalg.solve(moments, z.mT @ y) if z.shape[1] else y.new_zeros(0, len(index))
    left = y - z @ slope
    spread = INFLATION * (left.mT @ left) / len(x)
    spread = spread + RIDGE * y.square().mean(0).diag()
    tril = torch.linalg.cholesky(spread[:q, :q] + own.variance[:q].diag())
    return _Regression(given, centre, own, slope, offset, tril, spread.diagonal()[q:].sqrt())


def _frontier(tiling: Tiling, cell: int, channels: int) -> Tensor:
    """Indices of entries that windows up to one drew, and later ones are given."""
    later = tiling.place[cell + 1 :]
    shown: Sequence[int] = later[(later >= 0) & ~tiling.drawn[cell + 1 :]].unique().tolist()
    here = [place for place in shown if int(tiling.owner[place]) <= cell]
    index = torch.tensor(here, dtype=torch.long, device=tiling.place.device)
    return columns_of(index, channels)
