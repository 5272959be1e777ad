"""RAD: a flow of folding couplings."""

__all__ = ["RAD"]

from collections.abc import Mapping, Sequence
from typing import Any, Self

import pyro.distributions as dist
import torch
from torch.distributions import AffineTransform, Distribution

from ..core.batch import Batch, split_batch
from ..core.checks import check_positive_int, check_tensor
from ..core.module import DistributionModule
from ..core.networks import location_and_scale
from ..flows.flow import Flow
from .coupling import ConditionalFoldingCoupling, FoldingCoupling

Partitions = str | Sequence[Sequence[int]]


class RAD(Flow):
    r"""A flow with real and discrete latents: folds lay modes on top of each other.

    Every layer folds a part of the coordinates and remembers, as a discrete latent, which layer
    of the fold a point was on. With z the real latent and k_l the branches,

    .. math:: \log p(x) = \log p_Z(z) + \sum_l \log p(k_l \mid z_l)
                          + \log |\det \partial z_l / \partial z_{l-1}|,

    exactly: each x has one z and one k. Where a bijection has to stretch space between two modes,
    a fold does not; draws leave no bridges.

    Draws are not reparameterised (``has_rsample`` is False): branches are discrete. In a guide,
    gradients are pathwise as far as they can be, with a score function for the rest; see
    ``pyromix.branch_gradients``. The log-density is continuous, with kinks at creases, for which
    Hamiltonian Monte Carlo takes short steps. `expand`, `encode` and `decode` are those of `Flow`.

    Args:
        dim: Number of coordinates.
        num_layers: Number of folding couplings.
        hidden_dims: Widths of the hidden layers of every network.
        base: The law of z, on vectors of length `dim`; by default a standard normal.
        partition: Which coordinates a layer folds: ``"alternate"`` halves; ``"random"`` halves,
            drawn from PyTorch's global random state; or one sequence of indices per layer, from
            the base to the data. It is kept in the last form.
        context_dim: Number of entries of a context, on which every layer depends; `condition`
            then gives the law. They should be of order one: contexts are not standardised. Zero
            for a law without one.
        validate_args: Whether to check the values that are scored.

    Raises:
        ValueError: If an argument is not of the kind above.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> rad = RAD(dim=2, num_layers=4)
        >>> x = rad.sample((5,))
        >>> z, branches = rad.encode(x)
        >>> len(branches), torch.allclose(rad.decode(z, branches), x, atol=1e-4)
        (4, True)

    References:
        [1] Dinh, Sohl-Dickstein, Pascanu and Larochelle, "A RAD approach to deep mixture models",
        2019. https://arxiv.org/abs/1903.07714
    """

    def __init__(
        self,
        dim: int,
        num_layers: int = 6,
        hidden_dims: Sequence[int] = (8,),
        base: Distribution | None = None,
        partition: Partitions = "alternate",
        context_dim: int = 0,
        validate_args: bool | None = None,
    ) -> None:
        dim = check_positive_int("dim", dim)
        num_layers = check_positive_int("num_layers", num_layers)
        partition = _partitions(partition, dim, num_layers, bool(context_dim))
        if base is None:
            # Values are checked before they get there.
            base = dist.Normal(torch.zeros(dim), torch.ones(dim), validate_args=False).to_event(1)
        elif base.batch_shape + base.event_shape != (dim,):
            raise ValueError(
                f"Expected a base on vectors of length {dim}, got one with batch shape "
                f"{tuple(base.batch_shape)} and event shape {tuple(base.event_shape)}."
            )
        layers: list[Any] = [
            ConditionalFoldingCoupling(dim, context_dim, folded, hidden_dims)
            if context_dim
            else FoldingCoupling(dim, folded, hidden_dims)
            for folded in partition
        ]
        # Location and scale of the data, which `initialize` sets.
        standardize = AffineTransform(torch.zeros(dim), torch.ones(dim), event_dim=1)
        super().__init__(base, [*layers, standardize], validate_args)
        self.dim = dim
        self.num_layers = num_layers
        self.hidden_dims = layers[0].hidden_dims
        self.partition = tuple(layer.folded for layer in layers)
        self.context_dim = context_dim

    def initialize(self, data: Batch) -> None:
        """Takes location and scale of the data, and initialises the base if it is learnable.

        Raises:
            ValueError: If the data are not vectors of the right length and dtype, or not finite.
        """
        x, _ = split_batch(data)
        check_tensor("the data", x, like=next(self.parameters()))
        if x.dim() != 2 or x.shape[-1] != self.dim or not x.isfinite().all():
            raise ValueError(
                f"Expected finite data of shape (N, {self.dim}), got shape {tuple(x.shape)} with "
                f"{int((~x.isfinite()).sum())} entries that are not finite."
            )
        loc, scale = location_and_scale(x)
        arguments: Any = self.transforms[-1].arguments
        arguments.loc.copy_(loc)
        arguments.scale.copy_(scale)
        super().initialize(data)

    config = DistributionModule.config  # dim, num_layers and the like instead of the transforms

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Builds a model from what `config` returned; its parameters are not yet set."""
        return super(Flow, cls).from_config(config)


def _partitions(
    partition: Partitions, dim: int, num_layers: int, has_context: bool
) -> tuple[Sequence[int], ...]:
    """Indices of folded coordinates, layer by layer."""
    if isinstance(partition, str):
        if partition not in ("alternate", "random"):
            raise ValueError(
                f"Expected partition to be 'alternate', 'random' or indices for every layer, got "
                f"{partition!r}."
            )
        if dim == 1:
            if not has_context:
                raise ValueError(
                    "Expected at least two coordinates: a layer folds some, as the others say. "
                    "For one coordinate use pyromix.Flow(base, [pyromix.Fold(), ...])."
                )
            return ((0,),) * num_layers
        half, layers = dim // 2, []
        for layer in range(num_layers):
            order = list(range(dim)) if partition == "alternate" else torch.randperm(dim).tolist()
            layers.append(tuple(sorted(order[half:] if layer % 2 == 0 else order[:half])))
        return tuple(layers)
    if len(partition) != num_layers:
        raise ValueError(
            f"Expected indices for each of {num_layers} layers, got {len(partition)} sequences."
        )
    return tuple(partition)
