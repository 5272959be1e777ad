r"""Residual mixtures whose layers turn and stretch what they leave.

.. math::
    r_1 = x, \qquad r_{l+1} = A_l[h_l] (r_l - \mu_l[h_l]), \qquad r_{L+1} \mid h \sim N(0, I),

so that a code stands for a normal with a covariance matrix of its own,

.. math::
    \log p(x \mid h) = \sum_l \log |\det A_l[h_l]| + \log N(r_{L+1}; 0, I) .

One layer of triangular matrices is a mixture of normals with full covariances. There are no
scales of what inner layers leave: under the right code that is nearly standard normal.
"""

__all__ = ["AffineMixture"]

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Size, Tensor

from ..core.checks import is_traced
from ..evidence.linear import LinearEvidence
from ..mixtures.diagonal import MixtureOfNormals
from ..mixtures.finite import FiniteMixture
from ..mixtures.full import MixtureOfMultivariateNormals
from ..numerics.diagonal_density import LOG_2PI
from .columns import pick_rows
from .known import (
    KnownPrefix,
    KnownSteering,
    correction,
    known_columns,
    known_rows,
    log_density,
    posterior_moments,
)
from .law import BLOCK_SCORES, LinearObservations, ResidualMixture
from .maps import DiagonalMap, LayerMap, TriangularMap
from .prefix import Prefix
from .rows import Rows

# Codes of a point that have less than this share of the likeliest one's weight are left out of
# its mean given what is known: each takes a matrix of its own.
NEGLIGIBLE = 1e-8


@dataclass(frozen=True, kw_only=True)
class AffinePrefix(Prefix):
    """A prefix under affine layers, of complete points.

    Args:
        maps: The maps of all layers.
        residual: What the codes leave of the points, shape (N, B, D).
        log_det: Log |det| of what was done to them, shape (N, B).
    """

    maps: tuple[LayerMap, ...]
    residual: Tensor
    log_det: Tensor

    left = ("residual", "log_det")

    def _go_on(self, chosen: Tensor) -> dict[str, Tensor]:
        here, (n, count) = self.maps[self.layer], self.codes.shape[:2]
        chosen_of = chosen.flatten()
        residual = here.chosen(self.residual.flatten(0, 1), chosen_of)
        return {
            "residual": residual.reshape(n, count, residual.shape[-1]),
            "log_det": self.log_det + here.log_det[chosen_of].reshape(n, count),
        }

    def all(self) -> tuple[Tensor, Tensor]:
        """What all components of the next layer leave, (N, B, K, D), and log |det|, (N, B, K)."""
        here = self.maps[self.layer]
        residual = here.all(self.residual.flatten(0, 1))
        log_det = self.log_det.unsqueeze(-1) + here.log_det
        return residual.reshape(*self.codes.shape[:2], *residual.shape[1:]), log_det

    def fits(self, inflations: Sequence[float]) -> Tensor:
        """Log-densities under all components of the next layer, were it the last: (S, N, B, K)."""
        residual, log_det = self.all()
        square, dim = residual.square().sum(-1), residual.shape[-1]
        fits = [
            log_det - 0.5 / by**2 * square - dim * (0.5 * LOG_2PI + math.log(by))
            for by in inflations
        ]
        return torch.stack(fits)

    def everything(self) -> "AffinePrefix":
        """The prefix with all codes of the next layer, (N, B K, ...)."""
        residual, log_det = self.all()
        left = {"residual": residual.flatten(1, 2), "log_det": log_det.flatten(1)}
        return self._with_all(log_det.shape[-1], **left)


@dataclass(kw_only=True)
class AffineMixture(ResidualMixture):
    """Tensors of a deep residual mixture with L layers of K components in D dimensions."""

    maps: tuple[LayerMap, ...]
    """Maps of the layers."""
    origin: Tensor
    """What is subtracted from points first, shape (D,)."""
    unit: Tensor
    """What they are divided by then, shape (D,)."""

    # Prefixes are judged by covariances of their own, so that fewer are needed. On poses with half
    # of the columns missing densities are off by 0.009 nats (root of the mean square), and by
    # 0.007 with 64 times the width.
    wider: ClassVar[int] = 8
    # What is left under a prefix is only nearly standard normal: with its own scale alone a beam
    # of 32 codes loses ten times as much on poses (6e-4 nats instead of 6e-5).
    search_inflations: ClassVar[tuple[float, ...]] = (1.0, 2.0)

    @property
    def dim(self) -> int:
        """Number of real columns D."""
        return len(self.origin)

    @property
    def units(self) -> Tensor:
        """About how far points lie from what codes stand for, column by column, shape (D,)."""
        return self.unit

    @property
    def correlates(self) -> bool:
        """Whether real columns depend on each other, given a code."""
        return not all(isinstance(layer, DiagonalMap) for layer in self.maps)

    def map_tensors(self, function: Callable[[Tensor], Tensor]) -> "AffineMixture":
        """The law with every tensor passed through a function."""
        return replace(
            self,
            maps=tuple(layer.map_tensors(function) for layer in self.maps),
            origin=function(self.origin),
            unit=function(self.unit),
            **self._mapped(function),
        )

    @property
    def _exact_maps(self) -> tuple[LayerMap, ...]:
        """The maps in float64, for statements."""
        return tuple(layer.map_tensors(torch.Tensor.double) for layer in self.maps)

    def shallow(self, num_layers: int) -> "AffineMixture":
        """The law of the first layers, which leave standard normals."""
        if num_layers == self.num_layers:
            return self
        return replace(self, maps=self.maps[:num_layers], **self._first(num_layers))

    # ---- normals ------------------------------------------------------------------------------

    def mean_of(self, codes: Tensor) -> Tensor:
        """Means of the normals that codes (n, L) stand for, shape (n, D)."""
        return self._undo(codes, torch.zeros(len(codes), self.dim).to(self.origin))

    def _undo(self, codes: Tensor, left: Tensor) -> Tensor:
        """The points (n, D) of which codes (n, L) leave values (n, D)."""
        for layer in reversed(range(self.num_layers)):
            left = self.maps[layer].inverse(left, codes[:, layer])
        return left * self.unit + self.origin

    def factor_of(self, codes: Tensor, rows: Tensor | None = None) -> Tensor:
        """Factors C of the covariances C C^T of codes, or rows times them.

        Args:
            codes: Shape (n, L).
            rows: Shape (n or 1, q, D); by default the identity.

        Returns:
            Tensor of shape (n, q or D, D).
        """
        factor = torch.diag_embed(self.unit) if rows is None else rows * self.unit
        factor = factor.expand(len(codes), *factor.shape[-2:])
        for layer, here in enumerate(self.maps):
            factor = here.chosen_rows(factor, codes[:, layer])
        return factor

    def mixture_of(self, codes: Tensor, logits: Tensor) -> FiniteMixture:
        r"""The mixture of the normals that codes (\*E, C, L) stand for, with logits (\*E, C)."""
        flat, shape = codes.flatten(0, -2), codes.shape[:-1]
        loc = self.mean_of(flat).reshape(*shape, self.dim)
        if not self.correlates:
            rows = torch.ones(1, 1, self.dim).to(self.unit)
            scale = self.factor_of(flat, rows).reshape(*shape, self.dim)
            return MixtureOfNormals(logits, loc, scale, validate_args=False)
        factor = self.factor_of(flat)
        if not all(isinstance(layer, DiagonalMap | TriangularMap) for layer in self.maps):
            # A triangular factor of the same covariance, without squaring its condition.
            upper = torch.linalg.qr(factor.mT, mode="r").R
            sign = torch.where(upper.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(upper)
            factor = (sign.unsqueeze(-1) * upper).mT
        tril = factor.reshape(*shape, self.dim, self.dim)
        return MixtureOfMultivariateNormals(logits, loc, tril, validate_args=False)

    def _draw_real(self, codes: Tensor, rows: Rows | None) -> Tensor:
        x = self._undo(codes, torch.randn(len(codes), self.dim).to(self.origin))
        if rows is None or rows.observed is None:
            return x
        # A draw without knowledge, moved to what is known.
        return x + self._correction(codes, rows, x)

    def _means_given(self, codes: Tensor, weight: Tensor, rows: Rows | None) -> Tensor:
        if rows is None or rows.observed is None:
            mean = self.means_of(codes)
            return (weight.unsqueeze(1) @ mean).squeeze(1)
        share = weight / weight.amax(1, keepdim=True)
        row, column = (share > NEGLIGIBLE).nonzero(as_tuple=True)
        total = torch.zeros(len(weight), self.dim).to(weight)
        size = max(1, BLOCK_SCORES // self.dim**2)
        for one, other in zip(row.split(size), column.split(size), strict=True):
            own = codes[one, other] if len(codes) > 1 else codes[0, other]
            mean = self.mean_of(own)
            mean = mean + self._correction(own, rows.take(one), mean)
            total = total.index_add(0, one, weight[one, other].unsqueeze(-1) * mean)
        kept = torch.where(share > NEGLIGIBLE, weight, 0.0).sum(1, keepdim=True)
        return total / kept

    def _correction(self, codes: Tensor, rows: Rows, x: Tensor) -> Tensor:
        """What moves draws (n, D) of codes (n, L) to draws given what is known of n rows."""
        columns, known = known_columns(rows)
        factor = self.map_tensors(torch.Tensor.double).factor_of(codes)  # (n, D, D)
        own = known_rows(factor, columns, known)
        there, value = (t.gather(1, columns).double() * known for t in (x, rows.real))
        moved = correction(own, there, value, torch.diag_embed(1.0 - known.double()))
        return (factor @ moved.unsqueeze(-1)).squeeze(-1).to(x)

    def draw_known(
        self, codes: Tensor, columns: list[int], value: Tensor, noisy: LinearObservations
    ) -> Tensor:
        """Draws of the real columns (n, D), given codes and what was observed."""
        exact = self.map_tensors(torch.Tensor.double)
        rows, y, noise = self._all_rows(columns, value, noisy)
        drawn = []
        size = max(1, BLOCK_SCORES // self.dim**2)
        for own, wanted in zip(codes.split(size), y.split(size), strict=True):
            factor = exact.factor_of(own)
            # In terms of what the codes leave, a standard normal.
            left = torch.randn(len(own), self.dim, dtype=torch.float64, device=rows.device)
            x = exact._undo(own, left)
            if len(rows):
                moved = correction(rows @ factor, x @ rows.mT, wanted, noise)
                x = x + (factor @ moved.unsqueeze(-1)).squeeze(-1)
            drawn.append(x)
        return torch.cat(drawn).to(self.origin) if drawn else value.new_zeros(0, self.dim)

    def moments_known(
        self, codes: Tensor, columns: list[int], value: Tensor, noisy: LinearObservations
    ) -> tuple[Tensor, Tensor]:
        """Means and variances of the real columns (n, D), given codes and what was observed."""
        exact = self.map_tensors(torch.Tensor.double)
        rows, y, noise = self._all_rows(columns, value, noisy)
        means, variances = [], []
        size = max(1, BLOCK_SCORES // self.dim**2)
        for own, wanted in zip(codes.split(size), y.split(size), strict=True):
            factor, mean = exact.factor_of(own), exact.mean_of(own)
            seen, variance = rows @ factor, factor.square().sum(-1)
            if len(rows):
                mean, variance = posterior_moments(
                    mean,
                    variance,
                    seen @ factor.mT,
                    seen @ seen.mT + noise,
                    wanted - mean @ rows.mT,
                )
            means.append(mean)
            variances.append(variance)
        return torch.cat(means), torch.cat(variances)

    def _all_rows(
        self, columns: list[int], value: Tensor, noisy: LinearObservations
    ) -> LinearObservations:
        """Values of columns and other observations together: rows, what they are, and noise."""
        matrix, y, noise = noisy
        identity = torch.eye(self.dim, dtype=torch.float64, device=matrix.device)
        none = noise.new_zeros(len(columns), len(columns))
        rows = torch.cat([identity[columns], matrix])
        return rows, torch.cat([value, y], -1), torch.block_diag(none, noise)

    def means_of(self, codes: Tensor) -> Tensor:
        """Means of the normals that codes (E, C, L) stand for, shape (E, C, D)."""
        # Entries of a batch hold many of the same codes.
        every, place = codes.flatten(0, 1).unique(dim=0, return_inverse=True)
        return self.mean_of(every)[place].reshape(*codes.shape[:2], self.dim)

    # ---- densities ----------------------------------------------------------------------------

    def cost(self, rows: Rows) -> int:
        """How many numbers are kept for a score of a component at a point."""
        cost = self.columns.cost
        if rows.observed is None:
            return cost + self.dim
        if is_traced() or not len(rows.observed):
            return cost + self.dim**2
        return cost + self.dim * max(1, int(rows.observed.sum(-1).amax()))

    def _sort(self, rows: Rows) -> tuple[Tensor, Tensor]:
        complete, gaps = super()._sort(rows)
        if rows.observed is not None and len(gaps) and not is_traced():
            # Blocks of points of which about as much is known take the least memory.
            gaps = gaps[rows.observed[gaps].sum(-1).argsort(stable=True)]
        return complete, gaps

    def prefix(self, rows: Rows, count: int = 1) -> "AffinePrefix | KnownPrefix":
        """The prefix before the first layer, so many times for every point."""
        real = ((rows.real - self.origin) / self.unit).unsqueeze(1).expand(-1, count, -1)
        start = AffinePrefix.no_codes(self.columns, real)
        if rows.observed is not None:
            columns, known = known_columns(rows)
            identity = torch.diag_embed(self.unit.double()).expand(len(real), -1, -1)
            factor = known_rows(identity, columns, known).unsqueeze(1)
            value = (rows.real - self.origin).gather(1, columns).double() * known
            return KnownPrefix(
                **start,
                maps=self._exact_maps,
                factor=factor.expand(-1, count, -1, -1),
                residual=value.unsqueeze(1).expand(-1, count, -1),
                unknown=~known,
            )
        log_det = -self.unit.log().sum().expand(*real.shape[:2])
        return AffinePrefix(**start, maps=self.maps, residual=real, log_det=log_det)

    def normal_fits(self, prefix: Any, rows: Rows, inflations: Sequence[float]) -> Tensor:  # noqa: ARG002
        """Log-densities of the real columns given every component of a layer, (S, N, B, K)."""
        fits: Tensor = prefix.fits(inflations)
        return fits.to(self.log_weight.dtype)

    def joint_of(self, codes: Tensor, rows: Rows) -> Tensor:
        """Log p(h, x) of codes (N, B, L - 1) of points with all codes of the last layer.

        Returns:
            Tensor of shape (N, B, K).
        """
        offset = self._log_prior_before_last(codes.flatten(0, 1))
        prefix: Prefix = self.prefix(rows, codes.shape[1])
        for layer in range(self.num_layers - 1):
            prefix = prefix.extend(codes[..., layer])
        offset = offset.reshape(*codes.shape[:2], self.num_components)
        return offset + self.fit_of(prefix, rows)

    def _exact_joints(self, rows: Rows) -> Iterator[Tensor]:
        codes, log_prior = self.all_codes()
        tables = self._column_tables(codes)
        size = max(1, BLOCK_SCORES // (len(log_prior) * self.cost(rows)))
        for block in rows.split(size):
            prefix = self.prefix(block)
            for _ in range(self.num_layers - 1):
                prefix = prefix.everything()
            joint = self.normal_fits(prefix, block, (1.0,))[0].flatten(1) + log_prior
            for table, value in zip(tables, block.columns, strict=True):
                joint = joint + pick_rows(table, value)
            yield joint

    # ---- evidence -----------------------------------------------------------------------------

    def evidence_cost(self, evidence: LinearEvidence) -> int:
        """How many numbers are kept for a score of evidence."""
        count = len(evidence.observed) + sum(len(matrix) for matrix, _, _ in evidence.gaussian)
        return max(1, count // 4)

    def steered_by(
        self, evidence: LinearEvidence, batch_shape: Size, entries: slice, populations: int
    ) -> KnownSteering:
        """Populations of prefixes before the first layer, to be steered by evidence."""
        return KnownSteering(
            evidence,
            batch_shape,
            entries,
            columns=self.columns,
            maps=self._exact_maps,
            units=(self.origin.double(), self.unit.double()),
            populations=populations,
            dtype=self.log_weight.dtype,
        )

    def agreement(
        self, evidence: LinearEvidence, batch_shape: Size, codes: Tensor
    ) -> tuple[Tensor, Tensor]:
        """How well codes (E, C, L) of entries agree with linear evidence."""
        exact, flat = self.map_tensors(torch.Tensor.double), codes.flatten(0, 1)
        matrix, value, noise = evidence.observations(batch_shape)
        rows, low, high = evidence.inequalities(batch_shape)
        every = torch.cat([matrix, rows])
        factor = exact.factor_of(flat, every.unsqueeze(0)).reshape(*codes.shape[:2], *every.shape)
        centre = (exact.mean_of(flat) @ every.mT).reshape(*codes.shape[:2], len(every))
        q = len(matrix)
        miss = _by_entry(value) - centre[..., :q]
        low, high = (_by_entry(t) - centre[..., q:] for t in (low, high))
        seen, inside = log_density(factor, miss, noise, low, high)
        return seen[0].to(self.log_weight.dtype), inside[0].to(self.log_weight.dtype)


def _by_entry(t: Tensor) -> Tensor:
    """Values (*B, q) as (E, 1, q)."""
    return t.reshape(math.prod(t.shape[:-1]), 1, t.shape[-1])
