"""Flows: owned parts, honest caches, one pass for draw and density."""

import copy
import inspect
import math
import pickle
import re
from pathlib import Path

import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as transforms
import pytest
import torch
from pyro.distributions.util import is_identically_zero
from pyro.infer import (
    SVI,
    RenyiELBO,
    Trace_ELBO,
    TraceMeanField_ELBO,
    TraceTailAdaptive_ELBO,
)
from pyro.infer.reparam import TransformReparam
from pyro.optim import ClippedAdam
from torch import nn

from pyromix import (
    RAD,
    Flow,
    FoldingCoupling,
    GaussianMixture,
    MixtureOfNormals,
    fit,
    load,
    save,
)
from pyromix.core.law_module import LawModule
from pyromix.flows import FlowLaw
from pyromix.flows.chain import CACHES

DIM = 4


def normal(*shape):
    return dist.Normal(torch.zeros(*shape), torch.ones(*shape))


BASES = {
    "batch": lambda: normal(DIM),
    "event": lambda: normal(DIM).to_event(1),
    "batch and event": lambda: normal(3, DIM),
    "scalar, expanded": lambda: dist.Normal(0.0, 1.0).expand([DIM]),
    "mixture": lambda: MixtureOfNormals(torch.zeros(2), torch.randn(2, DIM), torch.ones(2, DIM)),
    "learnable": lambda: GaussianMixture(DIM, 3),
    "flow": lambda: Flow(GaussianMixture(DIM, 3), transforms.affine_coupling(DIM)),
}

STACKS = {
    "nothing": list,
    "modules": lambda: [transforms.affine_coupling(DIM), transforms.spline_coupling(DIM)],
    "inverses": lambda: [
        transforms.spline(DIM).inv,
        transforms.affine_autoregressive(DIM).inv,
        transforms.AffineTransform(torch.randn(DIM), 2.0).inv,
    ],
    "plain": lambda: [
        transforms.permute(DIM),
        transforms.AffineTransform(torch.randn(DIM), torch.rand(DIM) + 0.5),
        transforms.LowerCholeskyAffine(torch.randn(DIM), 2 * torch.eye(DIM)),
        transforms.LeakyReLUTransform(),
    ],
    "composed": lambda: [
        transforms.iterated(2, transforms.affine_coupling, DIM),
        transforms.ComposeTransform(
            [transforms.AffineTransform(1.0, 2.0), transforms.spline(DIM)]
        ).inv,
    ],
    "shape": lambda: [transforms.ReshapeTransform((DIM,), (2, 2)), transforms.ExpTransform()],
}


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("stack", STACKS)
def test_matches_pyros_transformed_distribution(base, stack):
    law, parts = BASES[base](), STACKS[stack]()
    flow = Flow(law, parts)
    expected = dist.TransformedDistribution(law, parts)
    if stack == "nothing" and base != "batch and event":
        assert flow.batch_shape + flow.event_shape == (DIM,)
    assert (flow.batch_shape, flow.event_shape) == (expected.batch_shape, expected.event_shape)
    x, log_prob = flow.rsample_and_log_prob((5,))
    assert x.shape == (5, *flow.batch_shape, *flow.event_shape)
    torch.testing.assert_close(flow.log_prob(x), expected.log_prob(x.clone()))
    torch.testing.assert_close(log_prob, flow.log_prob(x))
    assert flow.support.check(x).all()
    assert flow.sample((2,)).shape == flow.rsample((2,)).shape


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("stack", STACKS)
def test_every_tensor_is_owned_once(base, stack):
    flow = Flow(BASES[base](), STACKS[stack]())
    flow()  # fills the caches that copies must not stumble over
    stored = flow.state_dict(keep_vars=True)
    assert len({id(t) for t in stored.values()}) == len(stored)
    x = flow.sample((3,))
    expected = flow.log_prob(x)
    for other in (copy.deepcopy(flow), pickle.loads(pickle.dumps(flow))):
        torch.testing.assert_close(other.log_prob(x), expected)
    other = Flow.from_config(flow.config())
    other.load_state_dict(flow.state_dict())
    torch.testing.assert_close(other.log_prob(x), expected)
    assert all(t.is_meta for t in copy.deepcopy(flow).to("meta").state_dict().values())


@pytest.mark.parametrize("base", ["batch", "batch and event", "learnable"])
def test_expand(base):
    flow = Flow(BASES[base](), STACKS["modules"]())
    wide = flow.expand((2, *flow.batch_shape))
    x = wide.sample()
    assert x.shape == (2, *flow.batch_shape, DIM)
    torch.testing.assert_close(wide.log_prob(x), flow.log_prob(x))


def test_a_base_is_registered_under_one_name():
    flow = Flow(GaussianMixture(DIM, 2), STACKS["modules"]())
    assert not any(name.startswith("base_dist") for name in flow.state_dict())
    assert {name.split(".")[0] for name, _ in flow.named_parameters()} == {"base", "transforms"}


def test_pyro_can_switch_pathwise_gradients_off():
    flow = Flow(normal(DIM), STACKS["modules"]())
    assert flow().requires_grad
    flow.has_rsample_(False)
    assert not flow().requires_grad
    x, log_prob = flow.rsample_and_log_prob()
    assert not x.requires_grad
    assert not log_prob.requires_grad
    flow.has_rsample_(True)
    assert flow().requires_grad
    categorical = Flow(dist.Uniform(torch.zeros(2), 1.0).has_rsample_(False), [])
    assert not categorical.has_rsample


def count_inverses(flow):
    """Counts how often the first transform is inverted."""
    calls, transform = [], flow.transforms[0]
    original = transform._inverse
    transform._inverse = lambda y: (calls.append(1), original(y))[1]
    return calls


def test_drawing_and_scoring_takes_no_inverse():
    flow = Flow(normal(DIM), STACKS["modules"]())
    calls = count_inverses(flow)
    flow.rsample_and_log_prob((10,))
    x = flow()
    flow.score_parts(x)  # as SVI does with a guide's draw
    assert not calls
    flow.score_parts(x)
    assert len(calls) == 1  # the caches were used once, and emptied


def test_a_value_scored_again_sees_new_parameters():
    """Pyro's cache would return the stale density, or a graph that is already freed."""
    flow = Flow(normal(DIM), STACKS["modules"]())
    x = torch.randn(10, DIM)
    first = flow.log_prob(x)
    first.sum().backward()
    with torch.no_grad():
        for p in flow.parameters():
            p.add_(0.1)
    second = flow.log_prob(x)
    assert not torch.equal(first, second)
    torch.testing.assert_close(second, flow.log_prob(x.clone()))
    second.sum().backward()


def test_gradient_at_a_drawn_value():
    """With Pyro's cache the log-density of a draw would not depend on it."""
    flow = Flow(normal(DIM), STACKS["modules"]())
    x = flow.rsample((3,))
    (score,) = torch.autograd.grad(flow.log_prob(x).sum(), x)
    y = x.detach().requires_grad_()
    (expected,) = torch.autograd.grad(flow.log_prob(y).sum(), y)
    torch.testing.assert_close(score, expected)


def test_scoring_a_draw_made_without_a_graph_has_gradients():
    flow = Flow(normal(DIM), STACKS["modules"]())
    with torch.no_grad():
        x = flow.rsample((3,))
    flow.score_parts(x).log_prob.sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in flow.parameters())


def test_gradients_of_both_routes_agree():
    flow = Flow(GaussianMixture(DIM, 3), STACKS["modules"]())

    def gradients(draw):
        torch.manual_seed(1)
        x, log_prob = draw()
        loss = (log_prob + x.square().sum(-1)).mean()
        return torch.autograd.grad(loss, list(flow.parameters()), materialize_grads=True)

    one_pass = gradients(lambda: flow.rsample_and_log_prob((20,)))

    def two_passes():
        x = flow.rsample((20,))
        return x, flow.log_prob(x)

    for a, b in zip(one_pass, gradients(two_passes), strict=True):
        torch.testing.assert_close(a, b)


def test_no_inverse_in_closed_form():
    flow = Flow(normal(DIM), transforms.planar(DIM))
    x, log_prob = flow.rsample_and_log_prob()
    assert log_prob.isfinite()
    flow.score_parts(flow())  # enough for a guide
    with pytest.raises(NotImplementedError, match="rsample_and_log_prob"):
        flow.log_prob(x.detach())
    with pytest.raises(NotImplementedError, match="rsample_and_log_prob"):
        fit(Flow(GaussianMixture(DIM, 2), transforms.planar(DIM)), torch.randn(9, DIM), steps=1)


@pytest.mark.parametrize("learnable", [False, True])
def test_weighted_draws_pass_through(learnable):
    """The entropy of a flow on far components, and its gradient, against quadrature."""
    loc = torch.tensor([[-20.0], [20.0]])
    base = GaussianMixture(1, 2) if learnable else MixtureOfNormals(torch.zeros(2), loc, loc**0)
    if learnable:
        with torch.no_grad():
            base.loc.copy_(loc)
    flow = Flow(base, transforms.AffineTransform(torch.ones(1), torch.full((1,), 2.0)))
    x, log_weight, log_prob = flow.rsample_weighted_and_log_prob(4000)
    assert x.shape == (4000, 1)
    torch.testing.assert_close(log_prob, flow.log_prob(x))
    entropy = -(log_weight.exp() * log_prob).sum()
    expected = math.log(2) + math.log(2) + 0.5 + 0.5 * math.log(2 * math.pi)
    assert abs(entropy.item() - expected) < 4.5 * log_prob.std() / math.sqrt(4000)
    if learnable:
        (log_weight.exp() * x[:, 0]).sum().backward()
        # d E[x] / d logit = 2 w (1 - w) (m_2 - m_1) / 2: no path between the modes has it.
        torch.testing.assert_close(
            base.logits.grad, torch.tensor([-20.0, 20.0]), rtol=0.01, atol=0
        )


def test_weighted_draws_need_a_mixture():
    with pytest.raises(NotImplementedError, match="GaussianMixture as base"):
        Flow(normal(DIM), transforms.affine_coupling(DIM)).rsample_weighted_and_log_prob(3)


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("vectorized", [False, True])
def test_drawing_in_plates_takes_no_inverse(conditional, vectorized):
    """Pyro expands a guide's law over plates and particles: its caches must still be used."""
    if conditional:
        whole = Flow(normal(DIM), transforms.conditional_planar(DIM, 1, [8]))
        flow = whole.condition(torch.ones(1))
    else:
        whole = flow = Flow(normal(DIM), transforms.planar(DIM))

    def model():
        with pyro.plate("items", 5):
            pyro.sample("z", dist.Normal(torch.ones(DIM), 0.3).to_event(1))

    def guide():
        with pyro.plate("items", 5):
            pyro.sample("z", flow)

    elbo = Trace_ELBO(num_particles=3, vectorize_particles=vectorized, max_plate_nesting=1)
    elbo.differentiable_loss(model, guide).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in whole.parameters())
    wide = flow.expand((5,))
    x, log_prob = wide.rsample_and_log_prob((2,))
    assert x.shape == (2, 5, DIM)
    assert log_prob.shape == (2, 5)


@pytest.mark.parametrize("inverted", [False, True])
def test_scores_in_another_dtype_than_the_default(inverted):
    """Pyro's autoregressive inverse starts from zeros of the default dtype."""
    transform = transforms.affine_autoregressive(DIM, [8])
    flow = Flow(normal(DIM), [transform.inv if inverted else transform]).float()
    x, log_prob = flow.rsample_and_log_prob((3,))
    assert x.dtype == torch.float32
    torch.testing.assert_close(flow.log_prob(x), log_prob, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("base", ["batch", "learnable", "batch and event"])
def test_conditional(base):
    flow = Flow(
        BASES[base](),
        [
            transforms.conditional_affine_coupling(DIM, 2),
            transforms.permute(DIM),
            transforms.conditional_spline(DIM, 2, order="quadratic"),
            transforms.conditional_affine_coupling(DIM, 2).inv,
            transforms.affine_coupling(DIM),
        ],
    )
    assert flow.conditional
    context = torch.randn(*([3] if base == "batch and event" else [6]), 2)
    law = flow.condition(context)
    assert law.batch_shape == context.shape[:1]
    x, log_prob = law.rsample_and_log_prob((5,))
    assert x.shape == (5, len(context), DIM)
    torch.testing.assert_close(law.log_prob(x), log_prob)
    one = flow.condition(context[0])
    torch.testing.assert_close(one.log_prob(x[:, :1])[:, 0], log_prob[:, 0])
    law.has_rsample_(False)
    assert not law().requires_grad
    wide = law.expand((2, len(context)))
    assert wide.sample().shape == (2, len(context), DIM)
    other = Flow.from_config(flow.config())
    other.load_state_dict(flow.state_dict())
    torch.testing.assert_close(other.condition(context).log_prob(x), log_prob)


@pytest.mark.parametrize("count", [3, 50])
def test_conditional_elementwise_transforms_make_vectors(count):
    forward, inverse = (
        Flow(normal(3), t)
        for t in (transforms.conditional_spline(3, 2), transforms.conditional_spline(3, 2).inv)
    )
    assert forward.batch_shape == inverse.batch_shape == ()
    x, context = torch.randn(count, 3), torch.randn(count, 2)
    for flow in (forward, inverse):
        assert flow.condition(context).log_prob(x).shape == (count,)


def test_a_conditional_base_is_given_the_context():
    base = Flow(normal(3), transforms.conditional_affine_coupling(3, 2))
    coupling = transforms.affine_coupling(3)
    flow, both = Flow(base, coupling), Flow(normal(3), [base.transforms[0], coupling])
    x, context = torch.randn(4, 3), torch.randn(4, 2)
    assert flow.conditional
    assert flow.condition(context).batch_shape == (4,)
    torch.testing.assert_close(
        flow.condition(context).log_prob(x), both.condition(context).log_prob(x)
    )
    with pytest.raises(ValueError, match=r"needs a context.*condition\(context\)"):
        flow.log_prob(x)


def test_base_and_transforms_may_both_be_conditional():
    base = GaussianMixture(3, 2, context_dim=2)
    coupling = transforms.conditional_affine_coupling(3, 2)
    flow = Flow(base, coupling)
    x, context = torch.randn(5, 4, 3), torch.randn(4, 2)
    law = flow.condition(context)
    given = coupling.condition(context)
    z = given.inv(x)
    expected = base.condition(context).log_prob(z) - given.log_abs_det_jacobian(z, x)
    torch.testing.assert_close(law.log_prob(x), expected)
    assert law.sample((5,)).shape == (5, 4, 3)
    flow.initialize((x.reshape(20, 3), context.repeat(5, 1)))
    assert base.initialized


def test_one_context_serves_all_vectors_of_an_event():
    """Also where there are as many vectors as contexts."""
    coupling = transforms.conditional_affine_coupling(3, 2)
    x, context = torch.randn(4, 4, 3), torch.randn(4, 2)
    law = Flow(dist.Normal(torch.zeros(4, 3), 1.0).to_event(2), coupling).condition(context)
    assert (law.batch_shape, law.event_shape) == ((4,), (4, 3))
    alone = Flow(normal(3), coupling)
    expected = sum(alone.condition(context).log_prob(x[:, t]) for t in range(4))
    torch.testing.assert_close(law.log_prob(x), expected)


def test_conditional_flow_learns():
    """y = 2 c + noise of scale exp(-1)."""
    context = torch.randn(2000, 1)
    y = torch.cat([2 * context, -context], -1) + 0.3 * torch.randn(2000, 2)
    flow = Flow(
        normal(2),
        [
            transforms.conditional_affine_coupling(2, 1, hidden_dims=[16]),
            transforms.permute(2, torch.tensor([1, 0])),
            transforms.conditional_affine_coupling(2, 1, hidden_dims=[16]),
        ],
    )
    history = fit(flow, (y, context), steps=400, lr=0.01, seed=0, progress_bar=False)
    entropy = 2 * (1.4189385 + torch.tensor(0.3).log().item())
    assert sum(history.losses[-50:]) / 50 < entropy + 0.2
    draws = flow.condition(torch.tensor([1.0])).sample((500,))
    torch.testing.assert_close(draws.mean(0), torch.tensor([2.0, -1.0]), atol=0.15, rtol=0)


def test_initialize_pulls_the_data_back_to_the_base():
    shift = transforms.AffineTransform(torch.full((2,), 100.0), 10.0)
    flow = Flow(GaussianMixture(2, 1), shift)
    flow.initialize(100 + 10 * (3 + 0.1 * torch.randn(500, 2)))
    torch.testing.assert_close(flow.base.loc.detach()[0], torch.full((2,), 3.0), atol=0.05, rtol=0)


def test_initialize_leaves_a_base_alone_that_was_initialised_before():
    base = GaussianMixture(2, 3)
    base.initialize(torch.randn(50, 2))
    start = base.loc.detach().clone()
    Flow(base, transforms.AffineTransform(0.0, 1.0)).initialize(torch.randn(50, 2))
    assert torch.equal(base.loc, start)


def test_as_guide():
    """A flow guide finds a posterior that is normal."""
    data = torch.tensor([1.0, -2.0])

    def model():
        z = pyro.sample("z", normal(2).to_event(1))
        pyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=data)

    flow = Flow(normal(2), transforms.iterated(2, transforms.affine_autoregressive, 2))

    def guide():
        pyro.module("flow", flow)
        pyro.sample("z", flow)

    elbo = Trace_ELBO(num_particles=16, vectorize_particles=True, max_plate_nesting=0)
    svi = SVI(model, guide, ClippedAdam({"lr": 0.02}), elbo)
    for _ in range(300):
        svi.step()
    draws = flow.sample((4000,))
    torch.testing.assert_close(draws.mean(0), data * 0.8, atol=0.1, rtol=0)
    torch.testing.assert_close(draws.std(0), torch.full((2,), 0.2**0.5), atol=0.1, rtol=0)


def test_transform_reparam_understands_it():
    flow = Flow(normal(DIM), STACKS["modules"]())
    model = pyro.poutine.reparam(lambda: pyro.sample("x", flow), config={"x": TransformReparam()})
    trace = pyro.poutine.trace(model).get_trace()
    assert "x_base" in trace.nodes
    assert trace.nodes["x"]["value"].shape == (DIM,)


def test_shared_transform_is_one_module():
    coupling = transforms.affine_coupling(DIM)
    flow = Flow(normal(DIM), [coupling, transforms.permute(DIM), coupling])
    assert len(list(flow.parameters())) == len(list(coupling.parameters()))
    x, log_prob = flow.rsample_and_log_prob((4,))
    torch.testing.assert_close(flow.log_prob(x), log_prob)


def test_shared_transforms_stay_shared_in_files(tmp_path):
    coupling = transforms.affine_coupling(3)
    flow = Flow(normal(3), [coupling, transforms.permute(3), coupling])
    save(flow, tmp_path / "flow.safetensors")
    state = torch.get_rng_state()
    other = load(tmp_path / "flow.safetensors")
    assert torch.equal(torch.get_rng_state(), state)
    assert other.transforms[0] is other.transforms[2]
    x = torch.randn(4, 3)
    assert torch.equal(other.log_prob(x), flow.log_prob(x))


def test_compiles_and_vmaps():
    flow = Flow(GaussianMixture(DIM, 2), STACKS["modules"]()[:1])
    x = flow.sample((3,))
    torch.testing.assert_close(torch.func.vmap(flow.log_prob)(x), flow.log_prob(x))


def test_users_network_in_a_transform():
    network = nn.Sequential(nn.Linear(2, 8), nn.SiLU(), nn.Linear(8, 4))

    class Split(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, x):
            return self.network(x).chunk(2, -1)

    flow = Flow(normal(DIM), transforms.AffineCoupling(2, Split()))
    assert any(p is network[0].weight for p in flow.parameters())
    x, log_prob = flow.rsample_and_log_prob((3,))
    torch.testing.assert_close(flow.log_prob(x), log_prob)


@pytest.mark.parametrize(
    ("parts", "low", "high"),
    [
        ([transforms.SigmoidTransform(), transforms.AffineTransform(-10.0, 20.0)], -10.0, 10.0),
        ([transforms.SigmoidTransform(), transforms.AffineTransform(1.0, -4.0)], -3.0, 1.0),
        ([transforms.ExpTransform(), transforms.AffineTransform(2.0, 3.0)], 2.0, math.inf),
        ([transforms.ExpTransform(), transforms.AffineTransform(2.0, -3.0)], -math.inf, 2.0),
        ([transforms.AffineTransform(2.0, -3.0)], -math.inf, math.inf),
    ],
)
def test_support_moves_with_affine_transforms(parts, low, high):
    flow = Flow(dist.Normal(torch.zeros(2), torch.ones(2)).to_event(1), parts)
    inside = torch.linspace(max(low, -20) + 0.01, min(high, 20) - 0.01, 7)
    outside = [v for v in (low - 0.01, high + 0.01) if math.isfinite(v)]
    assert flow.support.event_dim == 1
    assert flow.support.check(inside.unsqueeze(-1).expand(7, 2)).all()
    for value in outside:
        assert not flow.support.check(torch.tensor([inside[3], value]))
    back = torch.distributions.biject_to(flow.support)
    assert flow.support.check(back(torch.randn(50, 2))).all()


# ---- the contract from module to law, arrays and lists ------------------------------------------


def test_a_flow_is_its_own_law_without_a_context():
    flow = Flow(GaussianMixture(DIM, 2), STACKS["modules"]())
    assert isinstance(flow, LawModule)
    assert isinstance(flow, FlowLaw)
    assert flow.law is flow
    with pytest.raises(NotImplementedError):
        _ = flow.mean
    conditional = Flow(normal(3), transforms.conditional_affine_coupling(3, 2))
    with pytest.raises(ValueError, match="needs a context"):
        _ = conditional.law
    with pytest.raises(ValueError, match="context to be a tensor, got NoneType"):
        conditional.condition(None)
    assert type(conditional.condition(torch.zeros(2))) is FlowLaw


def test_contexts_and_latents_may_be_arrays_and_lists():
    flow = Flow(normal(3), [transforms.conditional_affine_coupling(3, 2), FoldingCoupling(3)])
    context, z = torch.randn(4, 2), torch.randn(4, 3)
    law = flow.condition(context)
    branches = (torch.randint(3, (4, 2)),)
    x = law.decode(z, branches).detach()
    for convert in (torch.Tensor.numpy, torch.Tensor.tolist):
        given = flow.condition(convert(context))
        assert torch.equal(given.log_prob(x), law.log_prob(x))
        own = [convert(b) for b in branches]
        assert torch.equal(given.decode(convert(z), own), law.decode(z, branches))
        got, expected = given.encode(convert(x)), law.encode(x)
        assert torch.equal(got[0], expected[0])
        assert torch.equal(got[1][0], expected[1][0])
    with pytest.raises(ValueError, match=r"context to have dtype torch\.float64"):
        flow.condition(context.float())


def test_data_to_initialise_from_may_be_an_array():
    data = 3 + torch.randn(200, DIM)
    flows = [Flow(GaussianMixture(DIM, 1), transforms.AffineTransform(1.0, 2.0)) for _ in range(2)]
    flows[0].initialize(data)
    flows[1].initialize(data.numpy())
    assert torch.equal(flows[0].base.loc, flows[1].base.loc)


def test_base_and_transforms_in_the_wrong_order():
    with pytest.raises(TypeError, match="The base comes first"):
        Flow(normal(DIM), normal(DIM))


def test_every_cache_of_pyros_transforms_is_known():
    """Under torch.compile they are emptied by their names."""
    package = Path(inspect.getfile(transforms)).parent
    source = "".join(path.read_text() for path in package.glob("*.py"))
    names = set(re.findall(r"self\.(_cache\w+)", source))
    assert names - {"_cache_size", "_cached_x_y"} <= set(CACHES)


def conditional_flows():
    """Flows of two numbers given one, of transforms that broadcast and that do not."""
    made = {
        "spline": transforms.conditional_spline(2, 1, [8]),
        "coupling": transforms.conditional_affine_coupling(2, 1, [8]),
        "matrix": transforms.conditional_matrix_exponential(2, 1, [8]),
    }
    return {name: Flow(GaussianMixture(2, 3), [part]) for name, part in made.items()}


@pytest.mark.parametrize("name", conditional_flows())
def test_a_batch_of_contexts_scores_values_of_other_batches(name):
    flow, contexts, x = conditional_flows()[name], torch.randn(4, 1), torch.rand(5, 2)
    law = flow.condition(contexts)
    expected = torch.stack([flow.condition(c).log_prob(x) for c in contexts], -1)
    torch.testing.assert_close(law.log_prob(x.unsqueeze(1)), expected)
    torch.testing.assert_close(law.log_prob(x[0]), expected[0])
    assert law.encode(x[0])[0].shape == (4, 2)
    mixture = dist.MixtureSameFamily(dist.Categorical(torch.ones(4) / 4), law)
    torch.testing.assert_close(mixture.log_prob(x), expected.logsumexp(-1) - math.log(4))


@pytest.mark.parametrize("shape", [(4, 3), (4, 1), (1,), ()])
def test_values_of_another_event_shape_are_refused_without_validation(shape):
    flow = Flow(GaussianMixture(2, 3), [transforms.affine_autoregressive(2)], validate_args=False)
    conditional = RAD(2, 2, context_dim=1, validate_args=False).condition(torch.randn(4, 1))
    for law in (flow, flow.expand((4,)), conditional):
        with pytest.raises(ValueError, match=r"event shape \(2,\)"):
            law.log_prob(torch.zeros(shape))


@pytest.mark.parametrize("loss", [TraceMeanField_ELBO(), RenyiELBO(), TraceTailAdaptive_ELBO()])
def test_a_flow_is_a_guide_of_losses_that_take_pathwise_gradients_alone(loss):
    flow = Flow(GaussianMixture(2, 3), [transforms.affine_coupling(2)])
    loss.num_particles = 2
    if isinstance(loss, TraceTailAdaptive_ELBO):
        loss.vectorize_particles = True
    parts = flow.score_parts(flow())
    assert is_identically_zero(parts.score_function)

    def model():
        pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    def guide():
        pyro.module("flow", flow)
        pyro.sample("z", flow)

    loss.loss_and_grads(model, guide)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in flow.parameters())


def test_a_law_given_a_context_is_copied_after_a_draw():
    """Whose graph the transforms keep until the draw is scored."""
    flow = Flow(dist.Normal(torch.zeros(2), 1.0).to_event(1), [transforms.affine_coupling(2)])
    law = flow.expand((3,))
    x = law.rsample()
    assert torch.equal(copy.deepcopy(law).log_prob(x), law.log_prob(x))
