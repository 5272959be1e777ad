"""Models of tables, against counts of draws and sums over all values."""

import math

import numpy as np
import pytest
import torch

from pyromix import DRMM
from pyromix.tables import Schema, TableModel, col, count, integer, real

from .test_schema import made_up

pd = pytest.importorskip("pandas")

QUICK = {"num_components": 6, "members": 1, "shrinkage": 1.0, "progress_bar": False, "seed": 0}


@pytest.fixture(scope="module")
def model():
    frame = made_up().drop(columns=["seen", "share"])
    return TableModel.fit(frame, steps=120, **QUICK)


@pytest.fixture(scope="module")
def drawn(model):
    return model.sample(100_000, generator=torch.Generator().manual_seed(0))


def _error(share, count):
    return math.sqrt(max(share * (1 - share), 1e-12) / count)


def test_masses_of_integers_and_labels_sum_to_one():
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {"visits": rng.geometric(0.3, 300) - 1, "city": rng.choice(["A", "B"], 300)}
    )
    schema = Schema.infer(table, visits=count())
    model = TableModel.fit(table, schema, steps=60, **QUICK)
    every = pd.DataFrame([(n, c) for n in range(200) for c in "AB"], columns=["visits", "city"])
    mass = model.density(every)
    assert abs(float(mass.sum()) - 1) < 1e-3
    # What is not known is summed over.
    alone = model.density(every[["visits"]].iloc[::2])
    torch.testing.assert_close(alone, mass.reshape(-1, 2).sum(1))
    share = (model.sample(40_000)["visits"] == 0).mean()
    assert abs(share - float(alone[0])) < 5 * _error(share, 40_000)


def test_densities_are_in_the_units_of_the_table(model):
    """Over a grid of heights they sum to the mass of the rest of the row."""
    row = {"balance": [7], "city": ["Oslo"], "gain": [0.0]}
    grid = np.linspace(20, 380, 40_001)
    table = {name: value * len(grid) for name, value in row.items()} | {"height": grid}
    density = model.density(table).numpy()
    mass = float(model.density(row))
    assert abs(np.trapezoid(density, grid) / mass - 1) < 1e-3


QUESTIONS = {
    "range": ({"visits": (0, 5)}, (), lambda t: t["visits"].between(0, 5)),
    "point": ({"gain": 0, "member": True}, (), lambda t: (t["gain"] == 0) & t["member"]),
    "point and others": ({"gain": (0, 300)}, (), lambda t: t["gain"].between(0, 300)),
    "half": ({"income": (None, 20_000)}, (), lambda t: t["income"] <= 20_000),
    "dates": (
        {"joined": ("2020-06-01", "2021-01-31")},
        (),
        lambda t: t["joined"].between("2020-06-01", "2021-01-31"),
    ),
    "either": (
        {},
        ((col("height") > 185) | (col("visits") < 2) | ~col("city").isin(["Oslo", "Pisa"]),),
        lambda t: (t["height"] > 185) | (t["visits"] < 2) | ~t["city"].isin(["Oslo", "Pisa"]),
    ),
    "combined": (
        {"city": "Oslo"},
        (col("height") > 160 + 2 * col("rooms"), col("balance") < 20),
        lambda t: (t["city"] == "Oslo") & (t["height"] > 160 + 2 * t["rooms"])
        & (t["balance"] < 20),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", QUESTIONS)
def test_probabilities_and_draws_are_those_of_an_event(name, model, drawn):
    known, events, meets = QUESTIONS[name]
    share = meets(drawn).mean()
    assert 0.001 < share < 0.999
    found = model.probability(*events, **known)
    assert (found.error > 0) == (name == "combined")
    assert abs(found - share) < 4 * math.hypot(_error(share, len(drawn)), found.error)
    law = model.condition(*events, **known)
    rows = law.sample(20_000, generator=torch.Generator().manual_seed(1))
    assert meets(rows).all()
    kept = drawn[meets(drawn)]
    for column in ("size", "member"):
        for label, prob in law.predict_proba(column).items():
            expected = (kept[column] == label).mean()
            assert abs(prob - expected) < 5 * _error(expected, len(kept)) + 0.002
            assert abs((rows[column] == label).mean() - prob) < 5 * _error(prob, len(rows)) + 0.01
    for column in ("income", "height", "rooms"):
        expected, spread = kept[column].mean(), kept[column].std()
        assert abs(law.mean(column) - expected) < 6 * spread / math.sqrt(len(kept)) + 0.02 * spread
        for level, value in zip(
            (0.1, 0.5, 0.9), law.quantile(column, [0.1, 0.5, 0.9]), strict=True
        ):
            assert (
                (kept[column] < value).mean() - 0.03
                < level
                < (kept[column] <= value).mean() + 0.03
            )
    # One law for both: densities of draws given the event are those of the model over Z.
    some = rows.head(50)
    got, joint = law.log_prob(some), model.log_prob(some)
    torch.testing.assert_close(
        got, joint - math.log(found), rtol=0, atol=4 * found.error / found + 1e-6
    )


def test_nothing_is_broken_by_rare_events(model):
    """A range, a set of labels and a linear inequality together, of probability about 1e-4."""
    event = (
        (col("height") > 188) & col("city").isin(["Oslo", "Pisa"])
        & (col("balance") + 0.5 * col("height") < 52) & (col("gain") > 0)
    )  # fmt: skip
    found = model.probability(event)
    assert 1e-5 < found < 1e-3
    rows = model.condition(event).sample(100_000)
    met = (rows["height"] > 188) & rows["city"].isin(["Oslo", "Pisa"]) & (rows["gain"] > 0)
    assert (met & (rows["balance"] + 0.5 * rows["height"] < 52)).all()
    large = model.sample(400_000, generator=torch.Generator().manual_seed(3))
    met = (large["height"] > 188) & large["city"].isin(["Oslo", "Pisa"]) & (large["gain"] > 0)
    share = (met & (large["balance"] + 0.5 * large["height"] < 52)).mean()
    assert abs(found - share) < 3 * math.hypot(_error(share, len(large)), found.error)


def test_values_of_real_columns_have_densities(model):
    law = model.condition(height=171.5, city="Oslo")
    assert (law.sample(100)["height"] == 171.5).all()
    assert law.mean("height") == 171.5
    grid = pd.DataFrame({"height": [171.5], "city": ["Oslo"]})
    assert float(law.log_prob(grid)) == pytest.approx(0, abs=1e-9)
    both = model.log_prob(grid.assign(size="M"))
    prob = law.predict_proba("size")["M"]
    assert float((both - model.log_prob(grid)).exp()) == pytest.approx(prob, rel=1e-6)
    # Given more, in one step or in two.
    again = model.condition(city="Oslo").condition(height=171.5)
    assert again.probability(visits=(0, 5)) == pytest.approx(law.probability(visits=(0, 5)))


def test_probabilities_given_something(model, drawn):
    oslo = drawn[drawn["city"] == "Oslo"]
    share = (oslo["height"] > 175).mean()
    for given in ({"city": "Oslo"}, col("city") == "Oslo"):
        got = model.probability(col("height") > 175, given=given)
        assert abs(got - share) < 5 * _error(share, len(oslo))
    assert model.condition(city="Oslo").probability(height=(175, None)) == pytest.approx(got)
    assert model.probability(col("height") < 150, given=col("height") > 160) == 0


def test_a_change_of_units_changes_the_slope_alone():
    rng = np.random.default_rng(0)
    inches = rng.normal(68, 4, 300)
    found = [
        TableModel.fit({"height": unit * inches}, steps=40, **QUICK).log_prob(
            {"height": unit * inches[:20]}
        )
        for unit in (1.0, 2.54)
    ]
    torch.testing.assert_close(found[0] - math.log(2.54), found[1], rtol=1e-5, atol=1e-5)


def test_mutual_information(model, drawn):
    """Against a table of counts of draws; and what a column tells given a third."""
    found = model.mutual_information("city", "size")
    joint = pd.crosstab(drawn["city"], drawn["size"], normalize=True).to_numpy()
    apart = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    counted = (joint * np.log(joint / apart)).sum()
    assert abs(found - counted) < 5e-4
    given = model.mutual_information("city", "size", given="member")
    shares = drawn["member"].value_counts(normalize=True)
    each = [
        share * model.condition(member=value).mutual_information("city", "size")
        for value, share in shares.items()
    ]
    assert abs(given - sum(each)) < 4 * given.error + 1e-4
    assert model.condition(city="Oslo").mutual_information("city", "size") == pytest.approx(0)


def test_marginals_and_modes(model, drawn):
    pair = model.marginal(["member", "size"])
    assert list(pair.sample(3).columns) == [n for n in model.names if n in ("member", "size")]
    every = pd.DataFrame(
        [(m, s) for m in (True, False) for s in "SML"], columns=["member", "size"]
    )
    mass = pair.density(every.assign(height=170.0)).numpy()  # others are not looked at
    assert mass.sum() == pytest.approx(1)
    best = pair.mode()
    assert (best["member"][0], best["size"][0]) == tuple(every.iloc[mass.argmax()])
    law = model.condition(height=(170, 180))
    some = drawn[drawn["height"].between(170, 180)].head(500)
    assert float(law.log_prob(law.mode())) > float(law.log_prob(some).max()) - 1.0


def test_odd_rows_and_cells():
    rng = np.random.default_rng(0)
    size = 3000
    group = rng.choice(["a", "b"], size)
    frame = pd.DataFrame(
        {
            "group": group,
            "level": np.where(group == "a", 10.0, 20.0) + rng.normal(0, 1, size),
            "other": rng.normal(0, 1, size),
        }
    )
    frame.loc[::5, "other"] = np.nan
    model = TableModel.fit(frame.iloc[:2500], steps=250, **QUICK)
    ordinary = model.anomaly(frame.iloc[2500:])
    assert abs((ordinary.p_values < 0.1).mean() - 0.1) < 0.06
    below = ordinary.cells["level"] < 0.1
    assert abs(below.mean() - 0.1) < 0.06
    assert ordinary.cells["other"].isna().mean() == pytest.approx(0.2, abs=0.01)
    odd = model.anomaly({"group": ["a", "a"], "level": [20.0, 10.0], "other": [0.0, np.nan]})
    assert odd.p_values[0] < 0.1 < odd.p_values[1]
    assert odd.scores[0] > odd.scores[1]
    assert odd.cells["level"][0] < 0.05
    assert odd.cells["group"][0] < 0.05
    assert odd.cells["other"][0] > 0.1


def test_frames_of_evidence(model):
    frame = made_up().head(80)
    ask = frame.drop(columns=["size", "income"])
    rows = model.condition(ask)
    assert len(rows) == 80
    probs = rows.predict_proba("size")
    means, levels = rows.mean("income"), rows.quantile("income", [0.05, 0.5, 0.95])
    assert (probs.shape, means.shape, levels.shape) == ((80, 3), (80,), (80, 3))
    assert np.allclose(rows.interval("income", 0.9), levels[:, [0, 2]])
    taller = rows.probability(col("income") > 30_000)
    names = [n for n in model.names if n in ask.columns]
    for row in range(0, 80, 16):
        known = {n: ask[n].iloc[row] for n in names if ask[n].notna().iloc[row]}
        law = model.condition(**known)
        for label, prob in law.predict_proba("size").items():
            assert probs[label][row] == pytest.approx(prob, rel=1e-6)
        assert means[row] == pytest.approx(law.mean("income"))
        assert levels[row] == pytest.approx(law.quantile("income", [0.05, 0.5, 0.95]))
        assert taller[row] == pytest.approx(law.probability(income=(30_000.0, None)), rel=1e-6)
        assert float(rows.log_evidence()[row]) == pytest.approx(
            float(model.log_prob(ask.iloc[[row]])), rel=1e-9
        )
    drawn = rows.sample(5)
    assert len(drawn) == 400
    heights = frame["height"].to_numpy().repeat(5)
    np.testing.assert_array_equal(drawn["height"][~np.isnan(heights)], heights[~np.isnan(heights)])
    own = model.condition(frame)  # a column that rows know keeps its value
    known = frame["size"].notna().to_numpy()
    assert (own.predict_proba("size")["M"][known] == (frame["size"] == "M")[known]).all()
    np.testing.assert_array_equal(
        own.mean("height")[frame["height"].notna()], frame["height"].dropna()
    )


def test_frames_of_evidence_given_an_event(model):
    """Against laws of one row at a time, and draws."""
    frame = pd.DataFrame({"city": ["Oslo", "Pisa", None], "rooms": [3, None, 2]})
    event = {"height": (160, 172.5), "size": ["M", "L"], "visits": (None, 9)}
    rows = model.condition(frame, **event)
    generator = torch.Generator().manual_seed(0)
    sampled = rows.sample(4000, generator=generator)
    assert sampled["height"].between(160, 172.5).all()
    assert sampled["size"].isin(["M", "L"]).all()
    assert (sampled["visits"] <= 9).all()
    filled = rows.filled()
    assert filled["height"].between(160, 172.5).all()
    asked = rows.probability((col("height") > 165) & (col("joined") > "2020-01-01"), size="M")
    for k in range(len(frame)):
        known = {name: value for name, value in frame.iloc[k].items() if not pd.isna(value)}
        one = model.condition(**event, **known)
        np.testing.assert_allclose(rows.mean("height")[k], one.mean("height"), rtol=1e-6)
        probs = [0.1, 0.5, 0.9]
        for name in ("height", "visits"):
            np.testing.assert_allclose(
                rows.quantile(name, probs)[k], one.quantile(name, probs), rtol=1e-6
            )
        for name in ("size", "city"):
            expected = list(one.predict_proba(name).values())
            np.testing.assert_allclose(rows.predict_proba(name).iloc[k], expected, atol=1e-9)
        expected = one.probability(col("height") > 165, col("joined") > "2020-01-01", size="M")
        np.testing.assert_allclose(asked[k], expected, rtol=1e-6)
        assert rows.log_evidence()[k] == pytest.approx(
            float(np.log(model.probability(**known, given=event))) if known else 0.0, abs=1e-6
        )
        drawn = sampled["height"].iloc[4000 * k : 4000 * (k + 1)]
        assert abs(drawn.mean() - one.mean("height")) < 5 * (drawn.var() / 4000) ** 0.5
    for wrong in (col("height") == 170.0, col("height") > 10 * col("visits")):
        with pytest.raises(NotImplementedError, match="Say them in the frame"):
            model.condition(frame, wrong)
    few = model.marginal(["city", "size"]).condition(frame)
    assert list(few.sample(1).columns) == ["city", "size"]
    assert few.log_evidence()[0] == pytest.approx(float(np.log(model.probability(city="Oslo"))))


def test_gaps_are_filled_in(model, drawn):
    frame = made_up().head(60).set_axis(range(100, 160))
    whole = model.impute(frame)
    assert (whole.index == frame.index).all()
    assert (model.anomaly(frame).cells.index == frame.index).all()
    names = model.schema.names
    assert list(whole.columns) == list(frame.columns)
    assert whole["share"].equals(frame["share"])  # which the model does not have
    assert not whole[names].isna().any().any()
    fewer = frame.drop(columns="city")
    assert list(model.impute(fewer).columns) == [*fewer.columns, "city"]
    several = model.impute(frame, draws=2)
    for filled in (whole, *several):
        for name in names:
            known = frame[name].notna()
            assert (filled[name][known] == frame[name][known]).all()
        assert filled.dtypes.to_dict() == frame.dtypes.to_dict()
    generator = torch.Generator().manual_seed(0)
    rows = pd.concat(model.impute({"city": ["Oslo"]}, 400, generator=generator))
    assert (rows["city"] == "Oslo").all()
    expected = drawn[drawn["city"] == "Oslo"]["height"]
    assert abs(rows["height"].mean() - expected.mean()) < 5 * (expected.var() / 400) ** 0.5


def test_quantiles_and_means_of_dates_are_dates(model, drawn):
    law = model.condition(height=(165, None))
    rows = law.sample(20_000, generator=torch.Generator().manual_seed(1))
    low, high = law.interval("joined", 0.8)
    assert low.dtype.kind == "M"
    assert abs(rows["joined"].between(low, high).mean() - 0.8) < 0.02
    assert abs(law.mean("joined") - rows["joined"].mean()) < pd.Timedelta(days=10)
    known = model.condition(
        {"height": [170.0, np.nan], "joined": pd.to_datetime([None, "2020-05-01"])}
    )
    ends = known.interval("joined", 0.8)
    assert ends.shape == (2, 2)
    assert (ends[1] == np.datetime64("2020-05-01")).all()
    assert known.quantile("joined", 0.5).shape == (2,)


def test_frames_of_polars_come_back():
    pl = pytest.importorskip("polars")
    rng = np.random.default_rng(0)
    table = pl.DataFrame(
        {
            "level": rng.normal(size=200),
            "kind": pl.Series(rng.choice(["a", "b"], 200), dtype=pl.Categorical),
            "visits": pl.Series(rng.poisson(20, 200), dtype=pl.UInt16),
            "weight": pl.Series(rng.normal(size=200), dtype=pl.Float32),
        }
    )
    model = TableModel.fit(table, steps=30, **QUICK)
    other = table.with_columns(
        pl.when(pl.col("level") > 0).then("weight").alias("weight"), note=pl.lit("kept")
    )
    whole = model.impute(other)
    assert whole.schema == other.schema
    assert whole.null_count().sum_horizontal().item() == 0
    for frame in (model.sample(5), model.impute(table), model.mode(), model.anomaly(table).cells):
        assert isinstance(frame, pl.DataFrame)
    assert model.sample(5).schema == table.schema
    assert model.condition(table.drop("kind")).predict_proba("kind").columns == list(
        model.schema["kind"].values
    )


def test_types_of_pandas_come_back():
    rng = np.random.default_rng(0)
    size = 90
    table = pd.DataFrame(
        {
            "whole": pd.array([*rng.integers(0, 50, size - 1), None], dtype="Int32"),
            "real": pd.array([*rng.normal(size=size - 1), None], dtype="Float64"),
            "text": pd.array(["u", "v", None] * (size // 3), dtype="string"),
            "truth": pd.array([True, False, None] * (size // 3), dtype="boolean"),
            "single": rng.normal(size=size).astype("float32"),
            "byte": rng.integers(0, 50, size).astype("int8"),
            "sure": rng.random(size) < 0.5,
        }
    )
    model = TableModel.fit(table, steps=20, **QUICK)
    for frame in (model.sample(5), model.impute(table), model.mode()):
        assert frame.dtypes.to_dict() == table.dtypes.to_dict()
    pd.testing.assert_frame_equal(model.schema.decode(model.schema.encode(table)), table)
    gaps = table.drop(columns=["byte", "sure"]).assign(byte=None, sure=None)
    assert model.impute(gaps)[["byte", "sure"]].dtypes.to_list() == [np.int8, bool]
    decoded = model.schema.decode(model.schema.encode(gaps))
    assert [str(t) for t in decoded[["byte", "sure"]].dtypes] == ["Int8", "boolean"]


def test_warnings_name_the_line_that_asked(model):
    frame = made_up().head(20).assign(city="Atlantis")
    asks = [
        lambda: model.log_prob(frame),
        lambda: model.condition(frame),
        lambda: model.impute(frame, draws=1),
        lambda: model.anomaly(frame),
        lambda: TableModel.fit(frame, model.schema, steps=1, **QUICK),
    ]
    for ask in asks:
        with pytest.warns(UserWarning, match="Atlantis") as caught:
            ask()
        assert {warning.filename for warning in caught} == {__file__}


def test_remainders(model, drawn):
    for event, met in (
        (col("visits") % 7 == 0, drawn["visits"] % 7 == 0),
        (col("visits") // 10 >= 1, drawn["visits"] // 10 >= 1),
    ):
        found = model.probability(event)
        assert abs(found - met.mean()) < 4 * math.hypot(found.error, _error(met.mean(), 100_000))
        assert (model.condition(event).sample(50)["visits"] >= 0).all()
    assert (model.condition(col("visits") % 7 == 0).sample(50)["visits"] % 7 == 0).all()


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda m: m.probability(height=170.0), "density, not a probability"),
        (lambda m: m.probability(hight=(1, 2)), "Did you mean 'height'"),
        (lambda m: m.condition(city="Oslo").predict_proba("height"), "which is real"),
        (lambda m: m.condition(city="Oslo").quantile("city", 0.5), "with an order"),
        (lambda m: m.condition(city="Oslo").mean("size"), "a column of numbers"),
        (lambda m: m.condition(city="Oslo").quantile("height", 1.5), "from 0 to 1"),
        (lambda m: m.condition(col("visits") > 5, col("visits") < 3), "can hold"),
        (lambda m: m.condition((col("height") == 170.0) | (col("height") > 180)), "got both"),
        (lambda m: m.condition(col("height") - col("visits") > 1e6), "none of .* draws"),
        (lambda m: m.marginal("size").mean("height"), "one of the columns"),
        (lambda m: m.marginal([]), "at least one column"),
        (lambda m: m.mutual_information("city", "city"), "different columns"),
        (lambda m: m.log_prob({"nothing": [1]}), "some of the columns"),
        (lambda m: m.condition({"city": ["Oslo"]}, city="Oslo"), "unknown columns"),
        (lambda m: m.marginal("size").condition({"size": ["M"]}).mean("height"), "of the columns"),
        (lambda m: m.condition({"city": ["Oslo"]}).probability(city="Oslo"), "unknown columns"),
        (lambda m: TableModel(m._coding, [DRMM(0, 1, 2, categories=(2,))]), "Expected models of"),
        (lambda m: TableModel(m._coding, m.models, [0.5, 0.5]), "Expected 1 positive weights"),
        (lambda m: TableModel.fit({"a": [1.5, 2.5]}, targets="b", **QUICK), "'b'"),
        (lambda m: TableModel.fit({"a": [1.5]}, Schema.infer({"a": [1.0, 2.5]})), "two rows"),
        (lambda m: TableModel.fit({"a": [1.5, 2.5]}, time_budget=0), "positive time_budget"),
        (lambda m: TableModel.fit({"city": ["A"] * 2}, Schema.infer(made_up())), "frame without"),
    ],
)  # fmt: skip
def test_bad_questions(ask, message, model):
    with pytest.raises(ValueError, match=message):
        ask(model)


def test_models_are_saved_with_their_schema(model, tmp_path):
    model.save(tmp_path / "table")
    copy = TableModel.load(tmp_path / "table")
    assert repr(copy.schema) == repr(model.schema)
    frame = made_up().head(30)
    assert torch.equal(copy.log_prob(frame), model.log_prob(frame))
    np.testing.assert_array_equal(copy.anomaly(frame).p_values, model.anomaly(frame).p_values)
    generators = (torch.Generator().manual_seed(0) for _ in range(2))
    rows = [
        each.sample(50, generator=own) for each, own in zip((copy, model), generators, strict=True)
    ]
    pd.testing.assert_frame_equal(*rows)
    assert str(copy.schema.set("rooms", integer())["rooms"]) == "integer"
    halves = TableModel(model._coding, [*model.models, *model.models], [3.0, 1.0])
    torch.testing.assert_close(halves.log_prob(frame), model.log_prob(frame))
    halves.save(tmp_path / "table")
    assert TableModel.load(tmp_path / "table").weights.tolist() == [0.75, 0.25]
    with pytest.raises(FileNotFoundError, match="schema"):
        TableModel.load(tmp_path)


def test_training_is_the_same_for_a_seed_and_finds_what_matters():
    """Two columns that depend on each other by a rule, beside one that tells nothing."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=1500)
    frame = pd.DataFrame(
        {"x": x, "sign": np.where(x > 0.5, "up", "down"), "noise": rng.normal(size=1500)}
    )
    schema = Schema.infer(frame, x=real())
    options = QUICK | {"num_components": 12, "steps": 300, "shrinkage": 4.0}
    fitted = [TableModel.fit(frame, schema, **options) for _ in range(2)]
    assert torch.equal(fitted[0].log_prob(frame), fitted[1].log_prob(frame))
    assert fitted[0].probability(sign="up", given={"x": (1, None)}) > 0.95
    assert fitted[0].mutual_information("x", "sign") > 0.45
    assert fitted[0].mutual_information("x", "noise") < 0.02


def test_integers_are_spread_over_their_intervals():
    schema = Schema.infer({"a": [1, 2, 5, 9, 30, 2, 4]}, a=integer())
    x = schema.encode({"a": [3] * 4000})
    spread = schema.dequantize(x, generator=torch.Generator().manual_seed(0))
    low, high = schema["a"].interval(np.array([3.0]))
    assert float(spread.min()) >= low[0]
    assert float(spread.max()) <= high[0]
    assert abs(float(spread.mean() - x.mean())) < 0.05 * (high[0] - low[0])
    assert schema.decode(spread)["a"].eq(3).all()


def test_far_values_have_the_probabilities_that_densities_sum_to(model):
    """However small: a share of a tail is not the difference of two numbers near one."""
    for low in (150, 400, 900):
        numbers = np.arange(low, low + 600)
        summed = float(model.density({"visits": numbers}).sum())
        asked = model.probability(visits=(low, low + 599))
        assert 0 < asked < 1e-2
        assert asked == pytest.approx(summed, rel=1e-4)
    assert (model.condition(visits=(900, None)).sample(50)["visits"] >= 900).all()


def test_names_and_booleans_as_users_write_them():
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.normal(size=(60, 2)))  # named 0 and 1
    table["self"] = rng.random(60) < 0.5
    table["given"] = rng.normal(size=60)
    model = TableModel.fit(table, steps=20, **QUICK)
    assert list(model.sample(2).columns) == ["0", "1", "self", "given"]
    total = model.probability(col("self")) + model.probability(~col("self"))
    assert total == pytest.approx(1)
    assert model.probability(self=True) == pytest.approx(model.probability(col("self")))
    both = model.probability(col("self") & (col("given") > 0))
    assert both == pytest.approx(model.probability(col("given") > 0, given={"self": True}) * (
        model.probability(self=True)
    ))  # fmt: skip
    with pytest.raises(ValueError, match="col\\('given'\\)"):
        model.probability(given=(0, 1))


def test_values_that_a_column_cannot_have_count_as_missing(model):
    frame = {"visits": [-3, 5], "city": ["Oslo", "Oslo"]}
    with pytest.warns(UserWarning, match="'visits', count from 0, cannot have values such as -3"):
        found = model.log_prob(frame)
    torch.testing.assert_close(found[:1], model.log_prob({"city": ["Oslo"]}))


def test_rows_that_would_take_for_ever_are_refused(model):
    law = model.condition(col("balance") + 0.5 * col("height") < 32)
    assert len(law.sample(10)) == 10
    with pytest.raises(ValueError, match="Expected fewer rows: about one of"):
        law.sample(2_000_000)
