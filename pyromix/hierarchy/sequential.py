"""Draws from normals that meet what is known, one coordinate after the other."""

__all__ = ["WindowStatements", "draw_sequentially"]

from typing import NamedTuple

import torch
from torch import Tensor

from ..conditioning.truncated.interval import draw_from_interval, log_interval_probability
from ..numerics.diagonal_density import LOG_2PI
from .entries import EntryEvidence
from .normals import Normals


class WindowStatements(NamedTuple):
    """What is known of the entries that a window draws, in the order that it draws them."""

    entries: EntryEvidence
    """Of each by itself, (d,)."""
    rows: Tensor
    """Combinations of them, (q, d)."""
    low: Tensor
    """Lower bounds of those, of every array, (n, q)."""
    high: Tensor
    """Upper bounds."""

    def permute(self, order: Tensor) -> "WindowStatements":
        """The same about entries in another order, (d,)."""
        entries = self.entries.map(lambda t: t[order])
        return self._replace(entries=entries, rows=self.rows[:, order])

    @property
    def num_values(self) -> int:
        """How many of the first entries are values."""
        return int((self.entries.variance == 0).int().cumprod(0).sum())

    @property
    def num_told(self) -> int:
        """How many entries there are up to the last of which anything is known."""
        told = self.entries.known | (self.rows != 0).any(0)
        return int(told.nonzero().amax()) + 1 if bool(told.any()) else 0


def draw_sequentially(normals: Normals, known: WindowStatements) -> tuple[Tensor, Tensor]:
    r"""Draws from normals, each coordinate within what is known of it given those before.

    .. math:: x_i = m_i + \sum_{j \le i} L_{ij} z_j, \qquad
              w = \prod_i \int N(x_i \mid x_{<i}) \, q_i(x_i \mid x_{<i}) \, dx_i

    The weights have the evidence as their mean (Geweke, Hajivassiliou, Keane); they are the
    evidence itself where at most the last coordinate is bounded. Values come first: what is drawn
    before a value is known would rarely agree with it.

    Args:
        normals: The normals, of n cases with B hypotheses each.
        known: What is known.

    Returns:
        Draws (n, B, d) and log-weights (n, B), float64.
    """
    is_value = known.entries.variance == 0
    order = (~is_value).int().argsort(stable=True)
    if bool(is_value[order[0]]) and bool((order.diff() < 0).any()):
        x, log_weight = _draw_in_order(normals.permute(order), known.permute(order))
        return x[..., order.argsort()], log_weight
    return _draw_in_order(normals, known)


def _draw_in_order(normals: Normals, known: WindowStatements) -> tuple[Tensor, Tensor]:
    loc, lead, told = normals.loc, known.num_values, known.num_told
    x, z = torch.empty_like(loc), torch.randn_like(loc)
    x[..., :lead] = known.entries.value[:lead]
    z[..., :lead] = normals.solve(x[..., :lead] - loc[..., :lead], lead)
    log_weight = -0.5 * (z[..., :lead].square() + LOG_2PI).sum(-1)
    log_weight = log_weight - normals.log_diagonal[..., :lead].sum(-1)
    last = [int(row.nonzero().amax()) for row in known.rows]
    for row, place, below, above in zip(
        known.rows, last, known.low.mT, known.high.mT, strict=True
    ):
        if place < lead:
            seen = x[..., :lead] @ row[:lead]
            inside = (seen >= below.unsqueeze(-1)) & (seen <= above.unsqueeze(-1))
            log_weight = log_weight.masked_fill(~inside, -torch.inf)
    for i in range(lead, told):
        factor = normals.trils[:, i, : i + 1][normals.kind]  # (n, B, i + 1)
        mean, scale = loc[..., i] + (factor[..., :i] * z[..., :i]).sum(-1), factor[..., i]
        own = EntryEvidence(*(part[i] for part in known.entries))
        low, high = own.low.expand_as(mean), own.high.expand_as(mean)
        for row, place, below, above in zip(
            known.rows, last, known.low.mT, known.high.mT, strict=True
        ):
            if place == i:
                before = x[..., :i] @ row[:i]
                ends = [(bound.unsqueeze(-1) - before) / row[i] for bound in (below, above)]
                if row[i] < 0:
                    ends.reverse()
                low, high = torch.maximum(low, ends[0]), torch.minimum(high, ends[1])
        seen, centre, left = own.posterior(mean, scale)
        log_weight = log_weight + seen
        bounded = bool((low.isfinite() | high.isfinite()).any())
        if bounded:
            # Where there is no room, anything: the weight is zero.
            room = low < high
            a, b = ((bound - centre) / left for bound in (low, high))
            log_weight = log_weight + log_interval_probability(a, b)
            a, b = torch.where(room, a, 0.0), torch.where(room, b, 1.0)
            drawn = centre + left * draw_from_interval(a, b, torch.rand_like(a))
            drawn = torch.where(room, drawn.clamp(low, torch.maximum(low, high)), centre)
        else:
            drawn = centre + left * z[..., i]
        x[..., i] = drawn
        z[..., i] = (drawn - mean) / scale
    x[..., told:] = loc[..., told:] + normals.times(z, slice(told, None))
    return x, log_weight
