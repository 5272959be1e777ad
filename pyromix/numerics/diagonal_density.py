r"""Log-densities of many diagonal normals at many points, fast and to full accuracy.

Every component's log-density at every point,

.. math::
    S_{nk} = -\tfrac12 \sum_d \Big(\frac{x_{nd} - m_{kd}}{s_{kd}}\Big)^2
             - \sum_d \log s_{kd} - \tfrac D2 \log 2\pi ,

is the quantity that every mixture here is made of. Written as above it costs an intermediate of
shape (N, K, D). Multiplied out, it is two matrix products,

.. math::
    S = c_k + X (m / s^2)^\top - \tfrac12 X^2 (1 / s^2)^\top ,

which are faster by a factor of 10 to 100 but cancel: their rounding error grows with
:math:`x^2/s^2`, the density only with :math:`(x - m)^2 / s^2`. Subtracting a common centre from
the points and the means helps data far from the origin, but not components far from each other.
Hence a ladder, each rung taken only if an error bound computed from the operands fails the one
before: products in the given precision, products in float64, and direct differences for the
remaining pairs of point and component.
"""

__all__ = ["component_log_prob", "log_sum_exp", "unit_roundoff"]

import math
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..core.checks import is_traced
from .full_precision import in_full_precision

LOG_2PI = math.log(2 * math.pi)

# Up to this many differences x - m the broadcast intermediate fits the cache, and is faster.
DIRECT_SIZE = 2**17

# Points that are worked on together. The backward pass sums over points, and cancels: short sums
# in float32 keep its error small, and blocks fit the cache.
BLOCK_POINTS = 2**13

# Accepted error |a - b| / max(1, |b|) of a mixture's log-density, as bounded a priori.
TOLERANCE = {torch.float32: 3e-5, torch.float64: 1e-9}

# A component this many nats below the best one adds less than 2e-9 to the log-density.
NEGLIGIBLE_NATS = 20.0

# With this few scores, time goes into calls rather than into arithmetic.
SMALL_SCORES = 2**14

# Direct differences are taken for this many numbers at once (64 MiB of float64).
CHUNK_NUMBERS = 2**23


@in_full_precision
def component_log_prob(
    x: Tensor, loc: Tensor, scale: Tensor, offset: Tensor, observed: Tensor | None = None
) -> Tensor:
    r"""Offset plus log-density of every diagonal normal at every point.

    The result is accurate where it matters for the mixture: at every point, for all components
    that contribute to the sum over components. Autocasting is switched off inside. While traced
    (by `torch.compile`, `vmap` or the JIT), the form with an intermediate of shape (N, K, D) is
    taken: which other would do depends on values.

    Args:
        x: Points, shape (\*L, N, D).
        loc: Means, shape (\*L, K, D).
        scale: Standard deviations, shape (\*L, K, D).
        offset: Log-weights that are added, shape broadcastable to (\*L, N, K).
        observed: One for the coordinates that count, zero for those to be left out of the
            density, shape (\*L, N, D) and the points' dtype; by default all count.

    Returns:
        Tensor of shape (\*L, N, K).
    """
    n, k, dim = x.shape[-2], loc.shape[-2], x.shape[-1]
    size = math.prod(x.shape[:-2]) * n * k * dim
    if n == 1 or size <= DIRECT_SIZE or is_traced():
        return _direct(x, loc, scale, offset, observed)
    if n > BLOCK_POINTS:
        # Split, not sliced: the gradient of a slice is as large as the whole, for every block.
        offset = offset.expand(*x.shape[:-1], k)
        points, offsets = (t.split(BLOCK_POINTS, -2) for t in (x, offset))
        seen = [None] * len(points) if observed is None else observed.split(BLOCK_POINTS, -2)
        parts = [
            component_log_prob(part, loc, scale, *rest)
            for part, *rest in zip(points, offsets, seen, strict=True)
        ]
        return torch.cat(parts, -2)
    given: Any = (x, loc, scale, offset, observed)
    tolerance = TOLERANCE[x.dtype]
    operands = _Operands.of(x, loc, scale, observed)
    scores = _products(operands, offset)
    trouble = _trouble(scores, operands, tolerance)
    if trouble is not None and x.dtype != torch.float64:
        x64, loc64, scale64, offset64, observed64 = given = tuple(
            None if t is None else t.double() for t in given
        )
        operands = _Operands.of(x64, loc64, scale64, observed64)
        scores = _products(operands, offset64)
        trouble = _trouble(scores, operands, tolerance)
    if trouble is not None:
        scores = _refine(scores, trouble, *given)
    return scores.to(x.dtype)


def log_sum_exp(scores: Tensor) -> Tensor:
    """Sums probabilities over the last dimension in log space, as `torch.logsumexp` does.

    Terms below epsilon^4 of the largest are dropped (2e-28 in float32). The smallest
    responsibilities would be denormal numbers, with which processors compute up to a hundred
    times slower, and the backward pass multiplies matrices of them.

    Args:
        scores: Log-probabilities, shape (*L, K).

    Returns:
        Tensor of shape (*L).
    """
    if scores.numel() <= SMALL_SCORES:
        return torch.logsumexp(scores, -1)
    detached = scores.detach()
    floor = detached.amax(-1, keepdim=True) + 4 * math.log(torch.finfo(scores.dtype).eps)
    return torch.logsumexp(scores.masked_fill(detached < floor, -math.inf), -1)


def _direct(
    x: Tensor, loc: Tensor, scale: Tensor, offset: Tensor, observed: Tensor | None = None
) -> Tensor:
    """Scores by the differences of all pairs, shape (*L, N, K)."""
    standardized = (x.unsqueeze(-2) - loc.unsqueeze(-3)) / scale.unsqueeze(-3)  # (*L, N, K, D)
    if observed is not None:
        standardized = standardized * observed.unsqueeze(-2)
    constant = _log_normalizer(scale, observed) + offset
    return torch.add(constant, standardized.square().sum(-1), alpha=-0.5)


def _log_normalizer(scale: Tensor, observed: Tensor | None = None) -> Tensor:
    """The part of the scores that no difference enters, shape (*L, 1 or N, K)."""
    return -_total(scale.log() + 0.5 * LOG_2PI, observed)


def _total(per_dim: Tensor, observed: Tensor | None) -> Tensor:
    """Sums (*L, K, D) over the dimensions that were observed: shape (*L, 1 or N, K)."""
    return per_dim.sum(-1).unsqueeze(-2) if observed is None else observed @ per_dim.mT


class _Operands(NamedTuple):
    """What the products are made of: points and means less a common centre."""

    x: Tensor
    """Shape (*L, N, D), zero where not observed."""
    square: Tensor
    """Squares of these."""
    loc: Tensor
    """Shape (*L, K, D)."""
    precision: Tensor
    """1 / s^2, shape (*L, K, D)."""
    loc_norm: Tensor
    """Squared means in units of s, shape (*L, 1 or N, K)."""
    log_normalizer: Tensor
    """The part of the scores that no difference enters, shape (*L, 1 or N, K)."""
    log_scale: Tensor
    """Sum of |log s|, shape (*L, 1, K)."""

    @classmethod
    def of(cls, x: Tensor, loc: Tensor, scale: Tensor, observed: Tensor | None) -> "_Operands":
        """From points, means and standard deviations as `component_log_prob` takes them."""
        centre = loc.detach().mean(-2, keepdim=True)
        x, loc = x - centre, loc - centre
        if observed is not None:
            x = x * observed
        precision = scale.square().reciprocal()
        loc_norm = _total(loc.square() * precision, observed)
        log_scale = scale.detach().log().abs().sum(-1).unsqueeze(-2)
        constant = _log_normalizer(scale, observed)
        return cls(x, x.square(), loc, precision, loc_norm, constant, log_scale)


def _products(operands: _Operands, offset: Tensor) -> Tensor:
    """Scores by two matrix products, shape (*L, N, K)."""
    x, square, loc, precision, loc_norm, log_normalizer, _ = operands
    constant, weighted = log_normalizer - 0.5 * loc_norm + offset, loc * precision
    if x.dim() == 2:  # sums within the products: they take as long where D is small
        scores = torch.addmm(constant, x, weighted.mT)
        return torch.addmm(scores, square, precision.mT, alpha=-0.5)
    return constant + x @ weighted.mT - 0.5 * (square @ precision.mT)


@torch.no_grad()
def _rounding_error(operands: _Operands, *, of_rows: bool = False) -> Tensor:
    """A bound of the error of `_products`, shape (*L, N, K).

    Args:
        operands: What they are made of.
        of_rows: Whether to bound the errors at a point by one number, shape (*L, N, 1).
    """
    x, square, _, precision, loc_norm, _, log_scale = operands
    if of_rows:
        precision = precision.amax(-2, keepdim=True)
        loc_norm = loc_norm.amax(-1, keepdim=True)
        log_scale = log_scale.amax(-1, keepdim=True)
    # |x m / s^2| <= (x^2 + m^2) / 2 s^2 bounds the cross term by the other two. The errors of
    # the D additions are taken as independent.
    magnitude = square @ precision.mT + loc_norm + log_scale
    return magnitude * ((2.0 + math.sqrt(x.shape[-1])) * unit_roundoff(x))


@torch.no_grad()
def _trouble(scores: Tensor, operands: _Operands, tolerance: float) -> Tensor | None:
    """Pairs whose rounding error may spoil the mixture's log-density, or None."""
    # Nearly always all pairs are good enough, which these see in a fraction of what follows. Where
    # the products overflowed, comparisons are false.
    bound = tolerance * scores.amax(-1, keepdim=True).abs().clamp(min=1.0)
    finite = bool(bound.amax().isfinite())
    if finite and bool((_rounding_error(operands, of_rows=True) <= bound).all()):
        return None
    error = _rounding_error(operands)
    if finite and bool((error <= bound).all()):
        return None
    # Where the products overflowed, nothing is known.
    error = error.nan_to_num(math.inf, math.inf)
    known = error.isfinite() & scores.isfinite()
    # The mixture's log-density is at most log K above the largest score: close enough here.
    best = torch.where(known, scores - error, -math.inf).amax(-1, keepdim=True)
    relevant = ~known | (scores + error >= best - NEGLIGIBLE_NATS)
    accepted = tolerance * best.abs().nan_to_num(posinf=0.0).clamp(min=1.0)
    trouble = relevant & ~(error <= accepted)
    return trouble if bool(trouble.any()) else None


def _refine(
    scores: Tensor,
    pairs: Tensor,
    x: Tensor,
    loc: Tensor,
    scale: Tensor,
    offset: Tensor,
    observed: Tensor | None = None,
) -> Tensor:
    """Replaces the scores of some pairs by direct differences."""
    index = pairs.nonzero(as_tuple=True)  # (*L, N, K) indices
    batch, n, k = index[:-2], index[-2], index[-1]
    count = n.shape[0]
    rows = max(1, CHUNK_NUMBERS // x.shape[-1])
    constant = _log_normalizer(scale, observed) + offset

    def direct(start: int) -> Tensor:
        part = slice(start, start + rows)
        at = tuple(i[part] for i in batch)
        component = (*at, k[part])
        difference = (x[(*at, n[part])] - loc[component]) / scale[component]
        if observed is not None:
            difference = difference * observed[(*at, n[part])]
        return -0.5 * difference.square().sum(-1)

    # Checkpointing keeps the memory of the backward pass at one chunk.
    again = partial(checkpoint, direct, use_reentrant=False, preserve_rng_state=False)
    quadratic = torch.cat([again(start) for start in range(0, count, rows)])
    return scores.index_put(index, quadratic + constant.expand_as(scores)[index])


def unit_roundoff(x: Tensor) -> float:
    """Relative error of one product in a matrix product of this device and dtype."""
    if x.dtype == torch.float32:
        precision = torch.get_float32_matmul_precision()
        if precision == "medium":
            return 2.0**-8  # bfloat16
        if precision == "high" and x.device.type == "cuda":
            return 2.0**-11  # TensorFloat-32
    return torch.finfo(x.dtype).eps / 2
