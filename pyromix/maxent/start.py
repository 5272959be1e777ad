"""The start of a search: near a normal law, mapped onto the support."""

__all__ = ["gaussian_on", "move_to"]

import contextlib
from typing import Any

import pyro.distributions as dist
import torch
from torch import Size, Tensor
from torch.distributions import Distribution, biject_to

from ..core.module import DistributionModule
from ..training.fit import adam
from .draws import Sampler

NUM_DRAWS = 4096


def gaussian_on(distribution: Any, like: Tensor) -> Distribution:
    """Returns a standard normal law, mapped onto the support of a distribution.

    Args:
        distribution: The distribution.
        like: A tensor of the dtype and on the device that are wanted.

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
    normal = dist.Normal(torch.zeros(shape).to(like), torch.ones(shape).to(like))
    law: Any = dist.TransformedDistribution(normal.to_event(len(shape)), [transform])
    return law


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
