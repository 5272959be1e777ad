"""Rows of a table as codes: labels as they are, numbers by their bins."""

__all__ = ["Coded", "Coding", "Division"]

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from ..core.advice import warn_user
from .bins import Bins, Segments
from .columns import Choice, Number
from .frames import Frame
from .regions import Intervals, Labels, Region
from .schema import Schema, warn_of_unseen
from .values import Values


@dataclass(frozen=True)
class Division:
    """A column in parts that several sets of values hold or do not hold.

    Args:
        segments: The parts; of labels, one for each.
        belongs: Which sets hold them, (sets, S).
    """

    segments: Segments
    belongs: np.ndarray

    @property
    def mass(self) -> np.ndarray:
        """Probabilities of the sets given each code, (sets, codes)."""
        return self.segments.mass(self.belongs)


class Coding:
    """The codes of all columns of a table.

    Args:
        schema: The columns.
        bins: Of numeric columns, by name.
    """

    def __init__(self, schema: Schema, bins: Mapping[str, Bins]) -> None:
        self.schema, self.bins = schema, dict(bins)
        self.names = schema.names
        self._whole: dict[str, Division] = {}

    @classmethod
    def of(
        cls, schema: Schema, values: Mapping[str, Values], most_bins: int, rows: np.ndarray
    ) -> "Coding":
        """Codes for the values of a frame.

        Args:
            schema: The columns.
            values: Those of rows of the table, as `Schema.values` reads them.
            most_bins: About the largest number of bins of a numeric column.
            rows: Which rows decide on bins, (N,).
        """
        missing = [name for name in schema.names if name not in values]
        if missing:
            raise ValueError(f"Expected all columns of the schema, got a frame without {missing}.")
        bins = {}
        for name, column in schema.columns.items():
            if isinstance(column, Number):
                x = values[name].numbers()
                column.reached(name, x[~np.isnan(x) & (x != column.point)])
                bins[name] = Bins.of(column, x[rows], most_bins)
        return cls(schema, bins)

    @property
    def categories(self) -> tuple[int, ...]:
        """Numbers of codes of all columns."""
        return tuple(
            self.bins[name].count if name in self.bins else self.schema[name].num_categories
            for name in self.names
        )

    @property
    def ordered(self) -> tuple[bool, ...]:
        """Whether neighbouring codes of a column are alike."""
        columns = self.schema.columns
        return tuple(not isinstance(c, Choice) or c.ordered for c in columns.values())

    def encode(self, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
        """Codes of rows, minus one where nothing is known, and log p(x | code): (N, J) each.

        The second is zero for labels, and where nothing is known. Labels that the schema does not
        know count as not known, with a warning.

        Args:
            frame: Rows of the table. Columns may be missing, and others are not looked at.

        Raises:
            ValueError: If the frame has none of the columns, or values do not fit.
        """
        return self.encode_values(self.schema.values(frame))

    def encode_values(self, values: Mapping[str, Values]) -> tuple[np.ndarray, np.ndarray]:
        """The same of columns that `Schema.values` has read from a frame."""
        size = len(next(iter(values.values())))
        codes = np.full((size, len(self.names)), -1)
        log_density = np.zeros((size, len(self.names)))
        for j, name in enumerate(self.names):
            if name not in values:
                continue
            own = values[name]
            column = self.schema[name]
            warn_of_unseen(name, column, own)
            if isinstance(column, Number):
                x = own.numbers()
                outside = ~column.can_be(x)
                if outside.any():
                    warn_user(
                        f"Column {name!r}, {column}, cannot have values such as "
                        f"{x[outside][0]:g}: they count as missing.",
                    )
                    x = np.where(outside, np.nan, x)
                codes[:, j], log_density[:, j] = self.encode_numbers(name, x)
            else:
                found = column.encode(own).codes[:, 0]
                codes[:, j] = np.where(np.isnan(found), -1, found)
        return codes, log_density

    def encode_numbers(self, name: str, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Codes of numbers of one column, and log p(x | code); see `Bins.encode`."""
        try:
            return self.bins[name].encode(x)
        except ValueError as error:
            raise ValueError(str(error).replace("column ''", f"column {name!r}")) from None

    def divide(self, name: str, regions: Sequence[Region | None]) -> Division:
        """A column in parts that each of several sets of values holds or does not.

        Args:
            name: The column.
            regions: The sets; None for all values.
        """
        if all(region is None for region in regions):
            if name not in self._whole:
                self._whole[name] = self._divide(name, [None])
            whole = self._whole[name]
            return replace(whole, belongs=np.repeat(whole.belongs, len(regions), 0))
        return self._divide(name, regions)

    def _divide(self, name: str, regions: Sequence[Region | None]) -> Division:
        if name in self.bins:
            sets = [Intervals.everything() if r is None else r for r in regions]
            assert all(isinstance(region, Intervals) for region in sets)
            return Division(*self.bins[name].cut(sets))  # type: ignore[arg-type]
        count = self.schema[name].num_categories
        belongs = np.ones((len(regions), count), dtype=bool)
        for row, region in zip(belongs, regions, strict=True):
            if region is not None:
                assert isinstance(region, Labels)
                row[:] = np.isin(np.arange(count), list(region.codes))
        code, nothing = np.arange(count), np.zeros(count)
        return Division(Segments(code, nothing + 1, code, code, nothing, code), belongs)

    def is_density(self, name: str, x: float) -> bool:
        """Whether one value of a numeric column has a density, not a probability."""
        own = self.bins[name]
        return own.column.step is None and x not in own.segments.atom

    def labels(self, name: str, codes: np.ndarray) -> np.ndarray:
        """Labels of codes (N,), None for minus one; numbers of a numeric choice as they are."""
        column = self.schema[name]
        assert isinstance(column, Choice)
        values = np.empty(len(column.values) + 1, dtype=object)
        values[:-1] = column.values
        return values[codes]

    def to_plain(self) -> dict[str, Any]:
        """The bins as lists of numbers, as JSON holds them."""
        return {name: own.to_plain() for name, own in self.bins.items()}

    @classmethod
    def from_plain(cls, schema: Schema, plain: Mapping[str, Any]) -> "Coding":
        """The codes that `to_plain` described."""
        bins = {}
        for name, own in plain.items():
            column = schema[name]
            assert isinstance(column, Number)
            bins[name] = Bins.from_plain(column, own)
        return cls(schema, bins)


class Coded(NamedTuple):
    """Rows of a table as codes."""

    coding: Coding
    codes: np.ndarray
    """Shape (N, J), minus one where nothing is known."""
    log_density: np.ndarray
    """Log p(x | code) of each cell, (N, J)."""
    outside: np.ndarray
    """Which rows are held out, (N,)."""
