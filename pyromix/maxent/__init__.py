"""Distributions of maximum entropy under constraints on expectations."""

__all__ = ["InfeasibleError", "MaximumEntropy", "MaximumEntropyResult", "spline_flow"]

from .flows import spline_flow
from .problem import MaximumEntropy
from .result import InfeasibleError, MaximumEntropyResult
