"""Objects as plain data and back: numbers, strings, lists and names of known constructors.

Only registered classes can be rebuilt, and only by calling their constructor: reading plain data
runs no code that is part of the data.
"""

__all__ = ["NotPlainError", "decode", "encode", "register"]

import math
from typing import Any

import pyro.distributions
import pyro.distributions.transforms
import pyro.nn
import torch
from torch import Size, Tensor, nn
from torch.distributions import Distribution, Transform

from .arguments import UnknownArgumentsError, constructor_arguments


class NotPlainError(TypeError):
    """An object cannot be described by the name of a known constructor and its arguments."""


def register(cls: type) -> None:
    """Makes a class known by name, so that a model that holds it can be loaded.

    Subclasses of `DistributionModule` are registered as they are defined. A transform or network
    of one's own must keep each constructor argument as an attribute of the same name, or have
    methods ``config()`` and ``from_config(config)``. A class that is defined again, as in a
    notebook or a module that is reloaded, takes the place of the earlier one.

    Args:
        cls: The class. It must be registered before a file is loaded, too.

    Raises:
        ValueError: If a class of another module is known by this name.
    """
    name = class_name(cls)
    known = _CLASSES.get(name, cls)
    if known.__module__ != cls.__module__:
        raise ValueError(
            f"Expected classes of different names, got two that are registered as {name!r}, in "
            f"{known.__module__} and {cls.__module__}. Rename one of them: files could not tell "
            f"them apart."
        )
    _CLASSES[name] = cls


def class_name(cls: type) -> str:
    """Returns the name under which a class is registered.

    It is that of the module and the qualified name; for classes of this library
    ``pyromix.<qualified name>``, so that files do not depend on where its modules are.
    """
    package = cls.__module__.partition(".")[0]
    return f"{'pyromix' if package == 'pyromix' else cls.__module__}.{cls.__qualname__}"


def encode(value: Any) -> Any:
    """Returns a description of a value as plain data that JSON can hold.

    A tensor is described by its shape and dtype alone: its values belong to a state dict.

    Raises:
        NotPlainError: If the value is, or holds, an object of an unknown class.
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, list):
        return [encode(v) for v in value]
    if isinstance(value, nn.ModuleList):
        # A module that occurs twice is one object again when it is rebuilt.
        first = {id(part): i for i, part in reversed(list(enumerate(value)))}
        return [
            encode(part) if first[id(part)] == i else {"same as": first[id(part)]}
            for i, part in enumerate(value)
        ]
    if isinstance(value, tuple):  # torch.Size, too
        return {"tuple": [encode(v) for v in value]}
    if isinstance(value, dict):
        return {"dict": [[encode(k), encode(v)] for k, v in value.items()]}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, Tensor):
        kind = "parameter" if isinstance(value, nn.Parameter) else "tensor"
        return {kind: list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
    if isinstance(value, type):
        return {"class": _known_name(value)}
    name = _known_name(type(value))
    try:
        config = value.config() if hasattr(value, "config") else _encode_arguments(value)
    except UnknownArgumentsError as error:
        raise NotPlainError(str(error)) from error
    return {"object": name, "config": config}


def decode(data: Any) -> Any:
    """Returns the value that `encode` described; tensors are zeros of the right shape and dtype.

    Raises:
        ValueError: If the data names an unknown class, or is not of the form `encode` writes.
    """
    if data is None or isinstance(data, bool | int | str | float):
        return data
    if isinstance(data, list):
        items: list[Any] = []
        for item in data:
            same = item.get("same as") if isinstance(item, dict) else None
            items.append(decode(item) if same is None else items[same])
        return items
    if not isinstance(data, dict):
        raise ValueError(f"Expected plain data, got {type(data).__name__}.")
    match data:
        case {"float": str(text)}:
            return float(text)
        case {"tuple": list(items)}:
            return tuple(decode(v) for v in items)
        case {"dict": list(items)}:
            return {decode(k): decode(v) for k, v in items}
        case {"tensor": list(shape), "dtype": str(dtype)}:
            return torch.zeros(Size(shape), dtype=_dtype(dtype))
        case {"parameter": list(shape), "dtype": str(dtype)}:
            return nn.Parameter(torch.zeros(Size(shape), dtype=_dtype(dtype)))
        case {"dtype": str(dtype)}:
            return _dtype(dtype)
        case {"class": str(name)}:
            return _known_class(name)
        case {"object": str(name), "config": config}:
            cls = _known_class(name)
            if hasattr(cls, "from_config"):
                return cls.from_config(config)
            return cls(**{key: decode(v) for key, v in config.items()})
    raise ValueError(f"Expected plain data as written by pyromix, got keys {sorted(data)}.")


def _encode_arguments(obj: object) -> dict[str, Any]:
    """The constructor's arguments of an object as plain data."""
    return {name: encode(value) for name, value in constructor_arguments(obj).items()}


def _known_name(cls: type) -> str:
    """The name of a registered class.

    Raises:
        NotPlainError: If the class is not registered.
    """
    name = class_name(cls)
    if _CLASSES.get(name) is not cls:
        raise NotPlainError(
            f"Class {name} is not known to pyromix. A DistributionModule is registered when it "
            f"is defined; PyTorch's and Pyro's distributions and transforms, and Pyro's "
            f"networks, are known. Register your own with pyromix.register(cls), or load the "
            f"model with load(path, into=model)."
        )
    return name


def _known_class(name: str) -> type:
    """The registered class of a name.

    Raises:
        ValueError: If there is none.
    """
    try:
        return _CLASSES[name]
    except KeyError:
        raise ValueError(
            f"Unknown class {name!r}. If it is yours, import the module that defines it before "
            f"loading, or build the model and call load(path, into=model)."
        ) from None


def _dtype(name: str) -> torch.dtype:
    """The dtype of a name.

    Raises:
        ValueError: If there is none.
    """
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"Unknown dtype {name!r}.")
    return dtype


def _public_classes() -> dict[str, type]:
    """Classes of PyTorch and Pyro that are known from the start, by name."""
    namespaces = (
        torch.distributions,
        pyro.distributions,
        torch.distributions.transforms,
        pyro.distributions.transforms,
    )
    found = [
        value
        for namespace in namespaces
        for value in vars(namespace).values()
        if isinstance(value, type) and issubclass(value, Distribution | Transform | nn.Module)
    ]
    networks = [
        pyro.nn.DenseNN,
        pyro.nn.ConditionalDenseNN,
        pyro.nn.AutoRegressiveNN,
        pyro.nn.ConditionalAutoRegressiveNN,
    ]
    activations = [
        getattr(nn.modules.activation, name)
        for name in nn.modules.activation.__all__
        if name != "MultiheadAttention"
    ]
    inverse = pyro.distributions.conditional._ConditionalInverseTransformModule
    return {class_name(cls): cls for cls in [*found, *networks, *activations, inverse]}


_CLASSES: dict[str, type] = _public_classes()
