r"""Variables whose normal scores are correlated: a Gaussian copula, in any dimension.

The score of a variable is :math:`z = \Phi^{-1}(F(x))`, with the distribution function F that it
has on its own. The law of largest entropy that keeps what is known of every variable, the means
and deviations of the scores, and has :math:`E[z_i z_j] = \rho_{ij}`, is

.. math:: q(x) = \prod_i q_i(x_i) \; \frac{N(z; 0, R)}{\prod_i N(z_i; 0, 1)}

where entries of R that are not stated are those of the largest determinant. Its marginals are
those that the variables have on their own, so that all statements about them go on to hold.
"""

__all__ = ["CopulaLaw", "complete", "score"]

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Size, Tensor
from torch.distributions import MultivariateNormal, constraints
from torch.types import _size

from .line import PLACE, LineLaw

SWEEPS = 2000
CLOSE = 1e-12
SMALLEST = 1e-300
FEW = 1000  # values, for which it does not matter how many differ


def score(law: LineLaw, x: Tensor) -> Tensor:
    """Normal scores of values, of their shape, in double precision."""
    if not x.requires_grad and x.dim() == 1 and len(x) > FEW:
        values, place = x.unique(return_inverse=True)  # on a grid, few differ
        if len(values) < len(x) / 2:
            return score(law, values)[place]
    lower, upper = law.tails(x)
    is_low = lower < upper
    tail = torch.where(is_low, lower, upper).clamp(min=SMALLEST)
    return torch.where(is_low, 1.0, -1.0) * torch.special.ndtri(tail)


def complete(correlations: Mapping[tuple[int, int], float], dim: int) -> Tensor | None:
    """The correlation matrix of largest determinant with the given entries, None if there is none.

    By iterative proportional scaling: in turn, each pair's block of the precision matrix is
    changed such that the pair has its correlation.

    Args:
        correlations: By pairs of columns.
        dim: Number of columns.
    """
    precision = torch.eye(dim, dtype=torch.float64)
    for _ in range(SWEEPS):
        worst = 0.0
        for pair, rho in correlations.items():
            index = torch.tensor(pair)
            block = torch.linalg.inv(precision)[index][:, index]
            wanted = torch.tensor([[1.0, rho], [rho, 1.0]], dtype=torch.float64)
            worst = max(worst, float((block - wanted).abs().max()))
            change = torch.linalg.inv(wanted) - torch.linalg.inv(block)
            precision[index.unsqueeze(-1), index] += change
            if not bool(precision.isfinite().all()):
                return None
        if worst < CLOSE:
            matrix = torch.linalg.inv(precision)
            return (matrix + matrix.mT) / 2
    return None


class CopulaLaw(TorchDistribution):
    """Laws on the line whose normal scores have correlations.

    Args:
        laws: Of the variables.
        matrix: Correlations R of the scores, shape (d, d).
        support: The constraint on values, of event shape (d,).
    """

    has_rsample = False
    arg_constraints: dict[str, Any] = {}  # noqa: RUF012 - as PyTorch declares it

    def __init__(
        self, laws: Sequence[LineLaw], matrix: Tensor, support: constraints.Constraint
    ) -> None:
        self.laws, self.matrix, self._support = tuple(laws), matrix, support
        self.scores = MultivariateNormal(matrix.new_zeros(len(laws)), matrix, validate_args=False)
        super().__init__(event_shape=Size((len(laws),)), validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        """Where values lie."""
        return self._support

    def expand(self, batch_shape: _size, _instance: Any = None) -> Any:
        """Independent copies, in a batch."""
        from pyro.distributions.torch_distribution import ExpandedDistribution

        return ExpandedDistribution(self, Size(batch_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of values (..., d), shape (...)."""
        inside = self._support.check(value)
        parts, scores = [], []
        for law, column in zip(self.laws, value.unbind(-1), strict=True):
            parts.append(law.log_prob(column.to(PLACE)))
            safe = torch.where(inside, column, law.median.to(column))
            scores.append(score(law, safe))
        z = torch.stack(scores, -1)
        alone = -0.5 * (z.square() + math.log(2 * math.pi)).sum(-1)
        total = torch.stack(parts, -1).sum(-1) + self.scores.log_prob(z) - alone
        return torch.where(inside, total.to(value), -math.inf)

    def sample(self, sample_shape: _size = Size()) -> Tensor:
        """Draws, of the given shape, then (d,)."""
        with torch.no_grad():
            u = torch.special.ndtr(self.scores.sample(Size(sample_shape)))
            columns = [law.draw(p) for law, p in zip(self.laws, u.unbind(-1), strict=True)]
            return torch.stack(columns, -1)

    def entropy(self) -> Tensor:
        """Differential entropy, in nats."""
        total = 0.5 * torch.logdet(self.matrix)
        return sum((law.entropy() for law in self.laws), total.to(torch.get_default_dtype()))

    @property
    def mean(self) -> Tensor:
        """Means, shape (d,)."""
        return torch.stack([law.mean for law in self.laws])

    @property
    def variance(self) -> Tensor:
        """Variances, shape (d,)."""
        return torch.stack([law.variance for law in self.laws])

    def __repr__(self) -> str:
        return f"CopulaLaw(dim={len(self.laws)})"
