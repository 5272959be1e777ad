"""Priors from statements, against closed forms and quadratures of their own."""

import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from scipy.optimize import minimize
from torch.distributions import biject_to, constraints

from pyromix.maxent import (
    elicit,
    expectation,
    interval,
    mean,
    probability,
    quantile,
    sd,
)

POSITIVE, UNIT, LINE = constraints.positive, constraints.unit_interval, constraints.real
RATE, SHARE = interval(0.9, 2, 5), [quantile(0.5, 0.3), quantile(0.9, 0.6)]
BOTH = {"rate": POSITIVE, "share": UNIT}


def law_of(statements, support=LINE, **options):
    return elicit({"x": statements}, support={"x": support}, **options).blocks[0].law


# ---- one variable -----------------------------------------------------------------------------

CLOSED_FORMS = {
    "normal": ([mean(1.0), sd(2.0)], LINE, lambda: dist.Normal(1.0, 2.0)),
    "far away": ([mean(1e4), sd(0.5)], LINE, lambda: dist.Normal(1e4, 0.5)),
    "exponential": ([mean(2.0)], POSITIVE, lambda: dist.Exponential(0.5)),
    "uniform": ([], constraints.interval(2.0, 5.0), lambda: dist.Uniform(2.0, 5.0)),
    "laplace": ([expectation(torch.abs, 1.5)], LINE, lambda: dist.Laplace(0.0, 1.5)),
    "gamma": (
        [mean(0.75), expectation(torch.log, float(torch.tensor(1.5).digamma()) - math.log(2))],
        POSITIVE,
        lambda: dist.Gamma(1.5, 2.0),
    ),
}


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_moments_give_the_laws_of_the_textbook(name):
    statements, support, make = CLOSED_FORMS[name]
    expected = make()
    law = law_of(statements, support)
    u = torch.tensor([1e-4, 0.1, 0.5, 0.9, 0.999])
    x = law.icdf(u)
    torch.testing.assert_close(law.log_prob(x), expected.log_prob(x), atol=1e-5, rtol=0)
    torch.testing.assert_close(law.cdf(x), u, atol=1e-9, rtol=0)
    if name != "gamma":
        torch.testing.assert_close(expected.cdf(x), u, atol=1e-7, rtol=0)
    assert float(law.entropy()) == pytest.approx(float(expected.entropy()), abs=1e-6)


def test_quantiles_give_pieces_of_uniform_laws():
    """On a bounded support no other law with the same quantiles has as much entropy."""
    law = law_of(SHARE, UNIT)
    heights = torch.tensor([0.5 / 0.3, 0.4 / 0.3, 0.1 / 0.4])
    got = law.log_prob(torch.tensor([0.1, 0.29, 0.31, 0.59, 0.61, 0.99])).exp()
    torch.testing.assert_close(got, heights.repeat_interleave(2), atol=1e-8, rtol=0)
    x = law.sample((50_000,))
    for p, value in ((0.5, 0.3), (0.9, 0.6)):
        assert abs((x < value).double().mean() - p) < 5 * math.sqrt(p * (1 - p) / 50_000)
    entropy = -sum(p * math.log(h) for p, h in zip((0.5, 0.4, 0.1), heights.tolist(), strict=True))
    assert float(law.entropy()) == pytest.approx(entropy, abs=1e-9)


def test_steps_and_moments_together():
    """Against a dual that is minimised over a fine grid."""
    law = law_of([interval(0.5, -1.0, 0.5), mean(0.2), sd(1.5)])
    grid = torch.linspace(-15, 15, 60_001)
    t = torch.stack([((grid > -1) & (grid < 0.5)).double(), grid, (grid - 0.2) ** 2], -1)
    excess = t - torch.tensor([0.5, 0.2, 2.25])

    def dual(multipliers):
        log_p = -excess @ torch.from_numpy(multipliers)
        p = log_p.softmax(0)
        value = log_p.logsumexp(0) + math.log(30 / 60_000)
        return float(value), -(p @ excess).numpy()

    best = minimize(dual, [0.0, 0.0, 0.2], jac=True, method="BFGS", options={"gtol": 1e-7})
    assert float(law.entropy()) == pytest.approx(best.fun, abs=1e-3)  # the grid's own error
    torch.testing.assert_close(
        law.exponent.multipliers, torch.from_numpy(best.x), atol=2e-3, rtol=0
    )


# Of `preliz.maxent` 0.23, see benchmarks/maxent/elicit.py.
MEMBERS = {
    "gamma": (interval(0.9, 2, 5), POSITIVE, {}, 1.32734),
    "lognormal": (interval(0.9, 2, 5), POSITIVE, {"families": {"x": "lognormal"}}, 1.32935),
    "beta": (interval(0.9, 0.2, 0.5), UNIT, {"families": {"x": "beta"}}, -0.97881),
    "normal": (interval(0.9, -2, 5), LINE, {}, 2.17405),
    "on a half": (interval(0.9, -5, -2), constraints.less_than(0.0), {}, 1.32734),
}


@pytest.mark.parametrize("name", MEMBERS)
def test_open_tails_are_those_of_the_member_of_largest_entropy(name):
    statement, support, options, entropy = MEMBERS[name]
    law = law_of(statement, support, **options)
    assert float(law.entropy()) == pytest.approx(entropy, abs=2e-4)
    ends = law.cdf(torch.tensor([statement.low, statement.high]))
    assert float(ends[1] - ends[0]) == pytest.approx(0.9, abs=1e-7)
    assert "of largest entropy" in repr(law)


def test_more_quantiles_than_a_family_can_meet():
    """The law is a member times a step, and no other member is nearer to one with them."""
    wanted = {1.0: 0.05, 3.0: 0.5, 8.0: 0.95}
    law = law_of([quantile(p, value) for value, p in wanted.items()], POSITIVE)
    got = law.cdf(torch.tensor(list(wanted)))
    torch.testing.assert_close(got, torch.tensor(list(wanted.values())), atol=1e-8, rtol=0)
    shares = torch.tensor([0.05, 0.45, 0.45, 0.05])
    bounds = torch.tensor([1.0, 3.0, 8.0])

    def divergence(shape, rate):
        below = torch.special.gammainc(torch.as_tensor(shape), rate * bounds)
        cells = torch.cat([below[:1], below.diff(), 1 - below[-1:]])
        return float((shares * (shares / cells).log()).sum())

    shape, rate = float(law.base.concentration), float(law.base.rate)
    least = divergence(shape, rate)
    for a, b in ((1.02, 1.02), (0.98, 0.98), (1.02, 1.0), (1.0, 1.02), (0.98, 1.0), (1.0, 0.98)):
        assert divergence(a * shape, b * rate) > least


@pytest.mark.parametrize("smooth", [0.2, 1.0])
def test_smooth_laws_keep_every_quantile(smooth):
    law = law_of(SHARE, UNIT, smooth=smooth)
    got = law.cdf(torch.tensor([0.3, 0.6]))
    torch.testing.assert_close(got, torch.tensor([0.5, 0.9]), atol=1e-7, rtol=0)
    jump = law.log_prob(torch.tensor([0.3 - 1e-6, 0.3 + 1e-6])).diff().abs()
    assert jump < 1e-4
    assert float(law.entropy()) < float(law_of(SHARE, UNIT).entropy())
    x = torch.linspace(0.001, 0.999, 20_001)
    assert float(law.log_prob(x).exp().mean()) == pytest.approx(1.0, abs=0.003)


EVENTS = {
    "a half-line": (lambda x: x > 0.7, 0.3, 0.2),
    "two tails": (lambda x: (x - 0.5).abs() > 0.4123, 0.1754, 0.7),
    "a sliver": (lambda x: (x > 0.5) & (x < 0.501), 0.001, 0.3),
}


@pytest.mark.parametrize("name", EVENTS)
def test_events_give_pieces_of_uniform_laws(name):
    """Of an event of length a and probability p, the entropy is that of two uniform pieces."""
    event, length, p = EVENTS[name]
    law = law_of(probability(event, p), UNIT)
    entropy = -p * math.log(p / length) - (1 - p) * math.log((1 - p) / (1 - length))
    assert float(law.entropy()) == pytest.approx(entropy, abs=1e-9)
    x = torch.tensor([0.01, 0.2, 0.5005, 0.99])
    density = torch.where(event(x), p / length, (1 - p) / (1 - length))
    torch.testing.assert_close(law.log_prob(x).exp(), density, atol=1e-8, rtol=0)
    draws = law.sample((50_000,))
    assert abs(event(draws).double().mean() - p) < 5 * math.sqrt(p * (1 - p) / 50_000)


def test_a_member_with_a_pole():
    law = law_of([mean(1.0), sd(2.0)], POSITIVE, families={"x": "gamma"})
    assert float(law.base.concentration) == pytest.approx(0.25, abs=1e-8)
    expected = float(dist.Gamma(0.25, 0.25).entropy())
    assert float(law.entropy()) == pytest.approx(expected, abs=1e-6)


# ---- several variables ------------------------------------------------------------------------


def fine_dual(law, sizes, extents):
    """Entropy and multipliers by a grid of midpoints, with the law's own statistics."""
    axes = [
        low + (high - low) * (torch.arange(n) + 0.5) / n
        for n, (low, high) in zip(sizes, extents, strict=True)
    ]
    x = torch.cartesian_prod(*axes)
    log_weight = sum(math.log((b - a) / n) for n, (a, b) in zip(sizes, extents, strict=True))
    log_q = law.log_prob(x)
    p = (log_q + log_weight).exp()
    return x, p, -(p * log_q).sum()


@pytest.mark.parametrize("dim", [2, 3])
def test_normals_with_correlations(dim):
    """The law of largest entropy with all first and second moments is a normal."""
    names = "abc"[:dim]
    pairs = {("a", "b"): 0.7, ("b", "c"): -0.4, ("a", "c"): 0.1}
    pairs = {pair: rho for pair, rho in pairs.items() if set(pair) <= set(names)}
    statements = {n: [mean(float(i)), sd(1.0 + i)] for i, n in enumerate(names)}
    prior = elicit(statements, correlations=pairs)
    loc, scale = torch.arange(dim).double(), 1.0 + torch.arange(dim).double()
    matrix = torch.eye(dim)
    for (i, j), rho in pairs.items():
        i, j = names.index(i), names.index(j)
        matrix[i, j] = matrix[j, i] = rho
    expected = dist.MultivariateNormal(loc, matrix * scale * scale.unsqueeze(-1))
    assert float(prior.entropy()) == pytest.approx(float(expected.entropy()), abs=2e-3)
    x = prior.sample((20_000,))
    error = (prior.log_prob(x) - expected.log_prob(x)).abs()
    assert error.max() < 0.02
    torch.testing.assert_close(torch.corrcoef(x.mT), matrix, atol=0.03, rtol=0)


def test_what_is_stated_holds_and_the_law_is_normalised():
    prior = elicit(
        {"rate": RATE, "share": SHARE},
        support=BOTH,
        correlations={("share", "rate"): 0.4},
        joint=[
            probability(lambda rate, share: rate * share < 1, at_least=0.6),
            expectation(lambda rate, share: rate * share, at_most=3.0),
        ],
    )
    (block,) = prior.blocks
    x, p, entropy = fine_dual(block.law, (1500, 400), ((0.0, 15.0), (0.0, 1.0)))
    assert float(p.sum()) == pytest.approx(1.0, abs=1e-3)
    assert float(entropy) == pytest.approx(float(prior.entropy()), abs=5e-3)
    rate, share = x.unbind(-1)
    assert float(p[(rate > 2) & (rate < 5)].sum()) == pytest.approx(0.9, abs=2e-3)
    assert float(p[share < 0.3].sum()) == pytest.approx(0.5, abs=3e-3)
    assert float(p[rate * share < 1].sum()) == pytest.approx(0.6, abs=3e-3)
    assert prior.blocks[0].law.exponent.multipliers.shape[0] >= 6
    draws = prior.sample((40_000,))
    assert float(torch.corrcoef(draws.mT)[0, 1]) == pytest.approx(0.4, abs=0.03)
    # Draws are of the law that is scored: the entropy of both is the same.
    log_q = prior.log_prob(draws)
    assert abs(-log_q.mean() - float(prior.entropy())) < 5 * log_q.std() / 200
    for text in ("correlation of rate, share", ">=0.6", "<=3"):
        assert text in str(prior)


def test_an_event_of_two_variables_against_a_fine_grid():
    """The boundary of the event crosses the panels of the quadrature."""
    prior = elicit(
        {"low": [mean(0.0), sd(1.0)], "high": [mean(1.0), sd(1.0)]},
        joint=[probability(lambda low, high: low < high, 0.9)],
    )
    (block,) = prior.blocks
    # With one cell more on one axis, midpoints lie on both sides of the diagonal alike.
    x, p, entropy = fine_dual(block.law, (1200, 1201), ((-6.0, 7.0), (-6.0, 7.0)))
    assert float(p.sum()) == pytest.approx(1.0, abs=1e-3)
    assert float(p[x[:, 0] < x[:, 1]].sum()) == pytest.approx(0.9, abs=1e-3)
    assert float(entropy) == pytest.approx(float(prior.entropy()), abs=2e-3)
    state = torch.get_rng_state()
    for (got, error), s in zip(block.check(), block.statistics, strict=True):
        assert 0 < error < 0.01
        assert abs(got - s.level) < 5 * error
    assert "error" in str(prior)
    assert torch.equal(torch.get_rng_state(), state)


def test_an_event_along_the_diagonal_of_equal_nodes():
    """Of two normals with the same nodes a < b holds with 1 / 2: no multiplier is needed."""
    statements = {n: [mean(0.0), sd(1.0)] for n in "ab"}
    prior = elicit(statements, joint=[probability(lambda a, b: a < b, 0.5)])
    assert abs(float(prior.blocks[0].law.exponent.multipliers[-1])) < 1e-4
    expected = math.log(2 * math.pi * math.e)
    assert float(prior.entropy()) == pytest.approx(expected, abs=1e-4)


def test_a_correlation_next_to_one():
    """By a finer quadrature; where that does not do, an error says so (see below)."""
    rho, statements = 0.999, {n: [mean(0.0), sd(1.0)] for n in "ab"}
    prior = elicit(statements, correlations={("a", "b"): rho})
    entropy = math.log(2 * math.pi * math.e) + 0.5 * math.log(1 - rho**2)
    assert float(prior.entropy()) == pytest.approx(entropy, abs=2e-3)
    deviation = prior.sample((20_000,)).std(0)
    assert (deviation - 1).abs().max() < 5 / math.sqrt(2 * 20_000)


@pytest.mark.parametrize("kind", ["correlations", "rank_correlations"])
def test_priors_can_be_pickled(kind):
    statements = {"a": [mean(1.0), interval(0.5, 0.5, 2)], "b": RATE, "c": SHARE}
    supports = {"a": POSITIVE, "b": POSITIVE, "c": UNIT}
    prior = elicit(statements, support=supports, smooth=0.2, **{kind: {("a", "c"): 0.4}})
    same = pickle.loads(pickle.dumps(prior))
    x = prior.sample((10,))
    assert torch.equal(same.log_prob(x), prior.log_prob(x))


def test_a_copula_has_exact_margins():
    prior = elicit(
        {"a": mean(1.0), "b": mean(3.0)},
        support={"a": POSITIVE, "b": POSITIVE},
        rank_correlations={("a", "b"): 0.5},
    )
    *own, (rank, error) = prior.blocks[0].check()
    assert [e for _, e in own] == [0.0, 0.0]
    assert [got for got, _ in own] == pytest.approx([1.0, 3.0], abs=1e-8)
    assert 0 < error < 0.01
    assert abs(rank - 0.5) < 5 * error


def test_an_event_that_is_likely_anyway_changes_nothing():
    free = elicit({"a": mean(1.0), "b": mean(3.0)}, support={"a": POSITIVE, "b": POSITIVE})
    slack = elicit(
        {"a": mean(1.0), "b": mean(3.0)},
        support={"a": POSITIVE, "b": POSITIVE},
        joint=[probability(lambda a, b: a < b, at_least=0.3)],  # it is 3 / 4
    )
    x = free.sample((100,))
    torch.testing.assert_close(slack.log_prob(x), free.log_prob(x), atol=1e-3, rtol=0)


def test_rank_correlations_leave_every_variable_as_it_is():
    """In closed form, for any number, and equal to what quadrature finds."""
    statements = {"a": mean(1.0), "b": RATE, "c": SHARE, "d": [mean(0.0), sd(1.0)]}
    supports = {"a": POSITIVE, "b": POSITIVE, "c": UNIT}
    ranks = {("a", "b"): 0.6, ("b", "c"): -0.5, ("c", "d"): 0.8}
    prior = elicit(statements, support=supports, rank_correlations=ranks)
    alone = elicit(statements, support=supports)
    torch.testing.assert_close(prior.mean, alone.mean, atol=1e-6, rtol=0)
    # Pairs that are not stated have the largest determinant: here those of a chain.
    matrix = prior.blocks[0].law.matrix
    assert float(matrix[0, 3]) == pytest.approx(-0.6 * 0.5 * 0.8, abs=1e-9)
    x = prior.sample((20_000,))
    entropy = float(prior.entropy())
    log_q = prior.log_prob(x)
    assert abs(-log_q.mean() - entropy) < 5 * log_q.std() / math.sqrt(20_000)
    two = {name: statements[name] for name in "ab"}
    options = {"support": dict.fromkeys("ab", POSITIVE), "rank_correlations": {("a", "b"): 0.6}}
    copula = elicit(two, **options)
    slack = elicit(two, joint=[expectation(lambda a, b: a - b, at_most=50.0)], **options)
    x = copula.sample((200,))
    assert (slack.log_prob(x) - copula.log_prob(x)).abs().mean() < 5e-3


@pytest.mark.slow
def test_more_than_three_variables_are_a_flow():
    """Close to the normal that has these moments; the search is too short for more."""
    names = "abcd"
    prior = elicit(
        {n: [quantile(0.5, 1.0), mean(1.0), sd(2.0)] for n in names},
        correlations={("a", "b"): 0.5, ("b", "c"): 0.5, ("c", "d"): 0.5},
        seed=0,
        rounds=6,
        steps=30,
        lr=1e-2,
        batch_size=128,
        start_steps=50,
    )
    x = prior.sample((20_000,))
    got = torch.corrcoef(x.mT)
    assert all(abs(got[i, i + 1] - 0.5) < 0.08 for i in range(3))
    assert ((x < 1.0).double().mean(0) - 0.5).abs().max() < 0.05
    # The chain of correlations is completed by the law of largest entropy: 0.5 squared.
    assert abs(got[0, 2] - 0.25) < 0.08
    normal = 0.5 * math.log((2 * math.pi * math.e * 4.0) ** 4 * 0.75**3)
    assert float(prior.entropy()) == pytest.approx(normal, abs=0.15)
    assert not any(p.requires_grad for p in prior.blocks[0].law.parameters())
    assert "correlation of a, b" in str(prior)


# ---- in Pyro ----------------------------------------------------------------------------------


def test_the_prior_is_a_distribution():
    torch.manual_seed(0)
    prior = elicit(
        {"z": [mean(0.0), sd(1.0)], "rate": RATE, "share": SHARE},
        support=BOTH,
        correlations={("rate", "share"): 0.4},
    )
    assert prior.names == ("z", "rate", "share")
    assert prior.event_shape == (3,)
    x = prior.sample((4, 2))
    assert x.shape == (4, 2, 3)
    assert prior.support.check(x).all()
    assert prior.log_prob(x).shape == (4, 2)
    outside = x.clone()
    outside[..., 2] = 1.5
    assert (prior.log_prob(outside) == -math.inf).all()
    parts = prior.split(x)
    assert list(parts) == ["z", "rate", "share"]
    assert torch.equal(parts["rate"], x[..., 1])
    y = biject_to(prior.support)(torch.randn(5, 3)).requires_grad_()
    assert prior.support.check(y).all()
    (slope,) = torch.autograd.grad(prior.log_prob(y).sum(), y)
    step = 1e-6 * torch.randn_like(y)
    change = prior.log_prob(y + step) - prior.log_prob(y - step)
    torch.testing.assert_close(change, 2 * (slope * step).sum(-1), atol=1e-8, rtol=1e-4)
    assert prior.expand((3,)).sample().shape == (3, 3)
    many = prior.sample((20_000,))
    error = (many.mean(0) - prior.mean).abs() / (prior.variance / 20_000).sqrt()
    assert error.max() < 5


def test_values_of_other_shapes_and_nan():
    prior = elicit({"x": [mean(0.0), sd(1.0)], "y": [mean(0.0), sd(1.0)]})
    with pytest.raises(ValueError, match=r"shape \(\.\.\., 2\).*'x', 'y', got \(4, 3\)"):
        prior.log_prob(torch.zeros(4, 3))
    got = prior.log_prob(torch.tensor([[0.0, math.nan], [0.0, 0.0]]))
    assert got.isnan().tolist() == [True, False]


@pytest.mark.parametrize("kind", ["correlations", "rank_correlations"])
def test_sites_of_a_model_under_nuts_and_svi(kind):
    prior = elicit(
        {"rate": RATE, "share": SHARE, "z": [mean(0.0), sd(1.0)]},
        support=BOTH,
        **{kind: {("rate", "share"): 0.4}},
    )
    data = torch.tensor([3.0, 4.0, 2.0])

    def model():
        values = prior.sites()
        with pyro.plate("data", 3):
            pyro.sample("y", dist.Poisson(values["rate"] * (1 + values["share"])), obs=data)

    pyro.set_rng_seed(0)
    sites = pyro.poutine.trace(model).get_trace().nodes
    assert {"rate_share", "rate", "share", "z"} <= set(sites)
    draws = Predictive(model, num_samples=5)()
    assert draws["share"].numel() == 5
    # Importance sampling from the prior says what NUTS should find.
    x = prior.sample((100_000,))
    rate = x[:, 0] * (1 + x[:, 1])
    weight = dist.Poisson(rate.unsqueeze(-1)).log_prob(data).sum(-1).softmax(0)
    expected = weight @ x
    if kind == "correlations":
        run = MCMC(NUTS(model, max_tree_depth=5), num_samples=60, warmup_steps=40,
                   disable_progbar=True)  # fmt: skip
        run.run()
        got = run.get_samples()["rate_share"]
        # Sixty correlated draws: an effective number of fifteen is assumed.
        error = (got.mean(0) - expected[:2]).abs() / (got.std(0) / math.sqrt(15))
        assert error.max() < 4
    svi = SVI(model, AutoNormal(model), pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    assert all(math.isfinite(svi.step()) for _ in range(5))


# ---- what cannot be ---------------------------------------------------------------------------

BAD = {
    "quantiles that fall": (
        {"x": [quantile(0.5, 3), quantile(0.4, 4)]}, {}, r"quantiles of 'x' that rise"),
    "a quantile outside": ({"x": quantile(0.5, -3)}, {}, r"quantile 0.5 of 'x' inside.*got -3"),
    "an interval outside": ({"x": interval(0.5, -3, -1)}, {}, r"interval of 'x' that is a part"),
    "more than everything": (
        {"x": [interval(0.5, 1, 2), interval(0.6, 3, 4)]}, {}, r"'x' that a law can meet"),
    "a piece without mass": (
        {"x": [quantile(0.5, 3), interval(0.5, 3, 4)]}, {}, r"'x'.*none between 4 and inf"),
    "a mean against a median": (
        {"x": [quantile(0.5, 3), mean(1)]}, {}, r"'x' that a law can meet"),
    "a mean outside": ({"x": mean(-1)}, {}, r"mean of 'x' inside its support"),
    "an sd alone": ({"x": sd(1)}, {}, r"mean of 'x' with its sd"),
    "an sd too large": (
        {"x": [mean(0.5), sd(0.6)]}, {"support": {"x": UNIT}}, r"sd of 'x' below 0.5"),
    "a mean on the line": (
        {"x": mean(1)}, {"support": {}}, r"'x' for which there is a law of largest entropy"),
    "one quantile on the line": (
        {"x": quantile(0.5, 1)}, {"support": {}}, r"leave the spread open"),
    "a correlation of one": (
        {"x": mean(1), "y": mean(1)}, {"correlations": {("x", "y"): 1.0}}, r"'x' and 'y' between"),
    "a stranger": (
        {"x": mean(1)}, {"correlations": {("x", "z"): 0.5}}, r"pairs of variables.*'z'"),
    "correlations that are not definite": (
        {n: mean(1) for n in "xyz"},
        {"correlations": {("x", "y"): 0.9, ("y", "z"): 0.9, ("x", "z"): -0.9}},
        r"'x', 'y', 'z' whose matrix is not positive definite"),
    "tails that no correlation bounds": (
        {"x": mean(1), "y": mean(1)}, {"correlations": {("x", "y"): 0.8}}, r"rank_correlations"),
    "an expectation out of reach": (
        {"x": mean(1), "y": mean(1)}, {"joint": [expectation(lambda x, y: x + y, 9)]},
        r"'x' and 'y' that a law can meet"),
    "a support of whole numbers": (
        {"x": mean(1)}, {"support": {"x": constraints.nonnegative_integer}}, r"support of 'x'"),
    "a support of a stranger": ({"x": mean(1)}, {"support": {"y": UNIT}}, r"got 'y'"),
    "a family elsewhere": (
        {"x": mean(1)}, {"families": {"x": "beta"}}, r"family of 'x'.*'gamma' or 'lognormal'"),
    "an argument without a variable": (
        {"x": mean(1)}, {"joint": [probability(lambda w: w < 1, 0.5)]}, r"names of variables"),
    "a joint statement about one": (
        {"x": mean(1)}, {"joint": [probability(lambda x: x < 1, 0.5)]}, r"about 'x' alone"),
    "no spread of largest entropy": (
        {"x": [mean(1.0), sd(2.0)]}, {}, r"sd of 'x' of at most 1.*lognormal"),
    "a law too narrow": (
        {n: [mean(0), sd(1)] for n in "xy"},
        {"support": {}, "correlations": {("x", "y"): 0.9999}}, r"'x' and 'y' whose law a quadra"),
    "a pair in both": (
        {"x": mean(1), "y": mean(1)},
        {"correlations": {("x", "y"): 0.2}, "rank_correlations": {("y", "x"): 0.2}},
        r"one or the other"),
    "a function that is not finite": (
        {"x": expectation(lambda x: x.sqrt(), 0.5)}, {"support": {}},
        r"to be finite on the support of 'x'"),
    "an event that is a function": (
        {"x": [mean(1.0), probability(torch.sigmoid, 0.5)]}, {}, r"true or false"),
    "nothing on the line": ({"x": []}, {"support": {}}, r"about 'x', or a support with two"),
    "steps wider than their distance": ({"x": RATE}, {"smooth": 1.5}, r"smooth.*got 1.5"),
    "a number": ({"x": 3.0}, {}, r"statements about 'x'"),
    "nothing": ({}, {}, r"statements by the names"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_statements_that_no_law_meets(name):
    statements, options, match = BAD[name]
    options = {"support": dict.fromkeys(statements, POSITIVE), **options}
    with pytest.raises(ValueError, match=match):
        elicit(statements, **options)


@pytest.mark.parametrize(
    ("settings", "match"), [({"smoth": 0.5}, "got smoth"), ({"lr": 0.1}, "flow.*got lr")]
)
def test_settings_that_are_unknown_or_not_needed(settings, match):
    with pytest.raises(TypeError, match=match):
        elicit({"x": SHARE}, support={"x": UNIT}, **settings)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: quantile(0.0, 1.0), "between 0 and 1"),
        (lambda: interval(1.2, 1.0, 2.0), "between 0 and 1"),
        (lambda: interval(0.5, 2.0, 1.0), "low to be less than high"),
        (lambda: sd(-1.0), "positive standard deviation"),
        (lambda: mean(), "one of a value, at_least and at_most"),
        (lambda: mean(1.0, at_most=2.0), "one of a value, at_least and at_most"),
        (lambda: probability(3.0, 0.5), "event to be a function"),
        (lambda: probability(lambda x: x < 1, at_least=1.5), "between 0 and 1"),
    ],
)
def test_statements_that_are_none(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_a_wide_law_on_a_half_exists_where_a_quantile_bounds_it():
    """With a mean and an sd above it alone there is none."""
    known = [mean(1.0), sd(1.2), quantile(0.5, 0.1)]
    law = elicit({"x": known}, support={"x": constraints.positive})
    x = torch.linspace(0, 60, 600_001)[1:].unsqueeze(-1)
    p = law.log_prob(x).exp() * (x[1, 0] - x[0, 0])
    assert float(p.sum()) == pytest.approx(1.0, abs=1e-3)
    assert float((p * x[:, 0]).sum()) == pytest.approx(1.0, abs=3e-3)
    assert float(p[x[:, 0] < 0.1].sum()) == pytest.approx(0.5, abs=2e-3)
