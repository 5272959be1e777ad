"""Posteriors and likelihoods that are learnt from simulations, against exact ones."""

import math

import pyro
import pytest
import torch
from pyro.infer import MCMC, NUTS
from torch.distributions import Independent, MultivariateNormal, Normal, Uniform

from pyromix.simulations import SimulationModel, learn_joint

COUNT = 4000
SLOPES = [[1.0, 0.0], [0.5, -1.0], [0.3, 2.0]]
NOISE = [0.8, 0.5, 1.0]
SEEN = [1.5, 4.0, -5.0]


def prior():
    return MultivariateNormal(torch.tensor([1.0, -2.0]), torch.tensor([[1.0, 0.6], [0.6, 1.5]]))


def linear(theta):
    return theta @ torch.tensor(SLOPES).T + torch.tensor(NOISE) * torch.randn(len(theta), 3)


def exact(columns):
    """The posterior given some of the columns of `SEEN`, by the rules of normals."""
    law, slopes = prior(), torch.tensor(SLOPES)[columns]
    precision = torch.diag(torch.tensor(NOISE)[columns] ** -2)
    total = law.precision_matrix + slopes.T @ precision @ slopes
    pull = law.precision_matrix @ law.mean + slopes.T @ precision @ torch.tensor(SEEN)[columns]
    return MultivariateNormal(torch.linalg.solve(total, pull), precision_matrix=total)


@pytest.fixture(scope="module")
def model():
    """Networks stay near their start, the linear regression, whose error is known."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    options = {"num_components": (1,), "num_members": 2, "steps": 20, "lr": 1e-5}
    yield learn_joint(prior(), linear, COUNT, seed=0, progress_bar=False, **options)
    torch.set_default_dtype(before)


def tolerance(scale, draws):
    """Six standard errors: of a regression on four numbers from `COUNT` rows, and of draws.

    `SEEN` is within two standard deviations of all columns, which at most doubles the error of
    a regression at its centre for each of them.
    """
    return 6 * scale * (math.sqrt((1 + 3 * 4) / COUNT) + math.sqrt(1 / draws))


@pytest.mark.parametrize("route", ["likelihood", "network"])
def test_the_posterior_of_a_linear_simulator_is_exact(model, route):
    law, right = model.posterior(SEEN, route=route), exact([0, 1, 2])
    limit = tolerance(right.stddev, 10_000 / 3)  # effective draws of importance sampling
    assert ((law.mean - right.mean).abs() < limit).all()
    assert ((law.stddev - right.stddev).abs() < limit).all()
    low, high = law.interval(0.8)
    reach = Normal(0.0, 1.0).icdf(torch.tensor(0.9)) * right.stddev
    # The density of a normal at these quantiles is 0.175: errors of quantiles are larger.
    assert ((low - (right.mean - reach)).abs() < 0.4 / 0.175 * limit).all()
    assert ((high - (right.mean + reach)).abs() < 0.4 / 0.175 * limit).all()
    points = right.sample((500,))
    gap = (law.log_prob(points) - right.log_prob(points)).abs()
    # Of p = 11 numbers, each of an error of 1 / sqrt(N) in its own units.
    assert gap.mean() < 4 * math.sqrt(11 / COUNT)


def test_missing_columns_are_integrated_out(model):
    seen = [SEEN[0], math.nan, SEEN[2]]
    law, right = model.posterior(seen), exact([0, 2])
    limit = tolerance(right.stddev, 10_000 / 3)
    assert ((law.mean - right.mean).abs() < limit).all()
    assert ((law.stddev - right.stddev).abs() < limit).all()


def test_a_missing_column_marginalises_the_likelihood_exactly(model):
    law = model.posterior([SEEN[0], math.nan, SEEN[2]])
    theta = prior().sample((5,))
    grid = torch.linspace(-60, 60, 4001)
    whole = torch.stack([torch.tensor([SEEN[0], float(v), SEEN[2]]) for v in grid])
    density = model.likelihood(theta).log_prob(whole.unsqueeze(1)).exp()  # (grid, 5)
    integral = torch.trapezoid(density, grid, dim=0).log() + prior().log_prob(theta)
    kept = law.log_prob(theta) + law.log_evidence()[0]
    assert torch.allclose(kept, integral, atol=1e-6)


def test_with_all_missing_the_posterior_is_the_prior(model):
    law = model.posterior([math.nan] * 3)
    theta = prior().sample((10,))
    assert torch.allclose(law.log_prob(theta), prior().log_prob(theta), atol=1e-9)


def test_the_evidence_is_that_of_the_normal(model):
    slopes, law = torch.tensor(SLOPES), prior()
    covariance = slopes @ law.covariance_matrix @ slopes.T + torch.diag(torch.tensor(NOISE) ** 2)
    right = MultivariateNormal(slopes @ law.mean, covariance).log_prob(torch.tensor(SEEN))
    value, error = model.posterior(SEEN, route="likelihood").log_evidence()
    # Nine numbers of the law of x are estimated, besides a Mahalanobis distance below 9.
    assert abs(float(value - right)) < 6 * (float(error) + 9 * math.sqrt(1 / COUNT))


def test_the_likelihood_is_that_of_the_simulator(model):
    theta = prior().sample((200,))
    x = linear(theta)
    right = Independent(Normal(theta @ torch.tensor(SLOPES).T, torch.tensor(NOISE)), 1)
    gap = model.likelihood(theta).log_prob(x) - right.log_prob(x)
    assert gap.abs().mean() < 0.1
    assert model.likelihood(theta).sample((7,)).shape == (7, 200, 3)


def test_the_likelihood_has_gradients(model):
    theta = prior().sample()
    assert torch.autograd.gradcheck(
        lambda t: model.likelihood(t).log_prob(torch.tensor(SEEN)), theta.requires_grad_()
    )


def test_the_likelihood_takes_part_in_a_pyro_model(model):
    observed = torch.tensor([SEEN, [0.5, 4.0, -4.0]])

    def program():
        theta = pyro.sample(
            "theta", pyro.distributions.MultivariateNormal(prior().mean, prior().covariance_matrix)
        )
        with pyro.plate("observations", 2):
            pyro.sample("x", model.likelihood(theta), obs=observed)

    pyro.set_rng_seed(0)
    chain = MCMC(NUTS(program), num_samples=100, warmup_steps=30, disable_progbar=True)
    chain.run()
    draws = chain.get_samples()["theta"]
    law, slopes = prior(), torch.tensor(SLOPES)
    precision = torch.diag(torch.tensor(NOISE) ** -2)
    total = law.precision_matrix + 2 * slopes.T @ precision @ slopes
    pull = law.precision_matrix @ law.mean + slopes.T @ precision @ observed.sum(0)
    right = MultivariateNormal(torch.linalg.solve(total, pull), precision_matrix=total)
    assert ((draws.mean(0) - right.mean).abs() < tolerance(right.stddev, 30)).all()


def truncated(theta):
    return theta + 0.3 * torch.randn_like(theta)


def test_posteriors_stay_within_the_support():
    box = Independent(Uniform(-torch.ones(2), torch.ones(2)), 1)
    model = learn_joint(
        box,
        truncated,
        COUNT,
        num_components=(1,),
        num_members=1,
        steps=60,
        seed=0,
        progress_bar=False,
    )
    assert model.route == "likelihood"  # which is normal, and the posterior is not
    seen = torch.tensor([0.95, 0.0])
    for route in ("likelihood", "network"):
        law = model.posterior(seen, route=route)
        draws = law.sample((2000,))
        assert box.support.check(draws).all()
        assert law.log_prob(torch.tensor([1.2, 0.0])) == -math.inf
        grid = torch.linspace(-0.9999, 0.9999, 200)
        density = law.log_prob(torch.cartesian_prod(grid, grid)).exp().reshape(200, 200)
        mass = torch.trapezoid(torch.trapezoid(density, grid), grid)
        assert abs(float(mass) - 1) < 0.03
    # Of a normal around 0.95 that ends at one: its mean, by the error function.
    law = model.posterior(seen)
    low, high = (-1 - 0.95) / 0.3, (1 - 0.95) / 0.3
    unit = Normal(0.0, 1.0)
    density = unit.log_prob(torch.tensor([low, high])).exp()
    share = unit.cdf(torch.tensor(high)) - unit.cdf(torch.tensor(low))
    right = 0.95 + 0.3 * (density[0] - density[1]) / share
    assert abs(float(law.mean[0] - right)) < float(tolerance(torch.tensor(0.2), 3000))


def test_several_modes_are_found():
    """The sign of a parameter is not known: a posterior of two halves of equal weight."""
    law = Independent(Normal(torch.zeros(1), torch.ones(1)), 1)
    model = learn_joint(
        law,
        lambda theta: theta.abs() + 0.1 * torch.randn_like(theta),
        COUNT,
        num_components=(4,),
        num_members=1,
        hidden_dims=(32,),
        steps=300,
        lr=0.01,
        seed=0,
        progress_bar=False,
    )
    posterior = model.posterior([1.0])
    draws = posterior.sample((2000,))[:, 0]
    # Six standard deviations of the noise; of what is learnt, a percent may be in between.
    assert ((draws.abs() > 0.4).double().mean()) > 0.98
    share = float((draws > 0).double().mean())
    # The model's own error of log-densities is about 0.1: of a share, a quarter of it and more.
    assert abs(share - 0.5) < 0.1
    # Draws and density are of one law: Kolmogorov's distance, at a level of 1e-6.
    grid = torch.linspace(-4, 4, 8001)
    density = posterior.log_prob(grid.unsqueeze(-1)).exp()
    below = torch.cumulative_trapezoid(density, grid)
    assert abs(float(below[-1]) - 1) < 0.02
    ranks = torch.arange(1, 2001) / 2000
    gap = below[torch.searchsorted(grid[1:].contiguous(), draws.sort().values)] - ranks
    assert gap.abs().max() < 2.7 / math.sqrt(2000) + 0.02


def test_seeds_decide_everything():
    options = {"num_components": (1,), "num_members": 1, "steps": 5, "progress_bar": False}
    first, second = (learn_joint(prior(), linear, 300, seed=3, **options) for _ in range(2))
    assert first.scores == second.scores
    points = prior().sample((4,))
    assert torch.equal(
        first.posterior(SEEN).log_prob(points), second.posterior(SEEN).log_prob(points)
    )
    law = first.posterior(SEEN)
    draws = [law.sample((3,), generator=torch.Generator().manual_seed(1)) for _ in range(2)]
    assert torch.equal(*draws)


def test_networks_take_many_simulations(model):
    x = linear(prior().sample((6,))).reshape(2, 3, 3)
    law = model.posterior(x, route="network")
    assert law.batch_shape == (2, 3)
    assert law.sample((4,)).shape == (4, 2, 3, 2)
    assert law.mean.shape == (2, 3, 2)
    value = prior().sample((2, 3))
    one = model.posterior(x[1, 2], route="network")
    assert torch.allclose(law.log_prob(value)[1, 2], one.log_prob(value[1, 2]))


def test_a_model_needs_training():
    untrained = SimulationModel(prior())
    for call in (untrained.posterior, untrained.likelihood):
        with pytest.raises(ValueError, match=r"has learnt from simulations: call fit"):
            call(SEEN)
