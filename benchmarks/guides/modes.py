"""Posteriors with many modes: guides of Pyro beside mixtures with weighted draws.

Targets with known evidence: 40 normals of unit scale, whose means are uniform in a square of side
80; two crescents ("bananas") in 8 dimensions; and two ways to label two components. Measured after
training: how far the bound is below the log-evidence (by 20,000 draws), how many modes have a
tenth of their share of draws or more, and seconds.

    python -m benchmarks.guides.modes [--quick] [--targets NAME ...]
"""

import math
import time
from collections.abc import Callable
from typing import NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import ELBO, SVI, Trace_ELBO
from pyro.infer.autoguide import AutoIAFNormal, AutoMultivariateNormal, AutoNormal
from torch import Tensor

from benchmarks.common import cli
from benchmarks.common.store import OUT, Numbers, Store
from pyromix.guides import AutoMixture, StratifiedELBO
from pyromix.guides.joint import log_density

STEPS = {"quick": 30, "default": 2000}
DRAWS = {"quick": 500, "default": 20_000}
HALF = 60.0  # of the square that the 40 means are in the middle of


class Target(NamedTuple):
    """A model, and what is known of its posterior."""

    model: Callable[[], None]
    log_evidence: float
    modes: Tensor
    """Places of modes in the model's own space, (M, D)."""


def forty() -> Target:
    generator = torch.Generator().manual_seed(0)
    means = (torch.rand(40, 2, generator=generator) - 0.5) * 80
    law = dist.MixtureSameFamily(
        dist.Categorical(torch.ones(40)), dist.Normal(means, 1.0).to_event(1)
    )

    def model() -> None:
        square = dist.Uniform(torch.full((2,), -HALF), torch.full((2,), HALF)).to_event(1)
        z = pyro.sample("z", square)
        pyro.factor("target", law.log_prob(z) + 2 * math.log(2 * HALF))

    return Target(model, 0.0, means)


def bananas() -> Target:
    signs = torch.tensor([1.0, -1.0])

    def log_prob(z: Tensor) -> Tensor:
        first = z[..., :1] - 4 * signs
        bent = z[..., 1:2] - signs * 0.5 * (first.square() - 1)
        each = dist.Normal(0.0, 1.0).log_prob(first) + dist.Normal(0.0, 0.3).log_prob(bent)
        rest = dist.Normal(0.0, 1.0).log_prob(z[..., 2:]).sum(-1)
        return each.logsumexp(-1) - math.log(2) + rest

    def model() -> None:
        wide = dist.Normal(torch.zeros(8), 5.0).to_event(1)
        z = pyro.sample("z", wide)
        pyro.factor("target", log_prob(z) - wide.log_prob(z))

    centres = torch.zeros(2, 8)
    centres[:, 0] = 4 * signs
    centres[:, 1] = -0.5 * signs
    return Target(model, 0.0, centres)


def labels() -> Target:
    y = torch.tensor([-2.1, -1.8, -2.2, 1.9, 2.2])

    def model() -> None:
        loc = pyro.sample("z", dist.Normal(torch.zeros(2), 3.0).to_event(1))
        with pyro.plate("rows", len(y)):
            normals = dist.Normal(loc, 0.5)
            halves = dist.Categorical(torch.tensor([0.5, 0.5]))
            pyro.sample("y", dist.MixtureSameFamily(halves, normals), obs=y)

    axis = torch.linspace(-9, 9, 1201)
    grid = torch.cartesian_prod(axis, axis)
    prior = dist.Normal(0.0, 3.0).log_prob(grid).sum(-1)
    each = dist.Normal(grid.unsqueeze(1), 0.5).log_prob(y.reshape(1, -1, 1)).logsumexp(-1)
    total = prior + (each - math.log(2)).sum(-1)
    cell = float((axis[1] - axis[0]).log())
    return Target(
        model,
        float(total.double().logsumexp(0)) + 2 * cell,
        torch.tensor([[-2.0, 2.0], [2.0, -2.0]]),
    )


TARGETS = {"forty": forty, "bananas": bananas, "labels": labels}
MANY = {"forty": 128, "bananas": 32, "labels": 8}


def guides(target: str) -> dict[str, tuple[Callable[..., object], ELBO]]:
    """Guides by name, each with its bound: about as many draws a step for all."""
    count = MANY[target]
    plain = Trace_ELBO(count, vectorize_particles=True)
    return {
        "AutoNormal": (AutoNormal, plain),
        "AutoMultivariateNormal": (AutoMultivariateNormal, plain),
        "AutoIAFNormal": (lambda m: AutoIAFNormal(m, hidden_dim=[32], num_transforms=2), plain),
        "AutoMixture, Trace_ELBO": (lambda m: AutoMixture(m, count), plain),
        "AutoMixture": (lambda m: AutoMixture(m, count), StratifiedELBO(count)),
    }


def measure(name: str, target: Target, of: str, size: str) -> Numbers:
    """Trains a guide, and measures its draws."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    make, bound = guides(of)[name]
    guide = make(target.model)
    steps = STEPS[size]
    optimizer = pyro.optim.PyroLRScheduler(
        torch.optim.lr_scheduler.LambdaLR,
        {
            "optimizer": torch.optim.Adam,
            "optim_args": {"lr": 0.03 if "Mixture" in name else 0.01},
            "lr_lambda": lambda step: min(1.0, 2 - 2 * step / steps),
        },
    )
    svi = SVI(target.model, guide, optimizer, bound)
    start = time.perf_counter()
    for _ in range(steps):
        svi.step()
        optimizer.step()
    seconds = time.perf_counter() - start
    return {"seconds": seconds, **_of_draws(guide, target, DRAWS[size])}


@torch.no_grad()
def _of_draws(guide: Callable[..., object], target: Target, count: int) -> Numbers:
    ratios, found = [], []
    for _ in range(max(1, count // 500)):
        with pyro.plate("draws", 500, dim=-2):
            guided = poutine.trace(guide).get_trace()
            traced = poutine.trace(poutine.replay(target.model, trace=guided)).get_trace()
        log_p, log_q = (log_density(trace, 500, 1) for trace in (traced, guided))
        ratios.append(log_p - log_q)
        found.append(traced.nodes["z"]["value"].reshape(500, -1))
    nearest = torch.cdist(torch.cat(found), target.modes).argmin(1)
    close = torch.cdist(torch.cat(found), target.modes).amin(1) < 4.0
    shares = torch.bincount(nearest[close], minlength=len(target.modes)) / (500 * len(found))
    return {
        "gap": target.log_evidence - float(torch.cat(ratios).mean()),
        "modes": int((shares > 0.1 / len(target.modes)).sum()),
    }


def tell(results: dict[str, dict[str, Numbers]]) -> None:
    """A table in Markdown."""
    print("\n| | " + " | ".join(f"{name}: gap, modes, s" for name in results) + " |")
    print("| --- |" + " --: |" * len(results))
    for name in guides("forty"):
        cells = []
        for of, own in results.items():
            r = own[name]
            most = len(TARGETS[of]().modes)
            cells.append(f"{r['gap']:.3f}, {r['modes']} of {most}, {r['seconds']:.0f}")
        print(f"| {name} | " + " | ".join(cells) + " |")
    print("\nGap: nats of the bound below the log-evidence.")


def main() -> None:
    parser = cli.make_parser(__doc__, quick="few steps")
    parser.add_argument("--targets", nargs="+", choices=TARGETS, help="by default all")
    arguments = cli.parse(parser)
    results: dict[str, dict[str, Numbers]] = {}
    for of in arguments.targets or TARGETS:
        target = TARGETS[of]()
        store = Store(OUT / "guides" / f"{of}_{arguments.size}")
        results[of] = {
            name: store.once(name, lambda n=name, o=of, t=target: measure(n, t, o, arguments.size))
            for name in guides(of)
        }
    tell(results)


if __name__ == "__main__":
    main()
