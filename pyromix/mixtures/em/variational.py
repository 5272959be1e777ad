r"""Variational Bayes for `GaussianMixture`: how many components the data carry.

With :math:`q(z) q(w) \prod_k q(m_k, \Lambda_k)` in place of the posterior of components z,
weights, means and precisions, the evidence has the lower bound

.. math:: \log p(x) \ge E_q \log p(x, z, w, m, \Lambda) - E_q \log q ,

which rises with every step. Given q of the parameters, q(z) is the E-step of a mixture with
shifted logits, so that all of its fast products are those of expectation maximisation. Components
that the data do not need lose their points, slowly; so from time to time two components are
merged, or one is left out, if that raises the bound (Hughes and Sudderth 2013).
"""

__all__ = ["VBResult", "fit_vb"]

import copy
import math
import time
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from ...core.checks import check_choice, check_positive_int, number
from ...core.conversions import TensorLike
from ...core.random import chosen_seed, draws_from, seeded
from ...training.history import History
from ...training.integers import warn_about_integers
from ..covariance import STRUCTURES
from ..finite import FiniteMixture
from ..learnable import GaussianMixture
from .posterior import (
    ComponentPosterior,
    ComponentPrior,
    DirichletProcess,
    FiniteDirichlet,
    Groups,
    WeightPosterior,
    WeightPrior,
)
from .prior import ConjugatePrior, check_prior
from .products import Expectation
from .rows import Rows, gathered
from .statistics import CACHED_NUMBERS, joint_log_prob

Weights = Literal["dirichlet_process", "dirichlet"]

# Structures whose means and precisions have conjugate posteriors.
CONJUGATE = ("diagonal", "spherical", "shared", "tied", "full")

# Components are merged after so many steps, of each with so many others that lie nearest.
MERGE_EVERY = 10
NEIGHBOURS = 5

# Where no merge raises the bound at once, so many pairs are merged and so many components left out
# on trial: for so many steps.
TRIALS = 5
TRIAL_STEPS = 10

# A component that holds less than this many points is not counted.
FEWEST_POINTS = 0.5


@dataclass(frozen=True, eq=False)
class VBResult:
    """What `fit_vb` finds."""

    model: GaussianMixture
    """A new mixture with the posterior means of weights, means and covariances."""
    bound: float
    """Lower bound of the log-evidence of the data, in nats."""
    weights: Tensor
    """Posterior means of the weights, shape (K,), the largest first."""
    num_components: int
    """Number of components that hold points."""
    history: History
    """Minus the bound divided by the number of points, before every step, and timings."""


def fit_vb(
    model: GaussianMixture,
    data: TensorLike,
    *,
    weights: Weights = "dirichlet_process",
    concentration: float = 1.0,
    prior: ConjugatePrior | None = None,
    steps: int = 1000,
    tolerance: float = 1e-4,
    restarts: int = 1,
    prune: bool = True,
    seed: int | None = None,
    progress_bar: bool = True,
) -> VBResult:
    r"""Fits a mixture by variational Bayes, in float64, and finds how many components it needs.

    The model says what to fit: covariances, floor, whether data have gaps, and the largest number
    of components. It is left as it is; the result has a mixture of its own.

    The prior of means and precisions is normal-Wishart, or normal-gamma, as `ConjugatePrior`
    describes it, with D + 1 + s degrees of freedom, such that V is the mean of the covariances.
    If it does not name V, the diagonal V of highest bound is found with the rest. With
    ``missing="marginalize"`` missing entries are integrated out.

    Args:
        model: A mixture without context, of diagonal, spherical, shared, tied or full covariances.
        data: Points, shape (N, D): a tensor, an array or nested lists.
        weights: Prior of the weights: a Dirichlet process, or a Dirichlet distribution.
        concentration: Of the process; of the distribution the sum over all K components. In the
            limit of many components both are the same. The smaller, the fewer components.
        prior: Of means and covariances; by default ``ConjugatePrior()``.
        steps: Largest number of steps.
        tolerance: Rise of the bound per point, in nats, that is expected of all further steps, to
            stop at. It is what the last two rises foretell, not the last one, which is small also
            where convergence is slow.
        restarts: Number of runs from different starts, of which the one of highest bound is kept.
        prune: Whether the mixture has no more components than hold points; else those without
            points have the prior's means.
        seed: Seed of starts; by default drawn from PyTorch's global generator.
        progress_bar: Whether to show a bar with the loss.

    Returns:
        The mixture, the bound, and the number of components.

    Raises:
        ValueError: If model, prior or data do not fit.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> data = torch.cat([torch.randn(500, 2) - 3, torch.randn(500, 2) + 3])
        >>> model = GaussianMixture(dim=2, num_components=10, covariance="full")
        >>> result = fit_vb(model, data, seed=0, progress_bar=False)
        >>> result.num_components, result.model.num_components
        (2, 2)
    """
    steps = check_positive_int("steps", steps)
    restarts = check_positive_int("restarts", restarts)
    tolerance = number(0.0)("tolerance", tolerance)
    if not number(0.0)("concentration", concentration) > 0:
        raise ValueError("Expected a positive concentration, got 0.")
    check_choice("weights", weights, ("dirichlet_process", "dirichlet"))
    prior = check_prior(prior) or ConjugatePrior()
    _check_model(model, prior)
    seed = chosen_seed(seed)
    with draws_from(*seeded(seed, model.loc.device)):
        x = gathered(data, None, like=model.loc, missing=model.missing == "marginalize")[0]
    warn_about_integers(model, x)
    weight_prior: WeightPrior = (
        DirichletProcess(concentration)
        if weights == "dirichlet_process"
        else FiniteDirichlet(concentration, model.num_components)
    )
    best: _Search | None = None
    bar = tqdm(total=steps * restarts, unit="step", disable=not progress_bar)
    with bar, torch.no_grad(), draws_from(*seeded(seed, x.device)):
        for _ in range(restarts):
            start = copy.deepcopy(model)
            start.initialize(x.to(model.loc))
            search = _Search(start.double(), x, prior, weight_prior, bar)
            search.train(steps, tolerance)
            if best is None or search.bound > best.bound:
                best = search
        assert best is not None
        return best.result(model, prune=prune)


class _State(NamedTuple):
    """Posteriors of all parameters."""

    components: ComponentPosterior
    weights: WeightPosterior


class _Pair(NamedTuple):
    """Two components that may be one."""

    gain: float
    """What their bound gains, their points being given."""
    a: int
    b: int
    loss: float
    """The entropy of q(z) that is lost."""


class _Search:
    """One run from one start."""

    def __init__(
        self,
        model: GaussianMixture,
        x: Tensor,
        prior: ConjugatePrior,
        weight_prior: WeightPrior,
        bar: tqdm,
    ) -> None:
        self.structure, self.units, self.bar = model.structure, model.units, bar
        x = self.units(x)
        log_scale = torch.where(x.isnan(), 0.0, self.units.scale.log())
        self.log_volume = float(log_scale.sum())
        self.centre = x.nanmean(0).nan_to_num(0.0)
        self.x = x - self.centre
        rows = Rows.of(self.x)
        covariance = prior.covariance(self.structure, rows, len(x), self.units.scale)
        if prior.scale is None and self.structure.full_moments:
            covariance = covariance.diagonal().diag()
        self.prior = ComponentPrior(self.structure, prior.strength, prior.shrinkage, covariance)
        self.adapts = prior.scale is None
        self.weight_prior = weight_prior
        self.expectation = Expectation(self.structure, rows)
        self.history, self.bound = History(), -math.inf
        raw = model._raw()
        law = self.structure.mixture(model.logits, model.loc - self.centre, raw)
        self.groups = Groups.of(self.expectation(law), self.structure)
        self.state = self._maximize(self.prior, self.groups)

    def train(self, steps: int, tolerance: float) -> None:
        """Takes steps until the bound rises no more, whatever is merged or left out."""
        start, rises, may_merge = time.perf_counter(), [math.inf], True
        for step in range(steps):
            law, bound, groups = self._expect(self.state)
            rises.append((bound - self.bound) / len(self.x))
            self.bound, self.groups = bound, groups
            self._record(start)
            converged = _expected_rise(*rises[-2:]) < tolerance
            if converged or (may_merge and step % MERGE_EVERY == MERGE_EVERY - 1):
                pairs = self._pairs(law, groups)
                merged = self._merged(pairs, groups)
                may_merge = merged is not None  # else not before it has converged
                if merged is not None:
                    groups, rises = merged, [math.inf]
                elif converged:
                    trial = self._with_fewer(pairs, groups)
                    if trial is None:
                        break
                    self.state, rises, may_merge = trial, [math.inf], True
                    continue
            self.state = self._maximize(self.state.components.prior, groups)
        self.history.outcome = "finished"

    def result(self, model: GaussianMixture, *, prune: bool) -> VBResult:
        """The mixture of posterior means, in the model's units and dtype."""
        groups, prior = self.groups, self.state.components.prior
        held = max(1, int((groups.weight >= FEWEST_POINTS).sum()))
        groups = groups.take(groups.weight.argsort(descending=True))
        if prune:
            groups = groups.take(torch.arange(held, device=self.x.device))
        else:
            groups = groups.padded(model.num_components, self.structure)
        components = prior.posterior(groups)
        weights = self.weight_prior.posterior(groups.weight).weight
        config = {**model.config(), "num_components": len(weights)}
        found = type(model).from_config(config).to(model.loc)
        raw = found.structure._fit(components.covariance, {})
        found.units.load_state_dict(self.units.state_dict())
        found._assign(weights.log(), components.mean + self.centre, raw)
        found.initialized.fill_(True)
        found.eval()
        bound = self.bound - self.log_volume
        return VBResult(found, bound, weights.to(model.loc), held, self.history)

    def _record(self, start: float) -> None:
        """Adds a step to the history and to the progress bar."""
        loss = (self.log_volume - self.bound) / len(self.x)
        self.history.losses.append(loss)
        self.history.learning_rates.append(1.0)
        self.history.seconds.append(time.perf_counter() - start)
        self.bar.update()
        self.bar.set_postfix(loss=f"{loss:.5g}", components=len(self.groups.weight), refresh=False)

    def _expect(self, state: _State) -> tuple[FiniteMixture, float, Groups]:
        """The law of the E-step, the bound, and the points by component."""
        law = state.components.law(state.weights.log_weight)
        statistics = self.expectation(law)
        log_total = len(self.x) * law._logits.logsumexp(0)  # which the law leaves out
        divergence = state.components.divergence() + state.weights.divergence
        bound = statistics.log_prob + log_total - divergence + state.components.prior.penalty()
        return law, float(bound), Groups.of(statistics, self.structure)

    def _maximize(self, prior: ComponentPrior, groups: Groups) -> _State:
        """The posteriors given points by component."""
        order = self.weight_prior.order(groups.weight)
        groups = groups if order is None else groups.take(order)
        components = prior.posterior(groups)
        if self.adapts:
            components = components.adapted()
        return _State(components, self.weight_prior.posterior(groups.weight))

    def _log_evidence(self, groups: Groups) -> float:
        """The bound given points by component, less the entropy of q(z)."""
        order = self.weight_prior.order(groups.weight)
        weight = groups.weight if order is None else groups.weight[order]
        of_points = self.state.components.prior.log_evidence(groups)
        return float(of_points + self.weight_prior.log_evidence(weight))

    def _pairs(self, law: FiniteMixture, groups: Groups) -> list[_Pair]:
        """Pairs of components that may be one, the best first.

        With z given, so that the points of a pair are all its own, the bound changes by the
        change of the evidence less what q(z) loses of its entropy. (With gaps by more: the entropy
        of missing entries under two components is at least the mean of both.)
        """
        if len(groups.weight) == 1:
            return []
        pairs = _neighbours(law)
        losses = self._lost_entropy(law, pairs).tolist()
        present = self._log_evidence(groups)
        found = []
        for (a, b), loss in zip(pairs.mT.tolist(), losses, strict=True):
            evidence = self._log_evidence(groups.merged(a, b, self.structure))
            found.append(_Pair(evidence - present - loss, a, b, loss))
        return sorted(found, reverse=True)

    def _merged(self, pairs: list[_Pair], groups: Groups) -> Groups | None:
        """The groups with pairs merged where that raises the bound, or None if nowhere."""
        changed: set[int] = set()
        present = self._log_evidence(groups)
        for gain, a, b, loss in pairs:
            if gain <= 0:
                break
            if changed & {a, b}:
                continue
            merged = groups.merged(a, b, self.structure)
            evidence = self._log_evidence(merged)
            if evidence - present > loss:
                groups, present = merged, evidence
                changed |= {a, b}
        return groups.take((groups.weight > 0).nonzero().flatten()) if changed else None

    def _lost_entropy(self, law: FiniteMixture, pairs: Tensor) -> Tensor:
        """How much entropy q(z) loses if pairs (2, P) of components are one: shape (P,)."""
        loss = self.x.new_zeros(pairs.shape[1])
        for x in self.x.split(max(1, CACHED_NUMBERS // pairs.shape[1])):
            first, second = joint_log_prob(law, x).softmax(-1)[:, pairs].unbind(1)
            both = first + second
            change = both.xlogy(both) - first.xlogy(first) - second.xlogy(second)
            loss += change.sum(0)
        return loss

    def _with_fewer(self, pairs: list[_Pair], groups: Groups) -> _State | None:
        """The posteriors with one component less, or None if that does not raise the bound.

        The best pairs are merged, and the lightest components left out, on trial: for some steps,
        as long as further ones are expected to bring the bound above what it is.
        """
        trials = [groups.merged(pair.a, pair.b, self.structure) for pair in pairs[:TRIALS]]
        order = groups.weight.argsort()
        if len(order) > 1:
            trials += [groups.take(order[order != k].sort().values) for k in order[:TRIALS]]
        best, best_state = self.bound, None
        for trial in trials:
            trial = trial.take((trial.weight > 0).nonzero().flatten())
            state = self._maximize(self.state.components.prior, trial)
            bounds: list[float] = []
            for _ in range(TRIAL_STEPS):
                _, bound, trial = self._expect(state)
                bounds.append(bound)
                if bound > best:
                    best, best_state = bound, state
                if len(bounds) > 2:
                    before, last = bounds[-2] - bounds[-3], bounds[-1] - bounds[-2]
                    if bound + _expected_rise(before, last) < best:
                        break
                state = self._maximize(state.components.prior, trial)
        return best_state


def _neighbours(law: FiniteMixture) -> Tensor:
    """Pairs of components of which one's mean is likely under the other: shape (2, P)."""
    scores = law._joint_log_prob(law.loc) - law.logits  # (points, components)
    near = scores - scores.diagonal().unsqueeze(-1)
    near = torch.maximum(near, near.mT).fill_diagonal_(-math.inf)
    k = len(near)
    other = near.topk(min(NEIGHBOURS, k - 1), dim=-1).indices
    own = torch.arange(k, device=other.device).unsqueeze(-1).expand_as(other)
    pairs = torch.stack([own.flatten(), other.flatten()]).sort(0).values
    return pairs.unique(dim=1)


def _expected_rise(before: float, last: float) -> float:
    """What all further steps are expected to add, if rises fall by a constant factor."""
    if last <= 0:
        return last
    if before <= last:
        return math.inf
    factor = last / before
    return last * max(1.0, factor / (1 - factor))


def _check_model(model: GaussianMixture, prior: ConjugatePrior) -> None:
    """Checks that a mixture and a prior can be fitted."""
    if not isinstance(model, GaussianMixture) or model.network is not None:
        raise ValueError(
            "Expected a GaussianMixture without context. Other models are trained with fit."
        )
    if model.student_tails is not None:
        raise ValueError("Expected normal tails, got tails='student', which fit_em takes.")
    if type(model.structure) not in {STRUCTURES[name] for name in CONJUGATE}:
        raise ValueError(
            f"Expected a model of covariance {', '.join(CONJUGATE)}, got {model.covariance!r}, "
            f"which has no conjugate prior: fit_em takes one as points that are added to the data."
        )
    if prior.shrinkage == 0:
        raise ValueError(
            "Expected a positive shrinkage, got 0: without it means have no proper prior."
        )
    if prior.concentration != 1:
        raise ValueError(
            f"Expected the concentration of weights as an argument of fit_vb, got a prior with "
            f"concentration={prior.concentration:g}."
        )
