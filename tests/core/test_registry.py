"""Names of classes: two never share one, and a class may be defined again."""

import importlib
import sys

import pytest
import torch
from torch import nn

from pyromix import DistributionModule, Flow, load, register, save
from pyromix.core.registry import decode, encode

DEFINITION = """
import torch
from torch.distributions import Normal, constraints
from pyromix import DistributionModule

class Scaled(DistributionModule):
    support = constraints.real

    def __init__(self, scale):
        super().__init__()
        self.scale = scale

    def log_prob(self, value):
        return Normal(0.0, self.scale * {factor}).log_prob(value)
"""


def make(name, module, bases=(nn.Module,)):
    """A class as if it had been defined in a module."""
    return type(name, bases, {"__module__": module, "__qualname__": name})


def test_another_class_of_the_same_name_is_refused():
    other = make("Flow", "pyromix.elsewhere")
    with pytest.raises(ValueError, match=r"'pyromix\.Flow', in pyromix\.flows\.flow and pyromix"):
        register(other)
    assert decode(encode(Flow)) is Flow


def test_a_model_of_the_same_name_is_refused_where_it_is_defined():
    with pytest.raises(ValueError, match=r"'pyromix\.GaussianMixture'.*Rename one"):
        make("GaussianMixture", "pyromix.elsewhere", (DistributionModule,))


def test_users_may_call_their_classes_as_they_like():
    mine = make("Flow", "mine")
    register(mine)
    register(mine)
    assert decode(encode(mine)) is mine
    assert decode(encode(Flow)) is Flow


@pytest.mark.parametrize("module", ["__main__", "mine"])
def test_a_class_that_is_defined_again_replaces_the_earlier_one(module):
    first, second = (make("Again", module, (DistributionModule,)) for _ in range(2))
    assert decode(encode(second)) is second
    with pytest.raises(TypeError, match="not known"):
        encode(first)


def test_a_module_may_be_reloaded(tmp_path, monkeypatch):
    source = tmp_path / "reloaded.py"
    source.write_text(DEFINITION.format(factor=1.0))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    module = importlib.import_module("reloaded")
    save(module.Scaled(2.0), tmp_path / "model.safetensors")
    source.write_text(DEFINITION.format(factor=10.0))
    module = importlib.reload(module)
    model = load(tmp_path / "model.safetensors")
    assert type(model) is module.Scaled
    expected = torch.distributions.Normal(0.0, 20.0).log_prob(torch.tensor(1.0))
    torch.testing.assert_close(model.log_prob(torch.tensor(1.0)), expected)
    del sys.modules["reloaded"]
