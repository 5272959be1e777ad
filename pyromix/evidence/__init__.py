r"""What is known about a vector: values, priors, observations and constraints.

Pieces of evidence are passed to a model's ``condition(*evidence)``, any number, in any
combination. Each stands for a factor q(x); the conditional law is :math:`p(x) \prod_i q_i(x) / Z`.

A vector has D real columns. Where a model has categorical columns, too, they follow: `Observed`
and `CategoricalPrior` name them by their index, other evidence is about the real ones alone.
"""

__all__ = [
    "AnyOf",
    "Box",
    "CategoricalPrior",
    "Evidence",
    "GaussianPrior",
    "LinearEquality",
    "LinearEvidence",
    "LinearGaussian",
    "LinearInequality",
    "Nonlinear",
    "Observed",
    "collect",
    "collect_alternatives",
    "collect_branches",
    "tightest_bounds",
]

from .collect import collect, collect_alternatives
from .linear import LinearEvidence, tightest_bounds
from .pieces import (
    AnyOf,
    Box,
    CategoricalPrior,
    Evidence,
    GaussianPrior,
    LinearEquality,
    LinearGaussian,
    LinearInequality,
    Nonlinear,
    Observed,
)

collect_branches = collect_alternatives  # its earlier name
