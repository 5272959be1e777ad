"""Recovers the arguments that an object was constructed with, so that it can be rebuilt.

PyTorch's and Pyro's distributions and transforms do not keep them together, but nearly all keep
each argument as an attribute of the same name. The exceptions are listed here.
"""

__all__ = ["UnknownArgumentsError", "constructor_arguments"]

import inspect
from collections.abc import Callable
from typing import Any

import pyro.distributions.transforms as transforms
import pyro.nn
from torch import nn
from torch.distributions import Independent, TransformedDistribution
from torch.distributions.utils import lazy_property

_MISSING = object()


class UnknownArgumentsError(TypeError):
    """The arguments that an object was constructed with cannot be recovered."""


def constructor_arguments(obj: object, *, strict: bool = False) -> dict[str, Any]:
    """Returns the arguments of an object's constructor, recovered from its attributes.

    Each parameter of ``type(obj).__init__`` is looked up as an attribute ``name`` or ``_name``.
    Of alternative parameters of a law, such as ``probs`` and ``logits``, one is returned.

    Args:
        obj: A distribution, transform or module.
        strict: Whether an argument that has a default must be an attribute, too. Otherwise the
            default is taken to be the value of one that is not.

    Returns:
        Keyword arguments, such that ``type(obj)(**arguments)`` equals the object up to the values
        of its learnable parameters. Arguments left at their defaults may be missing.

    Raises:
        UnknownArgumentsError: If an argument that is needed is not an attribute of the object.

    Example:
        >>> from torch.distributions import Normal
        >>> constructor_arguments(Normal(0.0, 1.0))
        {'loc': tensor(0.), 'scale': tensor(1.)}
    """
    cls = type(obj)
    special = _SPECIAL.get(cls, {})
    arguments: dict[str, Any] = {}
    alternatives: list[str] = []
    for name, parameter in inspect.signature(cls.__init__).parameters.items():
        if name in ("self", "validate_args") or name in getattr(cls, "argument_aliases", ()):
            continue
        if parameter.kind is parameter.VAR_POSITIONAL:
            if strict:
                raise UnknownArgumentsError(
                    f"Cannot tell with which *{name} this {cls.__name__} was constructed. Use "
                    f"named arguments, and keep each as an attribute of its name."
                )
            continue
        if name in special:
            arguments[name] = special[name](obj)
        elif parameter.kind is parameter.VAR_KEYWORD:
            arguments.update(getattr(obj, name, {}))
        elif parameter.default is parameter.empty:
            arguments[name] = _needed(obj, name)
        elif isinstance(inspect.getattr_static(cls, name, None), lazy_property | property):
            alternatives.append(name)
        elif strict:
            arguments[name] = _needed(obj, name)
        elif (value := _stored(obj, name)) is not _MISSING:
            arguments[name] = value
    if alternatives:
        choice = _choose(alternatives, obj)
        arguments[choice] = getattr(obj, choice)
    return arguments


def _choose(alternatives: list[str], obj: object) -> str:
    """Returns the name of one of several alternative parameters of a law.

    PyTorch stores the one that it was given, and others after they have been computed.
    """
    stored = [name for name in alternatives if _stored(obj, name) is not _MISSING]
    if "scale_tril" in alternatives and "scale" not in stored:
        return "scale_tril"  # always there, and needs no factorisation
    return "logits" if "logits" in stored else (stored or alternatives)[0]


def _needed(obj: object, name: str) -> Any:
    """The attribute for an argument that must be known.

    Raises:
        UnknownArgumentsError: If there is none.
    """
    value = _stored(obj, name)
    value = getattr(obj, name, _MISSING) if value is _MISSING else value
    if value is _MISSING:
        raise UnknownArgumentsError(
            f"Cannot tell with which {name!r} this {type(obj).__name__} was constructed. "
            f"Keep it as an attribute of that name."
        )
    return value


def _stored(obj: object, name: str) -> Any:
    """An attribute that was set on the object itself, as ``name`` or ``_name``; else _MISSING."""
    places = [vars(obj)]
    if isinstance(obj, nn.Module) and "_parameters" in vars(obj):
        places += [obj._parameters, obj._buffers, obj._modules]
    for key in (name, f"_{name}"):
        for place in places:
            if place.get(key) is not None:
                return place[key]
    return _MISSING


def _attribute(path: str) -> Callable[[Any], Any]:
    """A function from an object to its attribute at a path with dots."""

    def get(obj: Any) -> Any:
        for part in path.split("."):
            obj = getattr(obj, part)
        return obj

    return get


def _size(name: str, dim: int) -> Callable[[Any], int]:
    """A function from an object to the size of a dimension of its attribute."""
    return lambda obj: getattr(obj, name).shape[dim]


def _activation(obj: Any) -> str:
    """The name of the activation of one of Pyro's transforms.

    Raises:
        UnknownArgumentsError: If it is none of Pyro's.
    """
    names = {
        transforms.ELUTransform: "ELU",
        transforms.LeakyReLUTransform: "LeakyReLU",
        transforms.SigmoidTransform: "sigmoid",
        transforms.TanhTransform: "tanh",
    }
    for cls, name in names.items():
        if isinstance(obj.T, cls):
            return name
    raise UnknownArgumentsError(f"Unknown activation {obj.T!r} of {type(obj).__name__}.")


# Arguments that the constructor stores under another name, or only the shape of.
_SPECIAL: dict[type, dict[str, Callable[[Any], Any]]] = {
    Independent: {"base_distribution": _attribute("base_dist")},
    pyro.distributions.Independent: {"base_distribution": _attribute("base_dist")},
    TransformedDistribution: {"base_distribution": _attribute("base_dist")},
    pyro.distributions.TransformedDistribution: {"base_distribution": _attribute("base_dist")},
    pyro.nn.DenseNN: {"nonlinearity": _attribute("f")},
    pyro.nn.ConditionalDenseNN: {"nonlinearity": _attribute("f")},
    pyro.nn.AutoRegressiveNN: {
        "nonlinearity": _attribute("f"),
        "skip_connections": lambda obj: obj.skip_layer is not None,
    },
    pyro.nn.ConditionalAutoRegressiveNN: {
        "nonlinearity": _attribute("f"),
        "skip_connections": lambda obj: obj.skip_layer is not None,
    },
    transforms.StackTransform: {"tseq": _attribute("transforms")},
    transforms.CatTransform: {"tseq": _attribute("transforms")},
    transforms.AffineAutoregressive: {"autoregressive_nn": _attribute("arn")},
    transforms.AffineCoupling: {"hypernet": _attribute("nn")},
    transforms.BlockAutoregressive: {
        "activation": _activation,
        "hidden_factors": lambda obj: [
            layer.out_features // obj.input_dim for layer in list(obj.layers)[:-1]
        ],
    },
    transforms.ConditionalAffineAutoregressive: {"autoregressive_nn": _attribute("nn")},
    transforms.ConditionalAffineCoupling: {"hypernet": _attribute("nn")},
    transforms.ConditionalNeuralAutoregressive: {"autoregressive_nn": _attribute("nn")},
    transforms.ConditionalSplineAutoregressive: {"autoregressive_nn": _attribute("nn")},
    transforms.GeneralizedChannelPermute: {"channels": _size("LU", 0)},
    transforms.Householder: {"count_transforms": _size("u_unnormed", -2)},
    transforms.MatrixExponential: {"input_dim": _size("weights", 0)},
    transforms.NeuralAutoregressive: {
        "autoregressive_nn": _attribute("arn"),
        "activation": _activation,
    },
    transforms.Planar: {"input_dim": _size("u", 0)},
    transforms.Polynomial: {"autoregressive_nn": _attribute("arn")},
    transforms.Radial: {"input_dim": _size("x0", 0)},
    transforms.SplineAutoregressive: {
        "autoregressive_nn": _attribute("arn"),
        "input_dim": _attribute("spline.input_dim"),
        "count_bins": _attribute("spline.count_bins"),
        "bound": _attribute("spline.bound"),
        "order": _attribute("spline.order"),
    },
    transforms.SplineCoupling: {
        "input_dim": lambda obj: obj.split_dim + obj.upper_spline.input_dim,
        "hypernet": _attribute("upper_spline.nn"),
        "count_bins": _attribute("lower_spline.count_bins"),
        "bound": _attribute("lower_spline.bound"),
        "order": _attribute("lower_spline.order"),
    },
    transforms.Sylvester: {"count_transforms": _size("u_unnormed", -2)},
}
