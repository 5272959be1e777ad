"""Draws: their codes against the sum over all, their noise, and what changes them on request."""

import dataclasses
import math

import pytest
import torch
from scipy.stats import chisquare

from pyromix import DCGMM
from pyromix.dcgmm import GMM, Folding
from pyromix.dcgmm.sampling import SampleArguments, SampleOptions
from pyromix.testing import goodness_of_fit

from .models import build, close, kinds
from .reference import Slow

STANDARD_ERRORS = 6.0
P_VALUE = 1e-6
NUM = 4000


def codes_of(images, law):
    """The code of each noiseless image: the one whose mean it is."""
    distance = torch.cdist(images.flatten(1), law.means)
    nearest, index = distance.min(1)
    assert nearest.max() < 1e-6
    return index


def check_frequencies(index, weights):
    """A chi-squared test, with rare codes taken together; none may be there that cannot be."""
    counts = torch.bincount(index, minlength=len(weights)).double()
    assert not counts[weights < 1e-12].any()
    expected = len(index) * weights
    rare = expected < 5
    got = torch.cat([counts[~rare], counts[rare].sum().reshape(1)])
    expected = torch.cat([expected[~rare], expected[rare].sum().reshape(1)])
    got, expected = got[expected > 1e-9], expected[expected > 1e-9]
    if len(got) == 1:
        return
    assert chisquare(got.numpy(), expected.numpy()).pvalue > P_VALUE


def check_means(values, expected, square):
    """Means over the first dimension, with what is expected of the values and their squares."""
    error = ((square - expected**2).clamp(min=0) / len(values)).sqrt()
    assert ((values.mean(0) - expected).abs() < STANDARD_ERRORS * error + 1e-9).all()


@kinds()
def test_codes_follow_the_law(name):
    model = build(name)
    law = Slow(model).law()
    assert torch.pdist(law.means).min() > 1e-4  # codes can be told from images
    check_frequencies(codes_of(model.sample((NUM,), noise=False), law), law.weights)


@kinds()
def test_noise_follows_the_law(name):
    model = build(name, deviation=1.0)
    law = Slow(model).law()
    x = model.sample((NUM,)).flatten(1)
    means, variances = law.means, law.variances
    squares = means**2 + variances
    fourth = means**4 + 6 * means**2 * variances + 3 * variances**2
    check_means(x, law.weights @ means, law.weights @ squares)
    check_means(x.square(), law.weights @ squares, law.weights @ fourth)
    # Correlations among pixels are those of the means: noise is independent.
    product = means[:, 0] * means[:, -1], squares[:, 0] * squares[:, -1]
    check_means(x[:, 0] * x[:, -1], *(law.weights @ value for value in product))


@kinds("tree: one layer, pixels", "tree: folding, pooling", "tree: 2L-d")
@pytest.mark.parametrize("noise", ["component", "shared"])
def test_draws_fit_the_sum_over_all_codes(name, noise):
    model = build(name, noise=noise, deviation=0.5)
    if model.event_shape.numel() > 3:  # a few pixels of larger images
        law = Slow(model).law()
        x = model.sample((NUM,)).flatten(1)[:, :3]
        law.means, law.variances = law.means[:, :3], law.variances[:, :3]
        assert goodness_of_fit(x, law.log_prob(x)) > P_VALUE
        return
    x = model.sample((NUM,))
    assert goodness_of_fit(x, Slow(model).log_prob(x)) > P_VALUE


@torch.no_grad()
def unclipped(name):
    """Without the smallest numbers of control signals: codes that share them are alike."""
    model = build(name)
    for mixture in model.mixtures[1:]:
        mixture.loc.abs_().add_(0.01)
    return model


@kinds("tree: 2L-b", "tree: 3L", "tree: two tops", "pixels, large patches", "controls, one top")
@pytest.mark.parametrize(
    "options",
    [{"top_s": 1}, {"top_s": 2}, {"temperature": 0.5}, {"temperature": 3.0, "top_s": 2}],
    ids=str,
)
def test_fewer_or_flatter_codes(name, options):
    model = unclipped(name)
    law = Slow(model, **options).law()
    index = codes_of(model.sample((NUM,), noise=False, **options), law)
    check_frequencies(index, law.weights)
    if options == {"top_s": 1}:  # the code on top alone is left to chance
        assert (law.weights > 0).sum() <= len(Slow(model).top_weights())
    # The test can tell the two laws apart.
    with pytest.raises(AssertionError):
        check_frequencies(index, Slow(model).law().weights)


@kinds("tree: 2L-b", "pixels")
def test_cold_draws_take_the_likeliest_codes(name):
    model = unclipped(name)
    law = Slow(model, top_s=1).law()
    index = codes_of(model.sample((100,), noise=False, temperature=1e-4), law)
    assert (law.weights[index] > 0).all()


@kinds("tree: one layer", "pixels")
def test_as_many_codes_as_there_are_change_nothing(name):
    model = build(name)
    torch.manual_seed(3)
    x = model.sample((10,))
    torch.manual_seed(3)
    close(model.sample((10,), top_s=100, temperature=1.0), x)


@kinds("tree: 2L-b, channels", "pixels, channels")
def test_shapes_and_dtypes(name):
    model = build(name)
    for sample_shape in ((), (3,), (2, 3)):
        x = model.sample(sample_shape)
        assert x.shape == (*sample_shape, *model.event_shape)
        assert not x.requires_grad
    single = model.float()
    assert single.sample((2,)).dtype == torch.float32
    assert single.sample((2,), sharpen_steps=2).dtype == torch.float32


# ---- sharpening -------------------------------------------------------------------------------


@kinds("pixels", "pixels, large patches", "pixels, channels")
def test_sharpening_raises_the_likelihood_of_the_layer_above(name):
    model = build(name, deviation=0.3)
    likelihoods = []
    for steps in (0, 1, 20, 100):
        torch.manual_seed(0)
        x = model.sample((50,), noise=False, sharpen_steps=steps, sharpen_rate=0.01)
        likelihoods.append(model.layer_log_likelihoods(x)[0].sum((-1, -2)))
    means = torch.stack(likelihoods).mean(1)
    assert (means.diff() > 0).all()
    # Not in the mean alone: hardly an image is the worse for it.
    assert (likelihoods[-1] > likelihoods[0]).double().mean() > 0.9


def test_sharpening_settles_what_windows_disagree_on():
    """Both windows see the middle pixel, and mostly say another thing of it.

    What they say is averaged, which fits neither. One component fits the right window as it is;
    the left window fits none but with the value of 1.
    """
    model = DCGMM((1, 1, 3), [GMM(2), Folding((1, 2), 1), GMM(2)], max_precision=100.0)
    zero, one = [1.0, 0.0], [0.0, 1.0]
    with torch.no_grad():
        model.mixtures[0].loc.copy_(torch.tensor([[0.0], [1.0]]))
        model.mixtures[1].loc.copy_(torch.tensor([zero + one, one + one]))
        model.mixtures[1].logits.copy_(torch.tensor([0.9, 0.1]).log())
    x = model.sample((400,), noise=False)[..., 1]
    # With a probability of 0.9 / 2 + 0.1, within eight standard errors.
    assert 140 < (x > 0.5).sum() < 300
    x = model.sample((400,), noise=False, sharpen_steps=50, sharpen_rate=0.01)[..., 1]
    assert (x > 0.5).all()


# ---- what is given ----------------------------------------------------------------------------


def test_options_are_declared_alike():
    """Once for type checkers, and once with defaults and checks."""
    assert SampleArguments.__annotations__ == {
        field.name: field.type for field in dataclasses.fields(SampleOptions)
    }


@pytest.mark.parametrize("call", ["sample", "variants", "sample_class"])
def test_unknown_options(call):
    model = build("pixels", num_classes=2)
    arguments = {"sample": (), "variants": (model.sample(),), "sample_class": (1,)}[call]
    with pytest.raises(TypeError, match="top_k"):
        getattr(model, call)(*arguments, top_k=3)


def test_moments_and_pathwise_gradients_are_not_available():
    model = build("pixels")
    for ask in (lambda: model.mean, lambda: model.variance, lambda: model.rsample((2,))):
        with pytest.raises(NotImplementedError, match="draw"):
            ask()


@pytest.mark.parametrize(
    "options",
    [
        {"top_s": 0},
        {"top_s": 1.5},
        {"temperature": 0.0},
        {"temperature": -1.0},
        {"temperature": math.nan},
        {"sharpen_steps": -1},
        {"sharpen_steps": 0.5},
        {"sharpen_rate": -0.1},
        {"sharpen_rate": math.inf},
    ],
    ids=str,
)
def test_bad_options(options):
    model = build("pixels")
    (name,) = options
    with pytest.raises(ValueError, match=name):
        model.sample((2,), **options)
