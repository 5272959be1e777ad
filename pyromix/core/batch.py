"""Batches of training data, and the contexts that go with values."""

__all__ = ["Batch", "as_batch", "check_paired", "split_batch"]

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor
from torch.distributions import Distribution

from .conversions import as_numbers, as_tensor

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
        f"'value' and 'context', got {type(batch).__name__}. Of a list of rows, make one array "
        f"with numpy.stack or torch.stack. For other batches override `loss`."
    )


def as_batch(name: str, data: Any, *, like: Tensor, keep_integers: bool) -> Any:
    """Returns data whose parts, if they are arrays or lists of numbers, have become tensors.

    Floats take the dtype of `like`; so do integers that are values, unless they are to be kept.
    Integers and truth values in other parts, such as labels and lengths, keep their type.

    Args:
        name: What to call the data in errors.
        data: An array or nested lists of numbers; or a tuple, a mapping, or a list of tensors and
            arrays, whose parts may be such. Anything else is returned as it is.
        like: A tensor of the dtype and on the device that are wanted.
        keep_integers: Whether values that are integers keep their type, too.

    Raises:
        ValueError: If lists or arrays hold anything but numbers.
    """
    if not keep_integers:
        data = _with_values(data, like)

    def convert(part: Any) -> Any:
        if isinstance(part, Tensor) or not (_is_array(part) or isinstance(part, list | tuple)):
            return part
        numbers = as_numbers(name, part)
        return numbers.to(like) if numbers.is_floating_point() else numbers.to(like.device)

    if _is_array(data) or _is_nested(data):
        return convert(data)
    if isinstance(data, Mapping):
        return {key: convert(part) for key, part in data.items()}
    if isinstance(data, list | tuple):
        return tuple(convert(part) for part in data)
    return data


def _is_array(data: Any) -> bool:
    # A table has a method to_numpy, and an error of its own.
    return isinstance(data, np.ndarray) or hasattr(data, "to_numpy")


def _is_nested(data: Any) -> bool:
    """Whether data are a list of numbers, or of lists of numbers, and not a list of parts."""
    return (
        isinstance(data, list) and len(data) > 0 and not isinstance(data[0], Tensor | np.ndarray)
    )


def _with_values(batch: Any, like: Tensor) -> Any:
    """A batch whose values, if they are an array or nested lists, have become a tensor."""
    if _is_array(batch) or _is_nested(batch):
        return as_tensor("the data", batch, like=like)
    match batch:
        case [np.ndarray() | list() as value, *others]:
            return (as_tensor("the values", value, like=like), *others)
        case {"value": np.ndarray() | list() as value}:
            return {**batch, "value": as_tensor("the values", value, like=like)}
    return batch
