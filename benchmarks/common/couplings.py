"""Coupling flows on Pyro's couplings, which start near the identity."""

from collections.abc import Callable
from typing import Any

import pyro.distributions.transforms as transforms
import torch
from pyro.nn import DenseNN
from torch import nn

from pyromix import near_identity


def alternating(dim: int, count: int, make: Callable[[int, int], Any]) -> list[Any]:
    """Couplings, each followed by a permutation that swaps the halves.

    Of an odd number of coordinates, either half may be the larger one.

    Args:
        dim: Number of coordinates.
        count: Number of couplings.
        make: Makes a coupling from `dim` and the number of coordinates that it keeps.
    """
    layers = []
    for layer in range(count):
        split = dim // 2 if layer % 2 == 0 else dim - dim // 2
        order = torch.tensor([*range(split, dim), *range(split)])
        layers += [near_identity(make(dim, split)), transforms.permute(dim, order)]
    return layers


def interleaved(dim: int, count: int, make: Callable[[int, int], Any]) -> list[Any]:
    """Couplings of which each changes the other half: of the even coordinates or of the odd ones.

    Neighbours in a row of pixels, or in a wave, say most about each other.

    Args:
        dim: Number of coordinates, which is even.
        count: Number of couplings.
        make: Makes a coupling from `dim` and the number of coordinates that it keeps.
    """
    half = dim // 2
    swap, interleave = torch.arange(dim).roll(half), torch.arange(dim).view(2, half).T.flatten()
    layers = [near_identity(make(dim, half))]
    for _ in range(count - 1):
        layers += [transforms.permute(dim, swap), near_identity(make(dim, half))]
    return [*layers, transforms.permute(dim, interleave)]


def deep_affine(dim: int, split: int, hidden: int = 64) -> Any:
    """An affine coupling as in the FRMDN paper: four linear layers, leaky rectifiers between."""
    half = dim - split
    network = DenseNN(split, [hidden] * 3, [half, half], nn.LeakyReLU(0.1))
    return transforms.AffineCoupling(split, network)


def deep_spline(dim: int, split: int, hidden: int = 64) -> Any:
    """A spline coupling of two hidden layers, which also puts the kept half through splines."""
    return transforms.spline_coupling(dim, split, [hidden] * 2, 8, 5.0)
