"""The values of one column, whatever frame they came from."""

__all__ = ["DAY", "Values", "as_dates_of_day", "hint", "is_date", "is_number", "to_days"]

import datetime
import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

DATE = re.compile(r"\d{4}-\d{2}-\d{2}([T ][\d:.]*)?$")

DAY = np.timedelta64(1, "D")

Sort = Literal["number", "boolean", "date", "label"]


@dataclass(frozen=True)
class Values:
    """One column of a frame.

    Args:
        name: Of the column.
        sort: What its values are.
        raw: Floats with NaN for numbers and for dates, in days since 1970; else objects with None.
        dtype: What narwhals calls their type.
        categories: All values that there can be, where the frame tells.
        ordered: Whether the frame tells that they are ordered.
        native: What pandas calls their type; empty for other libraries.
    """

    name: str
    sort: Sort
    raw: np.ndarray
    dtype: str = ""
    categories: tuple[Any, ...] | None = None
    ordered: bool = False
    native: str = ""

    def __len__(self) -> int:
        return len(self.raw)

    @cached_property
    def missing(self) -> np.ndarray:
        """Which are not known, (N,)."""
        if self.raw.dtype == object:
            return np.array([value is None for value in self.raw], dtype=bool)
        return np.isnan(self.raw)

    def numbers(self) -> np.ndarray:
        """The values as floats, (N,), NaN where they are not known.

        Raises:
            ValueError: If they are no numbers.
        """
        if self.raw.dtype != object:
            return self.raw
        try:
            return np.array([np.nan if v is None else float(v) for v in self.raw])
        except (TypeError, ValueError):
            wrong = next(v for v in self.raw if v is not None and not is_number(v))
            raise ValueError(
                f"Expected numbers in column {self.name!r}, got {wrong!r}. Make it categorical."
            ) from None

    def labels(self) -> list[Any]:
        """The values as objects that can be compared, None where they are not known."""
        if self.raw.dtype == object:
            return list(self.raw)
        return [None if np.isnan(v) else int(v) if v == int(v) else float(v) for v in self.raw]

    def distinct(self) -> list[Any]:
        """The different values that are known, in order."""
        if self.categories is not None:
            return list(self.categories)
        found = {value for value in self.labels() if value is not None}
        try:
            return sorted(found)
        except TypeError:  # of several types
            return sorted(found, key=lambda value: (type(value).__name__, str(value)))


def hint(given: Any, known: Iterable[Any]) -> str:
    """The end of a message: what may have been meant, if something is near."""
    values = {str(value): value for value in known}
    near = difflib.get_close_matches(str(given), list(values), n=1)
    return f" Did you mean {values[near[0]]!r}?" if near else ""


def is_number(value: Any) -> bool:
    """Whether a value is a number, or text that is one."""
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def is_date(value: Any) -> bool:
    """Whether a value is text that is a date or a time, such as 2024-05-31."""
    return isinstance(value, str) and DATE.match(value) is not None


def as_dates_of_day(values: Values) -> Values:
    """Dates in place of a column of `datetime.date` objects, or of dates as text.

    Raises:
        ValueError: If it holds something else.
    """
    days = np.full(len(values), np.nan)
    for row, value in enumerate(values.raw):
        if value is None:
            continue
        try:
            days[row] = to_days(value)
        except (TypeError, ValueError):
            raise ValueError(f"Expected dates in column {values.name!r}, got {value!r}.") from None
    return Values(values.name, "date", days, "Date")


def to_days(said: Any) -> float:
    """A date or a time, also as text, in days since 1970 in UTC; NaN for NaT.

    Raises:
        ValueError: If it is none.
        TypeError: If it is none.
    """
    said = _in_utc(said)
    stamp = np.datetime64(said) if isinstance(said, str) else np.datetime64(said, "us")
    return float((stamp.astype("datetime64[us]") - np.datetime64(0, "us")) / DAY)


def _in_utc(said: Any) -> Any:
    """A time with a zone or an offset as one without, in UTC; other things as they are."""
    if isinstance(said, str) and len(said) > 10:
        try:
            stamp = datetime.datetime.fromisoformat(said)
        except ValueError:
            return said
        said = stamp if stamp.tzinfo is not None else said
    if getattr(said, "tzinfo", None) is None:
        return said
    return said.astimezone(datetime.UTC).replace(tzinfo=None)
