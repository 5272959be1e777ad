r"""What is known about a vector of real numbers: values, priors, observations and constraints.

Pieces of evidence are passed to a model's ``condition(*evidence)``, any number, in any
combination. Each stands for a factor q(x); the conditional law is :math:`p(x) \prod_i q_i(x) / Z`.
"""

__all__ = [
    "Box",
    "Evidence",
    "GaussianPrior",
    "LinearEquality",
    "LinearGaussian",
    "LinearInequality",
    "Observed",
    "collect",
]

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .validation import as_int

Number = float | Tensor


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
    """All that is known about x of shape (D,), as linear statements in float64."""

    dim: int
    device: torch.device
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

    def tensor(self, value: object, what: str) -> Tensor:
        """A value as a finite float64 tensor on the right device; infinities are left in."""
        tensor = torch.as_tensor(value, dtype=torch.float64, device=self.device)
        if bool(tensor.isnan().any()):
            raise ValueError(f"Expected {what} without NaN, got {int(tensor.isnan().sum())}.")
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
            laws at once.
    """

    def __init__(self, values: Mapping[int, Number]) -> None:
        self.values = dict(values)

    def add_to(self, known: LinearEvidence) -> None:
        """Adds the values."""
        for given, value in self.values.items():
            d = as_int(given)
            if d is None or not -known.dim <= d < known.dim:
                raise ValueError(
                    f"Expected coordinates to be integers from {-known.dim} to {known.dim - 1}, "
                    f"got {given!r}."
                )
            d %= known.dim
            if d in known.observed:
                raise ValueError(f"Expected each coordinate to be observed once, got {d} twice.")
            tensor = known.tensor(value, f"the observed value of coordinate {d}")
            if not bool(tensor.isfinite().all()):
                raise ValueError(f"Expected a finite value of coordinate {d}.")
            known.observed[d] = tensor


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


def collect(evidence: Iterable[Evidence], dim: int, device: torch.device) -> LinearEvidence:
    """Puts all that is known together.

    Raises:
        ValueError: If a piece is no evidence, or does not fit the dimension.
    """
    known = LinearEvidence(dim, device)
    for piece in evidence:
        if not isinstance(piece, Evidence):
            raise ValueError(
                f"Expected pieces of evidence such as pyromix.Box(low, high), got "
                f"{type(piece).__name__}."
            )
        piece.add_to(known)
    return known


def _offsets(known: LinearEvidence, b: Number, count: int) -> Tensor:
    offset = known.tensor(b, "b")
    if offset.dim() == 0:
        return offset.expand(count)
    if offset.shape[-1] != count or not bool(offset.isfinite().all()):
        raise ValueError(f"Expected finite b of shape (*N, {count}), got {tuple(offset.shape)}.")
    return offset
