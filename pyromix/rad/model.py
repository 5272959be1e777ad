"""RAD: a flow of folding couplings."""

__all__ = ["RAD"]

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch.distributions import AffineTransform, Distribution

from ..core.batch import Batch, split_batch
from ..core.checks import Check, as_items, check_arguments, check_count, check_positive_int
from ..core.conversions import as_tensor
from ..core.standardize import location_and_scale
from ..flows.flow import Flow
from .coupling import ConditionalFoldingCoupling, FoldingCoupling
from .fold import check_hidden_dims

Partitions = str | Sequence[Sequence[int]]


class RAD(Flow):
    r"""A flow with real and discrete latents: folds, which map several modes onto one [1].

    .. math:: \log p(x) = \log p_Z(z) + \sum_l \log p(k_l \mid z_l)
                          + \log |\det \partial z_l / \partial z_{l-1}|

    Every layer folds a part of the coordinates. The piece of the fold that a point lies on is a
    discrete latent, its branch :math:`k_l`; z is the real latent. Each x has one z and one k, so
    the density is exact. A bijection has to stretch the space between two modes, and its draws
    fill some of that; a fold does not.

    Draws have no pathwise gradient (``has_rsample`` is False), as branches are discrete. In a
    guide, a part of the gradient is pathwise, and a score function has the rest: see the module
    ``pyromix.flows.branch_gradients``. Train it with `Trace_ELBO` or `TraceGraph_ELBO`: Pyro's
    `RenyiELBO` refuses such a mixture, by a `NotImplementedError` without words. The log-density
    is continuous, but its gradient is not where two pieces meet: Hamiltonian Monte Carlo takes
    short steps. `expand`, `encode` and `decode` are those of `Flow`.

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

    argument_checks: ClassVar[Mapping[str, Check]] = {
        "dim": check_positive_int,
        "num_layers": check_positive_int,
        "hidden_dims": check_hidden_dims,
        "context_dim": check_count,
    }
    dim: int
    num_layers: int
    hidden_dims: tuple[int, ...]
    context_dim: int

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
        arguments = check_arguments(self.argument_checks, locals())
        dim, num_layers = arguments["dim"], arguments["num_layers"]
        partition = _partitions(partition, dim, num_layers, bool(context_dim))
        if base is None:
            # Values are checked before they get there.
            base = dist.Normal(torch.zeros(dim), torch.ones(dim), validate_args=False).to_event(1)
        elif not isinstance(base, Distribution):
            raise ValueError(f"Expected base to be a distribution, got {type(base).__name__}.")
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
        self.keep_arguments(arguments)
        self.partition = tuple(layer.folded for layer in layers)

    @torch.no_grad()
    def initialize(self, data: Batch) -> None:
        """Takes location and scale of the data, and initialises the base if it is learnable.

        Args:
            data: Training data, in the form of a batch.

        Raises:
            ValueError: If the data are not vectors of the right length and dtype, or not finite.
        """
        like = next(self.parameters())
        x = as_tensor("the data", split_batch(data, like=like)[0], like=like)
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


def _partitions(
    partition: Partitions, dim: int, num_layers: int, has_context: bool
) -> tuple[Sequence[int], ...]:
    """Indices of folded coordinates for every layer.

    Raises:
        ValueError: If the partition is of another kind, or there are not as many as layers.
    """
    if isinstance(partition, str):
        if partition not in ("alternate", "random"):
            raise ValueError(
                f"Expected partition to be 'alternate', 'random' or indices for every layer, got "
                f"{partition!r}."
            )
        if dim == 1:
            if not has_context:
                raise ValueError(
                    "Expected at least two coordinates: the folds of some depend on the others. "
                    "For one coordinate use pyromix.Flow(base, [pyromix.Fold(), ...])."
                )
            return ((0,),) * num_layers
        half, chosen = dim // 2, []
        for layer in range(num_layers):
            order = list(range(dim)) if partition == "alternate" else torch.randperm(dim).tolist()
            chosen.append(tuple(sorted(order[half:] if layer % 2 == 0 else order[:half])))
        return tuple(chosen)
    layers = as_items(partition)
    if layers is None or len(layers) != num_layers:
        got = repr(partition) if layers is None else f"{len(layers)} sequences"
        raise ValueError(
            f"Expected partition to have indices for each of {num_layers} layers, got {got}."
        )
    return tuple(layers)
