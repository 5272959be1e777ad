"""Newton's method on many small problems at once, each with a step of its own."""

__all__ = ["NEWTON_STEPS", "apply", "central_point", "line_search", "newton_step"]

import math
from collections.abc import Callable

import torch
from torch import Tensor

NEWTON_STEPS = 60


def central_point(rows: Tensor, bounds: Tensor, start: Tensor, weight: float = 1.0) -> Tensor:
    r"""Minimises :math:`|z|^2 / 2 - w \sum \log(h - H z)`: likely, and well inside.

    Args:
        rows: H, shape (k, c, T).
        bounds: h, shape (k, c), may be infinite.
        start: Points strictly inside, shape (k, T).
        weight: The weight w.
    """
    finite = bounds < math.inf
    eye = torch.eye(rows.shape[-1], dtype=rows.dtype, device=rows.device)

    def objective(z: Tensor) -> Tensor:
        slack = torch.where(finite, bounds - apply(rows, z), 1.0)
        value = 0.5 * z.square().sum(-1) - weight * slack.clamp(min=1e-300).log().sum(-1)
        return torch.where((slack > 0).all(-1), value, math.inf)

    z = start
    for _ in range(2 * NEWTON_STEPS):
        pull = finite / torch.where(finite, bounds - apply(rows, z), 1.0)
        pulled = rows * pull.unsqueeze(-1)
        gradient = z + weight * apply(rows.mT, pull)
        step, decrement = newton_step(eye + weight * pulled.mT @ pulled, gradient)
        if bool((decrement < 1e-6).all()):
            break
        z = line_search(z, step, decrement, objective)
    return z


def apply(matrix: Tensor, vector: Tensor) -> Tensor:
    """Batched product of matrix (k, i, j) and vector (k, j)."""
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)


def newton_step(hessian: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Newton's step and its squared decrement; symmetric scaling tames far-apart units."""
    scale = hessian.diagonal(dim1=-2, dim2=-1).clamp(min=1e-300).rsqrt()
    scaled = hessian * scale.unsqueeze(-1) * scale.unsqueeze(-2)
    step = -scale * torch.linalg.solve_ex(scaled, (scale * gradient).unsqueeze(-1))[0].squeeze(-1)
    decrement = -(gradient * step).sum(-1)
    lost = ~decrement.isfinite()  # this component has failed, the others go on
    return torch.where(lost.unsqueeze(-1), 0.0, step), torch.where(lost, 0.0, decrement)


def line_search(
    x: Tensor, step: Tensor, decrement: Tensor, objective: Callable[[Tensor], Tensor]
) -> Tensor:
    """Halves the steps that do not decrease the objective; every component on its own."""
    value = objective(x)
    size = torch.ones_like(decrement)
    for _ in range(40):
        moved = x + size.unsqueeze(-1) * step
        allowance = 1e-12 * (1 + value.abs())
        good = objective(moved) <= value - 0.1 * size * decrement + allowance
        if bool(good.all()):
            return moved
        size = torch.where(good, size, 0.5 * size)
    return torch.where(good.unsqueeze(-1), moved, x)
