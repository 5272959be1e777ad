"""Pictures of tables: their axes hold what they say."""

import numpy as np
import pytest

from pyromix.tables import TableModel, plot_missing

from .test_schema import made_up

pd = pytest.importorskip("pandas")
plt = pytest.importorskip("matplotlib.pyplot")
ConciseDateFormatter = pytest.importorskip("matplotlib.dates").ConciseDateFormatter


@pytest.fixture(scope="module")
def model():
    options = {"num_components": 4, "members": 1, "shrinkage": 1.0, "steps": 40, "seed": 0}
    frame = made_up()[["height", "gain", "city", "size", "joined", "member"]]
    return TableModel.fit(frame, progress_bar=False, **options)


@pytest.fixture
def ax():
    figure, ax = plt.subplots()
    yield ax
    plt.close(figure)


def test_one_column(model, ax):
    assert model.plot("city", ax=ax) is ax
    heights = [bar.get_height() for bar in ax.patches]
    assert heights == pytest.approx(sorted(model.predict_proba("city").values(), reverse=True))


@pytest.mark.parametrize("name", ["height", "gain", "joined"])
def test_one_column_of_numbers(name, model, ax):
    model.plot(name, ax=ax)
    assert sum(bar.get_height() for bar in ax.patches) == pytest.approx(1, abs=0.02)
    assert ax.get_xlabel() == name


@pytest.mark.parametrize(
    "pair", [("height", "gain"), ("city", "height"), ("joined", "city"), ("city", "size")]
)
def test_two_columns(pair, model, ax):
    model.condition(member=True).plot(*pair, ax=ax)
    assert (ax.get_xlabel(), ax.get_ylabel()) == pair
    assert ax.has_data()
    for name, axis in zip(pair, (ax.xaxis, ax.yaxis), strict=True):
        dates = isinstance(axis.get_major_formatter(), ConciseDateFormatter)
        assert dates == (name == "joined")


def test_dependence_and_gaps(model, ax):
    model.plot_dependence(ax)
    strength = np.asarray(ax.images[0].get_array())
    assert np.allclose(np.diag(strength), 1)
    assert np.allclose(strength, strength.T)
    assert len(ax.get_xticklabels()) == len(model.names)
    frame = made_up()
    figure, other = plt.subplots()
    plot_missing(frame, other)
    assert np.asarray(other.images[0].get_array()).sum() == frame.isna().sum().sum()
    plt.close(figure)
