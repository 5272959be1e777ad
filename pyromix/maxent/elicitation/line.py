"""The law of one variable: a density on the line that may jump where statements say so."""

__all__ = ["PLACE", "LineLaw", "keep_inside", "solve_line", "with_jumps"]

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Size, Tensor
from torch.distributions import Distribution, constraints
from torch.types import _size

from .dual import Dual, Solution
from .families import Placed, choose_family, fit
from .panels import find_jumps, gauss, geometric_edges, reach
from .statistics import Exponent, Statistic, Variable

# Where the law itself is kept, and computes.
PLACE = torch.zeros((), dtype=torch.float64)

ORDER = 10  # nodes in a panel
FAR = 0.25  # share of what the nodes reach, at an end without a bound, that is its tail
TAIL_SHARE = 1e-7  # of a statistic, in a tail, from which on it is open
STEPS_OF_NEWTON = 60
EXACT = 1e-10  # difference of probabilities, before a last step
SAME = 1e-8  # divergence in nats
LEAST_MASS = 1e-7  # between values that are named


class LineLaw(TorchDistribution):
    r"""A law on the line, :math:`q(x) = b(x) e^{-\lambda^\top T(x)} / Z`.

    Its distribution function is integrated panel by panel, so that draws, by its inverse, and
    densities are of one normalised law, also where the density jumps.

    Args:
        exponent: log b - lambda . T of values (..., 1).
        edges: Of panels, at which the density may jump, shape (P + 1,).
        support: The constraint on values.
        description: What the law is, in words.
        family: That of the base, if there is one.
    """

    has_rsample = False
    arg_constraints: dict[str, Any] = {}  # noqa: RUF012 - as PyTorch declares it

    def __init__(
        self,
        exponent: Exponent,
        edges: Tensor,
        support: constraints.Constraint,
        description: str = "",
        family: Placed | None = None,
    ) -> None:
        self.exponent, self.edges, self.description = exponent, edges, description
        self.family = family
        self._support = support
        super().__init__(validate_args=False)
        log_p = self._log_integrals(edges)
        self.log_normalizer = float(log_p.logsumexp(0))
        masses = (log_p - self.log_normalizer).exp()
        self._masses = masses
        self.cumulative = torch.cat([masses.new_zeros(1), masses.cumsum(0)])
        self.median = self.icdf(torch.tensor(0.5))

    @property
    def base(self) -> Distribution | None:
        """The measure b; None if it is Lebesgue's."""
        return self.exponent.bases[0] if self.exponent.bases else None

    @property
    def support(self) -> constraints.Constraint:
        """Where values lie."""
        return self._support

    def expand(self, batch_shape: _size, _instance: Any = None) -> Any:
        """Independent copies, in a batch."""
        from pyro.distributions.torch_distribution import ExpandedDistribution

        return ExpandedDistribution(self, Size(batch_shape))

    def _log_integrals(self, edges: Tensor) -> Tensor:
        """Logarithms of the integrals between edges (..., P + 1), shape (..., P)."""
        x, weight = gauss(edges, ORDER)
        return (weight.clamp(min=1e-300).log() + self.exponent(x.unsqueeze(-1))).logsumexp(-1)

    def nodes(self) -> tuple[Tensor, Tensor]:
        """Nodes of a quadrature, and their probabilities, each of shape (n,)."""
        x, weight = (part.flatten() for part in gauss(self.edges, ORDER))
        return x, weight * (self.exponent(x.unsqueeze(-1)) - self.log_normalizer).exp()

    def expect(self, values: Any) -> float:
        """Expectation of a function of x, by quadrature."""
        x, p = self.nodes()
        return float((p * values(x)).sum())

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density, of the shape of the values."""
        inside = self._support.check(value)
        safe = torch.where(inside, value, self.median.to(value)).to(PLACE)
        result = (self.exponent(safe.unsqueeze(-1)) - self.log_normalizer).to(value)
        return torch.where(inside, result, -math.inf)

    def cdf(self, value: Tensor) -> Tensor:
        """Probability of less, of the shape of the values."""
        x = value.to(PLACE).clamp(float(self.edges[0]), float(self.edges[-1]))
        panel = self._panel(self.edges, x)
        return self._cdf(x, panel).to(value)

    def tails(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities of less and of more, each to its own precision, in double precision."""
        x = value.to(PLACE).clamp(float(self.edges[0]), float(self.edges[-1]))
        panel = self._panel(self.edges, x)
        pairs = torch.stack([self.edges[panel], x, self.edges[panel + 1]], -1)
        parts = (self._log_integrals(pairs) - self.log_normalizer).exp()
        beyond = self._masses.flip(0).cumsum(0).flip(0) - self._masses
        return self.cumulative[panel] + parts[..., 0], beyond[panel] + parts[..., 1]

    def icdf(self, value: Tensor) -> Tensor:
        """Quantiles, of the shape of the probabilities."""
        u = value.to(PLACE).flatten() * self.cumulative[-1]
        panel = self._panel(self.cumulative, u)
        low, high = self.edges[panel], self.edges[panel + 1]
        start, end = self.cumulative[panel], self.cumulative[panel + 1]
        x = low + (high - low) * ((u - start) / (end - start).clamp(min=1e-300)).clamp(0, 1)
        result, left = x.clone(), torch.arange(len(u))
        for _ in range(STEPS_OF_NEWTON):  # within brackets, which are halved where it leaves them
            excess = self._cdf(x, panel) - u
            high, low = torch.where(excess > 0, x, high), torch.where(excess > 0, low, x)
            slope = (self.exponent(x.unsqueeze(-1)) - self.log_normalizer).exp()
            new = x - excess / slope
            x = torch.where((new >= low) & (new <= high), new, (low + high) / 2)
            result[left] = x
            far = excess.abs() >= EXACT
            if not bool(far.any()):
                break
            left = left[far]
            x, u, panel, low, high = (part[far] for part in (x, u, panel, low, high))
        return keep_inside(result.reshape(value.shape).to(value), self._support)

    def sample(self, sample_shape: _size = Size()) -> Tensor:
        """Draws, of the given shape."""
        return self.draw(torch.rand(Size(sample_shape), dtype=torch.float64))

    def draw(self, u: Tensor) -> Tensor:
        """Draws by uniform numbers, of their shape."""
        with torch.no_grad():
            return keep_inside(self.icdf(u).to(torch.get_default_dtype()), self._support)

    def entropy(self) -> Tensor:
        """Differential entropy, in nats."""
        x, p = self.nodes()
        log_q = self.exponent(x.unsqueeze(-1)) - self.log_normalizer
        return -torch.where(p > 0, p * log_q, 0.0).sum().to(torch.get_default_dtype())

    @property
    def mean(self) -> Tensor:
        """The mean."""
        return torch.tensor(self.expect(lambda x: x))

    @property
    def variance(self) -> Tensor:
        """The variance."""
        centre = self.expect(lambda x: x)
        return torch.tensor(self.expect(lambda x: (x - centre).square()))

    def _panel(self, edges: Tensor, x: Tensor) -> Tensor:
        """Which panel a number lies in."""
        index = torch.searchsorted(edges, x.contiguous(), right=True) - 1
        return index.clamp(0, len(edges) - 2)

    def _cdf(self, x: Tensor, panel: Tensor) -> Tensor:
        part = self._log_integrals(torch.stack([self.edges[panel], x], -1)).squeeze(-1)
        return self.cumulative[panel] + (part - self.log_normalizer).exp()

    def __repr__(self) -> str:
        return f"LineLaw({self.description})"


def keep_inside(x: Tensor, support: constraints.Constraint) -> Tensor:
    """Values that rounding has put on a bound, next to it."""
    for name, other in (("lower_bound", math.inf), ("upper_bound", -math.inf)):
        bound = getattr(support, name, None)
        if bound is None:
            continue
        edge = torch.nextafter(torch.tensor(float(bound)).to(x), torch.tensor(other).to(x))
        x = torch.maximum(x, edge) if other > 0 else torch.minimum(x, edge)
    return x


def solve_line(
    variable: Variable,
    statistics: Sequence[Statistic],
    support: constraints.Constraint,
    family: str | None,
) -> LineLaw:
    """The law of largest entropy of one variable, or that of a family which is nearest.

    Args:
        variable: What is known of its size.
        statistics: The statements, of draws (..., 1).
        support: The constraint on values.
        family: Name of a family, whose nearest member is the measure; by default Lebesgue's, or
            the support's family where that leaves a tail open.

    Raises:
        ValueError: If no law meets the statements.
    """
    if not statistics and not (math.isfinite(variable.low) and math.isfinite(variable.high)):
        raise ValueError(
            f"Expected statements about {variable.name!r}, or a support with two bounds, got "
            f"neither. Add a statement, such as interval(0.9, 2, 5)."
        )
    law = _solve_line(variable, statistics, support, family)
    _check_pieces(variable, law)
    return law


def with_jumps(variable: Variable, statistics: Sequence[Statistic]) -> Variable:
    """The variable with the points where events that statements are about begin and end."""
    anchors, scale = _place(variable)
    edges = geometric_edges(variable.low, variable.high, anchors, scale)
    jumps: set[float] = set()
    for s in statistics:
        if s.steps is None:
            jumps |= set(find_jumps(partial(_at_points, s), edges, anchors, scale))
    return replace(variable, jumps=tuple(sorted(jumps - set(variable.points))))


def _at_points(statistic: Statistic, x: Tensor) -> Tensor:
    return statistic.values(x.unsqueeze(-1))


def _place(variable: Variable) -> tuple[list[float], float]:
    """Points about which a variable's law lies, and its scale."""
    anchors = [*variable.points]
    if variable.centre is not None:
        anchors.append(variable.centre)
    finite = [b for b in (variable.low, variable.high) if math.isfinite(b)]
    if not anchors and variable.jumps:
        anchors = sorted({variable.jumps[0], variable.jumps[-1]})
    if not anchors:
        anchors = [sum(finite) / len(finite)] if len(finite) == 2 else finite or [0.0]
    return anchors, reach(variable.low, variable.high, anchors, variable.sd)


def _solve_line(
    variable: Variable,
    statistics: Sequence[Statistic],
    support: constraints.Constraint,
    family: str | None,
) -> LineLaw:
    anchors, scale = _place(variable)
    edges = geometric_edges(variable.low, variable.high, anchors, scale)
    edges = torch.cat([edges, torch.tensor(variable.jumps).double()]).unique()
    x, weight = (part.flatten() for part in gauss(edges, ORDER))
    if family is None:
        if len(statistics) == 2:  # where more is known a law may exist
            _check_exists(variable)
        solution = _solve(variable, statistics, x, weight.log(), reference=None)
        if not _is_open(variable, statistics, solution, x):
            _check_met(variable, statistics, solution, x)
            law = Exponent(tuple(statistics), solution.multipliers)
            return LineLaw(law, edges, support, "largest entropy")
    points = [a for a in anchors if variable.low < a < variable.high]
    if not points:
        low, high = variable.low, variable.high
        half = low + scale if math.isfinite(low) else high - scale
        points = [half if math.isfinite(half) else 0.0]
    placed = choose_family(variable, family, points, scale)
    base = fit(placed, statistics, x, weight, points, scale)
    if base is None:
        raise _open_error(variable)
    log_weight = weight.log() + base.log_prob(x)
    solution = _solve(variable, statistics, x, log_weight, reference=base)
    _check_met(variable, statistics, solution, x)
    if _is_open(variable, statistics, solution, x):
        raise _open_error(variable)
    law = Exponent(tuple(statistics), solution.multipliers, (base,))
    levels = torch.tensor([s.level for s in statistics]).double()
    log_z = solution.log_normalizer + float(solution.multipliers @ levels)
    divergence = float(log_weight.logsumexp(0)) - log_z
    name, member = placed.family.name, divergence < SAME
    if member:
        law = Exponent((), solution.multipliers[:0], (base,))
    description = f"{name} of largest entropy" if member else f"nearest to a {name}"
    return LineLaw(law, edges, support, description, placed)


def _finite(statistic: Statistic, variable: Variable, x: Tensor) -> Tensor:
    """Values of a statistic at nodes (n, 1).

    Raises:
        ValueError: If they are not all finite.
    """
    values = statistic.values(x)
    bad = ~values.isfinite()
    if bool(bad.any()):
        i = int(bad.nonzero()[0])
        raise ValueError(
            f"Expected {statistic.name} to be finite on the support of {variable.name!r}, "
            f"({variable.low:g}, {variable.high:g}), got {float(values[i]):g} at "
            f"{float(x[i, 0]):g}. Bound the support, or take another function."
        )
    return values


def _check_exists(variable: Variable) -> None:
    """Raises an error where a mean and an sd on a half have no law of largest entropy."""
    low, high = variable.low, variable.high
    if variable.centre is None or variable.sd is None or math.isfinite(low) == math.isfinite(high):
        return
    distance = min(variable.centre - low, high - variable.centre)
    if variable.sd > distance:
        raise ValueError(
            f"Expected an sd of {variable.name!r} of at most {distance:.4g}, the distance of its "
            f"mean from the bound, got {variable.sd:g}: laws with these have an entropy up to "
            f"that of an exponential law, which none of them reaches. Take a family, "
            f'families={{{variable.name!r}: "lognormal"}}, or bound the support.'
        )


def _solve(
    variable: Variable,
    statistics: Sequence[Statistic],
    x: Tensor,
    log_weight: Tensor,
    reference: Any,
) -> Solution:
    columns = x.unsqueeze(-1)
    empty = x.new_empty(len(x), 0)
    values = [_finite(s, variable, columns) for s in statistics]
    smooth = [s.at(columns) for s in statistics]
    is_smooth = any(s.is_smooth for s in statistics)
    start = torch.tensor([0.0 if reference else s.start for s in statistics]).double()
    dual = Dual(
        torch.stack(values, -1) if values else empty,
        torch.tensor([s.level for s in statistics]).double(),
        log_weight,
        torch.tensor([s.is_inequality for s in statistics], dtype=torch.bool),
        torch.stack(smooth, -1) if is_smooth else None,
    )
    return dual.solve(start)


def _is_open(
    variable: Variable, statistics: Sequence[Statistic], solution: Solution, x: Tensor
) -> bool:
    """Whether the law has mass, or what a statistic is made of, as far out as the nodes reach."""
    p = solution.probabilities
    sizes = [p, *(p * s.at(x.unsqueeze(-1)).abs() for s in statistics)]
    low, high = float(x[0]), float(x[-1])
    ends = []
    if not math.isfinite(variable.low):
        ends.append(x < low + FAR * (high - low))
    if not math.isfinite(variable.high):
        ends.append(x > high - FAR * (high - low))
    return any(
        float(size[end].sum()) > TAIL_SHARE * float(size.sum()) for size in sizes for end in ends
    )


def _open_error(variable: Variable) -> ValueError:
    return ValueError(
        f"Expected statements about {variable.name!r} for which there is a law of largest "
        f"entropy, got some that leave the spread open, so that it has no bound. Add another "
        f"quantile, or an interval or an sd; or bound the support."
    )


def _check_pieces(variable: Variable, law: LineLaw) -> None:
    """Raises an error if statements leave a piece of the support without probability."""
    ends = [variable.low, *variable.points, variable.high]
    inner = law.cdf(torch.tensor(variable.points).double())
    masses = torch.cat([torch.zeros(1).double(), inner, torch.ones(1).double()]).diff()
    for low, high, mass in zip(ends, ends[1:], masses.tolist(), strict=False):
        if mass < LEAST_MASS:
            raise ValueError(
                f"Expected statements about {variable.name!r} that leave some probability to all "
                f"of its support ({variable.low:g}, {variable.high:g}), got some that leave none "
                f"between {low:g} and {high:g}."
            )


def _check_met(
    variable: Variable, statistics: Sequence[Statistic], solution: Solution, x: Tensor
) -> None:
    """Raises an error if the statements cannot be met together."""
    if solution.converged or not statistics:
        return
    worst = int(solution.violations.abs().argmax())
    got = float(solution.probabilities @ statistics[worst].values(x.unsqueeze(-1)))
    sign = statistics[worst].sign
    raise ValueError(
        f"Expected statements about {variable.name!r} that a law can meet together, got some that "
        f"contradict each other, or leave no probability to a part of the support "
        f"({variable.low:g}, {variable.high:g}): {statistics[worst].name} comes to "
        f"{sign * got:.4g} instead of {sign * statistics[worst].level:.4g} at best."
    )
