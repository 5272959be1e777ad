"""Standardisation of columns, and its standard deviations."""

__all__ = [
    "Mode",
    "Standardize",
    "check_mode",
    "location_and_scale",
    "optional_entries",
    "quantile_units",
]

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

Mode = Literal["auto"] | bool
"""Whether to standardise: always, never, or where units are far from those of learning rates."""

# Learning rates are meant for columns whose largest standard deviation is between these.
SMALL_SPREAD, LARGE_SPREAD = 0.1, 10.0

# Shares of the points between two quantiles, and their distance in a standard normal law.
QUANTILES = ((0.5, 1.349), (0.8, 2.563), (0.98, 4.653), (1.0, 6.0))


class Standardize(nn.Module):
    r"""Subtracts a location and divides by a scale, coordinate by coordinate.

    A new one changes nothing, until `set_from` has seen data.

    Args:
        dim: Number of coordinates.
        optional: Whether states of models may lack it, as those of earlier versions do.
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, dim: int, *, optional: bool = False) -> None:
        super().__init__()
        self.optional = optional
        self.register_buffer("loc", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Fills in what states of earlier versions lack: the units of a new model."""
        if self.optional:
            state_dict.setdefault(f"{prefix}loc", torch.zeros_like(self.loc))
            state_dict.setdefault(f"{prefix}scale", torch.ones_like(self.scale))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def forward(self, value: Tensor) -> Tensor:
        r"""Returns values of shape (\*B, dim) less the location, divided by the scale."""
        return (value - self.loc) / self.scale

    @torch.no_grad()
    def set_from(self, rows: Tensor) -> None:
        """Sets location and scale to mean and standard deviation of rows (N, dim)."""
        loc, scale = location_and_scale(rows)
        self.loc.copy_(loc)
        self.scale.copy_(scale)

    @torch.no_grad()
    def adapt(
        self,
        rows: Tensor,
        observed: Tensor | None = None,
        *,
        mode: Mode = "auto",
        common: bool = False,
        robust: bool = False,
    ) -> None:
        """Sets location and scale to those of rows (N, dim), if learning there would be hard.

        Args:
            rows: The data; what they hold where nothing was observed does not matter.
            observed: One for observed entries and zero for others, of the rows' shape; by default
                all were.
            mode: True: always; False: never; ``"auto"``: if the largest standard deviation is
                not between 0.1 and 10, which learning rates are meant for.
            common: Whether all columns are to have the same scale.
            robust: Whether to take median and quartiles, which outliers hardly move.
        """
        if mode is False or not rows.shape[-1]:
            return
        if robust:
            loc, spread = quantile_units(rows, observed, constant=0.0)
        else:
            seen = torch.ones_like(rows) if observed is None else observed
            count = seen.sum(0).clamp(min=1)
            loc = (rows * seen).sum(0) / count
            spread = (((rows - loc) * seen).square().sum(0) / count).sqrt()
        varies = spread > torch.finfo(loc.dtype).eps * loc.abs()
        spread = torch.where(varies, spread, 0.0)
        largest = float(spread.amax()) or 1.0
        if mode is not True and SMALL_SPREAD <= largest <= LARGE_SPREAD:
            return
        if common:
            spread = spread.square().mean().sqrt().expand_as(spread)
        self.loc.copy_(loc)
        self.scale.copy_(torch.where(spread > 0, spread, 1.0))


def quantile_units(
    rows: Tensor, observed: Tensor | None = None, *, constant: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Median and spread of every column of rows (N, dim), two tensors of shape (dim,).

    The spread is the distance of the quartiles, or, where these are equal, of quantiles further
    out, as that of a normal of standard deviation one.

    Args:
        rows: The data; what they hold where nothing was observed does not matter.
        observed: Nonzero for observed entries, of the rows' shape; by default all were.
        constant: The spread of a column whose values are equal.
    """
    if observed is None:
        ordered, count = rows.sort(0).values, torch.full_like(rows[:1], len(rows)).squeeze(0)
    else:
        ordered = torch.where(observed != 0, rows, math.inf).sort(0).values
        count = (observed != 0).sum(0).to(rows.dtype)
    last = (count - 1).clamp(min=0)

    def quantile(level: float) -> Tensor:
        found = ordered.gather(0, (level * last).round().long().unsqueeze(0)).squeeze(0)
        return torch.where(count > 0, found, 0.0)

    loc, spread = quantile(0.5), torch.full_like(count, constant)
    for width, normal in reversed(QUANTILES):
        wide = quantile(0.5 + 0.5 * width) - quantile(0.5 - 0.5 * width)
        varies = wide > torch.finfo(rows.dtype).eps * loc.abs()
        spread = torch.where(varies, wide / normal, spread)
    return loc, spread


def optional_entries(model: nn.Module) -> set[str]:
    """Names of the entries that states of a model may lack."""
    return {
        f"{name}.{entry}" if name else entry
        for name, module in model.named_modules()
        if isinstance(module, Standardize) and module.optional
        for entry in ("loc", "scale")
    }


def check_mode(name: str, value: Any) -> Any:
    """Checks whether and when to standardise: True, False or ``"auto"``."""
    if not isinstance(value, bool | str) or value not in (True, False, "auto"):
        raise ValueError(f"Expected {name} to be True, False or 'auto', got {value!r}.")
    return value


def location_and_scale(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every column of rows (N, dim), two tensors of shape (dim,).

    The scale of a constant column is one. Constant is one whose values are equal, or differ by no
    more than their dtype rounds: the timestamps of a minute, of standard deviation 20 around
    1.7e9, vary in float64.
    """
    loc, scale = rows.mean(0), rows.std(0, correction=0)
    varies = scale > torch.finfo(rows.dtype).eps * loc.abs()
    if len(rows):
        varies &= rows.amax(0) > rows.amin(0)
    return loc, torch.where(varies, scale, torch.ones_like(scale))
