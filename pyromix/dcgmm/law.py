"""The law of images: codes from the top down, then pixels given the codes of the patches."""

__all__ = ["TopDownLaw", "draw", "normal_log_prob", "slices"]

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..numerics.diagonal_density import LOG_2PI, component_log_prob
from .architecture import Architecture, Block

# Centroids of layers above the bottom stand for responsibilities of the layer below. Training may
# leave entries below zero.
SMALLEST_CONTROL = 1e-6


@dataclass(frozen=True)
class TopDownLaw:
    """Codes from the top down, and images given codes, for given values of the parameters.

    A layer's control is the probabilities of its codes, given those of the layer above. Images
    have channels last here: (N, H, W, C).

    Args:
        architecture: Shapes and wiring.
        log_weights: Log-weights of the top components, shape (K,), or (N, K) for N images.
        control: For every block but the first, probabilities of codes below given a code, for
            each of its J slices: shape (K, J, K below), from `slices`.
        loc: Centroids of the bottom patches, shape (K, D).
        scale: Standard deviations of the pixels of a patch given its code, shape (K, D); or one,
            shape (), that all pixels share.
        sweeps: Number of sweeps of the bound, where the law is not exact.
        max_codes: Largest number of codes that the bound enumerates.
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
        """Returns this law with other log-weights of the top components, (K,) or (N, K)."""
        return replace(self, log_weights=log_weights)

    # ---- downwards ------------------------------------------------------------------------

    def controls(self, layer: int, codes: Tensor) -> Tensor:
        """Returns probabilities of a layer's codes, given the codes above.

        Args:
            layer: From 0 at the bottom; not the top.
            codes: Codes of the layer above, shape (N, P above).

        Returns:
            Tensor of shape (N, P, K).
        """
        wiring = self.blocks[layer + 1].wiring.to(self.loc)
        slices = self.control[layer][codes[:, wiring.parent], wiring.slice]  # (N, G, I, K)
        return (slices * wiring.weight.unsqueeze(-1)).sum(-2)[:, wiring.group]

    def expected_controls(self, layer: int, probabilities: Tensor) -> Tensor:
        """Returns probabilities of a layer's codes, given probabilities of the codes above.

        Args:
            layer: From 0 at the bottom; not the top.
            probabilities: Those of the layer above, shape (N, P above, K above).

        Returns:
            Tensor of shape (N, P, K).
        """
        wiring = self.blocks[layer + 1].wiring.to(self.loc)
        expected = torch.einsum("nqa,ajk->nqjk", probabilities, self.control[layer])
        slices = expected[:, wiring.parent, wiring.slice]  # (N, G, I, K)
        return (slices * wiring.weight.unsqueeze(-1)).sum(-2)[:, wiring.group]

    def top_weights(self, num: int) -> Tensor:
        """Returns probabilities of the top codes of N images, shape (N, P, K)."""
        top = self.blocks[-1]
        weights = self.log_weights.softmax(-1).unsqueeze(-2)
        return weights.expand(num, top.num_positions, -1)

    def sample_codes(self, num: int) -> list[Tensor]:
        """Draws all codes of N images: for every layer, from the bottom, shape (N, P)."""
        codes = [draw(self.top_weights(num))]
        for layer in reversed(range(len(self.blocks) - 1)):
            codes.insert(0, draw(self.controls(layer, codes[0])))
        return codes

    def decode(self, codes: Tensor) -> Tensor:
        """Returns mean images (N, H, W, C) given codes of the bottom patches (N, P)."""
        return self._down(self.loc[codes])

    def decode_mean(self, probabilities: Tensor) -> Tensor:
        """Returns mean images (N, H, W, C) given probabilities of the bottom codes (N, P, K)."""
        return self._down(probabilities @ self.loc)

    def pixel_scale(self, codes: Tensor) -> Tensor:
        """Returns standard deviations of the pixels given codes of the bottom patches.

        Args:
            codes: Shape (N, P).

        Returns:
            Tensor of shape (N, H, W, C), or () where all pixels share one.
        """
        return self._down(self.scale[codes]) if self.scale.dim() else self.scale

    def sample(self, num: int) -> Tensor:
        """Draws N images, shape (N, H, W, C)."""
        return self._draw_given(self.sample_codes(num)[0])

    def draw_with_score(self, num: int) -> tuple[Tensor, Tensor]:
        """Draws images (N, H, W, C) with a gradient given their codes, and log p(c), (N,)."""
        with torch.no_grad():
            codes = self.sample_codes(num)
        return self._draw_given(codes[0]), self.log_prior(codes)

    def _draw_given(self, codes: Tensor) -> Tensor:
        """Draws of images (N, H, W, C), given codes of the bottom patches (N, P)."""
        mean = self.decode(codes)
        return mean + self.pixel_scale(codes) * torch.randn_like(mean)

    def log_prior(self, codes: list[Tensor]) -> Tensor:
        """Returns the log-probability of codes: for every layer, from the bottom, shape (N, P)."""
        probabilities = [
            self.controls(layer, codes[layer + 1]) for layer in range(len(self.blocks) - 1)
        ]
        probabilities.append(self.top_weights(len(codes[0])))
        total = self.loc.new_zeros(len(codes[0]))
        for layer_codes, probability in zip(codes, probabilities, strict=True):
            total = total + probability.gather(-1, layer_codes.unsqueeze(-1)).log().sum((-1, -2))
        return total

    def joint_log_prob(self, images: Tensor, codes: list[Tensor]) -> Tensor:
        """Returns the joint log-density of images and codes.

        Args:
            images: Shape (N, H, W, C).
            codes: For every layer, from the bottom, shape (N, P).

        Returns:
            Tensor of shape (N,).
        """
        given = normal_log_prob(images, self.decode(codes[0]), self.pixel_scale(codes[0]))
        return given + self.log_prior(codes)

    def _down(self, patches: Tensor) -> Tensor:
        """Images (N, H, W, C) from vectors of the bottom patches (N, P, D)."""
        bottom = self.blocks[0]
        return bottom.down(patches.unflatten(1, bottom.size))

    # ---- upwards --------------------------------------------------------------------------

    def patch_log_prob(self, images: Tensor, evidence: Tensor | None = None) -> Tensor:
        """Returns the log-density of each patch given each of its codes.

        For patches that do not overlap: their sum is the log-density of the image given codes.

        Args:
            images: Shape (N, H, W, C).
            evidence: 1 for pixels that are known, 0 for others, shape (N, H, W, C); by default all
                are known.

        Returns:
            Tensor of shape (N, P, K).
        """
        bottom = self.blocks[0]
        rows = bottom.up(images).reshape(-1, bottom.dim)
        seen = None if evidence is None else bottom.up(evidence).reshape(-1, bottom.dim)
        scale = self.scale.expand_as(self.loc)
        scores = component_log_prob(rows, self.loc, scale, self.loc.new_zeros(()), seen)
        return scores.reshape(len(images), bottom.num_positions, bottom.num_components)


def slices(loc: Tensor, num_slices: int) -> Tensor:
    """Returns centroids as probabilities of codes below.

    Args:
        loc: Centroids, shape (K, J * K below).
        num_slices: Number of slices J.

    Returns:
        Tensor of shape (K, J, K below), of which the last dimension sums to 1.
    """
    parts = loc.unflatten(-1, (num_slices, -1)).clamp(min=SMALLEST_CONTROL)
    return parts / parts.sum(-1, keepdim=True)


def draw(probabilities: Tensor) -> Tensor:
    r"""Draws an index with given probabilities.

    Args:
        probabilities: Shape (\*B, K); they need not sum to 1.

    Returns:
        Integers of shape (\*B).
    """
    total = probabilities.cumsum(-1)
    threshold = torch.rand_like(total[..., :1]) * total[..., -1:]
    # An entry of probability zero is never the first whose sum exceeds the threshold.
    return (total <= threshold).sum(-1).clamp(max=total.shape[-1] - 1)


def normal_log_prob(images: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """Returns the log-density of images of independent normal pixels, shape (N,).

    Args:
        images: Shape (N, H, W, C).
        mean: Means, of the same shape.
        scale: Standard deviations, of the same shape or ().
    """
    terms = ((images - mean) / scale).square() + 2 * scale.log() + LOG_2PI
    return -0.5 * terms.sum((-1, -2, -3))
