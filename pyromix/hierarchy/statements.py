"""Statements about an array, by the window that can tell whether they hold."""

__all__ = ["StatementsByWindow"]

from collections.abc import Sequence

import torch
from torch import Tensor

from ..evidence.linear import LinearEvidence, tightest_bounds
from .entries import EntryEvidence
from .sequential import WindowStatements
from .tiling import Tiling


class StatementsByWindow:
    """Evidence, by the window that draws the last entry that a statement is about.

    Args:
        evidence: About the entries of an array, flattened to (D,): values, readings of single
            entries, and inequalities.
        unions: Alternatives of which one holds, for each union.
        tiling: The windows.
        channels: Number of channels.

    Raises:
        ValueError: For observations of combinations of entries.
    """

    def __init__(
        self,
        evidence: LinearEvidence,
        unions: Sequence[Sequence[LinearEvidence]],
        tiling: Tiling,
        channels: int,
    ) -> None:
        self._owner = tiling.owner.repeat_interleave(channels)
        self._entries, rows = _split(evidence, strict=True)
        self._rows = [(int(self._owner[row.nonzero()].amax()), row, a, b) for row, a, b in rows]
        self._unions = [
            (max(self._last(part) for part in union), [part.inequalities(()) for part in union])
            for union in unions
        ]

    @staticmethod
    def singles(evidence: LinearEvidence) -> EntryEvidence:
        """What is known of each entry by itself, (D,); other statements are left out."""
        return _split(evidence, strict=False)[0]

    def _last(self, part: LinearEvidence) -> int:
        used = (torch.cat(part.matrix) != 0).any(0)
        return int(self._owner[used].amax())

    @property
    def single(self) -> EntryEvidence:
        """What is known of each entry by itself, (D,)."""
        return self._entries

    def at(self, cell: int, value: Tensor, entries: Tensor) -> WindowStatements:
        """What is known of the entries that a window draws.

        Args:
            cell: The window.
            value: Arrays (n, D) as far as windows before it drew them.
            entries: Indices of what it draws, (d,), in its order.
        """
        rows, low, high = [], [], []
        past = torch.where(self._owner < cell, value.double(), 0.0)
        for last, row, a, b in self._rows:
            if last == cell:
                before = past @ row
                rows.append(row[entries])
                low.append(a - before)
                high.append(b - before)
        own = self._entries.map(lambda t: t[entries])
        if not rows:
            none = past.new_zeros(len(value), 0)
            return WindowStatements(own, past.new_zeros(0, len(entries)), none, none)
        return WindowStatements(own, torch.stack(rows), torch.stack(low, 1), torch.stack(high, 1))

    def meets_unions(self, cell: int, value: Tensor, entries: Tensor, drawn: Tensor) -> Tensor:
        """Whether continuations (n, B, d) of arrays (n, D) meet unions that end here: (n, B)."""
        met = torch.ones(drawn.shape[:2], dtype=torch.bool, device=drawn.device)
        past = torch.where(self._owner < cell, value.double(), 0.0)
        for last, parts in self._unions:
            if last != cell:
                continue
            one = torch.zeros_like(met)
            for rows, low, high in parts:
                x = (past @ rows.mT).unsqueeze(1) + drawn @ rows[:, entries].mT
                one = one | ((x >= low) & (x <= high)).all(-1)
            met = met & one
        return met


def _split(
    evidence: LinearEvidence, *, strict: bool
) -> tuple[EntryEvidence, list[tuple[Tensor, Tensor, Tensor]]]:
    """What is known of single entries, and the rows of other inequalities with their bounds.

    Raises:
        ValueError: For observations of combinations of entries, if strict.
    """
    value = torch.zeros(evidence.dim, dtype=torch.float64, device=evidence.device)
    precision = torch.zeros_like(value)
    for matrix, y, noise in evidence.gaussian:
        single = ((matrix != 0).sum(-1) == 1) & (noise.diagonal() > 0)
        single = single & (noise.diagonal().diag() == noise).all(-1)
        if strict and not bool(single.all()):
            raise ValueError(
                "Expected values and readings of single entries, or bounds of combinations, for "
                "arrays whose windows overlap, got readings of combinations of entries. Give "
                "bounds of those by LinearInequality."
            )
        matrix, y, noise = matrix[single], y[single], noise.diagonal()[single]
        column = (matrix != 0).int().argmax(-1)
        factor = matrix.gather(1, column.unsqueeze(-1)).squeeze(-1)
        weight = factor.square() / noise
        value.index_add_(0, column, weight * y / factor)
        precision.index_add_(0, column, weight)
    variance = precision.reciprocal()
    value = torch.where(precision > 0, value * variance, 0.0)
    for d, known in evidence.observed.items():
        value[d], variance[d] = known, 0.0
    matrix, below, above = evidence.inequalities(())
    terms = (matrix != 0).sum(-1)
    rows = [(matrix[i], below[i], above[i]) for i in (terms > 1).nonzero().flatten().tolist()]
    single = terms == 1
    column = matrix[single].abs().argmax(-1)
    factor = matrix[single].gather(1, column.unsqueeze(-1)).squeeze(-1)
    ends = torch.stack([below[single] / factor, above[single] / factor])
    low, high = tightest_bounds(ends.amin(0), ends.amax(0), column, evidence.dim)
    return EntryEvidence(value, variance, low, high), rows
