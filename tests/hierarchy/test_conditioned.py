"""Laws given evidence, against draws of the model that happen to meet it, and sums over codes."""

import math

import pytest
import torch

from pyromix import AnyOf, Box, GaussianPrior, LinearGaussian, LinearInequality
from pyromix.hierarchy.completion import known_entries
from pyromix.hierarchy.posterior import Keep, codes_given, fits_of_evidence

from .test_law import scattered, slow_log_prob

REPEATS = 8


def above(shape, index, bound):
    low = torch.full(shape, -math.inf)
    low[index] = bound
    return Box(low=low)


def below(shape, index, bound):
    high = torch.full(shape, math.inf)
    high[index] = bound
    return Box(high=high)


def questions(shape):
    """Evidence that a good share of draws meets, and whether each draw does."""
    first, last = (0,) * len(shape), tuple(size - 1 for size in shape)
    total = torch.ones(shape, dtype=torch.float64)
    either = AnyOf(above(shape, first, 0.5), below(shape, last, -0.5))
    return (
        (above(shape, last, 0.2), LinearInequality(total, 1.0), either),
        lambda x: (
            (x[(..., *last)] > 0.2)
            & (x.flatten(-len(shape)).sum(-1) + 1.0 > 0)
            & ((x[(..., *first)] > 0.5) | (x[(..., *last)] < -0.5))
        ),
    )


@pytest.mark.parametrize(
    ("name", "max_codes"),
    [
        ("two levels", 0),
        ("two levels", 100),
        ("image", 100),
        ("hanging over", 0),
        ("windows continue", 0),
        ("windows of codes overlap", 0),
    ],
)
def test_law_given_evidence_is_that_of_draws_that_meet_it(name, max_codes):
    model = scattered(name, max_codes=max_codes).requires_grad_(False)
    evidence, meets = questions(model.event_shape)
    x = model.sample((60_000,))
    kept = x[meets(x)].flatten(1)
    assert len(kept) > 800
    log_share = math.log(len(kept) / len(x))
    features = torch.cat([kept, kept.square()], -1)
    expected, error = features.mean(0), features.std(0) / len(kept) ** 0.5
    weights, moments = [], []
    for _ in range(REPEATS):
        law = model.condition(*evidence, num_particles=64)
        draws = law.sample((256,))
        assert bool(meets(draws).all())
        weights.append((law.log_evidence()[0] - log_share).exp())
        flat = draws.flatten(1)
        moments.append(torch.cat([flat, flat.square()], -1).mean(0))
    ratio = torch.stack(weights)
    spread = (ratio.std() ** 2 / REPEATS + 1 / len(kept)) ** 0.5
    assert abs(ratio.mean() - 1) < 6 * spread
    difference = ratio.unsqueeze(-1) * (torch.stack(moments) - expected)
    spread = (difference.var(0) / REPEATS + error.square()).sqrt()
    assert bool((difference.mean(0).abs() < 6 * spread).all())


@pytest.mark.parametrize(("name", "particles"), [("image", 256), ("windows continue", 4096)])
def test_none_of_many_draws_breaks_a_constraint(name, particles):
    """In float32, by messages and by the filter, with a value beside bounds and sums."""
    model = scattered(name, torch.float32).requires_grad_(False)
    evidence, meets = questions(model.event_shape)
    value = {tuple(size // 2 for size in model.event_shape): 0.3}
    law = model.condition(value, *evidence, num_particles=particles)
    x = law.sample((100_000,))
    assert bool(meets(x.double()).all())
    assert bool((x[(..., *next(iter(value)))] == 0.3).all())
    assert law.effective_sample_size > particles / 10


@pytest.mark.parametrize("name", ["row", "two levels", "image"])
def test_evidence_of_values_is_the_sum_over_all_codes(name):
    model = scattered(name).requires_grad_(False)
    value = model.sample((2,))
    value[torch.rand(value.shape) < 0.5] = math.nan
    expected = torch.stack([slow_log_prob(model, x) for x in value])
    entries = known_entries(model.flatten(value), None)
    for max_codes in (0, 100):
        whole = codes_given(model.law, entries, Keep(100, 100, max_codes), draws=1)
        torch.testing.assert_close(whole.log_evidence, expected)
    for x, right in zip(value, expected, strict=True):
        law = model.condition(x, num_particles=64)  # all codes are kept: no error but of rounding
        torch.testing.assert_close(law.log_evidence()[0], right, atol=1e-6, rtol=1e-6)
    # A few of the codes, at random: unbiased.
    few = [
        codes_given(model.law, entries, Keep(3, 3, 0), draws=1).log_evidence for _ in range(100)
    ]
    ratio = (torch.stack(few) - expected).exp()
    assert bool(((ratio.mean(0) - 1).abs() < 6 * ratio.std(0) / 10 + 1e-9).all())


@pytest.mark.parametrize("width", [0.1, 0.5, 2.0])
def test_readings_of_sequences(width):
    """Their evidence is the mean density of the reading over draws of the model."""
    model = scattered("windows continue").requires_grad_(False)
    x = model.sample((200_000,))
    scale = torch.full((2, 6), math.inf, dtype=torch.float64)
    scale[1, 4] = width
    density = torch.distributions.Normal(x[:, 1, 4], width).log_prob(torch.tensor(0.5)).exp()
    laws = [model.condition(GaussianPrior(0.5, scale), num_particles=128) for _ in range(8)]
    got = torch.stack([law.log_evidence()[0].exp() for law in laws])
    error = (got.var() / 8 + density.var() / len(x)).sqrt()
    assert abs(got.mean() - density.mean()) < 6 * error
    weighted = (density * x[:, 1, 4]).mean() / density.mean()
    means = torch.stack([law.mean[1, 4] for law in laws])
    assert abs(means.mean() - weighted) < 6 * (means.var() / 8).sqrt() + 0.01


def test_unions_have_errors():
    model = scattered("image").requires_grad_(False)
    first = (0, 0, 0)
    union = AnyOf(above((1, 4, 4), first, 1.0), below((1, 4, 4), first, -1.0))
    value, error = model.condition(union, num_particles=128).log_evidence()
    share = (model.sample((100_000,))[:, 0, 0, 0].abs() > 1).double().mean().log()
    assert 0 < error < 0.3
    assert abs(value - share) < 6 * error + 0.02


def test_values_of_sequences_are_kept_and_weighted():
    """Windows that continue each other: a value, as a narrow interval of the same density."""
    model = scattered("windows continue").requires_grad_(False)
    law = model.condition({(0, 4): 0.3, (1, 1): -0.2}, num_particles=256)
    x = law.sample((50,))
    assert bool((x[:, 0, 4] == 0.3).all())
    assert bool((x[:, 1, 1] == -0.2).all())
    draws = model.sample((400_000,))
    half = 0.1
    inside = ((draws[:, 0, 4] - 0.3).abs() < half) & ((draws[:, 1, 1] + 0.2).abs() < half)
    share = int(inside.sum()) / len(draws) / (2 * half) ** 2
    estimates = [
        model.condition({(0, 4): 0.3, (1, 1): -0.2}, num_particles=256).log_evidence()[0].exp()
        for _ in range(8)
    ]
    got = torch.stack(estimates)
    error = (got.var() / 8 + share**2 / int(inside.sum())) ** 0.5
    assert abs(got.mean() - share) < 6 * error + 0.02 * share  # the interval is not a point


def test_readings_and_density():
    """Readings pull, and the density given them is that of the model times theirs."""
    model = scattered("image").requires_grad_(False)
    scale = torch.full((1, 4, 4), math.inf, dtype=torch.float64)
    scale[0, 1, 2] = 0.1
    law = model.condition(GaussianPrior(2.0, scale), num_particles=256)
    x = law.sample((400,))
    assert abs(x[:, 0, 1, 2].mean() - 2.0) < 0.1
    assert law.sample((0,)).shape == (0, 1, 4, 4)
    reading = torch.distributions.Normal(2.0, 0.1).log_prob(x[:5, 0, 1, 2].double())
    got = law.log_prob(x[:5]) + law.log_evidence()[0]
    torch.testing.assert_close(got, model.log_prob(x[:5]) + reading)
    matrix = torch.zeros(1, 1, 4, 4, dtype=torch.float64)
    matrix[0, 0, 0, 0], matrix[0, 0, 3, 3] = 1.0, -1.0
    apart = model.condition(LinearGaussian(matrix, 0.5, 1e-3), num_particles=1024).sample((200,))
    assert float((apart[:, 0, 0, 0] - apart[:, 0, 3, 3] - 0.5).abs().max()) < 0.01


@pytest.mark.parametrize("name", ["image", "windows continue"])
def test_later_training_does_not_change_a_law(name):
    model = scattered(name)
    law = model.condition({(0,) * len(model.event_shape): 0.3}, num_particles=64)
    x = law.sample((3,))
    before = law.log_prob(x)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3)
    assert torch.equal(law.log_prob(x), before)


def test_means_are_those_of_the_particles():
    """In closed form, and the same at every call; under bounds of draws that are the same."""
    model = scattered("image").requires_grad_(False)
    scale = torch.full((1, 4, 4), math.inf, dtype=torch.float64)
    scale[0, 1, 2] = 0.1
    evidence = {(0, 0, 0): 0.3}, GaussianPrior(0.5, scale)
    law = model.condition(*evidence, num_particles=512)
    state = torch.get_rng_state()
    mean, variance = law.mean, law.variance
    assert mean[0, 0, 0] == 0.3
    assert variance[0, 0, 0] == 0
    x = law.sample((40_000,))
    assert bool(((x.mean(0) - mean).abs() <= 6 * (variance / len(x)).sqrt() + 1e-9).all())
    torch.testing.assert_close(x.var(0), variance, rtol=0.1, atol=1e-9)
    bounded = model.condition(*evidence, above((1, 4, 4), (0, 3, 3), 0.0), num_particles=64)
    torch.set_rng_state(state)
    assert torch.equal(bounded.mean, bounded.mean)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_rare_question_warns():
    model = scattered("windows continue").requires_grad_(False)
    with pytest.warns(UserWarning, match="Take more, by num_particles"):
        model.condition({(1, 5): 1e4}, num_particles=64)


def test_completions_keep_what_is_known():
    model = scattered("image", torch.float32).requires_grad_(False)
    value = model.sample((3,))
    value[:, :, :2] = math.nan
    filled, drawn = model.impute(value), model.impute(value, 4)
    assert filled.shape == value.shape
    assert drawn.shape == (4, *value.shape)
    known = ~value.isnan()
    assert torch.equal(filled[known], value[known])
    assert torch.equal(drawn[:, known], value[known].expand(4, -1))
    mask = torch.ones(4, 4, dtype=torch.bool)
    mask[:2] = False
    assert torch.equal(model.inpaint(value, mask, 4)[:, known], drawn[:, known])
    assert model.impute(value.reshape(3, 1, 1, 4, 4)).shape == (3, 1, 1, 4, 4)
    assert model.impute(value[0]).shape == (1, 4, 4)
    assert model.impute(value[:0], 2).shape == (2, 0, 1, 4, 4)
    with pytest.raises(ValueError, match="num_draws"):
        model.impute(value, num_draws=0)
    with pytest.raises(ValueError, match="num_codes"):
        model.impute(value, num_codes=0)
    with pytest.raises(ValueError, match="boolean"):
        model.inpaint(value, torch.ones(3))
    mean = model.condition(value[0], num_particles=1024).mean
    torch.testing.assert_close(model.impute(value[:1], num_draws=1024)[0], mean, atol=0.3, rtol=0)


@pytest.mark.parametrize("name", ["row", "two levels", "image"])
def test_codes_are_as_likely_as_sums_over_all_say(name):
    """Their probabilities are the slopes of the log-evidence in how well windows fit."""
    model = scattered(name).requires_grad_(False)
    value = model.sample((3,))
    value[torch.rand(value.shape) < 0.5] = math.nan
    law = model.law
    tree = law.tree(100)
    entries = known_entries(model.flatten(value), None)
    fits = fits_of_evidence(law, tree, entries, are_values=True).requires_grad_()
    (expected,) = torch.autograd.grad(tree.log_prob(fits).sum(), fits)
    share = tree.marginals(fits)
    torch.testing.assert_close(share, expected)
    drawn = tree.sample(fits, 20_000)[0]  # (C, draws, L)
    for cell, own in zip(drawn, share[0], strict=True):
        counts = (cell[:, None] == tree.everything[0]).all(-1).double().sum(0)
        error = (own * (1 - own) * len(cell)).sqrt()
        assert bool(((counts - own * len(cell)).abs() < 6 * error + 1).all())
    means = law.windows.moments(tree.everything[0])[0]
    expected = model.tiling.entries_of((share @ means).unflatten(-1, (-1, 1)))
    expected = torch.where(value.isnan(), model.unflatten(expected, (3,)), value)
    torch.testing.assert_close(model.impute(value), expected)


def test_sequences_are_completed():
    model = scattered("windows continue", torch.float32).requires_grad_(False)
    value = model.sample((3,))
    whole = value.clone()
    value[0, :, 2:4], value[1] = math.nan, math.nan
    filled, drawn = model.impute(value), model.impute(value, 5)
    assert drawn.shape == (5, 3, 2, 6)
    for x in (filled, *drawn):
        assert bool(x.isfinite().all())
        assert torch.equal(x[2], whole[2])
        assert torch.equal(x[0, :, :2], whole[0, :, :2])


@pytest.mark.parametrize(
    ("evidence", "message"),
    [
        (({(0, 9, 0): 1.0},), "index"),
        (({(0, 1): 1.0},), "3 indices"),
        (({5: 1.0},), "3 indices"),
        ((Box(low=torch.zeros(5, 3)),), "broadcasts"),
        ((Box(low=torch.zeros(2, 1, 4, 4)),), "by itself"),
        ((torch.full((1, 4, 4), math.nan),), "something is known"),
        ((torch.zeros(4, 4),), "array of shape"),
        ((LinearInequality(torch.ones(3)),), "of shape"),
        ((LinearInequality({(0, 1, 1): 1.0}),), "got dict"),
        (("words",), "pieces of evidence"),
        (({(0, 1, 1): 2.0}, Box(high=1.0)), r"entry \(0, 1, 1\)"),
        (({(0, 2, 3): 2.0}, {(0, 2, 3): 2.0}), r"entry \(0, 2, 3\) twice"),
        (({(0, 2, 3): 2.0, (0, -2, 3): 1.0},), r"entry \(0, 2, 3\) twice"),
        (({(0, 1, 1): 1e30},), "too small for numbers"),
        (
            (
                {(0, 2, 3): 0.0},
                AnyOf(above((1, 4, 4), (0, 2, 3), 1.0), above((1, 4, 4), (0, 2, 3), 2.0)),
            ),
            r"values of entry \(0, 2, 3\)",
        ),
        (
            (above((1, 4, 4), (0, 2, 3), 1.0), below((1, 4, 4), (0, 2, 3), 0.0)),
            r"1 <= x\[0, 2, 3\] <= 0",
        ),
    ],
)
def test_evidence_that_does_not_fit(evidence, message):
    model = scattered("image", torch.float32).requires_grad_(False)
    with pytest.raises(ValueError, match=message):
        model.condition(*evidence)


def test_contradictions_in_sequences():
    model = scattered("windows continue", torch.float32).requires_grad_(False)
    bounds = above((2, 6), (1, 5), 1.0), below((2, 6), (1, 5), 1.0)
    with pytest.raises(ValueError, match=r"1 <= x\[1, 5\] <= 1"):
        model.condition(*bounds)
    with pytest.raises(ValueError, match="can hold"):
        model.condition({(1, 5): 1e30})
    with pytest.raises(ValueError, match=r"entry \(0, 1\)"):
        model.condition({(0, 1): 2.0}, Box(high=1.0))
    total = torch.ones(2, 6)
    with pytest.raises(ValueError, match="can hold"):
        model.condition(LinearInequality(total), LinearInequality(-total, -1.0), num_particles=16)
    with pytest.raises(ValueError, match="combinations"):
        model.condition(LinearGaussian(torch.ones(1, 2, 6), torch.zeros(1), 0.1))
