r"""The E-step of expectation maximisation: sufficient statistics of every component.

With responsibilities :math:`r_{nk} = p(k \mid x_n)`, the M-step needs

.. math:: \sum_n r_{nk}, \qquad \sum_n r_{nk} (x_n - c_k), \qquad
          \sum_n r_{nk} (x_n - c_k)(x_n - c_k)^\top

around any reference points :math:`c_k`, the last for some structures only its diagonal or its sum
over components. Around the origin, which is the centre of the data, all is matrix products, and
is done in blocks that stay in the cache: this is most of the time that training takes. Where a
component lies so many of its own standard deviations from there that products would cancel, and
where entries of correlated columns are missing, a general way is taken.
"""

__all__ = ["Expectation", "kind_of_products"]

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from ...numerics.diagonal_density import LOG_2PI
from ...numerics.low_rank import capacitance_tril, solve_right
from ...numerics.triangular import half_log_det, inverse_tril, log_scale
from ..covariance import (
    CovarianceStructure,
    Decomposed,
    Diagonal,
    Full,
    LowRank,
    LowRankPrecision,
    Shared,
    Spherical,
    Tied,
)
from ..diagonal import MixtureOfNormals
from ..finite import FiniteMixture
from ..full import MixtureOfMultivariateNormals
from ..low_rank_covariance import MixtureOfLowRankNormals
from .factors import factor_statistics, second_moments
from .rows import Rows
from .statistics import (
    CACHED_NUMBERS,
    LEAST_ROWS,
    Statistics,
    are_well_conditioned,
    block_numbers,
    components_of,
    diagonal_moments,
    empty_statistics,
    general_statistics,
    joint_log_prob,
    matrix_moments,
    normalize,
)

# Products are taken up to this squared distance of a component from the origin, in its standard
# deviations: it bounds how many of float64's sixteen digits are lost, or of float32's seven.
NEAR = {torch.float64: 1e5, torch.float32: 1e4}

# Products are taken where at most this share of the components is too far for them: of those,
# differences are taken.
MOST_FAR = 0.25

# So many norms of a factor times those of its inverse: see `are_well_conditioned`.
WELL_CONDITIONED = {torch.float64: 1e6, torch.float32: 3e3}

# Sums in float32 are added to those in float64 after so many blocks.
BLOCKS_PER_SUM = 16

# With factors, up to this mean square of points in units of the diagonals alone.
STRONGEST = 1e7

# Triangles are worked on in at most so many column blocks, of at least so many columns.
MOST_PARTS = 4
LEAST_COLUMNS = 16


class Expectation:
    """Statistics of some data under a mixture.

    Args:
        structure: Structure of the covariances.
        rows: The data, in the units of the parameters and centred.
        dtype: Of matrix products. In float32 they take half the time, and are taken where they
            lose few digits; sums are in float64.
    """

    def __init__(
        self, structure: CovarianceStructure, rows: Rows, dtype: torch.dtype = torch.float64
    ) -> None:
        self._structure, self._rows = structure, rows
        kind = kind_of_products(structure, rows.has_gaps)
        dtypes = dict.fromkeys((dtype, torch.float64))
        self._products = [] if kind is None else [kind(structure, rows, d) for d in dtypes]

    def __call__(self, law: FiniteMixture) -> Statistics:
        """Statistics around the origin, and where that would cancel around the means."""
        for most_far in (0.0, MOST_FAR):  # rather in float64 than by differences
            found = self._by_products(law, most_far)
            if found is not None:
                return found
        return self.around(law, law.loc)

    def around_origin(self, law: FiniteMixture) -> Statistics:
        """Statistics that add up with those of other data."""
        found = self._by_products(law)
        return self.around(law, torch.zeros_like(law.loc)) if found is None else found

    def _by_products(self, law: FiniteMixture, most_far: float = 0.0) -> Statistics | None:
        """Statistics by products, or None where they would not do.

        Args:
            law: The mixture.
            most_far: Share of the components that may be summed around their means instead.
        """
        for products in self._products:
            found = products(law, most_far)
            if found is not None:
                return found
        return None

    def around(self, law: FiniteMixture, reference: Tensor) -> Statistics:
        """Statistics around given points, (K, D)."""
        total = empty_statistics(law, reference, self._structure)
        for block, weight in self._rows.blocks(max(1, 4 * CACHED_NUMBERS // law.num_components)):
            total = total.plus(self._general(law, block, reference, weight))
        return total

    def _general(
        self, law: FiniteMixture, x: Tensor, reference: Tensor, weight: Tensor | None
    ) -> Statistics:
        """Statistics of any points, which products may not do for."""
        if self._structure.has_factors:
            assert isinstance(law, MixtureOfLowRankNormals)
            return factor_statistics(law, x, reference, weight)
        return general_statistics(law, x, reference, self._structure, weight)


class _Products(ABC):
    """Statistics by matrix products in blocks, around the origin.

    Scores and responsibilities have shape (K, n) here: points are last, so that reductions over
    components, which may be few, run along memory.
    """

    def __init__(self, structure: CovarianceStructure, rows: Rows, dtype: torch.dtype) -> None:
        self.structure, self.rows, self.dtype = structure, rows, dtype

    def __call__(self, law: FiniteMixture, most_far: float) -> Statistics | None:
        """The statistics, or None if products would lose too many digits for this mixture."""
        near = self._are_near(law)
        far_at, near_at = (~near).nonzero().flatten(), near.nonzero().flatten()
        if len(far_at) > most_far * len(near):
            return None
        far: _Far | None = None
        if len(far_at):
            far, whole = _Far(law, far_at, self.structure), law
            law = components_of(law, near_at)
            log_share = whole.logits[near_at].logsumexp(0).to(self.dtype)
        count = len(near_at)
        sums = self._sums(law)
        log_prob, weight = law.loc.new_zeros(()), law.loc.new_zeros(len(near))
        size = max(LEAST_ROWS, block_numbers(self.rows.device) // sums.width)
        for x, w in self.rows.blocks(size, self.dtype):
            scores = sums.scores(x)
            if far is not None:
                scores = torch.cat([scores + log_share, far.scores(x).to(scores)])
            log_prob += normalize(scores, w)
            weight += scores.sum(1)
            sums.add(scores[:count])
            if far is not None:
                far.add(x, scores[count:])
        log_prob = log_prob + sums.common
        first, second = sums.moments(weight[:count])
        reference = torch.zeros_like(law.loc)
        if far is None:
            return Statistics(log_prob, weight, first, second, reference)
        parts = (weight[:count], first, second, reference)
        others = (weight[count:], far.first, self.structure.pool(far.second), far.law.loc)
        order = torch.cat([near_at, far_at]).argsort()
        joined = (torch.cat(pair)[order] for pair in zip(parts, others, strict=True))
        return Statistics(log_prob, *joined)

    @abstractmethod
    def _are_near(self, law: FiniteMixture) -> Tensor:
        """Which components (K,) products lose few digits for."""

    @abstractmethod
    def _sums(self, law: FiniteMixture) -> "_Sums":
        """What to sum over blocks, for components that are near."""

    def _within(self, whitened: Tensor) -> Tensor:
        """Which means (K, D), in standard deviations, are near the origin."""
        return whitened.square().sum(-1) <= NEAR[self.dtype]


class _Far:
    """Components that products would cancel for: differences are taken, around their means."""

    def __init__(self, law: FiniteMixture, index: Tensor, structure: CovarianceStructure) -> None:
        self.law = components_of(law, index)
        self.log_share = law.logits[index].logsumexp(0)
        self._moments = matrix_moments if structure.full_moments else diagonal_moments
        self.first = torch.zeros_like(self.law.loc)
        dim = self.first.shape[-1]
        self.second = self.first.new_zeros(*self.first.shape, *[dim] * structure.full_moments)

    def scores(self, x: Tensor) -> Tensor:
        """Log w_k p_k of points (n, D), shape (K, n)."""
        return joint_log_prob(self.law, x.double()).mT + self.log_share

    def add(self, x: Tensor, responsibility: Tensor) -> None:
        """Adds moments of points (n, D) with responsibilities (K, n)."""
        parts = self._moments(self.law, x.double(), self.law.loc, responsibility.mT.double())
        self.first += parts[0]
        self.second += parts[1]


class _Sums(ABC):
    """Scores of blocks of points, and sums over them by responsibilities."""

    width: int
    """Numbers of scratch space per point."""
    common: Tensor | float = 0.0
    """Part of the log-likelihood of all points that components share."""

    @abstractmethod
    def scores(self, x: Tensor) -> Tensor:
        """Log w_k p_k of points (n, D), shape (K, n)."""

    @abstractmethod
    def add(self, responsibility: Tensor) -> None:
        """Adds the points that were scored last, by responsibilities (K, n)."""

    @abstractmethod
    def moments(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """First and pooled second moments, given the sums of responsibilities (K,)."""


class _Sum:
    """A sum of matrix products in float64, of which parts are taken in the products' dtype.

    Args:
        like: A tensor of the sum's shape, in float64.
        dtype: Of the products.
    """

    def __init__(self, like: Tensor, dtype: torch.dtype) -> None:
        self._total = torch.zeros_like(like)
        self._part = self._total if dtype == like.dtype else torch.zeros_like(like, dtype=dtype)
        self._count = 0

    def add(self, a: Tensor, b: Tensor) -> None:
        """Adds the product of two matrices."""
        self._part.addmm_(a, b)
        self._count += 1
        if self._count % BLOCKS_PER_SUM == 0:
            self._flush()

    @property
    def value(self) -> Tensor:
        """The sum so far."""
        self._flush()
        return self._total

    def _flush(self) -> None:
        if self._part is not self._total:
            self._total += self._part
            self._part.zero_()


class _Linear(NamedTuple):
    """Scores that are linear in features f of a point: log w_k p_k(x) = c_k + A_k f(x) + g(x)."""

    coefficients: Tensor
    """A, shape (K, F)."""
    constants: Tensor
    """c, shape (K,)."""
    common: Tensor | float = 0.0
    """Sum over all points of g, which components share."""


class _LinearScores(_Products):
    """Components that are an exponential family: the sums of r f(x) are their statistics."""

    def _sums(self, law: FiniteMixture) -> "_Sums":
        return _LinearSums(self, law)

    @abstractmethod
    def _linear(self, law: FiniteMixture) -> _Linear:
        """The scores of a mixture whose components are near."""

    def _features(self, x: Tensor) -> Tensor:
        """Features of points (n, D), shape (n, F)."""
        return x

    @abstractmethod
    def _moments(self, law: FiniteMixture, weight: Tensor, sums: Tensor) -> tuple[Tensor, Tensor]:
        """First and pooled second moments, from the features' weighted sums (K, F)."""


class _LinearSums(_Sums):
    """Sums of features."""

    def __init__(self, products: _LinearScores, law: FiniteMixture) -> None:
        linear = products._linear(law)
        self.products, self.law, self.common = products, law, linear.common
        self.a = linear.coefficients.to(products.dtype)
        self.c = linear.constants.to(products.dtype).unsqueeze(-1)
        self.width = sum(self.a.shape)
        self.total = _Sum(linear.coefficients, products.dtype)

    def scores(self, x: Tensor) -> Tensor:
        self.features = self.products._features(x)
        return torch.addmm(self.c, self.a, self.features.mT)

    def add(self, responsibility: Tensor) -> None:
        self.total.add(responsibility, self.features)

    def moments(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        return self.products._moments(self.law, weight, self.total.value)


class _DiagonalScores(_LinearScores):
    """A variance of every coordinate and component. Features: coordinates and their squares."""

    def _are_near(self, law: FiniteMixture) -> Tensor:
        return self._within(law.loc / law.component_variance.sqrt())

    def _linear(self, law: FiniteMixture) -> _Linear:
        assert isinstance(law, MixtureOfNormals)
        scale = law.scale
        whitened = law.loc / scale
        precision = scale.square().reciprocal()
        coefficients = torch.cat([whitened / scale, -0.5 * precision], -1)
        return _Linear(coefficients, law.logits + _constants(whitened, scale))

    def _features(self, x: Tensor) -> Tensor:
        return torch.cat([x, x.square()], -1)

    def _moments(
        self,
        law: FiniteMixture,  # noqa: ARG002
        weight: Tensor,  # noqa: ARG002
        sums: Tensor,
    ) -> tuple[Tensor, Tensor]:
        first, second = sums.chunk(2, -1)
        return first, second


class _SphericalScores(_DiagonalScores):
    """One variance of every component. Features: coordinates and the sum of their squares."""

    def _linear(self, law: FiniteMixture) -> _Linear:
        linear, dim = super()._linear(law), law.event_shape[0]
        return linear._replace(coefficients=linear.coefficients[:, : dim + 1])

    def _features(self, x: Tensor) -> Tensor:
        return torch.cat([x, x.square().sum(-1, keepdim=True)], -1)

    def _moments(
        self,
        law: FiniteMixture,  # noqa: ARG002
        weight: Tensor,  # noqa: ARG002
        sums: Tensor,
    ) -> tuple[Tensor, Tensor]:
        return sums[:, :-1], sums[:, -1:]


class _SharedScores(_LinearScores):
    """One variance of every coordinate. Features: coordinates.

    What is quadratic in the scores is the same for all components. Its sum over points follows
    from second moments of all the data, which need be computed but once.
    """

    @cached_property
    def _second(self) -> Tensor:
        total = self._of_block(self.rows.loc.new_zeros(1, self.rows.dim), None)
        for x, w in self.rows.blocks(max(LEAST_ROWS, CACHED_NUMBERS // self.rows.dim)):
            total += self._of_block(x, w)
        return total.unsqueeze(0)

    def _of_block(self, x: Tensor, weight: Tensor | None) -> Tensor:
        """The second moments of rows (n, D) with weights (n,)."""
        return x.square().sum(0) if weight is None else weight @ x.square()

    def _are_near(self, law: FiniteMixture) -> Tensor:
        near = self._within(law.loc / law.component_variance.sqrt())
        return near.all().expand_as(near)  # what they share has one reference point

    def _linear(self, law: FiniteMixture) -> _Linear:
        assert isinstance(law, MixtureOfNormals)
        scale = law.scale[0]
        whitened = law.loc / scale
        common = -0.5 * (self._second[0] / scale.square()).sum()
        return _Linear(whitened / scale, law.logits + _constants(whitened, scale), common)

    def _moments(
        self,
        law: FiniteMixture,  # noqa: ARG002
        weight: Tensor,  # noqa: ARG002
        sums: Tensor,
    ) -> tuple[Tensor, Tensor]:
        return sums, self._second


class _TiedScores(_SharedScores):
    """One covariance matrix. Features: coordinates."""

    def _of_block(self, x: Tensor, weight: Tensor | None) -> Tensor:
        return x.mT @ (x if weight is None else weight.unsqueeze(-1) * x)

    def _are_near(self, law: FiniteMixture) -> Tensor:
        assert isinstance(law, MixtureOfMultivariateNormals)
        tril = law._tril[0]
        inverse = inverse_tril(tril)
        near = self._within(law.loc @ inverse.mT)
        near = near & are_well_conditioned(tril, inverse, WELL_CONDITIONED[self.dtype])
        return near.all().expand_as(near)

    def _linear(self, law: FiniteMixture) -> _Linear:
        assert isinstance(law, MixtureOfMultivariateNormals)
        tril = law._tril[0]
        inverse = inverse_tril(tril)
        whitened = law.loc @ inverse.mT
        common = -0.5 * ((inverse @ self._second[0]) * inverse).sum()
        constants = -0.5 * whitened.square().sum(-1) - log_scale(tril)
        return _Linear(whitened @ inverse, law.logits + constants, common)


class _MatrixMoments(_Products):
    """Components with a matrix of second moments each."""

    def _sums(self, law: FiniteMixture) -> "_Sums":
        return _MatrixSums(self, law)

    @abstractmethod
    def _scorer(self, law: FiniteMixture, columns: list[slice]) -> Callable[[Tensor], Tensor]:
        """What maps points (D, n) to scores (K, n)."""


class _MatrixSums(_Sums):
    """Sums of outer products.

    These are symmetric, and factors of covariances triangular: of both only the lower triangle is
    worked on, in blocks of columns, which saves up to three eighths of the work.
    """

    def __init__(self, products: _MatrixMoments, law: FiniteMixture) -> None:
        k, dim = law.loc.shape
        width = max(LEAST_COLUMNS, -(-dim // MOST_PARTS))
        self.columns = [slice(i, min(i + width, dim)) for i in range(0, dim, width)]
        self.width, self.loc = k * width + dim, law.loc
        self.score = products._scorer(law, self.columns)
        self.first = _Sum(law.loc, products.dtype)
        self.parts = [
            _Sum(law.loc.new_zeros(k * (c.stop - c.start), c.stop), products.dtype)
            for c in self.columns
        ]

    def scores(self, x: Tensor) -> Tensor:
        self.x = x.mT.contiguous()  # (D, n)
        return self.score(self.x)

    def add(self, responsibility: Tensor) -> None:
        self.first.add(responsibility, self.x.mT)
        for total, c in zip(self.parts, self.columns, strict=True):
            weighted = (responsibility.unsqueeze(1) * self.x[c]).flatten(0, 1)  # (K columns, n)
            total.add(weighted, self.x[: c.stop].mT)

    def moments(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        k, dim = self.loc.shape
        second = weight.new_zeros(k, dim, dim)
        for total, c in zip(self.parts, self.columns, strict=True):
            second[:, c, : c.stop] = total.value.reshape(k, -1, c.stop)
        return self.first.value, second.tril() + second.tril(-1).mT


class _FullScores(_MatrixMoments):
    """Covariance matrices."""

    def _are_near(self, law: FiniteMixture) -> Tensor:
        assert isinstance(law, MixtureOfMultivariateNormals)
        inverse = inverse_tril(law._tril)
        near = self._within((inverse @ law.loc.unsqueeze(-1)).squeeze(-1))
        return near & are_well_conditioned(law._tril, inverse, WELL_CONDITIONED[self.dtype])

    def _scorer(self, law: FiniteMixture, columns: list[slice]) -> Callable[[Tensor], Tensor]:
        assert isinstance(law, MixtureOfMultivariateNormals)
        tril = law._tril
        inverse = inverse_tril(tril)
        whitened = (inverse @ law.loc.unsqueeze(-1)).squeeze(-1)
        k = len(whitened)
        constants = (law.logits - log_scale(tril)).to(self.dtype)
        inverse, whitened = inverse.to(self.dtype), whitened.to(self.dtype)
        # Rows c of the inverse factors, which are zero beyond c.stop, and of whitened means.
        rows = [inverse[:, c, : c.stop].flatten(0, 1) for c in columns]
        means = [whitened[:, c].reshape(-1, 1) for c in columns]

        def score(x: Tensor) -> Tensor:
            scores = constants.unsqueeze(-1)
            for row, mean, c in zip(rows, means, columns, strict=True):
                z = torch.addmm(mean, row, x[: c.stop], beta=-1).reshape(k, -1, x.shape[-1])
                scores = torch.add(scores, z.square_().sum(1), alpha=-0.5)
            return scores

        return score


class _LowRankScores(_MatrixMoments):
    """Precision matrices of low rank, whose density has fast products of its own."""

    def _are_near(self, law: FiniteMixture) -> Tensor:
        near = self._within(law.loc / law.component_variance.sqrt())
        return near if self.dtype == torch.float64 else torch.zeros_like(near)

    def _scorer(
        self,
        law: FiniteMixture,
        columns: list[slice],  # noqa: ARG002
    ) -> Callable[[Tensor], Tensor]:
        return lambda x: law._joint_log_prob(x.mT).mT.contiguous()


class _DiagonalScoresWithGaps(_LinearScores):
    """Independent columns, of which entries are missing.

    Features: what is observed of coordinates, of their squares, and of ones. With o = 1 where an
    entry is observed, the score of a point is the sum over coordinates of
    o (x m / s^2 - x^2 / (2 s^2) - m^2 / (2 s^2) - log s - log(2 pi) / 2): linear in o x, o x^2, o.
    """

    def _are_near(self, law: FiniteMixture) -> Tensor:
        near = self._within(law.loc / law.component_variance.sqrt())
        return near.all().expand_as(near) if isinstance(self.structure, Shared) else near

    def _linear(self, law: FiniteMixture) -> _Linear:
        assert isinstance(law, MixtureOfNormals)
        scale = law.scale
        whitened = law.loc / scale
        constants = -0.5 * (whitened.square() + LOG_2PI) - scale.log()
        coefficients = [whitened / scale, -0.5 * scale.square().reciprocal(), constants]
        return _Linear(torch.cat(coefficients, -1), law.logits)

    def _features(self, x: Tensor) -> Tensor:
        observed = ~x.isnan()
        x = x.nan_to_num(0.0)
        return torch.cat([x, x.square(), observed.to(x.dtype)], -1)

    def _moments(self, law: FiniteMixture, weight: Tensor, sums: Tensor) -> tuple[Tensor, Tensor]:
        first, second, seen = sums.chunk(3, -1)
        missing = weight.unsqueeze(-1) - seen
        second = second + missing * (law.component_variance + law.loc.square())
        return first + missing * law.loc, self.structure.pool(second)


class _FactorScores(_Products):
    """Covariance matrices of low rank plus a diagonal, in products with their factors alone."""

    def _are_near(self, law: FiniteMixture) -> Tensor:
        assert isinstance(law, MixtureOfLowRankNormals)
        precision = law._diag.reciprocal()
        near = self._within(law._loc * precision.sqrt())
        near = near & (precision @ self.rows.mean_square <= STRONGEST)
        near = near.all().expand_as(near)
        return near if self.dtype == torch.float64 else torch.zeros_like(near)

    def _sums(self, law: FiniteMixture) -> "_Sums":
        assert isinstance(law, MixtureOfLowRankNormals)
        return _FactorSums(law)


class _FactorSums(_Sums):
    """Moments of points x, and of y = L^T z of their factors z, with the capacitance L L^T.

    The mean of y given a point is a product, and its covariance is the identity.
    """

    def __init__(self, law: MixtureOfLowRankNormals) -> None:
        loc, diag, factor = law._loc, law._diag, law._factor
        k, dim, rank = factor.shape
        self.shape, self.width = (k, rank), k * (rank + 1) + 2 * dim
        self.precision = diag.reciprocal()
        self.tril = capacitance_tril(diag, factor)
        pull = solve_right(self.tril, factor * self.precision.unsqueeze(-1))
        self.shift = (pull * loc.unsqueeze(-1)).sum(1).reshape(-1, 1)
        self.pull = pull.mT.reshape(-1, dim)  # (K r, D)
        self.weighted = self.precision * loc
        constants = law.logits + _constants(loc * self.precision.sqrt(), diag.sqrt())
        self.constants = (constants - half_log_det(self.tril)).unsqueeze(-1)
        self.first, self.squares = torch.zeros_like(loc), torch.zeros_like(loc)
        self.first_y, self.cross = loc.new_zeros(k, rank), torch.zeros_like(self.pull)
        self.inner = torch.zeros_like(self.tril)

    def scores(self, x: Tensor) -> Tensor:
        self.x, self.square = x, x.square()
        y = torch.addmm(self.shift, self.pull, x.mT, beta=-1)  # (K r, n)
        self.y = y.reshape(*self.shape, len(x))
        scores = torch.addmm(self.constants, self.weighted, x.mT)
        scores.addmm_(self.precision, self.square.mT, alpha=-0.5)
        return scores.add_(self.y.square().sum(1), alpha=0.5)

    def add(self, responsibility: Tensor) -> None:
        self.first.addmm_(responsibility, self.x)
        self.squares.addmm_(responsibility, self.square)
        scaled = self.y * responsibility.unsqueeze(1)
        self.first_y += scaled.sum(-1)
        self.cross.addmm_(scaled.flatten(0, 1), self.x)
        self.inner.baddbmm_(scaled, self.y.mT)

    def moments(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        inverse = inverse_tril(self.tril)
        cross = self.cross.reshape(*self.shape, self.first.shape[-1]).mT @ inverse
        identity = torch.diag_embed(weight.unsqueeze(-1).expand(self.shape))
        inner = inverse.mT @ (self.inner + identity) @ inverse
        first_z = (self.first_y.unsqueeze(-2) @ inverse).squeeze(-2)
        first = torch.cat([self.first, first_z], -1)
        return first, second_moments(self.squares, cross, inner)


_PRODUCTS: dict[type[CovarianceStructure], type[_Products]] = {
    Diagonal: _DiagonalScores,
    Spherical: _SphericalScores,
    Shared: _SharedScores,
    Tied: _TiedScores,
    Full: _FullScores,
    LowRank: _FactorScores,
    LowRankPrecision: _LowRankScores,
}


def kind_of_products(structure: CovarianceStructure, has_gaps: bool) -> type[_Products] | None:
    """What makes the statistics of a structure by products; None if nothing does."""
    is_axial = not (structure.full_moments or structure.has_factors)
    if has_gaps:
        return _DiagonalScoresWithGaps if is_axial else None
    if isinstance(structure, Decomposed):
        if not is_axial:
            return _FullScores
        return _DiagonalScores if "raw_shape" in structure.shapes else _SphericalScores
    return _PRODUCTS.get(type(structure))


def _constants(whitened: Tensor, scale: Tensor) -> Tensor:
    """Log-density of components at the origin, shape (K,).

    Args:
        whitened: Means, in standard deviations, (K, D).
        scale: Diagonal of the covariances' factors, (K, D) or (D,).
    """
    log_normalizer = scale.log().sum(-1) + 0.5 * LOG_2PI * scale.shape[-1]
    return -0.5 * whitened.square().sum(-1) - log_normalizer
