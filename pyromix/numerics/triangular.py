"""Triangular matrices: determinants, inverses, solutions and factors."""

__all__ = [
    "MOST_ROWS",
    "cholesky_of_rows",
    "half_log_det",
    "inverse_cholesky",
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


# Many matrices of no more rows than this are factorised together, column by column: a routine for
# one matrix takes a microsecond however small it is.
MOST_ROWS, LEAST_MATRICES = 16, 128


def inverse_cholesky(matrix: Tensor, least: float = 0.0) -> Tensor:
    """Inverses of the Cholesky factors of positive definite matrices, shape (*B, q, q).

    Args:
        matrix: Shape (*B, q, q).
        least: Added to the diagonal, as a share of it.

    Returns:
        W with W M W^T = I, lower triangular, shape (*B, q, q).

    Raises:
        torch.linalg.LinAlgError: If a matrix is not positive definite.
    """
    own = matrix.diagonal(dim1=-2, dim2=-1)
    q, count = matrix.shape[-1], own[..., :1].numel()
    if q > MOST_ROWS or count < LEAST_MATRICES:
        return inverse_tril(torch.linalg.cholesky(matrix + torch.diag_embed(least * own)))
    # Matrices last: all operations are on long vectors.
    a = matrix.reshape(count, q, q).permute(1, 2, 0).contiguous()
    tril = torch.zeros_like(a)
    for j in range(q):
        column = a[j:, j] - (tril[j:, :j] * tril[j, :j]).sum(1)
        pivot = column[0] + least * a[j, j]
        if not bool((pivot > 0).all()):
            raise torch.linalg.LinAlgError("Expected positive definite matrices.")
        tril[j:, j] = column / pivot.sqrt()
        tril[j, j] = pivot.sqrt()
    inverse = torch.zeros_like(a)
    for i in range(q):
        scale = tril[i, i].reciprocal()
        inverse[i, :i] = -(tril[i, :i].unsqueeze(1) * inverse[:i, :i]).sum(0) * scale
        inverse[i, i] = scale
    return inverse.permute(2, 0, 1).reshape(matrix.shape)


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
