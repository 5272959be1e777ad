"""How images are drawn for the eye: fewer candidates, sharper ones, without noise."""

__all__ = ["SampleOptions", "draw_images"]

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.checks import check_count, check_positive_int
from .architecture import Block
from .law import TopDownLaw, draw
from .mixture_layer import MixtureLayer


@dataclass(frozen=True)
class SampleOptions:
    """What `DCGMM.sample` may be asked to do otherwise than the law does.

    Args:
        top_s: How many of the likeliest codes take part at each position below the top.
        temperature: Controls are raised to the inverse of it before codes are drawn.
        sharpen_steps: Steps of gradient ascent in the likelihood of what each folding or pooling
            hands down (the paper's section II-B3).
        sharpen_rate: Step size of that; by default 2 over the largest precision, which is the
            paper's 0.1 for 20.
        noise: Whether pixels get their noise.

    Raises:
        ValueError: For numbers out of range.
    """

    top_s: int | None = None
    temperature: float = 1.0
    sharpen_steps: int = 0
    sharpen_rate: float | None = None
    noise: bool = True

    def __post_init__(self) -> None:
        if self.top_s is not None:
            check_positive_int("top_s", self.top_s)
        check_count("sharpen_steps", self.sharpen_steps)
        for name in ("temperature", "sharpen_rate"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"Expected a positive, finite {name}, got {value}.")

    def choose(self, control: Tensor) -> Tensor:
        """Draws codes (N, P) from their control (N, P, K)."""
        if self.temperature != 1:
            # Relative to the largest, as small powers of small numbers vanish.
            control = (control / control.amax(-1, keepdim=True)) ** (1 / self.temperature)
        if self.top_s is not None and self.top_s < control.shape[-1]:
            value, code = control.topk(self.top_s, -1)
            return code.gather(-1, draw(value).unsqueeze(-1)).squeeze(-1)
        return draw(control)


@torch.no_grad()
def draw_images(
    law: TopDownLaw,
    mixtures: Sequence[MixtureLayer],
    top: Tensor,
    options: SampleOptions,
    activities: Sequence[Tensor] = (),
) -> Tensor:
    """Images from the top down.

    Args:
        law: The law.
        mixtures: Its layers, whose likelihood guides sharpening.
        top: Codes of the top positions, shape (N, P).
        options: What to do otherwise than the law.
        activities: Controls that replace those of the highest layers below the top, from the
            highest downwards: shapes (N, P, K).

    Returns:
        Tensor of shape (N, H, W, C).
    """
    codes = top
    for depth, layer in enumerate(reversed(range(len(law.blocks) - 1))):
        if depth < len(activities):
            control = activities[depth]
        else:
            control = law.controls(layer, codes)
            if options.sharpen_steps:
                block = law.blocks[layer + 1]
                grid = control.unflatten(1, block.below)
                grid = sharpen(grid, block, mixtures[layer + 1], options).clamp(min=0)
                control = (grid / grid.sum(-1, keepdim=True)).flatten(1, 2)
        codes = options.choose(control)
    images = law.decode(codes)
    if options.sharpen_steps:
        images = sharpen(images, law.blocks[0], mixtures[0], options)
    if options.noise:
        images = images + law.pixel_scale(codes) * torch.randn_like(images)
    return images


def sharpen(values: Tensor, block: Block, mixture: MixtureLayer, options: SampleOptions) -> Tensor:
    """Climbs the likelihood of values (N, H, W, C) under the mixtures above them.

    Raises:
        ValueError: If steps are too large for it.
    """
    rate = 2 * math.exp(-mixture.largest) if options.sharpen_rate is None else options.sharpen_rate
    for _ in range(options.sharpen_steps):
        with torch.enable_grad():
            values = values.detach().requires_grad_()
            likelihood = mixture.scores(block.up(values)).logsumexp(-1)
            (slope,) = torch.autograd.grad(likelihood.mean((-1, -2)).sum(), values)
        values = values.detach() + rate * slope
    if not bool(values.isfinite().all()):
        raise ValueError(f"Sharpening diverged with a sharpen_rate of {rate:g}. Lower it.")
    return values
