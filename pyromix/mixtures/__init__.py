"""Finite mixtures of normals, the building block of every model in this library."""

__all__ = [
    "ConditionedMixture",
    "GaussianMixture",
    "LowRankPrecisionNormal",
    "MixtureOfLowRankPrecisionNormals",
    "MixtureOfMultivariateNormals",
    "MixtureOfNormals",
    "UnionOfConditioned",
    "fit_em",
]

from .conditioned import ConditionedMixture
from .dense import MixtureOfMultivariateNormals
from .em import fit_em
from .learnable import GaussianMixture
from .normal import MixtureOfNormals
from .precision import LowRankPrecisionNormal, MixtureOfLowRankPrecisionNormals
from .union import UnionOfConditioned
