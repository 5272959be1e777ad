"""Classes given features, under a mixture over both."""

__all__ = ["MixtureClassifier"]

from typing import Any, Self

import numpy as np
from sklearn.base import ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets

from ..tables import categorical
from .base import MixtureEstimator


class MixtureClassifier(ClassifierMixin, MixtureEstimator):
    r"""A classifier: probabilities of classes given features under a mixture over both.

    .. math:: P(y \mid x) = \frac{\sum_h P(h) P(y \mid h) \prod_{j \in known} p(x_j \mid h)}
              {\sum_h P(h) \prod_{j \in known} p(x_j \mid h)}

    Features that a row lacks are summed over. Training makes the most of the prediction of y.
    Arguments are those of `MixtureEstimator`.

    Attributes:
        classes_: The classes, in order.
        target_name_: What `model_` calls the column of y.
        model_: The `TableModel` of features and classes.
        n_features_in_: Number of columns of X.
        feature_names_in_: Their names, if X was a frame whose columns have names.

    Example:
        >>> from sklearn.datasets import load_iris
        >>> X, y = load_iris(return_X_y=True)
        >>> X[::5, 2] = np.nan
        >>> model = MixtureClassifier(num_components=8, steps=60, members=1, random_state=0)
        >>> bool(model.fit(X, y).score(X, y) > 0.8)
        True
        >>> bool(model.predict_proba([[5.0, np.nan, 1.5, 0.2]])[0, 0] > 0.7)
        True
    """

    def fit(self, X: Any, y: Any) -> Self:
        """Trains the model.

        Args:
            X: Features, (n_samples, n_features), maybe with gaps.
            y: Classes, (n_samples,).

        Raises:
            ValueError: If they do not fit.
        """
        X, y = self._validated_pair(X, y)
        check_classification_targets(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        self.target_name_ = self._new_name()
        labels = self.classes_.tolist()
        values = np.empty(len(codes), dtype=object)
        values[:] = [labels[code] for code in codes]
        self._train(X, **{self.target_name_: (categorical(labels), values)})
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities of classes, (n_samples, n_classes), in the order of `classes_`.

        Args:
            X: Features, maybe with gaps.
        """
        rows = self._given(X)
        probs = rows.predict_proba(self.target_name_).to_numpy()
        return probs / probs.sum(1, keepdims=True)

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Logarithms of `predict_proba`.

        Args:
            X: Features, maybe with gaps.
        """
        with np.errstate(divide="ignore"):
            return np.log(self.predict_proba(X))

    def predict(self, X: Any) -> np.ndarray:
        """The likeliest classes, (n_samples,).

        Args:
            X: Features, maybe with gaps.
        """
        likeliest = self.predict_proba(X).argmax(1)
        return self.classes_[likeliest]
