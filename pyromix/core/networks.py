"""Dense networks, the standardisation of their inputs, and checks of their widths."""

__all__ = ["Standardize", "check_widths", "location_and_scale", "make_network"]

import itertools
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from .checks import as_items, check_positive_int


def make_network(num_inputs: int, hidden_dims: Sequence[int], num_outputs: int) -> nn.Sequential:
    """Returns a dense network of rectified units.

    Args:
        num_inputs: Number of inputs.
        hidden_dims: Widths of the hidden layers; none make a linear map.
        num_outputs: Number of outputs.
    """
    widths = [num_inputs, *hidden_dims]
    layers: list[nn.Module] = []
    for width, following in itertools.pairwise(widths):
        layers += [nn.Linear(width, following), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], num_outputs))


def check_widths(name: str, widths: Iterable[int]) -> tuple[int, ...]:
    """Checks the widths of hidden layers, and returns them as a tuple.

    Args:
        name: What to call them in the error.
        widths: Any number of positive integers.

    Raises:
        ValueError: If they are no sequence, or one is not a positive integer.
    """
    items = as_items(widths)
    if items is None:
        raise ValueError(
            f"Expected {name} to be a sequence of widths, such as (64,), got {widths!r}."
        )
    return tuple(check_positive_int(f"every width in {name}", width) for width in items)


class Standardize(nn.Module):
    r"""Subtracts a location and divides by a scale, coordinate by coordinate.

    A new one changes nothing, until `set_from` has seen data.

    Args:
        dim: Number of coordinates.
        optional: Whether files of models may lack it, as those of earlier versions do.
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, dim: int, *, optional: bool = False) -> None:
        super().__init__()
        self.optional = optional
        self.register_buffer("loc", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))

    def forward(self, value: Tensor) -> Tensor:
        r"""Returns values of shape (\*B, dim) less the location, divided by the scale."""
        return (value - self.loc) / self.scale

    @torch.no_grad()
    def set_from(self, rows: Tensor) -> None:
        """Sets location and scale to mean and standard deviation of rows (N, dim)."""
        loc, scale = location_and_scale(rows)
        self.loc.copy_(loc)
        self.scale.copy_(scale)


def location_and_scale(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every column of rows (N, dim), two tensors of shape (dim,).

    The scale of a constant column is one. Constant is one whose values are equal, or differ by no
    more than their dtype rounds: the timestamps of a minute, of standard deviation 20 around
    1.7e9, vary in float64.
    """
    loc, scale = rows.mean(0), rows.std(0, correction=0)
    varies = scale > torch.finfo(rows.dtype).eps * loc.abs()
    if len(rows):
        varies &= rows.amax(0) > rows.amin(0)
    return loc, torch.where(varies, scale, torch.ones_like(scale))
