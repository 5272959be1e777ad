"""Which codes above drive each position below."""

__all__ = ["Wiring", "trace"]

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .layers import Folding, Pooling
from .patches import extract_patches


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
        """The same on another device and in another dtype."""
        parent, slice_, group = (t.to(like.device) for t in (self.parent, self.slice, self.group))
        return Wiring(parent, slice_, self.weight.to(like), group)


def trace(steps: Sequence[Folding | Pooling], sizes: Sequence[tuple[int, int]]) -> Wiring:
    """Finds the wiring of a way down through foldings and poolings.

    Args:
        steps: From below upwards.
        sizes: Height and width below, and after each of the steps.
    """
    from scipy.sparse import coo_array

    total, channels = None, 1
    for step, size in zip(steps, sizes, strict=False):
        # Entries below, numbered, as the windows of the step see them.
        count = math.prod(size) * channels
        below = torch.arange(count).reshape(1, *size, channels)
        seen = extract_patches(below, Folding(step.kernel, step.stride))
        if isinstance(step, Folding):
            channels = seen.shape[-1]
            above = torch.arange(seen.numel())
        else:  # all that a window holds comes from the one value that is kept of it
            windows = seen.reshape(-1, math.prod(step.size), channels)
            above = torch.arange(len(windows) * channels).reshape(-1, 1, channels)
            above = above.expand_as(windows).flatten()
        to = seen.flatten()
        share = 1.0 / torch.bincount(to, minlength=count).double()
        shape = count, int(above.max()) + 1
        averages = coo_array((share[to].numpy(), (to.numpy(), above.numpy())), shape).tocsr()
        total = averages if total is None else total @ averages
    if total is None:  # mixtures right upon what is below
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
    """The wiring of positions that average over entries above, the same ones once."""
    key = torch.cat([entries, (weights * 2**30).round().long()], -1)
    _, group = key.unique(dim=0, return_inverse=True)
    first = torch.full((int(group.max()) + 1,), len(group))
    first = first.scatter_reduce(0, group, torch.arange(len(group)), "amin")
    entries, weights = entries[first], weights[first]
    return Wiring(entries // num_slices, entries % num_slices, weights, group)
