"""Draws that leave no graph, whoever records how they were made."""

__all__ = ["without_graph"]

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

import torch

Method = TypeVar("Method", bound=Callable[..., Any])


def without_graph(method: Method) -> Method:
    """Lets a method compute without gradients, and return tensors that have none.

    `torch.no_grad` is not enough: `torch.jit.trace`, and with it Pyro's `JitTrace_ELBO`, records
    operations, but not that gradients were off. What it replays has gradients through draws, and
    those of the score function are wrong. It does record that a result was detached.

    Args:
        method: Returns a tensor or a tuple of tensors.
    """

    @wraps(method)
    def draw(*args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            result = method(*args, **kwargs)
        if isinstance(result, tuple):
            return tuple(part.detach() for part in result)
        return result.detach()

    return cast(Method, draw)
