"""Finite mixtures of normals, the building block of every model in this library."""

__all__ = [
    "ConditionedMixture",
    "ConjugatePrior",
    "GaussianMixture",
    "LowRankPrecisionNormal",
    "MixtureOfLowRankPrecisionNormals",
    "MixtureOfMultivariateNormals",
    "MixtureOfNormals",
    "RelaxedGaussianMixture",
    "RelaxedMixtureOfNormals",
    "UnionOfConditioned",
    "VBResult",
    "fit_em",
    "fit_vb",
]

from ..conditioning.mixture import ConditionedMixture
from ..conditioning.union import UnionOfConditioned
from .diagonal import MixtureOfNormals
from .em.fit_em import fit_em
from .em.prior import ConjugatePrior
from .em.variational import VBResult, fit_vb
from .full import MixtureOfMultivariateNormals
from .learnable import GaussianMixture
from .low_rank import MixtureOfLowRankPrecisionNormals
from .low_rank_normal import LowRankPrecisionNormal
from .relaxed import RelaxedMixtureOfNormals
from .relaxed_learnable import RelaxedGaussianMixture
