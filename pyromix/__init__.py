"""Deep mixture distributions for Pyro and PyTorch."""

__all__ = [
    "DistributionModule",
    "Flow",
    "GaussianMixture",
    "History",
    "MixtureOfNormals",
    "fit",
    "fit_em",
    "load",
    "near_identity",
    "register",
    "save",
]

from .checkpoints import load, save
from .core import DistributionModule
from .flow import Flow
from .mixtures import GaussianMixture, MixtureOfNormals, fit_em
from .near_identity import near_identity
from .registry import register
from .training import History, fit

__version__ = "0.1.0"
