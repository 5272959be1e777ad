"""Estimators on arrays and frames: gaps, texts, pipelines, draws, files."""

import pickle
import subprocess
import sys
from datetime import date, timedelta

import numpy as np
import pandas as pd
import polars as pl
import pytest
from sklearn.base import clone
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_breast_cancer
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from pyromix.sklearn import (
    MixtureAnomalyDetector,
    MixtureClassifier,
    MixtureDensity,
    MixtureImputer,
    MixtureRegressor,
)
from pyromix.sklearn.effort import Effort
from pyromix.tables import Schema, positive

QUICK = {"num_layers": 1, "num_components": 12, "steps": 40, "members": 1, "shrinkage": 1.0}
BARELY = QUICK | {"num_components": 4, "steps": 2}
ALL = {
    "classifier": MixtureClassifier,
    "regressor": MixtureRegressor,
    "imputer": MixtureImputer,
    "density": MixtureDensity,
    "detector": MixtureAnomalyDetector,
}


def mixed(count=300, seed=0):
    """A frame of all kinds, with gaps, and what follows from it."""
    rng = np.random.default_rng(seed)
    kind = rng.choice(["red", "green", "blue"], count)
    size = rng.normal(size=count) + 3.0 * (kind == "red")
    frame = pd.DataFrame(
        {
            "kind": kind,
            "size": size,
            "number": rng.poisson(3 + 2 * (kind == "blue")),
            "level": pd.Categorical(
                np.where(size > 1, "high", "low"), categories=["low", "high"], ordered=True
            ),
            "flag": size > 2,
            "day": pd.Timestamp("2024-01-01") + pd.to_timedelta(rng.integers(0, 99, count), "D"),
            "code": [f"row {k}" for k in range(count)],
        },
        index=np.arange(count) * 2 + 1,
    )
    frame.loc[frame.index[::7], "size"] = np.nan
    frame.loc[frame.index[3::11], "kind"] = None
    frame.loc[frame.index[5::13], "level"] = np.nan
    return frame, size, kind


def answers(name, model, X):
    ask = {
        "classifier": model.predict_proba if name == "classifier" else None,
        "regressor": getattr(model, "predict", None),
        "imputer": getattr(model, "transform", None),
        "density": getattr(model, "score_samples", None),
        "detector": getattr(model, "decision_function", None),
    }
    return ask[name](X)


def fitted(name, X, y, **arguments):
    return ALL[name](**(BARELY | {"random_state": 0} | arguments)).fit(X, y)


def target(name, size, kind):
    return kind if name == "classifier" else size


@pytest.mark.parametrize("name", ALL)
def test_frames_of_all_kinds_with_gaps(name):
    frame, size, kind = mixed()
    model = fitted(name, frame, target(name, size, kind))
    assert list(model.feature_names_in_) == list(frame.columns)
    assert "code" in model.model_.schema.left_out
    found = answers(name, model, frame.head(20))
    assert len(found) == 20
    if name != "imputer":
        assert np.isfinite(found).all()


@pytest.mark.parametrize("name", ALL)
def test_frames_of_polars_give_what_those_of_pandas_give(name):
    frame, size, kind = mixed()
    frame = frame[["kind", "size", "number", "flag"]]
    other = pl.DataFrame(
        {
            "kind": [value if isinstance(value, str) else None for value in frame["kind"]],
            **{key: frame[key].to_numpy() for key in ("size", "number", "flag")},
        }
    )
    y = target(name, size, kind)
    one, two = fitted(name, frame, y), fitted(name, other, y)
    a, b = answers(name, one, frame), answers(name, two, other)
    if name == "imputer":
        a, b = a[:, 1].astype(float), b[:, 1].astype(float)
    np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_results_follow_from_the_random_state(name):
    frame, size, kind = mixed(80)
    y = target(name, size, kind)
    model = fitted(name, frame, y)
    again, restored = clone(model).fit(frame, y), pickle.loads(pickle.dumps(model))
    first = answers(name, model, frame)
    for other in (again, restored):
        found = answers(name, other, frame)
        if name == "imputer":
            pd.testing.assert_frame_equal(pd.DataFrame(found), pd.DataFrame(first))
        else:
            np.testing.assert_array_equal(found, first)


@pytest.mark.parametrize("name", ALL)
def test_new_values_of_numbers_and_labels(name):
    rng = np.random.default_rng(0)
    whole = rng.integers(0, 3, (60, 3)).astype(float)
    whole[:, 2] = 7.0  # constant
    y = (whole[:, 0] > 1).astype(int) if name == "classifier" else whole[:, 0]
    model = fitted(name, whole, y)
    new = np.array([[1.5, -1e6, 8.0], [np.nan, 1e6, np.nan], [0.0, 1.0, 7.0]])
    assert np.isfinite(answers(name, model, new)).all()
    counts = pd.DataFrame({"n": rng.integers(0, 9, 60), "label": rng.choice(["a", "b"], 60)})
    model = fitted(name, counts, y)
    new = pd.DataFrame({"n": [1.5, np.nan, 900.0], "label": ["a", "c", None]})
    with pytest.warns(UserWarning, match="does not know"):
        found = answers(name, model, new)
    if name == "imputer":
        assert found[0, 0] == 1.5
        assert found[1, 1] == "c"
        assert found[2, 1] in {"a", "b"}
    else:
        assert np.isfinite(found).all()


def test_arrays_of_objects_and_of_texts():
    rng = np.random.default_rng(0)
    label, number = rng.choice(["a", "b"], 80), rng.normal(size=80)
    X = np.array([label, number, label == "a"], dtype=object).T
    X[::9, 0], X[1::9, 1], X[2::9, 2] = None, np.nan, None
    model = fitted("classifier", X, label)
    kinds = model.model_.schema.columns
    assert [str(kinds[name]) for name in ("x0", "x1", "x2")] == ["one of 2", "real", "boolean"]
    filled = fitted("imputer", X, None).transform(X)
    assert not pd.isna(filled).any()
    assert fitted("classifier", label[:, None], label).predict([["a"]]).shape == (1,)


def test_columns_of_date_objects_are_dates():
    days = [date(2024, 1, 1) + timedelta(days=k) for k in range(40)]
    frame = pd.DataFrame({"day": days, "x": np.arange(40.0)})
    frame.loc[3, "day"] = None
    model = fitted("imputer", frame, None)
    assert str(model.model_.schema["day"]) == "date"
    assert model.set_output(transform="pandas").transform(frame)["day"].notna().all()


def test_rows_without_any_value_are_allowed():
    frame, _, kind = mixed(60)
    model = fitted("classifier", frame, kind)
    nothing = pd.DataFrame(None, index=range(2), columns=frame.columns)
    probs = model.predict_proba(nothing)
    np.testing.assert_allclose(probs[0], probs[1])
    np.testing.assert_allclose(probs.sum(1), 1)


def test_a_column_may_be_called_target_and_names_may_clash():
    frame = pd.DataFrame({"target": np.arange(40.0), "target_": np.arange(40.0)})
    model = fitted("regressor", frame, np.arange(40.0))
    assert model.target_name_ == "target__"
    assert model.model_.names == ["target", "target_", "target__"]


def test_one_class_alone():
    model = fitted("classifier", np.arange(30.0)[:, None], ["yes"] * 30)
    np.testing.assert_array_equal(model.predict([[1.0], [99.0]]), ["yes", "yes"])


@pytest.mark.parametrize("given", ["kinds", "schema"])
def test_a_schema_takes_precedence(given):
    x = np.random.default_rng(0).normal(size=60)
    X = pd.DataFrame({"a": np.exp(x), "b": x})
    kinds = {"a": positive()}
    schema = kinds if given == "kinds" else Schema.infer(X, **kinds).without("b")
    model = MixtureDensity(schema=schema, **BARELY).fit(X)
    assert str(model.model_.schema["a"]) == "positive"
    assert ("b" in model.model_.names) == (given == "kinds")
    clone(model).fit(X)


BAD = {
    "kinds of columns that are not there": (
        lambda X: MixtureDensity(schema={"z": positive()}, **BARELY).fit(X),
        "z",
    ),
    "no schema": (lambda X: MixtureDensity(schema="positive").fit(X), "Expected schema to be"),
    "contamination": (
        lambda X: MixtureAnomalyDetector(contamination=0.7, **BARELY).fit(X),
        "contamination above 0",
    ),
    "infinite": (lambda X: MixtureDensity(**BARELY).fit([[np.inf], [1.0]]), "infinity"),
    "infinite in a frame": (
        lambda X: MixtureDensity(**BARELY).fit(X.assign(a=np.inf)),
        "to be finite",
    ),
    "nothing but names of rows": (
        lambda X: MixtureClassifier(**BARELY).fit([[f"row {k}"] for k in range(60)], [0, 1] * 30),
        "can be modelled",
    ),
    "nothing known": (
        lambda X: MixtureImputer(**BARELY).fit(np.full((9, 1), np.nan)),
        "something is known",
    ),
    "other columns": (
        lambda X: MixtureDensity(**BARELY).fit(X).score_samples(X.rename(columns={"a": "c"})),
        "feature names",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_an_error(case):
    call, match = BAD[case]
    with pytest.raises(ValueError, match=match):
        call(pd.DataFrame({"a": [1.0, 2.0, 3.0], "b": [1.0, 2.0, 3.0]}))


@pytest.mark.parametrize("name", ALL)
def test_questions_before_training_are_errors(name):
    model = ALL[name]()
    with pytest.raises(NotFittedError):
        answers(name, model, [[1.0]])


# ---- one by one --------------------------------------------------------------------------------


def test_classes_are_predicted_and_probabilities_are_calibrated():
    X, y = load_breast_cancer(return_X_y=True)
    X = X[:, :10].copy()
    X[np.random.default_rng(0).random(X.shape) < 0.1] = np.nan
    names = np.array(["malignant", "benign"])[y]
    parts = train_test_split(X, names, test_size=0.4, random_state=0)
    more = QUICK | {"num_components": 24, "steps": 60}
    model = MixtureClassifier(random_state=0, **more).fit(parts[0], parts[2])
    assert model.score(parts[1], parts[3]) > 0.87  # 0.62 are benign
    assert list(model.classes_) == ["benign", "malignant"]
    probs = model.predict_proba(parts[1])
    np.testing.assert_allclose(np.exp(model.predict_log_proba(parts[1])), probs)
    hit = parts[3] == "malignant"
    for low, high in ((0.0, 0.1), (0.9, 1.0)):
        some = (probs[:, 1] >= low) & (probs[:, 1] <= high)
        assert some.sum() > 20
        assert abs(hit[some].mean() - probs[some, 1].mean()) < 0.1
    assert abs(hit.mean() - probs[:, 1].mean()) < 0.06


def test_quantiles_cover():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(1200, 2))
    y = 2 * X[:, 0] + (0.3 + 0.3 * (X[:, 1] > 0)) * rng.normal(size=1200)
    X[::5, 1] = np.nan
    more = QUICK | {"num_layers": 2, "steps": 120}
    model = MixtureRegressor(random_state=0, **more).fit(X[:800], y[:800])
    low, middle, high = model.predict_quantiles(X[800:], [0.1, 0.5, 0.9]).T
    assert 0.75 < ((y[800:] > low) & (y[800:] < high)).mean() < 0.95
    assert np.mean(high - low) < 3.5  # it is 5.3 where nothing is known
    np.testing.assert_array_equal(model.predict_quantiles(X[800:], 0.5), middle)
    assert model.score(X[800:], y[800:]) > 0.85


def test_what_is_known_stays_and_gaps_are_filled():
    frame, size, kind = mixed()
    model = MixtureImputer(random_state=0, **QUICK).set_output(transform="pandas")
    filled = model.fit_transform(frame)
    assert list(model.get_feature_names_out()) == list(filled.columns) == list(frame.columns)
    assert not filled.isna().any().any()
    pd.testing.assert_index_equal(filled.index, frame.index)
    pd.testing.assert_series_equal(filled.dtypes, frame.dtypes)
    for name in frame:
        known = frame[name].notna()
        pd.testing.assert_series_equal(filled[name][known], frame[name][known])
    lost = frame["size"].isna().to_numpy()
    assert np.corrcoef(filled["size"][lost], size[lost])[0, 1] > 0.5
    lost = frame["kind"].isna().to_numpy()
    assert (filled["kind"][lost] == kind[lost]).mean() > 0.5


def test_gaps_of_integers_new_categories_and_columns_that_are_not_modelled():
    frame, _, _ = mixed(100)
    model = MixtureImputer(random_state=0, **BARELY).set_output(transform="pandas").fit(frame)
    new = frame.head(6).astype({"number": "Int64", "flag": "boolean", "level": object})
    new.iloc[0, 2], new.iloc[1, 4], new.iloc[2, 5], new.iloc[3, 6] = [None] * 4
    new["level"] = pd.Categorical(["low"] * 5 + [None], categories=["low"])
    filled = model.transform(new)
    assert not filled.isna().any().any()
    assert filled["number"].dtype == "Int64"
    assert filled["day"].dtype == frame["day"].dtype
    empty = new.assign(code=None)
    assert model.transform(empty)["code"].notna().all()


def test_imputers_return_the_library_that_is_asked_for():
    X = np.random.default_rng(0).normal(size=(60, 2))
    X[::3, 0] = np.nan
    model = MixtureImputer(random_state=0, **BARELY).fit(X)
    array = model.transform(X)
    assert array.dtype == X.dtype
    np.testing.assert_array_equal(array[1::3], X[1::3])
    frame = model.set_output(transform="polars").transform(X)
    assert isinstance(frame, pl.DataFrame)
    np.testing.assert_array_equal(frame.to_numpy(), array)
    other = pl.DataFrame({"x0": [None, 1.0], "x1": [1.0, float("nan")]})
    assert model.fit(other).transform(other).null_count().sum_horizontal().item() == 0


def test_planted_rows_are_odd():
    rng = np.random.default_rng(0)
    side = rng.choice([-1, 1], 600)
    X = 2 * side[:, None] + rng.normal(size=(600, 4))
    X[:10, :2] = rng.choice([-1, 1], (10, 2)) * rng.uniform(8, 20, (10, 2))
    odd = np.arange(600) < 10
    model = MixtureAnomalyDetector(contamination=0.05, random_state=0, **QUICK)
    found = model.fit_predict(X) == -1
    assert found[odd].all()
    assert abs(found.mean() - 0.05) < 0.01
    np.testing.assert_allclose(model.decision_function(X), model.score_samples(X) - model.offset_)
    # Ordinary values that do not go together, and values with gaps, which are not odd for that.
    ordinary, mixed, some = model.score_samples(
        [[2, 2, 2, 2], [2, 2, -2, -2], [2, np.nan, np.nan, 2]]
    )
    assert mixed < ordinary - 1
    assert abs(some - ordinary) < 1.5
    X[~odd, 2:] = np.nan
    assert (model.predict(X) == -1)[~odd].mean() < 0.06


def test_labels_that_are_new_are_odd():
    frame = pd.DataFrame({"label": ["a", "b"] * 100, "x": np.linspace(0, 1, 200)})
    model = MixtureAnomalyDetector(random_state=0, **QUICK).fit(frame)
    new = pd.DataFrame({"label": ["a", "c", None], "x": [0.5, 0.5, 0.5]})
    with pytest.warns(UserWarning, match="does not know"):
        known, unseen, gap = model.decision_function(new)
    assert unseen < min(known, gap) - 3


def test_draws_are_those_of_the_random_state_and_of_the_type_of_x():
    frame, _, _ = mixed(60)
    model = MixtureDensity(random_state=0, **BARELY).fit(frame)
    pd.testing.assert_frame_equal(model.sample(5), model.sample(5))
    assert not model.sample(5).equals(model.sample(5, random_state=1))
    assert list(model.sample(2)) == [name for name in frame if name != "code"]
    X = frame[["size", "number"]].to_numpy()
    model.fit(X)
    assert model.sample(3).shape == (3, 2)
    np.testing.assert_allclose(model.score(X), model.score_samples(X).mean())


# ---- with the rest of scikit-learn -------------------------------------------------------------


def test_pipelines_and_searches():
    frame, size, kind = mixed(150)
    columns = ColumnTransformer(
        [
            ("fill", MixtureImputer(**BARELY), ["size", "number"]),
            ("code", OneHotEncoder(), ["flag"]),
        ]
    )
    model = make_pipeline(columns, StandardScaler(), MixtureClassifier(**BARELY))
    search = GridSearchCV(
        model, {"mixtureclassifier__num_components": [2, 4]}, cv=2, scoring="neg_log_loss"
    )
    search.fit(frame, kind)
    assert search.best_params_["mixtureclassifier__num_components"] in {2, 4}
    scores = cross_val_score(MixtureRegressor(random_state=0, **QUICK), frame, size, cv=2)
    assert (scores > 0.4).all()
    assert np.isfinite(cross_val_score(MixtureDensity(**BARELY), frame, cv=2)).all()


def test_the_effort_follows_from_the_size():
    small, large = (Effort.of(MixtureDensity(), rows, 40) for rows in (50, 50_000))
    assert small.members == 2
    assert small.shrinkage is None
    assert large.members == large.shrinkage == 1
    assert Effort.of(MixtureDensity(time_budget=5.0), 50, 40) == Effort(None, None, None, 5.0)
    asked = MixtureDensity(steps=7, members=3, shrinkage=2.0, num_components=5)
    assert Effort.of(asked, 50, 40) == Effort(7, 3, 2.0, 60.0)


def test_without_scikit_learn_the_error_names_the_extra():
    script = """
import sys
sys.modules["sklearn"] = None
import pyromix
try:
    import pyromix.sklearn
except ImportError as error:
    assert "pyromix[sklearn]" in str(error), error
else:
    raise AssertionError("no error")
"""
    subprocess.run([sys.executable, "-c", script], check=True)
