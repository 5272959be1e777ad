"""A model prepared for many questions: against single ones, and against sums over all codes."""

import math

import pytest
import torch

from pyromix import (
    AnyOf,
    Box,
    CategoricalPrior,
    GaussianPrior,
    Nonlinear,
    Observed,
    load_law,
    save,
)
from pyromix.drmm import Query

from .test_conditioned import _limited, _model, _vector

every_map = pytest.mark.parametrize("maps", ["shift", "triangular"])


def questions(step):
    """What is asked at a step of a loop."""
    angle = 0.4 * step
    return [
        Observed({0: 1.2 * math.cos(angle)}),
        GaussianPrior(_vector(0.0, 1.2 * math.sin(angle)), 0.8),
    ]


@every_map
def test_estimates_with_remembered_codes_are_unbiased_and_closer(maps):
    model = _model(maps=maps)
    limited = _limited(model)
    spread = {}
    for memory in (0, 24):
        torch.manual_seed(0)
        query = limited.query(num_particles=16, memory=memory)
        share = []
        for step in range(240):
            exact = model.condition(*questions(step)).log_evidence()[0]
            share.append((query(*questions(step)).log_evidence()[0] - exact).exp())
        share = torch.stack(share)
        error = share.std() / math.sqrt(len(share))
        assert abs(share.mean() - 1) < 4.5 * error + 1e-3
        spread[memory] = share.std()
    assert spread[24] < 0.7 * spread[0]


@every_map
def test_all_codes_remembered_are_a_sum_over_all(maps):
    model = _model(maps=maps)
    query = _limited(model).query(num_particles=400, memory=125)
    query(*questions(0), num_particles=4000)  # all of 125
    law, exact = query(*questions(3)), model.condition(*questions(3))
    torch.testing.assert_close(law.log_evidence()[0], exact.log_evidence()[0], rtol=0, atol=1e-6)
    x = exact.sample((20,))
    torch.testing.assert_close(law.log_prob(x), exact.log_prob(x), rtol=0, atol=2e-3)
    assert law.effective_sample_size > 100


def test_the_first_answer_is_that_of_the_model():
    model = _limited(_model(categories=(3,)))
    evidence = [CategoricalPrior(2, _vector(1.0, 2.0, 0.5)), Box(high=_vector(1.0, math.inf))]
    query = model.query(evidence[0], num_particles=64, generator=torch.Generator().manual_seed(3))
    answers = [query(evidence[1])]
    query.forget()
    answers.append(
        model.condition(*evidence, num_particles=64, generator=torch.Generator().manual_seed(3))
    )
    assert torch.equal(answers[0].log_evidence()[0], answers[1].log_evidence()[0])
    assert isinstance(query, Query)
    assert repr(query) == "Query(dim=2, known=1)"
    # The model is read once.
    before = model.query(num_particles=4000)(Observed({0: 0.3})).log_evidence()[0]
    query = model.query(num_particles=4000)
    with torch.no_grad():
        model.loc.add_(1.0)
    torch.testing.assert_close(
        query(Observed({0: 0.3})).log_evidence()[0], before, rtol=0, atol=0.05
    )


def test_answers_are_saved_with_what_was_remembered(tmp_path):
    query = _limited(_model()).query(num_particles=16, memory=24)
    query(*questions(0))
    law = query(*questions(1))
    query(*questions(2))  # remembers other codes since
    save(law, tmp_path / "law.safetensors")
    loaded = load_law(tmp_path / "law.safetensors")
    assert torch.equal(loaded.log_evidence()[0], law.log_evidence()[0])
    x = law.sample((5,))
    assert torch.equal(loaded.log_prob(x), law.log_prob(x))


def test_questions_of_all_kinds_may_follow_each_other():
    query = _limited(_model()).query(num_particles=64, memory=32)
    apart = AnyOf(Box(high=_vector(-0.3, math.inf)), Box(low=_vector(0.3, -math.inf)))
    for evidence in (
        [Observed({0: 0.2})],
        [Box(-2.0, 2.0)],
        [apart],
        [apart, Nonlinear(lambda x: x.square().sum(-1, keepdim=True), 1.0, 0.1)],
        [Observed({0: torch.linspace(-1.0, 1.0, 5)})],
        [Observed({0: torch.linspace(-1.0, 1.0, 5)})],
        [Observed({0: 0.2, 1: 0.3})],
    ):
        law = query(*evidence)
        assert law.sample((7,)).isfinite().all()
        assert law.log_evidence()[0].isfinite().all()
    with pytest.raises(ValueError, match="memory"):
        _model().query(memory=-1)
