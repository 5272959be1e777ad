"""The law of a flow, given a context or with a larger batch."""

__all__ = ["FlowLaw"]

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.score_parts import ScoreParts
from pyro.ops.provenance import extract_provenance
from torch import Size, Tensor, nn
from torch.distributions import Distribution, Transform, constraints
from torch.distributions.transforms import AffineTransform
from torch.distributions.utils import _sum_rightmost
from torch.overrides import TorchFunctionMode
from torch.types import _size

from ..core.checks import check_expandable, check_value, is_traced
from ..core.constraints import move_support
from .branch_gradients import draw_with_score
from .branching import BranchingTransform
from .wrapping import PlainDistribution, PlainTransform

BRANCH_SCORE = "_pyromix_branch_score"  # attribute of draws


class FlowLaw(dist.TransformedDistribution):
    """The law of a `Flow`, given a context or with a larger batch: it owns no parameters.

    Density and draws are those of a transformed distribution, with Pyro's caches kept honest.

    Pyro's transforms remember the last pair (x, y) and its Jacobian, with their graphs. That
    saves the inverse pass when a fresh draw is scored, but a value scored again after an update
    of the parameters would find the stale pair, and a deep copy would fail. So the caches are
    used by `rsample_and_log_prob`, and by `score_parts` on the last draw, which Pyro calls before
    it updates parameters. `log_prob` empties them first, and nothing outlives `score_parts`.
    """

    # A plain attribute in place of PyTorch's property, so that Pyro's has_rsample_ can set it.
    has_rsample: bool = False

    def __call__(self, sample_shape: _size = Size()) -> Tensor:
        """Draws with the gradients that `score_parts` counts on."""
        return self._draw(Size(sample_shape))

    def has_rsample_(self, value: bool) -> "FlowLaw":
        """Switches pathwise gradients on or off, as in Pyro.

        Raises:
            ValueError: If they are to be switched on, and there are none because of branches.
        """
        if value and self.branching:
            raise ValueError(
                "A flow with branching transforms has no pathwise gradients. It needs no switch: "
                "its gradients in a guide account for branches."
            )
        self.has_rsample = value
        return self

    @property
    def branching(self) -> bool:
        """Whether a transform draws branches, as folds do."""
        return any(getattr(t, "branching", False) for t in self.transforms)

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> constraints.Constraint:
        """Where draws lie.

        PyTorch takes the codomain of the last transform, which is all of space for an affine one,
        also after a sigmoid. Here intervals and half-lines move with it.
        """
        transforms: list[Any] = list(self.transforms)
        last: list[AffineTransform] = []
        while transforms and isinstance(affine := _plain(transforms[-1]), AffineTransform):
            last.insert(0, affine)
            transforms.pop()
        support = transforms[-1].codomain if transforms else self.base_dist.support
        for affine in last:
            support = move_support(support, affine)
        missing = len(self.event_shape) - support.event_dim
        return constraints.independent(support, missing) if missing > 0 else support

    def expand(
        self, batch_shape: Sequence[int], _instance: Distribution | None = None
    ) -> "FlowLaw":
        """The same law with a larger batch shape; the parameters are shared.

        Pyro's generic `expand` would hand on copies of the draws, for which the transforms'
        caches do not hold, and every draw in a plate would be scored by the inverse pass.
        """
        self._check_ready()
        batch_shape = check_expandable(self, batch_shape)
        return self._with(self.base_dist.expand(batch_shape), list(self.transforms))

    def _with(self, base: Distribution, transforms: list[Any]) -> "FlowLaw":
        law = FlowLaw(base, transforms, validate_args=False)
        law._validate_args = self._validate_args
        law.has_rsample = self.has_rsample
        return law

    def sample(self, sample_shape: _size = Size()) -> Tensor:
        """Draws without a graph."""
        with torch.no_grad():
            x = self._push(self.base_dist.sample(Size(sample_shape)))
        self.clear_cache()
        return x.detach()  # the JIT records this, but not that gradients were off

    def rsample(self, sample_shape: _size = Size()) -> Tensor:
        """Draws with pathwise gradients, if the base has them.

        Raises:
            NotImplementedError: If a transform draws branches: those jump.
        """
        self._check_pathwise()
        return self._push(self.base_dist.rsample(Size(sample_shape)))

    def encode(self, value: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The latents behind values: real ones, and the branches of transforms that have such.

        Args:
            value: Shape ``sample_shape + batch_shape + event_shape``.

        Returns:
            z of the base, and for every branching transform, in the order of the transforms, a
            tensor of integers (see its own `encode`).

        Raises:
            ValueError: If the values are no values of this law.
        """
        self._check_ready()
        check_value(self, value)
        self.clear_cache()
        branches: list[Tensor] = []
        for transform in reversed(self.transforms):
            if isinstance(transform, BranchingTransform):
                value, branch = transform.encode(value)
                branches.append(branch)
            else:
                value = _invert(transform, value)
        self.clear_cache()
        return value, tuple(reversed(branches))

    def decode(self, z: Tensor, branches: Sequence[Tensor] = ()) -> Tensor:
        """The values with given latents: the inverse of `encode`.

        Args:
            z: Values of the base.
            branches: As returned by `encode`.

        Returns:
            Shape ``sample_shape + batch_shape + event_shape``.

        Raises:
            ValueError: If z is no value of the base, there are more or fewer branches than
                branching transforms, or a transform has no such branches.
        """
        self._check_ready()
        check_value(self.base_dist, z)
        count = sum(isinstance(t, BranchingTransform) for t in self.transforms)
        if not isinstance(branches, tuple | list) or len(branches) != count:
            is_sequence = isinstance(branches, tuple | list)
            got = len(branches) if is_sequence else f"a {type(branches).__name__}"
            raise ValueError(
                f"Expected a sequence of {count} tensors of branches, one for each branching "
                f"transform, got {got}. Pass what encode returned."
            )
        left = iter(branches)
        for transform in self.transforms:
            if isinstance(transform, BranchingTransform):
                z = transform.decode(z, next(left))
            else:
                z = transform(z)
        self.clear_cache()
        return z

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of values, by the inverse of every transform.

        Raises:
            NotImplementedError: If a transform has no inverse in closed form, such as Pyro's
                planar transform: invert it, or use `rsample_and_log_prob`.
        """
        self._check_ready()
        if self._validate_args and not is_traced():
            self._validate_sample(value)
        self.clear_cache()
        log_prob = self._score(value)
        self.clear_cache()
        return log_prob

    def rsample_and_log_prob(self, sample_shape: _size = Size()) -> tuple[Tensor, Tensor]:
        """Draws and scores in one forward pass; no transform is inverted.

        Both results have pathwise gradients if ``has_rsample``, else no graph.

        Returns:
            Samples of shape ``sample_shape + batch_shape + event_shape`` and their log-densities
            of shape ``sample_shape + batch_shape``.
        """
        if not self.has_rsample and torch.is_grad_enabled():
            with torch.no_grad():
                return self.rsample_and_log_prob(sample_shape)
        self._check_ready()
        self.clear_cache()
        draw = _draw_and_score(self.base_dist, Size(sample_shape), self.has_rsample)
        result = self._push_and_score(*draw)
        self.clear_cache()
        return result

    def rsample_weighted_and_log_prob(
        self, num_samples: int, num_sets: int = 1
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Weighted draws of a flow on a mixture, and their log-densities, in one forward pass.

        Expectations are sums over the draws, weighted by the exponentials of the log-weights;
        gradients are exact however far the mixture's components lie apart. See
        `MixtureOfNormals.rsample_weighted`.

        Args:
            num_samples: Number of draws n.
            num_sets: Number of independent sets of so many draws.

        Returns:
            Samples of shape ``(n,) + batch_shape + event_shape``, log-weights and log-densities,
            both of shape ``(n,) + batch_shape``. With s sets, the first dimension is s n, one set
            after the other, each with weights of its own.

        Raises:
            NotImplementedError: If the base is not a mixture with weighted draws, or a transform
                draws branches.
        """
        self._check_ready()
        self._check_pathwise()
        base: Any = self.base_dist
        if isinstance(base, PlainDistribution):
            base = base.build()
        if not hasattr(base, "rsample_weighted"):
            raise NotImplementedError(
                f"Expected a mixture such as pyromix.GaussianMixture as base, got "
                f"{type(base).__name__}. Other laws have no weighted draws."
            )
        self.clear_cache()
        sets = [base.rsample_weighted(num_samples) for _ in range(num_sets)]
        z, log_weight = (torch.cat(part) for part in zip(*sets, strict=True))
        x, log_prob = self._push_and_score(z, base.log_prob(z))
        self.clear_cache()
        return x, log_weight, log_prob

    def score_parts(self, x: Tensor) -> ScoreParts:
        """The parts of an ELBO's gradient; a fresh draw is scored without the inverse pass.

        With branching transforms, a call of the law returns draws with a gradient, and the score
        function that makes up for what it lacks; see ``pyromix.branch_gradients``.

        Raises:
            NotImplementedError: If x has a gradient, but is no draw of a law that branches.
        """
        # TraceGraph_ELBO wraps what it is given.
        branch_score = getattr(extract_provenance(x)[0], BRANCH_SCORE, None)
        if self.branching and x.requires_grad and branch_score is None:
            raise NotImplementedError(
                "A value with a gradient that is no draw of this law has no score parts: detach "
                "it, or score what a call of the law returned."
            )
        if not x.requires_grad:  # the cached Jacobian, if any, has no graph either
            self.clear_cache()
        log_prob = self._score(x)
        self.clear_cache()
        zero = torch.zeros((), dtype=log_prob.dtype, device=log_prob.device)
        if branch_score is not None:
            score = branch_score()
            self.clear_cache()
            return ScoreParts(log_prob, score, log_prob)
        if self.has_rsample:
            return ScoreParts(log_prob, zero, log_prob)
        return ScoreParts(log_prob, log_prob, zero)

    def clear_cache(self) -> None:
        """Empties the caches of all transforms, and frees the graphs they hold."""
        for transform in self.transforms:
            _clear(transform)

    def _check_ready(self) -> None:
        """Raises an error if there is no law to draw from or to score with."""

    def _check_pathwise(self) -> None:
        if self.branching:
            raise NotImplementedError(
                "A flow with branching transforms has no pathwise gradients: draw with sample(), "
                "or use the flow as a guide, whose gradients account for branches."
            )

    @property
    def _partly_pathwise(self) -> bool:
        """Whether draws get a pathwise gradient given the branches."""
        return self.branching and self.base_dist.has_rsample and torch.is_grad_enabled()

    def _draw(self, sample_shape: Size) -> Tensor:
        """Draws for Pyro: with a graph, as far as there is a pathwise gradient."""
        if self.has_rsample:
            return self.rsample(sample_shape)
        if not self._partly_pathwise:
            return self.sample(sample_shape)
        self._check_ready()
        self.clear_cache()

        def log_density(i: int, value: Tensor) -> Tensor:
            return self._score(value, i)

        x, score = draw_with_score(
            self.base_dist.rsample(sample_shape),
            list(self.transforms),
            self._surplus[1:],
            len(self.event_shape),
            log_density,
        )
        self.clear_cache()
        # With the draw itself, as a guide may draw several times before it is scored; and not yet
        # computed, as a model's draws are not scored.
        setattr(x, BRANCH_SCORE, score)
        return x

    def _push(self, x: Tensor) -> Tensor:
        self._check_ready()
        self.clear_cache()
        for transform in self.transforms:
            x = transform(x)
        return x

    def _push_and_score(self, x: Tensor, log_prob: Tensor) -> tuple[Tensor, Tensor]:
        """Takes draws of the base and their log-densities through the transforms."""
        log_prob = _sum_rightmost(log_prob, self._surplus[0])
        for transform, surplus in zip(self.transforms, self._surplus[1:], strict=True):
            y = transform(x)
            jacobian = transform.log_abs_det_jacobian(x, y)
            log_prob = log_prob - _sum_rightmost(jacobian, surplus)
            x = y
        return x, log_prob

    def _score(self, y: Tensor, depth: int | None = None) -> Tensor:
        """The log-density after all transforms, or before that of an index."""
        log_prob: Tensor | float = 0.0
        transforms, surplus = list(self.transforms)[:depth], self._surplus
        steps = zip(transforms, surplus[1:][:depth], strict=True)
        for transform, extra in reversed(list(steps)):
            x = _invert(transform, y)
            jacobian = transform.log_abs_det_jacobian(x, y)
            log_prob = log_prob - _sum_rightmost(jacobian, extra)
            y = x
        return log_prob + _sum_rightmost(self.base_dist.log_prob(y), surplus[0])

    @property
    def _surplus(self) -> list[int]:
        """Dimensions by which the event exceeds that of the base and of every transform."""
        surplus, event_dim = [], len(self.event_shape)
        for transform in reversed(self.transforms):
            event_dim += transform.domain.event_dim - transform.codomain.event_dim
            surplus.append(event_dim - transform.domain.event_dim)
        surplus.append(event_dim - len(self.base_dist.event_shape))
        return surplus[::-1]


def _plain(transform: Any) -> Any:
    """A transform that is wrapped as a module, as it is without."""
    return transform.build() if isinstance(transform, PlainTransform) else transform


def _invert(transform: Any, y: Tensor) -> Tensor:
    try:
        if y.dtype == torch.get_default_dtype():
            return transform.inv(y)
        with _ZerosLike(y.dtype):
            return transform.inv(y)
    except (KeyError, NotImplementedError) as error:  # as Pyro's transforms raise
        raise NotImplementedError(
            f"The transform {type(transform).__name__} has no inverse in closed form, so that "
            f"only the flow's own draws can be scored, with rsample_and_log_prob. To score data, "
            f"put the transform's .inv into the flow."
        ) from error


def _draw_and_score(base: Any, shape: Size, pathwise: bool) -> tuple[Tensor, Tensor]:
    if hasattr(base, "rsample_and_log_prob"):
        return base.rsample_and_log_prob(shape)
    x = base.rsample(shape) if pathwise else base.sample(shape)
    return x, base.log_prob(x)


def _clear(part: Any) -> None:
    """Empties the caches of a transform and of the transforms within it."""
    if isinstance(part, Transform):
        if part._cache_size:
            part._cached_x_y = None, None
        for name, value in vars(part).items():
            if name.startswith("_cache") and isinstance(value, Tensor):
                setattr(part, name, None)
    if isinstance(part, nn.Module):
        for child in part._modules.values():  # modules() would hash, which Dynamo cannot trace
            _clear(child)


class _ZerosLike(TorchFunctionMode):
    """Gives new tensors a dtype: Pyro's autoregressive inverse starts from the default one's."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.zeros:
            kwargs.setdefault("dtype", self.dtype)
        return func(*args, **kwargs)
