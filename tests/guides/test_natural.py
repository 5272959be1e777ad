"""Natural gradients of mixtures, held against integrals and known posteriors."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyromix import Flow, near_identity
from pyromix.guides import AutoMixture, fit_guide
from pyromix.guides.adaptive import _pulled_back
from pyromix.guides.annealing import anneal
from pyromix.guides.births import add_components, drop_idle, plausible
from pyromix.guides.joint import UnconstrainedJoint
from pyromix.guides.modes import find_modes
from pyromix.guides.natural import Annealing, _draw, _step, climb
from pyromix.mixtures import MixtureOfMultivariateNormals


@pytest.fixture(autouse=True)
def _fresh():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)


def mixture(weights, loc, scale_tril):
    return MixtureOfMultivariateNormals(
        torch.tensor(weights).log(), torch.as_tensor(loc), torch.as_tensor(scale_tril)
    )


def ignore(_):
    """What `climb` calls after each step."""


def test_a_normal_is_reached_exactly():
    """At the target the reward is constant, so that draws have no noise left."""
    factor = torch.tensor([[2.0, 0.0, 0.0], [1.5, 0.5, 0.0], [-0.3, 0.2, 0.01]])
    target = dist.MultivariateNormal(torch.tensor([5.0, -3.0, 100.0]), scale_tril=factor)
    start = mixture([1.0], torch.zeros(1, 3), torch.eye(3)[None])
    settings = {"steps": 40, "most": 200, "each": 12, "annealing": Annealing(1.0, 0.01)}
    law = climb(target.log_prob, start, **settings, after=ignore)
    torch.testing.assert_close(law.loc[0], target.loc, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(law.scale_tril[0], factor, rtol=1e-5, atol=1e-6)


def test_diagonal_covariances_do_not_overshoot():
    """With whole steps the means would, as an eigenvalue of the precision is above two."""
    precision = torch.full((3, 3), 0.9) + 0.1 * torch.eye(3)
    target = dist.MultivariateNormal(torch.tensor([5.0, -3.0, 2.0]), precision_matrix=precision)
    start = mixture([1.0], torch.zeros(1, 3), 2 * torch.eye(3)[None])
    law = climb(
        target.log_prob, start, steps=60, most=300, each=100, diagonal=True,
        annealing=Annealing(1.0, 0.003), after=ignore,
    )  # fmt: skip
    # Scales given all others, and the same mean.
    torch.testing.assert_close(law.scale_tril[0], torch.eye(3), rtol=0.1, atol=1e-9)
    torch.testing.assert_close(law.loc[0], target.loc, rtol=0, atol=0.4)


def test_a_step_is_the_natural_gradient():
    """Against integrals on a grid, with Hessians by autograd in place of Stein's lemma."""

    def target(z):
        return (-0.25 * z.square() + (2 * z).sin()).squeeze(-1)

    law = mixture([0.3, 0.7], [[-1.0], [0.8]], [[[0.7]], [[0.5]]])
    radius = 0.02
    batch = _draw(target, law, 400_000)
    new, bound = _step(law, [batch], radius, diagonal=False)

    grid = torch.linspace(-8, 8, 40_001).unsqueeze(-1)
    z = grid.clone().requires_grad_()
    reward = target(z) - law.log_prob(z)
    (slope,) = torch.autograd.grad(reward.sum(), z, create_graph=True)
    (curvature,) = torch.autograd.grad(slope.sum(), z)
    each = (law._joint_log_prob(grid) - law.logits.log_softmax(-1)).exp() * (grid[1] - grid[0])
    reward, g, h = (each.T @ part.detach().reshape(-1) for part in (reward, slope, curvature))
    scale = law.scale_tril.reshape(2)
    assert bound == pytest.approx(float(law.logits.softmax(-1) @ reward), abs=0.01)
    for k in range(2):
        # The step that is as far as the radius, found by bisection on its own formula.
        def moved(b, k=k):
            variance = 1 / (1 / scale[k] ** 2 - b * h[k])
            return law.loc[k, 0] + b * variance * g[k], variance

        def far(b, k=k):
            loc, variance = moved(b)
            old, now = dist.Normal(law.loc[k, 0], scale[k]), dist.Normal(loc, variance.sqrt())
            return float(torch.distributions.kl_divergence(now, old)) > radius

        low, high = 0.0, 1.0
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (low, middle) if far(middle) else (middle, high)
        assert 0.0 < low < 1.0
        loc, variance = moved(low)
        assert float(new.loc[k, 0]) == pytest.approx(float(loc), abs=0.01)
        assert float(new.scale_tril[k, 0, 0]) == pytest.approx(float(variance.sqrt()), abs=0.01)
    log_ratio = (new.logits - law.logits).diff() / reward.diff()
    assert float(log_ratio) == pytest.approx(1.0, abs=0.03)  # the whole step is near enough


def test_components_are_added_where_draws_are_missed_and_idle_ones_dropped():
    found = mixture([1.0], [[0.0, 0.0]], torch.eye(2)[None])
    both = mixture([0.6, 0.4], [[0.0, 0.0], [9.0, 0.0]], torch.eye(2).expand(2, 2, 2))
    draws, log_density = plausible(both.sample((400,)), both.log_prob, -math.inf)
    grown = add_components(found, draws, log_density, most=4)
    assert 2 <= grown.num_components <= 5
    assert float(grown.log_prob(draws).mean()) > float(both.log_prob(draws).mean()) - 0.3
    far = (grown.loc - both.loc[1]).norm(dim=-1) < 3
    assert float(grown.logits.softmax(-1)[far].sum()) == pytest.approx(0.4, abs=0.15)
    # Tails that are too thin get a component with the same centre, wide enough.
    heavy = dist.StudentT(3.0).expand([2]).to_event(1).sample((2000,))
    wider = add_components(found, heavy, found.log_prob(heavy), most=3)
    assert (wider.scale_tril[1:, 0, 0] > 1.5).any()
    # Nothing is missed: nothing is added.
    assert add_components(both, both.sample((2000,)), torch.zeros(2000), 3).num_components == 2
    rest = drop_idle(mixture([0.5, 1e-9, 0.3, 0.2], torch.zeros(4, 2), both.scale_tril[:1]), 2)
    torch.testing.assert_close(rest.logits.softmax(-1), torch.tensor([0.625, 0.375]))
    # What was caught far below the density is no draw of it.
    caught = torch.tensor([[0.0, 0.0], [40.0, 0.0]])
    assert len(plausible(caught, found.log_prob, -math.inf)[0]) == 1


def test_modes_are_components_without_a_dip_between_them():
    angle = torch.linspace(0, math.pi, 12)
    arc = torch.stack([5 * angle.cos(), 5 * angle.sin()], -1)
    loc = torch.cat([arc, torch.tensor([[0.0, -8.0], [0.5, -8.0], [30.0, 0.0]])])
    law = mixture([1 / 15] * 15, loc, torch.eye(2).expand(15, 2, 2))
    labels = find_modes(law)
    assert len(labels.unique()) == 3
    assert len(labels[:12].unique()) == 1
    assert labels[12] == labels[13] != labels[0]


MEANS = torch.tensor([[-9.0, -9.0], [9.0, 9.0], [-9.0, 9.0], [9.0, -9.0], [0.0, 0.0]])


def five(rows):
    """Five normals, of one scale of 0.5; the data say nothing, but have a plate."""
    z = pyro.sample("z", dist.Normal(torch.zeros(2), 10.0).to_event(1))
    law = dist.MixtureSameFamily(
        dist.Categorical(torch.tensor([0.1, 0.2, 0.3, 0.2, 0.2])),
        dist.Normal(MEANS, 0.5).to_event(1),
    )
    pyro.factor("five", law.log_prob(z) - dist.Normal(0.0, 10.0).log_prob(z).sum(-1))
    with pyro.plate("rows", len(rows)):
        pyro.sample("x", dist.Normal(0.0 * z[..., 0], 1.0), obs=rows)


@pytest.fixture(scope="module")
def fitted():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    rows = torch.tensor([0.3, -0.4])
    guide = AutoMixture(five, num_components=2)
    return guide, fit_guide(five, guide, rows, seed=0, progress_bar=False)


def test_all_modes_are_found_from_few_components(fitted):
    guide, result = fitted
    exact = float(dist.Normal(0.0, 1.0).log_prob(torch.tensor([0.3, -0.4])).sum())
    assert guide.num_components >= 5
    assert result.elbo == pytest.approx(exact, abs=0.01)
    assert result.log_evidence == pytest.approx(exact, abs=0.01)
    assert result.reliable
    masses = [mode.mass for mode in result.modes]
    assert len(masses) == 5
    assert sum(masses) == pytest.approx(1.0, abs=1e-6)
    assert masses[0] == pytest.approx(0.3, abs=5 * result.modes[0].error)
    mode = result.modes[0]
    assert (mode.mean["z"] - MEANS[2]).abs().max() < 0.1
    assert (mode.best["z"] - MEANS[2]).abs().max() < 0.3
    assert "5, of mass" in str(result)
    inside = result.draws["z"][result.mode_of_draw == 0]
    assert (inside - MEANS[2]).abs().max() < 5
    assert len(result.losses) <= 300


def test_the_picture_shows_numbers_and_weights(fitted):
    import matplotlib.pyplot as plt

    figure = fitted[1].plot()
    titles = [ax.get_title() for ax in figure.axes]
    assert titles[:2] == ["z[0]", "z[1]"]
    assert "reliable" in titles[2]
    plt.close(figure)


def test_the_guide_works_on_with_its_new_components(fitted):
    guide, result = fitted
    rows = torch.tensor([0.3, -0.4])
    law = guide.correlated_law
    assert guide.get_posterior().num_components == guide.num_components == law.num_components
    guide.adopt(law)  # changes nothing
    torch.testing.assert_close(guide.correlated_law.loc, law.loc)
    torch.testing.assert_close(guide.correlated_law.scale_tril, law.scale_tril, rtol=1e-3, atol=0)
    more = fit_guide(five, guide, rows, method="gradient", steps=20, lr=1e-3, progress_bar=False)
    assert more.elbo == pytest.approx(result.elbo, abs=0.05)
    assert guide.quantiles([0.5], rows)["z"].shape == (1, 2)


def test_covariances_that_are_diagonal_stay_so():
    def tilted():
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(-1), 0.3), obs=torch.tensor(1.0))

    guide = AutoMixture(tilted, num_components=4, covariance="diagonal")
    result = fit_guide(tilted, guide, seed=0, steps=200, progress_bar=False)
    exact = float(dist.Normal(0.0, (2 + 0.09) ** 0.5).log_prob(torch.tensor(1.0)))
    assert guide.get_posterior().covariance == "diagonal"
    assert guide.num_components > 4  # a tilted normal takes many upright ones
    assert exact - 0.1 < result.elbo < exact
    assert result.log_evidence == pytest.approx(exact, abs=0.03)


def test_no_more_components_than_asked_for():
    guide = AutoMixture(five, num_components=3)
    rows = torch.tensor([0.3])
    with pytest.warns(UserWarning, match="Raise max_components"):
        fit_guide(five, guide, rows, max_components=4, steps=70, seed=1, progress_bar=False)
    assert guide.num_components <= 4


def test_gradients_where_natural_ones_cannot_train():
    def learns():
        scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
        z = pyro.sample("z", dist.Normal(0.0, scale))
        pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(3.0))

    guide = AutoMixture(learns, num_components=2)
    with pytest.raises(ValueError, match="parameters of its own"):
        fit_guide(learns, guide, method="natural", progress_bar=False)
    fit_guide(learns, guide, steps=100, lr=0.1, seed=0, num_draws=500, progress_bar=False)
    assert 2.0 < float(pyro.param("scale").detach()) < 3.5  # of highest evidence: the root of 8
    pyro.clear_param_store()
    guide = AutoMixture(five, 2, covariance="tied")
    with pytest.raises(ValueError, match="its covariance is 'tied'"):
        fit_guide(five, guide, torch.zeros(1), method="natural", progress_bar=False)


def test_transforms_follow_a_mixture_that_has_all_modes():
    rows = torch.tensor([0.3])
    bent = dist.transforms.spline_autoregressive(2, [8], bound=15.0)
    near_identity(bent)
    guide = AutoMixture(five, 5, num_prior_draws=200, transforms=lambda _: bent)
    result = fit_guide(five, guide, rows, steps=60, num_draws=500, seed=0, progress_bar=False)
    exact = float(dist.Normal(0.0, 1.0).log_prob(rows).sum())
    assert isinstance(guide.get_posterior(), Flow)
    assert exact - 0.1 < result.elbo < exact + 0.01
    nearest = torch.cdist(result.draws["z"], MEANS.to(result.draws["z"])).argmin(1)
    assert len(nearest.unique()) == 5
    assert len(result.losses) > 60  # both ways of training
    # A map that is far from the identity is followed too: the mixture is one of its own space.
    guide = AutoMixture(
        five,
        5,
        num_prior_draws=0,
        transforms=lambda _: dist.transforms.AffineTransform(3.0, 2.0, event_dim=1),
    )
    guide(rows)
    joint = UnconstrainedJoint(five, guide, (rows,))
    z = torch.randn(6, 2)
    expected = joint(3 + 2 * z.to(guide.mixture.loc)) + 2 * math.log(2.0)
    torch.testing.assert_close(_pulled_back(joint, guide)(z), expected.to(z))


def test_annealing_counts_points_without_a_density_as_impossible():
    """A hole in the density, where its gradient is not a number either."""

    def target(z):
        return torch.where(z.squeeze(-1) > 0, -z.squeeze(-1), z.squeeze(-1).sqrt())

    start = mixture([1.0], [[0.0]], [[[3.0]]])
    z = anneal(target, start.log_prob, start.sample((4000,)))
    assert (z > 0).all()
    assert float(z.mean()) == pytest.approx(1.0, abs=0.12)


def far_apart():
    z = pyro.sample("z", dist.Normal(0.0, 10.0))
    pyro.sample("x", dist.Normal(z.abs(), 0.5), obs=torch.tensor(8.0))


def test_parts_that_there_is_no_room_for_are_told():
    """Each mode by itself is normal, so that weights alone look perfect."""
    guide = AutoMixture(far_apart, num_components=1)
    with pytest.warns(UserWarning, match="Raise max_components or steps") as caught:
        result = fit_guide(
            far_apart, guide, max_components=1, steps=60, seed=0, num_draws=500, progress_bar=False
        )
    assert caught[0].filename == __file__
    assert result.missed
    assert not result.reliable
    assert "parts of the posterior are missed" in str(result)


def test_priors_may_be_wider_by_many_orders_of_magnitude():
    def vague():
        z = pyro.sample("z", dist.Normal(0.0, 1e6))
        pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(123.0))

    guide = AutoMixture(vague, num_components=2, num_prior_draws=200)
    result = fit_guide(vague, guide, seed=0, num_draws=500, progress_bar=False)
    exact = float(dist.Normal(0.0, 1e6).log_prob(torch.tensor(123.0)))
    assert result.log_evidence == pytest.approx(exact, abs=0.01)
    assert float(result.mean("z")) == pytest.approx(123.0, abs=0.3)


def test_parameters_of_a_guide_that_has_grown_are_loaded():
    settings = {"num_prior_draws": 100}
    guide = AutoMixture(far_apart, num_components=1, **settings)
    fit_guide(far_apart, guide, steps=150, seed=0, num_draws=500, progress_bar=False)
    count = guide.num_components
    assert count > 1
    saved = guide.state_dict()
    other = AutoMixture(far_apart, num_components=5, **settings)
    with pytest.warns(UserWarning, match=f"num_components={count}"):
        other()
    pyro.clear_param_store()
    fresh = AutoMixture(far_apart, num_components=5, **settings)
    with pytest.raises(RuntimeError, match="call it once"):
        fresh.load_state_dict(saved)
    fresh()
    fresh.load_state_dict(saved)
    assert fresh.num_components == count
    torch.testing.assert_close(fresh.get_posterior().loc, guide.get_posterior().loc)


def test_models_that_fail_with_many_draws_are_told_what_to_do():
    def branches():
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        loc = z if z > 0 else -z
        pyro.sample("x", dist.Normal(loc, 1.0), obs=torch.tensor(1.0))

    with pytest.raises(ValueError, match=r"vectorize=False.*ambiguous"):
        fit_guide(branches, AutoMixture(branches, 1, num_prior_draws=0), progress_bar=False)
