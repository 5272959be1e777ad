"""Whether a guide is to be believed, where the truth is known."""

import math
import sys

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyromix.guides import AutoMixture, evaluate_guide, fit_guide


@pytest.fixture(autouse=True)
def _fresh():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)


X = torch.tensor([1.2, 0.7, 2.1])


def conjugate(x):
    """The posterior is normal with precision 4 and mean sum(x) / 4; the evidence is known."""
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(x)):
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def evidence():
    covariance = torch.eye(3) + 1
    return float(dist.MultivariateNormal(torch.zeros(3), covariance).log_prob(X))


def normal(loc, scale):
    def guide(x):
        pyro.sample("z", dist.Normal(loc, scale))

    return guide


def test_the_posterior_itself_has_equal_weights():
    result = evaluate_guide(conjugate, normal(float(X.sum()) / 4, 0.5), X, num_draws=500)
    assert result.elbo == pytest.approx(evidence(), abs=1e-4)
    assert result.log_evidence == pytest.approx(evidence(), abs=1e-4)
    assert result.effective_sample_size == pytest.approx(500)
    assert result.pareto_k < 0.5


def test_wide_guides_are_corrected_and_narrow_ones_are_told():
    wide = evaluate_guide(conjugate, normal(0.5, 1.0), X, seed=0)
    assert wide.pareto_k < 0.5
    assert abs(wide.log_evidence - evidence()) < 4 * wide.log_evidence_error
    assert wide.elbo < evidence() - 0.5
    off = float(wide.mean("z")) - float(X.sum()) / 4
    # Of 4,000 draws q with weights p / q, of normals N(1, 1/4) and N(1/2, 1): the variance of
    # their mean is E_q[(p / q)^2 (z - 1)^2] / 4000, by quadrature.
    z = torch.linspace(-6, 8, 100_001)
    p, q = (dist.Normal(*at).log_prob(z) for at in ((1.0, 0.5), (0.5, 1.0)))
    error = float(torch.trapezoid((2 * p - q).exp() * (z - 1).square(), z) / 4000) ** 0.5
    assert float(wide.mean_error("z")) == pytest.approx(error, rel=0.15)
    assert abs(off) < 4 * error
    assert float(wide.std("z")) == pytest.approx(0.5, abs=4 * error)
    drawn = wide.resample(4000, generator=torch.Generator().manual_seed(0))["z"]
    assert float(drawn.std()) == pytest.approx(0.5, abs=0.05)
    assert wide.resample(0)["z"].shape == (0,)
    with pytest.warns(UserWarning, match="heavy tail") as caught:
        narrow = evaluate_guide(conjugate, normal(0.0, 0.2), X, seed=0)
    assert caught[0].filename == __file__
    assert narrow.pareto_k > 0.7
    assert not narrow.reliable
    assert wide.reliable
    assert "too thin" in str(narrow)
    assert "at most 0.7" in str(wide)


def test_draws_one_by_one_and_at_once():
    at_once, single = (
        evaluate_guide(conjugate, normal(0.5, 1.0), X, num_draws=400, vectorize=vectorize, seed=1)
        for vectorize in (True, False)
    )
    assert at_once.draws["z"].shape == single.draws["z"].shape == (400,)
    assert abs(at_once.elbo - single.elbo) < 4 * math.hypot(at_once.elbo_error, single.elbo_error)


def test_a_mixture_is_trained_to_the_evidence():
    results = []
    for _ in range(2):
        pyro.clear_param_store()
        guide = AutoMixture(conjugate, 2, num_prior_draws=0, init_scale=0.5)
        guide(X)
        pyro.set_rng_seed(0)
        with torch.no_grad():
            guide.posterior.loc.copy_(torch.tensor([[0.0], [2.0]]))
        results.append(
            fit_guide(
                conjugate, guide, X, method="gradient", steps=80, num_draws=1000, seed=3,
                progress_bar=False,
            )
        )  # fmt: skip
    assert results[0].losses[0] > results[0].losses[-1]
    assert abs(results[0].log_evidence - evidence()) < 0.02
    assert evidence() - 0.05 < results[0].elbo < evidence() + 0.01
    assert len(results[0].losses) == 80
    assert results[0].draws["z"].shape == (1000,)
    assert results[0].log_evidence == results[1].log_evidence  # the same seed


def halves(x):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(x), subsample_size=2) as rows:
        pyro.sample("x", dist.Normal(z, 1.0), obs=x[rows])


def more(x):
    conjugate(x)
    pyro.sample("other", dist.Normal(0.0, 1.0))


def summed(x):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(z.sum(), 1.0), obs=x[0])


def broken(x):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(z.sqrt(), 1.0), obs=x[0])


def test_densities_that_are_no_numbers_are_told():
    with (
        pyro.validation_enabled(False),
        pytest.warns(UserWarning, match="draws have NaN for a density"),
    ):
        evaluate_guide(broken, normal(1.0, 1.0), X, seed=0)


@pytest.mark.parametrize("ask", [evaluate_guide, fit_guide])
@pytest.mark.parametrize(
    ("model", "message"),
    [
        (halves, "all rows of plate 'rows'"),
        (more, r"\['other'\] in the model alone"),
        (summed, "sums over draws"),
    ],
)
def test_models_whose_evidence_would_be_wrong(ask, model, message):
    with pytest.raises(ValueError, match=message):
        ask(model, normal(0.5, 1.0), X)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda: evaluate_guide(conjugate, normal(0.0, 1.0), X, num_draws=5), "at least 100"),
        (lambda: fit_guide(conjugate, normal(0.0, 1.0), X, num_draws=5), "at least 100"),
        (lambda: fit_guide(conjugate, normal(0.0, 1.0), X, steps=0), "steps"),
        (lambda: fit_guide(conjugate, normal(0.0, 1.0), X, lr=0.0), "positive lr"),
        (
            lambda: evaluate_guide(conjugate, normal(0.0, 1.0), X, seed=0).mean("y"),
            r"sites \['z'\], got 'y'",
        ),
    ],
)
def test_bad_input(ask, message):
    with pytest.raises(ValueError, match=message):
        ask()


def test_without_arviz_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "arviz", None)
    with pytest.raises(ImportError, match=r"pyromix\[guides\]"):
        evaluate_guide(conjugate, normal(0.0, 1.0), X)
