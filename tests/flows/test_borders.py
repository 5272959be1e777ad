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

# Fractions that single precision has.
TENTH, SEVEN_TENTHS = (torch.tensor(x, dtype=torch.float32).item() for x in (0.1, 0.7))

# Base dimension, its standard deviation, and transforms.
WIDE = {
    "simplex": (49, 2.0, [biject_to(constraints.simplex)]),
    "correlations": (3, 2.0, [biject_to(constraints.corr_cholesky)]),
    "tanh": (1, 3.0, [TanhTransform()]),
    "tanh, moved": (2, 4.0, [TanhTransform(), AffineTransform(1.0, 2.0)]),
    "tanh, moved by fractions": (1, 4.0, [TanhTransform(), AffineTransform(TENTH, -SEVEN_TENTHS)]),
    "sigmoid, moved by fractions": (
        *(1, 8.0),
        [SigmoidTransform(), AffineTransform(TENTH, SEVEN_TENTHS)],
    ),
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
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-4)
    z, latents = single.encode(x)[0], double.encode(x.double())[0]
    torch.testing.assert_close(z.double(), latents, rtol=1e-5, atol=1e-5)


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


OUTSIDE = {
    "exp": -1.0,
    "softplus": -1.0,
    "sigmoid": 2.0,
    "tanh": -1.5,
    "tanh, moved": 4.0,
    "interval": 1.0,
    "greater than": 0.5,
    "less than": 0.0,
}


@pytest.mark.parametrize("name", OUTSIDE)
def test_values_outside_have_no_density(name):
    dim, spread, transforms = WIDE[name]
    scale = torch.nn.Parameter(torch.full((dim,), spread))
    flow = Flow(dist.Normal(torch.zeros(dim), scale).to_event(1), transforms, validate_args=False)
    x = flow.sample((3,))
    x[1, 0] = OUTSIDE[name]
    log_prob = flow.log_prob(x)
    assert log_prob.isneginf().tolist() == [False, True, False]
    torch.testing.assert_close(torch.func.vmap(flow.log_prob)(x), log_prob)
    log_prob[::2].sum().backward()
    (gradient,) = (p.grad for p in flow.parameters())
    assert gradient.isfinite().all()


def test_values_off_the_simplex_have_no_density():
    base = dist.Normal(torch.zeros(2), 1.0, validate_args=False)
    base = dist.Independent(base, 1, validate_args=False)
    flow = Flow(base, [biject_to(constraints.simplex)], validate_args=False)
    log_prob = flow.log_prob(torch.tensor([[-0.1, 0.6, 0.5], [0.2, 0.3, 0.5]]))
    assert log_prob.isneginf().tolist() == [True, False]


def test_gradients_through_draws_stay_finite():
    loc = torch.nn.Parameter(torch.full((2,), 30.0))
    flow = Flow(dist.Normal(loc, torch.ones(2)).to_event(1), [TanhTransform()])
    x, log_prob = flow.rsample_and_log_prob((100,))
    (x.sum() + log_prob.sum()).backward()
    assert loc.grad.isfinite().all()
    assert math.isclose(x.detach().max().item(), 1.0)
