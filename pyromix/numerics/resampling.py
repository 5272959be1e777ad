"""Weights of draws: how many they are worth, how they are flattened, and draws by them."""

__all__ = ["effective", "systematic", "tempered"]

import torch
from torch import Tensor

# Halvings by which a power is found.
HALVINGS = 60


def effective(log_weight: Tensor) -> float:
    """How many draws are worth as much as weighted ones: the squared sum over that of squares.

    Args:
        log_weight: Logarithms of weights, up to a constant, (n,); some finite.
    """
    return float((2 * log_weight.logsumexp(0) - (2 * log_weight).logsumexp(0)).exp())


def tempered(log_weight: Tensor, least: float, most: float = 1.0) -> float:
    """The largest power at which weights are worth so many draws at least.

    Args:
        log_weight: Logarithms of weights, up to a constant, (n,).
        least: Effective number of draws.
        most: Largest power.
    """
    if effective(most * log_weight) >= least:
        return most
    low, high = 0.0, most
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if effective(middle * log_weight) >= least else (low, middle)
    return low


def systematic(log_weight: Tensor) -> Tensor:
    r"""Indices of points by systematic resampling: each as often as its weight says, but for one.

    Args:
        log_weight: Logarithms of weights, up to a constant, (\*B, n). A group without any weight
            keeps its points.

    Returns:
        Indices of shape (\*B, n).
    """
    count = log_weight.shape[-1]
    weight = (log_weight - log_weight.amax(-1, keepdim=True)).exp().nan_to_num(1.0)
    ends = weight.cumsum(-1)
    ends = ends / ends[..., -1:]
    offset = torch.rand(*ends.shape[:-1], 1, dtype=ends.dtype, device=ends.device)
    position = (torch.arange(count, dtype=ends.dtype, device=ends.device) + offset) / count
    return torch.searchsorted(ends, position).clamp(max=count - 1)
