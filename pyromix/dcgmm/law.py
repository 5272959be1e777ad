"""The law of images: codes are drawn from the top down, and choose patches at the bottom."""

__all__ = ["TopDownLaw", "draw", "normal_log_prob", "slices"]

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..numerics.diagonal_density import LOG_2PI, component_log_prob
from .architecture import Architecture, Block

# Centroids above stand for responsibilities below, but training may leave entries below zero.
SMALLEST_CONTROL = 1e-6


@dataclass(frozen=True)
class TopDownLaw:
    """Codes from the top down, and images given codes, for present values of the parameters.

    Images have channels last here: (N, H, W, C).

    Args:
        architecture: Shapes and wiring.
        log_weights: Of the top components, shape (K,), or (N, K) for N images.
        control: For every block but the first: what a code's slices say about codes below, shape
            (K, J, K below): probabilities, from `slices`.
        loc: Centroids of the bottom patches, shape (K, D).
        scale: Standard deviations of the pixels of a chosen patch, shape (K, D); or one, shape
            (), that all pixels share.
        sweeps: Of the bound, where the law is not exact.
        max_codes: Of layers above the bottom that the bound enumerates.
    """

    architecture: Architecture
    log_weights: Tensor
    control: tuple[Tensor, ...]
    loc: Tensor
    scale: Tensor
    sweeps: int
    max_codes: int

    @property
    def blocks(self) -> list[Block]:
        """Layers of mixtures, from the bottom."""
        return self.architecture.blocks

    def weighted(self, log_weights: Tensor) -> "TopDownLaw":
        """The same with other weights of the top components."""
        return replace(self, log_weights=log_weights)

    # ---- downwards ------------------------------------------------------------------------

    def controls(self, layer: int, codes: Tensor) -> Tensor:
        """Probabilities of a layer's codes, given those above.

        Args:
            layer: From 0 at the bottom; not the top.
            codes: Of the layer above, shape (N, P above).

        Returns:
            Tensor of shape (N, P, K).
        """
        wiring = self.blocks[layer + 1].wiring.to(self.loc)
        slices = self.control[layer][codes[:, wiring.parent], wiring.slice]  # (N, G, I, K)
        return (slices * wiring.weight.unsqueeze(-1)).sum(-2)[:, wiring.group]

    def expected_controls(self, layer: int, probabilities: Tensor) -> Tensor:
        """Probabilities of a layer's codes, given those of codes above.

        Args:
            layer: From 0 at the bottom; not the top.
            probabilities: Of the codes of the layer above, shape (N, P above, K above).

        Returns:
            Tensor of shape (N, P, K).
        """
        wiring = self.blocks[layer + 1].wiring.to(self.loc)
        expected = torch.einsum("nqa,ajk->nqjk", probabilities, self.control[layer])
        slices = expected[:, wiring.parent, wiring.slice]  # (N, G, I, K)
        return (slices * wiring.weight.unsqueeze(-1)).sum(-2)[:, wiring.group]

    def top_weights(self, num: int) -> Tensor:
        """Probabilities of the top codes, shape (N, P, K)."""
        top = self.blocks[-1]
        weights = self.log_weights.softmax(-1).unsqueeze(-2)
        return weights.expand(num, top.num_positions, -1)

    def sample_codes(self, num: int) -> list[Tensor]:
        """Draws of all codes, from the bottom: shapes (N, P)."""
        codes = [draw(self.top_weights(num))]
        for layer in reversed(range(len(self.blocks) - 1)):
            codes.insert(0, draw(self.controls(layer, codes[0])))
        return codes

    def decode(self, codes: Tensor) -> Tensor:
        """Mean images (N, H, W, C) given codes of the bottom patches (N, P)."""
        return self._down(self.loc[codes])

    def decode_mean(self, probabilities: Tensor) -> Tensor:
        """Mean images (N, H, W, C) given probabilities of the bottom codes, (N, P, K)."""
        return self._down(probabilities @ self.loc)

    def pixel_scale(self, codes: Tensor) -> Tensor:
        """Standard deviations of the pixels given codes (N, P), broadcastable to the images."""
        return self._down(self.scale[codes]) if self.scale.dim() else self.scale

    def sample(self, num: int) -> Tensor:
        """Draws of images, shape (N, H, W, C)."""
        codes = self.sample_codes(num)[0]
        mean = self.decode(codes)
        return mean + self.pixel_scale(codes) * torch.randn_like(mean)

    def joint_log_prob(self, images: Tensor, codes: list[Tensor]) -> Tensor:
        """Log-density of images and their codes, from the bottom: shape (N,)."""
        probabilities = [
            self.controls(layer, codes[layer + 1]) for layer in range(len(self.blocks) - 1)
        ]
        probabilities.append(self.top_weights(len(images)))
        total = normal_log_prob(images, self.decode(codes[0]), self.pixel_scale(codes[0]))
        for layer_codes, probability in zip(codes, probabilities, strict=True):
            total = total + probability.gather(-1, layer_codes.unsqueeze(-1)).log().sum((-1, -2))
        return total

    def _down(self, patches: Tensor) -> Tensor:
        bottom = self.blocks[0]
        return bottom.down(patches.unflatten(1, bottom.size))

    # ---- upwards --------------------------------------------------------------------------

    def patch_log_prob(self, images: Tensor, evidence: Tensor | None = None) -> Tensor:
        """Log-density of each patch under each of the bottom centroids, (N, P, K): see `exact`.

        Args:
            images: Shape (N, H, W, C).
            evidence: 1 for pixels that are known, 0 for others, shape (N, H, W, C); by default all
                are known.
        """
        bottom = self.blocks[0]
        rows = bottom.up(images).reshape(-1, bottom.dim)
        seen = None if evidence is None else bottom.up(evidence).reshape(-1, bottom.dim)
        scale = self.scale.expand_as(self.loc)
        scores = component_log_prob(rows, self.loc, scale, self.loc.new_zeros(()), seen)
        return scores.reshape(len(images), bottom.num_positions, bottom.num_components)


def slices(loc: Tensor, num_slices: int) -> Tensor:
    """What centroids say about codes below: (K, J * K below) to probabilities (K, J, K below)."""
    parts = loc.unflatten(-1, (num_slices, -1)).clamp(min=SMALLEST_CONTROL)
    return parts / parts.sum(-1, keepdim=True)


def draw(probabilities: Tensor) -> Tensor:
    """Draws of indices from probabilities in the last dimension, which need not sum to 1."""
    total = probabilities.cumsum(-1)
    threshold = torch.rand_like(total[..., :1]) * total[..., -1:]
    # An entry of probability zero is never the first whose sum exceeds the threshold.
    return (total <= threshold).sum(-1).clamp(max=total.shape[-1] - 1)


def normal_log_prob(images: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """Log-density of independent pixels, summed over all of an image: shape (N,)."""
    terms = ((images - mean) / scale).square() + 2 * scale.log() + LOG_2PI
    return -0.5 * terms.sum((-1, -2, -3))
