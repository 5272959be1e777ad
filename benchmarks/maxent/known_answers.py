"""Maximum entropy where the answer is known: flows on a normal, and on mixtures.

Eight problems (problems.py, oscillation.py), from a normal with known moments to 256 modes in
eight dimensions, are solved by `pyromix.MaximumEntropy`, with spline flows on four bases:

- normal: a normal, as most flows have;
- relaxed: a mixture whose choice of a component is relaxed by Gumbel noise, and less and less so;
- stratified: the exact mixture, with gradients from as many draws of every component;
- implicit: the exact mixture, with implicit gradients of plain draws;

and where modes are many, or apart, on two more, and with splines of single coordinates:

- folds: a normal that RAD folds, with gradients given branches, and the score of these (of the
  oscillation without splines);
- codes: a deep residual mixture (DRMM), with as many draws of every code;
- separate: a normal, each coordinate through a spline of its own (wells are independent).

Prints, from 100,000 fresh draws of what was found,

- gap: by how much its entropy is below the largest one, with a standard error. A law that breaks
  its constraints may have a larger entropy; hence
- KL: the Kullback-Leibler divergence from it to the answer, with a standard error;
- the largest violation of a constraint, over its standard error and over the deviation of the
  statistic; and the largest error of a multiplier, times that deviation (under the answer);
- the lightest and the heaviest mode, as multiples of their share, which all have in common;
- seconds of a processor, and of how many seeds tests reject that the constraints hold.

The density of the relaxed law is that of a finite mixture, and this is the law that is optimised
and scored. A second line scores draws of the relaxed law itself with that density. That makes its
entropy too high, and KL too low, by the divergence between the two.

Figures out/maxent/known_answers_<size>_*.png: densities (laws on the line), gaussian, simplex,
wells, oscillation, rounds (entropy and KL by round). What was found is kept in
out/maxent/known_answers_<size>/, a file for each problem, base and seed: processes may share the
work with `--problems`, `--bases` and `--seeds`, after which `--report` prints and draws all.

`--check` computes the answers by other routes, and scores draws of the answers themselves.

    python -m benchmarks.maxent.known_answers [--quick] [--problems NAME ...] [--bases NAME ...]
        [--seeds N ...]
    python -m benchmarks.maxent.known_answers [--quick] --report
    python -m benchmarks.maxent.known_answers --check
"""

import time
import warnings
from typing import Any

import torch
from pyro.distributions.transforms import Spline
from torch import Tensor
from torch.distributions import biject_to

from benchmarks.common import cli
from benchmarks.common.store import OUT, Store
from benchmarks.maxent.checks import check
from benchmarks.maxent.figures import draw_figures
from benchmarks.maxent.problem import BASES, Problem
from benchmarks.maxent.problems import PROBLEMS
from benchmarks.maxent.scores import DRAWS, report, score
from pyromix import (
    DRMM,
    RAD,
    Flow,
    GaussianMixture,
    MaximumEntropy,
    RelaxedGaussianMixture,
    near_identity,
)
from pyromix.maxent import InfeasibleError, spline_flow

CHUNK = 10_000
GRADIENTS: dict[str, Any] = {
    "normal": "pathwise",
    "relaxed": "stratified",  # of the finite mixture whose density log_prob is
    "stratified": "stratified",
    "implicit": "pathwise",
}
SEEDS = {"quick": (0,), "default": (0, 1, 2)}


# ---- laws ---------------------------------------------------------------------------------------


@torch.no_grad()
def own_law(flow: Any) -> Flow:
    """The law of `log_prob`, with draws of its own: the finite mixture behind a relaxed one."""
    if not isinstance(flow.base, RelaxedGaussianMixture):
        return flow
    return Flow(flow.base.distribution.inner, list(flow.transforms))


@torch.no_grad()
def draw_and_score(flow: Flow, num: int) -> tuple[Tensor, Tensor]:
    """Draws, and their log-densities."""
    chunks = [flow.rsample_and_log_prob((min(CHUNK, num - i),)) for i in range(0, num, CHUNK)]
    x, log_prob = zip(*chunks, strict=True)
    return torch.cat(x), torch.cat(log_prob)


# ---- solving ------------------------------------------------------------------------------------


def make_flow(problem: Problem, base: str) -> Flow:
    options = dict(problem.own.get(base, {}))
    match base:
        case "folds":
            has_splines = options.pop("splines", True)
            law: Any = RAD(problem.dim, **options)
            if not has_splines:
                return Flow(law.base, [*law.transforms, biject_to(problem.support)])
        case "codes":
            law = DRMM(problem.dim, **options)
        case "separate":
            spline = near_identity(Spline(problem.dim, **options))
            return Flow(GaussianMixture(problem.dim, 1), [spline])
        case _:
            return spline_flow(**problem.flow_options(base))
    return spline_flow(problem.dim, support=problem.support, base=law)


def solve(problem: Problem, base: str, seed: int, quick: bool) -> tuple[dict[str, Any], Flow]:
    torch.manual_seed(seed)
    flow = make_flow(problem, base)
    start = time.process_time()
    options = problem.solve_options(base, quick)
    gradient = GRADIENTS.get(base, "auto")
    task = MaximumEntropy(
        flow, problem.statistics, problem.targets, names=problem.names, gradient=gradient
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of few rounds: the gap says it
        try:
            result = task.solve(seed=seed, progress_bar=False, **options)
        except InfeasibleError as error:  # every problem has an answer, but a search may lose it
            result = error.result
    seconds = time.process_time() - start
    torch.manual_seed(1000 + seed)
    law = own_law(flow)
    numbers = score(problem, *draw_and_score(law, DRAWS), result.multipliers)
    if law is not flow:  # the relaxed law itself: entropy as its log_prob has it
        numbers["draws"] = score(problem, *draw_and_score(flow, DRAWS), result.multipliers)
    numbers |= {"seconds": seconds, "outcome": result.outcome, "feasible": result.feasible}
    numbers["rounds"] = {
        "entropy": [r.entropy for r in result.rounds],
        "violations": [r.violations.tolist() for r in result.rounds],
        "penalty": [r.penalty for r in result.rounds],
        "best": result.best_round,
    }
    return numbers, flow


# ---- all ----------------------------------------------------------------------------------------


def main() -> None:
    parser = cli.make_parser(__doc__, quick="few steps, one seed: ten minutes")
    parser.add_argument("--problems", nargs="+", choices=list(PROBLEMS), default=list(PROBLEMS))
    parser.add_argument("--bases", nargs="+", choices=BASES, default=list(BASES))
    parser.add_argument("--seeds", nargs="+", type=int, help="by default 0 1 2, or 0 if quick")
    parser.add_argument("--report", action="store_true", help="only print and draw what there is")
    parser.add_argument("--check", action="store_true", help="only check the answers")
    arguments = cli.parse(parser)
    if arguments.check:
        check()
        return
    prefix = OUT / "maxent" / f"known_answers_{arguments.size}"
    store = Store(prefix)
    seeds = SEEDS[arguments.size] if arguments.seeds is None else tuple(arguments.seeds)
    start = time.perf_counter()
    problems = [PROBLEMS[name]() for name in arguments.problems]
    if not arguments.report:
        for problem in problems:
            for base in filter(problem.takes, arguments.bases):
                for seed in seeds:
                    numbers, flow = solve(problem, base, seed, arguments.size == "quick")
                    name = f"{problem.name}_{base}_{seed}"
                    # With its settings, so that it can be drawn when defaults have changed.
                    store.save_model(name, numbers, flow)
                    print(
                        f"  {problem.name}, {base}, seed {seed}: KL {numbers['kl']:.4f}, "
                        f"{numbers['seconds']:.0f} s",
                        flush=True,
                    )
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    flows: dict[tuple[str, str], Flow] = {}
    for problem in problems:
        for base in BASES:
            names = store.names(f"{problem.name}_{base}_")
            if not names:
                continue
            numbers_of = store.numbers(names)
            found[problem.name, base] = list(numbers_of.values())
            median = sorted(names, key=lambda name: numbers_of[name]["kl"])[len(names) // 2]
            flows[problem.name, base] = own_law(store.load_model(median))
        results = {b: found[problem.name, b] for b in BASES if (problem.name, b) in found}
        if results:
            report(problem, results)
    print(f"\n{time.perf_counter() - start:.0f} s in all")
    draw_figures({problem.name: problem for problem in problems}, flows, found, prefix)


if __name__ == "__main__":
    main()
