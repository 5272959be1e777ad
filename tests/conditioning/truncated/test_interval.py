"""The standard normal on an interval, against 60 digits of mpmath."""

import math

import mpmath
import pytest
import torch

from pyromix.conditioning.truncated.interval import (
    draw_from_interval,
    interval_moments,
    log_interval_probability,
)

INTERVALS = [
    (-math.inf, math.inf),
    (-math.inf, 0.0),
    (1e-12, math.inf),
    (-3.0, 8.0),
    (-0.1, 0.3),
    (0.4, 0.9),
    (0.0, 0.499),
    (0.0, 0.501),
    (5.0, 5.2),
    (-8.0, -1.0),
    (30.0, 33.0),
    (40.0, 40.02),
    (60.0, math.inf),
    (-math.inf, -60.0),
    (60.0, 60.02),
    (-60.001, -60.0),
    (1000.0, math.inf),
]


@pytest.fixture(autouse=True)
def _many_digits():
    with mpmath.workdps(60):
        yield


def probability(low, high):
    low, high = mpmath.mpf(low), mpmath.mpf(high)
    if low > 0:
        low, high = -high, -low
    return mpmath.ncdf(high) - mpmath.ncdf(low)


@pytest.mark.parametrize(("low", "high"), INTERVALS)
def test_log_probability(low, high):
    got = log_interval_probability(torch.tensor([low]), torch.tensor([high])).item()
    expected = mpmath.log(probability(low, high))
    assert abs(got - expected) <= 1e-14 + 4e-16 * abs(expected)


@pytest.mark.parametrize(("low", "high"), INTERVALS)
def test_gradient_of_log_probability(low, high):
    ends = [torch.tensor([end], requires_grad=True) for end in (low, high)]
    got = torch.autograd.grad(log_interval_probability(*ends).sum(), ends)
    for slope, end, sign in zip(got, (low, high), (-1, 1), strict=True):
        expected = sign * mpmath.npdf(end) / probability(low, high) if math.isfinite(end) else 0
        # Two logarithms of the size of half the end's square are subtracted.
        assert abs(slope.item() - expected) <= (1e-12 + 1e-15 * min(end**2, 1e9)) * abs(expected)


def test_gradient_of_the_log_probability_of_nothing():
    low = torch.tensor([1.0, 2.0, math.inf], requires_grad=True)
    high = torch.tensor([1.0, 1.0, math.inf], requires_grad=True)
    got = torch.autograd.grad(log_interval_probability(low, high).sum(), (low, high))
    assert all(torch.equal(slope, torch.zeros(3)) for slope in got)


def test_log_probability_of_nothing():
    low = torch.tensor([1.0, 2.0, 60.0])
    assert (log_interval_probability(low, torch.tensor([1.0, 1.0, 60.0])) == -math.inf).all()


@pytest.mark.parametrize(("low", "high"), INTERVALS)
def test_draws_invert_the_distribution_function(low, high):
    uniform = torch.linspace(0.0, 1.0, 21)
    lows, highs = torch.full_like(uniform, low), torch.full_like(uniform, high)
    draws = draw_from_interval(lows, highs, uniform)
    assert ((draws >= low) & (draws <= high)).all()
    whole = probability(low, high)
    for x, u in zip(draws.tolist()[1:-1], uniform.tolist()[1:-1], strict=True):
        level = probability(low, x) / whole
        # Intervals right of zero are mirrored. The error of x is that of its last digits.
        rounding = 4e-16 * abs(x) * mpmath.npdf(x) / whole
        assert min(abs(level - u), abs(level - (1 - u))) < 1e-11 + rounding


@pytest.mark.parametrize(("low", "high"), INTERVALS)
def test_moments(low, high):
    mean, variance = interval_moments(torch.tensor([low]), torch.tensor([high]))
    near = min(max(0.0, low), high)
    reach = 40 / max(abs(near), 3.0)
    start, stop = max(low, near - reach), min(high, near + reach)

    def moment(power):
        def density(t):
            t = mpmath.mpf(t)
            return (t - near) ** power * mpmath.exp(-(t - near) * (t + near) / 2)

        return mpmath.quad(density, mpmath.linspace(start, stop, 20))

    with mpmath.workdps(20):
        whole = moment(0)
        offset = moment(1) / whole
        spread = moment(2) / whole - offset**2
        assert abs((mean.item() - near) - offset) < 1e-10 * spread**0.5 + 1e-15 * abs(near)
        assert abs(variance.item() / spread - 1) < 1e-10


def test_draws_have_the_moments():
    low = torch.tensor([-math.inf, 0.5, 30.0, -2.0]).repeat(50_000, 1)
    high = torch.tensor([-3.0, 1.0, math.inf, 0.1]).repeat(50_000, 1)
    draws = draw_from_interval(low, high, torch.rand_like(low))
    mean, variance = interval_moments(low[0], high[0])
    error = (variance / len(draws)).sqrt()
    assert ((draws.mean(0) - mean).abs() < 4 * error).all()
    square = (draws - mean).square()
    assert ((square.mean(0) - variance).abs() < 4 * square.std(0) / len(draws) ** 0.5).all()
