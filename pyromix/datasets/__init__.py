"""Data to learn on: toy laws with known shapes, images, speech, tables, poses of a humanoid."""

__all__ = [
    "PlanarHumanoid",
    "SpokenDigits",
    "adult",
    "digits",
    "fashion_mnist",
    "gaussian_grid",
    "gaussian_ring",
    "jump_trajectories",
    "many_moons",
    "mixture_1d",
    "mnist",
    "pinwheel",
    "sierpinski",
    "spiral",
    "spoken_digits",
    "swiss_roll",
    "two_circles",
    "two_moons",
]

from .humanoid import PlanarHumanoid
from .images import digits, fashion_mnist, mnist
from .speech import SpokenDigits, spoken_digits
from .tables import adult
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
from .trajectories import jump_trajectories
