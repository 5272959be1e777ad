"""Monotone maps between a column's own units and numbers of about unit size."""

__all__ = ["Map"]

from dataclasses import dataclass
from typing import Literal

import numpy as np

Form = Literal["linear", "log", "logit"]


@dataclass(frozen=True)
class Map:
    r"""A map z of numbers x: linear, of their logarithm, or of their logit.

    .. math:: z = \frac{u(x) - \mu}{\sigma}, \qquad u(x) = x, \quad \log(x - a) \quad or \quad
              \log \frac{x - a}{b - x} .

    Args:
        form: Which u.
        low: a, what numbers are above; of no meaning for the linear form.
        high: b, what they are below, for the logit.
        loc: The centre of u.
        scale: The spread of u.
    """

    form: Form
    low: float = 0.0
    high: float = 1.0
    loc: float = 0.0
    scale: float = 1.0

    def fitted(self, x: np.ndarray) -> "Map":
        """The map whose numbers z have mean zero and standard deviation one for values (n,)."""
        u = self._stretch(x)
        spread = float(u.std()) if len(u) else 0.0
        loc = float(u.mean()) if len(u) else 0.0
        scale = spread if spread > 1e-12 * max(1.0, abs(loc)) else 1.0
        return Map(self.form, self.low, self.high, loc, scale)

    def forward(self, x: np.ndarray) -> np.ndarray:
        """Numbers z of values; infinite at the ends of the range."""
        return (self._stretch(x) - self.loc) / self.scale

    def inverse(self, z: np.ndarray) -> np.ndarray:
        """Values of numbers z."""
        u = self.loc + self.scale * z
        if self.form == "linear":
            return u
        with np.errstate(over="ignore"):
            if self.form == "log":
                return self.low + np.exp(u)
            return self.low + (self.high - self.low) / (1 + np.exp(-u))

    def log_slope(self, x: np.ndarray) -> np.ndarray:
        """Logarithm of dz/dx, by which a density of z becomes one of x."""
        flat = -np.log(self.scale) * np.ones_like(x)
        if self.form == "linear":
            return flat
        with np.errstate(divide="ignore", invalid="ignore"):
            flat = flat - np.log(x - self.low)
            if self.form == "logit":
                flat = flat + np.log(self.high - self.low) - np.log(self.high - x)
        return flat

    def reaches(self, x: np.ndarray) -> np.ndarray:
        """Whether values are in the range of the map."""
        if self.form == "linear":
            return np.isfinite(x)
        above = np.isfinite(x) & (x > self.low)
        return above & (x < self.high) if self.form == "logit" else above

    def _stretch(self, x: np.ndarray) -> np.ndarray:
        if self.form == "linear":
            return np.asarray(x, dtype=np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            u = np.log(x - self.low)
            return u if self.form == "log" else u - np.log(self.high - x)
