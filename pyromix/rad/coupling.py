"""Couplings: folds of some coordinates, with parameters that are functions of the others."""

__all__ = ["ConditionalFoldingCoupling", "FoldingCoupling"]

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from pyro.distributions.conditional import ConditionalTransformModule
from torch import Tensor, nn
from torch.distributions import constraints

from ..core.checks import check_positive_int, is_traced
from ..core.conversions import TensorLike, as_rows
from ..core.networks import make_network
from ..core.registry import register
from .fold import FoldTransform, check_hidden_dims, neutral_raw
from .partition import Partition
from .pieces import NUM_PARAMETERS, NUM_SCORES, FreeScores, Pieces


class _Coupling(FoldTransform):
    """A coupling with given networks.

    Args:
        partition: Which coordinates are folded.
        conditioner: From kept coordinates and the context to parameters of folds, (..., 8 d).
        gate: From coordinates of z, kept ones first, and the context to scores, (..., 2 d).
        context: Shape (..., context_dim), if there is one.
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector

    def __init__(
        self,
        partition: Partition,
        conditioner: nn.Module,
        gate: nn.Module,
        context: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.partition = partition
        self.conditioner = conditioner
        self.gate = gate
        self._context = context

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self._context is not None:
            shape = torch.broadcast_shapes(x.shape[:-1], self._context.shape[:-1])
            x = x.expand(*shape, -1)
        return self.partition.split(x)

    def _join(self, kept: Tensor, folded: Tensor) -> Tensor:
        return self.partition.join(kept, folded)

    def _at(self, kept: Tensor) -> tuple[Pieces, FreeScores]:
        given = [kept]
        if self._context is not None:
            given.append(self._context.expand(*kept.shape[:-1], -1))
        num_folds = len(self.partition.folded)

        def by_row(network: nn.Module, inputs: list[Tensor], num_rows: int) -> Tensor:
            output = network(torch.cat(inputs, -1) if len(inputs) > 1 else inputs[0])
            return output.unflatten(-1, (num_rows, num_folds)).movedim(-2, 0)

        def free_scores(folded: Tensor) -> Tensor:
            return by_row(self.gate, [kept, folded, *given[1:]], NUM_SCORES)

        return Pieces.from_raw(by_row(self.conditioner, given, NUM_PARAMETERS)), free_scores


class FoldingCoupling(_Coupling):
    r"""Folds some coordinates into three pieces, whose places and slopes depend on the others [1].

    With x = (x_1, x_2), of which x_1 is kept, the inverse direction is

    .. math:: z_1 = x_1, \qquad z_2 = \mathrm{fold}(x_2; \theta(x_1)),

    and the forward one draws, for every folded coordinate, one of its pieces from the gating law
    p(k|z). With `log_abs_det_jacobian`, the density of any `TransformedDistribution` with this
    transform is exact. The module ``pyromix.rad.pieces`` has the formulas. The gating network is
    a function of z_1 and of z_2, clamped to the ends of the folds.

    Slopes are bounded, so data should have about unit scale: put an `AffineTransform` last that
    standardises them, as `RAD` does.

    Args:
        dim: Number of coordinates, at least two.
        folded: Indices of the coordinates to fold; by default the second half.
        hidden_dims: Widths of the hidden layers of both networks: the one for the folds'
            parameters, and the gating network.

    Raises:
        ValueError: If there is no coordinate to keep or none to fold, or an argument is not of
            the kind above.

    Example:
        >>> import pyro.distributions as dist
        >>> base = dist.Normal(torch.zeros(2), torch.ones(2)).to_event(1)
        >>> law = dist.TransformedDistribution(base, [FoldingCoupling(2)])
        >>> law.log_prob(law.sample((5,))).shape
        torch.Size([5])

    References:
        [1] Dinh, Sohl-Dickstein, Pascanu and Larochelle, "A RAD approach to deep mixture models",
        2019. https://arxiv.org/abs/1903.07714
    """

    def __init__(
        self,
        dim: int,
        folded: Iterable[int] | None = None,
        hidden_dims: Sequence[int] = (8,),
    ) -> None:
        partition = Partition(dim, folded)
        if not partition.kept:
            raise ValueError(
                f"Expected at least one coordinate to keep, on which the folds of the others "
                f"depend, got dim={dim} and folded={partition.folded}. For a single coordinate "
                f"use pyromix.Fold."
            )
        hidden_dims = check_hidden_dims("hidden_dims", hidden_dims)
        super().__init__(partition, *_networks(partition, 0, hidden_dims))
        self.dim, self.folded = partition.dim, partition.folded
        self.hidden_dims = hidden_dims


class ConditionalFoldingCoupling(ConditionalTransformModule):
    """A folding coupling that depends on a context, too.

    `condition` returns the transform for a context. `pyromix.Flow` takes conditional transforms
    as they are.

    Args:
        dim: Number of coordinates. It may be one: its fold then depends on the context alone.
        context_dim: Number of entries of a context.
        folded: Indices of the coordinates to fold; by default the second half.
        hidden_dims: Widths of the hidden layers of both networks.

    Raises:
        ValueError: If an argument is not of the kind above.

    Example:
        >>> coupling = ConditionalFoldingCoupling(dim=2, context_dim=3)
        >>> coupling.condition(torch.randn(5, 3))(torch.randn(5, 2)).shape
        torch.Size([5, 2])
    """

    branching = True
    domain = constraints.real_vector
    codomain = constraints.real_vector

    def __init__(
        self,
        dim: int,
        context_dim: int,
        folded: Iterable[int] | None = None,
        hidden_dims: Sequence[int] = (8,),
    ) -> None:
        super().__init__()
        self.partition = Partition(dim, folded)
        self.dim, self.folded = self.partition.dim, self.partition.folded
        self.context_dim = check_positive_int("context_dim", context_dim)
        self.hidden_dims = check_hidden_dims("hidden_dims", hidden_dims)
        self.conditioner, self.gate = _networks(self.partition, self.context_dim, self.hidden_dims)

    def condition(self, context: TensorLike) -> FoldTransform:
        r"""Returns the coupling given a context.

        Args:
            context: Shape (\*B, context_dim); values must broadcast with it.

        Raises:
            ValueError: If the context does not fit, or is not finite.
        """
        context = as_rows("context", context, self.context_dim, like=next(self.parameters()))
        if not is_traced() and not bool(context.isfinite().all()):
            raise ValueError("Expected a finite context, got NaN or infinite entries.")
        return _Coupling(self.partition, self.conditioner, self.gate, context)


def _networks(
    partition: Partition, context_dim: int, hidden_dims: Sequence[int]
) -> tuple[nn.Sequential, nn.Sequential]:
    """The network for the folds' parameters, and the gating network."""
    num_folds = len(partition.folded)
    conditioner = make_network(
        len(partition.kept) + context_dim, hidden_dims, NUM_PARAMETERS * num_folds
    )
    gate = make_network(partition.dim + context_dim, hidden_dims, NUM_SCORES * num_folds)
    # Nearly symmetric folds, which depend a little on the kept coordinates.
    output: Any = conditioner[-1]
    with torch.no_grad():
        output.weight.mul_(0.5)
        output.bias.copy_(neutral_raw(num_folds, partition.dim).flatten())
    return conditioner, gate


for _cls in (FoldingCoupling, ConditionalFoldingCoupling):
    register(_cls)
