"""The tensors that a law holds: found, cast, and made to require gradients."""

__all__ = [
    "cast",
    "differentiable",
    "has_switch",
    "joint_law",
    "map_tensors",
    "tensors_within",
]

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from ..core.arguments import UnknownArgumentsError, constructor_arguments


def joint_law(d: Any) -> Any:
    """The joint law of a batch, as one event."""
    return d.to_event(len(d.batch_shape)) if d.batch_shape else d


def differentiable(d: Distribution) -> tuple[Any, list[Tensor]]:
    """The distribution with parameters that require gradients, and the parameters."""
    if isinstance(d, nn.Module):
        return d, [p for p in d.parameters() if p.requires_grad]
    leaves: list[Tensor] = []

    def require_grad(tensor: Tensor) -> Tensor:
        leaves.append(tensor.detach().clone().requires_grad_())
        return leaves[-1]

    try:
        copied: Any = map_tensors(d, require_grad)
    except UnknownArgumentsError:
        return d, []
    # A law may say that it tracks no gradients in its parameters, or that they are not known.
    log_prob = copied.log_prob(copied.sample()).sum()
    if not leaves or not log_prob.requires_grad:
        return copied, []
    try:
        torch.autograd.grad(log_prob, leaves, retain_graph=True, allow_unused=True)
    except NotImplementedError:
        return d, []
    return copied, leaves


def has_switch(d: Distribution) -> bool:
    """Whether pathwise gradients can be switched off on an instance: not by a mere property."""
    return not isinstance(inspect.getattr_static(type(d), "has_rsample", None), property)


def cast(d: Distribution, dtype: torch.dtype) -> Distribution:
    """The distribution with parameters of another dtype."""
    if isinstance(d, nn.Module):
        return copy.deepcopy(d).to(dtype)
    return map_tensors(d, lambda tensor: tensor.to(dtype))


def map_tensors(d: Distribution, function: Callable[[Tensor], Tensor]) -> Distribution:
    """A copy of a plain distribution whose floating-point parameters are passed through."""
    arguments = constructor_arguments(d)
    for name, value in arguments.items():
        if isinstance(value, Distribution):
            arguments[name] = map_tensors(value, function)
        elif isinstance(value, Tensor) and value.is_floating_point():
            arguments[name] = function(value)
        elif callable(getattr(value, "map_tensors", None)):
            arguments[name] = value.map_tensors(function)
    return type(d)(**arguments)


def tensors_within(obj: object, path: str = "", seen: set[int] | None = None) -> Iterator[Any]:
    """All floating-point tensors that an object holds, in whatever way, with where."""
    seen = set() if seen is None else seen
    if id(obj) in seen:
        return
    seen.add(id(obj))
    if isinstance(obj, Tensor):
        if obj.is_floating_point():
            yield path, obj
    elif isinstance(obj, Mapping):
        for key, value in obj.items():
            yield from tensors_within(value, f"{path}.{key}", seen)
    elif isinstance(obj, list | tuple):
        for i, value in enumerate(obj):
            yield from tensors_within(value, f"{path}.{i}", seen)
    elif isinstance(obj, nn.Module | Distribution | torch.distributions.Transform):
        attributes = vars(obj)
        if type(obj).__module__.startswith("pyro.nn."):
            # Pyro's autoregressive networks keep spare copies of their masks.
            attributes = {k: attributes[k] for k in ("_parameters", "_buffers", "_modules")}
        yield from tensors_within(attributes, path, seen)
