"""Rows of mixed real and categorical columns."""

__all__ = ["Columns", "Rows", "pick_value"]

from typing import NamedTuple

import torch
from torch import Tensor

from .links import sum_selected


class Rows(NamedTuple):
    """Points to be scored, N of them."""

    real: Tensor
    """Real columns, shape (N, D), with any finite number where missing."""
    observed: Tensor | None
    """One where a real column is known and zero where it is missing, (N, D); None if all are."""
    columns: tuple[Tensor, ...]
    """Categorical columns: codes (N,), minus one if missing; or distributions over the codes
    (N, categories), all zero if missing."""

    def split(self, size: int) -> "list[Rows]":
        """Blocks of at most so many rows."""
        real = self.real.split(size)
        observed = [None] * len(real) if self.observed is None else self.observed.split(size)
        columns = [column.split(size) for column in self.columns]
        return [
            Rows(part, seen, tuple(column[i] for column in columns))
            for i, (part, seen) in enumerate(zip(real, observed, strict=True))
        ]

    def take(self, index: Tensor) -> "Rows":
        """The rows at indices (n,)."""
        observed = None if self.observed is None else self.observed[index]
        return Rows(self.real[index], observed, tuple(column[index] for column in self.columns))

    @property
    def complete(self) -> Tensor:
        """Whether nothing of a row is missing, shape (N,)."""
        known = torch.ones(len(self.real), dtype=torch.bool, device=self.real.device)
        if self.observed is not None:
            known = (self.observed > 0).all(-1)
        for column in self.columns:
            known = known & ((column.sum(-1) > 0) if column.is_floating_point() else column >= 0)
        return known


class Columns:
    r"""Categorical columns: :math:`p(c_j \mid h) = \operatorname{softmax}(\sum_l t_{lj}[h_l])`.

    Args:
        tables: One tensor :math:`t_j` of shape (L, K, categories) for each column.
        like: A tensor of the dtype and on the device of results.
    """

    def __init__(self, tables: tuple[Tensor, ...], like: Tensor) -> None:
        self.tables = tables
        self.zero = like.new_zeros(1, 1, 1)

    @property
    def categories(self) -> tuple[int, ...]:
        """Numbers of categories of the columns."""
        return tuple(table.shape[-1] for table in self.tables)

    def start(self, *shape: int) -> tuple[Tensor, ...]:
        """Logits before the first layer, all zero, shape (*shape, categories)."""
        return tuple(table.new_zeros(*shape, table.shape[-1]) for table in self.tables)

    def logits(self, codes: Tensor) -> tuple[Tensor, ...]:
        """Logits after the layers whose codes (n, l) are given: shape (n, categories)."""
        return tuple(sum_selected(table, codes) for table in self.tables)

    def add(self, layer: int, logits: tuple[Tensor, ...], chosen: Tensor) -> tuple[Tensor, ...]:
        """Logits (N, B, categories) of hypotheses, after a layer's codes (N, B)."""
        return tuple(
            before + table[layer][chosen]
            for before, table in zip(logits, self.tables, strict=True)
        )

    def log_probs(self, column: int, codes: Tensor) -> Tensor:
        """Log-probabilities of a column's categories, (*S, categories), given codes (*S, L)."""
        logits = sum_selected(self.tables[column], codes.reshape(-1, codes.shape[-1]))
        return logits.log_softmax(-1).reshape(*codes.shape[:-1], -1)

    def score(self, layer: int, logits: tuple[Tensor, ...], columns: tuple[Tensor, ...]) -> Tensor:
        """Log-probability of values under every component of a layer; zero if missing.

        Args:
            layer: The layer.
            logits: What the layers before add up to, shape (N, B, categories).
            columns: Values, see `Rows`.

        Returns:
            Tensor of shape (N, B, K); (1, 1, 1) without columns.
        """
        total = self.zero
        for table, before, value in zip(self.tables, logits, columns, strict=True):
            log_prob = (before.unsqueeze(-2) + table[layer]).log_softmax(-1)  # (N, B, K, n)
            total = total + pick_value(log_prob, value)
        return total


def pick_value(log_prob: Tensor, value: Tensor) -> Tensor:
    """Expected log-probability (N, *T) of values, from (N, *T, n); zero where they are missing.

    Args:
        log_prob: Log-probabilities of every category.
        value: Codes (N,), minus one if missing, or distributions (N, n).
    """
    extra = [1] * (log_prob.dim() - 2)
    if value.is_floating_point():
        return (log_prob * value.reshape(len(value), *extra, value.shape[-1])).sum(-1)
    index = value.clamp(min=0).reshape(-1, *extra, 1)
    chosen = torch.take_along_dim(log_prob, index, -1).squeeze(-1)
    return torch.where(value.reshape(-1, *extra) < 0, 0.0, chosen)
