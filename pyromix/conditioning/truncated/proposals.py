r"""Proposals for normals within linear constraints, tilted so that most draws are accepted.

A proposal draws from a truncated normal that is easy, with its mean moved by :math:`\mu`, and
weighs a draw z by :math:`\exp \psi(z, \mu)`, the ratio of the standard normal within the
constraints to the proposal. The weight's mean is the normaliser. With :math:`\mu` chosen to
minimise :math:`\sup_z \psi(z, \mu)` (Botev 2017, The normal law under linear restrictions), the
supremum is a close bound of all weights, and accepting with probability
:math:`\exp(\psi - \sup \psi)` gives exact draws. Two proposals differ in what is easy:

`TiltedBox`
    coordinates within a box; further constraints H z <= h are met by chance. Then
    :math:`\mu = -H^T \lambda` for their multipliers, and every :math:`\lambda \ge 0` gives a
    bound.
`TiltedSequence`
    independent rows, one after the other, each an interval that depends on those before; further
    dependent rows are met by chance.

All tensors are float64; k counts components, T coordinates.
"""

__all__ = ["Proposal", "TiltedBox", "TiltedSequence"]

import math
from collections.abc import Callable
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from .interval import draw_from_interval, interval_moments, legendre, log_interval_probability
from .newton import NEWTON_STEPS, apply, line_search, newton_step

# The barrier's last weight: it costs the bound, and so the acceptance, this much a constraint.
BARRIER_WEIGHTS = (1.0, 1e-1, 1e-2, 1e-3, 1e-4)
# Newton's method stops at a squared decrement (error of the objective) of this size.
DECREMENT = 1e-14
# Added to bounds, far above the error that Newton's method leaves.
BOUND_ALLOWANCE = 1e-6
RANK_TOLERANCE = 1e-9


class Proposal:
    """What the proposals share.

    Attributes:
        name: Of the route that draws from it.
        log_bound: Upper bounds of the logarithms of weights, shape (k,); infinite where no tilt
            was found.
        num_uniforms: How many uniform numbers make a draw.
    """

    name: ClassVar[str]
    log_bound: Tensor
    num_uniforms: int

    def propose(self, index: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """Draws for components.

        Args:
            index: Components, shape (n,).
            uniform: Numbers in [0, 1], shape (n, num_uniforms).

        Returns:
            Points of shape (n, T), and the logarithms of their weights, shape (n,), minus
            infinity outside the constraints.
        """
        raise NotImplementedError


class TiltedBox(Proposal):
    """Coordinates within a box, further constraints by chance.

    Args:
        low: Lower ends of the box, shape (k, T).
        high: Upper ends, shape (k, T).
        rows: H of the constraints H z <= h, shape (k, c, T).
        bounds: h, shape (k, c).
    """

    name = "box"

    def __init__(self, low: Tensor, high: Tensor, rows: Tensor, bounds: Tensor) -> None:
        self._low, self._high, self._rows, self._bounds = low, high, rows, bounds
        self.num_uniforms = low.shape[-1]
        multipliers = self._solve()
        self._tilt = -apply(rows.mT, multipliers)
        self._log_mass = self._log_partition(self._tilt)
        bound = self._log_mass + (multipliers * bounds).sum(-1)
        self.log_bound = torch.where(bound.isfinite(), bound, math.inf)

    def propose(self, index: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """Draws for components; see `Proposal.propose`."""
        tilt = self._tilt[index]
        z = tilt + draw_from_interval(self._low[index] - tilt, self._high[index] - tilt, uniform)
        log_weight = self._log_mass[index] - (tilt * z).sum(-1)
        return z, _keep_inside(log_weight, z, self._rows, self._bounds, index)

    def _log_partition(self, tilt: Tensor) -> Tensor:
        """Logarithm of the integral of exp(tilt z) N(z; 0, I) over the box, shape (k,)."""
        mass = log_interval_probability(self._low - tilt, self._high - tilt)
        return (mass + 0.5 * tilt.square()).sum(-1)

    def _solve(self) -> Tensor:
        """Multipliers that minimise the bound, a convex function, by Newton's method."""
        rows, bounds = self._rows, self._bounds
        x = torch.ones_like(bounds)
        if rows.shape[1] == 0:
            return x

        def objective(x: Tensor, weight: float) -> Tensor:
            value = self._log_partition(-apply(rows.mT, x)) + (x * bounds).sum(-1)
            return torch.where((x > 0).all(-1), value - weight * x.log().sum(-1), math.inf)

        for weight in BARRIER_WEIGHTS:
            for _ in range(NEWTON_STEPS):
                tilt = -apply(rows.mT, x)
                mean, variance = interval_moments(self._low - tilt, self._high - tilt)
                gradient = bounds - apply(rows, tilt + mean) - weight / x
                hessian = (rows * variance.unsqueeze(-2)) @ rows.mT
                hessian = hessian + torch.diag_embed(weight / x.square())
                step, decrement = newton_step(hessian, gradient)
                if bool((decrement < 1e-8).all()):
                    break
                x = line_search(x, step, decrement, partial(objective, weight=weight))
        return x


class TiltedSequence(Proposal):
    r"""Rows one after the other, in an order that puts the unlikely first.

    The rows, in the basis that orthogonalises the first of each independent set, form a lower
    triangle, so that row c bounds coordinate c given those before.

    Args:
        rows: Constraints' rows of unit length, shape (k, p, T), of the same rank everywhere.
        low: Lower bounds, shape (k, p).
        high: Upper bounds, shape (k, p).
        rank: Number of independent rows.
        interior: A point strictly inside, shape (k, T); needed if rank < p.
    """

    name = "sequential"

    def __init__(
        self, rows: Tensor, low: Tensor, high: Tensor, rank: int, interior: Tensor | None = None
    ) -> None:
        basis, coefficients, order = _order_rows(rows, low, high, rank)
        self._basis = basis  # (k, rank, T), orthonormal rows
        self.num_uniforms = rank
        chosen, others = order[:, :rank], order[:, rank:]
        triangle = _gather_rows(coefficients, chosen)
        scale = triangle.diagonal(dim1=-2, dim2=-1)
        self._below = torch.tril(triangle / scale.unsqueeze(-1), -1)  # (k, rank, rank)
        self._low, self._high = low.gather(1, chosen) / scale, high.gather(1, chosen) / scale
        extra = _gather_rows(coefficients, others)
        extra_low, extra_high = low.gather(1, others), high.gather(1, others)
        self._rows = torch.cat([extra, -extra], 1)
        self._bounds = torch.cat([extra_high, -extra_low], 1)
        self._tilt = torch.zeros_like(self._low)
        self.is_product = others.shape[1] == 0 and not bool((self._below.abs() > 1e-12).any())
        if self.is_product:
            self.log_bound = log_interval_probability(self._low, self._high).sum(-1)
            return
        start = None if interior is None else apply(basis, interior)
        self.log_bound = self._solve(start) + BOUND_ALLOWANCE

    def propose(self, index: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """Draws for components; see `Proposal.propose`."""
        low, high, tilt = self._low[index], self._high[index], self._tilt[index]
        y = torch.zeros_like(uniform)
        log_weight = uniform.new_zeros(len(index))
        for c in range(self.num_uniforms):
            mean = tilt[:, c]
            shift = mean + (self._below[index, c, :c] * y[:, :c]).sum(-1)
            a, b = low[:, c] - shift, high[:, c] - shift
            if c == self.num_uniforms - 1:
                a, b = self._narrow(a, b, y, mean, index)
            y[:, c] = mean + draw_from_interval(a, b, uniform[:, c])
            log_weight += log_interval_probability(a, b) + mean * (0.5 * mean - y[:, c])
        log_weight = _keep_inside(log_weight, y, self._rows, self._bounds, index)
        basis = self._basis[index]
        z = apply(basis.mT, y)
        if basis.shape[-2] < basis.shape[-1]:  # nothing restricts the orthogonal complement
            noise = torch.randn_like(z)
            z = z + noise - apply(basis.mT, apply(basis, noise))
        return z, log_weight

    def _narrow(
        self, low: Tensor, high: Tensor, y: Tensor, mean: Tensor, index: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What the dependent rows leave of the last coordinate's interval (n,), given the others.

        They are then met by chance in all coordinates but one. The weight becomes smaller, so
        that its bound holds still, and varies less.
        """
        if self._rows.shape[1] == 0:
            return low, high
        rest = self._bounds[index]
        rest = rest - (apply(self._rows[index, :, :-1], y[:, :-1]) if y.shape[1] > 1 else 0.0)
        slope = self._rows[index, :, -1]
        end = rest / slope - mean.unsqueeze(-1)
        high = torch.minimum(high, torch.where(slope > 0, end, math.inf).amin(-1))
        low = torch.maximum(low, torch.where(slope < 0, end, -math.inf).amax(-1))
        # A draw from nothing has no weight; any number will do.
        return low, torch.maximum(high, low)

    def two_row_log_probability(self) -> Tensor:
        """Normaliser of two rows without tilt or chance, by quadrature; shape (k,)."""
        slope = self._below[:, 1, :1]
        a, b = self._low, self._high
        peak = torch.zeros_like(a[:, 0]).clamp(a[:, 0], b[:, 0])

        def integrand(t: Tensor) -> Tensor:
            shift = slope * t
            inner = log_interval_probability(a[:, 1:] - shift, b[:, 1:] - shift)
            return inner - 0.5 * t.square() - 0.5 * math.log(2 * math.pi)

        return _integrate_log_concave(integrand, peak, a[:, 0], b[:, 0])

    def inner_points(self) -> Tensor:
        """Points strictly between independent rows, shape (k, T)."""
        return apply(self._basis.mT, self._sequential_means())

    def _solve(self, start: Tensor | None) -> Tensor:
        """Sets the tilt; returns the bound.

        The least of psi over the tilt is, in z, a concave function that falls to minus infinity
        at the ends of the intervals; its maximum is the saddle point.
        """
        below, rows, bounds = self._below, self._rows, self._bounds
        finite = bounds < math.inf
        eye = torch.eye(self.num_uniforms, dtype=below.dtype, device=below.device)
        z = self._sequential_means() if start is None else start
        tilt = self._best_tilt(z, torch.zeros_like(z), 100)

        def objective(z: Tensor, weight: float, current: Tensor) -> Tensor:
            slack = torch.where(finite, bounds - apply(rows, z), 1.0)
            shift = apply(below, z)
            inside = ((z > self._low - shift) & (z < self._high - shift)).all(-1)
            inside &= (slack > 0).all(-1)
            safe = torch.where(inside.unsqueeze(-1), z, current)
            best = self._best_tilt(safe, tilt, 30)
            value = self._psi(safe, best) + weight * slack.clamp(min=1e-300).log().sum(-1)
            return torch.where(inside, -value, math.inf)

        bound = torch.full_like(z[:, 0], math.inf)
        for weight in BARRIER_WEIGHTS if rows.shape[1] else BARRIER_WEIGHTS[-1:]:
            for _ in range(NEWTON_STEPS):
                shift = apply(below, z) + tilt
                mean, variance = interval_moments(self._low - shift, self._high - shift)
                pull = finite / torch.where(finite, bounds - apply(rows, z), 1.0)
                gradient = tilt - apply(below.mT, mean) + weight * apply(rows.mT, pull)
                cross = below.mT * (variance - 1).unsqueeze(-2) - eye
                hessian = (below.mT * (1 - variance).unsqueeze(-2)) @ below
                hessian = hessian + (cross / variance.unsqueeze(-2)) @ cross.mT
                pulled = rows * pull.unsqueeze(-1)
                hessian = hessian + weight * pulled.mT @ pulled
                step, decrement = newton_step(hessian, gradient)
                if bool((decrement < DECREMENT).all()):
                    break
                z = line_search(z, step, decrement, partial(objective, weight=weight, current=z))
                tilt = self._best_tilt(z, tilt, 30)
            bound = self._psi(z, tilt) + weight * finite.sum(-1)
        self._tilt = tilt
        return torch.where((decrement < 1e-8) & bound.isfinite(), bound, math.inf)

    def _psi(self, z: Tensor, tilt: Tensor) -> Tensor:
        shift = apply(self._below, z) + tilt
        mass = log_interval_probability(self._low - shift, self._high - shift)
        return (mass + tilt * (0.5 * tilt - z)).sum(-1)

    def _best_tilt(self, z: Tensor, tilt: Tensor, steps: int) -> Tensor:
        """The tilt that moves the mean of every interval to z, by damped Newton's method."""
        shift = apply(self._below, z)
        low, high = self._low - shift, self._high - shift
        for _ in range(steps):
            mean, variance = interval_moments(low - tilt, high - tilt)
            gradient = tilt + mean - z
            decrement = gradient.abs() / variance.sqrt()
            if bool((decrement < 1e-11).all()):
                break
            # A log-concave law has a self-concordant cumulant function: this step cannot fail.
            damping = torch.where(decrement > 0.25, 1 + decrement, 1.0)
            tilt = tilt - gradient / (variance * damping)
        return tilt

    def _sequential_means(self) -> Tensor:
        """The mean of every interval given the means before."""
        z = torch.zeros_like(self._low)
        for c in range(self.num_uniforms):
            shift = (self._below[:, c, :c] * z[:, :c]).sum(-1)
            z[:, c] = interval_moments(self._low[:, c] - shift, self._high[:, c] - shift)[0]
        return z


def _gather_rows(matrix: Tensor, index: Tensor) -> Tensor:
    """Rows (k, i) of matrices (k, p, j)."""
    return matrix.gather(1, index.unsqueeze(-1).expand(-1, -1, matrix.shape[-1]))


def _keep_inside(
    log_weight: Tensor, z: Tensor, rows: Tensor, bounds: Tensor, index: Tensor
) -> Tensor:
    """Minus infinity where a point (n, T) breaks a constraint of its component."""
    if rows.shape[1] == 0:
        return log_weight
    value = z @ rows[0].mT if len(rows) == 1 else apply(rows[index], z)
    return torch.where((value <= bounds[index]).all(-1), log_weight, -math.inf)


def _order_rows(
    rows: Tensor, low: Tensor, high: Tensor, rank: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Orders rows so that the least likely interval, given those before, comes first.

    Returns:
        An orthonormal basis (k, rank, T), the rows' coefficients in it (k, p, rank), and the
        order (k, p): independent rows first.
    """
    rest = rows.clone()
    taken = torch.zeros_like(low, dtype=torch.bool)
    expected = torch.zeros_like(low)  # of every row, given the means of those chosen
    basis: list[Tensor] = []
    coefficients: list[Tensor] = []
    order: list[Tensor] = []
    for _ in range(rank):
        # What is left of a row's length is the standard deviation of what is left of its value.
        left = rest.norm(dim=-1)
        usable = ~taken & (left > RANK_TOLERANCE)
        spread = left.clamp(min=RANK_TOLERANCE)
        a, b = (low - expected) / spread, (high - expected) / spread
        chance = torch.where(usable, log_interval_probability(a, b), math.inf)
        pick = chance.argmin(-1, keepdim=True)
        direction = _gather_rows(rest, pick) / spread.gather(1, pick).unsqueeze(-1)
        # A second pass of orthogonalisation keeps the basis orthonormal to rounding.
        for earlier in basis:
            direction = direction - (direction * earlier).sum(-1, keepdim=True) * earlier
        direction = direction / direction.norm(dim=-1, keepdim=True)
        share = (rows * direction).sum(-1)
        mean = interval_moments(a.gather(1, pick), b.gather(1, pick))[0]
        expected = expected + share * mean
        rest = rest - (rest * direction).sum(-1, keepdim=True) * direction
        taken = taken.scatter(1, pick, True)
        basis.append(direction)
        coefficients.append(share)
        order.append(pick)
    left_over = torch.where(taken, 1, 0).argsort(dim=-1, stable=True)[:, : low.shape[1] - rank]
    return torch.cat(basis, 1), torch.stack(coefficients, -1), torch.cat([*order, left_over], 1)


def _integrate_log_concave(
    integrand: Callable[[Tensor], Tensor], peak: Tensor, low: Tensor, high: Tensor, nodes: int = 64
) -> Tensor:
    """Log of the integral of exp(integrand) over (low, high), each of shape (k,).

    The mode is bracketed and found by golden section; on either side, the range ends where the
    integrand has fallen by 40, found by bisection.
    """
    ratio = (math.sqrt(5) - 1) / 2

    def at(t: Tensor) -> Tensor:
        value = integrand(t.unsqueeze(-1)).squeeze(-1)
        return torch.where(value.isnan(), -math.inf, value)

    # Minus a quarter of t squared bounds how far the mode can be.
    best = at(peak)
    reach = 60.0 + 2 * peak.abs() + torch.where(best > -math.inf, best.abs().sqrt() * 2, 0.0)
    a, b = torch.maximum(low, peak - reach), torch.minimum(high, peak + reach)
    left, right = a.clone(), b.clone()
    for _ in range(100):
        c, d = right - ratio * (right - left), left + ratio * (right - left)
        down = at(c) > at(d)
        left, right = torch.where(down, left, c), torch.where(down, d, right)
    mode = 0.5 * (left + right)
    top = at(mode)

    def edge(end: Tensor) -> Tensor:
        inner, outer = mode, end
        for _ in range(60):
            middle = 0.5 * (inner + outer)
            fallen = at(middle) < top - 40.0
            inner, outer = torch.where(fallen, inner, middle), torch.where(fallen, middle, outer)
        return outer

    points, weights = legendre(nodes, low.device)
    total = []
    for start, stop in ((edge(a), mode), (mode, edge(b))):
        half = 0.5 * (stop - start).unsqueeze(-1)
        t = start.unsqueeze(-1) + half * (points + 1)
        total.append(integrand(t) + (half * weights).log())
    return torch.logsumexp(torch.cat(total, -1), -1)
