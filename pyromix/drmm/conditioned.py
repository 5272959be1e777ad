r"""A deep residual mixture, given evidence.

Given a code everything is a normal under linear evidence, as in any mixture of normals, and
categorical columns are independent. What is left is a law over codes: all of them where they are
few, and else a weighted population that the evidence has steered through the layers.
"""

__all__ = ["ConditionedDRMM", "ResidualPrior", "Settings"]

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Size, Tensor
from torch.distributions import Distribution, constraints

from ..conditioning.law import FREED_GRAPH, ConditionedLaw, Statement, copy_for_law
from ..conditioning.mixture import MODE_DRAWS, ConditionedMixture, MixturePrior, log_factor
from ..conditioning.parts import register_part
from ..conditioning.truncated import ConflictError
from ..conditioning.union import condition_on
from ..core.advice import warn_user
from ..core.checks import check_dims, check_index, check_value
from ..core.constraints import mixed_columns
from ..evidence.linear import LinearEvidence
from ..evidence.pieces import Number
from ..mixtures.finite import FiniteMixture
from ..numerics.batches import choose
from ..numerics.no_gradient import raise_if_freed
from .affine import AffineMixture
from .column_evidence import ColumnEvidence
from .columns import Columns
from .law import LinearObservations, ResidualMixture
from .maps import DiagonalMap, LowRankMap, TriangularMap
from .particles import Codes, enumerate_codes, find_codes, prune
from .rows import Rows
from .shifts import ShiftMixture

# Below this share of the particles, the effective sample size is worth a warning.
LOW_SHARE = 0.1

# By so many units in the last place may sums over layers be rounded.
ROUNDINGS = 16

# Equations are left to the search if none is so near to a combination of others.
LEAST_SINGULAR = 1e-2

# Means of codes of so many numbers are compared at once.
BLOCK_NUMBERS = 2**22

# Codes that have less than this share of the likeliest one's weight do not count in moments.
NEGLIGIBLE_SHARE = 1e-10

# Standard error of a code's log-probability that is good enough for one of many.
INTEGRAL_ERROR = 0.1


class Settings(NamedTuple):
    """How a law is conditioned, and its density computed."""

    num_particles: int | None
    max_exact: int
    beam: int


class ResidualPrior:
    """A deep residual mixture that is conditioned; see `pyromix.conditioning.law.Prior`.

    Args:
        law: The law. Its tensors are copied: log Z is that of their present values.
        settings: How it is conditioned.
        validate_args: Whether laws given evidence check what they score.
        kept: Codes that are examined for certain, shape (E, M, L), where evidence has as many
            entries; None for none.
    """

    def __init__(
        self,
        law: ResidualMixture,
        settings: Settings,
        validate_args: bool,
        kept: Tensor | None = None,
    ) -> None:
        self.kept = kept
        self.law, self.settings = law.map_tensors(copy_for_law), settings
        self.validate_args = validate_args
        self.dim = law.dim
        self.categories = law.columns.categories
        self.is_sampled = law.num_codes > settings.max_exact
        self.correlates = law.correlates
        self.dtype, self.device = law.log_weight.dtype, law.log_weight.device

    def map_tensors(self, function: Callable[[Tensor], Tensor]) -> "ResidualPrior":
        """Returns the prior with a function applied to the tensors of its law."""
        return ResidualPrior(self.law.map_tensors(function), self.settings, self.validate_args)

    def with_options(self, num_particles: int | None) -> "ResidualPrior":
        """The prior with another number of particles."""
        prior = copy.copy(self)
        prior.settings = self.settings._replace(num_particles=num_particles)
        return prior

    def given(
        self, evidence: LinearEvidence, *, allow_impossible_entries: bool = False
    ) -> "ConditionedDRMM":
        """The law given one set of linear statements."""
        for column, weights in evidence.categorical.items():
            if bool(weights.isneginf().all(-1).any()):
                raise ConflictError(
                    f"Expected evidence that can hold, but nothing is left of column "
                    f"{evidence.dim + column}: its pieces contradict each other."
                )
        return ConditionedDRMM(self, evidence, allow_impossible_entries=allow_impossible_entries)

    def condition_on(self, evidence: Sequence[Statement]) -> ConditionedLaw:
        """The law given pieces of evidence, whose batch shapes broadcast."""
        return condition_on(self, evidence)


class ConditionedDRMM(ConditionedLaw):
    r"""The law of all columns of a deep residual mixture, given evidence: :math:`p(x) q(x) / Z`.

    Made by `DRMM.condition`, for the parameters that the model has then: later changes of them do
    not reach it. With at most `max_exact` codes it sums over all of them, and is as exact as a
    `ConditionedMixture`. Else draws and Z are those of a weighted population of codes: Z is
    unbiased, and draws have the law as the population grows; `effective_sample_size` says how far
    it reaches. Draws keep observed columns at their values, and meet every inequality in the
    dtype that they are returned in.

    `log_prob` is :math:`\log p(x) + \log q(x) - \log Z`, with the model's own density, exact or
    bound. It is with respect to Lebesgue measure on the real columns that are free (with
    equations, to the surface measure on the plane that they leave) and counting measure on the
    categorical ones. The factor of an equation a.x + b = 0 is a delta function of its left side:
    `log_evidence` is the log-density of that at zero, and changes if the equation is rescaled.

    Args:
        prior: The law without evidence.
        evidence: The evidence.
        allow_impossible_entries: Whether entries of the batch may contradict themselves, and have
            an evidence of zero, as long as not all do.

    Raises:
        ValueError: If the evidence cannot hold, or if its shape does not fit.

    Attributes:
        exact: Whether all codes were summed over.
        num_particles: Number of codes that were held.
        effective_sample_size: How many independent draws of codes these are worth, shape (\*B,);
            all of them where nothing was left out.
    """

    _prior: ResidualPrior

    def __init__(
        self,
        prior: ResidualPrior,
        evidence: LinearEvidence,
        *,
        allow_impossible_entries: bool = False,
    ) -> None:
        law, settings = prior.law, prior.settings
        batch_shape = evidence.batch_shape
        super().__init__(prior, batch_shape, Size((prior.dim + len(prior.categories),)))
        self._law, self._evidence, self._dim = law, evidence, prior.dim
        self.exact = not prior.is_sampled
        if self.exact:
            codes = enumerate_codes(law)
        else:
            kept = prior.kept
            if kept is not None and len(kept) != math.prod(batch_shape):
                kept = None
            codes = find_codes(law, evidence, batch_shape, settings.num_particles, kept)
        self.num_particles = codes.size
        self._allow_impossible_entries = allow_impossible_entries
        self._with_graph = torch.is_grad_enabled() and self._has_graph()
        self._log_known: Tensor | None = None
        self._noisy = evidence.noisy
        self._has_equations = len(self._noisy) < len(evidence.gaussian)
        if codes.log_seen is not None and codes.log_prior is not None and self._is_simple():
            self._codes = codes
            with torch.no_grad():
                log_joint = self._log_joint_of(codes, codes.log_prior)
            self._check_possible(log_joint.logsumexp(-1), allow_impossible_entries)
            self._log_known = (log_joint + codes.log_seen).double() - evidence.log_units
            self._check_possible(self._log_known.logsumexp(-1), allow_impossible_entries)
        else:
            if evidence.num_rows:
                entries = math.prod(batch_shape)
                with torch.no_grad():
                    log_joint = self._log_joint_of(codes, codes.log_prior).expand(entries, -1)
                codes = prune(law, evidence, batch_shape, codes, log_joint)
            self._codes = codes
            _ = self._real
        self._variance, self.effective_sample_size = self._spread()
        self._warn()

    def _check_possible(self, log_scale: Tensor, allow_impossible_entries: bool) -> Tensor:
        """Which entries are so far off that nothing is left to compare, (E,); not all may be.

        Raises:
            ConflictError: If all are or, unless that is allowed, if one is.
        """
        lost = log_scale.isneginf()
        if bool(lost.all() if allow_impossible_entries else lost.any()):
            raise ConflictError(
                f"Expected evidence that can hold, but {int(lost.sum())} of {len(lost)} entries "
                f"of its batch are so far from all that the model knows that their probability is "
                f"zero in {self._dtype}."
            )
        return lost

    def _is_simple(self) -> bool:
        """Whether all that is known are values, observations and equations far from dependent.

        Then the search has the weights of all codes, and normals are worked out for codes that
        are drawn, not for all.
        """
        if self._evidence.num_rows:
            return False
        matrix, _ = self._evidence.equations(self.batch_shape)
        if not len(matrix):
            return True
        # In units of columns, and of rows, that a prefix is uncertain about.
        _, free = self._evidence.split_columns()
        rows = matrix[:, free] * self._law.units[free].double()
        size = torch.linalg.svdvals(rows / rows.norm(dim=-1, keepdim=True).clamp(min=1e-300))
        return len(rows) <= len(free) and bool(size[-1] > LEAST_SINGULAR * size[0])

    def _has_graph(self) -> bool:
        """Whether a tensor of the law or of the evidence has a graph."""
        _, y, noise = self._evidence.combinations(self.batch_shape)
        has_graph = [t.requires_grad for t in (y, noise, *self._evidence.observed.values())]
        has_graph += [t.requires_grad for t in self._evidence.categorical.values()]

        def look(t: Tensor) -> Tensor:
            has_graph.append(t.requires_grad)
            return t

        self._law.map_tensors(look)
        return any(has_graph)

    @cached_property
    def _weights(self) -> tuple[Tensor, Tensor]:
        """Log-weights of codes without linear evidence, (E or 1, C), and log of their sum (*B,).

        With the graph that they would have had at construction.
        """
        with torch.set_grad_enabled(self._with_graph):
            known = None if self._with_graph else self._codes.log_prior
            log_joint = self._log_joint_of(self._codes, known)
            log_scale = log_joint.double().logsumexp(-1)
            lost = self._check_possible(log_scale, self._allow_impossible_entries)
            log_joint = torch.where(lost.unsqueeze(-1), 0.0, log_joint)
            log_scale = raise_if_freed(log_scale, FREED_GRAPH)
        entries = math.prod(self.batch_shape)
        return log_joint, log_scale.expand(entries).reshape(self.batch_shape)

    @cached_property
    def _real(self) -> ConditionedMixture:
        """The law of the real columns, given what is known of them: a mixture over all codes."""
        with torch.set_grad_enabled(self._with_graph):
            mixture = MixturePrior(
                self._mixture_of(self._codes, self._weights[0]),
                allow_all_observed=True,
                # A population has an error of its own: that of an integral may be larger.
                max_error=0.01 if self.exact else INTEGRAL_ERROR,
            )
            return mixture.given(
                self._evidence, allow_impossible_entries=self._allow_impossible_entries
            )

    def likeliest_codes(self, count: int) -> Tensor:
        """The codes with the largest weights at every entry, shape (E, up to count, L)."""
        weight = self._logits.reshape(-1, self._codes.codes.shape[1])
        index = weight.topk(min(count, weight.shape[1]), -1).indices
        codes = self._codes.codes.expand(len(index), -1, -1)
        return codes.gather(1, index.unsqueeze(-1).expand(-1, -1, codes.shape[-1]))

    @property
    def _logits(self) -> Tensor:
        r"""Log-probabilities of codes given all evidence, shape (\*B, C)."""
        if self._log_known is None or self._with_graph:
            return self._real.logits
        logits = self._log_known.log_softmax(-1).to(self._dtype)
        return logits.reshape(*self.batch_shape, logits.shape[-1])

    @property
    def route(self) -> tuple[str, ...] | None:  # type: ignore[override]
        """How normals under inequalities are drawn; see `ConditionedMixture`."""
        return None if self._log_known is not None else self._real.route

    @property
    def observed(self) -> Mapping[int, Tensor]:
        r"""Columns that were observed, in ascending order -> their values, shape (\*B,).

        Categorical ones are among them if one category was left.
        """
        columns = sorted(self._evidence.observed)
        value = self._evidence.observed_values(self._dtype).to(self._dtype)
        observed = {
            d: value[..., place].expand(self.batch_shape) for place, d in enumerate(columns)
        }
        for column, log_q in sorted(self._evidence.categorical.items()):
            if bool((log_q.isfinite().sum(-1) == 1).all()):
                code = log_q.argmax(-1).to(self._dtype)
                observed[self._dim + column] = code.expand(self.batch_shape)
        return observed

    @property
    def support(self) -> constraints.Constraint:
        """Where the density is positive, as NUTS and guides need it.

        All of space without hard evidence, a box, or a half-space.

        Raises:
            NotImplementedError: For other evidence, under which no bijection is known: draw with
                `sample` instead.
        """
        support = self._real.support
        if not self._prior.categories:
            return support
        if support is not constraints.real_vector:
            raise NotImplementedError(
                "No bijection onto real columns within bounds next to categorical ones is known. "
                "Draw with sample()."
            )
        return mixed_columns(self._dim, self._prior.categories)

    @property
    def mean(self) -> Tensor:
        r"""Means of real columns and likeliest codes of categorical ones: (\*B, D + columns).

        Raises:
            NotImplementedError: Under inequalities, where means have no closed form: average
                draws.
        """
        columns = [
            self.probs(self._dim + j).argmax(-1, keepdim=True).to(self._law.log_weight)
            for j in range(len(self._prior.categories))
        ]
        return torch.cat([self._moments[0], *columns], -1)

    @property
    def variance(self) -> Tensor:
        r"""Variances of real columns, shape (\*B, D).

        Raises:
            NotImplementedError: Under inequalities, where they have no closed form.
        """
        return self._moments[1]

    @property
    def _moments(self) -> tuple[Tensor, Tensor]:
        r"""Means and variances of the real columns, shape (\*B, D)."""
        if self._log_known is None or self._with_graph:
            return self._real.mean, self._real.variance
        return self._moments_known

    @cached_property
    @torch.no_grad()
    def _moments_known(self) -> tuple[Tensor, Tensor]:
        """The same without the mixture of all codes, which may be too large for a batch."""
        assert self._log_known is not None
        law, weight = self._law, self._log_known.softmax(-1)  # (E, C)
        best = weight.argmax(-1)
        every = torch.arange(len(weight), device=weight.device)
        # Relative to a mean, so that large numbers do not cancel.
        reference, _ = law.moments_known(*self._known_at(every, best))
        total, shift, square = (
            weight.new_zeros(len(weight), 1),
            *(torch.zeros_like(reference) for _ in range(2)),
        )
        kept = weight > NEGLIGIBLE_SHARE * weight.amax(-1, keepdim=True)
        entry, code = kept.nonzero(as_tuple=True)
        size = max(1, BLOCK_NUMBERS // (max(1, law.dim) * (1 + self._num_observed)))
        for one, other in zip(entry.split(size), code.split(size), strict=True):
            mean, variance = law.moments_known(*self._known_at(one, other))
            own, away = weight[one, other].unsqueeze(-1), mean - reference[one]
            total.index_add_(0, one, own)
            shift.index_add_(0, one, own * away)
            square.index_add_(0, one, own * (variance + away.square()))
        shift, square = shift / total, square / total
        mean, variance = reference + shift, (square - shift.square()).clamp(min=0.0)
        columns = sorted(self._evidence.observed)
        mean[:, columns], variance[:, columns] = self._known_at(every, best)[2], 0.0
        shape = (*self.batch_shape, law.dim)
        return mean.reshape(shape).to(self._dtype), variance.reshape(shape).to(self._dtype)

    def probs(self, index: int) -> Tensor:
        r"""Probabilities of the categories of a column, given the evidence.

        Args:
            index: The categorical column.

        Returns:
            Tensor of shape (\*B, categories).
        """
        column = self._evidence.categorical_column(index)
        log_probs = self._column_log_probs(column).softmax(-1)  # (E or 1, C, n)
        weights = self._logits.exp().unsqueeze(-1)  # (*B, C, 1)
        log_probs = log_probs.expand(max(1, self.batch_shape.numel()), -1, -1)
        return (weights * log_probs.reshape(*self.batch_shape, *log_probs.shape[1:])).sum(-2)

    def marginal(self, dims: int | Iterable[object]) -> Distribution:
        """The law of some of the real columns, a mixture over all codes.

        Args:
            dims: The columns to keep, in the order of the result, none of them observed.

        Raises:
            NotImplementedError: For categorical columns, whose law `probs` returns; under
                inequalities, and where equations leave these columns no density.
            ValueError: If a column is out of range, named twice, or was observed.
        """
        kept = check_dims(dims, self.event_shape[0])
        categorical = [d for d in kept if d >= self._dim]
        if categorical:
            raise NotImplementedError(
                f"Not available: marginals are of real columns, got the categorical "
                f"{categorical}. Their probabilities are probs(index); of several columns keep "
                f"those of draws: sample((n,))[..., dims]."
            )
        return self._real.marginal(kept)

    def quantile(self, column: int, probs: Number | Sequence[float]) -> Tensor:
        r"""Quantiles of a real column; see `ConditionedMixture.quantile`.

        Args:
            column: The column.
            probs: Probabilities from 0 to 1, of any shape P.

        Returns:
            Tensor of shape (\*P, \*B), without a graph: exact where all codes are summed over,
            else those of the population that draws come from.

        Raises:
            NotImplementedError: Under inequalities that shape the column's law in other ways than
                by bounds: take quantiles of draws.
            ValueError: If there is no such real column, or for other probabilities.
        """
        d = check_index("column", column, self.event_shape[0])
        if d >= self._dim:
            raise ValueError(
                f"Expected a real column, below {self._dim}, got the categorical {column!r}, "
                f"whose probabilities are probs({column!r})."
            )
        return self._real.quantile(d, probs)

    def mode_at(self, entry: Tensor) -> Tensor:
        """Modes (n, D) of the laws at entries (n,) of the flattened batch, each named once."""
        draws = self.draw(entry.repeat_interleave(MODE_DRAWS)).unflatten(
            0, (len(entry), MODE_DRAWS)
        )
        columns = range(len(self._prior.categories))
        # Codes count once each, not for those that were left out.
        log_weight, *tables = (
            t.double() if len(t) == 1 else t[entry].double()
            for t in (
                self._codes.log_weight,
                *(self._column_log_probs(column).log_softmax(-1) for column in columns),
            )
        )
        real, codes = self._real.modes_from(
            entry,
            draws[..., : self._dim],
            draws[..., self._dim :].long(),
            tables,
            -log_weight.nan_to_num(neginf=0.0),
        )
        x = torch.cat([real, codes.to(real)], -1)  # (n, S, D)
        if self.exact:
            return x[:, 0]
        best = self.log_joint_at(x.transpose(0, 1), entry).argmax(0)
        return x[torch.arange(len(x), device=x.device), best]

    def log_normalizer(self) -> tuple[Tensor, Tensor]:
        """Log Z and its standard error in float64, whatever the dtype of the law."""
        if self._log_known is not None and not self._with_graph:
            log_normalizer = self._log_known.logsumexp(-1).reshape(self.batch_shape)
            return log_normalizer, self._variance.sqrt()
        log_normalizer, error = self._real.log_normalizer()
        return log_normalizer + self._weights[1], (error.square() + self._variance).sqrt()

    @torch.no_grad()
    def draw(self, entry: Tensor) -> Tensor:
        """Draws of the laws at entries (n,) of the flattened batch; see `sample`."""
        if self._log_known is not None:
            component = choose(self._log_known, entry)
            x = self._draw_known(entry, component)
        else:
            x, component = self._real.draw_with_component(entry)
        return self._with_columns(x, entry, component)

    def normals(self) -> tuple[Tensor, Tensor, Tensor]:
        """Log-weights (C,), means (C, D) and factors (C, D, r) of codes; see `NonlinearLaw`."""
        log_weight, loc, factor = self._real.normals()
        return log_weight + self._weights[1].detach(), loc, factor

    @property
    def relative_weights(self) -> Tensor | None:
        """Weights of codes in every island, relative to their mean, (islands, C)."""
        return None if self._codes.islands is None else self._codes.islands[0]

    def complete(self, real: Tensor, component: Tensor) -> Tensor:
        """Points with all columns, given the real ones (n, D) and their codes' indices (n,)."""
        real = self._real.complete(real, component)
        return self._with_columns(real, torch.zeros_like(component), component)

    def _with_columns(self, x: Tensor, entry: Tensor, component: Tensor) -> Tensor:
        """Real columns (n, D), with draws of the categorical ones."""
        codes = self._codes.codes
        own = codes[entry if len(codes) > 1 else torch.zeros_like(entry), component]

        def known(number: int, part: slice) -> Tensor | None:
            return self._column_evidence.log_weights(number, part, entry)

        return torch.cat([x, self._law.columns.draw(own, known).to(x)], -1)

    def _draw_known(self, entry: Tensor, component: Tensor) -> Tensor:
        """Draws of the real columns at entries (n,), given indices of their codes (n,)."""
        own, columns, value, noisy = self._known_at(entry, component)
        x = self._law.draw_known(own, columns, value, noisy)
        x[:, columns] = value.to(x)
        return x

    def _known_at(
        self, entry: Tensor, component: Tensor
    ) -> tuple[Tensor, list[int], Tensor, LinearObservations]:
        """Codes (n, L) of entries (n,), and what is known there: columns, values, and the rest."""
        evidence, shape = self._evidence, self.batch_shape
        columns = sorted(evidence.observed)
        value = evidence.observed_values(self._dtype).expand(*shape, len(columns))
        value = value.reshape(shape.numel(), len(columns))[entry]
        matrix, y, noise = evidence.combinations(shape)
        wanted = y.reshape(shape.numel(), len(matrix))[entry]
        codes = self._codes.codes
        own = codes[entry if len(codes) > 1 else torch.zeros_like(entry), component]
        return own, columns, value, (matrix, wanted, noise)

    @property
    def _num_observed(self) -> int:
        """Number of values and observations."""
        return len(self._evidence.observed) + sum(len(a) for a, _, _ in self._evidence.gaussian)

    def holds(self, value: Tensor) -> Tensor:
        r"""Whether points meet every inequality, shape (\*S, \*B)."""
        if self._log_known is not None:
            leading = torch.broadcast_shapes(value.shape[:-1], self.batch_shape)
            return torch.ones(leading, dtype=torch.bool, device=value.device)
        return self._real.holds(value[..., : self._dim])

    def log_joint(self, value: Tensor) -> Tensor:
        r"""Log p(x) q(x) of points, in float64, as if there were no inequalities.

        Minus infinity for points that miss observed values or equations.
        """
        law = self._law
        value = check_value(self, value, like=law.log_weight)
        real = value[..., : self._dim]
        count = math.prod(value.shape[:-1])
        categories = value[..., self._dim :].long()
        flat = real.reshape(count, self._dim)
        columns = law.columns.split(categories.reshape(count, len(self._prior.categories)))
        rows = Rows(flat, None, columns)
        settings = self._prior.settings
        log_prob = law.log_prob(rows, max_exact=settings.max_exact, beam=settings.beam)
        log_joint = log_prob.double().reshape(value.shape[:-1]) + self._log_factor(real)
        for column, log_q in self._evidence.categorical.items():
            code = categories[..., column].expand(log_joint.shape)
            log_q = log_q.expand(*log_joint.shape, -1)
            log_joint = log_joint + log_q.gather(-1, code.unsqueeze(-1)).squeeze(-1)
        return log_joint

    def _log_factor(self, real: Tensor) -> Tensor:
        r"""Log q(x) of real columns (\*S, \*B, D), as if there were no inequalities."""
        if self._log_known is None or self._has_equations:
            return self._real.log_factor(real)
        known = self._evidence.observed, self._noisy
        told, fits = log_factor(*known, self.batch_shape, real, self._dtype)
        return torch.where(fits, told, -math.inf)

    # ---- building -----------------------------------------------------------------------------

    def _log_joint_of(self, codes: Codes, log_prior: Tensor | None = None) -> Tensor:
        """Log-weight of codes, with all but the linear evidence: shape (E or 1, C).

        Args:
            codes: The codes.
            log_prior: Log p(h) of each, if that is known, and no graph is wanted.
        """
        if log_prior is None:
            flat = codes.codes.flatten(0, 1)
            log_prior = self._law.log_prior(flat).reshape(codes.codes.shape[:-1])
        log_joint = log_prior + codes.log_weight
        if self._evidence.categorical:
            log_joint = log_joint + self._column_evidence.log_prob(codes.codes)
        return log_joint

    @cached_property
    def _column_evidence(self) -> ColumnEvidence:
        """What is known of categorical columns, with the graph that there is at construction."""
        with torch.set_grad_enabled(self._with_graph):
            categorical = self._evidence.categorical
            return ColumnEvidence(self._law.columns, categorical, self.batch_shape)

    def _column_log_probs(self, column: int) -> Tensor:
        """Log p(c, evidence on c | h) of a categorical column, shape (E or 1, C, categories)."""
        log_probs = self._law.columns.log_probs(column, self._codes.codes)
        log_q = self._evidence.categorical.get(column)
        return log_probs if log_q is None else log_probs + self._log_q(log_q)

    def _log_q(self, log_q: Tensor) -> Tensor:
        """Evidence on a column (*N, n) as (E, 1, n), or (1, 1, n) if all entries share it."""
        if log_q.dim() > 1:
            log_q = log_q.expand(*self.batch_shape, -1)
        return log_q.reshape(-1, 1, log_q.shape[-1]).to(self._law.log_weight.dtype)

    def _mixture_of(self, codes: Codes, log_joint: Tensor) -> FiniteMixture:
        """The mixture of the normals that codes stand for."""
        law = self._law
        every, logits = (
            t.reshape(*(self.batch_shape if len(t) > 1 else ()), *t.shape[1:])
            for t in (codes.codes, log_joint)
        )
        mixture = law.mixture_of(every, logits)
        mixture._validate_args = self._validate_args
        return mixture

    @torch.no_grad()
    def _spread(self) -> tuple[Tensor, Tensor]:
        """Variance of log Z between islands, and the effective sample size; shape (*B,)."""
        shape = self.batch_shape
        islands = self._codes.islands
        if islands is None:
            zero = torch.zeros(shape, dtype=torch.float64, device=self._law.log_weight.device)
            return zero, (zero + self.num_particles).to(self._law.log_weight.dtype)
        logits = self._logits if self._log_known is None else self._log_known.log_softmax(-1)
        logits = logits.double().reshape(len(islands), -1) + self._log_unions()
        weight = logits.softmax(-1).unsqueeze(1)  # (E, 1, C)
        size = max(1, BLOCK_NUMBERS // (islands.shape[-1] * max(1, self._dim)))
        blocks = (t.split(size) for t in (islands, weight, self._codes.codes))
        parts = [self._spread_of(*part) for part in zip(*blocks, strict=True)]
        variance, effective = (torch.cat(part) for part in zip(*parts, strict=True))
        return variance.reshape(shape), effective.reshape(shape).to(self._law.log_weight.dtype)

    def _log_unions(self) -> Tensor | float:
        r"""Roughly the log-probability of unions that draws will be kept of, (E, C)."""
        if not self._evidence.unions:
            return 0.0
        guide = self._evidence.with_rows_of_unions()
        codes = self._codes.codes.expand(self.batch_shape.numel(), -1, -1)
        _, rows = self._law.agreement(guide, self.batch_shape, codes)
        own = rows[..., self._evidence.num_rows :]  # the law's own rows count already
        return self._evidence.log_all(own).double()

    def _spread_of(self, islands: Tensor, weight: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Variance of log Z between islands, and the effective sample size, of some entries (e,).

        Args:
            islands: Relative weights, shape (e, islands, C).
            weight: Probabilities of codes, shape (e, 1, C).
            codes: The codes, shape (e, C, L).
        """
        size, count = self.num_particles, islands.shape[1]
        own = islands * weight  # (E, islands, C)
        share = own.sum(-1)  # of Z: mean one
        variance = share.var(-1) / count
        # How far islands disagree about the means, in units of their spread.
        loc = self._law.means_of(codes).double()
        centre = weight @ loc  # (E, 1, D)
        total = (weight @ (loc - centre).square()).squeeze(1)
        means = (own / share.clamp(min=1e-300).unsqueeze(-1)) @ (loc - centre)
        disagreement = means.square().mean(1) / (count - 1)
        # Of a column whose means differ by rounding alone, nothing is known.
        rounding = ROUNDINGS * torch.finfo(self._dtype).eps * loc.abs().amax(1)
        known = total > rounding.square().clamp(min=1e-300)
        ratio = torch.where(known, disagreement / torch.where(known, total, 1.0), 0.0)
        relative = torch.maximum(variance, ratio.sum(-1) / known.sum(-1).clamp(min=1))
        return variance, 1.0 / (1.0 / size + relative)

    def _warn(self) -> None:
        share = self.effective_sample_size / self.num_particles
        if bool((share < LOW_SHARE).any()):
            warn_user(
                f"The {self.num_particles} codes that were found are worth "
                f"{float(self.effective_sample_size.min()):.0f} independent ones: draws may miss "
                f"part of the law. Raise num_particles, or see whether the evidence contradicts "
                f"the model.",
                RuntimeWarning,
            )

    def _shown(self) -> dict[str, Any]:
        return {"exact": self.exact, "num_particles": self.num_particles}


def _fields(obj: Any) -> dict[str, Any]:
    """What a dataclass is made of, for files; gradients' short cuts are no part of it."""
    return {f.name: getattr(obj, f.name) for f in fields(obj) if f.name != "source"}


for _cls in (ShiftMixture, AffineMixture, DiagonalMap, TriangularMap, LowRankMap):
    register_part(_cls, _fields)
register_part(Columns, lambda columns: {"tables": columns.tables, "like": columns.zero})
register_part(Settings, Settings._asdict)
register_part(
    ResidualPrior,
    lambda prior: {
        "law": prior.law,
        "settings": prior.settings,
        "validate_args": prior.validate_args,
        "kept": prior.kept,
    },
)
