"""The learnt likelihood, as a function of the coordinates of parameters."""

__all__ = ["Features", "LogLikelihood"]

import math
from typing import Any

from torch import Tensor
from torch.distributions import Transform

from .conditional import ConditionalMixture
from .coordinates import NormalScores, SimulationMap


class Features:
    """What networks see of parameters: bounded ones themselves, of others coordinates.

    Simulators are often linear in parameters, and never have to be told that these end.

    Args:
        to_parameters: From coordinates to parameters.
        theta: Parameters (N, D) that bounded ones are standardised by.
    """

    def __init__(self, to_parameters: Transform, theta: Tensor) -> None:
        base: Any = getattr(to_parameters, "base_transform", None)
        self._map = to_parameters if isinstance(base, NormalScores) else None
        self._loc, self._scale = theta.mean(0), theta.std(0)

    def __call__(self, z: Tensor) -> Tensor:
        r"""Features of coordinates (\*S, D), of the same shape."""
        return z if self._map is None else (self._map(z) - self._loc) / self._scale


class LogLikelihood:
    """Log-density of what is known of a simulation, as a function of coordinates (N, D).

    An object, and no closure, so that posteriors can be saved with `pickle`.

    Args:
        law: Law of coordinates of simulations given features of parameters.
        features: What the law sees of parameters.
        to_coordinates: From simulations to their coordinates.
        x: The simulation (C,), with NaN for what is missing.
    """

    def __init__(
        self,
        law: ConditionalMixture,
        features: Features,
        to_coordinates: SimulationMap,
        x: Tensor,
    ) -> None:
        self._law, self._features = law, features
        self._columns: list[int] = (~x.isnan()).nonzero().squeeze(-1).tolist()
        self._whole = len(self._columns) == len(x)
        self._y = to_coordinates(x)[self._columns]
        self._log_slope = to_coordinates.log_slope(x)[self._columns].sum()

    def __call__(self, z: Tensor) -> Tensor:
        """Log-densities (N,)."""
        if not self._columns:
            return z.new_zeros(len(z))
        features = self._features(z)
        if self._whole:
            scores = self._law.member_log_prob(self._y.expand(len(z), -1), features)
            return scores.logsumexp(0) - math.log(len(scores)) + self._log_slope
        marginal = self._law.condition(features).marginal(self._columns)
        return marginal.log_prob(self._y) + self._log_slope
