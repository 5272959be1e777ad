"""RelaxedMixtureOfNormals: draws, their gradients, and estimates of the density."""

import math

import pytest
import torch

from pyromix.mixtures.relaxed import inner_points
from pyromix.testing import goodness_of_fit

from .relaxed_reference import (
    LOC,
    LOGITS,
    SCALE,
    agrees,
    build,
    exact_entropy,
    exact_log_prob,
    exact_mean,
    far_apart,
    finite_differences,
    normals,
    parameters,
    relative_variance,
)

# ---- draws ------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.1, 0.7, 2.0])
def test_moments_of_draws(temperature):
    weight, mean, deviation = normals(temperature, LOGITS, LOC, SCALE)
    expected = weight @ mean
    variance = weight @ (deviation.square() + (mean - expected).square())
    law = build(temperature, num_inner=2048)
    draws = law.rsample((100_000,))
    assert agrees(draws, expected)
    assert agrees((draws - expected).square(), variance)
    # Those of the inner points are far closer than any number of draws.
    torch.testing.assert_close(law.mean, expected, atol=1e-3, rtol=0)
    torch.testing.assert_close(law.variance, variance, atol=1e-3, rtol=0)


@pytest.mark.parametrize("temperature", [0.1, 1.0])
@pytest.mark.parametrize(("k", "dim"), [(2, 1), (4, 2), (3, 3)])
def test_draws_follow_the_density(temperature, k, dim):
    loc, scale = 2 * torch.randn(k, dim), 0.5 + torch.rand(k, dim)
    law = build(temperature, torch.randn(k), loc, scale, num_inner=2048)
    draws = law.rsample((5000,))
    assert goodness_of_fit(draws, law.log_prob(draws)) > 1e-5
    # And not that at another temperature.
    other = build(0.1 / temperature, law.logits, loc, scale, num_inner=2048)
    assert goodness_of_fit(draws, other.log_prob(draws)) < 1e-5


def test_joint_draws_are_a_choice_and_a_normal_given_it():
    law = build(torch.tensor([0.3, 1.0]))
    z, c = law.rsample_joint((50_000,))
    assert (z.shape, c.shape) == ((50_000, 2, 1), (50_000, 2, 2))
    torch.testing.assert_close(c.sum(-1), torch.ones(50_000, 2))
    noise = (z - c @ LOC) / (c @ SCALE)
    assert agrees(noise, 0.0)
    assert agrees(noise.square(), 1.0)
    assert agrees(noise * (c[..., :1] - 0.5), 0.0)
    # An entry is the largest as often as its component has weight, at every temperature.
    assert agrees((c[..., 0] > 0.5).double(), LOGITS.softmax(-1)[0])


@pytest.mark.parametrize("temperature", [0.3, 1.0])
@pytest.mark.parametrize("dim", [1, 2])
def test_pathwise_gradients(temperature, dim):
    loc = torch.cat([LOC, LOC.flip(0) + 0.5], -1)[:, :dim]
    scale = torch.cat([SCALE, SCALE.flip(0)], -1)[:, :dim]
    inputs = [torch.tensor(temperature), LOGITS, loc, scale]
    frequency = torch.tensor([1.3, 0.7])[:dim]
    expected = finite_differences(lambda *law: exact_mean(frequency, *law), inputs)
    rows = []
    for _ in range(100):
        leaves = [t.clone().requires_grad_() for t in inputs]
        estimate = torch.sin(build(*leaves).rsample((1000,)) @ frequency).mean()
        rows.append(torch.autograd.grad(estimate, leaves))
    for got, want in zip(map(torch.stack, zip(*rows, strict=True)), expected, strict=True):
        # Not so noisy that anything would agree.
        assert (want.abs() > 10 * got.std(0) / math.sqrt(len(got))).any()
        assert agrees(got, want)


def test_gradients_of_pathwise_draws_by_batch():
    """Every law of a batch has gradients of its own parameters alone."""
    temperature = torch.tensor([0.3, 1.0]).requires_grad_()
    draws = build(temperature).rsample((50,))
    assert torch.autograd.grad(draws[:, 0].sum(), temperature)[0][1] == 0


# ---- weighted draws ---------------------------------------------------------------------------


@pytest.mark.parametrize("num_samples", [7, 64, 100])
@pytest.mark.parametrize("batch", [(), (2,)])
def test_weighted_draws_and_their_gradients(num_samples, batch):
    """They are of log_prob's law, also if they are fewer than its points."""
    inputs = [
        0.4 + torch.rand(batch),
        torch.randn(*batch, 2),
        torch.randn(*batch, 2, 2),
        0.5 + torch.rand(*batch, 2, 2),
    ]
    frequency = torch.tensor([0.9, -0.6])

    def inner_mean(*given):
        inner = build(*given, num_inner=64).inner
        damped = torch.exp(-0.5 * (frequency * inner.scale).square().sum(-1))
        return (inner.logits.exp() * damped * torch.sin(inner.loc @ frequency)).sum()

    expected = [inner_mean(*inputs), *finite_differences(inner_mean, inputs)]
    rows = []
    for _ in range(150):
        leaves = [t.clone().requires_grad_() for t in inputs]
        x, log_weight = build(*leaves, num_inner=64).rsample_weighted(num_samples)
        assert (x.shape, log_weight.shape) == ((num_samples, *batch, 2), (num_samples, *batch))
        estimate = (log_weight.exp() * torch.sin(x @ frequency)).sum()
        rows.append([estimate.detach(), *torch.autograd.grad(estimate, leaves)])
    for got, want in zip(map(torch.stack, zip(*rows, strict=True)), expected, strict=True):
        assert agrees(got, want)


def test_weighted_draws_have_the_second_moment_of_inner():
    law = build(0.5, num_inner=64)
    estimates = []
    for _ in range(300):
        x, log_weight = law.rsample_weighted(128)
        estimates.append((log_weight.exp().unsqueeze(-1) * (x - law.mean).square()).sum(0))
    assert agrees(torch.stack(estimates), law.variance)


@pytest.mark.parametrize("num_samples", [4, 30, 64, 65, 200])
@pytest.mark.parametrize("batch", [(), (3,)])
def test_weights_sum_to_one(num_samples, batch):
    """From as many draws as points on; and of fewer, if they can be shared among components."""
    law = build(0.5, torch.randn(*batch, 2), num_inner=64)
    for _ in range(5):
        _, log_weight = law.rsample_weighted(num_samples)
        torch.testing.assert_close(log_weight.exp().sum(0), torch.ones(batch))


def test_a_subset_of_the_points_is_drawn_evenly():
    """Every inner point is as often among few draws; an odd one falls to either component."""
    law = build(1e-6, torch.tensor([0.9, 0.1]).log(), SCALE * 100 - 60, SCALE, num_inner=8)
    shares = []
    for _ in range(1000):
        x, log_weight = law.rsample_weighted(3)
        shares.append(torch.stack([(x < 0).double().mean(), log_weight.exp().sum()]))
    assert agrees(torch.stack(shares), torch.tensor([0.5, 1.0]))


# ---- estimates of the density -----------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0])
def test_nested_densities_make_entropies_too_high(temperature):
    """By the figures in the docstring, over a range of temperatures."""
    law = far_apart(temperature, num_inner=1024)
    draws = law.sample((20_000,))
    log_prob, entropy = law.log_prob(draws), exact_entropy(law)
    assert agrees(-log_prob, entropy)
    for num_inner, low, high in ((10, 0.3, 0.4), (100, 0.015, 0.035)):
        nested = [law.log_prob_nested(part, num_inner=num_inner) for part in draws.split(4000)]
        excess = log_prob - torch.cat(nested)
        error = float(excess.std()) / math.sqrt(len(excess))
        assert low - 3 * error < float(excess.mean()) < high + 3 * error
        assert float(excess.mean()) > 4 * error


def test_nested_densities_are_unbiased_and_their_logarithms_too_low():
    """By half the relative variance, to first order."""
    law, z = build(1.0), torch.tensor([[-1.0], [0.4], [1.5]])
    expected = exact_log_prob(z, *parameters(law))
    predicted = -0.5 * relative_variance(z, *parameters(law)) / 50
    change = law.log_prob_nested(z.expand(40_000, 3, 1), 50) - expected
    ratio = change.exp() - 1
    assert agrees(ratio, 0.0)
    # Less its part that has no mean.
    bias = change - ratio
    error = bias.std(0) / math.sqrt(len(bias))
    assert (predicted < -10 * error).all()
    assert ((bias.mean(0) - predicted).abs() < 0.1 * predicted.abs() + 5 * error).all()


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_entropy_bounds(temperature):
    law = far_apart(temperature)
    entropy = exact_entropy(law)
    widths = []
    for num_inner in (10, 1000):
        bounds = [law.entropy_bounds(100, num_inner) for _ in range(20)]
        lower, upper = (torch.stack(side) for side in zip(*bounds, strict=True))
        assert lower.shape == (20,)
        error = [float(side.std()) / math.sqrt(20) for side in (lower, upper)]
        assert lower.mean() < entropy + 5 * error[0]
        assert upper.mean() > entropy - 5 * error[1]
        if num_inner == 10:  # bounds that are some way off
            assert lower.mean() < entropy - 5 * error[0]
            assert upper.mean() > entropy + 5 * error[1]
        widths.append(float((upper - lower).mean()))
    assert 0 < widths[1] < widths[0] / 20


def test_gradients_of_entropy_bounds():
    """Where the bounds nearly meet, those of the entropy."""
    inputs = [torch.tensor(1.0), LOGITS, LOC, SCALE]
    expected = finite_differences(lambda *law: exact_entropy(build(*law)), inputs)
    rows = {"lower": [], "upper": []}
    for _ in range(20):
        leaves = [t.clone().requires_grad_() for t in inputs]
        bounds = build(*leaves).entropy_bounds(300, 300)
        for row, bound in zip(rows.values(), bounds, strict=True):
            row.append(torch.autograd.grad(bound, leaves, retain_graph=True))
    for row in rows.values():
        for got, want in zip(map(torch.stack, zip(*row, strict=True)), expected, strict=True):
            assert agrees(got, want)


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_log_prob_error_says_how_far_the_limit_is(temperature):
    """Single sets of points vary: some are ten times better than most, or worse."""
    z = torch.linspace(-3, 3, 41).unsqueeze(-1)
    expected = exact_log_prob(z, temperature)
    said = []
    for num_inner in (32, 512):
        law = build(temperature, num_inner=num_inner)
        own = (law.log_prob(z) - expected).square().mean()
        error = law.log_prob_error(z, num_repeats=16)
        assert error.shape == (41,)
        said.append(error.square().mean().sqrt())
        assert own.sqrt() < 3 * said[-1]
        others = []
        for seed in range(100, 132):
            law._points = inner_points(2, num_inner, seed)
            others.append((law.log_prob(z) - expected).square().mean().sqrt())
        others = torch.stack(others)
        assert (others < 3 * said[-1]).double().mean() > 0.75
        assert said[-1] < 3 * others.square().mean().sqrt()
    assert said[1] < said[0] / 16


def test_log_prob_error_by_hand():
    """The root mean square of the changes, with sets of points that are not the law's own."""
    law, z = build(0.5, num_inner=16), torch.randn(5, 1)
    before, once = law.log_prob(z), law.log_prob_error(z, num_repeats=1)
    assert (once > 0).all()
    changes = []
    for seed in range(1, 4):
        law._points = inner_points(2, 16, seed)
        changes.append(law.log_prob(z) - before)
    law._points = inner_points(2, 16)
    torch.testing.assert_close(once, changes[0].abs())
    expected = torch.stack(changes).square().mean(0).sqrt()
    torch.testing.assert_close(law.log_prob_error(z, num_repeats=3), expected)
