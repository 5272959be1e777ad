r"""Training residual mixtures of codes, to be asked for some columns given others.

The loss is that of a row, and of some of its columns given the others,

.. math:: -\log p(x) - \lambda \log p(x_A \mid x_B),

where B is a random share of the columns, or all but one. Both are sums over all codes of the
mixture, by matrix products of one-hot rows and the tables of layers. A prior keeps
components near the frequencies of all rows, and neighbouring bins alike.
"""

__all__ = ["Plan", "train"]

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..drmm import DRMM
from ..training import fit

# Conditional log-densities count this much beside the joint one.
CONDITIONAL = 10.0
# How far logits start above those of all rows, at the row that a component starts from; which part
# of the bins of an ordered column is near it; and how far apart those of later layers start.
BUMP, WIDTH, SPREAD = 2.0, 8.0, 0.2
# Numbers of rows and codes that are worked on at once.
CACHED = 2**18
# Smallest sum of products of exponentials.
LEAST = 1e-37
# The prior: rows with the frequencies of all data, for each component of a layer; and precisions
# of logits around the mean of a layer, and of differences between neighbouring bins.
PSEUDO_ROWS, PRECISION, SMOOTHNESS = 1.0, 0.05, 2.0
# So much do those of columns that will be predicted, given all others.
TARGET = 20.0


@dataclass(frozen=True)
class Plan:
    """How a model is trained.

    Args:
        num_layers: Layers of a mixture.
        num_components: Components of a layer.
        steps: Steps of training.
        batch_size: Rows of a step.
        lr: Learning rate.
        shrinkage: Weight of the prior.
        conditional: Weight of conditional log-densities.
        targets: Columns that will be predicted from all others, by their numbers.
    """

    num_layers: int = 2
    num_components: int = 32
    steps: int = 900
    batch_size: int = 512
    lr: float = 0.1
    shrinkage: float = 1.0
    conditional: float = CONDITIONAL
    targets: tuple[int, ...] = ()


class _WeightedLogSums(torch.autograd.Function):
    """Weighted sum of the log-probabilities of rows, summed over all codes.

    The gradient is worked out together with the value, for as few rows at a time as stay in the
    cache: the table of rows and codes is never written out, which is most of the time of a step.
    """

    @staticmethod
    def forward(
        ctx: Any,
        parts: Tensor,
        counts: Tensor,
        weights: Tensor,
        spread: Tensor,
        totals: Tensor,
        log_prior: Tensor,
        wanted: bool,
    ) -> Tensor:
        """Sums over rows.

        Args:
            ctx: What is kept for the backward pass.
            parts: Logits of rows under the components of each layer, (N, L K).
            counts: How often each column is known in a row, (N, J).
            weights: Of rows, (N,).
            spread: Which components of layers make up a code, (L K, codes).
            totals: What normalises columns, (J, codes).
            log_prior: Log-probabilities of codes, (codes,).
            wanted: Whether there will be a backward pass.
        """
        table = torch.cat([spread, -totals])
        rows = torch.cat([parts, counts], 1)
        value = torch.zeros((), device=parts.device, dtype=parts.dtype)
        by_part, by_total = torch.empty_like(parts), torch.zeros_like(totals)
        by_prior = torch.zeros_like(log_prior)
        size = max(1, CACHED // table.shape[1])
        for own in (slice(start, start + size) for start in range(0, len(rows), size)):
            scores = torch.addmm(log_prior, rows[own], table)
            top = scores.amax(-1, keepdim=True)
            probs = scores.sub_(top).exp_()
            sums = probs.sum(-1)
            value += weights[own] @ (sums.log() + top.squeeze(-1))
            if wanted:
                share = weights[own] / sums
                by_part[own] = (probs @ spread.T).mul_(share.unsqueeze(-1))
                by_total.addmm_((counts[own] * share.unsqueeze(-1)).T, probs, alpha=-1.0)
                by_prior += share @ probs
        ctx.save_for_backward(by_part, by_total, by_prior)
        return value

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of logits, of what normalises them, and of the prior."""
        by_part, by_total, by_prior = ctx.saved_tensors
        return gradient * by_part, None, None, None, gradient * by_total, gradient * by_prior, None


class _Trainee(nn.Module):
    """A residual mixture with the loss that it is trained by.

    Args:
        model: The mixture, of categorical columns.
        codes: The data: the prior counts once for all rows.
        ordered: Which columns have an order.
        plan: How it is trained.
    """

    spread: Tensor
    sizes: Tensor
    starts: Tensor
    frequency: Tensor
    neighbours: Tensor
    """Which codes (S - 1,) are alike to the next."""

    def __init__(
        self, model: DRMM, codes: np.ndarray, ordered: Sequence[bool], plan: Plan
    ) -> None:
        super().__init__()
        self.model, self.rows, self.plan = model, len(codes), plan
        sizes = torch.tensor(model.categories)
        codes_of_layers = model.law.all_codes()[0]  # (codes, L)
        hot = torch.nn.functional.one_hot(codes_of_layers, model.num_components)
        self.register_buffer("spread", hot.flatten(1).T.to(model.loc).contiguous())
        self.register_buffer("sizes", sizes)
        self.register_buffer("starts", sizes.cumsum(0) - sizes)
        own = torch.arange(len(sizes)).repeat_interleave(sizes)
        alike = (torch.tensor(ordered) & (sizes > 2))[own[1:]] & (own[1:] == own[:-1])
        self.register_buffer("neighbours", alike.to(model.loc))
        shares = [
            _frequencies(own, size) for own, size in zip(codes.T, sizes.tolist(), strict=True)
        ]
        self.register_buffer("frequency", torch.from_numpy(np.concatenate(shares)).to(model.loc))

    def loss(self, codes: Tensor, progress: float = 1.0) -> Tensor:  # noqa: ARG002
        """The loss of a batch of codes (N, J), minus one where nothing is known."""
        logits = torch.cat(list(self.model.column_logits), -1)  # (L, K, S)
        totals = _log_totals(logits, self.sizes)
        log_prior = self.model.law.all_codes()[1]
        known, hot = (codes >= 0).to(totals), self._one_hot(codes)

        # The rows as they are, and with some columns hidden: all at once.
        kept = [torch.ones_like(known)]
        if self.plan.conditional:
            kept.append(self._kept(known))
        for target in self.plan.targets:
            kept.append(torch.ones_like(known).index_fill(1, codes.new_tensor(target), 0.0))
        some = torch.cat([hot * own.repeat_interleave(self.sizes, 1) for own in kept])
        count = torch.cat([known * own for own in kept])
        # Logits of rows under the components of each layer are spread over codes by a product
        # with zeros and ones, which takes one pass over the numbers of all rows and codes.
        parts = some @ logits.flatten(0, 1).T
        weight = self.plan.conditional
        hidden = [*([weight] if weight else []), *[TARGET] * len(self.plan.targets)]
        weights = totals.new_tensor([-1.0 - sum(hidden), *hidden]) / len(codes)
        loss = _WeightedLogSums.apply(
            parts,
            count,
            weights.repeat_interleave(len(codes)),
            self.spread,
            totals,
            log_prior,
            torch.is_grad_enabled(),
        )
        if not self.training:
            return loss
        prior = self._penalty(logits) + PSEUDO_ROWS * self._divergence(logits, totals)
        return loss + self.plan.shrinkage * (1 + weight / 2) * prior / self.rows

    def _one_hot(self, codes: Tensor) -> Tensor:
        hot = self.model.loc.new_zeros(len(codes), int(self.sizes.sum()))
        rows, columns = (codes >= 0).nonzero(as_tuple=True)
        hot[rows, self.starts[columns] + codes[rows, columns]] = 1.0
        return hot

    def _kept(self, known: Tensor) -> Tensor:
        """Which columns are given, (N, J): a random share of them, or all but one."""
        share = torch.rand(len(known), 1, device=known.device)
        some = (torch.rand(known.shape, device=known.device) < share).to(known)
        but_one = torch.ones_like(known)
        one = torch.randint(known.shape[1], (len(known), 1), device=known.device)
        but_one.scatter_(1, one, 0.0)
        return torch.where(torch.rand(len(known), 1, device=known.device) < 0.5, but_one, some)

    def _divergence(self, logits: Tensor, totals: Tensor) -> Tensor:
        """Minus log-probabilities of rows of average frequencies, one for each component."""
        count = self.model.num_layers * self.model.num_components
        return count * (totals.mean(1).sum() - (logits.mean(1) @ self.frequency).sum())

    def _penalty(self, logits: Tensor) -> Tensor:
        """Minus the log-density of logits under normals around the mean of a layer."""
        apart = logits - logits.mean(1, keepdim=True)
        steps = apart.diff(dim=-1) * self.neighbours
        return 0.5 * (PRECISION * apart.square().sum() + SMOOTHNESS * steps.square().sum())

    def learning_rate_factor(self, progress: float) -> float:
        """Up within a twentieth of training, down in its second half."""
        return min(1.0, 0.02 + 20 * progress) * min(1.0, 2 - 2 * progress)


def _log_totals(logits: Tensor, sizes: Tensor) -> Tensor:
    r"""What normalises columns, :math:`\log \sum_c e^{\sum_l t_{lj}[h_l, c]}`.

    Sums of products of exponentials are matrix products, of the first half of the layers and the
    other, so that the probabilities of all codes need not be written out.

    Args:
        logits: Of the layers, of the codes of all columns side by side, (L, K, S).
        sizes: Numbers of codes of the columns, (J,).

    Returns:
        Tensor of shape (J, K^L).
    """
    column = torch.arange(len(sizes), device=logits.device).repeat_interleave(sizes)
    with torch.no_grad():
        lowest = logits.new_full((*logits.shape[:2], len(sizes)), -math.inf)
        peaks = lowest.scatter_reduce(2, column.expand(logits.shape), logits, "amax")
    parts = (logits - peaks[..., column]).exp()
    middle = (len(parts) + 1) // 2
    product, other = _all_products(parts[:middle]), _all_products(parts[middle:])
    widths = sizes.tolist()
    totals = torch.stack(
        [
            (a @ b.T).flatten()
            for a, b in zip(product.split(widths, 1), other.split(widths, 1), strict=True)
        ]
    )
    top = peaks[0]
    for peak in peaks[1:]:
        top = (top.unsqueeze(1) + peak).flatten(0, 1)
    return totals.clamp(min=LEAST).log() + top.T


def _all_products(parts: Tensor) -> Tensor:
    """Products of numbers of layers (L, K, S) over all codes, (K^L, S); ones without layers."""
    product = parts.new_ones(1, parts.shape[-1])
    for part in parts:
        product = (product.unsqueeze(1) * part).flatten(0, 1)
    return product


def train(
    codes: np.ndarray,
    held_out: np.ndarray,
    categories: Sequence[int],
    ordered: Sequence[bool],
    plan: Plan,
    *,
    seed: int,
    progress_bar: bool,
) -> DRMM:
    """A residual mixture of codes.

    Args:
        codes: Rows to train on, (N, J), minus one where nothing is known.
        held_out: Rows by which the best weights are chosen.
        categories: Numbers of codes of the columns.
        ordered: Which columns have an order.
        plan: How it is trained.
        seed: Seed of everything random.
        progress_bar: Whether to show a bar with the loss.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = DRMM(
            0,
            plan.num_layers,
            plan.num_components,
            categories=tuple(categories),
            missing="marginalize",
            max_exact=plan.num_components**plan.num_layers,
        )
        _start(model, codes, ordered)
    trainee = _Trainee(model, codes, ordered, plan)
    fit(
        trainee,  # type: ignore[arg-type]
        torch.from_numpy(codes),
        steps=plan.steps,
        batch_size=plan.batch_size,
        lr=plan.lr,
        validation=torch.from_numpy(held_out) if len(held_out) else None,
        validation_every=max(1, plan.steps // 12),
        seed=seed,
        progress_bar=progress_bar,
    )
    return model.requires_grad_(False)


def _frequencies(codes: np.ndarray, size: int) -> np.ndarray:
    """Shares of codes (N,) of a column among those that are known, none of them zero."""
    counts = np.bincount(codes[codes >= 0], minlength=size) + 0.5
    shares: np.ndarray = counts / counts.sum()
    return shares


@torch.no_grad()
def _start(model: DRMM, codes: np.ndarray, ordered: Sequence[bool]) -> None:
    """Starts the first layer near some of the rows, and the others near nothing."""
    rows = torch.randperm(len(codes))[: model.num_components].numpy()
    for table, own, near in zip(model.column_logits, codes.T, ordered, strict=True):
        size = table.shape[-1]
        table.copy_(SPREAD * torch.randn_like(table))
        table[0] = torch.from_numpy(np.log(_frequencies(own, size))).to(table)
        width = max(1.0, size / WIDTH) if near else 0.1
        distance = np.subtract.outer(own[rows], np.arange(size)) / width
        bump = BUMP * np.exp(-0.5 * np.square(distance)) * (own[rows] >= 0)[:, None]
        table[0, : len(rows)] += torch.from_numpy(bump).to(table)
    model.log_weight.zero_()
    model.link_logits.zero_()
    model.initialized.fill_(True)
