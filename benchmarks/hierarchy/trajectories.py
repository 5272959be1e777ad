"""Trajectories of a body that falls and jumps, through waypoints and between obstacles.

Data: `pyromix.datasets.jump_trajectories`, 32 steps of height and velocity; 20,000 to train on,
1,000 held out. All models have a smallest standard deviation of 0.001: heights follow from
velocities without noise, so that densities are bounded by that alone.

    hierarchy   windows of 7 steps, 2 apart, of triangular maps: each continues what those before
                it drew; over them pairs of windows, and a top
    flat        a residual mixture of triangular maps over all 64 numbers, with about as many
                parameters
    mixture     full covariances, as many parameters, by expectation maximisation

Printed: parameters; minutes of training; held-out nats a trajectory; how far draws are from the
rule height[t + 1] = height[t] + velocity[t + 1], as mean and as root of the mean square; and that
of a question: heights 0.3, 0.7 and 0.5 at steps 0, 16 and 31, at least 0.5 at steps 7 to 11, at
most 0.5 at steps 20 to 24. Of its draws: seconds, effective sample size, how far from the rule,
and how many break a constraint.

Writes out/hierarchy/trajectories_<size>_draws.png and _question.png, and keeps models in
out/hierarchy/trajectories_<size>/.

    python -m benchmarks.hierarchy.trajectories [--quick | --paper] [--models NAME ...] [--report]
"""

import math
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import torch
from torch import Generator, Tensor

from benchmarks.common import cli
from benchmarks.common.figures import save
from benchmarks.common.store import OUT, Numbers, Store, beside
from benchmarks.common.summary import standard_error
from benchmarks.common.training import closest_size, in_chunks, num_parameters
from pyromix import DRMM, Box, GaussianMixture, HierarchicalDRMM, Level, Top, fit, fit_em
from pyromix.datasets import jump_trajectories

STEPS, FLOOR = 32, 1e-3
TRAIN, TEST = 20_000, 1000
WAYPOINTS = {0: 0.3, 16: 0.7, 31: 0.5}
ABOVE, BELOW = slice(7, 12), slice(20, 25)
OBSTACLE = 0.5
SHOWN = 10  # of 256 draws, the likeliest


class Setting(NamedTuple):
    """How much is trained and asked."""

    windows: tuple[int, int]
    pairs: tuple[int, int]
    top: tuple[int, int]
    steps: int
    particles: int


SETTINGS = {
    "quick": Setting((2, 16), (2, 16), (2, 16), 400, 64),
    "default": Setting((2, 64), (2, 64), (2, 64), 3600, 512),
    "paper": Setting((2, 256), (3, 256), (4, 256), 20_000, 512),
}


def make_hierarchy(setting: Setting) -> HierarchicalDRMM:
    levels = [
        Level(7, 2, *setting.windows, "triangular"),
        Level(2, None, *setting.pairs),
        Top(*setting.top),
    ]
    return HierarchicalDRMM((2, STEPS), levels, scale_floor=FLOOR)


def train_hierarchy(x: Tensor, setting: Setting) -> Any:
    model = make_hierarchy(setting)
    fit(model, x, steps=setting.steps, batch_size=64, gradient_clip=50.0, seed=0,
        progress_bar=False)  # fmt: skip
    return model


def train_flat(x: Tensor, setting: Setting) -> Any:
    size = num_parameters(make_hierarchy(setting))

    def make(count: int) -> DRMM:
        return DRMM(2 * STEPS, 2, count, maps="triangular", scale_floor=FLOOR)

    model = make(closest_size(lambda count: num_parameters(make(count)), size))
    fit(model, flat(x), steps=4 * setting.steps, batch_size=64, lr=0.002, gradient_clip=50.0,
        seed=0, progress_bar=False)  # fmt: skip
    return model


def train_mixture(x: Tensor, setting: Setting) -> Any:
    size = num_parameters(make_hierarchy(setting))
    each = 1 + 2 * STEPS + STEPS * (2 * STEPS + 1)
    model = GaussianMixture(2 * STEPS, max(1, round(size / each)), "full", scale_floor=FLOOR)
    fit_em(model, flat(x), steps=100, seed=0, progress_bar=False)
    return model


TRAIN_BY_NAME: dict[str, Callable[[Tensor, Setting], Any]] = {
    "hierarchy": train_hierarchy,
    "flat": train_flat,
    "mixture": train_mixture,
}


def flat(x: Tensor) -> Tensor:
    """Trajectories (N, 2, T) as vectors (N, 2 T), step by step."""
    return x.mT.flatten(1)


def unflat(x: Tensor) -> Tensor:
    return x.reshape(len(x), STEPS, 2).mT


def rule(x: Tensor) -> tuple[float, float]:
    """How far trajectories are from the rule: mean, and root of the mean square."""
    error = (x[:, 0, 1:] - x[:, 0, :-1] - x[:, 1, 1:]).abs()
    return float(error.mean()), float(error.square().mean().sqrt())


def is_hierarchy(model: Any) -> bool:
    return isinstance(model, HierarchicalDRMM)


def train(store: Store, names: Any, setting: Setting) -> None:
    data = jump_trajectories(TRAIN, STEPS, generator=Generator().manual_seed(0))
    test = jump_trajectories(TEST, STEPS, generator=Generator().manual_seed(1))

    def measure(model: Any) -> Numbers:
        scores = in_chunks(model.log_prob, test if is_hierarchy(model) else flat(test))
        draws = model.sample((1000,))
        draws = draws if is_hierarchy(model) else unflat(draws)
        return {
            "nats": float(scores.mean()),
            "error": standard_error(scores),
            "rule": rule(draws),
        }

    with warnings.catch_warnings():
        # Velocities without noise given the heights lie at the floor.
        warnings.filterwarnings("ignore", "Columns .* smallest scale")
        store.train(names, lambda name: TRAIN_BY_NAME[name](data, setting), measure)


# ---- the question -------------------------------------------------------------------------------


def question() -> tuple[dict[int, float], Tensor, Tensor]:
    """Waypoints by step, and lower and upper bounds of heights and velocities, (2, T)."""
    low, high = torch.full((2, STEPS), -math.inf), torch.full((2, STEPS), math.inf)
    low[0, ABOVE], high[0, BELOW] = OBSTACLE, OBSTACLE
    return WAYPOINTS, low, high


def broken(x: Tensor) -> int:
    """How many draws miss a waypoint or hit an obstacle."""
    ways, low, high = question()
    met = ((x >= low) & (x <= high)).flatten(1).all(-1)
    for step, height in ways.items():
        met = met & (x[:, 0, step] == height)
    return int((~met).sum())


def ask(model: Any, setting: Setting) -> tuple[Numbers, Tensor]:
    ways, low, high = question()
    torch.manual_seed(0)
    start = time.perf_counter()
    with torch.no_grad():
        if is_hierarchy(model):
            known = {(0, step): height for step, height in ways.items()}
            law = model.condition(known, Box(low, high), num_particles=setting.particles)
            size = float(law.effective_sample_size) / setting.particles
            x = law.sample((256,))
        else:
            known = {2 * step: height for step, height in ways.items()}
            box = Box(low.mT.flatten(), high.mT.flatten())
            law = model.evidence_prior().condition_on([known, box])
            size = math.nan
            x = unflat(law.sample((256,)))
        seconds = time.perf_counter() - start
    log_evidence = law.log_evidence()
    numbers = {
        "seconds": seconds,
        "share": size,
        "log_evidence": [float(part) for part in log_evidence],
        "rule": rule(x),
        "broken": broken(x),
    }
    return numbers, x


def draw(models: dict[str, Any], answers: dict[str, Tensor], folder: Store) -> None:
    test = jump_trajectories(12, STEPS, generator=Generator().manual_seed(1))
    figure, axes = plt.subplots(1, 1 + len(models), figsize=(3.2 * (1 + len(models)), 2.6),
                                sharey=True, layout="constrained")  # fmt: skip
    torch.manual_seed(0)
    shown = {"data": test}
    for name, model in models.items():
        x = model.sample((12,))
        shown[name] = x if is_hierarchy(model) else unflat(x)
    for ax, (name, x) in zip(axes, shown.items(), strict=True):
        ax.plot(x[:, 0].T, lw=0.9)
        ax.set(title=name, ylim=(-0.2, 1.2))
    save(figure, beside(folder.folder, "draws.png"))
    figure, axes = plt.subplots(1, len(answers), figsize=(4 * len(answers), 2.8), sharey=True,
                                layout="constrained", squeeze=False)  # fmt: skip
    for ax, (name, x) in zip(axes[0], answers.items(), strict=True):
        with torch.no_grad():
            scores = models[name].log_prob(x if is_hierarchy(models[name]) else flat(x))
        best = x[scores.argsort()[-SHOWN:]]
        ax.plot(best[:-1, 0].T, color="tab:blue", lw=0.8, alpha=0.5)
        ax.plot(best[-1, 0], color="navy", lw=1.6)
        ax.fill_between([7, 11], -0.2, OBSTACLE, color="0.7")
        ax.fill_between([20, 24], OBSTACLE, 1.2, color="0.7")
        ax.plot(list(WAYPOINTS), list(WAYPOINTS.values()), "o", color="tab:red")
        ax.set(title=name, ylim=(-0.2, 1.2), xlabel="step", ylabel="height")
    save(figure, beside(folder.folder, "question.png"))


def report(store: Store, setting: Setting) -> None:
    names = [name for name in TRAIN_BY_NAME if store.has(name)]
    models = {name: store.load_model(name) for name in names}
    trained = f"{'':>10} {'numbers':>8} {'min':>5} {'nats':>14} {'rule: mean, rms':>17}"
    asked = f"{'s':>6} {'ESS':>6} {'rule: mean, rms':>17} {'broken':>6} {'log Z':>14}"
    print(f"\n{trained} | {asked}")
    answers = {}
    for name, numbers in store.numbers(names).items():
        told, answers[name] = ask(models[name], setting)
        nats = f"{numbers['nats']:.2f} ± {numbers['error']:.2f}"
        log_evidence = "{:.1f} ± {:.1f}".format(*told["log_evidence"])
        print(
            f"{name:>10} {numbers['parameters']:>8,} {numbers['minutes']:>5.1f} {nats:>14}"
            f" {numbers['rule'][0]:>8.4f} {numbers['rule'][1]:>8.4f} | {told['seconds']:>6.1f}"
            f" {told['share']:>6.3f} {told['rule'][0]:>8.4f} {told['rule'][1]:>8.4f}"
            f" {told['broken']:>6} {log_evidence:>14}",
            flush=True,
        )
    draw(models, answers, store)


def main() -> None:
    parser = cli.make_parser(
        __doc__, quick="small models: a minute", paper="2 x 256, 3 x 256, 4 x 256: hours"
    )
    cli.add_models(parser, TRAIN_BY_NAME)
    arguments = cli.parse(parser)
    store = Store(OUT / "hierarchy" / f"trajectories_{arguments.size}")
    setting = SETTINGS[arguments.size]
    if not arguments.report:
        train(store, arguments.models or TRAIN_BY_NAME, setting)
    report(store, setting)


if __name__ == "__main__":
    main()
