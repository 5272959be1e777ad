"""Points within linear inequalities, in the dtype of draws."""

__all__ = ["Polytope"]

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..evidence.linear import LinearEvidence, is_unit_axis, tightest_bounds


class Polytope(NamedTuple):
    """The region low <= A x <= high, with bounds of its own at every entry of a batch.

    Rows that values and equations fix, up to rounding, are not asked about again.
    """

    matrix: Tensor
    """A, shape (p, D)."""
    low: Tensor
    """Lower bounds, shape (entries, p)."""
    high: Tensor
    """Upper bounds, shape (entries, p)."""
    clamped: Tensor
    """Coordinates, or their negatives, that equations fix, shape (p,)."""

    @classmethod
    def of(
        cls, evidence: LinearEvidence, batch_shape: Sequence[int], dtype: torch.dtype
    ) -> "Polytope | None":
        """The region of some evidence over a flattened batch; None if nothing is bounded."""
        return cls.about(evidence, batch_shape, dtype) if evidence.num_rows else None

    @classmethod
    def about(
        cls, evidence: LinearEvidence, batch_shape: Sequence[int], dtype: torch.dtype
    ) -> "Polytope":
        """The region of evidence that holds inequalities."""
        matrix, low, high = evidence.inequalities(batch_shape)
        rows = evidence.fixed_rows(batch_shape, dtype)
        clamped = rows.by_equations & is_unit_axis(matrix)
        decided = rows.fixed & ~clamped
        low = torch.where(decided, -math.inf, low)
        low = torch.where(rows.broken, math.inf, low)
        high = torch.where(decided, math.inf, high)
        low, high = (bound.reshape(-1, len(matrix)).to(dtype) for bound in (low, high))
        return cls(matrix.to(dtype), low, high, clamped)

    def fixed_box(self) -> tuple[Tensor, Tensor] | None:
        """Bounds on coordinates that equations fix, shape (entries, D); None if there is none.

        Rounding may carry what an equation fixes at its very bound across it: clamp draws.
        """
        if not bool(self.clamped.any()):
            return None
        rows, low, high = (t[..., self.clamped] for t in (self.matrix.mT, self.low, self.high))
        rows = rows.mT
        column = rows.abs().argmax(-1)
        flipped = rows.sum(-1) < 0
        low, high = torch.where(flipped, -high, low), torch.where(flipped, -low, high)
        return tightest_bounds(low, high, column, rows.shape[-1])

    def contains(self, x: Tensor, entry: Tensor, *, safely: bool = False) -> Tensor:
        """Whether points lie in the region.

        Args:
            x: Points, shape (n, D or more): columns after the first D do not matter.
            entry: The entry of the flattened batch that each is about, shape (n,).
            safely: Whether to ask for a margin, such that the answer does not depend on the order
                in which the terms of A x are added up.

        Returns:
            Boolean tensor of shape (n,).
        """
        points = x[:, : self.matrix.shape[-1]]
        rows = points @ self.matrix.mT
        low, high = self.low[entry], self.high[entry]
        if not safely:
            return ((rows >= low) & (rows <= high)).all(-1)
        terms = (self.matrix != 0).sum(-1)
        size = points.abs() @ self.matrix.abs().mT + low.abs().nan_to_num(posinf=0.0)
        margin = torch.where(terms > 1, torch.finfo(x.dtype).eps * terms * size, 0.0)
        return ((rows - margin >= low) & (rows + margin <= high)).all(-1)
