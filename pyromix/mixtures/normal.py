"""A finite mixture of diagonal normals with tensors for parameters."""

__all__ = ["MixtureOfNormals"]

import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Size, Tensor
from torch.distributions import Categorical, Distribution, constraints
from torch.types import _size

from ..registry import register
from ..validation import as_int, check_tensor, check_value, is_expandable, is_traced
from .density import LOG_2PI, component_log_prob, log_sum_exp
from .implicit import reparameterize


class MixtureOfNormals(TorchDistribution):
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
        >>> logits = torch.zeros(2)
        >>> loc = torch.tensor([[-2.0, 0.0], [2.0, 0.0]])
        >>> mixture = MixtureOfNormals(logits, loc, torch.ones(2, 2))
        >>> mixture.sample((5,)).shape
        torch.Size([5, 2])
        >>> mixture.condition({0: 2.0}).mean
        tensor([0.])
    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {
        "logits": constraints.real_vector,
        "loc": constraints.independent(constraints.real, 2),
        "scale": constraints.independent(constraints.positive, 2),
    }
    support = constraints.real_vector
    has_rsample = True

    def __init__(
        self, logits: Tensor, loc: Tensor, scale: Tensor, validate_args: bool | None = None
    ) -> None:
        batch_shape = _check_shapes(logits, loc, scale)
        if validate_args is None:
            validate_args = Distribution._validate_args
        if validate_args and not is_traced():
            _check_values(logits, loc, scale)
        self._logits, self._loc, self._scale = logits, loc, scale
        # Checked above without expanding the batch, and with errors that name a remedy.
        super().__init__(batch_shape, loc.shape[-1:], validate_args=False)
        self._validate_args = validate_args

    @property
    def num_components(self) -> int:
        """Number of components K."""
        return self._logits.shape[-1]

    @property
    def logits(self) -> Tensor:
        r"""Normalised log-weights, shape (\*B, K)."""
        return self._logits.log_softmax(-1).expand(*self.batch_shape, -1)

    @property
    def loc(self) -> Tensor:
        r"""Means, shape (\*B, K, D)."""
        return self._loc.expand(*self.batch_shape, -1, -1)

    @property
    def scale(self) -> Tensor:
        r"""Standard deviations, shape (\*B, K, D)."""
        return self._scale.expand(*self.batch_shape, -1, -1)

    @property
    def mean(self) -> Tensor:
        r"""Mean of the mixture, shape (\*B, D)."""
        # Not a matrix product, which autocasting would round.
        return (self.logits.exp().unsqueeze(-1) * self.loc).sum(-2)

    @property
    def variance(self) -> Tensor:
        r"""Variance of every coordinate, shape (\*B, D)."""
        deviation = self.loc - self.mean.unsqueeze(-2)
        spread = self.scale.square() + deviation.square()
        return (self.logits.exp().unsqueeze(-1) * spread).sum(-2)

    def expand(
        self, batch_shape: Sequence[int], _instance: Distribution | None = None
    ) -> "MixtureOfNormals":
        """Returns the same mixture with a larger batch shape; nothing is copied."""
        batch_shape = Size(batch_shape)
        if not is_expandable(self.batch_shape, batch_shape):
            raise ValueError(
                f"Expected a batch shape that {tuple(self.batch_shape)} expands to, "
                f"got {tuple(batch_shape)}."
            )
        new = self._get_checked_instance(MixtureOfNormals, _instance)
        new._logits, new._loc, new._scale = self._logits, self._loc, self._scale
        super(MixtureOfNormals, new).__init__(batch_shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        r"""Log-density of the mixture.

        Args:
            value: Points, shape (\*S, \*B, D).

        Returns:
            Tensor of shape (\*S, \*B).

        Raises:
            ValueError: If the value's shape, dtype or device does not match, or if it holds NaN
                under validation.
        """
        return log_sum_exp(self._joint_log_prob(value))

    def responsibilities(self, value: Tensor) -> Tensor:
        r"""Probability of every component given a point, :math:`p(k \mid x)`.

        Args:
            value: Points, shape (\*S, \*B, D).

        Returns:
            Tensor of shape (\*S, \*B, K) that sums to one over the last dimension.
        """
        return self._joint_log_prob(value).softmax(-1)

    def sample(self, sample_shape: _size = Size()) -> Tensor:
        r"""Draws from the mixture without a graph; shape (\*S, \*B, D)."""
        with torch.no_grad():
            component = Categorical(logits=self.logits, validate_args=False).sample(
                Size(sample_shape)
            )  # (*S, *B)
            loc, scale = _pick(self._loc, component), _pick(self._scale, component)
            return loc + scale * torch.randn_like(loc.expand(self._extended_shape(sample_shape)))

    def rsample(self, sample_shape: _size = Size()) -> Tensor:
        r"""Draws from the mixture with pathwise gradients; shape (\*S, \*B, D)."""
        return reparameterize(self.sample(sample_shape), self._logits, self._loc, self._scale)

    def marginal(self, dims: int | Sequence[int] | Tensor) -> "MixtureOfNormals":
        """Law of some of the coordinates.

        Args:
            dims: The coordinates to keep, in the order of the result.

        Raises:
            ValueError: If a coordinate is out of range, named twice, or none is given.
        """
        single = as_int(dims)
        kept = self._check_dims(dims if isinstance(dims, Iterable) and single is None else [dims])
        if not kept:
            raise ValueError("Expected at least one coordinate to keep, got none.")
        return self._restrict(self._logits, kept).expand(self.batch_shape)

    def condition(self, observed: Mapping[int, float | Tensor]) -> "MixtureOfNormals":
        r"""Law of the other coordinates, given the values of some.

        Components are diagonal, so that only their weights change: by the density that each
        assigns to the observed values.

        Args:
            observed: Coordinate -> its value: a number, or a tensor whose shape broadcasts with
                the batch shape. A tensor of shape (N,) gives N conditional laws.

        Returns:
            A mixture over the coordinates that are not observed, in ascending order.

        Raises:
            ValueError: If a coordinate is out of range, or if none or all are observed.
        """
        if not isinstance(observed, Mapping):
            raise ValueError(
                f"Expected a mapping from coordinates to values, such as {{0: 1.5}}, got "
                f"{type(observed).__name__}. (In training, a batch that is a pair is read as "
                f"values and context. A mixture takes no context: leave labels out.)"
            )
        given = self._check_dims(list(observed))
        free = [d for d in range(self.event_shape[0]) if d not in given]
        if not given or not free:
            raise ValueError(
                f"Expected between 1 and {self.event_shape[0] - 1} observed coordinates of "
                f"{self.event_shape[0]}, got {len(given)}. With all observed, call log_prob."
            )
        values = [
            torch.as_tensor(v, dtype=self._loc.dtype, device=self._loc.device)
            if isinstance(v, numbers.Real)
            else check_tensor(f"the observed value of coordinate {d}", v, like=self._loc)
            for d, v in observed.items()
        ]
        try:
            value = torch.stack(torch.broadcast_tensors(*values), -1)  # (*N, D observed)
        except RuntimeError:
            raise ValueError(
                f"Expected observed values whose shapes broadcast, got "
                f"{[tuple(v.shape) for v in values]}."
            ) from None
        if self._validate_args and not is_traced() and not bool(value.isfinite().all()):
            raise ValueError("Expected finite observed values without NaN.")
        return self._restrict(self.marginal(given)._joint_log_prob(value), free)

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

    def _joint_log_prob(self, value: Tensor) -> Tensor:
        """Log w_k + log N(x; m_k, s_k^2), shape (*S, *B, K)."""
        value = check_value(self, value, like=self._loc)
        log_weights = self._logits.log_softmax(-1)
        if not self.batch_shape:  # nearly always, and worth a short cut
            points = value.reshape(-1, value.shape[-1])
            scores = component_log_prob(points, self._loc, self._scale, log_weights)
            return scores.reshape(*value.shape[:-1], -1)
        leading = torch.broadcast_shapes(value.shape[:-1], self.batch_shape)
        # Only batch dimensions in which components differ are kept apart; all others, and the
        # samples, become the rows of one matrix product.
        own = torch.broadcast_shapes(self._loc.shape[:-2], self._scale.shape[:-2])
        own = (1,) * (len(leading) - len(own)) + own
        kept = [i for i, size in enumerate(own) if size > 1]
        rows = [i for i, size in enumerate(own) if size == 1]
        batch = Size(own[i] for i in kept)

        def to_rows(t: Tensor) -> Tensor:
            t = t.expand(*leading, -1).permute(*kept, *rows, -1)
            return t.reshape(*batch, -1, t.shape[-1])

        def to_batch(t: Tensor) -> Tensor:
            return t.expand(*own, -1, -1).reshape(*batch, *t.shape[-2:])

        offset = log_weights if log_weights.dim() == 1 else to_rows(log_weights)
        scores = component_log_prob(
            to_rows(value), to_batch(self._loc), to_batch(self._scale), offset
        )  # (*batch, rows, K)
        scores = scores.reshape(*batch, *(leading[i] for i in rows), -1)
        order = [*kept, *rows]
        inverse = sorted(range(len(order)), key=order.__getitem__)
        return scores.permute(*inverse, -1)

    def _restrict(self, logits: Tensor, dims: list[int]) -> "MixtureOfNormals":
        """Components of some of the coordinates, with other weights."""
        loc, scale = self._loc[..., dims], self._scale[..., dims]
        result = MixtureOfNormals(logits, loc, scale, validate_args=False)
        result._validate_args = self._validate_args
        return result

    def _check_dims(self, dims: Iterable[object]) -> list[int]:
        """Normalises negative coordinates, and rejects those out of range or named twice."""
        size = self.event_shape[0]
        positive = []
        for given in dims:
            d = as_int(given)
            if d is None or not -size <= d < size:
                raise ValueError(
                    f"Expected coordinates to be integers from {-size} to {size - 1}, got "
                    f"{given!r}."
                )
            positive.append(d % size)
        if len(set(positive)) < len(positive):
            raise ValueError(f"Expected each coordinate once, got {list(dims)}.")
        return positive

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(num_components={self.num_components}, "
            f"batch_shape={tuple(self.batch_shape)}, event_shape={tuple(self.event_shape)})"
        )


register(MixtureOfNormals)


def _pick(parameter: Tensor, component: Tensor) -> Tensor:
    """Selects parameters (*B, K, D) by components (*S, *B): shape (*S, *B, D)."""
    if parameter.dim() == 2:
        return parameter[component]
    index = component[..., None, None]
    parameter = parameter[(None,) * (index.dim() - parameter.dim())]
    return torch.take_along_dim(parameter, index, dim=-2).squeeze(-2)


def _check_shapes(logits: Tensor, loc: Tensor, scale: Tensor) -> Size:
    """Checks everything about the parameters but their values; returns the batch shape."""
    check_tensor("loc", loc)
    check_tensor("logits", logits, like=loc)
    check_tensor("scale", scale, like=loc)
    got = f"logits {tuple(logits.shape)}, loc {tuple(loc.shape)}, scale {tuple(scale.shape)}"
    if logits.dim() < 1 or loc.dim() < 2 or scale.dim() < 2:
        raise ValueError(
            f"Expected logits of shape (*B, K), loc and scale of shape (*B, K, D), got {got}. "
            f"For one dimension, use loc.unsqueeze(-1)."
        )
    if not (logits.shape[-1:] == loc.shape[-2:-1] and loc.shape[-2:] == scale.shape[-2:]):
        raise ValueError(
            f"Expected logits (*B, K), loc (*B, K, D) and scale (*B, K, D) with the same K and D, "
            f"got {got}. Scales that components share must be expanded to loc's shape."
        )
    if logits.shape[-1] == 0 or loc.shape[-1] == 0:
        raise ValueError(
            f"Expected at least one component and one dimension, got {got}. "
            f"An empty mixture has no density."
        )
    if logits.dim() == 1 and loc.dim() == scale.dim() == 2:
        return Size()
    try:
        return torch.broadcast_shapes(logits.shape[:-1], loc.shape[:-2], scale.shape[:-2])
    except RuntimeError:
        raise ValueError(f"Expected batch shapes that broadcast, got {got}.") from None


def _check_values(logits: Tensor, loc: Tensor, scale: Tensor) -> None:
    """Checks the values of the parameters."""
    # Sums and extremes are not finite if an entry is not: one pass over good values each.
    lowest, highest = (t.item() for t in logits.amax(-1).aminmax())
    if not highest < math.inf:  # also if it is NaN
        raise ValueError("Expected logits without NaN and plus infinity.")
    if lowest == -math.inf:
        raise ValueError("Expected at least one logit above minus infinity in every mixture.")
    if not math.isfinite(loc.sum().item()) and not loc.isfinite().all():
        raise ValueError("Expected finite values of loc, got NaN or infinity.")
    smallest, largest = (t.item() for t in scale.aminmax())
    if not (smallest > 0 and largest < math.inf):
        raise ValueError(
            f"Expected positive, finite scales (standard deviations), got values from {smallest} "
            f"to {largest}. Map unconstrained numbers with exp or softplus first."
        )
