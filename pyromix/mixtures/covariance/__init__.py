"""Covariance structures of a learnable mixture, by name."""

__all__ = ["STRUCTURES", "CovarianceStructure", "Moments", "OfRank", "make_structure"]

from .diagonal import Diagonal, Shared, Spherical
from .factors import LowRank
from .full import Full, Tied
from .low_rank import LowRankPrecision
from .structure import CovarianceStructure, Moments, OfRank

STRUCTURES: dict[str, type[CovarianceStructure]] = {
    "diagonal": Diagonal,
    "spherical": Spherical,
    "shared": Shared,
    "tied": Tied,
    "full": Full,
    "low_rank": LowRank,
    "low_rank_precision": LowRankPrecision,
}


def make_structure(
    name: str, dim: int, num_components: int, floor: float, rank: int
) -> CovarianceStructure:
    """Returns the structure of a name; `rank` is that of a structure of low rank, if it is one."""
    structure = STRUCTURES[name]
    if issubclass(structure, OfRank):
        return structure(dim, num_components, floor, rank)
    return structure(dim, num_components, floor)
