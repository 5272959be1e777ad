"""Conformance checks for distributions: this library's, and your own.

One line per distribution puts it through every check that applies to it::

    from pyromix.testing import Case, parametrize

    @parametrize({"shifted": Case(lambda: Shifted(dim=2))})
    def test_conformance(check, case):
        check(case)

A check raises `AssertionError` with what is wrong. Those that compare samples with densities are
statistical tests at a fixed seed, with thresholds of six standard errors, or a p-value of 1e-8:
a correct distribution fails one in some ten thousand runs.
"""

__all__ = ["CHECKS", "Case", "applicable_checks", "goodness_of_fit", "parametrize"]

import copy
import inspect
import io
import math
import pickle
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import pyro
import pyro.poutine as poutine
import torch
from pyro.distributions.testing import gof
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from pyro.optim import ClippedAdam
from torch import Tensor, nn
from torch.distributions import Distribution

from ..checkpoints import load, save
from ..core.arguments import UnknownArgumentsError, constructor_arguments
from ..core.module import DistributionModule

Check = Callable[["Case"], None]
Condition = Callable[["Case", Distribution], bool]

STANDARD_ERRORS = 6.0
# That test takes the distances of neighbours to be independent, which they nearly are: a correct
# law has a p-value below 1e-5 about once in 200 times.
GOODNESS_OF_FIT = 1e-8
NUM_BATCHES = 50


@dataclass(frozen=True)
class Case:
    """A distribution to check, and what may be asked of it."""

    make: Callable[[], Distribution]
    """Builds the distribution, one of Pyro's or a `DistributionModule`, with tensors of PyTorch's
    default dtype and device."""
    smooth: bool = True
    """Whether the density is differentiable everywhere and its support is all of space."""
    continuous: bool = True
    """Whether `log_prob` is a density on all coordinates: not so for discrete laws, nor for laws
    on a simplex or a sphere. Checks of samples against densities are left out without it."""
    nuts: bool = True
    """Whether Hamiltonian Monte Carlo can draw from it."""
    traceable: bool = True
    """Whether `log_prob` works under `vmap` and `torch.compile`."""
    rejects_nan: bool = True
    """Whether NaN is bad input, not a missing entry."""
    rejects_integers: bool = False
    """Whether an integer tensor is bad input to `log_prob`; PyTorch's own laws take it."""
    num_samples: int = 20_000
    """Number of draws in statistical checks."""
    seed: int = 0
    """Seed of construction and of all draws."""
    device: str = "cpu"
    """Device to build on."""

    def build(self, dtype: torch.dtype = torch.float64) -> Any:
        """Builds the distribution at a fixed seed."""
        with _defaults(dtype, self.device):
            torch.manual_seed(self.seed)
            distribution = self.make()
        if not isinstance(distribution, TorchDistributionMixin):
            raise TypeError(
                f"Expected one of Pyro's distributions or a DistributionModule, got a "
                f"{type(distribution).__name__} of {type(distribution).__module__}. PyTorch's are "
                f"found under the same names in pyro.distributions."
            )
        return distribution


CHECKS: dict[str, tuple[Check, Condition]] = {}


def applicable_checks(case: Case) -> dict[str, Check]:
    """The checks that apply to a case, by name."""
    with torch.random.fork_rng():
        distribution = case.build()
    return {name: check for name, (check, fits) in CHECKS.items() if fits(case, distribution)}


def parametrize(cases: Mapping[str, Case]) -> Any:
    """Decorates a test function ``test(check, case)`` with every check of every case."""
    import pytest

    return pytest.mark.parametrize(
        ("check", "case"),
        [
            pytest.param(check, case, id=f"{name}-{check_name}")
            for name, case in cases.items()
            for check_name, check in applicable_checks(case).items()
        ],
    )


def goodness_of_fit(samples: Tensor, log_prob: Tensor) -> float:
    """Probability that draws of a law lie at least as far from it as these do, as a p-value.

    Pyro's test, which compares the density with the distances between neighbours, with two
    changes: its tail of the chi-squared law, which turns to one where the statistic is large, is
    exchanged for SciPy's, and coordinates are scaled alike.

    Args:
        samples: Draws, shape (N, ...), of up to three numbers each.
        log_prob: Their log-densities, shape (N,).
    """
    from scipy.special import chdtrc  # adds a filter of warnings: not on import

    samples = samples.reshape(len(samples), -1)
    scale = samples.std(0)
    density = (log_prob.detach() + scale.log().sum()).exp()
    with patch.object(gof, "chi2sf", lambda statistic, dof: float(chdtrc(dof, statistic))):
        return float(gof.auto_goodness_of_fit(samples / scale, density))


def _check(fits: Condition = lambda case, d: True) -> Callable[[Check], Check]:  # noqa: ARG005
    """Registers a check, which runs with global state restored afterwards."""

    def decorate(function: Check) -> Check:
        def run(case: Case) -> None:
            with torch.random.fork_rng(), _defaults(torch.float64, case.device):
                pyro.clear_param_store()
                torch.manual_seed(case.seed + 1)
                function(case)

        run.__name__ = run.__qualname__ = function.__name__
        run.__doc__ = function.__doc__
        CHECKS[function.__name__.removeprefix("check_")] = run, fits
        return run

    return decorate


def _is_module(case: Case, d: Distribution) -> bool:  # noqa: ARG001
    return isinstance(d, DistributionModule)


def _is_fixed(d: Distribution, name: str) -> bool:
    """Whether an attribute is a property of the class, which cannot be set on an instance."""
    return isinstance(inspect.getattr_static(type(d), name, None), property)


def _is_plane(case: Case, d: Distribution) -> bool:
    return case.smooth and case.continuous and not d.batch_shape and d.event_shape.numel() <= 2


# ---- shapes, dtypes, wrappers -----------------------------------------------------------------


@_check()
def check_shapes(case: Case) -> None:
    """Samples have shape sample + batch + event, log-densities sample + batch."""
    d = case.build()
    for sample_shape in ((), (1,), (3,), (2, 3)):
        x = d.sample(torch.Size(sample_shape))
        _equal(x.shape, (*sample_shape, *d.batch_shape, *d.event_shape), "sample shape")
        _equal(d.log_prob(x).shape, (*sample_shape, *d.batch_shape), "log_prob shape")
        if d.has_rsample:
            _equal(d.rsample(torch.Size(sample_shape)).shape, x.shape, "rsample shape")
    _equal(d().shape, d.batch_shape + d.event_shape, "shape of a call")
    assert d.support is not None, "Expected a support."
    assert bool(d.support.check(d.sample(torch.Size((100,)))).all()), "A draw left the support."
    assert not d.sample().requires_grad, "Expected sample() to return no graph."


@_check()
def check_expand(case: Case) -> None:
    """Expanding the batch repeats the law, and draws independently."""
    d = case.build()
    e = d.expand(torch.Size((4, *d.batch_shape)))
    x = e.sample(torch.Size((3,)))
    _equal(x.shape, (3, 4, *d.batch_shape, *d.event_shape), "expanded sample shape")
    _close(e.log_prob(x), d.log_prob(x), "log_prob after expand")
    assert not torch.equal(x[:, 0], x[:, 1]), "Expected independent draws along the new dimension."


@_check()
def check_mask(case: Case) -> None:
    """A mask sets log-densities to zero where it is false."""
    d = case.build()
    x = d.sample(torch.Size((4,)))
    mask = torch.tensor([True, False, True, False]).reshape(4, *[1] * len(d.batch_shape))
    masked = d.mask(mask.expand(4, *d.batch_shape))
    _close(masked.log_prob(x), torch.where(mask, d.log_prob(x), 0.0), "masked log_prob")
    _close(d.mask(False).log_prob(x), torch.zeros_like(d.log_prob(x)), "log_prob under False")


@_check()
def check_to_event(case: Case) -> None:
    """Batch dimensions made event dimensions are summed over."""
    d = case.build()
    wide = d.expand(torch.Size((3, *d.batch_shape)))
    joint = wide.to_event(1 + len(d.batch_shape))
    x = joint.sample(torch.Size((2,)))
    _close(joint.log_prob(x), wide.log_prob(x).reshape(2, -1).sum(-1), "log_prob after to_event")


@_check(lambda case, d: case.continuous)  # noqa: ARG005
def check_dtype(case: Case) -> None:
    """float32 and float64 both work, and agree."""
    d = case.build()
    with _defaults(torch.float32, case.device):
        built = case.build(torch.float32)
        _equal(built.sample().dtype, torch.float32, "dtype of samples built in float32")
        single = _cast(d, torch.float32)
        x = single.sample(torch.Size((100,)))
        log_prob = single.log_prob(x)
    _equal((x.dtype, log_prob.dtype), (torch.float32,) * 2, "dtypes of sample and log_prob")
    _equal(d.sample().dtype, torch.float64, "dtype of sample")
    precise = _cast(single, torch.float64).log_prob(x.double())
    error = ((log_prob - precise).abs() / precise.abs().clamp(min=1)).max()
    assert error < 1e-4, f"Expected float32 within 1e-4 of float64, got {error.item():.1e}."


@_check(_is_module)
def check_moves(case: Case) -> None:
    """Moving to another device or dtype leaves no tensor behind."""
    d = case.build()
    moved = copy.deepcopy(d).to("meta")
    left = [path for path, t in _tensors_within(moved) if t.device.type != "meta"]
    assert not left, f"Expected all tensors to move, got left behind: {left[:5]}."
    moved = copy.deepcopy(d).to(torch.float32)
    left = [path for path, t in _tensors_within(moved) if t.dtype != torch.float32]
    assert not left, f"Expected all tensors to become float32, got left behind: {left[:5]}."


@_check(lambda case, d: case.traceable)  # noqa: ARG005
def check_function_transforms(case: Case) -> None:
    """log_prob works under vmap and torch.compile, with PyTorch's validation switched off."""
    Distribution.set_default_validate_args(False)  # its control flow depends on values
    with torch.random.fork_rng():
        torch.manual_seed(case.seed)
        d = case.make()
    x = d.sample(torch.Size((5,)))
    expected = d.log_prob(x)
    _close(torch.func.vmap(d.log_prob)(x), expected, "log_prob under vmap")
    torch.compiler.reset()
    compiled = torch.compile(d.log_prob, backend="eager", fullgraph=True)
    # Recurrent networks are traced only on demand.
    with torch._dynamo.config.patch(allow_rnn=True):
        _close(compiled(x), expected, "compiled log_prob")


# ---- one law ----------------------------------------------------------------------------------


@_check()
def check_deterministic(case: Case) -> None:
    """The same value has the same log-density every time, whatever was drawn in between."""
    d = case.build()
    x = d.sample(torch.Size((10,)))
    first = d.log_prob(x)
    d.sample(torch.Size((7,)))
    assert torch.equal(d.log_prob(x), first), "Expected log_prob to be deterministic."


@_check(_is_plane)
def check_normalized(case: Case) -> None:
    """The density integrates to one (in one and two dimensions)."""
    d = case.build()
    x = d.sample(torch.Size((case.num_samples,))).reshape(case.num_samples, -1)
    low, high = x.amin(0), x.amax(0)
    margin = 0.5 * (high - low)
    dim = x.shape[-1]
    sizes = (10_001, 20_001) if dim == 1 else (401, 801)
    coarse, fine = (_integrate(d, low - margin, high + margin, size) for size in sizes)
    error = abs(fine - coarse)
    assert error < 0.02, (
        f"The density is too sharp, or has too heavy tails, to be integrated over a grid between "
        f"its samples: {coarse:.4f}, {fine:.4f}."
    )
    assert abs(fine - 1) < 4 * error + 1e-3, f"Expected an integral of 1, got {fine:.5f}."


@_check(lambda case, d: case.continuous and (d.batch_shape + d.event_shape).numel() <= 3)
def check_goodness_of_fit(case: Case) -> None:
    """Samples follow the density (in up to three dimensions)."""
    d = _one_of_batch(case.build())
    x = d.sample(torch.Size((case.num_samples,)))
    p_value = goodness_of_fit(x, d.log_prob(x))
    assert p_value > GOODNESS_OF_FIT, f"Samples do not follow the density: p-value {p_value:.1e}."


@_check(lambda case, d: case.continuous and (d.batch_shape + d.event_shape).numel() > 0)
def check_normalized_in_expectation(case: Case) -> None:
    """Draws and density agree, and the density is normalised, in any number of dimensions.

    For a normal q that is fitted to draws of p, E_q[p / (p + q)] = E_p[q / (p + q)]: the identity
    behind bridge sampling, whose two sides are bounded and can be averaged safely.
    """
    d = _one_of_batch(case.build())
    size = torch.Size((case.num_samples,))
    flat = d.sample(size).reshape(case.num_samples, -1)
    covariance = torch.cov(flat.mT).reshape(flat.shape[1], -1)
    jitter = 1e-6 * covariance.diagonal().mean() * torch.eye(flat.shape[1], dtype=flat.dtype)
    q = torch.distributions.MultivariateNormal(flat.mean(0), covariance + jitter)

    def log_ratio(x: Tensor) -> Tensor:
        inside = d.support.check(x)
        value = torch.where(inside.reshape(-1, *[1] * len(d.event_shape)), x, d.sample(size))
        log_p = torch.where(inside, d.log_prob(value), -math.inf)
        return log_p - q.log_prob(x.reshape(len(x), -1))

    with torch.no_grad():
        under_q = log_ratio(q.sample(size).reshape(*size, *d.event_shape)).sigmoid()
        under_p = (-log_ratio(d.sample(size))).sigmoid()
    _zero_mean(under_q - under_p, "E_q[p / (p + q)] - E_p[q / (p + q)]")


@_check(lambda case, d: case.smooth)  # noqa: ARG005
def check_stein_identity(case: Case) -> None:
    """Draws fit the gradient of the log-density: E[x_i d log p(x) / dx_j] = -delta_ij."""
    d = _one_of_batch(case.build())
    x = d.sample(torch.Size((case.num_samples,))).requires_grad_()
    score = torch.autograd.grad(d.log_prob(x).sum(), x)[0].reshape(len(x), -1)
    x = x.detach().reshape(len(x), -1)
    centred = (x - x.mean(0)) / x.std(0)
    dim = x.shape[-1]
    # Per pair (i, j); thousands of pairs are cut down to random directions.
    basis = torch.eye(dim) if dim <= 8 else torch.randn(dim, 8) / math.sqrt(dim)
    left, right = centred @ basis, (score * x.std(0)) @ basis
    product = left.unsqueeze(-1) * right.unsqueeze(-2)
    _zero_mean(product + basis.mT @ basis, "E[x dlog p/dx] + I")
    _zero_mean(right, "E[dlog p/dx]")


@_check()
def check_moments(case: Case) -> None:
    """Mean and variance, where they are given, are those of the samples."""
    d = _one_of_batch(case.build())
    x = d.sample(torch.Size((case.num_samples,)))
    try:
        mean, variance = d.mean, d.variance
    except NotImplementedError:
        return
    if mean.isnan().all():  # a law without a mean, as PyTorch says it
        return
    _zero_mean(x - mean, "sample mean - mean")
    _zero_mean((x - mean).square() - variance, "sample variance - variance")


# ---- gradients --------------------------------------------------------------------------------


@_check(lambda case, d: case.smooth)  # noqa: ARG005
def check_log_prob_gradients(case: Case) -> None:
    """Gradients of log_prob in the value and the parameters match finite differences."""
    original = case.build()
    d, leaves = _differentiable(original)

    def log_prob() -> Tensor:
        """With the present parameters, also of a law that made a part of it when it was built."""
        present = iter(leaves)
        module = isinstance(d, nn.Module)
        law: Any = d if module else _map_tensors(original, lambda _: next(present))
        return law.log_prob(x).sum()

    x = d.sample(torch.Size((3,)))
    # Along random directions: a model may have a million parameters.
    directions = [torch.randn_like(t) for t in (x, *leaves)]
    scale = 1e-5
    y = x.clone().requires_grad_()
    grads = torch.autograd.grad(d.log_prob(y).sum(), [y, *leaves], materialize_grads=True)
    for i, (g, v) in enumerate(zip(grads, directions, strict=True)):
        v = v / v.norm().clamp(min=1e-12)
        values = []
        for h in (scale, -scale, 2 * scale, -2 * scale):
            with torch.no_grad():
                if i == 0:
                    values.append(d.log_prob(x + h * v).sum())
                else:
                    leaves[i - 1].add_(h * v)
                    values.append(log_prob())
                    leaves[i - 1].sub_(h * v)
        expected = (8 * (values[0] - values[1]) - (values[2] - values[3])) / (12 * scale)
        got = (g * v).sum()
        tolerance = 1e-6 * max(1.0, abs(float(expected)), float(values[0].abs()))
        assert abs(got - expected) < tolerance, (
            f"Expected the gradient of log_prob in {'the value' if i == 0 else f'parameter {i}'} "
            f"to match finite differences ({float(expected):.6g}), got {float(got):.6g}."
        )


@_check(lambda case, d: d.has_rsample)  # noqa: ARG005
def check_pathwise_gradients(case: Case) -> None:
    """Gradients through rsample equal, in expectation, those of the score function."""
    d, leaves = _differentiable(case.build())
    if not leaves:
        return
    size = torch.Size((max(1, case.num_samples // NUM_BATCHES),))
    phase = torch.rand(d.event_shape) * 2 * math.pi
    spread = d.sample(torch.Size((1000,))).std(0)

    def payoff(x: Tensor) -> Tensor:
        return torch.sin(x / spread + phase).reshape(len(x), -1).sum(-1)

    def pathwise() -> Tensor:
        return payoff(d.rsample(size)).mean()

    def score_function() -> Tensor:
        x = d.sample(size)
        f = payoff(x).detach()
        log_prob = d.log_prob(x).reshape(len(x), -1).sum(-1)
        others = (f.sum() - f) / max(1, len(f) - 1)  # a baseline that leaves it unbiased
        return ((f - others) * log_prob).mean()

    first, second = (_projected_gradients(f, leaves) for f in (pathwise, score_function))
    assert first.abs().max() > 0, "Expected gradients through rsample, got zeros."
    _zero_mean(first - second, "pathwise - score-function gradient")


@_check()
def check_score_identity(case: Case) -> None:
    """Draws fit the gradient of the log-density in the parameters: its mean is zero."""
    d, leaves = _differentiable(case.build())
    if not leaves:
        return
    size = torch.Size((max(1, case.num_samples // NUM_BATCHES),))
    gradients = _projected_gradients(lambda: d.log_prob(d.sample(size)).mean(), leaves)
    _zero_mean(gradients, "E[dlog p/dtheta]")


@_check(lambda case, d: d.has_rsample and not _is_fixed(d, "has_rsample"))  # noqa: ARG005
def check_has_rsample(case: Case) -> None:
    """Pyro can switch pathwise gradients off on an instance, and on again."""
    d, leaves = _differentiable(case.build())
    assert d().requires_grad == bool(leaves), "Expected a call to draw with a graph."
    d.has_rsample_(False)
    assert not d().requires_grad, "Expected has_rsample_(False) to switch gradients off."
    d.has_rsample_(True)
    assert d().requires_grad == bool(leaves), "Expected has_rsample_(True) to switch them on."


# ---- copies and files -------------------------------------------------------------------------


@_check()
def check_copies(case: Case) -> None:
    """Deep copies and pickles are the same law, and share no memory."""
    d = case.build()
    x = d.sample(torch.Size((5,)))
    d.rsample() if d.has_rsample else d.sample()  # leaves caches, if any, filled
    for name, other in (
        ("deep copy", copy.deepcopy(d)),
        ("pickle", pickle.loads(pickle.dumps(d))),
    ):
        assert torch.equal(other.log_prob(x), d.log_prob(x)), f"The {name} has another law."
    if _is_module(case, d) and list(d.parameters()):
        before, other = d.log_prob(x), copy.deepcopy(d)
        with torch.no_grad():
            for p in other.parameters():
                p.add_(0.1)
        assert torch.equal(d.log_prob(x), before), "A change of the copy changed the original."
        assert not torch.equal(other.log_prob(x), before), (
            "Expected a change of the copy's parameters to change its law."
        )


@_check(_is_module)
def check_save_load(case: Case) -> None:
    """A saved model is loaded with the same parameters and law."""
    d = case.build()
    x = d.sample(torch.Size((5,)))
    with tempfile.TemporaryDirectory() as folder:
        save(d, f"{folder}/model.safetensors")
        other = load(f"{folder}/model.safetensors")
    assert type(other) is type(d)
    _equal(repr(other), repr(d), "repr of the loaded model")
    state = other.state_dict()
    for name, value in d.state_dict().items():
        assert torch.equal(state[name], value), f"The loaded model has another {name}."
    # Not to the last bit: products may be summed in another order where memory is aligned so.
    _close(other.log_prob(x), d.log_prob(x), "log_prob of the loaded model")


@_check(_is_module)
def check_state_dict(case: Case) -> None:
    """The state dict holds every parameter once, and can be filled into another instance."""
    d, other = case.build(), case.build()
    with torch.no_grad():
        for p in other.parameters():
            p.add_(0.1)
    other.load_state_dict(d.state_dict())
    x = d.sample(torch.Size((5,)))
    assert torch.equal(other.log_prob(x), d.log_prob(x)), "state_dict does not hold the law."
    buffer = io.BytesIO()
    torch.save(d.state_dict(), buffer)
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer, weights_only=True))


@_check(_is_module)
def check_hooks(case: Case) -> None:
    """Forward hooks run when the distribution is called, also by Pyro."""
    d = case.build()
    calls: list[int] = []
    handle = d.register_forward_hook(lambda *_: calls.append(1))
    d()
    pyro.sample("x", d)
    handle.remove()
    _equal(len(calls), 2, "number of hook calls")


# ---- in Pyro ----------------------------------------------------------------------------------


@_check()
def check_pyro_model(case: Case) -> None:
    """As prior and as likelihood in a Pyro model, under a plate."""
    d = case.build()
    batch = len(d.batch_shape)

    def model(data: Tensor) -> None:
        if isinstance(d, nn.Module):
            pyro.module("d", d)
        pyro.sample("prior", d.to_event(batch))
        with pyro.plate("items", 4, dim=-1):
            pyro.sample("likelihood", d.to_event(batch), obs=data)

    data = d.sample(torch.Size((4,)))
    trace: Any = poutine.trace(model).get_trace(data)
    expected = d.log_prob(trace.nodes["prior"]["value"]).sum() + d.log_prob(data).sum()
    _close(trace.log_prob_sum(), expected, "log_prob_sum of the trace")
    if isinstance(d, nn.Module):
        stored = set(pyro.get_param_store().keys())
        names = {f"d$$${name}" for name, p in d.named_parameters() if p.requires_grad}
        _equal(stored, names, "parameters that Pyro sees")


@_check(lambda case, d: case.nuts and not d.batch_shape)
def check_nuts(case: Case) -> None:
    """NUTS moves, and stays finite."""
    d = case.build()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a run this short warns about its own brevity
        mcmc = MCMC(
            NUTS(lambda: pyro.sample("x", d), max_tree_depth=4),
            num_samples=10,
            warmup_steps=10,
            disable_progbar=True,
        )
        mcmc.run()
    x = mcmc.get_samples()["x"]
    assert bool(x.isfinite().all()), "NUTS returned values that are not finite."
    assert not torch.equal(x[0], x[-1]), "NUTS did not move."


@_check()
def check_pyro_guide(case: Case) -> None:
    """As a guide: the ELBO of its own law is zero, with a gradient of zero in expectation."""
    target = case.build()
    d, leaves = _differentiable(case.build())
    batch = len(d.batch_shape)

    def model() -> None:
        pyro.sample("x", target.to_event(batch))

    def guide() -> None:
        pyro.sample("x", d.to_event(batch))

    # With as many particles as fit one pass of a statistical check.
    size = max(2, min(200, case.num_samples // NUM_BATCHES))
    loss = Trace_ELBO(num_particles=size, vectorize_particles=True, max_plate_nesting=0)
    value = loss.loss(model, guide)
    assert abs(value) < 1e-6, f"Expected the ELBO of a law against itself to be 0, got {value}."
    if leaves:
        _zero_mean(
            _projected_gradients(lambda: loss.differentiable_loss(model, guide), leaves),
            "ELBO gradient",
        )
    if isinstance(d, DistributionModule) and leaves:

        def training_guide() -> None:
            pyro.module("d", d)
            guide()

        # Against another law: against its own, an ELBO of zero for every draw moves nothing.
        other = poutine.scale(model, scale=0.5)

        before = [p.detach().clone() for p in d.parameters()]
        svi = SVI(other, training_guide, ClippedAdam({"lr": 0.01}), loss=Trace_ELBO())
        assert math.isfinite(svi.step()), "Expected a finite ELBO."
        moved = any(not torch.equal(p, q) for p, q in zip(d.parameters(), before, strict=True))
        assert moved, "Expected a step of SVI to change the parameters."


# ---- bad input --------------------------------------------------------------------------------


@_check(lambda case, d: case.rejects_integers or _is_module(case, d))
def check_bad_input(case: Case) -> None:
    """Values of the wrong shape, dtype or kind raise ValueError; Pyro's own laws let some pass."""
    d = case.build()
    x = d.sample(torch.Size((2,)))
    bad = {"integers": torch.zeros_like(x).long()} if case.rejects_integers else {}
    if len(d.event_shape):
        bad["another event shape"] = torch.cat([x, x[..., :1]], -1)
        bad["too few dimensions"] = torch.zeros(())
    if case.rejects_nan and x.is_floating_point():
        bad["NaN"] = torch.full_like(x, math.nan)
    for what, value in bad.items():
        try:
            d.log_prob(value)
        except ValueError:
            continue
        raise AssertionError(f"Expected log_prob of {what} to raise ValueError.")


# ---- helpers ----------------------------------------------------------------------------------


@contextmanager
def _defaults(dtype: torch.dtype, device: str) -> Iterator[None]:
    before = torch.get_default_dtype(), Distribution._validate_args
    torch.set_default_dtype(dtype)
    Distribution.set_default_validate_args(True)
    try:
        # On the CPU the context would only slow every call down.
        with nullcontext() if device == "cpu" else torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before[0])
        Distribution.set_default_validate_args(before[1])  # torch.compile switches it off


def _equal(got: Any, expected: Any, what: str) -> None:
    expected = torch.Size(expected) if isinstance(got, torch.Size) else expected
    assert got == expected, f"Expected {what} {expected}, got {got}."


def _close(got: Tensor, expected: Tensor, what: str) -> None:
    def message(text: str) -> str:
        return f"Wrong {what}: {text}"

    torch.testing.assert_close(got, expected, msg=message)


def _zero_mean(values: Tensor, what: str) -> None:
    """Tests that the mean over the first dimension is zero, entry by entry."""
    values = values.detach()
    mean, error = values.mean(0), values.std(0) / math.sqrt(len(values))
    excess = mean.abs() / error.clamp(min=1e-10)
    worst = float(excess.max())
    assert worst < STANDARD_ERRORS, (
        f"Expected {what} to be 0 in expectation, got {float(mean.flatten()[excess.argmax()]):.4g}"
        f", which is {worst:.1f} standard errors away."
    )


def _one_of_batch(d: Any) -> Any:
    """The joint law of a batch, as one event."""
    return d.to_event(len(d.batch_shape)) if d.batch_shape else d


def _integrate(d: Distribution, low: Tensor, high: Tensor, size: int) -> float:
    """The integral of the density over a box, by the midpoint rule."""
    step = (high - low) / size
    axes = [low[i] + step[i] * (torch.arange(size) + 0.5) for i in range(len(low))]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, *d.event_shape)
    with torch.no_grad():
        total = sum(float(d.log_prob(part).exp().sum()) for part in grid.split(50_000))
    return total * float(step.prod())


def _differentiable(d: Distribution) -> tuple[Any, list[Tensor]]:
    """The distribution with parameters that require gradients, and the parameters."""
    if isinstance(d, nn.Module):
        return d, [p for p in d.parameters() if p.requires_grad]
    leaves: list[Tensor] = []

    def require_grad(tensor: Tensor) -> Tensor:
        leaves.append(tensor.detach().clone().requires_grad_())
        return leaves[-1]

    try:
        copied: Any = _map_tensors(d, require_grad)
    except UnknownArgumentsError:
        return d, []
    # A law may say that it tracks no gradients in its parameters, or that they are not known.
    log_prob = copied.log_prob(copied.sample()).sum()
    if not leaves or not log_prob.requires_grad:
        return copied, []
    try:
        torch.autograd.grad(log_prob, leaves, retain_graph=True, allow_unused=True)
    except NotImplementedError:
        return d, []
    return copied, leaves


def _cast(d: Distribution, dtype: torch.dtype) -> Distribution:
    """The distribution with parameters of another dtype."""
    if isinstance(d, nn.Module):
        return copy.deepcopy(d).to(dtype)
    return _map_tensors(d, lambda tensor: tensor.to(dtype))


def _map_tensors(d: Distribution, function: Callable[[Tensor], Tensor]) -> Distribution:
    """A copy of a plain distribution whose floating-point parameters are passed through."""
    arguments = constructor_arguments(d)
    for name, value in arguments.items():
        if isinstance(value, Distribution):
            arguments[name] = _map_tensors(value, function)
        elif isinstance(value, Tensor) and value.is_floating_point():
            arguments[name] = function(value)
        elif callable(getattr(value, "map_tensors", None)):
            arguments[name] = value.map_tensors(function)
    return type(d)(**arguments)


def _projected_gradients(
    estimate: Callable[[], Tensor], leaves: list[Tensor], num_directions: int = 5
) -> Tensor:
    """Gradients of independent estimates along fixed random directions: (batches, directions)."""
    generator = torch.Generator(leaves[0].device).manual_seed(0)
    directions = [
        torch.randn(
            (num_directions, *p.shape), generator=generator, dtype=p.dtype, device=p.device
        )
        for p in leaves
    ]
    rows = []
    for _ in range(NUM_BATCHES):
        grads = torch.autograd.grad(
            estimate(),
            leaves,
            retain_graph=True,  # a plain law may have made a part of it when it was built
            allow_unused=True,
            materialize_grads=True,
        )
        products = [
            (v * g).reshape(num_directions, -1).sum(1)
            for v, g in zip(directions, grads, strict=True)
        ]
        rows.append(torch.stack(products).sum(0))
    return torch.stack(rows)


def _tensors_within(obj: object, path: str = "", seen: set[int] | None = None) -> Iterator[Any]:
    """All floating-point tensors that an object holds, in whatever way, with where."""
    seen = set() if seen is None else seen
    if id(obj) in seen:
        return
    seen.add(id(obj))
    if isinstance(obj, Tensor):
        if obj.is_floating_point():
            yield path, obj
    elif isinstance(obj, Mapping):
        for key, value in obj.items():
            yield from _tensors_within(value, f"{path}.{key}", seen)
    elif isinstance(obj, list | tuple):
        for i, value in enumerate(obj):
            yield from _tensors_within(value, f"{path}.{i}", seen)
    elif isinstance(obj, nn.Module | Distribution | torch.distributions.Transform):
        attributes = vars(obj)
        if type(obj).__module__.startswith("pyro.nn."):
            # Pyro's autoregressive networks keep spare copies of their masks.
            attributes = {k: attributes[k] for k in ("_parameters", "_buffers", "_modules")}
        yield from _tensors_within(attributes, path, seen)
