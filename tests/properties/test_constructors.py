"""Bad arguments of every public constructor: taken, or refused by an error that names them."""

import inspect
import math
import traceback

import numpy as np
import pytest
import torch
from pyro.distributions.transforms import Spline
from torch import eye, ones, tensor, zeros

import pyromix
from pyromix import (
    DCGMM,
    DRMM,
    FRMDN,
    RAD,
    Box,
    CategoricalPrior,
    ClassConditional,
    ConditionalFoldingCoupling,
    ConjugatePrior,
    Flow,
    Fold,
    FoldingCoupling,
    GaussianMixture,
    GaussianPrior,
    HierarchicalDRMM,
    Level,
    LinearEquality,
    LinearGaussian,
    LinearInequality,
    LogitMap,
    LowRankPrecisionNormal,
    MaximumEntropy,
    MixtureOfLowRankNormals,
    MixtureOfLowRankPrecisionNormals,
    MixtureOfMultivariateNormals,
    MixtureOfNormals,
    MixtureOfStudentT,
    Nonlinear,
    Observed,
    OnlineEM,
    RelaxedGaussianMixture,
    RelaxedMixtureOfNormals,
    Top,
)
from pyromix.dcgmm import GMM, Classifier, Folding, Pooling
from pyromix.maxent import spline_flow

from .checks import REFUSALS

# Arguments that fit, made anew for every call. PyTorch itself takes anything for validate_args.
GOOD = {
    DCGMM: lambda: {
        "event_shape": (1, 2, 2),
        "layers": [Folding((2, 2)), GMM(2)],
        "noise": None,
        "max_precision": 20.0,
        "bound_steps": 5,
        "max_codes": 256,
        "centroid_share": 0.5,
    },
    DRMM: lambda: {
        "dim": 2,
        "num_layers": 2,
        "num_components": 2,
        "categories": (),
        "scale": "diagonal",
        "inner_scale": "diagonal",
        "scale_floor": 1e-3,
        "smoothing": 1e-8,
        "truncation": 0.0,
        "missing": "error",
        "max_exact": 4096,
        "beam": 4,
        "training_beam": 2,
        "standardize": "auto",
        "curriculum": (("likelihood", 1.0),),
        "orphans": 0.01,
        "max_codes": None,
    },
    HierarchicalDRMM: lambda: {
        "event_shape": (1, 4),
        "levels": [Level(2, num_components=2), Top(1, 2)],
        "rounding": None,
        "scale_floor": 1e-3,
        "joint_share": 0.25,
        "max_codes": 64,
        "beam": 4,
        "sweeps": 1,
        "training_beam": 2,
        "training_sweeps": 0,
    },
    Level: lambda: {
        "window": 2,
        "stride": 1,
        "num_layers": 2,
        "num_components": 2,
        "maps": "shift",
    },
    Top: lambda: {"num_layers": 2, "num_components": 2},
    FRMDN: lambda: {
        "dim": 2,
        "length": 2,
        "num_components": 2,
        "rank": 1,
        "hidden_dim": 3,
        "num_layers": 1,
        "cell": "lstm",
        "head_dims": (),
        "transforms": (),
        "context_dim": 0,
        "static_dim": 0,
        "encoder": "causal",
        "factor": "network",
        "positivity": "exp",
        "scale_floor": 1e-3,
    },
    ConjugatePrior: lambda: {
        "strength": 1.0,
        "shrinkage": 0.1,
        "concentration": 1.5,
        "scale": tensor([1.0, 2.0]),
    },
    OnlineEM: lambda: {"model": GaussianMixture(2, 2), "forget": 0.1, "num_batches": 5},
    RAD: lambda: {
        "dim": 2,
        "num_layers": 1,
        "hidden_dims": (3,),
        "base": None,
        "partition": "alternate",
        "context_dim": 0,
    },
    GaussianMixture: lambda: {
        "dim": 2,
        "num_components": 2,
        "covariance": "full",
        "rank": 1,
        "variance_floor": 1e-6,
        "missing": "error",
        "context_dim": 0,
        "hidden_dims": (4,),
        "scale_floor": None,
    },
    RelaxedGaussianMixture: lambda: {
        "dim": 2,
        "num_components": 2,
        "temperatures": 0.5,
        "schedule": "geometric",
        "num_inner": 8,
        "variance_floor": 1e-6,
        "scale_floor": None,
    },
    ClassConditional: lambda: {
        "model": GaussianMixture(2, 2, context_dim=2, hidden_dims=(3,)),
        "num_classes": 2,
        "prior": None,
        "contexts": None,
    },
    Flow: lambda: {"base": GaussianMixture(2, 2), "transforms": [Spline(2)]},
    Fold: lambda: {"hidden_dims": (3,)},
    FoldingCoupling: lambda: {"dim": 2, "folded": None, "hidden_dims": (3,)},
    ConditionalFoldingCoupling: lambda: {
        "dim": 2,
        "context_dim": 1,
        "folded": None,
        "hidden_dims": (3,),
    },
    LogitMap: lambda: {"num_levels": 256, "margin": 1e-6},
    Box: lambda: {"low": 0.0, "high": 1.0},
    CategoricalPrior: lambda: {"index": 0, "probs": tensor([0.5, 0.5])},
    GaussianPrior: lambda: {"loc": 0.0, "scale": 1.0},
    LinearEquality: lambda: {"a": tensor([1.0, 2.0]), "b": 0.0},
    LinearInequality: lambda: {"a": tensor([1.0, 2.0]), "b": 0.0},
    Nonlinear: lambda: {
        "function": lambda x: x.sum(-1, keepdim=True),
        "value": 0.5,
        "noise": 0.1,
        "num_draws": 100,
    },
    LinearGaussian: lambda: {"matrix": ones(1, 2), "y": tensor([1.0]), "noise": 1.0},
    Observed: lambda: {"values": {0: 1.0}},
    MixtureOfNormals: lambda: {"logits": zeros(2), "loc": zeros(2, 3), "scale": ones(2, 3)},
    MixtureOfMultivariateNormals: lambda: {
        "logits": zeros(2),
        "loc": zeros(2, 3),
        "scale_tril": eye(3).expand(2, 3, 3),
    },
    MixtureOfLowRankNormals: lambda: {
        "logits": zeros(2),
        "loc": zeros(2, 3),
        "cov_diag": ones(2, 3),
        "cov_factor": ones(2, 3, 1),
    },
    MixtureOfLowRankPrecisionNormals: lambda: {
        "logits": zeros(2),
        "loc": zeros(2, 3),
        "precision_diag": ones(2, 3),
        "precision_factor": ones(2, 3, 1),
    },
    MixtureOfStudentT: lambda: {
        "logits": zeros(2),
        "df": ones(2),
        "loc": zeros(2, 3),
        "scale": ones(2, 3),
    },
    LowRankPrecisionNormal: lambda: {
        "loc": zeros(3),
        "precision_diag": ones(3),
        "precision_factor": ones(3, 1),
    },
    RelaxedMixtureOfNormals: lambda: {
        "temperature": 0.5,
        "logits": zeros(2),
        "loc": zeros(2, 3),
        "scale": ones(2, 3),
        "num_inner": 8,
    },
    MaximumEntropy: lambda: {
        "distribution": GaussianMixture(1, 1),
        "statistics": lambda x: x,
        "targets": [0.0],
        "inequalities": None,
        "bounds": None,
        "names": None,
        "gradient": "auto",
    },
    spline_flow: lambda: {
        "dim": 2,
        "num_components": 2,
        "covariance": "diagonal",
        "temperatures": None,
        "num_layers": 1,
        "support": None,
        "bins": 4,
        "hidden_dims": (4,),
        "bound": 3.0,
    },
    GMM: lambda: {"num_components": 2},
    Classifier: lambda: {"num_classes": 2},
    Folding: lambda: {"kernel": 2, "stride": None},
    Pooling: lambda: {"kernel": 2, "stride": None},
}

# Any of these may stand for any argument. No large integers: their memory is what was asked for.
BAD = [
    None,
    0,
    -1,
    2.5,
    -0.5,
    math.nan,
    math.inf,
    True,
    1j,
    "x",
    "",
    [],
    [0],
    [-1],
    (1.5,),
    ["x"],
    [None],
    [[1, 2], [3]],
    {},
    {"a": 1},
    {0: math.nan},
    {0: "a"},
    {-1: 0.0},
    object(),
    tensor(0),
    tensor(1.5),
    tensor([math.nan]),
    zeros(0),
    zeros(2, 2, 2),
    zeros(2, dtype=torch.cfloat),
    zeros(2, dtype=torch.long),
    np.array(["a"]),
    np.zeros((3, 0)),
]
# Where an error speaks of a part, or of the argument that it is another name of.
ALSO = {"partition": "folded", "base": "distribution", "max_codes": "max_exact", "layers": "layer"}
# Evidence of several pieces, base classes, and records of training.
LEFT_OUT = {"AnyOf", "DistributionModule", "History", "Selection", "VBResult"}


def test_all_constructors_are_here():
    public = {name for name in pyromix.__all__ if inspect.isclass(getattr(pyromix, name))}
    assert public - LEFT_OUT <= {make.__name__ for make in GOOD}


@pytest.mark.parametrize("make", GOOD, ids=lambda make: make.__name__)
def test_bad_arguments_are_named(make):
    make(**GOOD[make]())
    for name in GOOD[make]():
        for bad in BAD:
            error = refusal(make, {**GOOD[make](), name: bad})
            if error is None:
                continue
            where = traceback.extract_tb(error.__traceback__)[-1].filename
            assert "/pyromix/" in where, f"{name}={bad!r}: {error!r} from {where}"
            # Of tensors that do not match, either may be named.
            named = GOOD[make]() if isinstance(bad, torch.Tensor) else [name]
            named = {*named, name.removesuffix("s"), ALSO.get(name, name)}
            assert any(n in str(error) for n in named), f"{name}={bad!r}: {error}"


def refusal(make, arguments):
    """The error that arguments are refused with; None if they are taken."""
    try:
        make(**arguments)
    except REFUSALS as error:
        return error
    return None
