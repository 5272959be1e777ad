"""Draws of sequences, step by step."""

__all__ = ["continue_prefix", "generate"]

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..flows.law import FlowLaw
from .recurrence import Memory
from .step_model import StepModel


def generate(
    model: StepModel,
    value: Tensor,
    memory: Memory | None,
    inputs: Tensor | None,
    num_steps: int,
    draw: Callable[[FlowLaw], Tensor],
) -> Iterator[Tensor]:
    """Yields the drawn values of one step after the other, of shape (N, D).

    Args:
        model: The model.
        value: Standardised values before the first step, or the model's start, shape (N, D).
        memory: The recurrence's memory before it is fed those; by default zeros.
        inputs: Inputs of the steps to come, shape (N, num_steps or 1, width).
        num_steps: Number of steps.
        draw: From the law of a step to values.
    """
    for t in range(num_steps):
        if inputs is not None:
            value = torch.cat([value, inputs[:, min(t, inputs.shape[1] - 1)]], -1)
        states, memory = model.recurrence(value.unsqueeze(1), memory)
        law = model.law_of_step(states.squeeze(1))
        drawn = draw(law)
        law.clear_cache()
        yield drawn
        value = model.standardize(drawn)


def continue_prefix(
    model: StepModel,
    prefix: Tensor,
    ends: Tensor,
    inputs: Tensor | None,
    horizon: int,
    num_samples: int,
) -> Tensor:
    """Draws continuations of prefixes.

    Args:
        model: The model.
        prefix: First values of sequences, shape (N, t, D).
        ends: Lengths of the prefixes, at most t, shape (N,).
        inputs: Inputs of all steps, shape (N, t + horizon or more, width), or (N, 1, width) if
            they are the same at all steps.
        horizon: Number of steps to draw.
        num_samples: Number of draws.

    Returns:
        Tensor of shape (num_samples, N, horizon, D).
    """
    count, num_steps, dim = prefix.shape
    fed = model.standardize(prefix)
    given = torch.cat([model.start.expand(count, 1, -1), fed[:, :-1]], 1)
    following = None
    if inputs is not None:
        if inputs.shape[1] == 1:
            inputs = inputs.expand(-1, num_steps + horizon, -1)
        given = torch.cat([given, inputs[:, :num_steps]], -1)
        index = ends.unsqueeze(-1) + torch.arange(horizon, device=ends.device)
        following = inputs.take_along_dim(index.unsqueeze(-1), 1).repeat(num_samples, 1, 1)
    _, memory = model.recurrence(given, None, ends)
    last = fed[torch.arange(count, device=ends.device), ends - 1]
    values = generate(
        model,
        last.repeat(num_samples, 1),
        tuple(m.repeat(1, num_samples, 1) for m in memory),
        following,
        horizon,
        lambda law: law.sample(),
    )
    return torch.stack(list(values), -2).reshape(num_samples, count, horizon, dim)
