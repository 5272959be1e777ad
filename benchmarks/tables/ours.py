"""A residual mixture of a table, pyromix's own."""

from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from torch import Generator

from benchmarks.tables.peer import PROBS, Peer, Prediction, number
from pyromix.tables import Schema, TableModel
from pyromix.tables.columns import Date

# Rows that are asked about at once.
BLOCK = 500


class ResidualMixture(Peer):
    """`TableModel` with its defaults.

    Args:
        seconds: To train for; by default the default time.
    """

    has_density: ClassVar[bool] = True
    targets: ClassVar[tuple[str, ...]] = ()
    shape: ClassVar[dict[str, Any]] = {}

    def __init__(self, seconds: float | None = None) -> None:
        self.seconds = seconds

    def fit(self, frame: pd.DataFrame, schema: Schema) -> None:
        self.schema = schema
        limit = {} if self.seconds is None else {"time_budget": self.seconds}
        self.model = TableModel.fit(
            frame, schema, targets=self.targets, seed=0, progress_bar=False, **limit, **self.shape
        )

    def log_prob(self, frame: pd.DataFrame) -> np.ndarray:
        parts = [self.model.log_prob(part) for part in _blocks(frame)]
        return torch.cat(parts).double().numpy()

    def predict_proba(self, frame: pd.DataFrame, name: str) -> np.ndarray:
        values = list(self.schema[name].values)  # type: ignore[attr-defined]
        parts = [
            self._law(part, name).predict_proba(name)[values].to_numpy() for part in _blocks(frame)
        ]
        return np.concatenate(parts)

    def predict_number(self, frame: pd.DataFrame, name: str) -> Prediction:
        is_date = isinstance(number(self.schema[name]), Date)
        means, quantiles = [], []
        for part in _blocks(frame):
            law = self._law(part, name)
            found = law.quantile(name, PROBS.tolist())
            mean = law.mean(name)
            quantiles.append(_days(found) if is_date else found)
            means.append(_days(mean) if is_date else mean)
        return Prediction(np.concatenate(means), np.concatenate(quantiles))

    def _law(self, frame: pd.DataFrame, name: str):  # noqa: ANN202
        return self.model.condition(frame.drop(columns=name))

    def sample(self, count: int, seed: int) -> pd.DataFrame:
        return self.model.sample(count, generator=Generator().manual_seed(seed))


class ForIncome(ResidualMixture):
    """`TableModel` of adult that is told which column will be predicted."""

    targets: ClassVar[tuple[str, ...]] = ("income",)


class TwoLayers(ResidualMixture):
    """`TableModel` of two layers of 64 components: as many codes as six layers of four have."""

    shape: ClassVar[dict[str, Any]] = {"num_layers": 2, "num_components": 64}


def _blocks(frame: pd.DataFrame) -> list[pd.DataFrame]:
    return [frame.iloc[start : start + BLOCK] for start in range(0, len(frame), BLOCK)]


def _days(dates: np.ndarray) -> np.ndarray:
    return (dates.astype("datetime64[us]") - np.datetime64(0, "us")) / np.timedelta64(1, "D")
