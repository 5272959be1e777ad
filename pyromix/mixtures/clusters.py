"""Starting values for mixtures: clusters found by k-means from k-means++ seeds."""

__all__ = ["Clusters", "find_clusters", "k_means", "weighted_clusters", "with_pseudo_points"]

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
    label, loc = k_means(x, num_clusters)
    counts = torch.bincount(label, minlength=num_clusters).to(x.dtype).unsqueeze(-1)
    difference = x - loc[label]
    if covariances:
        groups = difference[label.argsort()].split(counts.squeeze(-1).long().tolist())
        within = torch.stack([group.mT @ group for group in groups])
    else:
        within = torch.zeros_like(loc).index_add_(0, label, difference.square())
    return with_pseudo_points(counts.squeeze(-1), loc + centre, within)


@torch.no_grad()
def weighted_clusters(
    x: Tensor, responsibilities: Tensor, *, covariances: bool = False
) -> Clusters:
    """Clusters that points belong to with given probabilities.

    Args:
        x: Points, shape (N, D).
        responsibilities: Probabilities, shape (N, K).
        covariances: Whether to return covariance matrices instead of variances.

    Returns:
        Weights, means and second moments. Clusters without points lie at the mean of all.
    """
    centre = x.mean(0)
    x = x - centre
    counts = responsibilities.sum(0)
    tiny = torch.finfo(x.dtype).tiny
    loc = responsibilities.mT @ x / counts.clamp(min=tiny).unsqueeze(-1)
    difference = x - loc.unsqueeze(1)  # (K, N, D)
    weighted = responsibilities.mT.unsqueeze(-1) * difference
    within = weighted.mT @ difference if covariances else (weighted * difference).sum(1)
    return with_pseudo_points(counts, loc + centre, within)


def k_means(x: Tensor, num_clusters: int) -> tuple[Tensor, Tensor]:
    """Labels (N,) and centres (K, D) after a few steps from greedy k-means++ seeds."""
    loc = _seed(x, num_clusters)
    for _ in range(LLOYD_STEPS):
        label = torch.cdist(x, loc).argmin(1)
        counts = torch.bincount(label, minlength=num_clusters).to(x.dtype).unsqueeze(-1)
        total = torch.zeros_like(loc).index_add_(0, label, x)
        moved = torch.where(counts > 0, total / counts.clamp(min=1), loc)
        if torch.equal(moved, loc):
            break
        loc = moved
    return label, loc


def with_pseudo_points(counts: Tensor, loc: Tensor, within: Tensor) -> Clusters:
    """Clusters of sums of squares or outer products, each with one pseudo-point.

    One or two points say little about a variance: the pseudo-point has the variance of all.
    """
    pooled = within.sum(0) / counts.sum()
    size = (counts + 1).reshape(-1, *[1] * (within.dim() - 1))
    return Clusters((counts + 1) / (counts + 1).sum(), loc, (within + pooled) / size)


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
