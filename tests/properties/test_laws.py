"""Random laws and values: scores, draws, codes, gaps and files are right, or clearly refused."""

import copy

import pytest
import torch
from hypothesis import strategies as st

from pyromix import load, save

from .checks import Unchanged, attempt, check_scores, examples, for_examples, in_double
from .strategies import LAWS, MODULES, SIZES, any_values, dtype_of, good_values

# Their networks lose biases to rounding where values are huge: float32 and float64 then have
# different folds and scales, each right for its own numbers.
ROUNDED = {"RAD", "Flow"}
QUERIES = ("log_prob", "responsibilities", "encode", "impute")
GAPS = [name for name in LAWS if "gaps" in name or "categories" in name or "Of" in name]


@examples(8)
@pytest.mark.parametrize("kind", LAWS)
def test_scores_of_good_values_are_those_of_the_law_in_float64(kind, count):
    def check(draw):
        law = draw(LAWS[kind])
        sizes = (0.0, 1.0, 100.0) if kind in ROUNDED else SIZES
        value = draw(good_values(law, sizes=sizes))
        with Unchanged(law), torch.no_grad():
            scores = attempt(lambda: law.log_prob(value))
            if scores is None:  # DCGMM refuses what its dtype cannot square
                assert value.abs().max() > 1e12
                return
            reference = in_double(law).log_prob(value.double())
        assert scores.shape == value.shape[: value.dim() - len(law.event_shape)]
        check_scores(scores, reference, dtype_of(law))

    for_examples(count, check)


@examples(12)
@pytest.mark.parametrize("kind", LAWS)
def test_values_of_all_sorts_are_answered_or_refused(kind, count):
    def check(draw):
        law = draw(LAWS[kind])
        query = draw(st.sampled_from([name for name in QUERIES if hasattr(law, name)]))
        value = draw(any_values(law))
        with Unchanged(law):
            answer = attempt(lambda: getattr(law, query)(value))
        for part in _tensors(answer):
            assert not part.isnan().any(), f"NaN from {query}"
            assert not (part == float("inf")).any(), f"infinity from {query}"

    for_examples(count, check)


@examples(6)
@pytest.mark.parametrize("kind", LAWS)
def test_draws_have_a_density(kind, count):
    def check(draw):
        law = draw(LAWS[kind])
        shape = draw(st.sampled_from([(), (3,), (0,), (2, 2)]))
        with Unchanged(law), torch.no_grad():
            value = law.sample(shape)
            scores = law.log_prob(value)
        assert value.shape == (*shape, *law.batch_shape, *law.event_shape)
        assert value.dtype == dtype_of(law)
        assert value.isfinite().all()
        assert scores.isfinite().all()

    for_examples(count, check)


@examples(8)
@pytest.mark.parametrize("kind", GAPS)
def test_imputed_points_keep_what_is_known(kind, count):
    def check(draw):
        law = draw(LAWS[kind])
        value = draw(good_values(law, gaps=True))
        num_samples = draw(st.sampled_from([None, 0, 1, 3]))
        with Unchanged(law):
            filled = attempt(lambda: law.impute(value, num_samples))
        if filled is None:
            return
        known = ~value.isnan()
        assert filled.shape == (
            value.shape if num_samples is None else (num_samples, *value.shape)
        )
        assert not filled.isnan().any()
        assert bool((filled[..., known] == value[known]).all())

    for_examples(count, check)


@examples(3)
@pytest.mark.parametrize("kind", MODULES)
def test_saved_models_are_loaded_as_they_were(kind, count, tmp_path):
    def check(draw):
        law = draw(LAWS[kind])
        with Unchanged(law):
            save(law, tmp_path / "law.safetensors")
        again = load(tmp_path / "law.safetensors")
        assert all(map(torch.equal, again.state_dict().values(), law.state_dict().values()))
        value = draw(good_values(law))
        with torch.no_grad():
            # Numbers whose squares have no room are refused, by both. The tensors are
            # the same, but products may round otherwise where they lie otherwise in memory.
            expected = attempt(lambda: copy.deepcopy(law).log_prob(value))
            got = attempt(lambda: again.log_prob(value))
            assert (got is None) == (expected is None)
            if expected is not None:
                torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)

    for_examples(count, check)


def _tensors(answer):
    """The tensors of floats in an answer."""
    if isinstance(answer, tuple):
        return [tensor for part in answer for tensor in _tensors(part)]
    return [answer] if isinstance(answer, torch.Tensor) and answer.is_floating_point() else []
