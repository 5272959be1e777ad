"""Gradient-boosted trees, a model for each column: they predict, and have no density."""

from typing import Any, ClassVar

import numpy as np
import pandas as pd
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.metrics import log_loss

from benchmarks.tables.peer import PROBS, Peer, Prediction, codes, is_choice, numbers
from pyromix.tables import Schema

# Rows to train models of quantiles on, at most: each column has one for each quantile.
QUANTILE_ROWS = 8000
# Of classifiers. The defaults diverge where there are many classes, some of them rare.
SETTINGS: tuple[dict[str, Any], ...] = (
    {"learning_rate": 0.1, "l2_regularization": 5.0},
    {"learning_rate": 0.05, "l2_regularization": 1.0, "max_leaf_nodes": 8},
)
HELD_OUT = 0.1


class Boosting(Peer):
    """scikit-learn's HistGradientBoosting.

    Classifiers for columns of a few values, with early stopping and the better of two settings;
    for numbers a model of the mean, and one of each quantile, whose answers are sorted, with the
    defaults.
    """

    has_density: ClassVar[bool] = False
    has_samples: ClassVar[bool] = False

    def fit(self, frame: pd.DataFrame, schema: Schema) -> None:
        self.schema = schema
        self.models: dict[str, list[Any]] = {}
        for name, column in schema.columns.items():
            x = self._features(frame, name)
            if is_choice(column):
                self.models[name] = [
                    _classifier(x, codes(frame, name, schema), self._is_code(name))
                ]
                continue
            y, kinds = numbers(frame, name), self._is_code(name)
            known = ~np.isnan(y)
            mean = HistGradientBoostingRegressor(categorical_features=kinds, random_state=0)
            models = [mean.fit(never_empty(x[known]), y[known])]
            some = np.flatnonzero(known)[:QUANTILE_ROWS]
            for prob in PROBS:
                model = HistGradientBoostingRegressor(
                    loss="quantile", quantile=prob, categorical_features=kinds, random_state=0
                )
                models.append(model.fit(never_empty(x[some]), y[some]))
            self.models[name] = models

    def _is_code(self, target: str) -> list[bool]:
        return [
            is_choice(column) for name, column in self.schema.columns.items() if name != target
        ]

    def _features(self, frame: pd.DataFrame, target: str) -> np.ndarray:
        """Numbers and codes of all other columns, NaN for gaps."""
        parts = [
            codes(frame, name, self.schema) if is_choice(column) else numbers(frame, name)
            for name, column in self.schema.columns.items()
            if name != target
        ]
        return np.stack(parts, 1)

    def predict_proba(self, frame: pd.DataFrame, name: str) -> np.ndarray:
        model = self.models[name][0]
        found = model.predict_proba(self._features(frame, name))
        size = self.schema[name].num_categories
        probs = np.zeros((len(found), size))
        probs[:, model.classes_.astype(int)] = found
        return probs

    def predict_number(self, frame: pd.DataFrame, name: str) -> Prediction:
        mean, *quantiles = self.models[name]
        x = self._features(frame, name)
        levels = np.stack([model.predict(x) for model in quantiles], 1)
        return Prediction(mean.predict(x), np.sort(levels, 1))


def never_empty(x: np.ndarray) -> np.ndarray:
    """Features with zeros in columns of which nothing is known: scikit-learn takes no others."""
    return np.where(np.isnan(x).all(0), 0.0, x)


def _classifier(x: np.ndarray, y: np.ndarray, kinds: list[bool]) -> Any:
    """The setting under which held-out values are likeliest; training stops when it is best."""
    known = ~np.isnan(y)
    x, y = x[known], y[known]
    order = np.random.default_rng(0).permutation(len(y))
    held_out = np.zeros(len(y), dtype=bool)
    held_out[order[: round(HELD_OUT * len(y))]] = True
    held_out &= np.isin(y, y[~held_out])  # rare values are trained on
    best, chosen = np.inf, None
    for setting in SETTINGS:
        model = HistGradientBoostingClassifier(
            categorical_features=kinds,
            max_iter=300,
            early_stopping=True,
            random_state=0,
            **setting,
        )
        model.fit(never_empty(x[~held_out]), y[~held_out], X_val=x[held_out], y_val=y[held_out])
        loss = log_loss(y[held_out], model.predict_proba(x[held_out]), labels=model.classes_)
        if chosen is None or loss < best:
            best, chosen = loss, model
    return chosen
