"""Batches of training data, and the contexts that go with values."""

__all__ = ["Batch", "check_paired", "split_batch"]

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.distributions import Distribution

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


def split_batch(batch: Batch) -> tuple[Tensor, Any]:
    """Splits a batch into values and context; the context is None where there is none.

    Raises:
        ValueError: If the batch is none of the forms that `DistributionModule.loss` takes.
    """
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
