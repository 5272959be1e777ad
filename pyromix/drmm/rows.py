"""Rows of mixed real and categorical columns."""

__all__ = ["Rows"]

from typing import NamedTuple

import torch
from torch import Tensor

from .columns import Values


class Rows(NamedTuple):
    """Points to be scored, N of them."""

    real: Tensor
    """Real columns, shape (N, D), with any finite number where missing."""
    observed: Tensor | None
    """One where a real column is known and zero where it is missing, (N, D); None if all are."""
    columns: Values
    """Categorical columns, by table; see `Values`."""

    def split(self, size: int) -> "list[Rows]":
        """Blocks of at most so many rows."""
        real = self.real.split(size)
        observed = [None] * len(real) if self.observed is None else self.observed.split(size)
        columns = [column.split(size) for column in self.columns]
        return [
            Rows(part, seen, tuple(column[i] for column in columns))
            for i, (part, seen) in enumerate(zip(real, observed, strict=True))
        ]

    def take(self, index: Tensor) -> "Rows":
        """The rows at indices (n,)."""
        observed = None if self.observed is None else self.observed[index]
        return Rows(self.real[index], observed, tuple(column[index] for column in self.columns))

    @property
    def complete(self) -> Tensor:
        """Whether nothing of a row is missing, shape (N,)."""
        known = torch.ones(len(self.real), dtype=torch.bool, device=self.real.device)
        if self.observed is not None:
            known = (self.observed > 0).all(-1)
        for column in self.columns:
            known = known & _is_known(column).all(-1)
        return known

    @property
    def empty(self) -> Tensor:
        """Whether all of a row is missing, shape (N,)."""
        seen = torch.ones_like(self.real) if self.observed is None else self.observed
        known = (seen > 0).any(-1)
        for column in self.columns:
            known = known | _is_known(column).any(-1)
        return ~known


def _is_known(column: Tensor) -> Tensor:
    """Which categorical columns (N, J) are not missing."""
    return column.sum(-1) > 0 if column.is_floating_point() else column >= 0
