r"""Draws through branching transforms whose gradients, with a score, are unbiased.

A draw x of a branching transform is a smooth function of z given its branch k. That leaves two
things to account for when an expectation of f(x) is differentiated. The branches' probabilities
change: that is the score function's part, f times the gradient of log p(k|z). And, easily
overlooked, z may leave the range in which there are several branches. There the mean of f over
the branches jumps, and a jump that moves contributes a term of its own, which no single draw sees.

It is avoided by moving draws near such a boundary along with the boundary. For a law p of z, whose
draws move with velocity v as a parameter changes, and any continuous field c, the divergence
theorem says that velocities v + c are as good with the score
:math:`\nabla \cdot (p c) / p` added. With c = Φ (w - v), for a window Φ that is 1 on the boundary
and falls to 0 around it, and w the velocity of the fold's own frame, the sum v + c is w on the
boundary: nothing crosses it. As draws satisfy
:math:`\partial_\theta \log p + v \cdot \nabla \log p + \nabla \cdot v = s` with s the scores so
far, the new ones are

.. math:: (1 - Φ) s + Φ (\partial_\theta \log p + w \cdot \nabla \log p + \nabla \cdot w)
          + \nabla Φ \cdot (w - v),

in which everything is known: in the frame's coordinate u, in which w rests,
:math:`\nabla Φ \cdot (w - v)` is minus the derivative of Φ times the velocity of u. Within windows
gradients are those of the score function, outside of them pathwise.
"""

__all__ = ["BranchScores", "draw_with_scores"]

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions.utils import _sum_rightmost

from .branching import BranchingTransform

WINDOW = 0.5  # its reach, in half-widths of the fold


class _Step(NamedTuple):
    """What the score of a draw needs of a branching transform."""

    window: Tensor
    """Φ, of the shape of the scores."""
    log_size: Tensor
    """That of the frame, whose gradient is the divergence of w."""
    rest: Tensor
    """Log-probability of the branch, and the term in the slope of the window."""


class BranchScores:
    """Scores of draws, once the log-densities are known where the draws came by.

    Args:
        before: Scores of the base's draws.
    """

    def __init__(self, before: Tensor | float) -> None:
        self.before = before
        self.moved: dict[int, Tensor] = {}
        """By the index of each branching transform, draws before it, as they move in its frame."""
        self._steps: dict[int, _Step] = {}

    def add(self, index: int, moved: Tensor, step: _Step) -> None:
        """Adds a branching transform, after those before it."""
        self.moved[index], self._steps[index] = moved, step

    def score(self, log_density: Mapping[int, Tensor]) -> Tensor:
        """Scores of shape ``sample_shape + batch_shape``, whose values mean nothing.

        Args:
            log_density: For every index in `moved`, the log-density of the values there.
        """
        total = self.before
        for i, (window, log_size, rest) in self._steps.items():
            total = (1 - window) * total + window * (log_density[i] + log_size) + rest
        return torch.as_tensor(total)


def draw_with_scores(
    z: Tensor,
    transforms: Sequence[Any],
    surplus: Sequence[int],
    event_dim: int,
    before: Tensor | float = 0.0,
) -> tuple[Tensor, BranchScores]:
    """Pushes draws of a base through transforms.

    Args:
        z: Draws with pathwise gradients.
        transforms: From the base to the sample.
        surplus: For each, the dimensions by which the event exceeds the transform's own.
        event_dim: Number of event dimensions.
        before: Scores of the base's draws, of shape ``sample_shape + batch_shape``.

    Returns:
        Draws of shape ``sample_shape + batch_shape + event_shape``, and their scores: the gradient
        of an expectation of f(x) is that of f(x), plus f(x), as a constant, times the gradient of
        the score.
    """
    scores = BranchScores(before)
    for i, (transform, extra) in enumerate(zip(transforms, surplus, strict=True)):
        if not isinstance(transform, BranchingTransform):
            z = transform(z)
            continue
        frame = transform.frame(z)
        fixed = z.detach()
        window, slope = _window(frame.position.detach(), extra + 1)
        across = -_sum_rightmost(slope * frame.position, extra + 1)
        share = window.reshape(window.shape + (1,) * event_dim)
        z = fixed + (1 - share) * (z - fixed) + share * (frame.moved - fixed)
        x = transform.draw(z)
        chosen = _sum_rightmost(transform.log_branch_prob(z, x), extra)
        log_size = _sum_rightmost(frame.log_size, extra)
        scores.add(i, frame.moved, _Step(window, log_size, across + chosen))
        z = x
    return z, scores


def _window(position: Tensor, event_dim: int) -> tuple[Tensor, Tensor]:
    """The window's value for every event, and its derivative in the positions."""
    dims = tuple(range(-event_dim, 0))
    apart = (position.abs() - 1).abs()
    nearest = apart.amin(dims, keepdim=True)
    window = torch.relu(1 - nearest / WINDOW)
    slope = (1 - position.abs()).sign() * position.sign() / WINDOW
    return window.squeeze(dims), torch.where((apart == nearest) & (window > 0), slope, 0.0)
