"""The law of images given their class."""

__all__ = ["ClassLaw", "class_weights"]

from typing import TYPE_CHECKING, Any

import torch
from pyro.distributions import TorchDistribution
from torch import Size, Tensor, nn
from torch.distributions import constraints
from torch.types import _size

from ..core.checks import check_expandable, check_value, is_traced
from .inference import log_prob
from .law import draw
from .sampling import SampleOptions, draw_images

if TYPE_CHECKING:
    from .model import DCGMM


class ClassLaw(TorchDistribution):
    r"""The law of a model's images given their class, of the batch shape of the labels.

    Args:
        model: A `DCGMM` with a classifier, whose parameters it shares.
        label: An integer, or integers of shape (\*B).

    Raises:
        ValueError: For labels that there are not.
    """

    arg_constraints: dict[str, constraints.Constraint] = {}  # noqa: RUF012 - as PyTorch has it
    support = constraints.independent(constraints.real, 3)

    def __init__(self, model: "DCGMM", label: Any) -> None:
        weights = model.class_log_weights
        label = torch.as_tensor(label, device=weights.device)
        if label.is_floating_point() or label.is_complex() or label.dtype == torch.bool:
            raise ValueError(f"Expected integer labels of classes, got {label.dtype}.")
        if not is_traced() and label.numel():
            low, high = (int(t) for t in label.aminmax())
            if low < 0 or high >= len(weights):
                raise ValueError(
                    f"Expected labels from 0 to {len(weights) - 1}, got labels from {low} to "
                    f"{high}."
                )
        self.model, self.label = model, label.long()
        validate = model._validate_args
        super().__init__(self.label.shape, model.event_shape, validate_args=False)
        self._validate_args = validate

    @property
    def log_weights(self) -> Tensor:
        r"""Log-probabilities of the top components, shape (\*B, K)."""
        return self.model.class_log_weights.log_softmax(-1)[self.label]

    def expand(self, batch_shape: _size, _instance: Any = None) -> "ClassLaw":
        """The law with labels repeated to a batch shape."""
        return ClassLaw(self.model, self.label.expand(check_expandable(self, batch_shape)))

    def log_prob(self, value: Tensor) -> Tensor:
        r"""Log-density of images ``(*S, *B, C, H, W)``: shape (\*S, \*B). Exact, or a bound."""
        model = self.model
        value = check_value(self, value, like=model._like)
        leading = torch.broadcast_shapes(value.shape[:-3], self.batch_shape)
        images = value.expand(*leading, *self.event_shape)
        weights = self.log_weights.expand(*leading, -1).flatten(0, -2)
        law = model.law.weighted(weights if leading else weights.reshape(1, -1))
        return log_prob(law, model._grid(images)).reshape(leading)

    def sample(
        self,
        sample_shape: _size = Size(),
        *,
        top_s: int | None = None,
        temperature: float = 1.0,
        sharpen_steps: int = 0,
        sharpen_rate: float | None = None,
        noise: bool = True,
    ) -> Tensor:
        r"""Draws images ``(*S, *B, C, H, W)`` without a graph; see `DCGMM.sample`."""
        options = SampleOptions(top_s, temperature, sharpen_steps, sharpen_rate, noise)
        shape = self._extended_shape(sample_shape)
        model = self.model
        with torch.no_grad():
            leading = shape[: -len(self.event_shape)]
            weights = self.log_weights.exp()
            weights = weights.expand(*leading, -1).reshape(leading.numel(), weights.shape[-1])
            top = draw(weights).unsqueeze(-1)
            images = draw_images(model.law, model._mixtures, top, options)
        return model._image(images).reshape(shape)


def class_weights(classifier: nn.Linear, log_weights: Tensor) -> Tensor:
    """Joint log-probabilities of classes and top components, shape (C, K)."""
    # The columns of the weights are what responsibilities of one component alone give.
    return (classifier.weight.mT + classifier.bias).log_softmax(-1).mT + log_weights
