"""Models of tables that others are measured by: densities sum to one, and predictions follow."""

import numpy as np
import pandas as pd
import pytest

from benchmarks.tables import data, measures
from benchmarks.tables.law import grid_of, predict
from benchmarks.tables.mixtures import NormalMixture, ProductMixture
from benchmarks.tables.peer import PROBS
from pyromix.tables import Schema, real
from pyromix.tables.frames import read

MODELS = [NormalMixture, ProductMixture]


@pytest.fixture(scope="module")
def frame():
    rng = np.random.default_rng(0)
    age = rng.integers(18, 60, 400)
    table = pd.DataFrame(
        {
            "age": age,
            "income": rng.lognormal(2 + age / 60, 0.5),
            "gain": np.where(rng.random(400) < 0.5, 0.0, rng.lognormal(1, 0.5, 400)),
            "city": rng.choice(["a", "b", "c"], 400),
        }
    )
    table.loc[::9, "income"] = np.nan
    table.loc[::7, "city"] = None
    return table


@pytest.fixture(scope="module")
def schema(frame):
    return Schema.infer(frame)


@pytest.fixture(scope="module", params=MODELS)
def model(request, frame, schema):
    own = request.param()
    own.most = 8
    own.fit(frame, schema)
    return own


def probs(model, row, name, values):
    rows = pd.concat([row] * len(values), ignore_index=True)
    rows[name] = values
    return np.exp(model.log_prob(rows))


def gap(row, name):
    return data.hide_column(row, name)


@pytest.mark.parametrize(
    ("name", "values"), [("age", list(range(160))), ("city", ["a", "b", "c"])]
)
def test_masses_sum_to_what_is_known_of_the_others(model, frame, name, values):
    row = frame.iloc[[3]]
    total = probs(model, row, name, values).sum()
    assert total == pytest.approx(np.exp(model.log_prob(gap(row, name)))[0], rel=1e-4)


@pytest.mark.parametrize(("name", "point"), [("income", []), ("gain", [0.0])])
def test_densities_integrate_to_what_is_known_of_the_others(model, frame, name, point):
    row, x = frame.iloc[[3]], np.exp(np.linspace(-8, 10, 6001))
    total = np.trapezoid(probs(model, row, name, x), x)
    total += probs(model, row, name, point).sum() if point else 0.0
    assert total == pytest.approx(np.exp(model.log_prob(gap(row, name)))[0], rel=1e-4)


def test_predictions_follow_from_densities(model, frame):
    row = frame.iloc[[3]]
    told = model.predict_proba(gap(row, "city"), "city")[0]
    own = probs(model, row, "city", ["a", "b", "c"])
    np.testing.assert_allclose(told, own / own.sum(), rtol=1e-8)
    ages = np.arange(160)
    own = probs(model, row, "age", ages.tolist())
    cdf = own.cumsum() / own.sum()
    told = model.predict_number(gap(row, "age"), "age").quantiles[0]
    told = told.astype(int)
    inside = (cdf[told] >= PROBS - 1e-3) & (cdf[told - 1] <= PROBS + 1e-3)
    assert inside.mean() > 0.9  # beyond the ages that occur, the grid ends


def test_synthetic_rows_are_of_the_schema(model, frame, schema):
    drawn = model.sample(200, seed=0)
    assert list(drawn) == list(frame)
    assert not schema.encode(drawn).isnan()[:, 1].any()
    assert (drawn["gain"] == 0).mean() == pytest.approx(0.5, abs=0.15)


def test_a_point_is_a_jump_of_the_distribution_function():
    column = real(point=0.0).fitted(_values("x", [-1.0, 0.0, 0.0, 1.0, 2.0]))
    grid = grid_of(column, np.array([-1.0, 0.0, 1.0, 2.0]))
    middle = (grid > column.map.forward(np.array(-1.0))).astype(float)
    found = predict(column, grid, np.stack([middle, middle]), np.array([1.0, 0.4]))
    assert (found.quantiles[0] == 0).all()
    assert found.mean[0] == 0
    assert (found.quantiles[1] == 0).sum() in (7, 8)
    assert (np.diff(found.quantiles[1]) >= 0).all()


def _values(name, numbers):
    return read({name: numbers})[0]


def test_halves_are_of_what_is_known_and_stay_the_same(frame, schema):
    known = data.known_cells(frame, schema)
    hidden = data.random_halves(known)
    assert (hidden <= known).all()
    np.testing.assert_array_equal(hidden.sum(1), known.sum(1) // 2)
    np.testing.assert_array_equal(hidden, data.random_halves(known))
    fewer = data.known_cells(data.hide(frame, hidden), schema)
    np.testing.assert_array_equal(fewer, known & ~hidden)


def test_probabilities_that_are_right_are_calibrated():
    rng = np.random.default_rng(0)
    p = rng.random(20_000)
    y = (rng.random(20_000) < p).astype(int)
    assert measures.calibration_error(y, np.stack([1 - p, p], 1)) < 0.02
    assert measures.calibration_error(y, np.stack([p, 1 - p], 1)) > 0.3


def test_score_of_quantiles_is_that_of_a_uniform_law():
    x = np.linspace(0, 1, 1001)
    found = measures.crps_of(x, np.tile(PROBS, (1001, 1)))
    assert found == pytest.approx((PROBS * (1 - PROBS)).mean(), rel=1e-3)
