"""Figures of known_answers.py: what was found, beside the answers."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.lines import Line2D
from torch import Tensor

from benchmarks.common.figures import BLUE, GREEN, INK, RED, frame, save, scatter
from benchmarks.common.store import beside
from benchmarks.common.training import in_chunks
from benchmarks.maxent.oscillation import eigenvalue
from benchmarks.maxent.problem import BASES, Problem
from pyromix import Flow

COLORS = {
    "normal": RED,
    "relaxed": "#dc9a20",
    "stratified": BLUE,
    "implicit": GREEN,
    "folds": "#8a4fa0",
    "codes": "#7a5c3e",
    "separate": "#4a4a4a",
}
STYLES: dict[str, Any] = {
    base: {
        "color": color,
        "linestyle": (0, (4, 2)) if base == "implicit" else "-",
        "linewidth": 1.3,
    }
    for base, color in COLORS.items()
}

Problems = dict[str, Problem]
Flows = dict[tuple[str, str], Flow]  # by problem and base
Found = dict[tuple[str, str], list[dict[str, Any]]]  # likewise, of all seeds


def bases_of(problem: str, flows: Flows) -> list[str]:
    return [base for base in BASES if (problem, base) in flows]


STRETCHED: dict[str, Any] = {"aspect": "auto", "box_aspect": 1}  # axes that look square


@torch.no_grad()
def draws(flow: Flow, num: int) -> Tensor:
    torch.manual_seed(0)
    return flow.sample((num,))


def log_density(flow: Flow, x: Tensor) -> Tensor:
    return in_chunks(flow.log_prob, x.float(), 5000).double()


def answer_log_density(problem: Problem, x: Tensor) -> Tensor:
    truth = problem.truth
    return -problem.statistics(x.double()) @ truth.multipliers - truth.log_normalizer


def titled(problem: Problem, base: str, found: Found) -> str:
    kl = sorted(entry["kl"] for entry in found[problem.name, base])
    return f"{base}\nKL {kl[len(kl) // 2]:.4f}"


def columns_of(problem: Problem, flows: Flows, found: Found, num: int) -> list[tuple[str, Tensor]]:
    """Titles and draws: of the answer, then of all bases."""
    return [
        ("the answer\n", problem.truth.draw(num, 0).float()),
        *(
            (titled(problem, base, found), draws(flows[problem.name, base], num))
            for base in bases_of(problem.name, flows)
        ),
    ]


# ---- on the line --------------------------------------------------------------------------------

LINES = {"well": (-2.7, 2.7), "exponential": (0.0, 6.0), "prices": (0.0, 220.0)}


def draw_lines(problems: Problems, flows: Flows, path: Path) -> None:
    """Densities over the answers, and below how far their logarithms are off."""
    wanted = [name for name in LINES if name in problems and bases_of(name, flows)]
    if not wanted:
        return
    figure, axes = plt.subplots(
        2, len(wanted), figsize=(4.4 * len(wanted), 5.2), layout="constrained", sharex="col",
        height_ratios=(3, 2), squeeze=False,
    )  # fmt: skip
    for (top, bottom), name in zip(axes.T, wanted, strict=True):
        problem = problems[name]
        low, high = LINES[name]
        margin = 1e-4 * (high - low) if low == 0.0 else 0.0
        x = torch.linspace(low + margin, high, 601, dtype=torch.float64).unsqueeze(-1)
        answer, line = answer_log_density(problem, x), x.squeeze(-1).numpy()
        top.fill_between(line, answer.exp().numpy(), color="0.85", linewidth=0)
        bottom.axhline(0, color="0.6", linewidth=0.8)
        for base in bases_of(name, flows):
            found = log_density(flows[name, base], x)
            top.plot(line, found.exp().numpy(), **STYLES[base])
            bottom.plot(line, (found - answer).numpy(), **STYLES[base])
        top.set_title(f"{name}: {', '.join(problem.names)}", fontsize=10)
        top.set_ylim(0, 1.25 * float(answer.exp().max()))
        bottom.set(ylim=(-0.5, 0.5), xlim=(low, high))
    axes[0, 0].set_ylabel("density")
    axes[1, 0].set_ylabel("log-density, less the answer's")
    legend(axes[0, -1], [b for b in BASES if any((name, b) in flows for name in wanted)])
    save(figure, path)


def legend(ax: Axes, bases: Iterable[str], answer: str = "the answer") -> None:
    handles: list[Any] = [Line2D([], [], color="0.8", linewidth=6, label=answer)]
    handles += [Line2D([], [], label=base, **STYLES[base]) for base in bases]
    ax.legend(handles=handles, frameon=False, fontsize=9)


# ---- in space -----------------------------------------------------------------------------------


def draw_gaussian(problem: Problem, flows: Flows, found: Found, path: Path) -> None:
    """Draws in every plane of two coordinates, over one, two and three deviations."""
    columns = columns_of(problem, flows, found, 4000)
    pairs = ((0, 1), (0, 2), (1, 2))
    figure, axes = plt.subplots(
        3, len(columns), figsize=(2.2 * len(columns), 6.9), layout="constrained", squeeze=False
    )
    angle = torch.linspace(0, 2 * math.pi, 200, dtype=torch.float64)
    circle = torch.stack([angle.cos(), angle.sin()])
    mean = problem.targets[:3]
    first, second = torch.triu_indices(3, 3)
    moments = torch.zeros(3, 3, dtype=torch.float64)
    moments[first, second] = moments[second, first] = problem.targets[3:]
    covariance = moments - mean.outer(mean)
    for column, (title, x) in zip(axes.T, columns, strict=True):
        column[0].set_title(title, fontsize=10)
        for ax, (i, j) in zip(column, pairs, strict=True):
            center, reach = mean[[i, j]], 3.9 * covariance.diagonal()[[i, j]].sqrt()
            ends = torch.stack([center - reach, center + reach], -1).flatten().tolist()
            frame(ax, ends, **STRETCHED)
            scatter(ax, x[:, [i, j]], "0.45")
            factor = torch.linalg.cholesky(covariance[[i, j]][:, [i, j]])
            for radius in (1, 2, 3):
                ellipse = center.unsqueeze(-1) + radius * factor @ circle
                ax.plot(*ellipse.numpy(), color=COLORS["normal"], linewidth=0.8)
    for ax, (i, j) in zip(axes[:, 0], pairs, strict=True):
        ax.set_ylabel(f"x{i + 1} (across), x{j + 1}")
    save(figure, path)


def draw_simplex(problem: Problem, flows: Flows, found: Found, path: Path) -> None:
    """Densities on the triangle, with contours of the answer."""
    size = 140
    rows, columns = torch.tril_indices(size, size)
    second, third = columns.double(), (rows - columns).double()
    x = torch.stack([size - 1 - second - third, second, third], -1) + 1 / 3
    x = x / x.sum(-1, keepdim=True)
    across, up = (x[:, 1] + x[:, 2] / 2).numpy(), (x[:, 2] * 3**0.5 / 2).numpy()
    answer = answer_log_density(problem, x).exp()
    panels = [("the answer\n", answer)]
    panels += [
        (titled(problem, base, found), log_density(flows[problem.name, base], x).exp())
        for base in bases_of(problem.name, flows)
    ]
    figure, axes = plt.subplots(
        1, len(panels), figsize=(2.6 * len(panels), 2.8), layout="constrained", squeeze=False
    )
    for ax, (title, density) in zip(axes[0], panels, strict=True):
        image = ax.tripcolor(
            across, up, density.numpy(), shading="gouraud", cmap="Blues", vmin=0,
            vmax=1.15 * float(answer.max()), rasterized=True,
        )  # fmt: skip
        ax.tricontour(
            across, up, answer.numpy(), levels=[1, 3, 5, 7], colors=COLORS["normal"],
            linewidths=0.8,
        )  # fmt: skip
        ax.set_title(title, fontsize=10)
        ax.set(aspect="equal", xlim=(-0.06, 1.06), ylim=(-0.1, 0.95))
        ax.set_axis_off()
        ax.plot([0, 1, 0.5, 0], [0, 0, 3**0.5 / 2, 0], color="0.8", linewidth=0.8)
        for corner, (left, bottom) in zip(
            ("x1", "x2", "x3"), ((0, 0), (1, 0), (0.5, 3**0.5 / 2)), strict=True
        ):
            ax.annotate(
                corner, (left, bottom), (0, -4 if bottom == 0 else 3), textcoords="offset points",
                ha="center", va="top" if bottom == 0 else "bottom", fontsize=9,
            )  # fmt: skip
    figure.colorbar(
        image, ax=axes[0].tolist(), shrink=0.7, label="density of (x1, x2)\nlines: the answer's"
    )
    save(figure, path)


def draw_wells(problems: Problems, flows: Flows, found: Found, path: Path) -> None:
    """Pairs of coordinates, and the masses of all modes in order."""
    rows = [
        (name, pair)
        for name, pair in (("wells4", (0, 1)), ("wells4", (2, 3)), ("wells8", (0, 7)))
        if name in problems and bases_of(name, flows)
    ]
    if not rows:
        return
    names = list(dict.fromkeys(name for name, _ in rows))
    titles = [b for b in BASES if any(b in bases_of(name, flows) for name in names)]
    figure = plt.figure(figsize=(11.5, 2.25 * len(rows) + 3.4), layout="constrained")
    parts: Any = figure.subfigures(2, 1, height_ratios=(2.25 * len(rows), 3.4))
    upper, lower = parts
    axes = upper.subplots(len(rows), 1 + len(titles), squeeze=False)
    for row, (name, (i, j)) in zip(axes, rows, strict=True):
        keys = ["answer", *bases_of(name, flows)]
        drawn = columns_of(problems[name], flows, found, 30_000)
        panels = dict(zip(keys, drawn, strict=True))
        highest = 0.0
        for ax, key in zip(row, ["answer", *titles], strict=True):
            if key not in panels:
                ax.set_axis_off()
                continue
            title, x = panels[key]
            frame(ax, (-2.5, 2.5, -2.5, 2.5))
            counts, left, bottom = np.histogram2d(
                x[:, i].numpy(), x[:, j].numpy(), bins=60, range=[[-2.5, 2.5]] * 2
            )
            highest = counts.max() if key == "answer" else highest  # the first panel
            ax.pcolormesh(
                left, bottom, counts.T, cmap="Blues", norm=PowerNorm(0.6, vmin=0, vmax=highest),
                rasterized=True,
            )  # fmt: skip
            ax.set_title(title, fontsize=10)
        row[0].set_ylabel(f"{name}\nx{i + 1} (across), x{j + 1}")
    for ax, name in zip(lower.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        count = problems[name].num_modes
        ax.axhline(1, color="0.8", linewidth=5)
        for base in bases_of(name, flows):
            entries = sorted(found[name, base], key=lambda entry: entry["kl"])
            masses = sorted(entries[len(entries) // 2]["modes"])
            ax.plot(range(1, count + 1), masses, **STYLES[base])
        ax.set(xlim=(0.5, count + 0.5), xlabel=f"modes of {name}, from the lightest")
        ax.set_ylim(bottom=0)
    lower.axes[0].set_ylabel("mass, as a multiple of\nits share")
    legend(lower.axes[0], titles, "equal masses")
    save(figure, path)


def draw_oscillation(problem: Problem, flows: Flows, found: Found, path: Path) -> None:
    """Draws in planes of entries, and the eigenvalues."""
    columns = columns_of(problem, flows, found, 4000)
    rows = (
        ("a12 (across), a21", (-10, 10, -10, 10)),
        ("a11 (across), a22", (-10, 10, -10, 10)),
        ("real (across) and imaginary\npart of the eigenvalue", (-1.5, 1.5, 4.2, 8.4)),
    )
    figure, axes = plt.subplots(
        3, len(columns), figsize=(2.3 * len(columns), 7.2), layout="constrained", squeeze=False
    )
    for column, (title, x) in zip(axes.T, columns, strict=True):
        column[0].set_title(title, fontsize=10)
        points = (x[:, [1, 2]], x[:, [0, 3]], torch.stack(eigenvalue(x.double()), -1))
        for ax, y, (_, limits) in zip(column, points, rows, strict=True):
            frame(ax, limits, **STRETCHED)
            scatter(ax, y, INK, 1.2, alpha=0.5)
        for deviations in (1, 2):
            angle = torch.linspace(0, 2 * math.pi, 200)
            column[2].plot(
                (deviations * 0.25 * angle.cos()).numpy(),
                (2 * math.pi + deviations * math.pi / 5 * angle.sin()).numpy(),
                color=COLORS["normal"], linewidth=0.8,
            )  # fmt: skip
    for ax, (label, _) in zip(axes[:, 0], rows, strict=True):
        ax.set_ylabel(label)
    save(figure, path)


# ---- over time ----------------------------------------------------------------------------------


def draw_rounds(problems: Problems, found: Found, path: Path) -> None:
    """Entropy, and the divergence from the answer, after every round."""
    names = [name for name in problems if any((name, base) in found for base in BASES)]
    if not names:
        return
    blocks = -(-len(names) // 4)
    figure = plt.figure(figsize=(11.5, 4.6 * blocks), layout="constrained")
    rows: Any = figure.subfigures(blocks, 1, squeeze=False)
    parts = [part.subplots(2, 4, sharex="col") for part in rows[:, 0]]
    columns = [(top, bottom) for part in parts for top, bottom in part.T]
    for top, bottom in columns[len(names) :]:
        top.set_axis_off()
        bottom.set_axis_off()
    for (top, bottom), name in zip(columns, names, strict=False):
        truth, targets = problems[name].truth, problems[name].targets
        top.axhline(truth.entropy, color="0.8", linewidth=5)
        for base in BASES:
            entries = sorted(found.get((name, base), []), key=lambda entry: entry["kl"])
            if not entries:
                continue
            rounds = entries[len(entries) // 2]["rounds"]
            entropy = torch.tensor(rounds["entropy"], dtype=torch.float64)
            violations = torch.tensor(rounds["violations"], dtype=torch.float64)
            assert violations.shape[1] == len(targets)
            kl = truth.entropy - entropy + violations @ truth.multipliers
            steps = range(1, len(entropy) + 1)
            top.plot(steps, entropy.numpy(), **STYLES[base])
            bottom.plot(steps, kl.clamp(min=1e-4).numpy(), **STYLES[base])
        top.set_title(name, fontsize=10)
        bottom.set(yscale="log", xlabel="round")
        bottom.locator_params(axis="x", integer=True)
    for part in parts:
        part[0, 0].set_ylabel("entropy")
        part[1, 0].set_ylabel("KL to the answer")
    legend(columns[0][0], [b for b in BASES if any((name, b) in found for name in names)])
    save(figure, path)


def draw_figures(problems: Problems, flows: Flows, found: Found, prefix: Path) -> None:
    """Draws all that there are results for."""
    draw_lines(problems, flows, beside(prefix, "densities.png"))
    for name, what, draw in (
        ("gaussian", "gaussian", draw_gaussian),
        ("dirichlet", "simplex", draw_simplex),
        ("oscillation", "oscillation", draw_oscillation),
    ):
        if name in problems and bases_of(name, flows):
            draw(problems[name], flows, found, beside(prefix, f"{what}.png"))
    draw_wells(problems, flows, found, beside(prefix, "wells.png"))
    draw_rounds(problems, found, beside(prefix, "rounds.png"))
