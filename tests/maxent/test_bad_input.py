"""Whatever a user passes wrongly: a ValueError that says what was expected."""

import math

import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import transforms
from torch import nn
from torch.distributions import constraints

from pyromix import Flow, Fold, GaussianMixture, MaximumEntropy, MixtureOfNormals
from pyromix.core.module import DistributionModule
from pyromix.maxent import spline_flow
from pyromix.training.trainer import NonFiniteLossError


def moments(x):
    return torch.cat([x, x.square()], -1)


def problem(distribution=None, function=moments, targets=(0.0, 1.0), **options):
    distribution = GaussianMixture(1, 1) if distribution is None else distribution
    targets = list(targets) if isinstance(targets, tuple) else targets
    return MaximumEntropy(distribution, function, targets, **options)


def solve(given=None, **settings):
    given = problem() if given is None else given
    return given.solve(
        **{"rounds": 1, "steps": 2, "start_steps": 1, "progress_bar": False, **settings}
    )


def plain():
    return MixtureOfNormals(torch.zeros(2), torch.zeros(2, 1), torch.ones(2, 1))


def batched():
    return Flow(
        dist.Normal(nn.Parameter(torch.zeros(3, 1)), 1.0).to_event(1), transforms.Spline(1)
    )


def inference():
    with torch.inference_mode():
        MaximumEntropy(GaussianMixture(1, 1), moments, [0.0, 1.0])


BAD = [
    # distributions
    (lambda: problem(plain()), "parameters of its own.*got MixtureOfNormals"),
    (lambda: problem(nn.Linear(1, 1)), "Expected a distribution.*got Linear"),
    (lambda: problem(3), "got int"),
    (lambda: problem(GaussianMixture(1, 1).requires_grad_(False)), "parameters of its own"),
    (lambda: problem(batched()), r"without batch dimensions, got batch shape \(3,\)"),
    (lambda: problem(GaussianMixture(1, 2, context_dim=1)), "context"),
    (
        lambda: problem(Flow(GaussianMixture(1, 1), [Fold()]), gradient="pathwise"),
        "has_rsample=True.*got Flow",
    ),
    (lambda: problem(gradient="reinforce"), "got 'reinforce'"),
    (
        lambda: problem(
            Flow(dist.Normal(torch.zeros(1), 1.0).to_event(1), transforms.Spline(1)),
            gradient="stratified",
        ),
        "mixture, or a Flow on one",
    ),
    # statistics and targets
    (lambda: MaximumEntropy(GaussianMixture(1, 1)), "statistics with targets, or inequalities"),
    (lambda: MaximumEntropy(GaussianMixture(1, 1), moments), "statistics and targets together"),
    (lambda: problem(function=None), "statistics and targets together"),
    (lambda: problem(inequalities=moments), "inequalities and bounds together"),
    (lambda: problem(bounds=[1.0, 2.0]), "inequalities and bounds together"),
    (lambda: problem(function=3.0), "statistics to be a function of draws, got float"),
    (lambda: problem(inequalities="x", bounds=1.0), "inequalities to be a function"),
    (lambda: problem(targets="one"), "targets to be numbers"),
    (lambda: problem(targets=[math.nan, 1.0]), "targets to be finite numbers"),
    (lambda: problem(targets=[math.inf, 1.0]), "targets to be finite numbers"),
    (lambda: problem(targets=torch.zeros(2, 1)), r"targets to be finite numbers, shape \(m,\)"),
    (lambda: problem(targets=[]), "targets to be finite numbers"),
    (lambda: problem(targets=[0.0, 1.0, 2.0]), r"to have shape \(16, 3\).*got \(16, 2\)"),
    (lambda: problem(targets=0.0), r"shape \(16, 1\) or \(16,\).*got \(16, 2\)"),
    (lambda: problem(function=lambda x: x.mean(0), targets=0.0), r"got \(1,"),
    (lambda: problem(function=lambda x: x.mean(), targets=0.0), r"got \(\)"),
    (lambda: problem(function=lambda x: 1.0, targets=0.0), "got float"),
    (lambda: problem(function=lambda x: moments(x).unsqueeze(0)), r"got \(1, 16, 2\)"),
    (lambda: problem(inequalities=moments, bounds=1.0), "inequalities of draws.*the bounds"),
    (lambda: problem(function=lambda x: moments(x).log()), r"finite statistics.*'statistic 0'"),
    (lambda: problem(function=lambda x: moments(x) / 0, names=["a", "b"]), r"infinity.*'a'"),
    (
        lambda: problem(function=lambda x: 1.0 * (x > 0), targets=0.5, gradient="pathwise"),
        "gradient in the draws",
    ),
    (
        lambda: problem(function=lambda x: 1.0 * (x > 0), targets=0.5),
        "gradient in the draws.*'statistic 0'",
    ),
    (
        lambda: problem(
            function=lambda x: torch.cat([x, 1.0 * (x > 0), x.round(), 0 * x], -1),
            targets=[0.0, 0.5, 0.0, 0.0],
            names=["a", "b", "c", "d"],
        ),
        "indicators and counts have: 'b', 'c'. Use",
    ),
    (
        lambda: problem(inequalities=lambda x: 1.0 * (x > 0), bounds=0.5),
        "indicators and counts have: 'inequality 0'. Use",
    ),
    (inference, "built under torch.inference_mode"),
    (lambda: problem(names=["one"]), "Expected 2 names"),
    (lambda: problem(names="ab"), "Expected 2 names"),
    # settings
    (lambda: solve(rounds=0), "rounds to be an integer of at least 1, got 0"),
    (lambda: solve(steps=0), "steps to be an integer of at least 1, got 0"),
    (lambda: solve(start_steps=-1), "start_steps"),
    (lambda: solve(batch_size=1), "batch_size to be an integer of at least 2, got 1"),
    (lambda: solve(batch_size=8.0), "batch_size to be an integer of at least 2, got 8.0"),
    (lambda: solve(lr=0.0), "lr to be positive, got 0.0"),
    (lambda: solve(lr=math.inf), "lr to be a finite number, got inf"),
    (lambda: solve(penalty=0.0), "penalty to be positive, got 0.0"),
    (lambda: solve(penalty=5.0, max_penalty=2.0), "max_penalty of at least penalty"),
    (lambda: solve(max_penalty=math.nan), "max_penalty of at least penalty"),
    (lambda: solve(penalty=math.nan), "penalty to be a finite number, got nan"),
    (lambda: solve(growth=0.5), "growth to be a finite number, at least 1, got 0.5"),
    (lambda: solve(reduction=0.0), "reduction to be positive, got 0.0"),
    (lambda: solve(reduction=1.5), "reduction to be at most 1, got 1.5"),
    (lambda: solve(tolerance=-1.0), "tolerance to be positive, got -1.0"),
    (lambda: solve(start="normal"), "start to be 'auto', None or a law, got 'normal'"),
    (lambda: solve(start=3.0), "start to be"),
    # flows
    (lambda: spline_flow(0), "dim to be an integer of at least 1, got 0"),
    (lambda: spline_flow(1, 2, base=GaussianMixture(1, 2)), "Leave these out"),
    (lambda: spline_flow(2, base=GaussianMixture(1, 2)), r"length 2.*event shape \(1,\)"),
    (lambda: spline_flow(2, 0), "num_components to be an integer of at least 1, got 0"),
    (lambda: spline_flow(2, num_layers=-1), "num_layers"),
    (lambda: spline_flow(2, temperatures=0.0), "positive temperature"),
    (lambda: spline_flow(2, support=dist.constraints.sphere), "PyTorch has a bijection to"),
]


@pytest.mark.parametrize(("call", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_statistics_that_turn_bad_in_the_course_of_the_search():
    """The error leaves the distribution as trainable as it was."""
    calls, law = [], GaussianMixture(1, 2)
    law.loc.requires_grad_(False)

    def worn(x):
        calls.append(1)
        return moments(x) / (1 if len(calls) < 4 else math.nan)

    with pytest.raises(ValueError, match="finite statistics"):
        solve(problem(law, worn, targets=(9.0, 100.0)), steps=10)
    trainable = {name for name, p in law.named_parameters() if p.requires_grad}
    assert trainable == {name for name, _ in law.named_parameters()} - {"loc"}


def test_gradients_that_are_not_finite():
    """The root of zero is fine, but not its gradient."""

    def roots(x):
        return (x + (0 * x).sqrt()).squeeze(-1)

    with pytest.raises(NonFiniteLossError, match=r"gradient is not finite at step 1"):
        solve(problem(function=roots, targets=0.5))


def test_numbers_and_other_forms_of_targets():
    for targets in (1, 1.0, [1.0], torch.tensor(1.0), torch.tensor([1]), torch.ones(1).float()):
        given = problem(function=lambda x: x.squeeze(-1), targets=targets)
        assert torch.equal(given.expectations.levels, torch.ones(1))


def test_one_column_or_none():
    one = problem(function=lambda x: x, targets=1.0)
    none = problem(function=lambda x: x.squeeze(-1), targets=1.0)
    x = torch.randn(5, 1)
    assert torch.equal(one.expectations.values(x), none.expectations.values(x))


def test_equalities_come_first():
    given = problem(inequalities=lambda x: x**3, bounds=7.0)
    assert given.expectations.levels.tolist() == [0.0, 1.0, 7.0]
    assert given.expectations.names == ("statistic 0", "statistic 1", "inequality 0")
    x = torch.randn(4, 1)
    expected = torch.cat([moments(x), x**3], -1)
    assert torch.equal(given.expectations.values(x), expected)


class Shifted(DistributionModule):
    """A law of a user's own, which can only be drawn from and scored."""

    support = constraints.real_vector
    has_rsample = True

    def __init__(self):
        super().__init__(event_shape=(1,))
        self.loc = nn.Parameter(torch.zeros(1))
        self.log_scale = nn.Parameter(torch.zeros(1))

    def rsample(self, sample_shape=()):
        shape = self._extended_shape(sample_shape)
        return self.loc + self.log_scale.exp() * torch.randn(shape)

    def log_prob(self, value):
        return dist.Normal(self.loc, self.log_scale.exp()).log_prob(value).sum(-1)


@pytest.mark.parametrize("pathwise", [True, False])
def test_a_law_of_a_users_own(pathwise):
    """With pathwise gradients, or by the score function."""
    law = Shifted()
    law.has_rsample = pathwise
    result = solve(
        problem(law, targets=(1.0, 5.0)), rounds=12, steps=50, lr=0.02, start_steps=20, seed=0
    )
    assert result.entropy == pytest.approx(0.5 * math.log(8 * math.pi * math.e), abs=0.03)
