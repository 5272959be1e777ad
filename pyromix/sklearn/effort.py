"""How much is trained, by the size of a table."""

__all__ = ["Effort"]

from dataclasses import dataclass
from typing import Any

from ..tables.search import BATCH, LAYERS, WHOLE, shapes_of

# Seconds that training takes by default on one core, about, at most.
SECONDS = 60.0
# Seconds of a step, about: of any, of a column, and of a row, code and number of a product.
STEP, COLUMN, PRODUCT = 6e-3, 3e-4, 4e-10
# Fewest steps of a mixture, the most of small tables, and of tables of more rows than SMALL.
FEWEST, MOST, SMALL = 60, 100, 1000
# Of trainings that take less than a part of the time, as many as that: two strengths of the prior
# are compared, and two mixtures averaged.
TRAININGS = 4


@dataclass(frozen=True)
class Effort:
    """Steps and mixtures of training, or the time that it may take.

    Args:
        steps: Steps of each mixture; None for as many as fit into the time.
        members: Mixtures that are averaged; None for as many as fit into the time.
        shrinkage: Strength of the prior; None for a choice by rows that are held out.
        seconds: The time.
    """

    steps: int | None
    members: int | None
    shrinkage: float | None
    seconds: float

    @classmethod
    def of(cls, estimator: Any, rows: int, columns: int) -> "Effort":
        """The effort of an estimator: what it was told, and the rest by the size of its table.

        The clock does not decide on anything, unless the estimator has a time budget: so results
        follow from the seed.

        Args:
            estimator: A `MixtureEstimator`.
            rows: Number of rows.
            columns: Number of columns.
        """
        steps, members, shrinkage = estimator.steps, estimator.members, estimator.shrinkage
        if estimator.time_budget is not None:
            return cls(steps, members, shrinkage, estimator.time_budget)
        layers, components = shapes_of(rows).largest
        if estimator.num_components is not None:
            layers, components = estimator.num_layers or LAYERS, estimator.num_components
        product = min(rows, BATCH) * components**layers * (layers * components + columns)
        total = SECONDS / (STEP + COLUMN * columns + PRODUCT * product)
        most = MOST if rows <= SMALL else WHOLE
        several = total >= TRAININGS * most
        return cls(
            steps or int(min(most, max(FEWEST, total / TRAININGS if several else total))),
            members or (2 if several else 1),
            shrinkage if several or shrinkage is not None else 1.0,
            SECONDS,
        )
