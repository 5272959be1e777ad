"""Bijections onto open intervals, boxes with open sides and half-spaces."""

import math

import pytest
import torch
from torch.distributions import biject_to, constraints

from pyromix.core.constraints import box, half_space, open_interval, real_or_missing_vector

LOW = torch.tensor([-1.0, -math.inf, 2.0, -math.inf], dtype=torch.float64)
HIGH = torch.tensor([0.5, math.inf, math.inf, 3.0], dtype=torch.float64)
CONSTRAINTS = {
    "box": lambda: box(LOW, HIGH),
    "half-space": lambda: half_space(torch.tensor([1.0, -2.0, 0.5, 0.0]), torch.tensor(0.7)),
    "open-interval": lambda: constraints.independent(open_interval(-1.0, 2.0), 1),
}


@pytest.mark.parametrize("make", CONSTRAINTS.values(), ids=CONSTRAINTS)
def test_bijection(make):
    constraint = make()
    transform = biject_to(constraint)
    x = 2 * torch.randn(50, 4)
    y = transform(x)
    assert constraint.check(y).all()
    torch.testing.assert_close(transform.inv(y), x)
    jacobian = torch.func.vmap(torch.func.jacrev(transform))(x)
    expected = torch.linalg.slogdet(jacobian).logabsdet
    torch.testing.assert_close(transform.log_abs_det_jacobian(x, y), expected)
    assert transform.codomain.check(y).all()


@pytest.mark.parametrize("make", CONSTRAINTS.values(), ids=CONSTRAINTS)
def test_gradients_are_finite(make):
    transform = biject_to(make())
    x = (3 * torch.randn(20, 4)).requires_grad_()
    y = transform(x)
    (y.sum() + transform.log_abs_det_jacobian(x, y).sum()).backward()
    assert x.grad.isfinite().all()
    z = y.detach().requires_grad_()
    transform.inv(z).sum().backward()
    assert z.grad.isfinite().all()


def test_values_outside_are_told():
    inside = torch.tensor([0.0, 7.0, 3.0, 2.0])
    assert box(LOW, HIGH).check(inside)
    for d, value in ((0, 0.6), (2, 1.9), (3, 3.1)):
        outside = inside.clone()
        outside[d] = value
        assert not box(LOW, HIGH).check(outside)


def test_open_interval_has_no_ends():
    value = torch.tensor([-1.1, -1.0, -0.9, 1.9, 2.0, math.nan])
    assert open_interval(-1, 2).check(value).tolist() == [False, False, True, True, False, False]
    assert repr(open_interval(-1, 2)) == "open_interval(-1, 2)"


def test_missing_entries_are_in_the_support():
    value = torch.tensor([[1.0, math.nan], [math.inf, 0.0]])
    assert real_or_missing_vector.check(value).tolist() == [True, False]
    assert biject_to(real_or_missing_vector)(value[0])[0] == 1.0
