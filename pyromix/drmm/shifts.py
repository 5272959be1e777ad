r"""Residual mixtures whose layers subtract means: the paper's own.

.. math::
    x \mid h \sim N\Big(\sum_l \mu_l[h_l], s_L^2[h_L]\Big)

Sums of gathered means are bags of an embedding.
"""

__all__ = ["ShiftMixture"]

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Size, Tensor

from ..evidence.linear import LinearEvidence
from ..mixtures.diagonal import MixtureOfNormals
from ..numerics.diagonal_density import component_log_prob
from .columns import pick_rows
from .evidence_score import EvidenceParts, EvidenceScore
from .known import correction, posterior_moments
from .law import BLOCK_SCORES, LinearObservations, ResidualMixture
from .links import sum_selected
from .prefix import ShiftPrefix
from .rows import Rows
from .steering import ShiftSteering


class NormalsOfCodes(MixtureOfNormals):
    """The normals that codes stand for; there may be no real columns."""

    _least_dim = 0


@dataclass(kw_only=True)
class ShiftMixture(ResidualMixture):
    """Tensors of a deep residual mixture with L layers of K components in D dimensions."""

    loc: Tensor
    """Means, shape (L, K, D)."""
    inner_scale: Tensor
    """Standard deviations of what the first L - 1 layers leave, shape (L - 1, D). They guide the
    search for codes and the proposals, and are no part of the law."""
    scale: Tensor
    """Standard deviations in the last layer, shape (K, D)."""

    @property
    def dim(self) -> int:
        """Number of real columns D."""
        return self.loc.shape[-1]

    @property
    def units(self) -> Tensor:
        """About how far points lie from what codes stand for, column by column, shape (D,)."""
        return self.scale.mean(0)

    def map_tensors(self, function: Callable[[Tensor], Tensor]) -> "ShiftMixture":
        """The law with every tensor passed through a function."""
        names = ("loc", "inner_scale", "scale")
        changed: dict[str, Any] = {name: function(getattr(self, name)) for name in names}
        return replace(self, **changed, **self._mapped(function))

    def shallow(self, num_layers: int) -> "ShiftMixture":
        """The law of the first layers, with what they leave as the noise."""
        if num_layers == self.num_layers:
            return self
        return replace(
            self,
            **self._first(num_layers),
            loc=self.loc[:num_layers],
            inner_scale=self.inner_scale[: num_layers - 1],
            scale=self.inner_scale[num_layers - 1].expand(self.num_components, -1),
        )

    def mean_of(self, codes: Tensor) -> Tensor:
        """Sums the means that codes (n, l) select; shape (n, D)."""
        return sum_selected(self.loc, codes)

    def _draw_real(self, codes: Tensor, rows: Rows | None) -> Tensor:  # noqa: ARG002
        # Given a code, columns are independent: known ones say nothing about the others.
        loc, scale = self.mean_of(codes), self.scale[codes[:, -1]]
        return loc + scale * torch.randn_like(loc)

    def draw_known(
        self, codes: Tensor, columns: list[int], value: Tensor, noisy: LinearObservations
    ) -> Tensor:
        """Draws of the real columns (n, D), given codes and what was observed."""
        loc, scale = self._normals_known(codes, columns, value)
        x = loc + scale * torch.randn_like(loc)
        matrix, y, noise = noisy
        if len(matrix):
            x = x + correction(matrix * scale.unsqueeze(1), x @ matrix.mT, y, noise, scale)
        return x.to(self.loc)

    def _normals_known(
        self, codes: Tensor, columns: list[int], value: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Means and standard deviations (n, D), given codes and values of columns."""
        loc, scale = self.mean_of(codes).double(), self.scale[codes[:, -1]].double()
        # Given a code, columns are independent: known ones say nothing about the others.
        loc[:, columns], scale[:, columns] = value, 0.0
        return loc, scale

    def moments_known(
        self, codes: Tensor, columns: list[int], value: Tensor, noisy: LinearObservations
    ) -> tuple[Tensor, Tensor]:
        """Means and variances of the real columns (n, D), given codes and what was observed."""
        loc, scale = self._normals_known(codes, columns, value)
        variance = scale.square()
        matrix, y, noise = noisy
        if not len(matrix):
            return loc, variance
        cross = matrix * variance.unsqueeze(1)
        return posterior_moments(
            loc, variance, cross, cross @ matrix.mT + noise, y - loc @ matrix.mT
        )

    def _means_given(self, codes: Tensor, weight: Tensor, rows: Rows | None) -> Tensor:  # noqa: ARG002
        mean = self.means_of(codes)
        return (weight.unsqueeze(1) @ mean).squeeze(1)

    def mixture_of(self, codes: Tensor, logits: Tensor) -> MixtureOfNormals:
        r"""The mixture of the normals that codes (\*E, C, L) stand for, with logits (\*E, C)."""
        loc = self.mean_of(codes.flatten(0, -2)).reshape(*codes.shape[:-1], self.dim)
        scale = self.scale[codes[..., -1]]
        return NormalsOfCodes(logits, loc, scale, validate_args=False)

    def _exact_joints(self, rows: Rows) -> Iterator[Tensor]:
        codes, log_prior = self.all_codes()
        mixture = self.mixture_of(codes, log_prior)
        tables = self._column_tables(codes)
        for block in rows.split(max(1, BLOCK_SCORES // len(codes))):
            if block.observed is None:
                joint = mixture._joint_log_prob(block.real)
            else:
                joint = mixture._joint_log_prob_observed(block.real, block.observed.bool())
            for table, value in zip(tables, block.columns, strict=True):
                joint = joint + pick_rows(table, value)
            yield joint

    def joint_of(self, codes: Tensor, rows: Rows) -> Tensor:
        """Log p(h, x) of codes (N, B, L - 1) of points with all codes of the last layer.

        Returns:
            Tensor of shape (N, B, K).
        """
        n, width = codes.shape[:2]
        flat = codes.flatten(0, 1)
        offset = self._log_prior_before_last(flat)
        residual = rows.real.repeat_interleave(width, 0) - self.mean_of(flat)
        observed = _repeat(rows.observed, width)
        last = self.num_layers - 1
        joint = component_log_prob(residual, self.loc[last], self.scale, offset, observed)
        joint = joint.reshape(n, width, self.num_components)
        return joint + self.columns.score(last, self.columns.logits(codes), rows.columns)

    def steered_by(
        self, evidence: LinearEvidence, batch_shape: Size, entries: slice, populations: int
    ) -> ShiftSteering:
        """Populations of prefixes before the first layer, to be steered by evidence."""
        start = self.prefix_of(self.loc.new_zeros(populations, 1, self.dim))
        scales = [*self.inner_scale.split(1), self.scale]
        return ShiftSteering(evidence, batch_shape, entries, start, scales)

    def agreement(
        self, evidence: LinearEvidence, batch_shape: Size, codes: Tensor
    ) -> tuple[Tensor, Tensor]:
        """How well codes (E, C, L) of entries agree with linear evidence."""
        mean = self.means_of(codes)
        score = EvidenceScore(EvidenceParts.of(evidence, batch_shape), self.scale)
        last = codes[..., -1]
        return score.observations_of(mean, last), score.inequalities_of(mean, last)

    def prefix(self, rows: Rows, count: int = 1) -> ShiftPrefix:
        """The prefix before the first layer, so many times for every point."""
        return self.prefix_of(rows.real.unsqueeze(1).expand(-1, count, -1))

    def prefix_of(self, points: Tensor) -> ShiftPrefix:
        """The prefix before the first layer, for points (N, B, D)."""
        start = ShiftPrefix.no_codes(self.columns, points)
        return ShiftPrefix(**start, loc=self.loc, residual=points)

    def normal_fits(self, prefix: Any, rows: Rows, inflations: Sequence[float]) -> Tensor:
        """Log-densities of the real columns given every component of a layer, (S, N, B, K)."""
        layer, (n, width) = prefix.layer, prefix.codes.shape[:2]
        residual, observed = prefix.residual.flatten(0, 1), _repeat(rows.observed, width)
        loc, scale, zero = self.loc[layer], self.scale_of(layer), self.loc.new_zeros(())
        fits = [component_log_prob(residual, loc, by * scale, zero, observed) for by in inflations]
        return torch.stack(fits).reshape(len(fits), n, width, self.num_components)

    def scale_of(self, layer: int) -> Tensor:
        """Standard deviations of what a layer leaves, shape (K, D)."""
        if layer == self.num_layers - 1:
            return self.scale
        return self.inner_scale[layer].expand(self.num_components, -1)


def _repeat(observed: Tensor | None, count: int) -> Tensor | None:
    """Repeats every row, for the hypotheses about it."""
    return None if observed is None else observed.repeat_interleave(count, 0)
