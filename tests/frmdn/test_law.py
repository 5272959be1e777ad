"""The density: against a slow reference, against single steps, and what padding may change."""

import math

import pyro.distributions as dist
import pytest
import torch

from pyromix import FRMDN
from pyromix.testing import CHECKS, Case

from . import slow
from .models import KINDS, build, close, inputs, kinds, law_of, ragged, values

NUM = 3  # sequences


def by_steps(model, y, context=None, static=None):
    """The same as `log_prob_per_step` from `step`, which is given one value after the other."""
    state, before, result = None, None, []
    for t in range(y.shape[-2]):
        x = None if context is None else context[..., t, :]
        law, state = model.step(state, before, x, static=static)
        before = y[..., t, :]
        result.append(law.log_prob(before))
    return torch.stack(result, -1)


def one_by_one(model, y, given, lengths):
    """The slow reference for every sequence of a batch, padded with zeros."""
    result = torch.zeros(y.shape[:-1])
    for i, n in enumerate(lengths.tolist()):
        own = {name: tensor[i] for name, tensor in given.items()}
        result[i, :n] = slow.log_prob_per_step(model, y[i, :n], **own)
    return result


# ---- the density ------------------------------------------------------------------------------


@kinds()
@pytest.mark.parametrize("full", [True, False], ids=["full", "ragged"])
def test_log_prob_is_that_of_its_steps(options, full):
    model = build(**options)
    y, given = values(model, NUM), inputs(model, NUM)
    lengths = torch.full((NUM,), model.length) if full else ragged(model, NUM)
    law = law_of(model, given, None if full else lengths)
    expected = one_by_one(model, y, given, lengths)
    close(law.log_prob_per_step(y), expected)
    close(law.log_prob(y), expected.sum(-1))
    assert expected[:, 0].std() > 1e-3  # the sequences are not alike
    if model.encoder != "bidirectional":
        steps = by_steps(model, y, **given)
        close(torch.where(expected == 0, 0.0, steps), expected)


@kinds("lstm", "gru", "bidirectional", "all of it", "all of it, bidirectional", "folds")
def test_batches_of_any_shape(options):
    """Sequences and contexts broadcast against each other, as elsewhere."""
    model = build(**options)
    y, given = values(model, 4, 2, 3), inputs(model, 3)
    lengths = torch.tensor([1, 4, 3])
    law = model.condition(**given, lengths=lengths)
    assert (law.batch_shape, law.event_shape) == ((3,), (4, model.dim))
    got = law.log_prob(y)
    assert got.shape == (4, 2, 3)
    assert law.log_prob_per_step(y).shape == (4, 2, 3, 4)
    for i in range(3):
        own = {name: tensor[i] for name, tensor in given.items()}
        alone = model.condition(**own, lengths=lengths[i])
        assert alone.batch_shape == ()
        close(got[..., i], alone.log_prob(y[..., i, :, :]))
    wide = law.expand((2, 3))
    assert wide.sample((5,)).shape == (5, 2, 3, 4, model.dim)
    close(wide.log_prob(y), got)
    close(wide.log_prob_per_step(y), law.log_prob_per_step(y))
    assert torch.equal(wide.lengths, lengths.expand(2, 3))
    # Contexts of several batch dimensions, and one sequence for all of them.
    wide = {name: tensor.unsqueeze(1) for name, tensor in inputs(model, 2).items()}
    law = model.condition(**wide, lengths=lengths)
    assert law.batch_shape == ((2, 3) if given else (3,))
    close(law.log_prob(y[0, 0, :1]), law.log_prob(y[0, 0, :1].expand(3, -1, -1)))
    grid = law.log_prob(y[0])
    assert grid.shape == (2, 3)
    for i in range(2):
        own = {name: tensor[i, 0] for name, tensor in wide.items()}
        close(grid[i, 2], model.condition(**own, lengths=torch.tensor(3)).log_prob(y[0, i, 2]))


@kinds("lstm", "gru, three layers", "rank 2, gru", "driven")
def test_a_model_without_context_is_a_law(options):
    model = build(**options)
    y = values(model, 2, 3)
    assert (model.batch_shape, model.event_shape) == ((), (4, model.dim))
    expected = torch.stack([slow.log_prob_per_step(model, v) for v in y.flatten(0, 1)])
    close(model.log_prob_per_step(y), expected.reshape(2, 3, 4))
    close(model.log_prob(y), expected.sum(-1).reshape(2, 3))
    close(model.condition(lengths=torch.tensor(4)).log_prob(y), model.log_prob(y))


def test_a_static_context_comes_first():
    model = build(static_dim=2)
    y, static = values(model, NUM), inputs(model, NUM)["static"]
    close(model.condition(static).log_prob(y), model.condition(static=static).log_prob(y))


def test_the_past_and_the_future():
    """A value changes the law of later ones; a context that of its step, or all of them."""
    for encoder in ("causal", "bidirectional"):
        model = build(context_dim=2, encoder=encoder)
        y, context = values(model), inputs(model)["context"]
        before = model.condition(context).log_prob_per_step(y)
        other, later = y.clone(), context.clone()
        other[1] += 1
        later[2] += 1
        moved = model.condition(context).log_prob_per_step(other) != before
        assert moved.tolist() == [False, True, True, True]
        moved = model.condition(later).log_prob_per_step(y) != before
        assert moved.tolist() == [encoder == "bidirectional"] * 2 + [True, True]


def test_steps_go_on_from_chosen_states():
    """The state is a tuple of tensors with sequences in front: it is indexed and repeated."""
    for cell, num_memories in (("lstm", 2), ("gru", 1)):
        model = build(cell=cell, num_layers=2)
        y = values(model, NUM)
        expected = model.log_prob_per_step(y)
        _, state = model.step()
        law, state = model.step(state, y[:, 0])
        assert isinstance(state, tuple)
        assert [s.shape for s in state] == [(NUM, 2, model.hidden_dim)] * num_memories
        assert (law.batch_shape, law.event_shape) == ((NUM,), (3,))
        chosen = [2, 0]
        law, _ = model.step(tuple(s[chosen] for s in state), y[chosen, 1])
        close(law.log_prob(y[chosen, 2]), expected[chosen, 2])
        assert law.sample((7,)).shape == law.rsample((7,)).shape == (7, 2, 3)


def test_mixtures_of_any_conditional_law():
    """A wide floor smooths: the density of every step is bounded by that of its normals."""
    model = build(dim=2, scale_floor=0.5)
    y = values(model, 1000)
    smallest = 0.5 * model.standardize.scale
    peak = dist.Normal(0.0, smallest).log_prob(torch.zeros(2)).sum()
    assert (model.log_prob_per_step(y) < peak).all()


def test_units():
    """Initialisation finds location and scale of valid values; the density knows the units."""
    torch.manual_seed(0)
    model = FRMDN(2, 4, 2, hidden_dim=3, context_dim=1)
    y, context = values(model, 50), inputs(model, 50)["context"]
    lengths = torch.arange(50) % 4 + 1
    valid = torch.arange(4) < lengths.unsqueeze(-1)
    padded = torch.where(valid.unsqueeze(-1), y, math.nan)
    unknown = torch.where(valid.unsqueeze(-1), context, math.nan)
    model.initialize({"value": padded, "context": unknown, "lengths": lengths})
    close(model.standardize.loc, y[valid].mean(0))
    close(model.standardize.scale, y[valid].std(0, correction=0), 0.02)
    close(model.inputs.standardize_context.loc, context[valid].mean(0))
    close(model.inputs.standardize_context.scale, context[valid].std(0, correction=0), 0.02)
    before = model.condition(context).log_prob(y)
    factor = torch.tensor([10.0, 1e-3])
    model.standardize.loc.copy_(5 + factor * model.standardize.loc)
    model.standardize.scale.mul_(factor)
    after = model.condition(context).log_prob(5 + factor * y)
    close(after, before - 4 * factor.log().sum())


CONDITIONED = {
    "causal": lambda: build(**KINDS["causal"] | {"dim": 1, "length": 3}),
    "all of it": lambda: build(**KINDS["all of it, bidirectional"] | {"length": 2}),
}
CHECKED = ("shapes", "expand", "mask", "to_event", "deterministic")
CHECKED += ("normalized_in_expectation", "stein_identity", "moments", "copies", "pyro_model")


@pytest.mark.parametrize(
    ("name", "check"),
    [(name, check) for name in CONDITIONED for check in CHECKED]
    + [("all of it", "function_transforms")],
)
def test_conditioned_laws_conform(name, check):
    """What the suite asks of any distribution, of a batch of laws with whole sequences."""

    def make():
        model = CONDITIONED[name]()
        return model.condition(**inputs(model, 2))

    CHECKS[check][0](Case(make, num_samples=5000))


@kinds("lstm", "rank 2, gru", "driven", "all of it, bidirectional")
def test_single_precision(options):
    model = build(**options)
    lengths, y, given = torch.tensor([4, 2, 1]), values(model, NUM), inputs(model, NUM)
    expected = model.condition(**given, lengths=lengths).log_prob(y)
    single = model.float().condition(**{k: v.float() for k, v in given.items()}, lengths=lengths)
    got = single.log_prob(y.float())
    assert got.dtype == torch.float32
    close(got.double(), expected, 1e-4)
    assert single.sample().dtype == single.rsample().dtype == torch.float32


# ---- padding ----------------------------------------------------------------------------------

PADDED = ("lstm", "gru, three layers", "rank 2, gru", "shared factor", "splines, rank 1", "driven")
PADDED += ("folds", "static", "causal", "bidirectional, two layers", "all of it")
PADDED += ("all of it, bidirectional",)


@kinds(*PADDED)
@pytest.mark.parametrize("filler", [math.nan, math.inf, 1e30, -7.0])
def test_padding_changes_nothing(options, filler):
    model = build(**options)
    lengths = torch.tensor([2, 4, 1])
    padding = torch.arange(4) >= lengths.unsqueeze(-1)
    y, given = values(model, NUM), inputs(model, NUM)

    def results(filler):
        leaves = {"y": torch.where(padding.unsqueeze(-1), filler, y)}
        if "context" in given:
            leaves["context"] = torch.where(padding.unsqueeze(-1), filler, given["context"])
        leaves = {name: tensor.requires_grad_() for name, tensor in leaves.items()}
        own = {name: leaves.get(name, tensor) for name, tensor in given.items()}
        law = model.condition(**own, lengths=lengths)
        per_step = law.log_prob_per_step(leaves["y"])
        total = law.log_prob(leaves["y"])
        parameters = list(model.parameters())
        grads = torch.autograd.grad(total.sum(), [*leaves.values(), *parameters])
        for grad in grads[: len(leaves)]:
            assert not grad[padding].any()
            assert grad[~padding].all()
        assert all(grad.isfinite().all() for grad in grads)
        assert not per_step[padding].any()
        return [total.detach(), per_step.detach(), *grads]

    for got, expected in zip(results(filler), results(0.0), strict=True):
        close(got, expected, 1e-12)


@kinds(*PADDED)
def test_a_shorter_sequence_is_one_of_a_shorter_model(options):
    model, lengths = build(**options), [1, 3]
    y, given = values(model, 2), inputs(model, 2)
    got = model.condition(**given, lengths=torch.tensor(lengths)).log_prob(y)
    for i, n in enumerate(lengths):
        short = build(**{**options, "length": n})
        short.load_state_dict(model.state_dict())
        own = {name: tensor[i] for name, tensor in given.items()}
        if "context" in own:
            own["context"] = own["context"][:n]
        close(got[i], law_of(short, own).log_prob(y[i, :n]), 1e-12)


@kinds("lstm", "driven", "bidirectional", "all of it")
def test_draws_are_zero_after_their_end(options):
    model = build(**options)
    lengths = torch.tensor([2, 4, 1])
    padding = torch.arange(4) >= lengths.unsqueeze(-1)
    given = inputs(model, NUM)
    if "context" in given:
        given["context"][padding] = math.nan
    law = model.condition(**given, lengths=lengths)
    for x in (law.sample((5,)), law.rsample((5,)).detach(), law().detach()):
        assert not x[:, padding].any() if x.dim() == 4 else not x[padding].any()
        assert x[..., ~padding, :].all()
        assert law.log_prob(x).isfinite().all()


def test_missing_values_within_a_sequence_are_no_padding():
    model = build()
    y = values(model, NUM)
    y[1, 1] = math.nan
    with pytest.raises(ValueError, match="NaN"):
        model.condition(lengths=torch.tensor([1, 2, 1])).log_prob(y)
    model.condition(lengths=torch.tensor([1, 1, 1])).log_prob(y)


@pytest.mark.parametrize("rank", [0, 2])
def test_there_may_be_no_sequence(rank):
    model = FRMDN(2, 6, 2, rank=rank, hidden_dim=4)
    none = torch.zeros(0, 6, 2)
    lengths = torch.zeros(0, dtype=torch.int64)
    assert model.log_prob(none).shape == (0,)
    assert model.condition(lengths=lengths).log_prob(none).shape == (0,)
    assert model.sample((0,)).shape == (0, 6, 2)
    assert model.predict(none[:, :3], 2, 5).shape == (5, 0, 2, 2)


# ---- arrays and lists ---------------------------------------------------------------------------


def test_inputs_may_be_arrays_and_lists():
    model = build(**KINDS["all of it"])
    y, given, lengths = values(model, NUM), inputs(model, NUM), ragged(model, NUM)
    expected = model.condition(**given, lengths=lengths)
    arrays = {name: value.numpy() for name, value in given.items()}
    lists = {name: value.tolist() for name, value in given.items()}
    for law in (
        model.condition(**arrays, lengths=lengths.numpy()),
        model.condition(**lists, lengths=lengths.tolist()),
        model.condition(**arrays, lengths=lengths.int()),
    ):
        assert torch.equal(law.log_prob(y), expected.log_prob(y))
        assert torch.equal(law.lengths, lengths)
    one = model.condition(lists["context"][0], static=lists["static"][0], lengths=2)
    assert one.batch_shape == ()
    loss = model.loss({"value": y, **given, "lengths": lengths})
    batch = {"value": y.numpy(), **arrays, "lengths": lengths.tolist()}
    assert torch.equal(model.loss(batch), loss)


def test_steps_and_prefixes_may_be_arrays_and_lists():
    model = build(**KINDS["all of it"])
    y, given = values(model, NUM), inputs(model, NUM)
    results = []
    for convert in (torch.as_tensor, torch.Tensor.numpy, torch.Tensor.tolist):
        static = convert(given["static"])
        _, state = model.step(x=convert(given["context"][:, 0]), static=static)
        x = convert(given["context"][:, 1])
        law, _ = model.step(state, convert(y[:, 0]), x, static=static)
        torch.manual_seed(0)
        drawn = model.predict(
            convert(y[:, :2]),
            1,
            5,
            context=convert(given["context"]),
            static=static,
            lengths=convert(torch.tensor([1, 2, 2])),
        )
        results.append((law.log_prob(y[:, 1]), drawn))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_the_law_without_inputs():
    model = build()
    y = values(model, NUM)
    assert model.law.event_shape == model.event_shape
    assert torch.equal(model.law.log_prob(y), model.log_prob(y))
    model.has_rsample_(False)
    assert not model.law.has_rsample
    assert not model.rsample_and_log_prob()[0].requires_grad
    with pytest.raises(ValueError, match="needs a context"):
        _ = build(static_dim=1).law
