"""The density of rows, and draws."""

__all__ = ["MixtureDensity"]

from typing import Any, Self

import numpy as np
from sklearn.base import DensityMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import Generator

from .base import LARGEST_SEED, MixtureEstimator
from .inputs import is_table


class MixtureDensity(DensityMixin, MixtureEstimator):
    r"""A density of rows: a mixture whose components draw all columns independently.

    .. math:: p(x) = \sum_h P(h) \prod_{j \in known} p(x_j \mid h)

    Of integers, labels and numbers that have a probability it is a mass. Columns that a row lacks
    are summed over. Arguments are those of `MixtureEstimator`.

    Attributes:
        model_: The `TableModel`.
        n_features_in_: Number of columns of X.
        feature_names_in_: Their names, if X was a frame whose columns have names.

    Example:
        >>> X = np.random.default_rng(0).normal(size=(200, 2))
        >>> model = MixtureDensity(num_components=4, steps=30, members=1, random_state=0).fit(X)
        >>> inside, outside = model.score_samples([[0, 0], [9, np.nan]])
        >>> bool(inside > outside), model.sample(3).shape
        (True, (3, 2))
    """

    def fit(self, X: Any, y: Any = None) -> Self:  # noqa: ARG002
        """Trains the model.

        Args:
            X: Rows, (n_samples, n_features), maybe with gaps.
            y: Not looked at.

        Raises:
            ValueError: If they do not fit.
        """
        X = self._validated(X, reset=True)
        self._train(X)
        self._dtype = None if is_table(X) else X.dtype
        return self

    def score_samples(self, X: Any) -> np.ndarray:
        """Log-densities of rows, (n_samples,), in nats and in the units of X.

        Args:
            X: Rows, maybe with gaps.
        """
        frame = self._frame(X)
        return self.model_.log_prob(frame).numpy()

    def score(self, X: Any, y: Any = None) -> float:  # noqa: ARG002
        """The mean of `score_samples`.

        Args:
            X: Rows, maybe with gaps.
            y: Not looked at.
        """
        return float(self.score_samples(X).mean())

    def sample(self, n_samples: int = 1, random_state: Any = None) -> Any:
        """Draws rows.

        Args:
            n_samples: Number of rows.
            random_state: Seed, or random state; by default that of the estimator.

        Returns:
            An array (n_samples, n_features) if the estimator was trained on one, else a frame of
            the columns that are modelled.
        """
        check_is_fitted(self)
        state = self.random_state if random_state is None else random_state
        seed = int(check_random_state(state).randint(LARGEST_SEED))
        frame = self.model_.sample(n_samples, generator=Generator().manual_seed(seed))
        if self._dtype is None:
            return frame
        return frame.reindex(columns=self._inputs.names).to_numpy()
