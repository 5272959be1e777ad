r"""What is known of points, carried through affine layers.

Linear statements about a point, :math:`M x` for some rows M, become statements about what the
layers so far leave of it: with :math:`x = m + C r`,

.. math:: M x = M m + G r, \qquad G = M C,

and layer l takes the pair (M m, G) on to :math:`(M m + G \mu_l[k], G A_l[k]^{-1})`. If what is
left is standard normal, M x is normal with mean M m and covariance :math:`G G^\top`. All of this
is in float64, as covariances of statements may be nearly singular.
"""

__all__ = [
    "KnownPrefix",
    "KnownSteering",
    "correction",
    "known_columns",
    "known_rows",
    "log_density",
    "posterior_moments",
]

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Size, Tensor

from ..conditioning.truncated.interval import log_interval_probability
from ..core.checks import is_traced
from ..evidence.linear import LinearEvidence
from ..numerics.diagonal_density import LOG_2PI
from ..numerics.triangular import MOST_ROWS, half_log_det, inverse_cholesky
from .columns import Columns
from .maps import LayerMap
from .prefix import Prefix
from .rows import Rows
from .steering import Steering

# Matrices of different prefixes are worked out for so many numbers at once, and inequalities for
# so many pairs of an entry and a prefix.
BLOCK_NUMBERS = 2**23
BLOCK_PAIRS = 2**16

# Added to the variances of observations, relative to each: rows may be dependent.
JITTER = 1e-13


@dataclass(frozen=True, kw_only=True)
class CodePrefix(Prefix):
    """Codes alone."""

    left = ()

    def _go_on(self, chosen: Tensor) -> dict[str, Tensor]:  # noqa: ARG002
        return {}


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

    def at(self, index: Tensor) -> "KnownPrefix":
        """The points at indices (n,)."""
        return replace(
            self,
            codes=self.codes[index],
            factor=self.factor[index],
            residual=self.residual[index],
        )

    def all(self) -> tuple[Tensor, Tensor]:
        """The two with all components of the next layer: (N, B, K, q, D) and (N, B, K, q)."""
        here, (n, count) = self.maps[self.layer], self.codes.shape[:2]
        factor = here.all_rows(self.factor.flatten(0, 1))
        return factor.reshape(n, count, *factor.shape[1:]), self._residuals()

    def statements(self) -> tuple[Tensor, Tensor]:
        """Covariances (N, K, q, q) and means (N, K, q) of what is known, of one prefix each."""
        here, factor = self.maps[self.layer], self.factor[:, 0]
        return here.covariances(factor), -self._residuals()[:, 0]

    def _residuals(self) -> Tensor:
        """What all components of the next layer leave of known entries: (N, B, K, q)."""
        moved = (self.factor @ self.maps[self.layer].loc.mT).mT
        return self.residual.unsqueeze(2) - moved

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
        left = {"factor": factor.flatten(1, 2), "residual": residual.flatten(1, 2)}
        return self._with_all(factor.shape[2], **left)


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


def _factorise(covariance: Tensor) -> Tensor:
    """Cholesky factors of covariances of observations, which may depend on each other."""
    own = covariance.diagonal(dim1=-2, dim2=-1)
    return torch.linalg.cholesky(covariance + torch.diag_embed(JITTER * own))


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
    tril = _factorise(covariance[..., :q, :q] + noise)
    white = torch.linalg.solve_triangular(tril, miss.unsqueeze(-1), upper=False)
    log_det = half_log_det(tril)
    square = white.square().sum((-2, -1))
    seen = torch.stack(
        [-0.5 / by**2 * square - log_det - q * (0.5 * LOG_2PI + math.log(by)) for by in inflations]
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


def correction(
    factor: Tensor, there: Tensor, wanted: Tensor, noise: Tensor, scale: Tensor | None = None
) -> Tensor:
    """What moves draws to draws given what was observed of them.

    For a draw z of N(0, I) and an observation y = G z + m + noise of covariance R,
    z + G^T (G G^T + R)^-1 (y - (G z + m + e)), with e a draw of the noise, is a draw given y.

    Args:
        factor: G, shape (n, q, D).
        there: G z + m, shape (n, q).
        wanted: y, shape (n, q).
        noise: R, shape (q, q) or (n, q, q), positive semi-definite.
        scale: What to multiply z by, shape (n, D); by default one.

    Returns:
        What to add to z times the scale, shape (n, D).
    """
    miss = wanted - there
    if noise.dim() == 2 and bool((noise != 0).any()):
        values, vectors = torch.linalg.eigh(noise)
        root = vectors * values.clamp(min=0).sqrt()
        miss = miss - torch.randn_like(miss) @ root.mT
    covariance, miss = factor @ factor.mT + noise, miss.unsqueeze(-1)
    tril = _factorise(covariance)
    weights = torch.cholesky_solve(miss, tril)
    # Without the share that was added to factorise, as equations are to be met to all digits.
    weights = weights + torch.cholesky_solve(miss - covariance @ weights, tril)
    moved = (factor.mT @ weights).squeeze(-1)
    return moved if scale is None else scale * moved


def posterior_moments(
    mean: Tensor, variance: Tensor, cross: Tensor, covariance: Tensor, miss: Tensor
) -> tuple[Tensor, Tensor]:
    """Means and variances of columns, given observations.

    Args:
        mean: Means without them, shape (n, D).
        variance: Variances without them, shape (n, D).
        cross: Covariances of observations and columns, shape (n, q, D).
        covariance: Of the observations, with their noise, shape (n, q, q).
        miss: Observed values less their means, shape (n, q).

    Returns:
        Two tensors of shape (n, D).
    """
    tril = _factorise(covariance)
    told = torch.linalg.solve_triangular(
        tril, torch.cat([cross, miss.unsqueeze(-1)], -1), upper=False
    )
    gain, white = told[..., :-1], told[..., -1:]
    left = (variance - gain.square().sum(-2)).clamp(min=0.0)
    return mean + (gain.mT @ white).squeeze(-1), left


def _agreement(covariance: Tensor, miss: Tensor) -> tuple[Tensor, Tensor]:
    """Squared lengths of whitened misses (*S, q), and half of the log-determinants: (*S)."""
    q = miss.shape[-1]
    if not q:
        return miss.sum(-1), miss.sum(-1)
    if q <= MOST_ROWS:
        whiten = inverse_cholesky(covariance, JITTER)
        white = whiten @ miss.unsqueeze(-1)
        return white.square().sum((-2, -1)), -half_log_det(whiten)
    # One solution takes less than an inverse.
    tril = _factorise(covariance)
    white = torch.linalg.solve_triangular(tril, miss.unsqueeze(-1), upper=False)
    return white.square().sum((-2, -1)), half_log_det(tril)


class Statements(NamedTuple):
    """What evidence says of normals: for each its statements' means and covariances, prepared."""

    whiten: Tensor
    """Inverse Cholesky factors of the covariances of observations, shape (V, q, q)."""
    half_log_det: Tensor
    """Half of the logarithms of their determinants, shape (V,)."""
    centre: Tensor
    """Means of all statements, shape (V, q + p)."""
    gain: Tensor
    """What whitened observations say of inequalities, shape (V, p, q)."""
    deviation: Tensor
    """Standard deviations of inequalities that are left then, shape (V, p)."""

    @classmethod
    def of(cls, covariance: Tensor, centre: Tensor, noise: Tensor) -> "Statements":
        """From covariances (V, q + p, q + p), means (V, q + p) and observations' noise (q, q)."""
        q = len(noise)
        first = covariance[..., :q, :q] + noise
        whiten = inverse_cholesky(first, JITTER) if q else first
        gain = (whiten @ covariance[..., :q, q:]).mT
        own = covariance.diagonal(dim1=-2, dim2=-1)[..., q:]
        left = (own - gain.square().sum(-1)).clamp(min=JITTER * own)
        return cls(whiten, -half_log_det(whiten), centre, gain, left.sqrt())


class KnownSteering(Steering):
    """Of affine layers.

    Populations hold many of the same prefixes: the matrices of each are worked out once, for all
    populations and entries.

    Args:
        columns: The categorical columns.
        maps: The maps of all layers, in float64.
        units: What is subtracted from points first, and what they are divided by then, (D,).
        populations: Number of populations, all entries together.
        dtype: The dtype of results.
    """

    prefix: CodePrefix

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
        self._noise, self._dtype = noise, dtype
        self._value, self._low, self._high = (
            t.reshape(batch_shape.numel(), t.shape[-1])[entries] for t in (value, low, high)
        )
        origin, unit = units
        start = origin.expand(populations, 1, -1)
        self.prefix = CodePrefix(**CodePrefix.no_codes(columns, start))
        # Different prefixes (U, 1), and which of them each prefix (B, P) is.
        self._table = KnownPrefix(
            **KnownPrefix.no_codes(Columns((), origin), start[:1]),
            maps=maps,
            factor=(every * unit).reshape(1, 1, *every.shape),
            residual=-(every @ origin).reshape(1, 1, len(every)),
            unknown=torch.zeros(1, len(every), dtype=torch.bool, device=origin.device),
        )
        self._place = torch.zeros(populations, 1, dtype=torch.long, device=origin.device)
        each = populations // max(1, self.num_entries)
        self._entry = torch.arange(populations, device=origin.device).div(
            max(1, each), rounding_mode="floor"
        )

    def observations(self) -> Tensor:
        """Log-densities of what was observed, under all that may follow: (S, B, P, K)."""
        q, count = len(self._noise), len(self._table.codes)
        pair = self._entry.unsqueeze(-1) * count + self._place
        pair, back = pair.unique(return_inverse=True)
        entry, prefix = pair.div(count, rounding_mode="floor"), pair % count
        order = prefix.argsort(stable=True)
        entry, prefix = entry[order], prefix[order]
        k = len(self._table.maps[0].loc)
        factors, shares = zip(*self.inflations, strict=True)
        constant = [
            math.log(share) - q * (0.5 * LOG_2PI + math.log(by))
            for by, share in zip(factors, shares, strict=True)
        ]
        scores = torch.empty(len(factors), len(pair), k, dtype=self._dtype, device=pair.device)
        first = 0
        size = max(1, BLOCK_NUMBERS // (k * max(1, q) * self._table.factor.shape[-1]))
        counts = torch.bincount(prefix, minlength=count).split(size)
        for start, part in zip(range(0, count, size), counts, strict=True):
            covariance, centre = self._take(slice(start, start + size), q).statements()
            last = first + int(part.sum())
            if len(self._value) == 1:
                told_once = _agreement(covariance + self._noise, self._value[0] - centre)
                square, log_det = (t.repeat_interleave(part, 0) for t in told_once)
            else:
                told = Statements.of(covariance, centre, self._noise)  # (u, K, ...)
                square = self._squares(told, entry[first:last], part)
                log_det = told.half_log_det.repeat_interleave(part, 0)
            for i, by in enumerate(factors):
                fit = constant[i] - log_det - 0.5 / by**2 * square
                scores[i, first:last] = fit.to(self._dtype)
            first = last
        place = order.argsort()[back]
        return scores[:, place]

    def _squares(self, told: Statements, entry: Tensor, counts: Tensor) -> Tensor:
        """Squared lengths of whitened observations (n, K).

        Args:
            told: Of prefixes (u, K).
            entry: Entries of pairs of a prefix and an entry, sorted by prefix, (n,).
            counts: How many pairs each prefix has, (u,).
        """
        u, k, q = told.centre.shape
        if not q:
            return told.centre.new_zeros(len(entry), k)
        shift = (told.whiten @ told.centre.unsqueeze(-1)).squeeze(-1).flatten(1)  # (u, K q)
        every = told.whiten.reshape(u, k * q, q)
        first, last = counts.cumsum(0) - counts, counts.cumsum(0) - 1
        square = told.centre.new_empty(len(entry), k)
        # Prefixes of about as many entries together.
        widths = 2 ** (counts - 1).clamp(min=0).float().log2().floor().long().add(1)
        widths = torch.where(counts == 1, 1, widths)
        for width in widths.unique().tolist():
            own = ((widths == width) & (counts > 0)).nonzero().squeeze(-1)
            for index in own.split(max(1, BLOCK_NUMBERS // (width * k * q))):
                row = first[index].unsqueeze(-1) + torch.arange(width, device=index.device)
                row = torch.minimum(row, last[index].unsqueeze(-1))  # the last fills up
                white = self._value[entry[row]] @ every[index].mT - shift[index].unsqueeze(1)
                square[row] = white.reshape(*row.shape, k, q).square().sum(-1)
        return square

    def inequalities(self, parent: Tensor, chosen: Tensor) -> Tensor:
        """Log-probabilities of all inequalities, given what was observed: (S, B, C)."""
        q, k = len(self._noise), len(self._table.maps[0].loc)
        follower = self._place.gather(1, parent) * k + chosen
        count = len(self._table.codes) * k
        pair, back = (self._entry.unsqueeze(-1) * count + follower).unique(return_inverse=True)
        entry, which = pair.div(count, rounding_mode="floor"), pair % count
        different, place = which.unique(return_inverse=True)
        table = self._table.at(different.div(k, rounding_mode="floor"))
        table = table.extend((different % k).unsqueeze(-1))
        factor = table.factor[:, 0]
        told = Statements.of(factor @ factor.mT, -table.residual[:, 0], self._noise)
        inside = []
        for own, at in zip(entry.split(BLOCK_PAIRS), place.split(BLOCK_PAIRS), strict=True):
            centre = told.centre[at]
            miss = (self._value[own] - centre[:, :q]).unsqueeze(-1)
            shift = (told.gain[at] @ (told.whiten[at] @ miss)).squeeze(-1) + centre[:, q:]
            low, high = self._low[own] - shift, self._high[own] - shift
            deviation = [by * told.deviation[at] for by, _ in self.inflations]
            inside.append(
                torch.stack([log_interval_probability(low / s, high / s) for s in deviation])
            )
        total = self.evidence.log_all(torch.cat(inside, 1)).to(self._dtype)
        return total[:, back]

    def advance(self, parent: Tensor, chosen: Tensor) -> None:
        """Goes on to prefixes (B, P') with codes (B, P') of the next layer."""
        k = len(self._table.maps[0].loc)
        follower = self._place.gather(1, parent) * k + chosen
        different, self._place = follower.unique(return_inverse=True)
        super().advance(parent, chosen)
        if self.prefix.layer < self.num_layers:
            table = self._table.at(different.div(k, rounding_mode="floor"))
            self._table = table.extend((different % k).unsqueeze(-1))

    def _take(self, part: slice, count: int) -> KnownPrefix:
        """Some of the different prefixes, with so many of their first statements."""
        table = self._table
        return replace(
            table,
            codes=table.codes[part],
            factor=table.factor[part, :, :count],
            residual=table.residual[part, :, :count],
        )
