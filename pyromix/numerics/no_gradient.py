"""Numbers whose gradients in the parameters they depend on are not, or no longer, available."""

__all__ = ["raise_if_freed", "raise_on_gradient"]

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


def raise_if_freed(value: Tensor, message: str) -> Tensor:
    """A number with the same graph, whose second backward pass says why there is no graph left.

    PyTorch frees a graph with the first backward pass through it, unless it is told to retain it,
    and reports the second one by an error that does not say whose graph it was.

    Args:
        value: The number.
        message: What the error, a `RuntimeError`, says.

    Returns:
        A tensor that equals `value`; the value itself if it has no graph.
    """
    return _RaiseIfFreed.apply(message, value) if value.requires_grad else value


class _RaiseIfFreed(torch.autograd.Function):
    """The identity, which keeps a tensor to see whether it has been freed."""

    @staticmethod
    def forward(ctx: Any, message: str, value: Tensor) -> Tensor:
        ctx.message = message
        ctx.save_for_backward(value.new_empty(0))
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        try:
            _ = ctx.saved_tensors
        except RuntimeError:
            raise RuntimeError(ctx.message) from None
        return None, *grads


class _RaiseOnGradient(torch.autograd.Function):
    """The identity, with a backward pass that raises."""

    @staticmethod
    def forward(ctx: Any, message: str, value: Tensor, *inputs: Tensor) -> Tensor:  # noqa: ARG004
        ctx.message = message
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise NotImplementedError(ctx.message)
