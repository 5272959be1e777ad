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
    "solve_right",
]

from typing import Any

import torch
from torch import Tensor

from ..core.checks import is_traced
from .diagonal_density import DIRECT_SIZE, TOLERANCE, unit_roundoff
from .triangular import half_log_det

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

    Batches of products of matrices as thin as these are many times slower than sums.
    """
    columns = columns.contiguous()
    rank = len(columns)
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


def masked_capacitance_tril(diag: Tensor, factor: Tensor, mask: Tensor) -> Tensor:
    """The same over the coordinates in a mask (*B, N, D), for every row: (*B, N, K, r, r)."""
    rank, k = factor.shape[-1], factor.shape[-3]
    scaled = (factor / diag.sqrt().unsqueeze(-1)).double()
    outer = scaled.unsqueeze(-1) * scaled.unsqueeze(-2)  # (*B, K, D, r, r)
    flat = outer.movedim(-3, -4).flatten(-3)  # (*B, D, K r r)
    total = (mask.double() @ flat).unflatten(-1, (k, rank, rank))
    identity = torch.eye(rank, dtype=scaled.dtype, device=scaled.device)
    return torch.linalg.cholesky(identity + total).to(factor.dtype)


def log_det(diag: Tensor, tril: Tensor) -> Tensor:
    """Log-determinant of the precision."""
    return diag.log().sum(-1) + 2 * half_log_det(tril)


def project(b: Tensor, factor: Tensor) -> Tensor:
    """U^T b for b of shape (*S, *B, D): shape (*S, *B, r)."""
    return (b.unsqueeze(-2) @ factor).squeeze(-2)


def projections(x: Tensor, loc: Tensor, factor: Tensor, observed: Tensor | None) -> Tensor:
    """U_k^T (x_n - m_k) over the observed coordinates, shape (*L, N, K, r).

    As a difference of two products where that is accurate enough in the points' dtype, which is
    rounded in float64 otherwise; as a product with the difference where that is small.
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

    with torch.autocast(x.device.type, enabled=False):
        if x.dtype == torch.float32:
            with torch.no_grad():
                size = x.square().sum(-1).amax() + loc.square().sum(-1).amax()
                size = size.sqrt() * flat.square().sum(-2).amax().sqrt()
                trouble = size * unit_roundoff(x) * size > TOLERANCE[x.dtype] * dim
            if trouble:
                double = difference_of_products(x.double(), loc.double(), flat.double())
                return double.to(x.dtype)
        return difference_of_products(x, loc, flat)


def _spread(scaled: Tensor, rest: Tensor) -> Tensor:
    """W C^-1 v with C = I + W^T W, for W of shape (*B, D, r) and v of (*S, *B, r), in float64."""
    scaled64 = scaled.double()
    identity = torch.eye(scaled.shape[-1], dtype=scaled64.dtype, device=scaled.device)
    tril = torch.linalg.cholesky(identity + scaled64.mT @ scaled64)
    solved = torch.cholesky_solve(rest.double().unsqueeze(-1), tril)
    return (scaled64 @ solved).squeeze(-1).to(scaled.dtype)


def solve_right(tril: Tensor, factor: Tensor) -> Tensor:
    """U L^-T."""
    return torch.linalg.solve_triangular(tril.mT, factor, upper=True, left=False)


def draw_centred(diag: Tensor, factor: Tensor, noise: Tensor) -> Tensor:
    """Draws of the centred law: D^(-1/2) [e1 + W C^-1 (e2 - W^T e1)], W = D^(-1/2) U.

    Applying the covariance to D^(1/2) e1 + U e2 would draw from the same law, but cancels. The
    noise (*S, *B, D + r) holds e1 and e2.
    """
    scale = diag.rsqrt()
    first, second = noise.split([factor.shape[-2], factor.shape[-1]], -1)
    if factor.shape[-1] == 0:
        return scale * first
    scaled = factor * scale.unsqueeze(-1)
    rest = second - project(first, scaled)
    return scale * (first + _spread(scaled, rest))


def marginal_variance(diag: Tensor, factor: Tensor) -> Tensor:
    """Diagonal of the covariance, which cancels where U dominates: in float64."""
    diag64, factor64 = diag.double(), factor.double()
    half = solve_right(capacitance_tril(diag64, factor64), factor64 / diag64.unsqueeze(-1))
    return (1 / diag64 - half.square().sum(-1)).to(diag.dtype)


def covariance(diag: Tensor, factor: Tensor) -> Tensor:
    """The covariance (*B, D, D), which cancels where U dominates: in float64."""
    diag64, factor64 = diag.double(), factor.double()
    half = solve_right(capacitance_tril(diag64, factor64), factor64 / diag64.unsqueeze(-1))
    return (torch.diag_embed(1 / diag64) - half @ half.mT).to(diag.dtype)
