"""Draws that are moved from a law to a density, by way of densities in between."""

__all__ = ["anneal", "tempered"]

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..numerics.resampling import systematic

# Halvings by which a power is found.
HALVINGS = 40
# Share of the draws that weights are worth at least; moves between two densities; most of these.
LEAST_SHARE, MOVES, MOST_STEPS = 0.5, 5, 200
# Share of accepted moves, and how fast step sizes follow it.
ACCEPTED, RATE = 0.57, 0.5
# Longest drift of a move, in steps.
FARTHEST = 5.0


def tempered(log_weight: Tensor, least: float, most: float = 1.0) -> float:
    """The largest power at which weights are worth so many draws at least.

    Args:
        log_weight: Logarithms of weights, (n,).
        least: Effective number of draws.
        most: Largest power.
    """

    def worth(power: float) -> float:
        weight = (power * log_weight).softmax(0)
        return float(1 / weight.square().sum())

    if worth(most) >= least:
        return most
    low, high = 0.0, most
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if worth(middle) >= least else (low, middle)
    return low


@torch.no_grad()
def anneal(
    target: Callable[[Tensor], Tensor], start: Callable[[Tensor], Tensor], z: Tensor
) -> Tensor:
    r"""Moves draws of a law to a density.

    Densities in between are :math:`q(z)^{1 - t} p(z)^t`. From one to the next draws are weighted
    and drawn again, such that half of them are left, and moved by steps of Langevin's dynamics
    with Metropolis' correction (MALA) in units of their own spread (Del Moral et al., "Sequential
    Monte Carlo samplers", 2006). Modes with mass keep draws, as none is moved far.

    Args:
        target: Log-densities :math:`\log p` (n,) of points (n, D), up to a constant; NaN and
            infinity count as minus infinity.
        start: Log-densities of the law.
        z: Draws of it, (n, D).

    Returns:
        As many draws.
    """
    count, t, step = len(z), 0.0, 0.5

    def densities(z: Tensor) -> tuple[Tensor, Tensor]:
        p, q = target(z), start(z)
        return torch.where(p.isfinite(), p, -torch.inf), q

    p, q = densities(z)
    if not p.isfinite().any():
        return z
    for _ in range(MOST_STEPS):
        ratio = p - q
        more = tempered(ratio, min(LEAST_SHARE * count, 0.9 * int(p.isfinite().sum())), 1 - t)
        more = max(more, 1e-6)
        chosen = systematic(more * ratio)
        z, p, q, t = z[chosen], p[chosen], q[chosen], min(1.0, t + more)
        scale = z.std(0, correction=0).clamp(min=1e-6)
        for _ in range(MOVES):
            z, p, q, share = _move(densities, z, t, step * scale)
            step *= math.exp(RATE * (share - ACCEPTED))
        if t >= 1:
            break
    return z


def _move(
    densities: Callable[[Tensor], tuple[Tensor, Tensor]], z: Tensor, t: float, step: Tensor
) -> tuple[Tensor, Tensor, Tensor, float]:
    """One step of Langevin's dynamics: draws, their densities, and the share that moved."""

    def slope(z: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            p, q = densities(z)
            mixed = t * torch.where(p.isfinite(), p, 0.0) + (1 - t) * q
            (gradient,) = torch.autograd.grad(mixed.sum(), z)
        gradient = torch.where(gradient.isfinite(), gradient, 0.0)
        # Far out, gradients may be huge: no drift is longer than a few steps.
        length = (0.5 * step * gradient).norm(dim=-1, keepdim=True)
        gradient = gradient * (FARTHEST / length.clamp(min=FARTHEST))
        return p.detach(), q.detach(), gradient, t * p.detach() + (1 - t) * q.detach()

    p, q, gradient, mixed = slope(z)
    forward = z + 0.5 * step.square() * gradient
    new = forward + step * torch.randn_like(z)
    new_p, new_q, new_gradient, new_mixed = slope(new)
    back = new + 0.5 * step.square() * new_gradient
    there = ((new - forward) / step).square().sum(-1)
    here = ((z - back) / step).square().sum(-1)
    log_accept = new_mixed - mixed + 0.5 * (there - here)
    log_accept = torch.where(log_accept.isnan(), -torch.inf, log_accept)
    moved = torch.rand_like(p).log() < log_accept
    return (
        torch.where(moved.unsqueeze(-1), new, z),
        torch.where(moved, new_p, p),
        torch.where(moved, new_q, q),
        float(moved.float().mean()),
    )
