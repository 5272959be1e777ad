"""Windows over images and back, with channels last: (N, height, width, channels)."""

__all__ = ["average_patches", "average_pooled", "count_windows", "extract_patches", "max_pool"]

import torch.nn.functional as nnf
from torch import Tensor

from .layers import Folding, Pooling


def count_windows(size: tuple[int, int], layer: Folding | Pooling) -> tuple[int, int]:
    """Number of windows down and across an image of (height, width) that they tile."""
    (h, w), (down, right) = layer.size, layer.step
    return (size[0] - h) // down + 1, (size[1] - w) // right + 1


def extract_patches(images: Tensor, layer: Folding) -> Tensor:
    """What each window sees: (N, H, W, C) becomes (N, H', W', h * w * C).

    Channels come last in the order of a patch: row, column, channel.
    """
    (h, w), (down, right) = layer.size, layer.step
    if images.shape[1:3] == (h, w):  # one window: nothing moves
        return images.flatten(1).unsqueeze(1).unsqueeze(1)
    windows = images.unfold(1, h, down).unfold(2, w, right)  # (N, H', W', C, h, w)
    return windows.permute(0, 1, 2, 4, 5, 3).flatten(3)


def average_patches(patches: Tensor, layer: Folding, size: tuple[int, int]) -> Tensor:
    """An image from its patches, where those that overlap are averaged: the way back.

    Args:
        patches: Shape (N, H', W', h * w * C).
        layer: The windows.
        size: Height and width of the image.

    Returns:
        Tensor of shape (N, H, W, C).
    """
    n = len(patches)
    (h, w), channels = layer.size, patches.shape[-1] // (layer.size[0] * layer.size[1])
    if size == (h, w):
        return patches.reshape(n, h, w, channels)
    columns = (
        patches.flatten(1, 2).unflatten(-1, (h * w, channels)).permute(0, 3, 2, 1)
    )  # (N, C, h w, H' W')
    total = _sum_windows(columns.flatten(1, 2), layer, size)
    ones = patches.new_ones(1, h * w, columns.shape[-1])
    return (total / _sum_windows(ones, layer, size)).movedim(1, -1)


def max_pool(images: Tensor, layer: Pooling) -> Tensor:
    """The largest value of every channel in each window: (N, H, W, C) becomes (N, H', W', C)."""
    return nnf.max_pool2d(images.movedim(-1, 1), layer.size, layer.step).movedim(1, -1)


def average_pooled(pooled: Tensor, layer: Pooling, size: tuple[int, int]) -> Tensor:
    """Repeats every value over its window; where windows overlap, values are averaged.

    Args:
        pooled: Shape (N, H', W', C).
        layer: The windows.
        size: Height and width of the result.

    Returns:
        Tensor of shape (N, H, W, C).
    """
    h, w = layer.size
    repeated = pooled.unsqueeze(-2).expand(*pooled.shape[:3], h * w, -1).flatten(3)
    return average_patches(repeated, Folding(layer.kernel, layer.stride), size)


def _sum_windows(columns: Tensor, layer: Folding, size: tuple[int, int]) -> Tensor:
    return nnf.fold(columns, size, layer.size, stride=layer.step)
