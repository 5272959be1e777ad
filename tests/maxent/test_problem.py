"""Maximum entropy against answers in closed form, and by quadrature."""

import itertools
import math
import warnings

import pyro.distributions as dist
import pytest
import torch
from torch.distributions import MultivariateNormal, constraints, kl_divergence

from pyromix import GaussianMixture, MaximumEntropy, RelaxedGaussianMixture
from pyromix.maxent import InfeasibleError, spline_flow


def moments(x):
    """The first two of numbers."""
    return torch.cat([x, x.square()], -1)


def normal(targets=(1.0, 5.0), function=moments, **options):
    return MaximumEntropy(GaussianMixture(1, 1), function, list(targets), **options)


def solve(problem, **settings):
    settings = {"steps": 40, "rounds": 15, "lr": 0.02, "start_steps": 20, "seed": 0, **settings}
    return problem.solve(progress_bar=False, **settings)


def holds(result):
    """Whether the round that was kept met the constraints, and fresh draws say so to their error.

    Tests on fresh draws, at a level, reject one in twenty results that do.
    """
    tolerance = 4 * result.standard_errors + 0.01 * result.levels.abs()
    held = bool((result.violations.abs() < tolerance).all())
    return result.rounds[result.best_round].feasible and held


NORMAL_ENTROPY = 0.5 * math.log(2 * math.pi * math.e * 4.0)


# ---- known answers ----------------------------------------------------------------------------


def test_mean_and_covariance_give_a_normal():
    mean = torch.tensor([1.0, -1.0])
    covariance = torch.tensor([[2.0, -0.5], [-0.5, 1.0]])
    pairs = [(0, 0), (0, 1), (1, 1)]

    def statistics(x):
        return torch.cat([x, torch.stack([x[:, i] * x[:, j] for i, j in pairs], -1)], -1)

    second = covariance + mean.outer(mean)
    targets = [*mean.tolist(), *(float(second[i, j]) for i, j in pairs)]
    model = GaussianMixture(2, 1, "full")
    result = solve(MaximumEntropy(model, statistics, targets), rounds=20)
    assert result.outcome == "converged"
    expected = MultivariateNormal(mean, covariance)
    law = model.distribution
    got = MultivariateNormal(law.loc[0].detach(), law.component_covariance[0].detach())
    assert float(kl_divergence(got, expected)) < 1e-3
    assert result.entropy == pytest.approx(float(expected.entropy()), abs=0.02)
    # log q = const - lambda . T
    precision = torch.linalg.inv(covariance)
    prices = [*(-precision @ mean).tolist()]
    prices += [0.5 * float(precision[0, 0]), float(precision[0, 1]), 0.5 * float(precision[1, 1])]
    torch.testing.assert_close(result.multipliers, torch.tensor(prices), atol=0.1, rtol=0.1)


def test_a_mean_on_the_positive_half_gives_an_exponential():
    flow = spline_flow(1, num_layers=1, support=constraints.positive)
    problem = MaximumEntropy(flow, lambda x: x.squeeze(-1), 2.0)
    result = solve(problem, steps=50, lr=0.01, batch_size=256)
    assert result.entropy == pytest.approx(1 + math.log(2), abs=0.02 + 4 * result.entropy_error)
    assert float(result.multipliers) == pytest.approx(0.5, abs=0.05)
    x = torch.tensor([[0.2], [1.0], [4.0]])
    expected = dist.Exponential(0.5).log_prob(x).squeeze(-1)
    torch.testing.assert_close(flow.log_prob(x).detach(), expected, atol=0.15, rtol=0)


def test_a_double_well_on_a_mixture():
    """exp(4 x^2 - x^4), whose moments and entropy are known by quadrature."""

    def statistics(x):
        return torch.cat([x, x.square(), x**4], -1)

    flow = spline_flow(1, 4, num_layers=1)
    problem = MaximumEntropy(flow, statistics, [0.0, 1.835342, 3.920683])
    result = solve(problem, steps=60, rounds=20, lr=0.005, batch_size=256)
    assert result.entropy == pytest.approx(0.872318, abs=0.02)
    torch.testing.assert_close(result.multipliers, torch.tensor([0.0, -4, 1]), atol=0.2, rtol=0)
    x = torch.tensor([[-1.4], [0.0], [1.4]])
    left, middle, right = flow.log_prob(x).detach().tolist()
    assert left == pytest.approx(right, abs=0.2)
    # Few draws of a short search fall between the wells.
    assert left - middle == pytest.approx(4.0, abs=1.5)


def test_means_of_logarithms_on_the_simplex_give_a_dirichlet():
    flow = spline_flow(2, num_layers=1, support=constraints.simplex, bins=8, hidden_dims=(16,))
    targets = torch.digamma(torch.tensor([1.0, 2.0, 3.0])) - torch.digamma(torch.tensor(6.0))
    problem = MaximumEntropy(flow, torch.log, targets)
    result = solve(problem, steps=30, rounds=12, batch_size=256)
    assert result.entropy == pytest.approx(-1.244345, abs=0.02)
    torch.testing.assert_close(result.multipliers, torch.tensor([0.0, -1, -2]), atol=0.15, rtol=0)
    assert constraints.simplex.check(flow.sample((100,))).all()


# ---- inequalities and redundancy --------------------------------------------------------------


def test_of_two_inequalities_one_binds():
    """The second moment stops the law from spreading; the fourth never comes near its bound."""
    problem = MaximumEntropy(
        GaussianMixture(1, 1),
        lambda x: x.squeeze(-1),
        1.0,
        inequalities=lambda x: torch.cat([x.square(), x**4], -1),
        bounds=[5.0, 500.0],
        names=["mean", "second", "fourth"],
    )
    result = solve(problem, rounds=20)
    assert holds(result)
    assert result.entropy == pytest.approx(NORMAL_ENTROPY, abs=0.02)
    torch.testing.assert_close(
        result.multipliers, torch.tensor([-0.25, 0.125, 0.0]), atol=0.02, rtol=0
    )
    assert result.multipliers[2] == 0
    assert result.violations[2] == 0
    assert result.means[2] < 100


def test_inequalities_alone():
    problem = MaximumEntropy(GaussianMixture(1, 1), inequalities=moments, bounds=[1.0, 1.0])
    result = solve(problem)
    assert holds(result)
    # With a mean of zero there is the most room for the second moment.
    assert result.entropy == pytest.approx(0.5 * math.log(2 * math.pi * math.e), abs=0.02)
    torch.testing.assert_close(result.multipliers, torch.tensor([0.0, 0.5]), atol=0.05, rtol=0)


def test_constraints_that_depend_on_each_other():
    """Their multipliers are not unique, but the law is, and what they sum to."""

    def statistics(x):
        return torch.cat([x, x.square(), x + x.square()], -1)

    result = solve(normal((1.0, 5.0, 6.0), statistics), rounds=20)
    assert result.entropy == pytest.approx(NORMAL_ENTROPY, abs=0.02)
    assert holds(result)
    a, b, c = result.multipliers.tolist()
    assert a + c == pytest.approx(-0.25, abs=0.03)
    assert b + c == pytest.approx(0.125, abs=0.02)


def test_a_statistic_that_is_constant_and_right():
    """Such as the sum over a simplex: it holds exactly, and has no price."""

    def statistics(x):
        return torch.cat([moments(x), torch.ones_like(x)], -1)

    result = solve(normal((1.0, 5.0, 1.0), statistics), rounds=20)
    assert holds(result)
    assert result.entropy == pytest.approx(NORMAL_ENTROPY, abs=0.02)


@pytest.mark.parametrize(("centre", "dtype"), [(1e4, torch.float32), (0.0, torch.float64)])
def test_targets_far_away(centre, dtype):
    """Of moments about zero, correlations differ from one by a part in 1e8."""
    targets = torch.tensor([1e4, (1e4 - centre) ** 2 + 1.0], dtype=torch.float64).to(dtype)

    def statistics(x):
        return torch.cat([x, (x - centre).square()], -1)

    problem = MaximumEntropy(GaussianMixture(1, 2).to(dtype), statistics, targets)
    with torch.inference_mode():
        solve(problem, lr=3e-3, steps=100, rounds=12)
    x = problem.distribution.sample((20_000,)).double()
    assert abs(x.mean() - 1e4) < 0.1
    assert abs(x.std() - 1) < 0.15  # which a test of the second moment about zero hardly sees


# ---- what has no answer -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "targets", "worst"),
    [
        (moments, [0.0, -1.0], "statistic 1"),
        (moments, [1e4, 0.99e8], "statistic"),  # in no statistic alone far off
        (lambda x: torch.cat([moments(x), torch.sigmoid(9 * x)], -1), [0.0, 1.0, 1.2],
         "statistic 2"),
    ],
    ids=["a negative second moment", "a negative variance", "a probability above one"],
)  # fmt: skip
def test_targets_that_nothing_meets(function, targets, worst):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        with pytest.raises(InfeasibleError, match=worst) as error:
            solve(normal(targets, function), rounds=40, steps=30)
    result = error.value.result
    assert result.outcome == "infeasible"
    assert not result.feasible
    assert isinstance(error.value, ValueError)
    # The round of least violation, measured alike whatever the spread of the statistics then is.
    sizes = torch.stack([r.violations.norm() for r in result.rounds])
    assert sizes[result.best_round] < sizes.min() + 0.1


def test_steps_that_are_too_few_are_told_from_targets_that_nothing_meets():
    """These can be met, but a round of two small steps hardly moves the law."""
    with pytest.raises(InfeasibleError, match=r"2 steps a round are too few.*Raise steps or lr"):
        solve(normal((3.0, 10.0)), rounds=20, steps=2, lr=5e-3, start=None)
    result = solve(normal((3.0, 10.0)), rounds=4, steps=40, lr=0.02, start=None)
    assert result.outcome == "finished"
    assert result.falling
    assert "raise rounds or steps" in str(result)
    done = solve(normal())
    assert not done.falling


def test_a_direction_that_is_left_free_is_warned_of():
    model = GaussianMixture(2, 1)
    problem = MaximumEntropy(
        model, lambda x: torch.cat([x[:, :1], x[:, :1].square()], -1), [0.0, 1.0]
    )
    with pytest.warns(UserWarning, match=r"entropy has risen.*coordinate 1"):
        result = solve(problem, rounds=12, lr=0.05)
    assert result.outcome == "finished"


def test_a_bounded_problem_is_not_warned_of():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = solve(normal())
    assert result.outcome == "converged"
    # Penalties stay where constraints hold.
    for before, after in itertools.pairwise(result.rounds):
        assert before.penalty <= after.penalty <= 16.0
        if before.feasible:
            assert after.penalty == before.penalty


# ---- the search -------------------------------------------------------------------------------


class Spoiling(torch.optim.Adam):
    """Notes the parameters at the end of every round, and spoils them in the late ones."""

    steps, good_rounds = 40, 10

    def __init__(self, parameters, lr):
        super().__init__(parameters, lr=lr)
        self.own = self.param_groups[0]["params"]
        self.count, self.ends = 0, []
        Spoiling.last = self

    def step(self, closure=None):
        super().step()
        self.count += 1
        if self.count > self.steps * self.good_rounds:
            with torch.no_grad():
                for p in self.own:
                    p.add_(0.3)
        if self.count % self.steps == 0:
            self.ends.append({id(p): p.detach().clone() for p in self.own})


def test_the_best_feasible_round_is_what_is_returned():
    problem = normal()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        result = solve(problem, rounds=12, steps=40, tolerance=1e-9, optimizer=Spoiling)
    assert len(result.rounds) == 12
    assert not result.rounds[-1].feasible
    best = result.rounds[result.best_round]
    assert best.feasible
    end = Spoiling.last.ends[result.best_round]
    assert all(torch.equal(p, end[id(p)]) for p in problem.distribution.parameters())
    assert result.distribution is problem.distribution
    assert result.entropy == pytest.approx(best.entropy, abs=5 * result.entropy_error)
    assert result.entropy == pytest.approx(NORMAL_ENTROPY, abs=0.05)


def test_penalties_grow_where_violations_stay_and_stop_at_their_cap():
    """Steps this small leave the violation, of a tenth of a deviation, as it was."""
    model = GaussianMixture(1, 1)
    problem = MaximumEntropy(model, lambda x: x.squeeze(-1), 0.08)
    result = solve(problem, rounds=4, steps=1, lr=1e-12, penalty=3.0, growth=2.0, max_penalty=10.0)
    assert not any(r.feasible for r in result.rounds)
    # The first of two violations to compare is that of the first round.
    assert [r.penalty for r in result.rounds] == [3.0, 3.0, 6.0, 10.0]


def state_after(seed, **settings):
    torch.manual_seed(1)  # of the parameters
    problem = normal()
    before = torch.get_rng_state()
    result = solve(problem, rounds=2, steps=10, seed=seed, **settings)
    assert torch.equal(torch.get_rng_state(), before) or seed is None
    return result.entropies, problem.distribution.state_dict()


def test_seeds_reproduce_a_search():
    entropies, state = state_after(3)
    again, same = state_after(3)
    assert again == entropies
    assert all(torch.equal(same[name], value) for name, value in state.items())
    assert state_after(4)[0] != entropies
    torch.manual_seed(5)
    assert state_after(None)[0] != entropies


def test_where_the_search_starts():
    law = GaussianMixture(1, 1)
    with torch.no_grad():
        law.loc.fill_(40.0)
    still = {"steps": 1, "rounds": 1, "lr": 1e-12}
    problem = MaximumEntropy(law, lambda x: x.squeeze(-1), 0.0)
    solve(problem, start=None, **still)
    assert law.mean.item() == pytest.approx(40.0)
    # What was set or trained before is left alone by default,
    law.initialized.fill_(True)
    solve(problem, **still)
    assert law.mean.item() == pytest.approx(40.0)
    # else the search starts from a standard normal,
    law.initialized.fill_(False)
    solve(problem, **still)
    assert law.mean.item() == pytest.approx(0.0, abs=0.1)
    # or from what it is given.
    law.initialized.fill_(False)
    solve(problem, start=dist.Normal(torch.tensor([3.0]), 0.5).to_event(1), **still)
    assert law.mean.item() == pytest.approx(3.0, abs=0.1)


class Watched(RelaxedGaussianMixture):
    """Notes how far it is told that training has come."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.seen = []

    def anneal(self, progress):
        self.seen.append(progress)
        super().anneal(progress)


def test_schedules_come_to_their_end():
    model = Watched(1, 2, (1.0, 0.01), num_inner=16)
    problem = MaximumEntropy(model, moments, [0.0, 4.0])
    assert not model.seen
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it is not long enough to settle
        result = solve(problem, rounds=8, steps=10, batch_size=64)
    assert len(result.rounds) > 4
    assert model.seen[0] == 0.0
    assert model.seen == sorted(model.seen)
    assert model.seen[-1] == 1.0


def test_stratified_and_pathwise_searches_come_to_the_same():
    entropies = []
    for gradient in ("stratified", "pathwise"):
        problem = MaximumEntropy(GaussianMixture(1, 2), moments, [1.0, 5.0], gradient=gradient)
        entropies.append(solve(problem, steps=40, batch_size=256).entropy)
    assert entropies == pytest.approx([NORMAL_ENTROPY] * 2, abs=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_precisions(dtype):
    model = GaussianMixture(1, 1).to(dtype)
    result = solve(MaximumEntropy(model, moments, [1.0, 5.0]), rounds=2, steps=5)
    assert result.means.dtype == result.multipliers.dtype == dtype
    assert next(model.parameters()).dtype == dtype


# ---- many targets -----------------------------------------------------------------------------


def test_many_targets_are_solved_from_their_neighbours():
    """Normals of given mean and second moment; one that no law has."""
    torch.manual_seed(0)
    law = GaussianMixture(1, 1)
    problem = MaximumEntropy(law, lambda x: torch.cat([x, x.square()], -1), [0.0, 1.0])
    before = law.mean.detach().clone()
    targets = torch.tensor([[2.0, 7.0], [0.0, 1.0], [1.0, 3.0], [1.5, 2.0]])
    results = problem.solve_many(targets, seed=0, rounds=9, steps=40, lr=0.03, progress_bar=False)
    assert torch.equal(law.mean, before)
    for target, result in zip(targets, results, strict=True):
        variance = float(target[1] - target[0].square())
        if variance < 0:
            assert not result.feasible
            continue
        torch.testing.assert_close(result.levels, target)
        assert result.entropy == pytest.approx(
            0.5 * math.log(2 * math.pi * math.e * variance), abs=0.05
        )
        assert float(result.distribution.mean.detach()) == pytest.approx(
            float(target[0]), abs=0.1 * variance**0.5
        )
    assert len({id(result.distribution) for result in results}) == 4
    with pytest.raises(ValueError, match=r"shape \(B, 2\)"):
        problem.solve_many([1.0, 2.0])
