"""What every model of a table is asked for."""

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

import numpy as np
import pandas as pd

from pyromix.tables import Schema
from pyromix.tables.columns import Choice, Column, Number
from pyromix.tables.frames import read

PROBS = np.arange(1, 20) / 20
"""Probabilities of the quantiles that are asked for: 0.05, 0.10 up to 0.95."""


class Prediction(NamedTuple):
    """What is predicted of a numeric column, in its units; dates in days."""

    mean: np.ndarray
    """Shape (N,)."""
    quantiles: np.ndarray | None
    """Shape (N, len(PROBS)); None where a method has none."""


class Peer(ABC):
    """A model of the rows of a table.

    Attributes:
        has_density: Whether it has `log_prob`.
        has_samples: Whether it has `sample`.
        needs: The package that it needs, beside those of the project.
    """

    has_density: ClassVar[bool] = True
    has_samples: ClassVar[bool] = True
    needs: ClassVar[str | None] = None

    schema: Schema

    @abstractmethod
    def fit(self, frame: pd.DataFrame, schema: Schema) -> None:
        """Trains the model."""

    def log_prob(self, frame: pd.DataFrame) -> np.ndarray:
        """Log-density of what is known of every row, (N,), in the table's units.

        Of integers, categories and points it is a log-mass.
        """
        raise NotImplementedError

    @abstractmethod
    def predict_proba(self, frame: pd.DataFrame, name: str) -> np.ndarray:
        """Probabilities of the values of a column, (N, values), given the others.

        Args:
            frame: Rows in which nothing is known of the column.
            name: Of the column, which the schema takes for one of a few values.
        """

    @abstractmethod
    def predict_number(self, frame: pd.DataFrame, name: str) -> Prediction:
        """Mean and quantiles of a numeric column, given the others.

        Args:
            frame: Rows in which nothing is known of the column.
            name: Of the column.
        """

    def sample(self, count: int, seed: int) -> pd.DataFrame:
        """Synthetic rows."""
        raise NotImplementedError


def numbers(frame: pd.DataFrame, name: str) -> np.ndarray:
    """Values of a numeric column, (N,), NaN where they are not known; dates in days."""
    (values,) = read(frame[[name]])
    return values.numbers()


def codes(frame: pd.DataFrame, name: str, schema: Schema) -> np.ndarray:
    """Codes of a column of a few values, (N,), NaN where they are not known."""
    column = choice(schema[name])
    (values,) = read(frame[[name]])
    return column.encode(values).codes[:, 0]


def is_choice(column: Column) -> bool:
    """Whether a column takes a few values."""
    return isinstance(column, Choice)


def choice(column: Column) -> Choice:
    """The column, which is one of a few values."""
    assert isinstance(column, Choice)
    return column


def without_gaps(frame: pd.DataFrame, schema: Schema) -> dict[str, np.ndarray]:
    """Numbers and codes of all columns, gaps filled with values that other rows have."""
    rng, columns = np.random.default_rng(0), {}
    for name, column in schema.columns.items():
        x = codes(frame, name, schema) if is_choice(column) else numbers(frame, name)
        gaps = np.isnan(x)
        x[gaps] = rng.choice(x[~gaps], gaps.sum())
        columns[name] = x
    return columns


def to_steps(column: Number, x: np.ndarray) -> np.ndarray:
    """Numbers rounded to multiples of the column's step, if it has one."""
    step = column.step
    return x if step is None else np.round(x / step) * step


def number(column: Column) -> Number:
    """The column, which is numeric."""
    assert isinstance(column, Number)
    return column
