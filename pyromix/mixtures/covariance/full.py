"""Covariance matrices: of every component, or tied."""

__all__ = ["Full", "Tied"]

from collections.abc import Mapping

import torch
from torch import Size, Tensor

from ..finite import FiniteMixture
from ..full import MixtureOfMultivariateNormals
from .structure import EXCESS, CovarianceStructure, Moments, outer_products, raise_eigenvalues


class Full(CovarianceStructure):
    r"""A covariance matrix :math:`L L^\top` of every component.

    The diagonal of L is :math:`\sqrt{f + e^{2 \rho}}`: the floor bounds every variance given the
    coordinates before. Estimates keep it in every direction.
    """

    full_moments = True

    @property
    def shapes(self) -> dict[str, Size]:
        """Names and shapes of the parameters; the lower triangle is packed row by row."""
        rows = self._rows
        below = self.dim * (self.dim - 1) // 2
        return {"raw_scale": Size((rows, self.dim)), "raw_lower": Size((rows, below))}

    @property
    def _rows(self) -> int:
        """Number of matrices."""
        return self.num_components

    def mixture(self, logits: Tensor, loc: Tensor, raw: Mapping[str, Tensor]) -> FiniteMixture:
        """The mixture of normals with covariance matrices."""
        tril = torch.diag_embed(self.variance(raw["raw_scale"]).sqrt())
        i, j = torch.tril_indices(self.dim, self.dim, -1, device=tril.device)
        tril[..., i, j] = raw["raw_lower"]
        return MixtureOfMultivariateNormals(logits, loc, tril, validate_args=False)

    def _fit(self, mean: Tensor, current: Mapping[str, Tensor]) -> dict[str, Tensor]:  # noqa: ARG002
        # No direction's variance is below the floor.
        tril = torch.linalg.cholesky(raise_eigenvalues(mean, self.floor * (1 + EXCESS)))
        i, j = torch.tril_indices(self.dim, self.dim, -1, device=tril.device)
        variance = tril.diagonal(dim1=-2, dim2=-1).square()
        return {"raw_scale": self.variance.inverse(variance), "raw_lower": tril[..., i, j]}

    def outer(self, weight: Tensor, shift: Tensor) -> Tensor:
        """Weighted outer products."""
        return outer_products(weight, shift)


class Tied(Full):
    """One covariance matrix for all components."""

    @property
    def _rows(self) -> int:
        return 1

    def pool(self, second: Tensor) -> Tensor:
        """Adds up over components."""
        return second.sum(0, keepdim=True)

    def outer(self, weight: Tensor, shift: Tensor) -> Tensor:
        """Sum of weighted outer products, without a matrix for every component."""
        return (shift.mT @ (weight.unsqueeze(-1) * shift)).unsqueeze(0)

    def _count(self, moments: Moments) -> Tensor:
        return moments.weight.sum()
