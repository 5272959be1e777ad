"""A number given features, under a mixture over both."""

__all__ = ["MixtureRegressor"]

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from sklearn.base import RegressorMixin
from sklearn.utils import check_array

from ..tables import real
from .base import MixtureEstimator


class MixtureRegressor(RegressorMixin, MixtureEstimator):
    r"""A regression: the law of a number given features under a mixture over both.

    .. math:: p(y \mid x) = \frac{\sum_h P(h) p(y \mid h) \prod_{j \in known} p(x_j \mid h)}
              {\sum_h P(h) \prod_{j \in known} p(x_j \mid h)}

    Features that a row lacks are summed over. Training makes the most of the prediction of y.
    Arguments are those of `MixtureEstimator`.

    Attributes:
        target_name_: What `model_` calls the column of y.
        model_: The `TableModel` of features and y.
        n_features_in_: Number of columns of X.
        feature_names_in_: Their names, if X was a frame whose columns have names.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> X = rng.normal(size=(300, 2))
        >>> y = X[:, 0] + 0.3 * rng.normal(size=300)
        >>> model = MixtureRegressor(num_components=12, steps=60, members=1, random_state=0)
        >>> bool(model.fit(X, y).score(X, y) > 0.7)
        True
        >>> low, median, high = model.predict_quantiles([[1.0, np.nan]], [0.05, 0.5, 0.95])[0]
        >>> bool(low < median < high)
        True
    """

    def fit(self, X: Any, y: Any) -> Self:
        """Trains the model.

        Args:
            X: Features, (n_samples, n_features), maybe with gaps.
            y: Numbers, (n_samples,).

        Raises:
            ValueError: If they do not fit.
        """
        X, y = self._validated_pair(X, y)
        y = check_array(y, ensure_2d=False, dtype=np.float64, input_name="y", estimator=self)
        self.target_name_ = self._new_name()
        self._train(X, **{self.target_name_: (real(), y)})
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Means of y given features, (n_samples,).

        Args:
            X: Features, maybe with gaps.
        """
        return self._given(X).mean(self.target_name_)

    def predict_quantiles(self, X: Any, probs: float | Sequence[float]) -> np.ndarray:
        """Quantiles of y given features.

        Args:
            X: Features, maybe with gaps.
            probs: Probabilities from 0 to 1, a number or P of them.

        Returns:
            Array of shape (n_samples,), or (n_samples, P).

        Raises:
            ValueError: If probabilities are out of range.
        """
        return self._given(X).quantile(self.target_name_, probs)
