"""Hierarchies of residual mixtures for arrays: images and sequences of vectors."""

from .conditioned import ConditionedHierarchy
from .levels import Level, Top
from .model import HierarchicalDRMM

__all__ = ["ConditionedHierarchy", "HierarchicalDRMM", "Level", "Top"]
