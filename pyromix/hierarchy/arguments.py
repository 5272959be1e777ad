"""Checks of what a hierarchy is made of, and of values that were rounded."""

__all__ = ["check_event_shape", "check_levels", "check_rounded", "check_rounding", "tile"]

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..core.checks import as_items, check_positive_int
from .levels import Level, Top
from .tiling import Tiling
from .window_law import Rounding

# Values are rounded if they are as near to a multiple of the step as this share of it.
ROUNDING_TOLERANCE = 0.01


def check_event_shape(name: str, value: Any) -> tuple[int, ...]:
    """Sizes of arrays with one or two dimensions and channels."""
    sizes = as_items(value)
    if sizes is None or len(sizes) not in (2, 3):
        raise ValueError(
            f"Expected {name} to be (channels, length) or (channels, height, width), got "
            f"{value!r}."
        )
    return tuple(check_positive_int(f"every size in {name}", size) for size in sizes)


def check_levels(name: str, value: Any) -> tuple[Level | Top, ...]:
    """Levels, of which the last is a top."""
    levels = as_items(value)
    if (
        levels is None
        or len(levels) < 2
        or not all(isinstance(level, Level) for level in levels[:-1])
        or not isinstance(levels[-1], Top)
    ):
        raise ValueError(
            f"Expected {name} to be one or more of Level(...), the lowest first, and a Top(...) "
            f"at the end, got {value!r}."
        )
    for level in levels[1:-1]:
        if level.maps != "shift":
            raise ValueError(
                f"Expected maps at the lowest level alone, as the others see codes, got {level}."
            )
    return tuple(levels)


def check_rounding(name: str, value: Any) -> Rounding | None:
    """How values were rounded, if they were."""
    if value is None:
        return None
    items = as_items(value)
    try:
        step, low, high = (float(item) for item in items or ())
    except (TypeError, ValueError):
        step, low, high = math.nan, math.nan, math.nan
    if not (0 < step < math.inf and low < high):
        raise ValueError(
            f"Expected {name} to be None or (step, low, high) with a positive step and low < "
            f"high, such as (1 / 255, 0.0, 1.0), got {value!r}."
        )
    return Rounding(step, low, high)


def check_rounded(value: Tensor, rounding: Rounding) -> None:
    """Checks that values were rounded as they should be.

    Raises:
        ValueError: If they were not.
    """
    step, low, high = rounding
    place = (value.double() - low) / step
    off = (place - place.round()).abs() > ROUNDING_TOLERANCE
    off = off | (place < -ROUNDING_TOLERANCE) | (place > (high - low) / step + 0.1)
    if bool(off.any()):
        raise ValueError(
            f"Expected values from {low} to {high} in steps of {step:.4g}, got "
            f"{int(off.sum())} others, such as {float(value[off][0]):.4g}. Round and "
            f"clip them first."
        )


def tile(grid: Sequence[int], level: Level | Top) -> Tiling:
    """The windows of a level over a grid.

    Raises:
        ValueError: If they are larger than the grid.
    """
    if isinstance(level, Top):
        return Tiling(grid, grid, grid)
    window, stride = level.sizes(len(grid))
    if any(size > whole for size, whole in zip(window, grid, strict=True)):
        raise ValueError(
            f"Expected windows no larger than the grid that the level sees, {tuple(grid)}, got "
            f"{window} in {level}. Leave a level out, or take smaller windows or strides below."
        )
    return Tiling(grid, window, stride)
