"""Covariances by volume, shape and orientation: their structure, and estimates of all fourteen."""

import math

import pytest
import torch

from pyromix import GaussianMixture, fit_em, load, save
from pyromix.mixtures.covariance import FAMILIES, Moments, make_structure
from pyromix.mixtures.covariance.families import Decomposed
from pyromix.mixtures.covariance.orientation import from_reflections, to_reflections
from pyromix.mixtures.covariance.structure import EXCESS

NINE = [code for code in FAMILIES if isinstance(make_structure(code, 2, 2, 1e-6, 1), Decomposed)]
every_family = pytest.mark.parametrize("code", FAMILIES)
WEIGHT = torch.tensor([12.0, 20.0, 7.0], dtype=torch.float64)


def scatters(dim=3, seed=0):
    """Sums of outer products of three groups of correlated points, (3, D, D)."""
    generator = torch.Generator().manual_seed(seed)
    factor = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    x = torch.randn(3, 15, dim, generator=generator, dtype=torch.float64) @ factor
    return x.mT @ x


def loss(covariance, second):
    """Minus twice the expected log-likelihood, less constants."""
    trace = torch.linalg.solve(covariance, second).diagonal(dim1=-2, dim2=-1).sum()
    return (WEIGHT * torch.logdet(covariance)).sum() + trace


def naive_covariances(code, parameters):
    """The definition, with exponentials of skew matrices for orientations."""
    volume, shape, upper = (
        value[:1].expand_as(value) if letter == "E" else value * (letter == "V")
        for letter, value in zip(code, parameters, strict=True)
    )
    log = volume.reshape(-1, 1) + shape - shape.mean(-1, keepdim=True)
    axes = torch.matrix_exp(upper.triu(1) - upper.triu(1).mT)
    return axes @ torch.diag_embed(log.exp()) @ axes.mT


def lowest(parameters, evaluate):
    """The least value that a quasi-Newton method finds from some parameters."""
    parameters = [p.detach().clone().requires_grad_() for p in parameters]
    optimiser = torch.optim.LBFGS(
        parameters, max_iter=150, line_search_fn="strong_wolfe", tolerance_change=1e-12
    )

    def closure():
        optimiser.zero_grad()
        value = evaluate(parameters)
        value.backward()
        return value

    optimiser.step(closure)
    return float(evaluate(parameters).detach())


def estimated(structure, second):
    """Covariances (3, D, D) that a structure estimates, from its first parameters on."""
    given = second if structure.full_moments else second.diagonal(dim1=-2, dim2=-1)
    raw = {name: torch.zeros(shape) for name, shape in structure.shapes.items()}
    for _ in range(20):
        raw = structure.estimate(Moments(WEIGHT, given), raw)
    dim = second.shape[-1]
    return raw, structure.mixture(torch.zeros(3), torch.zeros(3, dim), raw).component_covariance


@every_family
def test_estimates_are_optima_of_the_definition(code):
    dim, second = 3, scatters()
    _, covariance = estimated(make_structure(code, dim, 3, 1e-6, 1), second)
    torch.manual_seed(1)
    best = min(
        lowest(
            [1 + 0.3 * torch.randn(3), 0.3 * torch.randn(3, dim), torch.randn(3, dim, dim)],
            lambda parameters: loss(naive_covariances(code, parameters), second),
        )
        for _ in range(2)
    )
    assert float(loss(covariance, second)) == pytest.approx(best, abs=1e-6)


@pytest.mark.parametrize("code", NINE)
def test_estimates_at_the_floor_are_optima_among_those_above_it(code):
    second, floor = scatters(), 2.0
    structure = make_structure(code, 3, 3, floor, 1)
    raw, covariance = estimated(structure, second)
    assert torch.linalg.eigvalsh(covariance).min() >= floor * (1 - 1e-9)

    def evaluate(parameters):
        named = dict(zip(raw, parameters, strict=True))
        law = structure.mixture(torch.zeros(3), torch.zeros(3, 3), named)
        return loss(law.component_covariance, second)

    best = lowest(list(raw.values()), evaluate)
    # Estimates keep a share of the floor above it, which each of 39 x 3 terms loses at most.
    assert float(loss(covariance, second)) <= best + EXCESS * float(WEIGHT.sum()) * 3


@every_family
def test_covariances_are_of_their_family(code):
    model = GaussianMixture(4, 3, code, variance_floor=0.2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    covariance = model.law.component_covariance
    values = torch.linalg.eigvalsh(covariance)
    assert (values >= 0.2 * (1 - 1e-9)).all() or code in ("EEE", "VVV")
    volume = values.log().mean(-1)
    shape = values.log() - volume.unsqueeze(-1)
    a, b = covariance[0], covariance[1]
    equal = {
        0: torch.allclose(volume, volume[:1].expand(3)),
        1: torch.allclose(shape, shape[:1].expand(3, 4)),
        2: torch.allclose(a @ b, b @ a),
    }
    for i, letter in enumerate(code):
        assert equal[i] == (letter != "V")
    assert torch.allclose(shape, torch.zeros(3, 4)) == (code[1] == "I")
    off = covariance - torch.diag_embed(covariance.diagonal(dim1=-2, dim2=-1))
    assert (off.abs().max() == 0) == (code[2] == "I")


def test_free_parameters_are_those_of_mclust():
    counts = {"EII": 1, "VII": 3, "EEI": 4, "VEI": 6, "EVI": 10, "VVI": 12, "EEE": 10, "VEE": 12}
    counts |= {"EVE": 16, "VVE": 18, "EEV": 22, "VEV": 24, "EVV": 28, "VVV": 30}
    assert list(counts) == list(FAMILIES)
    for code, count in counts.items():
        assert GaussianMixture(4, 3, code).num_free_parameters == 2 + 12 + count


@pytest.mark.parametrize("dim", [1, 2, 3, 7, 20])
def test_orthogonal_matrices_and_reflections(dim):
    axes = torch.linalg.qr(torch.randn(5, dim, dim)).Q
    raw = to_reflections(axes)
    assert raw.shape == (5, dim * (dim - 1) // 2)
    assert (raw.abs() <= 1 + 1e-12).all()
    again = from_reflections(raw, dim)
    signs = (axes * again).sum(-2)
    torch.testing.assert_close(signs.abs(), torch.ones(5, dim))
    torch.testing.assert_close(again * signs.unsqueeze(-2), axes)
    # As products of reflections, one by one.
    product = torch.eye(dim)
    i, j = torch.tril_indices(dim, dim, -1)
    below = torch.zeros(dim, dim)
    below[i, j] = raw[0]
    for column in (below + torch.eye(dim)).mT:
        product = product @ (torch.eye(dim) - 2 * torch.outer(column, column) / column.dot(column))
    torch.testing.assert_close(again[0], product)


@pytest.mark.parametrize("code", ["VEI", "VEE", "EVE", "VVE", "VEV", "EVV"])
def test_gradients(code):
    model = GaussianMixture(3, 2, code, variance_floor=1e-2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.7)
    x, names = torch.randn(4, 3), list(model.structure.shapes)

    def log_prob(*values):
        raw = dict(zip(names, values, strict=True))
        return model.structure.mixture(model.logits, model.loc, raw).log_prob(x)

    assert torch.autograd.gradcheck(log_prob, tuple(model._raw().values()))


@pytest.mark.filterwarnings("ignore:Every variance is at variance_floor")
@pytest.mark.parametrize("code", NINE)
@pytest.mark.parametrize("odd", ["constant", "few", "far", "1d"])
def test_odd_data(code, odd, tmp_path):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 3, generator=generator, dtype=torch.float64)
    x[30:] += 6
    if odd == "constant":
        x[:, 1] = 2.0
    elif odd == "few":
        x = x[::20]
    elif odd == "far":
        x = 1e9 * (x + 1e3)
    else:
        x = x[:, :1]
    model = GaussianMixture(x.shape[-1], 4, code)
    history = fit_em(model, x, seed=0, progress_bar=False)
    losses = torch.tensor(history.losses)
    assert (losses.diff() <= 1e-9 * losses.abs().max()).all()
    assert math.isclose(
        -float(model.log_prob(x).detach().mean()), history.losses[-1], rel_tol=1e-3
    )
    save(model, tmp_path / "model.safetensors")
    assert torch.equal(load(tmp_path / "model.safetensors").log_prob(x), model.log_prob(x))
