"""Triangular matrices: determinants and inverses."""

__all__ = ["half_log_det", "inverse_tril", "log_scale"]

import torch
from torch import Tensor

from .diagonal_density import LOG_2PI


def log_scale(tril: Tensor) -> Tensor:
    """Log of sqrt(|2 pi L L^T|), the constant of a normal's density, for L (*B, D, D): (*B)."""
    log_det = tril.diagonal(dim1=-2, dim2=-1).abs().log().sum(-1)
    return log_det + 0.5 * LOG_2PI * tril.shape[-1]


def inverse_tril(tril: Tensor) -> Tensor:
    """Inverses of lower triangular matrices (*B, D, D), of this shape."""
    identity = torch.eye(tril.shape[-1], dtype=tril.dtype, device=tril.device)
    return torch.linalg.solve_triangular(tril, identity, upper=False)


def half_log_det(tril: Tensor) -> Tensor:
    """Half the log-determinant of L L^T for L of shape (*B, D, D): shape (*B)."""
    return tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
