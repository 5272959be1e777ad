"""Figures of outliers.py and images.py."""

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from benchmarks.common.figures import grid, labelled_grid, save
from benchmarks.common.store import Numbers
from benchmarks.dcgmm.data import Images
from benchmarks.dcgmm.localisation import PROJECTION, maps_of, paste_into, simple_maps
from benchmarks.dcgmm.trained import Trained
from pyromix.dcgmm.presets import PRESETS
from pyromix.plotting import plot_images

SHOWN = 64  # draws
EXAMPLES = 8
MAPPED = ("2L-a", "2L-c", "2L-e", "3L-a", "flat 36, EM, floor 0.05")


def show(ax: Any, images: Tensor, title: str = "", **options: Any) -> None:
    """Images of shape (N, 1, H, W) side by side, with a title."""
    plot_images(images[:, 0], ax, **options)
    ax.set_title(title, fontsize=9)


def drawn(model: Any, count: int, **options: Any) -> Tensor:
    """Mean images that a model draws, the same codes at the top for all options."""
    torch.manual_seed(0)
    with torch.no_grad():
        return model.sample((count,), noise=False, **options)


# ---- outliers -----------------------------------------------------------------------------------


def draw_curves(results: dict[str, Numbers], path: Path) -> None:
    """Shares of outliers caught and of inliers kept, for thresholds from -2 to 2."""
    figure, ax = plt.subplots(figsize=(6.4, 5.6), layout="constrained")
    colors = plt.get_cmap("tab20").colors  # type: ignore[attr-defined]
    for i, (name, numbers) in enumerate(results.items()):
        style = "-" if name in PRESETS else "--"
        ax.plot(
            [100 * v for v in numbers["caught"]], [100 * v for v in numbers["kept"]], style,
            color=colors[i % len(colors)], label=name, linewidth=1.4,
        )  # fmt: skip
    ax.plot([0, 100], [100, 0], color="0.8", linewidth=0.8, zorder=0)
    ax.set(
        xlabel="outliers caught (%)", ylabel="inliers kept (%)", xlim=(0, 100), ylim=(0, 100),
        aspect="equal",
    )  # fmt: skip
    ax.legend(fontsize=7, frameon=False, loc="lower left")
    save(figure, path)


def draw_maps(trained: Trained, path: Path) -> None:
    """Images with a foreign part, and how odd methods find each of their pixels."""
    pasted = paste_into(trained.data, EXAMPLES)
    columns: dict[str, Tensor] = {}
    for name, model in trained.only(MAPPED).all().items():
        columns |= maps_of(name, model, pasted.images)
    columns[PROJECTION] = simple_maps(trained.data, pasted.images)[PROJECTION]
    titles = [title.replace(", ", "\n", 1) for title in columns]
    figure, axes = labelled_grid([""] * EXAMPLES, ["image", "pasted part", *titles])
    for row, ax in enumerate(axes):
        options: dict[str, Any] = {"cmap": "gray_r", "vmin": 0, "vmax": 1}
        ax[0].imshow(pasted.images[row, 0].numpy(), **options)
        ax[1].imshow(pasted.mask[row].numpy(), **options)
        for image, values in zip(ax[2:], columns.values(), strict=True):
            image.imshow(values[row].numpy(), cmap="magma")
        for each in ax:
            each.set(xticks=[], yticks=[])
    for ax in axes[0]:
        ax.set_title(ax.get_title(), fontsize=8)
    save(figure, path)


# ---- draws --------------------------------------------------------------------------------------


def draw_models(models: dict[str, Any], data: Images, path: Path) -> None:
    """Draws from the most probable components only, of all models side by side (Fig. 4)."""
    figure, axes = grid(-(-(len(models) + 1) // 3), 3, size=3.2)
    for ax in axes.flat:
        ax.set_axis_off()
    show(axes.flat[0], data.test[:SHOWN], "test images")
    for ax, (name, model) in zip(axes.flat[1:], models.items(), strict=False):
        show(ax, drawn(model, SHOWN, top_s=1), f"{name}, top 1")
    save(figure, path)


def draw_diversity(name: str, model: Any, path: Path) -> None:
    """Draws from the 1, 2, 5 and 10 most probable components, and from the law (Fig. 6)."""
    figure, axes = grid(2, 3, size=3.2)
    for ax, top in zip(axes.flat, (1, 2, 5, 10), strict=False):
        show(ax, drawn(model, SHOWN, top_s=top), f"{name}, top {top}")
    show(axes[1, 1], drawn(model, SHOWN), "the law, mean images")
    torch.manual_seed(0)
    show(axes[1, 2], model.sample((SHOWN,)), "the law")
    save(figure, path)


def draw_sharpening(models: dict[str, Any], steps: int, path: Path) -> None:
    """Draws as they are, sharpened, and the difference (Fig. 7)."""
    figure, axes = grid(len(models), 3, size=3.2)
    for row, (name, model) in zip(axes, models.items(), strict=True):
        before = drawn(model, SHOWN, top_s=1)
        after = drawn(model, SHOWN, top_s=1, sharpen_steps=steps)
        show(row[0], before, f"{name}, top 1")
        show(row[1], after, f"after {steps} steps of sharpening")
        show(row[2], after - before, "difference", cmap="RdBu_r", vmin=-1)
    save(figure, path)


def draw_classes(models: dict[str, Any], classes: int, path: Path) -> None:
    """Draws of every class, a row each."""
    figure, axes = grid(1, len(models), size=3.2)
    for ax, (name, model) in zip(axes[0], models.items(), strict=True):
        torch.manual_seed(0)
        images = model.sample_class(torch.arange(classes), (10,), top_s=1, noise=False)
        show(ax, images.transpose(0, 1).flatten(0, 1), name, columns=10)
    save(figure, path)


# ---- completions --------------------------------------------------------------------------------


def draw_completions(columns: dict[str, dict[str, Tensor]], path: Path) -> None:
    """Images with hidden parts and their completions: a block for each task, methods side by side.

    Args:
        columns: Task -> method -> images of shape (N, 1, H, W).
        path: File to write.
    """
    methods = list(next(iter(columns.values())))
    figure, axes = labelled_grid(columns, methods)
    for row, images in zip(axes, columns.values(), strict=True):
        for ax, values in zip(row, images.values(), strict=True):
            plot_images(values[:, 0], ax, columns=3)
            ax.set_axis_on()
            ax.set(xticks=[], yticks=[])
    for ax in axes[0]:
        ax.set_title(ax.get_title(), fontsize=8)
    save(figure, path)
