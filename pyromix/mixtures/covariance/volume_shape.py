r"""Variances along principal axes as volume times shape, and their estimates.

The variances of component k are :math:`\lambda_{kd} = v_k a_{kd}` with :math:`\prod_d a_{kd} = 1`.
Volumes v and shapes a are common to all components or of each. Given weights :math:`n_k` and sums
of squares :math:`s_{kd}` along the axes, the estimates minimise

.. math:: \sum_k \sum_d n_k \log \lambda_{kd} + s_{kd} / \lambda_{kd}
          \quad \text{subject to} \quad \lambda_{kd} \ge f .
"""

__all__ = ["common_shape", "common_volume", "split_variances"]

import torch
from torch import Tensor

# Rounds of an alternating estimate, and the relative change at which it stops.
ROUNDS = 50
TOLERANCE = 1e-8


def split_variances(variance: Tensor) -> tuple[Tensor, Tensor]:
    """Volumes (K, 1) and shapes (K, D), of unit geometric mean, whose products are (K, D)."""
    log = variance.log()
    volume = log.mean(-1, keepdim=True)
    return volume.exp(), (log - volume).exp()


def common_shape(
    weight: Tensor, square: Tensor, shape: Tensor, floor: float
) -> tuple[Tensor, Tensor]:
    """Volumes of each component and one shape (Celeux and Govaert 1995, section 3.2).

    Volumes and shape are improved in turn, each the best given the other.

    Args:
        weight: Weights n of the components, shape (K,).
        square: Sums of squares s, shape (K, D).
        shape: The shape to start from, (1, D).
        floor: Smallest variance f.

    Returns:
        Volumes (K, 1) and the shape (1, D).
    """
    count = weight.unsqueeze(-1)
    dim = square.shape[-1]
    volume, previous = torch.ones_like(count), torch.zeros_like(count)
    for _ in range(ROUNDS):
        volume = (square / shape).sum(-1, keepdim=True) / (dim * count)
        volume = volume.maximum(floor / shape.amin())
        if bool(((volume - previous).abs() <= TOLERANCE * volume).all()):
            break
        previous = volume
        spread = (square / volume).sum(0, keepdim=True) / weight.sum()
        spread = spread.maximum(floor / volume.amin())
        scale, shape = split_variances(spread)
        volume = volume * scale
    return volume, shape


def common_volume(weight: Tensor, square: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    r"""One volume and shapes of each component (Celeux and Govaert 1995, section 3.3).

    Without the floor :math:`a_{kd} = s_{kd} / g_k` and :math:`v = \sum_k g_k / \sum_k n_k`, with
    geometric means g. With it, a shape of volume v is :math:`\max(f, s_{kd} / \mu_k) / v`, and the
    best v is where the multipliers :math:`\mu_k` sum to :math:`\sum_k n_k`.

    Args:
        weight: Weights n of the components, shape (K,).
        square: Sums of squares s, shape (K, D).
        floor: Smallest variance f.

    Returns:
        The volume (1, 1) and shapes (K, D).
    """
    square = square.clamp(min=torch.finfo(square.dtype).tiny)
    total = weight.sum()
    mean, shape = split_variances(square)
    volume = mean.sum(0, keepdim=True) / total
    if bool((volume * shape >= floor).all()):
        return volume, shape
    # With m variances above the floor, those of the largest squares, D log v is the sum of their
    # log (s / mu) and of D - m times log f. It is largest for the m of which this is true.
    dim, log_floor = square.shape[-1], square.new_tensor(floor).log()
    above = torch.arange(1, dim + 1, dtype=square.dtype, device=square.device)
    sums = square.log().sort(-1, descending=True).values.cumsum(-1) + (dim - above) * log_floor
    log_volume = log_floor
    for _ in range(ROUNDS):
        log_multiplier, m = ((sums - dim * log_volume) / above).max(-1, keepdim=True)
        excess = log_multiplier.logsumexp(0) - total.log()
        # Convex and falling in log v, so that Newton's steps from below stay below the root.
        slope = (log_multiplier.softmax(0) * dim / (m + 1)).sum()
        step = (excess / slope).clamp(min=0.0).squeeze()
        log_volume = log_volume + step
        if float(step) < TOLERANCE:
            break
    variance = (square.log() - log_multiplier).exp().clamp(min=floor)
    return log_volume.exp().reshape(1, 1), split_variances(variance)[1]
