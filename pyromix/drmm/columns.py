r"""Categorical columns: :math:`p(c_j \mid h) = \operatorname{softmax}(\sum_l t_{lj}[h_l])`.

Neighbouring columns with as many categories are worked on together. What a layer's component adds
to a prefix of codes with logits b needs no softmax of its own for each pair of the two: with
:math:`e_j = \exp b_j`,

.. math:: \log \sum_c \exp(b_{jc} + t_{jc}[k]) = \log \sum_c e_{jc} \exp t_{jc}[k]

is a matrix product for every column, of hypotheses and components. Sums that leave the range of
the numbers, where a prefix and a component disagree by far, are taken term by term.
"""

__all__ = ["Columns", "Values", "pick_rows", "pick_value", "runs_of"]

import itertools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from ..core.checks import is_traced
from ..numerics.full_precision import in_full_precision
from .links import sum_rows, sum_selected

Values = tuple[Tensor, ...]
"""Of the columns of each table: codes (N, J), minus one if missing; or distributions over the
codes (N, J, n), all zero if missing. One row may stand for all."""

# Sums of so many pairs of a hypothesis and a component are worked on at once.
BLOCK_NUMBERS = 2**21

# Sums below this share of the largest term that they could have are taken term by term.
LEAST_SUM = {torch.float32: 1e-30, torch.float64: 1e-290}


class Columns:
    """Tables of categorical columns, and what codes say of them.

    Args:
        tables: Tables :math:`t_j` of neighbouring columns with as many categories, (L, K, J, n)
            for each such run of columns; or (L, K, n) for one that is alone.
        like: A tensor of the dtype and on the device of results.
    """

    def __init__(self, tables: Sequence[Tensor], like: Tensor) -> None:
        self.tables = tuple(t.unsqueeze(2) if t.dim() == 3 else t for t in tables)
        self.zero = like.new_zeros(1, 1, 1)

    @classmethod
    def of(cls, tables: Sequence[Tensor], like: Tensor) -> "Columns":
        """Of one table (L, K, categories) for each column."""
        left = iter(tables)
        runs = runs_of([table.shape[-1] for table in tables])
        return cls([torch.stack(list(itertools.islice(left, n)), 2) for _, n in runs], like)

    def __len__(self) -> int:
        return sum(self.sizes)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Numbers of columns of the tables."""
        return tuple(table.shape[2] for table in self.tables)

    @property
    def categories(self) -> tuple[int, ...]:
        """Numbers of categories of the columns."""
        return tuple(t.shape[-1] for t in self.tables for _ in range(t.shape[2]))

    def place(self, column: int) -> tuple[int, int]:
        """Which table a column is in, and its number there."""
        for number, size in enumerate(self.sizes):
            if column < size:
                return number, column
            column -= size
        raise IndexError(column)

    def split(self, x: Tensor) -> tuple[Tensor, ...]:
        """Entries (*, columns) by table, (*, J) each."""
        return x.split(self.sizes, -1)

    def map_tensors(self, function: Callable[[Tensor], Tensor], like: Tensor) -> "Columns":
        """The columns with every table passed through a function."""
        return Columns([function(table) for table in self.tables], like)

    def select(self, columns: Sequence[int]) -> "Columns":
        """Some of the columns, named in ascending order."""
        chosen: list[list[int]] = [[] for _ in self.tables]
        for column in columns:
            number, index = self.place(column)
            chosen[number].append(index)
        tables = [table[:, :, own] for table, own in zip(self.tables, chosen, strict=True) if own]
        return Columns(tables, self.zero)

    @property
    def cost(self) -> int:
        """How many numbers are kept for a score of a component."""
        return sum(
            t.shape[2] * (1 + -(-t.shape[-1] // t.shape[1])) for t in self.tables if t.numel()
        )

    # ---- given codes --------------------------------------------------------------------------

    def logits(self, codes: Tensor) -> tuple[Tensor, ...]:
        """Logits after the layers whose codes (*S, l) are given: shape (*S, J, n).

        Without layers, (1, ..., J, n), for all.
        """
        if not codes.shape[-1]:
            codes = codes.new_zeros([1] * codes.dim())[..., :0]
        flat, shape = codes.flatten(0, -2), codes.shape[:-1]
        return tuple(
            sum_selected(table.flatten(2), flat).reshape(*shape, *table.shape[2:])
            for table in self.tables
        )

    def log_probs(self, column: int, codes: Tensor) -> Tensor:
        """Log-probabilities of a column's categories, (*S, categories), given codes (*S, L)."""
        number, index = self.place(column)
        table = self.tables[number][:, :, index]
        logits = sum_selected(table, codes.flatten(0, -2))
        return logits.log_softmax(-1).reshape(*codes.shape[:-1], -1)

    def blocks(self, count: int) -> Iterator[tuple["Columns", int, slice]]:
        """Few columns at a time, for so many rows of logits; all columns in their order.

        Yields:
            The columns, the number of the table that they are in, and their places there.
        """
        for number, table in enumerate(self.tables):
            columns = table.shape[2]
            size = max(1, BLOCK_NUMBERS // max(1, count * table.shape[-1]))
            for first in range(0, columns, size):
                part = slice(first, min(columns, first + size))
                whole = size >= columns
                yield Columns([table if whole else table[:, :, part]], self.zero), number, part

    def log_prob(self, codes: Tensor, values: Values) -> Tensor:
        """Log-probability of values under codes (N or 1, C, L); zero if missing: (N, C)."""
        total = self.zero[0]
        for columns, number, part in self.blocks(codes.shape[:2].numel()):
            (logits,) = columns.logits(codes)
            total = total + pick_value(logits.log_softmax(-1), values[number][:, part])
        return total

    def expected_log_prob(self, codes: Tensor, log_weights: tuple[Tensor, ...]) -> Tensor:
        """Log of the expected weight of the category under codes, summed over columns.

        Args:
            codes: Shape (N or 1, C, L).
            log_weights: Logarithms of weights of categories, shape (N or 1, J, n).

        Returns:
            Tensor of shape (N or 1, C).
        """
        total = self.zero[0]
        for columns, number, part in self.blocks(codes.shape[:2].numel()):
            (logits,) = columns.logits(codes)
            weighted = logits.log_softmax(-1) + log_weights[number][:, part].unsqueeze(1)
            total = total + weighted.logsumexp(-1).sum(-1)
        return total

    def draw(self, codes: Tensor, log_weights: Callable[[int, slice], Tensor | None]) -> Tensor:
        """Draws of all columns (n, columns), given codes (n, L).

        Args:
            codes: The codes.
            log_weights: What is added to log-probabilities, (n, J, categories) or None, for
                columns at some places of a table.
        """
        drawn = [self.zero.new_zeros(len(codes), 0)]
        for columns, number, part in self.blocks(len(codes)):
            (logits,) = columns.logits(codes)
            own = log_weights(number, part)
            probs = (logits if own is None else logits.log_softmax(-1) + own).softmax(-1)
            chosen = torch.multinomial(probs.flatten(0, 1), 1) if len(codes) else probs[..., 0]
            drawn.append(chosen.reshape(probs.shape[:2]).to(self.zero))
        return torch.cat(drawn, -1)

    @in_full_precision
    def score(self, layer: int, logits: tuple[Tensor, ...], values: Values) -> Tensor:
        """Log-probability of values under every component of a layer; zero if missing.

        Args:
            layer: The layer.
            logits: What the layers before add up to, shape (N or 1, B, J, n).
            values: See `Values`.

        Returns:
            Tensor of shape (N, B, K); (1, 1, 1) without columns.
        """
        total = self.zero
        for table, before, value in zip(self.tables, logits, values, strict=True):
            b, t = _below_peak(before), _below_peak(table[layer])
            weight = _weight(value, t)
            fit = pick_value(b, value).unsqueeze(-1) + pick_rows(t, value).unsqueeze(1)
            total = total + fit - _sum_of_totals(b, t, weight)
        return total

    @in_full_precision
    def expected_score(
        self, layer: int, logits: tuple[Tensor, ...], log_weights: tuple[Tensor, ...]
    ) -> Tensor:
        """Log of the expected weight of the category under every component of a layer.

        Args:
            layer: The layer.
            logits: What the layers before add up to, shape (N or 1, B, J, n).
            log_weights: Logarithms of weights of categories, shape (N or 1, J, n).

        Returns:
            Sums over columns, shape (N or 1, B, K); (1, 1, 1) without columns.
        """
        total = self.zero
        for table, before, log_weight in zip(self.tables, logits, log_weights, strict=True):
            b, t = _below_peak(before), _below_peak(table[layer])
            weighted = b + log_weight.unsqueeze(1)
            peak = _peak(weighted)
            fit = peak.sum((-2, -1)).unsqueeze(-1) + _sum_of_totals(weighted - peak, t)
            total = total + fit - _sum_of_totals(b, t)
        return total


def runs_of(categories: Sequence[int]) -> list[tuple[int, int]]:
    """Numbers of categories of neighbouring columns that have as many, and of these columns."""
    return [(count, len(list(run))) for count, run in itertools.groupby(categories)]


def pick_value(t: Tensor, value: Tensor) -> Tensor:
    """What values select of numbers (N or 1, B, J, n), summed over columns: shape (N, B).

    Args:
        t: The numbers.
        value: Codes (N or 1, J), or distributions (N or 1, J, n); see `Values`.
    """
    if value.is_floating_point():
        return (t.flatten(-2) @ value.flatten(1).unsqueeze(-1)).squeeze(-1)
    index = value.clamp(min=0)[:, None, :, None]
    chosen = torch.take_along_dim(t, index, -1).squeeze(-1)
    return torch.where(value.unsqueeze(1) < 0, 0.0, chosen).sum(-1)


def pick_rows(table: Tensor, value: Tensor) -> Tensor:
    """The same of numbers (K, J, n) that all values select from: shape (N or 1, K)."""
    if value.is_floating_point():
        return value.flatten(1) @ table.flatten(1).mT
    first = table.shape[-1] * torch.arange(table.shape[1], device=value.device)
    rows, weight = value.clamp(min=0) + first, _weight(value, table)
    return sum_rows(table.flatten(1).mT.contiguous(), rows, weight)


def _weight(value: Tensor, like: Tensor) -> Tensor | None:
    """How much of a value there is, (N or 1, J): zero where missing; None if all is there."""
    if value.is_floating_point():
        return value.sum(-1)
    missing = value < 0
    if not is_traced() and not bool(missing.any()):
        return None
    return (~missing).to(like)


def _peak(t: Tensor) -> Tensor:
    """Largest entries over categories, (*, 1), without a graph."""
    peak = t.detach().amax(-1, keepdim=True)
    return torch.where(peak.isfinite(), peak, 0.0)


def _below_peak(t: Tensor) -> Tensor:
    """Logits less their largest, which changes no law, and leaves differences their digits."""
    return t - _peak(t)


def _sum_of_totals(before: Tensor, table: Tensor, weight: Tensor | None = None) -> Tensor:
    """Sums over columns of log sum_c exp(b_c + t_c).

    Args:
        before: b of hypotheses, with a largest entry of zero, shape (N or 1, B, J, n).
        table: t of components, the same, shape (K, J, n).
        weight: Factors of columns, shape (N or 1, J); by default one.

    Returns:
        Tensor of shape (N or 1, B, K).
    """
    n, width = before.shape[:2]
    k = len(table)
    size = max(1, BLOCK_NUMBERS // max(1, n * width * k))
    weights = itertools.repeat(None) if weight is None else weight.split(size, -1)
    total = before.new_zeros(1, 1, 1)
    blocks = _blocks(before.flatten(0, 1), table, size)
    for (b, t), own in zip(blocks, weights, strict=weight is not None):
        logs = _log_totals(b, t).reshape(b.shape[1], n, width * k)  # (J, N, B K)
        if own is None:
            part = logs.sum(0)
        elif n == 1 or len(own) == 1:
            part = (own @ logs.flatten(1)).reshape(-1, width * k)
        else:
            part = (own.unsqueeze(1) @ logs.transpose(0, 1)).squeeze(1)
        total = total + part.reshape(-1, width, k)
    return total


def _blocks(before: Tensor, table: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    # Split, not sliced: the gradient of a slice is as large as the whole, for every block.
    return zip(before.split(size, 1), table.split(size, 1), strict=True)


def _log_totals(before: Tensor, table: Tensor) -> Tensor:
    """Log sum_c exp(b_c + t_c) of hypotheses (M, J, n) and components (K, J, n): (J, M, K)."""
    if is_traced():  # no choices by values
        every = (before.unsqueeze(1) + table).logsumexp(-1)
        return every.movedim(-1, 0)
    total = before.exp().transpose(0, 1) @ table.exp().permute(1, 2, 0)
    least = LEAST_SUM[total.dtype]
    if not total.numel() or bool(total.detach().amin() >= least):
        return total.log()
    few = ~(total.detach() >= least)
    index = few.nonzero(as_tuple=True)
    logs = torch.where(few, 1.0, total).log()
    size = max(1, BLOCK_NUMBERS // before.shape[-1])
    direct = [
        (before[m, j] + table[k, j]).logsumexp(-1)
        for j, m, k in zip(*(i.split(size) for i in index), strict=True)
    ]
    return logs.index_put(index, torch.cat(direct))
