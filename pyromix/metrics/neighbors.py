"""Precision and recall: how close two sets of points are, from nearest neighbours."""

__all__ = ["PrecisionRecall", "precision_recall"]

from typing import NamedTuple

import torch
from torch import Tensor

from ..core.advice import warn_user
from ..core.checks import check_positive_int
from ..core.conversions import TensorLike, as_numbers

# Up to this many columns, direct differences cost no more than twice the matrix product.
_DIRECT_DIM = 16


class PrecisionRecall(NamedTuple):
    """Two fractions between 0 and 1, as returned by `precision_recall`.

    >>> PrecisionRecall(precision=1.0, recall=0.5).f1
    0.6666666666666666
    """

    precision: float
    """How many of the generated points look real."""

    recall: float
    """How many of the real points could have been generated."""

    @property
    def f1(self) -> float:
        """The harmonic mean of both, and 0 if both are 0."""
        total = self.precision + self.recall
        return 2 * self.precision * self.recall / total if total else 0.0


def precision_recall(
    real: TensorLike,
    generated: TensorLike,
    k: int = 3,
    *,
    unique: bool = False,
    chunk_size: int = 2048,
) -> PrecisionRecall:
    """Precision and recall of samples, from nearest neighbours.

    Each set is thickened to the union of balls around its points, each with the distance to the
    point's k-th nearest neighbour in the same set as radius. Precision is the fraction of
    generated points in a ball of a real one, recall the fraction of real points in a ball of a
    generated one [1]; a point on the surface is inside.

    Two perfect sets of draws do not score 1: balls leave gaps. To know what a score means,
    compare it with that of a second set of real points, and compare only scores from sets of
    equal sizes and equal k. Distances are Euclidean: scale the columns first if their units
    differ.

    The score means something only where both sets spread over space. Points of a curve without
    noise have thin balls, which miss every point beside the curve, and a point that is repeated
    more than k times has a ball of radius zero, so that a model with few distinct values scores
    no recall, and a warning says so. Where the repetition is in the nature of the data, such as
    rounded measurements, ``unique=True`` compares distinct points; of a model that adds noise,
    include the noise in the draws.

    All distances are in float64, whatever the dtype of the points: half precision is known to
    turn a precision of 0.17 into 0.56. Up to 16 columns they come from direct differences; beyond,
    from a matrix product of centred points, except at balls so small (about a thousandth of the
    extent of the data) that the cancellation in it would show.

    Args:
        real: Shape (N, D); a tensor, an array or lists of numbers, of any real dtype.
        generated: Shape (M, D), on the same device.
        k: Which neighbour the radius reaches to. Larger values are more lenient.
        unique: Whether to drop exact copies within each set before anything else.
        chunk_size: How many points of each set are compared at once. The result is the same for
            all values; memory grows with the square, and is about 150 MB at the default.

    Returns:
        Precision and recall, with their harmonic mean as ``.f1``.

    Raises:
        ValueError: If shapes or devices do not fit, an entry is not finite, or a set has no more
            than k points.

    Example:
        The generator below has found one of two modes: all it makes is real, but half is missing.

        >>> _ = torch.manual_seed(0)
        >>> real = torch.randn(1000, 2)
        >>> real[500:] += 100.0
        >>> score = precision_recall(real, torch.randn(1000, 2))
        >>> score.precision > 0.95, 0.45 < score.recall < 0.5
        (True, True)

    References:
        [1] Kynkäänniemi, Karras, Laine, Lehtinen and Aila, "Improved precision and recall metric
        for assessing generative models", 2019.
    """
    k = check_positive_int("k", k)
    chunk_size = check_positive_int("chunk_size", chunk_size)
    x, y = _check_points("real", real), _check_points("generated", generated)
    if x.shape[1] != y.shape[1] or x.device != y.device:
        raise ValueError(
            f"Expected real and generated points with equally many columns and on one device, got "
            f"shape {tuple(x.shape)} on {x.device} and {tuple(y.shape)} on {y.device}."
        )
    x, y = x.detach().double(), y.detach().double()
    if unique:
        x, y = x.unique(dim=0), y.unique(dim=0)
    for name, points in (("real", x), ("generated", y)):
        if len(points) <= k:
            raise ValueError(
                f"Expected at least k + 1 = {k + 1} {'distinct ' * unique}{name} points, so that "
                f"each has {k} neighbours, got {len(points)}. Pass more points or a smaller k."
            )

    # Distances do not change with the origin; the rounding errors of their expansion do.
    center = x.mean(0)
    x, y = x - center, y - center
    floor = _smallest_safe_distance(x, y)
    x_radii, y_radii = (_radii(points, k, floor, chunk_size) for points in (x, y))
    for name, radii in (("real", x_radii), ("generated", y_radii)):
        empty = int((radii == 0).sum())
        if 2 * empty > len(radii):
            warn_user(
                f"{empty} of {len(radii)} {name} points are repeated more than k = {k} times, so "
                f"that their balls have radius zero and cover nothing else. Add the model's noise "
                f"to its draws, or compare distinct points with unique=True.",
            )
    precision = _is_covered(y, x, x_radii, floor, chunk_size)
    recall = _is_covered(x, y, y_radii, floor, chunk_size)
    return PrecisionRecall(precision.double().mean().item(), recall.double().mean().item())


def _check_points(name: str, value: object) -> Tensor:
    points = as_numbers(name, value)
    if points.dim() != 2:
        raise ValueError(
            f"Expected {name} to be of shape (N, D), got {tuple(points.shape)}. "
            f"Reshape images or sequences to vectors, such as with .reshape(N, -1)."
        )
    if not points.shape[1]:
        raise ValueError(f"Expected {name} to have columns, got shape {tuple(points.shape)}.")
    wrong = int((~points.isfinite()).sum())
    if wrong:
        raise ValueError(
            f"Expected finite {name} points, got {wrong} NaN or infinite among {points.numel()} "
            f"entries. Remove those rows before comparing."
        )
    return points


def _smallest_safe_distance(x: Tensor, y: Tensor) -> float:
    """Squared distances above this are right to a millionth when expanded into products."""
    dim = x.shape[1]
    if dim <= _DIRECT_DIM:
        return torch.inf
    norm = max(x.square().sum(1).max().item(), y.square().sum(1).max().item())
    # |x|^2 - 2 x.y + |y|^2: each of the sums over D loses up to D units of the last place.
    return 1e6 * 4 * (dim + 3) * torch.finfo(x.dtype).eps * norm


def _squared_distances(x: Tensor, y: Tensor, *, direct: bool) -> Tensor:
    """Between all pairs: (N, D) and (M, D) to (N, M)."""
    if direct:
        return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square_()
    products = torch.addmm(y.square().sum(1), x, y.mT, alpha=-2)
    return products.add_(x.square().sum(1, keepdim=True))


def _radii(points: Tensor, k: int, floor: float, chunk_size: int) -> Tensor:
    """Squared distance of each point to its k-th nearest other one."""
    if floor == torch.inf:
        return _kth_distances(points, points, k, chunk_size, direct=True)
    radii = _kth_distances(points, points, k, chunk_size, direct=False)
    small = radii < floor
    if small.any():
        radii[small] = _kth_distances(points[small], points, k, chunk_size, direct=True)
    return radii


def _kth_distances(
    queries: Tensor, points: Tensor, k: int, chunk_size: int, *, direct: bool
) -> Tensor:
    """Squared distance of each query, itself one of the points, to its k-th neighbour."""
    radii = []
    for rows in queries.split(chunk_size):
        # One more neighbour than asked for: the nearest is the point itself.
        nearest = rows.new_full((len(rows), k + 1), torch.inf)
        for columns in points.split(chunk_size):
            distances = _squared_distances(rows, columns, direct=direct)
            distances = distances.topk(min(k + 1, len(columns)), largest=False, sorted=False)[0]
            nearest = torch.cat([nearest, distances], 1).topk(k + 1, largest=False)[0]
        radii.append(nearest[:, k])
    return torch.cat(radii)


def _is_covered(
    points: Tensor, centers: Tensor, radii: Tensor, floor: float, chunk_size: int
) -> Tensor:
    """Whether each point is in one of the balls, whose squared radii are given."""
    covered = torch.zeros(len(points), dtype=torch.bool, device=points.device)
    small = radii < floor
    for direct, chosen in ((False, ~small), (True, small)):
        balls = zip(
            centers[chosen].split(chunk_size), radii[chosen].split(chunk_size), strict=True
        )
        for columns, limits in balls:
            # Points that are in a ball already need no other.
            for rows in (~covered).nonzero().squeeze(1).split(chunk_size):
                distances = _squared_distances(points[rows], columns, direct=direct)
                covered[rows] = (distances <= limits).any(1)
    return covered
