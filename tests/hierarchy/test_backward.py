"""Backward sampling, where it is exact, and what follows from its definition."""

import math

import pytest
import torch

from pyromix import Box, HierarchicalDRMM, Level, Top
from pyromix.hierarchy.backward import _balance
from pyromix.hierarchy.tiling import Tiling

from .test_law import SHAPES, scattered

WHOLE = {"truncation": 0.0, "forward_truncation": 0.0}
COUNT = 20_000


def made(event_shape, *levels, apart=None):
    """A model with parameters at random, or with means so far apart, in order."""
    torch.manual_seed(0)
    model = HierarchicalDRMM(event_shape, levels, scale_floor=1e-3).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter))
        if apart is not None:
            model.windows.loc.copy_(
                apart * torch.arange(model.windows.loc.shape[1]).reshape(-1, 1)
            )
    return model.requires_grad_(False).eval()


def assert_alike(x, y):
    """Means and second moments of two sets of draws agree, within six standard errors."""
    features = []
    for draws in (x, y):
        flat = draws.flatten(1)
        pairs = flat.unsqueeze(1) * flat.unsqueeze(2)
        features.append(torch.cat([flat, pairs.flatten(1)], -1))
    first, second = features
    error = (first.var(0) / len(first) + second.var(0) / len(second)).sqrt()
    assert bool(((first.mean(0) - second.mean(0)).abs() < 6 * error + 1e-9).all())


def shares(x, apart):
    """How often each combination of codes of windows of one entry occurs."""
    codes = (x.flatten(1) / apart).round().long()
    place = (codes * 3 ** torch.arange(codes.shape[1])).sum(-1)
    return place.bincount(minlength=3 ** codes.shape[1]) / len(x)


def test_one_component_everywhere_is_the_normal_given_what_is_known():
    model = made((1, 4), Level(4, None, 1, 1, "triangular"), Top(1, 1))
    code = torch.zeros(1, 1, dtype=torch.long)
    mean, factor = (
        t[0] for t in (model.windows.law.mean_of(code), model.windows.law.factor_of(code))
    )
    covariance = factor @ factor.mT
    seen, value = [1, 3], torch.tensor([0.4, -1.3], dtype=torch.float64)
    gain = covariance[:, seen] @ covariance[seen][:, seen].inverse()
    expected = mean + gain @ (value - mean[seen])
    left = covariance - gain @ covariance[seen]
    x = model.sample_backward({(0, 1): 0.4, (0, 3): -1.3}, sample_shape=(COUNT,))[:, 0]
    assert bool((x[:, seen] == value).all())
    error = (left.diagonal().clamp(min=0) / COUNT).sqrt()
    assert bool(((x.mean(0) - expected).abs() <= 6 * error + 1e-9).all())
    torch.testing.assert_close(x.mT.cov(), left, atol=0.05 * float(left.abs().max()), rtol=0)


def test_single_layers_draw_from_the_law():
    model = made((1, 8), Level(2, None, 1, 3), Level(2, None, 1, 3), Top(1, 3))
    x = model.sample_backward(sample_shape=(COUNT,), **WHOLE)
    assert_alike(x, model.sample((COUNT,)))
    # There is nothing to correct, but for the error of draws.
    for bias in model.bias_corrections(COUNT):
        assert float(bias.abs().max()) < 0.1


def test_windows_that_tell_their_codes_draw_from_the_law_given_them():
    model = made((1, 6), Level(2, None, 1, 3), Top(1, 3), apart=10.0)
    value = torch.tensor([[20.1, 19.8, math.nan, math.nan, 0.3, -0.2]], dtype=torch.float64)
    x = model.sample_backward(value, sample_shape=(COUNT,), **WHOLE)
    assert_alike(x, model.impute(value, COUNT))


def test_the_forward_pass_alone_is_exact_where_windows_are_independent():
    model = made((1, 6), Level(2, None, 1, 3), Top(1, 1))
    model.codes[0].tables.zero_()  # cells expect by themselves what they are
    value = torch.tensor([[0.5, math.nan, math.nan, -0.5, 1.0, math.nan]], dtype=torch.float64)
    x = model.sample_backward(value, sample_shape=(COUNT,), alpha_f=1.0, **WHOLE)
    assert_alike(x, model.impute(value, COUNT))


def test_the_bias_correction_makes_two_layers_exact():
    apart = 100.0
    model = made((1, 3), Level(1, None, 1, 3), Top(2, 3), apart=apart)
    model.codes[0].links.mul_(3)
    expected = shares(model.sample((COUNT,)), apart)
    bias = model.bias_corrections(COUNT)
    plain, corrected = (
        shares(model.sample_backward(sample_shape=(COUNT,), corrections=b, **WHOLE), apart)
        for b in (None, bias)
    )
    noise = 0.5 * float((shares(model.sample((COUNT,)), apart) - expected).abs().sum())
    assert 0.5 * float((corrected - expected).abs().sum()) < noise + 0.02
    assert 0.5 * float((plain - expected).abs().sum()) > noise + 0.05


def test_a_correction_gives_averages_that_are_wanted():
    torch.manual_seed(0)
    scores, wanted = 3 * torch.randn(500, 4), torch.tensor([0.1, 0.2, 0.3, 0.4])
    average = (scores + _balance(scores, wanted)).softmax(-1).mean(0)
    torch.testing.assert_close(average, wanted, atol=1e-4, rtol=0)


def test_truncation_to_the_likeliest_component():
    apart = 100.0
    model = made((1, 3), Level(1, None, 1, 3), Top(1, 3), apart=apart)
    top = model.law.priors[1].log_weight.argmax()
    scores = model.windows.law.log_weight[0] + model.law.levels[0].tables[0, top, :, 0]
    x = model.sample_backward(sample_shape=(50,), truncation=1.0, forward_truncation=0.0)
    assert bool(((x[:, 0] / apart).round() == scores.argmax(-1)).all())


@pytest.mark.parametrize("name", SHAPES)
def test_known_entries_are_kept(name):
    model = scattered(name).requires_grad_(False)
    value = model.sample()
    value[torch.rand(value.shape) < 0.5] = math.nan
    bias = model.bias_corrections(200, generator=torch.Generator().manual_seed(0))
    draws = [
        model.sample_backward(
            value,
            sample_shape=(4, 2),
            corrections=bias,
            passes=16,
            generator=torch.Generator().manual_seed(1),
        )
        for _ in range(2)
    ]
    known = ~value.isnan()
    assert draws[0].shape == (4, 2, *model.event_shape)
    assert bool((draws[0][..., known] == value[known]).all())
    assert bool(draws[0].isfinite().all())
    assert torch.equal(*draws)
    assert model.sample_backward(sample_shape=(0,)).shape == (0, *model.event_shape)


def test_means_over_windows():
    tiling = Tiling((5, 4), (3, 2), (2, 1))
    x = torch.randn(2, 20, 3)
    torch.testing.assert_close(tiling.mean_shown(tiling.take(x)), x)
    windows = torch.arange(3.0).reshape(1, 3, 1).expand(1, 3, 2)  # each shows its own number
    assert Tiling((4,), (2,), (1,)).mean_shown(windows).tolist() == [[0.0, 0.5, 1.5, 2.0]]


@pytest.mark.parametrize(
    ("evidence", "options", "message"),
    [
        ((Box(low=0.0),), {}, "known entries, by index or as an array .* got Box"),
        (({0: 1.0},), {}, "2 indices"),
        (({(0, 0): torch.zeros(2)},), {}, "one array, got a batch"),
        ((), {"passes": 0}, "passes to be an integer of at least 1"),
        ((), {"alpha_f": 1.5}, "alpha_f to be a number from 0 to 1, got 1.5"),
        ((), {"truncation": -0.1}, "truncation to be a number from 0 to 1"),
        ((), {"forward_truncation": "half"}, "forward_truncation to be a number"),
        ((), {"corrections": [torch.zeros(2, 2)]}, r"corrections of shapes .*, got \[\(2, 2\)\]"),
        ((), {"corrections": 1.0}, "corrections of shapes .* got float"),
    ],
)
def test_bad_input(evidence, options, message):
    with pytest.raises(ValueError, match=message):
        scattered("row").sample_backward(*evidence, **options)
