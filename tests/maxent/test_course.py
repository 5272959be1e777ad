"""Rounds of a search: which is best, and when they end it."""

import pytest
import torch

from pyromix import GaussianMixture
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


@pytest.mark.parametrize(("loc", "scale"), [(0.0, 30.0), (7.0, 1.0), (100.0, 5.0), (0.0, 1e-2)])
def test_the_start_follows_moments_that_lie_far_away(loc, scale):
    targets = torch.tensor([loc, loc**2 + scale**2])
    moments = Expectations(
        lambda x: torch.cat([x, x.square()], -1), targets, None, None, None, targets
    )
    start = gaussian_on(GaussianMixture(1, 2), moments)
    x = start.sample((20_000,))
    far = abs(loc) > 5 or scale > 5
    if far:
        assert abs(x.mean() - loc) < 0.3 * scale
        assert 0.7 * scale < x.std() < 1.4 * scale
    else:  # near enough for a standard normal
        assert 0.97 < x.std() < 1.03
