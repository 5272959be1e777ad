"""Checks of the transforms that a model of sequences is built with."""

__all__ = ["check_transforms"]

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from ..core.random import draws_from
from ..flows.wrapping import unwrap


def check_transforms(
    transforms: Iterable[Any], draw: Callable[[], Tensor], dim: int, hidden_dim: int
) -> None:
    """Checks that transforms take real vectors to real vectors, of the model's dimensions.

    Args:
        transforms: The transforms, as modules.
        draw: Draws two values through the transforms, to see if they fit.
        dim: Entries of a value.
        hidden_dim: Width of the state, on which conditional transforms depend.

    Raises:
        ValueError: If one does not fit.
    """
    for transform in transforms:
        for end in ("domain", "codomain"):
            _check_space(transform, end)
    try:
        with draws_from(torch.Generator()), torch.no_grad():
            drawn = draw()
        fits = drawn.shape == (2, dim)
    except (RuntimeError, ValueError, TypeError) as error:
        fits, reason = False, f" ({error})"
    else:
        reason = f" (draws have shape {tuple(drawn.shape[1:])})"
    if not fits:
        raise ValueError(
            f"Expected transforms of vectors of dim={dim} entries, of which conditional ones have "
            f"context_dim=hidden_dim={hidden_dim}, got {[_name(t) for t in transforms]}{reason}."
        )


def _check_space(transform: Any, end: str) -> None:
    """Checks that the domain or codomain of a transform is all of space."""
    space = getattr(transform, end, constraints.real_vector)
    while isinstance(space, constraints.independent):
        space = space.base_constraint
    if space is not constraints.real and space.event_dim > 1:
        raise ValueError(
            f"Expected transforms of vectors, got {_name(transform)} over events of "
            f"{space.event_dim} dimensions."
        )
    if space not in (constraints.real, constraints.real_vector):
        raise ValueError(
            f"Expected transforms of real vectors onto real vectors, got {_name(transform)} with "
            f"a {end} of {space}. For values that are bounded put the model into a Flow: "
            f"Flow(FRMDN(...), [transform])."
        )


def _name(transform: Any) -> str:
    """Name of a transform's class, without the wrapper that makes it a module."""
    return type(unwrap(transform)).__name__
