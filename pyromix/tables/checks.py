"""Checks of what is asked, that laws of one row and of many have in common."""

__all__ = [
    "check_choice",
    "check_numeric",
    "check_ordered",
    "check_probs",
    "ends_of",
    "quantile_labels",
]

from collections.abc import Sequence

import numpy as np

from .columns import Choice, Number


def check_probs(probs: float | Sequence[float]) -> np.ndarray:
    """Probabilities, a number or several, as an array.

    Raises:
        ValueError: If they are out of range.
    """
    asked = np.asarray(probs, dtype=np.float64)
    if not ((asked >= 0) & (asked <= 1)).all():
        raise ValueError(f"Expected probabilities from 0 to 1, got {probs!r}.")
    return asked


def ends_of(level: float) -> list[float]:
    """Probabilities at which the central interval of a level ends.

    Raises:
        ValueError: If the level is not from 0 to 1.
    """
    if not 0 <= level <= 1:
        raise ValueError(f"Expected a level from 0 to 1, got {level!r}.")
    tail = (1 - float(level)) / 2
    return [tail, 1 - tail]


def quantile_labels(column: Choice, weights: np.ndarray, probs: np.ndarray) -> np.ndarray:
    """Quantiles of labels in their order, (R, P), from their probabilities (R, n)."""
    reached = np.cumsum(weights, -1)[:, None]
    code = (reached < probs[:, None] * (1 - 1e-12)).sum(-1)
    return np.asarray(column.values)[code.clip(0, weights.shape[1] - 1)]


def check_choice(name: str, column: Number | Choice) -> Choice:
    """Checks that a column has a few values."""
    if not isinstance(column, Choice):
        raise ValueError(
            f"Expected a column of a few values, got {name!r}, which is {column}. Ask for "
            f"quantile({name!r}, ...), or for the probability of a range."
        )
    return column


def check_numeric(name: str, column: Number | Choice) -> Number | Choice:
    """Checks that a column has numbers or dates."""
    if isinstance(column, Choice) and not column.numeric:
        raise ValueError(
            f"Expected a column of numbers, got {name!r}, which is {column}. Ask for "
            f"predict_proba({name!r})."
        )
    return column


def check_ordered(name: str, column: Number | Choice) -> Number | Choice:
    """Checks that the values of a column have an order."""
    if isinstance(column, Choice) and not (column.numeric or column.ordered):
        raise ValueError(
            f"Expected a column with an order, got {name!r}, which is {column}. Ask for "
            f"predict_proba({name!r})."
        )
    return column
