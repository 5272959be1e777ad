"""Draws of images, from the law or with options: fewer codes, sharper images, no noise."""

__all__ = ["SampleArguments", "SampleOptions", "draw_images"]

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypedDict

import torch
from torch import Tensor

from ..core.checks import Check, check_arguments, check_count, check_positive_int, number, optional
from .law import TopDownLaw, draw
from .mixture_layer import MixtureLayer
from .wiring import WindowStack


class SampleArguments(TypedDict, total=False):
    """Keyword arguments of methods that draw images: `DCGMM.sample` describes them."""

    top_s: int | None
    temperature: float
    sharpen_steps: int
    sharpen_rate: float | None
    noise: bool


def check_positive(name: str, value: Any) -> float:
    """Checks that an argument is a positive, finite number, and returns it.

    Raises:
        ValueError: If it is not.
    """
    if not number()(name, value) > 0:
        raise ValueError(f"Expected a positive, finite {name}, got {value}.")
    return value


@dataclass(frozen=True)
class SampleOptions:
    """Options of draws, checked: `DCGMM.sample` describes them. The default is to follow the law.

    Raises:
        ValueError: For options out of range.
    """

    argument_checks: ClassVar[Mapping[str, Check]] = {
        "top_s": optional(check_positive_int),
        "temperature": check_positive,
        "sharpen_steps": check_count,
        "sharpen_rate": optional(check_positive),
    }

    top_s: int | None = None
    temperature: float = 1.0
    sharpen_steps: int = 0
    sharpen_rate: float | None = None
    noise: bool = True

    def __post_init__(self) -> None:
        check_arguments(self.argument_checks, vars(self))

    def choose(self, control: Tensor) -> Tensor:
        """Draws codes, shape (N, P), given their probabilities, shape (N, P, K)."""
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
    given: Sequence[Tensor] = (),
) -> Tensor:
    """Draws images from the top down, without a graph.

    Args:
        law: The law.
        mixtures: Its layers, whose likelihood guides sharpening.
        top: Codes of the top positions, shape (N, P).
        options: How draws differ from those of the law.
        given: Probabilities of codes that replace those of the highest layers below the top, from
            the highest downwards: shapes (N, P, K).

    Returns:
        Tensor of shape (N, H, W, C).
    """
    codes = top
    for depth, layer in enumerate(reversed(range(len(law.blocks) - 1))):
        if depth < len(given):
            control = given[depth]
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


def sharpen(
    values: Tensor, windows: WindowStack, mixture: MixtureLayer, options: SampleOptions
) -> Tensor:
    """Returns values after gradient ascent in their likelihood under the mixtures above them.

    Args:
        values: Shape (N, H, W, C).
        windows: The windows between them and the mixtures.
        mixture: The mixtures.
        options: Number of steps and their size.

    Returns:
        Tensor of shape (N, H, W, C).

    Raises:
        ValueError: If the steps are so large that values are no longer finite.
    """
    rate = 2 * math.exp(-mixture.largest) if options.sharpen_rate is None else options.sharpen_rate
    for _ in range(options.sharpen_steps):
        with torch.enable_grad():
            values = values.detach().requires_grad_()
            likelihood = mixture.scores(windows.up(values)).logsumexp(-1)
            (slope,) = torch.autograd.grad(likelihood.mean((-1, -2)).sum(), values)
        values = values.detach() + rate * slope
    if not bool(values.isfinite().all()):
        raise ValueError(f"Sharpening diverged with a sharpen_rate of {rate:g}. Lower it.")
    return values
