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
from .metric import Spread

NUM_DRAWS = 4096


# Farther from the targets than so many deviations of a statistic, a standard normal is no start:
# a search moves by half a deviation a round.
FAR = 5.0

# A location and a scale of every coordinate are sought with so many draws, in so many steps; each
# needs a gradient of every statistic, of which there is a largest number in all.
FITTING_DRAWS = 1024
FITTING_STEPS = 100
FITTING_GRADIENTS = 4000
CLOSE = 0.05  # deviations at which to stop

# Logarithms of scales change by so much at most in a step; steps that overshoot are halved.
LARGEST_CHANGE = 1.0
HALVINGS = 20

# Share of the best distance that a better one must come below.
PROGRESS = 0.99

# Where locations and scales would both do, locations move: a change in a logarithm of a scale
# counts as a change by so many deviations.
RELUCTANCE = 10.0

# Directions that the statistics depend on less than by this share of the most are left alone.
LEAST_SLOPE = 1e-3


def gaussian_on(distribution: Any, expectations: Expectations) -> Distribution | None:
    """Returns a normal law, mapped onto the support of a distribution.

    It is a standard one, unless the targets lie far from that: then location and scale of every
    coordinate are those that lower the violation most. There is none on a discrete support.

    Args:
        distribution: The distribution.
        expectations: The constraints.

    Raises:
        ValueError: If there is no bijection from real vectors to the support.
    """
    try:
        if distribution.support.is_discrete:
            return None
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
    noise = torch.randn(FITTING_DRAWS // 2, *shape, generator=generator).to(like)
    noise = torch.cat([noise, -noise])
    # Statistics of draws far out differ by little of their size. Some functions have tensors of
    # their own, and take one dtype alone.
    with contextlib.suppress(RuntimeError, ValueError), torch.no_grad():
        expectations.values(transform(noise.double()))
        noise = noise.double()

    def statistics(place: Tensor) -> Tensor | None:
        """Statistics of normal draws, (n, m); None where some are not finite."""
        try:
            return expectations.values(transform(place[0] + place[1] * noise))
        except ValueError:
            return None

    def violation(values: Tensor) -> Tensor:
        return expectations.violation(values.mean(0))

    place = torch.stack([torch.zeros(shape), torch.ones(shape)]).to(noise)
    best, found = math.inf, place
    for step in range(max(10, min(FITTING_STEPS, FITTING_GRADIENTS // len(like)))):
        place = place.detach().requires_grad_()
        values = statistics(place)
        if values is None:
            break
        spread = Spread.of(values).apart(expectations.is_inequality)
        size = spread.length(violation(values))
        if step == 0 and size <= FAR:
            break
        if size < PROGRESS * best:  # some laws get narrower without end, and no nearer
            best, found = size, place.detach()
        if size < CLOSE or not values.requires_grad:
            break
        change = _newton_step(expectations, spread, values.mean(0), place)
        # Nearer in the present metric: in one of its own, a law can be near by being wide.
        for _ in range(HALVINGS):
            with torch.no_grad():
                trial = torch.stack([place[0] + place[1] * change[0], place[1] * change[1].exp()])
                values = statistics(trial)
            if values is not None and spread.length(violation(values)) < size:
                break
            change = change / 2
        else:
            break
        place = trial
    loc, scale = found.to(like)
    return loc, scale


def _newton_step(
    expectations: Expectations, spread: Spread, means: Tensor, place: Tensor
) -> Tensor:
    """The shortest step (2, *shape) that would end the violation if means were linear in it.

    It is in units of the scale for locations, and in the logarithm for scales.

    Args:
        expectations: The constraints.
        spread: Of the statistics.
        means: Of the statistics, shape (m,), as a function of
        place: location and scale, shape (2, *shape).
    """
    slopes = [
        torch.autograd.grad(mean, place, retain_graph=True, materialize_grads=True)[0]
        for mean in means.unbind()
    ]
    violation = expectations.violation(means.detach())
    slack = expectations.is_inequality & (violation == 0)
    jacobian = torch.stack(slopes) * place[1].detach()
    jacobian[:, 1] /= RELUCTANCE
    jacobian = spread.whiten(torch.where(slack.unsqueeze(-1), 0.0, jacobian.flatten(1)))
    step = torch.linalg.pinv(jacobian, rtol=LEAST_SLOPE) @ spread.whiten(violation.unsqueeze(-1))
    change = -step.reshape(place.shape)
    change[1] /= RELUCTANCE
    largest = float(change[1].abs().max())
    return (change * min(1.0, LARGEST_CHANGE / max(largest, 1e-12))).to(place)


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
        # Ends of a support may be double precision, and so log-densities next to them.
        aim = target.log_prob(own.x).to(own.log_prob)
        loss = own.mean(own.log_prob - aim)
        loss.backward()
        optimizer.step()
