"""Speed and memory of a training step of deep convolutional mixtures.

A step is the loss, its gradient and the optimizer's update, with 100 images of 28 x 28 pixels.
Prints, from one run in which all take turns, medians of milliseconds

- of the step as it is in the second half of training, and in the first half, where only centroids
  learn; and the mean over both halves as `fit` takes it, with its minibatches and schedules;
- of its matrix products alone: for every layer of mixtures two forward and two backward, of the
  shapes that they have, which is what a step cannot do without;
- of the same model with scores from differences of all pairs of patches and centroids, of shape
  (images, positions, components, channels), as they are often written;

and the peak memory of a step, which is what the process (`--device cuda`: PyTorch on the device)
takes at most, less what it had before; each in a fresh process that has taken a small step.

The published TensorFlow code takes 131 ms for a step of 2L-c and 6.9 ms for one of 1L, on two CPU
cores of another day: a remark, not a comparison.

    python -m benchmarks.dcgmm.speed [--quick] [--models NAME ...] [--device cuda] [--threads N]
"""

import math
import sys
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.common import cli
from benchmarks.common.memory import in_fresh_process, peak_of
from benchmarks.common.timing import Job, interleaved_medians, synchronised
from benchmarks.dcgmm.models import BATCH
from pyromix import DCGMM, fit
from pyromix.dcgmm.mixture_layer import MixtureLayer
from pyromix.dcgmm.presets import PRESETS

SIDE = 28
STEP, EARLY, FIT = "step", "step, centroids", "step by fit"
PRODUCTS, DIFFERENCES = "products alone", "by differences"
FIT_STEPS = 20
BUDGET = 2**31  # bytes of the largest intermediate of differences; a step holds several
PUBLISHED = {"1L": 6.9, "2L-c": 131.0}


def make_images(count: int, device: str) -> Tensor:
    """Strokes on an empty background; the work does not depend on what is seen."""
    torch.manual_seed(0)
    images = torch.rand(count, 1, SIDE, SIDE)
    return images.where(images > 0.8, 0.0).to(device)


def make_model(name: str, device: str) -> Any:
    torch.manual_seed(0)
    return DCGMM.preset(name, event_shape=(1, SIDE, SIDE)).to(device)


# ---- scores by differences ----------------------------------------------------------------------


def difference_loss(layer: Any, values: Tensor, centroids_only: bool) -> tuple[Tensor, Tensor]:
    """What `training_loss` of a layer returns, by way of differences (N, K, D) and autograd."""
    precision, log_weights = layer.precision, layer.log_weights
    if centroids_only:
        precision, log_weights = precision.detach(), log_weights.detach()
    rows = values.reshape(-1, layer.dim)
    squares = (rows.unsqueeze(-2) - layer.loc).square() * precision
    constant = (precision.log() - math.log(2 * math.pi)).sum(-1)
    scores = log_weights + 0.5 * (constant - squares.sum(-1))
    loss = -(scores @ layer.neighbourhood.filter).amax(-1).mean()
    return loss, scores.detach().reshape(*values.shape[:-1], layer.num_components)


def by_differences(job: Job) -> Job:
    """The same job, in which all layers take differences."""

    def run() -> None:
        with patch.object(MixtureLayer, "training_loss", difference_loss):
            job()

    return run


def shapes(model: Any, images: Tensor) -> list[tuple[int, int, int]]:
    """Rows, channels and components of every layer of mixtures."""
    with torch.no_grad():
        rows = [values.numel() for values in model.layer_log_likelihoods(images)]
    sizes = [tuple(layer.loc.shape) for layer in model.mixtures]
    return [(m, d, k) for m, (k, d) in zip(rows, sizes, strict=True)]


def largest(model: Any, images: Tensor) -> int:
    return 4 * max(math.prod(shape) for shape in shapes(model, images))


# ---- jobs ---------------------------------------------------------------------------------------


def step_job(model: Any, images: Tensor, progress: float = 1.0) -> Job:
    optimizer = model.make_optimizer(model.default_lr)

    def run() -> None:
        model.anneal(progress)
        optimizer.zero_grad()
        model.loss(images, progress).backward()
        optimizer.step()

    return run


def fit_job(model: Any, images: Tensor) -> Job:
    """Several steps, of which `fit` has some overhead once."""
    return lambda: fit(
        model, images, steps=FIT_STEPS, batch_size=len(images), seed=0, progress_bar=False
    )


def products_job(model: Any, images: Tensor) -> Job:
    """Products of rows and their squares with parameters, and back: first and second moments."""
    device = images.device
    operands = [
        (torch.rand(m, d, device=device), torch.rand(d, k, device=device),
         torch.rand(m, k, device=device))
        for m, d, k in shapes(model, images)
    ]  # fmt: skip

    def run() -> None:
        for rows, weights, scores in operands:
            for _ in range(2):
                rows @ weights
            for _ in range(2):
                rows.T @ scores

    return run


# ---- time and memory ----------------------------------------------------------------------------


def check_differences(name: str, images: Tensor, device: str) -> None:
    """Both ways must be the same model, in float64: before training, components nearly tie.

    Raises:
        RuntimeError: If their losses or gradients differ.
    """
    found: list[tuple[float, Tensor]] = []

    def ask() -> None:
        model = make_model(name, device).double()
        for layer in model.mixtures:
            layer.share.fill_(1.0)  # no component is behind: all have the same step size
        loss = model.loss(images.double(), 1.0)
        loss.backward()
        slopes = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        found.append((loss.item(), torch.cat(slopes)))

    for job in (ask, by_differences(ask)):
        job()
    (loss, gradient), (other, other_gradient) = found
    error = float((gradient - other_gradient).norm() / gradient.norm())
    if abs(loss - other) > 1e-9 * abs(loss) or not error < 1e-6:
        raise RuntimeError(f"{name}: losses {loss} and {other}, gradients {error:.1e} apart")


def time_steps(name: str, seconds: float, device: str) -> None:
    images = make_images(BATCH, device)
    jobs = {
        STEP: step_job(make_model(name, device), images),
        EARLY: step_job(make_model(name, device), images, progress=0.0),
        FIT: fit_job(make_model(name, device), images),
        PRODUCTS: products_job(make_model(name, device), images),
    }
    fits = largest(make_model(name, device), images) <= BUDGET
    if fits:
        check_differences(name, images[:10], device)
        jobs[DIFFERENCES] = by_differences(step_job(make_model(name, device), images))
    medians = interleaved_medians(
        {what: synchronised(job, device) for what, job in jobs.items()}, seconds
    )
    medians[FIT] /= FIT_STEPS
    sizes = ", ".join(f"{m} x {d} x {k}" for m, d, k in shapes(make_model(name, device), images))
    print(f"\n{name}, {BATCH} images: rows x channels x components {sizes}")
    for what, took in medians.items():
        print(f"{what:>16} {1e3 * took:>9.2f} ms {took / medians[STEP]:>8.2f} x a step")
    if not fits:
        print(f"{DIFFERENCES:>16} would take tensors of more than {BUDGET / 2**30:.0f} GiB")
    if name in PUBLISHED:
        print(f"{'(published code':>16} {PUBLISHED[name]:>9.2f} ms, another day)")
    sys.stdout.flush()


def measure(name: str, what: str, device: str, threads: int) -> float:
    """Mebibytes that a step takes at its peak; for a process of its own."""
    torch.set_num_threads(threads)
    model = make_model(name, device)
    small, job = (step_job(model, make_images(count, device)) for count in (1, BATCH))
    if what == DIFFERENCES:
        small, job = by_differences(small), by_differences(job)
    small()  # loads what is loaded lazily
    return peak_of(synchronised(job, device), device)


def report_memory(name: str, device: str, threads: int) -> None:
    peaks: dict[str, float] = {}
    images = make_images(BATCH, device)
    for what in (STEP, DIFFERENCES):
        if what == DIFFERENCES and largest(make_model(name, device), images) > BUDGET:
            continue
        peaks[what] = in_fresh_process(measure, name, what, device, threads)
    cells = ", ".join(f"{what} {peak:,.0f} MiB" for what, peak in peaks.items())
    ratio = f", {peaks[DIFFERENCES] / peaks[STEP]:.1f} x" if DIFFERENCES in peaks else ""
    print(f"peak memory of a step: {cells}{ratio}", flush=True)


def main() -> None:
    parser = cli.make_parser(__doc__, quick="2L-c alone, shorter timings")
    parser.add_argument("--models", nargs="+", choices=list(PRESETS), help="by default all")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda")
    arguments = cli.parse(parser)
    device, quick = arguments.device, arguments.size == "quick"
    threads = f"{arguments.threads} threads" if device == "cpu" else torch.cuda.get_device_name()
    print(f"PyTorch {torch.__version__}, {threads}")
    for name in arguments.models or (["2L-c"] if quick else PRESETS):
        time_steps(name, 5.0 if quick else 20.0, device)
        report_memory(name, device, arguments.threads)


if __name__ == "__main__":
    main()
