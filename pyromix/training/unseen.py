"""A warning about held-out items whose labels are not in the training data."""

__all__ = ["warn_about_unseen"]

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..core.advice import warn_user
from .minibatches import LoaderStream, TensorStream

CHUNK = 10_000


def warn_about_unseen(
    model: nn.Module, train: TensorStream | LoaderStream, held_out: TensorStream | LoaderStream
) -> None:
    """Warns if held-out items have labels, or constant contexts, that training never shows.

    What a model does with them stays as it was at the start, so that the validation loss says
    little. Labels are integers, one for each item, or columns of a context of whole items, such
    as those of one-hot codes: a column counts that is constant in training.

    Args:
        model: The model, of whose class the advice depends.
        train: Training data. Those of a loader, which an extra pass may cost much, are not
            looked at.
        held_out: Data to validate on; of these, likewise.
    """
    if not isinstance(train, TensorStream) or not isinstance(held_out, TensorStream):
        return
    if _labels(train.take(train.indices[:1])) is None:
        return
    asked = _labels(held_out.take(held_out.indices[:CHUNK]))
    if asked is None:
        return
    unseen = torch.ones_like(asked, dtype=torch.bool)  # entries, or labels, still without a match
    first: Tensor | None = None
    for part in train.indices.split(CHUNK):
        seen = _labels(train.take(part))
        if seen is None or seen.shape[1:] != asked.shape[1:]:
            return
        if seen.dim() == 1:
            unseen &= ~torch.isin(asked, seen)
        else:  # a column that varies in training is taken to be known at all values
            first = seen[0] if first is None else first
            unseen &= (seen == first).all(0) & (asked != first)
        if not bool(unseen.any()):
            return
    rows = unseen if unseen.dim() == 1 else unseen.any(-1)
    remedy = "Hold out items of every label instead."
    if hasattr(model, "split_in_time"):
        remedy = (
            "To hold out the end of every sequence instead, pass validation_from=0.8, say, in "
            "place of validation."
        )
    warn_user(
        f"{int(rows.sum())} of {len(rows)} held-out items have labels, or static contexts, that "
        f"no item of the training data has: the model does not learn what they mean, and the "
        f"validation loss says little. {remedy}",
    )


def _labels(batch: Any) -> Tensor | None:
    """Integer labels (N,) or contexts (N, C) of the items of a batch; None for others."""
    match batch:
        case Mapping():
            given = batch.get("static", batch.get("context"))
        case [Tensor(), given]:
            pass
        case _:
            return None
    if not isinstance(given, Tensor) or given.dim() == 0:
        return None
    if given.dim() == 1 and not given.is_floating_point():
        return given
    return given if given.dim() == 2 else None
