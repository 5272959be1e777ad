"""Mixtures of normals with covariances full and of low rank, against dense arithmetic."""

import itertools
import math

import pytest
import torch
from torch.distributions import MultivariateNormal

from pyromix import GaussianMixture, MixtureOfNormals, Observed
from pyromix.mixtures import (
    MixtureOfLowRankNormals,
    MixtureOfLowRankPrecisionNormals,
    MixtureOfMultivariateNormals,
)


def dense(batch=(), k=3, dim=4, own=None, tied=False):
    own = batch if own is None else own
    tril = 0.4 * torch.randn(*own, 1 if tied else k, dim, dim).tril(-1)
    tril = tril + torch.diag_embed(0.5 + torch.rand(*tril.shape[:-1]))
    return MixtureOfMultivariateNormals(torch.randn(*batch, k), torch.randn(*own, k, dim), tril)


def low_rank(batch=(), k=3, dim=4, own=None, rank=2, kind=MixtureOfLowRankPrecisionNormals):
    own = batch if own is None else own
    return kind(
        torch.randn(*batch, k),
        torch.randn(*own, k, dim),
        0.5 + torch.rand(*own, k, dim),
        torch.randn(*own, k, dim, rank),
    )


FAMILIES = {
    "full": dense,
    "tied": lambda *a, **kw: dense(*a, tied=True, **kw),
    "rank 2": low_rank,
    "rank 0": lambda *a, **kw: low_rank(*a, rank=0, **kw),
    "factors": lambda *a, **kw: low_rank(*a, kind=MixtureOfLowRankNormals, **kw),
    "no factors": lambda *a, **kw: low_rank(*a, rank=0, kind=MixtureOfLowRankNormals, **kw),
}
families = pytest.mark.parametrize("make", FAMILIES.values(), ids=FAMILIES)


def components(mixture):
    return MultivariateNormal(mixture.loc, covariance_matrix=mixture.covariance_matrix)


def scores(mixture, x):
    return mixture.logits + components(mixture).log_prob(x.unsqueeze(-2))


@families
@pytest.mark.parametrize(
    ("batch", "own", "leading"),
    [
        ((), (), (5,)),
        ((), (), (2, 5)),
        ((3,), (3,), (5, 3)),
        ((3,), (3,), (3,)),
        ((3,), (), (5, 3)),
        ((3, 2), (2,), (5, 3, 2)),
        ((3, 2), (3, 1), (5, 3, 2)),
        ((3, 1), (3, 1), (5, 3, 4)),
    ],
)
def test_density_and_responsibilities(make, batch, own, leading):
    mixture = make(batch, own=own)
    x = torch.randn(*leading, 4)
    expected = scores(mixture, x)
    torch.testing.assert_close(mixture.log_prob(x), expected.logsumexp(-1))
    torch.testing.assert_close(mixture.responsibilities(x), expected.softmax(-1))


@families
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_density_of_many_points(make, dtype):
    """Large enough for products and blocks."""
    mixture = make(k=12, dim=30)
    x = mixture.sample((700,))
    parameters = [getattr(mixture, name).to(dtype) for name in ("_logits", *mixture._tensors)]
    got = type(mixture)(*parameters).log_prob(x.to(dtype))
    reference = type(mixture)(*(p.double() for p in parameters))
    expected = scores(reference, x.to(dtype).double()).logsumexp(-1)
    error = (got - expected).abs() / expected.abs().clamp(min=1)
    assert error.max() < (1e-4 if dtype == torch.float32 else 1e-11)


@families
@pytest.mark.parametrize("kept", [0, 2**24])
def test_blocks_do_not_show(make, kept, monkeypatch):
    mixture = make()
    tensors = [getattr(mixture, name) for name in ("_logits", *mixture._tensors)]
    leaves = [t.requires_grad_() for t in tensors if t.numel()]
    x = torch.randn(50, 4)
    whole = torch.autograd.grad(mixture.log_prob(x).sum(), leaves)
    monkeypatch.setattr("pyromix.mixtures.full.BLOCK_NUMBERS", 100)
    monkeypatch.setattr("pyromix.mixtures.full.KEPT_NUMBERS", kept)
    parts = torch.autograd.grad(mixture.log_prob(x).sum(), leaves)
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("condition", [1e2, 1e6])
def test_inverse_factors_are_as_good_as_solving(condition, monkeypatch):
    """Density and gradients of nearly singular covariances, where there are many points."""
    k, dim, n = 5, 32, 2000
    basis = torch.linalg.qr(torch.randn(k, dim, dim)).Q
    variance = torch.logspace(0, -math.log10(condition), dim)
    tril = torch.linalg.cholesky(basis * variance.unsqueeze(-2) @ basis.mT)
    parameters = [t.float() for t in (torch.randn(k), torch.randn(k, dim), tril)]
    x = MixtureOfMultivariateNormals(*parameters).sample((n,))

    def outcome(dtype):
        leaves = [t.to(dtype).requires_grad_() for t in (x, *parameters)]
        log_prob = MixtureOfMultivariateNormals(*leaves[1:]).log_prob(leaves[0])
        return [log_prob.detach(), *torch.autograd.grad(log_prob.sum(), leaves)]

    by_products = outcome(torch.float32)
    monkeypatch.setattr("pyromix.mixtures.full.POINTS_PER_DIM", math.inf)
    by_solving, exact = outcome(torch.float32), outcome(torch.float64)
    for product, solution, truth in zip(by_products, by_solving, exact, strict=True):
        assert (product - truth).norm() < 3 * (solution - truth).norm() + 1e-6 * truth.norm()


@families
@pytest.mark.parametrize("batch", [(), (2,)])
def test_moments(make, batch):
    mixture = make(batch)
    weights = mixture.logits.exp().unsqueeze(-1)
    mean = (weights * mixture.loc).sum(-2)
    second = mixture.covariance_matrix.diagonal(dim1=-2, dim2=-1) + mixture.loc**2
    torch.testing.assert_close(mixture.mean, mean)
    torch.testing.assert_close(mixture.variance, (weights * second).sum(-2) - mean**2)


@families
@pytest.mark.parametrize("batch", [(), (2,)])
def test_marginal(make, batch):
    mixture = make(batch)
    kept = [3, 0]
    marginal = mixture.marginal(kept)
    torch.testing.assert_close(marginal.loc, mixture.loc[..., kept])
    covariance = mixture.covariance_matrix[..., kept, :][..., kept]
    torch.testing.assert_close(marginal.covariance_matrix, covariance)


@families
@pytest.mark.parametrize("batch", [(), (2,)])
def test_condition_is_joint_over_marginal(make, batch):
    mixture = make(batch)
    x = mixture.sample((6,))
    given = {2: x[..., 2], -4: x[..., 0]}
    conditional = mixture.condition(Observed(given)).free()
    assert conditional.batch_shape == (6, *batch)
    expected = mixture.log_prob(x) - mixture.marginal([2, 0]).log_prob(x[..., [2, 0]])
    torch.testing.assert_close(conditional.log_prob(x[..., [1, 3]]), expected)


@families
def test_observed_log_prob(make):
    mixture = make(dim=6)
    x = mixture.sample((40,))
    observed = torch.rand(40, 6) < 0.6
    observed[0], observed[1] = True, False
    got = mixture.observed_log_prob(x.masked_fill(~observed, math.nan), observed)
    expected = []
    for row, seen in zip(x, observed, strict=True):
        kept = seen.nonzero().flatten()
        expected.append(mixture.marginal(kept).log_prob(row[kept]) if len(kept) else row.sum() * 0)
    torch.testing.assert_close(got, torch.stack(expected))


@families
@pytest.mark.parametrize(
    ("batch", "own", "leading"),
    [
        ((3,), (3,), (40, 3)),
        ((3,), (), (40, 3)),
        ((2, 3), (2, 1), (5, 2, 3)),
        ((3, 1), (), (3, 9)),
    ],
)
def test_observed_log_prob_of_a_batch(make, batch, own, leading):
    """Row by row, each with its own mixture and pattern."""
    mixture = make(batch, own=own)
    x = torch.randn(*leading, 4)
    observed = torch.rand(*leading, 4) < 0.6
    observed.view(-1, 4)[:2] = torch.tensor([True, False]).unsqueeze(-1)
    got = mixture.observed_log_prob(x.masked_fill(~observed, math.nan), observed)
    logits, loc = (
        t.expand(*leading, *t.shape[len(batch) :]) for t in (mixture.logits, mixture.loc)
    )
    covariance = mixture.covariance_matrix.expand(*leading, -1, -1, -1)
    assert got.shape == leading
    for index in itertools.product(*map(range, leading)):
        kept = observed[index].nonzero().flatten()
        expected = logits[index]
        if len(kept):
            law = MultivariateNormal(loc[index][:, kept], covariance[index][:, kept][:, :, kept])
            expected = expected + law.log_prob(x[index][kept])
        torch.testing.assert_close(got[index], expected.logsumexp(-1))


@families
@pytest.mark.parametrize("own", [(), (3,)])
def test_values_missing_after_all_in_a_batch(make, own):
    """As for each mixture of the batch by itself."""
    mixture = make((3,), own=own)
    value = torch.randn(7, 3, 2)
    value[torch.rand(7, 3, 2) < 0.4] = math.nan
    value[0, 0] = math.nan
    law = mixture._conditioned({3: value[..., 0], 1: value[..., 1]}, missing=True)
    assert law.batch_shape == (7, 3)
    x = torch.randn(5, 7, 3, 2)
    got = law.log_prob(x)
    for i in range(3):
        tensors = [
            getattr(mixture, n).expand(3, *getattr(mixture, n).shape[-tail:])[i]
            for n, tail in (("_logits", 1), *mixture._tensors.items())
        ]
        one = type(mixture)(*tensors)
        expected = one._conditioned({3: value[:, i, 0], 1: value[:, i, 1]}, missing=True)
        torch.testing.assert_close(got[:, :, i], expected.log_prob(x[:, :, i]))


@families
def test_large_draws_are_grouped(make, monkeypatch):
    monkeypatch.setattr("pyromix.mixtures.full.GATHERED_NUMBERS", 0)
    mixture = make()
    x = mixture.sample((40_000,))
    error = mixture.variance.sqrt() / 200
    assert ((x.mean(0) - mixture.mean).abs() < 6 * error).all()
    responsibility = mixture.responsibilities(x).mean(0)
    assert ((responsibility - mixture.logits.exp()).abs() < 6 * 0.5 / 200).all()


@families
@pytest.mark.parametrize("count", [1, 2, 3, 7, 300])
def test_weighted_draws_have_weights_of_the_mixture(make, count):
    mixture = make((2,))
    x, log_weight = mixture.rsample_weighted(count)
    assert x.shape == (count, 2, 4)
    assert log_weight.shape == (count, 2)
    if count >= 3:
        torch.testing.assert_close(log_weight.exp().sum(0), torch.ones(2))


@families
@pytest.mark.parametrize("count", [2, 4, 30])
def test_weighted_draws_are_unbiased(make, count):
    """Value and gradients of E[f], against the closed form, for few draws and many."""
    mixture = make()
    for name in ("_logits", *mixture._tensors):
        getattr(mixture, name).requires_grad_()
    leaves = [getattr(mixture, n) for n in ("_logits", "_loc")]

    def gradient(value):
        return torch.cat([g.flatten() for g in torch.autograd.grad(value, leaves)])

    expected = (mixture.variance + mixture.mean**2).sum()
    expected = torch.cat([expected.detach().reshape(1), gradient(expected)])
    estimates = []
    several = mixture.expand((8,))
    for _ in range(100):
        x, log_weight = several.rsample_weighted(count)
        value = (log_weight.exp() * x.square().sum(-1)).sum(0).mean()
        estimates.append(torch.cat([value.detach().reshape(1), gradient(value)]))
    estimates = torch.stack(estimates)
    error = estimates.std(0) / math.sqrt(len(estimates))
    assert ((estimates.mean(0) - expected).abs() < 4.5 * error).all()


@families
@pytest.mark.parametrize("own", [(), (2,)])
def test_first_and_second_derivatives(make, own):
    """Also where every point has a mixture of its own, which takes a path of its own."""
    mixture = make((2,), k=2, dim=2, own=own)
    parameters = [getattr(mixture, name) for name in ("_logits", *mixture._tensors)]
    inputs = [t.detach().clone().requires_grad_() for t in (mixture.sample(), *parameters)]

    def log_prob(x, *parameters):
        return type(mixture)(*parameters, validate_args=False).log_prob(x)

    assert torch.autograd.gradcheck(log_prob, inputs)
    assert torch.autograd.gradgradcheck(log_prob, inputs)


@families
@pytest.mark.parametrize("spread", [1.0, 1e3])
def test_float32_densities_are_as_good_far_from_the_origin(make, spread):
    law = make()
    first, *others = (getattr(law, name).float() for name in law._tensors)
    single = type(law)(law.logits.float(), spread * first, *others)
    x = single.sample((500,))
    double = single.map_tensors(torch.Tensor.double)
    expected = double.log_prob(x.double())
    assert (single.log_prob(x) - expected).abs().max() < 2e-5
    traced = torch.func.vmap(single.log_prob)(x)
    assert (traced - expected).abs().max() < 2e-5


@pytest.mark.parametrize("covariance", ["full", "tied"])
def test_gaps_are_filled_in_where_the_default_dtype_is_another(covariance):
    model = GaussianMixture(2, 3, covariance).float()  # the tests' default is float64
    value = torch.tensor([[0.5, math.nan]], dtype=torch.float32)
    assert model.law.conditional([0], [1], value[:, :1]).sample().dtype == torch.float32
    assert model.impute(value).isfinite().all()


def test_mixtures_have_batches_of_no_laws():
    logits, loc, eye = torch.zeros(0, 3), torch.zeros(0, 3, 2), torch.ones(0, 3, 2)
    laws = [
        MixtureOfNormals(logits, loc, eye),
        MixtureOfMultivariateNormals(logits, loc, torch.diag_embed(eye)),
        MixtureOfLowRankPrecisionNormals(logits, loc, eye, torch.zeros(0, 3, 2, 1)),
        MixtureOfLowRankNormals(logits, loc, eye, torch.zeros(0, 3, 2, 1)),
    ]
    for law in laws:
        assert law.sample((4,)).shape == (4, 0, 2)
        assert law.log_prob(torch.zeros(4, 0, 2)).shape == (4, 0)
