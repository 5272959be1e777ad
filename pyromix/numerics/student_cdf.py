r"""The distribution function of Student's t, with gradients in its argument and in df.

For :math:`t \ge 1` the upper tail is

.. math::
    1 - T_\nu(t) = p_\nu(t) \Big(1 + \frac{t^2}\nu\Big)
    \int_0^\infty \frac{e^{-w} \, dw}{\sqrt{t^2 + \nu (1 - e^{-2 w / \nu})}} ,

Mills' ratio if :math:`\nu` is infinite, and nearer to the middle one half less the integral of the
density :math:`p_\nu` from zero to t. Gauss-Legendre rules give ten digits of both, relative to the
tail, however small. Derivatives in :math:`\nu` are those of the integrands. PyTorch has neither
the incomplete beta function nor its derivatives.
"""

__all__ = ["student_tails"]

import math
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .student_density import log_gamma_ratio

# Nodes of the rules. The tail's has w = -POWER log x, which makes both ends smooth.
NUM_NODES = 32
POWER = 4.0

# Integrands are computed for this many numbers at once.
BLOCK_NUMBERS = 2**16

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


def student_tails(t: Tensor, df: Tensor) -> Tensor:
    r"""The probability of the tail beyond :math:`|t|`, on one side, of Student's t.

    Its gradient is that of :math:`1 - T_\nu(|t|)`, once differentiable in t and df.

    Args:
        t: Arguments, in float64.
        df: Degrees of freedom, positive or infinite, of a shape that broadcasts with it.

    Returns:
        Tensor of the common shape, relative to the tail accurate to ten digits.
    """
    t, df = torch.broadcast_tensors(t, df)
    tail: Tensor = _Tails.apply(t, df)
    return tail


class _Tails(torch.autograd.Function):
    """The tails, with their derivatives kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, t: Tensor, df: Tensor) -> Tensor:
        shape = t.shape
        size, df = t.detach().abs().flatten(), df.detach().flatten()
        tail, slope = torch.empty_like(size), torch.empty_like(size)
        far = size >= 1
        for rows, function in ((far, _beyond), (~far, _within)):
            for index in rows.nonzero().squeeze(-1).split(BLOCK_NUMBERS):
                tail[index], slope[index] = function(size[index], df[index])
        ctx.save_for_backward(t, df.reshape(shape), slope.reshape(shape))
        return tail.reshape(shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        t, df, slope = ctx.saved_tensors
        density = _log_density(t, df)[0].exp()
        return -grad * density * t.sign(), grad * slope


def _log_density(t: Tensor, df: Tensor) -> tuple[Tensor, Tensor]:
    """Log-density of Student's t, and its derivative in df."""
    infinite = df.isinf()
    nu = torch.where(infinite, 1.0, df)
    with torch.enable_grad():
        leaf = nu.detach().requires_grad_()
        constant = log_gamma_ratio(leaf, 1)
        (slope,) = torch.autograd.grad(constant.sum(), leaf)
    ratio = t.square() / nu
    stretched = torch.log1p(ratio)
    log_density = constant.detach() - HALF_LOG_2PI - 0.5 * (nu + 1) * stretched
    # -(nu + 1) / 2 log(1 + q / nu), with 1 / (1 + 1 / ratio) in place of ratio / (1 + ratio).
    share = ratio / (1 + ratio)
    slope = slope - 0.5 * stretched + 0.5 * (1 + 1 / nu) * share
    normal = -0.5 * t.square() - HALF_LOG_2PI
    return torch.where(infinite, normal, log_density), torch.where(infinite, 0.0, slope)


def _beyond(t: Tensor, df: Tensor) -> tuple[Tensor, Tensor]:
    """Tails (n,) beyond t >= 1, and their derivatives in df."""
    nodes, weights = _rule(t)
    log_density, slope = _log_density(t, df)
    infinite = df.isinf()
    nu = torch.where(infinite, 1.0, df)
    # With x = e^(-w / p): e^-w dw = p x^(p - 1) dx, and e^(-2 w / nu) = x^(2 p / nu).
    log_power = 2 * POWER * nodes.log()  # (m,), is -2 w
    exponent = log_power / nu.unsqueeze(-1)  # (n, m)
    rest = -nu.unsqueeze(-1) * torch.expm1(exponent)
    rest = torch.where(infinite.unsqueeze(-1), -log_power, rest)
    under = t.square().unsqueeze(-1) + rest
    root = under.rsqrt()
    measure = weights * POWER * nodes ** (POWER - 1)
    integral = root @ measure
    # Derivative of the rest: 1 - e^y + y e^y with y = -2 w / nu, by a series where it cancels.
    change = torch.where(
        exponent.abs() < 1e-4,
        exponent.square() * (0.5 + exponent / 3),
        -torch.expm1(exponent) + exponent * exponent.exp(),
    )
    of_integral = -0.5 * (root * change / under) @ measure
    stretch = 1 + t.square() / nu
    front = torch.where(infinite, log_density.exp(), log_density.exp() * stretch)
    tail = front * integral
    of_front = slope - t.square() / (nu.square() * stretch)
    derivative = tail * of_front + front * of_integral
    return tail, torch.where(infinite, 0.0, derivative)


def _within(t: Tensor, df: Tensor) -> tuple[Tensor, Tensor]:
    """Tails (n,) beyond 0 <= t < 1, and their derivatives in df."""
    nodes, weights = _rule(t)
    log_density, slope = _log_density(t.unsqueeze(-1) * nodes, df.unsqueeze(-1))
    density = log_density.exp()
    return 0.5 - t * (density @ weights), -t * ((density * slope) @ weights)


def _rule(like: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes and weights of a rule on (0, 1), on a tensor's device."""
    return tuple(torch.from_numpy(part).to(like) for part in _gauss_legendre())  # type: ignore[return-value]


@lru_cache(maxsize=1)
def _gauss_legendre() -> tuple[Any, Any]:
    nodes, weights = np.polynomial.legendre.leggauss(NUM_NODES)
    return 0.5 * (nodes + 1), 0.5 * weights
