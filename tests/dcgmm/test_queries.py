"""Outliers, clusters, variants, and images without a mask."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import chi2

from pyromix import DCGMM, fit
from pyromix.dcgmm import GMM, Folding

from . import reference
from .models import build, close, images_for, kinds
from .reference import Slow
from .test_draws import NUM, check_frequencies, codes_of

STANDARD_ERRORS = 6.0


# ---- outliers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("threshold", [1.0, 2.0, 3.0])
def test_share_of_outliers_of_a_single_normal(threshold):
    """Whose log-density is a chi-squared variable: the share is known."""
    torch.manual_seed(0)
    model = DCGMM((1, 8, 8), [Folding(8), GMM(1)])
    model.calibrate(model.sample((20_000,)))
    x = model.sample((20_000,))
    share = model.is_outlier(x, threshold=threshold).double().mean()
    expected = chi2.sf(64 + threshold * math.sqrt(2 * 64), 64)
    # That of the share, and of the bound: mean and deviation have errors of their own.
    density = chi2.pdf(64 + threshold * math.sqrt(2 * 64), 64) * math.sqrt(2 * 64)
    error = math.sqrt((expected + density**2 * (1 + threshold**2)) / 20_000)
    assert abs(share - expected) < STANDARD_ERRORS * error


@kinds("tree: 2L-b", "tree: two tops", "pixels, large patches", "three layers")
def test_outliers_against_loops(name):
    model = build(name, deviation=0.4)
    slow = Slow(model)
    data, x = model.sample((200,)), images_for(model)
    model.calibrate(data)
    with torch.no_grad():
        known, new = model.layer_log_likelihoods(data), model.layer_log_likelihoods(x)
    for layer in range(slow.num_layers):
        mean, deviation = known[layer].mean(0), known[layer].std(0)
        below = (mean - new[layer]) / deviation
        got = model.outlier_map(x, layer=layer)
        assert got.shape == (len(x), *model.event_shape[1:])
        close(got, over_pixels(slow, below, layer), 1e-3 * float(below.abs().max()))
    for threshold in below.flatten(1).amax(1).quantile(torch.tensor([0.3, 0.8])).tolist():
        expected = (below > threshold).flatten(1).any(1)
        assert torch.equal(model.is_outlier(x, threshold=threshold), expected)
        assert expected.any()
        assert not expected.all()


@kinds("tree: 3L", "tree: two tops", "pixels, large patches", "three layers")
def test_outliers_in_context_against_loops(name):
    """How well codes agree with what the top expects: minus a Kullback-Leibler divergence."""
    model = build(name, deviation=0.4)
    slow = Slow(model)

    def agreements(image):
        activities = slow.up(image)[1]
        result, expected = {}, activities[-1]
        for layer in range(slow.num_layers - 1, 0, -1):
            expected = slow.expected_control(layer, expected)
            found = torch.tensor(activities[layer - 1])
            ratio = torch.tensor(expected).log() - found.log()
            result[layer - 1] = torch.where(found > 0, found * ratio, 0.0).sum(-1)
        return result

    data, x = model.sample((100,)), images_for(model, 8)
    model.calibrate(data)
    known, new = [agreements(image) for image in data], [agreements(image) for image in x]
    for layer in range(slow.num_layers - 1):
        usual = torch.stack([part[layer] for part in known])
        below = (usual.mean(0) - torch.stack([part[layer] for part in new])) / usual.std(0)
        got = model.outlier_map(x, layer=layer, context=True)
        close(got, over_pixels(slow, below, layer), 1e-3 * float(below.abs().max()))


def over_pixels(slow, values, layer):
    """Averages over the windows that see a pixel, (N, rows, columns) to (N, H, W)."""
    result = []
    for rows in values.tolist():
        signal = [[[value] for value in row] for row in rows]
        for part in range(layer, -1, -1):
            for window, size in reversed(slow.chains[part]):
                signal = reference.unpool(signal, window, size)
        result.append(reference.as_tensor(signal)[0])
    return torch.stack(result)


def test_an_outlier_is_found_where_it_is():
    """A grey patch, pasted into stripes."""
    torch.manual_seed(0)

    def stripes(num):
        phase = torch.randint(2, (num, 1, 1, 1))
        columns = torch.arange(12) + phase
        return (columns % 2).double().expand(num, 1, 12, 12) + 0.1 * torch.randn(num, 1, 12, 12)

    model = DCGMM((1, 12, 12), [Folding(4, 2), GMM(2), Folding(5), GMM(2)])
    fit(model, stripes(500), steps=100, batch_size=50, seed=0, progress_bar=False)
    model.calibrate(stripes(500))
    x = stripes(20)
    assert model.outlier_map(x).mean() < 1
    corner = 2 * torch.randint(4, (20, 2))  # where windows begin
    inside = torch.zeros(20, 12, 12, dtype=torch.bool)
    for i, (top, left) in enumerate(corner.tolist()):
        inside[i, top : top + 6, left : left + 6] = True
    corrupted = torch.where(inside.unsqueeze(1), 0.5, x)
    found = model.outlier_map(corrupted)
    assert found.shape == (20, 12, 12)
    largest = found.flatten(1).argmax(-1)
    assert inside.flatten(1).gather(1, largest.unsqueeze(-1)).all()
    for image, part in zip(found, inside, strict=True):
        assert image[part].mean() > image[~part].mean() + 1


def test_calibration_is_part_of_the_state():
    model, other = build("pixels"), build("pixels")
    model.calibrate(model.sample((50,)))
    x = model.sample((3,))
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.outlier_map(x), model.outlier_map(x))
    # A second one replaces the first.
    model.calibrate(x)
    assert not torch.equal(other.outlier_map(x), model.outlier_map(x))


def test_calibration_in_blocks_is_that_of_all():
    model = build("pixels")
    x = model.sample((30,))
    maps = []
    for batch_size in (7, 30, 100):
        model.calibrate(x, batch_size=batch_size)
        maps.append(torch.stack([model.outlier_map(x), model.outlier_map(x, context=True)]))
    close(maps[0], maps[1])
    close(maps[2], maps[1])
    close(maps[0].mean(1), torch.zeros(2, 4, 4))  # deviations from a mean


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, x: m.is_outlier(x), "calibrate"),
        (lambda m, x: m.outlier_map(x), "calibrate"),
        (lambda m, x: m.calibrate(x[:1]), "two|2"),
        (lambda m, x: m.calibrate(x * math.nan), "NaN"),
        (lambda m, x: m.calibrate(x[:, :, :2]), "shape"),
        (lambda m, x: m.outlier_map(x, context=True), "calibrate"),
        (lambda m, x: m.calibrate(x, batch_size=0), "batch_size"),
        (lambda m, x: calibrated(m, x).outlier_map(x, layer=2), "layer"),
        (lambda m, x: calibrated(m, x).outlier_map(x, layer=1, context=True), "below the top"),
        (lambda m, x: calibrated(m, x).outlier_map(x, layer=-3), "layer"),
    ],
)
def test_bad_input(call, message):
    model = build("pixels")
    with pytest.raises((ValueError, RuntimeError), match=message):
        call(model, model.sample((4,)))


def calibrated(model, x):
    model.calibrate(x)
    return model


# ---- variants ---------------------------------------------------------------------------------


@kinds("tree: 2L-b", "tree: 3L", "pixels", "three layers")
def test_variants_come_closer(name):
    model = build(name)
    x = model.sample((30,))
    distances = []
    for similarity in range(len(model.mixtures) + 1):
        torch.manual_seed(0)
        y = model.variants(x, similarity=similarity, num_samples=20, noise=False)
        assert y.shape == (20, *x.shape)
        distances.append((y - x).square().mean())
    assert (torch.stack(distances).diff() < 0).all()
    assert distances[-1] < 0.5 * distances[0]


@kinds("tree: 2L-b", "pixels")
def test_variants_without_similarity_are_draws(name):
    model = build(name)
    law = Slow(model).law()
    y = model.variants(model.sample(), similarity=0, num_samples=NUM, noise=False)
    check_frequencies(codes_of(y, law), law.weights)


def test_variants_take_what_sample_takes():
    model = build("tree: 2L-b, channels")
    x = model.sample((2, 3))
    y = model.variants(x, similarity=1, num_samples=4, top_s=1, temperature=0.5)
    assert y.shape == (4, 2, 3, *model.event_shape)
    assert model.variants(x[0, 0]).shape == (8, *model.event_shape)
    # Of a sure image nothing is left to chance, where only the likeliest codes take part.
    sure = reference_draws(model, 0)[:1]
    y = model.variants(sure, similarity=2, num_samples=4, top_s=1)
    assert torch.equal(y[0], y[1])
    y = model.variants(sure, similarity=2, num_samples=4, top_s=1, noise=True)
    assert not torch.equal(y[0], y[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"similarity": -1}, "similarity"),
        ({"similarity": 3}, "similarity"),
        ({"similarity": 0.5}, "similarity"),
        ({"num_samples": 0}, "num_samples"),
        ({"top_s": 0}, "top_s"),
    ],
)
def test_bad_variants(options, message):
    model = build("pixels")
    with pytest.raises(ValueError, match=message):
        model.variants(model.sample(), **options)


# ---- clusters and codes -----------------------------------------------------------------------


def test_clusters_are_those_of_the_law():
    """Where top components say different things, and all is sure."""
    model = build("tree: 2L-b", deviation=0.05)
    with torch.no_grad():
        pattern = torch.eye(3)[
            torch.tensor([[0, 0, 0, 1], [1, 1, 1, 2], [2, 2, 2, 0], [0, 1, 2, 2]])
        ]
        model.mixtures[1].loc.copy_(pattern.flatten(1))
    for k in range(4):
        assert (model.cluster(reference_draws(model, k)) == k).all()


def reference_draws(model, k):
    """Images of one top component: of its likeliest codes."""
    slow = Slow(model)
    laws = slow.control(slow.num_layers - 1, (k,))
    codes = tuple(max(range(len(law)), key=law.__getitem__) for law in laws)
    mean, variance = slow.decode(codes)
    return mean + variance.sqrt() * torch.randn(20, *mean.shape)


@kinds("tree: 2L-b", "tree: pooling", "controls")
def test_codes_come_back(name):
    """From the mean images of codes where patches are disjoint, and apart."""
    model = build(name, deviation=0.1)
    codes = torch.tensor(Slow(model).all_codes(0))
    images = model.decode(codes)
    assert torch.equal(model.encode(images)[0], codes)
    close(model.decode(model.encode(images)[0]), images)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.decode(m.encode(m.sample())), r"encode\(x\)\[0\]"),
        (lambda m: m.decode(torch.zeros(3, 5, dtype=torch.int64)), r"\(\*S, 9\)"),
        (lambda m: m.decode(torch.tensor(0)), r"\(\*S, 9\)"),
        (lambda m: m.decode(torch.full((3, 9), 2)), "from 0 to 1"),
        (lambda m: m.decode(torch.full((3, 9), -1)), "from 0 to 1"),
        (lambda m: m.decode(torch.zeros(3, 9)), "integer"),
        (lambda m: m.encode(torch.zeros(3, 1, 4, 5)), "shape"),
        (lambda m: m.cluster(torch.full((1, 4, 4), math.nan)), "NaN"),
        (lambda m: m.score(torch.zeros(4, 4)), "shape"),
    ],
)
def test_bad_codes_and_images(call, message):
    with pytest.raises(ValueError, match=message):
        call(build("pixels"))


# ---- a mask that the model finds itself -------------------------------------------------------


def agreeing():
    """A model whose four patches agree, nearly always, and images to calibrate it by."""
    torch.manual_seed(0)
    model = build("tree: 2L-b", deviation=0.1)
    with torch.no_grad():
        agree = 0.03 + 0.91 * torch.eye(3)
        model.mixtures[1].loc.copy_(torch.cat([agree, agree[:1]]).repeat(1, 4))
    data = model.sample((2000,))
    model.calibrate(data)
    return model, data


@pytest.mark.parametrize("how", ["unlike anything", "half of it", "out of place"])
def test_the_corrupted_part_is_found_and_filled(how):
    """Whether no patch looks like that, or none does here.

    Where half of an image is corrupted it looks like another one to the top at first.
    """
    model, data = agreeing()
    x, others = data[:200], data[200:400]
    seen = torch.ones(4, 4, dtype=torch.bool)
    seen[: 4 if how == "half of it" else 2, 2:] = False
    corrupted = torch.where(seen, x, others if how == "out of place" else 8.0)
    codes, now = model.encode(x)[0], model.encode(corrupted)[0]
    rows = (codes == codes[:, :1]).all(1)  # where all patches agreed ...
    if how == "out of place":
        rows = rows & (now[:, 1] != codes[:, 1])  # ... and do so no longer
    assert rows.sum() > 40
    x, corrupted = x[rows], corrupted[rows]
    filled = model.inpaint(corrupted)
    assert (filled != corrupted)[..., ~seen].double().mean() > 0.95
    assert (filled == corrupted)[..., seen].double().mean() > 0.95
    told = model.inpaint(x, seen)
    error, best, worst = (
        (image - x)[..., ~seen].square().mean() for image in (filled, told, data.mean(0))
    )
    assert best < 0.5 * worst
    assert error < 1.5 * best


# ---- units ------------------------------------------------------------------------------------


def test_images_in_other_units_are_noticed():
    """Images times 255, say, after training on images from 0 to 1."""
    torch.manual_seed(0)
    x = torch.rand(200, 1, 4, 4)
    model = DCGMM((1, 4, 4), [Folding(2), GMM(4), Folding(2), GMM(4)])
    fit(model, x, steps=5, seed=0, progress_bar=False)
    model.calibrate(x)
    for call in (model.score, model.cluster, model.encode, model.is_outlier, model.outlier_map):
        with pytest.warns(UserWarning, match="255|range"):
            call(255 * x)
        call(x)
        call(-0.05 + 1.1 * x)  # a little more is noise
    model.log_prob(255 * x)  # any image has a density


def test_what_is_missing_is_in_no_units():
    """Neither zero nor anything else in its place is worth a warning."""
    torch.manual_seed(0)
    x = 5 + torch.rand(100, 1, 4, 4)
    model = DCGMM((1, 4, 4), [Folding(2), GMM(4), Folding(2), GMM(4)])
    fit(model, x, steps=5, seed=0, progress_bar=False)
    mask = torch.ones(4, 4, dtype=torch.bool)
    mask[:2] = False
    model.inpaint(torch.where(mask, x, math.nan), mask)
    with pytest.warns(UserWarning, match="Pixels range"):
        model.inpaint(torch.where(mask, 10 * x, math.nan), mask)


# ---- arrays and lists -------------------------------------------------------------------------


def reversed_twice(x):
    """An array of equal values that lies backwards in memory, and cannot be written to."""
    if x.dim() == 1:  # labels
        return x.numpy()
    array = np.ascontiguousarray(x.numpy()[::-1])[::-1]
    array.setflags(write=False)
    return array


FORMS = {"array": lambda x: x.numpy(), "reversed": reversed_twice, "list": lambda x: x.tolist()}

# With images x, a mask, labels y and the codes z of the bottom layer, each in one of the forms.
ASKED = {
    "score": lambda m, x, mask, y, z: m.score(x),
    "layer_log_likelihoods": lambda m, x, mask, y, z: m.layer_log_likelihoods(x),
    "encode": lambda m, x, mask, y, z: m.encode(x),
    "decode": lambda m, x, mask, y, z: m.decode(z),
    "cluster": lambda m, x, mask, y, z: m.cluster(x),
    "classify": lambda m, x, mask, y, z: m.classify(x),
    "class_log_prob": lambda m, x, mask, y, z: m.class_log_prob(x),
    "is_outlier": lambda m, x, mask, y, z: m.is_outlier(x),
    "outlier_map": lambda m, x, mask, y, z: m.outlier_map(x, context=True),
    "calibrate": lambda m, x, mask, y, z: calibrated(m, x).outlier_map(x),
    "inpaint": lambda m, x, mask, y, z: m.inpaint(x, mask),
    "inpaint without a mask": lambda m, x, mask, y, z: m.inpaint(x),
    "variants": lambda m, x, mask, y, z: m.variants(x),
    "sample_class": lambda m, x, mask, y, z: m.sample_class(y),
    "condition": lambda m, x, mask, y, z: m.condition(y).sample(),
    "loss": lambda m, x, mask, y, z: m.loss((x, y)),
    "loss by keys": lambda m, x, mask, y, z: m.loss({"value": x, "context": y}),
    "initialize": lambda m, x, mask, y, z: m.initialize((x, y)),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("asked", ASKED)
def test_arrays_and_lists_stand_for_tensors(asked, form):
    model = build("pixels", num_classes=3, max_precision=1000.0)
    x, mask = model.sample((6,)), torch.rand(6, 4, 4) < 0.7
    model.calibrate(x)
    given = x, mask, torch.arange(6) % 3, model.encode(x)[0]
    results = []
    for parts in (given, [FORMS[form](part) for part in given]):
        torch.manual_seed(0)
        results.append(ASKED[asked](model, *parts))
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)
    assert model.pixel_range.isfinite().all() == (asked == "initialize")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, x: m.score([[1.0], [1.0, 2.0]]), "different lengths"),
        (lambda m, x: m.score("image"), "Give numbers"),
        (lambda m, x: m.score(x.numpy() > 0), "real numbers"),
        (
            lambda m, x: m.decode([[0, 1], [0]]),
            "codes to be a tensor, or lists of the same length",
        ),
        (lambda m, x: m.decode(np.zeros((2, 9))), "codes to be integers, got float64"),
        (lambda m, x: m.decode([[2] * 9]), "from 0 to 1"),
        (lambda m, x: m.inpaint(x, np.ones((4, 4))), "boolean mask"),
        (lambda m, x: m.inpaint(x, [[True], [True, False]]), "lists of the same length"),
        (lambda m, x: m.condition(["a", "b"]), "integer labels"),
        (lambda m, x: m.loss((x, ["a", "b"])), "integer labels"),
        (lambda m, x: m.loss(x), r"fit\(model, \(images, labels\)\)"),
        (lambda m, x: m.log_prob(x.numpy()), "torch.Tensor"),
    ],
)
def test_arrays_that_do_not_fit(call, message):
    model = build("pixels", num_classes=3)
    with pytest.raises(ValueError, match=message):
        call(model, model.sample((2,)))
