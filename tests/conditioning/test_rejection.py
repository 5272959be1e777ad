"""Laws within many unions at once: against closed forms, quadrature, and other ways."""

import copy
import math

import pytest
import torch
from torch.distributions import Normal

from pyromix import DRMM, AnyOf, Box, GaussianMixture, Nonlinear, Observed
from pyromix.conditioning import LawWithinUnions, UnionOfConditioned

from ..quadrature import nodes_and_weights

INF = math.inf


def bounds(dim, **limits):
    """A box that bounds some columns, given as d0=(low, high)."""
    low, high = torch.full((dim,), -INF), torch.full((dim,), INF)
    for name, (below, above) in limits.items():
        low[int(name[1:])], high[int(name[1:])] = below, above
    return Box(low, high)


def around(dim, first, second, low, high):
    """Outside a rectangle in two columns."""
    sides = [{f"d{d}": side} for d in (first, second) for side in ((-INF, low), (high, INF))]
    return AnyOf(*(bounds(dim, **side) for side in sides))


def mixture(dim, covariance="diagonal"):
    torch.manual_seed(0)
    model = GaussianMixture(dim, 3, covariance)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.4)
    return model.requires_grad_(False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_five_obstacles_at_once(dtype):
    """1,024 combinations: of independent columns each obstacle has a closed form."""
    model = mixture(10).to(dtype)
    obstacles = [around(10, 2 * i, 2 * i + 1, -0.6, 0.5) for i in range(5)]
    law = model.condition(*obstacles)
    assert isinstance(law, LawWithinUnions)
    normal = Normal(model.loc, model.scale)
    inside = normal.cdf(torch.tensor(0.5)) - normal.cdf(torch.tensor(-0.6))  # (K, 10)
    clear = (1 - inside.reshape(3, 5, 2).prod(-1)).log().sum(-1)
    expected = (model.logits.log_softmax(-1) + clear).logsumexp(-1)
    value, error = law.log_evidence()
    assert 0 < error <= 0.011
    assert (value - expected).abs() < 4 * error
    x = law.sample((100_000,))
    assert x.dtype == dtype
    pairs = x.reshape(-1, 5, 2)
    assert not ((pairs > -0.6) & (pairs < 0.5)).all(-1).any()
    torch.testing.assert_close(law.log_prob(x[:9]), model.log_prob(x[:9]) - value)
    assert law.log_prob(torch.zeros(10, dtype=dtype)) == -INF
    # Draws are those of the model that lie outside.
    reference = model.sample((200_000,))
    pairs = reference.reshape(-1, 5, 2)
    reference = reference[~((pairs > -0.6) & (pairs < 0.5)).all(-1).any(-1)]
    for power in (1, 2):
        a, b = x**power, reference**power
        spread = (a.var(0) / len(a) + b.var(0) / len(b)).sqrt()
        assert ((a.mean(0) - b.mean(0)).abs() < 4.5 * spread).all()


def test_batches_as_one_by_one():
    model = mixture(8, "full")
    low = torch.tensor([[-0.5], [0.0], [0.3]])  # (3, 1)
    value = torch.tensor([-1.0, 0.2])  # (2,)

    def ask(low, value):
        sides = [{f"d{d}": s} for d in (2, 3, 4, 5) for s in ((-INF, -0.2), (0.2, INF))]
        beyond = Box(torch.where(torch.arange(8) == 1, low, -INF))
        unions = [AnyOf(bounds(8, d1=(-INF, -0.7)), beyond)]
        unions += [AnyOf(*(bounds(8, **s) for s in sides))] * 3
        return model.condition(Observed({0: value}), *unions)

    law = ask(low.unsqueeze(-2), value)
    assert isinstance(law, LawWithinUnions)
    assert law.batch_shape == (3, 2)
    x = law.sample((5000,))
    assert torch.equal(x[..., 0], value.expand(5000, 3, 2))
    assert ((x[..., 1] <= -0.7) | (x[..., 1] >= low)).all()
    assert law.log_prob(x).isfinite().all()
    assert law.sample((0,)).shape == (0, 3, 2, 8)
    for i in range(3):
        for j in range(2):
            one = ask(low[i], value[j])
            a, b = x[:, i, j], one.sample((5000,))
            spread = ((a.var(0) + b.var(0)) / 5000).sqrt()
            assert ((a.mean(0) - b.mean(0)).abs() <= 4.5 * spread).all()
            (got, error), (expected, other) = law.log_evidence(), one.log_evidence()
            assert (got[i, j] - expected).abs() < 4 * (error[i, j] ** 2 + other**2).sqrt() + 1e-6


def residual(max_exact):
    torch.manual_seed(1)
    model = DRMM(4, 2, 4, maps="triangular", max_exact=max_exact)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.4)
    return model.requires_grad_(False)


def test_populations_of_codes_agree_with_the_sum_over_alternatives():
    evidence = [Observed({3: 0.2}), around(4, 0, 1, -0.5, 0.6)]
    exact = residual(16).condition(*evidence)
    assert isinstance(exact, UnionOfConditioned)
    law = residual(0).condition(*evidence)
    assert isinstance(law, LawWithinUnions)
    (value, error), (expected, other) = law.log_evidence(), exact.log_evidence()
    assert (value - expected).abs() < 4 * (error.square() + other.square()).sqrt() + 1e-6
    x = law.sample((4000,))
    torch.testing.assert_close(
        law.log_prob(x), exact.log_prob(x) + expected - value, atol=1e-4, rtol=1e-4
    )
    assert torch.equal(copy.deepcopy(law).log_prob(x), law.log_prob(x))
    assert "unions=1" in repr(law)
    for name in ("support", "mean", "variance"):
        with pytest.raises(NotImplementedError, match="sample"):
            getattr(law, name)
    more = law.condition(Box(high=torch.tensor([INF, INF, 0.5, INF])))
    assert (more.sample((500,))[:, 2] <= 0.5).all()
    # Where draws hardly ever lie in the union, alternatives are conditioned on one by one.
    far = residual(0).condition(AnyOf(Box(6.0, INF), Box(-INF, -6.0)))
    assert isinstance(far, UnionOfConditioned)
    assert (far.sample((100,)).abs() >= 6.0).all()


def test_functions_are_observed_outside_of_obstacles():
    model = mixture(2, "full")

    def curve(x):
        return (x[:, 1] + 0.3 * x[:, 0].square()).unsqueeze(-1)

    x, weight = nodes_and_weights([], order=400)
    told = Normal(curve(x)[:, 0], 0.1).log_prob(torch.tensor(0.7))
    clear = ((x < -0.4) | (x > 0.5)).any(-1)
    joint = (model.log_prob(x).exp() * weight * told.exp() * clear).sum()
    torch.manual_seed(0)
    law = model.condition(around(2, 0, 1, -0.4, 0.5), Nonlinear(curve, 0.7, 0.1, num_draws=8000))
    value, error = law.log_evidence()
    assert (value - joint.log()).abs() < 4 * error + 1e-2  # edges fall between nodes
    drawn = law.sample((2000,))
    assert ((drawn <= -0.4) | (drawn >= 0.5)).any(-1).all()


def test_of_correlated_columns_a_few_obstacles_are_enough():
    """Sixteen combinations, whose intersections would be estimated one by one."""
    model = mixture(4, "full")
    law = model.condition(around(4, 0, 1, -0.5, 0.6), around(4, 2, 3, -0.5, 0.6))
    assert isinstance(law, LawWithinUnions)
    x = model.sample((200_000,))
    pairs = x.reshape(-1, 2, 2)
    clear = ~((pairs > -0.5) & (pairs < 0.6)).all(-1).any(-1)
    value, error = law.log_evidence()
    share = clear.double().mean()
    assert (value - share.log()).abs() < 4 * (error**2 + (1 - share) / share / len(x)).sqrt()
    # Rare regions in more combinations than can be enumerated are met all the same.
    rare = [
        AnyOf(*(bounds(4, **{f"d{d}": (1.2 + i / 90, INF)}) for i in range(12))) for d in (0, 1)
    ]
    x = model.condition(*rare).sample((50,))
    assert (x[:, :2] >= 1.2).all()
    with pytest.raises(NotImplementedError, match="Count"):
        law.probs(0)
