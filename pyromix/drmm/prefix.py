"""Codes of the first layers, and what they leave of points."""

__all__ = ["Prefix", "take_entries"]

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .rows import Columns


@dataclass(frozen=True)
class Prefix:
    """Hypotheses about the codes of the first l layers: B of them for each of N points.

    Args:
        loc: Means of all layers, shape (L, K, D).
        columns: The categorical columns.
        codes: Codes so far, shape (N, B, l).
        residual: What they leave of the points, shape (N, B, D).
        logits: What they add to categorical columns, (N, B, categories) each.
    """

    loc: Tensor
    columns: Columns
    codes: Tensor
    residual: Tensor
    logits: tuple[Tensor, ...]

    @classmethod
    def before_layers(cls, loc: Tensor, columns: Columns, points: Tensor) -> "Prefix":
        """The one before the first layer, for points (N, B, D)."""
        n, count = points.shape[:2]
        codes = torch.zeros(n, count, 0, dtype=torch.long, device=points.device)
        return cls(loc, columns, codes, points, columns.start(n, count))

    @property
    def layer(self) -> int:
        """The layer that comes next, counted from zero."""
        return self.codes.shape[-1]

    def extend(self, chosen: Tensor) -> "Prefix":
        """The prefix with codes (N, B) of the next layer."""
        return replace(
            self,
            codes=torch.cat([self.codes, chosen.unsqueeze(-1)], -1),
            residual=self.residual - self.loc[self.layer][chosen],
            logits=self.columns.add(self.layer, self.logits, chosen),
        )

    def take(self, parent: Tensor) -> "Prefix":
        """The hypotheses at indices (N, B')."""
        return replace(
            self,
            codes=take_entries(self.codes, parent),
            residual=take_entries(self.residual, parent),
            logits=tuple(take_entries(before, parent) for before in self.logits),
        )

    def detach(self) -> "Prefix":
        """The prefix without the graph behind it."""
        return replace(
            self,
            residual=self.residual.detach(),
            logits=tuple(before.detach() for before in self.logits),
        )


def take_entries(t: Tensor, parent: Tensor) -> Tensor:
    """Entries (N, B', *T) of hypotheses (N, B, *T) at indices (N, B')."""
    index = parent.reshape(*parent.shape, *[1] * (t.dim() - 2)).expand(-1, -1, *t.shape[2:])
    return t.gather(1, index)
