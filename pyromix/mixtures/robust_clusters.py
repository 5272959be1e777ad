"""Starting values for mixtures with heavy tails: clusters that outliers do not ruin."""

__all__ = ["find_robust_clusters"]

import torch
from torch import Tensor

from ..core.checks import check_squares
from ..core.standardize import quantile_units
from .clusters import MAX_POINTS, Clusters, find_clusters, with_pseudo_points

# Clusters with a smaller share of the points, times their number, are taken for outliers, and left
# out, at most so many times.
SMALL_SHARE, ROUNDS = 0.1, 10

# Points count for a cluster's spread as if they were no more than this many scales from its
# median; a scale is 1.4826 median absolute deviations, a normal's standard deviation.
REACH, NORMAL_MAD = 3.0, 1.4826


@torch.no_grad()
def find_robust_clusters(x: Tensor, num_clusters: int, *, covariances: bool = False) -> Clusters:
    r"""Clusters points by k-means, on a scale that is logarithmic far out.

    With the columns' medians and quartiles for location l and scale s, clusters are those of
    :math:`\operatorname{asinh}((x - l) / s)`, without clusters too small to be components. Their
    locations are medians, and their spreads are of deviations that are cut off.

    Uses PyTorch's global random numbers. Of more than 10,000 points, 10,000 are drawn.

    Args:
        x: Points, shape (N, D).
        num_clusters: K.
        covariances: Whether to return covariance matrices instead of variances.

    Raises:
        ValueError: If squares of the points overflow.
    """
    check_squares("data", x)
    if len(x) > MAX_POINTS:
        x = x[torch.randperm(len(x), device=x.device)[:MAX_POINTS]]
    loc, scale = quantile_units(x)
    y = ((x - loc) / scale).asinh()
    for _ in range(ROUNDS):
        seeds = find_clusters(y, num_clusters).loc
        label = torch.cdist(y, seeds).argmin(1)
        counts = torch.bincount(label, minlength=num_clusters)
        kept = counts[label] >= SMALL_SHARE * len(x) / num_clusters
        if bool(kept.all()) or not bool(kept.any()):
            break
        x, y = x[kept], y[kept]
    label = torch.cdist(y, seeds).argmin(1)
    counts = torch.bincount(label, minlength=num_clusters)
    centres, within = [], []
    for number in range(num_clusters):
        own = x[label == number]
        if not len(own):
            centre = loc + scale * seeds[number].sinh()
            spread = torch.zeros_like(centre)
        else:
            centre = own.median(0).values
            spread = NORMAL_MAD * (own - centre).abs().median(0).values
        deviation = torch.clamp(own - centre, -REACH * spread, REACH * spread)
        centres.append(centre)
        within.append(deviation.mT @ deviation if covariances else deviation.square().sum(0))
    return with_pseudo_points(counts.to(x.dtype), torch.stack(centres), torch.stack(within))
