"""What is said of columns, as evidence for a model of encoded rows."""

__all__ = ["evidence_of"]

import math
from collections.abc import Mapping

import numpy as np
import torch

from ..evidence.pieces import Box, CategoricalPrior, Evidence, LinearInequality, Observed
from .cells import Cell
from .columns import Choice, Column, Number
from .events import Expression
from .regions import Intervals, Labels


def evidence_of(
    columns: Mapping[str, Column],
    real_at: Mapping[str, int],
    code_at: Mapping[str, int],
    cell: Cell,
) -> list[Evidence]:
    """Pieces of evidence for a model of encoded rows.

    Args:
        columns: How columns are modelled.
        real_at: Where the real number of a column is in a row, for those that have one.
        code_at: Where its code is.
        cell: What is said of the row.

    Raises:
        ValueError: If it takes a union of pieces, or a combination is not linear in the model's
            own columns.
    """
    found: list[Evidence] = []
    values: dict[int, float] = {}
    bounds = torch.full((2, len(real_at)), math.inf, dtype=torch.float64)
    bounds[0].neg_()
    for name, region in cell.regions.items():
        column = columns[name]
        if isinstance(region, Labels):
            assert isinstance(column, Choice)
            found.append(_codes(code_at[name], sorted(region.codes), column.num_categories))
            continue
        assert isinstance(column, Number)
        place = real_at[name]
        if column.point is not None:
            at_point = bool(region.contains(np.array(column.point)))
            region = region & ~Intervals.points([column.point])
            if at_point and not region.empty:
                raise ValueError(
                    f"Expected a range of column {name!r} without {column.point:g}, which has a "
                    f"code of its own. Ask for that value, and for the rest."
                )
            found.append(_codes(code_at[name], [1 if at_point else 0], 2))
            if at_point:
                continue
        point = region.point
        if column.step is None and point is not None:
            values[place] = float(column.map.forward(column.reached(name, np.array([point])))[0])
            continue
        if column.step is not None:
            region = region.whole(column.step)
        if len(region.spans) != 1:
            raise ValueError(f"Expected one range of column {name!r}, got {len(region.spans)}.")
        (low, _), (high, _) = region.spans[0]
        bounds[0, place], bounds[1, place] = column.bounds(low, high)
        if low == -math.inf or (column.lowest is not None and low < column.lowest):
            bounds[0, place] = -math.inf
    if values:
        found.append(Observed(values))
    if bool(bounds.isfinite().any()):
        found.append(Box(bounds[0], bounds[1]))
    for key, own in cell.combined.items():
        found += _inequalities(columns, real_at, cell.expressions[key], own)
    return found


def _codes(index: int, codes: list[int], count: int) -> CategoricalPrior:
    probs = torch.zeros(count, dtype=torch.float64)
    probs[codes] = 1.0
    return CategoricalPrior(index, probs)


def _inequalities(
    columns: Mapping[str, Column],
    real_at: Mapping[str, int],
    expression: Expression,
    region: Intervals,
) -> list[Evidence]:
    """Linear inequalities of encoded rows, from those of columns with linear maps."""
    linear = expression.linear
    if linear is None:
        raise ValueError(f"Expected a linear combination of columns, got {expression}.")
    factors, shift = linear
    a = torch.zeros(len(real_at), dtype=torch.float64)
    for name, factor in factors.items():
        column = columns[name]
        if (
            not isinstance(column, Number)
            or column.map.form != "linear"
            or column.step is not None
        ):
            raise ValueError(
                f"Expected columns that the model sees as they are in {expression}, but column "
                f"{name!r} is {column}. Change it by schema.set({name!r}, real())."
            )
        a[real_at[name]] = factor * column.map.scale
        shift += factor * column.map.loc
    if len(region.spans) != 1:
        raise ValueError(f"Expected one range of {expression}, got {len(region.spans)}.")
    (low, _), (high, _) = region.spans[0]
    found: list[Evidence] = []
    if math.isfinite(low):
        found.append(LinearInequality(a, shift - low))
    if math.isfinite(high):
        found.append(LinearInequality(-a, high - shift))
    return found
