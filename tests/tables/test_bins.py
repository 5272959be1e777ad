"""Bins of numbers: laws inside them that sum to one, against sums and integrals."""

import numpy as np
import pytest
import torch

from pyromix.tables import Schema, bounded, count, integer, positive, real
from pyromix.tables.bins import Bins
from pyromix.tables.regions import Intervals

pd = pytest.importorskip("pandas")


def _bins(kind, x, most=12):
    schema = Schema.infer({"x": x, "y": np.arange(len(x)) * 0.5}, x=kind)
    return Bins.of(schema["x"], np.asarray(x, dtype=float), most)


def _samples():
    rng = np.random.default_rng(0)
    skewed = rng.lognormal(1, 1, 800)
    return {
        "real": (real(), rng.normal(3, 2, 800)),
        "positive": (positive(), skewed),
        "bounded": (bounded(0, 10), 10 * rng.beta(0.5, 0.7, 800)),
        "atoms": (real(), np.where(rng.random(800) < 0.3, 2.5, rng.normal(3, 2, 800))),
        "zero beside logarithms": (
            positive(point=0.0),
            np.where(rng.random(800) < 0.5, 0.0, skewed),
        ),
        "integers": (integer(), rng.integers(-30, 30, 800)),
        "counts": (count(), np.floor(skewed)),
        "steps": (real(step=0.05), np.round(rng.normal(1, 0.3, 800) / 0.05) * 0.05),
        "few": (real(), [1.5, 2.5, 9.0]),
        "one": (real(), [4.0, 4.0, 4.0]),
    }


SAMPLES = _samples()


@pytest.mark.parametrize("name", SAMPLES)
def test_laws_of_bins_sum_to_one(name):
    kind, x = SAMPLES[name]
    bins = _bins(kind, x)
    step = bins.column.step
    shares = np.zeros(bins.count)
    np.add.at(shares, bins.segments.bins, bins.segments.share)
    np.testing.assert_allclose(shares, 1)
    atoms = bins.segments.atom[~np.isnan(bins.segments.atom)]
    if step is not None:
        low = 0 if name == "counts" else np.round(min(x) / step) - 400
        grid = (low + np.arange(4000)) * step
        codes, log_mass = bins.encode(grid)
        total = np.bincount(codes, np.exp(log_mass), minlength=bins.count)
        np.testing.assert_allclose(total, 1, atol=1e-6)
        return
    # Integrals over the axis, by the middle of many probabilities within each segment.
    total = np.zeros(bins.count)
    wide = np.flatnonzero(np.isnan(bins.segments.atom))
    for segment in wide:
        ends = bins.decode(bins.segments, np.full(2, segment), np.array([1e-7, 1 - 1e-7]))
        grid = np.linspace(*ends, 20_001)[1:-1]
        grid = grid[~np.isin(grid, atoms)]
        codes, log_density = bins.encode(grid)
        inside = codes == bins.segments.bins[segment]
        total[bins.segments.bins[segment]] += np.trapezoid(np.exp(log_density) * inside, grid)
    numbers = np.setdiff1d(np.arange(bins.count), bins.segments.bins[wide])
    np.testing.assert_allclose(np.delete(total, numbers), 1, atol=0.02)
    codes, log_mass = bins.encode(atoms)
    np.testing.assert_allclose(log_mass, 0)
    assert sorted(codes) == sorted(numbers)


@pytest.mark.parametrize("name", SAMPLES)
def test_masses_distributions_means_and_quantiles_are_those_of_draws(name):
    kind, x = SAMPLES[name]
    bins = _bins(kind, x)
    torch.manual_seed(0)
    code = np.repeat(np.arange(bins.count), 20_000 // bins.count)
    drawn = bins.draw(code)
    codes, _ = bins.encode(drawn)
    assert (codes == code).mean() > 0.9999
    low, high = np.quantile(x, [0.3, 0.8])
    some = Intervals.between(low, high, with_low=False)
    for region in (some, ~some, Intervals.points([x[0]])):
        segments, belongs = bins.cut([region])
        mass = segments.mass(belongs)[0]
        share = np.bincount(code, region.contains(drawn)) / np.bincount(code)
        np.testing.assert_allclose(mass, share, atol=0.08)
        if mass.max() > 0:
            inner = bins.draw(np.full(500, mass.argmax()), segments, belongs[0])
            assert region.contains(inner).all()
    below, upto = bins.cdf(np.array([x[0], 1e6]))
    share = np.bincount(code, drawn <= x[0]) / np.bincount(code)
    np.testing.assert_allclose(upto[0], share, atol=0.08)
    share = np.bincount(code, drawn < x[0]) / np.bincount(code)
    np.testing.assert_allclose(below[0], share, atol=0.08)
    segments, _ = bins.cut([Intervals.everything()])
    weight = segments.share / bins.count
    found = bins.quantiles(segments, weight[None], np.array([0.05, 0.3, 0.5, 0.9]))[0]
    ranks = [((drawn <= q).mean(), (drawn < q).mean()) for q in found]
    for p, (upper, lower) in zip((0.05, 0.3, 0.5, 0.9), ranks, strict=True):
        assert lower - 0.015 <= p <= upper + 0.015
    scale = np.std(drawn) / np.sqrt(len(drawn)) + 1e-9
    assert abs(weight @ bins.means(segments) - drawn.mean()) < 6 * scale


def test_common_values_have_bins_of_their_own():
    rng = np.random.default_rng(0)
    x = np.where(rng.random(3000) < 0.6, 40, rng.integers(0, 100, 3000))
    bins = _bins(integer(), x, most=16)
    codes, log_mass = bins.encode(np.array([39.0, 40.0, 41.0]))
    assert len(set(codes)) == 3
    assert np.exp(log_mass[1]) > 0.99
    # They do not make the bins of the others wider.
    assert bins.count > 14
    # A gap between them has little probability, and some.
    segments, belongs = bins.cut([Intervals.between(120, 200)])
    mass = segments.mass(belongs)[0]
    assert 0 < mass.max() < 0.1
