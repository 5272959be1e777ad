"""Tests of constraints: how often they reject what holds, and what does not."""

import math

import pytest
import torch

from pyromix.maxent.feasibility import rejected

# Statistics whose means hold exactly under a standard normal.
EXACT = {
    "x": (lambda x: x, 0.0),
    "x^2": (torch.square, 1.0),
    "x^4": (lambda x: x**4, 3.0),
    "an event of 1%": (lambda x: (x > 2.3263478740408408).to(x), 0.01),
}
SIZE = 200 * 32  # of batches of 64: larger ones are nearer to normal


@pytest.mark.parametrize("margin", [0.0, 0.005])
def test_of_laws_that_hold_one_in_twenty_is_rejected(margin):
    torch.manual_seed(0)
    repeats = 500
    counts = torch.zeros(len(EXACT))
    together = 0
    levels = torch.tensor([level for _, level in EXACT.values()])
    one_sided = torch.zeros(len(EXACT), dtype=torch.bool)
    for _ in range(repeats):
        x = torch.randn(SIZE, dtype=torch.float32)
        values = torch.stack([function(x) for function, _ in EXACT.values()], -1)
        for i in range(len(EXACT)):
            counts[i] += rejected(values[:, i : i + 1], levels[i : i + 1], one_sided[:1], margin)[
                0
            ]
        together += int(rejected(values, levels, one_sided, margin).any())
    bound = 0.05 + 4 * math.sqrt(0.05 * 0.95 / repeats)
    assert (counts / repeats < bound).all()
    assert together / repeats < bound
    if margin == 0:
        assert (counts / repeats > 0.05 - 4 * math.sqrt(0.05 * 0.95 / repeats)).all()


@pytest.mark.parametrize("name", EXACT)
def test_violations_of_a_twentieth_of_a_deviation_are_seen(name):
    torch.manual_seed(0)
    function, level = EXACT[name]
    values = function(torch.randn(51_200)).unsqueeze(-1)
    off = 0.05 * float(values.std())
    for shift in (-off, off):
        moved = torch.tensor([level + shift])
        assert rejected(values, moved, torch.tensor([False]), 0.005)
    # Of a bound, violations are above it alone.
    assert not rejected(values, torch.tensor([level + off]), torch.tensor([True]), 0.005)
    assert rejected(values, torch.tensor([level - off]), torch.tensor([True]), 0.005)


def test_violations_within_the_margin_are_none():
    torch.manual_seed(0)
    values, two_sided = torch.randn(1_000_000, 1), torch.tensor([False])
    assert rejected(values, torch.tensor([0.01]), two_sided)
    assert not rejected(values, torch.tensor([0.01]), two_sided, 0.02)


def test_statistics_that_are_constant_hold_or_do_not():
    """Also up to what rounding does to them, as to the sum over a simplex."""
    one_sided = torch.tensor([False, True])
    ones = torch.ones(200, 2)
    assert rejected(ones, torch.ones(2), one_sided).tolist() == [False, False]
    assert rejected(ones, torch.zeros(2), one_sided).tolist() == [True, True]
    assert rejected(ones, torch.full((2,), 2.0), one_sided).tolist() == [True, False]
    shares = torch.rand(5000, 7, dtype=torch.float32).softmax(-1).sum(-1, keepdim=True)
    assert not rejected(shares, torch.ones(1), torch.tensor([False]))
