"""What layers that turn and stretch are worth: `DRMM(maps=...)` beside mixtures and a flow.

Data:

    poses    a planar humanoid with hands, feet and head: 30 columns, standardised
             (reversed, shuffled: the same with its columns in other orders)
    smooth   30 columns that follow smoothly from 8: x = tanh(Z V') W'
    patches  8 x 8 grey patches of natural images without their mean (BSDS300): 63 columns, by the
             protocol of density estimation. Needs the images: --images grey.npz, two arrays
             "train" and "test" of shape (n, height, width), 0 to 255.

Models of about as many numbers are next to each other: deep residual mixtures with maps of every
kind, a mixture of full covariances by EM, and a neural spline flow of zuko (autoregressive). All
but the mixture are trained by `fit` for as many steps. Printed: numbers, held-out nats, F1 of
precision and recall between held-out points and as many draws, and seconds of training.

Writes out/drmm/maps_<size>.png and keeps models in out/drmm/maps_<size>/.

    python -m benchmarks.drmm.maps [--quick] [--data NAME ...] [--models NAME ...] [--report]
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor

from benchmarks.common import cli
from benchmarks.common.figures import save
from benchmarks.common.store import OUT, Store
from benchmarks.common.zuko_flow import ZukoFlow
from pyromix import DRMM, DistributionModule, GaussianMixture, fit, fit_em
from pyromix.datasets import PlanarHumanoid
from pyromix.metrics import precision_recall

BATCH_SIZE = 64
PATCH_BATCH_SIZE = 256
GRADIENT_CLIP = 50.0
EM_POINTS = {"quick": 10_000, "default": 100_000}
STEPS = {"quick": 500, "default": 8000}
HELD_OUT = 5000
FLOW_LR = 1e-3


class Data(NamedTuple):
    """Points to train on and to score, and how models are trained on them."""

    train: Tensor
    test: Tensor
    batch_size: int = BATCH_SIZE
    scale_floor: float = 1e-3
    standardize: Literal["auto"] | bool = "auto"
    training_beam: int = 4
    gradient_clip: float = GRADIENT_CLIP


def poses(arguments: argparse.Namespace) -> Data:  # noqa: ARG001
    humanoid = PlanarHumanoid()
    x = humanoid.features(humanoid.sample_poses(200_000 + HELD_OUT))
    x = (x - x.mean(0)) / x.std(0)
    return Data(x[:-HELD_OUT], x[-HELD_OUT:])


def reversed_poses(arguments: argparse.Namespace) -> Data:
    return in_order(poses(arguments), torch.arange(29, -1, -1))


def shuffled_poses(arguments: argparse.Namespace) -> Data:
    order = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    return in_order(poses(arguments), order)


def in_order(data: Data, order: Tensor) -> Data:
    """The same data with its columns in another order."""
    return data._replace(train=data.train[:, order], test=data.test[:, order])


def smooth(arguments: argparse.Namespace) -> Data:  # noqa: ARG001
    random = np.random.default_rng(0)
    v, w = random.standard_normal((30, 8)) / 8**0.5, random.standard_normal((30, 30)) / 30**0.5
    z = random.standard_normal((100_000, 8))
    x = torch.tensor(np.tanh(z @ v.T) @ w.T).float()
    return Data(x[:-HELD_OUT], x[-HELD_OUT:])


def patches(arguments: argparse.Namespace) -> Data:
    images = np.load(arguments.images)
    train, test = (
        cut_patches(torch.from_numpy(images[name]), count)
        for name, count in (("train", 1_000_000), ("test", 20_000))
    )
    # Grey values vary by a tenth, and much less given their neighbours.
    return Data(train, test, PATCH_BATCH_SIZE, 1e-4, True, 2, 4 * GRADIENT_CLIP)


def cut_patches(images: Tensor, count: int) -> Tensor:
    """Patches (count, 63): noise added, over 256, less their mean, without the last pixel."""
    place = torch.randint(len(images), (count, 1, 1))
    side = torch.arange(8)
    row = torch.randint(images.shape[1] - 7, (count, 1, 1)) + side.reshape(8, 1)
    column = torch.randint(images.shape[2] - 7, (count, 1, 1)) + side
    x = images[place, row, column].flatten(1).float()
    x = (x + torch.rand_like(x)) / 256
    return (x - x.mean(1, keepdim=True))[:, :-1].contiguous()


DATA: dict[str, Callable[[argparse.Namespace], Data]] = {
    "poses": poses,
    "reversed": reversed_poses,
    "shuffled": shuffled_poses,
    "smooth": smooth,
    "patches": patches,
}


class Deep(NamedTuple):
    """A deep residual mixture."""

    layers: int
    components: int
    maps: str
    lr: float
    rank: int = 4

    def train(self, data: Data, size: str) -> DistributionModule:
        model = DRMM(
            data.train.shape[1], self.layers, self.components, maps=self.maps, rank=self.rank,
            scale_floor=data.scale_floor, standardize=data.standardize,
            training_beam=data.training_beam,
        )  # fmt: skip
        fit(
            model, data.train, steps=STEPS[size], batch_size=data.batch_size, lr=self.lr, seed=0,
            gradient_clip=data.gradient_clip, progress_bar=False,
        )  # fmt: skip
        return model


class Full(NamedTuple):
    """A mixture of normals with full covariances, by expectation maximisation."""

    components: int

    def train(self, data: Data, size: str) -> DistributionModule:
        model = GaussianMixture(data.train.shape[1], self.components, "full")
        fit_em(model, data.train[: EM_POINTS[size]], steps=50, seed=0, progress_bar=False)
        return model


class Spline(NamedTuple):
    """A neural spline flow of three autoregressive transforms."""

    width: int

    def train(self, data: Data, size: str) -> DistributionModule:
        import zuko

        dim = data.train.shape[1]
        model = ZukoFlow(zuko.flows.NSF(dim, transforms=3, hidden_features=[self.width] * 2), dim)
        fit(
            model, data.train, steps=STEPS[size], batch_size=data.batch_size, lr=FLOW_LR, seed=0,
            gradient_clip=data.gradient_clip, progress_bar=False,
        )  # fmt: skip
        return model


SMALL: dict[str, Deep | Full | Spline] = {
    "shift, 4 x 62": Deep(4, 62, "shift", 0.02),
    "diagonal, 4 x 57": Deep(4, 57, "diagonal", 0.01),
    "low rank 4, 4 x 36": Deep(4, 36, "low_rank", 0.002, 4),
    "triangular, 4 x 4": Deep(4, 4, "triangular", 0.002),
    "triangular, 2 x 32": Deep(2, 32, "triangular", 0.002),
    "triangular, 4 x 16": Deep(4, 16, "triangular", 0.002),
    "triangular, 8 x 8": Deep(8, 8, "triangular", 0.002),
    "full, 64": Full(64),
    "spline flow": Spline(14),
}
LARGE: dict[str, Deep | Full | Spline] = {
    "triangular, 2 x 16": Deep(2, 16, "triangular", 0.002),
    "triangular, 3 x 32": Deep(3, 32, "triangular", 0.002),
    "triangular, 4 x 32": Deep(4, 32, "triangular", 0.0015),
    "triangular, 6 x 32": Deep(6, 32, "triangular", 0.0015),
    "full, 100": Full(100),
}
# Of a change of order only triangular maps can take notice.
ORDERED = {name: kind for name, kind in SMALL.items() if name == "triangular, 4 x 16"}
MODELS = {
    "poses": SMALL,
    "reversed": ORDERED,
    "shuffled": ORDERED,
    "smooth": SMALL,
    "patches": LARGE,
}


def measure(model: DistributionModule, data: Data) -> dict[str, float]:
    """Held-out nats with their standard error, and F1."""
    with torch.no_grad():
        scores = torch.cat([model.log_prob(part) for part in data.test.split(500)])
        torch.manual_seed(1)
        quality = precision_recall(data.test[:HELD_OUT], model.sample((HELD_OUT,)))
    return {
        "nats": float(scores.mean()),
        "error": float(scores.std() / len(scores) ** 0.5),
        "f1": quality.f1,
    }


def report(name: str, results: dict[str, dict[str, float]]) -> None:
    print(f"\n{name}\n{'model':>20} {'numbers':>9} {'nats':>16} {'F1':>6} {'seconds':>8}")
    for model, r in results.items():
        print(
            f"{model:>20} {r['numbers']:>9.0f} {r['nats']:>9.2f} +- {r['error']:.2f} "
            f"{r['f1']:>6.3f} {r['seconds']:>8.0f}"
        )


def draw(results: dict[str, dict[str, dict[str, float]]], path: Path) -> None:
    """Nats of every model, a panel for each data set."""
    figure, axes = plt.subplots(
        1, len(results), figsize=(4.6 * len(results), 3.4), layout="constrained", squeeze=False
    )
    for axis, (name, rows) in zip(axes[0], results.items(), strict=True):
        nats = [row["nats"] for row in rows.values()]
        colors = ["C0" if isinstance(MODELS[name][model], Deep) else "0.6" for model in rows]
        low = min(nats) - 0.05 * (max(nats) - min(nats) + 1)
        bars = axis.barh(list(rows), [value - low for value in nats], left=low, color=colors)
        axis.bar_label(bars, [f"{value:.1f}" for value in nats], padding=3)
        axis.set_xlim(low, max(nats) + 0.2 * (max(nats) - low))
        axis.invert_yaxis()
        axis.set(title=name, xlabel="held-out nats a point")
        axis.spines[["top", "right"]].set_visible(False)
    save(figure, path)


def main() -> None:
    parser = cli.make_parser(__doc__, quick="few steps: some minutes")
    cli.add_models(parser, sorted({*SMALL, *LARGE}))
    parser.add_argument("--data", nargs="+", choices=list(DATA), default=["poses", "smooth"])
    parser.add_argument("--images", help="file of natural images, for patches")
    arguments = cli.parse(parser)
    folder = OUT / "drmm" / f"maps_{arguments.size}"
    results = {}
    for name in arguments.data:
        torch.manual_seed(0)
        data = DATA[name](arguments) if not arguments.report else None
        store = Store(folder / name)
        for label, kind in MODELS[name].items():
            wanted = arguments.models is None or label in arguments.models
            if data is None or not wanted or store.has(label):
                continue
            torch.manual_seed(0)
            start = time.perf_counter()
            model = kind.train(data, arguments.size)
            seconds = time.perf_counter() - start
            numbers = {"numbers": sum(p.numel() for p in model.parameters()), "seconds": seconds}
            store.save(label, numbers | measure(model, data), model.state_dict())
            print(f"{name}: {label}, {seconds:.0f} s", flush=True)
        results[name] = store.numbers(MODELS[name])
        report(name, results[name])
    draw(results, folder.with_suffix(".png"))


if __name__ == "__main__":
    main()
