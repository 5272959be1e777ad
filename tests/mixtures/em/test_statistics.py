"""Sufficient statistics, against sums over points and components one by one."""

import math

import pytest
import torch

from pyromix import GaussianMixture
from pyromix.mixtures.covariance import STRUCTURES
from pyromix.mixtures.em import products
from pyromix.mixtures.em import statistics as sufficient
from pyromix.mixtures.em.products import Expectation
from pyromix.mixtures.em.rows import Rows

# Moments of factors have a reference of their own, in test_factors.py.
WITHOUT_FACTORS = [c for c in STRUCTURES if c != "low_rank"]
every_covariance = pytest.mark.parametrize("covariance", WITHOUT_FACTORS)


def make(covariance, dim=5, k=3, seed=0, far=0.0):
    generator = torch.Generator().manual_seed(seed)
    model = GaussianMixture(dim, k, covariance, rank=2, variance_floor=1e-3, missing="marginalize")
    model = model.double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / dim**0.5)
        model.loc.add_(far)
    return model.requires_grad_(False)


def draws(model, n=40, gaps=False, seed=1):
    torch.manual_seed(seed)
    x = model.sample((n,))
    return x.masked_fill(torch.rand(x.shape) < 0.3, math.nan) if gaps else x


def reference(model, x):
    """Log-likelihood, and moments around the origin, of points and components in turn."""
    law = model.distribution
    k, dim = law.loc.shape
    weight, first = torch.zeros(k), torch.zeros(k, dim)
    second = torch.zeros(k, dim, dim)
    log_prob = 0.0
    for point in x:
        at, out = (~point.isnan()).nonzero().flatten(), point.isnan().nonzero().flatten()
        scores, means, covariances = [], [], []
        for j in range(k):
            loc, s = law.loc[j], law.component_covariance[j]
            mean, covariance, score = loc.clone(), torch.zeros(dim, dim), law.logits[j]
            grid = torch.meshgrid(out, out, indexing="ij")
            if len(at):
                seen = torch.distributions.MultivariateNormal(loc[at], s[at][:, at])
                score = score + seen.log_prob(point[at])
                gain = s[out][:, at] @ torch.linalg.inv(s[at][:, at])
                mean[out] += gain @ (point[at] - loc[at])
                covariance[grid] = s[out][:, out] - gain @ s[at][:, out]
            else:
                covariance = s
            mean[at] = point[at]
            scores.append(score)
            means.append(mean)
            covariances.append(covariance)
        scores = torch.stack(scores)
        log_prob = log_prob + scores.logsumexp(0)
        for j, r in enumerate(scores.softmax(0)):
            weight[j] += r
            first[j] += r * means[j]
            second[j] += r * (torch.outer(means[j], means[j]) + covariances[j])
    if not model.structure.full_moments:
        second = second.diagonal(dim1=-2, dim2=-1)
    return log_prob, weight, first, model.structure.pool(second)


def around_the_origin(statistics, structure):
    """Moments around other points, moved to the origin."""
    weight, c = statistics.weight, statistics.reference
    mean = statistics.first / weight.unsqueeze(-1)
    second = statistics.second - structure.outer(weight, mean) + structure.outer(weight, mean + c)
    return statistics.log_prob, weight, weight.unsqueeze(-1) * (mean + c), second


@pytest.fixture(autouse=True)
def in_float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("covariance", [*WITHOUT_FACTORS, "EII", "VEI", "VVE"])
@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("far", [0.0, 1e4])
def test_statistics(covariance, gaps, far):
    model = make(covariance, far=far)
    x = draws(model, gaps=gaps)
    got = around_the_origin(
        Expectation(model.structure, Rows.of(x))(model.distribution), model.structure
    )
    for a, b in zip(got, reference(model, x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9 * max(1.0, far) ** 2)


@pytest.mark.parametrize("covariance", ["tied", "full", "low_rank_precision"])
@pytest.mark.parametrize("invertible", [0.0, math.inf])
def test_gaps_by_pattern_and_by_row(covariance, invertible, monkeypatch):
    monkeypatch.setattr(sufficient, "INVERTIBLE", invertible)
    monkeypatch.setattr(sufficient, "CACHED_NUMBERS", 2**10)  # several blocks
    model = make(covariance)
    x = draws(model, n=60, gaps=True)
    x[0], x[1] = math.nan, torch.randn(5)
    statistics = Expectation(model.structure, Rows.of(x)).around(
        model.distribution, model.loc + 1.0
    )
    got = around_the_origin(statistics, model.structure)
    for a, b in zip(got, reference(model, x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@every_covariance
def test_products_are_taken_near_the_origin_only(covariance):
    for far, expected in ((0.0, True), (1e4, False)):
        model = make(covariance, far=far)
        expectation = Expectation(model.structure, Rows.of(draws(model)))
        assert (expectation._by_products(model.distribution) is not None) is expected


@pytest.mark.parametrize("covariance", ["diagonal", "spherical", "full", "low_rank_precision"])
@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_component_that_has_collapsed_is_summed_apart(covariance, gaps, dtype):
    model = make(covariance, k=5)
    x = draws(model, gaps=gaps)
    x[7] = 3.0
    model.loc[2] = 3.0
    model.structure.floor = 1e-12
    model.raw_scale[2] = -9.0
    if covariance == "low_rank_precision":
        model.raw_factor[2] = 0.0
    elif covariance == "full":
        model.raw_lower[2] = 0.0
    expectation = Expectation(model.structure, Rows.of(x), dtype)
    law = model.distribution
    by_products = covariance in ("diagonal", "spherical") or not gaps
    assert (expectation._by_products(law, products.MOST_FAR) is not None) is by_products
    assert expectation._by_products(law) is None
    got = around_the_origin(expectation(law), model.structure)
    tolerance = 1e-9 if dtype == torch.float64 else 1e-4
    for a, b in zip(got, reference(model, x), strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@every_covariance
def test_blocks_add_up(covariance, monkeypatch):
    model = make(covariance, dim=40, k=2)
    x = draws(model, 1000)
    whole = Expectation(model.structure, Rows.of(x))(model.distribution)
    for module in (products, sufficient):
        monkeypatch.setattr(module, "CACHED_NUMBERS", 2**10)
    parts = Expectation(model.structure, Rows.of(x))(model.distribution)
    other = Expectation(model.structure, Rows.of(x)).around(model.distribution, torch.zeros(2, 40))
    for a, b, c in zip(whole, parts, other, strict=True):
        torch.testing.assert_close(b, a)
        torch.testing.assert_close(c, a)


@pytest.mark.parametrize("covariance", ["tied", "full"])
def test_ill_conditioned_factors(covariance):
    model = make(covariance, dim=4)
    model.raw_scale.copy_(torch.tensor([0.0, 2.0, 9.0, -9.0]).expand_as(model.raw_scale))
    model.structure.floor = 1e-12
    x = draws(model, 30)
    expectation = Expectation(model.structure, Rows.of(x - x.mean(0)))
    model.loc.sub_(x.mean(0))
    assert expectation._by_products(model.distribution) is None
    expected = model.distribution.log_prob(x - x.mean(0)).sum()
    torch.testing.assert_close(expectation(model.distribution).log_prob, expected)
