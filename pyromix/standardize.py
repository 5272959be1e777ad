"""Location and scale of data, as part of a model."""

__all__ = ["Standardize", "location_and_scale"]

import torch
from torch import Tensor, nn


class Standardize(nn.Module):
    r"""Subtracts a location and divides by a scale, coordinate by coordinate.

    Args:
        dim: Number of coordinates.
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("loc", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))

    def forward(self, value: Tensor) -> Tensor:
        r"""Standardises values (\*B, dim)."""
        return (value - self.loc) / self.scale

    @torch.no_grad()
    def set_from(self, rows: Tensor) -> None:
        """Takes location and scale of rows (N, dim)."""
        loc, scale = location_and_scale(rows)
        self.loc.copy_(loc)
        self.scale.copy_(scale)


def location_and_scale(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of rows (N, dim); a constant column keeps its unit."""
    loc, scale = rows.mean(0), rows.std(0, correction=0)
    return loc, torch.where(scale > 1e-6 * loc.abs(), scale, torch.ones_like(scale))
