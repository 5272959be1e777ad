r"""The standard normal on an interval: probability, draws and moments, in every tail.

Everything is written for intervals that lie, mostly, left of zero; others are mirrored. There

.. math:: \log\Phi(b) - \log\Phi(b - d) = \tfrac12 d (d - 2b)
          + \log\frac{\operatorname{erfcx}(-b / \sqrt2)}{\operatorname{erfcx}((d - b) / \sqrt2)}

has no cancellation for b <= 0, however far out, so that probabilities and draws are described by
the distance d from the nearer end of the interval, and keep their relative accuracy.
"""

__all__ = ["draw_from_interval", "interval_moments", "legendre", "log_interval_probability"]

import math
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

SQRT_HALF = math.sqrt(0.5)
LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)
# An interval is narrow if its density is nearly flat: a few nodes of quadrature are then exact.
NARROW = 0.5
NARROW_NODES = 10
# Beyond the distance at which the density has fallen by exp(-40), there is nothing to integrate.
LOG_RANGE = 40.0
MOMENT_NODES = 48


def log_interval_probability(low: Tensor, high: Tensor) -> Tensor:
    r"""Logarithm of :math:`\Phi(u) - \Phi(l)`, with an error of about 1e-15 of its size.

    It is differentiable, with gradients of zero in infinite ends and where it is minus infinity.

    Args:
        low: Lower ends l, float64, may be minus infinity.
        high: Upper ends u of a shape that broadcasts, may be plus infinity.

    Returns:
        Tensor of the common shape; minus infinity where l >= u.
    """
    return _LogProbability.apply(*torch.broadcast_tensors(low, high))


class _LogProbability(torch.autograd.Function):
    """Its derivatives are the densities at the ends over the probability, as logarithms."""

    @staticmethod
    def forward(ctx: Any, low: Tensor, high: Tensor) -> Tensor:
        result = _log_probability(low, high)
        ctx.save_for_backward(low, high, result)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        low, high, result = ctx.saved_tensors
        possible = result > -math.inf
        slopes = []
        for end in (low, high):
            used = possible & end.isfinite()
            # What is not used must not meet infinity on its way, or zero times it is NaN.
            end, log_p = torch.where(used, end, 0.0), torch.where(used, result, 0.0)
            log_slope = -0.5 * end.square() - LOG_SQRT_2PI - log_p
            slopes.append(grad * torch.where(used, log_slope.exp(), 0.0))
        return -slopes[0], slopes[1]


def _log_probability(low: Tensor, high: Tensor) -> Tensor:
    a, b, _ = _mirror(low, high)
    left = b.clamp(max=0.0)
    tail = _log_left_tail(left) + _log1mexp(_log_ratio(left, left - a))
    around = torch.log1p(-(torch.special.ndtr(a) + torch.special.ndtr(-b)).clamp(max=1.0))
    result = torch.where(b > 0, around, tail)
    width = b - a
    # Where the density hardly changes, differences of logarithms cancel.
    narrow = (width < NARROW) & (width * (a + b).abs() < 2 * NARROW)
    if bool(narrow.any()):
        nodes, weights = legendre(NARROW_NODES, a.device)
        # In two steps: PyTorch before 2.9 takes no mask next to None.
        middle, half = (0.5 * t[narrow].unsqueeze(-1) for t in (a + b, width))
        t = half * nodes
        flat = (torch.exp(-t * (middle + 0.5 * t)) * weights).sum(-1) * half[:, 0]
        result[narrow] = flat.log() - 0.5 * middle[:, 0].square() - LOG_SQRT_2PI
    return torch.where(width > 0, result, -math.inf)


def draw_from_interval(low: Tensor, high: Tensor, uniform: Tensor) -> Tensor:
    r"""Draws from the standard normal between two numbers, by inversion from the nearer tail.

    Args:
        low: Lower ends, float64, may be minus infinity.
        high: Upper ends of the same shape, above the lower ones, may be plus infinity.
        uniform: Uniform numbers in [0, 1] of the same shape.

    Returns:
        Draws of the same shape, within the closed intervals.
    """
    uniform = uniform.clamp(2**-54, 1 - 2**-53)  # infinite ends are never reached
    a, b, mirrored = _mirror(low, high)
    left = b.clamp(max=0.0)
    # Solve log Phi(b) - log Phi(b - d) = target; the left side is convex in d, with second
    # derivative between 0.63 and 1, so that a quadratic is an excellent start.
    whole = _log_ratio(left, left - a)
    target = -torch.log(uniform + (1 - uniform) * torch.exp(-whole))
    slope = _hazard(left)
    d = 2 * target / (slope + (slope.square() + 2 * target).sqrt())
    for _ in range(3):
        d = (d - (_log_ratio(left, d) - target) / _hazard(left - d)).clamp(min=0.0)
    x = left - d
    around = b > 0
    if bool(around.any()):
        a_, b_, q = a[around], b[around], uniform[around]
        below, above = torch.special.ndtr(a_), torch.special.ndtr(-b_)
        mass = 1 - below - above
        p, tail = below + q * mass, above + (1 - q) * mass
        x[around] = torch.where(p < tail, torch.special.ndtri(p), -torch.special.ndtri(tail))
    return torch.where(mirrored, -x, x).clamp(low, high)


def interval_moments(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of the standard normal between two numbers, by Gauss-Legendre.

    Relative errors are about 1e-11, of the mean's distance from the nearer end, too.

    Args:
        low: Lower ends, float64, may be minus infinity.
        high: Upper ends of the same shape, above the lower ones, may be plus infinity.
    """
    peak = torch.zeros_like(low).clamp(low, high)
    reach = 2 * LOG_RANGE / (peak.abs() + (peak.square() + 2 * LOG_RANGE).sqrt())
    # Measured from the peak, offsets keep their accuracy in the far tails.
    start, stop = torch.maximum(low - peak, -reach), torch.minimum(high - peak, reach)
    nodes, weights = legendre(MOMENT_NODES, low.device)
    half = 0.5 * (stop - start).unsqueeze(-1)
    t = start.unsqueeze(-1) + half * (nodes + 1)
    density = torch.exp(-t * (peak.unsqueeze(-1) + 0.5 * t)) * weights
    density = density / density.sum(-1, keepdim=True)
    offset = (density * t).sum(-1, keepdim=True)
    variance = (density * (t - offset).square()).sum(-1)
    return peak + offset.squeeze(-1), variance


def _mirror(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The interval or its mirror image, whichever lies more to the left, and where mirrored."""
    low, high = torch.broadcast_tensors(low, high)
    mirrored = low + high > 0  # NaN, for the whole line, counts as no
    return torch.where(mirrored, -high, low), torch.where(mirrored, -low, high), mirrored


def _log_ratio(b: Tensor, d: Tensor) -> Tensor:
    """Log Phi(b) - log Phi(b - d) for b <= 0 <= d."""
    smooth = torch.special.erfcx(-SQRT_HALF * b) / torch.special.erfcx(SQRT_HALF * (d - b))
    return 0.5 * d * (d - 2 * b) + smooth.log()


def _log_left_tail(b: Tensor) -> Tensor:
    """Log Phi(b) for b <= 0."""
    return torch.log(0.5 * torch.special.erfcx(-SQRT_HALF * b)) - 0.5 * b.square()


def _hazard(b: Tensor) -> Tensor:
    """Derivative of log Phi at b <= 0."""
    return math.sqrt(2 / math.pi) / torch.special.erfcx(-SQRT_HALF * b)


def _log1mexp(x: Tensor) -> Tensor:
    """Log(1 - exp(-x)) for x >= 0."""
    return torch.where(x > 0.7, torch.log1p(-torch.exp(-x)), torch.log(-torch.expm1(-x)))


@cache
def _numpy_legendre(count: int) -> tuple[np.ndarray, np.ndarray]:
    return np.polynomial.legendre.leggauss(count)


def legendre(count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Nodes and weights of Gauss-Legendre quadrature on [-1, 1]."""
    nodes, weights = _numpy_legendre(count)
    return torch.as_tensor(nodes, device=device), torch.as_tensor(weights, device=device)
