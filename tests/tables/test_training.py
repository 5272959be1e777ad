"""Losses of mixtures of codes, against sums over all of them."""

import numpy as np
import pytest
import torch

from pyromix import DRMM
from pyromix.tables import Schema, TableModel, training
from pyromix.tables.mixture import Mixture, weights_of
from pyromix.tables.model import _coded
from pyromix.tables.search import Search
from pyromix.tables.training import Plan, _Trainee, _WeightedLogSums

CATEGORIES, ORDERED = (2, 5, 5, 3, 7), (False, True, True, False, True)


@pytest.fixture
def codes():
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, CATEGORIES, (40, len(CATEGORIES)))
    drawn[rng.random(drawn.shape) < 0.2] = -1
    return drawn


def test_the_loss_is_that_of_the_mixture(codes):
    torch.manual_seed(0)
    model = DRMM(0, 4, 3, categories=CATEGORIES, missing="marginalize", max_exact=81)
    training._start(model, codes, ORDERED)
    plan = Plan(4, 3, conditional=0.0, targets=(3,))
    trainee = _Trainee(model, codes, ORDERED, plan).eval()
    mixture = Mixture.of(model)
    joint = mixture.log_prob(codes)
    without = codes.copy()
    without[:, 3] = -1
    given = joint - mixture.log_prob(without)
    expected = -joint.mean() - training.TARGET * given.mean()
    assert float(trainee.loss(torch.from_numpy(codes)).detach()) == pytest.approx(
        expected, rel=1e-5
    )


def test_mixtures_are_weighted_by_rows_that_are_held_out():
    """One that knows the rows beside one that does not, and both in an average."""
    rng = np.random.default_rng(0)
    first = rng.integers(0, 5, 400)
    codes = np.stack([first, (first + 1) % 5], 1)
    models = [
        training.train(rows, codes[300:], (5, 5), (False,) * 2, plan, seed=0, progress_bar=False)
        for rows, plan in (
            (codes[:300], Plan(1, 5, steps=150, batch_size=300)),
            (rng.permuted(codes[:300], axis=0), Plan(1, 5, steps=20, batch_size=300)),
        )
    ]
    mixtures = [Mixture.of(model) for model in models]
    weights = weights_of(mixtures, codes[300:])
    assert weights[0] > 0.9
    scores = [
        float(Mixture.average(mixtures, w).log_prob(codes[300:]).mean())
        for w in (weights, [0.5, 0.5], [1 - 1e-9, 1e-9])
    ]
    assert scores[0] > scores[1]
    assert scores[0] > scores[2] - 0.05


def test_large_tables_get_deep_mixtures_beside_shallow_ones():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, (2500, 3))
    frame = {"abc"[j]: np.array(list("xyz"))[own] for j, own in enumerate(labels.T)}
    deep = TableModel.fit(frame, members=1, steps=3, seed=0, progress_bar=False)
    assert [(m.num_layers, m.num_components) for m in deep.models] == [(6, 3)]
    several = TableModel.fit(frame, time_budget=1, seed=0, progress_bar=False)
    assert 1 <= len(several.models) <= 3
    assert several.weights.sum() == pytest.approx(1)
    flat = TableModel.fit(frame, num_layers=1, members=1, steps=3, seed=0, progress_bar=False)
    assert flat.models[0].num_components == 3**6


def test_weighted_sums_have_the_gradients_of_logsumexp(monkeypatch):
    monkeypatch.setattr(training, "CACHED", 64)  # so that there are several blocks of rows
    generator = torch.Generator().manual_seed(0)
    rows, layered, columns, count = 13, 6, 4, 9

    def drawn(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    spread = (drawn(layered, count) > 0).double()
    known, weights = (drawn(rows, columns) > 0).double(), drawn(rows)
    inputs = [
        own.requires_grad_() for own in (drawn(rows, layered), drawn(columns, count), drawn(count))
    ]
    parts, totals, prior = inputs

    def fast():
        return _WeightedLogSums.apply(parts, known, weights, spread, totals, prior, True)

    def slow():
        return weights @ (parts @ spread - known @ totals + prior).logsumexp(1)

    torch.testing.assert_close(fast(), slow())
    torch.testing.assert_close(
        torch.autograd.grad(3 * fast(), inputs), torch.autograd.grad(3 * slow(), inputs)
    )


def test_bins_are_chosen_by_rows_that_are_held_out():
    """Fine ones where two columns follow each other closely."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=3000)
    frame = {"x": x, "y": x + 0.1 * rng.normal(size=3000)}
    schema = Schema.infer(frame)
    values, outside = schema.values(frame), np.arange(3000) < 300
    coarse, fine = (_coded(schema, values, most, outside) for most in (3, 24))
    assert coarse.coding.bins["x"].count < fine.coding.bins["x"].count < 40
    search = Search(None, None, None, None, None, (), time_budget=8.0, progress_bar=False)
    assert search.best_of([coarse, fine], 0) is fine
    assert search.best_of([fine, coarse], 0) is fine
    options = {"steps": 2, "members": 1, "seed": 0, "progress_bar": False}
    assert TableModel.fit(frame, max_bins=20, **options)._coding.bins["x"].count < 30
    assert TableModel.fit(frame, **options)._coding.bins["x"].count < 60
