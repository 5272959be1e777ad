"""Draws of a distribution with gradients and log-densities, by the methods that it has."""

__all__ = ["Draws", "Gradient", "Sampler", "make_sampler", "sample_and_score", "weighted_sampler"]

from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Size, Tensor

from ..core.checks import check_choice
from ..core.random import draws_from

Gradient = Literal["auto", "pathwise", "stratified"]


class Draws(NamedTuple):
    """Draws x of a law, such that its expectations are sums weighted by `weight`."""

    x: Tensor
    """Shape (n, *event_shape)."""
    weight: Tensor
    """Shape (n,)."""
    log_prob: Tensor
    """Shape (n,)."""

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
        gradient: ``"stratified"`` for weighted draws, ``"pathwise"`` for `rsample`, or
            ``"auto"`` for the first of these that there is.

    Raises:
        ValueError: If the distribution has no such draws.
    """
    check_choice("gradient", gradient, ("auto", "pathwise", "stratified"))
    if gradient != "pathwise":
        sampler = weighted_sampler(distribution)
        if sampler is not None:
            return sampler
        if gradient == "stratified":
            raise ValueError(
                f"Expected a mixture, or a Flow on one, for stratified gradients, got "
                f"{type(distribution).__name__}."
            )
    if not distribution.has_rsample:
        raise ValueError(
            f"Expected a distribution with pathwise gradients or weighted draws, got "
            f"{type(distribution).__name__}, which has neither."
        )

    def pathwise(count: int, num_sets: int = 1) -> list[Draws]:
        size = Size((num_sets * count,))
        if hasattr(distribution, "rsample_and_log_prob"):
            x, log_prob = distribution.rsample_and_log_prob(size)
        else:
            x = distribution.rsample(size)
            log_prob = distribution.log_prob(x)
        return _split(count, x, torch.full_like(log_prob, 1 / count), log_prob)

    return pathwise


def weighted_sampler(distribution: Any) -> Sampler | None:
    """The way to draw weighted draws, or None if the distribution has none."""

    def flow(count: int, num_sets: int = 1) -> list[Draws]:
        x, log_weight, log_prob = distribution.rsample_weighted_and_log_prob(count, num_sets)
        return _split(count, x, log_weight.exp(), log_prob)

    def mixture(count: int, num_sets: int = 1) -> list[Draws]:
        sets = [distribution.rsample_weighted(count) for _ in range(num_sets)]
        x, log_weight = (torch.cat(part) for part in zip(*sets, strict=True))
        return _split(count, x, log_weight.exp(), distribution.log_prob(x))

    if hasattr(distribution, "rsample_weighted"):
        return mixture
    if not hasattr(distribution, "rsample_weighted_and_log_prob"):
        return None
    try:  # only the base can tell
        with draws_from(torch.Generator()), torch.no_grad():
            flow(1)
    except NotImplementedError:
        return None
    return flow


def _split(count: int, x: Tensor, weight: Tensor, log_prob: Tensor) -> list[Draws]:
    """Splits joined draws into sets of so many."""
    parts = (part.split(count) for part in (x, weight, log_prob))
    return [Draws(*part) for part in zip(*parts, strict=True)]


@torch.no_grad()
def sample_and_score(distribution: Any, count: int) -> tuple[Tensor, Tensor]:
    """Returns independent draws and their log-densities, without a graph."""
    parts = []
    for size in [10_000] * (count // 10_000) + [count % 10_000]:
        if not size:
            continue
        if hasattr(distribution, "rsample_and_log_prob"):
            parts.append(distribution.rsample_and_log_prob(Size((size,))))
        else:
            x = distribution.sample(Size((size,)))
            parts.append((x, distribution.log_prob(x)))
    x, log_prob = (torch.cat(part) for part in zip(*parts, strict=True))
    return x, log_prob
