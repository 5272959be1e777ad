"""Numbers that depend on parameters in a way that is not differentiated here."""

__all__ = ["without_gradient"]

from typing import Any

import torch
from torch import Tensor


def without_gradient(value: Tensor, *inputs: Tensor) -> Tensor:
    """The same number, whose gradient in any of the inputs is an error instead of zero.

    Args:
        value: The number, computed from the inputs without a graph.
        inputs: What it depends on.
    """
    return _UnknownGradient.apply(value.detach(), *inputs)


class _UnknownGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, *inputs: Tensor) -> Tensor:  # noqa: ARG004
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise NotImplementedError(
            "The evidence log Z under these inequalities has no closed form, and no gradient in "
            "the parameters of the mixture and of the evidence. If none is wanted, condition "
            "within torch.no_grad(), or on a mixture whose parameters do not require gradients. "
            "If it is: the gradient of log Z is the mean of that of mixture.log_prob(x) over "
            "draws x of the conditional law."
        )
