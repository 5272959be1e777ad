"""What models of tables are measured by, in the same units for all.

Nats are those of a row's hidden cells given the others: minus the log-density of all known cells,
plus that of those that are kept, by the number of hidden cells.
"""

import time
import warnings
from typing import Any

import numpy as np
import pandas as pd
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict

from benchmarks.common.store import Numbers
from benchmarks.tables.boosting import never_empty
from benchmarks.tables.data import Split, hide, hide_column, known_cells, random_halves
from benchmarks.tables.peer import PROBS, Peer, codes, is_choice, number, numbers, to_steps
from pyromix.tables import Schema

BINS = 15
# Probabilities below count as this in a logarithm.
LEAST = 1e-6


def hidden_nats(peer: Peer, data: Split) -> Numbers:
    """Nats a cell of a random half of every row's cells given the other half."""
    known = known_cells(data.test, data.schema)
    hidden = random_halves(known)
    count = hidden.sum(1)
    start = time.perf_counter()
    all_known = peer.log_prob(data.test)
    seconds = (time.perf_counter() - start) / len(data.test)
    kept = peer.log_prob(hide(data.test, hidden))
    nats = (kept - all_known)[count > 0] / count[count > 0]
    whole = -all_known / known.sum(1)
    return {
        "nats": float(nats.mean()),
        "nats_error": float(nats.std(ddof=1) / np.sqrt(len(nats))),
        "nats_median": float(np.median(nats)),
        "nats_by_row": np.round(nats, 4).tolist(),
        "joint_nats": float(whole.mean()),
        "joint_nats_error": float(whole.std(ddof=1) / np.sqrt(len(whole))),
        "density_seconds_a_row": seconds,
    }


def predictions(peer: Peer, data: Split) -> dict[str, Numbers]:
    """How well every column is predicted from all others, by its name."""
    results = {}
    for name, column in data.schema.columns.items():
        measure = _choice_scores if is_choice(column) else _number_scores
        try:
            results[name] = measure(peer, data, name)
        except NotImplementedError:
            continue
    return results


def _choice_scores(peer: Peer, data: Split, name: str) -> Numbers:
    code = codes(data.test, name, data.schema)
    known = ~np.isnan(code)
    rows = hide_column(data.test[known], name)
    start = time.perf_counter()
    probs = peer.predict_proba(rows, name)
    seconds = (time.perf_counter() - start) / len(rows)
    y = code[known].astype(int)
    chosen = np.maximum(probs[np.arange(len(y)), y], LEAST)
    return {
        "kind": "choice",
        "auc": _auc(y, probs),
        "log_loss": float(-np.log(chosen).mean()),
        "accuracy": float((probs.argmax(1) == y).mean()),
        "calibration_error": calibration_error(y, probs),
        "seconds_a_row": seconds,
    }


def _auc(y: np.ndarray, probs: np.ndarray) -> float | None:
    """Area under the curve; of more than two values, the mean over each against the rest."""
    sizes = np.bincount(y, minlength=probs.shape[1])
    values = [1] if probs.shape[1] == 2 else range(probs.shape[1])
    areas = [
        roc_auc_score(y == value, probs[:, value]) for value in values if 0 < sizes[value] < len(y)
    ]
    return float(np.mean(areas)) if areas else None


def calibration_error(y: np.ndarray, probs: np.ndarray) -> float:
    """Expected calibration error, in bins of the same number of rows.

    Of two values, that of the probability of the second; of more, of the likeliest.
    """
    if probs.shape[1] == 2:
        said, true = probs[:, 1], y == 1
    else:
        said, true = probs.max(1), probs.argmax(1) == y
    order = np.argsort(said, kind="stable")
    errors = [
        len(part) * abs(said[part].mean() - true[part].mean())
        for part in np.array_split(order, BINS)
        if len(part)
    ]
    return float(sum(errors) / len(y))


def _number_scores(peer: Peer, data: Split, name: str) -> Numbers:
    x = numbers(data.test, name)
    known = ~np.isnan(x)
    rows, x = hide_column(data.test[known], name), x[known]
    start = time.perf_counter()
    found = peer.predict_number(rows, name)
    seconds = (time.perf_counter() - start) / len(rows)
    seen = numbers(data.train, name)
    seen = seen[~np.isnan(seen)]
    constant = np.quantile(seen, PROBS, method="inverted_cdf")
    result = {
        "kind": "number",
        "rmse": _rmse(x, found.mean),
        "relative_rmse": _rmse(x, found.mean) / _rmse(x, np.full(len(x), seen.mean())),
        "seconds_a_row": seconds,
    }
    if found.quantiles is not None:
        crps = crps_of(x, found.quantiles)
        inside = (found.quantiles[:, 0] <= x) & (x <= found.quantiles[:, -1])
        result |= {
            "crps": crps,
            "relative_crps": crps / crps_of(x, np.tile(constant, (len(x), 1))),
            "cover": float(inside.mean()),
        }
    return result


def _rmse(x: np.ndarray, mean: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(x - mean))))


def crps_of(x: np.ndarray, quantiles: np.ndarray) -> float:
    """Continuous ranked probability score: twice the mean of the pinball losses of quantiles."""
    over = x[:, None] - quantiles
    return float(2 * np.maximum(PROBS * over, (PROBS - 1) * over).mean())


def two_sample_auc(peer: Peer, data: Split) -> Numbers:
    """How well boosted trees tell synthetic rows from real ones, by cross-validation.

    Half is best. Synthetic rows get the gaps of real ones: no model is asked where gaps are.
    """
    start = time.perf_counter()
    drawn = peer.sample(len(data.test), seed=0)
    seconds = (time.perf_counter() - start) / len(drawn)
    gaps = ~known_cells(data.test, data.schema)
    real, drawn = (
        _features(hide(frame[data.schema.names], gaps), data.schema)
        for frame in (data.test, drawn)
    )
    x = never_empty(np.concatenate([real, drawn]))
    y = np.repeat([0, 1], [len(real), len(drawn)])
    kinds = [is_choice(column) for column in data.schema.columns.values()]
    order = np.random.default_rng(0).permutation(len(x))
    model = HistGradientBoostingClassifier(categorical_features=kinds, random_state=0)
    said = cross_val_predict(model, x[order], y[order], cv=5, method="predict_proba")[:, 1]
    return {
        "two_sample_auc": float(roc_auc_score(y[order], said)),
        "sample_seconds_a_row": seconds,
    }


def _features(frame: pd.DataFrame, schema: Schema) -> np.ndarray:
    parts = []
    for name, column in schema.columns.items():
        if is_choice(column):
            parts.append(codes(frame, name, schema))
            continue
        parts.append(to_steps(number(column), numbers(frame, name)))
    return np.stack(parts, 1)


def everything(peer: Peer, data: Split) -> dict[str, Any]:
    """All measures of a model that is trained."""
    result: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Column .* has values that the schema", UserWarning)
        if peer.has_density:
            result |= hidden_nats(peer, data)
        result["columns"] = predictions(peer, data)
        if peer.has_samples:
            result |= two_sample_auc(peer, data)
    return result
