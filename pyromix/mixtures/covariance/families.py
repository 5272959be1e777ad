r"""Covariances by what components have in common: volume, shape, orientation.

.. math:: \Sigma_k = v_k \, Q_k \operatorname{diag}(a_k) \, Q_k^\top, \qquad \prod_d a_{kd} = 1

A code of three letters says of each whether it is equal (E) for all components or varies (V); I
stands for a shape or an orientation that is the identity's (Banfield and Raftery 1993; Celeux and
Govaert 1995). Five of the fourteen have modules of their own: VII, EEI, VVI, EEE and VVV.
"""

__all__ = ["Decomposed"]

from collections.abc import Mapping

import torch
from torch import Size, Tensor

from ..diagonal import MixtureOfNormals
from ..finite import FiniteMixture
from ..full import MixtureOfMultivariateNormals
from .orientation import common_axes, from_reflections, to_reflections
from .structure import EXCESS, CovarianceStructure, Moments, outer_products, raise_eigenvalues
from .volume_shape import common_shape, common_volume, split_variances

# Rounds of an estimate that improves parts in turn, and the relative rise at which it stops.
ROUNDS = 10
TOLERANCE = 1e-8

# Of axes fewer: iterations of expectation maximisation go on from there.
AXES_ROUNDS = 3


class Decomposed(CovarianceStructure):
    r"""Covariances :math:`v_k Q_k \operatorname{diag}(a_k) Q_k^\top` of nine families.

    Shapes are exponentials of parameters less their mean, orientations products of reflections.
    A volume is :math:`f / \min_d a_{kd} + e^{2 \rho}`, with the least shape of all components if
    they share it: no variance is below the floor f, in any direction.

    Args:
        code: EII, VEI, EVI, VEE, EVE, VVE, EEV, VEV or EVV.
        dim: D.
        num_components: K.
        floor: Smallest variance in any direction.
    """

    def __init__(self, code: str, dim: int, num_components: int, floor: float) -> None:
        super().__init__(dim, num_components, floor)
        self.volume, self.shape, self.orientation = tuple(code)
        # What scaling columns one by one makes of them is of another family.
        self.isotropic = code in ("EII", "EVE", "VVE", "EEV", "VEV")
        self.full_moments = self.orientation != "I"

    @property
    def shapes(self) -> dict[str, Size]:
        """Names and shapes of the parameters; reflections are packed row by row."""
        rows = {"E": 1, "V": self.num_components}
        found = {"raw_scale": Size((rows[self.volume], 1))}
        if self.shape != "I":
            found["raw_shape"] = Size((rows[self.shape], self.dim))
        if self.orientation != "I":
            below = self.dim * (self.dim - 1) // 2
            found["raw_axes"] = Size((rows[self.orientation], below))
        return found

    @property
    def num_free(self) -> int:
        """Number of free parameters: less one for each shape, whose geometric mean is one."""
        shapes = self.shapes
        return super().num_free - (shapes["raw_shape"][0] if "raw_shape" in shapes else 0)

    def mixture(self, logits: Tensor, loc: Tensor, raw: Mapping[str, Tensor]) -> FiniteMixture:
        """The mixture of normals, diagonal ones or with covariance matrices."""
        scale = self._variances(raw).sqrt()
        if not self.full_moments:
            scale = scale.expand(*scale.shape[:-2], self.num_components, self.dim)
            return MixtureOfNormals(logits, loc, scale, validate_args=False)
        axes = from_reflections(raw["raw_axes"], self.dim)
        # From an orthogonal factorisation: the covariance's digits would be half as many.
        upper = torch.linalg.qr((axes * scale.unsqueeze(-2)).mT).R
        tril = upper.mT * upper.diagonal(dim1=-2, dim2=-1).sgn().unsqueeze(-2)
        tril = tril.expand(*tril.shape[:-3], self.num_components, self.dim, self.dim)
        return MixtureOfMultivariateNormals(logits, loc, tril, validate_args=False)

    def _shape_of(self, raw: Mapping[str, Tensor]) -> Tensor:
        """Shapes of unit geometric mean, (*B, K or 1, D)."""
        if self.shape == "I":
            return torch.ones_like(raw["raw_scale"])
        log = raw["raw_shape"]
        return (log - log.mean(-1, keepdim=True)).exp()

    def _least(self, shape: Tensor) -> Tensor:
        """The smallest of shapes (*B, K or 1, D) that each volume is for."""
        least = shape.amin(-1, keepdim=True)
        return least.amin(-2, keepdim=True) if self.volume == "E" else least

    def _variances(self, raw: Mapping[str, Tensor]) -> Tensor:
        """Variances along the axes, (*B, K or 1, D or 1)."""
        shape = self._shape_of(raw)
        volume = self.floor / self._least(shape) + (2 * raw["raw_scale"]).exp()
        return volume * shape

    def outer(self, weight: Tensor, shift: Tensor) -> Tensor:
        """Weighted outer products, or squares."""
        if self.full_moments:
            return outer_products(weight, shift)
        return self.pool(weight.unsqueeze(-1) * shift.square())

    def pool(self, second: Tensor) -> Tensor:
        """Adds up over coordinates if all have one variance."""
        return second.sum(-1, keepdim=True) if self.shape == "I" else second

    def estimate(self, moments: Moments, current: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The parameters of highest expected likelihood given second moments."""
        weight = moments.weight
        if self.orientation == "I":
            square = self.pool(moments.second)
            return self._raw_of(*self._split(weight, square, current))
        second = 0.5 * (moments.second + moments.second.mT)
        if self.orientation == "V":
            square, axes = torch.linalg.eigh(second)
            square = square.clamp(min=0.0)
            return self._raw_of(*self._split(weight, square, current), axes)
        if self.shape == "E":
            return self._common_matrix(weight, second, current)
        return self._common_axes(weight, second, current)

    def _fit(self, mean: Tensor, current: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The parameters given moments of components of equal weight."""
        return self.estimate(Moments(mean.new_ones(len(mean)), mean), current)

    @property
    def _lowest(self) -> float:
        """The floor of estimates, a little above that of the parameters."""
        return self.floor * (1 + EXCESS)

    def _split(
        self, weight: Tensor, square: Tensor, current: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Volumes and shapes given sums of squares along the axes, (K, D) or (K, 1)."""
        total, lowest = weight.sum(), self._lowest
        match self.volume + self.shape:
            case "EI":
                volume = (square.sum(0, keepdim=True) / (total * self.dim)).clamp(min=lowest)
                return volume, torch.ones_like(volume)
            case "EE":
                return split_variances((square.sum(0, keepdim=True) / total).clamp(min=lowest))
            case "VE":
                return common_shape(weight, square, self._shape_of(current), lowest)
            case "EV":
                return common_volume(weight, square, lowest)
            case _:
                return split_variances((square / weight.unsqueeze(-1)).clamp(min=lowest))

    def _common_matrix(
        self, weight: Tensor, second: Tensor, current: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Volumes and one matrix in turn (VEE; Celeux and Govaert 1995, section 3.8)."""
        count, lowest = weight.reshape(-1, 1, 1), self._lowest
        volume = self._variances(current).log().mean(-1).exp().reshape(-1, 1, 1)
        for _ in range(ROUNDS):
            matrix = (second / volume).sum(0) / weight.sum()
            matrix = raise_eigenvalues(matrix.unsqueeze(0), lowest / float(volume.amin()))[0]
            eigenvalues, axes = torch.linalg.eigh(matrix)
            trace = ((second @ axes) * axes / eigenvalues).sum((-2, -1)).reshape(-1, 1, 1)
            updated = (trace / (self.dim * count)).maximum(lowest / eigenvalues.amin())
            change = (updated / volume).log().abs().max()
            volume = updated
            if float(change) < TOLERANCE:
                break
        scale, shape = split_variances(eigenvalues.unsqueeze(0))
        return self._raw_of(volume.squeeze(-1) * scale, shape, axes.unsqueeze(0))

    def _common_axes(
        self, weight: Tensor, second: Tensor, current: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Variances and one orientation in turn (EVE, VVE)."""
        candidates = [
            from_reflections(current["raw_axes"], self.dim)[0],
            torch.linalg.eigh(second.sum(0)).eigenvectors,
        ]
        loss, volume, shape, axes = min(
            (self._along(weight, second, axes, current) for axes in candidates),
            key=lambda found: found[0],
        )
        for _ in range(AXES_ROUNDS):
            axes = common_axes(axes, second, 1 / (volume * shape), sweeps=1)
            previous = loss
            loss, volume, shape, axes = self._along(weight, second, axes, current)
            if previous - loss <= TOLERANCE * float(weight.sum()):
                break
        return self._raw_of(volume, shape, axes.unsqueeze(0))

    def _along(
        self, weight: Tensor, second: Tensor, axes: Tensor, current: Mapping[str, Tensor]
    ) -> tuple[float, Tensor, Tensor, Tensor]:
        """The loss with some axes, volumes and shapes along them, and the axes."""
        square = ((second @ axes) * axes).sum(-2).clamp(min=0.0)
        volume, shape = self._split(weight, square, current)
        variance = volume * shape
        loss = float((weight.unsqueeze(-1) * variance.log() + square / variance).sum())
        return loss, volume, shape, axes

    def _raw_of(
        self, volume: Tensor, shape: Tensor, axes: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The parameters of volumes, shapes and axes."""
        least = self.floor / self._least(shape)
        excess = (volume - least).maximum(0.5 * EXCESS * least)
        raw = {"raw_scale": 0.5 * excess.log()}
        if self.shape != "I":
            raw["raw_shape"] = shape.log()
        if axes is not None:
            raw["raw_axes"] = to_reflections(axes)
        return raw
