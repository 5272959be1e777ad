"""The answers by other routes, and scores of draws of the answers themselves."""

import math
import time
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch.distributions import Dirichlet, Gamma, MultivariateNormal

from benchmarks.maxent.integrals import moments
from benchmarks.maxent.oscillation import (
    OSCILLATION,
    SIDE,
    Oscillation,
    oscillation_statistics,
    real_share,
    solve_oscillation,
)
from benchmarks.maxent.problem import Problem, Truth
from benchmarks.maxent.problems import (
    COVARIANCE,
    HIGHEST,
    MEAN,
    PROBLEMS,
    STRIKES,
    WELL,
    WELL_RANGE,
)
from benchmarks.maxent.scores import DRAWS, largest, report, score


def comparisons() -> Iterator[tuple[str, float, float, float]]:
    """What is computed here, by another route or to fewer digits, and how far they may differ."""
    by_name = {name: make() for name, make in PROBLEMS.items()}
    truths = {name: problem.truth for name, problem in by_name.items()}

    alpha = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    laws = {"gaussian": MultivariateNormal(MEAN, COVARIANCE), "dirichlet": Dirichlet(alpha)}
    for name, law in laws.items():
        truth = truths[name]
        yield f"{name}: entropy", truth.entropy, float(law.entropy()), 1e-9
        x = truth.draw(1000, 0)
        scores = -by_name[name].statistics(x) @ truth.multipliers - truth.log_normalizer
        off = float((scores - law.log_prob(x)).abs().max())
        yield f"{name}: log-density", off, 0.0, 1e-9

    truth, problem = truths["dirichlet"], by_name["dirichlet"]
    yield "dirichlet: entropy, known", truth.entropy, -1.244345, 1e-6
    for name, t, known in zip(
        problem.names, problem.targets, (-2.283333, -1.283333, -0.783333), strict=True
    ):
        yield f"dirichlet: E {name}, known", float(t), known, 1e-6

    problem = by_name["well"]
    yield "well: entropy, known", problem.truth.entropy, 0.872318, 1e-6
    for name, t, known in zip(
        problem.names, problem.targets, (0.0, 1.835342, 3.920683), strict=True
    ):
        yield f"well: E {name}, known", float(t), known, 1e-6
    # The trapezoidal rule converges exponentially for what vanishes with all its derivatives.
    x = torch.linspace(*WELL_RANGE, 2001, dtype=torch.float64).unsqueeze(-1)
    steps = torch.full((len(x),), float(x[1] - x[0]), dtype=torch.float64)
    log_normalizer, mean, _ = moments(problem.statistics(x), steps.log(), WELL)
    yield "well: log Z, trapezoids", problem.truth.log_normalizer, log_normalizer, 1e-9
    yield "well: E x^4, trapezoids", float(problem.targets[2]), float(mean[2]), 1e-9
    # A derivative with mean zero: E[x g'(x)] = E[-1], with log q = g.
    yield "well: E 4x^4 - 8x^2", float(4 * mean[2] - 8 * mean[1]), 1.0, 1e-9
    for dim in (4, 8):
        entropy = dim * problem.truth.entropy
        yield f"wells{dim}: entropy", truths[f"wells{dim}"].entropy, entropy, 1e-9

    truth = truths["prices"]
    yield "prices: entropy, known", truth.entropy, 4.6201, 5e-5
    known_slopes = -0.09082, 0.09969, 0.01305, 0.03041
    for name, value, known in zip(
        by_name["prices"].names, truth.multipliers, known_slopes, strict=True
    ):
        # Prices of four digits leave the fifth one of these open.
        yield f"prices: multiplier of the {name}, known", float(value), known, 1e-5
    mass, mean_price = exponential_pieces(truth)
    yield "prices: mass, closed form", mass, 1.0, 1e-9
    yield "prices: forward, closed form", mean_price, 100.0, 1e-7

    answer = solve_oscillation()
    truth = truths["oscillation"]
    yield "oscillation: entropy, known", truth.entropy, 7.04, 5e-3
    yield "oscillation: sd(a11), known", answer.spread[0], 3.29, 5e-3
    yield "oscillation: sd(a12), known", answer.spread[1], 7.41, 5e-3
    yield "oscillation: mass left out", real_share(answer), 0.0, 1e-9
    yield from oscillation_by_points(answer)


def exponential_pieces(truth: Truth) -> tuple[float, float]:
    """Mass and mean of the law of prices, whose density is exponential between strikes."""
    ends = [0.0, *STRIKES, HIGHEST]
    mass = mean = height = 0.0
    slope = -float(truth.multipliers[0])
    height = -truth.log_normalizer  # log-density at the left end
    for i, (a, b) in enumerate(pairwise(ends)):
        if i:
            slope -= float(truth.multipliers[i])
        width = b - a
        area = math.exp(height) * math.expm1(slope * width) / slope
        right = math.exp(height + slope * width)
        mass += area
        mean += (b * right - a * math.exp(height) - area) / slope
        height += slope * width
    return mass, mean


def oscillation_by_points(answer: Oscillation) -> Iterator[tuple[str, float, float, float]]:
    """The same from a million points of the box: five standard errors over 16 scramblings."""
    expected = torch.tensor([*OSCILLATION, answer.spread[0] ** 2, answer.spread[1] ** 2])
    rows = []
    for seed in range(16):
        sobol = torch.quasirandom.SobolEngine(4, scramble=True, seed=seed)
        x = SIDE * (2 * sobol.draw(2**16, dtype=torch.float64) - 1)
        t = oscillation_statistics(x)
        weights = (-t @ answer.multipliers - answer.log_normalizer).exp() * (2 * SIDE) ** 4
        # Without the error that all have in common, that of the mass.
        changes = torch.cat([t, x[:, :2].square()], -1) - expected
        values = torch.cat([torch.ones(len(x), 1), changes], -1)
        rows.append((weights.unsqueeze(-1) * values).mean(0))
    table = torch.stack(rows)
    means, errors = table.mean(0), (5 * table.std(0) / len(rows) ** 0.5).tolist()
    found = [float(means[0]), *(expected + means[1:]).tolist()]
    what = "mass", "E re", "E re^2", "E im", "E (im - 2 pi)^2", "E a11^2", "E a12^2"
    for name, value, mean, error in zip(
        what, [1.0, *expected.tolist()], found, errors, strict=True
    ):
        yield f"oscillation: {name}, by points", value, mean, error


# ---- draws of the answers -----------------------------------------------------------------------


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
