r"""Missing entries of data that a model starts from, filled with draws of one normal.

Means of columns in place of missing entries would make columns seem to depend less on each other
than they do, and covariances of clusters too small. The normal is fitted by expectation
maximisation, which integrates missing entries out. Its correlations are shrunk, as if some points
more had been seen of which all columns are independent: of few rows, they would be taken too far.
"""

__all__ = ["fill"]

from collections.abc import Iterator

import torch
from torch import Tensor

# The normal is fitted to so many rows at most, in so many rounds; of more columns means are taken.
MAX_ROWS = 2000
ROUNDS = 20
MAX_COLUMNS = 128

# Matrices of rows are worked out for so many numbers at once.
BLOCK_NUMBERS = 2**22


def fill(x: Tensor, observed: Tensor, shrinkage: float, floor: float) -> Tensor:
    """Points (N, D) whose missing entries are draws given the others.

    With PyTorch's global random state.

    Args:
        x: Points, shape (N, D); missing entries may have any finite value.
        observed: One where an entry is known, else zero, shape (N, D).
        shrinkage: By how many points of independent columns, as a share of all, correlations are
            shrunk; by those of D points at least.
        floor: Smallest variance of a column given all others.
    """
    known = observed.double()
    count = known.sum(0).clamp(min=1)
    mean = (x.double() * known).sum(0) / count
    points = torch.where(observed > 0, x.double(), mean)
    if x.shape[1] <= MAX_COLUMNS:
        variance = ((points - mean).square() * known).sum(0) / count
        covariance = torch.diag_embed(variance + floor)
        some = torch.randperm(len(x), device=x.device)[:MAX_ROWS]
        share = max(shrinkage, x.shape[1] / len(some))
        for _ in range(ROUNDS):
            mean, covariance = _round(points[some], known[some], mean, covariance)
            own = torch.diag_embed(covariance.diagonal())
            covariance = (covariance + share * own) / (1 + share)
            covariance = covariance + floor * torch.eye(len(own)).to(own)
        points = torch.cat(
            [_draw(*part, mean, covariance) for part in _blocks(points, known)], dim=0
        )
    return torch.where(observed > 0, x, points.to(x))


def _blocks(x: Tensor, known: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    size = max(1, BLOCK_NUMBERS // x.shape[1] ** 2)
    return zip(x.split(size), known.split(size), strict=True)


def _round(x: Tensor, known: Tensor, mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance of points, whose missing entries follow the normal of the last round."""
    first, second = torch.zeros_like(mean), torch.zeros_like(covariance)
    for points, here in _blocks(x, known):
        expected, left = _given(points, here, mean, covariance)
        centred = expected - mean
        first = first + centred.sum(0)
        second = second + centred.mT @ centred + left.sum(0)
    shift = first / len(x)
    return mean + shift, second / len(x) - shift.outer(shift)


def _draw(x: Tensor, known: Tensor, mean: Tensor, covariance: Tensor) -> Tensor:
    """Points with draws for missing entries."""
    expected, left = _given(x, known, mean, covariance)
    root = torch.linalg.cholesky(left + torch.diag_embed(known))
    noise = (root @ torch.randn_like(x).unsqueeze(-1)).squeeze(-1)
    return expected + (1 - known) * noise


def _given(x: Tensor, known: Tensor, mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Points with conditional means for missing entries, and their covariances (n, D, D)."""
    # Missing entries are independent of the others in here, and at their means.
    own = covariance * known.unsqueeze(-1) * known.unsqueeze(-2) + torch.diag_embed(1 - known)
    cross = covariance * known.unsqueeze(-2)  # rows: all columns, columns: known ones
    gain = torch.cholesky_solve(cross.mT, torch.linalg.cholesky(own)).mT
    expected = mean + (gain @ ((x - mean) * known).unsqueeze(-1)).squeeze(-1)
    missing = 1 - known
    left = (covariance - gain @ cross.mT) * missing.unsqueeze(-1) * missing.unsqueeze(-2)
    return torch.where(known > 0, x, expected), left
