"""The course of a search: its rounds so far, and what follows from them."""

__all__ = ["ANNEALED", "Course", "in_deviations"]

import itertools

import torch
from torch import Tensor

from .result import Round

# Rounds with hardly less violation, far from the targets still, after which the search gives up,
# and the distance in standard deviations: before it fails, a law has next to no spread left.
HOPELESS_ROUNDS = 4
HOPELESS_DISTANCE = 0.5

# So many of the first law's deviations nearer to the targets is progress, from however far.
LEAST_PROGRESS = 0.05

# Share of all rounds over which schedules of the distribution come to their end.
ANNEALED = 0.5

# Rounds in which the entropy must stay.
SETTLED_ROUNDS = 2

# Nats by which the entropy still rises, when it does not seem to end.
RISING = 0.3

# Share of the violation before that a round must come below: otherwise parameters that are held
# may be the reason.
STALLED = 0.95


def in_deviations(violation: Tensor, sd: Tensor) -> Tensor:
    """Sizes of violations in standard deviations; where those are zero, the sizes themselves."""
    return violation.abs() / torch.where(sd > 0, sd, torch.ones_like(sd))


class Course:
    """Rounds of a search, of which the best is known.

    Args:
        num_rounds: Largest number of rounds.
        tolerance: Change of the entropy, in nats, below which it has settled.
    """

    first_scale: Tensor
    """Standard deviations of the statistics under the first law, shape (m,)."""

    def __init__(self, num_rounds: int, tolerance: float) -> None:
        self.num_rounds, self.tolerance = num_rounds, tolerance
        self.rounds: list[Round] = []
        self.best_round = -1
        self.arrival: int | None = None  # first round that asks for the targets themselves

    def add(self, end: Round) -> bool:
        """Adds a round, and returns whether it is the best so far."""
        self.rounds.append(end)
        is_best = self.best_round < 0 or self._is_better(end, self.rounds[self.best_round])
        if is_best:
            self.best_round = len(self.rounds) - 1
        return is_best

    def arrive(self) -> None:
        """Notes that the round to be added next asked for the targets themselves."""
        if self.arrival is None:
            self.arrival = len(self.rounds)

    def distance(self, violation: Tensor) -> float:
        """Violation in deviations of the first law: those of the present one may shrink."""
        return float(in_deviations(violation, self.first_scale).norm())

    def has_stalled(self) -> bool:
        """Whether the last round has hardly reduced the violation."""
        last = [self.distance(r.violations) for r in self.rounds[-2:]]
        return len(last) == 2 and last[1] > STALLED * last[0]

    def has_settled(self, scheduled: bool) -> bool:
        """Whether the constraints hold, and the entropy has been the same for some rounds.

        Args:
            scheduled: Whether the distribution follows a schedule, whose end is waited for.
        """
        if scheduled and len(self.rounds) < ANNEALED * self.num_rounds + SETTLED_ROUNDS:
            return False
        last = self.rounds[-1 - SETTLED_ROUNDS :]
        entropies = [self._corrected_entropy(r) for r in last if r.feasible]
        if len(entropies) <= SETTLED_ROUNDS:
            return False
        return max(entropies) - min(entropies) < self.tolerance

    def is_hopeless(self) -> bool:
        """Whether the violation stays, in the first law's deviations, as the penalty grows.

        Far from the targets, a round that comes nearer by a small share of the way, but by as
        much as the interim levels ask of it, is progress.
        """
        last = self.rounds[-1 - HOPELESS_ROUNDS :]
        far = all(r.distance > HOPELESS_DISTANCE for r in last)
        if len(last) <= HOPELESS_ROUNDS or not far:
            return False
        sizes = [self.distance(r.violations) for r in last]
        return all(b > a - min(0.01 * a, LEAST_PROGRESS) for a, b in itertools.pairwise(sizes))

    def rises(self) -> bool:
        """Whether the entropy rises without slowing down, though the targets have been reached.

        Over the last quarter of the rounds, steps are too small to tell.
        """
        if self.arrival is None:
            return False
        entropies = [r.entropy for r in self.rounds[self.arrival : -len(self.rounds) // 4]]
        if len(entropies) < 3:
            return False
        first, middle, last = entropies[0], entropies[len(entropies) // 2], entropies[-1]
        return last - middle > max(RISING, 0.2 * (middle - first))

    def _is_better(self, new: Round, old: Round) -> bool:
        if new.feasible != old.feasible:
            return new.feasible
        if new.feasible:
            return self._corrected_entropy(new) > self._corrected_entropy(old)
        return self.distance(new.violations) < self.distance(old.violations)

    def _corrected_entropy(self, end: Round) -> float:
        """The entropy of a round, less what violations too small for the tests add to it.

        The present multipliers say by how much, for all rounds.
        """
        return end.entropy - float(self.rounds[-1].multipliers @ end.violations)
