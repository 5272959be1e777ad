r"""Transforms to bounded sets that keep their precision up to the border.

Near the border of its range a transform maps an interval of latents to one number. What is lost
there cannot be found again, but no more than that is lost here: inverses and Jacobians are right
for the value that they are given, and draws stay strictly inside, where both are finite.
"""

__all__ = ["PRECISE", "strictly_inside"]

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.transforms import (
    CorrCholeskyTransform,
    ExpTransform,
    StickBreakingTransform,
    TanhTransform,
)
from torch.distributions.utils import tril_matrix_to_vec, vec_to_tril_matrix
from torch.nn.functional import logsigmoid, pad, softplus


class PreciseStickBreaking(StickBreakingTransform):
    """Stick-breaking, whose remainders are sums of what is left, not one less what is gone."""

    def _call(self, x: Tensor) -> Tensor:
        logit = x - _offset(x).log()
        left = pad(torch.sigmoid(-logit).cumprod(-1), [1, 0], value=1.0)
        y = pad(torch.sigmoid(logit), [0, 1], value=1.0) * left
        return y.clamp(min=torch.finfo(y.dtype).tiny)

    def _inverse(self, y: Tensor) -> Tensor:
        y = y.clamp(min=torch.finfo(y.dtype).tiny)
        left = y.flip(-1).cumsum(-1).flip(-1)[..., 1:]  # of the stick, after each break
        x = y[..., :-1]
        return x.log() - left.log() + _offset(x).log()

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002
        """The logarithm, from x alone."""
        logit = x - _offset(x).log()
        left = pad(logsigmoid(-logit).cumsum(-1)[..., :-1], [1, 0])
        return (logsigmoid(logit) + logsigmoid(-logit) + left).sum(-1)


class PreciseCorrCholesky(CorrCholeskyTransform):
    """Factors of correlations, whose remainders are sums of what is left of a row."""

    def _call(self, x: Tensor) -> Tensor:
        raw = vec_to_tril_matrix(x, diag=-1)
        shrunk = torch.exp(-raw.abs())
        secant = 2 * shrunk / (1 + shrunk.square())  # 1 / cosh, without overflow
        left = pad(secant.cumprod(-1)[..., :-1], [1, 0], value=1.0)
        return (raw.tanh() + torch.eye(raw.shape[-1], dtype=x.dtype, device=x.device)) * left

    def _inverse(self, y: Tensor) -> Tensor:
        left = self._left(y)[..., 1:]
        below = tril_matrix_to_vec(y, diag=-1)
        # With t = tanh x, t / sqrt(1 - t^2) = sinh x.
        return torch.asinh(below / tril_matrix_to_vec(pad(left, [0, 1]), diag=-1).sqrt())

    def log_abs_det_jacobian(
        self,
        x: Tensor,
        y: Tensor,
        intermediates: Tensor | None = None,  # noqa: ARG002
    ) -> Tensor:
        """The logarithm, by the lengths that are left of every row."""
        left = pad(self._left(y)[..., 1:], [0, 1])
        broken = 0.5 * tril_matrix_to_vec(left, diag=-2).log().sum(-1)
        return broken - 2 * (x + softplus(-2 * x) - math.log(2.0)).sum(-1)

    @staticmethod
    def _left(y: Tensor) -> Tensor:
        """Squared lengths of rows from every entry on, that entry included."""
        return y.square().flip(-1).cumsum(-1).flip(-1)


class PreciseTanh(TanhTransform):
    """The hyperbolic tangent, whose values are less than one, and have a finite inverse."""

    def _call(self, x: Tensor) -> Tensor:
        return _within_one(x.tanh())

    def _inverse(self, y: Tensor) -> Tensor:
        return torch.atanh(torch.where(y.abs() == 1, _within_one(y), y))


class PreciseExp(ExpTransform):
    """The exponential, which is neither zero nor infinite."""

    def _call(self, x: Tensor) -> Tensor:
        y = x.exp()
        limits = torch.finfo(y.dtype)
        return y.clamp(limits.tiny, limits.max)

    def _inverse(self, y: Tensor) -> Tensor:
        return torch.where(y == 0, torch.finfo(y.dtype).tiny, y).log()


PRECISE: dict[type, type] = {
    CorrCholeskyTransform: PreciseCorrCholesky,
    ExpTransform: PreciseExp,
    StickBreakingTransform: PreciseStickBreaking,
    TanhTransform: PreciseTanh,
}
"""What stands in for PyTorch's transforms in a flow."""


def strictly_inside(value: Tensor, support: constraints.Constraint | None) -> Tensor:
    """Moves numbers that were rounded to an end of an interval or half-line one step inwards.

    Args:
        value: Draws.
        support: Where they lie. Of other kinds of sets, nothing is moved.

    Returns:
        The value itself if nothing had to be moved: transforms may remember it.
    """
    inner: Any = support
    while isinstance(inner, constraints.independent):
        inner = inner.base_constraint
    for name, direction in (("lower_bound", torch.inf), ("upper_bound", -torch.inf)):
        bound = getattr(inner, name, None)
        if bound is None:
            continue
        bound = torch.as_tensor(bound, dtype=value.dtype, device=value.device)
        next_ = torch.nextafter(bound, torch.full_like(bound, direction))
        smallest = torch.finfo(value.dtype).tiny  # numbers below may count as zero
        next_ = torch.where(bound == 0, smallest if direction > 0 else -smallest, next_)
        outside = value <= bound if direction > 0 else value >= bound
        if bool(outside.any()):
            value = torch.where(outside, next_, value)
    return value


def _offset(x: Tensor) -> Tensor:
    """How many parts are still to be broken off, after each of x."""
    return torch.arange(x.shape[-1], 0, -1, dtype=x.dtype, device=x.device)


def _within_one(y: Tensor) -> Tensor:
    largest = 1 - torch.finfo(y.dtype).eps / 2
    return y.clamp(-largest, largest)
