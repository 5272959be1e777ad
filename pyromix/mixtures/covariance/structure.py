r"""What a covariance structure is: parameters, their law, and their estimates.

Each structure maps unconstrained parameters to the components of a mixture, and back: from
weighted second moments, as the M-step of expectation maximisation and the initialisation need
them. All keep every variance above a floor :math:`f`, without which the likelihood is unbounded.
"""

__all__ = [
    "EXCESS",
    "CovarianceStructure",
    "Moments",
    "OfRank",
    "outer_products",
    "raise_eigenvalues",
]

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Size, Tensor

from ...core.constraints import Floored
from ..clusters import Clusters
from ..finite import FiniteMixture

# Estimates are kept above the floor by at least this share of it: at the floor itself the
# unconstrained parameter would be minus infinity.
EXCESS = 1e-3


class Moments(NamedTuple):
    """Weighted sums over data around the means of K components."""

    weight: Tensor
    """Sum of weights of every component, shape (K,)."""
    second: Tensor
    """Weighted sums of outer products (K, D, D), or of squares (K, D) where those are enough, or
    (K, D + r, 1 + r) with factors, see `LowRank.outer`; or their sums over what the structure
    shares, see `CovarianceStructure.pool`."""


class CovarianceStructure(ABC):
    """How the covariances of K components in D dimensions are parametrised.

    Args:
        dim: D.
        num_components: K.
        floor: Smallest variance, of coordinates or, for matrices, in any direction.
    """

    isotropic = False  # whether columns have a common scale
    full_moments = False  # whether estimates need matrices of second moments
    has_factors = False  # whether moments are those of points and of their factors

    def __init__(self, dim: int, num_components: int, floor: float) -> None:
        self.dim, self.num_components, self.floor = dim, num_components, floor

    @property
    def variance(self) -> Floored:
        """Variances as a function of parameters ``raw_scale``, and the inverse function."""
        return Floored(self.floor, rate=2.0, excess=EXCESS)

    @property
    @abstractmethod
    def shapes(self) -> dict[str, Size]:
        """Names and shapes of the parameters."""

    def pool(self, second: Tensor) -> Tensor:
        """Adds the components' second moments up over what they share; again changes nothing."""
        return second

    @abstractmethod
    def outer(self, weight: Tensor, shift: Tensor) -> Tensor:
        """Pooled second moments of components (K,) whose points all lie at shifts (K, D)."""

    @abstractmethod
    def mixture(self, logits: Tensor, loc: Tensor, raw: Mapping[str, Tensor]) -> FiniteMixture:
        r"""The mixture with logits (\*B, K), means (\*B, K, D) and parameters of any batch."""

    def estimate(self, moments: Moments, current: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The parameters of highest expected likelihood given second moments.

        Args:
            moments: The moments, of which those of the structure's kind.
            current: The parameters as they are, for estimates that are improved step by step.

        Returns:
            Name -> value of every parameter.
        """
        return self._fit(self.pool(moments.second) / self._count(moments), current)

    def start(
        self,
        clusters: Clusters,
        x: Tensor,  # noqa: ARG002
        current: Mapping[str, Tensor],
    ) -> dict[str, Tensor]:
        """The parameters to start from, given clusters of the data.

        Args:
            clusters: The clusters, with the second moments that the structure is made of.
            x: The data, shape (N, D).
            current: The parameters as they are.

        Returns:
            Name -> value of every parameter.
        """
        weight, second = clusters.weights.double(), clusters.second.double()
        total = weight.reshape(-1, *[1] * (second.dim() - 1)) * second
        return self.estimate(Moments(weight, total), current)

    @abstractmethod
    def _fit(self, mean: Tensor, current: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The parameters that `estimate` returns, given mean squares or mean outer products."""

    def _count(self, moments: Moments) -> Tensor:
        """The weight of what the pooled second moments are sums of."""
        return moments.weight.reshape(-1, *[1] * (moments.second.dim() - 1))

    @property
    def num_free(self) -> int:
        """Number of free parameters, all components together."""
        return sum(shape.numel() for shape in self.shapes.values())


class OfRank(CovarianceStructure):
    """A diagonal, and a factor of a few columns, of every component.

    Args:
        dim: D.
        num_components: K.
        floor: Smallest variance in any direction.
        rank: Number of columns r.
    """

    def __init__(self, dim: int, num_components: int, floor: float, rank: int) -> None:
        super().__init__(dim, num_components, floor)
        self.rank = rank

    @property
    def shapes(self) -> dict[str, Size]:
        """Names and shapes of the parameters."""
        shape = Size((self.num_components, self.dim))
        return {"raw_scale": shape, "raw_factor": Size((*shape, self.rank))}

    @property
    def num_free(self) -> int:
        """Number of free parameters, less rotations of a factor's columns: they change nothing.

        No more than those of a full matrix.
        """
        rotations = self.rank * (self.rank - 1) // 2
        own = self.dim * (1 + self.rank) - rotations
        full = self.dim * (self.dim + 1) // 2
        return self.num_components * (full if self.rank >= self.dim else min(own, full))


def outer_products(weight: Tensor, shift: Tensor) -> Tensor:
    """Outer products of shifts (K, D) with themselves, times weights (K,): shape (K, D, D)."""
    return weight[:, None, None] * shift.unsqueeze(-1) * shift.unsqueeze(-2)


def raise_eigenvalues(matrix: Tensor, floor: float) -> Tensor:
    """Symmetric matrices (K, D, D) with their eigenvalues raised to a floor, where below it."""
    matrix = 0.5 * (matrix + matrix.mT)
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    low = torch.linalg.cholesky_ex(matrix - floor * identity).info > 0
    if low.any():
        values, vectors = torch.linalg.eigh(matrix[low])
        raised = (vectors * values.clamp(min=floor).unsqueeze(-2)) @ vectors.mT
        matrix = matrix.clone()
        matrix[low] = 0.5 * (raised + raised.mT)
    return matrix
