"""Data: known moments and supports, files found and missed, and a body that holds together."""

import gzip
import math
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from pyromix import datasets
from pyromix.datasets import PlanarHumanoid, images, toy

# --- toy laws ---

TOYS = {name: getattr(toy, name) for name in toy.__all__}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def assert_mean(values, expected):
    """Within five standard errors of the expectation."""
    error = values.std() / len(values) ** 0.5
    assert abs(values.mean() - expected) < 5 * error + 1e-6


@pytest.mark.parametrize("name", TOYS)
def test_toys_are_reproducible_points(name):
    draw = TOYS[name]
    points = draw(50, generator=generator())
    assert points.shape == (50, 1 if name == "mixture_1d" else 2)
    assert points.dtype == torch.get_default_dtype()
    assert points.isfinite().all()
    assert points.abs().max() < 6
    assert torch.equal(points, draw(50, generator=generator()))
    assert not torch.equal(points, draw(50, generator=generator(1)))
    torch.manual_seed(3)
    one = draw(20)
    torch.manual_seed(3)
    assert torch.equal(one, draw(20))


@pytest.mark.parametrize("name", [name for name in TOYS if name != "mixture_1d"])
def test_toys_have_no_copies(name):
    assert len(TOYS[name](2000).unique(dim=0)) == 2000


@pytest.mark.parametrize("dim", [2, 3])
def test_swiss_roll_lies_on_its_spiral(dim):
    points = 5 * datasets.swiss_roll(2000, dim, noise=0.0)
    x, y = points[:, 0], points[:, -1]
    t = points[:, [0, -1]].norm(dim=1)
    assert (t >= 1.5 * math.pi - 1e-4).all()
    assert (t <= 4.5 * math.pi + 1e-4).all()
    curve = t * torch.stack([t.cos(), t.sin()])
    torch.testing.assert_close(torch.stack([x, y]), curve, atol=1e-3, rtol=0)
    assert_mean(t, 3 * math.pi)
    if dim == 3:
        height = points[:, 1]
        assert height.abs().max() <= 10.5
        assert_mean(height, 0.0)


def test_noise_has_its_deviation():
    clean = datasets.swiss_roll(20_000, noise=0.0, generator=generator())
    noisy = datasets.swiss_roll(20_000, noise=0.3, generator=generator())
    # The sum of 40,000 squares of standard normals is within 5 sqrt(80,000) of its mean.
    assert abs(((noisy - clean) / 0.3).square().mean() - 1) < 5 * (2 / 40_000) ** 0.5
    grid = datasets.gaussian_grid(20_000, scale=0.05)
    assert abs(((grid - grid.round()) / 0.05).square().mean() - 1) < 5 * (2 / 40_000) ** 0.5


@pytest.mark.parametrize("depth", [0, 1, 4, 8])
def test_sierpinski_is_uniform_on_what_is_left(depth):
    points = datasets.sierpinski(20_000, depth)
    corners = points.new_tensor(toy._TRIANGLE)
    system = torch.cat([corners.T, torch.ones(1, 3)])
    right = torch.cat([points.T, torch.ones(1, len(points))])
    coordinates = torch.linalg.solve(system, right).T
    tolerance = 1e-4
    for _ in range(depth):
        assert (coordinates > -tolerance).all()
        largest, digit = coordinates.max(1)
        assert (largest >= 0.5 - tolerance).all()  # not in the middle
        for corner in range(3):
            assert_mean((digit == corner).to(points), 1 / 3)
        coordinates = 2 * coordinates - torch.nn.functional.one_hot(digit, 3)
        tolerance *= 2
    assert_mean(points[:, 0], 0.0)
    assert_mean(points[:, 1], 0.0)
    assert_mean(points.square().sum(1), 4 / 3 - 0.25**depth / 3)


def test_moons_are_half_circles():
    points = datasets.two_moons(4000, noise=0.0)
    upper = (points - torch.tensor([-0.5, -0.25])).norm(dim=1)
    lower = (points - torch.tensor([0.5, 0.25])).norm(dim=1)
    on_upper, on_lower = (upper - 1).abs() < 1e-5, (lower - 1).abs() < 1e-5
    assert (on_upper | on_lower).all()
    assert (points[on_upper & ~on_lower, 1] > -0.25 - 1e-5).all()
    assert_mean(on_upper.to(points), 0.5)
    assert_mean(points[:, 1], 0.0)


def test_many_moons_fill_a_grid():
    points = datasets.many_moons(9000, 3, noise=0.0)
    cells = (points / torch.tensor([3.5, 2.5])).round()
    assert sorted(cells.unique().tolist()) == [-1.0, 0.0, 1.0]
    assert len(cells.unique(dim=0)) == 9
    assert_mean((cells == 0).all(1).to(points), 1 / 9)


def test_circles():
    radius = datasets.two_circles(4000, radii=(1.0, 3.0), noise=0.0).norm(dim=1)
    assert ((radius - 1).abs().minimum((radius - 3).abs()) < 1e-5).all()
    assert_mean(radius, 2.0)


def test_ring_and_grid_have_all_their_components():
    ring = datasets.gaussian_ring(2000, 6, radius=3.0, scale=0.0)
    assert (ring.norm(dim=1) - 3).abs().max() < 1e-5
    sixths = torch.atan2(ring[:, 1], ring[:, 0]) * 3 / math.pi
    assert (sixths - sixths.round()).abs().max() < 1e-5
    assert len((sixths.round() % 6).unique()) == 6
    grid = datasets.gaussian_grid(2000, 4, spacing=2.0, scale=0.0)
    assert grid.unique().tolist() == [-3.0, -1.0, 1.0, 3.0]
    assert len(grid.unique(dim=0)) == 16


def test_pinwheel_arms():
    points = datasets.pinwheel(5000, 5, radial_scale=0.0, tangential_scale=0.0)
    assert (points.norm(dim=1) - 2).abs().max() < 1e-5
    fifths = (torch.atan2(points[:, 1], points[:, 0]) - 0.25 * math.e) * 5 / (2 * math.pi)
    assert (fifths - fifths.round()).abs().max() < 1e-5
    assert_mean(datasets.pinwheel(5000).square().sum(1), 4 * (1 + 0.3**2 + 0.1**2))


def test_spiral_arms():
    points = datasets.spiral(2000, 3, turns=1.0, radius=2.0, noise=0.0)
    radius = points.norm(dim=1)
    thirds = (torch.atan2(points[:, 1], points[:, 0]) / (2 * math.pi) - radius / 2) * 3
    assert (thirds - thirds.round())[radius > 0.1].abs().max() < 1e-4
    assert_mean(radius.square(), 2.0)


def test_mixture_1d_moments():
    options = {"weights": (1.0, 3.0, 0.0), "loc": (-2.0, 2.0, 50.0), "scale": (0.5, 1.0, 1.0)}
    points = datasets.mixture_1d(20_000, **options)[:, 0]
    assert_mean(points, 1.0)
    assert_mean(points.square(), 0.25 * (4 + 0.25) + 0.75 * (4 + 1))


TOY_ERRORS = [
    (lambda: toy.swiss_roll(10, 4), "dim 2 or 3, got 4"),
    (lambda: toy.swiss_roll(10, noise=-1.0), "noise to be a number of at least 0, got -1"),
    (lambda: toy.swiss_roll(10, noise=math.nan), "noise to be a number"),
    (lambda: toy.swiss_roll(0), "num to be an integer of at least 1, got 0"),
    (lambda: toy.sierpinski(10, -1), "depth to be an integer of at least 0, got -1"),
    (lambda: toy.sierpinski(2.5), "num to be an integer"),
    (lambda: toy.gaussian_grid(10, 0), "side to be"),
    (lambda: toy.gaussian_grid(10, scale=-0.1), "scale to be a number of at least 0, got -0.1"),
    (lambda: toy.gaussian_ring(10, 0), "num_components to be"),
    (lambda: toy.mixture_1d(10, loc=(0.0,)), r"one weight, loc and scale per .* loc \(0.0,\)"),
    (lambda: toy.mixture_1d(10, weights=(-1.0, 2.0)), "not negative"),
    (lambda: toy.mixture_1d(10, weights=(0.0, 0.0)), "at least one positive weight"),
]


@pytest.mark.parametrize(("call", "match"), TOY_ERRORS)
def test_toys_say_what_is_wrong(call, match):
    with pytest.raises(ValueError, match=match):
        call()


# --- images ---


def idx(array):
    """Bytes in the IDX format."""
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
    return header + array.astype(np.uint8).tobytes()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder for data, with no cache and no network beside it."""

    def refuse(*args, **kwargs):
        raise ConnectionError("no route to host")

    monkeypatch.setenv("PYROMIX_DATA", str(tmp_path))
    monkeypatch.setattr("pooch.retrieve", refuse)
    return tmp_path


PIXELS = np.arange(3 * 28 * 28).reshape(3, 28, 28) % 256
FILES = {
    "t10k-images-idx3-ubyte": idx(PIXELS),
    "t10k-labels-idx1-ubyte": idx(np.array([7, 2, 1])),
}


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("where", [".", "mnist"])
def test_mnist_is_found_in_the_folder(folder, packed, where):
    (folder / where).mkdir(exist_ok=True)
    for name, content in FILES.items():
        name, content = (name + ".gz", gzip.compress(content)) if packed else (name, content)
        (folder / where / name).write_bytes(content)
    pictures, labels = datasets.mnist("test")
    assert pictures.shape == (3, 1, 28, 28)
    assert pictures.dtype == torch.get_default_dtype()
    torch.testing.assert_close(255 * pictures[:, 0], torch.tensor(PIXELS).to(pictures))
    assert labels.tolist() == [7, 2, 1]
    assert labels.dtype == torch.int64
    raw, _ = datasets.mnist("test", raw=True)
    assert raw.dtype == torch.uint8
    assert np.array_equal(raw[:, 0], PIXELS)


def test_mnist_is_downloaded_to_the_cache(folder, monkeypatch):
    asked = []

    def retrieve(url, known_hash, fname, path):
        asked.append((url, known_hash[:13], Path(path).name))
        target = folder / f"fetched-{fname}"
        target.write_bytes(gzip.compress(FILES[fname.removesuffix(".gz")]))
        return str(target)

    monkeypatch.setattr("pooch.retrieve", retrieve)
    pictures, _ = datasets.mnist("test")
    assert len(pictures) == 3
    mirror = "https://ossci-datasets.s3.amazonaws.com/mnist/"
    assert asked == [
        (mirror + "t10k-images-idx3-ubyte.gz", "sha256:8d422c", "mnist"),
        (mirror + "t10k-labels-idx1-ubyte.gz", "sha256:f7ae60", "mnist"),
    ]


@pytest.mark.parametrize("where", ["fashion-mnist", "FashionMNIST/raw"])
def test_clothes_are_not_taken_for_digits(folder, where):
    (folder / where).mkdir(parents=True)
    for name, content in FILES.items():
        (folder / where / name).write_bytes(content)
        (folder / name).write_bytes(b"of something else")
    pictures, labels = datasets.fashion_mnist("test", raw=True)
    assert np.array_equal(pictures[:, 0], PIXELS)
    assert labels.tolist() == [7, 2, 1]


def test_clothes_are_downloaded_to_a_cache_of_their_own(folder, monkeypatch):
    asked = []

    def retrieve(url, known_hash, fname, path):
        asked.append((url.startswith("http://fashion-mnist"), known_hash[:8], Path(path).name))
        target = folder / f"fetched-{fname}"
        target.write_bytes(gzip.compress(FILES[fname.removesuffix(".gz")]))
        return str(target)

    for name, content in FILES.items():
        (folder / name).write_bytes(content)  # digits, maybe
    monkeypatch.setattr("pooch.retrieve", retrieve)
    assert len(datasets.fashion_mnist("test")[0]) == 3
    assert asked == [(True, "md5:bef4", "fashion-mnist"), (True, "md5:bb30", "fashion-mnist")]


def test_missing_data_and_no_network(folder, monkeypatch):
    with pytest.raises(FileNotFoundError, match="ConnectionError") as caught:
        datasets.mnist("train")
    assert str(folder) in str(caught.value)
    assert "PYROMIX_DATA" in str(caught.value)
    monkeypatch.delenv("PYROMIX_DATA")
    with pytest.raises(FileNotFoundError, match="PYROMIX_DATA names no folder"):
        datasets.mnist("train")


def test_missing_libraries(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(ImportError, match=r"takes pooch.*pyromix\[datasets\].*PYROMIX_DATA"):
        datasets.mnist()
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"scikit-learn.*pyromix\[datasets\]"):
        datasets.digits()


BROKEN = {
    "empty": b"",
    "page": b"<html>Not found</html>",
    "short": FILES["t10k-images-idx3-ubyte"][:-1],
    "header": bytes([0, 0, 8, 3, 0, 0]),
    "labels": FILES["t10k-labels-idx1-ubyte"],
    "cut": gzip.compress(FILES["t10k-images-idx3-ubyte"])[:-20],
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files(folder, case):
    (folder / "t10k-images-idx3-ubyte").write_bytes(BROKEN[case])
    (folder / "t10k-labels-idx1-ubyte").write_bytes(FILES["t10k-labels-idx1-ubyte"])
    with pytest.raises(ValueError, match=r"t10k-images-idx3-ubyte .*Replace it by"):
        datasets.mnist("test")


def test_images_without_labels(folder):
    (folder / "t10k-images-idx3-ubyte").write_bytes(FILES["t10k-images-idx3-ubyte"])
    (folder / "t10k-labels-idx1-ubyte").write_bytes(idx(np.array([7])))
    with pytest.raises(ValueError, match=r"3 images .* 1 labels"):
        datasets.mnist("test")


def test_unknown_split():
    with pytest.raises(ValueError, match="'train' or 'test', got 'validation'"):
        datasets.mnist("validation")


@pytest.mark.skipif(
    images._find(images._MNIST, "t10k-images-idx3-ubyte.gz") is None,
    reason="PYROMIX_DATA has no MNIST",
)
def test_the_real_images():
    pictures, labels = datasets.mnist("test")
    assert pictures.shape == (10_000, 1, 28, 28)
    assert labels.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert pictures.min() == 0
    assert pictures.max() == 1


def test_digits():
    pictures, labels = datasets.digits()
    assert pictures.shape == (1797, 1, 8, 8)
    assert pictures.dtype == torch.get_default_dtype()
    assert pictures.min() == 0
    assert pictures.max() == 1
    assert labels[:10].tolist() == list(range(10))


def test_libraries_are_loaded_only_when_needed():
    script = (
        "import sys, pyromix\n"
        "from pyromix import datasets, metrics\n"
        "heavy = {'pooch', 'sklearn', 'matplotlib.pyplot'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, env=dict(os.environ))


# --- the humanoid ---


@pytest.fixture
def humanoid():
    return PlanarHumanoid()


def at(humanoid, pose, point):
    return humanoid.forward(pose)[..., humanoid.POINTS.index(point), :]


def posed(humanoid, **degrees):
    pose = torch.zeros(18)
    for joint, angle in degrees.items():
        pose[humanoid.COLUMNS.index(joint)] = math.radians(angle)
    return pose


def test_thirty_columns(humanoid):
    assert len(humanoid.COLUMNS) == len(set(humanoid.COLUMNS)) == 30
    assert len(humanoid.JOINTS) == 15
    assert len(humanoid.POINTS) == 17
    features = humanoid.features(humanoid.sample_poses(5))
    assert features.shape == (5, 30)
    # Every column belongs to one quantity, and is named after it.
    index = {name: columns for name, columns in humanoid.INDEX.items() if name != "pose"}
    assert sorted(c for columns in index.values() for c in columns) == list(range(30))
    assert humanoid.INDEX["pose"] == tuple(range(18))
    for name in humanoid.TRACKED:
        assert [humanoid.COLUMNS[c] for c in index[name]] == [f"{name}_x", f"{name}_y"]


def test_features_are_where_they_are_named(humanoid):
    poses = humanoid.sample_poses(10)
    features = humanoid.features(poses)
    assert torch.equal(features[:, humanoid.INDEX["pose"]], poses)
    for name in humanoid.TRACKED[:-1]:
        assert torch.equal(features[:, humanoid.INDEX[name]], at(humanoid, poses, name))
    center = features[:, humanoid.INDEX["center_of_mass"]]
    assert torch.equal(center, humanoid.center_of_mass(poses))


def test_standing_upright(humanoid):
    pose = torch.zeros(18)
    features = humanoid.features(pose)
    feet = at(humanoid, pose, "left_foot")
    head = at(humanoid, pose, "head")
    assert head[0].abs() < 1e-6
    assert abs(head[1] - feet[1] - 1.75) < 0.005
    assert feet[0] > 0.1  # toes point to the right
    hand = features[list(humanoid.INDEX["right_hand"])]
    assert hand[0].abs() < 1e-6
    assert at(humanoid, pose, "right_knee")[1] < hand[1] < 0  # hands reach down the thighs
    center = features[list(humanoid.INDEX["center_of_mass"])] - feet
    assert 0.53 < center[1] / 1.75 < 0.60  # as in humans, 55 to 57 hundredths of the height
    for name in ("hand", "foot", "knee", "elbow"):
        both = [at(humanoid, pose, f"{side}_{name}") for side in ("left", "right")]
        assert torch.equal(*both)


@pytest.mark.parametrize(
    ("joint", "angle", "point", "where"),
    [
        ("right_shoulder", 90, "right_hand", (0.77, 0.504)),  # pointing forwards
        ("left_shoulder", 180, "left_hand", (0.0, 0.504 + 0.77)),  # reaching up
        ("right_elbow", 90, "right_hand", (0.445, 0.504 - 0.325)),
        ("left_hip", 90, "left_knee", (0.43, 0.0)),
        ("left_knee", -90, "left_ankle", (-0.43, -0.43)),
        ("lumbar", -90, "head", (0.18 + 0.224 + 0.318, 0.1)),  # bowing
        ("lumbar", -90, "left_foot", None),  # legs stay
        ("neck", -90, "left_hand", None),
        ("root_rotation", 90, "head", (-0.822, 0.0)),
        ("root_rotation", 90, "right_ankle", (0.86, 0.0)),
    ],
)
def test_joints_turn_what_is_beyond_them(humanoid, joint, angle, point, where):
    if where is None:
        where = at(humanoid, torch.zeros(18), point)
    reached = at(humanoid, posed(humanoid, **{joint: angle}), point)
    torch.testing.assert_close(reached, torch.as_tensor(where), atol=1e-5, rtol=0)


def test_segments_keep_their_lengths(humanoid):
    points = humanoid.forward(humanoid.sample_poses(100))
    torso = ["root", "waist", "chest", "neck", "head"]
    limbs = [
        [start, *(f"{side}_{name}" for name in names)]
        for side in ("left", "right")
        for start, names in (
            ("neck", ("elbow", "wrist", "hand")),
            ("root", ("knee", "ankle", "foot")),
        )
    ]
    lengths = dict(zip(humanoid.POINTS[1:], humanoid.lengths, strict=True))
    seen = set()
    for chain in (torso, *limbs):
        for near, far in pairwise(chain):
            bones = points[:, humanoid.POINTS.index(far)] - points[:, humanoid.POINTS.index(near)]
            length = bones.norm(dim=-1)
            torch.testing.assert_close(length, lengths[far].expand(100), rtol=1e-5, atol=0)
            seen.add(far)
    assert seen == set(humanoid.POINTS[1:])


def test_centre_of_mass_is_the_mean_of_the_segments(humanoid):
    from pyromix.datasets.humanoid import _SEGMENTS

    poses = humanoid.sample_poses(10)
    assert sum(segment.mass for segment in _SEGMENTS) == pytest.approx(1)
    expected = sum(
        segment.mass
        * torch.lerp(
            at(humanoid, poses, segment.parent), at(humanoid, poses, segment.end), segment.center
        )
        for segment in _SEGMENTS
    )
    torch.testing.assert_close(humanoid.center_of_mass(poses), expected)


def test_height_scales_everything():
    pose = PlanarHumanoid().sample_poses(1)[0]
    pose[:2] = 0
    small, tall = PlanarHumanoid(0.875), PlanarHumanoid(1.75)
    torch.testing.assert_close(2 * small.forward(pose), tall.forward(pose))
    torch.testing.assert_close(2 * small.center_of_mass(pose), tall.center_of_mass(pose))
    torch.testing.assert_close(2 * small.lengths, tall.lengths)
    assert repr(small) == "PlanarHumanoid(height=0.875)"


def test_gradients(humanoid):
    poses = humanoid.sample_poses(2).double().requires_grad_()
    assert torch.autograd.gradcheck(humanoid.features, poses)
    assert torch.autograd.gradcheck(humanoid.forward, poses)


def test_consistency(humanoid):
    poses = humanoid.sample_poses(20)
    features = humanoid.features(poses)
    assert torch.equal(humanoid.consistency(features), torch.zeros(20, 6))
    moved = features.clone()
    moved[:, humanoid.INDEX["head"]] += torch.tensor([0.3, -0.4])
    expected = torch.zeros(20, 6)
    expected[:, humanoid.TRACKED.index("head")] = 0.5
    torch.testing.assert_close(humanoid.consistency(moved), expected)
    bent = features.clone()
    bent[:, humanoid.COLUMNS.index("left_knee")] += 0.1
    off = humanoid.consistency(bent)
    assert (off[:, humanoid.TRACKED.index("left_foot")] > 0.03).all()
    assert (off[:, humanoid.TRACKED.index("right_foot")] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtypes_and_batches(humanoid, dtype):
    poses = humanoid.sample_poses(6).to(dtype)
    features = humanoid.features(poses.reshape(2, 3, 18))
    assert features.dtype == dtype
    assert features.shape == (2, 3, 30)
    torch.testing.assert_close(features.reshape(6, 30), humanoid.features(poses))
    assert humanoid.consistency(features).shape == (2, 3, 6)
    torch.testing.assert_close(features[1, 2], humanoid.features(poses[5]))
    # float64 is not built on constants rounded to float32.
    with_double = humanoid.features(poses.double())
    assert (humanoid.features(poses).double() - with_double).abs().max() < 1e-5


def test_sampled_poses_fill_the_limits(humanoid):
    poses = humanoid.sample_poses(20_000, window=(-2.0, 1.0, 0.5, 1.5), max_rotation=0.25)
    assert poses.dtype == torch.get_default_dtype()
    bounds = torch.cat([torch.tensor([(-2.0, 1.0), (0.5, 1.5), (-0.25, 0.25)]), humanoid.limits])
    low, high = bounds.unbind(-1)
    assert (low < high).all()
    assert (poses >= low - 1e-6).all()
    assert (poses <= high + 1e-6).all()
    for column, middle in zip(poses.T, bounds.mean(-1), strict=True):
        assert_mean(column, middle)
    assert (poses.amax(0) - poses.amin(0) > 0.99 * (high - low)).all()
    correlation = poses.T.corrcoef() - torch.eye(18)
    assert correlation.abs().max() < 6 / 20_000**0.5
    assert torch.equal(
        humanoid.sample_poses(5, generator=generator()),
        humanoid.sample_poses(5, generator=generator()),
    )


def test_skeleton_is_drawn_where_it_is(humanoid):
    figure, ax = plt.subplots()
    pose = humanoid.sample_poses(3)
    assert humanoid.draw_skeleton(pose[0], ax, color="red", linewidth=3) is ax
    drawn = np.concatenate([line.get_xydata() for line in ax.lines])
    assert {line.get_color() for line in ax.lines} == {"red"}
    assert {line.get_linewidth() for line in ax.lines} == {3}
    for point in humanoid.forward(pose[0]).numpy():
        assert np.abs(drawn - point).sum(1).min() < 1e-3
    count = len(ax.lines)
    humanoid.draw_skeleton(pose[1:], ax, alpha=0.5)
    assert len(ax.lines) == 3 * count
    assert ax.get_aspect() == 1
    plt.close(figure)


def test_drawn_soles_are_on_the_ground(humanoid):
    figure, ax = plt.subplots()
    humanoid.draw_skeleton(torch.zeros(18), ax)
    drawn = np.concatenate([line.get_xydata() for line in ax.lines])
    toes = float(at(humanoid, torch.zeros(18), "left_foot")[1])
    assert abs(drawn[:, 1].min() - toes) < 1e-3
    assert (np.abs(drawn[:, 1] - toes) < 1e-3).sum() == 4  # heels and toes
    plt.close(figure)


HUMANOID_ERRORS = [
    (lambda h: h.features(torch.zeros(5, 17)), r"pose of shape \(..., 18\), got \(5, 17\)"),
    (lambda h: h.forward(torch.zeros(5, 30)), r"pose of shape .*COLUMNS\[:18\]"),
    (lambda h: h.center_of_mass(torch.tensor(0.0)), r"got \(\)"),
    (lambda h: h.consistency(torch.zeros(18)), r"features of shape \(..., 30\), got \(18,\)"),
    (lambda h: h.forward(torch.zeros(18, dtype=torch.int64)), "pose to have dtype torch.float32"),
    (lambda h: h.forward([0.0] * 18), "pose to be a torch.Tensor"),
    (lambda h: h.sample_poses(0), "num to be an integer of at least 1"),
    (lambda h: h.sample_poses(5, window=(1.0, -1.0, 0.0, 1.0)), "left <= right"),
    (lambda h: h.sample_poses(5, max_rotation=-1.0), "max_rotation of at least 0"),
    (lambda h: PlanarHumanoid(0.0), "height to be a positive number of metres, got 0.0"),
]


@pytest.mark.parametrize(("call", "match"), HUMANOID_ERRORS)
def test_humanoid_says_what_is_wrong(humanoid, call, match):
    with pytest.raises(ValueError, match=match):
        call(humanoid)
