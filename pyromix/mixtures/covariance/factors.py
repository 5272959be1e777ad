"""Covariance matrices of low rank plus a diagonal: mixtures of factor analysers."""

__all__ = ["LowRank"]

from collections.abc import Mapping

import torch
from torch import Tensor

from ..clusters import MAX_POINTS, Clusters
from ..finite import FiniteMixture
from ..low_rank_covariance import MixtureOfLowRankNormals
from .structure import OfRank

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

    The likelihood never falls, and without noise the step is one of subspace iteration. The
    statistics are these moments of points and factors: no D x D matrix is made. Steps that start
    from matrices of second moments, and repeat the above, need fewer iterations, but more time:
    on digits, of 64 dimensions, three times as much.
    """

    has_factors = True

    def mixture(self, logits: Tensor, loc: Tensor, raw: Mapping[str, Tensor]) -> FiniteMixture:
        """The mixture of factor analysers."""
        diag = self.variance(raw["raw_scale"])
        factor = raw["raw_factor"]
        return MixtureOfLowRankNormals(logits, loc, diag, factor, validate_args=False)

    def outer(self, weight: Tensor, shift: Tensor) -> Tensor:
        """Weighted second moments (K, D + r, 1 + r) for shifts (K, D + r) of points and factors.

        The first column has squares; the others, products with the factors.
        """
        factors = shift[:, self.dim :].unsqueeze(-2).expand(-1, shift.shape[-1], -1)
        columns = torch.cat([shift.unsqueeze(-1), factors], -1)
        return weight[:, None, None] * shift.unsqueeze(-1) * columns

    def _fit(self, mean: Tensor, current: Mapping[str, Tensor]) -> dict[str, Tensor]:  # noqa: ARG002
        variance, cross = mean[:, : self.dim, 0], mean[:, : self.dim, 1:]
        values, vectors = torch.linalg.eigh(mean[:, self.dim :, 1:])
        scale = values.clamp(min=torch.finfo(values.dtype).tiny).rsqrt()
        # The symmetric root turns factors no more than it must: running averages of statistics
        # are sums over different steps.
        factor = cross @ (vectors * scale.unsqueeze(-2)) @ vectors.mT
        rest = variance - factor.square().sum(-1)
        return {"raw_scale": self.variance.inverse(rest), "raw_factor": factor}

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
