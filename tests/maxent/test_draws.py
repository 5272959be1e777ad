"""Gradients of expectations by every way to draw, against integrals and sums."""

import functools
import itertools
import math

import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.distributions import AffineTransform, constraints

from pyromix import (
    DCGMM,
    DRMM,
    FRMDN,
    RAD,
    Flow,
    Fold,
    FoldingCoupling,
    GaussianMixture,
    MaximumEntropy,
)
from pyromix.core.module import DistributionModule
from pyromix.dcgmm import GMM, Folding
from pyromix.maxent import spline_flow
from pyromix.maxent.draws import WAYS, make_sampler

from ..rad.slow import sharpen

# Largest of about a hundred differences of means, whose distribution is close to normal.
STANDARD_ERRORS = 4.0


def plain(dim):
    return dist.Normal(torch.zeros(dim), torch.ones(dim)).to_event(1)


def folds():
    return sharpen(RAD(2, num_layers=2, hidden_dims=(4,)), 1.5)


def folds_on_a_mixture():
    return Flow(GaussianMixture(2, 2), [sharpen(FoldingCoupling(2, hidden_dims=(4,)))])


def folds_below_a_transform():
    """The law of a fold is the base of a flow, whose own transforms draw branches, too."""
    inner = Flow(plain(1), [sharpen(Fold((4,)))])
    return Flow(inner, [AffineTransform(torch.tensor([0.3]), 1.2), Fold((4,))])


def folds_below_splines():
    """All that is discrete is in the base."""
    return spline_flow(1, num_layers=1, base=Flow(plain(1), [sharpen(Fold((4,)))]))


def residuals():
    return DRMM(2, num_layers=2, num_components=2)


def images():
    model = DCGMM((1, 1, 2), [Folding(1), GMM(2), Folding((1, 2)), GMM(3)], max_precision=4.0)
    with torch.no_grad():
        for mixture in model._mixtures:
            mixture.loc.add_(0.3 * torch.rand_like(mixture.loc))
    return model


def sequences(*transforms):
    return FRMDN(1, 2, num_components=2, hidden_dim=3, transforms=transforms)


class Table(DistributionModule):
    """Probabilities of 0, 1, ..., n - 1, as whatever class of a user's own."""

    def __init__(self, num):
        super().__init__()
        self.num = num
        self.logits = nn.Parameter(torch.linspace(-0.5, 0.5, num))

    @property
    def support(self):
        return constraints.integer_interval(0, self.num - 1)

    def _law(self):
        return dist.Categorical(logits=self.logits)

    def sample(self, sample_shape=()):
        return self._law().sample(sample_shape)

    def log_prob(self, value):
        return self._law().log_prob(value)


LAWS = {
    "mixture": (lambda: GaussianMixture(2, 3), ("stratified", "pathwise", "branch", "score")),
    "folds": (folds, ("branch", "score")),
    "folds on a mixture": (folds_on_a_mixture, ("branch", "score")),
    "folds below a transform": (folds_below_a_transform, ("branch", "score")),
    "folds below splines": (folds_below_splines, ("branch", "score")),
    "DRMM": (residuals, ("stratified", "branch", "score")),
    "DCGMM": (images, ("branch", "score")),
    "FRMDN": (sequences, ("pathwise", "branch", "score")),
    "FRMDN with folds": (lambda: sequences(Fold((4,))), ("branch", "score")),
    "table": (lambda: Table(4), ("score",)),
}
CASES = [(name, way) for name, (_, ways) in LAWS.items() for way in ways]


@functools.cache
def law_of(name):
    torch.manual_seed(2)
    return LAWS[name][0]()


def integrands(x, log_prob):
    """A mean of a function, and the entropy but for its sign; shape (n, 2)."""
    if not x.is_floating_point():
        return torch.stack([x.double().square(), log_prob], -1)
    return torch.stack([torch.sin(x.flatten(1)).sum(-1), log_prob], -1)


def project(means, parameters):
    """Gradients of means along random directions that are always the same."""
    generator = torch.Generator().manual_seed(0)
    directions = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
    row = []
    for mean in means:
        slopes = torch.autograd.grad(mean, parameters, retain_graph=True, materialize_grads=True)
        row.append(sum((a * b).sum() for a, b in zip(directions, slopes, strict=True)))
    return torch.stack(row)


@functools.cache
def exact(name):
    """The gradients, by a sum over a grid or all values."""
    law = law_of(name)
    if name == "table":
        x, volume = torch.arange(4), 1.0
    else:
        shape = law.event_shape
        reach = 9.0
        points = torch.linspace(-reach, reach, 9001 if shape.numel() == 1 else 501)
        axes = torch.meshgrid(*[points] * shape.numel(), indexing="ij")
        x = torch.stack(axes, -1).reshape(-1, *shape)
        volume = float(points[1] - points[0]) ** shape.numel()
    mass, total = 0.0, 0.0
    for part in x.split(40_000):
        log_prob = law.log_prob(part)
        weight = log_prob.exp() * volume
        mass += float(weight.detach().sum())
        values = integrands(part, log_prob)
        total = total + project(weight @ values, list(law.parameters()))
    assert mass == pytest.approx(1, abs=2e-3)
    return total


@pytest.mark.parametrize(("name", "way"), CASES)
def test_gradients_of_expectations_are_unbiased(name, way):
    law = law_of(name)
    sampler = make_sampler(law, way)
    torch.manual_seed(0)
    rows = []
    for _ in range(20):
        for draws in sampler(250, 2):
            means = draws.mean(integrands(draws.x, draws.log_prob))
            rows.append(project(means, list(law.parameters())))
    rows = torch.stack(rows)
    error = rows.std(0) / math.sqrt(len(rows))
    # Grids are rough where densities have creases.
    assert ((rows.mean(0) - exact(name)).abs() < STANDARD_ERRORS * error + 1e-3).all()


@pytest.mark.parametrize("name", LAWS)
def test_what_is_chosen(name):
    """The first way that the law has; others are refused."""
    law, ways = law_of(name), LAWS[name][1]
    torch.manual_seed(0)
    found = make_sampler(law, "auto")(6, 2)
    torch.manual_seed(0)
    expected = make_sampler(law, ways[0])(6, 2)
    for one, other in zip(found, expected, strict=True):
        for a, b in zip(one, other, strict=True):
            assert torch.equal(a, b)
    for way in set(WAYS) - set(ways) - {"branch"}:
        with pytest.raises(ValueError, match=f"gradient='{way}'"):
            make_sampler(law, way)


def test_deep_mixtures_with_many_codes_or_categories():
    many = DRMM(2, num_layers=3, num_components=4, max_exact=63)
    (draws,) = make_sampler(many, "auto")(5)
    assert draws.x.requires_grad
    with pytest.raises(ValueError, match="gradient='stratified'"):
        make_sampler(many, "stratified")
    (draws,) = make_sampler(DRMM(1, 2, 2, categories=(3,)), "auto")(5)
    assert not draws.x.requires_grad  # the score function of all of the law
    assert draws.weight.requires_grad


@pytest.mark.parametrize("way", ["branch", "score"])
def test_weights_leave_the_own_draw_out_of_its_baseline(way):
    """As written out, for scores and values of a small set of draws."""
    law = law_of("folds")
    torch.manual_seed(0)
    (draws,) = make_sampler(law, way)(4)
    values = torch.randn(4)
    got = project([draws.mean(values)], list(law.parameters()))
    expected = 0.0
    for i, j in itertools.permutations(range(4), 2):
        slope = project([draws.weight[i]], list(law.parameters()))
        expected = expected + slope * (values[i] - values[j]) / 4
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(draws.weight.detach(), torch.full((4,), 0.25))


# ---- problems --------------------------------------------------------------------------------


def solve(problem, **settings):
    settings = {"steps": 40, "rounds": 12, "lr": 0.02, "start_steps": 20, "seed": 0, **settings}
    return problem.solve(progress_bar=False, **settings)


def test_a_mean_of_a_die_gives_an_exponential_family():
    """Jaynes' die: faces 1 to 6 have a mean of 4.5, and nothing else is known."""
    faces = torch.arange(1.0, 7.0)
    low, high = -5.0, 5.0
    for _ in range(100):  # the mean grows with the slope
        slope = (low + high) / 2
        expected = (slope * faces).softmax(0)
        low, high = (slope, high) if expected @ faces < 4.5 else (low, slope)
    die = Table(6)
    result = solve(MaximumEntropy(die, lambda x: x + 1.0, 4.5), batch_size=256)
    got = die.logits.detach().softmax(0)
    entropy = -(got * got.log()).sum()
    assert abs(float(got @ faces) - 4.5) < 0.03
    assert -(expected * expected.log()).sum() - entropy < 0.01
    assert float((got * (got / expected).log()).sum()) < 0.005
    assert float(result.multipliers) == pytest.approx(-slope, abs=0.03)


def test_the_score_function_takes_indicators():
    """A probability has no gradient in draws. The optimum is a normal, stretched on two sides."""
    law = GaussianMixture(1, 1)

    def statistics(x):
        return torch.cat([(x > 1).to(x), x.square()], -1)

    with pytest.raises(ValueError, match="gradient='score'"):
        MaximumEntropy(law, statistics, [0.2, 1.0])
    problem = MaximumEntropy(law, statistics, [0.2, 1.0], gradient="score")
    result = solve(problem, batch_size=1024)
    loc, scale = law.distribution.loc.item(), law.distribution.scale.item()
    share = 0.5 * math.erfc((1 - loc) / scale / math.sqrt(2))
    # Of two parameters, which two targets determine.
    assert share == pytest.approx(0.2, abs=0.01)
    assert loc**2 + scale**2 == pytest.approx(1.0, abs=0.03)
    assert result.outcome in ("converged", "finished")


def test_folds_find_both_modes_of_a_well_from_a_normal():
    """exp(4 x^2 - x^4), whose moments and entropy are known by quadrature."""
    torch.manual_seed(0)
    law = spline_flow(1, num_layers=1, base=Flow(plain(1), [Fold()]))
    powers = torch.tensor([1, 2, 4])
    problem = MaximumEntropy(law, lambda x: x**powers, [0.0, 1.835342, 3.920683])
    result = solve(problem, rounds=16, steps=30, lr=0.03, batch_size=200)
    assert result.entropy == pytest.approx(0.872318, abs=0.05)
    share = (law.sample((10_000,)) > 0).double().mean()
    assert share == pytest.approx(0.5, abs=0.03)


def test_intervals_in_single_precision():
    """Their ends are double precision."""
    flow = spline_flow(1, num_layers=1, support=constraints.interval(0.0, 1.0)).float()
    problem = MaximumEntropy(flow, lambda x: x, 0.5)
    assert solve(problem, rounds=1, steps=2).means.dtype == torch.float32
