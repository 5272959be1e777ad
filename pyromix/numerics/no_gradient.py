"""Numbers that depend on parameters in a way that is not differentiated here."""

__all__ = ["without_gradient"]

from typing import Any

import torch
from torch import Tensor


def without_gradient(value: Tensor, *inputs: Tensor, message: str) -> Tensor:
    """The same number, whose gradient in any of the inputs is an error instead of zero.

    Args:
        value: The number, computed from the inputs without a graph.
        inputs: What it depends on.
        message: What the error, a `NotImplementedError`, says.
    """
    return _UnknownGradient.apply(message, value.detach(), *inputs)


class _UnknownGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, message: str, value: Tensor, *inputs: Tensor) -> Tensor:  # noqa: ARG004
        ctx.message = message
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise NotImplementedError(ctx.message)
