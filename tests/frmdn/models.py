"""Models of every kind, with random parameters and units, and input that fits them."""

import pyro.distributions.transforms as transforms
import pytest
import torch

from pyromix import FRMDN, Fold, FoldingCoupling, near_identity

HIDDEN = 5


def spline(dim):
    """Without the steep slopes of Pyro's random ones, which no grid could resolve."""
    return near_identity(transforms.spline(dim, count_bins=4))


def driven_spline(dim):
    return near_identity(transforms.conditional_spline(dim, HIDDEN, hidden_dims=[4], count_bins=4))


def couplings(dim):
    split = max(1, dim // 2)
    return [
        transforms.affine_coupling(dim, [4], split_dim=split),
        transforms.permute(dim, torch.arange(dim).roll(1)),
        transforms.affine_coupling(dim, [4], split_dim=split),
    ]


def splines(dim):
    return [
        near_identity(transforms.spline_coupling(dim, hidden_dims=[4], count_bins=4)),
        transforms.permute(dim, torch.arange(dim).roll(1)),
        spline(dim),
    ]


def driven(dim):
    """Conditional on the hidden state, all or in part."""
    return [
        transforms.conditional_affine_coupling(dim, HIDDEN, hidden_dims=[4]),
        transforms.permute(dim, torch.arange(dim).roll(1)),
        spline(dim),
        driven_spline(dim),
    ]


# Arguments of `build`; transforms as functions of the dimension, made anew for every model.
KINDS = {
    "lstm": {},
    "gru": {"cell": "gru"},
    "lstm, two layers": {"num_layers": 2},
    "gru, three layers": {"cell": "gru", "num_layers": 3},
    "one component": {"num_components": 1},
    "numbers": {"dim": 1, "num_components": 3},
    "one step": {"length": 1},
    "deep head": {"head_dims": (4, 6), "cell": "gru"},
    "exp": {"positivity": "exp"},
    "high floor": {"scale_floor": 0.5},
    "rank 1": {"rank": 1},
    "rank 2, gru": {"rank": 2, "cell": "gru", "positivity": "exp"},
    "rank 3": {"rank": 3},
    "rank 1, numbers": {"rank": 1, "dim": 1},
    "shared factor": {"rank": 2, "factor": "shared"},
    "shared factor, exp": {"rank": 1, "factor": "shared", "positivity": "exp"},
    "couplings": {"transforms": couplings},
    "splines, rank 1": {"transforms": splines, "rank": 1},
    "driven": {"transforms": driven},
    "spline of numbers": {"dim": 1, "transforms": lambda dim: [spline(dim)]},
    "folds": {"transforms": lambda dim: [FoldingCoupling(dim, hidden_dims=(4,))]},
    "fold of numbers": {"dim": 1, "transforms": lambda dim: [Fold((4,))]},
    "causal": {"context_dim": 2},
    "causal, two layers, gru": {"context_dim": 1, "num_layers": 2, "cell": "gru"},
    "bidirectional": {"context_dim": 2, "encoder": "bidirectional"},
    "bidirectional, two layers": {
        "context_dim": 2,
        "encoder": "bidirectional",
        "num_layers": 2,
        "rank": 1,
    },
    "bidirectional, gru": {"context_dim": 1, "encoder": "bidirectional", "cell": "gru"},
    "static": {"static_dim": 2},
    "all of it": {
        "context_dim": 2,
        "static_dim": 3,
        "num_layers": 2,
        "rank": 2,
        "head_dims": (6,),
        "transforms": driven,
    },
    "all of it, bidirectional": {
        "context_dim": 2,
        "static_dim": 3,
        "encoder": "bidirectional",
        "cell": "gru",
        "rank": 1,
        "factor": "shared",
        "positivity": "exp",
        "transforms": couplings,
    },
}


def kinds(*names):
    """Parametrises a test with some kinds, or with all."""
    chosen = names or KINDS
    return pytest.mark.parametrize("options", [KINDS[name] for name in chosen], ids=list(chosen))


def build(dim=3, length=4, num_components=2, *, transforms=None, strength=0.8, seed=0, **options):
    """A model whose parameters and units all matter."""
    torch.manual_seed(seed)
    options = {"hidden_dim": HIDDEN, **options}
    parts = transforms(dim) if transforms else ()
    return roughen(FRMDN(dim, length, num_components, transforms=parts, **options), strength)


@torch.no_grad()
def roughen(model, strength):
    data = {"value": values(model, 20), **inputs(model, 20)}
    model.initialize(data)
    for name, parameter in model.named_parameters():
        # Slopes of a flow multiply, and a grid has to resolve the density.
        own = strength / 4 if name.startswith("transforms") else strength
        parameter.add_(own * torch.randn_like(parameter))
    return model


def values(model, *batch):
    """Sequences with another location and scale in every coordinate."""
    loc, scale = torch.arange(model.dim) - 3.0, 0.5 + torch.arange(model.dim)
    return loc + scale * torch.randn(*batch, model.length, model.dim)


def inputs(model, *batch):
    """What `condition` needs: a context, a static input, both or nothing."""
    given = {}
    if model.context_dim:
        given["context"] = 2 + 3 * torch.randn(*batch, model.length, model.context_dim)
    if model.static_dim:
        given["static"] = torch.randn(*batch, model.static_dim) - 1
    return given


def law_of(model, given, lengths=None):
    """The law of a model given what it needs."""
    return model if not given and lengths is None else model.condition(**given, lengths=lengths)


def ragged(model, num):
    """Lengths of sequences from one to all steps."""
    return torch.arange(num) * (model.length - 1) // max(1, num - 1) + 1


def close(got, expected, tolerance=1e-9):
    torch.testing.assert_close(got, expected, atol=tolerance, rtol=tolerance)
