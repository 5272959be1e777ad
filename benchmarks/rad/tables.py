"""RAD on small tables, against couplings of other kinds and a normal: where data are few.

Two tables that scikit-learn brings along: 30 measurements of 569 tumours (breast cancer), some of
which nearly follow from others, and 13 of 178 wines. All models see standardised columns, or
columns whitened by the covariance of the training part. Couplings get about as many parameters as
RAD, and a start near the identity. Of each of five random splits, 60% are trained on, 20% decide
on when to stop and on the weight decay (the same candidates for all), and 20% are scored. Prints
held-out nats a point of standardised columns, mean and standard error over splits, and the
median; the weight decay taken in each; and the seconds that all training took.

    python -m benchmarks.rad.tables [--quick]
"""

import itertools
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.transforms import spline_coupling
from sklearn.datasets import load_breast_cancer, load_wine
from torch import Generator, Tensor

from benchmarks.common import cli
from benchmarks.common.couplings import alternating
from benchmarks.common.summary import standard_error
from benchmarks.common.training import closest_size, num_parameters
from benchmarks.rad.planar_flows import AffineCouplings
from pyromix import RAD, Flow, fit

TABLES = {"breast cancer": load_breast_cancer, "wine": load_wine}
DECAYS = (0.0, 1.0)
LR = 1e-3
BATCH = 64
NUM_LAYERS = 6
HIDDEN = 16  # of RAD


class SplineCouplings(Flow):
    """Pyro's spline couplings: each layer transforms both halves, so that half as many do."""

    def __init__(self, dim: int, num_layers: int, hidden: int) -> None:
        def make(dim: int, split: int) -> Any:
            return spline_coupling(dim, split, [hidden], count_bins=4, bound=4.0)

        base = dist.Normal(torch.zeros(dim), torch.ones(dim)).to_event(1)
        super().__init__(base, alternating(dim, num_layers, make))


def closest(make: Callable[[int], Any], target: int) -> Callable[[], Any]:
    """A model of the width whose number of parameters comes closest to a target."""
    first, second = (num_parameters(make(width)) for width in (1, 2))
    # Parameters grow by the same number with every unit.
    width = closest_size(lambda width: first + (width - 1) * (second - first), target)
    return partial(make, width)


def models(dim: int) -> dict[str, Callable[[], Any]]:
    rad = partial(RAD, dim, NUM_LAYERS, (HIDDEN,))
    target = num_parameters(rad())
    return {
        "RAD": rad,
        "affine couplings": closest(lambda h: AffineCouplings(dim, NUM_LAYERS, (h,)), target),
        "spline couplings": closest(lambda h: SplineCouplings(dim, NUM_LAYERS // 2, h), target),
    }


def split(x: Tensor, seed: int) -> Sequence[Tensor]:
    """Standardised training, validation and test parts."""
    x = x[torch.randperm(len(x), generator=Generator().manual_seed(seed))]
    sizes = [round(0.6 * len(x)), round(0.2 * len(x))]
    parts = x.split([*sizes, len(x) - sum(sizes)])
    loc, scale = parts[0].mean(0), parts[0].std(0, correction=0)
    return [(part - loc) / scale for part in parts]


def whiten(parts: Sequence[Tensor]) -> tuple[Sequence[Tensor], float]:
    """Parts without correlations, and the log-determinant of the map, to add to log-densities."""
    factor = torch.linalg.cholesky(shrunk_covariance(parts[0], 0.01))
    white = [torch.linalg.solve_triangular(factor, part.T, upper=False).T for part in parts]
    return white, -float(factor.diagonal().log().sum())


def shrunk_covariance(x: Tensor, weight: float) -> Tensor:
    """Of standardised columns, shrunk towards the identity."""
    return (1 - weight) * x.T @ x / len(x) + weight * torch.eye(x.shape[-1])


def train(make: Callable[[], Any], parts: Sequence[Tensor], decay: float, steps: int) -> Any:
    torch.manual_seed(0)
    model = make()
    history = fit(
        model, parts[0], steps=steps, batch_size=BATCH, lr=LR,
        optimizer=partial(torch.optim.AdamW, weight_decay=decay), gradient_clip=10.0,
        validation=parts[1], validation_every=20, patience=8, seed=0, progress_bar=False,
    )  # fmt: skip
    return min(history.validation_losses), model


def normal_nats(parts: Sequence[Tensor]) -> float:
    """Of a full normal, whose covariance is shrunk as validation wants it."""
    train, validation, test = parts
    loc = torch.zeros(train.shape[-1])
    candidates = [
        dist.MultivariateNormal(loc, shrunk_covariance(train, weight))
        for weight in (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
    ]
    best = max(candidates, key=lambda law: float(law.log_prob(validation).mean()))
    return float(best.log_prob(test).mean())


def compare(name: str, num_splits: int, steps: int) -> None:
    x = torch.tensor(TABLES[name]().data, dtype=torch.get_default_dtype())
    splits = [split(x, seed) for seed in range(num_splits)]
    print(f"\n{name}: {len(x)} x {x.shape[-1]}, {len(splits[0][0])} to train on")
    print(
        f"{'':>12} {'':>18} {'parameters':>10} {'held-out nats':>18} {'median':>8}   "
        "weight decays; seconds"
    )

    def row(view: str, label: str, count: str, nats: list[float], rest: str) -> None:
        error = standard_error(torch.tensor(nats))
        print(
            f"{view:>12} {label:>18} {count:>10} {statistics.mean(nats):>10.2f} ± {error:<5.2f} "
            f"{statistics.median(nats):>8.2f}   {rest}",
            flush=True,
        )

    row("", "normal", "", [normal_nats(parts) for parts in splits], "covariance shrunk")
    views = {
        "whitened": [whiten(parts) for parts in splits],
        "standardised": [(parts, 0.0) for parts in splits],
    }
    for (view, data), (label, make) in itertools.product(
        views.items(), models(x.shape[-1]).items()
    ):
        start, nats, chosen = time.perf_counter(), [], []
        for parts, log_det in data:
            runs = {decay: train(make, parts, decay, steps) for decay in DECAYS}
            best = min(runs, key=lambda decay: runs[decay][0])
            chosen.append(f"{best:g}")
            with torch.no_grad():
                nats.append(float(runs[best][1].log_prob(parts[2]).mean()) + log_det)
        seconds = time.perf_counter() - start
        count = str(num_parameters(make()))
        row(view, label, count, nats, f"{', '.join(chosen)}; {seconds:.0f} s")


def main() -> None:
    arguments = cli.parse(cli.make_parser(__doc__, quick="one split, few steps"))
    warnings.filterwarnings("ignore", category=UserWarning)
    for name in TABLES:
        compare(name, *((1, 100) if arguments.size == "quick" else (5, 3000)))


if __name__ == "__main__":
    main()
