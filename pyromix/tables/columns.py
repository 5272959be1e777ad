"""How columns of a table are modelled: as real numbers, as codes, or as both."""

__all__ = ["Choice", "Column", "Date", "Encoded", "Number", "as_dates"]

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from .maps import Map
from .regions import Intervals
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
        step: What all values are multiples of, one for integers; None for any numbers. A multiple
            stands for the interval around it that is rounded to it.
        lowest: The smallest value that there is.
        point: A value that many rows have exactly, such as zero, if there is one. A code then
            tells whether a row has it.
    """

    map: Map = field(default_factory=lambda: Map("linear"))
    step: float | None = None
    lowest: float | None = None
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
        return replace(self, map=self.map.fitted(self.reached(values.name, x)))

    def encode(self, values: Values) -> Encoded:
        """Real numbers, and codes that are one at the point."""
        x = values.numbers()
        known = ~np.isnan(x)
        at = known & (x == self.point) if self.point is not None else np.zeros_like(known)
        real = np.full(len(x), np.nan)
        rest = known & ~at
        real[rest] = self.map.forward(self.reached(values.name, x[rest]))
        codes = np.where(known, at, np.nan)[:, None] if self.point is not None else _none(len(x))
        return Encoded(real[:, None], codes)

    def reached(self, name: str, x: np.ndarray) -> np.ndarray:
        """Values that the column can have: rounded to steps, and inside the ends of a range.

        Args:
            name: What a message calls the column.
            x: Values, none of them NaN.

        Raises:
            ValueError: For values that it cannot have.
        """
        if self.step is not None:
            whole = self.on_grid(x)
            if self.step == 1 and (np.abs(whole - x) > 1e-6).any():
                wrong = x[np.abs(whole - x) > 1e-6][0]
                what = "whole days" if isinstance(self, Date) else "integers"
                raise ValueError(f"Expected {what} in column {name!r}, got {wrong:g}.")
            x = whole
        if self.lowest is not None and (x < self.lowest).any():
            raise ValueError(
                f"Expected column {name!r} to be at least {self.lowest:g}, got {x.min():g}."
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

    def on_grid(self, x: np.ndarray) -> np.ndarray:
        """The nearest multiples of the step."""
        assert self.step is not None
        if self.step == 1:
            return np.round(x) + 0.0  # no negative zeros
        decimals = max(0, math.ceil(-math.log10(self.step) - 1e-9)) + 2
        return np.round(np.round(x / self.step) * self.step, decimals) + 0.0

    def from_real(self, z: np.ndarray) -> np.ndarray:
        """Values of encoded numbers alone, rounded if there is a step."""
        x = self.map.inverse(z)
        if self.lowest is not None:
            x = np.maximum(x, self.lowest)
        return x if self.step is None else self.on_grid(x)

    def decode(self, encoded: Encoded) -> np.ndarray:
        """Values (N,), rounded if there is a step."""
        x = self.from_real(encoded.real[:, 0])
        if self.point is not None:
            code = encoded.codes[:, 0]
            x = np.where(code == 1, self.point, np.where(np.isnan(code), np.nan, x))
        return x

    def edges(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The encoded numbers that are half a step from multiples x: their bounds, (N,) each."""
        assert self.step is not None
        return self.map.forward(x - 0.5 * self.step), self.map.forward(x + 0.5 * self.step)

    def interval(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The encoded numbers that are rounded to multiples x: their bounds, (N,) each."""
        low, high = self.edges(x)
        return low if self.lowest is None else np.where(x <= self.lowest, -np.inf, low), high

    def bounds(self, low: float, high: float) -> tuple[float, float]:
        """Encoded numbers of a range, cut off where the column ends; zeros if none is left."""
        if self.lowest is not None:
            low = max(low, self.lowest - 0.5 * (self.step or 0.0))
        if self.map.form != "linear":
            low = max(low, self.map.low)
        if self.map.form == "logit":
            high = min(high, self.map.high)
        if not low < high:
            return 0.0, 0.0
        start, stop = self.map.forward(np.array([low, high])).tolist()
        return start, stop

    def can_be(self, x: np.ndarray) -> np.ndarray:
        """Which finite values are in the range of the column; others are not judged."""
        closed = np.isin(x, [self.map.low, self.map.high]) & (self.map.form == "logit")
        inside = self.map.reaches(x) | closed
        if self.lowest is not None:
            inside &= x >= self.lowest - 0.5 * (self.step or 0.0)
        return np.asarray(inside | (x == self.point) | ~np.isfinite(x))

    def has_mass(self, x: float) -> bool:
        """Whether one value has a probability, not a density."""
        return self.step is not None or x == self.point

    def meets(self, region: Intervals) -> bool:
        """Whether it can have values of a set."""
        if self.point is not None and bool(region.contains(np.array(self.point))):
            return True
        if self.step is not None:
            region = region.whole(self.step)
        for (low, _), (high, _) in region.spans:
            if low == high:
                closed = self.map.form == "logit" and low in (self.map.low, self.map.high)
                if bool(self.map.reaches(np.array(low))) or closed:
                    return True
                continue
            start, stop = self.bounds(low, high)
            if start < stop:
                return True
        return False

    def log_slope(self, encoded: Encoded) -> np.ndarray:
        """Logarithm of the slope of the map, or of the width of intervals, where it is known."""
        z = encoded.real[:, 0]
        known = ~np.isnan(z)
        total = np.zeros(len(z))
        x = self.from_real(z[known])
        if self.step is not None:
            low, high = self.edges(x)
            total[known] = np.log(high - low)
        else:
            total[known] = self.map.log_slope(x)
        return total

    def __str__(self) -> str:
        names = {"linear": "real", "log": "positive", "logit": "bounded"}
        words = names[self.map.form]
        if self.step == 1:
            words = "integer" if self.lowest is None else f"count from {self.lowest:g}"
        elif self.map.form == "log" and self.map.low:
            words = f"above {self.map.low:g}"
        elif self.map.form == "logit":
            words = f"from {self.map.low:g} to {self.map.high:g}"
        elif self.lowest is not None and self.map.form == "linear":
            words += f" from {self.lowest:g}"
        if self.step not in (None, 1):
            words += f" in steps of {self.step:g}"
        return words if self.point is None else f"{words}, or {self.point:g}"


@dataclass(frozen=True)
class Date(Number):
    """A column of dates or times, in days since 1970.

    Args:
        map: From days to numbers of about unit size.
        step: One if it takes whole days alone.
        lowest: The first day that there is.
        point: A date that many rows have exactly, if there is one.
    """

    def decode(self, encoded: Encoded) -> np.ndarray:
        """Dates (N,), NaT where nothing is known."""
        return as_dates(super().decode(encoded), self.unit)

    @property
    def unit(self) -> str:
        """The unit of its dates, as NumPy calls it."""
        return "us" if self.step is None else "D"

    def __str__(self) -> str:
        return "time" if self.step is None else "date"


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

    @property
    def numeric(self) -> bool:
        """Whether its values are numbers, so that arithmetic with them means something."""
        return all(
            isinstance(v, int | float | np.number) and not isinstance(v, bool | np.bool_)
            for v in self.values
        )

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
    """Days since 1970 as dates and times of a unit, of any shape; NaT where they are not known."""
    per_day = np.timedelta64(1, "D") / np.array(1, dtype=f"timedelta64[{unit}]")
    known = np.isfinite(days)
    result = np.full(np.shape(days), "NaT", dtype=f"datetime64[{unit}]")
    result[known] = np.round(days[known] * per_day).astype("int64").astype(result.dtype)
    return result


def _none(count: int) -> np.ndarray:
    return np.empty((count, 0))
