"""All that is known about a vector, as linear statements."""

__all__ = ["FixedRows", "LinearEvidence", "is_unit_axis", "power_of_two", "tightest_bounds"]

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Size, Tensor

from ..core.checks import as_int
from ..numerics.batches import stack_observed

# A row lies in the span of equations if no more than this share of its length is left outside.
PARALLEL = 1e-12
# Rows that equations fix at their very bound hold up to the rounding of single precision.
CONSTANT_TOLERANCE = 1e-6


class FixedRows(NamedTuple):
    """Inequalities that values and equations leave no freedom."""

    by_values: Tensor
    """Rows of observed columns alone, shape (p,)."""
    by_equations: Tensor
    """Other rows that equations, with the values, fix; shape (p,)."""
    broken: Tensor
    r"""Those of both kinds that do not hold, shape (\*B, p)."""

    @property
    def fixed(self) -> Tensor:
        """Rows of both kinds, shape (p,)."""
        return self.by_values | self.by_equations


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
    log_units: float = 0.0
    """Logarithm of the product of what equations were divided by, to be of like size."""
    matrix: list[Tensor] = field(default_factory=list)
    """Rows (p, D) of inequalities low <= A x <= high."""
    low: list[Tensor] = field(default_factory=list)
    """Lower bounds, shape (*N, p)."""
    high: list[Tensor] = field(default_factory=list)
    """Upper bounds, shape (*N, p)."""
    categorical: dict[int, Tensor] = field(default_factory=dict)
    """Number of a categorical column, from zero -> log-weights of shape (*N, categories)."""
    coarsest: torch.dtype = torch.float64
    """Of the floating-point tensors that the statements were made of."""
    unions: Sequence[Sequence["LinearEvidence"]] = ()
    """Alternatives, inequalities alone, of which draws will be kept that meet one of each union.

    They are no part of the law. A law that is a sample is to represent what will be kept.
    """

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
        shapes += [part.batch_shape for union in self.unions for part in union]
        if not any(shapes):  # PyTorch's function takes as long as all else here together
            return Size()
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
        if not self.matrix:
            none = torch.zeros(*batch_shape, 0, dtype=torch.float64, device=self.device)
            return none.new_zeros(0, self.dim), none, none
        low, high = (
            torch.cat([bound.expand(*batch_shape, bound.shape[-1]) for bound in bounds], -1)
            for bounds in (self.low, self.high)
        )
        return torch.cat(self.matrix), low, high

    def with_rows_of_unions(self) -> "LinearEvidence":
        """The evidence with the rows of all alternatives after its own; see `log_all`."""
        return self.join(*(part for union in self.unions for part in union))

    def log_all(self, log_each: Tensor) -> Tensor:
        r"""Log-probability that all inequalities and unions hold, roughly, from that of each row.

        As if rows were independent, and alternatives exclude each other.

        Args:
            log_each: Log-probabilities of the rows of `with_rows_of_unions`, shape (\*S, p).

        Returns:
            Tensor of shape (\*S,).
        """
        counts = [[part.num_rows for part in union] for union in self.unions]
        certain = log_each.shape[-1] - sum(map(sum, counts))
        total = log_each[..., :certain].sum(-1)
        first = certain
        for sizes in counts:
            parts = log_each[..., first : first + sum(sizes)].split(sizes, -1)
            each = torch.stack([part.sum(-1) for part in parts], -1)
            total = total + each.logsumexp(-1).clamp(max=0.0)
            first += sum(sizes)
        return total

    def split_columns(self) -> tuple[list[int], list[int]]:
        """The real columns that were observed, and those that were not, in ascending order."""
        given = sorted(self.observed)
        return given, [d for d in range(self.dim) if d not in self.observed]

    def observed_values(self, dtype: torch.dtype) -> Tensor:
        r"""Values of the observed columns in ascending order, (\*N, columns), in float64.

        They are those that a dtype has: draws of that dtype keep them.
        """
        if not self.observed:
            return torch.zeros(0, dtype=torch.float64, device=self.device)
        value = stack_observed([self.observed[d] for d in sorted(self.observed)])
        return value.to(dtype).double()

    def observations(self, batch_shape: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        r"""Values and observations together, as y = A x + noise.

        Args:
            batch_shape: A shape that the evidence's expands to.

        Returns:
            A of shape (q, D), y of shape (\*B, q), and the covariance of the noise (q, q), which
            is zero for what was observed exactly.
        """
        matrix, y, noise = self.combinations(batch_shape)
        if not self.observed:
            return matrix, y, noise
        columns = list(self.observed)
        value = stack_observed(list(self.observed.values())).expand(*batch_shape, -1)
        rows = matrix.new_zeros(len(columns), self.dim)
        rows[range(len(columns)), columns] = 1.0
        whole = torch.block_diag(noise.new_zeros(len(columns), len(columns)), noise)
        return torch.cat([rows, matrix]), torch.cat([value, y], -1), whole

    def combinations(self, batch_shape: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        r"""Observations of linear combinations alone, without values: see `observations`."""
        if not self.gaussian:
            nothing = torch.zeros(0, 0, dtype=torch.float64, device=self.device)
            return nothing.new_zeros(0, self.dim), nothing.new_zeros(*batch_shape, 0), nothing
        y = torch.cat([y.expand(*batch_shape, -1) for _, y, _ in self.gaussian], -1)
        matrix = torch.cat([matrix for matrix, _, _ in self.gaussian])
        return matrix, y, torch.block_diag(*(noise for *_, noise in self.gaussian))

    def observes_what(self, other: "LinearEvidence") -> bool:
        """Whether another one has the very same values and observations, as alternatives do."""
        return self.observed is other.observed and self.gaussian is other.gaussian

    def inequalities_on_free(
        self, batch_shape: Sequence[int], dtype: torch.dtype
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        r"""The inequalities that values and equations leave to the other columns.

        Args:
            batch_shape: A shape that the evidence's expands to.
            dtype: Of observed values and draws.

        Returns:
            Rows (p, free), bounds (\*B, p) below and above, and whether values and equations
            alone break one, shape (\*B,). Rows that these fix are left out.
        """
        given, free = self.split_columns()
        matrix, low, high = self.inequalities(batch_shape)
        if given:
            shift = self.observed_values(dtype) @ matrix[:, given].mT
            low, high = low - shift, high - shift
        rows = self.fixed_rows(batch_shape, dtype)
        kept = ~rows.fixed
        return matrix[:, free][kept], low[..., kept], high[..., kept], rows.broken.any(-1)

    @torch.no_grad()
    def fixed_rows(self, batch_shape: Sequence[int], dtype: torch.dtype) -> "FixedRows":
        r"""The inequalities that values and equations decide.

        Values and bounds are compared in the coarsest dtype that takes part: 0.1 observed meets a
        bound of 0.1, whichever of the two was given in single precision. Sums of several terms,
        and what equations say, hold up to rounding.

        Args:
            batch_shape: A shape that the evidence's expands to.
            dtype: Of observed values and draws.
        """
        given, free = self.split_columns()
        coarsest = _coarser(dtype, self.coarsest)
        matrix, low, high = self.inequalities(batch_shape)
        low, high = (bound.to(coarsest).double() for bound in (low, high))
        value = self.observed_values(coarsest)
        known, rows = matrix[:, given], matrix[:, free]
        level, size = value @ known.mT, value.abs() @ known.abs().mT
        eps = torch.finfo(coarsest).eps
        tolerance = torch.where(is_unit_axis(matrix), 0.0, eps * (matrix != 0).sum(-1).double())
        by_values = ~(rows != 0).any(-1)
        by_equations = torch.zeros_like(by_values)
        plane, y = self.equations(batch_shape)
        if len(plane) and not bool(by_values.all()):
            # What is left of a row, once the equations' part is taken out.
            # Equations of like size: ranks are judged by the largest.
            unit = power_of_two(plane[:, free])[0]
            shares = rows @ torch.linalg.pinv(plane[:, free] / unit.unsqueeze(-1)) / unit  # (p, m)
            left = (rows - shares @ plane[:, free]).norm(dim=-1)
            by_equations = (left <= max(PARALLEL, 4 * eps) * rows.norm(dim=-1)) & ~by_values
            shares = torch.where(by_equations.unsqueeze(-1), shares, 0.0)
            level = level + (y - value @ plane[:, given].mT) @ shares.mT
            terms = y.abs() + value.abs() @ plane[:, given].abs().mT
            size = size + terms @ shares.abs().mT
            tolerance = torch.where(by_equations, CONSTANT_TOLERANCE, tolerance)
        below, above = (
            tolerance * (size + bound.abs().nan_to_num(posinf=0.0)) for bound in (low, high)
        )
        broken = (level < low - below) | (level > high + above)
        return FixedRows(by_values, by_equations, broken & (by_values | by_equations))

    @property
    def noisy(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        """The observations with noise, of `gaussian`."""
        return [part for part in self.gaussian if bool((part[2] != 0).any())]

    def equations(self, batch_shape: Sequence[int]) -> tuple[Tensor, Tensor]:
        r"""The observations without noise, A x = y: A (m, D), and y expanded to (\*B, m)."""
        exact = [(a, y) for a, y, noise in self.gaussian if bool((noise == 0).all())]
        if not exact:
            zeros = torch.zeros(0, self.dim, dtype=torch.float64, device=self.device)
            return zeros, zeros.new_zeros(*batch_shape, 0)
        matrix = torch.cat([a for a, _ in exact])
        return matrix, torch.cat([y.expand(*batch_shape, -1) for _, y in exact], -1)

    def contradicts_itself(self, dtype: torch.dtype) -> Tensor:
        r"""Where values break an inequality, or two bounds of one row exclude each other.

        That is quickly seen. Evidence may be impossible in other ways, too.

        Args:
            dtype: Of observed values and draws.

        Returns:
            Boolean tensor of the batch shape.
        """
        batch_shape = self.batch_shape
        if not self.num_rows:
            return torch.zeros(batch_shape, dtype=torch.bool, device=self.device)
        _, low, high = self.inequalities(batch_shape)
        crossed = (low.to(dtype) >= high.to(dtype)).any(-1)
        if not self.observed:
            return crossed
        return crossed | self.fixed_rows(batch_shape, dtype).broken.any(-1)

    def excludes(self, others: Sequence["LinearEvidence"], dtype: torch.dtype) -> bool:
        """Whether inequalities of others contradict this evidence or each other everywhere.

        That is seen by `contradicts_itself`, in all the batch.

        Args:
            others: Evidence of inequalities alone.
            dtype: Of the observed values.
        """
        if self.num_rows or len(others) > 1 or len(others[0].matrix) > 1:
            both = self.intersect(*others)
        else:
            both = self.join(*others)
        return bool(both.contradicts_itself(dtype).all())

    def join(self, *others: "LinearEvidence") -> "LinearEvidence":
        """Returns the evidence with the inequalities of others after its own."""
        parts = (self, *others)
        return replace(
            self,
            matrix=[rows for part in parts for rows in part.matrix],
            low=[low for part in parts for low in part.low],
            high=[high for part in parts for high in part.high],
            coarsest=_coarser(*(part.coarsest for part in parts)),
        )

    def expand(self, batch_shape: Size) -> "LinearEvidence":
        """Returns the evidence with bounds of inequalities expanded to a batch shape."""
        if not batch_shape:
            return self
        low, high = (
            [bound.expand(*batch_shape, bound.shape[-1]) for bound in bounds]
            for bounds in (self.low, self.high)
        )
        return replace(self, low=low, high=high)

    def intersect(self, *others: "LinearEvidence") -> "LinearEvidence":
        """Returns the evidence with the inequalities of others added, every row once.

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
        coarsest = _coarser(*(known.coarsest for known in all_), self.coarsest)
        return replace(self, matrix=[rows], low=[low], high=[high], coarsest=coarsest)

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
        if isinstance(value, Tensor) and value.is_floating_point():
            self.coarsest = _coarser(self.coarsest, value.dtype)
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
        self.check_real_columns()
        if tensor.dim() == 0:
            return tensor.expand(self.dim)
        if tensor.shape[-1] != self.dim:
            raise ValueError(
                f"Expected {what} of shape (*N, {self.dim}), or a number, got "
                f"{tuple(tensor.shape)}."
                + (" Categorical columns have no part in it." if self.categories else "")
            )
        return tensor

    def check_real_columns(self) -> None:
        """Checks that there are columns for statements about real ones.

        Raises:
            ValueError: If all columns are categorical.
        """
        if not self.dim:
            raise ValueError(
                "Expected evidence about categorical columns, of a model that has no real ones: "
                "Observed or CategoricalPrior."
            )

    def rows(self, value: object, what: str) -> Tensor:
        """Coefficients as a matrix of shape (m, D)."""
        tensor = self.tensor(value, what)
        self.check_real_columns()
        tensor = tensor.unsqueeze(0) if tensor.dim() == 1 else tensor
        if tensor.dim() != 2 or tensor.shape[-1] != self.dim or not bool(tensor.isfinite().all()):
            raise ValueError(
                f"Expected finite {what} of shape ({self.dim},) or (m, {self.dim}), got "
                f"{tuple(tensor.shape)}."
            )
        if bool((tensor == 0).all(-1).any()):
            raise ValueError(f"Expected {what} that are not all zero.")
        return tensor


def _coarser(*dtypes: torch.dtype) -> torch.dtype:
    """The dtype of several that rounds most."""
    return max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)


def power_of_two(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Powers of two by which to divide rows (m, D), so that their largest entries are about one.

    Returns:
        The powers and their exponents, both of shape (m,). Divisions by them round nothing.
    """
    exponent = torch.frexp(matrix.detach().abs().amax(-1)).exponent.sub(1).clamp(-1000, 1000)
    return torch.ldexp(matrix.new_ones(len(matrix)), exponent), exponent


def is_unit_axis(matrix: Tensor) -> Tensor:
    """Which rows (p, D) are one coordinate, or its negative, so that no rounding enters them."""
    return ((matrix != 0).sum(-1) == 1) & (matrix.abs().sum(-1) == 1)


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
