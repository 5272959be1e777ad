"""Points within linear inequalities, in the dtype of draws."""

__all__ = ["Polytope"]

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..evidence.linear import LinearEvidence


class Polytope(NamedTuple):
    """The region low <= A x <= high, with bounds of its own at every entry of a batch."""

    matrix: Tensor
    """A, shape (p, D)."""
    low: Tensor
    """Lower bounds, shape (entries, p)."""
    high: Tensor
    """Upper bounds, shape (entries, p)."""

    @classmethod
    def of(
        cls, evidence: LinearEvidence, batch_shape: Sequence[int], dtype: torch.dtype
    ) -> "Polytope | None":
        """The region of some evidence over a flattened batch; None if nothing is bounded."""
        if not evidence.num_rows:
            return None
        matrix, low, high = evidence.inequalities(batch_shape)
        low, high = (bound.reshape(-1, len(matrix)).to(dtype) for bound in (low, high))
        return cls(matrix.to(dtype), low, high)

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
