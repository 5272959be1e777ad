"""Posteriors from 10,000 simulations against reference draws, and against other estimators.

    python -m benchmarks.simulations.compare [--quick] [--tasks NAME ...] [--observations N]

Needs the reference draws of the package sbibm (pip install --no-deps sbibm). The measure is the
accuracy of a classifier that tells draws from those of the reference: a half is perfect. Results
are kept in out/, and those that are there are not computed again.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from pyromix.simulations import SimulationModel

from ..common.cli import make_parser, parse
from .measures import c2st
from .rivals import mixture_posterior, spline_posterior
from .tasks import TASKS, Task

OUT = Path("out/simulations")
METHODS = ("ours", "mixture", "spline")
NUM_DRAWS = 10_000
PICTURED = ("two_moons", "slcp")


def estimator(method: str, task: Task, size: str, count: int) -> tuple[Callable, str]:
    """Draws (n, D) given an observation and n, and a word about how they are made."""
    torch.manual_seed(0)
    prior = task.prior()
    theta = prior.sample((count,))
    x = task.simulator(theta)
    steps = 50 if size == "quick" else 2000
    if method == "ours":
        model = SimulationModel(prior).fit(theta, x, steps=steps, seed=0, progress_bar=False)
        scores = ", ".join(f"{name} {score:.2f}" for name, score in model.scores.items())
        return lambda seen, n: model.posterior(seen).sample((n,)), f"{model.route} ({scores})"
    if method == "mixture":
        return mixture_posterior(prior, theta, x, 0), ""
    return spline_posterior(prior, theta, x, 0, 50 if size == "quick" else 5000), ""


def measure(
    method: str, task: Task, observations: list[int], size: str, count: int, folds: int
) -> dict[str, object]:
    """Seconds of a processor, and the C2ST of every observation."""
    start = time.process_time()
    sample, word = estimator(method, task, size, count)
    seconds = time.process_time() - start
    draws = 500 if size == "quick" else NUM_DRAWS
    scores: dict[str, float] = {}
    asking = 0.0
    for number in observations:
        torch.manual_seed(number)
        start = time.process_time()
        found = sample(task.observation(number), draws)
        asking += time.process_time() - start
        if number == observations[0] and task.name in PICTURED and size != "quick":
            save_draws(method, task, number, found)
        scores[str(number)] = c2st(task.reference(number)[:draws], found, folds)
        print(f"  {task.name} {method} {number}: {scores[str(number)]:.3f}", flush=True)
    return {
        "train_s": seconds,
        "ask_s": asking / len(observations),
        "route": word,
        "c2st": scores,
    }


def save_draws(method: str, task: Task, number: int, draws: Tensor) -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    torch.save((number, draws[:2000]), OUT / f"{task.name}_{method}.pt")


def draw_picture() -> None:
    """Draws of the posteriors of two tasks beside those of the reference."""
    found = [m for m in METHODS if all((OUT / f"{name}_{m}.pt").exists() for name in PICTURED)]
    if "ours" not in found:
        return
    columns = ("reference", *found)
    figure, axes = plt.subplots(
        len(PICTURED),
        len(columns),
        figsize=(2.4 * len(columns), 2.4 * len(PICTURED)),
        squeeze=False,
    )
    for row, name in zip(axes, PICTURED, strict=True):
        pair = (0, 1) if name == "two_moons" else (2, 3)
        limits = None
        for axis, column in zip(row, columns, strict=True):
            path = OUT / f"{name}_{'ours' if column == 'reference' else column}.pt"
            number, draws = torch.load(path, weights_only=True)
            if column == "reference":
                draws = TASKS[name].reference(number)[:2000]
                low, high = draws.amin(0), draws.amax(0)
                room = 0.15 * (high - low)
                limits = (low - room, high + room)
            axis.scatter(*draws[:, pair].T, s=1, alpha=0.4, linewidths=0)
            if limits is not None:
                axis.set_xlim(limits[0][pair[0]], limits[1][pair[0]])
                axis.set_ylim(limits[0][pair[1]], limits[1][pair[1]])
            axis.set_xticks([])
            axis.set_yticks([])
            shown = {"ours": "SimulationModel"}.get(column, column)
            axis.set_title(f"{name.replace('_', ' ')}: {shown}", fontsize=9)
    figure.tight_layout()
    figure.savefig(OUT / "posteriors.png", dpi=110)


def report(results: dict[str, dict]) -> None:
    """Prints a table of means over observations."""
    print(f"\n{'task':26}{'NPE':>7}" + "".join(f"{m:>10}{'s':>6}" for m in METHODS) + "  route")
    for name, task in TASKS.items():
        line = f"{name:26}{'' if task.npe is None else format(task.npe, '.3f'):>7}"
        word = ""
        for method in METHODS:
            found = results.get(f"{name}/{method}")
            if found is None:
                line += " " * 16
                continue
            scores = list(found["c2st"].values())
            line += f"{sum(scores) / len(scores):10.3f}{found['train_s']:6.0f}"
            word = found["route"] if method == "ours" else word
        print(f"{line}  {word}")


def main() -> None:
    parser = make_parser(__doc__, quick="few simulations, steps and draws: to see that it runs")
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--observations", type=int, default=3, help="of each task, at most 10")
    parser.add_argument(
        "--folds", type=int, default=5, help="judged, of five: fewer take less time"
    )
    parser.add_argument("--report", action="store_true", help="only print and draw what is there")
    arguments = parse(parser)
    quick = arguments.size == "quick"
    path = OUT / f"results{'_quick' if quick else ''}.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    observations = list(range(1, 1 + (1 if quick else arguments.observations)))
    for method in () if arguments.report else arguments.methods:
        for name in arguments.tasks:
            key = f"{name}/{method}"
            if key in results and set(map(str, observations)) <= set(results[key]["c2st"]):
                continue
            count = 500 if quick else 10_000
            results[key] = measure(
                method, TASKS[name], observations, arguments.size, count, arguments.folds
            )
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(results, indent=1))
    report(results)
    draw_picture()


if __name__ == "__main__":
    main()
