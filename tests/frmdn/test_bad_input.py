"""Whatever a user passes wrongly: an error that says what was expected."""

import math

import pyro.distributions.transforms as transforms
import pytest
import torch
from torch import tensor, zeros
from torch.utils.data import DataLoader, TensorDataset

from pyromix import FRMDN, Flow, fit
from pyromix.mixtures import LowRankPrecisionNormal, MixtureOfLowRankPrecisionNormals


def model(dim=2, length=3, num_components=2, **options):
    return FRMDN(dim, length, num_components, **{"hidden_dim": 4, **options})


def driven(**options):
    return model(context_dim=1, **options)


def labelled(**options):
    return model(static_dim=2, **options)


def both(**options):
    return model(context_dim=1, static_dim=2, **options)


def reader():
    return driven(encoder="bidirectional")


def state(num=1, layers=1, width=4, batch=()):
    return (zeros(*batch, layers, width),) * num


def broken(shape, index, filler=math.nan):
    value = zeros(shape)
    value[index] = filler
    return value


def train(model, data, **options):
    return fit(model, data, **{"steps": 1, "progress_bar": False, **options})


def mixture(diag):
    return MixtureOfLowRankPrecisionNormals(zeros(2), zeros(2, 3), diag, zeros(2, 3, 1))


def diagonal(value):
    """With one entry that is not one."""
    return torch.ones(2, 3).index_put((tensor(1), tensor(2)), tensor(value))


BAD = [
    # sizes and choices
    (lambda: model(dim=0), "dim to be an integer of at least 1, got 0"),
    (lambda: model(dim=2.0), "dim to be an integer of at least 1, got 2.0"),
    (lambda: model(length=0), "length to be an integer of at least 1, got 0"),
    (lambda: model(length=True), "length to be an integer of at least 1, got True"),
    (lambda: model(num_components=0), "num_components to be an integer of at least 1"),
    (lambda: model(hidden_dim=0), "hidden_dim to be an integer of at least 1"),
    (lambda: model(num_layers=0), "num_layers to be an integer of at least 1"),
    (lambda: model(head_dims=(8, 0)), "every width in head_dims"),
    (lambda: model(head_dims=8), "head_dims to be a sequence of widths"),
    (lambda: model(context_dim=-1), "context_dim to be an integer of at least 0, got -1"),
    (lambda: model(static_dim=0.5), "static_dim to be an integer of at least 0, got 0.5"),
    (lambda: model(rank=3), "rank from 0 to dim=2, got 3"),
    (lambda: model(rank=-1), "rank to be an integer of at least 0, got -1"),
    (lambda: model(rank=1.5), "rank to be an integer of at least 0, got 1.5"),
    (lambda: model(scale_floor=0.0), "positive, finite scale_floor, got 0.0"),
    (lambda: model(scale_floor=-1e-3), "positive, finite scale_floor"),
    (lambda: model(scale_floor=math.inf), "positive, finite scale_floor"),
    (lambda: model(scale_floor=math.nan), "positive, finite scale_floor"),
    (lambda: model(cell="rnn"), r"cell to be one of \('lstm', 'gru'\), got 'rnn'"),
    (lambda: driven(encoder="both"), "encoder to be one of.*got 'both'"),
    (lambda: model(factor="free"), "factor to be one of.*got 'free'"),
    (lambda: model(positivity="relu"), "positivity to be one of.*got 'relu'"),
    (lambda: model(cell=["lstm"]), "cell to be one of"),
    (lambda: model(encoder="bidirectional"), "context_dim for encoder='bidirectional'"),
    # transforms
    (lambda: model(transforms=transforms.affine_coupling(3)), "vectors of dim=2 entries"),
    (lambda: model(transforms=[transforms.spline(3)]), "vectors of dim=2 entries"),
    (lambda: model(transforms=[transforms.permute(2), transforms.spline(3)]), "dim=2 entries"),
    (lambda: model(transforms=transforms.conditional_spline(2, 5)), "hidden_dim=4"),
    (lambda: model(transforms=transforms.conditional_affine_coupling(3, 4)), "dim=2 entries"),
    (lambda: model(transforms=transforms.ExpTransform()), "real vectors onto real vectors"),
    (lambda: model(transforms=transforms.SigmoidTransform()), r"Flow\(FRMDN"),
    (lambda: model(transforms=transforms.StickBreakingTransform()), "onto real vectors"),
    (
        lambda: model(transforms=transforms.ReshapeTransform((2,), (1, 2))),
        "transforms of (real )?vectors",
    ),
    # values
    (lambda: model().log_prob(zeros(3)), r"event shape \(3, 2\), got shape \(3,\)"),
    (lambda: model().log_prob(zeros(())), r"event shape \(3, 2\), got shape \(\)"),
    (lambda: model().log_prob(zeros(4, 2)), r"event shape \(3, 2\), got shape \(4, 2\)"),
    (lambda: model().log_prob(zeros(3, 3)), r"event shape \(3, 2\), got shape \(3, 3\)"),
    (lambda: model().log_prob([[0.0, 0.0]] * 3), "torch.Tensor, got list"),
    (lambda: model().log_prob(zeros(3, 2).float()), "dtype torch.float64, got torch.float32"),
    (lambda: model().log_prob(zeros(3, 2).long()), "got torch.int64"),
    (lambda: model().log_prob(zeros(5, 3, 2) * math.nan), "30 NaN among 30 entries"),
    (lambda: model().log_prob(broken((3, 2), (2, 1))), "1 NaN among 6 entries"),
    (lambda: model().log_prob_per_step(broken((3, 2), (0, 0))), "1 NaN among 6 entries"),
    (lambda: model().log_prob_per_step(zeros(3, 3)), "event shape"),
    (
        lambda: model().condition(lengths=tensor([2, 3])).log_prob(broken((2, 3, 2), (0, 1))),
        "NaN",
    ),
    (
        lambda: model().condition(lengths=tensor([2, 3])).log_prob(zeros(5, 3, 2)),
        r"batch shape \(2,\), got \(5,\)",
    ),
    (lambda: model().condition(lengths=tensor(2)).log_prob(zeros(4, 2)), "event shape"),
    (lambda: model().condition(lengths=tensor(2)).log_prob([0.0]), "torch.Tensor, got list"),
    (lambda: model().condition(lengths=tensor(2)).log_prob(zeros(3, 2).float()), "float64"),
    # lengths
    (lambda: model().condition(lengths=tensor([0, 2])), "lengths from 1 to 3.*empty.*got 0"),
    (lambda: model().condition(lengths=tensor([-1])), "lengths from 1 to 3"),
    (lambda: model().condition(lengths=tensor([4, 1])), "lengths from 1 to 3.*got 4"),
    (lambda: model().condition(lengths=tensor([1.0])), "to be integers.*got torch.float64"),
    (lambda: model().condition(lengths=tensor([True])), "to be integers.*got torch.bool"),
    (lambda: model().condition(lengths=[1.0, 2.0]), "lengths to be integers, got float64"),
    (lambda: model().condition(lengths=True), "lengths to be integers, got bool"),
    (lambda: model().condition(lengths=[5, 0]), "lengths from 1 to 3.*got 0 to 5"),
    (
        lambda: driven().condition(zeros(5, 3, 1), lengths=tensor([1, 2])),
        r"batch shapes that broadcast.*\(5,\) of context.*\(2,\) of lengths",
    ),
    (lambda: both().condition(zeros(5, 3, 1), static=zeros(4, 2)), "batch shapes that broadcast"),
    # contexts
    (lambda: driven().log_prob(zeros(3, 2)), r"needs a context.*condition\(context\)"),
    (lambda: driven().sample(), r"condition\(context\)"),
    (lambda: driven()(), r"condition\(context\)"),
    (lambda: driven().loss(zeros(5, 3, 2)), "needs a context"),
    (lambda: driven().condition(), "needs a context"),
    (lambda: driven().condition(zeros(5, 4, 1)), r"each of 3 steps.*got \(5, 4, 1\)"),
    (lambda: driven().condition(zeros(5, 2, 1)), r"each of 3 steps.*got \(5, 2, 1\)"),
    (lambda: driven().condition(zeros(5, 3, 2)), r"shape \(\*B, T, 1\), got \(5, 3, 2\)"),
    (lambda: driven().condition(zeros(1)), r"shape \(\*B, T, 1\), got \(1,\)"),
    (lambda: driven().condition([["a"]] * 3), "context to hold real numbers, got strings"),
    (lambda: driven().condition(zeros(3, 1).float()), "context to have dtype torch.float64"),
    (lambda: driven().condition(broken((5, 3, 1), (0, 1))), "context to be finite"),
    (lambda: driven().condition(broken((3, 1), (0, 0), math.inf)), "context to be finite"),
    (
        lambda: reader().condition(broken((2, 3, 1), (0, 1)), lengths=tensor([2, 1])),
        "context to be finite",
    ),
    (lambda: model().condition(zeros(3, 1)), "no context of every step"),
    (lambda: labelled().condition(zeros(3, 1), static=zeros(2)), "no context of every step"),
    (lambda: driven().condition(zeros(3, 1), static=zeros(2)), "no static context"),
    (lambda: both().condition(zeros(3, 1)), "needs a static context"),
    (lambda: both().condition(static=zeros(2)), "needs a context of shape"),
    (lambda: labelled().condition(), "needs a static context"),
    (lambda: labelled().sample(), r"needs a context.*condition\(context\)"),
    (lambda: labelled().condition(zeros(5, 3)), r"static of shape \(\*B, 2\), got \(5, 3\)"),
    (lambda: labelled().condition(zeros(())), r"static of shape \(\*B, 2\), got \(\)"),
    (lambda: labelled().condition(broken((5, 2), (0, 0))), "static to be finite"),
    # steps
    (lambda: reader().step(x=zeros(1)), "causal encoder, got encoder='bidirectional'"),
    (lambda: model().step(state(2)), "both a state and the value"),
    (lambda: model().step(None, zeros(2)), "both a state and the value"),
    (lambda: model().step(state(1), zeros(2)), r"state of 2 tensor\(s\)"),
    (lambda: model(cell="gru").step(state(2), zeros(2)), r"state of 1 tensor\(s\)"),
    (lambda: model().step(state(2, layers=2), zeros(2)), r"shape \(\*B, 1, 4\)"),
    (lambda: model().step(state(2, width=5), zeros(2)), r"shape \(\*B, 1, 4\)"),
    (lambda: model().step((zeros(4),) * 2, zeros(2)), r"shape \(\*B, 1, 4\).*got \[\(4,\)"),
    (lambda: model().step((zeros(1, 4), 0.0), zeros(2)), "part of a state to be a torch.Tensor"),
    (lambda: model().step(state(2, batch=(3,)), zeros(4, 2)), "batch shapes that broadcast"),
    (lambda: model().step(state(2), zeros(3)), r"y of shape \(\*B, 2\), got \(3,\)"),
    (lambda: model().step(state(2), zeros(())), r"y of shape \(\*B, 2\), got \(\)"),
    (lambda: model().step(state(2), broken((2,), 0)), "y to be finite"),
    (lambda: model().step(state(2), zeros(2).float()), "y to have dtype torch.float64"),
    (lambda: model().step(x=zeros(1)), "no context"),
    (lambda: model().step(static=zeros(1)), "no static context"),
    (lambda: driven().step(), "needs a context"),
    (lambda: driven().step(x=zeros(2)), r"x of shape \(\*B, 1\), got \(2,\)"),
    (lambda: driven().step(x=broken((1,), 0)), "(x|context) to be finite"),
    (lambda: labelled().step(), "needs a static context"),
    # predictions
    (lambda: model().predict(zeros(4, 3), 1, 1), r"prefix of shape \(\*B, t, 2\).*got \(4, 3\)"),
    (lambda: model().predict(zeros(2), 1, 1), r"prefix of shape \(\*B, t, 2\).*got \(2,\)"),
    (lambda: model().predict(zeros(0, 2), 1, 1), "t of at least 1.*call sample"),
    (lambda: model().predict(zeros(2, 2), 0, 1), "horizon to be an integer of at least 1, got 0"),
    (lambda: model().predict(zeros(2, 2), 1.5, 1), "horizon to be an integer of at least 1"),
    (lambda: model().predict(zeros(2, 2), 1, 0), "num_samples to be an integer of at least 1"),
    (lambda: model().predict(broken((2, 2), (1, 1)), 1, 1), "prefix to be finite"),
    (
        lambda: model().predict(broken((3, 2, 2), (1, 1)), 1, 1, lengths=tensor([1, 2, 1])),
        "prefix to be finite",
    ),
    (lambda: model().predict(zeros(2, 2).float(), 1, 1), "prefix to have dtype torch.float64"),
    (
        lambda: model().predict(zeros(2, 2, 2), 1, 1, lengths=tensor([3, 1])),
        "lengths from 1 to 2",
    ),
    (lambda: model().predict(zeros(2, 2, 2), 1, 1, lengths=tensor([0, 1])), "lengths from 1 to 2"),
    (
        lambda: model().predict(zeros(2, 2, 2), 1, 1, lengths=tensor([1, 1, 1])),
        "batch shapes that broadcast",
    ),
    (lambda: model().predict(zeros(2, 2), 1, 1, context=zeros(3, 1)), "no context"),
    (lambda: driven().predict(zeros(2, 2), 1, 1), "needs a context"),
    (
        lambda: driven().predict(zeros(2, 2), 2, 1, context=zeros(3, 1)),
        r"2 to come.*\(\*B, 4 or more, 1\), got \(3, 1\)",
    ),
    (
        lambda: driven().predict(zeros(2, 2), 1, 1, context=broken((3, 1), (2, 0))),
        "context to be finite",
    ),
    (lambda: labelled().predict(zeros(2, 2), 1, 1), "needs a static context"),
    (
        lambda: driven().predict(zeros(2, 2, 2), 1, 1, context=zeros(5, 3, 1)),
        "batch shapes that broadcast",
    ),
    (
        lambda: driven().predict(
            zeros(2, 2, 2), 1, 1, context=zeros(5, 3, 1), lengths=tensor([1, 2])
        ),
        "batch shapes that broadcast",
    ),
    # initialisation and training
    (lambda: model().initialize(zeros(5, 3)), "event shape"),
    (lambda: model().initialize(broken((5, 3, 2), (0, 0), math.inf)), "finite"),
    (lambda: model().initialize(broken((5, 3, 2), (0, 0))), "NaN"),
    (lambda: train(model(), zeros(9, 4, 2)), "event shape"),
    (lambda: train(model(), (zeros(9, 3, 2), zeros(9))), "takes no context"),
    (lambda: train(driven(), zeros(9, 3, 2)), "needs a context"),
    (lambda: train(model(), {"value": zeros(9, 3, 2), "labels": zeros(9)}), "'labels'"),
    (lambda: train(model(), {"y": zeros(9, 3, 2)}), "'value'"),
    (lambda: train(model(), zeros(9, 3, 2), validation_from=0), "step from 1 to 2 .* got 0"),
    (lambda: train(model(), zeros(9, 3, 2), validation_from=3), "step from 1 to 2 .* got 3"),
    (lambda: train(model(), zeros(9, 3, 2), validation_from=1.0), "between 0.0 and 1.0, got 1.0"),
    (lambda: train(model(), zeros(9, 3, 2), validation_from="2"), "step from 1 to 2 .* got '2'"),
    (
        lambda: train(model(), zeros(9, 3, 2), validation_from=2, validation=0.1),
        "validation or validation_from, got both",
    ),
    (
        lambda: model().split_in_time({"value": zeros(2, 3, 2), "lengths": tensor([1, 1])}, 0.5),
        "steps on both sides of 0.5, got none",
    ),
    (
        lambda: train(model(), TensorDataset(zeros(9, 3, 2)), validation_from=math.nan),
        "step from 1 to 2 .* got nan",
    ),
    (
        lambda: train(model(), DataLoader(zeros(9, 3, 2)), validation_from=2),
        "tensors with validation_from, got a DataLoader",
    ),
    (
        lambda: model().loss({"value": zeros(2, 3, 2), "scored_from": tensor([0, 4])}),
        "scored_from from 0 to 3, got 4",
    ),
    (
        lambda: train(Flow(model(), []), zeros(9, 3, 2), validation_from=2),
        "model of sequences, FRMDN, with validation_from, got a Flow",
    ),
    (
        lambda: train(model(), {"value": zeros(9, 3, 2), "lengths": torch.ones(9)}),
        "lengths to be integers",
    ),
    # flows on sequences
    (
        lambda: Flow(labelled(), transforms.AffineTransform(0.0, 2.0)).log_prob(zeros(3, 2)),
        r"condition\(context\)",
    ),
    # the mixtures below
    (lambda: mixture(diagonal(0.0)), "positive, finite precision_diag, got values from 0.0"),
    (lambda: mixture(diagonal(-1.0)), "positive, finite precision_diag, got values from -1.0"),
    (lambda: mixture(diagonal(math.nan)), "positive, finite precision_diag"),
    (lambda: mixture(diagonal(math.inf)), "positive, finite precision_diag"),
    (
        lambda: LowRankPrecisionNormal(zeros(3), diagonal(0.0)[1], zeros(3, 1)),
        "positive, finite precision_diag",
    ),
]


@pytest.mark.parametrize(("call", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_parts_of_the_wrong_kind():
    with pytest.raises(TypeError, match="Expected a transform"):
        model(transforms=[torch.exp])


def test_checks_of_values_can_be_switched_off():
    """Without validation NaN goes through, and nothing is checked that costs a pass."""
    law = model(validate_args=False)
    assert law.log_prob(broken((3, 2), (2, 1))).isnan()
    driven(validate_args=False).condition(broken((3, 1), (0, 0)))


@pytest.mark.parametrize("name", ["static", "lengths"])
def test_a_batch_has_one_input_for_each_value(name):
    model = FRMDN(1, 3, 2, hidden_dim=4, static_dim=1)
    batch = {"value": torch.randn(5, 3, 1), "static": torch.randn(5, 1)}
    batch["lengths"] = torch.tensor([1, 2, 3, 3, 2])
    assert model.loss(batch).shape == ()
    batch[name] = batch[name].unsqueeze(1)
    with pytest.raises(ValueError, match="one context for each value"):
        model.loss(batch)
