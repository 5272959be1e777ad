"""Deep convolutional mixtures and flat mixtures of images, and their training.

For scikit-learn's digits, 8 pixels a side, the architectures of the paper's Table I are scaled
down.
"""

import time
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.common.store import Numbers
from benchmarks.common.training import in_chunks, num_parameters
from benchmarks.dcgmm.data import Images
from pyromix import DCGMM, GaussianMixture, fit, fit_em
from pyromix.dcgmm import GMM, Classifier, Folding, Pooling
from pyromix.dcgmm.presets import PRESETS

BATCH = 100
PRECISION = 20.0  # at which DCGMMs clip: flat mixtures get the same least variance, among others

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
        "parameters": num_parameters(model),
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
