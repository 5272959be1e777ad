"""Posteriors with many modes: guides of Pyro and zuko beside mixtures.

Targets with known evidence: 40 normals of unit scale, whose means are uniform in a square of side
80; two crescents ("bananas") in 8 dimensions; two ways to label two components; a funnel in 8
dimensions; and a mixture of ten multivariate t laws in 20 dimensions (two degrees of freedom, the
scales of Lin, Khan and Schmidt, 2019). With unknown evidence: a planar arm of ten links that
reaches one of four goals (Arenz et al., 2020), and logistic regressions of two tables,
GermanCredit and BreastCancer. Measured after training: the bound, and the log-evidence by
importance sampling, both by 20,000 draws; how many modes have a tenth of their share of draws or
more; Pareto k; and seconds.

    python -m benchmarks.guides.modes [--quick] [--targets NAME ...] [--guides NAME ...]

GermanCredit comes with the package gmmvi (`pip install --no-deps gmmvi`).
"""

import importlib.util
import math
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import torch
import zuko
from pyro.infer import ELBO, SVI, Trace_ELBO
from pyro.infer.autoguide import AutoIAFNormal, AutoMultivariateNormal, AutoNormal
from pyro.infer.autoguide.guides import AutoContinuous
from sklearn.datasets import load_breast_cancer
from torch import Tensor
from torch.nn.functional import softplus

from benchmarks.common import cli
from benchmarks.common.store import OUT, Numbers, Store
from pyromix.guides import AutoMixture, StratifiedELBO, evaluate_guide, fit_guide
from pyromix.guides.fitting import falling_adam

STEPS = {"quick": 30, "default": 2000}
DRAWS = {"quick": 500, "default": 20_000}
HALF = 60.0  # of the square that the 40 means are in the middle of


class Target(NamedTuple):
    """A model, and what is known of its posterior."""

    model: Callable[[], None]
    log_evidence: float | None
    modes: Tensor | None = None
    """Places of modes in the space of `place`, (M, D)."""
    place: Callable[[Tensor], Tensor] = lambda z: z
    """What places are of draws."""
    near: float = 4.0
    """How close to a mode a draw of it is."""


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


def funnel() -> Target:
    def model() -> None:
        wide = dist.Normal(torch.zeros(8), 3.0).to_event(1)
        z = pyro.sample("z", wide)
        neck = dist.Normal(0.0, 3.0).log_prob(z[..., 0])
        scale = (z[..., :1] / 2).exp().expand(*z.shape[:-1], 7)
        rest = dist.Normal(torch.zeros(7), scale).log_prob(z[..., 1:]).sum(-1)
        pyro.factor("target", neck + rest - wide.log_prob(z))

    return Target(model, 0.0)


def student() -> Target:
    count, dim = 10, 20
    generator = torch.Generator().manual_seed(0)
    means = torch.rand(count, dim, generator=generator).double() * 40 - 20
    factors = 0.1 * dim * torch.randn(count, dim, dim, generator=generator).double()
    precision = factors.mT @ factors + torch.eye(dim).double()
    tril = torch.linalg.cholesky(torch.linalg.inv(precision))
    law = dist.MixtureSameFamily(
        dist.Categorical(torch.ones(count).double()),
        dist.MultivariateStudentT(2.0 * torch.ones(count).double(), means, tril),
    )

    def model() -> None:
        wide = dist.Normal(torch.zeros(dim), 20.0).to_event(1)
        z = pyro.sample("z", wide)
        pyro.factor("target", law.log_prob(z.double()).to(z) - wide.log_prob(z))

    return Target(model, 0.0, means.float(), near=25.0)


def arm() -> Target:
    goals = torch.tensor([[7.0, 0.0], [-7.0, 0.0], [0.0, 7.0], [0.0, -7.0]])
    scale = torch.full((10,), 0.2)
    scale[0] = 1.0

    def hand(angles: Tensor) -> Tensor:
        turned = angles.cumsum(-1)
        return torch.stack([turned.cos().sum(-1), turned.sin().sum(-1)], -1)

    def model() -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(10), scale).to_event(1))
        each = dist.Normal(goals, 0.01).log_prob(hand(z).unsqueeze(-2)).sum(-1)
        pyro.factor("target", each.amax(-1))

    return Target(model, None, goals, hand, near=0.1)


def logistic(features: np.ndarray, labels: np.ndarray) -> Target:
    x = np.hstack([np.ones((len(features), 1)), features / features.std(0)])
    x, y = torch.tensor(x).float(), torch.tensor(2.0 * labels - 1).float()

    def model() -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(x.shape[1]), 10.0).to_event(1))
        pyro.factor("target", -softplus(-(z @ x.T) * y).sum(-1))

    return Target(model, None)


def credit() -> Target:
    found = importlib.util.find_spec("gmmvi")
    if found is None or found.origin is None:
        raise SystemExit("GermanCredit comes with gmmvi: pip install --no-deps gmmvi")
    folder = Path(found.origin).parent / "experiments/target_distributions/datasets"
    data = np.loadtxt(folder / "german.data-numeric")
    return logistic(data[:, :-1], data[:, -1] - 1)


def cancer() -> Target:
    data = load_breast_cancer()
    return logistic(data.data, data.target)


TARGETS = {
    "forty": forty,
    "bananas": bananas,
    "labels": labels,
    "funnel": funnel,
    "student": student,
    "arm": arm,
    "credit": credit,
    "cancer": cancer,
}
MANY = {"forty": 128, "bananas": 32, "labels": 8}
FEW, MOST = 8, {"student": 128, "arm": 200, "cancer": 128}
ROUNDS = {"student": 600, "arm": 500, "cancer": 600}


class AutoSpline(AutoContinuous):
    """A flow of rational-quadratic splines in couplings, by zuko."""

    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        super()._setup_prototype(*args, **kwargs)
        self.flow = zuko.flows.NSF(
            self.latent_dim, transforms=3, hidden_features=(64, 64), passes=2
        )

    def get_posterior(self, *args: Any, **kwargs: Any) -> Any:  # noqa: ARG002
        law = self.flow()
        return dist.TransformedDistribution(
            dist.Normal(torch.zeros(self.latent_dim), 1.0).to_event(1), [law.transform.inv]
        )


def guides(target: str) -> dict[str, tuple[Callable[..., Any], ELBO | None]]:
    """Guides by name, each with its bound: about as many draws a step for all.

    None for natural gradients.
    """
    count = MANY.get(target, 32)
    plain = Trace_ELBO(count, vectorize_particles=True)
    return {
        "AutoNormal": (AutoNormal, plain),
        "AutoMultivariateNormal": (AutoMultivariateNormal, plain),
        "AutoIAFNormal": (lambda m: AutoIAFNormal(m, hidden_dim=[32], num_transforms=2), plain),
        "splines (zuko)": (AutoSpline, plain),
        "AutoMixture, Adam": (lambda m: AutoMixture(m, count), StratifiedELBO(count)),
        "AutoMixture, fit_guide": (lambda m: AutoMixture(m, FEW), None),
    }


def measure(name: str, target: Target, of: str, size: str) -> Numbers:
    """Trains a guide, and measures its draws."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    make, bound = guides(of)[name]
    start = time.perf_counter()
    guide = make(target.model)
    if bound is None:
        steps = STEPS[size] if size == "quick" else ROUNDS.get(of, 300)
        fit_guide(
            target.model, guide, steps=steps, max_components=MOST.get(of, 64), seed=0,
            progress_bar=False,
        )  # fmt: skip
    else:
        _train(name, target, guide, bound, STEPS[size])
    seconds = time.perf_counter() - start
    return {"seconds": seconds, **_of_draws(guide, target, DRAWS[size])}


def _train(name: str, target: Target, guide: Any, bound: ELBO, steps: int) -> None:
    rate = {"AutoMixture": 0.03, "splines": 0.001}.get(name.split(",")[0].split(" ")[0], 0.01)
    optimizer = falling_adam(rate, steps)
    svi = SVI(target.model, guide, optimizer, bound)
    for _ in range(steps):
        svi.step()
        optimizer.step()


def _of_draws(guide: Any, target: Target, count: int) -> Numbers:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # guides that miss modes are expected here
        result = evaluate_guide(target.model, guide, num_draws=count, seed=0)
    numbers: Numbers = {
        "bound": result.elbo,
        "error": result.elbo_error,
        "evidence": result.log_evidence,
        "pareto_k": result.pareto_k,
    }
    if target.modes is not None:
        distance = torch.cdist(target.place(result.draws["z"]).float(), target.modes)
        close = distance.amin(1) < target.near
        shares = torch.bincount(distance.argmin(1)[close], minlength=len(target.modes)) / count
        numbers["modes"] = int((shares > 0.1 / len(target.modes)).sum())
    return numbers


def tell(results: dict[str, dict[str, Numbers]]) -> None:
    """A table in Markdown."""
    print("\n| | " + " | ".join(f"{name}: bound, k, modes, s" for name in results) + " |")
    print("| --- |" + " --: |" * len(results))
    for name in next(iter(results.values())):
        cells = []
        for of, own in results.items():
            r, target = own[name], TARGETS[of]()
            cell = f"{r['bound']:.3f}, {r['pareto_k']:.2f}, "
            if target.modes is not None:
                cell += f"{r['modes']} of {len(target.modes)}, "
            cells.append(cell + f"{r['seconds']:.0f}")
        print(f"| {name} | " + " | ".join(cells) + " |")
    known = ", ".join(
        f"{of} {TARGETS[of]().log_evidence:.3f}"
        for of in results
        if TARGETS[of]().log_evidence is not None
    )
    print(f"\nThe bound is in nats; the log-evidence, where it is known: {known}.")
    for of, own in results.items():
        if TARGETS[of]().log_evidence is None:
            name, last = list(own.items())[-1]
            print(f"{of}: log-evidence {last['evidence']:.3f} by the draws of {name}.")


def main() -> None:
    parser = cli.make_parser(__doc__, quick="few steps")
    parser.add_argument("--targets", nargs="+", choices=TARGETS, help="by default all")
    parser.add_argument("--guides", nargs="+", choices=guides("forty"), help="by default all")
    arguments = cli.parse(parser)
    results: dict[str, dict[str, Numbers]] = {}
    for of in arguments.targets or TARGETS:
        target = TARGETS[of]()
        store = Store(OUT / "guides" / f"{of}_{arguments.size}")
        results[of] = {
            name: store.once(name, lambda n=name, o=of, t=target: measure(n, t, o, arguments.size))
            for name in arguments.guides or guides(of)
        }
    tell(results)


if __name__ == "__main__":
    main()
