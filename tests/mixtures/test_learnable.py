"""GaussianMixture: parametrisation, initialisation, and fits with a known answer."""

import math

import pyro
import pytest
import torch

from pyromix import GaussianMixture, MixtureOfNormals, Observed, fit, load, save
from pyromix.mixtures.clusters import find_clusters
from pyromix.mixtures.covariance import STRUCTURES, Moments
from pyromix.mixtures.em.factors import second_moments


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
    torch.testing.assert_close(
        model.condition(Observed({1: 0.5})).free().mean,
        law.condition(Observed({1: 0.5})).free().mean,
    )


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
    torch.testing.assert_close(clusters.second, torch.ones(5, 2), atol=0.2, rtol=0)
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
    assert (clusters.second >= 0).all()


@pytest.mark.parametrize("covariance", ["diagonal", "spherical", "shared"])
def test_initialisation_is_a_good_start(covariance):
    x, _ = blobs(separation=20.0)
    model = GaussianMixture(2, 5, covariance)
    model.initialize(x)
    # Clusters this far apart leave no doubt: the likelihood is nearly that of the truth.
    entropy = math.log(5) + 2 * (0.5 + 0.5 * math.log(2 * math.pi))
    assert abs(-model.log_prob(x).mean().item() - entropy) < 0.1


@pytest.mark.parametrize("covariance", ["full", "tied", "low_rank", "low_rank_precision"])
def test_covariances_stay_above_the_floor(covariance):
    """In every direction, wherever training goes, for matrices of low rank; else coordinates."""
    model = GaussianMixture(4, 3, covariance, rank=2, variance_floor=0.1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=5.0)
    law = model.distribution
    if "rank" in covariance:
        assert torch.linalg.eigvalsh(law.component_covariance).min() > 0.1 * (1 - 1e-6)
    if covariance == "low_rank_precision":
        assert torch.linalg.eigvalsh(law.precision_matrix).max() < 10 * (1 + 1e-6)
    elif "rank" not in covariance:
        assert (law.scale_tril.diagonal(dim1=-2, dim2=-1) >= 0.1**0.5).all()


@pytest.mark.parametrize("covariance", STRUCTURES)
def test_estimates_give_back_the_moments_of_their_own_law(covariance):
    model = GaussianMixture(4, 3, covariance, rank=2, variance_floor=1e-3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.7)
    before = model.distribution.component_covariance.detach()
    full = model.structure.full_moments
    second = before if full else before.diagonal(dim1=-2, dim2=-1)
    raw = {name: p.detach() for name, p in model._raw().items()}
    if model.structure.has_factors:
        factor = raw["raw_factor"]
        second = second_moments(second, factor, torch.eye(2).expand(3, -1, -1))
    moments = Moments(torch.ones(3), second)
    model._assign(model.logits, model.loc, model.structure.estimate(moments, raw))
    after = model.distribution.component_covariance.detach()
    torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("covariance", STRUCTURES)
def test_missing_entries(covariance):
    model = GaussianMixture(4, 3, covariance, rank=2, missing="marginalize")
    plain = GaussianMixture(4, 3, covariance, rank=2)
    plain.load_state_dict(model.state_dict())
    x = plain.sample((8,))
    torch.testing.assert_close(model.log_prob(x), plain.log_prob(x))
    gaps = x.clone()
    gaps[:4, 1], gaps[4:, 2:] = math.nan, math.nan
    expected = torch.cat(
        [
            plain.marginal([0, 2, 3]).log_prob(x[:4][:, [0, 2, 3]]),
            plain.marginal([0, 1]).log_prob(x[4:][:, [0, 1]]),
        ]
    )
    torch.testing.assert_close(model.log_prob(gaps), expected)
    torch.testing.assert_close(model.loss(gaps), -expected.mean())
    assert model.responsibilities(gaps).shape == (8, 3)
    assert model.support.check(gaps).all()
    with pytest.raises(ValueError, match="without NaN"):
        plain.log_prob(gaps)
    # A value that is missing after all tells nothing.
    given = {0: gaps[:, 0], 1: gaps[:, 1]}
    with pytest.warns(FutureWarning, match="free"):
        conditional = model.condition(given)
    torch.testing.assert_close(
        conditional.mean[:4], plain.condition(Observed({0: x[:4, 0]})).free().mean[:, 1:]
    )
    expected = plain.condition(Observed({0: x[4:, 0], 1: x[4:, 1]})).free().mean
    torch.testing.assert_close(conditional.mean[4:], expected)
    assert conditional.sample().shape == (8, 2)
    trace = pyro.poutine.trace(lambda: pyro.sample("x", model.expand((8,)), obs=gaps)).get_trace()
    torch.testing.assert_close(trace.log_prob_sum(), model.log_prob(gaps).sum())


@pytest.mark.parametrize("covariance", STRUCTURES)
def test_imputation(covariance):
    model = GaussianMixture(4, 3, covariance, rank=2)
    x = model.sample((6,))
    gaps = x.clone()
    gaps[:3, 1], gaps[3, :], gaps[5, [0, 3]] = math.nan, math.nan, math.nan
    filled = model.impute(gaps)
    torch.testing.assert_close(filled[~gaps.isnan()], x[~gaps.isnan()])
    given = {0: x[:3, 0], 2: x[:3, 2], 3: x[:3, 3]}
    with pytest.warns(FutureWarning, match="free"):
        expected = model.condition(given).mean
    torch.testing.assert_close(filled[:3, 1:2], expected)
    torch.testing.assert_close(filled[3], model.mean)
    draws = model.impute(gaps, num_samples=20_000)
    assert draws.shape == (20_000, 6, 4)
    error = draws.std(0) / math.sqrt(20_000)
    assert ((draws.mean(0) - filled).abs() <= 5 * error + 1e-12).all()


@pytest.mark.parametrize("covariance", ["diagonal", "tied", "low_rank"])
def test_mixture_density_network(covariance, tmp_path):
    """Two branches y = +-x, which a regression would average to zero."""
    x = torch.rand(2000, 1)
    sign = torch.where(torch.rand(2000, 1) < 0.3, -1.0, 1.0)
    y = torch.cat([sign * x, sign * x], 1) + 0.05 * torch.randn(2000, 2)
    options = {"context_dim": 1, "hidden_dims": [32], "variance_floor": 1e-4}
    model = GaussianMixture(2, 2, covariance, **options)
    with pytest.raises(ValueError, match="needs a context"):
        model.log_prob(y)
    fit(model, (y, x), steps=400, batch_size=200, lr=5e-3, seed=0, progress_bar=False)
    law = model.condition(torch.tensor([[0.3], [0.9]]))
    assert law.batch_shape == (2,)
    assert law.sample((5,)).shape == (5, 2, 2)
    for i, at in enumerate((0.3, 0.9)):
        order = law.loc[i, :, 0].argsort()
        expected = torch.tensor([[-at, -at], [at, at]])
        torch.testing.assert_close(law.loc[i, order], expected, atol=0.1, rtol=0)
        weights = law.logits[i, order].exp()
        torch.testing.assert_close(weights, torch.tensor([0.3, 0.7]), atol=0.1, rtol=0)
    # Coordinates can be conditioned on in turn.
    assert law.condition(Observed({0: torch.tensor([0.3, -0.9])})).free().mean[1] < -0.7
    save(model, tmp_path / "model.safetensors")
    other = load(tmp_path / "model.safetensors")
    assert torch.equal(other.condition(x).log_prob(y), model.condition(x).log_prob(y))
    for bad in (torch.zeros(3, 2), torch.zeros(3, 1).float(), 1.0):
        with pytest.raises(ValueError, match="context"):
            model.condition(bad)


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
