"""Mixtures given evidence: exact laws, against quadrature and closed forms."""

import math

import pyro
import pytest
import torch
from pyro.infer import MCMC, NUTS
from pyro.ops.stats import effective_sample_size
from torch.distributions import MultivariateNormal

from pyromix import GaussianMixture
from pyromix.conditioning import mixture as mixture_module
from pyromix.evidence.pieces import (
    AnyOf,
    Box,
    GaussianPrior,
    LinearEquality,
    LinearGaussian,
    LinearInequality,
    Observed,
)
from pyromix.mixtures import ConditionedMixture
from pyromix.mixtures.covariance import STRUCTURES

from ..quadrature import nodes_and_weights

every_covariance = pytest.mark.parametrize("covariance", STRUCTURES)
# One for each class of mixtures, and for factors that components share.
every_family = pytest.mark.parametrize(
    "covariance", ["diagonal", "tied", "full", "low_rank", "low_rank_precision"]
)


def build(covariance="full", dim=2, k=3):
    model = GaussianMixture(dim, k, covariance, rank=1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.4 if name.startswith("raw") else 1.0)
    return model.requires_grad_(False)


PLANE = {
    "prior": lambda: [
        GaussianPrior(torch.tensor([0.5, -1.0]), torch.tensor([0.7, math.inf])),
    ],
    "observation": lambda: [
        LinearGaussian(torch.tensor([[1.0, 2.0]]), torch.tensor([0.4]), 0.5),
    ],
    "box": lambda: [Box(torch.tensor([-0.5, -math.inf]), torch.tensor([1.0, 0.8]))],
    "inequality": lambda: [LinearInequality(torch.tensor([1.0, -2.0]), 0.3)],
    "two inequalities": lambda: [
        LinearInequality(torch.tensor([[1.0, 1.0], [-1.0, 2.0]]), 0.5),
    ],
    "box and inequality": lambda: [Box(-1.0, 1.5), LinearInequality(torch.tensor([1.0, 1.0]))],
    "prior and box": lambda: [GaussianPrior(0.3, 0.9), Box(0.0, 2.0)],
    "observation and inequality": lambda: [
        LinearGaussian(torch.tensor([[1.0, 2.0]]), torch.tensor([0.4]), 0.5),
        LinearInequality(torch.tensor([1.0, -1.0])),
    ],
}


def log_factor(evidence, x):
    """log q(x), the slow obvious way."""
    log_q = torch.zeros(len(x))
    for piece in evidence:
        match piece:
            case GaussianPrior(loc=loc, scale=scale):
                loc, scale = (torch.as_tensor(t).expand(2) for t in (loc, scale))
                kept = scale.isfinite()
                normal = torch.distributions.Normal(loc[kept], scale[kept])
                log_q = log_q + normal.log_prob(x[:, kept]).sum(-1)
            case LinearGaussian(matrix=a, y=y, noise=noise):
                log_q = log_q + torch.distributions.Normal(x @ a.mT, noise).log_prob(y).sum(-1)
            case Box(low=low, high=high):
                log_q = log_q + ((x >= low) & (x <= high)).all(-1).double().log()
            case LinearInequality(a=a, b=b):
                log_q = log_q + (x @ torch.atleast_2d(a).mT + b > 0).all(-1).double().log()
    return log_q


@every_family
@pytest.mark.parametrize("name", PLANE)
def test_density_and_evidence_against_quadrature(covariance, name):
    model, evidence = build(covariance), PLANE[name]()
    x, weight = nodes_and_weights(evidence)
    joint = model.log_prob(x) + log_factor(evidence, x)
    law = model.condition(*evidence)
    value, error = law.log_evidence()
    # The rule is exact to five digits or more.
    assert (value - (weight * joint.exp()).sum().log()).abs() < 3 * error + 1e-4
    torch.testing.assert_close(law.log_prob(x) + value, joint, rtol=1e-9, atol=1e-9)
    anywhere = 2 * torch.randn(2000, 2)
    assert torch.equal(
        law.log_prob(anywhere).isfinite(), log_factor(evidence, anywhere).isfinite()
    )


@every_family
@pytest.mark.parametrize("name", PLANE)
def test_draws_follow_the_density(covariance, name):
    model, evidence = build(covariance), PLANE[name]()
    law = model.condition(*evidence)
    n = 20_000
    draws = law.sample((n,))
    assert law.log_prob(draws).isfinite().all()
    x, weight = nodes_and_weights(evidence)
    weight = weight * law.log_prob(x).exp()
    weight = weight / weight.sum()
    for f in (lambda t: t[:, 0], lambda t: t[:, 1], lambda t: (2 * t).sin().sum(-1)):
        expected = (weight * f(x)).sum()
        error = f(draws).std() / math.sqrt(n)
        assert (f(draws).mean() - expected).abs() < 5 * error


@every_covariance
def test_observed_values_as_by_condition(covariance):
    model = build(covariance, dim=4)
    x = model.sample((6,))
    law = model.condition(Observed({0: x[:, 0], -1: x[:, 3]}))
    expected = model.condition(Observed({0: x[:, 0], 3: x[:, 3]})).free()
    torch.testing.assert_close(law.log_prob(x), expected.log_prob(x[:, 1:3]))
    torch.testing.assert_close(law.mean[:, 1:3], expected.mean)
    torch.testing.assert_close(law.variance[:, 1:3], expected.variance)
    torch.testing.assert_close(
        law.log_evidence()[0], model.marginal([0, 3]).log_prob(x[:, [0, 3]])
    )
    draws = law.sample((5,))
    assert draws.shape == (5, 6, 4)
    assert torch.equal(draws[..., 0], x[:, 0].expand(5, 6))
    assert torch.equal(draws[..., 3], x[:, 3].expand(5, 6))
    assert law.log_prob(x + torch.tensor([0.0, 0, 0, 1e-9])).isneginf().all()


@pytest.mark.parametrize("noise", ["number", "vector", "matrix"])
def test_linear_inverse_problem_of_one_normal(noise):
    """The posterior equals the textbook's."""
    model = build(dim=5, k=1)
    a, y = torch.randn(3, 5), torch.randn(4, 3)
    root = 0.5 * torch.randn(3, 3).tril() + torch.eye(3)
    given = {"number": 0.3, "vector": torch.tensor([0.2, 0.5, 1.0]), "matrix": root @ root.mT}[
        noise
    ]
    covariance = given if noise == "matrix" else torch.diag(torch.as_tensor(given).expand(3) ** 2)
    law = model.condition(LinearGaussian(a, y, given))
    prior = model.distribution
    s, m = prior.component_covariance[0].detach(), prior.loc[0].detach()
    total = a @ s @ a.mT + covariance
    gain = s @ a.mT @ torch.linalg.inv(total)
    torch.testing.assert_close(law.mean, m + (y - m @ a.mT) @ gain.mT)
    torch.testing.assert_close(law.variance, (s - gain @ a @ s).diagonal().expand(4, 5))
    expected = MultivariateNormal(m @ a.mT, total).log_prob(y)
    torch.testing.assert_close(law.log_evidence()[0], expected)


@every_covariance
def test_equations_leave_a_line(covariance):
    model = build(covariance)
    a, b = torch.tensor([3.0, -1.0]), 0.7
    law = model.condition(LinearEquality(a, b))
    draws = law.sample((5000,))
    assert (draws @ a + b).abs().max() < 1e-6
    # Along the line the density integrates to one.
    start, direction = -b * a / (a @ a), torch.tensor([1.0, 3.0]) / math.sqrt(10)
    t = torch.linspace(-9, 9, 20_001)
    density = law.log_prob(start + t.unsqueeze(-1) * direction).exp()
    assert abs(torch.trapezoid(density, t).item() - 1) < 1e-4
    mean = torch.trapezoid(density * t, t)
    along = draws @ direction
    assert (along.mean() - mean).abs() < 5 * along.std() / math.sqrt(5000)
    torch.testing.assert_close(law.mean @ direction, mean, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("covariance", ["diagonal", "full", "low_rank", "low_rank_precision"])
def test_everything_at_once_is_met_exactly(covariance, dtype):
    model = build(covariance, dim=8, k=4).to(dtype)
    a = torch.randn(2, 8, dtype=dtype)
    value = torch.tensor([0.3, -0.4, 1.0], dtype=dtype)
    low = torch.full((8,), -2.0, dtype=dtype)
    equation = torch.zeros(8, dtype=dtype)
    equation[4:6] = torch.tensor([1.0, -1.0])
    law = model.condition(
        Observed({1: value}),
        Box(low, 3.0),
        LinearInequality(a, 1.0),
        LinearEquality(equation),
        LinearGaussian(torch.eye(8, dtype=dtype)[6:], torch.zeros(2, dtype=dtype), 0.5),
    )
    x = law.sample((3000,))
    assert x.shape == (3000, 3, 8)
    assert x.dtype == dtype
    assert torch.equal(x[..., 1], value.expand(3000, 3))
    free = [0, *range(2, 8)]
    assert (x[..., free] >= -2).all()
    assert (x[..., free] <= 3).all()
    assert (x @ a.mT + 1 > 0).all()
    assert ((x.unsqueeze(-2) * a).sum(-1) + 1 > 0).all()
    assert (x[..., 4] - x[..., 5]).abs().max() < (1e-5 if dtype == torch.float32 else 1e-12)
    assert law.log_prob(x).isfinite().all()
    value, error = law.log_evidence()
    assert value.isfinite().all()
    assert (error < 0.1).all()


def test_far_constraints():
    """Sixty deviations out, without a single violation."""
    model = build("diagonal", k=1)
    scale, loc = model.scale[0].detach(), model.loc[0].detach()
    for dtype in (torch.float32, torch.float64):
        law = model.to(dtype).condition(
            Box(low=(loc + 60 * scale).to(dtype)), LinearInequality(torch.ones(2, dtype=dtype))
        )
        x = law.sample((20_000,))
        assert (x >= (loc + 60 * scale).to(dtype)).all()


@pytest.mark.parametrize("ulps", [1, 4])
def test_slivers_thinner_than_the_numbers(ulps, monkeypatch):
    """A draw that breaks a constraint is never returned."""
    monkeypatch.setattr(mixture_module, "MAX_REDRAWS", 5)  # no number of attempts is enough
    low = torch.tensor(1.0, dtype=torch.float32)
    high = low + ulps * torch.finfo(torch.float32).eps
    a = torch.tensor([1.0, 1.0], dtype=torch.float32)
    evidence = LinearInequality(a, -low), LinearInequality(-a, high)
    with pytest.raises(RuntimeError, match="Use float64"):
        build("diagonal").float().condition(*evidence).sample((100,))
    x = build("diagonal").condition(*evidence).sample((100,))
    assert ((x.sum(-1) >= low) & (x.sum(-1) <= high)).all()


@pytest.mark.parametrize(
    "name",
    ["box", *(pytest.param(name, marks=pytest.mark.slow) for name in ("inequality", "prior"))],
)
def test_nuts_finds_the_same_law(name):
    law = build().condition(*PLANE[name]())
    kernel = NUTS(lambda: pyro.sample("x", law))
    mcmc = MCMC(kernel, num_samples=120, warmup_steps=60, disable_progbar=True)
    mcmc.run()
    x, draws = mcmc.get_samples()["x"], law.sample((5000,))
    assert law.support.check(x).all()
    effective = effective_sample_size(x.unsqueeze(0))
    assert (effective > 20).all()
    error = draws.std(0) * (1 / 5000 + 1 / effective).sqrt()
    assert ((x.mean(0) - draws.mean(0)).abs() < 4.5 * error).all()


def test_support_without_a_bijection():
    law = build().condition(*PLANE["box and inequality"]())
    with pytest.raises(NotImplementedError, match="Draw with sample"):
        _ = law.support


def stacked(covariance, batch, share_covariance=False):
    """A batch of mixtures, and each of them by itself."""
    singles = [build(covariance).distribution for _ in range(math.prod(batch))]
    tensors = []
    for name, tail in (("_logits", 1), *singles[0]._tensors.items()):
        parts = [getattr(single, name) for single in singles]
        if share_covariance and name not in ("_logits", "_loc"):
            for single in singles:
                setattr(single, name, parts[0])
            tensors.append(parts[0])
        else:
            tensors.append(torch.stack(parts).reshape(*batch, *parts[0].shape[-tail:]))
    return type(singles[0])(*tensors), singles


BATCHED = {
    **PLANE,
    "observed": lambda: [Observed({1: torch.tensor([0.3, -0.7])})],
    "equation": lambda: [LinearEquality(torch.tensor([3.0, -1.0]), torch.tensor([[0.7], [0.1]]))],
    "boxes": lambda: [Box(torch.tensor([[-0.5, -1.0], [0.0, 0.0]]), 1.0)],
    "observed and box": lambda: [Observed({0: torch.tensor([0.3, -0.7])}), Box(low=-1.0)],
    "union": lambda: [AnyOf(Box(-0.5, 0.5), LinearInequality(torch.tensor([1.0, 2.0]), -1.0))],
}


# Shared covariances with one kind of evidence for each way to condition.
SHARED = ("observation", "box and inequality", "observed", "equation")
BATCHES = [(name, False) for name in BATCHED] + [(name, True) for name in SHARED]
BATCHES = [(covariance, *rest) for covariance in ("diagonal", "full") for rest in BATCHES]
# Beyond values and equations they are as full ones.
BATCHES += [(c, name, False) for c in ("low_rank", "low_rank_precision") for name in SHARED]


@pytest.mark.parametrize(("covariance", "name", "share_covariance"), BATCHES)
def test_batches_of_mixtures_as_one_by_one(covariance, name, share_covariance):
    mixture, singles = stacked(covariance, (3, 1), share_covariance)
    law = mixture.condition(*BATCHED[name]())
    size = 1 if name in PLANE or name == "union" else 2
    assert law.batch_shape == (3, size)
    draws, x = law.sample((400,)), torch.randn(400, 2)
    if name.startswith(("observed", "equation")):
        x = draws[:, 0, 0]
    x = x.unsqueeze(1).expand(-1, size, -1)
    (value, error), got = law.log_evidence(), law.log_prob(x.unsqueeze(1).expand(-1, 3, -1, -1))
    closed = isinstance(law, ConditionedMixture) and law.route is None
    for i, single in enumerate(singles):
        one = single.expand((size,)).condition(*BATCHED[name]())
        expected, spread = one.log_evidence()
        # Two estimates of the same normalisers.
        close = 4.5 * (error[i].square() + spread.square()).sqrt() + 1e-9
        assert ((value[i] - expected).abs() < close).all()
        density = one.log_prob(x)
        assert torch.equal(got[:, i].isfinite(), density.isfinite())
        assert ((got[:, i] - density).nan_to_num(0.0).abs() < close).all()
        assert one.log_prob(draws[:, i]).isfinite().all()
        others = one.sample((400,))
        both = draws[:, i].var(0) + others.var(0)
        difference = (draws[:, i].mean(0) - others.mean(0)).abs()
        assert (difference <= 5 * (both / 400).sqrt() + 1e-12).all()
        if closed:
            torch.testing.assert_close(law.mean[i], one.mean)
            torch.testing.assert_close(law.variance[i], one.variance)


def test_later_changes_do_not_reach_the_law():
    """Neither of parameters, nor of evidence: log Z would not fit them."""
    model, low = build("diagonal"), torch.tensor([0.0, -1.0])
    law = model.condition(Box(low, 2.0))
    x = law.sample((50,))
    expected = law.log_prob(x)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1.0)
    low += 1
    assert torch.equal(law.log_prob(x), expected)


def test_mixture_density_network_given_evidence():
    model = GaussianMixture(2, 3, context_dim=4).requires_grad_(False)
    context = torch.randn(5, 4)
    law = model.condition(context).condition(Box(low=0.0), Observed({1: torch.tensor(0.5)}))
    assert law.batch_shape == (5,)
    x = law.sample((100,))
    assert (x >= 0).all()
    assert law.log_prob(x).isfinite().all()
    with pytest.raises(ValueError, match=r"mixture's, \(5,\), got \(3,\)"):
        model.condition(context).condition(Observed({1: torch.zeros(3)}))


def test_plain_mixtures_take_evidence_too():
    mixture = build().distribution
    assert (mixture.condition(Box(low=0.0)).sample((100,)) >= 0).all()


@pytest.mark.parametrize(
    ("evidence", "message"),
    [
        (lambda: [Observed({0: 0.0, 1: 1.0})], "not observed"),
        (lambda: [Observed({5: 0.0})], "integers from -2 to 1"),
        (lambda: [Observed({0: 0.0}), Observed({-2: 1.0})], "observed once"),
        (lambda: [Observed({0: math.nan})], "without NaN"),
        (lambda: [Observed({0: 3.0}), Box(high=1.0)], "break an inequality"),
        (lambda: [Box(1.0, 0.0)], "low < high"),
        (lambda: [Box(torch.zeros(3), 1.0)], r"shape \(\*N, 2\)"),
        (lambda: [LinearInequality(torch.zeros(2))], "not all zero"),
        (lambda: [LinearInequality(torch.ones(3))], r"shape \(2,\)"),
        (
            lambda: [LinearEquality(torch.ones(2)), LinearEquality(torch.ones(2), 1.0)],
            "independent",
        ),
        (lambda: [LinearGaussian(torch.ones(1, 2), torch.zeros(1), 0.0)], "positive noise"),
        (lambda: [LinearGaussian(torch.ones(1, 2), torch.zeros(2), 1.0)], r"shape \(\*N, 1\)"),
        (lambda: [GaussianPrior(0.0, -1.0)], "positive scales"),
        (lambda: ["box"], "Expected a mapping"),
        (lambda: [Box(), {0: 1.0, 1: 1.0}], "not observed"),
        (lambda: [Box(high=-1.0), LinearInequality(torch.ones(2))], "."),
    ],
)
def test_bad_evidence(evidence, message):
    with pytest.raises(ValueError, match=message):
        build().condition(*evidence())


def test_evidence_adds_up():
    mixture = GaussianMixture(3, 2, "full")
    prior, low = GaussianPrior(torch.zeros(3), torch.ones(3)), Box(low=torch.tensor([-1.0] * 3))
    known = Observed({0: 1.0})
    step_by_step = mixture.condition(prior).condition(known)
    at_once = mixture.condition(prior, known)
    torch.testing.assert_close(step_by_step.mean, at_once.mean)
    torch.testing.assert_close(step_by_step.log_evidence(), at_once.log_evidence())
    assert (step_by_step.condition(low).sample((100,)) >= -1).all()


def test_contradictions_are_named_as_formulas():
    mixture = GaussianMixture(3, 2, "full")
    low, high = torch.full((3,), -9.0), torch.full((3,), 9.0)
    low[2], high[2] = 0.0, -1.0
    with pytest.raises(ValueError, match=r"0 <= x\[2\].*x\[2\] <= -1"):
        mixture.condition(Box(low=low), Box(high=high))
    plane = LinearInequality(torch.tensor([1.0, 2.0, 0.0]), 0.0)
    with pytest.raises(ValueError, match=r"x\[0\] \+ 2 x\[1\]"):
        mixture.condition(Box(high=-1.0), plane)
