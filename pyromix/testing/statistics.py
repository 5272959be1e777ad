"""Statistical tests of draws, and integrals of densities."""

__all__ = [
    "GOODNESS_OF_FIT",
    "NUM_BATCHES",
    "STANDARD_ERRORS",
    "assert_zero_mean",
    "goodness_of_fit",
    "integrate",
    "projected_gradients",
]

import math
from collections.abc import Callable
from unittest.mock import patch

import torch
from pyro.distributions.testing import gof
from torch import Tensor
from torch.distributions import Distribution

STANDARD_ERRORS = 6.0
# The test takes the distances of neighbours to be independent, which they nearly are: a correct
# law has a p-value below 1e-5 about once in 200 times.
GOODNESS_OF_FIT = 1e-8
NUM_BATCHES = 50


def goodness_of_fit(samples: Tensor, log_prob: Tensor) -> float:
    """Probability that draws of a law lie at least as far from it as these do, as a p-value.

    Pyro's test, which compares the density with the distances between neighbours, with two
    changes: its tail of the chi-squared law, which turns to one where the statistic is large, is
    exchanged for SciPy's, and coordinates are scaled alike.

    Args:
        samples: Draws, shape (N, ...), of up to three numbers each.
        log_prob: Their log-densities, shape (N,).
    """
    from scipy.special import chdtrc  # adds a filter of warnings: not on import

    samples = samples.reshape(len(samples), -1)
    scale = samples.std(0)
    density = (log_prob.detach() + scale.log().sum()).exp()
    with patch.object(gof, "chi2sf", lambda statistic, dof: float(chdtrc(dof, statistic))):
        return float(gof.auto_goodness_of_fit(samples / scale, density))


def assert_zero_mean(values: Tensor, what: str) -> None:
    """Raises `AssertionError` unless the mean over the first dimension is zero, entry by entry.

    A mean is taken as zero if it is within `STANDARD_ERRORS` of it.
    """
    values = values.detach()
    mean, error = values.mean(0), values.std(0) / math.sqrt(len(values))
    excess = mean.abs() / error.clamp(min=1e-10)
    worst = float(excess.max())
    assert worst < STANDARD_ERRORS, (
        f"Expected {what} to be 0 in expectation, got {float(mean.flatten()[excess.argmax()]):.4g}"
        f", which is {worst:.1f} standard errors away."
    )


def integrate(d: Distribution, low: Tensor, high: Tensor, size: int) -> float:
    """The integral of the density over a box, by the midpoint rule."""
    step = (high - low) / size
    axes = [low[i] + step[i] * (torch.arange(size) + 0.5) for i in range(len(low))]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, *d.event_shape)
    with torch.no_grad():
        total = sum(float(d.log_prob(part).exp().sum()) for part in grid.split(50_000))
    return total * float(step.prod())


def projected_gradients(
    estimate: Callable[[], Tensor], leaves: list[Tensor], num_directions: int = 5
) -> Tensor:
    """Gradients of independent estimates along fixed random directions: (batches, directions)."""
    generator = torch.Generator(leaves[0].device).manual_seed(0)
    directions = [
        torch.randn(
            (num_directions, *p.shape), generator=generator, dtype=p.dtype, device=p.device
        )
        for p in leaves
    ]
    rows = []
    for _ in range(NUM_BATCHES):
        grads = torch.autograd.grad(
            estimate(),
            leaves,
            retain_graph=True,  # a plain law may have made a part of it when it was built
            allow_unused=True,
            materialize_grads=True,
        )
        products = [
            (v * g).reshape(num_directions, -1).sum(1)
            for v, g in zip(directions, grads, strict=True)
        ]
        rows.append(torch.stack(products).sum(0))
    return torch.stack(rows)
