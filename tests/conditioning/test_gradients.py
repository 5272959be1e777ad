"""Gradients through conditional laws: against dense formulas and finite differences."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal, Normal

from pyromix import (
    AnyOf,
    Box,
    GaussianPrior,
    LinearEquality,
    LinearGaussian,
    LinearInequality,
    MixtureOfLowRankNormals,
    MixtureOfLowRankPrecisionNormals,
    MixtureOfMultivariateNormals,
    MixtureOfNormals,
    Observed,
)

K, D = 3, 4


def diagonal(logits, loc, scale):
    return MixtureOfNormals(logits, loc, scale.exp()[:, :, 0])


def full(logits, loc, scale):
    return MixtureOfMultivariateNormals(
        logits, loc, scale.tril(-1) + torch.diag_embed(scale.diagonal(dim1=-2, dim2=-1).exp())
    )


def low_rank(logits, loc, scale):
    return MixtureOfLowRankPrecisionNormals(logits, loc, scale[:, :, 0].exp(), scale[:, :, 1:3])


def factors(logits, loc, scale):
    return MixtureOfLowRankNormals(logits, loc, scale[:, :, 0].exp(), scale[:, :, 1:3])


families = pytest.mark.parametrize("make", [diagonal, full, low_rank, factors])


def parameters():
    shapes = (K,), (K, D), (K, D, D)
    return [(0.5 * torch.randn(shape)).requires_grad_() for shape in shapes]


def leaf(*shape):
    return torch.randn(shape).requires_grad_()


# Evidence, its tensors, and the same as A x = y + noise of covariance R.
def observed():
    v = leaf(2)
    return [Observed({1: v[0], 3: v[1]})], [v], [(torch.eye(D)[[1, 3]], v, torch.zeros(2, 2))]


def prior():
    loc = leaf(D)
    scale = leaf(D).detach().exp().requires_grad_()
    return [GaussianPrior(loc, scale)], [loc, scale], [(torch.eye(D), loc, torch.diag(scale**2))]


def observation():
    a, y, noise = leaf(2, D), leaf(2), torch.tensor([0.5, 1.5], requires_grad=True)
    return [LinearGaussian(a, y, noise)], [a, y, noise], [(a, y, torch.diag(noise**2))]


def equations():
    a, b = leaf(2, D), leaf(2)
    return [LinearEquality(a, b)], [a, b], [(a, -b, torch.zeros(2, 2))]


def everything():
    (one, t1, d1), (two, t2, d2) = prior(), observation()
    a, v = torch.tensor([0.5, -1.0, 0.3, 2.0], requires_grad=True), leaf(1)
    dense = [(torch.eye(D)[[2]], v, torch.zeros(1, 1)), (a[None], -v, torch.zeros(1, 1))]
    known = [Observed({2: v[0]}), LinearEquality(a, v), *one, *two]
    return known, [*t1, *t2, a, v], [*dense, *d1, *d2]


EVIDENCE = [observed, prior, observation, equations, everything]


def dense_answers(mixture, pieces, x):
    """Log-density at x, log-evidence, mean and variance, with matrices of all evidence at once."""
    a = torch.cat([a for a, _, _ in pieces])
    y = torch.cat([y for _, y, _ in pieces])
    noise = torch.block_diag(*(r for _, _, r in pieces))
    cov = mixture.component_covariance
    total = a @ cov @ a.mT + noise
    joint = mixture.logits + MultivariateNormal(mixture.loc @ a.mT, total).log_prob(y)
    gain = cov @ a.mT @ torch.linalg.inv(total)
    loc = mixture.loc + (gain @ (y - mixture.loc @ a.mT).unsqueeze(-1)).squeeze(-1)
    within = (cov - gain @ a @ cov).diagonal(dim1=-2, dim2=-1)
    weight = joint.softmax(-1).unsqueeze(-1)
    mean = (weight * loc).sum(0)
    log_evidence = joint.logsumexp(-1)
    prior = MultivariateNormal(mixture.loc, cov).log_prob(x.unsqueeze(-2)) + mixture.logits
    log_prob = prior.logsumexp(-1) - log_evidence
    exact, seen = [], []
    for a, y, noise in pieces:
        if bool((noise == 0).all()):
            exact.append(a)
        else:
            log_prob = log_prob + MultivariateNormal(x @ a.mT, noise).log_prob(y)
    if exact:  # surface measure in the coordinates that are not observed
        a = torch.cat(exact)
        seen = [int(row.argmax()) for row in a if (row != 0).sum() == 1]
        rest = a[(a != 0).sum(-1) > 1][:, [d for d in range(D) if d not in seen]]
        log_prob = log_prob - 0.5 * (rest @ rest.mT).logdet() if len(rest) else log_prob
    return log_prob, log_evidence, mean, (weight * (within + loc**2)).sum(0) - mean**2


@families
@pytest.mark.parametrize("evidence", EVIDENCE)
def test_closed_forms_against_dense_arithmetic(make, evidence):
    """Values and gradients, in the parameters, in the evidence and in the points."""
    tensors, (known, given, pieces) = parameters(), evidence()
    mixture = make(*tensors)
    law = mixture.condition(*known)
    x = law.sample((5,)).requires_grad_()
    got = law.log_prob(x), law.log_evidence()[0], law.mean, law.variance
    expected = dense_answers(mixture, pieces, x)
    for name, a, b in zip(
        ("log_prob", "log_evidence", "mean", "variance"), got, expected, strict=True
    ):
        torch.testing.assert_close(a, b, msg=lambda text, name=name: f"{name}: {text}")
        direction = torch.randn(a.shape)
        inputs = [*tensors, *given, x]
        options = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
        first, second = (
            torch.autograd.grad((t * direction).sum(), inputs, **options) for t in (a, b)
        )
        for i, (p, q) in enumerate(zip(first, second, strict=True)):
            torch.testing.assert_close(
                p, q, rtol=1e-6, atol=1e-8, msg=lambda text, i=i, name=name: f"{name}, {i}: {text}"
            )


@pytest.mark.parametrize("make", [diagonal, full])
def test_closed_forms_against_finite_differences(make):
    """Also second derivatives."""
    a, b = torch.randn(1, D), torch.randn(1)

    def answers(logits, loc, scale, y):
        law = make(logits, loc, scale).condition(
            Observed({2: y[0]}), LinearEquality(a, b), LinearGaussian(torch.ones(1, D), y, 0.5)
        )
        return law.log_evidence()[0], law.mean, law.variance

    inputs = [*parameters(), leaf(1)]
    assert torch.autograd.gradcheck(answers, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda *t: answers(*t)[0], inputs, fast_mode=True)


CLOSED = {
    "box": lambda low: [Box(torch.cat([low, torch.tensor([-math.inf, -1.0])]), 2.0)],
    "far box": lambda low: [Box(low=torch.cat([low + 12, torch.tensor([-math.inf, -1.0])]))],
    "half-space": lambda low: [LinearInequality(torch.tensor([1.0, -2.0, 0.5, 1.0]), -low[:1])],
    "one side": lambda low: [Box(high=torch.cat([low[:1], torch.full((3,), math.inf)]))],
    "observed and box": lambda low: [Observed({0: low[1]}), Box(low=low[1] - 1)],
    "union": lambda low: [
        AnyOf(Box(torch.cat([low, torch.full((2,), -1.0)]), 2.0), Box(low[0] - 1, low[0] + 0.5)),
        Box(high=torch.tensor([2.0, 1.5, math.inf, math.inf])),
    ],
}


@pytest.mark.parametrize(
    ("make", "name"),
    [
        *((diagonal, name) for name in CLOSED),
        *((make, name) for make in (full, low_rank) for name in ("half-space", "one side")),
    ],
)
def test_inequalities_with_closed_forms(make, name):
    """Gradients are those of log p(x) less those of log Z, by finite differences."""
    low = torch.tensor([-0.5, 0.25], requires_grad=True)
    inputs = [*parameters(), low]
    x = make(*inputs[:3]).condition(*CLOSED[name](low)).sample((3,))

    def answers(*tensors):
        law = make(*tensors[:3]).condition(*CLOSED[name](tensors[3]))
        assert law.log_evidence()[1] == 0
        inner = x.clone()
        if name.startswith("observed"):
            inner = torch.cat([tensors[3][1].expand(3, 1), x[:, 1:]], -1)
        return law.log_evidence()[0], law.log_prob(inner)

    assert torch.autograd.gradcheck(answers, inputs, fast_mode=True)


def test_box_against_the_distribution_function():
    """The same in single precision, and where a component has no weight."""
    loc = torch.tensor([[0.0], [1.0]], requires_grad=True)
    scale = torch.tensor([[1.0], [0.5]], requires_grad=True)
    logits = torch.tensor([0.3, -math.inf], requires_grad=True)
    low = torch.tensor([[-1.0], [0.5]])
    for dtype in (torch.float32, torch.float64):
        tensors = [t.detach().to(dtype).requires_grad_() for t in (logits, loc, scale)]
        law = MixtureOfNormals(*tensors).condition(Box(low, 2.0))
        got = torch.autograd.grad(law.log_evidence()[0].sum(), tensors)
        normal = Normal(loc[0], scale[0])
        value = (normal.cdf(torch.tensor(2.0)) - normal.cdf(low)).log().sum()
        expected = torch.autograd.grad(value, (loc, scale))
        assert got[0].isfinite().all()
        for a, b in zip(got[1:], expected, strict=True):
            torch.testing.assert_close(a.double(), b)


def test_a_branch_that_an_entry_rules_out_has_no_part_in_gradients():
    loc, low = leaf(K, 2), torch.tensor([0.5, -0.5])
    mixture = MixtureOfNormals(torch.zeros(K), loc, torch.ones(K, 2))
    union = AnyOf(Box(0.0, 1.0), Box(torch.tensor([-1.0, -9.0]), torch.tensor([-0.25, 9.0])))
    value, _ = mixture.condition(union, Observed({0: low})).log_evidence()
    (got,) = torch.autograd.grad(value.sum(), loc)
    first = mixture.condition(Box(0.0, 1.0), Observed({0: low[0]})).log_evidence()[0]
    second = mixture.condition(Box(high=9.0, low=-9.0), Observed({0: low[1]})).log_evidence()[0]
    (expected,) = torch.autograd.grad(first + second, loc)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(
    ("evidence", "frozen"),
    [
        *(([Box(-1.0, 1.0)], frozen) for frozen in [(), (0,), (0, 1), (1, 2)]),
        ([LinearInequality(torch.eye(D)[:3] + 0.1)], ()),
        ([AnyOf(Box(-1.0, 1.0), LinearInequality(torch.ones(D), -1.0))], ()),
    ],
)
def test_unknown_gradients_are_an_error(evidence, frozen):
    tensors = parameters()
    for i in frozen:
        tensors[i].requires_grad_(False)
    mixture = full(*tensors)
    law = mixture.condition(*evidence)
    x = law.sample((4,)).requires_grad_()
    for value in (law.log_prob(x).sum(), law.log_evidence()[0]):
        with pytest.raises(NotImplementedError, match=r"torch\.no_grad"):
            value.backward(retain_graph=True)
    # In the points it is that of the mixture.
    (got,) = torch.autograd.grad(law.log_prob(x).sum(), x)
    (expected,) = torch.autograd.grad(mixture.log_prob(x).sum(), x)
    torch.testing.assert_close(got, expected)
    with torch.no_grad():
        law = mixture.condition(*evidence)
    assert not law.log_evidence()[0].requires_grad


def test_an_estimated_union_has_no_gradient(monkeypatch):
    monkeypatch.setattr("pyromix.conditioning.union.MAX_INTERSECTIONS", 0)
    law = diagonal(*parameters()).condition(AnyOf(Box(-1.0, 1.0), Box(0.0, 2.0)))
    with pytest.raises(NotImplementedError, match="no gradient"):
        law.log_evidence()[0].backward()
