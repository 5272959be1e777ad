"""Pieces of figures that several benchmarks draw."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from torch import Tensor

INK, BLUE, RED, GREEN, GRAY = "#1b1f24", "#2a6fb0", "#c8352b", "#3a9a4b", "0.55"

Limits = tuple[float, float, float, float]  # left, right, bottom, top


def save(figure: Any, path: Path, dpi: int = 130) -> None:
    """Writes a figure to a file, whose folder is made, closes it, and says where it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=dpi)
    plt.close(figure)
    print(f"figure: {path}", flush=True)


def scatter(ax: Axes, x: Tensor, color: Any = INK, size: float = 1.0, **options: Any) -> None:
    """Draws points of shape (N, 2) as dots."""
    across, up = x.T.tolist()
    options = {"linewidths": 0, "rasterized": True} | options
    ax.scatter(across, up, s=size, color=color, **options)


def frame(ax: Axes, limits: Sequence[float], **options: Any) -> None:
    """Gives axes limits and a pale frame, and takes ticks away."""
    left, right, bottom, top = limits
    options = {"aspect": "equal", "xticks": [], "yticks": []} | options
    ax.set(xlim=(left, right), ylim=(bottom, top), **options)
    for side in ax.spines.values():
        side.set_color("0.8")


def hide_sides(ax: Axes, *sides: str) -> None:
    """Takes the lines at some sides of axes away; by default all."""
    for side in sides or ax.spines:
        ax.spines[side].set_visible(False)


def grid(rows: int, columns: int, size: float = 2.1) -> tuple[Any, Any]:
    """A figure and an array of square axes."""
    return plt.subplots(
        rows, columns, figsize=(size * columns, size * rows + 0.3), layout="constrained",
        squeeze=False,
    )  # fmt: skip


def labelled_grid(rows: Iterable[str], columns: Iterable[str]) -> tuple[Any, Any]:
    """A figure and an array of square axes, with a label for every row and column."""
    rows, columns = list(rows), list(columns)
    figure, axes = grid(len(rows), len(columns))
    for ax, label in zip(axes[:, 0], rows, strict=True):
        ax.set_ylabel(label)
    for ax, title in zip(axes[0], columns, strict=True):
        ax.set_title(title, fontsize=10)
    return figure, axes


def draw_fan(ax: Axes, times: Any, draws: Tensor, color: str) -> None:
    """Shades the middle 90% and 50% of draws of shape (N, T) over time."""
    for tail, alpha in ((0.05, 0.3), (0.25, 0.4)):
        low, high = draws.quantile(torch.tensor([tail, 1 - tail]), 0).numpy()
        ax.fill_between(times, low, high, color=color, alpha=alpha, linewidth=0)


# ---- methods compared on several data sets ------------------------------------------------------

Styles = Mapping[str, Mapping[str, Any]]  # color and marker, by method


def label_rows(ax: Axes, names: Sequence[str]) -> None:
    """Makes room for a row of every data set, from the top, with lines between them."""
    ax.grid(axis="x", alpha=0.3)
    ax.tick_params(axis="y", length=0)
    for row in range(1, len(names)):
        ax.axhline(row - 0.5, color="0.8", linewidth=0.8)
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.5, -0.5)


def draw_row(ax: Axes, row: int, mean: Tensor, error: Tensor, styles: Styles) -> None:
    """Draws means and standard errors of all methods one below the other; NaN is left out."""
    for i, style in enumerate(styles.values()):
        if not mean[i].isnan():
            y = row + 0.12 * (i - (len(styles) - 1) / 2)
            options: dict[str, Any] = {"linestyle": "", "markersize": 5, "capsize": 2}
            ax.errorbar(float(mean[i]), y, xerr=float(error[i]), **(options | dict(style)))


def method_legend(figure: Any, styles: Styles, columns: int) -> None:
    """A legend of all methods below the axes."""
    handles = [
        plt.Line2D([], [], linestyle="", markersize=5, label=name, **style)
        for name, style in styles.items()
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False)
