"""Gradients through samples of correlated components, against the transform written out."""

import pytest
import torch
from torch.distributions import Normal

from pyromix import (
    MixtureOfLowRankNormals,
    MixtureOfLowRankPrecisionNormals,
    MixtureOfMultivariateNormals,
    MixtureOfNormals,
)
from pyromix.numerics import implicit_correlated


def full(k=3, dim=4, batch=(), tied=False):
    rows = 1 if tied else k
    tril = 0.5 * torch.randn(*batch, rows, dim, dim).tril(-1)
    tril = tril + torch.diag_embed(0.5 + torch.rand(*batch, rows, dim))
    return torch.randn(*batch, k), torch.randn(*batch, k, dim), tril


def low_rank(k=3, dim=4, rank=2, batch=()):
    diag, factor = 0.5 + torch.rand(*batch, k, dim), torch.randn(*batch, k, dim, rank)
    return torch.randn(*batch, k), torch.randn(*batch, k, dim), diag, factor


def factors(**options):
    return low_rank(**options)


LAWS = {
    full: MixtureOfMultivariateNormals,
    low_rank: MixtureOfLowRankPrecisionNormals,
    factors: MixtureOfLowRankNormals,
}


def covariance(diag, factor):
    return torch.linalg.inv(torch.diag_embed(diag) + factor @ factor.mT)


def uniforms(x, logits, loc, cov):
    """F(x_d | x_<d) for every d, from conditional normals."""
    result = []
    for d in range(len(x)):
        log_weights, mean, variance = logits.log_softmax(-1), loc[:, d], cov[:, d, d]
        if d:
            before = torch.distributions.MultivariateNormal(loc[:, :d], cov[:, :d, :d])
            log_weights = log_weights + before.log_prob(x[:d])
            gain = torch.linalg.solve(cov[:, :d, :d], cov[:, :d, d])
            mean = mean + (gain * (x[:d] - loc[:, :d])).sum(-1)
            variance = variance - (gain * cov[:, :d, d]).sum(-1)
        cdf = Normal(mean, variance.sqrt()).cdf(x[d])
        result.append((log_weights.softmax(-1) * cdf).sum())
    return torch.stack(result)


def obvious_gradients(x, grad, parameters, to_covariance):
    """Gradients by solving with the Jacobian of the transform, sample by sample."""
    logits, loc, *rest = leaves = [p.detach().clone().requires_grad_() for p in parameters]
    total = 0.0
    for point, g in zip(x, grad, strict=True):
        cov = to_covariance(*rest).expand(*loc.shape, -1)
        jacobian = torch.autograd.functional.jacobian(
            lambda y, cov=cov: uniforms(y, logits.detach(), loc.detach(), cov.detach()), point
        )
        v = torch.linalg.solve(jacobian.T, g)
        total = total - (v * uniforms(point, logits, loc, cov)).sum()
    return torch.autograd.grad(total, leaves)


def gradients(law, parameters, x, grad):
    leaves = [p.detach().clone().requires_grad_() for p in parameters]
    y = law(*leaves)._reparameterize(x)
    assert torch.equal(y, x)
    return torch.autograd.grad((y * grad).sum(), leaves)


@pytest.mark.parametrize("dim", [1, 2, 5])
@pytest.mark.parametrize("kind", ["full", "tied", "low rank", "factors"])
def test_gradients_match_the_transform_written_out(kind, dim):
    if kind == "low rank":
        law, parameters, to_covariance = (
            MixtureOfLowRankPrecisionNormals,
            low_rank(dim=dim),
            covariance,
        )
    elif kind == "factors":
        law, parameters = MixtureOfLowRankNormals, factors(dim=dim)
        to_covariance = lambda d, w: torch.diag_embed(d) + w @ w.mT  # noqa: E731
    else:
        law, parameters = MixtureOfMultivariateNormals, full(dim=dim, tied=kind == "tied")
        to_covariance = lambda tril: tril.tril() @ tril.tril().mT  # noqa: E731
    x = law(*parameters).sample((5,))
    grad = torch.randn_like(x)
    got = gradients(law, parameters, x, grad)
    for a, b in zip(got, obvious_gradients(x, grad, parameters, to_covariance), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-9)


def test_without_correlation_it_is_the_diagonal_mixture():
    logits, loc, scale = torch.randn(3), torch.randn(3, 6), 0.5 + torch.rand(3, 6)
    x = MixtureOfNormals(logits, loc, scale).sample((20,))
    grad = torch.randn_like(x)
    expected = gradients(MixtureOfNormals, (logits, loc, scale), x, grad)
    got = gradients(MixtureOfMultivariateNormals, (logits, loc, torch.diag_embed(scale)), x, grad)
    got = *got[:2], got[2].diagonal(dim1=-2, dim2=-1)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)
    leaves = logits, loc, scale**-2, torch.zeros(3, 6, 0)
    got = gradients(MixtureOfLowRankPrecisionNormals, leaves, x, grad)
    for a, b in zip(got, (*expected[:2], -0.5 * scale**3 * expected[2]), strict=False):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("make", LAWS)
def test_batches_equal_single_mixtures(make):
    law = LAWS[make]
    parameters = make(batch=(2, 3))
    parameters = parameters[0], parameters[1][0], *parameters[2:]  # means of shape (3, K, D)
    x = law(*parameters).sample((4,))
    grad = torch.randn_like(x)
    got = gradients(law, parameters, x, grad)
    expected = [torch.zeros_like(p) for p in parameters]
    for i in range(2):
        for j in range(3):
            single = [p[j] if n == 1 else p[i, j] for n, p in enumerate(parameters)]
            part = gradients(law, single, x[:, i, j], grad[:, i, j])
            for n, (total, g) in enumerate(zip(expected, part, strict=True)):
                total[j if n == 1 else (i, j)] += g
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("make", LAWS)
def test_blocks_do_not_change_the_result(make, monkeypatch):
    law = LAWS[make]
    parameters = make(dim=7)
    x = law(*parameters).sample((50,))
    grad = torch.randn_like(x)
    whole = gradients(law, parameters, x, grad)
    monkeypatch.setattr(implicit_correlated, "BLOCK_NUMBERS", 100)
    monkeypatch.setattr(implicit_correlated, "BLOCK_COLUMNS", 3)
    for a, b in zip(gradients(law, parameters, x, grad), whole, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("make", LAWS)
def test_gradients_of_expectations(make):
    """Of E[x_i x_j], which have a closed form."""
    law = LAWS[make]
    n, leaves = 20_000, [p.requires_grad_() for p in make(dim=3)]
    mixture = law(*leaves)
    weights = torch.randn(3, 3)
    moments = mixture.component_covariance + mixture.loc.unsqueeze(-1) * mixture.loc.unsqueeze(-2)
    exact = ((mixture.logits.exp()[:, None, None] * moments).sum(0) * weights).sum()
    expected = torch.autograd.grad(exact, leaves)
    batches = []
    for _ in range(20):
        x = mixture.rsample((n // 20,))
        value = ((x @ weights) * x).sum(-1).mean()
        batches.append(torch.autograd.grad(value, leaves))
    for parts, b in zip(zip(*batches, strict=True), expected, strict=True):
        parts = torch.stack(parts)
        error = parts.std(0) / 20**0.5
        assert ((parts.mean(0) - b).abs() <= 4.5 * error + 1e-9).all()


def test_float32_gradients_stay_close_to_float64_in_the_tails():
    logits, loc, tril = full(k=2, dim=2)
    x = loc[0] + 7.0 * tril[0] @ torch.ones(2)  # seven deviations out
    x = torch.stack([x, -x]).float().double()
    grad = torch.ones(2, 2)
    parameters = [p.float() for p in (logits, loc, tril)]
    got = gradients(MixtureOfMultivariateNormals, parameters, x.float(), grad.float())
    exact = gradients(MixtureOfMultivariateNormals, [p.double() for p in parameters], x, grad)
    for a, b in zip(got, exact, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-5)
