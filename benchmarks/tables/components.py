"""Models that are mixtures: what follows from the log-densities of rows under their components."""

from abc import abstractmethod

import numpy as np
import pandas as pd
from scipy.special import log_ndtr, logsumexp

from benchmarks.tables.law import grid_of, predict
from benchmarks.tables.peer import Peer, Prediction, is_choice, number, numbers

BLOCK = 256
"""Rows that are worked on at once."""


class Rows:
    """Encoded rows: real numbers (N, D) and codes (N, C), NaN where nothing is known.

    Args:
        x: As `Schema.encode` returns them.
        dim: D.
    """

    def __init__(self, x: np.ndarray, dim: int) -> None:
        self.x, self.dim = x, dim
        self.z, self.codes = x[:, :dim], x[:, dim:]

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: slice | np.ndarray) -> "Rows":
        return Rows(self.x[index], self.dim)


class Mixture(Peer):
    """A mixture of K components.

    Given a component, columns of a few values and the codes of points do not depend on others.
    """

    grids: dict[str, np.ndarray]
    """Encoded numbers at which laws of numeric columns are told."""

    @abstractmethod
    def log_joint(self, rows: Rows) -> np.ndarray:
        """Log-density of a component and what is known of rows, (N, K), in the table's units."""

    @abstractmethod
    def code_probs(self, place: int) -> np.ndarray:
        """Probabilities of the values of a code, (K, values)."""

    @abstractmethod
    def cdf(self, rows: Rows, place: int, grid: np.ndarray, posterior: np.ndarray) -> np.ndarray:
        """Distribution functions of an encoded number that is no point, (N, G).

        Args:
            rows: Rows in which it is not known.
            place: Of the number among the real ones.
            grid: Where, (G,).
            posterior: Probabilities of components, (N, K).
        """

    def make_grids(self, frame: pd.DataFrame) -> None:
        """Chooses where laws of numeric columns are told, by the rows to train on."""
        self.grids = {
            name: grid_of(number(column), numbers(frame, name))
            for name, column in self.schema.columns.items()
            if not is_choice(column)
        }

    def rows(self, frame: pd.DataFrame) -> Rows:
        """The rows of a frame, encoded."""
        return Rows(self.schema.encode(frame).numpy(), self.schema.dim)

    def log_prob(self, frame: pd.DataFrame) -> np.ndarray:
        rows = self.rows(frame)
        return np.concatenate([logsumexp(self.log_joint(p), axis=1) for p in _blocks(rows)])

    def predict_proba(self, frame: pd.DataFrame, name: str) -> np.ndarray:
        probs = self.code_probs(self.schema.code_names.index(name))
        return np.concatenate([_softmax(self.log_joint(p)) @ probs for p in self._parts(frame)])

    def predict_number(self, frame: pd.DataFrame, name: str) -> Prediction:
        column = number(self.schema[name])
        place, grid = self.schema.real_names.index(name), self.grids[name]
        cdfs, masses = [], []
        for part in self._parts(frame):
            posterior = _softmax(self.log_joint(part))
            if column.point is not None:
                probs = self.code_probs(self.schema.code_names.index(name))
                masses.append(posterior @ probs[:, 1])
                posterior = posterior * probs[:, 0]
                posterior /= posterior.sum(1, keepdims=True)
            cdfs.append(self.cdf(part, place, grid, posterior))
        return predict(
            column, grid, np.concatenate(cdfs), np.concatenate(masses) if masses else None
        )

    def _parts(self, frame: pd.DataFrame) -> list[Rows]:
        return _blocks(self.rows(frame))


def _blocks(rows: Rows) -> list[Rows]:
    return [rows[start : start + BLOCK] for start in range(0, len(rows), BLOCK)]


def _softmax(logits: np.ndarray) -> np.ndarray:
    return np.exp(logits - logsumexp(logits, axis=1, keepdims=True))


def log_normal_mass(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Log-probability that a standard normal number is between two bounds."""
    flip = low + high > 0  # in the left tail differences keep their digits
    low, high = np.where(flip, -high, low), np.where(flip, -low, high)
    upper, lower = log_ndtr(high), log_ndtr(low)
    with np.errstate(invalid="ignore", divide="ignore"):
        return upper + np.log1p(-np.exp(np.minimum(lower - upper, 0.0)))
