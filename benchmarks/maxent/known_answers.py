"""Maximum entropy where the answer is known: flows on a normal, and on mixtures.

Eight problems (problems.py), from a normal with known moments to 256 modes in eight
dimensions, are solved by `pyromix.MaximumEntropy` with spline flows on four bases:

- normal: a normal, as most flows have;
- relaxed: a mixture whose choice of a component is relaxed by Gumbel noise, and less and less so;
- stratified: the exact mixture, with gradients from as many draws of every component;
- implicit: the exact mixture, with implicit gradients of plain draws.

Prints, from 100,000 fresh draws of what was found,

- gap: by how much its entropy is below the largest one, with a standard error. A law that breaks
  its constraints may have a larger entropy; hence
- KL: the Kullback-Leibler divergence from it to the answer, with a standard error;
- the largest violation of a constraint, over its standard error and over the deviation of the
  statistic; and the largest error of a multiplier, times that deviation (under the answer);
- the lightest and the heaviest mode, as multiples of their share, which all have in common;
- seconds of a processor, and of how many seeds sign tests reject that the constraints hold.

The density of the relaxed law is that of a finite mixture, and this is the law that is optimised
and scored. A second line scores draws of the relaxed law itself with that density. That makes its
entropy too high, and KL too low, by the divergence between the two.

Figures under out/: maxent_densities.png (laws on the line), maxent_gaussian.png,
maxent_simplex.png, maxent_wells.png, maxent_oscillation.png, maxent_rounds.png (entropy and KL by
round); of another size than the default one with its name after maxent. What was found is kept in
out/maxent_<size>/, a file for each problem, base and seed: processes may share the work with
`--problems`, `--bases` and `--seeds`, after which `--report` prints and draws all.

`--check` computes the answers by other routes, and scores draws of the answers themselves.

    python -m benchmarks.maxent.known_answers [--quick] [--problems NAME ...] [--bases NAME ...]
        [--seeds N ...]
    python -m benchmarks.maxent.known_answers [--quick] --report
    python -m benchmarks.maxent.known_answers --check
"""

import argparse
import math
import statistics
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import Gamma

from benchmarks.frmdn.training import Store
from benchmarks.maxent.figures import draw_figures
from benchmarks.maxent.problems import BASES, PROBLEMS, Problem, comparisons
from pyromix import Flow, MaximumEntropy, RelaxedGaussianMixture, load, save
from pyromix.maxent import InfeasibleError, spline_flow

OUT = Path("out")
DRAWS = 100_000
CHUNK = 10_000
GRADIENTS: dict[str, Any] = {
    "normal": "pathwise",
    "relaxed": "stratified",  # of the finite mixture whose density log_prob is
    "stratified": "stratified",
    "implicit": "pathwise",
}


class Setting(NamedTuple):
    """How much to do by default."""

    name: str
    seeds: tuple[int, ...]


SETTINGS = {"quick": Setting("quick", (0,)), "default": Setting("default", (0, 1, 2))}


# ---- scores -------------------------------------------------------------------------------------


def score(problem: Problem, x: Tensor, log_prob: Tensor, multipliers: Tensor) -> dict[str, Any]:
    """Compares a law with the answer, by draws and their log-densities."""
    truth, count = problem.truth, len(x)
    x, log_prob = x.double(), log_prob.double()
    t = problem.statistics(x)
    log_ratio = log_prob + t @ truth.multipliers + truth.log_normalizer
    violation, deviation = t.mean(0) - problem.targets, t.std(0)
    error = multipliers.double() - truth.multipliers
    scores = {
        "gap": truth.entropy + float(log_prob.mean()),
        "gap_error": float(log_prob.std()) / count**0.5,
        "kl": float(log_ratio.mean()),
        "kl_error": float(log_ratio.std()) / count**0.5,
        "violations": (violation / deviation).tolist(),
        "violation_errors": (count**0.5 * violation / deviation).tolist(),
        "multipliers": multipliers.tolist(),
        "multiplier_errors": (error * truth.deviations).tolist(),
    }
    if problem.modes is not None:
        counts = problem.modes(x).bincount(minlength=problem.num_modes)
        scores["modes"] = (counts * problem.num_modes / count).tolist()
    return scores


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
    return spline_flow(**problem.flow_options(base))


def solve(problem: Problem, base: str, seed: int, setting: Setting) -> tuple[dict[str, Any], Flow]:
    torch.manual_seed(seed)
    flow = make_flow(problem, base)
    start = time.process_time()
    options = problem.solve_options(base, setting.name == "quick")
    task = MaximumEntropy(
        flow, problem.statistics, problem.targets, names=problem.names, gradient=GRADIENTS[base]
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


# ---- tables -------------------------------------------------------------------------------------


def largest(values: list[float]) -> float:
    return max(map(abs, values))


def cell(entries: list[dict[str, Any]], key: str, error: str | None = None) -> str:
    """A number with its standard error; of several seeds mean and standard deviation."""
    values = [largest(v) if isinstance(v := e[key], list) else v for e in entries]
    if len(values) > 1:
        return f"{statistics.mean(values):.4f} ± {statistics.stdev(values):.4f}"
    return f"{values[0]:.4f}" + (f" ± {entries[0][error]:.4f}" if error else "")


def report(problem: Problem, results: dict[str, list[dict[str, Any]]]) -> None:
    """Prints the table of a problem, a line for every base."""
    several = max(map(len, results.values())) > 1
    errors = "± standard deviations over seeds" if several else "± standard errors"
    count = len(problem.names)
    what = ", ".join(problem.names) if count < 10 else f"{count} constraints"
    print(
        f"\n{problem.name} ({what}): entropy {problem.truth.entropy:.4f} nats; {errors}\n"
        f"{'':>12}{'gap':>18}{'KL':>18}{'violation / error':>18}{'/ deviation':>18}"
        f"{'multipliers':>18}{'modes':>14}{'seconds':>9}"
    )
    for base, entries in results.items():
        print_row(base, entries)
        if "draws" in entries[0]:
            print_row("its draws", [entry["draws"] for entry in entries])


def print_row(label: str, entries: list[dict[str, Any]]) -> None:
    columns = [
        cell(entries, "gap", "gap_error"),
        cell(entries, "kl", "kl_error"),
        *(cell(entries, k) for k in ("violation_errors", "violations", "multiplier_errors")),
    ]
    modes = seconds = note = ""
    if "modes" in entries[0]:
        low, high = min(min(e["modes"]) for e in entries), max(max(e["modes"]) for e in entries)
        modes = f"{low:.2f}-{high:.2f}"
    if "seconds" in entries[0]:
        seconds = f"{statistics.mean(entry['seconds'] for entry in entries):.0f}"
        broken = [entry["outcome"] for entry in entries if not entry["feasible"]]
        note = f"  {len(broken)} of {len(entries)} rejected: {', '.join(broken)}" if broken else ""
    print(
        f"{label:>12}{''.join(f'{column:>18}' for column in columns)}{modes:>14}{seconds:>9}"
        f"{note}",
        flush=True,
    )


# ---- checks -------------------------------------------------------------------------------------


def answer_scores(problem: Problem, num: int) -> dict[str, Any]:
    """Scores of draws of the answer."""
    x, multipliers = problem.truth.draw(num, 0), problem.truth.multipliers
    log_prob = -problem.statistics(x) @ multipliers - problem.truth.log_normalizer
    return score(problem, x, log_prob, multipliers)


def check_divergence() -> bool:
    """Whether the scores of a law that is not the answer are wrong."""
    problem, law = PROBLEMS["exponential"](), Gamma(torch.tensor(2.0), torch.tensor(2.0))
    torch.manual_seed(0)
    x = law.sample((DRAWS, 1))
    scores = score(problem, x, law.log_prob(x).squeeze(-1), torch.ones(1))
    # Of the same mean, so that the gap and the divergence are the same.
    expected = problem.truth.entropy - float(law.entropy())
    good = [abs(scores[key] - expected) < 5 * scores[f"{key}_error"] for key in ("gap", "kl")]
    print(
        f"\na gamma law in place of the exponential: KL {scores['kl']:.4f} ± "
        f"{scores['kl_error']:.4f}, in closed form {expected:.4f}{'' if all(good) else ' FAILED'}"
    )
    return not all(good)


def check() -> None:
    """Compares the answers with those of other routes, and with their own draws."""
    failed = 0
    print(f"{'':>45}{'here':>16}{'there':>16}{'difference':>12}{'allowed':>10}")
    for what, here, there, allowed in comparisons():
        good = abs(here - there) <= allowed
        failed += not good
        print(
            f"{what:>45}{here:>16.9f}{there:>16.9f}{abs(here - there):>12.1e}{allowed:>10.1e}"
            f"{'' if good else '  FAILED'}"
        )
    for make in PROBLEMS.values():
        problem = make()
        num = 20_000 if problem.name == "oscillation" else DRAWS  # drawn by rejection
        start = time.perf_counter()
        scores = answer_scores(problem, num)
        seconds = {"seconds": time.perf_counter() - start, "feasible": True, "outcome": ""}
        report(problem, {"the answer": [scores | seconds]})
        # Five standard errors; of modes also for the most and the least frequent of many.
        bounds = {
            "gap": (abs(scores["gap"]), 5 * scores["gap_error"]),
            "KL": (abs(scores["kl"]), 1e-9),
            "violations": (largest(scores["violation_errors"]), 5.0),
            "modes": (
                largest([mode - 1 for mode in scores.get("modes", [1.0])]),
                5 * math.sqrt(problem.num_modes / num),
            ),
        }
        for name, (value, allowed) in bounds.items():
            if not value <= allowed:
                failed += 1
                print(f"FAILED: {name} of {problem.name}, {value:.3g} is more than {allowed:.3g}")
    failed += check_divergence()
    if failed:
        raise SystemExit(f"{failed} failed.")
    print("\nAll as expected.")


# ---- all ----------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few steps, one seed: ten minutes")
    parser.add_argument("--problems", nargs="+", choices=list(PROBLEMS), default=list(PROBLEMS))
    parser.add_argument("--bases", nargs="+", choices=BASES, default=list(BASES))
    parser.add_argument("--seeds", nargs="+", type=int, help="by default 0 1 2, or 0 if quick")
    parser.add_argument("--report", action="store_true", help="only print and draw what there is")
    parser.add_argument("--check", action="store_true", help="only check the answers")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.check:
        check()
        return
    setting = SETTINGS["quick" if arguments.quick else "default"]
    store = Store(OUT / f"maxent_{setting.name}")
    seeds = setting.seeds if arguments.seeds is None else tuple(arguments.seeds)
    start = time.perf_counter()
    problems = [PROBLEMS[name]() for name in arguments.problems]
    if not arguments.report:
        for problem in problems:
            for base in arguments.bases:
                for seed in seeds:
                    numbers, flow = solve(problem, base, seed, setting)
                    name = f"{problem.name}_{base}_{seed}"
                    store.save(name, numbers, None)
                    # With its settings, so that it can be drawn when defaults have changed.
                    save(flow, store.folder / f"{name}.safetensors")
                    print(
                        f"  {problem.name}, {base}, seed {seed}: KL {numbers['kl']:.4f}, "
                        f"{numbers['seconds']:.0f} s",
                        flush=True,
                    )
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    flows: dict[tuple[str, str], Flow] = {}
    for problem in problems:
        for base in BASES:
            stem = f"{problem.name}_{base}_"
            names = sorted(path.stem for path in store.folder.glob(f"{stem}*.json"))
            if not names:
                continue
            numbers_of = store.numbers(names)
            found[problem.name, base] = list(numbers_of.values())
            median = sorted(names, key=lambda name: numbers_of[name]["kl"])[len(names) // 2]
            flows[problem.name, base] = own_law(load(store.folder / f"{median}.safetensors"))
        results = {b: found[problem.name, b] for b in BASES if (problem.name, b) in found}
        if results:
            report(problem, results)
    print(f"\n{time.perf_counter() - start:.0f} s in all")
    prefix = "maxent" if setting.name == "default" else f"maxent_{setting.name}"
    draw_figures({problem.name: problem for problem in problems}, flows, found, OUT / prefix)


if __name__ == "__main__":
    main()
