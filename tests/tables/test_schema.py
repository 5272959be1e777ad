"""Frames as rows of a model and back, and what columns are taken for."""

import math

import numpy as np
import pytest
import torch

from pyromix import DRMM, fit
from pyromix.tables import (
    Schema,
    boolean,
    bounded,
    categorical,
    count,
    date,
    integer,
    ordered,
    positive,
    real,
)

pd = pytest.importorskip("pandas")


def made_up(rows=400):
    """A table with a column of every kind, and gaps."""
    rng = np.random.default_rng(0)
    height = rng.normal(170, 10, rows)
    gain = np.where(rng.random(rows) < 0.6, 0.0, rng.lognormal(7, 1, rows))
    start = pd.Timestamp("2020-01-01")
    visits = rng.geometric(0.05, rows) - 1
    frame = pd.DataFrame(
        {
            "id": np.arange(rows) + 17,
            "height": height,
            "income": rng.lognormal(10, 0.8, rows),
            "gain": gain,
            "share": rng.uniform(0, 1, rows),
            "visits": visits,
            "balance": rng.integers(-50, 50, rows),
            "rooms": rng.integers(1, 6, rows),
            "city": rng.choice(["Lyon", "Oslo", "Pisa"], rows),
            "size": pd.Categorical(
                rng.choice(["S", "M", "L"], rows), categories=["S", "M", "L"], ordered=True
            ),
            "member": rng.random(rows) < 0.5,
            "joined": start + pd.to_timedelta(rng.integers(0, 900, rows), "D"),
            "seen": start + pd.to_timedelta(rng.random(rows) * 900, "D"),
            "version": "2.1",
            "note": [f"row {i}" for i in range(rows)],
            "empty": np.full(rows, np.nan),
            "typed": [str(number) for number in rng.integers(0, 99, rows)],
        }
    )
    frame.loc[::7, "height"] = np.nan
    frame.loc[::5, "city"] = None
    frame.loc[::11, "seen"] = pd.NaT
    return frame


KINDS = {
    "height": "real from 0",
    "income": "positive",
    "gain": "positive, or 0",
    "share": "real from 0",
    "visits": "count from 0",
    "balance": "integer",
    "rooms": "ordered 5",
    "city": "one of 3",
    "size": "ordered 3",
    "member": "boolean",
    "joined": "date",
    "seen": "time",
}
LEFT_OUT = {
    "id": "numbers the rows",
    "version": "is constant",
    "note": "names of rows",
    "empty": "has no values",
    "typed": "numbers as text",
}


def test_kinds_are_told_by_values():
    schema = Schema.infer(made_up())
    assert {name: str(column) for name, column in schema.columns.items()} == KINDS
    assert set(schema.left_out) == set(LEFT_OUT)
    for name, words in LEFT_OUT.items():
        assert words in schema.left_out[name]
    assert schema.dim == len(schema.real_names) == 8
    assert schema.categories == (2, 5, 3, 3, 2)
    told = repr(schema)
    for name, words in {**KINDS, **LEFT_OUT}.items():
        assert name in told
        assert words in told
    assert "14%" in told  # of heights are missing


def test_frames_come_back_as_they_were():
    frame = made_up()
    schema = Schema.infer(frame, share=bounded(0, 1))
    x = schema.encode(frame)
    assert x.shape == (400, 13)
    assert x.dtype == torch.float64
    back = schema.decode(x)
    expected = frame[schema.names].copy()
    assert (back["seen"] - expected["seen"]).abs().max() < pd.Timedelta("10us")
    back["seen"] = expected["seen"]
    pd.testing.assert_frame_equal(back, expected, check_exact=False, check_column_type=False)
    # Numbers have unit size, whatever their units.
    known = x[:, : schema.dim]
    assert bool((torch.nanmean(known, 0).abs() < 1e-9).all())
    assert bool((torch.nanmean(known.square(), 0) - 1).abs().max() < 1e-9)


def test_times_keep_their_zone():
    times = pd.date_range("2024-01-01", periods=30, freq="7h", tz="Europe/Oslo")
    schema = Schema.infer(pd.DataFrame({"a": times}))
    back = schema.decode(schema.encode(pd.DataFrame({"a": times})))["a"]
    assert back.dtype == times.dtype
    assert abs(back - pd.Series(times)).max() < pd.Timedelta("1ms")


def test_frames_of_polars():
    pl = pytest.importorskip("polars")
    frame = made_up()
    frame["city"] = frame["city"].astype(object).where(frame["city"].notna(), None)
    table = pl.DataFrame(
        {
            **{name: frame[name].tolist() for name in ("income", "visits", "city", "member")},
            "size": pl.Series(frame["size"].tolist(), dtype=pl.Enum(["S", "M", "L"])),
            "kind": pl.Series(frame["size"].tolist(), dtype=pl.Categorical),
            "joined": [stamp.date() for stamp in frame["joined"]],
        }
    )
    schema = Schema.infer(table)
    back = schema.decode(schema.encode(table))
    assert back.schema == table.schema
    for name in set(table.columns) - {"income"}:
        assert back[name].to_list() == table[name].to_list()
    np.testing.assert_allclose(back["income"].to_numpy(), frame["income"])


@pytest.mark.parametrize(
    ("kind", "low", "high"),
    [
        (real(), -40.0, 40.0),
        (positive(), 1e-9, 3000.0),
        (positive(low=-2.0), -2.0 + 1e-9, 3000.0),
        (bounded(0, 7), 1e-9, 7 - 1e-9),
    ],
)
def test_densities_integrate_to_one_in_the_units_of_the_column(kind, low, high):
    values = np.random.default_rng(0).uniform(0.5, 6.5, 50)
    schema = Schema.infer({"a": values}, a=kind)
    # Evenly spaced in the model's units, so that peaks at the ends are seen.
    ends = schema.encode({"a": [low, high]})
    z = torch.linspace(float(ends[0, 0]), float(ends[1, 0]), 200_001, dtype=torch.float64)
    x = torch.from_numpy(schema.decode(z.unsqueeze(-1))["a"].to_numpy(copy=True))
    density = torch.distributions.Normal(0.2, 0.7).log_prob(z) + schema.log_slope(z.unsqueeze(-1))
    assert abs(float(torch.trapezoid(density.exp(), x)) - 1) < 1e-3


@pytest.mark.parametrize(("kind", "first"), [(integer(), -400), (count(), 0), (count(low=1), 1)])
def test_masses_of_integers_add_up_to_one(kind, first):
    schema = Schema.infer({"a": [1, 2, 5, 9, 30, 2, 4]}, a=kind)
    numbers = np.arange(first, 20_000).astype(float)
    low, high = (torch.from_numpy(edge) for edge in schema["a"].interval(numbers))
    law = torch.distributions.Normal(torch.tensor(0.3, dtype=torch.float64), 1.1)
    mass = law.cdf(high) - law.cdf(low)
    assert abs(float(mass.sum()) - 1) < 1e-3
    # Numbers in an interval are rounded to its integer.
    inner = torch.where(low.isinf(), high - 0.1, low + 0.999 * (high - low))
    assert schema.decode(inner[:50].unsqueeze(-1))["a"].tolist() == numbers[:50].tolist()
    width = (high - low)[1:50].log()
    torch.testing.assert_close(schema.log_slope(inner[1:50].unsqueeze(-1)), width)


def test_a_change_of_units_changes_the_slope_alone():
    centimetres = made_up()["height"].dropna().to_numpy()
    a, b = (Schema.infer({"a": x}) for x in (centimetres, centimetres / 2.54))
    x, y = a.encode({"a": centimetres}), b.encode({"a": centimetres / 2.54})
    torch.testing.assert_close(x, y)
    expected = torch.full((len(x),), math.log(2.54), dtype=torch.float64)
    torch.testing.assert_close(b.log_slope(y) - a.log_slope(x), expected)


def test_new_rows():
    """Columns and values that are not known are gaps."""
    schema = Schema.infer(made_up())
    x = schema.encode({"city": ["Oslo", None], "height": [180, None], "more": [1, 2]})
    assert x.isnan().sum(1).tolist() == [11, 13]
    with pytest.warns(UserWarning, match="Rome"):
        x = schema.encode({"city": ["Rome"]})
    assert bool(x.isnan().all())


def test_draws_of_a_model_are_rows_of_the_table():
    frame = made_up()
    schema = Schema.infer(frame).without("seen")
    model = DRMM(schema.dim, 1, 4, categories=schema.categories, missing="marginalize")
    fit(model, schema.encode(frame), steps=20, seed=0, progress_bar=False)
    drawn = schema.decode(model.sample((200,)))
    assert drawn.dtypes.to_dict() == frame[schema.names].dtypes.to_dict()
    assert bool((drawn["visits"] >= 0).all())
    assert bool((drawn["income"] > 0).all())
    assert set(drawn["city"]) <= {"Lyon", "Oslo", "Pisa"}
    assert drawn["joined"].dt.hour.eq(0).all()
    # At the point of a column its number is free, and is not shown.
    assert 0.3 < (drawn["gain"] == 0).mean() < 0.9


def test_kinds_can_be_changed():
    frame = made_up()
    schema = Schema.infer(frame, rooms=integer(), size=categorical())
    assert str(schema["rooms"]) == "integer"
    changed = schema.set("income", real()).set("rooms", ordered([1, 2, 3, 4, 5, 6]))
    assert str(changed["income"]) == "real"
    assert changed["rooms"].num_categories == 6
    assert str(schema["income"]) == "positive"
    assert changed.decode(changed.encode(frame))["rooms"].tolist() == frame["rooms"].tolist()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Schema.infer(pd.DataFrame()), "rows and columns"),
        (lambda: Schema.infer({"a": []}), "0 rows of 1 columns"),
        (lambda: Schema.infer([1, 2]), "data frame"),
        (lambda: Schema.infer({"a": [1.0]}), "is constant"),
        (lambda: Schema.infer({"a": [1.0, math.inf, 2.0]}), "finite values in column 'a'"),
        (lambda: Schema.infer({"a": [None, None]}), "has no values"),
        (lambda: Schema.infer({"a": [[1], [2]]}), "column 'a', got a list: leave it out"),
        (lambda: Schema.infer({"a": pd.to_timedelta([1, 2])}), "spans or times of day"),
        (lambda: Schema.infer(pd.DataFrame({("a", "b"): [1, 2]})), "one level, got 2"),
        (lambda: Schema.infer(pd.DataFrame([[1, 2]], columns=["a", "a"])), "more than once"),
        (lambda: Schema.infer({"price": [1.5, 2.5]}, prize=real()), "Did you mean 'price'"),
        (lambda: Schema.infer({"a": [1.0, -2.0, 2.5]}, a=positive()), "above 0, got -2"),
        (lambda: Schema.infer({"a": [1.0, 9.0, 2.5]}, a=bounded(0, 3)), "from 0 to 3, got 9"),
        (lambda: Schema.infer({"a": [1.0, 2.5]}, a=integer()), "integers in column 'a', got 2.5"),
        (lambda: Schema.infer({"a": [1, -1]}, a=count()), "at least 0, got -1"),
        (lambda: Schema.infer({"a": ["x", "y"]}, a=real()), "numbers in column 'a', got 'x'"),
        (lambda: bounded(1, 1), "low < high"),
        (lambda: Schema.infer({"a": [1.5, 2.0]}).without("a"), "is left"),
        (lambda: Schema.infer({"a": [1.5, 2.0]}).encode({"b": [1]}), "some of the columns"),
        (lambda: Schema.infer({"a": [1.5, 2.0]}).decode(torch.zeros(1, 2)), r"\(N, 1\)"),
        (lambda: Schema.infer({"a": [1.5, 2.0]})["b"], "got 'b'"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_labels_of_several_types_and_ends_of_ranges():
    schema = Schema.infer({"a": ["x", 3, None, "x", 3, True]}, a=categorical())
    assert schema["a"].num_categories >= 2
    schema = Schema.infer({"a": [0.0, 0.5, 1.0]}, a=bounded(0, 1))
    assert bool(schema.encode({"a": [0.0, 1.0]}).isfinite().all())
    assert str(Schema.infer({"a": [True, False]}, a=boolean())["a"]) == "boolean"
    assert str(Schema.infer({"a": pd.to_datetime(["2020-01-01", "2021-01-01"])}, a=date())["a"])


@pytest.mark.parametrize("zone", ["America/New_York", "Etc/GMT+5", "Europe/Rome"])
def test_zones_of_any_name(zone):
    start = pd.Timestamp("2021-03-01", tz="UTC")
    times = (start + pd.to_timedelta(np.arange(50) * 1000, "min")).tz_convert(zone)
    frame = pd.DataFrame({"at": times, "x": np.arange(50) * 0.5})
    schema = Schema.infer(frame)
    assert schema.decode(schema.encode(frame))["at"].dtype == frame["at"].dtype
    assert (schema.decode(schema.encode(frame))["at"] - frame["at"]).abs().max() < pd.Timedelta(
        "1ms"
    )


def test_times_of_polars_keep_their_types():
    pl = pytest.importorskip("polars")
    times = pl.datetime_range(
        pl.datetime(2020, 1, 1), pl.datetime(2020, 2, 1), "1d", time_zone="Europe/Rome", eager=True
    )
    frame = pl.DataFrame({"at": times, "plain": times.dt.replace_time_zone(None)})
    schema = Schema.infer(frame)
    back = schema.decode(schema.encode(frame))
    assert back.schema == frame.schema
    assert back.equals(frame)


def test_large_integers_and_kinds_as_text():
    big = 10**15 + np.arange(40) ** 2
    assert str(Schema.infer({"a": big})["a"]).startswith(("integer", "count"))
    with pytest.raises(ValueError, match="a kind of column for 'a'"):
        Schema.infer({"a": big}, a="integer")
    amounts = np.r_[0.0, np.random.default_rng(0).lognormal(8, 1, 500)]
    assert str(Schema.infer({"a": amounts})["a"]) == "positive, or 0"
