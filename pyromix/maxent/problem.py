"""Problems of maximum entropy: what users state, and its checks."""

__all__ = ["InfeasibleError", "MaximumEntropy"]

import copy
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from ..core.checks import Check, check_arguments, check_count, check_positive_int, number
from ..core.conversions import TensorLike, as_tensor
from ..core.random import draws_from, seeded
from ..training.fit import OptimizerFactory, adam
from .draws import Gradient, make_sampler
from .expectations import Expectations, Statistics
from .lagrangian import AugmentedLagrangian
from .result import InfeasibleError, MaximumEntropyResult
from .search import Problem, Search


class MaximumEntropy:
    r"""A problem of maximum entropy: the distribution of largest entropy with given expectations.

    .. math:: \max_q H(q) \quad \text{subject to} \quad E_q[T(x)] = t, \quad E_q[S(x)] \le b

    over a family of distributions, such as flows (Loaiza-Ganem, Gao and Cunningham 2017). The
    optimum over all distributions is :math:`q(x) \propto e^{-\lambda^\top T(x)}` on the support.
    A flow on a mixture can have many modes, and so can folds of a normal. Splines on a normal may
    end with one mode that meets every constraint at a lower entropy.

    **Which laws.** Any distribution that is a module with parameters, draws and an exact, finite
    log-density, without batch dimensions. `gradient` says how its draws are differentiated; the
    default is the first of these that the law has:

    - ``"stratified"``: weighted draws from every component, in which nothing discrete is left to
      chance: mixtures, `DRMM` with at most `max_exact` codes, and a `Flow` on one of these;
    - ``"pathwise"``: `rsample`: other flows, `FRMDN` without folds;
    - ``"branch"``: gradients given what is discrete in a draw, and the score function of that,
      with the mean over the other draws as its baseline (`rsample_with_score`): `RAD` and other
      flows with folds, `DRMM` with more codes, `DCGMM`, `FRMDN`;
    - ``"score"``: the score function of all of the law, with the same baseline. It takes laws on
      discrete supports, and statistics without gradients, such as indicators. It is last because
      it has the most noise.

    Args:
        distribution: What to optimise, in place: such as `pyromix.maxent.spline_flow` makes, any
            `Flow`, or a model of this library. Its support is the problem's: to bound it, put a
            transform such as ``biject_to(constraints.simplex)`` last in a flow. The entropy is
            that of its `log_prob`: where this is a lower bound, as with more than `max_exact`
            codes, or a `DCGMM` that is not `exact`, the entropy is too large.
        statistics: Function T from draws (n, \*event_shape) to (n, m) or (n,), differentiable by
            PyTorch unless ``gradient="score"``.
        targets: What the expectations of T must equal, t: shape (m,) or a number.
        inequalities: Function S from draws to (n, k) or (n,), as differentiable as T.
        bounds: What the expectations of S must not exceed, b: shape (k,) or a number.
        names: Of all constraints, equalities first, for the result.
        gradient: How draws are differentiated; see above. By default ``"auto"``.

    Raises:
        ValueError: If the distribution or the constraints do not fit.

    Example:
        >>> import math
        >>> from pyromix import GaussianMixture
        >>> _ = torch.manual_seed(0)
        >>> problem = MaximumEntropy(
        ...     GaussianMixture(1, 1),
        ...     lambda x: torch.cat([x, x.square()], -1),
        ...     targets=[1.0, 5.0],
        ... )
        >>> result = problem.solve(steps=60, lr=0.04, seed=0, progress_bar=False)
        >>> abs(result.entropy - 0.5 * math.log(2 * math.pi * math.e * 4.0)) < 0.02
        True
    """

    @torch.inference_mode(False)
    def __init__(
        self,
        distribution: Any,
        statistics: Statistics | None = None,
        targets: TensorLike | None = None,
        *,
        inequalities: Statistics | None = None,
        bounds: TensorLike | None = None,
        names: Sequence[str] | None = None,
        gradient: Gradient = "auto",
    ) -> None:
        _check_distribution(distribution)
        self.distribution = distribution
        self._stated = (statistics, inequalities, bounds, names, gradient)
        like = next(distribution.parameters())
        self.expectations = Expectations(statistics, targets, inequalities, bounds, names, like)
        if like.is_inference():
            raise ValueError(
                f"Expected a {type(distribution).__name__} whose parameters can be trained, got "
                f"one that was built under torch.inference_mode(). Build it outside."
            )
        self.sampler = make_sampler(distribution, gradient)
        with draws_from(*seeded(0, like.device)), torch.enable_grad():
            (draws,) = self.sampler(16)
            if not draws.x.requires_grad:  # draws are not moved, only their weights change
                self.expectations.values(draws.x)
            elif _without_gradients(self.expectations, draws.x):  # of a narrow step few have one
                (draws,) = self.sampler(4096)
                _check_gradients(self.expectations, draws.x)

    @torch.inference_mode(False)
    def solve(
        self,
        *,
        rounds: int = 40,
        steps: int = 150,
        batch_size: int = 512,
        lr: float = 3e-3,
        optimizer: OptimizerFactory = adam,
        penalty: float = 2.0,
        growth: float = 2.0,
        max_penalty: float = 8.0,
        reduction: float = 0.25,
        start: Distribution | Literal["auto"] | None = "auto",
        start_steps: int = 200,
        tolerance: float = 0.01,
        margin: float = 0.005,
        seed: int | None = None,
        progress_bar: bool = True,
    ) -> MaximumEntropyResult:
        r"""Maximises the entropy, in rounds of an augmented Lagrangian.

        A round minimises :math:`-H + \lambda^\top R + \frac{c}{2} R^\top M R` with
        :math:`R = E[T] - t` and M the inverse covariance of the statistics, by steps whose
        learning rate falls. Far from the targets and bounds, t stands for interim levels, which
        move towards them by half a standard deviation a round: a law that is changed faster may
        lose its spread, and recovers slowly. The mixture or the folds below a flow are moved alone
        for nine tenths of the distance, and weights of mixtures are held until the targets are
        reached, or the search stalls: both keep modes from being lost. The squared violation comes
        from two halves of a batch, so that its estimate is unbiased. Then new draws test the
        constraints, update the multipliers, and raise c if the violation has not been reduced to
        the given share. The search ends when the constraints hold and the entropy has settled; the
        round of highest entropy among those in which they hold is kept, or that of least violation
        if there is none.

        Args:
            rounds: Largest number of rounds. Schedules of the distribution, such as temperatures,
                take the first half of them.
            steps: Optimisation steps in a round.
            batch_size: Draws in a step.
            lr: Learning rate at the start of a round; it falls to 5% of that. Once the targets are
                near, later rounds start lower.
            optimizer: Makes the optimizer: called as ``optimizer(params, lr=lr)``.
            penalty: c in the first round. A round divides violations by 1 + c if its steps
                suffice for the minimum.
            growth: Factor by which c grows.
            max_penalty: What c may grow to.
            reduction: Share of the violation that a round must reach; otherwise c grows.
            start: Law to start near: ``"auto"`` for a normal, mapped onto the support, and moved
                and scaled to targets that lie far from a standard one, unless
                the distribution has been initialised or trained before; None to start from the
                parameters as they are.
            start_steps: Steps towards that law.
            tolerance: Change of the entropy, in nats, below which it has settled.
            margin: Violation, in standard deviations of its statistic, up to which a constraint
                holds: tests reject it when the mean of new draws is farther from the level than
                this margin and chance explain.
            seed: Seed of everything random, which leaves PyTorch's global generator as it was; by
                default it is drawn from that.
            progress_bar: Whether to show a bar.

        Returns:
            Entropy, violations, multipliers and the course of the search.

        Raises:
            InfeasibleError: If the violation stays however large the penalty is: no distribution
                of the family, and maybe none at all, meets the constraints. If a longer round
                brings it down nevertheless, the error says that the steps were too few.
            NonFiniteLossError: If the Lagrangian becomes NaN or infinite.
            ValueError: For an argument that is out of range, or statistics that are not finite.

        Warns:
            UserWarning: If the entropy still rises steadily at the end: perhaps the constraints
                do not bound it, and there is no maximum.
        """
        check_arguments(SETTINGS, locals())
        if not penalty <= max_penalty:
            raise ValueError(
                f"Expected a max_penalty of at least penalty, got {max_penalty} and {penalty}."
            )
        if seed is None:
            seed = int(torch.randint(2**62, ()))
        device = self.expectations.levels.device
        with draws_from(*seeded(seed, device)), torch.enable_grad():
            lagrangian = AugmentedLagrangian(
                self.expectations,
                penalty=penalty,
                growth=growth,
                max_penalty=max_penalty,
                reduction=reduction,
            )
            search = Search(
                Problem(self.distribution, self.expectations, self.sampler),
                lagrangian,
                rounds=rounds,
                steps=steps,
                batch_size=batch_size,
                tolerance=tolerance,
                margin=margin,
            )
            try:
                search.begin(start, start_steps)
                search.run(optimizer, lr, progress_bar)
            finally:
                search.release()
            return search.conclude()

    def solve_many(
        self, targets: TensorLike, *, seed: int | None = None, **options: Any
    ) -> list[MaximumEntropyResult]:
        """Solves the same problem for many targets, each from the nearest one that is solved.

        Between neighbours the law changes little, so that most searches take a few rounds. The
        distribution of the problem is where the first one starts, and is left as it was.

        Args:
            targets: What the expectations of T must equal, (B, m), or (B,) if there is one.
                Bounds are those of the problem.
            seed: Seed of everything random; by default drawn from PyTorch's global generator.
            options: Others of `solve`; `start` and `start_steps` are those of the first search.

        Returns:
            A result for each target, in their order, each with a distribution of its own. One
            that nothing meets has the outcome ``"infeasible"``.

        Raises:
            ValueError: If the targets do not fit, or for an argument that is out of range.

        Example:
            >>> from pyromix import GaussianMixture
            >>> problem = MaximumEntropy(GaussianMixture(1, 1), lambda x: x.square(), 1.0)
            >>> options = {"rounds": 4, "steps": 30, "lr": 0.03, "progress_bar": False}
            >>> results = problem.solve_many([1.0, 2.0], seed=0, **options)
            >>> [result.distribution.variance.detach().round().tolist() for result in results]
            [[1.0], [2.0]]
        """
        levels = as_tensor("targets", targets, like=self.expectations.levels)
        count = len(self.expectations.targets)
        levels = levels.unsqueeze(-1) if levels.dim() == 1 and count == 1 else levels
        if not count or levels.dim() != 2 or levels.shape[-1] != count:
            raise ValueError(
                f"Expected targets of shape (B, {count}), as many as the problem has, got "
                f"{tuple(levels.shape)}."
            )
        statistics, inequalities, bounds, names, gradient = self._stated
        seed = int(torch.randint(2**62, ())) if seed is None else seed
        results: dict[int, MaximumEntropyResult] = {}
        distance = _distances(levels)
        while len(results) < len(levels):
            solved = [i for i, result in results.items() if result.outcome != "infeasible"]
            nearest, i = _next(
                distance, solved, [i for i in range(len(levels)) if i not in results]
            )
            start = self.distribution if nearest is None else results[nearest].distribution
            problem = MaximumEntropy(
                copy.deepcopy(start),
                statistics,
                levels[i],
                inequalities=inequalities,
                bounds=bounds,
                names=names,
                gradient=gradient,
            )
            own = options if nearest is None else options | {"start": None, "start_steps": 0}
            try:
                results[i] = problem.solve(seed=seed + i, **own)
            except InfeasibleError as error:
                results[i] = error.result
        return [results[i] for i in range(len(levels))]


def _distances(levels: Tensor) -> Tensor:
    """Distances between levels (B, m), in their own standard deviations: (B, B)."""
    spread = levels.std(0, correction=0)
    scaled = levels / torch.where(spread > 0, spread, 1.0)
    return torch.cdist(scaled, scaled)


def _next(distance: Tensor, solved: list[int], left: list[int]) -> tuple[int | None, int]:
    """What is solved next of what is left, and what it is nearest to; first the most central."""
    if not solved:
        return None, left[int(distance[left].sum(-1).argmin())]
    near, which = distance[left][:, solved].min(-1)
    i = int(near.argmin())
    return solved[int(which[i])], left[i]


def _positive(name: str, value: Any) -> float:
    """Checks that a setting is a positive, finite number."""
    if not number()(name, value) > 0:
        raise ValueError(f"Expected {name} to be positive, got {value}.")
    return value


def _share(name: str, value: Any) -> float:
    """Checks that a setting is a share of more than zero."""
    if not _positive(name, value) <= 1:
        raise ValueError(f"Expected {name} to be at most 1, got {value}.")
    return value


# How `MaximumEntropy.solve` checks its settings.
SETTINGS: Mapping[str, Check] = {
    "rounds": check_positive_int,
    "steps": check_positive_int,
    "batch_size": partial(check_count, least=2),  # it is split into halves
    "lr": _positive,
    "penalty": _positive,
    "growth": number(1),
    "reduction": _share,
    "start_steps": check_count,
    "tolerance": _positive,
    "margin": number(0),
}


def _check_gradients(expectations: Expectations, x: Tensor) -> None:
    """Raises an error if a statistic has no gradient in draws (n, *event_shape).

    Weights of draws may have one, but would not tell which way components should move.

    Raises:
        ValueError: As said, or if the statistics do not fit.
    """
    without = _without_gradients(expectations, x)
    if without:
        raise ValueError(
            f"Expected statistics with a gradient in the draws, got some without, such as "
            f"indicators and counts have: {', '.join(map(repr, without))}. Use smooth ones: "
            f"pyromix.maxent.below or between for indicators. Or pass gradient='score', which "
            f"needs none."
        )


def _without_gradients(expectations: Expectations, x: Tensor) -> list[str]:
    """Names of the statistics without a gradient in draws (n, *event_shape)."""
    x = x.detach().requires_grad_()
    values = expectations.values(x)
    without = []
    for name, column in zip(expectations.names, values.unbind(-1), strict=True):
        slope = None
        if column.requires_grad:
            (slope,) = torch.autograd.grad(column.sum(), x, retain_graph=True, allow_unused=True)
        is_flat = slope is None or not bool(slope.any())
        if is_flat and bool((column != column[0]).any()):  # a constant has nothing to follow
            without.append(name)
    return without


def _check_distribution(distribution: Any) -> None:
    """Raises an error unless it is a distribution with parameters, and without a batch."""
    parameters: Iterable[Tensor] = ()
    if isinstance(distribution, nn.Module):
        parameters = distribution.parameters()
    if not isinstance(distribution, Distribution) or not any(p.requires_grad for p in parameters):
        raise ValueError(
            f"Expected a distribution with parameters of its own, such as a Flow or a "
            f"GaussianMixture, got {type(distribution).__name__}. Wrap a plain one whose tensors "
            f"are nn.Parameter: Flow(distribution, [])."
        )
    if distribution.batch_shape:
        raise ValueError(
            f"Expected a distribution without batch dimensions, got batch shape "
            f"{tuple(distribution.batch_shape)}. Make them part of the event, with to_event."
        )
