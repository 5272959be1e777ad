"""Mixtures of factor analysers: against PyTorch's dense law, and without any D x D matrix."""

import math
from fractions import Fraction

import pytest
import torch
from torch.distributions import LowRankMultivariateNormal, MultivariateNormal
from torch.utils._python_dispatch import TorchDispatchMode

from pyromix import GaussianMixture, MixtureOfLowRankNormals, Observed, fit_em
from pyromix.mixtures import MixtureOfNormals, finite, low_rank_covariance
from pyromix.numerics import factor_density


def parameters(k=3, dim=6, rank=2, batch=(), strength=1.0, dtype=torch.float64):
    logits, loc = torch.randn(*batch, k), torch.randn(*batch, k, dim)
    diag = 0.3 + torch.rand(*batch, k, dim)
    factor = strength * torch.randn(*batch, k, dim, rank)
    return [t.to(dtype) for t in (logits, loc, diag, factor)]


def build(*args, **options):
    return MixtureOfLowRankNormals(*parameters(*args, **options))


def peer(mixture):
    """PyTorch's mixture of the same components, in float64."""
    loc, diag, factor = (t.double() for t in (mixture.loc, mixture.cov_diag, mixture.cov_factor))
    return LowRankMultivariateNormal(loc, factor, diag)


def peer_log_prob(mixture, x):
    scores = peer(mixture).log_prob(x.double().unsqueeze(-2))
    return (mixture.logits.double() + scores).logsumexp(-1)


class Largest(TorchDispatchMode):
    """Notes how many numbers the largest tensor has that is made, and whether one is D x D."""

    def __init__(self, dim):
        super().__init__()
        self.dim, self.numbers, self.squares = dim, 0, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for t in result if isinstance(result, tuple | list) else [result]:
            if isinstance(t, torch.Tensor):
                self.numbers = max(self.numbers, t.untyped_storage().nbytes() // t.itemsize)
                if tuple(t.shape[-2:]) == (self.dim, self.dim):
                    self.squares.append(function)
        return result


def exact_log_prob(x, loc, diag, factor):
    """Of one component of one factor, in rational arithmetic but for logarithms."""
    b, d, w = ([Fraction(v) for v in t.tolist()] for t in (x - loc, diag, factor[:, 0]))
    m = 1 + sum(wi * wi / di for wi, di in zip(w, d, strict=True))
    pull = sum(wi * bi / di for wi, bi, di in zip(w, b, d, strict=True))
    quadratic = sum(bi * bi / di for bi, di in zip(b, d, strict=True)) - pull * pull / m
    log_det = math.log(m) + diag.log().sum().item()
    return -0.5 * (log_det + float(quadratic) + len(b) * math.log(2 * math.pi))


@pytest.mark.parametrize("strength", [1.0, 1e4])
@pytest.mark.parametrize("noise", [1.0, 1e-8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log_prob_against_exact_arithmetic(strength, noise, dtype):
    """However strong the factor is: b^T d^-1 b and what it explains cancel to many digits."""
    diag = (noise * (0.5 + torch.rand(20))).to(dtype)
    factor = (strength * torch.randn(20, 1)).to(dtype)
    loc = torch.zeros(20, dtype=dtype)
    law = MixtureOfLowRankNormals(torch.zeros(1, dtype=dtype), loc[None], diag[None], factor[None])
    x = law.sample((3,))
    tolerance = 1e-5 if dtype == torch.float32 else 1e-11
    size = strength / noise**0.5  # of numbers x / sqrt(d), whose rounding the law sees
    tolerance *= max(1.0, size * torch.finfo(dtype).eps / tolerance)
    for point, got in zip(x, law.log_prob(x), strict=True):
        expected = exact_log_prob(*(t.double() for t in (point, loc, diag, factor)))
        assert abs(got.item() - expected) < tolerance * max(20.0, abs(expected))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("strength", "distance"), [(1.0, 1.0), (30.0, 1.0), (1.0, 1e3), (1e4, 1e4)]
)
@pytest.mark.parametrize("gaps", [False, True])
def test_many_points_are_as_accurate_as_float64(dtype, strength, distance, gaps):
    """By products where these do, and by differences of all pairs where factors are strong."""
    logits, loc, diag, factor = parameters(8, 40, 3, strength=strength, dtype=dtype)
    law = MixtureOfLowRankNormals(logits, distance * loc, diag, factor)
    x = law.sample((900,))
    if gaps:
        observed = torch.rand(x.shape) < 0.7
        got = law.observed_log_prob(x, observed)
        dense = law.map_tensors(torch.Tensor.double)
        covariance = dense.component_covariance
        expected = []
        for point, seen in zip(x[:20].double(), observed, strict=False):
            at = seen.nonzero().flatten()
            parts = MultivariateNormal(dense.loc[:, at], covariance[:, at][:, :, at])
            expected.append((dense.logits + parts.log_prob(point[at])).logsumexp(-1))
        expected, got = torch.stack(expected), got[:20]
    else:
        got, expected = law.log_prob(x), peer_log_prob(law, x)
    error = (got - expected).abs() / expected.abs().clamp(min=1)
    # The dense laws lose digits in proportion to the covariance's condition number.
    exact = 1e-9 if strength < 1e4 else 1e-6
    assert error.max() < (3e-5 if dtype == torch.float32 else exact)


@pytest.mark.parametrize("gaps", [False, True])
def test_blocks_and_ways_do_not_show(gaps, monkeypatch):
    """Products, differences, blocks of either, and what is computed again for gradients."""
    tensors = [t.requires_grad_() for t in parameters(3, 5, 2)]
    x = torch.randn(60, 5)
    observed = torch.rand(60, 5) < 0.6 if gaps else torch.ones(60, 5, dtype=torch.bool)

    def outcome():
        law = MixtureOfLowRankNormals(*tensors)
        log_prob = law.observed_log_prob(x, observed)
        return [log_prob, *torch.autograd.grad(log_prob.sum(), tensors)]

    whole = outcome()
    for settings in (
        {"DIRECT_SIZE": 0},
        {"DIRECT_SIZE": 0, "BLOCK_POINTS": 7, "CHUNK_NUMBERS": 60},
        {"DIRECT_SIZE": 0, "NEGLIGIBLE_NATS": math.inf, "TOLERANCE": {torch.float64: 0.0}},
        {
            "DIRECT_SIZE": 0,
            "CHUNK_NUMBERS": 60,
            "TOLERANCE": {torch.float64: 0.0},
        },
    ):
        with monkeypatch.context() as patch:
            for name, value in settings.items():
                patch.setattr(factor_density, name, value)
            for a, b in zip(outcome(), whole, strict=True):
                torch.testing.assert_close(a, b)


def test_one_pattern_for_all_points():
    mixture, observed = build(dim=300), torch.arange(300) % 3 > 0
    x = mixture.sample((200,))
    got = mixture.observed_log_prob(x, observed.expand(200, -1))
    kept = observed.nonzero().flatten()
    torch.testing.assert_close(got, mixture.marginal(kept).log_prob(x[:, kept]))


@pytest.mark.parametrize("grouped", [False, True])
def test_draws_have_the_moments_of_the_law(grouped, monkeypatch):
    if grouped:
        monkeypatch.setattr(low_rank_covariance, "GATHERED_NUMBERS", 0)
    mixture = build(k=2, dim=3)
    x = mixture.sample((40_000,))
    for function in (lambda x: x, lambda x: x.unsqueeze(-1) * x.unsqueeze(-2)):
        values = function(x)
        parts = function(mixture.loc)
        if values.dim() == 3:
            parts = parts + mixture.covariance_matrix
        expected = torch.einsum("k,k...->...", mixture.logits.exp(), parts)
        error = values.std(0) / math.sqrt(len(x))
        assert ((values.mean(0) - expected).abs() < 5 * error).all()


@pytest.mark.parametrize("batch", [(), (2,)])
def test_conditionals_against_dense_arithmetic(batch):
    mixture = build(batch=batch)
    given, free = [4, 1], [0, 2, 3, 5]
    value = torch.randn(7, *batch, 2)
    law = mixture.conditional(given, free, value)
    s = mixture.covariance_matrix
    gain = s[..., free, :][..., given] @ torch.linalg.inv(s[..., given, :][..., given])
    shift = (value.unsqueeze(-2) - mixture.loc[..., given]).unsqueeze(-1)
    torch.testing.assert_close(law.loc, mixture.loc[..., free] + (gain @ shift).squeeze(-1))
    left = s[..., free, :][..., free] - gain @ s[..., given, :][..., free]
    torch.testing.assert_close(law.covariance_matrix, left.expand_as(law.covariance_matrix))
    parts = MultivariateNormal(mixture.loc[..., given], s[..., given, :][..., given])
    expected = mixture.logits + parts.log_prob(value.unsqueeze(-2))
    torch.testing.assert_close(law.logits, expected.log_softmax(-1))


def test_laws_given_values_score_many_points():
    """Each with a mean of its own, and covariances that all share."""
    mixture = build(dim=40)
    x = mixture.sample((1500,))
    given, free = list(range(0, 40, 2)), list(range(1, 40, 2))
    law = mixture.conditional(given, free, x[:, given])
    expected = mixture.log_prob(x) - mixture.marginal(given).log_prob(x[:, given])
    torch.testing.assert_close(law.log_prob(x[:, free]), expected)


def test_in_three_thousand_dimensions_no_square_matrix_is_made():
    """Density and its gradient, draws, evidence, gaps, and a step of training by either way."""
    dim, k, rank, n = 3072, 2, 3, 40
    tensors = [t.requires_grad_() for t in parameters(k, dim, rank, dtype=torch.float32)]
    mixture = MixtureOfLowRankNormals(*tensors)
    with Largest(dim) as largest:
        x = mixture.sample((n,))
        mixture.log_prob(x).sum().backward()
        values = {d: x[0, d].item() for d in range(0, dim, 2)}
        law = mixture.condition(Observed(values))
        draws = law.sample((5,))
        law.log_prob(draws)
        law.log_evidence()
        law.free().sample((3,))
        assert law.mean.shape == law.variance.shape == (dim,)
        gaps = x.masked_fill(torch.rand(x.shape) < 0.3, math.nan)
        gaps[:, ::2] = x[:, ::2]
        mixture.observed_log_prob(gaps, ~gaps.isnan())
        filled = mixture.impute(gaps[:3])
        for data in (x, gaps):
            model = GaussianMixture(dim, k, "low_rank", rank=rank, missing="marginalize").float()
            fit_em(model, data, steps=2, seed=0, progress_bar=False)
            model.log_prob(data).sum().backward()
        assert not largest.squares
        assert largest.numbers < 4 * k * n * dim  # a tenth of a square matrix
        mixture.rsample_weighted(4)[0].sum().backward()  # the sequence has tables of its own
    assert not largest.squares
    assert filled.isfinite().all()
    assert torch.equal(draws[:, ::2], x[0, ::2].expand(5, -1))


def test_imputed_rows_do_not_depend_on_each_other(monkeypatch):
    mixture = build()
    x = mixture.sample((9,))
    x[:5, 1:4], x[5:7], x[7:, 0] = math.nan, math.nan, math.nan
    whole = mixture.impute(x)
    monkeypatch.setattr(finite, "IMPUTED_NUMBERS", 1)
    torch.testing.assert_close(mixture.impute(x), whole)
    assert mixture.impute(x, 3).shape == (3, 9, 6)
    torch.testing.assert_close(whole[5], mixture.mean)
    given = mixture.condition(Observed({1 + d: x[7, 1 + d].item() for d in range(5)}))
    torch.testing.assert_close(whole[7], given.mean)


def test_rank_of_all_dimensions_and_none():
    x = torch.randn(50, 4)
    for rank in (0, 4, 7):
        mixture = build(dim=4, rank=rank)
        dense = MultivariateNormal(mixture.loc, mixture.covariance_matrix)
        expected = (mixture.logits + dense.log_prob(x.unsqueeze(-2))).logsumexp(-1)
        torch.testing.assert_close(mixture.log_prob(x), expected)
        model = GaussianMixture(4, 2, "low_rank", rank=rank)
        history = fit_em(model, x, seed=0, progress_bar=False)
        assert (torch.tensor(history.losses).diff() <= 1e-9).all()
    diagonal = MixtureOfNormals(*parameters(dim=4)[:3])
    none = MixtureOfLowRankNormals(
        diagonal.logits, diagonal.loc, diagonal.scale**2, torch.zeros(3, 4, 0)
    )
    torch.testing.assert_close(none.log_prob(x), diagonal.log_prob(x))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"diag": torch.zeros(3, 6)}, "positive, finite cov_diag, got values from 0.0"),
        ({"diag": torch.full((3, 6), math.nan)}, "positive, finite cov_diag"),
        ({"diag": torch.ones(3, 5)}, r"cov_diag of shape \(\*B, K, D\)"),
        ({"factor": torch.ones(3, 6)}, r"cov_factor of shape \(\*B, K, D, r\)"),
        ({"factor": torch.full((3, 6, 2), math.inf)}, "finite values of cov_factor"),
        ({"factor": torch.ones(3, 6, 2, dtype=torch.float64)}, "cov_factor"),
        ({"factor": torch.ones(4, 3, 6, 2), "loc": torch.ones(2, 3, 6)}, "broadcast"),
        ({"logits": torch.full((3,), -math.inf)}, "at least one logit"),
    ],
)
def test_bad_input(change, message):
    names = "logits", "loc", "diag", "factor"
    arguments = dict(zip(names, parameters(dtype=torch.float32), strict=True)) | change
    with pytest.raises(ValueError, match=message):
        MixtureOfLowRankNormals(*arguments.values())
