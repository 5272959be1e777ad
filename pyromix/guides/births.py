"""Components that are added to a mixture where draws of a density tell that it is too thin."""

__all__ = ["add_components", "drop_idle", "plausible"]

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..mixtures import MixtureOfMultivariateNormals
from ..numerics.triangular import whiten_components
from .annealing import Density

# Points that new components may start from, and what they may weigh.
PLACES = 150
WEIGHTS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
# Gain in mean log-density, in nats, below which no component is added.
LEAST_GAIN = 0.002
# Draws whose log-density is farther below the highest are not draws of the density: moves failed.
# So many nats, and so many more for each dimension.
DEPTH, DEPTH_OF_DIMENSION = 20.0, 3.0
# Log-densities that are missed by more than this count alike.
MOST_MISSED = 50.0
# Components of less weight are dropped.
IDLE = 1e-5


def add_components(
    law: MixtureOfMultivariateNormals, draws: Tensor, log_density: Tensor, most: int
) -> MixtureOfMultivariateNormals:
    r"""Adds components one by one, each the one that raises the mean log-density of draws most.

    This is greedy maximum likelihood (Verbeek, Vlassis and Kröse, "Efficient greedy learning of
    Gaussian mixture models", 2003). New components come from a pool around draws that the
    mixture misses: with the covariance of the component that has most of the draw, with a quarter
    of it, or, where tails are too thin, around that component's own mean, wide enough to reach
    the draw. None is fitted to few draws, so that they may be fewer than numbers in a covariance.

    Args:
        law: The mixture of K normals.
        draws: Points that are nearly draws of the density, (n, D).
        log_density: Log-densities there, up to a constant, (n,).
        most: Most components to add.

    Returns:
        The mixture, with up to K + `most` components.
    """
    if not len(draws) or most < 1:
        return law
    log_q = law.log_prob(draws)
    loc, tril = _pool(law, draws, log_density - log_q)
    pool = MixtureOfMultivariateNormals(torch.zeros(len(loc)).to(loc), loc, tril, False)
    scores = pool._joint_log_prob(draws) + math.log(len(loc))  # (n, J)
    chosen: list[tuple[int, float]] = []
    for _ in range(most):
        gain, place, weight = max(_best(log_q, scores, weight) for weight in WEIGHTS)
        if gain < LEAST_GAIN:
            break
        chosen.append((place, weight))
        log_q = _mixed(log_q, scores[:, place], weight)
    return _with(law, chosen, loc, tril)


def plausible(draws: Tensor, target: Density, highest: float) -> tuple[Tensor, Tensor]:
    """Draws (n, D) that may be of a target, and their log-densities (n,).

    Draws that were moved to it, but were caught far below, are left out.

    Args:
        draws: The draws, (m, D).
        target: Log-densities of points.
        highest: The highest that is known.
    """
    log_density = target(draws)
    log_density = torch.where(log_density.isfinite(), log_density, -torch.inf)
    highest = max(highest, float(log_density.max()))
    kept = log_density > highest - DEPTH - DEPTH_OF_DIMENSION * draws.shape[-1]
    return draws[kept], log_density[kept]


def drop_idle(law: MixtureOfMultivariateNormals, most: int) -> MixtureOfMultivariateNormals:
    """The mixture without components that have next to no weight.

    Args:
        law: The mixture.
        most: Most components that are kept: the heaviest.
    """
    weights, order = law.logits.softmax(-1).sort(descending=True)
    kept = order[:most][weights[:most] >= IDLE]
    return MixtureOfMultivariateNormals(
        law.logits[kept], law.loc[kept], law.scale_tril[kept], validate_args=False
    )


def _pool(
    law: MixtureOfMultivariateNormals, draws: Tensor, missed: Tensor
) -> tuple[Tensor, Tensor]:
    """Means (J, D) and factors (J, D, D) of components that may be added.

    Args:
        law: The mixture.
        draws: Draws of the density, (n, D).
        missed: By how much their log-densities are above the mixture's, (n,).
    """
    weight = (missed - missed.min()).clamp(max=MOST_MISSED) + 1e-6
    index = torch.multinomial(weight, min(PLACES, len(draws)))
    places = draws[index]
    nearest = law._joint_log_prob(places).argmax(-1)
    own, tril = law.loc[nearest], law.scale_tril[nearest]
    away = whiten_components(tril, (places - own))
    reach = away.square().mean(-1).sqrt()
    return (
        torch.cat([places, places, own]),
        torch.cat([tril, 0.5 * tril, reach[:, None, None] * tril]),
    )


def _mixed(log_q: Tensor, scores: Tensor, weight: float) -> Tensor:
    """Log-densities of a mixture with a component of some weight."""
    return torch.logaddexp(log_q + math.log1p(-weight), scores + math.log(weight))


def _best(log_q: Tensor, scores: Tensor, weight: float) -> tuple[float, int, float]:
    """The largest gain by a component of the pool with this weight, its place and the weight."""
    gain = _mixed(log_q.unsqueeze(-1), scores, weight).mean(0) - log_q.mean()
    place = int(gain.argmax())
    return float(gain[place]), place, weight


def _with(
    law: MixtureOfMultivariateNormals,
    chosen: Sequence[tuple[int, float]],
    loc: Tensor,
    tril: Tensor,
) -> MixtureOfMultivariateNormals:
    """The mixture with components of the pool, in the order in which they were added."""
    logits = law.logits.log_softmax(-1)
    for _, weight in chosen:
        own = logits.new_tensor([math.log(weight)])
        logits = torch.cat([logits + math.log1p(-weight), own])
    places = [place for place, _ in chosen]
    return MixtureOfMultivariateNormals(
        logits,
        torch.cat([law.loc, loc[places]]),
        torch.cat([law.scale_tril, tril[places]]),
        validate_args=False,
    )
