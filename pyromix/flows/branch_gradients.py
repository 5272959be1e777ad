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

__all__ = ["draw_with_score"]

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions.utils import _sum_rightmost

from .branching import BranchingTransform

WINDOW = 0.5  # its reach, in half-widths of the fold


def draw_with_score(
    z: Tensor,
    transforms: Sequence[Any],
    surplus: Sequence[int],
    event_dim: int,
    log_density: Callable[[int, Tensor], Tensor],
    before: Tensor | float = 0.0,
) -> tuple[Tensor, Callable[[], Tensor]]:
    """Pushes draws of a base through transforms.

    Args:
        z: Draws with pathwise gradients.
        transforms: From the base to the sample.
        surplus: For each, the dimensions by which the event exceeds the transform's own.
        event_dim: Number of event dimensions.
        log_density: From i and values to the log-density before the i-th transform.
        before: Scores of the base's draws, of shape ``sample_shape + batch_shape``.

    Returns:
        Draws of shape ``sample_shape + batch_shape + event_shape``, and a function that computes
        scores, of shape ``sample_shape + batch_shape``: the gradient of an expectation of f(x) is
        that of f(x), plus f(x), as a constant, times the gradient of the score. Values of scores
        mean nothing.
    """
    steps = []
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
        steps.append((i, window, frame.moved, log_size, across + chosen))
        z = x

    def score() -> Tensor:
        total = before
        for i, window, moved, log_size, rest in steps:
            in_frame = log_density(i, moved) + log_size
            total = (1 - window) * total + window * in_frame + rest
        return torch.as_tensor(total)

    return z, score


def _window(position: Tensor, event_dim: int) -> tuple[Tensor, Tensor]:
    """The window's value for every event, and its derivative in the positions."""
    dims = tuple(range(-event_dim, 0))
    apart = (position.abs() - 1).abs()
    nearest = apart.amin(dims, keepdim=True)
    window = torch.relu(1 - nearest / WINDOW)
    slope = (1 - position.abs()).sign() * position.sign() / WINDOW
    return window.squeeze(dims), torch.where((apart == nearest) & (window > 0), slope, 0.0)
