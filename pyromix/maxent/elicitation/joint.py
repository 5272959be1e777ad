"""The law of two or three variables that depend on each other."""

__all__ = ["JointLaw", "solve_joint"]

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from pyro.distributions import TorchDistribution
from torch import Size, Tensor
from torch.distributions import Distribution, constraints
from torch.nn.functional import max_pool2d, max_pool3d
from torch.types import _size

from .dual import Dual
from .line import PLACE, LineLaw, keep_inside
from .panels import gauss, is_step
from .statistics import Exponent, Statistic

# Probabilities at whose quantiles panels end, besides where densities may jump.
FINE = (1e-10, 1e-7, 1e-5, 1e-3, 0.01, 0.04, 0.1, 0.2, 0.3, 0.4)
COARSE = (1e-9, 1e-6, 1e-3, 0.02, 0.1, 0.3)
ORDERS = {2: 7, 3: 4}
PROBES = 20_000  # draws that test the bound of rejection
BATCH = 100_000
POINTS = {2: 128, 3: 32}  # in a box, where an event begins or ends within it
FINER = {2: 2, 3: 1}  # how often panels are halved before a law counts as too narrow
CLOSE = 5e-3  # difference of two rules, in deviations
LEAST_TAIL = 1e-4  # probability beyond the nodes from which on a tail is open


class JointLaw(TorchDistribution):
    r"""A law of two or three variables, :math:`q(x) = b(x) e^{-\lambda^\top T(x)} / Z`.

    The normaliser is from a quadrature. Each of its nodes has a box around it, whose volume is
    the node's weight. Draws are proposed from the boxes, by the density at their nodes, and
    accepted by the density itself, so that they are of the law that `log_prob` scores.

    Args:
        exponent: log b - lambda . T of values (..., d).
        edges: Of panels, for every variable.
        support: The constraint on values, of event shape (d,).
        bounds: The constraints on the variables.
        events: Statistics that jump elsewhere than at edges.
    """

    has_rsample = False
    arg_constraints: dict[str, Any] = {}  # noqa: RUF012 - as PyTorch declares it

    def __init__(
        self,
        exponent: Exponent,
        edges: Sequence[Tensor],
        support: constraints.Constraint,
        bounds: Sequence[constraints.Constraint],
        events: Sequence[Statistic] = (),
    ) -> None:
        self.exponent, self.edges, self._support = exponent, tuple(edges), support
        self.bounds, self.events = tuple(bounds), tuple(events)
        dim = len(edges)
        super().__init__(event_shape=Size((dim,)), validate_args=False)
        self.ends = [box_edges(e, ORDERS[dim]) for e in self.edges]
        x, log_weight = tensor_nodes(self.edges, ORDERS[dim])
        log_q = exponent(x)
        rule, log_rule = joint_rule(self.edges, ORDERS[dim], self.events)
        self.log_normalizer = float((exponent(rule) + log_rule).logsumexp(0))
        self._inner = x[(log_q + log_weight).argmax()]
        shape = [len(e) - 1 for e in self.ends]
        # The density between nodes is at most about that at the nodes around.
        highest = _highest_around(log_q.reshape(shape)).flatten()
        self.log_bound = highest.clone()
        self.acceptance = 1.0
        self._prepare(log_weight)
        excess = float(self._propose(PROBES)[1].max())
        self.log_bound = highest + max(0.02, 1.5 * excess)
        self._prepare(log_weight)

    def _prepare(self, log_weight: Tensor) -> None:
        log_mass = self.log_bound + log_weight
        total = log_mass.logsumexp(0)
        self.acceptance = math.exp(self.log_normalizer - float(total))
        self.cumulative = (log_mass - total).exp().cumsum(0)

    @property
    def support(self) -> constraints.Constraint:
        """Where values lie."""
        return self._support

    def expand(self, batch_shape: _size, _instance: Any = None) -> Any:
        """Independent copies, in a batch."""
        from pyro.distributions.torch_distribution import ExpandedDistribution

        return ExpandedDistribution(self, Size(batch_shape))

    def nodes(self) -> tuple[Tensor, Tensor]:
        """Nodes of a quadrature (n, d), and their probabilities (n,)."""
        x, log_weight = joint_rule(self.edges, ORDERS[len(self.edges)], self.events)
        return x, (self.exponent(x) + log_weight - self.log_normalizer).exp()

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of values (..., d), shape (...)."""
        inside = self._support.check(value)
        safe = torch.where(inside.unsqueeze(-1), value, self._inner.to(value)).to(PLACE)
        result = (self.exponent(safe) - self.log_normalizer).to(value)
        return torch.where(inside, result, -math.inf)

    def _propose(self, count: int) -> tuple[Tensor, Tensor]:
        """Proposals (n, d), and the logarithms of their probabilities of being accepted."""
        u = torch.rand(count, dtype=torch.float64)
        flat = torch.searchsorted(self.cumulative, u).clamp(max=len(self.cumulative) - 1)
        index = torch.unravel_index(flat, [len(e) - 1 for e in self.ends])
        noise = torch.rand(count, len(self.ends), dtype=torch.float64)
        x = torch.stack(
            [
                e[i] + (e[i + 1] - e[i]) * noise[:, d]
                for d, (e, i) in enumerate(zip(self.ends, index, strict=True))
            ],
            -1,
        )
        return x, self.exponent(x) - self.log_bound[flat]

    def sample(self, sample_shape: _size = Size()) -> Tensor:
        """Draws, of the given shape, then (d,)."""
        shape = Size(sample_shape)
        missing, parts = shape.numel(), []
        with torch.no_grad():
            while missing > 0:
                count = min(BATCH, int(1.1 * missing / self.acceptance) + 16)
                x, log_accept = self._propose(count)
                kept = x[torch.rand(count, dtype=torch.float64).log() < log_accept][:missing]
                parts.append(kept)
                missing -= len(kept)
        x = torch.cat(parts) if parts else torch.empty(0, len(self.ends), dtype=torch.float64)
        columns = [
            keep_inside(c.to(torch.get_default_dtype()), bound)
            for c, bound in zip(x.unbind(-1), self.bounds, strict=True)
        ]
        return torch.stack(columns, -1).reshape(*shape, len(self.ends))

    def entropy(self) -> Tensor:
        """Differential entropy, in nats."""
        x, p = self.nodes()
        log_q = self.exponent(x) - self.log_normalizer
        return -torch.where(p > 0, p * log_q, 0.0).sum().to(torch.get_default_dtype())

    @property
    def mean(self) -> Tensor:
        """Means, shape (d,)."""
        x, p = self.nodes()
        return (p @ x).to(torch.get_default_dtype())

    @property
    def variance(self) -> Tensor:
        """Variances, shape (d,)."""
        x, p = self.nodes()
        return (p @ (x - p @ x).square()).to(torch.get_default_dtype())

    def __repr__(self) -> str:
        return f"JointLaw(dim={len(self.edges)}, nodes={len(self.cumulative)})"


def tensor_nodes(edges: Sequence[Tensor], order: int) -> tuple[Tensor, Tensor]:
    """Nodes (n, d) of a product of rules, and the logarithms of their weights (n,)."""
    rules = [gauss(e, order) for e in edges]
    x = torch.cartesian_prod(*(node.flatten() for node, _ in rules))
    log_weight = torch.cartesian_prod(*(w.flatten().log() for _, w in rules)).sum(-1)
    return x, log_weight


def joint_rule(
    edges: Sequence[Tensor], order: int, events: Sequence[Statistic]
) -> tuple[Tensor, Tensor]:
    """Nodes (n, d) and the logarithms of their weights (n,), more of them where events end.

    Each node has a box around it, with its weight for a volume. Where a corner of the box differs
    from the node in an event, points spread over the box stand for the node. They are reflected at
    its centre, so that of a box that is cut through its centre exactly a half is on either side,
    as for a < b where both variables have the same nodes.

    Args:
        edges: Of panels, for every variable.
        order: Nodes in a panel.
        events: Statistics whose jumps are no edges of panels.
    """
    x, log_weight = tensor_nodes(edges, order)
    if not events:
        return x, log_weight
    dim = len(edges)
    ends = [box_edges(e, order) for e in edges]
    shape, size = [len(e) for e in ends], [len(e) - 1 for e in ends]
    corners = torch.cartesian_prod(*ends)
    crossed = torch.zeros(len(x), dtype=torch.bool)
    for event in events:
        at_node = event.values(x)
        at_corner = event.values(corners).reshape(shape)
        for shift in itertools.product((0, 1), repeat=dim):
            part = at_corner[tuple(slice(s, s + n) for s, n in zip(shift, size, strict=True))]
            crossed |= part.flatten() != at_node
    index = torch.unravel_index(crossed.nonzero().squeeze(-1), size)
    steps = torch.tensor([2.0, 3.0, 5.0]).double().sqrt()[:dim]  # of a Kronecker sequence
    shares = torch.arange(1, POINTS[dim] // 2 + 1).double().unsqueeze(-1) * steps % 1
    shares = torch.cat([shares, 1 - shares])
    columns = [
        e[i].unsqueeze(-1) + (e[i + 1] - e[i]).unsqueeze(-1) * shares[:, d]
        for d, (e, i) in enumerate(zip(ends, index, strict=True))
    ]
    inner = torch.stack(columns, -1).reshape(-1, dim)
    log_inner = (log_weight[crossed] - math.log(len(shares))).repeat_interleave(len(shares))
    return torch.cat([x[~crossed], inner]), torch.cat([log_weight[~crossed], log_inner])


def box_edges(edges: Tensor, order: int) -> Tensor:
    """Edges that separate the nodes of a rule: as far apart as their weights."""
    _, weight = gauss(edges, order)
    inner = edges[:-1].unsqueeze(-1) + weight.cumsum(-1)[..., :-1]
    return torch.cat([torch.cat([edges[:-1].unsqueeze(-1), inner], -1).flatten(), edges[-1:]])


def _highest_around(log_q: Tensor) -> Tensor:
    """The largest of every entry of an array and its neighbours."""
    pool = {2: max_pool2d, 3: max_pool3d}[log_q.dim()]
    return pool(log_q[None, None], 3, stride=1, padding=1)[0, 0]


def joint_edges(law: LineLaw, points: Sequence[float], dim: int) -> Tensor:
    """Edges of panels by the quantiles of a variable's own law, and where densities may jump."""
    lower = torch.tensor(FINE if dim == 2 else COARSE).double()
    wanted = law.icdf(torch.cat([lower, torch.tensor([0.5]).double(), 1 - lower.flip(0)]))
    ends = [float(law.edges[0]), float(law.edges[-1])]
    bounds = [getattr(law.support, n, None) for n in ("lower_bound", "upper_bound")]
    # A joint law may reach farther than the variable's own.
    width = float(wanted[-1] - wanted[0])
    low = ends[0] if bounds[0] is not None else float(wanted[0]) - 0.5 * width
    high = ends[1] if bounds[1] is not None else float(wanted[-1]) + 0.5 * width
    fixed = torch.tensor(sorted({low, high, *points}), dtype=torch.float64)
    spread = float(wanted[-3] - wanted[2])
    far = (wanted.unsqueeze(-1) - fixed).abs().amin(-1) > 1e-3 * spread
    inner = wanted[far & (wanted > low) & (wanted < high)]
    return torch.cat([fixed, inner]).sort().values


def solve_joint(
    names: Sequence[str],
    statistics: Sequence[Statistic],
    start: Tensor,
    bases: Sequence[Distribution | None],
    edges: Sequence[Tensor],
    support: constraints.Constraint,
    bounds: Sequence[constraints.Constraint],
    shared: Sequence[Statistic] = (),
) -> JointLaw:
    """The law of largest entropy of two or three variables.

    Args:
        names: Of the variables, for errors.
        statistics: All statements, of draws (..., d).
        start: Multipliers to start from, shape (m,).
        bases: Measures of the variables; Lebesgue's where there is None.
        edges: Of panels, for every variable.
        support: The constraint on draws.
        bounds: The constraints on the variables.
        shared: Those of the statistics that may jump elsewhere than at edges.

    Raises:
        ValueError: If no law meets the statements, or it is too narrow for the quadrature.
    """
    for _ in range(FINER[len(edges)] + 1):
        law = _solve_on(names, statistics, start, bases, edges, support, bounds, shared)
        start, error = law.exponent.multipliers, _error(law)
        if error < CLOSE:
            return law
        edges = [torch.cat([e, (e[1:] + e[:-1]) / 2]).sort().values for e in edges]
    raise ValueError(
        f"Expected statements about {' and '.join(map(repr, names))} whose law a quadrature "
        f"resolves, got a law too narrow for it: a finer one differs by {error:.2g} deviations. "
        f"Take correlations farther from -1 and 1, or state less certain events."
    )


def _error(law: JointLaw) -> float:
    """How far a law is from its statements by another rule, in deviations, or from a mass of 1."""
    dim = len(law.edges)
    x, log_weight = joint_rule(law.edges, ORDERS[dim] + 4 - dim, law.events)
    p = (law.exponent(x) + log_weight - law.log_normalizer).exp()
    mass = float(p.sum())
    worst = abs(mass - 1)
    for statistic in law.exponent.statistics:
        values = statistic.values(x)
        average = float(p @ values) / mass
        spread = max(float(p @ (values - average).square()) ** 0.5, 1e-12)
        excess = average - statistic.level
        worst = max(worst, (max(excess, 0.0) if statistic.is_inequality else abs(excess)) / spread)
    return worst if math.isfinite(worst) else math.inf


def _solve_on(
    names: Sequence[str],
    statistics: Sequence[Statistic],
    start: Tensor,
    bases: Sequence[Distribution | None],
    edges: Sequence[Tensor],
    support: constraints.Constraint,
    bounds: Sequence[constraints.Constraint],
    shared: Sequence[Statistic],
) -> JointLaw:
    """The law by the nodes between these edges."""
    probe, _ = tensor_nodes(edges, 1)
    events = [s for s in shared if is_step(s.values(probe))]
    x, log_weight = joint_rule(edges, ORDERS[len(edges)], events)
    values = torch.stack([s.values(x) for s in statistics], -1)
    is_smooth = any(s.is_smooth for s in statistics)
    dual = Dual(
        values,
        torch.tensor([s.level for s in statistics]).double(),
        log_weight + Exponent((), start[:0], tuple(bases))(x),
        torch.tensor([s.is_inequality for s in statistics]),
        torch.stack([s.at(x) for s in statistics], -1) if is_smooth else None,
    )
    solution = dual.solve(start)
    if not solution.converged:
        worst = int(solution.violations.abs().argmax())
        got = statistics[worst].sign * float(solution.probabilities @ values[:, worst])
        raise ValueError(
            f"Expected statements about {' and '.join(map(repr, names))} that a law can meet "
            f"together, got some that it cannot: {statistics[worst].name} comes to {got:.4g} "
            f"instead of {statistics[worst].sign * statistics[worst].level:.4g} at best."
        )
    exponent = Exponent(tuple(statistics), solution.multipliers, tuple(bases))
    law = JointLaw(exponent, edges, support, bounds, events)
    if _is_open(law):
        raise ValueError(
            f"Expected statements about {' and '.join(map(repr, names))} for which there is a law "
            f"of largest entropy, got some that leave a tail open. Use rank_correlations, "
            f"bound the supports, or state a mean and an sd of each variable."
        )
    return law


def _is_open(law: JointLaw) -> bool:
    """Whether there is density far beyond the nodes, where supports go on."""
    farther = []
    for edges, bound in zip(law.edges, law.bounds, strict=True):
        width = float(edges[-1] - edges[0])
        steps = width * 2.0 ** torch.arange(-2, 10).double()
        below = [] if hasattr(bound, "lower_bound") else [edges[0] - steps.flip(0)]
        above = [] if hasattr(bound, "upper_bound") else [edges[-1] + steps]
        farther.append(torch.cat([*below, edges[:: max(1, len(edges) // 12)], edges[-1:], *above]))
    farther = [e.unique() for e in farther]
    x, log_weight = tensor_nodes(farther, 2)
    outside = torch.zeros(len(x), dtype=torch.bool)
    for column, edges in zip(x.unbind(-1), law.edges, strict=True):
        outside |= (column < edges[0]) | (column > edges[-1])
    if not bool(outside.any()):
        return False
    log_mass = (law.exponent(x[outside]) + log_weight[outside]).logsumexp(0)
    return float(log_mass) - law.log_normalizer > math.log(LEAST_TAIL)
