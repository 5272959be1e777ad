"""Linear statements put together: against points that meet them, one by one."""

import math

import pytest
import torch

from pyromix import AnyOf, Box, GaussianPrior, LinearEquality, LinearInequality, Observed
from pyromix.evidence import LinearEvidence, collect, collect_alternatives, tightest_bounds

INF = math.inf
CPU = torch.device("cpu")


def vector(*numbers):
    return torch.tensor(numbers)


def meets(evidence, x):
    """Whether points (n, D) meet all inequalities of evidence without batch, row by row."""
    inside = torch.ones(len(x), dtype=torch.bool)
    for matrix, low, high in zip(evidence.matrix, evidence.low, evidence.high, strict=True):
        for row, least, most in zip(matrix, low, high, strict=True):
            value = (x * row).sum(-1)
            inside &= (value >= least) & (value <= most)
    return inside


BOX = Box(vector(-1.0, -INF, 0.0), vector(0.5, 1.0, INF))
OBLIQUE = LinearInequality(vector(1.0, -2.0, 0.5), 0.25)
MIRRORED = LinearInequality(vector(-1.0, 2.0, -0.5), 0.75)


@pytest.mark.parametrize(
    "parts",
    [
        ([BOX], [Box(-0.5, 2.0)]),
        ([BOX], [OBLIQUE], [MIRRORED]),
        ([BOX, OBLIQUE], [Box(high=0.25), MIRRORED]),
    ],
)
def test_intersections_and_joins_hold_where_all_parts_hold(parts):
    x = 3 * torch.rand(2000, 3) - 1.5
    evidence = [collect(part, 3, CPU) for part in parts]
    expected = torch.stack([meets(part, x) for part in evidence]).all(0)
    assert 0 < expected.sum() < len(x)
    first, *others = evidence
    for both in (first.intersect(*others), first.join(*others)):
        assert torch.equal(meets(both, x), expected)
    rows = first.intersect(*others).matrix[0]
    assert len(rows.unique(dim=0)) == len(rows)  # every row once


def test_inequalities_on_free_columns_are_those_that_values_leave():
    evidence = collect([Observed({1: vector(0.5, -3.0, 2.0)}), BOX, OBLIQUE], 3, CPU)
    value = evidence.observed_values(torch.float64)
    rows, low, high, broken = evidence.inequalities_on_free((3,), torch.float64)
    assert broken.tolist() == [False, False, True]  # the box ends at 1
    x = 3 * torch.rand(500, 2) - 1.5
    for entry in range(2):
        whole = torch.stack([x[:, 0], value[entry, 0].expand(500), x[:, 1]], -1)
        plain = collect([BOX, OBLIQUE], 3, CPU)
        left = LinearEvidence(2, CPU, matrix=[rows], low=[low[entry]], high=[high[entry]])
        assert torch.equal(meets(left, x), meets(plain, whole))


def test_contradictions_that_rows_show():
    def of(*pieces):
        evidence = collect(pieces, 2, CPU)
        evidence = evidence.intersect(evidence)
        return evidence.contradicts_itself(torch.float32).tolist()

    assert of(Box(-1.0, 1.0)) is False
    assert of(Box(-1.0, 0.0), Box(0.5, 1.0)) is True
    assert (
        of(LinearInequality(vector(1.0, 1.0), -1.0), LinearInequality(vector(-1.0, -1.0))) is True
    )
    assert of(Observed({0: 2.0}), Box(-1.0, 1.0)) is True
    assert of(Observed({0: vector(0.0, 2.0)}), Box(-1.0, 1.0)) == [False, True]
    # Values count as the dtype has them.
    border = torch.tensor(0.1, dtype=torch.float32).double()
    assert of(Observed({0: 0.1}), Box(vector(border, -INF), INF)) is False
    assert of(Observed({0: 0.1})) is False


def test_observations_stack_values_and_equations():
    evidence = collect(
        [
            Observed({2: vector(1.0, 2.0)}),
            LinearEquality(vector(1.0, 1.0, 0.0), -3.0),
            GaussianPrior(0.5, vector(INF, 2.0, INF)),
        ],
        3,
        CPU,
    )
    matrix, y, noise = evidence.observations((2,))
    assert matrix.tolist() == [[0, 0, 1], [1, 1, 0], [0, 1, 0]]
    assert y.tolist() == [[1, 3, 0.5], [2, 3, 0.5]]
    assert noise.tolist() == [[0, 0, 0], [0, 0, 0], [0, 0, 4]]
    matrix, y, noise = collect([BOX], 3, CPU).observations((2,))
    assert (matrix.shape, y.shape, noise.shape) == ((0, 3), (2, 0), (0, 0))


def test_alternatives_that_cannot_hold_or_say_nothing_are_left_out():
    near, far = Box(-1.0, 1.0), Box(5.0, 6.0)

    def count(*evidence):
        return len(collect_alternatives(evidence, 2, CPU))

    assert count(near) == 1
    assert count(AnyOf(near, far)) == 2
    assert count(Box(-2.0, 2.0), AnyOf(near, far)) == 1
    assert count(Observed({0: 0.5}), AnyOf(far, near)) == 1
    assert count(AnyOf(near, Box(-0.5, 0.5))) == 1  # one within the other
    assert count(AnyOf(near, far), AnyOf(near, far)) == 2
    # With one left it is as if that had been given alone.
    (left,) = collect_alternatives([Box(-2.0, 2.0), AnyOf(far, near)], 2, CPU)
    alone = collect([Box(-2.0, 2.0), near], 2, CPU)
    for name in ("matrix", "low", "high"):
        pairs = zip(getattr(left, name), getattr(alone, name), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


def test_tightest_bounds():
    low, high = tightest_bounds(
        vector(0.0, 1.0, -INF), vector(3.0, INF, 2.0), torch.tensor([0, 0, 2]), 3
    )
    assert low.tolist() == [1.0, -INF, -INF]
    assert high.tolist() == [3.0, INF, 2.0]
