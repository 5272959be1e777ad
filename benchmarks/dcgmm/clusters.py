"""How compact and how far apart clusters are, by deep convolutional mixtures and peers."""

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_mutual_info_score, davies_bouldin_score
from torch import Tensor

from benchmarks.common.store import Numbers
from benchmarks.common.training import in_chunks
from benchmarks.dcgmm.models import FLATS
from benchmarks.dcgmm.trained import Trained, key

KMEANS = "k-means, 36"
FLAT = "flat 36, EM, floor 0.05"


def dunn_index(x: Tensor, labels: Tensor) -> float:
    """The least distance between clusters over the largest one within: more is better.

    Both are Euclidean distances of two points, the nearest and the farthest ones.
    """
    between, within = float("inf"), 0.0
    for rows, own in zip(x.split(500), labels.split(500), strict=True):
        distances = torch.cdist(rows, x)
        same = own.unsqueeze(-1) == labels
        within = max(within, float(distances[same].max()))
        if not same.all():
            between = min(between, float(distances[~same].min()))
    return between / within if within else float("nan")


def score_clusters(x: Tensor, labels: Tensor, truth: Tensor) -> Numbers:
    """Indices of a clustering, and how much it tells about digits, which it did not see."""
    occupied = len(labels.unique())
    if occupied < 2:
        return {"Dunn": 0.0, "DB": float("inf"), "AMI": 0.0, "clusters": occupied}
    return {
        "Dunn": dunn_index(x, labels),
        "DB": float(davies_bouldin_score(x.numpy(), labels.numpy())),
        "AMI": float(adjusted_mutual_info_score(truth.numpy(), labels.numpy())),
        "clusters": occupied,
    }


def measure_clusters(trained: Trained) -> dict[str, list[Numbers]]:
    """Indices by model, a list over seeds."""
    data = trained.data
    x, truth = data.test.flatten(1), data.test_labels

    def by_kmeans(seed: int) -> Numbers:
        peer = KMeans(36, n_init=1, random_state=seed).fit(data.train.flatten(1).numpy())
        return score_clusters(x, torch.tensor(peer.predict(x.numpy())).long(), truth)

    def by_flat(seed: int) -> Numbers:
        flat, _ = FLATS[FLAT].train(seed, data, steps=0)
        return score_clusters(x, flat.responsibilities(x).argmax(-1), truth)

    def by_model(_: str, model: Any) -> Numbers:
        return score_clusters(x, in_chunks(model.cluster, data.test), truth)

    peers: dict[str, Callable[[int], Numbers]] = {KMEANS: by_kmeans, FLAT: by_flat}
    found = {
        name: [
            trained.store.once(f"clusters_{key(name, seed)}", partial(ask, seed))
            for seed in trained.seeds
        ]
        for name, ask in peers.items()
    }
    return found | trained.measure("clusters", by_model)


def report_clusters(results: dict[str, list[Numbers]]) -> None:
    print(
        "\nclusters of test images: worst and mean over seeds (Dunn: more is better; Davies-"
        "Bouldin: less;\nAMI: mutual information with the digits, adjusted for chance)\n"
        f"{'':>22} {'seeds':>5} {'Dunn':>15} {'Davies-Bouldin':>16} {'AMI':>6} {'occupied':>9}"
    )
    for name, numbers in results.items():
        values = {what: [n[what] for n in numbers] for what in numbers[0]}
        mean = {what: statistics.mean(v) for what, v in values.items()}
        print(
            f"{name:>22} {len(numbers):>5} {min(values['Dunn']):>7.3f} {mean['Dunn']:>7.3f} "
            f"{max(values['DB']):>8.2f} {mean['DB']:>7.2f} {mean['AMI']:>6.2f} "
            f"{mean['clusters']:>9.1f}"
        )
    print(
        "paper, all of MNIST, worst of ten: Dunn 0.14, 0.14, 0.13, 0.12, 0.19, 0.15, 0.15 and "
        "Davies-Bouldin\n2.59, 2.73, 3.06, 2.62, 2.57, 2.65, 2.53 (Table II as it was copied has "
        "seven values for its eight architectures)"
    )
