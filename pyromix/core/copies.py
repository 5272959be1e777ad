"""Copies of laws that hold tensors computed from parameters."""

__all__ = ["without_graphs"]

from functools import partial
from types import MethodType
from typing import Any

from torch import Tensor, nn


def without_graphs(obj: Any, seen: dict[int, Any] | None = None) -> Any:
    """What an object is made of, with tensors that have a graph replaced by their values.

    Objects of this library but for modules, containers, and methods are looked into, and made
    anew; all else is taken as it is.

    Args:
        obj: The object.
        seen: What was replaced so far, by the identity of the original.
    """
    seen = {} if seen is None else seen
    if id(obj) in seen:
        return seen[id(obj)]
    if isinstance(obj, Tensor):
        result: Any = obj if obj.is_leaf else obj.detach()
    elif isinstance(obj, dict):
        result = seen[id(obj)] = {}
        result.update({key: without_graphs(value, seen) for key, value in obj.items()})
    elif isinstance(obj, list):
        result = [without_graphs(value, seen) for value in obj]
    elif isinstance(obj, tuple):
        values = [without_graphs(value, seen) for value in obj]
        result = type(obj)(*values) if hasattr(obj, "_fields") else tuple(values)
    elif isinstance(obj, partial):
        parts = without_graphs((obj.func, obj.args, obj.keywords), seen)
        result = partial(parts[0], *parts[1], **parts[2])
    elif isinstance(obj, MethodType):
        result = MethodType(obj.__func__, without_graphs(obj.__self__, seen))
    elif type(obj).__module__.split(".")[0] == __name__.split(".")[0] and _has_parts(obj):
        result = seen[id(obj)] = object.__new__(type(obj))
        vars(result).update(
            {name: without_graphs(value, seen) for name, value in vars(obj).items()}
        )
    else:
        result = obj
    seen[id(obj)] = result
    return result


def _has_parts(obj: Any) -> bool:
    """Whether an object keeps what it is made of as attributes, and is no module."""
    return hasattr(obj, "__dict__") and not isinstance(obj, nn.Module | type)
