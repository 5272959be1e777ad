"""Events and named statements as disjoint cells: one set of values for every column."""

__all__ = ["Cell", "cells_of"]

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .columns import Choice, Column, Date, Number
from .events import All, AnyOne, Compare, Event, Expression, Not, as_truth, col
from .regions import Intervals, Labels, Region
from .values import hint, to_days

# Events that fall into more disjoint cells are refused: the number may double with every part.
MAX_CELLS = 512


@dataclass(frozen=True)
class Cell:
    """Rows whose columns are each in a set of values, and so are combinations of columns.

    Args:
        regions: Of columns, by name; others may have any value.
        combined: Of expressions of several columns, by their text.
        expressions: These.
    """

    regions: Mapping[str, Region] = field(default_factory=dict)
    combined: Mapping[str, Intervals] = field(default_factory=dict)
    expressions: Mapping[str, Expression] = field(default_factory=dict)

    def __and__(self, other: "Cell") -> "Cell":
        regions = dict(self.regions)
        for name, region in other.regions.items():
            regions[name] = _both(regions[name], region) if name in regions else region
        combined = dict(self.combined)
        for key, own in other.combined.items():
            combined[key] = combined[key] & own if key in combined else own
        return Cell(regions, combined, {**self.expressions, **other.expressions})

    @property
    def empty(self) -> bool:
        """Whether no row can be in here."""
        return any(r.empty for r in (*self.regions.values(), *self.combined.values()))

    def minus(self, other: "Cell") -> list["Cell"]:
        """Disjoint cells of what is here and not in another cell."""
        if (self & other).empty:
            return [self]
        rest, left = [], self
        for name, region in other.regions.items():
            rest.append(left & Cell({name: ~region}))
            left = left & Cell({name: region})
        for key, own in other.combined.items():
            also = {key: other.expressions[key]}
            rest.append(left & Cell({}, {key: ~own}, also))
            left = left & Cell({}, {key: own}, also)
        return [cell for cell in rest if not cell.empty]

    def contains(self, values: Mapping[str, np.ndarray]) -> np.ndarray:
        """Which rows meet what is said of combinations, from values of their columns."""
        inside = np.array(True)
        for key, own in self.combined.items():
            inside = inside & own.contains(self.expressions[key].evaluate(values))
        return inside


def _both(one: Region, other: Region) -> Region:
    if isinstance(one, Labels):
        assert isinstance(other, Labels)
        return one & other
    assert isinstance(other, Intervals)
    return one & other


def cells_of(
    columns: Mapping[str, Column], events: Sequence[Event], known: Mapping[str, Any]
) -> list[Cell]:
    """What is said of a row as disjoint cells; none if it contradicts itself.

    Args:
        columns: How columns are modelled.
        events: Comparisons of columns, all of which hold.
        known: Values, ranges and lists of columns, by name; see `TableModel.condition`.

    Raises:
        ValueError: If it does not fit the table, or falls into too many cells.
    """
    found = [Cell()]
    for name, said in known.items():
        check_known([name], columns)
        region = _said_of(name, columns[name], said)
        found = [cell & Cell({name: region}) for cell in found]
    for event in map(as_truth, events):
        if not isinstance(event, Event):
            raise ValueError(
                f"Expected events such as (col('age') > 30), or columns by name, got {event!r}."
            )
        found = _all([found, _resolve(columns, event)])
    return _disjoint(found)


def joined(cells: Sequence[Cell]) -> list[Cell]:
    """Disjoint cells as one, if they differ in the values of one column alone."""
    first = cells[0]
    names = {name for cell in cells for name in cell.regions}
    if any(cell.combined or set(cell.regions) != names for cell in cells):
        return list(cells)
    other = [n for n in names if any(cell.regions[n] != first.regions[n] for cell in cells)]
    if len(other) != 1:
        return list(cells)
    region = first.regions[other[0]]
    for cell in cells[1:]:
        region = region | cell.regions[other[0]]  # type: ignore[operator]
    return [Cell({**first.regions, other[0]: region})]


def check_known(names: Iterable[str], known: Iterable[str]) -> None:
    """Checks that there are such columns.

    Raises:
        ValueError: If there are not, with the nearest name.
    """
    every = list(known)
    for name in names:
        if name not in every:
            raise ValueError(
                f"Expected one of the columns {every}, got {name!r}.{hint(name, every)}"
            )


# ---- logic --------------------------------------------------------------------------------------


def _resolve(columns: Mapping[str, Column], event: Event, *, holds: bool = True) -> list[Cell]:
    """Cells that may overlap, of rows that meet an event, or of those that do not."""
    if isinstance(event, Not):
        return _resolve(columns, event.part, holds=not holds)
    if isinstance(event, All | AnyOne):
        parts = [_resolve(columns, part, holds=holds) for part in event.parts]
        if isinstance(event, All) == holds:
            return _all(parts)
        return _limited([cell for part in parts for cell in part])
    assert isinstance(event, Compare)
    return _compare(columns, event, holds)


def _all(parts: Iterable[list[Cell]]) -> list[Cell]:
    found = [Cell()]
    for part in parts:
        found = [each for one in found for other in part if not (each := one & other).empty]
        found = _limited(found)
    return found


def _disjoint(cells: Sequence[Cell]) -> list[Cell]:
    found: list[Cell] = []
    for cell in cells:
        if cell.empty:
            continue
        rest = [cell]
        for other in found:
            rest = [part for each in rest for part in each.minus(other)]
        found = _limited([*found, *rest])
    return found


def _limited(cells: list[Cell]) -> list[Cell]:
    if len(cells) > MAX_CELLS:
        raise ValueError(
            f"Expected an event of at most {MAX_CELLS} disjoint parts, got more: too many | or ~ "
            f"in one another. Ask for its parts, and add their probabilities."
        )
    return cells


# ---- comparisons --------------------------------------------------------------------------------


def _compare(columns: Mapping[str, Column], said: Compare, holds: bool) -> list[Cell]:
    check_known(said.names, columns)
    left, relation, right = said.left, said.relation, said.right
    several = right if isinstance(right, list) else [right]
    if any(isinstance(value, bool) for value in several) and not all(
        _has_labels(columns[name]) for name in said.names
    ):
        raise ValueError(
            f"Expected a comparison, such as ({left} > 0), got {left} alone, or compared with "
            f"{right}: it is not a column of booleans."
        )
    if relation == "in" and isinstance(right, str):
        raise ValueError(f"Expected a list of values, got {right!r}: say isin([{right!r}]).")
    labels = [name for name in said.names if _has_labels(columns[name])]
    if labels and isinstance(right, Expression):
        return _compare_labels(columns, said, holds)
    if isinstance(right, Expression):
        if relation in ("in", "between"):
            raise ValueError(f"Expected values with {relation!r}, got the expression {right}.")
        left, right = left - right, 0.0
    factors = left.linear
    names = [n for n, f in factors[0].items() if f] if factors is not None else list(left.names)
    if factors is not None and not names:  # columns that cancel each other
        constant = _relation(relation, right, lambda value: float(value))
        true = bool(constant.contains(np.array(factors[1])))
        return [Cell()] if true == holds else []
    if len(names) == 1 and factors is not None:
        name = names[0]
        region = _one_column(columns[name], name, said, factors[0][name], factors[1], right)
        return [Cell({name: region if holds else ~region})]
    if labels:
        raise ValueError(f"Expected numbers in the arithmetic of {said}, got labels: {labels}.")
    together = _relation(relation, right, lambda value: _plain_number(said, value))
    if together.all_points and not all(_is_stepped(columns[name]) for name in names):
        raise ValueError(
            f"Expected a range of {left}, got {said}: one value of several real numbers together "
            f"has no probability. Say {left}.between(low, high)."
        )
    key = str(left)
    return [Cell({}, {key: together if holds else ~together}, {key: left})]


def _is_stepped(column: Column) -> bool:
    return isinstance(column, Choice) or (isinstance(column, Number) and column.step is not None)


def _has_labels(column: Column) -> bool:
    return isinstance(column, Choice) and not column.numeric


def _compare_labels(columns: Mapping[str, Column], said: Compare, holds: bool) -> list[Cell]:
    """Two columns of labels that are equal, or not."""
    names = said.names
    plain = (said.left.linear, said.right.linear)
    alone = len(names) == 2 and all(p is not None and p[1] == 0 and len(p[0]) == 1 for p in plain)
    first, second = (columns[name] for name in names) if len(names) == 2 else (None, None)
    if not (alone and isinstance(first, Choice) and isinstance(second, Choice)) or (
        said.relation not in ("==", "!=")
    ):
        raise ValueError(f"Expected labels to be compared by == or != with labels, got {said}.")
    cells = []
    for code, value in enumerate(first.values):
        own = Labels(frozenset([code]), len(first.values))
        same = [k for k, other in enumerate(second.values) if other == value]
        other = Labels(frozenset(same), len(second.values))
        wanted = other if (said.relation == "==") == holds else ~other
        cells.append(Cell({names[0]: own, names[1]: wanted}))
    return _limited([cell for cell in cells if not cell.empty])


def _one_column(
    column: Column, name: str, said: Compare, factor: float, shift: float, right: Any
) -> Region:
    relation = said.relation
    if isinstance(column, Choice):
        if column.numeric:
            values = np.array([float(value) for value in column.values])
            region = _relation(relation, right, lambda value: _plain_number(said, value))
            inside = region.contains(factor * values + shift)
            return Labels(frozenset(np.flatnonzero(inside).tolist()), len(values))
        if (factor, shift) != (1.0, 0.0):
            raise ValueError(
                f"Expected numbers in the arithmetic of {said}, got labels: {name!r}."
            )
        return _labels(column, name, relation, right)
    assert isinstance(column, Number)
    plain = (factor, shift) == (1.0, 0.0)

    def number(value: Any) -> float:
        return parse_number(name, column, value) if plain else _plain_number(said, value)

    region = _relation(relation, right, number)
    return region if plain else region.scaled(factor, shift)


def _labels(column: Choice, name: str, relation: str, right: Any) -> Labels:
    count = len(column.values)
    if relation in ("==", "!="):
        region = Labels(frozenset([parse_code(name, column, right)]), count)
        return region if relation == "==" else ~region
    if relation == "in":
        return Labels(frozenset(parse_code(name, column, value) for value in right), count)
    if not column.ordered:
        raise ValueError(
            f"Expected a value of column {name!r}, or a list of values, got a comparison by "
            f"{relation}: its values have no order. Make it ordered([...])."
        )
    places = _relation(relation, right, lambda value: float(parse_code(name, column, value)))
    return Labels(frozenset(np.flatnonzero(places.contains(np.arange(count))).tolist()), count)


def _relation(relation: str, right: Any, number: Any) -> Intervals:
    """The numbers that stand in a relation to a value."""
    if relation == "in":
        return Intervals.points(number(value) for value in right)
    if relation == "between":
        low, high = right
        start = -math.inf if low is None else number(low)
        stop = math.inf if high is None else number(high)
        return Intervals.between(start, stop)
    x = number(right)
    if relation in ("==", "!="):
        region = Intervals.points([x])
        return region if relation == "==" else ~region
    if relation in ("<", "<="):
        return Intervals.between(-math.inf, x, with_high=relation == "<=")
    return Intervals.between(x, math.inf, with_low=relation == ">=")


def _plain_number(said: Compare, value: Any) -> float:
    if isinstance(value, np.timedelta64) or hasattr(value, "total_seconds"):
        return float(np.timedelta64(value) / np.timedelta64(1, "D"))
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ValueError(f"Expected a number in {said}, got {value!r}.") from None


# ---- values, ranges and lists by name -----------------------------------------------------------


def _said_of(name: str, column: Column, said: Any) -> Region:
    if isinstance(said, Event | Expression):
        raise ValueError(
            f"Expected a value, a range or a list of column {name!r}, got {said}. Pass events "
            f"without a name."
        )
    if isinstance(said, range | np.ndarray) or hasattr(said, "to_list"):
        said = list(said)
    several = isinstance(said, list | set | frozenset)
    if isinstance(said, tuple) and len(said) != 2:
        raise ValueError(f"Expected a range of column {name!r} as (low, high), got {said!r}.")
    if isinstance(column, Choice):
        if isinstance(said, tuple):
            if not column.ordered:
                raise ValueError(
                    f"Expected a value of column {name!r}, or a list of values, got {said!r}: "
                    f"ranges are for columns with an order."
                )
            between = Compare(col(name), "between", said)
            region: Region = _one_column(column, name, between, 1.0, 0.0, said)
        else:
            region = _labels(column, name, "in", said if several else [said])
        if region.empty:
            raise ValueError(f"Expected at least one value of column {name!r}, got {said!r}.")
        return region
    assert isinstance(column, Number)
    if isinstance(said, tuple):
        low, high = (None if end is None else parse_number(name, column, end) for end in said)
        start, stop = -math.inf if low is None else low, math.inf if high is None else high
        if not start < stop and not (start == stop and column.step is not None):
            raise ValueError(f"Expected low < high in the range of column {name!r}, got {said!r}.")
        span = Intervals.between(start, stop)
        _check_reached(name, column, span, said)
        return span
    values = [parse_number(name, column, each) for each in (said if several else [said])]
    if not values:
        raise ValueError(f"Expected at least one value of column {name!r}, got {said!r}.")
    if several and len(values) > 1 and any(not column.has_mass(x) for x in values):
        raise ValueError(
            f"Expected a value of column {name!r}, or a range as a pair (low, high), got "
            f"{said!r}: a list is for values that have a probability, and this column is {column}."
        )
    points = Intervals.points(values)
    _check_reached(name, column, points, said)
    return points


def _check_reached(name: str, column: Number, region: Intervals, said: Any) -> None:
    """Checks that a column has values in a region at all."""
    if column.step is not None and region.whole(column.step).empty:
        kind = "integers" if column.step == 1 else f"multiples of {column.step:g}"
        raise ValueError(f"Expected a range of column {name!r} with {kind}, got {said!r}.")
    if not column.meets(region):
        raise ValueError(f"Expected values that column {name!r} reaches, {column}, got {said!r}.")


def parse_number(name: str, column: Number, said: Any) -> float:
    """A number or date that is said of a column, as a number.

    Raises:
        ValueError: If it is none.
    """
    try:
        number = to_days(said) if isinstance(column, Date) else float(said)
    except (TypeError, ValueError):
        what = "a date" if isinstance(column, Date) else "a number"
        raise ValueError(f"Expected {what} for column {name!r}, got {said!r}.") from None
    if math.isnan(number):
        raise ValueError(
            f"Expected a value of column {name!r}, got {said!r}. Leave out what is not known."
        )
    return number


def parse_code(name: str, column: Choice, said: Any) -> int:
    """The code of a label that is said of a column.

    Raises:
        ValueError: If it is none of them, with the nearest.
    """
    values = list(column.values)
    try:
        if said in values:
            return values.index(said)
    except (TypeError, ValueError):
        pass
    shown = ", ".join(repr(value) for value in values[:8]) + (", ..." if len(values) > 8 else "")
    raise ValueError(
        f"Expected a value of column {name!r}, of {shown}, got {said!r}." + hint(said, values)
    )
