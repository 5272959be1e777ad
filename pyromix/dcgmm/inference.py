"""Inference of codes from pixels: exact where codes form a tree, else by a lower bound."""

__all__ = ["Posterior", "images_per_block", "infer", "log_prob"]

import math
from functools import partial
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..core.checks import check_squares, is_traced
from ..numerics.full_precision import in_full_precision
from .bound import Bound
from .law import TopDownLaw
from .tree import Tree

# Largest number of entries of the tensors that are kept for a block of images (64 MiB of float32).
BLOCK_NUMBERS = 2**24


class Posterior(Protocol):
    """The law of codes given all or some of the pixels of N images."""

    log_evidence: Tensor
    """Log-density of these pixels, or a lower bound of it, shape (N,)."""

    def marginals(self) -> Tensor:
        """Returns probabilities of all codes of the bottom patches, shape (N, P, K)."""

    def draw(self) -> Tensor:
        """Draws codes of the bottom patches, shape (N, P)."""


def infer(law: TopDownLaw, images: Tensor, evidence: Tensor | None = None) -> Posterior:
    """Returns the law of codes given pixels, or an approximation of it.

    Args:
        law: The law.
        images: Shape (N, H, W, C).
        evidence: 1 for pixels that are known, 0 for others, shape (N, H, W, C); by default all
            are known.
    """
    return (Tree if law.architecture.exact else Bound)(law, images, evidence)


@in_full_precision
def log_prob(law: TopDownLaw, images: Tensor) -> Tensor:
    """Returns the log-density of images, or a lower bound of it.

    Images are processed in blocks. The backward pass computes each block again instead of keeping
    what it needs of it.

    Args:
        law: The law.
        images: Shape (N, H, W, C).

    Returns:
        Tensor of shape (N,).

    Raises:
        ValueError: If pixels are so large that their squares overflow.
    """
    check_squares("pixels, in units of the smallest noise,", images.detach() / law.scale.min())
    size = images_per_block(law)
    if len(images) <= size or is_traced():
        return infer(law, images).log_evidence

    def of_block(block: Tensor, log_weights: Tensor) -> Tensor:
        return infer(law.weighted(log_weights), block).log_evidence

    weights = law.log_weights.expand(len(images), -1).split(size)
    parts = zip(images.split(size), weights, strict=True)
    if torch.is_grad_enabled():
        again = partial(checkpoint, of_block, use_reentrant=False, preserve_rng_state=False)
        return torch.cat([again(*part) for part in parts])
    return torch.cat([of_block(*part) for part in parts])


def images_per_block(law: TopDownLaw) -> int:
    """Returns how many images are processed together, so that memory stays within bounds."""
    bottom, *above = law.blocks
    numbers = bottom.num_positions * (bottom.num_components + bottom.dim)
    for block in above[:-1]:
        numbers += math.prod(block.wiring.parent.shape) * block.channels
        numbers += block.num_positions * block.dim
    enumerated = 1
    if not law.architecture.exact and above:
        top = law.blocks[-1]
        enumerated = top.num_components if top.num_positions == 1 else 1
        if len(above) > 1 or top.num_positions > 1:
            enumerated = max(enumerated, law.max_codes)
    return max(1, BLOCK_NUMBERS // (2 * enumerated * numbers))
