"""MixtureOfNormals, against PyTorch's MixtureSameFamily and closed forms."""

import math

import numpy as np
import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from pyromix import MixtureOfNormals, Observed


def build(logits=(), loc=(), scale=(), k=4, dim=3):
    """A mixture whose parameters have the given batch shapes."""
    return MixtureOfNormals(
        torch.randn(*logits, k), torch.randn(*loc, k, dim), torch.rand(*scale, k, dim) + 0.3
    )


def same_family(mixture):
    components = Independent(Normal(mixture.loc, mixture.scale), 1)
    return MixtureSameFamily(Categorical(logits=mixture.logits), components)


SHAPES = [
    ((), (), (), ()),
    ((), (), (), (6,)),
    ((3,), (), (), (3,)),
    ((3,), (), (), (6, 3)),
    ((), (3,), (), (6, 3)),
    ((2, 1), (3,), (1, 1), (6, 2, 3)),
    ((2, 1), (3,), (1, 1), (6, 1, 3)),
    ((2, 3), (2, 1), (2, 3), ()),
    ((1,), (1,), (1,), (5, 4)),
    ((2, 1), (2, 3), (1, 1), (200, 2, 3)),
]


@pytest.mark.parametrize(("logits", "loc", "scale", "leading"), SHAPES)
@pytest.mark.parametrize(("k", "dim"), [(1, 1), (4, 1), (1, 5), (20, 40)])
def test_matches_mixture_same_family(logits, loc, scale, leading, k, dim):
    mixture = build(logits, loc, scale, k, dim)
    expected = same_family(mixture)
    x = torch.randn(*leading, dim)
    torch.testing.assert_close(mixture.log_prob(x), expected.log_prob(x))
    torch.testing.assert_close(mixture.mean, expected.mean)
    torch.testing.assert_close(mixture.variance, expected.variance)
    assert mixture.batch_shape == expected.batch_shape
    assert mixture.sample((7,)).shape == expected.sample((7,)).shape
    assert mixture.rsample((7,)).shape == (7, *mixture.batch_shape, dim)


@pytest.mark.parametrize(("logits", "loc", "scale", "leading"), SHAPES)
def test_responsibilities_follow_bayes(logits, loc, scale, leading):
    mixture = build(logits, loc, scale)
    x = torch.randn(*leading, 3)
    got = mixture.responsibilities(x)
    joint = mixture.logits + Normal(mixture.loc, mixture.scale).log_prob(x.unsqueeze(-2)).sum(-1)
    torch.testing.assert_close(got, (joint - joint.logsumexp(-1, keepdim=True)).exp())
    torch.testing.assert_close(got.sum(-1), torch.ones(got.shape[:-1]))


def test_marginal_integrates_the_others_out():
    mixture = build(dim=2)
    grid = torch.linspace(-12, 12, 4001)
    x = torch.tensor([-0.5, 0.7, 2.0])
    plane = torch.stack(torch.broadcast_tensors(x.unsqueeze(-1), grid), -1)  # (3, grid, 2)
    expected = torch.trapezoid(mixture.log_prob(plane).exp(), grid, dim=-1).log()
    torch.testing.assert_close(mixture.marginal(0).log_prob(x.unsqueeze(-1)), expected)


def test_marginal_keeps_the_order_asked_for():
    mixture = build(loc=(2,), dim=4)
    marginal = mixture.marginal([3, 0, -2])
    assert marginal.batch_shape == (2,)
    torch.testing.assert_close(marginal.loc, mixture.loc[..., [3, 0, 2]])


@pytest.mark.parametrize("batch", [(), (2,)])
def test_condition_is_joint_over_marginal(batch):
    mixture = build(batch, batch, batch, dim=4)
    x = torch.randn(*batch, 4)
    conditional = mixture.condition(Observed({2: x[..., 2], 0: x[..., 0]})).free()
    assert conditional.event_shape == (2,)
    expected = mixture.log_prob(x) - mixture.marginal([0, 2]).log_prob(x[..., [0, 2]])
    torch.testing.assert_close(conditional.log_prob(x[..., [1, 3]]), expected)


def test_coordinates_may_be_numpys_and_pytorchs():
    mixture = build()
    expected = mixture.marginal([0, 2])
    for dims in (np.array([0, 2]), torch.tensor([0, 2])):
        assert torch.equal(mixture.marginal(dims).loc, expected.loc)
    assert torch.equal(mixture.marginal(np.int64(1)).loc, mixture.marginal(1).loc)
    expected = mixture.condition(Observed({1: 0.5})).free().mean
    assert torch.equal(
        mixture.condition(Observed({np.int64(1): np.float32(0.5)})).free().mean, expected
    )


def test_traced_with_validation_on():
    mixture, x = build(), torch.randn(5, 3)
    expected = mixture.log_prob(x)
    torch.testing.assert_close(torch.func.vmap(mixture.log_prob)(x), expected)
    compiled = torch.compile(mixture.log_prob, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), expected)


def test_condition_on_many_values_at_once():
    mixture = build(dim=3)
    values = torch.randn(5)
    many = mixture.condition(Observed({1: values, -1: 0.3})).free()
    assert (many.batch_shape, many.event_shape) == ((5,), (1,))
    assert many._loc.shape == (4, 1)  # the means are kept once, not per value
    x = torch.randn(5, 1)
    for i in range(5):
        single = mixture.condition(Observed({1: float(values[i]), 2: 0.3})).free()
        torch.testing.assert_close(many.log_prob(x)[i], single.log_prob(x[i]))
    assert many.sample((2,)).shape == (2, 5, 1)


def test_conditional_draws_have_the_conditional_law():
    mixture = MixtureOfNormals(
        torch.zeros(2), torch.tensor([[-3.0, 1.0], [3.0, -1.0]]), torch.full((2, 2), 0.5)
    )
    draws = mixture.condition(Observed({0: 3.0})).free().sample((4000,))
    error = draws.std() / math.sqrt(len(draws))
    assert abs(draws.mean() + 1.0) < 4 * error


def test_gradients_flow_through_conditioning():
    leaves = [torch.randn(3), torch.randn(3, 2), torch.rand(3, 2) + 0.5]
    leaves = [t.requires_grad_() for t in leaves]
    value = torch.tensor(0.4, requires_grad=True)
    mean = MixtureOfNormals(*leaves).condition(Observed({0: value})).free().mean.sum()
    grads = torch.autograd.grad(mean, [*leaves, value])
    assert all(g.isfinite().all() and g.any() for g in grads)


@pytest.mark.parametrize("separation", [0.0, 1.0, 3.0, 30.0])
def test_entropy_lies_between_its_bounds(separation):
    loc = separation * torch.randn(5, 2)
    mixture = MixtureOfNormals(torch.randn(5), loc, torch.rand(5, 2) + 0.5)
    lower, upper = mixture.entropy_bounds()
    log_prob = mixture.log_prob(mixture.sample((100_000,)))
    estimate, error = -log_prob.mean(), log_prob.std() / math.sqrt(len(log_prob))
    assert lower < estimate + 4 * error
    assert upper > estimate - 4 * error
    if separation == 30.0:  # no overlap: the bounds meet
        torch.testing.assert_close(lower, upper, atol=1e-3, rtol=0)


def test_entropy_bounds_of_one_component_are_exact():
    mixture = build((2,), (2,), (2,), k=1)
    expected = Independent(Normal(mixture.loc[:, 0], mixture.scale[:, 0]), 1).entropy()
    for bound in mixture.entropy_bounds():
        torch.testing.assert_close(bound, expected)


def test_expand_copies_nothing():
    mixture = build((3,), (), ())
    wide = mixture.expand((5, 3))
    assert wide._loc is mixture._loc
    x = wide.sample((2,))
    assert x.shape == (2, 5, 3, 3)
    torch.testing.assert_close(wide.log_prob(x), mixture.log_prob(x))
    with pytest.raises(ValueError, match="expands to"):
        mixture.expand((4,))


def test_sample_needs_no_more_memory_than_its_result():
    """Components are picked, not drawn from one by one: K = 512 of D = 4096 would be 17 GB."""
    mixture = MixtureOfNormals(torch.zeros(512), torch.zeros(512, 4096), torch.ones(512, 4096))
    assert mixture.sample((1000,)).shape == (1000, 4096)


def test_validation_can_be_switched_off():
    mixture = MixtureOfNormals(
        torch.zeros(2), torch.zeros(2, 1), torch.tensor([[1.0], [-1.0]]), validate_args=False
    )
    assert mixture.log_prob(torch.tensor([math.nan])).isnan()


@pytest.mark.parametrize("batch", [(), (3,)])
@pytest.mark.parametrize(("n", "dim"), [(50, 4), (600, 60)])
def test_observed_log_prob_is_that_of_the_marginal(batch, n, dim):
    """Also by products, which the larger case takes."""
    mixture = MixtureOfNormals(
        torch.randn(*batch, 6), torch.randn(*batch, 6, dim), 0.3 + torch.rand(*batch, 6, dim)
    )
    x = mixture.sample((n,))
    pattern = torch.rand(dim) < 0.6
    observed = pattern.expand(x.shape).clone()
    observed[0], observed[1] = True, False
    got = mixture.observed_log_prob(x.masked_fill(~observed, math.nan), observed)
    kept = pattern.nonzero().flatten()
    torch.testing.assert_close(got[2:], mixture.marginal(kept).log_prob(x[2:][..., kept]))
    torch.testing.assert_close(got[0], mixture.log_prob(x[0]))
    torch.testing.assert_close(got[1], torch.zeros(batch), atol=1e-12, rtol=0)
    single = MixtureOfNormals(mixture.logits.float(), mixture.loc.float(), mixture.scale.float())
    error = single.observed_log_prob(x.float(), observed).double() - got
    assert (error.abs() / got.abs().clamp(min=1)).max() < 1e-4
