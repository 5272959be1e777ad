"""A warning about columns of whole numbers that are taken for real ones."""

__all__ = ["warn_about_integers"]

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from ..core.advice import warn_user
from ..core.batch import split_batch
from ..core.constraints import is_over_reals, mixed_columns

MAX_DISTINCT = 20
# Each value is met that often, on average: a few round numbers are no pattern.
MIN_REPEATS = 5
# Rows that are looked at first; a column that passes is looked at whole.
GLANCE_ROWS = 256


def warn_about_integers(law: Distribution, batch: Any) -> None:
    """Warns if real columns of data hold few different values, all of them whole numbers.

    The likelihood of a density on such data grows without bound, as its peaks narrow.

    Args:
        law: The model that is to be trained. Only laws of vectors are looked at: images and
            sequences of few levels are common, and have pages of their own.
        batch: Training data, in the form of a batch; others are left alone.
    """
    if len(law.event_shape) != 1 or not is_over_reals(law):
        return
    try:
        value, support = split_batch(batch)[0], law.support
    except ValueError:  # of a form of the model's own
        return
    if value.dim() != 2 or not value.is_floating_point():
        return
    real = support.dim if isinstance(support, mixed_columns) else value.shape[-1]
    columns = _few_whole_numbers(value.detach()[:, :real])
    if columns:
        most = max(columns.values())
        warn_user(
            f"Columns {list(columns)} of the data hold whole numbers alone, at most {most} "
            f"different ones in a column. A density of real columns grows without bound on them. "
            f"Add noise (pyromix.dequantize for counts from zero), or model them as categories "
            f"(DRMM(..., categories=(...,))).",
        )


@torch.no_grad()
def _few_whole_numbers(rows: Tensor) -> dict[int, int]:
    """The columns of rows (N, D) with few whole numbers alone, and how many different ones."""
    glance = rows[:: max(1, len(rows) // GLANCE_ROWS)]
    found = {}
    for d in _whole(glance).all(0).nonzero().flatten().tolist():
        column = rows[:, d]
        if not bool(_whole(column).all()):
            continue
        column = column[~column.isnan()]
        count = len(column.unique())
        if 2 <= count <= MAX_DISTINCT and len(column) >= MIN_REPEATS * count:
            found[d] = count
    return found


def _whole(value: Tensor) -> Tensor:
    """Where numbers are whole, or missing."""
    return (value == value.round()) | value.isnan()
