"""With a classifier on top: what is said about labels, and the law given one."""

import math

import pytest
import torch

from pyromix.testing import CHECKS, Case

from .models import build, close, images_for, kinds
from .reference import Slow
from .test_draws import NUM, check_frequencies, codes_of

CLASSES = 3
# Models with a single top position.
ONE_TOP = ("tree: one layer", "tree: 2L-b, channels", "tree: 3L", "tree: pooling")
ONE_TOP += ("pixels", "controls, one top", "three layers")


def labelled(name, **options):
    """With a classifier whose classes differ."""
    model = build(name, num_classes=CLASSES, **options)
    with torch.no_grad():
        for p in model.classifier.parameters():
            p.normal_(0.0, 1.5)
    return model


def class_probs(model):
    """p(y | k) of every top component, (K, C), and p(k, y), (K, C)."""
    weight, bias = model.classifier.weight.detach(), model.classifier.bias.detach()
    k = len(model.mixtures[-1].loc)
    given_code = torch.stack([(weight @ torch.eye(k)[i] + bias).softmax(-1) for i in range(k)])
    weights = model.mixtures[-1].log_weights.detach().exp()
    return given_code, weights.unsqueeze(-1) * given_code


def laws(model, **options):
    """The finite mixture of every class."""
    slow = Slow(model, **options)
    _, joint = class_probs(model)
    given_class = joint / joint.sum(0)
    return [slow.law(slow.top_weights(given_class[:, y].tolist())) for y in range(CLASSES)]


@kinds(*ONE_TOP)
def test_classes_against_the_forward_pass(name):
    model = labelled(name)
    slow = Slow(model)
    x = images_for(model)
    got = model.class_log_prob(x)
    assert got.shape == (len(x), CLASSES)
    close(got.exp().sum(-1), torch.ones(len(x)))
    for i, image in enumerate(x):
        top = torch.tensor(slow.up(image)[1][-1]).flatten()
        logits = model.classifier.weight @ top + model.classifier.bias
        close(got[i], logits.log_softmax(-1))
    assert torch.equal(model.classify(x), got.argmax(-1))
    wide = x[:6].reshape(2, 3, *model.event_shape)
    close(model.class_log_prob(wide), got[:6].reshape(2, 3, CLASSES))
    assert torch.equal(model.classify(wide), got[:6].argmax(-1).reshape(2, 3))


@kinds(*(name for name in ONE_TOP if name.startswith("tree")))
def test_densities_given_classes_are_exact_on_trees(name):
    model = labelled(name)
    x = images_for(model)
    for y, law in enumerate(laws(model)):
        close(model.condition(y).log_prob(x), law.log_prob(x), 1e-10)


@kinds(*ONE_TOP)
def test_classes_add_up_to_the_law(name):
    """The sum over y of p(y) p(x | y), also of bounds: they differ in the top's weights alone."""
    model = labelled(name)
    x = images_for(model)
    _, joint = class_probs(model)
    log_probs = torch.stack([model.condition(y).log_prob(x) for y in range(CLASSES)], -1)
    close((log_probs + joint.sum(0).log()).logsumexp(-1), model.log_prob(x), 1e-10)
    assert (log_probs.max(-1).values - log_probs.min(-1).values).max() > 0.1
    with torch.no_grad():
        for p in model.classifier.parameters():
            p.zero_()
    close(model.condition(0).log_prob(x), model.log_prob(x), 1e-10)  # says nothing any more


@kinds(*ONE_TOP)
def test_draws_given_classes_follow_their_law(name):
    model = labelled(name)
    for y, law in enumerate(laws(model)):
        x = model.sample_class(y, (NUM,), noise=False)
        check_frequencies(codes_of(x, law), law.weights)
    restricted = laws(model, top_s=2, temperature=0.7)[1]
    x = model.sample_class(1, (NUM,), noise=False, top_s=2, temperature=0.7)
    check_frequencies(codes_of(x, restricted), restricted.weights)


def test_draws_of_conditioned_laws():
    """With noise, by the mean and the variance of each pixel."""
    model = labelled("tree: 2L-b, channels", deviation=1.0)
    labels = torch.arange(CLASSES)
    x = model.condition(labels).sample((NUM,))
    drawn = model.sample_class(labels, (NUM,))
    assert x.shape == drawn.shape == (NUM, CLASSES, *model.event_shape)
    for y, law in enumerate(laws(model)):
        mean = law.weights @ law.means
        variance = law.weights @ (law.means**2 + law.variances) - mean**2
        for draws in (x, drawn):
            error = (variance / NUM).sqrt()
            assert ((draws[:, y].flatten(1).mean(0) - mean).abs() < 6 * error).all()


def test_shapes():
    model = labelled("tree: one layer")
    labels = torch.tensor([[0, 1, 2], [2, 1, 0]])
    law = model.condition(labels)
    assert (law.batch_shape, law.event_shape) == ((2, 3), model.event_shape)
    assert law.sample().shape == (2, 3, *model.event_shape)
    x = law.sample((4,))
    assert x.shape == (4, 2, 3, *model.event_shape)
    got = law.log_prob(x)
    assert got.shape == (4, 2, 3)
    for i in range(2):
        for j in range(3):
            alone = model.condition(int(labels[i, j]))
            assert alone.batch_shape == ()
            close(got[:, i, j], alone.log_prob(x[:, i, j]))
    # One image under several laws.
    close(law.log_prob(x[0, 0, 0]), law.log_prob(x[0, 0, 0].expand(2, 3, -1, -1, -1)))
    assert model.sample_class(labels, (5,)).shape == (5, 2, 3, *model.event_shape)
    assert model.sample_class(1).shape == model.event_shape
    assert law.expand((4, 2, 3)).sample().shape == (4, 2, 3, *model.event_shape)


def test_conditioned_laws_follow_training():
    """They share the parameters, also where these change in place."""
    model = labelled("tree: one layer")
    law, x = model.condition(1), images_for(model)
    before = law.log_prob(x).detach()
    with torch.no_grad():
        model.mixtures[0].loc.add_(0.1)
    assert not torch.equal(law.log_prob(x), before)
    close(law.log_prob(x), model.condition(1).log_prob(x))


CHECKED = ("shapes", "expand", "mask", "to_event", "deterministic", "normalized_in_expectation")
CHECKED += ("stein_identity", "copies", "pyro_model")


@pytest.mark.parametrize("check", CHECKED)
def test_conditioned_laws_conform(check):
    def make():
        return labelled("tree: folding, pooling", deviation=0.6).condition(torch.tensor([0, 2]))

    CHECKS[check][0](Case(make, num_samples=5000))


BAD = [
    (lambda model: model.condition(CLASSES), "from 0 to 2"),
    (lambda model: model.condition(-1), "from 0 to 2"),
    (lambda model: model.condition(0.5), "integer"),
    (lambda model: model.condition(torch.tensor([0.0, 1.0])), "integer"),
    (lambda model: model.condition(torch.tensor([True])), "integer"),
    (lambda model: model.sample_class(torch.tensor([0, 3]), (2,)), "from 0 to 2"),
    (lambda model: model.classify(torch.randn(3, 2, 3)), "shape"),
    (lambda model: model.class_log_prob(torch.full((1, 2, 2), math.nan)), "NaN"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_labels_and_images(call, message):
    with pytest.raises(ValueError, match=message):
        call(labelled("tree: one layer"))


@pytest.mark.parametrize(
    "call",
    [
        lambda model: model.condition(0),
        lambda model: model.sample_class(0),
        lambda model: model.classify(model.sample()),
        lambda model: model.class_log_prob(model.sample()),
    ],
)
def test_without_a_classifier(call):
    with pytest.raises((ValueError, NotImplementedError), match="Classifier"):
        call(build("tree: one layer"))


def test_a_single_image_without_a_batch():
    """As `pyro.sample` scores it."""
    model = labelled("tree: one layer")
    images = images_for(model)
    law = model.condition(1)
    close(law.log_prob(images[0]), law.log_prob(images)[0])
    assert law.log_prob(images[0]).shape == ()
    with pytest.raises(NotImplementedError, match=r"mean of ClassLaw has no closed form"):
        _ = law.mean
