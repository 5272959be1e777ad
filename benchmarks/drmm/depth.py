"""Depth against parameters: deep residual mixtures and plain mixtures of as many numbers.

A mixture with one scale for all its components and 64 to 1024 of them, the baseline of the DRMM
paper (section 4.3, figure 10), sets the number of parameters. Everything else gets the components
that come closest to it: DRMMs of 1 to 4 layers, with that one scale in the last layer or, the
default, one for every component and column; and mixtures with spherical, shared ("shared": one
scale for every column), diagonal and full covariances. All are trained by `fit` for as many steps
at the same rate, with the best weights on validation points; mixtures, which can, by `fit_em`,
too, of which the better on validation points counts.

Prints the held-out log-likelihood in nats a point and the F1 score of precision and recall
between held-out points and as many draws, with that of a second set of real points as the most to
expect; then who wins; and writes out/drmm/depth_<size>.png. Data:

    ik          poses of a planar humanoid with hands, feet and head: 30 columns, standardised
    mnist       10,000 images, grey values from 0 to 1 with normal noise of 0.05, 784 columns
    swiss_roll  a rolled-up sheet in space
    sierpinski  the Sierpinski triangle
    digits      1,797 images of 8 x 8 grey values from 0 to 1 with normal noise of 0.05

Poses show what depth is worth: every layer helps at every size, by both measures. On images, a
layer's diagonal scales are shared by all that the layers before made of a point, so that the gain
in nats over diagonal mixtures takes thousands of steps and four layers; F1 scores there rest on
precision, which the noise of pixels keeps low, and reward components that remember single images.

    python -m benchmarks.drmm.depth [--quick | --paper] [--data NAME ...]
"""

import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator
from torch import Tensor

from benchmarks.common import cli
from benchmarks.common.figures import save
from benchmarks.common.store import OUT, beside
from benchmarks.common.training import closest_size
from pyromix import GaussianMixture, fit, fit_em
from pyromix.core.module import DistributionModule
from pyromix.datasets import PlanarHumanoid, digits, mnist, sierpinski, swiss_roll
from pyromix.drmm import DRMM
from pyromix.metrics import precision_recall
from pyromix.plotting import plot_images

NOISE = 0.05  # of images: grey values without it have no density
# For columns that vary by about one; grey values vary by a quarter of that.
LEARNING_RATE, IMAGE_LEARNING_RATE = 0.02, 0.005
BATCH_SIZE = 64
EM_POINTS = 20_000  # every iteration of EM goes through all of them
DEPTHS = (1, 2, 3, 4)


class Data(NamedTuple):
    """Points to train on, to choose weights by, to score, and as many more of the law."""

    train: Tensor
    validation: Tensor
    test: Tensor
    other: Tensor
    lr: float = LEARNING_RATE


class Setting(NamedTuple):
    """How much work to do."""

    components: tuple[int, ...]
    """Of the baseline."""
    steps: int
    image_steps: int
    """Of models of MNIST, whose steps take longest."""
    em_steps: int
    points: int
    """To compare with as many draws."""


SETTINGS = {
    "quick": Setting((64, 256), 300, 100, 10, 2000),
    "default": Setting((64, 256, 1024), 2000, 1500, 30, 5000),
    "paper": Setting((64, 128, 256, 512, 1024), 50_000, 50_000, 200, 20_000),
}


class Trained(NamedTuple):
    """A model and its number of components."""

    model: DRMM | GaussianMixture
    components: int


class Score(NamedTuple):
    """What a model reached."""

    name: str
    layers: int
    components: int
    parameters: int
    nats: float
    f1: float
    precision: float
    recall: float
    seconds: float


# ---- data ---------------------------------------------------------------------------------


def ik(points: int) -> Data:
    humanoid = PlanarHumanoid()
    x = humanoid.features(humanoid.sample_poses(200_000 + 3 * points))
    return split((x - x.mean(0)) / x.std(0), points)


def images(points: int) -> Data:
    x, _ = mnist("test")
    return split_images(x, min(points, 1000))


def small_images(points: int) -> Data:
    x, _ = digits()
    return split_images(x, min(points, 200))


def split_images(x: Tensor, points: int) -> Data:
    x = x[torch.randperm(len(x))].flatten(1)
    data = split(x + NOISE * torch.randn_like(x), points)
    # There are no images to spare: those that weights are chosen by stand for more of the law.
    return data._replace(
        train=torch.cat([data.train, data.other]),
        other=data.validation,
        lr=IMAGE_LEARNING_RATE,
    )


def split(x: Tensor, points: int) -> Data:
    rest = len(x) - 3 * points
    return Data(*x.split([rest, points, points, points]))


DATA: dict[str, Callable[[int], Data]] = {
    "ik": ik,
    "mnist": images,
    "swiss_roll": lambda points: split(swiss_roll(200_000 + 3 * points, 3), points),
    "sierpinski": lambda points: split(sierpinski(200_000 + 3 * points), points),
    "digits": small_images,
}


# ---- models -------------------------------------------------------------------------------

Scale = Literal["diagonal", "scalar"]
Covariance = Literal["shared", "spherical", "diagonal", "full"]
SCALES: tuple[Scale, ...] = ("scalar", "diagonal")

# Numbers that a component of a mixture takes; shared scales are the same for all sizes.
OWN: dict[Covariance, Callable[[int], int]] = {
    "shared": lambda dim: dim + 1,
    "spherical": lambda dim: dim + 2,
    "diagonal": lambda dim: 2 * dim + 1,
    "full": lambda dim: 1 + dim + dim * (dim + 1) // 2,
}


def drmm_parameters(dim: int, layers: int, components: int, scale: Scale) -> int:
    tables = layers * (layers - 1) // 2 * components**2
    inner = (layers - 1) * (1 if scale == "scalar" else dim)
    last = 1 if scale == "scalar" else components * dim
    return layers * components * (dim + 1) + tables + inner + last


def train_drmm(data: Data, layers: int, target: int, scale: Scale, steps: int) -> Trained:
    dim = data.train.shape[-1]
    k = closest_size(lambda n: drmm_parameters(dim, layers, n, scale), target)
    torch.manual_seed(0)
    model = DRMM(dim, layers, k, scale=scale, inner_scale=scale, scale_floor=0.01)
    train(model, data, steps)
    assert model.num_parameters == drmm_parameters(dim, layers, k, scale)
    return Trained(model, k)


def train_mixture(
    data: Data, covariance: Covariance, target: int, steps: int, em_steps: int
) -> Trained:
    dim = data.train.shape[-1]
    own = OWN[covariance](dim)
    k = closest_size(lambda n: n * own, target)
    best: tuple[float, GaussianMixture] | None = None
    for method in ("fit", "fit_em"):
        if method == "fit" and covariance == "full" and dim > 100:
            continue  # every step would factorise matrices of 784 x 784 anew
        torch.manual_seed(0)
        model = GaussianMixture(dim, k, covariance, variance_floor=1e-4)
        if method == "fit":
            train(model, data, steps)
        else:
            points = data.train[:EM_POINTS]
            fit_em(model, points, steps=em_steps, seed=0, progress_bar=False)
        score = mean_log_prob(model, data.validation)
        if best is None or score > best[0]:
            best = score, model
    assert best is not None
    return Trained(best[1], k)


def train(model: DistributionModule, data: Data, steps: int) -> None:
    fit(
        model,
        data.train,
        steps=steps,
        batch_size=BATCH_SIZE,
        lr=data.lr,
        validation=data.validation[:1000],
        validation_every=max(1, steps // 20),
        seed=0,
        progress_bar=False,
    )


def mean_log_prob(model: DistributionModule, x: Tensor) -> float:
    with torch.no_grad():
        parts = [model.log_prob(block).sum() for block in x.split(1000)]
    return float(sum(parts)) / len(x)


def compare(name: str, data: Data, setting: Setting, prefix: Path) -> list[Score]:
    """Trains and scores models of one data set, prints a row for each, and draws images."""
    dim = data.train.shape[-1]
    steps = setting.image_steps if name == "mnist" else setting.steps
    real = precision_recall(data.test, data.other)
    print(f"\n{name}: {len(data.train)} x {dim}, {steps} steps; F1 of real points {real.f1:.3f}")
    print(
        f"{'model':>22} {'layers':>6} {'K':>5} {'parameters':>10} {'nats':>9} {'F1':>6} "
        f"{'precision':>9} {'recall':>6} {'seconds':>8}"
    )
    scores = []
    for components in setting.components:
        target = components * (dim + 1) + 1
        jobs: list[tuple[str, int, Callable[[], Trained]]] = []
        for scale in SCALES:
            for layers in DEPTHS:
                deep = partial(train_drmm, data, layers, target, scale, steps)
                jobs.append((f"DRMM, {scale}", layers, deep))
        for covariance in OWN:
            flat = partial(train_mixture, data, covariance, target, steps, setting.em_steps)
            jobs.append((f"mixture, {covariance}", 1, flat))
        for label, layers, job in jobs:
            start = time.perf_counter()
            model, k = job()
            seconds = time.perf_counter() - start
            torch.manual_seed(1)
            parameters = (
                model.num_parameters if isinstance(model, DRMM) else model.num_free_parameters
            )
            quality = precision_recall(data.test, model.sample((len(data.test),)))
            score = Score(
                label, layers, k, parameters, mean_log_prob(model, data.test), quality.f1,
                quality.precision, quality.recall, seconds,
            )  # fmt: skip
            scores.append(score)
            print(
                f"{label:>22} {layers:>6} {k:>5} {parameters:>10} {score.nats:>9.2f} "
                f"{score.f1:>6.3f} {score.precision:>9.3f} {score.recall:>6.3f} {seconds:>8.1f}",
                flush=True,
            )
            if name in ("mnist", "digits") and label == "DRMM, diagonal":
                draw_images(model, beside(prefix, f"{name}_{layers}_{k}.png"))
    return scores


# ---- what comes out -----------------------------------------------------------------------

OPPONENTS = {
    "DRMM, scalar": "mixture, one scale",
    "mixture, shared": "mixture, shared",
    "mixture, spherical": "mixture, spherical",
    "mixture, diagonal": "mixture, diagonal",
}


def verdict(name: str, scores: list[Score]) -> None:
    """Says at each size which depth is best, by both measures, and by how much it wins."""
    sizes = sorted({s.components for s in scores if s.name == "DRMM, scalar" and s.layers == 1})
    print(f"\n{name}: the best depth of the DRMM, minus the mixture of as many parameters")
    groups = len(scores) // len(sizes)
    for i, size in enumerate(sizes):
        rows = scores[i * groups : (i + 1) * groups]
        for measure in ("nats", "f1"):
            deep = {
                scale: max(
                    (s for s in rows if s.name == f"DRMM, {scale}" and s.layers > 1),
                    key=lambda s: getattr(s, measure),
                )
                for scale in ("scalar", "diagonal")
            }
            cells = []
            for scale, best in deep.items():
                own = getattr(best, measure)
                against = ", ".join(
                    f"{own - getattr(row, measure):+.3f} {OPPONENTS[row.name]}"
                    for row in rows
                    if row.name in OPPONENTS and row.layers == 1
                )
                cells.append(f"{scale}, {best.layers} layers: {against}")
            for cell in cells:
                print(f"{size:>6} {measure:>5}  {cell}")


def draw(results: dict[str, list[Score]], path: Path) -> None:
    """Two rows, F1 and nats, over the number of parameters; a column for each data set."""
    figure, axes = plt.subplots(
        2, len(results), figsize=(3.4 * len(results), 6.4), layout="constrained", squeeze=False,
        sharex="col",
    )  # fmt: skip
    styles = {
        ("DRMM, scalar", 1): ("mixture, one scale (the paper's)", "black", "-"),
        ("mixture, shared", 1): ("mixture, shared", "0.55", ":"),
        ("mixture, spherical", 1): ("mixture, spherical", "0.55", "--"),
        ("mixture, diagonal", 1): ("mixture, diagonal", "0.35", "-."),
        ("mixture, full", 1): ("mixture, full", "C4", ":"),
    }
    for layers, color in ((2, "C0"), (3, "C1"), (4, "C3")):
        styles[("DRMM, diagonal", layers)] = (f"DRMM, {layers} layers", color, "-")
    for layers, color in ((2, "C0"), (3, "C1"), (4, "C3")):
        styles[("DRMM, scalar", layers)] = (f"DRMM, {layers} layers, one scale", color, "--")
    for column, (name, scores) in enumerate(results.items()):
        for row, measure in enumerate(("f1", "nats")):
            axis = axes[row, column]
            for (model, layers), (label, color, style) in styles.items():
                line = [s for s in scores if (s.name, s.layers) == (model, layers)]
                axis.plot(
                    [s.parameters for s in line], [getattr(s, measure) for s in line], style,
                    color=color, marker="o", markersize=3, label=label, linewidth=1.4,
                )  # fmt: skip
            axis.set_xscale("log")
            baseline = [s.parameters for s in scores if (s.name, s.layers) == ("DRMM, scalar", 1)]
            axis.set_xticks(baseline, [short(count) for count in baseline])
            axis.xaxis.set_minor_locator(NullLocator())
            axis.grid(alpha=0.3)
        clip_outliers(axes[1, column], [s for s in scores if (s.name, s.layers) in styles])
        axes[0, column].set_title(name)
        axes[1, column].set_xlabel("parameters")
    axes[0, 0].set_ylabel("F1")
    axes[1, 0].set_ylabel("held-out nats a point")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(results), frameon=False)
    save(figure, path)


def short(count: int) -> str:
    """A number with a few digits: 4161 as 4.2k."""
    return f"{count / 1000:.3g}k" if count >= 1000 else str(count)


def clip_outliers(axis: Axes, scores: list[Score]) -> None:
    """Keeps the axis to the range of all models but full covariances, which may be far off.

    Coordinates that follow from others, as those of hands from angles, make them very dense.
    """
    values = [s.nats for s in scores if s.name != "mixture, full" and math.isfinite(s.nats)]
    low, high = min(values), max(values)
    margin = 0.06 * (high - low)
    axis.set_ylim(low - margin, high + margin)


def draw_images(model: DistributionModule, path: Path) -> None:
    """Draws of a model of images, without and with noise of the last layer."""
    assert isinstance(model, DRMM)
    torch.manual_seed(2)
    side = math.isqrt(model.dim)
    figure, axes = plt.subplots(1, 2, figsize=(9, 4.6), layout="constrained")
    with torch.no_grad():
        means = model.decode(model.law.sample_codes(64))
    for axis, drawn, title in (
        (axes[0], means, "means"),
        (axes[1], model.sample((64,)), "draws"),
    ):
        plot_images(drawn.reshape(-1, side, side).clamp(0, 1), axis)
        axis.set_title(title)
    save(figure, path, dpi=100)


def fractal(steps: int, points: int) -> None:
    """The paper's Sierpinski triangle, of 3 components in each of 5 layers."""
    torch.manual_seed(0)
    data = split(sierpinski(200_000 + 3 * points), points)
    torch.manual_seed(0)
    model = DRMM(2, 5, 3)
    train(model, data, steps)
    print(
        f"\nsierpinski, K=3, 5 layers, {model.num_parameters} parameters, {steps} steps: "
        f"{mean_log_prob(model, data.test):.3f} nats"
    )
    # Neighbours are the nearer, and the score the stricter, the more points there are: the tails
    # of 243 normals reach into the holes.
    for count in sorted({2000, points}):
        f1 = precision_recall(data.test[:count], model.sample((count,))).f1
        most = precision_recall(data.test[:count], data.other[:count]).f1
        print(f"    {count} points: F1 {f1:.3f}, of real points {most:.3f}")


def main() -> None:
    parser = cli.make_parser(
        __doc__, quick="few steps: some minutes", paper="the paper's scale: days on two cores"
    )
    parser.add_argument("--data", nargs="+", choices=list(DATA), default=list(DATA))
    arguments = cli.parse(parser)
    setting = SETTINGS[arguments.size]
    prefix = OUT / "drmm" / f"depth_{arguments.size}"
    results = {}
    for source in arguments.data:
        torch.manual_seed(0)
        results[source] = compare(source, DATA[source](setting.points), setting, prefix)
        verdict(source, results[source])
        draw(results, prefix.with_name(f"{prefix.name}.png"))
    if "sierpinski" in arguments.data:
        fractal(2000 if arguments.size == "quick" else 20_000, setting.points)


if __name__ == "__main__":
    main()
