"""The contract between a model and the law that its parameters stand for."""

__all__ = ["LawModule"]

from abc import abstractmethod
from typing import Any, Generic, TypeVar

from torch import Size, Tensor
from torch.types import _size

from .batch import Batch, check_paired, split_batch
from .module import DistributionModule

Law = TypeVar("Law")


class LawModule(DistributionModule, Generic[Law]):
    """A model that says what its law is, and leaves density and draws to it.

    The parameters live in the module. `law` builds the law that they stand for at present, with
    gradients to them. A subclass defines `_law_given`, the one way from module to law; density,
    draws, moments and the loss follow. One that takes a context says so by `conditional`.

    The law may be any object. Where it is a distribution, a subclass needs no more; where it is
    not, the subclass defines `log_prob` and `sample` itself.
    """

    @abstractmethod
    def _law_given(self, **context: Any) -> Law:
        """The law with the present parameters, given a context where the model takes one."""

    @property
    def law(self) -> Law:
        """The law with the present parameters, and gradients to them.

        Raises:
            ValueError: If the model needs a context: then `condition` returns the law.
        """
        if self.conditional:
            raise ValueError(
                f"This {type(self).__name__} needs a context. Call condition(context), and use "
                f"the distribution that it returns; train on pairs (values, context)."
            )
        return self._law_given()

    @property
    def mean(self) -> Tensor:
        """Mean of the law, of the event shape."""
        law: Any = self.law
        return law.mean

    @property
    def variance(self) -> Tensor:
        """Variance of every coordinate, of the event shape."""
        law: Any = self.law
        return law.variance

    def log_prob(self, value: Tensor) -> Tensor:
        r"""Log-density at points of shape (\*S, \*event_shape); shape (\*S)."""
        law: Any = self.law
        return law.log_prob(value)

    def sample(self, sample_shape: _size = Size()) -> Tensor:
        r"""Draws without a graph, shape (\*S, \*event_shape)."""
        law: Any = self.law
        return law.sample(sample_shape)

    def rsample(self, sample_shape: _size = Size()) -> Tensor:
        r"""Draws with pathwise gradients, shape (\*S, \*event_shape)."""
        law: Any = self.law
        return law.rsample(sample_shape)

    def loss(self, batch: Batch, progress: float = 1.0) -> Tensor:  # noqa: ARG002
        """Mean negative log-density of a batch: values, or a pair of values and context."""
        value, context = split_batch(batch)
        law: Any = self._law_given() if context is None else self._law_given(context=context)
        check_paired(law, value)
        return -law.log_prob(value).mean()
