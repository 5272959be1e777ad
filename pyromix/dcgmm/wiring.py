"""Stacks of windows, and which positions above them reach each position below them."""

__all__ = ["WindowStack", "Wiring", "trace"]

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .patches import (
    Folding,
    Pooling,
    Size,
    average_patches,
    average_pooled,
    extract_patches,
    max_pool,
)


@dataclass(frozen=True)
class WindowStack:
    """The windows between positions above and an image, or other positions, below them."""

    windows: tuple[Folding | Pooling, ...]
    """From below upwards; none where every position sees the one below it alone."""
    sizes: tuple[Size, ...]
    """Height and width below, and after each of the windows."""
    channels: int
    """Number of channels below."""

    @property
    def below(self) -> Size:
        """Height and width of what is below."""
        return self.sizes[0]

    @property
    def size(self) -> Size:
        """Rows and columns of positions above."""
        return self.sizes[-1]

    @property
    def num_positions(self) -> int:
        """Number of positions above."""
        return math.prod(self.size)

    @cached_property
    def num_slices(self) -> int:
        """Number of cells that a position above sees, each of as many channels as are below."""
        return math.prod(math.prod(w.size) for w in self.windows if isinstance(w, Folding))

    @property
    def dim(self) -> int:
        """Number of channels that a position above sees."""
        return self.num_slices * self.channels

    def up(self, values: Tensor) -> Tensor:
        """What positions above see of values below: (N, H, W, C) becomes (N, H', W', dim)."""
        for window in self.windows:
            if isinstance(window, Pooling):
                values = max_pool(values, window)
            else:
                values = extract_patches(values, window)
        return values

    def down(self, values: Tensor) -> Tensor:
        """Averages over windows that see a position: (N, H', W', dim) becomes (N, H, W, C)."""
        for window, size in zip(reversed(self.windows), reversed(self.sizes[:-1]), strict=True):
            if isinstance(window, Pooling):
                values = average_pooled(values, window, size)
            else:
                values = average_patches(values, window, size)
        return values

    @cached_property
    def wiring(self) -> "Wiring":
        """Which slice of which position's vector reaches each position below."""
        return trace(self.windows, self.sizes)

    @property
    def coverage(self) -> Tensor:
        """Number of slices that are averaged at each position below, shape (1, H, W, C)."""
        count = (self.wiring.weight > 0).sum(-1)[self.wiring.group]
        return count.reshape(1, *self.below, 1).expand(-1, -1, -1, self.channels)


@dataclass(frozen=True)
class Wiring:
    """How positions below average over slices of the vectors of positions above.

    The vector of a position above consists of J slices, each of which reaches some position
    below. Positions below that average over the same slices, as in a window of pooling, form a
    group: what drives them is computed once.

    Args:
        parent: Position above, shape (G, I): I is the largest number of slices in an average.
        slice: Which of its slices, shape (G, I).
        weight: Weight in the average, shape (G, I); zero pads shorter ones.
        group: Group of every position below, shape (P,).
    """

    parent: Tensor
    slice: Tensor
    weight: Tensor
    group: Tensor

    @property
    def log_weight(self) -> Tensor:
        """Logarithms of the weights, shape (G, I)."""
        return self.weight.log()

    @cached_property
    def single_parent(self) -> bool:
        """Whether every position below is driven by one position above."""
        return bool(((self.parent == self.parent[:, :1]) | (self.weight == 0)).all())

    @cached_property
    def disjoint(self) -> bool:
        """Whether every position below is driven by a single slice."""
        return self.parent.shape[1] == 1

    def to(self, like: Tensor) -> "Wiring":
        """Returns this wiring on the device of a tensor, with weights of its dtype."""
        parent, slice_, group = (t.to(like.device) for t in (self.parent, self.slice, self.group))
        return Wiring(parent, slice_, self.weight.to(like), group)


def trace(windows: Sequence[Folding | Pooling], sizes: Sequence[Size]) -> Wiring:
    """Returns the wiring of the way down through foldings and poolings.

    Args:
        windows: From below upwards.
        sizes: Height and width below, and after each of the windows.
    """
    from scipy.sparse import coo_array

    total, channels = None, 1
    for window, size in zip(windows, sizes, strict=False):
        # Entries below, numbered, as the windows see them.
        count = math.prod(size) * channels
        below = torch.arange(count).reshape(1, *size, channels)
        seen = extract_patches(below, window)
        if isinstance(window, Folding):
            channels = seen.shape[-1]
            above = torch.arange(seen.numel())
        else:  # all that a window holds comes from the one value that is kept of it
            cells = seen.reshape(-1, math.prod(window.size), channels)
            above = torch.arange(len(cells) * channels).reshape(-1, 1, channels)
            above = above.expand_as(cells).flatten()
        to = seen.flatten()
        share = 1.0 / torch.bincount(to, minlength=count).double()
        shape = count, int(above.max()) + 1
        averages = coo_array((share[to].numpy(), (to.numpy(), above.numpy())), shape).tocsr()
        total = averages if total is None else total @ averages
    if total is None:  # no windows: every position is driven by the one above it
        position = torch.arange(math.prod(sizes[0]))
        column = position.unsqueeze(-1)
        return Wiring(column, torch.zeros_like(column), torch.ones_like(column).double(), position)
    total.sort_indices()
    found = total.tocoo()
    row, entry = (torch.as_tensor(index, dtype=torch.int64) for index in (found.row, found.col))
    counts = torch.bincount(row)
    place = torch.arange(len(row)) - (counts.cumsum(0) - counts)[row]
    entries = torch.zeros(len(counts), int(counts.max()), dtype=torch.int64)
    weights = torch.zeros(entries.shape, dtype=torch.float64)
    entries[row, place], weights[row, place] = entry, torch.as_tensor(found.data)
    return _group(entries, weights, channels)


def _group(entries: Tensor, weights: Tensor, num_slices: int) -> Wiring:
    """Returns the wiring of positions that average over entries above.

    Args:
        entries: Numbers of the entries that each position averages over, shape (P, I).
        weights: Their weights, shape (P, I); zero pads.
        num_slices: Number of entries of a position above.
    """
    key = torch.cat([entries, (weights * 2**30).round().long()], -1)
    _, group = key.unique(dim=0, return_inverse=True)
    first = torch.full((int(group.max()) + 1,), len(group))
    first = first.scatter_reduce(0, group, torch.arange(len(group)), "amin")
    entries, weights = entries[first], weights[first]
    return Wiring(entries // num_slices, entries % num_slices, weights, group)
