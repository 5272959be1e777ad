"""What all estimators share: their arguments, and the model of a table that they train."""

__all__ = ["MixtureEstimator"]

from collections.abc import Mapping
from typing import Any

import narwhals.stable.v2 as nw
import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils import (
    assert_all_finite,
    check_array,
    check_consistent_length,
    check_random_state,
)
from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data

from ..tables import Schema, TableModel, TableRows
from ..tables.columns import Column
from ..tables.frames import Frame
from .effort import Effort
from .inputs import Inputs, is_table

LARGEST_SEED = 2**31 - 1


class MixtureEstimator(BaseEstimator):
    """A scikit-learn estimator that trains a `TableModel`: the base of the others.

    X is an array or a frame. Floats are real numbers, integers are integers, texts, categories
    and booleans are labels, and dates are dates. Gaps (NaN, None) are summed over, in training
    and after. Labels that training did not see count as gaps, with a warning; numbers of any size
    are allowed. Columns of labels that name rows are not modelled.

    How much is trained follows from the size of the table, by default: from a few seconds to
    about a minute. With a `random_state` that is an integer the result is the same in every run,
    unless `time_budget` decides on the effort.

    Args:
        schema: A `Schema`, or kinds of columns by name such as ``{"income": positive()}``, where
            types do not say enough. Columns of arrays are called x0, x1 and so on.
        num_layers: Layers of a mixture; this and the next ones are chosen by `TableModel.fit`, or
            by the size of the table, if they are not given.
        num_components: Components of a layer.
        steps: Steps of training of each mixture.
        members: Mixtures that are averaged.
        shrinkage: Strength of the prior of tables, about one.
        max_bins: About the largest number of bins of a numeric column.
        time_budget: Seconds that training may take, about, instead of an effort that follows from
            the size of the table.
        random_state: Seed, or random state, of training and of draws.
        verbose: Whether to show bars with losses.

    Attributes:
        model_: The `TableModel`, for all other questions.
        n_features_in_: Number of columns of X.
        feature_names_in_: Their names, if X was a frame whose columns have names.
    """

    def __init__(
        self,
        *,
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
        self.schema = schema
        self.num_layers = num_layers
        self.num_components = num_components
        self.steps = steps
        self.members = members
        self.shrinkage = shrinkage
        self.max_bins = max_bins
        self.time_budget = time_budget
        self.random_state = random_state
        self.verbose = verbose

    def __sklearn_tags__(self) -> Any:
        """Tags of scikit-learn: gaps are allowed."""
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    # ---- checks of X ------------------------------------------------------------------------

    def _validated(self, X: Any, *, reset: bool = False) -> Any:
        """X as scikit-learn checks it; frames stay frames.

        Args:
            X: An array or a frame.
            reset: Whether it is that of training.
        """
        checks: dict[str, Any] = {"dtype": None, "ensure_min_samples": 2 if reset else 1}
        if not is_table(X):
            return validate_data(self, X, reset=reset, ensure_all_finite="allow-nan", **checks)
        validate_data(self, X, reset=reset, skip_check_array=True)
        check_array(X, ensure_all_finite=False, estimator=self, **checks)
        return X

    def _validated_pair(self, X: Any, y: Any) -> tuple[Any, np.ndarray]:
        """X and y of training as scikit-learn checks them."""
        validate_data(self, X, y, skip_check_array=True)
        X = self._validated(X, reset=True)
        y = column_or_1d(y, warn=True)
        assert_all_finite(y, input_name="y", estimator_name=type(self).__name__)
        check_consistent_length(X, y)
        return X, y

    def _frame(self, X: Any) -> Frame:
        """X of a fitted estimator as a frame for its model."""
        check_is_fitted(self)
        return self._inputs.frame(self._validated(X))

    def _given(self, X: Any) -> TableRows:
        """The laws of rows given X."""
        frame = self._frame(X)
        return self.model_.condition(frame)

    # ---- training ---------------------------------------------------------------------------

    def _train(self, X: Any, **target: tuple[Column, np.ndarray]) -> Frame:
        """Trains the model on X that was checked, and on another column.

        Args:
            X: The rows.
            target: The kind and the values of a column that will be predicted, by its name.

        Returns:
            The rows of X as a frame.
        """
        names = getattr(self, "feature_names_in_", None)
        self._inputs = Inputs.of(X, names, self.schema)
        frame = self._inputs.frame(X)
        table = frame
        for name, (_, values) in target.items():
            table = _with_column(table, name, values)
        schema = self._inputs.schema(table, **{name: kind for name, (kind, _) in target.items()})
        seed = int(check_random_state(self.random_state).randint(LARGEST_SEED))
        effort = Effort.of(self, len(X), len(schema.names))
        self.model_ = TableModel.fit(
            table,
            schema,
            targets=list(target),
            time_budget=effort.seconds,
            max_bins=self.max_bins,
            num_layers=self.num_layers,
            num_components=self.num_components,
            shrinkage=effort.shrinkage,
            steps=effort.steps,
            members=effort.members,
            seed=seed,
            progress_bar=bool(self.verbose),
        )
        return frame

    def _new_name(self) -> str:
        """The name of a column that X does not have."""
        name = "target"
        while name in getattr(self, "feature_names_in_", ()):
            name += "_"
        return name


def _with_column(frame: Frame, name: str, values: np.ndarray) -> Frame:
    """A frame with one more column."""
    table = nw.from_native(frame, eager_only=True)
    data = values.tolist() if values.dtype == object else values
    column = nw.new_series(name, data, backend=nw.get_native_namespace(table))
    return table.with_columns(column).to_native()
