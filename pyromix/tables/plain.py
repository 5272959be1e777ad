"""Columns and values as numbers, strings and lists, for files."""

__all__ = ["column_from_plain", "column_to_plain", "values_from_plain", "values_to_plain"]

from dataclasses import asdict
from typing import Any

import numpy as np

from .columns import Choice, Column, Date, Number
from .maps import Map
from .values import Values

KINDS = {kind.__name__: kind for kind in (Number, Date, Choice)}


def column_to_plain(column: Column) -> dict[str, Any]:
    """What a column is made of, with the name of its kind."""
    assert isinstance(column, Number | Choice)
    return {"kind": type(column).__name__} | asdict(column)


def column_from_plain(plain: dict[str, Any]) -> Column:
    """The column that `column_to_plain` described."""
    parts = dict(plain)
    kind = KINDS[parts.pop("kind")]
    if "map" in parts:
        parts["map"] = Map(**parts["map"])
    if "values" in parts:
        parts["values"] = tuple(parts["values"])
    return kind(**parts)


def values_to_plain(values: Values) -> dict[str, Any]:
    """Values of a column, None where they are not known."""
    raw = [None if gone else _plain(v) for v, gone in zip(values.raw, values.missing, strict=True)]
    parts = {name: getattr(values, name) for name in ("name", "sort", "dtype", "native")}
    categories = None if values.categories is None else [_plain(v) for v in values.categories]
    return parts | {"raw": raw, "categories": categories, "ordered": values.ordered}


def values_from_plain(plain: dict[str, Any]) -> Values:
    """The values that `values_to_plain` described."""
    parts = dict(plain)
    if parts["sort"] in ("number", "date"):
        raw = np.array([np.nan if v is None else v for v in parts["raw"]], dtype=np.float64)
    else:
        raw = np.empty(len(parts["raw"]), dtype=object)
        raw[:] = parts["raw"]
    categories = parts["categories"]
    parts["categories"] = None if categories is None else tuple(categories)
    return Values(**(parts | {"raw": raw}))


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
