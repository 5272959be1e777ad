"""Sequences of positions and velocities."""

__all__ = ["jump_trajectories"]

import torch
from torch import Generator, Tensor

from ..core.checks import check_count, check_positive_int


def jump_trajectories(num: int, length: int = 32, *, generator: Generator | None = None) -> Tensor:
    r"""Heights and velocities of a body that falls, and jumps now and then.

    .. math:: y_0 \sim U(0.1, 0.9), \quad v_0 \sim U(-0.05, 0.05), \qquad
              v_t = (1 - j_t)(v_{t-1} - 0.01) + 0.06 j_t, \quad y_t = y_{t-1} + v_t

    It jumps (:math:`j_t = 1`) with a probability of 0.11, always below a height of 0.05, and never
    above 0.8: the experiment on movement of Hämäläinen et al., Deep Residual Mixture Models,
    section 4.2.

    Args:
        num: Number of trajectories N.
        length: Number of steps T.
        generator: Where random numbers come from; by default PyTorch's global generator.

    Returns:
        Tensor of shape (N, 2, T): height and velocity.

    Example:
        >>> x = jump_trajectories(5)
        >>> torch.allclose(x[:, 0, 1:], x[:, 0, :-1] + x[:, 1, 1:])
        True
    """
    num, length = check_count("num", num), check_positive_int("length", length)
    device = None if generator is None else generator.device

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(num, generator=generator, device=device)

    height, velocity = uniform(0.1, 0.9), uniform(-0.05, 0.05)
    steps = [torch.stack([height, velocity], -1)]
    for _ in range(length - 1):
        jumps = (uniform(0.0, 1.0) < 0.11) | (height < 0.05)
        jumps = jumps & (height <= 0.8)
        velocity = torch.where(jumps, 0.06, velocity - 0.01)
        height = height + velocity
        steps.append(torch.stack([height, velocity], -1))
    return torch.stack(steps, -1)
