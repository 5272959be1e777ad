"""PyTorch's and Pyro's distributions and transforms as modules that own their tensors.

``Normal(loc, scale)`` keeps its tensors as attributes: as part of a module they would be missed
by ``.to()``, ``state_dict()`` and ``parameters()``. The wrappers here register the constructor's
tensors, and build the object anew whenever it is asked for.
"""

__all__ = [
    "InverseTransform",
    "PlainDistribution",
    "PlainTransform",
    "as_distribution_module",
    "as_transform_module",
    "flatten_transforms",
]

import inspect
from collections.abc import Sequence
from typing import Any

from pyro.distributions.conditional import (
    ConditionalComposeTransformModule,
    ConditionalTransform,
    ConstantConditionalTransform,
)
from pyro.distributions.torch_transform import TransformModule
from torch import Size, Tensor, nn
from torch.distributions import ComposeTransform, Distribution, Transform, constraints
from torch.distributions.transforms import _InverseTransform
from torch.types import _size

from ..core.arguments import UnknownArgumentsError, constructor_arguments
from ..core.checks import is_traced
from ..core.module import DistributionModule
from ..core.registry import decode, encode, register
from .branching import BranchingTransform, inverted_message
from .splines import keep_splines_inside


def as_distribution_module(distribution: Distribution) -> Any:
    """Returns a distribution that is a module: itself, or wrapped so that its tensors are owned.

    Raises:
        TypeError: If it is no distribution, or one whose tensors cannot be found.
    """
    if isinstance(distribution, nn.Module):
        return distribution
    if not isinstance(distribution, Distribution):
        raise TypeError(f"Expected a distribution, got {type(distribution).__name__}.")
    return PlainDistribution.wrap(distribution)


def as_transform_module(transform: Transform | ConditionalTransform) -> Any:
    """Returns a transform that is a module: itself, or wrapped so that its tensors are owned.

    Raises:
        TypeError: If it is no transform, or one whose tensors cannot be found.
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


def flatten_transforms(transforms: Sequence[Any]) -> list[Any]:
    """Replaces compositions by their parts, which a composition may hide from its module."""
    flat = []
    for transform in transforms:
        match transform:
            case ComposeTransform():
                flat += flatten_transforms(transform.parts)
            case _InverseTransform() if isinstance(transform.inv, ComposeTransform):
                flat += flatten_transforms([part.inv for part in reversed(transform.inv.parts)])
            case ConditionalComposeTransformModule():
                flat += flatten_transforms(transform.transforms)
            case ConstantConditionalTransform():
                flat += flatten_transforms([transform.transform])
            case _:
                flat.append(transform)
    return flat


class _Arguments(nn.Module):
    """A constructor and its arguments, of which tensors are registered."""

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

    def build(self) -> Any:
        arguments = {name: self._argument(name) for name in self._order}
        if self._takes_validate_args:
            arguments["validate_args"] = False  # checked when the user built it
        return self._cls(**arguments)

    def arguments(self) -> dict[str, Any]:
        """The arguments as registered: tensors, constants and modules."""
        return {
            name: self._constants[name] if name in self._constants else getattr(self, name)
            for name in self._order
        }

    def __repr__(self) -> str:
        shown = [f"{name}={_show(value)}" for name, value in self.arguments().items()]
        return f"{self._cls.__name__}({', '.join(shown)})"

    def _argument(self, name: str) -> Any:
        if name in self._constants:
            return self._constants[name]
        value = getattr(self, name)
        return [_unwrap(v) for v in value] if isinstance(value, nn.ModuleList) else _unwrap(value)


def _show(value: Any) -> str:
    if isinstance(value, Tensor) and value.numel() != 1:
        return f"tensor of shape {tuple(value.shape)}"
    return str(value.item()) if isinstance(value, Tensor) else repr(value)


def _unwrap(value: Any) -> Any:
    return value.build() if isinstance(value, PlainDistribution | PlainTransform) else value


def _wrap_arguments(obj: Any) -> _Arguments:
    """Registers the constructor's arguments of an object, and checks that it can be rebuilt."""
    try:
        found = constructor_arguments(obj)
        arguments = _Arguments(type(obj), found)
        arguments.build()
    except (UnknownArgumentsError, TypeError, ValueError) as error:
        raise TypeError(
            f"Cannot find the tensors of this {type(obj).__name__} to register them as part of a "
            f"module ({error}). Keep every constructor argument as an attribute of the same "
            f"name, or derive the class from pyromix.DistributionModule or Pyro's "
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
                f"Parameter itself: it could not be found to be trained. Pass an nn.Parameter of "
                f"the full shape in the form that the class keeps, use a learnable base such as "
                f"pyromix.GaussianMixture, or detach it."
            )
    return arguments


class PlainDistribution(DistributionModule):
    """A plain distribution as a module: its tensors are buffers, or parameters if they were.

    Use `wrap`, or `as_distribution_module`.
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
        """Registers the tensors of a distribution.

        Raises:
            TypeError: If the arguments it was constructed with cannot be recovered.
        """
        return cls(
            _wrap_arguments(distribution),
            distribution.batch_shape,
            distribution.event_shape,
            distribution.has_rsample,
            distribution.has_enumerate_support,
            distribution._validate_args,
        )

    def build(self) -> Distribution:
        """The distribution itself, with the present values of the tensors."""
        distribution = self.arguments.build()
        # An expanded distribution does not show in its constructor's arguments.
        if distribution.batch_shape != self.batch_shape:
            distribution = distribution.expand(self.batch_shape)
        return distribution

    def config(self) -> dict[str, Any]:
        """The class of the distribution and its arguments as plain data."""
        return {
            "class": encode(self.arguments._cls),
            "arguments": encode(self.arguments.arguments()),
            "batch_shape": list(self.batch_shape),
            "event_shape": list(self.event_shape),
            "has_rsample": self.has_rsample,
            "has_enumerate_support": self.has_enumerate_support,
        }

    @classmethod
    def from_config(cls, config: Any) -> "PlainDistribution":
        """Builds a wrapper whose tensors wait for a state dict."""
        arguments = _Arguments(decode(config["class"]), decode(config["arguments"]))
        rest = {k: v for k, v in config.items() if k not in ("class", "arguments")}
        return cls(arguments, **rest)

    @property
    def support(self) -> constraints.Constraint | None:
        """The support of the distribution."""
        return self.build().support

    @property
    def mean(self) -> Tensor:
        """The mean of the distribution."""
        return self.build().mean

    @property
    def variance(self) -> Tensor:
        """The variance of the distribution."""
        return self.build().variance

    def rsample(self, sample_shape: _size = Size()) -> Tensor:
        """Draws with pathwise gradients."""
        return self.build().rsample(Size(sample_shape))

    def sample(self, sample_shape: _size = Size()) -> Tensor:
        """Draws without a graph."""
        return self.build().sample(Size(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density, or log-probability, of values."""
        if self._validate_args and not is_traced():
            self._validate_sample(value)
        return self.build().log_prob(value)

    def entropy(self) -> Tensor:
        """The entropy of the distribution."""
        return self.build().entropy()

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """All values of a discrete distribution."""
        return self.build().enumerate_support(expand)

    def __repr__(self) -> str:
        return repr(self.arguments)


class _TransformWrapper(TransformModule):
    """A transform that hands everything on to another one."""

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
    """A plain transform as a module: its tensors are buffers. Use `wrap`."""

    def __init__(self, arguments: _Arguments) -> None:
        super().__init__()
        self.arguments = arguments

    @classmethod
    def wrap(cls, transform: Transform) -> "PlainTransform":
        """Registers the tensors of a transform.

        Raises:
            TypeError: If the arguments it was constructed with cannot be recovered.
        """
        return cls(_wrap_arguments(transform))

    def build(self) -> Transform:
        """The transform itself, with the present values of the tensors."""
        return self.arguments.build()

    _target = build

    def config(self) -> dict[str, Any]:
        """The class of the transform and its arguments as plain data."""
        return {
            "class": encode(self.arguments._cls),
            "arguments": encode(self.arguments.arguments()),
        }

    @classmethod
    def from_config(cls, config: Any) -> "PlainTransform":
        """Builds a wrapper whose tensors wait for a state dict."""
        return cls(_Arguments(decode(config["class"]), decode(config["arguments"])))

    def __repr__(self) -> str:
        return repr(self.arguments)


class InverseTransform(_TransformWrapper):
    """The inverse of a transform that is a module, and registers it."""

    def __init__(self, transform: nn.Module) -> None:
        super().__init__()
        self.transform = transform

    def _target(self) -> Transform:
        inverse: Any = self.transform.inv
        return inverse

    @property
    def inv(self) -> Any:
        """The transform itself."""
        return self.transform

    def config(self) -> dict[str, Any]:
        """The transform that is inverted, as plain data."""
        return {"transform": encode(self.transform)}

    @classmethod
    def from_config(cls, config: Any) -> "InverseTransform":
        """Builds the transform, and inverts it."""
        return cls(decode(config["transform"]))


for _cls in (PlainTransform, InverseTransform):
    register(_cls)
