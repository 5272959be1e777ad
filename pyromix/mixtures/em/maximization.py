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


def maximize(
    model: GaussianMixture, statistics: Statistics, point: float, *, expanded: bool = False
) -> None:
    """Sets a mixture's parameters to those of highest expected likelihood.

    Dead components keep their means and, where it is theirs, covariance.

    Args:
        model: The mixture.
        statistics: Sums over points.
        point: The weight of a point, on average.
        expanded: Of Student-t laws, whether to estimate the scale of the hidden factors, too,
            which the squared scales are then divided by: the likelihood rises as surely, in fewer
            steps (Liu, Rubin and Wu 1998), where no floor is reached.
    """
    weight = statistics.weight
    mass = weight if statistics.mass is None else statistics.mass
    tiny = torch.finfo(weight.dtype).tiny
    mean = statistics.first / mass.clamp(min=tiny).unsqueeze(-1)
    second = statistics.second - model.structure.outer(mass, mean)
    logits = (weight / weight.sum()).clamp(min=tiny).log()
    current = model._raw()
    alive = is_alive(weight, point)
    counts = mass if expanded else weight
    if bool(alive.all()):
        raw = model.structure.estimate(Moments(counts, second), current)
        raw |= _estimate_tails(model, statistics, len(second), expanded)
        model._assign(logits, statistics.reference + mean[:, : model.dim], raw)
        return
    kept = mean.clone()  # of factors, too, if there are
    kept[~alive, : model.dim] = (model.loc - statistics.reference)[~alive]
    second = second + model.structure.outer(mass, mean - kept)
    if len(second) == len(weight):
        # Any moments do where the estimate is not used, so long as it exists.
        counts = torch.where(alive, counts, 1.0)
        second[~alive] = second[alive].sum(0) / counts[alive].sum()
    raw = model.structure.estimate(Moments(counts, second), current)
    raw |= _estimate_tails(model, statistics, len(second), expanded)
    current = current | model._raw_tails()
    for name, value in raw.items():
        if len(value) == len(weight):
            value[~alive] = current[name][~alive]
    model._assign(logits, statistics.reference + kept[:, : model.dim], raw)


def _estimate_tails(
    model: GaussianMixture, statistics: Statistics, num_scales: int, expanded: bool
) -> dict[str, Tensor]:
    """The parameters of the tails: none of normals."""
    tails, mass, weight = model.student_tails, statistics.mass, statistics.weight
    if tails is None or mass is None or statistics.log_factor is None:
        return {}
    shrink = torch.ones_like(weight)
    if expanded:
        tiny = torch.finfo(weight.dtype).tiny
        own = mass / weight.clamp(min=tiny)
        # Components that share their scales share the hidden factors' scale.
        shrink = own if num_scales == len(weight) else (mass.sum() / weight.sum()).expand_as(own)
        shrink = shrink.clamp(min=tiny)
    return tails.estimate(weight, mass, statistics.log_factor, shrink)


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
