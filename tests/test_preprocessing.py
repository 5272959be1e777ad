"""The logit map against its formula, noise that never changes an integer, frames that fit."""

import copy
import math

import numpy as np
import pyro.distributions as dist
import pytest
import torch

from pyromix import Flow, GaussianMixture, LogitMap, dequantize, load, quantize, save
from pyromix.preprocessing import frames
from pyromix.testing import Case, parametrize

# --- the logit map ---

CASES = {
    "logit-map": Case(
        lambda: Flow(GaussianMixture(2, 3), [LogitMap(4, 0.1)]),
        smooth=False,  # its support is a square
    ),
}


@parametrize(CASES)
def test_conformance(check, case):
    check(case)


def settings(test):
    return pytest.mark.parametrize("transform", [LogitMap(), LogitMap(2, 0.05)], ids=repr)(test)


def exact(transform, z):
    """The formula as it is in the paper, and its derivative's logarithm, in float64."""
    levels, margin = transform.num_levels, transform.margin
    z = z.double()
    x = levels * (z.sigmoid() - margin) / (1 - 2 * margin)
    # Sigmoids of z and -z: exp(-|z|) / (1 + exp(-|z|))^2.
    log_slope = -z.abs() - 2 * z.abs().neg().exp().log1p()
    return x, math.log(levels / (1 - 2 * margin)) + log_slope


@settings
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_formula(transform, dtype):
    z = torch.linspace(-80, 80, 16_001, dtype=dtype)
    x = transform(z)
    expected, log_slope = exact(transform, z)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(x.double(), expected, rtol=0, atol=3 * eps * transform.num_levels)
    jacobian = transform.log_abs_det_jacobian(z, x)
    assert jacobian.dtype == x.dtype == dtype
    torch.testing.assert_close(jacobian.double(), log_slope, rtol=4 * eps, atol=8 * eps)


@settings
def test_jacobian_is_the_derivative(transform):
    z = torch.linspace(-20, 20, 401, requires_grad=True)
    (slope,) = torch.autograd.grad(transform(z).sum(), z)
    torch.testing.assert_close(transform.log_abs_det_jacobian(z, transform(z)), slope.log())
    assert torch.autograd.gradcheck(lambda z: transform.log_abs_det_jacobian(z, None), z)
    x = transform(torch.linspace(-5, 5, 20)).detach().requires_grad_()
    assert torch.autograd.gradcheck(transform.inv, x)


@settings
def test_bijection(transform):
    z = torch.linspace(-10, 10, 101)
    x = transform(z)
    torch.testing.assert_close(transform.inv(x), z, rtol=0, atol=1e-8)
    assert (x.diff() > 0).all()
    assert transform.sign == 1
    assert transform.bijective
    assert transform.domain.event_dim == transform.codomain.event_dim == 0


@settings
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inverse_is_accurate_at_both_ends(transform, dtype):
    levels, low = transform.num_levels, transform.codomain.lower_bound
    x = torch.tensor([low * 0.99, low / 2, 0.0, 1e-30, 1e-3, levels / 2], dtype=dtype)
    x = torch.cat([x, x.new_tensor([levels - 1e-3, levels, levels - low / 2])])
    x = torch.cat([x, x.new_tensor(levels).nextafter(x.new_tensor(0))[None]])
    # The same numbers in float64, and what lies beyond them: no digits are lost there.
    exactly = x.double()
    expected = ((exactly - low) / (levels - exactly - low)).log()
    # Rounding of the excess, a hundred times larger where a hundredth of it is left.
    atol = 200 * torch.finfo(dtype).eps
    torch.testing.assert_close(transform.inv(x).double(), expected, rtol=1e-6, atol=atol)


@settings
def test_zero_and_the_top_are_images_of_the_margin(transform):
    edge = math.log(transform.margin / (1 - transform.margin))
    ends = torch.tensor([0.0, transform.num_levels], dtype=torch.float32)
    expected = torch.tensor([edge, -edge], dtype=torch.float32)
    torch.testing.assert_close(transform.inv(ends), expected, rtol=1e-6, atol=0)
    law = Flow(dist.Normal(torch.zeros(2).float(), 1.0), [transform])
    # The law at 0 by the change of variables, in float64.
    _, log_slope = exact(transform, torch.tensor(edge))
    density = dist.Normal(0.0, 1.0).log_prob(torch.tensor(edge).double()) - log_slope
    torch.testing.assert_close(
        law.log_prob(ends).double(), density.expand(2), rtol=1e-5, atol=1e-5
    )


@settings
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extremes_stay_inside(transform, dtype):
    z = torch.tensor([-math.inf, -1e4, -80.0, -40.0, 0.0, 40.0, 80.0, 1e4, math.inf], dtype=dtype)
    x = transform(z)
    assert transform.codomain.check(x).all()
    assert transform.inv(x).isfinite().all()
    low, high = transform.codomain.lower_bound, transform.codomain.upper_bound
    assert not transform.codomain.check(torch.tensor([low, high], dtype=dtype)).any()
    # Nothing else is lost: these are the outermost numbers inside.
    ends = torch.tensor([low, high], dtype=dtype)
    beyond = x[[0, -1]].nextafter(ends).nextafter(ends)
    assert not transform.codomain.check(beyond).any()
    law = Flow(dist.Normal(torch.zeros((), dtype=dtype), 30.0), [transform])
    draws = law.sample((1000,))
    assert law.log_prob(draws).isfinite().all()
    z = z[1:-1].requires_grad_()
    (transform(z).sum() + transform.log_abs_det_jacobian(z, None).sum()).backward()
    assert z.grad.isfinite().all()


def test_mass_of_the_integers_is_below_one():
    transform = LogitMap(4, 0.05)
    base = dist.Normal(0.5, 2.0)
    law = Flow(base, [transform])
    edge = transform.inv(torch.tensor([0.0, 4.0]))
    expected = base.cdf(edge[1]) - base.cdf(edge[0])
    assert 0.8 < expected < 0.95
    # Midpoints of every level, so finely that the error, of second order, is below 1e-6.
    x = (torch.arange(4000) + 0.5) / 1000
    torch.testing.assert_close(law.log_prob(x).exp().sum() / 1000, expected, rtol=0, atol=1e-6)
    inside = transform.codomain
    width = inside.upper_bound - inside.lower_bound
    x = inside.lower_bound + width * (torch.arange(40_000) + 0.5) / 40_000
    total = law.log_prob(x).exp().sum() * width / 40_000
    torch.testing.assert_close(total, torch.tensor(1.0), rtol=0, atol=1e-5)


def test_flow_with_a_logit_map_is_saved(tmp_path):
    base = dist.Normal(torch.zeros(4), torch.ones(4)).to_event(1)
    law = Flow(base, [LogitMap(16, 1e-3)])
    save(law, tmp_path / "law")
    loaded = load(tmp_path / "law")
    assert repr(loaded) == repr(law)
    assert "num_levels=16, margin=0.001" in repr(law)
    x = law.sample((5,))
    assert torch.equal(loaded.log_prob(x), law.log_prob(x))
    with pytest.raises(ValueError, match=r"support.*open_interval\(-0.016"):
        law.log_prob(torch.full((4,), 16.1))


def test_equality_and_cache():
    transform = LogitMap(16, 1e-3)
    assert transform == LogitMap(16, 1e-3) == copy.deepcopy(transform)
    assert transform != LogitMap(16, 1e-4)
    assert transform != LogitMap(8, 1e-3)
    assert repr(transform) == "LogitMap(num_levels=16, margin=0.001)"
    assert transform.with_cache(0) is transform
    cached = transform.with_cache()
    assert cached == transform
    z = torch.tensor([40.0])
    assert cached.inv(cached(z)) is z
    assert transform.inv.inv is transform


# --- integers and noise ---

INTEGERS = [torch.uint8, torch.uint16, torch.int16, torch.uint32, torch.int32, torch.int64]


@pytest.mark.parametrize("dtype", [*INTEGERS, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("default", [torch.float32, torch.float64])
def test_noise_does_not_change_integers(dtype, default):
    torch.set_default_dtype(default)
    pixels = torch.arange(256).repeat(500, 1)
    x = dequantize(pixels.to(dtype))
    assert x.dtype == default
    assert (x >= pixels).all()
    assert (x < pixels + 1).all()
    assert torch.equal(quantize(x), pixels)


@pytest.mark.parametrize("levels", [256, 65_536, 2**23])
def test_largest_noise_is_not_rounded_up(levels, monkeypatch):
    torch.set_default_dtype(torch.float32)
    largest = torch.tensor(1.0).nextafter(torch.tensor(0.0))
    values = torch.tensor([0, 1, levels // 2, levels - 1])
    assert (values + largest == values + 1).any()  # as sums are rounded
    monkeypatch.setattr(torch, "rand", lambda shape, **options: largest.expand(shape))
    x = dequantize(values, levels)
    assert (x < values + 1).all()
    assert torch.equal(quantize(x, levels), values)


def test_noise_is_uniform():
    noise = dequantize(torch.full((40_000,), 200, dtype=torch.uint8)) - 200
    counts = noise.histc(20, 0, 1)
    # Each count is binomial: within five standard deviations of its mean.
    assert ((counts - 2000).abs() < 5 * (2000 * 0.95) ** 0.5).all()
    generator = torch.Generator()
    first, second = (
        dequantize(torch.arange(9), generator=generator.manual_seed(3)) for _ in range(2)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, dequantize(torch.arange(9)))


def test_bound_of_the_log_probability():
    law = Flow(dist.Normal(0.3, 1.5), [LogitMap(4, 0.01)])
    values = torch.tensor([0, 1, 2, 3])
    edges = LogitMap(4, 0.01).inv(torch.arange(5.0))
    cells = dist.Normal(0.3, 1.5).cdf(edges)
    log_probability = (cells[1:] - cells[:-1]).log()
    scores = law.log_prob(dequantize(values.expand(20_000, 4), 4))
    error = scores.std(0) / 20_000**0.5
    assert (scores.mean(0) < log_probability + 5 * error).all()
    # The mean of densities, rather than of logarithms, is the probability itself.
    density = scores.exp()
    error = density.std(0) / 20_000**0.5
    assert ((density.mean(0) - log_probability.exp()).abs() < 5 * error).all()
    assert (scores.max(0).values > log_probability).all()


def test_quantize_keeps_to_the_levels():
    x = torch.tensor([-math.inf, -1e30, -0.5, -0.0, 0.99, 1.0, 3.99, 4.0, 1e30, math.inf])
    for dtype in (torch.float16, torch.float32, torch.float64):
        codes = quantize(x.to(dtype), 4)
        assert codes.dtype == torch.int64
        assert codes.tolist() == [0, 0, 0, 0, 0, 1, 3, 3, 3, 3]
    # float32 rounds the largest of these levels up.
    assert quantize(torch.tensor([1e9], dtype=torch.float32), 2**25).item() == 2**25 - 1
    assert quantize(torch.empty(0, 3)).shape == dequantize(torch.empty(0, 3)).shape == (0, 3)


# --- frames ---


def test_frames_hold_the_recordings():
    waves = [torch.randn(n) for n in (17, 5, 10, 12)]
    values, lengths = frames(waves, 5)
    assert values.shape == (4, 3, 5)
    assert lengths.tolist() == [3, 1, 2, 2]
    for wave, sequence, length in zip(waves, values, lengths, strict=True):
        assert torch.equal(sequence[:length].flatten(), wave[: 5 * length])
        assert (sequence[length:] == 0).all()
    values, lengths = frames(waves, 5, drop_last=False)
    assert values.shape == (4, 4, 5)
    assert lengths.tolist() == [4, 1, 2, 3]
    for wave, sequence in zip(waves, values, strict=True):
        assert torch.equal(sequence.flatten()[: len(wave)], wave)
        assert (sequence.flatten()[len(wave) :] == 0).all()


@pytest.mark.parametrize("drop_last", [True, False])
def test_frames_of_equal_recordings(drop_last):
    waves = torch.arange(12, dtype=torch.int16).reshape(2, 6)
    values, lengths = frames(waves, 3, drop_last=drop_last)
    assert torch.equal(values, waves.reshape(2, 2, 3))
    assert values.dtype == torch.int16
    assert lengths.dtype == torch.int64
    assert lengths.tolist() == [2, 2]


def test_arrays_and_lists():
    pixels = torch.tensor([[0, 255], [17, 4]])
    for values in (pixels.numpy().astype(np.uint8), pixels.tolist(), pixels.double().numpy()):
        assert torch.equal(quantize(dequantize(values)), pixels)
    assert torch.equal(quantize(np.array([0.5, 3.0])), torch.tensor([0, 3]))
    assert torch.equal(quantize([0.5, 3.0]), torch.tensor([0, 3]))
    wave = torch.arange(7, dtype=torch.int16)
    expected, lengths = frames([wave, wave[:4]], 3)
    for waves in ([wave.numpy(), wave[:4].numpy()], [wave.tolist(), wave[:4].tolist()]):
        got = frames(waves, 3)
        assert torch.equal(got.values, expected.to(got.values.dtype))
        assert torch.equal(got.lengths, lengths)
    torch.set_default_dtype(torch.float32)  # what arrays of all floats are converted to
    for waves in (
        np.zeros((2, 6)),
        [np.zeros(6), np.zeros(6, np.float16)],
        [[1, 2, 3], [1.0] * 3],
    ):
        assert frames(waves, 3).values.dtype == torch.float32


# --- bad input ---

NAN = torch.tensor([0.0, math.nan])

ERRORS = [
    (lambda: LogitMap(0), "num_levels to be an integer of at least 1, got 0"),
    (lambda: LogitMap(2.5), "num_levels to be an integer"),
    (lambda: LogitMap(margin=0.0), "margin between 0 and 0.5, both excluded, got 0.0"),
    (lambda: LogitMap(margin=0.5), "margin between 0 and 0.5"),
    (lambda: LogitMap(margin=math.nan), "margin between 0 and 0.5"),
    (lambda: LogitMap(cache_size=2), "cache_size must be 0 or 1"),
    (lambda: dequantize(torch.tensor([0, 256])), "from 0 to 255, got 1 out of range among 2"),
    (lambda: dequantize(torch.tensor([-1, 3])), "from -1 to 3. Shift them"),
    (lambda: dequantize(torch.tensor([0, 16]), 16), "from 0 to 15, got 1"),
    (lambda: dequantize(torch.tensor([300], dtype=torch.uint16)), "from 300 to 300"),
    (lambda: dequantize(torch.tensor([0.5, 1.0])), "integers, got 1 others among 2"),
    (lambda: dequantize(NAN), "integers, got 1 others among 2"),
    (lambda: dequantize(torch.tensor([math.inf])), "from 0 to 255"),
    (lambda: dequantize(["a"]), "values to hold real numbers, got strings"),
    (lambda: dequantize(torch.tensor([1j])), "real numbers, got torch.complex"),
    (lambda: dequantize(torch.tensor([1]), 0), "num_levels to be an integer"),
    (lambda: dequantize(torch.tensor([1]), 2**53), r"at most \d+ levels.* got \d+"),
    (lambda: quantize(NAN), "x without NaN, got 1 among 2"),
    (lambda: quantize(torch.tensor([1])), "x to hold floats, got torch.int64"),
    (lambda: quantize([1]), "x to hold floats, got torch.int64"),
    (lambda: quantize(torch.tensor([1.0]), -1), "num_levels to be an integer"),
    (lambda: frames([], 5), "at least one recording"),
    (lambda: frames(3, 5), "at least one recording"),
    (lambda: frames([torch.zeros(9)], 0), "frame_length to be an integer of at least 1"),
    (lambda: frames([torch.zeros(9), torch.zeros(2, 9)], 3), r"got shape \(2, 9\) as"),
    (lambda: frames([0.0], 3), r"one dimension, got shape \(\) as number 0"),
    (lambda: frames([["a"]], 3), "recording 0 to hold real numbers, got strings"),
    (lambda: frames([torch.zeros(9), torch.zeros(9).half()], 3), "one dtype.*float16 on cpu as"),
    (lambda: frames([torch.zeros(9), torch.zeros(2)], 3), r"3 sample.*got 2 in number 1.*drop_l"),
    (lambda: frames([torch.zeros(0)], 3, drop_last=False), r"got 0 in number 0. Leave .* out\.$"),
]


@pytest.mark.parametrize(("call", "match"), ERRORS)
def test_errors_say_what_is_wrong(call, match):
    with pytest.raises(ValueError, match=match):
        call()
