"""What is said of a row, by comparisons of columns."""

__all__ = ["All", "AnyOne", "Compare", "Event", "Expression", "Not", "as_truth", "col"]

import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

SYMBOLS: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "**": operator.pow,
    "%": operator.mod,
    "//": operator.floordiv,
}


class Event(ABC):
    """Something that a row meets or not: comparisons, joined by ``&``, ``|`` and ``~``.

    Made by comparing `col`. It stands for what `TableModel.condition` and
    `TableModel.probability` are told.
    """

    def __and__(self, other: "Event") -> "Event":
        return All((self, _as_event(other)))

    def __or__(self, other: "Event") -> "Event":
        return AnyOne((self, _as_event(other)))

    def __invert__(self) -> "Event":
        return Not(self)

    def __bool__(self) -> bool:
        raise ValueError(
            f"Expected events joined by &, | and ~, with each comparison in parentheses, got "
            f"'and', 'or', 'not' or a chain such as a < b < c about {self}."
        )

    def __repr__(self) -> str:
        return str(self)

    @property
    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """The columns that it speaks of."""


def as_truth(said: Any) -> Any:
    """A column of booleans as the event that it is true; other things as they are."""
    return Compare(said, "==", True) if isinstance(said, Expression) else said


def _as_event(said: Any) -> Event:
    said = as_truth(said)
    if isinstance(said, Event):
        return said
    raise ValueError(
        f"Expected an event, such as (col('age') > 30), got {said!r}. Put comparisons in "
        f"parentheses: & and | bind more tightly than they do."
    )


@dataclass(frozen=True, eq=False, repr=False)
class _Several(Event):
    """Events that are joined."""

    parts: tuple[Event, ...]
    symbol: ClassVar[str]

    @property
    def names(self) -> tuple[str, ...]:
        """The columns of all parts."""
        return _joined(part.names for part in self.parts)

    def __str__(self) -> str:
        return "(" + f" {self.symbol} ".join(map(str, self.parts)) + ")"


class All(_Several):
    """That all of several events hold."""

    symbol = "&"


class AnyOne(_Several):
    """That at least one of several events holds."""

    symbol = "|"


@dataclass(frozen=True, eq=False, repr=False)
class Not(Event):
    """That an event does not hold."""

    part: Event

    @property
    def names(self) -> tuple[str, ...]:
        """The columns of the event."""
        return self.part.names

    def __str__(self) -> str:
        return f"~{self.part}"


@dataclass(frozen=True, eq=False, repr=False)
class Compare(Event):
    """A comparison of an expression with a value, with several, or with another expression.

    Args:
        left: The expression.
        relation: One of <, <=, >, >=, ==, !=, ``"in"`` and ``"between"``.
        right: What it is compared with.
    """

    left: "Expression"
    relation: str
    right: Any

    @property
    def names(self) -> tuple[str, ...]:
        """The columns of both sides."""
        others = self.right.names if isinstance(self.right, Expression) else ()
        return _joined((self.left.names, others))

    def __str__(self) -> str:
        return f"({self.left} {self.relation} {self.right})"


def _joined(parts: Iterable[tuple[str, ...]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for names in parts for name in names))


class Expression(ABC):
    """A column, or arithmetic of columns and numbers."""

    # Equality is an event, so that expressions have no hash.
    __hash__ = None  # type: ignore[assignment]

    @property
    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """The columns in it."""

    @abstractmethod
    def evaluate(self, values: Mapping[str, np.ndarray]) -> np.ndarray:
        """Its value for rows whose columns have some values."""

    @property
    @abstractmethod
    def linear(self) -> tuple[dict[str, float], float] | None:
        """Factors of columns and a constant, if it is a linear function of them."""

    def __lt__(self, other: Any) -> Event:
        return Compare(self, "<", other)

    def __le__(self, other: Any) -> Event:
        return Compare(self, "<=", other)

    def __gt__(self, other: Any) -> Event:
        return Compare(self, ">", other)

    def __ge__(self, other: Any) -> Event:
        return Compare(self, ">=", other)

    def __eq__(self, other: object) -> Event:  # type: ignore[override]
        return Compare(self, "==", other)

    def __ne__(self, other: object) -> Event:  # type: ignore[override]
        return Compare(self, "!=", other)

    def isin(self, values: Iterable[Any]) -> Event:
        """That it is one of several values."""
        return Compare(self, "in", values if isinstance(values, str) else list(values))

    def between(self, low: Any, high: Any) -> Event:
        """That it is in a range, both ends included; None for an end that there is not."""
        return Compare(self, "between", (low, high))

    def __invert__(self) -> Event:
        return Compare(self, "==", False)

    def __and__(self, other: Any) -> Event:
        return Compare(self, "==", True) & as_truth(other)

    def __or__(self, other: Any) -> Event:
        return Compare(self, "==", True) | as_truth(other)

    def isna(self) -> Event:
        """Not available: gaps are summed over, and have no probability."""
        raise NotImplementedError(
            f"Not available: the model sums over gaps, and does not say how likely they are. Add "
            f"a column of booleans that says whether {self} is missing."
        )

    isnull = isna

    def notna(self) -> Event:
        """Not available; see `isna`."""
        return self.isna()

    notnull = notna

    def __bool__(self) -> bool:
        raise ValueError(f"Expected a comparison, such as {self} > 0, got {self} alone.")

    def __add__(self, other: Any) -> "Expression":
        return _Arithmetic("+", self, _as_expression(other))

    def __radd__(self, other: Any) -> "Expression":
        return _Arithmetic("+", _as_expression(other), self)

    def __sub__(self, other: Any) -> "Expression":
        return _Arithmetic("-", self, _as_expression(other))

    def __rsub__(self, other: Any) -> "Expression":
        return _Arithmetic("-", _as_expression(other), self)

    def __mul__(self, other: Any) -> "Expression":
        return _Arithmetic("*", self, _as_expression(other))

    def __rmul__(self, other: Any) -> "Expression":
        return _Arithmetic("*", _as_expression(other), self)

    def __truediv__(self, other: Any) -> "Expression":
        return _Arithmetic("/", self, _as_expression(other))

    def __rtruediv__(self, other: Any) -> "Expression":
        return _Arithmetic("/", _as_expression(other), self)

    def __pow__(self, other: Any) -> "Expression":
        return _Arithmetic("**", self, _as_expression(other))

    def __mod__(self, other: Any) -> "Expression":
        return _Arithmetic("%", self, _as_expression(other))

    def __floordiv__(self, other: Any) -> "Expression":
        return _Arithmetic("//", self, _as_expression(other))

    def __neg__(self) -> "Expression":
        return _Arithmetic("*", _Constant(-1.0), self)

    def __abs__(self) -> "Expression":
        return _Absolute(self)


class _Column(Expression):
    def __init__(self, name: str) -> None:
        self.name = name

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name,)

    def evaluate(self, values: Mapping[str, np.ndarray]) -> np.ndarray:
        return values[self.name]

    @property
    def linear(self) -> tuple[dict[str, float], float] | None:
        return {self.name: 1.0}, 0.0

    def __repr__(self) -> str:
        return f"col({self.name!r})"


class _Constant(Expression):
    def __init__(self, value: float) -> None:
        self.value = value

    @property
    def names(self) -> tuple[str, ...]:
        return ()

    def evaluate(self, values: Mapping[str, np.ndarray]) -> np.ndarray:  # noqa: ARG002
        return np.asarray(self.value)

    @property
    def linear(self) -> tuple[dict[str, float], float] | None:
        return {}, self.value

    def __repr__(self) -> str:
        return f"{self.value:g}"


class _Arithmetic(Expression):
    def __init__(self, symbol: str, left: Expression, right: Expression) -> None:
        self.symbol, self.left, self.right = symbol, left, right

    @property
    def names(self) -> tuple[str, ...]:
        return _joined((self.left.names, self.right.names))

    def evaluate(self, values: Mapping[str, np.ndarray]) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            found = SYMBOLS[self.symbol](self.left.evaluate(values), self.right.evaluate(values))
        return np.asarray(found)

    @property
    def linear(self) -> tuple[dict[str, float], float] | None:
        left, right = self.left.linear, self.right.linear
        if left is None or right is None:
            return None
        if self.symbol in "+-":
            sign = 1.0 if self.symbol == "+" else -1.0
            names = _joined((tuple(left[0]), tuple(right[0])))
            factors = {n: left[0].get(n, 0.0) + sign * right[0].get(n, 0.0) for n in names}
            return factors, left[1] + sign * right[1]
        if self.symbol == "*" and not left[0]:
            left, right = right, left
        if right[0] or self.symbol not in ("*", "/") or (self.symbol == "/" and right[1] == 0):
            return None
        factor = right[1] if self.symbol == "*" else 1 / right[1]
        return {name: factor * own for name, own in left[0].items()}, factor * left[1]

    def __repr__(self) -> str:
        return f"({self.left} {self.symbol} {self.right})"


class _Absolute(Expression):
    def __init__(self, part: Expression) -> None:
        self.part = part

    @property
    def names(self) -> tuple[str, ...]:
        return self.part.names

    def evaluate(self, values: Mapping[str, np.ndarray]) -> np.ndarray:
        return np.abs(self.part.evaluate(values))

    @property
    def linear(self) -> tuple[dict[str, float], float] | None:
        return None

    def __repr__(self) -> str:
        return f"abs({self.part})"


def _as_expression(said: Any) -> Expression:
    if isinstance(said, Expression):
        return said
    if isinstance(said, np.timedelta64) or hasattr(said, "total_seconds"):
        return _Constant(float(np.timedelta64(said) / np.timedelta64(1, "D")))
    try:
        return _Constant(float(said))
    except (TypeError, ValueError):
        raise ValueError(f"Expected a number or a column in arithmetic, got {said!r}.") from None


def col(name: str) -> Expression:
    """A column of a table, to say something of it.

    Comparisons (<, <=, >, >=, ==, !=, `Expression.isin`, `Expression.between`) make events, which
    &, | and ~ join. Arithmetic with numbers and other columns goes before comparisons.

    Args:
        name: Its name.

    Example:
        >>> event = (col("age") > 30) & ~col("city").isin(["Oslo"])
        >>> event.names
        ('age', 'city')
        >>> (col("debt") < 0.5 * col("income") - 100).names
        ('debt', 'income')
    """
    return _Column(str(name))
