"""Estimators of the expectation of a function under a mixture, with gradients in its parameters.

All take a mixture, a number of draws, and a function that maps points (N, D) to numbers (N,).
"""

from collections.abc import Callable

from torch import Tensor

from pyromix import MixtureOfNormals

Payoff = Callable[[Tensor], Tensor]


def implicit(mixture: MixtureOfNormals, count: int, payoff: Payoff) -> Tensor:
    """The mean over draws with pathwise gradients."""
    return payoff(mixture.rsample((count,))).mean()


def stratified(mixture: MixtureOfNormals, count: int, payoff: Payoff) -> Tensor:
    """The weighted mean over draws of every component."""
    x, log_weight = mixture.rsample_weighted(count)
    return (log_weight.exp() * payoff(x)).sum()


def straight_through(mixture: MixtureOfNormals, count: int, payoff: Payoff) -> Tensor:
    """The mean over draws whose gradients are those of a Gumbel-softmax relaxation."""
    return payoff(mixture.rsample_straight_through((count,))).mean()


def score_function(mixture: MixtureOfNormals, count: int, payoff: Payoff) -> Tensor:
    """A number with the score function's gradient; the other draws' average is the baseline."""
    x = mixture.sample((count,))
    f = payoff(x)
    baseline = (f.sum() - f) / (count - 1)
    return ((f - baseline) * mixture.log_prob(x)).mean()
