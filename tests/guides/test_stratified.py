"""Bounds of weighted draws, against quadrature and against Pyro's own."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO, TraceEnum_ELBO, config_enumerate
from pyro.infer.autoguide import init_to_value

from pyromix import Flow, Fold, GaussianMixture
from pyromix.guides import AutoMixture, StratifiedELBO, evaluate_guide, fit_guide
from pyromix.guides.annealing import anneal
from pyromix.guides.joint import UnconstrainedJoint


@pytest.fixture(autouse=True)
def _fresh():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)


def two_roots():
    z = pyro.sample("z", dist.Normal(0.0, 3.0))
    pyro.sample("x", dist.Normal(z.square(), 0.5), obs=torch.tensor(4.0))


def hierarchy(x, subsample_size=None):
    centre = pyro.sample("centre", dist.Normal(0.0, 2.0))
    spread = pyro.sample("spread", dist.HalfNormal(1.0))
    pyro.sample("shares", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("rows", len(x), subsample_size=subsample_size) as rows:
        own = pyro.sample("own", dist.Normal(centre, spread))
        pyro.sample("x", dist.Normal(own, 0.7), obs=x[rows])


def train(model, guide, elbo, *args, steps=100, lr=0.03, **kwargs):
    svi = SVI(model, guide, pyro.optim.Adam({"lr": lr}), elbo)
    return [svi.step(*args, **kwargs) for _ in range(steps)]


def log_evidence_by_quadrature(guide, grid):
    joint = UnconstrainedJoint(two_roots, guide)(grid.unsqueeze(1)).detach()
    return float(joint.logsumexp(0) + (grid[1] - grid[0]).log())


def test_both_modes_are_kept_and_the_bound_is_tight():
    guide = AutoMixture(two_roots, 4)
    train(two_roots, guide, StratifiedELBO(32), steps=150)
    evidence = log_evidence_by_quadrature(guide, torch.linspace(-12, 12, 20_001))
    bounds = {
        importance: -sum(
            StratifiedELBO(64, importance=importance).loss(two_roots, guide) for _ in range(20)
        )
        / 20
        for importance in (False, True)
    }
    assert evidence - 0.02 < bounds[False] < evidence + 0.002
    assert abs(bounds[True] - evidence) < 0.005
    draws = guide.get_posterior().sample((4000,))
    assert abs(float((draws > 0).float().mean()) - 0.5) < 0.05
    low, middle, high = guide.quantiles([0.1, 0.5, 0.9])["z"]
    assert -2.3 < low < -1.9
    assert 1.9 < high < 2.3
    assert low <= middle <= high


def test_gradients_are_those_of_quadrature():
    """Within three standard errors, and with less variance than those of `Trace_ELBO`."""
    guide = AutoMixture(two_roots, 2, num_prior_draws=0, init_scale=0.5)
    guide()
    mixture = guide.posterior
    with torch.no_grad():
        mixture.loc.copy_(torch.tensor([[-1.8], [2.3]]))
        mixture.logits.copy_(torch.tensor([0.4, -0.2]))
    names, parameters = zip(*mixture.named_parameters(), strict=True)
    grid = torch.linspace(-9, 9, 30_001)
    log_q = mixture.log_prob(grid.unsqueeze(1))
    log_p = UnconstrainedJoint(two_roots, guide)(grid.unsqueeze(1)).detach()
    loss = (log_q.exp() * (log_q - log_p)).sum() * (grid[1] - grid[0])
    exact = torch.autograd.grad(loss, parameters, allow_unused=True)

    def estimates(elbo, count):
        found = []
        for _ in range(count):
            loss = elbo.differentiable_loss(two_roots, guide)
            own = torch.autograd.grad(loss, parameters, allow_unused=True)
            found.append(
                [
                    torch.zeros_like(p) if g is None else g
                    for p, g in zip(parameters, own, strict=True)
                ]
            )
        return [torch.stack(part) for part in zip(*found, strict=True)]

    ours = estimates(StratifiedELBO(8), 300)
    pathwise = estimates(Trace_ELBO(8, vectorize_particles=True), 100)
    for name, expected, own, other in zip(names, exact, ours, pathwise, strict=True):
        if expected is None or not expected.numel():
            continue
        error = own.std(0) / len(own) ** 0.5
        assert ((own.mean(0) - expected).abs() < 4 * error + 1e-3).all(), name
        assert (own.var(0) < other.var(0)).all(), name


def folded(loc, scale=1.0):
    """A guide whose law folds a normal, and that law."""
    law = Flow(dist.Normal(loc, scale), [Fold((4,))])

    def guide():
        pyro.module("law", law)
        pyro.sample("z", law)

    return guide, law


def test_gradients_of_a_fold_are_those_of_quadrature():
    guide, law = folded(torch.nn.Parameter(torch.tensor(0.4)), 1.5)
    parameters = list(law.parameters())
    grid = torch.linspace(-9, 9, 20_001)
    log_q = law.log_prob(grid)
    log_p = dist.Normal(0.0, 3.0).log_prob(grid)
    log_p = log_p + dist.Normal(grid.square(), 0.5).log_prob(torch.tensor(4.0))
    loss = (log_q.exp() * (log_q - log_p)).sum() * (grid[1] - grid[0])
    exact = torch.autograd.grad(loss, parameters)
    rows = []
    for _ in range(60):
        loss = StratifiedELBO(100, max_plate_nesting=0).differentiable_loss(two_roots, guide)
        rows.append(torch.autograd.grad(loss, parameters))
    for expected, *own in zip(exact, *rows, strict=True):
        own = torch.stack(own)
        error = own.std(0) / len(own) ** 0.5
        assert ((own.mean(0) - expected).abs() < 4 * error + 2e-3 * expected.abs().max()).all()


def test_a_fold_takes_both_modes():
    guide, law = folded(torch.tensor(0.0))
    losses = train(two_roots, guide, StratifiedELBO(64, max_plate_nesting=0), steps=100)
    assert sum(losses[-20:]) / 20 < 3.4  # 2.92 is minus the log-evidence, 3.62 that of one mode
    share = (law.sample((4000,)) > 0).float().mean()
    assert abs(float(share) - 0.5) < 0.15


def test_draws_one_by_one_are_those_of_a_plate():
    x = torch.randn(6)
    guide = AutoMixture(hierarchy, 3, num_prior_draws=0)
    guide(x)
    losses = []
    for vectorize in (True, False):
        pyro.set_rng_seed(1)
        elbo = StratifiedELBO(7, vectorize_particles=vectorize)
        losses.append(elbo.loss(hierarchy, guide, x))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_plates_constraints_and_subsampling():
    x = torch.randn(12) + 1
    guide = AutoMixture(hierarchy, 3, num_prior_draws=200)
    losses = train(hierarchy, guide, StratifiedELBO(12), x)
    reference = pyro.infer.autoguide.AutoMultivariateNormal(hierarchy)
    others = train(hierarchy, reference, Trace_ELBO(), x, steps=250, lr=0.05)
    assert sum(losses[-20:]) / 20 < sum(others[-100:]) / 100 + 0.3
    shapes = {name: tuple(value.shape) for name, value in guide.median(x).items()}
    assert shapes == {"centre": (), "spread": (), "shares": (3,), "own": (12,)}
    drawn = Predictive(hierarchy, guide=guide, num_samples=5)(x)
    assert (drawn["spread"] > 0).all()
    assert drawn["own"].shape == (5, 12)
    some = AutoMixture(hierarchy, 3, num_prior_draws=0)
    train(hierarchy, some, StratifiedELBO(4), x, steps=3, subsample_size=4)


def test_guides_by_hand_with_several_mixtures():
    """Independent draws go with each other in any order: the bound is that of plain draws."""
    first, second = GaussianMixture(2, 3, "full"), GaussianMixture(2, 2)

    def model():
        a = pyro.sample("a", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        b = pyro.sample("b", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        c = pyro.sample("c", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal((a * b).sum(-1) + c, 0.5), obs=torch.tensor(1.0))

    def guide():
        pyro.module("first", first)
        pyro.module("second", second)
        pyro.sample("a", first)
        pyro.sample("b", second)
        pyro.sample("c", dist.Normal(0.0, 1.0))

    plain = Trace_ELBO(4000, vectorize_particles=True).loss(model, guide)
    many = torch.tensor([StratifiedELBO(60).loss(model, guide) for _ in range(80)])
    assert abs(float(many.mean()) - plain) < 4 * float(many.std()) / 80**0.5 + 0.02 * abs(plain)
    losses = train(model, guide, StratifiedELBO(24), steps=60, lr=0.05)
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])


Y = torch.tensor([-2.1, -1.8, 1.9, 2.2])


@config_enumerate
def labelled():
    """Two levels, and to which of them each row belongs: the share of the second is unknown."""
    share = pyro.sample("share", dist.Beta(2.0, 2.0))
    loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 3.0).to_event(1))
    with pyro.plate("rows", len(Y)):
        own = pyro.sample("own", dist.Bernoulli(share))
        at = torch.where(own == 1, loc[..., 1], loc[..., 0])
        pyro.sample("y", dist.Normal(at, 0.5), obs=Y)


def summed():
    """The same, with the sum over labels by hand."""
    share = pyro.sample("share", dist.Beta(2.0, 2.0))
    loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 3.0).to_event(1))
    with pyro.plate("rows", len(Y)):
        first = dist.Normal(loc[..., 0], 0.5).log_prob(Y) + (1 - share).log()
        second = dist.Normal(loc[..., 1], 0.5).log_prob(Y) + share.log()
        pyro.factor("y", torch.logaddexp(first, second))


def test_discrete_variables_that_are_enumerated_are_summed_over():
    guide = AutoMixture(labelled, 2)
    guide()
    for options in ({}, {"vectorize_particles": False}, {"importance": True}):
        losses = []
        for model in (labelled, summed):
            pyro.set_rng_seed(1)
            elbo = StratifiedELBO(6, max_plate_nesting=1, **options)
            losses.append(elbo.loss(model, guide))
        assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    result = fit_guide(labelled, guide, steps=150, seed=0, progress_bar=False)
    assert set(result.draws) == {"share", "loc"}
    assert len(result.modes) == 2
    assert result.modes[0].mass == pytest.approx(0.5, abs=5 * result.modes[0].error)
    known = evaluate_guide(summed, guide, seed=1)
    error = result.log_evidence_error + known.log_evidence_error
    assert abs(result.log_evidence - known.log_evidence) < 4 * error
    # As Pyro sums, with its own gradients.
    losses = train(labelled, guide, TraceEnum_ELBO(max_plate_nesting=1), steps=3, lr=1e-4)
    assert sum(losses) / 3 == pytest.approx(-result.elbo, abs=3.0)


def test_what_cannot_be_summed_over_is_told():
    @config_enumerate
    def some():
        loc = pyro.sample("loc", dist.Normal(0.0, 3.0))
        with pyro.plate("rows", len(Y), subsample_size=2) as rows:
            own = pyro.sample("own", dist.Bernoulli(0.5))
            pyro.sample("y", dist.Normal(loc * own, 0.5), obs=Y[rows])

    guide = AutoMixture(some, 2, num_prior_draws=0)
    guide()
    with pytest.raises(NotImplementedError, match="scaled by 2"):
        StratifiedELBO(4).loss(some, guide)

    def by_guide():
        pyro.sample("loc", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("share", dist.Beta(1.0, 1.0))
        with pyro.plate("rows", len(Y)):
            pyro.sample("own", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})

    with pytest.raises((NotImplementedError, ValueError)):
        StratifiedELBO(4).loss(labelled, by_guide)


def test_draws_are_moved_to_both_modes():
    """To a mixture whose modes have a third and two thirds of the mass."""
    torch.manual_seed(0)
    target = dist.MixtureSameFamily(
        dist.Categorical(torch.tensor([1.0, 2.0])),
        dist.Normal(torch.tensor([[-4.0, 0.0], [3.0, 2.0]]), 0.3).to_event(1),
    )
    start = dist.Normal(torch.zeros(2), 5.0).to_event(1)
    z = anneal(target.log_prob, start.log_prob, start.sample((3000,)))
    right = z[:, 0] > 0
    assert abs(float(right.float().mean()) - 2 / 3) < 0.08
    for own, centre in ((z[right], (3.0, 2.0)), (z[~right], (-4.0, 0.0))):
        torch.testing.assert_close(own.mean(0), torch.tensor(centre), atol=0.05, rtol=0)
        torch.testing.assert_close(own.std(0), torch.full((2,), 0.3), atol=0.05, rtol=0)


def does_not_broadcast():
    loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("rows", 3):
        both = dist.Normal(loc.unsqueeze(-2), 0.5)
        halves = dist.Categorical(torch.ones(2))
        pyro.sample("y", dist.MixtureSameFamily(halves, both), obs=torch.zeros(3))


def test_models_that_do_not_broadcast_are_told_so():
    guide = AutoMixture(does_not_broadcast, 2)
    with pytest.raises(ValueError, match=r"'y'.*vectorize_particles=False"):
        StratifiedELBO(5).loss(does_not_broadcast, guide)
    losses = train(
        does_not_broadcast, guide, StratifiedELBO(4, vectorize_particles=False), steps=2
    )
    assert all(math.isfinite(loss) for loss in losses)


def test_a_second_guide_is_trained_and_the_store_is_read(tmp_path):
    losses = []
    for _ in range(2):  # without clearing the store
        guide = AutoMixture(two_roots, 2)
        guide()
        before = guide.posterior.loc.detach().clone()
        losses.append(train(two_roots, guide, StratifiedELBO(8), steps=30)[-1])
        assert not torch.equal(guide.posterior.loc, before)
    trained = guide.posterior.loc.detach().clone()
    pyro.get_param_store().save(str(tmp_path / "store"))
    pyro.clear_param_store()
    pyro.get_param_store().load(str(tmp_path / "store"))
    copy = AutoMixture(two_roots, 2)
    copy()
    torch.testing.assert_close(copy.posterior.loc.detach(), trained)
    other = AutoMixture(two_roots, 3)
    with pytest.warns(UserWarning, match="2 components: they are replaced"):
        other()
    train(two_roots, other, StratifiedELBO(8), steps=2)
    assert other.posterior.loc.shape == (3, 1)


def sums_over_draws():
    z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    pyro.sample("y", dist.Normal(z.sum(), 0.5), obs=torch.tensor(1.0))


def test_a_start_from_models_that_sum_over_draws():
    """They are run one by one; the posterior mean of each is 1 / (3 + 0.25)."""
    guide = AutoMixture(sums_over_draws, 2)
    guide()
    mean = guide.get_posterior().sample((4000,)).mean(0)
    torch.testing.assert_close(mean, torch.full((3,), 1 / 3.25), atol=0.3, rtol=0)


def improper():
    z = pyro.sample("z", dist.ImproperUniform(dist.constraints.real, (), ()))
    pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(1.0))


AT_ONE = init_to_value(values={"z": torch.ones(())})


def nothing():
    pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.tensor(1.0))


def coin():
    pyro.sample("side", dist.Bernoulli(0.5))


@pytest.mark.parametrize(
    ("ask", "error", "message"),
    [
        (lambda: AutoMixture(two_roots, 0), ValueError, "num_components"),
        (lambda: AutoMixture(two_roots, num_prior_draws=-1), ValueError, "num_prior_draws"),
        (lambda: AutoMixture(two_roots, 4, num_prior_draws=5), ValueError, "at least two of each"),
        (lambda: AutoMixture(two_roots, init_scale=0.0), ValueError, "positive init_scale"),
        (lambda: AutoMixture(two_roots).get_posterior(), RuntimeError, "has been run"),
        (lambda: AutoMixture(nothing)(), RuntimeError, "no latent variables"),
        (lambda: StratifiedELBO(0), ValueError, "num_particles"),
        (lambda: StratifiedELBO(3).loss(coin, coin), ValueError, "Bernoulli at site 'side'"),
        (
            lambda: AutoMixture(improper, init_loc_fn=AT_ONE)(),
            ValueError,
            "num_prior_draws=0",
        ),
        (lambda: AutoMixture(improper)(), ValueError, "init_to_value"),
    ],
)  # fmt: skip
def test_bad_input(ask, error, message):
    with pytest.raises(error, match=message):
        ask()


def test_improper_priors_start_from_a_point():
    guide = AutoMixture(improper, 2, num_prior_draws=0, init_loc_fn=AT_ONE)
    losses = train(improper, guide, StratifiedELBO(8), steps=150)
    assert sum(losses[-20:]) / 20 == pytest.approx(-math.log(1.0), abs=0.1)  # the evidence is one
