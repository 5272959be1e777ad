r"""Transforms to bounded sets that keep their precision up to the border.

Near the border of its range a transform maps an interval of latents to one number. What is lost
there cannot be found again, but no more than that is lost here: inverses and Jacobians are right
for the value that they are given, and draws stay strictly inside, where both are finite.
"""

__all__ = ["PRECISE", "between_ends", "inner_point", "strictly_inside"]

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.transforms import (
    AffineTransform,
    CorrCholeskyTransform,
    ExpTransform,
    SigmoidTransform,
    StickBreakingTransform,
    TanhTransform,
)
from torch.distributions.utils import tril_matrix_to_vec, vec_to_tril_matrix
from torch.nn.functional import logsigmoid, pad, softplus

from ..core.constraints import next_to


class PreciseStickBreaking(StickBreakingTransform):
    """Stick-breaking, whose remainders are sums of what is left, not one less what is gone."""

    def _call(self, x: Tensor) -> Tensor:
        logit = x - _offset(x).log()
        left = pad(torch.sigmoid(-logit).cumprod(-1), [1, 0], value=1.0)
        y = pad(torch.sigmoid(logit), [0, 1], value=1.0) * left
        return y.clamp(min=torch.finfo(y.dtype).tiny)

    def _inverse(self, y: Tensor) -> Tensor:
        y = torch.where(y == 0, torch.finfo(y.dtype).tiny, y)
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


class PreciseSigmoid(SigmoidTransform):
    """The sigmoid, which reaches the last number below one."""

    def _call(self, x: Tensor) -> Tensor:
        return _within_unit(x.sigmoid())

    def _inverse(self, y: Tensor) -> Tensor:
        y = torch.where((y == 0) | (y == 1), _within_unit(y), y)
        return y.log() - (-y).log1p()


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
    SigmoidTransform: PreciseSigmoid,
    StickBreakingTransform: PreciseStickBreaking,
    TanhTransform: PreciseTanh,
}
"""What stands in for PyTorch's transforms in a flow."""


def between_ends(inner: Any, outer: Any) -> Callable[[Tensor], Tensor] | None:
    """The inverse of a sigmoid or hyperbolic tangent and an affine transform after it, at once.

    One after the other they lose digits: of a value near an end, say 5 of an interval from 2 to
    5, the affine inverse leaves a number near one, which has room for fewer digits of the
    distance from the end than the value itself. Here that distance is exact.

    Args:
        inner: A transform.
        outer: The one that follows it.

    Returns:
        The function from values of the outer transform to those that enter the inner one; None
        for other pairs.
    """
    if type(outer) is not AffineTransform or type(inner) not in _FROM_DISTANCES:
        return None
    invert = _FROM_DISTANCES[type(inner)]
    return lambda y: invert(*_minus(y, _like(outer.loc, y)), _like(outer.scale, y))


def inner_point(support: constraints.Constraint | None, like: Tensor) -> Tensor | None:
    """A number within an interval or a half-line; None for other supports.

    Args:
        support: An interval or a half-line, of numbers or of every entry of a tensor.
        like: A tensor of the right dtype and device.
    """
    low, high = (_bound(support, name, like) for name in ("lower_bound", "upper_bound"))
    if low is not None and high is not None:
        return 0.5 * low + 0.5 * high
    if low is not None:
        return low + low.abs().clamp(min=1.0)
    return None if high is None else high - high.abs().clamp(min=1.0)


def strictly_inside(value: Tensor, support: constraints.Constraint | None) -> Tensor:
    """Moves numbers that were rounded to an end of an interval or half-line one step inwards.

    Args:
        value: Draws.
        support: Where they lie. Of other kinds of sets, nothing is moved.

    Returns:
        The value itself if nothing had to be moved: transforms may remember it.
    """
    for name, direction in (("lower_bound", torch.inf), ("upper_bound", -torch.inf)):
        bound = _bound(support, name, value)
        if bound is None:
            continue
        outside = value <= bound if direction > 0 else value >= bound
        if bool(outside.any()):
            value = torch.where(outside, next_to(bound, direction), value)
    return value


def _bound(support: constraints.Constraint | None, name: str, like: Tensor) -> Tensor | None:
    """A bound of an interval or half-line by its name, if it has it."""
    inner: Any = support
    while isinstance(inner, constraints.independent):
        inner = inner.base_constraint
    bound = getattr(inner, name, None)
    return None if bound is None else _like(bound, like)


def _offset(x: Tensor) -> Tensor:
    """How many parts are still to be broken off, after each of x."""
    return torch.arange(x.shape[-1], 0, -1, dtype=x.dtype, device=x.device)


def _like(number: Tensor | float, y: Tensor) -> Tensor:
    return torch.as_tensor(number, dtype=y.dtype, device=y.device)


def _minus(y: Tensor, loc: Tensor) -> tuple[Tensor, Tensor]:
    """The difference of two numbers, and what its rounding left out (Knuth's two-sum)."""
    difference = y - loc
    subtracted = y - difference
    lost = (y - (difference + subtracted)) + (subtracted - loc)
    return difference, lost


def _from_sigmoid(difference: Tensor, lost: Tensor, scale: Tensor) -> Tensor:
    """The x with loc + scale * sigmoid(x) = y, given y - loc as a sum of two numbers."""
    below = (difference + lost) / scale
    above = ((scale - difference) - lost) / scale
    return _off_end(below, torch.finfo(below.dtype).tiny).log() - _off_end(above).log()


def _from_tanh(difference: Tensor, lost: Tensor, scale: Tensor) -> Tensor:
    """The x with loc + scale * tanh(x) = y, given y - loc as a sum of two numbers."""
    share = (difference + lost) / scale
    side = torch.where(share < 0, -1.0, 1.0).to(share)
    nearer = _off_end(((side * scale - difference) - lost) / (side * scale))
    return side * 0.5 * torch.log1p(2 * side * share / nearer)


_FROM_DISTANCES: dict[type, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    PreciseSigmoid: _from_sigmoid,
    PreciseTanh: _from_tanh,
}


def _off_end(distance: Tensor, least: float | None = None) -> Tensor:
    """Distances from an end: for values on it, or beyond it by rounding, the least one."""
    least = torch.finfo(distance.dtype).eps / 2 if least is None else least
    return torch.where(distance <= 0, least, distance)


def _within_unit(y: Tensor) -> Tensor:
    limits = torch.finfo(y.dtype)
    return y.clamp(limits.tiny, 1 - limits.eps / 2)


def _within_one(y: Tensor) -> Tensor:
    largest = 1 - torch.finfo(y.dtype).eps / 2
    return y.clamp(-largest, largest)
