"""Evidence whose coefficients differ between entries of a batch, against laws of each entry."""

import itertools
import math

import pytest
import torch

from pyromix import (
    DRMM,
    AnyOf,
    Box,
    CategoricalPrior,
    GaussianMixture,
    GaussianPrior,
    LinearEquality,
    LinearGaussian,
    LinearInequality,
    Nonlinear,
    Observed,
    load_law,
    save,
)
from pyromix.conditioning import LawsByEntry

INF = math.inf


def mixture():
    torch.manual_seed(0)
    model = GaussianMixture(3, 2, "full").double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
    return model.requires_grad_(False)


def residual():
    torch.manual_seed(0)
    model = DRMM(3, 2, 3, maps="triangular", categories=(2,)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.4)
    return model.requires_grad_(False)


MODELS = {"mixture": mixture, "residual": residual}


def normal(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)).double()


def length(x):
    """Squared, of real columns."""
    return x.square().sum(-1, keepdim=True)


A, ROWS = normal(4, 2, 3), normal(3, 4, 1, 3)
COVARIANCE = torch.diag_embed(normal(4, 2).square() + 0.1)
QUESTIONS = {
    "priors": ([GaussianPrior(0.2, normal(4, 3).abs() + 0.5)], (4,)),
    "equations": ([LinearEquality(A, normal(4, 2)), Observed({0: 0.1})], (4,)),
    "readings": ([LinearGaussian(A, normal(4, 2), 0.3), Box(high=3.0)], (4,)),
    "noise": ([LinearGaussian(A[0], normal(4, 2), COVARIANCE)], (4,)),
    "inequalities": ([LinearInequality(ROWS, 0.5), Observed({1: normal(4)})], (3, 4)),
    "unions": ([AnyOf(LinearInequality(A[:, :1], -0.3), Box(low=0.4))], (4,)),
    "functions": ([Nonlinear(length, 1.0, 0.5), Observed({0: normal(2)})], (2,)),
}


@pytest.mark.parametrize("name", QUESTIONS)
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_entries_are_laws_of_their_own(make, name):
    model, (evidence, shape) = make(), QUESTIONS[name]
    torch.manual_seed(0)
    law = model.condition(*evidence)
    assert isinstance(law, LawsByEntry)
    assert law.batch_shape == shape
    x = law.sample((200,))
    assert x.shape == (200, *shape, *law.event_shape)
    log_prob, (log_z, error) = law.log_prob(x), law.log_evidence()
    assert log_prob.isfinite().all()
    assert law.log_prob(x[0]).shape == shape
    for number, at in enumerate(itertools.product(*map(range, shape))):
        one = model.condition(*(piece.at(at, torch.Size(shape)) for piece in evidence))
        assert not one.batch_shape
        spread = (error[at].square() + one.log_evidence()[1].square()).sqrt()
        assert abs(one.log_evidence()[0] - log_z[at]) < 5 * spread + 1e-8
        got = law.laws[number].log_prob(x[(slice(None), *at)])
        torch.testing.assert_close(log_prob[(slice(None), *at)], got)
        own, other = x[(slice(None), *at)], one.sample((200,))
        scale = ((own.var(0) + other.var(0)) / 200).sqrt() + 1e-6
        if name != "functions":  # draws of a population repeat each other
            assert bool(((own.mean(0) - other.mean(0)).abs() < 5 * scale).all())


def test_moments_and_files(tmp_path):
    model = mixture()
    law = model.condition(GaussianPrior(0.2, normal(4, 3).abs() + 0.5), Observed({2: 0.3}))
    assert law.mean.shape == law.variance.shape == (4, 3)
    assert torch.equal(law.observed[2], torch.full((4,), 0.3).double())
    assert law.quantile(0, torch.tensor([0.1, 0.9])).shape == (2, 4)
    assert law.mode.shape == (4, 3)
    assert "ConditionedMixture" in repr(law)
    save(law, tmp_path / "law.safetensors")
    loaded = load_law(tmp_path / "law.safetensors")
    assert torch.equal(loaded.log_evidence()[0], law.log_evidence()[0])
    more = law.condition(Box(high=2.0))
    assert bool((more.sample((50,)) <= 2.0).all())
    categories = residual().condition(
        GaussianPrior(0.0, normal(4, 3).abs() + 0.5), CategoricalPrior(3, normal(4, 2).abs())
    )
    assert categories.probs(3).shape == (4, 2)


def test_errors_name_entries():
    a = torch.eye(3).double().expand(2, 3, 3)[:, :1]
    bounds = Box(high=torch.tensor([[1.0, INF, INF], [-1.0, INF, INF]]).double())
    with pytest.raises(ValueError, match=r"At entry \(1,\) of the batch"):
        mixture().condition(LinearEquality(a), bounds)
    with pytest.raises(ValueError, match="batch shapes broadcast"):
        mixture().condition(GaussianPrior(0.0, torch.ones(4, 3)), Observed({0: torch.zeros(3)}))
    with pytest.raises(NotImplementedError, match="every entry"):
        _ = mixture().condition(GaussianPrior(0.0, torch.ones(4, 3))).support
