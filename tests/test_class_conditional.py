"""Mixtures over the classes of a conditional model: the sum, Bayes' rule, and training."""

import copy
import math

import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as transforms
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import ClippedAdam
from scipy.stats import chi2
from torch import tensor

from pyromix import (
    DCGMM,
    DRMM,
    FRMDN,
    RAD,
    Flow,
    GaussianMixture,
    Observed,
    class_conditional,
    fit,
    load,
    save,
)
from pyromix.dcgmm import GMM, Folding

P_VALUE = 1e-5
STANDARD_ERRORS = 6.0
PRIOR = (0.5, 0.2, 0.3)


def normal(dim):
    return dist.Normal(torch.zeros(dim), torch.ones(dim)).to_event(1)


# Models of three classes.
MODELS = {
    "mixture": lambda: GaussianMixture(2, 2, context_dim=3, hidden_dims=(8,)),
    "low rank": lambda: GaussianMixture(
        3, 2, "low_rank_precision", context_dim=3, hidden_dims=(8,)
    ),
    "RAD": lambda: RAD(2, 2, hidden_dims=(8,), context_dim=3),
    "transforms": lambda: Flow(
        GaussianMixture(2, 2),
        [
            transforms.conditional_affine_coupling(2, 3, hidden_dims=[8]),
            transforms.permute(2, tensor([1, 0])),
            transforms.conditional_affine_coupling(2, 3, hidden_dims=[8]),
        ],
    ),
    "base": lambda: Flow(
        GaussianMixture(2, 2, context_dim=3, hidden_dims=(8,)),
        [transforms.affine_coupling(2, [4]), transforms.SigmoidTransform()],
    ),
    "base and transforms": lambda: Flow(
        GaussianMixture(2, 2, context_dim=3, hidden_dims=(8,)),
        transforms.conditional_affine_coupling(2, 3, hidden_dims=[4]),
    ),
    "sequences": lambda: FRMDN(2, 4, 2, static_dim=3, hidden_dim=4, rank=1),
    "bounded sequences": lambda: Flow(
        FRMDN(2, 4, 2, static_dim=3, hidden_dim=4), transforms.SigmoidTransform()
    ),
}
models = pytest.mark.parametrize("name", MODELS)


@torch.no_grad()
def build(name, **options):
    """A law of three classes that differ, though not entirely."""
    torch.manual_seed(0)
    model = MODELS[name]()
    for parameter in model.parameters():
        parameter.add_(0.3 * torch.randn_like(parameter))
    return class_conditional(model, 3, **options)


def close(got, expected, tolerance=1e-9):
    torch.testing.assert_close(got, expected, atol=tolerance, rtol=tolerance)


def labelled_points(num=300, dim=2):
    """Three clusters that do not touch."""
    labels = torch.arange(num) % 3
    centres = 8.0 * torch.eye(3)[:, :dim]
    return centres[labels] + torch.randn(num, dim), labels


def trained(make, points, labels, **options):
    torch.manual_seed(0)
    law = class_conditional(make(), 3, **options)
    settings = {"steps": 150, "batch_size": 100, "lr": 0.02, "seed": 0, "progress_bar": False}
    history = fit(law, (points, labels), **settings)
    assert law.initialized
    assert law.model.initialized
    return law, history


# ---- the law ----------------------------------------------------------------------------------


@models
@pytest.mark.parametrize("prior", [None, PRIOR], ids=["uniform", "given"])
def test_the_sum_and_bayes_rule(name, prior):
    law = build(name, prior=None if prior is None else tensor(prior))
    share = tensor(prior or (1 / 3,) * 3)
    x = law.sample((4, 5))
    assert x.shape == (4, 5, *law.event_shape)
    one_hot = torch.eye(3)
    given = torch.stack([law.model.condition(one_hot[y]).log_prob(x) for y in range(3)], -1)
    close(law.class_log_prob(x), given)
    joint = share * given.exp()
    close(law.log_prob(x).exp(), joint.sum(-1))
    posterior = law.responsibilities(x)
    close(posterior, joint / joint.sum(-1, keepdim=True))
    close(posterior.sum(-1), torch.ones(4, 5))
    assert torch.equal(law.classify(x), joint.argmax(-1))
    assert given.std(-1).mean() > 0.05  # the classes differ
    # One value, without a batch.
    close(law.class_log_prob(x[0, 0]), given[0, 0])
    assert law.classify(x[0, 0]).shape == ()


@models
def test_the_law_of_a_label(name):
    law = build(name)
    labels = tensor([[2, 0], [1, 1]])
    x = law.sample((2, 2))
    got = law.condition(labels)
    assert got.batch_shape == (2, 2)
    close(got.log_prob(x), law.class_log_prob(x).gather(-1, labels.unsqueeze(-1)).squeeze(-1))
    one = law.condition(1)
    assert one.batch_shape == ()
    close(one.log_prob(x), law.class_log_prob(x)[..., 1])
    assert got.sample((3,)).shape == (3, 2, 2, *law.event_shape)


def test_far_values_have_no_probability_of_nan():
    """Where every density underflows, its logarithm does not."""
    law = build("mixture", prior=tensor(PRIOR))
    x = tensor([[1e3, -1e3], [0.0, 5e3]])
    assert law.log_prob(x).isfinite().all()
    assert (law.log_prob(x) < -1e4).all()
    close(law.responsibilities(x).sum(-1), torch.ones(2))


def test_a_class_without_probability():
    law = build("mixture", prior=tensor([0.6, 0.0, 0.4]))
    x = law.sample((50,))
    weights = law.responsibilities(x)
    assert not weights[:, 1].any()
    close(weights.sum(-1), torch.ones(50))
    assert not (law.classify(x) == 1).any()
    rest = law.class_log_prob(x)[:, [0, 2]].exp() @ tensor([0.6, 0.4])
    close(law.log_prob(x).exp(), rest)
    law.log_prob(x).sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in law.parameters())


def test_contexts_of_classes():
    """What stands for a class need be no one-hot vector."""
    torch.manual_seed(0)
    model = GaussianMixture(2, 2, context_dim=1, hidden_dims=(8,))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    contexts = tensor([[-1.0], [0.0], [3.0], [5.0]])
    law = class_conditional(model, 4, contexts=contexts)
    x = torch.randn(7, 2)
    for y in range(4):
        close(law.class_log_prob(x)[:, y], model.condition(contexts[y]).log_prob(x))
    # A sequence for each class.
    driven = FRMDN(1, 3, 2, context_dim=2, hidden_dim=4)
    with torch.no_grad():
        for p in driven.parameters():
            p.add_(0.3 * torch.randn_like(p))
    contexts = torch.randn(2, 3, 2)
    law = class_conditional(driven, 2, contexts=contexts)
    x = torch.randn(5, 3, 1)
    for y in range(2):
        close(law.class_log_prob(x)[:, y], driven.condition(contexts[y]).log_prob(x))
    assert law.condition(tensor([1, 0, 1])).batch_shape == (3,)


# ---- draws ------------------------------------------------------------------------------------


@pytest.mark.parametrize("prior", [PRIOR, (0.9, 0.0, 0.1)])
def test_classes_of_draws_have_their_probabilities(prior):
    """Far apart, so that every draw shows its class."""
    law, _ = trained(lambda: GaussianMixture(2, 1, context_dim=3), *labelled_points())
    law = class_conditional(law.model, 3, prior=tensor(prior))
    drawn = law.sample((20, 200)).flatten(0, 1)
    counts = torch.bincount(law.classify(drawn), minlength=3)
    expected = 4000 * tensor(prior)
    held = expected > 0
    assert not counts[~held].any()
    statistic = ((counts - expected).square() / expected)[held].sum()
    assert chi2.sf(float(statistic), int(held.sum()) - 1) > P_VALUE
    # Each class in the midst of its own draws, and no order among them.
    classes = law.classify(drawn).to(drawn)
    assert abs(torch.corrcoef(torch.stack([classes[1:], classes[:-1]]))[0, 1]) < (
        STANDARD_ERRORS / math.sqrt(4000)
    )


def test_draws_of_sequences_follow_the_sum():
    """A mean and a density that only the mixture of the classes has."""
    law = build("sequences", prior=tensor(PRIOR))
    x = law.sample((4000,))
    each = law.condition(torch.arange(3)).sample((4000,))
    expected = (tensor(PRIOR).reshape(3, 1, 1) * each.mean(0)).sum(0)
    spread = x.var(0) + (tensor(PRIOR).reshape(3, 1, 1).square() * each.var(0)).sum(0)
    assert ((x.mean(0) - expected).abs() < STANDARD_ERRORS * (spread / 4000).sqrt()).all()
    entropy = law.log_prob(x)
    every = law.log_prob(each.movedim(1, 0)) * tensor(PRIOR).unsqueeze(-1)
    error = (entropy.var() / 4000 + every.var(-1).sum() / 4000).sqrt()
    assert abs(entropy.mean() - every.mean(-1).sum()) < STANDARD_ERRORS * error


def test_seeds_reproduce():
    law = build("sequences")
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(law.sample((3,)))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


# ---- training and classification --------------------------------------------------------------


def test_the_loss_is_that_of_the_joint_law():
    law = build("mixture", prior=tensor(PRIOR))
    points, labels = labelled_points(30)
    joint = law.condition(labels).log_prob(points) + tensor(PRIOR).log()[labels]
    for batch in ((points, labels), {"value": points, "context": labels}):
        close(law.loss(batch), -joint.mean())
    for batch in (points, {"value": points}):
        close(law.loss(batch), -law.log_prob(points).mean())


@pytest.mark.parametrize("name", ["mixture", "RAD", "transforms", "base and transforms"])
def test_separable_points_are_classified(name):
    alone = name == "transforms"
    points, labels = labelled_points()
    law, history = trained(MODELS[name], points, labels)
    assert history.losses[-1] < history.losses[0]
    fresh, answers = labelled_points()
    # Couplings alone may stop with two clusters in one; chance is right for a third.
    assert (law.classify(fresh) == answers).to(fresh).mean() > (0.85 if alone else 0.98)
    right = law.responsibilities(fresh).gather(-1, answers.unsqueeze(-1))
    assert right.mean() > (0.75 if alone else 0.97)


def test_sequences_are_classified():
    labels = torch.arange(300) % 3
    # Of the same mean and variance; only what follows what differs.
    sign = tensor([-0.9, 0.0, 0.9])[labels]
    y = [torch.randn(300)]
    for _ in range(9):
        y.append(sign * y[-1] + (1 - sign.square()).sqrt() * torch.randn(300))
    y = torch.stack(y, -1).unsqueeze(-1)
    law, _ = trained(lambda: FRMDN(1, 10, 1, static_dim=3, hidden_dim=12), y[:200], labels[:200])
    right = (law.classify(y[200:]) == labels[200:]).to(y).mean()
    assert right > 0.8  # those of the true likelihoods are right for about nine in ten


def test_training_without_labels_improves_the_sum():
    points, _ = labelled_points()
    law = build("mixture")
    before = law.loss(points).item()
    fit(law, points, steps=60, lr=0.05, seed=0, progress_bar=False)
    assert law.loss(points).item() < before - 1.0


def test_the_model_is_shared():
    model = GaussianMixture(2, 1, context_dim=3)
    law = class_conditional(model, 3)
    assert law.model is model
    assert {id(p) for p in law.parameters()} == {id(p) for p in model.parameters()}
    other = copy.deepcopy(law)
    with torch.no_grad():
        next(iter(other.parameters())).add_(1.0)
    assert all(
        torch.equal(p, q) for p, q in zip(model.parameters(), law.parameters(), strict=True)
    )


def test_in_pyro():
    """As likelihood of unlabelled points, in a plate."""
    points, _ = labelled_points(60)
    law = class_conditional(GaussianMixture(2, 1, context_dim=3), 3)

    def program():
        pyro.module("law", law)
        with pyro.plate("points", 60):
            pyro.sample("x", law, obs=points)

    svi = SVI(program, lambda: None, ClippedAdam({"lr": 0.05}), Trace_ELBO())
    start = svi.evaluate_loss()
    close(tensor(start), -law.log_prob(points).sum().detach())
    for _ in range(30):
        svi.step()
    assert svi.evaluate_loss() < start - 30


@models
def test_files(name, tmp_path):
    law = build(name, prior=tensor(PRIOR))
    save(law, tmp_path / "law.safetensors")
    other = load(tmp_path / "law.safetensors")
    x = law.sample((4,))
    close(other.log_prob(x), law.log_prob(x))
    close(other.prior, law.prior)
    assert repr(other) == repr(law)


def test_moments_are_those_of_the_mixture_of_classes():
    law = build("mixture", prior=tensor(PRIOR))
    parts = [law.condition(label) for label in range(law.num_classes)]
    mean = sum(p * part.mean for p, part in zip(PRIOR, parts, strict=True))
    second = sum(
        p * (part.variance + part.mean.square()) for p, part in zip(PRIOR, parts, strict=True)
    )
    close(law.mean, mean)
    close(law.variance, second - mean.square())
    close(law.expand((4,)).mean, mean.expand(4, -1))


def test_labels_are_a_categorical_column_of_residual_mixtures():
    """As the error for them says."""
    labels = torch.randint(2, (300,))
    rows = torch.stack([torch.randn(300) + 6.0 * labels, labels.to(torch.float64)], -1)
    model = DRMM(1, 1, 2, categories=(2,))
    fit(model, rows, steps=150, lr=0.02, progress_bar=False, seed=0)
    law = model.condition(Observed({1: 1}))
    assert abs(law.mean[0].item() - 6.0) < 0.5
    shares = model.condition(Observed({0: tensor([-0.5, 6.5])})).probs(1)
    assert shares.argmax(-1).tolist() == [0, 1]


# ---- bad input --------------------------------------------------------------------------------


def conditional():
    return GaussianMixture(2, 2, context_dim=3, hidden_dims=(4,))


def law():
    return class_conditional(conditional(), 3)


def dcgmm():
    return DCGMM((1, 1, 2), [Folding((1, 2)), GMM(3)])


BAD = [
    (lambda: class_conditional(GaussianMixture(2, 2), 3), "model that takes a context"),
    (lambda: class_conditional(FRMDN(2, 3, 2), 3), "model that takes a context"),
    (lambda: class_conditional(Flow(normal(2), []), 3), "model that takes a context"),
    (lambda: class_conditional(DRMM(2, 2, 2), 3), r"DRMM, which.*categories=\(C,\)"),
    (lambda: class_conditional(dcgmm(), 3), r"DCGMM, which.*Classifier\(C\).*one model for each"),
    (lambda: class_conditional(dist.Normal(0.0, 1.0), 3), "Normal, which is no model"),
    (lambda: class_conditional(conditional(), 0), "num_classes to be an integer of at least 1"),
    (lambda: class_conditional(conditional(), 2.0), "num_classes to be an integer"),
    (lambda: class_conditional(conditional(), 4), r"shape \(\*B, 3\), got \(4, 4\)"),
    (lambda: class_conditional(conditional(), 3, prior="even"), "prior to be a tensor, got str"),
    (lambda: class_conditional(conditional(), 3, prior=torch.ones(2) / 2), "3 probabilities"),
    (lambda: class_conditional(conditional(), 3, prior=torch.ones(3)), "sum to 1.*sum 3"),
    (
        lambda: class_conditional(conditional(), 3, prior=tensor([1.5, -0.5, 0.0])),
        "3 probabilities that sum to 1",
    ),
    (lambda: class_conditional(conditional(), 3, prior=torch.ones(3) * math.nan), "sum nan"),
    (lambda: class_conditional(conditional(), 3, prior=tensor([1, 0, 0])), "got torch.int64"),
    (
        lambda: class_conditional(conditional(), 3, prior=torch.ones(3).float() / 3),
        "prior to have dtype torch.float64",
    ),
    (
        lambda: class_conditional(conditional(), 3, contexts=torch.zeros(2, 3)),
        r"contexts of shape \(3, ...\).*got \(2, 3\)",
    ),
    (lambda: class_conditional(conditional(), 3, contexts=torch.zeros(3)), "contexts of shape"),
    (lambda: class_conditional(conditional(), 3, contexts=torch.zeros(3, 2)), "shape"),
    (
        lambda: class_conditional(conditional(), 3, contexts=torch.zeros(3, 4, 3)),
        r"one law for each of 3 contexts, got batch shape \(3, 4\)",
    ),
    (lambda: class_conditional(FRMDN(2, 3, 2, context_dim=3), 3), "each of 3 steps|broadcast|law"),
    (lambda: law().condition(3), "labels from 0 to 2, got 3"),
    (lambda: law().condition(tensor([0, -1])), "labels from 0 to 2, got -1"),
    (lambda: law().condition(tensor([0.0])), "integer labels of classes, got torch.float64"),
    (lambda: law().condition(True), "integer labels of classes, got torch.bool"),
    (lambda: law().condition(torch.eye(3)), "integer labels"),
    (lambda: law().log_prob(torch.zeros(5, 3)), r"event shape \(2,\), got shape \(5, 3\)"),
    (lambda: law().class_log_prob(torch.zeros(3)), "event shape"),
    (lambda: law().log_prob(torch.zeros(5, 2) * math.nan), "10 NaN"),
    (lambda: law().condition("red"), "integer labels of classes, got str"),
    (lambda: law().log_prob([0.0, 0.0]), "torch.Tensor, got list"),
    (lambda: law().classify("red"), "value to be a tensor, got str"),
    (lambda: law().responsibilities(torch.zeros(5, 2).float()), "dtype torch.float64"),
    (lambda: law().loss((torch.zeros(5, 2), tensor([0, 1, 2, 3, 0]))), "labels from 0 to 2"),
    (lambda: law().loss((torch.zeros(5, 2), torch.zeros(5))), "integer labels"),
    (
        lambda: fit(law(), (torch.zeros(5, 2), torch.full((5,), 7)), steps=1, progress_bar=False),
        "labels from 0 to 2",
    ),
]


@pytest.mark.parametrize(("call", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_labels_and_contexts_belong_to_values():
    """Others would broadcast, and every value be scored under every label."""
    law = class_conditional(GaussianMixture(2, 1, context_dim=3), 3)
    x, labels = torch.randn(5, 2), torch.tensor([0, 1, 2, 1, 0])
    expected = law.loss((x, labels))
    torch.testing.assert_close(law.loss((x, labels.to(torch.uint8))), expected)
    assert law.condition(labels.to(torch.uint8)).batch_shape == (5,)
    with pytest.raises(ValueError, match="one integer label for each value"):
        law.loss((x, labels.unsqueeze(-1)))
    with pytest.raises(ValueError, match="one context for each value"):
        law.model.loss((x, torch.randn(5, 1, 3)))
    with pytest.raises(NotImplementedError, match="classes are discrete"):
        law.rsample()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_file_of_another_dtype_than_the_default_is_loaded(dtype, tmp_path):
    law = class_conditional(GaussianMixture(2, 1, context_dim=2), 2).to(dtype)
    save(law, tmp_path / "law.safetensors")
    again = load(tmp_path / "law.safetensors")
    assert again.contexts.dtype == dtype
    value = torch.zeros(3, 2, dtype=dtype)
    assert torch.equal(again.log_prob(value), law.log_prob(value))
