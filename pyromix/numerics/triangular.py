"""Triangular matrices: determinants, inverses, solutions and factors."""

__all__ = [
    "cholesky_of_rows",
    "half_log_det",
    "inverse_tril",
    "log_scale",
    "whiten",
    "whiten_components",
]

import torch
from torch import Tensor

from .batches import RowLayout
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


def whiten(tril: Tensor, x: Tensor) -> Tensor:
    """Solves L z = x for rows x of shape (*S, D) and one lower triangle L of shape (D, D)."""
    rows = x.reshape(-1, x.shape[-1])
    return torch.linalg.solve_triangular(tril, rows.mT, upper=False).mT.reshape(x.shape)


def cholesky_of_rows(rows: Tensor) -> Tensor:
    """Cholesky factors of R R^T for R of shape (*B, d, D), d <= D: shape (*B, d, d).

    They come from R itself: R R^T would have half the digits.
    """
    upper = torch.linalg.qr(rows.mT).R
    # Of two numbers, torch.where would make PyTorch's default dtype.
    sign = torch.where(upper.diagonal(dim1=-2, dim2=-1) < 0, -1.0, rows.new_ones(()))
    return (upper * sign.unsqueeze(-1)).mT


def whiten_components(tril: Tensor, difference: Tensor) -> Tensor:
    """Solves L_k z = x for every component k.

    Args:
        tril: Lower triangles L, shape (*B, K, D, D), or (*B, 1, D, D) if components share them.
        difference: Vectors x, shape (*S, *B, K, D).

    Returns:
        Vectors z, of the shape of x.
    """
    layout = RowLayout(difference.shape[:-2], tril.shape[:-3])
    rows = layout.rows(difference, tail=2)  # (*batch, N, K, D)
    factor = layout.components(tril, tail=3)
    if factor.shape[-3] == 1:
        flat = rows.flatten(-3, -2)
        z = torch.linalg.solve_triangular(factor.squeeze(-3), flat.mT, upper=False).mT
        z = z.reshape(rows.shape)
    else:
        z = torch.linalg.solve_triangular(factor, rows.movedim(-3, -1), upper=False)
        z = z.movedim(-1, -3)
    return layout.restore(z, tail=2)
