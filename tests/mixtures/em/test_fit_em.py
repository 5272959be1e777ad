"""Expectation maximisation: monotone, stationary where it ends, and fit for gaps in the data."""

import math
import warnings

import pytest
import torch

from pyromix import GaussianMixture, MixtureOfNormals, fit, fit_em
from pyromix.mixtures.covariance import STRUCTURES

DECOMPOSED = ["EII", "VEI", "EVI", "VEE", "EVE", "VVE", "EEV", "VEV", "EVV"]
every_covariance = pytest.mark.parametrize("covariance", STRUCTURES)


def data(n=400, dim=4, seed=0):
    """Three correlated groups."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    label = torch.arange(n) % 3
    loc, factor = 3 * randn(3, dim), randn(3, dim, dim) / 2
    return loc[label] + (factor[label] @ randn(n, dim, 1)).squeeze(-1) + 0.4 * randn(n, dim)


def with_gaps(x, share=0.3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return x.masked_fill(torch.rand(x.shape, generator=generator) < share, math.nan)


def train(covariance, x, k=3, **kwargs):
    options = {"rank": 2, "variance_floor": 1e-4} if "rank" in covariance else {}
    for name in ("variance_floor", "standardize"):
        if name in kwargs:
            options[name] = kwargs.pop(name)
    missing = "marginalize" if x.isnan().any() else "error"
    model = GaussianMixture(x.shape[-1], k, covariance, missing=missing, **options)
    return model, fit_em(model, x, **{"seed": 0, "progress_bar": False, **kwargs})


@pytest.mark.parametrize("covariance", [*STRUCTURES, *DECOMPOSED])
@pytest.mark.parametrize("gaps", [False, True])
def test_the_likelihood_never_falls_and_ends_stationary(covariance, gaps):
    x = with_gaps(data()) if gaps else data()
    # Factors explain more and more of a coordinate, ever more slowly.
    tolerance = 1e-6 if covariance == "low_rank" else 1e-10
    model, history = train(covariance, x, steps=1500, tolerance=tolerance)
    losses = torch.tensor(history.losses)
    assert len(losses) > 3
    assert (losses.diff() <= 1e-9).all()
    assert abs(-model.log_prob(x).mean().item() - history.losses[-1]) < max(1e-6, tolerance)
    (-model.log_prob(x).mean()).backward()
    largest = max(p.grad.abs().max() for p in model.parameters() if p.numel())
    assert largest < 2e-3, f"gradient of {largest}"
    assert model.initialized


@pytest.mark.filterwarnings("ignore:Columns:UserWarning")  # the largest floor is that large
@pytest.mark.parametrize("floor", [1e-2, 0.3, 3.0])
def test_low_rank_likelihoods_rise_at_the_floor(floor):
    model = GaussianMixture(6, 3, "low_rank_precision", rank=2, variance_floor=floor)
    x = data(dim=6)
    history = fit_em(model, x, steps=60, tolerance=0.0, seed=0, progress_bar=False)
    assert len(history.losses) == 60
    assert (torch.tensor(history.losses).diff() <= 0).all()
    gain = fit(model, x, steps=300, batch_size=len(x), lr=1e-2, seed=0, progress_bar=False)
    assert history.losses[-1] - min(gain.losses) < 2e-2


@every_covariance
def test_agrees_with_gradient_training(covariance):
    x = data()
    model, history = train(covariance, x, tolerance=1e-8, steps=500)
    other = GaussianMixture(4, 3, covariance, rank=2)
    other.load_state_dict(model.state_dict())
    gain = fit(other, x, steps=200, batch_size=len(x), lr=1e-3, seed=0, progress_bar=False)
    assert history.losses[-1] - min(gain.losses) < 2e-3


@pytest.mark.parametrize("covariance", ["diagonal", "spherical", "tied", "full"])
def test_matches_scikit_learn_from_the_same_start(covariance):
    from sklearn.mixture import GaussianMixture as Peer

    x = data(900)
    model = GaussianMixture(4, 3, covariance)
    model.initialize(x[:600])
    law = model.distribution
    precision = torch.linalg.inv(law.component_covariance.detach())
    kind = {"diagonal": "diag"}.get(covariance, covariance)
    start = {
        "diag": precision.diagonal(dim1=-2, dim2=-1),
        "spherical": precision[:, 0, 0],
        "tied": precision[0],
        "full": precision,
    }[kind]
    peer = Peer(
        3,
        covariance_type=kind,
        weights_init=law.logits.detach().exp().numpy(),
        means_init=law.loc.detach().numpy(),
        precisions_init=start.numpy(),
        max_iter=30,
        tol=0.0,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it did not converge, and was not meant to
        peer.fit(x[:600].numpy())
    fit_em(model, x[:600], steps=31, tolerance=0.0, progress_bar=False)
    got, expected = model.log_prob(x[600:]).mean().item(), peer.score(x[600:].numpy())
    assert abs(got - expected) < 1e-4 * abs(expected)


@every_covariance
def test_gaps_cost_little(covariance):
    x, held_out = data(1500)[:1200], data(1500)[1200:]
    whole, _ = train(covariance, x)
    gaps, _ = train(covariance, with_gaps(x))
    filled = with_gaps(x)
    filled = torch.where(filled.isnan(), filled.nanmean(0), filled)
    naive, _ = train(covariance, filled)
    scores = [model.log_prob(held_out).mean().item() for model in (whole, gaps, naive)]
    assert scores[0] - scores[1] < 0.25 * (scores[0] - scores[2])


@every_covariance
def test_minibatches_come_near_the_whole(covariance):
    x = data(3000)
    whole, _ = train(covariance, x)
    parts, history = train(covariance, x, batch_size=200, steps=150)
    assert len(history.losses) == 150
    assert (whole.log_prob(x).mean() - parts.log_prob(x).mean()).abs() < 0.1


def test_the_best_of_several_starts_is_kept():
    x = data(300)
    single = [train("diagonal", x, k=5, seed=s)[0].log_prob(x).mean() for s in range(3)]
    best = train("diagonal", x, k=5, restarts=6)[0].log_prob(x).mean()
    assert best >= max(single) - 0.05


def test_dead_components_are_revived():
    truth = MixtureOfNormals(
        torch.zeros(4), torch.tensor([[0.0], [20.0], [40.0], [60.0]]), torch.ones(4, 1)
    )
    x = truth.sample((400,))
    start = torch.tensor([[0.0], [20.0], [50.0], [1e4]])
    scores = []
    for k in (3, 4):
        model = GaussianMixture(1, k)
        with torch.no_grad():
            model.loc.copy_(start[:k])
        history = fit_em(model, x, steps=200, initialize=False, progress_bar=False)
        assert (torch.tensor(history.losses).diff() <= 1e-9).all()
        scores.append(-history.losses[-1])
    assert model.loc.abs().max() < 80
    assert scores[1] > scores[0] + 0.02


def test_more_components_than_points():
    x = data(5)
    for covariance in STRUCTURES:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Every variance is at variance_floor")
            model, _ = train(covariance, x, k=8)
        assert model.log_prob(x).isfinite().all()


@every_covariance
@pytest.mark.parametrize("gaps", [False, True])
def test_a_component_stays_alive_where_all_explain_less_than_half_a_point(covariance, gaps):
    x = torch.tensor([[0.5, math.nan if gaps else -1.0]])
    model = GaussianMixture(2, 4, covariance, missing="marginalize" if gaps else "error")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Every variance is at variance_floor")
        history = fit_em(model, x, seed=0, progress_bar=False)
    # All of the mixture lies at the point, with the smallest variance that it can have.
    seen = 1 if gaps else 2
    highest = -0.5 * seen * math.log(2 * math.pi * model.variance_floor)
    assert -history.losses[-1] == pytest.approx(highest, abs=0.02)
    assert (model.mean - x).nan_to_num(0.0).abs().max() < 1e-3


def test_data_whose_squares_overflow_are_refused_or_fitted():
    x = 1e20 * data(50)
    for covariance in ("diagonal", "full"):
        model = GaussianMixture(4, 2, covariance).float()
        for train_model in (fit, fit_em):
            with pytest.raises(ValueError, match="can hold, got numbers up to"):
                train_model(model, x.float(), progress_bar=False)
        small, large = (
            train(covariance, y, standardize=True)[1].losses[-1] for y in (data(50), x)
        )
        assert large == pytest.approx(small + 4 * math.log(1e20), rel=1e-3)


def test_constant_and_empty_columns():
    x = data(100)
    x[:, 1] = 7.0
    x[:, 2] = math.nan
    for covariance in STRUCTURES:
        model, history = train(covariance, x)
        assert math.isfinite(history.losses[-1])
        assert all(p.isfinite().all() for p in model.parameters())


def test_data_in_units_too_small_for_the_floor():
    for covariance in STRUCTURES:
        with pytest.warns(UserWarning, match="Every variance is at variance_floor"):
            train(covariance, 1e-7 * data(100), variance_floor=1e-6, standardize=False)


def test_the_bar_says_that_the_likelihood_has_converged(capsys):
    fit_em(GaussianMixture(4, 2), data(50), seed=0)
    assert "converged" in capsys.readouterr().err
    fit_em(GaussianMixture(4, 2), data(50), seed=0, steps=2)
    assert "converged" not in capsys.readouterr().err


def test_the_seed_decides():
    torch.manual_seed(5)
    a, b = (train("full", data(), seed=3)[0] for _ in range(2))
    assert torch.equal(a.loc, b.loc)


def test_float32_models_stay_float32():
    model = GaussianMixture(4, 3, "full").float()
    fit_em(model, data().float(), progress_bar=False)
    assert model.loc.dtype == torch.float32
    assert model.log_prob(data().float()).isfinite().all()


def test_information_criteria():
    x = data(600)
    counts = {"diagonal": 2 + 12 + 12, "full": 2 + 12 + 30, "tied": 2 + 12 + 10}
    counts |= {"spherical": 2 + 12 + 3, "shared": 2 + 12 + 4, "low_rank": 14 + 30}
    for covariance, count in counts.items():
        model, _ = train(covariance, x)
        assert model.num_free_parameters == count
        deviance = -2 * model.log_prob(x).sum().item()
        assert math.isclose(model.bic(x), deviance + count * math.log(600))
        assert math.isclose(model.aic(x), deviance + 2 * count)
    scores = [train("full", x, k=k, restarts=3)[0].bic(x) for k in (1, 3, 6)]
    assert scores[1] == min(scores)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fit_em(GaussianMixture(2, 3), torch.randn(5, 3)), r"shape \(N, 2\)"),
        (lambda: fit_em(GaussianMixture(2, 3), torch.randn(0, 2)), "at least one point"),
        (lambda: fit_em(GaussianMixture(2, 3), torch.full((4, 2), math.nan)), "marginalize"),
        (lambda: fit_em(GaussianMixture(2, 3, context_dim=1), torch.randn(4, 2)), "use|fit"),
        (lambda: fit_em(GaussianMixture(2, 3), torch.randn(4, 2), steps=0), "at least 1"),
        (lambda: fit_em(GaussianMixture(2, 3).requires_grad_(False), torch.randn(4, 2)), "frozen"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
