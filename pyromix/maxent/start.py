"""The start of a search: near a normal law, mapped onto the support."""

__all__ = ["gaussian_on", "move_to"]

import contextlib
import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Size, Tensor
from torch.distributions import Distribution, Transform, biject_to

from ..core.module import DistributionModule
from ..training.fit import adam
from .draws import Sampler
from .expectations import Expectations

NUM_DRAWS = 4096


# Farther from the targets than so many deviations of a statistic, a standard normal is no start:
# a search moves by half a deviation a round.
FAR = 5.0

# A location and a scale of every coordinate are sought with so many draws, by so many steps.
FITTING_DRAWS = 1024
FITTING_STEPS = 500
FITTING_RATE = 0.1
CLOSE = 0.05  # deviations at which to stop


def gaussian_on(distribution: Any, expectations: Expectations) -> Distribution:
    """Returns a normal law, mapped onto the support of a distribution.

    It is a standard one, unless the targets lie far from that: then location and scale of every
    coordinate are those that lower the violation most.

    Args:
        distribution: The distribution.
        expectations: The constraints.

    Raises:
        ValueError: If there is no bijection from real vectors to the support.
    """
    try:
        transform = biject_to(distribution.support)
    except NotImplementedError as error:
        raise ValueError(
            f"Expected a support that PyTorch has a bijection to, got {distribution.support}. "
            f"Pass start=None, or a distribution on the support to start from."
        ) from error
    shape = transform.inverse_shape(distribution.event_shape)
    normal = dist.Normal(*_location_and_scale(expectations, transform, shape))
    law: Any = dist.TransformedDistribution(normal.to_event(len(shape)), [transform])
    return law


def _location_and_scale(
    expectations: Expectations, transform: Transform, shape: Size
) -> tuple[Tensor, Tensor]:
    """Location and scale of the normal law, both of the shape of a draw before the transform."""
    like = expectations.levels
    # Of their own, so that whatever is drawn later does not depend on the way taken here.
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(FITTING_DRAWS, *shape, generator=generator).to(like)
    standard = torch.zeros(shape).to(like), torch.ones(shape).to(like)
    # Both grow by a factor with every step, however far they have to go.
    raw_loc, log_scale = (torch.zeros(shape).to(like).requires_grad_() for _ in range(2))
    optimizer = torch.optim.Adam([raw_loc, log_scale], lr=FITTING_RATE)
    plan = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, FITTING_STEPS)
    best, found = math.inf, standard
    for step in range(FITTING_STEPS):
        loc, scale = raw_loc.sinh(), log_scale.exp()
        try:
            values = expectations.values(transform(loc + scale * noise))
        except ValueError:  # not finite so far out
            break
        violation = expectations.violation(values.mean(0))
        size = (violation / _spread(values)).square().sum()
        value = float(size.detach())
        if step == 0 and value <= FAR**2:
            return standard
        if value < best:
            best, found = value, (loc.detach().clone(), scale.detach().clone())
        if not size.requires_grad or value < CLOSE**2:
            break
        optimizer.zero_grad()
        size.log().backward()
        optimizer.step()
        plan.step()
    return found


def _spread(values: Tensor) -> Tensor:
    """Standard deviations of statistics (n, m), shape (m,), where positive, and else one."""
    spread = values.detach().std(0)
    return torch.where(spread > 0, spread, 1.0)


def move_to(
    target: Distribution, distribution: Any, sampler: Sampler, steps: int, batch_size: int
) -> None:
    """Moves a distribution near another law, by minimising the divergence from it.

    If it can be initialised from data, it is, from draws of that law: the components of a mixture
    are then spread over all of it.

    Args:
        target: The other law.
        distribution: The distribution, whose parameters are changed.
        sampler: The way to draw from it with gradients.
        steps: Number of steps.
        batch_size: Draws in a step.
    """
    with torch.no_grad():
        draws = target.sample(Size((NUM_DRAWS,)))
    if isinstance(distribution, DistributionModule):
        with contextlib.suppress(NotImplementedError):  # of a flow that cannot be inverted
            distribution.initialize(draws)
    optimizer = adam([p for p in distribution.parameters() if p.requires_grad], lr=5e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        (own,) = sampler(batch_size)
        loss = own.mean(own.log_prob - target.log_prob(own.x))
        loss.backward()
        optimizer.step()
