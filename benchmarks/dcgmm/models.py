"""What benchmarks of deep convolutional mixtures share: images, models, training, intervals.

Images are MNIST's test set, 8,000 to train on and 2,000 to test on, or with `full` the 60,000 and
the 10,000; or all of FashionMNIST; or scikit-learn's digits, 8 pixels a side, for which the
architectures of the paper's Table I are scaled down. What was trained or measured lies in a
folder, a file for each name, and is not done again: delete the folder to start anew.
"""

import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor

from benchmarks.frmdn.training import Store
from pyromix import DCGMM, GaussianMixture, fit, fit_em
from pyromix.datasets import digits, fashion_mnist, mnist
from pyromix.dcgmm import GMM, Classifier, Folding, Pooling
from pyromix.dcgmm.presets import PRESETS

OUT = Path("out")
BATCH = 100
CHUNK = 100  # images that a model is asked about at once
INLIERS = range(5)
PRECISION = 20.0  # at which DCGMMs clip: flat mixtures get the same least variance, among others

Numbers = dict[str, Any]

ARCHITECTURES: dict[str, dict[str, Sequence[Any]]] = {
    "mnist": dict(PRESETS),
    "digits": {
        "1L": (Folding(8), GMM(25)),
        "2L-a": (Folding(6, 2), GMM(25), Folding(2), GMM(36)),
        "2L-b": (Folding(4), GMM(25), Folding(2), GMM(36)),
        "2L-c": (Folding(4, 2), GMM(25), Folding(3), GMM(36)),
        "2L-d": PRESETS["2L-d"],
        "2L-e": (Folding(2, 1), GMM(25), Folding(7), GMM(36)),
        "3L-a": (
            *(Folding(3, 1), GMM(25), Pooling(2)),
            *(Folding(2, 1), GMM(25), Pooling(2)),
            *(Folding(1), GMM(49)),
        ),
        "3L-b": PRESETS["3L-b"],
    },
}
ARCHITECTURES["fashion"] = ARCHITECTURES["mnist"]
for _name in ("2L-d", "3L-b"):
    ARCHITECTURES["digits"][_name] = (Folding(8), *PRESETS[_name][1:])

# Architectures of the table with another number of components at the top.
LARGER = {
    "1L, 100": ("1L", 100),
    "2L-b, 100": ("2L-b", 100),
    "2L-c, 100": ("2L-c", 100),
    "2L-c, 400": ("2L-c", 400),
    "2L-e, 100": ("2L-e", 100),
}
MODELS = (*PRESETS, *LARGER)

# The same, with steps of precisions as the published code takes them: it learns their roots.
ROOTS = {f"{name}, roots": name for name in PRESETS}


# ---- data ---------------------------------------------------------------------------------------


class Images(NamedTuple):
    """Images of shape (N, 1, H, W) and their labels, to train and to test with."""

    name: str
    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor

    @property
    def side(self) -> int:
        return self.train.shape[-1]

    def scaled(self, pixels: int) -> int:
        """A length that is given for images of 28 pixels."""
        return max(2, round(pixels * self.side / 28))

    def only(self, classes: Iterable[int]) -> "Images":
        """The same test images, but only some classes to train on."""
        kept = torch.isin(self.train_labels, torch.tensor(list(classes)))
        return self._replace(train=self.train[kept], train_labels=self.train_labels[kept])


def load_images(name: str, full: bool = False) -> Images:
    if name == "digits":
        images, labels = digits()
        split = 1400
    elif full or name == "fashion":
        load = fashion_mnist if name == "fashion" else mnist
        parts = [load("train"), load("test")]
        images, labels = (torch.cat(pair) for pair in zip(*parts, strict=True))
        split = len(parts[0][0])
    else:
        images, labels = mnist("test")
        split = 8000
    return Images(name, images[:split], labels[:split], images[split:], labels[split:])


# ---- models -------------------------------------------------------------------------------------


def make_model(name: str, data: Images, num_classes: int | None = None) -> Any:
    base, top = LARGER.get(name, (ROOTS.get(name, name), None))
    layers = list(ARCHITECTURES[data.name][base])
    if top is not None:
        layers[-1] = GMM(top)
    if num_classes is not None:
        layers.append(Classifier(num_classes))
    return DCGMM((1, data.side, data.side), layers)


def train_model(
    name: str, seed: int, data: Images, steps: int, num_classes: int | None = None
) -> tuple[Any, Numbers]:
    """A model that is trained and calibrated, with what its training was like."""
    torch.manual_seed(seed)
    model = make_model(name, data, num_classes)
    for layer in model.mixtures if name in ROOTS else ():
        # A step of size h down the slope in the root r moves log r^2 by 4 h / r^2 times the slope
        # in log r^2.
        layer.log_precision.register_hook(partial(root_slope, layer.log_precision))
    batch = data.train if num_classes is None else (data.train, data.train_labels)
    history = fit(model, batch, steps=steps, batch_size=BATCH, seed=seed, progress_bar=False)
    model.calibrate(data.train)
    model.eval().requires_grad_(False)
    return model, {
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": history.seconds[-1],
        "steps": len(history.losses),
        **bottom_shares(model, data.train),
    }


def root_slope(log_precision: Tensor, slope: Tensor) -> Tensor:
    """What a step down the slope in a root takes, as a slope in the logarithm of its square."""
    return slope * 4 * torch.exp(-log_precision.detach())


def bottom_shares(model: Any, images: Tensor) -> Numbers:
    """How evenly the components of the first layer are used: one times K is even.

    A share is that of patches for which the component is the most responsible one.
    """
    codes = in_chunks(lambda x: model.encode(x)[0].flatten(1), images)
    count = len(model.mixtures[0].loc)
    shares = torch.bincount(codes.flatten(), minlength=count) / codes.numel()
    return {"least share": float(shares.min() * count), "unused": int((shares == 0).sum())}


class Flat(NamedTuple):
    """A flat mixture of diagonal normals over all pixels."""

    components: int
    floor: float
    em: bool

    def make(self, data: Images) -> GaussianMixture:
        return GaussianMixture(data.side**2, self.components, variance_floor=self.floor)

    def train(self, seed: int, data: Images, steps: int) -> tuple[GaussianMixture, Numbers]:
        torch.manual_seed(seed)
        model, x = self.make(data), data.train.flatten(1)
        start = time.perf_counter()
        if self.em:
            fit_em(model, x, seed=seed, progress_bar=False)
        else:
            fit(model, x, steps=steps, batch_size=BATCH, lr=1e-2, seed=seed, progress_bar=False)
        return model.eval().requires_grad_(False), {"seconds": time.perf_counter() - start}


FLOORS = (1 / PRECISION, 0.005)
FLATS = {
    f"flat {k}, {'EM' if em else 'Adam'}, floor {floor:g}": Flat(k, floor, em)
    for k, em in ((25, False), (25, True), (36, False), (36, True), (100, True))
    for floor in FLOORS
}


def in_chunks(ask: Callable[[Tensor], Tensor], images: Tensor, size: int = CHUNK) -> Tensor:
    """What a model answers about images, some of them at a time."""
    with torch.no_grad():
        return torch.cat([ask(part) for part in images.split(size)])


# ---- results ------------------------------------------------------------------------------------


class Results(Store):
    """A store that tells what is in it."""

    def save(self, name: str, numbers: Numbers, model: Any) -> None:
        """Numbers appear last and at once: a run that is killed leaves no half of them."""
        super().save(f"{name}.new", numbers, model)
        for suffix in ("pt", "json"):
            written = self.folder / f"{name}.new.{suffix}"
            if written.exists():
                written.replace(self.folder / f"{name}.{suffix}")

    def has(self, name: str) -> bool:
        return (self.folder / f"{name}.json").exists()

    def once(self, name: str, measure: Callable[[], Numbers]) -> Numbers:
        """Numbers that are measured if they have not been."""
        if not self.has(name):
            self.save(name, measure(), None)
        return json.loads((self.folder / f"{name}.json").read_text())


def key(name: str, seed: int) -> str:
    return f"{name.replace(', ', '_').replace(' ', '-')}_{seed}"


class Trained(NamedTuple):
    """Models in a store."""

    data: Images
    store: Results
    names: Sequence[str]
    seeds: Sequence[int]
    classes: int | None = None
    """Of a classifier at the top."""

    def has(self, name: str, seed: int = 0) -> bool:
        return self.store.has(key(name, seed))

    def only(self, names: Iterable[str]) -> "Trained":
        """Some of the models."""
        return self._replace(names=[name for name in names if name in self.names])

    def load(self, name: str, seed: int = 0) -> Any:
        flat = FLATS.get(name)
        model = flat.make(self.data) if flat else make_model(name, self.data, self.classes)
        return self.store.load(key(name, seed), model)

    def all(self) -> dict[str, Any]:
        """The first seed's models, by name."""
        return {name: self.load(name) for name in self.names if self.has(name)}

    def train_flat(self, name: str, seed: int, steps: int) -> Any:
        """A flat mixture, from the store if it is there."""
        if not self.has(name, seed):
            model, numbers = FLATS[name].train(seed, self.data, steps)
            self.store.save(key(name, seed), numbers, model)
        return self.load(name, seed)

    def measure(
        self, what: str, ask: Callable[[str, Any], Numbers], seeds: Sequence[int] | None = None
    ) -> dict[str, list[Numbers]]:
        """What is found of every model, by name; a list over seeds.

        Args:
            what: Name under which results are stored.
            ask: Called with a model's name and the model, if there is no result yet.
            seeds: Some of the seeds; by default all.
        """
        found: dict[str, list[Numbers]] = {}
        for name in self.names:
            for seed in self.seeds if seeds is None else seeds:
                if self.has(name, seed):
                    found.setdefault(name, []).append(self._measure_one(what, ask, name, seed))
        return found

    def _measure_one(
        self, what: str, ask: Callable[[str, Any], Numbers], name: str, seed: int
    ) -> Numbers:
        def measure() -> Numbers:
            numbers = ask(name, self.load(name, seed))
            print(f"measured {what} of {name}, seed {seed}", flush=True)
            return numbers

        return self.store.once(f"{what}_{key(name, seed)}", measure)


def standard_error(values: Tensor) -> float:
    return float(values.std() / math.sqrt(len(values)))


def interval(values: Tensor) -> tuple[float, float]:
    """The middle 95% of resampled values."""
    low, high = values.quantile(torch.tensor([0.025, 0.975], dtype=values.dtype)).tolist()
    return low, high


def resampled_counts(num: int, times: int, seed: int = 0) -> Tensor:
    """How often each of some items is drawn with replacement, shape (times, num)."""
    generator = Generator().manual_seed(seed)
    counts = torch.zeros(times, num)
    draws = torch.randint(num, (times, num), generator=generator)
    return counts.scatter_add_(1, draws, torch.ones_like(counts))


def area_under_curve(scores: Tensor, outlier: Tensor, counts: Tensor) -> Tensor:
    """Probability that an outlier scores less than an inlier, for every row of counts.

    Args:
        scores: Less for outliers, shape (N,).
        outlier: Which are outliers, shape (N,).
        counts: How often each of them counts, shape (B, N).
    """
    values, group = scores.unique(return_inverse=True)
    totals = counts.new_zeros(2, len(counts), len(values))
    for which in (0, 1):
        members = (outlier == bool(which)).nonzero().squeeze(-1)
        totals[which].index_add_(1, group[members], counts[:, members])
    inliers, outliers = totals.double()
    below = outliers.cumsum(-1) - outliers / 2  # ties count half
    pairs = inliers.sum(-1) * outliers.sum(-1)
    return (inliers * below).sum(-1) / pairs
