"""PyTorch's and Pyro's distributions and transforms as modules that own their tensors.

``Normal(loc, scale)`` keeps its tensors as attributes: as part of a module they would be missed
by ``.to()``, ``state_dict()`` and ``parameters()``. The wrappers here register the constructor's
tensors, and construct the object anew for every use.
"""

__all__ = [
    "InverseTransform",
    "PlainDistribution",
    "PlainTransform",
    "as_distribution_module",
    "as_transform_module",
    "as_transform_modules",
    "inverse_at",
    "unwrap",
]

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from pyro.distributions.conditional import (
    ConditionalComposeTransformModule,
    ConditionalTransform,
    ConstantConditionalTransform,
)
from pyro.distributions.torch_transform import TransformModule
from torch import Size, Tensor, nn
from torch.distributions import ComposeTransform, Distribution, Transform, constraints
from torch.distributions.transforms import CatTransform, StackTransform, _InverseTransform
from torch.overrides import TorchFunctionMode

from ..core.arguments import UnknownArgumentsError, constructor_arguments
from ..core.checks import is_traced
from ..core.law_module import LawModule
from ..core.registry import decode, encode, register
from .borders import PRECISE
from .branching import BranchingTransform, inverted_message
from .splines import keep_splines_inside


def as_distribution_module(distribution: Distribution) -> Any:
    """Returns a distribution as a module that owns its tensors: itself if it is one, or wrapped.

    Raises:
        TypeError: If it is not a distribution, or its tensors cannot be found.
    """
    if not isinstance(distribution, Distribution):
        raise TypeError(f"Expected a distribution, got {type(distribution).__name__}.")
    if isinstance(distribution, nn.Module):
        return distribution
    return PlainDistribution.wrap(distribution)


def as_transform_module(transform: Transform | ConditionalTransform) -> Any:
    """Returns a transform as a module that owns its tensors: itself if it is one, or wrapped.

    Raises:
        TypeError: If it is not a transform, or its tensors cannot be found.
        ValueError: If it is the inverse of a transform that draws branches.
    """
    if isinstance(transform, _InverseTransform):
        if isinstance(transform.inv, BranchingTransform):
            raise ValueError(inverted_message(transform.inv))
        # These keep their transform out of sight of modules, and lose it in copies.
        return InverseTransform(as_transform_module(transform.inv))
    if isinstance(transform, nn.Module):
        keep_splines_inside(transform)
        return transform
    if isinstance(transform, Transform):
        return PlainTransform.wrap(transform)
    raise TypeError(
        f"Expected a transform (torch.distributions.Transform, or a conditional one of Pyro), "
        f"got {type(transform).__name__}."
    )


def as_transform_modules(transforms: Any) -> list[Any]:
    """Returns transforms as modules, with compositions replaced by their parts.

    Args:
        transforms: A transform, or a sequence of them.

    Raises:
        TypeError: If one is not a transform, or its tensors cannot be found.
        ValueError: If one is the inverse of a transform that draws branches.
    """
    if isinstance(transforms, Transform | ConditionalTransform):
        transforms = [transforms]
    if not isinstance(transforms, Sequence | nn.ModuleList):
        swapped = isinstance(transforms, Distribution)
        remedy = " The base comes first: Flow(base, transforms)." if swapped else ""
        raise TypeError(
            f"Expected transforms to be a transform or a list of them, got "
            f"{type(transforms).__name__}.{remedy}"
        )
    return [as_transform_module(transform) for transform in _flatten(transforms)]


def unwrap(part: Any) -> Any:
    """Returns the plain distribution or transform in a wrapper, and anything else as it is."""
    # Not by matching: torch.compile does not know that before PyTorch 2.9.
    if isinstance(part, PlainDistribution):
        return part.law
    return part.build() if isinstance(part, PlainTransform) else part


def inverse_at(transform: Any, y: Tensor) -> Tensor:
    """Values of the inverse of a transform, in the dtype of what they are of.

    Pyro's autoregressive inverse starts from zeros of PyTorch's default dtype.
    """
    if y.dtype == torch.get_default_dtype():
        return transform.inv(y)
    with _ZerosLike(y.dtype):
        return transform.inv(y)


def _flatten(transforms: Any) -> list[Any]:
    """Replaces compositions by their parts, which a composition may hide from its module."""
    flat = []
    for transform in transforms:
        match transform:
            case ComposeTransform():
                flat += _flatten(transform.parts)
            case _InverseTransform() if isinstance(transform.inv, ComposeTransform):
                flat += _flatten([part.inv for part in reversed(transform.inv.parts)])
            case ConditionalComposeTransformModule():
                flat += _flatten(transform.transforms)
            case ConstantConditionalTransform():
                flat += _flatten([transform.transform])
            case StackTransform() if transform.dim == -1 and _are_scalar(transform.transforms):
                # PyTorch's own counts its Jacobians as if they had been summed.
                ones = [1] * len(transform.transforms)
                flat.append(CatTransform(transform.transforms, dim=-1, lengths=ones))
            case _:
                flat.append(transform)
    return flat


def _are_scalar(transforms: Sequence[Transform]) -> bool:
    """Whether transforms are all of numbers, not of vectors."""
    return all(t.domain.event_dim == t.codomain.event_dim == 0 for t in transforms)


class _Arguments(nn.Module):
    """A class and the arguments of its constructor, whose tensors and modules are registered."""

    def __init__(self, cls: type, arguments: dict[str, Any]) -> None:
        super().__init__()
        self._cls = cls
        self._order = list(arguments)
        self._takes_validate_args = "validate_args" in inspect.signature(cls).parameters
        self._constants: dict[str, Any] = {}
        for name, value in arguments.items():
            if isinstance(value, nn.Parameter):
                self.register_parameter(name, value)
            elif isinstance(value, Tensor):
                # An expanded tensor could not be filled from a state dict.
                self.register_buffer(name, value.contiguous())
            elif isinstance(value, Distribution):
                self.add_module(name, as_distribution_module(value))
            elif isinstance(value, Transform):
                self.add_module(name, as_transform_module(value))
            elif isinstance(value, list) and value and isinstance(value[0], Transform):
                self.add_module(name, nn.ModuleList(map(as_transform_module, value)))
            else:
                self._constants[name] = value

    @classmethod
    def of(cls, obj: Any) -> Self:
        """Registers the constructor's arguments of an object.

        Raises:
            TypeError: If they cannot be recovered, do not rebuild the object, or hold a tensor
                that requires gradients without being a parameter.
        """
        try:
            found = constructor_arguments(obj)
            arguments = cls(type(obj), found)
            arguments.build()
        except (UnknownArgumentsError, TypeError, ValueError) as error:
            raise TypeError(
                f"Cannot find the tensors of this {type(obj).__name__} to register them as part "
                f"of a module ({error}). Keep every constructor argument as an attribute of the "
                f"same name, or derive the class from pyromix.DistributionModule or Pyro's "
                f"TransformModule."
            ) from error
        for name, value in found.items():
            if (
                isinstance(value, Tensor)
                and value.requires_grad
                and not isinstance(value, nn.Parameter)
            ):
                raise TypeError(
                    f"The {name!r} of this {type(obj).__name__} requires gradients, but is not a "
                    f"Parameter itself: it could not be found to be trained. Pass an nn.Parameter "
                    f"of the full shape in the form that the class keeps, use a learnable base "
                    f"such as pyromix.GaussianMixture, or detach it."
                )
        return arguments

    def build(self) -> Any:
        """Calls the constructor with the present values of the tensors.

        Of some of PyTorch's transforms, it is that of a more precise one.
        """
        arguments: dict[str, Any] = {}
        for name, value in self.arguments().items():
            is_list = isinstance(value, nn.ModuleList)
            arguments[name] = [unwrap(part) for part in value] if is_list else unwrap(value)
        if self._takes_validate_args:
            arguments["validate_args"] = False  # checked when the user built it
        return PRECISE.get(self._cls, self._cls)(**arguments)

    def arguments(self) -> dict[str, Any]:
        """The arguments as registered: tensors, constants and modules."""
        return {
            name: self._constants[name] if name in self._constants else getattr(self, name)
            for name in self._order
        }

    def config(self) -> dict[str, Any]:
        """The class and the arguments as plain data; tensors by their shapes alone."""
        return {"class": encode(self._cls), "arguments": encode(self.arguments())}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Rebuilds what `config` returned, with zeros until a state dict is loaded."""
        return cls(decode(config["class"]), decode(config["arguments"]))

    def __repr__(self) -> str:
        shown = [f"{name}={_show(value)}" for name, value in self.arguments().items()]
        return f"{self._cls.__name__}({', '.join(shown)})"


def _show(value: Any) -> str:
    if isinstance(value, Tensor) and value.numel() != 1:
        return f"tensor of shape {tuple(value.shape)}"
    return str(value.item()) if isinstance(value, Tensor) else repr(value)


class PlainDistribution(LawModule[Distribution]):
    """A plain distribution as a module: its tensors are buffers, or parameters if they were.

    `as_distribution_module` makes one; `law` is the distribution.

    Args:
        arguments: The distribution's class and arguments.
        batch_shape: Batch shape of the distribution.
        event_shape: Event shape.
        has_rsample: Whether draws have pathwise gradients.
        has_enumerate_support: Whether all values can be listed.
        validate_args: Whether to check the values that are scored.
    """

    def __init__(
        self,
        arguments: _Arguments,
        batch_shape: Sequence[int],
        event_shape: Sequence[int],
        has_rsample: bool,
        has_enumerate_support: bool,
        validate_args: bool | None = None,
    ) -> None:
        # Not asked of the distribution: its tensors may still wait for a state dict.
        super().__init__(batch_shape, event_shape, validate_args)
        self.arguments = arguments
        self.has_rsample = has_rsample
        self.has_enumerate_support = has_enumerate_support

    @classmethod
    def wrap(cls, distribution: Distribution) -> "PlainDistribution":
        """Returns a module that owns the tensors of a distribution.

        Raises:
            TypeError: If the arguments it was constructed with cannot be recovered.
        """
        return cls(
            _Arguments.of(distribution),
            distribution.batch_shape,
            distribution.event_shape,
            distribution.has_rsample,
            distribution.has_enumerate_support,
            distribution._validate_args,
        )

    def _law_given(self) -> Distribution:
        law = self.arguments.build()
        # An expanded distribution does not show in its constructor's arguments.
        return law if law.batch_shape == self.batch_shape else law.expand(self.batch_shape)

    def config(self) -> dict[str, Any]:
        """Class and arguments of the distribution, and its shapes, as plain data."""
        return {
            **self.arguments.config(),
            "batch_shape": list(self.batch_shape),
            "event_shape": list(self.event_shape),
            "has_rsample": self.has_rsample,
            "has_enumerate_support": self.has_enumerate_support,
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Rebuilds what `config` returned, with zeros until a state dict is loaded."""
        rest = {k: v for k, v in config.items() if k not in ("class", "arguments")}
        return cls(_Arguments.from_config(config), **rest)

    @property
    def support(self) -> constraints.Constraint | None:
        """The support of the distribution."""
        return self.law.support

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density, or log-probability, of values of shape ``sample + batch + event``."""
        if self._validate_args and not is_traced():
            self._validate_sample(value)
        return super().log_prob(value)

    def entropy(self) -> Tensor:
        """The entropy, of the batch shape."""
        return self.law.entropy()

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """All values of a discrete distribution, along a new first dimension."""
        return self.law.enumerate_support(expand)

    def __repr__(self) -> str:
        return repr(self.arguments)


class _TransformWrapper(TransformModule):
    """A transform that is evaluated by another one."""

    def _target(self) -> Transform:
        raise NotImplementedError

    @property
    def bijective(self) -> bool:  # type: ignore[override]
        return self._target().bijective

    @property
    def sign(self) -> int:
        return self._target().sign

    @constraints.dependent_property(is_discrete=False)
    def domain(self) -> constraints.Constraint:
        return self._target().domain

    @constraints.dependent_property(is_discrete=False)
    def codomain(self) -> constraints.Constraint:
        return self._target().codomain

    def __call__(self, x: Tensor) -> Tensor:
        return self._target()(x)

    def _inv_call(self, y: Tensor) -> Tensor:
        return self._target().inv(y)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return self._target().log_abs_det_jacobian(x, y)

    def forward_shape(self, shape: Sequence[int]) -> Size:
        return self._target().forward_shape(shape)

    def inverse_shape(self, shape: Sequence[int]) -> Size:
        return self._target().inverse_shape(shape)

    __repr__ = nn.Module.__repr__


class PlainTransform(_TransformWrapper):
    """A plain transform as a module: its tensors are buffers, or parameters if they were.

    `as_transform_module` makes one.
    """

    def __init__(self, arguments: _Arguments) -> None:
        super().__init__()
        self.arguments = arguments

    @classmethod
    def wrap(cls, transform: Transform) -> "PlainTransform":
        """Returns a module that owns the tensors of a transform.

        Raises:
            TypeError: If the arguments it was constructed with cannot be recovered.
        """
        return cls(_Arguments.of(transform))

    def build(self) -> Transform:
        """Returns the transform, with the present values of the tensors."""
        return self.arguments.build()

    _target = build

    def config(self) -> dict[str, Any]:
        """Class and arguments of the transform as plain data."""
        return self.arguments.config()

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Rebuilds what `config` returned, with zeros until a state dict is loaded."""
        return cls(_Arguments.from_config(config))

    def __repr__(self) -> str:
        return repr(self.arguments)


class InverseTransform(_TransformWrapper):
    """The inverse of a transform, as a module of which that transform is a part."""

    def __init__(self, transform: nn.Module) -> None:
        super().__init__()
        self.transform = transform

    def _target(self) -> Transform:
        inverse: Any = self.transform.inv
        return inverse

    def __call__(self, x: Tensor) -> Tensor:
        """The values that the transform maps to x."""
        return inverse_at(self.transform, x)

    @property
    def inv(self) -> Any:
        """The transform itself."""
        return self.transform


class _ZerosLike(TorchFunctionMode):
    """Gives new tensors of zeros a dtype."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.zeros:
            kwargs.setdefault("dtype", self.dtype)
        return func(*args, **kwargs)


for _cls in (PlainTransform, InverseTransform):
    register(_cls)
