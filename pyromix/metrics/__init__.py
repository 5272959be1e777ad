"""How good samples and densities are; these functions know no model."""

__all__ = [
    "PrecisionRecall",
    "bits_per_dim",
    "coverage",
    "crps",
    "energy_score",
    "pit",
    "precision_recall",
]

from .ensembles import coverage, crps, energy_score, pit
from .likelihood import bits_per_dim
from .neighbors import PrecisionRecall, precision_recall
