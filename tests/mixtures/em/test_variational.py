"""Variational Bayes: its bound by other means, and the components that it finds."""

import math
import warnings

import pytest
import torch
from torch.distributions import Beta, Dirichlet, Gamma, MultivariateNormal, Wishart
from torch.distributions.kl import kl_divergence
from tqdm import tqdm

from pyromix import ConjugatePrior, GaussianMixture, fit_vb
from pyromix.mixtures.em.posterior import DirichletProcess, FiniteDirichlet, Groups
from pyromix.mixtures.em.variational import CONJUGATE, _Search

from .test_fit_em import data, with_gaps

every_covariance = pytest.mark.parametrize("covariance", CONJUGATE)
both_weights = pytest.mark.parametrize("weights", ["dirichlet", "dirichlet_process"])


def search_of(covariance, x, k, weights="dirichlet", prior=None):
    """A search that has started, from random responsibilities."""
    model = GaussianMixture(x.shape[1], k, covariance, missing="marginalize", standardize=False)
    model.initialize(x)
    own = {"dirichlet": FiniteDirichlet(1.5, k), "dirichlet_process": DirichletProcess(1.5)}
    prior = prior or ConjugatePrior(strength=2, shrinkage=0.3)
    search = _Search(model.requires_grad_(False), x, prior, own[weights], tqdm(disable=True))
    responsibility = torch.rand(len(x), k, generator=torch.Generator().manual_seed(0)).softmax(-1)
    filled, structure = search.x.nan_to_num(0.0), model.structure
    weight = responsibility.sum(0)
    mean = (responsibility.mT @ filled) / weight.unsqueeze(-1)
    shift = filled.unsqueeze(1) - mean
    second = torch.einsum("nk,nki,nkj->kij", responsibility, shift, shift)
    if not structure.full_moments:
        second = second.diagonal(dim1=-2, dim2=-1)
    groups = Groups(weight, mean, structure.pool(second))
    return search, search._maximize(search.state.components.prior, groups)


def by_component(posterior, k, dim):
    """Posteriors of precisions as distributions, with their priors, and by which component."""
    prior = posterior.prior
    if prior.matrix:
        degrees = posterior.degrees.squeeze(-1)
        first = Wishart(torch.tensor(prior.degrees), precision_matrix=prior.scatter[0])
        last = [
            Wishart(df, precision_matrix=psi)
            for df, psi in zip(degrees, posterior.scatter, strict=True)
        ]
        mean = torch.stack([law.mean for law in last])
        log_det = sum(torch.digamma(0.5 * (degrees - i)) for i in range(dim))
        log_det = log_det + dim * math.log(2) - posterior.scatter.logdet()
        divergence = sum(kl_divergence(law, first) for law in last)
    else:
        first = Gamma(torch.as_tensor(0.5 * prior.degrees), 0.5 * prior.scatter)
        last = Gamma(0.5 * posterior.degrees, 0.5 * posterior.scatter)
        mean = last.mean.expand(-1, dim).diag_embed()
        log_det = (torch.digamma(last.concentration) - last.rate.log()).expand(-1, dim).sum(-1)
        divergence = kl_divergence(last, first).sum()
    return mean.expand(k, dim, dim), log_det.expand(k), divergence


def naive_bound(search, state, weights):
    """The bound, point by point and component by component."""
    posterior, (k, dim) = state.components, state.components.mean.shape
    precision, log_det, divergence = by_component(posterior, k, dim)
    kappa = posterior.prior.shrinkage
    for j in range(k):  # normals of precision Lambda_j, whose expectation is linear in it
        ratio = posterior.points[j] / kappa
        length = posterior.mean[j] @ precision[j] @ posterior.mean[j]
        divergence = divergence + 0.5 * (dim * (ratio.log() - 1 + 1 / ratio) + kappa * length)
    counts = posterior.points - kappa
    if weights == "dirichlet":
        last = Dirichlet(counts + 1.5 / k)
        divergence = divergence + kl_divergence(last, Dirichlet(torch.full((k,), 1.5 / k)))
        log_weight = torch.digamma(last.concentration) - torch.digamma(last.concentration.sum())
    else:
        later = counts.flip(0).cumsum(0).flip(0) - counts
        sticks = Beta(1 + counts, 1.5 + later)
        divergence = divergence + kl_divergence(sticks, Beta(1.0, torch.tensor(1.5))).sum()
        total = torch.digamma(2.5 + counts + later)
        taken, left = torch.digamma(1 + counts) - total, torch.digamma(1.5 + later) - total
        log_weight = torch.stack([taken[j] + left[:j].sum() for j in range(k)])
    first, given = posterior.prior.scatter, posterior.prior._given
    if posterior.prior.matrix:
        first, given = first[0].diagonal(), given[0].diagonal()
    half = 0.5 * posterior.prior.degrees
    gamma = Gamma(1 + half, half / given)  # whose mode is the V that was given
    penalty = (gamma.log_prob(first) - gamma.log_prob(given)).sum()
    value = penalty - divergence
    for point in search.x:
        scores, seen = [], ~point.isnan()
        for j in range(k):
            covariance = precision[j].inverse()
            score = log_weight[j] + 0.5 * (log_det[j] - precision[j].logdet())
            score = score - 0.5 * dim / posterior.points[j]
            if seen.any():
                law = MultivariateNormal(posterior.mean[j][seen], covariance[seen][:, seen])
                score = score + law.log_prob(point[seen])
            scores.append(score)
        value = value + torch.stack(scores).logsumexp(0)
    return value.item()


@every_covariance
@both_weights
@pytest.mark.parametrize("gaps", [False, True])
def test_the_bound(covariance, weights, gaps):
    x = with_gaps(data(40)) if gaps else data(40)
    search, state = search_of(covariance, x, 3, weights)
    assert search._expect(state)[1] == pytest.approx(naive_bound(search, state, weights), abs=1e-8)


@every_covariance
@both_weights
def test_evidence_is_the_bound_less_entropy(covariance, weights):
    """For points that are given to components, log-evidence is what the bound is at its best."""
    search, state = search_of(covariance, data(40), 3, weights)
    law, _, groups = search._expect(state)
    prior = search.state.components.prior
    search.adapts = False
    search.state = search._maximize(prior, groups)
    counts, found = groups.weight, search.state.components
    if weights == "dirichlet_process":
        counts = counts.sort(descending=True).values
    # E log p(x | z) + E log p(z) - divergences, at posteriors of these very points.
    shifted = found.law(search.state.weights.log_weight)
    scores = shifted._joint_log_prob(search.x) + shifted._logits.logsumexp(0)
    own = law._joint_log_prob(search.x).softmax(-1)
    if weights == "dirichlet_process":
        own = own[:, groups.weight.argsort(descending=True)]
    expected = (own * scores).sum() - found.divergence() - search.state.weights.divergence
    assert search._log_evidence(groups) == pytest.approx(expected.item(), abs=1e-8)
    # Merging two components by their sums is merging them by their points.
    merged = groups.merged(0, 2, search.structure)
    _, _, again = search._expect(search._maximize(prior, merged))
    assert again.weight.sum() == pytest.approx(40.0)
    pairs = torch.tensor([[0], [2]])
    own = law._joint_log_prob(search.x).softmax(-1)
    both = own[:, 0] + own[:, 2]
    lost = (both * both.log() - (own * own.log())[:, [0, 2]].sum(-1)).sum()
    torch.testing.assert_close(search._lost_entropy(law, pairs), lost.unsqueeze(0))
    mean = (both @ search.x) / both.sum()
    torch.testing.assert_close(merged.mean[0], mean)
    if covariance == "full":
        shift = search.x - mean
        torch.testing.assert_close(merged.second[0], (both * shift.mT) @ shift)
        assert merged.weight[2] == 0


@both_weights
def test_agrees_with_scikit_learn_at_equal_priors(weights, monkeypatch):
    from sklearn.mixture import BayesianGaussianMixture

    x, k, dim = data(150), 3, 4
    scale = torch.eye(dim) + 0.3
    prior = ConjugatePrior(strength=2, shrinkage=0.3, scale=scale)
    bounds, peers = [], []
    for shift in (0, 1):  # two starts, of which the second is bad
        own = torch.full((len(x), k), 0.05)
        label = torch.arange(len(x)) % 3 if shift == 0 else (x[:, 0] > x[:, 0].mean()).long()
        own[range(len(x)), label] = 0.9 - 0.1 * (label == 2)
        own = own / own.sum(-1, keepdim=True)

        class Peer(BayesianGaussianMixture):
            def _initialize_parameters(self, X, *_, own=own, **__):  # noqa: N803
                self._initialize(X, own.numpy())

        kinds = {"dirichlet": "dirichlet_distribution", "dirichlet_process": "dirichlet_process"}
        peer = Peer(
            n_components=k,
            weight_concentration_prior_type=kinds[weights],
            weight_concentration_prior=1.5 if weights == "dirichlet_process" else 1.5 / k,
            mean_precision_prior=0.3,
            degrees_of_freedom_prior=dim + 3,
            covariance_prior=2 * scale.numpy(),
            reg_covar=0.0,
            tol=1e-12,
            max_iter=300,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            peer.fit(x.numpy())
        search, _ = search_of("full", x, k, weights, prior)
        monkeypatch.setattr(search.weight_prior, "order", lambda _: None)  # as the peer has none
        weight = own.sum(0)
        mean = (own.mT @ search.x) / weight.unsqueeze(-1)
        difference = search.x.unsqueeze(1) - mean
        second = torch.einsum("nk,nki,nkj->kij", own, difference, difference)
        state = search._maximize(search.prior, Groups(weight, mean, second))
        for _ in range(peer.n_iter_):
            _, bound, groups = search._expect(state)
            state = search._maximize(search.prior, groups)
        order = torch.tensor(peer.weights_).argsort(descending=True)
        mine = state.weights.weight.argsort(descending=True)
        expected = torch.tensor(peer.weights_)[order]
        torch.testing.assert_close(
            state.weights.weight[mine], expected / expected.sum(), atol=1e-5, rtol=0
        )
        law = state.components.law(state.weights.log_weight)
        torch.testing.assert_close(
            law.component_covariance[mine],
            torch.tensor(peer.covariances_)[order],
            atol=1e-4,
            rtol=0,
        )
        bounds.append(bound)
        peers.append(peer.lower_bound_)
    # scikit-learn's bound lacks constants.
    assert abs(bounds[0] - bounds[1]) > 1
    assert bounds[0] - bounds[1] == pytest.approx(peers[0] - peers[1], abs=1e-3)


@every_covariance
@both_weights
@pytest.mark.parametrize("gaps", [False, True])
def test_the_bound_never_falls(covariance, weights, gaps):
    x = with_gaps(data(90)) if gaps else data(90)
    model = GaussianMixture(4, 8, covariance, missing="marginalize" if gaps else "error")
    result = fit_vb(model, x, weights=weights, seed=0, progress_bar=False)
    losses = torch.tensor(result.history.losses)
    assert (losses.diff() <= 1e-9).all()
    assert len(losses) < 1000
    assert result.bound == pytest.approx(-losses[-1].item() * len(x))


@pytest.mark.parametrize("gaps", [False, True])
def test_finds_the_number_of_components_in_any_units(gaps):
    x = with_gaps(data(300), 0.2) if gaps else data(300)
    bounds = []
    for unit in (1e4,) if gaps else (1.0, 1e4):
        model = GaussianMixture(4, 15, "full", missing="marginalize")
        result = fit_vb(model, unit * x, seed=0, progress_bar=False)
        assert result.num_components == result.model.num_components == 3
        assert model.num_components == 15
        torch.testing.assert_close(result.weights, torch.full((3,), 1 / 3), atol=0.05, rtol=0)
        bounds.append(result.bound + (~x.isnan()).sum() * math.log(unit))
    assert bounds[0].item() == pytest.approx(bounds[-1].item(), abs=0.05)


@every_covariance
def test_without_pruning_components_without_points_keep_the_prior(covariance):
    x = data(200)
    results = [
        fit_vb(GaussianMixture(4, 12, covariance), x, prune=prune, seed=0, progress_bar=False)
        for prune in (True, False)
    ]
    assert results[0].num_components == results[1].num_components < 12
    assert results[1].model.num_components == len(results[1].weights) == 12
    assert (results[1].weights.diff() <= 0).all()
    difference = results[0].model.log_prob(x) - results[1].model.log_prob(x)
    assert difference.abs().mean() < 0.02
    torch.testing.assert_close(results[1].model.law.loc[-1], x.mean(0), atol=1e-6, rtol=0)


@every_covariance
def test_degenerate_data(covariance):
    x = data(60)
    constant, collinear = x.clone(), x.clone()
    constant[:, 1], constant[:, 2], constant[0] = 7.0, math.nan, math.nan
    collinear[:, 3] = collinear[:, 0] + collinear[:, 1]
    repeated = x[:3].repeat(20, 1)
    for table in (constant, collinear, repeated):
        model = GaussianMixture(4, 4, covariance, missing="marginalize")
        result = fit_vb(model, table, seed=0, steps=60, progress_bar=False)
        assert (torch.tensor(result.history.losses).diff() <= 1e-9).all()
        assert all(p.isfinite().all() for p in result.model.parameters())
    assert result.num_components == 3


def test_float32_and_few_points():
    x = data(3).float()
    for covariance in CONJUGATE:
        result = fit_vb(GaussianMixture(4, 4, covariance).float(), x, seed=0, progress_bar=False)
        assert result.model.loc.dtype == torch.float32
        assert result.model.log_prob(x).isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": "uniform"}, "weights to be one of"),
        ({"concentration": 0.0}, "positive concentration"),
        ({"tolerance": -1.0}, "tolerance"),
        ({"prior": ConjugatePrior(shrinkage=0.0)}, "positive shrinkage"),
        ({"prior": ConjugatePrior(concentration=2.0)}, "argument of fit_vb"),
        ({"restarts": 0}, "at least 1"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(ValueError, match=message):
        fit_vb(GaussianMixture(2, 3), data(9, 2), progress_bar=False, **options)


def test_models_that_have_no_conjugate_prior():
    for options in ({"covariance": "low_rank_precision"}, {"context_dim": 1}):
        with pytest.raises(ValueError, match=r"fit_em|without context"):
            fit_vb(GaussianMixture(2, 3, **options), data(9, 2), progress_bar=False)
