"""Scores of laws by their draws, and the tables of them."""

import statistics
from typing import Any

from torch import Tensor

from benchmarks.maxent.problem import Problem

DRAWS = 100_000


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
