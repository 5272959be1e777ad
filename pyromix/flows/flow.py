"""A transformed distribution that owns its base and its transforms."""

__all__ = ["Flow"]

from collections.abc import Mapping, Sequence
from typing import Any, overload

import torch
from pyro.distributions.conditional import ConditionalTransform
from torch import Generator, Size, Tensor, nn
from torch.distributions import Distribution, Independent, Transform, constraints
from torch.types import _size

from ..conditioning.law import Statement
from ..core.batch import Batch, split_batch
from ..core.checks import check_value
from ..core.conversions import TensorLike, as_context
from ..core.expanded import expand_kept
from ..core.law_module import LawModule
from ..core.module import DistributionModule
from ..core.random import takes_generator
from ..evidence.pieces import Evidence
from .chain import given_context, needs_context, pull_back
from .conditioned import ConditionedFlow, FlowPrior, TakesEvidence
from .coordinatewise import CoordinateChain
from .law import FlowLaw
from .wrapping import as_distribution_module, as_transform_modules, unwrap


class Flow(LawModule[FlowLaw], FlowLaw):
    r"""A base distribution pushed through transforms, as a module.

    .. math:: x = f_L \circ \dots \circ f_1(z), \qquad
              \log p(x) = \log p_0(z) - \sum_l \log \left| \det J_{f_l} \right|

    Every distribution may be a base and every transform of PyTorch and Pyro a part: modules,
    plain objects (their tensors become buffers, or parameters if they are `nn.Parameter`),
    inverses ``t.inv``, compositions, and conditional transforms. Those, or a base that is a
    conditional model, make the flow conditional: `condition` then returns the law, a `FlowLaw`.
    `expand` returns a `FlowLaw`, too, that shares the parameters.

    Onto bounded sets, PyTorch's transforms are evaluated in forms that are precise up to the
    border, and draws stay inside: `log_prob` is that of the value as it is given, and outside of
    the support minus infinity, or an error if arguments are validated. But close to an
    end other than zero many latents round to one value: a hyperbolic tangent in float32 holds
    latents up to 7 to a tenth of a nat, and none beyond 9. Where draws crowd such an end, use
    float64, or `rsample_and_log_prob`, which scores them before they are rounded.

    Args:
        base: The law of z, of any batch shape; dimensions that the transforms treat as event
            dimensions become part of the event. Elementwise transforms treat none so: over
            ``Normal(zeros(3), ones(3))`` they make a batch of three scalar laws, over
            ``Normal(zeros(3), ones(3)).to_event(1)`` one law of vectors.
        transforms: From the base to the sample.
        validate_args: Whether to check the values that are scored.

    Raises:
        TypeError: If the base is not a distribution, or a part not a transform.
        ValueError: If the base's shape does not fit the transforms, as far as they declare it.

    Example:
        >>> import pyro.distributions as dist
        >>> from pyro.distributions.transforms import affine_coupling
        >>> base = dist.Normal(torch.zeros(3), torch.ones(3))
        >>> flow = Flow(base, [affine_coupling(3), affine_coupling(3).inv])
        >>> x, log_prob = flow.rsample_and_log_prob((5,))
        >>> x.shape, torch.allclose(log_prob, flow.log_prob(x), atol=1e-4)
        (torch.Size([5, 3]), True)
    """

    # A flow is a FlowLaw itself, and without a context its own law.
    sample, rsample, expand = FlowLaw.sample, FlowLaw.rsample, FlowLaw.expand
    log_prob, __getstate__ = FlowLaw.log_prob, FlowLaw.__getstate__
    mean, variance = FlowLaw.mean, FlowLaw.variance

    def __init__(
        self,
        base: Distribution,
        transforms: Transform | ConditionalTransform | Sequence[Any],
        validate_args: bool | None = None,
    ) -> None:
        modules = as_transform_modules(transforms)
        law = as_distribution_module(base)
        base_dist, batch_shape, event_shape = _fit_together(law, modules)
        super().__init__(batch_shape, event_shape, validate_args)
        self.base = law
        self.transforms = nn.ModuleList(modules)
        self.has_rsample = base.has_rsample and not self.branching
        # Under this name only if it is another object: a module that is an attribute twice is
        # also twice in the state dict.
        self._base_view = None if base_dist is law else base_dist

    def forward(self, sample_shape: _size = Size()) -> Tensor:
        """Draws for Pyro: with the gradients that `score_parts` accounts for, as in a guide."""
        return self._draw(Size(sample_shape))

    @property
    def conditional(self) -> bool:
        """Whether the flow needs a context."""
        return self._has_conditional_base or needs_context(self.transforms)

    @property
    def _has_conditional_base(self) -> bool:
        return getattr(self.base, "conditional", False)  # a module of a user's own may not say

    @property
    def base_dist(self) -> Distribution:
        """The base, its batch dimensions made event dimensions where the transforms ask for it."""
        return self.base if self._base_view is None else self._base_view

    @overload
    def condition(self, *evidence: Statement, **options: Any) -> ConditionedFlow: ...
    @overload
    def condition(self, context: TensorLike, /) -> FlowLaw: ...
    @takes_generator
    def condition(self, *given: Any, generator: Generator | None = None, **options: Any) -> Any:
        """The law given a context, or given evidence about columns.

        Args:
            given: A context of shape ``(*batch, context_dim)``, for all conditional transforms;
                and for the base, if that is a conditional model. For one that takes more than one
                vector, such as a sequence of them, it has the base's shape. Or, if nothing is
                conditional, pieces of evidence about the flow's columns, such as `Observed` and
                `Box`: where the base takes evidence and the transforms act on every coordinate
                alone. `GaussianPrior`, and what is about several columns, goes through affine
                transforms only.
            generator: Where random numbers come from; by default PyTorch's global generator.
            options: Of the base's own ``condition``, such as ``num_particles``, with evidence.

        Returns:
            Given a context, a distribution over values that shares the parameters. Its batch
            shape is that of the context, expanded by that of the flow. Given evidence, a
            `ConditionedFlow`.

        Raises:
            NotImplementedError: If neither the base nor a transform is conditional, or if evidence
                cannot go through.
            ValueError: If the context or the evidence does not fit.

        Example:
            >>> from torch.distributions import ExpTransform
            >>> from pyromix import Box, GaussianMixture, Observed
            >>> flow = Flow(GaussianMixture(3, 2), [ExpTransform()])
            >>> law = flow.condition(Observed({0: 2.0}), Box(high=3.0))
            >>> x = law.sample((100,))
            >>> bool((x[:, 0] == 2.0).all()), bool((x[:, 1] <= 3.0).all())
            (True, True)
        """
        about_columns = all(isinstance(piece, Evidence | Mapping) for piece in given)
        if self.conditional:
            if len(given) != 1 or about_columns:
                raise ValueError(
                    "This flow needs a context: condition(context). Evidence about columns goes "
                    "to flows that are not conditional."
                )
            return self._given_context(given[0])
        if not about_columns:
            return super().condition(*given)
        base = unwrap(self.base_dist)
        if not isinstance(base, TakesEvidence) or len(self.event_shape) != 1:
            raise NotImplementedError(
                f"Not available: a flow takes evidence about columns where its base does, such as "
                f"a GaussianMixture or a DRMM, got {type(base).__name__}."
            )
        prior = base.evidence_prior(**options)
        chain = CoordinateChain.of(self.transforms, self.event_shape[0], prior.device)
        return FlowPrior(prior, chain, self).condition_on(given)

    def _given_context(self, context: TensorLike) -> FlowLaw:
        """The law given a context."""
        like = self._like()
        context = as_context("context", context, like=torch.empty(0) if like is None else like)
        base = self.base.condition(context) if self._has_conditional_base else self.base_dist
        batch_shape = base.batch_shape
        if not self._has_conditional_base:
            batch_shape = torch.broadcast_shapes(context.shape[:-1], batch_shape)
        vectors = context
        if context.dim() - 1 == len(batch_shape):  # not one for every vector of an event
            extra = self.event_shape[:-1]
            vectors = context.reshape(*context.shape[:-1], *[1] * len(extra), context.shape[-1])
            vectors = vectors.expand(*context.shape[:-1], *extra, -1)
        if base.batch_shape != batch_shape:
            base = expand_kept(base, batch_shape)
        return self._with(base, given_context(self.transforms, vectors))

    def _law_given(self, context: Any = None) -> FlowLaw:
        return self if context is None else self._given_context(context)

    @property
    def scheduled(self) -> bool:
        """Whether the base follows a schedule."""
        return isinstance(self.base, DistributionModule) and self.base.scheduled

    def anneal(self, progress: float) -> None:
        """Sets what follows a schedule in the base, such as a temperature.

        Args:
            progress: How far training has come, from 0 to 1.
        """
        if isinstance(self.base, DistributionModule):
            self.base.anneal(progress)

    @torch.no_grad()
    def initialize(self, data: Batch) -> None:
        """Initialises the base from data pulled back to it, unless it was initialised before.

        Args:
            data: Training data, in the form of a batch.

        Raises:
            NotImplementedError: If a transform has no inverse in closed form.
        """
        super().initialize(data)
        if not isinstance(self.base, DistributionModule) or self.base.initialized:
            return
        x, context = split_batch(data, like=self._like())
        x = check_value(self, x, like=self._like())
        with torch.no_grad():
            law = self.law if context is None else self.condition(context)
            x = pull_back(law.transforms, x)
        self.clear_cache()
        self.base.initialize((x, context) if self._has_conditional_base else x)

    def _check_ready(self) -> None:
        _ = self.law  # raises an error if the flow needs a context


def _fit_together(base: Any, transforms: list[Any]) -> tuple[Distribution, Size, Size]:
    """The base as the transforms need it, and the batch and event shape of the flow.

    Raises:
        ValueError: If the base does not fit.
    """
    if needs_context(transforms):
        # Their domains are known only with a context; all of Pyro's keep the shape, and give the
        # last dimension parameters of its own.
        domains = [getattr(t, "domain", constraints.real_vector) for t in transforms]
        event_dim = max(1, len(base.event_shape), *(domain.event_dim for domain in domains))
        missing = event_dim - len(base.event_shape)
        _check_dims(base, event_dim)
        base = base.to_event(missing) if missing else base
        return base, base.batch_shape, base.event_shape
    try:
        law = torch.distributions.TransformedDistribution(base, transforms, validate_args=False)
    except ValueError as error:
        raise ValueError(
            f"Expected a base whose shape fits the transforms, got batch shape "
            f"{tuple(base.batch_shape)} and event shape {tuple(base.event_shape)}: {error}"
        ) from error
    inner, missing = law.base_dist, 0
    if isinstance(inner, Independent):
        inner, missing = inner.base_dist, inner.reinterpreted_batch_ndims
    if inner is not base:
        base = base.expand(inner.batch_shape)
    if missing and getattr(base, "conditional", False):
        raise ValueError(
            f"Expected a conditional base whose events are those of the transforms, got event "
            f"shape {tuple(base.event_shape)} and transforms of events of shape "
            f"{tuple(law.event_shape)}."
        )
    base = base.to_event(missing) if missing else base
    return base, law.batch_shape, law.event_shape


def _check_dims(base: Distribution, event_dim: int) -> None:
    """Raises an error if a base has fewer dimensions than the transforms need."""
    shape = base.batch_shape + base.event_shape
    if len(shape) < event_dim:
        raise ValueError(
            f"Expected a base of at least {event_dim} dimension(s) to fit the transforms, got "
            f"shape {tuple(shape)}."
        )
