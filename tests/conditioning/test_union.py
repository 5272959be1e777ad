"""Laws within unions of regions: against quadrature, and a reference that counts overlaps."""

import itertools
import math
import pickle

import pytest
import torch
from torch.distributions import Normal

from pyromix import (
    AnyOf,
    Box,
    GaussianMixture,
    GaussianPrior,
    LinearEquality,
    LinearGaussian,
    LinearInequality,
    Observed,
)
from pyromix.conditioning import union as union_module
from pyromix.mixtures import ConditionedMixture, UnionOfConditioned

INF = math.inf


def build(covariance="full", dim=2, k=3):
    model = GaussianMixture(dim, k, covariance, rank=1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.4 if name.startswith("raw") else 1.0)
    return model.requires_grad_(False)


def grid(dim, size, reach=6.0):
    axis = -reach + 2 * reach * (torch.arange(size) + 0.5) / size
    return torch.cartesian_prod(*[axis] * dim).reshape(-1, dim), (2 * reach / size) ** dim


def vector(*numbers):
    return torch.tensor(numbers)


def holds(piece, x):
    """Whether points meet a piece of evidence, the slow obvious way."""
    match piece:
        case AnyOf(alternatives=alternatives):
            met = torch.zeros(len(x), dtype=torch.bool)
            for pieces in alternatives:
                each = [holds(p, x) for p in pieces]
                met = met | torch.stack(each).all(0)
            return met
        case Box(low=low, high=high):
            return ((x >= low) & (x <= high)).all(-1)
        case LinearInequality(a=a, b=b):
            return (x @ torch.atleast_2d(a).mT + b > 0).all(-1)
    raise NotImplementedError


def factor(evidence, x):
    """q(x), the slow obvious way."""
    q = torch.ones(len(x))
    for piece in evidence:
        match piece:
            case GaussianPrior(loc=loc, scale=scale):
                q = q * Normal(torch.as_tensor(loc), scale).log_prob(x).sum(-1).exp()
            case LinearGaussian(matrix=a, y=y, noise=noise):
                q = q * Normal(x @ a.mT, noise).log_prob(y).sum(-1).exp()
            case _:
                q = q * holds(piece, x)
    return q


def right(d, b=0.0, dim=2):
    """x_d > b as a half-space."""
    return LinearInequality(torch.eye(dim)[d], -b)


PLANE = {
    "disjoint boxes": lambda: [AnyOf(Box(-1.0, 0.0), Box(0.5, vector(1.0, INF)))],
    "touching boxes": lambda: [AnyOf(Box(-1.0, vector(0.0, 1.0)), Box(vector(0.0, -1.0), 1.0))],
    "overlapping boxes": lambda: [AnyOf(Box(-1.0, 0.75), Box(vector(0.0, -INF), 1.5))],
    "nested boxes": lambda: [AnyOf(Box(-0.5, 0.5), Box(-1.0, 1.0))],
    "three half-spaces": lambda: [
        AnyOf(right(0, 1.0), right(1, 1.0), LinearInequality(vector(-1.0, -1.0), -1.01))
    ],
    "box and half-space": lambda: [
        AnyOf(Box(-1.0, 0.5), LinearInequality(vector(1.0, -2.0), -0.26))
    ],
    "things that hold together": lambda: [
        AnyOf(
            (Box(-1.0, 1.0), LinearInequality(vector(1.0, 1.0), 0.01)), Box(low=vector(0.5, -0.5))
        )
    ],
    "two unions": lambda: [
        AnyOf(Box(high=vector(-0.5, INF)), Box(low=vector(0.25, -INF))),
        AnyOf(Box(high=vector(INF, 0.0)), right(1, -0.5), Box(-1.0, 1.0)),
    ],
    "within a box, softly": lambda: [
        AnyOf(right(0, 0.5), right(1, 0.5)),
        Box(-1.0, 2.0),
        GaussianPrior(0.3, 1.2),
        LinearGaussian(vector(1.0, 2.0).unsqueeze(0), vector(0.4), 0.8),
    ],
}


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
@pytest.mark.parametrize("name", PLANE)
def test_density_and_evidence_against_a_grid(covariance, name):
    model, evidence = build(covariance), PLANE[name]()
    x, cell = grid(2, 480)
    joint = model.log_prob(x).exp() * factor(evidence, x)
    expected = joint.sum() * cell
    law = model.condition(*evidence)
    value, error = law.log_evidence()
    # The grid's own error: half a cell along every edge.
    assert (value - expected.log()).abs() < 3 * error + 5e-3
    log_prob = law.log_prob(x)
    assert torch.equal(log_prob.isfinite(), joint > 0)
    inside = joint > 0
    torch.testing.assert_close(log_prob[inside] + value, joint[inside].log(), rtol=1e-9, atol=1e-9)
    if name in ("disjoint boxes", "touching boxes", "overlapping boxes", "nested boxes"):
        assert covariance == "full" or error == 0


@pytest.mark.parametrize("name", PLANE)
def test_draws_follow_the_density(name):
    model, evidence = build(), PLANE[name]()
    law = model.condition(*evidence)
    n = 20_000
    draws = law.sample((n,))
    assert law.log_prob(draws).isfinite().all()
    x, cell = grid(2, 480)
    weight = law.log_prob(x).exp() * cell
    assert abs(float(weight.sum()) - 1) < 3 * float(law.log_evidence()[1]) + 5e-3
    # A histogram: cells of half a unit, and all beyond.
    edges = torch.arange(-3, 3.01, 0.5)
    sizes = torch.tensor([[len(edges) + 1], [1]])
    expected, got = (
        torch.bincount(
            torch.bucketize(t.mT.contiguous(), edges).mul(sizes).sum(0),
            weights=w,
            minlength=(len(edges) + 1) ** 2,
        )
        for t, w in ((x, weight / weight.sum()), (draws, torch.full((n,), 1 / n)))
    )
    error = (expected * (1 - expected) / n).sqrt()
    # Five standard errors in each of some 200 cells, and the grid's own error.
    assert ((got - expected).abs() < 5 * error + 2e-3 * expected + 2e-4).all()


def test_on_a_line_in_closed_form():
    model = build("diagonal", dim=1)
    mixture = model.distribution
    intervals = [(-2.0, -0.5), (-1.0, 0.25), (1.0, 1.5), (1.2, INF)]
    law = model.condition(AnyOf(*(Box(*interval) for interval in intervals)))

    def mass(low, high):
        normal = Normal(mixture.loc[:, 0], mixture.scale[:, 0])
        return (mixture.logits.exp() * (normal.cdf(vector(high)) - normal.cdf(vector(low)))).sum()

    expected = mass(-2.0, 0.25) + mass(1.0, INF)
    value, error = law.log_evidence()
    assert error == 0
    torch.testing.assert_close(value, expected.log())
    covered = sum(mass(*interval) for interval in intervals)
    torch.testing.assert_close(law.acceptance, expected / covered)
    x, n = law.sample((50_000,)), 50_000
    for low, high in [
        (-2.0, -1.0),
        (-1.0, -0.5),
        (-0.5, 0.25),
        (1.0, 1.2),
        (1.2, 1.5),
        (1.5, INF),
    ]:
        p = mass(low, high) / expected
        share = ((x > low) & (x < high)).double().mean()
        assert (share - p).abs() < 4.5 * (p * (1 - p) / n).sqrt()


def test_many_overlaps_are_estimated(monkeypatch):
    """Four regions of which all overlap: an estimate and the sum over intersections agree."""
    model = build("diagonal", k=1)
    angles = torch.arange(4) + 0.3
    union = AnyOf(*(LinearInequality(vector(t.cos(), t.sin()), 0.5) for t in angles))
    value, other = model.condition(union).log_evidence()
    monkeypatch.setattr(union_module, "MAX_INTERSECTIONS", 3)
    law = model.condition(union)
    estimated, error = law.log_evidence()
    assert 0 < error < 0.01
    assert (value - estimated).abs() < 3 * (error.square() + other.square()).sqrt()
    x, cell = grid(2, 480)
    expected = (model.log_prob(x).exp() * holds(union, x)).sum() * cell
    for got, spread in ((value, other), (estimated, error)):
        assert (got - expected.log()).abs() < 3 * spread + 2e-3
    assert torch.equal(law.log_prob(x), law.log_prob(x))


def test_an_estimate_replaces_a_sum_with_a_larger_error(monkeypatch):
    model = build()
    union = AnyOf(Box(-1.0, 1.0), Box(0.0, 2.0))
    x, cell = grid(2, 480)
    expected = (model.log_prob(x).exp() * holds(union, x)).sum() * cell
    law = model.condition(union)
    monkeypatch.setattr(
        UnionOfConditioned,
        "_include_and_exclude",
        lambda self, *_: (torch.tensor(0.0), torch.tensor(0.5)),
    )
    value, error = model.condition(union).log_evidence()
    assert 0 < error < 0.01
    assert (value - expected.log()).abs() < 3 * error + 2e-3
    assert (value - law.log_evidence()[0]).abs() < 4 * error


def test_a_region_within_another_one_says_nothing():
    model, big = build(), Box(-1.0, 1.0)
    small = Box(-0.5, 0.25), (Box(-1.0, 1.0), right(0))
    law = model.condition(AnyOf(small[0], big, *small[1:], big))
    assert isinstance(law, ConditionedMixture)
    x, expected = grid(2, 100)[0], model.condition(big)
    got = law.log_prob(x)
    assert torch.equal(got.isfinite(), expected.log_prob(x).isfinite())
    close = 3 * law.log_evidence()[1] + 3 * expected.log_evidence()[1] + 1e-9
    inside = got.isfinite()
    assert ((got - expected.log_prob(x))[inside].abs() < close).all()
    # Nor does a region that the other evidence rules out.
    assert isinstance(model.condition(AnyOf(big, Box(3.0, 4.0)), Box(-2, 2)), ConditionedMixture)
    assert model.condition(AnyOf(big, Box())).mean.isfinite().all()  # all of space


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_everything_at_once_is_met_exactly(dtype):
    model = build("full", dim=4, k=3).to(dtype)
    seen = torch.tensor([0.25, -0.5], dtype=dtype)
    a = torch.randn(4, dtype=dtype)
    low = torch.tensor([-INF, 0.3, -INF, -INF], dtype=dtype)
    union = AnyOf(Box(low=low), LinearInequality(a, -0.2), (Box(high=-0.1), right(3, -1.0, 4)))
    law = model.condition(
        union,
        Observed({0: seen}),
        LinearGaussian(torch.eye(4, dtype=dtype)[1:2], torch.zeros(1, dtype=dtype), 0.7),
        LinearEquality(torch.tensor([0.0, 0.0, 1.0, -1.0], dtype=dtype)),
    )
    x = law.sample((50_000,))
    assert x.dtype == dtype
    assert torch.equal(x[..., 0], seen.expand(50_000, 2))
    assert (x[..., 2] - x[..., 3]).abs().max() < (1e-5 if dtype == torch.float32 else 1e-12)
    first = x[..., 1] >= low[1]
    second = (x * a).sum(-1) - 0.2 >= 0
    third = (x <= -0.1).all(-1) & (x[..., 3] + 1 >= 0)
    assert (first | second | third).all()
    for region in (first & second, first & ~second, ~first & second, third & second):
        assert region.any()
    assert law.log_prob(x).isfinite().all()


def test_observed_values_decide_what_is_possible():
    """On the line that an observed value leaves, against one-dimensional quadrature."""
    model = build(k=2)
    union = AnyOf(Box(0.0, 1.0), right(0, 0.75), Box(vector(-INF, -2.0), vector(-0.5, -1.0)))
    given = vector(-1.0, 0.5, 0.9)
    law = model.condition(union, Observed({0: given}))
    t = -8 + 16 * (torch.arange(200_000) + 0.5) / 200_000
    for i, value in enumerate(given):
        x = torch.stack([value.expand(len(t)), t], -1)
        joint = model.log_prob(x).exp() * holds(union, x)
        expected = joint.sum() * 16 / 200_000
        torch.testing.assert_close(law.log_evidence()[0][i], expected.log(), atol=2e-4, rtol=0)
        log_prob = law.log_prob(x.unsqueeze(1).expand(-1, 3, -1)[:, :, :])[:, i]
        inside = joint > 0
        assert torch.equal(log_prob.isfinite(), inside)
        torch.testing.assert_close(
            log_prob[inside], (joint / expected).log()[inside], atol=2e-4, rtol=0
        )
    assert law.log_evidence()[1].eq(0).all()
    draws = law.sample((500,))
    assert holds(union, draws.reshape(-1, 2)).all()
    with pytest.raises(ValueError, match="that can hold"):
        model.condition(union, Observed({0: vector(0.5, -0.25)}), Box(high=1.0))


def test_batches_as_one_by_one():
    model = build("diagonal")
    low = torch.tensor([[-1.0, -1.0], [0.0, 0.5], [-2.0, 1.0]])
    b = torch.tensor([[0.5], [-1.0]]).unsqueeze(1)  # (2, 1, 1)
    a = vector(1.0, -0.5)
    law = model.condition(AnyOf(Box(low, low + 1.5), LinearInequality(a, b)), Box(-2.5, 2.5))
    assert law.batch_shape == (2, 3)
    x = 1.5 * torch.randn(500, 2)
    draws = law.sample((4000,))
    got, (value, error) = law.log_prob(x[:, None, None]), law.log_evidence()
    for i, j in itertools.product(range(2), range(3)):
        union = AnyOf(Box(low[j], low[j] + 1.5), LinearInequality(a, b[i]))
        one = model.condition(union, Box(-2.5, 2.5))
        expected, spread = one.log_evidence()
        close = 4 * (error[i, j] + spread) + 1e-9
        assert (value[i, j] - expected).abs() < close
        one_by_one = one.log_prob(x)
        assert torch.equal(got[:, i, j].isfinite(), one_by_one.isfinite())
        inside = one_by_one.isfinite()
        assert ((got[:, i, j] - one_by_one)[inside].abs() < close).all()
        assert holds(union, draws[:, i, j]).all()
        reference = one.sample((4000,))
        standard_error = (2 * reference.var(0) / 4000).sqrt()
        assert ((draws[:, i, j].mean(0) - reference.mean(0)).abs() < 4.5 * standard_error).all()


def test_what_a_union_cannot_say():
    law = build().condition(AnyOf(Box(high=-1.0), Box(low=0.0)))
    assert isinstance(law, UnionOfConditioned)
    x = law.sample((2, 5))
    assert x.shape == (2, 5, 2)
    assert law.sample((0,)).shape == (0, 2)
    assert torch.equal(pickle.loads(pickle.dumps(law)).log_prob(x), law.log_prob(x))
    with pytest.raises(ValueError, match="event shape"):
        law.log_prob(torch.zeros(3))
    for name in ("support", "mean", "variance"):
        with pytest.raises(NotImplementedError, match="sample"):
            getattr(law, name)
    assert repr(law) == "UnionOfConditioned(alternatives=2, batch_shape=(), event_shape=(2,))"


@pytest.mark.parametrize(
    ("evidence", "message"),
    [
        (lambda: [AnyOf()], "at least one alternative"),
        (lambda: [AnyOf([])], "non-empty sequences"),
        (lambda: [AnyOf("box")], "non-empty sequences"),
        (lambda: [AnyOf({0: 1.0})], "non-empty sequences"),
        (lambda: [AnyOf(["box"])], "got str"),
        (lambda: [AnyOf(Box(), AnyOf(Box()))], "one by one"),
        (lambda: [AnyOf(Box(), Observed({0: 1.0}))], "probability zero"),
        (lambda: [AnyOf(Box(), LinearEquality(torch.ones(2)))], "probability zero"),
        (lambda: [AnyOf(Box(), (Box(), GaussianPrior(0.0, 1.0)))], "counted once"),
        (lambda: [AnyOf(Box(torch.zeros(3), 1.0), Box(0.0))], r"shape \(\*N, 2\)"),
        (
            lambda: [AnyOf(*[Box(9.0 + i + j) for i in range(12)]) for j in (0, 1)],
            "12 x 12 = 144",
        ),
        (lambda: [AnyOf(Box(0.0, 1.0), Box(7.0, 8.0)), Box(5.0, 6.0)], "all 2 contradict"),
        (
            lambda: [AnyOf(Box(torch.zeros(2, 2)), Box(torch.ones(3, 2), 3.0))],
            "batch shapes broadcast",
        ),
    ],
)
def test_bad_alternatives(evidence, message):
    with pytest.raises(ValueError, match=message):
        build().condition(*evidence())
