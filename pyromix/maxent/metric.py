"""The spread of statistics under a law, in which violations are measured."""

__all__ = ["Spread"]

from typing import NamedTuple

import torch
from torch import Tensor

# Added to the diagonal of correlations, as statistics may depend on each other: less could not be
# told from what rounding does to them.
RIDGES = {torch.float32: 1e-6, torch.float64: 1e-10}


class Spread(NamedTuple):
    """Standard deviations and correlations of m statistics, in double precision."""

    scale: Tensor
    """Standard deviations (m,), and ones for statistics that are constant."""
    correlation: Tensor
    """Correlations (m, m), with a ridge."""

    @classmethod
    def of(cls, values: Tensor) -> "Spread":
        """The spread of statistics of draws, (n, m)."""
        covariance = torch.cov(values.detach().double().mT).reshape(values.shape[1], -1)
        variance = covariance.diagonal()
        scale = torch.where(variance > 0, variance, torch.ones_like(variance)).sqrt()
        ridge = RIDGES.get(values.dtype, RIDGES[torch.float32])
        correlation = covariance / scale / scale.unsqueeze(-1)
        correlation = correlation + torch.diag(torch.where(variance > 0, ridge, 1.0))
        return cls(scale, correlation)

    @property
    def covariance(self) -> Tensor:
        """Covariances (m, m), with the ridge."""
        return self.correlation * self.scale * self.scale.unsqueeze(-1)

    def apart(self, is_inequality: Tensor) -> "Spread":
        """The spread without correlations of inequalities.

        Every inequality has slack of its own, which a metric must not mix with that of others.

        Args:
            is_inequality: Which statistics have a bound, shape (m,).
        """
        apart = is_inequality.unsqueeze(-1) | is_inequality
        apart = apart & ~torch.eye(len(self.scale)).to(apart)
        return Spread(self.scale, torch.where(apart, 0.0, self.correlation))

    def metric(self) -> Tensor:
        """The inverse covariance (m, m)."""
        return torch.linalg.inv(self.correlation) / self.scale / self.scale.unsqueeze(-1)

    def whiten(self, columns: Tensor) -> Tensor:
        """Columns (m, n) whose Euclidean lengths are those of the given ones in the metric."""
        factor = torch.linalg.cholesky(self.correlation)
        scaled = columns.double() / self.scale.unsqueeze(-1)
        return torch.linalg.solve_triangular(factor, scaled, upper=False)

    def length(self, violation: Tensor) -> float:
        """Length of a violation (m,) in the metric: in standard deviations."""
        return float(self.whiten(violation.detach().unsqueeze(-1)).norm())
