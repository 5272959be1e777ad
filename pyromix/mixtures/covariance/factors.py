"""Covariance matrices of low rank plus a diagonal: mixtures of factor analysers."""

__all__ = ["LowRank"]

from collections.abc import Mapping

import torch
from torch import Tensor

from ..clusters import MAX_POINTS, Clusters
from ..finite import FiniteMixture
from ..low_rank_covariance import MixtureOfLowRankNormals
from .structure import EXCESS, OfRank, outer_products

# Up to this many dimensions matrices of second moments are made, and an M-step goes so many rounds.
MOST_DIMS, ROUNDS = 64, 10

# More directions than wanted that a start looks at, and how often it turns them.
EXTRA_DIRECTIONS, TURNS = 5, 2

# Share of a coordinate's variance that a start leaves to the diagonal, at least.
START_SHARE = 0.01


class LowRank(OfRank):
    r"""Covariances :math:`\operatorname{diag}(f + e^{2 \rho}) + W W^\top` of every component.

    Estimates are those of expectation maximisation with the factors z of
    :math:`x = m + W z + \sqrt d\, e` as missing data (Ghahramani and Hinton 1996), in the
    parameter-expanded form of Liu, Rubin and Wu (1998): the factors may have any mean and
    covariance :math:`\Psi`, which are then taken into m and W. With covariances C of points
    and factors, of the latter given the points and the present parameters,

    .. math:: W = C_{xz} \Psi^{-1/2}, \qquad d_i = \max(f, (C_{xx} - W W^\top)_{ii}) .

    The likelihood never falls. In many dimensions the statistics are these moments of points and
    factors, which the E-step computes without D x D matrices. In few, they are matrices of second
    moments S, of which an M-step makes moments of factors many times over.
    """

    def __init__(self, dim: int, num_components: int, floor: float, rank: int) -> None:
        super().__init__(dim, num_components, floor, rank)
        self.full_moments = dim <= MOST_DIMS
        self.has_factors = not self.full_moments

    def mixture(self, logits: Tensor, loc: Tensor, raw: Mapping[str, Tensor]) -> FiniteMixture:
        """The mixture of factor analysers."""
        diag = self.variance(raw["raw_scale"])
        factor = raw["raw_factor"]
        return MixtureOfLowRankNormals(logits, loc, diag, factor, validate_args=False)

    def outer(self, weight: Tensor, shift: Tensor) -> Tensor:
        """Weighted outer products or, for shifts (K, D + r) of points and factors, columns of them.

        Of shape (K, D + r, 1 + r): squares, and products with the factors.
        """
        if self.full_moments:
            return outer_products(weight, shift)
        factors = shift[:, self.dim :].unsqueeze(-2).expand(-1, shift.shape[-1], -1)
        columns = torch.cat([shift.unsqueeze(-1), factors], -1)
        return weight[:, None, None] * shift.unsqueeze(-1) * columns

    def _fit(self, mean: Tensor, current: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if self.has_factors:
            points, factors = mean[:, : self.dim], mean[:, self.dim :]
            diag, factor = self._expanded(points[..., 0], points[..., 1:], factors[..., 1:])
        else:
            diag, factor = self.variance(current["raw_scale"]), current["raw_factor"]
            variance = mean.diagonal(dim1=-2, dim2=-1)
            for _ in range(ROUNDS):
                cross, inner, _ = _moments_of_factors(mean, diag, factor)
                diag, factor = self._expanded(variance, cross, inner)
                diag = self._of_diagonals(mean, diag, factor)
        return {"raw_scale": self.variance.inverse(diag), "raw_factor": factor}

    def _expanded(self, variance: Tensor, cross: Tensor, inner: Tensor) -> tuple[Tensor, Tensor]:
        """The step in d and W, given C_xx (K, D), C_xz (K, D, r) and Psi (K, r, r)."""
        values, vectors = torch.linalg.eigh(inner)
        scale = values.clamp(min=torch.finfo(values.dtype).tiny).rsqrt()
        # The symmetric root turns factors no more than it must: running averages of statistics
        # are sums over different steps.
        factor = cross @ (vectors * scale.unsqueeze(-2)) @ vectors.mT
        return self._above_floor(variance - factor.square().sum(-1)), factor

    def _of_diagonals(self, second: Tensor, diag: Tensor, factor: Tensor) -> Tensor:
        r"""A step in d alone, which goes on where the other one hardly moves: as d falls to zero.

        With :math:`P = \Sigma^{-1}`, log |Sigma| lies below its tangent, of slope :math:`P_{ii}` in
        :math:`d_i`, and tr(P S) below what it is for factors at their present means, where
        :math:`1 / d_i` has the factor :math:`d_i^2 (P S P)_{ii}`. The bound is least at

        .. math:: d_i \leftarrow d_i \Big(\frac{(P S P)_{ii}}{P_{ii}}\Big)^{1/2} .
        """
        cross, inner, spread = _moments_of_factors(second, diag, factor)
        variance = second.diagonal(dim1=-2, dim2=-1)
        unknown = (factor * (factor @ spread)).sum(-1)  # variance of W z, given x
        error = variance - 2 * (factor * cross).sum(-1) + (factor * (factor @ inner)).sum(-1)
        precision = 1 / diag - unknown / diag.square()
        return self._above_floor(((error - unknown).clamp(min=0) / precision).sqrt())

    def _above_floor(self, diag: Tensor) -> Tensor:
        return diag.clamp(min=(1 + EXCESS) * self.floor)

    def start(
        self, clusters: Clusters, x: Tensor, current: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Principal directions of every cluster, by a randomised decomposition of its points.

        They are taken of 10,000 points at most, as clusters are. Of a cluster with too few points
        for all of them, the others are small and random.
        """
        if len(x) > MAX_POINTS:
            x = x[torch.randperm(len(x), device=x.device)[:MAX_POINTS]]
        label = torch.cdist(x, clusters.loc).argmin(1)
        variance = clusters.second.double()
        if self.full_moments:
            variance = variance.diagonal(dim1=-2, dim2=-1)
        factor = 0.1 * torch.randn_like(current["raw_factor"]) * variance.sqrt().unsqueeze(-1)
        for k in range(self.num_components):
            points = x[label == k].double()
            wanted = min(self.rank, len(points) - 1, self.dim - 1)
            if wanted < 1:
                continue
            points = points - points.mean(0)
            count = min(wanted + EXTRA_DIRECTIONS, len(points), self.dim)
            _, length, directions = torch.svd_lowrank(points, count, niter=TURNS)
            along = length[:wanted].square() / (len(points) + 1)
            noise = (variance[k].sum() - along.sum()).clamp(min=0) / (self.dim - wanted)
            strength = along - noise
            found = directions[:, :wanted] * strength.clamp(min=0).sqrt()
            factor[k, :, :wanted] = torch.where(strength > 0, found, factor[k, :, :wanted])
        rest = variance - factor.square().sum(-1)
        rest = rest.maximum(START_SHARE * variance)
        return {"raw_scale": self.variance.inverse(rest), "raw_factor": factor}


def _moments_of_factors(
    second: Tensor, diag: Tensor, factor: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """C_xz (K, D, r), Psi (K, r, r) and the factors' covariance given x, M^-1, for S (K, D, D)."""
    pull = factor / diag.unsqueeze(-1)
    identity = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
    spread = torch.cholesky_inverse(torch.linalg.cholesky(identity + factor.mT @ pull))
    gain = pull @ spread  # d^-1 W M^-1
    cross = second @ gain
    return cross, spread + gain.mT @ cross, spread
