"""The M-step of expectation maximisation: the parameters of highest expected likelihood."""

__all__ = ["is_alive", "maximize", "step_size"]

import torch
from torch import Tensor

from ..covariance import Moments
from ..learnable import GaussianMixture
from .statistics import Statistics

# A component that explains less than this many points, and than another one, is dead.
DEAD_POINTS = 0.5

# Weight of the t-th minibatch in the running averages: (t + 2)^-0.6.
STEP_POWER = 0.6


def maximize(model: GaussianMixture, statistics: Statistics, points: float) -> None:
    """Sets a mixture's parameters to those of highest expected likelihood.

    Dead components keep their means and, where it is theirs, covariance.

    Args:
        model: The mixture.
        statistics: Sums over points.
        points: The weight of a point, on average.
    """
    weight = statistics.weight
    tiny = torch.finfo(weight.dtype).tiny
    mean = statistics.first / weight.clamp(min=tiny).unsqueeze(-1)
    second = statistics.second - model.structure.outer(weight, mean)
    logits = (weight / weight.sum()).clamp(min=tiny).log()
    current = model._raw()
    alive = is_alive(weight, points)
    if bool(alive.all()):
        raw = model.structure.estimate(Moments(weight, second), current)
        model._assign(logits, statistics.reference + mean[:, : model.dim], raw)
        return
    kept = mean.clone()  # of factors, too, if there are
    kept[~alive, : model.dim] = (model.loc - statistics.reference)[~alive]
    second = second + model.structure.outer(weight, mean - kept)
    counts = weight
    if len(second) == len(weight):
        # Any moments do where the estimate is not used, so long as it exists.
        counts = torch.where(alive, weight, 1.0)
        second[~alive] = second[alive].sum(0) / weight[alive].sum()
    raw = model.structure.estimate(Moments(counts, second), current)
    for name, value in raw.items():
        if len(value) == len(weight):
            value[~alive] = current[name][~alive]
    model._assign(logits, statistics.reference + kept[:, : model.dim], raw)


def is_alive(weight: Tensor, point: float = 1.0) -> Tensor:
    """Which components (K,) have points, given the weight that each explains.

    The heaviest always has: of few points, each of many components may explain less than half
    of one.

    Args:
        weight: Sums of responsibilities, (K,).
        point: The weight of a point.
    """
    return weight >= weight.max().clamp(max=DEAD_POINTS * point)


def step_size(step: int) -> float:
    """Weight of the t-th minibatch in running averages (Cappe and Moulines 2009)."""
    return float((step + 2) ** -STEP_POWER)
