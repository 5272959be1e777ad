"""A finite mixture of normals with full covariance matrices, of their own or tied."""

__all__ = ["MixtureOfMultivariateNormals"]

import math
from functools import partial
from typing import ClassVar

import torch
from torch import Size, Tensor
from torch.distributions import constraints
from torch.utils.checkpoint import checkpoint

from ..core.checks import check_tensor, is_traced
from ..core.registry import register
from ..numerics.batches import (
    check_weight_and_mean_values,
    check_weights_and_means,
    common_batch_shape,
    extremes,
    grouped_products,
    pick,
)
from ..numerics.diagonal_density import (
    DIRECT_SIZE,
    LOG_2PI,
    TOLERANCE,
    component_log_prob,
    unit_roundoff,
)
from ..numerics.implicit_correlated import reparameterize_full
from ..numerics.triangular import (
    cholesky_of_rows,
    half_log_det,
    inverse_tril,
    whiten,
    whiten_components,
)
from .finite import FiniteMixture

# Differences x - m are whitened for this many numbers at once, which fit the cache. Where that
# would be fewer points than dimensions, for more (128 MiB of float64): reading the factors takes
# time too.
BLOCK_NUMBERS = 2**20
LARGEST_BLOCK_NUMBERS = 2**24

# Where there are more of them, the backward pass computes them again instead of keeping all.
KEPT_NUMBERS = 2**24

# With this many points per dimension, inverting the factors costs a tenth of solving with them.
POINTS_PER_DIM = 16

# With more numbers than this in the draws' covariance factors, draws are grouped by component.
GATHERED_NUMBERS = 2**22


class MixtureOfMultivariateNormals(FiniteMixture):
    r"""Finite mixture of normals with full covariance matrices.

    .. math:: p(x) = \sum_{k=1}^K w_k \, N(x; m_k, L_k L_k^\top),
              \qquad w = \operatorname{softmax}(\text{logits})

    `log_prob` costs O(N K D^2); with a covariance that all components share, O(N D^2 + N K D).
    `rsample` has exact pathwise gradients, at a cost of O(N K D^2) in the backward pass.

    Args:
        logits: Unnormalised log-weights, shape (\*B, K). Minus infinity removes a component.
        loc: Means, shape (\*B, K, D).
        scale_tril: Lower Cholesky factors L of the covariances, shape (\*B, K, D, D), or
            (\*B, 1, D, D) for one that is tied between components. Entries above the diagonal are
            not looked at.
        validate_args: Whether to check the values of parameters and of scored samples.

    The three may have batch shapes of their own that broadcast to B.

    Raises:
        ValueError: For shapes, dtypes or devices that do not match, K = 0 or D = 0 and, under
            validation, NaN or a diagonal that is not positive.

    Example:
        >>> from pyromix import Observed
        >>> scale_tril = torch.tensor([[[1.0, 0.0], [0.8, 0.6]]])
        >>> mixture = MixtureOfMultivariateNormals(torch.zeros(2), torch.zeros(2, 2), scale_tril)
        >>> mixture.condition(Observed({0: 2.0})).mean
        tensor([2.0000, 1.6000])
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "logits": constraints.real_vector,
        "loc": constraints.independent(constraints.real, 2),
        "scale_tril": constraints.independent(constraints.lower_cholesky, 1),
    }
    _tensors: ClassVar[dict[str, int]] = {"_loc": 2, "_scale_tril": 3}

    def __init__(
        self, logits: Tensor, loc: Tensor, scale_tril: Tensor, validate_args: bool | None = None
    ) -> None:
        batch_shape = _check_shapes(logits, loc, scale_tril)
        super().__init__(batch_shape, loc.shape[-1], validate_args)
        if self._checks_values:
            _check_values(logits, loc, scale_tril)
        self._logits, self._loc, self._scale_tril = logits, loc, scale_tril

    @property
    def tied(self) -> bool:
        """Whether the components share one covariance matrix."""
        return self._scale_tril.shape[-3] == 1

    @property
    def scale_tril(self) -> Tensor:
        r"""Cholesky factors of the covariances, shape (\*B, K, D, D)."""
        return self._tril.expand(*self.batch_shape, self.num_components, -1, -1)

    @property
    def _tril(self) -> Tensor:
        """The factors as given, with zeros above the diagonal, which solvers do without."""
        return self._scale_tril.tril()

    @property
    def covariance_matrix(self) -> Tensor:
        r"""Covariances of the components, shape (\*B, K, D, D)."""
        covariance = self.component_covariance
        return covariance.expand(*self.batch_shape, self.num_components, -1, -1)

    @property
    def component_covariance(self) -> Tensor:
        r"""Covariances with no more batch dimensions than the factors have: (\*, K, D, D)."""
        tril = self._tril
        return (tril @ tril.mT).expand(*tril.shape[:-3], self.num_components, -1, -1)

    @property
    def component_variance(self) -> Tensor:
        r"""Variance of every coordinate in every component, shape (\*B, K, D)."""
        return self._tril.square().sum(-1).expand(self.loc.shape)

    def with_covariances(self, logits: Tensor, loc: Tensor, scale_tril: Tensor) -> FiniteMixture:
        """The mixture of other normals, correlated ones."""
        return MixtureOfMultivariateNormals(logits, loc, scale_tril, validate_args=False)

    def _joint_log_prob(self, value: Tensor) -> Tensor:
        log_weights = self._logits.log_softmax(-1)
        offset = log_weights - half_log_det(self._scale_tril)
        leading = torch.broadcast_shapes(value.shape[:-1], self.batch_shape)
        if self.tied and self._scale_tril.dim() == 3 and self._loc.dim() == 2:
            # Whitened once, points and means are those of spherical components.
            x = value.expand(*leading, -1) if offset.dim() > 1 else value
            points, loc = self._whitened(x.reshape(-1, x.shape[-1]))
            if offset.dim() > 1:  # weights differ between entries of the batch
                offset = offset.expand(*leading, -1).flatten(0, -2)
            scores = component_log_prob(points, loc, torch.ones_like(loc), offset.to(loc))
            scores = scores.reshape(*x.shape[:-1], self.num_components).to(value.dtype)
            return scores.expand(*leading, -1)
        if self.batch_shape:
            # Parameters may have fewer batch dimensions, and values as well.
            return (offset + self._quadratic(value)).expand(*leading, -1)
        points = value.reshape(-1, value.shape[-1])
        scores = self._quadratic(points)
        return offset + scores.reshape(*value.shape[:-1], self.num_components)

    def _quadratic(self, value: Tensor) -> Tensor:
        """Log-density of the components less the log-determinant, shape (*S, *B, K)."""
        return -0.5 * (self._squares(value) + LOG_2PI * value.shape[-1])

    def _squares(self, value: Tensor) -> Tensor:
        """Squared distances in units of the components' scales, shape (*S, *B, K)."""
        if value.dim() > 2 or self.batch_shape or is_traced():
            return self._squares_at_once(value)
        return self._squares_in_blocks(value)

    def _whitened(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Points (N, D) and means (K, D) as those of spherical components, if tied.

        In float64 where the rounding of either would matter to their differences.
        """
        tril = self._scale_tril[0]

        def whitened(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
            factor, loc, x = (t.to(dtype) for t in (tril, self._loc, points))
            centre = loc.detach().mean(-2)
            return whiten(factor, x - centre), whiten(factor, loc - centre)

        if points.dtype == torch.float64:
            return whitened(torch.float64)
        if not is_traced():
            x, loc = whitened(points.dtype)
            size = x.detach().square().sum(-1).amax() if len(x) else 0.0
            size = size + loc.detach().square().sum(-1).amax()
            if size * torch.finfo(points.dtype).eps <= TOLERANCE[points.dtype]:
                return x, loc
        return whitened(torch.float64)

    def _squares_in_blocks(self, points: Tensor) -> Tensor:
        """What `_squares` returns, for points of shape (N, D), which may be many."""
        dim, per_point = points.shape[-1], self._loc.numel()
        rows = min(dim, LARGEST_BLOCK_NUMBERS // per_point)
        blocks = points.split(max(1, rows, BLOCK_NUMBERS // per_point))
        invert = _prefers_inverse(points, self.num_components)
        inverse = self._inverse_tril() if invert else None
        if len(blocks) == 1:
            return self._squares_at_once(points, inverse)
        if torch.is_grad_enabled() and len(points) * per_point > KEPT_NUMBERS:
            again = partial(
                checkpoint, self._squares_at_once, use_reentrant=False, preserve_rng_state=False
            )
            parts = [again(block, inverse) for block in blocks]
        else:
            parts = [self._squares_at_once(b, inverse) for b in blocks]
        return torch.cat(parts)

    def _squares_at_once(self, value: Tensor, inverse: Tensor | None = None) -> Tensor:
        """What `_squares` returns, with an intermediate of shape (*S, *B, K, D)."""
        difference = value.unsqueeze(-2) - self._loc
        if inverse is None:
            z = whiten_components(self._scale_tril, difference)
        else:
            with torch.autocast(value.device.type, enabled=False):
                z = (difference.movedim(-3, -2) @ inverse.mT).movedim(-2, -3)
        return z.square().sum(-1)

    def _inverse_tril(self) -> Tensor:
        """Inverse factors, shape (K, D, D), computed in float64 whatever the dtype."""
        return inverse_tril(self._scale_tril.double()).to(self._scale_tril.dtype)

    def _joint_log_prob_observed(self, value: Tensor, observed: Tensor) -> Tensor:
        if is_traced():  # which patterns there are depends on values
            return self._masked_log_prob(value, observed)
        return self._scores_by_pattern(value, observed)

    def _masked_log_prob(self, value: Tensor, observed: Tensor) -> Tensor:
        """What `_joint_log_prob_observed` returns, by a factor for every point.

        Missing coordinates are replaced by independent ones of variance one, at their means.
        """
        seen = observed.to(value.dtype)
        log_det, square = self._masked_squares(value, seen)
        scores = -0.5 * (square + LOG_2PI * seen.sum(-1, keepdim=True))
        return self._logits.log_softmax(-1) - log_det + scores

    def _masked_squares(self, value: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """Half log-determinants and squared distances of the coordinates seen, (*S, *B, K)."""
        seen = seen.unsqueeze(-2)  # (*S, *B, 1, D)
        rows = seen.unsqueeze(-1) * self._tril
        missing = torch.diag_embed(1 - seen).expand_as(rows)
        tril = cholesky_of_rows(torch.cat([rows, missing], -1))
        z = whiten_components(tril, seen * (value.unsqueeze(-2) - self._loc))
        return half_log_det(tril), z.square().sum(-1)

    def _draw(self, component: Tensor, noise: Tensor) -> Tensor:
        loc = pick(self._loc, component, 1)
        gathered = noise.numel() * noise.shape[-1]
        few = gathered <= GATHERED_NUMBERS or is_traced()  # groups depend on what is drawn
        if self._scale_tril.dim() > 3 or (not self.tied and few):
            tril = pick(self._tril, component, 2)
            return loc + (tril @ noise.unsqueeze(-1)).squeeze(-1)
        if self.tied:
            return loc + noise @ self._tril[0].mT
        return loc + grouped_products(component, noise, self._tril)

    def _reparameterize(self, x: Tensor) -> Tensor:
        batch_dim = len(self.batch_shape)
        return reparameterize_full(x, batch_dim, self._logits, self._loc, self._scale_tril)

    def _in_units(self, loc: Tensor, scale: Tensor) -> "MixtureOfMultivariateNormals":
        tril = self._scale_tril * scale.unsqueeze(-1)
        moved = self._loc * scale + loc
        return MixtureOfMultivariateNormals(self._logits, moved, tril, validate_args=False)

    def _marginal(self, kept: list[int]) -> "MixtureOfMultivariateNormals":
        tril = cholesky_of_rows(self._tril[..., kept, :])
        return MixtureOfMultivariateNormals(
            self._logits, self._loc[..., kept], tril, validate_args=False
        )

    def _condition(
        self, given: list[int], free: list[int], value: Tensor
    ) -> "MixtureOfMultivariateNormals":
        peak, square, loc, tril = self._regress(given, free, value)
        return MixtureOfMultivariateNormals(peak - 0.5 * square, loc, tril, validate_args=False)

    def _regress(
        self, given: list[int], free: list[int], value: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What values (*N, given) of some coordinates say about the others.

        Returns:
            Log-weights plus log-densities of the given coordinates at their peak, and the values'
            squared distances from there, (*N, K); means (*N, K, free), and factors of covariances.
        """
        # With the given coordinates first, the Cholesky factor holds all that is needed.
        tril = cholesky_of_rows(self._tril[..., [*given, *free], :])
        count = len(given)
        tril_given, tril_free = tril[..., :count, :count], tril[..., count:, count:]
        cross = tril[..., count:, :count]
        difference = value.unsqueeze(-2) - self._loc[..., given]  # (*N, K, given)
        z = whiten_components(tril_given, difference)
        shift = (cross @ z.unsqueeze(-1)).squeeze(-1)
        peak = self._logits.log_softmax(-1) - half_log_det(tril_given) - 0.5 * LOG_2PI * count
        return peak, z.square().sum(-1), self._loc[..., free] + shift, tril_free


register(MixtureOfMultivariateNormals)


def _prefers_inverse(points: Tensor, num_components: int) -> bool:
    """Whether to multiply (N, D) points by inverse factors instead of solving for them.

    A product is several times as fast as a solution, once points pay for the inverse. It is as
    accurate, unless products themselves are set to be less accurate than their dtype.
    """
    n, dim = points.shape
    pays = n >= POINTS_PER_DIM * dim and n * dim * num_components > DIRECT_SIZE
    return pays and unit_roundoff(points) == torch.finfo(points.dtype).eps / 2


def _check_shapes(logits: Tensor, loc: Tensor, scale_tril: Tensor) -> Size:
    """Checks everything about the parameters but their values; returns the batch shape."""
    got = f"{check_weights_and_means(logits, loc)}, "
    check_tensor("scale_tril", scale_tril, like=loc)
    got += f"scale_tril {tuple(scale_tril.shape)}"
    k, dim = loc.shape[-2:]
    fits = scale_tril.dim() >= 3 and scale_tril.shape[-2:] == (dim, dim)
    if not fits or scale_tril.shape[-3] not in (1, k):
        raise ValueError(
            f"Expected loc of shape (*B, K, D) and scale_tril of shape (*B, K, D, D), or "
            f"(*B, 1, D, D) if it is tied, got {got}."
        )
    return common_batch_shape(got, logits.shape[:-1], loc.shape[:-2], scale_tril.shape[:-3])


def _check_values(logits: Tensor, loc: Tensor, scale_tril: Tensor) -> None:
    """Checks the values of the parameters."""
    check_weight_and_mean_values(logits, loc)
    smallest, largest = extremes(scale_tril.diagonal(dim1=-2, dim2=-1))
    if not (smallest > 0 and math.isfinite(scale_tril.tril().sum().item())):
        raise ValueError(
            f"Expected finite Cholesky factors with a positive diagonal, got a diagonal from "
            f"{smallest} to {largest}. Make them of covariances with "
            f"torch.linalg.cholesky."
        )
