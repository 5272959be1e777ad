"""Priors from statements: against laws by quadrature, and against PreliZ.

**Exact laws.** `pyromix.maxent.elicit` in one, two and three dimensions, against the dual that is
minimised by SciPy's BFGS over a fine grid of midpoints, with statistics written anew. Prints

- gap: by how much its entropy is below that of the answer, with the standard error of 100,000
  draws that are scored by its log-density;
- KL: the divergence from the answer to it, over the grid;
- violation: the largest of a statement, over the grid, in standard deviations;
- seconds of a processor.

**Families.** The member of a family of largest entropy with a given mass between two values, as
`preliz.maxent` finds it (skipped if PreliZ is not installed: ``pip install preliz``). Prints
entropies, the error of the mass and seconds (the first and the second call: PreliZ compiles in the
first one) of both; and the entropy of the law without a family, where there is one.

**Steps in a search.** `MaximumEntropy` on a spline flow, for a mean of 0, a deviation of 1 and
P(-0.5 < x < 0.5) = 0.6, with `pyromix.maxent.between`, and with sigmoids in place of the steps.
Prints the gap, and the probability of 400,000 draws.

Figure out/maxent/elicited_priors.png: densities with quantiles and with an interval, and draws of
both with a correlation.

    python -m benchmarks.maxent.elicit [--quick]
"""

import math
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor
from torch.distributions import constraints

from benchmarks.common import cli
from benchmarks.common.store import OUT
from pyromix import MaximumEntropy
from pyromix.maxent import between, elicit, interval, mean, quantile, sd, spline_flow

DRAWS = 100_000
RATE, SHARE, Z = (2.5, 1.2), (0.34, 0.25), (1.0, 2.0)  # means and deviations


class Case(NamedTuple):
    """A problem, and the same once more as statistics on a grid."""

    name: str
    statements: dict[str, Any]
    options: dict[str, Any]
    axes: tuple[tuple[float, float, int], ...]
    """Of the grid: ends and number of midpoints; steps lie between two of them."""
    statistics: Callable[[Tensor], Tensor]
    targets: tuple[float, ...]


def cases(quick: bool) -> list[Case]:
    """Quantiles alone; with moments; and two and three dimensions with correlations."""
    rate = {"rate": [interval(0.9, 1, 5), mean(RATE[0]), sd(RATE[1])]}
    share = {"share": [quantile(0.5, 0.3), quantile(0.9, 0.6), mean(SHARE[0]), sd(SHARE[1])]}
    z = {"z": [mean(Z[0]), sd(Z[1])]}
    supports = {"rate": constraints.positive, "share": constraints.unit_interval}

    def of_rate(x: Tensor) -> list[Tensor]:
        inside = ((x > 1) & (x < 5)).double()
        return [inside, (x - RATE[0]) / RATE[1], ((x - RATE[0]) / RATE[1]) ** 2]

    def of_share(x: Tensor) -> list[Tensor]:
        steps = [(x < 0.3).double(), (x < 0.6).double()]
        return [*steps, (x - SHARE[0]) / SHARE[1], ((x - SHARE[0]) / SHARE[1]) ** 2]

    def two(x: Tensor) -> Tensor:
        parts = [*of_rate(x[:, 0]), *of_share(x[:, 1])]
        return torch.stack([*parts, parts[1] * parts[5]], -1)

    def three(x: Tensor) -> Tensor:
        last = (x[:, 2] - Z[0]) / Z[1]
        parts = [*of_rate(x[:, 0]), *of_share(x[:, 1]), last, last**2]
        return torch.stack([*parts, parts[1] * parts[5], parts[1] * last, parts[5] * last], -1)

    own, other = (0.9, 0.0, 1.0), (0.5, 0.9, 0.0, 1.0)
    fine = 4 if quick else 8
    width = 20 if quick else 40
    return [
        Case("quantiles", {"share": share["share"][:2]}, {"support": supports}, ((0, 1, 100_000),),
             lambda x: torch.stack(of_share(x[:, 0])[:2], -1), other[:2]),
        Case("interval and moments", rate, {"support": {"rate": supports["rate"]}},
             ((0, 20, 200_000),), lambda x: torch.stack(of_rate(x[:, 0]), -1), own),
        Case("two, correlated", rate | share,
             {"support": supports, "correlations": {("rate", "share"): 0.4}},
             ((0, 14, 56 * fine), (0, 1, 50 * fine)), two, (*own, *other, 0.4)),
        Case("three, correlated", rate | share | z,
             {"support": supports, "correlations": {
                 ("rate", "share"): 0.4, ("rate", "z"): -0.5, ("share", "z"): 0.3}},
             ((0, 14, 56 if quick else 140), (0, 1, 2 * width), (-10, 12, 3 * width)), three,
             (*own, *other, 0.0, 1.0, 0.4, -0.5, 0.3)),
    ]  # fmt: skip


def answer(case: Case) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Points of the grid, statistics, probabilities and log-densities of the answer."""
    rules = [low + (high - low) * (torch.arange(n) + 0.5) / n for low, high, n in case.axes]
    x = torch.cartesian_prod(*rules).reshape(-1, len(rules))
    log_weight = sum(math.log((high - low) / n) for low, high, n in case.axes)
    t = case.statistics(x)
    excess = t - torch.tensor(case.targets)

    def dual(multipliers: np.ndarray) -> tuple[float, np.ndarray]:
        log_p = -excess @ torch.from_numpy(multipliers)
        return float(log_p.logsumexp(0)), -(log_p.softmax(0) @ excess).numpy()

    found = minimize(
        dual, np.zeros(len(case.targets)), jac=True, method="BFGS", options={"gtol": 1e-6}
    )
    log_p = (-excess @ torch.from_numpy(found.x)).log_softmax(0)
    return x, t, log_p.exp(), log_p - log_weight


def compare_with_quadrature(quick: bool) -> None:
    """Prints the table of exact laws."""
    print(f"{'':24}{'entropy':>10}{'gap':>20}{'KL':>10}{'violation':>11}{'seconds':>9}")
    for case in cases(quick):
        started = time.process_time()
        names = list(case.statements)
        options = case.options | {
            "support": {n: s for n, s in case.options["support"].items() if n in names}
        }
        prior = elicit(case.statements, **options)
        seconds = time.process_time() - started
        x, t, p, log_q = answer(case)
        own = prior.log_prob(x)
        entropy = -float(p @ log_q)
        weight = (own - log_q).exp() * p  # of the law that was found
        weight = weight / weight.sum()
        violation = (weight @ t - torch.tensor(case.targets)) / (
            weight @ (t - weight @ t) ** 2
        ) ** 0.5
        torch.manual_seed(0)
        scores = prior.log_prob(prior.sample((DRAWS,)))
        gap, error = entropy + float(scores.mean()), float(scores.std()) / DRAWS**0.5
        divergence = float(p @ (log_q - own))
        print(
            f"{case.name:24}{entropy:10.4f}{gap:11.4f} ± {error:.4f}{divergence:11.5f}"
            f"{float(violation.abs().max()):11.5f}{seconds:9.2f}",
            flush=True,
        )


FAMILIES: dict[str, tuple[float, float, float, Any]] = {
    "normal": (-2, 5, 0.9, constraints.real),
    "gamma": (2, 5, 0.9, constraints.positive),
    "lognormal": (2, 5, 0.9, constraints.positive),
    "beta": (0.2, 0.5, 0.9, constraints.unit_interval),
}


def compare_with_preliz() -> None:
    """Prints the table of families."""
    peers: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import preliz  # type: ignore[import-not-found]
        except ImportError:
            print("PreliZ is not installed")
        else:
            peers = {
                "normal": preliz.Normal,
                "gamma": preliz.Gamma,
                "lognormal": preliz.LogNormal,
                "beta": preliz.Beta,
            }
            print(f"PreliZ {preliz.__version__}")
    print(
        f"{'':12}{'entropy':>10}{'mass off':>10}{'seconds':>14}{'PreliZ':>12}{'mass off':>10}"
        f"{'seconds':>14}{'no family':>12}"
    )
    for name, (low, high, p, support) in FAMILIES.items():
        statement, seconds = {"x": interval(p, low, high)}, []
        options: dict[str, Any] = {"support": {"x": support}}
        for _ in range(2):
            started = time.perf_counter()
            prior = elicit(statement, families={"x": name}, **options)
            seconds.append(time.perf_counter() - started)
        law = prior.blocks[0].law
        mass = float(law.cdf(torch.tensor([low, high]).double()).diff())
        row = f"{name:12}{float(prior.entropy()):10.5f}{abs(mass - p):10.0e}"
        row += f"{seconds[0]:8.2f},{seconds[1]:5.2f}"
        if name in peers:
            seconds = []
            for _ in range(2):
                peer = peers[name]()
                started = time.perf_counter()
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    preliz.maxent(peer, low, high, p, plot=False)
                seconds.append(time.perf_counter() - started)
            mass = float(peer.cdf(high) - peer.cdf(low))
            row += f"{float(peer.entropy()):12.5f}{abs(mass - p):10.0e}"
            row += f"{seconds[0]:8.2f},{seconds[1]:5.2f}"
        if name == "beta":
            row += f"{float(elicit(statement, **options).entropy()):12.5f}"
        print(row, flush=True)


def compare_steps() -> None:
    """Prints the table of steps in a search."""
    answer = float(elicit({"x": [mean(0), sd(1), interval(0.6, -0.5, 0.5)]}).entropy())

    def sigmoids(x: Tensor, low: float, high: float, width: float) -> Tensor:
        return torch.sigmoid(4 * (high - x) / width) - torch.sigmoid(4 * (low - x) / width)

    print(f"\n{'':12}{'width':>8}{'gap':>10}{'probability':>13}{'seconds':>9}")
    for width in (0.4, 0.2, 0.1):
        for name, step in (("between", between), ("sigmoids", sigmoids)):

            def statistics(x: Tensor, step: Any = step, width: float = width) -> Tensor:
                return torch.cat([x, x.square(), step(x, -0.5, 0.5, width)], -1)

            torch.manual_seed(0)
            law = spline_flow(1, num_layers=1)
            problem = MaximumEntropy(law, statistics, [0.0, 1.0, 0.6])
            started = time.process_time()
            problem.solve(seed=0, steps=60, rounds=20, lr=0.01, progress_bar=False)
            seconds = time.process_time() - started
            with torch.no_grad():
                x, log_prob = law.rsample_and_log_prob((4 * DRAWS,))
            p = float(((x > -0.5) & (x < 0.5)).double().mean())
            gap = answer + float(log_prob.mean())
            print(f"{name:12}{width:8.1f}{gap:10.4f}{p:13.4f}{seconds:9.1f}", flush=True)


def draw_figure() -> None:
    """Draws a share with two quantiles, a rate with an interval, and both with a correlation."""
    statements: dict[str, Any] = {
        "rate": interval(0.9, 2, 5),
        "share": [quantile(0.5, 0.3), quantile(0.9, 0.6)],
    }
    supports = {"rate": constraints.positive, "share": constraints.unit_interval}
    figure, axes = plt.subplots(1, 3, figsize=(12, 3.5), layout="constrained")
    styles: dict[str, dict[str, Any]] = {
        "largest entropy": {},
        "smooth=0.5": {"smooth": 0.5},
        "the beta law": {"families": {"share": "beta"}},
    }
    x = torch.linspace(0.001, 0.999, 999)
    for label, options in styles.items():
        law = elicit({"share": statements["share"]}, support={"share": supports["share"]},
                     **options).blocks[0].law  # fmt: skip
        axes[0].plot(x, law.log_prob(x).exp(), label=label)
    axes[0].set(xlabel="share", ylabel="density", ylim=(0, None),
                title="P(share < 0.3) = 0.5, P(share < 0.6) = 0.9")  # fmt: skip
    axes[0].legend()
    x = torch.linspace(0.01, 8, 800)
    for name in ("gamma", "lognormal"):
        law = elicit({"rate": statements["rate"]}, support={"rate": supports["rate"]},
                     families={"rate": name}).blocks[0].law  # fmt: skip
        axes[1].plot(x, law.log_prob(x).exp(), label=f"{name} of largest entropy")
    axes[1].axvspan(2, 5, color="0.92", zorder=0)
    axes[1].set(xlabel="rate", ylabel="density", ylim=(0, None), title="P(2 < rate < 5) = 0.9")
    axes[1].legend(loc="upper right", fontsize="small")
    joint = elicit(statements, support=supports, correlations={("rate", "share"): 0.4})
    torch.manual_seed(0)
    draws = joint.sample((4000,))
    axes[2].scatter(draws[:, 0], draws[:, 1], s=2, alpha=0.5)
    axes[2].set(xlabel="rate", ylabel="share", title="both, with a correlation of 0.4")
    path = OUT / "maxent" / "elicited_priors.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
    print(f"\n{path}")


def main() -> None:
    parser = cli.make_parser(__doc__, quick="coarser grids for the answers, and no search")
    arguments = cli.parse(parser)
    torch.set_default_dtype(torch.float64)
    compare_with_quadrature(arguments.size == "quick")
    print()
    compare_with_preliz()
    torch.set_default_dtype(torch.float32)
    if arguments.size != "quick":
        compare_steps()
    draw_figure()


if __name__ == "__main__":
    main()
