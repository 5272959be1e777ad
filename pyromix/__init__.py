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
    "ConjugatePrior",
    "DistributionModule",
    "Flow",
    "Fold",
    "FoldingCoupling",
    "GaussianMixture",
    "GaussianPrior",
    "HierarchicalDRMM",
    "History",
    "Level",
    "LinearEquality",
    "LinearGaussian",
    "LinearInequality",
    "LogitMap",
    "LowRankPrecisionNormal",
    "MaximumEntropy",
    "MixtureOfLowRankNormals",
    "MixtureOfLowRankPrecisionNormals",
    "MixtureOfMultivariateNormals",
    "MixtureOfNormals",
    "MixtureOfStudentT",
    "Nonlinear",
    "Observed",
    "OnlineEM",
    "RelaxedGaussianMixture",
    "RelaxedMixtureOfNormals",
    "Selection",
    "Top",
    "VBResult",
    "class_conditional",
    "dequantize",
    "fit",
    "fit_em",
    "fit_vb",
    "load",
    "load_law",
    "near_identity",
    "quantize",
    "register",
    "save",
    "select",
]

from importlib import import_module
from typing import Any

# A bare `import pyromix` has the sub-packages, too. That is cheap: what takes long to import, such
# as SciPy and lightning-fabric, is imported where it is used.
from . import (  # noqa: F401
    conditioning,
    datasets,
    dcgmm,
    drmm,
    evidence,
    flows,
    frmdn,
    guides,
    hierarchy,
    maxent,
    metrics,
    mixtures,
    plotting,
    preprocessing,
    rad,
    simulations,
    tables,
    testing,
    training,
)
from .checkpoints import load, save
from .class_conditional import ClassConditional, class_conditional
from .conditioning.files import load_law
from .core.module import DistributionModule
from .core.registry import register
from .core.renamed import install as _install_old_names
from .core.version import __version__ as __version__
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
    Nonlinear,
    Observed,
)
from .flows.flow import Flow
from .flows.near_identity import near_identity
from .frmdn import FRMDN
from .hierarchy import HierarchicalDRMM, Level, Top
from .maxent import MaximumEntropy
from .mixtures import (
    ConjugatePrior,
    GaussianMixture,
    LowRankPrecisionNormal,
    MixtureOfLowRankNormals,
    MixtureOfLowRankPrecisionNormals,
    MixtureOfMultivariateNormals,
    MixtureOfNormals,
    MixtureOfStudentT,
    OnlineEM,
    RelaxedGaussianMixture,
    RelaxedMixtureOfNormals,
    Selection,
    VBResult,
    fit_em,
    fit_vb,
    select,
)
from .preprocessing import LogitMap, dequantize, quantize
from .rad import RAD, ConditionalFoldingCoupling, Fold, FoldingCoupling
from .training.fit import History, fit

_install_old_names()


def __getattr__(name: str) -> Any:
    """Imports `pyromix.sklearn` when it is used: scikit-learn is not a dependency."""
    if name != "sklearn":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module(f"{__name__}.{name}")


def __dir__() -> list[str]:
    return sorted({*globals(), "sklearn"})
