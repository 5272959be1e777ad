"""The tails of a learnable mixture's components: degrees of freedom as parameters."""

__all__ = ["LEAST_DF", "StudentTails", "check_df"]

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Size, Tensor

from ..core.checks import as_float_or_nan
from ..core.constraints import Floored
from .finite import FiniteMixture
from .student import MixtureOfStudentT

# Learned degrees of freedom are more than this: with fewer, a density may grow without bound at
# points that are equal.
LEAST_DF = 0.1

# From where they start, and up to where they are estimated: a normal to five digits.
FIRST_DF, MOST_DF = 4.0, 1e5

NEWTON_STEPS = 20


def check_df(name: str, value: Any) -> Any:
    """Checks degrees of freedom: a positive number, ``"shared"`` or None."""
    if value is None or value == "shared":
        return value
    df = as_float_or_nan(value)
    if not 0 < df < math.inf:
        raise ValueError(
            f"Expected {name} to be positive and finite degrees of freedom, 'shared', or None to "
            f"learn those of every component, got {value!r}. For a normal use tails='normal'."
        )
    return df


class StudentTails:
    r"""Degrees of freedom :math:`\nu` of K components, learned or fixed.

    Args:
        num_components: K.
        df: None: one of every component is learned; ``"shared"``: one for all; or a number, which
            is fixed.
    """

    def __init__(self, num_components: int, df: float | str | None) -> None:
        self.num_components, self._df = num_components, df

    @property
    def shapes(self) -> dict[str, Size]:
        """Names and shapes of the parameters."""
        if isinstance(self._df, float):
            return {}
        return {"raw_df": Size((1 if self._df == "shared" else self.num_components,))}

    @property
    def floored(self) -> Floored:
        """Degrees of freedom as a function of parameters ``raw_df``, and the inverse function."""
        return Floored(LEAST_DF)

    def start(self) -> dict[str, Tensor]:
        """Name -> value of every parameter, in float64, from which training starts."""
        first = self.floored.inverse(torch.tensor(FIRST_DF, dtype=torch.float64))
        return {name: first.expand(shape).clone() for name, shape in self.shapes.items()}

    def mixture(self, normals: FiniteMixture, raw: Mapping[str, Tensor]) -> MixtureOfStudentT:
        """The mixture with these tails, of the weights, locations and scales of normals."""
        logits = normals._logits
        if isinstance(self._df, float):
            df = torch.full_like(logits[..., :1], self._df)
        else:
            df = self.floored(raw["raw_df"])
        return MixtureOfStudentT.of(normals, df.expand(*df.shape[:-1], self.num_components))

    def estimate(
        self, weight: Tensor, mass: Tensor, log_factor: Tensor, shrink: Tensor
    ) -> dict[str, Tensor]:
        r"""The degrees of freedom of highest expected likelihood.

        The hidden factors g are gamma variables of shape and rate :math:`a = \nu / 2`, times
        :math:`\alpha` (see `Run` of `fit_em`): a solves

        .. math:: \log a - \psi(a) = \frac{\sum_n r u}{\alpha \sum_n r} - 1 + \log \alpha
                  - \frac{\sum_n r E[\log g]}{\sum_n r} .

        Args:
            weight: Sum of r, shape (K,).
            mass: Sum of r u, shape (K,).
            log_factor: Sum of r E[log g], shape (K,).
            shrink: The factor :math:`\alpha`, shape (K,) or ().

        Returns:
            Name -> value of every parameter.
        """
        if not self.shapes:
            return {}
        excess = mass / shrink + weight * (shrink.log() - 1) - log_factor
        if self._df == "shared":
            excess, weight = excess.sum(0, keepdim=True), weight.sum(0, keepdim=True)
        tiny = torch.finfo(weight.dtype).tiny
        df = 2 * _gamma_shape(excess / weight.clamp(min=tiny))
        return {"raw_df": self.floored.inverse(df.clamp(max=MOST_DF))}


def _gamma_shape(excess: Tensor) -> Tensor:
    """Solves log a - psi(a) = excess for a, by Newton's method on the inverse of a."""
    excess = excess.clamp(min=1 / MOST_DF)
    a = (3 - excess + ((excess - 3).square() + 24 * excess).sqrt()) / (12 * excess)
    for _ in range(NEWTON_STEPS):
        miss = a.log() - a.digamma() - excess
        slope = 1 / a - torch.polygamma(1, a)  # negative
        a = 1 / (1 / a + miss / (a.square() * slope)).clamp(min=0.5 / MOST_DF)
        if bool((miss.abs() <= 1e-12 * excess).all()):
            break
    return a.clamp(max=0.5 * MOST_DF, min=math.ulp(1.0))
