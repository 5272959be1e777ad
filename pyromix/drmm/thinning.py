"""Few of many weighted codes, which stand for all of them."""

__all__ = ["INFLATIONS", "thin"]

import math

import torch
from torch import Tensor

# A prefix is scored with its inner scale, and with a small share with a larger one: what a layer
# leaves is not quite normal, and a prefix that is lost too early is missed by all that follows.
INFLATIONS = ((1.0, 0.8), (2.5, 0.2))


# Where the sum of probabilities is this near to a whole number, it is one but for rounding.
ROUNDING = 1e-3


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
    weight = log_weight.softmax(1).nan_to_num_(0.0)
    threshold = _threshold(weight, count)
    total = torch.minimum(weight, threshold).cumsum(1, dtype=torch.float64)
    total = total / threshold.double()  # of probabilities of being kept
    first = torch.rand(len(weight), 1, dtype=torch.float64, device=weight.device)
    if start is not None:
        first = torch.full_like(first, start)
    point = first + torch.arange(count, dtype=torch.float64, device=weight.device)
    # Rounding of the total must not drop the last item.
    end = total[:, -1:]
    filler = point >= torch.where((end - end.round()).abs() < ROUNDING, end.round(), end)
    point = torch.minimum(point, total[:, -1:] * (1 - 1e-15))
    index = torch.searchsorted(total, point, right=True).clamp(max=weight.shape[1] - 1)
    inclusion = (weight.gather(1, index) / threshold).clamp(max=1.0)
    return index, inclusion.log().masked_fill(filler, math.inf)


def _threshold(weight: Tensor, count: int) -> Tensor:
    """From which weight on items (B, C), which sum to one, are kept for certain: (B, 1).

    With m of them larger than the threshold, and the others kept in proportion to their weights,
    ``count`` are kept in all: the threshold is the sum of the others over ``count`` - m.
    """
    largest = weight.topk(count, 1).values
    least = largest[:, -1:]
    # From small to large, as differences of sums would lose the digits of what is small.
    others = (torch.minimum(weight, least).sum(1, keepdim=True) - count * least).clamp(min=0.0)
    rest = others + largest.flip(1).cumsum(1).flip(1)  # of all but the m largest
    threshold = rest / torch.arange(count, 0, -1, device=weight.device)
    fits = largest < threshold
    fits[:, -1] = True
    smallest = torch.finfo(weight.dtype).tiny
    return threshold.gather(1, fits.int().argmax(1, keepdim=True)).clamp(min=smallest)
