"""Draws and density are one law, and draws have the right gradients."""

import math

import pyro.distributions.transforms as transforms
import pytest
import torch
from scipy.stats import kstest

from pyromix.testing import GOODNESS_OF_FIT, goodness_of_fit

from .models import KINDS, build, close, driven_spline, inputs, law_of, values

P_VALUE = 1e-5
STANDARD_ERRORS = 6.0

# Of two numbers: what fits a plane, with components and steps that are not alike.
PLANES = {
    "lstm": {},
    "gru, two layers": {"cell": "gru", "num_layers": 2},
    "one component": {"num_components": 1},
    "rank 1": {"rank": 1},
    "shared factor, exp": {"rank": 1, "factor": "shared", "positivity": "exp"},
    "spline": KINDS["spline of numbers"],
    "driven": {
        "transforms": lambda dim: [
            driven_spline(dim),
            transforms.AffineTransform(torch.tensor([0.3]), torch.tensor([0.7])),
        ]
    },
    "fold": KINDS["fold of numbers"],
    "causal": {"context_dim": 2},
    "bidirectional": {"context_dim": 2, "encoder": "bidirectional"},
    "static": {"static_dim": 2},
}


def planar_model(options, **more):
    return build(**{"dim": 1, "length": 2, "num_components": 3, **options, **more})


def grid(law, size=300, margin=0.5):
    """Midpoints of the cells of a box around nearly all draws, in order, and a cell's volume."""
    x = law.sample((5000,)).flatten(1)
    low, high = x.amin(0), x.amax(0)
    low, high = low - margin * (high - low), high + margin * (high - low)
    step = (high - low) / size
    axes = [a + s * (torch.arange(size) + 0.5) for a, s in zip(low, step, strict=True)]
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, *law.event_shape)
    return points, step.prod()


planes = pytest.mark.parametrize("options", PLANES.values(), ids=PLANES)


@planes
def test_integrates_to_one(options):
    model = planar_model(options)
    law = law_of(model, inputs(model))
    points, volume = grid(law)
    with torch.no_grad():
        mass = float(law.log_prob(points).exp().sum() * volume)
    assert abs(mass - 1) < 1e-3


def test_integrates_to_one_over_the_coordinates_of_a_step():
    for name in ("couplings", "rank 2, gru", "folds"):
        model = build(**{"dim": 2, "length": 1, **KINDS[name]})
        points, volume = grid(model, 400)
        with torch.no_grad():
            mass = float(model.log_prob(points).exp().sum() * volume)
        assert abs(mass - 1) < 1e-3


def test_goodness_of_fit_finds_a_wrong_scale():
    model = build(dim=1, length=3)
    x = model.sample((10_000,))
    assert goodness_of_fit(x, model.log_prob(x)) > GOODNESS_OF_FIT
    for factor in (0.8, 1.2, 2.0):
        y = x.mean(0) + factor * (x - x.mean(0))
        assert goodness_of_fit(y, model.log_prob(y)) < GOODNESS_OF_FIT


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("gru, three layers", (3, 1)),
        ("rank 1, numbers", (3, 1)),
        ("spline of numbers", (3, 1)),
        ("fold of numbers", (2, 1)),
        ("causal", (3, 1)),
        ("bidirectional", (3, 1)),
        ("static", (1, 3)),
        ("driven", (1, 3)),
        ("rank 3", (1, 3)),
    ],
)
def test_draws_follow_the_density(name, shape):
    length, dim = shape
    model = build(**{**KINDS[name], "length": length, "dim": dim})
    law = law_of(model, inputs(model))
    for draw in (law.sample, law.rsample)[: 1 + law.has_rsample]:
        x = draw((10_000,)).detach()
        assert goodness_of_fit(x, law.log_prob(x)) > GOODNESS_OF_FIT


def probabilities(law, value, size=1000):
    """The distribution function of the law of a next number (N, 1) at values, by quadrature."""
    with torch.no_grad():
        draws = law.sample((100,))
        low, high = draws.amin(), draws.amax()  # of all laws: some may have rare components
        width = 2 * (high - low)
        low = low - width / 4
        share = torch.linspace(0, 1, size + 1).reshape(-1, 1, 1)
        density = law.log_prob((low + share * width).expand(-1, len(value), -1)).exp()
        cells = (density[1:] + density[:-1]) / 2 * width / size
        below = torch.cat([torch.zeros_like(cells[:1]), cells.cumsum(0)])  # (size + 1, N)
        assert (below[-1] - 1).abs().max() < 1e-2
        position = ((value - low) / width).squeeze(-1) * size
        left = position.floor().long().clamp(0, size - 1)
        ends = below.gather(0, torch.stack([left, left + 1]))
        return torch.lerp(ends[0], ends[1], position - left)


@pytest.mark.parametrize("name", ["numbers", "rank 1, numbers", "spline of numbers", "causal"])
def test_every_step_of_a_draw_follows_its_law(name):
    """Conditional probability integral transforms are independent and uniform."""
    num, length = 500, 6
    model = build(**{**KINDS[name], "dim": 1, "length": length, "num_components": 3})
    given = inputs(model)
    y = law_of(model, given).sample((num,))
    state, before, result = None, None, []
    for t in range(length):
        x = given["context"][t] if given else None
        law, state = model.step(state, before, x)
        before = y[:, t]
        result.append(probabilities(law.expand((num,)), before))
    uniform = torch.stack(result, -1)  # (num, length)
    assert kstest(uniform.flatten().numpy(), "uniform").pvalue > P_VALUE
    for t in range(length):
        assert kstest(uniform[:, t].numpy(), "uniform").pvalue > P_VALUE
    # Correlations of independent numbers, also between a step's spread and the next one's place.
    features = torch.cat([uniform - 0.5, (uniform - 0.5).square()], -1)
    others = torch.corrcoef(features.mT) - torch.eye(2 * length)
    assert others.abs().max() < STANDARD_ERRORS / math.sqrt(num)


@pytest.mark.parametrize("name", ["lstm", "rank 2, gru", "driven", "causal", "static"])
def test_every_step_of_many_coordinates_follows_its_law(name):
    """Goodness of fit in the numbers of a step given those before."""
    model = build(**KINDS[name])
    given = inputs(model)
    y = values(model)
    state = before = None
    for t in range(3):
        x = given["context"][t] if "context" in given else None
        law, state = model.step(state, before, x, static=given.get("static"))
        before = y[t]
    for drawn in (law.sample((10_000,)), model.predict(y[:2], 1, 10_000, **given)[:, 0]):
        assert goodness_of_fit(drawn, law.log_prob(drawn)) > GOODNESS_OF_FIT


def test_a_batch_is_drawn_independently():
    model = build(dim=1, length=3, static_dim=1)
    same = torch.full((2, 1), 0.5)
    for law in (
        model.condition(same),
        model.condition(same[0]).expand((2,)),
        model.condition(same[:1]).expand((2,)),
    ):
        x = law.sample((4000,)).squeeze(-1)  # (4000, 2, 3)
        assert x.shape == (4000, 2, 3)
        both = torch.corrcoef(x.flatten(1).mT)[:3, 3:]
        assert both.abs().max() < STANDARD_ERRORS / math.sqrt(4000)
        # And equally: the same law.
        difference = x[:, 0] - x[:, 1]
        error = difference.std(0) / math.sqrt(4000)
        assert (difference.mean(0).abs() < STANDARD_ERRORS * error).all()


def test_draws_within_a_sample_shape_are_independent():
    model = build(dim=1, length=2)
    x = model.sample((4000, 2)).squeeze(-1)
    both = torch.corrcoef(x.flatten(1).mT)[:2, 2:]
    assert both.abs().max() < STANDARD_ERRORS / math.sqrt(4000)


def test_steps_of_a_draw_depend_on_each_other():
    """A law of independent steps would pass many of these tests."""
    model = build(dim=1, length=2, num_components=3)
    points, volume = grid(model, 400)
    density = (model.log_prob(points).exp() * volume).detach().reshape(400, 400)
    independent = density.sum(0) * density.sum(1, keepdim=True)
    assert (density - independent).abs().sum() > 0.02


def test_seeds_reproduce():
    for name in ("lstm", "all of it", "driven", "folds"):
        model = build(**KINDS[name])
        given = inputs(model, 2)
        law = law_of(model, given)
        draws = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            draws.append(law.sample((3,)))
        assert torch.equal(draws[0], draws[1])
        assert not torch.equal(draws[0], draws[2])


# ---- gradients --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lstm", "rank 1", "driven", "bidirectional"])
def test_pathwise_gradients(name):
    """Against finite differences of an expectation by quadrature."""
    model = planar_model(PLANES[name])
    given = inputs(model)
    law = law_of(model, given)
    assert law.has_rsample
    points, _ = grid(law, 300)
    phase = torch.tensor([[0.3], [1.1]])

    def payoff(y):
        return torch.sin((y - model.standardize.loc) / model.standardize.scale + phase).sum(
            (-1, -2)
        ) + torch.cos((y / model.standardize.scale).sum((-1, -2)))

    weight = payoff(points)
    parameters = list(model.parameters())
    directions = [[torch.randn_like(p) for p in parameters] for _ in range(3)]

    @torch.no_grad()
    def expectation(direction, step):
        for p, v in zip(parameters, direction, strict=True):
            p.add_(step * v)
        # Self-normalised: the mass outside of the box cancels.
        density = law_of(model, given).log_prob(points).exp()
        for p, v in zip(parameters, direction, strict=True):
            p.sub_(step * v)
        return float((density * weight).sum() / density.sum())

    h = 1e-3
    expected = torch.tensor(
        [(expectation(d, h) - expectation(d, -h)) / (2 * h) for d in directions]
    )
    rows = []
    for _ in range(30):
        grads = torch.autograd.grad(payoff(law.rsample((400,))).mean(), parameters)
        rows.append(
            torch.stack(
                [sum((v * g).sum() for v, g in zip(d, grads, strict=True)) for d in directions]
            )
        )
    rows = torch.stack(rows)
    error = rows.std(0) / math.sqrt(len(rows))
    assert ((rows.mean(0) - expected).abs() < STANDARD_ERRORS * error + 1e-4).all()
    assert (expected.abs() > 10 * error).any()


def test_draws_with_folds_have_no_pathwise_gradient():
    for name in ("folds", "fold of numbers"):
        model = build(**KINDS[name])
        assert not model.has_rsample
        assert not model.condition(lengths=torch.tensor(2)).has_rsample
        with pytest.raises(NotImplementedError):
            model.rsample()
        assert not model.sample().requires_grad


def test_a_draw_can_be_scored_with_a_gradient():
    """In the value too: the score does not use up the draw's graph."""
    model = build(**KINDS["driven"])
    x = model.rsample((3,))
    (score,) = torch.autograd.grad(model.log_prob(x).sum(), x)
    y = x.detach().requires_grad_()
    (expected,) = torch.autograd.grad(model.log_prob(y).sum(), y)
    close(score, expected)
