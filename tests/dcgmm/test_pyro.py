"""Inside Pyro: as likelihood, as prior and as part of a mixture of laws."""

import math
import warnings

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import torch
from pyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from pyro.optim import ClippedAdam

from .models import build, close, kinds
from .reference import Slow


@kinds("tree: 2L-b", "pixels")
def test_maximum_likelihood(name):
    """The law itself is trained, from another one's draws: not the loss of its layers."""
    data = build(name, seed=1, deviation=0.3).sample((200,))
    model = build(name, seed=2, deviation=0.8)

    def program(x):
        pyro.module("model", model)
        with pyro.plate("images", len(x)):
            pyro.sample("x", model, obs=x)

    svi = SVI(program, lambda x: None, ClippedAdam({"lr": 0.02}), Trace_ELBO())
    start = svi.evaluate_loss(data)
    close(torch.tensor(start), -model.log_prob(data).sum().detach())
    for _ in range(60):
        svi.step(data)
    assert svi.evaluate_loss(data) < start - 200  # a nat an image
    assert set(pyro.get_param_store().keys()) == {
        f"model$$${name}" for name, p in model.named_parameters() if p.requires_grad
    }


def test_a_prior_of_images():
    """A noisy image under the law: the posterior of a finite mixture of normals is one, too."""
    model = build("tree: folding, pooling", deviation=0.5).requires_grad_(False)
    law = Slow(model).law()
    observed = law.means[law.weights.argmax()].reshape(model.event_shape) + 0.2
    noise = 0.5

    def program():
        x = pyro.sample("x", model)
        pyro.sample("y", dist.Normal(x, noise).to_event(3), obs=observed)

    mcmc = MCMC(NUTS(program), num_samples=200, warmup_steps=100, disable_progbar=True)
    mcmc.run()
    x = mcmc.get_samples()["x"].flatten(1)
    total = law.variances + noise**2
    y = observed.flatten()
    scores = law.weights.log() - 0.5 * ((y - law.means) ** 2 / total + total.log()).sum(1)
    means = law.means + law.variances / total * (y - law.means)
    expected = scores.softmax(0) @ means
    assert scores.softmax(0).max() > 0.5
    # Draws of a chain count for less than independent ones.
    size = mcmc.diagnostics()["x"]["n_eff"].flatten()
    error = x.std(0) / size.clamp(min=10).sqrt()
    assert ((x.mean(0) - expected).abs() < 6 * error).all()


def test_missing_images_are_drawn():
    model = build("pixels")
    x, seen = model.sample((4,)), torch.tensor([True, False, True, True])

    def program():
        with pyro.plate("images", 4):
            return pyro.sample("x", model.expand((4,)), obs=x, obs_mask=seen)

    drawn = poutine.trace(program).get_trace().nodes["_RETURN"]["value"]
    assert torch.equal(drawn[seen], x[seen])
    assert not torch.equal(drawn[1], x[1])


def test_classes_as_a_latent_variable():
    """Summed out by Pyro, they leave the law."""
    model = build("tree: one layer", num_classes=3)
    with torch.no_grad():
        model.classifier.weight.normal_()
    joint = model.mixtures[-1].log_weights.exp() @ (
        model.classifier.weight.mT + model.classifier.bias
    ).softmax(-1)
    x = model.sample((5,))

    def program():
        with pyro.plate("images", 5):
            label = pyro.sample("label", dist.Categorical(joint), infer={"enumerate": "parallel"})
            pyro.sample("x", model.condition(label), obs=x)

    loss = pyro.infer.TraceEnum_ELBO(max_plate_nesting=1).loss(program, lambda: None)
    assert math.isclose(-loss, model.log_prob(x).sum().item(), rel_tol=1e-9)


@kinds("tree: 2L-b", "tree: two tops, 3L", "pixels", "overlapping pooling")
def test_vmap(name):
    from torch.distributions import Distribution

    model = build(name)
    x = model.sample((6,))
    expected = model.log_prob(x)
    Distribution.set_default_validate_args(False)
    model = build(name)
    close(torch.func.vmap(model.log_prob)(x), expected)
    with warnings.catch_warnings():  # of speed alone
        warnings.filterwarnings("ignore", "There is a performance drop")
        gradient = torch.func.vmap(torch.func.grad(model.log_prob))(x)
    y = x.clone().requires_grad_()
    close(gradient, torch.autograd.grad(model.log_prob(y).sum(), y)[0])
