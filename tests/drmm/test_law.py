"""The law of a deep residual mixture, against the same written out code by code."""

import itertools
import math

import pytest
import torch
from scipy.stats import chi2

from pyromix.drmm import DRMM
from pyromix.drmm.links import log_normalize, sum_rows, sum_rows_of_layers

from .slow import Slow, random_model, with_gaps

STANDARD_ERRORS = 4.5
P_VALUE = 1e-5

MODELS = {
    "plain": lambda **o: random_model(2, 3, 3, **o),
    "one layer": lambda **o: random_model(2, 1, 4, **o),
    "one component": lambda **o: random_model(2, 3, 1, categories=(2,), **o),
    "one column": lambda **o: random_model(1, 2, 4, **o),
    "four layers": lambda **o: random_model(3, 4, 2, scale="spherical", **o),
    "scalars": lambda **o: random_model(2, 3, 3, scale="scalar", inner_scale="scalar", **o),
    "categories": lambda **o: random_model(2, 2, 3, categories=(3, 1, 2), **o),
    "smoothed": lambda **o: random_model(2, 3, 3, smoothing=0.5, **o),
    "not smoothed": lambda **o: random_model(2, 3, 3, smoothing=0.0, **o),
    "truncated": lambda **o: random_model(2, 3, 4, categories=(2,), truncation=0.4, **o),
    "nearly one code": lambda **o: random_model(2, 3, 3, truncation=0.999, **o),
    "triangular": lambda **o: random_model(2, 3, 3, maps="triangular", **o),
    "low rank": lambda **o: random_model(3, 2, 3, maps="low_rank", rank=2, categories=(2,), **o),
    "maps of all kinds": lambda **o: random_model(
        2, 4, 2, maps=("triangular", "shift", "low_rank", "diagonal"), rank=1, **o
    ),
}
EXACT = {"enumeration": {}, "full beam": {"max_exact": 0, "beam": 64}}
models = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
exact = pytest.mark.parametrize("how", EXACT.values(), ids=EXACT)


def close(got, expected, tolerance=1e-10):
    torch.testing.assert_close(got, expected, atol=tolerance, rtol=tolerance)


def quadrature(model, size=400, margin=6.0):
    """Integral over the plane, and sum over categories, of the density."""
    x = model.sample((2000,))
    low, high = x[:, :2].amin(0) - margin, x[:, :2].amax(0) + margin
    step = (high - low) / size
    axes = [low[d] + step[d] * (torch.arange(size) + 0.5) for d in range(2)]
    grid = torch.cartesian_prod(*axes)
    total = 0.0
    with torch.no_grad():
        for code in itertools.product(*(range(n) for n in model.categories)):
            columns = torch.tensor(code, dtype=grid.dtype).expand(len(grid), -1)
            total += model.log_prob(torch.cat([grid, columns], -1)).exp().sum()
    return float(total * step.prod())


# ---- codes ------------------------------------------------------------------------------------


@models
def test_codes(make):
    model = make()
    slow, law = Slow(model), model.law
    codes, log_prob = law.all_codes()
    assert [tuple(code) for code in codes.tolist()] == slow.codes
    close(log_prob, torch.stack([slow.log_prior(code) for code in slow.codes]))
    close(log_prob.exp().sum(), torch.tensor(1.0))
    close(law.mean_of(codes), torch.stack([slow.mean(code) for code in slow.codes]))
    for layer in range(model.num_layers):
        before = codes[:, :layer]
        expected = torch.stack([slow.log_conditional(tuple(code)) for code in before.tolist()])
        close(law.log_conditional(layer, before), expected)
        for got, depth in zip(law.log_conditionals(before), range(layer + 1), strict=True):
            close(got.expand(len(codes), -1), law.log_conditional(depth, before[:, :depth]))


@models
def test_drawn_codes_follow_the_law(make):
    model = make()
    codes, log_prob = model.law.all_codes()
    num = 20_000
    with torch.no_grad():
        drawn = model.law.sample_codes(num)
    place = model.num_components ** torch.arange(model.num_layers).flip(0)
    counts = torch.bincount((drawn * place).sum(-1), minlength=len(codes))
    assert (counts[log_prob == -math.inf] == 0).all()
    chi_square_test(counts, num * log_prob.detach().exp())


def chi_square_test(counts, expected):
    """Cells that are too rare are put together."""
    rare = expected < 10
    counts = torch.cat([counts[~rare], counts[rare].sum().reshape(1)]).double()
    expected = torch.cat([expected[~rare], expected[rare].sum().reshape(1)])
    if expected[-1] < 10:
        counts, expected = counts[:-1], expected[:-1]
    if len(expected) > 1:
        statistic = ((counts - expected).square() / expected).sum().item()
        assert chi2.sf(statistic, len(expected) - 1) > P_VALUE


# ---- densities --------------------------------------------------------------------------------


@models
@exact
def test_density(make, how):
    model = make(**how)
    x = model.sample((6,))
    close(model.log_prob(x), Slow(model).log_prob(x))
    assert model.log_prob(x.reshape(2, 3, -1)).shape == (2, 3)
    close(model.log_prob(x[0]), model.log_prob(x)[0])


@exact
def test_density_of_many_points(how):
    """In blocks, and by matrix products."""
    model = random_model(3, 2, 30, **how)
    x = model.sample((9000,))
    some = torch.arange(0, 9000, 3000)
    with torch.no_grad():
        close(model.log_prob(x)[some], Slow(model).log_prob(x[some]))


@exact
def test_blocks(how, monkeypatch):
    """Points that are worked on a few at a time have the same density and codes."""
    model = random_model(2, 3, 3, categories=(2,), missing="marginalize", **how)
    x = model.sample((20,))
    x[3, 0] = x[11, 2] = math.nan
    log_prob, codes = model.log_prob(x), model.encode(x)
    (grad,) = torch.autograd.grad(log_prob.sum(), model.loc)
    monkeypatch.setattr("pyromix.drmm.law.BLOCK_SCORES", 6 * 64 * 3)
    close(model.log_prob(x), log_prob)
    close(torch.autograd.grad(model.log_prob(x).sum(), model.loc)[0], grad)
    assert torch.equal(model.encode(x), codes)


@pytest.mark.parametrize(
    "name", ["plain", "one layer", "categories", "truncated", "low rank", "maps of all kinds"]
)
@exact
def test_missing_entries(name, how):
    torch.manual_seed(1)
    model = MODELS[name](missing="marginalize", **how)
    x = with_gaps(model.sample((2,)))
    log_prob = model.log_prob(x)
    close(log_prob, Slow(model).log_prob(x))
    nothing = x.isnan().all(-1)
    assert nothing.sum() == 2
    close(log_prob[nothing], torch.zeros(2))
    whole = x[~x.isnan().any(-1)]
    close(model.log_prob(whole), log_prob[~x.isnan().any(-1)])


def test_missing_entries_are_integrals():
    model = random_model(2, 2, 3, categories=(3,), missing="marginalize")
    point = model.sample()
    axis = torch.linspace(-15, 15, 6001)
    values = point.expand(3, len(axis), -1).clone()
    values[..., 1] = axis
    values[..., 2] = torch.arange(3.0).unsqueeze(-1)
    density = model.log_prob(values).exp()
    point[1] = math.nan
    integral = torch.trapezoid(density, axis, dim=-1)
    close(model.log_prob(point).exp(), integral[int(point[2])], 1e-8)
    point[2] = math.nan
    close(model.log_prob(point).exp(), integral.sum(), 1e-8)


@pytest.mark.parametrize(
    "name", ["plain", "categories", "truncated", "triangular", "maps of all kinds"]
)
def test_the_density_is_normalised(name):
    assert abs(quadrature(MODELS[name]()) - 1) < 1e-3


@pytest.mark.parametrize("beam", [1, 2, 5])
def test_the_beam_is_a_lower_bound(beam):
    for seed in range(3):
        torch.manual_seed(seed)
        model = random_model(2, 3, 5, max_exact=0, beam=beam, categories=(2,))
        x = model.sample((500,))
        bound, truth = (f(x).detach() for f in (model.log_prob, exactly(model)))
        assert (bound <= truth + 1e-12).all()
        assert (bound > truth - 20).all()
    assert 0.2 < quadrature(model, 250) < 1 + 1e-3


def exactly(model):
    return lambda x: model.law.exact_log_prob(model._rows(x))


@pytest.mark.parametrize("name", ["plain", "one layer", "categories", "truncated"])
def test_importance_sampling_is_unbiased(name):
    torch.manual_seed(3)
    model = MODELS[name](missing="marginalize")
    x = model.sample((3,))
    gaps = x.clone()
    gaps[:, 0] = math.nan
    x = torch.cat([x, gaps])
    if model.categories:
        gaps = x.clone()
        gaps[:, -1] = math.nan
        x = torch.cat([x, gaps])
    estimate = model.log_prob_importance(x.expand(4000, *x.shape), num_samples=4)
    ratio = (estimate - model.log_prob(x).detach()).exp()
    assert not estimate.requires_grad
    error = ratio.std(0) / math.sqrt(len(ratio))
    assert ((ratio.mean(0) - 1).abs() <= STANDARD_ERRORS * error + 1e-12).all()
    assert (error < 0.05).all()
    if model.num_layers == 1:  # nothing is left to chance
        close(ratio, torch.ones(()).expand_as(ratio))


def test_samples_follow_the_joint_law_of_all_columns():
    model = random_model(2, 2, 3, categories=(3, 2))
    num = 20_000
    x = model.sample((num,))
    assert model.support.check(x).all()
    edges = [-math.inf, *x[:, 0].quantile(torch.tensor([0.2, 0.5, 0.8])).tolist(), math.inf]
    slow, counts, expected = Slow(model), [], []
    for (low, high), a, b in itertools.product(itertools.pairwise(edges), range(3), range(2)):
        inside = (x[:, 0] >= low) & (x[:, 0] < high) & (x[:, 2] == a) & (x[:, 3] == b)
        counts.append(inside.sum())
        expected.append(num * slow.cell_probability(low, high, (a, b)))
    assert math.isclose(sum(expected), num, rel_tol=1e-9)
    chi_square_test(torch.stack(counts), torch.tensor(expected))


def test_distributions_over_categories():
    """Soft values count for their expected log-probability, and hard ones among them."""
    model = random_model(2, 2, 3, categories=(3,))
    x = model.sample((5,))
    rows = model._rows(x)
    hard = torch.nn.functional.one_hot(rows.columns[0], 3).to(x)
    for options in ({"max_exact": 100, "beam": 1}, {"max_exact": 0, "beam": 9}):
        law = model.law
        close(law.log_prob(rows._replace(columns=(hard,)), **options), model.log_prob(x))
        nothing = law.log_prob(rows._replace(columns=(0 * hard,)), **options)
        close(nothing, law.log_prob(rows._replace(columns=(-torch.ones(5, 1).long(),)), **options))


# ---- truncation -------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["em", "real", "latents", "joint", "likelihood", "proposal"])
def test_codes_that_do_not_occur_leave_gradients_finite(stage):
    model = random_model(2, 3, 4, truncation=0.9, training_beam=16, curriculum=[(stage, 1.0)])
    x = model.sample((20,))
    model.loss(x, 0.7).backward()
    model.eval().loss(x).backward()
    model.max_exact = 0
    model.loss(x).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


# ---- gradients --------------------------------------------------------------------------------

DIFFERENTIATED = {
    "enumeration": {},
    "beam": {"max_exact": 0, "beam": 2},
    "smoothed": {"smoothing": 0.6},
    "scalars": {"scale": "scalar", "inner_scale": "scalar", "max_exact": 0, "beam": 2},
    "triangular": {"maps": "triangular"},
    "low rank, beam": {"maps": "low_rank", "rank": 1, "max_exact": 0, "beam": 2},
}


@pytest.mark.parametrize("options", DIFFERENTIATED.values(), ids=DIFFERENTIATED)
def test_gradients(options):
    model = random_model(2, 3, 3, categories=(2,), missing="marginalize", **options)
    x = model.sample((3,))
    x[0, 0] = x[1, 2] = math.nan
    parameters = dict(model.named_parameters())
    # What guides the search is no part of the law.
    parameters.pop("raw_inner_scale", None)
    assert torch.autograd.gradcheck(lambda *_: model.log_prob(x), tuple(parameters.values()))

    columns = x[:, 2:]

    def of_real(real):
        return model.log_prob(torch.cat([real, columns], -1))

    real = x[:, :2].nan_to_num(0.3).requires_grad_()
    assert torch.autograd.gradcheck(of_real, real)
    assert torch.autograd.gradgradcheck(of_real, real)


@exact
@pytest.mark.parametrize("maps", ["shift", "triangular"])
def test_gradients_of_gradients_in_the_value_reach_parameters(how, maps):
    """As score matching takes them."""
    model = random_model(2, 2, 3, maps=maps, **how)
    x = model.sample((4,)).requires_grad_()

    def penalty(*_):
        return torch.autograd.grad(model.log_prob(x).sum(), x, create_graph=True)[0].square().sum()

    parameters = [p for name, p in model.named_parameters() if name != "raw_inner_scale"]
    assert torch.autograd.gradcheck(penalty, tuple(parameters))


@pytest.mark.parametrize("smoothing", [0.0, 1e-8, 0.7])
def test_link_tables(smoothing):
    logits = 3 * torch.randn(3, 4, 5)
    logits[0, 0] = -100.0
    weight = torch.randn(3, 4, 5)

    def obvious(logits):
        lowest = math.log(smoothing / 4) if smoothing else -math.inf
        return logits.log_softmax(-2).clamp(min=lowest)

    results = []
    for function in (obvious, lambda logits: log_normalize(logits, smoothing)):
        leaf = logits.clone().requires_grad_()
        table = function(leaf)
        once = torch.autograd.grad((weight * table).sum(), leaf, retain_graph=True)[0]
        twice = torch.autograd.grad((weight * table.square()).sum(), leaf)[0]
        results.append((table.detach(), once, twice))
    for expected, got in zip(*results, strict=True):
        close(got, expected)
    assert torch.autograd.gradgradcheck(
        lambda t: log_normalize(t, smoothing), logits[1:].requires_grad_()
    )


def test_sums_of_rows():
    table = torch.randn(7, 3, requires_grad=True)
    rows = [torch.randint(7, (4, width)) for width in (1, 2, 5)]
    got = sum_rows_of_layers(table, rows)
    assert len(got) == 3
    for part, chosen in zip(got, rows, strict=True):
        close(part, table[chosen].sum(1))
        close(sum_rows(table, chosen), table[chosen].sum(1))
    assert sum_rows(table, torch.zeros(4, 0).long()).tolist() == [[0.0] * 3] * 4
    assert torch.autograd.gradcheck(lambda t: sum_rows_of_layers(t, rows), table)


# ---- precision --------------------------------------------------------------------------------


@pytest.mark.parametrize(("offset", "scale"), [(0.0, 1e-3), (0.0, 1e3), (1e3, 1.0), (1e4, 0.1)])
@exact
def test_float32(offset, scale, how):
    """No worse than if the points and means had been rounded once more."""
    model = random_model(3, 2, 8, scale_floor=1e-4, **how)
    with torch.no_grad():
        model.loc.mul_(scale)
        model.loc[0].add_(offset)
        model.raw_scale.add_(2 * math.log(scale))
        model.raw_inner_scale.add_(2 * math.log(scale))
    single = model.float()
    x = single.sample((500,))
    rough = single.log_prob(x).detach()
    precise = single.double()
    value = x.double().requires_grad_()
    truth = precise.log_prob(value)
    (slope,) = torch.autograd.grad(truth.sum(), value)
    eps = torch.finfo(torch.float32).eps
    bound = 2 * eps * (slope.abs() * value.abs()).sum(-1) + 1e-4 * truth.abs().clamp(min=1.0)
    assert ((rough - truth).abs() <= bound).all()


@exact
def test_points_far_away(how):
    model = random_model(2, 3, 3, categories=(2,), **how)
    x = torch.tensor([[1e200, 0.0, 1.0], [0.0, -1e300, 0.0], [1e30, 0.0, 0.0]])
    for log_prob in (model.log_prob(x), model.log_prob_importance(x, 5)):
        assert (log_prob[:2] == -math.inf).all()
        assert -1e65 < log_prob[2] < -1e55
    assert model.encode(x).shape == (3, 3)


def test_the_smallest_scales():
    model = DRMM(2, 2, 3, scale_floor=1e-6)
    with torch.no_grad():
        model.raw_scale.fill_(-1000.0)
        model.raw_inner_scale.fill_(-1000.0)
    x = torch.cat([model.sample((5,)), torch.randn(5, 2)])
    for beam in (False, True):
        model.max_exact = 0 if beam else 100
        log_prob = model.log_prob(x)
        assert log_prob.isfinite().all()
        assert (log_prob[:5] > 10).all()
        log_prob.sum().backward()
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
