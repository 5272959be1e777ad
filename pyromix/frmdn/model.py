"""Recurrent mixture density networks, as laws of sequences."""

__all__ = ["FRMDN"]

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from pyro.distributions.conditional import ConditionalTransform
from torch import Size, Tensor, nn
from torch.distributions import AffineTransform, constraints
from torch.types import _size

from ..core.batch import Batch, check_paired, split_batch
from ..core.checks import check_choice, check_count, check_floor, check_positive_int, check_tensor
from ..core.module import DistributionModule
from ..core.networks import Standardize, check_widths
from ..flows.law import FlowLaw
from ..flows.wrapping import as_transform_module, flatten_transforms
from ..mixtures.clusters import find_clusters
from .checks import check_finite, check_lengths, check_row, common_shape, within
from .generation import continue_prefix
from .head import POSITIVE, MixtureHead
from .inputs import Inputs
from .law import SequenceLaw
from .recurrence import CELLS, Memory, Recurrence

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
        scale_floor: Smallest s, f, in units of the standardised data. Low-rank columns are
            bounded, too, so that the variance of the mixture's components is at least
            :math:`f^2 / (1 + 10^4 r)` in all directions. Where data repeat exactly the likelihood
            would be infinite without a bound: add noise to rounded data (see `dequantize`).
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
        self.cell = check_choice("cell", cell, CELLS)
        self.head_dims = check_widths("head_dims", head_dims)
        self.context_dim = check_count("context_dim", context_dim)
        self.static_dim = check_count("static_dim", static_dim)
        self.encoder = check_choice("encoder", encoder, ("causal", "bidirectional"))
        self.factor = check_choice("factor", factor, ("network", "shared"))
        self.positivity = check_choice("positivity", positivity, POSITIVE)
        self.scale_floor = check_floor("scale_floor", scale_floor)
        if encoder == "bidirectional" and not context_dim:
            raise ValueError(
                "Expected a context_dim for encoder='bidirectional', which reads the context of "
                "all steps, got 0."
            )
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
            positivity=positivity,
            floor=scale_floor,
        )
        self.transforms = nn.ModuleList(_as_modules(transforms))
        self.has_rsample = self.has_pathwise_draws
        self._try_transforms()

    @property
    def support(self) -> constraints.Constraint:
        """Sequences of real vectors."""
        return constraints.independent(constraints.real, 2)

    @property
    def has_pathwise_draws(self) -> bool:
        """Whether draws have pathwise gradients: without transforms that draw branches."""
        return not any(getattr(t, "branching", False) for t in self.transforms)

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
        context, static = self._told_apart(context, static)
        lengths = check_lengths(lengths, self.length, self.start)
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
        law = self._law_given(inputs)
        check_paired(law, value)
        return -law.log_prob(value).mean()

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
        context, static = self._told_apart(context, static)
        prefix = check_tensor("prefix", prefix, like=self.start)
        if prefix.dim() < 2 or prefix.shape[-1] != self.dim or prefix.shape[-2] == 0:
            raise ValueError(
                f"Expected a prefix of shape (*B, t, {self.dim}) with t of at least 1, got "
                f"{tuple(prefix.shape)}. To draw from the start, call sample."
            )
        lengths = check_lengths(lengths, prefix.shape[-2], self.start)
        totals = None if lengths is None else lengths + horizon
        if lengths is not None:
            prefix = prefix[..., : int(lengths.max()), :]
        num_steps = prefix.shape[-2]
        needed = num_steps + horizon
        if isinstance(context, Tensor) and context.dim() > 1:
            context = context[..., :needed, :]  # what comes later is not to be read
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
                "lengths": (lengths, 0),
            }
        )
        ends = torch.tensor(num_steps, device=prefix.device) if lengths is None else lengths
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
        y: Tensor | None = None,
        x: Tensor | None = None,
        *,
        static: Tensor | None = None,
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
            check_finite("y", check_row("y", y, self.dim, self.start))
            value = self.standardize(y)
        if x is not None and self.context_dim:
            x = check_row("x", x, self.context_dim, self.start).unsqueeze(-2)
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
        present = value.new_ones(value.shape[:-1], dtype=torch.bool)
        if law.lengths is not None:
            present = within(law.lengths, self.length).expand(present.shape)
        self.standardize.set_from(value[present])
        if law._context is not None:
            context = law._context.expand(*present.shape, -1)
            self.inputs.standardize_context.set_from(context[present])
        if law._static is not None:
            self.inputs.standardize_static.set_from(law._static.reshape(-1, self.static_dim))
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
                        f"Expected transforms of vectors, got {_name(transform)} over events of "
                        f"{space.event_dim} dimensions."
                    )
                if space not in (constraints.real, constraints.real_vector):
                    raise ValueError(
                        f"Expected transforms of real vectors onto real vectors, got "
                        f"{_name(transform)} with a {end} of {space}. For values that are "
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
                f"{[_name(t) for t in self.transforms]}{reason}."
            )

    def _told_apart(self, context: Any, static: Any) -> tuple[Any, Any]:
        """Context and static context: a model that takes but the latter gets it first."""
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


def _split(batch: Batch) -> tuple[Tensor, dict[str, Any]]:
    """Values of a batch, and arguments of `condition`."""
    match batch:
        case {"value": value, **inputs} if set(inputs) <= {"context", "static", "lengths"}:
            return value, {str(name): given for name, given in inputs.items()}
        case Tensor() | [Tensor()] | [Tensor(), _]:
            value, context = split_batch(batch)
            return value, {"context": context}
    got = sorted(batch) if isinstance(batch, Mapping) else type(batch).__name__
    raise ValueError(
        f"Expected a batch that is a tensor, a pair (values, context), or a mapping with the key "
        f"'value' and, of 'context', 'static' and 'lengths', those that there are, got {got}."
    )


def _as_modules(transforms: Any) -> list[Any]:
    if not isinstance(transforms, Sequence | nn.ModuleList):
        transforms = [transforms]
    return [as_transform_module(t) for t in flatten_transforms(list(transforms))]


def _name(transform: Any) -> str:
    """Name of a transform's class, which may be wrapped as a module."""
    arguments = getattr(transform, "arguments", None)
    return getattr(arguments, "_cls", type(transform)).__name__


def _check_rank(rank: object, dim: int) -> int:
    count = check_count("rank", rank)
    if count > dim:
        raise ValueError(
            f"Expected a rank from 0 to dim={dim}, got {count}. Precisions of full rank need no "
            f"more than dim columns."
        )
    return count
