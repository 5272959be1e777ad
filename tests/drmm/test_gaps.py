"""Points of which little is known: many codes are likely, and few must stand for all."""

import math

import pytest
import torch

from pyromix import DRMM, Observed
from pyromix.drmm.stages import likelihood_loss

from .slow import random_model
from .test_law import exactly


def with_gaps(model, **options):
    """The model, whose densities are of what is known of a row."""
    config = model.config() | {"missing": "marginalize", **options}
    other = DRMM.from_config(config).to(model.loc)
    other.load_state_dict(model.state_dict())
    return other.eval().requires_grad_(False)


def known(x, *columns):
    """Points of which only some columns are known."""
    gaps = torch.full_like(x, math.nan)
    gaps[:, columns] = x[:, columns]
    return gaps


@pytest.fixture
def spiral_model(trained):
    """A model of 4,096 codes that does not sum over all of them, and points."""
    model, x = trained
    return with_gaps(model), x


def test_marginal_densities_of_one_column(spiral_model):
    model, x = spiral_model
    for column in (0, 1):
        rows = known(x[:300], column)
        truth = exactly(model)(rows)
        assert (model.log_prob(rows) - truth).abs().max() < 0.05
        assert (model.log_prob(rows) - truth).mean().abs() < 2e-3


def test_marginal_densities_integrate_to_one(spiral_model):
    model, _ = spiral_model
    grid = torch.linspace(-9.0, 9.0, 600)
    rows = torch.stack([grid, torch.full_like(grid, math.nan)], -1)
    assert model.log_prob(rows).exp().sum() * (grid[1] - grid[0]) == pytest.approx(1, abs=2e-3)


def test_a_rows_density_does_not_depend_on_others(spiral_model):
    model, x = spiral_model
    rows = torch.cat([x[:20], known(x[20:40], 0), known(x[40:60], 1)])[torch.randperm(60)]
    together = model.log_prob(rows)
    assert torch.equal(model.log_prob(rows), together)
    alone = torch.cat([model.log_prob(row.unsqueeze(0)) for row in rows])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-10)


def test_rows_without_gaps_are_scored_as_ever(trained):
    model, x = trained
    assert torch.equal(with_gaps(model).log_prob(x[:200]), model.log_prob(x[:200]))


def test_what_is_filled_in_is_as_likely_as_it_is_frequent(trained):
    model, _ = trained
    x = model.sample((600,))
    drawn = model.impute(known(x, 0), num_samples=400)[..., 1]
    low, high = drawn.quantile(0.05, 0), drawn.quantile(0.95, 0)
    covered = ((x[:, 1] >= low) & (x[:, 1] <= high)).double().mean()
    assert covered == pytest.approx(0.9, abs=4 * math.sqrt(0.09 / 600))


@pytest.mark.parametrize("beam", [2, 4])
def test_densities_in_training_are_unbiased(beam):
    model = random_model(3, 4, 4, categories=(3,), missing="marginalize", max_exact=256)
    model.requires_grad_(False)
    x = model.sample((6,))
    x[:3, 0] = x[2:5, 2] = x[4:, 3] = x[5, 1] = math.nan
    truth = model.log_prob(x).exp()
    rows = model._rows(x.repeat(2000, 1))  # every row is sampled for itself
    estimates = torch.zeros(len(rows.real))
    for index, joint, _ in model.law.joint_blocks(rows, beam, start=None, wider=1):
        estimates[index] = joint.flatten(1).logsumexp(1).exp()
    estimates = estimates.reshape(-1, 6)
    error = estimates.std(0) / math.sqrt(len(estimates))
    assert bool((estimates.std(0) > 1e-3 * truth).any())
    assert ((estimates.mean(0) - truth).abs() <= 5 * error + 1e-12).all()


def test_the_loss_of_rows_with_gaps_has_a_gradient_in_all_that_counts():
    model = random_model(3, 3, 4, categories=(3,), missing="marginalize")
    x = model.sample((50,))
    x[torch.rand(50, 4) < 0.5] = math.nan
    x = x[~x.isnan().all(-1)]
    loss, proposal = likelihood_loss(model.law, model._rows(x), 4)
    (loss + proposal).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert (parameter.grad != 0).any(), name


# ---- categories and moments -------------------------------------------------------------------


@pytest.mark.parametrize("max_exact", [0, 256])
def test_categories_are_predicted_from_what_each_row_has(max_exact):
    model = random_model(2, 4, 4, categories=(3, 2), max_exact=max_exact, beam=16)
    model.requires_grad_(False)
    exact = DRMM.from_config(model.config() | {"max_exact": 256})
    exact.load_state_dict(model.state_dict())
    x = exact.sample((5,))
    x[0, 0] = x[1, 1] = x[2, 3] = x[3, :2] = x[4] = math.nan
    for column in (2, 3, -1):
        probs = model.predict_proba(x, column)
        own = range(4)[column]
        assert probs.shape == (5, model.categories[own - 2])
        for row, got in zip(x, probs, strict=True):
            given = {d: float(v) for d, v in enumerate(row) if d != own and not v.isnan()}
            law = exact.condition(Observed(given)) if given else exact.condition()
            torch.testing.assert_close(
                got, law.probs(own), atol=0.02 if not max_exact else 1e-8, rtol=0
            )
    with pytest.raises(ValueError, match="categorical column, from 2 on, got 1"):
        model.predict_proba(x, 1)
    with pytest.raises(ValueError, match=r"points of shape \(N, 4\)"):
        model.predict_proba(x[0], 2)


def test_moments_are_sums_over_all_codes():
    model = random_model(3, 3, 4, categories=(3,)).requires_grad_(False)
    codes, log_prior = model.law.all_codes()
    weight = log_prior.exp().unsqueeze(-1)
    loc, scale = model.law.mean_of(codes), model.law.scale[codes[:, -1]]
    mean = (weight * loc).sum(0)
    torch.testing.assert_close(model.mean[:3], mean)
    probs = (weight * model.law.columns.log_probs(0, codes).exp()).sum(0)
    assert model.mean[3] == probs.argmax()
    torch.testing.assert_close(
        model.variance, (weight * (scale.square() + (loc - mean).square())).sum(0)
    )
    deep = DRMM(2, 6, 64)
    for name in ("mean", "variance"):
        with pytest.raises(NotImplementedError, match="more than max_exact"):
            getattr(deep, name)
