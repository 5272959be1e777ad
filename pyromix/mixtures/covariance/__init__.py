"""Covariance structures of a learnable mixture, by name."""

__all__ = [
    "FAMILIES",
    "STRUCTURES",
    "CovarianceStructure",
    "Decomposed",
    "Moments",
    "OfRank",
    "make_structure",
]

from collections.abc import Callable
from functools import partial

from .diagonal import Diagonal, Shared, Spherical
from .factors import LowRank
from .families import Decomposed
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

# By volume, shape and orientation: five are structures from above.
FAMILIES: dict[str, Callable[[int, int, float], CovarianceStructure]] = {
    "EII": partial(Decomposed, "EII"),
    "VII": Spherical,
    "EEI": Shared,
    "VEI": partial(Decomposed, "VEI"),
    "EVI": partial(Decomposed, "EVI"),
    "VVI": Diagonal,
    "EEE": Tied,
    "VEE": partial(Decomposed, "VEE"),
    "EVE": partial(Decomposed, "EVE"),
    "VVE": partial(Decomposed, "VVE"),
    "EEV": partial(Decomposed, "EEV"),
    "VEV": partial(Decomposed, "VEV"),
    "EVV": partial(Decomposed, "EVV"),
    "VVV": Full,
}


def make_structure(
    name: str, dim: int, num_components: int, floor: float, rank: int
) -> CovarianceStructure:
    """Returns the structure of a name; `rank` is that of a structure of low rank, if it is one."""
    if name in FAMILIES:
        return FAMILIES[name](dim, num_components, floor)
    structure = STRUCTURES[name]
    if issubclass(structure, OfRank):
        return structure(dim, num_components, floor, rank)
    return structure(dim, num_components, floor)
