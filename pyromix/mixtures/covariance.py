r"""Covariance structures of a learnable mixture: parameters, their law, and their estimates.

Each structure maps unconstrained parameters to the components of a mixture, and back: from
weighted second moments, as the M-step of expectation maximisation and the initialisation need
them. All keep every variance above a floor :math:`f`, without which the likelihood is unbounded.
"""

__all__ = ["STRUCTURES", "CovarianceStructure", "Moments", "make_structure"]

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Size, Tensor

from ..numerics.low_rank import capacitance_tril, log_det, marginal_variance
from .diagonal import MixtureOfNormals
from .finite import FiniteMixture
from .full import MixtureOfMultivariateNormals
from .low_rank import MixtureOfLowRankPrecisionNormals

# Estimates are kept above the floor by at least this share of it: at the floor itself the
# unconstrained parameter would be minus infinity.
EXCESS = 1e-3

# Rounds of updates of a low-rank precision in one M-step.
LOW_RANK_ROUNDS = 5

# Least share of a coordinate's inverse variance that is left to the diagonal of its precision.
DIAGONAL_SHARE = 1e-3


class Moments(NamedTuple):
    """Weighted sums over data around the means of K components."""

    weight: Tensor
    """Sum of weights of every component, shape (K,)."""
    second: Tensor
    """Weighted sums of outer products (K, D, D), or of squares (K, D) where those are enough; or
    their sums over what the structure shares, see `CovarianceStructure.pool`."""


class CovarianceStructure(ABC):
    """How the covariances of K components in D dimensions are parametrised.

    Args:
        dim: D.
        num_components: K.
        floor: Smallest variance, of coordinates or, for matrices, in any direction.
    """

    full_moments = False  # whether estimates need matrices of second moments

    def __init__(self, dim: int, num_components: int, floor: float) -> None:
        self.dim, self.num_components, self.floor = dim, num_components, floor

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

    @abstractmethod
    def estimate(self, moments: Moments, current: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The parameters of highest expected likelihood given second moments.

        Args:
            moments: The moments, of which those of the structure's kind.
            current: The parameters as they are, for estimates that are improved step by step.
        """

    @property
    def num_free(self) -> int:
        """Number of free parameters, all components together."""
        return sum(shape.numel() for shape in self.shapes.values())

    def _raw_scale(self, variance: Tensor) -> Tensor:
        excess = (variance - self.floor).clamp(min=EXCESS * self.floor)
        return 0.5 * excess.log()

    def _variance(self, raw_scale: Tensor) -> Tensor:
        return self.floor + (2 * raw_scale).exp()


class Diagonal(CovarianceStructure):
    """Variances of every component and coordinate."""

    @property
    def shapes(self) -> dict[str, Size]:
        """Names and shapes of the parameters."""
        return {"raw_scale": Size((self.num_components, self.dim))}

    def mixture(self, logits: Tensor, loc: Tensor, raw: Mapping[str, Tensor]) -> FiniteMixture:
        """The mixture of diagonal normals."""
        scale = self._variance(raw["raw_scale"]).sqrt()
        scale = scale.expand(*scale.shape[:-2], self.num_components, self.dim)
        return MixtureOfNormals(logits, loc, scale, validate_args=False)

    def estimate(
        self,
        moments: Moments,
        current: Mapping[str, Tensor],  # noqa: ARG002
    ) -> dict[str, Tensor]:
        """The mean squares."""
        return {"raw_scale": self._raw_scale(self.pool(moments.second) / self._count(moments))}

    def outer(self, weight: Tensor, shift: Tensor) -> Tensor:
        """Weighted squares."""
        return self.pool(weight.unsqueeze(-1) * shift.square())

    def _count(self, moments: Moments) -> Tensor:
        """The weight of what the pooled second moments are sums of."""
        return moments.weight.unsqueeze(-1)


class Spherical(Diagonal):
    """One variance per component."""

    @property
    def shapes(self) -> dict[str, Size]:
        """Names and shapes of the parameters."""
        return {"raw_scale": Size((self.num_components, 1))}

    def pool(self, second: Tensor) -> Tensor:
        """Adds up over coordinates."""
        return second.sum(-1, keepdim=True)

    def _count(self, moments: Moments) -> Tensor:
        return self.dim * moments.weight.unsqueeze(-1)


class Shared(Diagonal):
    """One variance per coordinate, the same for all components."""

    @property
    def shapes(self) -> dict[str, Size]:
        """Names and shapes of the parameters."""
        return {"raw_scale": Size((1, self.dim))}

    def pool(self, second: Tensor) -> Tensor:
        """Adds up over components."""
        return second.sum(0, keepdim=True)

    def _count(self, moments: Moments) -> Tensor:
        return moments.weight.sum()


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
        return self.num_components

    def mixture(self, logits: Tensor, loc: Tensor, raw: Mapping[str, Tensor]) -> FiniteMixture:
        """The mixture of normals with covariance matrices."""
        tril = torch.diag_embed(self._variance(raw["raw_scale"]).sqrt())
        i, j = torch.tril_indices(self.dim, self.dim, -1, device=tril.device)
        tril[..., i, j] = raw["raw_lower"]
        return MixtureOfMultivariateNormals(logits, loc, tril, validate_args=False)

    def estimate(
        self,
        moments: Moments,
        current: Mapping[str, Tensor],  # noqa: ARG002
    ) -> dict[str, Tensor]:
        """The mean outer products, with no direction's variance below the floor."""
        mean = self.pool(moments.second) / self._count(moments)
        matrix = _floored(mean, self.floor * (1 + EXCESS))
        tril = torch.linalg.cholesky(matrix)
        i, j = torch.tril_indices(self.dim, self.dim, -1, device=tril.device)
        diagonal = tril.diagonal(dim1=-2, dim2=-1)
        return {"raw_scale": self._raw_scale(diagonal.square()), "raw_lower": tril[..., i, j]}

    def outer(self, weight: Tensor, shift: Tensor) -> Tensor:
        """Weighted outer products."""
        return _outer(weight, shift)

    def _count(self, moments: Moments) -> Tensor:
        return moments.weight[:, None, None]


class Tied(Full):
    """One covariance matrix for all components."""

    @property
    def _rows(self) -> int:
        return 1

    def pool(self, second: Tensor) -> Tensor:
        """Adds up over components."""
        return second.sum(0, keepdim=True)

    def outer(self, weight: Tensor, shift: Tensor) -> Tensor:
        """The same, without a matrix for every component."""
        return (shift.mT @ (weight.unsqueeze(-1) * shift)).unsqueeze(0)

    def _count(self, moments: Moments) -> Tensor:
        return moments.weight.sum()


class LowRankPrecision(CovarianceStructure):
    r"""Precisions of low rank plus a diagonal, with the floor added to the covariance.

    With :math:`v = e^{2 \rho}` and :math:`U = v^{-1/2} W`, the covariance is
    :math:`\Sigma = f I + (\operatorname{diag}(1/v) + U U^\top)^{-1}`. Its inverse has the same
    form again: with :math:`M = I + W^\top \operatorname{diag}(f / (f + v)) W = L L^\top`,

    .. math:: \Sigma^{-1} = \operatorname{diag}\Big(\frac{1}{f + v}\Big) + U' U'^\top, \qquad
              U' = \operatorname{diag}\Big(\frac{\sqrt v}{f + v}\Big) W L^{-\top} .
    """

    full_moments = True

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
        """Number of free parameters: factors are the same up to a rotation of their columns."""
        rotations = self.rank * (self.rank - 1) // 2
        return super().num_free - self.num_components * rotations

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
        return _outer(weight, shift)

    def estimate(self, moments: Moments, current: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Improves the precisions, or leaves them as they are: the likelihood never falls.

        First they are improved as if there were no floor, and brought back to it. Then the floor
        is seen as noise, x = y + e with e of variance f, and the law of y improved given what x
        is expected to say of y, some rounds. Every component takes each step that is one up.
        """
        second = moments.second / moments.weight[:, None, None]
        free = _improve(*self._precision(current), _floored(second, 1.1 * self.floor))
        best = self._better(current, self._without_floor(*free), second)
        for _ in range(LOW_RANK_ROUNDS):
            best = self._better(best, self._denoised(best, second), second)
        return best

    def _better(
        self, first: Mapping[str, Tensor], other: Mapping[str, Tensor], second: Tensor
    ) -> dict[str, Tensor]:
        """Of two precisions every component's better one: that of higher log |P| - tr(P S)."""
        up = self._score(other, second) > self._score(first, second)
        return {
            name: torch.where(up.reshape(-1, *[1] * (value.dim() - 1)), other[name], value)
            for name, value in first.items()
        }

    def _score(self, raw: Mapping[str, Tensor], second: Tensor) -> Tensor:
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


STRUCTURES = {
    "diagonal": Diagonal,
    "spherical": Spherical,
    "shared": Shared,
    "tied": Tied,
    "full": Full,
    "low_rank_precision": LowRankPrecision,
}


def make_structure(
    name: str, dim: int, num_components: int, floor: float, rank: int
) -> CovarianceStructure:
    """Makes a structure by its name.

    Raises:
        ValueError: If there is none of that name.
    """
    if name not in STRUCTURES:
        raise ValueError(f"Expected covariance to be one of {tuple(STRUCTURES)}, got {name!r}.")
    if name == "low_rank_precision":
        return LowRankPrecision(dim, num_components, floor, rank)
    return STRUCTURES[name](dim, num_components, floor)


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


def _outer(weight: Tensor, shift: Tensor) -> Tensor:
    return weight[:, None, None] * shift.unsqueeze(-1) * shift.unsqueeze(-2)


def _floored(matrix: Tensor, floor: float) -> Tensor:
    """Raises the eigenvalues of symmetric matrices to a floor, where they are below."""
    matrix = 0.5 * (matrix + matrix.mT)
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    low = torch.linalg.cholesky_ex(matrix - floor * identity).info > 0
    if low.any():
        values, vectors = torch.linalg.eigh(matrix[low])
        raised = (vectors * values.clamp(min=floor).unsqueeze(-2)) @ vectors.mT
        matrix = matrix.clone()
        matrix[low] = 0.5 * (raised + raised.mT)
    return matrix
