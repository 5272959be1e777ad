"""Evidence about the entries of arrays as evidence about vectors."""

__all__ = ["entries_called", "flat_evidence"]

import copy
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import Size, Tensor

from ..core.checks import as_items, check_index
from ..evidence.naming import called, coordinate
from ..evidence.pieces import AnyOf, Evidence, Nonlinear, Observed


def entries_called(event_shape: Size) -> AbstractContextManager[None]:
    """Has messages about flattened entries tell their indices in the array."""

    def index(d: int) -> str:
        place, channel = divmod(d, event_shape[0])
        cell = torch.unravel_index(torch.tensor(place), event_shape[1:])
        return ", ".join(map(str, (channel, *(int(i) for i in cell))))

    return called(lambda d: f"entry ({index(d)})", lambda d: f"x[{index(d)}]")


def flat_evidence(piece: Any, event_shape: Size) -> Evidence:
    """A piece of evidence about arrays (channels, *grid) as one about (P channels,) numbers.

    Args:
        piece: Evidence whose tensors have the event shape in place of a number of columns. Keys of
            values are tuples of indices. A mapping is short for `Observed`; an array of the event
            shape, NaN where nothing is known, too.
        event_shape: The shape of an array.

    Raises:
        ValueError: If it does not fit the array.
    """
    if isinstance(piece, Tensor | np.ndarray | list):
        return _of_array(torch.as_tensor(piece), event_shape)
    if isinstance(piece, Mapping):
        piece = Observed(piece)
    if isinstance(piece, Observed):
        return Observed(_by_index(piece.values, event_shape))
    if isinstance(piece, AnyOf):
        return AnyOf(
            *([flat_evidence(p, event_shape) for p in parts] for parts in piece.alternatives)
        )
    if isinstance(piece, Nonlinear):
        raise ValueError(
            "Expected linear statements about an array, got a Nonlinear one. Draw from the law "
            "given the others, and weight the draws by it."
        )
    if not isinstance(piece, Evidence):
        raise ValueError(
            f"Expected pieces of evidence such as pyromix.Box(low, high), each an argument of its "
            f"own, or an array with NaN where nothing is known, got {type(piece).__name__}."
        )
    flat = copy.copy(piece)
    for name, dims in piece.dims.items():
        if name in ("b", "y", "noise"):  # of statements, not of entries
            continue
        setattr(flat, name, _flatten(name, getattr(piece, name), dims, event_shape))
    return flat


def _by_index(values: Mapping[Any, Any], event_shape: Size) -> dict[int, Any]:
    """Values of entries by their place in the flattened array."""
    found: dict[int, Any] = {}
    for key, value in values.items():
        index = _index(key, event_shape)
        if index in found:  # as a negative index, too
            raise ValueError(
                f"Expected each entry to be observed once, got {coordinate(index)} twice."
            )
        found[index] = value
    return found


def _flatten(name: str, value: Any, dims: int, event_shape: Size) -> Any:
    try:
        tensor = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(
            f"Expected {name} as numbers of the array's shape {tuple(event_shape)}, got "
            f"{type(value).__name__}."
        ) from None
    if tensor.dim() == 0:
        return value
    count = len(event_shape)
    if tensor.dim() > count + dims - 1:
        raise ValueError(
            f"Expected {name} for one array of shape {tuple(event_shape)}, got shape "
            f"{tuple(tensor.shape)}. Condition on each of several by itself."
        )
    if dims == 1:
        try:
            tensor = tensor.expand(event_shape)
        except RuntimeError:
            raise ValueError(
                f"Expected {name} to be a number, or of a shape that broadcasts with that of the "
                f"array, {tuple(event_shape)}, got {tuple(tensor.shape)}."
            ) from None
    elif tensor.shape[-count:] != event_shape:
        raise ValueError(
            f"Expected {name} of shape (m, {', '.join(map(str, event_shape))}), or that without "
            f"m, got {tuple(tensor.shape)}."
        )
    return tensor.movedim(-count, -1).flatten(-count)


def _index(key: Any, event_shape: Size) -> int:
    items = as_items(key)
    if items is None or len(items) != len(event_shape):
        raise ValueError(
            f"Expected an entry of an array of shape {tuple(event_shape)} as {len(event_shape)} "
            f"indices, such as {tuple(0 for _ in event_shape)}, got {key!r}."
        )
    channel, *rest = (
        check_index("an index of an entry", item, size)
        for item, size in zip(items, event_shape, strict=True)
    )
    place = 0
    for own, size in zip(rest, event_shape[1:], strict=True):
        place = place * size + own
    return place * event_shape[0] + channel


def _of_array(value: Tensor, event_shape: Sequence[int]) -> Observed:
    if value.shape != Size(event_shape):
        raise ValueError(
            f"Expected an array of shape {tuple(event_shape)}, NaN where nothing is known, got "
            f"{tuple(value.shape)}."
        )
    flat = value.movedim(0, -1).flatten()
    known = (~flat.isnan()).nonzero().squeeze(-1).tolist()
    if not known:
        raise ValueError("Expected an array of which something is known, got NaN alone.")
    return Observed({index: flat[index] for index in known})
