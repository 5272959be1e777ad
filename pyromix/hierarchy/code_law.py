"""The codes of a level above the bottom, and what they add to the scores of codes below."""

__all__ = ["CodeLaw", "CodeParameters"]

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..drmm.links import sum_rows
from .code_prior import CodePrior
from .tiling import Tiling


class CodeParameters(nn.Module):
    """Parameters of a level whose windows show cells of the level below.

    Args:
        num_layers: Number of layers L.
        num_components: Components of a layer K.
        tiling: Windows over the cells below.
        below: Layers and components of those cells.
    """

    def __init__(
        self, num_layers: int, num_components: int, tiling: Tiling, below: tuple[int, int]
    ) -> None:
        super().__init__()
        self.num_layers, self.num_components = num_layers, num_components
        self.tiling = tiling
        k, pairs = num_components, num_layers * (num_layers - 1) // 2
        self.log_weight = nn.Parameter(torch.zeros(num_layers, k))
        self.links = nn.Parameter(torch.zeros(pairs, k, k))
        # What component k of a layer adds to the scores of the codes at each position.
        self.tables = nn.Parameter(torch.zeros(num_layers, k, tiling.num_positions, *below))

    @property
    def law(self) -> "CodeLaw":
        """The law with the present parameters."""
        return CodeLaw(
            CodePrior(self.log_weight, self.links.flatten(0, 1)), self.tables, self.tiling
        )

    def extra_repr(self) -> str:
        """Sizes."""
        return f"num_layers={self.num_layers}, num_components={self.num_components}"


class CodeLaw:
    """Codes of cells, each of which shows a window of cells of the level below.

    Args:
        prior: The law of the codes of one cell.
        tables: What they add to scores below, shape (L, K, O, L', K') for O positions of a
            window and cells with L' layers of K' components.
        tiling: The windows over the cells below.
    """

    def __init__(self, prior: CodePrior, tables: Tensor, tiling: Tiling) -> None:
        self.prior, self.tables, self.tiling = prior, tables, tiling

    @property
    def below(self) -> tuple[int, int]:
        """Layers and components of a cell below."""
        layers, components = self.tables.shape[-2:]
        return layers, components

    def map_tensors(self, function: Callable[[Tensor], Tensor]) -> "CodeLaw":
        """The law with a function applied to its tensors."""
        prior = CodePrior(function(self.prior.log_weight), function(self.prior.links))
        return CodeLaw(prior, function(self.tables), self.tiling)

    def shifts(self, codes: Tensor) -> Tensor:
        """What codes add to the scores of each cell below, from the one window that draws it.

        Args:
            codes: Codes (N, C, G, L) of G hypotheses about each cell.

        Returns:
            Tensor of shape (N, P, G, L', K').
        """
        num_layers, k, positions = self.tables.shape[:3]
        own = codes[:, self.tiling.owner]  # (N, P, G, L)
        layer = torch.arange(num_layers, device=codes.device)
        rows = (own + k * layer) * positions + self.tiling.offset.reshape(-1, 1, 1)
        table = self.tables.reshape(num_layers * k * positions, -1)
        added = sum_rows(table, rows.flatten(0, 2))
        return added.reshape(*own.shape[:3], *self.below)

    def shifts_by_position(self, codes: Tensor) -> Tensor:
        """What codes (G, L) add to scores of the cell at each position of a window.

        Returns:
            Tensor of shape (O, G, L', K').
        """
        total = self.tables[0][codes[:, 0]]
        for table, code in zip(self.tables[1:], codes.mT[1:], strict=True):
            total = total + table[code]
        return total.movedim(1, 0)

    def rough_fits(self, streams: Tensor, expected: Tensor) -> list[Tensor]:
        """What every component of each layer adds to the log-probability of codes below.

        See `StreamFits`.

        Args:
            streams: How likely the codes of the cells below are, (N, P, L', K'); zero where
                nothing is known.
            expected: What the cells expect by themselves, of the same shape.

        Returns:
            Tensors (N C, K), one for each layer.
        """
        tiling = self.tiling
        seen = tiling.take_drawn(streams).flatten(0, 1)  # (N C, O, L', K')
        known = seen.sum(-1) > 0  # (N C, O, L')
        own = tiling.take_drawn(expected).flatten(0, 1)
        own = own.flatten(1, 2).transpose(0, 1)  # (O L', N C, K')
        added = []
        for table in self.tables.detach():
            gain = seen.flatten(1) @ table.flatten(1).mT
            every = table.flatten(1, 2).transpose(0, 1)  # (O L', K, K')
            top = every.amax(-1, keepdim=True)
            normaliser = (own @ (every - top).exp().mT).clamp(min=1e-30).log() + top.mT
            mask = known.flatten(1).mT.unsqueeze(-1)
            added.append(gain - torch.where(mask, normaliser, 0.0).sum(0))
        return added
