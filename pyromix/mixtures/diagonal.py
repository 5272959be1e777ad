"""A finite mixture of diagonal normals with tensors for parameters."""

__all__ = ["MixtureOfNormals"]

import math
from typing import ClassVar

import torch
from torch import Generator, Size, Tensor
from torch.distributions import constraints
from torch.types import _size

from ..core.checks import check_tensor
from ..core.random import takes_generator
from ..core.registry import register
from ..numerics.batches import (
    RowLayout,
    check_weight_and_mean_values,
    check_weights_and_means,
    common_batch_shape,
    extremes,
    pick,
)
from ..numerics.diagonal_density import LOG_2PI, component_log_prob
from ..numerics.implicit_diagonal import reparameterize
from .finite import FiniteMixture
from .full import MixtureOfMultivariateNormals


class MixtureOfNormals(FiniteMixture):
    r"""Finite mixture of normals with diagonal covariances.

    .. math:: p(x) = \sum_{k=1}^K w_k \prod_{d=1}^D N(x_d; m_{kd}, s_{kd}^2),
              \qquad w = \operatorname{softmax}(\text{logits})

    `log_prob` costs two matrix products of size N x D x K instead of an intermediate of that
    size (but not while traced by `torch.compile`, `vmap` or the JIT). It keeps float32 accuracy
    also where components lie far apart compared to their scales.
    `rsample` has exact pathwise gradients in `logits`, `loc` and `scale`, at a cost of O(N K D)
    in the backward pass. Their variance grows with the separation of the components: beyond
    about six standard deviations a sample is moved by the weights only in the rare event that it
    falls between two components, and the gradient in `logits` loses its signal, as every
    pathwise gradient of a mixture does.

    Args:
        logits: Unnormalised log-weights, shape (\*B, K). Minus infinity removes a component.
        loc: Means, shape (\*B, K, D).
        scale: Standard deviations, shape (\*B, K, D).
        validate_args: Whether to check the values of parameters and of scored samples.

    The three may have batch shapes of their own that broadcast to B: a mixture whose weights
    alone are batched keeps one copy of the means.

    Raises:
        ValueError: For shapes, dtypes or devices that do not match, K = 0 or D = 0 and, under
            validation, NaN or a scale that is not positive.

    Example:
        >>> from pyromix import Observed
        >>> logits = torch.zeros(2)
        >>> loc = torch.tensor([[-2.0, 0.0], [2.0, 0.0]])
        >>> mixture = MixtureOfNormals(logits, loc, torch.ones(2, 2))
        >>> mixture.sample((5,)).shape
        torch.Size([5, 2])
        >>> mixture.condition(Observed({0: 2.0})).mean
        tensor([2., 0.])
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "logits": constraints.real_vector,
        "loc": constraints.independent(constraints.real, 2),
        "scale": constraints.independent(constraints.positive, 2),
    }
    _least_dim: ClassVar[int] = 1
    _tensors: ClassVar[dict[str, int]] = {"_loc": 2, "_scale": 2}

    def __init__(
        self, logits: Tensor, loc: Tensor, scale: Tensor, validate_args: bool | None = None
    ) -> None:
        batch_shape = _check_shapes(logits, loc, scale, self._least_dim)
        super().__init__(batch_shape, loc.shape[-1], validate_args)
        if self._checks_values:
            _check_values(logits, loc, scale)
        self._logits, self._loc, self._scale = logits, loc, scale

    @property
    def scale(self) -> Tensor:
        r"""Standard deviations, shape (\*B, K, D)."""
        return self._over_batch(self._scale, 2)

    @property
    def component_variance(self) -> Tensor:
        r"""Variance of every coordinate in every component, shape (\*B, K, D)."""
        return self.scale.square()

    @property
    def component_covariance(self) -> Tensor:
        r"""Covariances with no more batch dimensions than the scales have: (\*, K, D, D)."""
        return torch.diag_embed(self._scale.square())

    @takes_generator
    def rsample_straight_through(
        self,
        sample_shape: _size = Size(),
        temperature: float = 0.5,
        *,
        generator: Generator | None = None,
    ) -> Tensor:
        r"""Draws with the straight-through Gumbel-softmax gradient (Jang, Gu, Poole 2017): biased.

        The draws are exact. Gradients pass through the choice of a component as if it had been
        a softmax of Gumbel noise at the given temperature. Their bias does not vanish with more
        draws (12% in the mean of two components, at any distance); use `rsample` or
        `rsample_weighted` unless a baseline is wanted.

        Args:
            sample_shape: Shape S of the draws.
            temperature: Of the softmax; lower is less biased, and has more variance.
            generator: Where random numbers come from; by default PyTorch's global generator.

        Returns:
            Tensor of shape (\*S, \*B, D).
        """
        logits = self.logits.expand(*Size(sample_shape), *self.logits.shape)
        noise = -torch.empty_like(logits).exponential_().log()
        soft = ((logits + noise) / temperature).softmax(-1)
        hard = torch.nn.functional.one_hot(soft.argmax(-1), soft.shape[-1]).to(soft)
        weights = (hard + soft - soft.detach()).unsqueeze(-2)  # (*S, *B, 1, K)
        loc, scale = ((weights @ t).squeeze(-2) for t in (self._loc, self._scale))
        return loc + scale * torch.randn_like(loc)

    def entropy_bounds(self) -> tuple[Tensor, Tensor]:
        r"""Lower and upper bound of the differential entropy, which has no closed form.

        .. math:: -\sum_i w_i \log \sum_j w_j e^{-D_{ij}} + \sum_i w_i H_i

        with :math:`D` the Bhattacharyya distance (lower) or the Kullback-Leibler divergence
        (upper) between components (Kolchinsky and Tracey 2017). Both are tight when components
        form clusters, and differ from the entropy by at most that of the weights.

        Returns:
            Two tensors of shape (\*B,), in nats.
        """
        loc_i, loc_j = self.loc.unsqueeze(-2), self.loc.unsqueeze(-3)  # (*B, K, 1 or K, D)
        var_i, var_j = self.scale.square().unsqueeze(-2), self.scale.square().unsqueeze(-3)
        square = (loc_i - loc_j).square()
        log_ratio = var_j.log() - var_i.log()
        divergence = 0.5 * (log_ratio + (var_i + square) / var_j - 1).sum(-1)
        mean_var = 0.5 * (var_i + var_j)
        distance = 0.5 * (
            0.25 * square / mean_var + mean_var.log() - 0.5 * (var_i.log() + var_j.log())
        ).sum(-1)
        log_weights, weights = self.logits, self.logits.exp()
        component_entropy = (0.5 + 0.5 * LOG_2PI + self.scale.log()).sum(-1)
        within = (weights * component_entropy).sum(-1)
        lower, upper = (
            within - (weights * torch.logsumexp(log_weights.unsqueeze(-2) - d, -1)).sum(-1)
            for d in (distance, divergence)
        )
        return lower, upper

    @property
    def _independent_scale(self) -> Tensor:
        return self._scale

    def with_covariances(self, logits: Tensor, loc: Tensor, scale_tril: Tensor) -> FiniteMixture:
        """The mixture of other normals, correlated ones."""
        return MixtureOfMultivariateNormals(logits, loc, scale_tril, validate_args=False)

    def _joint_log_prob(self, value: Tensor, observed: Tensor | None = None) -> Tensor:
        log_weights = self._logits.log_softmax(-1)
        if not self.batch_shape:  # nearly always, and worth a short cut
            points = value.reshape(math.prod(value.shape[:-1]), value.shape[-1])
            seen = None if observed is None else observed.reshape(points.shape)
            scores = component_log_prob(points, self._loc, self._scale, log_weights, seen)
            return scores.reshape(*value.shape[:-1], self.num_components)
        layout = RowLayout(
            torch.broadcast_shapes(value.shape[:-1], self.batch_shape),
            torch.broadcast_shapes(self._loc.shape[:-2], self._scale.shape[:-2]),
        )
        offset = log_weights if log_weights.dim() == 1 else layout.rows(log_weights)
        loc, scale = layout.components(self._loc), layout.components(self._scale)
        seen = None if observed is None else layout.rows(observed)
        return layout.restore(component_log_prob(layout.rows(value), loc, scale, offset, seen))

    def _joint_log_prob_observed(self, value: Tensor, observed: Tensor) -> Tensor:
        return self._joint_log_prob(value, observed.to(value.dtype))

    def _draw(self, component: Tensor, noise: Tensor) -> Tensor:
        return pick(self._loc, component, 1) + pick(self._scale, component, 1) * noise

    def _reparameterize(self, x: Tensor) -> Tensor:
        return reparameterize(x, self._logits, self._loc, self._scale)

    def _marginal(self, kept: list[int]) -> "MixtureOfNormals":
        return self._restrict(self._logits, kept)

    def _condition(self, given: list[int], free: list[int], value: Tensor) -> "MixtureOfNormals":
        # Coordinates are independent within a component, so that only the weights change.
        return self._restrict(self._marginal(given)._joint_log_prob(value), free)

    def _in_units(self, loc: Tensor, scale: Tensor) -> "MixtureOfNormals":
        moved = self._loc * scale + loc
        return MixtureOfNormals(self._logits, moved, self._scale * scale, validate_args=False)

    def _restrict(self, logits: Tensor, dims: list[int]) -> "MixtureOfNormals":
        """Components of some of the coordinates, with other weights."""
        loc, scale = self._loc[..., dims], self._scale[..., dims]
        return MixtureOfNormals(logits, loc, scale, validate_args=False)


register(MixtureOfNormals)


def _check_shapes(logits: Tensor, loc: Tensor, scale: Tensor, least_dim: int) -> Size:
    """Checks everything about the parameters but their values; returns the batch shape."""
    got = f"{check_weights_and_means(logits, loc, least_dim=least_dim)}, "
    check_tensor("scale", scale, like=loc)
    got += f"scale {tuple(scale.shape)}"
    if scale.dim() < 2 or loc.shape[-2:] != scale.shape[-2:]:
        raise ValueError(
            f"Expected loc and scale of shape (*B, K, D) with the same K and D, got {got}. Scales "
            f"that components share must be expanded to loc's shape."
        )
    return common_batch_shape(got, logits.shape[:-1], loc.shape[:-2], scale.shape[:-2])


def _check_values(logits: Tensor, loc: Tensor, scale: Tensor) -> None:
    """Checks the values of the parameters."""
    check_weight_and_mean_values(logits, loc)
    smallest, largest = extremes(scale)
    if not (smallest > 0 and largest < math.inf):
        raise ValueError(
            f"Expected positive, finite scales (standard deviations), got values from {smallest} "
            f"to {largest}. Map unconstrained numbers with exp or softplus first."
        )
