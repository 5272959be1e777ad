"""Finite mixtures of normals, the building block of every model in this library."""

__all__ = [
    "ConditionedMixture",
    "GaussianMixture",
    "LowRankPrecisionNormal",
    "MixtureOfLowRankPrecisionNormals",
    "MixtureOfMultivariateNormals",
    "MixtureOfNormals",
    "RelaxedGaussianMixture",
    "RelaxedMixtureOfNormals",
    "UnionOfConditioned",
    "fit_em",
]

from .conditioned import ConditionedMixture
from .dense import MixtureOfMultivariateNormals
from .em import fit_em
from .learnable import GaussianMixture
from .normal import MixtureOfNormals
from .precision import LowRankPrecisionNormal, MixtureOfLowRankPrecisionNormals
from .relaxed import RelaxedMixtureOfNormals
from .relaxed_learnable import RelaxedGaussianMixture
from .union import UnionOfConditioned
