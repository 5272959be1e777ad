"""How well draws agree with draws of a reference: the classifier two-sample test."""

__all__ = ["c2st"]

import itertools

import numpy as np
from sklearn.model_selection import KFold, cross_val_score
from sklearn.neural_network import MLPClassifier
from torch import Tensor


def c2st(reference: Tensor, draws: Tensor, judged: int = 5, seed: int = 1) -> float:
    """Accuracy of a classifier that tells draws from a reference: a half where it cannot.

    As in the package sbibm: two hidden layers of 10 D units, columns in units of the reference,
    and cross-validation with five folds.

    Args:
        reference: Draws (N, D) from the law that is right.
        draws: As many draws (N, D).
        judged: Number of folds that are judged, by classifiers of the other four. Fewer than
            five take less time: the mean has the same expectation, and is noisier.
        seed: Seed of the classifier and the parts.
    """
    dim = reference.shape[1]
    loc, scale = reference.mean(0), reference.std(0)
    points = np.concatenate([((part - loc) / scale).numpy() for part in (reference, draws)])
    labels = np.repeat([0, 1], [len(reference), len(draws)])
    classifier = MLPClassifier((10 * dim, 10 * dim), max_iter=10_000, random_state=seed)
    parts = itertools.islice(KFold(5, shuffle=True, random_state=seed).split(points), judged)
    return float(cross_val_score(classifier, points, labels, cv=list(parts)).mean())
