"""Completes images of which parts are missing or corrupted."""

__all__ = ["expand_mask", "fill", "find_evidence"]

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..core.conversions import as_numbers
from .inference import images_per_block, infer
from .law import TopDownLaw
from .layer_reader import LayerReader

# How often corrupted pixels are looked for, and completed.
ROUNDS = 3


def fill(
    law: TopDownLaw,
    images: Tensor,
    evidence: Tensor,
    num_samples: int | None = None,
    temperature: float = 1.0,
    noise: bool = False,
) -> Tensor:
    """Returns mean images, or draws, given the pixels that are evidence.

    Args:
        law: The law.
        images: Shape (N, H, W, C); finite where they are no evidence, too.
        evidence: Boolean tensor of shape (N, H, W, C), True for pixels that are known.
        num_samples: Number of draws; by default the mean is returned.
        temperature: By what to multiply the variances of known pixels in the inference.
        noise: Whether draws get the pixels' noise.

    Returns:
        Tensor of shape (num_samples or 1, N, H, W, C).
    """
    tempered = replace(law, scale=law.scale * temperature**0.5)
    parts, size = [], images_per_block(law)
    for block, known in zip(images.split(size), evidence.to(images).split(size), strict=True):
        posterior = infer(tempered, block, known)
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


def find_evidence(reader: LayerReader, images: Tensor, threshold: float) -> Tensor:
    """Returns which pixels are not corrupted.

    Pixels are corrupted where the bottom layer's log-likelihood is low, or where its
    responsibilities do not agree with those that the top layer expects. Corrupted pixels hide from
    the top layer what the image is. So it reads the completed image, and the search is repeated.

    Args:
        reader: Reads images, and is calibrated.
        images: Shape (N, H, W, C).
        threshold: Standard deviations below the mean of the training data at which corruption
            begins.

    Returns:
        Boolean tensor of shape (N, H, W, C).

    Raises:
        ValueError: If the bottom layer sees the image as one patch.
        RuntimeError: If the reader is not calibrated.
    """
    if reader.law.blocks[0].num_positions == 1:
        raise ValueError(
            "Expected a mask: the bottom layer sees the image as one patch, and cannot say "
            "which part of it is corrupted. Use smaller windows for that."
        )
    evidence, filled = torch.ones_like(images, dtype=torch.bool), images
    scores = reader.scores(images)
    likelihood = reader.deviations(scores, 0)
    for _ in range(ROUNDS):
        top = reader.scores(filled)[-1].softmax(-1)
        deviations = likelihood
        if len(reader.mixtures) > 1:
            deviations = torch.maximum(deviations, reader.context_deviations(scores, 0, top))
        fine = reader.over_pixels(deviations, 0) <= threshold
        evidence = fine.unsqueeze(-1).expand(images.shape)
        filled = torch.where(evidence, images, fill(reader.law, images, evidence)[0])
    return evidence


def expand_mask(mask: Any, value: Tensor) -> Tensor:
    r"""Returns a mask of images as one of all their pixels and channels.

    Args:
        mask: True where pixels are known, shape (\*S, H, W), or one that broadcasts to the
            images'.
        value: Images, shape ``(*S, C, H, W)``.

    Returns:
        Boolean tensor of the shape of the images.

    Raises:
        ValueError: For a mask of another kind or shape, or NaN among known pixels.
    """
    mask = mask if isinstance(mask, Tensor) else as_numbers("mask", mask).to(value.device)
    if mask.dtype != torch.bool:
        raise ValueError(
            "Expected a boolean mask, True where pixels are known. Convert numbers with "
            "torch.as_tensor(mask).bool()."
        )
    if value.dim() > 3 and mask.shape == (*value.shape[:-3], *value.shape[-2:]):
        if mask.shape[-3] == value.shape[-3] > 1:
            raise ValueError(
                f"Expected a mask that says whether it is of images or of channels, got shape "
                f"{tuple(mask.shape)}, and there are as many of both. Insert a dimension of "
                f"size 1."
            )
        mask = mask.unsqueeze(-3)
    try:
        evidence = mask.expand(value.shape)
    except RuntimeError:
        raise ValueError(
            f"Expected a mask that broadcasts to the images' shape {tuple(value.shape)}, got "
            f"{tuple(mask.shape)}."
        ) from None
    if bool((evidence & value.isnan()).any()):
        raise ValueError("Expected no NaN among the pixels that the mask calls known.")
    return evidence
