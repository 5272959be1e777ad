"""Tables of which codes of two layers go together, and sums of their rows."""

__all__ = ["log_normalize", "select", "sum_rows", "sum_rows_of_layers"]

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding_bag

from ..core.checks import is_traced


def log_normalize(logits: Tensor, smoothing: float) -> Tensor:
    """Log-probabilities over the rows of tables (P, J, K), no less than log(smoothing / J).

    The same as a softmax and a clamp; but these tables hold nearly all parameters of a deep
    model, and what a training step costs is mostly the memory that passes over them take.
    """
    lowest = _lowest(logits, smoothing)
    if is_traced():
        return logits.log_softmax(-2).clamp(min=lowest)
    return _LogNormalize.apply(logits, lowest)


def _lowest(logits: Tensor, smoothing: float) -> float:
    return math.log(smoothing / logits.shape[-2]) if smoothing else -math.inf


class _LogNormalize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, lowest: float) -> Tensor:
        result = logits.log_softmax(-2)
        ctx.lowest = lowest if result.numel() and bool(result.amin() < lowest) else -math.inf
        if ctx.lowest > -math.inf:
            result.clamp_(min=lowest)
        ctx.save_for_backward(logits, result)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        logits, log_prob = ctx.saved_tensors
        if ctx.lowest > -math.inf or torch.is_grad_enabled():
            log_prob = logits.log_softmax(-2)
            grad = grad.masked_fill(log_prob < ctx.lowest, 0.0)
        if torch.is_grad_enabled():  # gradients of this gradient are wanted
            return grad - log_prob.exp() * grad.sum(-2, keepdim=True), None
        change = log_prob.exp().mul_(grad.sum(-2, keepdim=True).neg_())
        return change.add_(grad), None


def select(
    logits: Tensor, smoothing: float, log_prob: Tensor, rows: Tensor, columns: Tensor
) -> Tensor:
    """Entries of normalised tables, with one pass over them in the backward pass instead of three.

    Args:
        logits: Tables (P, J, K).
        smoothing: As for `log_normalize`.
        log_prob: What `log_normalize` made of them, shape (P J, K); no gradient goes through it.
        rows: Rows of `log_prob`, any shape.
        columns: Columns of it, the same shape.
    """
    return _Select.apply(logits, _lowest(logits, smoothing), log_prob.detach(), rows, columns)


class _Select(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, lowest: float, log_prob: Tensor, rows: Tensor, columns: Tensor
    ) -> Tensor:
        ctx.shape, ctx.lowest = logits.shape, lowest
        ctx.save_for_backward(logits, log_prob, rows, columns)
        return log_prob[rows, columns]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        logits, log_prob, rows, columns = ctx.saved_tensors
        pairs, size, k = ctx.shape
        rows, columns, grad = rows.flatten(), columns.flatten(), grad.flatten()
        if bool(log_prob.amin() <= ctx.lowest):  # a softmax has no floor
            grad = grad.masked_fill(log_prob[rows, columns] <= ctx.lowest, 0.0)
            log_prob = logits.log_softmax(-2).view_as(log_prob)
        total = grad.new_zeros(pairs, k)
        total.index_put_((rows // size, columns), grad, accumulate=True)
        result = log_prob.exp()
        result.view(ctx.shape).mul_(total.neg_().unsqueeze(1))
        result.index_put_((rows, columns), grad, accumulate=True)
        return result.view(ctx.shape), None, None, None, None


def sum_rows(table: Tensor, rows: Tensor, weight: Tensor | None = None) -> Tensor:
    """Sums rows (n, m) of a table (R, T), times weights (n, m) if there are: shape (n, T)."""
    if rows.shape[-1] == 0:
        return table.new_zeros(len(rows), table.shape[-1])
    if is_traced():
        chosen = table[rows]
        return (chosen if weight is None else chosen * weight.unsqueeze(-1)).sum(-2)
    return embedding_bag(rows, table, mode="sum", per_sample_weights=weight)


def sum_rows_of_layers(table: Tensor, rows: list[Tensor]) -> tuple[Tensor, ...]:
    """Sums several lists of rows (n, m_i) as `sum_rows` does, with one backward pass."""
    if is_traced():
        return tuple(sum_rows(table, part) for part in rows)
    sizes = torch.cat([part.new_full((len(part),), part.shape[-1]) for part in rows])
    starts = sizes.cumsum(0) - sizes
    flat = torch.cat([part.flatten() for part in rows])
    return embedding_bag(flat, table, starts, mode="sum").split([len(part) for part in rows])


def stacked_rows(codes: Tensor, num_components: int) -> Tensor:
    """Rows that codes (n, l) select of tables stacked layer by layer."""
    return codes + num_components * torch.arange(codes.shape[-1], device=codes.device)


def sum_selected(table: Tensor, codes: Tensor) -> Tensor:
    """Sums over layers what codes (n, l) select of a table (L, K, *): shape (n, *)."""
    return sum_rows(table.flatten(0, 1), stacked_rows(codes, table.shape[1]))
