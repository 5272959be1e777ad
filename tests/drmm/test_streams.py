"""Residual mixtures of many categorical columns, and of columns that are distributions."""

import itertools
import math

import pytest
import torch
from torch.nn.functional import one_hot

from pyromix import DRMM, AnyOf, Box, CategoricalPrior, Observed, fit, load, load_law, save
from pyromix.drmm.columns import Columns

from .slow import Slow, random_model

close = torch.testing.assert_close

# Runs of two, one and three columns.
CATEGORIES = (3, 3, 2, 4, 4, 4)
MOST = max(CATEGORIES)
COLUMNS = len(CATEGORIES)

MODELS = {
    "none": {"dim": 0},
    "shift": {"dim": 2},
    "low rank": {"dim": 2, "maps": "low_rank", "rank": 1},
}
SETTINGS = {"exact": {}, "beam": {"max_exact": 0, "beam": 16}}


def make(kind="none", setting="beam", **options):
    torch.manual_seed(1)
    arguments = {**MODELS[kind], **SETTINGS[setting], "missing": "marginalize", **options}
    model = random_model(num_layers=3, num_components=3, categories=CATEGORIES, **arguments)
    return model.requires_grad_(False).eval()


def shares_of(x):
    """Shares of categories (n, columns, MOST), of values x (n, D + columns)."""
    columns = x[:, -COLUMNS:]
    shares = one_hot(columns.nan_to_num().long(), MOST).to(x)
    return torch.where(columns.isnan().unsqueeze(-1), math.nan, shares)


def soft_log_prob(model, x, shares):
    """Log of the sum over codes of p(h, x) times the product of p(c|h) to the power of shares."""
    slow, totals = Slow(model), []
    gaps = torch.full((COLUMNS,), math.nan)
    for point, own in zip(x, shares, strict=True):
        joint = []
        for code in slow.codes:
            total = slow.joint(torch.cat([point[: model.dim], gaps]), code)
            for share, log_probs in zip(own, slow.column_log_probs(code), strict=True):
                total = total + (share[: len(log_probs)] * log_probs).sum().nan_to_num()
            joint.append(total)
        totals.append(torch.stack(joint).logsumexp(0))
    return torch.stack(totals)


# ---- densities --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("setting", SETTINGS)
def test_codes_and_shares_against_loops_over_codes(kind, setting):
    # The beam holds all prefixes.
    model = make(kind, setting)
    x = model.sample((8,))
    x[2:5, -COLUMNS::2] = math.nan
    x[4:6, : model.dim] = math.nan
    x[6] = math.nan
    values = {"probs": shares_of(x), "real": x[:, : model.dim]}
    close(model.log_prob(x), Slow(model).log_prob(x))
    close(model.log_prob(values), model.log_prob(x))
    shares = torch.rand(8, COLUMNS, MOST)
    shares *= torch.arange(MOST) < torch.tensor(CATEGORIES).unsqueeze(-1)
    shares /= shares.sum(-1, keepdim=True)
    shares[1, ::2] = math.nan
    values["probs"] = shares
    close(model.log_prob(values), soft_log_prob(model, x, shares))
    nested = {name: part.unflatten(0, (4, 2)) for name, part in values.items()}
    close(model.log_prob(nested).flatten(), model.log_prob(values))
    close(model.layer_log_prob(values)[:, -1], model.log_prob(values))
    assert model.encode(nested).shape == (4, 2, 3)


@pytest.mark.parametrize("kind", MODELS)
def test_gradients_are_those_of_the_sum_over_all_codes(kind):
    model = make(kind).requires_grad_()
    x = model.sample((5,))
    x[1:3, -COLUMNS::2] = math.nan
    parameters = [model.log_weight, model.link_logits, *model.column_logits]
    found = torch.autograd.grad(model.log_prob(x).sum(), parameters)
    logits, total = [table.detach().requires_grad_() for table in model.column_logits], 0.0
    codes, log_prior = model.law.all_codes()
    with torch.no_grad():
        gaps = torch.cat([x[:, : model.dim], torch.full((5, COLUMNS), math.nan)], -1)
        real = torch.stack([Slow(model).joint(p, c) for p in gaps for c in codes.tolist()])
    joint = real.reshape(5, -1) + (log_prior - log_prior.detach())
    for j, table in enumerate(logits):
        log_probs = sum(table[layer][codes[:, layer]] for layer in range(3)).log_softmax(-1)
        code = x[:, model.dim + j]
        own = log_probs[:, code.nan_to_num().long()].mT
        joint = joint + torch.where(code.isnan().unsqueeze(-1), 0.0, own)
    total = joint.logsumexp(-1).sum()
    expected = torch.autograd.grad(total, [model.log_weight, model.link_logits, *logits])
    for one, other in zip(found, expected, strict=True):
        close(one, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1.0, 30.0, 1000.0])
def test_scores_where_prefixes_and_components_disagree_by_far(dtype, size):
    """Products of exponentials leave the range of the numbers, sums of logarithms do not."""
    torch.manual_seed(2)
    tables = [(size * torch.randn(2, 5, j, n)).to(dtype) for j, n in ((7, 4), (2, 3))]
    tables = [table.requires_grad_() for table in tables]
    columns = Columns(tables, tables[0])
    codes = torch.randint(5, (6, 3, 1))
    values = tuple(torch.randint(n, (6, j)) for j, n in ((7, 4), (2, 3)))
    values[0][0, :3] = -1
    log_weights = tuple(torch.rand(6, j, n).log().to(dtype) for j, n in ((7, 4), (2, 3)))
    log_weights[0][1, :, 1:] = -math.inf
    found = columns.score(1, columns.logits(codes), values)
    weighed = columns.expected_score(1, columns.logits(codes), log_weights)
    exact = [table.detach().double().requires_grad_() for table in tables]
    score, expected = 0.0, 0.0
    for table, value, log_weight in zip(exact, values, log_weights, strict=True):
        log_probs = (table[0][codes[..., 0]].unsqueeze(2) + table[1]).log_softmax(-1)
        index = value.clamp(min=0)[:, None, None, :, None].expand(*log_probs.shape[:-1], 1)
        own = log_probs.gather(-1, index).squeeze(-1)
        score = score + torch.where(value[:, None, None] < 0, 0.0, own).sum(-1)
        log_weight = log_weight.double()[:, None, None]
        expected = expected + (log_probs + log_weight).logsumexp(-1).sum(-1)
    rtol = 1e-5 if dtype == torch.float32 else 1e-11
    near = {"rtol": rtol, "atol": rtol * size}
    close(found.double(), score, **near)
    close(weighed.double(), expected, **near)
    for one, other in ((found, score), (weighed, expected)):
        gradients = torch.autograd.grad(one.sum(), tables, retain_graph=True)
        exactly = torch.autograd.grad(other.sum(), exact, retain_graph=True)
        for mine, theirs in zip(gradients, exactly, strict=True):
            close(mine.double(), theirs, rtol=1e-4, atol=1e-4)


# ---- training ---------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["likelihood", "em", "joint", "proposal"])
def test_training_on_shares(stage, tmp_path):
    truth = make("shift")
    x = truth.sample((600,))
    shares = 0.9 * shares_of(x)
    shares[:, :, :2] += 0.05
    shares[::7, 1] = math.nan
    data = {"real": x[:, :2], "probs": shares}
    model = DRMM(2, 2, 4, categories=CATEGORIES, missing="marginalize", curriculum=((stage, 1.0),))
    model.initialize(data)
    before = model.eval().loss(data)
    fit(model, data, steps=30, lr=0.02, seed=0, validation=0.2, progress_bar=False)
    if stage == "likelihood":
        assert bool(model.loss(data) < before)
    close(model.loss(data), -model.log_prob(data).mean())
    save(model, tmp_path / "model.safetensors")
    loaded = load(tmp_path / "model.safetensors")
    assert torch.equal(loaded.log_prob(data), model.log_prob(data))


def test_starting_values_of_many_categories_tell_clusters_apart():
    torch.manual_seed(0)
    centre = torch.randint(16, (4, 80))
    cluster = torch.arange(400) % 4
    x = torch.where(torch.rand(400, 80) < 0.7, centre[cluster], torch.randint(16, (400, 80)))
    x = x.to(torch.get_default_dtype())
    model = DRMM(0, 2, 4, categories=(16,) * 80)
    model.initialize(x)
    first = model.encode(x)[:, 0]
    assert len({(int(a), int(b)) for a, b in zip(cluster, first, strict=True)}) == 4


REAL = torch.zeros(5, 2)
PROBS = torch.full((5, 2, 3), 1 / 3)
PROBS[:, 1] = torch.tensor([0.5, 0.5, 0.0])
BAD = {
    "no real columns": ({"probs": PROBS}, "'?real'?"),
    "another name": ({"probs": PROBS, "real": REAL, "context": REAL}, "context"),
    "another shape": ({"probs": PROBS[:, :1], "real": REAL}, r"\(\*S, 2, 3\)"),
    "other rows": ({"probs": PROBS, "real": REAL[:4]}, r"\(5, 2\)"),
    "sums": ({"probs": 2 * PROBS, "real": REAL}, "sum to one"),
    "nothing": ({"probs": 0 * PROBS, "real": REAL}, "sum to one"),
    "negative": ({"probs": 1 / 3 - PROBS, "real": REAL}, "negative"),
    "missing": ({"probs": PROBS * math.nan, "real": REAL}, "marginalize"),
    "beyond": ({"probs": PROBS.flip(1), "real": REAL}, "beyond"),
    "infinite": ({"probs": PROBS, "real": REAL + math.inf}, "finite"),
    "single precision": ({"probs": PROBS.float(), "real": REAL}, "dtype"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("call", ["log_prob", "loss", "initialize"])
def test_shares_that_do_not_fit(name, call):
    values, match = BAD[name]
    values = {k: v if name == "single precision" else v.double() for k, v in values.items()}
    model = DRMM(2, 2, 3, categories=(3, 2)).double()
    with pytest.raises(ValueError, match=match):
        getattr(model, call)(values)


def test_shares_need_categorical_columns():
    with pytest.raises(ValueError, match="categorical"):
        DRMM(2, 2, 3).log_prob({"real": REAL, "probs": PROBS})


# ---- evidence ---------------------------------------------------------------------------------


def every_row():
    return torch.tensor(list(itertools.product(*map(range, CATEGORIES)))).double()


@pytest.mark.parametrize("setting", SETTINGS)
def test_priors_of_many_columns_are_one_object(setting):
    model = make("none", setting)
    rows = every_row()
    weights = torch.rand(2, 4, MOST)
    weights[:, 0, 3:], weights[:, 1, 2:] = 0.0, 0.0
    weights[0, 3, 1:] = 0.0  # one category is left in one entry of the batch
    columns = (1, 2, 3, -1)
    law = model.condition(CategoricalPrior(columns, weights), Observed({0: 1}))
    one_by_one = [
        CategoricalPrior(d, weights[:, i, : CATEGORIES[d]]) for i, d in enumerate(columns)
    ]
    close(model.condition({0: 1}, *one_by_one).log_evidence()[0], law.log_evidence()[0])
    factor = (rows[:, :1] == 1) * torch.stack(
        [weights[:, i, rows[:, d].long()].mT for i, d in enumerate(columns)]
    ).prod(0)
    joint = model.log_prob(rows).exp().unsqueeze(-1) * factor  # (rows, 2)
    close(law.log_evidence()[0], joint.sum(0).log())
    close(law.log_prob(rows.unsqueeze(1)).exp(), joint / joint.sum(0))
    probs = joint / joint.sum(0)
    for d in (1, 4):
        indicator = (rows[:, d : d + 1] == torch.arange(CATEGORIES[d])).double()
        close(law.probs(d), probs.mT @ indicator)
    expected = torch.stack([law.probs(d).argmax(-1) for d in range(COLUMNS)], -1)
    close(law.mean, expected.double())
    close(law.mode, rows[probs.argmax(0)])
    x = law.sample((20_000,))
    assert bool(law.support.check(x).all())
    for entry, d in itertools.product(range(2), range(COLUMNS)):
        own = law.probs(d)[entry].clamp(max=1)
        share = torch.bincount(x[:, entry, d].long(), minlength=len(own)) / len(x)
        assert bool(((share - own).abs() <= 1e-9 + 4.5 * (own * (1 - own) / len(x)).sqrt()).all())


@pytest.mark.parametrize("kind", ["shift", "low rank"])
def test_priors_next_to_real_evidence_and_gaps(kind, tmp_path):
    model = make(kind, "beam", max_exact=0)
    exact = make(kind, "exact")
    weights = torch.rand(3, 5, MOST)
    weights[:, 1, 3:], weights[:, 2, 2:] = 0.0, 0.0
    weights[:, 0, :] = torch.tensor([0.0, 1.5, 0.0, 0.0])
    prior = CategoricalPrior(range(2, 7), weights)
    real = torch.tensor([0.3, -0.2, 1.0])
    for evidence in ([prior, Observed({0: real})], [prior, Box(-1.0, 2.0)]):
        law = model.condition(*evidence, num_particles=512)
        other = exact.condition(*evidence)
        close(law.log_evidence()[0], other.log_evidence()[0], rtol=1e-3, atol=1e-3)
    save(law, tmp_path / "law.safetensors")
    loaded = load_law(tmp_path / "law.safetensors")
    close(loaded.log_evidence()[0], law.log_evidence()[0])
    mixed = model.condition(prior, AnyOf(Box(high=-0.5), Box(low=0.5))).sample((5,))
    assert bool((mixed[..., 2] == 1).all())
    query = model.query(prior, num_particles=32, memory=32)
    for value in (0.3, 0.4):
        assert bool(query(Observed({0: value})).log_evidence()[0].isfinite().all())
    x = model.sample((6,))
    x[:, 2::2] = math.nan
    filled = model.impute(x)
    assert bool(model.support.check(filled).all())
    probs = torch.stack([model.predict_proba(x, d).argmax(-1) for d in (2, 4, 6)], -1)
    assert torch.equal(filled[:, 2::2], probs.double())


WEIGHTS = torch.full((2, 4), 0.5)
BAD_PRIORS = {
    "a column twice": ((2, -6), WEIGHTS[:, :3], "different"),
    "no column": ((), WEIGHTS[:0], "different"),
    "a real column": ((1, 2), WEIGHTS[:, :3], "categorical column"),
    "another shape": ((2, 3), WEIGHTS, r"\(\*N, 2, 3\)"),
    "beyond": ((3, 4), WEIGHTS[:, :3], "beyond"),
    "nothing left": ((2, 3), 0 * WEIGHTS[:, :3], "not all zero"),
}


@pytest.mark.parametrize("name", BAD_PRIORS)
def test_priors_that_do_not_fit(name):
    index, probs, match = BAD_PRIORS[name]
    with pytest.raises(ValueError, match=match):
        make("shift").condition(CategoricalPrior(index, probs))
