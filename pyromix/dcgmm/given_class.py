"""The law of images given their class."""

__all__ = ["ClassLaw", "class_weights"]

from collections.abc import Sequence
from typing import Any, Unpack

import torch
from torch import Generator, Size, Tensor, nn
from torch.distributions import constraints
from torch.types import _size

from ..core.checks import check_expandable, check_value
from ..core.conversions import TensorLike, as_labels
from ..core.draws import without_graph
from ..core.expanded import Expandable
from ..core.random import takes_generator
from .inference import log_prob
from .law import draw
from .mixture_stack import MixtureStack
from .sampling import SampleArguments, SampleOptions


class ClassLaw(Expandable):
    r"""The law of a model's images given their class, of the batch shape of the labels.

    Args:
        model: A `DCGMM` with a classifier, whose parameters it shares.
        label: An integer, or integers of shape (\*B), from 0 to C - 1.

    Raises:
        ValueError: Without a classifier, or for labels that there are not.
    """

    # The model is kept, not its present law: tensors computed from parameters cannot be
    # deep-copied, and do not change with the parameters.

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012 - as PyTorch has it
    support = constraints.independent(constraints.real, 3)

    def __init__(self, model: MixtureStack, label: TensorLike) -> None:
        classifier = model._classifier
        device = classifier.weight.device
        self.model, self.label = model, as_labels(label, classifier.out_features, device)
        validate = model._validate_args
        super().__init__(self.label.shape, model.event_shape, validate_args=False)
        self._validate_args = validate

    @property
    def log_weights(self) -> Tensor:
        r"""Log-probabilities of the top components, shape (\*B, K)."""
        joint = class_weights(self.model._classifier, self.model._mixtures[-1].log_weights)
        return joint.log_softmax(-1)[self.label]

    def expand(self, batch_shape: Sequence[int], _instance: Any = None) -> "ClassLaw":
        """Returns the law with labels repeated to a batch shape."""
        return ClassLaw(self.model, self.label.expand(check_expandable(self, batch_shape)))

    def log_prob(self, value: Tensor) -> Tensor:
        r"""Returns the log-density of images, or a lower bound of it: see `DCGMM.exact`.

        Args:
            value: Images, shape ``(*S, *B, C, H, W)``.

        Returns:
            Tensor of shape (\*S, \*B).
        """
        model = self.model
        value = check_value(self, value, like=model._like)
        leading = torch.broadcast_shapes(value.shape[:-3], self.batch_shape)
        images = value.expand(*leading, *self.event_shape)
        weights = self.log_weights.expand(*leading, -1)
        law = model.law.weighted(weights.reshape(leading.numel(), weights.shape[-1]))
        return log_prob(law, model._grid(images)).reshape(leading)

    @without_graph
    @takes_generator
    def sample(
        self,
        sample_shape: _size = Size(),
        *,
        generator: Generator | None = None,
        **options: Unpack[SampleArguments],
    ) -> Tensor:
        r"""Draws images without a graph.

        Args:
            sample_shape: Shape S of the draws.
            options: Those of `DCGMM.sample`.
            generator: Where random numbers come from; by default PyTorch's global generator.

        Returns:
            Tensor of shape ``(*S, *B, C, H, W)``.
        """
        checked, model = SampleOptions(**options), self.model
        shape = self._extended_shape(sample_shape)
        leading = shape[: -len(self.event_shape)]
        weights = self.log_weights.exp()
        weights = weights.expand(*leading, -1).reshape(leading.numel(), weights.shape[-1])
        images = model._draw(model.law, draw(weights).unsqueeze(-1), checked)
        return images.reshape(shape)


def class_weights(classifier: nn.Linear, log_weights: Tensor) -> Tensor:
    """Returns log-probabilities of classes y and top components k, log p(y) p(k|y).

    Args:
        classifier: Of the responsibilities of K top components.
        log_weights: Log-weights of these, shape (K,).

    Returns:
        Tensor of shape (C, K).
    """
    # The columns of the weights are what responsibilities of one component alone give.
    return (classifier.weight.mT + classifier.bias).log_softmax(-1).mT + log_weights
