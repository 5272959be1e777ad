"""Evidence in any units: equations of any size, columns of very different spread."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal

from pyromix import DRMM, Box, GaussianMixture, LinearEquality, MixtureOfMultivariateNormals

EQUATIONS = torch.tensor([[1.0, 2.0, -1.0], [0.5, -1.0, 3.0]], dtype=torch.float64)
OFFSETS = torch.tensor([-0.5, 1.0], dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("make", [lambda: GaussianMixture(3, 2, "full"), lambda: DRMM(3, 2, 2)])
@pytest.mark.parametrize("sizes", [(1e30, 1e-30), (1e-12, 1e-12), (1e200, 1e-200)])
def test_an_equation_says_the_same_in_all_units(make, sizes, dtype):
    sizes, model = torch.tensor(sizes), make().to(dtype)
    with torch.no_grad():
        plain = model.condition(LinearEquality(EQUATIONS, OFFSETS), Box(low=-3.0))
        scaled = model.condition(
            LinearEquality(sizes.unsqueeze(-1) * EQUATIONS, sizes * OFFSETS), Box(low=-3.0)
        )
        x = scaled.sample((100,))
        missed = (x.double() @ EQUATIONS.mT + OFFSETS).abs()
        assert (missed < 20 * torch.finfo(dtype).eps * (1 + x.abs().amax())).all()
        # The factor of an equation is a delta function of its left side.
        expected = plain.log_evidence()[0] - sizes.log().sum()
        torch.testing.assert_close(
            *(t.double() for t in (scaled.log_evidence()[0], expected)), rtol=1e-5, atol=2e-2
        )
        # The law within the plane is the same.
        difference = scaled.log_prob(x) - plain.log_prob(x)
        torch.testing.assert_close(difference, torch.zeros(100, dtype=dtype), rtol=0, atol=2e-2)


@pytest.mark.parametrize("kind", [GaussianMixture, DRMM])
def test_what_the_dtype_does_not_reach_is_refused(kind):
    model = (kind(2, 2) if kind is GaussianMixture else kind(2, 2, 2)).float()
    with pytest.raises(ValueError, match=r"columns \[1\] beyond .* float64"):
        model.condition(LinearEquality(torch.tensor([0.0, 1e-30]), 1e30))
    with pytest.raises(ValueError, match="finite numbers solve"):
        model.condition(LinearEquality(torch.tensor([0.0, 1e-200]), 1e200))


def test_a_covariance_that_single_precision_cannot_factor():
    tril = torch.tensor([[1.0, 0.0], [1.0, 1e-5]])
    law = MixtureOfMultivariateNormals(
        torch.zeros(1).float(), torch.zeros(1, 2).float(), tril.unsqueeze(0).float()
    )
    given = law.condition(LinearEquality(torch.tensor([1.0, -1.0]), 1e-5))
    exact = MultivariateNormal(torch.zeros(2), scale_tril=tril.float().double())
    spread = (torch.tensor([1.0, -1.0]) @ exact.scale_tril).norm()
    expected = torch.distributions.Normal(0.0, spread).log_prob(torch.tensor(1e-5))
    assert math.isclose(given.log_evidence()[0].item(), expected.item(), rel_tol=1e-5)
