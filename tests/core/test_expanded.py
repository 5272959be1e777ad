"""Laws with a larger batch shape."""

import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as transforms
import pytest
import torch
from pyro.distributions.torch_distribution import ExpandedDistribution
from pyro.infer import Trace_ELBO

from pyromix import DRMM, RAD, Box, Flow, GaussianMixture, Observed, load, save
from pyromix.core.expanded import ExpandedLaw, expand_kept

MAKE = {
    "module": lambda: GaussianMixture(2, 3),
    "given evidence": lambda: GaussianMixture(2, 3).condition(Box(low=0.0)),
    "free columns": lambda: DRMM(2, 2, 2).condition(Observed({0: 0.5})).free(),
}


@pytest.mark.parametrize("make", MAKE.values(), ids=MAKE)
def test_expanding_twice_leaves_the_first_law_as_it_was(make):
    law = make()
    first = law.expand((3,))
    second = first.expand((5, 3))
    assert (law.batch_shape, first.batch_shape, second.batch_shape) == ((), (3,), (5, 3))
    assert first.sample((2,)).shape == (2, 3, *law.event_shape)
    assert second.sample().shape == (5, 3, *law.event_shape)
    with pytest.raises(ValueError, match=r"Expected a batch shape that \(3,\) expands to"):
        first.expand((2,))


def test_dimensions_of_size_one_are_drawn_anew_after_expansion():
    law = ExpandedLaw(dist.Normal(torch.tensor([[0.0], [9.0]]), 1.0), (4, 2, 3))
    x = law.sample((100,))
    assert x.shape == (100, 4, 2, 3)
    assert not torch.equal(x[..., 0], x[..., 1])
    torch.testing.assert_close(x.mean((0, 1, 3)), torch.tensor([0.0, 9.0]), atol=0.2, rtol=0.0)


def test_laws_of_pyro_within_a_flow_stay_as_they_are():
    inner = ExpandedDistribution(GaussianMixture(2, 3), (3,))
    base = dist.Independent(inner, 0)
    assert expand_kept(base, (5, 3)).batch_shape == (5, 3)
    assert inner.batch_shape == base.base_dist.batch_shape == (3,)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Flow(GaussianMixture(2, 3), [transforms.conditional_affine_coupling(2, 1, [8])]),
        lambda: RAD(2, 2, context_dim=1),
    ],
    ids=["flow", "rad"],
)
def test_a_law_given_contexts_serves_losses_of_different_numbers_of_particles(make):
    law = make().condition(torch.randn(3, 1))

    def prior():
        with pyro.plate("n", 3):
            pyro.sample("z", law)

    def guide():
        with pyro.plate("n", 3):
            pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    for particles in (4, 16):
        loss = Trace_ELBO(particles, vectorize_particles=True, max_plate_nesting=1)
        assert abs(loss.loss(prior, guide)) < 1e6
        assert law.batch_shape == (3,)
        assert law.log_prob(torch.zeros(3, 2)).shape == (3,)


def test_a_flow_over_an_expanded_model_is_saved(tmp_path):
    flow = Flow(GaussianMixture(2, 3).expand((4,)), [transforms.AffineTransform(1.0, 2.0)])
    save(flow, tmp_path / "flow.safetensors")
    x = flow.sample((2,))
    assert torch.equal(load(tmp_path / "flow.safetensors").log_prob(x), flow.log_prob(x))
