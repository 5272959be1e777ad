"""Areas under curves of detection, and intervals of them by resampling."""

import torch
from torch import Generator, Tensor


def interval(values: Tensor) -> tuple[float, float]:
    """The middle 95% of resampled values."""
    low, high = values.quantile(torch.tensor([0.025, 0.975], dtype=values.dtype)).tolist()
    return low, high


def resampled_counts(num: int, times: int, seed: int = 0) -> Tensor:
    """How often each of some items is drawn with replacement, shape (times, num)."""
    generator = Generator().manual_seed(seed)
    counts = torch.zeros(times, num)
    draws = torch.randint(num, (times, num), generator=generator)
    return counts.scatter_add_(1, draws, torch.ones_like(counts))


def area_under_curve(scores: Tensor, outlier: Tensor, counts: Tensor) -> Tensor:
    """Probability that an outlier scores less than an inlier, for every row of counts.

    Args:
        scores: Less for outliers, shape (N,).
        outlier: Which are outliers, shape (N,).
        counts: How often each of them counts, shape (B, N).
    """
    values, group = scores.unique(return_inverse=True)
    totals = counts.new_zeros(2, len(counts), len(values))
    for which in (0, 1):
        members = (outlier == bool(which)).nonzero().squeeze(-1)
        totals[which].index_add_(1, group[members], counts[:, members])
    inliers, outliers = totals.double()
    below = outliers.cumsum(-1) - outliers / 2  # ties count half
    pairs = inliers.sum(-1) * outliers.sum(-1)
    return (inliers * below).sum(-1) / pairs
