"""Laws in Pyro: as prior, likelihood and guide."""

import math
import warnings
from typing import Any

import pyro
import pyro.poutine as poutine
import torch
from pyro.infer import (
    MCMC,
    NUTS,
    SVI,
    JitTrace_ELBO,
    RenyiELBO,
    Trace_ELBO,
    TraceMeanField_ELBO,
)
from pyro.optim import ClippedAdam
from torch import Tensor, nn

from ..core.module import DistributionModule
from .assertions import assert_close, assert_equal
from .cases import Case, check, is_module
from .parameters import differentiable, has_switch, map_tensors
from .statistics import NUM_BATCHES, assert_zero_mean, projected_gradients

# Where PyTorch's own laws, and Pyro's names for them, are defined.
PYTORCH = ("torch.", "pyro.")


@check(is_module)
def check_hooks(case: Case) -> None:
    """Forward hooks run when the distribution is called, also by Pyro."""
    d = case.build()
    calls: list[int] = []
    handle = d.register_forward_hook(lambda *_: calls.append(1))
    d()
    pyro.sample("x", d)
    handle.remove()
    assert_equal(len(calls), 2, "number of hook calls")


# ---- in Pyro ----------------------------------------------------------------------------------


@check()
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
    assert_close(trace.log_prob_sum(), expected, "log_prob_sum of the trace")
    if isinstance(d, nn.Module):
        stored = set(pyro.get_param_store().keys())
        names = {f"d$$${name}" for name, p in d.named_parameters() if p.requires_grad}
        assert_equal(stored, names, "parameters that Pyro sees")


@check(lambda case, d: case.nuts and not d.batch_shape)
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


@check()
def check_pyro_guide(case: Case) -> None:
    """As a guide: the ELBO of its own law is zero, with a gradient of zero in expectation."""
    target = case.build()
    d, leaves = differentiable(case.build())
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
        assert_zero_mean(
            projected_gradients(lambda: loss.differentiable_loss(model, guide), leaves),
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


@check(lambda case, d: d.has_rsample)  # noqa: ARG005
def check_pathwise_losses(case: Case) -> None:
    """Losses that take no score function take a law with pathwise draws as a guide."""
    target, d = case.build(), case.build()
    batch = len(d.batch_shape)

    def model() -> None:
        pyro.sample("x", target.to_event(batch))

    def guide() -> None:
        pyro.sample("x", d.to_event(batch))

    for loss in (TraceMeanField_ELBO(), RenyiELBO(num_particles=2)):
        value = loss.loss_and_grads(model, guide)
        assert abs(value) < 1e-6, (
            f"Expected the {type(loss).__name__} of a law against itself to be 0, got {value}."
        )


@check()
def check_plates(case: Case) -> None:
    """A law that is kept is the same after it was used in different plates."""
    d = case.build()
    batch = len(d.batch_shape)
    x = d.sample(torch.Size((3,)))

    def one() -> None:
        with pyro.plate("inner", 3, dim=-1):
            pyro.sample("x", law)

    def two() -> None:
        with pyro.plate("outer", 5, dim=-2), pyro.plate("inner", 3, dim=-1):
            pyro.sample("x", law)

    # As it is, and expanded by the user.
    for law in (d.to_event(batch), d.expand(torch.Size((3, *d.batch_shape))).to_event(batch)):
        shapes, before = law.shape(), law.log_prob(x)
        for model, plates in ((two, (5, 3)), (one, (3,))):
            trace: Any = poutine.trace(model).get_trace()
            value = trace.nodes["x"]["value"]
            assert_equal(value.shape, plates + law.event_shape, "shape of a draw in plates")
            assert_equal(law.shape(), shapes, "shape of the law after its use in plates")
            assert_close(law.log_prob(x), before, "log_prob after a use in plates")


@check(lambda case, d: case.traceable)  # noqa: ARG005
def check_jit(case: Case) -> None:
    """Pyro's compiled ELBO has the gradients that the plain one has, for the same draws.

    Without pathwise gradients where they can be switched off: what the JIT replays has those of
    every operation that it recorded, also in `torch.no_grad`. (Not those of PyTorch's own laws,
    some of which have this fault.)
    """
    target, original = case.build(), case.build()
    d, leaves = differentiable(original)
    if not leaves:
        return
    starts = [leaf.detach().clone() for leaf in leaves]
    if isinstance(target, nn.Module):
        target.requires_grad_(False)
    if d.has_rsample and has_switch(d) and not type(d).__module__.startswith(PYTORCH):
        d.has_rsample_(False)
    batch = len(d.batch_shape)

    def guide() -> None:
        pyro.sample("x", registered().to_event(batch))

    def registered() -> Any:
        """The law, whose parameters are those of Pyro's store."""
        if isinstance(d, nn.Module):
            return pyro.module("d", d)
        stored = iter([pyro.param(f"leaf {i}", start) for i, start in enumerate(starts)])
        law: Any = map_tensors(original, lambda _: next(stored))
        return law.has_rsample_(d.has_rsample) if has_switch(law) else law

    @poutine.scale(scale=0.5)  # against its own law all score functions would be zero
    def model() -> None:
        pyro.sample("x", target.to_event(batch))

    def gradients(loss: Any, calls: int) -> dict[str, Tensor]:
        """Gradients in the parameters of the store, of the last of some calls."""
        pyro.clear_param_store()
        torch.manual_seed(case.seed)
        for _ in range(calls):
            for leaf in dict(pyro.get_param_store().named_parameters()).values():
                leaf.grad = None
            loss.loss_and_grads(model, guide)
        found = {}
        for name, leaf in pyro.get_param_store().named_parameters():
            if leaf.grad is not None:
                found[name], leaf.grad = leaf.grad, None
        return found

    with warnings.catch_warnings(), torch.jit.optimized_execution(False):
        warnings.filterwarnings("ignore", message=".*torch.jit.* is deprecated")
        # Runs once to find the parameters and once to be traced, before it is replayed.
        compiled = gradients(JitTrace_ELBO(ignore_jit_warnings=True), 1)
    for name, expected in gradients(Trace_ELBO(), 3).items():
        assert name in compiled, f"Expected a gradient of the compiled ELBO in {name}, got none."
        assert_close(compiled[name], expected, f"gradient of the compiled ELBO in {name}")
