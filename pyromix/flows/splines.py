"""Pyro's splines with gradients that are finite everywhere.

Outside their bounds splines are the identity. Pyro evaluates the first or last piece there all
the same, and throws its result away; but where that rational function has a pole, its gradient is
not finite, and what reaches the parameters is zero times infinity. Among millions of values, as
in training on images, one hits a pole. Here values are brought within the bounds first, and those
outside put back afterwards: results are the same.
"""

__all__ = ["keep_splines_inside"]

from functools import partial
from typing import Any

import torch
from pyro.distributions.transforms import ConditionalSpline, Spline
from pyro.distributions.transforms.spline import ConditionedSpline
from torch import Tensor, nn


def keep_splines_inside(module: nn.Module) -> None:
    """Makes all of Pyro's splines in a module evaluate no piece outside of its bounds.

    Args:
        module: A transform. Changed in place; its parameters and results stay as they are.
    """
    for part in module.modules():
        # Partial functions, as those can be copied and pickled with the module they belong to.
        if isinstance(part, Spline) and type(part).spline_op is ConditionedSpline.spline_op:
            part.spline_op = partial(_spline_op, part)  # type: ignore[method-assign]
        elif isinstance(part, ConditionalSpline):
            part.condition = partial(_condition, part)  # type: ignore[method-assign]


class _InsideSpline(ConditionedSpline):
    def spline_op(self, x: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        return _spline_op(self, x, **options)


def _condition(self: ConditionalSpline, context: Tensor) -> ConditionedSpline:
    spline = ConditionalSpline.condition(self, context)
    # A class, not a method of the instance: that would be a cycle, which keeps tensors alive.
    spline.__class__ = _InsideSpline
    return spline


def _spline_op(self: ConditionedSpline, x: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    within = x.clamp(-self.bound, self.bound)
    y, log_slope = ConditionedSpline.spline_op(self, within, **options)
    inside = within == x
    return torch.where(inside, y, x), torch.where(inside, log_slope, 0.0)
