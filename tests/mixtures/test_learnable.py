"""GaussianMixture: parametrisation, initialisation, and fits with a known answer."""

import math

import pytest
import torch

from pyromix import GaussianMixture, MixtureOfNormals, fit
from pyromix.mixtures.initialization import find_clusters


@pytest.mark.parametrize(
    ("covariance", "shape"), [("diagonal", (4, 3)), ("spherical", (4, 1)), ("shared", (1, 3))]
)
def test_scales(covariance, shape):
    model = GaussianMixture(3, 4, covariance, variance_floor=0.01)
    assert model.raw_scale.shape == shape
    with torch.no_grad():
        model.raw_scale.copy_(torch.randn(shape))
    assert model.scale.shape == (4, 3)
    assert (model.scale == model.scale[:1]).all() == (covariance == "shared")
    assert (model.scale == model.scale[:, :1]).all() == (covariance == "spherical")
    with torch.no_grad():
        model.raw_scale.fill_(-100.0)
    torch.testing.assert_close(model.scale, torch.full((4, 3), 0.1))  # the floor's root


def test_queries_are_those_of_the_mixture():
    model = GaussianMixture(3, 4)
    law = MixtureOfNormals(model.logits, model.loc, model.scale)
    x = torch.randn(5, 3)
    torch.testing.assert_close(model.log_prob(x), law.log_prob(x))
    torch.testing.assert_close(model.responsibilities(x), law.responsibilities(x))
    torch.testing.assert_close(model.mean, law.mean)
    torch.testing.assert_close(model.variance, law.variance)
    torch.testing.assert_close(model.marginal([2, 0]).mean, law.marginal([2, 0]).mean)
    torch.testing.assert_close(model.condition({1: 0.5}).mean, law.condition({1: 0.5}).mean)


def blobs(n=2000, dim=2, k=5, separation=10.0, generator=None):
    """Points of well-separated clusters, and the centres."""
    centres = separation * torch.randn(k, dim)
    label = torch.randint(k, (n,))
    return centres[label] + torch.randn(n, dim), centres


def test_clusters_are_found():
    x, centres = blobs(separation=30.0)
    clusters = find_clusters(x, 5)
    distance, match = torch.cdist(centres, clusters.loc).min(1)
    assert sorted(match.tolist()) == [0, 1, 2, 3, 4]
    assert distance.max() < 0.3
    torch.testing.assert_close(clusters.variance, torch.ones(5, 2), atol=0.2, rtol=0)
    torch.testing.assert_close(clusters.weights, torch.full((5,), 0.2), atol=0.03, rtol=0)


@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(1, 2),
        torch.zeros(50, 2),
        torch.tensor([[0.0, 0.0], [1.0, 1.0]]).repeat(10, 1),
        1e4 + torch.randn(20_000, 2),
    ],
    ids=["one point", "one value", "two values", "many points far away"],
)
def test_clusters_of_odd_data_are_finite(x):
    clusters = find_clusters(x.double(), 6)
    assert all(part.isfinite().all() for part in clusters)
    assert clusters.weights.min() > 0
    torch.testing.assert_close(clusters.weights.sum(), torch.tensor(1.0))
    assert (clusters.variance >= 0).all()


@pytest.mark.parametrize("covariance", ["diagonal", "spherical", "shared"])
def test_initialisation_is_a_good_start(covariance):
    x, _ = blobs(separation=20.0)
    model = GaussianMixture(2, 5, covariance)
    model.initialize(x)
    # Clusters this far apart leave no doubt: the likelihood is nearly that of the truth.
    entropy = math.log(5) + 2 * (0.5 + 0.5 * math.log(2 * math.pi))
    assert abs(-model.log_prob(x).mean().item() - entropy) < 0.1


def test_constant_coordinates_stop_at_the_floor():
    x = torch.randn(500, 3)
    x[:, 1] = 7.0
    model = GaussianMixture(3, 4, variance_floor=1e-4)
    fit(model, x, steps=300, lr=0.05, seed=0, progress_bar=False)
    assert model.log_prob(x).isfinite().all()
    assert (model.scale[:, 1] >= 1e-2).all()
    assert (model.scale[:, 1] < 2e-2).all()


def test_training_reaches_the_likelihood_of_the_truth():
    truth = MixtureOfNormals(
        torch.tensor([0.5, 0.3, 0.2]).log(),
        torch.tensor([[0.0, 0.0], [4.0, 1.0], [-3.0, 3.0]]),
        torch.tensor([[1.0, 0.5], [0.5, 1.5], [1.0, 1.0]]),
    )
    x, held_out = truth.sample((4000,)), truth.sample((4000,))
    model = GaussianMixture(2, 3)
    history = fit(model, x, steps=600, batch_size=500, lr=0.02, seed=1, progress_bar=False)
    assert sum(history.losses[-100:]) < sum(history.losses[:100])
    difference = truth.log_prob(held_out) - model.log_prob(held_out)
    error = difference.std() / math.sqrt(len(difference))
    assert difference.mean() < 0.01 + 3 * error
    weights = model.logits.softmax(-1).detach().sort(descending=True).values
    torch.testing.assert_close(weights, truth.logits.exp(), atol=0.05, rtol=0)


def test_one_component_learns_mean_and_variance():
    x = torch.tensor([3.0, -1.0]) + torch.tensor([2.0, 0.5]) * torch.randn(4000, 2)
    model = GaussianMixture(2, 1)
    fit(model, x, steps=500, batch_size=4000, lr=0.02, seed=0, progress_bar=False)
    torch.testing.assert_close(model.mean.detach(), x.mean(0), atol=1e-3, rtol=0)
    expected = x.var(0, correction=0) + model.variance_floor
    torch.testing.assert_close(model.variance.detach(), expected, atol=0, rtol=5e-3)
