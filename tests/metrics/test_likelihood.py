"""Bits per dimension of laws whose code lengths are known."""

import numpy as np
import pytest
import torch
from torch.distributions import Independent, Uniform

from pyromix import dequantize
from pyromix.metrics import bits_per_dim


def test_uniform_law_over_bytes_takes_eight_bits():
    law = Independent(Uniform(torch.zeros(3, 5), 256.0), 2)
    pixels = torch.randint(256, (7, 3, 5), dtype=torch.uint8)
    bits = bits_per_dim(law.log_prob(dequantize(pixels)), 15)
    torch.testing.assert_close(bits, torch.full((7,), 8.0))


def test_unit_is_a_level():
    scaled = Independent(Uniform(torch.zeros(4), 1.0), 1)
    bits = bits_per_dim(scaled.log_prob(torch.rand(6, 4)), 4)
    torch.testing.assert_close(bits + 8, torch.full((6,), 8.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shape_dtype_and_gradient(dtype):
    log_prob = torch.randn(2, 3, dtype=dtype, requires_grad=True)
    bits = bits_per_dim(log_prob, 10)
    assert bits.shape == (2, 3)
    assert bits.dtype == dtype
    (slope,) = torch.autograd.grad(bits.sum(), log_prob)
    torch.testing.assert_close(slope, torch.full_like(slope, -0.1 / 0.6931471805599453))


def test_arrays_and_numbers():
    expected = bits_per_dim(torch.tensor([-3.0, -2.0]), 5)
    assert torch.equal(bits_per_dim(np.array([-3.0, -2.0]), 5), expected)
    assert torch.equal(bits_per_dim([-3, -2.0], 5), expected)
    assert bits_per_dim(-3.0, 5) == expected[0]


BAD = [
    ((torch.zeros(3), 0), "num_dims to be an integer of at least 1, got 0"),
    ((torch.zeros(3), 2.5), "num_dims to be an integer"),
    ((["a"], 5), "log_prob to hold real numbers"),
    ((torch.zeros(3, dtype=torch.int64), 5), "log_prob to have dtype"),
]


@pytest.mark.parametrize(("arguments", "match"), BAD)
def test_bad_input(arguments, match):
    with pytest.raises(ValueError, match=match):
        bits_per_dim(*arguments)
