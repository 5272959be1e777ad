"""Real and discrete flows: transforms that fold space, with branches as discrete latents."""

__all__ = ["RAD", "ConditionalFoldingCoupling", "Fold", "FoldingCoupling"]

from .coupling import ConditionalFoldingCoupling, FoldingCoupling
from .fold import Fold
from .model import RAD
