"""Expectation maximisation of factor analysers, by moments of points and of their factors."""

import math
import warnings

import pytest
import torch
from sklearn.decomposition import FactorAnalysis

from pyromix import GaussianMixture, fit, fit_em
from pyromix.mixtures.em import products
from pyromix.mixtures.em import statistics as sufficient
from pyromix.mixtures.em.products import Expectation
from pyromix.mixtures.em.rows import Rows

from .test_fit_em import data, with_gaps


def model(dim=5, k=3, rank=2, far=0.0, **options):
    made = GaussianMixture(dim, k, "low_rank", rank=rank, missing="marginalize", **options)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(std=dim**-0.5)
        made.loc.add_(far)
    return made.double().requires_grad_(False)


def obvious_statistics(law, x):
    """Log-likelihood and moments of (x, z) around zero, from their joint law, point by point."""
    k, dim, rank = law.cov_factor.shape
    log_prob, weight = 0.0, torch.zeros(k)
    first, second = torch.zeros(k, dim + rank), torch.zeros(k, dim + rank, dim + rank)
    loc = torch.cat([law.loc, torch.zeros(k, rank)], -1)
    w = law.cov_factor
    top = torch.cat([law.covariance_matrix, w], -1)
    joint = torch.cat([top, torch.cat([w.mT, torch.eye(rank).expand(k, -1, -1)], -1)], -2)
    for point in x:
        at = (~point.isnan()).nonzero().flatten()
        scores, means, covariances = law.logits.clone(), loc.clone(), joint.clone()
        for j in range(k):
            if len(at) == 0:
                continue
            seen = torch.distributions.MultivariateNormal(loc[j, at], joint[j][at][:, at])
            scores[j] += seen.log_prob(point[at])
            gain = joint[j][:, at] @ torch.linalg.inv(joint[j][at][:, at])
            means[j] += gain @ (point[at] - loc[j, at])
            covariances[j] -= gain @ joint[j][at]
        log_prob = log_prob + scores.logsumexp(0)
        r = scores.softmax(0)
        weight += r
        first += r.unsqueeze(-1) * means
        outer = means.unsqueeze(-1) * means.unsqueeze(-2)
        second += r[:, None, None] * (outer + covariances)
    columns = [second.diagonal(dim1=-2, dim2=-1).unsqueeze(-1), second[..., dim:]]
    return log_prob, weight, first, torch.cat(columns, -1)


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("far", [0.0, 1e4])
def test_statistics(rank, gaps, far, monkeypatch):
    mixture = model(rank=rank, far=far)
    x = mixture.sample((70,))
    x = with_gaps(x) if gaps else x
    x[0] = math.nan if gaps else far
    expectation = Expectation(mixture.structure, Rows.of(x))
    if not gaps:
        assert (expectation._by_products(mixture.law) is not None) is (far == 0.0)
    log_prob, weight, first, second = obvious_statistics(mixture.law, x)
    for numbers in (2**18, 16):
        for module in (products, sufficient):
            monkeypatch.setattr(module, "CACHED_NUMBERS", numbers)
        got = expectation(mixture.law)
        tolerance = {"rtol": 1e-9, "atol": 1e-8 * max(1.0, far) ** 2}
        torch.testing.assert_close(got.log_prob, log_prob)
        torch.testing.assert_close(got.weight, weight)
        shift = torch.cat([got.reference, torch.zeros(3, rank)], -1)
        mean = got.first / weight.unsqueeze(-1)
        torch.testing.assert_close(weight.unsqueeze(-1) * (mean + shift), first, **tolerance)
        outer = mixture.structure.outer
        moved = got.second - outer(weight, mean) + outer(weight, mean + shift)
        torch.testing.assert_close(moved, second, **tolerance)


def test_a_step_is_that_of_the_parameter_expanded_algorithm():
    """And raises the likelihood by more than the plain one."""
    x = data(300)
    mixture = GaussianMixture(4, 1, "low_rank", rank=2, variance_floor=1e-6)
    with torch.no_grad():
        mixture.loc.copy_(x.mean(0))
        mixture.raw_factor.normal_()
    d, w = mixture.law.cov_diag[0].detach(), mixture.law.cov_factor[0].detach()
    s = torch.cov(x.mT, correction=0)
    gain = w.mT @ torch.linalg.inv(torch.diag(d) + w @ w.mT)
    cross = s @ gain.mT
    inner = torch.eye(2) - gain @ w + gain @ cross
    values, vectors = torch.linalg.eigh(inner)
    expanded = cross @ vectors @ torch.diag(values**-0.5) @ vectors.mT
    plain = cross @ torch.linalg.inv(inner)

    def likelihood(w):
        rest = (s - plain @ cross.mT).diagonal()  # the same for both
        covariance = torch.diag(rest) + w @ w.mT
        law = torch.distributions.MultivariateNormal(x.mean(0), covariance)
        return law.log_prob(x).mean()

    history = fit_em(mixture, x, steps=2, tolerance=0, initialize=False, progress_bar=False)
    assert -history.losses[1] == pytest.approx(likelihood(expanded).item(), rel=1e-9)
    assert -history.losses[0] < likelihood(plain) < likelihood(expanded)


@pytest.mark.parametrize(("gaps", "floor"), [(False, 1e-4), (True, 1e-4), (False, 0.3)])
def test_the_likelihood_never_falls(gaps, floor):
    """With the floor reached or not, and to where training by gradients finds little more."""
    x = with_gaps(data(dim=6)) if gaps else data(dim=6)
    missing = "marginalize" if gaps else "error"
    mixture = GaussianMixture(6, 3, "low_rank", rank=2, variance_floor=floor, missing=missing)
    history = fit_em(mixture, x, steps=80, tolerance=0.0, seed=0, progress_bar=False)
    assert (torch.tensor(history.losses).diff() <= 1e-12).all()
    assert mixture.law.cov_diag.min() > floor
    gain = fit(mixture, x, steps=30, batch_size=len(x), lr=1e-2, seed=0, progress_bar=False)
    assert history.losses[-1] - min(gain.losses) < 2e-2


def test_a_single_component_is_scikit_learns_factor_analysis():
    generator = torch.Generator().manual_seed(1)
    w, e = torch.randn(10, 3, generator=generator), torch.randn(600, 10, generator=generator)
    x = torch.randn(600, 3, generator=generator) @ w.mT + e * torch.linspace(0.3, 1.5, 10)
    peer = FactorAnalysis(3, tol=1e-6, max_iter=5000, svd_method="lapack").fit(x.numpy())
    mixture = GaussianMixture(10, 1, "low_rank", rank=3)
    fit_em(mixture, x, steps=300, tolerance=1e-7, seed=0, progress_bar=False)
    expected = peer.score(x.numpy())
    assert mixture.log_prob(x).mean().item() == pytest.approx(expected, abs=1e-4)
    covariance = torch.from_numpy(peer.get_covariance())
    torch.testing.assert_close(mixture.law.covariance_matrix[0], covariance, rtol=0.02, atol=0.02)


def test_more_components_than_points_and_constant_columns():
    x = data(6, dim=5)
    x[:, 1] = 7.0
    mixture = GaussianMixture(5, 8, "low_rank", rank=3)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Every variance is at variance_floor")
        history = fit_em(mixture, x, seed=0, progress_bar=False)
    assert (torch.tensor(history.losses).diff() <= 1e-9).all()
    assert all(p.isfinite().all() for p in mixture.parameters())


def test_starts_have_the_clusters_principal_directions():
    generator = torch.Generator().manual_seed(2)
    w = torch.randn(2, 200, 2, generator=generator)
    label = torch.arange(600) % 2
    x = (w[label] @ torch.randn(600, 2, 1, generator=generator)).squeeze(-1)
    x = x + 9.0 * label.unsqueeze(-1) + 0.3 * torch.randn(600, 200, generator=generator)
    mixture = GaussianMixture(200, 2, "low_rank", rank=2)
    mixture.initialize(x)
    for loc, factor in zip(mixture.loc, mixture.raw_factor, strict=True):
        truth = torch.linalg.qr(w[int(loc.mean() > 4.5)]).Q
        found = torch.linalg.qr(factor).Q
        assert torch.linalg.svdvals(truth.mT @ found).min() > 0.99
    start = mixture.log_prob(x).mean()
    fit_em(mixture, x, initialize=False, progress_bar=False)
    assert 0 <= mixture.log_prob(x).mean() - start < 0.05 * start.abs()


def test_free_parameters_leave_rotations_out():
    """A matrix (D, r) up to rotations and a diagonal, and no more than a full matrix has."""
    for dim, rank, own in ((10, 0, 10), (10, 3, 10 + 30 - 3), (4, 2, 10), (4, 4, 10), (3, 9, 6)):
        mixture = GaussianMixture(dim, 2, "low_rank", rank=rank)
        assert mixture.num_free_parameters == 1 + 2 * (dim + own)
