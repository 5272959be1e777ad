r"""The E-step of expectation maximisation: sufficient statistics of every component.

With responsibilities :math:`r_{nk} = p(k \mid x_n)`, the M-step needs

.. math:: \sum_n r_{nk}, \qquad \sum_n r_{nk} (x_n - c_k), \qquad
          \sum_n r_{nk} (x_n - c_k)(x_n - c_k)^\top

around any reference points :math:`c_k`, the last for some structures only its diagonal or its sum
over components. Around the origin, which is the centre of the data, all is matrix products, and
is done in blocks that stay in the cache: this is most of the time that training takes. Where a
component lies so many of its own standard deviations from there that products would cancel, and
where entries are missing, a general way is taken.
"""

__all__ = ["Expectation"]

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ...numerics.diagonal_density import LOG_2PI
from ...numerics.triangular import inverse_tril, log_scale
from ..covariance import (
    CovarianceStructure,
    Decomposed,
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
from .statistics import (
    CACHED_NUMBERS,
    LEAST_ROWS,
    Statistics,
    block_numbers,
    general_statistics,
    is_well_conditioned,
    normalize,
)

# Products are taken up to this squared distance of a component from the origin, in its standard
# deviations: it bounds how many of float64's sixteen digits are lost.
NEAR = 1e5

# Triangles are worked on in at most so many column blocks, of at least so many columns.
MOST_PARTS = 4
LEAST_COLUMNS = 16


class Expectation:
    """Statistics of some data under a mixture.

    Args:
        structure: Structure of the covariances.
        x: Points in float64, centred, shape (N, D). NaN marks entries that are missing.
    """

    def __init__(self, structure: CovarianceStructure, x: Tensor) -> None:
        self._structure, self._x = structure, x
        self._products: _Products | None = None
        if not bool(x.isnan().any()):
            self._products = _PRODUCTS[type(structure)](structure, x)

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
        return None if self._products is None else self._products(law)

    def around(self, law: FiniteMixture, reference: Tensor) -> Statistics:
        """Statistics around given points, (K, D)."""
        total: Statistics | None = None
        for block in self._x.split(max(1, 4 * CACHED_NUMBERS // law.num_components)):
            part = general_statistics(law, block, reference, self._structure)
            total = part if total is None else total.plus(part)
        assert total is not None
        return total


class _Products(ABC):
    """Statistics around the origin, of data without gaps, by matrix products in blocks.

    Scores and responsibilities have shape (K, n) here: points are last, so that reductions over
    components, which may be few, run along memory.
    """

    def __init__(self, structure: CovarianceStructure, x: Tensor) -> None:
        self.structure, self.x = structure, x

    @abstractmethod
    def __call__(self, law: FiniteMixture) -> Statistics | None:
        """The statistics, or None if products would lose too many digits for this mixture."""

    def _blocks(self, width: int) -> tuple[Tensor, ...]:
        """Blocks of points, for so many numbers of scratch space per point."""
        return self.x.split(max(LEAST_ROWS, block_numbers(self.x) // width))


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
        a, c = linear.coefficients, linear.constants.unsqueeze(-1)
        log_prob, weight, sums = linear.common, torch.zeros_like(a[:, 0]), torch.zeros_like(a)
        for x in self._blocks(a.shape[-1] + len(a)):
            features = self._features(x)
            scores = torch.addmm(c, a, features.mT)
            log_prob = log_prob + normalize(scores)
            weight += scores.sum(1)
            sums.addmm_(scores, features)
        assert isinstance(log_prob, Tensor)
        first, second = self._moments(sums)
        return Statistics(log_prob, weight, first, second, torch.zeros_like(first))

    @abstractmethod
    def _linear(self, law: FiniteMixture) -> _Linear | None:
        """The scores of a mixture, or None if they would cancel."""

    def _features(self, x: Tensor) -> Tensor:
        """Features of points (n, D), shape (n, F)."""
        return x

    @abstractmethod
    def _moments(self, sums: Tensor) -> tuple[Tensor, Tensor]:
        """First and pooled second moments, from the features' weighted sums (K, F)."""


class _DiagonalScores(_LinearScores):
    """A variance of every coordinate and component. Features: coordinates and their squares."""

    def _linear(self, law: FiniteMixture) -> _Linear | None:
        assert isinstance(law, MixtureOfNormals)
        scale = law.scale
        whitened = law.loc / scale
        if not _is_near(whitened):
            return None
        precision = scale.square().reciprocal()
        coefficients = torch.cat([whitened / scale, -0.5 * precision], -1)
        return _Linear(coefficients, law.logits + _constants(whitened, scale))

    def _features(self, x: Tensor) -> Tensor:
        return torch.cat([x, x.square()], -1)

    def _moments(self, sums: Tensor) -> tuple[Tensor, Tensor]:
        first, second = sums.chunk(2, -1)
        return first, second


class _SphericalScores(_DiagonalScores):
    """One variance of every component. Features: coordinates and the sum of their squares."""

    def _linear(self, law: FiniteMixture) -> _Linear | None:
        linear, dim = super()._linear(law), law.event_shape[0]
        return linear and linear._replace(coefficients=linear.coefficients[:, : dim + 1])

    def _features(self, x: Tensor) -> Tensor:
        return torch.cat([x, x.square().sum(-1, keepdim=True)], -1)

    def _moments(self, sums: Tensor) -> tuple[Tensor, Tensor]:
        return sums[:, :-1], sums[:, -1:]


class _SharedScores(_LinearScores):
    """One variance of every coordinate. Features: coordinates.

    What is quadratic in the scores is the same for all components. Its sum over points follows
    from second moments of all the data, which need be computed but once.
    """

    def __init__(self, structure: CovarianceStructure, x: Tensor) -> None:
        super().__init__(structure, x)
        self._second = self._second_moments().unsqueeze(0)

    def _second_moments(self) -> Tensor:
        return torch.stack([b.square().sum(0) for b in self._blocks(2 * self.x.shape[-1])]).sum(0)

    def _linear(self, law: FiniteMixture) -> _Linear | None:
        assert isinstance(law, MixtureOfNormals)
        scale = law.scale[0]
        whitened = law.loc / scale
        if not _is_near(whitened):
            return None
        common = -0.5 * (self._second[0] / scale.square()).sum()
        return _Linear(whitened / scale, law.logits + _constants(whitened, scale), common)

    def _moments(self, sums: Tensor) -> tuple[Tensor, Tensor]:
        return sums, self._second


class _TiedScores(_SharedScores):
    """One covariance matrix. Features: coordinates."""

    def _second_moments(self) -> Tensor:
        return self.x.mT @ self.x

    def _linear(self, law: FiniteMixture) -> _Linear | None:
        assert isinstance(law, MixtureOfMultivariateNormals)
        tril = law._tril[0]
        inverse = inverse_tril(tril)
        whitened = law.loc @ inverse.mT
        if not (_is_near(whitened) and is_well_conditioned(tril, inverse)):
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
        first, second = torch.zeros_like(law.loc), law.loc.new_zeros(k, dim, dim)
        sums = [law.loc.new_zeros(k * (c.stop - c.start), c.stop) for c in columns]
        for block in self._blocks(k * width + dim):
            x = block.mT.contiguous()  # (D, n)
            scores = score(x)
            log_prob = log_prob + normalize(scores)
            weight += scores.sum(1)
            first.addmm_(scores, x.mT)
            for total, c in zip(sums, columns, strict=True):
                weighted = (scores.unsqueeze(1) * x[c]).flatten(0, 1)  # (K columns, n)
                total.addmm_(weighted, x[: c.stop].mT)
        for total, c in zip(sums, columns, strict=True):
            second[:, c, : c.stop] = total.reshape(k, -1, c.stop)
        second = second.tril() + second.tril(-1).mT
        return Statistics(log_prob, weight, first, second, torch.zeros_like(first))

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
        if not (_is_near(whitened) and is_well_conditioned(tril, inverse)):
            return None
        k = len(whitened)
        constants = law.logits - log_scale(tril)
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
        if not _is_near(law.loc / deviation):
            return None
        return lambda x: law._joint_log_prob(x.mT).mT.contiguous()


def _decomposed_scores(structure: CovarianceStructure, x: Tensor) -> _Products:
    """The products of a structure of volumes, shapes and orientations, by what these are."""
    if structure.full_moments:
        return _FullScores(structure, x)
    kind = _SphericalScores if "raw_shape" not in structure.shapes else _DiagonalScores
    return kind(structure, x)


_PRODUCTS: dict[type[CovarianceStructure], Callable[[CovarianceStructure, Tensor], _Products]] = {
    Decomposed: _decomposed_scores,
    Diagonal: _DiagonalScores,
    Spherical: _SphericalScores,
    Shared: _SharedScores,
    Tied: _TiedScores,
    Full: _FullScores,
    LowRankPrecision: _LowRankScores,
}


def _constants(whitened: Tensor, scale: Tensor) -> Tensor:
    """Log-density of components at the origin, shape (K,).

    Args:
        whitened: Means, in standard deviations, (K, D).
        scale: Diagonal of the covariances' factors, (K, D) or (D,).
    """
    log_normalizer = scale.log().sum(-1) + 0.5 * LOG_2PI * scale.shape[-1]
    return -0.5 * whitened.square().sum(-1) - log_normalizer


def _is_near(whitened: Tensor) -> bool:
    """Whether all means (K, D), in standard deviations, are near the origin."""
    return bool(whitened.square().sum(-1).max() <= NEAR)
