"""How columns of a table are modelled: as real numbers, as codes, or as both."""

__all__ = ["Choice", "Column", "Date", "Encoded", "Number", "as_dates"]

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from .maps import Map
from .values import Values

# Values at the ends of a bounded column count as this share of the range inside it.
MARGIN = 1e-3


class Encoded(NamedTuple):
    """A column as a model takes it, NaN where nothing is known."""

    real: np.ndarray
    """Real numbers, shape (N, 0) or (N, 1)."""
    codes: np.ndarray
    """Codes, shape (N, 0) or (N, 1)."""


class Column(ABC):
    """How one column is modelled."""

    @property
    @abstractmethod
    def has_real(self) -> bool:
        """Whether it takes a real number."""

    @property
    @abstractmethod
    def num_categories(self) -> int:
        """Number of its codes; zero if it takes none."""

    @abstractmethod
    def fitted(self, values: Values) -> "Column":
        """The same kind, with what it needs to know of the values."""

    @abstractmethod
    def encode(self, values: Values) -> Encoded:
        """Values as a model takes them.

        Raises:
            ValueError: For values that the column cannot have.
        """

    @abstractmethod
    def decode(self, encoded: Encoded) -> np.ndarray:
        """Values (N,) from what a model draws; NaN, None or NaT where nothing is known."""

    @abstractmethod
    def log_slope(self, encoded: Encoded) -> np.ndarray:
        """What to add to a log-density to have it in the column's own units, (N,).

        Of integers, the logarithm of the width of the interval that is rounded to each. Zero for
        codes, and where nothing is known.
        """

    @abstractmethod
    def __str__(self) -> str:
        """A few words, for the printed schema."""


@dataclass(frozen=True)
class Number(Column):
    """A numeric column.

    Args:
        map: From its own units to numbers of about unit size.
        integer: Whether it takes integers alone. One stands for the interval around it that
            rounds to it.
        lowest: Of integers, the smallest that there is.
        point: A value that many rows have exactly, such as zero, if there is one. A code then
            tells whether a row has it.
    """

    map: Map = field(default_factory=lambda: Map("linear"))
    integer: bool = False
    lowest: int | None = None
    point: float | None = None

    @property
    def has_real(self) -> bool:
        """True."""
        return True

    @property
    def num_categories(self) -> int:
        """Two if there is a point, else zero."""
        return 0 if self.point is None else 2

    def fitted(self, values: Values) -> "Number":
        """The same, with location and scale of the values."""
        x = values.numbers()
        x = x[np.isfinite(x)]
        if self.point is not None:
            x = x[x != self.point]
        return replace(self, map=self.map.fitted(self._inside(values.name, x)))

    def encode(self, values: Values) -> Encoded:
        """Real numbers, and codes that are one at the point."""
        x = values.numbers()
        known = ~np.isnan(x)
        at = known & (x == self.point) if self.point is not None else np.zeros_like(known)
        real = np.full(len(x), np.nan)
        rest = known & ~at
        real[rest] = self.map.forward(self._inside(values.name, x[rest]))
        codes = np.where(known, at, np.nan)[:, None] if self.point is not None else _none(len(x))
        return Encoded(real[:, None], codes)

    def _inside(self, name: str, x: np.ndarray) -> np.ndarray:
        """Values, those at the ends of a bounded range moved inside it."""
        if self.integer and not np.array_equal(x, np.round(x)):
            first = x[x != np.round(x)][0]
            raise ValueError(f"Expected integers in column {name!r}, got {first:g}.")
        if self.integer and self.lowest is not None and (x < self.lowest).any():
            raise ValueError(
                f"Expected column {name!r} to be at least {self.lowest}, got {x.min():g}."
            )
        if self.map.form == "logit":
            inner = MARGIN * (self.map.high - self.map.low)
            x = np.where(x == self.map.low, self.map.low + inner, x)
            x = np.where(x == self.map.high, self.map.high - inner, x)
        out = ~self.map.reaches(x)
        if out.any():
            limit = f"above {self.map.low:g}" if self.map.form != "linear" else "finite"
            if self.map.form == "logit":
                limit = f"from {self.map.low:g} to {self.map.high:g}"
            raise ValueError(f"Expected column {name!r} to be {limit}, got {x[out][0]:g}.")
        return x

    def whole(self, z: np.ndarray) -> np.ndarray:
        """The integers that encoded numbers are rounded to."""
        x = np.round(self.map.inverse(z))
        return x if self.lowest is None else np.maximum(x, self.lowest)

    def from_real(self, z: np.ndarray) -> np.ndarray:
        """Values of encoded numbers alone, rounded if they are integers."""
        return self.whole(z) if self.integer else self.map.inverse(z)

    def decode(self, encoded: Encoded) -> np.ndarray:
        """Values (N,), rounded if they are integers."""
        x = self.from_real(encoded.real[:, 0])
        if self.point is not None:
            code = encoded.codes[:, 0]
            x = np.where(code == 1, self.point, np.where(np.isnan(code), np.nan, x))
        return x

    def interval(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The encoded numbers that are rounded to integers x: their bounds, (N,) each."""
        low, high = self._edges(x)
        return low if self.lowest is None else np.where(x <= self.lowest, -np.inf, low), high

    def _edges(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.map.forward(x - 0.5), self.map.forward(x + 0.5)

    def log_slope(self, encoded: Encoded) -> np.ndarray:
        """Logarithm of the slope of the map, or of the width of intervals, where it is known."""
        z = encoded.real[:, 0]
        known = ~np.isnan(z)
        total = np.zeros(len(z))
        x = self.from_real(z[known])
        if self.integer:
            low, high = self._edges(x)
            total[known] = np.log(high - low)
        else:
            total[known] = self.map.log_slope(x)
        return total

    def __str__(self) -> str:
        names = {"linear": "real", "log": "positive", "logit": "bounded"}
        words = names[self.map.form]
        if self.integer:
            words = "integer" if self.lowest is None else f"count from {self.lowest}"
        elif self.map.form == "log" and self.map.low:
            words = f"above {self.map.low:g}"
        elif self.map.form == "logit":
            words = f"from {self.map.low:g} to {self.map.high:g}"
        return words if self.point is None else f"{words}, or {self.point:g}"


@dataclass(frozen=True)
class Date(Number):
    """A column of dates or times, in days since 1970.

    Args:
        map: From days to numbers of about unit size.
        integer: Whether it takes whole days alone.
        lowest: The first day that there is.
        point: A date that many rows have exactly, if there is one.
    """

    def decode(self, encoded: Encoded) -> np.ndarray:
        """Dates (N,), NaT where nothing is known."""
        return as_dates(super().decode(encoded), "D" if self.integer else "us")

    def __str__(self) -> str:
        return "date" if self.integer else "time"


@dataclass(frozen=True)
class Choice(Column):
    """A column of a few values: categories, ordered or not, or booleans.

    Args:
        values: What there is, in order of the codes.
        ordered: Whether the order means something.
    """

    values: tuple[Any, ...] = ()
    ordered: bool = False

    @property
    def has_real(self) -> bool:
        """False."""
        return False

    @property
    def num_categories(self) -> int:
        """Number of values."""
        return len(self.values)

    def fitted(self, values: Values) -> "Choice":
        """The same, with the values that occur if none were given."""
        return self if self.values else replace(self, values=tuple(values.distinct()))

    def encode(self, values: Values) -> Encoded:
        """Codes; what is none of the values counts as not known."""
        code_of = {value: float(code) for code, value in enumerate(self.values)}
        codes = np.array([code_of.get(value, np.nan) for value in values.labels()])
        return Encoded(_none(len(codes)), codes.reshape(-1, 1))

    def decode(self, encoded: Encoded) -> np.ndarray:
        """Labels (N,), None where nothing is known."""
        code = encoded.codes[:, 0]
        result = np.empty(len(code), dtype=object)
        for row, number in enumerate(code):
            result[row] = None if np.isnan(number) else self.values[int(number)]
        return result

    def log_slope(self, encoded: Encoded) -> np.ndarray:
        """Zero."""
        return np.zeros(len(encoded.codes))

    def __str__(self) -> str:
        if set(self.values) == {False, True} and all(isinstance(v, bool) for v in self.values):
            return "boolean"
        return f"{'ordered' if self.ordered else 'one of'} {len(self.values)}"


def as_dates(days: np.ndarray, unit: str) -> np.ndarray:
    """Days since 1970 as dates and times of a unit, NaT where they are not known."""
    per_day = np.timedelta64(1, "D") / np.array(1, dtype=f"timedelta64[{unit}]")
    known = np.isfinite(days)
    result = np.full(len(days), "NaT", dtype=f"datetime64[{unit}]")
    result[known] = np.round(days[known] * per_day).astype("int64").astype(result.dtype)
    return result


def _none(count: int) -> np.ndarray:
    return np.empty((count, 0))
