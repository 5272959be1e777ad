"""Flows of zuko as models of pyromix."""

from typing import Any

import torch
from torch import Size, Tensor
from torch.distributions import (
    AffineTransform,
    Distribution,
    TransformedDistribution,
    constraints,
)
from torch.types import _size

from pyromix import DistributionModule
from pyromix.core.batch import Batch, split_batch


class ZukoLaw(TransformedDistribution):
    """The law of one of zuko's flows, which do not broadcast values with contexts."""

    def log_prob(self, value: Tensor) -> Tensor:
        shape = torch.broadcast_shapes(value.shape[:-1], self.batch_shape)
        return super().log_prob(value.expand(*shape, -1))


class ZukoFlow(DistributionModule):
    """One of zuko's flows, after the standardisation that pyromix's flows have.

    Args:
        flow: Flow of zuko.
        dim: Number of coordinates.
        context_dim: Number of coordinates of the context; zero for a flow without one.
    """

    support = constraints.real_vector
    loc: Tensor
    scale: Tensor

    def __init__(self, flow: Any, dim: int, context_dim: int = 0) -> None:
        super().__init__(event_shape=(dim,))
        self.flow, self.context_dim = flow, context_dim
        self.register_buffer("loc", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))

    @property
    def conditional(self) -> bool:
        return self.context_dim > 0

    def condition(self, context: Tensor | None) -> Distribution:
        standardize = AffineTransform(self.loc, self.scale, event_dim=1)
        return ZukoLaw(self.flow(context), standardize, validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        # Without a law in between, which would count in timings.
        return self.flow().log_prob((value - self.loc) / self.scale) - self.scale.log().sum()

    @torch.no_grad()
    def sample(self, sample_shape: _size = Size()) -> Tensor:
        return self.loc + self.scale * self.flow().sample(sample_shape)

    def encode(self, value: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The latent of a value, and no branches."""
        return self.flow().transform((value - self.loc) / self.scale), ()

    def initialize(self, data: Batch) -> None:
        super().initialize(data)
        value, _ = split_batch(data)
        self.loc.copy_(value.mean(0))
        self.scale.copy_(value.std(0, correction=0))
