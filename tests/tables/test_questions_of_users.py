"""What users met: each a question that had a wrong answer, or none."""

import datetime

import numpy as np
import pytest
import torch

from pyromix.tables import Schema, TableModel, col, date, integer

pd = pytest.importorskip("pandas")

QUICK = {"num_components": 4, "members": 1, "steps": 20, "seed": 0, "progress_bar": False}
START = pd.Timestamp("2020-01-01")


@pytest.fixture(scope="module")
def frame():
    rng = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "visits": rng.poisson(20, 500),
            "day": START + pd.to_timedelta(rng.integers(0, 60, 500), "D"),
            "kind": rng.choice(["a", "b"], 500),
            "change": rng.integers(-3, 4, 500).astype(float),
            "seen": (START + pd.to_timedelta(rng.random(500) * 60, "D")).tz_localize(
                "Europe/Oslo"
            ),
            "flag": rng.random(500) < 0.3,
        }
    )


@pytest.fixture(scope="module")
def model(frame):
    return TableModel.fit(frame, **QUICK)


def test_quantiles_stay_in_the_range_that_is_known(frame, model):
    for high in range(16, 30):
        law = model.condition(visits=(15, high))
        assert law.quantile("visits", [0, 1]).tolist() == [15, high]
        rows = model.condition(frame[["kind"]].head(2), visits=(15, high))
        assert (rows.quantile("visits", [0, 1]) == [15, high]).all()
    ends = model.condition(day=("2020-01-05", "2020-01-10")).quantile("day", [0, 1])
    assert [str(end) for end in ends] == ["2020-01-05", "2020-01-10"]
    assert model.condition(visits=[12, 13, 25]).quantile("visits", [0, 1]).tolist() == [12, 25]


def test_quantiles_of_probabilities_are_the_values(model):
    for value in range(8, 35):
        assert model.quantile("visits", float(model.probability(visits=(None, value)))) == value


def test_what_is_known_is_kept_even_if_the_model_cannot_read_it(frame, model):
    rows = frame.head(4).assign(
        kind=["zz", "a", None, "b"], visits=[-3.0, np.nan, 2.0, 7.0], extra=[[1]] * 4
    )
    with pytest.warns(UserWarning, match="they count as missing"):
        filled = model.impute(rows)
    assert filled["kind"].tolist()[:2] == ["zz", "a"]
    assert filled["visits"][[0, 2, 3]].tolist() == [-3.0, 2.0, 7.0]
    assert filled.notna().all().all()
    assert filled["visits"].dtype == float  # as it came
    assert filled["seen"].dtype == frame["seen"].dtype
    assert filled["extra"].tolist() == [[1]] * 4


def test_there_are_no_negative_zeros(model):
    zeros = model.sample(500, generator=torch.Generator().manual_seed(0))["change"]
    assert not np.signbit(zeros[zeros == 0]).any()


@pytest.mark.parametrize(
    "event", [col("visits"), ~col("change"), col("day"), col("visits").isin([True])]
)
def test_numbers_are_no_booleans(event, model):
    with pytest.raises(ValueError, match="not a column of booleans"):
        model.probability(event)


def test_values_that_few_rows_have_exactly():
    rng = np.random.default_rng(0)
    amounts = rng.lognormal(3, 1, 1300).round(4)
    amounts[:14] = 0.0
    normal = rng.normal(size=1300)
    normal[100:114] = 1.5
    table = pd.DataFrame({"amount": amounts, "normal": normal})
    for seed in range(2):
        fitted = TableModel.fit(table, **QUICK | {"seed": seed})
        assert 0.004 < fitted.probability(amount=0.0) < 0.03
        assert 0.004 < fitted.probability(normal=1.5) < 0.03


def test_times_with_zones_are_drawn_and_compared(model):
    figure = pytest.importorskip("matplotlib.figure").Figure()
    for names in (["seen"], ["kind", "seen"], ["seen", "kind"], ["seen", "visits"]):
        model.plot(*names, ax=figure.subplots())
    at = pd.Timestamp("2020-01-20 12:00", tz="Europe/Oslo")
    asked = [at, at.to_pydatetime(), "2020-01-20T12:00+01:00", "2020-01-20T11:00"]
    found = [float(model.probability(col("seen") < when)) for when in asked]
    np.testing.assert_allclose(found, found[0])


def test_frames_without_rows_and_draws_of_none(frame, model):
    assert model.impute(frame.iloc[:0][["visits"]]).shape == (0, 6)
    assert model.condition(frame[["visits"]].head(2)).sample(0).shape == (0, 6)
    pl = pytest.importorskip("polars")
    table = pl.DataFrame(
        {"n": [3, 1, 4, 1, 5, 9, 2, 6] * 5, "text": ["x", "y"] * 20, "true": [True, False] * 20}
    )
    fitted = TableModel.fit(table, **QUICK)
    assert fitted.sample(0).schema == table.schema
    assert fitted.condition(table.head(0)).sample(2).schema == table.schema


def test_dates_as_objects_and_as_text(frame):
    days = frame["day"].dt.strftime("%Y-%m-%d")
    table = pd.DataFrame({"text": days, "object": frame["day"].dt.date, "n": frame["visits"]})
    schema = Schema.infer(table)
    assert "make them dates first" in schema.left_out["text"]
    assert str(schema["object"]) == "date"
    fitted = TableModel.fit(table, Schema.infer(table, text=date()), **QUICK)
    by_text = fitted.condition(table[["text"]].head(3)).mean("n")
    by_day = fitted.condition({"text": frame["day"].head(3)}).mean("n")
    np.testing.assert_array_equal(by_text, by_day)
    assert fitted.probability(object=(datetime.date(2020, 1, 5), None)) < 1
    with pytest.raises(ValueError, match="Expected dates in column 'text', got 'soon'"):
        fitted.condition({"text": ["soon"]})


def test_unions_of_ranges_of_one_column_go_with_frames(frame, model):
    rows = model.condition(frame[["kind"]].head(2), (col("visits") < 15) | (col("visits") > 20))
    drawn = rows.sample(200)["visits"]
    assert ((drawn < 15) | (drawn > 20)).all()
    one = model.condition((col("visits") < 15) | (col("visits") > 20), kind=frame["kind"][0])
    np.testing.assert_allclose(rows.mean("visits")[0], one.mean("visits"))


def test_small_comforts(frame, model):
    assert repr((col("n") > 3) & ~col("b")) == "((col('n') > 3) & (col('b') == False))"
    asked = [
        model.probability(visits=said) for said in ([10, 11], range(10, 12), np.array([10, 11]))
    ]
    assert asked[0] == asked[1] == asked[2]
    assert str(TableModel.fit(frame, {"visits": integer()}, **QUICK).schema["visits"]) == "integer"
    with pytest.raises(ValueError, match="Did you mean True"):
        model.condition(flag="True")
    with pytest.raises(ValueError, match="rows of the frame know 'visits'"):
        model.condition(frame.head(2), visits=(1, 3))
    with pytest.raises(ValueError, match="max_bins"):
        TableModel.fit(frame, max_bins=0, **QUICK)
    with pytest.raises(ValueError, match=r"isin\(\['ab'\]\)"):
        model.probability(col("kind").isin("ab"))
