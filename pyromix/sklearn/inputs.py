"""Arrays and frames as scikit-learn takes them, as frames of named columns of a few kinds."""

__all__ = ["Inputs", "is_table"]

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date as DateObject  # noqa: N812
from typing import Any

import narwhals.stable.v2 as nw
import numpy as np
import pandas as pd

from ..tables import Schema, boolean, categorical, date, integer, ordered, real
from ..tables.cells import check_known
from ..tables.columns import Column, Number
from ..tables.frames import Frame, read
from ..tables.inference import MANY, NAMES
from ..tables.values import Values

# Labels of which so few are different are a kind, however few rows there are.
ALWAYS = 20


def is_table(X: Any) -> bool:
    """Whether X is a data frame, not an array."""
    return hasattr(X, "columns") and hasattr(X, "shape")


@dataclass(frozen=True)
class Inputs:
    """The columns of X: their names and kinds.

    Kinds follow from types alone, so that they fit new values: floats are any real numbers,
    integers are integers, booleans are booleans, texts and categories are labels.

    Args:
        names: All columns of X.
        kinds: Of those whose kind is not left to `Schema.infer`, by name.
        left_out: Columns that the schema given by the user leaves out.
        whole: Columns that the model takes integers or whole days of: other values are rounded.
    """

    names: list[str]
    kinds: dict[str, Column] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    whole: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        X: Any,
        names: Iterable[str] | None,
        given: Schema | Mapping[str, Column] | None,
    ) -> "Inputs":
        """The columns of X.

        Args:
            X: An array or a frame.
            names: What its columns are called, if they have names.
            given: A schema, or kinds of some columns by name, where types are not enough.

        Raises:
            ValueError: If `given` is neither, or has columns that X lacks.
        """
        names = [f"x{k}" for k in range(X.shape[1])] if names is None else list(names)
        own: dict[str, Column] = {}
        left_out: tuple[str, ...] = ()
        if isinstance(given, Schema):
            own = {name: kind for name, kind in given.columns.items() if name in names}
            left_out = tuple(name for name in given.left_out if name in names)
        elif isinstance(given, Mapping):
            check_known(given, names)
            own = dict(given)
        elif given is not None:
            raise ValueError(
                f"Expected schema to be a Schema, or a mapping of names to kinds such as "
                f"positive(), got {type(given).__name__}."
            )
        guessed = {name: kind for name, kind in _kinds(X, names) if name not in own}
        whole = tuple(name for name, kind in guessed.items() if _is_whole(kind))
        kinds = {name: kind for name, kind in guessed.items() if kind is not None} | own
        return cls(names, kinds, left_out, whole)

    def frame(self, X: Any) -> Frame:
        """X as a frame, with numbers where a column takes them.

        Args:
            X: An array or a frame of the same columns in order.
        """
        frame = as_frame(X, self.names)
        if not self.whole:
            return frame
        table = nw.from_native(frame, eager_only=True)
        rounded = []
        for name in self.whole:
            dtype = table[name].dtype
            if dtype.is_float():
                rounded.append(nw.col(name).round(0))
            elif dtype.is_temporal() and dtype != nw.Date:
                rounded.append(nw.col(name).dt.truncate("1d"))
        return table.with_columns(*rounded).to_native() if rounded else frame

    def schema(self, frame: Frame, **more: Column) -> Schema:
        """The schema of a frame.

        Args:
            frame: The rows of X, maybe with further columns.
            more: Kinds of these.

        Raises:
            ValueError: If no column of X can be modelled.
        """
        schema = Schema.infer(frame, **(self.kinds | more))
        left = [name for name in self.left_out if name in schema.names]
        kept = [name for name in schema.names if name in self.names and name not in left]
        if not kept:
            why = "; ".join(f"{name!r} {reason}" for name, reason in schema.left_out.items())
            raise ValueError(f"Expected a column of X that can be modelled, got none: {why}.")
        return schema.without(*left) if left else schema


def as_frame(X: Any, names: list[str]) -> Frame:
    """X as a frame: arrays become frames of pandas, columns of objects those of a better type."""
    if is_table(X):
        table = nw.from_native(X, eager_only=True)
        if not isinstance(X, pd.DataFrame):
            return table.rename(dict(zip(table.columns, names, strict=True))).to_native()
        frame = X.set_axis(names, axis=1).reset_index(drop=True)
        loose = [name for name in names if frame[name].dtype == object]
        return frame.assign(**{name: _tightened(frame[name]) for name in loose})
    if X.dtype.kind != "O":
        return pd.DataFrame(X.astype(object) if X.dtype.kind in "US" else X, columns=names)
    columns = [pd.Series(X[:, k], dtype=object) for k in range(X.shape[1])]
    return pd.DataFrame({name: _tightened(own) for name, own in zip(names, columns, strict=True)})


def _tightened(column: Any) -> Any:
    """A column of Python objects as numbers, booleans or dates, if all known ones are that.

    Raises:
        TypeError: For objects that are neither these nor labels.
    """
    column = column.where(column.notna(), np.nan).infer_objects()
    if column.dtype != object:
        return column
    known = column[column.notna()]
    if all(isinstance(value, DateObject) for value in known):
        return pd.to_datetime(column)
    for value in known:
        if not isinstance(value, str | bytes | bool | np.bool_):
            float(value)  # raises TypeError
    return column


def _kinds(X: Any, names: list[str]) -> Iterable[tuple[str, Column | None]]:
    """The kinds of columns by their types; None where `Schema.infer` decides."""
    if not is_table(X) and X.dtype.kind in "fiu":
        return [(name, real() if X.dtype.kind == "f" else integer()) for name in names]
    return [(values.name, _kind(values)) for values in read(as_frame(X, names))]


def _kind(values: Values) -> Column | None:
    if values.sort == "number":
        return integer() if values.dtype.startswith(("Int", "UInt")) else real()
    if values.sort == "boolean":
        return boolean()
    if values.sort == "date":
        days = values.raw[~values.missing]
        return date(whole_days=bool((days == np.round(days)).all()))
    found, count = values.distinct(), int((~values.missing).sum())
    if not count or len(found) > MANY or len(found) > max(ALWAYS, NAMES * count):
        return None  # nothing known, or names of rows
    return ordered(found) if values.ordered else categorical(found)


def _is_whole(kind: Column | None) -> bool:
    return isinstance(kind, Number) and kind.step == 1
