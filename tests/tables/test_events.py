"""Events as disjoint cells, against the truth of each row."""

import datetime

import numpy as np
import pytest

from pyromix.tables import Schema, col, ordered
from pyromix.tables.regions import Intervals, Labels

from .test_schema import made_up

pd = pytest.importorskip("pandas")


@pytest.fixture(scope="module")
def frame():
    return made_up().dropna(subset=["height", "visits", "balance", "gain", "city", "size"])


@pytest.fixture(scope="module")
def schema(frame):
    return Schema.infer(frame, rooms=ordered([1, 2, 3, 4, 5]))


DAY = datetime.timedelta(days=1)
EVENTS = {
    "ranges": (
        (col("height") > 170) & (col("height") <= 180.5),
        lambda t: (t["height"] > 170) & (t["height"] <= 180.5),
    ),
    "either": (
        (col("height") > 180) | (col("visits") < 2) | (col("city") == "Oslo"),
        lambda t: (t["height"] > 180) | (t["visits"] < 2) | (t["city"] == "Oslo"),
    ),
    "neither": (
        ~((col("height") > 180) | (col("visits") < 2)) & (col("city") != "Oslo"),
        lambda t: ~((t["height"] > 180) | (t["visits"] < 2)) & (t["city"] != "Oslo"),
    ),
    "scaled": (
        (3 - 2 * col("balance") / 4 >= 0) & (abs(col("balance")) < 40),
        lambda t: (3 - 2 * t["balance"] / 4 >= 0) & (t["balance"].abs() < 40),
    ),
    "point and others": (col("gain") < 500, lambda t: t["gain"] < 500),
    "beside a point": (col("gain") != 0, lambda t: t["gain"] != 0),
    "several": (
        col("city").isin(["Oslo", "Pisa"]) & col("visits").isin([1, 4, 7]),
        lambda t: t["city"].isin(["Oslo", "Pisa"]) & t["visits"].isin([1, 4, 7]),
    ),
    "between": (
        ~col("balance").between(-10, 10) & col("visits").between(None, 9),
        lambda t: ~t["balance"].between(-10, 10) & (t["visits"] <= 9),
    ),
    "order": (
        (col("size") >= "M") & (col("rooms") * 2 + 1 > 5),
        lambda t: (t["size"] >= "M") & (t["rooms"] * 2 + 1 > 5),
    ),
    "dates": (
        (col("joined") >= "2020-06-01") & (col("joined") < pd.Timestamp("2021-02-01")),
        lambda t: (t["joined"] >= "2020-06-01") & (t["joined"] < "2021-02-01"),
    ),
    "combined": (
        (col("height") + col("balance") > 170) & (col("height") < 190),
        lambda t: (t["height"] + t["balance"] > 170) & (t["height"] < 190),
    ),
    "one side or the other": (
        (col("height") > 2 * col("visits") + 150) | (col("balance") > col("visits")),
        lambda t: (t["height"] > 2 * t["visits"] + 150) | (t["balance"] > t["visits"]),
    ),
    "products": (
        col("height") * col("balance") ** 2 < 20_000,
        lambda t: t["height"] * t["balance"] ** 2 < 20_000,
    ),
    "times": (
        col("seen") - col("joined") > 30 * DAY,
        lambda t: (t["seen"] - t["joined"]) > pd.Timedelta(days=30),
    ),
    "cancelled": (
        (col("height") - col("height") < 1) & (col("visits") > 3),
        lambda t: t["visits"] > 3,
    ),
}


def _inside(schema, cell, frame):
    """Which rows are in a cell, by its regions alone."""
    inside = np.ones(len(frame), dtype=bool)
    values = {}
    for name in schema.names:
        column = frame[name]
        if column.dtype.kind == "M":
            column = (column - pd.Timestamp(0)) / pd.Timedelta("1D")
        values[name] = column.to_numpy()
    for name, region in cell.regions.items():
        if isinstance(region, Labels):
            codes = [list(schema[name].values).index(value) for value in values[name]]
            inside &= np.isin(codes, list(region.codes))
        else:
            inside &= region.contains(values[name].astype(float))
    return inside & cell.contains(values)


@pytest.mark.parametrize("name", EVENTS)
@pytest.mark.parametrize("opposite", [False, True])
def test_each_row_that_meets_an_event_is_in_one_cell(name, opposite, schema, frame):
    event, meets = EVENTS[name]
    expected = meets(frame).to_numpy()
    assert 0 < expected.sum() < len(frame)
    if opposite:
        event, expected = ~event, ~expected
    count = sum(_inside(schema, cell, frame).astype(int) for cell in schema.cells(event))
    rows = frame[["seen", "joined"]].notna().all(axis=1).to_numpy()  # gaps of dates
    np.testing.assert_array_equal(count[rows], expected[rows].astype(int))


def test_logic_of_random_events():
    """Cells of random formulas are disjoint, and their union is the truth table's."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({name: rng.integers(0, 6, 500) * 0.5 + 0.25 for name in "abc"})
    frame += 1e-3 * rng.random((500, 3))
    schema = Schema.infer(frame)
    atoms = [
        (col(name) > t, frame[name] > t)
        if rng.random() < 0.5
        else (col(name) <= t, frame[name] <= t)
        for name in "abc"
        for t in rng.uniform(0.3, 2.5, 3)
    ]
    for _ in range(60):
        event, truth = atoms[rng.integers(len(atoms))]
        for _ in range(4):
            other, also = atoms[rng.integers(len(atoms))]
            if rng.random() < 0.3:
                event, truth = ~event, ~truth
            if rng.random() < 0.5:
                event, truth = event & other, truth & also
            else:
                event, truth = event | other, truth | also
        cells = schema.cells(event)
        count = sum((_inside(schema, c, frame).astype(int) for c in cells), np.zeros(500, int))
        np.testing.assert_array_equal(count, truth.to_numpy().astype(int))


def test_intervals():
    a = Intervals.between(0, 5) | Intervals.between(7, 9, with_low=False)
    x = np.array([-1, 0, 5, 6, 7, 8, 9, np.nan])
    assert a.contains(x).tolist() == [False, True, True, False, False, True, True, False]
    assert (~a).contains(x).tolist() == [True, False, False, True, True, False, False, False]
    assert (~~a).spans == a.spans
    assert (a & ~a).empty
    assert Intervals.points([3]).point == 3
    flipped = Intervals.between(1, 2, with_low=False).scaled(-2, 5)  # 1 < 5 - 2 x <= 2
    assert flipped.contains(np.array([1.5, 1.75, 2.0])).tolist() == [True, True, False]
    # Of integers 2 < x <= 4 and x < 7, with half a step on both sides.
    assert Intervals.between(2, 4, with_low=False).whole(1).spans == (((2.5, 0), (4.5, 1)),)
    assert Intervals.between(0.3, 0.3).whole(0.1).spans[0][0][0] == pytest.approx(0.25)
    assert Intervals.between(2.2, 2.8).whole(1).empty


@pytest.mark.parametrize(
    ("event", "message"),
    [
        (lambda: col("hight") > 3, "Did you mean 'height'"),
        (lambda: col("city") == "Olso", "Did you mean 'Oslo'"),
        (lambda: col("city") > "Oslo", "no order"),
        (lambda: col("city") + 1 > 3, "labels"),
        (lambda: col("height") == col("income"), "has no probability"),
        (lambda: col("height") < "tall", "a number for column 'height'"),
        (lambda: col("city") == col("height"), "== or !="),
        (lambda: 150 < col("height") < 170, "chain"),
        (lambda: (col("height") > 3) and (col("visits") > 3), "joined by &"),
        (lambda: (col("height") > 3) & True, "Expected an event"),
        (lambda: col("height") + "x" > 3, "number or a column in arithmetic"),
        (lambda: "height > 3", "events such as"),
    ],
)
def test_bad_events(event, message, schema):
    with pytest.raises(ValueError, match=message):
        schema.cells(event())
    with pytest.raises(NotImplementedError, match="sums over gaps"):
        col("height").isna()


def test_labels_of_two_columns():
    frame = pd.DataFrame({"home": ["A", "B", "C", "A"], "work": ["B", "B", "D", "A"]})
    schema = Schema.infer(frame)
    for event, expected in (
        (col("home") == col("work"), [0, 1, 0, 1]),
        (col("home") != col("work"), [1, 0, 1, 0]),
        (~(col("home") == col("work")), [1, 0, 1, 0]),
    ):
        count = sum(_inside(schema, cell, frame).astype(int) for cell in schema.cells(event))
        assert count.tolist() == expected
