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


NEAR_ENDS = {
    "box": lambda dtype: box(*(t.to(dtype) for t in (LOW, HIGH))),
    "half-space": lambda dtype: half_space(
        torch.tensor([1.0, -2.0, 0.5, 0.0], dtype=dtype), torch.tensor(0.7, dtype=dtype)
    ),
    "batch of half-spaces": lambda dtype: half_space(
        torch.tensor([0.3, 0.1, -0.7, 11.0], dtype=dtype),
        torch.linspace(-5.0, 5.0, 2000).to(dtype),
    ),
    "one coordinate": lambda dtype: half_space(
        torch.tensor([0.0, -1.0, 0.0, 0.0], dtype=dtype), torch.tensor(0.0, dtype=dtype)
    ),
}


@pytest.mark.parametrize("make", NEAR_ENDS.values(), ids=NEAR_ENDS)
def test_near_ends_single_precision_is_that_of_the_value(make):
    """Points stay inside, and what is computed from them is as in double precision."""
    constraint = make(torch.float32)
    single = biject_to(constraint)
    tensors = [t.double() for t in vars(constraint).values() if isinstance(t, torch.Tensor)]
    double = biject_to(type(constraint)(*tensors))
    y = single((12 * torch.randn(2000, 4)).clamp(max=8.0).float())
    assert constraint.check(y).all()
    x, expected = single.inv(y), double.inv(y.double())
    assert x.isfinite().all()
    torch.testing.assert_close(x.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        single.log_abs_det_jacobian(x, y).double(),
        double.log_abs_det_jacobian(expected, y.double()),
        rtol=1e-5,
        atol=1e-4,
    )
    assert single(torch.full((2000, 4), -1e3).float()).isfinite().all()


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
