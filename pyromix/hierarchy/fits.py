"""How well what a cell shows fits its codes, layer by layer."""

__all__ = ["CellFits", "MapFits", "Masks", "Scores", "ShiftFits", "StreamFits"]

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import torch
from torch import Tensor

from ..drmm.maps import DiagonalMap, LayerMap, TriangularMap
from ..drmm.prefix import take_entries
from ..numerics.diagonal_density import LOG_2PI, component_log_prob


class Scores(NamedTuple):
    """Scores of all hypotheses about n cells with every component of the next layer."""

    fit: Tensor
    """Fit of what cells draw, as if there were no more layers, (n, B, K)."""
    gate: Tensor | None = None
    """Fit of what they are given, (n, B, K); None if they are given nothing."""


class Masks(NamedTuple):
    """Which of the entries that windows show they draw, and which they are given: ones, (n, D)."""

    drawn: Tensor
    given: Tensor | None
    """None if no window is given anything."""

    def take(self, index: Tensor) -> "Masks":
        """Those of windows at indices (m,)."""
        return Masks(self.drawn[index], None if self.given is None else self.given[index])

    def repeat(self, count: int) -> "Masks":
        """The same for each of so many hypotheses."""
        given = None if self.given is None else self.given.repeat_interleave(count, 0)
        return Masks(self.drawn.repeat_interleave(count, 0), given)


class CellFits(ABC):
    """What B hypotheses about the codes of the first layers leave of each of n cells."""

    @abstractmethod
    def scores(self) -> Scores:
        """Scores of all hypotheses with every component of the next layer."""

    @abstractmethod
    def extend(self, parent: Tensor, chosen: Tensor) -> Self:
        """Hypotheses (n, B') that go on from those at indices with codes of the next layer."""


@dataclass(frozen=True)
class ShiftFits(CellFits):
    """Of windows onto an array, under layers that subtract means."""

    loc: Tensor
    """Means of all layers, shape (L, K, D)."""
    scales: Sequence[Tensor]
    """Standard deviations of what each layer leaves, (K, D) each."""
    masks: Masks
    """What windows draw and what they are given."""
    residual: Tensor
    """What is left, shape (n, B, D)."""
    layer: int = 0

    def scores(self) -> Scores:
        """Scores of all hypotheses with every component of the next layer."""
        n, count = self.residual.shape[:2]
        masks, zero = self.masks.repeat(count), self.residual.new_zeros(())
        fits = [
            None
            if mask is None
            else component_log_prob(
                self.residual.flatten(0, 1),
                self.loc[self.layer],
                self.scales[self.layer],
                zero,
                mask,
            ).reshape(n, count, -1)
            for mask in masks
        ]
        assert fits[0] is not None
        return Scores(fits[0], fits[1])

    def extend(self, parent: Tensor, chosen: Tensor) -> Self:
        """Hypotheses (n, B') that go on from those at indices with codes of the next layer."""
        residual = take_entries(self.residual, parent) - self.loc[self.layer][chosen]
        return replace(self, residual=residual, layer=self.layer + 1)


@dataclass(frozen=True)
class MapFits(CellFits):
    """Of windows onto an array, under diagonal or triangular maps.

    The entries that a window draws come after those that it is given, so that the density of the
    ones given the others is a matter of the last rows of triangular matrices.
    """

    maps: tuple[LayerMap, ...]
    """Maps of all layers."""
    inflations: Sequence[float]
    """Factors of the standard deviation of what is left, which should be one."""
    masks: Masks
    """What windows draw and what they are given."""
    residual: Tensor
    """What is left, shape (n, B, D)."""
    log_det: Tensor
    """Log-determinant of what was done to the entries that are drawn, (n, B)."""
    layer: int = 0

    def scores(self) -> Scores:
        """Scores of all hypotheses with every component of the next layer."""
        n, count, dim = self.residual.shape
        here = self.maps[self.layer]
        square = here.all(self.residual.flatten(0, 1)).reshape(n, count, -1, dim).square()
        drawn, given = self.masks
        number = drawn.sum(-1).reshape(-1, 1, 1)
        left = (square @ drawn.reshape(n, 1, dim, 1)).squeeze(-1)
        log_det = self.log_det.unsqueeze(-1) + (drawn @ log_diagonal(here).mT).unsqueeze(1)
        fits = [
            log_det - 0.5 / by**2 * left - number * (0.5 * LOG_2PI + math.log(by))
            for by in self.inflations
        ]
        fit = torch.stack(fits).logsumexp(0) - math.log(len(fits))
        if given is None:
            return Scores(fit)
        # What all components share is left out.
        gate = (given @ log_diagonal(here).mT).unsqueeze(1)
        return Scores(fit, gate - 0.5 * (square @ given.reshape(n, 1, dim, 1)).squeeze(-1))

    def extend(self, parent: Tensor, chosen: Tensor) -> Self:
        """Hypotheses (n, B') that go on from those at indices with codes of the next layer."""
        here, shape = self.maps[self.layer], chosen.shape
        residual = take_entries(self.residual, parent)
        left = here.chosen(residual.flatten(0, 1), chosen.flatten())
        own = (log_diagonal(here)[chosen] * self.masks.drawn.unsqueeze(1)).sum(-1)
        return replace(
            self,
            residual=left.reshape(*shape, -1),
            log_det=self.log_det.gather(1, parent) + own,
            layer=self.layer + 1,
        )

    @property
    def log_prob(self) -> Tensor:
        """Log-density of the entries that are drawn, after the last layer: (n, B)."""
        square = (self.residual.square() * self.masks.drawn.unsqueeze(1)).sum(-1)
        number = self.masks.drawn.sum(-1, keepdim=True)
        return self.log_det - 0.5 * (square + number * LOG_2PI)


@dataclass(frozen=True)
class StreamFits(CellFits):
    r"""Of cells that draw the codes of cells below, roughly.

    .. math:: \sum_{j} \Big( \sum_i r_j[i] t_l[k, j, i] - \log \sum_i p_j[i] e^{t_l[k, j, i]} \Big)

    with r the likely codes of each layer of a cell below, and p those that it expects by itself,
    given the likeliest codes of its layers before. It is what a code of layer l adds to the
    log-probability of the codes below, were it the only one. All layers are told apart: each code
    adds what it would add alone.
    """

    added: Sequence[Tensor]
    """What every component of each layer adds, (n, K) each."""
    total: Tensor
    """What the codes so far add, (n, B)."""
    layer: int = 0

    def scores(self) -> Scores:
        """Scores of all hypotheses with every component of the next layer."""
        return Scores(self.total.unsqueeze(-1) + self.added[self.layer].unsqueeze(1))

    def extend(self, parent: Tensor, chosen: Tensor) -> Self:
        """Hypotheses (n, B') that go on from those at indices with codes of the next layer."""
        total = self.total.gather(1, parent) + self.added[self.layer].gather(1, chosen)
        return replace(self, total=total, layer=self.layer + 1)


def log_diagonal(layer: LayerMap) -> Tensor:
    """Logarithms of the diagonals of a layer's matrices, shape (K, D)."""
    if isinstance(layer, TriangularMap):
        return layer.matrix.diagonal(dim1=-2, dim2=-1).log()
    assert isinstance(layer, DiagonalMap)
    return layer.diag.log()
