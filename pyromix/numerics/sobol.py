"""Numbers that fill their space evenly, from scrambled Sobol sequences."""

__all__ = ["MAX_DIM", "even_normals", "even_uniforms"]

import torch
from torch import Size, Tensor
from torch.quasirandom import SobolEngine

from ..core.checks import is_traced

MAX_DIM = SobolEngine.MAXDIM
"""Largest dimension of a Sobol sequence."""


def even_uniforms(count: int, dim: int, seed: int | None = None) -> Tensor:
    """Points that fill the unit cube evenly, each with the uniform law: never on its faces.

    Args:
        count: Number of points.
        dim: Dimension of the cube, at most `MAX_DIM`.
        seed: Scrambles the sequence; by default drawn from PyTorch's global generator.

    Returns:
        Tensor of shape (count, dim) in float64.
    """
    points = SobolEngine(dim, scramble=True, seed=seed).draw(count, dtype=torch.float64)
    if seed is not None and torch.jit.is_tracing():
        # A trace has no generators, and would scramble anew whenever it runs: it gets a constant.
        points = torch.from_numpy(points.numpy().copy())
    # Multiples of 2^-30, moved to the middle of their cells: never zero or one.
    return points + 2.0**-31


def even_normals(count: int, shape: Size, like: Tensor) -> Tensor:
    """Standard normal numbers that fill their space evenly.

    In more than `MAX_DIM` dimensions, and under tracing, they are independent instead.

    Args:
        count: Number of points.
        shape: Shape of one point.
        like: A tensor of the dtype and on the device that are wanted.

    Returns:
        Tensor of shape (count, *shape).
    """
    if shape.numel() > MAX_DIM or is_traced():
        return torch.randn(count, *shape, dtype=like.dtype, device=like.device)
    noise = torch.special.ndtri(even_uniforms(count, shape.numel()))
    return noise.reshape(count, *shape).to(like)
