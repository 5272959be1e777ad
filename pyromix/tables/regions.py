"""Sets of values of one column: of numbers, unions of intervals; of labels, some of them."""

__all__ = ["Intervals", "Labels", "Region"]

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

Cut = tuple[float, int]
"""A place just before a number (0) or just after it (1)."""

LOWEST, HIGHEST = (-math.inf, 0), (math.inf, 1)


@dataclass(frozen=True)
class Intervals:
    """A union of disjoint intervals of numbers, with or without their ends.

    Args:
        spans: Where each begins and ends, in ascending order.
    """

    spans: tuple[tuple[Cut, Cut], ...]

    @classmethod
    def everything(cls) -> "Intervals":
        """All numbers."""
        return cls(((LOWEST, HIGHEST),))

    @classmethod
    def between(
        cls, low: float, high: float, *, with_low: bool = True, with_high: bool = True
    ) -> "Intervals":
        """One interval; empty if its ends leave no room."""
        start, stop = (low, 0 if with_low else 1), (high, 1 if with_high else 0)
        return cls(((start, stop),) if start < stop else ())

    @classmethod
    def points(cls, numbers: Iterable[float]) -> "Intervals":
        """Some numbers."""
        return cls(tuple(((x, 0), (x, 1)) for x in sorted(set(numbers))))

    @property
    def empty(self) -> bool:
        """Whether it holds nothing."""
        return not self.spans

    @property
    def point(self) -> float | None:
        """The one number that it holds, if there is just one."""
        if len(self.spans) == 1 and self.spans[0][0][0] == self.spans[0][1][0]:
            return self.spans[0][0][0]
        return None

    @property
    def all_points(self) -> bool:
        """Whether it holds single numbers alone."""
        return bool(self.spans) and all(start[0] == stop[0] for start, stop in self.spans)

    def __and__(self, other: "Intervals") -> "Intervals":
        found = []
        for start, stop in self.spans:
            for begin, end in other.spans:
                low, high = max(start, begin), min(stop, end)
                if low < high:
                    found.append((low, high))
        return Intervals(tuple(sorted(found)))

    def __or__(self, other: "Intervals") -> "Intervals":
        return ~(~self & ~other)

    def __invert__(self) -> "Intervals":
        cuts = [LOWEST, *(cut for span in self.spans for cut in span), HIGHEST]
        pairs = zip(cuts[::2], cuts[1::2], strict=True)
        return Intervals(tuple((low, high) for low, high in pairs if low < high))

    def scaled(self, factor: float, shift: float) -> "Intervals":
        """The numbers x for which factor * x + shift is in here."""
        spans = []
        for start, stop in self.spans:
            low, high = ((cut[0] - shift) / factor for cut in (start, stop))
            ends = [(low, start[1]), (high, stop[1])]
            if factor < 0:
                ends = [(high, 1 - stop[1]), (low, 1 - start[1])]
            spans.append((ends[0], ends[1]))
        return Intervals(tuple(sorted(spans)))

    def whole(self, step: float) -> "Intervals":
        """Intervals around the multiples of a step in here, half a step on both sides."""
        spans = []
        for (low, after), (high, past) in self.spans:
            first, last = low, high
            if math.isfinite(low):
                first = _near(low / step)
                first = first + 1 if after and first == math.floor(first) else math.ceil(first)
                first = (first - 0.5) * step
            if math.isfinite(high):
                last = _near(high / step)
                last = last - 1 if not past and last == math.floor(last) else math.floor(last)
                last = (last + 0.5) * step
            if first < last:
                spans.append(((first, 0), (last, 1)))
        return Intervals(tuple(spans))

    def contains(self, x: np.ndarray) -> np.ndarray:
        """Which numbers are in here, of the shape of x; none that is NaN."""
        inside = np.zeros(np.shape(x), dtype=bool)
        for (low, after), (high, past) in self.spans:
            above = x > low if after else x >= low
            inside |= above & (x <= high if past else x < high)
        return inside


def _near(x: float) -> float:
    """A number, or the integer that it is but for rounding."""
    whole = round(x)
    return float(whole) if abs(x - whole) <= 1e-9 * max(1.0, abs(x)) else x


@dataclass(frozen=True)
class Labels:
    """Some of the labels of a column, by their codes.

    Args:
        codes: Those that are in here.
        count: How many labels there are.
    """

    codes: frozenset[int]
    count: int

    @property
    def empty(self) -> bool:
        """Whether it holds nothing."""
        return not self.codes

    def __and__(self, other: "Labels") -> "Labels":
        return Labels(self.codes & other.codes, self.count)

    def __or__(self, other: "Labels") -> "Labels":
        return Labels(self.codes | other.codes, self.count)

    def __invert__(self) -> "Labels":
        return Labels(frozenset(range(self.count)) - self.codes, self.count)


Region: TypeAlias = Intervals | Labels
