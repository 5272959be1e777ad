"""Copies, pickles, files and state dicts hold the whole law."""

import copy
import io
import pickle
import tempfile

import torch

from ..checkpoints import load, save
from .assertions import assert_close, assert_equal
from .cases import Case, check, is_module


@check()
def check_copies(case: Case) -> None:
    """Deep copies and pickles are the same law, and share no memory."""
    d = case.build()
    x = d.sample(torch.Size((5,)))
    d.rsample() if d.has_rsample else d.sample()  # leaves caches, if any, filled
    for name, other in (
        ("deep copy", copy.deepcopy(d)),
        ("pickle", pickle.loads(pickle.dumps(d))),
    ):
        assert torch.equal(other.log_prob(x), d.log_prob(x)), f"The {name} has another law."
    if is_module(case, d) and list(d.parameters()):
        before, other = d.log_prob(x), copy.deepcopy(d)
        with torch.no_grad():
            for p in other.parameters():
                p.add_(0.1)
        assert torch.equal(d.log_prob(x), before), "A change of the copy changed the original."
        assert not torch.equal(other.log_prob(x), before), (
            "Expected a change of the copy's parameters to change its law."
        )


@check(is_module)
def check_save_load(case: Case) -> None:
    """A saved model is loaded with the same parameters and law."""
    d = case.build()
    x = d.sample(torch.Size((5,)))
    with tempfile.TemporaryDirectory() as folder:
        save(d, f"{folder}/model.safetensors")
        other = load(f"{folder}/model.safetensors")
    assert type(other) is type(d)
    assert_equal(repr(other), repr(d), "repr of the loaded model")
    state = other.state_dict()
    for name, value in d.state_dict().items():
        assert torch.equal(state[name], value), f"The loaded model has another {name}."
    # Not to the last bit: products may be summed in another order where memory is aligned so.
    assert_close(other.log_prob(x), d.log_prob(x), "log_prob of the loaded model")


@check(is_module)
def check_state_dict(case: Case) -> None:
    """The state dict holds every parameter once, and can be filled into another instance."""
    d, other = case.build(), case.build()
    with torch.no_grad():
        for p in other.parameters():
            p.add_(0.1)
    other.load_state_dict(d.state_dict())
    x = d.sample(torch.Size((5,)))
    assert torch.equal(other.log_prob(x), d.log_prob(x)), "state_dict does not hold the law."
    buffer = io.BytesIO()
    torch.save(d.state_dict(), buffer)
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer, weights_only=True))
