"""The density and the distribution function of Student's t, for all degrees of freedom."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from pyromix.numerics import squared_distances
from pyromix.numerics.student_cdf import student_tails
from pyromix.numerics.student_density import log_gamma_ratio, student_log_prob


@pytest.mark.parametrize("df", [0.1, 0.7, 1.0, 3.3, 31.0, 33.0, 1e3, 1e6, math.inf])
def test_tails(df):
    t = np.concatenate([np.linspace(0, 8, 65), [30.0, 1e4]])
    expected = stats.t.sf(t, df) if df < math.inf else stats.norm.sf(t)
    x = torch.tensor(-t, requires_grad=True)
    tail = student_tails(x, torch.tensor(df))
    kept = expected > 1e-200
    np.testing.assert_allclose(tail.detach().numpy()[kept], expected[kept], rtol=1e-9)
    (slope,) = torch.autograd.grad(tail.sum(), x)
    density = stats.t.pdf(t, df) if df < math.inf else stats.norm.pdf(t)
    np.testing.assert_allclose(slope.numpy()[1:], density[1:], rtol=1e-9, atol=1e-300)


@pytest.mark.parametrize("df", [0.3, 1.0, 4.2, 20.0])
def test_slope_of_tails_in_df(df):
    t = torch.tensor([0.0, 0.3, 0.99, 1.01, 3.0, 40.0])
    nu = torch.full_like(t, df).requires_grad_()
    (slope,) = torch.autograd.grad(student_tails(t, nu).sum(), nu)
    h = 1e-3 * df
    at = [student_tails(t, torch.tensor(df + s * h)) for s in (1, -1, 2, -2)]
    expected = (8 * (at[0] - at[1]) - (at[2] - at[3])) / (12 * h)
    torch.testing.assert_close(slope, expected, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("dim", [1, 3, 784])
def test_constant_against_exact_products(dim):
    # Gamma(a + 1) = a Gamma(a): two dimensions more are a factor, whatever a is.
    df = torch.tensor([0.01, 1.0, 31.9, 32.1, 1e4, 1e8, 1e14])
    step = log_gamma_ratio(df, dim + 2) - log_gamma_ratio(df, dim)
    torch.testing.assert_close(step, torch.log1p(dim / df), rtol=1e-9, atol=1e-12 * dim)
    assert abs(log_gamma_ratio(torch.tensor(1.0), 1) + 0.5 * math.log(math.pi / 2)) < 1e-14
    assert log_gamma_ratio(torch.tensor(math.inf), dim) == 0


def test_gradients_at_infinitely_many_degrees_of_freedom():
    df = torch.tensor([1e9, math.inf], requires_grad=True)
    square = torch.tensor(3.0, requires_grad=True)
    log_prob = student_log_prob(torch.zeros(2), square, df, 2)
    torch.testing.assert_close(log_prob, torch.full((2,), -1.5))
    of_square, of_df = torch.autograd.grad(log_prob.sum(), [square, df])
    torch.testing.assert_close(of_square, torch.tensor(-1.0))
    assert of_df.abs().max() < 1e-15


@pytest.mark.parametrize("far", [0.0, 1e9])
@pytest.mark.parametrize("gaps", [False, True])
def test_squared_distances(far, gaps, monkeypatch):
    torch.manual_seed(0)
    x, loc, scale = torch.randn(200, 8) + far, torch.randn(5, 8), 0.1 + torch.rand(5, 8)
    loc[1:] += far  # the products cancel
    seen = (torch.rand(200, 8) < 0.7).double() if gaps else None
    z = (x.unsqueeze(1) - loc) / scale * (1.0 if seen is None else seen.unsqueeze(1))
    monkeypatch.setattr(squared_distances, "DIRECT_SIZE", 0)
    monkeypatch.setattr(squared_distances, "BLOCK_NUMBERS", 2000)
    got = squared_distances.squared_distances(x, loc, scale, torch.ones(5), seen)
    torch.testing.assert_close(got, z.square().sum(-1), rtol=1e-9, atol=1e-9)
