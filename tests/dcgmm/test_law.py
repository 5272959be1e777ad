"""The density: exact on trees, a bound elsewhere, against the sum over all codes."""

import pytest
import torch
from torch.func import functional_call

from pyromix import DCGMM, GaussianMixture, MixtureOfNormals
from pyromix.dcgmm import GMM, Folding

from .models import KINDS, TREES, build, close, images_for, kinds, loops, trees
from .reference import Slow

ROUNDING = 1e-9
# Of those that are no trees, the ones whose patches do not overlap.
DISJOINT = ("controls", "controls, one top", "pooling twice", "overlapping pooling")


@kinds()
def test_the_reference_is_a_law(name):
    """Weights sum to one, at every layer and for every code above."""
    slow = Slow(build(name))
    weights = slow.top_weights()
    for layer in range(slow.num_layers - 1, 0, -1):
        assert abs(sum(weights.values()) - 1) < 1e-12
        for codes in list(weights)[:5]:
            for law in slow.control(layer, codes):
                assert len(law) == slow.components[layer - 1]
                assert abs(sum(law) - 1) < 1e-12
                assert min(law) > 0
        weights = slow.below(layer, weights)
    assert abs(sum(weights.values()) - 1) < 1e-12


@trees
@pytest.mark.parametrize("noise", ["component", "shared"])
@pytest.mark.parametrize("seed", [0, 1])
def test_trees_are_exact(name, noise, seed):
    model = build(name, noise=noise, seed=seed)
    assert model.exact
    x = images_for(model)
    expected = Slow(model).log_prob(x)
    close(model.log_prob(x), expected, 1e-10)
    assert expected.std() > 0.1


def test_trees_ignore_the_number_of_sweeps():
    x = images_for(build("tree: 3L"))
    first, second = (build("tree: 3L", bound_steps=n).log_prob(x) for n in (1, 7))
    assert torch.equal(first, second)


def test_component_noise_is_the_default_where_patches_are_disjoint():
    for name in KINDS:
        disjoint = name.startswith("tree") or name in DISJOINT
        assert (build(name).noise_scale is None) == disjoint
        if disjoint:
            assert build(name, noise="shared").noise_scale.shape == ()


@pytest.mark.parametrize("name", ["one layer", "one layer, channels"])
def test_one_layer_is_a_gaussian_mixture(name):
    model = build(f"tree: {name}")
    (m,) = model.mixtures
    x = images_for(model)
    # Patches have their channels last.
    flat = x.movedim(-3, -1).flatten(1)
    plain = MixtureOfNormals(m.log_weights, m.loc, m.scale)
    close(model.log_prob(x), plain.log_prob(flat), 1e-10)
    learnable = GaussianMixture(flat.shape[1], len(m.loc))
    with torch.no_grad():
        learnable.logits.copy_(m.logits)
        learnable.loc.copy_(m.loc)
        learnable.raw_scale.copy_(0.5 * (m.scale.square() - learnable.variance_floor).log())
    close(model.log_prob(x), learnable.log_prob(flat), 1e-10)
    close(model.layer_log_likelihoods(x)[0].flatten(), plain.log_prob(flat), 1e-10)


def test_a_layer_of_certain_codes_changes_nothing():
    """Whose centroids are one-hot, each for one component below, and whose weights are theirs."""
    torch.manual_seed(0)
    one = DCGMM((1, 2, 2), [Folding(2), GMM(3)])
    two = DCGMM((1, 2, 2), [Folding(2), GMM(3), GMM(3)])
    with torch.no_grad():
        for p in one.parameters():
            p.add_(0.5 * torch.randn_like(p))
        two.mixtures[0].load_state_dict(one.mixtures[0].state_dict())
        two.mixtures[1].loc.copy_(torch.eye(3) * 3 - 1)
        two.mixtures[1].logits.copy_(one.mixtures[0].logits)
    x = images_for(one)
    # What is clipped leaves a millionth.
    close(two.log_prob(x), one.log_prob(x), 1e-3)
    assert (two.log_prob(x) - one.log_prob(x)).abs().max() > 1e-9


@kinds()
def test_shapes_of_batches(name):
    model = build(name)
    x = model.sample((2, 3))
    expected = torch.stack([model.log_prob(image) for image in x.flatten(0, 1)])
    assert expected.shape == (6,)
    close(model.log_prob(x), expected.reshape(2, 3), 1e-10)
    assert model.log_prob(x[0, 0]).shape == ()


@kinds("tree: one layer", "tree: 2L-b", "pixels", "controls")
def test_there_may_be_no_image(name):
    model = build(name)
    none = model.sample((2, 0))
    assert none.shape == (2, 0, *model.event_shape)
    assert model.log_prob(none).shape == (2, 0)
    assert model.score(none).shape == (2, 0)


@kinds()
def test_single_precision(name):
    model = build(name)
    x = images_for(model)
    expected = model.log_prob(x).detach()
    got = model.float().log_prob(x.float())
    assert got.dtype == torch.float32
    error = (got.double() - expected).abs() / expected.abs().clamp(min=1)
    assert error.max() < 1e-4


@kinds("tree: 3L", "tree: two tops", "pixels", "controls, one top")
def test_many_images_are_worked_on_in_blocks(name, monkeypatch):
    """With the same numbers and gradients, for one law and for a law for each image."""

    def results(law):
        y = x.clone().requires_grad_()
        value = law.log_prob(y)
        grads = torch.autograd.grad(value.sum(), [y, *model.parameters()], allow_unused=True)
        with torch.no_grad():
            close(law.log_prob(x), value)
        return [value, *(g for g in grads if g is not None)]

    one_top = "two tops" not in name
    model = build(name, num_classes=3 if one_top else None, deviation=0.5)
    x = images_for(model, 8)
    laws = [model]
    if one_top:
        torch.nn.init.normal_(model.classifier.weight)
        laws.append(model.condition(torch.arange(len(x)) % 3))
    for law in laws:
        expected = results(law)
        with monkeypatch.context() as patch:
            patch.setattr("pyromix.dcgmm.inference.BLOCK_NUMBERS", 1)
            got = results(law)
        assert len(got) == len(expected)
        for a, b in zip(got, expected, strict=True):
            close(a, b)


# ---- the bound --------------------------------------------------------------------------------

# Codes that the bound may sum over: with none, all above the bottom are approximated, too.
max_codes = pytest.mark.parametrize("max_codes", [0, 256])


@loops
@max_codes
@pytest.mark.parametrize("bound_steps", [1, 5])
@pytest.mark.parametrize("deviation", [0.1, 0.4, 2.0])
def test_the_bound_is_below(name, max_codes, bound_steps, deviation):
    """For draws, and for images that the model would never draw."""
    model = build(name, bound_steps=bound_steps, max_codes=max_codes, deviation=deviation)
    assert not model.exact
    x = images_for(model)
    gap = Slow(model).log_prob(x) - model.log_prob(x)
    assert gap.min() > -ROUNDING
    if max_codes == 0 and deviation > 0.1:
        assert gap.max() > 1e-6  # a bound, not the thing itself


@kinds(*DISJOINT)
@max_codes
def test_the_bound_with_one_noise_for_all(name, max_codes):
    """Where each component may have its own."""
    model = build(name, noise="shared", max_codes=max_codes, deviation=0.5)
    x = images_for(model)
    gap = Slow(model).log_prob(x) - model.log_prob(x)
    assert gap.min() > -ROUNDING
    if max_codes:  # all that matters is summed over
        assert gap.max() < ROUNDING


@kinds("pixels", "pixels, large patches", "three layers")
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("deviation", [0.15, 0.3, 0.6])
def test_the_gap_is_small(name, seed, deviation):
    """On images of 4 x 4 with overlapping patches, with the sweeps that are the default."""
    model = build(name, seed=seed, deviation=deviation)
    x = model.sample((100,))
    gap = Slow(model).log_prob(x) - model.log_prob(x)
    assert gap.min() > -ROUNDING
    if deviation > 0.15:
        assert gap.mean() < 0.05
    else:  # little noise: an image in a hundred ends in another optimum, and costs many nats
        assert gap.quantile(0.95) < 0.05


@loops
@max_codes
def test_sweeps_close_the_gap(name, max_codes):
    """No sweep makes the bound of any image worse."""
    x, gaps = None, []
    for bound_steps in (1, 2, 5, 20):
        model = build(name, bound_steps=bound_steps, max_codes=max_codes, deviation=0.5)
        if x is None:
            x, slow = images_for(model), Slow(model)
        gaps.append(slow.log_prob(x) - model.log_prob(x))
    gaps = torch.stack(gaps)
    assert (gaps.diff(dim=0) < ROUNDING).all()
    if max_codes == 0 or name not in DISJOINT:
        assert (gaps[0] - gaps[-1]).max() > 1e-5


@kinds("controls", "controls, one top", "three layers", "overlapping pooling")
def test_summing_over_codes_closes_the_gap(name):
    gaps = []
    for max_codes in (0, 10_000):
        model = build(name, max_codes=max_codes, deviation=0.5)
        x = images_for(model)
        gaps.append(Slow(model).log_prob(x) - model.log_prob(x))
    assert gaps[1].mean() < 0.5 * gaps[0].mean()


# ---- gradients --------------------------------------------------------------------------------

DIFFERENTIATED = ("tree: one layer", "tree: two tops, 3L", "tree: folding, pooling")
DIFFERENTIATED += ("pixels, one layer", "overlapping pooling")


def check_gradients(model, function, x):
    """Finite differences in the value and in all parameters, those of the classifier included."""
    names = [name for name, _ in model.named_parameters()]
    values = [p.detach().clone().requires_grad_() for p in model.parameters()]

    def scored(x, *parameters):
        parameters = dict(zip(names, parameters, strict=True))
        return functional_call(_Calls(model, function), _prefixed(parameters), (x,))

    x = x.detach().requires_grad_()
    assert torch.autograd.gradcheck(scored, (x, *values), atol=1e-6, rtol=1e-4)


class _Calls(torch.nn.Module):
    def __init__(self, model, function):
        super().__init__()
        self.model, self.function = model, function

    def forward(self, x):
        return self.function(self.model, x)


def _prefixed(parameters):
    return {f"model.{name}": value for name, value in parameters.items()}


@kinds(*DIFFERENTIATED)
def test_gradients_of_log_prob(name):
    model = build(name, bound_steps=2)
    check_gradients(model, lambda m, x: m.log_prob(x), model.sample((2,)))


@kinds(*DIFFERENTIATED)
def test_gradients_of_layer_log_likelihoods(name):
    model = build(name)
    check_gradients(
        model,
        lambda m, x: torch.cat([t.flatten() for t in m.layer_log_likelihoods(x)]),
        model.sample((2,)),
    )


@pytest.mark.parametrize("name", ["2L-b", "two tops"])
def test_gradients_in_the_value_are_those_of_the_mixture(name):
    """Of the finite mixture that the law is."""
    assert name in TREES
    model = build(f"tree: {name}")
    x = images_for(model).requires_grad_()
    (got,) = torch.autograd.grad(model.log_prob(x).sum(), x)
    law = Slow(model).law()
    posterior = law.posterior(x)
    flat = x.detach().flatten(1).unsqueeze(1)
    expected = (posterior.unsqueeze(-1) * (law.means - flat) / law.variances).sum(1)
    close(got.flatten(1), expected, 1e-9)


@kinds()
@pytest.mark.parametrize("deviation", [0.02, 0.5])
def test_every_parameter_of_the_law_has_a_gradient(name, deviation):
    """Finite, also where codes are certain."""
    model = build(name, deviation=deviation)
    x = images_for(model).requires_grad_()
    model.log_prob(x).sum().backward()
    assert x.grad.isfinite().all()
    bottom, *above = model.mixtures
    used = {"bottom": bottom.loc, "weights": model.mixtures[-1].logits}
    used |= {f"control {i}": mixture.loc for i, mixture in enumerate(above)}
    used["noise"] = bottom.log_precision if model.log_noise is None else model.log_noise
    for key, parameter in used.items():
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.any(), key
