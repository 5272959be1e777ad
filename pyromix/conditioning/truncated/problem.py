"""Linear constraints on many normals: checks on them, and points that meet them."""

__all__ = ["InteriorSearch", "Problem", "check_constraints"]

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ...core.checks import check_tensor, is_expandable
from .feasibility import ConflictError, feasible_point
from .reduction import ZERO


class Problem(NamedTuple):
    """K normals and the constraints on them, in float64."""

    loc: Tensor
    """Shape (K, D)."""
    factor: Tensor
    """Shape (K, D, Q), or standard deviations (K, D)."""
    matrix: Tensor
    """Shape (p, D)."""
    low: Tensor
    """Shape (K, p)."""
    high: Tensor

    def whitened(self, k: int) -> tuple[Tensor, Tensor, Tensor]:
        """Rows (p, Q) and bounds (p,) on the standard normal of a component."""
        factor = self.factor[k].diag() if self.factor.dim() == 2 else self.factor[k]
        rows, reach = self.matrix @ factor, self.matrix.abs() @ factor.abs()
        rows = torch.where(rows.abs() > ZERO * reach.amax(-1, keepdim=True), rows, 0.0)
        offset = self.matrix @ self.loc[k]
        return rows, self.low[k] - offset, self.high[k] - offset

    def spread(self, members: Tensor) -> Tensor:
        """Standard deviations of all rows, shape (k, p)."""
        factor = self.factor[members]
        if factor.dim() == 2:
            return (factor.square() @ self.matrix.square().mT).sqrt()
        return (self.matrix @ factor).norm(dim=-1)


class InteriorSearch:
    """Finds a point strictly inside for every component: one linear program often serves all.

    Args:
        problem: Constraints on all components.
        members: The components to look at, shape (k,).
        coupled: The whitened coordinates to return, shape (T,).

    Attributes:
        conflict: Why the first component without a point has none.
    """

    def __init__(self, problem: Problem, members: Tensor, coupled: Tensor) -> None:
        self._problem, self._members, self._coupled = problem, members, coupled
        self.conflict: ConflictError | None = None

    def __call__(self) -> tuple[Tensor, Tensor]:
        """Points (k, T) in whitened coordinates, and which components have one, (k,)."""
        members, problem = self._members, self._problem
        loc, factor = problem.loc[members], problem.factor[members]
        points = torch.zeros(len(members), factor.shape[-1], dtype=loc.dtype, device=loc.device)
        found = torch.zeros(len(members), dtype=torch.bool, device=loc.device)
        inverse = None if factor.dim() == 2 else torch.linalg.pinv(factor)
        for position, k in enumerate(members.tolist()):
            if found[position]:
                continue
            try:
                z = feasible_point(*problem.whitened(k))
            except ConflictError as error:
                self.conflict = self.conflict or error
                continue
            points[position], found[position] = z, True
            # The same point of space may do for the others.
            if inverse is None:
                shared = loc[position] + factor[position] * z
                others = (shared - loc) / factor
                miss = torch.zeros_like(loc[:, 0])
            else:
                shared = loc[position] + factor[position] @ z
                others = (inverse @ (shared - loc).unsqueeze(-1)).squeeze(-1)
                back = loc + (factor @ others.unsqueeze(-1)).squeeze(-1)
                miss = (back - shared).norm(dim=-1)
            value = problem.matrix @ shared
            slack = torch.minimum(value - problem.low[members], problem.high[members] - value)
            spread = problem.spread(members)
            deep = (slack > 1e-6 * spread).all(-1) & (miss <= 1e-9 * (1 + shared.norm()))
            points = torch.where((deep & ~found).unsqueeze(-1), others, points)
            found |= deep
        return points[:, self._coupled], found


def check_constraints(
    loc: Tensor, factor: Tensor, matrix: Tensor, low: Tensor, high: Tensor
) -> None:
    """Checks shapes and values of everything that a constructor takes."""
    check_tensor("matrix", matrix, like=loc)
    check_tensor("low", low, like=loc)
    check_tensor("high", high, like=loc)
    batch, dim = loc.shape[:-1], loc.shape[-1]
    if matrix.dim() != 2 or matrix.shape[1] != dim:
        raise ValueError(
            f"Expected matrix of shape (p, D = {dim}), got {tuple(matrix.shape)}. One row needs "
            f"a first dimension of size one."
        )
    for name, bound in (("low", low), ("high", high)):
        wanted = (*batch, len(matrix))
        if (
            bound.dim() < 1
            or bound.shape[-1] != len(matrix)
            or not is_expandable(bound.shape, wanted)
        ):
            raise ValueError(
                f"Expected {name} of shape (p,) or (*K, p), with p = {len(matrix)} rows and "
                f"K = {tuple(batch)}, got {tuple(bound.shape)}. Use infinities for rows without "
                f"a bound."
            )
        if bool(bound.isnan().any()):
            raise ValueError(
                f"Expected {name} without NaN. Use infinities for rows without a bound."
            )
    if not batch.numel() or not dim or not factor.shape[-1]:
        raise ValueError(
            f"Expected at least one component and one dimension, got loc {tuple(loc.shape)} and "
            f"factor {tuple(factor.shape)}."
        )
    for name, value in (("loc", loc), ("factor", factor), ("matrix", matrix)):
        if not bool(value.isfinite().all()):
            raise ValueError(f"Expected finite values of {name}, got NaN or infinity.")
    if bool((low == math.inf).any()) or bool((high == -math.inf).any()):
        raise ValueError(
            "Expected low below plus infinity and high above minus infinity: no point lies "
            "beyond. Were the two exchanged?"
        )
