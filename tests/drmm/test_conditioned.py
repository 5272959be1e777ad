"""Deep residual mixtures given evidence, against sums over all codes and quadrature."""

import copy
import functools
import math
from dataclasses import dataclass

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import scipy.stats
import torch
from pyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.optim import ClippedAdam

from pyromix import (
    DRMM,
    AnyOf,
    Box,
    CategoricalPrior,
    GaussianPrior,
    LinearEquality,
    LinearGaussian,
    LinearInequality,
    Observed,
)
from pyromix.drmm import particles

from ..quadrature import nodes_and_weights


def _model(dtype=torch.float64, *, seed=0, scale=0.5, **arguments):
    """A model whose codes depend on each other, with components that overlap a little."""
    torch.manual_seed(seed)
    defaults = {"dim": 2, "num_layers": 3, "num_components": 5, "rank": 1}
    model = DRMM(**(defaults | arguments))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name == "link_logits" or name.startswith("column") or name == "log_weight":
                parameter.copy_(torch.randn_like(parameter))
        steps = 0.6 ** torch.arange(model.num_layers).reshape(-1, 1, 1)
        if model.affine:
            for parameter in model.layers.parameters():
                parameter.copy_(0.3 * torch.randn_like(parameter) - 0.3)
            model.loc.copy_(0.7 * torch.randn_like(model.loc))
            model.units.loc.copy_(_vector(0.2, -0.1))
            model.units.scale.copy_(_vector(1.1, 0.8))
            return model.to(dtype).eval().requires_grad_(False)
        model.raw_scale.copy_(2 * math.log(scale) + 0.3 * torch.randn_like(model.raw_scale))
        model.loc.copy_(1.5 * steps * torch.randn_like(model.loc))
        model.raw_inner_scale.copy_(
            (2 * (1.5 * steps[1:, 0]).log()).expand_as(model.raw_inner_scale)
        )
    return model.to(dtype).eval().requires_grad_(False)


def _vector(*values):
    return torch.tensor(values, dtype=torch.float64)


@dataclass
class Known:
    """Evidence, and its factor q(x) written out."""

    pieces: list
    factor: object  # of points (n, 2); returns q(x)


def _normal(x, loc, scale):
    return torch.distributions.Normal(loc, scale).log_prob(x).exp()


KNOWN = {
    "nothing": Known([], lambda x: torch.ones(len(x)).double()),
    "prior": Known(
        [GaussianPrior(_vector(0.5, -0.5), _vector(1.0, 2.0))],
        lambda x: _normal(x[:, 0], 0.5, 1.0) * _normal(x[:, 1], -0.5, 2.0),
    ),
    "box": Known(
        [Box(_vector(-1.0, -math.inf), _vector(2.0, 1.0))],
        lambda x: ((x[:, 0] >= -1) & (x[:, 0] <= 2) & (x[:, 1] <= 1)).double(),
    ),
    "inequality": Known(
        [LinearInequality(_vector(1.0, 0.7), -0.3)],
        lambda x: (x[:, 0] + 0.7 * x[:, 1] - 0.3 >= 0).double(),
    ),
    "observation": Known(
        [LinearGaussian(_vector(1.0, -1.0).reshape(1, 2), _vector(0.4), 0.5)],
        lambda x: _normal(x[:, 0] - x[:, 1], 0.4, 0.5),
    ),
    "either": Known(
        [AnyOf(Box(high=_vector(-1.0, math.inf)), LinearInequality(_vector(1.0, 1.0), -1.0))],
        lambda x: ((x[:, 0] <= -1) | (x.sum(-1) >= 1)).double(),
    ),
    # Five combinations, the last two of which have oblique rows within a box.
    "prior and inequality": Known(
        [GaussianPrior(0.0, 1.5), LinearInequality(_vector(-1.0, 1.0), 0.2)],
        lambda x: _normal(x, 0.0, 1.5).prod(-1) * (x[:, 1] - x[:, 0] + 0.2 >= 0),
    ),
    "observation and box": Known(
        [LinearGaussian(_vector(1.0, 1.0).reshape(1, 2), _vector(0.0), 0.3), Box(low=-0.5)],
        lambda x: _normal(x.sum(-1), 0.0, 0.3) * (x >= -0.5).all(-1),
    ),
    "two inequalities": Known(
        [LinearInequality(torch.tensor([[1.0, 0.2], [-1.0, 0.5]]).double(), _vector(0.5, 1.0))],
        lambda x: (
            (x[:, 0] + 0.2 * x[:, 1] + 0.5 >= 0) & (-x[:, 0] + 0.5 * x[:, 1] + 1.0 >= 0)
        ).double(),
    ),
    "box and inequality": Known(
        [Box(-2.0, 1.5), LinearInequality(_vector(1.0, 1.0), -0.5)],
        lambda x: (((x >= -2) & (x <= 1.5)).all(-1) & (x.sum(-1) - 0.5 >= 0)).double(),
    ),
    "prior, observation, box and inequality": Known(
        [
            GaussianPrior(_vector(0.0, 0.0), _vector(math.inf, 1.0)),
            LinearGaussian(_vector(1.0, -2.0).reshape(1, 2), _vector(0.3), 1.0),
            Box(high=1.0),
            LinearInequality(_vector(0.3, 1.0), 0.8),
        ],
        lambda x: (
            _normal(x[:, 1], 0.0, 1.0)
            * _normal(x[:, 0] - 2 * x[:, 1], 0.3, 1.0)
            * (x <= 1).all(-1)
            * (0.3 * x[:, 0] + x[:, 1] + 0.8 >= 0)
        ),
    ),
}


SOFT = ("nothing", "prior", "observation")  # rules nothing out


@functools.cache
def _draws(categories=(), maps="shift"):
    """Many draws of the model without evidence."""
    with torch.no_grad():
        return _model(categories=categories, maps=maps).sample((200_000,))


MAPS = "shift", "triangular", ("low_rank", "shift", "diagonal")
every_map = pytest.mark.parametrize("maps", MAPS, ids=["shift", "triangular", "mixed"])


def _repeated(piece, count):
    """The piece of evidence as a batch of copies."""
    match piece:
        case GaussianPrior(loc=loc, scale=scale):
            return GaussianPrior(torch.as_tensor(loc).expand(count, 2), scale)
        case LinearGaussian(matrix=matrix, y=y, noise=noise):
            return LinearGaussian(matrix, y.expand(count, -1), noise)
        case Box(low=low, high=high):
            return Box(torch.as_tensor(low).expand(count, 2), high)
        case LinearInequality(a=a, b=b):
            rows = len(torch.atleast_2d(a))
            return LinearInequality(a, torch.as_tensor(b).expand(count, rows))
        case AnyOf(alternatives=(first, *others)):
            return AnyOf(tuple(_repeated(p, count) for p in first), *others)
    raise NotImplementedError


def _populations(model, pieces, count, num_particles):
    """A batch of laws given equal evidence, each of a population of codes of its own."""
    return _limited(model).condition(
        _repeated(pieces[0], count), *pieces[1:], num_particles=num_particles
    )


def _limited(model):
    """The same model, which holds populations of codes instead of all."""
    limited = DRMM.from_config(model.config() | {"max_exact": 0}).to(model.loc)
    limited.load_state_dict(model.state_dict())
    return limited.eval().requires_grad_(False)


def _condition(model, pieces, route):
    if route == "all codes":
        return model.condition(*pieces)
    return _limited(model).condition(*pieces, num_particles=400)  # 50 of 125 codes in each island


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@every_map
@pytest.mark.parametrize("name", KNOWN)
def test_evidence_and_density_agree_with_draws_of_the_model(name, maps):
    known, model = KNOWN[name], _model(maps=maps)
    law = model.condition(*known.pieces)
    x, weight = nodes_and_weights(known.pieces, order=96)
    joint = model.log_prob(x) + known.factor(x).log()
    log_evidence, error = law.log_evidence()
    wanted = (weight * joint.exp()).sum().log()  # to five digits or more
    assert abs(log_evidence - wanted) < 4 * error + 1e-4
    x = torch.cat([x[joint > -200], _draws(maps=maps)[:5000]])  # far away, q(x) loses digits
    log_prob, factor = law.log_prob(x), known.factor(x)
    inside = factor > 0
    expected = model.log_prob(x) + factor.log() - log_evidence
    torch.testing.assert_close(log_prob[inside], expected[inside], atol=1e-8, rtol=0)
    assert bool(log_prob[~inside].isneginf().all())


@every_map
@pytest.mark.parametrize("route", ["all codes", "particles"])
@pytest.mark.parametrize("name", KNOWN)
def test_draws_have_the_conditional_law(name, route, maps):
    known, model, x = KNOWN[name], _model(maps=maps), _draws(maps=maps)
    factor = known.factor(x)
    reference = x[torch.rand(len(x)) * factor.max() < factor][:10_000]  # by rejection
    if route == "all codes" or not known.pieces:
        draws = _condition(model, known.pieces, route).sample((10_000,))
    else:  # of 40 populations, each of 96 of 125 codes in eight islands
        draws = _populations(model, known.pieces, 40, 96).sample((250,)).flatten(0, 1)
    assert bool((known.factor(draws) > 0).all())
    for direction in ([1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [1.0, -0.5]):
        along = [(t @ _vector(*direction)).numpy() for t in (reference, draws)]
        assert scipy.stats.ks_2samp(*along).pvalue > 1e-4


SURFACES = {
    "observed": ([Observed({0: 0.7})], _vector(0.7, 0.0), _vector(0.0, 1.0), lambda t: 1.0),
    "equality": (
        [LinearEquality(_vector(1.0, 2.0), -0.5)],
        _vector(0.5, 0.0),
        _vector(2.0, -1.0) / math.sqrt(5.0),
        lambda t: 1.0,
    ),
    "observed and box": (
        [Observed({1: -0.3}), Box(_vector(-0.5, -9.0), _vector(1.0, 9.0))],
        _vector(0.0, -0.3),
        _vector(1.0, 0.0),
        lambda t: ((t >= -0.5) & (t <= 1.0)).double(),
    ),
    "equality and inequality": (
        [LinearEquality(_vector(1.0, 1.0), 0.0), LinearInequality(_vector(1.0, 0.0), 0.2)],
        _vector(0.0, 0.0),
        _vector(1.0, -1.0) / math.sqrt(2.0),
        lambda t: (t / math.sqrt(2.0) + 0.2 >= 0).double(),
    ),
}


@pytest.mark.parametrize("route", ["all codes", "particles"])
@pytest.mark.parametrize("name", SURFACES)
def test_laws_on_lines_agree_with_quadrature_along_them(name, route):
    pieces, origin, direction, factor = SURFACES[name]
    model = _model()
    law = _condition(model, pieces, route)
    t = torch.linspace(-12, 12, 30_001).double()
    with torch.no_grad():
        joint = model.log_prob(origin + t.unsqueeze(-1) * direction).exp() * factor(t)
    step = float(t[1] - t[0])
    total = joint.sum() * step
    log_evidence, error = law.log_evidence()
    # With an equation Z is the density of its left side, with rows as they are given.
    length = math.sqrt(5.0) if name == "equality" else math.sqrt(2.0)
    length = length if name.startswith("equality") else 1.0
    assert log_evidence.item() == pytest.approx(
        math.log(total.item() / length), abs=2e-3 + 4 * error.item()
    )
    x = law.sample((5000,))
    along = (x - origin) @ direction
    torch.testing.assert_close(origin + along.unsqueeze(-1) * direction, x, atol=1e-6, rtol=0)
    cumulative = (joint.cumsum(0) / joint.sum()).numpy()
    result = scipy.stats.kstest(along.numpy(), lambda v: np.interp(v, t.numpy(), cumulative))
    assert result.pvalue > 1e-4
    expected = joint.log() - math.log(total.item())
    at = (joint > 0).nonzero().squeeze(-1)[::50]
    got = law.log_prob(origin + t[at].unsqueeze(-1) * direction)
    torch.testing.assert_close(got, expected[at], atol=0.02 + 5 * error.item(), rtol=0)


@pytest.mark.parametrize("maps", ["shift", "triangular"])
@pytest.mark.parametrize("name", ["box", "prior", "observation and box"])
def test_populations_give_unbiased_evidence_and_honest_errors(name, maps):
    model = _model(num_layers=5, num_components=4, maps=maps)  # 1,024 codes
    pieces = KNOWN[name].pieces
    exact, _ = model.condition(*pieces).log_evidence()
    log_evidence, errors = _populations(model, pieces, 60, 64).log_evidence()
    estimates = (log_evidence - exact).exp()
    deviation = estimates.std()
    assert (estimates.mean() - 1.0).abs() < 3 * deviation / math.sqrt(60)
    assert deviation > 1e-4  # there was something to estimate
    assert 0.6 < errors.square().mean().sqrt() / deviation < 1.7


def test_thinning_keeps_each_item_with_its_probability():
    log_weight = torch.randn(1, 40, dtype=torch.float64) * 2
    weight = log_weight.exp()
    total, kept, repeats = torch.zeros(40).double(), torch.zeros(40).double(), 4000
    index, log_inclusion = particles.thin(log_weight.expand(repeats, -1), 10)
    assert all(len(set(row.tolist())) == 10 for row in index)
    inclusion = (
        torch.zeros(40).double().scatter_(0, index.flatten(), log_inclusion.flatten().exp())
    )
    kept.scatter_add_(0, index.flatten(), torch.ones(repeats * 10).double())
    total.scatter_add_(0, index.flatten(), (-log_inclusion).exp().flatten())
    seen = kept > 0
    error = (inclusion * (1 - inclusion) / repeats).sqrt()[seen]
    assert bool(((kept[seen] / repeats - inclusion[seen]).abs() <= 5 * error + 1e-12).all())
    # Sums are unbiased, and the largest weights are there for certain.
    assert bool((kept[weight[0].topk(3).indices] == repeats).all())
    sums = (weight[0][index] * (-log_inclusion).exp()).sum(-1)
    torch.testing.assert_close(sums.mean(), weight.sum(), rtol=1e-9, atol=0)


def test_thinning_fills_up_when_few_items_are_possible():
    log_weight = torch.full((2, 20), -math.inf)
    log_weight[0, 3], log_weight[1, [2, 9]] = 0.0, torch.tensor([1.0, -1.0])
    index, log_inclusion = particles.thin(log_weight, 5)
    for row, possible in ((0, {3}), (1, {2, 9})):
        real = log_inclusion[row].isfinite()
        assert set(index[row][real].tolist()) == possible
        assert real.sum() == len(possible)
        torch.testing.assert_close(log_inclusion[row][real], torch.zeros(len(possible)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "name", [n for n in KNOWN if n not in ("nothing", "prior", "observation")]
)
@pytest.mark.parametrize("maps", ["shift", "triangular"])
def test_no_draw_breaks_a_constraint(name, dtype, maps):
    known, model = KNOWN[name], _model(dtype, maps=maps)
    torch.manual_seed(1)
    # In float64 far more draws would be needed to see one that rounding moves out.
    x = model.condition(*known.pieces).sample((100_000 if dtype == torch.float32 else 5000,))
    assert x.dtype == dtype
    assert bool((known.factor(x) > 0).all())


def test_observed_columns_come_back_to_the_bit():
    model = _model(torch.float32, categories=(3,))
    values = torch.rand(7, dtype=torch.float32)
    law = model.condition(Observed({1: values, 2: 1}), Box(-1.5, 1.5))
    x = law.sample((500,))
    assert torch.equal(x[..., 1], values.expand(500, 7))
    assert torch.equal(x[..., 2], torch.ones(500, 7))
    assert bool((x[..., 0].abs() <= 1.5).all())


MIXED = {
    "a code": ([Observed({2: 1})], lambda x: (x[:, 2] == 1).double()),
    "a prior on a column": (
        [CategoricalPrior(3, _vector(0.2, 0.7, 0.0, 2.0))],
        lambda x: _vector(0.2, 0.7, 0.0, 2.0)[x[:, 3].long()],
    ),
    "a prior, a code and a box": (
        [CategoricalPrior(3, _vector(1.0, 0.5, 0.5, 0.1)), Observed({2: 0}), Box(low=-1.0)],
        lambda x: (
            _vector(1.0, 0.5, 0.5, 0.1)[x[:, 3].long()] * (x[:, 2] == 0) * (x[:, :2] >= -1).all(-1)
        ),
    ),
}


@pytest.mark.parametrize("route", ["all codes", "particles"])
@pytest.mark.parametrize("name", MIXED)
def test_categorical_columns_are_conditioned_on_and_drawn(name, route):
    pieces, factor = MIXED[name]
    model = _model(categories=(3, 4))
    law = _condition(model, pieces, route)
    x = _draws((3, 4))
    weight = factor(x)
    sampling = float(weight.std() / weight.mean() / math.sqrt(len(x)))
    log_evidence, error = law.log_evidence()
    tolerance = 4 * math.hypot(sampling, error)
    assert log_evidence.item() == pytest.approx(weight.mean().log().item(), abs=tolerance)
    draws = law.sample((20_000,))
    log_prob = law.log_prob(draws)
    scorer = model if route == "all codes" else _limited(model)
    expected = scorer.log_prob(draws) + factor(draws).log() - log_evidence
    torch.testing.assert_close(log_prob, expected, atol=1e-8, rtol=0)
    for j, count in ((2, 3), (3, 4)):
        code = x[:, j].long()
        wanted = torch.zeros(count).double().scatter_add_(0, code, weight) / weight.sum()
        got = torch.bincount(draws[:, j].long(), minlength=count) / len(draws)
        slack = 5 * math.sqrt(0.25 / len(draws) + sampling**2) + 4 * float(error)
        assert bool(((got - wanted).abs() < slack).all())
        assert bool(((law.probs(j) - wanted).abs() < slack).all())
    for d in range(2):  # real columns know about the categories, too
        reference = x[torch.rand(len(x)) * weight.max() < weight][:5000, d]
        pvalue = scipy.stats.ks_2samp(reference.numpy(), draws[:5000, d].numpy()).pvalue
        assert pvalue > 1e-4 or route == "particles"


def test_a_category_is_predicted_from_all_real_columns():
    model = _model(categories=(3,))
    x = torch.tensor([[0.3, -0.8], [1.0, 0.5]]).double()
    law = model.condition(Observed({0: x[:, 0], 1: x[:, 1]}))
    log_joint = torch.stack(
        [model.log_prob(torch.cat([x, torch.full((2, 1), c).double()], -1)) for c in range(3)], -1
    )
    torch.testing.assert_close(law.probs(2), log_joint.softmax(-1), atol=1e-10, rtol=0)
    torch.testing.assert_close(law.log_evidence()[0], log_joint.logsumexp(-1))
    assert torch.equal(law.sample((9,))[..., :2], x.expand(9, 2, 2))
    assert torch.equal(law.mean[:, 2], log_joint.argmax(-1).double())
    with pytest.raises(ValueError, match="can hold"):
        model.condition(Observed({0: 0.3, 1: -0.8}), LinearInequality(_vector(1.0, 1.0)))


def test_batches_of_evidence_are_laws_of_their_own():
    model = _model(categories=(3,))
    values, low = _vector(-1.0, 0.2, 1.0), torch.tensor([[-1.0], [0.5]]).double()
    pieces = lambda i, j: [  # noqa: E731
        Observed({0: values[j]}),
        Box(torch.stack([_vector(-9.0)[0], low[i, 0]])),
        Observed({2: torch.tensor(j)}),
    ]
    box = Box(torch.stack([torch.full((2, 1), -9.0).double(), low], -1))
    law = model.condition(Observed({0: values}), box, Observed({2: torch.arange(3)}))
    assert law.batch_shape == (2, 3)
    x = law.sample((4,))
    assert x.shape == (4, 2, 3, 3)
    log_prob, (log_evidence, _) = law.log_prob(x), law.log_evidence()
    for i in range(2):
        for j in range(3):
            one = model.condition(*pieces(i, j))
            # Up to the codes that are left out as too unlikely.
            close = {"atol": 2e-6, "rtol": 0}
            torch.testing.assert_close(one.log_evidence()[0], log_evidence[i, j], **close)
            torch.testing.assert_close(one.log_prob(x[:, i, j]), log_prob[:, i, j], **close)
    limited = _limited(model).condition(Observed({0: values}), box, num_particles=104)
    exact = model.condition(Observed({0: values}), box).log_evidence()[0]
    estimate, error = limited.log_evidence()
    assert bool(((estimate - exact).abs() < 5 * error + 1e-3).all())


def test_evidence_adds_up_step_by_step():
    model = _model()
    at_once = model.condition(Observed({0: 0.2}), Box(-1.0, 2.0))
    in_steps = model.condition({0: 0.2}).condition(Box(-1.0, 2.0))
    torch.testing.assert_close(at_once.log_evidence()[0], in_steps.log_evidence()[0])


def test_means_and_variances_are_those_of_draws():
    model = _model()
    for pieces in ([Observed({0: 0.4})], [GaussianPrior(0.0, 1.0)]):
        law = model.condition(*pieces)
        x = law.sample((100_000,))
        error = (x.var(0) / len(x)).sqrt()
        assert bool(((law.mean - x.mean(0)).abs() <= 5 * error + 1e-12).all())
        torch.testing.assert_close(law.variance, x.var(0), rtol=0.03, atol=1e-12)
    with pytest.raises(NotImplementedError, match="sample"):
        _ = model.condition(Box(-1.0, 1.0)).mean


def test_a_law_keeps_to_the_parameters_it_was_made_with():
    model = _model()
    law = model.condition(Box(-1.0, 1.0))
    x = law.sample((10,))
    before = law.log_prob(x)
    model.loc.add_(1.0)
    torch.testing.assert_close(law.log_prob(x), before)


def test_gradients_of_the_evidence_reach_parameters():
    model = _model().requires_grad_(True)
    y = torch.tensor(0.3).double()
    pieces = GaussianPrior(0.0, 1.0), Observed({0: y})
    assert not model.condition(*pieces).log_evidence()[0].requires_grad
    law = model.condition(*pieces, differentiable=True)
    (gradient,) = torch.autograd.grad(law.log_evidence()[0], model.loc)
    direction = torch.randn_like(model.loc)
    values = []
    for step in (1e-5, -1e-5):
        with torch.no_grad():
            model.loc.add_(step * direction)
            moved = model.condition(GaussianPrior(0.0, 1.0), Observed({0: y}))
            values.append(moved.log_evidence()[0])
            model.loc.sub_(step * direction)
    difference = (values[0] - values[1]) / 2e-5
    torch.testing.assert_close((gradient * direction).sum(), difference, rtol=1e-6, atol=1e-8)


def test_effective_sample_sizes_are_large_on_a_model_of_the_plane():
    model = _limited(_model(num_components=16, scale=0.2))
    pieces = {name: known.pieces for name, known in KNOWN.items() if name != "either"}
    pieces |= {name: surface[0] for name, surface in SURFACES.items()}
    for evidence in pieces.values():
        law = model.condition(*evidence, num_particles=1024)
        assert not law.exact
        assert float(law.effective_sample_size) > 0.3 * law.num_particles


def test_few_particles_for_unlikely_evidence_are_warned_of():
    model = _limited(_model(num_layers=6, num_components=8, scale=0.02))
    with pytest.warns(RuntimeWarning, match="independent ones"):
        model.condition(Observed({0: 4.0, 1: torch.linspace(-4.0, 4.0, 20)}), num_particles=8)


BAD = {
    "a column that is not there": ([Observed({5: 0.0})], "integers from -3 to 2"),
    "a code out of range": ([Observed({2: 3})], "codes from 0 to 2"),
    "a code between categories": ([Observed({2: 0.5})], "codes from 0 to 2"),
    "a prior on a real column": ([CategoricalPrior(0, torch.ones(3))], "categorical column"),
    "too few probabilities": ([CategoricalPrior(2, torch.ones(2))], "one for each category"),
    "negative probabilities": ([CategoricalPrior(2, _vector(1, -1, 1))], "not negative"),
    "no category left": (
        [Observed({2: 0}), CategoricalPrior(2, _vector(0, 1, 1))],
        "nothing is left of column 2",
    ),
    "a box of another width": ([Box(torch.zeros(3), 1.0)], r"\(\*N, 2\)"),
    "contradicting inequalities": (
        [LinearInequality(_vector(1.0, 0.0), -1.0), Box(high=0.0)],
        "x\\[0\\]",
    ),
    "contradicting values": (
        [Observed({0: 1.0}), LinearInequality(_vector(-1.0, 0.0))],
        "can hold",
    ),
    "the same column twice": ([Observed({0: 1.0}), Observed({0: 1.0})], "observed once"),
    "batch shapes that do not fit": (
        [Observed({0: torch.zeros(2)}), Observed({1: torch.zeros(3)})],
        "broadcast",
    ),
    "something else": (["x0 > 1"], "pieces of evidence"),
    "an empty batch": ([Observed({0: torch.zeros(0)})], "at least one law"),
    "a list of pieces": ([[Box(0.0, 1.0)]], "an argument of its own"),
    "a context": ([torch.zeros(3)], "pieces of evidence"),
    "a union of priors": ([AnyOf(Box(low=0.0), Box(high=-1.0)), 3], "pieces of evidence"),
}


@pytest.mark.parametrize("route", ["all codes", "particles"])
@pytest.mark.parametrize("name", BAD)
def test_bad_evidence_is_named(name, route):
    pieces, message = BAD[name]
    model = _model(categories=(3,))
    model = model if route == "all codes" else _limited(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        model.condition(*pieces)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_points_that_miss_the_evidence_have_no_density():
    model = _model(categories=(3,))
    law = model.condition(Observed({0: 0.5, 2: 1}), Box(-1.0, 1.0))
    points = torch.tensor([[0.5, 0.0, 1], [0.6, 0.0, 1], [0.5, 0.0, 0], [0.5, 1.5, 1]]).double()
    assert law.log_prob(points).isfinite().tolist() == [True, False, False, False]


def test_nuts_draws_from_a_conditioned_prior():
    model = _model(num_layers=2, num_components=3, scale=0.9)
    prior = model.condition(Box(_vector(-0.5, -math.inf)), GaussianPrior(0.0, 2.0))

    def program():
        x = pyro.sample("x", prior)
        pyro.sample("y", dist.Normal(x.sum(), 0.8), obs=torch.tensor(0.7).double())

    exact = model.condition(
        Box(_vector(-0.5, -math.inf)),
        GaussianPrior(0.0, 2.0),
        LinearGaussian(torch.ones(1, 2).double(), _vector(0.7), 0.8),
    ).sample((50_000,))
    mcmc = MCMC(NUTS(program), num_samples=250, warmup_steps=100, disable_progbar=True)
    mcmc.run()
    x = mcmc.get_samples()["x"]
    assert bool((x[:, 0] >= -0.5).all())
    summary = mcmc.diagnostics()["x"]
    error = exact.std(0) / summary["n_eff"].sqrt()
    assert bool(((x.mean(0) - exact.mean(0)).abs() < 5 * error).all())
    assert float(summary["r_hat"].max()) < 1.05


def test_a_conditioned_law_is_a_prior_and_a_likelihood_in_pyro():
    model = _model()
    law = model.condition(LinearInequality(_vector(1.0, 1.0), 0.5))
    x = law.sample((20,))

    def program():
        z = pyro.sample("z", law)
        pyro.sample("noisy", dist.Normal(z, 0.5).to_event(1), obs=_vector(0.4, 0.2))
        with pyro.plate("points", 20):
            pyro.sample("x", law, obs=x)

    pyro.clear_param_store()
    svi = SVI(program, AutoNormal(program), ClippedAdam({"lr": 0.02}), Trace_ELBO())
    losses = [svi.step() for _ in range(50)]
    assert all(math.isfinite(loss) for loss in losses)
    assert law.expand((4,)).log_prob(x[0]).shape == (4,)


def test_large_batches_are_worked_on_in_blocks(monkeypatch):
    model = _limited(_model(categories=(3,)))
    pieces = [
        Observed({0: torch.linspace(-1.0, 1.0, 7), 2: torch.arange(7) % 3}),
        Box(high=torch.stack([torch.full((7,), 9.0), torch.linspace(0.0, 2.0, 7)], -1)),
    ]
    exact = _model(categories=(3,)).condition(*pieces).log_evidence()[0]
    monkeypatch.setattr(particles, "MAX_SCORES", 1)
    law = model.condition(*pieces, num_particles=104)
    estimate, error = law.log_evidence()
    assert bool(((estimate - exact).abs() < 5 * error + 1e-3).all())
    x = law.sample((50,))
    assert torch.equal(x[..., 0], torch.linspace(-1.0, 1.0, 7).double().expand(50, 7))


def test_alternatives_go_with_categorical_columns():
    model = _model(categories=(3,))
    either = AnyOf(Box(high=_vector(-1.0, math.inf)), LinearInequality(_vector(1.0, 1.0), -1.0))
    law = model.condition(either, CategoricalPrior(2, _vector(1.0, 2.0, 0.0)))
    x = law.sample((5000,))
    inside = (x[:, 0] <= -1) | (x[:, 0] + x[:, 1] >= 1)
    assert bool((inside & (x[:, 2] < 2)).all())
    reference = model.sample((200_000,))
    factor = _vector(1.0, 2.0, 0.0)[reference[:, 2].long()]
    factor = factor * ((reference[:, 0] <= -1) | (reference[:, :2].sum(-1) >= 1))
    error = float(factor.std() / factor.mean() / math.sqrt(len(factor)))
    log_evidence = law.log_evidence()[0]
    assert log_evidence.item() == pytest.approx(factor.mean().log().item(), abs=4 * error)
    expected = model.log_prob(x) + _vector(0.0, math.log(2.0), 0.0)[x[:, 2].long()] - log_evidence
    torch.testing.assert_close(law.log_prob(x), expected)


def test_bounds_that_bound_nothing_say_nothing():
    for model in (_model(), _limited(_model())):
        law = model.condition(Box(), {0: 0.5}, LinearInequality(_vector(0.0, 1.0)))
        x = law.sample((20,))
        assert bool((x[:, 0] == 0.5).all())
        assert bool((x[:, 1] >= 0).all())
        assert model.condition(Box()).log_evidence()[0].item() == pytest.approx(0.0, abs=1e-9)


def test_a_conditioned_prior_of_a_trainable_model_serves_many_steps():
    model = _model().requires_grad_(True)
    prior = model.condition(Box(-1.0, 1.0))
    copy.deepcopy(prior)
    pyro.clear_param_store()

    def program():
        x = pyro.sample("x", prior)
        pyro.sample("y", dist.Normal(x.sum(), 1.0), obs=torch.tensor(0.3).double())

    svi = SVI(program, AutoNormal(program), ClippedAdam({"lr": 0.01}), Trace_ELBO())
    assert all(math.isfinite(svi.step()) for _ in range(3))


@pytest.mark.parametrize("route", ["all codes", "particles"])
def test_gaps_are_filled_in_row_by_row(route):
    model = _model(categories=(3,))
    scorer = model
    if route == "particles":
        model = DRMM.from_config(model.config() | {"max_exact": 0, "beam": 25}).double()
        model.load_state_dict(scorer.state_dict())
    x = scorer.sample((6,))
    x[0, 0] = x[1, 2] = x[2, 1] = x[3, :2] = x[4] = math.nan
    filled = model.impute(x)
    assert torch.equal(filled[~x.isnan()], x[~x.isnan()])
    assert bool(filled.isfinite().all())
    for row in (0, 1, 2, 3):
        given = {d: float(x[row, d]) for d in range(3) if not x[row, d].isnan()}
        law = scorer.condition(given)
        torch.testing.assert_close(filled[row], law.mean, atol=1e-8, rtol=0)
        draws = model.impute(x[row : row + 1], num_samples=4000)[:, 0]
        assert draws.shape == (4000, 3)
        for d in range(3):
            pvalue = scipy.stats.ks_2samp(draws[:, d], law.sample((4000,))[:, d]).pvalue
            assert pvalue > 1e-4


@pytest.mark.parametrize("maps", ["shift", "triangular"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_many_equations_are_met_and_weighed_as_normals_are(maps, dtype):
    """The search's own weights, of codes under equations, are those of their normals."""
    model = DRMM(12, 3, 5, maps=maps, max_exact=0).requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(std=0.4)
    model = model.to(dtype)
    tolerance = 1e-4 if dtype == torch.float32 else 1e-6
    a = torch.randn(5, 12).to(dtype)
    evidence = [
        LinearEquality(a, -0.3),
        Observed({3: 0.4}),
        LinearGaussian(a[:1] + 1, a[0, :1], 0.5),
    ]
    law = model.condition(*evidence, num_particles=200)
    assert law.route is None
    real, own = law._real.log_normalizer()[0], law._weights[1]
    got = law.log_evidence()[0].double()
    torch.testing.assert_close(got, real + own, rtol=0, atol=tolerance)
    x = law.sample((2000,))
    size = (a.abs() @ x.abs().mT).amax()
    assert (a @ x.mT - 0.3).abs().amax() < 100 * torch.finfo(dtype).eps * size
    assert bool((x[:, 3] == torch.tensor(0.4, dtype=dtype)).all())
    mean, spread = law.mean, law.variance
    error = (spread / 2000).sqrt() + 1e-6
    assert bool(((x.mean(0) - mean).abs() < 4.5 * error).all())
    assert law.log_prob(x).isfinite().all()
    with pytest.raises(ValueError, match="independent"):
        model.condition(LinearEquality(torch.cat([a, a[:1]])))


@every_map
def test_moments_of_a_batch_are_those_of_all_normals(maps):
    """They are summed over codes one by one, without a mixture of all."""
    model = _limited(_model(maps=maps))
    told = LinearGaussian(_vector(1.0, 0.5).unsqueeze(0), torch.randn(6, 1).double(), 0.3)
    for evidence in (
        [Observed({0: torch.linspace(-1.0, 1.0, 6)})],
        [Observed({1: 0.3}), told],
        [told, LinearEquality(_vector(1.0, -1.0), torch.linspace(-1.0, 1.0, 6).unsqueeze(-1))],
    ):
        law = model.condition(*evidence)
        mean, variance = law.mean, law.variance
        assert "_real" not in vars(law)
        torch.testing.assert_close(mean, law._real.mean, rtol=0, atol=1e-7)
        torch.testing.assert_close(variance, law._real.variance, rtol=1e-6, atol=1e-9)
