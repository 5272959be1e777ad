"""Readings far more precise than what was known, against exact rational arithmetic."""

from fractions import Fraction

import pytest
import torch

from pyromix import DRMM, GaussianMixture, LinearEquality, LinearGaussian
from pyromix.conditioning.linear_normals import observe


def exact_posterior(prior_loc, prior_variance, readings, noise):
    """Mean and variance of a number, and the log-density of readings of it, by fractions.

    The density is that of the first reading, times that of each given those before.
    """
    mean, variance = Fraction(prior_loc), Fraction(prior_variance)
    noise_variance = Fraction(noise) ** 2
    log_density = 0.0
    for reading in readings:
        total = variance + noise_variance
        missed = Fraction(reading) - mean
        normal = torch.distributions.Normal(0.0, float(total) ** 0.5)
        log_density += normal.log_prob(torch.tensor(float(missed))).item()
        gain = variance / total
        mean, variance = mean + gain * missed, variance - gain * variance
    return float(mean), float(variance), log_density


@pytest.mark.parametrize("noise", [1e-2, 1e-7, 1e-9])
@pytest.mark.parametrize("count", [2, 100])
def test_many_precise_readings_of_one_number(count, noise):
    model = GaussianMixture(1, 1).requires_grad_(False)
    readings = 0.7 + noise * torch.randn(count)
    law = model.condition(LinearGaussian(torch.ones(count, 1), readings, noise))
    prior = model.distribution
    mean, variance, log_density = exact_posterior(
        prior.loc.item(), prior.scale.item() ** 2, readings.tolist(), noise
    )
    spread = noise / count**0.5
    assert abs(law.mean.item() - mean) < 1e-5 * spread
    assert law.variance.item() == pytest.approx(variance, rel=1e-6)
    assert law.log_evidence()[0].item() == pytest.approx(log_density, rel=1e-6)


@pytest.mark.parametrize("covariance", ["full", "low_rank_precision"])
def test_precise_readings_leave_the_other_directions_as_they_were(covariance):
    """What is left across the readings' direction, of a variance 1e16 times as large."""
    model = GaussianMixture(3, 2, covariance).requires_grad_(False)
    row, noise = torch.tensor([[0.6, 0.8, 0.0]]), 1e-8
    precise = model.condition(LinearGaussian(row.expand(9, 3), torch.full((9,), 0.7), noise))
    rough = model.condition(LinearGaussian(row, torch.tensor([0.7]), noise / 3))
    torch.testing.assert_close(precise.mean, rough.mean, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(precise.variance, rough.variance, rtol=1e-7, atol=0.0)
    torch.testing.assert_close(precise.logits, rough.logits, rtol=1e-6, atol=1e-6)


def test_gradients_of_the_evidence_of_precise_readings():
    loc = torch.zeros(1, 2, requires_grad=True)
    factor = torch.eye(2).unsqueeze(0).requires_grad_(True)
    matrix, noise = torch.tensor([[1.0, 1.0], [1.0, 1.0]]), 1e-2 * torch.eye(2)

    def evidence(loc, factor):
        return observe(loc, factor, matrix, torch.tensor([0.5, 0.51]), noise)[2].sum()

    assert torch.autograd.gradcheck(evidence, (loc, factor))


def test_residual_mixtures_take_precise_readings():
    model = DRMM(1, 2, 3).requires_grad_(False)
    readings = 0.7 + 1e-7 * torch.randn(50)
    law = model.condition(LinearGaussian(torch.ones(50, 1), readings, 1e-7))
    assert abs(law.mean.item() - readings.mean().item()) < 1e-3 * 1e-7
    assert law.variance.item() == pytest.approx(1e-14 / 50, rel=1e-6)


def test_asymmetric_noise_is_refused():
    matrix, y = torch.eye(2), torch.ones(2)
    model = GaussianMixture(2, 1)
    lower = torch.tensor([[1.0, 0.0], [0.9, 0.5]])
    with pytest.raises(ValueError, match=r"symmetric.*by up to 0.9"):
        model.condition(LinearGaussian(matrix, y, lower))
    # What single precision leaves of a product is taken as symmetric.
    root = torch.randn(2, 2, dtype=torch.float32)
    noise = root @ root.mT + torch.tensor([[1.0, 3e-7], [0.0, 1.0]])
    assert model.condition(LinearGaussian(matrix, y, noise)).mean.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("offset", [0.0, 1.0], ids=["redundant", "contradictory"])
@pytest.mark.parametrize("make", ["mixture", "residual"])
def test_dependent_equations_are_seen_up_to_their_rounding(make, offset, dtype):
    """Sums of rows differ from rows by the rounding of what they are given in."""
    torch.manual_seed(0)
    model = (
        GaussianMixture(6, 3, "full") if make == "mixture" else DRMM(6, 2, 3, maps="triangular")
    )
    for _ in range(20):
        a, x = torch.randn(3, 6).to(dtype), torch.randn(6).to(dtype)
        a[2] = a[0] * 3.3 + a[1]
        b = -(a @ x)
        b[2] -= offset
        with pytest.raises(ValueError, match=r"equation 2, counted from zero"):
            model.condition(LinearEquality(a, b))
