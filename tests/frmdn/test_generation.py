"""Continuing an observed sequence."""

import math

import pyro.distributions.transforms as transforms
import pytest
import torch
from scipy.stats import kstest

from pyromix import FRMDN
from pyromix.testing import GOODNESS_OF_FIT, goodness_of_fit

from .models import KINDS, build, close, inputs
from .test_draws import P_VALUE, STANDARD_ERRORS, probabilities

PREDICTABLE = {
    "lstm": {},
    "gru, two layers": {"cell": "gru", "num_layers": 2},
    "spline": {"transforms": KINDS["spline of numbers"]["transforms"]},
    "causal": {"context_dim": 2},
    "static": {"static_dim": 2},
    "both": {"context_dim": 1, "static_dim": 1, "rank": 1, "cell": "gru"},
}
predictable = pytest.mark.parametrize("options", PREDICTABLE.values(), ids=PREDICTABLE)


def number_model(options, length=6):
    return build(**{"dim": 1, "length": length, "num_components": 3, **options})


def values_and_inputs(model, *batch, steps):
    y = model.standardize.loc + model.standardize.scale * torch.randn(*batch, steps, model.dim)
    given = inputs(model, *batch)
    if "context" in given:
        given["context"] = 2 + 3 * torch.randn(*batch, steps + 10, model.context_dim)
    return y, given


def after(model, prefix, given):
    """The law and the state after one prefix (t, D)."""
    state = before = None
    for t in range(len(prefix) + 1):
        x = given["context"][t] if "context" in given else None
        law, state = model.step(state, before, x, static=given.get("static"))
        before = prefix[t] if t < len(prefix) else None
    return law, state


def check(model, drawn, prefix, given):
    """Drawn numbers (N, 2) continue a prefix by the laws of single steps."""
    num, t = len(drawn), len(prefix)
    law, state = after(model, prefix, given)
    first = probabilities(law.expand((num,)), drawn[:, :1])
    x = given["context"][t + 1].expand(num, -1) if "context" in given else None
    static = given["static"].expand(num, -1) if "static" in given else None
    state = tuple(s.expand(num, *s.shape) for s in state)
    law, _ = model.step(state, drawn[:, :1], x, static=static)
    second = probabilities(law, drawn[:, 1:])
    for uniform in (first, second):
        assert kstest(uniform.numpy(), "uniform").pvalue > P_VALUE
    features = torch.stack([first, second, (first - 0.5).square(), (second - 0.5).square()])
    others = torch.corrcoef(features) - torch.eye(4)
    assert others.abs().max() < STANDARD_ERRORS / math.sqrt(num)


@predictable
@pytest.mark.parametrize("steps", [1, 4, 9], ids=["start", "middle", "beyond the length"])
def test_predictions_follow_the_laws_of_single_steps(options, steps):
    model = number_model(options)
    prefix, given = values_and_inputs(model, steps=steps)
    drawn = model.predict(prefix, 2, 500, **given)
    assert drawn.shape == (500, 2, 1)
    check(model, drawn.squeeze(-1), prefix, given)


@predictable
def test_ragged_prefixes(options):
    """Every sequence goes on where it ends; padding and contexts that are not reached are idle."""
    model = number_model(options)
    prefix, given = values_and_inputs(model, 3, steps=5)
    lengths = torch.tensor([2, 5, 1])
    padding = torch.arange(5) >= lengths.unsqueeze(-1)
    drawn = model.predict(prefix, 2, 500, **given, lengths=lengths)
    assert drawn.shape == (500, 3, 2, 1)
    torch.manual_seed(5)
    expected = model.predict(prefix, 2, 10, **given, lengths=lengths)
    for filler in (math.nan, 1e30):
        torch.manual_seed(5)
        filled = torch.where(padding.unsqueeze(-1), filler, prefix)
        assert torch.equal(model.predict(filled, 2, 10, **given, lengths=lengths), expected)
    for i, n in enumerate(lengths.tolist()):
        own = {name: tensor[i] for name, tensor in given.items()}
        check(model, drawn[:, i].squeeze(-1), prefix[i, :n], own)


def test_an_encoder_that_reads_all_of_the_context():
    """It reads to the end of the forecast: draws have the law of a sequence of that length."""
    model = number_model({"context_dim": 2, "encoder": "bidirectional"})
    prefix, given = values_and_inputs(model, 2, steps=3)
    context = given["context"]
    lengths = torch.tensor([3, 2])
    drawn = model.predict(prefix, 2, 10_000, context=context, lengths=lengths)
    for i, n in enumerate(lengths.tolist()):
        law = model.condition(context[i, :6], lengths=torch.tensor(n + 2))
        path = torch.cat([prefix[i, :n].expand(10_000, -1, -1), drawn[:, i]], 1)
        path = torch.nn.functional.pad(path, (0, 0, 0, 4 - n))
        log_prob = law.log_prob_per_step(path)[:, n:].sum(-1)
        assert goodness_of_fit(drawn[:, i], log_prob) > GOODNESS_OF_FIT


def test_lengths_that_are_all_the_same_change_nothing():
    """Also where a context goes on beyond the forecast."""
    for options in ({}, {"context_dim": 2}, {"context_dim": 2, "encoder": "bidirectional"}):
        model = number_model(options)
        prefix, given = values_and_inputs(model, 2, steps=3)
        draws = []
        for lengths in (None, torch.tensor(3), torch.tensor([3, 3])):
            torch.manual_seed(1)
            draws.append(model.predict(prefix, 2, 4, **given, lengths=lengths))
        close(draws[1], draws[0])
        close(draws[2], draws[0])


def test_sequences_of_a_batch_are_continued_independently():
    model = number_model({})
    prefix, _ = values_and_inputs(model, steps=3)
    drawn = model.predict(prefix.expand(2, 3, 1), 2, 4000).squeeze(-1)
    assert drawn.shape == (4000, 2, 2)
    both = torch.corrcoef(drawn.flatten(1).mT)[:2, 2:]
    assert both.abs().max() < STANDARD_ERRORS / math.sqrt(4000)


def test_many_coordinates_and_batches():
    for name in ("all of it", "rank 2, gru", "folds"):
        model = build(**KINDS[name])
        prefix, given = values_and_inputs(model, 2, 3, steps=2)
        drawn = model.predict(prefix, 4, 5, **given)
        assert drawn.shape == (5, 2, 3, 4, 3)
        assert drawn.isfinite().all()
        assert not drawn.requires_grad


def test_a_far_prediction_forgets():
    """Chained laws: the joint density of draws and prefix is that of a longer model."""
    model = number_model({}, length=3)
    longer = number_model({}, length=8)
    longer.load_state_dict(model.state_dict())
    prefix, _ = values_and_inputs(model, steps=3)
    drawn = model.predict(prefix, 5, 2000)
    path = torch.cat([prefix.expand(2000, -1, -1), drawn], 1)
    per_step = longer.log_prob_per_step(path)[:, 3:]
    # The entropy of draws of a law is minus its mean log-density: against draws of the longer one.
    other = longer.predict(prefix, 5, 2000)
    again = longer.log_prob_per_step(torch.cat([prefix.expand(2000, -1, -1), other], 1))[:, 3:]
    error = (per_step.var(0) + again.var(0)).div(2000).sqrt()
    assert ((per_step.mean(0) - again.mean(0)).abs() < STANDARD_ERRORS * error).all()


def test_seeds_reproduce():
    model = number_model({})
    prefix, _ = values_and_inputs(model, steps=3)
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(model.predict(prefix, 3, 4))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_prefixes_do_not_leak():
    """A longer prefix and its own draws agree: the first draw's law is that of a joint one."""
    model = number_model({"context_dim": 2})
    prefix, given = values_and_inputs(model, steps=4)
    law, _ = after(model, prefix, given)
    y = law.sample((1,))
    path = torch.cat([prefix, y])
    got = model.condition(given["context"][:6]).log_prob_per_step(
        torch.cat([path, torch.zeros(1, 1)])
    )
    close(got[4], law.log_prob(y).squeeze(0))


def test_the_law_of_a_step_has_the_moments_of_its_mixture():
    """In the units of the data, which the model standardises."""
    torch.manual_seed(0)
    model = FRMDN(2, 3, 2)
    model.initialize(torch.tensor([5.0, -3.0]) + torch.tensor([4.0, 0.1]) * torch.randn(50, 3, 2))
    law, _ = model.step()
    x = law.sample((20_000,))
    error = STANDARD_ERRORS * x.std(0) / math.sqrt(len(x))
    assert ((x.mean(0) - law.mean).abs() < error).all()
    close(law.variance / x.var(0), torch.ones(2), 0.1)


def test_moments_without_a_closed_form_are_errors_with_a_remedy():
    model = FRMDN(2, 3, 2, transforms=[transforms.spline(2)])
    for law in (model, model.step()[0], model.expand((2,))):
        with pytest.raises(NotImplementedError, match=r"Use (that of )?draws"):
            _ = law.mean
        with pytest.raises(NotImplementedError, match=r"Use (that of )?draws"):
            _ = law.variance
