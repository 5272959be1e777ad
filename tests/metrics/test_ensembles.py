"""Scores against slow double sums, closed forms, and laws that are calibrated or are not."""

import math

import pytest
import torch
from pyro.ops.stats import crps_empirical, energy_score_empirical
from scipy.stats import kstest

from pyromix.metrics import coverage, crps, energy_score, pit

# Draws of a right method fall below this in one test of ten thousand, and seeds are fixed.
P_VALUE = 1e-4


def double_sum(samples, observed, fair):
    """The definition, one pair at a time: samples (n, D), observed (D,)."""
    num = len(samples)
    distance = sum(math.dist(x, observed) for x in samples) / num
    spread = sum(math.dist(x, y) for x in samples for y in samples)
    return distance - spread / (2 * (num * (num - 1) if fair else num**2))


def each(samples, observed, fair):
    """The definition for a batch of vectors: samples (n, B, D), observed (B, D)."""
    return torch.tensor(
        [
            double_sum(samples[:, i].tolist(), observed[i].tolist(), fair)
            for i in range(len(observed))
        ]
    )


@pytest.mark.parametrize("fair", [False, True])
@pytest.mark.parametrize("num", [2, 3, 40])
def test_crps_is_the_double_sum(fair, num):
    samples, observed = torch.randn(num, 30), 1.5 * torch.randn(30)
    samples[0, :3] = observed[:3]  # ties with the observation
    samples[1, 3:6] = samples[0, 3:6]  # and between members
    samples[:, 6] = 2.0
    score = crps(samples, observed, fair=fair)
    expected = each(samples[..., None], observed[:, None], fair)
    torch.testing.assert_close(score, expected, rtol=1e-12, atol=1e-14)
    shaped = crps(samples.reshape(num, 5, 1, 6), observed.reshape(5, 1, 6), fair=fair)
    torch.testing.assert_close(shaped, score.reshape(5, 1, 6))
    torch.testing.assert_close(crps(samples[:, 0], observed[0], fair=fair), score[0])
    if not fair:
        torch.testing.assert_close(score, crps_empirical(samples, observed))


@pytest.mark.parametrize("fair", [False, True])
@pytest.mark.parametrize("dim", [1, 2, 7])
def test_energy_score_is_the_double_sum(fair, dim):
    samples, observed = torch.randn(20, 6, dim), 1.5 * torch.randn(6, dim)
    samples[0] = observed
    samples[1, 3] = samples[2, 3]
    score = energy_score(samples, observed, fair=fair)
    torch.testing.assert_close(score, each(samples, observed, fair), rtol=1e-12, atol=1e-14)
    shaped = energy_score(samples.unflatten(1, (2, 3)), observed.unflatten(0, (2, 3)), fair=fair)
    torch.testing.assert_close(shaped, score.reshape(2, 3))
    if dim == 1:
        expected = crps(samples, observed, fair=fair)
        torch.testing.assert_close(score, expected[:, 0], rtol=1e-12, atol=1e-14)
    if not fair:
        peer = energy_score_empirical(samples.transpose(0, 1), observed)
        torch.testing.assert_close(score, peer)


def test_one_member_scores_its_distance():
    samples, observed = torch.randn(1, 8, 3), torch.randn(8, 3)
    torch.testing.assert_close(crps(samples, observed), (samples[0] - observed).abs())
    torch.testing.assert_close(
        energy_score(samples, observed), (samples[0] - observed).norm(dim=1)
    )


@pytest.mark.parametrize("y", [-3.0, 0.2, 1.0])
def test_fair_score_estimates_that_of_a_normal(y):
    num = 10
    normal = torch.distributions.Normal(0.0, 1.0)
    y = torch.tensor(y)
    closed = y * (2 * normal.cdf(y) - 1) + 2 * normal.log_prob(y).exp() - math.pi**-0.5
    samples = torch.randn(num, 20_000)
    for score, expected in (
        (crps(samples, y.expand(20_000), fair=True), closed),
        # Half the mean difference of two standard normals over n.
        (crps(samples, y.expand(20_000)), closed + math.pi**-0.5 / num),
    ):
        error = score.std() / 20_000**0.5
        assert abs(score.mean() - expected) < 5 * error
        assert 10 * error < math.pi**-0.5 / num  # fine enough to tell the two apart


def test_fair_energy_score_estimates_that_of_the_law():
    # Two ensembles of different sizes from the same law agree; the plain scores do not.
    observed = torch.tensor([0.5, -1.0]).expand(20_000, 2)
    small, large = torch.randn(4, 20_000, 2), torch.randn(12, 20_000, 2)
    for fair in (True, False):
        difference = energy_score(small, observed, fair=fair)
        difference = difference - energy_score(large, observed, fair=fair)
        error = difference.std() / 20_000**0.5
        assert (abs(difference.mean()) < 5 * error) == fair


def test_scores_are_proper():
    # In expectation over what is observed, the law that it comes from scores best.
    observed = torch.randn(4000)
    samples = torch.randn(50, 4000)
    best = crps(samples, observed)
    for worse in (samples + 0.5, 0.5 * samples, 2 * samples):
        difference = crps(worse, observed) - best
        assert difference.mean() > 5 * difference.std() / 4000**0.5
    # Only the energy score sees how coordinates depend on each other.
    pairs = torch.randn(4000, 1).expand(4000, 2)
    joint = torch.randn(50, 4000, 1).expand(50, 4000, 2)
    apart = torch.randn(50, 4000, 2)
    difference = energy_score(apart, pairs) - energy_score(joint, pairs)
    assert difference.mean() > 5 * difference.std() / 4000**0.5


@pytest.mark.parametrize("fair", [False, True])
def test_float32_loses_nothing_far_from_the_origin(fair):
    samples, observed = torch.randn(1000, 50).float() + 1000, torch.randn(50).float() + 1000
    score = crps(samples, observed, fair=fair)
    assert score.dtype == torch.float32
    expected = crps(samples.double(), observed.double(), fair=fair)
    torch.testing.assert_close(score.double(), expected, rtol=1e-5, atol=0)


def test_scores_have_gradients():
    samples = torch.randn(6, 4, 2, requires_grad=True)
    observed = torch.randn(4, 2, requires_grad=True)
    for score in (crps, energy_score):
        for fair in (False, True):
            assert torch.autograd.gradcheck(
                lambda x, y, score=score, fair=fair: score(x, y, fair=fair), (samples, observed)
            )
    equal = torch.ones(3, 2, requires_grad=True)
    (slope,) = torch.autograd.grad(energy_score(equal, torch.ones(2)), equal)
    assert slope.isfinite().all()


def calibrated(name, num, count):
    """Ensembles and observations of one law, which differs from case to case."""
    if name == "normal":
        loc, scale = 5 * torch.randn(count), 0.1 + torch.rand(count)
        return loc + scale * torch.randn(num, count), loc + scale * torch.randn(count)
    rate = 3 * torch.rand(count)  # most counts are 0, 1 or 2: nearly everything is tied
    draws = torch.poisson(rate.expand(num + 1, count))
    return draws[1:], draws[0]


@pytest.mark.parametrize("name", ["normal", "counts"])
@pytest.mark.parametrize("num", [1, 9, 50])
def test_pit_of_calibrated_forecasts_is_uniform(name, num):
    samples, observed = calibrated(name, num, 4000)
    u = pit(samples, observed)
    assert u.shape == (4000,)
    assert kstest(u.numpy(), "uniform").pvalue > P_VALUE
    # Whatever is observed first, the members may be in any order.
    assert kstest(pit(samples.flip(0), observed).numpy(), "uniform").pvalue > P_VALUE


def test_pit_of_wrong_forecasts_is_not_uniform():
    samples, observed = calibrated("normal", 20, 4000)
    center = samples.mean(0)
    for wrong in (
        samples + 0.2,
        center + 0.6 * (samples - center),
        center + 2 * (samples - center),
    ):
        assert kstest(pit(wrong, observed).numpy(), "uniform").pvalue < 1e-6
    # Without noise among ties, ranks of counts would not be uniform.
    samples, observed = calibrated("counts", 20, 4000)
    ranks = (samples < observed).sum(0) / 21
    assert kstest(ranks.numpy(), "uniform").pvalue < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pit_is_between_its_ranks(dtype, monkeypatch):
    samples = torch.tensor([0.0, 1.0, 1.0, 2.0], dtype=dtype)[:, None].expand(4, 5)
    observed = torch.tensor([-1.0, 0.5, 1.0, 2.0, 3.0], dtype=dtype)
    low, high = torch.tensor([[0, 1], [1, 2], [1, 4], [3, 5], [4, 5]], dtype=dtype).T / 5
    real = torch.rand
    for fill in (0.0, 1 - 2**-53):  # all that torch.rand returns
        monkeypatch.setattr(
            torch, "rand", lambda *a, fill=fill, **options: real(*a, **options).fill_(fill)
        )
        u = pit(samples, observed)
        assert u.dtype == dtype
        assert (u > 0).all()
        assert (u < 1).all()
        torch.testing.assert_close(u, low if fill == 0 else high, atol=1e-6, rtol=0)


def test_pit_is_reproducible():
    samples, observed = torch.randn(5, 8), torch.randn(8)
    draws = [pit(samples, observed, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize("name", ["normal", "counts"])
@pytest.mark.parametrize("num", [3, 20, 200])
@pytest.mark.parametrize("level", [0.5, 0.9, 0.99])
def test_calibrated_forecasts_cover_their_level(name, num, level):
    samples, observed = calibrated(name, num, 4000)
    # What each observation adds varies less than if it were 0 or 1.
    error = (level * (1 - level) / 4000) ** 0.5
    assert abs(coverage(samples, observed, level) - level) < 5 * error


def test_coverage_is_the_fraction_of_transforms_inside():
    samples, observed = calibrated("counts", 7, 500)
    transforms = torch.stack([pit(samples, observed) for _ in range(400)])
    inside = ((transforms - 0.5).abs() < 0.3).double().mean(1)
    error = inside.std() / 400**0.5
    assert abs(coverage(samples, observed, 0.6) - inside.mean()) < 5 * error


def test_coverage_of_large_ensembles_is_that_of_quantiles():
    samples, observed = torch.randn(2000, 300), 1.5 * torch.randn(300)
    low, high = samples.quantile(torch.tensor([0.05, 0.95]), dim=0)
    expected = ((low < observed) & (observed < high)).double().mean()
    assert abs(coverage(samples, observed, 0.9) - expected) <= 1 / 300
    assert expected < 0.8
    assert coverage(samples, samples[0] + 100, 0.999) == 0
    assert coverage(samples, samples.median(0).values, 0.01) == 1


@pytest.mark.parametrize("score", [crps, energy_score, lambda *a: coverage(*a, 0.9)])
def test_arrays_and_lists(score):
    samples, observed = torch.randn(5, 4, 3), torch.randn(4, 3)
    expected = torch.as_tensor(score(samples, observed))
    for others in (samples.numpy(), samples.tolist()):
        torch.testing.assert_close(torch.as_tensor(score(others, observed)), expected)
        torch.testing.assert_close(torch.as_tensor(score(others, observed.tolist())), expected)
    torch.testing.assert_close(torch.as_tensor(score(samples, observed.numpy())), expected)


NAN = torch.tensor([0.0, math.nan, math.inf])
GOOD = torch.zeros(4, 3)

BAD = [
    ((torch.zeros(4, 3), torch.zeros(4)), r"\(n, \*B\).*got shapes \(4, 3\) and \(4,\).*movedim"),
    ((torch.zeros(4, 3), torch.zeros(1, 3)), r"got shapes \(4, 3\) and \(1, 3\)"),
    ((torch.tensor(0.0), torch.tensor(0.0)), r"got shapes \(\) and \(\)"),
    ((torch.zeros(0, 3), torch.zeros(3)), r"at least 1 member\(s\) in the ensemble, got 0"),
    ((GOOD, NAN), "finite values of observed, got 2 NaN or infinite among 3.* mask"),
    ((NAN.expand(4, 3), torch.zeros(3)), "finite values of samples, got 8"),
    ((GOOD, torch.zeros(3).double()), "observed to have dtype torch.float32"),
    ((torch.zeros(4, 3, dtype=torch.int64), torch.zeros(3)), "samples to have dtype"),
    (([["a"]], torch.zeros(1)), "samples to hold real numbers, got strings"),
]


@pytest.mark.parametrize(("arguments", "match"), BAD)
@pytest.mark.parametrize("score", [crps, energy_score, pit, lambda *a: coverage(*a, 0.9)])
def test_bad_input(score, arguments, match):
    with pytest.raises(ValueError, match=match):
        score(*arguments)


def test_too_few_members_or_no_vectors():
    for score in (crps, energy_score):
        with pytest.raises(ValueError, match="at least 2 member"):
            score(torch.zeros(1, 3), torch.zeros(3), fair=True)
    with pytest.raises(ValueError, match=r"vectors along the last dimension.*Use crps"):
        energy_score(torch.zeros(5), torch.tensor(0.0))
    for level in (0.0, 1.0, -0.5, math.nan):
        with pytest.raises(ValueError, match="level between 0 and 1"):
            coverage(GOOD, torch.zeros(3), level)
    with pytest.raises(ValueError, match="Expected observations"):
        coverage(torch.zeros(4, 0), torch.zeros(0), 0.9)
