"""An affine map with a triangular matrix: the simplest transform that correlates coordinates."""

__all__ = ["Triangular"]

import torch
from pyro.distributions.torch_transform import TransformModule
from torch import Tensor, nn
from torch.distributions import constraints

from ..core.checks import check_positive_int
from ..core.registry import register


class Triangular(TransformModule):
    r"""The affine autoregressive transform with constant coefficients.

    .. math:: x = \mu + \operatorname{diag}(e^s) (I + B) z, \qquad
              \log |\det J| = \textstyle\sum_d s_d

    with B strictly lower triangular. It starts as the identity. On a normal it gives any normal;
    below splines it gives correlations, which splines learn slowly.

    Args:
        dim: Number of coordinates.

    Raises:
        ValueError: If `dim` is not a positive integer.

    Example:
        >>> transform = Triangular(3)
        >>> z = torch.randn(5, 3)
        >>> torch.equal(transform(z), z)
        True
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, dim: int) -> None:
        super().__init__(cache_size=1)
        self.dim = check_positive_int("dim", dim)
        self.loc = nn.Parameter(torch.zeros(self.dim))
        self.log_scale = nn.Parameter(torch.zeros(self.dim))
        self.below = nn.Parameter(torch.zeros(self.dim, self.dim))

    @property
    def scale_tril(self) -> Tensor:
        """The matrix (dim, dim)."""
        unit = self.below.tril(-1) + torch.eye(self.dim).to(self.below)
        return self.log_scale.exp().unsqueeze(-1) * unit

    def _call(self, x: Tensor) -> Tensor:
        return self.loc + x @ self.scale_tril.mT

    def _inverse(self, y: Tensor) -> Tensor:
        columns = (y - self.loc).unsqueeze(-1)
        return torch.linalg.solve_triangular(self.scale_tril, columns, upper=False).squeeze(-1)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002
        """The same number for all values (..., dim), shape (...)."""
        return self.log_scale.sum().expand(x.shape[:-1])


register(Triangular)
