"""The law of two or three variables that depend on each other."""

__all__ = ["JointLaw", "solve_joint"]

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
from .panels import gauss
from .statistics import Exponent, Statistic

# Probabilities at whose quantiles panels end, besides where densities may jump.
FINE = (1e-10, 1e-7, 1e-5, 1e-3, 0.01, 0.04, 0.1, 0.2, 0.3, 0.4)
COARSE = (1e-9, 1e-6, 1e-3, 0.02, 0.1, 0.3)
ORDERS = {2: 7, 3: 4}
PROBES = 20_000  # draws that test the bound of rejection
BATCH = 100_000
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
    """

    has_rsample = False
    arg_constraints: dict[str, Any] = {}  # noqa: RUF012 - as PyTorch declares it

    def __init__(
        self,
        exponent: Exponent,
        edges: Sequence[Tensor],
        support: constraints.Constraint,
        bounds: Sequence[constraints.Constraint],
    ) -> None:
        self.exponent, self.edges, self._support = exponent, tuple(edges), support
        self.bounds = tuple(bounds)
        dim = len(edges)
        super().__init__(event_shape=Size((dim,)), validate_args=False)
        self.ends = [box_edges(e, ORDERS[dim]) for e in self.edges]
        x, log_weight = tensor_nodes(self.edges, ORDERS[dim])
        log_q = exponent(x)
        self.log_normalizer = float((log_q + log_weight).logsumexp(0))
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
        x, log_weight = tensor_nodes(self.edges, ORDERS[len(self.edges)])
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

    Raises:
        ValueError: If no law meets the statements.
    """
    x, log_weight = tensor_nodes(edges, ORDERS[len(edges)])
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
    law = JointLaw(exponent, edges, support, bounds)
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
