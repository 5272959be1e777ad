"""Handwritten digits: bits a pixel, and completion of halves.

A hierarchy over windows of 2 x 2 pixels, of 2 x 2 of these, of 2 x 2 of those, and a top over
4 x 4 cells, one layer of components each, so that all sums are exact. Trained on all 60,000 images
of MNIST with 8-bit pixels. The paper's shape has 2 x 2 windows of 2 x 64, 2 x 2 of 4 x 64, and a
top of 4 x 256 over 7 x 7: densities are bounds there.

Completions of the four halves are compared with the mean of the 20 nearest training images, by
the pixels that are known; a deep convolutional mixture; a flat residual mixture; a flat mixture;
and the mean of 16 draws by the paper's backward sampling from the hierarchy, with its correction.
The slow ones answer for the first 100 images alone, and what the hierarchy does there is told
beside them.

Printed: parameters; minutes of training; bits a pixel of held-out images, -log2 of the
probability of the 8-bit values; peak signal-to-noise ratio in dB over the hidden pixels of mean
completions, of their mean squared error over all images; how many of them a classifier recognises
(and of the images themselves).

Writes out/hierarchy/digits_<size>_samples.png and _completions.png, and keeps models in
out/hierarchy/digits_<size>/. Needs MNIST: see `pyromix.datasets.mnist`.

    python -m benchmarks.hierarchy.digits [--quick | --paper] [--models NAME ...] [--report]
"""

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.common import cli
from benchmarks.common.figures import save
from benchmarks.common.store import OUT, Numbers, Store, beside
from benchmarks.common.summary import standard_error
from benchmarks.common.training import in_chunks
from benchmarks.dcgmm.data import Images, load_images
from benchmarks.dcgmm.inpainting import HALVES, Task, make_task, nearest_means
from benchmarks.dcgmm.models import train_model
from pyromix import DRMM, GaussianMixture, HierarchicalDRMM, Level, Top, fit, fit_em

ROUNDING = (1 / 255, 0.0, 1.0)
NEIGHBOURS = 20
NEAREST = f"{NEIGHBOURS} neighbours"
BACKWARD = "backward"
BACKWARD_DRAWS, BACKWARD_PASSES = 16, 64
SLOW, SLOW_COMPLETED = (BACKWARD, "flat DRMM"), 100
PIXELS = 28 * 28


class Setting(NamedTuple):
    """How much is trained and asked."""

    levels: tuple[tuple[int, int], ...]
    """Layers and components of the levels, the top last."""
    steps: int
    scored: int
    completed: int
    peers: float = 1.0
    """Share of the steps of peers."""


SETTINGS = {
    "quick": Setting(((1, 32), (1, 64), (1, 64), (1, 128)), 100, 100, 50, 0.05),
    "default": Setting(((1, 128), (1, 256), (1, 256), (1, 2048)), 2500, 1000, 1000),
    "paper": Setting(((2, 64), (4, 64), (4, 256)), 60_000, 1000, 1000),
}


def train_hierarchy(data: Images, setting: Setting) -> Any:
    *windows, top = setting.levels
    levels = [*(Level(2, None, *sizes) for sizes in windows), Top(*top)]
    model = HierarchicalDRMM(
        (1, 28, 28), levels, rounding=ROUNDING, joint_share=0.6, max_codes=4096
    )
    fit(model, data.train, steps=setting.steps, batch_size=64, lr=0.03, seed=0,
        progress_bar=False)  # fmt: skip
    return model


def train_convolutional(data: Images, setting: Setting) -> Any:
    return train_model("2L-d", 0, data, max(100, round(6000 * setting.peers)))[0]


def train_flat(data: Images, setting: Setting) -> Any:
    model = DRMM(PIXELS, 4, 256, scale_floor=0.05)
    fit(model, data.train.flatten(1), steps=round(2000 * setting.peers), batch_size=128, lr=0.01,
        seed=0, progress_bar=False)  # fmt: skip
    return model


def train_mixture(data: Images, setting: Setting) -> Any:
    model = GaussianMixture(PIXELS, round(1024 * setting.peers), scale_floor=0.1)
    fit_em(model, data.train.flatten(1), steps=10, seed=0, progress_bar=False)
    return model


TRAIN_BY_NAME: dict[str, Callable[[Images, Setting], Any]] = {
    "hierarchy": train_hierarchy,
    "DCGMM": train_convolutional,
    "flat DRMM": train_flat,
    "mixture": train_mixture,
}


def load() -> Images:
    data = load_images("mnist", full=True)
    order = torch.randperm(len(data.test), generator=Generator().manual_seed(0))
    return data._replace(test=data.test[order], test_labels=data.test_labels[order])


@torch.no_grad()
def bits(model: HierarchicalDRMM, images: Tensor) -> Tensor:
    """Bits a pixel of images (N, 1, 28, 28): (N,)."""
    return -in_chunks(model.log_mass, images, 50) / (PIXELS * math.log(2))


# ---- completion ---------------------------------------------------------------------------------


@torch.no_grad()
def complete(name: str, model: Any, task: Task) -> Tensor:
    """Mean completions of images (N, 1, 28, 28)."""
    missing = task.missing
    if name == "hierarchy":
        return model.impute(missing)
    if name == BACKWARD:
        return model(missing)
    if name == "DCGMM":
        return model.inpaint(task.empty, task.known)
    filled = in_chunks(model.impute, missing.flatten(1), 50)
    return filled.reshape(missing.shape)


class Backward:
    """Mean completions by backward sampling."""

    def __init__(self, model: HierarchicalDRMM) -> None:
        self.model, self.corrections = model, model.bias_corrections()

    def __call__(self, missing: Tensor) -> Tensor:
        shape, options = (BACKWARD_DRAWS,), {"passes": BACKWARD_PASSES}
        drawn = [
            self.model.sample_backward(
                image, sample_shape=shape, corrections=self.corrections, **options
            )
            for image in missing
        ]
        return torch.stack(drawn).mean(1)


def train_classifier(data: Images) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(PIXELS, 512), nn.ReLU(), nn.Linear(512, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(4):
        for index in torch.randperm(len(data.train)).split(128):
            optimizer.zero_grad()
            cross_entropy(model(data.train[index]), data.train_labels[index]).backward()
            optimizer.step()
    return model.eval()


def measure(name: str, model: Any, setting: Setting, data: Images, classify: Any) -> Numbers:
    """Squared errors over hidden pixels, and what is recognised, by half."""
    results: Numbers = {}
    count = min(setting.completed, SLOW_COMPLETED) if name in SLOW else setting.completed
    labels = data.test_labels[:count]
    for half in HALVES:
        task = make_task(half, data, count)
        torch.manual_seed(0)
        start = time.perf_counter()
        ours = (
            nearest_means(data, task)[NEIGHBOURS] if model is None else complete(name, model, task)
        )
        seconds = (time.perf_counter() - start) / count
        with torch.no_grad():
            right = (classify(ours).argmax(-1) == labels).float().mean()
        results[half] = {
            "errors": task.errors(ours)["hidden"],
            "recognised": float(right),
            "seconds": seconds,
        }
    return results


def decibels(errors: list[float]) -> float:
    return -10 * math.log10(sum(errors) / len(errors))


def tell(results: dict[str, Numbers], whole: float) -> None:
    """Decibels of all methods, what is recognised, and how far the hierarchy is ahead."""
    print(f"\n{'':>14}" + "".join(f" {half:>22}" for half in HALVES) + "   (dB, recognised, ms)")
    own = results["hierarchy"]
    for name, by_half in results.items():
        line, beside = f"{name:>14}", f"{'hierarchy':>14}"
        for half, r in by_half.items():
            count = len(r["errors"])
            line += f" {decibels(r['errors']):>8.2f} {r['recognised']:>6.3f}"
            line += f" {1000 * r['seconds']:>6.1f}"
            beside += f" {decibels(own[half]['errors'][:count]):>8.2f} {'':>13}"
        print(line)
        if name in SLOW:
            print(f"{beside}  (on the same {count} images)")
    line = f"{'ahead of ' + NEAREST:>14}"
    for half in HALVES:
        own, other = (
            torch.tensor(results[name][half]["errors"]) for name in ("hierarchy", NEAREST)
        )
        ahead = 10 * math.log10(float(other.mean() / own.mean()))
        error = 10 / math.log(10) * standard_error(own / own.mean() - other / other.mean())
        line += f" {ahead:>+8.2f} ± {error:.2f}"
    print(line)
    print(f"of the images themselves, the classifier recognises {whole:.3f}")


def draw(model: HierarchicalDRMM, test: Tensor, folder: Store) -> None:
    torch.manual_seed(0)
    shown = model.sample((60,))
    figure, axes = plt.subplots(5, 12, figsize=(9, 3.9), layout="constrained")
    for ax, image in zip(axes.flat, shown, strict=True):
        ax.imshow(image[0].clamp(0, 1), cmap="gray")
        ax.axis("off")
    save(figure, beside(folder.folder, "samples.png"))
    figure, axes = plt.subplots(8, 10, figsize=(7, 5.8), layout="constrained")
    for row, rows in zip(range(8), (6, 7, 8, 9, 10, 11, 12, 13), strict=True):
        image = test[row]
        missing = image.clone()
        missing[:, rows:] = math.nan
        mean = model.impute(missing.unsqueeze(0))[0]
        drawn = model.impute(missing.unsqueeze(0), 7)[:, 0]
        for ax, own in zip(axes[row], (image, missing, mean, *drawn), strict=True):
            hole = own[0].isnan()
            colour = own[0].clamp(0, 1).unsqueeze(-1).expand(-1, -1, 3).clone()
            colour[hole] = torch.tensor([0.95, 0.75, 0.3])
            ax.imshow(colour)
            ax.axis("off")
    for ax, title in zip(axes[0], ("image", "known", "mean", "draws"), strict=False):
        ax.set_title(title, fontsize=8)
    save(figure, beside(folder.folder, "completions.png"))


def main() -> None:
    parser = cli.make_parser(__doc__, quick="small models, few images", paper="many hours")
    cli.add_models(parser, TRAIN_BY_NAME)
    arguments = cli.parse(parser)
    setting, data = SETTINGS[arguments.size], load()
    store = Store(OUT / "hierarchy" / f"digits_{arguments.size}")
    if not arguments.report:
        names = arguments.models or TRAIN_BY_NAME
        store.train(names, lambda name: TRAIN_BY_NAME[name](data, setting))
    names = [name for name in TRAIN_BY_NAME if store.has(name)]
    for name, numbers in store.numbers(names).items():
        print(f"{name}: {numbers['parameters']:,} numbers, {numbers['minutes']:.1f} minutes")
    classify = train_classifier(data)
    results = {}
    others = [NEAREST, BACKWARD] if "hierarchy" in names else [NEAREST]
    for name in [*names, *others]:
        kept = "hierarchy" if name == BACKWARD else name
        model = None if name == NEAREST else store.load_model(kept)
        if name == "hierarchy":
            scores = store.once(
                "bits", lambda m=model: {"bits": bits(m, data.test[: setting.scored]).tolist()}
            )
            told = torch.tensor(scores["bits"])
            print(f"{float(told.mean()):.3f} ± {standard_error(told):.3f} bits a pixel")
            draw(model, data.test, store)
        results[name] = store.once(
            f"{name} halves",
            lambda n=name, m=model: measure(
                n, Backward(m) if n == BACKWARD else m, setting, data, classify
            ),
        )
    with torch.no_grad():
        whole = (classify(data.test).argmax(-1) == data.test_labels).float().mean()
    if "hierarchy" in results:
        tell(results, float(whole))


if __name__ == "__main__":
    main()
