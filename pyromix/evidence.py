r"""What is known about a vector: values, priors, observations and constraints.

Pieces of evidence are passed to a model's ``condition(*evidence)``, any number, in any
combination. Each stands for a factor q(x); the conditional law is :math:`p(x) \prod_i q_i(x) / Z`.

A vector has D real columns. Where a model has categorical columns, too, they follow: `Observed`
and `CategoricalPrior` name them by their index, other evidence is about the real ones alone.
"""

__all__ = [
    "AnyOf",
    "Box",
    "CategoricalPrior",
    "Evidence",
    "GaussianPrior",
    "LinearEquality",
    "LinearGaussian",
    "LinearInequality",
    "Observed",
    "collect",
    "collect_branches",
    "tightest_bounds",
]

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Size, Tensor

from .validation import as_int

Number = float | Tensor

# Branches are conditioned on one by one.
MAX_BRANCHES = 128


class Evidence(ABC):
    """One piece of what is known. See the subclasses."""

    @abstractmethod
    def add_to(self, known: "LinearEvidence") -> None:
        """Adds itself to what is known about a vector of a given dimension.

        Raises:
            ValueError: If it does not fit the vector.
        """


@dataclass
class LinearEvidence:
    """All that is known about x of shape (D,), as linear statements in float64.

    And about categorical columns that follow, as log-weights of their categories.
    """

    dim: int
    device: torch.device
    categories: tuple[int, ...] = ()
    """Numbers of categories of the columns after the first D."""
    observed: dict[int, Tensor] = field(default_factory=dict)
    """Coordinate -> value of shape (*N,)."""
    gaussian: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)
    """(A, y, R): y = A x + noise, A (m, D), y (*N, m), noise covariance R (m, m), may be zero."""
    matrix: list[Tensor] = field(default_factory=list)
    """Rows (p, D) of inequalities low <= A x <= high."""
    low: list[Tensor] = field(default_factory=list)
    """Lower bounds, shape (*N, p)."""
    high: list[Tensor] = field(default_factory=list)
    """Upper bounds, shape (*N, p)."""
    categorical: dict[int, Tensor] = field(default_factory=dict)
    """Number of a categorical column, from zero -> log-weights of shape (*N, categories)."""

    @property
    def batch_shape(self) -> Size:
        """The shape N that all pieces have together.

        Raises:
            ValueError: If their shapes do not broadcast.
        """
        shapes = [value.shape for value in self.observed.values()]
        shapes += [y.shape[:-1] for _, y, _ in self.gaussian]
        shapes += [bound.shape[:-1] for bound in (*self.low, *self.high)]
        shapes += [weights.shape[:-1] for weights in self.categorical.values()]
        try:
            return torch.broadcast_shapes(*shapes)
        except RuntimeError:
            raise ValueError(
                f"Expected evidence whose batch shapes broadcast, got "
                f"{[tuple(shape) for shape in shapes]}."
            ) from None

    @property
    def num_rows(self) -> int:
        """Number of inequalities."""
        return sum(len(rows) for rows in self.matrix)

    def inequalities(self, batch_shape: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        r"""All rows (p, D), and their bounds expanded to a batch shape, (\*B, p)."""
        low, high = (
            torch.cat([bound.expand(*batch_shape, bound.shape[-1]) for bound in bounds], -1)
            for bounds in (self.low, self.high)
        )
        return torch.cat(self.matrix), low, high

    def intersect(self, *others: "LinearEvidence") -> "LinearEvidence":
        """The same evidence within the inequalities of others, too, every row once.

        The others' values and observations must be the same as this one's. Bounds of equal or
        opposite rows are compared, so that there, in the batch, no rounding comes in between.
        """
        all_ = [known for known in (self, *others) if known.matrix]
        if not all_:
            return self
        batch_shape = torch.broadcast_shapes(*(known.batch_shape for known in all_))
        parts = [known.inequalities(batch_shape) for known in all_]
        matrix = torch.cat([matrix for matrix, _, _ in parts])
        low, high = (torch.cat([part[i] for part in parts], -1) for i in (1, 2))
        first = (matrix != 0).int().argmax(-1, keepdim=True)
        flipped = matrix.gather(-1, first).squeeze(-1) < 0
        low, high = torch.where(flipped, -high, low), torch.where(flipped, -low, high)
        matrix = torch.where(flipped.unsqueeze(-1), -matrix, matrix) + 0.0  # no negative zeros
        rows, index = matrix.unique(dim=0, return_inverse=True)
        low, high = tightest_bounds(low, high, index, len(rows))
        return replace(self, matrix=[rows], low=[low], high=[high])

    def categorical_column(self, index: object) -> int:
        """The number, from zero, of the categorical column with an index.

        Raises:
            ValueError: If there is none.
        """
        size = self.dim + len(self.categories)
        d = as_int(index)
        if d is None or not -size <= d < size or d % size < self.dim:
            columns = (
                f"columns {self.dim} to {size - 1}" if self.categories else "none, in this model"
            )
            raise ValueError(f"Expected a categorical column ({columns}), got {index!r}.")
        return d % size - self.dim

    def weigh(self, column: int, log_weights: Tensor) -> None:
        """Multiplies the categories of a column, counted from zero, by weights."""
        present = self.categorical.get(column)
        try:
            self.categorical[column] = log_weights if present is None else present + log_weights
        except RuntimeError:
            raise ValueError(
                f"Expected evidence about column {self.dim + column} whose batch shapes "
                f"broadcast, got {tuple(present.shape[:-1]) if present is not None else ()} and "
                f"{tuple(log_weights.shape[:-1])}."
            ) from None

    def tensor(self, value: object, what: str) -> Tensor:
        """A value as a float64 tensor of its own on the right device; infinities are left in."""
        try:
            tensor = torch.as_tensor(value, dtype=torch.float64, device=self.device).clone()
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(
                f"Expected {what} to be numbers or a tensor, got {type(value).__name__}."
            ) from None
        if bool(tensor.isnan().any()):
            raise ValueError(
                f"Expected {what} without NaN, got {int(tensor.isnan().sum())} NaN among "
                f"{tensor.numel()} entries. What is not known is left out; rows with gaps of "
                f"their own are filled in by the model's impute."
            )
        return tensor

    def vector(self, value: object, what: str) -> Tensor:
        """A value as a tensor of shape (*N, D)."""
        tensor = self.tensor(value, what)
        if tensor.dim() == 0:
            return tensor.expand(self.dim)
        if tensor.shape[-1] != self.dim:
            raise ValueError(
                f"Expected {what} of shape (*N, {self.dim}), or a number, got "
                f"{tuple(tensor.shape)}."
                + (" Categorical columns have no part in it." if self.categories else "")
            )
        return tensor

    def rows(self, value: object, what: str) -> Tensor:
        """Coefficients as a matrix of shape (m, D)."""
        tensor = self.tensor(value, what)
        tensor = tensor.unsqueeze(0) if tensor.dim() == 1 else tensor
        if tensor.dim() != 2 or tensor.shape[-1] != self.dim or not bool(tensor.isfinite().all()):
            raise ValueError(
                f"Expected finite {what} of shape ({self.dim},) or (m, {self.dim}), got "
                f"{tuple(tensor.shape)}."
            )
        if bool((tensor == 0).all(-1).any()):
            raise ValueError(f"Expected {what} that are not all zero.")
        return tensor


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
            tensor = known.tensor(value, f"the observed value of coordinate {d}")
            if d >= known.dim:
                self._add_code(known, d - known.dim, tensor)
                continue
            if d in known.observed:
                raise ValueError(f"Expected each coordinate to be observed once, got {d} twice.")
            if not bool(tensor.isfinite().all()):
                raise ValueError(f"Expected a finite value of coordinate {d}.")
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


class CategoricalPrior(Evidence):
    r"""The factor q(c) on a categorical column.

    Args:
        index: The column.
        probs: Weights of its categories, not negative and not all zero, shape (\*N, categories).
            They need not sum to one: zeros and ones say which categories are possible.

    Example:
        >>> from pyromix import DRMM
        >>> model = DRMM(dim=2, num_layers=2, num_components=4, categories=(3,))
        >>> law = model.condition(CategoricalPrior(2, torch.tensor([0.5, 0.5, 0.0])))
        >>> bool((law.sample((100,))[:, 2] < 2).all())
        True
    """

    def __init__(self, index: int, probs: Tensor) -> None:
        self.index, self.probs = index, probs

    def add_to(self, known: LinearEvidence) -> None:
        """Adds the weights."""
        column = known.categorical_column(self.index)
        probs = known.tensor(self.probs, "probs")
        count = known.categories[column]
        if probs.dim() == 0 or probs.shape[-1] != count:
            raise ValueError(
                f"Expected probs of shape (*N, {count}), one for each category of column "
                f"{known.dim + column}, got {tuple(probs.shape)}."
            )
        if not bool(((probs >= 0) & probs.isfinite()).all()) or not bool(
            (probs.sum(-1) > 0).all()
        ):
            raise ValueError("Expected probs that are finite, not negative, and not all zero.")
        known.weigh(column, probs.log())


class GaussianPrior(Evidence):
    r"""The factor :math:`\prod_d N(x_d; \text{loc}_d, \text{scale}_d^2)`.

    Args:
        loc: Shape (\*N, D), or a number.
        scale: Standard deviations, shape (D,), or a number; infinity for coordinates about which
            nothing is said.
    """

    def __init__(self, loc: Number, scale: Number) -> None:
        self.loc, self.scale = loc, scale

    def add_to(self, known: LinearEvidence) -> None:
        """Adds an observation of every coordinate with a finite scale."""
        loc, scale = known.vector(self.loc, "loc"), known.vector(self.scale, "scale")
        if scale.dim() != 1 or not bool((scale > 0).all()):
            raise ValueError(f"Expected positive scales of shape ({known.dim},) or a number.")
        kept = scale.isfinite()
        if not bool(kept.any()):
            return
        matrix = torch.eye(known.dim, dtype=torch.float64, device=known.device)[kept]
        known.gaussian.append((matrix, loc[..., kept], torch.diag(scale[kept].square())))


class Box(Evidence):
    r"""The constraint low <= x <= high, coordinate by coordinate.

    Args:
        low: Lower bounds, shape (\*N, D), or a number; minus infinity where there is none.
        high: Upper bounds, shape (\*N, D), or a number; infinity where there is none.
    """

    def __init__(self, low: Number = -math.inf, high: Number = math.inf) -> None:
        self.low, self.high = low, high

    def add_to(self, known: LinearEvidence) -> None:
        """Adds a row for every coordinate that is bounded."""
        low, high = known.vector(self.low, "low"), known.vector(self.high, "high")
        low, high = torch.broadcast_tensors(low, high)
        if not bool((low < high).all()):
            raise ValueError("Expected low < high in every coordinate. For equality use Observed.")
        kept = (low.isfinite() | high.isfinite()).reshape(-1, known.dim).any(0)
        matrix = torch.eye(known.dim, dtype=torch.float64, device=known.device)[kept]
        known.matrix.append(matrix)
        known.low.append(low[..., kept])
        known.high.append(high[..., kept])


class LinearInequality(Evidence):
    r"""The constraint a.x + b > 0.

    Args:
        a: Coefficients, shape (D,), or (m, D) for m inequalities.
        b: Offsets, a number or shape (\*N, m).
    """

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
        a: Coefficients, shape (D,), or (m, D) for m equations.
        b: Offsets, a number or shape (\*N, m).
    """

    def __init__(self, a: Tensor, b: Number = 0.0) -> None:
        self.a, self.b = a, b

    def add_to(self, known: LinearEvidence) -> None:
        """Adds an observation without noise."""
        matrix = known.rows(self.a, "a")
        y = -_offsets(known, self.b, len(matrix))
        known.gaussian.append((matrix, y, matrix.new_zeros(len(matrix), len(matrix))))


class LinearGaussian(Evidence):
    r"""The observation y = A x + noise: a linear inverse problem.

    Args:
        matrix: A, shape (m, D).
        y: What was observed, shape (\*N, m).
        noise: Standard deviation of the noise, a positive number or shape (m,); or its covariance,
            shape (m, m).
    """

    def __init__(self, matrix: Tensor, y: Tensor, noise: Number) -> None:
        self.matrix, self.y, self.noise = matrix, y, noise

    def add_to(self, known: LinearEvidence) -> None:
        """Adds the observation."""
        matrix = known.rows(self.matrix, "matrix")
        count = len(matrix)
        y, noise = known.tensor(self.y, "y"), known.tensor(self.noise, "noise")
        if y.dim() == 0 or y.shape[-1] != count:
            raise ValueError(
                f"Expected y of shape (*N, {count}), one number for each row of the matrix, got "
                f"{tuple(y.shape)}."
            )
        if noise.dim() < 2:
            if (noise.dim() == 1 and noise.shape != (count,)) or not bool((noise > 0).all()):
                raise ValueError(
                    f"Expected positive noise, a number or shape ({count},), got "
                    f"{tuple(noise.shape)}. For exact observations use LinearEquality."
                )
            noise = torch.diag(noise.square().expand(count))
        elif noise.shape != (count, count) or torch.linalg.cholesky_ex(noise).info > 0:
            raise ValueError(f"Expected a positive-definite noise of shape ({count}, {count}).")
        known.gaussian.append((matrix, y, noise))


class AnyOf(Evidence):
    r"""At least one of several constraints holds; where several do, it counts once.

    .. math:: q(x) = 1[x \in A_1 \cup A_2 \cup \dots]

    Several of them may be given together, and with any other evidence. Every combination of their
    alternatives is a branch, and a law is conditioned on each.

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

    def add_to(self, known: LinearEvidence) -> None:  # noqa: ARG002
        """Is not possible: a union is no linear statement.

        Raises:
            ValueError: Always.
        """
        raise ValueError(
            "Expected evidence that is linear, got AnyOf. Collect it with collect_branches, and "
            "condition on every branch."
        )


def collect(
    evidence: Iterable[Evidence | Mapping[int, Number]],
    dim: int,
    device: torch.device,
    categories: Sequence[int] = (),
) -> LinearEvidence:
    """Puts all that is known together. A mapping is short for `Observed`.

    Raises:
        ValueError: If a piece is no evidence, or does not fit the dimension.
    """
    known = LinearEvidence(dim, device, tuple(categories))
    for piece in evidence:
        if isinstance(piece, Mapping):
            piece = Observed(piece)
        if not isinstance(piece, Evidence):
            raise ValueError(
                f"Expected pieces of evidence such as pyromix.Box(low, high), each an argument of "
                f"its own, got {type(piece).__name__}."
            )
        piece.add_to(known)
    return known


def collect_branches(
    evidence: Iterable[Evidence | Mapping[int, Number]],
    dim: int,
    device: torch.device,
    categories: Sequence[int] = (),
) -> list[LinearEvidence]:
    """Puts all that is known together, once for every combination of alternatives.

    Branches differ in their inequalities alone, and have the same batch shape. Those that lie
    within another one, as their rows show, are left out, as the other one says the same.

    Returns:
        At least one branch; without `AnyOf` exactly one.

    Raises:
        ValueError: If a piece is no evidence or does not fit the dimension, or if there are too
            many branches.
    """
    evidence = list(evidence)
    unions = [piece for piece in evidence if isinstance(piece, AnyOf)]
    certain = (piece for piece in evidence if not isinstance(piece, AnyOf))
    rest = collect(certain, dim, device, categories)
    if 0 in rest.batch_shape:
        raise ValueError(
            f"Expected evidence for at least one law, got a batch of shape "
            f"{tuple(rest.batch_shape)}."
        )
    if not unions:
        return [rest]
    counts = [len(union.alternatives) for union in unions]
    if math.prod(counts) > MAX_BRANCHES:
        raise ValueError(
            f"Expected at most {MAX_BRANCHES} combinations of alternatives, got "
            f"{' x '.join(map(str, counts))} = {math.prod(counts)}. Join alternatives where one "
            f"box or inequality covers several, or split the question."
        )
    collected = [
        [collect(pieces, dim, device) for pieces in union.alternatives] for union in unions
    ]
    branches = [rest.intersect(*chosen) for chosen in itertools.product(*collected)]
    shapes = [rest.batch_shape, *(branch.batch_shape for branch in branches)]
    try:
        batch_shape = torch.broadcast_shapes(*shapes)
    except RuntimeError:
        raise ValueError(
            f"Expected alternatives whose batch shapes broadcast, got "
            f"{[tuple(shape) for shape in shapes]}."
        ) from None
    for branch in branches:
        branch.low, branch.high = (
            [bound.expand(*batch_shape, bound.shape[-1]) for bound in bounds]
            for bounds in (branch.low, branch.high)
        )
    kept: list[LinearEvidence] = []
    for branch in branches:
        if any(_lies_within(branch, other) for other in kept):
            continue
        kept = [other for other in kept if not _lies_within(other, branch)]
        kept.append(branch)
    return kept


def tightest_bounds(low: Tensor, high: Tensor, index: Tensor, count: int) -> tuple[Tensor, Tensor]:
    r"""The greatest lower and least upper bounds of what each of several bounds is about.

    Args:
        low: Lower bounds, shape (\*B, p).
        high: Upper bounds, shape (\*B, p).
        index: What they are about, of `count` things, shape (p,).
        count: Number of things.

    Returns:
        Two tensors of shape (\*B, count), infinite where nothing is bounded.
    """
    index = index.expand(low.shape)
    unbounded = low.new_full((*low.shape[:-1], count), math.inf)
    return (
        (-unbounded).scatter_reduce(-1, index, low, "amax"),
        unbounded.scatter_reduce(-1, index, high, "amin"),
    )


def _lies_within(inner: LinearEvidence, outer: LinearEvidence) -> bool:
    """Whether the bounds of one branch imply those of another, row by row, in all the batch."""
    both = inner.intersect(outer)
    if both.matrix[0].shape != inner.matrix[0].shape:
        return False  # the other one has rows of its own
    return torch.equal(both.low[0], inner.low[0]) and torch.equal(both.high[0], inner.high[0])


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


def _offsets(known: LinearEvidence, b: Number, count: int) -> Tensor:
    offset = known.tensor(b, "b")
    if offset.dim() == 0:
        return offset.expand(count)
    if offset.shape[-1] != count or not bool(offset.isfinite().all()):
        raise ValueError(f"Expected finite b of shape (*N, {count}), got {tuple(offset.shape)}.")
    return offset
