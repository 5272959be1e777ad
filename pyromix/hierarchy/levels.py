"""Descriptions of the levels of a hierarchy."""

__all__ = ["Level", "Top"]

from collections.abc import Sequence
from dataclasses import dataclass

from ..core.checks import as_int, as_items, check_choice, check_positive_int
from ..core.registry import register
from ..drmm.map_parameters import KINDS


@dataclass(frozen=True)
class Level:
    """A residual mixture over windows, which all of them share.

    Args:
        window: Size of the windows: one number, or one for each dimension of the grid.
        stride: Distance between windows, at most their size; by default they do not overlap.
            Where they do, an entry is drawn by the first window that shows it. Later ones are
            given it, which matters to triangular maps alone: a window continues what those
            before it drew.
        num_layers: Number of layers of the mixture.
        num_components: Components of a layer.
        maps: What layers do next to subtracting means, see `DRMM`; at the lowest level alone.
            Triangular maps of windows that overlap are for sequences.

    Raises:
        ValueError: For numbers that are not positive integers, a stride that leaves gaps, or an
            unknown map.
    """

    window: int | Sequence[int]
    stride: int | Sequence[int] | None = None
    num_layers: int = 2
    num_components: int = 64
    maps: str = "shift"

    def __post_init__(self) -> None:
        _check_sizes(self)
        check_choice("maps", self.maps, [kind for kind in KINDS if kind != "low_rank"])
        window = _as_sizes("window", self.window)
        stride = window if self.stride is None else _as_sizes("stride", self.stride)
        if len(window) == len(stride) and any(
            step > size for step, size in zip(stride, window, strict=True)
        ):
            raise ValueError(
                f"Expected a stride of at most the window {window}, got {stride}: no window would "
                f"show what lies between."
            )
        # One number stands for all dimensions.
        object.__setattr__(self, "window", window[0] if len(window) == 1 else window)
        object.__setattr__(self, "stride", stride[0] if len(stride) == 1 else stride)

    def sizes(self, dims: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Window and stride in every dimension of a grid.

        Raises:
            ValueError: If they are given for another number of dimensions.
        """
        return _expand("window", self.window, dims), _expand("stride", self.stride, dims)


@dataclass(frozen=True)
class Top:
    """The residual mixture over all that the level below has, at the top of a hierarchy.

    Args:
        num_layers: Number of layers of the mixture.
        num_components: Components of a layer.

    Raises:
        ValueError: For numbers that are not positive integers.
    """

    num_layers: int = 4
    num_components: int = 256

    def __post_init__(self) -> None:
        _check_sizes(self)


def _check_sizes(level: Level | Top) -> None:
    for name in ("num_layers", "num_components"):
        object.__setattr__(level, name, check_positive_int(name, getattr(level, name)))


def _as_sizes(name: str, value: object) -> tuple[int, ...]:
    one = as_int(value)
    items = [one] if one is not None else as_items(value)
    if items is None or len(items) not in (1, 2):
        raise ValueError(
            f"Expected {name} to be one number, or one for each of two dimensions, got {value!r}."
        )
    return tuple(check_positive_int(f"every size in {name}", item) for item in items)


def _expand(name: str, value: object, dims: int) -> tuple[int, ...]:
    sizes = _as_sizes(name, value)
    if len(sizes) == 1:
        return sizes * dims
    if len(sizes) != dims:
        raise ValueError(
            f"Expected {name} to be one number or {dims} for a grid of {dims} dimension(s), got "
            f"{value!r}."
        )
    return sizes


for _class in (Level, Top):
    register(_class)
