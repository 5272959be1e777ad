"""Deep residual mixtures in the plane: what layers add, and what can be asked of a trained model.

The figures of Hämäläinen et al., Deep Residual Mixture Models, drawn anew under out/, with the
numbers behind them printed:

- plane_depth.png (Fig. 2): four laws, samples and density by depth, samples given an inequality
  and an equality; held-out nats by depth, precision and recall.
- plane_evidence.png (Fig. 15): samples given every kind of evidence. Printed, for sums over
  all codes, and for populations of 1,024 and 64 of them: evidence that a sample breaks (there must
  be none), effective sample sizes, log-evidence with its error, and how many samples lie farther
  than 0.5 from the curve that the data were drawn around.
- plane_rho.png (Fig. 5): the weight of earlier codes in the encoder, fixed and raised over time,
  from random means, as in the paper, and from clusters.
- plane_line.png (Fig. 12): histograms on the line, for one to four layers.
- plane_residuals.png (Fig. 4): what every layer sees of the data.

    python -m benchmarks.drmm.plane [--quick | --paper]
"""

import argparse
import itertools
import math
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.patches import Ellipse, Rectangle
from torch import Tensor

from pyromix import (
    DRMM,
    AnyOf,
    Box,
    GaussianPrior,
    LinearEquality,
    LinearGaussian,
    LinearInequality,
    Observed,
    fit,
)
from pyromix.core.batch import Batch
from pyromix.datasets import mixture_1d, pinwheel, sierpinski, two_moons
from pyromix.drmm.rows import Rows
from pyromix.drmm.stages import em_loss
from pyromix.metrics import precision_recall
from pyromix.plotting import plot_density

OUT = Path("out")
NOISE = 0.1  # around the spiral
FAR = 0.5
LR = 0.005
BATCH = 256
INK, BLUE, RED = "#1b1f24", "#2a6fb0", "#c8352b"


# ---- data ---------------------------------------------------------------------------------------


def curve(angle: Tensor) -> Tensor:
    """The spiral of Archimedes with radius angle / 2."""
    return 0.5 * angle.unsqueeze(-1) * torch.stack([angle.cos(), angle.sin()], -1)


def archimedes(num: int) -> Tensor:
    """Points around two turns of it, uniform in the angle."""
    return curve(4 * math.pi * torch.rand(num)) + NOISE * torch.randn(num, 2)


def archimedes_nats(num: int = 2000) -> float:
    """Mean log-density of the spiral's own law, by quadrature over the angle."""
    grid = curve(torch.linspace(0, 4 * math.pi, 20_001, dtype=torch.float64))
    x = archimedes(num).double()
    log_normal = -0.5 * (torch.cdist(x, grid) / NOISE).square() - math.log(2 * math.pi * NOISE**2)
    return float((log_normal.logsumexp(-1) - math.log(len(grid))).mean())


def sierpinski_nats() -> float:
    """Log-density of the triangle after eight removals."""
    return 8 * math.log(4 / 3) - math.log(3 * math.sqrt(3))


def nested_nats(depth: int) -> float:
    """Mean log-density of the fractal under 3^depth equal normals, one for each part of it.

    Those have the moments of the parts, and do not overlap: variance 2/3 on the whole, on parts
    a quarter of it at each depth.
    """
    variance = 2 / 3 / 4**depth
    return -depth * math.log(3) - math.log(2 * math.pi * math.e * variance)


def distance_from_curve(x: Tensor) -> Tensor:
    grid = curve(torch.linspace(0, 4 * math.pi, 5000))
    return torch.cat([torch.cdist(part, grid).amin(-1) for part in x.split(2000)])


class Law(NamedTuple):
    """A law to learn, and the model for it."""

    draw: Callable[[int], Tensor]
    num_components: int
    num_layers: int
    depths: tuple[int, ...]  # that are drawn
    limit: float  # of the axes
    half_plane: tuple[float, float, float]  # a, b, c of a x + b y + c > 0
    column: float  # x is this
    longer: float = 1.0  # training, compared with others


LAWS = {
    "spiral": Law(archimedes, 16, 3, (1, 2, 3), 7.2, (1.0, 1.0, -2.0), -2.5),
    "Sierpinski": Law(sierpinski, 3, 5, (1, 3, 5), 2.3, (1.0, -1.0, -0.3), -0.6, 2.5),
    "moons": Law(two_moons, 8, 3, (1, 2, 3), 2.1, (0.5, 1.0, -0.1), -0.5),
    "pinwheel": Law(pinwheel, 10, 2, (1, 2), 4.2, (1.0, 0.3, -0.5), -1.0),
}


# ---- training -----------------------------------------------------------------------------------


class FixedRho(DRMM):
    """Trained by the paper's stage alone, where the weight of earlier codes can be fixed."""

    fixed_rho: float | None = None

    def loss(self, batch: Batch, progress: float = 1.0) -> Tensor:
        if not self.training or self.fixed_rho is None:
            return super().loss(batch, progress)
        assert isinstance(batch, Tensor)
        return em_loss(self.law, Rows(batch, None, ()), self.fixed_rho, self.orphans)


def train(model: Any, data: Tensor, steps: int, what: str, **options: Any) -> Any:
    start = time.perf_counter()
    fit(model, data, steps=steps, batch_size=BATCH, lr=LR, seed=0, progress_bar=False, **options)
    seconds = time.perf_counter() - start
    print(f"  trained {what}: {steps} steps, {seconds:.0f} s", flush=True)
    return model


def nats(model: DRMM, x: Tensor) -> list[float]:
    """Mean log-density by depth."""
    with torch.no_grad():
        return model.layer_log_prob(x).mean(0).tolist()


# ---- Fig. 2: depth ------------------------------------------------------------------------------


def study_depth(steps: int, num: int) -> dict[str, tuple[DRMM, Tensor]]:
    models = {}
    sizes = (2000, num // 2)
    print("\n== layers (Fig. 2)")
    for name, law in LAWS.items():
        torch.manual_seed(0)
        data = law.draw(num)
        model = DRMM(2, law.num_layers, law.num_components)
        models[name] = train(model, data, round(law.longer * steps), name), data
    print(f"\n{'held-out nats by depth':>24} {'K':>3}  " + "".join(f"{d:>9}" for d in range(1, 6)))
    held_out = {name: law.draw(num // 2) for name, law in LAWS.items()}
    for name, (model, _) in models.items():
        cells = "".join(f"{value:>9.3f}" for value in nats(model, held_out[name]))
        print(f"{name:>24} {model.num_components:>3}  {cells}")
    print(f"{'(the spiral itself)':>24} {archimedes_nats():>13.3f}")
    print(f"{'(Sierpinski, depth 8)':>24} {sierpinski_nats():>13.3f}")
    print(f"{'(its moments at depth 5)':>24} {nested_nats(5):>13.3f}")
    print(
        f"\n{'':>24} {'points':>8} {'precision':>10} {'recall':>8} {'F1':>8} "
        f"{'F1 of the data':>16}   F1 by depth"
    )
    for (name, (model, _)), size in itertools.product(models.items(), sizes):
        real = LAWS[name].draw(size)
        score = precision_recall(real, model.sample((size,)))
        best = precision_recall(real, LAWS[name].draw(size)).f1
        by_depth = [
            precision_recall(real, model.shallow(depth).sample((size,))).f1
            for depth in range(1, model.num_layers)
        ]
        shallower = ", ".join(f"{f1:.3f}" for f1 in [*by_depth, score.f1])
        print(
            f"{name:>24} {size:>8} {score.precision:>10.3f} {score.recall:>8.3f} "
            f"{score.f1:>8.3f} {best:>16.3f}   {shallower}"
        )
    draw_depth(models)
    return models


def scatter(ax: Axes, x: Tensor, color: str = INK, size: float = 1.0, **options: Any) -> None:
    ax.scatter(*x.T.tolist(), s=size, color=color, **({"linewidths": 0} | options))


def frame(ax: Axes, limit: float) -> None:
    ax.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal", xticks=[], yticks=[])
    for side in ax.spines.values():
        side.set_color("0.8")


def draw_depth(models: dict[str, tuple[DRMM, Tensor]]) -> None:
    columns = 8
    figure, axes = plt.subplots(
        len(models), columns, figsize=(2 * columns, 2.1 * len(models)), layout="constrained"
    )
    for row, (name, (model, data)) in zip(axes, models.items(), strict=True):
        law = LAWS[name]
        for ax in row:
            frame(ax, law.limit)
        scatter(row[0], data[:5000])
        row[0].set_title("data", fontsize=10)
        row[0].set_ylabel(f"{name}\nK = {model.num_components}, L = {model.num_layers}")
        for i in range(3):
            ink, shade = row[1 + i], row[4 + i]
            if i >= len(law.depths):
                ink.set_axis_off()
                shade.set_axis_off()
                continue
            depth = law.depths[i]
            shallow = model.shallow(depth)
            layers = "1 layer" if depth == 1 else f"{depth} layers"
            scatter(ink, shallow.sample((5000,)))
            ink.set_title(f"samples, {layers}", fontsize=10)
            limit = law.limit
            limits = (-limit, limit, -limit, limit)
            # The root of the density, for peaks next to what is spread out.
            plot_density(shallow, shade, limits=limits, resolution=250, norm=PowerNorm(0.5))
            shade.set_title(f"density, {layers}", fontsize=10)
        draw_conditions(row[7], model, law)
    save(figure, "plane_depth.png")


def draw_conditions(ax: Axes, model: DRMM, law: Law) -> None:
    a, b, c = law.half_plane
    above = model.condition(LinearInequality(torch.tensor([a, b]), c)).sample((3000,))
    beside = model.condition(LinearEquality(torch.tensor([1.0, 0.0]), -law.column)).sample((150,))
    assert bool((above @ torch.tensor([a, b]) + c > 0).all())
    scatter(ax, above)
    ax.axline((-a * c / (a * a + b * b), -b * c / (a * a + b * b)), (-a * c / (a * a + b * b) + b,
              -b * c / (a * a + b * b) - a), color=INK, linewidth=0.8)  # fmt: skip
    ax.axvline(law.column, color=RED, linewidth=0.6, alpha=0.6)
    scatter(ax, beside, RED, 6.0, alpha=0.35, zorder=3)
    ax.set_title("given a half-plane,\ngiven a line", fontsize=10)


# ---- Fig. 15: evidence --------------------------------------------------------------------------


class Question(NamedTuple):
    """Evidence, whether points agree with it, and a picture of it."""

    evidence: Sequence[Any]
    holds: Callable[[Tensor], Tensor] | None  # none: soft evidence
    picture: Callable[[Axes], object]


A, B = torch.tensor([0.6, 0.8]), torch.tensor([1.0, -0.3])
TIP = torch.tensor([[0.8, -0.6]])


def line(ax: Axes, a: Tensor, b: float, **options: Any) -> None:
    """The line a.x + b = 0."""
    foot = -b * a / a.square().sum()
    along = torch.stack([a[1], -a[0]])
    ax.axline(foot.tolist(), (foot + along).tolist(), **({"color": RED, "linewidth": 1} | options))


def boxes(ax: Axes, *corners: tuple[float, float, float, float]) -> None:
    for left, bottom, right, top in corners:
        ax.add_patch(
            Rectangle((left, bottom), right - left, top - bottom, fill=False, edgecolor=RED)
        )


def within(x: Tensor, left: float, bottom: float, right: float, top: float) -> Tensor:
    low, high = x.new_tensor([left, bottom]), x.new_tensor([right, top])
    return ((x >= low) & (x <= high)).all(-1)


def box(left: float, bottom: float, right: float, top: float) -> Box:
    return Box(torch.tensor([left, bottom]), torch.tensor([right, top]))


ONE, OTHER = (-5.0, -1.5, 0.5, 3.0), (-1.0, 1.0, 4.0, 5.0)
PRIOR_LOC, PRIOR_SCALE = (1.5, 2.0), (1.0, 1.5)
QUESTIONS = {
    "nothing": Question((), None, lambda _: None),
    "Observed": Question(
        (Observed({0: 2.5}),),
        lambda x: x[:, 0] == 2.5,
        lambda ax: ax.axvline(2.5, color=RED, linewidth=0.6),
    ),
    "GaussianPrior": Question(
        (GaussianPrior(torch.tensor(PRIOR_LOC), torch.tensor(PRIOR_SCALE)),),
        None,
        lambda ax: ax.add_patch(
            Ellipse(
                PRIOR_LOC, 4 * PRIOR_SCALE[0], 4 * PRIOR_SCALE[1], fill=False, edgecolor=RED
            )  # two standard deviations
        ),
    ),
    "Box": Question((box(*OTHER),), lambda x: within(x, *OTHER), lambda ax: boxes(ax, OTHER)),
    "LinearInequality": Question(
        (LinearInequality(A, -1.0),),
        lambda x: x @ A - 1.0 > 0,
        lambda ax: line(ax, A, -1.0),
    ),
    "two of them": Question(
        (LinearInequality(A, -1.0), LinearInequality(B, 0.5)),
        lambda x: (x @ A - 1.0 > 0) & (x @ B + 0.5 > 0),
        lambda ax: (line(ax, A, -1.0), line(ax, B, 0.5)),
    ),
    "LinearEquality": Question(
        (LinearEquality(A, -1.0),),
        # To the rounding of a float: such points have terms of up to six.
        lambda x: (x.double() @ A.double() - 1.0).abs() < 1e-5,
        lambda ax: line(ax, A, -1.0, linewidth=0.6),
    ),
    "LinearGaussian": Question(
        (LinearGaussian(TIP, torch.tensor([2.0]), 0.5),),
        None,
        lambda ax: [
            line(ax, TIP[0], -2.0 + shift, linestyle=":" if shift else "-")
            for shift in (-1.0, 0.0, 1.0)  # two standard deviations
        ],
    ),
    "AnyOf two boxes": Question(
        (AnyOf(box(*ONE), box(*OTHER)),),
        lambda x: within(x, *ONE) | within(x, *OTHER),
        lambda ax: boxes(ax, ONE, OTHER),
    ),
}


class Answer(NamedTuple):
    """What was found out about a conditional law."""

    law: Any
    draws: Tensor
    broken: int | None
    far: float
    log_evidence: float
    error: float
    particles: int
    effective: float
    milliseconds: float


def ask(model: DRMM, question: Question, count: int, num_particles: int) -> Answer:
    torch.manual_seed(0)
    start = time.perf_counter()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore", RuntimeWarning)  # effective sample sizes are printed
        law = model.condition(*question.evidence, num_particles=num_particles)
    draws = law.sample((count,))
    seconds = time.perf_counter() - start
    log_evidence, error = law.log_evidence()
    parts = getattr(law, "branches", (law,))
    return Answer(
        law,
        draws,
        None if question.holds is None else int((~question.holds(draws)).sum()),
        float((distance_from_curve(draws) > FAR).float().mean()),
        float(log_evidence),
        float(error),
        min(part.num_particles for part in parts),
        min(float(part.effective_sample_size) for part in parts),
        1e3 * seconds,
    )


def study_evidence(model: DRMM, count: int) -> None:
    print("\n== evidence (Fig. 15), spiral")
    routes = {"all codes": None, "1,024 codes": 1024, "64 codes": 64}
    answers: dict[str, dict[str, Answer]] = {}
    for route, particles in routes.items():
        settings = model.config() | ({"max_exact": 0} if particles else {})
        asked = DRMM.from_config(settings)
        asked.load_state_dict(model.state_dict())
        asked.eval()
        answers[route] = {
            name: ask(asked, q, count, particles or 1) for name, q in QUESTIONS.items()
        }
        print(
            f"\n{route}, {count} draws\n{'':>18} {'broken':>8} {'> 0.5 away':>11} "
            f"{'log-evidence':>20} {'codes':>7} {'worth':>7} {'ms':>6}"
        )
        for name, a in answers[route].items():
            broken = "" if a.broken is None else str(a.broken)
            evidence = f"{a.log_evidence:.4f} ± {a.error:.4f}"
            print(
                f"{name:>18} {broken:>8} {a.far:>11.2%} {evidence:>20} {a.particles:>7} "
                f"{a.effective:>7.0f} {a.milliseconds:>6.0f}"
            )
    print(
        f"\nagainst all codes: difference of log-evidence and its standard error, F1 of draws\n"
        f"{'':>18} " + "".join(f"{route:>32}" for route in list(routes)[1:])
    )
    for name in QUESTIONS:
        exact, *others = (answers[route][name] for route in routes)
        cells = []
        for other in others:
            difference = other.log_evidence - exact.log_evidence
            # On a line there is one free coordinate.
            kept = slice(1, None) if name in LINES else slice(None)
            f1 = precision_recall(*(a.draws[:5000, kept] for a in (exact, other))).f1
            cells.append(f"{difference:>13.5f} ± {other.error:.5f} {f1:>8.3f}")
        print(f"{name:>18} " + "".join(f"{cell:>32}" for cell in cells))
    draw_evidence(answers["all codes"])


# Where evidence leaves a line: normals a and offsets b of a.x + b = 0.
LINES = {"Observed": (torch.tensor([1.0, 0.0]), -2.5), "LinearEquality": (A, -1.0)}


def draw_ridge(ax: Axes, law: Any, a: Tensor, b: float) -> None:
    """The density along the line, as a ridge upon it."""
    t = torch.linspace(-9, 9, 3001)
    along = torch.stack([a[1], -a[0]])
    points = -b * a + t.unsqueeze(-1) * along
    density = law.log_prob(points).exp()
    print(f"integral of the density along the line: {float(torch.trapezoid(density, t)):.5f}")
    ridge = points + (2.5 * density / density.max()).unsqueeze(-1) * a
    ax.fill(*torch.cat([ridge, points[[-1, 0]]]).T.tolist(), color=INK, linewidth=0)


def draw_evidence(answers: dict[str, Answer]) -> None:
    figure, axes = plt.subplots(2, 5, figsize=(13, 5.6), layout="constrained")
    for ax, (name, answer) in zip(axes.flat, answers.items(), strict=False):
        frame(ax, LAWS["spiral"].limit)
        ax.plot(*curve(torch.linspace(0, 4 * math.pi, 500)).T.tolist(), color="0.85", zorder=0)
        if name in LINES:
            draw_ridge(ax, answer.law, *LINES[name])
        else:
            scatter(ax, answer.draws[:2000], INK, 2.0)
        QUESTIONS[name].picture(ax)
        ax.set_title("no evidence" if name == "nothing" else name, fontsize=10)
    for ax in axes.flat[len(answers) :]:
        ax.set_axis_off()
    save(figure, "plane_evidence.png")


# ---- Fig. 5: rho --------------------------------------------------------------------------------


STARTS = {"drawn at random": False, "clusters": True}


def study_rho(steps: int, num: int, full: DRMM) -> None:
    print("\n== weight of earlier codes in the encoder (Fig. 5), spiral")
    torch.manual_seed(0)
    data, held_out = archimedes(num), archimedes(num // 2)
    models: dict[tuple[str, str], DRMM] = {}
    for start, rho in itertools.product(STARTS, (0.0, 0.5, 1.0, None)):
        torch.manual_seed(0)
        model = FixedRho(2, 3, 16, curriculum=[("em", 1.0)])
        model.fixed_rho = rho
        name = "from 0 to 1" if rho is None else f"{rho:g}"
        what = f"rho {name}, {start}"
        models[start, name] = train(model, data, steps, what, initialize=STARTS[start])
    models["clusters", "and end to end"] = full
    print(
        f"\n{'start':>18} {'rho':>16} {'precision':>10} {'recall':>8} {'F1':>8} {'nats':>9} "
        f"{'> 0.5 away':>11}"
    )
    figure, axes = plt.subplots(2, 6, figsize=(14, 5.4), layout="constrained")
    for ax in axes.flat:
        frame(ax, LAWS["spiral"].limit)
    scatter(axes[1, 5], held_out[:5000])
    axes[1, 5].set_title("data", fontsize=10)
    places = [(0, i) for i in range(4)] + [(1, i) for i in range(5)]
    for (start, name), place in zip(models, places, strict=True):
        model = models[start, name]
        torch.manual_seed(1)
        draws = model.sample((len(held_out),))
        score = precision_recall(held_out, draws)
        far = float((distance_from_curve(draws) > FAR).float().mean())
        print(
            f"{start:>18} {name:>16} {score.precision:>10.3f} {score.recall:>8.3f} "
            f"{score.f1:>8.3f} {nats(model, held_out)[-1]:>9.3f} {far:>11.2%}"
        )
        ax = axes[place]
        scatter(ax, draws[:5000])
        ax.set_title(
            (name if name.startswith("and") else rf"$\rho$ {name}")
            + f"\nprecision {score.precision:.2f}, recall {score.recall:.2f}",
            fontsize=10,
        )
    best = precision_recall(held_out, archimedes(len(held_out)))
    print(
        f"{'(more data)':>18} {'':>16} {best.precision:>10.3f} {best.recall:>8.3f} {best.f1:>8.3f}"
    )
    for row, start in zip(axes, STARTS, strict=True):
        row[0].set_ylabel(f"start: {start}")
    for ax in axes[0, 4:]:
        ax.set_axis_off()
    save(figure, "plane_rho.png")


# ---- Fig. 12: the line --------------------------------------------------------------------------


LINE = {
    "weights": (2.0, 1.0, 3.0, 1.0, 2.0, 1.0, 1.5, 3.0),
    "loc": (-3.4, -2.5, -1.6, -0.4, 0.3, 1.2, 2.0, 3.1),
    "scale": (0.2, 0.1, 0.4, 0.1, 0.3, 0.1, 0.15, 0.5),
}


def study_line(steps: int, num: int) -> None:
    print("\n== the line (Fig. 12), K = 4")
    torch.manual_seed(0)
    data, held_out = mixture_1d(num, **LINE), mixture_1d(num, **LINE)
    weights, loc, scale = (torch.tensor(LINE[name]) for name in ("weights", "loc", "scale"))
    normal = torch.distributions.Normal(loc, scale)
    truth = (normal.log_prob(held_out) + (weights / weights.sum()).log()).logsumexp(-1).mean()
    edges = torch.linspace(-5, 5, 101)
    reference = torch.histogram(held_out[:, 0], edges).hist / len(held_out)
    figure, axes = plt.subplots(1, 5, figsize=(15, 2.8), layout="constrained", sharey=True)
    for ax in axes:
        ax.set(xlim=(-5, 5), yticks=[])
    axes[0].stairs(reference.numpy(), edges.numpy(), fill=True, color="0.6")
    axes[0].set_title("data", fontsize=10)
    rows = []
    for depth in range(1, 5):
        torch.manual_seed(0)
        model = train(DRMM(1, depth, 4), data, steps, f"depth {depth}")
        draws = model.sample((num,))
        own = torch.histogram(draws[:, 0], edges).hist / num
        variation = 0.5 * float((own - reference).abs().sum())
        rows.append((depth, nats(model, held_out)[-1], variation))
        ax = axes[depth]
        ax.stairs(own.numpy(), edges.numpy(), fill=True, color=BLUE, alpha=0.6)
        ax.stairs(reference.numpy(), edges.numpy(), color=INK, linewidth=0.7)
        ax.set_title("1 layer" if depth == 1 else f"{depth} layers", fontsize=10)
    second = torch.histogram(mixture_1d(num, **LINE)[:, 0], edges).hist / num
    floor = 0.5 * float((second - reference).abs().sum())
    print(f"\n{'layers':>14} {'held-out nats':>14} {'total variation of histograms':>32}")
    for depth, value, variation in rows:
        print(f"{depth:>14} {value:>14.3f} {variation:>32.3f}")
    print(f"{'(the law)':>14} {float(truth):>14.3f} {floor:>32.3f}")
    save(figure, "plane_line.png")


# ---- Fig. 4: residuals --------------------------------------------------------------------------


def draw_residuals(models: dict[str, tuple[DRMM, Tensor]]) -> None:
    """What every layer sees, coloured by its code; three points can be followed."""
    columns = max(model.num_layers for model, _ in models.values()) + 1
    figure, axes = plt.subplots(
        len(models), columns, figsize=(2.6 * columns, 2.8 * len(models)), layout="constrained"
    )
    print("\n== residuals (Fig. 4): root mean square of what is left before layer 1, 2, ...")
    for row, (name, (model, data)) in zip(axes, models.items(), strict=True):
        residual = data[:4000]
        codes = model.encode(residual)
        followed = [0, 1, 2]
        spreads = []
        for layer in range(model.num_layers + 1):
            ax = row[layer]
            spread = float(residual.square().mean().sqrt())
            spreads.append(spread)
            limit = LAWS[name].limit if layer == 0 else 4 * spread
            frame(ax, limit)
            if layer == model.num_layers:
                scatter(ax, residual, "0.5", 1.5)
                ax.set_title(f"left over, ± {limit:.2g}", fontsize=10)
            else:
                code = codes[:, layer]
                colors = plt.colormaps["tab20"](code.numpy() % 20)
                ax.scatter(*residual.T.tolist(), s=1.5, color=colors, linewidths=0)
                scatter(ax, model.loc[layer].detach(), INK, 14.0, marker="x", linewidths=0.8)
                ax.set_title(f"layer {layer + 1} sees, ± {limit:.2g}", fontsize=10)
            for i in followed:
                ax.annotate(
                    "ABC"[i], residual[i].tolist(), color="white", fontsize=7, ha="center",
                    va="center", annotation_clip=True,
                    bbox={"boxstyle": "circle,pad=0.15", "color": INK},
                )  # fmt: skip
            if layer < model.num_layers:
                residual = residual - model.loc[layer].detach()[codes[:, layer]]
        row[0].set_ylabel(name)
        for ax in row[model.num_layers + 1 :]:
            ax.set_axis_off()
        print(f"{name:>24} " + "".join(f"{spread:>9.3f}" for spread in spreads))
    save(figure, "plane_residuals.png")


# ---- all ----------------------------------------------------------------------------------------


def save(figure: Any, name: str) -> None:
    OUT.mkdir(exist_ok=True)
    figure.savefig(OUT / name, dpi=130)
    plt.close(figure)
    print(f"\nfigure: {OUT / name}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="a minute or two")
    size.add_argument("--paper", action="store_true", help="as many steps as in the paper")
    arguments = parser.parse_args()
    steps = 800 if arguments.quick else 16_000 if arguments.paper else 8000
    num = 6000 if arguments.quick else 20_000
    start = time.perf_counter()
    models = study_depth(steps, num)
    spiral, _ = models["spiral"]
    study_evidence(spiral, 2000 if arguments.quick else 10_000)
    # As many steps of the paper's stage as the whole model had: the other half was end to end.
    study_rho(steps // 2, num, spiral)
    study_line(max(500, steps // 4), num)
    draw_residuals({name: models[name] for name in ("spiral", "Sierpinski")})
    print(f"\n{time.perf_counter() - start:.0f} s in all")


if __name__ == "__main__":
    main()
