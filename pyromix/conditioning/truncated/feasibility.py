"""Whether linear constraints leave room, decided by a linear program."""

__all__ = ["ConflictError", "feasible_point"]

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ...core.checks import check_tensor

# HiGHS's own tolerance is the finest that it accepts; ours leaves it some slack.
SOLVER_TOLERANCE = 1e-10
TOLERANCE = 1e-9
# Rows that equalities fix at their very bound hold up to the rounding of single precision.
CONSTANT_TOLERANCE = 1e-6


class ConflictError(ValueError):
    """Constraints that leave no room.

    Attributes:
        rows: The inequalities that conflict, as far as they are known.
        planes: The equalities that take part.
        depth: By how much they conflict (negative), or zero if only an interior is missing.
    """

    def __init__(
        self,
        message: str,
        rows: Sequence[int] = (),
        planes: Sequence[int] = (),
        depth: float = 0.0,
    ) -> None:
        super().__init__(message)
        self.rows, self.planes, self.depth = list(rows), list(planes), depth


def feasible_point(
    matrix: Tensor,
    low: Tensor,
    high: Tensor,
    equality_matrix: Tensor | None = None,
    equality_value: Tensor | None = None,
    *,
    radius: float = 1.0,
) -> Tensor:
    r"""A point well inside :math:`\{x : l \le A x \le u, C x = d\}`, or an error saying why not.

    The point is the centre of the largest ball, of radius at most `radius`, that fits between
    the inequalities within the plane of the equalities.

    Args:
        matrix: A, shape (p, D).
        low: Lower bounds l, shape (p,), may be minus infinity.
        high: Upper bounds u, shape (p,), may be plus infinity.
        equality_matrix: C, shape (r, D).
        equality_value: d, shape (r,).
        radius: The size, in units of x, at which a ball is large enough.

    Returns:
        Tensor of shape (D,), float64.

    Raises:
        ValueError: If the set is empty, or has no interior relative to the equalities. The
            message names rows that conflict: leaving any one of them out removes the conflict,
            up to ties. Also for shapes that do not match.

    Example:
        >>> A = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        >>> low, high = torch.tensor([0.0, 0.0, 3.0]), torch.tensor([9.0, 1.0, 9.0])
        >>> point = feasible_point(A, low, high)
        >>> bool(((A.double() @ point >= low) & (A.double() @ point <= high)).all())
        True
    """
    # Imported here: SciPy changes the filters for warnings.
    from scipy.optimize import linprog

    _check_shapes(matrix, low, high, equality_matrix, equality_value)
    a, lo, hi = (t.detach().cpu().double().numpy() for t in (matrix, low, high))
    dim = a.shape[1]
    if equality_matrix is None or equality_value is None:
        c, d = np.zeros((0, dim)), np.zeros(0)
    else:
        c, d = (t.detach().cpu().double().numpy() for t in (equality_matrix, equality_value))
    # Rows of unit length within the plane: the ball's radius is then the least of the slacks.
    length = np.linalg.norm(c, axis=1)
    c, d = c / np.maximum(length, 1e-300)[:, None], d / np.maximum(length, 1e-300)
    size = np.linalg.norm(a, axis=1)
    inverse = np.linalg.pinv(c)
    foot = inverse @ d
    missed = np.abs(c @ foot - d)
    if missed.max(initial=0.0) > CONSTANT_TOLERANCE * (1 + np.abs(d).max(initial=0.0)):
        raise ValueError(
            f"Expected equalities that a point can satisfy, got {len(c)} equalities in {dim} "
            f"dimensions that contradict each other. Remove or relax some."
        )
    within = np.linalg.norm(a - (a @ inverse) @ c, axis=1)
    free = within > 1e-10 * np.maximum(size, 1e-300)
    _check_constant_rows(a @ foot, lo, hi, size, ~free)
    a, lo, hi = (
        t / np.where(free, within, 1.0).reshape(-1, *(1,) * (t.ndim - 1)) for t in (a, lo, hi)
    )
    upper, lower = np.flatnonzero((hi < np.inf) & free), np.flatnonzero((lo > -np.inf) & free)
    system = np.concatenate([a[upper], -a[lower]])
    bound = np.concatenate([hi[upper], -lo[lower]])
    rows = np.concatenate([upper, lower])
    # The ball may have a negative radius, so that every consistent plane gives a solution, whose
    # multipliers, at a vertex of the dual, point to an irreducible conflict.
    give = np.ones((len(rows), 1))
    result = linprog(
        np.append(np.zeros(dim), -1.0),
        A_ub=np.hstack([system, give]),
        b_ub=bound,
        A_eq=np.hstack([c, np.zeros((len(c), 1))]),
        b_eq=c @ foot,  # consistent to the last digit
        bounds=[(None, None)] * dim + [(None, radius)],
        method="highs",
        options={
            "primal_feasibility_tolerance": SOLVER_TOLERANCE,
            "dual_feasibility_tolerance": SOLVER_TOLERANCE,
        },
    )
    if result.status != 0:
        raise ValueError(
            f"Expected constraints that a linear program can decide, but it ended with: "
            f"{result.message}. Rescale rows to comparable sizes."
        )
    depth = result.x[-1]
    if depth <= TOLERANCE * max(1.0, float(np.abs(result.x[:-1]).max(initial=0.0)) * 1e-3):
        conflict = np.unique(rows[np.abs(result.ineqlin.marginals) > 1e-9]).tolist()
        planes = np.flatnonzero(np.abs(result.eqlin.marginals) > 1e-9).tolist()
        what = f"rows {conflict} of the inequalities"
        if planes:
            what += f" and rows {planes} of the equalities"
        verb = "contradict each other" if depth < -TOLERANCE else "leave no interior"
        raise ConflictError(
            f"Expected constraints that leave room, but {what} {verb} "
            f"(low {low[conflict].tolist()}, high {high[conflict].tolist()}; they would have to "
            f"give way by more than {max(-depth, 0.0):.3g} standardised units). Relax one of "
            f"them; for an exact equality, condition on it instead of giving two equal bounds.",
            conflict,
            planes,
            min(depth, 0.0),
        )
    return torch.as_tensor(result.x[:-1], device=matrix.device)


def _check_constant_rows(
    value: np.ndarray, low: np.ndarray, high: np.ndarray, size: np.ndarray, fixed: np.ndarray
) -> None:
    """Checks the rows that the equalities leave no freedom: they hold, or they do not."""
    allowance = CONSTANT_TOLERANCE * np.maximum(np.abs(value), size)
    broken = fixed & ((value < low - allowance) | (value > high + allowance))
    if broken.any():
        rows = np.flatnonzero(broken).tolist()
        raise ConflictError(
            f"Expected constraints that leave room, but rows {rows} of the inequalities "
            f"contradict the equalities, which fix them at {value[rows].tolist()} (low "
            f"{low[rows].tolist()}, high {high[rows].tolist()}). Relax one of them.",
            rows,
            depth=-1.0,
        )


def _check_shapes(
    matrix: Tensor, low: Tensor, high: Tensor, plane: Tensor | None, value: Tensor | None
) -> None:
    check_tensor("matrix", matrix)
    for name, bound in (("low", low), ("high", high)):
        check_tensor(name, bound, like=matrix)
        if matrix.dim() != 2 or bound.shape != matrix.shape[:1]:
            raise ValueError(
                f"Expected matrix (p, D), low (p,) and high (p,), got matrix "
                f"{tuple(matrix.shape)} and {name} {tuple(bound.shape)}."
            )
    if (plane is None) != (value is None):
        raise ValueError(
            "Expected equality_matrix and equality_value together, got one of them. Give both."
        )
    if plane is None or value is None:
        return
    check_tensor("equality_matrix", plane, like=matrix)
    check_tensor("equality_value", value, like=matrix)
    if plane.dim() != 2 or plane.shape[1] != matrix.shape[1] or value.shape != plane.shape[:1]:
        raise ValueError(
            f"Expected equality_matrix (r, {matrix.shape[1]}) and equality_value (r,), got "
            f"{tuple(plane.shape)} and {tuple(value.shape)}."
        )
