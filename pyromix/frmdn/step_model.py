"""What the law and the draws of sequences need of a model."""

__all__ = ["StepModel"]

from typing import Protocol

from torch import Size, Tensor

from ..core.standardize import Standardize
from ..flows.law import FlowLaw
from .inputs import Inputs
from .recurrence import Recurrence


class StepModel(Protocol):
    """A model that gives the law of every step, from its state; `FRMDN` is one."""

    @property
    def event_shape(self) -> Size:
        """Number of steps T, and of entries D of a value."""

    @property
    def has_rsample(self) -> bool:
        """Whether draws have pathwise gradients, as Pyro may have switched them off."""

    @property
    def has_pathwise_draws(self) -> bool:
        """Whether no transform draws branches, so that draws can have pathwise gradients."""

    @property
    def start(self) -> Tensor:
        """What the recurrence is fed in place of a value before the first, shape (D,)."""

    @property
    def standardize(self) -> Standardize:
        """From values to what the recurrence is fed."""

    @property
    def inputs(self) -> Inputs:
        """From contexts to what the recurrence is fed beside values."""

    @property
    def recurrence(self) -> Recurrence:
        """From what it is fed to states."""

    def law_of_step(self, states: Tensor) -> FlowLaw:
        r"""The law of a value of D entries given states of shape (\*B, H), of batch shape B."""
