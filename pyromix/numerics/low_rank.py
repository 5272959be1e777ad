r"""Precision matrices that are a diagonal plus a matrix of low rank.

With :math:`P = \operatorname{diag}(d) + U U^\top` everything reduces to the r x r capacitance
matrix :math:`C = I + U^\top \operatorname{diag}(d)^{-1} U`.
"""

__all__ = [
    "capacitance_tril",
    "covariance",
    "draw_centred",
    "log_det",
    "low_rank_term",
    "marginal_variance",
    "masked_capacitance_tril",
    "project",
    "projections",
    "solve_capacitance",
    "solve_right",
]

from typing import Any

import torch
from torch import Tensor

from ..core.checks import is_traced
from .diagonal_density import DIRECT_SIZE, TOLERANCE, unit_roundoff
from .full_precision import in_full_precision
from .triangular import half_log_det

# With more columns than this, products of factors are matrix products rather than sums.
MOST_SUMMED = 4

# Up to this ratio of its entries to its pivots, a matrix is factorised in float32.
WELL_CONDITIONED = 100.0


def capacitance_tril(diag: Tensor, factor: Tensor) -> Tensor:
    """Cholesky factor of I + U^T diag(d)^-1 U, shape (*B, r, r).

    Its condition number may be that of the precision matrix: where float32 would not do, it is
    computed in float64.
    """
    if factor.shape[-1] == 0:
        shape = torch.broadcast_shapes(diag.shape[:-1], factor.shape[:-2])
        return factor.new_zeros(*shape, 0, 0)
    scaled = factor.movedim(-1, 0) * diag.rsqrt()  # (r, *B, D): sums run along memory
    if scaled.dtype == torch.float32:
        if not is_traced():
            gram = _gram(scaled)
            tril, info = torch.linalg.cholesky_ex(gram)
            pivots = tril.detach().diagonal(dim1=-2, dim2=-1).square()
            largest = gram.detach().diagonal(dim1=-2, dim2=-1).amax(-1)
            if not info.any() and (largest < WELL_CONDITIONED * pivots.amin(-1)).all():
                return tril
        scaled = scaled.double()
    return torch.linalg.cholesky(_gram(scaled)).to(factor.dtype)


def _gram(columns: Tensor) -> Tensor:
    """I + W^T W for the columns (r, *B, D) of W, shape (*B, r, r).

    Many products of very thin matrices take longer than sums.
    """
    columns = columns.contiguous()
    rank = len(columns)
    if rank > MOST_SUMMED:
        last = columns.movedim(0, -2)
        return last @ last.mT + torch.eye(rank, dtype=columns.dtype, device=columns.device)
    lower = {(i, j): (columns[i] * columns[j]).sum(-1) for i in range(rank) for j in range(i + 1)}
    rows = [
        torch.stack([lower[max(i, j), min(i, j)] for j in range(rank)], -1) for i in range(rank)
    ]
    identity = torch.eye(rank, dtype=columns.dtype, device=columns.device)
    return torch.stack(rows, -2) + identity


def low_rank_term(b: Tensor, diag: Tensor, factor: Tensor) -> Tensor:
    """Half of log |C| - |U^T b|^2 for b of shape (*B, D): shape (*B)."""
    if is_traced():
        return _plain_low_rank_term(b, diag, factor)
    return _LowRankTerm.apply(b, diag, factor)


def _plain_low_rank_term(b: Tensor, diag: Tensor, factor: Tensor) -> Tensor:
    """The low-rank term as PyTorch differentiates it."""
    tril = capacitance_tril(diag, factor)
    projected = (factor.movedim(-1, 0) * b).sum(-1)  # (r, *B)
    return half_log_det(tril) - 0.5 * projected.square().sum(0)


class _LowRankTerm(torch.autograd.Function):
    """The low-rank term with its gradient in closed form, which halves the time.

    With V = diag(d)^-1 U C^-1, the gradient is V - b (U^T b)^T in U, -1/2 sum_r V U / d in d, and
    -U U^T b in b.
    """

    @staticmethod
    def forward(ctx: Any, b: Tensor, diag: Tensor, factor: Tensor) -> Tensor:
        columns = factor.movedim(-1, 0).contiguous()
        tril = capacitance_tril(diag, factor)
        projected = (columns * b).sum(-1)
        ctx.save_for_backward(b, diag, factor, columns, tril, projected)
        return half_log_det(tril) - 0.5 * projected.square().sum(0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        b, diag, factor, columns, tril, projected = ctx.saved_tensors
        if torch.is_grad_enabled():  # a second derivative is wanted
            inputs = b, diag, factor
            return torch.autograd.grad(
                _plain_low_rank_term(*inputs), inputs, grad, create_graph=True
            )
        inverse = torch.cholesky_inverse(tril)
        rank = len(columns)
        v = torch.zeros_like(columns)
        for i in range(rank):
            for j in range(rank):
                v[i].addcmul_(inverse[..., i, j, None], columns[j])
        v /= diag
        pull = (projected * grad).unsqueeze(-1)
        grad = grad.unsqueeze(-1)
        grad_diag = -0.5 * (v * columns).sum(0) / diag * grad
        grad_factor = (v.mul_(grad).addcmul_(b, pull, value=-1)).movedim(0, -1)
        return -(columns * pull).sum(0), grad_diag, grad_factor


@in_full_precision
def masked_capacitance_tril(diag: Tensor, factor: Tensor, mask: Tensor) -> Tensor:
    """Cholesky factors of I + U^T diag(d)^-1 U over some of the coordinates only.

    Args:
        diag: Diagonal parts d, shape (*B, K, D).
        factor: Factors U, shape (*B, K, D, r).
        mask: One for the coordinates that count, zero for others, for each of N rows: shape
            (*B, N, D).

    Returns:
        Tensor of shape (*B, N, K, r, r).
    """
    rank, k = factor.shape[-1], factor.shape[-3]
    scaled = (factor / diag.sqrt().unsqueeze(-1)).double()
    columns, mask = scaled.unbind(-1), mask.double()
    lower = []
    for i in range(rank):  # a row at a time: all products at once take r times the memory
        products = torch.stack([columns[i] * column for column in columns[: i + 1]], -2)
        row = (mask @ products.flatten(-3, -2).mT).unflatten(-1, (k, i + 1))
        lower.append(torch.nn.functional.pad(row, (0, rank - 1 - i)))
    if not lower:
        return factor.new_zeros(*mask.shape[:-1], k, 0, 0)
    total = torch.stack(lower, -2)  # (*B, N, K, r, r)
    total = total + total.tril(-1).mT
    identity = torch.eye(rank, dtype=scaled.dtype, device=scaled.device)
    return torch.linalg.cholesky(identity + total).to(factor.dtype)


def log_det(diag: Tensor, tril: Tensor) -> Tensor:
    """Log-determinant of the precision, shape (*B): `tril` is that of `capacitance_tril`."""
    return diag.log().sum(-1) + 2 * half_log_det(tril)


@in_full_precision
def project(b: Tensor, factor: Tensor) -> Tensor:
    """Returns U^T b for b of shape (*S, *B, D): shape (*S, *B, r)."""
    return (b.unsqueeze(-2) @ factor).squeeze(-2)


@in_full_precision
def projections(x: Tensor, loc: Tensor, factor: Tensor, observed: Tensor | None) -> Tensor:
    """Returns U_k^T (x_n - m_k) for all points n and components k.

    Few are computed from differences of points and means. Many are a difference of two products,
    which is computed in float64 where the points' dtype would not be accurate enough.

    Args:
        x: Points, shape (*L, N, D).
        loc: Means, shape (*L, K, D).
        factor: Factors U, shape (*L, K, D, r).
        observed: One for the coordinates that count, zero for others, shape (*L, N, D); by
            default all count.

    Returns:
        Tensor of shape (*L, N, K, r).
    """
    n, k, dim, rank = x.shape[-2], *factor.shape[-3:]
    if rank == 0:
        return x.new_zeros(*x.shape[:-1], k, 0)
    if n == 1 or x.shape[:-2].numel() * n * k * dim <= DIRECT_SIZE or is_traced():
        difference = x.unsqueeze(-2) - loc.unsqueeze(-3)  # (*L, N, K, D)
        if observed is not None:
            difference = difference * observed.unsqueeze(-2)
        return (difference.movedim(-3, -2) @ factor).movedim(-2, -3)
    centre = loc.detach().mean(-2, keepdim=True)
    x, loc = x - centre, loc - centre
    flat = factor.movedim(-3, -2).flatten(-2)  # (*L, D, K r)

    def difference_of_products(x: Tensor, loc: Tensor, flat: Tensor) -> Tensor:
        if observed is None:
            shift = (loc.unsqueeze(-2) @ factor.to(loc.dtype)).flatten(-3).unsqueeze(-2)
            return (x @ flat - shift).unflatten(-1, (k, rank))
        seen = observed.to(x.dtype)
        weighted = (loc.unsqueeze(-1) * factor.to(loc.dtype)).movedim(-3, -2).flatten(-2)
        return ((x * seen) @ flat - seen @ weighted).unflatten(-1, (k, rank))

    if x.dtype == torch.float32:
        with torch.no_grad():
            size = x.square().sum(-1).amax() + loc.square().sum(-1).amax()
            size = size.sqrt() * flat.square().sum(-2).amax().sqrt()
            trouble = size * unit_roundoff(x) * size > TOLERANCE[x.dtype] * dim
        if trouble:
            double = difference_of_products(x.double(), loc.double(), flat.double())
            return double.to(x.dtype)
    return difference_of_products(x, loc, flat)


@in_full_precision
def solve_capacitance(scaled: Tensor, rest: Tensor) -> Tensor:
    """Returns W C^-1 v with C = I + W^T W, computed in float64.

    Args:
        scaled: W, shape (*B, D, r).
        rest: v, shape (*S, *B, r).

    Returns:
        Tensor of shape (*S, *B, D) and of W's dtype.
    """
    scaled64 = scaled.double()
    identity = torch.eye(scaled.shape[-1], dtype=scaled64.dtype, device=scaled.device)
    tril = torch.linalg.cholesky(identity + scaled64.mT @ scaled64)
    solved = torch.cholesky_solve(rest.double().unsqueeze(-1), tril)
    return (scaled64 @ solved).squeeze(-1).to(scaled.dtype)


def solve_right(tril: Tensor, factor: Tensor) -> Tensor:
    """Returns U L^-T for factors U (*B, D, r) and lower triangles L (*B, r, r)."""
    return torch.linalg.solve_triangular(tril.mT, factor, upper=True, left=False)


def draw_centred(diag: Tensor, factor: Tensor, noise: Tensor) -> Tensor:
    """Draws of the normal of mean zero: D^(-1/2) [e1 + W C^-1 (e2 - W^T e1)], W = D^(-1/2) U.

    Applying the covariance to D^(1/2) e1 + U e2 would draw from the same law, but cancels.

    Args:
        diag: Diagonal part D of the precision, shape (*B, D).
        factor: Factor U, shape (*B, D, r).
        noise: Standard normal numbers e1 and e2, shape (*S, *B, D + r).

    Returns:
        Tensor of shape (*S, *B, D).
    """
    scale = diag.rsqrt()
    first, second = noise.split([factor.shape[-2], factor.shape[-1]], -1)
    if factor.shape[-1] == 0:
        return scale * first
    scaled = factor * scale.unsqueeze(-1)
    rest = second - project(first, scaled)
    return scale * (first + solve_capacitance(scaled, rest))


def marginal_variance(diag: Tensor, factor: Tensor) -> Tensor:
    """Diagonal of the covariance, shape (*B, D).

    With the rows u of U, it is 1 / (d_i + |L_i^-1 u_i|^2), where L_i L_i^T is I plus the sum of
    u_j u_j^T / d_j over all other j: sums of what is positive, which do not cancel where U
    dominates. Computed in float64.
    """
    return _variance(diag.double(), factor.double()).to(diag.dtype)


def _variance(diag: Tensor, factor: Tensor) -> Tensor:
    """What `marginal_variance` returns, in the dtype of its arguments."""
    if factor.shape[-1] == 0:
        return (1 / diag).expand(torch.broadcast_shapes(diag.shape, factor.shape[:-1]))
    outer = factor.unsqueeze(-1) * (factor / diag.unsqueeze(-1)).unsqueeze(-2)  # (*B, D, r, r)
    nothing = torch.zeros_like(outer[..., :1, :, :])
    before = torch.cat([nothing, outer[..., :-1, :, :]], -3).cumsum(-3)
    after = torch.cat([outer[..., 1:, :, :], nothing], -3).flip(-3).cumsum(-3).flip(-3)
    identity = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
    tril = torch.linalg.cholesky(identity + before + after)
    z = torch.linalg.solve_triangular(tril, factor.unsqueeze(-1), upper=False).squeeze(-1)
    return 1 / (diag + z.square().sum(-1))


def covariance(diag: Tensor, factor: Tensor) -> Tensor:
    """The covariance matrix, shape (*B, D, D)."""
    dtype, diag, factor = diag.dtype, diag.double(), factor.double()
    half = solve_right(capacitance_tril(diag, factor), factor / diag.unsqueeze(-1))
    product = half @ half.mT
    off_diagonal = product - torch.diag_embed(product.diagonal(dim1=-2, dim2=-1))
    return (torch.diag_embed(_variance(diag, factor)) - off_diagonal).to(dtype)
