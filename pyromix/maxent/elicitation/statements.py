"""What a person can say about uncertain quantities: statements, as values."""

__all__ = [
    "Expectation",
    "Interval",
    "Level",
    "Mean",
    "Probability",
    "Quantile",
    "Sd",
    "Statement",
    "expectation",
    "interval",
    "mean",
    "probability",
    "quantile",
    "sd",
]

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from ...core.checks import number

Relation = Literal["=", "<=", ">="]
Function = Callable[..., Tensor]


@dataclass(frozen=True)
class Level:
    """What an expectation is, is at most, or is at least."""

    value: float
    relation: Relation = "="


@dataclass(frozen=True)
class Quantile:
    """P(x < value) = p."""

    p: float
    value: float

    def __str__(self) -> str:
        return f"P(x < {self.value:g})"


@dataclass(frozen=True)
class Interval:
    """P(low < x < high) = p."""

    p: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"P({self.low:g} < x < {self.high:g})"


@dataclass(frozen=True)
class Mean:
    """The mean of a variable."""

    level: Level


@dataclass(frozen=True)
class Sd:
    """The standard deviation of a variable about its stated mean."""

    value: float


@dataclass(frozen=True)
class Expectation:
    """The expectation of a function of one variable or of several."""

    function: Function
    level: Level


@dataclass(frozen=True)
class Probability:
    """The probability of an event of one variable or of several."""

    event: Function
    level: Level


Statement = Quantile | Interval | Mean | Sd | Expectation | Probability


def quantile(p: float, value: float) -> Quantile:
    """The statement that a variable is below a value with probability p.

    Args:
        p: Probability, between 0 and 1.
        value: The quantile: 0.5 and the median, for instance.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> quantile(0.5, 3.0)
        Quantile(p=0.5, value=3.0)
    """
    return Quantile(_share("p", p), _number("value", value))


def interval(p: float, low: float, high: float) -> Interval:
    """The statement that a variable is between two values with probability p.

    It does not say how the rest is divided between the two sides: for that, state two quantiles.

    Args:
        p: Probability, between 0 and 1.
        low: Lower end.
        high: Upper end.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> interval(0.9, 2, 5)
        Interval(p=0.9, low=2.0, high=5.0)
    """
    low, high = _number("low", low), _number("high", high)
    if not low < high:
        raise ValueError(f"Expected low to be less than high, got {low:g} and {high:g}.")
    return Interval(_share("p", p), low, high)


def mean(
    value: float | None = None, *, at_least: float | None = None, at_most: float | None = None
) -> Mean:
    """The statement that a variable has a mean, or one of at least or at most so much.

    Args:
        value: The mean.
        at_least: Instead of it: a lower bound.
        at_most: Instead of it: an upper bound.

    Raises:
        ValueError: If not exactly one of the three is given, or it is not finite.

    Example:
        >>> mean(3.0).level
        Level(value=3.0, relation='=')
    """
    return Mean(_level(value, at_least, at_most))


def sd(value: float) -> Sd:
    """The statement that a variable has a standard deviation, about a mean that is stated, too.

    Args:
        value: The standard deviation.

    Raises:
        ValueError: If it is not positive.

    Example:
        >>> sd(0.5)
        Sd(value=0.5)
    """
    value = _number("value", value)
    if not value > 0:
        raise ValueError(f"Expected a positive standard deviation, got {value:g}.")
    return Sd(value)


def expectation(
    function: Function,
    value: float | None = None,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
) -> Expectation:
    """The statement that a function of one variable, or of several, has an expectation.

    Args:
        function: Of a tensor of values; of several variables, with their names for arguments.
        value: Its expectation.
        at_least: Instead of it: a lower bound.
        at_most: Instead of it: an upper bound.

    Raises:
        ValueError: If not exactly one of the three is given, or it is not finite.

    Example:
        >>> expectation(lambda rate, share: rate * share, at_most=1.5).level
        Level(value=1.5, relation='<=')
    """
    return Expectation(_callable("function", function), _level(value, at_least, at_most))


def probability(
    event: Function,
    p: float | None = None,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
) -> Probability:
    """The statement that an event of one variable, or of several, has a probability.

    Args:
        event: Function of a tensor of values that says where the event happens; of several
            variables, with their names for arguments.
        p: Its probability.
        at_least: Instead of it: a lower bound.
        at_most: Instead of it: an upper bound.

    Raises:
        ValueError: If not exactly one of the three is given, or it is not between 0 and 1.

    Example:
        >>> probability(lambda low, high: low < high, 0.95).level
        Level(value=0.95, relation='=')
    """
    level = _level(p, at_least, at_most)
    _share("the probability of an event", level.value)
    return Probability(_callable("event", event), level)


def _number(name: str, value: Any) -> float:
    return float(number()(name, value))


def _share(name: str, value: Any) -> float:
    if not 0 < _number(name, value) < 1:
        raise ValueError(
            f"Expected {name} to be between 0 and 1, got {value:g}. What is certain belongs into "
            f"the support."
        )
    return float(value)


def _callable(name: str, value: Any) -> Any:
    if not callable(value):
        raise ValueError(f"Expected {name} to be a function, got {type(value).__name__}.")
    return value


def _level(value: float | None, at_least: float | None, at_most: float | None) -> Level:
    relations: tuple[tuple[float | None, Relation], ...] = (
        (value, "="),
        (at_least, ">="),
        (at_most, "<="),
    )
    given = [
        Level(_number("the level", v), relation) for v, relation in relations if v is not None
    ]
    if len(given) != 1 or not math.isfinite(given[0].value):
        raise ValueError(
            f"Expected one of a value, at_least and at_most, got {value}, {at_least}, {at_most}."
        )
    return given[0]
