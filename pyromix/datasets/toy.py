"""Toy laws in one to three dimensions, for pictures and tests.

Every function draws ``num`` independent points from one law, so that any part of a draw is a draw
itself. They are of torch's default dtype, and on the device of the ``generator``; without one they
come from torch's global random state, as `torch.randn` does. ``noise`` and ``scale`` are standard
deviations. With ``noise=0`` the points lie on curves and have no density: likelihoods of models
grow without bound, and neighbours' distances mean nothing.
"""

__all__ = [
    "gaussian_grid",
    "gaussian_ring",
    "many_moons",
    "mixture_1d",
    "pinwheel",
    "sierpinski",
    "spiral",
    "swiss_roll",
    "two_circles",
    "two_moons",
]

import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from ..core.checks import check_count, check_positive_int

# A centred triangle of equal sides, corners at a distance of 2.
_TRIANGLE = ((0.0, 2.0), (-math.sqrt(3.0), -1.0), (math.sqrt(3.0), -1.0))


def swiss_roll(
    num: int, dim: int = 2, *, noise: float = 0.1, generator: Generator | None = None
) -> Tensor:
    r"""A spiral of one and a half windings in the plane, or a rolled-up sheet in space.

    The curve is scikit-learn's: :math:`t (\cos t, \sin t)` for t uniform between 1.5π and 4.5π,
    divided by 5 to lie within 2.9 of the origin; neighbouring windings are 1.26 apart. The sheet
    is 4.2 wide along its second column.

    Args:
        num: How many points to draw.
        dim: 2 or 3.
        noise: Standard deviation around curve or sheet, after the division.
        generator: Source of the random numbers.

    Returns:
        Shape (num, dim).

    Raises:
        ValueError: If dim is another number, or the noise is negative.

    Example:
        >>> swiss_roll(1000, noise=0.0).norm(dim=1).max() < 2.9
        tensor(True)
    """
    if dim not in (2, 3):
        raise ValueError(f"Expected a Swiss roll of dim 2 or 3, got {dim!r}.")
    t = 1.5 * math.pi * (1 + 2 * _uniform(num, generator=generator))
    columns = [t * t.cos(), t * t.sin()]
    if dim == 3:
        columns.insert(1, 21 * (_uniform(num, generator=generator) - 0.5))
    return _blur(torch.stack(columns, -1) / 5, noise, generator)


def sierpinski(num: int, depth: int = 8, *, generator: Generator | None = None) -> Tensor:
    r"""The Sierpinski triangle after ``depth`` removals: uniform on 3^depth small triangles.

    The corners are :math:`(0, 2)` and :math:`(\pm\sqrt 3, -1)`. At any finite depth the law has
    the density :math:`(4/3)^{depth} / (3 \sqrt 3)` on the triangles that are left; the fractal
    itself has none.

    Args:
        num: How many points to draw.
        depth: How often the middles are removed; 0 leaves the whole triangle.
        generator: Source of the random numbers.

    Returns:
        Shape (num, 2).

    Raises:
        ValueError: If the depth is not a number of at least 0.

    Example:
        >>> sierpinski(5).shape
        torch.Size([5, 2])
    """
    levels = check_count("depth", depth)
    # Barycentric coordinates: each removal leaves three triangles of half the size, one at each
    # corner, and a digit says which; inside the last one, flat Dirichlet coordinates are uniform.
    inside = -(-_uniform(num, 3, generator=generator)).log1p()
    coordinates = inside / inside.sum(-1, keepdim=True) * 0.5**levels
    for level in range(1, levels + 1):
        digits = _choice(num, 3, generator)
        coordinates = coordinates + 0.5**level * torch.nn.functional.one_hot(digits, 3)
    return coordinates @ coordinates.new_tensor(_TRIANGLE)


def two_moons(num: int, *, noise: float = 0.1, generator: Generator | None = None) -> Tensor:
    """Two interleaving half circles of radius 1, centred together on the origin.

    Args:
        num: How many points to draw.
        noise: Standard deviation around the half circles.
        generator: Source of the random numbers.

    Returns:
        Shape (num, 2).

    Raises:
        ValueError: If the noise is negative.

    Example:
        >>> two_moons(5).shape
        torch.Size([5, 2])
    """
    t = math.pi * _uniform(num, generator=generator)
    side = 1.0 - 2.0 * _choice(num, 2, generator)  # each moon is the other one, turned around
    moon = torch.stack([t.cos() - 0.5, t.sin() - 0.25], -1)
    return _blur(side[:, None] * moon, noise, generator)


def many_moons(
    num: int, side: int = 2, *, noise: float = 0.1, generator: Generator | None = None
) -> Tensor:
    """Pairs of moons on a square grid: 2 side^2 half circles of radius 1.

    Args:
        num: How many points to draw.
        side: Pairs along each side of the grid; they are 3.5 apart horizontally, 2.5 vertically.
        noise: Standard deviation around the half circles.
        generator: Source of the random numbers.

    Returns:
        Shape (num, 2).

    Raises:
        ValueError: If the side is not a positive number, or the noise is negative.

    Example:
        >>> many_moons(5).shape
        torch.Size([5, 2])
    """
    cells = _grid(num, check_positive_int("side", side), generator)
    pairs = two_moons(num, noise=noise, generator=generator)
    return pairs + cells * pairs.new_tensor([3.5, 2.5])


def two_circles(
    num: int,
    *,
    radii: tuple[float, float] = (1.0, 2.0),
    noise: float = 0.1,
    generator: Generator | None = None,
) -> Tensor:
    """Two circles around the origin, with equally many points on each.

    Args:
        num: How many points to draw.
        radii: Radii of the circles.
        noise: Standard deviation around the circles.
        generator: Source of the random numbers.

    Returns:
        Shape (num, 2).

    Raises:
        ValueError: If the noise is negative.

    Example:
        >>> two_circles(1000, noise=0.0).norm(dim=1).max() < 2.001
        tensor(True)
    """
    circle = _circle(2 * math.pi * _uniform(num, generator=generator))
    radius = circle.new_tensor(radii)[_choice(num, 2, generator)]
    return _blur(radius[:, None] * circle, noise, generator)


def gaussian_grid(
    num: int,
    side: int = 5,
    *,
    spacing: float = 1.0,
    scale: float = 0.1,
    generator: Generator | None = None,
) -> Tensor:
    """Equally likely normals on a square grid around the origin.

    Args:
        num: How many points to draw.
        side: Normals along each side of the grid.
        spacing: Distance between neighbouring centres.
        scale: Standard deviation of each normal.
        generator: Source of the random numbers.

    Returns:
        Shape (num, 2).

    Raises:
        ValueError: If the side is not a positive number, or the scale is negative.

    Example:
        >>> gaussian_grid(1000, scale=0.0).unique().tolist()
        [-2.0, -1.0, 0.0, 1.0, 2.0]
    """
    cells = _grid(num, check_positive_int("side", side), generator)
    return _blur(spacing * cells, scale, generator, "scale")


def gaussian_ring(
    num: int,
    num_components: int = 8,
    *,
    radius: float = 2.0,
    scale: float = 0.2,
    generator: Generator | None = None,
) -> Tensor:
    """Equally likely normals on a circle around the origin.

    Args:
        num: How many points to draw.
        num_components: How many normals there are.
        radius: Radius of the circle.
        scale: Standard deviation of each normal.
        generator: Source of the random numbers.

    Returns:
        Shape (num, 2).

    Raises:
        ValueError: If there is no component, or the scale is negative.

    Example:
        >>> gaussian_ring(5).shape
        torch.Size([5, 2])
    """
    components = _choice(num, check_positive_int("num_components", num_components), generator)
    centers = radius * _circle(2 * math.pi / num_components * components)
    return _blur(centers, scale, generator, "scale")


def pinwheel(
    num: int,
    num_components: int = 5,
    *,
    radial_scale: float = 0.3,
    tangential_scale: float = 0.1,
    rate: float = 0.25,
    generator: Generator | None = None,
) -> Tensor:
    """Bent arms around the origin: elongated normals, turned the more the farther out [1].

    Args:
        num: How many points to draw.
        num_components: How many arms there are.
        radial_scale: Standard deviation along an arm; the middle of each arm is at radius 2.
        tangential_scale: Standard deviation across an arm.
        rate: How strongly the arms are bent; 0 leaves them straight.
        generator: Source of the random numbers.

    Returns:
        Shape (num, 2).

    Raises:
        ValueError: If there is no arm, or a scale is negative.

    Example:
        >>> pinwheel(5).shape
        torch.Size([5, 2])

    References:
        [1] Johnson, Duvenaud, Wiltschko, Datta and Adams, "Composing graphical models with neural
        networks for structured representations and fast inference", 2016. Twice the size.
    """
    arms = _choice(num, check_positive_int("num_components", num_components), generator)
    along = _blur(torch.ones_like(arms, dtype=torch.get_default_dtype()), radial_scale, generator)
    across = _blur(torch.zeros_like(along), tangential_scale, generator)
    angle = 2 * math.pi / num_components * arms + rate * along.exp()
    radial, tangential = _circle(angle), _circle(angle + math.pi / 2)
    return 2 * (along[:, None] * radial + across[:, None] * tangential)


def spiral(
    num: int,
    num_components: int = 2,
    *,
    turns: float = 1.5,
    radius: float = 3.0,
    noise: float = 0.1,
    generator: Generator | None = None,
) -> Tensor:
    """Spiral arms that start at the origin and grow evenly with the angle.

    Points are spread evenly along the arms, but for the innermost bit.

    Args:
        num: How many points to draw.
        num_components: How many arms there are.
        turns: How often each arm winds around the origin.
        radius: Distance at which the arms end.
        noise: Standard deviation around the arms.
        generator: Source of the random numbers.

    Returns:
        Shape (num, 2).

    Raises:
        ValueError: If there is no arm, or the noise is negative.

    Example:
        >>> spiral(1000, noise=0.0).norm(dim=1).max() <= 3.0
        tensor(True)
    """
    arms = _choice(num, check_positive_int("num_components", num_components), generator)
    # The length of an arm grows with the square of the angle.
    t = _uniform(num, generator=generator).sqrt()
    angle = 2 * math.pi * (turns * t + arms / num_components)
    return _blur(radius * t[:, None] * _circle(angle), noise, generator)


def mixture_1d(
    num: int,
    *,
    weights: Sequence[float] = (0.3, 0.7),
    loc: Sequence[float] = (-2.0, 1.0),
    scale: Sequence[float] = (0.3, 0.8),
    generator: Generator | None = None,
) -> Tensor:
    """A mixture of normals on the line, by default of a thin and a broad one.

    Args:
        num: How many points to draw.
        weights: Probabilities of the components, up to a factor.
        loc: Their means.
        scale: Their standard deviations.
        generator: Source of the random numbers.

    Returns:
        Shape (num, 1).

    Raises:
        ValueError: If the three have different lengths, or a weight or scale is negative.

    Example:
        >>> mixture_1d(5).shape
        torch.Size([5, 1])
    """
    if not len(weights) == len(loc) == len(scale) or min(*weights, *scale, 0) < 0:
        raise ValueError(
            f"Expected one weight, loc and scale per component, weights and scales not negative, "
            f"got weights {tuple(weights)}, loc {tuple(loc)} and scale {tuple(scale)}."
        )
    if sum(weights) <= 0:
        raise ValueError(f"Expected at least one positive weight, got {tuple(weights)}.")
    normal = _normal(num, 1, generator=generator)
    components = torch.multinomial(
        normal.new_tensor(weights), num, replacement=True, generator=generator
    )
    means, deviations = normal.new_tensor(loc)[components], normal.new_tensor(scale)[components]
    return means[:, None] + deviations[:, None] * normal


def _device(generator: Generator | None) -> torch.device | None:
    return None if generator is None else generator.device


def _uniform(num: int, *shape: int, generator: Generator | None) -> Tensor:
    num = check_positive_int("num", num)
    return torch.rand(num, *shape, generator=generator, device=_device(generator))


def _normal(num: int, *shape: int, generator: Generator | None) -> Tensor:
    num = check_positive_int("num", num)
    return torch.randn(num, *shape, generator=generator, device=_device(generator))


def _choice(num: int, options: int, generator: Generator | None) -> Tensor:
    """Uniform whole numbers below ``options``."""
    num = check_positive_int("num", num)
    return torch.randint(options, (num,), generator=generator, device=_device(generator))


def _grid(num: int, side: int, generator: Generator | None) -> Tensor:
    """Uniform points of the square grid of unit spacing around the origin."""
    cells = torch.stack([_choice(num, side, generator) for _ in range(2)], -1)
    return cells.to(torch.get_default_dtype()) - (side - 1) / 2


def _circle(angle: Tensor) -> Tensor:
    return torch.stack([angle.cos(), angle.sin()], -1)


def _blur(
    points: Tensor, noise: float, generator: Generator | None, name: str = "noise"
) -> Tensor:
    if not 0 <= noise < math.inf:
        raise ValueError(f"Expected {name} to be a number of at least 0, got {noise!r}.")
    return points + noise * _normal(*points.shape, generator=generator)
