r"""What all laws given evidence have in common: :math:`p(x) q(x) / Z`."""

__all__ = [
    "FREED_GRAPH",
    "UNKNOWN_EVIDENCE_GRADIENT",
    "ConditionedLaw",
    "FreeLaw",
    "Prior",
    "Start",
    "WithinRegions",
    "condition_from",
    "copy_for_law",
]

import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Generator, Size, Tensor
from torch.distributions import Distribution, constraints
from torch.types import _size

from ..core.checks import check_value
from ..core.constraints import fixed_columns
from ..core.copies import without_graphs
from ..core.draws import without_graph
from ..core.expanded import Expandable
from ..core.random import draws_from, takes_generator
from ..evidence.linear import LinearEvidence
from ..evidence.pieces import Evidence, Number, Observed
from ..numerics.batches import flat_index
from ..numerics.no_gradient import raise_if_freed
from .parts import as_plain
from .truncated import ConflictError

Statement = Evidence | Mapping[int, Number]
# Names of devices, and states of their generators.
Start = tuple[tuple[str, Tensor], ...]

UNKNOWN_EVIDENCE_GRADIENT = (
    "The evidence log Z under these inequalities has no closed form, and no gradient in the "
    "parameters of the mixture and of the evidence. If none is wanted, condition within "
    "torch.no_grad(), or on a mixture whose parameters do not require gradients. If it is: the "
    "gradient of log Z is the mean of that of mixture.log_prob(x) over draws x of the conditional "
    "law."
)


FREED_GRAPH = (
    "The graph of a law given evidence is made when the law is, and was freed by an earlier "
    "backward pass. If no gradient in the parameters of the model is wanted, condition within "
    "torch.no_grad(). If it is, condition anew at every step, which also takes in what the step "
    "has changed, or retain the graph."
)


def copy_for_law(tensor: Tensor) -> Tensor:
    """A copy of a parameter for a law given evidence, with a graph that is told if it is freed."""
    return raise_if_freed(tensor.clone(), FREED_GRAPH)


class Prior(Protocol):
    """A law without evidence, which knows how it is conditioned."""

    dim: int
    """Number of real columns."""
    categories: tuple[int, ...]
    """Numbers of categories of the columns that follow them."""
    dtype: torch.dtype
    """Of draws and results."""
    device: torch.device
    validate_args: bool
    """Whether laws given evidence check what they score."""
    is_sampled: bool
    """Whether laws stand for a sample, so that log Z has an error whatever the evidence."""

    @property
    def correlates(self) -> bool:
        """Whether real columns depend on each other, given a component."""

    def given(
        self, evidence: LinearEvidence, *, allow_impossible_entries: bool = False
    ) -> "ConditionedLaw":
        """The law given one set of linear statements.

        Args:
            evidence: All that is known.
            allow_impossible_entries: Whether entries of the batch may contradict themselves, and
                have an evidence of zero, as long as not all do.

        Raises:
            ConflictError: If the evidence cannot hold: at an entry, or, if those are allowed, at
                all of them.
        """

    def condition_on(self, evidence: Sequence[Statement]) -> "ConditionedLaw":
        """The law given any pieces of evidence, alternatives among them."""


class ConditionedLaw(Expandable):
    r"""A law given evidence, :math:`p(x) q(x) / Z`, over all columns of the model.

    Every model that takes evidence returns one from ``condition``, of event shape (D,) as the
    model's, D with the categorical columns: those that were observed are kept, at their values.
    `free` drops them. Subclasses say what Z is, what a point is worth and how to draw.

    Args:
        prior: The law without evidence.
        batch_shape: The shape B of the evidence, broadcast with the model's.
        event_shape: The shape (D,).
    """

    arg_constraints = {}  # noqa: RUF012
    has_rsample = False
    route: tuple[Any, ...] | None = None
    """How draws under inequalities are made; None without inequalities."""
    _statements: tuple[Statement, ...] = ()
    _start: Start = ()  # generators' states when it was made

    def __init__(self, prior: Prior, batch_shape: Size, event_shape: Size) -> None:
        self._prior, self._dtype = prior, prior.dtype
        super().__init__(batch_shape, event_shape, validate_args=False)
        self._validate_args = prior.validate_args

    # ---- what a law given evidence is ------------------------------------------------------

    @abstractmethod
    def log_normalizer(self) -> tuple[Tensor, Tensor]:
        r"""Log Z of shape (\*B,) and its standard error, in float64.

        Minus infinity for entries of the batch whose evidence cannot hold.
        """

    @abstractmethod
    def log_joint(self, value: Tensor) -> Tensor:
        r"""Log p(x) q(x) of points (\*S, \*B, D), in float64, as if there were no inequalities.

        Minus infinity for points that miss observed values or equations.
        """

    @abstractmethod
    def holds(self, value: Tensor) -> Tensor:
        r"""Whether points of shape (\*S, \*B, D) meet the inequalities; shape (\*S, \*B)."""

    @abstractmethod
    def draw(self, entry: Tensor) -> Tensor:
        """Draws (n, D) of the laws at entries (n,) of the flattened batch; see `sample`."""

    @property
    @abstractmethod
    def observed(self) -> Mapping[int, Tensor]:
        r"""Columns that were observed, in ascending order -> their values, shape (\*B,)."""

    # ---- what follows ------------------------------------------------------------------------

    @property
    def free_columns(self) -> list[int]:
        """The columns that were not observed, in ascending order."""
        return [d for d in range(self.event_shape[0]) if d not in self.observed]

    def condition(self, *evidence: Statement, **options: Any) -> "ConditionedLaw":
        """The law given further evidence, on top of what it was made with.

        Args:
            evidence: Pieces, or mappings from columns to values, short for `Observed`.
            options: As of the model's own ``condition``.

        Raises:
            ValueError: If the evidence does not fit, or contradicts itself.
        """
        self.check_whole()
        prior: Any = self._prior
        prior = prior.with_options(**options) if options else prior
        return prior.condition_on((*self._statements, *evidence))

    @torch.no_grad()
    def to(self, *args: Any, **kwargs: Any) -> "ConditionedLaw":
        """The law on another device, or of another dtype, without a graph.

        It is made anew from the same random numbers: a population of codes is the same up to what
        rounding decides.

        Args:
            args: A device, a dtype, or both, as of `torch.Tensor.to`.
            kwargs: The same by name.

        Raises:
            NotImplementedError: If the law without evidence cannot be moved by itself.
        """
        self.check_whole()
        device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        prior: Any = self._prior
        if not hasattr(prior, "map_tensors"):
            raise NotImplementedError(
                f"Not available: a {type(self).__name__} stays where it is. Move the model that "
                f"it was made from, and condition that again."
            )
        moved = prior.map_tensors(lambda tensor: tensor.detach().to(device, dtype))
        return condition_from(moved, [self._in_dtype(s) for s in self._statements], self._start)

    def _in_dtype(self, statement: Statement) -> Statement:
        """A statement with observed numbers as this law has them, rounded to its dtype."""
        values = statement.values if isinstance(statement, Observed) else statement
        if not isinstance(values, Mapping):
            return statement
        return Observed(
            {
                d: value if isinstance(value, Tensor) else torch.as_tensor(value).to(self._dtype)
                for d, value in values.items()
            }
        )

    def check_whole(self) -> None:
        """Checks that the law knows what evidence it was made from.

        Raises:
            ValueError: If it does not, being a part of another law.
        """
        if not self._start:
            raise ValueError(
                f"Expected a law that a model's condition returned, got a "
                f"{type(self).__name__} that is a part of another one, such as an alternative. "
                f"Condition the model on the evidence of that part."
            )

    def as_tree(self) -> dict[str, Any]:
        """What `save` writes: nested tensors, numbers, strings and collections.

        Raises:
            ValueError: If it holds a part that is no plain data, such as a function.
        """
        self.check_whole()
        return {
            "prior": as_plain(self._prior),
            "evidence": [as_plain(piece) for piece in self._statements],
            "start": [[device, state] for device, state in self._start],
        }

    def free(self) -> Distribution:
        r"""The law of the columns that were not observed, of event shape (number of those,).

        In closed form where there is one: then a mixture again, with all that mixtures can do.

        Raises:
            ValueError: If all columns were observed.
        """
        return FreeLaw(self)

    def marginal(self, dims: int | Iterable[object]) -> Distribution:
        """The law of some of the columns, where it has a closed form.

        Args:
            dims: The columns to keep, in the order of the result, none of them observed.

        Raises:
            NotImplementedError: If it has none: draw with `sample`, and keep columns of that.
        """
        raise NotImplementedError(
            f"Not available: marginals of {type(self).__name__} have no closed form under this "
            f"evidence. Keep columns of draws instead: sample((n,))[..., dims]."
        )

    def quantile(self, column: int, probs: Number | Sequence[float]) -> Tensor:
        r"""Quantiles of a real column, where its law has a closed form.

        Args:
            column: The column.
            probs: Probabilities from 0 to 1, of any shape P.

        Returns:
            Tensor of shape (\*P, \*B), without a graph.

        Raises:
            NotImplementedError: If it has none: take quantiles of draws.
            ValueError: If there is no such real column, or for other probabilities.
        """
        raise NotImplementedError(self._no_quantile(column))

    def _no_quantile(self, column: int) -> str:
        return (
            f"Not available: under this evidence the law of column {column} of "
            f"{type(self).__name__} has no closed form. Take quantiles of draws: "
            f"sample((n,))[..., {column}].quantile(probs, 0)."
        )

    @property
    def mode(self) -> Tensor:
        r"""The point of greatest density that a search finds, shape (\*B, D), without a graph.

        Observed columns have their values, categorical ones the categories that are densest
        together with the others. It lies within inequalities. The search starts from many places,
        and is the same every time; there may be a denser point that none of them leads to.

        Raises:
            NotImplementedError: If no search is known for this law: take the densest of many
                draws.
        """
        entry = torch.arange(self.batch_shape.numel(), device=self._prior.device)
        with torch.no_grad(), draws_from(torch.Generator(entry.device).manual_seed(0)):
            return self.mode_at(entry).reshape(*self.batch_shape, *self.event_shape)

    def mode_at(self, entry: Tensor) -> Tensor:
        """Modes (n, D) of the laws at entries (n,) of the flattened batch, each named once."""
        raise NotImplementedError(
            f"Not available: no search for the mode of {type(self).__name__} is known. Take the "
            f"densest of many draws: x = law.sample((n,)), x[law.log_prob(x).argmax(0)]."
        )

    def log_joint_at(self, value: Tensor, entry: Tensor) -> Tensor:
        """Log p(x) q(x) of points (S, n, D) about entries (n,), each named once: (S, n)."""
        shape = (len(value), *self.batch_shape, *self.event_shape)
        every = value.new_zeros(len(value), self.batch_shape.numel(), *self.event_shape)
        every[:, entry] = value
        return self.log_joint(every.reshape(shape)).reshape(*every.shape[:2])[:, entry]

    def log_evidence(self) -> tuple[Tensor, Tensor]:
        r"""Log of :math:`Z = \int p(x) q(x) dx`, and its standard error.

        Returns:
            Two tensors of shape (\*B,), in nats. The error is zero where all is in closed form.
        """
        log_normalizer, error = self.log_normalizer()
        return log_normalizer.to(self._dtype), error.to(self._dtype)

    def log_prob(self, value: Tensor) -> Tensor:
        r"""Log-density of points of shape (\*S, \*B, D); shape (\*S, \*B)."""
        log_prob = self.log_joint(value) - self.log_normalizer()[0]
        return torch.where(self.holds(value), log_prob, -math.inf).to(self._dtype)

    @without_graph
    @takes_generator
    def sample(
        self, sample_shape: _size = Size(), *, generator: Generator | None = None
    ) -> Tensor:
        r"""Draws, shape (\*S, \*B, D).

        Args:
            sample_shape: Shape S of the draws.
            generator: Where random numbers come from; by default PyTorch's global generator.

        Raises:
            RuntimeError: If inequalities leave no room for numbers of the dtype.
        """
        shape = Size((*sample_shape, *self.batch_shape))
        return self.draw(self._entries(shape)).reshape(*shape, *self.event_shape)

    def check_possible(self) -> None:
        """Checks that the evidence can hold at every entry of the batch.

        Raises:
            ConflictError: If it cannot.
        """
        impossible = self.log_normalizer()[0].isneginf()
        if bool(impossible.any()):
            raise ConflictError(
                f"Expected evidence that can hold, but {int(impossible.sum())} of "
                f"{impossible.numel()} entries of its batch contradict themselves."
            )

    def __getstate__(self) -> dict[str, Any]:
        """What copies and pickles are made of: the law of the present values, without a graph.

        PyTorch copies no tensor that has a graph, as log Z has to the mixture's parameters.
        """
        return {name: without_graphs(value) for name, value in vars(self).items()}

    def _entries(self, leading: Sequence[int]) -> Tensor:
        """The entry of the flattened batch that each point of shape (*S, *B) belongs to."""
        return flat_index(self.batch_shape, leading, self._prior.device)

    def _shown(self) -> dict[str, Any]:
        """What ``repr`` shows before the shapes."""
        return {}

    def __repr__(self) -> str:
        shapes = {"batch_shape": tuple(self.batch_shape), "event_shape": tuple(self.event_shape)}
        shown = ", ".join(f"{name}={value!r}" for name, value in (self._shown() | shapes).items())
        return f"{type(self).__name__}({shown})"


class WithinRegions(ConditionedLaw):
    """A law within a union of regions, or several: no closed form but that of the density."""

    @property
    def support(self) -> constraints.Constraint:
        """Where the density is positive.

        Raises:
            NotImplementedError: Always: no bijection onto a union is known.
        """
        raise NotImplementedError(
            "No bijection onto a union of regions is known. Draw with sample()."
        )

    @property
    def mean(self) -> Tensor:
        """Mean.

        Raises:
            NotImplementedError: Always: it has no closed form.
        """
        raise NotImplementedError(
            "Within a union the mean has no closed form. Use sample((n,)).mean(0)."
        )

    @property
    def variance(self) -> Tensor:
        """Variance of every coordinate.

        Raises:
            NotImplementedError: Always: it has no closed form.
        """
        raise NotImplementedError(
            "Within a union the variance has no closed form. Use sample((n,)).var(0)."
        )

    def probs(self, index: int) -> Tensor:
        """Probabilities of the categories of a column.

        Raises:
            NotImplementedError: Always: they have no closed form.
        """
        raise NotImplementedError(
            f"Within a union probabilities of categories have no closed form. Count those of "
            f"draws: sample((n,))[..., {index}]."
        )


def condition_from(prior: Prior, evidence: Sequence[Statement], start: Start) -> ConditionedLaw:
    """The law given evidence, made from the random numbers that follow states of generators."""
    generators = []
    for name, state in start:
        device = torch.device(name)
        if device.type in ("cpu", prior.device.type):
            generators.append(Generator(device))
            generators[-1].set_state(state)
    with draws_from(*(generators or [Generator()])):
        return prior.condition_on(evidence)


class FreeLaw(Expandable):
    """The law of the columns that were not observed, of a law given evidence.

    Args:
        law: The law of all columns.

    Raises:
        ValueError: If all columns were observed.
    """

    arg_constraints = {}  # noqa: RUF012
    has_rsample = False

    def __init__(self, law: ConditionedLaw) -> None:
        self._law, self._free = law, law.free_columns
        if not self._free:
            raise ValueError(
                "Expected columns that were not observed, got none. The density of values of all "
                "columns is log_prob of the law without evidence."
            )
        super().__init__(law.batch_shape, Size((len(self._free),)), validate_args=False)
        self._validate_args = law._validate_args

    @property
    def support(self) -> constraints.Constraint:
        """Where the density is positive, as the law of all columns says.

        Raises:
            NotImplementedError: If no bijection onto it is known: draw with `sample` instead.
        """
        support = self._law.support
        if isinstance(support, fixed_columns):
            return support.free
        if support is not None and len(self._free) == self._law.event_shape[0]:
            return support
        raise NotImplementedError(
            "No bijection onto the support of this evidence is known. Draw with sample()."
        )

    @property
    def mean(self) -> Tensor:
        r"""Mean, shape (\*B, columns)."""
        return self._law.mean[..., self._free]

    @property
    def variance(self) -> Tensor:
        r"""Variance of every column, shape (\*B, columns)."""
        return self._law.variance[..., self._free]

    @property
    def mode(self) -> Tensor:
        r"""Columns of the point of greatest density, as the law of all columns finds it."""
        return self._law.mode[..., self._free]

    @takes_generator
    def sample(
        self, sample_shape: _size = Size(), *, generator: Generator | None = None
    ) -> Tensor:
        r"""Draws, shape (\*S, \*B, columns).

        Args:
            sample_shape: Shape S of the draws.
            generator: Where random numbers come from; by default PyTorch's global generator.
        """
        return self._law.sample(sample_shape)[..., self._free]

    def log_prob(self, value: Tensor) -> Tensor:
        r"""Log-density of points of shape (\*S, \*B, columns); shape (\*S, \*B)."""
        value = check_value(self, value)
        leading = torch.broadcast_shapes(value.shape[:-1], self.batch_shape)
        columns: list[Tensor] = [value.new_empty(())] * self._law.event_shape[0]
        for place, d in enumerate(self._free):
            columns[d] = value[..., place].expand(leading)
        for d, observed in self._law.observed.items():
            columns[d] = observed.to(value).expand(leading)
        return self._law.log_prob(torch.stack(columns, -1))

    def __repr__(self) -> str:
        return f"FreeLaw(columns={self._free}, batch_shape={tuple(self.batch_shape)})"
