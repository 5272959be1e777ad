"""Rules of quadrature on the line whose panels end where a density jumps."""

__all__ = ["find_jumps", "gauss", "geometric_edges", "is_step", "reach"]

import math
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor

# Panels double from so small a share of the scale to so many times the scale, from every anchor.
SMALLEST, LARGEST = -6, 24
# Towards a bound, where densities may have a pole. Next to zero, numbers of double precision are
# dense enough for what the pole of a gamma density of a shape well below one holds.
NEXT_TO_BOUND, NEXT_TO_ZERO = -40, -160
# Of a scan for jumps: points in a panel, and points over so many scales about the anchors.
SCAN, EVEN, ABOUT = 64, 2**15, 8.0
MAX_JUMPS = 500
HALVINGS = 1100  # from the largest number of double precision to the least


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
    points = [torch.tensor([*bounds, *anchors], dtype=torch.float64)]
    for anchor in anchors:
        points += [anchor - inner, anchor + inner]
    for bound, sign in ((low, 1), (high, -1)):
        if math.isfinite(bound):
            nearest = NEXT_TO_BOUND if bound else NEXT_TO_ZERO
            outer = scale * 2.0 ** torch.arange(nearest, LARGEST + 1).double()
            points.append(bound + sign * outer)
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


def find_jumps(
    values: Callable[[Tensor], Tensor], edges: Tensor, anchors: Sequence[float], scale: float
) -> list[float]:
    """Where a function changes its value, if it has none but zero and one, or zero and minus one.

    A pair of changes is missed if both are between two points of the scan, which are less than a
    thousandth of the scale apart. Of more than 500, those nearest to the anchors are found.

    Args:
        values: Of points (n,), shape (n,).
        edges: Of panels, shape (P + 1,).
        anchors: Points about which the mass is.
        scale: Size of what is expected to vary.

    Returns:
        Ascending points to double precision; none if the function has other values.
    """
    share = torch.arange(SCAN).double() / SCAN
    width = edges.diff().unsqueeze(-1)
    low = max(float(edges[0]), min(anchors) - ABOUT * scale)
    high = min(float(edges[-1]), max(anchors) + ABOUT * scale)
    even = torch.linspace(low, high, EVEN, dtype=torch.float64)
    grid = torch.cat([(edges[:-1].unsqueeze(-1) + width * share).flatten(), even]).unique()
    grid = grid[(grid > edges[0]) & (grid < edges[-1])]
    found = values(grid)
    if not is_step(found):
        return []
    at = (found.diff() != 0).nonzero().squeeze(-1)
    middle = sum(anchors) / len(anchors)
    at = at[(grid[at] - middle).abs().argsort()[:MAX_JUMPS]].sort().values
    left, right, before = grid[at], grid[at + 1], found[at]
    for _ in range(HALVINGS):
        centre = left + (right - left) / 2
        if bool(((centre == left) | (centre == right)).all()):
            break
        same = values(centre) == before
        left, right = torch.where(same, centre, left), torch.where(same, right, centre)
    return right.tolist()


def is_step(values: Tensor) -> bool:
    """Whether values are zeros and ones, or zeros and minus ones."""
    return bool(((values == 0) | (values == 1)).all() or ((values == 0) | (values == -1)).all())
