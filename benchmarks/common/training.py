"""Sizes of models, learning rates that fall, and answers about many points."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def num_parameters(model: nn.Module) -> int:
    """How many numbers a model has to learn."""
    return sum(p.numel() for p in model.parameters())


def closest_size(count: Callable[[int], int], target: int) -> int:
    """The size, from 1, whose number of parameters comes closest to a target.

    Args:
        count: Number of parameters of a size, which grows with it.
        target: Number of parameters to come close to.
    """
    size = 1
    while count(size + 1) <= target:
        size += 1
    return min((size, size + 1), key=lambda n: abs(count(n) - target))


def falling_factor(step: int, steps: int) -> float:
    """Factor of a learning rate that is constant over the first half, and then falls to 2%."""
    return min(1.0, 2 * (1 - step / steps) + 0.02)


def falling(steps: int) -> Callable[[Optimizer], LambdaLR]:
    """A scheduler for `pyromix.fit` that follows `falling_factor`."""

    def schedule(optimizer: Optimizer) -> LambdaLR:
        return LambdaLR(optimizer, lambda step: falling_factor(step, steps))

    return schedule


@torch.no_grad()
def in_chunks(ask: Callable[[Tensor], Tensor], x: Tensor, size: int = 100) -> Tensor:
    """What `ask` returns for values, of which it is given some at a time; without gradients."""
    return torch.cat([ask(part) for part in x.split(size)])
