"""Sequences inside Pyro: as likelihood, as prior and as guide."""

import math
import warnings

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from pyro.infer import MCMC, NUTS, SVI, JitTrace_ELBO, Trace_ELBO
from pyro.optim import ClippedAdam

from pyromix import FRMDN

from .models import KINDS, build, close, inputs, law_of, values
from .test_draws import STANDARD_ERRORS, grid, planar_model

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # announces its coming refactoring
    import arviz


# ---- as a likelihood --------------------------------------------------------------------------


def test_maximum_likelihood_of_ragged_sequences():
    """Pyro finds all parameters, and its loss is that of `fit`."""
    model = FRMDN(2, 5, 2, hidden_dim=8, context_dim=1)
    context = torch.randn(60, 5, 1)
    y = 3 * context + 0.1 * torch.randn(60, 5, 2)
    lengths = torch.arange(60) % 5 + 1
    y = torch.where(torch.arange(5).unsqueeze(-1) < lengths.reshape(-1, 1, 1), y, math.nan)
    model.initialize({"value": y, "context": context, "lengths": lengths})
    before = {name: p.detach().clone() for name, p in model.named_parameters()}

    def program():
        pyro.module("model", model)
        with pyro.plate("sequences", 60):
            pyro.sample("y", model.condition(context, lengths=lengths), obs=y)

    svi = SVI(program, lambda: None, ClippedAdam({"lr": 0.02}), Trace_ELBO())
    start = svi.evaluate_loss()
    loss = 60 * model.loss({"value": y, "context": context, "lengths": lengths})
    close(torch.tensor(start), loss.detach())
    for _ in range(40):
        svi.step()
    assert set(pyro.get_param_store().keys()) == {f"model$$${name}" for name in before}
    assert all(not torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert svi.evaluate_loss() < start - 0.5 * int(lengths.sum())


@pytest.mark.parametrize("name", ["lstm", "driven", "folds", "static", "all of it, bidirectional"])
def test_traces(name):
    model = build(**KINDS[name])
    given, y = inputs(model, 4), values(model, 4)
    lengths = torch.tensor([1, 4, 2, 3])

    def program():
        with pyro.plate("sequences", 4):
            pyro.sample("prior", law_of(model, given))
            pyro.sample("likelihood", model.condition(**given, lengths=lengths), obs=y)

    trace = poutine.trace(program).get_trace()
    drawn = trace.nodes["prior"]["value"]
    assert drawn.shape == (4, 4, model.dim)
    assert not torch.equal(drawn[0], drawn[1])
    expected = law_of(model, given).log_prob(drawn).sum()
    expected = expected + model.condition(**given, lengths=lengths).log_prob(y).sum()
    close(trace.log_prob_sum(), expected)


def test_plates_expand_and_subsample():
    model = build(static_dim=1)
    static, y = torch.randn(6, 1), values(model, 6)

    def program():
        with pyro.plate("copies", 3, dim=-2), pyro.plate("one law", 6, dim=-1):
            pyro.sample("x", model.condition(torch.zeros(1)))
        with pyro.plate("sequences", 6, subsample_size=2, dim=-1) as index:
            pyro.sample("y", model.condition(static[index]), obs=y[index])

    trace = poutine.trace(program).get_trace()
    assert trace.nodes["x"]["value"].shape == (3, 6, 4, 3)
    trace.compute_log_prob()
    index = trace.nodes["sequences"]["value"]
    expected = 3 * model.condition(static[index]).log_prob(y[index]).sum()
    close(trace.nodes["y"]["log_prob_sum"], expected)
    masked = model.condition(static).mask(torch.arange(6) < 2).log_prob(y)
    close(masked, torch.where(torch.arange(6) < 2, model.condition(static).log_prob(y), 0.0))
    joint = model.condition(static).to_event(1)
    close(joint.log_prob(y), model.condition(static).log_prob(y).sum())


def test_missing_sequences_are_drawn():
    """A mask of observed ones, as Pyro's plates have it."""
    model = build()
    y, seen = values(model, 4), torch.tensor([True, False, True, True])

    def program():
        with pyro.plate("sequences", 4):
            return pyro.sample("y", model.expand((4,)), obs=y, obs_mask=seen)

    drawn = poutine.trace(program).get_trace().nodes["_RETURN"]["value"]
    assert torch.equal(drawn[seen], y[seen])
    assert not torch.equal(drawn[1], y[1])


# ---- as a prior -------------------------------------------------------------------------------


def test_nuts_recovers_a_posterior_known_by_quadrature():
    options = {"context_dim": 1, "cell": "gru", "scale_floor": 0.4}  # one mode
    model = planar_model(options, num_components=2, strength=0.4)
    prior = model.requires_grad_(False).condition(torch.tensor([[1.0], [-2.0]]))
    draws = prior.sample((500,))
    noise = draws.std(0)
    observed = draws.mean(0) + noise

    def program():
        y = pyro.sample("y", prior)
        pyro.sample("seen", dist.Normal(y, noise).to_event(2), obs=observed)

    points, _ = grid(prior, margin=0.2)
    likelihood = dist.Normal(points, noise).to_event(2).log_prob(observed)
    weights = (prior.log_prob(points) + likelihood).softmax(0)
    mean = (weights.reshape(-1, 1, 1) * points).sum(0)
    assert ((mean - observed).abs() > 0.2 * noise).all()  # the prior matters
    pyro.set_rng_seed(1)
    mcmc = MCMC(
        NUTS(program, max_tree_depth=3), num_samples=150, warmup_steps=60, disable_progbar=True
    )
    mcmc.run()
    draws = mcmc.get_samples()["y"]
    data = arviz.convert_to_dataset(draws.unsqueeze(0).numpy())
    error = torch.as_tensor(arviz.mcse(data).x.values)
    assert ((draws.mean(0) - mean).abs() < 5 * error).all()
    assert (error < 0.4 * draws.std(0)).all()


# ---- as a guide -------------------------------------------------------------------------------


def target_and_guide(**options):
    """A correlated normal law of three steps, and a model of sequences of three numbers."""
    covariance = torch.tensor([[1.0, 0.8, 0.5], [0.8, 1.0, 0.7], [0.5, 0.7, 1.0]])
    target = dist.MultivariateNormal(torch.tensor([1.0, 0.0, -1.0]), covariance)
    return target, FRMDN(1, 3, options.pop("num_components", 1), hidden_dim=6, **options)


@pytest.mark.parametrize("elbo", [Trace_ELBO, JitTrace_ELBO])
def test_a_guide_finds_a_correlated_posterior(elbo):
    torch.manual_seed(0)
    target, model = target_and_guide()

    def program():
        y = pyro.sample("y", dist.Normal(torch.zeros(3, 1), 10.0).to_event(2))
        prior = dist.Normal(0.0, 10.0).log_prob(y).sum((-1, -2))
        pyro.factor("target", target.log_prob(y.squeeze(-1)) - prior)

    def guide():
        pyro.module("guide", model)
        pyro.sample("y", model)

    options = {"ignore_jit_warnings": True} if elbo is JitTrace_ELBO else {}
    loss = elbo(num_particles=32, vectorize_particles=True, max_plate_nesting=0, **options)
    svi = SVI(program, guide, ClippedAdam({"lr": 0.03}), loss)
    steps = 120
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # PyTorch deprecates its JIT
        losses = [svi.step() for _ in range(steps)]
    # The divergence; it is zero at best, as the target is a normal autoregression.
    assert sum(losses[-20:]) / 20 < 0.15
    assert losses[0] > 1.0
    y = model.sample((2000,)).squeeze(-1)
    assert (torch.cov(y.mT) - target.covariance_matrix).abs().max() < 0.35


def test_elbo_gradients_are_unbiased():
    """Pathwise, and by the score function when Pyro switches those off."""
    _, model = target_and_guide(num_components=2)
    model = FRMDN(1, 2, 2, hidden_dim=4)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.4 * torch.randn_like(p))
    target = dist.Normal(torch.zeros(2, 1), torch.ones(2, 1)).to_event(2)
    parameters = list(model.parameters())
    direction = [torch.randn_like(p) for p in parameters]

    def along(loss):
        grads = torch.autograd.grad(loss, parameters, materialize_grads=True)
        return sum((v * g).sum() for v, g in zip(direction, grads, strict=True))

    points, volume = grid(model)
    log_q, log_p = model.log_prob(points), target.log_prob(points)
    expected = along((log_q.exp() * (log_q - log_p)).sum() * volume)
    elbo = Trace_ELBO(num_particles=200, vectorize_particles=True, max_plate_nesting=0)
    for pathwise in (True, False):
        model.has_rsample_(pathwise)
        rows = torch.stack(
            [
                along(
                    elbo.differentiable_loss(
                        lambda: pyro.sample("y", target), lambda: pyro.sample("y", model)
                    )
                )
                for _ in range(30)
            ]
        )
        error = rows.std() / math.sqrt(len(rows))
        assert abs(rows.mean() - expected) < STANDARD_ERRORS * error
        assert error < 0.5 * abs(expected)


def test_draw_and_density_in_one_pass():
    for name in ("lstm", "driven", "all of it"):
        model = build(**KINDS[name])
        given = inputs(model, 2)
        law = law_of(model, given, torch.tensor([4, 2]))
        x, log_prob = law.rsample_and_log_prob((5,))
        assert (x.shape, log_prob.shape) == ((5, 2, 4, 3), (5, 2))
        close(log_prob, law.log_prob(x))
        assert x.requires_grad
        law.has_rsample_(False)
        x, log_prob = law.rsample_and_log_prob((5,))
        assert not x.requires_grad
        assert not log_prob.requires_grad
        assert not law().requires_grad
