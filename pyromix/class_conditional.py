"""A conditional model of every class, and the classes' probabilities, as one distribution."""

__all__ = ["ClassConditional", "class_conditional"]

from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Generator, Size, Tensor
from torch.distributions import Categorical, Distribution, constraints
from torch.types import _size

from .core.batch import Batch, split_batch
from .core.checks import (
    Check,
    check_arguments,
    check_positive_int,
    check_reachable,
    check_value,
)
from .core.conversions import TensorLike, as_labels, as_tensor, as_value
from .core.draws import without_graph
from .core.module import DistributionModule
from .core.random import takes_generator
from .core.registry import decode
from .numerics.batches import draw_components


def class_conditional(
    model: DistributionModule,
    num_classes: int,
    *,
    prior: TensorLike | None = None,
    contexts: TensorLike | None = None,
) -> "ClassConditional":
    r"""The law of x if its class is not known, from a model of x given the class.

    .. math:: p(x) = \sum_{y=1}^C p(y) \, p(x \mid y)

    Args:
        model: A conditional model, such as ``FRMDN(..., static_dim=C)``,
            ``GaussianMixture(..., context_dim=C)``, ``RAD(..., context_dim=C)``, or a `Flow` with
            a conditional base or conditional transforms.
        num_classes: Number of classes C.
        prior: Probabilities of the classes, shape (C,); by default all are equal.
        contexts: What `model.condition` is given for each class, shape (C, ...); by default the
            rows of the identity matrix, which are labels as one-hot vectors.

    Returns:
        A distribution over x that classifies, too. It shares the model's parameters: train either
        of the two.

    Raises:
        ValueError: If the model takes no context, or an argument does not fit.

    Example:
        >>> from pyromix import GaussianMixture, fit
        >>> _ = torch.manual_seed(0)
        >>> labels = torch.randint(2, (500,))
        >>> points = torch.randn(500, 1) + 6.0 * labels.unsqueeze(-1)
        >>> law = class_conditional(GaussianMixture(1, 1, context_dim=2), num_classes=2)
        >>> history = fit(law, (points, labels), steps=200, lr=0.02, progress_bar=False)
        >>> law.classify(torch.tensor([[-1.0], [7.0]]))
        tensor([0, 1])
    """
    return ClassConditional(model, num_classes, prior=prior, contexts=contexts)


# By the name of a class, what models do about labels that take no context.
REMEDIES = {
    "DRMM": (
        "Make the label a categorical column: DRMM(dim, ..., categories=(C,)), trained on rows "
        "that end with it. Then condition(Observed({dim: label})) is the law given a class, and "
        "condition(Observed({0: x0, 1: x1, ...})).probs(dim) classifies."
    ),
    "DCGMM": (
        "End the layers with Classifier(C), and train on pairs of images and labels. Then "
        "condition(label) is the law given a class, and classify(images) classifies."
    ),
}


def _check_model(name: str, value: object) -> DistributionModule:
    """Checks that a model takes a context, and returns it."""
    names = [cls.__name__ for cls in type(value).__mro__]
    remedy = next((REMEDIES[name] for name in names if name in REMEDIES), "")
    if remedy:
        raise ValueError(
            f"Expected a {name} that takes a context, got {type(value).__name__}, which has other "
            f"ways to learn labels. {remedy} Or train one model for each class."
        )
    if not isinstance(value, DistributionModule) or not value.conditional:
        raise ValueError(
            f"Expected a {name} that takes a context, got {type(value).__name__}"
            f"{'' if isinstance(value, DistributionModule) else ', which is no model'}. Build "
            f"it with static_dim or context_dim, or with conditional transforms."
        )
    return value


def _check_prior(prior: Tensor, count: int) -> Tensor:
    """Checks that a prior holds the probabilities of so many classes, and returns it."""
    total = prior.sum().item()
    if prior.shape != (count,) or bool((prior < 0).any()) or not abs(total - 1) < 1e-4:
        raise ValueError(
            f"Expected a prior of {count} probabilities that sum to 1, got shape "
            f"{tuple(prior.shape)}, sum {total:g}."
        )
    return prior


class ClassConditional(DistributionModule):
    r"""A mixture over classes of the laws that a conditional model gives; see `class_conditional`.

    .. math:: p(x) = \sum_{y=1}^C p(y) \, p(x \mid y)

    Args:
        model: The model of x given the class.
        num_classes: Number of classes C.
        prior: Probabilities of the classes, shape (C,).
        contexts: Context of each class, shape (C, ...).
        validate_args: Whether to check the values that are scored.

    Raises:
        ValueError: If the model takes no context, or an argument does not fit.
    """

    argument_checks: ClassVar[Mapping[str, Check]] = {
        "num_classes": check_positive_int,
        "model": _check_model,
    }
    model: DistributionModule
    num_classes: int
    prior: Tensor
    contexts: Tensor

    def __init__(
        self,
        model: DistributionModule,
        num_classes: int,
        prior: TensorLike | None = None,
        contexts: TensorLike | None = None,
        validate_args: bool | None = None,
    ) -> None:
        arguments = check_arguments(ClassConditional.argument_checks, locals())
        like, count = next(model.parameters()), arguments["num_classes"]
        prior = like.new_full((count,), 1 / count) if prior is None else prior
        contexts = torch.eye(count).to(like) if contexts is None else contexts
        prior = _check_prior(as_tensor("prior", prior, like=like), count)
        contexts = as_tensor("contexts", contexts, like=like)
        if contexts.dim() < 2 or len(contexts) != count:
            raise ValueError(
                f"Expected contexts of shape ({count}, ...), one for each class, got "
                f"{tuple(contexts.shape)}."
            )
        law = model.condition(contexts)  # says what does not fit
        if law.batch_shape != (count,):
            raise ValueError(
                f"Expected a model that gives one law for each of {count} contexts, got batch "
                f"shape {tuple(law.batch_shape)}."
            )
        super().__init__(event_shape=law.event_shape, validate_args=validate_args)
        self.keep_arguments(arguments)
        self.register_buffer("prior", prior.detach().clone())
        self.register_buffer("contexts", contexts.detach().clone())

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Builds a model from what `config` returned; its parameters are not yet set."""
        arguments = {name: decode(value) for name, value in config.items()}
        # The model is rebuilt in PyTorch's default dtype, which need not be that of the file.
        like = next(arguments["model"].parameters())
        for name in arguments.keys() & {"prior", "contexts"}:
            arguments[name] = arguments[name].to(like)
        return cls(**arguments)

    @property
    def support(self) -> constraints.Constraint:
        """Support of the laws that the model gives; all of space if they declare none."""
        support = self.model.support
        if support is None:
            return constraints.independent(constraints.real, len(self.event_shape))
        return support

    @property
    def mean(self) -> Tensor:
        """Mean, of the event shape: that of the classes' means.

        Raises:
            NotImplementedError: If the laws that the model gives have none in closed form.
        """
        return (self._weights * self.model.condition(self.contexts).mean).sum(0)

    @property
    def variance(self) -> Tensor:
        """Variance of every entry: within the classes, and of their means.

        Raises:
            NotImplementedError: If the laws that the model gives have none in closed form.
        """
        law = self.model.condition(self.contexts)
        weights, mean = self._weights, law.mean
        spread = (mean - (weights * mean).sum(0)).square()
        return (weights * (law.variance + spread)).sum(0)

    @property
    def _weights(self) -> Tensor:
        """The prior, to be multiplied with one event for each class."""
        return self.prior.reshape(-1, *[1] * len(self.event_shape))

    def condition(self, label: Any) -> Distribution:
        r"""The law of x given its class.

        Args:
            label: An integer, or integers of shape (\*B), from 0 to C - 1: a tensor, an array or
                a list.

        Returns:
            The law that the model gives, of batch shape B.

        Raises:
            ValueError: If a label is not an integer, or out of range.
        """
        return self.model.condition(self.contexts[self._labels(label)])

    def class_log_prob(self, value: TensorLike) -> Tensor:
        r"""Log-density given every class.

        Args:
            value: Shape ``(*S, *event_shape)``: a tensor, an array or nested lists.

        Returns:
            Tensor :math:`\log p(x \mid y)` of shape (\*S, C).
        """
        return self._class_log_prob(as_value(self, value, like=self.contexts))

    def _class_log_prob(self, value: Tensor) -> Tensor:
        """Log-density of checked values given every class, shape (*S, C)."""
        event_dim = len(self.event_shape)
        leading = value.shape[: value.dim() - event_dim]
        # Expanded: not every transform broadcasts values with a context.
        wide = value.unsqueeze(-1 - event_dim).expand(
            *leading, self.num_classes, *self.event_shape
        )
        return self.model.condition(self.contexts).log_prob(wide)

    def _joint_log_prob(self, value: Tensor) -> Tensor:
        """Log-density of checked values together with every class, shape (*S, C)."""
        return self._class_log_prob(value) + self.prior.log()

    def _reachable_scores(self, value: TensorLike) -> Tensor:
        """Log-density of values together with every class, of which one is above zero."""
        scores = self._joint_log_prob(as_value(self, value, like=self.contexts))
        return check_reachable(self, scores)

    def log_prob(self, value: Tensor) -> Tensor:
        r"""Log-density, the class summed out; shape (\*S) for values ``(*S, *event_shape)``."""
        return self._joint_log_prob(check_value(self, value, like=self.contexts)).logsumexp(-1)

    def responsibilities(self, value: TensorLike) -> Tensor:
        r"""Probability of every class given values, p(y|x): shape (\*S, C)."""
        return self._reachable_scores(value).softmax(-1)

    def classify(self, value: TensorLike) -> Tensor:
        r"""The most probable class of values: integers of shape (\*S)."""
        with torch.no_grad():
            return self._reachable_scores(value).argmax(-1)

    @without_graph
    @takes_generator
    def sample(
        self, sample_shape: _size = Size(), *, generator: Generator | None = None
    ) -> Tensor:
        r"""Draws without a graph, each of a class drawn from the prior: ``(*S, *event_shape)``.

        Args:
            sample_shape: Shape S of the draws.
            generator: Where random numbers come from; by default PyTorch's global generator.
        """
        label = draw_components(Categorical(self.prior), sample_shape)
        return self.condition(label).sample()

    def rsample(
        self,
        sample_shape: _size = Size(),
        *,
        generator: Generator | None = None,
    ) -> Tensor:
        """Not available: the class is discrete, so draws have no pathwise gradient.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError(
            "A law over classes has no pathwise gradients, as classes are discrete: draw with "
            "sample(), or from condition(label)."
        )

    def loss(self, batch: Batch, progress: float = 1.0) -> Tensor:
        r"""What training minimises: the model's loss given the labels, minus :math:`\log p(y)`.

        Args:
            batch: Values ``(N, *event_shape)`` and integer labels (N,); or values alone, of which
                the class is summed out.
            progress: How far training has come, from 0 to 1.

        Returns:
            A scalar.

        Raises:
            ValueError: If labels are out of range, or there is not one for each value.
        """
        value, label = split_batch(batch)
        if label is None:
            return super().loss(batch, progress)
        label = self._labels(label)
        leading = value.shape[: value.dim() - len(self.event_shape)]
        if label.shape != leading:
            raise ValueError(
                f"Expected one integer label for each value, of shape {tuple(leading)}, got shape "
                f"{tuple(label.shape)}."
            )
        loss = self.model.loss((value, self.contexts[label]), progress)
        return loss - self.prior.log()[label].mean()

    def config(self) -> dict[str, Any]:
        """The constructor's arguments as plain data; a prior is part of the state."""
        return {name: value for name, value in super().config().items() if name != "prior"}

    @property
    def scheduled(self) -> bool:
        """Whether the model follows a schedule."""
        return self.model.scheduled

    def anneal(self, progress: float) -> None:
        """Hands on to the model how far training has come."""
        self.model.anneal(progress)

    @torch.no_grad()
    def initialize(self, data: Batch | TensorLike) -> None:
        """Initialises the model, if there are labels: it needs contexts.

        Args:
            data: Values ``(N, *event_shape)`` and integer labels (N,), or values alone. Both may
                be arrays or lists.
        """
        value, label = split_batch(data, like=self.contexts)
        super().initialize(value)
        if label is not None and not self.model.initialized:
            self.model.initialize((value, self.contexts[self._labels(label)]))

    def _labels(self, label: Any) -> Tensor:
        """Labels as a tensor of integers, which are checked."""
        return as_labels(label, self.num_classes, self.contexts.device)
