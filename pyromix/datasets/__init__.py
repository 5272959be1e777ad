"""Data to learn on: toy laws with known shapes, and images."""

__all__ = [
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
