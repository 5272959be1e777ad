"""Flows: a base law and transforms of its draws."""

__all__ = ["Flow", "FlowLaw", "near_identity"]

from .flow import Flow
from .law import FlowLaw
from .near_identity import near_identity
