"""Training a deep residual mixture: every stage's loss, their order, and where they start."""

import copy
import dataclasses
import itertools
import math

import pytest
import torch
from torch.distributions import Normal

from pyromix import fit, load, save
from pyromix.drmm import DRMM
from pyromix.drmm.stages import (
    STAGES,
    _draw_codes,
    em_loss,
    learning_rate_factor,
    likelihood_loss,
    mixture_loss,
    proposal_loss,
    rho,
)

from .conftest import spiral
from .slow import Slow, random_model, with_gaps
from .test_law import close


def curves(num, gaps=False):
    """A spiral, its side as a category, and one entry in ten missing, but never a whole row."""
    x = spiral(num, 0.1)
    x = torch.cat([x, (x[:, :1] > 0).to(x)], -1)
    missing = torch.rand(x.shape) < 0.1
    missing[missing.all(-1)] = False
    return torch.where(missing, math.nan, x) if gaps else x


def log_normal(x, loc, scale):
    """Over the observed columns."""
    seen = ~x.isnan()
    return Normal(loc, scale).log_prob(torch.where(seen, x, loc))[seen].sum()


def slow_em_loss(model, x, weight, orphans):
    """Equations 3 and 4 point by point: a hard choice, and its log-membership with all terms."""
    slow, total = Slow(model), 0.0
    residuals, codes = x[:, : model.dim].clone(), [() for _ in x]
    for layer in range(model.num_layers):
        last = layer == model.num_layers - 1
        scales = slow.scale if last else slow.inner_scale[layer].expand(slow.k, -1)
        nearest = [-math.inf] * slow.k
        chosen = []
        for n, r in enumerate(residuals):
            fits, real, tables = [], [], []
            for k in range(slow.k):
                real.append(log_normal(r, slow.loc[layer, k], scales[k]))
                tables.append(sum(slow.links[layer, c][k, j] for c, j in enumerate(codes[n])))
                fit_k = real[k].clone()
                for j, table in enumerate(slow.tables):
                    value = x[n, model.dim + j]
                    if not value.isnan():
                        logits = sum(table[c, h] for c, h in enumerate((*codes[n], k)))
                        fit_k += logits.log_softmax(-1)[int(value)]
                fits.append(fit_k)
                nearest[k] = max(nearest[k], real[k].item())
            best = max(range(slow.k), key=lambda k: fits[k] + weight * tables[k])
            log_weight = slow.log_weight[layer].log_softmax(-1)[best]
            total -= (log_weight + fits[best] + tables[best]) / len(x)
            chosen.append(best)
        total -= orphans * sum(nearest) / slow.k
        residuals = residuals - slow.loc[layer][chosen]
        codes = [(*code, k) for code, k in zip(codes, chosen, strict=True)]
    return total


# ---- hard expectation maximisation ------------------------------------------------------------


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("orphans", [0.0, 0.5])
@pytest.mark.parametrize("options", [{}, {"scale": "scalar", "inner_scale": "scalar"}])
def test_em_loss(weight, orphans, options):
    model = random_model(2, 3, 4, categories=(3,), missing="marginalize", **options)
    x = model.sample((12,))
    close(
        em_loss(model.law, model._rows(x), weight, orphans),
        slow_em_loss(model, x, weight, orphans),
    )


def test_em_loss_with_missing_entries():
    model = random_model(2, 2, 3, categories=(3,), missing="marginalize")
    x = with_gaps(model.sample((2,)))
    close(em_loss(model.law, model._rows(x), 0.7, 0.0), slow_em_loss(model, x, 0.7, 0.0))


def test_without_rho_tables_do_not_choose():
    model = random_model(2, 3, 4)
    rows = model._rows(model.sample((50,)))
    leaves = (model.loc, model.raw_scale, model.raw_inner_scale, model.log_weight)

    def gradients(weight):
        return torch.autograd.grad(em_loss(model.law, rows, weight, 0.01), leaves)

    before = gradients(0.0), gradients(1.0)
    with torch.no_grad():
        model.link_logits.copy_(3 * torch.randn_like(model.link_logits))
    after = gradients(0.0), gradients(1.0)
    for a, b in zip(before[0], after[0], strict=True):
        close(a, b)
    assert not torch.allclose(before[1][0], after[1][0])


def test_no_gradient_between_layers_in_em():
    """A layer's loss depends on the means of those before, but does not move them."""
    model = random_model(2, 3, 4)
    rows = model._rows(model.sample((50,)))
    for weight in (0.0, 0.5):
        (whole,) = torch.autograd.grad(em_loss(model.law, rows, weight, 0.1), model.loc)
        (first,) = torch.autograd.grad(em_loss(model.law.shallow(1), rows, weight, 0.1), model.loc)
        close(whole[0], first[0])
        assert whole[1:].abs().sum() > 0


def test_gradients_of_em_are_those_of_the_loss_with_codes_fixed():
    model = random_model(2, 1, 4, categories=(3,))
    rows = model._rows(model.sample((10,)))
    parameters = [model.loc, model.raw_scale, model.log_weight, *model.column_logits]
    assert torch.autograd.gradcheck(
        lambda *_: em_loss(model.law, rows, 1.0, 0.0), tuple(parameters)
    )


@pytest.mark.parametrize("gaps", [False, True])
def test_orphans_are_drawn_to_data(gaps):
    x = torch.randn(200, 2)
    if gaps:  # what little is known of these points is no reason to stay away from the others
        x[:20, 1] = x[20:30, 0] = math.nan
    for orphans, distance in ((0.0, 30.0), (0.1, 1.0)):
        model = DRMM(2, 1, 3, curriculum=[("em", 1.0)], orphans=orphans, missing="marginalize")
        with torch.no_grad():
            model.loc[0] = torch.tensor([[0.0, 0.0], [30.0, 30.0], [-20.0, 40.0]])
            model.raw_scale.fill_(1.0)
        settings = {"steps": 400, "batch_size": 200, "initialize": False, "progress_bar": False}
        fit(model, x, lr=0.5, **settings)
        far = torch.cdist(model.loc[0], x[30:]).amin(1).max()
        assert far > distance if orphans == 0 else far < distance


# ---- soft stages ------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["real", "latents", "joint"])
def test_mixture_loss_of_one_layer(stage):
    """Where codes of earlier layers play no role: a mixture's, with or without weights."""
    model = random_model(2, 1, 4, categories=(3,))
    x = model.sample((20,))
    loss = mixture_loss(model.law, model._rows(x), stage)
    if stage != "joint":
        with torch.no_grad():
            model.log_weight.zero_()
    close(loss, -Slow(model).log_prob(x).mean())


@pytest.mark.parametrize("stage", ["real", "latents", "joint"])
def test_mixture_loss(stage, monkeypatch):
    """With the codes it draws held fixed: the sum of the layers' mixtures of what is left."""
    model = random_model(2, 3, 3)
    x, slow = model.sample((6,)), Slow(model)
    codes = torch.randint(3, (6, 3))
    monkeypatch.setattr("pyromix.drmm.stages._draw_codes", lambda *_: codes)
    total = 0.0
    for point, code in zip(x, codes.tolist(), strict=True):
        residual = point
        for layer in range(3):
            scales = slow.scale if layer == 2 else slow.inner_scale[layer].expand(3, -1)
            scores = []
            for k in range(3):
                score = log_normal(residual, slow.loc[layer, k], scales[k])
                score += {"joint": slow.log_weight[layer].log_softmax(-1)[k]}.get(
                    stage, -math.log(3)
                )
                if stage != "real":
                    score += sum(slow.links[layer, c][k, code[c]] for c in range(layer))
                scores.append(score)
            total -= torch.stack(scores).logsumexp(-1) / len(x)
            residual = residual - slow.loc[layer, code[layer]]
    loss = mixture_loss(model.law, model._rows(x), stage)
    close(loss, total)
    # Gradients pass between layers in the last of the three only.
    first, *_ = torch.autograd.grad(loss, model.loc)[0]
    alone = torch.autograd.grad(
        mixture_loss(model.law.shallow(1), model._rows(x), stage), model.loc
    )
    assert torch.allclose(first, alone[0][0]) == (stage != "joint")


def test_soft_stages_draw_only_likely_codes():
    model = random_model(2, 1, 4)
    x = model.sample((200,))
    joint = model.law.mixture_of(*model.law.all_codes())._joint_log_prob(x)
    for _ in range(3):
        drawn = joint.gather(-1, _draw_codes(model.law, model._rows(x), "joint")).squeeze(-1)
        assert (drawn >= joint.amax(-1) + math.log(0.5)).all()


# ---- end to end -------------------------------------------------------------------------------


@pytest.mark.parametrize("beam", [1, 2, 9])
def test_likelihood_stage_reports_the_bound_of_its_beam(beam):
    model = random_model(2, 3, 3, training_beam=beam, curriculum=[("likelihood", 1.0)])
    x = model.sample((30,))
    bound = -model.law.log_prob(model._rows(x), max_exact=0, beam=beam).mean()
    loss = model.train().loss(x, 0.3)
    close(loss, bound)
    if beam == 9:
        close(loss, -Slow(model).log_prob(x).mean())
    # Inner scales follow what is left of the points, all else the bound.
    nll, proposal = likelihood_loss(model.law, model._rows(x), beam)
    names = [name for name, _ in model.named_parameters()]
    got = torch.autograd.grad(loss, list(model.parameters()))
    follow = torch.autograd.grad(nll, list(model.parameters()), materialize_grads=True)
    scales = torch.autograd.grad(proposal, model.raw_inner_scale)[0]
    for name, mine, theirs in zip(names, got, follow, strict=True):
        close(mine, scales if name == "raw_inner_scale" else theirs)
    assert scales.abs().sum() > 0
    with torch.no_grad():
        codes = model.law.encode(model._rows(x), beam)
    if beam == 9:
        assert torch.equal(codes, Slow(model).best_code(x))


@pytest.mark.parametrize("layers", [1, 3])
def test_proposal_loss(layers):
    model = random_model(2, layers, 3, missing="marginalize", curriculum=[("proposal", 1.0)])
    x, slow = with_gaps(model.sample((4,))), Slow(model)
    x = x[~x.isnan().all(-1)]
    codes = torch.randint(3, (len(x), layers))
    total = 0.0
    for point, code in zip(x, codes.tolist(), strict=True):
        for layer in range(layers - 1):
            point = point - slow.loc[layer, code[layer]]
            total -= log_normal(point, torch.zeros(2), slow.inner_scale[layer]) / len(x)
    close(proposal_loss(model.law, model._rows(x), codes), torch.as_tensor(total))
    model.loss(x, 0.5).backward()  # of nothing, if there is one layer alone
    moved = {name for name, p in model.named_parameters() if p.grad is not None}
    assert moved == {"raw_inner_scale"}


def test_loss_in_evaluation_mode():
    model = random_model(2, 2, 3, categories=(2,)).eval()
    x = model.sample((30,))
    for progress in (0.0, 0.4, 1.0):
        close(model.loss(x, progress), -model.log_prob(x).mean())
    with pytest.raises(ValueError, match="takes no context"):
        model.loss((x, x))


# ---- the curriculum ---------------------------------------------------------------------------


def test_rho():
    """Equation 5."""
    assert rho(0.0) < 1e-8
    assert rho(0.5) == 0.5
    assert rho(1.0) > 1 - 1e-8
    assert all(a < b for a, b in itertools.pairwise(rho(i / 20) for i in range(21)))


def test_learning_rates():
    """Equation 6, in every stage anew."""
    assert [learning_rate_factor(p) for p in (0.0, 0.3, 0.5)] == [1.0, 1.0, 1.0]
    assert learning_rate_factor(0.75) == 0.25
    assert learning_rate_factor(1.0) == 0.0
    model = DRMM(2, 2, 3, curriculum=[("em", 3), ("likelihood", 1)])
    for progress, stage, factor in (
        (0.0, "em", 1.0),
        (0.375, "em", 1.0),
        (0.5625, "em", 0.25),
        (0.75, "likelihood", 1.0),
        (0.9375, "likelihood", 0.25),
        (1.0, "likelihood", 0.0),
    ):
        assert model.stage(progress) == stage
        assert math.isclose(model.learning_rate_factor(progress), factor, abs_tol=1e-12)


def test_history_names_the_stages():
    curriculum = [("em", 0.25), ("likelihood", 0.5), ("proposal", 0.25)]
    model = DRMM(2, 2, 4, curriculum=curriculum)
    settings = {"steps": 40, "lr": 0.01, "seed": 0, "progress_bar": False}
    history = fit(model, spiral(300), **settings)
    assert history.stages == {"em": 0, "likelihood": 10, "proposal": 30}
    rates = [0.01 * model.learning_rate_factor(step / 40) for step in range(40)]
    close(torch.tensor(history.learning_rates), torch.tensor(rates))


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_lowers_its_loss(stage, missing):
    x = curves(1000, missing)
    options = {"categories": (2,), "missing": "marginalize" if missing else "error"}
    model = DRMM(2, 3, 6, curriculum=[(stage, 1.0)], **options)
    fit(model, x, steps=1, lr=1e-6, seed=0, progress_bar=False)  # initialises
    with torch.no_grad():  # so that there is something to learn
        for name, parameter in model.named_parameters():
            parameter.add_((1.0 if "scale" in name else 0.3) * torch.randn_like(parameter))

    def loss():
        torch.manual_seed(1)
        # Late, where the choice of codes has settled.
        return model.train().loss(x, 0.99).item()

    before = loss()
    history = fit(model, x, steps=60, lr=0.02, seed=0, progress_bar=False)
    assert list(history.stages) == [stage]
    assert loss() < before - 0.1
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("stage", STAGES)
def test_stages_move_what_they_should(stage):
    model = random_model(2, 3, 3, categories=(2,), curriculum=[(stage, 1.0)])
    model.loss(model.sample((30,)), 0.7).backward()
    moved = {name for name, p in model.named_parameters() if p.grad is not None}
    law = {"log_weight", "link_logits", "loc", "raw_scale", "column_logits.0"}
    expected = {
        "real": law - {"log_weight", "link_logits"},
        "latents": law - {"log_weight"},
        "proposal": set(),
    }.get(stage, law)
    assert moved == expected | {"raw_inner_scale"}


def test_both_curricula_learn_the_spiral():
    x, held_out = spiral(2000, 0.1), spiral(1000, 0.1)
    soft = [("real", 1), ("latents", 1), ("joint", 1)]
    reached = {}
    for name, curriculum in (
        ("em", [("em", 1.0)]),
        ("em, then likelihood", [("em", 0.5), ("likelihood", 0.5)]),
        ("soft", soft),
    ):
        model = DRMM(2, 2, 16, curriculum=curriculum)
        history = fit(model, x, steps=400, lr=1e-2, seed=0, progress_bar=False)
        assert history.outcome == "finished"
        reached[name] = model.log_prob(held_out).mean().item()
    # One Gaussian reaches -5.2 or so, the truth -2.9 or so.
    assert all(value > -4.3 for value in reached.values())
    assert reached["em, then likelihood"] > reached["em"]
    assert reached["em, then likelihood"] > -3.6


@pytest.mark.parametrize("gaps", [False, True])
def test_training_on_mixed_columns(gaps):
    """A category that says which side a point is on, and sides that say which category."""
    x = curves(2000, gaps)
    model = DRMM(2, 2, 12, categories=(2,), missing="marginalize")
    fit(model, x, steps=300, lr=0.01, seed=0, progress_bar=False)
    held_out = curves(500)
    open_side = held_out.clone()
    open_side[:, 2] = math.nan
    joint = []
    for value in (0.0, 1.0):
        given = held_out.clone()
        given[:, 2] = value
        joint.append(model.log_prob(given).detach())
    joint = torch.stack(joint, -1)
    close(joint.logsumexp(-1), model.log_prob(open_side).detach(), 1e-6)
    clear = held_out[:, 0].abs() > 0.5
    right = joint.argmax(-1) == held_out[:, 2]
    assert right[clear].float().mean() > 0.95


# ---- checkpoints ------------------------------------------------------------------------------


@pytest.mark.parametrize("curriculum", [None, [("real", 1), ("joint", 1), ("likelihood", 1)]])
def test_resumed_training_is_the_same(curriculum, tmp_path):
    options = {} if curriculum is None else {"curriculum": curriculum}
    start = DRMM(2, 3, 4, categories=(2,), missing="marginalize", **options)
    x = curves(400, True)
    settings = {"lr": 0.01, "seed": 0, "progress_bar": False, "batch_size": 50}
    whole = copy.deepcopy(start)
    expected = fit(whole, x, steps=40, **settings)

    broken = copy.deepcopy(start)
    loss, calls = broken.loss, []

    def failing(*args):
        calls.append(1)
        if len(calls) == 26:
            raise RuntimeError("power cut")
        return loss(*args)

    broken.loss = failing
    path = tmp_path / "training.safetensors"
    with pytest.raises(RuntimeError, match="power cut"):
        fit(broken, x, steps=40, checkpoint=path, checkpoint_every=10, **settings)
    resumed = copy.deepcopy(start)
    history = fit(resumed, x, steps=40, checkpoint=path, checkpoint_every=10, **settings)
    assert history.losses == expected.losses
    assert history.stages == expected.stages
    pairs = zip(resumed.parameters(), whole.parameters(), strict=True)
    assert all(torch.equal(p, q) for p, q in pairs)


# ---- initialisation ---------------------------------------------------------------------------


@pytest.mark.parametrize("scale", ["diagonal", "spherical", "scalar"])
def test_initialisation_is_a_good_start(scale):
    x = spiral(1000, 0.1)
    model = DRMM(2, 3, 16, scale=scale, inner_scale="scalar" if scale == "scalar" else "diagonal")
    random = model.log_prob(x).mean()
    model.initialize(x)
    assert model.initialized
    value = model.log_prob(x).mean()
    gaussian = -(1 + math.log(2 * math.pi)) - 0.5 * torch.logdet(torch.cov(x.mT))
    assert value > random + 10
    assert value > gaussian + 0.5
    codes = model.encode(x)
    for layer in range(3):  # no component is without points
        assert len(codes[:, layer].unique()) >= 14


def test_initialisation_of_tables():
    """Tables hold how often codes occur together, and first layers know the categories."""
    corner = torch.randint(4, (2000,))
    x = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])[corner]
    x = torch.cat([x + 0.1 * torch.randn(2000, 2), corner.unsqueeze(-1).to(x)], -1)
    model = DRMM(2, 1, 4, categories=(4,))
    model.initialize(x)
    assert (model.decode(model.encode(x))[:, 2] == x[:, 2]).all()
    assert model.log_prob(x).mean() > -math.log(4) - 2 * (0.5 * math.log(2 * math.pi) + 0.5) + (
        2 * math.log(10) - 0.15
    )
    deep = DRMM(1, 2, 2, smoothing=0.0)
    # Two clusters, of which one is split far and one not at all.
    points = torch.tensor([[0.0], [0.0], [10.0], [11.0]]).repeat(100, 1)
    deep.initialize(points)
    codes, log_prob = deep.law.all_codes()
    counts = torch.zeros(len(codes))
    for i, code in enumerate(codes):
        counts[i] = (deep.encode(points) == code).all(-1).sum()
    torch.testing.assert_close(log_prob.exp(), counts / len(points), atol=0.05, rtol=0)


@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(1, 3),
        torch.zeros(50, 3),
        torch.cat([1e4 + torch.randn(12_000, 2), torch.ones(12_000, 1)], -1),
        torch.cat([torch.full((20, 2), math.nan), torch.ones(20, 1)], -1),
        torch.cat([torch.randn(20, 2), torch.full((20, 1), math.nan)], -1),
        torch.tensor([[1.0, math.nan, 0.0], [math.nan, 2.0, 1.0]]).repeat(10, 1),
    ],
    ids=["one point", "one value", "many points far away", "no reals", "no codes", "halves"],
)
def test_initialisation_from_odd_data(x):
    x = x.double()
    model = DRMM(2, 3, 5, categories=(2,), missing="marginalize")
    model.initialize(x)
    assert all(p.isfinite().all() for p in model.parameters())
    assert model.log_prob(x).isfinite().all()
    model.loss(x, 0.2).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_initialisation_leaves_frozen_parameters_alone():
    model = random_model(2, 2, 4)
    model.loc.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    model.initialize(spiral(200))
    assert torch.equal(model.loc, before["loc"])
    assert not torch.equal(model.log_weight, before["log_weight"])


def test_rows_without_any_entry_are_no_training_data():
    model = DRMM(2, 2, 3, categories=(2,), missing="marginalize").train()
    x = torch.randn(10, 3)
    x[:, 2] = 0.0
    x[3] = math.nan
    before = copy.deepcopy(model.state_dict())
    for call in (model.loss, model.initialize):
        with pytest.raises(ValueError, match="1 of 10 rows without"):
            call(x)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(ValueError, match="no context"):
        model.loss((x[:3], torch.zeros(3)))


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_short_cut_of_gradients_is_the_gradient(smoothing):
    model = random_model(3, 4, 5, smoothing=smoothing)
    rows = model._rows(model.sample((60,)))
    plain = dataclasses.replace(model.law, source=None)
    short, long = (
        torch.autograd.grad(em_loss(law, rows, 0.7, 0.01), [model.link_logits, model.loc])
        for law in (model.law, plain)
    )
    for one, other in zip(short, long, strict=True):
        torch.testing.assert_close(one, other, atol=1e-8, rtol=0)
    assert short[0].abs().max() > 1e-3


# ---- columns in units of their own ------------------------------------------------------------

UNITS = torch.tensor([1.0, 1e3, 1e-3])
PLACE = torch.tensor([0.0, 5e4, 7.0])


def curve(num):
    """A curve in three columns of similar spread."""
    t = 6.0 * torch.rand(num)
    return torch.stack([t.cos(), t.sin(), (2 * t).cos()], -1) + 0.1 * torch.randn(num, 3)


def trained_on(x, **options):
    torch.manual_seed(0)
    model = DRMM(3, 3, 8, **options)
    fit(model, x, steps=150, lr=0.02, seed=0, progress_bar=False)
    return model.requires_grad_(False)


def test_columns_of_different_units_are_learnt_as_well_as_standardised_ones(tmp_path):
    x = curve(1500)
    standard = (x - x.mean(0)) / x.std(0, correction=0)
    model, plain = trained_on(x * UNITS + PLACE), trained_on(standard, standardize=False)
    held_out = curve(200)
    got = model.log_prob(held_out * UNITS + PLACE) + UNITS.log().sum()
    expected = plain.log_prob((held_out - x.mean(0)) / x.std(0, correction=0))
    expected = expected - x.std(0, correction=0).log().sum()
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    # Everything is in the user's units.
    draws = model.sample((2000,))
    assert ((draws.mean(0) - PLACE).abs() < 0.2 * UNITS).all()
    law = model.condition({1: 5e4 + 500.0})
    assert (law.sample((50,))[:, 1] == 5e4 + 500.0).all()
    gaps = (x[:5] * UNITS + PLACE).index_fill(1, torch.tensor(2), math.nan)
    assert ((model.impute(gaps)[:, 2] - 7.0).abs() < 2e-3).all()
    assert ((model.decode(model.encode(draws)) - draws).abs().mean(0) < UNITS).all()
    for depth in (1, 3):
        shallow = model.shallow(depth)
        assert torch.equal(
            shallow.log_prob(draws[:5]), model.layer_log_prob(draws[:5])[:, depth - 1]
        )
    save(model, tmp_path / "model")
    assert torch.equal(load(tmp_path / "model").log_prob(draws[:5]), model.log_prob(draws[:5]))


def test_usual_columns_keep_their_units():
    x = curve(300)
    model = DRMM(3, 2, 4)
    model.initialize(x)
    assert (model.units.scale == 1).all()
    assert (model.units.loc == 0).all()
    model = DRMM(3, 2, 4, standardize=True)
    model.initialize(x)
    torch.testing.assert_close(model.units.scale, x.std(0, correction=0))
    constant = torch.cat([x * 1e3, torch.full((300, 1), 1e6)], -1)
    model = DRMM(4, 2, 4)
    model.initialize(constant)
    assert model.units.scale[3] == 1
    assert model.units.loc[3] == pytest.approx(1e6)
    with pytest.raises(ValueError, match="standardize to be True, False or 'auto'"):
        DRMM(3, 2, 4, standardize="yes")


def test_units_are_those_of_known_entries():
    x = 1e3 * curve(400) + 1e5
    gaps = torch.where(torch.rand_like(x) < 0.3, math.nan, x)
    gaps = gaps[~gaps.isnan().all(-1)]
    model = DRMM(3, 2, 4, missing="marginalize")
    model.initialize(gaps)
    torch.testing.assert_close(model.units.loc, gaps.nanmean(0))
    spread = (gaps - gaps.nanmean(0)).square().nanmean(0).sqrt()
    torch.testing.assert_close(model.units.scale, spread)
