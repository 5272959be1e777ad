"""Handwritten digits: bits a pixel, and completion of halves.

A hierarchy over windows of 2 x 2 pixels, windows of 2 x 2 of these, and a top over 7 x 7 cells,
trained on all 60,000 images of MNIST with 8-bit pixels. Completions are compared with the mean of
the 20 nearest training images, by the pixels that are known.

Printed: parameters; minutes of training; bits a pixel of held-out images, -log2 of the
probability of the 8-bit values; peak signal-to-noise ratio in dB over the hidden pixels of mean
completions of the four halves, of their mean squared error over all images.

Writes out/hierarchy/digits_<size>_samples.png and _completions.png, and keeps models in
out/hierarchy/digits_<size>/. Needs MNIST: see `pyromix.datasets.mnist`.

    python -m benchmarks.hierarchy.digits [--quick | --paper] [--report]
"""

import math
import time
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import torch
from torch import Generator, Tensor

from benchmarks.common import cli
from benchmarks.common.figures import save
from benchmarks.common.store import OUT, Numbers, Store, beside
from benchmarks.common.summary import standard_error
from benchmarks.common.training import num_parameters
from benchmarks.dcgmm.data import Images, load_images
from benchmarks.dcgmm.inpainting import HALVES, make_task, nearest_means
from pyromix import HierarchicalDRMM, Level, Top, fit

ROUNDING = (1 / 255, 0.0, 1.0)
NEIGHBOURS = 20
DRAWS, CODES = 128, 128
PIXELS = 28 * 28


class Setting(NamedTuple):
    """How much is trained and asked."""

    windows: tuple[int, int]
    squares: tuple[int, int]
    top: tuple[int, int]
    steps: int
    scored: int
    completed: int


SETTINGS = {
    "quick": Setting((2, 16), (2, 16), (2, 16), 60, 50, 8),
    "default": Setting((2, 64), (4, 64), (4, 256), 1800, 400, 100),
    "paper": Setting((2, 64), (4, 64), (4, 256), 60_000, 10_000, 1000),
}


def train(setting: Setting, images: Tensor) -> HierarchicalDRMM:
    levels = [
        Level(2, None, *setting.windows),
        Level(2, None, *setting.squares),
        Top(*setting.top),
    ]
    model = HierarchicalDRMM((1, 28, 28), levels, rounding=ROUNDING)
    fit(model, images, steps=setting.steps, batch_size=64, lr=0.015, seed=0, progress_bar=False)
    return model.eval()


@torch.no_grad()
def bits(model: HierarchicalDRMM, images: Tensor) -> Tensor:
    """Bits a pixel of images (N, 1, 28, 28): (N,)."""
    scores = torch.cat([model.log_mass(part) for part in images.split(50)])
    return -scores / (PIXELS * math.log(2))


def complete(model: HierarchicalDRMM, setting: Setting, data: Images) -> Numbers:
    """Decibels over the hidden pixels of mean completions, by half and method."""
    results: Numbers = {}
    for half in HALVES:
        task = make_task(half, data, setting.completed)
        torch.manual_seed(0)
        start = time.perf_counter()
        ours = model.impute(task.missing, num_draws=DRAWS, num_codes=CODES)
        seconds = (time.perf_counter() - start) / setting.completed
        near = nearest_means(data, task)[NEIGHBOURS]
        own, other = (torch.tensor(task.errors(x)["hidden"]) for x in (ours, near))
        results[half] = {
            "hierarchy": -10 * math.log10(float(own.mean())),
            "neighbours": -10 * math.log10(float(other.mean())),
            "error": 10 / math.log(10) * standard_error(own / own.mean() - other / other.mean()),
            "seconds": seconds,
        }
    return results


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
        mean = model.impute(missing.unsqueeze(0), num_draws=DRAWS, num_codes=CODES)[0]
        drawn = model.impute(missing.unsqueeze(0), 7, num_codes=CODES)[:, 0]
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
    parser = cli.make_parser(__doc__, quick="a small model, few images", paper="hours")
    parser.add_argument("--report", action="store_true", help="train nothing")
    arguments = cli.parse(parser)
    setting = SETTINGS[arguments.size]
    store = Store(OUT / "hierarchy" / f"digits_{arguments.size}")
    data = load_images("mnist", full=True)
    order = torch.randperm(len(data.test), generator=Generator().manual_seed(0))
    data = data._replace(test=data.test[order], test_labels=data.test_labels[order])
    if not arguments.report and not store.has("hierarchy"):
        torch.manual_seed(0)
        start = time.perf_counter()
        model = train(setting, data.train)
        minutes = (time.perf_counter() - start) / 60
        numbers: dict[str, Any] = {"parameters": num_parameters(model), "minutes": minutes}
        store.save_model("hierarchy", numbers, model)
    model = store.load_model("hierarchy")
    numbers = store.numbers(["hierarchy"])["hierarchy"]
    scores = store.once(
        "bits", lambda: {"bits": bits(model, data.test[: setting.scored]).tolist()}
    )
    told = torch.tensor(scores["bits"])
    print(
        f"{numbers['parameters']:,} numbers, {numbers['minutes']:.1f} minutes; "
        f"{float(told.mean()):.3f} ± {standard_error(told):.3f} bits a pixel"
    )
    results = store.once("halves", lambda: complete(model, setting, data))
    for half, r in results.items():
        apart = r["hierarchy"] - r["neighbours"]
        print(
            f"{half:>6}: hierarchy {r['hierarchy']:.2f} dB, {NEIGHBOURS} neighbours "
            f"{r['neighbours']:.2f} dB, {apart:+.2f} ± {r['error']:.2f}; "
            f"{1000 * r['seconds']:.0f} ms an image"
        )
    draw(model, data.test, store)


if __name__ == "__main__":
    main()
