"""Laws given evidence."""

__all__ = ["ConditionedMixture", "UnionOfConditioned"]

from .mixture import ConditionedMixture
from .union import UnionOfConditioned
