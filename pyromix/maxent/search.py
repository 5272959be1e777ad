"""How a problem of maximum entropy is solved: steps and rounds of an augmented Lagrangian."""

__all__ = ["Problem", "Search"]

import copy
import math
import statistics
import time
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

from ..core.advice import warn_user
from ..core.module import DistributionModule
from ..flows.branching import BranchingTransform
from ..flows.law import FlowLaw
from ..mixtures import GaussianMixture
from ..training.fit import OptimizerFactory
from ..training.interrupt import deferred_interrupt
from ..training.trainer import NonFiniteLossError
from .course import ANNEALED, HOPELESS_ROUNDS, Course, in_deviations
from .draws import Sampler, sample_and_score
from .expectations import Expectations
from .feasibility import rejected
from .lagrangian import AugmentedLagrangian
from .result import InfeasibleError, MaximumEntropyResult, Outcome, Round
from .start import gaussian_on, move_to

NUM_BATCHES = 200  # of draws, at the end of a round
NUM_SETS = 50  # of draws that multipliers are updated by, each of four batches

# Share of the learning rate that is left at the end of a round, and at the start of the last.
LOWEST_RATE = 0.05

# Before a search fails, a longer round is tried: of so many times the steps, and at least so many.
# If it takes more than this share off the violation, steps were too few.
LONGER, LEAST_STEPS = 4, 200
PROMISING = 0.05

# Gradients longer than so many times the median of recent ones are shortened to that.
LARGEST_NORM = 2.0
NUM_NORMS = 100

# Share of the distance, in deviations of the first law, that is left when transforms join
# mixtures, and the factor of the learning rate of mixtures before.
NEARLY = 0.1
AHEAD_RATE = 5.0


class Problem(NamedTuple):
    """What a search needs to know of a problem."""

    distribution: Any
    """The distribution, whose parameters are changed."""
    expectations: Expectations
    """The constraints."""
    sampler: Sampler
    """The way to draw from the distribution, with gradients."""


class _Evaluation(NamedTuple):
    """What new draws say about the present law."""

    values: Tensor
    """Statistics of n draws, shape (n, m)."""
    log_prob: Tensor
    """Their log-densities, shape (n,)."""
    batches: Tensor
    """Violations of batch means, shape (B, m); of inequalities, negative where there is slack."""
    scale: Tensor
    """Standard deviation of every coordinate of a draw, in the event's shape."""

    @property
    def violation(self) -> Tensor:
        """Violations, shape (m,); of inequalities, negative where there is slack."""
        return self.batches.mean(0)


class Search:
    """One run of the augmented Lagrangian.

    Args:
        problem: The distribution, the constraints and the way to draw.
        lagrangian: The augmented Lagrangian, as it is at the start.
        rounds: Largest number of rounds.
        steps: Steps in a round.
        batch_size: Draws in a step.
        tolerance: Change of the entropy, in nats, below which it has settled.
        margin: Violation, in standard deviations of a statistic, below which there is none.
    """

    def __init__(
        self,
        problem: Problem,
        lagrangian: AugmentedLagrangian,
        *,
        rounds: int,
        steps: int,
        batch_size: int,
        tolerance: float,
        margin: float,
    ) -> None:
        self.distribution, self.expectations, self.sampler = problem
        self.lagrangian = lagrangian
        self.num_rounds, self.steps, self.batch_size = rounds, steps, batch_size
        self.course, self.margin = Course(rounds, tolerance), margin
        self.best_state = self._state()
        self.entropies: list[float] = []
        self.norms: deque[float] = deque(maxlen=NUM_NORMS)  # of recent gradients
        self.held: dict[str, list[nn.Parameter]] = {}
        self.outcome: Outcome = "running"
        self.gain = 0.0  # share of the violation that one longer round takes away
        self.started = time.perf_counter()

    def begin(self, start: Any, steps: int) -> None:
        """Moves the distribution to where the search starts.

        Args:
            start: Law to start near, ``"auto"`` for a normal one, or None.
            steps: Steps towards that law.

        Raises:
            ValueError: If `start` is none of these, or there is no normal law on the support.
        """
        law = self.distribution
        if start == "auto":
            known = isinstance(law, DistributionModule) and bool(law.initialized)
            start = None if known else gaussian_on(law, self.expectations)
        if start is not None and not isinstance(start, Distribution):
            raise ValueError(f"Expected start to be 'auto', None or a law, got {start!r}.")
        if start is not None:
            move_to(start, law, self.sampler, steps, self.batch_size)
        self._measure_first(self.evaluate())
        # Mixtures and folds are moved first, alone. Within a flow, draws between two modes cost
        # much, and other transforms would sooner move all of the law to one mode than divide it;
        # components of a mixture are free to move apart. Their weights are held for longer still:
        # a mode that is worse than the others for a while would lose its weight, and with that the
        # gradient that could restore it.
        mixtures = [m for m in law.modules() if isinstance(m, GaussianMixture)]
        mixtures = [m for m in mixtures if m.num_components > 1]
        discrete = [m for m in law.modules() if isinstance(m, BranchingTransform)]
        # Codes of a law are all that is in it; a flow has other transforms, too.
        discrete += [
            m
            for m in law.modules()
            if hasattr(m, "rsample_with_score") and not isinstance(m, FlowLaw | GaussianMixture)
        ]
        ahead = {id(p) for m in mixtures + discrete for p in m.parameters()}
        free = [p for p in law.parameters() if p.requires_grad]
        self.ahead = [p for p in free if id(p) in ahead]
        self.behind = [p for p in free if id(p) not in ahead]
        if not self.lagrangian.has_arrived and ahead:
            if self.behind:
                self._hold("transforms", self.behind)
            self._hold("weights", [m.logits for m in mixtures if m.logits.requires_grad])

    def _hold(self, name: str, parameters: list[nn.Parameter]) -> None:
        """Keeps parameters from changing until they are released by this name."""
        self.held[name] = parameters
        for parameter in parameters:
            parameter.requires_grad_(False)

    def release(self, *names: str) -> None:
        """Lets parameters change again; by default all that are held."""
        for name in names or list(self.held):
            for parameter in self.held.pop(name, []):
                parameter.requires_grad_(True)

    def run(self, optimizer: OptimizerFactory, lr: float, progress_bar: bool) -> None:
        """Runs rounds until the search has an outcome.

        Args:
            optimizer: Makes the optimizer.
            lr: Learning rate at the start of a round.
            progress_bar: Whether to show a bar.

        Raises:
            NonFiniteLossError: If a gradient or a log-density is not finite.
        """
        groups = [(self.ahead, self._rate_ahead), (self.behind, self._rate)]
        groups = [(parameters, rate) for parameters, rate in groups if parameters]
        own = optimizer([{"params": parameters} for parameters, _ in groups], lr=lr)
        self.first_rates = [group["lr"] for group in own.param_groups]
        plan = LambdaLR(own, [rate for _, rate in groups])
        generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
        bar = tqdm(total=self.num_rounds * self.steps, unit="step", disable=not progress_bar)
        with bar, deferred_interrupt(True) as interrupted:
            while self.outcome == "running":
                for _ in range(self.steps):
                    self._take_step(own)
                    plan.step()
                    bar.update()
                    if interrupted.is_set():
                        self.outcome = "interrupted"
                        break
                if self._end_round(generator) == "infeasible":
                    self.gain = self._probe(own, interrupted.is_set)
                last = self.course.rounds[-1]
                bar.set_postfix(
                    entropy=f"{last.entropy:.4g}",
                    violation=f"{float(last.scaled_violations.max()):.2g} sd",
                )

    def conclude(self) -> MaximumEntropyResult:
        """Restores the best round, and returns what new draws say about it.

        Raises:
            InfeasibleError: If the outcome is that the constraints cannot be met.
        """
        self._restore(self.best_state)
        fresh = self.evaluate(2)
        count = len(fresh.values)
        best = self.course.rounds[self.course.best_round]
        sd, means = fresh.values.std(0), fresh.values.mean(0)
        violation = self._clip(fresh.violation)
        result = MaximumEntropyResult(
            distribution=self.distribution,
            names=self.expectations.names,
            levels=self.expectations.levels,
            means=means,
            violations=violation,
            standard_errors=sd / math.sqrt(count),
            scaled_violations=in_deviations(violation, sd),
            multipliers=best.multipliers,
            entropy=-float(fresh.log_prob.double().mean()),
            entropy_error=float(fresh.log_prob.std()) / math.sqrt(count),
            residual=float((fresh.log_prob + fresh.values @ best.multipliers).std()),
            feasible=not bool(self._rejected(fresh).any()),
            outcome=self.outcome,
            seconds=time.perf_counter() - self.started,
            entropies=self.entropies,
            rounds=self.course.rounds,
            best_round=self.course.best_round,
        )
        if self.outcome == "infeasible":
            worst = int(result.scaled_violations.argmax())
            where = (
                f"Farthest off: {result.names[worst]!r} is {float(means[worst]):.4g} instead of "
                f"{float(result.levels[worst]):.4g}."
            )
            if self.gain > PROMISING:
                raise InfeasibleError(
                    f"The violation has not come down in the last {HOPELESS_ROUNDS} rounds, but a "
                    f"longer one takes {self.gain:.0%} off it: {self.steps} steps a round are too "
                    f"few. {where} Raise steps or lr.",
                    result,
                )
            raise InfeasibleError(
                f"The violation has not come down in the last {HOPELESS_ROUNDS} rounds, nor in a "
                f"longer one: no law of this family, and maybe none at all, meets the targets. "
                f"{where} Check the targets, or give the distribution more freedom; see `result` "
                f"of this error.",
                result,
            )
        if self.outcome == "finished" and self.course.rises():
            self._warn()
        return result

    def evaluate(self, factor: int = 1) -> _Evaluation:
        """Estimates statistics and log-densities from new, independent draws.

        Args:
            factor: By how much more draws than at the end of a round.
        """
        size = max(2, factor * self.batch_size // 2)
        x, log_prob = sample_and_score(self.distribution, NUM_BATCHES * size)
        with torch.no_grad():
            values = self.expectations.values(x)
            batches = values.reshape(NUM_BATCHES, size, -1).mean(1) - self.expectations.levels
        return _Evaluation(values, log_prob, batches, x.to(log_prob).std(0))

    def _rate(self, step: int) -> float:
        """Factor of the learning rate: it falls within every round.

        After the interim levels have reached the targets, it also falls from round to round: then
        violations are mostly noise of the steps.
        """
        current, step = divmod(step, self.steps)
        within = (1 + math.cos(math.pi * step / self.steps)) / 2
        arrived = current if self.course.arrival is None else self.course.arrival
        share = (current - arrived) / max(1, self.num_rounds - 1 - arrived)
        return LOWEST_RATE**share * (LOWEST_RATE + (1 - LOWEST_RATE) * within)

    def _rate_ahead(self, step: int) -> float:
        """Factor for mixtures: larger as long as they are moved alone."""
        return self._rate(step) * (AHEAD_RATE if "transforms" in self.held else 1.0)

    @torch.no_grad()
    def _precise_means(self) -> Tensor:
        """Means of the statistics, shape (m,), with less variance where draws are stratified."""
        means, levels = [], self.expectations.levels
        for _ in range(NUM_SETS):
            (draws,) = self.sampler(4 * self.batch_size)
            excess = draws.mean(self.expectations.values(draws.x) - levels)
            means.append(excess + levels)
        return torch.stack(means).mean(0)

    def _probe(self, optimizer: Any, is_interrupted: Callable[[], bool]) -> float:
        """By what share of it a longer round reduces the violation.

        Rounds of too few steps leave the law where it is, as targets that nothing meets do. This
        tells the two apart.
        """
        before = self.course.distance(self.course.rounds[-1].violations)
        for group, rate in zip(optimizer.param_groups, self.first_rates, strict=True):
            group["lr"] = rate
        for _ in range(max(LONGER * self.steps, LEAST_STEPS)):
            if is_interrupted():
                break
            self._take_step(optimizer)
            self.entropies.pop()
        after = self.course.distance(self._clip(self.evaluate().violation))
        return 1 - after / before

    def _take_step(self, optimizer: Any) -> None:
        """Takes a step that minimises the Lagrangian."""
        total = self.num_rounds * self.steps
        if isinstance(self.distribution, DistributionModule):
            self.distribution.anneal(min(1.0, len(self.entropies) / (ANNEALED * total)))
        optimizer.zero_grad()
        first, second = self.sampler(self.batch_size // 2, num_sets=2)
        values = self.expectations.values(torch.cat([first.x, second.x])).chunk(2)
        loss = self.lagrangian.loss((first, values[0]), (second, values[1]))
        loss.backward()
        parameters = [p for p in self.distribution.parameters() if p.grad is not None]
        norm = float(nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
        if not math.isfinite(norm):
            raise NonFiniteLossError(
                f"The gradient is not finite at step {len(self.entropies) + 1}, where the "
                f"Lagrangian is {float(loss.detach()):.4g}. Lower lr, start nearer to the "
                f"targets, or mend statistics whose gradients are infinite, as that of a root is "
                f"at zero."
            )
        # One draw where a statistic has a large slope could undo a thousand steps.
        self.norms.append(norm)
        limit = LARGEST_NORM * statistics.median(self.norms)
        nn.utils.clip_grads_with_norm_(parameters, limit, torch.tensor(norm))
        optimizer.step()
        self.entropies.append(self.lagrangian.entropy)

    def _end_round(self, generator: torch.Generator) -> Outcome:
        """Tests the constraints, updates multipliers, penalty and levels, and sets the outcome."""
        fresh = self.evaluate()
        self._check_finite(fresh)
        penalty, feasible = self.lagrangian.penalty, not bool(self._rejected(fresh).any())
        self.lagrangian.measure(fresh.values, fresh.log_prob)
        means = self._precise_means()
        self.lagrangian.update(means)
        if self.lagrangian.has_arrived:
            self.course.arrive()
            if not feasible:
                self.lagrangian.grow(fresh.batches, generator)
        self.lagrangian.aim(means)
        violation = self._clip(fresh.violation)
        is_best = self.course.add(
            Round(
                entropy=-float(fresh.log_prob.double().mean()),
                violations=violation,
                scaled_violations=in_deviations(violation, fresh.values.std(0)),
                multipliers=self.lagrangian.multipliers,
                penalty=penalty,
                feasible=feasible,
                scale=fresh.scale,
                distance=self.lagrangian.spread.length(violation),
            )
        )
        self._release_if_due()
        if is_best:
            self.best_state = self._state()
        if self.outcome == "interrupted":
            return self.outcome
        law = self.distribution
        if self.course.is_hopeless():
            self.outcome = "infeasible"
        elif self.course.has_settled(isinstance(law, DistributionModule) and law.scheduled):
            self.outcome = "converged"
        elif len(self.course.rounds) == self.num_rounds:
            self.outcome = "finished"
        return self.outcome

    def _release_if_due(self) -> None:
        """Releases held parameters when the law is near the targets, or the search stalls."""
        rounds = self.course.rounds
        late = len(rounds) >= self.num_rounds // 2
        if self.lagrangian.has_arrived or self.course.has_stalled() or late:
            self.release()
        elif self.course.distance(rounds[-1].violations) < NEARLY * self.first_distance:
            self.release("transforms")

    def _measure_first(self, fresh: _Evaluation) -> None:
        """Takes the metric, the first interim levels and the scale of violations from draws."""
        self.course.first_scale = fresh.values.std(0)
        self.first_distance = self.course.distance(self._clip(fresh.violation))
        self.lagrangian.measure(fresh.values, fresh.log_prob)
        self.lagrangian.aim(fresh.values.mean(0))
        self._check_finite(fresh)

    def _check_finite(self, fresh: _Evaluation) -> None:
        """Raises an error if a log-density is not finite."""
        if not bool(fresh.log_prob.isfinite().all()):
            raise NonFiniteLossError(
                f"The log-density of {int((~fresh.log_prob.isfinite()).sum())} of "
                f"{len(fresh.log_prob)} draws is not finite, after {len(self.entropies)} steps. "
                f"Lower lr, or bound the support away from where it rounds."
            )

    def _rejected(self, fresh: _Evaluation) -> Tensor:
        """Which constraints tests reject, shape (m,)."""
        levels, one_sided = self.expectations.levels, self.lagrangian.is_inequality
        return rejected(fresh.values, levels, one_sided, self.margin)

    def _clip(self, violation: Tensor) -> Tensor:
        """Violations with zero for inequalities that hold."""
        return torch.where(self.lagrangian.is_inequality, violation.clamp(min=0), violation)

    def _warn(self) -> None:
        """Warns of an entropy that rises without end."""
        rounds = self.course.rounds
        old, new = (r.scale.flatten() for r in (rounds[0], rounds[-1]))
        ratio = new / old.clamp(min=torch.finfo(old.dtype).tiny)
        worst = int(ratio.argmax())
        gain = rounds[-1].entropy - rounds[0].entropy
        warn_user(
            f"The entropy has risen all the time, by {gain:.2g} nats. Either the rounds are too "
            f"few, or the constraints leave a direction free, so that there is no maximum: "
            f"coordinate {worst} of the draws has spread by a factor of {float(ratio[worst]):.2g} "
            f"since the first round. Constrain its spread, or bound the support.",
        )

    def _state(self) -> dict[str, Tensor]:
        state: dict[str, Tensor] = copy.deepcopy(self.distribution.state_dict())
        return state

    def _restore(self, state: dict[str, Tensor]) -> None:
        self.distribution.load_state_dict(state)
        if isinstance(self.distribution, DistributionModule):
            self.distribution.initialized.fill_(True)
