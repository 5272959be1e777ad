"""How a problem of maximum entropy is solved."""

__all__ = ["InfeasibleError", "Search"]

import copy
import itertools
import math
import statistics
import time
import warnings
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributions import Distribution
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

from ..core.module import DistributionModule
from ..mixtures import GaussianMixture
from ..training.fit import OptimizerFactory
from ..training.interrupt import deferred_interrupt
from ..training.trainer import NonFiniteLossError
from .draws import sample_and_score
from .lagrangian import AugmentedLagrangian, rejected
from .result import MaximumEntropyResult, Outcome, Round
from .start import gaussian_on, move_to

if TYPE_CHECKING:
    from .problem import MaximumEntropy


NUM_BATCHES = 200  # of the sign tests


NUM_SETS = 50  # of draws that multipliers are updated by, each of four batches


# Share of the learning rate that is left at the end of a round, and at the start of the last.
LOWEST_RATE = 0.05


# Gradients longer than so many times the median of recent ones are shortened to that.
LARGEST_NORM = 2.0


NUM_NORMS = 100


# Share of the way, in deviations of the first law, that is left when transforms join mixtures,
# and how much faster than with them those move on their own.
NEARLY = 0.1


AHEAD_RATE = 5.0


# Share of the violation before that a round must come below, lest what is held be in its way.
STALLED = 0.95


# Rounds with hardly less violation, and far from the targets still, after which those are given
# up; the distance in standard deviations: before it fails, a law has next to no spread left.
HOPELESS_ROUNDS = 4


HOPELESS_DISTANCE = 0.5


# Share of all rounds over which schedules of the distribution come to their end.
ANNEALED = 0.5


# Rounds in which the entropy must stay.
SETTLED_ROUNDS = 2


# Nats by which the entropy still rises, when it does not seem to end.
RISING = 0.3


class InfeasibleError(ValueError):
    """No distribution of the family meets the targets; `result` is where the search ended."""

    def __init__(self, message: str, result: MaximumEntropyResult) -> None:
        super().__init__(message)
        self.result = result


class _Evaluation(NamedTuple):
    """What fresh draws say about the present law."""

    values: Tensor
    log_prob: Tensor
    batches: Tensor
    """Violations of batch means, shape (B, m); of inequalities, negative where there is slack."""
    scale: Tensor

    @property
    def violation(self) -> Tensor:
        return self.batches.mean(0)


class Search:
    """One run of the augmented Lagrangian."""

    lagrangian: AugmentedLagrangian

    def __init__(
        self, problem: "MaximumEntropy", rounds: int, steps: int, batch_size: int, tolerance: float
    ) -> None:
        self.distribution = problem.distribution
        self.expectations, self.sampler = problem.expectations, problem.sampler
        self.num_rounds, self.steps, self.batch_size = rounds, steps, batch_size
        self.tolerance = tolerance
        self.entropies: list[float] = []
        self.norms: deque[float] = deque(maxlen=NUM_NORMS)  # of recent gradients
        self.rounds: list[Round] = []
        self.held: dict[str, list[nn.Parameter]] = {}
        self.arrival: int | None = None  # first round whose levels are the targets
        self.best_round, self.best_state = -1, self._state()
        self.outcome: Outcome = "running"
        self.first_scale: Tensor | None = None  # of the statistics
        self.started = time.perf_counter()

    def begin(self, start: Any, steps: int) -> None:
        """Moves the distribution to where the search starts."""
        law = self.distribution
        if start == "auto":
            known = isinstance(law, DistributionModule) and bool(law.initialized)
            start = None if known else gaussian_on(law, self.expectations.levels)
        if start is not None and not isinstance(start, Distribution):
            raise ValueError(f"Expected start to be 'auto', None or a law, got {start!r}.")
        if start is not None:
            move_to(start, law, self.sampler, steps, self.batch_size)
        self._check(self.evaluate())
        self.first_distance = self._distance(self._first_violation)
        # Mixtures go ahead alone. Within a flow, what lies between two modes costs much, and
        # transforms would rather push all of it to one side than tear it apart; components are
        # free to take sides. Their weights wait for longer still: a mode that falls behind the
        # others for a while would lose its weight, and with that the gradient to come back.
        mixtures = [m for m in law.modules() if isinstance(m, GaussianMixture)]
        mixtures = [m for m in mixtures if m.num_components > 1]
        ahead = {id(p) for m in mixtures for p in m.parameters()}
        free = [p for p in law.parameters() if p.requires_grad]
        self.ahead = [p for p in free if id(p) in ahead]
        self.behind = [p for p in free if id(p) not in ahead]
        if not self.lagrangian.has_arrived and mixtures:
            if self.behind:
                self._hold("transforms", self.behind)
            self._hold("weights", [m.logits for m in mixtures if m.logits.requires_grad])

    def _hold(self, name: str, parameters: list[nn.Parameter]) -> None:
        """Leaves parameters as they are, until they are released."""
        self.held[name] = parameters
        for parameter in parameters:
            parameter.requires_grad_(False)

    def release(self, *names: str) -> None:
        """Lets parameters move again; by default all that are held."""
        for name in names or list(self.held):
            for parameter in self.held.pop(name, []):
                parameter.requires_grad_(True)

    def run(self, optimizer: OptimizerFactory, lr: float, progress_bar: bool) -> None:
        """Takes rounds until one says that it is the last."""
        groups = [(self.ahead, self._rate_ahead), (self.behind, self._rate)]
        groups = [(parameters, rate) for parameters, rate in groups if parameters]
        own = optimizer([{"params": parameters} for parameters, _ in groups], lr=lr)
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
                self._end_round(generator)
                last = self.rounds[-1]
                bar.set_postfix(
                    entropy=f"{last.entropy:.4g}",
                    violation=f"{float(last.scaled_violations.max()):.2g} sd",
                )

    def conclude(self) -> MaximumEntropyResult:
        """Restores the best round, looks at it afresh, and says what was found."""
        self._restore(self.best_state)
        fresh = self.evaluate(2)
        count = len(fresh.values)
        best = self.rounds[self.best_round]
        sd, means = fresh.values.std(0), fresh.values.mean(0)
        violation = self._clip(fresh.violation)
        result = MaximumEntropyResult(
            distribution=self.distribution,
            names=self.expectations.names,
            levels=self.expectations.levels,
            means=means,
            violations=violation,
            standard_errors=sd / math.sqrt(count),
            scaled_violations=_in_deviations(violation, sd),
            multipliers=best.multipliers,
            entropy=-float(fresh.log_prob.double().mean()),
            entropy_error=float(fresh.log_prob.std()) / math.sqrt(count),
            residual=float((fresh.log_prob + fresh.values @ best.multipliers).std()),
            feasible=not bool(self._rejected(fresh).any()),
            outcome=self.outcome,
            seconds=time.perf_counter() - self.started,
            entropies=self.entropies,
            rounds=self.rounds,
            best_round=self.best_round,
        )
        if self.outcome == "infeasible":
            worst = int(result.scaled_violations.argmax())
            raise InfeasibleError(
                f"The violation has not come down in the last {HOPELESS_ROUNDS} rounds: no law of "
                f"this family, and maybe none at "
                f"all, meets the targets. Farthest off: {result.names[worst]!r} is "
                f"{float(means[worst]):.4g} instead of {float(result.levels[worst]):.4g}. Check "
                f"the targets, or give the distribution more freedom; see `result` of this error.",
                result,
            )
        if self._rises():
            self._warn()
        return result

    def evaluate(self, factor: int = 1) -> _Evaluation:
        """Looks at fresh, independent draws, as a user gets them."""
        size = max(2, factor * self.batch_size // 2)
        x, log_prob = sample_and_score(self.distribution, NUM_BATCHES * size)
        with torch.no_grad():
            values = self.expectations.values(x)
            batches = values.reshape(NUM_BATCHES, size, -1).mean(1) - self.expectations.levels
        return _Evaluation(values, log_prob, batches, x.std(0))

    def _rate(self, step: int) -> float:
        """Factor of the learning rate: it falls in every round, and from round to round at last.

        Once levels are the targets, what is left of violations is mostly the noise of steps.
        """
        current, step = divmod(step, self.steps)
        within = (1 + math.cos(math.pi * step / self.steps)) / 2
        arrived = current if self.arrival is None else self.arrival
        share = (current - arrived) / max(1, self.num_rounds - 1 - arrived)
        return LOWEST_RATE**share * (LOWEST_RATE + (1 - LOWEST_RATE) * within)

    def _rate_ahead(self, step: int) -> float:
        """Factor for mixtures, whose units are larger than those of networks."""
        return self._rate(step) * (AHEAD_RATE if "transforms" in self.held else 1.0)

    @torch.no_grad()
    def _precise_means(self) -> Tensor:
        """Expectations by draws like those of steps: stratified ones are more even than others."""
        means = []
        for _ in range(NUM_SETS):
            (draws,) = self.sampler(4 * self.batch_size)
            excess = draws.mean(self.expectations.values(draws.x) - self.expectations.levels)
            means.append(excess + self.expectations.levels)
        return torch.stack(means).mean(0)

    def _take_step(self, optimizer: Any) -> None:
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
        # A single draw where a statistic is steep can undo a thousand steps.
        self.norms.append(norm)
        limit = LARGEST_NORM * statistics.median(self.norms)
        nn.utils.clip_grads_with_norm_(parameters, limit, torch.tensor(norm))
        optimizer.step()
        self.entropies.append(self.lagrangian.entropy)

    def _end_round(self, generator: torch.Generator) -> None:
        fresh = self.evaluate()
        self._check(fresh)
        penalty, feasible = self.lagrangian.penalty, not bool(self._rejected(fresh).any())
        self.lagrangian.measure(fresh.values, fresh.log_prob)
        means = self._precise_means()
        self.lagrangian.update(means)
        if self.lagrangian.has_arrived:
            self.arrival = len(self.rounds) if self.arrival is None else self.arrival
            if not feasible:
                self.lagrangian.grow(fresh.batches, generator)
        self.lagrangian.aim(means)
        violation = self._clip(fresh.violation)
        self.rounds.append(
            Round(
                entropy=-float(fresh.log_prob.double().mean()),
                violations=violation,
                scaled_violations=_in_deviations(violation, fresh.values.std(0)),
                multipliers=self.lagrangian.multipliers,
                penalty=penalty,
                feasible=feasible,
                scale=fresh.scale,
            )
        )
        self._release_if_due()
        if self._is_best():
            self.best_round, self.best_state = len(self.rounds) - 1, self._state()
        if self.outcome == "interrupted":
            return
        if self._is_hopeless():
            self.outcome = "infeasible"
        elif self._has_settled():
            self.outcome = "converged"
        elif len(self.rounds) == self.num_rounds:
            self.outcome = "finished"

    def _release_if_due(self) -> None:
        """Lets go of what is held once it has served its purpose, or is in the way itself."""
        distances = [self._distance(r.violations) for r in self.rounds[-2:]]
        stalled = len(distances) == 2 and distances[1] > STALLED * distances[0]
        if self.lagrangian.has_arrived or stalled or len(self.rounds) >= self.num_rounds // 2:
            self.release()
        elif distances[-1] < NEARLY * self.first_distance:
            self.release("transforms")

    def _check(self, fresh: _Evaluation) -> None:
        """Takes the metric, and the first scale of violations, from the law at the start."""
        if self.first_scale is None:
            self.first_scale = fresh.values.std(0)
            self._first_violation = self._clip(fresh.violation)
            self.lagrangian.measure(fresh.values, fresh.log_prob)
            self.lagrangian.aim(fresh.values.mean(0))
        if not bool(fresh.log_prob.isfinite().all()):
            raise NonFiniteLossError(
                f"The log-density of {int((~fresh.log_prob.isfinite()).sum())} of "
                f"{len(fresh.log_prob)} draws is not finite, after {len(self.entropies)} steps. "
                f"Lower lr, or bound the support away from where it rounds."
            )

    def _rejected(self, fresh: _Evaluation) -> Tensor:
        return rejected(fresh.batches, self.lagrangian.is_inequality)

    def _clip(self, violation: Tensor) -> Tensor:
        """Slack of an inequality is no violation."""
        return torch.where(self.lagrangian.is_inequality, violation.clamp(min=0), violation)

    def _is_best(self) -> bool:
        if self.best_round < 0:
            return True
        new, old = self.rounds[-1], self.rounds[self.best_round]
        if new.feasible != old.feasible:
            return new.feasible
        if new.feasible:
            return self._corrected_entropy(new) > self._corrected_entropy(old)
        return bool(self._distance(new.violations) < self._distance(old.violations))

    def _corrected_entropy(self, end: Round) -> float:
        """The entropy, less what is gained by a violation too small for the tests to see."""
        return end.entropy - float(self.lagrangian.multipliers @ end.violations)

    def _has_settled(self) -> bool:
        law = self.distribution
        scheduled = isinstance(law, DistributionModule) and law.scheduled
        if scheduled and len(self.rounds) < ANNEALED * self.num_rounds + SETTLED_ROUNDS:
            return False
        last = self.rounds[-1 - SETTLED_ROUNDS :]
        entropies = [self._corrected_entropy(r) for r in last if r.feasible]
        if len(entropies) <= SETTLED_ROUNDS:
            return False
        return max(entropies) - min(entropies) < self.tolerance

    def _is_hopeless(self) -> bool:
        """Whether the violation stays, in the first law's deviations, as the penalty grows."""
        last = self.rounds[-1 - HOPELESS_ROUNDS :]
        far = all(float(r.scaled_violations.max()) > HOPELESS_DISTANCE for r in last)
        if len(last) <= HOPELESS_ROUNDS or not far:
            return False
        sizes = [self._distance(r.violations) for r in last]
        return all(b > 0.99 * a for a, b in itertools.pairwise(sizes))

    def _distance(self, violation: Tensor) -> float:
        """Violation in deviations of the first law: those of the present one may shrink."""
        assert self.first_scale is not None
        return float(_in_deviations(violation, self.first_scale).norm())

    def _rises(self) -> bool:
        """Whether the entropy rises, though the levels are the targets, and does not slow down.

        Over the last quarter of the rounds, steps are too small to tell.
        """
        if self.outcome != "finished" or self.arrival is None:
            return False
        entropies = [r.entropy for r in self.rounds[self.arrival : -len(self.rounds) // 4]]
        if len(entropies) < 3:
            return False
        first, middle, last = entropies[0], entropies[len(entropies) // 2], entropies[-1]
        return last - middle > max(RISING, 0.2 * (middle - first))

    def _warn(self) -> None:
        old, new = (r.scale.flatten() for r in (self.rounds[0], self.rounds[-1]))
        ratio = new / old.clamp(min=torch.finfo(old.dtype).tiny)
        worst = int(ratio.argmax())
        gain = self.rounds[-1].entropy - self.rounds[0].entropy
        warnings.warn(
            f"The entropy has risen all the time, by {gain:.2g} nats. Either the rounds are too "
            f"few, or the constraints leave a direction free, so that there is no maximum: "
            f"coordinate {worst} of the draws has spread by a factor of {float(ratio[worst]):.2g} "
            f"since the first round. Constrain its spread, or bound the support.",
            stacklevel=4,
        )

    def _state(self) -> dict[str, Tensor]:
        state: dict[str, Tensor] = copy.deepcopy(self.distribution.state_dict())
        return state

    def _restore(self, state: dict[str, Tensor]) -> None:
        self.distribution.load_state_dict(state)
        if isinstance(self.distribution, DistributionModule):
            self.distribution.initialized.fill_(True)


def _in_deviations(violation: Tensor, sd: Tensor) -> Tensor:
    """Sizes of violations in standard deviations; those of constants count as they are."""
    return violation.abs() / torch.where(sd > 0, sd, torch.ones_like(sd))
