"""Constraints on the expectations of a law: equalities and inequalities."""

__all__ = ["Expectations", "Statistics"]

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..core.checks import as_items
from ..core.conversions import as_numbers

Statistics = Callable[[Tensor], Tensor]


class Expectations:
    """Constraints on expectations: equalities E[T(x)] = t and inequalities E[S(x)] <= b.

    The targets t and bounds b together are the levels.

    Args:
        statistics: Function T from draws (n, *event_shape) to (n, m) or (n,).
        targets: Values t, shape (m,) or a number.
        inequalities: Function S from draws to (n, k) or (n,).
        bounds: Values b, shape (k,) or a number.
        names: Of all constraints, equalities first.
        like: A tensor with the dtype and device of draws.

    Raises:
        ValueError: If one comes without the other, or the number of names does not fit.
    """

    def __init__(
        self,
        statistics: Statistics | None,
        targets: Any,
        inequalities: Statistics | None,
        bounds: Any,
        names: Sequence[str] | None,
        like: Tensor,
    ) -> None:
        for name, function, limits, numbers in (
            ("statistics", statistics, "targets", targets),
            ("inequalities", inequalities, "bounds", bounds),
        ):
            if (function is None) != (numbers is None):
                raise ValueError(f"Expected {name} and {limits} together, got one of the two.")
            if function is not None and not callable(function):
                raise ValueError(
                    f"Expected {name} to be a function of draws, got {type(function).__name__}."
                )
        if statistics is None and inequalities is None:
            raise ValueError("Expected statistics with targets, or inequalities with bounds.")
        self.statistics, self.inequalities = statistics, inequalities
        self.targets = _as_levels("targets", targets, like)
        self.bounds = _as_levels("bounds", bounds, like)
        self.levels = torch.cat([self.targets, self.bounds])
        if names is None:
            names = [f"statistic {i}" for i in range(len(self.targets))]
            names += [f"inequality {i}" for i in range(len(self.bounds))]
        elif len(as_items(names) or ()) != len(self.levels):
            raise ValueError(
                f"Expected {len(self.levels)} names, one for every constraint, got {names!r}."
            )
        self.names = tuple(str(name) for name in names)

    @property
    def num_equalities(self) -> int:
        """Number of equalities: their levels come first."""
        return len(self.targets)

    @property
    def is_inequality(self) -> Tensor:
        """Which constraints are inequalities, shape (m,)."""
        index = torch.arange(len(self.levels), device=self.levels.device)
        return index >= self.num_equalities

    def violation(self, means: Tensor) -> Tensor:
        """By how much means of the statistics (m,) miss targets, or exceed bounds; shape (m,)."""
        excess = means - self.levels
        count = self.num_equalities
        return torch.cat([excess[:count], excess[count:].clamp(min=0)])

    def values(self, x: Tensor) -> Tensor:
        """The statistics of draws (n, *event_shape), shape (n, m); equalities come first.

        Raises:
            ValueError: If a function returns another shape, or a value that is not finite.
        """
        parts = [
            _evaluate(name, function, x, levels)
            for name, function, levels in (
                ("statistics", self.statistics, self.targets),
                ("inequalities", self.inequalities, self.bounds),
            )
            if function is not None
        ]
        values = torch.cat(parts, -1)
        if not bool(values.isfinite().all()):
            bad = (~values.isfinite()).sum(0).tolist()
            described = [f"{n!r} ({b})" for n, b in zip(self.names, bad, strict=True) if b]
            raise ValueError(
                f"Expected finite statistics, got NaN or infinity for some of {len(x)} draws: "
                f"{', '.join(described)}. Define them on all of the law's support, or give the "
                f"law a bounded one."
            )
        return values


def _as_levels(name: str, values: Any, like: Tensor) -> Tensor:
    """Targets or bounds as a tensor of shape (m,), and an empty one for None.

    Raises:
        ValueError: If they are not finite numbers.
    """
    if values is None:
        return like.new_empty(0)
    try:  # of any dtype, on any device, and lists of scalar tensors, too
        levels = as_numbers(name, torch.as_tensor(values)).to(like).detach()
        levels = levels.clone() if levels.is_inference() else levels
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(f"Expected {name} to be numbers, got {values!r}.") from None
    levels = levels.reshape(1) if levels.dim() == 0 else levels
    if levels.dim() != 1 or len(levels) == 0 or not bool(levels.isfinite().all()):
        raise ValueError(
            f"Expected {name} to be finite numbers, shape (m,), got {tuple(levels.shape)}: "
            f"{levels.tolist()}."
        )
    return levels


def _evaluate(name: str, function: Statistics, x: Tensor, levels: Tensor) -> Tensor:
    """Statistics of draws x, shape (n, m), one for each of the levels (m,).

    Raises:
        ValueError: If the function returns anything else.
    """
    value, count = function(x), len(levels)
    if isinstance(value, Tensor) and value.dim() == 1 and count == 1:
        value = value.unsqueeze(-1)
    if not isinstance(value, Tensor) or value.shape != (len(x), count):
        got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        wanted = f"({len(x)}, {count})" + (f" or ({len(x)},)" if count == 1 else "")
        what = "targets" if name == "statistics" else "bounds"
        raise ValueError(
            f"Expected {name} of draws of shape {tuple(x.shape)} to have shape {wanted}, one "
            f"column for each of the {what}, got {got}. Stack them with torch.stack(..., -1)."
        )
    # Draws of a discrete law may be integers, which have no means.
    return value.to(x.dtype if x.is_floating_point() else levels.dtype)
