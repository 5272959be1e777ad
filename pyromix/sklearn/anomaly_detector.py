"""Rows that are odd among those of training."""

__all__ = ["MixtureAnomalyDetector"]

from collections.abc import Mapping
from numbers import Real
from typing import Any, Self

import numpy as np
from sklearn.base import OutlierMixin

from ..tables import Schema
from ..tables.columns import Column
from ..tables.frames import Frame
from ..tables.mixture import log_sum
from .base import MixtureEstimator

# Rows of training by which a column's share of a score is measured.
MEASURED = 1000


class MixtureAnomalyDetector(OutlierMixin, MixtureEstimator):
    r"""A detector of odd rows: those of low density under a mixture over all columns.

    .. math:: s(x) = \log p(x_{known}) + \sum_{j \, missing} a_j

    a_j is what column j adds to the log-density of rows of training, on average, so that rows with
    gaps compare with others. A label that training did not see is as odd as one row of training.

    Args:
        contamination: Share of the rows of training that count as odd, above 0 and up to 0.5.
        schema: As all others, see `MixtureEstimator`.
        num_layers: See there.
        num_components: See there.
        steps: See there.
        members: See there.
        shrinkage: See there.
        max_bins: See there.
        time_budget: See there.
        random_state: See there.
        verbose: See there.

    Attributes:
        offset_: The score below which rows are odd.
        model_: The `TableModel`. Its method `anomaly` says which cells of a row are odd.
        n_features_in_: Number of columns of X.
        feature_names_in_: Their names, if X was a frame whose columns have names.

    Example:
        >>> X = np.repeat(np.random.default_rng(0).normal(size=(300, 1)), 2, 1)
        >>> model = MixtureAnomalyDetector(
        ...     contamination=0.05, num_components=12, steps=60, members=1, random_state=0
        ... )
        >>> model.fit(X).predict([[1, 1], [1.5, -1.5], [1, np.nan]])
        array([ 1, -1,  1])
    """

    def __init__(
        self,
        *,
        contamination: float = 0.1,
        schema: Schema | Mapping[str, Column] | None = None,
        num_layers: int | None = None,
        num_components: int | None = None,
        steps: int | None = None,
        members: int | None = None,
        shrinkage: float | None = None,
        max_bins: int = 48,
        time_budget: float | None = None,
        random_state: Any = None,
        verbose: bool = False,
    ) -> None:
        super().__init__(
            schema=schema,
            num_layers=num_layers,
            num_components=num_components,
            steps=steps,
            members=members,
            shrinkage=shrinkage,
            max_bins=max_bins,
            time_budget=time_budget,
            random_state=random_state,
            verbose=verbose,
        )
        self.contamination = contamination

    def fit(self, X: Any, y: Any = None) -> Self:  # noqa: ARG002
        """Trains the model.

        Args:
            X: Rows, (n_samples, n_features), maybe with gaps, and maybe with odd ones among them.
            y: Not looked at.

        Raises:
            ValueError: If they do not fit.
        """
        share = self.contamination
        if not isinstance(share, Real) or not 0 < share <= 0.5:
            raise ValueError(f"Expected contamination above 0 and up to 0.5, got {share!r}.")
        X = self._validated(X, reset=True)
        frame = self._train(X)
        self._unseen: float = -float(np.log1p(len(X)))
        self._usual: np.ndarray = self._measured(frame)
        self.offset_: float = float(np.quantile(self._scores(frame), share))
        return self

    def _measured(self, frame: Frame) -> np.ndarray:
        """What columns add to the log-density of rows, on average, (J,)."""
        codes, log_density = self.model_._coding.encode(frame)
        some = np.linspace(0, len(codes) - 1, min(MEASURED, len(codes))).astype(int)
        codes, log_density = codes[some], log_density[some]
        usual = np.zeros(codes.shape[1])
        mixture = self.model_._mixture
        for part in mixture.blocks(len(codes)):
            log_joint = mixture.log_joint(codes[part])
            total = log_sum(log_joint)
            for j, table in enumerate(mixture.log_probs):
                own = codes[part, j]
                rest = log_sum(log_joint - table.T[own])
                usual[j] += ((total - rest + log_density[part, j]) * (own >= 0)).sum()
        return usual / np.maximum((codes >= 0).sum(0), 1)

    def _scores(self, frame: Frame) -> np.ndarray:
        coding = self.model_._coding
        values = coding.schema.values(frame)
        codes, log_density = coding.encode_values(values)
        gaps = np.stack([values[name].missing for name in coding.names], 1)
        more = np.where(gaps, self._usual, np.where(codes < 0, self._unseen, 0.0))
        return self.model_._mixture.log_prob(codes) + (log_density + more).sum(1)

    def score_samples(self, X: Any) -> np.ndarray:
        """Scores of rows, (n_samples,): log-densities in nats, low for odd rows.

        Args:
            X: Rows, maybe with gaps.
        """
        return self._scores(self._frame(X))

    def decision_function(self, X: Any) -> np.ndarray:
        """`score_samples` less `offset_`, (n_samples,): negative for odd rows.

        Args:
            X: Rows, maybe with gaps.
        """
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> np.ndarray:
        """Minus one for odd rows and one for others, (n_samples,).

        Args:
            X: Rows, maybe with gaps.
        """
        return np.where(self.decision_function(X) < 0, -1, 1)
