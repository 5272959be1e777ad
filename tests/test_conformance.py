"""Every distribution of the library goes through every check: one line each."""

import dataclasses

import pyro.distributions as dist
import pyro.distributions.transforms as transforms
import torch

from pyromix import Flow, GaussianMixture, MixtureOfNormals
from pyromix.testing import Case, parametrize


def _mixture(batch=(), k=3, dim=2):
    return MixtureOfNormals(
        torch.randn(*batch, k), torch.randn(*batch, k, dim), 0.3 + torch.rand(*batch, k, dim)
    )


CASES = {
    "mixture-1d": Case(lambda: _mixture(dim=1)),
    "mixture-2d": Case(_mixture),
    "mixture-8d": Case(lambda: _mixture(dim=8)),
    "mixture-batch": Case(lambda: _mixture((2, 3))),
    "mixture-many": Case(lambda: _mixture(k=20, dim=40)),
    "learnable-diagonal": Case(lambda: GaussianMixture(2, 3)),
    "learnable-spherical": Case(lambda: GaussianMixture(3, 4, "spherical")),
    "learnable-shared": Case(lambda: GaussianMixture(3, 4, "shared")),
    "flow-normal": Case(
        lambda: Flow(
            dist.Normal(torch.zeros(2), torch.ones(2)),
            [transforms.affine_coupling(2), transforms.AffineTransform(torch.ones(2), 2.0)],
        )
    ),
    "flow-mixture": Case(
        lambda: Flow(GaussianMixture(2, 3), [transforms.affine_autoregressive(2).inv])
    ),
}


@parametrize(CASES)
def test_conformance(check, case, device):
    check(dataclasses.replace(case, device=device, rejects_integers=True))
