"""Windows over images and back: against loops."""

import ast
from pathlib import Path

import pytest
import torch

from pyromix.dcgmm import Folding, Pooling, patches
from pyromix.dcgmm.patches import (
    average_patches,
    average_pooled,
    count_windows,
    extract_patches,
    max_pool,
)

from . import reference

# Windows and the (height, width) of an image that they tile.
DISJOINT = [
    (Folding(2), (4, 6)),
    (Folding((2, 3)), (4, 9)),
    (Folding(1), (3, 2)),
    (Folding((5, 4)), (5, 4)),
    (Folding((1, 4)), (3, 4)),
]
OVERLAPPING = [
    (Folding(2, 1), (4, 3)),
    (Folding(3, 2), (7, 5)),
    (Folding((2, 3), (1, 2)), (3, 7)),
    (Folding((3, 2), (1, 2)), (5, 4)),
    (Folding((1, 3), 1), (1, 4)),
    (Folding((4, 3), (2, 3)), (6, 3)),
]
POOLINGS = [
    (Pooling(2), (4, 6)),
    (Pooling((1, 3)), (2, 6)),
    (Pooling((3, 2)), (3, 2)),
    (Pooling(3, 2), (7, 5)),
    (Pooling((2, 3), (1, 2)), (3, 7)),
]


# Of folding and of pooling: up and down, here and by loops.
WAYS = {
    Folding: (extract_patches, average_patches, reference.fold, reference.unfold),
    Pooling: (max_pool, average_pooled, reference.pool, reference.unpool),
}


@pytest.mark.parametrize(("window", "size"), DISJOINT + OVERLAPPING + POOLINGS)
@pytest.mark.parametrize("channels", [1, 3])
def test_windows_against_loops(window, size, channels):
    up, down, slow_up, slow_down = WAYS[type(window)]
    images = torch.randn(2, *size, channels)
    seen = up(images, window)
    assert seen.shape[1:3] == count_windows(size, window)
    expected = torch.tensor([slow_up(image, window) for image in images.tolist()])
    assert torch.equal(seen, expected)
    said = torch.randn_like(seen)  # what windows say differs where they overlap
    back = down(said, window, size)
    expected = torch.tensor([slow_down(part, window, size) for part in said.tolist()])
    torch.testing.assert_close(back, expected, atol=1e-14, rtol=1e-14)


@pytest.mark.parametrize(("layer", "size"), DISJOINT)
@pytest.mark.parametrize("channels", [1, 3])
def test_disjoint_folding_is_undone_exactly(layer, size, channels):
    images = torch.randn(2, *size, channels)
    patches = extract_patches(images, layer)
    assert patches.numel() == images.numel()
    assert torch.equal(average_patches(patches, layer, size), images)
    others = torch.randn_like(patches)
    assert torch.equal(extract_patches(average_patches(others, layer, size), layer), others)


@pytest.mark.parametrize(("layer", "size"), OVERLAPPING)
def test_overlapping_folding_of_one_image_is_undone(layer, size):
    """Patches that agree are averaged to what they agree on."""
    images = torch.randn(2, *size, 2)
    back = average_patches(extract_patches(images, layer), layer, size)
    torch.testing.assert_close(back, images, atol=1e-14, rtol=1e-14)


def test_disjoint_pooling_repeats_values():
    """The paper's nearest neighbour."""
    pooled = torch.randn(2, 2, 3, 4)
    repeated = pooled.repeat_interleave(3, 1).repeat_interleave(2, 2)
    assert torch.equal(average_pooled(pooled, Pooling((3, 2)), (6, 6)), repeated)


def test_folding_puts_rows_first_and_channels_last():
    image = torch.arange(12.0).reshape(1, 2, 3, 2)
    patches = extract_patches(image, Folding((2, 2), 1))
    assert patches[0, 0, 1].tolist() == [2, 3, 4, 5, 8, 9, 10, 11]


@pytest.mark.parametrize("name", ["patches", "wiring", "overlap"])
def test_windows_need_nothing_of_mixtures(name):
    """So that other models of images can share them."""
    tree = ast.parse(Path(patches.__file__).with_name(f"{name}.py").read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]
    assert imports
    for node in imports:
        shared = node.level == 2 and node.module.partition(".")[0] in ("core", "numerics")
        assert shared or (node.level == 1 and node.module in ("patches", "wiring"))
