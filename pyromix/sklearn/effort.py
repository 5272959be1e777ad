"""How much is trained, by the size of a table."""

__all__ = ["Effort"]

from dataclasses import dataclass
from typing import Any

# Seconds that training takes by default on one core, about, at most.
SECONDS = 60.0
# Seconds of a step, about: of any, of a column, and of a row, component and code.
STEP, COLUMN, PRODUCT = 6e-3, 3e-4, 3e-10
# Rows for each component that is chosen, the most of these, and rows for each bin.
ROWS, MOST_COMPONENTS, BIN_ROWS = 7, 1024, 30
BATCH = 512
# Fewest steps of a mixture, the most of small tables, and of tables of more rows than SMALL.
FEWEST, MOST, MOST_OF_LARGE, SMALL = 60, 100, 300, 1000
# Where there is time for so many steps, two strengths of the prior are compared, and two mixtures
# averaged.
ENOUGH = 100


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
        size = min(MOST_COMPONENTS, rows / ROWS)
        if estimator.num_components is not None:
            size = estimator.num_components ** (estimator.num_layers or 2)
        codes = columns * min(estimator.max_bins, 1 + rows / BIN_ROWS)
        total = SECONDS / (STEP + COLUMN * columns + PRODUCT * min(rows, BATCH) * size * codes)
        few = total < 4 * ENOUGH
        most = MOST if rows <= SMALL else MOST_OF_LARGE
        return cls(
            steps or int(min(most, max(FEWEST, total if few else total / 4))),
            members or (1 if few else 2),
            1.0 if few and shrinkage is None else shrinkage,
            SECONDS,
        )
