"""Residual mixtures whose layers turn and stretch what they leave."""

import math

import pytest
import torch

from pyromix import (
    DRMM,
    Box,
    GaussianMixture,
    LinearInequality,
    Observed,
    fit,
    fit_em,
    load,
    save,
)

from .slow import random_model

KINDS = ("diagonal", "triangular", "low_rank")
every_kind = pytest.mark.parametrize("maps", KINDS)


def close(got, expected, tolerance=1e-9):
    torch.testing.assert_close(got, expected, atol=tolerance, rtol=tolerance)


def curved(num, seed=0):
    """Two angles, and six columns that follow from them smoothly."""
    generator = torch.Generator().manual_seed(seed)
    a, b = 2.0 * torch.rand(2, num, generator=generator, dtype=torch.float64)
    columns = [a, b, a.sin(), (a + b).cos(), a * b, b.exp()]
    noise = torch.randn(num, 6, generator=generator, dtype=torch.float64)
    return torch.stack(columns, -1) + 0.02 * noise


@torch.no_grad()
def one_layer_of(mixture):
    """The model of one layer whose law is that of a mixture with full covariances."""
    model = DRMM(mixture.dim, 1, mixture.num_components, maps="triangular")
    tril = mixture.law.scale_tril
    deviation = tril.diagonal(dim1=-2, dim2=-1)
    lower = torch.eye(mixture.dim) - deviation.unsqueeze(-1) * torch.linalg.inv(tril)
    i, j = torch.tril_indices(mixture.dim, mixture.dim, -1)
    model.log_weight.copy_(mixture.logits.log_softmax(-1))
    model.loc.copy_(mixture.law.loc)
    model.layers[0].raw_scale.copy_((deviation.square() - model.scale_floor**2).log())
    model.layers[0].raw_lower.copy_(lower[:, i, j])
    return model.requires_grad_(False)


def test_one_triangular_layer_is_a_mixture_with_full_covariances():
    x = curved(600)
    mixture = GaussianMixture(6, 4, "full")
    fit_em(mixture, x, seed=0, steps=20, progress_bar=False)
    mixture.requires_grad_(False)
    model = one_layer_of(mixture)
    close(model.log_prob(x), mixture.log_prob(x))
    evidence = Observed({0: 1.0, 3: 0.2}), LinearInequality(torch.ones(6), -2.0)
    for law in (model, mixture):
        torch.manual_seed(0)
        law.given = law.condition(*evidence)
    close(model.given.log_evidence()[0], mixture.given.log_evidence()[0])
    close(model.condition(evidence[0]).mean, mixture.condition(evidence[0]).mean)
    gaps = torch.where(torch.rand(50, 6) < 0.4, math.nan, x[:50])
    close(model.impute(gaps), mixture.impute(gaps), 1e-6)


@every_kind
def test_no_code_is_narrower_than_the_floor(maps):
    model = random_model(3, 3, 4, maps=maps, scale_floor=0.05)
    with torch.no_grad():
        for layer in model.layers:
            layer.raw_scale.sub_(8.0 * torch.rand_like(layer.raw_scale))
    codes, log_prior = model.law.all_codes()
    covariance = model.law.mixture_of(codes, log_prior).component_covariance
    # Of each column, given those before.
    deviation = torch.linalg.cholesky(covariance).diagonal(dim1=-2, dim2=-1) / model.units.scale
    assert deviation.min() >= 0.05 * (1 - 1e-9)
    if maps != "low_rank":  # whose factors only widen it
        assert deviation.min() < 0.06
    assert model.columns_at_floor().shape == (3,)


@every_kind
@pytest.mark.parametrize("gaps", [False, True])
def test_training_from_clusters_of_what_is_left(maps, gaps):
    x, held_out = curved(2000), curved(500, seed=1)
    if gaps:
        x = torch.where(torch.rand_like(x) < 0.2, math.nan, x)
        x = x[~x.isnan().all(-1)]
    torch.manual_seed(0)
    missing = "marginalize" if gaps else "error"
    model = DRMM(6, 2, 8, maps=maps, rank=2, missing=missing, training_beam=2)
    model.initialize(x)
    start = model.log_prob(held_out).mean().item()
    fit(model, x, steps=60 if gaps else 200, lr=0.01, seed=0, progress_bar=False)
    end = model.log_prob(held_out).mean().item()
    normal = torch.distributions.MultivariateNormal(
        held_out.mean(0), torch.cov(held_out.mT, correction=0)
    )
    assert end > start + 0.3
    assert end > normal.log_prob(held_out).mean() + 1.0


def test_maps_follow_smooth_columns_better_than_more_full_covariances():
    x, held_out = curved(4000), curved(1000, seed=1)
    torch.manual_seed(0)
    model = DRMM(6, 3, 4, maps="triangular")
    fit(model, x, steps=600, lr=0.01, seed=0, progress_bar=False)
    mixture = GaussianMixture(6, 16, "full")
    fit_em(mixture, x, seed=0, progress_bar=False)
    assert model.num_parameters < mixture.num_parameters
    assert model.log_prob(held_out).mean() > mixture.log_prob(held_out).mean() + 0.1


@every_kind
def test_starting_values_make_clusters_standard_normal(maps):
    """Of normal data, one component of one layer is all there is to find."""
    torch.manual_seed(0)
    turn = torch.randn(5, 2)
    x = torch.randn(3000, 2) @ turn.mT + torch.randn(3000, 5) * torch.linspace(0.3, 2.0, 5)
    model = DRMM(5, 2, 1, maps=maps, rank=2)
    model.initialize(x)
    left = model.law.prefix(model._rows(x)).extend(torch.zeros(3000, 1, dtype=torch.long))
    covariance = torch.cov(left.residual.squeeze(1).mT, correction=0)
    if maps == "diagonal":
        close(covariance.diagonal(), torch.ones(5), 1e-3)
    else:  # the two factors of the data are all that correlates
        close(covariance, torch.eye(5), 1e-3 if maps == "triangular" else 0.05)


def test_missing_entries_start_from_draws_given_the_others():
    """With means in their place, columns would seem to depend less on each other."""
    torch.manual_seed(0)
    turn = torch.randn(5, 2)
    x = torch.randn(3000, 2) @ turn.mT + 0.3 * torch.randn(3000, 5)
    gaps = torch.where(torch.rand_like(x) < 0.4, math.nan, x)
    gaps = gaps[~gaps.isnan().all(-1)]
    model = DRMM(5, 1, 1, maps="triangular", missing="marginalize")
    model.initialize(gaps)
    codes, log_prior = model.law.all_codes()
    covariance = model.law.mixture_of(codes, log_prior).component_covariance[0]
    spread = x.std(0)
    apart = (covariance - x.mT.cov()) / spread.outer(spread)
    assert apart.abs().max() < 0.05


@pytest.mark.parametrize("columns", [2, 200])
def test_starting_with_few_rows_and_columns_of_one_value(columns):
    torch.manual_seed(0)
    gaps = torch.randn(7, columns).masked_fill(torch.rand(7, columns) < 0.5, math.nan)
    gaps[:, 0] = 1.0
    gaps[:, 1] = math.nan
    model = DRMM(columns, 2, 2, maps="triangular", missing="marginalize")
    model.initialize(gaps)
    assert model.log_prob(gaps).isfinite().all()


@every_kind
def test_divergence_is_that_of_normals(maps):
    model = random_model(4, 2, 3, maps=maps, rank=2).requires_grad_(False)
    standard = torch.distributions.MultivariateNormal(torch.zeros(4), torch.eye(4))
    for layer in model.law.maps:
        for k in range(3):
            matrix = layer.chosen(layer.loc[k] + torch.eye(4), torch.full((4,), k)).mT
            normal = torch.distributions.MultivariateNormal(
                torch.zeros(4), precision_matrix=matrix.mT @ matrix
            )
            close(layer.divergence[k], torch.distributions.kl_divergence(standard, normal))


def test_shrinkage_does_what_points_of_a_standard_normal_do():
    torch.manual_seed(0)
    x, more = curved(60), torch.randn(30, 6)
    x = (x - x.mean(0)) / x.std(0)
    more = more - more.mean(0)
    more = torch.linalg.solve_triangular(
        torch.linalg.cholesky(more.mT.cov(correction=0)), more.mT, upper=False
    ).mT
    covariances = []
    for shrinkage, data in ((0.5, x), (0.0, torch.cat([x, more]))):
        model = DRMM(6, 1, 1, maps="triangular", shrinkage=shrinkage)
        fit(model, data, steps=200, batch_size=len(data), lr=0.01, seed=0, progress_bar=False)
        factor = model.law.factor_of(torch.zeros(1, 1, dtype=torch.long))[0]
        covariances.append(factor @ factor.mT)
        start = DRMM(6, 1, 1, maps="triangular", shrinkage=shrinkage)
        start.initialize(data)
        close(start.layers[0].raw_lower, model.layers[0].raw_lower, 1e-2)
    close(*covariances, 1e-3)
    model.eval()
    assert model.loss(x) == -model.log_prob(x).mean()


@pytest.mark.parametrize("maps", ["triangular", "low_rank"])
def test_shrinkage_helps_where_rows_are_few(maps):
    turn = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
    x = torch.randn(525, 8, generator=torch.Generator().manual_seed(1)) @ turn
    x = x / x.std(0)
    gaps = torch.where(torch.rand_like(x) < 0.2, math.nan, x)
    scores = []
    for shrinkage in (0.0, 0.2):
        torch.manual_seed(0)
        model = DRMM(8, 1, 2, maps=maps, shrinkage=shrinkage, missing="marginalize")
        fit(model, gaps[:25], steps=40, lr=0.03, seed=0, progress_bar=False)
        scores.append(model.log_prob(x[25:]).mean().item())
    assert scores[1] > scores[0] + 0.5


@every_kind
def test_draws_of_missing_entries_have_their_conditional_law(maps):
    torch.manual_seed(3)
    model = random_model(4, 3, 1, maps=maps, rank=2).requires_grad_(False)
    mean, covariance = model.law.mean_of(torch.zeros(1, 3, dtype=torch.long))[0], None
    codes, log_prior = model.law.all_codes()
    covariance = model.law.mixture_of(codes, log_prior).component_covariance[0]
    row = model.sample()
    known, free = [0, 2], [1, 3]
    row[free] = math.nan
    gain = torch.linalg.solve(covariance[known][:, known], covariance[known][:, free]).mT
    expected = mean[free] + gain @ (row[known] - mean[known])
    spread = covariance[free][:, free] - gain @ covariance[known][:, free]
    close(model.impute(row.unsqueeze(0))[0, free], expected)
    draws = model.impute(row.unsqueeze(0), 20_000)[:, 0]
    assert (draws[:, known] == row[known]).all()
    white = torch.linalg.solve_triangular(
        torch.linalg.cholesky(spread), (draws[:, free] - expected).mT, upper=False
    )
    assert white.mean(1).abs().max() < 5 / math.sqrt(20_000)
    assert (white @ white.mT / 20_000 - torch.eye(2)).abs().max() < 5 * math.sqrt(2 / 20_000)


@every_kind
def test_a_rows_density_does_not_depend_on_others(maps):
    model = random_model(4, 3, 3, maps=maps, missing="marginalize", max_exact=0).requires_grad_(
        False
    )
    x = model.sample((12,))
    gaps = torch.where(torch.rand_like(x) < 0.5, math.nan, x)
    gaps[:, 1] = math.nan  # every row has one, and they differ in number
    alone = torch.cat([model.log_prob(row.unsqueeze(0)) for row in gaps])
    close(model.log_prob(gaps), alone)
    close(model.impute(gaps), torch.cat([model.impute(row.unsqueeze(0)) for row in gaps]))


def test_layers_one_by_one(tmp_path):
    maps = ("triangular", "shift", "low_rank")
    model = random_model(3, 3, 3, maps=maps, rank=2, categories=(2,)).requires_grad_(False)
    x = model.sample((20,))
    every = model.layer_log_prob(x)
    for depth in (1, 2, 3):
        shallow = model.shallow(depth)
        assert shallow.maps == maps[:depth]
        assert torch.equal(shallow.log_prob(x), every[:, depth - 1])
    save(model, tmp_path / "model")
    copy = load(tmp_path / "model")
    assert copy.maps == maps
    assert torch.equal(copy.log_prob(x), model.log_prob(x))
    assert model.layers[1].raw_scale.shape == (1, 3)


def test_shifts_alone_before_other_layers():
    model = random_model(3, 3, 3, maps=("shift", "shift", "triangular")).requires_grad_(False)
    x = model.sample((20,))
    every = model.layer_log_prob(x)
    for depth in (1, 2, 3):
        close(model.shallow(depth).log_prob(x), every[:, depth - 1])


@pytest.mark.parametrize("maps", ["triangular", "low_rank"])
def test_float32_far_from_the_origin(maps):
    torch.manual_seed(0)
    x = curved(1000) * torch.tensor([1e3, 1.0, 1.0, 1.0, 1.0, 1e-3]) + 1e4
    x[:, 5] -= 1e4
    double = DRMM(6, 2, 4, maps=maps, max_exact=0)
    double.initialize(x)
    assert double.units.scale[0] > 100
    single = DRMM(6, 2, 4, maps=maps, max_exact=0).float()
    single.load_state_dict(double.state_dict())
    value = double.sample((300,)).float()
    double.load_state_dict(single.state_dict())  # with the locations that float32 has
    got, expected = single.log_prob(value), double.log_prob(value.double())
    torch.testing.assert_close(got.double(), expected, rtol=1e-3, atol=5e-3)


def test_evidence_of_a_batch_and_a_search():
    """Populations of codes agree with sums over all, entry by entry."""
    torch.manual_seed(0)
    model = random_model(3, 3, 4, maps="triangular").requires_grad_(False)
    evidence = Observed({0: torch.randn(5)}), Box(torch.tensor([-9.0, -1.0, -9.0]), 9.0)
    exact = model.condition(*evidence)
    found = model.condition(*evidence, max_exact=0, num_particles=8 * 64)  # all of them
    close(exact.log_evidence()[0], found.log_evidence()[0], 2e-3)
    few = model.condition(*evidence, max_exact=0, num_particles=128)
    assert not few.exact
    close(exact.log_evidence()[0], few.log_evidence()[0], 0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"maps": "affine"}, "maps to be one of shift, diagonal, triangular, low_rank"),
        ({"maps": 3}, "maps to be one of"),
        ({"maps": ("triangular", "shift")}, "maps of 3 layers"),
        ({"maps": "triangular", "curriculum": [("em", 1.0)]}, "other stages are for maps='shift'"),
        ({"maps": "low_rank", "rank": 0}, "rank"),
        ({"maps": "low_rank", "shrinkage": -0.1}, "shrinkage to be a finite number, at least 0"),
        ({"shrinkage": 0.1}, "no shrinkage with maps='shift'"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        DRMM(2, 3, 4, **options)


def test_all_shifts_are_the_flat_model():
    torch.manual_seed(0)
    model = DRMM(2, 2, 3, maps=("shift", "shift"))
    assert not model.affine
    assert set(model.state_dict()) == set(DRMM(2, 2, 3).state_dict())
