"""Trainable maps of a layer, and their starting values."""

__all__ = ["KINDS", "MapParameters", "layer_floors", "make_maps"]

from collections.abc import Iterator, Mapping

import torch
from torch import Size, Tensor, nn

from .maps import DiagonalMap, LayerMap, LowRankMap, TriangularMap

KINDS = ("shift", "diagonal", "triangular", "low_rank")

# Variances start above their floor by at least this share of it: at the floor itself the
# unconstrained parameter would be minus infinity.
EXCESS = 1e-3

# Factors of a cluster's covariance are sought in so many rounds; of more columns in one, which
# takes all eigenvectors. Of a column's variance at least this share is its own.
FACTOR_ROUNDS = 20
FACTOR_COLUMNS = 128
LEAST_UNIQUE = 1e-3

# Covariances of clusters are shrunk towards that within all of them by so many pseudo-points.
PSEUDO_POINTS = 60.0


class MapParameters(nn.Module):
    r"""Parameters of the maps of one layer's components.

    With :math:`S = \operatorname{diag}(1/\sigma)`, of deviations :math:`\sigma` above a floor,

    ============ ==============================================================================
    shift        A = S, the same for all components: means alone differ
    diagonal     A = S
    triangular   A = S (I - W), W strictly lower-triangular: regressions on earlier columns
    low_rank     :math:`A = (I + Q Q^\top)^{-1} S`, Q with r columns: the covariance of a single
                 layer is that of r factors, next to noise of each column's own. It makes nothing
                 narrower than S does
    ============ ==============================================================================

    Args:
        kind: Which of these.
        num_components: K.
        dim: D.
        rank: r.
    """

    raw_scale: Tensor
    raw_factor: Tensor

    def __init__(self, kind: str, num_components: int, dim: int, rank: int) -> None:
        super().__init__()
        self.kind, self.num_components, self.dim, self.rank = kind, num_components, dim, rank
        for name, shape in self.shapes.items():
            # Q Q^T starts near zero, but not at a stationary point.
            start = torch.randn(shape) / dim if name == "raw_factor" else torch.zeros(shape)
            self.register_parameter(name, nn.Parameter(start))

    @property
    def shapes(self) -> dict[str, Size]:
        """Names and shapes of the parameters; lower triangles are packed row by row."""
        k, d = self.num_components, self.dim
        shapes = {"raw_scale": Size((1 if self.kind == "shift" else k, d))}
        if self.kind == "triangular":
            shapes["raw_lower"] = Size((k, d * (d - 1) // 2))
        elif self.kind == "low_rank":
            shapes["raw_factor"] = Size((k, d, self.rank))
        return shapes

    @property
    def full_moments(self) -> bool:
        """Whether starting values need covariance matrices, rather than variances."""
        return self.kind in ("triangular", "low_rank")

    def variance(self, floor: Tensor) -> Tensor:
        r"""Variances :math:`\sigma^2` above floors (D,), shape (1 or K, D)."""
        return floor + self.raw_scale.exp()

    def map_of(self, loc: Tensor, floor: Tensor) -> LayerMap:
        """The maps with means (K, D) and floors of variances (D,)."""
        return self._map(dict(self.named_parameters()), loc, floor)

    def _map(self, raw: Mapping[str, Tensor], loc: Tensor, floor: Tensor) -> LayerMap:
        k, d = self.num_components, self.dim
        diag = (floor + raw["raw_scale"].exp()).rsqrt().expand(k, d)
        if self.kind == "triangular":
            i, j = torch.tril_indices(d, d, -1, device=loc.device)
            unit = torch.diag_embed(torch.ones_like(diag))
            unit[:, i, j] = -raw["raw_lower"]
            return TriangularMap(loc, diag.unsqueeze(-1) * unit)
        if self.kind == "low_rank":
            factor = raw["raw_factor"]
            inner = factor.mT @ factor + torch.eye(self.rank, dtype=loc.dtype, device=loc.device)
            left = -torch.linalg.solve(inner, factor, left=False)
            return LowRankMap(loc, diag, left, diag.unsqueeze(-1) * factor)
        return DiagonalMap(loc, diag)

    def start(
        self,
        weights: Tensor,
        loc: Tensor,
        second: Tensor,
        count: int,
        floor: Tensor,
        shrinkage: float = 0.0,
    ) -> tuple[dict[str, Tensor], LayerMap]:
        """Starting values under which clusters of points become standard normal.

        Args:
            weights: Shares of K clusters, shape (K,).
            loc: Their means, shape (K, D).
            second: Their variances (K, D) or covariances (K, D, D), see `full_moments`.
            count: Number of points.
            floor: Floors of variances, shape (D,).
            shrinkage: Points of a standard normal that each cluster has besides, as a share of
                all points.

        Returns:
            Values by the names of the parameters, and the maps that they make.
        """
        size = (weights * count).reshape(-1, *[1] * (second.dim() - 1))
        pooled = (size * second).sum(0) / size.sum()
        if self.kind == "shift":
            second = pooled.unsqueeze(0)
        else:
            second = (size * second + PSEUDO_POINTS * pooled) / (size + PSEUDO_POINTS)
        if shrinkage:
            second = self._shrunk(second, shrinkage * count / (size + shrinkage * count))
        raw = getattr(self, f"_start_{self.kind}")(second, floor)
        return raw, self._map(raw, loc, floor)

    def _shrunk(self, second: Tensor, share: Tensor) -> Tensor:
        """Variances or covariances, of which a share (K, 1) or (K, 1, 1) becomes the identity."""
        if self.kind == "shift":
            share = share.mean(0, keepdim=True)
        ones = torch.ones(self.dim).to(second)
        return (1 - share) * second + share * (ones.diag() if self.full_moments else ones)

    def _raw_scale(self, variance: Tensor, floor: Tensor) -> dict[str, Tensor]:
        return {"raw_scale": torch.maximum(variance - floor, EXCESS * floor).log()}

    _start_shift = _start_diagonal = _raw_scale

    def _start_triangular(self, covariance: Tensor, floor: Tensor) -> dict[str, Tensor]:
        covariance = covariance.double() + torch.diag_embed(floor.double())
        tril = torch.linalg.cholesky(covariance)
        deviation = tril.diagonal(dim1=-2, dim2=-1)
        identity = torch.eye(self.dim, dtype=tril.dtype, device=tril.device)
        matrix = torch.linalg.solve_triangular(tril, identity, upper=False)
        i, j = torch.tril_indices(self.dim, self.dim, -1, device=tril.device)
        raw = self._raw_scale(deviation.square(), floor)
        raw["raw_lower"] = -(deviation.unsqueeze(-1) * matrix)[:, i, j]
        return {name: value.to(self.raw_scale.dtype) for name, value in raw.items()}

    def _start_low_rank(self, covariance: Tensor, floor: Tensor) -> dict[str, Tensor]:
        r"""From factors of the covariance, found by iterated principal factors.

        Where columns divided by :math:`\sigma` have the covariance :math:`I + V (\Lambda - I)
        V^\top`, the inverse of :math:`I + V (\Lambda^{1/2} - I) V^\top` makes them standard
        normal.
        """
        covariance = covariance.double()
        total = covariance.diagonal(dim1=-2, dim2=-1).clamp(min=floor.double())
        rank = min(self.rank, self.dim)
        unique = total.clone()
        for _ in range(FACTOR_ROUNDS if self.dim <= FACTOR_COLUMNS else 1):
            root = unique.rsqrt()
            scaled = root.unsqueeze(-1) * covariance * root.unsqueeze(-2)
            values, vectors = torch.linalg.eigh(scaled)
            values, vectors = values[:, -rank:].clamp(min=1.0), vectors[..., -rank:]
            common = unique * (vectors.square() @ (values - 1.0).unsqueeze(-1)).squeeze(-1)
            unique = torch.maximum(total - common, LEAST_UNIQUE * total)
        raw = self._raw_scale(unique, floor)
        factor = torch.zeros(self.raw_factor.shape, dtype=unique.dtype, device=unique.device)
        factor[..., :rank] = vectors * (values.sqrt() - 1).sqrt().unsqueeze(-2)
        raw["raw_factor"] = factor
        return {name: value.to(self.raw_scale.dtype) for name, value in raw.items()}

    def extra_repr(self) -> str:
        """The arguments."""
        rank = f", rank={self.rank}" if self.kind == "low_rank" else ""
        return f"{self.kind}, num_components={self.num_components}, dim={self.dim}{rank}"


def make_maps(layers: nn.ModuleList, loc: Tensor, floor: float) -> tuple[LayerMap, ...]:
    """The maps of all layers, such that no code's variance is below a floor.

    A triangular code's variance of a column, given those before, is the product of its layers'.
    A layer's floor is the law's divided by the least that the layers before may make of it.

    Args:
        layers: `MapParameters` of L layers.
        loc: Means, shape (L, K, D).
        floor: Floor of variances, in units of the points.
    """
    floors = layer_floors(layers, torch.full_like(loc[0, 0], floor))
    return tuple(layer.map_of(own, left) for own, (layer, left) in zip(loc, floors, strict=True))


def layer_floors(layers: nn.ModuleList, floor: Tensor) -> Iterator[tuple[MapParameters, Tensor]]:
    """Layers with floors of their variances, (D,), for the floor of the law: see `make_maps`."""
    for layer in layers:
        assert isinstance(layer, MapParameters)
        yield layer, floor
        floor = floor / layer.variance(floor).amin(0)
