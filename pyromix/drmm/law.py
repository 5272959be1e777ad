r"""The law of a deep residual mixture, for given tensors.

Layer l has K components, and draws a code from them given those of the layers before,

.. math::
    p(h_l = k \mid h_{<l}) = \operatorname{softmax}_k \Big(\log w_l[k]
        + \sum_{c < l} \log p_{lc}[k, h_c]\Big), \qquad
    x \mid h \sim N(m(h), \Sigma(h)),

which makes :math:`p(x)` a normalised mixture of :math:`K^L` normals. Its density is summed over
all codes where they are few, and else over those that a beam search through the layers finds.
Where entries are missing, what is known may leave far more codes likely than a beam holds. Then
few of many codes are kept, as often as they are likely, and count for those that were left out.

What normal a code stands for is up to the layers: `pyromix.drmm.shifts` and
`pyromix.drmm.affine`.
"""

__all__ = ["LinearObservations", "ResidualMixture"]

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Size, Tensor

from ..core.checks import is_traced
from ..evidence.linear import LinearEvidence
from ..mixtures.finite import FiniteMixture
from ..numerics.diagonal_density import log_sum_exp
from .columns import Columns
from .links import select, stacked_rows, sum_rows, sum_rows_of_layers
from .prefix import Prefix
from .rows import Rows
from .steering import Steering
from .thinning import INFLATIONS, thin

LinearObservations = tuple[Tensor, Tensor, Tensor]

# Points are worked on in blocks with no more scores of components than this at once.
BLOCK_SCORES = 2**22

# Points with gaps are searched with a wider beam, where the codes that a beam keeps for certain
# have less than this share of what they have been scored.
CERTAIN = 0.99

# Where systematic sampling starts in the first layer, and how far that moves from layer to layer.
START, GOLDEN = 0.5, 0.6180339887


@dataclass(kw_only=True)
class ResidualMixture(ABC):
    """Tensors of a deep residual mixture with L layers of K components in D dimensions.

    Subclasses say what a layer does to what the ones before leave of a point, and so what normal
    a code stands for.
    """

    log_weight: Tensor
    """Log w_l[k], shape (L, K)."""
    links: Tensor
    """Log p_lc[k, j], shape (L (L - 1) / 2 K, K): row j, column k of the tables of the pairs
    (1, 0), (2, 0), (2, 1), ... of layers (l, c), one below the other."""
    columns: Columns
    """Tables of categorical columns."""
    source: tuple[Tensor, float] | None = None
    """Logits and smoothing that `links` were made of, for gradients that take a short cut."""
    log_truncation: float = -math.inf
    """Codes less likely than the likeliest by more than this, given those before, do not occur."""

    wider: ClassVar[int] = 64
    """Points with gaps are searched with a beam of up to so many times the width."""
    search_inflations: ClassVar[tuple[float, ...]] = (1.0,)
    """Factors of the standard deviations by which prefixes are judged in a search."""

    @property
    def num_layers(self) -> int:
        """Number of layers L."""
        return self.log_weight.shape[0]

    @property
    def num_components(self) -> int:
        """Number of components K of a layer."""
        return self.log_weight.shape[1]

    @property
    @abstractmethod
    def units(self) -> Tensor:
        """About how far points lie from what codes stand for, column by column, shape (D,)."""

    @property
    def num_codes(self) -> int:
        """Number of combinations of codes, K^L."""
        return int(self.num_components**self.num_layers)

    # ---- what a code stands for ---------------------------------------------------------------

    @property
    @abstractmethod
    def dim(self) -> int:
        """Number of real columns D."""

    @property
    def correlates(self) -> bool:
        """Whether real columns depend on each other, given a code."""
        return False

    @abstractmethod
    def map_tensors(self, function: Callable[[Tensor], Tensor]) -> "ResidualMixture":
        """The law with every tensor passed through a function."""

    @abstractmethod
    def shallow(self, num_layers: int) -> "ResidualMixture":
        """The law of the first layers, with what they leave as the noise."""

    @abstractmethod
    def mean_of(self, codes: Tensor) -> Tensor:
        """Means of the normals that codes (n, L) stand for, shape (n, D)."""

    @abstractmethod
    def mixture_of(self, codes: Tensor, logits: Tensor) -> FiniteMixture:
        r"""The mixture of the normals that codes (\*E, C, L) stand for, with logits (\*E, C)."""

    @abstractmethod
    def _draw_real(self, codes: Tensor, rows: Rows | None) -> Tensor:
        """Draws of the real columns (n, D), given codes (n, L) and what is known of n rows."""

    @abstractmethod
    def draw_known(
        self, codes: Tensor, columns: list[int], value: Tensor, noisy: LinearObservations
    ) -> Tensor:
        """Draws of the real columns (n, D), given codes and what was observed.

        Args:
            codes: Shape (n, L).
            columns: Columns that were observed.
            value: Their values, shape (n, columns).
            noisy: Observations with noise: A (q, D), y (n, q) and the noise's covariance (q, q).
        """

    @abstractmethod
    def moments_known(
        self, codes: Tensor, columns: list[int], value: Tensor, noisy: LinearObservations
    ) -> tuple[Tensor, Tensor]:
        """Means and variances of the real columns, given codes and what was observed.

        Args:
            codes: Shape (n, L).
            columns: Columns that were observed.
            value: Their values, shape (n, columns).
            noisy: As for `draw_known`.

        Returns:
            Two tensors of shape (n, D), in float64.
        """

    def means_of(self, codes: Tensor) -> Tensor:
        """Means of the normals that codes (E, C, L) stand for, shape (E, C, D)."""
        return self.mean_of(codes.flatten(0, 1)).reshape(*codes.shape[:2], self.dim)

    @abstractmethod
    def _means_given(self, codes: Tensor, weight: Tensor, rows: Rows | None) -> Tensor:
        """Means of the real columns (n, D); see `expected`."""

    @abstractmethod
    def prefix(self, rows: Rows, count: int = 1) -> Prefix:
        """The prefix before the first layer, so many times for every point."""

    @abstractmethod
    def normal_fits(self, prefix: Any, rows: Rows, inflations: Sequence[float]) -> Tensor:
        """Log-densities of the real columns given every component of a layer, (S, N, B, K).

        As if the layer were the last; see `fits_of`.
        """

    @abstractmethod
    def joint_of(self, codes: Tensor, rows: Rows) -> Tensor:
        """Log p(h, x) of codes (N, B, L - 1) of points with all codes of the last layer.

        Returns:
            Tensor of shape (N, B, K).
        """

    @abstractmethod
    def steered_by(
        self, evidence: LinearEvidence, batch_shape: Size, entries: slice, populations: int
    ) -> Steering:
        """Populations of prefixes before the first layer, to be steered by evidence.

        Args:
            evidence: The evidence.
            batch_shape: Its shape.
            entries: Entries of the flattened batch.
            populations: Their number, all entries together.
        """

    @abstractmethod
    def agreement(
        self, evidence: LinearEvidence, batch_shape: Size, codes: Tensor
    ) -> tuple[Tensor, Tensor]:
        """How well codes (E, C, L) of entries agree with linear evidence.

        Returns:
            Log-densities of what was observed, (E, C), and log-probabilities of every inequality,
            given that, (E, C, p).
        """

    def evidence_cost(self, evidence: LinearEvidence) -> int:  # noqa: ARG002
        """How many numbers are kept for a score of evidence."""
        return 1

    @abstractmethod
    def _exact_joints(self, rows: Rows) -> Iterator[Tensor]:
        """Log p(h, x) of N points and all C codes, block by block of points: (n, C)."""

    def _column_tables(self, codes: Tensor) -> tuple[Tensor, ...]:
        """Log-probabilities of categories under codes (C, L), (C, J, n) by table."""
        return tuple(logits.log_softmax(-1) for logits in self.columns.logits(codes))

    def cost(self, rows: Rows) -> int:  # noqa: ARG002
        """How many numbers are kept for a score of a component at a point."""
        return max(1, self.columns.cost)

    def _mapped(self, function: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        """What all laws have in common, with every tensor passed through a function."""
        weight = function(self.log_weight)
        return {
            "log_weight": weight,
            "links": function(self.links),
            "columns": self.columns.map_tensors(function, weight),
            "source": None,
        }

    def _first(self, num_layers: int) -> dict[str, Any]:
        """What all laws have in common, of the first layers."""
        return {
            "log_weight": self.log_weight[:num_layers],
            "links": self.links[: num_layers * (num_layers - 1) // 2 * self.num_components],
            "columns": self.columns.map_tensors(lambda t: t[:num_layers], self.log_weight),
            "source": None,
        }

    # ---- codes ----------------------------------------------------------------------------

    def link_rows(self, layer: int, codes: Tensor) -> Tensor:
        """Rows of `links` that codes (n, l) of the layers before select for a layer."""
        return stacked_rows(codes[:, :layer], self.num_components) + (
            layer * (layer - 1) // 2 * self.num_components
        )

    def select_links(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Entries of `links`, of any shape; differentiable once, if there is a `source`."""
        if self.source is None:
            return self.links[rows, columns]
        return select(*self.source, self.links, rows, columns)

    def log_conditional(self, layer: int, codes: Tensor) -> Tensor:
        """Log p(h_l = k | h_<l), shape (n, K), given codes (n, l)."""
        return self._normalize(layer, sum_rows(self.links, self.link_rows(layer, codes)))

    def log_conditionals(self, codes: Tensor) -> list[Tensor]:
        """Log p(h_c = k | h_<c) of layers 0 to l, given codes (n, l): l + 1 tensors (n, K)."""
        first = self.log_weight.new_zeros(len(codes), 1)
        count = codes.shape[-1]
        rows = [self.link_rows(layer, codes) for layer in range(1, count + 1)]
        scores = [first, *(sum_rows_of_layers(self.links, rows) if rows else ())]
        return [self._normalize(layer, score) for layer, score in enumerate(scores)]

    def log_prior(self, codes: Tensor) -> Tensor:
        """Log p(h) of codes (n, L); shape (n,)."""
        conditionals = torch.stack(self.log_conditionals(codes[:, :-1]), 1)  # (n, L, K)
        return conditionals.gather(-1, codes.unsqueeze(-1)).squeeze(-1).sum(-1)

    def _log_prior_before_last(self, codes: Tensor) -> Tensor:
        """Log p(h) of codes (n, L - 1) with all codes of the last layer, shape (n, K)."""
        *conditionals, log_prior = self.log_conditionals(codes)
        for layer, conditional in enumerate(conditionals):
            log_prior = log_prior + conditional.gather(-1, codes[:, layer : layer + 1])
        return log_prior

    def _normalize(self, layer: int, link_scores: Tensor) -> Tensor:
        scores = self.log_weight[layer] + link_scores
        if self.log_truncation > -math.inf:
            lowest = scores.detach().amax(-1, keepdim=True) + self.log_truncation
            scores = scores.masked_fill(scores.detach() < lowest, -math.inf)
        return scores.log_softmax(-1)

    def sample_codes(self, count: int) -> Tensor:
        """Draws codes (n, L), layer by layer."""
        codes = torch.zeros(count, 0, dtype=torch.long, device=self.log_weight.device)
        for layer in range(self.num_layers):
            probs = self.log_conditional(layer, codes).exp()
            codes = torch.cat([codes, torch.multinomial(probs, 1)], -1)
        return codes

    def all_codes(self) -> tuple[Tensor, Tensor]:
        """All K^L combinations of codes (C, L), and log p(h), shape (C,)."""
        device = self.log_weight.device
        codes = torch.zeros(1, 0, dtype=torch.long, device=device)
        log_prob = self.log_weight.new_zeros(1)
        each = torch.arange(self.num_components, device=device)
        for layer in range(self.num_layers):
            log_prob = (log_prob.unsqueeze(-1) + self.log_conditional(layer, codes)).flatten()
            codes = torch.cat(
                [
                    codes.repeat_interleave(self.num_components, 0),
                    each.repeat(len(codes)).unsqueeze(-1),
                ],
                -1,
            )
        return codes, log_prob

    # ---- draws ----------------------------------------------------------------------------

    def draw_with_score(self, count: int) -> tuple[Tensor, Tensor]:
        """Draws of real columns (n, D) with a gradient given their codes, and log p(h), (n,)."""
        with torch.no_grad():
            codes = self.sample_codes(count)
        return self._draw_real(codes, None), self.log_prior(codes)

    @torch.no_grad()
    def sample(self, count: int) -> Tensor:
        """Draws (n, D + number of categorical columns)."""
        return self.draw_given(self.sample_codes(count))

    @torch.no_grad()
    def draw_given(self, codes: Tensor, rows: Rows | None = None) -> Tensor:
        """Draws given codes: shape (n, D + number of categorical columns).

        Args:
            codes: Shape (n, L).
            rows: What is known of the n draws; entries that are known may be drawn all the same.
        """
        real = self._draw_real(codes, rows)
        return torch.cat([real, self.columns.draw(codes, lambda *_: None)], -1)

    # ---- densities ------------------------------------------------------------------------

    def log_prob(self, rows: Rows, *, max_exact: int, beam: int) -> Tensor:
        """Log-density of N points, shape (N,), exact with up to so many codes."""
        if self.num_codes <= max_exact:
            return self.exact_log_prob(rows)
        order, parts = [torch.arange(0, device=rows.real.device)], [rows.real.new_zeros(0)]
        for index, joint, _ in self.joint_blocks(rows, beam, start=START, wider=self.wider):
            order.append(index)
            parts.append(log_sum_exp(joint.flatten(1)))
        return torch.cat(parts)[torch.cat(order).argsort()]

    def exact_log_prob(self, rows: Rows) -> Tensor:
        """Log-density summed over all codes, shape (N,)."""
        return torch.cat([log_sum_exp(joint) for joint in self._exact_joints(rows)])

    def joint_blocks(
        self, rows: Rows, beam: int, *, start: float | None, wider: int
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Log p(h, x) of codes that stand for all, block by block of points.

        Of points without gaps these are codes that a beam search finds. Of others they are a
        sample, with log-probabilities for all that each of them stands for: their sum is an
        unbiased estimate of the density if `start` is random. Where the codes that a beam keeps
        for certain have too little of the score, it is made wider.

        Args:
            rows: The points.
            beam: Codes that are kept from layer to layer.
            start: Where sampling starts; None for a random number. See `thin`.
            wider: How many times as wide the beam is made.

        Yields:
            Indices (n,) of points, log-probabilities, shape (n, B, K), and the codes of the first
            layers (n, B, L - 1). With them go all codes of the last layer.
        """
        complete, gaps = self._sort(rows)
        for index, block in self._split(rows, complete, beam):
            codes = self.search(block, beam)
            yield index, self.joint_of(codes, block), codes
        if wider > 1 and not is_traced():
            waiting = [gaps[:0]]
            for index, block in self._split(rows, gaps, beam):
                codes, log_weight, certain = self.sample_codes_given(block, beam, start)
                good = certain > CERTAIN
                waiting.append(index[~good])
                codes, log_weight = codes[good], log_weight[good]
                if len(codes):
                    joint = self.joint_of(codes, rows.take(index[good]))
                    yield index[good], joint + log_weight.unsqueeze(-1), codes
            gaps = torch.cat(waiting)
        for index, block in self._split(rows, gaps, wider * beam):
            codes, log_weight, _ = self.sample_codes_given(block, wider * beam, start)
            yield index, self.joint_of(codes, block) + log_weight.unsqueeze(-1), codes

    def _sort(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Indices of points without gaps, and with gaps."""
        every = torch.arange(len(rows.real), device=rows.real.device)
        if is_traced():  # no choices by values
            return (every, every[:0]) if rows.observed is None else (every[:0], every)
        complete = rows.complete
        return (every, every[:0]) if bool(complete.all()) else (every[complete], every[~complete])

    def _split(self, rows: Rows, index: Tensor, width: int) -> Iterator[tuple[Tensor, Rows]]:
        """Blocks of the points at indices, small enough for a beam of some width."""
        size = max(1, BLOCK_SCORES // (width * self.num_components * self.cost(rows)))
        count = len(rows.real)
        for part in index.split(size) if len(index) else ():
            whole = len(part) == count and (
                is_traced() or torch.equal(part, torch.arange(count, device=part.device))
            )
            yield part, rows if whole else rows.take(part)

    def beam_joint(self, rows: Rows, width: int) -> tuple[Tensor, Tensor]:
        """Log p(h, x) of the codes that a beam search finds, with all codes of the last layer.

        Returns:
            Joint log-probabilities, shape (N, B, K), and codes of the first layers (N, B, L - 1).
        """
        codes = self.search(rows, width)
        return self.joint_of(codes, rows), codes

    def search(self, rows: Rows, width: int) -> Tensor:
        """The best codes of the first L - 1 layers, kept layer by layer; shape (N, B, L - 1).

        A prefix of codes is scored by log p(h_<=l), plus the log-density of the point if the
        layers so far were all, with the inner scale for noise.
        """
        # Not a decorator, which torch.compile does not take on a method.
        with torch.no_grad():
            return self._search(rows, width)

    def _search(self, rows: Rows, width: int) -> Tensor:
        n, k = len(rows.real), self.num_components
        prefix = self.prefix(rows)
        log_prior = self.log_weight.new_zeros(n, 1)
        for layer in range(self.num_layers - 1):
            count = prefix.codes.shape[1]
            joint = self.log_conditional(layer, prefix.codes.flatten(0, 1)).reshape(n, count, k)
            joint = joint + log_prior.unsqueeze(-1)
            score = joint + self.fits_of(prefix, rows, self.search_inflations).logsumexp(0)
            best = score.flatten(1).topk(min(width, count * k), -1, sorted=False).indices
            log_prior = joint.flatten(1).gather(-1, best)
            prefix = prefix.take(best // k).extend(best % k)
        return prefix.codes

    @torch.no_grad()
    def sample_codes_given(
        self, rows: Rows, width: int, start: float | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Keeps some codes of the first L - 1 layers, as often as points make them likely.

        Args:
            rows: N points.
            width: Number B of codes that are kept from layer to layer.
            start: Where sampling starts in the first layer, or None for random numbers.

        Returns:
            Codes, shape (N, B, L - 1); the logarithm of how many codes each stands for, (N, B);
            and the share of the score that is in codes that were kept for certain, in the layer
            where it is least, (N,).
        """
        n, k = len(rows.real), self.num_components
        prefix = self.prefix(rows)
        log_prior = log_weight = self.log_weight.new_zeros(n, 1)
        certain = self.log_weight.new_ones(n)
        for layer in range(self.num_layers - 1):
            count = prefix.codes.shape[1]
            joint = self.log_conditional(layer, prefix.codes.flatten(0, 1)).reshape(n, count, k)
            joint = joint + log_prior.unsqueeze(-1)
            factors, shares = zip(*INFLATIONS, strict=True)
            log_share = joint.new_tensor(shares).log().reshape(-1, 1, 1, 1)
            fit = (self.fits_of(prefix, rows, factors) + log_share).logsumexp(0)
            score = (joint + fit + log_weight.unsqueeze(-1)).flatten(1)
            place = None if start is None else (start + layer * GOLDEN) % 1.0
            index, log_inclusion = thin(score, width, place)
            kept = score.gather(1, index).masked_fill(log_inclusion != 0, -math.inf)
            share = (kept.logsumexp(1) - score.logsumexp(1)).exp()
            certain = torch.minimum(certain, share)
            log_prior = joint.flatten(1).gather(1, index)
            log_weight = log_weight.gather(1, index // k) - log_inclusion
            prefix = prefix.take(index // k).extend(index % k)
        return prefix.codes, log_weight, certain

    def fits_of(self, prefix: Prefix, rows: Rows, inflations: Sequence[float]) -> Tensor:
        """Log-densities of points given every component of a layer, were it the last.

        Args:
            prefix: Codes of the layers before, B for each point.
            rows: The points.
            inflations: Factors of the standard deviations, S of them.

        Returns:
            Tensor of shape (S, N, B, K).
        """
        scores = self.normal_fits(prefix, rows, inflations)
        return scores + self.columns.score(prefix.layer, prefix.logits, rows.columns)

    def fit_of(self, prefix: Prefix, rows: Rows) -> Tensor:
        """Log-density of points given every component of a layer, were it the last: (N, B, K)."""
        return self.fits_of(prefix, rows, (1.0,))[0]

    @torch.no_grad()
    def importance_log_prob(self, rows: Rows, count: int) -> Tensor:
        """Log of an unbiased estimate of the density of N points, shape (N,).

        Codes of the first layers are proposed one after the other, in proportion to what they
        contribute if the residual is noise of the inner scale, or of twice that: a heavier tail
        keeps weights bounded. All codes of the last layer are summed over.
        """
        n, k = len(rows.real), self.num_components
        prefix = self.prefix(rows, count)
        log_weight = self.log_weight.new_zeros(n * count)
        for layer in range(self.num_layers):
            log_prior = self.log_conditional(layer, prefix.codes.flatten(0, 1))
            if layer == self.num_layers - 1:
                fit = self.fit_of(prefix, rows).reshape(-1, k)
                log_weight = log_weight + log_sum_exp(log_prior + fit)
                break
            fit = torch.logaddexp(*self.fits_of(prefix, rows, (1.0, 2.0))).reshape(-1, k)
            # A point so far away that all fits underflow is proposed codes of the prior.
            fit = torch.where(fit.amax(-1, keepdim=True) > -math.inf, fit, 0.0)
            proposal = (log_prior + fit).log_softmax(-1)
            chosen = torch.multinomial(proposal.exp(), 1)
            gain = log_prior.gather(-1, chosen) - proposal.gather(-1, chosen)
            log_weight = log_weight + gain.squeeze(-1)
            prefix = prefix.extend(chosen.reshape(n, count))
        return log_weight.reshape(n, count).logsumexp(-1) - math.log(count)

    def posterior_blocks(
        self, rows: Rows, *, max_exact: int, beam: int
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """What N points say about their codes, block by block of points.

        Yields:
            Indices (n,) of points, probabilities of codes, shape (n, M), and the codes, shape
            (n or 1, M, L): all of them, or such as `joint_blocks` finds.
        """
        if self.num_codes <= max_exact:
            codes, _ = self.all_codes()
            first = 0
            for joint in self._exact_joints(rows):
                index = torch.arange(first, first + len(joint), device=joint.device)
                first += len(joint)
                yield index, joint.softmax(-1), codes.unsqueeze(0)
            return
        last = torch.arange(self.num_components, device=self.log_weight.device)
        for index, joint, prefix in self.joint_blocks(rows, beam, start=START, wider=self.wider):
            n, width, k = joint.shape
            codes = torch.cat(
                [
                    prefix.unsqueeze(2).expand(-1, -1, k, -1),
                    last.reshape(1, 1, k, 1).expand(n, width, -1, -1),
                ],
                -1,
            )
            yield index, joint.flatten(1).softmax(-1), codes.flatten(1, 2)

    def expected(self, weight: Tensor, codes: Tensor, rows: Rows | None = None) -> Tensor:
        """Means of real columns and likeliest categories, given weights of codes.

        Args:
            weight: Shape (n, M).
            codes: Shape (n or 1, M, L).
            rows: What is known of the n rows, which have these weights given that; entries that
                are known may have any value in the result.

        Returns:
            Tensor of shape (n, D + number of categorical columns).
        """
        values = [self._means_given(codes, weight, rows)]
        if len(self.columns):
            values.append(self._likeliest_categories(weight, codes).to(weight))
        return torch.cat(values, -1)

    def _likeliest_categories(self, weight: Tensor, codes: Tensor) -> Tensor:
        """Likeliest categories of all columns, (n, columns); see `expected`."""
        shared = len(codes) == 1
        if not shared:
            # Of each row's own codes those whose weights rounding does not lose.
            least = weight.amax(1, keepdim=True) * torch.finfo(weight.dtype).eps
            row, column = (weight > least).nonzero(as_tuple=True)
            codes, weight, count = codes[row, column], weight[row, column], len(weight)
        found = []
        for columns, _, _ in self.columns.blocks(codes.shape[-2]):
            (logits,) = columns.logits(codes.reshape(-1, self.num_layers))
            probs = logits.softmax(-1)  # (M, J, n)
            if shared:
                total = weight @ probs.flatten(1)
            else:
                own = weight.unsqueeze(-1) * probs.flatten(1)
                total = own.new_zeros(count, own.shape[-1]).index_add_(0, row, own)
            found.append(total.unflatten(-1, probs.shape[1:]).argmax(-1))
        return torch.cat(found, -1)

    def category_probs(self, weight: Tensor, codes: Tensor, column: int) -> Tensor:
        """Probabilities of a column's categories, (n, categories), given weights of codes.

        Args:
            weight: Shape (n, M).
            codes: Shape (n or 1, M, L).
            column: Number of the categorical column, from zero.
        """
        return (weight.unsqueeze(1) @ self.columns.log_probs(column, codes).exp()).squeeze(1)

    # ---- encodings ------------------------------------------------------------------------

    def encode(self, rows: Rows, width: int) -> Tensor:
        """The likeliest codes that a beam search finds, shape (N, L)."""
        parts = []
        size = max(1, BLOCK_SCORES // (width * self.num_components * self.cost(rows)))
        for block in rows.split(size):
            joint, codes = self.beam_joint(block, width)
            best = joint.flatten(1).argmax(-1)
            beam, last = best // self.num_components, best % self.num_components
            prefix = codes[torch.arange(len(codes), device=codes.device), beam]
            parts.append(torch.cat([prefix, last.unsqueeze(-1)], -1))
        return torch.cat(parts)

    def decode(self, codes: Tensor) -> Tensor:
        """Means of real columns and likeliest values of categorical ones: (n, D + columns)."""
        values = [self.mean_of(codes)]
        for columns, _, _ in self.columns.blocks(len(codes)):
            (logits,) = columns.logits(codes)
            values.append(logits.argmax(-1).to(self.log_weight))
        return torch.cat(values, -1)
