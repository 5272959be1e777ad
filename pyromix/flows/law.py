"""The law of a flow: density, draws, latents and score parts of a base and transforms."""

__all__ = ["FlowLaw"]

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.score_parts import ScoreParts
from pyro.ops.provenance import extract_provenance
from torch import Generator, Size, Tensor, nn
from torch.distributions import Distribution, constraints
from torch.distributions.transforms import AffineTransform
from torch.distributions.utils import _sum_rightmost
from torch.types import _size

from ..core.checks import (
    check_expandable,
    check_tensor,
    check_value,
    is_traced,
)
from ..core.constraints import move_support
from ..core.conversions import TensorLike, as_tensor
from ..core.draws import without_graph
from ..core.expanded import expand_kept, no_closed_form
from ..core.random import takes_generator
from .borders import inner_point, strictly_inside
from .branch_gradients import draw_with_scores
from .branching import BranchingTransform
from .chain import clear_caches, draws_branches, invert
from .wrapping import unwrap

BRANCH_SCORE = "_pyromix_branch_score"  # attribute of draws


class FlowLaw(dist.TransformedDistribution):
    r"""The law of a `Flow`: a base distribution pushed through transforms.

    .. math:: x = f_L \circ \dots \circ f_1(z), \qquad
              \log p(x) = \log p_0(z) - \sum_l \log \left| \det J_{f_l} \right|

    `Flow.condition` and `Flow.expand` return one. It owns no parameters: gradients reach those of
    the flow.

    Pyro's transforms remember the last pair (x, y) and its Jacobian, with their graphs. That
    saves the inverse pass when a new draw is scored, but a value scored again after an update of
    the parameters would find the old pair, and a deep copy would fail. So these caches are used
    by `rsample_and_log_prob`, and by `score_parts` on the last draw, which Pyro calls before it
    updates parameters. `log_prob` empties them first, and `score_parts` leaves them empty.

    Args:
        base_distribution: The law of z.
        transforms: From the base to the sample.
        validate_args: Whether to check the values that are scored.
    """

    # A plain attribute in place of PyTorch's property, so that Pyro's has_rsample_ can set it.
    has_rsample: bool = False

    def __call__(self, sample_shape: _size = Size()) -> Tensor:
        """Draws for Pyro: with the gradients that `score_parts` accounts for."""
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
        """Whether a transform draws branches: then draws have no pathwise gradient."""
        return draws_branches(self.transforms)

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> constraints.Constraint:
        """Where draws lie.

        PyTorch takes the codomain of the last transform, which is all of space for an affine one,
        also after a sigmoid. Here intervals and half-lines move with it.
        """
        transforms: list[Any] = list(self.transforms)
        last: list[AffineTransform] = []
        while transforms and isinstance(affine := unwrap(transforms[-1]), AffineTransform):
            last.insert(0, affine)
            transforms.pop()
        support = transforms[-1].codomain if transforms else self.base_dist.support
        for affine in last:
            support = move_support(support, affine)
        missing = len(self.event_shape) - support.event_dim
        return constraints.independent(support, missing) if missing > 0 else support

    @property
    def mean(self) -> Tensor:
        """Mean, if all transforms are affine and the base has one.

        Raises:
            NotImplementedError: If not: then it has no closed form.
        """
        affine = self._affine_parts("mean")
        mean = self.base_dist.mean
        for part in affine:
            mean = part.loc + part.scale * mean
        return mean

    @property
    def variance(self) -> Tensor:
        """Variance of every entry, if all transforms are affine and the base has one.

        Raises:
            NotImplementedError: If not: then it has no closed form.
        """
        affine = self._affine_parts("variance")
        variance = self.base_dist.variance
        for part in affine:
            variance = torch.as_tensor(part.scale).square() * variance
        return variance

    def _affine_parts(self, moment: str) -> list[AffineTransform]:
        """The transforms, if all are affine, entry by entry.

        Raises:
            NotImplementedError: If one is not.
            ValueError: If the law needs a context.
        """
        self._check_ready()
        parts = [unwrap(transform) for transform in self.transforms]
        if not all(isinstance(part, AffineTransform) for part in parts):
            raise NotImplementedError(no_closed_form(self, moment))
        return parts

    def expand(
        self, batch_shape: Sequence[int], _instance: Distribution | None = None
    ) -> "FlowLaw":
        """Returns the law with a larger batch shape; the parameters are shared.

        Raises:
            ValueError: If its own batch shape cannot be expanded to that.
        """
        # Pyro's generic `expand` would return copies of the draws, for which the transforms'
        # caches do not hold, and every draw in a plate would be scored by the inverse pass.
        self._check_ready()
        batch_shape = check_expandable(self, batch_shape)
        return self._with(expand_kept(self.base_dist, batch_shape), list(self.transforms))

    def _with(self, base: Distribution, transforms: list[Any]) -> "FlowLaw":
        law = FlowLaw(base, transforms, validate_args=False)
        law._validate_args = self._validate_args
        law.has_rsample = self.has_rsample
        return law

    @without_graph
    @takes_generator
    def sample(
        self, sample_shape: _size = Size(), *, generator: Generator | None = None
    ) -> Tensor:
        """Draws without a graph, of shape ``sample_shape + batch_shape + event_shape``.

        Args:
            sample_shape: Shape S of the draws.
            generator: Where random numbers come from; by default PyTorch's global generator.
        """
        x = self._push(self.base_dist.sample(Size(sample_shape)))
        self.clear_cache()
        return x

    @takes_generator
    def rsample(
        self, sample_shape: _size = Size(), *, generator: Generator | None = None
    ) -> Tensor:
        """Draws with pathwise gradients, of shape ``sample_shape + batch_shape + event_shape``.

        Args:
            sample_shape: Shape S of the draws.
            generator: Where random numbers come from; by default PyTorch's global generator.

        Raises:
            NotImplementedError: If a transform draws branches: they are discrete, so draws have
                no pathwise gradient. Or if the base has no such draws.
        """
        self._check_pathwise()
        return self._push(self.base_dist.rsample(Size(sample_shape)))

    def encode(self, value: TensorLike) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The latents of values: real ones, and branches of the transforms that draw some.

        Args:
            value: Shape ``sample_shape + batch_shape + event_shape``.

        Returns:
            z of the base, and for every branching transform, in the order of the transforms, a
            tensor of integers (see its own `encode`).

        Raises:
            ValueError: If the values do not fit this law.
        """
        self._check_ready()
        value = check_value(self, self._as_tensor("value", value))
        if value.numel() == 0:
            return self._encode_none(value)
        value = self._over_batch(value)
        self.clear_cache()
        branches: list[Tensor] = []
        after = None
        for transform in reversed(self.transforms):
            y = value
            if isinstance(transform, BranchingTransform):
                value, branch = transform.encode(y)
                branches.append(branch)
            else:
                value = invert(transform, y, after)
            after = transform, y
        self.clear_cache()
        return value, tuple(reversed(branches))

    def decode(self, z: TensorLike, branches: Sequence[TensorLike] = ()) -> Tensor:
        """The values that have given latents: the inverse of `encode`.

        Args:
            z: Values of the base.
            branches: As returned by `encode`.

        Returns:
            Values of shape ``sample_shape + batch_shape + event_shape``.

        Raises:
            ValueError: If z does not fit the base, there are more or fewer branches than
                branching transforms, or a transform has no such branches.
        """
        self._check_ready()
        x = check_value(self.base_dist, self._as_tensor("z", z))
        count = sum(isinstance(t, BranchingTransform) for t in self.transforms)
        if not isinstance(branches, tuple | list) or len(branches) != count:
            is_sequence = isinstance(branches, tuple | list)
            got = len(branches) if is_sequence else f"a {type(branches).__name__}"
            raise ValueError(
                f"Expected a sequence of {count} tensors of branches, one for each branching "
                f"transform, got {got}. Pass what encode returned."
            )
        if x.numel() == 0:
            return self._push(x)
        left = iter(branches)
        for transform in self.transforms:
            if isinstance(transform, BranchingTransform):
                x = transform.decode(x, next(left))
            else:
                x = transform(x)
        self.clear_cache()
        return x

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of values, by the inverse of every transform; minus infinity outside.

        It is that of the value as it is given. Near the border of a bounded support a draw has
        been rounded to that value, and may have come from latents of another density: see
        `rsample_and_log_prob`, which scores draws before they are rounded.

        Args:
            value: Shape ``sample_shape + batch_shape + event_shape``.

        Returns:
            Tensor of shape ``sample_shape + batch_shape``.

        Raises:
            NotImplementedError: If a transform has no inverse in closed form, such as Pyro's
                planar transform: invert it, or use `rsample_and_log_prob`.
            ValueError: If the values do not fit this law, or it needs a context.
        """
        self._check_ready()
        if not is_traced():
            check_value(self, value, like=self._like())
            if self._validate_args and value.numel():  # PyTorch's check refuses none
                self._validate_sample(value)
        self.clear_cache()
        value = self._over_batch(value)
        checked = self._validate_args and not is_traced()
        log_prob = self._pull_and_score(value) if checked else self._score_within(value)
        self.clear_cache()
        return log_prob

    @takes_generator
    def rsample_and_log_prob(
        self, sample_shape: _size = Size(), *, generator: Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Draws and scores in one forward pass; no transform is inverted.

        Both results have pathwise gradients if ``has_rsample``, else no graph.

        Args:
            sample_shape: Shape S of the draws.
            generator: Where random numbers come from; by default PyTorch's global generator.

        Returns:
            Samples of shape ``sample_shape + batch_shape + event_shape`` and their log-densities
            of shape ``sample_shape + batch_shape``.
        """
        if not self.has_rsample and torch.is_grad_enabled():
            return without_graph(self.rsample_and_log_prob)(sample_shape)
        if Size((*sample_shape, *self.batch_shape)).numel() == 0:
            x = self.rsample(sample_shape) if self.has_rsample else self.sample(sample_shape)
            return x, self._scores_of_none(x)
        self._check_ready()
        self.clear_cache()
        draw = _draw_and_score(self.base_dist, Size(sample_shape), self.has_rsample)
        result = self._push_and_score(*draw)
        self.clear_cache()
        return result

    @takes_generator
    def rsample_weighted_and_log_prob(
        self, num_samples: int, num_sets: int = 1, *, generator: Generator | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Weighted draws of a flow on a mixture, and their log-densities, in one forward pass.

        Expectations are sums over the draws, weighted by the exponentials of the log-weights;
        gradients are exact however far the mixture's components lie apart. See
        `MixtureOfNormals.rsample_weighted`.

        Args:
            num_samples: Number of draws n.
            num_sets: Number of independent sets of so many draws.
            generator: Where random numbers come from; by default PyTorch's global generator.

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
        base: Any = unwrap(self.base_dist)
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

    @takes_generator
    def rsample_with_score(
        self, sample_shape: _size = Size(), *, generator: Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        r"""Draws whose gradient, together with a score, is unbiased where branches are drawn.

        .. math:: \nabla E[f(x)] = E\big[\nabla f(x) + f(x) \nabla s\big]

        The first term is the gradient that draws have given their branches, the second accounts
        for the choice of these: see the module ``pyromix.flows.branch_gradients``. f must be
        continuous. Its mean over other draws may be taken off f(x) in the second term, which
        lowers the variance.

        Args:
            sample_shape: Shape S of the draws.
            generator: Where random numbers come from; by default PyTorch's global generator.

        Returns:
            Draws x of shape ``sample_shape + batch_shape + event_shape``, and scores s of shape
            ``sample_shape + batch_shape``, whose values mean nothing.

        Raises:
            NotImplementedError: If the base has no draws of this kind, and no pathwise ones.

        Example:
            >>> from pyromix import RAD
            >>> x, score = RAD(2).rsample_with_score((100,))
            >>> values = x.square().sum(-1)
            >>> change = score - score.detach()  # zero, with a gradient
            >>> (values + (values - values.mean()).detach() * change).mean().backward()
        """
        x, compute = self._draw_scored(Size(sample_shape))
        return x, compute()[0]

    @takes_generator
    def rsample_with_score_and_log_prob(
        self, sample_shape: _size = Size(), *, generator: Generator | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Draws, scores and log-densities, in less time than one after the other.

        Args:
            sample_shape: Shape S of the draws.
            generator: Where random numbers come from; by default PyTorch's global generator.

        Returns:
            What `rsample_with_score` does, and log-densities of the shape of the scores.

        Raises:
            NotImplementedError: As there.
        """
        x, compute = self._draw_scored(Size(sample_shape))
        return x, *compute()

    def _draw_scored(
        self, sample_shape: Size
    ) -> tuple[Tensor, Callable[[], tuple[Tensor, Tensor]]]:
        """Draws, and a function that computes their scores and log-densities."""
        self._check_ready()
        base: Any = unwrap(self.base_dist)
        if not self.branching and hasattr(base, "rsample_with_score_and_log_prob"):
            # What is discrete is all in the base: nothing has to be inverted here.
            z, score, log_prob = base.rsample_with_score_and_log_prob(sample_shape)
            self.clear_cache()
            x, log_prob = self._push_and_score(z, log_prob)
            self.clear_cache()
            score = _sum_rightmost(score, self._surplus[0])
            return x, lambda: (score, log_prob)
        if hasattr(base, "rsample_with_score"):
            z, score = base.rsample_with_score(sample_shape)
            return self._draw_with_scores(z, _sum_rightmost(score, self._surplus[0]))
        if self.base_dist.has_rsample:
            return self._draw_with_scores(self.base_dist.rsample(sample_shape))
        raise NotImplementedError(
            f"Expected a base with pathwise gradients, or with rsample_with_score, got "
            f"{type(base).__name__}. Take the score function of all of the law: log_prob."
        )

    def score_parts(self, x: Tensor) -> ScoreParts:
        """The parts of an ELBO's gradient; the last draw is scored without the inverse pass.

        With branching transforms, a call of the law returns draws with a part of the gradient,
        and the score function has the rest: see the module ``pyromix.flows.branch_gradients``.
        Pyro's `RenyiELBO` takes no such mixture, and raises a `NotImplementedError` without words:
        use `Trace_ELBO` or `TraceGraph_ELBO`.

        Raises:
            NotImplementedError: If there are branching transforms, and x has a gradient without
                being a draw that a call of the law returned.
        """
        # TraceGraph_ELBO wraps what it is given.
        branch_score = getattr(extract_provenance(x)[0], BRANCH_SCORE, None)
        if self.branching and x.requires_grad and branch_score is None:
            raise NotImplementedError(
                "A value that has a gradient, but was not drawn from this law, has no score "
                "parts: detach it, or score what a call of the law returned."
            )
        if not x.requires_grad:  # the cached Jacobian, if any, has no graph either
            self.clear_cache()
        log_prob = self._pull_and_score(self._over_batch(x))
        self.clear_cache()
        zero: Any = 0  # the number: Pyro takes a tensor for a part that there is
        if branch_score is not None:
            return ScoreParts(log_prob, branch_score()[0], log_prob)
        if self.has_rsample:
            return ScoreParts(log_prob, zero, log_prob)
        return ScoreParts(log_prob, log_prob, zero)

    def clear_cache(self) -> None:
        """Empties the caches of all transforms, and frees the graphs they hold."""
        clear_caches(self.transforms)

    def __getstate__(self) -> dict[str, Any]:
        self.clear_cache()  # cached graphs can be neither copied nor pickled
        return self.__dict__.copy()

    def _check_ready(self) -> None:
        """Raises an error if there is no law to draw from or to score with."""

    def _as_tensor(self, name: str, value: Any) -> Tensor:
        """An argument as a tensor of the law's dtype and device, as far as those are known."""
        like = self._like()
        return check_tensor(name, value) if like is None else as_tensor(name, value, like=like)

    def _like(self) -> Tensor | None:
        """A parameter or buffer of floats, whose dtype and device values must share.

        None where no part is a module, or where parameters cannot be listed: Pyro's transforms
        cannot be traced through that.
        """
        if is_traced():
            return None
        base: Any = self.base_dist
        while not isinstance(base, nn.Module) and hasattr(base, "base_dist"):
            base = base.base_dist
        parts = [p for p in (base, *self.transforms) if isinstance(p, nn.Module)]
        parameters = itertools.chain.from_iterable(part.parameters() for part in parts)
        buffers = itertools.chain.from_iterable(part.buffers() for part in parts)
        tensors = itertools.chain(parameters, buffers)
        return next((t for t in tensors if t.is_floating_point()), None)

    def _over_batch(self, value: Tensor) -> Tensor:
        """Values expanded to the batch: not every transform broadcasts them with a context.

        The same tensor where there is nothing to expand, as caches ask for it.
        """
        leading = value.shape[: value.dim() - len(self.event_shape)]
        shape = torch.broadcast_shapes(leading, self.batch_shape)
        return value if shape == leading else value.expand(*shape, *self.event_shape)

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
        """Draws with as much of a pathwise gradient as there is."""
        if self.has_rsample:
            return self.rsample(sample_shape)
        if not self._partly_pathwise:
            return self.sample(sample_shape)
        self._check_ready()
        x, score = self._draw_with_scores(self.base_dist.rsample(sample_shape))
        # With the draw itself, as a guide may draw several times before it is scored; and not yet
        # computed, as a model's draws are not scored.
        setattr(x, BRANCH_SCORE, score)
        return x

    def _draw_with_scores(
        self, z: Tensor, before: Tensor | float = 0.0
    ) -> tuple[Tensor, Callable[[], tuple[Tensor, Tensor]]]:
        """Takes draws of the base through the transforms, with the gradient given the branches.

        Args:
            z: Draws of the base, with gradients.
            before: Scores of what is discrete in them.

        Returns:
            Draws, and a function that computes their scores and log-densities.
        """
        self.clear_cache()
        transforms = list(self.transforms)
        drawn, scores = draw_with_scores(
            z, transforms, self._surplus[1:], len(self.event_shape), before
        )
        x = self._inside(drawn)
        self.clear_cache()

        def compute() -> tuple[Tensor, Tensor]:
            log_density = self._pull_together({**scores.moved, len(transforms): x})
            self.clear_cache()
            log_prob = log_density[len(transforms)]
            return scores.score(log_density) + torch.zeros_like(log_prob), log_prob

        return x, compute

    def _pull_together(self, values: Mapping[int, Tensor]) -> dict[int, Tensor]:
        """Log-densities of values at several depths, in one pass back.

        Args:
            values: By the number i of transforms that they have come through, values of the same
                sample and batch shape.

        Returns:
            Their log-densities under the law after i transforms, by i.
        """
        transforms, surplus = list(self.transforms), self._surplus
        depths = sorted(values, reverse=True)
        y = values[depths[0]].unsqueeze(0)
        total = self._scores_of_none(y)
        after = None
        for i in range(depths[0], -1, -1):
            if i in values and i != depths[0]:
                y = torch.cat([y, values[i].unsqueeze(0)])
                total = torch.cat([total, torch.zeros_like(total[:1])])
                after = None  # another tensor
            if i == 0:
                break
            x = invert(transforms[i - 1], y, after)
            after = transforms[i - 1], y
            total = total - _sum_rightmost(
                transforms[i - 1].log_abs_det_jacobian(x, y), surplus[i]
            )
            y = x
        total = total + _sum_rightmost(self.base_dist.log_prob(y), surplus[0])
        return dict(zip(depths, total, strict=True))

    def _push(self, x: Tensor) -> Tensor:
        """Takes draws of the base through the transforms."""
        self._check_ready()
        if not is_traced() and x.numel() == 0:
            return x.new_empty(self._leading_of_base(x) + self.event_shape)
        self.clear_cache()
        for transform in self.transforms:
            x = transform(x)
        return self._inside(x)

    def _score_within(self, value: Tensor) -> Tensor:
        """Log-densities of values that may lie outside of the support, minus infinity there.

        A support that is neither an interval nor a half-line is checked with a tolerance: values
        outside of that have minus infinity where the inverse gives no number.
        """
        support = self._known_support()
        if support is None or value.numel() == 0:
            return self._pull_and_score(value)
        holds = support.check(value)
        per_event = (*holds.shape, *[1] * (value.dim() - holds.dim()))
        holds = holds.reshape(per_event)
        inner = inner_point(support, value)
        if inner is not None:  # else gradients, and checks of the base, would meet NaN
            value = torch.where(holds | value.isnan(), value, inner)
        log_prob = self._pull_and_score(value)
        outside = ~holds.expand(value.shape).reshape((*log_prob.shape, -1)).all(-1)
        # NaN lies nowhere.
        outside = outside & ~value.isnan().reshape((*log_prob.shape, -1)).any(-1)
        if inner is None:
            outside = outside & log_prob.isnan()
        return torch.where(outside, -torch.inf, log_prob)

    def _known_support(self) -> constraints.Constraint | None:
        """The support; None where a transform does not say."""
        try:
            return self.support
        except (AttributeError, NotImplementedError):
            return None

    def _inside(self, x: Tensor) -> Tensor:
        """Draws, those that were rounded to the border of the support moved inside."""
        if is_traced() or not len(self.transforms):
            return x
        return strictly_inside(x, self._known_support())

    def _push_and_score(self, x: Tensor, log_prob: Tensor) -> tuple[Tensor, Tensor]:
        """Takes draws of the base and their log-densities through the transforms."""
        log_prob = _sum_rightmost(log_prob, self._surplus[0])
        for transform, surplus in zip(self.transforms, self._surplus[1:], strict=True):
            y = transform(x)
            jacobian = transform.log_abs_det_jacobian(x, y)
            log_prob = log_prob - _sum_rightmost(jacobian, surplus)
            x = y
        return self._inside(x), log_prob

    def _pull_and_score(self, y: Tensor) -> Tensor:
        """The log-density of values, each transform inverted, or its last draw remembered."""
        if not is_traced() and y.numel() == 0:
            return self._scores_of_none(y)
        log_prob: Tensor | float = 0.0
        transforms, surplus = list(self.transforms), self._surplus
        steps = zip(transforms, surplus[1:], strict=True)
        after = None
        for transform, extra in reversed(list(steps)):
            x = invert(transform, y, after)
            after = transform, y
            jacobian = transform.log_abs_det_jacobian(x, y)
            log_prob = log_prob - _sum_rightmost(jacobian, extra)
            y = x
        return log_prob + _sum_rightmost(self.base_dist.log_prob(y), surplus[0])

    def _scores_of_none(self, value: Tensor) -> Tensor:
        """Log-densities of a value without entries: PyTorch's own sums over events refuse it."""
        leading = value.shape[: value.dim() - len(self.event_shape)]
        return value.new_zeros(torch.broadcast_shapes(leading, self.batch_shape))

    def _encode_none(self, value: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Latents of a value without entries: those of a stand-in, of which none are kept."""
        if self.batch_shape.numel() == 0:
            raise ValueError(f"Expected at least one law, got batch shape {self.batch_shape}.")
        leading = value.shape[: value.dim() - len(self.event_shape)]
        kept = tuple(slice(0, size) for size in leading)
        sample_shape = leading[: len(leading) - len(self.batch_shape)]
        z, branches = self.encode(self.sample(Size(max(size, 1) for size in sample_shape)))
        return z[kept], tuple(branch[kept] for branch in branches)

    def _leading_of_base(self, x: Tensor) -> Size:
        """Sample and batch shape of a draw of the base."""
        base = self.base_dist
        own = len(base.batch_shape) + len(base.event_shape)
        return x.shape[: x.dim() - own] + self.batch_shape

    @property
    def _surplus(self) -> list[int]:
        """Dimensions that the event has beyond those of the base, and of each transform."""
        surplus, event_dim = [], len(self.event_shape)
        for transform in reversed(self.transforms):
            event_dim += transform.domain.event_dim - transform.codomain.event_dim
            surplus.append(event_dim - transform.domain.event_dim)
        surplus.append(event_dim - len(self.base_dist.event_shape))
        return surplus[::-1]


def _draw_and_score(base: Any, shape: Size, pathwise: bool) -> tuple[Tensor, Tensor]:
    """Draws of a base, and their log-densities."""
    if hasattr(base, "rsample_and_log_prob"):
        return base.rsample_and_log_prob(shape)
    x = base.rsample(shape) if pathwise else base.sample(shape)
    return x, base.log_prob(x)
