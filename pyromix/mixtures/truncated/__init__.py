"""Normals restricted to polytopes: normalisers, draws and feasibility."""

__all__ = ["TruncatedNormals", "feasible_point"]

from .feasibility import feasible_point
from .normals import TruncatedNormals
