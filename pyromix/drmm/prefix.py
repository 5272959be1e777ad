"""Codes of the first layers, and what they leave of points."""

__all__ = ["Prefix", "ShiftPrefix", "take_entries"]

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from .columns import Columns


@dataclass(frozen=True, kw_only=True)
class Prefix(ABC):
    """Hypotheses about the codes of the first l layers: B of them for each of N points.

    Args:
        columns: The categorical columns.
        codes: Codes so far, shape (N, B, l).
    """

    columns: Columns
    codes: Tensor

    # Names of the tensors (N, B, *) that say what the codes leave of the points.
    left: ClassVar[tuple[str, ...]]

    @staticmethod
    def no_codes(columns: Columns, like: Tensor) -> dict[str, Any]:
        """The fields above before the first layer, of hypotheses about a tensor (N, B, *)."""
        n, count = like.shape[:2]
        codes = torch.zeros(n, count, 0, dtype=torch.long, device=like.device)
        return {"columns": columns, "codes": codes}

    @abstractmethod
    def _go_on(self, chosen: Tensor) -> dict[str, Tensor]:
        """What codes (N, B) of the next layer leave, by name."""

    @property
    def layer(self) -> int:
        """The layer that comes next, counted from zero."""
        return self.codes.shape[-1]

    @property
    def logits(self) -> tuple[Tensor, ...]:
        """What the codes add to categorical columns; see `Columns.logits`."""
        return self.columns.logits(self.codes)

    def extend(self, chosen: Tensor) -> Self:
        """The prefix with codes (N, B) of the next layer."""
        changed: dict[str, Any] = self._go_on(chosen)
        return replace(
            self,
            **changed,
            codes=torch.cat([self.codes, chosen.unsqueeze(-1)], -1),
        )

    def _with_all(self, num_components: int, **left: Tensor) -> Self:
        """The prefix with all K codes of the next layer, (N, B K, ...), given what they leave."""
        n, count = self.codes.shape[:2]
        code = torch.arange(num_components, device=self.codes.device)
        every = code.expand(n, count, -1).flatten(1)
        parent = torch.arange(count, device=code.device).repeat_interleave(num_components)
        parent = parent.expand(n, -1)
        changed: dict[str, Any] = dict(left)
        codes = torch.cat([take_entries(self.codes, parent), every.unsqueeze(-1)], -1)
        return replace(self, **changed, codes=codes)

    def take(self, parent: Tensor) -> Self:
        """The hypotheses at indices (N, B')."""
        codes = take_entries(self.codes, parent)
        return replace(self._map(lambda t: take_entries(t, parent)), codes=codes)

    def detach(self) -> Self:
        """The prefix without the graph behind what its codes leave."""
        return self._map(torch.detach)

    def _map(self, function: Callable[[Tensor], Tensor]) -> Self:
        changed: dict[str, Any] = {name: function(getattr(self, name)) for name in self.left}
        return replace(self, **changed)


@dataclass(frozen=True, kw_only=True)
class ShiftPrefix(Prefix):
    """A prefix under layers that subtract means.

    Args:
        loc: Means of all layers, shape (L, K, D).
        residual: What the codes leave of the points, shape (N, B, D).
    """

    loc: Tensor
    residual: Tensor

    left = ("residual",)

    def _go_on(self, chosen: Tensor) -> dict[str, Tensor]:
        return {"residual": self.residual - self.loc[self.layer][chosen]}


def take_entries(t: Tensor, parent: Tensor) -> Tensor:
    """Entries (N, B', *T) of hypotheses (N, B, *T) at indices (N, B')."""
    index = parent.reshape(*parent.shape, *[1] * (t.dim() - 2)).expand(-1, -1, *t.shape[2:])
    return t.gather(1, index)
