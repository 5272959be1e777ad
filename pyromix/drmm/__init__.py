"""Deep residual mixture models: train once, then predict anything from anything."""

__all__ = ["DRMM", "ConditionedDRMM", "Query"]

from .conditioned import ConditionedDRMM
from .model import DRMM
from .query import Query
