r"""Points of greatest density of mixtures of normals, within linear inequalities.

With the components' shares :math:`r_k` at a point, the sum of log-densities
:math:`\sum_k r_k \log N(x; m_k, P_k^{-1})` touches the mixture's log-density from below, up to a
constant. Its maximum over the region, a quadratic problem, is at least as dense: steps to it never
lead down. Newton's steps are taken where they lead higher. Categories of further columns are
chosen one column after the other, given the point and the others, which does not lead down either.
The highest of several ends is the result: no search of this kind can promise that there is none
higher.
"""

__all__ = ["ModeSearch"]

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ..numerics.diagonal_density import LOG_2PI

# Searches start from so many places of an entry.
STARTS = 12
FIRST_STEPS, FINALISTS = 6, 3
# They end if no step gains more than this, in nats, or after so many.
LEAST_GAIN = 1e-13
MAX_STEPS = 1000
# Steps are also tried so many times as long.
STRETCH = 4.0
# With more dimensions than this, Newton's steps are not tried: they need matrices.
MOST_FOR_NEWTON = 128
# Rounds of steps and of new categories.
MAX_ROUNDS = 50
# Numbers that are worked on at once.
BLOCK_NUMBERS = 2**23


@dataclass(frozen=True)
class ModeSearch:
    """A search of E mixtures of K normals in q dimensions, all in float64."""

    log_weight: Tensor
    """Log-weights, shape (E, K); they need not be normalised."""
    loc: Tensor
    """Means, shape (E, K, q)."""
    scale: Tensor | None
    """Standard deviations of independent coordinates, shape (E or 1, K, q)."""
    tril: Tensor | None
    """Cholesky factors of covariances, where there is no scale, shape (E or 1, K, q, q)."""
    tables: tuple[Tensor, ...]
    """Log-weights of the categories of further columns, each of shape (E or 1, K, n)."""
    rows: Tensor
    """Inequalities low <= A x <= high: A, shape (p, q)."""
    low: Tensor
    """Shape (E, p)."""
    high: Tensor
    """Shape (E, p)."""

    def blocks(self, count: int) -> list["ModeSearch"]:
        """Searches of some of the entries each, for so many points of an entry."""
        entries, k, q = self.loc.shape
        each = k * q * max(count, 1 if self.tril is None else q)
        size = max(1, BLOCK_NUMBERS // max(1, each))

        def part(t: Tensor | None, start: int) -> Tensor | None:
            return t if t is None or len(t) == 1 else t[start : start + size]

        found = []
        for start in range(0, entries, size):
            names = ("log_weight", "loc", "scale", "tril", "low", "high")
            parts = {name: part(getattr(self, name), start) for name in names}
            tables = tuple(t if len(t) == 1 else t[start : start + size] for t in self.tables)
            found.append(replace(self, tables=tables, **parts))  # type: ignore[arg-type]
        return found

    def run(self, x: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Climbs from the best of some points and of the components' own peaks.

        Args:
            x: Points within the inequalities, shape (E, C, q).
            codes: Their categories, shape (E, C, columns).

        Returns:
            Points (E, S, q) and categories (E, S, columns), the best first.
        """
        found, first = [], 0
        for search in self.blocks(max(x.shape[1], 2 * STARTS)):
            entries = slice(first, first + len(search.loc))
            found.append(search._run(x[entries], codes[entries]))
            first = entries.stop
        points, categories = zip(*found, strict=True)
        return torch.cat(points), torch.cat(categories)

    def _run(self, x: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        peaks, their_codes = self._peaks()
        x, codes = torch.cat([x, peaks], 1), torch.cat([codes, their_codes], 1)
        density = self.log_density(x, self._weights(codes))
        best = density.topk(min(STARTS, x.shape[1]), 1).indices
        x, codes = _take(x, best), _take(codes, best)
        # All climb a little; those that are highest then go on to the end.
        x = self._climb(x, self._weights(codes), FIRST_STEPS)
        codes = self._choose(x, codes)
        density = self.log_density(x, self._weights(codes))
        best = density.topk(min(FINALISTS, x.shape[1]), 1).indices
        x, codes = _take(x, best), _take(codes, best)
        for _ in range(MAX_ROUNDS):
            x = self._climb(x, self._weights(codes), MAX_STEPS)
            changed = self._choose(x, codes)
            if torch.equal(changed, codes):
                break
            codes = changed
        order = self.log_density(x, self._weights(codes)).argsort(1, descending=True)
        return _take(x, order), _take(codes, order)

    def log_density(self, x: Tensor, log_weight: Tensor) -> Tensor:
        """Log-density of points (E, S, q), given log-weights (E, S, K): shape (E, S)."""
        return self._joint(x, log_weight).logsumexp(-1)

    # ---- parts ------------------------------------------------------------------------------

    def _joint(self, x: Tensor, log_weight: Tensor) -> Tensor:
        """Log-weights plus log-densities of the components, shape (E, S, K)."""
        white, log_scale = self._whiten(x.unsqueeze(2) - self.loc.unsqueeze(1))
        constant = 0.5 * x.shape[-1] * LOG_2PI
        return log_weight - log_scale.unsqueeze(1) - 0.5 * white.square().sum(-1) - constant

    def _whiten(self, miss: Tensor) -> tuple[Tensor, Tensor]:
        """Differences (E, S, K, q) in standard deviations, and log-determinants (E or 1, K)."""
        if self.scale is not None:
            return miss / self.scale.unsqueeze(1), self.scale.log().sum(-1)
        assert self.tril is not None
        # Columns of one right side for every component.
        white = torch.linalg.solve_triangular(self.tril, miss.movedim(1, -1), upper=False)
        log_scale = self.tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        return white.movedim(-1, 1), log_scale

    def _weights(self, codes: Tensor) -> Tensor:
        """Log-weights of the components given categories (E, S, columns): shape (E, S, K)."""
        total = self.log_weight.unsqueeze(1).expand(-1, codes.shape[1], -1)
        for table, code in zip(self.tables, codes.unbind(-1), strict=True):
            total = total + self._of_codes(table, code)
        return total

    def _of_codes(self, table: Tensor, code: Tensor) -> Tensor:
        """Entries of a table for codes (E, S), shape (E, S, K)."""
        k, count = table.shape[1:]
        every = table.expand(len(code), k, count).mT  # (E, n, K)
        return every.gather(1, code.unsqueeze(-1).expand(-1, -1, k))

    def _choose(self, x: Tensor, codes: Tensor) -> Tensor:
        """Better categories (E, S, columns) of points, one column after the other."""
        codes = codes.clone()
        joint = self._joint(x, self._weights(codes))
        for column, table in enumerate(self.tables):
            own = codes[..., column]
            others = joint - self._of_codes(table, own)
            scores = _log_product(others, table)  # (E, S, n)
            present = scores.gather(-1, own.unsqueeze(-1)).squeeze(-1)
            best, code = scores.max(-1)
            own = torch.where(best > present + LEAST_GAIN, code, own)
            joint = others + self._of_codes(table, own)
            codes[..., column] = own
        return codes

    def _peaks(self) -> tuple[Tensor, Tensor]:
        """Points where components are densest, of those that are so most: (E, S, q), and codes."""
        _, log_scale = self._whiten(torch.zeros_like(self.loc[:, None]))
        height = self.log_weight - log_scale
        likeliest = [table.max(-1) for table in self.tables]
        for best, _ in likeliest:
            height = height + best
        chosen = height.topk(min(2 * STARTS, height.shape[-1]), -1).indices  # (E, S)
        codes = chosen.new_zeros(*chosen.shape, len(self.tables))
        for column, (_, code) in enumerate(likeliest):
            codes[..., column] = code.expand(len(chosen), -1).gather(1, chosen)
        x = _take(self.loc, chosen)
        one = torch.nn.functional.one_hot(chosen, height.shape[-1]).to(x)
        return (self._nearest(x, *self._precision(one)) if len(self.rows) else x), codes

    def _precision(self, share: Tensor) -> tuple[Tensor, Tensor | None]:
        """Sums of the components' precisions, weighted by shares (E, S, K).

        Returns:
            Of independent coordinates their sums (E, S, q), and None; else Cholesky factors
            (E, S, q, q) of the sums, twice.
        """
        if self.scale is not None:
            return share @ self.scale.square().reciprocal(), None
        total = (share @ self._precisions).unflatten(-1, 2 * (self.loc.shape[-1],))
        return total, torch.linalg.cholesky(total)

    @cached_property
    def _precisions(self) -> Tensor:
        """Inverse covariances of the components, shape (E or 1, K, q q)."""
        assert self.tril is not None
        return torch.cholesky_inverse(self.tril).flatten(-2)

    def _climb(self, x: Tensor, log_weight: Tensor, steps: int) -> Tensor:
        """Points (E, S, q) at least as dense, at the ends of climbs of at most so many steps."""
        joint = self._joint(x, log_weight)
        density = joint.logsumexp(-1)
        active = torch.ones_like(density, dtype=torch.bool)
        for _ in range(steps):
            tried = self._steps(x, joint.softmax(-1), active)
            joints = torch.stack([self._joint(t, log_weight) for t in tried])
            densities = joints.logsumexp(-1)
            best, which = densities.max(0)
            gain = best - density
            active = active & (gain > LEAST_GAIN)
            if not bool(active.any()):
                break
            x = torch.where(active.unsqueeze(-1), _best(torch.stack(tried), which), x)
            joint = torch.where(active.unsqueeze(-1), _best(joints, which), joint)
            density = torch.where(active, best, density)
        return x

    def _steps(self, x: Tensor, share: Tensor, active: Tensor) -> list[Tensor]:
        """Points (E, S, q) to try next, given shares of the components (E, S, K)."""
        total, factor = self._precision(share)
        pull = self._pull(x)
        gradient = (share.unsqueeze(-1) * pull).sum(-2)
        sure = self._towards(x, gradient, total, factor, active)
        longer = torch.full_like(active, STRETCH, dtype=x.dtype)
        if len(self.rows):
            longer = torch.minimum(longer, self._room(x, sure))
        tried = [x + sure, x + longer.unsqueeze(-1) * sure]
        if x.shape[-1] <= MOST_FOR_NEWTON:
            own = total.diag_embed() if factor is None else total
            spread = (share.unsqueeze(-1) * pull).mT @ pull - gradient.unsqueeze(-1) * (
                gradient.unsqueeze(-2)
            )
            curvature = own - spread
            root, failed = torch.linalg.cholesky_ex(curvature)
            good = (failed == 0) & active
            root = torch.where(good[..., None, None], root, torch.eye(x.shape[-1]).to(root))
            newton = self._towards(x, gradient, curvature, root, good)
            tried.append(x + torch.where(good.unsqueeze(-1), newton, sure))
        return tried

    def _towards(
        self, x: Tensor, gradient: Tensor, total: Tensor, factor: Tensor | None, active: Tensor
    ) -> Tensor:
        """Steps (E, S, q) to where quadratics with given matrices are highest; see `_nearest`."""
        if factor is None:
            step = gradient / total
        else:
            step = torch.cholesky_solve(gradient.unsqueeze(-1), factor).squeeze(-1)
        return self._nearest(x + step, total, factor, active) - x if len(self.rows) else step

    def _pull(self, x: Tensor) -> Tensor:
        """Gradients of the components' log-densities, shape (E, S, K, q)."""
        miss = self.loc.unsqueeze(1) - x.unsqueeze(2)  # (E, S, K, q)
        if self.scale is not None:
            return miss / self.scale.square().unsqueeze(1)
        assert self.tril is not None
        return torch.cholesky_solve(miss.movedim(1, -1), self.tril).movedim(-1, 1)

    def _room(self, x: Tensor, step: Tensor) -> Tensor:
        """How many times steps (E, S, q) may be taken within the inequalities, at least once."""
        along, at = step @ self.rows.mT, x @ self.rows.mT  # (E, S, p)
        bound = torch.where(along > 0, self.high.unsqueeze(1), self.low.unsqueeze(1))
        times = torch.where(along == 0, math.inf, (bound - at) / along)
        return times.amin(-1).clamp(min=1.0)

    def _nearest(
        self,
        target: Tensor,
        total: Tensor,
        factor: Tensor | None,
        active: Tensor | None = None,
    ) -> Tensor:
        """Points within the inequalities nearest to others (E, S, q), in the metric of matrices.

        Args:
            target: The others.
            total: The matrices (E, S, q, q), or their diagonals (E, S, q).
            factor: Cholesky factors of them; None for diagonal ones.
            active: Points that matter, shape (E, S).
        """
        if factor is None and bool(((self.rows != 0).sum(-1) == 1).all()):
            return self._clamp(target)
        level = target @ self.rows.mT
        outside = (level < self.low.unsqueeze(1)) | (level > self.high.unsqueeze(1))
        moved = target.clone()
        wanted = outside.any(-1) if active is None else outside.any(-1) & active
        for e, s in wanted.nonzero().tolist():
            root = total[e, s].sqrt().diag() if factor is None else factor[e, s]
            ends = (end[e] - level[e, s] for end in (self.low, self.high))
            moved[e, s] += _project(root, self.rows, *ends)
        return moved

    def _clamp(self, x: Tensor) -> Tensor:
        """Points (E, S, q) with coordinates within bounds, where every row is about one."""
        low = torch.full_like(self.loc[:, 0], -math.inf)
        high = -low
        for row, below, above in zip(self.rows, self.low.mT, self.high.mT, strict=True):
            d = int(row.abs().argmax())
            ends = torch.stack([below, above]) / row[d]
            low[:, d] = torch.maximum(low[:, d], ends.amin(0))
            high[:, d] = torch.minimum(high[:, d], ends.amax(0))
        return torch.minimum(torch.maximum(x, low.unsqueeze(1)), high.unsqueeze(1))


def _log_product(joint: Tensor, table: Tensor) -> Tensor:
    """Log of the sum over components of exp of both: (E, S, n), of (E, S, K) and (E or 1, K, n).

    A product of matrices. Shares that float64 has no numbers for are lost: they are no maxima.
    """
    high, top = joint.amax(-1, keepdim=True), table.amax(-2, keepdim=True)
    high, top = (torch.where(peak.isfinite(), peak, 0.0) for peak in (high, top))
    return ((joint - high).exp() @ (table - top).exp()).log() + high + top


def _take(t: Tensor, index: Tensor) -> Tensor:
    """Entries (E, S, *T) of a tensor (E, C, *T) at indices (E, S)."""
    return t.gather(1, index.unsqueeze(-1).expand(*index.shape, t.shape[-1]))


def _best(t: Tensor, which: Tensor) -> Tensor:
    """Entries (E, S, *T) of a tensor (tries, E, S, T) at numbers of tries (E, S)."""
    return t.gather(0, which[None, ..., None].expand(1, *t.shape[1:])).squeeze(0)


def _project(root: Tensor, rows: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The smallest step that leads into inequalities, in the metric of a matrix L L^T.

    By least squares with coefficients that are not negative (Lawson and Hanson 1974, section 23).

    Args:
        root: L, shape (q, q).
        rows: A, shape (p, q).
        low: Lower bounds of what steps change of A x, shape (p,).
        high: Upper bounds, shape (p,).

    Returns:
        The step, shape (q,).
    """
    from scipy.optimize import nnls  # here: it takes long to import

    both = torch.cat([rows, -rows])
    least = torch.cat([low, -high])
    kept = least.isfinite()
    both, least = both[kept], least[kept]
    white = torch.linalg.solve_triangular(root, both.mT, upper=False)  # (q, p)
    unit = white.norm(dim=0).clamp(min=torch.finfo(white.dtype).tiny)
    white, least = white / unit, least / unit
    size = float(least.abs().amax()) or 1.0
    system = torch.cat([white, (least / size).unsqueeze(0)]).cpu().numpy()
    side = np.zeros(len(system))
    side[-1] = 1.0
    weights, _ = nnls(system, side, maxiter=100 * system.shape[1])
    rest = system @ weights - side
    step = torch.as_tensor(-rest[:-1] / rest[-1], dtype=root.dtype, device=root.device) * size
    return torch.linalg.solve_triangular(root.mT, step.unsqueeze(-1), upper=True).squeeze(-1)
