"""A Gaussian mixture that learns its parameters."""

__all__ = ["GaussianMixture"]

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Size, Tensor, nn
from torch.distributions import constraints
from torch.types import _size

from ..core import Batch, DistributionModule, split_batch
from ..validation import check_positive_int, check_value
from .initialization import find_clusters
from .normal import MixtureOfNormals

Covariance = Literal["diagonal", "spherical", "shared"]


class GaussianMixture(DistributionModule):
    r"""Finite mixture of normals with learnable parameters.

    .. math:: p(x) = \sum_{k=1}^K w_k \, N(x; m_k, \operatorname{diag}(s_k^2)), \qquad
              s_k^2 = \text{variance\_floor} + e^{2 \rho_k}

    with parameters ``logits`` (w = softmax), ``loc`` (m) and ``raw_scale`` (:math:`\rho`).

    Args:
        dim: Dimension D of a sample.
        num_components: Number of components K.
        covariance: ``"diagonal"``: scales of every component and coordinate; ``"spherical"``: one
            per component; ``"shared"``: one per coordinate, the same for all components.
        variance_floor: Smallest variance, in squared units of the data. It bounds the likelihood
            where a component could collapse onto a single point or a constant coordinate.
        validate_args: Whether to check the values that are scored.

    Raises:
        ValueError: For an argument that is out of range.

    Example:
        >>> from pyromix import fit
        >>> _ = torch.manual_seed(0)
        >>> data = torch.cat([torch.randn(500, 2) - 3, torch.randn(500, 2) + 3])
        >>> model = GaussianMixture(dim=2, num_components=2)
        >>> history = fit(model, data, steps=100, lr=0.02, progress_bar=False)
        >>> model.condition({0: 3.0}).mean.round().tolist()
        [3.0]
    """

    support = constraints.real_vector
    has_rsample = True

    def __init__(
        self,
        dim: int,
        num_components: int,
        covariance: Covariance = "diagonal",
        *,
        variance_floor: float = 1e-6,
        validate_args: bool | None = None,
    ) -> None:
        dim = check_positive_int("dim", dim)
        num_components = check_positive_int("num_components", num_components)
        if covariance not in get_args(Covariance):
            raise ValueError(
                f"Expected covariance to be one of {get_args(Covariance)}, got {covariance!r}."
            )
        if not 0 < variance_floor < float("inf"):
            raise ValueError(
                f"Expected a positive, finite variance_floor, got {variance_floor}. Without a "
                f"floor the likelihood of a mixture is unbounded."
            )
        super().__init__(event_shape=(dim,), validate_args=validate_args)
        self.dim = dim
        self.num_components = num_components
        self.covariance = covariance
        self.variance_floor = variance_floor
        rows = 1 if covariance == "shared" else num_components
        columns = 1 if covariance == "spherical" else dim
        self.logits = nn.Parameter(torch.zeros(num_components))
        self.loc = nn.Parameter(torch.randn(num_components, dim))
        self.raw_scale = nn.Parameter(torch.zeros(rows, columns))

    @property
    def scale(self) -> Tensor:
        """Standard deviations of all components, shape (K, D)."""
        variance = self.variance_floor + (2 * self.raw_scale).exp()
        return variance.sqrt().expand(self.num_components, self.dim)

    @property
    def distribution(self) -> MixtureOfNormals:
        """The mixture with the present parameters, and gradients to them."""
        mixture = MixtureOfNormals(self.logits, self.loc, self.scale, validate_args=False)
        mixture._validate_args = self._validate_args
        return mixture

    @property
    def mean(self) -> Tensor:
        """Mean of the mixture, shape (D,)."""
        return self.distribution.mean

    @property
    def variance(self) -> Tensor:
        """Variance of every coordinate, shape (D,)."""
        return self.distribution.variance

    def log_prob(self, value: Tensor) -> Tensor:
        r"""Log-density at points of shape (\*S, D); shape (\*S)."""
        return self.distribution.log_prob(value)

    def sample(self, sample_shape: _size = Size()) -> Tensor:
        r"""Draws without a graph, shape (\*S, D)."""
        return self.distribution.sample(sample_shape)

    def rsample(self, sample_shape: _size = Size()) -> Tensor:
        r"""Draws with exact pathwise gradients, shape (\*S, D); see `MixtureOfNormals`."""
        return self.distribution.rsample(sample_shape)

    def responsibilities(self, value: Tensor) -> Tensor:
        r"""Probability of every component given points (\*S, D); shape (\*S, K)."""
        return self.distribution.responsibilities(value)

    def marginal(self, dims: int | Sequence[int]) -> MixtureOfNormals:
        """Law of some of the coordinates; see `MixtureOfNormals.marginal`."""
        return self.distribution.marginal(dims)

    def condition(self, observed: Mapping[int, float | Tensor]) -> MixtureOfNormals:
        """Law of the other coordinates, given some; see `MixtureOfNormals.condition`."""
        return self.distribution.condition(observed)

    def initialize(self, data: Batch) -> None:
        """Starts from clusters of the data: k-means from k-means++ seeds.

        Parameters that do not require gradients are left alone.

        Args:
            data: Points of shape (N, D), of the model's dtype and device.

        Raises:
            ValueError: If the data does not fit or is not finite.
        """
        super().initialize(data)
        x, _ = split_batch(data)
        x = check_value(self, x, like=self.loc).reshape(-1, self.dim)
        if len(x) == 0 or not x.isfinite().all():
            raise ValueError(
                "Expected at least one point and finite values to initialise from, got "
                f"{len(x)} points of which {int((~x.isfinite()).any(-1).sum())} are not finite."
            )
        clusters = find_clusters(x, self.num_components)
        variance = clusters.variance
        if self.covariance == "shared":
            variance = (clusters.weights.unsqueeze(-1) * variance).sum(0, keepdim=True)
        elif self.covariance == "spherical":
            variance = variance.mean(-1, keepdim=True)
        excess = (variance - self.variance_floor).clamp(min=self.variance_floor)
        start = {
            self.logits: clusters.weights.log(),
            self.loc: clusters.loc,
            self.raw_scale: 0.5 * excess.log(),
        }
        with torch.no_grad():
            for parameter, value in start.items():
                if parameter.requires_grad:
                    parameter.copy_(value)
