"""Deep residual mixture models: train once, then predict anything from anything."""

__all__ = ["DRMM", "ConditionedDRMM"]

from .conditioned import ConditionedDRMM
from .model import DRMM
