r"""Training residual mixtures of codes, to be asked for some columns given others.

The loss is that of a row, and of some of its columns given the others,

.. math:: -\log p(x) - \lambda \log p(x_A \mid x_B),

where B is a random share of the columns, or all but one. Both are sums over all codes of the
mixture, by matrix products of one-hot rows and the tables of layers. A prior keeps
components near the frequencies of all rows, and neighbouring bins alike.
"""

__all__ = ["Plan", "train"]

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..drmm import DRMM
from ..drmm.columns import runs_of
from ..training import fit

# Conditional log-densities count this much beside the joint one.
CONDITIONAL = 10.0
# How far logits start above those of all rows, at the row that a component starts from; which part
# of the bins of an ordered column is near it; and how far apart those of later layers start.
BUMP, WIDTH, SPREAD = 2.0, 8.0, 0.2
# Smallest sum of products of exponentials.
LEAST = 1e-37
# The prior: rows with the frequencies of all data, for each component of a layer; and precisions
# of logits around the mean of a layer, and of differences between neighbouring bins.
PSEUDO_ROWS, PRECISION, SMOOTHNESS = 1.0, 0.05, 2.0
# So much do those of columns that will be predicted, given all others.
TARGET = 5.0


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


class _LogSum(torch.autograd.Function):
    """Logsumexp over the last dimension, that keeps probabilities for the backward pass.

    PyTorch's own exponentiates once more there, which is most of the time of a step.
    """

    @staticmethod
    def forward(ctx: Any, scores: Tensor) -> Tensor:
        """Sums (N,) of scores (N, codes)."""
        top = scores.amax(-1, keepdim=True)
        probs = (scores - top).exp_()
        total = probs.sum(-1, keepdim=True)
        ctx.save_for_backward(probs.div_(total))
        return (total.log() + top).squeeze(-1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Probabilities of codes, times the gradient of each row."""
        (probs,) = ctx.saved_tensors
        return probs * gradient.unsqueeze(-1)


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

    def __init__(
        self, model: DRMM, codes: np.ndarray, ordered: Sequence[bool], plan: Plan
    ) -> None:
        super().__init__()
        self.model, self.rows, self.plan = model, len(codes), plan
        self.ordered = list(ordered)
        sizes = torch.tensor(model.categories)
        codes_of_layers = model.law.all_codes()[0]  # (codes, L)
        hot = torch.nn.functional.one_hot(codes_of_layers, model.num_components)
        self.register_buffer("spread", hot.flatten(1).T.to(model.loc).contiguous())
        self.register_buffer("sizes", sizes)
        self.register_buffer("starts", sizes.cumsum(0) - sizes)
        shares = [
            _frequencies(own, size) for own, size in zip(codes.T, sizes.tolist(), strict=True)
        ]
        self.register_buffer("frequency", torch.from_numpy(np.concatenate(shares)).to(model.loc))

    def loss(self, codes: Tensor, progress: float = 1.0) -> Tensor:  # noqa: ARG002
        """The loss of a batch of codes (N, J), minus one where nothing is known."""
        runs = self._runs()
        tables = [
            torch.cat([run[:, layer].transpose(0, 1).flatten(1) for run in runs], 1)
            for layer in range(self.model.num_layers)
        ]
        totals = torch.cat([_log_totals(run) for run in runs])
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
        parts = torch.cat([*(some @ table.T for table in tables), count], 1)
        scores = torch.addmm(log_prior, parts, torch.cat([self.spread, -totals]))
        joint, *given = _LogSum.apply(scores).split(len(codes))
        weight = self.plan.conditional
        weights = [*([weight] if weight else []), *[TARGET] * len(self.plan.targets)]
        loss = -joint.mean()
        for share, hidden in zip(weights, given, strict=True):
            loss = loss - share * (joint - hidden).mean()
        if not self.training:
            return loss
        prior = self._penalty(runs) + PSEUDO_ROWS * self._divergence(tables, totals)
        return loss + self.plan.shrinkage * (1 + weight / 2) * prior / self.rows

    def _runs(self) -> list[Tensor]:
        """Logits of neighbouring columns with as many codes, (columns, L, K, n) each."""
        left = iter(self.model.column_logits)
        sizes = runs_of(self.model.categories)
        return [torch.stack(list(itertools.islice(left, count))) for _, count in sizes]

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

    def _divergence(self, tables: Sequence[Tensor], totals: Tensor) -> Tensor:
        """Minus log-probabilities of rows of average frequencies, one for each component."""
        count = self.model.num_layers * self.model.num_components
        mean = torch.stack([(table @ self.frequency).mean() for table in tables]).sum()
        return count * (totals.mean(1).sum() - mean)

    def _penalty(self, runs: Sequence[Tensor]) -> Tensor:
        """Minus the log-density of logits under normals around the mean of a layer."""
        total = torch.zeros((), device=self.model.loc.device)
        columns = iter(self.ordered)
        for run in runs:
            apart = run - run.mean(2, keepdim=True)
            total = total + 0.5 * PRECISION * apart.square().sum()
            near = list(itertools.islice(columns, len(run)))
            if run.shape[-1] > 2 and any(near):
                steps = apart[near].diff(dim=-1)
                total = total + 0.5 * SMOOTHNESS * steps.square().sum()
        return total

    def learning_rate_factor(self, progress: float) -> float:
        """Up within a twentieth of training, down in its second half."""
        return min(1.0, 0.02 + 20 * progress) * min(1.0, 2 - 2 * progress)


def _log_totals(logits: Tensor) -> Tensor:
    r"""What normalises columns, :math:`\log \sum_c e^{\sum_l t_{lj}[h_l, c]}`.

    Sums of products of exponentials are matrix products, so that the probabilities of all codes
    need not be written out.

    Args:
        logits: Of the layers, (J, L, K, n).

    Returns:
        Tensor of shape (J, K^L).
    """
    peaks = logits.detach().amax(-1)  # (J, L, K)
    parts = (logits - peaks.unsqueeze(-1)).exp().unbind(1)
    product, peak = parts[0], peaks[:, 0]
    for layer, part in enumerate(parts[1:-1], 1):
        product = (product.unsqueeze(2) * part.unsqueeze(1)).flatten(1, 2)
        peak = (peak.unsqueeze(2) + peaks[:, layer].unsqueeze(1)).flatten(1)
    if len(parts) == 1:
        return product.sum(-1).log() + peak
    total = (product @ parts[-1].mT).flatten(1)
    peak = (peak.unsqueeze(2) + peaks[:, -1].unsqueeze(1)).flatten(1)
    return total.clamp(min=LEAST).log() + peak


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
