"""Quantiles of mixtures of Student-t laws over one coordinate."""

__all__ = ["student_quantile"]

import math

import torch
from torch import Tensor

from ..numerics.student_cdf import student_tails

# Bisections of the interval of x = asinh(z), which reaches as far as numbers do.
STEPS, REACH = 70, 700.0


@torch.no_grad()
def student_quantile(
    probs: Tensor, log_weight: Tensor, df: Tensor, loc: Tensor, scale: Tensor
) -> Tensor:
    r"""Quantiles of mixtures, by a search for the roots of their distribution functions.

    Args:
        probs: Probabilities from 0 to 1, shape (P,), or (P, E) if they differ between entries.
        log_weight: Unnormalised log-weights, shape (E, K), in float64.
        df: Degrees of freedom, shape (E, K).
        loc: Locations, shape (E, K).
        scale: Scales, shape (E, K).

    Returns:
        Tensor of shape (P, E).
    """
    weight = log_weight.softmax(-1)
    present = weight > 0
    centre = (weight * loc).sum(-1)
    unit = torch.where(present, scale, 0.0).amax(-1)
    probs = probs if probs.dim() == 2 else probs.unsqueeze(-1)
    below = probs <= 0.5
    target = torch.where(below, probs, 1 - probs)
    left = torch.full((len(probs), len(weight)), -REACH, dtype=weight.dtype, device=weight.device)
    right = -left
    for _ in range(STEPS):
        middle = 0.5 * (left + right)
        x = centre + unit * middle.sinh()
        z = (x.unsqueeze(-1) - loc) / scale
        # Of the nearer end, with all its digits.
        z = torch.where(below.unsqueeze(-1), z, -z)
        tail = student_tails(z, df)
        tail = (weight * torch.where(z < 0, tail, 1 - tail)).sum(-1)
        higher = torch.where(below, tail < target, tail > target)
        left = torch.where(higher, middle, left)
        right = torch.where(higher, right, middle)
    x = centre + unit * (0.5 * (left + right)).sinh()
    x = torch.where(probs == 0, -math.inf, x)
    return torch.where(probs == 1, math.inf, x)
