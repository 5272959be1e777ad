"""Laws of variables that depend on each other, from the laws that they have on their own."""

__all__ = ["Marginal", "needs_flow", "solve_block"]

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import constraints

from ..flows import spline_flow
from ..problem import MaximumEntropy
from ..steps import exact_step
from .copula import CopulaLaw, complete, score
from .joint import joint_edges, solve_joint
from .line import LineLaw
from .prior import Block, joint_support
from .statistics import Statistic, Variable

MAX_QUADRATURE = 3  # variables

# Width of smooth steps in a flow, in standard deviations, where none is asked for.
FLOW_WIDTH = 0.1


class Marginal(NamedTuple):
    """A variable, what is stated of it alone, and the law that follows."""

    variable: Variable
    statistics: tuple[Statistic, ...]
    law: LineLaw


def needs_flow(names: Sequence[str]) -> bool:
    """Whether variables with joint statements are too many for a quadrature."""
    return len(names) > MAX_QUADRATURE


def solve_block(
    marginals: Sequence[Marginal],
    columns: Sequence[int],
    correlations: Mapping[tuple[str, str], float],
    ranks: Mapping[tuple[str, str], float],
    shared: Sequence[Statistic],
    settings: Mapping[str, Any],
) -> Block:
    """The law of largest entropy of variables that depend on each other.

    Args:
        marginals: The variables.
        columns: Their entries in the prior.
        correlations: Of pairs, by name.
        ranks: Correlations of normal scores, of pairs, by name.
        shared: Statistics of several variables, of draws (..., d) of these.
        settings: Of `MaximumEntropy.solve`, where there are too many for a quadrature.

    Raises:
        ValueError: If no law meets the statements.
    """
    names = tuple(m.variable.name for m in marginals)
    dim = len(names)
    bounds = [m.law.support for m in marginals]
    support = joint_support(bounds)
    own = [s.moved([i]) for i, m in enumerate(marginals) for s in m.statistics]
    pairs = [
        _correlation(marginals, names.index(one), names.index(other), rho)
        for (one, other), rho in correlations.items()
    ]
    scores = [
        _score_correlation(marginals, names.index(one), names.index(other), rho)
        for (one, other), rho in ranks.items()
    ]
    stated = (*own, *pairs, *scores, *shared)
    if not pairs and not shared:
        place = {
            (names.index(one), names.index(other)): rho for (one, other), rho in ranks.items()
        }
        matrix = complete(place, dim)
        if matrix is None:
            raise ValueError(
                f"Expected rank_correlations that variables can have, got some of "
                f"{', '.join(map(repr, names))} that no positive definite matrix has."
            )
        copula = CopulaLaw([m.law for m in marginals], matrix, support)
        return Block(names, tuple(columns), copula, stated)
    correlated = {name for pair in correlations for name in pair}
    kept, start = [], []
    for i, m in enumerate(marginals):
        start += _multipliers(m).tolist()
        if m.variable.name in correlated:
            kept += _kept_moments(m, i)
        if any(m.variable.name in pair for pair in ranks):
            kept += _kept_scores(m, i)
    start += [0.0] * (len(pairs) + len(scores) + len(shared)) + [s.start for s in kept]
    everything = (*stated, *kept)
    if not needs_flow(names):
        bases = [m.law.base for m in marginals]
        edges = [joint_edges(m.law, m.variable.edges, max(dim, 2)) for m in marginals]
        law: Any = solve_joint(
            names, everything, torch.tensor(start).double(), bases, edges, support, bounds, shared
        )
    else:
        tails = [s for i, m in enumerate(marginals) for s in _tails(m, i)]
        others = [*pairs, *scores, *shared, *kept, *tails]
        law = _train_flow(marginals, [*_soft(marginals), *others], support, settings)
    return Block(names, tuple(columns), law, stated)


def _multipliers(m: Marginal) -> Tensor:
    """Of the law that a variable has on its own; zeros where that is a member of a family."""
    found = m.law.exponent.multipliers
    return found if len(found) else torch.zeros(len(m.statistics))


def _moments(m: Marginal) -> tuple[float, float]:
    return float(m.law.mean), float(m.law.variance) ** 0.5


def _product(parts: Sequence[tuple[int, float, float]], x: Tensor) -> Tensor:
    """The product of columns, each in deviations from a centre."""
    result = torch.ones_like(x[..., 0])
    for i, centre, deviation in parts:
        result = result * ((x[..., i] - centre) / deviation)
    return result


def _score_product(parts: Sequence[tuple[int, LineLaw]], x: Tensor) -> Tensor:
    """The product of normal scores of columns."""
    result = torch.ones_like(x[..., 0])
    for i, law in parts:
        result = result * score(law, x[..., i]).to(x)
    return result


def _correlation(marginals: Sequence[Marginal], i: int, j: int, rho: float) -> Statistic:
    """The product of two variables in deviations."""
    (m, s), (n, t) = _moments(marginals[i]), _moments(marginals[j])
    names = f"{marginals[i].variable.name}, {marginals[j].variable.name}"
    return Statistic(f"correlation of {names}", partial(_product, ((i, m, s), (j, n, t))), rho)


def _score_correlation(marginals: Sequence[Marginal], i: int, j: int, rho: float) -> Statistic:
    """The product of two variables' normal scores."""
    one, other = marginals[i], marginals[j]
    return Statistic(
        f"rank correlation of {one.variable.name}, {other.variable.name}",
        partial(_score_product, ((i, one.law), (j, other.law))),
        rho,
    )


def _kept_scores(m: Marginal, i: int) -> list[Statistic]:
    """Mean and square of the normal scores that a rank-correlated variable keeps."""
    name, one = m.variable.name, ((i, m.law),)
    return [
        Statistic(f"score of {name}, kept", partial(_score_product, one), 0.0),
        Statistic(f"square score of {name}, kept", partial(_score_product, one * 2), 1.0),
    ]


def _kept_moments(m: Marginal, i: int) -> list[Statistic]:
    """The mean and deviation that a correlated variable keeps, if they are not stated anyway."""
    centre, deviation = _moments(m)
    name, one = m.variable.name, ((i, centre, deviation),)
    result = []
    if m.variable.centre is None:
        result.append(Statistic(f"mean of {name}, kept", partial(_product, one), 0.0))
    if m.variable.sd is None:
        result.append(Statistic(f"variance of {name}, kept", partial(_product, one * 2), 1.0))
    return result


def _tails(m: Marginal, i: int) -> list[Statistic]:
    """Statistics of the family that a variable's tails are from, at their expectations."""
    if m.law.family is None:
        return []
    family, (x, p) = m.law.family, m.law.nodes()
    levels = p @ family.natural(x)

    def column(k: int) -> Statistic:
        name = f"{m.variable.name} as in {family.family.name}, {k}"
        return Statistic(name, lambda x: family.natural(x[..., i])[..., k], float(levels[k]))

    return [column(k) for k in range(len(levels))]


def _soft(marginals: Sequence[Marginal]) -> list[Statistic]:
    """Statistics of the variables alone, whose steps have smooth ones for gradients."""
    result = []
    for i, m in enumerate(marginals):
        width = FLOW_WIDTH * _moments(m)[1]
        result += [(s if s.width else replace(s, width=width)).moved([i]) for s in m.statistics]
    return result


def _train_flow(
    marginals: Sequence[Marginal],
    statistics: Sequence[Statistic],
    support: constraints.Constraint,
    settings: Mapping[str, Any],
) -> Any:
    """A flow of largest entropy, with the steps exact in their values."""
    flow = spline_flow(len(marginals), support=support)
    equalities = [s for s in statistics if not s.is_inequality]
    inequalities = [s for s in statistics if s.is_inequality]

    def stack(group: Sequence[Statistic]) -> Any:
        return lambda x: torch.stack([_exact(s, x) for s in group], -1)

    problem = MaximumEntropy(
        flow,
        stack(equalities) if equalities else None,
        [s.level for s in equalities] if equalities else None,
        inequalities=stack(inequalities) if inequalities else None,
        bounds=[s.level for s in inequalities] if inequalities else None,
        names=[s.name for s in (*equalities, *inequalities)],
    )
    problem.solve(**{"progress_bar": False, **settings})
    flow.requires_grad_(False)
    return flow


def _exact(statistic: Statistic, x: Tensor) -> Tensor:
    values = statistic.values(x).to(x)
    return exact_step(values, statistic.at(x)) if statistic.is_smooth else values
