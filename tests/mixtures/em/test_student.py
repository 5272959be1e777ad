"""Mixtures with heavy tails: sums of their E-step, their fits, and what outliers do to these."""

import math

import pytest
import torch
from scipy.optimize import minimize_scalar

from pyromix import GaussianMixture, MixtureOfStudentT, Observed, fit, fit_em, load, save
from pyromix.mixtures.em import products
from pyromix.mixtures.em import student as by_student
from pyromix.mixtures.em.rows import Rows
from pyromix.mixtures.em.student import StudentExpectation
from pyromix.mixtures.tails import StudentTails

COVARIANCES = ("diagonal", "spherical", "shared", "tied", "full")
every_covariance = pytest.mark.parametrize("covariance", COVARIANCES)


def make(covariance, dim=4, k=3, seed=0, far=0.0, **options):
    torch.manual_seed(seed)
    model = GaussianMixture(dim, k, covariance, tails="student", missing="marginalize", **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.7 * torch.randn_like(parameter))
        model.loc.add_(far)
    return model.requires_grad_(False)


def with_gaps(x, share=0.3):
    generator = torch.Generator().manual_seed(1)
    return x.masked_fill(torch.rand(x.shape, generator=generator) < share, math.nan)


def groups(n=600, seed=0):
    """Three groups of normals in the plane, and as many points to score."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(3, (2 * n,), generator=generator)
    loc = torch.tensor([[-4.0, 0.0], [4.0, 0.0], [0.0, 5.0]])
    noise = torch.randn(2 * n, 2, generator=generator) * torch.tensor([1.0, 0.5])
    return (loc[label] + noise).split(n)


def reference(model, x):
    """Log-likelihood and sums around the origin, of points and components in turn."""
    law = model.law
    k, dim = law.loc.shape
    weight, mass, log_factor = torch.zeros(3, k)
    first, second, log_prob = torch.zeros(k, dim), torch.zeros(k, dim, dim), 0.0
    for point in x:
        at, out = (~point.isnan()).nonzero().flatten(), point.isnan().nonzero().flatten()
        scores, parts = [], []
        for j in range(k):
            m, df = law.loc[j], law.df[j]
            s = law.scale_tril[j] @ law.scale_tril[j].T
            own = s[at][:, at]
            gain = s[out][:, at] @ torch.linalg.inv(own)
            mean, covariance = point.clone(), torch.zeros(dim, dim)
            mean[out] = m[out] + gain @ (point[at] - m[at])
            grid = torch.meshgrid(out, out, indexing="ij")
            covariance[grid] = s[out][:, out] - gain @ s[at][:, out]
            q = (point[at] - m[at]) @ torch.linalg.solve(own, point[at] - m[at])
            half = 0.5 * (df + len(at))
            scores.append(
                law.logits[j]
                + torch.lgamma(half)
                - torch.lgamma(0.5 * df)
                - 0.5 * len(at) * (df * math.pi).log()
                - 0.5 * torch.logdet(own)
                - half * torch.log1p(q / df)
            )
            factor = 2 * half / (df + q)
            parts.append((factor, half.digamma() - (0.5 * (df + q)).log(), mean, covariance))
        scores = torch.stack(scores)
        log_prob = log_prob + scores.logsumexp(0)
        for j, r in enumerate(scores.softmax(0)):
            factor, log_g, mean, covariance = parts[j]
            weight[j] += r
            mass[j] += r * factor
            log_factor[j] += r * log_g
            first[j] += r * factor * mean
            second[j] += r * (factor * torch.outer(mean, mean) + covariance)
    if not model.structure.full_moments:
        second = second.diagonal(dim1=-2, dim2=-1)
    return log_prob, weight, mass, log_factor, first, model.structure.pool(second)


@pytest.mark.parametrize("covariance", [*COVARIANCES, "VEI", "VVE"])
@pytest.mark.parametrize("way", ["products", "differences", "gaps", "patterns"])
def test_sums(covariance, way, monkeypatch):
    model = make(covariance)
    torch.manual_seed(2)
    x = model.sample((12,))
    if way in ("gaps", "patterns"):
        x = with_gaps(x)
        x[3] = math.nan
    if way == "differences":
        monkeypatch.setattr(products, "NEAR", dict.fromkeys(products.NEAR, -1.0))
    if way == "patterns":
        monkeypatch.setattr(by_student, "precision_of", lambda law: None)
    expectation = StudentExpectation(model.structure, Rows.of(x))
    for statistics in (expectation.around_origin(model.law), expectation(model.law)):
        mass, c = statistics.mass, statistics.reference
        first = statistics.first + mass.unsqueeze(-1) * c
        mean = statistics.first / mass.unsqueeze(-1)
        outer = model.structure.outer
        second = statistics.second - outer(mass, mean) + outer(mass, mean + c)
        got = (statistics.log_prob, statistics.weight, mass, statistics.log_factor, first, second)
        for part, expected in zip(got, reference(model, x), strict=True):
            torch.testing.assert_close(part, expected, rtol=1e-8, atol=1e-8)


@every_covariance
@pytest.mark.parametrize("gaps", [False, True])
def test_the_likelihood_never_falls(covariance, gaps):
    torch.manual_seed(0)
    x = make(covariance, dim=3, k=2, seed=3).sample((150,))
    x = with_gaps(x, 0.2) if gaps else x
    model = GaussianMixture(3, 2, covariance, tails="student", missing="marginalize")
    history = fit_em(model, x, steps=60, tolerance=1e-9, seed=0, progress_bar=False)
    assert (torch.tensor(history.losses).diff() <= 1e-9).all()
    assert -model.log_prob(x).mean().item() <= history.losses[-1] + 1e-9


@pytest.mark.filterwarnings("ignore:Every variance:UserWarning")
@pytest.mark.parametrize("covariance", ["diagonal", "full", "tied"])
def test_the_likelihood_rises_at_the_floor(covariance):
    torch.manual_seed(0)
    x = 0.3 * torch.randn(100, 2) / torch.rand(100, 1)
    options = {"variance_floor": 0.3, "standardize": False}
    model = GaussianMixture(2, 2, covariance, tails="student", **options)
    history = fit_em(model, x, steps=60, tolerance=1e-9, seed=0, progress_bar=False)
    assert len(history.losses) > 10
    assert (torch.tensor(history.losses).diff() <= 1e-9).all()
    assert (model.scale.square() >= 0.3).all()


@pytest.mark.parametrize("df", [None, "shared", 3.0])
def test_degrees_of_freedom(df):
    truth = MixtureOfStudentT(
        torch.zeros(2), torch.tensor([3.0, 3.0]), torch.tensor([[-8.0], [8.0]]), torch.ones(2, 1)
    )
    torch.manual_seed(0)
    x = truth.sample((8000,))
    model = GaussianMixture(1, 2, tails="student", df=df)
    fit_em(model, x, tolerance=1e-7, seed=0, progress_bar=False)
    grads = torch.autograd.grad(model.log_prob(x).mean(), list(model.parameters()))
    assert max(g.abs().max() for g in grads) < 1e-2
    found = model.law.df
    assert (found - 3).abs().max() < 0.5
    assert (df is None) == (found[0] != found[1]).item()
    assert model.num_free_parameters == 1 + 2 + 2 + {None: 2, "shared": 1, 3.0: 0}[df]
    # At the best of the likelihood, as it is along the line of df alone.
    if df == "shared":
        law = model.law

        def loss(value):
            moved = MixtureOfStudentT(
                law.logits, torch.full((2,), value), law.loc, law.scale, validate_args=False
            )
            return -moved.log_prob(x).mean().item()

        best = minimize_scalar(loss, bounds=(1.0, 10.0), method="bounded")
        assert abs(best.x - found[0].item()) < 0.05


def test_estimate_of_degrees_of_freedom_is_the_best():
    weight, mass = torch.tensor([10.0, 20.0]), torch.tensor([11.0, 15.0])
    log_factor, shrink = torch.tensor([-4.0, -8.0]), torch.tensor([1.1, 0.8])

    def expected(df, j):
        a = 0.5 * df
        value = weight[j] * (a * a.log() - torch.lgamma(a) - a * shrink[j].log())
        return value + (a - 1) * log_factor[j] - a * mass[j] / shrink[j]

    tails = StudentTails(2, None)
    found = tails.floored(tails.estimate(weight, mass, log_factor, shrink)["raw_df"])
    for j in range(2):
        best = minimize_scalar(
            lambda df, j=j: -expected(torch.tensor(df), j).item(), bounds=(0.01, 100.0)
        )
        assert abs(best.x - found[j].item()) < 1e-3


@every_covariance
def test_one_value_of_1e8_ruins_no_fit(covariance):
    x, held_out = groups()
    clean = GaussianMixture(2, 3, covariance)
    fit_em(clean, x, seed=0, progress_bar=False)
    x = x.clone()
    x[7, 1] = 1e8
    model = GaussianMixture(2, 3, covariance, tails="student")
    fit_em(model, x, seed=0, progress_bar=False)
    assert model.log_prob(held_out).mean() > clean.log_prob(held_out).mean() - 0.1
    single = GaussianMixture(2, 3, covariance, tails="student").float()
    fit_em(single, x.float(), seed=0, progress_bar=False)
    got = single.log_prob(held_out.float()).double().mean()
    torch.testing.assert_close(got, model.log_prob(held_out).mean(), rtol=0.0, atol=1e-3)


@pytest.mark.parametrize("far", [10.0, 50.0, 1e4])
def test_gross_outliers_cost_little(far):
    x, held_out = groups()
    spoilt = x.clone()
    torch.manual_seed(1)
    spoilt[:30] = far * (2 * torch.rand(30, 2) - 1)  # 5%
    scores = []
    for data in (x, spoilt):
        model = GaussianMixture(2, 3, "full", tails="student", df=5.0)
        fit_em(model, data, seed=0, progress_bar=False)
        scores.append(model.log_prob(held_out).mean().item())
    assert scores[1] > scores[0] - 0.05
    # Those of normals are lost.
    normal = GaussianMixture(2, 3, "full")
    fit_em(normal, spoilt, seed=0, progress_bar=False)
    assert normal.log_prob(held_out).mean() < scores[1] - 0.2


def test_columns_of_cauchy():
    x, held_out = groups()
    torch.manual_seed(1)
    heavy = [torch.randn(600, 1) / torch.randn(600, 1) for _ in range(2)]
    x, held_out = torch.cat([x, heavy[0]], -1), torch.cat([held_out, heavy[1]], -1)
    model = GaussianMixture(3, 3, "full", tails="student")
    fit_em(model, x, seed=0, progress_bar=False)
    centres = model.law.loc.detach()[:, :2]
    wanted = torch.tensor([[-4.0, 0.0], [4.0, 0.0], [0.0, 5.0]])
    assert torch.cdist(wanted, centres).amin(1).max() < 0.3
    assert model.law.loc[:, 2].abs().max() < 0.5
    normal = GaussianMixture(3, 3, "full")
    fit_em(normal, x, seed=0, progress_bar=False)
    assert model.log_prob(held_out).mean() > normal.log_prob(held_out).mean() + 1
    by_gradients = GaussianMixture(3, 3, "full", tails="student")
    fit(by_gradients, x, steps=60, lr=0.05, seed=0, progress_bar=False)
    assert by_gradients.log_prob(held_out).mean() > normal.log_prob(held_out).mean() + 0.5


@pytest.mark.filterwarnings("ignore:Every variance:UserWarning")
def test_minibatches_and_more_components_than_points():
    x, held_out = groups()
    whole, parts = (GaussianMixture(2, 3, "full", tails="student") for _ in range(2))
    fit_em(whole, x, seed=0, progress_bar=False)
    fit_em(parts, x, batch_size=100, steps=200, seed=0, progress_bar=False)
    difference = whole.log_prob(held_out).mean() - parts.log_prob(held_out).mean()
    assert abs(difference.item()) < 0.05
    many = GaussianMixture(2, 8, "diagonal", tails="student")
    fit_em(many, x[:5], seed=0, progress_bar=False)
    assert many.log_prob(x[:5]).isfinite().all()


def test_queries_and_files(tmp_path):
    model = make("full", df="shared")
    x = with_gaps(model.sample((20,)))
    filled = model.impute(x)
    assert not filled.isnan().any()
    seen = ~x.isnan()
    assert torch.equal(filled[seen], x[seen])
    law = model.condition(Observed({0: 0.5}))
    assert torch.equal(law.free().df, model.law.df + 1)
    assert model.marginal([1]).event_shape == (1,)
    assert math.isfinite(model.bic(x))
    save(model, tmp_path / "model.safetensors")
    again = load(tmp_path / "model.safetensors")
    assert again.df == "shared"
    assert again.tails == "student"
    torch.testing.assert_close(again.log_prob(x), model.log_prob(x))
    plain = GaussianMixture(2, 3)
    assert "tails" not in plain.config()
    assert set(plain.state_dict()) == {
        *("initialized", "logits", "loc", "raw_scale", "units.loc", "units.scale")
    }


def test_units_are_those_of_the_bulk():
    x, held_out = groups()
    x = x.clone()
    x[0] = 1e9
    model = GaussianMixture(2, 3, tails="student", standardize=True)
    fit_em(model, 1e4 * x + 7, seed=0, progress_bar=False)
    assert (model.units.scale / 1e4).max() < 6
    plain = GaussianMixture(2, 3, tails="student")
    fit_em(plain, x, seed=0, progress_bar=False)
    moved = model.log_prob(1e4 * held_out + 7).mean() + 2 * math.log(1e4)
    assert abs(moved - plain.log_prob(held_out).mean()) < 0.02


def test_a_network_gives_tails_as_well():
    torch.manual_seed(0)
    context = torch.rand(400, 1)
    df = 1.0 + 30 * (context > 0.5)
    y = torch.randn(400, 1) / (torch._standard_gamma(0.5 * df) / (0.5 * df)).sqrt()
    model = GaussianMixture(1, 1, tails="student", context_dim=1, hidden_dims=(16,))
    fit(model, (y, context), steps=100, lr=0.05, seed=0, progress_bar=False)
    low, high = (model.condition(torch.tensor([c])).df.item() for c in (0.1, 0.9))
    assert low < 2.5 < high


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tails": "cauchy"}, "tails"),
        ({"df": 3.0}, "tails='student' alone"),
        ({"tails": "student", "df": 0.0}, "positive and finite degrees of freedom"),
        ({"tails": "student", "df": math.inf}, "positive and finite degrees of freedom"),
        ({"tails": "student", "df": "some"}, "positive and finite degrees of freedom"),
        ({"tails": "student", "covariance": "low_rank_precision"}, "low_rank_precision"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        GaussianMixture(2, 3, **options)
