"""Shapes, dtypes, devices, and what Pyro and PyTorch wrap around a law."""

import copy

import torch
from torch.distributions import Distribution

from ..core.arguments import UnknownArgumentsError
from .assertions import assert_close, assert_equal
from .cases import Case, check, default_settings, is_module
from .parameters import cast, tensors_within


@check()
def check_shapes(case: Case) -> None:
    """Samples have shape sample + batch + event, log-densities sample + batch."""
    d = case.build()
    for sample_shape in ((), (1,), (3,), (2, 3)):
        x = d.sample(torch.Size(sample_shape))
        assert_equal(x.shape, (*sample_shape, *d.batch_shape, *d.event_shape), "sample shape")
        assert_equal(d.log_prob(x).shape, (*sample_shape, *d.batch_shape), "log_prob shape")
        if d.has_rsample:
            assert_equal(d.rsample(torch.Size(sample_shape)).shape, x.shape, "rsample shape")
    assert_equal(d().shape, d.batch_shape + d.event_shape, "shape of a call")
    assert d.support is not None, "Expected a support."
    assert bool(d.support.check(d.sample(torch.Size((100,)))).all()), "A draw left the support."
    assert not d.sample().requires_grad, "Expected sample() to return no graph."


@check()
def check_expand(case: Case) -> None:
    """Expanding the batch repeats the law, and draws independently."""
    d = case.build()
    e = d.expand(torch.Size((4, *d.batch_shape)))
    x = e.sample(torch.Size((3,)))
    assert_equal(x.shape, (3, 4, *d.batch_shape, *d.event_shape), "expanded sample shape")
    assert_close(e.log_prob(x), d.log_prob(x), "log_prob after expand")
    assert not torch.equal(x[:, 0], x[:, 1]), "Expected independent draws along the new dimension."


@check()
def check_unexpanded_value(case: Case) -> None:
    """An expanded law scores one value for all of its batch, and sums it over that as an event."""
    d = case.build()
    x = d.sample()
    e = d.expand(torch.Size((4, *d.batch_shape)))
    expected = d.log_prob(x).expand(4, *d.batch_shape)
    assert_close(e.log_prob(x), expected, "log_prob of one value after expand")
    joint = e.to_event(1 + len(d.batch_shape))
    assert_close(joint.log_prob(x), expected.sum(), "log_prob of one value as an event")


@check(lambda case, d: len(d.batch_shape) > 0)  # noqa: ARG005
def check_broadcast_value(case: Case) -> None:
    """A batch of laws, such as given contexts, scores values that have fewer or other entries."""
    d = case.build()
    unit = (1,) * len(d.batch_shape)
    x = d.sample(torch.Size((3,)))
    first = x[(slice(None), *(slice(1),) * len(unit))]  # (3, 1, .., 1, *event)
    expected = d.log_prob(first.expand(x.shape))
    assert_close(d.log_prob(first), expected, "log_prob of values that the batch shares")
    assert_close(d.log_prob(first[0]), expected[0], "log_prob of one value that it shares")
    alone = first[0].reshape(d.event_shape)
    assert_close(d.log_prob(alone), expected[0], "log_prob of a value without batch dimensions")


@check()
def check_mask(case: Case) -> None:
    """A mask sets log-densities to zero where it is false."""
    d = case.build()
    x = d.sample(torch.Size((4,)))
    mask = torch.tensor([True, False, True, False]).reshape(4, *[1] * len(d.batch_shape))
    masked = d.mask(mask.expand(4, *d.batch_shape))
    assert_close(masked.log_prob(x), torch.where(mask, d.log_prob(x), 0.0), "masked log_prob")
    assert_close(
        d.mask(False).log_prob(x), torch.zeros_like(d.log_prob(x)), "log_prob under False"
    )


@check()
def check_to_event(case: Case) -> None:
    """Batch dimensions made event dimensions are summed over."""
    d = case.build()
    wide = d.expand(torch.Size((3, *d.batch_shape)))
    joint = wide.to_event(1 + len(d.batch_shape))
    x = joint.sample(torch.Size((2,)))
    assert_close(
        joint.log_prob(x), wide.log_prob(x).reshape(2, -1).sum(-1), "log_prob after to_event"
    )


@check(lambda case, d: case.continuous)  # noqa: ARG005
def check_dtype(case: Case) -> None:
    """float32 and float64 both work, and agree."""
    d = case.build()
    with default_settings(torch.float32, case.device):
        built = case.build(torch.float32)
        assert_equal(built.sample().dtype, torch.float32, "dtype of samples built in float32")
        try:
            single = cast(d, torch.float32)
        except UnknownArgumentsError:  # the two that were built may differ
            return
        x = single.sample(torch.Size((100,)))
        log_prob = single.log_prob(x)
    assert_equal((x.dtype, log_prob.dtype), (torch.float32,) * 2, "dtypes of sample and log_prob")
    assert_equal(d.sample().dtype, torch.float64, "dtype of sample")
    precise = cast(single, torch.float64).log_prob(x.double())
    error = ((log_prob - precise).abs() / precise.abs().clamp(min=1)).max()
    assert error < 1e-4, f"Expected float32 within 1e-4 of float64, got {error.item():.1e}."


@check(is_module)
def check_moves(case: Case) -> None:
    """Moving to another device or dtype leaves no tensor behind."""
    d = case.build()
    moved = copy.deepcopy(d).to("meta")
    left = [path for path, t in tensors_within(moved) if t.device.type != "meta"]
    assert not left, f"Expected all tensors to move, got left behind: {left[:5]}."
    moved = copy.deepcopy(d).to(torch.float32)
    left = [path for path, t in tensors_within(moved) if t.dtype != torch.float32]
    assert not left, f"Expected all tensors to become float32, got left behind: {left[:5]}."


@check(lambda case, d: case.traceable)  # noqa: ARG005
def check_function_transforms(case: Case) -> None:
    """log_prob works under vmap and torch.compile, with PyTorch's validation switched off."""
    Distribution.set_default_validate_args(False)  # its control flow depends on values
    with torch.random.fork_rng():
        torch.manual_seed(case.seed)
        d = case.make()
    x = d.sample(torch.Size((5,)))
    expected = d.log_prob(x)
    assert_close(torch.func.vmap(d.log_prob)(x), expected, "log_prob under vmap")
    torch.compiler.reset()
    compiled = torch.compile(d.log_prob, backend="eager", fullgraph=True)
    # Recurrent networks are traced only on demand.
    with torch._dynamo.config.patch(allow_rnn=True):
        assert_close(compiled(x), expected, "compiled log_prob")
