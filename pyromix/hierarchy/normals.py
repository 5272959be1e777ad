r"""Normals of what a window draws, one for each hypothesis, and what readings make of them."""

__all__ = ["LinearReadings", "Normals"]

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..drmm.maps import of_components
from ..numerics.diagonal_density import LOG_2PI

WHOLE = slice(None)


class LinearReadings(NamedTuple):
    r"""Readings of linear combinations, whitened: :math:`e - W x` is standard normal.

    What is known of x is :math:`\prod_i N(e_i - (W x)_i; 0, 1)`, times a constant.
    """

    white: Tensor
    """What is left of readings where x is zero, e, shape (n, q)."""
    rows: Tensor
    """The combinations W, shape (q, d)."""
    log_scale: Tensor
    """Logarithm of the constant, ()."""


class Normals(NamedTuple):
    """Normals of n cases with B hypotheses each, float64. Many have a covariance in common."""

    loc: Tensor
    """Means, shape (n, B, d)."""
    trils: Tensor
    """Factors of the covariances that occur, lower-triangular, (U, d, d)."""
    kind: Tensor
    """Which of these each has, (n, B)."""

    def times(self, z: Tensor, rows: slice = WHOLE) -> Tensor:
        """Rows of the factors times vectors (n, B, d): (n, B, r)."""
        return self._apply(self.trils[:, rows], lambda own, part: part @ own.mT, z)

    def solve(self, x: Tensor, size: int) -> Tensor:
        """The z of which the first entries of L z are x, (n, B, size)."""

        def of(own: Tensor, part: Tensor) -> Tensor:
            return torch.linalg.solve_triangular(own.mT, part, upper=True, left=False)

        return self._apply(self.trils[:, :size, :size], of, x)

    def _apply(
        self, tables: Tensor, function: Callable[[Tensor, Tensor], Tensor], z: Tensor
    ) -> Tensor:
        rows = z.flatten(0, 1).unsqueeze(1)
        result = of_components(function, (tables,), rows, self.kind.flatten())
        return result.reshape(*self.kind.shape, -1)

    @property
    def log_diagonal(self) -> Tensor:
        """Logarithms of the diagonals of the factors, (n, B, d)."""
        return self.trils.diagonal(dim1=-2, dim2=-1).log()[self.kind]

    def sample(self) -> Tensor:
        """Draws, (n, B, d)."""
        return self.loc + self.times(torch.randn_like(self.loc))

    def given(self, readings: LinearReadings) -> tuple["Normals", Tensor]:
        r"""The normals given readings, and the log-density of those, (n, B).

        With :math:`x = m + L z`, the precision of z is
        :math:`M = I + (W L)^\top W L = R R^\top`, with R upper-triangular, so that
        :math:`L R^{-\top}` is the new factor and stays lower-triangular.
        """
        seen = readings.rows @ self.trils  # (U, q, d)
        identity = torch.eye(seen.shape[-1]).to(seen)
        upper = torch.linalg.cholesky((identity + seen.mT @ seen).flip(-1, -2)).flip(-1, -2)
        trils = torch.linalg.solve_triangular(upper.mT, self.trils, upper=False, left=False)
        change = Normals(self.loc, trils, self.kind)
        miss = readings.white.unsqueeze(1) - self.loc @ readings.rows.mT  # (n, B, q)
        turned = Normals(self.loc, trils.mT, self.kind)
        step = turned.times(miss @ readings.rows)
        log_det = upper.diagonal(dim1=-2, dim2=-1).log().sum(-1)[self.kind]
        square = miss.square().sum(-1) - step.square().sum(-1)
        log_prob = -0.5 * (square + readings.rows.shape[0] * LOG_2PI) - log_det
        return change._replace(loc=self.loc + change.times(step)), log_prob + readings.log_scale

    def join(self, other: "Normals") -> "Normals":
        """These hypotheses and others about the same cases."""
        kind = torch.cat([self.kind, other.kind + len(self.trils)], 1)
        return Normals(
            torch.cat([self.loc, other.loc], 1), torch.cat([self.trils, other.trils]), kind
        )

    def permute(self, order: Tensor) -> "Normals":
        """The normals of the same numbers in another order, (d,)."""
        # Of A = L Q with orthogonal Q, L is a factor of A A^T.
        upper = torch.linalg.qr(self.trils[:, order].mT, mode="r").R
        sign = upper.diagonal(dim1=-2, dim2=-1).sign()
        return Normals(self.loc[..., order], (sign.unsqueeze(-1) * upper).mT, self.kind)
