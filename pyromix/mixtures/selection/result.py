"""What a selection found."""

__all__ = ["Candidate", "Selection"]

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from ..learnable import GaussianMixture

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Criterion = Literal["bic", "icl", "heldout"]

NAMES = {"bic": "BIC", "icl": "ICL", "heldout": "held-out log-density"}

# Rows that a printed table has.
PRINTED_ROWS = 8


@dataclass(frozen=True)
class Candidate:
    """A family of covariances with a number of components, and its best fit."""

    covariance: str
    num_components: int
    num_parameters: int
    """Free parameters."""
    log_likelihood: float
    """Of all data, in nats."""
    bic: float
    """Bayesian information criterion: lower is better."""
    icl: float
    """Integrated completed likelihood, BIC plus twice the points' uncertainty about their
    component in nats: lower is better."""
    aic: float
    """Akaike information criterion: lower is better."""
    heldout: float
    """Mean log-density of points that were held out: higher is better. NaN if not computed."""
    converged: bool
    degenerate: str
    """Why its likelihood says nothing; empty if it does not."""

    def score(self, criterion: str) -> float:
        """The criterion, as a number of which lower is better."""
        value: float = getattr(self, criterion)
        return -value if criterion == "heldout" else value


@dataclass(frozen=True)
class Selection:
    """The outcome of `select`: the best mixture, and how all others did.

    Attributes:
        best: The best mixture, fitted.
        table: All candidates, the best first and degenerate ones last. It is a list of data
            classes: ``pandas.DataFrame(selection.table)`` is a data frame of it.
        criterion: What they are compared by.

    Example:
        >>> import torch
        >>> from pyromix import select
        >>> _ = torch.manual_seed(0)
        >>> found = select(torch.randn(50, 2), (1, 2), "EII", seed=0, progress_bar=False)
        >>> [row.num_components for row in found.table]
        [1, 2]
        >>> str(found).splitlines()[0]
        'EII with 1 component, of 2 mixtures of 50 points in 2 dimensions by BIC.'
    """

    best: GaussianMixture
    table: list[Candidate]
    criterion: Criterion
    models: Mapping[tuple[str, int], GaussianMixture] = field(repr=False)
    """The fitted mixtures, by covariance and number of components."""
    num_points: int = field(repr=False)

    @property
    def candidate(self) -> Candidate:
        """The row of the best mixture."""
        return self.table[0]

    def __str__(self) -> str:
        best, sound = self.candidate, [c for c in self.table if not c.degenerate]
        lines = [
            f"{best.covariance} with {best.num_components} "
            f"component{'s' if best.num_components > 1 else ''}, of {len(self.table)} mixtures of "
            f"{self.num_points} points in {self.best.dim} dimensions by {NAMES[self.criterion]}.",
            "",
            f"{'covariance':<20}{'K':>3}{'parameters':>12}{'log-lik.':>12}{'BIC':>12}{'ICL':>12}"
            + (f"{'held-out':>11}" if self.criterion == "heldout" else ""),
        ]
        for c in sound[:PRINTED_ROWS] or [best]:
            row = f"{c.covariance:<20}{c.num_components:>3}{c.num_parameters:>12}"
            row += f"{c.log_likelihood:>12.2f}{c.bic:>12.2f}{c.icl:>12.2f}"
            row += f"{c.heldout:>11.4f}" if self.criterion == "heldout" else ""
            lines.append(row + ("" if c.converged else "  not converged"))
        if len(sound) > PRINTED_ROWS:
            lines.append(f"and {len(sound) - PRINTED_ROWS} more")
        if len(sound) < len(self.table):
            lines.append(f"{len(self.table) - len(sound)} degenerate: see table")
        return "\n".join(lines)

    def plot(self, ax: "Axes | None" = None) -> "Axes":
        """Plots the criterion against the number of components, a line for every family.

        Args:
            ax: Where to draw; by default a new figure.

        Returns:
            The axes.
        """
        import matplotlib.pyplot as plt

        if ax is None:
            _, ax = plt.subplots(figsize=(7, 4), layout="constrained")
        best = self.candidate
        colours = plt.get_cmap("tab20").colors  # type: ignore[attr-defined]
        for i, covariance in enumerate(dict.fromkeys(self._covariances())):
            rows = sorted(
                (c for c in self.table if c.covariance == covariance and not c.degenerate),
                key=lambda c: c.num_components,
            )
            is_best = covariance == best.covariance
            ax.plot(
                [c.num_components for c in rows],
                [getattr(c, self.criterion) for c in rows],
                marker="o" if is_best else ".",
                linewidth=2.5 if is_best else 1.0,
                zorder=3 if is_best else 2,
                color=colours[i % len(colours)],
                label=covariance,
            )
        ax.axvline(best.num_components, color="0.8", zorder=0)
        numbers = sorted({c.num_components for c in self.table})
        ax.set(xlabel="components", ylabel=NAMES[self.criterion], xticks=numbers)
        ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize="small", frameon=False)
        return ax

    def _covariances(self) -> list[str]:
        """Covariances in the order in which they were asked for."""
        return [covariance for covariance, _ in self.models]
