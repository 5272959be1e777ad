"""What is said of columns in the table's own words, as evidence for a model."""

__all__ = ["evidence_of"]

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ..evidence.pieces import Box, CategoricalPrior, Evidence, Observed
from .columns import Choice, Column, Date, Number
from .values import hint


class _Collected:
    """Statements about the real numbers and codes of rows."""

    def __init__(self, dim: int) -> None:
        self.values: dict[int, float] = {}
        self.low = torch.full((dim,), -math.inf, dtype=torch.float64)
        self.high = torch.full((dim,), math.inf, dtype=torch.float64)
        self.codes: list[CategoricalPrior] = []

    def allow(self, index: int, codes: Sequence[int], count: int) -> None:
        probs = torch.zeros(count, dtype=torch.float64)
        probs[list(codes)] = 1.0
        self.codes.append(CategoricalPrior(index, probs))

    def pieces(self) -> list[Evidence]:
        found: list[Evidence] = list(self.codes)
        if self.values:
            found.append(Observed(self.values))
        if bool((self.low.isfinite() | self.high.isfinite()).any()):
            found.append(Box(self.low, self.high))
        return found


def evidence_of(
    columns: Mapping[str, Column],
    real_at: Mapping[str, int],
    code_at: Mapping[str, int],
    known: Mapping[str, Any],
) -> list[Evidence]:
    """Pieces of evidence for a model of encoded rows.

    Args:
        columns: How columns are modelled.
        real_at: Where the real number of a column is in a row, for those that have one.
        code_at: Where its code is.
        known: What is said of columns, by name: see `Schema.evidence`.

    Raises:
        ValueError: If it does not fit a column.
    """
    found = _Collected(len(real_at))
    for name, said in known.items():
        column = columns[name]
        if isinstance(column, Choice):
            codes = _codes(name, column, said)
            found.allow(code_at[name], codes, column.num_categories)
            continue
        assert isinstance(column, Number)
        _say_number(found, name, column, said, real_at[name], code_at.get(name))
    return found.pieces()


def _say_number(
    found: _Collected, name: str, column: Number, said: Any, place: int, code: int | None
) -> None:
    if isinstance(said, list | set | frozenset):
        raise ValueError(
            f"Expected a value of column {name!r}, or a range as a pair (low, high), got "
            f"{said!r}: lists are for columns of a few values."
        )
    if isinstance(said, tuple):
        low, high = _range(name, column, said)
        if column.point is not None and low <= column.point <= high:
            raise ValueError(
                f"Expected a range of column {name!r} without {column.point:g}, which is modelled "
                f"by itself, got {said!r}. Ask for that value, and for the rest."
            )
    else:
        low = high = _number(name, column, said)
    if code is not None:
        at_point = low == high == column.point
        found.allow(code, [1 if at_point else 0], 2)
        if at_point:
            return
    if column.integer:
        first = low if math.isinf(low) else math.ceil(low)
        last = high if math.isinf(high) else math.floor(high)
        if first > last or (column.lowest is not None and last < column.lowest):
            raise ValueError(f"Expected a range of column {name!r} with integers, got {said!r}.")
        ends = [_edge(column, first, 0), _edge(column, last, 1)]
    elif low == high:
        _check_reached(name, column, low)
        found.values[place] = float(column.map.forward(np.array(low)))
        return
    else:
        ends = [float(column.map.forward(np.array(_inside(column, end)))) for end in (low, high)]
        if not ends[0] < ends[1]:
            raise ValueError(
                f"Expected a range that column {name!r} reaches, {column}, got {said!r}."
            )
    found.low[place], found.high[place] = ends


def _edge(column: Number, x: float, side: int) -> float:
    """The lower or upper end of what is rounded to an integer, or of all."""
    return x if math.isinf(x) else float(column.interval(np.array([x]))[side][0])


def _inside(column: Number, x: float) -> float:
    """A bound of a column, cut off at the ends of its range."""
    form, low, high = column.map.form, column.map.low, column.map.high
    if form == "linear":
        return x
    return min(max(x, low), high) if form == "logit" else max(x, low)


def _check_reached(name: str, column: Number, x: float) -> None:
    if not bool(column.map.reaches(np.array([x]))[0]):
        raise ValueError(f"Expected a value that column {name!r} reaches, {column}, got {x:g}.")


def _range(name: str, column: Number, said: tuple[Any, ...]) -> tuple[float, float]:
    if len(said) != 2:
        raise ValueError(f"Expected a range of column {name!r} as (low, high), got {said!r}.")
    low = -math.inf if said[0] is None else _number(name, column, said[0])
    high = math.inf if said[1] is None else _number(name, column, said[1])
    if not low < high and not (low == high and column.integer):
        raise ValueError(f"Expected low < high in the range of column {name!r}, got {said!r}.")
    return low, high


def _number(name: str, column: Number, said: Any) -> float:
    try:
        if isinstance(column, Date):
            stamp = np.datetime64(said) if isinstance(said, str) else np.datetime64(said, "us")
            number = (stamp.astype("datetime64[us]") - np.datetime64(0, "us")) / np.timedelta64(
                1, "D"
            )
        else:
            number = float(said)
    except (TypeError, ValueError):
        what = "a date" if isinstance(column, Date) else "a number"
        raise ValueError(f"Expected {what} for column {name!r}, got {said!r}.") from None
    if math.isnan(number):
        raise ValueError(
            f"Expected a value of column {name!r}, got {said!r}. Leave out what is not known."
        )
    return float(number)


def _codes(name: str, column: Choice, said: Any) -> list[int]:
    values = list(column.values)
    if isinstance(said, tuple):
        if len(said) != 2 or not column.ordered:
            raise ValueError(
                f"Expected a value of column {name!r}, or a list of values, got {said!r}: ranges "
                f"are for columns with an order."
            )
        first = 0 if said[0] is None else _code(name, values, said[0])
        last = len(values) - 1 if said[1] is None else _code(name, values, said[1])
        codes = list(range(first, last + 1))
    elif isinstance(said, list | set | frozenset):
        codes = [_code(name, values, value) for value in said]
    else:
        codes = [_code(name, values, said)]
    if not codes:
        raise ValueError(f"Expected at least one value of column {name!r}, got {said!r}.")
    return codes


def _code(name: str, values: Sequence[Any], said: Any) -> int:
    if said in values:
        return values.index(said)
    shown = ", ".join(repr(value) for value in values[:8]) + (", ..." if len(values) > 8 else "")
    raise ValueError(
        f"Expected a value of column {name!r}, of {shown}, got {said!r}." + hint(said, values)
    )
