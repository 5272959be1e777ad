"""Mixtures whose parameters are in the columns' own units, and laws that are in the user's."""

import math

import pytest
import torch

from pyromix import (
    Box,
    GaussianMixture,
    Observed,
    RelaxedGaussianMixture,
    fit,
    fit_em,
    load,
    save,
)
from pyromix.mixtures.covariance import STRUCTURES

# Families that stay as they are where columns are scaled one by one.
COLUMN_WISE = [*(c for c in STRUCTURES if c != "spherical"), "EVI", "VEE"]
UNITS = torch.tensor([1.0, 1e3, 1e-3], dtype=torch.float64)
PLACE = torch.tensor([0.0, 5e4, 7.0], dtype=torch.float64)


def groups(num, seed=0):
    """Three groups in three correlated columns, each of spread one and mean zero."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(num, 3, dtype=torch.float64, generator=generator)
    noise[:, 1] = 0.8 * noise[:, 0] + 0.6 * noise[:, 1]
    x = 4.0 * torch.eye(3, dtype=torch.float64)[torch.arange(num) % 3] + noise
    return (x - x.mean(0)) / x.std(0, correction=0)


def mixture(covariance="diagonal", **options):
    torch.manual_seed(0)
    return GaussianMixture(3, 3, covariance, **options).double()


def trained(x, trainer, covariance, **options):
    model = mixture(covariance, **options)
    if trainer is fit_em:
        history = fit_em(model, x, seed=0, steps=30, progress_bar=False)
    else:
        history = fit(model, x, seed=0, steps=120, lr=0.02, progress_bar=False)
    return model.requires_grad_(False), history


@pytest.mark.parametrize("trainer", [fit, fit_em])
@pytest.mark.parametrize("covariance", COLUMN_WISE)
def test_columns_of_different_units_are_learnt_as_well_as_standardised_ones(covariance, trainer):
    x, held_out = groups(600), groups(200, seed=1)
    model, history = trained(x * UNITS + PLACE, trainer, covariance)
    plain, expected = trained(x, trainer, covariance, standardize=False)
    volume = UNITS.log().sum()
    value = held_out * UNITS + PLACE
    torch.testing.assert_close(
        model.log_prob(value) + volume, plain.log_prob(held_out), rtol=1e-6, atol=1e-6
    )
    assert history.losses[-1] == pytest.approx(expected.losses[-1] + float(volume), abs=1e-6)
    torch.testing.assert_close(model.law.loc, plain.law.loc * UNITS + PLACE)
    torch.testing.assert_close(model.scale, plain.scale * UNITS)
    torch.testing.assert_close(
        model.law.component_covariance,
        plain.law.component_covariance * UNITS * UNITS.unsqueeze(-1),
    )
    torch.testing.assert_close(model.column_floors(), 1e-3 * UNITS)


def test_queries_files_and_draws_are_in_the_users_units(tmp_path):
    x = groups(600)
    model, _ = trained(x * UNITS + PLACE, fit_em, "full")
    law = model.condition(
        Observed({1: 5e4 + 700.0}), Box(torch.tensor([-math.inf, -math.inf, 7.0]))
    )
    draws = law.sample((200,))
    assert (draws[:, 1] == 5e4 + 700.0).all()
    assert (draws[:, 2] >= 7.0).all()
    plain, _ = trained(x, fit_em, "full", standardize=False)
    evidence = plain.condition(
        Observed({1: 0.7}), Box(torch.tensor([-math.inf, -math.inf, 0.0]))
    ).log_evidence()
    torch.testing.assert_close(
        law.log_evidence()[0], evidence[0] - math.log(1e3), rtol=1e-6, atol=1e-6
    )
    assert (model.sample((4000,)).mean(0) - PLACE).abs().le(0.1 * UNITS).all()
    save(model, tmp_path / "model")
    copy = load(tmp_path / "model")
    assert torch.equal(copy.log_prob(draws), model.log_prob(draws))
    # A run that is carried on has units to start from.
    fit_em(copy, x * UNITS + PLACE, seed=1, steps=3, progress_bar=False)
    assert torch.equal(copy.units.scale, model.units.scale)


def test_spherical_components_stay_spheres():
    x = groups(300) * torch.tensor([20.0, 30.0, 40.0]) + 1e3
    model, history = trained(x, fit_em, "spherical")
    _, expected = trained(x, fit_em, "spherical", standardize=False)
    assert (model.units.scale == model.units.scale[0]).all()
    torch.testing.assert_close(model.units.scale[0], x.var(0, correction=0).mean().sqrt())
    torch.testing.assert_close(model.scale, model.scale[:, :1].expand(3, 3))
    assert history.losses[-1] == pytest.approx(expected.losses[-1], abs=1e-3)


def test_units_are_those_of_observed_entries():
    x = groups(400) * 1e3 + 1e5
    gaps = torch.where(torch.rand_like(x) < 0.3, math.nan, x)
    model = mixture("full", missing="marginalize")
    history = fit_em(model, gaps, seed=0, steps=20, progress_bar=False)
    torch.testing.assert_close(model.units.loc, gaps.nanmean(0))
    spread = (gaps - gaps.nanmean(0)).square().nanmean(0).sqrt()
    torch.testing.assert_close(model.units.scale, spread)
    after = -model.log_prob(gaps).mean().item()
    assert history.losses[-1] >= after - 1e-9
    assert history.losses[-1] == pytest.approx(after, abs=0.05)


def test_usual_columns_keep_their_units_and_others_on_request():
    x = groups(300)
    model = mixture()
    model.initialize(x)
    assert (model.units.scale == 1).all()
    assert (model.units.loc == 0).all()
    model = mixture(standardize=True)
    model.initialize(1 + 2 * x)
    torch.testing.assert_close(model.units.scale, torch.full_like(UNITS, 2.0))
    with pytest.raises(ValueError, match="standardize to be True, False or 'auto'"):
        GaussianMixture(3, 2, standardize="yes")


def test_contexts_change_parameters_in_the_columns_units():
    context = torch.randn(400, 2, dtype=torch.float64)
    torch.manual_seed(0)
    model = GaussianMixture(3, 2, context_dim=2).double()
    model.initialize((groups(400) * UNITS + PLACE, context))
    plain = GaussianMixture(3, 2, context_dim=2).double()
    # A state without units has those of a new model.
    state = {k: v for k, v in model.state_dict().items() if not k.startswith("units")}
    plain.load_state_dict(state)
    law, other = model.condition(context[:5]), plain.condition(context[:5])
    torch.testing.assert_close(law.scale, other.scale * model.units.scale)
    torch.testing.assert_close(law.loc, other.loc * model.units.scale + model.units.loc)


def test_relaxed_mixtures_follow_their_exact_ones():
    torch.manual_seed(0)
    model = RelaxedGaussianMixture(3, 3, 1e-6).double()
    model.initialize(groups(300) * UNITS + PLACE)
    assert model.mixture.units.scale[1] > 900
    value = groups(5, seed=1) * UNITS + PLACE
    exact = model.mixture.log_prob(value)
    torch.testing.assert_close(model.log_prob(value), exact, rtol=0.02, atol=0.02)
    torch.testing.assert_close(model.column_floors(), 1e-3 * model.mixture.units.scale)
