"""A normal whose precision matrix is a diagonal plus a matrix of low rank."""

__all__ = ["LowRankPrecisionNormal"]

import math
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, overload

from torch import Generator, Size, Tensor
from torch.distributions import constraints
from torch.types import _size

from ..conditioning.law import ConditionedLaw, Statement
from ..conditioning.mixture import MixturePrior
from ..core.checks import check_tensor, check_value
from ..core.random import takes_generator
from ..core.registry import register
from ..evidence.pieces import Evidence
from ..numerics.diagonal_density import LOG_2PI
from ..numerics.low_rank import capacitance_tril, draw_centred, log_det, project
from ..numerics.triangular import half_log_det
from .finite import FiniteMixture
from .low_rank import (
    LowRankPrecisions,
    MixtureOfLowRankPrecisionNormals,
    check_low_rank_shapes,
    check_low_rank_values,
)


class LowRankPrecisionNormal(LowRankPrecisions):
    r"""Normal with precision matrix :math:`\operatorname{diag}(d) + U U^\top`.

    .. math:: p(x) = N\big(x; m, (\operatorname{diag}(d) + U U^\top)^{-1}\big)

    Few directions in which coordinates are tied closely together cost few columns of U. Density
    and draws cost O(D r + r^3); rank 0 is the diagonal normal. The small matrix is factorised in
    float64.

    Args:
        loc: Mean, shape (\*B, D).
        precision_diag: Diagonal d, positive, shape (\*B, D).
        precision_factor: Factor U, shape (\*B, D, r), r >= 0.
        validate_args: Whether to check the values of parameters and of scored samples.

    Raises:
        ValueError: For shapes, dtypes or devices that do not match, D = 0 and, under validation,
            NaN or a diagonal that is not positive.

    Example:
        >>> import torch
        >>> normal = LowRankPrecisionNormal(torch.zeros(2), torch.ones(2), torch.ones(2, 1))
        >>> normal.precision_matrix
        tensor([[2., 1.],
                [1., 2.]])
        >>> normal.rsample((3,)).shape
        torch.Size([3, 2])
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "loc": constraints.real_vector,
        "precision_diag": constraints.independent(constraints.positive, 1),
        "precision_factor": constraints.independent(constraints.real, 2),
    }
    _mean_dim = 1

    def __init__(
        self,
        loc: Tensor,
        precision_diag: Tensor,
        precision_factor: Tensor,
        validate_args: bool | None = None,
    ) -> None:
        loc = check_tensor("loc", loc)
        if loc.dim() < 1 or loc.shape[-1] == 0:
            raise ValueError(f"Expected loc of shape (*B, D), D >= 1, got {tuple(loc.shape)}.")
        batch_shape = check_low_rank_shapes(
            f"loc {tuple(loc.shape)}", loc, precision_diag, precision_factor, self._mean_dim
        )
        super().__init__(batch_shape, loc.shape[-1], validate_args)
        if self._checks_values:
            if not math.isfinite(loc.sum().item()) and not loc.isfinite().all():
                raise ValueError("Expected finite values of loc, got NaN or infinity.")
            check_low_rank_values(precision_diag, precision_factor)
        self._loc, self._diag, self._factor = loc, precision_diag, precision_factor

    @property
    def loc(self) -> Tensor:
        r"""Mean, shape (\*B, D)."""
        return self._over_batch(self._loc, 1)

    @property
    def mean(self) -> Tensor:
        r"""Mean, shape (\*B, D)."""
        return self.loc

    @property
    def variance(self) -> Tensor:
        r"""Variance of every coordinate, shape (\*B, D)."""
        return self._marginal_variance()

    def log_prob(self, value: Tensor) -> Tensor:
        r"""Log-density of points of shape (\*S, \*B, D); shape (\*S, \*B)."""
        value = check_value(self, value, like=self._loc)
        b = value - self.loc
        log_prob = 0.5 * (self._diag.log() - self._diag * b.square() - LOG_2PI).sum(-1)
        projected = project(b, self._factor)
        tril = capacitance_tril(self._diag, self._factor)
        return log_prob + half_log_det(tril) - 0.5 * projected.square().sum(-1)

    def entropy(self) -> Tensor:
        r"""Differential entropy in nats, shape (\*B)."""
        tril = capacitance_tril(self._diag, self._factor)
        dim = self._loc.shape[-1]
        entropy = 0.5 * (dim * (1 + LOG_2PI) - log_det(self._diag, tril))
        return entropy.expand(self.batch_shape)

    @takes_generator
    def rsample(
        self, sample_shape: _size = Size(), *, generator: Generator | None = None
    ) -> Tensor:
        r"""Draws with pathwise gradients; shape (\*S, \*B, D).

        Args:
            sample_shape: Shape S of the draws.
            generator: Where random numbers come from; by default PyTorch's global generator.
        """
        dim, rank = self._factor.shape[-2:]
        noise = self._loc.new_empty(*sample_shape, *self.batch_shape, dim + rank).normal_()
        return self._loc + draw_centred(self._diag, self._factor, noise)

    def marginal(self, dims: int | Iterable[object]) -> "LowRankPrecisionNormal":
        """Law of some of the coordinates; see `MixtureOfNormals.marginal`."""
        return self._component(self._as_mixture().marginal(dims))

    @overload
    def condition(self, values: Mapping[int, float | Tensor], /) -> "LowRankPrecisionNormal": ...
    @overload
    def condition(self, first: Evidence, /, *others: Statement) -> ConditionedLaw: ...
    def condition(self, *given: Any) -> Any:
        """The law given evidence; see `MixtureOfNormals.condition`.

        Returns:
            A `ConditionedMixture` of one component, over all coordinates. Deprecated: a mapping
            alone gives the normal of the other coordinates.

        Raises:
            ValueError: If a coordinate is out of range, or if the evidence does not fit.
        """
        mixture = self._as_mixture()
        if len(given) == 1 and not isinstance(given[0], Evidence):
            return self._component(mixture._given_mapping(given[0], missing=False))
        return mixture.condition(*given)

    def evidence_prior(self) -> MixturePrior:
        """The normal as what evidence is added to."""
        return self._as_mixture().evidence_prior()

    def _as_mixture(self) -> MixtureOfLowRankPrecisionNormals:
        """The mixture whose one component this is."""
        one = self._loc.new_zeros(*self.batch_shape, 1)
        parts = self._loc.unsqueeze(-2), self._diag.unsqueeze(-2), self._factor.unsqueeze(-3)
        return self._inherit(MixtureOfLowRankPrecisionNormals(one, *parts, validate_args=False))

    def _component(self, mixture: FiniteMixture) -> "LowRankPrecisionNormal":
        """The one component of a mixture."""
        assert isinstance(mixture, MixtureOfLowRankPrecisionNormals)
        loc, diag, factor = mixture.loc, mixture.precision_diag, mixture.precision_factor
        parts = loc.squeeze(-2), diag.squeeze(-2), factor.squeeze(-3)
        return self._inherit(LowRankPrecisionNormal(*parts, validate_args=False))


register(LowRankPrecisionNormal)
