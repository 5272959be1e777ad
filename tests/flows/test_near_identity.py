"""Transforms that start near the identity, of every kind that has one."""

import pyro.distributions as dist
import pyro.distributions.transforms as transforms
import pytest
import torch

from pyromix import Flow, near_identity

DIM = 4

TRANSFORMS = {
    "affine coupling": lambda: transforms.affine_coupling(DIM),
    "affine autoregressive": lambda: transforms.affine_autoregressive(DIM),
    "spline": lambda: transforms.spline(DIM),
    "quadratic spline": lambda: transforms.spline(DIM, order="quadratic"),
    "spline coupling": lambda: transforms.spline_coupling(DIM),
    "spline autoregressive": lambda: transforms.spline_autoregressive(DIM),
    "iterated": lambda: transforms.iterated(3, transforms.affine_coupling, DIM),
    "conditional affine coupling": lambda: transforms.conditional_affine_coupling(DIM, 2),
    "conditional affine autoregressive": lambda: transforms.conditional_affine_autoregressive(
        DIM, 2
    ),
    "conditional spline": lambda: transforms.conditional_spline(DIM, 2),
    "conditional spline autoregressive": lambda: transforms.conditional_spline_autoregressive(
        DIM, 2
    ),
}


def distance(transform, x):
    if hasattr(transform, "condition"):
        transform = transform.condition(torch.zeros(2))
    return (transform(x) - x).abs().max().item()


@pytest.mark.parametrize("name", TRANSFORMS)
def test_near_identity(name):
    x = torch.randn(200, DIM)
    transform = TRANSFORMS[name]()
    before = distance(transform, x.clone())
    assert near_identity(transform) is transform
    assert distance(transform, x.clone()) < 0.5 * before
    assert (
        distance(near_identity(transform, 0.0), x.clone()) < 1e-3
    )  # the outermost slope of Pyro's splines is 0.999


def test_lists_are_changed_one_by_one():
    stack = [transforms.spline_coupling(3), transforms.affine_coupling(3)]
    assert near_identity(stack, 0.0) is stack
    x = torch.randn(5, 3)
    for part in stack:
        torch.testing.assert_close(part(x), x, atol=1e-3, rtol=0)


def test_gradients_reach_all_layers():
    flow = Flow(dist.Normal(torch.zeros(DIM), 1.0), near_identity(transforms.spline_coupling(DIM)))
    flow.log_prob(torch.randn(50, DIM)).sum().backward()
    assert all(p.grad.any() for p in flow.parameters())


@pytest.mark.parametrize(
    "make",
    [
        lambda: transforms.planar(DIM),
        lambda: transforms.AffineTransform(0.0, 1.0),
        lambda: transforms.affine_autoregressive(DIM, stable=True),
    ],
)
def test_transforms_without_an_identity(make):
    with pytest.raises(ValueError, match="affine or spline transform of Pyro"):
        near_identity(make())
