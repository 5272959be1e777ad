"""Pictures of the law of a row: one column, two, how much columns tell of each other, gaps."""

__all__ = ["plot_column", "plot_dependence", "plot_missing", "plot_pair"]

from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Generator

from .columns import Choice, Date, Number
from .frames import Frame, read

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Draws of a picture of two columns, bars of a histogram, and labels that fit on an axis.
DRAWS, BARS, LABELS = 4000, 40, 30
# Quantiles between which a numeric column is shown.
SHOWN = (0.002, 0.998)
# Positive numbers that range over more than such a factor have logarithmic axes.
WIDE = 100.0


def plot_column(law: Any, name: str, ax: "Axes | None" = None) -> "Axes":
    """The law of a column: bars of probabilities, of labels or of intervals of numbers.

    Args:
        law: The law.
        name: The column.
        ax: Where to draw; by default the current axes.
    """
    ax = _axes(ax)
    column = law.schema[name]
    assert isinstance(column, Number | Choice)
    if isinstance(column, Choice):
        probs = law.predict_proba(name)
        shown = list(probs) if column.ordered else sorted(probs, key=lambda v: -probs[v])
        shown = shown[:LABELS]
        ax.bar([str(value) for value in shown], [probs[value] for value in shown])
        _turn_labels(ax, [str(value) for value in shown])
        ax.set_ylabel("probability")
    else:
        drawn = _plain(np.asarray(_draws(law.marginal(name), 5 * DRAWS)[name]))
        low, high = np.quantile(drawn, SHOWN).tolist()
        wide = _is_wide(column, low, high)
        edges = np.geomspace(low, high, BARS + 1) if wide else _edges(low, high, column.step)
        if wide:
            ax.set_xscale("log")
        ax.hist(drawn, bins=edges.tolist(), weights=np.full(len(drawn), 1 / len(drawn)))
        if isinstance(column, Date):
            _dates(ax, "x")
        ax.set_ylabel("probability of an interval")
    ax.set_xlabel(name)
    return ax


def plot_pair(law: Any, first: str, second: str, ax: "Axes | None" = None) -> "Axes":
    """The law of two columns.

    Args:
        law: The law.
        first: The column on the horizontal axis.
        second: The column on the vertical axis.
        ax: Where to draw; by default the current axes.

    Returns:
        The axes: points for two columns of numbers, boxes from the first quartile to the third
        for numbers beside labels, and a map of probabilities for labels.
    """
    ax = _axes(ax)
    labels = [isinstance(law.schema[name], Choice) for name in (first, second)]
    drawn = _draws(law.marginal([first, second]), DRAWS)
    if all(labels):
        rows, columns = (_values(law, name)[:LABELS] for name in (second, first))
        share = np.array(
            [[((drawn[first] == c) & (drawn[second] == r)).mean() for c in columns] for r in rows]
        )
        image = ax.imshow(share, cmap="Greys", vmin=0, aspect="auto", origin="lower")
        ax.figure.colorbar(image, ax=ax, label="probability")
        ax.set_xticks(range(len(columns)), [str(c) for c in columns])
        ax.set_yticks(range(len(rows)), [str(r) for r in rows])
        _turn_labels(ax, [str(c) for c in columns])
    elif any(labels):
        chosen, other = (first, second) if labels[0] else (second, first)
        values = _values(law, chosen)[:LABELS]
        groups = [np.asarray(drawn[other])[np.asarray(drawn[chosen] == v)] for v in values]
        kept = [(v, g) for v, g in zip(values, groups, strict=True) if len(g)]
        ax.boxplot(
            [_plain(g) for _, g in kept],
            tick_labels=[str(v) for v, _ in kept],
            showfliers=False,
            orientation="vertical" if labels[0] else "horizontal",
        )
        if isinstance(law.schema[other], Date):
            _dates(ax, "y" if labels[0] else "x")
        elif kept and _is_wide(
            law.schema[other], *np.quantile(_plain(np.concatenate([g for _, g in kept])), SHOWN)
        ):
            (ax.set_yscale if labels[0] else ax.set_xscale)("log")
        if labels[0]:
            _turn_labels(ax, [str(v) for v, _ in kept])
    else:
        for place, scale, name in (
            (ax.set_xlim, ax.set_xscale, first),
            (ax.set_ylim, ax.set_yscale, second),
        ):
            low, high = law.quantile(name, SHOWN)
            if _is_wide(law.schema[name], low, high):
                scale("log")
            if low < high:
                place(low, high)
        ax.scatter(drawn[first], drawn[second], s=3, alpha=0.3, linewidths=0)
        for axis, name in (("x", first), ("y", second)):
            if isinstance(law.schema[name], Date):
                _dates(ax, axis)
    ax.set_xlabel(first)
    ax.set_ylabel(second)
    return ax


def plot_dependence(law: Any, ax: "Axes | None" = None) -> "Axes":
    r"""How much each column tells of each other, from 0 to 1.

    It is :math:`\sqrt{1 - e^{-2 I}}` of the mutual information I: of two normals, the absolute
    value of their correlation.

    Args:
        law: The law.
        ax: Where to draw; by default the current axes.
    """
    ax = _axes(ax)
    names = law.names
    strength = np.eye(len(names))
    for i, first in enumerate(names):
        for j, second in enumerate(names[:i]):
            information = float(law.mutual_information(first, second))
            strength[i, j] = strength[j, i] = np.sqrt(1 - np.exp(-2 * information))
    image = ax.imshow(strength, cmap="Greys", vmin=0, vmax=1)
    ax.figure.colorbar(image, ax=ax, label="dependence")
    ax.set_xticks(range(len(names)), names, rotation=90)
    ax.set_yticks(range(len(names)), names)
    return ax


def plot_missing(frame: Frame, ax: "Axes | None" = None) -> "Axes":
    """Where values of a frame are missing: rows from top to bottom, columns side by side.

    Args:
        frame: The frame.
        ax: Where to draw; by default the current axes.
    """
    ax = _axes(ax)
    table = read(frame)
    gone = np.stack([values.missing for values in table], 1)
    ax.imshow(gone, cmap="Greys", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    names = [f"{v.name} ({100 * v.missing.mean():.0f}%)" for v in table]
    ax.set_xticks(range(len(names)), names, rotation=90)
    ax.set_ylabel("row")
    return ax


def _is_wide(column: Number | Choice, low: Any, high: Any) -> bool:
    """Whether a range of a column is better seen by its logarithms."""
    if isinstance(column, Choice | Date) or column.map.form != "log":
        return False
    return bool(low > 0 and high > WIDE * low)


def _edges(low: float, high: float, step: float | None) -> np.ndarray:
    """Ends of bars; each holds as many multiples of a step."""
    if not low < high:
        high = low + (step or 1.0)
    if step is None:
        return np.linspace(low, high, BARS + 1)
    width = step * np.ceil((high - low) / (BARS * step))
    return np.arange(low - step / 2, high + width, width)


def _axes(ax: "Axes | None") -> "Axes":
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt  # a second: not on import

    return plt.gca()


def _draws(law: Any, count: int) -> dict[str, np.ndarray]:
    """Draws of all columns, by name; days since 1970 for dates."""
    drawn: dict[str, np.ndarray] = law.draws(count, generator=Generator().manual_seed(0))
    return drawn


def _values(law: Any, name: str) -> list[Any]:
    """Labels of a column: in their order, or the likeliest first."""
    column = law.schema[name]
    assert isinstance(column, Choice)
    probs = law.predict_proba(name)
    return list(probs) if column.ordered else sorted(probs, key=lambda value: -probs[value])


def _plain(x: np.ndarray) -> np.ndarray:
    """Numbers; dates as days, as Matplotlib counts them."""
    if x.dtype.kind == "M":
        return x.astype("datetime64[us]").astype(np.float64) / 86_400e6
    return x.astype(np.float64)


def _dates(ax: "Axes", axis: str) -> None:
    """Few short dates on an axis."""
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    locator = AutoDateLocator(minticks=3, maxticks=7)
    side = ax.xaxis if axis == "x" else ax.yaxis
    side.set_major_locator(locator)
    side.set_major_formatter(ConciseDateFormatter(locator))


def _turn_labels(ax: "Axes", labels: list[str]) -> None:
    if sum(map(len, labels)) > 40:
        ax.tick_params(axis="x", rotation=90)
