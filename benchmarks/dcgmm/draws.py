"""How good draws of deep convolutional mixtures are: recognised, different from each other, sharp.

A support vector machine that was trained on real images says of which digit a draw is. Draws are
also compared with those of flat mixtures: of one for every class, and of one for all, whose
components are chosen by how often they were responsible for the class.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from sklearn.svm import SVC
from torch import Tensor

from benchmarks.common.store import Numbers
from benchmarks.common.training import in_chunks
from benchmarks.dcgmm.data import Images
from benchmarks.dcgmm.models import PRECISION
from benchmarks.dcgmm.trained import Trained
from pyromix import GaussianMixture, fit_em

MOST_IMAGES = 10_000  # that the recogniser is trained on
PER_CLASS = 4  # components of the flat mixtures
SHARPENED_DRAWS = 10  # of every class: sharpening takes a while
FLAT, ONE_FLAT = f"flat, {PER_CLASS} a class", "flat 36, EM, floor 0.05"
LAW, LAW_MEANS, TOP, SHARPENED = "law", "law, mean images", "top 1", "top 1, sharpened"


class Recogniser:
    """A support vector machine with a Gaussian kernel."""

    def __init__(self, data: Images) -> None:
        x, y = data.train[:MOST_IMAGES].flatten(1), data.train_labels[:MOST_IMAGES]
        self.machine = SVC(C=5.0).fit(x.numpy(), y.numpy())

    def __call__(self, images: Tensor) -> Tensor:
        return torch.from_numpy(self.machine.predict(images.flatten(1).numpy()))

    def shares(self, images: Tensor, labels: Tensor, classes: int) -> list[float]:
        """Share of each class's images that are recognised."""
        correct = (self(images) == labels).float()
        return [float(correct[labels == label].mean()) for label in range(classes)]


def options_of(what: str, sharpen_steps: int) -> dict[str, Any]:
    options: dict[str, dict[str, Any]] = {
        LAW: {},
        LAW_MEANS: {"noise": False},
        TOP: {"noise": False, "top_s": 1},
        SHARPENED: {"noise": False, "top_s": 1, "sharpen_steps": sharpen_steps},
    }
    return options[what]


def draw_flat(data: Images, labels: Tensor, noise: bool) -> Tensor:
    """Draws of a flat mixture for every class, or of its components' means."""
    images = torch.empty(len(labels), *data.train.shape[1:])
    for label in labels.unique().tolist():
        model = GaussianMixture(data.side**2, PER_CLASS, variance_floor=1 / PRECISION)
        x = data.train[data.train_labels == label].flatten(1)
        fit_em(model, x, seed=label, progress_bar=False)
        rows = (labels == label).nonzero().squeeze(-1)
        if noise:
            drawn = model.sample((len(rows),))
        else:
            component = torch.multinomial(model.logits.softmax(-1), len(rows), replacement=True)
            drawn = model.loc[component]
        images[rows] = drawn.detach().view(len(rows), *images.shape[1:])
    return images


def draw_one_flat(mixture: Any, data: Images, labels: Tensor, noise: bool) -> Tensor:
    """Draws of a flat mixture of all classes, or its means, with p(k|y) from the training data."""
    responsible = in_chunks(lambda x: mixture.responsibilities(x.flatten(1)), data.train)
    classes = int(labels.max()) + 1
    weights = torch.stack([responsible[data.train_labels == y].sum(0) for y in range(classes)])
    component = torch.multinomial(weights[labels], 1).squeeze(-1)
    images = mixture.loc[component]
    if noise:
        images = images + mixture.scale[component] * torch.randn_like(images)
    return images.view(len(labels), *data.train.shape[1:])


# ---- recognised ---------------------------------------------------------------------------------


def measure_classes(trained: Trained, count: int, sharpen: int) -> dict[str, Numbers]:
    """Shares of draws given a class that are recognised, by model and kind of draw."""
    data, store, classes = trained.data, trained.store, trained.classes or 0
    recogniser = cache(lambda: Recogniser(data))
    many, few = (torch.arange(classes).repeat_interleave(n) for n in (count, SHARPENED_DRAWS))

    def shares(draw: Callable[[Tensor], Tensor], labels: Tensor = many) -> list[float]:
        torch.manual_seed(0)
        with torch.no_grad():
            return recogniser().shares(draw(labels), labels, classes)

    def of_data() -> Numbers:
        return {"shares": recogniser().shares(data.test, data.test_labels, classes)}

    def of_flat() -> Numbers:
        return {
            LAW: shares(partial(draw_flat, data, noise=True)),
            LAW_MEANS: shares(partial(draw_flat, data, noise=False)),
        }

    def of_one_flat() -> Numbers:
        mixture = trained.train_flat(ONE_FLAT, 0, steps=0)
        return {
            LAW: shares(partial(draw_one_flat, mixture, data, noise=True)),
            LAW_MEANS: shares(partial(draw_one_flat, mixture, data, noise=False)),
        }

    def of_model(_: str, model: Any) -> Numbers:
        found: Numbers = {
            what: shares(
                partial(model.sample_class, **options_of(what, sharpen)),
                few if what == SHARPENED else many,
            )
            for what in (LAW, LAW_MEANS, TOP, SHARPENED)
        }
        own = in_chunks(model.classify, data.test)
        return found | {"accuracy": float((own == data.test_labels).float().mean())}

    what = f"classes_{count}_{sharpen}"
    found = {
        "test images": store.once("classes_images", of_data),
        FLAT: store.once(f"{what}_flat", of_flat),
        ONE_FLAT: store.once(f"{what}_flat_one", of_one_flat),
    }
    return found | {name: n[0] for name, n in trained.measure(what, of_model, seeds=[0]).items()}


def report_classes(results: dict[str, dict[str, Any]], count: int) -> None:
    kinds = (LAW, LAW_MEANS, TOP, SHARPENED)
    real = results["test images"]["shares"]
    print(
        f"\n{count} draws of every class, the share that is recognised; the recogniser is right "
        f"about {sum(real) / len(real):.1%} of test images\n{'':>24}"
        + "".join(f"{kind:>18}" for kind in kinds)
        + f"{'own accuracy':>14}   by class ({TOP}; flat: {LAW_MEANS})"
    )
    for name, numbers in results.items():
        shown = numbers.get("shares") or numbers.get(TOP) or numbers[LAW_MEANS]
        cells = ""
        for kind in kinds:
            values = numbers.get(kind)
            cells += f"{f'{sum(values) / len(values):.1%}' if values else '':>18}"
        accuracy = f"{numbers['accuracy']:.1%}" if "accuracy" in numbers else ""
        by_class = " ".join(f"{100 * share:>3.0f}" for share in shown)
        print(f"{name:>24}{cells}{accuracy:>14}   {by_class}")


# ---- different, and sharp -----------------------------------------------------------------------


def sharpness(images: Tensor) -> float:
    """Mean absolute difference of neighbouring pixels, over that of pixels from zero."""
    right, down = images.diff(dim=-1).abs().mean(), images.diff(dim=-2).abs().mean()
    return float((right + down) / images.abs().mean())


def measure_draws(trained: Trained, count: int, sharpen: int) -> dict[str, Numbers]:
    """Shares of draws that are distinct, and their sharpness, by model and kind of draw."""

    def of_model(_: str, model: Any) -> Numbers:
        found = {}
        kinds: dict[str, dict[str, Any]] = {
            **{f"top {s}": {"top_s": s} for s in (1, 2, 5, 10)},
            LAW_MEANS: {},
            SHARPENED: {"top_s": 1, "sharpen_steps": sharpen},
        }
        for what, options in kinds.items():
            torch.manual_seed(0)
            drawn = min(count, 100) if what == SHARPENED else count
            images = model.sample((drawn,), noise=False, **options)
            distinct = len(images.flatten(1).mul(255).round().unique(dim=0))
            found[what] = [distinct / drawn, sharpness(images)]
        return found

    measured = trained.measure(f"draws_{count}_{sharpen}", of_model, seeds=[0])
    found: dict[str, Numbers] = {"test images": {"": [1.0, sharpness(trained.data.test)]}}
    return found | {name: numbers[0] for name, numbers in measured.items()}


def report_draws(results: dict[str, Numbers], count: int) -> None:
    kinds = list(next(reversed(results.values())))
    print(
        f"\nmean images of {count} draws: share of distinct ones, and sharpness (of test images: "
        f"{results['test images'][''][1]:.2f})\n{'':>14}" + "".join(f"{k:>18}" for k in kinds)
    )
    for name, numbers in results.items():
        if name != "test images":
            cells = "".join(
                f"{f'{distinct:.0%}, {sharp:.2f}':>18}" for distinct, sharp in numbers.values()
            )
            print(f"{name:>14}{cells}")
