r"""What is known of points, carried through affine layers.

Linear statements about a point, :math:`M x` for some rows M, become statements about what the
layers so far leave of it: with :math:`x = m + C r`,

.. math:: M x = M m + G r, \qquad G = M C,

and layer l takes the pair (M m, G) on to :math:`(M m + G \mu_l[k], G A_l[k]^{-1})`. If what is
left is standard normal, M x is normal with mean M m and covariance :math:`G G^\top`. All of this
is in float64, as covariances of statements may be nearly singular.
"""

__all__ = ["KnownPrefix", "KnownSteering", "known_columns", "known_rows", "log_density"]

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Size, Tensor

from ..conditioning.truncated.interval import log_interval_probability
from ..core.checks import is_traced
from ..evidence.linear import LinearEvidence
from ..numerics.diagonal_density import LOG_2PI
from .maps import LayerMap
from .prefix import Prefix
from .rows import Columns, Rows
from .steering import Steering

# Added to the variances of observations, relative to each: rows may be dependent.
JITTER = 1e-13


@dataclass(frozen=True, kw_only=True)
class KnownPrefix(Prefix):
    """A prefix under affine layers, of points with missing entries.

    Args:
        maps: The maps of all layers, in float64.
        factor: G for the known entries, shape (N, B, q, D), zero in rows that fill up.
        residual: Known entries less their means M m, shape (N, B, q), zero in these.
        unknown: Which rows fill up, shape (N, q).
    """

    maps: tuple[LayerMap, ...]
    factor: Tensor
    residual: Tensor
    unknown: Tensor

    left = ("factor", "residual")

    def _go_on(self, chosen: Tensor) -> dict[str, Tensor]:
        here, shape = self.maps[self.layer], self.factor.shape
        flat, code = self.factor.flatten(0, 1), chosen.flatten()
        moved = (flat @ here.loc[code].unsqueeze(-1)).squeeze(-1)
        return {
            "factor": here.chosen_rows(flat, code).reshape(shape),
            "residual": self.residual - moved.reshape(shape[:-1]),
        }

    def all(self) -> tuple[Tensor, Tensor]:
        """The two with all components of the next layer: (N, B, K, q, D) and (N, B, K, q)."""
        here, (n, count) = self.maps[self.layer], self.codes.shape[:2]
        factor = here.all_rows(self.factor.flatten(0, 1))
        residual = self.residual.unsqueeze(2) - (self.factor @ here.loc.mT).mT
        return factor.reshape(n, count, *factor.shape[1:]), residual

    def fits(self, inflations: Sequence[float]) -> Tensor:
        """Log-densities of what is known, under all components of the next layer: (S, N, B, K)."""
        factor, residual = self.all()
        # Rows that fill up are standard normal, and at their means.
        filler = torch.diag_embed(self.unknown.to(factor.dtype))
        nothing = residual[..., :0]
        noise = filler.unsqueeze(1).unsqueeze(1)
        scores, _ = log_density(factor, residual, noise, nothing, nothing, inflations)
        each = [0.5 * LOG_2PI + math.log(by) for by in inflations]
        fillers = self.unknown.sum(-1).reshape(-1, 1, 1).to(scores)
        return scores + scores.new_tensor(each).reshape(-1, 1, 1, 1) * fillers

    def everything(self) -> "KnownPrefix":
        """The prefix with all codes of the next layer, (N, B K, ...)."""
        factor, residual = self.all()
        k = factor.shape[2]
        every = torch.arange(k, device=factor.device).expand(factor.shape[:3]).flatten(1)
        parent = torch.arange(every.shape[1], device=every.device).div(k, rounding_mode="floor")
        wide = self.take(parent.expand_as(every)).extend(every)
        return replace(wide, factor=factor.flatten(1, 2), residual=residual.flatten(1, 2))


def known_columns(rows: Rows) -> tuple[Tensor, Tensor]:
    """Indices of the known real columns of rows, and which are not there to fill up: (N, q)."""
    assert rows.observed is not None
    columns = rows.observed.argsort(dim=1, descending=True, stable=True)
    if not is_traced():  # no choices by values
        most = max(1, int(rows.observed.sum(1).amax())) if len(columns) else 1
        columns = columns[:, :most]
    return columns, rows.observed.gather(1, columns) > 0


def known_rows(factor: Tensor, columns: Tensor, known: Tensor) -> Tensor:
    """Rows of factors (n, D, D) at columns (n, q), zero where they fill up."""
    index = columns.unsqueeze(-1).expand(-1, -1, factor.shape[-1])
    return factor.gather(1, index) * known.unsqueeze(-1)


def log_density(
    factor: Tensor,
    miss: Tensor,
    noise: Tensor,
    low: Tensor,
    high: Tensor,
    inflations: Sequence[float] = (1.0,),
) -> tuple[Tensor, Tensor]:
    """How well normals agree with observations and, given these, with inequalities.

    Args:
        factor: G of q observations and p inequalities, shape (*S, q + p, D).
        miss: Observed values less their means, shape (*S, q).
        noise: Covariance of the observations' noise, shape (*S, q, q) or one that broadcasts.
        low: Lower bounds less the means, shape (*S, p).
        high: Upper bounds less the means, shape (*S, p).
        inflations: Factors of all standard deviations, I of them.

    Returns:
        Log-densities of what was observed, shape (I, *S), and log-probabilities of each
        inequality, (I, *S, p).
    """
    q = miss.shape[-1]
    covariance = factor @ factor.mT
    first = covariance[..., :q, :q] + noise
    first = first + torch.diag_embed(JITTER * first.diagonal(dim1=-2, dim2=-1))
    tril = torch.linalg.cholesky(first)
    white = torch.linalg.solve_triangular(tril, miss.unsqueeze(-1), upper=False)
    half_log_det = tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    square = white.square().sum((-2, -1))
    seen = torch.stack(
        [
            -0.5 / by**2 * square - half_log_det - q * (0.5 * LOG_2PI + math.log(by))
            for by in inflations
        ]
    )
    if not low.shape[-1]:
        return seen, low.expand(len(inflations), *low.shape)
    cross = torch.linalg.solve_triangular(tril, covariance[..., :q, q:], upper=False)
    shift = (cross.mT @ white).squeeze(-1)
    own = covariance.diagonal(dim1=-2, dim2=-1)[..., q:]
    left = (own - cross.square().sum(-2)).clamp(min=JITTER * own)
    inside = []
    for by in inflations:
        deviation = by * left.sqrt()
        ends = (low - shift) / deviation, (high - shift) / deviation
        inside.append(log_interval_probability(*ends))
    return seen, torch.stack(inside)


class KnownSteering(Steering):
    """Of affine layers.

    Args:
        columns: The categorical columns.
        maps: The maps of all layers, in float64.
        units: What is subtracted from points first, and what they are divided by then, (D,).
        populations: Number of populations, all entries together.
        dtype: The dtype of results.
    """

    prefix: KnownPrefix

    def __init__(
        self,
        evidence: LinearEvidence,
        batch_shape: Size,
        entries: slice,
        *,
        columns: Columns,
        maps: tuple[LayerMap, ...],
        units: tuple[Tensor, Tensor],
        populations: int,
        dtype: torch.dtype,
    ) -> None:
        super().__init__(evidence, batch_shape, entries, len(maps))
        matrix, value, noise = evidence.observations(batch_shape)
        rows, low, high = evidence.inequalities(batch_shape)
        every = torch.cat([matrix, rows])
        self._count, self._noise, self._dtype = len(matrix), noise, dtype
        self._value, self._low, self._high = (
            t.reshape(batch_shape.numel(), 1, t.shape[-1])[entries] for t in (value, low, high)
        )
        origin, unit = units
        start = KnownPrefix.no_codes(columns, origin.expand(populations, 1, -1))
        self.prefix = KnownPrefix(
            **start,
            maps=maps,
            factor=(every * unit).expand(populations, 1, -1, -1),
            residual=-(every @ origin).expand(populations, 1, -1),
            unknown=torch.zeros(populations, len(every), dtype=torch.bool, device=origin.device),
        )

    def observations(self) -> Tensor:
        """Log-densities of what was observed, under all that may follow: (S, B, P, K)."""
        q, prefix = self._count, self.prefix
        factor, residual = replace(
            prefix, factor=prefix.factor[:, :, :q], residual=prefix.residual[..., :q]
        ).all()
        # Populations of an entry are neighbours: (entries, populations P, K, q).
        factor, residual = self.by_entry(factor), self.by_entry(residual)
        miss = self._value.unsqueeze(1) + residual
        nothing = miss[..., :0]
        factors, shares = zip(*self.inflations, strict=True)
        fits, _ = log_density(factor, miss, self._noise, nothing, nothing, factors)
        fits = fits.reshape(len(fits), *prefix.codes.shape[:2], factor.shape[2])
        log_share = fits.new_tensor(shares).log().reshape(-1, 1, 1, 1)
        return (fits + log_share).to(self._dtype)

    def inequalities(self, parent: Tensor, chosen: Tensor) -> Tensor:
        """Log-probabilities of all inequalities, given what was observed: (S, B, C)."""
        q, prefix = self._count, self.prefix.take(parent).extend(chosen)
        factor, residual = self.by_entry(prefix.factor), self.by_entry(prefix.residual)
        miss, low, high = (
            self._value + residual[..., :q],
            self._low + residual[..., q:],
            self._high + residual[..., q:],
        )
        factors = [by for by, _ in self.inflations]
        _, inside = log_density(factor, miss, self._noise, low, high, factors)
        return inside.sum(-1).reshape(len(inside), *parent.shape).to(self._dtype)
