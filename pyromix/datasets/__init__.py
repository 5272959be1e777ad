"""Data to learn on: toy laws with known shapes, images, and poses of a planar humanoid."""

__all__ = [
    "PlanarHumanoid",
    "digits",
    "gaussian_grid",
    "gaussian_ring",
    "many_moons",
    "mixture_1d",
    "mnist",
    "pinwheel",
    "sierpinski",
    "spiral",
    "swiss_roll",
    "two_circles",
    "two_moons",
]

from .humanoid import PlanarHumanoid
from .images import digits, mnist
from .toy import (
    gaussian_grid,
    gaussian_ring,
    many_moons,
    mixture_1d,
    pinwheel,
    sierpinski,
    spiral,
    swiss_roll,
    two_circles,
    two_moons,
)
