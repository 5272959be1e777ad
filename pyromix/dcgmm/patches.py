"""Windows over images: what they see, and images from what they see.

Images have channels last here: (N, height, width, channels). Nothing here knows what the channels
are: pixels, responsibilities or anything else.
"""

__all__ = [
    "Folding",
    "Pooling",
    "Size",
    "Window",
    "average_patches",
    "average_pooled",
    "count_windows",
    "extract_patches",
    "max_pool",
]

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch.nn.functional as nnf
from torch import Tensor

from ..core.checks import as_int, check_positive_int
from ..core.registry import register

Size = tuple[int, int]
Pair = int | Sequence[int]


@dataclass(frozen=True)
class Window:
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
    def size(self) -> Size:
        """Height and width of the window."""
        return cast(Size, self.kernel)

    @property
    def step(self) -> Size:
        """Distance between windows, down and to the right."""
        return cast(Size, self.stride)

    def __str__(self) -> str:
        (h, w), (down, right) = self.size, self.step
        return f"{type(self).__name__} {h} x {w}, stride {down} x {right}"


class Folding(Window):
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


class Pooling(Window):
    """Keeps the largest value of every channel in each window.

    On the way down, a value is repeated over its window; where windows overlap, they are averaged
    (the paper's section II-A2).

    Args:
        kernel: Size of the window: one number, or (height, width).
        stride: Distance between windows, at most the kernel; by default they do not overlap.

    Raises:
        ValueError: For numbers that are not positive integers, or a stride that leaves gaps.
    """


for _window in (Folding, Pooling):
    register(_window)


def count_windows(size: Size, window: Window) -> Size:
    """Returns how many windows tile an image of (height, width): their rows and columns."""
    (h, w), (down, right) = window.size, window.step
    return (size[0] - h) // down + 1, (size[1] - w) // right + 1


def extract_patches(images: Tensor, window: Window) -> Tensor:
    """Returns what each window sees as one vector.

    Args:
        images: Shape (N, H, W, C).
        window: The windows, of h x w.

    Returns:
        Tensor of shape (N, H', W', h * w * C), where each patch is in the order row, column,
        channel.
    """
    (h, w), (down, right) = window.size, window.step
    if images.shape[1:3] == (h, w):  # one window: nothing moves
        return images.flatten(1).unsqueeze(1).unsqueeze(1)
    windows = images.unfold(1, h, down).unfold(2, w, right)  # (N, H', W', C, h, w)
    return windows.permute(0, 1, 2, 4, 5, 3).flatten(3)


def average_patches(patches: Tensor, window: Window, size: Size) -> Tensor:
    """Returns images from their patches; where patches overlap, they are averaged.

    Args:
        patches: Shape (N, H', W', h * w * C).
        window: The windows.
        size: Height and width of the image.

    Returns:
        Tensor of shape (N, H, W, C).
    """
    n = len(patches)
    (h, w), channels = window.size, patches.shape[-1] // (window.size[0] * window.size[1])
    if size == (h, w):
        return patches.reshape(n, h, w, channels)
    columns = (
        patches.flatten(1, 2).unflatten(-1, (h * w, channels)).permute(0, 3, 2, 1)
    )  # (N, C, h w, H' W')
    total = _sum_windows(columns.flatten(1, 2), window, size)
    ones = patches.new_ones(1, h * w, columns.shape[-1])
    return (total / _sum_windows(ones, window, size)).movedim(1, -1)


def max_pool(images: Tensor, window: Window) -> Tensor:
    """Returns the largest value of every channel in each window.

    Args:
        images: Shape (N, H, W, C).
        window: The windows.

    Returns:
        Tensor of shape (N, H', W', C).
    """
    return nnf.max_pool2d(images.movedim(-1, 1), window.size, window.step).movedim(1, -1)


def average_pooled(pooled: Tensor, window: Window, size: Size) -> Tensor:
    """Returns images in which every value is repeated over its window.

    Where windows overlap, their values are averaged.

    Args:
        pooled: Shape (N, H', W', C).
        window: The windows.
        size: Height and width of the result.

    Returns:
        Tensor of shape (N, H, W, C).
    """
    h, w = window.size
    repeated = pooled.unsqueeze(-2).expand(*pooled.shape[:3], h * w, -1).flatten(3)
    return average_patches(repeated, window, size)


def _sum_windows(columns: Tensor, window: Window, size: Size) -> Tensor:
    """Adds up patches (N, C * h * w, H' * W') to images (N, C, H, W)."""
    return nnf.fold(columns, size, window.size, stride=window.step)


def _as_pair(name: str, value: object) -> Size:
    """Returns height and width, given one number for both or a pair.

    Raises:
        ValueError: If it is neither, or a number is not positive.
    """
    one = as_int(value)
    pair = (one, one) if one is not None else value
    if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
        raise ValueError(f"Expected {name} to be one number or (height, width), got {value!r}.")
    height, width = (check_positive_int(f"both sides of {name}", side) for side in pair)
    return height, width
