"""Batches of training data, and the contexts that go with values."""

__all__ = ["Batch", "check_paired", "split_batch"]

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor
from torch.distributions import Distribution

from .checks import as_tensor

Batch = Tensor | Sequence[Tensor] | Mapping[str, Tensor]


def check_paired(law: Distribution, value: Tensor) -> None:
    """Checks that a law given a batch's contexts is one law for each of the batch's values.

    Others would broadcast, and every value be scored under the laws of all contexts.

    Raises:
        ValueError: If it is not.
    """
    leading = value.shape[: value.dim() - len(law.event_shape)]
    if law.batch_shape and law.batch_shape != leading:
        raise ValueError(
            f"Expected one context for each value, got values of shape {tuple(value.shape)}, "
            f"whose leading shape is {tuple(leading)}, and contexts that give laws of batch shape "
            f"{tuple(law.batch_shape)}. Remove or expand dimensions of size 1."
        )


def split_batch(batch: Any, *, like: Tensor | None = None) -> tuple[Tensor, Any]:
    """Splits a batch into values and context; the context is None where there is none.

    Args:
        batch: A batch, of one of the forms that `DistributionModule.loss` takes.
        like: A tensor such as a parameter: then values may be a NumPy array, or a list of lists
            of numbers, too, and are converted to its dtype and device. A pair whose values are
            lists is a tuple, not a list.

    Raises:
        ValueError: If the batch is none of these forms.
    """
    if like is not None:
        batch = _with_values(batch, like)
    match batch:
        case Tensor():
            return batch, None
        case [Tensor() as value]:  # as a TensorDataset yields it
            return value, None
        case [Tensor() as value, context]:
            return value, context
        case {"value": value, **rest} if set(rest) <= {"context"}:
            return value, rest.get("context")
    raise ValueError(
        f"Expected a batch that is a tensor, a pair (value, context) or a mapping with keys "
        f"'value' and 'context', got {type(batch).__name__}. For other batches override `loss`."
    )


def _with_values(batch: Any, like: Tensor) -> Any:
    """A batch whose values, if they are an array or nested lists, have become a tensor."""
    nested = isinstance(batch, list) and len(batch) > 0 and isinstance(batch[0], list | tuple)
    # A table has a method to_numpy, and an error of its own.
    if nested or isinstance(batch, np.ndarray) or hasattr(batch, "to_numpy"):
        return as_tensor("the data", batch, like=like)
    match batch:
        case [np.ndarray() | list() as value, *others]:
            return (as_tensor("the values", value, like=like), *others)
        case {"value": np.ndarray() | list() as value}:
            return {**batch, "value": as_tensor("the values", value, like=like)}
    return batch
