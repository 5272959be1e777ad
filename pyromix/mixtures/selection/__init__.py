"""How many components, and which covariances."""

__all__ = ["Candidate", "Selection", "select"]

from .result import Candidate, Selection
from .select import select
