"""What does not fit is an error that says what was expected."""

import math

import pytest
import torch
from torch.distributions import Dirichlet, Distribution, Independent, Normal, Uniform, constraints

from pyromix.simulations import SimulationModel, learn_joint

PRIOR = Independent(Uniform(torch.zeros(2), torch.ones(2)), 1)


def theta(count=100):
    return PRIOR.sample((count,))


def x(count=100):
    return torch.randn(count, 3)


def changed(value, row, column, number):
    value = value.clone()
    value[row, column] = number
    return value


class Silent(Distribution):
    """A law without draws."""

    support = constraints.real_vector
    arg_constraints = {}  # noqa: RUF012

    def __init__(self):
        super().__init__(event_shape=torch.Size((2,)), validate_args=False)

    def log_prob(self, value):
        return value.sum(-1)


PRIORS = {
    "no law": (lambda theta: 0.0, r"a distribution of PyTorch or Pyro.* got function"),
    "no draws": (Silent(), r"can be drawn from, got a Silent"),
    "batch": (Uniform(torch.zeros(2), torch.ones(2)), r"event shape \(D,\).*batch shape \(2,\)"),
    "number": (Normal(0.0, 1.0), r"a Normal of numbers.*prior.expand\(\[1\]\)"),
}


@pytest.mark.parametrize("name", PRIORS)
def test_priors_that_are_none(name):
    prior, match = PRIORS[name]
    with pytest.raises(ValueError, match=match):
        SimulationModel(prior)


DATA = {
    "NaN": (theta(), changed(x(), 3, 1, math.nan), r"finite numbers in x, got NaN.* 1 of 100"),
    "infinity": (theta(), changed(x(), 3, 1, math.inf), r"finite numbers in x"),
    "constant": (theta(), x() * torch.tensor([1.0, 0.0, 1.0]), r"of x that vary, but \[1\]"),
    "rows": (theta(99), x(), r"as many simulations as parameters, got 100 and 99"),
    "parameters": (torch.rand(100, 3), x(), r"theta of shape \(N, 2\).*\(100, 3\)"),
    "raw": (theta(), torch.randn(100, 3, 2), r"x of shape \(N, C\).*\(100, 3, 2\)"),
    "flat": (torch.rand(100), x(), r"theta of shape \(N, 2\).*\(100,\)"),
    "few": (theta(10), x(10), r"at least 50 simulations"),
    "outside": (theta() + 1, x(), r"within the support of the prior"),
}


@pytest.mark.parametrize("name", DATA)
def test_simulations_that_do_not_fit(name):
    parameters, simulations, match = DATA[name]
    with pytest.raises(ValueError, match=match):
        SimulationModel(PRIOR).fit(parameters, simulations, steps=1, progress_bar=False)


def test_parameters_that_are_not_free():
    prior = Dirichlet(torch.ones(3))
    draws = prior.sample((100,))
    with pytest.raises(ValueError, match=r"3 parameters have 2 degrees of freedom"):
        SimulationModel(prior).fit(draws, x(), steps=1, progress_bar=False)


def test_a_simulator_that_is_none():
    with pytest.raises(ValueError, match=r"simulator to be a function.*got Tensor"):
        learn_joint(PRIOR, torch.zeros(2), 100)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return learn_joint(
        PRIOR,
        lambda theta: theta + 0.1 * torch.randn_like(theta),
        200,
        num_components=(1,),
        num_members=1,
        steps=2,
        progress_bar=False,
    )


QUESTIONS = {
    "columns": (lambda m: m.posterior([0.0]), r"x of shape \(..., 2\).*\(1,\)"),
    "infinity": (lambda m: m.posterior([0.0, math.inf]), r"NaN for what is missing, got inf"),
    "route": (lambda m: m.posterior([0.0, 0.0], route="best"), r"route to be"),
    "many": (lambda m: m.posterior([[0.0, 0.0]], route="likelihood"), r"one simulation \(2,\)"),
    "gaps": (lambda m: m.posterior([0.0, math.nan], route="network"), r"needs whole simulations"),
    "theta": (lambda m: m.likelihood([0.5]), r"theta of shape \(..., 2\)"),
    "numbers": (lambda m: m.posterior(0.0), r"x of shape \(..., 2\).*\(1,\)"),
    "outside": (lambda m: m.likelihood([0.5, 2.0]), r"within the support"),
    "level": (lambda m: m.posterior([0.0, 0.0], route="network").interval(90), r"level"),
    "probs": (
        lambda m: m.posterior([0.0, 0.0], route="network").quantile(90.0),
        r"probs from 0 to 1",
    ),
}


@pytest.mark.parametrize("name", QUESTIONS)
def test_questions_that_do_not_fit(model, name):
    ask, match = QUESTIONS[name]
    with pytest.raises(ValueError, match=match):
        ask(model)


@pytest.mark.parametrize(
    "options", [{"num_components": ()}, {"num_components": (0,)}, {"num_members": 0}]
)
def test_options_that_do_not_fit(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        SimulationModel(PRIOR, **options)
