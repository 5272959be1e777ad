r"""Expectation maximisation for `GaussianMixture`.

An iteration replaces the parameters by the ones of highest expected log-likelihood, given the
responsibilities under the present ones (Dempster, Laird, Rubin 1977): the likelihood of the data
never falls, and there is no step size. With minibatches, running averages of the sufficient
statistics stand in for those of all data (Cappe and Moulines 2009).
"""

__all__ = ["fit_em"]

import copy
import math
import time
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from ..history import History
from ..validation import as_int, check_positive_int
from .covariance import Moments
from .density import log_sum_exp
from .finite import FiniteMixture, by_pattern
from .learnable import GaussianMixture

# The statistics are computed for this many numbers (points x components) at once.
BLOCK_SCORES = 2**20

# Weight of the t-th minibatch in the running averages: (t + 2)^-0.6.
STEP_POWER = 0.6

# A component that explains less than this many points is dead.
DEAD_POINTS = 0.5

# Put elsewhere, it has this many iterations to raise the likelihood, at so many places.
TRIAL_STEPS = 10
TRIAL_DONORS = 5


class _Statistics(NamedTuple):
    """Sums over points, around reference points c that are given with them."""

    log_prob: Tensor
    """Log-likelihood, scalar."""
    weight: Tensor
    """Sum of responsibilities, (K,)."""
    first: Tensor
    """Sum of r (x - c), (K, D)."""
    second: Tensor
    """Sum of r (x - c)^2, (K, D), or of outer products, (K, D, D)."""


def fit_em(
    model: GaussianMixture,
    data: Tensor,
    *,
    steps: int = 200,
    batch_size: int | None = None,
    tolerance: float = 1e-4,
    restarts: int = 1,
    initialize: bool | None = None,
    seed: int | None = None,
    progress_bar: bool = True,
) -> History:
    """Fits a mixture by expectation maximisation, in float64.

    On all data the likelihood rises with every step until it is stationary. (With low-rank
    precisions whose variances are at their floor it may stop before: an estimate that would lower
    the likelihood is not taken.) A component that has
    lost its points takes over half of another one's, if that raises the likelihood.
    With ``missing="marginalize"`` the missing entries are integrated out, for every covariance.

    Args:
        model: A mixture without context, fitted in place.
        data: Points, shape (N, D).
        steps: Largest number of iterations; with minibatches, their number.
        batch_size: Size of a minibatch; by default every iteration uses all data.
        tolerance: Rise of the mean log-likelihood, in nats, below which to stop. Not used with
            minibatches.
        restarts: Number of runs from different starts, of which the best is kept.
        initialize: Whether to start from clusters; by default if the model was never initialised
            or trained. Restarts always do.
        seed: Seed of starts and minibatches; by default drawn from PyTorch's global generator.
        progress_bar: Whether to show a bar with the loss.

    Returns:
        Mean negative log-likelihood before every iteration (on its minibatch), and timings.

    Raises:
        ValueError: If model or data do not fit.

    Example:
        >>> data = torch.cat([torch.randn(500, 2) - 3, torch.randn(500, 2) + 3])
        >>> model = GaussianMixture(dim=2, num_components=2, covariance="full")
        >>> history = fit_em(model, data, seed=0, progress_bar=False)
        >>> all(b <= a + 1e-9 for a, b in zip(history.losses, history.losses[1:]))
        True
    """
    steps = check_positive_int("steps", steps)
    restarts = check_positive_int("restarts", restarts)
    if batch_size is not None:
        batch_size = min(check_positive_int("batch_size", batch_size), len(data))
    if not isinstance(model, GaussianMixture) or model.network is not None:
        raise ValueError(
            "Expected a GaussianMixture without context. Other models are trained with fit."
        )
    if not all(p.requires_grad for p in model._parameters_of_law().values()):
        raise ValueError("Expected no frozen parameters: use fit to train the others alone.")
    seed = int(torch.randint(2**62, ())) if seed is None else as_int(seed)
    if seed is None:
        raise ValueError("Expected seed to be an integer.")
    x = _check_data(model, data)
    initialize = not bool(model.initialized) if initialize is None else initialize
    best: tuple[float, GaussianMixture, History] | None = None
    bar = tqdm(total=steps * restarts, unit="step", disable=not progress_bar)
    with bar, torch.no_grad(), torch.random.fork_rng(devices=_cuda_devices(x)):
        torch.manual_seed(seed)
        for attempt in range(restarts):
            copied = copy.deepcopy(model)
            if initialize or attempt or restarts > 1:
                copied.initialize(data)
            run = _Run(copied.double(), x, batch_size, bar)
            history = run.train(steps, tolerance)
            if best is None or run.log_likelihood > best[0]:
                best = run.log_likelihood, copied, history
    assert best is not None
    for name, parameter in best[1]._parameters_of_law().items():
        getattr(model, name).data.copy_(parameter)
    model.initialized.fill_(True)
    model.eval()
    return best[2]


class _Run:
    """One run of the algorithm from one start."""

    def __init__(
        self, model: GaussianMixture, x: Tensor, batch_size: int | None, bar: tqdm
    ) -> None:
        self.model, self.batch_size, self.bar = model, batch_size, bar
        # Near the origin sums of squares cancel less.
        self.centre = x.nanmean(0).nan_to_num(0.0)
        self.x = x - self.centre
        self.model.loc.sub_(self.centre)
        self.history = History()
        self.log_likelihood = -math.inf  # of all data, at the end

    def train(self, steps: int, tolerance: float) -> History:
        """Iterates, and leaves the model with the best parameters."""
        start = time.perf_counter()
        if self.batch_size is None:
            self._full(steps, tolerance, start)
        else:
            self._stepwise(steps, start)
        self.history.outcome = "finished"
        self.log_likelihood = self._total()
        self.model.loc.add_(self.centre)
        return self.history

    def _full(self, steps: int, tolerance: float, start: float) -> None:
        previous, saved, may_revive = -math.inf, self._state(), True
        for _ in range(steps):
            reference = self.model.loc.clone()
            statistics = self._statistics(self.x, reference)
            mean = float(statistics.log_prob) / len(self.x)
            if mean < previous:  # by rounding, or with an estimate at its floor
                self._restore(saved)
                break
            self._record(-mean, 1.0, start)
            if mean - previous < tolerance:
                break
            previous, saved = mean, self._state()
            self._maximize(statistics, reference)
            if may_revive and bool((statistics.weight < DEAD_POINTS).any()):
                may_revive = self._revive(statistics.weight, mean)

    def _stepwise(self, steps: int, start: float) -> None:
        assert self.batch_size is not None
        reference = torch.zeros_like(self.model.loc)
        average: _Statistics | None = None
        count = len(self.x)
        order = torch.randperm(count, device=self.x.device)
        position = 0
        for step in range(steps):
            if position + self.batch_size > count:
                order, position = torch.randperm(count, device=self.x.device), 0
            rows = order[position : position + self.batch_size]
            position += self.batch_size
            statistics = self._statistics(self.x[rows], reference)
            statistics = _Statistics(*(t / len(rows) for t in statistics))
            rate = 1.0 if average is None else (step + 2) ** -STEP_POWER
            if average is not None:
                pairs = zip(average, statistics, strict=True)
                statistics = _Statistics(*(a + rate * (b - a) for a, b in pairs))
            average = statistics
            self._record(-float(average.log_prob), rate, start)
            scaled = _Statistics(*(t * count for t in average))
            self._maximize(scaled, reference)

    def _record(self, loss: float, rate: float, start: float) -> None:
        self.history.losses.append(loss)
        self.history.learning_rates.append(rate)
        self.history.seconds.append(time.perf_counter() - start)
        self.bar.update()
        self.bar.set_postfix(loss=f"{loss:.5g}", refresh=False)

    def _maximize(self, statistics: _Statistics, reference: Tensor) -> None:
        """The M-step. Dead components keep their means, and take the covariance of all."""
        model, weight = self.model, statistics.weight
        alive = weight >= DEAD_POINTS
        share = weight.clamp(min=torch.finfo(weight.dtype).tiny).unsqueeze(-1)
        shift = torch.where(alive.unsqueeze(-1), statistics.first / share, 0.0)
        tail = [1] * (statistics.second.dim() - 1)
        second = statistics.second / share.reshape(-1, *tail)
        second = second - (
            shift.unsqueeze(-1) * shift.unsqueeze(-2) if second.dim() == 3 else shift.square()
        )
        pooled = torch.tensordot(torch.where(alive, weight, 0.0), second.nan_to_num(), 1)
        pooled = pooled / weight[alive].sum()
        second = torch.where(alive.reshape(-1, *tail), second, pooled)
        raw = model.structure.estimate(Moments(weight, second), model._raw())
        loc = torch.where(alive.unsqueeze(-1), reference + shift, model.loc)
        logits = (weight / weight.sum()).clamp(min=torch.finfo(weight.dtype).tiny).log()
        model._assign(logits, loc, raw)

    def _revive(self, weight: Tensor, mean: float) -> bool:
        """Lets a dead component take half of another one's points, on trial.

        It is put at the point that the other explains worst. The heaviest components are tried
        in turn; what raises the likelihood most is kept.

        Returns:
            Whether any raised the likelihood; otherwise all is as it was.
        """
        saved, law = self._state(), self.model.distribution
        scores = torch.cat([_scores(law, b) for b in self._blocks(self.x)])
        label = scores.argmax(-1)
        dead = int(weight.argmin())
        best, best_state = mean, None
        for donor in weight.argsort(descending=True)[:TRIAL_DONORS]:
            rows = (label == donor).nonzero().flatten()
            if len(rows) < 2:
                continue
            x = self.x[rows[scores[rows, donor].argmin()]]
            self.model.loc[dead] = torch.where(x.isnan(), self.model.loc[donor], x)
            share = weight.clone()
            share[donor] = share[dead] = 0.5 * weight[donor]
            self.model.logits.copy_((share / share.sum()).log())
            for parameter in self.model._raw().values():
                if len(parameter) == len(weight):
                    parameter[dead] = parameter[donor]
            for _ in range(TRIAL_STEPS):
                reference = self.model.loc.clone()
                self._maximize(self._statistics(self.x, reference), reference)
            total = self._total() / len(self.x)
            if total > best:
                best, best_state = total, self._state()
            self._restore(saved)
        if best_state is not None:
            self._restore(best_state)
        return best_state is not None

    def _statistics(self, x: Tensor, reference: Tensor) -> _Statistics:
        """The E-step."""
        law = self.model.distribution
        full = self.model.structure.full_moments
        total: _Statistics | None = None
        for block in self._blocks(x):
            if bool(block.isnan().any()):
                part = _with_missing(law, block, reference, full)
            else:
                part = _complete(law, block, reference, full)
            total = (
                part
                if total is None
                else _Statistics(*(a + b for a, b in zip(total, part, strict=True)))
            )
        assert total is not None
        return total

    def _blocks(self, x: Tensor) -> tuple[Tensor, ...]:
        return x.split(max(1, BLOCK_SCORES // self.model.num_components))

    def _total(self) -> float:
        law = self.model.distribution
        return sum(float(log_sum_exp(_scores(law, b)).sum()) for b in self._blocks(self.x))

    def _state(self) -> dict[str, Tensor]:
        return {k: v.clone() for k, v in self.model._parameters_of_law().items()}

    def _restore(self, state: dict[str, Tensor]) -> None:
        for name, value in state.items():
            getattr(self.model, name).copy_(value)


def _scores(law: FiniteMixture, x: Tensor) -> Tensor:
    """Log w_k + log p_k of the observed entries, (N, K)."""
    missing = x.isnan()
    if not bool(missing.any()):
        return law._joint_log_prob(x)
    return law._joint_log_prob_observed(x.masked_fill(missing, 0.0), ~missing)


def _complete(law: FiniteMixture, x: Tensor, reference: Tensor, full: bool) -> _Statistics:
    scores = law._joint_log_prob(x)
    log_prob = log_sum_exp(scores)
    responsibility = (scores - log_prob.unsqueeze(-1)).exp()  # (N, K)
    weight = responsibility.sum(0)
    first = responsibility.mT @ x - weight.unsqueeze(-1) * reference
    if not full:
        second = responsibility.mT @ x.square()
        second = second - reference * (2 * first + weight.unsqueeze(-1) * reference)
        return _Statistics(log_prob.sum(), weight, first, second.clamp(min=0))
    second = torch.stack(
        [
            (r.unsqueeze(-1) * difference).mT @ difference
            for r, difference in (
                (r, x - c) for r, c in zip(responsibility.mT, reference, strict=True)
            )
        ]
    )
    return _Statistics(log_prob.sum(), weight, first, second)


def _with_missing(law: FiniteMixture, x: Tensor, reference: Tensor, full: bool) -> _Statistics:
    """Missing entries have the moments they are expected to have, given the observed ones."""
    scores = _scores(law, x)
    log_prob = log_sum_exp(scores)
    responsibility = (scores - log_prob.unsqueeze(-1)).exp()
    weight = responsibility.sum(0)
    observed = ~x.isnan()
    if not full:  # within a component coordinates are independent
        seen, value = observed.to(x.dtype), x.nan_to_num(0.0)
        weight_seen = responsibility.mT @ seen
        weight_missing = weight.unsqueeze(-1) - weight_seen
        shift = law.loc - reference
        first = responsibility.mT @ value - weight_seen * reference
        second = responsibility.mT @ value.square() - reference * (
            2 * first + weight_seen * reference
        )
        expected = law.component_variance + shift.square()
        return _Statistics(
            log_prob.sum(),
            weight,
            first + weight_missing * shift,
            second.clamp(min=0) + weight_missing * expected,
        )
    k, dim = reference.shape
    second = x.new_zeros(k, dim, dim)
    filled = x.unsqueeze(-2).repeat(1, k, 1)  # (N, K, D)
    for given, free, rows in by_pattern(observed):
        if not free:
            continue
        at = torch.tensor(free, device=x.device)
        part = law if not given else law._condition(given, free, x[rows][:, given])
        filled[rows.unsqueeze(-1), :, at] = part.loc.expand(len(rows), k, len(free)).movedim(-1, 1)
        covariance = part.component_covariance
        weighted = responsibility[rows].sum(0)[:, None, None] * covariance
        second[:, at.unsqueeze(-1), at] += weighted
    difference = filled - reference
    weighted = responsibility.unsqueeze(-1) * difference
    first = weighted.sum(0)
    second = second + torch.einsum("nki,nkj->kij", weighted, difference)
    return _Statistics(log_prob.sum(), weight, first, second)


def _check_data(model: GaussianMixture, data: Tensor) -> Tensor:
    if not isinstance(data, Tensor) or data.dim() != 2 or data.shape[-1] != model.dim:
        got = tuple(data.shape) if isinstance(data, Tensor) else type(data).__name__
        raise ValueError(f"Expected data of shape (N, {model.dim}), got {got}.")
    if data.device != model.loc.device or not data.is_floating_point():
        raise ValueError(
            f"Expected floating-point data on {model.loc.device}, got {data.dtype} on "
            f"{data.device}."
        )
    if len(data) == 0:
        raise ValueError("Expected at least one point, got none.")
    allowed = ~data.isinf() if model.missing == "marginalize" else data.isfinite()
    if not bool(allowed.all()):
        raise ValueError(
            f"Expected finite data, got {int((~allowed).sum())} entries that are not. If NaN "
            f"marks missing entries, build the mixture with missing='marginalize'."
        )
    return data.double()


def _cuda_devices(x: Tensor) -> list[torch.device]:
    return [x.device] if x.device.type == "cuda" else []
