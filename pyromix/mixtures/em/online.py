"""Expectation maximisation of a mixture by batches that come but once."""

__all__ = ["OnlineEM"]

import copy
import math
from typing import Any

import torch
from torch import Tensor

from ...core.checks import check_count, number
from ...core.conversions import TensorLike
from ..learnable import GaussianMixture
from ..low_rank_covariance import MixtureOfLowRankNormals
from ..student import MixtureOfStudentT
from .factors import second_moments
from .fit_em import check_fittable, fit_em
from .maximization import maximize, step_size
from .rows import Rows, gathered
from .statistics import Statistics
from .student import make_expectation

# Rows for each component that are waited for before a start, and iterations that it takes.
ROWS_PER_COMPONENT = 20
START_STEPS = 20


class OnlineEM:
    r"""Fits a mixture to a stream, a batch at a time: each is seen once, and need not be kept.

    Running averages of the sufficient statistics stand in for those of all data (Cappe and
    Moulines, "On-line expectation-maximization algorithm for latent data models", 2009):

    .. math:: s_t = (1 - \gamma_t) s_{t-1} + \gamma_t \bar s(x_t), \qquad
              \gamma_t = \max\big((t + 2)^{-0.6}, \text{forget}\big)

    The first batches are kept until they are enough to start from clusters.

    Args:
        model: A mixture without context, fitted in place.
        forget: The smallest weight of a new batch. Zero, for a law that does not change: averages
            settle. A law that drifts is followed with 0.05, say: batches before the last twenty
            or so are forgotten.
        num_batches: Where the model is trained already: how many batches it stands for. The
            fewer, the more the next ones change it.

    Attributes:
        num_batches: How many batches were used.

    Raises:
        ValueError: If the model is not such a mixture, or `forget` is not from 0 to less than 1.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> model = GaussianMixture(dim=1, num_components=2)
        >>> online = OnlineEM(model)
        >>> for _ in range(50):
        ...     log_prob = online.update(torch.randn(100, 1) + torch.tensor([[-3.0], [3.0]] * 50))
        >>> model.law.loc.flatten().sort().values.round().tolist()
        [-3.0, 3.0]
    """

    def __init__(
        self, model: GaussianMixture, *, forget: float = 0.0, num_batches: int = 10
    ) -> None:
        check_fittable(model)
        trained = bool(model.initialized)
        self.model, self.forget = model, number(0, 1)("forget", forget)
        num_batches = check_count("num_batches", num_batches)
        self.num_batches = num_batches if trained else 0
        self._centre = torch.zeros_like(model.loc[0], dtype=torch.float64)
        self._average: Statistics | None = None
        self._kept: list[tuple[Tensor, Tensor]] = []

    @torch.no_grad()
    def update(self, batch: TensorLike, sample_weight: TensorLike | None = None) -> float:
        """Learns from a batch.

        Args:
            batch: Rows, (n, D): a tensor, an array or nested lists.
            sample_weight: Their weights, (n,); by default all are one.

        Returns:
            Mean log-density of the batch under the mixture before; NaN as long as batches are
            kept for the start.

        Raises:
            ValueError: If the batch does not fit, or is not finite.
        """
        model = self.model
        missing = model.missing == "marginalize"
        x, weight = gathered(batch, sample_weight, like=model.loc, missing=missing)
        if bool(model.initialized):
            return self._learn(x, weight)
        self._kept.append((x, weight))
        if sum(len(part) for part, _ in self._kept) >= ROWS_PER_COMPONENT * model.num_components:
            x, weight = (torch.cat(parts) for parts in zip(*self._kept, strict=True))
            self._kept = []
            fit_em(model, x, sample_weight=weight, steps=START_STEPS, progress_bar=False)
            self._learn(x, weight, alone=True)
        return math.nan

    def _learn(self, x: Tensor, weight: Tensor, *, alone: bool = False) -> float:
        """Adds the statistics of rows (n, D) to the averages, and maximises."""
        model = copy.deepcopy(self.model).double()
        units = copy.deepcopy(model.units)
        model.units.loc.zero_()
        model.units.scale.fill_(1.0)
        if self._average is None:  # near the origin sums of squares cancel less
            self._centre = model.law._centre.clone()
        model.loc.sub_(self._centre)
        total = float(weight.sum())
        rows = Rows.of(units(x) - self._centre, weight)
        expectation: Any = make_expectation(model, rows)
        own: Statistics = expectation.around_origin(model.law).times(1 / total)
        log_scale = torch.where(x.isnan(), 0.0, units.scale.log()).sum(-1)
        log_prob = float(own.log_prob) - float(weight @ log_scale) / total
        if alone:
            self._average = own
        else:
            before = statistics_of(model) if self._average is None else self._average
            rate = max(step_size(self.num_batches), self.forget)
            self._average = before.times(1 - rate).plus(own.times(rate))
        self.num_batches += 1
        # A component is dead that explains less than half a row of a batch of this size.
        maximize(model, self._average, 1 / len(x))
        model.loc.add_(self._centre)
        for name, parameter in model._parameters_of_law().items():
            getattr(self.model, name).data.copy_(parameter)
        return log_prob


def statistics_of(model: GaussianMixture) -> Statistics:
    """What is expected of the statistics of a point, around the origin, by the mixture itself."""
    law: Any = model.law
    structure, tails = model.structure, {}
    weight, loc = law.logits.exp(), law.loc
    if isinstance(law, MixtureOfStudentT):  # of hidden factors g with E[g] = 1
        half = 0.5 * law.df
        log_factor = torch.where(half.isinf(), 0.0, half.digamma() - half.log())
        tails = {"mass": weight, "log_factor": weight * log_factor}
        law = law._normals
    if isinstance(law, MixtureOfLowRankNormals):  # whose factors z have E[x z^T] = W
        rank = law._factor.shape[-1]
        identity = torch.eye(rank, dtype=loc.dtype, device=loc.device).expand(len(loc), -1, -1)
        within = second_moments(law.component_variance, law._factor, identity)
        loc = torch.cat([loc, loc.new_zeros(len(loc), rank)], -1)
    elif structure.full_moments:
        within = law.component_covariance
    else:
        within = law.component_variance
    within = weight.reshape(-1, *[1] * (within.dim() - 1)) * within
    second = structure.pool(within) + structure.outer(weight, loc)
    none = law.mean.new_zeros(())
    first = weight.unsqueeze(-1) * loc
    return Statistics(none, weight, first, second, torch.zeros_like(law.loc), **tails)
