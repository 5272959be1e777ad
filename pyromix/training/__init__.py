"""The training loop."""

__all__ = ["History", "NonFiniteLossError", "adam", "deferred_interrupt", "fit"]

from .fit import adam, fit
from .history import History
from .interrupt import deferred_interrupt
from .trainer import NonFiniteLossError
