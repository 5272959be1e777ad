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
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from tqdm import tqdm

from ...core.advice import warn_user
from ...core.checks import check_positive_int
from ...core.conversions import TensorLike
from ...core.random import chosen_seed, draws_from, seeded
from ...training.history import History
from ...training.integers import warn_about_integers
from ..learnable import GaussianMixture
from .maximization import is_alive, maximize, step_size
from .prior import ConjugatePrior, PseudoPoints, check_prior
from .rows import SAMPLE_ROWS, Rows, Source, Survey, TensorSource, make_source, survey
from .statistics import Statistics, joint_log_prob
from .student import make_expectation

if TYPE_CHECKING:
    from lightning_fabric import Fabric

# Scores are computed for this many numbers (points x components) at once.
BLOCK_SCORES = 2**20

# The likelihood falls by rounding up to this share of it.
ROUNDING = 1e-12

# Put elsewhere, it has this many iterations to raise the likelihood, at so many places.
TRIAL_STEPS = 10
TRIAL_DONORS = 5


def fit_em(
    model: GaussianMixture,
    data: Any,
    *,
    steps: int = 200,
    batch_size: int | None = None,
    tolerance: float = 1e-4,
    sample_weight: TensorLike | None = None,
    restarts: int = 1,
    prior: ConjugatePrior | None = None,
    initialize: bool | None = None,
    precision: Literal["double", "single"] = "double",
    fabric: "Fabric | None" = None,
    seed: int | None = None,
    progress_bar: bool = True,
) -> History:
    """Fits a mixture by expectation maximisation, in float64.

    On all data the likelihood rises with every step until it is stationary. A component that has
    lost its points takes over half of another one's, if that raises the likelihood.
    With ``missing="marginalize"`` the missing entries are integrated out, for every covariance.
    With ``tails="student"`` far points count for less, and degrees of freedom are estimated, too.

    The data may be larger than memory: every iteration is one pass over them, in blocks.

    Args:
        model: A mixture without context, fitted in place.
        data: Points, shape (N, D): a tensor, an array or nested lists; a NumPy memory map, or
            another array in a file that has a shape and is sliced (h5py, zarr); a `Dataset`, a
            `DataLoader`, or anything else that yields batches of rows each time that it is gone
            through. Batches may be pairs of rows and their weights.
        steps: Largest number of iterations; with minibatches, their number.
        batch_size: Size of a minibatch; by default every iteration uses all data. Not for
            loaders.
        tolerance: Rise of the mean log-likelihood, in nats, below which to stop. Not used with
            minibatches.
        sample_weight: Weights of the rows, (N,), not negative: a row of weight two counts as
            two rows. By default all weigh one.
        restarts: Number of runs from different starts, of which the best is kept.
        prior: Of means, covariances and weights; not for Student-t tails and factors. With it,
            wherever the likelihood is spoken of here, the posterior density is meant.
        initialize: Whether to start from clusters; by default if the model was never initialised
            or trained. Restarts always do. They are those of 20,000 rows, where data are not
            kept in memory.
        precision: ``"single"``: matrix products in float32, which take half the time, where they
            lose few digits; sums are in float64.
        fabric: Over which processes to sum: each takes its part of the rows. All end with the
            parameters that one process would find. Call ``fabric.launch()`` before.
        seed: Seed of starts and minibatches; by default drawn from PyTorch's global generator.
        progress_bar: Whether to show a bar with the loss.

    Returns:
        Mean negative log-likelihood before every iteration (on its minibatch), and timings. With
        a prior, less its log-density divided by the number of points, up to a constant.

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
    check_fittable(model)
    if precision not in ("double", "single"):
        raise ValueError(f"Expected precision 'double' or 'single', got {precision!r}.")
    seed = chosen_seed(seed)
    if fabric is not None:
        model.to(fabric.device)
        seed = fabric.broadcast(seed)
    processes = 1 if fabric is None else fabric.world_size
    source = make_source(data, sample_weight, dim=model.dim, like=model.loc)
    prior = check_prior(prior)
    if prior is not None and (model.student_tails is not None or model.structure.has_factors):
        raise ValueError(
            "Expected no prior with tails='student' or covariance='low_rank': it has no points "
            "for their hidden factors."
        )
    if batch_size is not None:
        batch_size = check_positive_int("batch_size", batch_size)
        if processes > 1 or not isinstance(source, TensorSource):
            raise ValueError(
                "Expected no batch_size with a loader or several processes, where every iteration "
                "uses all data. For minibatches of a stream use pyromix.OnlineEM."
            )
    initialize = not bool(model.initialized) if initialize is None else initialize
    best: tuple[float, GaussianMixture, History] | None = None
    shown = progress_bar and (fabric is None or fabric.is_global_zero)
    bar = tqdm(total=steps * restarts, unit="step", disable=not shown)
    with bar, torch.no_grad(), draws_from(*seeded(seed, model.loc.device)):
        seen = survey(source, model.missing == "marginalize", model.loc.dtype)
        warn_about_integers(model, seen.sample)
        for attempt in range(restarts):
            copied = copy.deepcopy(model)
            if initialize or attempt or restarts > 1:
                copied.initialize(seen.sample)
            dtype = torch.float32 if precision == "single" else torch.float64
            run = _Run(copied.double(), source, seen, batch_size, dtype, fabric, bar, prior)
            history = run.train(steps, tolerance)
            if best is None or run.log_likelihood > best[0]:
                best = run.log_likelihood, copied, history
    assert best is not None
    for name, parameter in best[1]._parameters_of_law().items():
        getattr(model, name).data.copy_(parameter)
    model.units.load_state_dict(best[1].units.state_dict())
    model.initialized.fill_(True)
    model.eval()
    at_floor = best[1].columns_at_floor()
    if at_floor is not None and bool(at_floor.all()):
        warn_user(
            f"Every variance is at variance_floor={model.variance_floor}. Either the data are in "
            f"smaller units than it supposes: build the mixture with standardize=True, or lower "
            f"it. Or every component has collapsed onto a point: use fewer.",
        )
    return best[2]


def check_fittable(model: Any) -> None:
    """Checks that a model is a mixture that expectation maximisation can fit.

    Raises:
        ValueError: If it is not.
    """
    if not isinstance(model, GaussianMixture) or model.network is not None:
        raise ValueError(
            "Expected model to be a GaussianMixture without context. Other models are trained "
            "with fit."
        )
    if not all(p.requires_grad for p in model._parameters_of_law().values()):
        raise ValueError("Expected no frozen parameters: use fit to train the others alone.")


class _Run:
    """One run of the algorithm from one start."""

    def __init__(
        self,
        model: GaussianMixture,
        source: Source,
        seen: Survey,
        batch_size: int | None,
        dtype: torch.dtype,
        fabric: "Fabric | None",
        bar: tqdm,
        prior: ConjugatePrior | None,
    ) -> None:
        self.model, self.seen, self.fabric, self.bar = model, seen, fabric, bar
        self.batch_size = None if batch_size is None else min(batch_size, seen.num_rows)
        # Meanwhile the data are in the units of the parameters.
        self.units = copy.deepcopy(model.units)
        self.log_volume = float((seen.observed * self.units.scale.log()).sum() / seen.total)
        model.units.loc.zero_()
        model.units.scale.fill_(1.0)
        # Near the origin sums of squares cancel less.
        centre = self.units(seen.mean)
        if model.student_tails is not None:  # whose outliers have no say
            centre = self.units(seen.sample.double()).nanmedian(0).values.nan_to_num(0.0)
        self.centre = torch.where(seen.observed > 0, centre, 0.0)
        self.model.loc.sub_(self.centre)
        loc = self.units.loc + self.centre * self.units.scale
        place = (0, 1) if fabric is None else (fabric.global_rank, fabric.world_size)
        square = (seen.variance + (seen.mean - loc).square()) / self.units.scale.square()
        self.rows = Rows(source, loc, self.units.scale, square, seen.has_gaps, *place)
        self.expectation = make_expectation(model, self.rows, dtype)
        # Whether the scale of the hidden factors is estimated, too; see `maximize`.
        self.expanded = model.student_tails is not None
        self.prior: PseudoPoints | None = None
        if prior is not None:
            covariance = prior.covariance(
                model.structure, self.rows, seen.total, self.units.scale, fabric
            )
            self.prior = PseudoPoints(prior, model.structure, covariance)
        self.history = History()
        self.log_likelihood = -math.inf  # of all data, at the end

    def train(self, steps: int, tolerance: float) -> History:
        """Iterates, leaves the model with the best parameters, and returns losses and timings."""
        start = time.perf_counter()
        if self.batch_size is None:
            self._full(steps, tolerance, start)
        else:
            self._stepwise(steps, start)
        self.history.outcome = "finished"
        self.log_likelihood = self._total() - self.seen.total * self.log_volume
        self.model.loc.add_(self.centre)
        self.model.units.load_state_dict(self.units.state_dict())
        return self.history

    def _full(self, steps: int, tolerance: float, start: float) -> None:
        """Iterates on all data, until the likelihood rises no more."""
        previous, saved, may_revive = -math.inf, self._state(), True
        for _ in range(steps):
            statistics = self._statistics()
            mean = (float(statistics.log_prob) + self._log_prior()) / self.seen.total
            if mean < previous and self.expanded and previous - mean > ROUNDING * abs(mean):
                # Where a floor is reached, the expanded step is none up: go on by plain ones.
                self.expanded = False
                self._restore(saved)
                previous = -math.inf
                continue
            if mean < previous:  # by rounding
                self._restore(saved)
                self._say_converged()
                break
            self._record(-mean, 1.0, start)
            if mean - previous < tolerance:
                self._say_converged()
                break
            previous, saved = mean, self._state()
            self._maximize(statistics)
            if (
                self.prior is None
                and may_revive
                and not bool(is_alive(statistics.weight, self._point).all())
            ):
                may_revive = self._revive(statistics.weight, mean)

    def _stepwise(self, steps: int, start: float) -> None:
        """Iterates on minibatches, with running averages of their statistics."""
        assert self.batch_size is not None
        average: Statistics | None = None
        count, device = self.seen.num_rows, self.rows.device
        order = torch.randperm(count, device=device)
        position = 0
        for step in range(steps):
            if position + self.batch_size > count:
                order, position = torch.randperm(count, device=device), 0
            index = order[position : position + self.batch_size]
            position += self.batch_size
            expectation = make_expectation(self.model, self.rows.take(index))
            statistics = expectation.around_origin(self.model.law)
            statistics = statistics.times(count / len(index))
            rate = 1.0 if average is None else step_size(step)
            if average is not None:
                statistics = average.times(1 - rate).plus(statistics.times(rate))
            average = statistics
            total = float(average.log_prob) + self._log_prior()
            self._record(-total / self.seen.total, rate, start)
            self._maximize(average)

    @property
    def _point(self) -> float:
        """The weight of a point, on average."""
        return self.seen.total / self.seen.num_rows

    def _statistics(self) -> Statistics:
        """Those of all data, in all processes."""
        return self.expectation(self.model.law).over_processes(self.fabric)

    def _maximize(self, statistics: Statistics) -> None:
        """The M-step."""
        if self.prior is not None:  # with points of its own no component is dead
            self.model._assign(*self.prior.maximize(statistics, self.model._raw()))
            return
        maximize(self.model, statistics, self._point, expanded=self.expanded)

    def _record(self, loss: float, rate: float, start: float) -> None:
        """Adds an iteration to the history and to the progress bar."""
        loss += self.log_volume
        self.history.losses.append(loss)
        self.history.learning_rates.append(rate)
        self.history.seconds.append(time.perf_counter() - start)
        self.bar.update()
        self.bar.set_postfix(loss=f"{loss:.5g}", refresh=False)

    def _say_converged(self) -> None:
        """Lets the bar say why it stops short of its end."""
        self.bar.set_postfix_str(f"loss={self.history.losses[-1]:.5g}, converged")

    def _revive(self, weight: Tensor, mean: float) -> bool:
        """Lets a dead component take half of another one's points, on trial.

        It is put at the point that the other explains worst. The heaviest components are tried
        in turn; what raises the likelihood most is kept. Trials are on a sample of the data, where
        those are many, are not kept in memory, or are shared by several processes.

        Returns:
            Whether any raised the likelihood; otherwise all is as it was.
        """
        saved, law = self._state(), self.model.law
        trial, before = self.rows, mean * self.seen.total
        sampled = self.seen.num_rows > SAMPLE_ROWS or trial.all is None or trial.place[1] > 1
        if sampled:
            trial = Rows.of(self._sample())
        assert trial.all is not None
        x, _ = trial.all
        expectation = make_expectation(self.model, trial) if sampled else self.expectation
        best = float(expectation(law).log_prob) if sampled else before
        donors = weight.argsort(descending=True)[:TRIAL_DONORS]
        labels, of_donors = [], []
        for block in x.split(max(1, BLOCK_SCORES // len(weight))):
            scores = joint_log_prob(law, block)
            labels.append(scores.argmax(-1))
            of_donors.append(scores[:, donors])
        label, explained = torch.cat(labels), torch.cat(of_donors)
        dead = int(weight.argmin())
        best_state = None
        for i, donor in enumerate(donors):
            rows = (label == donor).nonzero().flatten()
            if len(rows) < 2:
                continue
            point = x[rows[explained[rows, i].argmin()]]
            self.model.loc[dead] = torch.where(point.isnan(), self.model.loc[donor], point)
            share = weight.clone()
            share[donor] = share[dead] = 0.5 * weight[donor]
            self.model.logits.copy_((share / share.sum()).log())
            for parameter in (self.model._raw() | self.model._raw_tails()).values():
                if len(parameter) == len(weight):
                    parameter[dead] = parameter[donor]
            for _ in range(TRIAL_STEPS):
                statistics = expectation(self.model.law)
                maximize(self.model, statistics, self._point, expanded=self.expanded)
            total = float(expectation(self.model.law).log_prob)
            if total > best:
                best, best_state = total, self._state()
            self._restore(saved)
        if best_state is None:
            return False
        self._restore(best_state)
        if sampled and self._total() < before:
            self._restore(saved)
            return False
        return True

    def _sample(self) -> Tensor:
        """Some of the rows, drawn at random, (n, D)."""
        x = self.seen.sample
        if len(x) > SAMPLE_ROWS:
            x = x[torch.randperm(len(x), device=x.device)[:SAMPLE_ROWS]]
        return (x.double() - self.rows.loc) / self.rows.scale

    def _total(self) -> float:
        """Log-likelihood of all data, and log-density of the prior."""
        return float(self._statistics().log_prob) + self._log_prior()

    def _log_prior(self) -> float:
        """Log-density of the prior at the present parameters, up to a constant."""
        if self.prior is None:
            return 0.0
        return float(self.prior.log_prob(self.model.law, self.model._raw()))

    def _state(self) -> dict[str, Tensor]:
        """A copy of the parameters, by name."""
        return {k: v.clone() for k, v in self.model._parameters_of_law().items()}

    def _restore(self, state: dict[str, Tensor]) -> None:
        """Sets the parameters to those of a state."""
        for name, value in state.items():
            getattr(self.model, name).copy_(value)
