"""Transforms that act on every coordinate alone, taken apart: what evidence is moved through."""

__all__ = ["CoordinateChain"]

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.transforms import (
    AffineTransform,
    CatTransform,
    ComposeTransform,
    IndependentTransform,
    StackTransform,
    _InverseTransform,
)

from .chain import clear_caches, draws_branches
from .wrapping import InverseTransform, inverse_at, unwrap

Ends = tuple[Tensor, Tensor]


class _Step(ABC):
    """A strictly monotone function of every coordinate, on tensors (*S, D) of float64."""

    domain: Ends
    """Where it is defined: low and high ends, scalars or (D,)."""
    rises: Tensor
    """Whether it rises, a scalar or (D,)."""
    linear: Tensor
    """Whether it is affine, a scalar or (D,)."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Values at x."""

    @abstractmethod
    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """The x of values y, any x where there is none, and where there is one."""

    @abstractmethod
    def log_slope(self, x: Tensor) -> Tensor:
        """Log |dy / dx|, coordinate by coordinate."""

    @abstractmethod
    def pull_bounds(self, low: Tensor, high: Tensor) -> Ends:
        """Bounds on x for bounds on y; low >= high where there is no x."""

    @abstractmethod
    def inverted(self) -> "_Step":
        """The inverse function."""


class _Scalar(_Step):
    """One of PyTorch's or Pyro's transforms, or the inverse of one."""

    def __init__(self, transform: Any, size: int, *, backwards: bool = False) -> None:
        self.transform, self.size, self.backwards = transform, size, backwards
        ends = _ends(transform.domain), _ends(transform.codomain)
        self.domain, self.codomain = ends[::-1] if backwards else ends
        self.linear = torch.tensor(isinstance(transform, AffineTransform))
        try:
            self.rises = torch.as_tensor(transform.sign) > 0
        except NotImplementedError:
            low, high = (end.clamp(-1.0, 1.0).expand(size) for end in ends[0])
            third = (high - low) / 3
            self.rises = transform(high - third) > transform(low + third)

    def forward(self, x: Tensor) -> Tensor:
        return inverse_at(self.transform, x) if self.backwards else self.transform(x)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        low, high = self.codomain
        inside = (y > low) & (y < high)
        y = torch.where(inside, y, _between(low, high))
        return (self.transform(y) if self.backwards else inverse_at(self.transform, y)), inside

    def log_slope(self, x: Tensor) -> Tensor:
        y = self.forward(x)
        if self.backwards:
            return -self.transform.log_abs_det_jacobian(y, x).expand(x.shape)
        return self.transform.log_abs_det_jacobian(x, y).expand(x.shape)

    def pull_bounds(self, low: Tensor, high: Tensor) -> Ends:
        start, stop = _of_rising(self.rises, *self.domain)
        pulled = []
        for bound in (low, high):
            inner, _ = self.inverse(bound)
            below, above = bound <= self.codomain[0], bound >= self.codomain[1]
            pulled.append(torch.where(below, start, torch.where(above, stop, inner)))
        return _of_rising(self.rises, *pulled)

    def inverted(self) -> "_Scalar":
        return _Scalar(self.transform, self.size, backwards=not self.backwards)


class _Parts(_Step):
    """Chains of neighbouring columns, side by side."""

    def __init__(self, parts: Sequence["CoordinateChain"], lengths: Sequence[int]) -> None:
        self.parts, self.lengths = list(parts), list(lengths)
        self.domain = (
            self._cat([part.domain[0] for part in parts]),
            self._cat([part.domain[1] for part in parts]),
        )
        self.rises = self._cat([part.rises for part in parts])
        self.linear = self._cat([part.linear for part in parts])

    def _cat(self, each: Sequence[Tensor]) -> Tensor:
        pairs = zip(each, self.lengths, strict=True)
        return torch.cat([own.expand(length) for own, length in pairs])

    def _split(self, *tensors: Tensor) -> Iterator[tuple[Any, ...]]:
        pieces = (t.split(self.lengths, -1) for t in tensors)
        return zip(self.parts, *pieces, strict=True)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([part.forward(own) for part, own in self._split(x)], -1)

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        x, inside = zip(*(part.inverse(own) for part, own in self._split(y)), strict=True)
        return torch.cat(x, -1), torch.cat(inside, -1)

    def log_slope(self, x: Tensor) -> Tensor:
        return torch.cat([part.log_slope(own) for part, own in self._split(x)], -1)

    def pull_bounds(self, low: Tensor, high: Tensor) -> Ends:
        ends = (part.pull_bounds(*own) for part, *own in self._split(low, high))
        below, above = zip(*ends, strict=True)
        return torch.cat(below, -1), torch.cat(above, -1)

    def inverted(self) -> "_Parts":
        return _Parts([part.inverted() for part in self.parts], self.lengths)


class CoordinateChain:
    """Transforms of every coordinate alone, one after the other, as they are at present.

    Args:
        steps: The transforms, from the base to the sample.

    Attributes:
        domain: Where the first is defined: low and high ends, scalars or (D,).
        rises: Whether values rise, a scalar or (D,).
        linear: Whether all are affine, a scalar or (D,).
    """

    def __init__(self, steps: Sequence[_Step]) -> None:
        self.steps = list(steps)
        infinite = torch.tensor(math.inf, dtype=torch.float64)
        self.domain = self.steps[0].domain if self.steps else (-infinite, infinite)
        self.rises = self.linear = torch.tensor(True)
        for step in self.steps:
            self.rises, self.linear = self.rises == step.rises, self.linear & step.linear

    @classmethod
    def of(cls, transforms: Iterable[Any], size: int, device: torch.device) -> "CoordinateChain":
        """Takes transforms of a flow apart; later changes of their parameters do not reach it.

        Args:
            transforms: The modules that a flow holds.
            size: Number of coordinates D.
            device: Where their tensors are.

        Raises:
            NotImplementedError: If one of them does not act on every coordinate alone.
        """
        parts = list(transforms)
        clear_caches(parts)
        with torch.no_grad(), device:  # new tensors, of numbers, are there
            copied = [copy.deepcopy(part).double().requires_grad_(False) for part in parts]
            return cls([step for part in copied for step in _steps(part, size)])

    @property
    def inner(self) -> Tensor:
        """A number where the first is defined, a scalar or (D,)."""
        return _between(*self.domain)

    def inverted(self) -> "CoordinateChain":
        """The inverse of all."""
        return CoordinateChain([step.inverted() for step in reversed(self.steps)])

    def forward(self, x: Tensor) -> Tensor:
        """Values (*S, D) at the end."""
        for step in self.steps:
            x = step.forward(x)
        return x

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """What leads to values (*S, D), and which of these can be reached."""
        inside = torch.ones_like(y, dtype=torch.bool)
        for step in reversed(self.steps):
            y, own = step.inverse(y)
            inside = inside & own
        return y, inside

    def log_slope(self, x: Tensor) -> Tensor:
        """Log |dy / dx| at x, coordinate by coordinate, shape (*S, D)."""
        total = torch.zeros_like(x)
        for step in self.steps:
            total, x = total + step.log_slope(x), step.forward(x)
        return total

    def pull_bounds(self, low: Tensor, high: Tensor) -> Ends:
        """Bounds (*S, D) on what leads to values within bounds; low >= high where nothing does."""
        for step in reversed(self.steps):
            low, high = step.pull_bounds(low, high)
        return low, high


def _steps(transform: Any, size: int) -> list[_Step]:
    """A transform taken apart.

    Raises:
        NotImplementedError: If it does not act on every coordinate alone.
    """
    part = unwrap(transform)
    match part:
        case IndependentTransform():
            return _steps(part.base_transform, size)
        case ComposeTransform():
            return [step for inner in part.parts for step in _steps(inner, size)]
        case InverseTransform() | _InverseTransform():
            return [step.inverted() for step in reversed(_steps(part.inv, size))]
        case CatTransform() if part.dim == -1:
            each = zip(part.transforms, part.lengths, strict=True)
            return [_Parts([CoordinateChain(_steps(*own)) for own in each], part.lengths)]
        case AffineTransform():
            return [_Scalar(AffineTransform(part.loc, part.scale), size)]
    alone = (
        getattr(part, "bijective", False)
        and not isinstance(part, CatTransform | StackTransform)
        and not draws_branches([part])
        and part.domain.event_dim == part.codomain.event_dim == 0
    )
    if not alone:
        raise NotImplementedError(
            f"Not available: evidence goes through transforms that act on every coordinate alone, "
            f"such as ExpTransform, AffineTransform, or a CatTransform of such, got "
            f"{type(part).__name__}. Condition the base, whose draws the transforms take on, or "
            f"weigh draws."
        )
    return [_Scalar(part, size)]


def _of_rising(rises: Tensor, low: Tensor, high: Tensor) -> Ends:
    """Two ends in their order where a function rises, and the other way round elsewhere."""
    return torch.where(rises, low, high), torch.where(rises, high, low)


def _ends(constraint: Any) -> Ends:
    """The ends of an interval, infinite where there is none."""
    while isinstance(constraint, constraints.independent):
        constraint = constraint.base_constraint
    low = getattr(constraint, "lower_bound", -math.inf)
    high = getattr(constraint, "upper_bound", math.inf)
    return torch.as_tensor(low).double(), torch.as_tensor(high).double()


def _between(low: Tensor, high: Tensor) -> Tensor:
    """A number between two ends, of their common shape."""
    middle = 0.5 * low + 0.5 * high
    one_sided = torch.where(low.isfinite(), low + 1, torch.where(high.isfinite(), high - 1, 0.0))
    return torch.where(low.isfinite() & high.isfinite(), middle, one_sided)
