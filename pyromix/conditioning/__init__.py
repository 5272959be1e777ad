"""Laws given evidence: one base, one for mixtures of normals, one for alternatives."""

__all__ = [
    "ConditionedLaw",
    "ConditionedMixture",
    "LawWithinUnions",
    "LawsByEntry",
    "UnionOfConditioned",
]

from .entries import LawsByEntry
from .law import ConditionedLaw
from .mixture import ConditionedMixture
from .rejection import LawWithinUnions
from .union import UnionOfConditioned
