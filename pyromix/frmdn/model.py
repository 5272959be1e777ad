"""Recurrent mixture density networks, as laws of sequences."""

__all__ = ["FRMDN"]

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Generator, Size, Tensor, nn
from torch.distributions import AffineTransform, constraints
from torch.types import _size

from ..core.batch import Batch, check_paired, split_batch
from ..core.checks import (
    Check,
    as_int,
    check_arguments,
    check_count,
    check_floor,
    check_positive_int,
    check_tensor,
    one_of,
)
from ..core.constraints import Floored
from ..core.conversions import TensorLike, as_context, as_integers, as_rows, as_tensor
from ..core.law_module import LawModule
from ..core.networks import check_widths
from ..core.random import takes_generator
from ..core.standardize import Standardize
from ..flows.chain import draws_branches, given_context, needs_context, pull_back
from ..flows.law import FlowLaw
from ..flows.wrapping import as_transform_modules
from ..mixtures.clusters import find_clusters
from .checks import as_lengths, check_finite, common_shape, within
from .generation import continue_prefix
from .head import MixtureHead
from .inputs import Inputs
from .law import SequenceLaw
from .recurrence import CELLS, Memory, Recurrence
from .transforms import check_transforms

Cell = Literal["lstm", "gru"]
Encoder = Literal["causal", "bidirectional"]
Factor = Literal["network", "shared"]
Positivity = Literal["softplus", "exp"]
State = tuple[Tensor, ...]

# Keys of a batch that is a mapping, beside that of the values.
PARTS = {"context", "static", "lengths", "scored_from"}


class FRMDN(LawModule[SequenceLaw]):
    r"""Recurrent mixture density network through a flow [1]: a law of whole sequences.

    .. math:: p(y_{1:T} \mid x) = \prod_{t=1}^T \sum_{k=1}^K w_k(h_t) \,
              N\big(f(y_t);\, m_k(h_t), P_k(h_t)^{-1}\big) \,
              \Big|\det \frac{\partial f}{\partial y_t}\Big|, \qquad
              P_k = \operatorname{diag}(s_k^{-2}) + U_k U_k^\top

    :math:`h_t` is the state of a recurrent network that was fed the values before t and the
    inputs up to t, so that every step's law is exact given its past. `log_prob` evaluates all
    steps in one pass; draws are made step by step. f is the inverse of the `transforms`, and of
    a location and scale for every coordinate, which `initialize` takes from data. Without
    transforms this is a recurrent mixture density network (Graves 2013); with ``length=1`` and a
    static context, a mixture density network.

    There are two kinds of inputs: a context that differs from step to step, such as actions or
    the time of the day, and a static one, such as a label. `condition` takes both.

    Args:
        dim: Entries D of a value :math:`y_t`.
        length: Steps T of a sequence. `condition` admits shorter ones, `predict` longer ones.
        num_components: Components K of every step's mixture.
        rank: Columns r of every U, from 0 (diagonal precisions) to D.
        hidden_dim: Width of the recurrent state.
        num_layers: Layers of the recurrent network.
        cell: ``"lstm"`` or ``"gru"``.
        head_dims: Hidden layers between the state and the mixture's parameters.
        transforms: Pyro's transforms of vectors (or elementwise ones) from the mixture's draws to
            standardised values, the same at all steps. One that is conditional, with
            ``context_dim=hidden_dim``, depends on the state. For values that are positive or
            bounded put the model into a `Flow` with a transform onto those.
        context_dim: Entries of the context of a step, zero for none.
        static_dim: Entries of the context of a sequence, zero for none.
        encoder: ``"causal"``: a step's law depends on the context up to that step.
            ``"bidirectional"``: on all of it, by way of a second recurrent network that reads it
            in both directions.
        factor: ``"network"``: U is a function of the state, and proportional to 1 / s.
            ``"shared"``: U is a free parameter, the same at all steps.
        positivity: What makes s positive, ``"softplus"`` or ``"exp"``. The exponential fits
            scales over many orders of magnitude, but its training is less stable.
        scale_floor: The floor f, which s is larger than, in units of the standardised data.
            Low-rank columns are bounded, too, so that the variance of the mixture's components is
            at least :math:`f^2 / (1 + 10^4 r)` in all directions. Where data repeat exactly the
            likelihood would be infinite without a bound: add noise to rounded data (see
            `dequantize`).
        validate_args: Whether to check the values that are scored.

    Raises:
        ValueError: For an argument that is out of range, or a transform that does not fit.

    Example:
        >>> from pyromix import fit
        >>> _ = torch.manual_seed(0)
        >>> walks = torch.randn(500, 20, 1).cumsum(1)
        >>> model = FRMDN(dim=1, length=20, num_components=2, hidden_dim=8)
        >>> history = fit(model, walks, steps=20, progress_bar=False)
        >>> model.predict(walks[:3, :12], horizon=8, num_samples=100).shape
        torch.Size([100, 3, 8, 1])

    References:
        [1] Razavi, Hosseini and Behzad, "FRMDN: Flow-based recurrent mixture density network",
        2020. https://arxiv.org/abs/2008.02144
    """

    argument_checks: ClassVar[Mapping[str, Check]] = {
        "dim": check_positive_int,
        "length": check_positive_int,
        "num_components": check_positive_int,
        "rank": check_count,
        "hidden_dim": check_positive_int,
        "num_layers": check_positive_int,
        "cell": one_of(*CELLS),
        "head_dims": check_widths,
        "context_dim": check_count,
        "static_dim": check_count,
        "encoder": one_of("causal", "bidirectional"),
        "factor": one_of("network", "shared"),
        "positivity": one_of("softplus", "exp"),
        "scale_floor": check_floor,
    }
    dim: int
    length: int
    num_components: int
    rank: int
    hidden_dim: int
    num_layers: int
    cell: Cell
    head_dims: tuple[int, ...]
    context_dim: int
    static_dim: int
    encoder: Encoder
    factor: Factor
    positivity: Positivity
    scale_floor: float

    def __init__(
        self,
        dim: int,
        length: int,
        num_components: int,
        *,
        rank: int = 0,
        hidden_dim: int = 64,
        num_layers: int = 1,
        cell: Cell = "lstm",
        head_dims: Sequence[int] = (),
        transforms: Any = (),
        context_dim: int = 0,
        static_dim: int = 0,
        encoder: Encoder = "causal",
        factor: Factor = "network",
        positivity: Positivity = "softplus",
        scale_floor: float = 1e-3,
        validate_args: bool | None = None,
    ) -> None:
        arguments = check_arguments(self.argument_checks, locals())
        dim, length = arguments["dim"], arguments["length"]
        if arguments["rank"] > dim:
            raise ValueError(
                f"Expected a rank from 0 to dim={dim}, got {rank}. Precisions of full rank need "
                f"no more than dim columns."
            )
        if encoder == "bidirectional" and not context_dim:
            raise ValueError(
                "Expected a context_dim for encoder='bidirectional', which reads the context of "
                "all steps, got 0."
            )
        super().__init__(event_shape=(length, dim), validate_args=validate_args)
        self.keep_arguments(arguments)
        self.standardize = Standardize(dim)
        self.start = nn.Parameter(torch.zeros(dim))  # in place of a value before the first
        size = self.hidden_dim, self.num_layers
        reader = None
        if encoder == "bidirectional":
            reader = Recurrence(cell, self.context_dim, *size, bidirectional=True)
        self.inputs = Inputs(self.context_dim, self.static_dim, reader)
        self.recurrence = Recurrence(cell, dim + self.inputs.width, *size)
        self.head = MixtureHead(
            self.hidden_dim,
            self.head_dims,
            dim,
            self.num_components,
            rank=self.rank,
            shared_factor=factor == "shared",
            floored=Floored(scale_floor, positivity),
        )
        self.transforms = nn.ModuleList(as_transform_modules(transforms))
        self.has_rsample = self.has_pathwise_draws
        states = torch.zeros(2, self.hidden_dim)
        check_transforms(
            self.transforms, lambda: self.law_of_step(states).sample(), dim, self.hidden_dim
        )

    @property
    def support(self) -> constraints.Constraint:
        """Sequences of real vectors."""
        return constraints.independent(constraints.real, 2)

    @property
    def has_pathwise_draws(self) -> bool:
        """Whether no transform draws branches, so that draws can have pathwise gradients."""
        return not draws_branches(self.transforms)

    @property
    def conditional(self) -> bool:
        """Whether the model needs a context."""
        return bool(self.context_dim or self.static_dim)

    def condition(
        self,
        context: TensorLike | None = None,
        *,
        static: TensorLike | None = None,
        lengths: TensorLike | None = None,
    ) -> SequenceLaw:
        r"""The law of sequences given inputs and lengths, which broadcast to a batch shape B.

        Args:
            context: Inputs of every step, shape (\*B, T, context_dim): step t has what is known
                before :math:`y_t` is. A model that takes only a static context takes that here.
            static: Inputs of the whole sequence, shape (\*B, static_dim).
            lengths: Numbers of steps, integers of shape (\*B) from 1 to T; by default T. Values
                and contexts after a sequence's end are padding, and ignored.

        Returns:
            A distribution of batch shape B and event shape (T, D).

        Raises:
            ValueError: If an input is missing, not asked for, of a wrong shape or not finite, or
                a length is out of range.
        """
        return self._law_given(context, static, lengths)

    def _law_given(
        self, context: Any = None, static: Any = None, lengths: Any = None
    ) -> SequenceLaw:
        context, static = self._told_apart(context, static)
        lengths = as_lengths(lengths, self.length, like=self.start)
        context, static = self._check_inputs(context, static, lengths)
        if context is not None and context.shape[-2] != self.length:
            raise ValueError(
                f"Expected a context for each of {self.length} steps, of shape (*B, "
                f"{self.length}, {self.context_dim}), got {tuple(context.shape)}. For sequences "
                f"that are shorter pad both, and pass lengths; longer ones are for predict."
            )
        batch_shape = common_shape(
            {"context": (context, 2), "static": (static, 1), "lengths": (lengths, 0)}
        )
        return SequenceLaw(self, context, static, lengths, batch_shape, self._validate_args)

    def log_prob_per_step(self, value: Tensor) -> Tensor:
        r"""Log-density of every step of (\*S, T, D) given those before; shape (\*S, T)."""
        return self.law.log_prob_per_step(value)

    @takes_generator
    def rsample_and_log_prob(
        self, sample_shape: _size = Size(), *, generator: Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        r"""Draws (\*S, T, D) and their log-densities (\*S), in one pass.

        Both have pathwise gradients if ``has_rsample``, else no graph.

        Args:
            sample_shape: Shape S of the draws.
            generator: Where random numbers come from; by default PyTorch's global generator.
        """
        return self.law.rsample_and_log_prob(sample_shape)

    @takes_generator
    def rsample_with_score(
        self, sample_shape: _size = Size(), *, generator: Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        r"""Draws (\*S, T, D) with the gradient given all that is discrete, and scores (\*S).

        Args:
            sample_shape: Shape S of the draws.
            generator: Where random numbers come from; by default PyTorch's global generator.
        """
        return self.law.rsample_with_score(sample_shape)

    def loss(self, batch: Batch, progress: float = 1.0) -> Tensor:  # noqa: ARG002
        """Mean negative log-density of a batch of sequences, in nats a sequence.

        Args:
            batch: Values of shape (N, T, D); a pair of values and context; or a mapping with the
                key ``"value"`` and, of `condition`'s arguments, those that there are. Its key
                ``"scored_from"``, integers from 0 to T of shape (N), leaves earlier steps out of
                the loss: they lead to the state alone.
            progress: Not used.

        Raises:
            ValueError: If the batch is of another form, or does not fit.
        """
        value, inputs = self._split(batch)
        start = inputs.pop("scored_from", None)
        law = self._law_given(**inputs)
        check_paired(law, value)
        if start is None:
            return -law.log_prob(value).mean()
        start = as_integers("scored_from", start, 0, self.length, like=self.start)
        log_prob = law.log_prob_per_step(value)
        return -torch.where(within(start, self.length), 0.0, log_prob).sum(-1).mean()

    def split_in_time(
        self, batch: Batch, start: float
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        r"""Splits sequences into what comes before a step, and the steps from it on.

        `fit` calls it for its argument `validation_from`.

        Args:
            batch: Sequences, in the form of a batch of `loss`.
            start: An integer from 1 to T - 1: the step, counted from zero. Or a share between 0
                and 1 of the steps of each sequence; at least one step lies on either side, if the
                sequence has two.

        Returns:
            Two batches for `loss`: the sequences up to the step, and whole ones, of which only
            the steps from there on are scored.

        Raises:
            ValueError: If the batch is of another form, the step is out of range, or no sequence
                goes on to it.

        >>> before, after = FRMDN(1, 10, 2).split_in_time(torch.randn(5, 10, 1), 0.8)
        >>> before["lengths"].tolist(), after["scored_from"].tolist()
        ([8, 8, 8, 8, 8], [8, 8, 8, 8, 8])
        """
        value, inputs = self._split(batch)
        inputs.pop("scored_from", None)
        index = as_int(start)
        is_share = isinstance(start, float) and 0 < start < 1
        if not is_share and (index is None or not 0 < index < self.length):
            raise ValueError(
                f"Expected a step from 1 to {self.length - 1} to split sequences at, or a share "
                f"of their steps between 0.0 and 1.0, got {start!r}."
            )
        lengths = as_lengths(inputs.get("lengths"), self.length, like=value)
        if lengths is None:
            lengths = torch.tensor(self.length, device=value.device)
        lengths = lengths.expand(value.shape[:-2])
        if is_share:
            steps = (start * lengths).round().long()
            steps = torch.minimum(steps, lengths - 1).clamp(min=1)
        else:
            steps = lengths.clamp(max=index)
        if not bool((steps < lengths).any()):
            raise ValueError(
                f"Expected sequences with steps on both sides of {start!r}, got none: they have "
                f"at most {int(lengths.max()) if lengths.numel() else 0} step(s)."
            )
        given = {"value": value, **{k: v for k, v in inputs.items() if v is not None}}
        return given | {"lengths": steps}, given | {"lengths": lengths, "scored_from": steps}

    @torch.no_grad()
    @takes_generator
    def predict(
        self,
        prefix: TensorLike,
        horizon: int,
        num_samples: int,
        *,
        context: TensorLike | None = None,
        static: TensorLike | None = None,
        lengths: TensorLike | None = None,
        generator: Generator | None = None,
    ) -> Tensor:
        r"""Draws continuations of sequences.

        They may become longer than `length`, as the recurrence can run for any number of steps.
        But the states after more steps than in training may be unlike those of training.

        Args:
            prefix: First steps of sequences, shape (\*B, t, D).
            horizon: Number of further steps.
            num_samples: Number of draws.
            context: Inputs of all steps, those to come included: shape (\*B, t + horizon or more,
                context_dim). Step i of a forecast after a prefix of n steps has that of index
                n + i.
            static: Inputs of the sequences, shape (\*B, static_dim).
            lengths: Numbers of steps (\*B) of prefixes that end before t.
            generator: Where random numbers come from; by default PyTorch's global generator.

        Returns:
            Draws without a graph, shape (num_samples, \*B, horizon, D).

        Raises:
            ValueError: If an argument does not fit.
        """
        horizon = check_positive_int("horizon", horizon)
        num_samples = check_positive_int("num_samples", num_samples)
        context, static = self._told_apart(context, static)
        prefix = as_tensor("prefix", prefix, like=self.start)
        if prefix.dim() < 2 or prefix.shape[-1] != self.dim or prefix.shape[-2] == 0:
            raise ValueError(
                f"Expected a prefix of shape (*B, t, {self.dim}) with t of at least 1, got "
                f"{tuple(prefix.shape)}. To draw from the start, call sample."
            )
        ends = as_lengths(lengths, prefix.shape[-2], like=self.start)
        totals = None if ends is None else ends + horizon
        if ends is not None:
            prefix = prefix[..., : int(ends.max()), :]
        num_steps = prefix.shape[-2]
        needed = num_steps + horizon
        if context is not None:
            context = as_context("context", context, like=self.start)
            if context.dim() > 1:
                context = context[..., :needed, :]  # what comes later must not be read
        context, static = self._check_inputs(context, static, totals)
        if context is not None and context.shape[-2] < needed:
            raise ValueError(
                f"Expected a context for all steps, {horizon} to come included, of shape (*B, "
                f"{needed} or more, {self.context_dim}), got {tuple(context.shape)}."
            )
        batch = common_shape(
            {
                "prefix": (prefix, 2),
                "context": (context, 2),
                "static": (static, 1),
                "lengths": (ends, 0),
            }
        )
        ends = torch.tensor(num_steps, device=prefix.device) if ends is None else ends
        ends, prefix = ends.expand(batch), prefix.expand(*batch, -1, -1)
        prefix = torch.where(
            within(ends, num_steps).unsqueeze(-1), prefix, self.standardize.loc
        )  # (*B, t, D)
        check_finite("prefix", prefix)
        inputs = self.inputs(context, static, totals)
        if inputs is not None:
            inputs = inputs.expand(*batch, -1, -1).reshape(batch.numel(), *inputs.shape[-2:])
        flat = prefix.reshape(batch.numel(), num_steps, self.dim), ends.reshape(-1)
        drawn = continue_prefix(self, *flat, inputs, horizon, num_samples)
        return drawn.reshape(num_samples, *batch, horizon, self.dim)

    def step(
        self,
        state: State | None = None,
        y: TensorLike | None = None,
        x: TensorLike | None = None,
        *,
        static: TensorLike | None = None,
    ) -> tuple[FlowLaw, State]:
        r"""The law of the next value, and the state to go on from.

        The first call takes no value: ``law, state = model.step(x=x_1)`` gives the law of
        :math:`y_1`. Then, with what was observed or drawn, ``model.step(state, y_1, x_2)`` gives
        that of :math:`y_2`, and so on, without end.

        Gradients reach through the state to all calls before: without need for them, call under
        `torch.no_grad()`.

        Args:
            state: What the last call returned. To go on with some sequences of a batch, index
                every tensor in it.
            y: The last value, shape (\*B, D).
            x: The context of the step to come, shape (\*B, context_dim).
            static: The context of the sequence, shape (\*B, static_dim), in every call.

        Returns:
            A distribution over vectors of D numbers, of batch shape B, and the state: a hidden
            state and, of an LSTM, a cell, of shape (\*B, num_layers, hidden_dim) each.

        Raises:
            ValueError: If the encoder reads the whole context, a state comes without a value or
                a value without a state, or an argument does not fit.
        """
        if self.inputs.encoder is not None:
            raise ValueError(
                "Expected a causal encoder, got encoder='bidirectional', which reads contexts of "
                "steps to come. Use predict, or build the model with encoder='causal'."
            )
        if (state is None) != (y is None):
            raise ValueError(
                "Expected both a state and the value y that was observed last, or neither: the "
                "first call gives the law of the first value, before there is one."
            )
        value: Tensor = self.start
        if y is not None:
            y = as_rows("y", y, self.dim, like=self.start)
            check_finite("y", y)
            value = self.standardize(y)
        if x is not None and self.context_dim:
            x = as_rows("x", x, self.context_dim, like=self.start).unsqueeze(-2)
        inputs = self.inputs(*self._check_inputs(x, static, None), None)
        parts = {"y": (value, 1), "the inputs": (inputs, 2)}
        parts |= {f"state[{i}]": (s, 2) for i, s in enumerate(self._check_state(state))}
        batch = common_shape(parts)
        given = value.unsqueeze(-2).expand(*batch, 1, self.dim)
        if inputs is not None:
            given = torch.cat([given, inputs.expand(*batch, 1, -1)], -1)
        memory: Memory | None = None
        if state is not None:
            size = self.num_layers, self.hidden_dim
            flat = (s.expand(*batch, *size).reshape(-1, *size) for s in state)
            memory = tuple(s.transpose(0, 1).contiguous() for s in flat)
        states, memory = self.recurrence(given.reshape(batch.numel(), 1, -1), memory)
        law = self.law_of_step(states.reshape(*batch, self.hidden_dim))
        law._validate_args = self._validate_args
        following = (m.transpose(0, 1) for m in memory)
        return law, tuple(m.reshape(*batch, *m.shape[1:]) for m in following)

    @torch.no_grad()
    def initialize(self, data: Batch) -> None:
        """Takes locations and scales of values and contexts, and starts at clusters of values.

        Parameters that do not require gradients are left alone.

        Args:
            data: Sequences, in the form of a batch of `loss`.

        Raises:
            ValueError: If they do not fit, or are not finite.
        """
        value, inputs = self._split(data)
        inputs.pop("scored_from", None)
        law = self._law_given(**inputs)
        value = law.fill_padding(value)
        if not value.isfinite().all():
            raise ValueError("Expected finite values to initialise from, got NaN or infinity.")
        present = value.new_ones(value.shape[:-1], dtype=torch.bool)
        if law.lengths is not None:
            present = within(law.lengths, self.length).expand(present.shape)
        self.standardize.set_from(value[present])
        if law.context is not None:
            context = law.context.expand(*present.shape, -1)
            self.inputs.standardize_context.set_from(context[present])
        if law.static is not None:
            self.inputs.standardize_static.set_from(law.static.reshape(-1, self.static_dim))
        z = self.standardize(value[present])
        if not needs_context(self.transforms):
            with torch.no_grad():
                z = pull_back(self.transforms, z)
        if next(self.head.parameters()).requires_grad:
            self.head.start_from(find_clusters(z, self.num_components))
        super().initialize(data)

    def law_of_step(self, states: Tensor) -> FlowLaw:
        r"""The law of a step's value given states of the recurrent network.

        Args:
            states: Shape (\*B, hidden_dim).

        Returns:
            A distribution over vectors of D numbers, of batch shape B.
        """
        scale = AffineTransform(self.standardize.loc, self.standardize.scale, event_dim=1)
        transforms = [*given_context(self.transforms, states), scale]
        law = FlowLaw(self.head(states), transforms, validate_args=False)
        law.has_rsample = self.has_rsample and self.has_pathwise_draws
        return law

    def _split(self, batch: Batch) -> tuple[Tensor, dict[str, Any]]:
        """Values of a batch, and the other parts of it by name.

        Raises:
            ValueError: If it is of another form, or has a context and the model takes none.
        """
        inputs: Any
        match batch:
            case {"value": value, **inputs} if set(inputs) <= PARTS:
                if not isinstance(value, Tensor):
                    value = as_tensor("value", value, like=self.start)
            case Mapping():
                raise ValueError(
                    f"Expected a batch that is a tensor, a pair (values, context), or a mapping "
                    f"with the key 'value' and, of {', '.join(sorted(PARTS))}, those that there "
                    f"are, got {sorted(batch)}."
                )
            case _:
                value, context = split_batch(batch, like=self.start)
                inputs = {"context": context}
        if inputs.get("context") is not None and not self.conditional:
            raise ValueError(
                "Expected values alone, got a batch that is a pair, which is read as values and "
                "context. This model takes no context: leave labels out, or give static_dim. "
                "(Lengths are named: {'value': values, 'lengths': lengths}.)"
            )
        return value, inputs

    def _told_apart(self, context: Any, static: Any) -> tuple[Any, Any]:
        """Context and static context: one argument is the latter if the model takes only that."""
        if static is None and self.static_dim and not self.context_dim:
            return None, context
        return context, static

    def _check_inputs(
        self, context: Any, static: Any, lengths: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        common = self.start, bool(self._validate_args)
        context = self.inputs.check_context(context, lengths, *common)
        return context, self.inputs.check_static(static, *common)

    def _check_state(self, state: Any) -> State:
        if state is None:
            return ()
        count, size = self.recurrence.num_memories, (self.num_layers, self.hidden_dim)
        tensors = tuple(check_tensor("every part of a state", s, like=self.start) for s in state)
        if len(tensors) != count or any(s.shape[-2:] != size for s in tensors):
            raise ValueError(
                f"Expected a state of {count} tensor(s) of shape (*B, {size[0]}, {size[1]}), as "
                f"step returns it, got {[tuple(s.shape) for s in tensors]}."
            )
        return tensors
