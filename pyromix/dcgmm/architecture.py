"""The shapes of a deep convolutional mixture, layer by layer, with checks."""

__all__ = ["Architecture", "Block", "check_image_shape", "check_layers"]

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..core.checks import check_positive_int
from .layers import GMM, Classifier, Folding, Layer, Pooling
from .patches import Size, count_windows
from .wiring import WindowStack


@dataclass(frozen=True)
class Block(WindowStack):
    """A layer of mixtures, with the windows between it and what is below."""

    num_components: int
    """Number of components of its mixtures."""


class Architecture:
    """The blocks of a model, from the image upwards.

    Args:
        event_shape: Channels, height and width of an image, from `check_image_shape`.
        layers: The layers, from the image upwards, from `check_layers`.

    Raises:
        ValueError: If windows do not fit what is below them.
    """

    def __init__(self, event_shape: tuple[int, int, int], layers: tuple[Layer, ...]) -> None:
        self.event_shape, self.layers = event_shape, layers
        channels, height, width = event_shape
        size: Size = (height, width)
        self.rows = [("image", size, channels)]
        self.blocks: list[Block] = []
        self.num_classes: int | None = None
        windows: list[Folding | Pooling] = []
        sizes, below = [size], channels
        for number, layer in enumerate(self.layers, start=1):
            if isinstance(layer, Classifier):
                self.num_classes = channels = layer.num_classes
                if size != (1, 1):
                    raise ValueError(
                        f"Expected a top mixture with a single position below a classifier, got "
                        f"{size[0]} x {size[1]}. Fold what is left first: Folding({size})."
                    )
            elif isinstance(layer, GMM):
                block = Block(tuple(windows), tuple(sizes), below, layer.num_components)
                self.blocks.append(block)
                below = channels = layer.num_components
                windows, sizes = [], [size]
            else:
                self._check_tiles(number, layer, size)
                size = count_windows(size, layer)
                if isinstance(layer, Folding):
                    channels *= layer.size[0] * layer.size[1]
                windows.append(layer)
                sizes.append(size)
            self.rows.append((str(layer), size, channels))

    def _check_tiles(self, number: int, layer: Folding | Pooling, size: Size) -> None:
        """Checks that windows tile their input.

        Raises:
            ValueError: If they do not; the error names the nearest sizes that do.
        """
        for axis, length in enumerate(size):
            kernel, stride = layer.size[axis], layer.step[axis]
            side = ("high", "wide")[axis]
            if length < kernel:
                raise ValueError(
                    f"Layer {number}, {layer}, does not fit: its input is {size[0]} x {size[1]}, "
                    f"and at least {kernel} pixels {side} are needed.\n{self.summary()}"
                )
            rest = (length - kernel) % stride
            if rest:
                raise ValueError(
                    f"Layer {number}, {layer}, does not tile its input of {size[0]} x {size[1]}: "
                    f"{rest} would be left over. The nearest sizes that fit are {length - rest} "
                    f"and {length - rest + stride} {side}; or change kernel or stride.\n"
                    f"{self.summary()}"
                )

    def summary(self) -> str:
        """Returns a table of the shapes, a line for each layer."""
        lines = [
            f"{number or '':>3}  {name:<32} {size[0]:>4} x {size[1]:<4} {channels:>6} channels"
            for number, (name, size, channels) in enumerate(self.rows)
        ]
        return "\n".join(lines)

    @property
    def disjoint(self) -> bool:
        """Whether every pixel lies in a single patch."""
        return self.blocks[0].wiring.disjoint

    @property
    def exact(self) -> bool:
        """Whether codes form a tree: pixels in one patch, positions under one code above."""
        return self.disjoint and all(block.wiring.single_parent for block in self.blocks[1:])


def check_image_shape(name: str, shape: Any) -> tuple[int, int, int]:
    """Checks that a shape is (channels, height, width), and returns it as a tuple.

    Raises:
        ValueError: If it is not.
    """
    if not isinstance(shape, Sequence) or len(shape) != 3:
        raise ValueError(f"Expected an {name} (channels, height, width), got {shape!r}.")
    channels, height, width = (
        check_positive_int(f"every entry of {name}", side) for side in shape
    )
    return channels, height, width


def check_layers(name: str, layers: Any) -> tuple[Layer, ...]:
    """Checks the kinds of layers and their order, and returns them as a tuple.

    Raises:
        ValueError: If something is missing or out of place.
    """
    if not isinstance(layers, Sequence):
        raise ValueError(
            f"Expected {name} to be a sequence such as [Folding(7), GMM(25)], got {layers!r}."
        )
    if not layers:
        raise ValueError(
            "Expected at least one layer, got none. The smallest model is [Folding((height, "
            "width)), GMM(10)]."
        )
    for number, layer in enumerate(layers, start=1):
        if not isinstance(layer, Folding | Pooling | GMM | Classifier):
            raise ValueError(
                f"Expected layers that are Folding, Pooling, GMM or Classifier, got {layer!r} as "
                f"layer {number}."
            )
    *rest, top = layers
    if any(isinstance(layer, Classifier) for layer in rest):
        raise ValueError("Expected a Classifier only as the last layer.")
    if not isinstance(top, Classifier):
        rest = list(layers)
    if not rest or not isinstance(rest[-1], GMM):
        raise ValueError(
            "Expected a GMM layer at the top, under a Classifier if there is one: the law starts "
            f"there. Got {rest[-1] if rest else 'none'}; add GMM(36), say."
        )
    first = next(i for i, layer in enumerate(rest) if isinstance(layer, GMM))
    if any(isinstance(layer, Pooling) for layer in rest[:first]):
        raise ValueError(
            "Expected no Pooling of pixels: below the first GMM layer come only Foldings."
        )
    if first > 1:
        raise ValueError("Expected at most one Folding below the first GMM layer.")
    return tuple(layers)
