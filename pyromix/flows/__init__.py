"""Flows: a base law and transforms of its draws."""

__all__ = ["ConditionedFlow", "Flow", "FlowLaw", "Triangular", "near_identity"]

from .conditioned import ConditionedFlow
from .flow import Flow
from .law import FlowLaw
from .near_identity import near_identity
from .triangular import Triangular
