"""Finite mixtures of normals, the building block of every model in this library."""

__all__ = ["GaussianMixture", "MixtureOfNormals"]

from .learnable import GaussianMixture
from .normal import MixtureOfNormals
