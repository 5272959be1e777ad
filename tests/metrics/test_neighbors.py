"""Precision and recall: cases with known answers, and the slow, obvious computation."""

import math

import pytest
import torch

from pyromix.metrics import PrecisionRecall, neighbors, precision_recall


def obvious(real, generated, k=3):
    """The definition, one pair at a time."""
    real, generated = real.double().tolist(), generated.double().tolist()

    def fraction(points, others):
        radii = []
        for i, center in enumerate(others):
            distances = [math.dist(center, x) for j, x in enumerate(others) if j != i]
            radii.append(sorted(distances)[k - 1])
        balls = list(zip(others, radii, strict=True))
        inside = [any(math.dist(x, center) <= r for center, r in balls) for x in points]
        return sum(inside) / len(points)

    return fraction(generated, real), fraction(real, generated)


def modes(num, *centers):
    """Standard normals around the centres, equally many points in each."""
    return torch.cat([torch.randn(num // len(centers), 2) + c for c in centers])


@pytest.mark.parametrize("dim", [1, 2, 5, 16, 17, 60])
@pytest.mark.parametrize("k", [1, 3])
def test_agrees_with_the_definition(dim, k):
    real = torch.randn(150, dim)
    generated = torch.randn(90, dim) * 0.8 + 0.3
    expected = obvious(real, generated, k)
    assert expected != (0, 0)
    assert tuple(precision_recall(real, generated, k)) == expected


def test_identical_sets():
    for dim in (2, 40):
        points = torch.randn(300, dim)
        assert precision_recall(points, points[torch.randperm(300)]) == (1.0, 1.0)


def test_disjoint_sets():
    score = precision_recall(modes(300, 0.0), modes(300, 1e3))
    assert score == (0.0, 0.0)
    assert score.f1 == 0.0


def test_one_of_two_modes_is_generated():
    score = precision_recall(modes(2000, 0.0, 100.0), modes(2000, 0.0))
    assert score.precision > 0.95
    # The other mode is missed for certain; of this one, the points between the balls.
    assert 0.47 < score.recall <= 0.5


def test_one_of_two_generated_modes_is_real():
    score = precision_recall(modes(2000, 0.0), modes(2000, 0.0, 100.0))
    assert 0.47 < score.precision <= 0.5
    assert score.recall > 0.95


def test_surface_of_a_ball_is_inside():
    real = torch.tensor([[0.0], [1.0], [2.0]])  # radii 1, 1, 1
    assert precision_recall(real, torch.tensor([[3.0], [3.5], [4.0]]), k=1).precision == 1 / 3


def test_harmonic_mean():
    assert PrecisionRecall(0.5, 0.25).f1 == pytest.approx(1 / 3)
    precision, recall = PrecisionRecall(0.5, 0.25)
    assert (precision, recall) == (0.5, 0.25)


@pytest.mark.parametrize("dim", [2, 40])
@pytest.mark.parametrize("chunk_size", [1, 7, 64, 1000])
def test_chunks_do_not_matter(dim, chunk_size):
    real, generated = torch.randn(70, dim), torch.randn(90, dim)
    whole = precision_recall(real, generated)
    assert precision_recall(real, generated, chunk_size=chunk_size) == whole


@pytest.mark.parametrize("dim", [2, 40])
def test_shift_does_not_matter(dim):
    # A multiple of 2^-10, so that float32 holds the shifted points exactly, too.
    real = (torch.randn(500, dim) * 1024).round() / 1024
    generated = (torch.randn(500, dim) * 1024).round() / 1024
    expected = precision_recall(real, generated)
    shifted = precision_recall((real + 1e4).float(), (generated + 1e4).float())
    assert shifted == expected
    assert 0.1 < expected.f1 < 0.99


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.int64])
def test_distances_do_not_inherit_the_dtype(dtype):
    real = (100 * torch.randn(150, 30)).round().to(dtype)
    generated = (100 * torch.randn(150, 30)).round().to(dtype)
    assert tuple(precision_recall(real, generated)) == obvious(real, generated)


def test_near_duplicates_far_apart():
    # Clusters 1e-7 wide in data 100 wide: products of centred points cancel to nothing there.
    centers = 100 * torch.randn(20, 40).double()
    real = (centers[:, None] + 1e-7 * torch.randn(20, 8, 40)).flatten(0, 1)
    generated = (centers[:10, None] + 1e-7 * torch.randn(10, 16, 40)).flatten(0, 1)
    expected = obvious(real, generated)
    assert expected[0] > 0.2
    assert tuple(precision_recall(real, generated)) == expected
    assert tuple(precision_recall(real, generated, chunk_size=50)) == expected


def test_products_are_right_where_they_are_used():
    points = torch.randn(300, 200).double() * torch.logspace(-5, 0, 300)[:, None]
    floor = neighbors._smallest_safe_distance(points, points)
    direct = neighbors._squared_distances(points, points, direct=True)
    products = neighbors._squared_distances(points, points, direct=False)
    safe = direct > floor
    assert 0 < safe.sum() < safe.numel() - len(points)
    assert ((products - direct).abs() <= 1e-6 * direct)[safe].all()


def test_repeated_points():
    real = torch.randn(400, 2)
    few = torch.randn(20, 2).repeat(20, 1)
    with pytest.warns(UserWarning, match="400 of 400 generated points are repeated"):
        score = precision_recall(real, few)
    assert score.recall == 0.0
    assert score.precision > 0.5
    assert precision_recall(real, few, unique=True) == precision_recall(real, few[:20])
    rounded = (2 * real).round()
    assert precision_recall(rounded, rounded, unique=True) == (1.0, 1.0)


def test_zero_radius_holds_its_own_centre():
    points = torch.randn(5, 30).repeat(5, 1)
    with pytest.warns(UserWarning, match="25 of 25"):
        assert precision_recall(points, points) == (1.0, 1.0)


def test_no_graph_is_kept():
    real = torch.randn(50, 20, requires_grad=True)
    precision_recall(real, real.detach() + 0.1)
    assert real.grad is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dim", [2, 40])
def test_on_a_gpu(dim):
    real, generated = torch.randn(500, dim), torch.randn(500, dim)
    on_gpu = precision_recall(real.cuda(), generated.cuda())
    assert tuple(on_gpu) == pytest.approx(tuple(precision_recall(real, generated)), abs=2e-3)


def test_arrays_and_lists():
    real, generated = torch.randint(20, (60, 2)), torch.randn(50, 2) + 10
    expected = precision_recall(real, generated)
    assert 0 < expected.recall < 1
    assert precision_recall(real.int().numpy(), generated.numpy()) == expected
    assert precision_recall(real.tolist(), generated.tolist()) == expected


NAN = torch.tensor([[0.0, torch.nan], [0.0, 1.0], [2.0, torch.inf], [1.0, 1.0], [1.0, 2.0]])

BAD = [
    ((torch.zeros(9, 1, 8, 8), torch.zeros(9, 1, 8, 8)), {}, r"Reshape images .*reshape\(N, -1\)"),
    ((torch.zeros(9, 2), torch.zeros(9)), {}, r"generated to be .*\(N, D\), got .*\(9,\)"),
    (([["a"]], torch.zeros(9, 1)), {}, "real to hold real numbers, got strings"),
    ((torch.zeros(9, 2, dtype=torch.complex64), torch.zeros(9, 2)), {}, "got torch.complex64"),
    ((torch.zeros(9, 2), torch.zeros(9, 3)), {}, r"equally many columns.*\(9, 2\).*\(9, 3\)"),
    ((torch.zeros(9, 0), torch.zeros(9, 0)), {}, "to have columns"),
    ((NAN, torch.zeros(9, 2)), {}, "finite real points, got 2 NaN or infinite among 10"),
    ((torch.zeros(9, 2), NAN), {}, "finite generated points, got 2"),
    ((torch.randn(3, 2), torch.randn(9, 2)), {}, r"k \+ 1 = 4 real points.*got 3.*smaller k"),
    ((torch.randn(9, 2), torch.zeros(9, 2)), {"unique": True}, "4 distinct generated .*got 1"),
    ((torch.zeros(9, 2), torch.zeros(9, 2)), {"k": 0}, "k to be an integer of at least 1"),
    ((torch.zeros(9, 2), torch.zeros(9, 2)), {"k": 1.5}, "k to be an integer of at least 1"),
    ((torch.zeros(9, 2), torch.zeros(9, 2)), {"chunk_size": 0}, "chunk_size to be an integer"),
]


@pytest.mark.parametrize(("arguments", "options", "match"), BAD)
def test_bad_input(arguments, options, match):
    with pytest.raises(ValueError, match=match):
        precision_recall(*arguments, **options)
