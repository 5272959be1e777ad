"""A relaxed mixture of normals that learns its parameters, while its temperature falls."""

__all__ = ["RelaxedGaussianMixture"]

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Size, Tensor
from torch.distributions import constraints
from torch.types import _size

from ..core.batch import Batch
from ..core.checks import check_choice, check_positive_int
from ..core.module import DistributionModule
from .learnable import GaussianMixture
from .relaxed import RelaxedMixtureOfNormals, inner_points

Schedule = Literal["geometric", "linear"]


class RelaxedGaussianMixture(DistributionModule):
    """`RelaxedMixtureOfNormals` with learnable parameters, and a temperature that may fall.

    Args:
        dim: Dimension D of a sample.
        num_components: Number of components K.
        temperatures: A number; or a pair of the temperatures at the start and at the end of
            training, which `anneal` goes between.
        schedule: How: ``"geometric"``, by a constant factor, or ``"linear"``.
        num_inner: Number of points behind `log_prob`; see `RelaxedMixtureOfNormals`.
        variance_floor: Smallest variance of a component; see `GaussianMixture`.
        validate_args: Whether to check the values that are scored.

    Attributes:
        mixture: The exact `GaussianMixture` of the same parameters: the law at temperature zero.
        temperature: The present temperature, a buffer that checkpoints keep.

    Raises:
        ValueError: For an argument that is out of range.

    Example:
        >>> from pyromix import fit
        >>> _ = torch.manual_seed(0)
        >>> data = torch.cat([torch.randn(500, 2) - 3, torch.randn(500, 2) + 3])
        >>> model = RelaxedGaussianMixture(2, num_components=2, temperatures=(1.0, 0.05))
        >>> history = fit(model, data, steps=50, lr=0.02, progress_bar=False)
        >>> round(model.temperature.item(), 2)
        0.05
    """

    support = constraints.real_vector
    temperature: Tensor
    points: Tensor

    def __init__(
        self,
        dim: int,
        num_components: int,
        temperatures: float | Sequence[float] = 0.5,
        *,
        schedule: Schedule = "geometric",
        num_inner: int = 512,
        variance_floor: float = 1e-6,
        validate_args: bool | None = None,
    ) -> None:
        mixture = GaussianMixture(dim, num_components, variance_floor=variance_floor)
        super().__init__(event_shape=mixture.event_shape, validate_args=validate_args)
        self.dim, self.num_components = mixture.dim, mixture.num_components
        self.temperatures = _check_temperatures(temperatures)
        self.schedule = check_choice("schedule", schedule, ("geometric", "linear"))
        self.num_inner = check_positive_int("num_inner", num_inner)
        self.variance_floor = variance_floor
        self.mixture = mixture
        self.register_buffer("temperature", torch.tensor(self.temperatures[0]))
        # Part of the law, and of checkpoints.
        points = inner_points(self.num_components, self.num_inner)
        self.register_buffer("points", points.to(mixture.loc, copy=True))
        self.has_rsample = True

    @property
    def distribution(self) -> RelaxedMixtureOfNormals:
        """The law with the present parameters, and gradients to them."""
        m = self.mixture
        law = RelaxedMixtureOfNormals(
            self.temperature, m.logits, m.loc, m.scale, self.num_inner, validate_args=False
        )
        law._points = self.points
        law._validate_args = self._validate_args
        return law

    @property
    def mean(self) -> Tensor:
        """Mean, shape (D,)."""
        return self.distribution.mean

    @property
    def variance(self) -> Tensor:
        """Variance of every coordinate, shape (D,)."""
        return self.distribution.variance

    @property
    def scheduled(self) -> bool:
        """Whether the temperature changes in the course of training."""
        return self.temperatures[0] != self.temperatures[1]

    def anneal(self, progress: float) -> None:
        """Sets the temperature that the schedule has when training has come so far."""
        start, end = self.temperatures
        if self.schedule == "geometric":
            value = start * (end / start) ** progress
        else:
            value = start + (end - start) * progress
        self.temperature.fill_(value)

    def log_prob(self, value: Tensor) -> Tensor:
        r"""Log-density at points (\*S, D), from the fixed inner points; shape (\*S)."""
        return self.distribution.log_prob(value)

    def log_prob_nested(self, value: Tensor, num_inner: int = 100) -> Tensor:
        """See `RelaxedMixtureOfNormals.log_prob_nested`."""
        return self.distribution.log_prob_nested(value, num_inner)

    def rsample(self, sample_shape: _size = Size()) -> Tensor:
        r"""Draws of the relaxed law with pathwise gradients, shape (\*S, D)."""
        return self.distribution.rsample(sample_shape)

    def rsample_weighted(self, num_samples: int) -> tuple[Tensor, Tensor]:
        """Draws (n, D) and log-weights (n,); see `RelaxedMixtureOfNormals.rsample_weighted`."""
        return self.distribution.rsample_weighted(num_samples)

    def initialize(self, data: Batch) -> None:
        """Starts from clusters of the data; see `GaussianMixture.initialize`."""
        self.mixture.initialize(data)
        super().initialize(data)


def _check_temperatures(temperatures: float | Sequence[float]) -> tuple[float, float]:
    try:
        pair = (
            tuple(float(t) for t in temperatures)
            if isinstance(temperatures, Sequence)
            else ((float(temperatures),) * 2)
        )
    except (TypeError, ValueError):
        pair = ()
    if len(pair) != 2 or not all(0 < t < math.inf for t in pair):
        raise ValueError(
            f"Expected a positive temperature, or a pair of them, got {temperatures!r}."
        )
    return pair
