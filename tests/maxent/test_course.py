"""Rounds of a search: which is best, and when they end it."""

import pytest
import torch
from torch.distributions import ExpTransform

from pyromix import Flow, GaussianMixture
from pyromix.maxent.course import Course, in_deviations
from pyromix.maxent.expectations import Expectations
from pyromix.maxent.result import Round
from pyromix.maxent.start import gaussian_on


def end(entropy, violation, multiplier=0.0, *, feasible=True, scaled=1.0):
    return Round(
        entropy=entropy,
        violations=torch.tensor([violation]),
        scaled_violations=torch.tensor([scaled]),
        multipliers=torch.tensor([multiplier]),
        penalty=2.0,
        feasible=feasible,
        scale=torch.ones(1),
        distance=scaled,
    )


def course(*rounds, num_rounds=20, tolerance=0.01):
    result = Course(num_rounds, tolerance)
    result.first_scale = torch.tensor([2.0])
    for one in rounds:
        result.add(one)
    return result


def test_constraints_come_before_entropy():
    rounds = course(
        end(3.0, 0.5, feasible=False), end(2.0, 0.4, feasible=False), end(1.0, 0.1), end(1.5, 0.1)
    )
    assert rounds.best_round == 3
    assert not rounds.add(end(9.0, 0.01, feasible=False))
    assert rounds.best_round == 3


def test_entropies_are_compared_by_the_present_multipliers():
    """By those of its own round, the first would be worth less."""
    rounds = course(end(1.0, 0.1, multiplier=5.0))
    assert not rounds.add(end(0.9, 0.0, multiplier=0.5))  # 1.0 - 0.5 * 0.1 > 0.9
    assert rounds.add(end(0.96, 0.0, multiplier=0.5))


def test_the_entropy_has_settled_after_three_rounds_alike():
    rounds = course(end(1.0, 0.0), end(1.001, 0.0))
    assert not rounds.has_settled(scheduled=False)
    rounds.add(end(1.002, 0.0))
    assert rounds.has_settled(scheduled=False)
    assert not rounds.has_settled(scheduled=True)
    rounds.add(end(1.2, 0.0))
    assert not rounds.has_settled(scheduled=False)


@pytest.mark.parametrize(("shrink", "hopeless"), [(1.0, True), (0.5, False)])
def test_a_violation_that_stays_is_hopeless(shrink, hopeless):
    violations = [shrink**i for i in range(5)]
    rounds = course(*(end(1.0, v, feasible=False) for v in violations))
    assert rounds.is_hopeless() == hopeless
    assert rounds.has_stalled() == hopeless
    assert not course(*rounds.rounds[:4]).is_hopeless()
    near = course(*(end(1.0, 1.0, feasible=False, scaled=0.4) for _ in range(5)))
    assert not near.is_hopeless()


def test_an_entropy_that_rises_without_end():
    rising, slowing = course(), course()
    for rounds, entropies in ((rising, range(12)), (slowing, [0, 5, 7, 8, 8.1] + 7 * [8.2])):
        rounds.arrive()
        for entropy in entropies:
            rounds.add(end(float(entropy), 0.0))
        rounds.arrive()
    assert rising.arrival == 0
    assert rising.rises()
    assert not slowing.rises()
    rising.arrival = None
    assert not rising.rises()


def test_deviations():
    got = in_deviations(torch.tensor([-1.0, 3.0]), torch.tensor([0.5, 0.0]))
    assert got.tolist() == [2.0, 3.0]


def test_half_a_deviation_a_round_is_progress_however_far_the_targets_are():
    far = [end(1.0, 1000.0 - step, feasible=False) for step in range(6)]
    assert not course(*far).is_hopeless()
    stuck = [end(1.0, 1000.0 - 0.01 * step, feasible=False) for step in range(6)]
    assert course(*stuck).is_hopeless()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize(
    ("loc", "scale"), [(0.0, 30.0), (7.0, 1.0), (100.0, 5.0), (-1e4, 50.0), (0.0, 1e4), (1e4, 1.0)]
)
def test_the_start_follows_moments_that_lie_far_away(loc, scale, centred, dtype):
    if not centred and dtype == torch.float32 and abs(loc) > 1e3 * scale:
        return  # single precision cannot hold such targets
    centre = loc if centred else 0.0
    targets = torch.tensor([loc, (loc - centre) ** 2 + scale**2], dtype=torch.float64).to(dtype)
    moments = Expectations(
        lambda x: torch.cat([x, (x - centre).square()], -1), targets, None, None, None, targets
    )
    start = gaussian_on(GaussianMixture(1, 2), moments)
    x = start.sample((20_000,)).double()
    assert abs(x.mean() - loc) < 0.1 * scale
    assert 0.9 * scale < x.std() < 1.1 * scale


def test_a_standard_normal_is_a_start_near_enough():
    targets = torch.tensor([0.0, 1e-4])
    moments = Expectations(
        lambda x: torch.cat([x, x.square()], -1), targets, None, None, None, targets
    )
    assert 0.97 < gaussian_on(GaussianMixture(1, 2), moments).sample((20_000,)).std() < 1.03


def test_of_locations_and_scales_that_would_both_do_locations_move():
    """A mean alone: a law that is much wider would have it, too."""
    mean = Expectations(lambda x: x, 1e4, None, None, None, torch.zeros(1))
    x = gaussian_on(Flow(GaussianMixture(1, 2), [ExpTransform()]), mean).sample((20_000,))
    assert x.mean() == pytest.approx(1e4, rel=0.2)
    assert 0.5 < x.log().std() < 1.5


def test_a_start_where_functions_take_one_dtype_and_bounds_hold():
    """Of inequalities, those that hold are left alone."""
    matrix = torch.eye(2, dtype=torch.float32)
    law = Expectations(
        lambda x: x @ matrix, [50.0, 3.0], lambda x: x.square().sum(-1), 1e9, None, matrix
    )
    x = gaussian_on(GaussianMixture(2, 2).float(), law).sample((20_000,))
    assert abs(x.mean(0) - torch.tensor([50.0, 3.0])).max() < 0.2
