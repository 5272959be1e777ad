r"""Affine maps of a layer: what its components turn and stretch their residuals by.

Component k maps what the layers before leave of a point, r, to

.. math:: r' = A[k] (r - \mu[k]),

and after the last layer :math:`r'` is standard normal. Matrices of all components are applied at
once where all are wanted, and gathered where each point has a component of its own.
"""

__all__ = ["DiagonalMap", "LayerMap", "LowRankMap", "TriangularMap", "of_components"]

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor
from torch.nn.functional import embedding

from ..core.checks import is_traced

# Matrices are applied component by component where copies of them for each row would have so many
# numbers, for every component.
COPIED_NUMBERS = 2**16


@dataclass(frozen=True)
class LayerMap(ABC):
    """The maps of the K components of a layer, of residuals in D dimensions."""

    loc: Tensor
    """Means, shape (K, D)."""

    @property
    @abstractmethod
    def log_det(self) -> Tensor:
        """Log |det A| of every component, shape (K,)."""

    @property
    @abstractmethod
    def squares(self) -> Tensor:
        """Sum of the squares of all entries of A, for every component, shape (K,)."""

    @property
    def divergence(self) -> Tensor:
        r"""Divergence of the normals that are made standard from a standard one, shape (K,).

        .. math:: KL\big(N(0, I) \,\|\, N(0, (A^\top A)^{-1})\big)
                  = \tfrac12 \|A\|^2 - \log|\det A| - \tfrac D 2

        Means are left out. It is zero where A turns alone.
        """
        return 0.5 * (self.squares - self.loc.shape[-1]) - self.log_det

    @abstractmethod
    def all(self, residual: Tensor) -> Tensor:
        """What every component makes of residuals (n, D): shape (n, K, D)."""

    @abstractmethod
    def chosen(self, residual: Tensor, code: Tensor) -> Tensor:
        """What components (n,) make of residuals (n, D): shape (n, D)."""

    @abstractmethod
    def inverse(self, value: Tensor, code: Tensor) -> Tensor:
        """The residuals (n, D) of which components (n,) make values (n, D)."""

    @abstractmethod
    def all_rows(self, rows: Tensor) -> Tensor:
        """Rows (n, q, D) times the inverse of every component's matrix: (n, K, q, D)."""

    @abstractmethod
    def chosen_rows(self, rows: Tensor, code: Tensor) -> Tensor:
        """Rows (n, q, D) times the inverse of the matrices of components (n,): (n, q, D)."""

    def covariances(self, rows: Tensor) -> Tensor:
        """Of rows (n, q, D) of what every component leaves standard normal: (n, K, q, q)."""
        factor = self.all_rows(rows)
        return factor @ factor.mT

    def map_tensors(self, function: Callable[[Tensor], Tensor]) -> Self:
        """The maps with every tensor passed through a function."""
        return replace(self, **{f.name: function(getattr(self, f.name)) for f in fields(self)})


@dataclass(frozen=True)
class DiagonalMap(LayerMap):
    """Stretches columns, one by one."""

    diag: Tensor
    """Factors, positive, shape (K, D)."""

    @property
    def log_det(self) -> Tensor:
        """Log |det A| of every component, shape (K,)."""
        return self.diag.log().sum(-1)

    @property
    def squares(self) -> Tensor:
        """Sum of the squares of all entries of A, for every component, shape (K,)."""
        return self.diag.square().sum(-1)

    def all(self, residual: Tensor) -> Tensor:
        """What every component makes of residuals (n, D): shape (n, K, D)."""
        return (residual.unsqueeze(1) - self.loc) * self.diag

    def chosen(self, residual: Tensor, code: Tensor) -> Tensor:
        """What components (n,) make of residuals (n, D): shape (n, D)."""
        return (residual - embedding(code, self.loc)) * embedding(code, self.diag)

    def inverse(self, value: Tensor, code: Tensor) -> Tensor:
        """The residuals (n, D) of which components (n,) make values (n, D)."""
        return value / embedding(code, self.diag) + embedding(code, self.loc)

    def all_rows(self, rows: Tensor) -> Tensor:
        """Rows (n, q, D) times the inverse of every component's matrix: (n, K, q, D)."""
        return rows.unsqueeze(1) / self.diag.unsqueeze(1)

    def chosen_rows(self, rows: Tensor, code: Tensor) -> Tensor:
        """Rows (n, q, D) times the inverse of the matrices of components (n,): (n, q, D)."""
        return rows / embedding(code, self.diag).unsqueeze(1)


@dataclass(frozen=True)
class TriangularMap(LayerMap):
    """Lower-triangular matrices: of a single layer, full covariances."""

    matrix: Tensor
    """Matrices A, shape (K, D, D), zero above a positive diagonal."""

    @property
    def log_det(self) -> Tensor:
        """Log |det A| of every component, shape (K,)."""
        return self.matrix.diagonal(dim1=-2, dim2=-1).log().sum(-1)

    @property
    def squares(self) -> Tensor:
        """Sum of the squares of all entries of A, for every component, shape (K,)."""
        return self.matrix.square().sum((-2, -1))

    def all(self, residual: Tensor) -> Tensor:
        """What every component makes of residuals (n, D): shape (n, K, D)."""
        # Differences first: far from the origin A r and A mu would cancel.
        centred = residual - self.loc.unsqueeze(1)  # (K, n, D)
        return (centred @ self.matrix.mT).transpose(0, 1)

    def chosen(self, residual: Tensor, code: Tensor) -> Tensor:
        """What components (n,) make of residuals (n, D): shape (n, D)."""
        centred = residual - embedding(code, self.loc)
        return of_components(
            lambda matrix, part: part @ matrix.mT, (self.matrix,), centred.unsqueeze(1), code
        ).squeeze(1)

    def inverse(self, value: Tensor, code: Tensor) -> Tensor:
        """The residuals (n, D) of which components (n,) make values (n, D)."""
        residual = of_components(
            lambda matrix, part: torch.linalg.solve_triangular(
                matrix.mT, part, upper=True, left=False
            ),
            (self.matrix,),
            value.unsqueeze(1),
            code,
        )
        return residual.squeeze(1) + embedding(code, self.loc)

    def all_rows(self, rows: Tensor) -> Tensor:
        """Rows (n, q, D) times the inverse of every component's matrix: (n, K, q, D)."""
        n, q, d = rows.shape
        every = rows.reshape(n * q, d).expand(len(self.loc), -1, -1)
        solved = torch.linalg.solve_triangular(self.matrix, every, upper=False, left=False)
        return solved.reshape(len(self.loc), n, q, d).transpose(0, 1)

    def covariances(self, rows: Tensor) -> Tensor:
        """Of rows (n, q, D) of what every component leaves standard normal: (n, K, q, q)."""
        (n, q, d), k = rows.shape, len(self.loc)
        identity = torch.eye(d, dtype=rows.dtype, device=rows.device)
        inverse = torch.linalg.solve_triangular(self.matrix, identity, upper=False)
        every = (inverse @ inverse.mT).transpose(0, 1).reshape(d, k * d)
        # One product for each of n, with all components in it: there may be many small ones.
        spread = (rows.reshape(n * q, d) @ every).reshape(n, q * k, d) @ rows.mT
        return spread.reshape(n, q, k, q).transpose(1, 2)

    def chosen_rows(self, rows: Tensor, code: Tensor) -> Tensor:
        """Rows (n, q, D) times the inverse of the matrices of components (n,): (n, q, D)."""
        return of_components(
            lambda matrix, part: torch.linalg.solve_triangular(
                matrix, part, upper=False, left=False
            ),
            (self.matrix,),
            rows,
            code,
        )


@dataclass(frozen=True)
class LowRankMap(LayerMap):
    r"""A diagonal changed in few directions: :math:`A = \operatorname{diag}(d) + U V^\top`."""

    diag: Tensor
    """Diagonals d, positive, shape (K, D)."""
    left: Tensor
    """U, shape (K, D, r)."""
    right: Tensor
    """V, shape (K, D, r)."""

    @property
    def _capacitance(self) -> Tensor:
        """I + V^T diag(1/d) U, shape (K, r, r)."""
        inner = self.right.mT @ (self.left / self.diag.unsqueeze(-1))
        return inner + torch.eye(inner.shape[-1], dtype=inner.dtype, device=inner.device)

    @property
    def _correction(self) -> Tensor:
        """C with A^-1 = diag(1/d) (I - U C), shape (K, r, D)."""
        return torch.linalg.solve(self._capacitance, self.right.mT / self.diag.unsqueeze(-2))

    @property
    def log_det(self) -> Tensor:
        """Log |det A| of every component, shape (K,)."""
        return self.diag.log().sum(-1) + torch.linalg.slogdet(self._capacitance).logabsdet

    @property
    def squares(self) -> Tensor:
        """Sum of the squares of all entries of A, for every component, shape (K,)."""
        both = 2 * self.diag * (self.left * self.right).sum(-1)
        turned = (self.left.mT @ self.left) * (self.right.mT @ self.right)
        return (self.diag.square() + both).sum(-1) + turned.sum((-2, -1))

    def all(self, residual: Tensor) -> Tensor:
        """What every component makes of residuals (n, D): shape (n, K, D)."""
        centred = residual - self.loc.unsqueeze(1)  # (K, n, D)
        turned = (centred @ self.right) @ self.left.mT
        return (centred * self.diag.unsqueeze(1) + turned).transpose(0, 1)

    def chosen(self, residual: Tensor, code: Tensor) -> Tensor:
        """What components (n,) make of residuals (n, D): shape (n, D)."""
        centred = residual - embedding(code, self.loc)
        turned = of_components(
            lambda left, right, part: (part @ right) @ left.mT,
            (self.left, self.right),
            centred.unsqueeze(1),
            code,
        )
        return centred * embedding(code, self.diag) + turned.squeeze(1)

    def inverse(self, value: Tensor, code: Tensor) -> Tensor:
        """The residuals (n, D) of which components (n,) make values (n, D)."""
        change = of_components(
            lambda left, correction, part: (part @ correction.mT) @ left.mT,
            (self.left, self._correction),
            value.unsqueeze(1),
            code,
        )
        residual = (value - change.squeeze(1)) / embedding(code, self.diag)
        return residual + embedding(code, self.loc)

    def all_rows(self, rows: Tensor) -> Tensor:
        """Rows (n, q, D) times the inverse of every component's matrix: (n, K, q, D)."""
        scaled = rows.unsqueeze(1) / self.diag.unsqueeze(1)  # (n, K, q, D)
        return scaled - (scaled @ self.left) @ self._correction

    def chosen_rows(self, rows: Tensor, code: Tensor) -> Tensor:
        """Rows (n, q, D) times the inverse of the matrices of components (n,): (n, q, D)."""
        scaled = rows / embedding(code, self.diag).unsqueeze(1)
        return scaled - of_components(
            lambda left, correction, part: (part @ left) @ correction,
            (self.left, self._correction),
            scaled,
            code,
        )


def of_components(
    function: Callable[..., Tensor], tables: tuple[Tensor, ...], rows: Tensor, code: Tensor
) -> Tensor:
    """A function of components' matrices and of rows: (n, q, D).

    Args:
        function: Of matrices (*T) each, and rows (m, D); or of batches (n, *T) and (n, q, D).
        tables: Matrices of all components, (K, *T) each.
        rows: Shape (n, q, D).
        code: The component of each, shape (n,).
    """
    n, q, dim = rows.shape
    count = len(tables[0])
    copied = n * sum(table[0].numel() for table in tables)
    if is_traced() or copied < COPIED_NUMBERS * count:
        return function(*(_gather(table, code) for table in tables), rows)
    # Component by component: a matrix for each of many rows takes longer to copy than to use.
    order = code.argsort(stable=True)
    sizes = torch.bincount(code, minlength=count).tolist()
    parts = [
        function(*own, part.reshape(-1, dim)).unflatten(0, (len(part), q))
        for part, *own in zip(
            rows[order].split(sizes), *(table.unbind() for table in tables), strict=True
        )
        if len(part)
    ]
    return torch.cat(parts)[order.argsort()] if parts else torch.empty_like(rows)


def _gather(table: Tensor, code: Tensor) -> Tensor:
    """Matrices (n, *T) of components (n,), from (K, *T)."""
    # An embedding: its backward pass sums the rows of each component in one go.
    return embedding(code, table.flatten(1)).reshape(len(code), *table.shape[1:])
