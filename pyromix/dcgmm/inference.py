"""What pixels tell about codes: exactly where these form a tree, else by a lower bound."""

__all__ = ["Posterior", "infer", "log_prob"]

import math
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..validation import is_traced
from .bound import Bound
from .law import TopDownLaw
from .tree import Tree

# Numbers that the bound of one block of images may hold at a time (64 MiB of float32).
BLOCK_NUMBERS = 2**24


class Posterior(Protocol):
    """What is known about codes given (some of) the pixels of N images."""

    log_evidence: Tensor

    def marginals(self) -> Tensor:
        """Probability of every code of the bottom patches, shape (N, P, K)."""

    def draw(self) -> Tensor:
        """Codes of the bottom patches, shape (N, P)."""


def infer(law: TopDownLaw, images: Tensor, observed: Tensor | None = None) -> Posterior:
    """Infers codes.

    Args:
        law: The law.
        images: Shape (N, H, W, C).
        observed: One for pixels that count, zero for others, of the same shape.
    """
    return (Tree if law.architecture.exact else Bound)(law, images, observed)


def log_prob(law: TopDownLaw, images: Tensor) -> Tensor:
    """Log-density of images (N, H, W, C), or a lower bound: shape (N,).

    Images are worked on in blocks, which are computed again in the backward pass instead of being
    kept.
    """
    size = max(1, BLOCK_NUMBERS // numbers_per_image(law))
    if len(images) <= size or is_traced():
        return infer(law, images).log_evidence

    def evidence(block: Tensor, log_weights: Tensor) -> Tensor:
        return infer(law.weighted(log_weights), block).log_evidence

    weights = law.log_weights.expand(len(images), -1).split(size)
    parts = zip(images.split(size), weights, strict=True)
    if torch.is_grad_enabled():
        return torch.cat([checkpoint(evidence, *part, use_reentrant=False) for part in parts])
    return torch.cat([evidence(*part) for part in parts])


def numbers_per_image(law: TopDownLaw) -> int:
    """About how many numbers inference holds for one image."""
    numbers = [
        block.num_positions * (block.num_components + block.dim) for block in law.blocks[:1]
    ] + [
        math.prod(block.wiring.parent.shape) * block.channels + block.num_positions * block.dim
        for block in law.blocks[1:-1]
    ]
    top = law.blocks[-1]
    several = 1 if law.architecture.exact else max(law.max_codes, top.num_components)
    if len(law.blocks) < 3 and top.num_positions == 1:
        several = top.num_components
    return 2 * several * sum(numbers)
