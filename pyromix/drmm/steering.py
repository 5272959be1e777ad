"""Prefixes of codes that evidence steers through the layers."""

__all__ = ["ShiftSteering", "Steering"]

import math
from abc import ABC, abstractmethod

import torch
from torch import Size, Tensor

from ..evidence.linear import LinearEvidence
from .evidence_score import EvidenceParts, EvidenceScore
from .prefix import Prefix, ShiftPrefix, take_entries
from .thinning import INFLATIONS


class Steering(ABC):
    """Populations of prefixes, and how well the evidence agrees with what may follow them.

    B populations of P prefixes each; those of an entry of the evidence's batch are neighbours.
    Scores are given for S scales of what the next layer leaves, see `INFLATIONS`.

    Args:
        evidence: The evidence.
        batch_shape: Its shape.
        entries: Entries of the flattened batch.
        num_layers: Number of layers L.
    """

    prefix: Prefix

    def __init__(
        self, evidence: LinearEvidence, batch_shape: Size, entries: slice, num_layers: int
    ) -> None:
        self.evidence, self.batch_shape, self.entries = evidence, batch_shape, entries
        self.num_layers = num_layers

    @property
    def inflations(self) -> tuple[tuple[float, float], ...]:
        """Factors of the next layer's scales, and their shares."""
        last = self.prefix.layer == self.num_layers - 1
        return ((1.0, 1.0),) if last else INFLATIONS

    @property
    def num_entries(self) -> int:
        """Number of entries of the evidence."""
        return self.entries.stop - self.entries.start

    @abstractmethod
    def observations(self) -> Tensor:
        """Log-densities of what was observed, under all that may follow: (S, B, P, K)."""

    @abstractmethod
    def inequalities(self, parent: Tensor, chosen: Tensor) -> Tensor:
        """Log-probabilities of all inequalities, given what was observed: (S, B, C).

        Args:
            parent: Prefixes, shape (B, C).
            chosen: Codes of the next layer that follow them, shape (B, C).
        """

    def advance(self, parent: Tensor, chosen: Tensor) -> None:
        """Goes on to prefixes (B, P') with codes (B, P') of the next layer."""
        self.prefix = self.prefix.take(parent).extend(chosen)

    def by_entry(self, t: Tensor) -> Tensor:
        """From (B, P, *T) to (entries, populations of an entry times P, *T)."""
        size = len(t) // self.num_entries * t.shape[1]
        return t.reshape(self.num_entries, size, *t.shape[2:])


class ShiftSteering(Steering):
    """Of layers that subtract means.

    Args:
        prefix: The prefix before the first layer, of points at zero: what codes leave of them is
            minus the mean that they stand for.
        scales: Standard deviations of what each layer leaves, shape (K, D) or (1, D).
    """

    prefix: ShiftPrefix

    def __init__(
        self,
        evidence: LinearEvidence,
        batch_shape: Size,
        entries: slice,
        prefix: ShiftPrefix,
        scales: list[Tensor],
    ) -> None:
        super().__init__(evidence, batch_shape, entries, len(scales))
        self.prefix, self._scales = prefix, scales
        self._parts = EvidenceParts.of(evidence, batch_shape, entries)
        self._prepare()

    def _prepare(self) -> None:
        self._scores = [
            EvidenceScore(self._parts, by * self._scales[self.prefix.layer])
            for by, _ in self.inflations
        ]

    def observations(self) -> Tensor:
        """Log-densities of what was observed, under all that may follow: (S, B, P, K)."""
        loc, mean = self.prefix.loc[self.prefix.layer], -self.prefix.residual
        own = self.by_entry(mean)
        fits = torch.empty(len(self._scores), len(own), own.shape[1], len(loc)).to(mean)
        first = self._scores[0]
        for i, (score, (by, share)) in enumerate(zip(self._scores, self.inflations, strict=True)):
            if i and score.observes_values_alone:
                # The same distances, in larger units.
                torch.sub(fits[0], first.constant - math.log(self.inflations[0][1]), out=fits[i])
                fits[i].mul_(1 / by**2).add_(score.constant + math.log(share))
            else:
                torch.add(score.observations(own, loc), math.log(share), out=fits[i])
        return fits.reshape(len(fits), *mean.shape[:2], len(loc))

    def inequalities(self, parent: Tensor, chosen: Tensor) -> Tensor:
        """Log-probabilities of all inequalities, given what was observed: (S, B, C)."""
        layer = self.prefix.layer
        last = layer == self.num_layers - 1
        mean = take_entries(-self.prefix.residual, parent) + self.prefix.loc[layer][chosen]
        mean, own = self.by_entry(mean), self.by_entry(chosen)
        rows = [
            self.evidence.log_all(
                score.inequalities_of(mean, own if last else None, rough=not last)
            )
            for score in self._scores
        ]
        return torch.stack(rows).reshape(len(rows), *parent.shape)

    def advance(self, parent: Tensor, chosen: Tensor) -> None:
        """Goes on to prefixes (B, P') with codes (B, P') of the next layer."""
        super().advance(parent, chosen)
        if self.prefix.layer < self.num_layers:
            self._prepare()
