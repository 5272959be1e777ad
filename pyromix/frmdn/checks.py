"""Checks of what a model of sequences is given."""

__all__ = ["as_lengths", "check_finite", "common_shape", "within"]

from collections.abc import Mapping
from typing import Any

import torch
from torch import Size, Tensor

from ..core.checks import is_traced
from ..core.conversions import as_integers


def within(lengths: Tensor, num_steps: int) -> Tensor:
    r"""Which of T steps lie within sequences of lengths (\*B): booleans of shape (\*B, T)."""
    return torch.arange(num_steps, device=lengths.device) < lengths.unsqueeze(-1)


def as_lengths(lengths: Any, longest: int, *, like: Tensor) -> Tensor | None:
    r"""Returns lengths of sequences as a tensor of integers; None where they are not given.

    Args:
        lengths: None, or integers from 1 to the longest, shape (\*B): a tensor, an array, a list
            or a number.
        longest: The number of steps that there are.
        like: A tensor on the device that is wanted.

    Raises:
        ValueError: If they are not integers, out of range, or on another device.
    """
    if lengths is None:
        return None
    where = " (leave empty sequences out)"
    return as_integers("lengths", lengths, 1, longest, like=like, where=where)


def check_finite(name: str, value: Tensor) -> None:
    """Raises an error for NaN or infinity."""
    if not is_traced() and not bool(value.isfinite().all()):
        count = int((~value.isfinite()).sum())
        raise ValueError(
            f"Expected {name} to be finite up to the ends of sequences, got NaN or infinity in "
            f"{count} of {value.numel()} entries. Fill gaps in; pass lengths if it is padding."
        )


def common_shape(tensors: Mapping[str, tuple[Tensor | None, int]]) -> Size:
    """The shape that batch shapes broadcast to.

    Args:
        tensors: Name -> a tensor, or None, and the number of its dimensions that are no batch.

    Raises:
        ValueError: If they do not broadcast.
    """
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
