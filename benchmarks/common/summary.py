"""Means and their standard errors."""

import math

from torch import Tensor


def mean_and_error(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over the first dimension, and its standard error: zero if there is but one value."""
    if len(values) == 1:
        return values[0], values.new_zeros(values.shape[1:])
    return values.mean(0), values.std(0) / math.sqrt(len(values))


def standard_error(values: Tensor) -> float:
    """Standard error of the mean of values of shape (N,)."""
    return float(mean_and_error(values)[1])


def plus_minus(values: Tensor, digits: int = 3, sign: str = "") -> str:
    """Mean and standard error of values of shape (N,), as in ``"1.234 ± 0.012"``; none for NaN.

    Args:
        values: Numbers, one for each seed, image or sequence.
        digits: After the point.
        sign: ``"+"`` to show the sign of positive numbers, too.
    """
    mean, error = mean_and_error(values)
    if mean.isnan():
        return ""
    return f"{float(mean):{sign}.{digits}f} ± {float(error):.{digits}f}"
