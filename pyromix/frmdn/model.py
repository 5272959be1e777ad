"""Recurrent mixture density networks, as laws of sequences."""

__all__ = ["FRMDN"]

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from pyro.distributions.conditional import ConditionalTransform
from torch import Size, Tensor, nn
from torch.distributions import AffineTransform, constraints
from torch.types import _size

from ..core import Batch, DistributionModule, split_batch
from ..flow import FlowLaw
from ..mixtures.initialization import find_clusters
from ..networks import check_widths
from ..plain import as_transform_module, flatten_transforms
from ..validation import as_int, check_positive_int, check_tensor, is_traced
from .head import POSITIVE, MixtureHead
from .law import SequenceLaw, within
from .recurrence import CELLS, Memory, Recurrence
from .standardize import Standardize

Cell = Literal["lstm", "gru"]
Encoder = Literal["causal", "bidirectional"]
Factor = Literal["network", "shared"]
Positivity = Literal["softplus", "exp"]
State = tuple[Tensor, ...]


class FRMDN(DistributionModule):
    r"""Recurrent mixture density network through a flow [1]: a law of whole sequences.

    .. math:: p(y_{1:T} \mid x) = \prod_{t=1}^T \sum_{k=1}^K w_k(h_t) \,
              N\big(f(y_t);\, m_k(h_t), P_k(h_t)^{-1}\big) \,
              \Big|\det \frac{\partial f}{\partial y_t}\Big|, \qquad
              P_k = \operatorname{diag}(s_k^{-2}) + U_k U_k^\top

    The state :math:`h_t` is that of a recurrent network that was fed the values before t and the
    inputs up to t, so that every step's law is exact given its past. `log_prob` evaluates all
    steps in one pass; draws take one step after the other. f undoes the `transforms` and a
    location and scale for every coordinate, which `initialize` takes from data. Without
    transforms this is a recurrent mixture density network (Graves 2013); with ``length=1`` and a
    static context, a mixture density network.

    There may be inputs of two kinds: a context that differs from step to step, such as actions or
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
        factor: ``"network"``: U is a function of the state, and scales with s. ``"shared"``: U is
            a free parameter, the same at all steps.
        positivity: What makes s positive, ``"softplus"`` or ``"exp"``. The exponential follows
            scales over many orders of magnitude, and may jump in training.
        scale_floor: Smallest s, in units of the standardised data; see `MixtureHead` for the
            bound of variances in all directions that it gives. Without a bound the likelihood is
            infinite where data repeat exactly: add noise to rounded data (see `dequantize`).
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
        dim, length = check_positive_int("dim", dim), check_positive_int("length", length)
        super().__init__(event_shape=(length, dim), validate_args=validate_args)
        self.dim, self.length = dim, length
        self.num_components = check_positive_int("num_components", num_components)
        self.rank = _check_rank(rank, dim)
        self.hidden_dim = check_positive_int("hidden_dim", hidden_dim)
        self.num_layers = check_positive_int("num_layers", num_layers)
        self.cell = _check_choice("cell", cell, CELLS)
        self.head_dims = check_widths("head_dims", head_dims)
        self.context_dim = _check_count("context_dim", context_dim)
        self.static_dim = _check_count("static_dim", static_dim)
        self.encoder = _check_choice("encoder", encoder, ("causal", "bidirectional"))
        self.factor = _check_choice("factor", factor, ("network", "shared"))
        self.positivity = _check_choice("positivity", positivity, POSITIVE)
        if not 0 < scale_floor < math.inf:
            raise ValueError(
                f"Expected a positive, finite scale_floor, got {scale_floor}. Without a floor the "
                f"likelihood of a mixture is unbounded."
            )
        self.scale_floor = scale_floor
        if encoder == "bidirectional" and not context_dim:
            raise ValueError(
                "Expected a context_dim for encoder='bidirectional', which reads the context of "
                "all steps, got 0."
            )
        self.standardize = Standardize(dim)
        self.standardize_context = Standardize(self.context_dim)
        self.standardize_static = Standardize(self.static_dim)
        self.start = nn.Parameter(torch.zeros(dim))  # in place of a value before the first
        num_inputs = self.context_dim
        self.context_encoder: Any = None
        if encoder == "bidirectional":
            self.context_encoder = Recurrence(
                cell, self.context_dim, self.hidden_dim, self.num_layers, bidirectional=True
            )
            num_inputs = 2 * self.hidden_dim
        num_inputs += dim + self.static_dim
        self.recurrence = Recurrence(cell, num_inputs, self.hidden_dim, self.num_layers)
        self.head = MixtureHead(
            self.hidden_dim,
            self.head_dims,
            dim,
            self.num_components,
            rank=self.rank,
            shared_factor=factor == "shared",
            positivity=positivity,
            floor=scale_floor,
        )
        self.transforms = nn.ModuleList(_as_modules(transforms))
        self.has_rsample = not any(getattr(t, "branching", False) for t in self.transforms)
        self._try_transforms()

    @property
    def support(self) -> constraints.Constraint:
        """Sequences of real vectors."""
        return constraints.independent(constraints.real, 2)

    @property
    def conditional(self) -> bool:
        """Whether the model needs a context."""
        return bool(self.context_dim or self.static_dim)

    def condition(
        self,
        context: Tensor | None = None,
        *,
        static: Tensor | None = None,
        lengths: Tensor | None = None,
    ) -> SequenceLaw:
        r"""The law of sequences given inputs and lengths, which broadcast to a batch shape B.

        Args:
            context: Inputs of every step, shape (\*B, T, context_dim): step t has what is known
                before :math:`y_t` is. A model that takes only a static context takes that here.
            static: Inputs of the whole sequence, shape (\*B, static_dim).
            lengths: Numbers of steps, integers of shape (\*B) from 1 to T; by default T. Values
                and contexts after a sequence's end are padding, and ignored.

        Raises:
            ValueError: If an input is missing, not asked for, of a wrong shape or not finite, or
                a length is out of range.
        """
        if static is None and self.static_dim and not self.context_dim:
            context, static = None, context
        lengths = self._check_lengths(lengths, self.length)
        context = self._check_context(context, lengths)
        if context is not None and context.shape[-2] != self.length:
            raise ValueError(
                f"Expected a context for each of {self.length} steps, of shape (*B, "
                f"{self.length}, {self.context_dim}), got {tuple(context.shape)}. For sequences "
                f"that are shorter pad both, and pass lengths; longer ones are for predict."
            )
        static = self._check_static(static)
        shapes = {"context": (context, 2), "static": (static, 1), "lengths": (lengths, 0)}
        batch_shape = _common_shape(shapes)
        return SequenceLaw(self, context, static, lengths, batch_shape, self._validate_args)

    def log_prob(self, value: Tensor) -> Tensor:
        r"""Log-density of sequences of shape (\*S, T, D); shape (\*S)."""
        return self._law.log_prob(value)

    def log_prob_per_step(self, value: Tensor) -> Tensor:
        r"""Log-density of every step of (\*S, T, D) given those before; shape (\*S, T)."""
        return self._law.log_prob_per_step(value)

    def loss(self, batch: Batch, progress: float = 1.0) -> Tensor:  # noqa: ARG002
        """Mean negative log-density of a batch of sequences, in nats a sequence.

        Args:
            batch: Values of shape (N, T, D); a pair of values and context; or a mapping with the
                key ``"value"`` and, of `condition`'s arguments, those that there are.
            progress: Not used.
        """
        value, inputs = _split(batch)
        return -self._law_given(inputs).log_prob(value).mean()

    def sample(self, sample_shape: _size = Size()) -> Tensor:
        r"""Draws without a graph, shape (\*S, T, D)."""
        return self._law.sample(sample_shape)

    def rsample(self, sample_shape: _size = Size()) -> Tensor:
        r"""Draws with exact pathwise gradients, shape (\*S, T, D)."""
        return self._law.rsample(sample_shape)

    def rsample_and_log_prob(self, sample_shape: _size = Size()) -> tuple[Tensor, Tensor]:
        r"""Draws (\*S, T, D) and their log-densities (\*S), in one pass."""
        law = self._law
        law.has_rsample = self.has_rsample  # as Pyro may have set it
        return law.rsample_and_log_prob(sample_shape)

    @torch.no_grad()
    def predict(
        self,
        prefix: Tensor,
        horizon: int,
        num_samples: int,
        *,
        context: Tensor | None = None,
        static: Tensor | None = None,
        lengths: Tensor | None = None,
    ) -> Tensor:
        r"""Draws what follows after the first steps of sequences.

        Nothing in the model counts steps, so that sequences may become longer than `length`: the
        recurrence goes on. How far that can be trusted is another question, as states may come
        up that training never saw.

        Args:
            prefix: First steps of sequences, shape (\*B, t, D).
            horizon: Number of further steps.
            num_samples: Number of draws.
            context: Inputs of all steps, those to come included: shape (\*B, t + horizon or more,
                context_dim). Step i of a forecast after a prefix of n steps has that of index
                n + i.
            static: Inputs of the sequences, shape (\*B, static_dim).
            lengths: Numbers of steps (\*B) of prefixes that end before t.

        Returns:
            Draws without a graph, shape (num_samples, \*B, horizon, D).

        Raises:
            ValueError: If an argument does not fit.
        """
        horizon = check_positive_int("horizon", horizon)
        num_samples = check_positive_int("num_samples", num_samples)
        if context is not None and static is None and self.static_dim and not self.context_dim:
            context, static = None, context
        prefix = check_tensor("prefix", prefix, like=self.start)
        if prefix.dim() < 2 or prefix.shape[-1] != self.dim or prefix.shape[-2] == 0:
            raise ValueError(
                f"Expected a prefix of shape (*B, t, {self.dim}) with t of at least 1, got "
                f"{tuple(prefix.shape)}. To draw from the start, call sample."
            )
        num_steps = prefix.shape[-2]
        lengths = self._check_lengths(lengths, num_steps)
        longest = num_steps if lengths is None else int(lengths.max())
        static = self._check_static(static)
        context = self._check_context(context, None if lengths is None else lengths + horizon)
        if context is not None and context.shape[-2] < longest + horizon:
            raise ValueError(
                f"Expected a context for {longest} steps of the prefix and {horizon} to come, of "
                f"shape (*B, {longest + horizon} or more, {self.context_dim}), got "
                f"{tuple(context.shape)}."
            )
        batch = _common_shape(
            {
                "prefix": (prefix, 2),
                "context": (context, 2),
                "static": (static, 1),
                "lengths": (lengths, 0),
            }
        )
        count = batch.numel()
        ends = torch.full((count,), num_steps, device=prefix.device)
        if lengths is not None:
            ends = lengths.expand(batch).reshape(count)
            present = within(lengths, num_steps).unsqueeze(-1)
            prefix = torch.where(present, prefix, self.standardize.loc)
        if not prefix.isfinite().all():
            raise ValueError("Expected a finite prefix, got NaN or infinity before its end.")
        fed = self.standardize(prefix).expand(*batch, -1, -1).reshape(count, num_steps, self.dim)
        inputs = self.encode_inputs(
            context, static, None if lengths is None else lengths + horizon
        )
        if inputs is not None:
            inputs = inputs.expand(*batch, *inputs.shape[-2:]).flatten(0, -3)
            if context is None:
                inputs = inputs.expand(-1, num_steps + horizon, -1)
        rows = torch.arange(count, device=prefix.device)
        start = self.start.expand(count, 1, -1)
        given = torch.cat([start, fed[:, :-1]], 1)
        given = given if inputs is None else torch.cat([given, inputs[:, :num_steps]], -1)
        _, memory = self.recurrence(given, None, ends)
        memory = tuple(m.repeat(1, num_samples, 1) for m in memory)
        value = fed[rows, ends - 1].repeat(num_samples, 1)
        values = []
        for i in range(horizon):
            if inputs is not None:
                value = torch.cat([value, inputs[rows, ends + i].repeat(num_samples, 1)], -1)
            states, memory = self.recurrence(value.unsqueeze(1), memory)
            drawn = self.law_of_step(states.squeeze(1)).sample()
            values.append(drawn)
            value = self.standardize(drawn)
        return torch.stack(values, -2).reshape(num_samples, *batch, horizon, self.dim)

    def step(
        self,
        state: State | None = None,
        y: Tensor | None = None,
        x: Tensor | None = None,
        *,
        static: Tensor | None = None,
    ) -> tuple[FlowLaw, State]:
        r"""The law of the next value, and the state to go on from.

        The first call takes no value: ``law, state = model.step(x=x_1)`` gives the law of
        :math:`y_1`. Then, with what was observed or drawn, ``model.step(state, y_1, x_2)`` gives
        that of :math:`y_2`, and so on, without end.

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
        if self.context_encoder is not None:
            raise ValueError(
                "Expected a causal encoder, got encoder='bidirectional', which reads contexts of "
                "steps to come. Use predict, or build the model with encoder='causal'."
            )
        if (state is None) != (y is None):
            raise ValueError(
                "Expected both a state and the value y that was observed last, or neither: the "
                "first call gives the law of the first value, before there is one."
            )
        y = self.start if y is None else self.standardize(self._check_row("y", y, self.dim))
        parts = [y]
        for name, row, width in (("x", x, self.context_dim), ("static", static, self.static_dim)):
            if (row is None) != (width == 0):
                raise ValueError(
                    f"Expected {name} of shape (*B, {width}), got None."
                    if width
                    else f"Expected no {name}, as the model was built without, got one."
                )
            if row is not None:
                scale = self.standardize_context if name == "x" else self.standardize_static
                parts.append(scale(self._check_row(name, row, width)))
        expected = self.recurrence.num_memories
        if state is not None and (
            len(state) != expected
            or any(s.shape[-2:] != (self.num_layers, self.hidden_dim) for s in state)
        ):
            raise ValueError(
                f"Expected a state of {expected} tensor(s) of shape (*B, {self.num_layers}, "
                f"{self.hidden_dim}), as step returns it, got {[tuple(s.shape) for s in state]}."
            )
        shapes = {f"input {i}": (part, 1) for i, part in enumerate(parts)}
        shapes |= {f"state {i}": (s, 2) for i, s in enumerate(state or ())}
        batch = _common_shape(shapes)
        given = torch.cat([part.expand(*batch, -1) for part in parts], -1)
        memory: Memory | None = None
        if state is not None:
            flat = (s.expand(*batch, -1, -1).reshape(-1, *s.shape[-2:]) for s in state)
            memory = tuple(s.transpose(0, 1).contiguous() for s in flat)
        states, memory = self.recurrence(given.reshape(batch.numel(), 1, -1), memory)
        law = self.law_of_step(states.reshape(*batch, self.hidden_dim))
        law._validate_args = self._validate_args
        following = (m.transpose(0, 1) for m in memory)
        return law, tuple(m.reshape(*batch, *m.shape[1:]) for m in following)

    def initialize(self, data: Batch) -> None:
        """Takes locations and scales of values and contexts, and starts at clusters of values.

        Parameters that do not require gradients are left alone.

        Args:
            data: Sequences, in the form of a batch of `loss`.

        Raises:
            ValueError: If they do not fit, or are not finite.
        """
        value, inputs = _split(data)
        law = self._law_given(inputs)
        value = law._without_padding(value)
        if not value.isfinite().all():
            raise ValueError("Expected finite values to initialise from, got NaN or infinity.")
        lengths = self._check_lengths(inputs.get("lengths"), self.length)
        present = value.new_ones(value.shape[:-1], dtype=torch.bool)
        if lengths is not None:
            present = within(lengths, self.length).expand(present.shape)
        self.standardize.set_from(value[present])
        if law._context is not None:
            context = law._context.expand(*present.shape, -1)
            self.standardize_context.set_from(context[present])
        if law._static is not None:
            self.standardize_static.set_from(law._static.reshape(-1, self.static_dim))
        z = self.standardize(value[present])
        if not any(isinstance(t, ConditionalTransform) for t in self.transforms):
            with torch.no_grad():
                for transform in reversed(list(self.transforms)):
                    z = transform.inv(z)  # type: ignore[operator]
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
        transforms: list[Any] = [
            t.condition(states) if isinstance(t, ConditionalTransform) else t
            for t in self.transforms
        ]
        scale = AffineTransform(self.standardize.loc, self.standardize.scale, event_dim=1)
        law = FlowLaw(self.head(states), [*transforms, scale], validate_args=False)
        law.has_rsample = self.has_rsample and not law.branching
        return law

    def encode_inputs(
        self, context: Tensor | None, static: Tensor | None, lengths: Tensor | None
    ) -> Tensor | None:
        r"""What the recurrent network is fed beside values.

        Args:
            context: Shape (\*C, T, context_dim).
            static: Shape (\*S, static_dim).
            lengths: Numbers of steps that a context has, shape (\*L).

        Returns:
            Tensor of shape (\*B, T, number of inputs), or (\*S, 1, static_dim) if there is no
            context, or None without inputs.
        """
        parts = []
        if context is not None:
            context = self.standardize_context(context)
            if self.context_encoder is not None:
                context = self._encode(context, lengths)
            parts.append(context)
        if static is not None:
            parts.append(self.standardize_static(static).unsqueeze(-2))
        if len(parts) < 2:
            return parts[0] if parts else None
        leading = torch.broadcast_shapes(*(part.shape[:-1] for part in parts))
        return torch.cat([part.expand(*leading, -1) for part in parts], -1)

    def _encode(self, context: Tensor, lengths: Tensor | None) -> Tensor:
        """Reads contexts in both directions."""
        leading = context.shape[:-2]
        if lengths is not None:
            leading = torch.broadcast_shapes(leading, lengths.shape)
            lengths = lengths.expand(leading).reshape(-1)
        flat = context.expand(*leading, -1, -1).reshape(-1, *context.shape[-2:])
        encoded, _ = self.context_encoder(flat, None, lengths)
        if lengths is not None:
            present = within(lengths, context.shape[-2]).unsqueeze(-1)
            encoded = torch.where(present, encoded, 0.0)
        return encoded.reshape(*leading, *encoded.shape[-2:])

    @property
    def _law(self) -> SequenceLaw:
        """The law without inputs."""
        return self.condition()

    def _law_given(self, inputs: Mapping[str, Any]) -> SequenceLaw:
        """The law for a batch, whose context may be one that the model does not take."""
        if inputs.get("context") is not None and not self.conditional:
            raise ValueError(
                "Expected values alone, got a batch that is a pair, which is read as values and "
                "context. This model takes no context: leave labels out, or give static_dim."
            )
        return self.condition(**inputs)

    def _try_transforms(self) -> None:
        """Draws once, to find transforms that do not fit."""
        for transform in self.transforms:
            for end in ("domain", "codomain"):
                space = getattr(transform, end, constraints.real_vector)
                while isinstance(space, constraints.independent):
                    space = space.base_constraint
                if space is not constraints.real and space.event_dim > 1:
                    raise ValueError(
                        f"Expected transforms of vectors, got {type(transform).__name__} over "
                        f"events of {space.event_dim} dimensions."
                    )
                if space not in (constraints.real, constraints.real_vector):
                    raise ValueError(
                        f"Expected transforms of real vectors onto real vectors, got "
                        f"{type(transform).__name__} with a {end} of {space}. For values that are "
                        f"bounded put the model into a Flow: Flow(FRMDN(...), [transform])."
                    )
        try:
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                drawn = self.law_of_step(self.start.new_zeros(2, self.hidden_dim)).sample()
            fits = drawn.shape == (2, self.dim)
        except (RuntimeError, ValueError, TypeError) as error:
            fits, reason = False, f" ({error})"
        else:
            reason = f" (draws have shape {tuple(drawn.shape[1:])})"
        if not fits:
            raise ValueError(
                f"Expected transforms of vectors of dim={self.dim} entries, of which conditional "
                f"ones have context_dim=hidden_dim={self.hidden_dim}, got "
                f"{[type(t).__name__ for t in self.transforms]}{reason}."
            )

    def _check_lengths(self, lengths: Any, longest: int) -> Tensor | None:
        if lengths is None:
            return None
        if not isinstance(lengths, Tensor) or lengths.is_floating_point() or lengths.is_complex():
            raise ValueError(
                f"Expected lengths to be a tensor of integers, got "
                f"{lengths.dtype if isinstance(lengths, Tensor) else type(lengths).__name__}."
            )
        if lengths.device != self.start.device:
            raise ValueError(
                f"Expected lengths on device {self.start.device}, got {lengths.device}."
            )
        if not is_traced() and lengths.numel():
            low, high = (int(t) for t in lengths.aminmax())
            if low < 1 or high > longest:
                raise ValueError(
                    f"Expected lengths from 1 to {longest}, got lengths from {low} to {high}. "
                    f"Leave empty sequences out."
                )
        return lengths

    def _check_context(self, context: Any, lengths: Tensor | None) -> Tensor | None:
        """The context, its padding replaced by zeros."""
        if context is None and not self.context_dim:
            return None
        if context is None:
            raise ValueError(
                f"This model needs a context of shape (*B, T, {self.context_dim}). Call "
                f"condition(context), and use the distribution that it returns; train on pairs "
                f"(values, context)."
            )
        if not self.context_dim:
            raise ValueError(
                "Expected no context of every step, as the model was built without context_dim."
            )
        context = check_tensor("context", context, like=self.start)
        if context.dim() < 2 or context.shape[-1] != self.context_dim:
            raise ValueError(
                f"Expected a context of shape (*B, T, {self.context_dim}), got "
                f"{tuple(context.shape)}."
            )
        if lengths is not None:
            context = torch.where(within(lengths, context.shape[-2]).unsqueeze(-1), context, 0.0)
        self._check_finite("context", context)
        return context

    def _check_static(self, static: Any) -> Tensor | None:
        if static is None and not self.static_dim:
            return None
        if static is None:
            raise ValueError(
                f"This model needs a static context of shape (*B, {self.static_dim}). Call "
                f"condition(static=...), and use the distribution that it returns."
            )
        if not self.static_dim:
            raise ValueError("Expected no static context, as the model was built without one.")
        return self._check_row("static", static, self.static_dim)

    def _check_row(self, name: str, row: Any, width: int) -> Tensor:
        row = check_tensor(name, row, like=self.start)
        if row.dim() < 1 or row.shape[-1] != width:
            raise ValueError(f"Expected {name} of shape (*B, {width}), got {tuple(row.shape)}.")
        self._check_finite(name, row)
        return row

    def _check_finite(self, name: str, value: Tensor) -> None:
        if self._validate_args and not is_traced() and not bool(value.isfinite().all()):
            raise ValueError(f"Expected {name} to be finite, got NaN or infinity.")


def _split(batch: Batch) -> tuple[Tensor, dict[str, Any]]:
    """Values of a batch, and arguments of `condition`."""
    if isinstance(batch, Mapping) and "value" in batch:
        inputs = {name: batch[name] for name in batch if name != "value"}
        unknown = set(inputs) - {"context", "static", "lengths"}
        if unknown:
            raise ValueError(
                f"Expected a batch with keys 'value' and of 'context', 'static' and 'lengths' "
                f"those that there are, got {sorted(unknown)} as well."
            )
        return batch["value"], inputs
    value, context = split_batch(batch)
    return value, {"context": context}


def _as_modules(transforms: Any) -> list[Any]:
    if not isinstance(transforms, Sequence | nn.ModuleList):
        transforms = [transforms]
    return [as_transform_module(t) for t in flatten_transforms(list(transforms))]


def _common_shape(tensors: Mapping[str, tuple[Tensor | None, int]]) -> Size:
    """The shape that batch shapes broadcast to; with each tensor, the dimensions of its event."""
    shapes = {
        name: tuple(t.shape[: t.dim() - event_dim])
        for name, (t, event_dim) in tensors.items()
        if t is not None
    }
    try:
        return torch.broadcast_shapes(*shapes.values())
    except RuntimeError:
        got = ", ".join(f"{shape} of {name}" for name, shape in shapes.items())
        raise ValueError(f"Expected batch shapes that broadcast, got {got}.") from None


def _check_choice(name: str, value: Any, choices: Any) -> Any:
    if value not in tuple(choices):
        raise ValueError(f"Expected {name} to be one of {tuple(choices)}, got {value!r}.")
    return value


def _check_count(name: str, value: object) -> int:
    count = as_int(value)
    if count is None or count < 0:
        raise ValueError(f"Expected {name} to be an integer of at least 0, got {value!r}.")
    return count


def _check_rank(rank: object, dim: int) -> int:
    count = _check_count("rank", rank)
    if count > dim:
        raise ValueError(
            f"Expected a rank from 0 to dim={dim}, got {count}. Precisions of full rank need no "
            f"more than dim columns."
        )
    return count
