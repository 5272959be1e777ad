"""Marginals, quantiles and modes of laws given evidence, against quadrature, SciPy and draws."""

import math

import pytest
import scipy.stats
import torch

from pyromix import (
    DRMM,
    AnyOf,
    Box,
    CategoricalPrior,
    GaussianMixture,
    GaussianPrior,
    LinearEquality,
    LinearGaussian,
    LinearInequality,
    Nonlinear,
    Observed,
)

INF = math.inf
LEVELS = torch.tensor([[0.0, 1e-12, 0.01, 0.3], [0.5, 0.9, 1 - 1e-9, 1.0]]).double()


def mixture(covariance="full", dtype=torch.float64):
    torch.manual_seed(0)
    model = GaussianMixture(3, 4, covariance)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.4 if name.startswith("raw") else 1.0)
    return model.requires_grad_(False).to(dtype)


def residual(dim=3, num_layers=2, **arguments):
    torch.manual_seed(1)
    model = DRMM(dim, num_layers, num_components=4, **arguments)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("column") or name == "link_logits":
                parameter.normal_()
    return model.requires_grad_(False)


MODELS = {
    "diagonal": lambda: mixture("diagonal"),
    "full": mixture,
    "single": lambda: mixture(dtype=torch.float32),
    "residual": residual,
    "triangular": lambda: residual(maps="triangular"),
    "population": lambda: residual(num_layers=3, max_exact=1),
    "categories": lambda: residual(dim=2, categories=(3, 2)),
}
EQUATION = LinearEquality(torch.tensor([1.0, 2.0, -1.0]), 0.3)


# ---- marginals --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "evidence",
    [
        (Observed({0: 0.5}),),
        (Observed({0: torch.tensor([0.5, -1.0])}), GaussianPrior(0.0, 2.0)),
        (Observed({0: 0.5}), LinearGaussian(torch.ones(1, 3), torch.tensor([0.4]), 0.3)),
        (EQUATION,),
    ],
    ids=["values", "prior", "observation", "equation"],
)
@pytest.mark.parametrize("name", ["diagonal", "full", "residual", "triangular", "population"])
def test_marginals_are_those_of_the_whole_law(name, evidence):
    law = MODELS[name]().condition(*evidence)
    marginal = law.marginal([2, 1])
    assert marginal.event_shape == (2,)
    assert marginal.batch_shape == law.batch_shape
    torch.testing.assert_close(marginal.mean, law.mean[..., [2, 1]])
    torch.testing.assert_close(marginal.variance, law.variance[..., [2, 1]])
    if EQUATION not in evidence and name != "population":  # else the measure, or the beam, differs
        x = law.sample((5,))
        torch.testing.assert_close(marginal.log_prob(x[..., [2, 1]]), law.log_prob(x))
    single = law.marginal(-1)
    torch.testing.assert_close(single.mean, law.mean[..., [2]])


def test_columns_that_equations_fix_have_no_marginal():
    model = mixture()
    with pytest.raises(NotImplementedError, match="equations leave"):
        model.condition(EQUATION).marginal([0, 1, 2])
    law = model.condition(LinearEquality(torch.tensor([1.0, 1.0, 0.0])))
    with pytest.raises(NotImplementedError, match="equations leave"):
        law.marginal([0, 1])
    assert law.marginal([0, 2]).event_shape == (2,)
    with pytest.raises(NotImplementedError, match="Keep columns"):
        model.condition(Box(0.0)).marginal(0)


def test_marginals_of_a_residual_mixture_are_of_free_real_columns():
    law = residual(dim=2, categories=(3,)).condition({0: 0.5}, {2: 1})
    whole = residual(dim=2, categories=(3,))
    points = torch.tensor([[0.5, 0.2, 1.0], [0.5, -0.4, 1.0]])
    grid = torch.linspace(-12.0, 12.0, 4001)
    rows = torch.stack([torch.full_like(grid, 0.5), grid, torch.ones_like(grid)], -1)
    total = whole.log_prob(rows).logsumexp(0) + math.log(24.0 / 4000)
    expected = whole.log_prob(points) - total
    torch.testing.assert_close(law.marginal(1).log_prob(points[:, 1:2]), expected)
    with pytest.raises(NotImplementedError, match="probs"):
        law.marginal([1, 2])
    with pytest.raises(ValueError, match="not observed"):
        law.marginal(0)


# ---- quantiles --------------------------------------------------------------------------------


def tail(law, column, x, below):
    """P(x_d <= x), or that above, of a mixture that SciPy computes, component by component."""
    components = law._components
    place = components.free.index(column)
    weight = law.logits.exp().numpy()
    loc = components.loc[..., place].numpy()
    scale = components.variance[..., place].sqrt().numpy()
    of = scipy.stats.norm.cdf if below else scipy.stats.norm.sf
    return float((weight * of(x, loc, scale)).sum())


def test_quantiles_are_roots_of_the_distribution_function():
    law = mixture().condition(Observed({0: 0.5}), GaussianPrior(0.0, 3.0))
    found = law.quantile(2, LEVELS)
    assert found.shape == LEVELS.shape
    assert found[0, 0] == -INF
    assert found[1, -1] == INF
    for level, x in zip(LEVELS.flatten()[1:-1], found.flatten()[1:-1], strict=True):
        below = bool(level <= 0.5)
        expected = float(level if below else 1 - level)
        assert tail(law, 2, float(x), below) == pytest.approx(expected, rel=1e-9)
    assert bool((law.quantile(0, LEVELS) == 0.5).all())  # observed


def test_extreme_quantiles_keep_their_digits():
    law = GaussianMixture(1, 2).requires_grad_(False)
    with torch.no_grad():
        law.loc.copy_(torch.tensor([[-3.0], [5.0]]))
    law = law.condition(Box(low=9.0))
    x = law.quantile(0, torch.tensor([1e-300, 1e-20, 0.5, 1 - 2**-50]).double())
    loc, scale = law._components.loc[:, 0], law._components.variance[:, 0].sqrt()
    whole = torch.special.log_ndtr((loc - 9.0) / scale)
    for point, share in ((x[2], 0.5), (x[3], 2**-50)):
        above = (torch.special.log_ndtr((loc - point) / scale) - whole).exp()
        assert float((law.logits.exp() * above).sum()) == pytest.approx(share, rel=1e-9)
    assert bool(((x[:2] >= 9.0) & (x[:2] < 9.0 + 1e-14)).all())
    # Nothing is bounded: as far out as numbers reach.
    law = GaussianMixture(1, 1).requires_grad_(False).double().condition(GaussianPrior(0.0, 1e8))
    probs = torch.tensor([1e-14, 1e-50, 1e-300]).double()
    z = (law.quantile(0, probs) - law.mean) / law.variance.sqrt()
    torch.testing.assert_close(torch.special.log_ndtr(z), probs.log(), rtol=1e-9, atol=0)


QUANTILES = {
    "batch": (Observed({0: torch.tensor([0.5, -1.0, 2.0])}),),
    "box": (Box(torch.tensor([-INF, -0.5, 0.2]), torch.tensor([0.4, 1.5, INF])),),
    "boxes": (Box(torch.tensor([[-1.0, -0.5, 0.0], [0.0, -9.0, 0.5]]), 1.5),),
    "other columns": (LinearInequality(torch.tensor([1.0, 0.0, 1.0]), -0.5),),
    "fixed": (EQUATION, Observed({0: 0.1, 2: 0.4})),
}


@pytest.mark.parametrize("question", QUANTILES)
@pytest.mark.parametrize("name", ["diagonal", "residual", "population"])
def test_quantiles_are_those_of_draws(name, question):
    torch.manual_seed(3)
    law = MODELS[name]().condition(*QUANTILES[question])
    levels = torch.tensor([0.05, 0.5, 0.8])
    found = law.quantile(1, levels)
    assert found.shape == (3, *law.batch_shape)
    n = 20_000
    x = law.sample((n,))[..., 1]
    share = (x <= found.unsqueeze(1)).double().mean(1)
    if question == "fixed":
        torch.testing.assert_close(found, x[:3])
        return
    levels = levels.reshape(3, *[1] * len(law.batch_shape))
    assert bool(((share - levels).abs() < 4.5 * (levels * (1 - levels) / n).sqrt()).all())


def test_a_bound_on_one_correlated_column_leaves_it_in_closed_form():
    law = mixture(dtype=torch.float32).condition(
        LinearInequality(torch.tensor([0.0, -2.0, 0.0]), 0.6),
        LinearInequality(torch.tensor([0.0, 1.0, 0.0]), 1.0),
    )
    found = law.quantile(1, [0.0, 0.25, 1.0])
    assert found.dtype == torch.float32
    torch.testing.assert_close(found[[0, 2]], torch.tensor([-1.0, 0.3]).float())
    x = law.sample((20_000,))[:, 1]
    assert abs(float((x <= found[1]).double().mean()) - 0.25) < 4.5 * math.sqrt(0.25 * 0.75 / 2e4)


def test_what_has_no_quantiles_says_so():
    model = mixture()
    for law in (
        model.condition(Box(0.0)),
        model.condition(AnyOf(Box(low=1.0), Box(high=-1.0))),
        model.condition(Nonlinear(lambda x: x.sum(-1, keepdim=True), 0.5, 0.1)),
    ):
        with pytest.raises(NotImplementedError, match="quantiles of draws"):
            law.quantile(0, 0.5)
    law = model.condition(GaussianPrior(0.0, 1.0))
    for probs in (1.5, [-0.1], math.nan, "half"):
        with pytest.raises(ValueError, match="probs"):
            law.quantile(0, probs)
    with pytest.raises(ValueError, match="column"):
        law.quantile(3, 0.5)
    with pytest.raises(ValueError, match="a real column"):
        residual(dim=2, categories=(3,)).condition({0: 0.5}).quantile(2, 0.5)


# ---- modes ------------------------------------------------------------------------------------

MODES = {
    "nothing": (),
    "values": (Observed({0: torch.tensor([0.5, -1.0])}),),
    "prior": (Observed({0: 0.5}), GaussianPrior(0.0, 1.0)),
    "far box": (Box(2.0, 3.0),),
    "alternatives": (Observed({0: 0.5}), AnyOf(Box(high=-0.75), Box(low=0.25))),
}
LINEAR = {
    "equation": (EQUATION,),
    "equation, box": (EQUATION, Box(-0.5, 1.0)),
    "rows": (LinearInequality(torch.tensor([[1.0, 1.0, 0.3], [-1.0, 0.5, 2.0]]), -1.5),),
    "boxes": (
        Box(torch.tensor([[-1.0], [0.5]]).expand(2, 3)),
        LinearInequality(torch.ones(3), 1.0),
    ),
}


@pytest.mark.filterwarnings("ignore:The .* codes that were found")
@pytest.mark.parametrize("question", [*MODES, *LINEAR])
@pytest.mark.parametrize("name", MODELS)
def test_no_draw_is_denser_than_the_mode(name, question):
    if name == "categories" and question in LINEAR:
        return
    if name == "population" and question == "boxes":
        return  # a search among the codes that it holds
    law = MODELS[name]().condition(*(MODES | LINEAR)[question])
    mode = law.mode
    assert mode.shape == (*law.batch_shape, *law.event_shape)
    assert torch.equal(mode, law.mode)  # the same every time
    log_prob = law.log_prob(mode)
    x = law.sample((10_000,))
    assert bool((log_prob >= law.log_prob(x).amax(0) - 1e-5 * (name == "single")).all())
    for column, value in law.observed.items():
        assert torch.equal(mode[..., column], value)
    torch.testing.assert_close(law.free().mode, mode[..., law.free_columns])


@pytest.mark.parametrize("evidence", [(), (Box(0.25, 4.0),), (LinearInequality(-torch.ones(2)),)])
@pytest.mark.parametrize("probs", [None, torch.tensor([0.2, 0.0, 0.8])])
def test_modes_are_those_of_a_grid(evidence, probs):
    model = residual(dim=2, categories=(3,))
    pieces = evidence if probs is None else (*evidence, CategoricalPrior(2, probs))
    law = model.condition(*pieces)
    line = torch.arange(-80, 81) / 20.0
    grid = torch.cartesian_prod(line, line, torch.arange(3.0))
    densities = law.log_prob(grid)
    densest = grid[densities.argmax()]
    mode = law.mode
    assert law.log_prob(mode) >= densities.max()
    assert law.log_prob(mode) <= densities.max() + 0.01
    torch.testing.assert_close(mode, densest, atol=0.06, rtol=0.0)


def test_a_mode_of_draws_of_functions_is_left_to_the_user():
    law = mixture().condition(Nonlinear(lambda x: x.sum(-1, keepdim=True), 0.5, 0.1))
    with pytest.raises(NotImplementedError, match="densest of many draws"):
        _ = law.mode


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_modes_at_inequalities_of_many_terms_hold_in_any_order_of_them(dtype):
    torch.manual_seed(5)
    model = GaussianMixture(20, 3, "full").to(dtype).requires_grad_(False)
    law = model.condition(LinearInequality(torch.randn(4, 20), -3.0))
    mode = law.mode
    for count in (1, 3, 100):  # products of other sizes add up in another order
        assert bool(law.log_prob(mode.expand(count, -1)).isfinite().all())
