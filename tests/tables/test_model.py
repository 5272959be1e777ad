"""Models of tables, against counts of draws and sums over all values."""

import math

import numpy as np
import pytest
import torch

from pyromix import DRMM
from pyromix.tables import Schema, TableModel, count, integer

from .test_schema import made_up

pd = pytest.importorskip("pandas")


@pytest.fixture(scope="module")
def model():
    frame = made_up().drop(columns=["seen", "joined", "share"])
    return TableModel.fit(
        frame, num_layers=1, num_components=6, steps=80, seed=0, progress_bar=False
    )


@pytest.fixture(scope="module")
def drawn(model):
    return model.sample(60_000, generator=torch.Generator().manual_seed(0))


def test_masses_of_integers_and_labels_sum_to_one():
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {"visits": rng.geometric(0.3, 300) - 1, "city": rng.choice(["A", "B"], 300)}
    )
    schema = Schema.infer(table, visits=count())
    model = TableModel.fit(
        table, schema, num_layers=1, num_components=3, steps=60, seed=0, progress_bar=False
    )
    every = pd.DataFrame([(n, c) for n in range(200) for c in "AB"], columns=["visits", "city"])
    mass = model.log_prob(every).exp()
    assert abs(float(mass.sum()) - 1) < 1e-3
    # What is not known is summed over.
    alone = model.log_prob(every[["visits"]].iloc[::2]).exp()
    torch.testing.assert_close(alone, mass.reshape(-1, 2).sum(1), rtol=1e-4, atol=1e-7)
    share = (model.sample(40_000)["visits"] == 0).mean()
    assert abs(share - float(alone[0])) < 0.02


def test_densities_are_in_the_units_of_the_table(model):
    """Over a grid of heights they sum to the mass of the rest of the row."""
    row = {"balance": [7], "city": ["Oslo"], "gain": [0.0]}
    grid = np.linspace(60, 280, 4001)
    table = {name: value * len(grid) for name, value in row.items()} | {"height": grid}
    density = model.log_prob(table).exp().numpy()
    mass = float(model.log_prob(row).exp())
    assert abs(np.trapezoid(density, grid) / mass - 1) < 1e-3


def test_probabilities_are_those_of_draws(model, drawn):
    questions = [
        ({"visits": (0, 5)}, drawn["visits"].between(0, 5)),
        ({"gain": 0, "member": True}, (drawn["gain"] == 0) & drawn["member"]),
        ({"income": (None, 20_000)}, drawn["income"] <= 20_000),
    ]
    for event, met in questions:
        share = met.mean()
        error = math.sqrt(share * (1 - share) / len(drawn))
        assert abs(model.probability(**event) - share) < 5 * error
    oslo = drawn[drawn["city"] == "Oslo"]
    share = (oslo["height"] > 175).mean()
    got = model.probability({"city": "Oslo"}, height=(175, None))
    assert abs(got - share) < 5 * math.sqrt(share * (1 - share) / len(oslo))
    assert model.condition(city="Oslo").probability(height=(175, None)) == got


def test_a_law_given_what_is_known(model, drawn):
    law = model.condition(visits=(3, 30), city=["Oslo", "Pisa"])
    kept = drawn[drawn["visits"].between(3, 30) & drawn["city"].isin(["Oslo", "Pisa"])]
    rows = law.sample(2000)
    assert rows["visits"].between(3, 30).all()
    assert rows["city"].isin(["Oslo", "Pisa"]).all()
    sizes = law.predict_proba("size")
    assert sum(sizes.values()) == pytest.approx(1, abs=1e-5)
    for label, prob in sizes.items():
        share = (kept["size"] == label).mean()
        assert abs(prob - share) < 5 * math.sqrt(share * (1 - share) / len(kept)) + 1e-3
    levels = [0.1, 0.5, 0.9]
    for name in ("income", "balance", "gain"):
        found = law.quantile(name, levels)
        below = [(kept[name] <= value).mean() for value in found]
        step = 0.02 if name != "gain" else 1.0  # at a point many levels have one quantile
        assert np.all(np.abs(np.array(below) - levels) < step)
    assert law.quantile("gain", 0.1) == 0


def test_a_change_of_units_changes_the_slope_alone():
    rng = np.random.default_rng(0)
    inches = rng.normal(68, 4, 300)
    options = {"num_layers": 1, "num_components": 2, "steps": 40, "seed": 0}
    found = [
        TableModel.fit({"height": unit * inches}, progress_bar=False, **options).log_prob(
            {"height": unit * inches[:20]}
        )
        for unit in (1.0, 2.54)
    ]
    torch.testing.assert_close(found[0] - math.log(2.54), found[1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda m: m.probability({"city": "Oslo"}, city="Pisa"), r"not given, got \['city'\]"),
        (lambda m: m.probability(height=170.0), "one value has no probability"),
        (lambda m: m.probability(hight=(1, 2)), "Did you mean 'height'"),
        (lambda m: m.condition(city="Oslo").predict_proba("height"), "which is real"),
        (lambda m: m.condition(city="Oslo").quantile("size", 0.5), "numeric column"),
        (lambda m: m.condition(city="Oslo").mean("size"), "a column of numbers"),
        (lambda m: m.condition(city="Oslo").quantile("height", 1.5), "from 0 to 1"),
        (lambda m: TableModel(m.schema.without("city"), m.model), "Expected a model of"),
        (lambda m: TableModel(m.schema, DRMM(m.schema.dim, 1, 2, categories=m.schema.categories)),
         "marginalize"),
        (lambda m: m.log_prob({"nothing": [1]}), "some of the columns"),
    ],
)  # fmt: skip
def test_bad_questions(ask, message, model):
    with pytest.raises(ValueError, match=message):
        ask(model)


def test_gaps_are_filled_in(model, drawn):
    frame = made_up().head(60)
    whole = model.impute(frame)
    names = model.schema.names
    assert list(whole.columns) == names
    assert not whole.isna().any().any()
    for name in names:
        known = frame[name].notna()
        assert (whole[name][known] == frame[name][known]).all()
    assert whole.dtypes.to_dict() == frame[names].dtypes.to_dict()
    generator = torch.Generator().manual_seed(0)
    city = {"city": ["Oslo"]}
    drawn_rows = pd.concat(model.impute(city, 400, generator=generator))
    assert (drawn_rows["city"] == "Oslo").all()
    expected = drawn[drawn["city"] == "Oslo"]
    error = (expected["height"].var() / 400) ** 0.5
    assert abs(drawn_rows["height"].mean() - expected["height"].mean()) < 5 * error
    law = model.condition(city="Oslo")
    assert abs(law.mean("height") - expected["height"].mean()) < 0.5 * error
    low, high = law.interval("height", 0.8)
    assert abs(expected["height"].between(low, high).mean() - 0.8) < 0.02


def test_quantiles_of_dates_are_dates():
    """In closed form, and under an inequality of which draws are taken."""
    frame = made_up()[["joined", "seen", "height"]]
    model = TableModel.fit(
        frame, num_layers=1, num_components=3, steps=30, seed=0, progress_bar=False
    )
    law = model.condition(height=(165, None))
    rows = law.sample(20_000, generator=torch.Generator().manual_seed(1))
    for name in ("joined", "seen"):
        low, high = law.interval(name, 0.8)
        assert low.dtype.kind == "M"
        assert abs(rows[name].between(low, high).mean() - 0.8) < 0.02


def test_models_are_saved_with_their_schema(model, tmp_path):
    model.save(tmp_path / "table")
    copy = TableModel.load(tmp_path / "table")
    assert repr(copy.schema) == repr(model.schema)
    frame = made_up().head(30)
    assert torch.equal(copy.log_prob(frame), model.log_prob(frame))
    generators = (torch.Generator().manual_seed(0) for _ in range(2))
    rows = [
        each.sample(50, generator=own) for each, own in zip((copy, model), generators, strict=True)
    ]
    pd.testing.assert_frame_equal(*rows)
    assert str(copy.schema.set("rooms", integer())["rooms"]) == "integer"
    with pytest.raises(FileNotFoundError, match="schema"):
        TableModel.load(tmp_path)


def test_integers_are_spread_over_their_intervals():
    schema = Schema.infer({"a": [1, 2, 5, 9, 30, 2, 4]}, a=integer())
    x = schema.encode({"a": [3] * 4000})
    spread = schema.dequantize(x, generator=torch.Generator().manual_seed(0))
    low, high = schema["a"].interval(np.array([3.0]))
    assert float(spread.min()) >= low[0]
    assert float(spread.max()) <= high[0]
    assert abs(float(spread.mean() - x.mean())) < 0.05 * (high[0] - low[0])
    assert schema.decode(spread)["a"].eq(3).all()
