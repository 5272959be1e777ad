"""Shapes layer by layer, the wiring of the way down, and what does not fit."""

import pytest
import torch

from pyromix import DCGMM
from pyromix.dcgmm import GMM, Classifier, Folding, Pooling

from .models import KINDS, LOOPS, build, kinds
from .reference import Slow

# Rows, columns and channels after each layer: the paper's formulas worked out by hand.
SHAPES = {
    "1L": [(1, 1, 784), (1, 1, 25)],
    "2L-a": [(2, 2, 400), (2, 2, 25), (1, 1, 100), (1, 1, 36)],
    "2L-b": [(4, 4, 49), (4, 4, 25), (1, 1, 400), (1, 1, 36)],
    "2L-c": [(11, 11, 64), (11, 11, 25), (1, 1, 3025), (1, 1, 36)],
    "2L-d": [(1, 1, 784), (1, 1, 25), (1, 1, 25), (1, 1, 36)],
    "2L-e": [(13, 13, 16), (13, 13, 25), (1, 1, 4225), (1, 1, 36)],
    "3L-a": [
        *[(26, 26, 9), (26, 26, 25), (13, 13, 25)],
        *[(10, 10, 400), (10, 10, 25), (5, 5, 25)],
        *[(1, 1, 625), (1, 1, 49)],
    ],
    "3L-b": [(1, 1, 784), (1, 1, 25)] + [(1, 1, 25)] * 4,
}


@pytest.mark.parametrize("name", SHAPES)
def test_presets_have_the_papers_shapes(name):
    model = DCGMM.preset(name)
    assert len(model.layers) == len(SHAPES[name])
    shapes = iter(SHAPES[name])
    dims, sizes, before = [], [], None
    for layer in model.layers:
        shape = next(shapes)
        if isinstance(layer, GMM):
            dims.append(before[2])
            sizes.append(shape[:2])
        before = shape
    assert [m.loc.shape[1] for m in model.mixtures] == dims
    assert [m.loc.shape[0] for m in model.mixtures] == [
        layer.num_components for layer in model.layers if isinstance(layer, GMM)
    ]
    x = torch.rand(2, 1, 28, 28)
    assert [t.shape for t in model.layer_log_likelihoods(x)] == [(2, *size) for size in sizes]
    assert model.exact == (name in ("1L", "2L-b", "2L-d", "3L-b"))
    assert (model.noise_scale is None) == (name in ("1L", "2L-b", "2L-d", "3L-b"))
    lines = model.summary().splitlines()
    assert len(lines) == 1 + len(SHAPES[name])  # with the image's
    for line, (height, width, channels) in zip(lines[1:], SHAPES[name], strict=True):
        numbers = line.replace("x", " ").split()
        assert {str(height), str(width), str(channels)} <= set(numbers)
    assert model.summary().splitlines()[-1].strip() in repr(model)


def test_presets_take_other_images_and_classes():
    model = DCGMM.preset("2L-c", event_shape=(3, 28, 28), num_classes=7, bound_steps=2)
    assert model.event_shape == (3, 28, 28)
    assert model.layers[-1] == Classifier(7)
    assert model.mixtures[0].loc.shape == (25, 8 * 8 * 3)
    assert model.bound_steps == 2
    with pytest.raises(ValueError, match="2L-c"):  # a list of those there are
        DCGMM.preset("2L-f")


@kinds()
def test_shapes(name):
    event_shape, _ = KINDS[name]
    model = build(name)
    slow = Slow(model)
    assert model.event_shape == event_shape
    assert model.exact == (name not in LOOPS)
    x = torch.randn(3, 2, *event_shape)
    likelihoods = model.layer_log_likelihoods(x)
    assert [t.shape for t in likelihoods] == [(3, 2, *size) for size in slow.sizes]
    assert model.log_prob(x).shape == model.score(x).shape == (3, 2)
    assert model.sample((4,)).shape == (4, *event_shape)
    codes = model.encode(x)
    assert [c.shape for c in codes] == [(3, 2, h * w) for h, w in slow.sizes]
    assert model.decode(codes[0]).shape == x.shape


@kinds()
def test_the_way_up_against_loops(name):
    """Log-likelihoods, the score, and the code of every position (the paper's equation 5)."""
    model = build(name)
    slow = Slow(model)
    x = torch.cat([model.sample((4,)), torch.randn(2, *model.event_shape)])
    got, codes = model.layer_log_likelihoods(x), model.encode(x)
    for i, image in enumerate(x):
        expected, activities = slow.up(image)
        for layer in range(slow.num_layers):
            likelihood = torch.tensor(expected[layer])
            torch.testing.assert_close(got[layer][i], likelihood, atol=1e-9, rtol=1e-9)
            best = torch.tensor(activities[layer]).argmax(-1).flatten()
            assert torch.equal(codes[layer][i], best)
        top = torch.tensor(expected[-1]).sum()
        torch.testing.assert_close(model.score(x)[i], top, atol=1e-9, rtol=1e-9)
        if slow.sizes[-1] == (1, 1):
            assert model.cluster(x)[i] == codes[-1][i, 0]
    # The images differ, and so do their codes: nothing above is a comparison of constants.
    assert got[-1].std() > 1e-3
    assert len(codes[0].unique()) > 1


@kinds()
def test_decoding_against_loops(name):
    model = build(name)
    slow = Slow(model)
    codes = slow.all_codes(0)[:: max(1, len(slow.all_codes(0)) // 50)]
    expected = torch.stack([slow.decode(c)[0] for c in codes])
    got = model.decode(torch.tensor(codes))
    torch.testing.assert_close(got, expected, atol=1e-12, rtol=1e-12)


BAD = [
    (lambda: DCGMM((1, 4, 4), []), "at least one layer"),
    (lambda: DCGMM((1, 4, 4), [Folding(4)]), "GMM layer at the top"),
    (lambda: DCGMM((1, 4, 4), [Classifier(3)]), "GMM layer at the top"),
    (lambda: DCGMM((1, 4, 4), [Folding(4), GMM(2), Folding(1)]), "GMM layer at the top"),
    (
        lambda: DCGMM((1, 4, 4), [Folding(4), GMM(2), Folding(1), Classifier(3)]),
        "GMM layer at the top",
    ),
    (lambda: DCGMM((1, 4, 4), [Folding(4), Classifier(2), GMM(2)]), "only as the last layer"),
    (lambda: DCGMM((1, 4, 4), [Folding(2), GMM(2), Classifier(2)]), r"Folding\(\(2, 2\)\)"),
    (lambda: DCGMM((1, 4, 4), [Folding(5), GMM(2)]), "at least 5 pixels high"),
    (lambda: DCGMM((1, 6, 4), [Folding(5, 1), GMM(2)]), "at least 5 pixels wide"),
    (lambda: DCGMM((1, 4, 5), [Folding(2), GMM(2)]), r"4 and 6 wide"),
    (lambda: DCGMM((1, 8, 5), [Folding(5, 2), GMM(2)]), r"7 and 9 high"),
    (
        lambda: DCGMM((1, 4, 4), [Folding(2, 1), GMM(2), Pooling(2), GMM(2)]),
        r"Layer 3.*2 and 4 high",
    ),
    (lambda: DCGMM((1, 4, 4), [Pooling(2), Folding(2), GMM(2)]), "no Pooling of pixels"),
    (lambda: DCGMM((1, 4, 4), ["GMM", GMM(2)]), "got 'GMM' as layer 1"),
    (lambda: DCGMM((4, 4), [Folding(4), GMM(2)]), r"\(channels, height, width\)"),
    (lambda: DCGMM((1, 4, 0), [Folding(4), GMM(2)]), "positive|at least 1"),
    (lambda: DCGMM(16, [Folding(4), GMM(2)]), r"\(channels, height, width\)"),
    (lambda: DCGMM((1, 4, 4), [Folding(2, 1), GMM(2)], noise="component"), "noise"),
    (lambda: DCGMM((1, 4, 4), [Folding(2), GMM(2)], noise="none"), "noise"),
    (lambda: DCGMM((1, 4, 4), [Folding(2), GMM(2)], max_precision=0.0), "max_precision"),
    (lambda: DCGMM((1, 4, 4), [Folding(2), GMM(2)], bound_steps=0), "bound_steps"),
    (lambda: DCGMM((1, 4, 4), [Folding(2), GMM(2)], bound_steps=1.5), "bound_steps"),
    (lambda: DCGMM((1, 4, 4), [Folding(2), GMM(2)], max_codes=-1), "max_codes"),
    (lambda: DCGMM((1, 4, 4), [Folding(2), GMM(2)], centroid_share=1.5), "centroid_share"),
    (lambda: Folding(2, 3), "no window would cover"),
    (lambda: Pooling((2, 3), (1, 4)), "no window would cover"),
    (lambda: Folding(0), "kernel"),
    (lambda: Folding((2, 2, 2)), r"one number or \(height, width\)"),
    (lambda: Folding("22"), r"one number or \(height, width\)"),
    (lambda: Folding(2, 0), "stride"),
    (lambda: GMM(0), "num_components"),
    (lambda: GMM(2.5), "num_components"),
    (lambda: Classifier(0), "num_classes"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_what_does_not_fit(call, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        call()


def test_the_error_shows_the_shapes_so_far():
    with pytest.raises(ValueError, match=r"(?s)8 and 16 high.*GMM 25 +11 x 11 +25 ch"):
        DCGMM((1, 28, 28), [Folding(8, 2), GMM(25), Folding(8), GMM(36)])
    # ... what fits instead does
    DCGMM((1, 28, 28), [Folding(8, 2), GMM(25), Folding(8, 3), GMM(36)])


def test_layers_are_plain_data():
    assert Folding(2) == Folding((2, 2), (2, 2)) != Folding(2, 1)
    assert Folding(2) != Pooling(2)
    assert hash(Pooling((2, 1))) == hash(Pooling([2, 1]))
    assert eval(repr(Folding(8, stride=2))) == Folding(8, 2)
