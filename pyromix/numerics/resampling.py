"""Draws by weights, that take one random number for all."""

__all__ = ["systematic"]

import torch
from torch import Tensor


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
