"""Guides that are mixtures, trained by natural gradients, with components added and dropped."""

__all__ = ["Plan", "can_adapt", "fit_mixture"]

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyro
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import ComposeTransform
from tqdm import tqdm

from ..flows.chain import clear_caches
from ..mixtures import MixtureOfMultivariateNormals
from ..mixtures.finite import FiniteMixture
from ..numerics.resampling import systematic
from .annealing import Density, anneal
from .auto_mixture import AutoMixture
from .births import add_components, drop_idle, plausible
from .joint import UnconstrainedJoint, subsampled
from .natural import Annealing, climb
from .result import is_reliable, smoothed

# Covariances that natural gradients keep.
STRUCTURES = ("full", "diagonal")
# Steps of a round, and trust regions of the first round and of those after.
ROUND = 50
FIRST, LATER = Annealing(1.0, 0.003), Annealing(0.3, 0.003)
# Draws of a component in a step: so many, and so many more for each dimension.
EACH, EACH_OF_DIMENSION = 5, 1
# Draws that are moved to the posterior between rounds, and draws by which a round is judged.
MOVED, JUDGED = 500, 2000
# Draws of the prior that the mixture misses by more nats than this, beyond the evidence, are news.
NEWS = 5.0
# Draws of a search from the prior, and searches before training ends.
SCOUTS, LOOKS = 250, 2
# One of so many components may be exchanged for a new one where there are as many as may be.
EXCHANGED = 8
# Nats between evidence and bound, or from one round to the next, at which training ends.
CLOSE = 0.01


@dataclass(frozen=True)
class Plan:
    """How a mixture is trained.

    Args:
        steps: Steps in all.
        num_particles: Draws of a step; None for some of each component.
        max_components: Most components.
        vectorize: Whether the model is run with all draws at once.
        progress_bar: Whether to show a bar with the loss.
    """

    steps: int
    num_particles: int | None
    max_components: int
    vectorize: bool
    progress_bar: bool


def can_adapt(
    model: Callable[..., Any], guide: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> str:
    """Why natural gradients cannot train the mixture of a guide; empty if they can.

    Args:
        model: The model.
        guide: The guide, which has been run.
        args: Arguments of the model.
        kwargs: Keyword arguments of the model.
    """
    if not isinstance(guide, AutoMixture):
        return f"it is a {type(guide).__name__}, not an AutoMixture"
    if guide.covariance not in STRUCTURES:
        return f"its covariance is {guide.covariance!r}, not one of {STRUCTURES}"
    with poutine.block(), torch.no_grad():
        trace = poutine.trace(model).get_trace(*args, **kwargs)
    if any(site["type"] == "param" for site in trace.nodes.values()):
        return "the model has parameters of its own"
    if subsampled(trace):
        return "the model draws some rows of a plate alone"
    return ""


def fit_mixture(
    model: Callable[..., Any],
    guide: AutoMixture,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    plan: Plan,
) -> tuple[list[float], bool]:
    """Trains the mixture of a guide.

    In rounds: natural-gradient steps, then draws are moved to the posterior, both from the guide
    and from the prior, and components are added where the guide is too thin for them. It ends
    when the bound is as high as the evidence, or rises no more, and the tail of the weights is
    light; or after the last step.

    Args:
        model: The model.
        guide: The guide, which has been run.
        args: Arguments of the model.
        kwargs: Keyword arguments of the model.
        plan: How to train.

    Returns:
        The loss of each step, and whether the mixture misses draws of the posterior that were
        found from the prior, as there were no components or steps left.
    """
    joint = UnconstrainedJoint(model, guide, args, kwargs, vectorize=plan.vectorize)
    target = _pulled_back(joint, guide)
    scout = _Scout(target, guide.prior_mixture(args, kwargs) if guide.starts_from_prior else None)
    losses: list[float] = []
    bar = tqdm(total=plan.steps, unit="step", disable=not plan.progress_bar)

    def after(bound: float) -> None:
        losses.append(-bound)
        bar.update()
        bar.set_postfix_str(f"loss {-bound:.4g}, {law.num_components} components")

    law, bound = guide.correlated_law, -math.inf
    with bar, poutine.block(), pyro.validation_enabled(False):
        while True:
            climbed = climb(
                target,
                law,
                steps=ROUND,
                most=plan.steps - len(losses),
                each=_each(plan.num_particles, law),
                diagonal=guide.covariance == "diagonal",
                annealing=LATER if losses else FIRST,
                after=after,
            )
            law = drop_idle(climbed, plan.max_components)
            before, verdict = bound, _judged(target, law)
            bound = verdict.bound
            settled = verdict.gap < CLOSE or abs(bound - before) < CLOSE
            if plan.steps - len(losses) < ROUND:
                missed = scout.look(law, verdict, again=True) is not None
                break
            done = settled and verdict.covered
            news = scout.look(law, verdict, again=done)
            if done and news is None:
                missed = False
                break
            draws = [_moved(target, law), verdict.draws]
            if news is not None:
                draws.append(news)
            # Where there is no room, new components take the places of the lightest in the end.
            room = min(plan.max_components - law.num_components, law.num_components)
            most = max(room, math.ceil(law.num_components / EXCHANGED))
            law = add_components(law, *plausible(torch.cat(draws), target, verdict.highest), most)
    guide.adopt(law)
    return losses, missed


def _pulled_back(joint: UnconstrainedJoint, guide: AutoMixture) -> Density:
    """Log-densities (n,) of points (n, D) of the mixture, before the guide's transforms."""
    like = guide.mixture.loc
    transforms = list(getattr(guide.posterior, "transforms", []))
    chain = ComposeTransform(transforms)

    def target(z: Tensor) -> Tensor:
        x = z.to(like)
        if not transforms:
            return joint(x).to(z)
        clear_caches(transforms)
        y = chain(x)
        slope = chain.log_abs_det_jacobian(x, y)
        return (joint(y) + slope.reshape(len(z), -1).sum(-1)).to(z)

    return target


def _each(num_particles: int | None, law: MixtureOfMultivariateNormals) -> int:
    """Draws of each component in a step."""
    if num_particles is None:
        return EACH + EACH_OF_DIMENSION * law.loc.shape[-1]
    return max(1, math.ceil(num_particles / law.num_components))


class _Verdict(NamedTuple):
    """What draws of a mixture say of it."""

    bound: float
    gap: float
    """How far the bound is below the evidence."""
    highest: float
    """The highest log-density of the target."""
    covered: bool
    """Whether the tail of the weights is light."""
    draws: Tensor
    """Draws by their weights, (n, D): where the mixture is too thin, one of them many times."""


@torch.no_grad()
def _judged(target: Density, law: MixtureOfMultivariateNormals) -> _Verdict:
    """What draws of a mixture say of it."""
    z = law.sample((JUDGED,))
    log_density = target(z)
    ratio = log_density - law.log_prob(z)
    ratio = torch.where(ratio.isfinite(), ratio, -torch.inf)
    bound = float(ratio.mean())
    if ratio.max() == -torch.inf:
        return _Verdict(bound, math.inf, -math.inf, False, z[:MOVED])
    gap = float(ratio.logsumexp(0)) - math.log(JUDGED) - bound
    log_weight, k = smoothed(ratio)
    chosen = systematic(ratio)[:: JUDGED // MOVED]
    highest = float(log_density[log_density.isfinite()].max())
    return _Verdict(bound, gap, highest, is_reliable(log_weight, k), z[chosen])


@torch.no_grad()
def _moved(target: Density, law: FiniteMixture, count: int = MOVED) -> Tensor:
    """Draws of a law that are moved to the target."""
    return anneal(target, law.log_prob, law.sample((count,)))


class _Scout:
    """Looks for modes that a mixture misses, by draws of the prior that are moved to the target.

    Args:
        target: Log-densities of points.
        prior: The law that draws start from; None for no search.
    """

    def __init__(self, target: Density, prior: FiniteMixture | None) -> None:
        self.target, self.prior = target, prior
        self.quiet = False

    @torch.no_grad()
    def look(
        self, law: MixtureOfMultivariateNormals, verdict: _Verdict, *, again: bool
    ) -> Tensor | None:
        """Draws of the target, if the mixture misses any of them; else None.

        Args:
            law: The mixture.
            verdict: What its draws say of it.
            again: Whether to look even if nothing was found before, and more than once.
        """
        if self.prior is None or (self.quiet and not again):
            return None
        for _ in range(LOOKS if again else 1):
            draws = _moved(self.target, self.prior, SCOUTS).to(law.loc)
            z, log_density = plausible(draws, self.target, verdict.highest)
            if (log_density - law.log_prob(z) > verdict.bound + NEWS).any():
                self.quiet = False
                return draws
        self.quiet = True
        return None
