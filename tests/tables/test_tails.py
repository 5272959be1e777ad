"""Values far beyond those of training, and columns without values."""

import numpy as np
import pytest

from pyromix.tables import Schema, count, integer, real
from pyromix.tables.bins import Bins
from pyromix.tables.values import Values


@pytest.mark.parametrize("kind", [integer(), count(0), count(1)])
def test_integers_far_out_have_a_mass(kind):
    seen = np.random.default_rng(0).poisson(5, 300) + 1.0
    column = kind.fitted(Values("n", "number", seen, "Int64"))
    bins = Bins.of(column, seen, 48)
    start = -5_000 if column.lowest is None else column.lowest
    codes, log_mass = bins.encode(np.arange(start, 5_000.0))
    assert np.isfinite(log_mass).all()
    np.testing.assert_allclose(np.bincount(codes, np.exp(log_mass)), 1, atol=1e-6)


def test_a_column_without_values_is_shown():
    frame = {"empty": [np.nan, np.nan], "x": [1.0, 2.0]}
    assert "empty" in repr(Schema.infer(frame, empty=real(), x=real()))


def test_a_column_may_be_called_frame():
    assert Schema.infer({"frame": [1.0, 2.0]}, frame=real()).names == ["frame"]
