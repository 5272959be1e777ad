"""Values that users give, checked and sorted into columns."""

__all__ = ["Value", "leading_shape", "rows_of"]

from collections.abc import Mapping, Sequence

import torch
from torch import Size, Tensor
from torch.distributions import Distribution

from ..core.checks import check_integers, check_tensor, check_value, is_traced
from .columns import Values, runs_of
from .rows import Rows

Value = Tensor | Mapping[str, Tensor]
"""Points of all columns; or real columns and shares of categories, see `DRMM`."""

# Shares of categories sum to one up to this.
SHARE_ERROR = 1e-3


def rows_of(
    model: Distribution,
    value: Value,
    dim: int,
    categories: Sequence[int],
    *,
    like: Tensor,
    missing: bool,
) -> Rows:
    r"""Checks values and sorts them into columns; flattens their leading shape.

    Args:
        model: What they are values of.
        value: Points of shape (\*S, D + number of categorical columns); or a mapping with
            ``"probs"``, shape (\*S, J, n), and ``"real"``, shape (\*S, D).
        dim: Number D of real columns.
        categories: Numbers of categories of the J categorical ones.
        like: A tensor of the dtype and on the device that values must have.
        missing: Whether NaN marks missing entries.

    Raises:
        ValueError: If the values do not fit.
    """
    if isinstance(value, Mapping):
        real, columns = _of_mapping(model, value, dim, categories, like, missing)
    else:
        check_tensor("value", value, like=like)
        check_value(model, torch.where(value.isnan(), 0.0, value) if missing else value)
        flat = value.reshape(-1, value.shape[-1])
        real, columns = flat[:, :dim], _codes(flat[:, dim:].detach(), dim, categories)
    observed = None
    if missing:
        known = ~real.isnan()
        if is_traced() or not bool(known.all()):
            real, observed = torch.where(known, real, 0.0), known.to(real.dtype)
    return Rows(real, observed, columns)


def leading_shape(value: Value) -> Size:
    """The shape S of values, see `rows_of`."""
    return value["probs"].shape[:-2] if isinstance(value, Mapping) else value.shape[:-1]


def _codes(columns: Tensor, dim: int, categories: Sequence[int]) -> Values:
    """Categorical columns (N, J) as codes by table, minus one where missing."""
    sizes = torch.tensor(categories, dtype=columns.dtype, device=columns.device)
    good = (columns >= 0) & (columns < sizes) & (columns == columns.round()) | columns.isnan()
    if not is_traced() and not bool(good.all()):
        j = int((~good).any(0).nonzero()[0])
        where, most = f" in column {dim + j}", categories[j] - 1
        check_integers("codes", columns[:, j], 0, most, where=where, missing=True)
    codes = torch.where(columns.isnan(), -1.0, columns).long()
    return codes.split([size for _, size in runs_of(categories)], -1)


def _of_mapping(
    model: Distribution,
    value: Mapping[str, Tensor],
    dim: int,
    categories: Sequence[int],
    like: Tensor,
    missing: bool,
) -> tuple[Tensor, Values]:
    """Real columns (N, D), and shares of categories by table."""
    names = {"probs", "real"} if dim else {"probs"}
    if not names <= set(value) <= {"probs", "real"} or not categories:
        raise ValueError(
            f"Expected values as a tensor, or, of a model with categorical columns, a mapping "
            f"with {' and '.join(sorted(names))}, got a mapping with {sorted(value)}."
        )
    probs = check_tensor("probs", value["probs"], like=like)
    most, shape = (len(categories), max(categories)), probs.shape[:-2]
    if probs.dim() < 2 or probs.shape[-2:] != most:
        raise ValueError(
            f"Expected probs of shape (*S, {most[0]}, {most[1]}), the shares of each column's "
            f"categories, got {tuple(probs.shape)}."
        )
    real = check_tensor("real", value.get("real", probs.new_zeros(*shape, 0)), like=like)
    if real.shape != (*shape, dim):
        raise ValueError(
            f"Expected real columns of shape {(*shape, dim)}, with the leading shape of probs, "
            f"got {tuple(real.shape)}."
        )
    real, probs = real.reshape(shape.numel(), dim), probs.reshape(shape.numel(), *most)
    absent = torch.zeros_like(probs[..., 0], dtype=torch.bool)
    if missing:
        absent = probs.isnan().all(-1)
        probs = torch.where(absent.unsqueeze(-1), 0.0, probs)
    if model._validate_args and not is_traced():
        _check_real(real, missing)
        _check_shares(probs, absent, categories)
    runs = runs_of(categories)
    parts = probs.split([size for _, size in runs], 1)
    columns = tuple(part[..., :count] for part, (count, _) in zip(parts, runs, strict=True))
    return real, columns


def _check_real(real: Tensor, missing: bool) -> None:
    wrong = real.isinf() if missing else ~real.isfinite()
    if bool(wrong.any()):
        raise ValueError(
            f"Expected finite real columns, got {int(wrong.sum())} entries that are not. NaN "
            f"marks missing ones in a model with missing='marginalize'."
        )


def _check_shares(probs: Tensor, missing: Tensor, categories: Sequence[int]) -> None:
    """Checks that shares of categories are distributions.

    Args:
        probs: Shape (N, J, n), with zeros beyond a column's categories.
        missing: Columns that are missing, and may be zero, (N, J).
        categories: Numbers of the columns' categories, J of them.

    Raises:
        ValueError: If they are not.
    """
    if not bool((probs >= 0).all()):  # NaN is not
        raise ValueError(
            f"Expected probs that are not negative, got {int((~(probs >= 0)).sum())} entries that "
            f"are, or are NaN. A column that is missing as a whole is NaN in all of its "
            f"categories, in a model with missing='marginalize'."
        )
    wrong = ((probs.sum(-1) - 1).abs() > SHARE_ERROR) & ~missing
    if bool(wrong.any()):
        got = probs.sum(-1)[wrong][:5].tolist()
        raise ValueError(
            f"Expected probs that sum to one over the categories of each column, got sums such as "
            f"{', '.join(f'{total:.4g}' for total in got)}. Divide by the sums."
        )
    counts = torch.tensor(categories, device=probs.device).unsqueeze(-1)
    beyond = torch.arange(probs.shape[-1], device=probs.device) >= counts
    if bool((probs * beyond > 0).any()):
        raise ValueError(
            f"Expected probs of zero beyond the categories of each column, of which there are "
            f"{', '.join(map(str, categories))}."
        )
