"""Completion of images of which a part is hidden, by deep convolutional mixtures and peers.

A half of the image, or a square of 10 x 10 (of 28 x 28) pixels, is hidden. Methods that know which
part it is replace it; a model without a mask has to find it, be it empty or noise. The score is
the peak signal-to-noise ratio over hidden pixels, of their mean squared error over all images:
no draw can beat the posterior mean in it.
"""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor

from benchmarks.common.store import Numbers
from benchmarks.common.summary import standard_error
from benchmarks.common.training import in_chunks
from benchmarks.dcgmm.data import Images
from benchmarks.dcgmm.models import FLATS
from benchmarks.dcgmm.trained import Trained

HALVES = ("left", "right", "upper", "lower")
TASKS = (*HALVES, "square")
SQUARE, MARGIN = 10, 4  # pixels, of 28
NEIGHBOURS = (1, 5, 10, 20)
MEAN, UNTOUCHED, UNTOUCHED_NOISE = "mean image", "left empty", "left as noise"
MASKED, BLIND, BLIND_NOISE = "known mask", "blind, empty", "blind, noise"
TEMPERED, TEMPERATURE = "known mask, tempered", 5.0
COMPLETING = [name for name, flat in FLATS.items() if flat.em and flat.components > 25]


class Task(NamedTuple):
    """Images of which a part is hidden."""

    images: Tensor
    """As they were, shape (N, 1, H, W)."""
    known: Tensor
    """What is known, same shape."""

    @property
    def empty(self) -> Tensor:
        return torch.where(self.known, self.images, 0.0)

    @property
    def noisy(self) -> Tensor:
        generator = Generator().manual_seed(2)
        noise = torch.rand(self.images.shape, generator=generator)
        return torch.where(self.known, self.images, noise)

    @property
    def missing(self) -> Tensor:
        """With not-a-number for what is hidden."""
        return torch.where(self.known, self.images, torch.nan)

    def errors(self, completed: Tensor) -> dict[str, list[float]]:
        """Mean squared errors of every image, over what was hidden, over the rest and over all."""
        squared = (completed - self.images).square()
        parts = {"hidden": ~self.known, "known": self.known, "all": torch.ones_like(self.known)}
        return {
            name: ((squared * part).flatten(1).sum(-1) / part.flatten(1).sum(-1)).tolist()
            for name, part in parts.items()
        }


def make_task(name: str, data: Images, count: int) -> Task:
    images = data.test[:count]
    known, side = torch.ones_like(images, dtype=torch.bool), data.side
    half = side // 2
    if name in HALVES:
        window = {
            "left": (slice(None), slice(half)),
            "right": (slice(None), slice(half, None)),
            "upper": (slice(half), slice(None)),
            "lower": (slice(half, None), slice(None)),
        }[name]
        known[(..., *window)] = False
        return Task(images, known)
    generator = Generator().manual_seed(1)
    size, margin = data.scaled(SQUARE), data.scaled(MARGIN)
    corners = torch.randint(
        margin, side - margin - size + 1, (len(images), 2), generator=generator
    )
    for mask, (top, left) in zip(known, corners.tolist(), strict=True):
        mask[:, top : top + size, left : left + size] = False
    return Task(images, known)


# ---- methods ------------------------------------------------------------------------------------


def nearest_means(data: Images, task: Task) -> dict[int, Tensor]:
    """Means of what the nearest training images have there, nearest by known pixels."""
    train, x = data.train.flatten(1), task.images.flatten(1)
    known = task.known.flatten(1).to(x)
    found: dict[int, list[Tensor]] = {k: [] for k in NEIGHBOURS}
    for part, mask in zip(x.split(100), known.split(100), strict=True):
        # The squared distance but for what is the same for all training images.
        distances = mask @ train.square().T - 2 * (part * mask) @ train.T
        order = distances.topk(max(NEIGHBOURS), largest=False).indices
        for k, parts in found.items():
            parts.append(train[order[:, :k]].mean(1))
    return {k: merge(task, torch.cat(parts)) for k, parts in found.items()}


def merge(task: Task, values: Tensor) -> Tensor:
    """What is known as it was, and the rest from flat images (N, D)."""
    return torch.where(task.known, task.images, values.view_as(task.images))


def complete_by_peers(data: Images, task: Task, flats: dict[str, Any]) -> dict[str, Tensor]:
    """Completions by the mean image, by neighbours and by flat mixtures."""
    mean = data.train.mean(0).flatten().expand(len(task.images), -1)
    found = {UNTOUCHED: task.empty, UNTOUCHED_NOISE: task.noisy, MEAN: merge(task, mean)}
    found |= {f"{k} nearest": values for k, values in nearest_means(data, task).items()}
    for name, flat in flats.items():
        filled = in_chunks(flat.impute, task.missing.flatten(1), 1000)
        found[name] = filled.view_as(task.images)
    return found


def complete(model: Any, task: Task, blind: bool = True) -> dict[str, Tensor]:
    """Posterior means by a model that knows what is hidden, and by one that has to find it.

    The latter takes several patches.
    """
    with torch.no_grad():
        found = {
            what: model.inpaint(task.missing, task.known, temperature=temperature)
            for what, temperature in ((MASKED, 1.0), (TEMPERED, TEMPERATURE))
        }
        if blind and model.encode(task.empty[:1])[0].shape[-1] > 1:
            found[BLIND] = in_chunks(model.inpaint, task.empty)
            found[BLIND_NOISE] = in_chunks(model.inpaint, task.noisy)
    return found


# ---- scores -------------------------------------------------------------------------------------


def measure_completions(trained: Trained, count: int) -> dict[str, dict[str, Numbers]]:
    """Errors of every image by method and task, of the first seed's models."""
    tasks = {name: make_task(name, trained.data, count) for name in TASKS}

    def by_peers() -> Numbers:
        flats = {name: trained.train_flat(name, 0, steps=0) for name in COMPLETING}
        return {
            name: {
                method: task.errors(x)
                for method, x in complete_by_peers(trained.data, task, flats).items()
            }
            for name, task in tasks.items()
        }

    def by_model(name: str, model: Any) -> Numbers:
        return {
            what: {
                f"{name}, {method}": task.errors(x) for method, x in complete(model, task).items()
            }
            for what, task in tasks.items()
        }

    results = [trained.store.once(f"inpainting_{count}_peers", by_peers)]
    for measured in trained.measure(f"inpainting_{count}", by_model, seeds=[0]).values():
        results += measured
    found: dict[str, dict[str, Numbers]] = {}
    for numbers in results:
        for task, methods in numbers.items():
            for method, errors in methods.items():
                found.setdefault(method, {})[task] = errors
    return found


def decibels(squared_error: float) -> float:
    return -10 * math.log10(squared_error)


def report_completions(results: dict[str, dict[str, Numbers]]) -> None:
    """Signal-to-noise ratios, and how they compare with the best of simple methods."""

    def errors(method: str, task: str, part: str = "hidden") -> Tensor:
        return torch.tensor(results[method][task][part])

    def table(title: str, part: str, methods: Iterable[str]) -> None:
        print(f"\n{title}\n{'':>28}" + "".join(f"{task:>16}" for task in TASKS))
        for method in methods:
            cells = ""
            for task in TASKS:
                values = errors(method, task, part)
                mean = float(values.mean())
                spread = 10 / math.log(10) * standard_error(values) / mean if mean else 0.0
                cells += f"{f'{decibels(mean):.2f} ± {spread:.2f}' if mean else 'exact':>16}"
            print(f"{method:>28}{cells}")

    table("decibels over hidden pixels (and standard errors over images)", "hidden", results)
    blind = [method for method in results if method.endswith((BLIND, BLIND_NOISE))]
    table("blind: decibels over pixels that were not hidden", "known", blind)
    table("blind: decibels over all pixels", "all", [UNTOUCHED, UNTOUCHED_NOISE, *blind])
    for task in TASKS:
        best = {}
        for kind in ("nearest", "flat"):
            peers = [m for m in results if m.endswith(kind) or m.startswith(kind)]
            best[kind] = min(peers, key=lambda m: float(errors(m, task).mean()))
        print(f"\n{task}: decibels above {' and '.join(best.values())}, the best of each")
        for method in results:
            if method.endswith((MASKED, TEMPERED)):
                own = errors(method, task)
                gaps = [gap(own, errors(peer, task)) for peer in best.values()]
                print(f"{method:>28} {gaps[0]:>16} {gaps[1]:>16}")


def gap(errors: Tensor, others: Tensor) -> str:
    """Decibels above another method on the same images, and their standard error."""
    above = decibels(float(errors.mean())) - decibels(float(others.mean()))
    spread = standard_error(errors / errors.mean() - others / others.mean())
    return f"{above:+.2f} ± {10 / math.log(10) * spread:.2f}"
