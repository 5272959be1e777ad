"""Training: every layer at once, and nothing that collapses."""

import copy
import math
from functools import partial

import pytest
import torch

from pyromix import DCGMM, fit, load, save
from pyromix.datasets import digits
from pyromix.dcgmm import GMM, Classifier, Folding, Pooling

from .models import build, close
from .reference import Slow


def train(model, data, **options):
    return fit(model, data, **{"steps": 10, "seed": 0, "progress_bar": False, **options})


def same(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def small(num_classes=None, **options):
    layers = [Folding(4, 2), GMM(9), Folding(3), GMM(9)]
    return DCGMM((1, 8, 8), layers + ([Classifier(num_classes)] if num_classes else []), **options)


STEPS = 300

# ---- digits -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained():
    """Five models of digits, with their histories."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    images, labels = digits()
    result = []
    for seed in range(5):
        torch.manual_seed(seed)
        model = small(num_classes=10)
        history = fit(
            model, (images, labels), steps=STEPS, batch_size=100, seed=seed, progress_bar=False
        )
        result.append((model, history))
    torch.set_default_dtype(before)
    return result, images, labels


def test_no_component_is_left_out(trained):
    """Each is responsible for a fair share of patches: at least a twentieth of an even one."""
    models, images, _ = trained
    for model, _ in models:
        codes = model.encode(images)[0]
        share = torch.bincount(codes.flatten(), minlength=9) / codes.numel()
        assert share.min() >= 1 / (20 * 9)
        top = torch.bincount(model.cluster(images), minlength=9) / len(images)
        assert (top > 0).sum() >= 5


def test_losses_fall_in_every_layer(trained):
    models, _, _ = trained
    for _, history in models:
        assert {"layer 1", "layer 2", "class accuracy"} <= set(history.metrics)
        for name in ("layer 1", "layer 2", "class accuracy"):
            assert len(history.metrics[name]) == len(history.losses) == STEPS
            assert all(math.isfinite(value) for value in history.metrics[name])
        bottom = history.metrics["layer 1"]
        assert mean(bottom[-50:]) > mean(bottom[:50])
        assert mean(history.losses[-50:]) < mean(history.losses[:50])


def mean(values):
    return sum(values) / len(values)


def test_widths_reach_their_floor(trained):
    models, _, _ = trained
    for model, _ in models:
        for mixture in model.mixtures:
            assert float(mixture.neighbourhood.width) == pytest.approx(0.01)


def test_images_are_learnt(trained):
    """Better than by one normal with the mean and the deviation of each pixel."""
    models, images, labels = trained
    flat, some = images.flatten(1), slice(0, None, 3)
    scale = flat.std(0).clamp(min=20**-0.5)
    normal = torch.distributions.Normal(flat.mean(0), scale).log_prob(flat[some]).sum(1)
    for model, history in models:
        with torch.no_grad():
            gain = model.log_prob(images[some]) - normal
        assert gain.mean() > 3 * gain.std() / math.sqrt(len(gain))
        assert (model.classify(images) == labels).float().mean() > 0.4
        # What was recorded last is what the model says now.
        accuracy = mean(history.metrics["class accuracy"][-50:])
        assert abs((model.classify(images) == labels).float().mean() - accuracy) < 0.1


def test_the_bound_of_a_trained_model(trained):
    """Of a crop so small that all codes can be summed over."""
    _, images, _ = trained
    crop = images[:, :, 2:6, 2:6].double()
    model = DCGMM((1, 4, 4), [Folding(3, 1), GMM(4), Folding(2), GMM(4)])
    train(model, crop, steps=400, batch_size=100)
    x = torch.cat([model.sample((100,)), crop[:100]])
    gap = Slow(model).log_prob(x) - model.log_prob(x)
    assert gap.min() > -1e-9
    assert gap.mean() < 0.05


def test_draws_look_like_digits(trained):
    """Nearer to some digit than noise of the same mean and deviation is."""
    models, images, _ = trained
    flat = images.flatten(1)
    for model, _ in models[:2]:
        torch.manual_seed(0)
        draws = model.sample((100,), noise=False, top_s=1).flatten(1)
        noise = flat.mean(0) + flat.std(0) * torch.randn_like(draws)
        near = torch.cdist(draws, flat).min(1).values.mean()
        assert near < torch.cdist(noise, flat).min(1).values.mean()


# ---- the loss ---------------------------------------------------------------------------------


def neighbours(num, width):
    """Weights by which components share: a Gaussian on a grid that wraps around."""
    rows = max(r for r in range(1, num + 1) if num % r == 0 and r * r <= num)
    columns = num // rows
    table = []
    for a in range(num):
        row = []
        for b in range(num):
            down = abs(a // columns - b // columns)
            right = abs(a % columns - b % columns)
            squared = min(down, rows - down) ** 2 + min(right, columns - right) ** 2
            row.append(math.exp(-0.5 * squared / width**2))
        table.append([value / sum(row) for value in row])
    return table


@pytest.mark.parametrize("num", [1, 4, 6, 7, 9, 12, 25])
def test_neighbourhoods_against_loops(num):
    model = DCGMM((1, 2, 2), [Folding(2), GMM(num)])
    part = model.mixtures[0].neighbourhood
    assert float(part.width) == pytest.approx(0.25 * math.sqrt(2 * num))
    for width in (float(part.width), 0.3, 0.01):
        part.width.fill_(width)
        close(part.filter, torch.tensor(neighbours(num, width)))


def test_neighbourhoods_shrink_where_losses_are_stationary():
    """After a window of 20 steps that has gained little, by a tenth; and in time."""
    part = DCGMM((1, 2, 2), [Folding(2), GMM(9)]).mixtures[0].neighbourhood
    start = float(part.width)

    def windows(*losses):
        for loss in losses:
            for _ in range(20):
                part.observe(torch.tensor(loss))
        return float(part.width) / start

    assert windows(10.0) == 1  # nothing to compare with
    assert windows(6.0, 4.0, 3.0) == 1  # shares of 1, 1/3 and 1/7 of all that was gained
    assert windows(2.9) == pytest.approx(0.9)  # of 0.1 / 7.1
    assert windows(2.9, 2.9) == pytest.approx(0.9**3)
    assert windows(2.0) == pytest.approx(0.9**3)
    part.limit(0.0)
    assert float(part.width) == pytest.approx(0.9**3 * start)
    part.limit(0.9)
    assert float(part.width) == pytest.approx(start * (0.01 / start) ** 0.9)
    part.limit(1.0)
    assert float(part.width) == pytest.approx(0.01)


@pytest.mark.parametrize("name", ["tree: 3L", "tree: two tops", "pixels", "three layers"])
def test_the_loss_against_loops(name):
    """In training, the largest smoothed score of each position; else the law with one's codes."""
    model = build(name, deviation=0.5)
    x = model.sample((5,))
    slow = Slow(model)
    expected = []
    for mixture, k in zip(model.mixtures, slow.components, strict=True):
        mixture.neighbourhood.width.fill_(0.6)
        expected.append(torch.tensor(neighbours(k, 0.6)))
    scores = [slow.all_scores(image) for image in x]
    layers = [
        torch.stack([(torch.tensor(s[i]) @ g).amax(-1).mean() for s in scores]).mean()
        for i, g in enumerate(expected)
    ]
    noise = 0.0
    if model.log_noise is not None:
        for image, codes in zip(x, model.encode(x)[0].tolist(), strict=True):
            mean, variance = slow.decode(tuple(codes))
            normal = torch.distributions.Normal(mean, variance.sqrt())
            noise = noise - normal.log_prob(image).mean() / len(x)
    model.train()
    close(model.loss(x), noise - sum(layers))
    for i, value in enumerate(layers):
        assert model.metrics()[f"layer {i + 1}"] == pytest.approx(float(value))
    model.eval()
    codes = zip(*(c.tolist() for c in model.encode(x)), strict=True)
    joint = [slow.joint(i, [tuple(c) for c in own]) for i, own in zip(x, codes, strict=True)]
    close(model.loss(x), -torch.stack(joint).mean())


@pytest.mark.parametrize("num", [1, 6, 25, 36])
@pytest.mark.parametrize("centre", [0.0, 1000.0])
def test_gradients_of_the_loss(num, centre):
    """Those of its definition; components with a small share of the data, if many, move faster."""
    torch.manual_seed(0)
    model = DCGMM((1, 2, 2), [Folding((1, 2)), GMM(num)], centroid_share=0.0)
    (mixture,) = model.mixtures
    with torch.no_grad():
        mixture.loc.normal_().add_(centre)
        mixture.logits.normal_()
        mixture.log_precision.uniform_(-1.0, 1.0)
        mixture.neighbourhood.width.fill_(0.5)
        mixture.share.copy_(torch.rand(num).softmax(0))
    x = centre + torch.randn(30, 1, 2, 2)
    parameters = mixture.loc, mixture.log_precision, mixture.logits
    rows = x.reshape(-1, 2)
    normal = torch.distributions.Normal(mixture.loc, mixture.scale)
    scores = normal.log_prob(rows.unsqueeze(1)).sum(-1) + mixture.log_weights
    best = (scores @ torch.tensor(neighbours(num, 0.5))).max(-1)
    expected = torch.autograd.grad(-best.values.mean(), parameters)
    share = (torch.nn.functional.one_hot(best.indices, num) + 0.0).mean(0)
    share = 0.99 * mixture.share + 0.01 * (torch.tensor(neighbours(num, 0.5)) @ share)
    got = torch.autograd.grad(model.train().loss(x), parameters)
    rate = (1 / (25 * share)).clamp(1.0, max(1.0, num / 25)).unsqueeze(-1)
    assert bool((rate > 1).any()) == (num > 25)
    for a, b in zip(got[:2], expected[:2], strict=True):
        close(a, rate * b, 1e-6)
    close(got[2], expected[2], 1e-6)
    close(mixture.share, share, 1e-9)
    # At first only centroids move.
    model.centroid_share = 1.0
    got = torch.autograd.grad(model.loss(x, 0.5), parameters)
    assert [bool(gradient.any()) for gradient in got] == [True, False, False]


def test_the_loss_of_labels():
    """A cross-entropy of the responsibilities of the top, beside the other losses."""
    model = build("pixels", num_classes=3)
    torch.nn.init.normal_(model.classifier.weight)
    x, labels = model.sample((6,)), torch.arange(6) % 3
    entropy = -model.class_log_prob(x)[range(6), labels].mean()
    plain = build("pixels")
    plain.load_state_dict(
        {k: v for k, v in model.state_dict().items() if not k.startswith("classifier")}
    )
    for mode in (True, False):
        model.train(mode), plain.train(mode)
        close(model.loss((x, labels)), plain.loss(x) + entropy)
    accuracy = (model.classify(x) == labels).double().mean()
    assert model.metrics()["class accuracy"] == pytest.approx(float(accuracy))


def test_layers_learn_for_themselves():
    """What a layer sees is data to it: it sends no gradient down."""
    images, _ = digits()
    torch.manual_seed(0)
    one = DCGMM((1, 8, 8), [Folding(4), GMM(4)])
    three = DCGMM(
        (1, 8, 8), [Folding(4), GMM(4), Folding((1, 2)), GMM(4), Folding((2, 1)), GMM(4)]
    )
    three.mixtures[0].load_state_dict(one.mixtures[0].state_dict())
    for model in (one, three):
        train(model, images, steps=15)
    close(three.mixtures[0].loc, one.mixtures[0].loc, 0.0)
    close(three.mixtures[0].scale, one.mixtures[0].scale, 0.0)


def test_the_shared_noise_is_learnt():
    """It is what patches leave unexplained, on average."""
    images, _ = digits()
    torch.manual_seed(0)
    model = small()
    train(model, images, steps=300, batch_size=50)
    with torch.no_grad():
        rest = (images - model.decode(model.encode(images)[0])).square().mean().sqrt()
        assert abs(float(model.noise_scale.log() - rest.log())) < 0.1


# ---- what training does -----------------------------------------------------------------------


def test_only_centroids_move_at_first():
    torch.manual_seed(0)
    x = torch.rand(100, 1, 8, 8)
    model = small(centroid_share=1.0)
    before = copy.deepcopy(model)
    train(model, x, steps=20)
    for new, old in zip(model.mixtures, before.mixtures, strict=True):
        assert not torch.equal(new.loc, old.loc)
        assert torch.equal(new.scale, old.scale)
    model = small(centroid_share=0.0)
    before = copy.deepcopy(model)
    train(model, x, steps=20)
    assert any(
        not torch.equal(new.scale, old.scale)
        for new, old in zip(model.mixtures, before.mixtures, strict=True)
    )


def test_precisions_are_clipped():
    torch.manual_seed(0)
    model = small(max_precision=5.0, centroid_share=0.0)
    train(model, torch.zeros(100, 1, 8, 8) + 0.01 * torch.randn(100, 1, 8, 8), steps=50)
    for mixture in model.mixtures:
        assert (mixture.scale >= 5**-0.5 - 1e-9).all()
        # Not beyond the largest, where no gradient would lead back.
        assert (mixture.log_precision <= math.log(5.0) + 1e-12).all()


@pytest.mark.parametrize(
    "layers",
    [
        [Folding(8), GMM(4)],
        [Folding(4), GMM(4), Folding(2), GMM(5)],
        [Folding(3, 1), GMM(4), Pooling(2), Folding(3), GMM(4)],
        [Folding(4), GMM(4), Folding(1), GMM(3), Folding(2), GMM(2)],
        [Folding((4, 8)), GMM(7)],
    ],
    ids=str,
)
def test_all_architectures_are_trained(layers):
    images, _ = digits()
    torch.manual_seed(0)
    model = DCGMM((1, 8, 8), layers)
    history = train(model, images, steps=60)
    assert len(history.metrics) == len(model.mixtures)
    for mixture in model.mixtures:
        assert mixture.loc.isfinite().all()
        assert mixture.scale.isfinite().all()
    first = history.metrics["layer 1"]
    assert mean(first[-10:]) > mean(first[:10])


def test_a_classifier_changes_nothing_below():
    """Its loss stays in its own layer."""
    images, labels = digits()
    torch.manual_seed(0)
    plain = small()
    model = small(num_classes=10)
    for own, other in zip(model.mixtures, plain.mixtures, strict=True):
        own.load_state_dict(other.state_dict())
    train(plain, images, steps=15)
    train(model, (images, labels), steps=15)
    for own, other in zip(model.mixtures, plain.mixtures, strict=True):
        close(own.loc, other.loc, 1e-12)


def test_forms_of_a_batch():
    images, labels = digits()
    model = small(num_classes=10)
    pair = model.loss((images[:10], labels[:10]))
    close(model.loss([images[:10], labels[:10]]), pair)
    assert pair.shape == ()
    plain = small()
    close(plain.loss((images[:10],)), plain.loss(images[:10]))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64], ids=str)
def test_labels_of_any_integers(dtype):
    images, labels = digits()
    torch.manual_seed(0)
    history = train(small(num_classes=10), (images, labels.to(dtype)))
    assert len(history.metrics["class accuracy"]) == 10


# ---- reproducibility and files ----------------------------------------------------------------


def test_seeds():
    images, _ = digits()
    torch.manual_seed(0)
    start = small()
    models = [copy.deepcopy(start) for _ in range(3)]
    for model, seed in zip(models, (0, 0, 1), strict=True):
        train(model, images, seed=seed)
    assert same(models[0], models[1])
    assert not same(models[0], models[2])


def test_stages():
    images, _ = digits()
    history = train(small(centroid_share=0.3), images, steps=10)
    assert list(history.stages.items()) == [("centroids", 0), ("centroids and precisions", 3)]


def test_resuming_gives_the_same_numbers(tmp_path):
    """Also where widths shrink and precisions begin to move."""
    images, labels = digits()
    torch.manual_seed(0)
    start = small(num_classes=10)
    options = {"batch_size": 50, "seed": 3, "progress_bar": False}
    straight = copy.deepcopy(start)
    expected = fit(straight, (images, labels), steps=80, **options)
    path = tmp_path / "training.safetensors"

    class StopError(Exception):
        pass

    broken, calls = copy.deepcopy(start), []
    loss = broken.loss

    def failing(*args, **kwargs):
        calls.append(1)
        if len(calls) > 47:
            raise StopError
        return loss(*args, **kwargs)

    broken.loss = failing
    with pytest.raises(StopError):
        fit(broken, (images, labels), steps=80, checkpoint=path, checkpoint_every=45, **options)
    fresh = copy.deepcopy(start)
    history = fit(fresh, (images, labels), steps=80, checkpoint=path, **options)
    assert history.losses == expected.losses
    assert history.metrics == expected.metrics
    assert same(fresh, straight)
    torch.testing.assert_close(
        fresh.state_dict(), straight.state_dict(), rtol=0, atol=0, equal_nan=True
    )


def test_validation_keeps_the_best():
    images, _ = digits()
    torch.manual_seed(0)
    model = small()
    history = train(model, images[:300], steps=60, validation=images[300:400])
    assert model.initialized
    assert len(history.validation_losses) >= 10
    assert min(history.validation_losses) < history.validation_losses[0]


@pytest.mark.parametrize("classes", [None, 4])
def test_files_and_copies(tmp_path, classes):
    model = build("pixels", num_classes=classes, bound_steps=3)
    model.calibrate(model.sample((20,)))
    x = model.sample((5,))
    save(model, tmp_path / "model.safetensors")
    for other in (load(tmp_path / "model.safetensors"), copy.deepcopy(model)):
        assert other.layers == model.layers
        assert other.bound_steps == 3
        assert other.summary() == model.summary()
        close(other.log_prob(x), model.log_prob(x), 1e-12)
        assert torch.equal(other.is_outlier(x), model.is_outlier(x))
        assert torch.equal(other.outlier_map(x), model.outlier_map(x))
        if classes:
            assert torch.equal(other.classify(x), model.classify(x))


def test_presets_are_saved(tmp_path):
    model = DCGMM.preset("2L-d", num_classes=3)
    save(model, tmp_path / "model.safetensors")
    other = load(tmp_path / "model.safetensors")
    assert other.layers == model.layers
    assert other.summary() == model.summary()


BAD = [
    (lambda m, x, y: train(m, x[:, :, :4]), "shape"),
    (lambda m, x, y: train(m, x * math.nan), "NaN"),
    (lambda m, x, y: train(m, (255 * x).long()), "dtype|torch.int64"),
    (lambda m, x, y: train(m, (x, y)), "Classifier"),
    (lambda m, x, y: train(small(10), (x, y.double())), "integer"),
    (lambda m, x, y: train(small(10), (x, y + 5)), "from 0 to 9"),
    (lambda m, x, y: small(10).loss((x[:5], y[:4])), "label"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_data(call, message):
    images, labels = digits()
    with pytest.raises(ValueError, match=message):
        call(small(), images[:50], labels[:50])


def test_other_optimizers():
    images, _ = digits()
    model = small()
    history = train(
        model, images, steps=10, optimizer=partial(torch.optim.SGD, momentum=0.5), lr=0.01
    )
    assert history.learning_rates[0] == 0.01


def test_rates():
    """The default is the published one, and recorded as such."""
    images, _ = digits()
    assert train(small(), images, steps=3).learning_rates == [0.05] * 3
    assert train(small(), images, steps=3, lr=0.02).learning_rates == [0.02] * 3
