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

    python -m benchmarks.maxent.elicit [--quick]
"""

import math
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor
from torch.distributions import constraints

from benchmarks.common import cli
from pyromix.maxent import elicit, interval, mean, quantile, sd

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


def main() -> None:
    parser = cli.make_parser(__doc__, quick="coarser grids for the answers")
    arguments = cli.parse(parser)
    torch.set_default_dtype(torch.float64)
    compare_with_quadrature(arguments.size == "quick")
    print()
    compare_with_preliz()


if __name__ == "__main__":
    main()
