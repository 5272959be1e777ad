"""Sufficient statistics of mixtures, by the densities of their components."""

__all__ = [
    "CACHED_NUMBERS",
    "LEAST_ROWS",
    "Statistics",
    "are_well_conditioned",
    "block_numbers",
    "completed_rows",
    "components_of",
    "diagonal_moments",
    "empty_statistics",
    "general_statistics",
    "joint_log_prob",
    "matrix_moments",
    "normalize",
]

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ...numerics.batches import by_pattern
from ...numerics.diagonal_density import LOG_2PI, log_sum_exp
from ...numerics.triangular import inverse_tril
from ..covariance import CovarianceStructure, OfRank
from ..finite import FiniteMixture
from ..full import MixtureOfMultivariateNormals
from ..low_rank import MixtureOfLowRankPrecisionNormals

if TYPE_CHECKING:
    from lightning_fabric import Fabric

# Numbers that are worked on together: 2 MiB of float64 on a CPU, 128 MiB elsewhere.
CACHED_NUMBERS = 2**18
BLOCK_NUMBERS = 2**24

# Points of a block at least: matrix products of fewer rows are slow.
LEAST_ROWS = 256

# Up to this product of a factor's norm and its inverse's, the factor's square is inverted: it
# bounds how many of float64's sixteen digits are lost.
INVERTIBLE = 1e4

# Where a component's score is this far below the highest, it counts as so far. Responsibilities of
# lower ones would be subnormal numbers, which exponentials and products are slow with.
SMALLEST_SCORE = {torch.float32: -70.0, torch.float64: -300.0}


class Statistics(NamedTuple):
    """Sums over points."""

    log_prob: Tensor
    """Log-likelihood, scalar."""
    weight: Tensor
    """Sum of responsibilities r, (K,)."""
    first: Tensor
    """Sum of r (x - c), (K, D), followed by those of factors, (K, D + r), where there are."""
    second: Tensor
    """Sum of r (x - c)^2, (K, D), or of outer products, (K, D, D), pooled by the structure; or
    those of points and factors, (K, D + r, 1 + r), see `LowRank.outer`."""
    reference: Tensor
    """The points c, (K, D)."""
    mass: Tensor | None = None
    """Sum of r u, (K,), in place of r in both moments; None where u is one. See `student`."""
    log_factor: Tensor | None = None
    """Sum of r E[log g], (K,), where there is a mass."""

    def plus(self, other: "Statistics") -> "Statistics":
        """The sums over both, which have the same reference points."""
        parts = zip(self._sums().values(), other._sums().values(), strict=True)
        return self._with([a + b for a, b in parts])

    def times(self, factor: float) -> "Statistics":
        """The sums, each times a number."""
        return self._with([part * factor for part in self._sums().values()])

    def over_processes(self, fabric: "Fabric | None") -> "Statistics":
        """The sums over the points of all processes."""
        if fabric is None or fabric.world_size == 1:
            return self
        parts = list(self._sums().values())
        flat = fabric.all_reduce(torch.cat([p.flatten() for p in parts]), reduce_op="sum")
        assert isinstance(flat, Tensor)
        sums = flat.split([p.numel() for p in parts])
        return self._with([s.reshape_as(p) for s, p in zip(sums, parts, strict=True)])

    def _sums(self) -> dict[str, Tensor]:
        """All that is summed over points, by name."""
        fields = self._asdict()
        del fields["reference"]
        return {name: value for name, value in fields.items() if value is not None}

    def _with(self, sums: list[Tensor]) -> "Statistics":
        """Other sums, in the order of `_sums`, around the same reference points."""
        return self._replace(**dict(zip(self._sums(), sums, strict=True)))


def joint_log_prob(law: FiniteMixture, x: Tensor) -> Tensor:
    """Log w_k + log p_k of the observed entries of points (N, D), shape (N, K)."""
    missing = x.isnan()
    if not bool(missing.any()):
        return law._joint_log_prob(x)
    return law._joint_log_prob_observed(x.masked_fill(missing, 0.0), ~missing)


def empty_statistics(
    law: FiniteMixture, reference: Tensor, structure: CovarianceStructure
) -> Statistics:
    """Those of no points: zeros."""
    k, dim = reference.shape
    first = torch.zeros_like(reference)
    shape: tuple[int, ...] = (k, dim, dim) if structure.full_moments else (k, dim)
    if isinstance(structure, OfRank) and structure.has_factors:
        first = reference.new_zeros(k, dim + structure.rank)
        shape = (k, dim + structure.rank, 1 + structure.rank)
    second, weight = structure.pool(reference.new_zeros(shape)), law.loc.new_zeros(k)
    return Statistics(weight.sum(), weight, first, second, reference)


def general_statistics(
    law: FiniteMixture,
    x: Tensor,
    reference: Tensor,
    structure: CovarianceStructure,
    point_weight: Tensor | None = None,
) -> Statistics:
    """Statistics of any data: missing entries have the moments that are expected of them.

    Args:
        law: The mixture.
        x: Points, shape (N, D), NaN where an entry is missing.
        reference: The points c around which moments are taken, shape (K, D).
        structure: The structure of the covariances, which says which second moments it needs.
        point_weight: Weights of the points, (N,); by default all are one.
    """
    if structure.full_moments and bool(x.isnan().any()):
        precision = precision_of(law)
        if precision is not None:
            return with_gaps(law, precision, x, reference, structure, point_weight)
    scores = joint_log_prob(law, x)
    log_prob = log_sum_exp(scores)
    responsibility = (scores - log_prob.unsqueeze(-1)).exp()  # (N, K)
    if point_weight is not None:
        log_prob = point_weight * log_prob
        responsibility = point_weight.unsqueeze(-1) * responsibility
    weight = responsibility.sum(0)
    moments = matrix_moments if structure.full_moments else diagonal_moments
    first, second = moments(law, x, reference, responsibility)
    return Statistics(log_prob.sum(), weight, first, structure.pool(second), reference)


def diagonal_moments(
    law: FiniteMixture, x: Tensor, reference: Tensor, responsibility: Tensor
) -> tuple[Tensor, Tensor]:
    """First and second moments (K, D), where within a component coordinates are independent.

    Args:
        law: The mixture.
        x: Points, shape (N, D), NaN where an entry is missing.
        reference: The points c around which moments are taken, shape (K, D).
        responsibility: Probabilities of the components given the points, shape (N, K).
    """
    observed = (~x.isnan()).to(x.dtype)
    x = x.nan_to_num(0.0)
    seen = responsibility.mT @ observed
    missing = responsibility.sum(0).unsqueeze(-1) - seen
    first = responsibility.mT @ x - seen * reference
    second = responsibility.mT @ x.square() - reference * (2 * first + seen * reference)
    shift = law.loc - reference
    expected = law.component_variance + shift.square()
    return first + missing * shift, second.clamp(min=0) + missing * expected


def matrix_moments(
    law: FiniteMixture, x: Tensor, reference: Tensor, responsibility: Tensor
) -> tuple[Tensor, Tensor]:
    """First moments (K, D) and second ones (K, D, D), of missing entries given the observed ones.

    Args:
        law: The mixture.
        x: Points, shape (N, D), NaN where an entry is missing.
        reference: The points c around which moments are taken, shape (K, D).
        responsibility: Probabilities of the components given the points, shape (N, K).
    """
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


def precision_of(law: FiniteMixture) -> Tensor | None:
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
    return precision if bool(are_well_conditioned(tril, inverse, INVERTIBLE).all()) else None


def with_gaps(
    law: FiniteMixture,
    precision: Tensor,
    x: Tensor,
    reference: Tensor,
    structure: CovarianceStructure,
    point_weight: Tensor | None = None,
) -> Statistics:
    """Statistics of points with missing entries, row by row in batches; see `completed_rows`."""
    k, dim = reference.shape
    log_prob, weight = x.new_zeros(()), x.new_zeros(k)
    first, second = x.new_zeros(k, dim), x.new_zeros(k, dim, dim)
    for part in completed_rows(law.loc, precision, x):
        scores = law.logits.unsqueeze(-1) + part.peak - 0.5 * part.square
        w = None if point_weight is None else point_weight[part.rows]
        log_prob = log_prob + normalize(scores, w)
        weight += scores.sum(1)
        part.add_to(first, second, scores, scores, law.loc - reference)
    return Statistics(log_prob, weight, first, structure.pool(second), reference)


class CompletedRows(NamedTuple):
    """Points with as many gaps each, under every component."""

    rows: Tensor
    """Which they are, (n,)."""
    peak: Tensor
    """Log-density of the observed entries at their means, (K, n)."""
    square: Tensor
    """Squared distance of the observed entries from their means, (K, n)."""
    difference: Tensor
    """Points less the means, missing entries as they are expected, (K, n, D)."""
    missing: Tensor
    """Which entries are missing, (n, M)."""
    covariance: Tensor
    """Covariances of these given the others, (K, n, M, M)."""

    def add_to(
        self, first: Tensor, second: Tensor, weight: Tensor, share: Tensor, shift: Tensor
    ) -> None:
        """Adds moments around reference points to sums of them.

        Args:
            first: First moments, (K, D), changed in place.
            second: Second moments, (K, D, D), changed in place.
            weight: What points count, (K, n).
            share: What the covariances of missing entries count, (K, n).
            shift: Means less reference points, (K, D).
        """
        k, dim = first.shape
        difference = self.difference + shift.unsqueeze(1)
        weighted = weight.unsqueeze(-1) * difference
        first += weighted.sum(1)
        second.baddbmm_(weighted.mT, difference)
        flat = (self.missing.unsqueeze(-1) * dim + self.missing.unsqueeze(-2)).flatten()
        spread = (share[..., None, None] * self.covariance).flatten(1)
        second.view(k, -1).index_add_(1, flat, spread)


def completed_rows(loc: Tensor, precision: Tensor, x: Tensor) -> Iterator[CompletedRows]:
    r"""Completes points with missing entries, in batches of as many gaps.

    With the precision matrix P, the missing entries have covariance :math:`C = P_{mm}^{-1}` and
    mean :math:`m_m - C g`, where :math:`g = P_{mo} (x_o - m_o)`. In place of the observed
    entries' density stands that of the completed point times :math:`|2 \pi C|^{1/2}`.

    Args:
        loc: Means, (K, D).
        precision: Precision matrices, (K, D, D), or (1, D, D) where they are tied.
        x: Points, (N, D), NaN where an entry is missing.
    """
    k, dim = loc.shape
    half_log_det = 0.5 * torch.linalg.slogdet(precision).logabsdet
    gaps = x.isnan()
    count = gaps.sum(-1)
    for missing in count.unique().tolist():  # rows with as many gaps, wherever those are
        rows = (count == missing).nonzero().flatten()
        for part in rows.split(max(1, block_numbers(x.device) // (k * max(dim, missing**2)))):
            at = gaps[part].nonzero()[:, 1].reshape(len(part), missing)
            difference = (x[part] - loc.unsqueeze(1)).nan_to_num(0.0)  # (K, n, D)
            pull = difference @ precision
            square = (pull * difference).sum(-1)
            index = at.expand(k, -1, -1)
            pull = pull.gather(-1, index).unsqueeze(-1)  # g
            inner = precision[:, at.unsqueeze(-1), at.unsqueeze(-2)]  # (K, n, missing, missing)
            tril = torch.linalg.cholesky(inner)
            half = torch.linalg.solve_triangular(tril, pull, upper=False).squeeze(-1)
            square = square - half.square().sum(-1)
            log_det = tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
            peak = (half_log_det - 0.5 * LOG_2PI * (dim - missing)).unsqueeze(-1) - log_det
            covariance = torch.cholesky_inverse(tril)
            difference.scatter_(-1, index, -(covariance @ pull).squeeze(-1))
            yield CompletedRows(part, peak, square, difference, at, covariance)


def block_numbers(device: torch.device) -> int:
    """How many numbers are worked on together on a device."""
    return CACHED_NUMBERS if device.type == "cpu" else BLOCK_NUMBERS


def normalize(scores: Tensor, weight: Tensor | None = None) -> Tensor:
    """Turns scores (K, n) into responsibilities, times the points' weights (n,), in place.

    Returns:
        Log-likelihood of all n points, times their weights, scalar in float64.
    """
    top = scores.amax(0)
    scores.sub_(top).clamp_(min=SMALLEST_SCORE[scores.dtype])
    total = scores.exp_().sum(0)
    log_prob = top.double() + total.double().log()
    if weight is None:
        scores.mul_(total.reciprocal_())
        return log_prob.sum()
    scores.mul_(weight / total)
    return (weight * log_prob).sum()


def are_well_conditioned(tril: Tensor, inverse: Tensor, limit: float) -> Tensor:
    r"""Which triangles (\*B, D, D), with their inverses, lose few digits in products: (\*B)."""
    return torch.linalg.matrix_norm(tril) * torch.linalg.matrix_norm(inverse) <= limit


def components_of(law: FiniteMixture, index: Tensor) -> FiniteMixture:
    """The mixture of some components of one without batch, by their indices (n,)."""
    tensors = []
    for name, tail in law._tensors.items():
        part = getattr(law, name)
        at = part.dim() - tail  # components come first of what follows the batch
        tensors.append(part.index_select(at, index) if part.shape[at] > 1 else part)
    make: Any = type(law)
    return make(law.logits[index], *tensors, validate_args=False)
