"""Steps as statistics: exact in their values, smooth in their gradients."""

__all__ = ["below", "between", "exact_step"]

import torch
from torch import Tensor


def exact_step(step: Tensor, smooth: Tensor) -> Tensor:
    r"""A step function whose gradient is that of a smooth one.

    Expectations are those of the step, so that a constraint on them holds for the step itself,
    however wide the smooth one is. Where a search comes to rest, the law is
    :math:`q \propto e^{-\lambda^\top S}` with the smooth S, and keeps :math:`E_q[T] = t` for the
    steps T: the width rounds off the jumps of the density, and biases no probability.

    Args:
        step: Values T of the step, or booleans.
        smooth: Values S of the smooth function, of the same shape, with gradients.
    """
    return step.to(smooth) + (smooth - smooth.detach())


def below(x: Tensor, value: float, width: float) -> Tensor:
    """One where x is below a value, zero elsewhere: its expectation is a probability.

    For `MaximumEntropy`: ``below(x, median, width)`` with the target 0.5.

    Args:
        x: Draws, of any shape.
        value: Where the step is.
        width: Of the smooth step that gradients are taken of: a tenth of the law's deviation, for
            instance. A narrower one leaves gradients to few draws, a wider one rounds the law.

    Returns:
        The steps, of the shape of x.

    Raises:
        ValueError: If the width is not positive.

    Example:
        >>> x = torch.tensor([0.9, 1.05, 3.0], requires_grad=True)
        >>> below(x, 1.0, 0.2)
        tensor([1., 0., 0.], grad_fn=<AddBackward0>)
        >>> below(x, 1.0, 0.2).sum().backward()
        >>> x.grad < 0
        tensor([True, True, True])
    """
    if not width > 0:
        raise ValueError(f"Expected a positive width, got {width}.")
    return exact_step(x < value, torch.sigmoid(4 * (value - x) / width))


def between(x: Tensor, low: float, high: float, width: float) -> Tensor:
    """One where x is between two values, zero elsewhere.

    Args:
        x: Draws, of any shape.
        low: Lower end.
        high: Upper end.
        width: Of the smooth steps that gradients are taken of.

    Returns:
        The steps, of the shape of x.

    Raises:
        ValueError: If `low` is not less than `high`, or the width is not positive.

    Example:
        >>> between(torch.tensor([0.5, 2.0, 7.0]), 1.0, 5.0, 0.2)
        tensor([0., 1., 0.])
    """
    if not low < high:
        raise ValueError(f"Expected low to be less than high, got {low} and {high}.")
    return below(x, high, width) - below(x, low, width)
