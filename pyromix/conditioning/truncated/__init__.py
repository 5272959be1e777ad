"""Normals restricted to polytopes: normalisers, draws and feasibility."""

__all__ = ["ConflictError", "TruncatedNormals", "feasible_point"]

from .feasibility import ConflictError, feasible_point
from .normals import TruncatedNormals
