"""Finite mixtures of normals, the building block of every model in this library."""

__all__ = [
    "ConditionedMixture",
    "ConjugatePrior",
    "GaussianMixture",
    "LowRankPrecisionNormal",
    "MixtureOfLowRankNormals",
    "MixtureOfLowRankPrecisionNormals",
    "MixtureOfMultivariateNormals",
    "MixtureOfNormals",
    "MixtureOfStudentT",
    "OnlineEM",
    "RelaxedGaussianMixture",
    "RelaxedMixtureOfNormals",
    "Selection",
    "UnionOfConditioned",
    "VBResult",
    "fit_em",
    "fit_vb",
    "select",
]

from ..conditioning.mixture import ConditionedMixture
from ..conditioning.union import UnionOfConditioned
from .diagonal import MixtureOfNormals
from .em.fit_em import fit_em
from .em.online import OnlineEM
from .em.prior import ConjugatePrior
from .em.variational import VBResult, fit_vb
from .full import MixtureOfMultivariateNormals
from .learnable import GaussianMixture
from .low_rank import MixtureOfLowRankPrecisionNormals
from .low_rank_covariance import MixtureOfLowRankNormals
from .low_rank_normal import LowRankPrecisionNormal
from .relaxed import RelaxedMixtureOfNormals
from .relaxed_learnable import RelaxedGaussianMixture
from .selection import Selection, select
from .student import MixtureOfStudentT
