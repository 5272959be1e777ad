"""The triangular map: against a normal in closed form, and as a part of a flow."""

import copy

import pyro.distributions as dist
import torch

from pyromix import Flow, GaussianMixture
from pyromix.checkpoints import load, save
from pyromix.flows import Triangular


def moved():
    torch.manual_seed(0)
    transform = Triangular(3)
    with torch.no_grad():
        for parameter in transform.parameters():
            parameter.normal_()
    return transform


def test_of_a_standard_normal_it_makes_any_normal():
    transform = moved()
    matrix = transform.scale_tril
    assert torch.equal(matrix, matrix.tril())
    assert (matrix.diagonal() > 0).all()
    law = Flow(dist.Normal(torch.zeros(3), torch.ones(3)).to_event(1), [transform])
    expected = dist.MultivariateNormal(transform.loc, scale_tril=matrix)
    x = torch.randn(20, 3)
    torch.testing.assert_close(law.log_prob(x), expected.log_prob(x))
    draws, log_prob = law.rsample_and_log_prob((20,))
    torch.testing.assert_close(log_prob, expected.log_prob(draws))


def test_the_jacobian_is_that_of_autograd_and_the_inverse_returns():
    transform, z = moved(), torch.randn(3)
    jacobian = torch.autograd.functional.jacobian(transform, z)
    expected = torch.linalg.slogdet(jacobian)[1]
    x = transform(z)
    torch.testing.assert_close(transform.log_abs_det_jacobian(z, x).detach(), expected)
    torch.testing.assert_close(transform.inv(x.detach()), z)


def test_it_starts_as_the_identity_and_is_saved_by_its_arguments(tmp_path):
    z = torch.randn(5, 2)
    assert torch.equal(Triangular(2)(z), z)
    law = Flow(GaussianMixture(2, 2), [Triangular(2)])
    again = copy.deepcopy(law)
    torch.testing.assert_close(again.log_prob(z), law.log_prob(z))
    save(law, tmp_path / "flow")
    torch.testing.assert_close(load(tmp_path / "flow").log_prob(z), law.log_prob(z))
