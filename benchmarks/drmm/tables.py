"""Any column of a mixed table from the others: deep residual mixtures on real columns and codes.

Wine, breast cancer and diabetes, of 178 to 569 rows, with their class as a categorical column (for
diabetes: sex, and the quartile of the target as class). 30 per cent of the entries are hidden at
random, in the rows to train on and in those held out. Models are trained on all columns, with gaps
integrated out. Layers and components, maps, smallest scale and shrinkage are chosen by
cross-validation within the training rows: models are trained on three quarters, and entries
that are hidden in addition in the last one are scored given what is left of their rows. A
setting that is far behind the best on the first folds is given up. Held-out rows take no part.

Printed, with mean and standard error over seeds:

- hidden real entries: root mean squared error, in standard deviations of the columns, of
  conditional means; and nats per entry, log p(hidden | observed).
- hidden codes: how many are guessed, and the mean of minus the log-probability of the true one.
- the class alone, of all held-out rows, their other columns known but for the gaps.

Deep residual mixtures with the setting that was chosen:

- DRMM: one, trained on all training rows.
- 4 DRMMs: the average of the densities of those that cross-validation trained.

The others:

- mixture: a Gaussian mixture with full covariances, number of components by BIC, on the real
  columns alone. It knows no categorical ones.
- SimpleImputer: means; most frequent codes, with their frequencies for probabilities.
- KNNImputer, IterativeImputer: codes enter as indicator columns, missing all together, of every
  category but the first; what is filled in is clipped to [0.01, 1] and normalised for
  probabilities. Real entries have a normal around what is filled in, whose variance, one per
  column, is that of errors on training entries that are hidden in addition.
- logistic regression (scikit-learn's penalty) of the class on the other columns, filled in by
  IterativeImputer or KNNImputer, trained on the rows whose class is known.

Columns of small tables depend on each other, and a layer or two of few components with triangular
maps follow them; shrinkage keeps these from following chance. A model of all columns is not
trained to tell classes: of 31 columns, the class is one. (The lists of settings below were put
together on these tables: cross-validation chooses among what is known to be worth a try.)

Writes out/drmm/tables_<size>.png, and keeps what was measured in out/drmm/tables_<size>/.

    python -m benchmarks.drmm.tables [--quick | --paper]
"""

import math
import time
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_breast_cancer, load_diabetes, load_wine
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer, KNNImputer, SimpleImputer
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn.functional import one_hot

from benchmarks.common import cli
from benchmarks.common.figures import Styles, draw_row, label_rows, method_legend, save
from benchmarks.common.store import OUT, Numbers, Store
from benchmarks.common.summary import mean_and_error, plus_minus
from benchmarks.common.tables import (
    Split,
    error_variance,
    fit_mixture,
    hide,
    impute,
    normal_log_prob,
    split,
)
from pyromix import DRMM, fit

LEAST = 0.01  # probability of what imputers take for impossible
MEASURES = ("RMSE", "nats", "codes right", "log-loss", "class right", "class log-loss")
METHODS: Styles = {
    "DRMM": {"color": "C0", "marker": "o"},
    "4 DRMMs": {"color": "C9", "marker": "o"},
    "mixture": {"color": "0.55", "marker": "o"},
    "SimpleImputer": {"color": "C3", "marker": "s"},
    "KNNImputer": {"color": "C1", "marker": "s"},
    "IterativeImputer": {"color": "C2", "marker": "s"},
    "logistic, KNN": {"color": "C1", "marker": "^"},
    "logistic, Iterative": {"color": "C2", "marker": "^"},
}


class Table(NamedTuple):
    """Real columns, then codes."""

    x: Tensor
    dim: int
    categories: tuple[int, ...]


class Setting(NamedTuple):
    """What is chosen by cross-validation."""

    num_layers: int
    num_components: int
    scale_floor: float
    shrinkage: float = 0.0
    maps: str = "triangular"
    lr: float = 0.015

    def __str__(self) -> str:
        """Layers x components, maps, floor, shrinkage and learning rate."""
        shape = f"{self.num_layers} x {self.num_components} {self.maps}"
        return f"{shape} {self.scale_floor:g} {self.shrinkage:g} {self.lr:g}"


def tables() -> dict[str, Table]:
    wine, cancer, diabetes = load_wine(), load_breast_cancer(), load_diabetes()
    quartile = np.digitize(diabetes.target, np.quantile(diabetes.target, [0.25, 0.5, 0.75]))
    sex = (diabetes.data[:, 1] > 0).astype(int)
    parts = {
        "wine": (wine.data, [wine.target]),
        "diabetes": (np.delete(diabetes.data, 1, axis=1), [sex, quartile]),
        "breast cancer": (cancer.data, [cancer.target]),
    }
    result = {}
    for name, (real, codes) in parts.items():
        x = torch.from_numpy(np.column_stack([real, *codes])).float()
        result[name] = Table(x, real.shape[1], tuple(int(code.max()) + 1 for code in codes))
    return result


# ---- deep residual mixtures ---


FEW = [Setting(1, 2, 0.1, 0.1), Setting(2, 2, 0.1, 0.02), Setting(2, 4, 0.1, maps="shift")]
MANY = [
    Setting(1, 4, 0.1, 0.1),
    Setting(1, 2, 0.1, 0.1),
    Setting(2, 2, 0.1, 0.1),
    Setting(2, 2, 0.1, 0.02),
    Setting(1, 2, 0.03, 0.0, lr=0.03),
    Setting(2, 2, 0.03, 0.003, lr=0.03),
    Setting(2, 4, 0.1, maps="shift"),
]
MORE = [
    Setting(layers, components, floor, shrinkage)
    for layers, components in ((1, 8), (2, 4), (3, 2))
    for floor in (0.03, 0.1)
    for shrinkage in (0.0, 0.02, 0.1)
]
SETTINGS = {"quick": FEW, "default": MANY, "paper": MANY + MORE}
STEPS = {"quick": 100, "default": 200, "paper": 600}
FOLDS = 4
HOPELESS = 0.15  # nats per entry behind the best setting on the same folds


def train(table: Table, setting: Setting, gaps: Tensor, steps: int) -> DRMM:
    torch.manual_seed(0)
    options = setting._asdict()
    lr = options.pop("lr")
    model = DRMM(table.dim, categories=table.categories, missing="marginalize", **options)
    fit(model, gaps, steps=steps, batch_size=64, lr=lr, seed=0, progress_bar=False)
    return model


def hidden_density(model: DRMM, gaps: Tensor) -> float:
    """Mean log-density of entries that are hidden in addition, given what is left of a row."""
    torch.manual_seed(0)
    fewer = [hide(gaps) for _ in range(3)]
    count = sum(int((few.isnan() & ~gaps.isnan()).sum()) for few in fewer)
    with torch.no_grad():
        whole = model.log_prob(gaps).sum()
        return sum(float(whole - model.log_prob(few).sum()) for few in fewer) / count


def choose(table: Table, gaps: Tensor, size: str) -> tuple[dict[str, list[DRMM]], Setting]:
    """Models with the setting that cross-validation finds best: of all rows, and of the folds."""
    fold = torch.arange(len(gaps)) % FOLDS
    best: tuple[Setting, list[float], list[DRMM]] | None = None
    for setting in SETTINGS[size]:
        models: list[DRMM] = []
        behind: list[float] = []
        densities: list[float] = []
        for f in range(FOLDS):
            models.append(train(table, setting, gaps[fold != f], STEPS[size]))
            densities.append(hidden_density(models[-1], gaps[fold == f]))
            if best is not None:
                behind.append(best[1][f] - densities[f])
                if sum(behind) > HOPELESS * len(behind):
                    break
        else:
            if sum(behind) <= 0:
                best = setting, densities, models
    assert best is not None
    setting, _, models = best
    return {"DRMM": [train(table, setting, gaps, STEPS[size])], f"{FOLDS} DRMMs": models}, setting


class Guess(NamedTuple):
    """Of all entries of held-out rows; NaN, or none, where a method has nothing to say."""

    real: Tensor  # (N, D)
    nats: float  # per hidden real entry
    codes: list[Tensor]  # (N, categories) for every categorical column
    classes: Tensor | None  # (N, categories) for the last column, others known but for gaps


@torch.no_grad()
def ask_models(models: list[DRMM], table: Table, data: Split) -> Guess:
    """Of the average of the densities of models: in each row they count by what they say of it."""
    dim, last = table.dim, table.x.shape[1] - 1
    gaps = data.test_gaps
    share = log_densities(models, gaps).softmax(0)  # (models, N)
    real = torch.stack([model.impute(gaps)[:, :dim] for model in models])
    codes = [
        torch.stack([model.predict_proba(gaps, dim + j) for model in models])
        for j in range(len(table.categories))
    ]
    others = gaps.clone()
    others[:, last] = math.nan
    without = log_densities(models, others).softmax(0)
    # The hidden real entries, given all that is observed, codes too.
    filled = gaps.clone()
    filled[:, :dim] = data.test[:, :dim]
    gain = log_densities(models, filled).logsumexp(0) - log_densities(models, gaps).logsumexp(0)
    return Guess(
        average(share, real),
        float(gain.sum() / gaps[:, :dim].isnan().sum()),
        [average(share, probs) for probs in codes],
        average(without, codes[-1]),
    )


def log_densities(models: list[DRMM], x: Tensor) -> Tensor:
    return torch.stack([model.log_prob(x) for model in models])


def average(share: Tensor, values: Tensor) -> Tensor:
    """Values (models, N, n), weighted with shares (models, N)."""
    return (share.unsqueeze(-1) * values).sum(0)


# ---- the others ---


def ask_mixture(table: Table, data: Split, seed: int) -> Guess:
    dim = table.dim
    train = data.train_gaps[:, :dim].double()
    train = train[~train.isnan().all(-1)]
    fitted = [fit_mixture(train, k, "full", seed) for k in (1, 2, 3)]
    _, best = min(fitted, key=lambda pair: pair[0])
    test, gaps = data.test[:, :dim].double(), data.test_gaps[:, :dim].double()
    with torch.no_grad():
        gain = best.log_prob(test) - best.log_prob(gaps)
        real = best.impute(gaps).float()
    return Guess(real, float(gain.sum() / gaps.isnan().sum()), [], None)


def indicators(table: Table, x: Tensor) -> Tensor:
    """Codes as columns of zeros and ones, all NaN where missing; none for the first category.

    With one for each category, every column would follow from the others, and regressions would
    give back what they start from.
    """
    parts = [x[:, : table.dim]]
    for j, count in enumerate(table.categories):
        code = x[:, table.dim + j]
        column = one_hot(code.nan_to_num(0.0).long(), count)[:, 1:].float()
        parts.append(column.masked_fill(code.isnan().unsqueeze(-1), math.nan))
    return torch.cat(parts, 1)


def fill(imputer: Any, table: Table, train: Tensor, x: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Real columns, and probabilities of codes."""
    filled = impute(imputer, indicators(table, train), indicators(table, x)).float()
    real, *codes = filled.split([table.dim, *(count - 1 for count in table.categories)], 1)
    probs = [torch.cat([1 - code.sum(-1, keepdim=True), code], -1) for code in codes]
    probs = [p.clamp(LEAST, 1.0) for p in probs]
    return real, [p / p.sum(-1, keepdim=True) for p in probs]


def ask_imputer(imputer: Any, table: Table, data: Split) -> Guess:
    dim = table.dim
    variance = error_variance(lambda x: fill(imputer, table, x, x)[0], data)
    real, codes = fill(imputer, table, data.train_gaps, data.test_gaps)
    hidden = data.test_gaps[:, :dim].isnan()
    normal = normal_log_prob(real - data.test[:, :dim], variance)
    without = data.test_gaps.clone()
    without[:, -1] = math.nan
    classes = fill(imputer, table, data.train_gaps, without)[1][-1]
    return Guess(real, float(normal[hidden].mean()), codes, classes)


def ask_logistic(imputer: Any, table: Table, data: Split) -> Guess:
    """Classes alone."""
    others = Table(table.x[:, :-1], table.dim, table.categories[:-1])
    train, test = data.train_gaps[:, :-1], data.test_gaps[:, :-1]
    known = ~data.train_gaps[:, -1].isnan()
    label = data.train_gaps[known, -1].long().numpy()
    inputs = [
        torch.cat([real, *codes], 1)
        for real, codes in (fill(imputer, others, train, x) for x in (train[known], test))
    ]
    model = LogisticRegression(max_iter=2000).fit(inputs[0].numpy(), label)
    probs = torch.from_numpy(model.predict_proba(inputs[1].numpy())).float()
    return Guess(torch.full_like(data.test[:, : table.dim], math.nan), math.nan, [], probs)


# ---- scores ---


def score(guess: Guess, table: Table, data: Split) -> list[float]:
    """In the order of `MEASURES`."""
    hidden = data.test_gaps.isnan()
    real = (guess.real - data.test[:, : table.dim])[hidden[:, : table.dim]]
    right, loss = [], []
    for j, probs in enumerate(guess.codes):
        rows = hidden[:, table.dim + j]
        true = data.test[rows, table.dim + j].long()
        right.append(probs[rows].argmax(-1) == true)
        loss.append(-probs[rows].gather(1, true.unsqueeze(-1)).log())
    result = [float(real.square().mean().sqrt()), guess.nats]
    result += (
        [float(torch.cat(right).float().mean()), float(torch.cat(loss).mean())]
        if right
        else [math.nan, math.nan]
    )
    if guess.classes is None:
        return [*result, math.nan, math.nan]
    true = data.test[:, -1].long()
    accuracy = (guess.classes.argmax(-1) == true).float().mean()
    return [
        *result,
        float(accuracy),
        float(-guess.classes.gather(1, true.unsqueeze(-1)).log().mean()),
    ]


def run(table: Table, seed: int, size: str) -> Numbers:
    """Scores of every method, and the setting that was chosen."""
    data = split(table.x, seed, table.dim)
    chosen, setting = choose(table, data.train_gaps, size)
    iterative = IterativeImputer(random_state=seed)
    guesses = {
        **{name: ask_models(models, table, data) for name, models in chosen.items()},
        "mixture": ask_mixture(table, data, seed),
        # The mean of an indicator is its frequency.
        "SimpleImputer": ask_imputer(SimpleImputer(), table, data),
        "KNNImputer": ask_imputer(KNNImputer(), table, data),
        "IterativeImputer": ask_imputer(iterative, table, data),
        "logistic, KNN": ask_logistic(KNNImputer(), table, data),
        "logistic, Iterative": ask_logistic(iterative, table, data),
    }
    scores = [score(guesses[name], table, data) for name in METHODS]
    return {"scores": scores, "setting": str(setting)}


def print_table(name: str, table: Table, values: Tensor, chosen: list[str]) -> None:
    rows, columns = table.x.shape
    print(
        f"\n{name}: {rows} rows, {table.dim} real columns, {columns - table.dim} categorical; "
        f"mean ± standard error over {len(values)} seeds"
    )
    print(f"{'':>20}" + "".join(f"{measure:>17}" for measure in MEASURES))
    for i, method in enumerate(METHODS):
        cells = [plus_minus(values[:, i, j]) for j in range(len(MEASURES))]
        print(f"{method:>20}" + "".join(f"{cell:>17}" for cell in cells))
    for method in list(METHODS)[:2]:
        apart = values[:, list(METHODS).index(method)] - values[:, list(METHODS).index("mixture")]
        cells = [plus_minus(apart[:, j], sign="+") for j in range(2)]
        print(f"  {method} less mixture, seed by seed: RMSE {cells[0]}, nats {cells[1]}")
    print(
        "  chosen (layers x components, maps, floor, shrinkage, rate): " + "; ".join(chosen),
        flush=True,
    )


def draw(results: dict[str, Tensor], path: Path) -> None:
    figure, axes = plt.subplots(2, 3, figsize=(12, 6.4), layout="constrained", sharey=True)
    titles = {
        "RMSE": "hidden real entries:\n← better    RMSE",
        "nats": "hidden real entries:\nnats per entry    better →",
        "codes right": "hidden codes:\nshare guessed    better →",
        "log-loss": "hidden codes:\n← better    log-loss",
        "class right": "the class:\nshare guessed    better →",
        "class log-loss": "the class:\n← better    log-loss",
    }
    order = ("RMSE", "codes right", "class right", "nats", "log-loss", "class log-loss")
    for ax, measure in zip(axes.flat, order, strict=True):
        label_rows(ax, list(results))
        ax.set_xlabel(titles[measure])
        for row, values in enumerate(results.values()):
            shown = values[:, :, MEASURES.index(measure)]
            draw_row(ax, row, *mean_and_error(shown), METHODS)
    method_legend(figure, METHODS, columns=len(METHODS))
    save(figure, path)


def main() -> None:
    parser = cli.make_parser(
        __doc__,
        quick="two seeds, few models",
        paper="more models, more steps: hours",
        threads=False,
    )
    size = cli.parse(parser).size
    start = time.perf_counter()
    folder = OUT / "drmm" / f"tables_{size}"
    store, results = Store(folder), {}
    for name, table in tables().items():
        runs = [
            store.once(f"{name} {seed}", lambda table=table, seed=seed: run(table, seed, size))
            for seed in range(2 if size == "quick" else 5)
        ]
        results[name] = torch.tensor([r["scores"] for r in runs])
        print_table(name, table, results[name], [r["setting"] for r in runs])
    draw(results, folder.with_suffix(".png"))
    print(f"{time.perf_counter() - start:.0f} s in all")


if __name__ == "__main__":
    main()
