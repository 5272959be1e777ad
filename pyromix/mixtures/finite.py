"""What all finite mixtures have in common, whatever their components are."""

__all__ = ["FiniteMixture"]

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Self, overload

import torch
from torch import Generator, Size, Tensor
from torch.distributions import Categorical, Distribution
from torch.types import _size

from ..conditioning.components import Normals
from ..conditioning.law import ConditionedLaw, Statement
from ..conditioning.mixture import MixturePrior
from ..conditioning.parts import register_part
from ..conditioning.quantiles import check_probs, mixture_quantile
from ..core.advice import warn_user
from ..core.checks import (
    check_count,
    check_dims,
    check_positive_int,
    check_reachable,
    check_value,
    is_traced,
)
from ..core.conversions import TensorLike, as_mask, as_tensor, as_value
from ..core.draws import without_graph
from ..core.random import takes_generator
from ..evidence.pieces import Evidence
from ..numerics.batches import (
    by_pattern,
    common_batch_shape,
    draw_components,
    flat_index,
    stack_observed,
)
from ..numerics.diagonal_density import log_sum_exp
from ..numerics.full_precision import in_full_precision
from ..numerics.sobol import even_normals
from .divergence import divergence, divergence_bounds, reduced
from .ellipses import ellipses, plot_mixture
from .tensor_law import TensorLaw

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Rows with the same gaps are imputed together for this many means (128 MiB of float64).
IMPUTED_NUMBERS = 2**24


class FiniteMixture(TensorLaw):
    r"""A mixture :math:`p(x) = \sum_k w_k p_k(x)` of K laws over D real numbers.

    Subclasses say what a component is: its density, draws, moments, and its law when some
    coordinates are known or left out. Weights, and everything that follows from Bayes' rule, are
    here.
    """

    # The tensors of the components, with the number of dimensions that follow the batch. The
    # constructor takes the logits, and then these in this order.
    _tensors: ClassVar[dict[str, int]]
    _has_normals: ClassVar[bool] = True  # whether components are normals
    _logits: Tensor
    _loc: Tensor

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        register_part(cls, _tensors_of, partial(_made_of, cls))

    # ---- what a component is --------------------------------------------------------------

    @abstractmethod
    def _joint_log_prob(self, value: Tensor) -> Tensor:
        """Log w_k + log p_k(x) of checked values, shape (*S, *B, K)."""

    @abstractmethod
    def _joint_log_prob_observed(self, value: Tensor, observed: Tensor) -> Tensor:
        """Log w_k plus the log-density of the observed coordinates, shape (*S, *B, K).

        Args:
            value: Checked values, zero where they were not observed.
            observed: True for the observed entries, of the value's shape.
        """

    @abstractmethod
    def _draw(self, component: Tensor, noise: Tensor) -> Tensor:
        """Draws of the components (*S, *B), with a graph, from standard normal noise.

        Args:
            component: Indices, shape (*S, *B).
            noise: Shape (*S, *B, num_noise).

        Returns:
            Tensor of shape (*S, *B, D).
        """

    @abstractmethod
    def _reparameterize(self, x: Tensor) -> Tensor:
        """Draws (*S, *B, D) of the mixture with pathwise gradients, from draws without a graph."""

    @property
    def _num_noise(self) -> int:
        """Number of standard normal numbers that a draw takes."""
        return self.event_shape[0]

    @property
    @abstractmethod
    def component_variance(self) -> Tensor:
        r"""Variance of every coordinate in every component, shape (\*B, K, D)."""

    @property
    @abstractmethod
    def component_covariance(self) -> Tensor:
        r"""Covariances, with no more batch dimensions than their parameters: (\*, K, D, D)."""

    @abstractmethod
    def _marginal(self, kept: list[int]) -> "FiniteMixture":
        """The law of some coordinates, with the same weights."""

    @abstractmethod
    def _condition(self, given: list[int], free: list[int], value: Tensor) -> "FiniteMixture":
        """The law of the free coordinates, the given ones having the values (*N, D given)."""

    @abstractmethod
    def _in_units(self, loc: Tensor, scale: Tensor) -> "FiniteMixture":
        """The law of loc + scale * x, with loc and scale of shape (D,), scale positive."""

    @abstractmethod
    def with_covariances(self, logits: Tensor, loc: Tensor, scale_tril: Tensor) -> "FiniteMixture":
        """The mixture of other normals, correlated ones; see `MixtureOfMultivariateNormals`."""

    @property
    def _squared_scale(self) -> Tensor:
        """Squared scales of the coordinates, variances of normals, shape (*B, K, D)."""
        return self.component_variance

    @property
    def _independent_scale(self) -> Tensor | None:
        """Standard deviations (*, K, D), if coordinates are independent within components."""
        return None

    @property
    def _low_rank(self) -> tuple[Tensor, Tensor] | None:
        """Where covariances are diag(d) + W W^T, and kept as such: d (*, K, D), W (*, K, D, r)."""
        return None

    # ---- what follows ---------------------------------------------------------------------

    @property
    def num_components(self) -> int:
        """Number of components K."""
        return self._logits.shape[-1]

    @property
    def logits(self) -> Tensor:
        r"""Normalised log-weights, shape (\*B, K)."""
        return self._logits.log_softmax(-1).expand(*self.batch_shape, -1)

    @property
    def loc(self) -> Tensor:
        r"""Means, shape (\*B, K, D)."""
        return self._loc.expand(*self.batch_shape, -1, -1)

    @property
    def mean(self) -> Tensor:
        r"""Mean of the mixture, shape (\*B, D)."""
        return self._centre

    @property
    def _centre(self) -> Tensor:
        """Mean of the components' locations, shape (*B, D)."""
        # Not a matrix product, which autocasting would round.
        return (self.logits.exp().unsqueeze(-1) * self.loc).sum(-2)

    @property
    def variance(self) -> Tensor:
        r"""Variance of every coordinate, shape (\*B, D)."""
        deviation = self.loc - self.mean.unsqueeze(-2)
        spread = self.component_variance + deviation.square()
        return (self.logits.exp().unsqueeze(-1) * spread).sum(-2)

    @property
    def mode(self) -> Tensor:
        r"""The densest point that a search finds, shape (\*B, D); see `ConditionedLaw.mode`."""
        return self.evidence_prior().condition_on(()).mode

    def quantile(self, column: int, probs: float | Sequence[float] | Tensor) -> Tensor:
        r"""Quantiles of a coordinate, shape (\*P, \*B), without a graph.

        Args:
            column: The coordinate.
            probs: Probabilities from 0 to 1, of any shape P.

        Raises:
            ValueError: If there is no such coordinate, or for other probabilities.
        """
        return self.evidence_prior().condition_on(()).quantile(column, probs)

    def cdf(self, value: Tensor) -> Tensor:
        r"""Probability that every coordinate is at most the value's, shape (\*S, \*B).

        Args:
            value: Points, shape (\*S, \*B, D).

        Raises:
            NotImplementedError: If coordinates are dependent within components: then there is no
                closed form.
        """
        below = self._component_cdf(check_value(self, value, like=self._loc))
        return (self.logits.exp() * below).sum(-1)

    def _component_cdf(self, value: Tensor) -> Tensor:
        """Probability of what is at most a value in every component, shape (*S, *B, K)."""
        scale = self._independent_scale
        if scale is None and self.event_shape == (1,):
            scale = self.component_variance.sqrt()
        if scale is None:
            raise NotImplementedError(
                "Not available: dependent coordinates have no closed form for it. Take one of "
                "them: marginal([d]).cdf(...), or the share of draws."
            )
        z = (value.unsqueeze(-2) - self._loc) / scale
        # Not `ndtr`, which has no digits left below -9.
        return (0.5 * torch.special.erfc(-math.sqrt(0.5) * z)).prod(-1)

    def icdf(self, value: Tensor) -> Tensor:
        r"""The point below which lies so much of a mixture over one coordinate.

        It has gradients in parameters and probabilities, by implicit differentiation.

        Args:
            value: Probabilities from 0 to 1, of a shape that broadcasts with (\*S, \*B).

        Returns:
            Tensor of shape (\*S, \*B, 1).

        Raises:
            NotImplementedError: If there is more than one coordinate.
            ValueError: For other probabilities.
        """
        if self.event_shape != (1,):
            raise NotImplementedError(
                f"Not available: {self.event_shape[0]} coordinates have no order. Take one of "
                f"them: marginal([d]).icdf(...)."
            )
        probs = check_probs(value, self._loc.device)
        shape = torch.broadcast_shapes(probs.shape, self.batch_shape)
        entries = self.batch_shape.numel()
        found = self._quantile_of_line(probs.expand(shape).reshape(-1, entries))
        x = found.reshape(*shape, 1).to(self._loc)
        target = torch.as_tensor(value, device=x.device)
        if not torch.is_grad_enabled() or not (target.requires_grad or self._has_graph):
            return x
        density = self.log_prob(x).detach().exp()
        miss = self.cdf(x) - target.to(x)
        shift = torch.where(density > 0, (miss - miss.detach()) / density, 0.0)
        return x - shift.unsqueeze(-1)

    def _quantile_of_line(self, probs: Tensor) -> Tensor:
        """Quantiles (P, E) of mixtures over one coordinate, flattened, at probabilities (P, E)."""
        log_weight, loc, scale = self._on_the_line(self.component_variance.sqrt())
        whole = torch.full_like(loc, torch.inf)
        return mixture_quantile(probs, log_weight, loc, scale, -whole, whole)

    def _on_the_line(self, scale: Tensor) -> list[Tensor]:
        """Log-weights, locations and scales (*B, K, 1) as matrices (E, K), without a graph."""
        parts = self.logits, self.loc.squeeze(-1), scale.expand(self.loc.shape).squeeze(-1)
        entries = self.batch_shape.numel()
        return [part.detach().double().reshape(entries, -1) for part in parts]

    @property
    def _has_graph(self) -> bool:
        """Whether a parameter requires a gradient."""
        return any(getattr(self, name).requires_grad for name in ("_logits", *self._tensors))

    @takes_generator
    def kl(
        self, other: Distribution, num_samples: int = 10_000, *, generator: Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        r"""Kullback-Leibler divergence from this law to another, and its standard error.

        Args:
            other: Any law over the same values, of the mixture's batch shape or none.
            num_samples: Number of draws of the mixture that it is a mean over.
            generator: Where random numbers come from; by default PyTorch's global generator.

        Returns:
            Two tensors of shape (\*B,), in nats, without a graph.

        Raises:
            ValueError: If the other law is over values of another shape.
        """
        return divergence(self, other, num_samples)

    def kl_bounds(self, other: Any) -> tuple[Tensor, Tensor]:
        """Numbers that the divergence to another mixture of normals lies between, without draws.

        The upper one is zero for equal mixtures, and exact for single normals. They are close
        where components lie apart, and may be far from each other where many overlap: see `kl`.

        Args:
            other: A mixture of normals over as many coordinates, without batch as this one.

        Returns:
            Lower and upper bound, two scalars in nats, in float64.

        Raises:
            ValueError: If the two do not fit.
        """
        other = getattr(other, "law", other)
        fits = isinstance(other, FiniteMixture) and other.event_shape == self.event_shape
        fits = fits and self._has_normals and other._has_normals
        if not fits or self.batch_shape or other.batch_shape:
            raise ValueError(
                f"Expected mixtures of normals over {self.event_shape[0]} coordinates without "
                f"batch, got {self!r} and {other!r}."
            )
        return divergence_bounds(self, other)

    def reduce(self, num_components: int) -> "FiniteMixture":
        r"""A mixture of fewer components, of the same mean and covariance, near to this one.

        Components are merged two by two (Runnalls, "Kullback-Leibler approach to Gaussian mixture
        reduction", 2007). Where coordinates are independent within components they stay so: then
        variances are kept.

        Args:
            num_components: How many are left.

        Returns:
            A `MixtureOfNormals`, or a `MixtureOfMultivariateNormals` where coordinates are
            correlated; this mixture itself if it has no more components.

        Raises:
            ValueError: If there is a batch, or for a number below one.
            NotImplementedError: If components are not normal.
        """
        count = check_positive_int("num_components", num_components)
        if not self._has_normals:
            raise NotImplementedError(
                f"Not available: the components of a {type(self).__name__} cannot be merged."
            )
        if self.batch_shape:
            raise ValueError(
                f"Expected a mixture without batch, got batch shape {tuple(self.batch_shape)}."
            )
        if count >= self.num_components:
            return self
        parts = (part.to(self._loc) for part in reduced(self, count))
        make: Any = type(self) if self._independent_scale is not None else self.with_covariances
        return self._inherit(make(*parts))

    def ellipses(self, level: float = 0.9) -> Tensor:
        """Outlines of the regions that hold so much of each component; see `plot`.

        Args:
            level: The probability of each region under its component, between 0 and 1.

        Returns:
            Points in order, the first one again at the end, shape (K, 100, 2).

        Raises:
            ValueError: If the mixture is not over two coordinates, has a batch, or for another
                level.
        """
        return ellipses(self, level)

    def plot(
        self,
        ax: "Axes | None" = None,
        *,
        data: TensorLike | None = None,
        level: float = 0.9,
        **kwargs: Any,
    ) -> "Axes":
        """Draws a mixture over two coordinates: an ellipse for every component, and points.

        Args:
            ax: Where to draw; by default a new figure.
            data: Points (N, 2) to draw, coloured by their likeliest component.
            level: How much of its component an ellipse holds, between 0 and 1.
            kwargs: Passed to `matplotlib.axes.Axes.scatter`.

        Returns:
            The axes.

        Raises:
            ValueError: If the mixture is not over two coordinates, or has a batch.
        """
        return plot_mixture(self, ax, data, level, **kwargs)

    def log_prob(self, value: Tensor) -> Tensor:
        r"""Log-density of the mixture.

        Args:
            value: Points, shape (\*S, \*B, D).

        Returns:
            Tensor of shape (\*S, \*B).

        Raises:
            ValueError: If the value's shape, dtype or device does not match, or if it holds NaN
                under validation.
        """
        return log_sum_exp(self._joint_log_prob(check_value(self, value, like=self._loc)))

    def responsibilities(self, value: TensorLike, observed: TensorLike | None = None) -> Tensor:
        r"""Probability of every component given a point, :math:`p(k \mid x)`.

        Args:
            value: Points, shape (\*S, \*B, D): a tensor, an array or nested lists.
            observed: True for the entries that were observed, of the value's shape; by default
                all were. See `observed_log_prob`.

        Returns:
            Tensor of shape (\*S, \*B, K) that sums to one over the last dimension.

        Raises:
            ValueError: If the points do not fit or, under validation, if one is so far from all
                components that all densities are rounded to zero.
        """
        if observed is not None:
            scores = self._observed_scores(value, observed)
        else:
            scores = self._joint_log_prob(as_value(self, value, like=self._loc))
        return check_reachable(self, scores).softmax(-1)

    def observed_log_prob(self, value: TensorLike, observed: TensorLike) -> Tensor:
        r"""Log-density of the observed coordinates, the others integrated out.

        Args:
            value: Points, shape (\*S, \*B, D): a tensor, an array or nested lists. What they hold
                where nothing was observed does not matter; it may be NaN.
            observed: True for the observed entries, of the value's shape.

        Returns:
            Tensor of shape (\*S, \*B); zero where nothing was observed.

        Raises:
            ValueError: If shapes, dtypes or devices do not match, or for observed NaN under
                validation.
        """
        return log_sum_exp(self._observed_scores(value, observed))

    @without_graph
    @takes_generator
    @in_full_precision
    def sample(
        self, sample_shape: _size = Size(), *, generator: Generator | None = None
    ) -> Tensor:
        r"""Draws from the mixture without a graph; shape (\*S, \*B, D).

        Args:
            sample_shape: Shape S of the draws.
            generator: Where random numbers come from; by default PyTorch's global generator.
        """
        return self._sample_joint(sample_shape)[0]

    @takes_generator
    def rsample_with_score(
        self, sample_shape: _size = Size(), *, generator: Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        r"""Draws with the gradient that they have given their components, and scores of these.

        .. math:: \nabla E[f(x)] = E\big[\nabla f(x) + f(x) \nabla \log w_k\big]

        The first term is that of the draw of component k. The draws are independent, and
        gradients in the weights have a variance that does not grow with the separation of the
        components.

        Args:
            sample_shape: Shape S of the draws.
            generator: Where random numbers come from; by default PyTorch's global generator.

        Returns:
            Draws of shape (\*S, \*B, D), and the log-weights of their components, (\*S, \*B).
        """
        x, component = self._sample_joint(sample_shape)
        logits = self.logits.expand(*component.shape, -1)
        return x, logits.gather(-1, component.unsqueeze(-1)).squeeze(-1)

    def _sample_joint(self, sample_shape: _size) -> tuple[Tensor, Tensor]:
        """Draws (*S, *B, D) with the gradient given their components, and these (*S, *B)."""
        weights = Categorical(logits=self.logits.detach(), validate_args=False)
        component = draw_components(weights, sample_shape)
        noise = self._loc.new_empty(*component.shape, self._num_noise).normal_()
        return self._draw(component, noise), component

    @takes_generator
    def rsample(
        self, sample_shape: _size = Size(), *, generator: Generator | None = None
    ) -> Tensor:
        r"""Draws from the mixture with exact pathwise gradients; shape (\*S, \*B, D).

        They are found by implicit differentiation, once: not twice. Their variance grows with
        the separation of the components, as every pathwise gradient's of a mixture; see
        `rsample_weighted`.

        Args:
            sample_shape: Shape S of the draws.
            generator: Where random numbers come from; by default PyTorch's global generator.
        """
        return self._reparameterize(self.sample(sample_shape))

    @takes_generator
    def rsample_weighted(
        self, num_samples: int, *, generator: Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        r"""Draws with weights, and gradients that are exact however far components lie apart.

        Every component gives (nearly) the same number of draws, weighted by its probability, so
        that

        .. math:: E[f(x)] = E\Big[\sum_{i=1}^n e^{\ell_i} f(x_i)\Big]

        with :math:`x_i` differentiable in the components' parameters and :math:`\ell_i` in
        `logits`: no gradient passes through the choice of a component. Fewer draws than
        components use a random subset of them, at equal steps. The draws of a component are spread
        evenly, by a scrambled Sobol sequence: each has the component's law, but they are not
        independent.

        Args:
            num_samples: Number of draws n.
            generator: Where random numbers come from; by default PyTorch's global generator.

        Returns:
            Draws of shape (n, \*B, D), and their log-weights :math:`\ell` of shape (n, \*B), whose
            exponentials sum to one over the draws if n is at least K.
        """
        num_samples = check_positive_int("num_samples", num_samples)
        k = self.num_components
        each, rest = divmod(num_samples, k)
        # The rest at equal steps from a random start: every component is as likely to be among
        # them, and so is every group of components that stand together, as far as it can be.
        start = torch.rand((), device=self._loc.device)
        chosen = ((torch.arange(rest, device=start.device) + start) * (k / max(rest, 1))).long()
        chosen = chosen.clamp(max=k - 1)
        component = torch.arange(k, device=chosen.device).repeat_interleave(each)
        component = torch.cat([component, chosen])
        count = torch.bincount(component, minlength=k)[component] if each else num_samples / k
        index = component.reshape(-1, *[1] * len(self.batch_shape))
        index = index.expand(num_samples, *self.batch_shape)
        log_weight = self.logits[..., component].movedim(-1, 0)
        log_count = torch.as_tensor(count, dtype=log_weight.dtype, device=log_weight.device).log()
        log_count = log_count.reshape(-1, *[1] * len(self.batch_shape))
        noise = even_normals(num_samples, Size((*self.batch_shape, self._num_noise)), self._loc)
        return self._draw(index, noise), log_weight - log_count

    def marginal(self, dims: int | Iterable[object]) -> "FiniteMixture":
        """Law of some of the coordinates.

        Args:
            dims: The coordinates to keep, in the order of the result; negative ones count from
                the end.

        Returns:
            A mixture of the class of this one, over as many coordinates as are kept.

        Raises:
            ValueError: If a coordinate is out of range, named twice, or none is given.
        """
        kept = check_dims(dims, self.event_shape[0])
        if not kept:
            raise ValueError("Expected at least one coordinate to keep, got none.")
        return self._inherit(self._marginal(kept)).expand(self.batch_shape)

    @overload
    def condition(self, values: Mapping[int, float | Tensor], /) -> "FiniteMixture": ...
    @overload
    def condition(self, first: Evidence, /, *others: Statement) -> ConditionedLaw: ...
    def condition(self, *given: Any) -> Any:
        r"""The law of all coordinates, given evidence.

        Args:
            given: Pieces of evidence, see `pyromix.evidence`: `Observed` values, priors, boxes,
                observations and inequalities, in any combination. Values of shape (N,) give N
                laws at once; batch shapes broadcast with the mixture's.

        Returns:
            A `ConditionedMixture` over all coordinates; observed ones keep their values. Its
            method ``free()`` is the law of the others, in closed form if nothing but values is
            known. With alternatives, a `UnionOfConditioned`.

            Deprecated: a mapping alone, from coordinates to values, gives the law of the other
            coordinates.

        Raises:
            ValueError: If a coordinate is out of range, if all are observed, or if the evidence
                contradicts itself.
        """
        if len(given) == 1 and not isinstance(given[0], Evidence):
            return self._given_mapping(given[0], missing=False)
        return self.evidence_prior().condition_on(given)

    def evidence_prior(self) -> MixturePrior:
        """The mixture as what evidence is added to."""
        return MixturePrior(self)

    def _given_mapping(self, values: Any, *, missing: bool) -> "FiniteMixture":
        """The law of the other coordinates, with a warning that this is to change."""
        law = self._conditioned(values, missing=missing)
        warn_user(
            "condition({...}) gives the law of the other coordinates today. From version 0.3 on "
            "it will keep the observed ones, as evidence and other models do. Write "
            "condition(Observed({...})) for the law of all coordinates, and "
            "condition(Observed({...})).free() for that of the others.",
            FutureWarning,
        )
        return law

    @takes_generator
    def impute(
        self,
        value: TensorLike,
        num_samples: int | None = None,
        *,
        generator: Generator | None = None,
    ) -> Tensor:
        r"""Fills missing entries in from those that were observed.

        Args:
            value: Points of shape (N, D), NaN where an entry is missing: a tensor, an array or
                nested lists.
            num_samples: How many draws of the missing entries to return; by default one value is
                filled in, their mean given the others.
            generator: Where random numbers come from; by default PyTorch's global generator.

        Returns:
            Tensor of shape (N, D), or (num_samples, N, D). Observed entries are as they were.

        Raises:
            ValueError: If the points do not fit, or the mixture has a batch shape.
        """
        if num_samples is not None:
            num_samples = check_count("num_samples", num_samples)
        value = as_tensor("value", value, like=self._loc)
        if self.batch_shape or value.dim() != 2:
            raise ValueError(
                f"Expected points of shape (N, D) and a mixture without batch, got "
                f"{tuple(value.shape)} and batch shape {tuple(self.batch_shape)}."
            )
        observed = ~value.isnan()
        check_value(self, torch.where(observed, value, 0.0), like=self._loc)
        shape = Size() if num_samples is None else Size((num_samples,))
        filled = value.expand(*shape, *value.shape).clone()
        for given, free, rows in by_pattern(observed):
            if not free:
                continue
            at = torch.tensor(free, device=rows.device)
            # Every row has means of its own in all components.
            for part in rows.split(max(1, IMPUTED_NUMBERS // (self.num_components * len(free)))):
                law = self
                if given:
                    law = self.conditional(given, free, value[part][:, given])
                size = shape if given else Size((*shape, len(part)))
                draws = law._centre if num_samples is None else law.sample(size)
                filled[..., part.unsqueeze(-1), at] = draws
        return filled

    def map_tensors(self, function: Callable[[Tensor], Tensor]) -> Self:
        """Returns the mixture with a function applied to its tensors, such as `torch.clone`."""
        tensors = [function(getattr(self, name)) for name in ("_logits", *self._tensors)]
        return self._inherit(self._remade(tensors))

    def _remade(self, tensors: Sequence[Tensor]) -> Self:
        """The mixture of this kind that tensors in the constructor's order make."""
        make: Any = type(self)
        mixture: Self = make(*tensors, validate_args=False)
        return mixture

    def normals_given(
        self, given: list[int], free: list[int], value: Tensor, *, correlated: bool
    ) -> Normals:
        r"""The components given values of some coordinates, as `pyromix.conditioning` needs them.

        Args:
            given: Coordinates with values.
            free: The others.
            value: Shape (\*N, given).
            correlated: Whether to give covariances also where coordinates are independent.

        Returns:
            Log-weights plus log-densities of the values, means of the free coordinates, and
            their standard deviations, or what computes their covariances.
        """
        law, count = self, len(free)
        log_joint = self._logits.double().log_softmax(-1)
        if given and not free:
            log_joint = self._marginal(given)._joint_log_prob(value)
        elif given:
            # The weights it leaves are not normalised: their sum is the density of the values.
            law = self._condition(given, free, value)
            log_joint = law._logits
        scale = None if correlated else law._independent_scale
        scale = None if scale is None else scale[..., :count]
        covariance = partial(law._leading_covariance, count)
        low_rank = law._low_rank
        if low_rank is not None:
            low_rank = low_rank[0][..., :count], low_rank[1][..., :count, :]
        return Normals(log_joint, law._loc[..., :count], scale, covariance, low_rank)

    def _leading_covariance(self, count: int) -> Tensor:
        """Covariances of the first coordinates, with no more batch dimensions than parameters."""
        return self.component_covariance[..., :count, :count]

    @in_full_precision
    def conditional(self, given: list[int], free: list[int], value: Tensor) -> "FiniteMixture":
        r"""The mixture of the free coordinates, given values (\*N, given) of the others."""
        law = self._inherit(self._condition(given, free, value))
        check_reachable(self, law._logits)
        return law

    def _conditioned(
        self, observed: Mapping[int, float | Tensor], *, missing: bool
    ) -> "FiniteMixture":
        """The conditional law; NaN is bad input, or marks values that are unknown after all."""
        if not isinstance(observed, Mapping):
            raise ValueError(
                f"Expected a mapping from coordinates to values, such as {{0: 1.5}}, got "
                f"{type(observed).__name__}. (In training, a batch that is a pair is read as "
                f"values and context. A mixture takes no context: leave labels out.)"
            )
        given = check_dims(list(observed), self.event_shape[0])
        free = [d for d in range(self.event_shape[0]) if d not in given]
        if not given or not free:
            raise ValueError(
                f"Expected between 1 and {self.event_shape[0] - 1} observed coordinates of "
                f"{self.event_shape[0]}, got {len(given)}. With all observed, call log_prob."
            )
        values = [
            as_tensor(f"the observed value of coordinate {d}", v, like=self._loc)
            for d, v in observed.items()
        ]
        value = stack_observed(values)  # (*N, D observed)
        batch = value.shape[:-1]
        got = f"values {tuple(batch)}, mixture {tuple(self.batch_shape)}"
        common_batch_shape(got, batch, self.batch_shape)
        unknown = value.isnan() if missing else None
        if self._validate_args and not is_traced():
            allowed = value.isfinite() if unknown is None else ~value.isinf()
            if not bool(allowed.all()):
                raise ValueError("Expected finite observed values without NaN.")
        if unknown is not None and bool(unknown.any()):
            return self._inherit(self._condition_partly(given, free, value, ~unknown))
        return self.conditional(given, free, value)

    def _condition_partly(
        self, given: list[int], free: list[int], value: Tensor, observed: Tensor
    ) -> "FiniteMixture":
        """The law of the free coordinates where some of the given ones are missing."""
        leading = torch.broadcast_shapes(value.shape[:-1], self.batch_shape)
        points, seen_in = (
            t.expand(*leading, -1).reshape(-1, len(given)) for t in (value, observed)
        )
        entry = self._entries(leading)
        laws, order = [], []
        for seen, _, rows in by_pattern(seen_in):
            kept = [given[i] for i in seen]
            law = self._at(entry[rows])._marginal([*free, *kept])
            count = len(free)
            if kept:
                at = list(range(count, count + len(kept)))
                law = law._condition(at, list(range(count)), points[rows][:, seen])
                check_reachable(self, law._logits)
            laws.append(law.expand((len(rows),)))
            order.append(rows)
        back = torch.cat(order).argsort()
        # Every row has components of its own now, as its pattern of missing values has.
        tensors = []
        for name, tail in (("_logits", 1), *self._tensors.items()):
            parts = []
            for law in laws:
                part = getattr(law, name)
                parts.append(part.expand(*law.batch_shape, *part.shape[part.dim() - tail :]))
            tensors.append(torch.cat(parts)[back].reshape(*leading, *parts[0].shape[1:]))
        return self._remade(tensors)

    def _observed_scores(self, value: TensorLike, observed: TensorLike) -> Tensor:
        """Log w_k plus the log-density of the observed coordinates, shape (*S, *B, K)."""
        value = as_tensor("value", value, like=self._loc)
        observed = as_mask("observed", observed, like=value)
        value = check_value(self, torch.where(observed, value, 0.0), like=self._loc)
        if not is_traced() and bool(observed.all()):
            return self._joint_log_prob(value)
        return self._joint_log_prob_observed(value, observed)

    def _scores_by_pattern(self, value: Tensor, observed: Tensor) -> Tensor:
        """What `_joint_log_prob_observed` returns, by marginals of each pattern of gaps."""
        leading = torch.broadcast_shapes(value.shape[:-1], self.batch_shape)
        points, seen = (t.expand(*leading, -1).reshape(-1, t.shape[-1]) for t in (value, observed))
        entry = self._entries(leading)
        scores, order = [], []
        for kept, _, rows in by_pattern(seen):
            # Every mixture of the batch is integrated once, however many points it has.
            entries, position = entry[rows].unique(return_inverse=True)
            law = self._at(entries)
            if kept:
                law = law._marginal(kept)._at(position)
                part = law._joint_log_prob(points[rows][:, kept])
            else:
                part = law.logits.expand(len(entries), -1)[position]
            scores.append(part)
            order.append(rows)
        result = torch.cat(scores)[torch.cat(order).argsort()]
        return result.reshape(*leading, self.num_components)

    def _entries(self, leading: Sequence[int]) -> Tensor:
        """The entry of the flattened batch that each point of shape (*S, *B) belongs to."""
        return flat_index(self.batch_shape, leading, self._loc.device)

    def _at(self, entry: Tensor) -> "FiniteMixture":
        """The mixtures at entries (n,) of the flattened batch; one for all where none differ."""
        tensors = []
        for name, tail in (("_logits", 1), *self._tensors.items()):
            part = getattr(self, name)
            own, shape = part.shape[: part.dim() - tail], part.shape[part.dim() - tail :]
            if own.numel() == 1:
                tensors.append(part.reshape(shape))
                continue
            row = flat_index(own, self.batch_shape, entry.device)[entry]
            tensors.append(part.reshape(own.numel(), *shape)[row])
        return self._remade(tensors)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(num_components={self.num_components}, "
            f"batch_shape={tuple(self.batch_shape)}, event_shape={tuple(self.event_shape)})"
        )


def _tensors_of(mixture: FiniteMixture) -> dict[str, Any]:
    """What a mixture is made of, for files."""
    names = ("_logits", *mixture._tensors)
    return {
        "tensors": [getattr(mixture, name) for name in names],
        "validate_args": bool(mixture._validate_args),
    }


def _made_of(cls: Any, tensors: list[Tensor], validate_args: bool) -> Any:
    mixture = cls(*tensors, validate_args=False)
    mixture._validate_args = validate_args
    return mixture
