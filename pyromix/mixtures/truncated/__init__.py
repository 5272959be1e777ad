"""Normals restricted to polytopes: feasibility."""

__all__ = ["feasible_point"]

from .feasibility import feasible_point
