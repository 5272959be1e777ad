"""Images of digits as sequences of rows: RMDN and FRMDN against flows over all pixels.

Each image of MNIST is 28 rows of 28 pixels (the third application of Razavi, Hosseini and
Behzad). Pixels are dequantised with noise that is new in every step, and mapped to the real line
with a margin of 1e-6. Recurrent models, with 10 components, 32 hidden units and ranks from 0 to
3, and zuko's RealNVP and MAF are trained given the label, with the same batches, number of steps
and rule for stopping, and scored as p(x) = sum_y p(y) p(x|y) with all labels equally probable.
Prints, of test images,

- bits per pixel, by how much they are below those of the RMDN of the same rank and of RealNVP, as
  a mean over images with its standard error, and nats: of integers plus noise, and in the logit
  space, which is the paper's unit;
- accuracy of the label with the largest p(x|y);
- numbers of parameters, milliseconds a step, and the step after which validation was best;
- the time to draw 256 sequences, over that of as many single steps, each with a score.

Trains on the training images if they are in the folder that PYROMIX_DATA names or in the cache,
or with `--full`, which downloads them; else on 8,000 of the test images, with 1,000 to validate
on and 1,000 to test on.

Figures out/frmdn/image_rows_<size>_*.png: samples, completions, bits. What was trained is kept in
out/frmdn/image_rows_<size>/, a file for each model: processes may share the work with `--models`,
after which `--report` prints and draws.

    python -m benchmarks.frmdn.image_rows [--quick | --paper] [--full] [--models NAME ...]
        [--report]
"""

import statistics
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import pyro.distributions.transforms as transforms
import torch
import zuko
from torch import Generator, Tensor
from torch.distributions import Categorical, ReshapeTransform

from benchmarks.common import cli
from benchmarks.common.couplings import deep_affine, deep_spline, interleaved
from benchmarks.common.figures import BLUE, INK, RED, hide_sides, save
from benchmarks.common.store import OUT, Numbers, Store, beside, best
from benchmarks.common.summary import plus_minus
from benchmarks.common.timing import interleaved_medians
from benchmarks.common.training import num_parameters
from benchmarks.common.zuko_flow import ZukoFlow
from benchmarks.frmdn.training import train
from pyromix import (
    FRMDN,
    DistributionModule,
    Flow,
    LogitMap,
    class_conditional,
    dequantize,
    near_identity,
    quantize,
)
from pyromix.core.batch import Batch, split_batch
from pyromix.datasets import mnist
from pyromix.datasets.sources import cache_folder, own_folders
from pyromix.metrics import bits_per_dim
from pyromix.plotting import plot_images

CLASSES = 10
SIDE = 28
PIXELS = SIDE * SIDE
COMPONENTS, HIDDEN = 10, 32


class Setting(NamedTuple):
    """How long to train."""

    steps: int
    batch_size: int
    models: tuple[str, ...]


# ---- data ---------------------------------------------------------------------------------------


class Part(NamedTuple):
    """Images as integers, and labels."""

    pixels: Tensor
    """Shape (N, 28, 28), bytes."""
    labels: Tensor
    """Shape (N,)."""


class Data(NamedTuple):
    """Images to train on, to stop by and to score."""

    train: Part
    validation: Part
    test: Part


def has_training_images() -> bool:
    """Whether they need not be downloaded."""
    folders = own_folders("mnist")
    with suppress(ImportError):
        folders.append(cache_folder("mnist", title="MNIST", looked=""))
    return any(any(folder.glob("train-images-idx3-ubyte*")) for folder in folders)


def load_data(full: bool) -> Data:
    generator = Generator().manual_seed(0)

    def read(split: str) -> tuple[Tensor, Tensor]:
        pixels, labels = mnist(split, raw=True)
        order = torch.randperm(len(pixels), generator=generator)
        return pixels[order, 0], labels[order]

    if full or has_training_images():
        pixels, labels = read("train")
        sizes, rest = (50_000, 10_000), [Part(*read("test"))]
    else:
        pixels, labels = read("test")
        sizes, rest = (8000, 1000, 1000), []
    parts = zip(pixels.split(sizes), labels.split(sizes), strict=True)
    return Data(*[Part(*part) for part in parts], *rest)


def with_labels(batch: Batch) -> Batch:
    pixels, labels = split_batch(batch)
    return dequantize(pixels), labels


def without_labels(batch: Batch) -> Batch:
    return dequantize(split_batch(batch)[0])


# ---- models -------------------------------------------------------------------------------------


def rows(
    rank: int, flow: Callable[[], list[Any]] = list, hidden: int = HIDDEN
) -> DistributionModule:
    """A law of images that are sequences of rows, given a label."""
    sequence = FRMDN(
        SIDE, SIDE, COMPONENTS, rank=rank, hidden_dim=hidden, static_dim=CLASSES,
        transforms=flow(),
    )  # fmt: skip
    return class_conditional(Flow(sequence, [LogitMap()]), CLASSES)


def pixels(kind: Callable[..., Any], labelled: bool = True, **options: Any) -> DistributionModule:
    """A law of images by one of zuko's flows over all pixels."""
    context_dim = CLASSES if labelled else 0
    flow = ZukoFlow(kind(PIXELS, context_dim, **options), PIXELS, context_dim)
    images = Flow(flow, [ReshapeTransform((PIXELS,), (SIDE, SIDE)), LogitMap()])
    return class_conditional(images, CLASSES) if labelled else images


def couplings() -> list[Any]:
    return interleaved(SIDE, 2, deep_spline)


def affine() -> list[Any]:
    """What the paper has, but for which pixels are in which half."""
    return interleaved(SIDE, 2, deep_affine)


def by_state() -> list[Any]:
    """Splines that depend on the recurrent state, and affine couplings that do not."""
    spline = transforms.conditional_spline(SIDE, HIDDEN, [64], count_bins=8, bound=5.0)
    return [near_identity(spline), *affine()]


class Entry(NamedTuple):
    """A model to train."""

    label: str
    make: Callable[[], DistributionModule]
    lr: float
    labelled: bool = True


# Rates were tried with 200 to 600 steps. Validation bits: RMDN 1.923 (3e-3), 1.878 (6e-3), 1.852
# (1e-2); FRMDN 1.242 (3e-3), 1.220 (6e-3) after 600 steps, 1.306 (6e-3), 1.289 (1e-2) after 200;
# RealNVP 2.336 (3e-4), 2.192 (1e-3), 2.108 (3e-3) after 300, 2.018 (3e-3), 2.068 (1e-2) after
# 1,000; wide 2.046 (1e-3), 2.034 (3e-3). Of flows of FRMDN, after 200: a spline for every pixel
# 1.551, one given the state 1.395, two affine couplings 1.814, and after a spline 1.485, two
# spline couplings of halves of a row 1.424, of even and odd pixels 1.318. A hidden layer between
# state and mixture was worth 0.014 bits.
RANKS = (0, 1, 2, 3)
WIDE = {"transforms": 5, "hidden_features": (256, 256)}
MASKED = {"transforms": 5, "hidden_features": (1024,)}  # as the authors of MAF have it
ENTRIES: dict[str, Entry] = {
    **{f"rmdn-{r}": Entry(f"RMDN, rank {r}", partial(rows, r), 1e-2) for r in RANKS},
    **{f"frmdn-{r}": Entry(f"FRMDN, rank {r}", partial(rows, r, couplings), 1e-2) for r in RANKS},
    "frmdn-affine": Entry("FRMDN, affine couplings", partial(rows, 0, affine), 1e-2),
    "frmdn-state": Entry("FRMDN, flow given the state", partial(rows, 0, by_state), 1e-2),
    "frmdn-wide": Entry("FRMDN, rank 3, 128 hidden", partial(rows, 3, couplings, 128), 1e-2),
    "realnvp": Entry("RealNVP", partial(pixels, zuko.flows.RealNVP), 3e-3),
    "realnvp-wide": Entry("RealNVP, wide", partial(pixels, zuko.flows.RealNVP, **WIDE), 3e-3),
    "maf": Entry("MAF", partial(pixels, zuko.flows.MAF, **MASKED), 1e-3),
    "realnvp-all": Entry(
        "RealNVP, wide, no labels",
        partial(pixels, zuko.flows.RealNVP, labelled=False, **WIDE), 3e-3, False,
    ),
    "maf-all": Entry(
        "MAF, no labels", partial(pixels, zuko.flows.MAF, labelled=False, **MASKED), 1e-3, False
    ),
}  # fmt: skip
PEER = "realnvp"
BASELINES = {f"frmdn-{r}": f"rmdn-{r}" for r in RANKS} | {
    "frmdn-affine": "rmdn-0",
    "frmdn-state": "rmdn-0",
    "frmdn-wide": "rmdn-3",
}

SETTINGS = {
    "quick": Setting(96, 128, ("rmdn-0", "frmdn-0")),
    "default": Setting(1000, 128, tuple(ENTRIES)),
    "paper": Setting(50_000, 256, tuple(ENTRIES)),
}


def make_model(name: str) -> Any:
    torch.manual_seed(0)
    return ENTRIES[name].make()


# ---- training and scores ------------------------------------------------------------------------


def train_and_score(name: str, data: Data, setting: Setting) -> tuple[Any, Numbers]:
    entry, model = ENTRIES[name], make_model(name)
    history = train(
        model, with_labels if entry.labelled else without_labels, data.train, data.validation,
        steps=setting.steps, batch_size=setting.batch_size, lr=entry.lr,
    )  # fmt: skip
    numbers = {
        "images": len(data.train.pixels),
        "parameters": num_parameters(model),
        "steps": len(history.losses),
        "best step": history.best_step,
        "seconds": history.seconds[-1],
        "validation bits": mean_bits(score(model, data.validation, entry.labelled)),
    } | score(model, data.test, entry.labelled)
    return model, numbers


@torch.no_grad()
def score(model: Any, part: Part, labelled: bool) -> Numbers:
    """Log-densities of every image, of integers plus noise; the same noise for all models."""
    generator = Generator().manual_seed(1)
    nats, jacobians, correct = [], [], 0
    logit_map = LogitMap()
    for pixels, labels in zip(part.pixels.split(100), part.labels.split(100), strict=True):
        x = dequantize(pixels, generator=generator)
        if labelled:
            by_class = model.class_log_prob(x)
            nats.append((by_class + model.prior.log()).logsumexp(-1))
            correct += int((by_class.argmax(-1) == labels).sum())
        else:
            nats.append(model.log_prob(x))
        jacobians.append(logit_map.log_abs_det_jacobian(logit_map.inv(x), x).sum((-2, -1)))
    total = torch.cat(nats)
    return {
        "nats": [round(value, 3) for value in total.tolist()],
        "logit nats": float((total + torch.cat(jacobians)).mean()),
        "accuracy": correct / len(part.labels) if labelled else None,
    }


def bits(numbers: Numbers) -> Tensor:
    """Bits per pixel of every image."""
    return bits_per_dim(torch.tensor(numbers["nats"]), PIXELS)


def mean_bits(numbers: Numbers) -> float:
    return float(bits(numbers).mean())


def gap(numbers: Numbers, other: Numbers | None) -> str:
    """By how much a model needs fewer bits than another one."""
    if other is None or other is numbers:
        return ""
    return plus_minus(bits(other) - bits(numbers))


def report(results: dict[str, Numbers]) -> None:
    print(
        f"\n{'':>28} {'parameters':>10} {'ms/step':>8} {'best':>6} {'bits/dim':>15} "
        f"{'below RMDN':>15} {'below RealNVP':>15} {'nats':>8} {'logit nats':>10} {'accuracy':>8}"
    )
    for name, numbers in results.items():
        baseline = results.get(BASELINES.get(name, ""))
        accuracy = "" if numbers["accuracy"] is None else f"{numbers['accuracy']:.1%}"
        print(
            f"{ENTRIES[name].label:>28} {numbers['parameters']:>10,} "
            f"{1e3 * numbers['seconds'] / numbers['steps']:>8.0f} {numbers['best step']:>6} "
            f"{plus_minus(bits(numbers)):>15} {gap(numbers, baseline):>15} "
            f"{gap(numbers, results.get(PEER)):>15} {-statistics.mean(numbers['nats']):>8.1f} "
            f"{-numbers['logit nats']:>10.1f} {accuracy:>8}"
        )
    for name, numbers in results.items():
        kind, _, rank = name.partition("-")
        before = results.get(f"{kind}-{int(rank) - 1}") if rank.isdigit() else None
        if before:
            print(f"{ENTRIES[name].label}: {gap(numbers, before)} below the rank before")
    for numbers in list(results.values())[:1]:  # all have been scored with the same noise
        least = statistics.mean(numbers["nats"]) - numbers["logit nats"]
        print(f"Zero bits are {least:.1f} logit nats: no law of integers takes less in the mean.")


# ---- time of draws ------------------------------------------------------------------------------


@torch.no_grad()
def time_draws(seconds: float, batch: int = 256) -> dict[str, dict[str, float]]:
    """Milliseconds to draw sequences, and to take as many single steps with a score each."""
    jobs: dict[str, Callable[[], Any]] = {}
    for name in ("rmdn-0", "frmdn-0"):
        sequence = make_model(name).model.base.eval()
        static = torch.eye(CLASSES)[torch.arange(batch) % CLASSES]
        law = sequence.condition(static=static)
        jobs[f"{name} draws"] = law.sample
        jobs[f"{name} steps"] = partial(take_steps, sequence, static, law.sample())
    medians = interleaved_medians(jobs, seconds)
    return {
        name: {what: 1e3 * medians[f"{name} {what}"] for what in ("draws", "steps")}
        for name in ("rmdn-0", "frmdn-0")
    }


def take_steps(sequence: FRMDN, static: Tensor, value: Tensor) -> None:
    """Scores sequences step by step."""
    state, last = None, None
    for y in value.unbind(-2):
        law, state = sequence.step(state, last, static=static)
        law.log_prob(y)
        last = y


def report_times(times: dict[str, dict[str, float]]) -> None:
    print(f"\n256 sequences of {SIDE} steps, without gradients")
    for name, took in times.items():
        print(
            f"{ENTRIES[name].label:>28} {took['draws']:>8.1f} ms to draw, {took['steps']:.1f} ms "
            f"for single steps with scores, ratio {took['draws'] / took['steps']:.2f}"
        )


# ---- figures ------------------------------------------------------------------------------------


@torch.no_grad()
def draw_samples(models: dict[str, Any], test: Part, path: Path) -> None:
    """Eight images of every class: real ones, and draws of every model."""
    count = 8
    labels = torch.arange(CLASSES).repeat(count)
    order = test.labels.argsort(stable=True)
    first = torch.searchsorted(test.labels[order], torch.arange(CLASSES))
    real = test.pixels[order[(first + torch.arange(count).unsqueeze(-1)).flatten()]]
    panels = {"test images": real.long()}
    for name, model in models.items():
        torch.manual_seed(0)
        panels[ENTRIES[name].label] = quantize(model.condition(labels).sample())
    figure, axes = plt.subplots(
        2, 2, figsize=(8.8, 7.4), layout="constrained", gridspec_kw={"wspace": 0.06}
    )
    for ax in axes.flat:
        ax.axis("off")
    for ax, (title, images) in zip(axes.flat, panels.items(), strict=False):  # up to four
        plot_images(images, ax, columns=CLASSES)
        ax.set_title(title)
    save(figure, path)


@torch.no_grad()
def draw_completions(model: Any, test: Part, path: Path, draws: int = 8, given: int = 14) -> None:
    """Images, their upper halves, and what the model makes of these without a label.

    Labels are drawn from p(y | upper half).
    """
    torch.manual_seed(0)
    sequence = model.model.base
    first = torch.stack([(test.labels == c).nonzero()[0, 0] for c in range(CLASSES)])
    pixels = test.pixels[first]
    z = LogitMap().inv(dequantize(pixels))
    by_class = sequence.condition(model.contexts).log_prob_per_step(z.unsqueeze(1))
    labels = Categorical(logits=by_class[..., :given].sum(-1)).sample((draws,))
    below = sequence.predict(z[:, :given], SIDE - given, 1, static=model.contexts[labels])[0]
    upper = pixels[:, :given].long().expand(draws, -1, -1, -1)
    whole = torch.cat([upper, quantize(LogitMap()(below))], -2)
    known = pixels.long()
    known[:, given:] = 0
    figure, ax = plt.subplots(figsize=(5, 5.4), layout="constrained")
    plot_images(torch.cat([pixels.long(), known, *whole]), ax, columns=CLASSES)
    ax.axhline(2 * (SIDE + 1) - 1, color=RED, linewidth=1)
    ax.set_title("test images, their upper halves, completions", fontsize=10)
    save(figure, path)


def draw_bits(results: dict[str, Numbers], path: Path) -> None:
    colors = {"rmdn": BLUE, "frmdn": RED, "realnvp": "0.6", "maf": "0.6"}
    figure, ax = plt.subplots(figsize=(6.5, 0.34 * len(results) + 0.9), layout="constrained")
    for i, (name, numbers) in enumerate(results.items()):
        value = mean_bits(numbers)
        ax.barh(i, value, color=colors[name.split("-")[0]])
        ax.text(value, i, f" {value:.3f}", va="center", fontsize=9, color=INK)
    ax.set_yticks(range(len(results)), [ENTRIES[name].label for name in results])
    ax.set(xlabel="bits per pixel of test images")
    ax.margins(x=0.12)
    ax.invert_yaxis()
    hide_sides(ax, "top", "right")
    save(figure, path)


# ---- all ----------------------------------------------------------------------------------------


def main() -> None:
    parser = cli.make_parser(
        __doc__,
        quick="two models, few steps: two minutes",
        paper="50,000 steps of 256 images: days",
    )
    parser.add_argument("--full", action="store_true", help="download the training images")
    cli.add_models(parser, ENTRIES)
    arguments = cli.parse(parser)
    setting = SETTINGS[arguments.size]
    prefix = OUT / "frmdn" / f"image_rows_{arguments.size}"
    store = Store(prefix)
    data = load_data(arguments.full)
    print(f"{len(data.train.pixels)} images to train on, {setting.steps} steps", flush=True)

    if not arguments.report:
        for name in arguments.models or setting.models:
            model, numbers = train_and_score(name, data, setting)
            store.save(name, numbers, model.state_dict())
            print(
                f"{ENTRIES[name].label}: {mean_bits(numbers):.3f} bits per pixel, "
                f"{numbers['seconds']:.0f} s",
                flush=True,
            )
        if arguments.models:
            return  # others may be under way: all are reported with --report

    results = store.numbers(ENTRIES)
    report(results)
    report_times(time_draws(2.0 if arguments.size == "quick" else 20.0))
    labelled = {name: numbers for name, numbers in results.items() if ENTRIES[name].labelled}
    drawn = [best(labelled, kind, "validation bits") for kind in ("frmdn", "rmdn", "realnvp")]
    models = {name: store.load(name, make_model(name)) for name in drawn if name}
    draw_samples(models, data.test, beside(prefix, "samples.png"))
    if drawn[0]:
        draw_completions(models[drawn[0]], data.test, beside(prefix, "completions.png"))
    draw_bits(results, beside(prefix, "bits.png"))


if __name__ == "__main__":
    main()
