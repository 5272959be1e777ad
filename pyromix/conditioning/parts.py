"""Evidence, and the laws that it is added to, as plain data and back.

Only registered classes are made, by their constructors: reading plain data runs no code that is
part of the data.
"""

__all__ = ["as_part", "as_plain", "register_part"]

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.checks import as_int
from ..core.registry import class_name
from ..evidence import pieces

Take = Callable[[Any], Mapping[str, Any]]
_PARTS: dict[str, tuple[type, Take, Callable[..., Any]]] = {}


def register_part(cls: type, take: Take, make: Callable[..., Any] | None = None) -> None:
    """Makes a class known as a part of laws that are saved.

    Args:
        cls: The class.
        take: What an object is made of, by name: tensors, numbers, strings, collections of them
            and other parts.
        make: The function of these that makes one; by default the constructor.
    """
    _PARTS[class_name(cls)] = cls, take, make or cls


def as_plain(value: Any) -> Any:
    """Registered parts, tensors, numbers and strings as the latter three and collections of them.

    Raises:
        ValueError: If the value is, or holds, anything else, such as a function.
    """
    if value is None or isinstance(value, bool | int | float | str | Tensor):
        return value
    known = _PARTS.get(class_name(type(value)))
    if known is not None and known[0] is type(value):
        return {"part": class_name(type(value)), "of": as_plain(dict(known[1](value)))}
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, Mapping):
        keys = [key if isinstance(key, str) else as_int(key) for key in value]
        return {"keys": keys, "values": [as_plain(each) for each in value.values()]}
    if isinstance(value, tuple):
        return tuple(as_plain(each) for each in value)
    if isinstance(value, list):
        return [as_plain(each) for each in value]
    raise ValueError(
        f"Expected a law of tensors and numbers, got one that holds a {type(value).__name__}. "
        f"Save the model that it was made from, and condition that again after loading."
    )


def as_part(data: Any, device: torch.device) -> Any:
    """What `as_plain` described, with tensors on a device.

    Raises:
        ValueError: If the data names an unknown class.
    """
    match data:
        case {"part": name, "of": parts}:
            if name not in _PARTS:
                raise ValueError(f"It holds a {name}, of which this version knows nothing.")
            return _PARTS[name][2](**as_part(parts, device))
        case {"keys": keys, "values": values}:
            each = [as_part(value, device) for value in values]
            return dict(zip(keys, each, strict=True))
        case tuple():
            return tuple(as_part(value, device) for value in data)
        case list():
            return [as_part(value, device) for value in data]
    return data.to(device) if isinstance(data, Tensor) else data


def _attributes(*names: str) -> Take:
    return lambda obj: {name: getattr(obj, name) for name in names}


register_part(pieces.Observed, _attributes("values"))
register_part(pieces.GaussianPrior, _attributes("loc", "scale"))
register_part(pieces.CategoricalPrior, _attributes("index", "probs"))
register_part(pieces.Box, _attributes("low", "high"))
register_part(pieces.LinearInequality, _attributes("a", "b"))
register_part(pieces.LinearEquality, _attributes("a", "b"))
register_part(pieces.LinearGaussian, _attributes("matrix", "y", "noise"))
register_part(
    pieces.AnyOf, _attributes("alternatives"), lambda alternatives: pieces.AnyOf(*alternatives)
)
