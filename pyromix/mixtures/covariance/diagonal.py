"""Diagonal covariances: of their own, spherical, or shared by all components."""

__all__ = ["Diagonal", "Shared", "Spherical"]

from collections.abc import Mapping

from torch import Size, Tensor

from ..diagonal import MixtureOfNormals
from ..finite import FiniteMixture
from .structure import CovarianceStructure, Moments


class Diagonal(CovarianceStructure):
    """Variances of every component and coordinate."""

    @property
    def shapes(self) -> dict[str, Size]:
        """Names and shapes of the parameters."""
        return {"raw_scale": Size((self.num_components, self.dim))}

    def mixture(self, logits: Tensor, loc: Tensor, raw: Mapping[str, Tensor]) -> FiniteMixture:
        """The mixture of diagonal normals."""
        scale = self.variance(raw["raw_scale"]).sqrt()
        scale = scale.expand(*scale.shape[:-2], self.num_components, self.dim)
        return MixtureOfNormals(logits, loc, scale, validate_args=False)

    def _fit(self, mean: Tensor, current: Mapping[str, Tensor]) -> dict[str, Tensor]:  # noqa: ARG002
        return {"raw_scale": self.variance.inverse(mean)}

    def outer(self, weight: Tensor, shift: Tensor) -> Tensor:
        """Weighted squares."""
        return self.pool(weight.unsqueeze(-1) * shift.square())


class Spherical(Diagonal):
    """One variance per component."""

    isotropic = True

    @property
    def shapes(self) -> dict[str, Size]:
        """Names and shapes of the parameters."""
        return {"raw_scale": Size((self.num_components, 1))}

    def pool(self, second: Tensor) -> Tensor:
        """Adds up over coordinates."""
        return second.sum(-1, keepdim=True)

    def _count(self, moments: Moments) -> Tensor:
        return self.dim * super()._count(moments)


class Shared(Diagonal):
    """One variance per coordinate, for all components."""

    @property
    def shapes(self) -> dict[str, Size]:
        """Names and shapes of the parameters."""
        return {"raw_scale": Size((1, self.dim))}

    def pool(self, second: Tensor) -> Tensor:
        """Adds up over components."""
        return second.sum(0, keepdim=True)

    def _count(self, moments: Moments) -> Tensor:
        return moments.weight.sum()
