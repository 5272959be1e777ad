"""Constraints: numbers above a floor, mixed and missing columns, intervals, boxes, half-spaces."""

__all__ = [
    "Floored",
    "box",
    "fixed_columns",
    "half_space",
    "is_over_reals",
    "mixed_columns",
    "move_support",
    "next_to",
    "open_interval",
    "real_or_missing",
    "real_or_missing_vector",
]

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Size, Tensor
from torch.distributions import Transform, biject_to, constraints, transform_to
from torch.distributions.transforms import AffineTransform, identity_transform
from torch.nn.functional import softplus


class Floored:
    """Positive numbers above a floor, as a function of unconstrained ones: f + g(rate * raw).

    Scales and variances of every model are parameters of this kind. Without a floor the
    likelihood of a mixture is unbounded.

    Args:
        floor: f, which is positive.
        positive: g, ``"exp"`` or ``"softplus"``.
        rate: By what unconstrained numbers are multiplied.
        excess: Least share of the floor by which `inverse` keeps values above it: at the floor
            itself the gradient in the unconstrained number is zero.

    >>> scale = Floored(1e-3)
    >>> scale(scale.inverse(torch.tensor(2.0)))
    tensor(2.)
    """

    def __init__(
        self, floor: float, positive: str = "exp", rate: float = 1.0, excess: float = 1e-3
    ) -> None:
        self.floor, self.positive, self.rate, self.excess = floor, positive, rate, excess

    def __call__(self, raw: Tensor) -> Tensor:
        """The numbers, of the shape of the unconstrained ones."""
        raw = raw if self.rate == 1.0 else self.rate * raw
        return self.floor + (raw.exp() if self.positive == "exp" else softplus(raw))

    def inverse(self, value: Tensor) -> Tensor:
        """The unconstrained numbers; values at the floor and below are raised a little."""
        excess = (value - self.floor).clamp(min=self.excess * self.floor)
        raw = excess.log()
        if self.positive == "softplus":  # log(e^y - 1), without overflow
            raw = excess + (-torch.expm1(-excess)).log()
        return raw if self.rate == 1.0 else raw / self.rate

    def is_reached(self, value: Tensor) -> Tensor:
        """Which numbers are at the floor, or as near as `inverse` lets them start."""
        return value <= self.floor * (1 + max(0.01, 1.05 * self.excess))


class _RealOrMissing(constraints.Constraint):
    """Real numbers, and NaN in place of those that are missing."""

    def check(self, value: Tensor) -> Tensor:
        """Whether each entry is finite or NaN."""
        return ~value.isinf()


real_or_missing = _RealOrMissing()
real_or_missing_vector = constraints.independent(real_or_missing, 1)


def _unconstrained(constraint: constraints.Constraint) -> Transform:  # noqa: ARG001
    return identity_transform


class mixed_columns(constraints.Constraint):  # noqa: N801 - as in torch.distributions.constraints
    """Vectors of real columns followed by categorical ones, as codes from zero.

    Args:
        dim: Number of real columns.
        categories: Numbers of categories of the columns that follow.
        missing: Whether NaN marks missing entries.
    """

    event_dim = 1

    def __init__(self, dim: int, categories: Sequence[int], missing: bool = False) -> None:
        self.dim, self.categories, self.missing = dim, tuple(categories), missing
        super().__init__()

    def __repr__(self) -> str:
        return f"mixed_columns({self.dim}, {self.categories}, missing={self.missing})"

    def check(self, value: Tensor) -> Tensor:
        """Whether real columns are finite, and the others hold codes of a category."""
        codes = value[..., self.dim :]
        sizes = torch.tensor(self.categories, dtype=value.dtype, device=value.device)
        good = torch.cat(
            [value[..., : self.dim].isfinite(), (codes == codes.round()) & (codes >= 0)], -1
        )
        good[..., self.dim :] &= codes < sizes
        return (good | value.isnan() if self.missing else good).all(-1)


class open_interval(constraints.interval):  # noqa: N801
    """Real numbers between two bounds, without the bounds themselves.

    Args:
        lower_bound: Less than all of them.
        upper_bound: Greater than all of them.
    """

    def __repr__(self) -> str:
        return f"open_interval({self.lower_bound}, {self.upper_bound})"

    def check(self, value: Tensor) -> Tensor:
        """Whether each entry lies strictly between the bounds."""
        return (self.lower_bound < value) & (value < self.upper_bound)


class box(constraints.Constraint):  # noqa: N801
    r"""Vectors between bounds that may be infinite.

    Args:
        low: Lower bounds, shape (\*B, D).
        high: Upper bounds, shape (\*B, D).
    """

    event_dim = 1

    def __init__(self, low: Tensor, high: Tensor) -> None:
        self.low, self.high = low, high
        super().__init__()

    def __repr__(self) -> str:
        return f"box(low={self.low.tolist()}, high={self.high.tolist()})"

    def check(self, value: Tensor) -> Tensor:
        """Whether each vector lies within the bounds."""
        return ((value >= self.low) & (value <= self.high)).all(-1)


class half_space(constraints.Constraint):  # noqa: N801
    r"""Vectors with a.x + b > 0.

    Args:
        a: Shape (D,).
        b: Scalar, or shape (\*B,) for a batch of parallel planes.
    """

    event_dim = 1

    def __init__(self, a: Tensor, b: Tensor) -> None:
        self.a, self.b = a, b
        super().__init__()

    def __repr__(self) -> str:
        return f"half_space(a={self.a.tolist()}, b={self.b.tolist()})"

    def check(self, value: Tensor) -> Tensor:
        """Whether each vector lies on the positive side."""
        return value @ self.a + self.b >= 0


class fixed_columns(constraints.Constraint):  # noqa: N801
    r"""Vectors of which some columns have given values.

    Args:
        free: Constraint on the vector of the other columns.
        columns: The columns that have given values, in ascending order.
        values: These, shape (\*B, number of columns).
        dim: Number D of all columns.
    """

    event_dim = 1

    def __init__(
        self, free: constraints.Constraint, columns: Sequence[int], values: Tensor, dim: int
    ) -> None:
        self.free, self.columns, self.values, self.dim = free, tuple(columns), values, dim
        super().__init__()

    def __repr__(self) -> str:
        return f"fixed_columns({self.free}, {self.columns}, {self.values.tolist()}, {self.dim})"

    @property
    def free_columns(self) -> list[int]:
        """The other columns, in ascending order."""
        return [d for d in range(self.dim) if d not in self.columns]

    def check(self, value: Tensor) -> Tensor:
        """Whether each vector has the values, and the rest of it lies where it should."""
        same = (value[..., list(self.columns)] == self.values).all(-1)
        return same & self.free.check(value[..., self.free_columns])


def move_support(
    support: constraints.Constraint, affine: AffineTransform
) -> constraints.Constraint:
    """The image of an interval or a half-line under an affine transform; else its codomain."""
    inner = support
    while isinstance(inner, constraints.independent):
        inner = inner.base_constraint
    ends: dict[str, Tensor] = {}
    for name in ("lower_bound", "upper_bound"):
        if hasattr(inner, name):
            end = affine.loc + affine.scale * getattr(inner, name)
            # Not in PyTorch's default dtype, which may be that of draws rounded.
            ends[name] = end if isinstance(end, Tensor) else torch.tensor(end, dtype=torch.float64)
    falls = torch.as_tensor(affine.scale) < 0
    moved: Any
    if isinstance(inner, constraints.interval):
        low, high = ends["lower_bound"], ends["upper_bound"]
        moved = constraints.interval(torch.minimum(low, high), torch.maximum(low, high))
    elif isinstance(inner, constraints.greater_than | constraints.less_than) and (
        bool(falls.all()) or not bool(falls.any())
    ):
        above = isinstance(inner, constraints.greater_than) != bool(falls.all())
        (end,) = ends.values()
        moved = constraints.greater_than(end) if above else constraints.less_than(end)
    else:
        return affine.codomain
    missing = support.event_dim - moved.event_dim
    return constraints.independent(moved, missing) if missing > 0 else moved


class _OntoBox(Transform):
    """Sigmoid between two bounds, exponential next to one, identity without."""

    bijective = True
    domain = constraints.real_vector

    def __init__(self, low: Tensor, high: Tensor) -> None:
        super().__init__()
        self.low, self.high = low, high
        bounded = low.isfinite(), high.isfinite()
        self._both = bounded[0] & bounded[1]
        self._lower, self._upper = bounded[0] & ~bounded[1], bounded[1] & ~bounded[0]
        # Stand-ins where a bound is infinite, whose results are not used.
        self._low = torch.where(bounded[0], low, 0.0)
        self._high = torch.where(bounded[1], high, self._low + 1)
        self._width = torch.where(self._both, self._high - self._low, 1.0)
        limits = torch.finfo(low.dtype)
        ends = low.clamp(min=-limits.max), high.clamp(max=limits.max)
        self._inner = (
            next_to(ends[0], math.inf).where(bounded[0], ends[0]),
            next_to(ends[1], -math.inf).where(bounded[1], ends[1]),
        )

    @property
    def codomain(self) -> constraints.Constraint:  # type: ignore[override]
        return box(self.low, self.high)

    def _call(self, x: Tensor) -> Tensor:
        # From the nearer end, as far as that is a number with digits left, and never onto it.
        step = self._width * (-x.abs()).sigmoid()
        y = torch.where(self._both, torch.where(x > 0, self._high - step, self._low + step), x)
        y = torch.where(self._lower, self._low + self._safe_exp(x, self._lower), y)
        y = torch.where(self._upper, self._high - self._safe_exp(-x, self._upper), y)
        return torch.where(self._both | self._lower | self._upper, y.clamp(*self._inner), y)

    def _inverse(self, y: Tensor) -> Tensor:
        # Differences from both ends: what a share of the width rounds away is in neither.
        above = self._log_gap(y - self._low, self._both | self._lower)
        below = self._log_gap(self._high - y, self._both | self._upper)
        return torch.where(self._both | self._lower | self._upper, above - below, y)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002
        both = self._width.log() - torch.nn.functional.softplus(x)
        both = both - torch.nn.functional.softplus(-x)
        slope = torch.where(self._both, both, 0.0)
        return torch.where(self._lower, x, torch.where(self._upper, -x, slope)).sum(-1)

    @staticmethod
    def _safe_exp(x: Tensor, where: Tensor) -> Tensor:
        return torch.where(where, x, 0.0).exp()

    @staticmethod
    def _log_gap(gap: Tensor, where: Tensor) -> Tensor:
        """Log-distances from an end, where there is one; finite at that end itself."""
        gap = torch.where(gap == 0, torch.finfo(gap.dtype).tiny, gap)
        return torch.where(where, gap, 1.0).log()


class _OntoHalfSpace(Transform):
    """The distance from the plane becomes an exponential; all else stays.

    Close to the plane the terms of a.x + b cancel: they are added up in double precision.
    """

    bijective = True
    domain = constraints.real_vector

    def __init__(self, a: Tensor, b: Tensor) -> None:
        super().__init__()
        self.a, self.b = a, b
        self._length = a.double().norm()
        self._normal, self._offset = a.double() / self._length, b.double() / self._length

    @property
    def codomain(self) -> constraints.Constraint:  # type: ignore[override]
        return half_space(self.a, self.b)

    def _call(self, x: Tensor) -> Tensor:
        limits, normal = torch.finfo(x.dtype), self._normal
        wide = x.double()
        along = wide @ normal
        rest = wide - along.unsqueeze(-1) * normal
        distance = along.exp().clamp(limits.tiny, limits.max)
        y = rest + (distance - self._offset).unsqueeze(-1) * normal
        # Rounding must not carry it across the plane, in whatever order its terms are added up.
        size = y.detach().abs() @ normal.abs() + self._offset.abs()
        least = limits.eps * int((normal != 0).sum()) * size
        short = (least - distance).clamp(min=0.0)
        return (y + short.unsqueeze(-1) * normal).to(x.dtype)

    def _inverse(self, y: Tensor) -> Tensor:
        wide = y.double()
        along = wide @ self._normal
        distance = along + self._offset
        distance = torch.where(distance == 0, torch.finfo(y.dtype).tiny, distance)
        return (wide + (distance.log() - along).unsqueeze(-1) * self._normal).to(y.dtype)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002
        return (x.double() @ self._normal).to(x.dtype)

    def forward_shape(self, shape: Sequence[int]) -> Size:
        return Size((*torch.broadcast_shapes(shape[:-1], self.b.shape), shape[-1]))

    def inverse_shape(self, shape: Sequence[int]) -> Size:
        return Size(shape)


class _OntoFixedColumns(Transform):
    """From numbers for the free columns to vectors in which the others have their values."""

    bijective = True
    domain = constraints.real_vector

    def __init__(self, constraint: fixed_columns) -> None:
        super().__init__()
        self.constraint, self._free = constraint, biject_to(constraint.free)
        place = [*constraint.free_columns, *constraint.columns]
        self._order = sorted(range(len(place)), key=place.__getitem__)

    @property
    def codomain(self) -> constraints.Constraint:  # type: ignore[override]
        return self.constraint

    def _call(self, x: Tensor) -> Tensor:
        free, values = self._free(x), self.constraint.values
        leading = torch.broadcast_shapes(free.shape[:-1], values.shape[:-1])
        parts = (part.expand(*leading, part.shape[-1]) for part in (free, values))
        return torch.cat(list(parts), -1)[..., self._order]

    def _inverse(self, y: Tensor) -> Tensor:
        return self._free.inv(y[..., self.constraint.free_columns])

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        free = y[..., self.constraint.free_columns]
        change = self._free.log_abs_det_jacobian(x, free)
        return change if self._free.domain.event_dim else change.sum(-1)

    def forward_shape(self, shape: Sequence[int]) -> Size:
        leading = torch.broadcast_shapes(shape[:-1], self.constraint.values.shape[:-1])
        return Size((*leading, self.constraint.dim))

    def inverse_shape(self, shape: Sequence[int]) -> Size:
        return Size((*shape[:-1], self.constraint.dim - len(self.constraint.columns)))


def next_to(bound: Tensor, direction: float) -> Tensor:
    """The numbers next to others.

    Args:
        bound: The others.
        direction: Infinity for the next greater numbers, minus infinity for the next less ones.
    """
    tiny = torch.finfo(bound.dtype).tiny  # numbers below may count as zero
    moved = torch.nextafter(bound, torch.full_like(bound, direction))
    return torch.where(bound == 0, tiny if direction > 0 else -tiny, moved)


for _registry in (biject_to, transform_to):
    _registry.register(fixed_columns, _OntoFixedColumns)
    _registry.register(_RealOrMissing, _unconstrained)
    _registry.register(
        open_interval,
        lambda c: biject_to(constraints.interval(c.lower_bound, c.upper_bound)),
    )
    _registry.register(box, lambda c: _OntoBox(c.low, c.high))
    _registry.register(half_space, lambda c: _OntoHalfSpace(c.a, c.b))


def is_over_reals(law: Any) -> bool:
    """Whether a law is known to be over real numbers, so that integers among its values are such.

    False where a law declares no support, or does not know it.
    """
    try:
        return not law.support.is_discrete
    except (AttributeError, NotImplementedError, TypeError):
        return False
