"""Arguments by the names that all models have in common, beside their own."""

import pytest
import torch

from pyromix import DRMM, GaussianMixture, RelaxedGaussianMixture, load, save


@pytest.mark.parametrize("make", [GaussianMixture, RelaxedGaussianMixture])
def test_scale_floor_is_the_root_of_the_variance_floor(make, tmp_path):
    model = make(2, 3, scale_floor=0.25)
    assert model.variance_floor == 0.0625
    assert model.scale_floor == 0.25
    assert make(2, 3).scale_floor == pytest.approx(1e-3)
    assert "scale_floor" not in model.config()
    assert "scale_floor" not in repr(model)
    save(model, tmp_path / "model.safetensors")
    assert load(tmp_path / "model.safetensors").variance_floor == 0.0625
    with pytest.raises(ValueError, match="scale_floor"):
        make(2, 3, scale_floor=0.0)


def test_max_codes_is_max_exact():
    model = DRMM(2, num_layers=2, num_components=3, max_codes=4)
    assert (model.max_exact, model.max_codes) == (4, 4)
    assert model.config()["max_exact"] == 4
    assert "max_codes" not in model.config()
    torch.manual_seed(0)
    assert not model.condition({0: 0.0}).exact
    assert model.condition({0: 0.0}, max_codes=9).exact
    assert model.condition({0: 0.0}, max_exact=9).exact
