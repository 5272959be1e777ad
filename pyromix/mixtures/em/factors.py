r"""Moments of points and of their factors, under a mixture of factor analysers.

Given the coordinates of x that are known, the factors z of component k are normal with mean
:math:`\bar z` and covariance :math:`C = M^{-1}`, and missing coordinates i are
:math:`m_i + W_i z + \sqrt{d_i}\, e_i` (Ghahramani and Hinton 1996).
"""

__all__ = ["factor_statistics", "second_moments"]

import torch
from torch import Tensor

from ...numerics.factor_density import factor_posterior
from ..low_rank_covariance import MixtureOfLowRankNormals
from .rows import split_rows
from .statistics import Statistics, block_numbers, normalize

# Rows of a block at least, however many numbers they take.
LEAST_ROWS = 32


def factor_statistics(
    law: MixtureOfLowRankNormals,
    x: Tensor,
    reference: Tensor,
    point_weight: Tensor | None = None,
) -> Statistics:
    """Statistics of any points: missing entries have the moments that are expected of them.

    Args:
        law: The mixture.
        x: Points, shape (N, D), NaN where an entry is missing.
        reference: The points c around which moments are taken, shape (K, D).
        point_weight: Weights of the points, (N,); by default all are one.
    """
    k, dim, rank = law._factor.shape
    log_prob, weight = x.new_zeros(()), x.new_zeros(k)
    first, second = x.new_zeros(k, dim + rank), x.new_zeros(k, dim + rank, 1 + rank)
    width = max(dim * (1 + rank), k * rank**2)
    size = max(LEAST_ROWS, 4 * block_numbers(x.device) // width)
    for block, block_weight in split_rows(x, point_weight, size):
        gaps = block.isnan()
        seen = (~gaps).to(x.dtype) if bool(gaps.any()) else None
        filled = block.nan_to_num(0.0)
        posteriors = [
            factor_posterior(
                (filled - law._loc[j]).unsqueeze(-2),
                law._diag[j : j + 1],
                law._factor[j : j + 1],
                seen,
            )
            for j in range(k)
        ]
        scores = torch.cat([part.log_prob for part in posteriors], -1).mT  # (K, n)
        scores = scores + law.logits.unsqueeze(-1)
        log_prob = log_prob + normalize(scores, block_weight)
        weight += scores.sum(1)
        for j, (r, part) in enumerate(zip(scores, posteriors, strict=True)):
            mean, spread = part.mean.squeeze(-2), torch.cholesky_inverse(part.tril).squeeze(-3)
            factor, shift = law._factor[j], law._loc[j] - reference[j]
            difference = filled - law._loc[j]
            if seen is not None:
                difference = torch.where(gaps, mean @ factor.mT, difference)
            difference += shift
            weighted = r.unsqueeze(-1) * mean
            cross = difference.mT @ weighted  # (D, r)
            squares = r @ difference.square()
            inner = mean.mT @ weighted + (r[:, None, None] * spread).sum(0)
            if seen is not None:
                missing = gaps.to(x.dtype)
                spreads = (missing.mT @ (r[:, None, None] * spread).flatten(1)).unflatten(
                    -1, (rank, rank)
                )  # (D, r, r), of the factors over the points that lack a coordinate
                pulled = (spreads @ factor.unsqueeze(-1)).squeeze(-1)
                cross = cross + pulled
                squares = squares + (r @ missing) * law._diag[j] + (factor * pulled).sum(-1)
            first[j] += torch.cat([r @ difference, weighted.sum(0)])
            second[j] += second_moments(squares, cross, inner)
    return Statistics(log_prob, weight, first, second, reference)


def second_moments(squares: Tensor, cross: Tensor, inner: Tensor) -> Tensor:
    """Second moments of points and factors, as one tensor.

    Args:
        squares: Of the points' coordinates, shape (*B, D).
        cross: Of points and factors, shape (*B, D, r).
        inner: Of the factors, shape (*B, r, r).

    Returns:
        Tensor of shape (*B, D + r, 1 + r): squares in the first column, products with the factors
        in the others.
    """
    own = torch.cat([squares, inner.diagonal(dim1=-2, dim2=-1)], -1)
    return torch.cat([own.unsqueeze(-1), torch.cat([cross, inner], -2)], -1)
