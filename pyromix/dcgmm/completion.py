"""Images of which parts are unknown, or corrupted."""

__all__ = ["fill", "find_known"]

from dataclasses import replace

import torch
from torch import Tensor

from .estimation import Estimation
from .inference import images_per_block, infer
from .law import TopDownLaw

# How often corrupted pixels are looked for, and completed.
ROUNDS = 3


def fill(
    law: TopDownLaw,
    images: Tensor,
    known: Tensor,
    num_samples: int | None = None,
    temperature: float = 1.0,
    noise: bool = False,
) -> Tensor:
    """Mean images, or draws, given known pixels.

    Args:
        law: The law.
        images: Shape (N, H, W, C); finite where unknown, too.
        known: Boolean tensor of the same shape.
        num_samples: Number of draws; by default the mean is returned.
        temperature: By what to multiply the variances of known pixels in the inference.
        noise: Whether draws get the pixels' noise.

    Returns:
        Tensor of shape (num_samples or 1, N, H, W, C).
    """
    tempered = replace(law, scale=law.scale * temperature**0.5)
    parts, size = [], images_per_block(law)
    for block, seen in zip(images.split(size), known.to(images).split(size), strict=True):
        posterior = infer(tempered, block, seen)
        if num_samples is None:
            parts.append(law.decode_mean(posterior.marginals()).unsqueeze(0))
            continue
        draws = []
        for _ in range(num_samples):
            codes = posterior.draw()
            mean = law.decode(codes)
            spread = law.pixel_scale(codes) * torch.randn_like(mean)
            draws.append(mean + spread if noise else mean)
        parts.append(torch.stack(draws))
    return torch.cat(parts, 1)


def find_known(estimation: Estimation, images: Tensor, threshold: float) -> Tensor:
    """Which pixels are not corrupted: a boolean tensor (N, H, W, C).

    The top layer says what an image is, and that says which places do not belong to it. What
    they are completed to tells the top layer more, in turn.

    Args:
        estimation: Reads images, calibrated.
        images: Shape (N, H, W, C).
        threshold: Standard deviations below what is usual at which corruption begins.
    """
    known, filled = torch.ones_like(images, dtype=torch.bool), images
    scores = estimation.scores(images)
    likelihood = estimation.deviations(scores, 0)
    for _ in range(ROUNDS):
        top = estimation.scores(filled)[-1].softmax(-1)
        deviations = likelihood
        if len(estimation.mixtures) > 1:
            context = estimation.deviations(scores, 0, context=True, top=top)
            deviations = torch.maximum(deviations, context)
        fine = estimation.over_pixels(deviations, 0) <= threshold
        known = fine.unsqueeze(-1).expand(images.shape)
        filled = torch.where(known, images, fill(estimation.law, images, known)[0])
    return known
