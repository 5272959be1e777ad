"""What kind a column is, by its values."""

__all__ = ["LeftOut", "guess"]

from dataclasses import dataclass

import numpy as np

from .columns import Choice, Column, Date, Number, as_dates
from .maps import Map
from .values import Values, is_date, is_number

# Integers of so few different values are ordered categories.
FEW = 6
# Labels of more different values are left out.
MANY = 200
# A value that so many rows have exactly is modelled by itself.
POINT = 0.2
# A share of different values among labels from which on they name rows.
NAMES = 0.5
# A share of labels that are numbers from which on they are meant as such.
NUMBERS = 0.8
# Real numbers with fewer different values than this share of all may be rounded ones.
TIES = 0.5
# Most decimals that rounded numbers have.
MOST_DECIMALS = 4
# What narwhals calls spans of time, and times of day.
SPANS = ("Duration", "Time")
# How much less skewed logarithms must be to be preferred.
LESS_SKEWED = 0.5


@dataclass(frozen=True)
class LeftOut:
    """Why a column is not modelled."""

    reason: str


def guess(values: Values) -> Column | LeftOut:
    """The kind of a column."""
    known = ~values.missing
    if not known.any():
        return LeftOut("has no values")
    if values.sort == "boolean":
        return Choice((False, True))
    if values.dtype.startswith(SPANS):
        return LeftOut("holds spans or times of day: make them numbers first, such as hours")
    if values.sort == "label":
        return _label(values, int(known.sum()))
    x = values.raw[known]
    finite = np.isfinite(x)
    if not finite.all():
        raise ValueError(
            f"Expected finite values in column {values.name!r}, got {x[~finite][0]}. Replace "
            f"them, or mark them as missing."
        )
    if (x == x[0]).all():
        return LeftOut(f"is constant, {_shown(values, x[0])}")
    whole = bool((x == np.round(x)).all())
    if values.sort == "date":
        return Date(Map("linear"), step=1.0 if whole else None)
    return _number(x, _step(x))


def _label(values: Values, count: int) -> Column | LeftOut:
    found = values.distinct()
    if len(found) == 1:
        return LeftOut(f"is constant, {found[0]!r}")
    numbers = [label for label in found if is_number(label)]
    if len(numbers) > NUMBERS * len(found) and not values.ordered:
        others = [label for label in found if not is_number(label)][:3]
        also = f", and {others}" if others else ""
        return LeftOut(f"holds numbers as text{also}: make it numeric first")
    if sum(map(is_date, found)) > NUMBERS * len(found) and not values.ordered:
        return LeftOut("holds dates as text: make them dates first, as by pandas.to_datetime")
    if len(found) > MANY or (count > 20 and len(found) > NAMES * count):
        return LeftOut(f"has {len(found)} different labels among {count}: names of rows, maybe")
    return Choice(tuple(found), values.ordered)


def _step(x: np.ndarray) -> float | None:
    """What all numbers are multiples of: one, or a decimal fraction that explains their ties."""
    if (x == np.round(x)).all():
        return 1.0
    if len(np.unique(x)) > TIES * len(x):
        return None
    for decimals in range(1, MOST_DECIMALS + 1):
        if (np.abs(np.round(x, decimals) - x) <= 1e-9 * np.maximum(1, np.abs(x))).all():
            return float(10.0**-decimals)
    return None


def _number(x: np.ndarray, step: float | None) -> Column | LeftOut:
    whole = step == 1
    different, counts = np.unique(x, return_counts=True)
    if whole and len(x) > 20 and len(different) == len(x) and np.ptp(x) == len(x) - 1:
        return LeftOut("numbers the rows")
    if whole and len(different) <= FEW:
        return Choice(tuple(int(value) for value in different), ordered=True)
    point = None
    if counts.max() > max(FEW, POINT * len(x)):
        point = float(different[counts.argmax()])
        x = x[x != point]
    if step is not None:
        least = x.min() if point is None else min(x.min(), point)
        low = step if abs(least - step) < 1e-9 else 0.0
        if least < 0 or not _is_skewed(x - (low - step)):
            lowest = None if least < 0 else 0.0
            return Number(Map("linear"), step=step, lowest=lowest, point=point)
        return Number(Map("log", low - step), step=step, lowest=low, point=point)
    some = x[x > 0]
    if x.min() >= 0 and point in (None, 0.0) and _is_skewed(some):
        zero = 0.0 if len(some) < len(x) else point
        return Number(Map("log"), point=zero)
    return Number(Map("linear"), lowest=0.0 if x.min() >= 0 else None, point=point)


def _is_skewed(x: np.ndarray) -> bool:
    """Whether positive values are more like a normal by their logarithms."""
    return abs(_skewness(np.log(x))) + LESS_SKEWED < abs(_skewness(x))


def _skewness(x: np.ndarray) -> float:
    spread = x.std()
    return 0.0 if spread == 0 else float((((x - x.mean()) / spread) ** 3).mean())


def _shown(values: Values, x: float) -> str:
    if values.sort == "date":
        return str(as_dates(np.array([x]), "s")[0])
    return f"{x:g}"
