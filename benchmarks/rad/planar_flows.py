"""Flows in the plane and problems for them, and training of many small models in one pass.

Thirty models of a thousand parameters each cost little more than one: most of a step is the
overhead of operations, not their work. So the parameters of models of one kind are stacked, and
`torch.func.vmap` evaluates all of them, each on data of its own. Adam works entry by entry, so
that one optimizer over the stack is as many independent ones.
"""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Self

import pyro.distributions as dist
import torch
import zuko
from pyro.distributions.transforms import affine_coupling, permute
from torch import Generator, Tensor, nn
from torch.distributions import AffineTransform
from torch.func import functional_call, grad_and_value, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from zuko.transforms import MonotonicRQSTransform

from benchmarks.common.training import falling_factor, in_chunks
from benchmarks.common.zuko_flow import ZukoFlow
from pyromix import RAD, Flow, near_identity
from pyromix.core.batch import Batch, split_batch
from pyromix.datasets import (
    gaussian_grid,
    gaussian_ring,
    many_moons,
    spiral,
    two_circles,
    two_moons,
)

BATCH = 500
BINS = 8  # of splines

Tensors = dict[str, Tensor]


# ---- problems -----------------------------------------------------------------------------------


class Problem(NamedTuple):
    """A law in the plane: normal noise around points or curves."""

    law: Callable[..., Tensor]
    noise: str  # what the law calls it
    scale: float  # its standard deviation

    def draw(self, num: int, seed: int) -> Tensor:
        generator = Generator().manual_seed(seed)
        return self.law(num, **{self.noise: self.scale}, generator=generator)

    def centers(self, num: int, seed: int) -> Tensor:
        """Draws without the noise."""
        return self.law(num, **{self.noise: 0.0}, generator=Generator().manual_seed(seed))

    def nats(self, x: Tensor, num: int = 20_000) -> float:
        """Mean log-density of points: that of as many normals as there are centres drawn."""
        centers = self.centers(num, seed=2).double() / self.scale
        log_normal = -math.log(2 * math.pi * self.scale**2 * num)
        nats = in_chunks(
            lambda part: (-0.5 * torch.cdist(part, centers).square()).logsumexp(-1),
            x.double() / self.scale,
            500,
        )
        return float(nats.mean()) + log_normal


PROBLEMS = {
    "grid": Problem(gaussian_grid, "scale", 0.1),
    "ring": Problem(gaussian_ring, "scale", 0.05),
    "two moons": Problem(two_moons, "noise", 0.1),
    "two circles": Problem(two_circles, "noise", 0.1),
    "spiral": Problem(spiral, "noise", 0.1),
    "many moons": Problem(many_moons, "noise", 0.1),
}


def draw_all(num: int, seed: int) -> Tensor:
    """Points of every problem, of shape (problems, num, 2)."""
    return torch.stack([problem.draw(num, seed) for problem in PROBLEMS.values()])


# ---- models -------------------------------------------------------------------------------------


class AffineCouplings(Flow):
    """Pyro's affine couplings as peers of RAD: after the same standardisation.

    They start near the identity: as Pyro starts them, first gradients may be of the order of 1e11.
    """

    def __init__(self, dim: int, num_layers: int = 6, hidden_dims: Sequence[int] = (56,)) -> None:
        transforms: list[Any] = []
        for layer in range(num_layers):
            # Halves take turns: of an odd number, either may be the larger one.
            split = dim // 2 if layer % 2 == 0 else dim - dim // 2
            order = [*range(dim - split, dim), *range(dim - split)]
            transforms += [
                near_identity(affine_coupling(dim, list(hidden_dims), split_dim=split)),
                permute(dim, torch.tensor(order)),
            ]
        base = dist.Normal(torch.zeros(dim), torch.ones(dim)).to_event(1)
        standardize = AffineTransform(torch.zeros(dim), torch.ones(dim), event_dim=1)
        super().__init__(base, [*transforms, standardize])
        self.dim = dim

    def initialize(self, data: Batch) -> None:
        x, _ = split_batch(data)
        arguments: Any = self.transforms[-1].arguments
        arguments.loc.copy_(x.mean(0))
        arguments.scale.copy_(x.std(0, correction=0))
        super().initialize(data)


def spline_couplings(dim: int, num_layers: int, hidden_dims: Sequence[int]) -> Any:
    """Coupling flow of rational-quadratic splines, as zuko's for affine ones."""
    return zuko.flows.NICE(
        dim,
        transforms=num_layers,
        univariate=MonotonicRQSTransform,
        shapes=[(BINS,), (BINS,), (BINS - 1,)],
        hidden_features=tuple(hidden_dims),
    )


class Family(NamedTuple):
    """Models of one kind."""

    make: Callable[[], Any]
    lr: float


# Rates were tried on 8,000 of the points that are trained on, for 1,500 steps (splines: 1,000).
# Mean nats over the six problems, of the 2,000 others, at 5e-3, 1e-2 and 2e-2: RAD -1.563, -1.528,
# -1.532. At 1e-3, 2e-3, 5e-3 and 1e-2: splines -1.847, -1.714, -1.586, -1.555. At the first three:
# affine -2.201, -2.197, -2.228.
FAMILIES = {
    "RAD": Family(lambda: RAD(2), 1e-2),
    "RAD, wide": Family(lambda: RAD(2, hidden_dims=(14,)), 1e-2),
    "affine (Pyro)": Family(lambda: AffineCouplings(2), 2e-3),
    "affine (zuko)": Family(
        lambda: ZukoFlow(zuko.flows.RealNVP(2, transforms=6, hidden_features=(56,)), 2), 2e-3
    ),
    "spline, small": Family(lambda: ZukoFlow(spline_couplings(2, 6, (4,)), 2), 1e-2),
    "spline": Family(lambda: ZukoFlow(spline_couplings(2, 6, (8,)), 2), 1e-2),
}


# ---- training -----------------------------------------------------------------------------------


class LogProb(nn.Module):
    """A law as a module that can be called functionally: its forward pass scores."""

    def __init__(self, law: Any) -> None:
        super().__init__()
        self.law = law

    def forward(self, x: Tensor) -> Tensor:
        return self.law.log_prob(x)


class Ensemble:
    """Models of one kind, one for every seed and problem, as stacked tensors.

    Args:
        make: Makes a model.
        data: Points to train on, of shape (problems, N, 2).
        num_seeds: How many models to make for each problem.
    """

    def __init__(self, make: Callable[[], Any], data: Tensor, num_seeds: int) -> None:
        self.make, self.data, self.num_seeds = make, data, num_seeds
        modules = []
        for seed in range(num_seeds):
            torch.manual_seed(seed)
            for x in data:
                law = make()
                law.initialize(x)
                modules.append(LogProb(law))
        self.module = modules[0]
        self.parameters = {
            name: torch.stack([m.get_parameter(name).detach() for m in modules])
            for name, _ in self.module.named_parameters()
        }
        # Standardisations differ; masks and orders, which are the rest, must not be batched.
        self.buffers = {
            name: torch.stack([m.get_buffer(name) for m in modules])
            for name, buffer in self.module.named_buffers()
            if buffer.is_floating_point()
        }

    def log_prob(self, parameters: Tensors, buffers: Tensors, x: Tensor) -> Tensor:
        """Log-densities of values of shape (models, num, 2)."""

        def one(parameters: Tensors, buffers: Tensors, x: Tensor) -> Tensor:
            return functional_call(self.module, (parameters, buffers), (x,))

        return vmap(one)(parameters, buffers, x)

    def train(self, steps: int, lr: float, what: str, compiled: bool) -> Self:
        """Maximises the likelihood by Adam; the rate falls to 2% over the second half.

        A model whose gradient is not finite gets a gradient of zero in that step.
        """
        optimizer = torch.optim.Adam(self.parameters.values(), fused=True)
        generators = [Generator().manual_seed(seed) for seed in range(self.num_seeds)]
        num = self.data.shape[1]
        orders: list[Tensor] = []
        skipped = 0

        def loss(parameters: Tensors, buffers: Tensors, x: Tensor) -> Tensor:
            return -self.log_prob(parameters, buffers, x).mean(-1).sum()

        evaluate: Any = grad_and_value(loss)
        start = time.perf_counter()
        for step in range(steps):
            if not orders:
                shuffled = torch.stack([torch.randperm(num, generator=g) for g in generators])
                orders = list(shuffled.split(BATCH, -1))
            x = self.data[:, orders.pop()].transpose(0, 1).flatten(0, 1)
            if compiled and step == 0:
                traced = make_fx(evaluate)(self.parameters, self.buffers, x)
                evaluate = torch.compile(traced)
                evaluate(self.parameters, self.buffers, x)
                print(f"  compiled {what}: {time.perf_counter() - start:.0f} s", flush=True)
                start = time.perf_counter()
            by_name, _ = evaluate(self.parameters, self.buffers, x)
            # The fused Adam takes gradients to lie in memory as parameters do.
            gradients = [by_name[name].contiguous() for name in self.parameters]
            if not torch.stack(torch._foreach_norm(gradients)).isfinite().all():
                finite = [g.flatten(1).isfinite().all(-1) for g in gradients]
                bad = ~torch.stack(finite).all(0)
                for gradient in gradients:
                    gradient[bad] = 0.0
                skipped += int(bad.sum())
            optimizer.param_groups[0]["lr"] = lr * falling_factor(step, steps)
            for parameter, gradient in zip(self.parameters.values(), gradients, strict=True):
                parameter.grad = gradient
            optimizer.step()
            if (step + 1) % max(1, steps // 10) == 0:
                done = 1e3 * (time.perf_counter() - start) / (step + 1)
                print(f"  {what}: {step + 1} steps, {done:.1f} ms a step", flush=True)
        seconds = time.perf_counter() - start
        count = self.num_seeds * len(self.data)
        print(
            f"  trained {count} of {what}: {steps} steps, {seconds:.0f} s, "
            f"{skipped} gradients that were not finite",
            flush=True,
        )
        return self

    @torch.no_grad()
    def nats(self, x: Tensor) -> Tensor:
        """Mean log-densities of points of shape (problems, num, 2): (seeds, problems)."""
        parts = [
            self.log_prob(self.parameters, self.buffers, part.repeat(self.num_seeds, 1, 1))
            for part in x.split(1000, dim=1)
        ]
        return torch.cat(parts, -1).mean(-1).view(self.num_seeds, len(self.data))

    def model(self, seed: int, problem: int) -> Any:
        """One of the models, in a state to be asked."""
        model = LogProb(self.make())
        index = seed * len(self.data) + problem
        stacked = self.parameters | self.buffers
        model.load_state_dict({name: t[index] for name, t in stacked.items()}, strict=False)
        return model.law.eval().requires_grad_(False)

    def load(self, parameters: Tensors) -> Self:
        self.parameters = parameters
        return self
