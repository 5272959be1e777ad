"""Draws from normals that meet what is known, one coordinate after the other."""

__all__ = ["WindowStatements", "draw_sequentially"]

from typing import NamedTuple

import torch
from torch import Tensor

from ..conditioning.truncated.interval import draw_from_interval, log_interval_probability
from .entries import EntryEvidence


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


def draw_sequentially(loc: Tensor, tril: Tensor, known: WindowStatements) -> tuple[Tensor, Tensor]:
    r"""Draws from normals, each coordinate within what is known of it given those before.

    .. math:: x_i = m_i + \sum_{j \le i} L_{ij} z_j, \qquad
              w = \prod_i \int N(x_i \mid x_{<i}) \, q_i(x_i \mid x_{<i}) \, dx_i

    The weights have the evidence as their mean (Geweke, Hajivassiliou, Keane); they are the
    evidence itself where at most the last coordinate is bounded.

    Args:
        loc: Means, shape (n, B, d).
        tril: Factors of covariances, (n, B, d, d), lower-triangular.
        known: What is known.

    Returns:
        Draws (n, B, d) and log-weights (n, B), float64.
    """
    loc, tril = loc.double(), tril.double()
    x, z = torch.empty_like(loc), torch.zeros_like(loc)
    log_weight = loc.new_zeros(loc.shape[:-1])
    last = [int(row.nonzero().amax()) for row in known.rows]
    for i in range(loc.shape[-1]):
        mean = loc[..., i] + (tril[..., i, :i] * z[..., :i]).sum(-1)
        scale = tril[..., i, i]
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
        if bool(own.variance == 0):
            drawn = own.value.expand_as(mean)
            if bounded:
                inside = (drawn >= low) & (drawn <= high)
                log_weight = log_weight.masked_fill(~inside, -torch.inf)
        elif bounded:
            # Where there is no room, anything: the weight is zero.
            room = low < high
            a, b = ((bound - centre) / left for bound in (low, high))
            log_weight = log_weight + log_interval_probability(a, b)
            a, b = torch.where(room, a, 0.0), torch.where(room, b, 1.0)
            drawn = centre + left * draw_from_interval(a, b, torch.rand_like(a))
            drawn = torch.where(room, drawn.clamp(low, torch.maximum(low, high)), centre)
        else:
            drawn = centre + left * torch.randn_like(centre)
        x[..., i] = drawn
        z[..., i] = (drawn - mean) / scale
    return x, log_weight
