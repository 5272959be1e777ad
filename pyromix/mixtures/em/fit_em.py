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

import torch
from torch import Tensor
from tqdm import tqdm

from ...core.advice import warn_user
from ...core.checks import as_int, check_positive_int, check_squares
from ...core.conversions import TensorLike, as_tensor
from ...core.random import draws_from, seeded
from ...training.history import History
from ...training.integers import warn_about_integers
from ..covariance import Moments
from ..learnable import GaussianMixture
from .prior import ConjugatePrior, PseudoPoints, check_prior
from .products import Expectation
from .statistics import Statistics, joint_log_prob

# Scores are computed for this many numbers (points x components) at once.
BLOCK_SCORES = 2**20

# Weight of the t-th minibatch in the running averages: (t + 2)^-0.6.
STEP_POWER = 0.6

# A component that explains less than this many points, and than another one, is dead.
DEAD_POINTS = 0.5

# Put elsewhere, it has this many iterations to raise the likelihood, at so many places.
TRIAL_STEPS = 10
TRIAL_DONORS = 5


def fit_em(
    model: GaussianMixture,
    data: TensorLike,
    *,
    steps: int = 200,
    batch_size: int | None = None,
    tolerance: float = 1e-4,
    restarts: int = 1,
    prior: ConjugatePrior | None = None,
    initialize: bool | None = None,
    seed: int | None = None,
    progress_bar: bool = True,
) -> History:
    """Fits a mixture by expectation maximisation, in float64.

    On all data the likelihood rises with every step until it is stationary. A component that has
    lost its points takes over half of another one's, if that raises the likelihood.
    With ``missing="marginalize"`` the missing entries are integrated out, for every covariance.

    Args:
        model: A mixture without context, fitted in place.
        data: Points, shape (N, D): a tensor, an array or nested lists.
        steps: Largest number of iterations; with minibatches, their number.
        batch_size: Size of a minibatch; by default every iteration uses all data.
        tolerance: Rise of the mean log-likelihood, in nats, below which to stop. Not used with
            minibatches.
        restarts: Number of runs from different starts, of which the best is kept.
        prior: Of means, covariances and weights. With it, wherever the likelihood is spoken of
            here, the posterior density of the parameters is meant.
        initialize: Whether to start from clusters; by default if the model was never initialised
            or trained. Restarts always do.
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
    if not isinstance(model, GaussianMixture) or model.network is not None:
        raise ValueError(
            "Expected a GaussianMixture without context. Other models are trained with fit."
        )
    if not all(p.requires_grad for p in model._parameters_of_law().values()):
        raise ValueError("Expected no frozen parameters: use fit to train the others alone.")
    given, seed = seed, int(torch.randint(2**62, ())) if seed is None else as_int(seed)
    if seed is None:
        raise ValueError(f"Expected seed to be an integer, got {given!r}.")
    if isinstance(data, tuple):
        raise ValueError("Expected points alone, got a tuple: leave labels out.")
    data = data if isinstance(data, Tensor) else as_tensor("data", data, like=model.loc)
    x = _check_data(model, data)
    prior = check_prior(prior)
    if batch_size is not None:
        batch_size = min(check_positive_int("batch_size", batch_size), len(data))
    initialize = not bool(model.initialized) if initialize is None else initialize
    warn_about_integers(model, x)
    best: tuple[float, GaussianMixture, History] | None = None
    bar = tqdm(total=steps * restarts, unit="step", disable=not progress_bar)
    with bar, torch.no_grad(), draws_from(*seeded(seed, x.device)):
        for attempt in range(restarts):
            copied = copy.deepcopy(model)
            if initialize or attempt or restarts > 1:
                copied.initialize(data)
            run = _Run(copied.double(), x, batch_size, bar, prior)
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


class _Run:
    """One run of the algorithm from one start."""

    def __init__(
        self,
        model: GaussianMixture,
        x: Tensor,
        batch_size: int | None,
        bar: tqdm,
        prior: ConjugatePrior | None,
    ) -> None:
        self.model, self.batch_size, self.bar = model, batch_size, bar
        # Meanwhile the data are in the units of the parameters.
        self.units = copy.deepcopy(model.units)
        x = self.units(x)
        log_scale = torch.where(x.isnan(), 0.0, self.units.scale.log())
        self.log_volume = float(log_scale.sum(-1).mean())
        model.units.loc.zero_()
        model.units.scale.fill_(1.0)
        # Near the origin sums of squares cancel less.
        self.centre = x.nanmean(0).nan_to_num(0.0)
        self.x = x - self.centre
        self.model.loc.sub_(self.centre)
        self.expectation = Expectation(model.structure, self.x)
        self.prior: PseudoPoints | None = None
        if prior is not None:
            covariance = prior.covariance(model.structure, self.x, self.units.scale)
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
        self.log_likelihood = self._total() - len(self.x) * self.log_volume
        self.model.loc.add_(self.centre)
        self.model.units.load_state_dict(self.units.state_dict())
        return self.history

    def _full(self, steps: int, tolerance: float, start: float) -> None:
        """Iterates on all data, until the likelihood rises no more."""
        previous, saved, may_revive = -math.inf, self._state(), True
        for _ in range(steps):
            statistics = self.expectation(self.model.law)
            mean = (float(statistics.log_prob) + self._log_prior()) / len(self.x)
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
            if may_revive and not bool(_is_alive(statistics.weight).all()):
                may_revive = self._revive(statistics.weight, mean)

    def _stepwise(self, steps: int, start: float) -> None:
        """Iterates on minibatches, with running averages of their statistics."""
        assert self.batch_size is not None
        average: Statistics | None = None
        count = len(self.x)
        order = torch.randperm(count, device=self.x.device)
        position = 0
        for step in range(steps):
            if position + self.batch_size > count:
                order, position = torch.randperm(count, device=self.x.device), 0
            rows = order[position : position + self.batch_size]
            position += self.batch_size
            expectation = Expectation(self.model.structure, self.x[rows])
            statistics = expectation.around_origin(self.model.law)
            statistics = statistics.times(count / len(rows))
            rate = 1.0 if average is None else (step + 2) ** -STEP_POWER
            if average is not None:
                statistics = average.times(1 - rate).plus(statistics.times(rate))
            average = statistics
            self._record(-(float(average.log_prob) + self._log_prior()) / count, rate, start)
            self._maximize(average)

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

    def _maximize(self, statistics: Statistics) -> None:
        """The M-step. Dead components keep their means and, where it is theirs, covariance."""
        model, weight = self.model, statistics.weight
        if self.prior is not None:  # with points of its own no component is dead
            model._assign(*self.prior.maximize(statistics, model._raw()))
            return
        tiny = torch.finfo(weight.dtype).tiny
        mean = statistics.first / weight.clamp(min=tiny).unsqueeze(-1)
        second = statistics.second - model.structure.outer(weight, mean)
        logits = (weight / weight.sum()).clamp(min=tiny).log()
        current = model._raw()
        alive = _is_alive(weight)
        if bool(alive.all()):
            raw = model.structure.estimate(Moments(weight, second), current)
            model._assign(logits, statistics.reference + mean, raw)
            return
        kept = torch.where(alive.unsqueeze(-1), mean, model.loc - statistics.reference)
        second = second + model.structure.outer(weight, mean - kept)
        counts = weight
        if len(second) == len(weight):
            # Any moments do where the estimate is not used, so long as it exists.
            counts = torch.where(alive, weight, 1.0)
            second[~alive] = second[alive].sum(0) / weight[alive].sum()
        raw = model.structure.estimate(Moments(counts, second), current)
        for name, value in raw.items():
            if len(value) == len(weight):
                value[~alive] = current[name][~alive]
        model._assign(logits, statistics.reference + kept, raw)

    def _revive(self, weight: Tensor, mean: float) -> bool:
        """Lets a dead component take half of another one's points, on trial.

        It is put at the point that the other explains worst. The heaviest components are tried
        in turn; what raises the likelihood most is kept.

        Returns:
            Whether any raised the likelihood; otherwise all is as it was.
        """
        saved, law = self._state(), self.model.law
        blocks = self.x.split(max(1, BLOCK_SCORES // len(weight)))
        scores = torch.cat([joint_log_prob(law, block) for block in blocks])
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
                self._maximize(self.expectation(self.model.law))
            total = self._total() / len(self.x)
            if total > best:
                best, best_state = total, self._state()
            self._restore(saved)
        if best_state is not None:
            self._restore(best_state)
        return best_state is not None

    def _total(self) -> float:
        """Log-likelihood of all data, and log-density of the prior."""
        return float(self.expectation(self.model.law).log_prob) + self._log_prior()

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


def _is_alive(weight: Tensor) -> Tensor:
    """Which components (K,) have points, given how many each explains: the heaviest always has.

    Of few points, each of many components may explain less than half of one.
    """
    return weight >= weight.max().clamp(max=DEAD_POINTS)


def _check_data(model: GaussianMixture, data: Tensor) -> Tensor:
    """Checks that data are points of a model, and returns them in float64.

    Fits are in float64, but the parameters that they end as are in the model's dtype.
    """
    if data.dim() != 2 or data.shape[-1] != model.dim:
        raise ValueError(f"Expected data of shape (N, {model.dim}), got {tuple(data.shape)}.")
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
    return check_squares("data", data, model.loc.dtype).double()
