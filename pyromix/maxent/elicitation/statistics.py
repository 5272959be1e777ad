"""Statements as statistics: functions whose expectations they fix or bound."""

__all__ = ["Exponent", "Statistic", "Variable", "compile_joint", "compile_variable"]

import inspect
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from .statements import (
    Expectation,
    Interval,
    Level,
    Mean,
    Probability,
    Quantile,
    Sd,
    Statement,
)

Values = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Variable:
    """A variable's name and support, and what its statements say of its size."""

    name: str
    low: float
    high: float
    points: tuple[float, ...] = ()
    """Values that statements name, at which the density may jump."""
    centre: float | None = None
    """The mean, if it is stated."""
    sd: float | None = None
    """The standard deviation, if it is stated."""
    width: float = 0.0
    """Of smooth steps."""
    jumps: tuple[float, ...] = ()
    """Where events that statements are about begin and end."""

    @property
    def edges(self) -> tuple[float, ...]:
        """All points at which the density may jump."""
        return tuple(sorted({*self.points, *self.jumps}))


@dataclass(frozen=True)
class Statistic:
    """A function T of draws (..., d) with E[T] = level, or E[T] <= level."""

    name: str
    values: Values
    level: float
    is_inequality: bool = False
    steps: Callable[[float], Values] | None = None
    """Of a step T, the smooth one of a width."""
    width: float = 0.0
    """Of the smooth step that stands in the density instead of T; with zero T itself does."""
    start: float = 0.0
    """A first guess of the multiplier."""
    sign: int = 1
    """Minus one for what was stated as "at least"."""
    columns: tuple[int, ...] | None = None
    """Of the draws, those that it takes; None if that is all of them."""

    def at(self, x: Tensor) -> Tensor:
        """What stands in the exponent of the density."""
        return self.steps(self.width)(x) if self.is_smooth and self.steps else self.values(x)

    @property
    def is_smooth(self) -> bool:
        """Whether a smooth step stands for T in the density."""
        return self.steps is not None and self.width > 0

    def moved(self, columns: Sequence[int]) -> "Statistic":
        """The same of draws with more columns, of which it takes some."""
        chosen = list(columns)
        steps = None if self.steps is None else partial(_moved_steps, self.steps, chosen)
        values = partial(_of_columns, self.values, chosen)
        return replace(self, values=values, steps=steps, columns=tuple(sorted(set(chosen))))


@dataclass(frozen=True)
class Exponent:
    r"""The logarithm of a density without its normaliser, log b(x) - lambda . T(x).

    Args:
        statistics: T.
        multipliers: lambda, shape (m,).
        bases: Laws b of columns; Lebesgue's measure where there is None.
    """

    statistics: tuple[Statistic, ...]
    multipliers: Tensor
    bases: tuple[Distribution | None, ...] = field(default=())

    def __call__(self, x: Tensor) -> Tensor:
        """Of values (..., d), shape (...)."""
        total = torch.zeros_like(x[..., 0])
        for i, base in enumerate(self.bases):
            if base is not None:
                total = total + base.log_prob(x[..., i])
        for statistic, multiplier in zip(self.statistics, self.multipliers, strict=True):
            if float(multiplier):  # zero times infinity would be NaN
                total = total - multiplier.to(x) * statistic.at(x).to(x)
        return total


def _of_columns(function: Values, columns: list[int], x: Tensor) -> Tensor:
    return function(x[..., columns])


def _moved_steps(steps: Callable[[float], Values], columns: list[int], width: float) -> Values:
    return partial(_of_columns, steps(width), columns)


# ---- of one variable ----------------------------------------------------------------------------


def compile_variable(
    name: str, statements: Sequence[Statement], low: float, high: float, smooth: float
) -> tuple[Variable, list[Statistic]]:
    """Statistics of draws (..., 1) that say the same as statements about one variable.

    Args:
        name: Of the variable.
        statements: About it.
        low: Lower bound of its support, or minus infinity.
        high: Upper bound, or infinity.
        smooth: Width of steps, as a share of the least distance between values that are named.

    Raises:
        ValueError: If a statement does not fit the support, or another one.
    """
    variable = _describe(name, statements, low, high)
    _check_quantiles(name, statements)
    ends = [e for e in (low, *variable.points, high) if math.isfinite(e)]
    gaps = [b - a for a, b in itertools.pairwise(ends) if b > a]
    scale = variable.sd or (abs(variable.points[0]) if variable.points else 1.0) or 1.0
    variable = replace(variable, width=smooth * min(gaps, default=scale))
    return variable, [_statistic(variable, statement) for statement in statements]


def _describe(name: str, statements: Sequence[Statement], low: float, high: float) -> Variable:
    """Collects what statements say of a variable's size, and checks it against the support."""
    points: set[float] = set()
    centre = deviation = None
    for statement in statements:
        match statement:
            case Quantile(p=p, value=value):
                if not low < value < high:
                    raise ValueError(
                        f"Expected the quantile {p:g} of {name!r} inside its support "
                        f"({low:g}, {high:g}), got {value:g}."
                    )
                points.add(value)
            case Interval(low=start, high=end):
                if end <= low or start >= high or (start <= low and end >= high):
                    raise ValueError(
                        f"Expected an interval of {name!r} that is a part of its support "
                        f"({low:g}, {high:g}), got ({start:g}, {end:g})."
                    )
                points |= {v for v in (start, end) if low < v < high}
            case Mean(level=level):
                if not low < level.value < high:
                    raise ValueError(
                        f"Expected the mean of {name!r} inside its support ({low:g}, {high:g}), "
                        f"got {level.value:g}."
                    )
                if level.relation == "=":
                    if centre is not None:
                        raise ValueError(f"Expected one mean of {name!r}, got two.")
                    centre = level.value
            case Sd(value=value):
                if deviation is not None:
                    raise ValueError(f"Expected one sd of {name!r}, got two.")
                deviation = value
    if deviation is not None:
        if centre is None:
            raise ValueError(
                f"Expected the mean of {name!r} with its sd, got the sd alone. Add mean(...)."
            )
        largest = math.sqrt((centre - low) * (high - centre))
        if not deviation < largest:
            raise ValueError(
                f"Expected an sd of {name!r} below {largest:.4g}, the most that its mean "
                f"{centre:g} and support ({low:g}, {high:g}) allow, got {deviation:g}."
            )
    return Variable(name, low, high, tuple(sorted(points)), centre, deviation)


def _check_quantiles(name: str, statements: Sequence[Statement]) -> None:
    """Raises an error unless quantiles rise with their probabilities."""
    quantiles = sorted(
        ((s.p, s.value) for s in statements if isinstance(s, Quantile)), key=lambda q: q[0]
    )
    for (p, value), (larger, other) in itertools.pairwise(quantiles):
        if not p < larger or not value < other:
            raise ValueError(
                f"Expected quantiles of {name!r} that rise with their probabilities, got "
                f"{value:g} at {p:g} and {other:g} at {larger:g}."
            )


def _statistic(variable: Variable, statement: Statement) -> Statistic:
    """The statistic of a statement about one variable."""
    name, width = variable.name, variable.width
    match statement:
        case Quantile(p=p, value=value):
            return Statistic(
                f"{name}: {statement}",
                partial(_inside, -math.inf, value),
                p,
                steps=partial(partial, _smooth_inside, -math.inf, value),
                width=width,
            )
        case Interval(p=p, low=low, high=high):
            return Statistic(
                f"{name}: {statement}",
                partial(_inside, low, high),
                p,
                steps=partial(partial, _smooth_inside, low, high),
                width=width,
            )
        case Mean(level=level):
            return _levelled(f"mean of {name}", _first, level, variable)
        case Sd(value=value):
            centre = variable.centre or 0.0
            return Statistic(
                f"variance of {name}",
                partial(_square_deviation, centre),
                value**2,
                start=0.5 / value**2,
            )
        case Expectation(function=function, level=level):
            return _levelled(f"{_label(function)} of {name}", partial(_of_first, function), level)
        case Probability(event=event, level=level):
            what = f"P({_label(event, 'event')}) of {name}"
            return _levelled(what, partial(_event_of_first, what, event), level)
    raise ValueError(
        f"Expected statements about {name!r}, such as quantile(...), got {statement!r}."
    )


# Functions of draws, at the level of the module, so that laws made of them can be pickled.


def _first(x: Tensor) -> Tensor:
    return x[..., 0]


def _square_deviation(centre: float, x: Tensor) -> Tensor:
    return (x[..., 0] - centre).square()


def _inside(low: float, high: float, x: Tensor) -> Tensor:
    return ((low < x[..., 0]) & (x[..., 0] < high)).to(x)


def _smooth_inside(low: float, high: float, width: float, x: Tensor) -> Tensor:
    """Rises from zero to one about `low`, with a slope of 1 / width there, and falls again."""
    below = torch.sigmoid(4 * (high - x[..., 0]) / width)
    return below - torch.sigmoid(4 * (low - x[..., 0]) / width)


def _of_first(function: Callable[..., Tensor], x: Tensor) -> Tensor:
    return function(x[..., 0]).to(x)


def _event_of_first(name: str, event: Callable[..., Tensor], x: Tensor) -> Tensor:
    return _checked(name, event(x[..., 0])).to(x)


def _of_named(
    function: Callable[..., Tensor], columns: Mapping[str, int], is_event: bool, x: Tensor
) -> Tensor:
    values = function(**{name: x[..., i] for name, i in columns.items()})
    return (_checked(_label(function, "event"), values) if is_event else values).to(x)


def _negative(function: Values, x: Tensor) -> Tensor:
    return -function(x)


def _checked(name: str, happens: Tensor) -> Tensor:
    """Values of an event.

    Raises:
        ValueError: If it has others than true and false.
    """
    if happens.dtype != torch.bool and not bool(((happens == 0) | (happens == 1)).all()):
        raise ValueError(
            f"Expected {name} to be of an event, which is true or false, got other values. "
            f"Use expectation(...) for a function."
        )
    return happens


def _label(function: Any, anonymous: str = "function") -> str:
    name = getattr(function, "__name__", type(function).__name__)
    return anonymous if name == "<lambda>" else name


def _levelled(
    name: str, values: Values, level: Level, variable: Variable | None = None
) -> Statistic:
    """A statistic with an expectation that is, is at most, or is at least so much."""
    start = 0.0
    if variable is not None and level.relation == "=" and variable.sd is None:
        if math.isfinite(variable.low) and not math.isfinite(variable.high):
            start = 1 / (level.value - variable.low)
        elif math.isfinite(variable.high) and not math.isfinite(variable.low):
            start = -1 / (variable.high - level.value)
    if level.relation == ">=":
        return Statistic(name, partial(_negative, values), -level.value, True, sign=-1)
    return Statistic(name, values, level.value, level.relation == "<=", start=start)


# ---- of several variables -----------------------------------------------------------------------


def compile_joint(statement: Statement, names: Sequence[str]) -> tuple[tuple[str, ...], Statistic]:
    """The statistic of a statement about several variables, and which these are.

    The function's arguments are the variables' names.

    Args:
        statement: A probability or an expectation.
        names: Of all variables.

    Returns:
        The names of the variables, and the statistic of draws (..., d) of all variables.

    Raises:
        ValueError: If it is another statement, or has other arguments.
    """
    if not isinstance(statement, Expectation | Probability):
        raise ValueError(
            f"Expected joint statements to be probability(...) or expectation(...) of several "
            f"variables, got {statement!r}."
        )
    is_event = isinstance(statement, Probability)
    function = statement.event if isinstance(statement, Probability) else statement.function
    arguments = tuple(inspect.signature(function).parameters)
    unknown = [a for a in arguments if a not in names]
    if unknown or not arguments:
        raise ValueError(
            f"Expected the arguments of {_label(function)!r} to be names of variables, "
            f"{', '.join(map(repr, names))}, got {', '.join(map(repr, arguments)) or 'none'}."
        )
    if len(arguments) == 1:
        raise ValueError(
            f"Expected joint statements about several variables, got one about "
            f"{arguments[0]!r} alone. Put it among the statements about that."
        )
    columns = {a: list(names).index(a) for a in arguments}
    label = f"{_label(function, 'event' if is_event else 'function')}({', '.join(arguments)})"
    values = partial(_of_named, function, columns, is_event)
    name = f"P({label})" if is_event else label
    return arguments, _levelled(name, values, statement.level)
