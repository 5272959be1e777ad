"""Which residual mixtures are trained on a table, within a time."""

__all__ = ["BATCH", "LAYERS", "WHOLE", "Search", "shapes_of"]

import itertools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np

from ..core.checks import check_positive_int
from ..drmm import DRMM
from .coding import Coded, Coding
from .mixture import Mixture, weights_of
from .training import Plan, train


class _Trainer(Protocol):
    def __call__(self, plan: Plan, *, rows: int | None = None, shown: bool = False) -> DRMM:
        """Trains a mixture by a plan, with some of the rows that are held out, or all."""


class Shapes(NamedTuple):
    """Layers and components of the mixtures of a table."""

    first: tuple[tuple[int, int], ...]
    """Of those that are trained first, with each strength of the prior, to choose it."""
    then: tuple[int, int] | None
    """Of those that the rest of the time is for; by default the best of the first ones. Deep ones
    need rows and steps: a short training does not show what they are worth."""

    @property
    def largest(self) -> tuple[int, int]:
        """Of those that take most of the time."""
        return self.then or self.first[-1]


# From so many rows on.
SHAPES = (
    (0, Shapes(((2, 6),), None)),
    (300, Shapes(((2, 6), (2, 12)), None)),
    (2_000, Shapes(((2, 20),), (6, 3))),
    (5_000, Shapes(((2, 32),), (6, 4))),
)
# Layers where only components are given.
LAYERS = 2
SHRINKAGES = (1.0, 4.0)
# Share of the time that comparing takes.
COMPARING = 0.25
# Share of the time that each number of bins is tried for, and most steps.
TRYING, TRIED_STEPS = 0.05, 400
# Steps by which the time of one is measured, with few rows held out, and the fewest that are worth
# while.
PROBE, FEW, LEAST = 16, 16, 60
# Steps of a whole training of up to so many layers and of deeper ones, or as many as see each row
# so many times, if that is more.
SHALLOW, WHOLE_SHALLOW, WHOLE, PASSES = 2, 900, 2000, 20
BATCH = 512
# Largest number of components of a mixture.
MOST_COMPONENTS = 2**14
# Most mixtures that the rest of the time is for.
MEMBERS = 4
# Smallest weight in an average that is worth a mixture.
LEAST_WEIGHT = 0.02


@dataclass(frozen=True)
class Search:
    """How mixtures are chosen and trained; see `TableModel.fit`.

    Args:
        num_layers: Layers, if given.
        num_components: Components of a layer, if given.
        shrinkage: Strength of the prior, if given.
        steps: Steps of training, if given.
        members: Mixtures that are averaged, if given.
        targets: Columns that will be predicted from all others.
        time_budget: Seconds.
        progress_bar: Whether to show a bar for each mixture that is kept.
    """

    num_layers: int | None
    num_components: int | None
    shrinkage: float | None
    steps: int | None
    members: int | None
    targets: tuple[int, ...]
    time_budget: float
    progress_bar: bool

    def __post_init__(self) -> None:
        for name in ("num_layers", "num_components", "steps", "members"):
            value = getattr(self, name)
            if value is not None:
                check_positive_int(name, value)
        if (self.num_components or 1) ** (self.num_layers or LAYERS) > MOST_COMPONENTS:
            raise ValueError(
                f"Expected num_components ** num_layers to be at most {MOST_COMPONENTS:,}, as all "
                f"components are summed over, got {self.num_components} ** "
                f"{self.num_layers or LAYERS}."
            )
        if self.shrinkage is not None and not self.shrinkage >= 0:
            raise ValueError(f"Expected shrinkage not to be negative, got {self.shrinkage!r}.")
        if not self.time_budget > 0:
            raise ValueError(f"Expected a positive time_budget, got {self.time_budget!r}.")

    def run(
        self, codes: np.ndarray, held_out: np.ndarray, coding: Coding, seed: int
    ) -> tuple[list[DRMM], np.ndarray]:
        """Trains mixtures of codes.

        Args:
            codes: Rows to train on, (N, J).
            held_out: Rows by which to choose.
            coding: The codes of columns.
            seed: Seed of everything random.

        Returns:
            The mixtures, and their weights.
        """
        start = time.perf_counter()
        codes, held_out = (c[(c >= 0).any(1)] for c in (codes, held_out))
        if not len(codes):
            raise ValueError("Expected rows of which something is known, got none.")
        trained = self._trainer(codes, held_out, coding, seed)

        def spent() -> float:
            return time.perf_counter() - start

        first, then = self._plans(len(codes))
        models: list[DRMM] = []
        if self.steps is None:
            trained(replace(first[0], steps=1), rows=FEW)  # what is imported then takes time
        best, slower = first[0], 1.0
        if len(first) > 1 and len(held_out):
            each = COMPARING * self.time_budget / len(first)
            scores: list[float] = []
            for plan in first:
                if scores and spent() > COMPARING * self.time_budget:
                    break  # steps take longer than there is time to compare
                per_step = self._seconds_a_step(plan, trained)
                own = self._within(plan, len(codes), each, per_step, 1)
                begun = spent()
                models.append(trained(own))
                if self.steps is None:  # what else the machine does slows whole trainings
                    slower = max(slower, (spent() - begun) / (own.steps * per_step))
                scores.append(float(Mixture.of(models[-1]).log_prob(held_out).mean()))
            best = first[int(np.argmax(scores))]
        if then is not None:
            best = replace(best, num_layers=then[0], num_components=then[1])
        per_step = slower * self._seconds_a_step(best, trained)
        left = self.time_budget - spent()
        count = self.members or MEMBERS
        if self.members is None and self.steps is None:
            whole = left / per_step / _whole(best, len(codes))
            count = int(np.clip(round(whole), 1, MEMBERS))
        best = self._within(best, len(codes), left, per_step, count)
        if self.members is not None:
            models = []  # as many as were asked for
        for _ in range(count):
            begun = spent()
            models.append(trained(best, shown=True))
            took = spent() - begun
            if self.members is None and self.time_budget - spent() < 0.8 * took:
                break
        weights = weights_of([Mixture.of(model) for model in models], held_out)
        if self.members is not None:
            return models, weights
        kept = np.flatnonzero(weights >= LEAST_WEIGHT)
        return [models[k] for k in kept], weights[kept] / weights[kept].sum()

    def _trainer(
        self, codes: np.ndarray, held_out: np.ndarray, coding: Coding, seed: int
    ) -> _Trainer:
        numbers = itertools.count()

        def trained(plan: Plan, *, rows: int | None = None, shown: bool = False) -> DRMM:
            return train(
                codes,
                held_out[:rows],
                coding.categories,
                coding.ordered,
                plan,
                seed=seed + next(numbers),
                progress_bar=self.progress_bar and shown,
            )

        return trained

    def best_of(self, tables: Sequence[Coded], seed: int) -> Coded:
        """The one of several codings of a table with which rows that are held out are likeliest.

        Args:
            tables: The codings.
            seed: Seed of training.
        """
        scores = []
        for table in tables:
            codes, held_out = table.codes[~table.outside], table.codes[table.outside]
            plan = self._plans(len(codes))[0][0]
            trained = self._trainer(codes, held_out, table.coding, seed)
            seconds = TRYING * self.time_budget / self._seconds_a_step(plan, trained)
            steps = int(np.clip(seconds, LEAST, TRIED_STEPS))
            score = Mixture.of(trained(replace(plan, steps=steps))).log_prob(held_out)
            scores.append(float((score + table.log_density[table.outside].sum(1)).mean()))
        return tables[int(np.argmax(scores))]

    def _plans(self, rows: int) -> tuple[list[Plan], tuple[int, int] | None]:
        """Those that are trained first, and layers and components of the others."""
        shapes = shapes_of(rows)
        if self.num_components is not None:
            shapes = Shapes(((self.num_layers or LAYERS, self.num_components),), None)
        elif self.num_layers is not None:
            layers, components = shapes.largest
            same = round(components ** (layers / self.num_layers))  # about as many codes
            shapes = Shapes(((self.num_layers, max(2, same)),), None)
        plans = [
            Plan(
                layers,
                components,
                shrinkage=shrinkage,
                batch_size=min(BATCH, rows),
                targets=self.targets,
            )
            for layers, components in shapes.first
            for shrinkage in (SHRINKAGES if self.shrinkage is None else (self.shrinkage,))
        ]
        return plans, shapes.then

    def _within(
        self, plan: Plan, rows: int, seconds: float, per_step: float, members: int
    ) -> Plan:
        """The plan with as many steps as fit into a time for each of several mixtures."""
        if self.steps is not None:
            return replace(plan, steps=self.steps)
        steps = np.clip(seconds / per_step / members, LEAST, _whole(plan, rows))
        return replace(plan, steps=int(steps))

    def _seconds_a_step(self, plan: Plan, trained: _Trainer) -> float:
        """Time of a step, without what a training takes besides."""
        if self.steps is not None:
            return math.nan
        times = []
        for steps in (1, 1 + PROBE):
            begun = time.perf_counter()
            trained(replace(plan, steps=steps), rows=FEW)
            times.append(time.perf_counter() - begun)
        return max(times[1] - times[0], 1e-6) / PROBE


def shapes_of(rows: int) -> Shapes:
    """What is trained on a table of so many rows."""
    return [shapes for least, shapes in SHAPES if rows >= least][-1]


def _whole(plan: Plan, rows: int) -> int:
    """Steps of a whole training on so many rows."""
    whole = WHOLE_SHALLOW if plan.num_layers <= SHALLOW else WHOLE
    return max(whole, PASSES * rows // plan.batch_size)
