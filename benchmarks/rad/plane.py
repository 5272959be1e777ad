"""RAD against bijective flows: the six problems in the plane of Dinh et al. (2019).

Trains models of every kind for every problem, and several seeds of each, all models of a kind in
one pass (planar_flows.py), and prints

- numbers of parameters, and held-out log-likelihoods in nats a point, mean and standard deviation
  over seeds, and the median, beside that of the law itself;
- how far draws go: the largest norm of 100,000 of them over the largest one of the data, in the
  worst seed; and, for the normals on a grid and on a ring, the share of draws farther than four
  standard deviations from every centre: bridges between modes;
- milliseconds for the log-density of 500 points with its gradient in all parameters, by one model
  alone.

Figures under out/ (figures.py), of the seed that is the median in likelihood (rad_quick_* and
rad_paper_* with those options):

- rad_samples.png (the paper's Fig. 7), rad_gaussianization.png (Figs. 8 and 18), rad_density.png;
- rad_folding_<problem>.png (Figs. 9 to 12 and 14 to 17): layer by layer.

Numbers are added to out/rad.json, parameters to out/rad_<size>.pt: `--figures` draws from the
latter, without training. `--compile` trains about twice as fast after a minute of compilation, and
needs a C++ compiler.

    python -m benchmarks.rad.plane [--quick | --paper] [--models NAME ...] [--compile] [--figures]
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor

from benchmarks.rad.figures import draw_densities, draw_folding, draw_gaussianization, draw_samples
from benchmarks.rad.planar_flows import (
    BATCH,
    FAMILIES,
    PROBLEMS,
    Ensemble,
    LogProb,
    draw_all,
    num_parameters,
)

OUT = Path("out")
POINTS = 10_000
DRAWS = 100_000
CLUSTERS = ("grid", "ring")
FAR = 4.0  # standard deviations
PEER, BARE_PEER = "affine (Pyro)", "without a Flow"  # what times are compared with


class Setting(NamedTuple):
    """How long to train, and how many models."""

    name: str
    steps: int
    seeds: int
    rounds: int  # of timing
    models: tuple[str, ...] = tuple(FAMILIES)


SETTINGS = {
    "quick": Setting("quick", 300, 1, 5, ("RAD", "affine (zuko)", "spline")),
    "default": Setting("default", 6_000, 5, 21),
    "paper": Setting("paper", 50_000, 3, 21),
}


# ---- scores -------------------------------------------------------------------------------------


def share_far(name: str, x: Tensor) -> float:
    """Share of points farther than four standard deviations from every centre."""
    problem = PROBLEMS[name]
    centers = problem.centers(1000, seed=0).unique(dim=0)
    near = [torch.cdist(part, centers).amin(-1) for part in x.split(10_000)]
    return float((torch.cat(near) > FAR * problem.scale).float().mean())


def reach(draws: Tensor, data: Tensor) -> float:
    return float(draws.norm(dim=-1).max() / data.norm(dim=-1).max())


def score(ensemble: Ensemble, data: Tensor, held_out: Tensor) -> dict[str, Any]:
    """Likelihoods, reach and bridges, each with a list over seeds for every problem."""
    nats = ensemble.nats(held_out)[0]
    scores: dict[str, Any] = {"nats": {}, "reach": {}, "far": {}}
    for i, name in enumerate(PROBLEMS):
        scores["nats"][name] = nats[:, i].tolist()
        for seed in range(len(nats)):
            torch.manual_seed(1000 + seed)
            draws = ensemble.model(seed, i).sample((DRAWS,))
            scores["reach"].setdefault(name, []).append(reach(draws, data[i]))
            if name in CLUSTERS:
                scores["far"].setdefault(name, []).append(share_far(name, draws))
    return scores


def score_laws(data: Tensor, held_out: Tensor) -> dict[str, Any]:
    """The same of the laws themselves."""
    scores: dict[str, Any] = {"nats": {}, "reach": {}, "far": {}}
    for i, (name, problem) in enumerate(PROBLEMS.items()):
        draws = problem.draw(DRAWS, seed=3)
        scores["nats"][name] = [problem.nats(held_out[i])]
        scores["reach"][name] = [reach(draws, data[i])]
        if name in CLUSTERS:
            scores["far"][name] = [share_far(name, draws)]
    return scores


def spread(values: list[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}"


def report(results: dict[str, Any]) -> None:
    """Prints the tables of what was trained."""
    head = f"{'':>16} {'parameters':>10}" + "".join(f"{name:>20}" for name in PROBLEMS)

    def table(title: str, cell: Callable[[dict[str, Any], str], str]) -> None:
        print(f"\n{title}\n{head}")
        for name, scores in results.items():
            count = num_parameters(FAMILIES[name].make()) if name in FAMILIES else ""
            cells = "".join(f"{cell(scores, problem):>20}" for problem in PROBLEMS)
            print(f"{name:>16} {count:>10}{cells}")

    table(
        "held-out nats, mean and standard deviation over seeds", lambda s, p: spread(s["nats"][p])
    )
    table(
        "held-out nats of the median seed", lambda s, p: f"{statistics.median(s['nats'][p]):.3f}"
    )
    table(
        f"largest norm of {DRAWS:,} draws over the largest one of the data, worst seed",
        lambda s, p: f"{max(s['reach'][p]):.2f}",
    )
    table(
        f"share of draws farther than {FAR:g} standard deviations from every centre",
        lambda s, p: f"{statistics.mean(s['far'][p]):.2%}" if p in CLUSTERS else "",
    )


# ---- speed --------------------------------------------------------------------------------------


def measure_speed(rounds: int, data: Tensor, compiled: bool) -> dict[str, float]:
    """Milliseconds for a value with its gradient; rounds take turns, medians over them."""
    x = data[0, :BATCH]
    jobs: dict[str, tuple[Any, list[Any]]] = {}
    for name, family in FAMILIES.items():
        torch.manual_seed(0)
        law = family.make()
        law.initialize(data[0])
        jobs[name] = law.log_prob, list(law.parameters())
        if name == "RAD" and compiled:
            jobs["RAD, compiled"] = torch.compile(LogProb(law)), list(law.parameters())
        if name == PEER:
            # As Pyro's users have it: without pyromix.Flow, standardisation and checks of values.
            plain = dist.TransformedDistribution(law.base_dist, list(law.transforms)[:-1])
            jobs[BARE_PEER] = partial(score_afresh, plain), list(law.parameters())
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(rounds + 1):
        for name, (log_prob, parameters) in jobs.items():
            start = time.perf_counter()
            for _ in range(10):
                torch.autograd.grad(log_prob(x).mean(), parameters)
            times[name].append(1e2 * (time.perf_counter() - start))
    return {name: statistics.median(values[1:]) for name, values in times.items()}  # first: warm


def score_afresh(law: dist.TransformedDistribution, x: Tensor) -> Tensor:
    """The log-density of another tensor every time: Pyro's caches know one that comes again."""
    return law.log_prob(x.clone())


def report_speed(speed: dict[str, float]) -> None:
    print(f"\nlog-density of {BATCH} points with its gradient in all parameters")
    for name, value in speed.items():
        ratios = "".join(f"{value / speed[peer]:>8.2f} x {peer}" for peer in (PEER, BARE_PEER))
        print(f"{name:>16} {value:>8.2f} ms {ratios}")


# ---- all ----------------------------------------------------------------------------------------


def load_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.exists() else {}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        "--quick", action="store_true", help="300 steps, one seed, three models: a minute"
    )
    size.add_argument("--paper", action="store_true", help="the paper's 50,000 steps: hours")
    parser.add_argument("--models", nargs="+", choices=list(FAMILIES), help="by default all")
    parser.add_argument("--compile", action="store_true", help="compile training")
    parser.add_argument("--figures", action="store_true", help="only draw what was trained")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    setting = SETTINGS["quick" if arguments.quick else "paper" if arguments.paper else "default"]
    OUT.mkdir(exist_ok=True)
    numbers, weights = OUT / "rad.json", OUT / f"rad_{setting.name}.pt"
    data, held_out = draw_all(POINTS, seed=0), draw_all(POINTS, seed=1)
    trained: dict[str, Any] = torch.load(weights) if weights.exists() else {}

    if not arguments.figures:
        for name in arguments.models or setting.models:
            family = FAMILIES[name]
            ensemble = Ensemble(family.make, data, setting.seeds)
            ensemble.train(setting.steps, (family.lr,), name, arguments.compile)
            trained[name] = ensemble.parameters
            torch.save(trained, weights)
            scores = {"parameters": num_parameters(family.make())}
            everything = load_json(numbers)
            everything.setdefault(setting.name, {"steps": setting.steps})[name] = scores | score(
                ensemble, data, held_out
            )
            numbers.write_text(json.dumps(everything, indent=1))
        everything = load_json(numbers)
        everything["laws"] = score_laws(data, held_out)
        speed = measure_speed(setting.rounds, data, arguments.compile)
        everything[setting.name]["speed"] = speed
        numbers.write_text(json.dumps(everything, indent=1))

    everything = load_json(numbers)
    scored = everything.get(setting.name, {})
    results = {name: scored[name] for name in FAMILIES if name in scored}
    print(f"\n{setting.steps} steps, {setting.seeds} seeds")
    report(results | {"the law itself": everything.get("laws") or score_laws(data, held_out)})
    if "speed" in scored:
        report_speed(scored["speed"])

    ensembles = {
        name: Ensemble(FAMILIES[name].make, data, setting.seeds).load(parameters)
        for name, parameters in trained.items()
    }
    models = {}
    for name, ensemble in ensembles.items():
        for i, problem in enumerate(PROBLEMS):
            nats = results[name]["nats"][problem]
            median = sorted(range(len(nats)), key=nats.__getitem__)[len(nats) // 2]
            models[name, problem] = ensemble.model(median, i)
    torch.manual_seed(0)
    points = dict(zip(PROBLEMS, held_out, strict=True))
    prefix = "rad" if setting.name == "default" else f"rad_{setting.name}"
    draw_samples(models, points, OUT / f"{prefix}_samples.png")
    draw_gaussianization(models, points, OUT / f"{prefix}_gaussianization.png")
    draw_densities(models, points, OUT / f"{prefix}_density.png")
    for problem, x in points.items():
        draw_folding(models, problem, x, OUT / f"{prefix}_folding_{problem.replace(' ', '_')}.png")


if __name__ == "__main__":
    main()
