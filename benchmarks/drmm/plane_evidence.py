"""Questions to a trained model in the plane, one for every kind of evidence (Fig. 15)."""

import math
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.patches import Ellipse, Rectangle
from torch import Tensor

from benchmarks.common.figures import INK, RED, frame, save, scatter
from benchmarks.drmm.plane_laws import FAR, LAWS, curve, distance_from_curve
from pyromix import (
    DRMM,
    AnyOf,
    Box,
    GaussianPrior,
    LinearEquality,
    LinearGaussian,
    LinearInequality,
    Observed,
)
from pyromix.metrics import precision_recall


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


def study_evidence(model: DRMM, count: int, path: Path) -> None:
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
    draw_evidence(answers["all codes"], path)


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


def draw_evidence(answers: dict[str, Answer], path: Path) -> None:
    figure, axes = plt.subplots(2, 5, figsize=(13, 5.6), layout="constrained")
    for ax, (name, answer) in zip(axes.flat, answers.items(), strict=False):
        frame(ax, LAWS["spiral"].limits)
        ax.plot(*curve(torch.linspace(0, 4 * math.pi, 500)).T.tolist(), color="0.85", zorder=0)
        if name in LINES:
            draw_ridge(ax, answer.law, *LINES[name])
        else:
            scatter(ax, answer.draws[:2000], INK, 2.0)
        QUESTIONS[name].picture(ax)
        ax.set_title("no evidence" if name == "nothing" else name, fontsize=10)
    for ax in axes.flat[len(answers) :]:
        ax.set_axis_off()
    save(figure, path)
