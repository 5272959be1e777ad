"""The conjugate prior of expectation maximisation: its density, its mode, and its defaults."""

import math

import pytest
import torch

from pyromix import ConjugatePrior, GaussianMixture, fit_em
from pyromix.mixtures.covariance import STRUCTURES
from pyromix.mixtures.em.prior import spread_of
from pyromix.mixtures.em.rows import Rows

from .test_fit_em import data, with_gaps

every_covariance = pytest.mark.parametrize(
    "covariance", [name for name in STRUCTURES if name != "low_rank"]
)


def log_posterior(model, x, prior, scale):
    """Log-likelihood and log-density of the prior, from matrices, up to a constant."""
    law = model.law
    k = law.num_components
    precision = torch.linalg.inv(law.component_covariance)
    share = prior.strength / (k if model.covariance in ("shared", "tied") else 1)
    centre = x.nanmean(0)
    value = model.log_prob(x).sum() + (prior.concentration - 1) * law.logits.sum()
    for m, p in zip(law.loc, precision, strict=True):
        value = value + 0.5 * share * (p.logdet() - (scale * p).sum())
        shift = m - centre
        value = value + 0.5 * prior.shrinkage * (p.logdet() - shift @ p @ shift)
    return value


@every_covariance
@pytest.mark.parametrize("gaps", [False, True])
def test_the_posterior_never_falls_and_ends_at_its_mode(covariance, gaps):
    x = with_gaps(data(80)) if gaps else data(80)
    factor = torch.randn(4, 4, generator=torch.Generator().manual_seed(1))
    scale = factor @ factor.mT + torch.eye(4)
    prior = ConjugatePrior(strength=3, shrinkage=0.5, concentration=1.5, scale=scale)
    if covariance in ("diagonal", "spherical", "shared"):
        scale = scale.diagonal().diag()
    values, losses = [], []
    for steps in (1, 200):
        model = GaussianMixture(4, 3, covariance, rank=2, missing="marginalize")
        options = {"seed": 0, "tolerance": 1e-9, "progress_bar": False}
        history = fit_em(model, x, prior=prior, steps=steps, **options)
        assert (torch.tensor(history.losses).diff() <= 1e-9).all()
        values.append(log_posterior(model, x, prior, scale))
        losses.append(history.losses)
    # The first step's parameters are what the second loss is of.
    gain, expected = values[1] - values[0], 80 * (losses[1][1] - losses[1][-1])
    assert gain.item() == pytest.approx(expected, rel=1e-6, abs=1e-4)
    (values[1] / len(x)).backward()
    largest = max(p.grad.abs().max() for p in model.parameters() if p.numel())
    assert largest < 5e-3, f"gradient of {largest}"


@pytest.mark.parametrize("covariance", ["full", "diagonal"])
def test_default_scale_is_that_of_the_data_in_any_units(covariance):
    x = data(200)
    factor = torch.tensor([1e-3, 1.0, 1e3, 1e5])
    laws = []
    for unit in (torch.ones(4), factor):
        model = GaussianMixture(4, 5, covariance, standardize=True)
        fit_em(model, unit * x, prior=ConjugatePrior(10), seed=0, progress_bar=False)
        laws.append(model.law)
    torch.testing.assert_close(laws[1].loc, factor * laws[0].loc, rtol=1e-5, atol=0)
    # A component without points of its own has the prior's covariance.
    prior, centred = ConjugatePrior(), x - x.mean(0)
    structure = GaussianMixture(4, 5, "full").structure
    got = prior.covariance(structure, Rows.of(centred), len(centred), torch.ones(4))
    expected = x.T.cov(correction=0) / 5 ** (2 / 4)
    torch.testing.assert_close(got, expected, rtol=1e-2, atol=1e-2)


def test_spread_of_data_with_gaps():
    x = data(2000)
    x = x - x.mean(0)
    gaps = with_gaps(x)
    error = (
        (
            spread_of(Rows.of(gaps), len(gaps), matrix=True)
            - spread_of(Rows.of(x), len(x), matrix=True)
        )
        .abs()
        .max()
    )
    assert error < 5 * x.square().mean() / math.sqrt(0.5 * len(x))
    few = x[:3].clone()
    few[:, 0] = 0.0
    assert torch.linalg.eigvalsh(spread_of(Rows.of(few), len(few), matrix=True)).min() > 0
    assert (spread_of(Rows.of(few), len(few), matrix=False) > 0).all()


def test_a_prior_keeps_covariances_from_overfitting():
    x = data(500, dim=8)
    scores = []
    for prior in (None, ConjugatePrior(strength=10)):
        model = GaussianMixture(8, 3, "full")
        fit_em(model, x[:40], prior=prior, seed=0, steps=50, progress_bar=False)
        scores.append(model.log_prob(x[40:]).mean().item())
    assert scores[1] > scores[0] + 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ConjugatePrior(strength=0), "positive strength"),
        (lambda: ConjugatePrior(strength=-1), "strength to be a finite number, at least 0"),
        (lambda: ConjugatePrior(shrinkage=math.nan), "shrinkage"),
        (lambda: ConjugatePrior(concentration=0.5), "concentration to be .* at least 1"),
        (lambda: ConjugatePrior(scale=-1.0), "positive variance"),
        (lambda: ConjugatePrior(scale=[[1.0, 2.0], [2.0, 1.0]]), "positive definite"),
        (
            lambda: fit_em(GaussianMixture(2, 2), data(9, 2), prior=ConjugatePrior(scale=[1.0])),
            r"scale of shape \(\), \(2,\)",
        ),
        (lambda: fit_em(GaussianMixture(2, 2), data(9, 2), prior=1.0), "a ConjugatePrior"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("gaps", [False, True])
def test_weights_and_files_have_the_prior_of_repeated_rows(gaps, monkeypatch):
    """V is the covariance of all rows by their weights, wherever they are."""
    x = with_gaps(data(90)) if gaps else data(90)
    weight = torch.arange(90) % 4
    missing = "marginalize" if gaps else "error"
    options = {"prior": ConjugatePrior(20.0), "steps": 30, "tolerance": 0, "progress_bar": False}
    found = []
    for rows, counts in ((x.repeat_interleave(weight, 0), None), (x, weight), (x, weight)):
        model = GaussianMixture(4, 1, "full", missing=missing, standardize=False)
        fit_em(model, rows, sample_weight=counts, seed=len(found), **options)
        found.append(model.law.component_covariance.detach())
        monkeypatch.setattr("pyromix.mixtures.em.rows.KEPT_NUMBERS", 200 if found[1:] else 2**24)
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[2], found[0], rtol=1e-5, atol=1e-5)
