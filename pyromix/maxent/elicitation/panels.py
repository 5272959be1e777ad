"""Rules of quadrature on the line whose panels end where a density jumps."""

__all__ = ["gauss", "geometric_edges", "reach"]

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor

# Panels double from so small a share of the scale to so many times the scale, from every anchor.
SMALLEST, LARGEST = -6, 24
# Towards a bound, where densities may have a pole.
NEXT_TO_BOUND = -40


@cache
def _legendre(order: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights on (0, 1)."""
    node, weight = np.polynomial.legendre.leggauss(order)
    return (1 + torch.from_numpy(node)) / 2, torch.from_numpy(weight) / 2


def gauss(edges: Tensor, order: int) -> tuple[Tensor, Tensor]:
    """Gauss-Legendre nodes and weights between edges.

    Args:
        edges: Ends of panels, shape (..., P + 1).
        order: Nodes in a panel.

    Returns:
        Two tensors of shape (..., P, order).
    """
    node, weight = _legendre(order)
    width = edges.diff(dim=-1).unsqueeze(-1)
    return edges[..., :-1].unsqueeze(-1) + width * node, width * weight


def geometric_edges(low: float, high: float, anchors: Sequence[float], scale: float) -> Tensor:
    """Edges of panels on a support: fine about anchors, and geometric away from them.

    Args:
        low: Lower bound, or minus infinity.
        high: Upper bound, or infinity.
        anchors: Points within, at which panels end.
        scale: Size of what is expected to vary.

    Returns:
        Ascending edges, shape (P + 1,), in double precision.
    """
    bounds = [b for b in (low, high) if math.isfinite(b)]
    inner = scale * 2.0 ** torch.arange(SMALLEST, LARGEST + 1).double()
    outer = scale * 2.0 ** torch.arange(NEXT_TO_BOUND, LARGEST + 1).double()
    points = [torch.tensor([*bounds, *anchors], dtype=torch.float64)]
    for anchor in anchors:
        points += [anchor - inner, anchor + inner]
    points += [low + outer] if math.isfinite(low) else []
    points += [high - outer] if math.isfinite(high) else []
    edges = torch.cat(points).unique()
    return edges[(edges >= low) & (edges <= high)]


def reach(low: float, high: float, numbers: Sequence[float], sd: float | None) -> float:
    """The scale of a variable: its deviation, or the spread of what is known of it."""
    if sd is not None:
        return sd
    if math.isfinite(low) and math.isfinite(high):
        return high - low
    finite = [*numbers, *(b for b in (low, high) if math.isfinite(b))]
    spread = max(finite) - min(finite) if finite else 0.0
    return spread or max((abs(n) for n in finite), default=0.0) or 1.0
