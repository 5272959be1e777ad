"""Laws of one numeric column, row by row, as distribution functions on a grid of its values.

A law has a mass at the column's point, where it has one, and a law of other numbers. It is told at
a grid: at the ends of what is rounded to each value, or at quantiles of the numbers to train on,
with more beyond them. Between its values, distribution functions are linear in the encoded number.
"""

import numpy as np

from benchmarks.tables.peer import PROBS, Prediction
from pyromix.tables.columns import Number

GRID = 400
# Values of a column with steps, from the least to the largest, that are told one by one.
MANY = 2000
# How far a grid goes beyond the numbers to train on, in standard deviations.
BEYOND = 3.0
# Quantiles whose mean stands for the mean of a law.
MIDPOINTS = (np.arange(200) + 0.5) / 200


def grid_of(column: Number, x: np.ndarray) -> np.ndarray:
    """Encoded numbers at which a law is told, in order, (G,).

    Args:
        column: The column.
        x: Its numbers in the rows to train on, NaN for gaps.
    """
    x = x[~np.isnan(x)]
    if column.point is not None:
        x = x[x != column.point]
    step = column.step
    if step is not None:
        low, high = np.round(x.min() / step), np.round(x.max() / step)
        if high - low <= MANY:
            ends = np.arange(low - 1, high + 2) * step
            if column.lowest is not None:
                ends = ends[ends > column.lowest - step / 2]
            return column.map.forward(ends + step / 2)
    z = column.map.forward(x)
    inner = np.unique(np.quantile(z, np.linspace(0, 1, GRID)))
    steps = np.linspace(0.02, 1, 50) * BEYOND
    return np.concatenate([inner[0] - steps[::-1], inner, inner[-1] + steps])


def predict(
    column: Number, grid: np.ndarray, cdf: np.ndarray, at_point: np.ndarray | None
) -> Prediction:
    """Mean and quantiles of laws.

    Args:
        column: The column.
        grid: Of encoded numbers, (G,).
        cdf: Distribution functions of numbers other than the point, (N, G).
        at_point: Probabilities of the point, (N,), if the column has one.
    """
    # What lies beyond the grid is taken to be at its ends.
    cdf = np.maximum.accumulate(np.clip(cdf, 0, 1), 1)
    cdf = cdf.copy()
    cdf[:, -1] = 1.0
    probs = np.concatenate([PROBS, MIDPOINTS])
    result = np.stack([_inverse(column, grid, *law, probs) for law in _laws(cdf, at_point)])
    return Prediction(result[:, len(PROBS) :].mean(1), result[:, : len(PROBS)])


def _laws(cdf: np.ndarray, at_point: np.ndarray | None) -> zip:
    mass = np.zeros(len(cdf)) if at_point is None else np.clip(at_point, 0, 1)
    return zip(cdf, mass, strict=True)


def _inverse(
    column: Number, grid: np.ndarray, cdf: np.ndarray, mass: float, probs: np.ndarray
) -> np.ndarray:
    """Quantiles of one law."""
    if column.point is None:
        return _rest(column, grid, cdf, probs)
    # The point is a jump: numbers below it come first, then it, then those above.
    with np.errstate(divide="ignore"):
        place = float(column.map.forward(np.array(column.point)))
    below = (1 - mass) * float(np.interp(place, grid, cdf)) if np.isfinite(place) else 0.0
    if mass >= 1:
        return np.full(len(probs), column.point)
    rest = np.where(probs < below, probs, np.maximum(probs - mass, below)) / (1 - mass)
    at = (probs >= below) & (probs <= below + mass)
    return np.where(at, column.point, _rest(column, grid, cdf, np.clip(rest, 0, 1)))


def _rest(column: Number, grid: np.ndarray, cdf: np.ndarray, probs: np.ndarray) -> np.ndarray:
    step = column.step
    if step is not None and _is_stepwise(column, grid, step):
        # The least value whose upper end has at least the probability.
        place = np.searchsorted(cdf, probs - 1e-12).clip(max=len(grid) - 1)
        return column.from_real(column.map.forward(column.map.inverse(grid[place]) - step / 2))
    place = np.searchsorted(cdf, probs).clip(1, len(grid) - 1)
    low, high = cdf[place - 1], cdf[place]
    share = np.clip((probs - low) / np.maximum(high - low, 1e-300), 0, 1)
    z = grid[place - 1] + share * (grid[place] - grid[place - 1])
    return column.from_real(z)


def _is_stepwise(column: Number, grid: np.ndarray, step: float) -> bool:
    """Whether a grid has the ends of what is rounded to each value."""
    first = column.map.inverse(grid[:2])
    return bool(abs(first[1] - first[0] - step) < 1e-6 * step)
