r"""The E-step for mixtures of Student-t laws.

A Student-t component is a normal whose precision is multiplied by a hidden factor g of mean one.
Next to the responsibilities r the M-step needs what is expected of g, given a point of which d
coordinates were observed, at the squared distance q (Peel and McLachlan 2000):

.. math:: u = \frac{\nu + d}{\nu + q}, \qquad
          E[\log g] = \log u + \psi\Big(\frac{\nu + d}2\Big) - \log \frac{\nu + d}2 .

First and second moments are sums of :math:`r u`. Without gaps, and where no digits are lost, all
is matrix products around the origin, as for normals; see `pyromix.mixtures.em.products`.
"""

__all__ = ["StudentExpectation", "make_expectation"]

from typing import NamedTuple

import torch
from torch import Tensor

from ...numerics.batches import by_pattern
from ...numerics.diagonal_density import LOG_2PI
from ...numerics.student_density import log_gamma_ratio
from ...numerics.triangular import inverse_tril, log_scale
from ..covariance import CovarianceStructure, Tied
from ..diagonal import MixtureOfNormals
from ..full import MixtureOfMultivariateNormals
from ..learnable import GaussianMixture
from ..student import MixtureOfStudentT
from .products import (
    Expectation,
    _DiagonalScores,
    _FullScores,
    _SphericalScores,
    _TiedScores,
    kind_of_products,
)
from .rows import Rows, split_rows
from .statistics import (
    CACHED_NUMBERS,
    LEAST_ROWS,
    Statistics,
    block_numbers,
    completed_rows,
    normalize,
    precision_of,
)


class StudentExpectation:
    """Statistics of some data under a mixture of Student-t laws; see `Expectation`.

    Args:
        structure: Structure of the scale matrices.
        rows: The data, in the units of the parameters and centred.
    """

    def __init__(self, structure: CovarianceStructure, rows: Rows) -> None:
        self._structure, self._rows = structure, rows
        self._whole = not rows.has_gaps

    def __call__(self, law: MixtureOfStudentT) -> Statistics:
        """Statistics around the origin or, where that would cancel, around the locations."""
        found = self._by_products(law) if self._whole else None
        return self._around(law, law.loc) if found is None else found

    def around_origin(self, law: MixtureOfStudentT) -> Statistics:
        """Statistics that add up with those of other data."""
        found = self._by_products(law) if self._whole else None
        return self._around(law, torch.zeros_like(law.loc)) if found is None else found

    def _by_products(self, law: MixtureOfStudentT) -> Statistics | None:
        """Statistics around the origin of data without gaps, or None where products cancel."""
        if isinstance(self._structure, Tied):
            return _tied(law, self._structure, self._rows)
        if self._structure.full_moments:
            return _full(law, self._structure, self._rows)
        return _diagonal(law, self._structure, self._rows)

    def _around(self, law: MixtureOfStudentT, reference: Tensor) -> Statistics:
        """Statistics around given points (K, D), of any data."""
        sums = _Sums(law, self._structure)
        precision = precision_of(law._normals) if self._structure.full_moments else None
        for x, weight in self._rows.blocks(max(1, 4 * CACHED_NUMBERS // law.num_components)):
            if not self._structure.full_moments:
                _add_diagonal(sums, law, x, weight, reference)
            elif precision is not None:
                _add_rows(sums, law, precision, x, weight, reference)
            else:
                _add_patterns(sums, law, x, weight, reference)
        return sums.statistics(reference)


def make_expectation(
    model: GaussianMixture, rows: Rows, dtype: torch.dtype = torch.float64
) -> Expectation | StudentExpectation:
    """What makes the statistics of data under a model; see `Expectation`."""
    if model.student_tails is not None:
        return StudentExpectation(model.structure, rows)
    return Expectation(model.structure, rows, dtype)


class _Weighted(NamedTuple):
    """A block of points, weighed."""

    share: Tensor
    """Responsibilities r, shape (K, n)."""
    pull: Tensor
    """Their products with the expected factors, r u, shape (K, n)."""


class _Sums:
    """Sums over points, to which blocks of them are added."""

    def __init__(self, law: MixtureOfStudentT, structure: CovarianceStructure) -> None:
        k, dim = law.loc.shape
        self._df, self._structure = law.df.unsqueeze(-1), structure
        self.log_prob = law.loc.new_zeros(())
        self.weight, self.mass, self.log_factor = law.loc.new_zeros(3, k).unbind()
        self.first = law.loc.new_zeros(k, dim)
        self.second = law.loc.new_zeros(k, *[dim] * (2 if structure.full_moments else 1))

    def weigh(
        self,
        peak: Tensor,
        square: Tensor,
        count: int | Tensor,
        point_weight: Tensor | None,
    ) -> _Weighted:
        """Weighs a block of points.

        Args:
            peak: Log-weights plus log-densities of normals at their peak, shape (K, n or 1).
            square: Squared distances, shape (K, n).
            count: How many coordinates they are of, shape (n,).
            point_weight: Weights of the points, shape (n,); None if all are one.
        """
        df = self._df
        infinite = df.isinf()
        finite = torch.where(infinite, 1.0, df)
        total = finite + count
        half = 0.5 * total
        # In place where it can be: these are the largest tensors, and each pass takes its time.
        ratio = square / finite
        stretched = ratio.log1p()
        scores = (stretched * -half).add_(peak + log_gamma_ratio(df, count))
        factor = ratio.add_(1).reciprocal_().mul_(total / finite)  # u
        rest = torch.log1p(count / finite) + half.digamma() - half.log()
        if bool(infinite.any()):
            scores = torch.where(infinite, peak - 0.5 * square, scores)
            factor = torch.where(infinite, 1.0, factor)
            rest, stretched = (torch.where(infinite, 0.0, t) for t in (rest, stretched))
        self.log_prob = self.log_prob + normalize(scores, point_weight)
        pull = factor.mul_(scores)
        self.weight += scores.sum(1)
        self.mass += pull.sum(1)
        # E[log g] = log(1 + d / nu) - log(1 + q / nu) + psi - log of half of nu + d.
        self.log_factor += stretched.neg_().add_(rest).mul_(scores).sum(1)
        return _Weighted(scores, pull)

    def statistics(self, reference: Tensor) -> Statistics:
        """All sums, around the points that they were taken around."""
        second = self._structure.pool(self.second)
        return Statistics(
            *(self.log_prob, self.weight, self.first, second, reference),
            mass=self.mass,
            log_factor=self.log_factor,
        )


def _diagonal(
    law: MixtureOfStudentT, structure: CovarianceStructure, rows: Rows
) -> Statistics | None:
    """Statistics around the origin for diagonal scales, by two products for each block."""
    normals = law._normals
    assert isinstance(normals, MixtureOfNormals)
    is_round = kind_of_products(structure, has_gaps=False) is _SphericalScores
    kind = _SphericalScores if is_round else _DiagonalScores
    products = kind(structure, rows, torch.float64)
    if not bool(products._are_near(normals).all()):
        return None
    linear = products._linear(normals)
    a, c = linear.coefficients, linear.constants.unsqueeze(-1)
    peak = (law.logits - (normals.scale.log() + 0.5 * LOG_2PI).sum(-1)).unsqueeze(-1)
    sums, features = _Sums(law, structure), torch.zeros_like(a)
    for block, w in rows.blocks(_block_rows(rows, a.shape[-1] + 3 * len(a))):
        f = products._features(block)
        square = (peak - torch.addmm(c, a, f.mT)).mul_(2).clamp_(min=0)
        features.addmm_(sums.weigh(peak, square, rows.dim, w).pull, f)
    sums.first, sums.second = products._moments(normals, sums.mass, features)
    return sums.statistics(torch.zeros_like(law.loc))


def _full(law: MixtureOfStudentT, structure: CovarianceStructure, rows: Rows) -> Statistics | None:
    """Statistics around the origin for scale matrices of every component."""
    normals = law._normals
    products = _FullScores(structure, rows, torch.float64)
    if not bool(products._are_near(normals).all()):
        return None
    moments = products._sums(normals)
    peak = (law.logits - log_scale(law._factor)).unsqueeze(-1)
    sums = _Sums(law, structure)
    for x, w in rows.blocks(_block_rows(rows, moments.width)):
        square = (peak - moments.scores(x)).mul_(2).clamp_(min=0)
        moments.add(sums.weigh(peak, square, rows.dim, w).pull)
    sums.first, sums.second = moments.moments(sums.mass)
    return sums.statistics(torch.zeros_like(law.loc))


def _tied(law: MixtureOfStudentT, structure: CovarianceStructure, rows: Rows) -> Statistics | None:
    """Statistics around the origin for a scale matrix that components share."""
    if not bool(_TiedScores(structure, rows, torch.float64)._are_near(law._normals).all()):
        return None
    inverse = inverse_tril(law._factor[0])
    loc = law.loc @ inverse.mT
    k, dim = law.loc.shape
    peak = (law.logits - log_scale(law._factor[0])).unsqueeze(-1)
    own = loc.square().sum(-1, keepdim=True)
    sums, second = _Sums(law, structure), torch.zeros_like(inverse)
    for block, w in rows.blocks(_block_rows(rows, 3 * k + 2 * dim)):
        z = block @ inverse.mT
        square = own + z.square().sum(-1) - 2 * (loc @ z.mT)
        pull = sums.weigh(peak, square.clamp_(min=0), dim, w).pull
        sums.first.addmm_(pull, block)
        second.addmm_((pull.sum(0).unsqueeze(-1) * block).mT, block)
    sums.second = second.unsqueeze(0)
    return sums.statistics(torch.zeros_like(law.loc))


def _block_rows(rows: Rows, width: int) -> int:
    """How many rows to work on together, for so many numbers of scratch space per row."""
    return max(LEAST_ROWS, block_numbers(rows.device) // width)


def _add_diagonal(
    sums: _Sums,
    law: MixtureOfStudentT,
    x: Tensor,
    point_weight: Tensor | None,
    reference: Tensor,
) -> None:
    """Adds points of any kind, by differences of all pairs, for diagonal scales."""
    loc, scale = law.loc.unsqueeze(1), law.scale.unsqueeze(1)
    k, dim = reference.shape
    for block, w in split_rows(x, point_weight, max(1, CACHED_NUMBERS // (k * dim))):
        seen = ~block.isnan()
        difference = torch.where(seen, block - loc, 0.0)  # (K, n, D), of missing entries expected
        square = (difference / scale).square().sum(-1)
        count = seen.sum(-1).to(x.dtype)
        logs = -(law.scale.log() + 0.5 * LOG_2PI) @ seen.to(x.dtype).mT
        weighted = sums.weigh(law.logits.unsqueeze(-1) + logs, square, count, w)
        difference = difference + (loc - reference.unsqueeze(1))
        moved = weighted.pull.unsqueeze(-1) * difference
        sums.first += moved.sum(1)
        # The variance of a missing entry is that of a normal: g cancels.
        missing = weighted.share @ (~seen).to(x.dtype)
        sums.second += (moved * difference).sum(1) + missing * law.scale.square()


def _add_rows(
    sums: _Sums,
    law: MixtureOfStudentT,
    precision: Tensor,
    x: Tensor,
    point_weight: Tensor | None,
    reference: Tensor,
) -> None:
    """Adds points row by row in batches, for scale matrices; see `with_gaps`."""
    dim, logits = x.shape[-1], law.logits.unsqueeze(-1)
    for part in completed_rows(law.loc, precision, x):
        w = None if point_weight is None else point_weight[part.rows]
        square = part.square.clamp(min=0)
        weighted = sums.weigh(logits + part.peak, square, dim - part.missing.shape[-1], w)
        # The covariance of missing entries is that of a normal: g cancels.
        part.add_to(sums.first, sums.second, weighted.pull, weighted.share, law.loc - reference)


def _add_patterns(
    sums: _Sums,
    law: MixtureOfStudentT,
    x: Tensor,
    point_weight: Tensor | None,
    reference: Tensor,
) -> None:
    """Adds points pattern by pattern, for scale matrices whose inverses lose digits."""
    normals = law._normals
    assert isinstance(normals, MixtureOfMultivariateNormals)
    k, dim = reference.shape
    log_weight = law.logits.unsqueeze(-1)
    for given, free, rows in by_pattern(~x.isnan()):
        for part in rows.split(max(1, block_numbers(x.device) // (k * dim))):
            filled = x[part].unsqueeze(-2).repeat(1, k, 1)  # (n, K, D)
            covariance = normals.component_covariance
            peak, square = log_weight, x.new_zeros(k, len(part))
            if given:
                own, distance, loc, tril = normals._regress(given, free, x[part][:, given])
                peak, square = own.unsqueeze(-1), distance.mT.contiguous()
                filled[..., free] = loc
                covariance = tril @ tril.mT
            else:
                filled[...] = law.loc
            w = None if point_weight is None else point_weight[part]
            weighted = sums.weigh(peak, square, len(given), w)
            difference = (filled - reference).movedim(1, 0)  # (K, n, D)
            moved = weighted.pull.unsqueeze(-1) * difference
            sums.first += moved.sum(1)
            sums.second.baddbmm_(moved.mT, difference)
            if free:
                at = torch.tensor(free, device=x.device)
                total = weighted.share.sum(1)[:, None, None] * covariance
                sums.second[:, at.unsqueeze(-1), at] += total
