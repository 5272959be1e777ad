"""What is known of the entries of arrays, each by itself."""

__all__ = ["EntryEvidence", "EntryFits"]

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import torch
from torch import Tensor

from ..conditioning.truncated.interval import log_interval_probability
from ..drmm.evidence_score import rough_log_probability
from ..drmm.prefix import take_entries
from ..numerics.diagonal_density import LOG_2PI
from .fits import CellFits, Scores

# Numbers in an intermediate result of a search.
CHUNK_NUMBERS = 2**22


class EntryEvidence(NamedTuple):
    r"""Of every entry a reading, :math:`N(value; x, variance)`, and bounds.

    All tensors have a shape (\*S), float64.
    """

    value: Tensor
    """Readings; any number where there is none."""
    variance: Tensor
    """Of their noise: zero of values that are known, infinite where there is no reading."""
    low: Tensor
    """Lower bounds, minus infinity where there is none."""
    high: Tensor
    """Upper bounds, infinity where there is none."""

    @property
    def known(self) -> Tensor:
        r"""Whether something is known of an entry, (\*S)."""
        return self.variance.isfinite() | self.low.isfinite() | self.high.isfinite()

    def map(self, function: Callable[[Tensor], Tensor]) -> "EntryEvidence":
        """The evidence with every tensor passed through a function."""
        return EntryEvidence(*(function(part) for part in self))

    def posterior(self, mean: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        r"""Normals given readings: log-density of those, means and standard deviations.

        Args:
            mean: Means before, of a shape that broadcasts with that of the evidence.
            scale: Standard deviations before.
        """
        read = self.variance.isfinite()
        noise = torch.where(read, self.variance, 1.0)
        total = scale.square() + noise
        miss = torch.where(read, self.value, 0.0) - mean
        seen = -0.5 * (miss.square() / total + total.log() + LOG_2PI)
        gain = scale.square() / total
        centre = torch.where(read, mean + gain * miss, mean)
        left = torch.where(read, scale * (noise / total).sqrt(), scale)
        return torch.where(read, seen, 0.0), centre, left

    def log_factor(self, mean: Tensor, scale: Tensor, *, rough: bool = False) -> Tensor:
        """Log of the integral of normals times what is known, entry by entry.

        Args:
            mean: Means, of a shape that broadcasts with that of the evidence.
            scale: Standard deviations.
            rough: Whether intervals may be treated as `rough_log_probability` does.
        """
        total, centre, left = self.posterior(mean, scale)
        bounded = (self.low.isfinite() | self.high.isfinite()) & (self.variance != 0)
        if not bool(bounded.any()):
            return total
        left = torch.where(bounded, left, 1.0)
        low, high = ((bound - centre) / left for bound in (self.low, self.high))
        inside = (rough_log_probability if rough else log_interval_probability)(low, high)
        return total + torch.where(bounded, inside, 0.0)


@dataclass(frozen=True)
class EntryFits(CellFits):
    """Of windows onto an array of which something is known, entry by entry.

    Columns are independent given a code.
    """

    locs: Sequence[Tensor]
    """Means of all layers, (K, D) each."""
    spreads: Sequence[Tensor]
    """Standard deviations of what each layer leaves, (K, D) each, in units of the factor."""
    multiplies: bool
    """Whether what a layer leaves is the unit of the layers after it."""
    entries: EntryEvidence
    """What is known of the windows, (n, D)."""
    mean: Tensor
    """Means so far, (n, B, D)."""
    factor: Tensor
    """Units of the layers to come, (n, B, D)."""
    layer: int = 0

    def scores(self) -> Scores:
        """Scores of all hypotheses with every component of the next layer."""
        loc, spread = self.locs[self.layer], self.spreads[self.layer]
        (n, count, dim), parts = self.mean.shape, []
        size = max(1, CHUNK_NUMBERS // (count * len(loc) * dim))
        for first in range(0, n, size):
            own = slice(first, first + size)
            factor = self.factor[own].unsqueeze(2)
            mean = self.mean[own].unsqueeze(2) + factor * loc
            entries = EntryEvidence(*(t[own, None, None].to(mean) for t in self.entries))
            parts.append(entries.log_factor(mean, factor * spread, rough=True).sum(-1))
        return Scores(torch.cat(parts))

    def extend(self, parent: Tensor, chosen: Tensor) -> Self:
        """Hypotheses (n, B') that go on from those at indices with codes of the next layer."""
        mean, factor = (take_entries(t, parent) for t in (self.mean, self.factor))
        mean = mean + factor * self.locs[self.layer][chosen]
        if self.multiplies:
            factor = factor * self.spreads[self.layer][chosen]
        return replace(self, mean=mean, factor=factor, layer=self.layer + 1)
