"""Coordinates in which parameters and simulations are closer to normal."""

__all__ = ["CoordinateLaw", "NormalScores", "SimulationMap", "parameter_map"]

import math
from typing import Any

import torch
from torch import Size, Tensor
from torch.distributions import (
    AffineTransform,
    ComposeTransform,
    Distribution,
    IndependentTransform,
    Transform,
    biject_to,
    constraints,
)
from torch.types import _size

# A column is bent if so much of a share of its values lies beyond so many robust standard
# deviations: 5 of a normal column would be one value in a million.
TAIL, SHARE = 5.0, 1e-3
NORMAL_RANGE = 2.5631  # between the first and the last tenth, in standard deviations


class NormalScores(Transform):
    r"""From the real line to an interval, by the normal distribution function.

    .. math:: \theta = a + (b - a) \, \Phi(z)

    A uniform law on the interval is a standard normal one of z, and one that is cut off at an end
    has a tail that falls as fast as a normal's.

    Args:
        low: Lower ends a.
        high: Upper ends b.
    """

    domain = constraints.real
    bijective = True
    sign = 1

    def __init__(self, low: Tensor, high: Tensor, cache_size: int = 0) -> None:
        super().__init__(cache_size=cache_size)
        self.low, self.high = low, high
        self.codomain = constraints.interval(low, high)

    def with_cache(self, cache_size: int = 1) -> "NormalScores":
        """The same transform with a cache of another size."""
        return NormalScores(self.low, self.high, cache_size)

    def _call(self, x: Tensor) -> Tensor:
        # Far tails are rounded to ends, which may be outside of the support of the law.
        first, last = torch.nextafter(self.low, self.high), torch.nextafter(self.high, self.low)
        return (self.low + (self.high - self.low) * torch.special.ndtr(x)).clamp(first, last)

    def _inverse(self, y: Tensor) -> Tensor:
        tiny = torch.finfo(y.dtype).eps
        share = ((y - self.low) / (self.high - self.low)).clamp(tiny, 1 - tiny)
        return torch.special.ndtri(share)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002, D102
        return (self.high - self.low).log() - 0.5 * x.square() - 0.5 * math.log(2 * math.pi)


def parameter_map(prior: Distribution, draws: Tensor) -> Transform:
    """From vectors z, of about unit scale under the prior, to parameters.

    Args:
        prior: The law of the parameters.
        draws: Draws from it, (N, D).
    """
    support = prior.support
    inner = support
    while isinstance(inner, constraints.independent):
        inner = inner.base_constraint
    if isinstance(inner, constraints.interval):
        low, high = (
            torch.as_tensor(end).to(draws) for end in (inner.lower_bound, inner.upper_bound)
        )
        dim = draws.shape[-1]
        scores = NormalScores(low.expand(dim), high.expand(dim))
        return IndependentTransform(scores, 1)
    try:
        free = biject_to(support)
    except NotImplementedError as error:
        raise ValueError(
            f"Expected a prior of continuous parameters, whose support biject_to knows, got "
            f"{type(prior).__name__} of support {support}."
        ) from error
    z = free.inv(draws)
    if z.shape != draws.shape:
        raise ValueError(
            f"Expected a prior whose parameters are free to vary each by themselves, got "
            f"{type(prior).__name__} of support {support}, where {draws.shape[-1]} parameters "
            f"have {z.shape[-1]} degrees of freedom. Leave one of them out."
        )
    if free.domain.event_dim == 0:
        free = IndependentTransform(free, 1)
    return ComposeTransform([AffineTransform(z.mean(0), z.std(0), event_dim=1), free])


class CoordinateLaw(Distribution):
    """Law of coordinates of parameters under their prior.

    PyTorch's `TransformedDistribution` with the inverse of a transform loses it in a pickle.

    Args:
        prior: The law of the parameters, of event shape (D,).
        to_parameters: From coordinates to parameters.
    """

    arg_constraints = {}  # noqa: RUF012
    support = constraints.real_vector

    def __init__(self, prior: Distribution, to_parameters: Transform) -> None:
        self._prior, self._map = prior, to_parameters
        super().__init__(event_shape=prior.event_shape, validate_args=False)

    def sample(self, sample_shape: _size = Size()) -> Tensor:
        r"""Draws of coordinates, (\*S, D)."""
        return self._map.inv(self._prior.sample(Size(sample_shape)))

    def log_prob(self, value: Tensor) -> Tensor:
        r"""Log-densities of coordinates (\*S, D), (\*S,)."""
        theta = self._map(value)
        return self._prior.log_prob(theta) + self._map.log_abs_det_jacobian(value, theta)


class SimulationMap:
    r"""Standardises columns of simulations, and bends those with heavy tails.

    .. math:: y = \frac{u - \mu}{\sigma}, \qquad
              u = \frac{x - m}{s} \quad or \quad \operatorname{arsinh} \frac{x - m}{s}

    with m the median and s the robust standard deviation. NaN stays NaN.

    Args:
        x: Simulations (N, D), NaN where an entry is missing.
        bend: Whether columns with heavy tails are bent.
    """

    def __init__(self, x: Tensor, *, bend: bool = True) -> None:
        probs = torch.tensor([0.1, 0.5, 0.9]).to(x)
        low, self.centre, high = x.nanquantile(probs, 0)
        spread = (high - low) / NORMAL_RANGE
        whole = _nan_std(x)
        self.width = torch.where(spread > 1e-3 * whole, spread, 0.05 * whole)
        far = ((x - self.centre) / self.width).abs() > TAIL
        self.bent = (far.to(x).mean(0) > SHARE) & bend
        u = self._stretch(x)
        self.loc, self.scale = u.nanmean(0), _nan_std(u)

    def __call__(self, x: Tensor) -> Tensor:
        """Coordinates y of simulations, of the same shape."""
        return (self._stretch(x) - self.loc) / self.scale

    def inverse(self, y: Tensor) -> Tensor:
        """Simulations of coordinates."""
        u = y * self.scale + self.loc
        return self.centre + self.width * torch.where(self.bent, u.sinh(), u)

    def log_slope(self, x: Tensor) -> Tensor:
        """Logarithms of dy/dx, of the shape of x."""
        flat = -(self.width * self.scale).log()
        t = (x - self.centre) / self.width
        return flat - torch.where(self.bent, 0.5 * t.square().log1p(), torch.zeros_like(t))

    def transform(self, columns: Any = slice(None)) -> Transform:
        """From coordinates of some of the columns to simulations."""
        return _Unbend(self, columns)

    def _stretch(self, x: Tensor) -> Tensor:
        t = (x - self.centre) / self.width
        return torch.where(self.bent, t.asinh(), t)


class _Unbend(Transform):
    """A `SimulationMap`, from coordinates to simulations, as a transform of some columns."""

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, own: SimulationMap, columns: Any) -> None:
        super().__init__()
        self._own = object.__new__(SimulationMap)
        for name, value in vars(own).items():
            setattr(self._own, name, value[columns])

    def _call(self, x: Tensor) -> Tensor:
        return self._own.inverse(x)

    def _inverse(self, y: Tensor) -> Tensor:
        return self._own(self._converted(y))

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002
        return -self._own.log_slope(self._converted(y)).sum(-1)

    def _converted(self, y: Tensor) -> Tensor:
        """Simulations, such as counts in integers, in the dtype of the map."""
        return y.to(self._own.centre.dtype)


def _nan_std(x: Tensor) -> Tensor:
    return (x - x.nanmean(0)).square().nanmean(0).sqrt()
