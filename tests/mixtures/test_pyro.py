"""Mixtures inside Pyro's inference, against answers known by quadrature."""

import math
import warnings

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from pyro.infer import MCMC, NUTS, SVI, Trace_ELBO, TraceEnum_ELBO, config_enumerate
from pyro.infer.autoguide import AutoNormal
from pyro.optim import ClippedAdam

from pyromix import GaussianMixture, MixtureOfMultivariateNormals, MixtureOfNormals
from pyromix.mixtures.covariance import STRUCTURES

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # announces its coming refactoring
    import arviz


def prior():
    return MixtureOfNormals(
        torch.tensor([0.6, 0.4]).log(),
        torch.tensor([[-1.0, 0.0], [1.2, 0.8]]),
        torch.tensor([[0.6, 1.0], [0.8, 0.5]]),
    )


OBSERVED, NOISE = torch.tensor(0.3), 0.7


def model():
    z = pyro.sample("z", prior())
    pyro.sample("y", dist.Normal(z.sum(-1), NOISE), obs=OBSERVED)


def posterior_by_quadrature():
    """Mean and variance of z given y, on a grid."""
    axis = torch.linspace(-7, 7, 281)
    z = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), -1)
    log_weight = prior().log_prob(z) + dist.Normal(z.sum(-1), NOISE).log_prob(OBSERVED)
    weight = (log_weight - log_weight.max()).exp()
    weight = weight / weight.sum()
    mean = (weight.unsqueeze(-1) * z).sum((0, 1))
    return mean, (weight.unsqueeze(-1) * (z - mean).square()).sum((0, 1))


def test_nuts_recovers_a_posterior_known_by_quadrature():
    chains = []
    for seed in range(2):
        pyro.set_rng_seed(seed)
        mcmc = MCMC(NUTS(model), num_samples=150, warmup_steps=80, disable_progbar=True)
        mcmc.run()
        chains.append(mcmc.get_samples()["z"])
    draws = torch.stack(chains)  # (chain, draw, 2)
    data = arviz.convert_to_dataset(draws.numpy())
    assert float(arviz.rhat(data).x.max()) < 1.1
    mean, variance = posterior_by_quadrature()
    mean_error = torch.as_tensor(arviz.mcse(data).x.values)
    assert ((draws.mean((0, 1)) - mean).abs() < 4 * mean_error).all()
    deviation = arviz.convert_to_dataset((draws - mean).square().numpy())
    variance_error = torch.as_tensor(arviz.mcse(deviation).x.values)
    spread = (draws - mean).square().mean((0, 1))
    assert ((spread - variance).abs() < 4 * variance_error).all()


def test_a_mixture_guide_fits_a_posterior_with_two_modes():
    """Pathwise gradients: the guide's components find a mode each."""
    target = MixtureOfNormals(
        torch.tensor([0.3, 0.7]).log(), torch.tensor([[-2.0], [2.0]]), torch.full((2, 1), 0.8)
    )
    guide_law = GaussianMixture(1, 2)
    with torch.no_grad():
        guide_law.loc.copy_(torch.tensor([[-0.5], [0.5]]))

    def guide():
        pyro.module("guide", guide_law)
        pyro.sample("z", guide_law)

    elbo = Trace_ELBO(num_particles=64, vectorize_particles=True, max_plate_nesting=0)
    svi = SVI(lambda: pyro.sample("z", target), guide, ClippedAdam({"lr": 0.03}), elbo)
    losses = [svi.step() for _ in range(400)]
    assert sum(losses[-50:]) / 50 < 0.02  # the divergence from the target
    weights, order = guide_law.logits.softmax(-1).detach().sort()
    torch.testing.assert_close(weights, torch.tensor([0.3, 0.7]), atol=0.08, rtol=0)
    torch.testing.assert_close(
        guide_law.loc.detach()[order], torch.tensor([[-2.0], [2.0]]), atol=0.2, rtol=0
    )


@pytest.mark.parametrize("dim", [1, 4])
def test_pathwise_elbo_gradients_have_lower_variance(dim):
    """Against the score function, on a posterior of moderate separation."""
    target = MixtureOfNormals(torch.zeros(2), torch.randn(2, dim), torch.ones(2, dim))
    law = GaussianMixture(dim, 3)
    elbo = Trace_ELBO(num_particles=100, vectorize_particles=True, max_plate_nesting=0)

    def gradients(pathwise):
        law.has_rsample_(pathwise)
        rows = []
        for _ in range(100):
            loss = elbo.differentiable_loss(
                lambda: pyro.sample("z", target), lambda: pyro.sample("z", law)
            )
            grads = torch.autograd.grad(loss, list(law.parameters()))
            rows.append(torch.cat([g.flatten() for g in grads]))
        return torch.stack(rows)

    pathwise, score_function = gradients(True), gradients(False)
    error = ((pathwise.var(0) + score_function.var(0)) / 100).sqrt()
    assert ((pathwise.mean(0) - score_function.mean(0)).abs() < 5 * error).all()
    assert pathwise.var(0).sum() < 0.5 * score_function.var(0).sum()


def test_learnable_prior_in_a_plate():
    """Maximum likelihood of the prior's parameters inside a Pyro model."""
    data = torch.cat([torch.randn(100, 2) * 0.3 - 2, torch.randn(100, 2) * 0.3 + 2])
    law = GaussianMixture(2, 2)
    law.initialize(data)

    def density(data):
        pyro.module("law", law)
        with pyro.plate("items", len(data)):
            pyro.sample("x", law, obs=data)

    svi = SVI(density, lambda data: None, ClippedAdam({"lr": 0.02}), Trace_ELBO())
    losses = [svi.step(data) for _ in range(100)]
    entropy = math.log(2) + 2 * (1.4189385 + math.log(0.3))
    assert losses[-1] < losses[0]
    assert abs(losses[-1] / len(data) - entropy) < 0.15


def test_learnable_prior_with_an_autoguide():
    law = GaussianMixture(2, 2)

    def latent(data):
        pyro.module("law", law)
        with pyro.plate("items", len(data)):
            z = pyro.sample("z", law)
            pyro.sample("x", dist.Normal(z, 0.1).to_event(1), obs=data)

    data = torch.randn(30, 2)
    before = law.loc.detach().clone()
    svi = SVI(latent, AutoNormal(latent), ClippedAdam({"lr": 0.05}), Trace_ELBO())
    losses = [svi.step(data) for _ in range(100)]
    assert losses[-1] < losses[0]
    assert not torch.equal(law.loc, before)


@pytest.mark.parametrize("covariance", list(STRUCTURES))
def test_a_network_of_mixtures_given_an_enumerated_latent(covariance):
    """Components' parameters differ along dimensions that values do not have."""
    model = GaussianMixture(2, 3, covariance, context_dim=2, hidden_dims=(4,))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    data, labels = torch.randn(5, 2), torch.eye(2)

    @config_enumerate
    def prior():
        label = pyro.sample("label", dist.Categorical(torch.full((2,), 0.5)))
        with pyro.plate("n", 5):
            pyro.sample("x", model.condition(labels[label]), obs=data)

    loss = TraceEnum_ELBO(max_plate_nesting=1).loss(prior, lambda: None)
    parts = torch.stack([model.condition(label).log_prob(data).sum() for label in labels])
    expected = -(parts.logsumexp(0) - math.log(2)).item()
    assert loss == pytest.approx(expected)


def test_weights_of_a_batch_over_one_tied_covariance_score_one_value_each():
    logits, loc = torch.randn(4, 3), torch.randn(3, 2)
    law = MixtureOfMultivariateNormals(logits, loc, torch.eye(2).unsqueeze(0))
    x = torch.randn(2)
    each = [MixtureOfMultivariateNormals(w, loc, torch.eye(2).unsqueeze(0)) for w in logits]
    expected = torch.stack([one.log_prob(x) for one in each])
    torch.testing.assert_close(law.log_prob(x), expected)
    torch.testing.assert_close(law.expand((6, 4)).log_prob(x), expected.expand(6, 4))
    assert law.expand((6, 4)).responsibilities(x).shape == (6, 4, 3)


def test_lifted_parameters_are_those_of_the_law_where_pyro_updates_the_module():
    model = GaussianMixture(1, 1)

    def program():
        return pyro.sample("x", pyro.module("m", model, update_module_params=True))

    far = dist.Normal(torch.full((1, 1), 100.0), 0.1).to_event(2)
    assert abs(poutine.lift(program, prior={"loc": far})().item() - 100.0) < 10.0


def test_compiled_nuts_takes_a_law_whose_parameters_require_no_gradient():
    model = GaussianMixture(2, 2).requires_grad_(False)
    kernel = NUTS(lambda: pyro.sample("x", model), jit_compile=True, ignore_jit_warnings=True)
    kernel._max_tree_depth = 3
    mcmc = MCMC(kernel, num_samples=5, warmup_steps=5, disable_progbar=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of PyTorch's JIT
        mcmc.run()
    assert mcmc.get_samples()["x"].isfinite().all()
