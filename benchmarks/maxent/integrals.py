"""Integrals over a density on a line or in a box, and the multipliers that give it moments."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Generator, Tensor


def nodes(breaks: Sequence[float], count: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights of Gauss and Legendre's rule on every interval between breaks."""
    x, w = (torch.from_numpy(part) for part in np.polynomial.legendre.leggauss(count))
    halves = [((b - a) / 2, (a + b) / 2) for a, b in pairwise(breaks)]
    return torch.cat([h * x + m for h, m in halves]), torch.cat([h * w for h, _ in halves])


def moments(t: Tensor, log_weights: Tensor, multipliers: Tensor) -> tuple[float, Tensor, Tensor]:
    """Log Z, and mean and covariance of statistics t (N, m), under exp(-lambda . T)."""
    scores = log_weights - t @ multipliers
    log_normalizer = scores.logsumexp(0)
    p = (scores - log_normalizer).exp()
    mean = p @ t
    centered = t - mean
    return float(log_normalizer), mean, (centered.mT * p) @ centered


def minimize_dual(t: Tensor, log_weights: Tensor, targets: Tensor, start: Tensor) -> Tensor:
    """Multipliers for targets, by Newton's method with halved steps."""

    def dual(multipliers: Tensor) -> float:
        return moments(t, log_weights, multipliers)[0] + float(multipliers @ targets)

    multipliers = start
    for _ in range(200):
        _, mean, covariance = moments(t, log_weights, multipliers)
        # Statistics may be of very different sizes.
        unit = covariance.diagonal().sqrt()
        step = torch.linalg.solve(covariance / unit.outer(unit), (mean - targets) / unit) / unit
        decrement = float(step @ covariance @ step)
        if decrement < 1e-22:
            return multipliers
        size = 1.0
        while dual(multipliers + size * step) > dual(multipliers) and size > 1e-8:
            size /= 2
        multipliers = multipliers + size * step
    raise RuntimeError(f"Newton's method has not converged: decrement {decrement:.1e}.")


def draw_on_line(x: Tensor, log_density: Tensor) -> Callable[[int, int], Tensor]:
    """Draws of a density on a fine, even grid, by the inverse of its distribution function."""
    density = log_density.exp()
    steps = (density[1:] + density[:-1]) / 2 * (x[1:] - x[:-1])
    cdf = torch.cat([x.new_zeros(1), steps.cumsum(0)])
    cdf = cdf / cdf[-1]

    def draw(num: int, seed: int) -> Tensor:
        u = torch.rand(num, dtype=x.dtype, generator=Generator().manual_seed(seed))
        return torch.from_numpy(np.interp(u.numpy(), cdf.numpy(), x.numpy())).unsqueeze(-1)

    return draw
