"""Images with missing parts: what is seen stays, the rest follows the posterior."""

import math

import pytest
import torch

from .models import TREES, build, close, kinds, trees
from .reference import Slow
from .test_draws import STANDARD_ERRORS, check_means

NUM = 600


def masked(model, num=8, seen=0.5):
    """Draws, and a random mask for each that is true where pixels are known."""
    x = model.sample((num,))
    mask = torch.rand(num, 1, *model.event_shape[1:]) < seen
    return x, mask


def wide(mask, model):
    """With the channels."""
    return mask.expand(*mask.shape[:-3], *model.event_shape)


@trees
def test_posterior_means_on_trees(name):
    model = build(name, deviation=0.5)
    x, mask = masked(model)
    expected = Slow(model).law().fill(x, wide(mask, model))
    got = model.inpaint(x, mask)
    close(got, expected, 1e-10)
    assert torch.equal(got[wide(mask, model)], x[wide(mask, model)])
    assert (got - x)[~wide(mask, model)].abs().max() > 1e-3


@kinds()
def test_what_is_seen_stays_to_the_bit(name):
    model = build(name)
    x, mask = masked(model)
    seen = wide(mask, model)
    hidden = torch.where(seen, x, math.nan)
    for given in (x, hidden, torch.where(seen, x, 1e6)):
        torch.manual_seed(5)
        mean = model.inpaint(given, mask)
        draws = model.inpaint(given, mask, num_samples=3, noise=True)
        assert mean.shape == x.shape
        assert draws.shape == (3, *x.shape)
        assert torch.equal(mean[seen], x[seen])
        assert torch.equal(draws[:, seen], x[seen].expand(3, -1))
        assert mean.isfinite().all()
        assert draws.isfinite().all()
        # What stands in place of missing pixels plays no part.
        if given is x:
            expected = mean, draws
        assert torch.equal(mean, expected[0])
        assert torch.equal(draws, expected[1])
    assert (draws[0] != draws[1])[~seen].all()


def test_nothing_and_everything_is_seen():
    model = build("tree: 2L-b", deviation=0.5)
    x = model.sample((3,))
    law = Slow(model).law()
    none = torch.zeros(4, 4, dtype=torch.bool)
    close(model.inpaint(x, none), law.mean().expand(3, 1, 4, 4), 1e-10)
    assert torch.equal(model.inpaint(x, ~none), x)
    assert torch.equal(model.inpaint(x, ~none, num_samples=2), x.expand(2, -1, -1, -1, -1))
    # With nothing to go by, draws are those of the law.
    draws = model.inpaint(x[0], none, num_samples=NUM, noise=True).flatten(1)
    check_means(draws, law.weights @ law.means, law.weights @ (law.means**2 + law.variances))


@kinds(*(f"tree: {name}" for name in ("one layer", "2L-b, channels", "two tops, 3L", "pooling")))
def test_draws_follow_the_posterior(name):
    """Means, squares and products of unseen pixels, exact for trees."""
    assert name.removeprefix("tree: ") in TREES
    model = build(name, deviation=1.5)
    x = model.sample()
    mask = torch.ones(1, *model.event_shape[1:], dtype=torch.bool)
    mask.flatten()[1::2] = False  # every other pixel
    seen = wide(mask, model)
    law = Slow(model).law()
    posterior = law.posterior(x, seen)[0]
    assert posterior.max() < 0.99  # there is something to be drawn
    hidden = ~seen.flatten()
    means, variances = law.means[:, hidden], law.variances[:, hidden]
    y = model.inpaint(x, mask, num_samples=NUM, noise=True).flatten(1)[:, hidden]
    squares = means**2 + variances
    fourth = means**4 + 6 * means**2 * variances + 3 * variances**2
    check_means(y, posterior @ means, posterior @ squares)
    check_means(y.square(), posterior @ squares, posterior @ fourth)
    product = means[:, 0] * means[:, -1], squares[:, 0] * squares[:, -1]
    check_means(y[:, 0] * y[:, -1], *(posterior @ value for value in product))
    y = model.inpaint(x, mask, num_samples=NUM).flatten(1)[:, hidden]  # means given codes
    check_means(y, posterior @ means, posterior @ means**2)
    assert torch.cdist(y, means).min(1).values.max() < 1e-6


@kinds("pixels", "controls, one top", "three layers", "overlapping pooling")
@pytest.mark.parametrize("max_codes", [0, 256])
def test_draws_of_the_bound_have_its_means(name, max_codes):
    """Draws of codes, where they are summed over and where they are not."""
    model = build(name, deviation=1.5, max_codes=max_codes)
    x, mask = masked(model, num=1)
    hidden = ~wide(mask, model)
    y = model.inpaint(x, mask, num_samples=NUM)[:, hidden]
    spread = y.std(0)
    assert spread.max() > 0.1
    error = STANDARD_ERRORS * spread / math.sqrt(NUM)
    assert ((y.mean(0) - model.inpaint(x, mask)[hidden]).abs() < error).all()


@kinds("pixels", "pixels, large patches", "pixels, channels", "pooling")
def test_posterior_means_of_the_bound(name):
    """Much nearer to the exact ones than these are to the law's mean."""
    model = build(name, deviation=0.3)
    x, mask = masked(model, num=40, seen=0.6)
    seen = wide(mask, model)
    law = Slow(model).law()
    expected = law.fill(x, seen)
    error = (model.inpaint(x, mask) - expected)[~seen].square().mean()
    spread = (law.mean() - expected)[~seen].square().mean()
    assert error < 0.05 * spread


@pytest.mark.parametrize("shape", ["HW", "CHW", "NHW", "N1HW", "NCHW"])
def test_shapes_of_masks(shape):
    model = build("tree: 2L-b, channels")
    x = model.sample((5,))
    one = torch.rand(4, 6) < 0.5
    many = torch.rand(5, 4, 6) < 0.5
    mask = {
        "HW": one,
        "CHW": one.expand(2, 4, 6),
        "NHW": many,
        "N1HW": many.unsqueeze(1),
        "NCHW": torch.rand(5, 2, 4, 6) < 0.5,  # channels may be missing on their own
    }[shape]
    seen = {"HW": one, "CHW": one, "NHW": many.unsqueeze(1), "N1HW": many.unsqueeze(1)}
    full = seen.get(shape, mask).expand(5, 2, 4, 6)
    close(model.inpaint(x, mask), Slow(model).law().fill(x, full), 1e-10)
    # A single image, and several batch dimensions.
    if shape in ("HW", "CHW"):
        close(model.inpaint(x[0], mask), model.inpaint(x, mask)[0])
        assert model.inpaint(x.expand(3, -1, -1, -1, -1), mask).shape == (3, 5, 2, 4, 6)


@kinds("tree: 2L-b", "tree: two tops, 3L")
@pytest.mark.parametrize("temperature", [0.5, 20.0])
def test_a_temperature_makes_codes_less_certain(name, temperature):
    """Pixels count for less, as if they had more noise."""
    model = build(name, deviation=0.5)
    x, mask = masked(model)
    law = Slow(model).law()
    law.variances = temperature * law.variances
    expected = law.fill(x, wide(mask, model))
    close(model.inpaint(x, mask, temperature=temperature), expected, 1e-10)
    assert (model.inpaint(x, mask) - expected).abs().max() > 1e-3


BAD = [
    (lambda m, x: m.inpaint(x, torch.ones(4, 4)), "bool"),
    (lambda m, x: m.inpaint(x, torch.ones(3, 4, dtype=torch.bool)), "mask"),
    (lambda m, x: m.inpaint(x, torch.ones(7, 1, 4, 4, dtype=torch.bool)), "mask"),
    (lambda m, x: m.inpaint(x, "left"), "mask"),
    (lambda m, x: m.inpaint(x[..., :3], torch.ones(4, 4, dtype=torch.bool)), "shape"),
    (lambda m, x: m.inpaint(x * math.nan, torch.ones(4, 4, dtype=torch.bool)), "NaN"),
    (lambda m, x: m.inpaint(x, torch.ones(4, 4, dtype=torch.bool), num_samples=0), "num_samples"),
    (lambda m, x: m.inpaint(x), "calibrate"),
    (lambda m, x: m.inpaint(x, torch.ones(4, 4, dtype=torch.bool), temperature=0), "temperature"),
    (lambda m, x: build("tree: one layer").inpaint(x[..., :2, :2]), "Use smaller windows"),
    (
        lambda m, x: build("pixels, channels").inpaint(
            torch.zeros(2, 2, 3, 4), torch.ones(2, 3, 4, dtype=torch.bool)
        ),
        "of images or of channels",
    ),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input(call, message):
    model = build("tree: 2L-b")
    with pytest.raises((ValueError, RuntimeError), match=message):
        call(model, model.sample((2,)))
