"""`torch.func` and `torch.compile` on laws given evidence, and on data with gaps."""

import math

import pytest
import torch

from pyromix import DRMM, GaussianMixture
from pyromix.evidence import (
    AnyOf,
    Box,
    GaussianPrior,
    LinearEquality,
    LinearGaussian,
    LinearInequality,
    Observed,
)
from pyromix.mixtures.covariance import STRUCTURES

EVIDENCE = {
    "box": lambda: [Box(low=-1.0)],
    "half-space": lambda: [LinearInequality(torch.ones(3))],
    "readings": lambda: [
        GaussianPrior(0.0, 1.0),
        LinearGaussian(torch.ones(1, 3), torch.ones(1), 0.3),
    ],
    "alternatives": lambda: [AnyOf(Box(low=0.0), Box(high=0.5))],
    "values in a box": lambda: [Observed({0: 0.5}), Box(low=-1.0)],
    "equation": lambda: [LinearEquality(torch.ones(3), -1.0)],
}


def compiled(function):
    torch._dynamo.reset()
    return torch.compile(function, backend="eager", fullgraph=True)


@pytest.mark.parametrize("name", EVIDENCE)
@pytest.mark.parametrize("kind", ["diagonal", "full", "residual"])
def test_laws_given_evidence_score_alike_under_vmap(kind, name):
    model = DRMM(3, 2, 2) if kind == "residual" else GaussianMixture(3, 2, kind)
    law = model.requires_grad_(False).condition(*EVIDENCE[name]())
    x = law.sample((4,))
    points = torch.cat([x, x + 0.5])  # some break the evidence
    torch.testing.assert_close(torch.func.vmap(law.log_prob)(points), law.log_prob(points))
    slopes = torch.func.vmap(torch.func.grad(law.log_prob))(x)
    x.requires_grad_()
    expected = torch.autograd.grad(law.log_prob(x).sum(), x)[0]
    torch.testing.assert_close(slopes, expected)


@pytest.mark.parametrize("name", ["readings", "values in a box", "equation"])
def test_laws_given_evidence_are_compiled_whole(name):
    law = GaussianMixture(3, 2, "full").requires_grad_(False).condition(*EVIDENCE[name]())
    x = law.sample((4,))
    torch.testing.assert_close(compiled(law.log_prob)(x), law.log_prob(x))


@pytest.mark.parametrize("covariance", [*STRUCTURES, "VEI", "EVE"])
def test_gaps_in_data_score_alike_under_vmap_and_compilation(covariance):
    model = GaussianMixture(4, 3, covariance, rank=1, missing="marginalize")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.7)
    x = torch.randn(6, 4)
    x[0, 1] = x[1, :3] = x[2] = x[3, 0] = x[3, 3] = math.nan
    expected = model.log_prob(x)
    assert expected[2] == 0
    for scored in (torch.func.vmap(model.log_prob)(x), compiled(model.log_prob)(x)):
        torch.testing.assert_close(scored, expected)
    parameters = dict(model.named_parameters())
    for name, slope in _slopes_by_row(model, parameters, x).items():
        wanted = torch.autograd.grad(model.log_prob(x).sum(), parameters[name])[0]
        torch.testing.assert_close(slope.sum(0), wanted)


class _Scored(torch.nn.Module):
    """What `functional_call` needs: a module whose call is the density."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model.log_prob(x)


def _slopes_by_row(model, parameters, x):
    """Gradients in every parameter, one for each row."""
    scored = _Scored(model)

    def log_prob(parameters, row):
        named = {f"model.{name}": value for name, value in parameters.items()}
        return torch.func.functional_call(scored, named, (row,))

    detached = {name: value.detach() for name, value in parameters.items()}
    return torch.func.vmap(torch.func.grad(log_prob), in_dims=(None, 0))(detached, x)
