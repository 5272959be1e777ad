"""Mixtures of Student-t laws, against SciPy, quadrature and conditionals written out."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.integrate import quad

from pyromix import (
    AnyOf,
    Box,
    GaussianPrior,
    LinearEquality,
    LinearInequality,
    MixtureOfMultivariateNormals,
    MixtureOfNormals,
    MixtureOfStudentT,
    Observed,
    load_law,
    save,
)

DF = (2.5, 7.0, math.inf)


def student(kind="full", batch=(), k=3, dim=3, df=DF, seed=0):
    torch.manual_seed(seed)
    logits, loc = torch.randn(*batch, k), torch.randn(*batch, k, dim)
    df = torch.tensor(df).expand(k)
    if kind == "diagonal":
        return MixtureOfStudentT(logits, df, loc, 0.5 + torch.rand(*batch, k, dim))
    tril = 0.5 * torch.randn(*batch, 1 if kind == "tied" else k, dim, dim).tril(-1)
    tril = tril + torch.diag_embed(0.5 + torch.rand(*tril.shape[:-1]))
    return MixtureOfStudentT(logits, df, loc, scale_tril=tril)


KINDS = ("diagonal", "full", "tied")
kinds = pytest.mark.parametrize("kind", KINDS)


def scipy_log_prob(law, x):
    """Log-density of a mixture without batch at points (N, D), by SciPy."""
    total = 0.0
    for weight, df, loc, tril in zip(
        law.logits.exp(), law.df, law.loc, law.scale_tril, strict=True
    ):
        name = "multivariate_t" if df.isfinite() else "multivariate_normal"
        options = {"df": df.item()} if df.isfinite() else {}
        density = getattr(stats, name)(loc.numpy(), (tril @ tril.T).numpy(), **options).pdf
        total = total + weight.item() * np.atleast_1d(density(x.numpy()))
    return torch.from_numpy(np.log(total))


@kinds
def test_density(kind):
    law = student(kind)
    x = law.sample((200,))
    torch.testing.assert_close(law.log_prob(x), scipy_log_prob(law, x))
    single = law.map_tensors(torch.Tensor.float)
    torch.testing.assert_close(
        single.log_prob(x.float()).double(), law.log_prob(x), rtol=3e-6, atol=3e-6
    )
    # Squares of these overflow in float32.
    far = torch.tensor([[1e30, 0.0, 0.0], [0.0, -1e25, 1e20]])
    got = single.log_prob(far.float()).double()
    torch.testing.assert_close(got, law.log_prob(far), rtol=1e-5, atol=0.0)
    assert (got > -600).all()


@kinds
def test_many_points_and_batches(kind):
    law = student(kind, dim=6)
    x = law.sample((9000,))
    torch.testing.assert_close(law.log_prob(x)[::1000], law.log_prob(x[::1000]))
    batch = student(kind, batch=(2, 1))
    x = batch.sample((4, 5)).expand(4, 5, 2, 1, 3)
    scores = batch.log_prob(x)
    for i in range(2):
        tensors = {name: getattr(batch, name)[i, 0] for name in ("logits", "df", "loc")}
        one = MixtureOfStudentT(**tensors, scale_tril=batch.scale_tril[i, 0])
        torch.testing.assert_close(scores[:, :, i, 0], one.log_prob(x[:, :, i, 0]))


@pytest.mark.parametrize("df", [1e8, 1e16, math.inf])
@kinds
def test_many_degrees_of_freedom_are_the_normal(kind, df):
    law = student(kind, df=(df,) * 3)
    if kind == "diagonal":
        normal = MixtureOfNormals(law.logits, law.loc, law.scale)
    else:
        normal = MixtureOfMultivariateNormals(law.logits, law.loc, law.scale_tril)
    x = normal.sample((100,))
    torch.testing.assert_close(law.log_prob(x), normal.log_prob(x), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(law.variance, normal.variance, rtol=1e-6, atol=0.0)
    got = law.condition(Observed({1: 0.5})).free().variance
    expected = normal.condition(Observed({1: 0.5})).free().variance
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=0.0)


def test_moments_and_where_there_are_none():
    law = student("diagonal", dim=1, df=(2.5, 7.0, 30.0))

    def moment(function):
        def integrand(x):
            return function(x) * law.log_prob(torch.tensor([x])).exp().item()

        parts = ((-math.inf, -5.0), (-5.0, 5.0), (5.0, math.inf))
        return sum(quad(integrand, *part, limit=400)[0] for part in parts)

    mean = moment(lambda x: x)
    assert abs(moment(lambda x: 1.0) - 1) < 1e-7
    assert abs(mean - law.mean.item()) < 1e-5
    variance = student("diagonal", dim=1, df=(4.5, 7.0, 30.0))
    law = variance
    mean = law.mean.item()
    assert abs(moment(lambda x: (x - mean) ** 2) / law.variance.item() - 1) < 1e-4
    low = student(df=(1.5, 7.0, 3.0))
    assert low.mean.isfinite().all()
    assert (low.variance == math.inf).all()
    lower = student(df=(1.0, 7.0, 3.0))
    assert lower.mean.isnan().all()
    assert lower.variance.isnan().all()
    without = MixtureOfStudentT(
        torch.tensor([-math.inf, 0.0, 0.0]), lower.df, lower.loc, scale_tril=lower.scale_tril
    )
    assert without.mean.isfinite().all()
    assert without.variance.isfinite().all()
    table = torch.full((2, 3), math.nan)
    assert torch.equal(lower.impute(table)[0], lower.loc.mT @ lower.logits.exp())


@kinds
def test_conditionals_are_joint_over_marginal(kind):
    law = student(kind, dim=4)
    x = law.sample((50,))
    value = Observed({1: x[:, 1], 3: x[:, 3]})
    given = law.condition(value)
    expected = law.log_prob(x) - law.marginal([1, 3]).log_prob(x[:, [1, 3]])
    torch.testing.assert_close(given.log_prob(x), expected)
    torch.testing.assert_close(given.free().log_prob(x[:, [0, 2]]), expected)
    torch.testing.assert_close(
        given.log_evidence()[0], law.marginal([1, 3]).log_prob(x[:, [1, 3]])
    )
    torch.testing.assert_close(given.free().mean, given.mean[:, [0, 2]])
    torch.testing.assert_close(given.free().variance, given.variance[:, [0, 2]])
    assert torch.equal(given.free().df[0], law.df + 2)
    observed = torch.rand(50, 4) < 0.5
    expected = torch.stack(
        [
            law.marginal(seen.nonzero().flatten()).log_prob(point[seen])
            if seen.any()
            else torch.zeros(())
            for point, seen in zip(x, observed, strict=True)
        ]
    )
    torch.testing.assert_close(law.observed_log_prob(x, observed), expected)


@pytest.mark.parametrize("kind", ["diagonal", "full"])
def test_draws(kind):
    law = student(kind, df=(4.0, 9.0, math.inf))
    draws = law.sample((40_000,))
    for column in range(3):
        levels = torch.tensor([0.01, 0.3, 0.5, 0.9, 0.999])
        quantiles = law.quantile(column, levels)
        below = (draws[:, column].unsqueeze(-1) <= quantiles).double().mean(0)
        error = (levels * (1 - levels) / len(draws)).sqrt()
        assert ((below - levels).abs() < 4.5 * error).all()
    x, log_weight = law.rsample_weighted(30_000)
    assert abs(log_weight.exp().sum().item() - 1) < 1e-9
    error = (law.variance / 30_000).sqrt()
    assert ((log_weight.exp().unsqueeze(-1) * x).sum(0) - law.mean).abs().lt(5 * error).all()


@pytest.mark.parametrize("kind", ["diagonal", "full"])
def test_gradients_through_draws(kind):
    """Implicit differentiation, by finite differences of uniforms that SciPy gives."""
    law = student(kind, df=(2.5, 7.0, 1.2))
    scale = law.scale if kind == "diagonal" else law.scale_tril
    parameters = [t.clone().requires_grad_() for t in (law.logits, law.df, law.loc, scale)]
    name = "scale" if kind == "diagonal" else "scale_tril"
    x = MixtureOfStudentT(*parameters[:3], **{name: parameters[3]}).rsample((1,))
    grad = torch.randn(1, 3)
    got = torch.autograd.grad(x, parameters, grad)

    def uniforms(x, logits, df, loc, scale):
        matrix = np.stack([np.diag(s) for s in scale]) if kind == "diagonal" else scale
        matrix = matrix @ matrix.transpose(0, 2, 1)
        result = []
        for d in range(3):
            log_weight, mass = logits.copy(), []
            for k, (m, s) in enumerate(zip(loc, matrix, strict=True)):
                gain, q = np.zeros(d), 0.0
                if d:
                    before = stats.multivariate_t(m[:d], s[:d, :d], df[k])
                    log_weight[k] += before.logpdf(x[:d])
                    gain = np.linalg.solve(s[:d, :d], s[:d, d])
                    q = (x[:d] - m[:d]) @ np.linalg.solve(s[:d, :d], x[:d] - m[:d])
                mean = m[d] + gain @ (x[:d] - m[:d])
                square = (s[d, d] - gain @ s[:d, d]) * (df[k] + q) / (df[k] + d)
                mass.append(stats.t.cdf((x[d] - mean) / math.sqrt(square), df[k] + d))
            weight = np.exp(log_weight - log_weight.max())
            result.append(weight @ np.array(mass) / weight.sum())
        return np.array(result)

    def slopes(values, place):
        rows, h = [], 1e-5
        for i in np.ndindex(values[place].shape):
            at = []
            for step in (h, -h, 2 * h, -2 * h):
                moved = [v.copy() for v in values]
                moved[place][i] += step
                at.append(uniforms(*moved))
            rows.append((8 * (at[0] - at[1]) - (at[2] - at[3])) / (12 * h))
        return np.array(rows)

    values = [x.detach().numpy()[0], *(p.detach().numpy() for p in parameters)]
    v = np.linalg.solve(slopes(values, 0), grad.numpy()[0])
    for place, gradient in enumerate(got, 1):
        expected = torch.from_numpy(-slopes(values, place) @ v).reshape(gradient.shape)
        if place == 4 and kind == "full":
            expected = expected.tril()
        torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-7)


@kinds
def test_equations(kind):
    law = student(kind)
    a = torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.0, -1.0]])
    given = law.condition(LinearEquality(a, -torch.tensor([1.0, 0.5])))
    # The third direction, and the two that the equations fix, as columns of their own.
    basis = torch.linalg.qr(a.T, mode="complete").Q[:, 2:]
    moved = torch.cat([a, basis.T])
    tril = torch.linalg.cholesky((moved @ law.scale_tril) @ (moved @ law.scale_tril).mT)
    turned = MixtureOfStudentT(law.logits, law.df, law.loc @ moved.T, scale_tril=tril)
    expected = turned.condition(Observed({0: 1.0, 1: 0.5}))
    torch.testing.assert_close(given.mean @ moved.T, expected.mean)
    x = given.sample((20_000,))
    torch.testing.assert_close(x @ a.T, torch.tensor([1.0, 0.5]).expand(20_000, 2))
    torch.testing.assert_close(given.log_prob(x[:5]), expected.free().log_prob(x[:5] @ basis))
    torch.testing.assert_close(given.quantile(0, 0.9), x[:, 0].quantile(0.9), rtol=0.1, atol=0.03)
    torch.testing.assert_close(given.log_evidence()[0], expected.log_evidence()[0])
    torch.testing.assert_close(given.marginal([0]).mean, given.mean[:1])
    torch.testing.assert_close(given.marginal([0]).variance, given.variance[:1])


def test_inequalities_by_rejection():
    law = student(dim=2)
    for evidence, inside in (
        ((Box(-1.0, 1.0),), lambda x: (x.abs() <= 1).all(-1)),
        ((LinearInequality(torch.tensor([1.0, 1.0]), -0.5),), lambda x: x.sum(-1) >= 0.5),
        (
            (AnyOf(Box(high=-1.0), Box(low=1.0)),),
            lambda x: (x <= -1).all(-1) | (x >= 1).all(-1),
        ),
    ):
        given = law.condition(*evidence)
        draws = given.sample((500,))
        assert inside(draws).all()
        log_z, error = given.log_evidence()
        share = inside(law.sample((40_000,))).double().mean()
        spread = ((1 - share) / share / 40_000).sqrt()
        assert abs(log_z - share.log()) < 5 * (error.square() + spread.square()).sqrt() + 1e-3
        expected = law.log_prob(draws) - log_z
        torch.testing.assert_close(given.log_prob(draws), expected)
    one = law.condition(Observed({0: 0.3}), Box(-0.5, 0.5))
    assert (one.sample((100,))[:, 1].abs() <= 0.5).all()


def test_mode_is_a_peak():
    for law in (student(dim=2), student("diagonal", dim=2, df=(0.7, 1.0, 3.0))):
        grid = torch.linspace(-4, 4, 201)
        points = torch.cartesian_prod(grid, grid)
        assert law.log_prob(law.mode) >= law.log_prob(points).max() - 1e-9


def test_files_and_copies(tmp_path):
    for kind in KINDS:
        law = student(kind).condition(Observed({0: 0.5}))
        save(law, tmp_path / "law.safetensors")
        again = load_law(tmp_path / "law.safetensors")
        x = law.sample((5,))
        assert torch.equal(again.log_prob(x), law.log_prob(x))


ones, zeros = torch.ones, torch.zeros


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((zeros(3), zeros(3), zeros(3, 2), ones(3, 2)), "positive degrees of freedom df"),
        ((zeros(3), -ones(3), zeros(3, 2), ones(3, 2)), "positive degrees of freedom df"),
        ((zeros(3), ones(3) * math.nan, zeros(3, 2), ones(3, 2)), "positive degrees of freedom"),
        ((zeros(3), ones(2), zeros(3, 2), ones(3, 2)), "one for every component"),
        ((zeros(3), ones(()), zeros(3, 2), ones(3, 2)), "one for every component"),
        ((zeros(3), ones(3).half(), zeros(3, 2), ones(3, 2)), "df to have dtype"),
        ((zeros(3), 4.0, zeros(3, 2), ones(3, 2)), "df to be a torch.Tensor"),
        ((zeros(0), zeros(0), zeros(0, 2), zeros(0, 2)), "at least one component"),
        ((zeros(3), ones(3), zeros(3, 2)), "got neither"),
        ((zeros(3), ones(3), zeros(3, 2), zeros(3, 2)), "positive, finite scales"),
        ((zeros(3), ones(3), zeros(3, 2), ones(2)), "scale of shape"),
        ((zeros(3), ones(3), zeros(3, 2) / 0, ones(3, 2)), "finite values of loc"),
    ],
)
def test_bad_parameters(arguments, message):
    with pytest.raises(ValueError, match=message):
        MixtureOfStudentT(*arguments)


def test_bad_scale_factors_and_evidence():
    parameters = zeros(3), ones(3), zeros(3, 2)
    with pytest.raises(ValueError, match="got both"):
        MixtureOfStudentT(*parameters, ones(3, 2), scale_tril=torch.eye(2).expand(3, 2, 2))
    with pytest.raises(ValueError, match="scale_tril of shape"):
        MixtureOfStudentT(*parameters, scale_tril=torch.eye(2).expand(2, 2, 2))
    with pytest.raises(ValueError, match="positive diagonal"):
        MixtureOfStudentT(*parameters, scale_tril=zeros(1, 2, 2))
    law = MixtureOfStudentT(*parameters, ones(3, 2))
    with pytest.raises(NotImplementedError, match="noisy observation"):
        law.condition(GaussianPrior(zeros(2), 1.0))
    with pytest.raises(NotImplementedError, match="rejection"):
        law.condition(Box(1e6, 1e6 + 1.0))
