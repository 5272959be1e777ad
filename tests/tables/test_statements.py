"""Evidence in a table's own words, against draws of a model that happen to meet it."""

import numpy as np
import pytest
import torch

from pyromix import DRMM, fit
from pyromix.tables import Schema, bounded, count, integer

from .test_schema import made_up

pd = pytest.importorskip("pandas")


@pytest.fixture(scope="module")
def schema():
    return Schema.infer(made_up(), share=bounded(0, 1))


@pytest.fixture(scope="module")
def model(schema):
    x = schema.encode(made_up())
    model = DRMM(schema.dim, 1, 6, categories=schema.categories, missing="marginalize").double()
    fit(model, x, steps=60, seed=0, progress_bar=False)
    return model.requires_grad_(False)


@pytest.fixture(scope="module")
def drawn(schema, model):
    torch.manual_seed(0)
    return schema.decode(model.sample((60_000,)))


QUESTIONS = {
    "integers": ({"visits": (3, 20)}, lambda t: t["visits"].between(3, 20)),
    "lowest integer": ({"visits": 0}, lambda t: t["visits"] == 0),
    "half a range": ({"balance": (None, -10)}, lambda t: t["balance"] <= -10),
    "numbers": ({"income": (10_000, 40_000)}, lambda t: t["income"].between(10_000, 40_000)),
    "bounded": ({"share": (0.25, 1.0)}, lambda t: t["share"] >= 0.25),
    "point": ({"gain": 0}, lambda t: t["gain"] == 0),
    "beside the point": ({"gain": (1, 2000)}, lambda t: t["gain"].between(1, 2000)),
    "labels": ({"city": ["Oslo", "Pisa"]}, lambda t: t["city"].isin(["Oslo", "Pisa"])),
    "order": ({"size": ("M", None)}, lambda t: t["size"] >= "M"),
    "numbers in order": ({"rooms": (2, 4)}, lambda t: t["rooms"].between(2, 4)),
    "boolean": ({"member": True}, lambda t: t["member"]),
    "dates": (
        {"joined": ("2020-06-01", "2021-01-31")},
        lambda t: t["joined"].between("2020-06-01", "2021-01-31"),
    ),
    "several": (
        {"visits": (1, 60), "city": "Oslo", "gain": 0, "height": (165, 180)},
        lambda t: t["visits"].between(1, 60) & (t["city"] == "Oslo") & (t["gain"] == 0)
        & t["height"].between(165, 180),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", QUESTIONS)
def test_probabilities_and_draws_are_those_of_the_question(name, schema, model, drawn):
    known, meets = QUESTIONS[name]
    law = model.condition(*schema.evidence(**known))
    share = meets(drawn).mean()
    error = (share * (1 - share) / len(drawn)) ** 0.5
    assert share > 0.005
    assert abs(float(law.log_evidence()[0].exp()) - share) < 5 * error
    assert bool(meets(schema.decode(law.sample((2000,)))).all())


def test_known_values(schema, model):
    known = {"height": 171.5, "balance": -3, "seen": "2021-05-03T12:00", "size": "L"}
    table = schema.decode(model.condition(*schema.evidence(**known)).sample((50,)))
    np.testing.assert_allclose(table["height"], 171.5)
    assert (table["balance"] == -3).all()
    assert (table["size"] == "L").all()
    assert (table["seen"] - pd.Timestamp("2021-05-03T12:00")).abs().max() < pd.Timedelta("1ms")


@pytest.mark.parametrize(
    ("known", "message"),
    [
        ({"citty": "Oslo"}, "Did you mean 'city'"),
        ({"city": "Olso"}, "Did you mean 'Oslo'"),
        ({"city": ("Lyon", "Oslo")}, "ranges are for columns with an order"),
        ({"city": []}, "at least one value of column 'city'"),
        ({"height": [1, 2]}, "a list is for values that have a probability"),
        ({"height": "tall"}, "a number for column 'height', got 'tall'"),
        ({"height": None}, "a number for column 'height'"),
        ({"height": float("nan")}, "Leave out what is not known"),
        ({"height": (180, 170)}, "low < high"),
        ({"height": (1, 2, 3)}, r"as \(low, high\)"),
        ({"income": -5.0}, "reaches, positive, got -5"),
        ({"income": (-9, -5)}, "values that column 'income' reaches"),
        ({"visits": (0.2, 0.8)}, "with integers"),
        ({"visits": -1}, "values that column 'visits' reaches"),
        ({"gain": (0, 100)}, "without 0, which has a code"),
        ({"joined": "soon"}, "a date for column 'joined'"),
        ({"size": ("L", "S")}, "at least one value of column 'size'"),
    ],
)
def test_bad_statements(known, message, schema):
    with pytest.raises(ValueError, match=message):
        schema.evidence(**known)


def test_counts_with_a_point():
    table = {"a": [0] * 30 + list(range(1, 41))}
    schema = Schema.infer(table, a=count(point=0))
    names = [type(piece).__name__ for piece in schema.evidence(a=(1, None))]
    assert names == ["CategoricalPrior", "Box"]
    assert len(schema.evidence(a=0)) == 1
    assert len(Schema.infer(table, a=integer()).evidence(a=(0, None))) == 1
