"""Figures of plane.py: what flows in the plane draw, what they make of data, and how."""

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.colors import hsv_to_rgb
from matplotlib.lines import Line2D
from torch import Tensor

from benchmarks.common.figures import (
    BLUE,
    GREEN,
    INK,
    RED,
    Limits,
    frame,
    grid,
    labelled_grid,
    save,
    scatter,
)
from benchmarks.common.zuko_flow import ZukoFlow
from pyromix.rad import FoldingCoupling

PIECES = {"left piece": RED, "middle piece": GREEN, "right piece": BLUE, "one preimage": "black"}
PEER = "affine (zuko)"  # the stronger ones

Models = dict[tuple[str, str], Any]  # by kind and problem


def dots(ax: Axes, x: Tensor, color: Any = INK, size: float = 1.5, alpha: float = 0.5) -> None:
    """Draws many points, which may lie upon each other."""
    scatter(ax, x, color, size, alpha=alpha)


def square(x: Tensor, margin: float = 1.15, tail: float = 0.0) -> Limits:
    """Limits of a square around points, but for a tail of them on either side."""
    low, high = x.quantile(tail, 0), x.quantile(1 - tail, 0)
    center, half = (low + high) / 2, float((high - low).max()) / 2 * margin
    return (
        float(center[0]) - half, float(center[0]) + half,
        float(center[1]) - half, float(center[1]) + half,
    )  # fmt: skip


def kinds(models: Models, wanted: tuple[str, ...]) -> list[str]:
    """Those kinds of models that were trained."""
    return [kind for kind in wanted if any(k == kind for k, _ in models)]


# ---- samples, latents, densities ----------------------------------------------------------------


def draw_samples(models: Models, points: dict[str, Tensor], path: Path) -> None:
    rows = kinds(models, (PEER, "spline", "RAD"))
    figure, axes = labelled_grid(["data", *rows], points)
    for column, (problem, x) in enumerate(points.items()):
        limits = square(x, margin=1.25)
        drawn = [x[:5000], *(models[kind, problem].sample((5000,)) for kind in rows)]
        for ax, y in zip(axes[:, column], drawn, strict=True):
            frame(ax, limits)
            dots(ax, y)
    save(figure, path)


def draw_gaussianization(models: Models, points: dict[str, Tensor], path: Path) -> None:
    rows = kinds(models, (PEER, "RAD"))
    figure, axes = labelled_grid(rows, points)
    for column, (problem, x) in enumerate(points.items()):
        for ax, kind in zip(axes[:, column], rows, strict=True):
            frame(ax, (-4, 4, -4, 4))
            dots(ax, models[kind, problem].encode(x)[0], size=1.2, alpha=0.35)
            for radius in (1, 2, 3):
                circle = plt.Circle((0, 0), radius, fill=False, color=RED, linewidth=0.8)
                ax.add_patch(circle)
    save(figure, path)


def draw_densities(models: Models, points: dict[str, Tensor], path: Path) -> None:
    """Log-densities, from the largest, or nearly, to ten nats less."""
    rows = kinds(models, (PEER, "RAD"))
    figure, axes = labelled_grid(rows, points)
    for column, (problem, x) in enumerate(points.items()):
        limits = square(x, margin=1.25)
        steps = [torch.linspace(*ends, 240) for ends in (limits[:2], limits[2:])]
        places = torch.stack(torch.meshgrid(*steps, indexing="xy"), -1)
        images = [models[kind, problem].log_prob(places) for kind in rows]
        top = max(float(image.flatten().quantile(0.998)) for image in images)
        for ax, image in zip(axes[:, column], images, strict=True):
            frame(ax, limits)
            ax.imshow(
                image.numpy(), extent=limits, origin="lower", cmap="Blues", vmin=top - 10,
                vmax=top, interpolation="bilinear",
            )  # fmt: skip
    save(figure, path)


# ---- layer by layer -----------------------------------------------------------------------------


def position_colors(x: Tensor) -> Any:
    """A hue for every direction from the middle, paler towards it."""
    centered = (x - x.mean(0)) / x.std(0)
    radius = centered.norm(dim=-1)
    hue = torch.atan2(centered[:, 1], centered[:, 0]) / (2 * torch.pi) + 0.5
    saturation = 0.25 + 0.75 * (radius / radius.quantile(0.98)).clamp(max=1)
    return hsv_to_rgb(torch.stack([hue, saturation, torch.full_like(hue, 0.85)], -1).numpy())


def walk_peer(law: ZukoFlow, x: Tensor) -> list[Tensor]:
    """The data, and what each coupling makes of them."""
    stages = [(x - law.loc) / law.scale]
    for transform in law.flow().transform.transforms:
        stages.append(transform(stages[-1]))
    return stages


def walk_rad(rad: Any, x: Tensor) -> tuple[list[Tensor], list[list[str]]]:
    """The data, what each layer makes of them, and a colour for the piece that a point is on."""
    stages, colors = [], []
    palette = list(PIECES.values())
    for transform in reversed(rad.transforms):
        if not isinstance(transform, FoldingCoupling):
            stages.append(transform.inv(x))
        else:
            z, branch = transform.encode(x)
            single = transform.log_branch_prob(z, x) == 0
            pieces = torch.where(single, 3, branch.squeeze(-1))
            colors.append([palette[i] for i in pieces.tolist()])
            stages.append(z)
        x = stages[-1]
    return stages, colors


def draw_folding(models: Models, problem: str, x: Tensor, path: Path) -> None:
    if not {PEER, "RAD"} <= set(kinds(models, (PEER, "RAD"))):
        return
    x = x[:6000]
    colors = position_colors(x)
    peer = walk_peer(models[PEER, problem], x)
    rad, pieces = walk_rad(models["RAD", problem], x)
    figure, axes = grid(4, len(rad))
    for row, stages in enumerate((peer, rad)):
        for column, (ax, stage) in enumerate(zip(axes[row], stages, strict=True)):
            frame(ax, square(stage, tail=0.002))
            dots(ax, stage, colors, alpha=0.7)
            if row == 0:
                title = "data" if column == 0 else f"after layer {column}"
                ax.set_title(title + (" (z)" if column == len(stages) - 1 else ""), fontsize=10)
    for layer, color in enumerate(pieces):
        axes[2, layer].set_title(f"layer {layer + 1}", fontsize=10)
        for row, stage in ((2, rad[layer]), (3, rad[layer + 1])):
            frame(axes[row, layer], square(stage, tail=0.002))
            dots(axes[row, layer], stage, color, alpha=0.6)
    labels = (PEER, "RAD", "RAD: into the layer", "RAD: out of it")
    for ax, label in zip(axes[:, 0], labels, strict=True):
        ax.set_ylabel(label)
    axes[2, -1].set_axis_off()
    axes[3, -1].set_axis_off()
    handles = [
        Line2D([], [], marker="o", linestyle="", markersize=5, color=color, label=label)
        for label, color in PIECES.items()
    ]
    axes[2, -1].legend(handles=handles, loc="center", frameon=False, fontsize=10)
    save(figure, path)
