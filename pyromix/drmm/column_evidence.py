"""What evidence says of categorical columns, for many codes at once."""

__all__ = ["ColumnEvidence"]

from collections.abc import Mapping

import torch
from torch import Size, Tensor

from .columns import Columns


class ColumnEvidence:
    r"""The factor :math:`\prod_j \sum_c p(c_j = c \mid h) q_j(c)` of categorical columns.

    A column of which one category is left counts with its log-probability. Others take a second
    sum over categories.

    Args:
        columns: The columns.
        categorical: Number of a column -> log-weights of its categories, shape (\*N, categories).
        batch_shape: A shape that these expand to, of E entries.
    """

    def __init__(
        self, columns: Columns, categorical: Mapping[int, Tensor], batch_shape: Size
    ) -> None:
        self._zero = columns.zero
        named: list[dict[int, Tensor]] = [{} for _ in columns.tables]
        for column, log_q in sorted(categorical.items()):
            number, index = columns.place(column)
            whole = log_q if log_q.dim() == 1 else log_q.expand(*batch_shape, log_q.shape[-1])
            named[number][index] = whole.reshape(-1, log_q.shape[-1])
        seen, codes, weighed, weights = [], [], [], []
        constant = self._zero[0]
        self._known: dict[int, tuple[Tensor, Tensor]] = {}
        for number, (table, own) in enumerate(zip(columns.tables, named, strict=True)):
            if not own:
                continue
            place = torch.tensor(list(own), device=table.device)
            log_q = torch.stack(torch.broadcast_tensors(*own.values()), 1).to(table)
            self._known[number] = place, log_q
            single = (log_q.isfinite().sum(-1) == 1).all(0)
            if bool(single.any()):
                log_one = log_q[:, single]
                code = log_one.detach().argmax(-1)
                constant = constant + log_one.gather(-1, code.unsqueeze(-1)).sum(1)  # (E or 1, 1)
                seen.append(table[:, :, place[single]])
                codes.append(code)
            if not bool(single.all()):
                weighed.append(table[:, :, place[~single]])
                weights.append(log_q[:, ~single])
        self._seen, self._weighed = Columns(seen, self._zero), Columns(weighed, self._zero)
        self._codes, self._log_weights, self._constant = tuple(codes), tuple(weights), constant

    def at(self, entries: slice) -> "ColumnEvidence":
        """What it says at some entries; draws are left out."""
        part = object.__new__(type(self))
        part._zero, part._known = self._zero, {}
        part._seen, part._weighed = self._seen, self._weighed
        part._codes = tuple(_rows(code, entries) for code in self._codes)
        part._log_weights = tuple(_rows(weight, entries) for weight in self._log_weights)
        part._constant = _rows(self._constant, entries)
        return part

    @property
    def cost(self) -> int:
        """How many numbers are kept for a score of a component."""
        return max(1, self._seen.cost, self._weighed.cost)

    def score(self, codes: Tensor) -> Tensor:
        """Log-probability of the evidence under all that may follow codes (E, C, l): (E, C, K)."""
        layer, total = codes.shape[-1], self._constant.unsqueeze(-1)
        if self._codes:
            total = total + self._seen.score(layer, self._seen.logits(codes), self._codes)
        if self._log_weights:
            logits = self._weighed.logits(codes)
            total = total + self._weighed.expected_score(layer, logits, self._log_weights)
        return total

    def log_prob(self, codes: Tensor) -> Tensor:
        """Log-probability of the evidence under codes (E or 1, C, L): shape (E or 1, C)."""
        total = self._constant + self._seen.log_prob(codes, self._codes)
        return total + self._weighed.expected_log_prob(codes, self._log_weights)

    def log_weights(self, number: int, part: slice, entry: Tensor) -> Tensor | None:
        """Log-weights (n or 1, J, categories) at entries (n,), of columns of a table.

        Args:
            number: The table.
            part: Places of the columns there.
            entry: The entries.

        Returns:
            None if nothing is known of these columns.
        """
        if number not in self._known:
            return None
        place, log_q = self._known[number]
        inside = (place >= part.start) & (place < part.stop)
        if not bool(inside.any()):
            return None
        rows = log_q if len(log_q) == 1 else log_q[entry]
        every = rows.new_zeros(len(rows), part.stop - part.start, rows.shape[-1])
        return every.index_copy(1, place[inside] - part.start, rows[:, inside])


def _rows(t: Tensor, entries: slice) -> Tensor:
    """The rows of entries, or the one that all share."""
    return t if len(t) == 1 else t[entries]
