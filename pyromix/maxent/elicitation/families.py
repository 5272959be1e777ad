r"""Families of laws with two parameters, and their member that fits statements best.

Where statements leave the tails of a variable open, no law has the largest entropy: mass beyond
the last value can be spread without end. Then a family says how tails fall off. Of all laws q that
meet the statements, and members b of the family, the pair of least divergence KL(q | b) is sought;
where members meet the statements themselves, so that it is zero, that of the largest entropy.
"""

__all__ = ["Family", "Placed", "choose_family", "fit"]

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Distribution
from torch.distributions.transforms import AffineTransform

from .dual import Dual
from .statistics import Statistic, Variable

# Members and statements agree when violations in deviations are below this.
MET = 1e-8
POLISHING_STEPS = 6
MAX_STEPS = 50  # before polishing; more only repeat where rounding ends the search
# Of the scale, from which a member is sought.
FACTORS = (1.0, 0.3, 0.1)
LARGEST_MOVE = 12.0  # of a parameter: a logarithm, or a mean in units of the scale


class Family(NamedTuple):
    """Laws on the line, the positive half or (0, 1), by two unconstrained parameters."""

    name: str
    make: Callable[[Tensor], Distribution]
    natural: tuple[Callable[[Tensor], Tensor], ...]
    """The statistics of which the family is the exponential family."""


def _normal(theta: Tensor) -> Distribution:
    return dist.Normal(theta[0], theta[1].exp())


def _gamma(theta: Tensor) -> Distribution:
    """By the logarithms of its mean and of its coefficient of variation."""
    shape = (-2 * theta[1]).exp()
    return dist.Gamma(shape, shape / theta[0].exp())


def _lognormal(theta: Tensor) -> Distribution:
    return dist.LogNormal(theta[0], theta[1].exp())


def _beta(theta: Tensor) -> Distribution:
    """By the log-odds of its mean and the logarithm of its two counts' sum."""
    share, total = torch.sigmoid(theta[0]), theta[1].exp()
    return dist.Beta(share * total, (1 - share) * total)


def _identity(y: Tensor) -> Tensor:
    return y


def _square_log(y: Tensor) -> Tensor:
    return y.log().square()


def _log_rest(y: Tensor) -> Tensor:
    return torch.log1p(-y)


FAMILIES = {
    "normal": Family("normal", _normal, (_identity, torch.square)),
    "gamma": Family("gamma", _gamma, (_identity, torch.log)),
    "lognormal": Family("lognormal", _lognormal, (torch.log, _square_log)),
    "beta": Family("beta", _beta, (torch.log, _log_rest)),
}
ON_LINE, ON_HALF, ON_INTERVAL = ("normal",), ("gamma", "lognormal"), ("beta",)


class Placed(NamedTuple):
    """A family moved onto a support: x = shift + scale y."""

    family: Family
    shift: float
    scale: float

    def make(self, theta: Tensor) -> Distribution:
        """The member with these parameters, of y."""
        inner = self.family.make(theta)
        if (self.shift, self.scale) == (0.0, 1.0):
            return inner
        return dist.TransformedDistribution(inner, [AffineTransform(self.shift, self.scale)])

    def natural(self, x: Tensor) -> Tensor:
        """The family's statistics of values (..., ), shape (..., 2)."""
        y = (x - self.shift) / self.scale
        return torch.stack([function(y) for function in self.family.natural], -1)


def choose_family(
    variable: Variable, name: str | None, points: Sequence[float], scale: float
) -> Placed:
    """The family of this name, on the support of a variable; by default the support's own.

    Args:
        variable: The variable.
        name: Of the family, or None.
        points: Values about which the law lies: where a family on the line is moved.
        scale: About how wide it is.

    Raises:
        ValueError: If there is none of that name on the support.
    """
    low, high = variable.low, variable.high
    known: tuple[str, ...]
    if math.isfinite(low) and math.isfinite(high):
        known, shift, unit = ON_INTERVAL, low, high - low
    elif math.isfinite(low):
        known, shift, unit = ON_HALF, low, 1.0
    elif math.isfinite(high):
        known, shift, unit = ON_HALF, high, -1.0
    else:
        known, shift, unit = ON_LINE, sum(points) / len(points), scale
    if name is not None and name not in known:
        raise ValueError(
            f"Expected the family of {variable.name!r}, with support ({low:g}, {high:g}), to be "
            f"{' or '.join(map(repr, known))}, got {name!r}."
        )
    return Placed(FAMILIES[name or known[0]], shift, unit)


def fit(
    placed: Placed,
    statistics: Sequence[Statistic],
    x: Tensor,
    weight: Tensor,
    points: Sequence[float],
    scale: float,
) -> Distribution | None:
    """The member that is nearest to statements; of members that meet them the one of most entropy.

    Args:
        placed: The family, on the support.
        statistics: The statements.
        x: Nodes of a quadrature on the support, shape (n,).
        weight: Their weights, shape (n,).
        points: Values that are named, about which the law lies.
        scale: About how wide it is.

    Returns:
        The member, or None if the entropy of members that meet the statements has no bound.
    """
    values = torch.stack([s.values(x.unsqueeze(-1)) for s in statistics], -1)
    levels = torch.tensor([s.level for s in statistics]).double()
    bounded = torch.tensor([s.is_inequality for s in statistics])
    for factor in FACTORS:
        start = _start(placed, points, scale, factor)
        theta, met = _most_entropy(placed, values, levels, bounded, x, weight, start)
        if met and abs(theta - start).max() > 0.99 * LARGEST_MOVE:
            return None
        if met:
            return placed.make(torch.from_numpy(theta))
    start = _start(placed, points, scale, 1.0)
    theta = _nearest(placed, values, levels, bounded, x, weight, start)
    return placed.make(torch.from_numpy(theta))


def _start(placed: Placed, points: Sequence[float], scale: float, factor: float) -> np.ndarray:
    """Parameters of a member that lies about points, and is so many times as wide as the scale."""
    y = (np.array(points) - placed.shift) / placed.scale
    width = factor * abs(scale / placed.scale)
    if placed.family.name == "normal":
        return np.array([y.mean(), math.log(width)])  # 0 and log(factor): see `choose_family`
    if placed.family.name == "beta":
        odds = np.log(y / (1 - y)).mean()
        return np.array([odds, math.log(2.0 / factor)])
    spread = np.log(y).max() - np.log(y).min()
    relative = factor * (spread / 2 if spread > 0 else min(1.0, width / y[0]))
    return np.array([np.log(y).mean(), math.log(relative)])


def _log_member(placed: Placed, theta: Tensor, x: Tensor) -> Tensor:
    return placed.make(theta).log_prob(x).clamp(min=-1e4)


def _most_entropy(
    placed: Placed,
    values: Tensor,
    levels: Tensor,
    bounded: Tensor,
    x: Tensor,
    weight: Tensor,
    start: np.ndarray,
) -> tuple[np.ndarray, bool]:
    """The member of largest entropy that meets the statements, and whether it does."""
    from scipy.optimize import minimize  # adds a filter of warnings: not on import

    scale = (values - levels).abs().amax(0).clamp(max=1.0)

    def state(theta: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        leaf = torch.from_numpy(theta).requires_grad_()
        log_b = _log_member(placed, leaf, x)
        p = weight * log_b.exp()
        return leaf, -(p * log_b).sum(), (p @ (values - levels) + (p.sum() - 1) * levels) / scale

    def value_and_slope(index: int | None, theta: np.ndarray) -> tuple[float, np.ndarray]:
        leaf, entropy, violations = state(theta)
        value = -entropy if index is None else -violations[index]
        (slope,) = torch.autograd.grad(value, leaf)
        return float(value.detach()), slope.numpy()

    limits = [
        {
            "type": "ineq" if bounded[i] else "eq",
            "fun": lambda theta, i=i: value_and_slope(i, theta)[0],
            "jac": lambda theta, i=i: value_and_slope(i, theta)[1],
        }
        for i in range(len(levels))
    ]
    found = minimize(
        lambda theta: value_and_slope(None, theta), start, jac=True, method="SLSQP",
        constraints=limits, bounds=_bounds(start),
        options={"maxiter": MAX_STEPS, "ftol": 1e-9},
    )  # fmt: skip
    theta = found.x
    for _ in range(POLISHING_STEPS):  # onto the statements; along them it is at its best
        if not (np.abs(theta - start) <= LARGEST_MOVE).all():  # nor if it is not a number
            break
        leaf, _, violations = state(theta)
        off = torch.where(bounded, violations.clamp(min=0), violations)
        if bool((off.abs() < MET).all()):
            return theta, True
        rows = [torch.autograd.grad(v, leaf, retain_graph=True)[0] for v in violations.unbind()]
        jacobian = torch.stack(rows)[off != 0].numpy()
        if not np.isfinite(jacobian).all():
            break
        theta = theta - np.linalg.lstsq(jacobian, off[off != 0].detach().numpy(), rcond=None)[0]
    return start, False


def _nearest(
    placed: Placed,
    values: Tensor,
    levels: Tensor,
    bounded: Tensor,
    x: Tensor,
    weight: Tensor,
    start: np.ndarray,
) -> np.ndarray:
    """The member of least divergence from a law that meets the statements.

    The divergence is minus the least value of the dual, whose gradient in the parameters is that
    at fixed multipliers.
    """
    from scipy.optimize import minimize  # as above

    best = torch.zeros(len(levels)).double()

    def divergence(theta: np.ndarray) -> tuple[float, np.ndarray]:
        nonlocal best
        leaf = torch.from_numpy(theta).requires_grad_()
        log_weight = weight.log() + _log_member(placed, leaf, x)
        best = Dual(values, levels, log_weight.detach(), bounded).solve(best).multipliers
        value = -(log_weight - (values - levels) @ best).logsumexp(0)
        (slope,) = torch.autograd.grad(value, leaf)
        return float(value.detach()), slope.numpy()

    options = {"ftol": 1e-15, "gtol": 1e-8, "maxiter": 500}
    return minimize(
        divergence, start, jac=True, method="L-BFGS-B", bounds=_bounds(start), options=options
    ).x


def _bounds(start: np.ndarray) -> list[tuple[float, float]]:
    return [(s - LARGEST_MOVE, s + LARGEST_MOVE) for s in start]
