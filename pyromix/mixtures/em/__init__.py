"""Expectation maximisation."""

__all__ = ["fit_em"]

from .fit_em import fit_em
