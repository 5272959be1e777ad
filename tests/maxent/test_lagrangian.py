"""The parts of a search: gradients without bias, penalties and multipliers."""

import itertools
import math

import pyro.distributions.transforms as transforms
import pytest
import torch
from torch.distributions import Normal

from pyromix import Flow, GaussianMixture, RelaxedGaussianMixture
from pyromix.maxent.draws import Draws, make_sampler, sample_and_score
from pyromix.maxent.expectations import Expectations
from pyromix.maxent.lagrangian import AugmentedLagrangian, squared_violation

TARGETS = torch.tensor([0.5, 1.0], dtype=torch.float64)
METRIC = torch.tensor([[2.0, -0.3], [-0.3, 0.7]], dtype=torch.float64)


def statistics(x):
    return torch.cat([x, x.square()], -1)


def lagrangian(function=statistics, targets=TARGETS, inequalities=None, bounds=None, **options):
    expectations = Expectations(function, targets, inequalities, bounds, None, TARGETS)
    options = {"penalty": 3.0, "growth": 4.0, "max_penalty": 50.0, "reduction": 0.25, **options}
    return AugmentedLagrangian(expectations, **options)


def leaves():
    return torch.tensor(0.8).requires_grad_(), torch.tensor(1.3).requires_grad_()


def violation_of(loc, scale):
    """Of a normal law, in closed form."""
    return torch.stack([loc, loc.square() + scale.square()]) - TARGETS


def draw(loc, scale, count):
    x = (loc + scale * torch.randn(count)).unsqueeze(-1)
    log_prob = Normal(loc, scale).log_prob(x.squeeze(-1))
    return Draws(x, torch.full((count,), 1 / count), log_prob)


def standard_errors_off(values, expected):
    """How many standard errors the mean over the first dimension is away."""
    return (values.mean(0) - expected).abs() / (values.std(0) / math.sqrt(len(values)))


# ---- squared violations -----------------------------------------------------------------------


def test_squared_violations_of_two_halves_are_unbiased_and_of_one_batch_are_not():
    size, rows = 8, {"halves": [], "one": []}
    for _ in range(1500):
        own = leaves()
        first, second = (statistics(draw(*own, size).x).mean(0) - TARGETS for _ in range(2))
        both = (first + second) / 2
        for name, pair in (("halves", (first, second)), ("one", (both, both))):
            value = squared_violation(*pair, METRIC)
            gradient = torch.autograd.grad(value, own, retain_graph=True)
            rows[name].append(torch.stack([value.detach(), *gradient]))
    own = leaves()
    violation = violation_of(*own)
    exact = violation @ METRIC @ violation
    expected = torch.stack([exact.detach(), *torch.autograd.grad(exact, own)])
    off = {name: standard_errors_off(torch.stack(row), expected) for name, row in rows.items()}
    assert (off["halves"] < 5).all()
    assert off["one"][0] > 7  # by the variance of the mean
    assert off["one"][2] > 7  # and its gradient in the scale


@pytest.mark.parametrize("penalty", [0.5, 20.0])
def test_the_lagrangians_gradient_is_unbiased(penalty):
    part = lagrangian(penalty=penalty)
    part.multipliers, part.metric = torch.tensor([0.3, -0.2]), METRIC
    rows = []
    for _ in range(1500):
        own = leaves()
        halves = [draw(*own, 8) for _ in range(2)]
        loss = part.loss(*((d, statistics(d.x)) for d in halves))
        rows.append(torch.stack(torch.autograd.grad(loss, own)))
    own = leaves()
    violation = violation_of(*own)
    exact = -Normal(*own).entropy() + part.multipliers @ violation
    exact = exact + 0.5 * penalty * violation @ METRIC @ violation
    expected = torch.stack(torch.autograd.grad(exact, own))
    assert (standard_errors_off(torch.stack(rows), expected) < 5).all()


def test_weighted_draws_in_the_lagrangian():
    """Only their weighted means count."""
    part, own = lagrangian(), leaves()
    halves = [draw(*own, 6) for _ in range(2)]
    plain = part.loss(*((d, statistics(d.x)) for d in halves))
    doubled = [
        Draws(torch.cat([d.x, d.x + 7]), torch.cat([d.weight, 0 * d.weight]), d.log_prob.repeat(2))
        for d in halves
    ]
    part = lagrangian()
    weighted = part.loss(*((d, statistics(d.x)) for d in doubled))
    torch.testing.assert_close(weighted, plain)


# ---- draws ------------------------------------------------------------------------------------


def mixtures():
    torch.manual_seed(0)
    plain = GaussianMixture(2, 3)
    relaxed = RelaxedGaussianMixture(2, 3, 0.7, num_inner=30)
    parts = [transforms.affine_coupling(2, [4]), transforms.AffineTransform(0.5, 2.0)]
    for model in (plain, relaxed.mixture):
        with torch.no_grad():
            model.loc.mul_(0.7)
    return {"mixture": plain, "flow": Flow(plain, parts)}, {
        "relaxed": relaxed,
        "flow-relaxed": Flow(relaxed, parts),
    }


@pytest.mark.parametrize("name", ["mixture", "flow"])
def test_pathwise_and_stratified_gradients_agree_in_the_mean(name):
    law = mixtures()[0][name]
    parameters = list(law.parameters())
    direction = [torch.randn_like(p) for p in parameters]

    def estimates(gradient):
        sampler, rows = make_sampler(law, gradient), []
        for _ in range(300):
            (draws,) = sampler(60)
            values = torch.stack([torch.sin(draws.x).sum(-1), draws.log_prob], -1)
            means = draws.mean(values)
            row = list(means.detach())
            for mean in means:
                g = torch.autograd.grad(mean, parameters, retain_graph=True)
                row.append(sum((a * b).sum() for a, b in zip(g, direction, strict=True)))
            rows.append(torch.stack(row))
        return torch.stack(rows)

    first, second = estimates("pathwise"), estimates("stratified")
    assert (standard_errors_off(first - second, 0.0) < 5).all()
    # The choice of a component adds no noise.
    assert (second.std(0) < first.std(0)).all()


@pytest.mark.parametrize("gradient", ["pathwise", "stratified", "auto"])
@pytest.mark.parametrize("name", ["mixture", "flow", "relaxed", "flow-relaxed"])
def test_sets_of_draws(name, gradient):
    plain, relaxed = mixtures()
    law = {**plain, **relaxed}[name]
    sets = make_sampler(law, gradient)(40, num_sets=3)
    assert len(sets) == 3
    for draws in sets:
        assert (draws.x.shape, draws.log_prob.shape) == ((40, 2), (40,))
        torch.testing.assert_close(draws.weight.sum(), torch.tensor(1.0), atol=0.4, rtol=0)
        torch.testing.assert_close(draws.log_prob, law.log_prob(draws.x))
        torch.testing.assert_close(draws.mean(draws.x), draws.weight @ draws.x)
        even = torch.allclose(draws.weight, torch.full((40,), 1 / 40))
        assert even == (gradient == "pathwise") or name == "mixture"
    for one, other in itertools.combinations(sets, 2):
        assert not torch.isclose(one.x, other.x).any()


def test_draws_are_scored_in_parts_as_in_one():
    law = mixtures()[0]["flow"]
    x, log_prob = sample_and_score(law, 10_003)
    assert (x.shape, log_prob.shape) == ((10_003, 2), (10_003,))
    assert not log_prob.requires_grad
    torch.testing.assert_close(log_prob, law.log_prob(x).detach())


# ---- multipliers and penalties ----------------------------------------------------------------


def test_the_metric_is_the_inverse_covariance():
    part, x = lagrangian(), torch.randn(50_000, 1)
    part.measure(statistics(x), torch.zeros(len(x)))
    covariance = torch.cov(statistics(x).mT)
    torch.testing.assert_close(part.metric @ covariance, torch.eye(2), atol=1e-3, rtol=0)


def test_the_metric_of_dependent_and_constant_statistics_is_finite():
    def dependent(x):
        return torch.cat([x, 2 * x, torch.ones_like(x)], -1)

    part, x = lagrangian(dependent, torch.tensor([1.0, 2.0, 1.0])), torch.randn(1000, 1)
    part.measure(dependent(x), torch.zeros(len(x)))
    assert part.metric.isfinite().all()
    torch.testing.assert_close(part.metric, part.metric.mT)
    assert (torch.linalg.eigvalsh(part.metric) > 0).all()


def batches(size, count=200, m=2):
    """Violations of batches about a mean violation."""
    return size + 0.05 * torch.randn(count, m)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([1.0, 0.9, 0.8], [3.0, 12.0, 48.0]),  # comes down too slowly
        ([1.0, 1.0, 1.0, 1.0], [3.0, 12.0, 48.0, 50.0]),  # up to the cap
        ([1.0, 0.1, 0.01], [3.0, 3.0, 3.0]),  # fast enough
    ],
)
def test_penalties_grow_when_the_violation_stays(sizes, expected):
    part, generator = lagrangian(), torch.Generator().manual_seed(0)
    part.metric = METRIC
    got = []
    for size in sizes:
        part.grow(batches(size), generator)
        got.append(part.penalty)
    assert got == expected


def test_penalties_grow_with_the_probability_that_the_test_gives():
    """A violation at just the share that is asked leaves the test in doubt."""
    generator, grown, p_values = torch.Generator().manual_seed(0), [], []
    for _ in range(400):
        part = lagrangian()
        part.grow(batches(1.0), generator)
        p_values.append(part.grow(batches(0.25), generator))
        grown.append(float(part.penalty > 3.0))
    difference = torch.tensor(grown) - (1 - torch.tensor(p_values))
    assert standard_errors_off(difference, 0.0) < 5
    assert 0.1 < torch.tensor(grown).mean() < 0.9


def test_a_round_moves_multipliers_along_the_violation():
    """Up to where penalty and multipliers price it alike."""
    part = lagrangian(penalty=2.0)
    part.metric = METRIC
    part.update(TARGETS + torch.tensor([0.01, -0.02]))
    expected = 2.0 * METRIC @ torch.tensor([0.01, -0.02])
    torch.testing.assert_close(part.multipliers, expected)


def test_multipliers_of_inequalities_are_never_negative():
    part = lagrangian(None, None, lambda x: x.square(), torch.tensor([1.0]))
    part.measure(torch.randn(1000, 1), torch.zeros(1000))
    for mean in (1.2, 1.3, 0.9, 0.5, 0.2, 0.1, 0.1):
        part.update(torch.tensor([mean]))
        assert part.multipliers >= 0
        assert (part.multipliers > 0) or mean < 1
    assert part.multipliers == 0
