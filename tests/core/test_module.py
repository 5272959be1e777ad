"""The base class: facts about objects that are distributions and modules at once."""

import copy
import subprocess
import sys

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.nn import PyroModule
from pyro.optim import ClippedAdam
from torch import nn
from torch.distributions import constraints

from pyromix import DistributionModule, GaussianMixture
from pyromix.core.batch import split_batch
from pyromix.core.registry import NotPlainError


class Learned(DistributionModule):
    """A normal that registers its parameters before and after the base constructor's work."""

    support = constraints.real_vector
    has_rsample = True

    def __init__(self, dim, *, start=0.0, batch_shape=()):
        super().__init__(batch_shape=batch_shape, event_shape=(dim,))
        self.dim, self.start = dim, start
        self.loc = nn.Parameter(torch.full((*batch_shape, dim), start))

    def rsample(self, sample_shape=torch.Size()):
        return self.loc + torch.randn(self._extended_shape(sample_shape))

    def log_prob(self, value):
        return dist.Normal(self.loc, 1.0).to_event(1).log_prob(value)


def test_base_classes_are_in_the_order_that_keeps_parameters():
    """In the other order Distribution.__init__ would run nn.Module.__init__ again."""
    order = Learned.__mro__
    assert order.index(nn.Module) < order.index(torch.distributions.Distribution)
    assert [name for name, _ in Learned(3).named_parameters()] == ["loc"]


def test_calling_draws_and_runs_hooks():
    model, seen = Learned(3), []
    model.register_forward_pre_hook(lambda module, args: seen.append("before"))
    model.register_forward_hook(lambda module, args, result: seen.append(tuple(result.shape)))
    assert model((4,)).shape == (4, 3)
    assert seen == ["before", (4, 3)]
    assert model().requires_grad
    model.has_rsample_(False)
    assert not model().requires_grad
    assert Learned.has_rsample is True  # the switch is the instance's


def test_expand_shares_the_parameters():
    model = Learned(2, batch_shape=(3,))
    wide = model.expand((5, 3))
    assert not isinstance(wide, nn.Module)
    value = wide.rsample()
    assert value.shape == (5, 3, 2)
    wide.log_prob(torch.zeros(5, 3, 2)).sum().backward()
    assert model.loc.grad is not None
    assert model.to_event(1).event_shape == (3, 2)
    assert model.mask(False).log_prob(torch.zeros(3, 2)).eq(0).all()


def test_as_attribute_of_a_pyro_module():
    class Model(PyroModule):
        def __init__(self):
            super().__init__()
            self.prior = GaussianMixture(2, 3)

        def forward(self, data):
            z = pyro.sample("z", self.prior)
            return pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=data)

    guide = pyro.infer.autoguide.AutoNormal(model := Model())
    svi = SVI(model, guide, ClippedAdam({"lr": 0.05}), Trace_ELBO())
    before = copy.deepcopy(model.prior.state_dict())
    for _ in range(3):
        svi.step(torch.tensor([1.0, 2.0]))
    assert {"prior.loc", "prior.logits", "prior.raw_scale"} <= {
        name.removeprefix("model$$$") for name, _ in model.named_parameters()
    }
    assert not torch.equal(before["loc"], model.prior.loc)


def test_config_rebuilds():
    model = Learned(3, start=1.5)
    assert model.config() == {"dim": 3, "start": 1.5, "batch_shape": {"tuple": []}}
    other = Learned.from_config(model.config())
    assert repr(other) == repr(model) == "Learned(dim=3, start=1.5, batch_shape=())"


def test_an_argument_that_is_not_kept_is_an_error():
    class Forgetful(DistributionModule):
        def __init__(self, width=1.0):
            super().__init__()
            self.sd = width

    with pytest.raises(NotPlainError, match="Keep it as an attribute"):
        Forgetful(3.0).config()


def test_default_loss_and_condition():
    model = Learned(2)
    x = torch.randn(10, 2)
    expected = -model.log_prob(x).mean()
    for batch in (x, (x,), [x], {"value": x}):
        torch.testing.assert_close(model.loss(batch), expected)
    with pytest.raises(NotImplementedError, match="takes no context"):
        model.loss((x, torch.zeros(10, 1)))


@pytest.mark.parametrize("batch", ["text", 3, (), {"context": torch.zeros(2)}, [1, 2, 3]])
def test_odd_batches_are_rejected(batch):
    with pytest.raises(ValueError, match="Expected a batch"):
        split_batch(batch)


def test_missing_methods_are_reported_as_such():
    """An AttributeError inside a module would be reported as a missing attribute."""
    model = Learned(2)
    with pytest.raises(NotImplementedError):
        _ = model.mean
    with pytest.raises(NotImplementedError):
        model.entropy()


def test_import_has_no_side_effects():
    script = """
import warnings, torch, pyro
from torch.distributions import Distribution
def state():
    return (Distribution._validate_args, torch.get_default_dtype(), torch.initial_seed(),
            torch.get_rng_state().tolist(), list(warnings.filters), pyro.settings.get(),
            torch.get_num_threads(), torch.is_grad_enabled())
import pyro.distributions, lightning_fabric, safetensors.torch
before = state()
import pyromix, pyromix.testing
assert state() == before
import sys
heavy = {"matplotlib.pyplot", "arviz", "sklearn", "pytest"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", script], check=True)
