"""What laws over real vectors have in common whose parameters are tensors."""

__all__ = ["TensorLaw"]

from collections.abc import Sequence
from typing import Any, Self, TypeVar

import torch
from pyro.distributions import TorchDistribution
from torch import Generator, Size, Tensor
from torch.distributions import Distribution, constraints
from torch.types import _size

from ..core.checks import check_expandable, is_traced
from ..core.draws import without_graph
from ..core.random import takes_generator

Other = TypeVar("Other", bound="TensorLaw")


class TensorLaw(TorchDistribution):
    r"""A law over D real numbers that keeps its parameters as they were given, not expanded.

    Their batch shapes broadcast to that of the law. A subclass checks the values of parameters
    itself, if `_checks_values` says so: with errors that name a remedy, and without expanding
    them, as PyTorch's constructor would.

    Args:
        batch_shape: Shape B of the batch.
        dim: Dimension D of a sample.
        validate_args: Whether to check the values of parameters and of scored samples; by
            default as PyTorch is set.
    """

    support = constraints.real_vector
    has_rsample = True

    def __init__(self, batch_shape: Size, dim: int, validate_args: bool | None = None) -> None:
        super().__init__(batch_shape, Size((dim,)), validate_args=False)
        if validate_args is None:
            validate_args = Distribution._validate_args
        self._validate_args = validate_args

    @property
    def _checks_values(self) -> bool:
        """Whether values are to be checked, and are known."""
        return bool(self._validate_args) and not is_traced()

    @classmethod
    def infer_shapes(cls, **arg_shapes: Sequence[int]) -> tuple[Size, Size]:
        """Batch shape and event shape of the law that parameters of given shapes make.

        Args:
            arg_shapes: Names of the constructor's tensors and their shapes.
        """
        parameters: Any = cls.arg_constraints
        batch_shapes = [
            shape[: len(shape) - parameters[name].event_dim] for name, shape in arg_shapes.items()
        ]
        return torch.broadcast_shapes(*batch_shapes), Size(arg_shapes["loc"][-1:])

    def expand(self, batch_shape: Sequence[int], _instance: Distribution | None = None) -> Self:
        """Returns the law with a larger batch shape; nothing is copied.

        Raises:
            ValueError: If the present batch shape does not expand to it.
        """
        batch_shape = check_expandable(self, batch_shape)
        new = self._get_checked_instance(type(self), _instance)
        new.__dict__.update(self.__dict__)  # torch.compile may not know vars
        TensorLaw.__init__(new, batch_shape, self.event_shape[0], self._validate_args)
        return new

    @without_graph
    @takes_generator
    def sample(
        self, sample_shape: _size = Size(), *, generator: Generator | None = None
    ) -> Tensor:
        r"""Draws without a graph, shape (\*S, \*B, D).

        Args:
            sample_shape: Shape S of the draws.
            generator: Where random numbers come from; by default PyTorch's global generator.
        """
        return self.rsample(sample_shape)

    def _over_batch(self, parameter: Tensor, tail: int) -> Tensor:
        """A parameter, of `tail` dimensions after the batch, expanded to the batch shape."""
        return parameter.expand(*self.batch_shape, *parameter.shape[parameter.dim() - tail :])

    def _inherit(self, other: Other) -> Other:
        """Lets another law check values as this one does, and returns it."""
        other._validate_args = self._validate_args
        return other
