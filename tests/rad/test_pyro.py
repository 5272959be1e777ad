"""Folds inside Pyro's inference, against answers known by quadrature."""

import functools
import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS, SVI, JitTrace_ELBO, Trace_ELBO, TraceGraph_ELBO
from pyro.optim import ClippedAdam

from pyromix import RAD, Flow, Fold, FoldingCoupling, MixtureOfNormals

from .slow import box, grid, normal, sharpen

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # announces its coming refactoring
    import arviz

STANDARD_ERRORS = 6.0


def close(got, expected, tolerance=1e-9):
    torch.testing.assert_close(got, expected, atol=tolerance, rtol=tolerance)


# ---- gradients as a guide ---------------------------------------------------------------------


def line():
    torch.manual_seed(3)
    law = Flow(dist.Normal(0.0, 1.0), [sharpen(Fold((4,)))])
    logits, loc = torch.tensor([0.3, 0.7]).log(), torch.tensor([[-1.5], [1.0]])
    mixture = MixtureOfNormals(logits, loc, torch.tensor([[0.7], [1.0]]))
    return law, dist.TransformedDistribution(mixture, [dist.transforms.ReshapeTransform((1,), ())])


def plane():
    torch.manual_seed(1)
    law = sharpen(RAD(2, num_layers=1, hidden_dims=(4,)), 1.5)
    loc = torch.tensor([[-1.0, -1.0], [1.0, 0.5]])
    return law, MixtureOfNormals(torch.zeros(2), loc, torch.full((2, 2), 0.9))


def plane_on_a_learnable_base():
    """A base's score and its pathwise gradient go on to its parameters."""
    law, target = plane()
    base = dist.Normal(torch.nn.Parameter(torch.tensor([0.3, -0.2])), torch.ones(2)).to_event(1)
    return Flow(base, list(law.transforms)[:1]), target


GUIDES = {"line": line, "plane": plane, "plane, learnable": plane_on_a_learnable_base}
guides = pytest.mark.parametrize("make", GUIDES.values(), ids=GUIDES)


class Directions:
    """Gradients along a few fixed random directions."""

    def __init__(self, law, num=4):
        generator = torch.Generator().manual_seed(0)
        self.parameters = list(law.parameters())
        self.directions = [
            torch.randn(num, *p.shape, generator=generator) for p in self.parameters
        ]

    def __call__(self, loss):
        return self.apply(torch.autograd.grad(loss, self.parameters, materialize_grads=True))

    def apply(self, grads):
        pairs = zip(self.directions, grads, strict=True)
        return sum((v * g).flatten(1).sum(1) for v, g in pairs)


@functools.cache
def exact(make):
    """The gradient of the integral of q log(q / p), through the sum over a grid."""
    law, target = make()
    project = Directions(law)
    dim = max(1, len(law.event_shape) and law.event_shape[0])
    low, high = box(law, margin=0.1)
    # Gradients of the density jump at creases: the grid has to be fine.
    points, volume = grid(low, high, 20_001 if dim == 1 else 1201)
    points = points if law.event_shape else points.squeeze(-1)
    mass, gradient = 0.0, 0.0
    for part in points.split(50_000):
        log_q, log_p = law.log_prob(part), target.log_prob(part)
        mass += float(log_q.detach().exp().sum() * volume)
        gradient = gradient + project((log_q.exp() * (log_q - log_p)).sum() * volume)
    assert abs(mass - 1) < 1e-3
    return gradient


def is_zero_mean(rows, expected):
    """How many standard errors the mean lies away, at most, and at how many directions."""
    error = rows.std(0) / math.sqrt(len(rows))
    return float(((rows.mean(0) - expected).abs() / error).max())


@guides
def test_elbo_gradients_are_unbiased(make):
    """Against the exact ones; without the branches' score they would not be."""
    law, target = make()
    project = Directions(law)
    expected = exact(make)
    num, batches = 500, 60

    def graph_elbo():
        elbo = TraceGraph_ELBO(num_particles=num, vectorize_particles=True, max_plate_nesting=0)
        for p in project.parameters:
            p.grad = None
        elbo.loss_and_grads(lambda: pyro.sample("x", target), lambda: pyro.sample("x", law))
        return project.apply([p.grad for p in project.parameters])

    def trace_elbo():
        elbo = Trace_ELBO(num_particles=num, vectorize_particles=True, max_plate_nesting=0)
        return elbo.differentiable_loss(
            lambda: pyro.sample("x", target), lambda: pyro.sample("x", law)
        )

    def score_function():
        x = law.sample((num,))
        log_q = law.log_prob(x)
        return ((log_q - target.log_prob(x)).detach() * log_q).mean()

    def without_branches():
        x = law((num,))
        return (law.score_parts(x).log_prob - target.log_prob(x)).mean()

    def sample(loss):
        return torch.stack([project(loss()) for _ in range(batches)])

    partly, score = sample(trace_elbo), sample(score_function)
    graph = torch.stack([graph_elbo() for _ in range(batches)])
    assert is_zero_mean(partly, expected) < STANDARD_ERRORS
    assert is_zero_mean(graph, expected) < STANDARD_ERRORS
    assert is_zero_mean(score, expected) < STANDARD_ERRORS
    # The point of the pathwise part, and of the score of the branches.
    assert partly.var(0).sum() < 0.8 * score.var(0).sum()
    assert is_zero_mean(sample(without_branches), expected) > STANDARD_ERRORS


def test_score_parts():
    law, _ = plane()
    x = law((50,))
    assert x.requires_grad
    parts = law.score_parts(x)
    fresh = x.detach()
    close(parts.log_prob, law.log_prob(fresh))
    assert torch.equal(parts.entropy_term, parts.log_prob)
    assert parts.score_function.requires_grad
    # A value without a graph has the score of the whole law.
    parts = law.score_parts(fresh)
    close(parts.score_function, law.log_prob(fresh))
    assert parts.entropy_term == 0


def test_pathwise_gradients_cannot_be_switched_on():
    for law in (RAD(2), Flow(normal(2), [Fold()]), RAD(2).expand((3,))):
        with pytest.raises(ValueError, match="no pathwise gradients"):
            law.has_rsample_(True)
        law.has_rsample_(False)
        assert law().requires_grad  # given the branches


def test_a_base_without_pathwise_gradients():
    """The score of the whole law is all there is."""
    law = Flow(normal(2).has_rsample_(False), [FoldingCoupling(2)])
    x = law((20,))
    assert not x.requires_grad
    parts = law.score_parts(x)
    close(parts.score_function, law.log_prob(x))


@pytest.mark.parametrize("wrap", ["plate", "expand", "to_event"])
def test_wrapped_as_a_guide(wrap):
    """The gradient of a plate of two is twice that of one, and draws are independent."""
    law, target = plane()
    project = Directions(law)
    expected = 2 * exact(plane)

    def program(law):
        def run():
            if wrap == "plate":
                with pyro.plate("items", 2, dim=-1):
                    pyro.sample("x", law)
            elif wrap == "expand":
                with pyro.plate("items", 2, dim=-1):
                    pyro.sample("x", law.expand((2,)))
            else:
                pyro.sample("x", law.expand((2,)).to_event(1))

        return run

    elbo = Trace_ELBO(num_particles=200, vectorize_particles=True, max_plate_nesting=1)
    rows = torch.stack(
        [project(elbo.differentiable_loss(program(target), program(law))) for _ in range(40)]
    )
    assert is_zero_mean(rows, expected) < STANDARD_ERRORS


def test_as_a_guide_under_the_jit():
    """A draw without a gradient has none when it is replayed."""
    law, target = plane()
    project = Directions(law)
    expected = 2 * exact(plane)

    def model():
        pyro.sample("x", target.expand((2,)).to_event(1))

    def guide():
        pyro.module("law", law)
        pyro.sample("x", law.expand((2,)).to_event(1))

    elbo = JitTrace_ELBO(
        num_particles=200, vectorize_particles=True, max_plate_nesting=0, ignore_jit_warnings=True
    )
    rows = []
    for _ in range(40):
        law.zero_grad()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch deprecates its JIT
            elbo.loss_and_grads(model, guide)
        rows.append(project.apply([p.grad for p in project.parameters]))
    assert is_zero_mean(torch.stack(rows), expected) < STANDARD_ERRORS


# ---- training in Pyro -------------------------------------------------------------------------


def test_a_guide_finds_two_modes():
    torch.manual_seed(0)
    target = MixtureOfNormals(
        torch.tensor([0.3, 0.7]).log(), torch.tensor([[-2.0, 0.0], [2.0, 0.0]]), torch.ones(2, 2)
    )
    law = RAD(2, num_layers=2, partition=((0,), (0,)))

    def guide():
        pyro.module("guide", law)
        pyro.sample("x", law)

    elbo = Trace_ELBO(num_particles=32, vectorize_particles=True, max_plate_nesting=0)
    svi = SVI(lambda: pyro.sample("x", target), guide, ClippedAdam({"lr": 0.02}), elbo)
    losses = [svi.step() for _ in range(150)]  # noisy estimates of the divergence
    assert sum(losses[-30:]) < 0.4 * sum(losses[:30])
    x = law.sample((5000,))[:, 0]
    assert abs((x > 0).double().mean() - 0.7) < 0.2
    assert (x < -1.5).double().mean() > 0.05
    assert (x > 1.5).double().mean() > 0.3


def test_likelihood_in_a_plate():
    """Maximum likelihood of all parameters, which Pyro finds."""
    data = torch.cat([torch.randn(100, 2) * 0.3 - 2, torch.randn(100, 2) * 0.3 + 2])
    law = RAD(2, num_layers=2)
    law.initialize(data)
    before = {name: p.detach().clone() for name, p in law.named_parameters()}

    def density(data):
        pyro.module("law", law)
        with pyro.plate("items", len(data)):
            pyro.sample("x", law, obs=data)

    svi = SVI(density, lambda data: None, ClippedAdam({"lr": 0.02}), Trace_ELBO())
    start = svi.evaluate_loss(data)
    close(torch.tensor(start), -law.log_prob(data).sum().detach())
    for _ in range(60):
        svi.step(data)
    assert set(pyro.get_param_store().keys()) == {f"law$$${name}" for name in before}
    assert all(not torch.equal(p, before[name]) for name, p in law.named_parameters())
    assert svi.evaluate_loss(data) < start - 0.3 * len(data)


def test_conditional_law_as_a_guide():
    """Amortised: one guide for the posteriors of several observations."""
    torch.manual_seed(0)
    observed = torch.tensor([-1.5, 0.0, 1.5])
    law = RAD(1, num_layers=1, context_dim=1)

    def model():
        with pyro.plate("items", 3):
            z = pyro.sample("z", normal(1).to_event(1))
            pyro.sample("y", dist.Normal(z.squeeze(-1), 0.7), obs=observed)

    def guide():
        pyro.module("guide", law)
        with pyro.plate("items", 3):
            pyro.sample("z", law.condition(observed.unsqueeze(-1)))

    elbo = Trace_ELBO(num_particles=32, vectorize_particles=True, max_plate_nesting=1)
    svi = SVI(model, guide, ClippedAdam({"lr": 0.02}), elbo)
    losses = [svi.step() for _ in range(150)]
    exact = -dist.Normal(torch.zeros(3), math.sqrt(1.49)).log_prob(observed).sum()
    assert exact - 0.1 < sum(losses[-50:]) / 50 < exact + 0.5
    mean = law.condition(observed.unsqueeze(-1)).sample((4000,)).mean(0).squeeze(-1)
    torch.testing.assert_close(mean, observed / 1.49, atol=0.3, rtol=0)


# ---- as a prior -------------------------------------------------------------------------------


def test_nuts_recovers_a_posterior_known_by_quadrature():
    torch.manual_seed(2)
    prior = RAD(2, num_layers=1, hidden_dims=(4,)).requires_grad_(False)
    observed, noise = torch.tensor([0.7, -0.4]), 0.5

    def model():
        x = pyro.sample("x", prior)
        pyro.sample("y", dist.Normal(x, noise).to_event(1), obs=observed)

    points, _ = grid(*box(prior, margin=0.2), 401)
    likelihood = dist.Normal(points, noise).to_event(1).log_prob(observed)
    mean = (prior.log_prob(points) + likelihood).softmax(0) @ points
    assert ((mean - observed / (1 + noise**2)).abs() > 0.02).any()  # not as with a normal prior
    chains = []
    for seed in range(2):
        pyro.set_rng_seed(seed)
        mcmc = MCMC(
            NUTS(model, max_tree_depth=5), num_samples=120, warmup_steps=60, disable_progbar=True
        )
        mcmc.run()
        chains.append(mcmc.get_samples()["x"])
    draws = torch.stack(chains)
    data = arviz.convert_to_dataset(draws.numpy())
    assert float(arviz.rhat(data).x.max()) < 1.1
    error = torch.as_tensor(arviz.mcse(data).x.values)
    assert ((draws.mean((0, 1)) - mean).abs() < 5 * error).all()
    assert (error < 0.25 * draws.flatten(0, 1).std(0)).all()
