"""Points that fill their space evenly."""

import math

import torch
from torch import Size

from pyromix.numerics.sobol import MAX_DIM, even_normals, even_uniforms


def test_uniforms_are_inside_the_cube_and_even():
    u = even_uniforms(256, 3, seed=1)
    assert u.shape == (256, 3)
    assert u.dtype == torch.float64
    assert u.min() > 0
    assert u.max() < 1
    # As many points in every sixteenth of each coordinate; independent ones differ by 4.
    for column in u.mT:
        assert torch.bincount((16 * column).long(), minlength=16).tolist() == [16] * 16


def test_seeds():
    assert torch.equal(even_uniforms(8, 2, seed=3), even_uniforms(8, 2, seed=3))
    assert not torch.equal(even_uniforms(8, 2, seed=3), even_uniforms(8, 2, seed=4))
    torch.manual_seed(0)
    first = even_uniforms(8, 2)
    assert not torch.equal(first, even_uniforms(8, 2))
    torch.manual_seed(0)
    assert torch.equal(first, even_uniforms(8, 2))


def test_normals_have_the_right_law_and_less_noise():
    like = torch.zeros(1, dtype=torch.float32)
    z = even_normals(1024, Size((2, 3)), like)
    assert z.shape == (1024, 2, 3)
    assert z.dtype == torch.float32
    assert z.isfinite().all()
    error = 1 / math.sqrt(1024)  # of means of independent numbers
    assert (z.mean(0).abs() < 0.2 * error).all()
    torch.testing.assert_close(z.square().mean(0), torch.ones(2, 3).float(), atol=0.02, rtol=0)


def test_more_dimensions_than_a_sequence_has():
    z = even_normals(4, Size((MAX_DIM + 1,)), torch.zeros(1))
    assert z.shape == (4, MAX_DIM + 1)
    assert abs(float(z.square().mean()) - 1) < 0.1
