"""Evidence at the border of other evidence, and evidence that leaves a single point."""

import math

import pytest
import torch

from pyromix import DRMM, GaussianMixture
from pyromix.evidence import (
    AnyOf,
    Box,
    LinearEquality,
    LinearGaussian,
    LinearInequality,
    Observed,
)

INF = math.inf
AXIS, OBLIQUE = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.3, -0.7, 0.0])

MODELS = {
    "diagonal": lambda: GaussianMixture(3, 2),
    "full": lambda: GaussianMixture(3, 2, "full"),
    "residual": lambda: DRMM(3, 2, 2),
}


def fixes(value):
    """Evidence that fixes what a row says at a number: (evidence, row, number)."""
    in_float32 = torch.tensor(value, dtype=torch.float32)
    yield [Observed({0: value})], AXIS, value
    yield [Observed({0: in_float32})], AXIS, value
    yield [Observed({0: value, 1: -2 * value})], OBLIQUE, 1.7 * value
    yield [LinearEquality(AXIS, -value)], AXIS, value
    yield [LinearEquality(AXIS, -value)], 2.5 * AXIS, 2.5 * value
    yield [LinearEquality(OBLIQUE, -value)], 3 * OBLIQUE, 3 * value
    other = LinearEquality(torch.tensor([0.0, 1.0, 0.0]), 2 * value)
    yield [LinearEquality(AXIS, -value), other], OBLIQUE, 1.7 * value


def borders(row, value):
    """Inequalities that end at a number."""
    yield LinearInequality(row, -value)
    yield LinearInequality(-row, value)
    if torch.equal(row, AXIS):
        yield Box(high=[value, INF, INF])
        yield Box(low=torch.tensor([value, -INF, -INF]))
        yield Box([value, -9e3, -9e3], [9e3, 9e3, 9e3])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", MODELS)
def test_what_is_fixed_on_a_border_meets_it(name, dtype):
    model = MODELS[name]().to(dtype).requires_grad_(False)
    for value in (0.1, 1000.1):
        for evidence, row, number in fixes(value):
            alone = model.condition(*evidence).log_evidence()[0]
            for inequality in borders(row, number):
                law = model.condition(*evidence, inequality)
                x = law.sample((5,))
                assert law.log_prob(x).isfinite().all()
                torch.testing.assert_close(law.log_evidence()[0], alone)
                if isinstance(inequality, Box) and isinstance(evidence[0], LinearEquality):
                    low, high = (
                        torch.as_tensor(t, dtype=dtype) for t in (inequality.low, inequality.high)
                    )
                    assert ((x >= low) & (x <= high)).all()


def test_alternatives_that_end_at_a_value_hold():
    model = GaussianMixture(2, 2).float()
    law = model.condition(Observed({0: 0.7}), AnyOf(Box(high=[0.7, INF]), Box(low=[0.9, -INF])))
    assert law.log_prob(law.sample((9,))).isfinite().all()


@pytest.mark.parametrize(
    "evidence", [[Observed({0: 0.1})], [LinearEquality(AXIS, -0.1)]], ids=["value", "equation"]
)
def test_what_is_fixed_beyond_a_border_is_refused(evidence):
    model = GaussianMixture(3, 2).float()
    with pytest.raises(ValueError, match="break an inequality"):
        model.condition(*evidence, Box(high=[0.0999, INF, INF]))
    with pytest.raises(ValueError, match="break an inequality"):
        model.condition(*evidence, LinearInequality(AXIS, -0.1001))


EQUATIONS = {
    "an axis": lambda: (1, [LinearEquality(torch.tensor([1.0]), -0.5)]),
    "a plane and a value": lambda: (
        2,
        [Observed({0: 0.2}), LinearEquality(torch.tensor([1.0, 2.0]), torch.tensor([-1.0]))],
    ),
    "two planes": lambda: (
        2,
        [LinearEquality(torch.tensor([[1.0, 1.0], [1.0, -2.0]]), torch.tensor([-1.0, 0.3]))],
    ),
    "a batch, and readings": lambda: (
        2,
        [
            LinearEquality(torch.tensor([[1.0, 1.0], [1.0, -2.0]]), torch.rand(4, 2)),
            LinearGaussian(torch.tensor([[2.0, 1.0]]), torch.tensor([0.3]), 0.2),
        ],
    ),
}


@pytest.mark.parametrize("name", EQUATIONS)
@pytest.mark.parametrize("covariance", ["diagonal", "full", "tied"])
def test_equations_may_leave_one_point(name, covariance):
    dim, evidence = EQUATIONS[name]()
    model = GaussianMixture(dim, 3, covariance).requires_grad_(False)
    plain = model.condition(*evidence)
    point = plain.mean
    for law in (plain, model.condition(*evidence, Box(-50.0, 50.0))):
        torch.testing.assert_close(law.sample((3,)), point.expand(3, *point.shape))
        torch.testing.assert_close(law.log_prob(point), torch.zeros(point.shape[:-1]))
        assert law.log_prob(point + 0.1).isneginf().all()
        torch.testing.assert_close(law.log_evidence()[0], plain.log_evidence()[0])
    torch.testing.assert_close(plain.variance, torch.zeros_like(point))
    with pytest.raises(ValueError, match="break an inequality"):
        model.condition(*evidence, Box(-60.0, -50.0))


def test_equations_may_leave_one_point_of_a_residual_mixture():
    model = DRMM(2, 2, 3).requires_grad_(False)
    plane = LinearEquality(torch.tensor([[1.0, 1.0], [1.0, -2.0]]), torch.tensor([-1.0, 0.3]))
    law = model.condition(plane, Box(-5.0, 5.0))
    x = law.sample((3,))
    torch.testing.assert_close(x, torch.tensor([1.7 / 3, 1.3 / 3]).expand(3, 2))
    torch.testing.assert_close(law.log_prob(x), torch.zeros(3), atol=1e-5, rtol=0)
