"""Laws given evidence whose coefficients differ from entry to entry of a batch: one law for each.

Values and bounds of a batch are worked on together, as matrices of all entries are the same.
Other evidence is conditioned on entry by entry, which takes as long as so many questions.
"""

__all__ = ["LawsByEntry", "at_entry", "entries_apart"]

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Size, Tensor
from torch.distributions import constraints

from ..evidence.pieces import Evidence, Nonlinear, Observed
from .law import ConditionedLaw, Prior, Statement
from .truncated import ConflictError


def entries_apart(evidence: Sequence[Statement]) -> Size | None:
    """The batch shape of evidence that has to be asked entry by entry; None for other evidence.

    Raises:
        ValueError: If batch shapes of pieces do not broadcast.
    """
    pieces = [Observed(p) if isinstance(p, Mapping) else p for p in evidence]
    pieces = [piece for piece in pieces if isinstance(piece, Evidence)]
    nonlinear = any(isinstance(piece, Nonlinear) for piece in pieces)
    if not nonlinear and not any(piece.varies() for piece in pieces):
        return None
    shapes = [piece.entry_shape() for piece in pieces]
    try:
        shape = torch.broadcast_shapes(*shapes)
    except RuntimeError:
        raise ValueError(
            f"Expected evidence whose batch shapes broadcast, got {list(map(tuple, shapes))}."
        ) from None
    return shape or None


def at_entry(statement: Statement, index: tuple[int, ...], batch_shape: Size) -> Statement:
    """What a statement says about one entry of a batch."""
    piece = Observed(statement) if isinstance(statement, Mapping) else statement
    return piece.at(index, batch_shape) if isinstance(piece, Evidence) else statement


class LawsByEntry(ConditionedLaw):
    r"""A batch of laws of one model, each given evidence of its own.

    Args:
        prior: The law without evidence.
        batch_shape: The shape B of the batch.
        make: Makes the law at an index, of no batch shape.

    Attributes:
        laws: The laws, in the order of the flattened batch.

    Raises:
        ConflictError: If evidence cannot hold; the error names its entry.
        ValueError: If the laws have batch shapes of their own.
    """

    def __init__(
        self,
        prior: Prior,
        batch_shape: Size,
        make: Callable[[tuple[int, ...]], ConditionedLaw],
    ) -> None:
        laws = []
        for index in itertools.product(*map(range, batch_shape)):
            try:
                laws.append(make(index))
            except ConflictError as conflict:
                raise ConflictError(f"At entry {index} of the batch: {conflict}") from conflict
        if not laws or laws[0].batch_shape:
            raise ValueError(
                f"Expected a batch of at least one law, and one model, for evidence that differs "
                f"in more than values and bounds, got a batch of shape {tuple(batch_shape)} and "
                f"models of {tuple(laws[0].batch_shape) if laws else ()}."
            )
        self.laws = tuple(laws)
        super().__init__(prior, batch_shape, laws[0].event_shape)

    def _stacked(self, of: Callable[[Any], Tensor]) -> Tensor:
        values = torch.stack([of(law) for law in self.laws])
        return values.reshape(*self.batch_shape, *values.shape[1:])

    @property
    def route(self) -> tuple[Any, ...]:  # type: ignore[override]
        """How the law at each entry is drawn under inequalities."""
        return tuple(law.route for law in self.laws)

    @property
    def effective_sample_size(self) -> Tensor:
        r"""How many independent draws each population is worth, shape (\*B,); see `laws`."""
        return self._stacked(lambda law: law.effective_sample_size)

    @property
    def observed(self) -> Mapping[int, Tensor]:
        r"""Columns that were observed, in ascending order -> their values, shape (\*B,)."""
        every = [law.observed for law in self.laws]
        return {
            d: torch.stack([observed[d] for observed in every]).reshape(self.batch_shape)
            for d in every[0]
        }

    @property
    def support(self) -> constraints.Constraint:
        """Where the density is positive.

        Raises:
            NotImplementedError: Always: it may be another set at every entry.
        """
        raise NotImplementedError("It may be another set at every entry. See laws[i].support.")

    @property
    def mean(self) -> Tensor:
        r"""Means, shape (\*B, D), where the laws have them."""
        return self._stacked(lambda law: law.mean)

    @property
    def variance(self) -> Tensor:
        r"""Variances, where the laws have them."""
        return self._stacked(lambda law: law.variance)

    def probs(self, index: int) -> Tensor:
        r"""Probabilities of the categories of a column, shape (\*B, categories)."""
        return self._stacked(lambda law: law.probs(index))

    def quantile(self, column: int, probs: Any) -> Tensor:
        r"""Quantiles of a real column, shape (\*P, \*B), where the laws have them."""
        values = torch.stack([law.quantile(column, probs) for law in self.laws], -1)
        return values.reshape(*values.shape[:-1], *self.batch_shape)

    def mode_at(self, entry: Tensor) -> Tensor:
        """Modes (n, D) of the laws at entries (n,)."""
        return torch.stack([self.laws[i].mode for i in entry.tolist()])

    def log_normalizer(self) -> tuple[Tensor, Tensor]:
        r"""Log Z of shape (\*B,) and its standard error, in float64."""
        values, errors = zip(*(law.log_normalizer() for law in self.laws), strict=True)
        value, error = (torch.stack(t).reshape(self.batch_shape) for t in (values, errors))
        return value, error

    def log_joint(self, value: Tensor) -> Tensor:
        r"""Log p(x) q(x) of points, in float64, as if there were no inequalities."""
        return self._each(value, lambda law, x: law.log_joint(x))

    def holds(self, value: Tensor) -> Tensor:
        r"""Whether points of shape (\*S, \*B, D) meet the inequalities; shape (\*S, \*B)."""
        return self._each(value, lambda law, x: law.holds(x))

    def _each(self, value: Tensor, of: Callable[[ConditionedLaw, Tensor], Tensor]) -> Tensor:
        """A function of every law and its points (n, D), for points (*S, *B, D)."""
        leading = torch.broadcast_shapes(value.shape[:-1], self.batch_shape)
        own = leading[: len(leading) - len(self.batch_shape)]
        points = value.expand(*leading, value.shape[-1])
        points = points.reshape(math.prod(own), len(self.laws), value.shape[-1])
        pairs = zip(self.laws, points.unbind(1), strict=True)
        return torch.stack([of(law, x) for law, x in pairs], -1).reshape(leading)

    def draw(self, entry: Tensor) -> Tensor:
        """Draws (n, D) of the laws at entries (n,) of the flattened batch; see `sample`."""
        x = torch.empty(len(entry), *self.event_shape, dtype=self._dtype, device=entry.device)
        for number, law in enumerate(self.laws):
            rows = (entry == number).nonzero().squeeze(-1)
            if len(rows):
                x[rows] = law.draw(torch.zeros_like(rows))
        return x

    def _shown(self) -> dict[str, Any]:
        return {"laws": type(self.laws[0]).__name__}
