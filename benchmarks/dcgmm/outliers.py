"""Outlier detection by deep convolutional mixtures: images of digits, trained on classes 0 to 4.

All test images are scored; those of classes 5 to 9 are the outliers. Every architecture of the
paper's Table I is compared with flat mixtures of normals (pyromix's, trained by Adam and by
expectation maximisation), scikit-learn's isolation forest, and a normal law on principal
components: those that explain 95% of the variance, and, as a generous peer, the best of several
numbers of them, chosen on the very images that are scored. Prints

- the area under the ROC curve: a mean over seeds, a 95% interval over resampled test images, the
  range over seeds, and by how much it is above that of the best flat mixture, on the same
  resampled images;
- the same of other readings of the models: single layers, sums of layers, and the log-density of
  the law where it is exact, or with `--law` everywhere (its bound takes minutes);
- how evenly the components of the first layer are used, and how scores vary with the seed;
- localisation (localisation.py): part of another image is pasted into test images; area
  under the ROC curve over pixels of `outlier_map`, for every layer, against per-pixel deviations.

`--models "2L-c, roots"` and the like train with the published steps of precisions.

Figures out/dcgmm/outliers_<data>_<size>_*.png: curves (the paper's Fig. 3: shares of outliers
caught and of inliers kept, while c runs from -2 to 2), maps. What was trained is kept in
out/dcgmm/outliers_<data>_<size>/: a run that was stopped goes on from there, and processes may
share the work with `--models`, after which a run without prints all.

    python -m benchmarks.dcgmm.outliers [--quick | --paper] [--full]
        [--data mnist | fashion | digits] [--models NAME ...] [--steps N] [--seeds N] [--law]
        [--report]
"""

import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from sklearn.decomposition import PCA
from sklearn.ensemble import IsolationForest
from torch import Tensor

from benchmarks.common import cli
from benchmarks.common.store import Numbers, Store, beside
from benchmarks.common.training import in_chunks
from benchmarks.dcgmm.areas import area_under_curve, interval, resampled_counts
from benchmarks.dcgmm.data import INLIERS, Images
from benchmarks.dcgmm.figures import draw_curves, draw_maps
from benchmarks.dcgmm.localisation import localise, report_localisation
from benchmarks.dcgmm.models import FLATS, ROOTS, make_model, train_model
from benchmarks.dcgmm.trained import Trained, begin, key, make_parser
from pyromix.dcgmm.presets import PRESETS

FOREST, NORMAL, BEST_NORMAL = "isolation forest", "normal on PCA, 95%", "normal on PCA, best"
SCORED = [name for name, flat in FLATS.items() if flat.components < 100]
PEERS = (*SCORED, FOREST, NORMAL, BEST_NORMAL)
DIMS = (5, 10, 20, 30, 50, 80, 100, 150, 200, 300)  # of the generous peer
THRESHOLDS = torch.linspace(-2, 2, 41).tolist()
TOP, LAW = "top layer", "law"


class Setting(NamedTuple):
    """How much to train and to measure."""

    data: str
    steps: int
    seeds: int
    resamples: int
    pasted: int  # images with a part of another one


SETTINGS = {
    "quick": Setting("digits", 1_000, 1, 200, 100),
    "default": Setting("mnist", 3_000, 3, 1_000, 500),
    "paper": Setting("mnist", 15_000, 10, 1_000, 1_000),
}


# ---- scores: less for outliers ------------------------------------------------------------------


def readings(model: Any, data: Images, law: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Scores of training and of test images, by what they read off a model."""

    def by_layer(x: Tensor) -> Tensor:
        return torch.stack([v.flatten(1).sum(-1) for v in model.layer_log_likelihoods(x)], -1)

    layers = {"train": in_chunks(by_layer, data.train), "test": in_chunks(by_layer, data.test)}
    mean, deviation = layers["train"].mean(0), layers["train"].std(0)
    scores: dict[str, dict[str, Tensor]] = {}
    for part, images in (("train", data.train), ("test", data.test)):
        values = layers[part]
        read = {TOP: in_chunks(model.score, images)}
        read |= {f"layer {i + 1}": values[:, i] for i in range(values.shape[1] - 1)}
        read["sum of layers"] = values.sum(-1)
        read["sum of deviations"] = ((values - mean) / deviation).sum(-1)
        if part == "test" and (model.exact or law):
            read[LAW] = in_chunks(model.log_prob, images)
        scores[part] = read
    return scores["train"], scores["test"]


def shares(inside: Callable[[float], Tensor], outlier: Tensor) -> Numbers:
    """Shares of inliers that are kept and outliers that are caught at every threshold."""
    kept, caught = [], []
    for threshold in THRESHOLDS:
        is_inside = inside(threshold)
        kept.append(float(is_inside[~outlier].float().mean()))
        caught.append(float((~is_inside[outlier]).float().mean()))
    return {"kept": kept, "caught": caught}


def pack(train: Tensor, test: Tensor, outlier: Tensor) -> Numbers:
    """What is kept of scores that are read in one way only."""
    mean, deviation = train.mean(), train.std()
    return {"scores": {TOP: test.tolist()}} | shares(
        lambda c: test >= mean - c * deviation, outlier
    )


def score_model(model: Any, data: Images, outlier: Tensor, law: bool) -> Numbers:
    """Scores of test images, and shares by thresholds of the top layer (eq. 6)."""
    train, test = readings(model, data, law)
    mean, deviation = train[TOP].mean(), train[TOP].std()  # as `is_outlier` has them
    return {
        "scores": {reading: values.tolist() for reading, values in test.items()},
        "level": [float(mean), float(deviation)],
    } | shares(lambda c: test[TOP] >= mean - c * deviation, outlier)


def score_peer(name: str, seed: int, data: Images, outlier: Tensor, steps: int) -> Any:
    """Scores by another method, and its model if it has one that can be stored."""
    if name in FLATS:
        model, numbers = FLATS[name].train(seed, data, steps)
        scores = [
            in_chunks(lambda x: model.log_prob(x.flatten(1)), x) for x in (data.train, data.test)
        ]
        return numbers | pack(scores[0], scores[1], outlier), model
    train, test = data.train.flatten(1).numpy(), data.test.flatten(1).numpy()
    if name == FOREST:
        peers: dict[Any, Any] = {0: IsolationForest(random_state=seed)}
    elif name == NORMAL:
        peers = {0: PCA(0.95, svd_solver="full")}
    else:
        peers = {dim: PCA(dim, random_state=seed) for dim in DIMS if dim < min(train.shape)}
    best: tuple[float, Numbers] = (-1.0, {})
    for dim, peer in peers.items():
        peer.fit(train)
        scores = [torch.tensor(peer.score_samples(x)) for x in (train, test)]
        auc = float(area_under_curve(scores[1], outlier, torch.ones(1, len(outlier))))
        best = max(
            best,
            (auc, {"dim": dim} | pack(scores[0], scores[1], outlier)),
            key=lambda pair: pair[0],
        )
    return best[1], None


# ---- tables -------------------------------------------------------------------------------------


def areas(numbers: list[Numbers], reading: str, outlier: Tensor, counts: Tensor) -> Tensor:
    """Areas under the curve of every seed, shape (seeds, rows of counts)."""
    return torch.stack(
        [
            torch.cat(
                [
                    area_under_curve(torch.tensor(n["scores"][reading]), outlier, part)
                    for part in counts.split(100)
                ]
            )
            for n in numbers
        ]
    )


def best_flat(results: dict[str, list[Numbers]], outlier: Tensor) -> str | None:
    """The flat mixture with the largest mean area, if any was trained."""
    once = torch.ones(1, len(outlier))
    found = {
        n: float(areas(results[n], TOP, outlier, once).mean()) for n in SCORED if n in results
    }
    return max(found, key=found.__getitem__, default=None)


def report(
    results: dict[str, list[Numbers]], flat: str | None, outlier: Tensor, resamples: int
) -> None:
    """Prints tables; gaps are to one of the flat mixtures."""
    once, counts = torch.ones(1, len(outlier)), resampled_counts(len(outlier), resamples)
    resampled = {name: areas(n, TOP, outlier, counts).mean(0) for name, n in results.items()}
    plain = {name: areas(n, TOP, outlier, once)[:, 0] for name, n in results.items()}
    print(
        f"\narea under the ROC curve: mean over seeds, 95% over test images\n{'':>26} "
        f"{'seeds':>5} {'mean':>6} {'95%':>16} {'over seeds':>16} {'above best flat':>24}"
    )
    for name, values in plain.items():
        low, high = interval(resampled[name])
        gap = ""
        if flat and name != flat:
            ends = interval(resampled[name] - resampled[flat])
            gap = f"{values.mean() - plain[flat].mean():+.3f} [{ends[0]:+.3f}, {ends[1]:+.3f}]"
        print(
            f"{name:>26} {len(values):>5} {values.mean():>6.3f} "
            f"{f'[{low:.3f}, {high:.3f}]':>16} {values.min():>7.3f} - {values.max():.3f} {gap:>24}"
        )
    if flat:
        print(f"best flat mixture: {flat}")
    if BEST_NORMAL in results:
        print(f"best number of principal components: {results[BEST_NORMAL][0]['dim']}")

    deep = {name: n for name, n in results.items() if name in PRESETS or name in ROOTS}
    read = list(dict.fromkeys(r for n in deep.values() for r in n[0]["scores"]))
    print("\nother readings, mean over seeds\n" + f"{'':>11}" + "".join(f"{r:>19}" for r in read))
    for name, numbers in deep.items():
        cells = ""
        for reading in read:
            has = [n for n in numbers if reading in n["scores"]]
            area = f"{areas(has, reading, outlier, once).mean():.3f}" if has else ""
            cells += f"{area:>19}"
        print(f"{name:>11}{cells}")

    print(
        "\nfirst layer: least share of a component times their number, and unused ones, by seed; "
        "top layer:\nmean log-likelihood of training images by seed, and its deviation over them"
    )
    for name, numbers in deep.items():
        least = ", ".join(f"{n['least share']:.2f} ({n['unused']})" for n in numbers)
        level = ", ".join(f"{n['level'][0]:.1f}" for n in numbers)
        deviation = statistics.mean(n["level"][1] for n in numbers)
        print(f"{name:>11} {least}; {level}; {deviation:.1f}; {numbers[0]['seconds']:.0f} s")


# ---- all ----------------------------------------------------------------------------------------


def run(name: str, seed: int, data: Images, store: Store, setting: Setting, law: bool) -> None:
    """Trains and scores, unless that has been done."""
    where = key(name, seed)
    outlier = data.test_labels >= len(INLIERS)
    if name in PEERS:
        if not store.has(where):
            numbers, model = score_peer(name, seed, data, outlier, setting.steps)
            store.save(where, numbers, None if model is None else model.state_dict())
            print(f"{name}, seed {seed}", flush=True)
        return
    if not store.has(where):
        model, numbers = train_model(name, seed, data, setting.steps)
        store.save(where, numbers | score_model(model, data, outlier, law), model.state_dict())
        print(f"{name}, seed {seed}: {numbers['seconds']:.0f} s", flush=True)
    elif law and LAW not in store.numbers([where])[where]["scores"]:
        model, numbers = store.load(where, make_model(name, data)), store.numbers([where])[where]
        numbers["scores"][LAW] = in_chunks(model.log_prob, data.test).tolist()
        store.save(where, numbers)


def main() -> None:
    parser = make_parser(__doc__, [*PRESETS, *ROOTS, *PEERS])
    parser.add_argument("--law", action="store_true", help="also score by bounds of the law")
    arguments = cli.parse(parser)
    setting, seeds, data, prefix, store = begin("outliers", arguments, SETTINGS, INLIERS)
    outlier = data.test_labels >= len(INLIERS)
    if not arguments.report:
        for model in arguments.models or (*PRESETS, *PEERS):
            for seed in seeds:
                run(model, seed, data, store, setting, arguments.law)
        if arguments.models:
            return  # others may be under way: all are reported by a run without

    results = {
        name: list(store.numbers(key(name, seed) for seed in seeds).values())
        for name in (*PRESETS, *ROOTS, *PEERS)
    }
    results = {name: numbers for name, numbers in results.items() if numbers}
    flat = best_flat(results, outlier)
    report(results, flat, outlier, setting.resamples)
    trained = Trained(data, store, [n for n in results if n in PRESETS or n in FLATS], seeds)
    report_localisation(localise(trained, setting.pasted))
    curves = {
        n: numbers[0]
        for n, numbers in results.items()
        if n not in ROOTS and (n not in SCORED or n == flat)
    }
    draw_curves(curves, beside(prefix, "curves.png"))
    draw_maps(trained, beside(prefix, "maps.png"))


if __name__ == "__main__":
    main()
