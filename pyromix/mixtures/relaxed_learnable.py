"""A relaxed mixture of normals that learns its parameters, while its temperature falls."""

__all__ = ["RelaxedGaussianMixture"]

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Generator, Tensor
from torch.distributions import constraints

from ..core.batch import Batch, split_batch
from ..core.checks import Check, check_arguments, check_floor, check_positive_int, one_of
from ..core.conversions import TensorLike
from ..core.random import takes_generator
from ..core.standardize import Mode
from .inner_points import inner_points
from .learnable import GaussianMixture
from .mixture_module import MixtureModule
from .relaxed import RelaxedMixtureOfNormals

Schedule = Literal["geometric", "linear"]


def _check_temperatures(name: str, value: Any) -> tuple[float, float]:
    """The temperatures at the start and at the end, of a number or of a pair."""
    try:
        pair = tuple(map(float, value if isinstance(value, Sequence) else (value, value)))
    except (TypeError, ValueError):
        pair = ()
    if len(pair) != 2 or not all(0 < t < math.inf for t in pair):
        raise ValueError(
            f"Expected {name} to be a positive temperature, or a pair of them, got {value!r}."
        )
    return pair


class RelaxedGaussianMixture(MixtureModule[RelaxedMixtureOfNormals]):
    r"""`RelaxedMixtureOfNormals` with learnable parameters, and a temperature that may fall.

    .. math:: c \sim \operatorname{GumbelSoftmax}(w, \tau), \qquad
              z = c^\top m + (c^\top s) \, \varepsilon, \qquad
              p(z) = E_c \prod_d N(z_d; c^\top m_{\cdot d}, (c^\top s_{\cdot d})^2)

    Args:
        dim: Dimension D of a sample.
        num_components: Number of components K.
        temperatures: A number; or a pair of the temperatures at the start and at the end of
            training, which `anneal` goes between.
        schedule: How: ``"geometric"``, by a constant factor, or ``"linear"``.
        num_inner: Number of points behind `log_prob`; see `RelaxedMixtureOfNormals`.
        variance_floor: Smallest variance of a component; see `GaussianMixture`.
        scale_floor: Smallest standard deviation in its place.
        standardize: Whether parameters are in units of the columns; see `GaussianMixture`.
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

    argument_checks: ClassVar[Mapping[str, Check]] = {
        **MixtureModule.argument_checks,
        "temperatures": _check_temperatures,
        "schedule": one_of("geometric", "linear"),
        "num_inner": check_positive_int,
    }
    support = constraints.real_vector
    temperatures: tuple[float, float]
    schedule: Schedule
    num_inner: int
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
        scale_floor: float | None = None,
        standardize: Mode = "auto",
        validate_args: bool | None = None,
    ) -> None:
        if scale_floor is not None:
            variance_floor = check_floor("scale_floor", scale_floor) ** 2
        arguments = check_arguments(RelaxedGaussianMixture.argument_checks, locals())
        mixture = GaussianMixture(
            dim, num_components, variance_floor=variance_floor, standardize=standardize
        )
        super().__init__(event_shape=mixture.event_shape, validate_args=validate_args)
        self.keep_arguments(arguments)
        self.mixture = mixture
        self.register_buffer("temperature", torch.tensor(self.temperatures[0]))
        # Part of the law, and of checkpoints.
        points = inner_points(self.num_components, self.num_inner)
        self.register_buffer("points", points.to(mixture.loc, copy=True))

    def _law_given(self) -> RelaxedMixtureOfNormals:
        exact = self.mixture.law
        law = RelaxedMixtureOfNormals(
            self.temperature,
            self.mixture.logits,
            exact.loc,
            exact.component_variance.sqrt(),
            self.num_inner,
            validate_args=False,
        )
        law._points = self.points
        law._validate_args = self._validate_args
        return law

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

    def columns_at_floor(self) -> Tensor | None:
        """Which columns have the smallest variance in every component, shape (D,)."""
        return self.mixture.columns_at_floor()

    def column_floors(self) -> Tensor:
        """Smallest standard deviation of each column, in the user's units, (D,)."""
        return self.mixture.column_floors()

    @takes_generator
    def log_prob_nested(
        self, value: TensorLike, num_inner: int = 100, *, generator: Generator | None = None
    ) -> Tensor:
        r"""Monte Carlo estimate of the log-density at points (\*S, D), without the fixed points.

        Args:
            value: The points: a tensor, an array or nested lists.
            num_inner: Number of weights drawn for every one of them.
            generator: Where random numbers come from; by default PyTorch's global generator.

        Returns:
            Tensor of shape (\*S), another one at every call; see
            `RelaxedMixtureOfNormals.log_prob_nested`.
        """
        return self.law.log_prob_nested(value, num_inner)

    @torch.no_grad()
    def initialize(self, data: Batch | TensorLike) -> None:
        """Starts from clusters of the data; see `GaussianMixture.initialize`."""
        value, _ = split_batch(data, like=self.points)
        self.mixture.initialize(value)
        super().initialize(value)
