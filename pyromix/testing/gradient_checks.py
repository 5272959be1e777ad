"""Gradients of densities and through draws."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from .cases import Case, check
from .parameters import differentiable, has_switch, map_tensors
from .statistics import NUM_BATCHES, assert_zero_mean, projected_gradients


@check(lambda case, d: case.smooth)  # noqa: ARG005
def check_log_prob_gradients(case: Case) -> None:
    """Gradients of log_prob in the value and the parameters match finite differences."""
    original = case.build()
    d, leaves = differentiable(original)

    def log_prob() -> Tensor:
        """With the present parameters, also of a law that made a part of it when it was built."""
        present = iter(leaves)
        module = isinstance(d, nn.Module)
        law: Any = d if module else map_tensors(original, lambda _: next(present))
        return law.log_prob(x).sum()

    x = d.sample(torch.Size((3,)))
    # Along random directions: a model may have a million parameters.
    directions = [torch.randn_like(t) for t in (x, *leaves)]
    scale = 1e-5
    y = x.clone().requires_grad_()
    grads = torch.autograd.grad(d.log_prob(y).sum(), [y, *leaves], materialize_grads=True)
    for i, (g, v) in enumerate(zip(grads, directions, strict=True)):
        v = v / v.norm().clamp(min=1e-12)
        values = []
        for h in (scale, -scale, 2 * scale, -2 * scale):
            with torch.no_grad():
                if i == 0:
                    values.append(d.log_prob(x + h * v).sum())
                else:
                    leaves[i - 1].add_(h * v)
                    values.append(log_prob())
                    leaves[i - 1].sub_(h * v)
        expected = (8 * (values[0] - values[1]) - (values[2] - values[3])) / (12 * scale)
        got = (g * v).sum()
        tolerance = 1e-6 * max(1.0, abs(float(expected)), float(values[0].abs()))
        assert abs(got - expected) < tolerance, (
            f"Expected the gradient of log_prob in {'the value' if i == 0 else f'parameter {i}'} "
            f"to match finite differences ({float(expected):.6g}), got {float(got):.6g}."
        )


@check(lambda case, d: d.has_rsample)  # noqa: ARG005
def check_pathwise_gradients(case: Case) -> None:
    """Gradients through rsample equal, in expectation, those of the score function."""
    d, leaves = differentiable(case.build())
    if not leaves:
        return
    size = torch.Size((max(1, case.num_samples // NUM_BATCHES),))
    phase = torch.rand(d.event_shape) * 2 * math.pi
    spread = d.sample(torch.Size((1000,))).std(0)

    def payoff(x: Tensor) -> Tensor:
        return torch.sin(x / spread + phase).reshape(len(x), -1).sum(-1)

    def pathwise() -> Tensor:
        return payoff(d.rsample(size)).mean()

    def score_function() -> Tensor:
        x = d.sample(size)
        f = payoff(x).detach()
        log_prob = d.log_prob(x).reshape(len(x), -1).sum(-1)
        others = (f.sum() - f) / max(1, len(f) - 1)  # a baseline that leaves it unbiased
        return ((f - others) * log_prob).mean()

    first, second = (projected_gradients(f, leaves) for f in (pathwise, score_function))
    assert first.abs().max() > 0, "Expected gradients through rsample, got zeros."
    assert_zero_mean(first - second, "pathwise - score-function gradient")


@check()
def check_score_identity(case: Case) -> None:
    """Draws fit the gradient of the log-density in the parameters: its mean is zero."""
    d, leaves = differentiable(case.build())
    if not leaves:
        return
    size = torch.Size((max(1, case.num_samples // NUM_BATCHES),))
    gradients = projected_gradients(lambda: d.log_prob(d.sample(size)).mean(), leaves)
    assert_zero_mean(gradients, "E[dlog p/dtheta]")


@check(lambda case, d: d.has_rsample and has_switch(d))  # noqa: ARG005
def check_has_rsample(case: Case) -> None:
    """Pyro can switch pathwise gradients off on an instance, and on again."""
    d, leaves = differentiable(case.build())
    assert d().requires_grad == bool(leaves), "Expected a call to draw with a graph."
    d.has_rsample_(False)
    assert not d().requires_grad, "Expected has_rsample_(False) to switch gradients off."
    d.has_rsample_(True)
    assert d().requires_grad == bool(leaves), "Expected has_rsample_(True) to switch them on."
