"""A model that several files of tests ask."""

import math

import pytest
import torch

from pyromix import fit
from pyromix.drmm import DRMM


def spiral(num, noise=0.0):
    """The Archimedean spiral r = a / 2 with a uniform in [0, 4 pi]."""
    angle = 4 * math.pi * torch.rand(num)
    points = (angle / 2).unsqueeze(-1) * torch.stack([angle.cos(), angle.sin()], -1)
    return points + noise * torch.randn(num, 2)


@pytest.fixture(scope="session")
def trained():
    """A model of the spiral, with 4,096 codes, and points that it was not trained on."""
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = DRMM(2, 3, 16, max_exact=0)
        fit(model, spiral(10_000, 0.1), steps=700, lr=1e-2, seed=0, progress_bar=False)
        held_out = spiral(1000, 0.1)
    torch.set_default_dtype(dtype)
    return model.requires_grad_(False), held_out
