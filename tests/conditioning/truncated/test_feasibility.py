"""Feasibility of linear constraints, against systems whose answer is known."""

import math
import re

import pytest
import torch

from pyromix.conditioning.truncated import feasible_point

INF = math.inf
BOX_AND_SUM = torch.cat([torch.eye(3), torch.ones(1, 3)]).double()


def tensor(*values):
    return torch.tensor(values)


@pytest.mark.parametrize("seed", range(20))
def test_finds_points_inside_random_polytopes(seed):
    torch.manual_seed(seed)
    p, dim, planes = 12, 5, seed % 3
    matrix, plane, inside = torch.randn(p, dim), torch.randn(planes, dim), torch.randn(dim)
    low = matrix @ inside - torch.rand(p)
    high = torch.where(torch.rand(p) < 0.5, INF, matrix @ inside + torch.rand(p))
    point = feasible_point(matrix, low, high, plane, plane @ inside)
    assert ((matrix @ point > low) & (matrix @ point < high)).all()
    torch.testing.assert_close(plane @ point, plane @ inside)


def test_point_is_the_centre_of_the_largest_ball():
    point = feasible_point(torch.eye(2), tensor(0.0, 0.0), tensor(4.0, 6.0), radius=9.0)
    assert point[0] == 2.0
    assert 2.0 <= point[1] <= 4.0


CONFLICTS = {
    "crossed": ([0, 2, 0, -INF], [1, 1, 1, INF], None, None, [1], [], "contradict"),
    "box and sum": ([0, 0, 0, 4], [1, 1, 1, INF], None, None, [0, 1, 2, 3], [], "contradict"),
    "touching": ([0, 0, 0, 3], [1, 1, 1, INF], None, None, [0, 1, 2, 3], [], "no interior"),
    "equal bounds": ([0, 1, 0, -INF], [1, 1, 1, INF], None, None, [1], [], "no interior"),
    "plane": ([0, 0, 0, -INF], [1, 1, 1, INF], [[1, 1, 1]], [4], [0, 1, 2], [0], "contradict"),
    "fixed": ([0, 0, 0, -INF], [1, 1, 1, INF], [[0, 2, 0]], [4], [1], [], "contradict"),
}


@pytest.mark.parametrize("name", CONFLICTS)
def test_names_the_rows_that_conflict(name):
    low, high, plane, value, rows, planes, verb = CONFLICTS[name]
    args = [BOX_AND_SUM, torch.tensor(low).double(), torch.tensor(high).double()]
    if plane is not None:
        args += [torch.tensor(plane).double(), torch.tensor(value).double()]
    with pytest.raises(ValueError, match=re.escape(f"rows {rows} of the inequalities")) as error:
        feasible_point(*args)
    assert verb in str(error.value)
    if planes:
        assert f"rows {planes} of the equalities" in str(error.value)


@pytest.mark.parametrize("seed", range(10))
def test_conflicts_are_irreducible(seed):
    """Leaving out any of the named rows leaves a system that can be met."""
    torch.manual_seed(seed)
    dim, p = 4, 15
    matrix, high = torch.randn(p, dim), torch.randn(p) - 0.5
    low = torch.full((p,), -INF)
    with pytest.raises(ValueError, match="contradict") as error:
        feasible_point(matrix, low, high)
    rows = [int(r) for r in re.search(r"rows \[(.*?)\]", str(error.value))[1].split(",")]
    with pytest.raises(ValueError, match="contradict"):
        feasible_point(matrix[rows], low[rows], high[rows])
    for row in rows:
        kept = [r for r in rows if r != row]
        feasible_point(matrix[kept], low[kept], high[kept])


def test_row_fixed_at_its_bound_by_an_equality_holds():
    plane = tensor([0.0, 1.0, 0.0])
    low, high = tensor(0.0, 0.0, 0.0, -INF), tensor(1.0, 1.0, 1.0, INF)
    point = feasible_point(BOX_AND_SUM, low, high, plane, tensor(1.0))
    torch.testing.assert_close(point[1], tensor(1.0)[0])


def test_contradicting_equalities():
    plane = torch.ones(2, 3)
    with pytest.raises(ValueError, match="2 equalities"):
        feasible_point(BOX_AND_SUM, torch.zeros(4), torch.ones(4), plane, tensor(1.0, 2.0))


@pytest.mark.parametrize(
    ("args", "match"),
    [
        ((torch.eye(2), torch.zeros(3), torch.ones(2)), r"low \(p,\)"),
        ((torch.zeros(2), torch.zeros(2), torch.ones(2)), r"matrix \(p, D\)"),
        ((torch.eye(2), [0, 0], torch.ones(2)), r"low to be a torch\.Tensor"),
        ((torch.eye(2), torch.zeros(2), torch.ones(2), torch.eye(2)), "together"),
        ((torch.eye(2), torch.zeros(2), torch.ones(2), torch.eye(3), torch.ones(3)), "r, 2"),
    ],
)
def test_bad_input(args, match):
    args = [a.double() if isinstance(a, torch.Tensor) else a for a in args]
    with pytest.raises(ValueError, match=match):
        feasible_point(*args)
