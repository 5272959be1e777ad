"""Normals with low-rank plus diagonal precision, to full accuracy."""

import math
from fractions import Fraction

import pytest
import torch
from torch.distributions import MultivariateNormal

from pyromix import MixtureOfNormals, Observed, RelaxedMixtureOfNormals
from pyromix.mixtures import (
    LowRankPrecisionNormal,
    MixtureOfLowRankPrecisionNormals,
    MixtureOfMultivariateNormals,
)


def build(dim, rank, batch=(), spread=0.5):
    diag = 10 ** (spread * (2 * torch.rand(*batch, dim) - 1))
    return LowRankPrecisionNormal(torch.randn(*batch, dim), diag, torch.randn(*batch, dim, rank))


def exact_log_prob(x, normal):
    """In rational arithmetic, but for the last logarithm."""

    def exact(t):
        return [[Fraction(v) for v in row] for row in t.tolist()]

    diag, factor = exact(normal.precision_diag[None])[0], exact(normal.precision_factor)
    b = [Fraction(a) - Fraction(m) for a, m in zip(x.tolist(), normal.loc.tolist(), strict=True)]
    dim, rank = len(b), len(factor[0])
    c = [
        [
            Fraction(int(i == j)) + sum(factor[d][i] * factor[d][j] / diag[d] for d in range(dim))
            for j in range(rank)
        ]
        for i in range(rank)
    ]
    determinant = Fraction(1)
    for i in range(rank):  # elimination
        determinant *= c[i][i]
        for j in range(i + 1, rank):
            ratio = c[j][i] / c[i][i]
            c[j] = [p - ratio * q for p, q in zip(c[j], c[i], strict=True)]
    for d in diag:
        determinant *= d
    quadratic = sum(d * v * v for d, v in zip(diag, b, strict=True))
    for r in range(rank):
        quadratic += sum(factor[d][r] * b[d] for d in range(dim)) ** 2
    log_det = math.log(determinant.numerator) - math.log(determinant.denominator)
    return 0.5 * (log_det - float(quadratic) - dim * math.log(2 * math.pi))


@pytest.mark.parametrize(("dim", "rank"), [(1, 0), (1, 1), (3, 2), (16, 8), (64, 0), (64, 8)])
@pytest.mark.parametrize("spread", [0.0, 3.0, 6.0])
def test_log_prob_against_exact_arithmetic(dim, rank, spread):
    normal = build(dim, rank, spread=spread)
    for x in normal.sample((3,)):
        expected = exact_log_prob(x, normal)
        assert math.isclose(normal.log_prob(x).item(), expected, rel_tol=1e-12, abs_tol=1e-12)


@pytest.mark.parametrize("batch", [(), (3,), (3, 2)])
@pytest.mark.parametrize("rank", [0, 1, 5])
def test_matches_the_dense_normal(batch, rank):
    normal = build(4, rank, batch)
    reference = MultivariateNormal(normal.loc, precision_matrix=normal.precision_matrix)
    x = torch.randn(7, *batch, 4)
    torch.testing.assert_close(normal.log_prob(x), reference.log_prob(x))
    torch.testing.assert_close(normal.covariance_matrix, reference.covariance_matrix)
    torch.testing.assert_close(normal.variance, reference.variance)
    torch.testing.assert_close(normal.entropy(), reference.entropy())
    assert normal.rsample((5,)).shape == (5, *batch, 4)


def test_gradients():
    normal = build(3, 2, (2,))
    inputs = normal.sample((2,)), normal.loc, normal.precision_diag, normal.precision_factor
    inputs = [t.clone().requires_grad_() for t in inputs]

    def log_prob(x, *parameters):
        return LowRankPrecisionNormal(*parameters, validate_args=False).log_prob(x)

    def draws(*parameters):
        torch.manual_seed(3)
        return LowRankPrecisionNormal(*parameters, validate_args=False).rsample((4,))

    assert torch.autograd.gradcheck(log_prob, inputs)
    assert torch.autograd.gradcheck(draws, inputs[1:])


@pytest.mark.parametrize(("dim", "rank", "spread"), [(3, 1, 0.3), (8, 2, 1.0), (20, 4, 6.0)])
def test_draws_have_the_covariance(dim, rank, spread):
    normal = build(dim, rank, spread=spread)
    n = 100_000
    tril = torch.linalg.cholesky(normal.precision_matrix)
    z = (normal.sample((n,)) - normal.loc) @ tril  # of a standard normal law
    assert (z.mean(0).abs() < 6 / math.sqrt(n)).all()
    covariance = z.mT @ z / n
    error = (1 + torch.eye(dim)).sqrt() / math.sqrt(n)
    assert ((covariance - torch.eye(dim)).abs() < 6 * error).all()


@pytest.mark.parametrize("spread", [0.5, 3.0, 6.0])
def test_float32_draws_are_stable(spread):
    normal = build(32, 8, spread=spread)
    single = LowRankPrecisionNormal(
        normal.loc.float(), normal.precision_diag.float(), normal.precision_factor.float()
    )
    torch.manual_seed(1)
    x = single.sample((1000,))
    # The same noise in float64 arithmetic.
    torch.manual_seed(1)
    first, second = torch.randn(1000, 40, dtype=torch.float32).double().split([32, 8], -1)
    diag, factor = single.precision_diag.double(), single.precision_factor.double()
    scaled = factor / diag.sqrt().unsqueeze(-1)
    capacitance = torch.eye(8) + scaled.mT @ scaled
    rest = second - first @ scaled
    expected = (first + torch.linalg.solve(capacitance, rest.mT).mT @ scaled.mT) / diag.sqrt()
    error = ((x.double() - single.loc.double() - expected) / normal.variance.sqrt()).abs().max()
    rounding = (single.loc.double().abs() / normal.variance.sqrt()).max() * 1e-7
    assert error < 2e-5 + rounding


def test_marginal_and_condition():
    normal = build(5, 2)
    covariance = normal.covariance_matrix
    marginal = normal.marginal([4, 1])
    torch.testing.assert_close(marginal.covariance_matrix, covariance[[4, 1]][:, [4, 1]])
    value = torch.randn(3, 2)
    with pytest.warns(FutureWarning, match="free"):
        conditional = normal.condition({1: value[:, 0], 4: value[:, 1]})
    o, f = [1, 4], [0, 2, 3]
    gain = covariance[f][:, o] @ torch.linalg.inv(covariance[o][:, o])
    torch.testing.assert_close(conditional.loc, normal.loc[f] + (value - normal.loc[o]) @ gain.mT)
    expected = covariance[f][:, f] - gain @ covariance[o][:, f]
    torch.testing.assert_close(conditional.covariance_matrix, expected.expand(3, 3, 3))


def test_no_square_matrix_is_formed():
    """Sizes at which one would not fit."""
    dim, k = 200_000, 2
    mixture = MixtureOfLowRankPrecisionNormals(
        torch.zeros(k), torch.randn(k, dim), torch.ones(k, dim), torch.randn(k, dim, 2)
    )
    x = mixture.sample((3,))
    assert mixture.log_prob(x).isfinite().all()
    assert mixture.variance.shape == (dim,)
    assert mixture.condition(Observed({0: 1.0})).free().marginal([5, 6]).mean.shape == (2,)


def exact_variance(normal):
    """The diagonal of the inverse precision, by elimination in rational arithmetic."""
    diag, factor = normal.precision_diag.tolist(), normal.precision_factor.tolist()
    dim = len(diag)
    rows = [
        [
            sum(Fraction(a) * Fraction(b) for a, b in zip(factor[i], factor[j], strict=True))
            + (Fraction(diag[i]) if i == j else 0)
            for j in range(dim)
        ]
        + [Fraction(int(i == j)) for j in range(dim)]
        for i in range(dim)
    ]
    for i in range(dim):
        rows[i] = [v / rows[i][i] for v in rows[i]]
        for j in range(dim):
            if j != i:
                rows[j] = [a - rows[j][i] * b for a, b in zip(rows[j], rows[i], strict=True)]
    return torch.tensor([float(rows[i][dim + i]) for i in range(dim)])


@pytest.mark.parametrize("size", [1.0, 1e3, 1e6])
@pytest.mark.parametrize("rank", [0, 1, 2])
def test_variances_where_the_factor_dominates(size, rank):
    diag = torch.tensor([1e-6, 1.0, 1e-3, 1e-6])
    factor = torch.tensor([[1.0, 0.0], [0.5, 1e-3], [0.0, 1.0], [0.0, 0.0]])[:, :rank] * size
    normal = LowRankPrecisionNormal(torch.zeros(4), diag, factor)
    expected = exact_variance(normal)
    assert torch.allclose(normal.variance, expected, rtol=1e-7, atol=0.0)
    mixture = normal._as_mixture()
    assert torch.allclose(mixture.component_covariance[0].diagonal(), expected, rtol=1e-7, atol=0)


@pytest.mark.parametrize(
    ("law", "shapes", "expected"),
    [
        (MixtureOfNormals, {"logits": (4, 3), "loc": (3, 2), "scale": (3, 2)}, ((4,), (2,))),
        (
            MixtureOfMultivariateNormals,
            {"logits": (3,), "loc": (5, 1, 3, 2), "scale_tril": (4, 1, 2, 2)},
            ((5, 4), (2,)),
        ),
        (
            RelaxedMixtureOfNormals,
            {"temperature": (4,), "logits": (3,), "loc": (3, 2), "scale": (3, 2)},
            ((4,), (2,)),
        ),
        (
            LowRankPrecisionNormal,
            {"loc": (4, 3), "precision_diag": (3,), "precision_factor": (3, 2)},
            ((4,), (3,)),
        ),
    ],
)
def test_shapes_are_inferred_from_those_of_parameters(law, shapes, expected):
    assert law.infer_shapes(**shapes) == expected
    made = law(**{name: torch.ones(shape) for name, shape in shapes.items()})
    assert (made.batch_shape, made.event_shape) == expected
