"""Laws with a larger batch shape, made without a change of the law that they are made of."""

__all__ = ["Expandable", "ExpandedLaw", "expand_kept", "no_closed_form"]

import copy
from collections.abc import Sequence
from typing import Any

from pyro.distributions import TorchDistribution
from pyro.distributions.torch_distribution import ExpandedDistribution
from torch import Generator, Size, Tensor, nn
from torch.distributions import Distribution
from torch.types import _size

from .checks import check_expandable
from .registry import register


class ExpandedLaw(ExpandedDistribution):
    """Pyro's `ExpandedDistribution`, whose `expand` changes the law itself; here it does not.

    A law that is kept is expanded at every use, by plates and by particles: by the second use
    Pyro's would still have the batch shape of the first.

    Args:
        base_dist: The law to expand.
        batch_shape: The larger batch shape.

    Raises:
        ValueError: If that of the law does not expand to it.
    """

    def __init__(self, base_dist: Any, batch_shape: Sequence[int] = ()) -> None:
        # Not Pyro's constructor, which relies on `expand` to change the law.
        self.base_dist = base_dist
        batch_shape = check_expandable(base_dist, batch_shape)
        TorchDistribution.__init__(
            self, base_dist.batch_shape, base_dist.event_shape, validate_args=False
        )
        self._validate_args = base_dist._validate_args
        ExpandedDistribution.expand(self, batch_shape)
        self._batch_shape = Size(batch_shape)

    def expand(
        self, batch_shape: Sequence[int], _instance: Distribution | None = None
    ) -> "ExpandedLaw":
        """Returns the law with a still larger batch shape.

        Raises:
            ValueError: If the present batch shape does not expand to it.
        """
        return ExpandedLaw(self.base_dist, check_expandable(self, batch_shape))


register(ExpandedLaw)


class Expandable(TorchDistribution):
    """A law whose `expand` returns another one, which shares its parameters.

    Moments and pathwise draws that a subclass does not define are errors that say what to do
    instead.
    """

    @property
    def mean(self) -> Tensor:
        """Mean, of shape ``batch_shape + event_shape``, where there is a closed form.

        Raises:
            NotImplementedError: If there is none.
        """
        raise NotImplementedError(no_closed_form(self, "mean"))

    @property
    def variance(self) -> Tensor:
        """Variance of every entry, where there is a closed form.

        Raises:
            NotImplementedError: If there is none.
        """
        raise NotImplementedError(no_closed_form(self, "variance"))

    def rsample(
        self, sample_shape: _size = Size(), *, generator: Generator | None = None
    ) -> Tensor:
        """Draws with pathwise gradients, where there are such.

        Raises:
            NotImplementedError: If there are none.
        """
        raise NotImplementedError(
            f"Not available: draws of {type(self).__name__} have no pathwise gradients: draw with "
            f"sample()."
        )

    def expand(self, batch_shape: Sequence[int], _instance: Distribution | None = None) -> Any:
        """Returns the law with a larger batch shape.

        Args:
            batch_shape: The larger shape.

        Raises:
            ValueError: If the present batch shape does not expand to it.
        """
        return ExpandedLaw(self, batch_shape)


def no_closed_form(law: Distribution, moment: str) -> str:
    """What to say of a mean or variance that has no closed form."""
    short = {"mean": "mean", "variance": "var"}[moment]
    return (
        f"Not available: the {moment} of {type(law).__name__} has no closed form. Use that of "
        f"draws, sample((n,)).{short}(0)."
    )


def expand_kept(law: Any, batch_shape: Sequence[int]) -> Any:
    """Expands a law of any class that is kept for other uses: it stays as it is.

    Args:
        law: A law that may be, or contain, one of Pyro's `ExpandedDistribution`.
        batch_shape: The larger batch shape.
    """
    return _copied(law).expand(batch_shape)


def _copied(law: Any) -> Any:
    """A copy of the laws around a law; what has tensors of its own is shared."""
    if isinstance(law, nn.Module) or not hasattr(law, "base_dist"):
        return law
    copied = copy.copy(law)
    copied.base_dist = _copied(law.base_dist)
    return copied
