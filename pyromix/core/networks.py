"""Dense networks, and checks of their widths."""

__all__ = ["check_widths", "make_network"]

import itertools
from collections.abc import Iterable, Sequence

from torch import nn

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
