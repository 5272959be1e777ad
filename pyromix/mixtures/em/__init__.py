"""Expectation maximisation, its priors, and variational Bayes."""

__all__ = ["ConjugatePrior", "VBResult", "fit_em", "fit_vb"]

from .fit_em import fit_em
from .prior import ConjugatePrior
from .variational import VBResult, fit_vb
