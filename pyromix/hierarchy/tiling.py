"""Windows over a grid: what each of them shows, and which of them draws an entry."""

__all__ = ["Tiling", "columns_of"]

from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor, nn


class Tiling(nn.Module):
    """Windows that slide over a grid of one or two dimensions.

    They begin at the first entry. The last ones may reach past the end: there is nothing there.
    Where windows overlap, an entry is drawn by the first that shows it, in the order of rows; the
    others are given it. So each entry has one owner, and all of them form a tree.

    Args:
        grid: Size of the grid.
        window: Size of the windows.
        stride: Distance between windows.

    Attributes:
        cells: Number of windows in every dimension.
        place: Index of the entry at each position of each window, minus one past the end, (C, O).
        drawn: Whether the window draws it, (C, O).
        owner: The window that draws each entry, (P,).
        offset: Its position in that window, (P,).
        overlaps: Whether an entry is shown by several windows.
        hangs_over: Whether windows reach past the end.
        order: Entries in the order of their positions in the windows that draw them, (P,).
        counts: How many entries there are at each position.
    """

    place: Tensor
    drawn: Tensor
    owner: Tensor
    offset: Tensor
    order: Tensor

    def __init__(self, grid: Sequence[int], window: Sequence[int], stride: Sequence[int]) -> None:
        super().__init__()
        self.grid, self.window, self.stride = tuple(grid), tuple(window), tuple(stride)
        self.cells = tuple(
            -(-max(0, size - wide) // step) + 1
            for size, wide, step in zip(grid, window, stride, strict=True)
        )
        index = torch.arange(self.num_entries).reshape(self.grid)
        shown = []
        for cell in product(*(range(count) for count in self.cells)):
            first = [i * step for i, step in zip(cell, self.stride, strict=True)]
            whole = torch.full(self.window, -1)
            part = tuple(slice(a, a + w) for a, w in zip(first, self.window, strict=True))
            inside = index[part]
            whole[tuple(slice(size) for size in inside.shape)] = inside
            shown.append(whole.flatten())
        place = torch.stack(shown)
        owner = torch.full((self.num_entries,), -1)
        offset = torch.full((self.num_entries,), -1)
        drawn = torch.zeros_like(place, dtype=torch.bool)
        for number, entries in enumerate(place):
            new = (entries >= 0) & (owner[entries.clamp(min=0)] < 0)
            drawn[number] = new
            owner[entries[new]] = number
            offset[entries[new]] = new.nonzero().squeeze(-1)
        self.hangs_over = bool((place < 0).any())
        self.counts: list[int] = torch.bincount(offset, minlength=self.num_positions).tolist()
        self.overlaps = int((place >= 0).sum()) > self.num_entries
        for name, value in {
            "place": place,
            "drawn": drawn,
            "owner": owner,
            "offset": offset,
            "order": offset.argsort(stable=True),
        }.items():
            self.register_buffer(name, value, persistent=False)

    @property
    def num_entries(self) -> int:
        """Number P of entries of the grid."""
        return int(torch.Size(self.grid).numel())

    @property
    def num_cells(self) -> int:
        """Number C of windows."""
        return int(torch.Size(self.cells).numel())

    @property
    def num_positions(self) -> int:
        """Number O of positions in a window."""
        return int(torch.Size(self.window).numel())

    def take(self, entries: Tensor) -> Tensor:
        r"""What windows show of entries (N, P, \*T): (N, C, O, \*T), anything past the end."""
        return entries[:, self.place.clamp(min=0)]

    def take_drawn(self, entries: Tensor) -> Tensor:
        r"""What windows draw of entries (N, P, \*T): shape (N, C, O, \*T), zero elsewhere."""
        mask = self.drawn.reshape(*self.drawn.shape, *[1] * (entries.dim() - 2))
        return torch.where(mask, self.take(entries), entries.new_zeros(()))

    def entries_of(self, shown: Tensor) -> Tensor:
        r"""Entries as the windows that draw them show them, (N, C, O, \*T): (N, P, \*T)."""
        return shown[:, self.owner, self.offset]

    def sum_drawn(self, entries: Tensor) -> Tensor:
        r"""Sums over what each window draws: (N, P, \*T) becomes (N, C, \*T)."""
        total = entries.new_zeros(len(entries), self.num_cells, *entries.shape[2:])
        return total.index_add(1, self.owner, entries)

    def mean_shown(self, windows: Tensor) -> Tensor:
        r"""Means over the windows that show an entry: (N, C, O, \*T) becomes (N, P, \*T)."""
        inside = (self.place >= 0).flatten()
        place = self.place.flatten()[inside]
        total = windows.new_zeros(len(windows), self.num_entries, *windows.shape[3:])
        total = total.index_add(1, place, windows.flatten(1, 2)[:, inside])
        count = place.bincount(minlength=self.num_entries)
        return total / count.reshape(-1, *[1] * (total.dim() - 2))

    def extra_repr(self) -> str:
        """Sizes."""
        return f"grid={self.grid}, window={self.window}, stride={self.stride}"


def columns_of(places: Tensor, channels: int) -> Tensor:
    """Where entries (n,) are in an array flattened to (P channels,): (n channels,)."""
    channel = torch.arange(channels, device=places.device)
    return (places.unsqueeze(-1) * channels + channel).flatten()
