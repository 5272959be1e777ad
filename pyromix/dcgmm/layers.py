"""What a deep convolutional mixture is made of: plain descriptions of its layers."""

__all__ = ["GMM", "Classifier", "Folding", "Layer", "Pooling"]

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from ..core.checks import as_int, check_positive_int
from ..core.registry import register

Pair = int | Sequence[int]


@dataclass(frozen=True)
class _Window:
    """A window that slides over height and width.

    Args:
        kernel: Size of the window: one number, or (height, width).
        stride: Distance between windows, at most the kernel; by default they do not overlap.

    Raises:
        ValueError: For numbers that are not positive integers, or a stride that leaves gaps.
    """

    kernel: Pair
    stride: Pair | None = None

    def __post_init__(self) -> None:
        kernel = _as_pair("kernel", self.kernel)
        stride = kernel if self.stride is None else _as_pair("stride", self.stride)
        if stride[0] > kernel[0] or stride[1] > kernel[1]:
            raise ValueError(
                f"Expected a stride of at most the kernel {kernel}, got {stride}: no window would "
                f"cover what lies between."
            )
        object.__setattr__(self, "kernel", kernel)
        object.__setattr__(self, "stride", stride)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the window."""
        return cast(tuple[int, int], self.kernel)

    @property
    def step(self) -> tuple[int, int]:
        """Distance between windows, down and to the right."""
        return cast(tuple[int, int], self.stride)

    def __str__(self) -> str:
        (h, w), (down, right) = self.size, self.step
        return f"{type(self).__name__} {h} x {w}, stride {down} x {right}"


class Folding(_Window):
    """Collects what a sliding window sees in the channels of its position, as convolutions do.

    On the way down, what several windows say about one place is averaged (the paper's section
    II-A1).

    Args:
        kernel: Size of the window: one number, or (height, width).
        stride: Distance between windows, at most the kernel; by default they do not overlap.

    Raises:
        ValueError: For numbers that are not positive integers, or a stride that leaves gaps.

    Example:
        >>> Folding(8, stride=2)
        Folding(kernel=(8, 8), stride=(2, 2))
    """


class Pooling(_Window):
    """Keeps the largest value of every channel in each window.

    On the way down, a value is repeated over its window; where windows overlap, they are averaged
    (the paper's section II-A2).

    Args:
        kernel: Size of the window: one number, or (height, width).
        stride: Distance between windows, at most the kernel; by default they do not overlap.

    Raises:
        ValueError: For numbers that are not positive integers, or a stride that leaves gaps.
    """


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

for _layer in (Folding, Pooling, GMM, Classifier):
    register(_layer)


def _as_pair(name: str, value: object) -> tuple[int, int]:
    """Height and width, of one number or two."""
    one = as_int(value)
    pair = (one, one) if one is not None else value
    if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
        raise ValueError(f"Expected {name} to be one number or (height, width), got {value!r}.")
    height, width = (check_positive_int(f"both sides of {name}", side) for side in pair)
    return height, width
