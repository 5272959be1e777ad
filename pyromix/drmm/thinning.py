"""Few of many weighted codes, which stand for all of them."""

__all__ = ["INFLATIONS", "thin"]

import math

import torch
from torch import Tensor

# A prefix is scored with its inner scale, and with a small share with a larger one: what a layer
# leaves is not quite normal, and a prefix that is lost too early is missed by all that follows.
INFLATIONS = ((1.0, 0.8), (2.5, 0.2))


def thin(log_weight: Tensor, count: int, start: float | None = None) -> tuple[Tensor, Tensor]:
    """Keeps some of many weighted items, so that sums over them are unbiased and vary least.

    Args:
        log_weight: Log-weights, shape (B, C).
        count: Number of items to keep.
        start: Where systematic sampling starts, from zero to one, for all rows; by default at
            random, in every row for itself.

    Returns:
        Their indices and log-probabilities of being kept, shape (B, min(count, C)). Where fewer
        have a positive weight, the rest is filled up with items of probability plus infinity, to
        be divided by.
    """
    if log_weight.shape[1] <= count:
        index = torch.arange(log_weight.shape[1], device=log_weight.device)
        return index.expand(log_weight.shape), torch.zeros_like(log_weight)
    weight = (log_weight - log_weight.amax(1, keepdim=True)).exp().nan_to_num(0.0)
    threshold = weight.sum(1, keepdim=True) / count
    certain = torch.zeros_like(threshold)
    for _ in range(count):  # nearly always a handful
        large = weight >= threshold
        now = large.sum(1, keepdim=True)
        rest = weight.masked_fill(large, 0.0).sum(1, keepdim=True)
        smallest = torch.finfo(weight.dtype).tiny
        threshold = (rest / (count - now).clamp(min=1)).clamp(min=smallest)
        if bool((now == certain).all()):
            break
        certain = now
    inclusion = (weight / threshold).clamp(max=1.0)
    total = inclusion.double().cumsum(1)
    first = torch.rand(len(weight), 1, dtype=torch.float64, device=weight.device)
    if start is not None:
        first = torch.full_like(first, start)
    point = first + torch.arange(count, dtype=torch.float64, device=weight.device)
    # Rounding of the total must not drop the last item.
    filler = point >= total[:, -1:].ceil()
    point = torch.minimum(point, total[:, -1:] * (1 - 1e-15))
    index = torch.searchsorted(total, point, right=True).clamp(max=weight.shape[1] - 1)
    return index, inclusion.gather(1, index).log().masked_fill(filler, math.inf)
