"""Data frames as columns of values, and back."""

__all__ = ["Frame", "filled_in", "index_of", "is_frame", "library_of", "read", "table_of", "write"]

import datetime
import importlib
import re
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from .values import DAY, Values, as_dates_of_day

Frame = Any
"""A data frame of pandas or polars, or a mapping of names to sequences."""

# Types of pandas that take all values of a sort, and those without gaps with what has them.
GENERAL = {"boolean": "boolean", "number": "float64"}
INTEGERS = [f"{sign}nt{bits}" for sign in ("I", "UI") for bits in (8, 16, 32, 64)]
GAPLESS = {name.lower(): name for name in INTEGERS} | {"bool": "boolean"}


def read(frame: Frame, wanted: Collection[str] | None = None) -> list[Values]:
    """The columns of a frame.

    Args:
        frame: A frame of pandas, polars or another library that narwhals knows, or a mapping of
            names to sequences of the same length.
        wanted: Names of those that are read; by default all.

    Raises:
        ValueError: If it is no frame, or two columns have the same name.
        ImportError: If narwhals or pandas are not installed.
    """
    if isinstance(frame, Mapping):
        frame = _import("pandas").DataFrame(dict(frame))
    names = [str(name) for name in getattr(frame, "columns", ())]
    if library_of(frame) == "pandas" and any(not isinstance(n, str) for n in frame.columns):
        if getattr(frame.columns, "nlevels", 1) > 1:
            raise ValueError(
                f"Expected names of one level, got {frame.columns.nlevels} levels: join them."
            )
        frame = frame.set_axis(names, axis=1)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"Expected columns of different names, got {twice} more than once.")
    nw = _import("narwhals.stable.v2")
    try:
        table = nw.from_native(frame, eager_only=True)
    except TypeError:
        raise ValueError(
            f"Expected a data frame of pandas or polars, or a mapping of names to columns, got "
            f"{type(frame).__name__}."
        ) from None
    chosen = [name for name in table.columns if wanted is None or name in wanted]
    found = [_values(nw, str(name), table[name]) for name in chosen]
    if library_of(frame) != "pandas":
        return found
    return [replace(own, native=str(frame[own.name].dtype)) for own in found]


def _values(nw: Any, name: str, series: Any) -> Values:
    native = series.to_native()
    zone = getattr(getattr(native, "dtype", None), "tz", None)
    if zone is not None:  # of pandas: narwhals does not know all names of zones
        plain = nw.from_native(native.dt.tz_convert("UTC").dt.tz_localize(None), series_only=True)
        told = f"Datetime(time_unit='{native.dtype.unit}', time_zone='{zone}')"
        return replace(_values(nw, name, plain), dtype=told)
    dtype, told = series.dtype, str(series.dtype)
    missing = series.is_null().to_numpy().astype(bool)
    if dtype.is_numeric():
        raw = np.full(len(missing), np.nan)
        raw[~missing] = series.filter(~series.is_null()).to_numpy().astype(np.float64) + 0.0
        return Values(name, "number", raw, told)
    if dtype.is_temporal() and dtype != nw.Duration and dtype != nw.Time:
        raw = np.full(len(missing), np.nan)
        stamps = series.filter(~series.is_null()).to_numpy().astype("datetime64[us]")
        raw[~missing] = (stamps - np.datetime64(0, "us")) / DAY
        return Values(name, "date", raw, told)
    raw = np.empty(len(missing), dtype=object)
    for row, (value, gone) in enumerate(zip(series.to_list(), missing, strict=True)):
        raw[row] = None if gone or _is_nan(value) else value
    if any(not isinstance(value, Hashable) for value in raw):
        raise ValueError(
            f"Expected numbers, labels or dates in column {name!r}, got a "
            f"{next(type(v).__name__ for v in raw if not isinstance(v, Hashable))}: leave it out, "
            f"or make columns of its parts."
        )
    known = [value for value in raw if value is not None]
    if known and all(isinstance(value, datetime.date) for value in known):
        return as_dates_of_day(Values(name, "label", raw, told))
    if dtype == nw.Boolean:
        return Values(name, "boolean", raw, told, (False, True))
    if dtype in (nw.Categorical, nw.Enum):
        categories = tuple(series.cat.get_categories().to_list())
        ordered = dtype == nw.Enum or bool(nw.is_ordered_categorical(series))
        return Values(name, "label", raw, told, categories, ordered)
    return Values(name, "label", raw, told)


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and value != value


def is_frame(said: Any) -> bool:
    """Whether something is a frame, or a mapping that stands for one."""
    return isinstance(said, Mapping) or hasattr(said, "columns")


def library_of(frame: Frame) -> str:
    """The name of the library that a frame is of; pandas for mappings."""
    return type(frame).__module__.partition(".")[0] if not isinstance(frame, Mapping) else "pandas"


def write(columns: Sequence[tuple[Values, np.ndarray]], library: str, index: Any = None) -> Frame:
    """A frame of a library.

    Args:
        columns: For every column what it was like, and the values that it is to have, as
            `Column.decode` returns them.
        library: Such as ``"pandas"``.
        index: Labels of the rows, for pandas.
    """
    if library == "pandas":
        pd = _import("pandas")
        frame = pd.DataFrame({like.name: _pandas_column(pd, like, x) for like, x in columns})
        return frame if index is None else frame.set_axis(index)
    nw = _import("narwhals.stable.v2")
    data: dict[str, Any] = {}
    casts = []
    for like, x in columns:
        data[like.name] = x
        if x.dtype == object:
            data[like.name] = x.tolist()
        elif x.dtype.kind == "f":
            data[like.name] = [None if gap else v for v, gap in zip(x, np.isnan(x), strict=True)]
        if not len(x) and like.dtype in ("String", "Boolean"):
            casts.append(nw.col(like.name).cast(getattr(nw, like.dtype)))
        if like.dtype.startswith(("Int", "UInt", "Float")):
            casts.append(nw.col(like.name).cast(getattr(nw, like.dtype)))
        if like.dtype.startswith("Enum"):
            casts.append(nw.col(like.name).cast(nw.Enum(like.categories)))
        elif like.dtype.startswith("Categorical"):
            casts.append(nw.col(like.name).cast(nw.Categorical()))
        elif like.dtype.startswith("Datetime"):
            unit, zone = (
                re.search(rf"{part}='([^']+)'", like.dtype) for part in ("time_unit", "time_zone")
            )
            times = nw.col(like.name).cast(nw.Datetime(unit[1] if unit else "us"))
            if zone:
                times = times.dt.replace_time_zone("UTC").dt.convert_time_zone(zone[1])
            casts.append(times)
    return nw.from_dict(data, backend=library).with_columns(*casts).to_native()


def filled_in(frame: Frame, answers: Frame) -> Frame:
    """A frame whose gaps are filled in, with the columns that it lacks after its own.

    What is known stays, and so do types that take the answers.

    Args:
        frame: The frame.
        answers: Columns for the same rows, without gaps, a frame of the same library.
    """
    if isinstance(frame, Mapping):
        frame = _import("pandas").DataFrame(dict(frame))
    if library_of(frame) != library_of(answers):
        return answers
    if library_of(frame) == "pandas":
        label_of = {str(label): label for label in frame.columns}
        result = frame.copy()
        for name in answers.columns:
            label = label_of.get(name, name)
            own = answers[name].set_axis(frame.index)
            result[label] = _without_gaps(frame[label], own) if label in frame.columns else own
        return result
    nw = _import("narwhals.stable.v2")
    given, found = (nw.from_native(one, eager_only=True) for one in (frame, answers))
    columns = []
    for name in found.columns:
        own = found[name]
        if name in given.columns and not given[name].is_null().all():
            old = given[name]
            gone = old.is_null() | old.is_nan() if old.dtype.is_float() else old.is_null()
            own = old.zip_with(~gone, own.cast(old.dtype))
        columns.append(own.alias(name))
    return given.with_columns(*columns).to_native()


def _without_gaps(column: Any, answers: Any) -> Any:
    """A column of pandas with its gaps filled in, of its own type if that takes the answers."""
    gone = column.isna()
    if not gone.any():
        return column
    if gone.all():
        return answers
    try:
        filled = column.copy()
        filled[gone.to_numpy()] = answers[gone.to_numpy()].to_numpy()
        return filled
    except (TypeError, ValueError):
        return answers.where(gone, column.astype(object))


def index_of(frame: Frame) -> Any:
    """The labels of the rows of a frame of pandas; None for others, and for mappings."""
    return getattr(frame, "index", None) if library_of(frame) == "pandas" else None


def table_of(columns: Mapping[Any, np.ndarray], library: str, index: Any = None) -> Frame:
    """A frame of a library with columns of numbers or labels; names are strings but in pandas."""
    if library == "pandas":
        return _import("pandas").DataFrame(dict(columns), index=index)
    nw = _import("narwhals.stable.v2")
    named = {str(name): x.tolist() if x.dtype == object else x for name, x in columns.items()}
    return nw.from_dict(named, backend=library).to_native()


def _pandas_column(pd: Any, like: Values, x: np.ndarray) -> Any:
    """A column with the type that it had, or the nearest one that has gaps."""
    if like.sort == "date":
        return _pandas_dates(pd, like, x)
    if like.sort == "label" and like.categories is not None:
        return pd.Categorical(list(x), categories=list(like.categories), ordered=like.ordered)
    if like.sort == "number":
        x = np.array([np.nan if v is None else v for v in x], dtype=np.float64)
    column = pd.Series(x if x.dtype != object else list(x), dtype=GENERAL.get(like.sort))
    native = like.native or None
    if native in GAPLESS and column.isna().any():
        native = GAPLESS[native]
    return column if native is None else column.astype(native)


def _pandas_dates(pd: Any, like: Values, x: np.ndarray) -> Any:
    """Dates in the unit and time zone of the frame; they are in UTC before."""
    unit = re.search(r"time_unit='(\w+)'", like.dtype)
    dates = pd.Series(x.astype(f"datetime64[{unit[1]}]") if unit else x)
    zone = re.search(r"time_zone='([^']+)'", like.dtype)
    return dates.dt.tz_localize("UTC").dt.tz_convert(zone[1]) if zone else dates


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ImportError(
            f"Expected {name.partition('.')[0]} to be installed, which tables need: "
            f"python -m pip install 'pyromix[tables]'"
        ) from None
