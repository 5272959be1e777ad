"""The fast log-densities, against direct differences in float64."""

import math

import pytest
import torch

from pyromix import MixtureOfNormals
from pyromix.numerics import diagonal_density as density

LOG_2PI = math.log(2 * math.pi)


def reference(x, logits, loc, scale):
    """The mixture's log-density, the slow obvious way."""
    x, logits, loc, scale = (t.double() for t in (x, logits, loc, scale))
    rows = []
    for row in x.split(8):
        z = (row.unsqueeze(-2) - loc) / scale
        log_prob = -0.5 * (z.square() + LOG_2PI).sum(-1) - scale.log().sum(-1)
        rows.append(torch.logsumexp(logits.log_softmax(-1) + log_prob, -1))
    return torch.cat(rows)


def relative_error(got, expected):
    return ((got.double() - expected).abs() / expected.abs().clamp(min=1)).max().item()


def log_uniform(*shape):
    """From 1e-3 to 1e3."""
    return 10 ** (6 * torch.rand(shape) - 3)


REGIMES = {
    "ordinary": lambda k, d: (torch.randn(k, d), torch.exp(0.3 * torch.randn(k, d))),
    "far from the origin": lambda k, d: (1e3 + torch.randn(k, d), torch.ones(k, d)),
    "scales 1e-3 to 1e3": lambda k, d: (torch.randn(k, d), log_uniform(k, d)),
    "components of scales 1e-3 to 1e3": lambda k, d: (
        torch.randn(k, d),
        log_uniform(k, 1).expand(k, d),
    ),
    "far, scales 1e-3 to 1e3": lambda k, d: (1e3 + torch.randn(k, d), log_uniform(k, d)),
    "apart": lambda k, d: (1e3 * torch.randn(k, d), torch.ones(k, d)),
    "very far apart": lambda k, d: (1e6 * torch.randn(k, d), torch.ones(k, d)),
    "sharp": lambda k, d: (torch.randn(k, d), torch.full((k, d), 1e-2)),
    "twins": lambda k, d: (torch.zeros(k, d), torch.ones(k, d)),
}


@pytest.mark.parametrize(
    ("n", "dim", "k"), [(100, 1, 5), (4000, 2, 40), (300, 16, 32), (256, 200, 40)]
)
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-8)])
def test_accuracy(regime, n, dim, k, dtype, tolerance):
    loc, scale = REGIMES[regime](k, dim)
    # Rounded first: what is measured is the error of the computation, not of its inputs.
    logits, loc, scale = (t.to(dtype) for t in (torch.randn(k), loc, scale))
    mixture = MixtureOfNormals(logits, loc, scale)
    near, between = mixture.sample((n,)), mixture.sample((n,)) * 0.9
    for x in (near, between, 3 * near):
        error = relative_error(mixture.log_prob(x), reference(x, logits, loc, scale))
        assert error < tolerance


@pytest.mark.parametrize("regime", REGIMES)
def test_gradients_in_float32(regime):
    loc, scale = REGIMES[regime](24, 60)
    inputs = [t.float() for t in (torch.randn(24), loc, scale)]
    x = MixtureOfNormals(*inputs).sample((300,))

    def gradients(function, dtype):
        leaves = [t.detach().to(dtype).requires_grad_() for t in (x, *inputs)]
        return torch.autograd.grad(function(*leaves).sum(), leaves)

    got = gradients(lambda x, *p: MixtureOfNormals(*p).log_prob(x), torch.float32)
    expected = gradients(reference, torch.float64)
    # Gradients in loc are of the order of 1 / scale: compare them in standard deviations.
    units = (None, None, inputs[2].double(), inputs[2].double())
    for a, b, unit in zip(got, expected, units, strict=True):
        a, b = a.double(), b
        if unit is not None:
            a, b = a * unit, b * unit
        # Rounding errors of the points add up at random, also where gradients cancel.
        assert (a - b).norm() <= 1e-4 * b.norm().clamp(min=math.sqrt(len(x)))


@pytest.mark.parametrize(("k", "dim", "spread"), [(2, 1, 10.0), (4, 8, 3.0), (10, 1, 1e3)])
def test_gradients_of_many_points_in_float32(k, dim, spread):
    """Sums over many points cancel; their rounding errors must not show."""
    loc = spread * torch.randn(k, dim)
    scale = torch.ones(k, dim) if spread < 100 else torch.logspace(-3, 3, k).reshape(k, 1)
    inputs = [t.float() for t in (torch.zeros(k), loc, scale)]
    x = MixtureOfNormals(*inputs).sample((50_000,))

    def gradients(dtype):
        leaves = [t.detach().to(dtype).requires_grad_() for t in inputs]
        log_prob = MixtureOfNormals(*leaves).log_prob(x.to(dtype)).mean()
        return [t.double() for t in torch.autograd.grad(log_prob, leaves)]

    got, expected = gradients(torch.float32), gradients(torch.float64)
    for a, b, unit in zip(got, expected, (1.0, scale, scale), strict=True):
        assert ((a - b) * unit).abs().max() < 3e-5  # of one for a point by itself


@pytest.mark.parametrize("far", [1e15, 1e20])
@pytest.mark.parametrize("what", ["mean", "scale", "removed", "point"])
def test_overflow_stays_where_it_belongs(what, far):
    n, k, dim = 600, 16, 32
    x, loc, scale, logits = torch.randn(n, dim), torch.randn(k, dim), torch.ones(k, dim), None
    logits = torch.zeros(k)
    if what in ("mean", "removed"):
        loc[0] = far
    if what == "scale":
        scale[0] = 1 / far
    if what == "removed":
        logits[0] = -math.inf
    if what == "point":
        x[0] = far
    mixture = MixtureOfNormals(logits.float(), loc.float(), scale.float())
    got = mixture.log_prob(x.float())
    torch.testing.assert_close(got[:2], mixture.log_prob(x[:2].float()))
    expected = reference(x, logits.float(), loc.float(), scale.float())
    assert relative_error(got[1:], expected[1:]) < 1e-4


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_recorded_by_the_jit():
    """A recording keeps no choice that was made for the values it was made with."""

    def log_prob(value, loc):
        return MixtureOfNormals(torch.zeros(16), loc, torch.full((16, 32), 1e-2)).log_prob(value)

    loc = torch.randn(16, 32) * 1e-2
    recorded = torch.jit.trace(log_prob, (torch.randn(600, 32) * 1e-2, loc), check_trace=False)
    loc = loc + 1
    loc[0] += 1e3
    value = loc[1] + 1e-2 * torch.randn(600, 32)
    torch.testing.assert_close(recorded(value, loc), log_prob(value, loc))


def test_memory_of_batches_of_mixtures_is_bounded(monkeypatch):
    calls = count_calls(monkeypatch, "_direct")
    batch, n, k, dim = 50, 64, 8, 200
    mixture = MixtureOfNormals(
        torch.zeros(batch, k), torch.randn(batch, k, dim), torch.ones(batch, k, dim)
    )
    mixture.log_prob(torch.randn(n, batch, dim))
    assert not calls


def count_calls(monkeypatch, name):
    calls = []
    original = getattr(density, name)

    def counted(*args):
        calls.append(args)
        return original(*args)

    monkeypatch.setattr(density, name, counted)
    return calls


@pytest.mark.parametrize(
    ("regime", "products", "refinements"),
    [
        ("ordinary", [torch.float32], 0),
        ("far from the origin", [torch.float32], 0),
        ("twins", [torch.float32], 0),
        ("sharp", [torch.float32, torch.float64], 0),
        ("very far apart", [torch.float32, torch.float64], 1),
    ],
)
def test_no_more_precision_than_needed(regime, products, refinements, monkeypatch):
    """Ordinary data keeps the fast path; each slower rung is reached where it is needed."""
    fast = count_calls(monkeypatch, "_products")
    slow = count_calls(monkeypatch, "_refine")
    loc, scale = (t.float() for t in REGIMES[regime](32, 64))
    mixture = MixtureOfNormals(torch.zeros(32).float(), loc, scale)
    mixture.log_prob(mixture.sample((200,)))
    assert [args[0].x.dtype for args in fast] == products
    assert len(slow) == refinements


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("regime", REGIMES)
def test_error_bound_holds(regime, dtype):
    """The bound that the choice of precision rests on, for every pair of point and component."""
    loc, scale = (t.to(dtype) for t in REGIMES[regime](20, 100))
    x = MixtureOfNormals(torch.zeros(20, dtype=dtype), loc, scale).sample((200,))
    offset = torch.zeros(20, dtype=dtype)
    operands = density._Operands.of(x, loc, scale, None)
    scores, error = density._products(operands, offset), density._rounding_error(operands)
    z = (x.double().unsqueeze(-2) - loc.double()) / scale.double()
    exact = -0.5 * (z.square() + LOG_2PI).sum(-1) - scale.double().log().sum(-1)
    # Not the reference but the products' own rounding is what is bounded: in float64 the direct
    # differences are exact to a few units in the last place.
    slack = 1e-14 * exact.abs()
    assert ((scores.double() - exact).abs() <= error.double() + slack).all()
    of_rows = density._rounding_error(operands, of_rows=True)
    assert (of_rows * (1 + 1e-5) >= error).all()


def test_refinement_in_chunks(monkeypatch):
    loc, scale = (t.float() for t in REGIMES["very far apart"](8, 40))
    inputs = [t.requires_grad_() for t in (torch.zeros(8).float(), loc, scale)]
    mixture = MixtureOfNormals(*inputs)
    x = mixture.sample((600,))
    whole = mixture.log_prob(x)
    gradients = torch.autograd.grad(whole.sum(), inputs)
    monkeypatch.setattr(density, "CHUNK_NUMBERS", 40 * 7)
    parts = mixture.log_prob(x)
    torch.testing.assert_close(parts, whole)
    for a, b in zip(torch.autograd.grad(parts.sum(), inputs), gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_removed_components_do_not_spoil_the_sum():
    logits = torch.tensor([0.0, -math.inf, 1.0]).float().requires_grad_()
    loc, scale = torch.randn(3, 60).float(), torch.ones(3, 60).float()
    mixture = MixtureOfNormals(logits, loc, scale)
    x = mixture.sample((2000,))
    without = MixtureOfNormals(logits[[0, 2]], loc[[0, 2]], scale[[0, 2]])
    torch.testing.assert_close(mixture.log_prob(x), without.log_prob(x))
    (grad,) = torch.autograd.grad(mixture.log_prob(x).sum(), logits)
    assert grad.isfinite().all()
    assert grad[1] == 0


def test_no_denormal_numbers_reach_the_backward_pass():
    """Processors compute with them many times slower."""
    scores = torch.linspace(-120, 0, 200).float().repeat(100, 1).requires_grad_()
    (weights,) = torch.autograd.grad(density.log_sum_exp(scores).sum(), scores)
    tiny = torch.finfo(torch.float32).tiny
    smallest_batch_weight = 1e-9  # the gradient of a mean over a billion points
    assert ((weights == 0) | (weights * smallest_batch_weight >= tiny)).all()
    torch.testing.assert_close(weights, scores.detach().softmax(-1), atol=1e-27, rtol=1e-5)


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_reduced_matmul_precision_is_not_trusted(precision):
    """TensorFloat-32 and bfloat16 products would be wrong by whole nats."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        loc, scale = (t.float() for t in REGIMES["ordinary"](32, 64))
        mixture = MixtureOfNormals(torch.zeros(32).float(), loc, scale)
        x = mixture.sample((300,))
        error = relative_error(mixture.log_prob(x), reference(x, torch.zeros(32), loc, scale))
    finally:
        torch.set_float32_matmul_precision(before)
    assert error < 1e-4


def test_autocast_does_not_reach_the_products():
    loc, scale = (t.float() for t in REGIMES["ordinary"](32, 64))
    mixture = MixtureOfNormals(torch.zeros(32).float(), loc, scale)
    x = mixture.sample((300,))
    expected = mixture.log_prob(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(mixture.log_prob(x), expected)


def test_second_derivatives():
    """For Laplace approximations, and for samplers that use curvature."""
    loc, scale = REGIMES["ordinary"](20, 50)
    mixture = MixtureOfNormals(torch.zeros(20), loc, scale)
    x = mixture.sample((200,))

    def second(log_prob):
        y = x.clone().requires_grad_()
        (g,) = torch.autograd.grad(log_prob(y).sum(), y, create_graph=True)
        return torch.autograd.grad(g.square().sum(), y)[0]

    expected = second(lambda y: reference(y, torch.zeros(20), loc, scale))
    torch.testing.assert_close(second(mixture.log_prob), expected)
