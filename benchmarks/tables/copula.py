"""The Gaussian copula of the package sdv, with its densities and conditional laws.

The package fits a Beta law to every column, and correlations of normal scores. It encodes a
category by a part of the interval from zero to one, whose length is its share, and rounds
numbers to as many digits as the table has. So a category, an integer, or a column's point is an
interval of the column's normal score, and a real number is a score. The probability of several
intervals has no closed form: it is estimated by importance sampling, in which scores are drawn one
after the other from normals truncated to their intervals (Geweke, Hajivassiliou and Keane).

The package takes gaps for a category of their own, or for the mean of the column. They are filled
in from the column's known values instead.
"""

from typing import Any, ClassVar, NamedTuple

import numpy as np
import pandas as pd
from scipy.special import logsumexp, ndtr, ndtri
from scipy.stats import qmc

from benchmarks.tables.law import grid_of, predict
from benchmarks.tables.peer import (
    Peer,
    Prediction,
    choice,
    codes,
    is_choice,
    number,
    numbers,
    without_gaps,
)
from pyromix.tables import Schema

TABLE = "table"
DRAWS = 128
# Distribution functions are kept away from zero and one, as in the package.
LEAST = 1e-10
# Density of numbers out of reach, for each width of the range of known ones.
FLOOR = 1e-6
# Numbers of a real column are told apart by this share of its spread if it has no digits.
STEP = 1e-6


class Scores(NamedTuple):
    """Rows as normal scores; NaN where nothing is known."""

    low: np.ndarray
    """Lower ends of intervals, (N, D)."""
    high: np.ndarray
    """Upper ends, (N, D); those of a real number are the same."""
    log_slope: np.ndarray
    """Log-density of real numbers, less that of their scores, (N,)."""


class GaussianCopula(Peer):
    """sdv's GaussianCopulaSynthesizer with its defaults."""

    needs: ClassVar[str | None] = "sdv"

    def fit(self, frame: pd.DataFrame, schema: Schema) -> None:
        from sdv.metadata import Metadata
        from sdv.single_table import GaussianCopulaSynthesizer

        self.schema = schema
        plain = self._plain(frame)
        kinds = {
            name: {"sdtype": "categorical" if is_choice(column) else "numerical"}
            for name, column in schema.columns.items()
        }
        metadata = Metadata.load_from_dict({"tables": {TABLE: {"columns": kinds}}})
        self.synthesizer: Any = GaussianCopulaSynthesizer(metadata)
        self.synthesizer.fit({TABLE: plain})
        law = self.synthesizer._model
        place = [law.columns.index(name) for name in schema.names]
        self.correlation = np.asarray(law.correlation)[np.ix_(place, place)]
        self.marginals = {
            name: law.univariates[p] for name, p in zip(schema.names, place, strict=True)
        }
        transformers = self.synthesizer._data_processor._hyper_transformer.field_transformers
        self.parts = {
            name: self._intervals(transformers[name].intervals, name)
            for name, column in schema.columns.items()
            if is_choice(column)
        }
        self.ranges, self.steps, self.grids = {}, {}, {}
        for name, column in schema.columns.items():
            if is_choice(column):
                continue
            x = plain[name].to_numpy()
            self.ranges[name] = x.min(), x.max()
            digits = transformers[name]._rounding_digits
            step = STEP * x.std() if digits is None else 10.0**-digits
            self.steps[name] = number(column).step or step
            self.grids[name] = grid_of(number(column), numbers(frame, name))
        uniform = qmc.Sobol(len(schema.names), seed=0).random(DRAWS)
        self.uniform = np.clip(uniform, 1e-9, 1 - 1e-9)

    def _plain(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The frame as numbers and codes without gaps."""
        columns: dict[str, Any] = dict(without_gaps(frame, self.schema))
        for name, x in columns.items():
            if is_choice(self.schema[name]):
                columns[name] = [f"{int(code)}" for code in x]
        return pd.DataFrame(columns)

    def _intervals(self, found: dict[Any, Any], name: str) -> np.ndarray:
        """Ends of the scores of every value, (values, 2); empty for what did not occur."""
        size = choice(self.schema[name]).num_categories
        ends = np.full((size, 2), np.inf)
        for value, (low, high) in found.items():
            cdf = self._cdf(name, np.array([low, high]))
            # The package gives what is beyond the first and the last value to these.
            ends[int(value)] = (
                -np.inf if low <= 0 else ndtri(cdf[0]),
                np.inf if high >= 1 - 1e-9 else ndtri(cdf[1]),
            )
        return ends

    def _cdf(self, name: str, x: np.ndarray) -> np.ndarray:
        return np.clip(self.marginals[name].cdf(x), LEAST, 1 - LEAST)

    def _ends(self, name: str, x: np.ndarray, half: float) -> tuple[np.ndarray, np.ndarray]:
        """Scores of the ends of what is rounded to numbers."""
        least, most = self.ranges[name]
        low = np.where(x <= least, -np.inf, ndtri(self._cdf(name, x - half)))
        high = np.where(x >= most, np.inf, ndtri(self._cdf(name, x + half)))
        return low, high

    def _least_density(self, name: str) -> float:
        """Of numbers that a Beta law does not reach."""
        least, most = self.ranges[name]
        return FLOOR / (most - least)

    def scores(self, frame: pd.DataFrame) -> Scores:
        """Normal scores of rows."""
        shape = len(frame), len(self.schema.names)
        lows, highs, slope = np.full(shape, np.nan), np.full(shape, np.nan), np.zeros(shape[0])
        for place, (name, column) in enumerate(self.schema.columns.items()):
            if is_choice(column):
                code = codes(frame, name, self.schema)
                known = ~np.isnan(code)
                ends = self.parts[name][code[known].astype(int)]
                lows[known, place], highs[known, place] = ends.T
                continue
            own, x = number(column), numbers(frame, name)
            known = ~np.isnan(x)
            half = self.steps[name] / 2
            whole = known & ((own.step is not None) | (x == own.point))
            lows[whole, place], highs[whole, place] = self._ends(name, x[whole], half)
            rest = known & ~whole
            # Densities are means over what is rounded to a number: that of a Beta law is infinite
            # at its ends.
            cdf = [self._cdf(name, x[rest] + side * half) for side in (-1, 0, 1)]
            score = ndtri(cdf[1])
            lows[rest, place] = highs[rest, place] = score
            density = np.maximum((cdf[2] - cdf[0]) / (2 * half), self._least_density(name))
            slope[rest] += np.log(density) + 0.5 * score**2 + 0.5 * np.log(2 * np.pi)
        return Scores(lows, highs, slope)

    def _draw(
        self, low: np.ndarray, high: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Draws of the known scores of a row, their places, and log-weights (DRAWS,).

        The mean of the weights is the density of scores and the probability of intervals.
        """
        known = ~np.isnan(low)
        exact, inside = np.flatnonzero(known & (low == high)), np.flatnonzero(known & (low < high))
        impossible = known & np.isposinf(low)
        if impossible.any():  # a value that did not occur: as rare as can be
            inside = np.flatnonzero(known & (low < high) & ~impossible)
            exact = np.setdiff1d(exact, np.flatnonzero(impossible))
        weights = np.full(DRAWS, impossible.sum() * np.log(LEAST))
        y = low[exact]
        covariance = self.correlation[np.ix_(exact, exact)]
        if len(exact):
            root = np.linalg.cholesky(covariance)
            white = np.linalg.solve(root, y)
            weights -= 0.5 * white @ white + np.log(np.diag(root)).sum()
            weights -= 0.5 * len(exact) * np.log(2 * np.pi)
        gain = np.linalg.solve(covariance, self.correlation[np.ix_(exact, inside)]).T
        mean = gain @ y
        rest = self.correlation[np.ix_(inside, inside)]
        rest = rest - gain @ self.correlation[np.ix_(exact, inside)]
        scale = np.sqrt(np.diag(rest))
        mass = ndtr((high[inside] - mean) / scale) - ndtr((low[inside] - mean) / scale)
        order = np.argsort(mass)  # what is least likely comes first
        inside, mean, rest = inside[order], mean[order], rest[np.ix_(order, order)]
        root = np.linalg.cholesky(rest + 1e-9 * np.eye(len(inside)))
        noise = np.zeros((DRAWS, len(inside)))
        for j, place in enumerate(inside):
            centre = mean[j] + noise[:, :j] @ root[j, :j]
            a, b = ((end - centre) / root[j, j] for end in (low[place], high[place]))
            flip = a + b > 0  # in the left tail differences keep their digits
            a, b = np.where(flip, -b, a), np.where(flip, -a, b)
            first, last = ndtr(a), ndtr(b)
            mass = np.maximum(last - first, 1e-300)
            weights = weights + np.log(mass)
            drawn = ndtri(np.maximum(first + self.uniform[:, j] * (last - first), 1e-300))
            drawn = np.clip(drawn, np.maximum(a, -38), np.minimum(b, 38))
            noise[:, j] = np.where(flip, -drawn, drawn)
        scores = np.concatenate([np.tile(y, (DRAWS, 1)), mean + noise @ root.T], 1)
        return scores, np.concatenate([exact, inside]), weights

    def log_prob(self, frame: pd.DataFrame) -> np.ndarray:
        low, high, slope = self.scores(frame)
        logs = [logsumexp(self._draw(*row)[2]) for row in zip(low, high, strict=True)]
        return np.array(logs) - np.log(DRAWS) + slope

    def _below(self, frame: pd.DataFrame, name: str, ends: np.ndarray) -> np.ndarray:
        """Probabilities that a column's score is below ends (G,), for every row, (N, G)."""
        target = self.schema.names.index(name)
        low, high, _ = self.scores(frame)
        result = np.empty((len(frame), len(ends)))
        for index, row in enumerate(zip(low, high, strict=True)):
            scores, places, weights = self._draw(*row)
            weight = np.exp(weights - logsumexp(weights))
            across = self.correlation[places, target]
            gain = np.linalg.solve(self.correlation[np.ix_(places, places)], across)
            scale = np.sqrt(max(1 - gain @ across, 1e-9))
            centre = scores @ gain
            result[index] = weight @ ndtr((ends - centre[:, None]) / scale)
        return result

    def predict_proba(self, frame: pd.DataFrame, name: str) -> np.ndarray:
        ends = self.parts[name]
        below = self._below(frame, name, ends.reshape(-1)).reshape(-1, len(ends), 2)
        probs = np.maximum(below[..., 1] - below[..., 0], LEAST)
        return probs / probs.sum(1, keepdims=True)

    def predict_number(self, frame: pd.DataFrame, name: str) -> Prediction:
        column, grid = number(self.schema[name]), self.grids[name]
        ends = ndtri(self._cdf(name, column.map.inverse(grid)))
        if column.point is None:
            return predict(column, grid, self._below(frame, name, ends), None)
        half = self.steps[name] / 2
        point = np.array([column.point])
        low, high = self._ends(name, point, half)
        below = self._below(frame, name, np.concatenate([ends, low, high]))
        mass = np.maximum(below[:, -1] - below[:, -2], 0.0)
        above = column.map.inverse(grid) > column.point
        rest = (below[:, :-2] - mass[:, None] * above) / np.maximum(1 - mass, LEAST)[:, None]
        return predict(column, grid, rest, mass)

    def sample(self, count: int, seed: int) -> pd.DataFrame:
        np.random.seed(seed)  # noqa: NPY002, the package knows no other
        drawn = self.synthesizer.sample(count)
        drawn = drawn[TABLE] if isinstance(drawn, dict) else drawn
        columns: dict[str, Any] = {}
        for name, column in self.schema.columns.items():
            x = drawn[name].to_numpy()
            if is_choice(column):
                columns[name] = pd.Series([choice(column).values[int(code)] for code in x])
            else:
                columns[name] = x.astype(float)
        return pd.DataFrame(columns)
