"""Descriptions of the layers of a deep convolutional mixture."""

__all__ = ["GMM", "Classifier", "Folding", "Layer", "Pooling"]

from dataclasses import dataclass

from ..core.checks import check_positive_int
from ..core.registry import register
from .patches import Folding, Pooling


@dataclass(frozen=True)
class GMM:
    """A mixture of diagonal normals over the channels of each position, shared by all positions.

    Its responsibilities are what the next layer sees (the paper's section II-A3).

    Args:
        num_components: Number of components K. In training they lie on a grid, which wraps
            around, as nearly square as K allows: square numbers are best, primes form a ring.

    Raises:
        ValueError: If it is not a positive integer.
    """

    num_components: int

    def __post_init__(self) -> None:
        check_positive_int("num_components", self.num_components)

    def __str__(self) -> str:
        return f"GMM {self.num_components}"


@dataclass(frozen=True)
class Classifier:
    """A linear classifier of the top mixture's responsibilities (the paper's section II-A4).

    Args:
        num_classes: Number of classes C.

    Raises:
        ValueError: If it is not a positive integer.
    """

    num_classes: int

    def __post_init__(self) -> None:
        check_positive_int("num_classes", self.num_classes)

    def __str__(self) -> str:
        return f"Classifier {self.num_classes}"


Layer = Folding | Pooling | GMM | Classifier

for _layer in (GMM, Classifier):
    register(_layer)
