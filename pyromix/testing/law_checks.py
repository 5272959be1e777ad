"""Draws, density and moments are those of one law."""

import math

import torch
from torch import Tensor
from torch.distributions import Distribution

from .cases import Case, check
from .parameters import joint_law
from .statistics import GOODNESS_OF_FIT, assert_zero_mean, goodness_of_fit, integrate


def _is_plane(case: Case, d: Distribution) -> bool:
    """Whether the density can be integrated over a grid."""
    return case.smooth and case.continuous and not d.batch_shape and d.event_shape.numel() <= 2


@check()
def check_deterministic(case: Case) -> None:
    """A value has one log-density, whatever was drawn in between."""
    d = case.build()
    x = d.sample(torch.Size((10,)))
    first = d.log_prob(x)
    d.sample(torch.Size((7,)))
    assert torch.equal(d.log_prob(x), first), "Expected log_prob to be deterministic."


@check(_is_plane)
def check_normalized(case: Case) -> None:
    """The density integrates to one (in one and two dimensions)."""
    d = case.build()
    x = d.sample(torch.Size((case.num_samples,))).reshape(case.num_samples, -1)
    low, high = x.amin(0), x.amax(0)
    margin = 0.5 * (high - low)
    dim = x.shape[-1]
    sizes = (10_001, 20_001) if dim == 1 else (401, 801)
    coarse, fine = (integrate(d, low - margin, high + margin, size) for size in sizes)
    error = abs(fine - coarse)
    assert error < 0.02, (
        f"The density is too sharp, or has too heavy tails, to be integrated over a grid between "
        f"its samples: {coarse:.4f}, {fine:.4f}."
    )
    assert abs(fine - 1) < 4 * error + 1e-3, f"Expected an integral of 1, got {fine:.5f}."


@check(lambda case, d: case.continuous and (d.batch_shape + d.event_shape).numel() <= 3)
def check_goodness_of_fit(case: Case) -> None:
    """Samples follow the density (in up to three dimensions)."""
    d = joint_law(case.build())
    x = d.sample(torch.Size((case.num_samples,)))
    p_value = goodness_of_fit(x, d.log_prob(x))
    assert p_value > GOODNESS_OF_FIT, f"Samples do not follow the density: p-value {p_value:.1e}."


@check(lambda case, d: case.continuous and (d.batch_shape + d.event_shape).numel() > 0)
def check_normalized_in_expectation(case: Case) -> None:
    """Draws and density agree, and the density is normalised, in any number of dimensions.

    For a normal q that is fitted to draws of p, E_q[p / (p + q)] = E_p[q / (p + q)]: the identity
    behind bridge sampling, whose two sides are bounded and can be averaged safely.
    """
    d = joint_law(case.build())
    size = torch.Size((case.num_samples,))
    flat = d.sample(size).reshape(case.num_samples, -1)
    covariance = torch.cov(flat.mT).reshape(flat.shape[1], -1)
    jitter = 1e-6 * covariance.diagonal().mean() * torch.eye(flat.shape[1], dtype=flat.dtype)
    q = torch.distributions.MultivariateNormal(flat.mean(0), covariance + jitter)

    def log_ratio(x: Tensor) -> Tensor:
        inside = d.support.check(x)
        value = torch.where(inside.reshape(-1, *[1] * len(d.event_shape)), x, d.sample(size))
        log_p = torch.where(inside, d.log_prob(value), -math.inf)
        return log_p - q.log_prob(x.reshape(len(x), -1))

    with torch.no_grad():
        under_q = log_ratio(q.sample(size).reshape(*size, *d.event_shape)).sigmoid()
        under_p = (-log_ratio(d.sample(size))).sigmoid()
    assert_zero_mean(under_q - under_p, "E_q[p / (p + q)] - E_p[q / (p + q)]")


@check(lambda case, d: case.smooth)  # noqa: ARG005
def check_stein_identity(case: Case) -> None:
    """Draws fit the gradient of the log-density: E[x_i d log p(x) / dx_j] = -delta_ij."""
    d = joint_law(case.build())
    x = d.sample(torch.Size((case.num_samples,))).requires_grad_()
    score = torch.autograd.grad(d.log_prob(x).sum(), x)[0].reshape(len(x), -1)
    x = x.detach().reshape(len(x), -1)
    centred = (x - x.mean(0)) / x.std(0)
    dim = x.shape[-1]
    # Per pair (i, j); thousands of pairs are cut down to random directions.
    basis = torch.eye(dim) if dim <= 8 else torch.randn(dim, 8) / math.sqrt(dim)
    left, right = centred @ basis, (score * x.std(0)) @ basis
    product = left.unsqueeze(-1) * right.unsqueeze(-2)
    assert_zero_mean(product + basis.mT @ basis, "E[x dlog p/dx] + I")
    assert_zero_mean(right, "E[dlog p/dx]")


@check()
def check_moments(case: Case) -> None:
    """Mean and variance, where they are given, are those of the samples."""
    d = joint_law(case.build())
    x = d.sample(torch.Size((case.num_samples,)))
    try:
        mean, variance = d.mean, d.variance
    except NotImplementedError:
        return
    if mean.isnan().all():  # a law without a mean, as PyTorch says it
        return
    if variance.dim() and variance.shape[-1] < mean.shape[-1]:
        # Categorical columns come last: they have no variance, and a likeliest code for a mean.
        x, mean = x[..., : variance.shape[-1]], mean[..., : variance.shape[-1]]
    assert_zero_mean(x - mean, "sample mean - mean")
    assert_zero_mean((x - mean).square() - variance, "sample variance - variance")
