"""Deep mixture distributions for Pyro and PyTorch."""

__all__ = [
    "DCGMM",
    "DRMM",
    "FRMDN",
    "RAD",
    "AnyOf",
    "Box",
    "CategoricalPrior",
    "ClassConditional",
    "ConditionalFoldingCoupling",
    "DistributionModule",
    "Flow",
    "Fold",
    "FoldingCoupling",
    "GaussianMixture",
    "GaussianPrior",
    "History",
    "LinearEquality",
    "LinearGaussian",
    "LinearInequality",
    "LogitMap",
    "LowRankPrecisionNormal",
    "MaximumEntropy",
    "MixtureOfLowRankPrecisionNormals",
    "MixtureOfMultivariateNormals",
    "MixtureOfNormals",
    "Observed",
    "RelaxedGaussianMixture",
    "RelaxedMixtureOfNormals",
    "class_conditional",
    "dequantize",
    "fit",
    "fit_em",
    "load",
    "near_identity",
    "quantize",
    "register",
    "save",
]

from .checkpoints import load, save
from .class_conditional import ClassConditional, class_conditional
from .core.module import DistributionModule
from .core.registry import register
from .dcgmm import DCGMM
from .drmm import DRMM
from .evidence.pieces import (
    AnyOf,
    Box,
    CategoricalPrior,
    GaussianPrior,
    LinearEquality,
    LinearGaussian,
    LinearInequality,
    Observed,
)
from .flows.flow import Flow
from .flows.near_identity import near_identity
from .frmdn import FRMDN
from .maxent import MaximumEntropy
from .mixtures import (
    GaussianMixture,
    LowRankPrecisionNormal,
    MixtureOfLowRankPrecisionNormals,
    MixtureOfMultivariateNormals,
    MixtureOfNormals,
    RelaxedGaussianMixture,
    RelaxedMixtureOfNormals,
    fit_em,
)
from .preprocessing import LogitMap, dequantize, quantize
from .rad import RAD, ConditionalFoldingCoupling, Fold, FoldingCoupling
from .training.fit import History, fit

__version__ = "0.1.0"
