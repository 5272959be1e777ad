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

__all__ = ["Expectation"]

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from ...numerics.diagonal_density import LOG_2PI
from ...numerics.triangular import inverse_tril, log_scale
from ..covariance import (
    CovarianceStructure,
    Diagonal,
    Full,
    LowRankPrecision,
    Shared,
    Spherical,
    Tied,
)
from ..diagonal import MixtureOfNormals
from ..finite import FiniteMixture
from ..full import MixtureOfMultivariateNormals
from .rows import Rows
from .statistics import (
    CACHED_NUMBERS,
    LEAST_ROWS,
    Statistics,
    block_numbers,
    empty_statistics,
    general_statistics,
    is_well_conditioned,
    normalize,
)

# Products are taken up to this squared distance of a component from the origin, in its standard
# deviations: it bounds how many of float64's sixteen digits are lost, or of float32's seven.
NEAR = {torch.float64: 1e5, torch.float32: 1e4}

# So many norms of a factor times those of its inverse: see `is_well_conditioned`.
WELL_CONDITIONED = {torch.float64: 1e6, torch.float32: 3e3}

# Sums in float32 are added to those in float64 after so many blocks.
BLOCKS_PER_SUM = 16

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
        kinds = _PRODUCTS_WITH_GAPS if rows.has_gaps else _PRODUCTS
        kind = kinds.get(type(structure))
        dtypes = dict.fromkeys((dtype, torch.float64))
        self._products = [] if kind is None else [kind(structure, rows, d) for d in dtypes]

    def __call__(self, law: FiniteMixture) -> Statistics:
        """Statistics around the origin or, where that would cancel, around the means."""
        found = self._by_products(law)
        return self.around(law, law.loc) if found is None else found

    def around_origin(self, law: FiniteMixture) -> Statistics:
        """Statistics that add up with those of other data."""
        found = self._by_products(law)
        return self.around(law, torch.zeros_like(law.loc)) if found is None else found

    def _by_products(self, law: FiniteMixture) -> Statistics | None:
        """Statistics around the origin, or None where products would not do."""
        for products in self._products:
            found = products(law)
            if found is not None:
                return found
        return None

    def around(self, law: FiniteMixture, reference: Tensor) -> Statistics:
        """Statistics around given points, (K, D)."""
        total = empty_statistics(law, reference, self._structure)
        for block, weight in self._rows.blocks(max(1, 4 * CACHED_NUMBERS // law.num_components)):
            total = total.plus(general_statistics(law, block, reference, self._structure, weight))
        return total


class _Products(ABC):
    """Statistics around the origin, of data without gaps, by matrix products in blocks.

    Scores and responsibilities have shape (K, n) here: points are last, so that reductions over
    components, which may be few, run along memory.
    """

    def __init__(self, structure: CovarianceStructure, rows: Rows, dtype: torch.dtype) -> None:
        self.structure, self.rows, self.dtype = structure, rows, dtype

    @abstractmethod
    def __call__(self, law: FiniteMixture) -> Statistics | None:
        """The statistics, or None if products would lose too many digits for this mixture."""

    def _blocks(self, width: int) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Blocks of rows and their weights, for so many numbers of scratch space per row."""
        size = max(LEAST_ROWS, block_numbers(self.rows.device) // width)
        return self.rows.blocks(size, self.dtype)

    def _is_near(self, whitened: Tensor) -> bool:
        """Whether all means (K, D), in standard deviations, are near the origin."""
        return bool(whitened.square().sum(-1).max() <= NEAR[self.dtype])

    def _is_well_conditioned(self, tril: Tensor, inverse: Tensor) -> bool:
        return is_well_conditioned(tril, inverse, WELL_CONDITIONED[self.dtype])


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

    def __call__(self, law: FiniteMixture) -> Statistics | None:
        linear = self._linear(law)
        if linear is None:
            return None
        a = linear.coefficients.to(self.dtype)
        c = linear.constants.to(self.dtype).unsqueeze(-1)
        log_prob, weight = (
            linear.common + torch.zeros_like(law.loc[0, 0]),
            law.loc.new_zeros(len(a)),
        )
        sums = _Sum(linear.coefficients, self.dtype)
        for x, w in self._blocks(a.shape[-1] + len(a)):
            features = self._features(x)
            scores = torch.addmm(c, a, features.mT)
            log_prob = log_prob + normalize(scores, w)
            weight += scores.sum(1)
            sums.add(scores, features)
        first, second = self._moments(law, weight, sums.value)
        return Statistics(log_prob, weight, first, second, torch.zeros_like(first))

    @abstractmethod
    def _linear(self, law: FiniteMixture) -> _Linear | None:
        """The scores of a mixture, or None if they would cancel."""

    def _features(self, x: Tensor) -> Tensor:
        """Features of points (n, D), shape (n, F)."""
        return x

    @abstractmethod
    def _moments(self, law: FiniteMixture, weight: Tensor, sums: Tensor) -> tuple[Tensor, Tensor]:
        """First and pooled second moments, from the features' weighted sums (K, F)."""


class _DiagonalScores(_LinearScores):
    """A variance of every coordinate and component. Features: coordinates and their squares."""

    def _linear(self, law: FiniteMixture) -> _Linear | None:
        assert isinstance(law, MixtureOfNormals)
        scale = law.scale
        whitened = law.loc / scale
        if not self._is_near(whitened):
            return None
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

    def _linear(self, law: FiniteMixture) -> _Linear | None:
        linear, dim = super()._linear(law), law.event_shape[0]
        return linear and linear._replace(coefficients=linear.coefficients[:, : dim + 1])

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

    def _linear(self, law: FiniteMixture) -> _Linear | None:
        assert isinstance(law, MixtureOfNormals)
        scale = law.scale[0]
        whitened = law.loc / scale
        if not self._is_near(whitened):
            return None
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

    def _linear(self, law: FiniteMixture) -> _Linear | None:
        assert isinstance(law, MixtureOfMultivariateNormals)
        tril = law._tril[0]
        inverse = inverse_tril(tril)
        whitened = law.loc @ inverse.mT
        if not (self._is_near(whitened) and self._is_well_conditioned(tril, inverse)):
            return None
        common = -0.5 * ((inverse @ self._second[0]) * inverse).sum()
        constants = -0.5 * whitened.square().sum(-1) - log_scale(tril)
        return _Linear(whitened @ inverse, law.logits + constants, common)


class _MatrixMoments(_Products):
    """Components with a matrix of second moments each.

    These are symmetric, and factors of covariances triangular: of both only the lower triangle is
    worked on, in blocks of columns, which saves up to three eighths of the work.
    """

    def __call__(self, law: FiniteMixture) -> Statistics | None:
        k, dim = law.loc.shape
        width = max(LEAST_COLUMNS, -(-dim // MOST_PARTS))
        columns = [slice(i, min(i + width, dim)) for i in range(0, dim, width)]
        score = self._scorer(law, columns)
        if score is None:
            return None
        log_prob, weight = law.loc.new_zeros(()), law.loc.new_zeros(k)
        first, second = _Sum(law.loc, self.dtype), law.loc.new_zeros(k, dim, dim)
        like = [law.loc.new_zeros(k * (c.stop - c.start), c.stop) for c in columns]
        sums = [_Sum(part, self.dtype) for part in like]
        for block, w in self._blocks(k * width + dim):
            x = block.mT.contiguous()  # (D, n)
            scores = score(x)
            log_prob = log_prob + normalize(scores, w)
            weight += scores.sum(1)
            first.add(scores, x.mT)
            for total, c in zip(sums, columns, strict=True):
                weighted = (scores.unsqueeze(1) * x[c]).flatten(0, 1)  # (K columns, n)
                total.add(weighted, x[: c.stop].mT)
        for total, c in zip(sums, columns, strict=True):
            second[:, c, : c.stop] = total.value.reshape(k, -1, c.stop)
        second = second.tril() + second.tril(-1).mT
        return Statistics(log_prob, weight, first.value, second, torch.zeros_like(law.loc))

    @abstractmethod
    def _scorer(
        self, law: FiniteMixture, columns: list[slice]
    ) -> Callable[[Tensor], Tensor] | None:
        """What maps points (D, n) to scores (K, n), or None if it would cancel."""


class _FullScores(_MatrixMoments):
    """Covariance matrices."""

    def _scorer(
        self, law: FiniteMixture, columns: list[slice]
    ) -> Callable[[Tensor], Tensor] | None:
        assert isinstance(law, MixtureOfMultivariateNormals)
        tril = law._tril
        inverse = inverse_tril(tril)
        whitened = (inverse @ law.loc.unsqueeze(-1)).squeeze(-1)
        if not (self._is_near(whitened) and self._is_well_conditioned(tril, inverse)):
            return None
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

    def _scorer(
        self,
        law: FiniteMixture,
        columns: list[slice],  # noqa: ARG002
    ) -> Callable[[Tensor], Tensor] | None:
        deviation = law.component_variance.sqrt()
        if self.dtype != torch.float64 or not self._is_near(law.loc / deviation):
            return None
        return lambda x: law._joint_log_prob(x.mT).mT.contiguous()


class _DiagonalScoresWithGaps(_LinearScores):
    """Independent columns, of which entries are missing.

    Features: what is observed of coordinates, of their squares, and of ones. With o = 1 where an
    entry is observed, the score of a point is the sum over coordinates of
    o (x m / s^2 - x^2 / (2 s^2) - m^2 / (2 s^2) - log s - log(2 pi) / 2): linear in o x, o x^2, o.
    """

    def _linear(self, law: FiniteMixture) -> _Linear | None:
        assert isinstance(law, MixtureOfNormals)
        scale = law.scale
        whitened = law.loc / scale
        if not self._is_near(whitened):
            return None
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


_PRODUCTS: dict[type[CovarianceStructure], type[_Products]] = {
    Diagonal: _DiagonalScores,
    Spherical: _SphericalScores,
    Shared: _SharedScores,
    Tied: _TiedScores,
    Full: _FullScores,
    LowRankPrecision: _LowRankScores,
}

_PRODUCTS_WITH_GAPS: dict[type[CovarianceStructure], type[_Products]] = dict.fromkeys(
    (Diagonal, Spherical, Shared), _DiagonalScoresWithGaps
)


def _constants(whitened: Tensor, scale: Tensor) -> Tensor:
    """Log-density of components at the origin, shape (K,).

    Args:
        whitened: Means, in standard deviations, (K, D).
        scale: Diagonal of the covariances' factors, (K, D) or (D,).
    """
    log_normalizer = scale.log().sum(-1) + 0.5 * LOG_2PI * scale.shape[-1]
    return -0.5 * whitened.square().sum(-1) - log_normalizer
