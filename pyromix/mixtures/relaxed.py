"""Mixtures of normals whose choice of a component is relaxed by Gumbel noise: a law of its own."""

__all__ = ["RelaxedMixtureOfNormals"]

import math
from typing import ClassVar

import torch
from torch import Generator, Size, Tensor
from torch.distributions import constraints
from torch.nn.functional import softplus
from torch.types import _size

from ..core.checks import check_positive_int, check_tensor, check_value, is_traced
from ..core.conversions import TensorLike, as_tensor, as_value
from ..core.random import takes_generator
from ..core.registry import register
from ..numerics.batches import common_batch_shape
from ..numerics.diagonal_density import LOG_2PI
from ..numerics.full_precision import in_full_precision
from .diagonal import MixtureOfNormals
from .inner_points import inner_points
from .tensor_law import TensorLaw

# Weights below exp(-10^4) are zero at every temperature that makes sense; this one is finite.
LOWEST_LOG_WEIGHT = -1e4


class RelaxedMixtureOfNormals(TensorLaw):
    r"""The Gumbel-softmax relaxation of a mixture of diagonal normals.

    .. math:: c \sim \operatorname{GumbelSoftmax}(w, \tau), \qquad
              z = c^\top m + (c^\top s) \, \varepsilon, \qquad
              p(z) = E_c \prod_d N(z_d; c^\top m_{\cdot d}, (c^\top s_{\cdot d})^2)

    It is not the mixture: means and scales blend, and draws fall onto bridges between components.
    With means at -2 and 2 and scales of 0.3, 6% of the draws at temperature 0.1, and half of those
    at temperature 1, lie within -1 and 1, where the mixture has 0.04%. As the temperature falls
    to zero, the law tends to the `mixture`. Pathwise gradients stay those of the relaxed law, but
    their deviation in the weights grows without bound.

    `rsample` is exact for this law. Its density has no closed form: `log_prob` takes the mean over
    a fixed set of `num_inner` points c, and is the density of a finite mixture of normals,
    `inner`: deterministic, differentiable and normalised. It tends to the law as the points
    become many; `log_prob_error` says how far it is. Narrow components far apart need more
    points, for a bridge of length d between scales s shows its single normals below some
    :math:`d / (s \tau)` of them. `rsample_weighted` draws from `inner` itself, so that draws and
    density are those of one law however few the points are: maximise entropies with it. With
    `rsample`, an optimiser can gain entropy, as `log_prob` has it, by moving draws into the gaps
    between points.

    The points. For each k, given that component k is the largest, the others have odds

    .. math:: c_i / c_k = (1 + R_i / w_i)^{-1/\tau}, \qquad
              R_i = (1 + R_1 + \dots + R_{i-1}) \big((1 - u_i)^{-1/i} - 1\big)

    with u uniform: ratios of exponential variables. Numbers u that fill their cube evenly give
    every k the same number of points, at a weight of exactly :math:`w_k`; at temperature zero,
    the mixture comes out exactly.

    Args:
        temperature: Positive number, or tensor of shape (\*B).
        logits: Unnormalised log-weights, shape (\*B, K).
        loc: Means, shape (\*B, K, D).
        scale: Standard deviations, shape (\*B, K, D).
        num_inner: Number of points c behind `log_prob`, rounded up to a multiple of K. The cost
            is that of a mixture of so many components.
        validate_args: Whether to check the values of parameters and of scored samples.

    Raises:
        ValueError: For shapes, dtypes or devices that do not match and, under validation, for a
            temperature or scale that is not positive, or NaN.

    Example:
        >>> loc = torch.tensor([[-2.0], [2.0]])
        >>> law = RelaxedMixtureOfNormals(0.1, torch.zeros(2), loc, torch.full((2, 1), 0.3))
        >>> law.log_prob(torch.zeros(1)).exp(), law.mixture.log_prob(torch.zeros(1)).exp() < 1e-9
        (tensor(0.0255), tensor(True))
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "temperature": constraints.positive,
        "logits": constraints.real_vector,
        "loc": constraints.independent(constraints.real, 2),
        "scale": constraints.independent(constraints.positive, 2),
    }

    def __init__(
        self,
        temperature: float | Tensor,
        logits: Tensor,
        loc: Tensor,
        scale: Tensor,
        num_inner: int = 512,
        validate_args: bool | None = None,
    ) -> None:
        self._mixture = MixtureOfNormals(logits, loc, scale, validate_args=validate_args)
        if isinstance(temperature, int | float):
            temperature = loc.new_tensor(float(temperature))
        self.temperature = check_tensor("temperature", temperature, like=loc)
        batch_shape = common_batch_shape(
            f"temperature {tuple(temperature.shape)}, mixture {tuple(self._mixture.batch_shape)}",
            temperature.shape,
            self._mixture.batch_shape,
        )
        super().__init__(batch_shape, loc.shape[-1], validate_args)
        self.num_inner = check_positive_int("num_inner", num_inner)
        if self._checks_values:
            good = (temperature > 0) & temperature.isfinite()
            if not bool(good.all()):
                raise ValueError(
                    f"Expected positive, finite temperatures, got {temperature[~good].tolist()}. "
                    f"At zero the law is MixtureOfNormals."
                )
        self._points: Tensor | None = None
        if not is_traced():
            self._points = self._even_points()

    # ---- parameters -----------------------------------------------------------------------

    @property
    def num_components(self) -> int:
        """Number of components K."""
        return self._mixture.num_components

    @property
    def logits(self) -> Tensor:
        r"""Normalised log-weights, shape (\*, K), with the batch dimensions they were given."""
        return self._mixture._logits.log_softmax(-1)

    @property
    def loc(self) -> Tensor:
        r"""Means, shape (\*, K, D), with the batch dimensions they were given."""
        return self._mixture._loc

    @property
    def scale(self) -> Tensor:
        r"""Standard deviations, shape (\*, K, D), with the batch dimensions they were given."""
        return self._mixture._scale

    @property
    def mixture(self) -> MixtureOfNormals:
        """The mixture that the law tends to as its temperature falls to zero."""
        return self._mixture.expand(self.batch_shape)

    @property
    def inner(self) -> MixtureOfNormals:
        """The finite mixture of normals, one at each inner point, whose density `log_prob` is."""
        if self._points is None:
            self._points = self._even_points()
        return self._inner(self._points)

    @property
    def mean(self) -> Tensor:
        r"""Mean of `inner`, shape (\*B, D)."""
        return self.inner.mean

    @property
    def variance(self) -> Tensor:
        r"""Variance of every coordinate of `inner`, shape (\*B, D)."""
        return self.inner.variance

    # ---- draws ----------------------------------------------------------------------------

    @takes_generator
    def rsample(
        self, sample_shape: _size = Size(), *, generator: Generator | None = None
    ) -> Tensor:
        r"""Draws with pathwise gradients, exact for the relaxed law; shape (\*S, \*B, D).

        Args:
            sample_shape: Shape S of the draws.
            generator: Where random numbers come from; by default PyTorch's global generator.
        """
        return self.rsample_joint(sample_shape)[0]

    @takes_generator
    def rsample_joint(
        self, sample_shape: _size = Size(), *, generator: Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        r"""Draws of z, shape (\*S, \*B, D), with the weights c they were made of (\*S, \*B, K).

        Args:
            sample_shape: Shape S of the draws.
            generator: Where random numbers come from; by default PyTorch's global generator.
        """
        c = self._draw_weights(Size((*Size(sample_shape), *self.batch_shape)))
        loc, scale = self._blend(c.unsqueeze(-2))
        z = loc + scale * torch.randn_like(loc)
        return z.squeeze(-2), c

    @takes_generator
    def rsample_weighted(
        self, num_samples: int, *, generator: Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        r"""Draws with weights from `inner`, the law of `log_prob`; their gradients are exact.

        See `MixtureOfNormals.rsample_weighted`. Fewer draws than inner points use a subset that
        is balanced over the components.

        Args:
            num_samples: Number of draws n.
            generator: Where random numbers come from; by default PyTorch's global generator.

        Returns:
            Draws (n, \*B, D) and log-weights (n, \*B).
        """
        return self.inner.rsample_weighted(num_samples)

    # ---- densities ------------------------------------------------------------------------

    def log_prob(self, value: Tensor) -> Tensor:
        r"""Log-density of `inner`, the mean over the fixed points; shape (\*S, \*B).

        Raises:
            ValueError: If the value's shape, dtype or device does not match, or if it holds NaN
                under validation.
        """
        value = check_value(self, value, like=self.loc)
        return self.inner.log_prob(value)

    @takes_generator
    def log_prob_error(
        self, value: TensorLike, num_repeats: int = 8, *, generator: Generator | None = None
    ) -> Tensor:
        r"""Estimates how far `log_prob` is from the law's log-density, from other sets of points.

        Args:
            value: Points, shape (\*S, \*B, D).
            num_repeats: Number of other sets, of as many points, scrambled differently.
            generator: Where random numbers come from; by default PyTorch's global generator.

        Returns:
            Root mean square of the changes of the log-density, shape (\*S, \*B): somewhat more
            than the standard deviation of its error.
        """
        check_positive_int("num_repeats", num_repeats)
        value = as_value(self, value, like=self.loc)
        log_prob = self.log_prob(value)
        changes = [
            self._inner(self._even_points(seed + 1)).log_prob(value) - log_prob
            for seed in range(num_repeats)
        ]
        return torch.stack(changes).square().mean(0).sqrt()

    @takes_generator
    def log_prob_nested(
        self, value: TensorLike, num_inner: int = 100, *, generator: Generator | None = None
    ) -> Tensor:
        r"""Monte Carlo estimate of the log-density from fresh weights c for every value.

        .. math:: \log \frac{1}{n} \sum_{j=1}^n N(z; c_j^\top m, (c_j^\top s)^2)

        The density is estimated without bias, its logarithm is not: it is too low, by half the
        estimate's relative variance to first order. So are log-densities on average, and entropies
        are too high, by 0.3 to 0.4 nats with 10 weights where two components lie 13 deviations
        apart, and by 0.02 to 0.03 with 100. The value's own c must not be among the weights; see
        `entropy_bounds`.

        Args:
            value: Points, shape (\*S, \*B, D).
            num_inner: Number n of weights drawn for every value.
            generator: Where random numbers come from; by default PyTorch's global generator.

        Returns:
            Tensor of shape (\*S, \*B); another one at every call.
        """
        check_positive_int("num_inner", num_inner)
        value = as_value(self, value, like=self.loc)
        leading = torch.broadcast_shapes(value.shape[:-1], self.batch_shape)
        scores = self._given_weights(value, self._draw_weights(Size((*leading, num_inner)), 1))
        return scores.logsumexp(-1) - math.log(num_inner)

    def joint_log_prob(self, value: TensorLike, c: TensorLike) -> Tensor:
        r"""Log-density of z together with the weights c it was made of.

        .. math:: \log N(z; c^\top m, (c^\top s)^2) + \log \Gamma(K) + (K - 1) \log \tau
                  - K \log \sum_k w_k c_k^{-\tau} + \sum_k \big(\log w_k - (\tau + 1) \log c_k\big)

        Args:
            value: Points z, shape (\*S, \*B, D).
            c: Weights, shape (\*S, \*B, K), inside the simplex. Those that have been rounded to
                zero count as the smallest positive number.

        Returns:
            Tensor of shape (\*S, \*B). The second part is a density on the simplex by all its
            coordinates but one.

        Raises:
            ValueError: If shapes do not fit or, under validation, c is outside of the simplex.
        """
        value = as_value(self, value, like=self.loc)
        c = as_tensor("c", c, like=self.loc)
        k = self.num_components
        if c.dim() < 1 or c.shape[-1] != k:
            raise ValueError(f"Expected weights c of shape (*S, *B, {k}), got {tuple(c.shape)}.")
        got = f"value {tuple(value.shape)}, c {tuple(c.shape)}, batch {tuple(self.batch_shape)}"
        shape = common_batch_shape(got, value.shape[:-1], c.shape[:-1], self.batch_shape)
        if self._checks_values:
            off = (c.sum(-1) - 1).abs() > 1e-4
            if not bool((c >= 0).all()) or bool(off.any()):  # NaN fails the first
                raise ValueError("Expected weights c of at least 0 that sum to 1, got others.")
        tau, log_weights = self.temperature.unsqueeze(-1), self.logits
        log_c = c.clamp(min=torch.finfo(c.dtype).tiny).log()
        scores = log_weights - tau * log_c
        log_density = math.lgamma(k) + (k - 1) * self.temperature.log() - k * scores.logsumexp(-1)
        log_density = log_density + (scores - log_c).sum(-1)
        log_prob = self._given_weights(value, c.unsqueeze(-2)).squeeze(-1) + log_density
        return log_prob.expand(shape)

    def entropy_bounds(
        self, num_samples: int = 1000, num_inner: int = 1000
    ) -> tuple[Tensor, Tensor]:
        r"""Monte Carlo estimates of a lower and an upper bound of the relaxed law's entropy.

        Fresh weights c for every draw estimate its density too low on average, and so the entropy
        too high. With the draw's own c among them it is the other way round (Yin and Zhou 2018).
        The bounds close as `num_inner` grows. They do not depend on the fixed points.

        Args:
            num_samples: Number of draws.
            num_inner: Number of weights for every draw.

        Returns:
            Two tensors of shape (\*B,), in nats, with gradients.
        """
        z, own = self.rsample_joint(Size((check_positive_int("num_samples", num_samples),)))
        check_positive_int("num_inner", num_inner)
        fresh = self._draw_weights(Size((*own.shape[:-1], num_inner)), 1)
        scores = self._given_weights(z, torch.cat([own.unsqueeze(-2), fresh], -2))
        lower = math.log(num_inner + 1) - scores.logsumexp(-1).mean(0)
        upper = math.log(num_inner) - scores[..., 1:].logsumexp(-1).mean(0)
        return lower, upper

    def _draw_weights(self, shape: Size, extra: int = 0) -> Tensor:
        """Weights c of shape (*shape, K); after the batch come `extra` dimensions."""
        unit = (1,) * extra
        logits = self.logits
        logits = logits.reshape(*logits.shape[:-1], *unit, logits.shape[-1])
        noise = -torch.empty(*shape, logits.shape[-1]).to(logits).exponential_().log()
        temperature = self.temperature.reshape(*self.temperature.shape, *unit, 1)
        return ((logits + noise) / temperature).softmax(-1)

    @in_full_precision
    def _blend(self, c: Tensor) -> tuple[Tensor, Tensor]:
        """Means and scales (*, n, D) of weights (*, n, K)."""
        return c @ self.loc, c @ self.scale

    def _given_weights(self, value: Tensor, c: Tensor) -> Tensor:
        """Log-density of points (*, D) given each of the weights (*, n, K): shape (*, n)."""
        loc, scale = self._blend(c)
        squares = ((value.unsqueeze(-2) - loc) / scale).square()
        return -(0.5 * squares + scale.log()).sum(-1) - 0.5 * value.shape[-1] * LOG_2PI

    def _even_points(self, seed: int = 0) -> Tensor:
        """A set of fixed points (K, M, K), in the law's dtype and on its device."""
        # An integer: while the JIT traces, shapes are tensors, which a cache cannot compare.
        points = inner_points(int(self.num_components), self.num_inner, seed)
        return points.to(self.loc, copy=True)

    def _inner(self, points: Tensor) -> MixtureOfNormals:
        """The normals at given points (K, M, K)."""
        k, m, _ = points.shape
        log_weights = self.logits
        unit = log_weights.shape[:-1]
        # log(1 + R / w), with R = 0 for the largest one itself, whatever its weight
        odds = softplus(points - log_weights.clamp(min=LOWEST_LOG_WEIGHT).reshape(*unit, 1, 1, k))
        temperature = self.temperature.reshape(*self.temperature.shape, 1, 1, 1)
        c = (-odds / temperature).softmax(-1).flatten(-3, -2)
        loc, scale = self._blend(c)  # (*, K M, D)
        logits = (log_weights - math.log(m)).unsqueeze(-1).expand(*unit, k, m).flatten(-2)
        inner = MixtureOfNormals(logits, loc, scale, validate_args=False)
        return inner.expand(self.batch_shape)

    def __repr__(self) -> str:
        return (
            f"RelaxedMixtureOfNormals(num_components={self.num_components}, "
            f"batch_shape={tuple(self.batch_shape)}, event_shape={tuple(self.event_shape)}, "
            f"num_inner={self.num_inner})"
        )


register(RelaxedMixtureOfNormals)
