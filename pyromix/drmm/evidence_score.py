r"""How well many normals agree with linear evidence, approximately and fast.

For means m and standard deviations s,

.. math:: \log \int N(x; m, \operatorname{diag} s^2) \, q(x) \, dx

is exact for values, Gaussian priors and linear observations. Inequalities enter with the
probability of each alone, given the rest, as if they were independent: exact for one, or a box on
independent coordinates. It steers a search; weights are computed exactly afterwards.
"""

__all__ = ["EvidenceScore"]


import torch
from torch import Size, Tensor

from ..conditioning.truncated.interval import log_interval_probability
from ..evidence.linear import LinearEvidence
from ..numerics.batches import stack_observed
from ..numerics.diagonal_density import LOG_2PI, component_log_prob
from ..numerics.triangular import inverse_tril

# Added to the variance of every observation, as a share of it: rows may be dependent.
JITTER = 1e-9
# What observations leave of the variance of an inequality's row is at least this share.
LEAST_LEFT = 1e-12

# Numbers in an intermediate result.
CHUNK_NUMBERS = 2**23


class EvidenceScore:
    r"""Linear evidence under normals with given standard deviations and any means.

    Args:
        evidence: The evidence on D columns.
        batch_shape: A shape that the evidence's expands to, of E entries.
        scale: Standard deviations, shape (K, D), or (1, D) if all normals share them.
        entries: Which of the entries to score; all by default.

    Attributes:
        num_rows: Number of inequalities.
    """

    def __init__(
        self,
        evidence: LinearEvidence,
        batch_shape: Size,
        scale: Tensor,
        entries: slice = slice(None),
    ) -> None:
        self._dtype, self._scale = scale.dtype, scale
        variance = scale.double().square().unsqueeze(-2)  # (K, 1, D)
        # Columns are independent: those with values count by themselves, and other statements are
        # about the others.
        self._given = list(evidence.observed)
        if self._given:
            value = stack_observed(list(evidence.observed.values()))
            value = value.expand(*batch_shape, -1).reshape(batch_shape.numel(), -1)
            self._value = value[entries]
        matrix, y, noise = evidence.combinations(batch_shape)
        matrix, shift = self._without_given(matrix)
        y = y.reshape(batch_shape.numel(), len(matrix))[entries] - shift
        self._count = len(matrix)
        spread = matrix * variance  # (K, q, D)
        covariance = spread @ matrix.mT + noise
        self._inverse = covariance
        if self._count:
            jitter = JITTER * torch.diag_embed(covariance.diagonal(dim1=-2, dim2=-1))
            self._inverse = inverse_tril(torch.linalg.cholesky(covariance + jitter))
        log_det = -self._inverse.diagonal(dim1=-2, dim2=-1).log().sum(-1)  # (K,)
        self._constant = -log_det - 0.5 * LOG_2PI * self._count
        self._matrix, self._y = matrix, y
        self.num_rows = evidence.num_rows
        if self.num_rows:
            rows, low, high = evidence.inequalities(batch_shape)
            rows, shift = self._without_given(rows)
            self._rows = rows
            self._low, self._high = (
                (t.reshape(batch_shape.numel(), len(rows))[entries] - shift).unsqueeze(1)
                for t in (low, high)
            )
            whitened = self._inverse @ (spread @ rows.mT)  # (K, q, p)
            self._gain = whitened.mT @ self._inverse  # (K, p, q)
            own = (variance @ rows.square().mT).squeeze(-2)  # (K, p)
            left = own - whitened.square().sum(-2)
            # Rows that values fix are met, or the evidence contradicts itself: seen elsewhere.
            self._is_free = own > 0
            left = torch.maximum(left, LEAST_LEFT * own)
            self._deviation = torch.where(self._is_free, left, 1.0).sqrt()

    def _without_given(self, matrix: Tensor) -> tuple[Tensor, Tensor]:
        """Rows (q, D) without columns that have values, and what those add, (E, q)."""
        if not self._given:
            return matrix, matrix.new_zeros(1, len(matrix))
        shift = self._value @ matrix[:, self._given].mT
        matrix = matrix.clone()
        matrix[:, self._given] = 0.0
        return matrix, shift

    def observations(self, mean: Tensor, loc: Tensor) -> Tensor:
        """Log-density of what was observed, for sums of means: shape (E, P, K).

        Args:
            mean: Shape (E, P, D).
            loc: Means of components, which add to every one of those, shape (K, D).
        """
        if not self._given:
            return self._statements(mean, loc)
        points = (self._value.unsqueeze(1) - mean[..., self._given].double()).to(self._dtype)
        scale = self._scale[:, self._given].expand(len(loc), -1)
        zero = loc.new_zeros(())
        fit = component_log_prob(points.flatten(0, 1), loc[:, self._given], scale, zero)
        fit = fit.reshape(*mean.shape[:2], len(loc))
        return fit + self._statements(mean, loc) if self._count else fit

    def _statements(self, mean: Tensor, loc: Tensor) -> Tensor:
        """Log-density of all but values; see `observations`."""
        shape = (*mean.shape[:2], len(loc))
        if not self._count:
            return mean.new_zeros(1, 1, 1).expand(shape)
        residual = self._residual(mean).flatten(0, 1)  # (n, q)
        seen = loc.double() @ self._matrix.mT  # (K, q)
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
        if self._given:
            scale = self._of(self._scale[:, self._given], index).double()
            z = (self._value.unsqueeze(1) - mean[..., self._given].double()) / scale
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
            rough: Whether to treat the two sides of an interval as independent. That is several
                times faster, right for intervals that are wide, and never far off.
        """
        index = mean.new_zeros(mean.shape[:-1], dtype=torch.long) if index is None else index
        centre = mean.double() @ self._rows.mT
        if self._count:
            change = self._of(self._gain, index) @ self._residual(mean).unsqueeze(-1)
            centre = centre + change.squeeze(-1)
        deviation = self._of(self._deviation, index)
        low, high = ((bound - centre) / deviation for bound in (self._low, self._high))
        if rough:
            low, high = low.to(self._dtype), high.to(self._dtype)
            told = torch.special.log_ndtr(-low) + torch.special.log_ndtr(high)
        else:
            told = log_interval_probability(low, high).to(self._dtype)
        return torch.where(self._of(self._is_free, index), told, 0.0)

    def _residual(self, mean: Tensor) -> Tensor:
        """What the means leave of the observations, shape (E, P, q)."""
        return self._y.unsqueeze(1) - mean.double() @ self._matrix.mT

    def _of(self, t: Tensor, index: Tensor) -> Tensor:
        """Entries (E, P, *T) of t (K, *T), or of t (1, *T) that all share."""
        return t[0].expand(*index.shape, *t.shape[1:]) if len(t) == 1 else t[index]
