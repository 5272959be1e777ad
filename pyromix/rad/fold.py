"""Folds as transforms: the base class, and the fold of single numbers."""

__all__ = ["Fold", "FoldTransform", "check_hidden_dims", "neutral_raw"]

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from ..core.conversions import TensorLike, as_integers
from ..core.networks import check_widths, make_network
from ..core.registry import register
from ..flows.branching import BranchingTransform, Frame
from .pieces import MAX_HALF_WIDTH, NUM_PARAMETERS, NUM_SCORES, FreeScores, Mapped, Pieces

INITIAL_HALF_WIDTH = 0.7  # over the square root of the dimension


class FoldTransform(BranchingTransform):
    """A branching transform that folds some coordinates, with parameters from the others.

    Subclasses define `_split`, `_join` and `_at`.
    """

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns z, and the piece that each folded coordinate of x lies on.

        Args:
            x: Values.

        Returns:
            z, of the shape of x, and integers of shape (..., number of folded coordinates): 0 for
            the left piece, 1 for the middle one, 2 for the right one. Points where two pieces
            meet belong to the outer one.
        """
        kept, _, mapped = self._folded(x)
        return self._join(kept, mapped.value), mapped.branch

    def decode(self, z: Tensor, branch: TensorLike) -> Tensor:
        """Returns the x on given pieces, with gradients in z and in the parameters.

        Args:
            z: Latents.
            branch: Pieces as `encode` returns them. Outside of the fold there is one piece only:
                for another one, its end is returned.

        Returns:
            Values of the shape of z.

        Raises:
            ValueError: If branches are of another shape, or not integers from 0 to 2.
        """
        kept, folded = self._split(z)
        pieces, free_scores = self._at(kept)
        mapped = pieces.unfold(folded, free_scores, _as_branch(branch, folded))
        return self._join(kept, mapped.value)

    def frame(self, z: Tensor) -> Frame:
        """Where z is between the ends of the folds; see `BranchingTransform`."""
        kept, folded = self._split(z)
        pieces, _ = self._at(kept)
        u = (folded - pieces.shift) / pieces.limit
        kept = kept.detach()
        pieces, _ = self._at(kept)
        limit = pieces.limit.expand_as(u)
        moved = self._join(kept, pieces.shift + u.detach() * limit)
        return Frame(u, moved, limit.log().sum(-1))

    def _forward(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        kept, folded = self._split(z)
        pieces, free_scores = self._at(kept)
        mapped = pieces.unfold(folded, free_scores)
        x = self._join(kept, mapped.value)
        return x, mapped.log_density.sum(-1), pieces.log_branch(mapped).sum(-1)

    def _backward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        kept, _, mapped = self._folded(x)
        return self._join(kept, mapped.value), mapped.log_density.sum(-1)

    def _log_branch(self, x: Tensor) -> Tensor:
        _, pieces, mapped = self._folded(x)
        return pieces.log_branch(mapped).sum(-1)

    def _folded(self, x: Tensor) -> tuple[Tensor, Pieces, Mapped]:
        """Kept coordinates of x, parameters of the folds, and the others mapped to z."""
        kept, folded = self._split(x)
        pieces, free_scores = self._at(kept)
        return kept, pieces, pieces.fold(folded, free_scores)

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns coordinates that are kept, and those that are folded."""
        raise NotImplementedError

    def _join(self, kept: Tensor, folded: Tensor) -> Tensor:
        """Returns values from kept and folded coordinates: the inverse of `_split`."""
        raise NotImplementedError

    def _at(self, kept: Tensor) -> tuple[Pieces, FreeScores]:
        """Returns parameters of the folds, given the coordinates that are kept."""
        raise NotImplementedError


class Fold(FoldTransform):
    r"""A line folded into three pieces: a transform of every coordinate by itself.

    .. math:: \log p(x) = \log p_Z(z) + \log p(k \mid z) + \log |dz/dx|, \qquad z = f(x)

    x -> z folds, and z -> x draws the piece k. The module ``pyromix.rad.pieces`` has the formulas.
    All coordinates share the parameters.

    Args:
        hidden_dims: Widths of the hidden layers of the gating network, which maps z to scores of
            the pieces.

    Raises:
        ValueError: If a width is not a positive integer, or there is none.

    Example:
        >>> import pyro.distributions as dist
        >>> from pyromix import Flow
        >>> fold = Fold()
        >>> law = Flow(dist.Normal(0.0, 1.0), [fold])
        >>> z, branch = fold.encode(law.sample((5,)))
        >>> z.shape, branch.shape
        (torch.Size([5]), torch.Size([5, 1]))

    References:
        [1] Dinh, Sohl-Dickstein, Pascanu and Larochelle, "A RAD approach to deep mixture models",
        2019. https://arxiv.org/abs/1903.07714
    """

    domain = constraints.real
    codomain = constraints.real

    def __init__(self, hidden_dims: Sequence[int] = (8,)) -> None:
        super().__init__()
        self.hidden_dims = check_hidden_dims("hidden_dims", hidden_dims)
        self.raw = nn.Parameter(neutral_raw(1, 1))
        self.gate = make_network(1, self.hidden_dims, NUM_SCORES)

    @property
    def pieces(self) -> Pieces:
        """The fold's slopes, place and width."""
        return Pieces.from_raw(self.raw)

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x.unsqueeze(-1)

    def _join(self, kept: Tensor, folded: Tensor) -> Tensor:  # noqa: ARG002
        return folded.squeeze(-1)

    def _at(self, kept: Tensor) -> tuple[Pieces, FreeScores]:
        raw = self.raw.view(-1, *[1] * kept.dim(), 1)
        return Pieces.from_raw(raw), lambda z: self.gate(z).movedim(-1, 0).unsqueeze(-1)

    def extra_repr(self) -> str:
        """The constructor's arguments."""
        return f"hidden_dims={self.hidden_dims}"


def neutral_raw(num_folds: int, dim: int) -> Tensor:
    """Returns random unconstrained parameters of nearly symmetric folds, shape (8, num_folds).

    In many dimensions folds are narrower: where the data are close to a normal, each wide one
    costs likelihood at the start.
    """
    raw = 0.1 * torch.randn(NUM_PARAMETERS, num_folds)
    raw[5] *= 3  # folds at several places
    half_width = INITIAL_HALF_WIDTH / math.sqrt(dim)
    raw[7] = math.log(half_width / (MAX_HALF_WIDTH - half_width))
    return raw


def check_hidden_dims(name: str, widths: Iterable[int]) -> tuple[int, ...]:
    """Checks the widths of one hidden layer or more, and returns them as a tuple.

    Raises:
        ValueError: If there are none, or one is not a positive integer.
    """
    checked = check_widths(name, widths)
    if not checked:
        raise ValueError(f"Expected {name} to have at least one width, such as (8,), got none.")
    return checked


def _as_branch(branch: Any, folded: Tensor) -> Tensor:
    """Branches as integers of the shape of the folded coordinates.

    Raises:
        ValueError: If they do not fit.
    """
    names = ": the left, middle and right piece"
    branch = as_integers("branches", branch, 0, 2, like=folded, where=names)
    if branch.shape != folded.shape:
        raise ValueError(
            f"Expected branches of shape {tuple(folded.shape)}, one for every folded coordinate, "
            f"got {tuple(branch.shape)}."
        )
    return branch


register(Fold)
