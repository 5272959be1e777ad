r"""Log-densities of normals whose covariance is a diagonal plus a matrix of low rank.

With :math:`\Sigma = \operatorname{diag}(d) + W W^\top`, W of shape (D, r), a point is
:math:`x = m + W z + \sqrt d\, e`, with r standard normal factors z. Given x, these are normal with
covariance :math:`M^{-1}`, :math:`M = I + W^\top \operatorname{diag}(d)^{-1} W = L L^\top`, and
mean :math:`\bar z = M^{-1} W^\top \operatorname{diag}(d)^{-1} b`, b = x - m. Then
:math:`|\Sigma| = |M| \prod_i d_i`, and the quadratic form is, in two ways,

.. math:: b^\top \Sigma^{-1} b
          = \sum_i \frac{(b_i - W_i \bar z)^2}{d_i} + |\bar z|^2
          = \sum_i \frac{b_i^2}{d_i} - |y|^2, \qquad
          y = L^{-1} W^\top \operatorname{diag}(d)^{-1} b .

The first is a sum of what is positive, and accurate however strong the factors are, but takes all
differences of points and means. The second is three matrix products of many points, and cancels.
As for diagonal normals (see `pyromix.numerics.diagonal_density`) it is taken where an error bound
allows it, in the given precision or in float64. No D x D matrix is formed.
"""

__all__ = ["Posterior", "factor_log_prob", "factor_posterior"]

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..core.checks import is_traced
from .diagonal_density import (
    BLOCK_POINTS,
    DIRECT_SIZE,
    LOG_2PI,
    NEGLIGIBLE_NATS,
    TOLERANCE,
    component_log_prob,
    unit_roundoff,
)
from .full_precision import in_full_precision
from .low_rank import capacitance_tril, masked_capacitance_tril, solve_right
from .triangular import half_log_det

# Differences and matrices M of rows with gaps are worked on for this many numbers at once (64 MiB
# of float64). Where there are more of them, the backward pass computes them again.
CHUNK_NUMBERS = 2**23


class Posterior(NamedTuple):
    """What points say of the factors of every component."""

    log_prob: Tensor
    r"""Log-density of the (observed) coordinates, shape (\*L, N, K)."""
    mean: Tensor
    r"""Mean of the factors given the point, shape (\*L, N, K, r), in float64."""
    tril: Tensor
    r"""L, shape (\*L, N or 1, K, r, r), in float64: their covariance is the inverse of L L^T."""


def factor_posterior(
    b: Tensor, diag: Tensor, factor: Tensor, observed: Tensor | None = None
) -> Posterior:
    r"""Density and factors of points, from differences of points and means.

    Args:
        b: Differences x - m, shape (\*L, N, K, D).
        diag: Diagonal parts d of the covariances, shape (\*L, K, D).
        factor: Factors W, shape (\*L, K, D, r).
        observed: One for the coordinates that count, zero for others, shape (\*L, N, D); or one
            row (\*L, 1, D) for all points. By default all count.
    """
    scale = diag.sqrt()
    scaled = factor / scale.unsqueeze(-1)
    u = b / scale.unsqueeze(-3)
    if observed is None:
        tril = _posterior_tril(diag, factor).unsqueeze(-4)
        log_normalizer = -(scale.log() + 0.5 * LOG_2PI).sum(-1).unsqueeze(-2)
    else:
        u = u * observed.unsqueeze(-2)
        tril = _posterior_tril(diag, factor, observed)
        log_normalizer = -(observed @ (scale.log() + 0.5 * LOG_2PI).mT)
    pull = _of_components(u, scaled).double()  # W^T d^-1 b, (*L, N, K, r)
    if tril.shape[-4] == 1:
        # All points are right-hand sides of one equation for every component.
        mean = torch.cholesky_solve(pull.movedim(-3, -1), tril.squeeze(-4)).movedim(-1, -3)
    else:
        mean = torch.cholesky_solve(pull.unsqueeze(-1), tril).squeeze(-1)
    rest = u - _of_components(mean.to(u.dtype), scaled.mT)
    if observed is not None:
        rest = rest * observed.unsqueeze(-2)
    quadratic = rest.square().sum(-1) + mean.square().sum(-1)
    log_prob = log_normalizer - half_log_det(tril) - 0.5 * quadratic
    return Posterior(log_prob.to(b.dtype), mean, tril)


@in_full_precision
def factor_log_prob(
    x: Tensor,
    loc: Tensor,
    diag: Tensor,
    factor: Tensor,
    offset: Tensor,
    observed: Tensor | None = None,
) -> Tensor:
    r"""Offset plus log-density of every component at every point.

    The result is accurate where it matters for the mixture: at every point, for all components
    that contribute to the sum over components. The backward pass keeps O(N K r) numbers.

    Args:
        x: Points, shape (\*L, N, D).
        loc: Means, shape (\*L, K, D), or (\*L, N, K, D) if every point has its own.
        diag: Diagonal parts d of the covariances, shape (\*L, K, D).
        factor: Factors W, shape (\*L, K, D, r).
        offset: Log-weights that are added, shape broadcastable to (\*L, N, K).
        observed: One for the coordinates that count, zero for those to be left out of the
            density, shape (\*L, N, D) and the points' dtype; by default all count.

    Returns:
        Tensor of shape (\*L, N, K).
    """
    own_means = loc.dim() > diag.dim()
    n, k, dim, rank = x.shape[-2], *factor.shape[-3:]
    if rank == 0 and not own_means:
        return component_log_prob(x, loc, diag.sqrt(), offset, observed)
    entries = math.prod(x.shape[:-2])
    offset = offset.expand(*x.shape[:-1], k)
    if n == 1 or is_traced() or entries * n * k * dim <= DIRECT_SIZE:
        return _direct(x, loc, diag, factor, offset, observed)
    if observed is not None and bool((observed == observed[..., :1, :]).all()):
        observed = observed[..., :1, :]  # one pattern for all
    if own_means:
        return _direct_in_blocks(x, loc, diag, factor, offset, observed)
    # Matrices of masked sums are made in float64 anyway.
    dtypes = dict.fromkeys([x.dtype if observed is None else torch.float64, torch.float64])
    operands = {dtype: _Operands.of(loc, diag, factor, dtype) for dtype in dtypes}
    own_matrices = observed is not None and observed.shape[-2] > 1
    width = k * (rank**2 if own_matrices else rank)
    rows = min(BLOCK_POINTS, max(1, CHUNK_NUMBERS // (entries * width)))

    def block(x: Tensor, offset: Tensor, observed: Tensor | None) -> Tensor:
        for dtype, made in operands.items():
            seen = None if observed is None else observed.to(dtype)
            scores, magnitude = _products(made, x.to(dtype), seen)
            scores = scores + offset
            if _is_accurate(scores, magnitude, dim, TOLERANCE[x.dtype]):
                return scores.to(x.dtype)
        return _direct_in_blocks(x, loc, diag, factor, offset, observed)

    return _in_blocks(block, rows, x, offset, observed, keep=entries * n * width)


def _direct(
    x: Tensor,
    loc: Tensor,
    diag: Tensor,
    factor: Tensor,
    offset: Tensor,
    observed: Tensor | None = None,
) -> Tensor:
    """Scores by the differences of all pairs, shape (*L, N, K)."""
    own_means = loc.dim() > diag.dim()
    b = x.unsqueeze(-2) - (loc if own_means else loc.unsqueeze(-3))
    return factor_posterior(b, diag, factor, observed).log_prob + offset


def _direct_in_blocks(
    x: Tensor,
    loc: Tensor,
    diag: Tensor,
    factor: Tensor,
    offset: Tensor,
    observed: Tensor | None = None,
) -> Tensor:
    """What `_direct` returns, for many points, in float64 where that is the points' dtype."""
    n, k, dim, rank = x.shape[-2], *factor.shape[-3:]
    entries = math.prod(x.shape[:-2])
    width = dim if observed is None or observed.shape[-2] == 1 else max(dim, rank**2)
    rows = max(1, CHUNK_NUMBERS // (entries * k * width))
    own_means = loc.dim() > diag.dim()

    def block(
        x: Tensor, offset: Tensor, observed: Tensor | None, own: Tensor | None = None
    ) -> Tensor:
        return _direct(x, loc if own is None else own, diag, factor, offset, observed)

    means = loc if own_means else None
    return _in_blocks(block, rows, x, offset, observed, means, keep=entries * n * k * width)


def _in_blocks(
    function: Callable[..., Tensor],
    rows: int,
    x: Tensor,
    offset: Tensor,
    observed: Tensor | None,
    means: Tensor | None = None,
    *,
    keep: int,
) -> Tensor:
    """A function of blocks of points, of which the backward pass is to keep so many numbers."""
    n = x.shape[-2]
    if keep > CHUNK_NUMBERS and torch.is_grad_enabled():
        function = partial(checkpoint, function, use_reentrant=False, preserve_rng_state=False)
    if n <= rows:
        return function(x, offset, observed, *([] if means is None else [means]))
    # Split, not sliced: the gradient of a slice is as large as the whole, for every block.
    points, offsets = x.split(rows, -2), offset.split(rows, -2)
    parts = []
    one = observed is None or observed.shape[-2] == 1
    seen = [observed] * len(points) if observed is None or one else observed.split(rows, -2)
    own = [] if means is None else [means.split(rows, -3)]
    for part in zip(points, offsets, seen, *own, strict=True):
        parts.append(function(*part))
    return torch.cat(parts, -2)


class _Operands(NamedTuple):
    """What the products are made of, less a common centre of points and means."""

    centre: Tensor
    """Shape (*L, 1, D)."""
    loc: Tensor
    """Means less the centre, shape (*L, K, D)."""
    precision: Tensor
    """1 / d, shape (*L, K, D)."""
    pull: Tensor
    """diag(d)^-1 W, shape (*L, K, D, r)."""
    per_dim: Tensor
    """Minus the logarithm of sqrt(2 pi d), shape (*L, K, D)."""
    diag: Tensor
    factor: Tensor

    @classmethod
    def of(cls, loc: Tensor, diag: Tensor, factor: Tensor, dtype: torch.dtype) -> "_Operands":
        """From means and covariances as `factor_log_prob` takes them."""
        loc, diag, factor = (t.to(dtype) for t in (loc, diag, factor))
        centre = loc.detach().mean(-2, keepdim=True)
        precision = 1 / diag
        per_dim = -0.5 * (diag.log() + LOG_2PI)
        pull = precision.unsqueeze(-1) * factor
        return cls(centre, loc - centre, precision, pull, per_dim, diag, factor)


def _products(operands: _Operands, x: Tensor, observed: Tensor | None) -> tuple[Tensor, Tensor]:
    """Scores (*L, N, K) by matrix products, and the size of the numbers that they are made of."""
    centre, loc, precision, pull, per_dim, diag, factor = operands
    k, rank = factor.shape[-3], factor.shape[-1]
    x = x - centre
    weighted = precision * loc
    norm = weighted * loc
    if observed is None:
        tril = _posterior_tril(diag, factor)
        # L^-1 is taken to the other side, of fewer columns than there are points.
        pull = solve_right(tril, pull.double()).to(x.dtype)
        shift = (loc.unsqueeze(-2) @ pull).flatten(-3).unsqueeze(-2)  # (*L, 1, K r)
        y = (x @ _flat(pull) - shift).unflatten(-1, (k, rank))
        constant, norm = per_dim.sum(-1).unsqueeze(-2), norm.sum(-1).unsqueeze(-2)
        half = half_log_det(tril).unsqueeze(-2)
    else:
        x = x * observed
        tril = _posterior_tril(diag, factor, observed)
        y = x @ _flat(pull) - observed @ _flat(loc.unsqueeze(-1) * pull)
        y = y.unflatten(-1, (k, rank)).to(tril.dtype)
        if tril.shape[-4] == 1:
            y = torch.linalg.solve_triangular(
                tril.squeeze(-4), y.movedim(-3, -1), upper=False
            ).movedim(-1, -3)
        else:
            y = torch.linalg.solve_triangular(tril, y.unsqueeze(-1), upper=False).squeeze(-1)
        constant, norm = observed @ per_dim.mT, observed @ norm.mT
        half = half_log_det(tril)
    squares = x.square() @ precision.mT + norm
    quadratic = squares - 2 * (x @ weighted.mT) - y.square().sum(-1)
    scores = constant - half.to(x.dtype) - 0.5 * quadratic
    magnitude = squares.detach() + constant.detach().abs() + half.detach()
    return scores, magnitude.to(scores.dtype)


@torch.no_grad()
def _is_accurate(scores: Tensor, magnitude: Tensor, dim: int, tolerance: float) -> bool:
    """Whether rounding errors are small wherever a component contributes to the mixture.

    The errors of the D additions are taken as independent. Those of y are at most those of the
    squares times two, as no column of diag(d)^-1/2 W L^-T is longer than one.
    """
    error = magnitude * ((4.0 + 3.0 * math.sqrt(dim)) * unit_roundoff(scores))
    if not bool(error.isfinite().all()):
        return False
    best = (scores - error).amax(-1, keepdim=True)
    relevant = scores + error >= best - NEGLIGIBLE_NATS
    accepted = tolerance * best.abs().clamp(min=1.0)
    return not bool((relevant & (error > accepted)).any())


def _posterior_tril(diag: Tensor, factor: Tensor, observed: Tensor | None = None) -> Tensor:
    """L of the observed coordinates, in float64: (*L, K, r, r), or (*L, N, K, r, r)."""
    diag, factor = diag.double(), factor.double()
    if observed is None:
        return capacitance_tril(diag, factor)
    return masked_capacitance_tril(diag, factor, observed.double())


def _of_components(vectors: Tensor, matrices: Tensor) -> Tensor:
    """Products of vectors (*L, N, K, p) and their components' matrices (*L, K, p, q)."""
    if vectors.shape[-3] == 1:
        # Batches of products with matrices as thin as these are many times slower than sums.
        return (vectors.unsqueeze(-1) * matrices.unsqueeze(-4)).sum(-2)
    return (vectors.movedim(-3, -2) @ matrices).movedim(-2, -3)


def _flat(factor: Tensor) -> Tensor:
    """Factors (*L, K, D, r) side by side, shape (*L, D, K r)."""
    return factor.movedim(-3, -2).flatten(-2)
