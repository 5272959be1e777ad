r"""Mixtures of normals that follow a density by natural gradients.

The bound of a mixture q is maximised over each component and over the weights in turn, where

.. math:: R(z) = \log p(z) - \log q(z)

is the reward of a point. With the expectations of its gradient and Hessian under component k,

.. math:: g = E_k[\nabla R], \qquad H = E_k[\nabla^2 R]
    = E_k\big[\Sigma^{-1} (z - m) \, (\nabla R)^\top\big]

(Stein's lemma: first derivatives are enough), a natural-gradient step of size b is

.. math:: \Sigma'^{-1} = \Sigma^{-1} - b H, \qquad m' = m + b \Sigma' g, \qquad
    \log w' = \log w + b E_k[R] + \text{const}

(Arenz et al., "A unified perspective on natural gradient variational inference with Gaussian
mixture models", 2023). The size is the largest up to one by which no component moves farther than
a trust region allows, in Kullback-Leibler divergence.
"""

__all__ = ["Annealing", "climb"]

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..mixtures import MixtureOfMultivariateNormals
from ..numerics.triangular import cholesky_of_rows, inverse_tril
from .annealing import Density, value_and_slope

# Batches of draws that a step looks at: its own, and those before.
KEPT = 3
# Bounds of so many steps are compared with as many before; what they rise by far from the end.
WATCHED, RISE = 5, 0.5
# Halvings by which a step size is found.
HALVINGS = 25
# Steps that would shrink a precision below this share of itself are shortened.
LEAST_PRECISION = 1e-2
# Farthest that weights are moved in a step; no weight falls below the least.
FARTHEST_WEIGHTS, LEAST_LOG_WEIGHT = 0.1, -30.0


class Annealing(NamedTuple):
    """Trust regions of the first step and of the last, in nats of divergence."""

    first: float
    last: float

    def at(self, share: float) -> float:
        """The trust region after a share of the steps."""
        return self.first * (self.last / self.first) ** share


class _Batch(NamedTuple):
    """Draws, as many of each component."""

    z: Tensor
    """Shape (n, D)."""
    target: Tensor
    """Their log-densities, (n,)."""
    gradient: Tensor
    """The gradients of these, (n, D)."""
    proposal: Tensor
    """Logarithms of the sum of the densities of the components that they were drawn from, (n,)."""
    own: Tensor
    """Log-densities of these components, (n, K)."""


def climb(
    target: Density,
    law: MixtureOfMultivariateNormals,
    *,
    steps: int,
    most: int,
    each: int,
    diagonal: bool = False,
    annealing: Annealing,
    after: Callable[[float], None],
) -> MixtureOfMultivariateNormals:
    """Moves a mixture of normals towards a density by natural gradients.

    Args:
        target: Log-densities (n,) of points (n, D), up to a constant; differentiable.
        law: The mixture to start from, in float64.
        steps: Number of steps in which the trust region shrinks. Before, it stays as long as the
            bound rises.
        most: Most steps in all.
        each: Draws of each component in a step.
        diagonal: Whether covariances are diagonal, and stay so.
        annealing: Trust regions.
        after: Called after each step with an estimate of the bound.

    Returns:
        The mixture after the last step.
    """
    batches: list[_Batch] = []
    bounds: list[float] = []
    arrived = False
    step = 0
    while step < steps and len(bounds) < most:
        batches = [*batches, _draw(target, law, each)][-KEPT:]
        law, bound = _step(law, batches, annealing.at(step / steps), diagonal)
        after(bound)
        bounds.append(bound)
        arrived = arrived or _has_arrived(bounds)
        step += arrived
    return law


def _has_arrived(bounds: list[float]) -> bool:
    """Whether bounds rise no more, but for what is left to narrower trust regions."""
    if len(bounds) < 2 * WATCHED:
        return False
    new, old = sum(bounds[-WATCHED:]), sum(bounds[-2 * WATCHED : -WATCHED])
    return not new - old > WATCHED * RISE


def _draw(target: Density, law: MixtureOfMultivariateNormals, each: int) -> _Batch:
    noise = torch.randn(law.num_components, each, law.loc.shape[-1]).to(law.loc)
    z = (law.loc.unsqueeze(1) + noise @ law.scale_tril.mT).flatten(0, 1)
    value, gradient = value_and_slope(target, z)
    own = law._joint_log_prob(z) - law.logits.log_softmax(-1)
    return _Batch(z, value, gradient, own.logsumexp(-1), own)


def _step(
    law: MixtureOfMultivariateNormals, batches: list[_Batch], radius: float, diagonal: bool
) -> tuple[MixtureOfMultivariateNormals, float]:
    """The mixture after a step, and the bound before it. The last batch is of the mixture."""
    z, value, gradient, proposal = (
        torch.cat(part) for part in zip(*(batch[:4] for batch in batches), strict=True)
    )
    log_weight = law.logits.log_softmax(-1)
    *older, newest = batches  # what the newest were drawn from is the mixture itself
    own = torch.cat([*(law._joint_log_prob(b.z) - log_weight for b in older), newest.own])
    joint = own + log_weight
    log_q = joint.logsumexp(-1)
    fine = value.isfinite()
    # Each batch has draws of all components, which are those of any one by their weights.
    share = torch.where(fine.unsqueeze(-1), own - proposal.unsqueeze(-1), -torch.inf)
    share = share.softmax(0).T.nan_to_num(0.0)  # (K, n)
    inverse = inverse_tril(law.scale_tril)
    precision = inverse.mT @ inverse
    responsibility = (joint - log_q.unsqueeze(-1)).exp()
    pulls = responsibility @ (precision @ law.loc.unsqueeze(-1)).squeeze(-1)
    weighted = (responsibility @ precision.flatten(1)).unflatten(1, precision.shape[1:])
    slope = gradient - pulls + (weighted @ z.unsqueeze(-1)).squeeze(-1)
    reward = torch.where(fine, value - log_q, 0.0)

    mean_reward = share @ reward
    mean_slope = share @ slope
    # E[(z - m) (dR - E dR)^T], of less variance than without the mean.
    around = (share.unsqueeze(-1) * z).mT @ slope
    around = around - (share @ z).unsqueeze(-1) * mean_slope.unsqueeze(-2)
    tril = law.scale_tril
    curvature = inverse @ around @ tril
    curvature = 0.5 * (curvature + curvature.mT)
    largest = torch.ones_like(law.logits)
    if diagonal:
        # Precisions that are not the target's do not divide out its Hessian: whole steps of means
        # would overshoot where it has large eigenvalues.
        identity = torch.eye(tril.shape[-1]).to(tril)
        highest = torch.linalg.eigvalsh(identity - curvature).amax(-1)
        curvature = torch.diag_embed(curvature.diagonal(dim1=-2, dim2=-1))
        least = -curvature.diagonal(dim1=-2, dim2=-1).amax(-1)
        largest = (highest - least).clamp(min=1).reciprocal()
    change, turn = torch.linalg.eigh(-curvature)
    push = (turn.mT @ tril.mT @ mean_slope.unsqueeze(-1)).squeeze(-1)
    size = _within(lambda b: _divergence(b.unsqueeze(-1), change, push), radius, largest)
    grown = 1 + size.unsqueeze(-1) * change
    shift = tril @ turn @ (size.unsqueeze(-1) / grown * push).unsqueeze(-1)
    factor = tril @ turn * grown.rsqrt().unsqueeze(-2)

    def moved(b: Tensor) -> Tensor:
        new = (log_weight + b * mean_reward).log_softmax(-1)
        return (new.exp() * (new - log_weight)).sum(-1, keepdim=True)

    weight_size = _within(moved, min(radius, FARTHEST_WEIGHTS), torch.ones_like(log_weight[:1]))
    logits = (log_weight + weight_size * mean_reward).log_softmax(-1)
    new = MixtureOfMultivariateNormals(
        logits.clamp(min=LEAST_LOG_WEIGHT),
        law.loc + shift.squeeze(-1),
        cholesky_of_rows(factor),
        validate_args=False,
    )
    return new, float(log_weight.exp() @ mean_reward)


def _divergence(size: Tensor, change: Tensor, push: Tensor) -> Tensor:
    """How far a step moves a component, (K,), in coordinates where it is a standard normal.

    Args:
        size: The step's size, (K, 1).
        change: Changes of its precision along the axes, (K, D).
        push: Gradients along them, (K, D).
    """
    grown = 1 + size * change
    valid = (grown > LEAST_PRECISION).all(-1)
    grown = grown.clamp(min=LEAST_PRECISION)
    shift = size / grown * push
    distance = 0.5 * (1 / grown - 1 + grown.log() + shift.square()).sum(-1)
    return torch.where(valid, distance, torch.inf)


def _within(distance: Callable[[Tensor], Tensor], radius: float, largest: Tensor) -> Tensor:
    """The largest sizes of a distance within a radius, up to those given."""
    low, high = torch.zeros_like(largest), largest
    whole = distance(largest) <= radius
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        inside = distance(middle) <= radius
        low, high = torch.where(inside, middle, low), torch.where(inside, high, middle)
    return torch.where(whole, largest, low)
