"""Gradients through samples, against the inverted transform and against closed forms."""

import math

import pytest
import torch
from torch.distributions import Normal

from pyromix import MixtureOfNormals
from pyromix.numerics import implicit_diagonal as implicit
from pyromix.numerics.implicit_diagonal import reparameterize


def _parameters(k, dim, separation=1.0, scale=1.0):
    """Neighbouring centres `separation` standard deviations apart, along the diagonal."""
    position = torch.arange(k) - (k - 1) / 2
    loc = scale * separation * position.unsqueeze(-1) * torch.ones(dim) / math.sqrt(dim)
    loc = loc + scale * torch.randn(dim)  # away from the origin
    return torch.randn(k), loc, scale * (1.0 + 0.5 * torch.rand(k, dim))


def _conditional_cdf(x, d, logits, loc, scale):
    """F(x_d | x_<d), the slow obvious way, of mixtures and points in batches of any shape."""
    x = x.unsqueeze(-2)
    log_weights = logits.log_softmax(-1)
    before = Normal(loc[..., :d], scale[..., :d]).log_prob(x[..., :d])
    log_weights = log_weights + before.sum(-1)
    cdf = Normal(loc[..., d], scale[..., d]).cdf(x[..., d])
    return (log_weights.softmax(-1) * cdf).sum(-1)


def _invert(u, parameters):
    """The samples whose conditional distribution functions equal u, by bisection."""
    x = torch.zeros(*parameters[0].shape[:-1], len(u))
    for d in range(len(u)):
        low, high = torch.full_like(x[..., d], -60.0), torch.full_like(x[..., d], 60.0)
        for _ in range(120):
            x[..., d] = (low + high) / 2
            below = _conditional_cdf(x, d, *parameters) < u[d]
            low = torch.where(below, x[..., d], low)
            high = torch.where(below, high, x[..., d])
    return x


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("dim", [1, 2, 3])
def test_jacobian_matches_differences_of_the_inverted_transform(k, dim):
    parameters = _parameters(k, dim, separation=2.0)
    x = MixtureOfNormals(*parameters).sample()
    u = torch.stack([_conditional_cdf(x, d, *parameters) for d in range(dim)])
    leaves = [p.clone().requires_grad_() for p in parameters]
    y = reparameterize(x, *leaves)
    rows = [torch.autograd.grad(y[i], leaves, retain_graph=True) for i in range(dim)]
    h = 1e-4
    for which, parameter in enumerate(parameters):
        # Every entry in turn is moved by each of four steps.
        entries = torch.eye(parameter.numel()).reshape(-1, *parameter.shape)
        steps = h * torch.tensor([1.0, -1.0, 2.0, -2.0]).reshape(4, *[1] * entries.dim())
        shifted = [p.expand(4, len(entries), *p.shape) for p in parameters]
        shifted[which] = shifted[which] + steps * entries
        moved = _invert(u, shifted)
        # Fourth-order differences: the bisection is exact to 1e-15.
        expected = (8 * (moved[0] - moved[1]) - (moved[2] - moved[3])) / (12 * h)
        got = torch.stack([row[which].flatten() for row in rows], -1)
        torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-8)


def _closed_form(logits, loc, scale):
    weights = logits.softmax(-1)
    square = (weights @ (loc.square() + scale.square())).sum()
    sine = (weights @ (torch.sin(loc) * torch.exp(-0.5 * scale.square()))).sum()
    product = (weights * loc[:, 0] * loc[:, -1]).sum()
    if loc.shape[-1] == 1:
        product = square
    return {"square": square, "sine": sine, "product": product}


def _payoffs(x):
    return {
        "square": x.square().sum(-1),
        "sine": torch.sin(x).sum(-1),
        "product": x[..., 0] * x[..., -1],
    }


# Every separation at one scale, and other scales at one separation.
CASES = [(1.0, 0.0), (1.0, 2.0), (1.0, 4.0), (1.0, 6.0), (0.1, 2.0), (10.0, 2.0)]


@pytest.mark.parametrize(("scale", "separation"), CASES)
@pytest.mark.parametrize("dim", [1, 2, 8])
def test_gradients_of_expectations_match_closed_forms(dim, separation, scale):
    """Unbiased up to six standard deviations; beyond, the signal sinks in the noise."""
    leaves = [p.requires_grad_() for p in _parameters(2, dim, separation, scale)]
    directions = [torch.randn_like(p) for p in leaves]
    num_batches, size = 200, 1000 if dim < 8 else 500
    # One copy of the parameters for each batch, so that one backward pass gives all gradients.
    copies = [p.detach().repeat(num_batches, *[1] * p.dim()).requires_grad_() for p in leaves]

    def project(value, leaves):
        grads = torch.autograd.grad(value, leaves, retain_graph=True, materialize_grads=True)
        products = [
            (g * v).sum(tuple(range(-v.dim(), 0))) for g, v in zip(grads, directions, strict=True)
        ]
        return torch.stack(products, -1)

    payoffs = _payoffs(MixtureOfNormals(*copies).rsample((size,)))
    for name, expected in _closed_form(*leaves).items():
        values = project(payoffs[name].mean(0).sum(), copies)  # (batches, parameters)
        error = values.std(0) / math.sqrt(num_batches)
        distance = (values.mean(0) - project(expected, leaves)).abs() / (error + 1e-9)
        assert (distance < 4).all(), f"{name}: logits, loc, scale off by {distance} errors"


@pytest.mark.parametrize("shapes", [((), (), ()), ((3,), (), ()), ((2, 1), (3,), (1, 1))])
def test_batches_equal_single_mixtures(shapes):
    k, dim = 3, 4
    logits, loc, scale = (
        torch.randn(*shapes[0], k),
        torch.randn(*shapes[1], k, dim),
        torch.rand(*shapes[2], k, dim) + 0.3,
    )
    leaves = [p.requires_grad_() for p in (logits, loc, scale)]
    mixture = MixtureOfNormals(*leaves)
    x = mixture.sample((5,))
    cotangent = torch.randn_like(x)
    got = torch.autograd.grad(reparameterize(x, *leaves), leaves, cotangent)
    # One mixture and one sample at a time; summing gradients is left to autograd.
    total = 0.0
    wide = (mixture._logits, mixture._loc, mixture._scale)
    wide = [
        p.expand(*mixture.batch_shape, *p.shape[-n:]) for p, n in zip(wide, (1, 2, 2), strict=True)
    ]
    for sample in range(5):
        for index in (
            torch.cartesian_prod(*map(torch.arange, mixture.batch_shape)).reshape(
                -1, len(mixture.batch_shape)
            )
            if mixture.batch_shape
            else [()]
        ):
            at = tuple(int(i) for i in index)
            y = reparameterize(x[(sample, *at)], *(p[at] for p in wide))
            total = total + (y * cotangent[(sample, *at)]).sum()
    for a, b in zip(got, torch.autograd.grad(total, leaves), strict=True):
        torch.testing.assert_close(a, b)


def test_float32_gradients_stay_close_to_float64_in_the_tails():
    parameters = _parameters(3, 6, separation=3.0)
    x = MixtureOfNormals(*parameters).sample((2000,))
    x[:20] = 6.5 * x[:20].sign()  # far out, where distribution functions are 1 - 1e-9

    def gradients(dtype):
        leaves = [p.detach().to(dtype).requires_grad_() for p in parameters]
        y = reparameterize(x.to(dtype), *leaves)
        return torch.autograd.grad(y.square().mean(), leaves)

    for single, double in zip(gradients(torch.float32), gradients(torch.float64), strict=True):
        error = (single.double() - double).norm() / double.norm()
        assert error < 1e-3


def test_chunks_do_not_change_the_result(monkeypatch):
    leaves = [p.requires_grad_() for p in _parameters(4, 11)]
    x = MixtureOfNormals(*leaves).sample((7,))

    def gradients():
        return torch.autograd.grad(reparameterize(x, *leaves).sin().sum(), leaves)

    whole = gradients()
    monkeypatch.setattr(implicit, "BLOCK_PAIRS", 2 * 4)
    monkeypatch.setattr(implicit, "CHUNK_NUMBERS", 3 * 2 * 4)
    for a, b in zip(gradients(), whole, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("size", [5.0, 20.0, 40.0])
def test_gradients_are_finite_and_right_for_extreme_scales(size):
    log_scale = torch.tensor([[-size, size], [size, -size]])
    x = MixtureOfNormals(torch.zeros(2), torch.zeros(2, 2), log_scale.exp()).sample((100,))
    gradients = []
    for dtype in (torch.float32, torch.float64):
        parameters = (torch.zeros(2, dtype=dtype), torch.zeros(2, 2, dtype=dtype))
        leaves = [t.requires_grad_() for t in (*parameters, log_scale.to(dtype).clone())]
        reparameterize(x.float().to(dtype), *leaves[:2], leaves[2].exp()).sum().backward()
        gradients.append([leaf.grad for leaf in leaves])
    for single, double in zip(*gradients, strict=True):
        assert double.isfinite().all()
        scale = double.abs().max()
        assert ((single - double).abs() <= 1e-4 * scale).all()
