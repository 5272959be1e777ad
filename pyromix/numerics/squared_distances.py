r"""Squared distances of points from diagonal components, in units of these components' scales.

.. math:: q_{nk} = \sum_d \Big(\frac{x_{nd} - m_{kd}}{s_{kd}}\Big)^2

Multiplied out they are two matrix products, which are fast but cancel. They are taken where an
error bound says that they are good enough, and differences of all pairs otherwise.
"""

__all__ = ["squared_distances"]

import math
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..core.checks import is_traced

# Up to this many differences the broadcast intermediate fits the cache, and is faster.
DIRECT_SIZE = 2**17

# Differences are taken for this many numbers at once (8 MiB of float64).
BLOCK_NUMBERS = 2**20

# Accepted error, as a share of the distance and of what it is compared with.
TOLERANCE = 1e-10


def squared_distances(
    x: Tensor,
    loc: Tensor,
    scale: Tensor,
    unit: Tensor,
    observed: Tensor | None = None,
) -> Tensor:
    r"""The squared distances of all pairs, in float64.

    Args:
        x: Points, shape (\*L, N, D), in float64.
        loc: Means, shape (\*L, K, D).
        scale: Scales, shape (\*L, K, D).
        unit: Distances that are small next to these need not be accurate; shape broadcastable to
            (\*L, N, K).
        observed: One for the coordinates that count, zero for the others, shape (\*L, N, D).

    Returns:
        Tensor of shape (\*L, N, K).
    """
    n, k, dim = x.shape[-2], loc.shape[-2], x.shape[-1]
    size = math.prod(x.shape[:-2]) * n * k * dim
    if n > 1 and size > DIRECT_SIZE and not is_traced():
        found = _products(x, loc, scale, unit, observed)
        if found is not None:
            return found
    rows = max(1, BLOCK_NUMBERS * n // max(1, size))
    if rows >= n or is_traced():
        return _direct(x, loc, scale, observed)
    parts = list(x.split(rows, -2))
    seen = [None] * len(parts) if observed is None else list(observed.split(rows, -2))
    # Checkpointing keeps the memory of the backward pass at one block.
    again = partial(checkpoint, _direct, use_reentrant=False, preserve_rng_state=False)
    results = [again(part, loc, scale, at) for part, at in zip(parts, seen, strict=True)]
    return torch.cat(results, -2)


def _direct(x: Tensor, loc: Tensor, scale: Tensor, observed: Tensor | None) -> Tensor:
    z = (x.unsqueeze(-2) - loc.unsqueeze(-3)) / scale.unsqueeze(-3)  # (*L, N, K, D)
    if observed is not None:
        z = z * observed.unsqueeze(-2)
    return z.square().sum(-1)


def _products(
    x: Tensor, loc: Tensor, scale: Tensor, unit: Tensor, observed: Tensor | None
) -> Tensor | None:
    """The distances by matrix products, or None where they would lose too many digits."""
    centre = loc.detach().mean(-2, keepdim=True)
    x, loc = x - centre, loc - centre
    if observed is not None:
        x = x * observed
    precision = scale.square().reciprocal()
    own = loc.square() * precision
    of_loc = own.sum(-1).unsqueeze(-2) if observed is None else observed @ own.mT
    of_x = x.square() @ precision.mT
    square = of_x + of_loc - 2 * (x @ (loc * precision).mT)
    with torch.no_grad():
        # The errors of the D additions are taken as independent.
        error = (of_x + of_loc) * ((2 + math.sqrt(x.shape[-1])) * torch.finfo(x.dtype).eps)
        good = bool((error <= TOLERANCE * (square + unit)).all())  # not if it overflowed
    return square.clamp(min=0) if good else None
