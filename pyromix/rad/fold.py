"""Folds as transforms: what the scalar one and the couplings share, and the scalar one."""

__all__ = ["Fold", "Folding", "check_hidden_dims", "neutral_raw"]

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from ..core.checks import is_traced
from ..core.networks import check_widths, make_network
from ..core.registry import register
from ..flows.branching import BranchingTransform, Frame
from .pieces import MAX_HALF_WIDTH, NUM_PARAMETERS, NUM_SCORES, FreeScores, Mapped, Pieces

INITIAL_HALF_WIDTH = 0.7  # over the square root of the dimension


class Folding(BranchingTransform):
    """A branching transform that folds some coordinates, as the other ones say.

    Subclasses define `_split`, `_join` and `_at`.
    """

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """z, and the piece that each folded coordinate of x lies on.

        Args:
            x: Values.

        Returns:
            z, of the shape of x, and integers of shape (..., number of folded coordinates): 0 for
            the left piece, 1 for the middle one, 2 for the right one. Creases belong to the outer
            pieces.
        """
        kept, _, mapped = self._folded(x)
        return self._join(kept, mapped.value), mapped.branch

    def decode(self, z: Tensor, branch: Tensor) -> Tensor:
        """The x on given pieces; differentiable in z and in the parameters.

        Args:
            z: Latents.
            branch: Pieces as `encode` returns them. Where a piece has no preimage of z, its end
                is returned: outside of the fold there is one piece only.

        Returns:
            Values of the shape of z.

        Raises:
            ValueError: If branches are of another shape, or no integers from 0 to 2.
        """
        kept, folded = self._split(z)
        _check_branch(branch, folded)
        pieces, free_scores = self._at(kept)
        return self._join(kept, pieces.unfold(folded, free_scores, branch).value)

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
        """The coordinates that are kept, and what becomes of the others, by which pieces."""
        kept, folded = self._split(x)
        pieces, free_scores = self._at(kept)
        return kept, pieces, pieces.fold(folded, free_scores)

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Coordinates that are kept, and those that are folded."""
        raise NotImplementedError

    def _join(self, kept: Tensor, folded: Tensor) -> Tensor:
        """The inverse of `_split`."""
        raise NotImplementedError

    def _at(self, kept: Tensor) -> tuple[Pieces, FreeScores]:
        """Parameters of the folds, given the coordinates that are kept."""
        raise NotImplementedError


class Fold(Folding):
    r"""A line folded into three layers: a transform of every coordinate by itself.

    The direction x -> z folds, and z -> x draws the layer; `BranchingTransform` has the law, the
    module ``pyromix.rad.pieces`` the formulas. All coordinates share the parameters.

    Args:
        hidden_dims: Widths of the hidden layers of the gating network, which turns z into scores
            of the three layers.

    Raises:
        ValueError: If a width is not a positive number, or there is none.

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
        self.hidden_dims = check_hidden_dims(hidden_dims)
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


def _check_branch(branch: object, folded: Tensor) -> None:
    if not isinstance(branch, Tensor) or branch.dtype.is_floating_point:
        kind = branch.dtype if isinstance(branch, Tensor) else type(branch).__name__
        raise ValueError(f"Expected branches to be a tensor of integers, got {kind}.")
    if branch.shape != folded.shape:
        raise ValueError(
            f"Expected branches of shape {tuple(folded.shape)}, one for every folded coordinate, "
            f"got {tuple(branch.shape)}."
        )
    if branch.dtype == torch.bool or (
        not is_traced() and not bool(((branch >= 0) & (branch <= 2)).all())
    ):
        raise ValueError("Expected branches to be 0, 1 or 2: the left, middle and right piece.")


def neutral_raw(num_folds: int, dim: int) -> Tensor:
    """Unconstrained parameters of folds that are nearly symmetric, of shape (8, num_folds).

    In many dimensions folds start narrower: where the data are close to a normal, every wide one
    costs likelihood that has to be won back.
    """
    raw = 0.1 * torch.randn(NUM_PARAMETERS, num_folds)
    raw[5] *= 3  # folds at several places
    half_width = INITIAL_HALF_WIDTH / math.sqrt(dim)
    raw[7] = math.log(half_width / (MAX_HALF_WIDTH - half_width))
    return raw


def check_hidden_dims(hidden_dims: Sequence[int]) -> tuple[int, ...]:
    """The widths of hidden layers as a tuple.

    Raises:
        ValueError: If there are none, or one is not a positive number.
    """
    if not isinstance(hidden_dims, Sequence) or not hidden_dims:
        raise ValueError(
            f"Expected hidden_dims to be a sequence of at least one width, such as (8,), got "
            f"{hidden_dims!r}."
        )
    return check_widths("hidden_dims", hidden_dims)


register(Fold)
