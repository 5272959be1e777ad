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

__all__ = ["Expectation", "Statistics", "joint_log_prob"]

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .covariance import (
    CovarianceStructure,
    Diagonal,
    Full,
    LowRankPrecision,
    Shared,
    Spherical,
    Tied,
)
from .dense import MixtureOfMultivariateNormals
from .density import LOG_2PI, log_sum_exp
from .finite import FiniteMixture, by_pattern
from .linear import inverse_tril, log_scale
from .normal import MixtureOfNormals
from .precision import MixtureOfLowRankPrecisionNormals

# Numbers that are worked on together: 2 MiB of float64 on a CPU, 128 MiB elsewhere.
CACHED_NUMBERS = 2**18
BLOCK_NUMBERS = 2**24

# Points of a block at least: matrix products of fewer rows are slow.
LEAST_ROWS = 256

# Products are taken up to this squared distance of a component from the origin, in its standard
# deviations, and up to this product of a factor's norm and its inverse's. Either bounds how many
# of float64's sixteen digits are lost.
NEAR = 1e5
WELL_CONDITIONED = 1e6
INVERTIBLE = 1e4  # if the factor's square is inverted

# Triangles are worked on in at most so many column blocks, of at least so many columns.
MOST_PARTS = 4
LEAST_COLUMNS = 16


class Statistics(NamedTuple):
    """Sums over points."""

    log_prob: Tensor
    """Log-likelihood, scalar."""
    weight: Tensor
    """Sum of responsibilities r, (K,)."""
    first: Tensor
    """Sum of r (x - c), (K, D)."""
    second: Tensor
    """Sum of r (x - c)^2, (K, D), or of outer products, (K, D, D), pooled by the structure."""
    reference: Tensor
    """The points c, (K, D)."""

    def plus(self, other: "Statistics") -> "Statistics":
        """The sums over both, which have the same reference points."""
        return Statistics(
            self.log_prob + other.log_prob,
            self.weight + other.weight,
            self.first + other.first,
            self.second + other.second,
            self.reference,
        )

    def times(self, factor: float) -> "Statistics":
        """The sums, each times a number."""
        return Statistics(
            self.log_prob * factor,
            self.weight * factor,
            self.first * factor,
            self.second * factor,
            self.reference,
        )


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
        return None if self._products is None else self._products(law)

    def around(self, law: FiniteMixture, reference: Tensor) -> Statistics:
        """Statistics around given points, (K, D)."""
        total: Statistics | None = None
        for block in self._x.split(max(1, 4 * CACHED_NUMBERS // law.num_components)):
            part = _general(law, block, reference, self._structure)
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
        return self.x.split(max(LEAST_ROWS, _block_numbers(self.x) // width))


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
            log_prob = log_prob + _normalize(scores)
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
        if not (_is_near(whitened) and _is_well_conditioned(tril, inverse)):
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
            log_prob = log_prob + _normalize(scores)
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
        if not (_is_near(whitened) and _is_well_conditioned(tril, inverse)):
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


_PRODUCTS: dict[type[CovarianceStructure], Callable[[CovarianceStructure, Tensor], _Products]] = {
    Diagonal: _DiagonalScores,
    Spherical: _SphericalScores,
    Shared: _SharedScores,
    Tied: _TiedScores,
    Full: _FullScores,
    LowRankPrecision: _LowRankScores,
}


def joint_log_prob(law: FiniteMixture, x: Tensor) -> Tensor:
    """Log w_k + log p_k of the observed entries of points (N, D), shape (N, K)."""
    missing = x.isnan()
    if not bool(missing.any()):
        return law._joint_log_prob(x)
    return law._joint_log_prob_observed(x.masked_fill(missing, 0.0), ~missing)


def _general(
    law: FiniteMixture, x: Tensor, reference: Tensor, structure: CovarianceStructure
) -> Statistics:
    """Statistics whatever the data: missing entries have the moments that are expected of them."""
    if structure.full_moments and bool(x.isnan().any()):
        precision = _precision(law)
        if precision is not None:
            return _with_gaps(law, precision, x, reference, structure)
    scores = joint_log_prob(law, x)
    log_prob = log_sum_exp(scores)
    responsibility = (scores - log_prob.unsqueeze(-1)).exp()  # (N, K)
    weight = responsibility.sum(0)
    moments = _matrix_moments if structure.full_moments else _diagonal_moments
    first, second = moments(law, x, reference, responsibility)
    return Statistics(log_prob.sum(), weight, first, structure.pool(second), reference)


def _diagonal_moments(
    law: FiniteMixture, x: Tensor, reference: Tensor, responsibility: Tensor
) -> tuple[Tensor, Tensor]:
    """First and second moments; within a component coordinates are independent."""
    observed = (~x.isnan()).to(x.dtype)
    x = x.nan_to_num(0.0)
    seen = responsibility.mT @ observed
    missing = responsibility.sum(0).unsqueeze(-1) - seen
    first = responsibility.mT @ x - seen * reference
    second = responsibility.mT @ x.square() - reference * (2 * first + seen * reference)
    shift = law.loc - reference
    expected = law.component_variance + shift.square()
    return first + missing * shift, second.clamp(min=0) + missing * expected


def _matrix_moments(
    law: FiniteMixture, x: Tensor, reference: Tensor, responsibility: Tensor
) -> tuple[Tensor, Tensor]:
    """First and second moments, with those of missing entries given the observed ones."""
    k, dim = reference.shape
    first, second = x.new_zeros(k, dim), x.new_zeros(k, dim, dim)
    for given, free, rows in by_pattern(~x.isnan()):
        r = responsibility[rows]
        filled = x[rows].unsqueeze(-2).repeat(1, k, 1)  # (n, K, D)
        if free:
            at = torch.tensor(free, device=x.device)
            part = law if not given else law._condition(given, free, x[rows][:, given])
            filled[..., at] = part.loc.expand(len(rows), k, len(free))
            second[:, at.unsqueeze(-1), at] += r.sum(0)[:, None, None] * part.component_covariance
        difference = (filled - reference).movedim(1, 0)  # (K, n, D)
        weighted = r.mT.unsqueeze(-1) * difference
        first += weighted.sum(1)
        second.baddbmm_(weighted.mT, difference)
    return first, second


def _precision(law: FiniteMixture) -> Tensor | None:
    """Precision matrices of the components, or None if they lose too many digits.

    Their shape is (K, D, D), or (1, D, D) where they are tied.
    """
    if isinstance(law, MixtureOfLowRankPrecisionNormals):
        precision = law.precision_matrix
        tril = torch.linalg.cholesky(precision)
        inverse = inverse_tril(tril)
    else:
        assert isinstance(law, MixtureOfMultivariateNormals)
        tril = law._tril
        inverse = inverse_tril(tril)
        precision = inverse.mT @ inverse
    return precision if _is_well_conditioned(tril, inverse, INVERTIBLE) else None


def _with_gaps(
    law: FiniteMixture,
    precision: Tensor,
    x: Tensor,
    reference: Tensor,
    structure: CovarianceStructure,
) -> Statistics:
    r"""Statistics of points with missing entries, row by row in batches.

    With the precision matrix P, the missing entries have covariance :math:`C = P_{mm}^{-1}` and
    mean :math:`m_m - C g`, where :math:`g = P_{mo} (x_o - m_o)`. In place of the observed
    entries' density stands that of the completed point times :math:`|2 \pi C|^{1/2}`.
    """
    k, dim = reference.shape
    log_prob, weight = x.new_zeros(()), x.new_zeros(k)
    first, second = x.new_zeros(k, dim), x.new_zeros(k, dim, dim)
    half_log_det = 0.5 * torch.linalg.slogdet(precision).logabsdet
    gaps = x.isnan()
    count = gaps.sum(-1)
    for missing in count.unique().tolist():  # rows with as many gaps, wherever those are
        rows = (count == missing).nonzero().flatten()
        for part in rows.split(max(1, _block_numbers(x) // (k * max(dim, missing**2)))):
            at = gaps[part].nonzero()[:, 1].reshape(len(part), missing)
            difference = (x[part] - law.loc.unsqueeze(1)).nan_to_num(0.0)  # (K, n, D)
            pull = difference @ precision
            scores = (half_log_det - 0.5 * LOG_2PI * (dim - missing)).unsqueeze(-1)
            scores = scores - 0.5 * (pull * difference).sum(-1)
            index = at.expand(k, -1, -1)
            pull = pull.gather(-1, index).unsqueeze(-1)  # g
            inner = precision[:, at.unsqueeze(-1), at.unsqueeze(-2)]  # (K, n, missing, missing)
            tril = torch.linalg.cholesky(inner)
            half = torch.linalg.solve_triangular(tril, pull, upper=False).squeeze(-1)
            scores = scores + 0.5 * half.square().sum(-1)
            scores = scores - tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
            scores = scores + law.logits.unsqueeze(-1)
            log_prob = log_prob + _normalize(scores)
            weight += scores.sum(1)
            covariance = torch.cholesky_inverse(tril)
            difference.scatter_(-1, index, -(covariance @ pull).squeeze(-1))
            difference += (law.loc - reference).unsqueeze(1)
            weighted = scores.unsqueeze(-1) * difference
            first += weighted.sum(1)
            second.baddbmm_(weighted.mT, difference)
            flat = (at.unsqueeze(-1) * dim + at.unsqueeze(-2)).flatten()
            spread = (scores[..., None, None] * covariance).flatten(1)
            second.view(k, -1).index_add_(1, flat, spread)
    return Statistics(log_prob, weight, first, structure.pool(second), reference)


def _block_numbers(x: Tensor) -> int:
    return CACHED_NUMBERS if x.device.type == "cpu" else BLOCK_NUMBERS


def _normalize(scores: Tensor) -> Tensor:
    """Turns scores (K, n) into responsibilities, in place.

    Returns:
        Log-likelihood of all n points, scalar.
    """
    top = scores.amax(0)
    total = scores.sub_(top).exp_().sum(0)
    scores.div_(total)
    return (top + total.log()).sum()


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


def _is_well_conditioned(tril: Tensor, inverse: Tensor, limit: float = WELL_CONDITIONED) -> bool:
    size = torch.linalg.matrix_norm(tril) * torch.linalg.matrix_norm(inverse)
    return bool(size.max() <= limit)
