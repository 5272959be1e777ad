"""Guides for Pyro: mixtures as posteriors, and evidence lower bounds of weighted draws."""

from .auto_mixture import AutoMixture
from .stratified import StratifiedELBO

__all__ = ["AutoMixture", "StratifiedELBO"]
