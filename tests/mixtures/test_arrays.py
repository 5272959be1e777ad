"""Arrays and lists wherever a mixture takes values, but for `log_prob`."""

import math

import numpy as np
import pytest
import torch

from pyromix import (
    GaussianMixture,
    LowRankPrecisionNormal,
    MixtureOfNormals,
    RelaxedGaussianMixture,
    class_conditional,
    fit_em,
    fit_vb,
)

FORMS = {"array": lambda t: t.numpy(), "lists": lambda t: t.tolist()}


@pytest.fixture(params=FORMS)
def form(request):
    return FORMS[request.param]


def same(got, expected):
    assert got.dtype == expected.dtype
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


@pytest.mark.parametrize("missing", ["error", "marginalize"])
def test_queries_of_a_learnable_mixture(form, missing):
    model, x = GaussianMixture(3, 2, missing=missing), torch.randn(6, 3)
    same(model.responsibilities(form(x)), model.responsibilities(x))
    assert model.bic(form(x)) == model.bic(x)
    assert model.aic(form(x)) == model.aic(x)
    gaps = x.clone()
    gaps[::2, 1] = math.nan
    same(model.impute(form(gaps)), model.impute(gaps))
    if missing == "marginalize":
        same(model.responsibilities(form(gaps)), model.responsibilities(gaps))
    else:
        with pytest.raises(ValueError, match="3 NaN"):
            model.responsibilities(form(gaps))


def test_queries_of_a_mixture(form):
    law = MixtureOfNormals(torch.zeros(2), torch.randn(2, 3), torch.ones(2, 3))
    x, observed = torch.randn(6, 3), torch.rand(6, 3) < 0.5
    expected = law.observed_log_prob(x, observed)
    same(law.observed_log_prob(form(x), form(observed)), expected)
    # By Bayes' rule.
    scores = [
        law.observed_log_prob(x, observed)
        for law in (
            MixtureOfNormals(torch.zeros(1), law.loc[k : k + 1], law.scale[k : k + 1])
            for k in range(2)
        )
    ]
    expected = torch.stack(scores, -1).softmax(-1)
    torch.testing.assert_close(law.responsibilities(x, observed), expected)
    same(law.responsibilities(form(x), form(observed)), law.responsibilities(x, observed))


def test_log_prob_takes_tensors_alone(form):
    model, x = GaussianMixture(3, 2), torch.randn(6, 3)
    with pytest.raises(ValueError, match=r"value to be a torch.Tensor"):
        model.log_prob(form(x))


def test_starts_and_fits(form):
    x = torch.cat([torch.randn(50, 2) - 3, torch.randn(50, 2) + 3])
    models = [GaussianMixture(2, 2) for _ in range(2)]
    models.append(RelaxedGaussianMixture(2, 2))
    for model, data in zip(models, (x, form(x), form(x)), strict=True):
        torch.manual_seed(0)
        model.initialize(data)
        assert model.initialized
    same(models[1].loc, models[0].loc)
    same(models[2].mixture.loc, models[0].loc)
    for model, data in zip(models[:2], (x, form(x)), strict=True):
        fit_em(model, data, steps=5, batch_size=50, seed=0, progress_bar=False)
    same(models[1].loc, models[0].loc)
    results = [fit_vb(models[0], data, seed=0, progress_bar=False) for data in (x, form(x))]
    same(results[1].model.loc, results[0].model.loc)


def test_contexts(form):
    model = GaussianMixture(2, 2, context_dim=1, hidden_dims=np.array([4]))
    context, x = torch.randn(5, 1), torch.randn(5, 2)
    same(model.condition(form(context)).log_prob(x), model.condition(context).log_prob(x))
    same(model.loss((x, form(context))), model.loss((x, context)))


def test_classes(form):
    model = GaussianMixture(2, 1, context_dim=3)
    prior, contexts = torch.tensor([0.2, 0.3, 0.5]), torch.eye(3)
    law = class_conditional(model, 3, prior=form(prior), contexts=form(contexts))
    plain = class_conditional(model, 3, prior=prior, contexts=contexts)
    x, labels = torch.randn(5, 2), torch.tensor([0, 2, 1, 1, 0])
    same(law.log_prob(x), plain.log_prob(x))
    for name in ("class_log_prob", "responsibilities", "classify"):
        same(getattr(law, name)(form(x)), getattr(law, name)(x))
    same(law.condition(form(labels)).log_prob(x), law.condition(labels).log_prob(x))
    same(law.loss((x, form(labels))), law.loss((x, labels)))
    law.initialize((form(x), form(labels)))
    assert model.initialized


def test_a_relaxed_mixture(form):
    model, x = RelaxedGaussianMixture(2, 3, num_inner=9), torch.randn(4, 2)
    law = model.law
    same(law.log_prob_error(form(x)), law.log_prob_error(x))
    z, c = (t.detach() for t in law.rsample_joint((4,)))
    same(law.joint_log_prob(form(z), form(c)), law.joint_log_prob(z, c))
    for one in (model, law):
        torch.manual_seed(0)
        expected = one.log_prob_nested(x, 5)
        torch.manual_seed(0)
        same(one.log_prob_nested(form(x), 5), expected)


def test_expanded_laws_keep_what_was_set():
    """Expanding shares parameters, and settings such as Pyro's of gradients."""
    normal = LowRankPrecisionNormal(torch.zeros(2), torch.ones(2), torch.ones(2, 1))
    wide = normal.has_rsample_(False).expand((3,))
    assert not wide.has_rsample
    assert wide.batch_shape == (3,)
    assert wide.precision_factor.data_ptr() == normal.precision_factor.data_ptr()
    assert wide.precision_factor.shape == (3, 2, 1)
    assert wide.precision_matrix.shape == wide.covariance_matrix.shape == (3, 2, 2)
