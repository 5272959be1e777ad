r"""How well many normals agree with linear evidence, approximately and fast.

For means m and standard deviations s,

.. math:: \log \int N(x; m, \operatorname{diag} s^2) \, q(x) \, dx

is exact for values, Gaussian priors and linear observations. Inequalities enter with the
probability of each alone, given the rest, as if they were independent: exact for one, or a box on
independent coordinates. It steers a search; weights are computed exactly afterwards.
"""

__all__ = ["EvidenceParts", "EvidenceScore", "rough_log_probability"]

import math
from typing import NamedTuple

import torch
from torch import Size, Tensor

from ..conditioning.truncated.interval import log_interval_probability
from ..evidence.linear import LinearEvidence
from ..numerics.batches import stack_observed
from ..numerics.diagonal_density import LOG_2PI, component_log_prob
from ..numerics.triangular import half_log_det, inverse_cholesky

# Added to the variance of every observation, as a share of it: rows may be dependent.
JITTER = 1e-9
# Intervals that are less likely than this are not computed by the error function.
LEAST_BY_ERF = 1e-3
SQRT_HALF = math.sqrt(0.5)

# What observations leave of the variance of an inequality's row is at least this share.
LEAST_LEFT = 1e-12

# Numbers in an intermediate result.
CHUNK_NUMBERS = 2**23


class EvidenceParts(NamedTuple):
    """Linear evidence on independent columns, apart: single columns, combinations, inequalities.

    Columns with values count by themselves, and so do columns with a reading of their own, such as
    a `GaussianPrior`, if nothing else is said of them. Other statements are about other columns.
    """

    columns: list[int]
    """Columns with values or readings."""
    value: Tensor
    """Their values, shape (E, columns)."""
    variance: Tensor
    """Of the readings' noise, shape (columns,), zero for values."""
    matrix: Tensor
    """Combinations of the other columns, shape (q, D)."""
    y: Tensor
    """What they are, shape (E, q)."""
    noise: Tensor
    """Covariance of their noise, shape (q, q)."""
    rows: Tensor
    """Inequalities on the other columns, shape (p, D)."""
    low: Tensor
    """Lower bounds, shape (E, 1, p)."""
    high: Tensor
    """Upper bounds, shape (E, 1, p)."""
    axes: Tensor | None
    """The column that each inequality is about, shape (p,), if each is about one at most."""
    has_noise: bool
    """Whether a single column has a reading with noise."""

    @classmethod
    def of(
        cls, evidence: LinearEvidence, batch_shape: Size, entries: slice = slice(None)
    ) -> "EvidenceParts":
        """Of evidence, for some of the entries that a batch shape has.

        Args:
            evidence: The evidence on D columns.
            batch_shape: A shape that the evidence's expands to, of E entries.
            entries: Which of the entries; all by default.
        """
        count = batch_shape.numel()
        matrix, y, noise = evidence.combinations(batch_shape)
        rows, low, high = evidence.inequalities(batch_shape)
        y, low, high = (t.reshape(count, t.shape[-1])[entries] for t in (y, low, high))
        columns = list(evidence.observed)
        value, variance = y.new_zeros(len(y), 0), y.new_zeros(len(columns))
        if columns:
            value = stack_observed(list(evidence.observed.values()))
            value = value.expand(*batch_shape, -1).reshape(count, -1)[entries]
        matrix, shift = _without(matrix, columns, value)
        y = y - shift
        rows, shift = _without(rows, columns, value)
        low, high = ((bound - shift).unsqueeze(1) for bound in (low, high))
        own = _readings(matrix, noise, rows)
        if bool(own.any()):
            columns = columns + matrix[own].argmax(-1).tolist()
            value = torch.cat([value, y[:, own]], -1)
            variance = torch.cat([variance, noise.diagonal()[own]])
            matrix, y, noise = matrix[~own], y[:, ~own], noise[~own][:, ~own]
        single = bool(((rows != 0).sum(-1) <= 1).all())
        axes = rows.abs().argmax(-1) if single and len(rows) else None
        has_noise = bool((variance != 0).any())
        return cls(columns, value, variance, matrix, y, noise, rows, low, high, axes, has_noise)


def _without(matrix: Tensor, columns: list[int], value: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (q, D) without columns that have values (E, c), and what those add, (E, q)."""
    if not columns:
        return matrix, matrix.new_zeros(1, len(matrix))
    shift = value @ matrix[:, columns].mT
    matrix = matrix.clone()
    matrix[:, columns] = 0.0
    return matrix, shift


def _readings(matrix: Tensor, noise: Tensor, rows: Tensor) -> Tensor:
    """Which rows (q, D) are of columns, with noise of their own, of which nothing else is said."""
    used = matrix != 0
    other = used.sum(0) + (rows != 0).sum(0)
    single = (used.sum(-1) == 1) & (matrix.sum(-1) == 1) & ((used & (other == 1)).any(-1))
    apart = ((noise != 0).sum(-1) == 1) & (noise.diagonal() > 0)
    return single & apart


class EvidenceScore:
    r"""Linear evidence under normals with given standard deviations and any means.

    Args:
        parts: The evidence.
        scale: Standard deviations, shape (K, D), or (1, D) if all normals share them.

    Attributes:
        num_rows: Number of inequalities.
    """

    def __init__(self, parts: EvidenceParts, scale: Tensor) -> None:
        self._dtype, self._parts = scale.dtype, parts
        columns, matrix, rows = parts.columns, parts.matrix, parts.rows
        self._spread = scale[:, columns]
        if parts.has_noise:
            self._spread = (self._spread.double().square() + parts.variance).sqrt().to(scale)
        variance = scale.double().square().unsqueeze(-2)  # (K, 1, D)
        self._count, self.num_rows = len(matrix), len(rows)
        if self._count:
            spread = matrix * variance  # (K, q, D)
            self._inverse = inverse_cholesky(spread @ matrix.mT + parts.noise, JITTER)
            # Of the inverses, (K,).
            self._constant = half_log_det(self._inverse) - 0.5 * LOG_2PI * self._count
        if self.num_rows:
            left = own = (variance @ rows.square().mT).squeeze(-2)  # (K, p)
            if self._count:
                whitened = self._inverse @ (spread @ rows.mT)  # (K, q, p)
                self._gain = whitened.mT @ self._inverse  # (K, p, q)
                left = own - whitened.square().sum(-2)
            # Rows that values fix are met, or the evidence contradicts itself: seen elsewhere.
            self._is_free = own > 0
            left = torch.maximum(left, LEAST_LEFT * own)
            self._deviation = torch.where(self._is_free, left, 1.0).sqrt()

    @property
    def observes_values_alone(self) -> bool:
        """Whether nothing but values was observed."""
        return not self._count and not self._parts.has_noise

    @property
    def constant(self) -> Tensor:
        """Log-density of values at the means, (K,) or (1,)."""
        return -(self._spread.log() + 0.5 * LOG_2PI).sum(-1)

    def observations(self, mean: Tensor, loc: Tensor) -> Tensor:
        """Log-density of what was observed, for sums of means: shape (E, P, K).

        Args:
            mean: Shape (E, P, D).
            loc: Means of components, which add to every one of those, shape (K, D).
        """
        columns = self._parts.columns
        if not columns:
            return self._statements(mean, loc)
        points = (self._parts.value.unsqueeze(1) - mean[..., columns].double()).to(self._dtype)
        scale, zero = self._spread.expand(len(loc), -1), loc.new_zeros(())
        fit = component_log_prob(points.flatten(0, 1), loc[:, columns], scale, zero)
        fit = fit.reshape(*mean.shape[:2], len(loc))
        return fit + self._statements(mean, loc) if self._count else fit

    def _statements(self, mean: Tensor, loc: Tensor) -> Tensor:
        """Log-density of all but values; see `observations`."""
        shape = (*mean.shape[:2], len(loc))
        if not self._count:
            return mean.new_zeros(1, 1, 1).expand(shape)
        residual = self._residual(mean).flatten(0, 1)  # (n, q)
        seen = loc.double() @ self._parts.matrix.mT  # (K, q)
        if len(self._inverse) == 1:
            inverse = self._inverse[0].mT
            points, centres = (
                (residual @ inverse).to(self._dtype),
                (seen @ inverse).to(self._dtype),
            )
            constant = (self._constant + 0.5 * LOG_2PI * self._count).to(self._dtype)
            scores = component_log_prob(points, centres, torch.ones_like(centres), constant)
            return scores.reshape(shape)
        inverse = self._inverse.to(self._dtype)
        shift = (self._inverse @ seen.unsqueeze(-1)).to(self._dtype)  # (K, q, 1)
        parts = []
        for part in residual.to(self._dtype).split(max(1, CHUNK_NUMBERS // shift.numel())):
            z = inverse @ part.mT - shift  # (K, q, n)
            parts.append(z.square().sum(-2).mT)
        return (self._constant.to(self._dtype) - 0.5 * torch.cat(parts)).reshape(shape)

    def observations_of(self, mean: Tensor, index: Tensor) -> Tensor:
        """Log-density of what was observed, for normals with means (E, P, D): shape (E, P).

        Args:
            mean: Means of the normals, shape (E, P, D).
            index: Which scale each has, shape (E, P).
        """
        total = mean.new_zeros(mean.shape[:-1])
        columns = self._parts.columns
        if columns:
            scale = self._of(self._spread, index).double()
            z = (self._parts.value.unsqueeze(1) - mean[..., columns].double()) / scale
            total = total - (0.5 * z.square() + scale.log() + 0.5 * LOG_2PI).sum(-1)
        if self._count:
            residual = self._residual(mean).unsqueeze(-1)
            z = self._of(self._inverse, index) @ residual
            constant = self._of(self._constant, index)
            total = total + constant - 0.5 * z.square().sum((-2, -1))
        return total.to(self._dtype)

    def inequalities_of(
        self, mean: Tensor, index: Tensor | None, *, rough: bool = False
    ) -> Tensor:
        """Log-probabilities of every inequality, given what was observed: (E, P, p).

        Args:
            mean: Means of normals, shape (E, P, D).
            index: Which scale each has, shape (E, P); None for the first.
            rough: Whether to treat the two sides of an interval as independent where it is
                unlikely. That is many times faster, and never far off.
        """
        if not self.num_rows:
            return mean.new_zeros(*mean.shape[:-1], 0)
        index = mean.new_zeros(mean.shape[:-1], dtype=torch.long) if index is None else index
        dtype = self._dtype if rough else torch.float64
        rows, axes = self._parts.rows.to(dtype), self._parts.axes
        if axes is None:
            centre = mean.to(dtype) @ rows.mT
        else:  # a product with a matrix of mostly zeros takes hundreds of times longer
            centre = mean[..., axes].to(dtype) * rows.sum(-1)
        if self._count:
            change = self._of(self._gain, index) @ self._residual(mean).unsqueeze(-1)
            centre = centre + change.squeeze(-1).to(dtype)
        unit = self._of(self._deviation.to(dtype).reciprocal(), index)
        low, high = (
            (bound.to(dtype) - centre).mul_(unit) for bound in (self._parts.low, self._parts.high)
        )
        if rough:
            told = rough_log_probability(low, high)
        else:
            told = log_interval_probability(low, high).to(self._dtype)
        return torch.where(self._of(self._is_free, index), told, 0.0)

    def _residual(self, mean: Tensor) -> Tensor:
        """What the means leave of the observations, shape (E, P, q)."""
        return self._parts.y.unsqueeze(1) - mean.double() @ self._parts.matrix.mT

    def _of(self, t: Tensor, index: Tensor) -> Tensor:
        """Entries (E, P, *T) of t (K, *T), or of t (1, *T) that all share."""
        return t[0].expand(*index.shape, *t.shape[1:]) if len(t) == 1 else t[index]


def rough_log_probability(low: Tensor, high: Tensor) -> Tensor:
    """Log-probability of intervals of a standard normal, roughly.

    The error function has a fast routine, and no digits left where intervals are unlikely: there
    the two sides are taken as independent.
    """
    told = 0.5 * (torch.erf(high * SQRT_HALF) - torch.erf(low * SQRT_HALF))
    unlikely = told < LEAST_BY_ERF
    told = told.clamp(min=LEAST_BY_ERF).log()
    if bool(unlikely.any()):
        below, above = low[unlikely], high[unlikely]
        told[unlikely] = torch.special.log_ndtr(-below) + torch.special.log_ndtr(above)
    return told
