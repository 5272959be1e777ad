"""Pictures of what a guide found."""

__all__ = ["plot_draws"]

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Numbers of latent variables, modes with a colour of their own, and bars of a histogram.
MOST_NUMBERS, MOST_MODES, BARS = 11, 5, 60
# Share of draws that axes leave out on each side.
LEFT_OUT = 0.001
COLUMNS = 4


def plot_draws(
    draws: Mapping[str, Tensor], log_weight: Tensor, of_draw: Tensor | None, title: str
) -> "Figure":
    """Histograms of draws, with weights and without, and the weights; see `GuideResult.plot`.

    Args:
        draws: By the name of a site, n of each on the left.
        log_weight: Logarithms of their weights, (n,), which sum to one.
        of_draw: Number of the mode of each, (n,); None where modes are not known.
        title: Above the weights.
    """
    import matplotlib.pyplot as plt  # a second: not on import

    numbers = _numbers(draws)
    shown = list(numbers.items())[:MOST_NUMBERS]
    rows = math.ceil((len(shown) + 1) / COLUMNS)
    columns = min(COLUMNS, len(shown) + 1)
    figure, grid = plt.subplots(
        rows, columns, figsize=(3.2 * columns, 2.5 * rows), layout="constrained", squeeze=False
    )
    axes = grid.flatten()
    weight = log_weight.exp().cpu()
    groups = [torch.ones_like(weight, dtype=torch.bool)]
    if of_draw is not None:
        count = min(int(of_draw.max()) + 1, MOST_MODES)
        groups = [of_draw.cpu() == i for i in range(count)] + [of_draw.cpu() >= count]
        groups = [group for group in groups if group.any()]
    for ax, (name, values) in zip(axes, shown, strict=False):
        low, high = values.double().quantile(torch.tensor([LEFT_OUT, 1 - LEFT_OUT]).double())
        edges = torch.linspace(float(low), float(high) + 1e-12, BARS + 1).numpy()
        ax.hist(
            [values[group].numpy() for group in groups],
            edges,
            weights=[weight[group].numpy() for group in groups],
            stacked=True,
            alpha=0.6,
        )
        plain = torch.full_like(weight, 1 / len(weight)).numpy()
        ax.hist(values.numpy(), edges, weights=plain, histtype="step", color="black", lw=0.8)
        ax.set(title=name, yticks=[])
    ax = axes[len(shown)]
    ordered = (weight * len(weight)).sort(descending=True).values
    ax.loglog(torch.arange(1, len(weight) + 1).numpy(), ordered.clamp(min=1e-6).numpy())
    ax.axhline(1, color="0.7", lw=0.8, zorder=0)
    ax.set(xlabel="draw", ylabel="weight, in means")
    ax.set_title(title, fontsize="medium")
    for ax in axes[len(shown) + 1 :]:
        ax.set_axis_off()
    return figure


def _numbers(draws: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Draws (n,) of every number of the latent variables, by name."""
    found = {}
    for site, value in draws.items():
        flat = value.reshape(len(value), -1).cpu()
        for i in range(flat.shape[1]):
            index = (
                torch.unravel_index(torch.tensor(i), value.shape[1:]) if value.dim() > 1 else ()
            )
            place = ", ".join(str(int(j)) for j in index)
            found[f"{site}[{place}]" if place else site] = flat[:, i]
    return found
