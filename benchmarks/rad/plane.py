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

Figures out/rad/plane_<size>_*.png (figures.py), of the seed that is the median in likelihood:

- samples.png (the paper's Fig. 7), gaussianization.png (Figs. 8 and 18), density.png;
- folding_<problem>.png (Figs. 9 to 12 and 14 to 17): layer by layer.

What was trained is kept in out/rad/plane_<size>/: `--figures` draws from there, without training.
`--compile` trains about twice as fast after a minute of compilation, and needs a C++ compiler.

    python -m benchmarks.rad.plane [--quick | --paper] [--models NAME ...] [--compile] [--figures]
"""

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor

from benchmarks.common import cli
from benchmarks.common.store import OUT, Numbers, Store, beside
from benchmarks.common.timing import Job, block_medians
from benchmarks.common.training import in_chunks, num_parameters
from benchmarks.rad.figures import (
    Models,
    draw_densities,
    draw_folding,
    draw_gaussianization,
    draw_samples,
)
from benchmarks.rad.planar_flows import BATCH, FAMILIES, PROBLEMS, Ensemble, LogProb, draw_all

POINTS = 10_000
DRAWS = 100_000
CLUSTERS = ("grid", "ring")
FAR = 4.0  # standard deviations
PEER, BARE_PEER = "affine (Pyro)", "without a Flow"  # what times are compared with


class Setting(NamedTuple):
    """How long to train, and how many models."""

    steps: int
    seeds: int
    rounds: int  # of timing
    models: tuple[str, ...] = tuple(FAMILIES)


SETTINGS = {
    "quick": Setting(300, 1, 5, ("RAD", "affine (zuko)", "spline")),
    "default": Setting(6_000, 5, 21),
    "paper": Setting(50_000, 3, 21),
}


# ---- scores -------------------------------------------------------------------------------------


def share_far(name: str, x: Tensor) -> float:
    """Share of points farther than four standard deviations from every centre."""
    problem = PROBLEMS[name]
    centers = problem.centers(1000, seed=0).unique(dim=0)
    near = in_chunks(lambda part: torch.cdist(part, centers).amin(-1), x, 10_000)
    return float((near > FAR * problem.scale).float().mean())


def reach(draws: Tensor, data: Tensor) -> float:
    return float(draws.norm(dim=-1).max() / data.norm(dim=-1).max())


def score(ensemble: Ensemble, data: Tensor, held_out: Tensor) -> dict[str, Any]:
    """Likelihoods, reach and bridges, each with a list over seeds for every problem."""
    nats = ensemble.nats(held_out)
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
    jobs: dict[str, Job] = {}

    def add(name: str, log_prob: Any, law: Any) -> None:
        parameters = list(law.parameters())
        jobs[name] = lambda: torch.autograd.grad(log_prob(x).mean(), parameters)

    for name, family in FAMILIES.items():
        torch.manual_seed(0)
        law = family.make()
        law.initialize(data[0])
        add(name, law.log_prob, law)
        if name == "RAD" and compiled:
            add("RAD, compiled", torch.compile(LogProb(law)), law)
        if name == PEER:
            # As Pyro's users have it: without pyromix.Flow, standardisation and checks of values.
            plain = dist.TransformedDistribution(law.base_dist, list(law.transforms)[:-1])
            add(BARE_PEER, partial(score_afresh, plain), law)
    medians = block_medians(jobs, rounds, block=10)
    return {name: 1e3 * median for name, median in medians.items()}


def score_afresh(law: dist.TransformedDistribution, x: Tensor) -> Tensor:
    """The log-density of another tensor every time: Pyro's caches know one that comes again."""
    return law.log_prob(x.clone())


def report_speed(speed: dict[str, float]) -> None:
    print(f"\nlog-density of {BATCH} points with its gradient in all parameters")
    for name, value in speed.items():
        ratios = "".join(f"{value / speed[peer]:>8.2f} x {peer}" for peer in (PEER, BARE_PEER))
        print(f"{name:>16} {value:>8.2f} ms {ratios}")


# ---- all ----------------------------------------------------------------------------------------


def train_all(
    names: Sequence[str],
    setting: Setting,
    store: Store,
    data: Tensor,
    held_out: Tensor,
    compiled: bool,
) -> None:
    """Trains models of several kinds, and keeps them with their scores."""
    for name in names:
        family = FAMILIES[name]
        ensemble = Ensemble(family.make, data, setting.seeds)
        ensemble.train(setting.steps, family.lr, name, compiled)
        numbers = {"parameters": num_parameters(family.make())}
        store.save(name, numbers | score(ensemble, data, held_out), ensemble.parameters)


def median_models(results: dict[str, Numbers], store: Store, data: Tensor, seeds: int) -> Models:
    """The model of every kind and problem whose seed is the median in likelihood."""
    models = {}
    for name, numbers in results.items():
        ensemble = Ensemble(FAMILIES[name].make, data, seeds).load(store.weights(name))
        for i, problem in enumerate(PROBLEMS):
            nats = numbers["nats"][problem]
            median = sorted(range(len(nats)), key=nats.__getitem__)[len(nats) // 2]
            models[name, problem] = ensemble.model(median, i)
    return models


def main() -> None:
    parser = cli.make_parser(
        __doc__,
        quick="300 steps, one seed, three models: a minute",
        paper="the paper's 50,000 steps: hours",
    )
    parser.add_argument("--models", nargs="+", choices=list(FAMILIES), help="by default all")
    parser.add_argument("--compile", action="store_true", help="compile training")
    parser.add_argument("--figures", action="store_true", help="only draw what was trained")
    arguments = cli.parse(parser)
    setting = SETTINGS[arguments.size]
    prefix = OUT / "rad" / f"plane_{arguments.size}"
    store = Store(prefix)
    data, held_out = draw_all(POINTS, seed=0), draw_all(POINTS, seed=1)
    if not arguments.figures:
        chosen = arguments.models or setting.models
        train_all(chosen, setting, store, data, held_out, arguments.compile)
        store.save("speed", measure_speed(setting.rounds, data, arguments.compile))

    results = store.numbers(FAMILIES)
    print(f"\n{setting.steps} steps, {setting.seeds} seeds")
    laws = store.once("laws", lambda: score_laws(data, held_out))
    report(results | {"the law itself": laws})
    if store.has("speed"):
        report_speed(store.numbers(["speed"])["speed"])

    models = median_models(results, store, data, setting.seeds)
    torch.manual_seed(0)
    points = dict(zip(PROBLEMS, held_out, strict=True))
    draw_samples(models, points, beside(prefix, "samples.png"))
    draw_gaussianization(models, points, beside(prefix, "gaussianization.png"))
    draw_densities(models, points, beside(prefix, "density.png"))
    for problem, x in points.items():
        path = beside(prefix, f"folding_{problem.replace(' ', '_')}.png")
        draw_folding(models, problem, x, path)


if __name__ == "__main__":
    main()
