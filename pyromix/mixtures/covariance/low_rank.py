"""Precision matrices of low rank plus a diagonal."""

__all__ = ["LowRankPrecision"]

from collections.abc import Mapping

import torch
from torch import Tensor

from ...numerics.low_rank import capacitance_tril, log_det, marginal_variance
from ..finite import FiniteMixture
from ..low_rank import MixtureOfLowRankPrecisionNormals
from .structure import EXCESS, OfRank, outer_products, raise_eigenvalues

# Rounds of updates of a low-rank precision in one M-step.
LOW_RANK_ROUNDS = 5

# Least share of a coordinate's inverse variance that is left to the diagonal of its precision.
DIAGONAL_SHARE = 1e-3


class LowRankPrecision(OfRank):
    r"""Precisions of low rank plus a diagonal, with the floor added to the covariance.

    With :math:`v = e^{2 \rho}` and :math:`U = v^{-1/2} W`, the covariance is
    :math:`\Sigma = f I + (\operatorname{diag}(1/v) + U U^\top)^{-1}`. Its inverse has the same
    form again: with :math:`M = I + W^\top \operatorname{diag}(f / (f + v)) W = L L^\top`,

    .. math:: \Sigma^{-1} = \operatorname{diag}\Big(\frac{1}{f + v}\Big) + U' U'^\top, \qquad
              U' = \operatorname{diag}\Big(\frac{\sqrt v}{f + v}\Big) W L^{-\top} .
    """

    full_moments = True

    def mixture(self, logits: Tensor, loc: Tensor, raw: Mapping[str, Tensor]) -> FiniteMixture:
        """The mixture of normals with low-rank precisions."""
        diag, factor = self._precision(raw)
        return MixtureOfLowRankPrecisionNormals(logits, loc, diag, factor, validate_args=False)

    def _precision(self, raw: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Diagonal and factor of the inverse of Sigma."""
        variance, factor = (2 * raw["raw_scale"]).exp(), raw["raw_factor"]
        total = variance + self.floor
        tril = capacitance_tril(total / self.floor, factor)
        factor = torch.linalg.solve_triangular(tril.mT, factor, upper=True, left=False)
        return 1 / total, (variance.sqrt() / total).unsqueeze(-1) * factor

    def outer(self, weight: Tensor, shift: Tensor) -> Tensor:
        """Weighted outer products."""
        return outer_products(weight, shift)

    def _fit(self, mean: Tensor, current: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Improves the precisions, or leaves them as they are: the likelihood never falls.

        First they are improved as if there were no floor, and brought back to it. Then the floor
        is seen as noise, x = y + e with e of variance f, and the law of y improved given what x
        is expected to say of y, some rounds. Every component takes each step that is one up.
        """
        free = _improve(*self._precision(current), raise_eigenvalues(mean, 1.1 * self.floor))
        best = self._better(current, self._without_floor(*free), mean)
        for _ in range(LOW_RANK_ROUNDS):
            best = self._better(best, self._denoised(best, mean), mean)
        return best

    def _better(
        self, first: Mapping[str, Tensor], other: Mapping[str, Tensor], second: Tensor
    ) -> dict[str, Tensor]:
        """Of two precisions every component's better one: the one of higher score."""
        up = self._score(other, second) > self._score(first, second)
        return {
            name: torch.where(up.reshape(-1, *[1] * (value.dim() - 1)), other[name], value)
            for name, value in first.items()
        }

    def _score(self, raw: Mapping[str, Tensor], second: Tensor) -> Tensor:
        """Log |P| - tr(P S) of every component, shape (K,), for second moments S (K, D, D)."""
        diag, factor = self._precision(raw)
        trace = (diag * second.diagonal(dim1=-2, dim2=-1)).sum(-1)
        trace = trace + ((second @ factor) * factor).sum((-2, -1))
        return log_det(diag, capacitance_tril(diag, factor)) - trace

    def _denoised(self, current: Mapping[str, Tensor], second: Tensor) -> dict[str, Tensor]:
        """Improved by the second moments that y = x - e is expected to have, given x."""
        variance, factor = (2 * current["raw_scale"]).exp(), current["raw_factor"]
        diag, factor = 1 / variance, variance.rsqrt().unsqueeze(-1) * factor
        # E[y | x] = G x and Var[y | x] = f G, with G = (I + f (diag(1/v) + U U^T))^-1.
        matrix = torch.diag_embed(1 + self.floor * diag) + self.floor * (factor @ factor.mT)
        gain = torch.cholesky_inverse(torch.linalg.cholesky(matrix))
        diag, factor = _improve(diag, factor, gain @ second @ gain + self.floor * gain)
        root = diag.rsqrt()
        return {"raw_scale": root.log(), "raw_factor": root.unsqueeze(-1) * factor}

    def _without_floor(self, diag: Tensor, factor: Tensor) -> dict[str, Tensor]:
        """The parameters whose precision is diag(d) + U U^T, or as near as the floor allows."""
        variance = (1 / diag - self.floor).clamp(min=EXCESS * self.floor)
        total = variance + self.floor
        scaled = factor * (total / variance.sqrt()).unsqueeze(-1)  # W L^-T
        # With A = W L^-T and G = A^T diag(f / (f + v)) A, M = L L^T = (I - G)^-1.
        gram = scaled.mT @ (scaled * (self.floor / total).unsqueeze(-1))
        values, vectors = torch.linalg.eigh(gram)
        stretch = (1 - values).clamp(min=EXCESS).rsqrt()
        return {
            "raw_scale": 0.5 * variance.log(),
            "raw_factor": scaled @ vectors * stretch.unsqueeze(-2),
        }


def _improve(diag: Tensor, factor: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    r"""Raises log |P| - tr(P S) over P = diag(d) + U U^T by two updates.

    Given d, the best U lies in the r smallest eigenvectors of :math:`d^{1/2} S d^{1/2}`: with
    eigenvalue :math:`\lambda < 1`, its column has squared length :math:`1/\lambda - 1`. Given U,
    log |P| is convex in log d and lies above its tangent: :math:`d_i \leftarrow d_i
    (P^{-1})_{ii} / S_{ii}`.
    """
    rank, variance = factor.shape[-1], second.diagonal(dim1=-2, dim2=-1)
    root = diag.sqrt().unsqueeze(-1)
    values, vectors = torch.linalg.eigh(root * second * root.mT)
    length = (1 / values[..., :rank].clamp(min=1e-12) - 1).clamp(min=0).sqrt()
    factor = root * vectors[..., :rank] * length.unsqueeze(-2)
    share = diag * marginal_variance(diag, factor)
    # At zero, which it may tend to, the other parameters would be unbounded.
    return share.clamp(min=DIAGONAL_SHARE) / variance, factor
