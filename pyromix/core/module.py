"""The base class of every model: a distribution whose parameters live in the object."""

__all__ = ["DistributionModule"]

from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Size, Tensor, nn
from torch.distributions import Distribution, constraints
from torch.optim import Optimizer
from torch.types import _size

from .arguments import UnknownArgumentsError, constructor_arguments
from .batch import Batch, check_paired, split_batch
from .checks import Check
from .draws import without_graph
from .expanded import Expandable
from .registry import NotPlainError, decode, encode, register


class DistributionModule(nn.Module, Expandable):
    """A distribution that is also a module: its parameters are found, moved, saved and trained.

    Subclasses define `log_prob`, and `rsample` (with ``has_rsample = True``) or `sample`. They
    declare `support`, keep each constructor argument as an attribute of the same name, and hold
    tensors only as parameters and buffers, so that ``.to()``, ``state_dict()``, deep copies and
    checkpoints see everything.

    Calling the object draws a sample, as in Pyro, and runs forward hooks, as in PyTorch:
    `pyro.sample`, `pyro.module`, plates and `torch.compile` work on it directly. `expand`,
    `mask` and `to_event` return plain distributions that share the parameters. A `PyroModule`
    holds one as an attribute; ``PyroModule[Model]`` is not possible, as Pyro's distributions and
    modules have different metaclasses.

    Args:
        batch_shape: Shape of independent, differently parameterised distributions.
        event_shape: Shape of one sample.
        validate_args: Whether to check the values that are scored.

    Example:
        >>> class Shifted(DistributionModule):
        ...     support = constraints.real_vector
        ...     has_rsample = True
        ...
        ...     def __init__(self, dim: int) -> None:
        ...         super().__init__(event_shape=(dim,))
        ...         self.dim = dim
        ...         self.loc = nn.Parameter(torch.zeros(dim))
        ...
        ...     def rsample(self, sample_shape=Size()):
        ...         return self.loc + torch.randn(self._extended_shape(sample_shape))
        ...
        ...     def log_prob(self, value):
        ...         if self._validate_args:
        ...             self._validate_sample(value)
        ...         return torch.distributions.Normal(self.loc, 1.0).log_prob(value).sum(-1)
        >>> model = Shifted(dim=2)
        >>> model().shape, [name for name, _ in model.named_parameters()], model.config()
        (torch.Size([2]), ['loc'], {'dim': 2})
    """

    # nn.Module comes first in the bases: its __call__ must be the one that runs, and in the other
    # order Distribution.__init__ would call nn.Module.__init__ again and wipe the parameters.

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}
    # A plain attribute, not a property: Pyro's has_rsample_(False) sets it on the instance.
    has_rsample: bool = False
    trains_density: ClassVar[bool] = False
    """Whether a loss of the model's own has its least value at the best density, too."""
    default_lr: ClassVar[float] = 1e-3
    """Learning rate of `fit`, unless it is given one."""
    argument_checks: ClassVar[Mapping[str, Check]] = {}
    """The constructor's arguments and how they are checked: see `keep_arguments`.

    A constructor names its own class's table, as a subclass may have a longer one."""
    argument_aliases: ClassVar[Collection[str]] = ()
    """Arguments that are other names of arguments: descriptions and files leave them out."""
    argument_additions: ClassVar[Mapping[str, Any]] = {}
    """Arguments that earlier versions did not have, and their defaults: descriptions and files
    leave them out where they have these, so that they are the same as earlier ones."""
    initialized: Tensor

    def __init__(
        self,
        batch_shape: Sequence[int] = (),
        event_shape: Sequence[int] = (),
        validate_args: bool | None = None,
    ) -> None:
        nn.Module.__init__(self)
        Distribution.__init__(self, Size(batch_shape), Size(event_shape), validate_args)
        self.register_buffer("initialized", torch.tensor(False))

    def keep_arguments(self, arguments: Mapping[str, Any]) -> None:
        """Keeps checked arguments of the constructor as attributes of the same names.

        The class declares their types, ``dim: int`` and so on, for type checkers.

        Args:
            arguments: What `check_arguments` returned for the table `argument_checks`.
        """
        for name, value in arguments.items():
            setattr(self, name, value)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        register(cls)

    def forward(self, sample_shape: _size = Size()) -> Tensor:
        """Draws a sample: with pathwise gradients if ``has_rsample``, else without a graph."""
        return self.rsample(sample_shape) if self.has_rsample else self.sample(sample_shape)

    @without_graph
    def sample(self, sample_shape: _size = Size()) -> Tensor:
        """Draws without a graph; by default what `rsample` draws."""
        return self.rsample(sample_shape)

    def loss(self, batch: Batch, progress: float = 1.0) -> Tensor:  # noqa: ARG002
        """What training minimises: by default the mean negative log-density of the batch.

        Args:
            batch: Values of shape ``(N, *event_shape)``; for a conditional model a pair, or a
                mapping with keys ``"value"`` and ``"context"``.
            progress: How far training has come, from 0 to 1, for models with a curriculum.

        Returns:
            A scalar.
        """
        value, context = split_batch(batch)
        law = self if context is None else self.condition(context)
        check_paired(law, value)
        return -law.log_prob(value).mean()

    def stage(self, progress: float) -> str | None:  # noqa: ARG002
        """Name of the stage of training, for models with a curriculum; `History` records it."""
        return None

    @property
    def scheduled(self) -> bool:
        """Whether `anneal` changes anything in the course of training."""
        return False

    def anneal(self, progress: float) -> None:
        """Sets what follows a schedule, such as a temperature; by default nothing does.

        `fit` calls it before every step, and once more at the end of training.

        Args:
            progress: How far training has come, from 0 to 1.
        """

    def learning_rate_factor(self, progress: float) -> float:  # noqa: ARG002
        """Factor of the learning rate, which `fit` follows unless it is given a scheduler.

        Args:
            progress: How far training has come, from 0 to 1.
        """
        return 1.0

    def make_optimizer(self, lr: float) -> Optimizer | None:  # noqa: ARG002
        """The optimizer that `fit` uses, unless it is given one; None for `fit`'s own default.

        Args:
            lr: Learning rate.
        """
        return None

    def columns_at_floor(self) -> Tensor | None:
        """Which columns have the smallest scale that the model allows in all of the law, (D,).

        `fit` warns of these. None, as by default, for models without such a floor.
        """
        return None

    def column_floors(self) -> Tensor | float:
        """Smallest standard deviation that the model allows each column, (D,), or all of them.

        By default the argument `scale_floor` of models that have one, else zero.
        """
        floor: float = getattr(self, "scale_floor", 0.0)
        return floor

    def metrics(self) -> Mapping[str, float]:
        """What `History` records of the step whose loss was computed last, beside the loss."""
        return {}

    def initialize(self, data: Batch) -> None:  # noqa: ARG002
        """Sets parameters from data before training starts; by default none.

        `fit` calls it unless ``initialized`` says that it, or training, has been before. A
        subclass calls ``super().initialize(data)``, which takes that note, and leaves parameters
        alone that do not require gradients. It works under ``torch.no_grad()``: what it keeps of
        data that have a graph must not have one.

        Args:
            data: Training data, in the form of a batch.
        """
        self.initialized.fill_(True)

    @property
    def num_parameters(self) -> int:
        """Number of numbers that are learnt: entries of all parameters, frozen ones too."""
        return sum(p.numel() for p in self.parameters())

    def config(self) -> dict[str, Any]:
        """The constructor's arguments as plain data, from which a checkpoint rebuilds the model.

        Raises:
            NotPlainError: If an argument is not an attribute of the model, or is an object of an
                unknown class, such as a user's network.
        """
        try:
            arguments = constructor_arguments(self, strict=True)
        except UnknownArgumentsError as error:
            raise NotPlainError(str(error)) from error
        known = self.argument_additions
        return {
            name: encode(value)
            for name, value in arguments.items()
            if not (name in known and value == known[name])
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Builds a model from what `config` returned; its parameters are not yet set."""
        return cls(**{name: decode(value) for name, value in config.items()})

    @property
    def conditional(self) -> bool:
        """Whether the model needs a context, and `condition` gives its law."""
        return False

    def condition(self, *given: Any, **options: Any) -> Distribution:
        """The distribution given a context, for models that are conditional.

        Raises:
            NotImplementedError: If the model is not conditional.
        """
        raise NotImplementedError(
            f"{type(self).__name__} takes no context, and no evidence. Build a conditional "
            f"model, with context_dim or with conditional transforms, or ask a mixture about "
            f"columns. (A batch that is a pair is read as values and context: leave labels out.)"
        )

    def extra_repr(self) -> str:
        """The constructor's plain arguments, for the module tree that ``repr`` shows."""
        try:
            arguments = constructor_arguments(self)
        except UnknownArgumentsError:
            return ""
        plain = (bool, int, float, str, list, tuple)
        shown = {k: v for k, v in arguments.items() if isinstance(v, plain)}
        return ", ".join(
            f"{k}={tuple(v) if isinstance(v, Size) else v!r}" for k, v in shown.items()
        )
