"""What every model is made of: the base class, batches, checks, constraints and the registry."""

__all__ = ["Batch", "DistributionModule", "LawModule", "check_paired", "split_batch"]

from .batch import Batch, check_paired, split_batch
from .law_module import LawModule
from .module import DistributionModule
