"""Guides for Pyro: mixtures as posteriors, and evidence lower bounds of weighted draws."""

from .auto_mixture import AutoMixture
from .fitting import fit_guide
from .modes import Mode
from .result import GuideResult, evaluate_guide
from .stratified import StratifiedELBO

__all__ = [
    "AutoMixture",
    "GuideResult",
    "Mode",
    "StratifiedELBO",
    "evaluate_guide",
    "fit_guide",
]
