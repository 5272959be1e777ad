"""Flows onto bounded sets: densities of draws near the border, against double precision."""

import math

import pyro.distributions as dist
import pytest
import torch
from torch.distributions import biject_to, constraints
from torch.distributions.transforms import (
    AffineTransform,
    ExpTransform,
    SigmoidTransform,
    SoftplusTransform,
    TanhTransform,
)

from pyromix import Flow
from pyromix.flows.borders import PRECISE

# Base dimension, its standard deviation, and transforms.
WIDE = {
    "simplex": (49, 2.0, [biject_to(constraints.simplex)]),
    "correlations": (3, 2.0, [biject_to(constraints.corr_cholesky)]),
    "tanh": (1, 3.0, [TanhTransform()]),
    "tanh, moved": (2, 4.0, [TanhTransform(), AffineTransform(1.0, 2.0)]),
    "sigmoid": (1, 6.0, [SigmoidTransform()]),
    "exp": (1, 40.0, [ExpTransform()]),
    "softplus": (1, 40.0, [SoftplusTransform()]),
    "greater than": (1, 8.0, [biject_to(constraints.greater_than(1.0))]),
    "less than": (1, 8.0, [biject_to(constraints.less_than(-3.0))]),
    "interval": (1, 8.0, [biject_to(constraints.interval(2.0, 5.0))]),
}


def build(name, dtype):
    dim, spread, transforms = WIDE[name]
    base = dist.Normal(torch.zeros(dim), torch.full((dim,), spread)).to_event(1)
    return Flow(base, transforms, validate_args=True).to(dtype)


@pytest.mark.parametrize("name", WIDE)
def test_draws_near_the_border_are_scored_as_in_double_precision(name):
    single, double = build(name, torch.float32), build(name, torch.float64)
    x = single.sample((4000,))
    assert single.support.check(x).all()
    got, expected = single.log_prob(x), double.log_prob(x.double())
    assert got.isfinite().all()
    # An interval's ends are not numbers of the unit interval: there a few digits are lost.
    tolerance = 0.2 if name == "interval" else 1e-4
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=tolerance)


@pytest.mark.parametrize("name", ["simplex", "correlations"])
def test_draws_that_hold_their_latents_are_scored_as_they_were_drawn(name):
    flow = build(name, torch.float32)
    x, log_prob = flow.rsample_and_log_prob((4000,))
    torch.testing.assert_close(flow.log_prob(x), log_prob, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("kind", PRECISE)
def test_precise_transforms_are_those_of_pytorch(kind):
    plain, precise = kind(), PRECISE[kind]()
    x = torch.randn(20, 3 if kind().domain.event_dim else 1)
    y = plain(x)
    torch.testing.assert_close(precise(x), y)
    torch.testing.assert_close(precise.inv(y), x)
    torch.testing.assert_close(
        precise.log_abs_det_jacobian(x, y), plain.log_abs_det_jacobian(x, y)
    )
    slope = torch.func.vmap(torch.func.jacrev(precise))(x)
    assert slope.isfinite().all()
    torch.testing.assert_close(slope, torch.func.vmap(torch.func.jacrev(plain))(x))


def test_a_value_on_the_border_has_a_finite_density_where_it_is_in_the_support():
    for name in ("tanh", "sigmoid"):
        assert build(name, torch.float32).log_prob(torch.ones(1).float()).isfinite()
    with pytest.raises(ValueError, match="support"):
        build("greater than", torch.float32).log_prob(torch.ones(1, dtype=torch.float32))


def test_gradients_through_draws_stay_finite():
    loc = torch.nn.Parameter(torch.full((2,), 30.0))
    flow = Flow(dist.Normal(loc, torch.ones(2)).to_event(1), [TanhTransform()])
    x, log_prob = flow.rsample_and_log_prob((100,))
    (x.sum() + log_prob.sum()).backward()
    assert loc.grad.isfinite().all()
    assert math.isclose(x.detach().max().item(), 1.0)
