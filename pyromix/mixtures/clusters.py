"""Starting values for mixtures: clusters found by k-means from k-means++ seeds."""

__all__ = ["Clusters", "find_clusters"]

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..core.checks import check_squares

# A start needs no more: 10,000 points place 128 centres as well as a million do.
MAX_POINTS = 10_000
LLOYD_STEPS = 10


class Clusters(NamedTuple):
    """Groups of points: their share of the data, means and second moments."""

    weights: Tensor
    """Shares, shape (K,), positive and summing to one."""
    loc: Tensor
    """Means, shape (K, D)."""
    second: Tensor
    """Variances (K, D) or covariances (K, D, D), shrunk towards those of all clusters together."""


@torch.no_grad()
def find_clusters(x: Tensor, num_clusters: int, *, covariances: bool = False) -> Clusters:
    """Clusters points by a few steps of k-means from greedy k-means++ seeds.

    Uses PyTorch's global random numbers. Of more than 10,000 points, 10,000 are drawn.

    Args:
        x: Points, shape (N, D).
        num_clusters: K. May exceed N: seeds are then repeated.
        covariances: Whether to return covariance matrices instead of variances.

    Returns:
        Weights, means and second moments.

    Raises:
        ValueError: If squares of the points overflow.
    """
    check_squares("data", x)
    if len(x) > MAX_POINTS:
        x = x[torch.randperm(len(x), device=x.device)[:MAX_POINTS]]
    centre = x.mean(0)
    x = x - centre  # squared distances cancel less near the origin
    loc = _seed(x, num_clusters)
    for _ in range(LLOYD_STEPS):
        label = torch.cdist(x, loc).argmin(1)
        counts = torch.bincount(label, minlength=num_clusters).to(x.dtype).unsqueeze(-1)
        total = torch.zeros_like(loc).index_add_(0, label, x)
        moved = torch.where(counts > 0, total / counts.clamp(min=1), loc)
        if torch.equal(moved, loc):
            break
        loc = moved
    difference = x - loc[label]
    if covariances:
        groups = difference[label.argsort()].split(counts.squeeze(-1).long().tolist())
        within = torch.stack([group.mT @ group for group in groups])
    else:
        within = torch.zeros_like(loc).index_add_(0, label, difference.square())
    pooled = within.sum(0) / len(x)
    # A cluster of one or two points says little about its variance: add one pseudo-point.
    size = (counts + 1).reshape(-1, *[1] * (within.dim() - 1))
    weights = ((counts + 1) / (counts + 1).sum()).squeeze(-1)
    return Clusters(weights, loc + centre, (within + pooled) / size)


def _seed(x: Tensor, num_clusters: int) -> Tensor:
    """Seeds of clusters by greedy k-means++, shape (K, D).

    Each one is the best of a few points, drawn in proportion to their squared distance from the
    seeds before.
    """
    trials = 2 + int(math.log(num_clusters))
    seeds = [torch.randint(len(x), (1,), device=x.device)]
    nearest = torch.cdist(x[seeds[0]], x).square().squeeze(0)  # (N,)
    for _ in range(num_clusters - 1):
        if nearest.max() > 0:
            candidates = torch.multinomial(nearest, trials, replacement=True)
        else:  # fewer distinct points than clusters
            candidates = torch.randint(len(x), (1,), device=x.device)
        distances = torch.cdist(x[candidates], x).square().minimum(nearest)  # (trials, N)
        best = distances.sum(1).argmin()
        seeds.append(candidates[best].unsqueeze(0))
        nearest = distances[best]
    return x[torch.cat(seeds)]
