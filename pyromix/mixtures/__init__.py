"""Finite mixtures of normals, the building block of every model in this library."""

__all__ = [
    "ConditionedMixture",
    "GaussianMixture",
    "LowRankPrecisionNormal",
    "MixtureOfLowRankPrecisionNormals",
    "MixtureOfMultivariateNormals",
    "MixtureOfNormals",
    "MixtureOfStudentT",
    "RelaxedGaussianMixture",
    "RelaxedMixtureOfNormals",
    "UnionOfConditioned",
    "fit_em",
]

from ..conditioning.mixture import ConditionedMixture
from ..conditioning.union import UnionOfConditioned
from .diagonal import MixtureOfNormals
from .em.fit_em import fit_em
from .full import MixtureOfMultivariateNormals
from .learnable import GaussianMixture
from .low_rank import MixtureOfLowRankPrecisionNormals
from .low_rank_normal import LowRankPrecisionNormal
from .relaxed import RelaxedMixtureOfNormals
from .relaxed_learnable import RelaxedGaussianMixture
from .student import MixtureOfStudentT
