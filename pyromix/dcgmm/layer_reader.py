"""Reads images layer by layer, and compares what it reads with the training data."""

__all__ = ["Calibration", "LayerReader"]

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..numerics.diagonal_density import log_sum_exp
from .law import TopDownLaw
from .mixture_layer import MixtureLayer

# Images that are read together.
IMAGES = 256

SMALLEST_DEVIATION = 1e-3  # nats


class Calibration(nn.Module):
    """Mean and standard deviation of numbers that are read at every position of every layer.

    Both are taken over images of the training data (eq. 6), and are infinite before.

    Args:
        sizes: Rows and columns of each layer.
    """

    def __init__(self, sizes: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        self.num_maps = len(sizes)
        for index, size in enumerate(sizes):
            self.register_buffer(f"mean{index}", torch.full(size, math.inf))
            self.register_buffer(f"deviation{index}", torch.full(size, math.inf))

    @torch.no_grad()
    def set(self, readings: Sequence[Tensor]) -> None:
        """Sets mean and standard deviation.

        Args:
            readings: For each layer a tensor of shape (N, rows, columns), for N images.

        Raises:
            ValueError: For fewer than two images.
        """
        if readings and len(readings[0]) < 2:
            raise ValueError(
                f"Expected at least two images to calibrate on, got {len(readings[0])}."
            )
        for index, values in enumerate(readings):
            self.get_buffer(f"mean{index}").copy_(values.mean(0))
            deviation = values.std(0)
            # Where nothing ever varied, as in blank corners, rounding must not look unusual.
            least = SMALLEST_DEVIATION + 1e-3 * deviation.mean()
            self.get_buffer(f"deviation{index}").copy_(deviation.clamp(min=least))

    def deviations(self, layer: int, reading: Tensor) -> Tensor:
        """Returns by how many standard deviations numbers lie below their mean.

        Args:
            layer: From 0 at the bottom, or from -1 at the top.
            reading: Shape (N, rows, columns).

        Returns:
            Tensor of shape (N, rows, columns), positive where a number is below the mean.

        Raises:
            RuntimeError: Before `set` was called.
        """
        layer %= self.num_maps
        mean, deviation = (self.get_buffer(f"{name}{layer}") for name in ("mean", "deviation"))
        if bool(mean.isinf().any()):
            raise RuntimeError(
                "Mean and standard deviation of the training data's log-likelihoods are not known "
                "yet: call calibrate(images) with the training data first."
            )
        return (mean - reading) / deviation


@dataclass(frozen=True)
class LayerReader:
    """Reads images from the bottom up: each layer sees the responsibilities of the one below.

    Images have channels last here: (N, H, W, C).

    Args:
        law: The law, whose architecture says what layers see, and which says from the top down
            what responsibilities are expected.
        mixtures: The layers, from the bottom.
        calibration: Means and standard deviations of the log-likelihoods of all layers.
        context_calibration: Those of the agreements of all layers but the top.
    """

    law: TopDownLaw
    mixtures: list[MixtureLayer]
    calibration: Calibration
    context_calibration: Calibration

    def scores(self, images: Tensor) -> list[Tensor]:
        """Returns log-densities plus log-weights of all components.

        Args:
            images: Shape (N, H, W, C).

        Returns:
            For every layer, from the bottom, a tensor of shape (N, rows, columns, K).
        """
        if len(images) > IMAGES:  # what layers see is many times larger than the images
            parts = [self.scores(block) for block in images.split(IMAGES)]
            return [torch.cat(part) for part in zip(*parts, strict=True)]
        scores: list[Tensor] = []
        for block, mixture in zip(self.law.blocks, self.mixtures, strict=True):
            below = scores[-1].softmax(-1) if scores else images
            scores.append(mixture.scores(block.up(below)))
        return scores

    def agreements(self, scores: list[Tensor], top: Tensor) -> list[Tensor]:
        """Returns how well layers below the top agree with what the top expects of them.

        Args:
            scores: Of all layers, from `scores`.
            top: Responsibilities of the top layer, shape (N, rows, columns, K).

        Returns:
            For every layer but the top, from the bottom, a tensor of shape (N, rows, columns):
            minus the Kullback-Leibler divergence of the expected probabilities of codes from the
            layer's responsibilities.
        """
        expected = top.flatten(1, 2)
        result: list[Tensor] = []
        for layer in reversed(range(len(scores) - 1)):
            expected = self.law.expected_controls(layer, expected)
            found = scores[layer].softmax(-1)
            surprise = torch.special.xlogy(found, expected.reshape(found.shape))
            result.insert(0, (surprise + torch.special.entr(found)).sum(-1))
        return result

    def calibrate(self, batches: list[Tensor]) -> None:
        """Sets both calibrations from images, each batch of shape (N, H, W, C)."""
        likelihoods, agreements = [], []
        for images in batches:
            scores = self.scores(images)
            likelihoods.append([log_sum_exp(part) for part in scores])
            agreements.append(self.agreements(scores, scores[-1].softmax(-1)))
        self.calibration.set([torch.cat(part) for part in zip(*likelihoods, strict=True)])
        self.context_calibration.set([torch.cat(part) for part in zip(*agreements, strict=True)])

    def deviations(self, scores: list[Tensor], layer: int) -> Tensor:
        """Returns by how many standard deviations a layer's log-likelihoods are below their mean.

        Args:
            scores: Of all layers, from `scores`.
            layer: From 0 at the bottom, or from -1 at the top.

        Returns:
            Tensor of shape (N, rows, columns).

        Raises:
            RuntimeError: Before `calibrate`.
        """
        return self.calibration.deviations(layer, log_sum_exp(scores[layer]))

    def context_deviations(
        self, scores: list[Tensor], layer: int, top: Tensor | None = None
    ) -> Tensor:
        """Returns by how many standard deviations a layer's agreements are below their mean.

        Args:
            scores: Of all layers, from `scores`.
            layer: From 0 at the bottom; not the top.
            top: Responsibilities of the top layer; by default those of these images.

        Returns:
            Tensor of shape (N, rows, columns).

        Raises:
            RuntimeError: Before `calibrate`.
        """
        top = scores[-1].softmax(-1) if top is None else top
        return self.context_calibration.deviations(layer, self.agreements(scores, top)[layer])

    def over_pixels(self, values: Tensor, layer: int) -> Tensor:
        """Averages over the windows that see a pixel.

        Args:
            values: At the positions of a layer, shape (N, rows, columns).
            layer: From 0 at the bottom.

        Returns:
            Tensor of shape (N, H, W).
        """
        grid = values.unsqueeze(-1)
        for block in reversed(self.law.blocks[: layer + 1]):
            grid = block.down(grid.expand(*grid.shape[:-1], block.num_slices))
        return grid.squeeze(-1)
