"""Mixtures trained with gaps in the data, and the gaps of new data filled in.

On four small tables 30 per cent of the entries are hidden at random, in training and in test
rows. Mixtures have full covariances and are trained by variational Bayes, which finds their number
of components; of four priors the one of highest bound is taken, on the training rows as each
method has them. Prints, with mean and standard error over seeds: the log-density of complete test
rows for mixtures trained on complete rows (what is lost by the gaps), with the gaps integrated
out, and with columns' means filled in; then how well hidden test entries are told from the others
of their row, against scikit-learn's imputers, by root mean squared error and by log-likelihood per
entry: log p(hidden | observed) for mixtures, and for imputers a normal around what they fill in.
Its variance, one per column, is that of their errors on training entries hidden in addition.
Writes out/mixtures/imputation_<size>.png.

    python -m benchmarks.mixtures.imputation [--quick]
"""

import itertools
import math
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris, load_wine
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer, KNNImputer, SimpleImputer
from torch import Tensor

from benchmarks.common import cli
from benchmarks.common.figures import Styles, draw_row, label_rows, method_legend, save
from benchmarks.common.store import OUT
from benchmarks.common.summary import mean_and_error, plus_minus
from benchmarks.common.tables import (
    FLOOR,
    Split,
    error_variance,
    impute,
    normal_log_prob,
    split,
)
from pyromix import ConjugatePrior, GaussianMixture, VBResult, fit_vb

# Of priors: how many points they add to a component's covariance, and to its mean.
STRENGTHS, SHRINKAGES = (1.0, 10.0), (0.01, 1.0)
MOST_COMPONENTS = 6
MIXTURES: Styles = {
    "mixture, complete training": {"color": "0.6", "marker": "o"},
    "mixture, gaps integrated out": {"color": "C0", "marker": "o"},
    "mixture, gaps filled with means": {"color": "C9", "marker": "o"},
}
IMPUTERS: Styles = {
    "SimpleImputer (mean)": {"color": "C3", "marker": "s"},
    "KNNImputer": {"color": "C1", "marker": "s"},
    "IterativeImputer": {"color": "C2", "marker": "s"},
}
METHODS: Styles = {**MIXTURES, **IMPUTERS}
MEASURES = ["density", "rmse", "log-likelihood"]


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


def choose_mixture(data: Tensor, seed: int) -> tuple[GaussianMixture, str]:
    """The mixture of highest bound, and what it is."""
    best: tuple[VBResult, str] | None = None
    for strength, shrinkage in itertools.product(STRENGTHS, SHRINKAGES):
        torch.manual_seed(seed)
        model = GaussianMixture(
            data.shape[-1],
            MOST_COMPONENTS,
            "full",
            variance_floor=FLOOR,
            missing="marginalize",
        ).double()
        prior = ConjugatePrior(strength, shrinkage)
        result = fit_vb(
            model, data, prior=prior, steps=60, tolerance=1e-3, seed=seed, progress_bar=False
        )
        if best is None or result.bound > best[0].bound:
            best = result, f"{result.num_components} ({strength:g}, {shrinkage:g})"
    assert best is not None
    return best[0].model, best[1]


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


def imputer_scores(imputer: Any, data: Split) -> dict[str, float]:
    variance = error_variance(lambda x: impute(imputer, x, x), data)
    hidden = data.test_gaps.isnan()
    error = impute(imputer, data.train_gaps, data.test_gaps) - data.test
    return {
        "density": math.nan,
        "rmse": float(error[hidden].square().mean().sqrt()),
        "log-likelihood": float(normal_log_prob(error, variance)[hidden].mean()),
    }


def scores(array: np.ndarray, seed: int) -> tuple[dict[str, dict[str, float]], list[str]]:
    """Scores of every method, and the mixtures: numbers of components, and priors."""
    torch.set_num_threads(1)  # the matrices are small; seeds share the cores
    data = split(torch.from_numpy(array), seed)
    mean_filled = torch.where(data.train_gaps.isnan(), 0.0, data.train_gaps)  # means are zero
    results, chosen = {}, []
    for name, train in zip(MIXTURES, (data.train, data.train_gaps, mean_filled), strict=True):
        model, text = choose_mixture(train, seed)
        results[name] = mixture_scores(model, data)
        chosen.append(text)
    imputers = (SimpleImputer(), KNNImputer(), IterativeImputer(random_state=seed))
    for name, imputer in zip(IMPUTERS, imputers, strict=True):
        results[name] = imputer_scores(imputer, data)
    return results, chosen


def print_table(name: str, x: Tensor, values: Tensor, chosen: list[list[str]]) -> None:
    n, dim = x.shape
    print(f"\n{name}: {n} x {dim}, mean ± standard error over {len(values)} seeds")
    print(f"{'':>32} {'test density, nats':>20} {'RMSE':>16} {'nats per entry':>18}")
    for i, method in enumerate(METHODS):
        cells = [plus_minus(values[:, i, j]) for j in range(len(MEASURES))]
        print(f"{method:>32} {cells[0]:>20} {cells[1]:>16} {cells[2]:>18}")
    for i, method in enumerate(MIXTURES):
        print(f"{method:>32}: " + ", ".join(row[i] for row in chosen))


def draw(results: dict[str, Tensor], dims: dict[str, int], path: Path) -> None:
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
    for column, ax in enumerate(axes):
        label_rows(ax, list(results))
        ax.set(title=titles[column], xlabel=labels[column])
        for row, (name, values) in enumerate(results.items()):
            shown = values[:, :, column]
            if column == 0:  # per seed, so that what differs between splits cancels
                shown = (shown[:, :1] - shown) / dims[name]
                shown[:, 0] = math.nan  # zero by construction
            draw_row(ax, row, *mean_and_error(shown), METHODS)
    axes[0].axvline(0, color="0.6", linewidth=0.8)
    method_legend(figure, METHODS, columns=3)
    save(figure, path)


def main() -> None:
    parser = cli.make_parser(__doc__, quick="two seeds, three small tables", threads=False)
    size = cli.parse(parser).size
    quick = size == "quick"
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
    dims = {name: x.shape[1] for name, x in data.items()}
    draw(results, dims, OUT / "mixtures" / f"imputation_{size}.png")


if __name__ == "__main__":
    main()
