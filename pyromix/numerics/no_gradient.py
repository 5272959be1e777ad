"""Numbers whose gradients in the parameters they depend on are not available."""

__all__ = ["raise_on_gradient"]

from typing import Any

import torch
from torch import Tensor


def raise_on_gradient(value: Tensor, *inputs: Tensor, message: str) -> Tensor:
    """A copy of a number, such that a backward pass through it raises an error.

    Without it the gradient in the inputs would be zero, which is wrong and goes unnoticed.

    Args:
        value: The number, computed from the inputs without a graph.
        inputs: What it depends on. If none of them requires a gradient, the copy does not either.
        message: What the error, a `NotImplementedError`, says.

    Returns:
        A tensor that equals `value`.
    """
    return _RaiseOnGradient.apply(message, value.detach(), *inputs)


class _RaiseOnGradient(torch.autograd.Function):
    """The identity, with a backward pass that raises."""

    @staticmethod
    def forward(ctx: Any, message: str, value: Tensor, *inputs: Tensor) -> Tensor:  # noqa: ARG004
        ctx.message = message
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise NotImplementedError(ctx.message)
