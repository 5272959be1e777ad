"""The choice of a family and a number of components."""

import math
import warnings
from dataclasses import asdict

import matplotlib.pyplot as plt
import pytest
import torch

from pyromix import GaussianMixture, fit_em, select
from pyromix.mixtures.clusters import weighted_clusters
from pyromix.mixtures.selection.starts import KINDS, Starts, merged, split


def blobs(num=60, dim=2, k=3, seed=0):
    """Points of round clusters that are well apart, and their labels."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.arange(num) % k
    centre = 8.0 * torch.eye(max(k, dim), dtype=torch.float64)[:k, :dim]
    noise = torch.randn(num, dim, generator=generator, dtype=torch.float64)
    return centre[label] + noise, label


def cigars(num=400, k=4):
    """Long parallel clusters, 50 times as long as wide, at an angle to the axes."""
    generator = torch.Generator().manual_seed(0)
    label = torch.arange(num) % k
    x = torch.randn(num, 2, generator=generator, dtype=torch.float64)
    x = x * torch.tensor([10.0, 0.2]) + torch.stack([torch.zeros(num), 1.0 * label], -1)
    turn = torch.tensor([[math.cos(0.5), -math.sin(0.5)], [math.sin(0.5), math.cos(0.5)]])
    return x @ turn, label


def chosen(data, *args, **kwargs):
    return select(data, *args, **{"seed": 0, "progress_bar": False, **kwargs})


def test_parallel_cigars_are_told_apart():
    x, label = cigars()
    found = chosen(x, (3, 4), ("EEE", "VVV"))
    assert (found.candidate.covariance, found.candidate.num_components) == ("EEE", 4)
    got = found.best.responsibilities(x).argmax(-1)
    names = [got[label == k].mode().values for k in range(4)]
    assert len(set(map(int, names))) == 4
    # Five standard deviations apart, 0.9% of the points are on the wrong side.
    assert (got == torch.stack(names)[label]).double().mean() > 0.975
    # From clusters in the data's own units they are cut across.
    peer = GaussianMixture(2, 4, "VVV")
    fit_em(peer, x, seed=0, restarts=5, progress_bar=False)
    assert found.models["VVV", 4].bic(x) < peer.bic(x) - 50


def test_criteria_are_those_of_their_definitions():
    x, _ = blobs()
    found = chosen(x, (2, 3), ("EII", "VVV"), "icl", starts="hierarchical")
    for row in found.table:
        model = found.models[row.covariance, row.num_components]
        deviance = -2 * float(model.log_prob(x).detach().sum())
        penalty = math.log(60) * model.num_free_parameters
        certain = model.responsibilities(x).detach().amax(-1).log().sum()
        assert row.log_likelihood == pytest.approx(-0.5 * deviance)
        assert row.bic == pytest.approx(deviance + penalty)
        assert row.icl == pytest.approx(deviance + penalty - 2 * float(certain))
        assert row.aic == pytest.approx(deviance + 2 * model.num_free_parameters)
        assert math.isnan(row.heldout)
    assert found.table == sorted(found.table, key=lambda row: row.icl)
    assert (found.candidate.covariance, found.candidate.num_components) == ("EII", 3)


def test_points_that_were_held_out_are_scored():
    """One by one, so that chance has no part in the folds."""
    x, label = blobs(18)
    found = chosen(x, (2, 3), "EII", "heldout", folds=18, starts="hierarchical", tolerance=1e-9)
    total = 0.0
    for i in range(18):
        kept = torch.arange(18) != i
        model = GaussianMixture(2, 3, "EII")
        model.initialize(x[kept], responsibilities=torch.eye(3)[label[kept]])
        fit_em(model, x[kept], initialize=False, tolerance=1e-9, progress_bar=False)
        total += float(model.log_prob(x[i]).detach())
    assert found.candidate.num_components == 3
    assert found.candidate.heldout == pytest.approx(total / 18, abs=1e-5)
    assert found.table[1].heldout < found.candidate.heldout


def test_components_that_collapse_do_not_win():
    x, _ = blobs(60, k=1)
    x[:6] = x[0]  # the same point six times
    found = chosen(x, (1, 2, 3), ("VVV", "VVI"))
    assert not found.candidate.degenerate
    assert found.best.scale.min() > 0.02
    collapsed = [row for row in found.table if "collapsed" in row.degenerate]
    assert collapsed
    assert min(row.bic for row in collapsed) < found.candidate.bic - 50
    few = chosen(x, (1, 2), "VVV", min_points=40)
    assert [bool(row.degenerate) for row in few.table] == [False, True]


def test_the_seed_decides():
    x, _ = blobs(seed=1)
    before = torch.get_rng_state()
    first, again = (chosen(x, (2, 3), "EEV", seed=3, starts="random") for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    assert [repr(asdict(row)) for row in first.table] == [repr(asdict(r)) for r in again.table]
    assert torch.equal(first.best.loc, again.best.loc)


def test_missing_entries_are_integrated_out():
    x, label = blobs(100)
    generator = torch.Generator().manual_seed(0)
    gaps = x.masked_fill(torch.rand(x.shape, generator=generator) < 0.2, math.nan)
    found = chosen(gaps, (2, 3), ("EII", "VVE"), missing="marginalize", starts="k-means")
    assert (found.candidate.covariance, found.candidate.num_components) == ("EII", 3)
    whole = ~gaps.isnan().any(-1)
    got = found.best.responsibilities(gaps[whole]).argmax(-1)
    assert all(len(got[label[whole] == k].unique()) == 1 for k in range(3))


def test_units_constant_columns_and_types():
    x, _ = blobs()
    plain = chosen(x, 3, ("EII", "VEE"), starts="k-means")
    scaled = chosen(1e8 * x - 1e9, 3, ("EII", "VEE"), starts="k-means")
    volume = 60 * 2 * math.log(1e8)
    assert scaled.candidate.covariance == plain.candidate.covariance
    assert scaled.candidate.log_likelihood + volume == pytest.approx(
        plain.candidate.log_likelihood, abs=0.01
    )
    constant = chosen(
        torch.cat([x, torch.full((60, 1), 3.0)], -1), (2, 3), ("VVI", "EEE"), starts="k-means"
    )
    assert constant.candidate.num_components == 3
    assert not constant.candidate.degenerate
    for data, dtype in ((x.float(), torch.float32), (x.numpy().tolist(), torch.float64)):
        found = chosen(data, 3, "VII")
        assert found.best.loc.dtype == dtype
        assert found.best.log_prob(torch.as_tensor(data, dtype=dtype)).isfinite().all()


def test_more_components_than_points():
    x, _ = blobs(9)
    found = chosen(x, (1, 3, 12), ("EII", "VVV"))
    rows = {(row.covariance, row.num_components): row for row in found.table}
    assert rows["EII", 12].degenerate == rows["VVV", 12].degenerate == "9 points are too few"
    assert found.candidate.covariance == "EII"
    with pytest.raises(ValueError, match="Try fewer components"):
        chosen(x, (12, 20), "VVV")
    with pytest.warns(UserWarning, match="Every mixture is degenerate"):
        alone = chosen(blobs(6)[0][:3].repeat(4, 1), 3, "VVV", starts="k-means")
    assert "collapsed" in alone.candidate.degenerate


def test_starts_are_partitions_and_neighbours_conserve_points():
    x, _ = blobs()
    torch.manual_seed(0)
    for k in (1, 3, 5):
        for start in Starts(x, KINDS)(k):
            assert start.shape == (60, k)
            torch.testing.assert_close(start.sum(-1), torch.ones(60))
    given = torch.rand(60, 4).softmax(-1)
    for near, size in ((split(given, x), 5), (merged(given), 3)):
        found = list(near)
        assert len(found) == 3
        for each in found:
            assert each.shape == (60, size)
            torch.testing.assert_close(each.sum(-1), torch.ones(60))
    large = torch.randn(2_500, 3)
    tree = list(Starts(large, ("hierarchical",))(4))
    assert all(start.sum() == 2_500 for start in tree)


@pytest.mark.parametrize("covariances", [False, True])
def test_responsibilities_start_a_mixture(covariances):
    x, _ = blobs()
    given = torch.rand(60, 2).softmax(-1)
    clusters = weighted_clusters(x, given, covariances=covariances)
    pooled, within = 0.0, []
    for k in range(2):
        mean = (given[:, k : k + 1] * x).sum(0) / given[:, k].sum()
        torch.testing.assert_close(clusters.loc[k], mean)
        outer = sum(
            r * torch.outer(point - mean, point - mean)
            for r, point in zip(given[:, k], x, strict=True)
        )
        within.append(outer)
        pooled = pooled + outer / 60
    for k in range(2):
        expected = (within[k] + pooled) / (given[:, k].sum() + 1)
        expected = expected if covariances else expected.diagonal()
        torch.testing.assert_close(clusters.second[k], expected)
    model = GaussianMixture(2, 2, "full" if covariances else "diagonal")
    model.initialize(x, responsibilities=given)
    torch.testing.assert_close(model.law.loc, clusters.loc)
    for bad in (given[:5], 2 * given, -given):
        with pytest.raises(ValueError, match="Expected responsibilities"):
            model.initialize(x, responsibilities=bad)


def test_the_outcome_is_printed_and_plotted(capsys):
    x, _ = blobs()
    found = select(x, (1, 3, 30), ("EII", "VVV"), seed=0, starts="k-means")
    assert "100%" in capsys.readouterr().err
    lines = str(found).splitlines()
    assert lines[0] == (
        "EII with 3 components, of 6 mixtures of 60 points in 2 dimensions by BIC."
    )
    assert lines[3].split()[:3] == ["EII", "3", "9"]
    assert lines[-1] == "2 degenerate: see table"
    ax = found.plot()
    assert [line.get_label() for line in ax.get_legend().get_lines()] == ["EII", "VVV"]
    plt.close(ax.figure)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_components": ()}, "at least one number"),
        ({"num_components": (0, 1)}, "num_components"),
        ({"covariances": ()}, "covariances to name at least one"),
        ({"covariances": "VVX"}, "covariances"),
        ({"criterion": "aic"}, "criterion"),
        ({"starts": ("ward",)}, "starts"),
        ({"criterion": "heldout", "folds": 1}, "folds"),
        ({"min_points": 0}, "min_points"),
        ({"missing": "drop"}, "missing"),
        ({"variance_floor": 0.0}, "variance_floor"),
        ({"tolerance": -1.0}, "tolerance"),
        ({"seed": 0.5}, "seed"),
        ({"data": torch.zeros(3)}, r"shape \(N, D\)"),
        ({"data": torch.zeros(0, 2)}, "at least one point"),
        ({"data": torch.full((4, 2), math.nan)}, "missing='marginalize'"),
        ({"data": torch.zeros(4, 2, dtype=torch.long)}, "floating-point"),
    ],
)
def test_bad_input(arguments, message):
    with warnings.catch_warnings(), pytest.raises(ValueError, match=message):
        chosen(**{"data": torch.randn(20, 2), "num_components": 2, **arguments})
