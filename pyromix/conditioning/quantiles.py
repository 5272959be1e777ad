"""Quantiles of mixtures of normals, each restricted to an interval."""

__all__ = ["check_probs", "mixture_quantile"]

import math

import torch
from torch import Tensor

from .truncated.interval import LOG_SQRT_2PI, log_interval_probability

# Steps of Newton's method and of bisection take turns: this many halve a bracket by 2^-100.
MAX_STEPS = 200
# Numbers that are worked on at once.
BLOCK_NUMBERS = 2**22


def check_probs(probs: object, device: torch.device) -> Tensor:
    """Probabilities that quantiles are asked for, in float64.

    Raises:
        ValueError: If they are no numbers from zero to one.
    """
    try:
        checked = torch.as_tensor(probs, dtype=torch.float64, device=device).detach()
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(
            f"Expected probs to be numbers from 0 to 1, got {type(probs).__name__}."
        ) from None
    if not bool(((checked >= 0) & (checked <= 1)).all()):
        raise ValueError(f"Expected probs from 0 to 1, got {checked.flatten()[:10].tolist()}.")
    return checked


@torch.no_grad()
def mixture_quantile(
    probs: Tensor, log_weight: Tensor, loc: Tensor, scale: Tensor, low: Tensor, high: Tensor
) -> Tensor:
    r"""The x with :math:`\sum_k w_k P(X_k \le x) = p`, X_k normal between two bounds.

    All in float64. Tails keep their relative accuracy: the nearer one is solved for.

    Args:
        probs: Probabilities p, shape (P,), or (P, E) if they differ between entries.
        log_weight: Log-weights of the components, shape (E, K), not all minus infinity; they
            need not be normalised.
        loc: Means before the restriction, shape (E, K).
        scale: Standard deviations before the restriction, shape (E, K); zero for a constant.
        low: Lower bounds, shape (E, K), may be minus infinity.
        high: Upper bounds, shape (E, K), may be infinity.

    Returns:
        Tensor of shape (P, E).
    """
    size = max(1, BLOCK_NUMBERS // max(1, len(probs) * loc.shape[-1]))
    tensors = (log_weight, loc, scale.clamp(min=torch.finfo(scale.dtype).tiny), low, high)
    blocks = zip(*(t.split(size) for t in tensors), strict=True)
    probs = probs if probs.dim() == 2 else probs.unsqueeze(-1).expand(-1, len(loc))
    parts = zip(probs.split(size, -1), blocks, strict=True)
    return torch.cat([_solve(p, *block) for p, block in parts], -1)


def _solve(
    probs: Tensor, log_weight: Tensor, loc: Tensor, scale: Tensor, low: Tensor, high: Tensor
) -> Tensor:
    """Of some entries: `probs` and the result have shape (P, E)."""
    a, b = (low - loc) / scale, (high - loc) / scale
    whole = log_interval_probability(a, b)
    log_weight = torch.where(whole > -math.inf, log_weight, -math.inf)
    possible = log_weight > -math.inf
    log_share = torch.where(possible, log_weight.log_softmax(-1) - whole, -math.inf)
    # As 2 Phi(z) <= exp(-z^2 / 2), no component has its quantile outside of these ends.
    ends = []
    for p, sign, bound, outside in ((probs, -1, a, math.inf), (1 - probs, 1, b, -math.inf)):
        log_tail = math.log(2) + p.unsqueeze(-1).log() + whole
        reach = (-2 * log_tail.clamp(max=0.0)).sqrt()  # (P, E, K)
        z = torch.maximum(-reach, bound) if sign < 0 else torch.minimum(reach, bound)
        ends.append(torch.where(possible, loc + scale * z, outside))
    left, right = ends[0].amin(-1), ends[1].amax(-1)
    below = probs <= 0.5
    target = torch.where(below, probs, 1 - probs)
    x = torch.where(below, left, right)  # where it is the end of what is possible
    done = (target == 0) | (left >= right)
    middle = 0.5 * left + 0.5 * right
    now = torch.where(done, x, middle)
    eps = torch.finfo(loc.dtype).eps
    for step in range(MAX_STEPS):
        tail, slope = _tail(now, below, log_share, (loc, scale, a, b))
        miss = torch.where(below, tail - target, target - tail)  # grows with x
        solved = miss.abs() <= 4 * eps * target
        left = torch.where(done | solved | (miss > 0), left, now)
        right = torch.where(done | solved | (miss < 0), right, now)
        narrow = right - left <= eps * torch.maximum(left.abs(), right.abs())
        x = torch.where(done, x, now)
        done = done | solved | narrow
        if bool(done.all()):
            break
        newton = now - miss / slope
        usable = (newton > left) & (newton < right) & (step % 2 == 0)
        now = torch.where(usable, newton, 0.5 * left + 0.5 * right)
    return x


def _tail(
    x: Tensor, below: Tensor, log_share: Tensor, normals: tuple[Tensor, Tensor, Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """Probability below or above x, of shape (P, E), and the density there."""
    loc, scale, a, b = normals
    z = ((x.unsqueeze(-1) - loc) / scale).clamp(a, b)
    if bool((a.isinf() & b.isinf()).all()):  # nothing is bounded: several times faster
        # Not `ndtr`, which is zero below -9.
        away = torch.where(below.unsqueeze(-1), -z, z) * math.sqrt(0.5)
        tail = 0.5 * (log_share.exp() * torch.special.erfc(away)).sum(-1)
    else:
        left, right = (
            torch.where(below.unsqueeze(-1), *pair) for pair in ((a.expand_as(z), z), (z, b))
        )
        tail = (log_share + log_interval_probability(left, right)).exp().sum(-1)
    density = (log_share - 0.5 * z.square() - LOG_SQRT_2PI - scale.log()).exp().sum(-1)
    return tail, density
