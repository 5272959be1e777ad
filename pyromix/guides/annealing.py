"""Draws that are moved from a law to a density, by way of densities in between."""

__all__ = ["Density", "anneal", "value_and_slope"]

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..numerics.resampling import systematic, tempered

Density = Callable[[Tensor], Tensor]

# Share of the draws that weights are worth at least; moves between two densities; most of these.
LEAST_SHARE, MOVES, MOST_STEPS = 0.5, 5, 200
# Smallest step of the power: priors may be wider than posteriors by many orders of magnitude.
LEAST_POWER = 1e-15
# Share of accepted moves, and how fast step sizes follow it.
ACCEPTED, RATE = 0.57, 0.5
# Longest drift of a move, in steps.
FARTHEST = 5.0


@torch.no_grad()
def anneal(target: Density, start: Density, z: Tensor) -> Tensor:
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
    points = _Points.at(z, target, start)
    if not points.target.isfinite().any():
        return z
    for _ in range(MOST_STEPS):
        ratio = points.target - points.start
        least = min(LEAST_SHARE * count, 0.9 * int(points.target.isfinite().sum()))
        more = max(tempered(ratio, least, 1 - t), LEAST_POWER)
        points, t = points.chosen(systematic(more * ratio)), min(1.0, t + more)
        scale = points.z.std(0, correction=0).clamp(min=1e-6)
        for _ in range(MOVES):
            points, share = _move(points, target, start, t, step * scale)
            step *= math.exp(RATE * (share - ACCEPTED))
        if t >= 1:
            break
    return points.z


class _Points(NamedTuple):
    """Draws, and what both laws say there."""

    z: Tensor
    """Shape (n, D)."""
    target: Tensor
    """Log-densities, (n,)."""
    start: Tensor
    """Log-densities, (n,)."""
    target_slope: Tensor
    """Gradients of the first, (n, D); zero where these are not finite."""
    start_slope: Tensor
    """Gradients of the second, (n, D)."""

    @classmethod
    def at(cls, z: Tensor, target: Density, start: Density) -> "_Points":
        """What both laws say at points."""
        value, slope = value_and_slope(target, z)
        start_value, start_slope = value_and_slope(start, z)
        return cls(z, value, start_value, slope, start_slope)

    def chosen(self, index: Tensor) -> "_Points":
        """Some of the points."""
        return _Points(*(part[index] for part in self))

    def where(self, moved: Tensor, new: "_Points") -> "_Points":
        """New points where they are taken."""
        pairs = zip(new, self, strict=True)
        return _Points(
            *(torch.where(moved if a.dim() == 1 else moved[:, None], a, b) for a, b in pairs)
        )

    def tempered(self, t: float, step: Tensor) -> tuple[Tensor, Tensor]:
        """Log-densities in between, and what points drift in a step."""
        value = t * self.target + (1 - t) * self.start
        drift = 0.5 * step.square() * (t * self.target_slope + (1 - t) * self.start_slope)
        # Far out, gradients may be huge: no drift is longer than a few steps.
        length = (drift / step).norm(dim=-1, keepdim=True)
        return value, drift * (FARTHEST / length.clamp(min=FARTHEST))


def value_and_slope(density: Density, z: Tensor) -> tuple[Tensor, Tensor]:
    """Log-densities (n,) of points (n, D), and their gradients (n, D).

    Where one of these is not finite, the point counts as impossible, with a gradient of zero.

    Args:
        density: Log-densities of points.
        z: The points.
    """
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        value = density(z)
        (slope,) = torch.autograd.grad(value.sum(), z)
    fine = value.isfinite() & slope.isfinite().all(-1)
    return (
        torch.where(fine, value.detach(), -torch.inf),
        torch.where(fine.unsqueeze(-1), slope, 0.0),
    )


def _move(
    points: _Points, target: Density, start: Density, t: float, step: Tensor
) -> tuple[_Points, float]:
    """One step of Langevin's dynamics, and the share of points that moved."""
    value, drift = points.tempered(t, step)
    noise = torch.randn_like(drift)
    new = _Points.at(points.z + drift + step * noise, target, start)
    new_value, new_drift = new.tempered(t, step)
    back = (points.z - new.z - new_drift) / step
    log_accept = new_value - value + 0.5 * (noise.square() - back.square()).sum(-1)
    log_accept = torch.where(log_accept.isnan(), -torch.inf, log_accept)
    moved = torch.rand_like(value).log() < log_accept
    return points.where(moved, new), float(moved.float().mean())
