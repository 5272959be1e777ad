"""What layers make of images, from the bottom up."""

__all__ = ["Estimation"]

from dataclasses import dataclass

import torch
from torch import Tensor

from ..numerics.diagonal_density import log_sum_exp
from .law import TopDownLaw
from .mixture_layer import MixtureLayer
from .outliers import Calibration

# Images that are read together.
IMAGES = 256


@dataclass(frozen=True)
class Estimation:
    """Reads images layer by layer: each sees the responsibilities of the one below.

    Images have channels last here: (N, H, W, C).

    Args:
        law: The law, whose architecture says what layers see, and which expects codes top-down.
        mixtures: The layers, from the bottom.
        usual: What log-likelihoods of all layers usually are.
        usual_agreement: What agreements of all layers but the top usually are.
    """

    law: TopDownLaw
    mixtures: list[MixtureLayer]
    usual: Calibration
    usual_agreement: Calibration

    def scores(self, images: Tensor) -> list[Tensor]:
        """Log-densities plus log-weights of all components: shapes (N, rows, columns, K)."""
        if len(images) > IMAGES:  # what layers see is many times larger than the images
            parts = [self.scores(block) for block in images.split(IMAGES)]
            return [torch.cat(part) for part in zip(*parts, strict=True)]
        scores: list[Tensor] = []
        for block, mixture in zip(self.law.blocks, self.mixtures, strict=True):
            below = scores[-1].softmax(-1) if scores else images
            scores.append(mixture.scores(block.up(below)))
        return scores

    def agreements(self, scores: list[Tensor], top: Tensor) -> list[Tensor]:
        """How well layers below the top agree with what the top expects of them.

        Args:
            scores: Of all layers, from the bottom: shapes (N, rows, columns, K).
            top: Responsibilities of the top layer, shape (N, rows, columns, K).

        Returns:
            For every layer but the top, from the bottom, minus the Kullback-Leibler divergence of
            what is expected from its responsibilities: a tensor of shape (N, rows, columns).
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
        """Takes note of what is usual, from images (N, H, W, C)."""
        likelihoods, agreements = [], []
        for images in batches:
            scores = self.scores(images)
            likelihoods.append([log_sum_exp(part) for part in scores])
            agreements.append(self.agreements(scores, scores[-1].softmax(-1)))
        self.usual.set([torch.cat(part) for part in zip(*likelihoods, strict=True)])
        self.usual_agreement.set([torch.cat(part) for part in zip(*agreements, strict=True)])

    def deviations(
        self, scores: list[Tensor], layer: int, context: bool = False, top: Tensor | None = None
    ) -> Tensor:
        """Standard deviations by which a layer falls short of what is usual, (N, rows, columns).

        Args:
            scores: Of all layers, from `scores`.
            layer: From 0 at the bottom.
            context: Whether by its agreement with the top instead of its log-likelihood.
            top: Responsibilities of the top layer; by default those of these images.
        """
        if not context:
            return self.usual.deviations(layer, log_sum_exp(scores[layer]))
        top = scores[-1].softmax(-1) if top is None else top
        return self.usual_agreement.deviations(layer, self.agreements(scores, top)[layer])

    def over_pixels(self, values: Tensor, layer: int) -> Tensor:
        """Averages over the windows that see a pixel: (N, rows, columns) to (N, H, W)."""
        grid = values.unsqueeze(-1)
        for block in reversed(self.law.blocks[: layer + 1]):
            cells = block.dim // block.channels
            grid = block.down(grid.expand(*grid.shape[:-1], cells))
        return grid.squeeze(-1)
