"""What scikit-learn fills gaps in with: nearest neighbours, and regressions in turns.

Both see numbers encoded by the schema, the point's among them, and an indicator of every category.
They predict, and have no density.
"""

import warnings
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from scipy.special import ndtri
from sklearn.exceptions import ConvergenceWarning
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer
from sklearn.neighbors import NearestNeighbors

from benchmarks.tables.peer import (
    PROBS,
    Peer,
    Prediction,
    codes,
    is_choice,
    number,
    numbers,
    to_steps,
)
from pyromix.tables import Schema

# Neighbours: what is tried, by held-out rows.
NEIGHBOURS = (10, 30, 100)
HELD_OUT = 300
# Weight of an indicator beside a number of unit variance.
INDICATOR = 0.7
# Rows that regressions are trained on at most, and turns.
ITERATIVE_ROWS, TURNS = 8000, 3
# Probability of what a regression takes for impossible.
LEAST = 0.01


class Features:
    """Frames as matrices of numbers and indicators, NaN for gaps.

    Args:
        frame: Rows to train on.
        schema: The columns.
        first: The first category that has an indicator.
    """

    def __init__(self, frame: pd.DataFrame, schema: Schema, first: int = 0) -> None:
        self.schema, self.first, self.units, self.places = schema, first, {}, {}
        start = 0
        for name, column in schema.columns.items():
            size = column.num_categories - first if is_choice(column) else 1
            self.places[name] = np.arange(start, start + size)
            start += size
            if not is_choice(column):
                u = self._stretched(frame, name)
                self.units[name] = np.nanmean(u), max(np.nanstd(u), 1e-9)

    def __call__(self, frame: pd.DataFrame) -> np.ndarray:
        """The matrix of a frame, (N, features)."""
        parts = []
        for name, column in self.schema.columns.items():
            if is_choice(column):
                code = codes(frame, name, self.schema)
                hits = (code[:, None] == np.arange(self.first, column.num_categories)).astype(
                    float
                )
                hits[np.isnan(code)] = np.nan
                parts.append(INDICATOR * hits)
            else:
                loc, scale = self.units[name]
                parts.append((self._stretched(frame, name)[:, None] - loc) / scale)
        return np.concatenate(parts, 1)

    def _stretched(self, frame: pd.DataFrame, name: str) -> np.ndarray:
        """Numbers encoded where the map reaches them all; a point may lie at its end."""
        x, column = numbers(frame, name), number(self.schema[name])
        if column.map.form == "log" and column.point is not None:
            return np.log(np.maximum(x - min(column.map.low, column.point - 1), 1e-9))
        return column.map.forward(x)

    def numbers_of(self, z: np.ndarray, name: str) -> np.ndarray:
        """Values of a numeric column of features; steps are rounded."""
        column = number(self.schema[name])
        loc, scale = self.units[name]
        u = loc + scale * z
        if column.map.form == "log" and column.point is not None:
            x = np.exp(u) + min(column.map.low, column.point - 1)
        else:
            x = column.map.inverse(u)
        return to_steps(column, x)


class NearestNeighbours(Peer):
    """Values of the nearest rows that know them, by Euclidean distance; gaps count as means.

    How many is chosen by the squared error of what is predicted of held-out rows.
    """

    has_density: ClassVar[bool] = False
    has_samples: ClassVar[bool] = False

    def fit(self, frame: pd.DataFrame, schema: Schema) -> None:
        self.schema, self.frame = schema, frame
        self.features = Features(frame, schema)
        x = self.features(frame)
        self.means = np.nanmean(x, 0)
        self.x = self._filled(x)
        self.count = NEIGHBOURS[0]
        losses = []
        rows = np.random.default_rng(0).permutation(len(frame))[:HELD_OUT]
        for count in NEIGHBOURS:
            losses.append(self._loss(x, rows, count))
        self.count = NEIGHBOURS[int(np.argmin(losses))]

    def _filled(self, x: np.ndarray) -> np.ndarray:
        return np.where(np.isnan(x), self.means, x)

    def _loss(self, x: np.ndarray, rows: np.ndarray, count: int) -> float:
        """Mean squared error of features of rows, each left out of the rows to look in."""
        loss = []
        for places in self.features.places.values():
            index = self._nearest(self.x, self._filled(x[rows]), places, count + 1)[:, 1:]
            told = self.x[index][..., places].mean(1)
            loss.append(np.nanmean(np.square(told - x[rows][:, places])))
        return float(np.mean(loss))

    def _nearest(
        self, among: np.ndarray, x: np.ndarray, left_out: np.ndarray, count: int
    ) -> np.ndarray:
        keep = np.setdiff1d(np.arange(x.shape[1]), left_out)
        search = NearestNeighbors(n_neighbors=min(count, len(among)), algorithm="brute")
        return search.fit(among[:, keep]).kneighbors(x[:, keep], return_distance=False)

    def _neighbours(self, frame: pd.DataFrame, name: str, values: np.ndarray) -> np.ndarray:
        """Values of a column in the nearest rows in which it is known, (N, count)."""
        x, known = self._filled(self.features(frame)), ~np.isnan(values)
        index = self._nearest(self.x[known], x, self.features.places[name], self.count)
        return values[known][index]

    def predict_proba(self, frame: pd.DataFrame, name: str) -> np.ndarray:
        own = codes(self.frame, name, self.schema)
        found = self._neighbours(frame, name, own)
        size = self.schema[name].num_categories
        share = (np.arange(size) == own[~np.isnan(own), None]).mean(0)
        hits = (found[..., None] == np.arange(size)).sum(1) + share  # one row like all
        return hits / hits.sum(1, keepdims=True)

    def predict_number(self, frame: pd.DataFrame, name: str) -> Prediction:
        found = np.sort(self._neighbours(frame, name, numbers(self.frame, name)), 1)
        place = np.ceil(PROBS * found.shape[1] - 1e-9).astype(int) - 1
        return Prediction(found.mean(1), found[:, place])


class Iterative(Peer):
    """IterativeImputer, with a normal law around a number that is filled in.

    Its variance, one a column, is that of errors in the rows to train on. What is filled in for
    indicators is clipped, and normalised for probabilities. The first category has no indicator:
    else each would be one less the others, which are missing together with it.
    """

    has_density: ClassVar[bool] = False
    has_samples: ClassVar[bool] = False

    def fit(self, frame: pd.DataFrame, schema: Schema) -> None:
        self.schema = schema
        self.features = Features(frame, schema, first=1)
        x = self.features(frame)[:ITERATIVE_ROWS]
        self.imputer: Any = IterativeImputer(
            max_iter=TURNS, random_state=0, keep_empty_features=True
        )
        # Regressions of a column are trained where others are known: hide some of each row.
        rng, gaps = np.random.default_rng(0), x.copy()
        for places in self.features.places.values():
            gaps[np.ix_(rng.random(len(x)) < 0.1, places)] = np.nan
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            filled = self.imputer.fit_transform(gaps)
        self.spread = {}
        for name, places in self.features.places.items():
            hidden = np.isnan(gaps[:, places[0]]) & ~np.isnan(x[:, places[0]])
            error = (filled - x)[hidden, places[0]]
            self.spread[name] = float(np.sqrt(np.square(error).mean())) if hidden.any() else 1.0

    def _told(self, frame: pd.DataFrame, name: str) -> np.ndarray:
        x = self.features(frame)
        return self.imputer.transform(x)[:, self.features.places[name]]

    def predict_proba(self, frame: pd.DataFrame, name: str) -> np.ndarray:
        told = self._told(frame, name) / INDICATOR
        told = np.concatenate([1 - told.sum(1, keepdims=True), told], 1)
        probs = np.clip(told, LEAST, 1)
        return probs / probs.sum(1, keepdims=True)

    def predict_number(self, frame: pd.DataFrame, name: str) -> Prediction:
        mean = self._told(frame, name)
        levels = mean + self.spread[name] * ndtri(PROBS)
        return Prediction(
            self.features.numbers_of(mean[:, 0], name), self.features.numbers_of(levels, name)
        )
