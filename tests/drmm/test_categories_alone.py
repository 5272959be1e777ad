"""Residual mixtures of categorical columns alone, against sums over all of their rows."""

import itertools
import math

import pytest
import torch

from pyromix import (
    DRMM,
    AnyOf,
    Box,
    CategoricalPrior,
    GaussianPrior,
    Nonlinear,
    Observed,
    fit,
    load,
    save,
)

COUNTS = (3, 2, 4)
ROWS = torch.tensor(list(itertools.product(*map(range, COUNTS)))).double()
N = 40_000
FUNCTION = Nonlinear(lambda x: x.sum(-1, keepdim=True), 0.0, 1.0)


def model(**arguments):
    torch.manual_seed(0)
    drmm = DRMM(0, 3, 4, categories=COUNTS, **arguments)
    with torch.no_grad():
        for name, parameter in drmm.named_parameters():
            if name.startswith("column") or name in ("link_logits", "log_weight"):
                parameter.normal_()
    return drmm.requires_grad_(False).eval()


def check_frequencies(x, probs):
    """Draws against probabilities of all rows: within 4.5 standard errors."""
    share = torch.stack([(x == row).all(-1).double().mean() for row in ROWS])
    assert bool(((share - probs).abs() <= 4.5 * (probs * (1 - probs) / len(x)).sqrt()).all())


SETTINGS = {"exact": {}, "beam": {"max_exact": 0, "beam": 16}}


@pytest.mark.parametrize("setting", SETTINGS)
def test_probabilities_sum_to_one_and_are_those_of_draws(setting):
    drmm = model(**SETTINGS[setting])
    probs = drmm.log_prob(ROWS).exp()
    torch.testing.assert_close(probs.sum(), torch.tensor(1.0))
    check_frequencies(drmm.sample((N,)), probs)
    codes = drmm.law.all_codes()
    joint = [drmm.law.columns.log_probs(j, codes[0]) for j in range(3)]
    by_hand = sum(
        table[:, ROWS[:, j].long()].mT for j, table in enumerate(joint)
    ) + codes[1]  # fmt: skip
    torch.testing.assert_close(drmm.log_prob(ROWS), by_hand.logsumexp(-1))


@pytest.mark.parametrize("setting", SETTINGS)
def test_evidence_is_weighed_by_bayes_rule(setting):
    drmm = model(**SETTINGS[setting])
    weights = torch.tensor([[0.1, 0.2, 0.3, 0.4], [1.0, 0.0, 0.0, 2.0]])
    law = drmm.condition(Observed({0: 1}), CategoricalPrior(2, weights))
    factor = (ROWS[:, :1] == 1) * weights[:, ROWS[:, 2].long()].mT
    joint = drmm.log_prob(ROWS).exp().unsqueeze(-1) * factor  # (rows, 2)
    total = joint.sum(0)
    torch.testing.assert_close(law.log_evidence()[0], total.log())
    found = law.log_prob(ROWS.unsqueeze(1)).exp()
    torch.testing.assert_close(found, joint / total)
    x = law.sample((N,))
    for entry in range(2):
        check_frequencies(x[:, entry], found[:, entry])
    torch.testing.assert_close(law.mode, ROWS[found.argmax(0)])
    second = (ROWS[:, 1:2] == torch.arange(2.0)).double()
    torch.testing.assert_close(law.probs(1), found.mT @ second)
    assert law.free().event_shape == (2,)
    further = law.condition({1: 0})
    torch.testing.assert_close(
        further.log_prob(ROWS.unsqueeze(1)).exp(),
        joint * (ROWS[:, 1:2] == 0) / (joint * (ROWS[:, 1:2] == 0)).sum(0),
    )
    with pytest.raises(NotImplementedError, match="probs"):
        law.marginal(1)


@pytest.mark.parametrize("setting", SETTINGS)
def test_gaps_are_filled_from_what_is_known(setting):
    drmm = model(missing="marginalize", **SETTINGS[setting])
    rows = torch.tensor([[0.0, math.nan, 1.0], [math.nan, 1.0, math.nan]])
    probs = drmm.log_prob(ROWS).exp()
    for row, log_prob in zip(rows, drmm.log_prob(rows), strict=True):
        agrees = (row.isnan() | (row == ROWS)).all(-1)
        torch.testing.assert_close(log_prob.exp(), probs[agrees].sum())
    of_gap = torch.stack(
        [probs[(torch.tensor([0.0, c, 1.0]) == ROWS).all(-1)].sum() for c in (0, 1)]
    )
    torch.testing.assert_close(drmm.predict_proba(rows[:1], 1)[0], of_gap / of_gap.sum())
    filled = drmm.impute(rows)
    assert bool((filled[~rows.isnan()] == rows[~rows.isnan()]).all())
    assert float(filled[0, 1]) == int(of_gap.argmax())
    drawn = drmm.impute(rows, num_samples=5000)[:, 0, 1]
    share, expected = drawn.mean(), of_gap[1] / of_gap.sum()
    assert abs(share - expected) < 4.5 * (expected * (1 - expected) / 5000).sqrt()


def test_codes_stand_for_likeliest_categories():
    drmm = model()
    codes = drmm.encode(ROWS)
    assert codes.shape == (len(ROWS), 3)
    decoded = drmm.decode(codes)
    assert bool(drmm.support.check(decoded).all())
    table = sum(drmm.column_logits[0][layer][codes[:, layer]] for layer in range(3))
    torch.testing.assert_close(decoded[:, 0], table.argmax(-1).double())
    torch.testing.assert_close(drmm.layer_log_prob(ROWS)[:, -1], drmm.log_prob(ROWS))
    assert drmm.log_prob_importance(ROWS).shape == (len(ROWS),)
    assert drmm.variance.shape == (0,)


@pytest.mark.parametrize("stage", ["likelihood", "em", "joint"])
@pytest.mark.parametrize("scale", ["diagonal", "scalar"])
def test_training_comes_near_the_law_of_the_data(stage, scale, tmp_path):
    truth = model()
    data = truth.sample((2000,))
    data[::7, 1] = math.nan
    drmm = DRMM(
        0,
        2,
        6,
        categories=COUNTS,
        missing="marginalize",
        curriculum=((stage, 1.0),),
        scale=scale,
        inner_scale=scale,
    )
    fit(drmm, data, steps=200, lr=0.02, seed=0, progress_bar=False)
    drmm.eval().requires_grad_(False)
    probs = truth.log_prob(ROWS).exp()
    divergence = (probs * (truth.log_prob(ROWS) - drmm.log_prob(ROWS))).sum()
    assert float(divergence) < (0.05 if stage == "likelihood" else 0.3)
    assert all(bool(p.isfinite().all()) for p in drmm.parameters())
    save(drmm, tmp_path / "model.safetensors")
    assert torch.equal(load(tmp_path / "model.safetensors").log_prob(ROWS), drmm.log_prob(ROWS))


def test_what_needs_real_columns_says_so():
    with pytest.raises(ValueError, match="categories"):
        DRMM(0, 2, 3)
    for maps in ("diagonal", "triangular", "low_rank", ("shift", "diagonal")):
        with pytest.raises(ValueError, match="maps='shift'"):
            DRMM(0, 2, 3, categories=(2,), maps=maps)
    drmm = model()
    box = Box(0.0, 1.0)
    for piece in (box, GaussianPrior(0.0, 1.0), AnyOf(box, Box(2.0)), AnyOf(box), FUNCTION):
        with pytest.raises(ValueError, match="real"):
            drmm.condition(piece)
    with pytest.raises(ValueError, match="a real column"):
        drmm.condition().quantile(0, 0.5)
