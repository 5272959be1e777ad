"""What every property asks: a right result or a clear refusal, and a model that is as it was."""

import copy
import traceback
import warnings

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

REFUSALS = (ValueError, TypeError, NotImplementedError)


def examples(count):
    """Few examples in every run, and many in slow ones."""
    counts = [count, pytest.param(20 * count, marks=pytest.mark.slow)]
    return pytest.mark.parametrize("count", counts)


def for_examples(count, check):
    """Runs ``check(draw)`` on random examples, the same in every run."""

    @settings(
        max_examples=count,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.generate],  # a failure is reported as it was met, in seconds
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def run(data):
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            check(data.draw)

    run()


def attempt(call):
    """The result of a call; None if it is refused with a clear error."""
    try:
        return call()
    except (*REFUSALS, RuntimeError) as error:
        if not _is_clear(error):
            raise
    return None


def _is_clear(error):
    """Whether an error is a refusal that says something, or a RuntimeError of the library.

    Draws say by one that inequalities leave no room for numbers of the dtype.
    """
    raised_by = traceback.extract_tb(error.__traceback__)[-1].filename
    own = type(error) is RuntimeError and "/pyromix/" in raised_by and "room" in str(error)
    return (isinstance(error, REFUSALS) or own) and len(str(error)) > 10


class Unchanged:
    """A context in which a law must not change."""

    def __init__(self, law):
        self.law, self.before = law, _state(law)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        after = _state(self.law)
        assert after.keys() == self.before.keys()
        for name, tensor in self.before.items():
            assert torch.equal(tensor, after[name]), f"{name} has changed"


def in_double(law):
    """A copy of a law in float64."""
    if isinstance(law, torch.nn.Module):
        return copy.deepcopy(law).double()
    return law.map_tensors(torch.Tensor.double)


def check_scores(scores, reference, dtype):
    """No NaN; minus infinity where the exact score is beyond the dtype; close where it is not."""
    assert not scores.isnan().any()
    assert not (scores == float("inf")).any()
    beyond = reference < -0.01 * torch.finfo(dtype).max
    lost = scores == -float("inf")
    assert bool((beyond | ~lost).all()), f"minus infinity where {reference[lost & ~beyond]}"
    kept = ~lost & ~beyond
    error = (scores.double() - reference.double())[kept].abs()
    allowed = 1e-2 + (1e-2 if dtype == torch.float32 else 1e-6) * reference[kept].abs()
    assert bool((error <= allowed).all()), f"{scores[kept]} where {reference[kept]}"


def _state(law):
    if isinstance(law, torch.nn.Module):
        state = {name: tensor.detach().clone() for name, tensor in law.state_dict().items()}
        return {f"{name}": tensor for name, tensor in state.items()}
    return {name: getattr(law, name).detach().clone() for name in law.arg_constraints}
