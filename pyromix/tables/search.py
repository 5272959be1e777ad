"""Which residual mixtures are trained on a table, within a time."""

__all__ = ["Search"]

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from ..core.checks import check_positive_int
from ..drmm import DRMM
from .coding import Coding
from .mixture import Mixture
from .training import Plan, train

# From so many rows on, layers and components that are compared, with each strength of the prior.
SHAPES = (
    (0, ((2, 6),)),
    (300, ((2, 6), (2, 12))),
    (2_000, ((2, 12), (2, 20))),
    (8_000, ((2, 32), (3, 12))),
)
SHRINKAGES = (1.0, 4.0)
# Share of the time that comparing takes.
COMPARING = 0.25
# Steps by which the time of one is measured; of a whole training, and of one worth while.
PROBE, WHOLE, LEAST = 12, 900, 60
# Largest number of components of a mixture.
MOST_COMPONENTS = 2**14
# Most mixtures that are averaged.
MEMBERS = 4


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
        if (self.num_components or 1) ** (self.num_layers or 2) > MOST_COMPONENTS:
            raise ValueError(
                f"Expected num_components ** num_layers to be at most {MOST_COMPONENTS:,}, as all "
                f"components are summed over, got {self.num_components} ** {self.num_layers or 2}."
            )
        if self.shrinkage is not None and not self.shrinkage >= 0:
            raise ValueError(f"Expected shrinkage not to be negative, got {self.shrinkage!r}.")
        if not self.time_budget > 0:
            raise ValueError(f"Expected a positive time_budget, got {self.time_budget!r}.")

    def run(
        self, codes: np.ndarray, held_out: np.ndarray, coding: Coding, seed: int
    ) -> list[DRMM]:
        """Trains mixtures of codes.

        Args:
            codes: Rows to train on, (N, J).
            held_out: Rows by which to choose.
            coding: The codes of columns.
            seed: Seed of everything random.
        """
        start = time.perf_counter()
        codes, held_out = (c[(c >= 0).any(1)] for c in (codes, held_out))
        if not len(codes):
            raise ValueError("Expected rows of which something is known, got none.")

        def trained(plan: Plan, number: int = 0) -> DRMM:
            return train(
                codes,
                held_out,
                coding.categories,
                coding.ordered,
                plan,
                seed=seed + number,
                progress_bar=self.progress_bar and number > 0,
            )

        plans = list(self._plans(len(codes)))
        plan = plans[0]
        if self.steps is None:
            trained(replace(plan, steps=1))  # what is imported then is not a step's time
        if len(plans) > 1 and len(held_out):
            each = COMPARING * self.time_budget / len(plans)
            scores: list[float] = []
            for candidate in plans:
                if scores and time.perf_counter() - start > COMPARING * self.time_budget:
                    break  # steps take longer than there is time to compare
                own = self._timed(candidate, trained, each)
                model = trained(own)
                scores.append(float(Mixture.of(model).log_prob(held_out).mean()))
            plan = plans[int(np.argmax(scores))]
        left = self.time_budget - (time.perf_counter() - start)
        plan = self._timed(plan, trained, left)
        models: list[DRMM] = []
        while len(models) < (self.members or MEMBERS):
            begun = time.perf_counter()
            models.append(trained(plan, 1 + len(models)))
            took = time.perf_counter() - begun
            left = self.time_budget - (time.perf_counter() - start)
            if self.members is None and left < 0.8 * took:
                break
        return models

    def _plans(self, rows: int) -> Iterator[Plan]:
        """What is compared."""
        shapes = [shapes for least, shapes in SHAPES if rows >= least][-1]
        if self.num_layers is not None or self.num_components is not None:
            layers, components = shapes[-1] if self.num_layers == shapes[-1][0] else shapes[0]
            shapes = ((self.num_layers or layers, self.num_components or components),)
        for layers, components in shapes:
            for shrinkage in SHRINKAGES if self.shrinkage is None else (self.shrinkage,):
                yield Plan(
                    layers,
                    components,
                    shrinkage=shrinkage,
                    batch_size=min(512, rows),
                    targets=self.targets,
                )

    def _timed(self, plan: Plan, trained: Callable[[Plan], DRMM], seconds: float) -> Plan:
        """The plan with as many steps as fit into a time."""
        if self.steps is not None:
            return replace(plan, steps=self.steps)
        quiet = replace(plan, steps=PROBE)
        begun = time.perf_counter()
        trained(quiet)
        per_step = (time.perf_counter() - begun) / PROBE
        return replace(plan, steps=int(np.clip(seconds / per_step, LEAST, WHOLE)))
