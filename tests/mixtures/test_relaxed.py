"""RelaxedMixtureOfNormals: its densities, against quadrature, and its limits."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch.distributions import Normal

from pyromix import MixtureOfNormals, RelaxedMixtureOfNormals
from pyromix.mixtures.relaxed import inner_points
from pyromix.testing import goodness_of_fit

from .relaxed_reference import (
    LOC,
    LOGITS,
    SCALE,
    agrees,
    build,
    choices,
    exact_log_prob,
    far_apart,
    finite_differences,
    integrate,
    normals,
    panels,
    parameters,
    stratified_error,
)

LINE = torch.linspace(-3, 3, 41, dtype=torch.float64).unsqueeze(-1)


def with_points(law, seed):
    """The same law with inner points that are scrambled differently."""
    law._points = inner_points(law.num_components, law.num_inner, seed)
    return law


# ---- the reference itself ---------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_the_reference_on_a_plane_agrees_with_that_on_a_line(temperature):
    """The odds of two of three components do not depend on the third."""
    temperature, logits = torch.tensor(temperature), torch.tensor([0.5, -1.0, 0.2])
    weight, c = choices(temperature, logits)
    assert abs(float(weight.sum()) - 1) < 1e-6
    for pair in ([0, 1], [0, 2], [1, 2]):
        line_weight, line = choices(temperature, logits[pair])
        assert abs(float(line_weight.sum()) - 1) < 1e-12
        share = c[:, pair[0]] / c[:, pair].sum(-1)
        got, expected = weight @ torch.sin(3 * share), line_weight @ torch.sin(3 * line[:, 0])
        assert abs(float(got - expected)) < 1e-6


# ---- densities --------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [2, 3, 6])
@pytest.mark.parametrize("batch", [(), (4,)])
def test_joint_density_by_hand(k, batch):
    temperature = 0.2 + torch.rand(batch)
    logits, loc = torch.randn(*batch, k), torch.randn(*batch, k, 2)
    scale = 0.3 + torch.rand(*batch, k, 2)
    law = build(temperature, logits, loc, scale)
    z, c = torch.randn(3, *batch, 2), torch.rand(3, *batch, k).exp().softmax(-1)
    got = law.joint_log_prob(z, c)
    assert got.shape == (3, *batch)
    for index in itertools.product(range(3), *map(range, batch)):
        t, w = float(temperature[index[1:]]), logits[index[1:]].softmax(-1).tolist()
        entries = c[index].tolist()
        density = math.gamma(k) * t ** (k - 1)
        density *= math.prod(a * b ** (-t - 1) for a, b in zip(w, entries, strict=True))
        density /= sum(a * b**-t for a, b in zip(w, entries, strict=True)) ** k
        for d in range(2):
            mean = sum(b * float(m) for b, m in zip(entries, loc[index[1:]][:, d], strict=True))
            sd = sum(b * float(s) for b, s in zip(entries, scale[index[1:]][:, d], strict=True))
            x = (float(z[index][d]) - mean) / sd
            density *= math.exp(-0.5 * x**2) / (sd * math.sqrt(2 * math.pi))
        assert float(got[index]) == pytest.approx(math.log(density), abs=1e-9)


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_joint_density_integrates_to_the_marginal(temperature):
    """Over the first entry of c, as its density is one by all entries but the last."""
    law, z = build(temperature), torch.tensor([[-2.0], [0.1], [1.7]])
    far = 30 / min(temperature, 1.0)
    u, step = panels(-far, far, 600)
    c = torch.stack([torch.sigmoid(u), torch.sigmoid(-u)], -1)
    joint = law.joint_log_prob(z.unsqueeze(1).expand(-1, len(u), -1), c.expand(3, -1, -1))
    got = (joint.exp() * c.prod(-1) * step).sum(-1).log()
    torch.testing.assert_close(got, exact_log_prob(z, temperature), atol=1e-8, rtol=0)


@pytest.mark.parametrize("temperature", [0.05, 0.3, 1.0, 3.0])
@pytest.mark.parametrize("dim", [1, 2])
def test_log_prob_of_two_components(temperature, dim):
    loc = torch.cat([LOC, LOC.flip(0) + 0.5], -1)[:, :dim]
    scale = torch.cat([SCALE, SCALE.flip(0)], -1)[:, :dim]
    law = build(temperature, LOGITS, loc, scale, num_inner=1024)
    z = LINE.expand(-1, dim)
    difference = law.log_prob(z) - exact_log_prob(z, *parameters(law))
    assert (difference.abs() < 3 * stratified_error(z, 1024, *parameters(law)) + 1e-9).all()


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_log_prob_of_three_components(temperature):
    loc = torch.tensor([[-2.0, 0.0], [0.5, 1.5], [2.0, -1.0]])
    scale = torch.tensor([[0.8, 0.6], [0.7, 1.0], [1.2, 0.9]])
    law = build(temperature, torch.tensor([0.5, -1.0, 0.2]), loc, scale, num_inner=6000)
    z = torch.cartesian_prod(torch.linspace(-2, 2, 4), torch.linspace(-2, 2, 4))
    difference = law.log_prob(z) - exact_log_prob(z, *parameters(law))
    # A rule that is as good as random points would miss some of sixteen by more than this.
    assert (difference.abs() < stratified_error(z, 6000, *parameters(law))).all()


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_more_inner_points_come_closer_faster_than_random_ones(temperature):
    expected = exact_log_prob(LINE, temperature)
    errors = []
    for num_inner in (32, 256, 2048):
        changes = [
            with_points(build(temperature, num_inner=num_inner), seed).log_prob(LINE) - expected
            for seed in range(8)
        ]
        errors.append(float(torch.stack(changes).square().mean().sqrt()))
    for coarse, fine in itertools.pairwise(errors):
        assert fine < coarse / math.sqrt(8)
    assert errors[-1] < errors[0] / 64  # that of random points falls by eight


@pytest.mark.parametrize("k", [3, 5])
@pytest.mark.parametrize("temperature", [0.3, 1.5])
def test_inner_points_have_the_law_of_relaxed_choices(k, temperature):
    """Means at the corners of the simplex show the points themselves: moments, and strata."""
    logits = torch.linspace(-1, 1.5, k)
    law = build(temperature, logits, torch.eye(k), torch.ones(k, k), num_inner=4096)
    weight, c = law.inner.logits.exp(), law.inner.loc
    gumbel = -torch.empty(200_000, k).exponential_().log()
    drawn = ((logits + gumbel) / temperature).softmax(-1)
    # The rule's own error is far below that of so many draws.
    assert agrees(drawn, weight @ c)
    assert agrees(drawn.square(), weight @ c.square())
    assert agrees((drawn + 0.01).log(), weight @ (c + 0.01).log())
    assert agrees(drawn[:, :1] * drawn[:, 1:], weight @ (c[:, :1] * c[:, 1:]))
    largest = torch.zeros(k).index_add(0, c.argmax(-1), weight)
    torch.testing.assert_close(largest, logits.softmax(-1))


def test_batches_with_temperatures_of_their_own():
    temperature = torch.tensor([0.2, 1.0, 2.0])
    logits, loc = torch.randn(3, 2), torch.randn(2, 1, 2, 1)
    scale = 0.5 + torch.rand(2, 1)
    law = build(temperature, logits, loc, scale, num_inner=1024)
    assert (law.batch_shape, law.event_shape) == ((2, 3), (1,))
    z = torch.randn(5, 2, 3, 1)
    got = law.log_prob(z)
    assert got.shape == (5, 2, 3)
    assert law.rsample((4,)).shape == (4, 2, 3, 1)
    assert law.mean.shape == law.variance.shape == (2, 3, 1)
    assert law.mixture.batch_shape == law.inner.batch_shape == (2, 3)
    for i, j in itertools.product(range(2), range(3)):
        single = build(temperature[j], logits[j], loc[i, 0], scale, num_inner=1024)
        at = z[:, i, j]
        torch.testing.assert_close(got[:, i, j], single.log_prob(at))
        difference = got[:, i, j] - exact_log_prob(at, *parameters(single))
        assert (difference.abs() < 3 * stratified_error(at, 1024, *parameters(single))).all()


def test_a_temperature_alone_may_be_batched():
    temperature = torch.tensor([[0.2], [1.0]])
    law = build(temperature, num_inner=64)
    assert law.batch_shape == (2, 1)
    z = torch.randn(4, 2, 1, 1)
    for i, t in enumerate((0.2, 1.0)):
        expected = build(t, num_inner=64).log_prob(z[:, i])
        torch.testing.assert_close(law.log_prob(z)[:, i], expected)
    z, c = law.rsample_joint((3,))
    assert (z.shape, c.shape) == ((3, 2, 1, 1), (3, 2, 1, 2))
    for value in (law.joint_log_prob(z, c), law.log_prob_nested(z, 5), law.log_prob_error(z, 2)):
        assert value.shape == (3, 2, 1)


def test_log_prob_is_deterministic_and_leaves_the_random_state_alone():
    inner_points.cache_clear()
    z, state = torch.randn(5, 1), torch.get_rng_state()
    first = build().log_prob(z)
    assert not torch.equal(build().log_prob(z), build().log_prob_nested(z))
    torch.set_rng_state(state)
    build().log_prob_error(z)
    inner_points.cache_clear()
    assert torch.equal(build().log_prob(z), first)
    assert torch.equal(torch.get_rng_state(), state)
    law = build()
    law.rsample((3,))
    assert torch.equal(law.log_prob(z), first)


@pytest.mark.parametrize("num_inner", [1, 3, 32, 512])
@pytest.mark.parametrize("temperature", [1e-3, 0.1, 1.0, 5.0])
def test_log_prob_is_normalised(temperature, num_inner):
    law = build(temperature, num_inner=num_inner)
    total = integrate(lambda z: law.log_prob(z).exp(), -12, 12)
    assert abs(float(total) - 1) < 1e-9


def test_inner_is_the_mixture_that_log_prob_scores_with():
    law = build(torch.tensor([0.3, 1.0]), num_inner=33)
    assert isinstance(law.inner, MixtureOfNormals)
    assert law.num_inner == 33
    assert law.inner.num_components == 34  # as many for one component as for the other
    z = torch.randn(7, 2, 1)
    torch.testing.assert_close(law.log_prob(z), law.inner.log_prob(z))
    torch.testing.assert_close(law.mean, law.inner.mean)
    torch.testing.assert_close(law.variance, law.inner.variance)


@pytest.mark.parametrize("batch", [(), (2,)])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_gradients_of_log_prob(batch, k):
    """In the value and in every parameter, by finite differences."""
    inputs = [
        torch.randn(4, *batch, 2),
        0.3 + torch.rand(batch),
        torch.randn(*batch, k),
        torch.randn(*batch, k, 2),
        0.5 + torch.rand(*batch, k, 2),
    ]

    def log_prob(z, *given):
        return build(*given, num_inner=12).log_prob(z)

    assert torch.autograd.gradcheck(log_prob, [t.requires_grad_() for t in inputs])


@pytest.mark.parametrize("temperature", [0.2, 1.0])
def test_gradients_of_log_prob_tend_to_those_of_the_law(temperature):
    z, direction = LINE[::4], torch.randn(11)
    inputs = [torch.tensor(temperature), LOGITS, LOC, SCALE]
    expected = finite_differences(lambda *p: direction @ exact_log_prob(z, *p), inputs)
    expected = torch.cat([g.flatten() for g in expected])
    errors = []
    for num_inner in (64, 4096):
        leaves = [t.clone().requires_grad_() for t in inputs]
        total = direction @ build(*leaves, num_inner=num_inner).log_prob(z)
        got = torch.cat([g.flatten() for g in torch.autograd.grad(total, leaves)])
        errors.append(float((got - expected).norm() / expected.norm()))
    assert errors[1] < errors[0] / 8  # as with random points


@pytest.mark.parametrize("temperature", [0.01, 0.5, 2.0])
def test_single_precision(temperature):
    loc, scale = torch.randn(4, 3), 0.1 + torch.rand(4, 3)
    law = build(temperature, torch.randn(4), loc, scale)
    single = build(temperature, law.logits.float(), loc.float(), scale.float())
    z = law.sample((200,)).float()
    got, expected = single.log_prob(z), law.log_prob(z.double())
    assert got.dtype == single.sample().dtype == single.mean.dtype == torch.float32
    assert ((got - expected).abs() / expected.abs().clamp(min=1)).max() < 1e-4
    assert single.log_prob_nested(z).dtype == single.log_prob_error(z).dtype == torch.float32
    assert single.joint_log_prob(*single.rsample_joint((9,))).isfinite().all()


# ---- limits -----------------------------------------------------------------------------------


def test_low_temperatures_give_the_mixture():
    """What is left are draws between the components, as many as the temperature is high."""
    gaps = []
    for temperature in (1e-2, 1e-3, 1e-4):
        law = build(temperature, num_inner=16_384)
        plain = MixtureOfNormals(LOGITS, LOC, SCALE)
        torch.testing.assert_close(law.mixture.log_prob(LINE), plain.log_prob(LINE))
        gap = (law.log_prob(LINE) - plain.log_prob(LINE)).abs().max()
        exact = (exact_log_prob(LINE, temperature) - plain.log_prob(LINE)).abs().max()
        assert float(gap) == pytest.approx(float(exact), rel=0.5)
        gaps.append(float(exact))
    for high, low in itertools.pairwise(gaps):  # in proportion, if the bridge is thin
        assert high / 12 < low < high / 8
    draws = build(1e-4).sample((20_000,))
    assert agrees(draws, plain.mean)
    assert agrees((draws - plain.mean).square(), plain.variance)
    assert goodness_of_fit(draws, plain.log_prob(draws)) > 1e-4


@pytest.mark.parametrize("temperature", [1e-6, 1e-30])
def test_the_mixture_comes_out_exactly_with_hardly_any_temperature(temperature):
    law = build(temperature, num_inner=32)
    torch.testing.assert_close(law.log_prob(LINE), law.mixture.log_prob(LINE), atol=1e-6, rtol=0)
    leaves = [t.clone().requires_grad_() for t in (LOGITS, LOC, SCALE)]
    law = build(temperature, *leaves, num_inner=32)
    torch.testing.assert_close(law.mean, law.mixture.mean, atol=1e-6, rtol=0)
    torch.testing.assert_close(law.variance, law.mixture.variance, atol=1e-6, rtol=0)
    got, expected = (
        torch.autograd.grad(d.log_prob(LINE).sum(), leaves) for d in (law, law.mixture)
    )
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_weights_that_differ_much(temperature):
    """The rare component has its share, whether or not a point happens to fall to it."""
    logits = torch.tensor([1e-4, 1 - 1e-4]).log()
    law = build(temperature, logits, num_inner=64)
    error = stratified_error(LINE, 64, *parameters(law))
    difference = law.log_prob(LINE) - exact_log_prob(LINE, *parameters(law))
    assert (difference.abs() < 4 * error + 1e-9).all()
    few = build(1e-6, logits, torch.tensor([[-9.0], [9.0]]), torch.ones(2, 1), num_inner=2)
    rare = integrate(lambda z: few.log_prob(z).exp(), -20, 0)
    assert float(rare) == pytest.approx(1e-4, rel=1e-3)


def test_a_component_without_weight_is_none():
    logits = torch.cat([LOGITS[:1], torch.tensor([-math.inf]), LOGITS[1:]]).requires_grad_()
    loc = torch.stack([LOC[0], torch.tensor([9.0]), LOC[1]]).requires_grad_()
    law = build(0.5, logits, loc, torch.ones(3, 1), num_inner=3000)
    others = build(0.5, LOGITS, LOC, torch.ones(2, 1), num_inner=3000)
    difference = law.log_prob(LINE) - exact_log_prob(LINE, *parameters(others))
    assert (difference.abs() < 3 * stratified_error(LINE, 2000, *parameters(others))).all()
    draws, c = law.rsample_joint((1000,))
    assert (c[:, 1] == 0).all()
    for total in (law.log_prob(LINE).sum(), draws.sum()):
        of_logits, of_loc = torch.autograd.grad(total, [logits, loc])
        assert of_logits[[0, 2]].isfinite().all()
        assert of_logits[[0, 2]].any()
        assert of_loc.isfinite().all()
        assert of_loc[1] == 0


def test_one_component_is_a_normal():
    loc, scale = torch.randn(2, 1, 3), 0.5 + torch.rand(2, 1, 3)
    law = build(torch.tensor([0.1, 2.0]), torch.randn(2, 1), loc, scale, num_inner=5)
    z, c = law.rsample_joint((6,))
    assert (c == 1).all()
    expected = Normal(loc[:, 0], scale[:, 0]).log_prob(z).sum(-1)
    torch.testing.assert_close(law.log_prob(z), expected)
    torch.testing.assert_close(law.joint_log_prob(z, c), expected)
    torch.testing.assert_close(law.log_prob_nested(z, 3), expected)
    torch.testing.assert_close(law.mean, loc[:, 0])
    torch.testing.assert_close(law.variance, scale[:, 0].square())


@pytest.mark.parametrize(("temperature", "mass"), [(0.1, 0.057), (1.0, 0.5), (1e-6, 4.3e-4)])
def test_bridge_between_the_components(temperature, mass):
    """The relaxed law is not the mixture: it has mass where that has none."""
    law = far_apart(temperature, num_inner=2048)
    weight, mean, deviation = normals(*parameters(law))
    edges = Normal(mean, deviation).cdf(torch.tensor([-1.0, 1.0]))
    expected = float(weight @ edges.diff(dim=-1).squeeze(-1))
    assert expected == pytest.approx(mass, rel=0.02)
    density = integrate(lambda z: law.log_prob(z).exp(), -1, 1)
    assert float(density) == pytest.approx(expected, rel=0.01)
    inside = (law.sample((200_000,)).abs() < 1).double()
    assert agrees(inside, expected)
    if temperature == 1e-6:
        plain = integrate(lambda z: law.mixture.log_prob(z).exp(), -1, 1)
        assert float(plain) == pytest.approx(mass, rel=0.02)


# ---- bad input --------------------------------------------------------------------------------

ones, zeros = torch.ones, torch.zeros


def bad(temperature=0.5, logits=LOGITS, loc=LOC, scale=SCALE, **options):
    return RelaxedMixtureOfNormals(temperature, logits, loc, scale, **options)


BAD = [
    (lambda: bad(0.0), r"positive, finite temperatures, got \[0"),
    (lambda: bad(-1.0), r"positive, finite temperatures, got \[-1"),
    (lambda: bad(math.nan), r"positive, finite temperatures, got \[nan"),
    (lambda: bad(torch.tensor([0.1, -0.2])), r"positive, finite temperatures, got \[-0.2"),
    (lambda: bad(torch.tensor([0.1, math.nan])), r"positive, finite temperatures, got \[nan"),
    (lambda: bad(math.inf), "temperature"),
    (lambda: bad("cold"), "temperature"),
    (lambda: bad(None), "temperature"),
    (lambda: bad(torch.tensor(1)), "temperature to have dtype torch.float32 or"),
    (lambda: bad(torch.tensor(1.0).float()), "temperature to have dtype torch.float64"),
    (lambda: bad(ones((), device="meta")), "temperature on device cpu, got meta"),
    (lambda: bad(ones(3), zeros(2, 2)), "batch shapes that broadcast"),
    (lambda: bad(logits=zeros(3)), "with the same K"),
    (lambda: bad(scale=zeros(2, 1)), "positive, finite scales"),
    (lambda: bad(loc=LOC * math.nan), "finite values of loc"),
    (lambda: bad(num_inner=0), "num_inner to be an integer of at least 1, got 0"),
    (lambda: bad(num_inner=2.5), "num_inner to be an integer of at least 1, got 2.5"),
    (lambda: bad().log_prob(0.5), "value to be a torch.Tensor, got float"),
    (lambda: bad().log_prob(zeros(5, 2)), r"event shape \(1,\), got shape \(5, 2\)"),
    (lambda: bad().log_prob(zeros(5, 1).float()), "dtype torch.float64, got torch.float32"),
    (lambda: bad().log_prob(zeros(5, 1) * math.nan), "5 NaN among 5 entries"),
    (lambda: bad(ones(3)).log_prob(zeros(2, 1)), r"batch shape \(3,\), got \(2,\)"),
    (lambda: bad().log_prob_nested(zeros(5, 2)), "event shape"),
    (lambda: bad().log_prob_nested(zeros(1), 0), "num_inner to be an integer of at least 1"),
    (lambda: bad().log_prob_error(zeros(5, 2)), "event shape"),
    (lambda: bad().log_prob_error(zeros(1), 0), "num_repeats to be an integer of at least 1"),
    (lambda: bad().joint_log_prob(zeros(2), ones(2) / 2), "event shape"),
    (lambda: bad().joint_log_prob(zeros(1), ones(3) / 3), r"weights c of shape \(\*S, \*B, 2\)"),
    (lambda: bad().joint_log_prob(zeros(1), ones(2).float() / 2), "c to have dtype"),
    (lambda: bad().joint_log_prob(zeros(1), ones(2)), "c"),
    (lambda: bad().joint_log_prob(zeros(1), ones(2) * math.nan), "c"),
    (lambda: bad().joint_log_prob(zeros(1), torch.tensor([-1.0, 2.0])), "c"),
    (lambda: bad().joint_log_prob(zeros(5, 1), ones(3, 2) / 2), "c"),
    (lambda: bad().entropy_bounds(0), "num_samples to be an integer of at least 1"),
    (lambda: bad().entropy_bounds(5, 0), "num_inner to be an integer of at least 1"),
    (lambda: bad().rsample_weighted(0), "num_samples to be an integer of at least 1"),
    (lambda: bad(ones(3)).expand((4,)), "expands to"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_validation_can_be_switched_off():
    assert bad(validate_args=False).log_prob(torch.tensor([math.nan])).isnan()
    assert bad(-1.0, validate_args=False).batch_shape == ()
    assert bad(np.float64(0.5), validate_args=True).temperature == 0.5


def test_expand_copies_nothing():
    law = build(torch.tensor([0.3, 1.0]), num_inner=16)
    wide = law.expand((3, 2))
    assert wide.loc is law.loc
    assert wide.temperature is law.temperature
    assert (wide.batch_shape, wide.num_inner) == ((3, 2), 16)
    z, c = wide.rsample_joint((4,))
    assert (z.shape, c.shape) == ((4, 3, 2, 1), (4, 3, 2, 2))
    assert not torch.equal(z[:, 0], z[:, 1])
    torch.testing.assert_close(wide.log_prob(z), law.log_prob(z))
    torch.testing.assert_close(wide.joint_log_prob(z, c), law.joint_log_prob(z, c))
    draws, log_weight = wide.rsample_weighted(5)
    assert (draws.shape, log_weight.shape) == ((5, 3, 2, 1), (5, 3, 2))
    assert wide.joint_log_prob(z[0, 0], c[0, 0]).shape == (3, 2)
    assert wide.log_prob_nested(z[0, 0]).shape == wide.log_prob(z[0, 0]).shape == (3, 2)
    assert wide.mean.shape == wide.mixture.mean.shape == (3, 2, 1)
    assert wide.entropy_bounds(2, 2)[0].shape == (3, 2)
