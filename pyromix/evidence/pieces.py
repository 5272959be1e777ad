"""The pieces of evidence that users write."""

__all__ = [
    "AnyOf",
    "Box",
    "CategoricalPrior",
    "Evidence",
    "GaussianPrior",
    "LinearEquality",
    "LinearGaussian",
    "LinearInequality",
    "Nonlinear",
    "Observed",
]

import copy
import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Size, Tensor

from ..core.checks import as_int, check_positive_int
from .linear import LinearEvidence, power_of_two
from .naming import coordinate

Number = float | Tensor

# Entries across the diagonal of a covariance may differ by their rounding in single precision.
ASYMMETRY = 1e-5


class Evidence(ABC):
    """One piece of what is known. See the subclasses."""

    dims: ClassVar[Mapping[str, int]] = {}
    """Tensors that a piece is made of: how many dimensions each has in one statement."""
    coefficients: ClassVar[tuple[str, ...]] = ()
    """Those that differ only between entries of a batch which are conditioned on one by one."""

    def varies(self) -> bool:
        """Whether coefficients differ between entries of a batch."""
        return any(_leading(getattr(self, name), self.dims[name]) for name in self.coefficients)

    def entry_shape(self) -> Size:
        """The batch shape of its tensors.

        Raises:
            RuntimeError: If theirs do not broadcast.
        """
        shapes = (_leading(getattr(self, name), count) for name, count in self.dims.items())
        return torch.broadcast_shapes(*shapes)

    def at(self, index: tuple[int, ...], batch_shape: Size) -> "Evidence":
        """What it says about one entry of a batch, whose shape its own expands to."""
        piece = copy.copy(self)
        for name, count in self.dims.items():
            setattr(piece, name, _at(getattr(self, name), count, index, batch_shape))
        return piece

    @abstractmethod
    def add_to(self, known: "LinearEvidence") -> None:
        """Adds itself to what is known about a vector of a given dimension.

        Raises:
            ValueError: If it does not fit the vector.
        """


class Observed(Evidence):
    r"""Coordinates whose values are known exactly.

    Args:
        values: Coordinate -> its value, a number or a tensor of shape (\*N,) for N conditional
            laws at once. Values of categorical columns are codes from zero.
    """

    def __init__(self, values: Mapping[int, Number]) -> None:
        if not isinstance(values, Mapping):
            raise ValueError(
                f"Expected a mapping from columns to values, such as {{0: 1.5}}, got "
                f"{type(values).__name__}."
            )
        self.values = dict(values)

    def entry_shape(self) -> Size:
        """The batch shape of its values."""
        return torch.broadcast_shapes(*(_leading(value, 0) for value in self.values.values()))

    def at(self, index: tuple[int, ...], batch_shape: Size) -> "Observed":
        """What it says about one entry of a batch."""
        return Observed({d: _at(t, 0, index, batch_shape) for d, t in self.values.items()})

    def add_to(self, known: LinearEvidence) -> None:
        """Adds the values."""
        size = known.dim + len(known.categories)
        for given, value in self.values.items():
            d = as_int(given)
            if d is None or not -size <= d < size:
                raise ValueError(
                    f"Expected coordinates to be integers from {-size} to {size - 1}, got "
                    f"{given!r}."
                )
            d %= size
            tensor = known.tensor(value, f"the observed value of {coordinate(d)}")
            if d >= known.dim:
                self._add_code(known, d - known.dim, tensor)
                continue
            if d in known.observed:
                raise ValueError(
                    f"Expected each coordinate to be observed once, got {coordinate(d)} twice."
                )
            if not bool(tensor.isfinite().all()):
                raise ValueError(f"Expected a finite value of {coordinate(d)}.")
            known.observed[d] = tensor

    def _add_code(self, known: LinearEvidence, column: int, code: Tensor) -> None:
        """Leaves one category of a categorical column."""
        count = known.categories[column]
        if not bool(((code == code.round()) & (code >= 0) & (code < count)).all()):
            raise ValueError(
                f"Expected codes from 0 to {count - 1} in categorical column "
                f"{known.dim + column}, got {code.flatten()[:10].tolist()}."
            )
        chosen = torch.arange(count, device=known.device) == code.unsqueeze(-1)
        known.weigh(column, torch.where(chosen, 0.0, -math.inf).double())


class Nonlinear(Evidence):
    r"""An observation of a function of the real columns, y = f(x) + noise.

    Where many plain draws meet y, those are weighted. Elsewhere f is followed along the normal of
    each code, or component: draws meet y as closely as the noise says, however small that is, and
    are weighted for what the function does to volumes. Places with the value are sought from
    several starts; what is not found is missing from log Z, and a warning says so if plain draws
    find more. Not within `AnyOf`, and for one law at a time, not for a batch. log Z has no
    gradients.

    Args:
        function: f: takes points (n, D) and returns (n, m), row by row, differentiable. Where it
            is NaN nothing is possible.
        value: y, shape (m,), or a number.
        noise: Standard deviations, shape (m,), or a number, positive.
        num_draws: How many weighted draws stand for the law.

    Example:
        >>> from pyromix import GaussianMixture
        >>> model = GaussianMixture(2, 3).requires_grad_(False)
        >>> law = model.condition(Nonlinear(lambda x: x.square().sum(-1, keepdim=True), 4.0, 0.01))
        >>> bool((law.sample((50,)).norm(dim=-1) - 2.0).abs().max() < 0.05)
        True
    """

    def __init__(
        self,
        function: Callable[[Tensor], Tensor],
        value: Number,
        noise: Number,
        num_draws: int = 2048,
    ) -> None:
        if not callable(function):
            raise ValueError(f"Expected a function of points (n, D), got {function!r}.")
        self.function = function
        self.value = _vector("the value", value)
        self.noise = _vector("noise", noise)
        if len(self.noise) not in (1, len(self.value)) or not bool((self.noise > 0).all()):
            raise ValueError(
                f"Expected noise as positive standard deviations, one for each of "
                f"{len(self.value)} values or for all, got {self.noise.tolist()}."
            )
        self.noise = self.noise.expand(len(self.value))
        self.num_draws = check_positive_int("num_draws", num_draws)

    def add_to(self, known: LinearEvidence) -> None:  # noqa: ARG002
        """Not linear: see `pyromix.conditioning.nonlinear`."""
        raise ValueError("Expected linear statements, got a Nonlinear one: it does not go here.")


class CategoricalPrior(Evidence):
    r"""The factor q(c) on a categorical column, or on each of several columns.

    Args:
        index: The column, or several: a sequence or a range.
        probs: Weights of its categories, not negative and not all zero, shape (\*N, categories).
            They need not sum to one: zeros and ones say which categories are possible. Of J
            columns, shape (\*N, J, categories); columns with fewer categories than others have
            zeros at the end.

    Example:
        >>> from pyromix import DRMM
        >>> model = DRMM(dim=2, num_layers=2, num_components=4, categories=(3, 3))
        >>> law = model.condition(CategoricalPrior(2, torch.tensor([0.5, 0.5, 0.0])))
        >>> bool((law.sample((100,))[:, 2] < 2).all())
        True
        >>> both = CategoricalPrior(range(2, 4), torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.2, 0.8]]))
        >>> bool((model.condition(both).sample((100,))[:, 3] > 0).all())
        True
    """

    def __init__(self, index: int | Sequence[int], probs: Tensor) -> None:
        self.index = tuple(index) if isinstance(index, Sequence) else index
        self.probs = probs

    @property
    def _event_dim(self) -> int:
        return 2 if isinstance(self.index, tuple) else 1

    def entry_shape(self) -> Size:
        """The batch shape of its weights."""
        return _leading(self.probs, self._event_dim)

    def at(self, index: tuple[int, ...], batch_shape: Size) -> "CategoricalPrior":
        """What it says about one entry of a batch."""
        own = torch.as_tensor(_at(self.probs, self._event_dim, index, batch_shape))
        return CategoricalPrior(self.index, own)

    def add_to(self, known: LinearEvidence) -> None:
        """Adds the weights."""
        several = isinstance(self.index, tuple)
        index = self.index if isinstance(self.index, tuple) else (self.index,)
        columns = [known.categorical_column(each) for each in index]
        if not columns or len(set(columns)) < len(columns):
            raise ValueError(f"Expected different columns, at least one, got {self.index!r}.")
        probs = known.tensor(self.probs, "probs")
        counts = [known.categories[column] for column in columns]
        shape = (len(columns), max(counts))[0 if several else 1 :]
        if probs.dim() < len(shape) or probs.shape[probs.dim() - len(shape) :] != shape:
            raise ValueError(
                f"Expected probs of shape (*N, {', '.join(map(str, shape))}), one for each "
                f"category of "
                + ("each column" if several else f"column {known.dim + columns[0]}")
                + f", got {tuple(probs.shape)}."
            )
        probs = probs if several else probs.unsqueeze(-2)
        beyond = torch.arange(shape[-1]) >= torch.tensor(counts).unsqueeze(-1)
        if bool((probs[..., beyond.to(probs.device)] != 0).any()):
            raise ValueError(
                f"Expected probs of zero beyond the categories of each column, of which there are "
                f"{counts}."
            )
        if not bool(((probs >= 0) & probs.isfinite()).all()) or not bool(
            (probs.sum(-1) > 0).all()
        ):
            raise ValueError("Expected probs that are finite, not negative, and not all zero.")
        for column, count, own in zip(columns, counts, probs.log().unbind(-2), strict=True):
            known.weigh(column, own[..., :count])


class GaussianPrior(Evidence):
    r"""The factor :math:`\prod_d N(x_d; \text{loc}_d, \text{scale}_d^2)`.

    Args:
        loc: Shape (\*N, D), or a number.
        scale: Standard deviations, shape (D,), or a number; infinity for coordinates about which
            nothing is said. Or of shape (\*N, D): then entries are conditioned on one by one.
    """

    dims: ClassVar = {"loc": 1, "scale": 1}
    coefficients = ("scale",)

    def __init__(self, loc: Number, scale: Number) -> None:
        self.loc, self.scale = loc, scale

    def add_to(self, known: LinearEvidence) -> None:
        """Adds an observation of every coordinate with a finite scale."""
        loc, scale = known.vector(self.loc, "loc"), known.vector(self.scale, "scale")
        if scale.dim() != 1 or not bool((scale > 0).all()):
            raise ValueError("Expected positive scales, one for each coordinate or one for all.")
        kept = scale.isfinite()
        if not bool(kept.any()):
            return
        _check_finite("loc where the scale is finite", loc[..., kept])
        matrix = torch.eye(known.dim, dtype=torch.float64, device=known.device)[kept]
        known.gaussian.append((matrix, loc[..., kept], torch.diag(scale[kept].square())))


class Box(Evidence):
    r"""The constraint low <= x <= high, coordinate by coordinate.

    Args:
        low: Lower bounds, shape (\*N, D), or a number; minus infinity where there is none.
        high: Upper bounds, shape (\*N, D), or a number; infinity where there is none.
    """

    dims: ClassVar = {"low": 1, "high": 1}

    def __init__(self, low: Number = -math.inf, high: Number = math.inf) -> None:
        self.low, self.high = low, high

    def add_to(self, known: LinearEvidence) -> None:
        """Adds a row for every coordinate that is bounded."""
        low, high = known.vector(self.low, "low"), known.vector(self.high, "high")
        low, high = torch.broadcast_tensors(low, high)
        if not bool((low < high).all()):
            raise ValueError("Expected low < high in every coordinate. For equality use Observed.")
        bounded = low.isfinite() | high.isfinite()
        kept = bounded.reshape(math.prod(low.shape[:-1]), known.dim).any(0)
        matrix = torch.eye(known.dim, dtype=torch.float64, device=known.device)[kept]
        known.matrix.append(matrix)
        known.low.append(low[..., kept])
        known.high.append(high[..., kept])


class LinearInequality(Evidence):
    r"""The constraint a.x + b > 0.

    Args:
        a: Coefficients, shape (D,), or (m, D) for m inequalities. Or of shape (\*N, m, D): then
            entries are conditioned on one by one.
        b: Offsets, a number or shape (\*N, m).
    """

    dims: ClassVar = {"a": 2, "b": 1}
    coefficients = ("a",)

    def __init__(self, a: Tensor, b: Number = 0.0) -> None:
        self.a, self.b = a, b

    def add_to(self, known: LinearEvidence) -> None:
        """Adds the rows."""
        matrix = known.rows(self.a, "a")
        low = -_offsets(known, self.b, len(matrix))
        known.matrix.append(matrix)
        known.low.append(low)
        known.high.append(torch.full_like(low, math.inf))


class LinearEquality(Evidence):
    r"""The constraint a.x + b = 0.

    Args:
        a: Coefficients, shape (D,), or (m, D) for m equations. Or of shape (\*N, m, D): then
            entries are conditioned on one by one.
        b: Offsets, a number or shape (\*N, m).
    """

    dims: ClassVar = {"a": 2, "b": 1}
    coefficients = ("a",)

    def __init__(self, a: Tensor, b: Number = 0.0) -> None:
        self.a, self.b = a, b

    def add_to(self, known: LinearEvidence) -> None:
        """Adds an observation without noise."""
        matrix = known.rows(self.a, "a")
        y = -_offsets(known, self.b, len(matrix))
        # In units in which the largest coefficient is about one, so that equations compare.
        unit, exponent = power_of_two(matrix)
        matrix, y = matrix / unit.unsqueeze(-1), y / unit
        if not bool(y.isfinite().all()):
            raise ValueError(
                f"Expected equations that finite numbers solve, got coefficients of at most "
                f"{unit.min().item():.3g} with an offset of {_largest(self.b):.3g}."
            )
        known.log_units += math.log(2) * int(exponent.sum())
        known.gaussian.append((matrix, y, matrix.new_zeros(len(matrix), len(matrix))))


class LinearGaussian(Evidence):
    r"""The observation y = A x + noise: a linear inverse problem.

    Args:
        matrix: A, shape (m, D).
        y: What was observed, shape (\*N, m), or a number if m is one.
        noise: Standard deviation of the noise, a positive number or shape (m,); or its covariance,
            shape (m, m).

    A matrix of shape (\*N, m, D) and covariances of shape (\*N, m, m) differ between entries,
    which are conditioned on one by one then.
    """

    dims: ClassVar = {"matrix": 2, "y": 1, "noise": 2}
    coefficients = ("matrix", "noise")

    def __init__(self, matrix: Tensor, y: Number, noise: Number) -> None:
        self.matrix, self.y, self.noise = matrix, y, noise

    def add_to(self, known: LinearEvidence) -> None:
        """Adds the observation."""
        matrix = known.rows(self.matrix, "matrix")
        count = len(matrix)
        y, noise = known.tensor(self.y, "y"), known.tensor(self.noise, "noise")
        if y.dim() == 0 and count == 1:
            y = y.unsqueeze(0)
        if y.dim() == 0 or y.shape[-1] != count:
            raise ValueError(
                f"Expected y of shape (*N, {count}), one number for each row of the matrix, got "
                f"{tuple(y.shape)}."
            )
        _check_finite("y", y)
        _check_finite("noise", noise)
        if noise.dim() < 2:
            if (noise.dim() == 1 and noise.shape != (count,)) or not bool((noise > 0).all()):
                raise ValueError(
                    f"Expected positive noise, a number or shape ({count},), got "
                    f"{tuple(noise.shape)}. For exact observations use LinearEquality."
                )
            noise = torch.diag(noise.square().expand(count))
        else:
            noise = _as_covariance(noise, count)
        known.gaussian.append((matrix, y, noise))


class AnyOf(Evidence):
    r"""At least one of several constraints holds; where several do, it counts once.

    .. math:: q(x) = 1[x \in A_1 \cup A_2 \cup \dots]

    Several of them may be given together, and with any other evidence. A law is conditioned on
    every combination of their alternatives, or, where those are many, on the other evidence alone:
    draws that meet the unions are kept.

    Args:
        alternatives: Each a `Box` or a `LinearInequality`, or a sequence of such that hold
            together.

    Raises:
        ValueError: If there is no alternative, or if one holds another kind of evidence.

    Example:
        >>> from pyromix import GaussianMixture
        >>> outside = AnyOf(Box(high=-1.0), Box(low=1.0))
        >>> law = GaussianMixture(dim=1, num_components=2).condition(outside)
        >>> bool((law.sample((100,)).abs() >= 1).all())
        True
    """

    def __init__(self, *alternatives: Evidence | Sequence[Evidence]) -> None:
        self.alternatives = [
            (pieces,) if isinstance(pieces, Evidence) else _as_pieces(pieces)
            for pieces in alternatives
        ]
        if not self.alternatives:
            raise ValueError("Expected at least one alternative, got none.")
        for piece in itertools.chain(*self.alternatives):
            _check_alternative(piece)

    def varies(self) -> bool:
        """Whether coefficients of an alternative differ between entries of a batch."""
        return any(piece.varies() for piece in itertools.chain(*self.alternatives))

    def entry_shape(self) -> Size:
        """The batch shape of the alternatives together."""
        shapes = (piece.entry_shape() for piece in itertools.chain(*self.alternatives))
        return torch.broadcast_shapes(*shapes)

    def at(self, index: tuple[int, ...], batch_shape: Size) -> "AnyOf":
        """What it says about one entry of a batch."""
        parts = ([p.at(index, batch_shape) for p in pieces] for pieces in self.alternatives)
        return AnyOf(*parts)

    def add_to(self, known: LinearEvidence) -> None:  # noqa: ARG002
        """Is not possible: a union is no linear statement.

        Raises:
            ValueError: Always.
        """
        raise ValueError(
            "Expected evidence that is linear, got AnyOf. Collect it with "
            "collect_alternatives, and condition on each."
        )


def _leading(value: object, count: int) -> Size:
    """The batch shape of a tensor whose last dimensions, so many, are one statement's."""
    try:
        shape = torch.as_tensor(value).shape
    except (TypeError, ValueError, RuntimeError):
        return Size()  # no numbers: an error later says so
    return shape[: max(0, len(shape) - count)]


def _at(value: Number, count: int, index: tuple[int, ...], batch_shape: Size) -> Number:
    """The entry of a tensor's own that an entry of a batch has."""
    leading = _leading(value, count)
    if not leading:
        return value
    tensor = torch.as_tensor(value)
    return tensor.expand(*batch_shape, *tensor.shape[len(leading) :])[index]


def _as_pieces(alternative: object) -> tuple[Evidence, ...]:
    if not isinstance(alternative, Sequence) or isinstance(alternative, str) or not alternative:
        raise ValueError(
            f"Expected alternatives such as pyromix.Box(low, high), or non-empty sequences of "
            f"them, got {alternative!r}."
        )
    return tuple(alternative)


def _check_alternative(piece: object) -> None:
    """Checks that overlaps with a piece can be counted."""
    if isinstance(piece, Box | LinearInequality):
        return
    got = f"Expected alternatives made of Box and LinearInequality, got {type(piece).__name__}"
    if isinstance(piece, AnyOf):
        raise ValueError(f"{got}. Give its alternatives one by one.")
    if isinstance(piece, Observed | LinearEquality):
        raise ValueError(
            f"{got}: what holds with probability zero has no share in a union with inequalities. "
            f"Give it next to AnyOf, or build a mixture of laws yourself."
        )
    if isinstance(piece, GaussianPrior | LinearGaussian):
        raise ValueError(
            f"{got}: no point is in or out of it, so that overlaps cannot be counted once. Give "
            f"it next to AnyOf."
        )
    if isinstance(piece, CategoricalPrior):
        raise ValueError(f"{got}. Give it next to AnyOf.")
    raise ValueError(f"{got}.")


def _as_covariance(noise: Tensor, count: int) -> Tensor:
    """A covariance (m, m) that is symmetric to the last digit."""
    if noise.shape != (count, count):
        raise ValueError(
            f"Expected noise as a number or of shape ({count},) or ({count}, {count}), got "
            f"{tuple(noise.shape)}."
        )
    scale = noise.diagonal().abs().sqrt()
    asymmetry = (noise - noise.mT).abs()
    if bool((asymmetry > ASYMMETRY * scale.unsqueeze(-1) * scale).any()):
        raise ValueError(
            f"Expected noise as a symmetric matrix, got entries that differ from those across "
            f"the diagonal by up to {asymmetry.max().item():.3g}. Give the covariance L L^T, if "
            f"this is its factor L."
        )
    noise = 0.5 * (noise + noise.mT)
    if int(torch.linalg.cholesky_ex(noise).info) > 0:
        raise ValueError(
            f"Expected a positive-definite noise of shape ({count}, {count}), got one that is "
            f"not. Readings without noise are given by LinearEquality."
        )
    return noise


def _offsets(known: LinearEvidence, b: Number, count: int) -> Tensor:
    offset = known.tensor(b, "b")
    _check_finite("b", offset)
    if offset.dim() == 0:
        return offset.expand(count)
    if offset.shape[-1] != count:
        raise ValueError(f"Expected b of shape (*N, {count}), got {tuple(offset.shape)}.")
    return offset


def _largest(b: Number) -> float:
    return torch.as_tensor(b).double().abs().max().item()


def _check_finite(what: str, numbers: Tensor) -> None:
    infinite = int((~numbers.isfinite()).sum())
    if infinite:
        raise ValueError(
            f"Expected finite {what}, got {infinite} infinite among {numbers.numel()} numbers. "
            f"What says nothing is left out."
        )


def _vector(name: str, value: Number) -> Tensor:
    """A finite float64 vector, of one entry for a number."""
    try:
        tensor = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        tensor = torch.empty(0, 0)
    real = not tensor.is_complex() and tensor.dtype != torch.bool
    tensor = tensor.double().flatten() if real and tensor.dim() < 2 else torch.empty(0)
    if not tensor.numel() or not bool(tensor.isfinite().all()):
        shown = type(value).__name__ if isinstance(value, Tensor) else repr(value)
        raise ValueError(
            f"Expected {name} to be a finite number or a vector of them, got {shown}."
        )
    return tensor
