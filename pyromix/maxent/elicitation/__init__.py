"""Priors from what a person knows: statements, and the law of largest entropy with them."""

__all__ = [
    "ElicitedPrior",
    "elicit",
    "expectation",
    "interval",
    "mean",
    "probability",
    "quantile",
    "sd",
]

from .elicit import elicit
from .prior import ElicitedPrior
from .statements import expectation, interval, mean, probability, quantile, sd
