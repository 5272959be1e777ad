"""Draws of a distribution with gradients and log-densities, by the methods that it has."""

__all__ = [
    "Draws",
    "Gradient",
    "Sampler",
    "branch_sampler",
    "make_sampler",
    "sample_and_score",
    "weighted_sampler",
]

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Size, Tensor

from ..core.checks import check_choice
from ..core.random import draws_from

Gradient = Literal["auto", "stratified", "pathwise", "branch", "score"]


class Draws(NamedTuple):
    """Draws x of a law, such that its expectations are sums weighted by `weight`.

    So are gradients of expectations: what they have beside that of x is a gradient of the weights.
    """

    x: Tensor
    """Shape (n, *event_shape)."""
    weight: Tensor
    """Shape (n,)."""
    log_prob: Tensor
    """Shape (n,). It has no graph where x has none: the mean of its gradient is zero."""

    def mean(self, values: Tensor) -> Tensor:
        """Expectation of values (n, ...)."""
        return torch.tensordot(self.weight, values, 1)


class Sampler(Protocol):
    """Draws independent sets in one pass."""

    def __call__(self, count: int, num_sets: int = 1) -> list[Draws]:
        """Returns so many sets of so many draws each."""


def make_sampler(distribution: Any, gradient: Gradient) -> Sampler:
    """Returns the way to draw from a distribution with unbiased gradients.

    Args:
        distribution: The distribution.
        gradient: ``"stratified"`` for weighted draws from every component, ``"pathwise"`` for
            `rsample`, ``"branch"`` for draws with gradients given discrete latents and the score
            of these (`rsample_with_score`), ``"score"`` for the score function of all of the
            law, or ``"auto"`` for the first of these that there is.

    Raises:
        ValueError: If the distribution has no such draws.
    """
    check_choice("gradient", gradient, ("auto", *WAYS))
    if gradient == "auto":
        found = (way.make(distribution) for way in WAYS.values())
        return next(sampler for sampler in found if sampler is not None)
    way = WAYS[gradient]
    sampler = way.make(distribution)
    if sampler is None:
        raise ValueError(
            f"Expected {way.takes} for gradient={gradient!r}, got {type(distribution).__name__}. "
            f"Take 'auto', or 'score', which every distribution with a log-density has."
        )
    return sampler


def weighted_sampler(distribution: Any) -> Sampler | None:
    """The way to draw weighted draws from every component, or None if there is none."""

    def flow(count: int, num_sets: int = 1) -> list[Draws]:
        x, log_weight, log_prob = distribution.rsample_weighted_and_log_prob(count, num_sets)
        return _split(count, x, log_weight.exp(), log_prob)

    def mixture(count: int, num_sets: int = 1) -> list[Draws]:
        sets = [distribution.rsample_weighted(count) for _ in range(num_sets)]
        x, log_weight = (torch.cat(part) for part in zip(*sets, strict=True))
        return _split(count, x, log_weight.exp(), distribution.log_prob(x))

    if hasattr(distribution, "rsample_weighted"):
        return _if_available(mixture)
    if hasattr(distribution, "rsample_weighted_and_log_prob"):
        return _if_available(flow)
    return None


def _pathwise_sampler(distribution: Any) -> Sampler | None:
    """The way to draw by `rsample`, or None."""

    def pathwise(count: int, num_sets: int = 1) -> list[Draws]:
        size = Size((num_sets * count,))
        if hasattr(distribution, "rsample_and_log_prob"):
            x, log_prob = distribution.rsample_and_log_prob(size)
        else:
            x = distribution.rsample(size)
            log_prob = distribution.log_prob(x)
        return _split(count, x, torch.full_like(log_prob, 1 / count), log_prob)

    return pathwise if distribution.has_rsample else None


def branch_sampler(distribution: Any) -> Sampler | None:
    """The way to draw with gradients given discrete latents, and the score of these, or None."""

    def branch(count: int, num_sets: int = 1) -> list[Draws]:
        size = Size((num_sets * count,))
        if not torch.is_grad_enabled():
            return _plain(distribution, count, size)
        if hasattr(distribution, "rsample_with_score_and_log_prob"):
            x, score, log_prob = distribution.rsample_with_score_and_log_prob(size)
        else:
            x, score = distribution.rsample_with_score(size)
            log_prob = distribution.log_prob(x)
        return _split(count, x, _weights(score, count), log_prob)

    return _if_available(branch) if hasattr(distribution, "rsample_with_score") else None


def _score_sampler(distribution: Any) -> Sampler:
    """The way to draw with the gradients of the score function, which is always there."""

    def score(count: int, num_sets: int = 1) -> list[Draws]:
        size = Size((num_sets * count,))
        if not torch.is_grad_enabled():
            return _plain(distribution, count, size)
        x = distribution.sample(size)
        log_prob = distribution.log_prob(x)
        return _split(count, x, _weights(log_prob, count), log_prob.detach())

    return score


class _Way(NamedTuple):
    """A way to draw with gradients."""

    make: Callable[[Any], Sampler | None]
    """From a distribution to the way to draw, or None if it has not this one."""
    takes: str
    """Which distributions have it."""


# In the order in which they are tried: the first has the least variance where there are modes, as
# no choice of a component is left to chance; of the others, the less of the gradient is that of a
# score function, the less noise it has.
WAYS: dict[str, _Way] = {
    "stratified": _Way(weighted_sampler, "a mixture, or a Flow on one,"),
    "pathwise": _Way(_pathwise_sampler, "a distribution with has_rsample=True"),
    "branch": _Way(branch_sampler, "a distribution with rsample_with_score, such as RAD,"),
    "score": _Way(_score_sampler, "a distribution"),
}


def _if_available(sampler: Sampler) -> Sampler | None:
    """A way to draw, or None if the distribution says that it is not available."""
    try:  # only what is drawn from can tell
        with draws_from(torch.Generator()):
            sampler(1)
    except NotImplementedError:
        return None
    return sampler


def _weights(score: Tensor, count: int) -> Tensor:
    r"""Weights 1/n of draws, whose gradients are those of scores with leave-one-out baselines.

    .. math:: \nabla \sum_i w_i f_i
              = \frac{1}{n} \sum_i \Big(f_i - \frac{1}{n - 1} \sum_{j \ne i} f_j\Big) \nabla s_i

    for all f. The mean of the other draws does not depend on draw i, so that it changes no
    expectation.

    Args:
        score: Shape (sets n,), one set after the other.
        count: Number n of draws in a set.
    """
    change = (score - score.detach()).reshape(-1, count)
    if count > 1:
        change = (change - change.mean(-1, keepdim=True)) * (count / (count - 1))
    return ((1 + change) / count).flatten()


def _plain(distribution: Any, count: int, size: Size) -> list[Draws]:
    """Sets of so many draws without gradients, in the fastest way."""
    x, log_prob = _draw_and_score(distribution, size)
    return _split(count, x, torch.full_like(log_prob, 1 / count), log_prob)


def _draw_and_score(distribution: Any, size: Size) -> tuple[Tensor, Tensor]:
    """Draws without gradients, and their log-densities."""
    if hasattr(distribution, "rsample_and_log_prob"):
        x, log_prob = distribution.rsample_and_log_prob(size)
        return x, log_prob
    x = distribution.sample(size)
    return x, distribution.log_prob(x)


def _split(count: int, x: Tensor, weight: Tensor, log_prob: Tensor) -> list[Draws]:
    """Splits joined draws into sets of so many."""
    parts = (part.split(count) for part in (x, weight, log_prob))
    return [Draws(*part) for part in zip(*parts, strict=True)]


@torch.no_grad()
def sample_and_score(distribution: Any, count: int) -> tuple[Tensor, Tensor]:
    """Returns independent draws and their log-densities, without a graph."""
    parts = []
    for size in [10_000] * (count // 10_000) + [count % 10_000]:
        if size:
            parts.append(_draw_and_score(distribution, Size((size,))))
    x, log_prob = (torch.cat(part) for part in zip(*parts, strict=True))
    return x, log_prob
