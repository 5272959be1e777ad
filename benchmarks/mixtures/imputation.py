"""Mixtures trained with gaps in the data, and the gaps of new data filled in.

On four small tables 30 per cent of the entries are hidden at random, in training and in test
rows. Number of components and covariance are chosen by BIC on the training rows as each method
has them. Prints, with mean and standard error over seeds: the log-density of complete test rows
for mixtures trained on complete rows (what is lost by the gaps), with the gaps integrated out,
and with columns' means filled in; then how well hidden test entries are told from the others of
their row, against scikit-learn's imputers, by root mean squared error and by log-likelihood per
entry: log p(hidden | observed) for mixtures, and for imputers a normal around what they fill in.
Its variance, one per column, is that of their errors on training entries hidden in addition.
Draws docs/images/imputation.png.

With gaps, BIC can choose more than the data carry: on breast cancer, two full covariances of 30
nearly collinear columns overfit, and imputation by chained regressions is better.

    python -m benchmarks.mixtures.imputation [--quick]
"""

import argparse
import math
import warnings
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris, load_wine
from sklearn.exceptions import ConvergenceWarning
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer, KNNImputer, SimpleImputer
from torch import Tensor

from pyromix import GaussianMixture, fit_em

HIDDEN = 0.3
FLOOR = 1e-3  # of standardised columns, some of which are rounded to a tenth of a deviation
# With their least number of components; more are tried until BIC rises. (With one component a
# tied covariance is a full one.)
COVARIANCES = {"diagonal": 1, "tied": 1, "full": 2}
MOST_COMPONENTS = 8
MIXTURES = {
    "mixture, complete training": "0.6",
    "mixture, gaps integrated out": "C0",
    "mixture, gaps filled with means": "C9",
}
IMPUTERS = {
    "SimpleImputer (mean)": "C3",
    "KNNImputer": "C1",
    "IterativeImputer": "C2",
}
METHODS = {**MIXTURES, **IMPUTERS}
MEASURES = ["density", "rmse", "log-likelihood"]


class Split(NamedTuple):
    """Rows with all their entries, and with NaN for those that are hidden."""

    train: Tensor
    train_gaps: Tensor
    test: Tensor
    test_gaps: Tensor


def tables() -> dict[str, Tensor]:
    loaders = {
        "iris": load_iris,
        "wine": load_wine,
        "diabetes": load_diabetes,
        "breast cancer": load_breast_cancer,
    }
    data = {name: torch.tensor(load().data) for name, load in loaders.items()}
    # Sex has two values, of which a density can be as high as the floor lets it be.
    data["diabetes"] = data["diabetes"][:, [d for d in range(10) if d != 1]]
    return data


def hide(x: Tensor) -> Tensor:
    return x.masked_fill(torch.rand(x.shape) < HIDDEN, math.nan)


def split(x: Tensor, seed: int) -> Split:
    """Seven tenths of the rows to train on; units are those of the observed training entries."""
    torch.manual_seed(seed)
    x = x[torch.randperm(len(x))]
    count = round(0.7 * len(x))
    gaps = hide(x)
    mean = gaps[:count].nanmean(0)
    x, gaps = x - mean, gaps - mean
    scale = gaps[:count].square().nanmean(0).sqrt()
    x, gaps = x / scale, gaps / scale
    return Split(x[:count], gaps[:count], x[count:], gaps[count:])


def choose_mixture(data: Tensor, seed: int) -> GaussianMixture:
    """The mixture of lowest BIC."""
    best: tuple[float, GaussianMixture] | None = None
    for covariance, least in COVARIANCES.items():
        lowest = math.inf
        for k in range(least, MOST_COMPONENTS + 1):
            torch.manual_seed(seed)
            model = GaussianMixture(
                data.shape[-1], k, covariance, variance_floor=FLOOR, missing="marginalize"
            ).double()
            fit_em(model, data, steps=60, tolerance=1e-3, seed=seed, progress_bar=False)
            criterion = model.bic(data)
            if best is None or criterion < best[0]:
                best = criterion, model
            if criterion > lowest:
                break
            lowest = criterion
    assert best is not None
    return best[1]


def mixture_scores(model: GaussianMixture, data: Split) -> dict[str, float]:
    hidden = data.test_gaps.isnan()
    with torch.no_grad():
        density = model.log_prob(data.test)
        conditional = (density - model.log_prob(data.test_gaps)).sum() / hidden.sum()
        error = (model.impute(data.test_gaps) - data.test)[hidden]
    return {
        "density": float(density.mean()),
        "rmse": float(error.square().mean().sqrt()),
        "log-likelihood": float(conditional),
    }


def fill(imputer: Any, train: Tensor, x: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        imputer.fit(train.numpy())
    return torch.from_numpy(imputer.transform(x.numpy()))


def imputer_scores(imputer: Any, data: Split) -> dict[str, float]:
    torch.manual_seed(0)
    fewer = hide(data.train_gaps)
    probe = fewer.isnan() & ~data.train_gaps.isnan()
    error = (fill(imputer, fewer, fewer) - data.train).masked_fill(~probe, math.nan)
    variance = error.square().nanmean(0).clamp(min=FLOOR)
    hidden = data.test_gaps.isnan()
    error = fill(imputer, data.train_gaps, data.test_gaps) - data.test
    normal = -0.5 * (error.square() / variance + (2 * math.pi * variance).log())
    return {
        "density": math.nan,
        "rmse": float(error[hidden].square().mean().sqrt()),
        "log-likelihood": float(normal[hidden].mean()),
    }


def scores(array: np.ndarray, seed: int) -> tuple[dict[str, dict[str, float]], list[str]]:
    """Scores of every method, and which mixtures BIC chose."""
    torch.set_num_threads(1)  # the matrices are small; seeds share the cores
    data = split(torch.from_numpy(array), seed)
    mean_filled = torch.where(data.train_gaps.isnan(), 0.0, data.train_gaps)  # means are zero
    results, chosen = {}, []
    for name, train in zip(MIXTURES, (data.train, data.train_gaps, mean_filled), strict=True):
        model = choose_mixture(train, seed)
        results[name] = mixture_scores(model, data)
        chosen.append(f"{model.num_components} {model.covariance}")
    imputers = (SimpleImputer(), KNNImputer(), IterativeImputer(random_state=seed))
    for name, imputer in zip(IMPUTERS, imputers, strict=True):
        results[name] = imputer_scores(imputer, data)
    return results, chosen


def print_table(name: str, x: Tensor, values: Tensor, chosen: list[list[str]]) -> None:
    n, dim = x.shape
    print(f"\n{name}: {n} x {dim}, mean ± standard error over {len(values)} seeds")
    print(f"{'':>32} {'test density, nats':>20} {'RMSE':>16} {'nats per entry':>18}")
    mean, error = summary(values)
    for i, method in enumerate(METHODS):
        cells = [
            "" if mean[i, j].isnan() else f"{mean[i, j]:.3f} ± {error[i, j]:.3f}"
            for j in range(len(MEASURES))
        ]
        print(f"{method:>32} {cells[0]:>20} {cells[1]:>16} {cells[2]:>18}")
    for i, method in enumerate(MIXTURES):
        print(f"{method:>32}: " + ", ".join(row[i] for row in chosen))


def summary(values: Tensor) -> tuple[Tensor, Tensor]:
    return values.mean(0), values.std(0) / math.sqrt(len(values))


def draw(results: dict[str, Tensor], dims: dict[str, int]) -> None:
    figure, axes = plt.subplots(1, 3, figsize=(12, 4.6), layout="constrained", sharey=True)
    titles = [
        "density of complete test rows,\nloss against complete training",
        "error of imputed test entries",
        "log-likelihood of hidden test entries",
    ]
    labels = [
        "← better    nats per coordinate",
        "← better    RMSE, standard deviations",
        "nats per entry    better →",
    ]
    for column, axis in enumerate(axes):
        for row, (name, values) in enumerate(results.items()):
            draw_row(axis, column, row, values, dims[name])
        axis.set(title=titles[column], xlabel=labels[column])
        axis.grid(axis="x", alpha=0.3)
        axis.tick_params(axis="y", length=0)
        for row in range(1, len(results)):
            axis.axhline(row - 0.5, color="0.8", linewidth=0.8)
    axes[0].set_yticks(range(len(results)), results)
    axes[0].set_ylim(len(results) - 0.5, -0.5)
    handles, names = axes[1].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=3, frameon=False)
    figure.savefig("docs/images/imputation.png", dpi=130)
    print("\nwrote docs/images/imputation.png")


def draw_row(axis: Axes, column: int, row: int, values: Tensor, dim: int) -> None:
    values = values[:, :, column]
    if column == 0:  # per seed, so that what differs between splits cancels
        values = (values[:, :1] - values) / dim
    mean, error = summary(values)
    for i, (method, color) in enumerate(METHODS.items()):
        if mean[i].isnan() or (column == 0 and i == 0):
            continue
        y = row + 0.13 * (i - (len(METHODS) - 1) / 2)
        axis.errorbar(
            mean[i], y, xerr=error[i], fmt="o" if method in MIXTURES else "s", color=color,
            markersize=5, capsize=2, label=method if row == 0 else None,
        )  # fmt: skip
    if column == 0:
        axis.axvline(0, color="0.6", linewidth=0.8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="two seeds, three small tables")
    quick = parser.parse_args().quick
    data = tables()
    if quick:
        data.pop("breast cancer")
    results = {}
    for name, x in data.items():
        seeds = range(2 if quick else 5)
        with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
            runs = list(pool.map(scores, [x.numpy()] * len(seeds), seeds))
        rows = [[[r[m][k] for k in MEASURES] for m in METHODS] for r, _ in runs]
        results[name] = torch.tensor(rows)
        print_table(name, x, results[name], [chosen for _, chosen in runs])
    if not quick:
        draw(results, {name: x.shape[1] for name, x in data.items()})


if __name__ == "__main__":
    main()
