"""From statements to a joint prior."""

__all__ = ["elicit"]

import inspect
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.distributions import constraints

from ...core.checks import number
from ..problem import MaximumEntropy
from .blocks import Marginal, needs_flow, solve_block
from .line import solve_line, with_jumps
from .prior import Block, ElicitedPrior
from .statements import Expectation, Interval, Mean, Probability, Quantile, Sd, Statement
from .statistics import Statistic, compile_joint, compile_variable

KINDS = Quantile | Interval | Mean | Sd | Expectation | Probability
Pair = tuple[str, str]


def elicit(
    statements: Mapping[str, Statement | Sequence[Statement]],
    *,
    support: Mapping[str, constraints.Constraint] | None = None,
    correlations: Mapping[Pair, float] | None = None,
    rank_correlations: Mapping[Pair, float] | None = None,
    joint: Sequence[Statement] = (),
    families: Mapping[str, str] | None = None,
    smooth: float = 0.0,
    **settings: Any,
) -> ElicitedPrior:
    r"""The prior of largest entropy with the properties that a person states.

    .. math:: q(x) \propto b(x) e^{-\lambda^\top T(x)}, \qquad E_q[T(x)] = t

    with a statistic T for every statement: for a quantile or an interval a step, so that the
    density jumps at the values that are named; for a mean or a deviation x or :math:`(x - m)^2`.
    The multipliers are the solution of a convex problem, whose integrals are by quadrature.
    Variables on which there is no joint statement are independent. Those with rank correlations
    alone have a law in closed form. Up to three variables with other joint statements are solved
    by quadrature, too, and more by `MaximumEntropy` with a flow.

    **Open tails.** Quantiles alone do not bound the entropy of a variable without bounds: what
    lies beyond the last one can be spread without end, so that no law has the largest entropy.
    Then the tails are those of a family: normal on the line, gamma on the positive half. Of all
    laws that meet the statements that of least divergence from the family is taken; where members
    of the family meet them, the member of largest entropy. `print` says so. To avoid it, state a
    mean (on the positive half) or a mean and an sd (on the line), or bound the support.

    **Correlations** are about the mean and in units of the standard deviation that each variable
    has on its own, which the joint law keeps. Two variables whose tails are those of an
    exponential or a gamma law can have no law of largest entropy with a positive correlation. One
    with `rank_correlations` always exists: these are correlations of the normal scores
    :math:`\Phi^{-1}(F(x))`, with the distribution function F that a variable has on its own
    (Spearman's coefficient is then :math:`\frac{6}{\pi} \arcsin \frac{\rho}{2}`), and the law is
    a Gaussian copula, in which every variable's own law stays what it is.

    Args:
        statements: What is known of each variable: `quantile`, `interval`, `mean`, `sd`,
            `probability` or `expectation`, one or several, by the variable's name.
        support: Constraints of PyTorch on variables, by name; by default `constraints.real`.
        correlations: Of pairs of variables.
        rank_correlations: Correlations of normal scores, of pairs of variables.
        joint: Statements about several variables: `probability` and `expectation` of functions
            whose arguments are the variables' names.
        families: Families by the variable's name, for laws without jumps and for other tails:
            ``"normal"`` on the line, ``"gamma"`` or ``"lognormal"`` on a half, ``"beta"`` between
            two bounds.
        smooth: Width of steps, as a share of the least distance between the values that are named
            for a variable. With zero the law is that of largest entropy, with jumps. With 0.5,
            for instance, it is smooth, and every quantile holds as exactly.
        settings: Of `MaximumEntropy.solve`, for more than three variables that depend on each
            other.

    Returns:
        A distribution over vectors, with `sites` for named values in a model.

    Raises:
        ValueError: If statements do not fit a variable's support, or contradict each other.
        TypeError: If settings are unknown, or not needed.

    Example:
        >>> from torch.distributions import constraints
        >>> from pyromix.maxent import elicit, interval, quantile
        >>> prior = elicit(
        ...     {"rate": interval(0.9, 2, 5), "share": [quantile(0.5, 0.3), quantile(0.9, 0.6)]},
        ...     support={"rate": constraints.positive, "share": constraints.unit_interval},
        ... )
        >>> prior.names, prior.sample((4,)).shape
        (('rate', 'share'), torch.Size([4, 2]))
    """
    known = _as_lists(statements)
    names = tuple(known)
    supports = dict.fromkeys(names, constraints.real) | dict(support or {})
    families = dict(families or {})
    for argument, keys in (("support", supports), ("families", families)):
        _check_names(argument, keys, names)
    if not 0 <= number()("smooth", smooth) <= 1:
        raise ValueError(f"Expected smooth to be between 0 and 1, got {smooth}.")
    _check_settings(settings)
    marginals = {}
    for name in names:
        low, high = _bounds(name, supports[name])
        variable, statistics = compile_variable(name, known[name], low, high, smooth)
        variable = with_jumps(variable, statistics)
        law = solve_line(variable, statistics, supports[name], families.get(name))
        marginals[name] = Marginal(variable, tuple(statistics), law)
    pairs = _check_correlations("correlations", correlations or {}, names)
    ranks = _check_correlations("rank_correlations", rank_correlations or {}, names)
    both = [pair for pair in pairs if pair in ranks]
    if both:
        raise ValueError(
            f"Expected each pair in correlations or in rank_correlations, one or the other, got "
            f"{both[0]!r} in both."
        )
    shared = [compile_joint(statement, names) for statement in joint]
    groups = _connected(names, [*pairs, *ranks, *(arguments for arguments, _ in shared)])
    linked = {pair[0] for pair in pairs} | {arguments[0] for arguments, _ in shared}
    if settings and not any(needs_flow(group) and linked & set(group) for group in groups):
        raise TypeError(
            f"Expected settings of a search only with a flow, for more than three variables that "
            f"depend on each other, got {', '.join(settings)}. Leave them out."
        )
    blocks = []
    for group in groups:
        columns = tuple(names.index(name) for name in group)
        first = marginals[group[0]]
        own_pairs = {pair: rho for pair, rho in pairs.items() if pair[0] in group}
        own_ranks = {pair: rho for pair, rho in ranks.items() if pair[0] in group}
        own_shared = [s for arguments, s in shared if arguments[0] in group]
        if len(group) == 1:
            blocks.append(Block(group, columns, first.law, first.statistics))
            continue
        place = {column: i for i, column in enumerate(columns)}
        moved = [_onto_block(s, place, len(names)) for s in own_shared]
        members = [marginals[name] for name in group]
        blocks.append(solve_block(members, columns, own_pairs, own_ranks, moved, settings))
    return ElicitedPrior(blocks, {name: supports[name] for name in names})


def _check_settings(settings: Mapping[str, Any]) -> None:
    """Raises an error about settings that `MaximumEntropy.solve` does not have."""
    known = [name for name in inspect.signature(MaximumEntropy.solve).parameters if name != "self"]
    unknown = [name for name in settings if name not in known]
    if unknown:
        raise TypeError(
            f"Expected keyword arguments of elicit, or settings of MaximumEntropy.solve "
            f"({', '.join(known)}), got {', '.join(unknown)}."
        )


def _as_lists(
    statements: Mapping[str, Statement | Sequence[Statement]],
) -> dict[str, tuple[Statement, ...]]:
    """Statements by name, as tuples.

    Raises:
        ValueError: If they are anything else.
    """
    if not isinstance(statements, Mapping) or not statements:
        raise ValueError(f"Expected statements by the names of variables, got {statements!r}.")
    result = {}
    for name, given in statements.items():
        several = tuple(given) if isinstance(given, list | tuple) else (given,)
        for statement in several:
            if not isinstance(statement, KINDS):
                raise ValueError(
                    f"Expected statements about {name!r}, such as quantile(0.5, 3.0), got "
                    f"{statement!r}."
                )
        result[str(name)] = several
    return result


def _check_names(argument: str, keys: Mapping[str, Any], names: Sequence[str]) -> None:
    unknown = [key for key in keys if key not in names]
    if unknown:
        raise ValueError(
            f"Expected {argument} of variables with statements, {', '.join(map(repr, names))}, "
            f"got {unknown[0]!r}. Add it to the statements; with none: [] on a bounded support."
        )


def _bounds(name: str, support: constraints.Constraint) -> tuple[float, float]:
    """The bounds of a support.

    Raises:
        ValueError: If it is not a part of the line without gaps.
    """
    low = getattr(support, "lower_bound", -math.inf)
    high = getattr(support, "upper_bound", math.inf)
    plain = support is constraints.real or max(abs(low), abs(high)) < math.inf
    plain = plain or math.isfinite(low) or math.isfinite(high)
    if not plain or support.is_discrete or support.event_dim:
        raise ValueError(
            f"Expected the support of {name!r} to be constraints.real, or to have a lower or an "
            f"upper bound, such as constraints.positive and constraints.interval, got {support}."
        )
    return float(low), float(high)


def _check_correlations(
    argument: str, correlations: Mapping[Pair, float], names: Sequence[str]
) -> dict[Pair, float]:
    """Correlations of pairs, in the order of the names.

    Raises:
        ValueError: If a pair is unknown, or there are no variables that have them all.
    """
    result: dict[Pair, float] = {}
    for pair, rho in correlations.items():
        is_pair = isinstance(pair, tuple) and len(pair) == 2 and pair[0] != pair[1]
        if not is_pair or any(name not in names for name in pair):
            raise ValueError(
                f"Expected {argument} of pairs of variables, {', '.join(map(repr, names))}, "
                f"got {pair!r}."
            )
        one, other = sorted(pair, key=list(names).index)
        if not -1 < number()("a correlation", rho) < 1:
            raise ValueError(
                f"Expected the correlation of {one!r} and {other!r} between -1 and 1, got {rho}."
            )
        if result.get((one, other), rho) != rho:
            raise ValueError(f"Expected one correlation of {one!r} and {other!r}, got two.")
        result[one, other] = float(rho)
    involved = [name for name in names if any(name in pair for pair in result)]
    for count in range(3, len(involved) + 1):
        for group in itertools.combinations(involved, count):
            pairs = list(itertools.combinations(group, 2))
            if not all(pair in result for pair in pairs):
                continue
            matrix = torch.eye(count, dtype=torch.float64)
            for (i, j), pair in zip(itertools.combinations(range(count), 2), pairs, strict=True):
                matrix[i, j] = matrix[j, i] = result[pair]
            least = float(torch.linalg.eigvalsh(matrix)[0])
            if least <= 1e-9:
                raise ValueError(
                    f"Expected {argument} that variables can have, got some of "
                    f"{', '.join(map(repr, group))} whose matrix is not positive definite: its "
                    f"least eigenvalue is {least:.3g}."
                )
    return result


def _connected(names: Sequence[str], links: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    """Names in groups that are linked, in the order of their first names."""
    group = {name: {name} for name in names}
    for link in links:
        merged = set().union(*(group[name] for name in link))
        for name in merged:
            group[name] = merged
    seen: list[tuple[str, ...]] = []
    for name in names:
        members = tuple(n for n in names if n in group[name])
        if members not in seen:
            seen.append(members)
    return seen


def _onto_block(statistic: Statistic, place: Mapping[int, int], count: int) -> Statistic:
    """A statistic of all variables as one of a block's columns; it takes no others."""
    return statistic.moved([place.get(column, 0) for column in range(count)])
