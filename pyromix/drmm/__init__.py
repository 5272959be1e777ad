"""Deep residual mixture models: train once, then predict anything from anything."""

__all__ = ["DRMM"]

from .model import DRMM
