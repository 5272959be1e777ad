r"""Orthogonal matrices: as functions of unconstrained numbers, and as estimates.

An orthogonal matrix of D columns is, up to their signs, a product of D - 1 reflections
:math:`I - 2 u_i u_i^\top / u_i^\top u_i`, where :math:`u_i` is zero above entry i and one there.
The entries below are its D (D - 1) / 2 unconstrained parameters (Householder 1958).
"""

__all__ = ["common_axes", "from_reflections", "to_reflections"]

from functools import lru_cache

import torch
from torch import Tensor

# Sweeps of plane rotations in one estimate, and the angle below which they stop.
SWEEPS = 8
SMALL_ANGLE = 1e-9


def from_reflections(raw: Tensor, dim: int) -> Tensor:
    r"""Orthogonal matrices (\*B, D, D) of reflections (\*B, D (D - 1) / 2), row by row.

    With the vectors for columns of V, the product is :math:`I - V U^{-1} V^\top`, where U is the
    upper triangle of :math:`V^\top V` with half its diagonal (Joffrain et al. 2006).
    """
    i, j = torch.tril_indices(dim, dim, -1, device=raw.device)
    identity = torch.eye(dim, dtype=raw.dtype, device=raw.device)
    below = raw.new_zeros(*raw.shape[:-1], dim, dim)
    below[..., i, j] = raw
    vectors = below + identity
    upper = (vectors.mT @ vectors).triu() * (1 - 0.5 * identity)
    return identity - vectors @ torch.linalg.solve_triangular(upper, vectors.mT, upper=True)


def to_reflections(matrix: Tensor) -> Tensor:
    r"""Reflections of orthogonal matrices (\*B, D, D), up to signs of columns.

    Every vector has length two at most.
    """
    dim = matrix.shape[-1]
    packed, _ = torch.geqrf(matrix)
    i, j = torch.tril_indices(dim, dim, -1, device=matrix.device)
    return packed[..., i, j]


def common_axes(axes: Tensor, second: Tensor, precision: Tensor, sweeps: int = SWEEPS) -> Tensor:
    r"""Axes that components have in common, given the precisions along them.

    They lower :math:`\sum_k \operatorname{tr}(S_k Q \operatorname{diag}(p_k) Q^\top)` over
    orthogonal Q, by rotations in the planes of two columns: the best angle in a plane has a closed
    form (Flury and Gautschi 1986). Planes without a common column are rotated at once. The sum
    never rises. Steps along the manifold that lower a bound (Browne and McNicholas 2014) have the
    same fixed points.

    Args:
        axes: Q to start from, shape (D, D).
        second: Sums of outer products S, shape (K, D, D).
        precision: Inverse variances p along the axes, shape (K, D).
        sweeps: Largest number of times to rotate in all planes.

    Returns:
        Q, shape (D, D).
    """
    dim = axes.shape[-1]
    for _ in range(sweeps):
        largest = 0.0
        for i, j in _planes(dim):
            turned = axes.mT @ second @ axes  # (K, D, D)
            weight = precision[:, i] - precision[:, j]  # (K, pairs)
            # The direction in which [[a, b], [b, d]] is least, with the weights' sum over K.
            b = (weight * turned[:, i, j]).sum(0)
            difference = (weight * (turned[:, j, j] - turned[:, i, i])).sum(0)  # d - a
            angle = 0.5 * torch.atan2(-2 * b, difference)
            cos, sin = angle.cos(), angle.sin()
            first, other = axes[:, i], axes[:, j]
            axes = axes.clone()
            axes[:, i], axes[:, j] = cos * first + sin * other, cos * other - sin * first
            largest = max(largest, float(sin.abs().max()))
        if largest < SMALL_ANGLE:
            break
    return axes


@lru_cache(maxsize=16)
def _planes(dim: int) -> list[tuple[list[int], list[int]]]:
    """All pairs of columns, in rounds in which each column is in one pair at most."""
    players = list(range(dim + dim % 2))
    half, rounds = len(players) // 2, []
    for _ in range(len(players) - 1):
        facing = zip(players[:half], reversed(players[half:]), strict=True)
        pairs = [pair for pair in facing if max(pair) < dim]
        if pairs:
            rounds.append(([i for i, _ in pairs], [j for _, j in pairs]))
        players = [players[0], players[-1], *players[1:-1]]
    return rounds
