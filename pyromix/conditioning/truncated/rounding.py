"""Rounds draws to their dtype without leaving the constraints."""

__all__ = ["Rounding"]

from collections.abc import Callable

import torch
from torch import Tensor

MAX_NUDGES = 20


class Rounding:
    """Rounds points of a polytope to a dtype such that they meet its constraints there.

    Rows that are an axis are met by clamping. Any other product of row and point depends, in
    its last digits, on the order in which it is summed; points keep a distance of a few of these
    from a bound, so that they meet it however it is evaluated. Where the polytope has no room
    for that, meeting it in a matrix product of the dtype is enough.

    Args:
        matrix: Shape (p, D), of the dtype to round to.
        low: Shape (K, p), same dtype.
        high: Shape (K, p), same dtype.
    """

    def __init__(self, matrix: Tensor, low: Tensor, high: Tensor) -> None:
        self._matrix, self._low, self._high = matrix, low, high
        count = (matrix != 0).sum(-1)
        axis = (count == 1) & (matrix.amax(-1) == 1)
        column = matrix[axis].argmax(-1).expand(len(low), -1)
        shape = (len(low), matrix.shape[1])
        box_low = torch.full(shape, -torch.inf, dtype=matrix.dtype, device=matrix.device)
        box_high = torch.full_like(box_low, torch.inf)
        self._box_low = box_low.scatter_reduce(1, column, low[:, axis], "amax")
        self._box_high = box_high.scatter_reduce(1, column, high[:, axis], "amin")
        self._general = (~axis).nonzero().squeeze(-1)
        rows = matrix[~axis].double()
        self._rows, self._row_low, self._row_high = rows, low[:, ~axis], high[:, ~axis]
        unit = 0.5 * torch.finfo(matrix.dtype).eps
        # Rounding errors of a sum of n terms are below n units, and nearly always below sqrt(n).
        self._relative = (2 + count[~axis].sqrt().double()) * unit

    def __call__(
        self, exact: Tensor, index: Tensor, direction: Callable[[Tensor, Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Rounds points.

        Args:
            exact: Points, shape (n, D), float64, inside up to rounding.
            index: Their components, shape (n,).
            direction: Given components (m,) and rows of the matrix (m,), the directions (m, D)
                along which a component is free to move away from the row.

        Returns:
            Points of shape (n, D), and which of them are inside, shape (n,).
        """
        x = self._clamp(exact, index)
        good = torch.ones_like(index, dtype=torch.bool)
        if len(self._general) == 0:
            return x, good
        pending = torch.arange(len(index), device=index.device)
        exact = exact.clone()
        for attempt in range(MAX_NUDGES):
            change, row = self._needed(x[pending].double(), index[pending])
            open_ = change != 0
            if not bool(open_.any()):
                return x, good
            pending, change, row = pending[open_], change[open_], row[open_]
            away = direction(index[pending], self._general[row])
            reach = (away * self._rows[row]).sum(-1)
            # Each attempt moves a little further: the result is rounded again.
            step = change * (1 + 0.25 * attempt) / torch.where(reach == 0, 1.0, reach)
            exact[pending] = x[pending].double() + away * step.unsqueeze(-1)
            x[pending] = self._clamp(exact[pending], index[pending])
        value = x[pending] @ self._matrix.mT
        inside = (value >= self._low[index[pending]]) & (value <= self._high[index[pending]])
        good[pending] = inside.all(-1)
        return x, good

    def _clamp(self, exact: Tensor, index: Tensor) -> Tensor:
        x = exact.to(self._matrix.dtype)
        return torch.minimum(torch.maximum(x, self._box_low[index]), self._box_high[index])

    def _needed(self, x: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """By how much the worst row of each point must change, and which row that is."""
        value = x @ self._rows.mT
        margin = self._relative * (x.abs() @ self._rows.abs().mT)
        low, high = self._row_low[index].double() + margin, self._row_high[index].double() - margin
        middle = 0.5 * (low + high)
        thin = low > high
        low, high = torch.where(thin, middle, low), torch.where(thin, middle, high)
        # An equality that a singular normal fixes has no target beyond its rounding.
        change = torch.maximum(low - value, torch.zeros_like(value))
        change = change - torch.maximum(value - high, torch.zeros_like(value))
        change = torch.where(thin & (change.abs() < margin), 0.0, change)
        row = change.abs().argmax(-1)
        return change.gather(-1, row.unsqueeze(-1)).squeeze(-1), row
