"""Rows that are odd, and which of their cells."""

__all__ = ["Anomalies", "Calibration", "find_anomalies"]

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .coding import Coding
from .columns import Number
from .frames import Frame, index_of, table_of
from .mixture import Mixture, normalized


class Calibration(NamedTuple):
    """Rows that training did not see."""

    codes: np.ndarray
    """Their codes, (M, J), minus one where nothing is known."""
    log_density: np.ndarray
    """Log p(x | code) of each cell, (M, J)."""


@dataclass(frozen=True)
class Anomalies:
    """How odd rows are.

    Args:
        scores: Minus the log-density of what is known of each row, (N,), in nats.
        p_values: Shares of rows that training did not see, with the same columns known, that are
            at least as odd, (N,): of ordinary rows, 5% are below 0.05. NaN without such rows.
        cells: A frame with a p-value for each cell: how likely a value at least as odd is, given
            the rest of the row. NaN at gaps.
    """

    scores: np.ndarray
    p_values: np.ndarray
    cells: Frame

    def __repr__(self) -> str:
        few = int((self.p_values < 0.01).sum())
        return f"{type(self).__name__} of {len(self.scores)} rows, {few} with p below 0.01"


def find_anomalies(
    coding: Coding, mixture: Mixture, calibration: Calibration | None, frame: Frame
) -> Anomalies:
    """How odd rows are, and which of their cells are odd given the others.

    Args:
        coding: The codes of columns.
        mixture: The law of codes.
        calibration: Rows that training did not see.
        frame: The rows.
    """
    values = coding.schema.values(frame)
    codes, log_density = coding.encode_values(values)
    scores = -(mixture.log_prob(codes) + log_density.sum(1))
    p_values = np.full(len(codes), np.nan)
    if calibration is not None and len(calibration.codes):
        kinds, kind = np.unique(codes >= 0, axis=0, return_inverse=True)
        for number, known in enumerate(kinds):
            rows = kind.reshape(-1) == number
            p_values[rows] = _shares(mixture, calibration, known, scores[rows])
    cells = {name: np.full(len(codes), np.nan) for name in coding.names}
    for part in mixture.blocks(len(codes)):
        log_joint = mixture.log_joint(codes[part])
        for j, name in enumerate(coding.names):
            known = np.flatnonzero(codes[part, j] >= 0)
            rows = known + part.start
            rest = log_joint[known] - mixture.log_probs[j].T[codes[rows, j]]
            probs = normalized(rest) @ mixture.probs[j]
            if isinstance(coding.schema[name], Number):
                x = values[name].numbers()[rows] if name in values else np.zeros(0)
                cells[name][rows] = _both_tails(probs, *coding.bins[name].cdf(x))
            else:
                cells[name][rows] = _as_rare(probs, codes[rows, j])
    return Anomalies(scores, p_values, table_of(cells, coding.schema.library, index_of(frame)))


def _shares(
    mixture: Mixture, calibration: Calibration, known: np.ndarray, scores: np.ndarray
) -> np.ndarray:
    """Conformal p-values of scores: shares of other rows that are as odd, themselves counted."""
    others = np.asarray((calibration.codes[:, known] >= 0).all(1))
    if not others.any():
        others = np.ones(len(others), dtype=bool)
    codes = np.where(known, calibration.codes[others], -1)
    log_density = np.where(known, calibration.log_density[others], 0.0).sum(1)
    own = np.sort(-(mixture.log_prob(codes) + log_density))
    above = len(own) - np.searchsorted(own, scores, side="left")
    shares: np.ndarray = (1 + above) / (1 + len(own))
    return shares


def _as_rare(probs: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Probabilities (N,) of labels that are no likelier than codes, from those of all (N, n)."""
    own = np.take_along_axis(probs, codes[:, None], 1)
    total: np.ndarray = np.where(probs <= own * (1 + 1e-9), probs, 0.0).sum(1)
    return total


def _both_tails(probs: np.ndarray, below: np.ndarray, upto: np.ndarray) -> np.ndarray:
    """Twice the smaller tail beyond numbers, (N,), from probabilities of bins.

    Of numbers that have a probability, all of it counts.

    Args:
        probs: Probabilities of bins, (N, bins).
        below: Probability of less than the number given the bin, (N, bins).
        upto: Of at most the number.
    """
    low, high = (probs * upto).sum(1), 1 - (probs * below).sum(1)
    smaller: np.ndarray = np.clip(2 * np.minimum(low, high), 0.0, 1.0)
    return smaller
