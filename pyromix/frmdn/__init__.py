"""Recurrent mixture density networks through a flow, and what they are made of."""

from .law import SequenceLaw
from .model import FRMDN

__all__ = ["FRMDN", "SequenceLaw"]
