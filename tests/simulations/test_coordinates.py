"""Coordinates of parameters and simulations are bijective, and their slopes are right."""

import pytest
import torch
from torch.distributions import Gamma, Independent, LogNormal, MultivariateNormal, Uniform

from pyromix.simulations.coordinates import SimulationMap, parameter_map

PRIORS = {
    "box": Independent(Uniform(torch.tensor([-3.0, 0.0]), torch.tensor([1.0, 5.0])), 1),
    "positive": Independent(LogNormal(torch.zeros(2), torch.tensor([0.5, 2.0])), 1),
    "gamma": Independent(Gamma(torch.tensor([0.5, 3.0]), torch.ones(2)), 1),
    "real": MultivariateNormal(torch.tensor([5.0, 0.0]), torch.diag(torch.tensor([100.0, 0.01]))),
}


@pytest.mark.parametrize("name", PRIORS)
def test_parameters_have_coordinates(name):
    torch.manual_seed(0)
    prior = PRIORS[name]
    theta = prior.sample((1000,)).double()
    transform = parameter_map(prior, theta)
    z = transform.inv(theta)
    # Six standard errors of a mean, and of a standard deviation of laws without heavy tails.
    assert (z.mean(0).abs() < 0.2).all()
    assert ((z.std(0) - 1).abs() < 0.2).all()
    assert torch.allclose(transform(z), theta, rtol=1e-6, atol=1e-9)
    jacobian = torch.autograd.functional.jacobian(transform, z[0])
    right = torch.linalg.slogdet(jacobian).logabsdet
    assert torch.allclose(transform.log_abs_det_jacobian(z[0], theta[0]), right)
    assert prior.support.check(transform(torch.full((2,), 50.0))).all()
    if name == "box":  # a uniform law is a normal one
        assert (z.square().mean(0) - 1).abs().max() < 0.3


def test_simulations_have_coordinates():
    torch.manual_seed(0)
    plain = torch.randn(5000) * 3 + 7
    heavy = torch.randn(5000) / torch.rand(5000)
    counts = torch.poisson(torch.full((5000,), 0.01))
    x = torch.stack([plain, heavy, counts], -1)
    own = SimulationMap(x)
    assert own.bent.tolist() == [False, True, True]
    y = own(x)
    assert y.mean(0).abs().max() < 1e-6
    assert torch.allclose(own.inverse(y), x)
    slope = torch.autograd.functional.jacobian(own, x[0]).diagonal().log()
    assert torch.allclose(own.log_slope(x[0]), slope)
    transform = own.transform()
    assert torch.allclose(transform(y), x)
    assert torch.allclose(transform.log_abs_det_jacobian(y[0], x[0]), -slope.sum())
    assert not SimulationMap(x, bend=False).bent.any()
