"""What the columns of a table are, and how a model sees them."""

__all__ = [
    "Schema",
    "boolean",
    "bounded",
    "categorical",
    "count",
    "date",
    "integer",
    "ordered",
    "positive",
    "real",
]

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from ..core.advice import warn_user
from ..evidence.pieces import Evidence
from .cells import Cell, cells_of, check_known
from .columns import Choice, Column, Date, Encoded, Number, as_dates
from .events import Event
from .frames import Frame, library_of, read, write
from .inference import LeftOut, guess
from .maps import Map
from .plain import column_from_plain, column_to_plain, values_from_plain, values_to_plain
from .statements import evidence_of
from .values import Values, as_dates_of_day

# Values of a column that are kept, so that its kind can be changed later.
KEPT = 1000


def real(step: float | None = None, point: float | None = None) -> Column:
    """Any real number.

    Args:
        step: What all values are multiples of, such as 0.01, if they are rounded.
        point: A value that many rows have exactly.
    """
    return Number(Map("linear"), step=check_step(step), point=point)


def positive(low: float = 0.0, step: float | None = None, point: float | None = None) -> Column:
    """Real numbers above a bound, modelled by logarithms.

    Args:
        low: The bound.
        step: What all values are multiples of, such as 0.01, if they are rounded: then the bound
            is the smallest of them.
        point: A value that many rows have exactly, such as zero.
    """
    if step is None:
        return Number(Map("log", low), point=point)
    check_step(step)
    return Number(Map("log", low - step), step=float(step), lowest=low, point=point)


def check_step(step: float | None) -> float | None:
    """Checks what values are multiples of.

    Raises:
        ValueError: If it is not positive.
    """
    if step is not None and not 0 < step < np.inf:
        raise ValueError(f"Expected a positive step, got {step!r}.")
    return None if step is None else float(step)


def bounded(low: float, high: float, point: float | None = None) -> Column:
    """Real numbers between two bounds, modelled by logits.

    Args:
        low: The lower bound.
        high: The upper bound.
        point: A value that many rows have exactly.

    Raises:
        ValueError: If the bounds leave no room.
    """
    if not low < high:
        raise ValueError(f"Expected low < high, got {low!r} and {high!r}.")
    return Number(Map("logit", low, high), point=point)


def integer(point: int | None = None) -> Column:
    """Integers, negative ones too.

    Args:
        point: A value that so many rows have that it is better modelled by itself.
    """
    return Number(Map("linear"), step=1.0, point=point)


def count(low: int = 0, point: int | None = None) -> Column:
    """Integers from a smallest one on, modelled by logarithms.

    Args:
        low: The smallest.
        point: A value that so many rows have that it is better modelled by itself.
    """
    return Number(Map("log", low - 1), step=1.0, lowest=low, point=point)


def categorical(values: Iterable[Any] = ()) -> Column:
    """One of several values, without an order.

    Args:
        values: What there is; by default what occurs.
    """
    return Choice(tuple(values))


def ordered(values: Iterable[Any] = ()) -> Column:
    """One of several values, with an order.

    Args:
        values: What there is, in order; by default what occurs, sorted.
    """
    return Choice(tuple(values), ordered=True)


def boolean() -> Column:
    """False or true."""
    return Choice((False, True))


def date(*, whole_days: bool = True) -> Column:
    """Dates, or times.

    Args:
        whole_days: Whether it takes dates alone.
    """
    return Date(Map("linear"), step=1.0 if whole_days else None)


@dataclass(frozen=True)
class _Entry:
    """A column of the table: how it is modelled, and what it was like."""

    column: Column
    like: Values
    """Some of its values."""
    share_missing: float


class Schema:
    """The columns of a table, in the order that they have there.

    A model sees the real numbers of all columns first, then their codes: `encode` returns them
    side by side, NaN where nothing is known, as `DRMM(schema.dim, categories=schema.categories)`
    takes them.

    Made by `Schema.infer`.

    Attributes:
        names: The columns that are modelled.
        left_out: Why others are not, by name.

    Example:
        >>> table = {"age": [31, 45, 27, 52], "city": ["A", "B", "A", "A"]}
        >>> schema = Schema.infer(table, age=count())
        >>> schema.names, schema.categories
        (['age', 'city'], (2,))
        >>> x = schema.encode({"age": [40], "city": ["B"]})
        >>> schema.decode(x)["age"].tolist(), schema.decode(x)["city"].tolist()
        ([40], ['B'])
    """

    def __init__(
        self, entries: Mapping[str, _Entry], left_out: Mapping[str, str], library: str
    ) -> None:
        self._entries, self.left_out, self._library = dict(entries), dict(left_out), library
        self.names = list(self._entries)

    @classmethod
    def infer(cls, frame: Frame, /, **kinds: Column) -> "Schema":
        """A schema for a frame.

        Args:
            frame: Rows of the table.
            kinds: What columns are, by name, where it should not be guessed.

        Raises:
            ValueError: If the frame has no rows or no columns that can be modelled, if two
                columns have one name, or values do not fit.
        """
        table = read(frame)
        if not table or not len(table[0]):
            raise ValueError(
                f"Expected a frame with rows and columns, got {len(table[0]) if table else 0} "
                f"rows of {len(table)} columns."
            )
        check_known(kinds, [values.name for values in table])
        entries, left_out = {}, {}
        for values in table:
            found = kinds.get(values.name) or guess(values)
            if not isinstance(found, Column | LeftOut):
                raise ValueError(
                    f"Expected a kind of column for {values.name!r}, such as real(), integer() or "
                    f"categorical(), got {found!r}."
                )
            if isinstance(found, LeftOut):
                left_out[values.name] = found.reason
                continue
            if isinstance(found, Date) and values.sort == "label":
                values = as_dates_of_day(values)
            entries[values.name] = _Entry(
                found.fitted(values), _some(values), float(values.missing.mean())
            )
        if not entries:
            raise ValueError(
                "Expected a column that can be modelled, got none: "
                + "; ".join(f"{name!r} {why}" for name, why in left_out.items())
                + "."
            )
        return cls(entries, left_out, library_of(frame))

    def to_plain(self) -> dict[str, Any]:
        """The schema as numbers, strings and lists, as JSON holds them."""
        return {
            "columns": {
                name: {
                    "column": column_to_plain(own.column),
                    "like": values_to_plain(own.like),
                    "share_missing": own.share_missing,
                }
                for name, own in self._entries.items()
            },
            "left_out": self.left_out,
            "library": self._library,
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> "Schema":
        """The schema that `to_plain` described."""
        entries = {
            name: _Entry(
                column_from_plain(own["column"]),
                values_from_plain(own["like"]),
                own["share_missing"],
            )
            for name, own in plain["columns"].items()
        }
        return cls(entries, plain["left_out"], plain["library"])

    def set(self, name: str, kind: Column) -> "Schema":
        """The schema with a column of another kind.

        Args:
            name: Of a column that is modelled.
            kind: Such as ``positive()``.

        Raises:
            ValueError: If there is no such column, or its values do not fit.
        """
        check_known([name], self.names)
        own = self._entries[name]
        changed = replace(own, column=kind.fitted(own.like))
        return Schema(self._entries | {name: changed}, self.left_out, self._library)

    def without(self, *names: str) -> "Schema":
        """The schema without some columns.

        Raises:
            ValueError: If there are no such columns, or no others.
        """
        check_known(names, self.names)
        entries = {name: own for name, own in self._entries.items() if name not in names}
        if not entries:
            raise ValueError("Expected a column that is left, got none.")
        why = dict.fromkeys(names, "not wanted")
        return Schema(entries, self.left_out | why, self._library)

    def __getitem__(self, name: str) -> Column:
        check_known([name], self.names)
        return self._entries[name].column

    @property
    def columns(self) -> dict[str, Column]:
        """How columns are modelled, by name."""
        return {name: own.column for name, own in self._entries.items()}

    @property
    def real_names(self) -> list[str]:
        """The columns with a real number, in order of these."""
        return [name for name, column in self.columns.items() if column.has_real]

    @property
    def code_names(self) -> list[str]:
        """The columns with a code, in order of these."""
        return [name for name, column in self.columns.items() if column.num_categories]

    @property
    def dim(self) -> int:
        """Number of real numbers."""
        return len(self.real_names)

    @property
    def categories(self) -> tuple[int, ...]:
        """Numbers of categories of all codes."""
        return tuple(self[name].num_categories for name in self.code_names)

    def encode(self, frame: Frame) -> Tensor:
        """Rows of a frame as a model sees them.

        Args:
            frame: Rows of the table. Columns may be missing, and others are not looked at.

        Returns:
            Tensor (N, dim + number of codes) in float64, NaN where nothing is known. Values of
            categorical columns that the schema does not have count as not known, with a warning.

        Raises:
            ValueError: If the frame has none of the columns, or values do not fit.
        """
        table = self.values(frame)
        size = len(next(iter(table.values())))
        reals, codes = [], []
        for name, column in self.columns.items():
            if name in table:
                own = column.encode(table[name])
                warn_of_unseen(name, column, table[name])
            else:
                own = Encoded(
                    np.full((size, int(column.has_real)), np.nan),
                    np.full((size, int(column.num_categories > 0)), np.nan),
                )
            reals.append(own.real)
            codes.append(own.codes)
        return torch.from_numpy(np.concatenate([*reals, *codes], 1))

    def cells(self, /, *events: Event, **known: Any) -> list[Cell]:
        """What is said of a row, as disjoint cells; none if it contradicts itself.

        Args:
            events: Comparisons of `col`, all of which hold.
            known: By the name of a column: a value; a pair (low, high) of which both ends belong
                to the range, None where it has no end; a list of values that are possible. Names
                that are no Python names go in by ``**{...}``.

        Raises:
            ValueError: For names and values that the table does not have.
        """
        return cells_of(self.columns, events, known)

    def evidence(self, /, *events: Event, **known: Any) -> list[Evidence]:
        """What is known of a row, as evidence for a model of encoded rows.

        Args:
            events: As `cells` takes them.
            known: As `cells` takes it.

        Returns:
            Pieces for ``model.condition(*pieces)``.

        Raises:
            ValueError: For names and values that the table does not have, for what contradicts
                itself, and for what takes a union of pieces.

        Example:
            >>> table = {"age": [31, 45, 27, 52], "city": ["Rome", "Oslo", "Rome", "Bern"]}
            >>> schema = Schema.infer(table, age=count())
            >>> [type(piece).__name__ for piece in schema.evidence(age=(30, 40), city="Rome")]
            ['CategoricalPrior', 'Box']
        """
        cells = self.cells(*events, **known)
        if len(cells) != 1:
            raise ValueError(
                f"Expected one set of values for each column, got {len(cells)} disjoint cells."
            )
        real_at = {name: place for place, name in enumerate(self.real_names)}
        code_at = {name: place + self.dim for place, name in enumerate(self.code_names)}
        return evidence_of(self.columns, real_at, code_at, cells[0])

    @property
    def library(self) -> str:
        """The library of its frames."""
        return self._library

    def frame(self, values: Mapping[str, np.ndarray], index: Any = None) -> Frame:
        """A frame of the table's library, with its types.

        Args:
            values: Of columns, as `Column.decode` returns them; days since 1970 for dates.
            index: Labels of the rows, for pandas.
        """
        columns = []
        for name, value in values.items():
            column = self[name]
            if isinstance(column, Date) and value.dtype.kind == "f":
                value = as_dates(value, column.unit)
            columns.append((self._entries[name].like, value))
        return write(columns, self._library, index)

    def values(self, frame: Frame) -> dict[str, Values]:
        """The columns of a frame that the schema has, by name.

        Raises:
            ValueError: If there are none.
        """
        table = {values.name: values for values in read(frame, self.names)}
        if not table:
            others = [
                str(name) for name in (frame if isinstance(frame, Mapping) else frame.columns)
            ]
            raise ValueError(f"Expected some of the columns {self.names}, got {others}.")
        for name, values in table.items():
            if isinstance(self[name], Date) and values.sort == "label":
                table[name] = as_dates_of_day(values)
        return {name: table[name] for name in self.names if name in table}

    def decode(self, x: Tensor) -> Frame:
        """Rows of a model as a frame of the table's library, with its types.

        Args:
            x: Shape (N, dim + number of codes), NaN where nothing is known.

        Raises:
            ValueError: For another shape.
        """
        columns = []
        for name, own in self._split(x).items():
            entry = self._entries[name]
            columns.append((entry.like, entry.column.decode(own)))
        return write(columns, self._library)

    def dequantize(self, x: Tensor, *, generator: Generator | None = None) -> Tensor:
        """Encoded rows with integers spread evenly over what is rounded to them, for training.

        Args:
            x: Shape (N, dim + number of codes).
            generator: Where random numbers come from; by default PyTorch's global generator.
        """
        spread = x.clone()
        for place, name in enumerate(self.real_names):
            column = self[name]
            assert isinstance(column, Number)
            if column.step is not None:
                noise = torch.rand(len(x), generator=generator, dtype=torch.float64).numpy() - 0.5
                value = column.from_real(x[:, place].double().cpu().numpy()) + noise * column.step
                spread[:, place] = torch.from_numpy(column.map.forward(value)).to(x)
        return spread

    def log_slope(self, x: Tensor, *, integers: bool = True) -> Tensor:
        """What to add to a log-density of encoded rows to have one in the table's own units.

        Args:
            x: Shape (N, dim + number of codes).
            integers: Whether integers count.

        Returns:
            Tensor of shape (N,). Codes add nothing. Of integers it is the logarithm of the width
            of the interval that is rounded to each: a density times that is about its mass.
        """
        total = np.zeros(len(x))
        for name, own in self._split(x).items():
            column = self[name]
            if integers or not (isinstance(column, Number) and column.step is not None):
                total = total + column.log_slope(own)
        return torch.from_numpy(total).to(x)

    def _split(self, x: Tensor) -> dict[str, Encoded]:
        width = self.dim + len(self.categories)
        if x.dim() != 2 or x.shape[1] != width:
            raise ValueError(f"Expected rows of shape (N, {width}), got {tuple(x.shape)}.")
        table = x.detach().double().cpu().numpy()
        reals = iter(range(self.dim))
        codes = iter(range(self.dim, width))
        return {
            name: Encoded(
                table[:, [next(reals)] if column.has_real else []],
                table[:, [next(codes)] if column.num_categories else []],
            )
            for name, column in self.columns.items()
        }

    def __repr__(self) -> str:
        rows = [("column", "kind", "missing", "examples")]
        for name, own in self._entries.items():
            shown = ", ".join(_examples(own.like))
            gaps = f"{100 * own.share_missing:.0f}%" if own.share_missing else ""
            rows.append((name, str(own.column), gaps, shown))
        widths = [max(len(row[k]) for row in rows) for k in range(3)]
        lines = [
            "  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[3]])
            for row in rows
        ]
        lines += [f"left out: {name}, {why}" for name, why in self.left_out.items()]
        return "\n".join(line.rstrip() for line in lines)


def _examples(values: Values, count: int = 3) -> list[str]:
    """A few values, from the smallest to the largest where they are numbers."""
    known = values.raw[~values.missing]
    if known.dtype == object:
        return [str(value) for value in list(dict.fromkeys(known))[:count]]
    if not len(known):
        return []
    different = np.unique(known)
    different = different[np.linspace(0, len(different) - 1, count).round().astype(int)]
    if values.sort == "date":
        return [str(day) for day in dict.fromkeys(as_dates(different, "s"))]
    return [f"{value:g}" for value in dict.fromkeys(different.tolist())]


def _some(values: Values) -> Values:
    """Some values of a column, from the smallest to the largest."""
    known = values.raw[~values.missing]
    if known.dtype == object:
        different = np.array(list(dict.fromkeys(known)), dtype=object)
    else:
        known = np.sort(known)
        different = np.unique(known)
    if len(known) > KEPT:
        known = known[np.linspace(0, len(known) - 1, KEPT).astype(int)]
    if len(different) <= KEPT:  # so that none of them is missing from another kind
        known = np.concatenate([known, different])
    return replace(values, raw=known)


def warn_of_unseen(name: str, column: Column, values: Values) -> None:
    if not isinstance(column, Choice) or values.sort == "boolean":
        return
    seen = set(column.values)
    new = sorted({str(v) for v in values.labels() if v is not None and v not in seen})
    if new:
        warn_user(
            f"Column {name!r} has values that the schema does not know, {new[:5]}: they count as "
            f"missing.",
        )
