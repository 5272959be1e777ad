"""Chains of transforms: what they are, the way back through them, contexts and caches."""

__all__ = [
    "clear_caches",
    "draws_branches",
    "given_context",
    "invert",
    "needs_context",
    "pull_back",
]

from collections.abc import Iterable
from typing import Any

import torch
from pyro.distributions.conditional import ConditionalTransform
from torch import Tensor, nn
from torch.distributions import Transform

from .borders import between_ends
from .wrapping import inverse_at, unwrap

# Where transforms, Pyro's and those of folds, keep the Jacobian of the last pair.
CACHES = (
    "_cache_log_detJ",
    "_cached_A",
    "_cached_C",
    "_cached_T_C",
    "_cached_W_pre",
    "_cached_logDetJ",
    "_cached_log_branch",
    "_cached_log_density",
    "_cached_log_df_inv_dx",
    "_cached_log_scale",
)


def needs_context(transforms: Iterable[Any]) -> bool:
    """Whether one of the transforms is conditional."""
    return any(isinstance(t, ConditionalTransform) for t in transforms)


def draws_branches(transforms: Iterable[Any]) -> bool:
    """Whether one of the transforms draws branches, as folds do."""
    return any(getattr(t, "branching", False) for t in transforms)


def given_context(transforms: Iterable[Any], context: Tensor) -> list[Any]:
    """Returns the transforms, with the conditional ones given a context of shape (..., C)."""
    return [t.condition(context) if isinstance(t, ConditionalTransform) else t for t in transforms]


def pull_back(transforms: Iterable[Any], value: Tensor) -> Tensor:
    """Returns the values of the base from which the transforms lead to given values.

    Raises:
        NotImplementedError: If a transform has no inverse in closed form.
    """
    after = None
    for transform in reversed(list(transforms)):
        value, after = invert(transform, value, after), (transform, value)
    return value


def invert(transform: Any, y: Tensor, after: tuple[Any, Tensor] | None = None) -> Tensor:
    """Returns the x that a transform maps to y.

    Args:
        transform: The transform.
        y: Values.
        after: The transform that follows, and the values that it maps y to: together they may be
            inverted with fewer digits lost.

    Raises:
        NotImplementedError: If the transform has no inverse in closed form.
    """
    precise = None if after is None else between_ends(unwrap(transform), unwrap(after[0]))
    if after is not None and precise is not None:
        return precise(after[1])
    try:
        return inverse_at(transform, y)
    except (KeyError, NotImplementedError) as error:  # as Pyro's transforms raise
        raise NotImplementedError(
            f"The transform {type(transform).__name__} has no inverse in closed form, so that "
            f"only the flow's own draws can be scored, with rsample_and_log_prob. To score data, "
            f"put the transform's .inv into the flow."
        ) from error


def clear_caches(parts: Iterable[Any]) -> None:
    """Empties the caches of transforms and of the transforms within them."""
    for part in parts:
        if isinstance(part, Transform):
            if part._cache_size:
                part._cached_x_y = None, None
            # Before PyTorch 2.9, torch.compile does not know what lists attributes.
            names = CACHES if torch.compiler.is_compiling() else list(vars(part))
            for name in names:
                if name.startswith("_cache") and isinstance(getattr(part, name, None), Tensor):
                    setattr(part, name, None)
        if isinstance(part, nn.Module):
            clear_caches(part._modules.values())  # modules() would hash: Dynamo cannot trace that
