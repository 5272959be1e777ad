"""Observations of functions: against quadrature, and against linear evidence."""

import copy
import math

import pytest
import torch

from pyromix import (
    DRMM,
    AnyOf,
    Box,
    GaussianMixture,
    LinearGaussian,
    LinearInequality,
    MixtureOfNormals,
    Nonlinear,
    Observed,
)

from ..quadrature import nodes_and_weights


def banana(x):
    """Along each vertical it takes every value once."""
    return (x[:, 1] + 0.3 * x[:, 0].square()).unsqueeze(-1)


def _mixture(covariance):
    torch.manual_seed(1)
    model = GaussianMixture(2, 3, covariance)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(0.4 * torch.randn_like(parameter) - 0.3 * (name == "raw_scale"))
        model.loc.mul_(3.0)
    return model.requires_grad_(False)


def _residual(maps, **options):
    torch.manual_seed(2)
    model = DRMM(2, 2, 3, maps=maps, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.4 * torch.randn_like(parameter) - 0.2)
        model.loc.mul_(3.0)
    return model.requires_grad_(False)


MODELS = {
    "full": lambda: _mixture("full"),
    "diagonal": lambda: _mixture("diagonal"),
    "low rank": lambda: _mixture("low_rank_precision"),
    "residual": lambda: _residual("shift"),
    "triangular": lambda: _residual("triangular"),
    "triangular, particles": lambda: _residual("triangular", max_exact=0),
}
BOX = Box(torch.tensor([-math.inf, -0.4]), math.inf)


@pytest.mark.parametrize("noise", [1.0, 0.1])
@pytest.mark.parametrize("others", [(), (BOX,)], ids=["alone", "box"])
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_evidence_and_moments_agree_with_quadrature(make, others, noise):
    model = make()
    x, weight = nodes_and_weights(list(others), order=200)
    told = torch.distributions.Normal(banana(x)[:, 0], noise).log_prob(torch.tensor(0.7))
    joint = weight * (model.log_prob(x) + told).exp()
    torch.manual_seed(0)
    law = model.condition(*others, Nonlinear(banana, 0.7, noise, num_draws=8000))
    log_evidence, error = law.log_evidence()
    assert 0 < error < 0.1
    assert abs(log_evidence - joint.sum().log()) < 4 * error + 2e-3
    mean = (joint.unsqueeze(-1) * x).sum(0) / joint.sum()
    spread = (joint.unsqueeze(-1) * (x - mean).square()).sum(0) / joint.sum()
    off = (law.mean - mean).abs() / (spread / law.effective_sample_size).sqrt()
    assert off.max() < 4.5
    torch.testing.assert_close(law.variance, spread, rtol=0.25, atol=0.0)
    expected = model.log_prob(x[:50]) + told[:50] - log_evidence
    torch.testing.assert_close(law.log_prob(x[:50]), expected, rtol=1e-6, atol=1e-6)
    if others:
        outside = torch.tensor([0.0, -1.0])
        assert law.log_prob(outside) == -math.inf
        assert (law.sample((500,))[:, 1] >= -0.4).all()


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_draws_meet_the_value_however_small_the_noise(make):
    torch.manual_seed(0)
    for noise in (1e-2, 1e-5):
        law = make().condition(Nonlinear(banana, 0.7, noise))
        miss = (banana(law.sample((1000,))) - 0.7) / noise
        assert miss.abs().max() < 6
        assert abs(miss.std() - 1.0) < 0.2
        assert law.effective_sample_size > 80


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_of_linear_functions_it_is_what_linear_evidence_says(make):
    model, matrix = make(), torch.tensor([[1.0, -0.5]])
    torch.manual_seed(0)
    law = model.condition(Nonlinear(lambda x: x @ matrix.mT, 0.3, 0.2, num_draws=8000))
    exact = model.condition(LinearGaussian(matrix, torch.tensor([0.3]), 0.2))
    log_evidence, error = law.log_evidence()
    assert abs(log_evidence - exact.log_evidence()[0]) < 4 * error + 1e-3
    spread = (exact.variance / law.effective_sample_size).sqrt()
    assert ((law.mean - exact.mean).abs() < 4.5 * spread).all()


def test_values_and_functions_together_and_several_functions():
    torch.manual_seed(0)
    model = _mixture("full")
    law = model.condition(Observed({0: 0.5}), Nonlinear(banana, 0.7, 1e-3))
    x = law.sample((100,))
    assert (x[:, 0] == 0.5).all()
    assert ((x[:, 1] + 0.075 - 0.7).abs() < 6e-3).all()
    assert law.observed[0] == 0.5
    both = model.condition(Nonlinear(banana, 0.7, 1e-3), Nonlinear(lambda x: x[:, :1], 0.2, 1e-3))
    expected = torch.tensor([0.2, 0.7 - 0.3 * 0.04])
    assert ((both.sample((100,)) - expected).abs() < 7e-3).all()
    again = law.condition(LinearInequality(torch.tensor([0.0, 1.0]), 0.0))
    assert (again.sample((50,))[:, 1] >= 0).all()


def test_categories_follow_from_functions_of_the_real_columns():
    torch.manual_seed(0)
    model = _residual("triangular", categories=(3,))
    law = model.condition(Nonlinear(banana, 0.7, 0.1, num_draws=8000))
    share = torch.bincount(law.sample((4000,))[:, 2].long(), minlength=3) / 4000
    x, weight = nodes_and_weights([], order=200)
    told = torch.distributions.Normal(banana(x)[:, 0], 0.1).log_prob(torch.tensor(0.7))
    columns = torch.arange(3.0).expand(len(x), 3)
    joint = torch.stack(
        [
            (weight * (model.log_prob(torch.cat([x, columns[:, [c]]], -1)) + told).exp()).sum()
            for c in range(3)
        ]
    )
    torch.testing.assert_close(share, joint / joint.sum(), atol=0.05, rtol=0.0)


def test_float32_copies_and_representation():
    torch.manual_seed(0)
    law = _mixture("full").float().condition(Nonlinear(banana, 0.7, 0.01))
    x = law.sample((3,))
    assert x.dtype == torch.float32
    twin = copy.deepcopy(law)
    assert torch.equal(twin.log_prob(x), law.log_prob(x))
    assert "effective_sample_size" in repr(law)
    assert law.sample((0,)).shape == (0, 2)


ODD = {
    "a circle": lambda x: x.norm(dim=-1, keepdim=True),
    "a product, still at the mean": lambda x: x[:, :1] * x[:, 1:],
    "many branches": lambda x: (2 * x[:, :1]).cos(),
    "flat on one side": lambda x: x[:, :1].relu(),
    "flat at both ends": lambda x: x[:, :1].clamp(-0.5, 0.5),
    "steps": lambda x: x[:, :1].round(),
    "constant": lambda x: 0.0 * x[:, :1] + 0.5,
    "not everywhere": lambda x: x[:, :1].sqrt(),
    "in place": lambda x: x.mul_(2.0)[:, :1],
    "more numbers than columns": lambda x: torch.stack([*x.T, x.sum(-1) - 0.5], -1),
    "twice the same": lambda x: x[:, [0, 0]],
}


@pytest.mark.parametrize("noise", [0.1, 3.0, 1e3])
@pytest.mark.parametrize("name", ODD)
def test_odd_functions_agree_with_plain_draws(name, noise):
    function = ODD[name]
    x = torch.randn(1_000_000, 2, generator=torch.Generator().manual_seed(0))
    y = function(x.clone())
    normal = torch.distributions.Normal(y, noise, validate_args=False)
    told = normal.log_prob(torch.tensor(0.5)).sum(-1).nan_to_num(-math.inf)
    weight = told.softmax(0)
    torch.manual_seed(0)
    prior = MixtureOfNormals(torch.zeros(1), torch.zeros(1, 2), torch.ones(1, 2))
    law = prior.condition(Nonlinear(function, torch.full((y.shape[1],), 0.5), noise))
    log_evidence, error = law.log_evidence()
    reference = (weight.square().sum()).sqrt()  # its own error
    expected = told.logsumexp(0) - math.log(len(x))
    assert abs(log_evidence - expected) < 4.5 * math.hypot(error, reference) + 0.01
    spread = (weight.unsqueeze(-1) * x.square()).sum(0)
    off = (law.variance + law.mean.square() - spread).abs() / spread
    assert off.max() < 6.0 / law.effective_sample_size.sqrt() + 0.02


def test_values_of_tiny_noise_are_met_in_both_dtypes():
    for dtype, noise in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
        torch.manual_seed(0)
        zero = torch.zeros(1, 2, dtype=dtype)
        model = MixtureOfNormals(zero[:, 0], zero, zero + 1.0)
        wide, narrow = (
            model.condition(Nonlinear(ODD["a product, still at the mean"], 0.8, by))
            for by in (1e-3, noise)
        )
        assert abs(wide.log_evidence()[0] - narrow.log_evidence()[0]) < 0.05
        miss = narrow.sample((500,)).prod(-1) - 0.8
        assert miss.abs().max() < 8 * noise


def test_errors_of_a_population_of_codes_are_among_those_of_the_evidence():
    torch.manual_seed(0)
    model = _residual("shift", max_exact=0)
    told = Nonlinear(lambda x: x.square().sum(-1, keepdim=True), 2.0, 0.1, num_draws=4000)
    laws = [model.condition(told, num_particles=16) for _ in range(12)]
    values, errors = (torch.stack([law.log_evidence()[i] for law in laws]) for i in (0, 1))
    assert values.std() < 2.5 * errors.mean()


BAD = {
    "within alternatives": (
        lambda m: m.condition(AnyOf(Nonlinear(banana, 0, 1), BOX)),
        "alternatives made of",
    ),
    "gradient": (
        lambda m: m.condition(Nonlinear(lambda x: x[:, :1].detach(), 0.5, 1e-4)),
        "differentiable",
    ),
    "between steps": (
        lambda m: m.condition(Nonlinear(lambda x: x[:, :1].round(), 0.5, 1e-3)),
        "none of 2048 draws meets it",
    ),
    "resolution": (lambda m: m.condition(Nonlinear(banana, 1.0, 1e-20)), "noise that numbers of"),
    "shape": (lambda m: m.condition(Nonlinear(lambda x: x, 0, 1)), "to return a tensor of shape"),
    "noise": (lambda _: Nonlinear(banana, 0, 0.0), "positive standard deviations"),
    "value": (lambda _: Nonlinear(banana, math.nan, 1), "the value to be a finite number"),
    "function": (lambda _: Nonlinear(3, 0, 1), "Expected a function"),
    "draws": (lambda _: Nonlinear(banana, 0, 1, num_draws=0), "num_draws"),
    "out of reach": (
        lambda m: m.condition(Nonlinear(lambda x: x[:, :1].square(), -5.0, 1e-3)),
        "none of 2048 draws meets it",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    ask, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        ask(_mixture("full"))
