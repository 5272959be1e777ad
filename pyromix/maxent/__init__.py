"""Distributions of maximum entropy under constraints on expectations."""

__all__ = [
    "ElicitedPrior",
    "InfeasibleError",
    "MaximumEntropy",
    "MaximumEntropyResult",
    "below",
    "between",
    "elicit",
    "expectation",
    "interval",
    "mean",
    "probability",
    "quantile",
    "sd",
    "spline_flow",
]

from .elicitation import (
    ElicitedPrior,
    elicit,
    expectation,
    interval,
    mean,
    probability,
    quantile,
    sd,
)
from .flows import spline_flow
from .problem import MaximumEntropy
from .result import InfeasibleError, MaximumEntropyResult
from .steps import below, between
