r"""Mixtures of factor analysers: normals whose covariance is a diagonal plus a low-rank matrix.

A point of component k is :math:`x = m_k + W_k z + \sqrt{d_k}\, e`, with r standard normal factors
z and noise e (Ghahramani and Hinton 1996; McLachlan and Peel 2000). Given some or all coordinates,
z is normal, with a precision matrix :math:`M = I + W^\top \operatorname{diag}(d)^{-1} W` over the
rows of those that are known. The family is closed: marginals keep rows of W and d, and given
values the other coordinates have the factor :math:`W M^{-1/2}`. No D x D matrix is formed unless
asked for.
"""

__all__ = ["MixtureOfLowRankNormals"]

from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import constraints

from ..core.checks import is_traced
from ..core.registry import register
from ..numerics.batches import (
    RowLayout,
    check_weight_and_mean_values,
    check_weights_and_means,
    grouped_products,
    pick,
)
from ..numerics.factor_density import factor_log_prob
from ..numerics.implicit_correlated import reparameterize_factors
from ..numerics.low_rank import capacitance_tril, project, solve_right
from .finite import FiniteMixture
from .full import MixtureOfMultivariateNormals
from .low_rank import check_low_rank_shapes, check_low_rank_values

# With more numbers than this in the draws' factors, draws are grouped by component.
GATHERED_NUMBERS = 2**17


class MixtureOfLowRankNormals(FiniteMixture):
    r"""Finite mixture of normals with low-rank plus diagonal covariance matrices.

    .. math:: p(x) = \sum_{k=1}^K w_k \,
              N\big(x; m_k, \operatorname{diag}(d_k) + W_k W_k^\top\big)

    Also called a mixture of factor analysers. `log_prob` costs O(N K D r), and draws O(D r) each.
    `rsample` has exact pathwise gradients, in a backward pass of O(N K D r + K D r^3). Its single
    component is PyTorch's `LowRankMultivariateNormal`. For few directions in which coordinates
    are tied closely together, rather than vary widely, see `MixtureOfLowRankPrecisionNormals`.

    Args:
        logits: Unnormalised log-weights, shape (\*B, K). Minus infinity removes a component.
        loc: Means, shape (\*B, K, D).
        cov_diag: Diagonals d, positive, shape (\*B, K, D).
        cov_factor: Factors W, shape (\*B, K, D, r), r >= 0.
        validate_args: Whether to check the values of parameters and of scored samples.

    The four may have batch shapes of their own that broadcast to B.

    Raises:
        ValueError: For shapes, dtypes or devices that do not match, K = 0 or D = 0 and, under
            validation, NaN or a diagonal that is not positive.

    Example:
        >>> mixture = MixtureOfLowRankNormals(
        ...     torch.zeros(3), torch.randn(3, 3072), torch.ones(3, 3072), torch.randn(3, 3072, 2)
        ... )
        >>> x = mixture.sample((4,))
        >>> mixture.log_prob(x).shape
        torch.Size([4])
        >>> given = range(0, 3072, 2)
        >>> mixture.conditional(given, range(1, 3072, 2), x[:, given]).mean.shape
        torch.Size([4, 1536])
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "logits": constraints.real_vector,
        "loc": constraints.independent(constraints.real, 2),
        "cov_diag": constraints.independent(constraints.positive, 2),
        "cov_factor": constraints.independent(constraints.real, 3),
    }
    _tensors: ClassVar[dict[str, int]] = {"_loc": 2, "_diag": 2, "_factor": 3}

    def __init__(
        self,
        logits: Tensor,
        loc: Tensor,
        cov_diag: Tensor,
        cov_factor: Tensor,
        validate_args: bool | None = None,
    ) -> None:
        got = check_weights_and_means(logits, loc)
        batch_shape = check_low_rank_shapes(
            got, loc, cov_diag, cov_factor, 2, logits.shape[:-1], kind="cov"
        )
        super().__init__(batch_shape, loc.shape[-1], validate_args)
        if self._checks_values:
            check_weight_and_mean_values(logits, loc)
            check_low_rank_values(cov_diag, cov_factor, kind="cov")
        self._logits, self._loc = logits, loc
        self._diag, self._factor = cov_diag, cov_factor

    @property
    def cov_diag(self) -> Tensor:
        r"""Diagonal parts d of the covariances, shape (\*B, K, D)."""
        return self._over_batch(self._diag, 2)

    @property
    def cov_factor(self) -> Tensor:
        r"""Factors W of the rest of the covariances, shape (\*B, K, D, r)."""
        return self._over_batch(self._factor, 3)

    @property
    def covariance_matrix(self) -> Tensor:
        r"""The covariance matrices themselves, shape (\*B, K, D, D)."""
        return self._over_batch(self.component_covariance, 3)

    @property
    def component_variance(self) -> Tensor:
        r"""Variance of every coordinate in every component, shape (\*B, K, D)."""
        return self._over_batch(self._diag + self._factor.square().sum(-1), 2)

    @property
    def component_covariance(self) -> Tensor:
        r"""Covariances with no more batch dimensions than d and W have: (\*, K, D, D)."""
        return torch.diag_embed(self._diag) + self._factor @ self._factor.mT

    @property
    def _low_rank(self) -> tuple[Tensor, Tensor]:
        return self._diag, self._factor

    def with_covariances(self, logits: Tensor, loc: Tensor, scale_tril: Tensor) -> FiniteMixture:
        """The mixture of other normals, correlated ones."""
        return MixtureOfMultivariateNormals(logits, loc, scale_tril, validate_args=False)

    def _joint_log_prob(self, value: Tensor, observed: Tensor | None = None) -> Tensor:
        leading = torch.broadcast_shapes(value.shape[:-1], self.batch_shape)
        own = torch.broadcast_shapes(self._diag.shape[:-2], self._factor.shape[:-3])
        everything = torch.broadcast_shapes(own, self._loc.shape[:-2])
        # Means with the same covariances, as values that are given leave them, are rows like the
        # points, unless copies of the factors take less.
        rank = self._factor.shape[-1]
        own_means = own.numel() < everything.numel() and (
            leading.numel() <= rank * everything.numel()
        )
        layout = RowLayout(leading, own)
        if own_means:
            loc = layout.rows(self._loc, tail=2)
        else:
            layout = RowLayout(leading, everything)
            loc = layout.components(self._loc)
        log_weights = self._logits.log_softmax(-1)
        scores = factor_log_prob(
            layout.rows(value),
            loc,
            layout.components(self._diag),
            layout.components(self._factor, tail=3),
            log_weights if log_weights.dim() == 1 else layout.rows(log_weights),
            None if observed is None else layout.rows(observed),
        )
        return layout.restore(scores)

    def _joint_log_prob_observed(self, value: Tensor, observed: Tensor) -> Tensor:
        return self._joint_log_prob(value, observed.to(value.dtype))

    def _draw(self, component: Tensor, noise: Tensor) -> Tensor:
        loc, diag = pick(self._loc, component, 1), pick(self._diag, component, 1)
        dim, rank = self._factor.shape[-2:]
        own, factors = noise.split([dim, rank], -1)
        gathered = loc.numel() * rank
        if self._factor.dim() > 3 or gathered <= GATHERED_NUMBERS or is_traced():
            factor = pick(self._factor, component, 2)
            common = (factor @ factors.unsqueeze(-1)).squeeze(-1)
        else:
            common = grouped_products(component, factors, self._factor)
        return loc + diag.sqrt() * own + common

    @property
    def _num_noise(self) -> int:
        return self.event_shape[0] + self._factor.shape[-1]

    def _reparameterize(self, x: Tensor) -> Tensor:
        parameters = self._logits, self._loc, self._diag, self._factor
        return reparameterize_factors(x, len(self.batch_shape), *parameters)

    def _in_units(self, loc: Tensor, scale: Tensor) -> "MixtureOfLowRankNormals":
        return MixtureOfLowRankNormals(
            self._logits,
            self._loc * scale + loc,
            self._diag * scale.square(),
            self._factor * scale.unsqueeze(-1),
            validate_args=False,
        )

    def _marginal(self, kept: list[int]) -> "MixtureOfLowRankNormals":
        return MixtureOfLowRankNormals(
            self._logits,
            self._loc[..., kept],
            self._diag[..., kept],
            self._factor[..., kept, :],
            validate_args=False,
        )

    def _condition(
        self, given: list[int], free: list[int], value: Tensor
    ) -> "MixtureOfLowRankNormals":
        seen = self._marginal(given)
        diag, factor = seen._diag.double(), seen._factor.double()
        tril = capacitance_tril(diag, factor)
        # Scaled, factors are independent of each other: y of mean L^-1 W^T d^-1 b.
        pull = solve_right(tril, factor / diag.unsqueeze(-1))  # (*B, K, given, r)
        push = solve_right(tril, self._factor[..., free, :].double())  # (*B, K, free, r)
        y = project(value.unsqueeze(-2).double() - seen._loc.double(), pull)  # (*N, K, r)
        shift = _combined(push, y).to(self._loc.dtype)
        return MixtureOfLowRankNormals(
            seen._joint_log_prob(value),
            self._loc[..., free] + shift,
            self._diag[..., free],
            push.to(self._factor.dtype),
            validate_args=False,
        )


register(MixtureOfLowRankNormals)


def _combined(factor: Tensor, weights: Tensor) -> Tensor:
    """Sums of columns of factors (*B, K, D, r), with weights (*S, *B, K, r): (*S, *B, K, D)."""
    layout = RowLayout(weights.shape[:-2], factor.shape[:-3])
    rows = layout.rows(weights, tail=2).movedim(-3, -2)  # (*batch, K, N, r)
    product = rows @ layout.components(factor, tail=3).mT
    return layout.restore(product.movedim(-2, -3), tail=2)
