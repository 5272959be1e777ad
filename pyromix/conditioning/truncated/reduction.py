"""From linear constraints on many normals to as few rows as possible on standard ones."""

__all__ = ["Reduced", "reduce_constraints"]

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# A row is zero, or an entry of it, if it is below this fraction of the sizes that made it.
ZERO = 1e-12
# Two rows are parallel if their cosine differs from one by no more than its rounding.
PARALLEL = 1e-14
# Rows that a singular normal leaves constant hold up to the rounding of single precision.
CONSTANT_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Reduced:
    """K standard normals z of Q coordinates within a box and between rows.

    Rows have unit length, are neither constant, nor parallel to each other or to an axis.
    """

    box_low: Tensor
    """Shape (K, Q)."""
    box_high: Tensor
    rows: Tensor
    """Shape (K, q, Q)."""
    low: Tensor
    """Shape (K, q)."""
    high: Tensor
    empty: Tensor
    """Components that no point can belong to, as far as single rows show; shape (K,)."""


def reduce_constraints(
    loc: Tensor, factor: Tensor, matrix: Tensor, low: Tensor, high: Tensor
) -> Reduced:
    """Whitens constraints, and sorts them into a box and proper rows.

    Args:
        loc: Means, shape (K, D), float64.
        factor: Shape (K, D, Q), or standard deviations of shape (K, D).
        matrix: Shape (p, D).
        low: Shape (K, p).
        high: Shape (K, p).
    """
    offset = loc @ matrix.mT
    # Rows that no component moves along, that move along one coordinate, and all others.
    diagonal = factor.dim() == 2
    reach = factor.abs() if diagonal else factor.norm(dim=-1)
    reach = reach @ matrix.abs().mT  # what a row's length would be without cancellation
    if diagonal:
        pattern = matrix != 0
    else:
        whitened = matrix @ factor
        significant = whitened.abs() > ZERO * reach.unsqueeze(-1)
        pattern = significant.any(0)
    count = pattern.sum(-1)
    axis, general = count == 1, count > 1
    column = pattern[axis].int().argmax(-1)
    length = torch.zeros_like(offset)
    if diagonal:
        entry = matrix[axis, column] * factor[:, column]
        rows = matrix[general] * factor.unsqueeze(-2)
    else:
        entry = whitened[:, axis].gather(2, column.expand(len(loc), -1).unsqueeze(-1)).squeeze(-1)
        rows = torch.where(significant, whitened, 0.0)[:, general]
    length[:, axis], length[:, general] = entry.abs(), rows.norm(dim=-1)
    constant = length <= ZERO * reach

    low, high = low - offset, high - offset
    allowance = CONSTANT_TOLERANCE * (offset.abs() + loc.abs() @ matrix.abs().mT + reach)
    empty = (constant & ((low > allowance) | (high < -allowance))).any(-1)
    length = torch.where(constant, 1.0, length)
    low = torch.where(constant, -math.inf, low / length)
    high = torch.where(constant, math.inf, high / length)
    empty |= (low >= high).any(-1)

    num, coordinates = len(loc), factor.shape[-1]
    box_low = torch.full((num, coordinates), -math.inf, dtype=loc.dtype, device=loc.device)
    box_high = torch.full_like(box_low, math.inf)
    flipped, index = entry < 0, column.expand(num, -1)
    ends = torch.where(flipped, -high[:, axis], low[:, axis])
    box_low = box_low.scatter_reduce(1, index, ends, "amax")
    ends = torch.where(flipped, -low[:, axis], high[:, axis])
    box_high = box_high.scatter_reduce(1, index, ends, "amin")

    rows = rows / length[:, general].unsqueeze(-1)
    row_low, row_high = _merge_parallel(rows, low[:, general], high[:, general])
    used = ((row_low > -math.inf) | (row_high < math.inf)).any(0)
    empty |= (box_low >= box_high).any(-1) | (row_low >= row_high).any(-1)
    return Reduced(box_low, box_high, rows[:, used], row_low[:, used], row_high[:, used], empty)


def _merge_parallel(rows: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Intersects the intervals of parallel rows in the first of them; frees the others."""
    if rows.shape[1] < 2:
        return low, high
    cosine = rows @ rows.mT
    parallel = (cosine.abs() >= 1 - PARALLEL).tril()
    parallel.diagonal(dim1=-2, dim2=-1).fill_(True)
    first = parallel.int().argmax(-1)  # (K, q)
    flipped = cosine.gather(-1, first.unsqueeze(-1)).squeeze(-1) < 0
    free_low, free_high = torch.full_like(low, -math.inf), torch.full_like(high, math.inf)
    low, high = torch.where(flipped, -high, low), torch.where(flipped, -low, high)
    return (
        free_low.scatter_reduce(1, first, low, "amax"),
        free_high.scatter_reduce(1, first, high, "amin"),
    )
