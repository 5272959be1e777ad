"""Pyro's splines in a flow: the same numbers, and gradients that are finite outside of bounds."""

import copy

import pyro.distributions as dist
import pyro.distributions.transforms as transforms
import pytest
import torch
from torch.distributions import TransformedDistribution

from pyromix import Flow, load, save


def _base(dim):
    return dist.Normal(torch.zeros(dim), torch.ones(dim)).to_event(1)


def _pole(spline):
    """Where the piece that Pyro evaluates beyond the upper bound has a pole.

    It starts at the bound, has the last one's width and height, and slopes of 0.999 on both sides.
    """
    widths, heights, _, shares = (p.detach().double()[0] for p in spline._params())
    width, height = (1e-3 + (1 - 1e-3 * p.shape[-1]) * p[-1] for p in (widths, heights))
    share = 0.95 * shares[-1] + 0.025
    weight = 0.999 / (height / width)
    low, high = spline.bound, spline.bound * (1 + 2 * height)
    middle = (1 - share) * low + share * high
    return float((weight * middle - high) / (weight - 1))


def _finite_gradients(law, x, spline):
    grads = torch.autograd.grad(law.log_prob(x).sum(), tuple(spline.parameters()))
    return all(bool(g.isfinite().all()) for g in grads)


def test_poles_outside_of_bounds_do_not_spoil_gradients():
    """Among the floating-point numbers around a pole there are some that are the pole."""
    num_broken = 0
    for seed in range(40):
        torch.manual_seed(seed)
        spline = transforms.spline(1, count_bins=8, bound=3.0).float()
        pole = _pole(spline)
        if not 3.1 < pole < 100:
            continue
        steps = torch.arange(-1000, 1000, dtype=torch.int32)
        near = torch.tensor(pole, dtype=torch.float32).view(torch.int32)
        x = (near + steps).view(torch.float32).unsqueeze(-1)
        base = dist.Normal(torch.zeros(1).float(), torch.ones(1).float()).to_event(1)
        alone = copy.deepcopy(spline)
        law = TransformedDistribution(base, [alone], validate_args=False)
        num_broken += not _finite_gradients(law, x, alone)
        assert _finite_gradients(Flow(base, [spline]), x, spline)
    assert num_broken > 0  # or else the test would show nothing


KINDS = {
    "elementwise": lambda: transforms.spline(3),
    "quadratic": lambda: transforms.spline(3, order="quadratic"),
    "coupling": lambda: transforms.spline_coupling(3),
    "autoregressive": lambda: transforms.spline_autoregressive(3),
    "conditional": lambda: transforms.conditional_spline(3, 2),
    "conditional autoregressive": lambda: transforms.conditional_spline_autoregressive(3, 2),
}


@pytest.mark.parametrize("kind", KINDS)
def test_results_are_those_of_pyro(kind, tmp_path):
    transform = KINDS[kind]()
    original = copy.deepcopy(transform)
    flow = Flow(_base(3), [transform])
    x, context = 4 * torch.randn(50, 3), torch.randn(50, 2)
    assert (x.abs() > 3).any()
    conditional = kind.startswith("conditional")
    law = flow.condition(context) if conditional else flow
    given = original.condition(context) if conditional else original
    expected = TransformedDistribution(_base(3), [given], validate_args=False).log_prob(x)
    torch.testing.assert_close(law.log_prob(x), expected)
    torch.manual_seed(0)
    drawn = law.sample(() if conditional else (50,))
    torch.manual_seed(0)
    z = _base(3).sample((50,))
    torch.testing.assert_close(drawn, given(z))

    save(flow, tmp_path / "flow.safetensors")
    for other in (copy.deepcopy(flow), load(tmp_path / "flow.safetensors")):
        same = other.condition(context) if conditional else other
        torch.testing.assert_close(same.log_prob(x), law.log_prob(x))
