"""Checks of what a model of sequences is given, and of how it is built."""

__all__ = [
    "check_finite",
    "check_lengths",
    "check_row",
    "common_shape",
    "within",
]

from collections.abc import Mapping
from typing import Any

import torch
from torch import Size, Tensor

from ..core.checks import check_tensor, is_traced


def within(lengths: Tensor, num_steps: int) -> Tensor:
    r"""Which steps come before the end of sequences with lengths (\*B): shape (\*B, T)."""
    return torch.arange(num_steps, device=lengths.device) < lengths.unsqueeze(-1)


def check_lengths(lengths: Any, longest: int, like: Tensor) -> Tensor | None:
    """Lengths, None or a tensor of integers from 1 to the longest on a tensor's device."""
    if lengths is None:
        return None
    if not isinstance(lengths, Tensor) or lengths.dtype not in (torch.int64, torch.int32):
        got = lengths.dtype if isinstance(lengths, Tensor) else type(lengths).__name__
        raise ValueError(
            f"Expected lengths to be a tensor of integers, int64 or int32, got {got}."
        )
    if lengths.device != like.device:
        raise ValueError(f"Expected lengths on device {like.device}, got {lengths.device}.")
    if not is_traced() and lengths.numel():
        low, high = (int(t) for t in lengths.aminmax())
        if low < 1 or high > longest:
            raise ValueError(
                f"Expected lengths from 1 to {longest}, got lengths from {low} to {high}. Leave "
                f"empty sequences out."
            )
    return lengths


def check_row(name: str, row: Any, width: int, like: Tensor) -> Tensor:
    r"""A tensor of shape (\*B, width)."""
    row = check_tensor(name, row, like=like)
    if row.dim() < 1 or row.shape[-1] != width:
        raise ValueError(f"Expected {name} of shape (*B, {width}), got {tuple(row.shape)}.")
    return row


def check_finite(name: str, value: Tensor) -> None:
    """Raises an error for NaN or infinity."""
    if not is_traced() and not bool(value.isfinite().all()):
        count = int((~value.isfinite()).sum())
        raise ValueError(
            f"Expected {name} to be finite up to the ends of sequences, got NaN or infinity in "
            f"{count} of {value.numel()} entries. Fill gaps in; pass lengths if it is padding."
        )


def common_shape(tensors: Mapping[str, tuple[Tensor | None, int]]) -> Size:
    """The shape that batch shapes broadcast to; with each tensor, the dimensions of its event."""
    shapes = {
        name: tuple(t.shape[: t.dim() - event_dim])
        for name, (t, event_dim) in tensors.items()
        if t is not None
    }
    try:
        return torch.broadcast_shapes((), *shapes.values())
    except RuntimeError:
        got = ", ".join(f"{shape} of {name}" for name, shape in shapes.items())
        raise ValueError(f"Expected batch shapes that broadcast, got {got}.") from None
