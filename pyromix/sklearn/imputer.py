"""Gaps filled in from what is known of each row."""

__all__ = ["MixtureImputer"]

from collections import Counter
from numbers import Real
from typing import Any, Self

import narwhals.stable.v2 as nw
import numpy as np
import pandas as pd
from sklearn.base import OneToOneFeatureMixin, TransformerMixin
from sklearn.utils._set_output import _get_output_config

from ..tables.frames import Frame
from .base import MixtureEstimator
from .inputs import as_frame, is_table


class MixtureImputer(OneToOneFeatureMixin, TransformerMixin, MixtureEstimator):
    r"""Fills gaps in from what is known of each row, under a mixture over all columns.

    Numbers and dates become medians, and labels the likeliest ones, of

    .. math:: p(x_j \mid x_{known}) \propto \sum_h P(h) p(x_j \mid h)
              \prod_{k \in known} p(x_k \mid h)

    What is known stays as it was. Columns that are not modelled, such as names, are filled with
    the most frequent value. Arguments are those of `MixtureEstimator`.

    By default `transform` returns an array, of floats if all columns are numbers, else of objects.
    After ``set_output(transform="pandas")`` it returns frames, with the types of the columns of X.

    Attributes:
        model_: The `TableModel`.
        n_features_in_: Number of columns of X.
        feature_names_in_: Their names, if X was a frame whose columns have names.

    Example:
        >>> X = np.repeat(np.random.default_rng(0).normal(size=(300, 1)), 2, 1)
        >>> true = X[:50, 1].copy()
        >>> X[:50, 1] = np.nan
        >>> model = MixtureImputer(num_components=12, steps=60, members=1, random_state=0)
        >>> bool(abs(model.fit_transform(X)[:50, 1] - true).mean() < 0.4)
        True
    """

    def __sklearn_tags__(self) -> Any:
        """Tags of scikit-learn: gaps are allowed, and floats keep their precision."""
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    def fit(self, X: Any, y: Any = None) -> Self:  # noqa: ARG002
        """Trains the model.

        Args:
            X: Rows, (n_samples, n_features), with gaps.
            y: Not looked at.

        Raises:
            ValueError: If they do not fit.
        """
        X = self._validated(X, reset=True)
        table = nw.from_native(self._train(X), eager_only=True)
        others = [name for name in self._inputs.names if name not in self.model_.schema.names]
        self._frequent = {name: _most_frequent(table[name]) for name in others}
        return self

    def transform(self, X: Any) -> Any:
        """X with its gaps filled in.

        Args:
            X: Rows, maybe with gaps.

        Returns:
            An array of the shape of X, or a frame if `set_output` asks for one.
        """
        rows = self._frame(X)
        if not is_table(X):
            X = self._validated(X)
        filled = self._filled(as_frame(X, self._inputs.names), rows)
        library = _get_output_config("transform", self)["dense"]
        if library == "polars":
            return filled.to_polars()
        if library == "pandas":
            table = filled.to_pandas()
            return table.set_axis(X.index) if isinstance(X, pd.DataFrame) else table
        array = filled.to_numpy()
        return array.astype(X.dtype) if not is_table(X) and X.dtype.kind == "f" else array

    def _filled(self, given: Frame, rows: Frame) -> Any:
        """A frame with what the model says of its gaps.

        Args:
            given: The frame.
            rows: The same as the model takes it.
        """
        table = nw.from_native(given, eager_only=True)
        gaps = {name: _gaps(table[name]) for name in self._inputs.names}
        if not any(gap.any() for gap in gaps.values()):
            return table
        imputed: Any = self.model_.impute(rows)
        model = nw.from_native(imputed, eager_only=True)
        columns = []
        for name, gap in gaps.items():
            if not gap.any():
                continue
            if name in self._frequent:
                values = [self._frequent[name]] * int(gap.sum())
            else:
                values = model[name].filter(gap.tolist()).to_list()
            columns.append(_with_values(table[name], gap, values))
        return table.with_columns(*columns)


def _gaps(column: Any) -> np.ndarray:
    """Which values of a column are missing, (N,)."""
    gap: np.ndarray = column.is_null().to_numpy().astype(bool)
    if column.dtype.is_float():
        gap = gap | np.isnan(column.fill_null(np.nan).to_numpy().astype(float))
    return gap


def _most_frequent(column: Any) -> Any:
    """The value that most rows have; None if none has one."""
    known = Counter(column.filter((~_gaps(column)).tolist()).to_list())
    return known.most_common(1)[0][0] if known else None


def _with_values(column: Any, gap: np.ndarray, values: list[Any]) -> Any:
    """A column with values at its gaps, and of its type where that allows it."""
    if column.dtype.is_integer():
        values = [None if value is None else round(value) for value in values]
    native = column.to_native()
    if isinstance(native, pd.Series):
        if isinstance(native.dtype, pd.CategoricalDtype):
            new = set(values) - set(native.cat.categories) - {None}
            native = native.cat.add_categories(sorted(new))
        numeric = all(isinstance(value, Real | None) for value in values)
        holds = numeric or native.dtype.kind not in "biuf"
        native = native.copy() if holds else native.astype(object)
        native[gap] = values
        return nw.from_native(native, series_only=True)
    return column.scatter(np.flatnonzero(gap).tolist(), values)
