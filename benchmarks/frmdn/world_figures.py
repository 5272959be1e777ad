"""Figures of world_model.py: the table, and dreams beside what happens."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from benchmarks.common.figures import BLUE, GRAY, INK, RED, draw_fan, frame, hide_sides, save
from benchmarks.frmdn.pinball import BUMPERS, RADIUS


def draw_table(scores: Mapping[tuple[str, int, int], float], title: str, path: Path) -> None:
    """Negative log-likelihoods against rank, a panel for every number of components."""
    components = sorted({k for _, k, _ in scores})
    figure, axes = plt.subplots(
        1, len(components), figsize=(3.1 * len(components) + 0.6, 3.2), sharey=True,
        layout="constrained", squeeze=False,
    )  # fmt: skip
    for ax, k in zip(axes[0], components, strict=True):
        for name, color in (("RMDN", RED), ("FRMDN", BLUE)):
            points = sorted((r, s) for (n, c, r), s in scores.items() if (n, c) == (name, k))
            if points:
                ax.plot(*zip(*points, strict=True), "o-", color=color, label=name)
        ax.set(title=f"K = {k}", xlabel="rank", xticks=sorted({r for _, _, r in scores}))
        ax.grid(alpha=0.3)
    axes[0, 0].set_ylabel("nats a step, lower is better")
    axes[0, -1].legend(frameon=False)
    figure.suptitle(title, fontsize=10)
    save(figure, path)


# ---- pinball ------------------------------------------------------------------------------------


class Readout:
    """Where the puck is, from codes: ridge regression on random features, the same for all."""

    def __init__(self, codes: Tensor, positions: Tensor, width: int = 500) -> None:
        generator = torch.Generator().manual_seed(0)
        self.loc, self.scale = codes.mean(0), codes.std(0)
        self.inward = 0.5 * torch.randn(codes.shape[-1], width, generator=generator)
        self.shift = torch.randn(width, generator=generator)
        features = self._features(codes).double()
        gram = features.T @ features + 1e-3 * len(codes) * torch.eye(width + 1).double()
        self.outward = torch.linalg.solve(gram, features.T @ positions.double()).float()

    def __call__(self, codes: Tensor) -> Tensor:
        return self._features(codes) @ self.outward

    def _features(self, codes: Tensor) -> Tensor:
        hidden = torch.tanh((codes - self.loc) / self.scale @ self.inward + self.shift)
        return torch.cat([hidden, torch.ones_like(hidden[..., :1])], -1)


def draw_paths(
    futures: Mapping[str, Tensor], past: Tensor, readout: Readout, path: Path, shown: int = 12
) -> None:
    """Runs of the system, and dreams, from the same pasts; a row for every past.

    Args:
        futures: Codes of shape (number of runs, number of pasts, T, D).
        past: Codes of shape (number of pasts, t, D).
        readout: From codes to the table.
        path: Of the figure.
        shown: Runs whose path is drawn; of the others the last place.
    """
    rows, columns = len(past), len(futures)
    figure, axes = plt.subplots(
        rows, columns, figsize=(2.6 * columns, 2.6 * rows + 0.4), layout="constrained",
        squeeze=False,
    )  # fmt: skip
    for row in range(rows):
        before = readout(past[row])[-5:]
        for ax, (name, codes) in zip(axes[row], futures.items(), strict=True):
            table(ax)
            places = readout(codes[:, row])
            for one in places[:shown]:
                joined = torch.cat([before[-1:], one])
                ax.plot(*joined.T.numpy(), color=BLUE, linewidth=0.8, alpha=0.5)
            ax.scatter(*places[:, -1].T.numpy(), s=9, color=RED, linewidths=0, zorder=3)
            ax.plot(*before.T.numpy(), ".-", color=INK, linewidth=1.6, markersize=4)
            if row == 0:
                ax.set_title(name, fontsize=10)
    save(figure, path)


def table(ax: Any) -> None:
    """Walls and bumpers."""
    ax.add_patch(plt.Rectangle((-1, -1), 2, 2, fill=False, color=GRAY))
    for center in BUMPERS:
        ax.add_patch(plt.Circle(center, RADIUS, color="0.9", zorder=0))
    frame(ax, (-1.15, 1.15, -1.15, 1.15))
    hide_sides(ax)


def draw_fans(
    futures: Mapping[str, Tensor], past: Tensor, real: Tensor, coordinates: list[int], path: Path
) -> None:
    """Quantiles of runs and dreams over time, with what really happened; one past.

    Args:
        futures: Codes of shape (number of runs, T, D).
        past: Codes of shape (t, D).
        real: Codes of shape (T, D).
        coordinates: Those to draw.
        path: Of the figure.
    """
    rows, columns = len(coordinates), len(futures)
    figure, axes = plt.subplots(
        rows, columns, figsize=(3.3 * columns, 1.9 * rows + 0.4), layout="constrained",
        sharex=True, sharey="row", squeeze=False,
    )  # fmt: skip
    start = len(past)
    before, after = range(1, start + 1), range(start + 1, start + 1 + len(real))
    for row, d in enumerate(coordinates):
        for ax, (name, codes) in zip(axes[row], futures.items(), strict=True):
            draw_fan(ax, after, codes[..., d], BLUE)
            ax.plot(before, past[:, d].numpy(), color=INK, linewidth=1.2)
            for one in codes[:3, :, d]:
                ax.plot(after, one.numpy(), color=BLUE, linewidth=0.7, alpha=0.8)
            ax.plot(after, real[:, d].numpy(), color=RED, linewidth=1.2)
            ax.axvline(start + 0.5, color=GRAY, linewidth=0.8, linestyle=":")
            if row == 0:
                ax.set_title(name, fontsize=10)
        axes[row, 0].set_ylabel(f"code {d + 1}")
    for ax in axes[-1]:
        ax.set_xlabel("frame")
    save(figure, path)


# ---- frames -------------------------------------------------------------------------------------


def draw_film(strips: Mapping[str, Tensor], every: int, first: int, path: Path) -> None:
    """Frames of shape (T, 3, H, W), from 0 to 1, one strip under the other.

    Args:
        strips: What to show, by label.
        every: Frames from one that is shown to the next.
        first: Number of the first frame.
        path: Of the figure.
    """
    places = range(0, len(next(iter(strips.values()))), every)
    rows, columns, margin = len(strips), len(places), 1.5
    width, height = columns + margin, rows + 0.3
    figure, axes = plt.subplots(
        rows, columns, figsize=(width, height), squeeze=False,
        gridspec_kw={"wspace": 0.04, "hspace": 0.04},
    )  # fmt: skip
    for row, (label, frames) in zip(axes, strips.items(), strict=True):
        for ax, place in zip(row, places, strict=True):
            ax.imshow(frames[place].permute(1, 2, 0).clamp(0, 1).numpy())
            ax.set(xticks=[], yticks=[])
            hide_sides(ax)
        row[0].set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9)
    for ax, place in zip(axes[0], places, strict=True):
        ax.set_title(f"{first + place}", fontsize=8)
    figure.subplots_adjust(left=margin / width, right=0.995, bottom=0.01, top=1 - 0.25 / height)
    save(figure, path)
