"""The contract between a model and the law that its parameters stand for."""

__all__ = ["LawModule"]

from abc import abstractmethod
from typing import Any, Generic, TypeVar

from torch import Generator, Size, Tensor
from torch.distributions import Distribution
from torch.types import _size

from .batch import Batch, check_paired, split_batch
from .draws import without_graph
from .module import DistributionModule
from .random import takes_generator

# Any: the law may be of any class, as long as it has the methods that a model hands on to it.
Law = TypeVar("Law", bound=Any)


class LawModule(DistributionModule, Generic[Law]):
    """A model that says what its law is, and leaves density and draws to it.

    The parameters live in the module. `law` builds the law that they stand for at present, with
    gradients to them. A subclass defines `_law_given`, the one way from module to law; density,
    draws, moments and the loss follow. One that takes a context says so by `conditional`, and
    defines `condition` by `_law_given`.

    The law may be any object. Where it is a distribution, a subclass needs no more; where it is
    not, the subclass defines `log_prob` and `sample` itself. One that scores values in another
    way than by the law's `log_prob`, such as without their missing entries, defines `_score`.
    """

    def __class_getitem__(cls, law: Any) -> type:
        """The class itself: which class the law has matters to type checkers alone.

        Pyro's distributions derive from `Callable`, whose subscript would stand before Generic's.
        """
        return cls

    @abstractmethod
    def _law_given(self, *args: Any, **context: Any) -> Law:
        """The law with the present parameters, given a context where the model takes one.

        A subclass declares the arguments that it has: none, or ``context=None`` and others.
        """

    def _score(self, law: Law, value: Tensor) -> Tensor:
        """Log-density of values under a law that `_law_given` returned."""
        return law.log_prob(value)

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
        return self._as_distribution().mean

    @property
    def variance(self) -> Tensor:
        """Variance of every coordinate, of the event shape."""
        return self._as_distribution().variance

    def log_prob(self, value: Tensor) -> Tensor:
        r"""Log-density at points of shape (\*S, \*event_shape); shape (\*S)."""
        return self._score(self.law, value)

    @without_graph
    @takes_generator
    def sample(
        self, sample_shape: _size = Size(), *, generator: Generator | None = None
    ) -> Tensor:
        r"""Draws without a graph, shape (\*S, \*event_shape).

        Args:
            sample_shape: Shape S of the draws.
            generator: Where random numbers come from; by default PyTorch's global generator.
        """
        return self.law.sample(sample_shape)

    @takes_generator
    def rsample(
        self, sample_shape: _size = Size(), *, generator: Generator | None = None
    ) -> Tensor:
        r"""Draws with pathwise gradients, shape (\*S, \*event_shape).

        Args:
            sample_shape: Shape S of the draws.
            generator: Where random numbers come from; by default PyTorch's global generator.
        """
        return self._as_distribution().rsample(sample_shape)

    def _as_distribution(self) -> Distribution:
        """The law, for what only distributions have.

        Raises:
            NotImplementedError: If the law is no distribution. An `AttributeError` would be
                reported as a missing attribute of the module.
        """
        law: Any = self.law
        if not isinstance(law, Distribution):
            raise NotImplementedError(
                f"Not available: the law of {type(self).__name__} has no closed form for it. Use "
                f"draws of sample((n,))."
            )
        return law

    def loss(self, batch: Batch, progress: float = 1.0) -> Tensor:  # noqa: ARG002
        """Mean negative log-density of a batch: values, or a pair of values and context.

        Raises:
            ValueError: If the batch has a context and the model takes none, or the other way
                round.
        """
        value, context = split_batch(batch)
        if context is None:
            law = self.law
        elif self.conditional:
            law = self._law_given(context=context)
        else:
            raise ValueError(
                f"Expected values alone, got a batch that is a pair, which is read as values and "
                f"context. This {type(self).__name__} takes no context: leave labels out, or "
                f"build a model that is conditional."
            )
        check_paired(law, value)
        return -self._score(law, value).mean()
