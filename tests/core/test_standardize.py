"""Standardisation of columns."""

import pytest
import torch

from pyromix import FRMDN, RAD
from pyromix.core.standardize import location_and_scale


@pytest.mark.parametrize(
    ("dtype", "spread"), [(torch.float64, 1e-6), (torch.float64, 1e-13), (torch.float32, 1e-6)]
)
def test_a_spread_small_next_to_the_mean_is_a_spread(dtype, spread):
    z = torch.randn(200, 2).to(dtype)
    rows = 3.0 * (1 + spread * z)
    loc, scale = location_and_scale(rows)
    around = (rows - loc) / scale
    ones = torch.ones(2, dtype=dtype)
    torch.testing.assert_close(around.std(0, correction=0), ones, rtol=0.01, atol=0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_constant_column_has_the_scale_one(dtype):
    rows = torch.tensor([0.1, -1e9, 0.0], dtype=dtype).expand(777, 3)
    assert torch.equal(location_and_scale(rows)[1], torch.ones(3, dtype=dtype))
    # What differs by rounding alone is no spread.
    rows = torch.tensor([[3.0], [3.0 * (1 + 0.3 * torch.finfo(dtype).eps)]], dtype=dtype)
    assert location_and_scale(rows.repeat(50, 1))[1].item() == 1.0


def test_models_follow_data_far_from_the_origin():
    """Timestamps: the law of shifted data is the shifted law."""
    x, shift = 600 * torch.randn(300, 2), 1.7e9
    near, far = RAD(2, 2), RAD(2, 2)
    far.load_state_dict(near.state_dict())
    near.initialize(x)
    far.initialize(x + shift)
    torch.testing.assert_close(far.log_prob(x + shift), near.log_prob(x), rtol=1e-5, atol=0)
    model = FRMDN(2, 5, 2, context_dim=2)
    series = (x[:100].reshape(20, 5, 2) + shift, 0.1 * x[:100].reshape(20, 5, 2) - shift)
    model.initialize(series)
    for standardize in (model.standardize, model.inputs.standardize_context):
        assert (standardize.scale > 10).all()
