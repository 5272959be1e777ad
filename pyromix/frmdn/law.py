"""The law of a whole sequence, step by step, given inputs and lengths."""

__all__ = ["SequenceLaw", "padded_sequence"]

from collections.abc import Callable, Sequence

import torch
from torch import Generator, Size, Tensor
from torch.distributions import Distribution, biject_to, constraints, transform_to
from torch.distributions.transforms import identity_transform
from torch.types import _size

from ..core.checks import check_expandable, check_value, check_value_shape
from ..core.draws import without_graph
from ..core.expanded import Expandable
from ..core.random import takes_generator
from ..flows.law import FlowLaw
from .checks import within
from .generation import generate
from .step_model import StepModel


class padded_sequence(constraints.Constraint):  # noqa: N801 - as in torch.distributions
    r"""Sequences of real vectors (\*B, T, D), with anything after their ends.

    Args:
        lengths: Numbers of steps, shape (\*B).
    """

    event_dim = 2

    def __init__(self, lengths: Tensor) -> None:
        self.lengths = lengths
        super().__init__()

    def __repr__(self) -> str:
        return f"padded_sequence({self.lengths.tolist()})"

    def check(self, value: Tensor) -> Tensor:
        r"""Whether all steps of each sequence are finite, shape (\*B)."""
        present = within(self.lengths, value.shape[-2])
        return (value.isfinite().all(-1) | ~present).all(-1)


for _registry in (biject_to, transform_to):
    _registry.register(padded_sequence, lambda _: identity_transform)


class SequenceLaw(Expandable):
    r"""The law of sequences, for a batch of inputs and lengths: `FRMDN.condition` returns one.

    .. math:: p(y_{1:T}) = \prod_{t=1}^T p(y_t \mid h_t), \qquad
              h_t = h(h_{t-1}, y_{t-1}, x_t)

    It owns no parameters; gradients reach those of the model. Sequences shorter than the model's
    length end with padding, which is zero in draws and ignored in values. The density does not
    depend on padding, and an HMC kernel would move it without bounds: leave it out there.

    Args:
        model: The model.
        context: Inputs of every step, shape (\*C, T, context_dim).
        static: Inputs of the whole sequence, shape (\*S, static_dim).
        lengths: Numbers of steps, shape (\*L).
        batch_shape: Shape that C, S and L expand to.
        validate_args: Whether to check the values that are scored.
    """

    has_rsample: bool = False

    def __init__(
        self,
        model: StepModel,
        context: Tensor | None,
        static: Tensor | None,
        lengths: Tensor | None,
        batch_shape: Sequence[int],
        validate_args: bool,
    ) -> None:
        self._model = model
        self.context, self.static, self._lengths = context, static, lengths
        super().__init__(Size(batch_shape), model.event_shape, validate_args=False)
        self._validate_args = validate_args
        self.has_rsample = model.has_rsample

    def __repr__(self) -> str:
        return (
            f"SequenceLaw(batch_shape={tuple(self.batch_shape)}, "
            f"event_shape={tuple(self.event_shape)}, ragged={self._lengths is not None})"
        )

    @property
    def support(self) -> constraints.Constraint:
        """Sequences of real vectors."""
        if self._lengths is None:
            return constraints.independent(constraints.real, 2)
        return padded_sequence(self._lengths)

    @property
    def lengths(self) -> Tensor | None:
        """Numbers of steps, of the batch shape; None where all sequences have T."""
        return None if self._lengths is None else self._lengths.expand(self.batch_shape)

    def expand(
        self, batch_shape: Sequence[int], _instance: Distribution | None = None
    ) -> "SequenceLaw":
        """Returns the law with a larger batch shape; nothing is copied.

        Raises:
            ValueError: If its own batch shape cannot be expanded to that.
        """
        batch_shape = check_expandable(self, batch_shape)
        inputs = self.context, self.static, self._lengths
        law = SequenceLaw(self._model, *inputs, batch_shape, self._validate_args)
        law.has_rsample = self.has_rsample
        return law

    def log_prob(self, value: Tensor) -> Tensor:
        r"""Log-density of sequences.

        Args:
            value: Shape (\*S, \*B, T, D).

        Returns:
            Tensor of shape (\*S, \*B).

        Raises:
            ValueError: If the value's shape, dtype or device does not fit, or if it holds NaN
                before a sequence's end, under validation.
        """
        return self.log_prob_per_step(value).sum(-1)

    def log_prob_per_step(self, value: Tensor) -> Tensor:
        r"""Log-density of every step given the steps before, zero after a sequence's end.

        Args:
            value: Shape (\*S, \*B, T, D).

        Returns:
            Tensor of shape (\*S, \*B, T).

        Raises:
            ValueError: As in `log_prob`.
        """
        value, model = self.fill_padding(value), self._model
        leading = torch.broadcast_shapes(value.shape[:-2], self.batch_shape)
        value = value.expand(*leading, *self.event_shape)
        fed = model.standardize(value)[..., :-1, :]
        start = model.start.expand(*leading, 1, -1)
        states, _ = model.recurrence(self._joined(torch.cat([start, fed], -2), leading))
        states = states.reshape(*leading, *states.shape[-2:])
        log_prob = model.law_of_step(states).log_prob(value)
        if self._lengths is None:
            return log_prob
        return torch.where(within(self._lengths, value.shape[-2]), log_prob, 0.0)

    @without_graph
    @takes_generator
    def sample(
        self, sample_shape: _size = Size(), *, generator: Generator | None = None
    ) -> Tensor:
        r"""Draws without a graph, shape (\*S, \*B, T, D).

        Args:
            sample_shape: Shape S of the draws.
            generator: Where random numbers come from; by default PyTorch's global generator.
        """
        return self._generate(Size(sample_shape), lambda law: (law.sample(), None))[0]

    @takes_generator
    def rsample(
        self, sample_shape: _size = Size(), *, generator: Generator | None = None
    ) -> Tensor:
        r"""Draws with exact pathwise gradients, shape (\*S, \*B, T, D).

        Args:
            sample_shape: Shape S of the draws.
            generator: Where random numbers come from; by default PyTorch's global generator.

        Raises:
            NotImplementedError: If a transform draws branches: they are discrete, so draws have
                no pathwise gradient.
        """
        if not self._model.has_pathwise_draws:
            raise NotImplementedError(
                "A model of sequences with branching transforms has no pathwise gradients: draw "
                "with sample(). As a guide it has score-function gradients."
            )
        return self._generate(Size(sample_shape), lambda law: (law.rsample(), None))[0]

    @takes_generator
    def rsample_and_log_prob(
        self, sample_shape: _size = Size(), *, generator: Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        r"""Draws and their log-densities in one pass, which inverts no transform.

        Both have pathwise gradients if ``has_rsample``, else no graph.

        Args:
            sample_shape: Shape S of the draws.
            generator: Where random numbers come from; by default PyTorch's global generator.

        Returns:
            Tensors of shapes (\*S, \*B, T, D) and (\*S, \*B).
        """
        if not self.has_rsample and torch.is_grad_enabled():
            return without_graph(self.rsample_and_log_prob)(sample_shape)
        return self._generate(Size(sample_shape), lambda law: law.rsample_and_log_prob())

    @takes_generator
    def rsample_with_score(
        self, sample_shape: _size = Size(), *, generator: Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        r"""Draws with the gradient given all that is discrete, and scores of that.

        Discrete are the components of every step, and the branches of folds. See
        `MixtureOfNormals.rsample_with_score`.

        Args:
            sample_shape: Shape S of the draws.
            generator: Where random numbers come from; by default PyTorch's global generator.

        Returns:
            Tensors of shapes (\*S, \*B, T, D) and (\*S, \*B).
        """
        return self._generate(Size(sample_shape), lambda law: law.rsample_with_score())

    def fill_padding(self, value: Tensor) -> Tensor:
        r"""Checks values, and returns them with the location of the data in place of padding.

        Args:
            value: Shape (\*S, \*B, T, D).

        Raises:
            ValueError: As in `log_prob`.
        """
        model, (length, dim) = self._model, self.event_shape
        if isinstance(value, Tensor) and value.dim() > 1 and value.shape[-2] != length:
            raise ValueError(
                f"Expected sequences whose last two dimensions are the event shape "
                f"({length}, {dim}), got shape {tuple(value.shape)}. Pad shorter ones, and pass "
                f"lengths to condition; for longer ones build a longer model, which takes the "
                f"same parameters with load_state_dict."
            )
        if self._lengths is not None:
            value = check_value_shape(self, value, like=model.start)
            present = within(self._lengths, self.event_shape[0]).unsqueeze(-1)
            value = torch.where(present, value, model.standardize.loc)
        return check_value(self, value, like=model.start)

    def _generate(
        self, sample_shape: Size, draw_step: Callable[[FlowLaw], tuple[Tensor, Tensor | None]]
    ) -> tuple[Tensor, Tensor]:
        """Draws step by step, and sums of scores.

        Args:
            sample_shape: Shape S of the draws.
            draw_step: From the law of a step to draws, and their scores: log-densities or others;
                None for zeros.
        """
        leading = sample_shape + self.batch_shape
        model = self._model
        scores = []

        def draw(law: FlowLaw) -> Tensor:
            drawn, score = draw_step(law)
            if score is not None:
                scores.append(score)
            return drawn

        start = model.start.expand(leading.numel(), -1)
        inputs = self._inputs(leading)
        values = list(generate(model, start, None, inputs, self.event_shape[0], draw))
        result = torch.stack(values, -2).reshape(*leading, *self.event_shape)
        total = torch.stack(scores, -1) if scores else result.new_zeros(result.shape[:-1])
        total = total.reshape(result.shape[:-1])
        if self._lengths is not None:
            present = within(self._lengths, result.shape[-2])
            result = torch.where(present.unsqueeze(-1), result, 0.0)
            total = torch.where(present, total, 0.0)
        return result, total.sum(-1)

    def _joined(self, fed: Tensor, leading: Size) -> Tensor:
        """Joins values and inputs to what the recurrence is fed, (N, T, number of inputs)."""
        fed = fed.reshape(leading.numel(), *fed.shape[-2:])
        inputs = self._inputs(leading)
        return fed if inputs is None else torch.cat([fed, inputs], -1)

    def _inputs(self, leading: Size) -> Tensor | None:
        """Inputs of all steps of sequences of a batch shape, flattened: (N, T, width)."""
        inputs = self._model.inputs(self.context, self.static, self._lengths)
        if inputs is None:
            return None
        inputs = inputs.expand(*leading, self.event_shape[0], -1)
        return inputs.reshape(leading.numel(), *inputs.shape[-2:])
