"""Laws given that at least one of several constraints holds."""

__all__ = ["Branch", "UnionOfConditioned", "condition_on_branches"]

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from pyro.distributions import TorchDistribution
from torch import Size, Tensor
from torch.distributions import constraints
from torch.types import _size

from ..evidence.linear import LinearEvidence
from ..numerics.batches import choose, flat_index
from ..numerics.no_gradient import raise_on_gradient
from .truncated import ConflictError

# Beyond this many intersections that are not empty, their number may be anything up to 2^m.
MAX_INTERSECTIONS = 64
# An estimate takes rounds of draws of every branch, until it reaches the error.
WANTED_ERROR = 0.003
ROUND_DRAWS = 4096
MIN_DRAWS = 256
MAX_ROUNDS = 32
MAX_NUMBERS = 2**25
CHUNK_NUMBERS = 2**22

UNKNOWN_EVIDENCE_GRADIENT = (
    "The evidence log Z under these inequalities has no closed form, and no gradient in the "
    "parameters of the mixture and of the evidence. If none is wanted, condition within "
    "torch.no_grad(), or on a mixture whose parameters do not require gradients. If it is: the "
    "gradient of log Z is the mean of that of mixture.log_prob(x) over draws x of the conditional "
    "law."
)


class Branch(Protocol):
    r"""What a law given one branch of the evidence can do, for a union to be made of it.

    Branches of one union differ in their inequalities alone, and share batch and event shapes.
    """

    @property
    def batch_shape(self) -> Size:
        """The batch shape B."""

    @property
    def event_shape(self) -> Size:
        """The event shape (D,)."""

    def log_normalizer(self) -> tuple[Tensor, Tensor]:
        r"""Log Z of shape (\*B,) and its standard error, in float64.

        Minus infinity for entries of the batch whose evidence cannot hold.
        """

    def log_joint(self, value: Tensor) -> Tensor:
        r"""Log p(x) q(x) in float64 of points (\*S, \*B, D), as if there were no inequalities."""

    def draw(self, entry: Tensor) -> Tensor:
        """Draws (n, D) of the laws at entries (n,) of the flattened batch."""


class UnionOfConditioned(TorchDistribution):
    r"""A law within a union of regions, :math:`p(x) q(x) \, 1[x \in A_1 \cup \dots \cup A_m] / Z`.

    A draw comes from a branch, with probability proportional to its evidence, and is accepted
    with one over the number of branches that it lies in (Karp and Luby 1983): draws are exact,
    wherever those of the branches are, and independent.

    Z is a sum over branches and their intersections, by inclusion and exclusion: in closed form
    where those are. Where more than 64 intersections are not empty, or their errors add up to
    more than 0.01, it is also estimated, as :math:`\sum_b Z_b E_b[1 / \text{count}(x)]`, once, at
    construction, with PyTorch's global random state; the smaller error decides. `log_prob` is
    deterministic, and differentiable as those of the branches are, unless log Z was estimated.

    Args:
        make: Builds the law given a branch of the evidence; raises `ConflictError` if it cannot
            hold for any entry of the batch.
        evidence: The branches, which can hold.
        laws: Their laws.
        dtype: Of draws and results.

    Attributes:
        branches: The laws given each branch.

    Raises:
        ValueError: If no branch can hold at an entry of the batch.
    """

    arg_constraints = {}  # noqa: RUF012
    has_rsample = False

    def __init__(
        self,
        make: Callable[[LinearEvidence], Branch],
        evidence: Sequence[LinearEvidence],
        laws: Sequence[Branch],
        dtype: torch.dtype,
    ) -> None:
        self.branches = tuple(laws)
        super().__init__(laws[0].batch_shape, laws[0].event_shape, validate_args=False)
        self._dtype = dtype
        self._regions = [self._region(known) for known in evidence]
        normalizers = [law.log_normalizer() for law in laws]
        self._log_weight = torch.stack([z for z, _ in normalizers], -1)  # (*B, branches)
        self._weight_error = torch.stack([error for _, error in normalizers], -1)
        impossible = self._log_weight.isneginf().all(-1)
        if bool(impossible.any()):
            raise ConflictError(
                f"Expected alternatives of which one can hold, but {int(impossible.sum())} of "
                f"{impossible.numel()} entries of the batch contradict all."
            )
        self._log_total, self._error = self._normalize(make, evidence)

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

    @property
    def route(self) -> tuple[Any, ...]:
        """How the law given each branch is drawn and normalised."""
        return tuple(getattr(law, "route", None) for law in self.branches)

    @property
    def acceptance(self) -> Tensor:
        r"""Share of the branches' draws that are accepted, shape (\*B,): one without overlaps."""
        return (self._log_total - self._log_weight.logsumexp(-1)).exp().to(self._dtype)

    def log_evidence(self) -> tuple[Tensor, Tensor]:
        r"""Log of :math:`Z = \int p(x) q(x) dx`, and its standard error.

        Returns:
            Two tensors of shape (\*B,), in nats. The error is zero where all is in closed form.
        """
        return self._log_total.to(self._dtype), self._error.to(self._dtype)

    def sample(self, sample_shape: _size = Size()) -> Tensor:
        r"""Draws, shape (\*S, \*B, D).

        Raises:
            RuntimeError: If inequalities leave no room for numbers of the dtype.
        """
        with torch.no_grad():
            entry = self._entries(Size((*sample_shape, *self.batch_shape)))
            log_weight = self._log_weight.reshape(-1, len(self.branches))
            x = torch.empty(len(entry), *self.event_shape, dtype=self._dtype, device=entry.device)
            pending = torch.arange(len(entry), device=entry.device)
            while len(pending):  # of which at least one in as many as there are branches is done
                now = entry[pending]
                drawn = x[pending]
                chosen = choose(log_weight, now)
                for number, law in enumerate(self.branches):
                    rows = (chosen == number).nonzero().squeeze(-1)
                    if len(rows):
                        drawn[rows] = law.draw(now[rows])
                accepted = torch.rand(len(now), device=now.device) * self._count(drawn, now) < 1
                x[pending[accepted]] = drawn[accepted]
                pending = pending[~accepted]
            return x.reshape(*sample_shape, *self.batch_shape, *self.event_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        r"""Log-density of points of shape (\*S, \*B, D); shape (\*S, \*B)."""
        log_prob = self.branches[0].log_joint(value) - self._log_total
        points = value.expand(*log_prob.shape, -1).reshape(-1, value.shape[-1])
        inside = self._count(points, self._entries(log_prob.shape)) > 0
        log_prob = torch.where(inside.reshape(log_prob.shape), log_prob, -math.inf)
        return log_prob.to(self._dtype)

    # ---- building -----------------------------------------------------------------------------

    def _entries(self, leading: Size) -> Tensor:
        """The entry of the flattened batch that each point of shape (*S, *B) belongs to."""
        return flat_index(self.batch_shape, leading, self._regions[0].matrix.device)

    def _region(self, known: LinearEvidence) -> "_Region":
        matrix, low, high = known.inequalities(self.batch_shape)
        low, high = (t.reshape(-1, len(matrix)).to(self._dtype) for t in (low, high))
        return _Region(matrix.to(self._dtype), low, high)

    def _count(self, x: Tensor, entry: Tensor) -> Tensor:
        """In how many of the branches points (n, D) lie."""
        count = torch.zeros(len(x), dtype=torch.long, device=x.device)
        for matrix, low, high in self._regions:
            rows = x[:, : matrix.shape[-1]] @ matrix.mT  # categorical columns follow
            count += ((rows >= low[entry]) & (rows <= high[entry])).all(-1)
        return count

    def _normalize(
        self, make: Callable[[LinearEvidence], Branch], evidence: Sequence[LinearEvidence]
    ) -> tuple[Tensor, Tensor]:
        """Log Z and its standard error, the best that can be had."""
        summed = self._include_and_exclude(make, evidence)
        if summed is not None and bool((summed[1] <= 0.01).all()):
            return summed
        log_total, error = self._estimate()
        if summed is not None:
            better = error < summed[1]
            log_total = torch.where(better, log_total, summed[0])
            error = torch.where(better, error, summed[1])
        log_total = raise_on_gradient(
            log_total, self._log_weight, message=UNKNOWN_EVIDENCE_GRADIENT
        )
        return log_total, error

    def _include_and_exclude(
        self, make: Callable[[LinearEvidence], Branch], evidence: Sequence[LinearEvidence]
    ) -> tuple[Tensor, Tensor] | None:
        """Sums over intersections; None if there are too many."""
        bound = self._log_weight.logsumexp(-1)  # all terms are measured by it
        share = (self._log_weight - bound.unsqueeze(-1)).exp()
        total, square = share.sum(-1), (share.detach() * self._weight_error).square().sum(-1)
        for number, (chosen, law) in enumerate(_intersections(make, evidence)):
            if number == MAX_INTERSECTIONS:
                return None
            log_weight, error = law.log_normalizer()
            term = (log_weight - bound).exp()
            total = total + (term if len(chosen) % 2 else -term)
            square = square + (term.detach() * error).square()
        # Estimates may stray: the union is at least as likely as any branch.
        total = torch.maximum(total, share.amax(-1)).clamp(max=1.0)
        return bound + total.log(), square.sqrt() / total.detach()

    @torch.no_grad()
    def _estimate(self) -> tuple[Tensor, Tensor]:
        """The branches' evidence, each times the mean of one over the count in its draws."""
        num = len(self.branches)
        share = self._log_weight.softmax(-1).reshape(-1, num)  # (entries, branches)
        weight_error = self._weight_error.reshape(-1, num)
        total, squares = torch.zeros_like(share), torch.zeros_like(share)
        possible = share > 0
        draws, dim = 0, self.event_shape.numel()
        most = MAX_NUMBERS // (dim * int(possible.sum()))  # of every branch, in all rounds
        size = max(MIN_DRAWS, min(ROUND_DRAWS, most))
        chunk = max(1, CHUNK_NUMBERS // (dim * size))
        for _ in range(max(1, min(MAX_ROUNDS, most // size))):
            draws += size
            for number, law in enumerate(self.branches):
                for entries in possible[:, number].nonzero().squeeze(-1).split(chunk):
                    entry = entries.repeat_interleave(size)
                    count = self._count(law.draw(entry), entry).clamp(min=1)
                    inverse = count.double().reciprocal().reshape(len(entries), size)
                    total[entries, number] += inverse.sum(-1)
                    squares[entries, number] += inverse.square().sum(-1)
            mean = total / draws
            # As if one more draw had met an overlap: none seen does not mean that there is none.
            spread = ((squares / draws - mean.square()).clamp(min=0.0) + 0.25 / draws) / draws
            covered = (share * mean).sum(-1)
            error = (share.square() * (spread + (mean * weight_error).square())).sum(-1).sqrt()
            drawing_error = (share.square() * spread).sum(-1).sqrt() / covered
            if bool((drawing_error <= WANTED_ERROR).all()):
                break
        log_total = self._log_weight.logsumexp(-1) + covered.log().reshape(self.batch_shape)
        return log_total, (error / covered).reshape(self.batch_shape)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(branches={len(self.branches)}, "
            f"batch_shape={tuple(self.batch_shape)}, event_shape={tuple(self.event_shape)})"
        )


def condition_on_branches(
    make: Callable[[LinearEvidence, bool], Branch],
    branches: Sequence[LinearEvidence],
    dtype: torch.dtype,
) -> "Branch | UnionOfConditioned":
    """The law given branches of evidence, of which at least one holds.

    Args:
        make: Builds the law given a branch, and whether entries of the batch may contradict
            themselves: then their evidence is zero, and `ConflictError` is raised only if all do.
        branches: See `pyromix.evidence.collect_branches`.
        dtype: Of draws and results.

    Returns:
        What `make` builds, if one branch is left: those that cannot hold drop out.

    Raises:
        ValueError: If no branch can hold, in all the batch or at an entry of it.
    """
    if len(branches) == 1:
        return make(branches[0], False)
    kept, laws, first = [], [], None
    for known in branches:
        law, conflict = _try(lambda known: make(known, True), known)
        first = first or conflict
        if law is not None:
            kept.append(known)
            laws.append(law)
    if not laws:
        raise ConflictError(
            f"Expected alternatives of which one can hold, but all {len(branches)} contradict "
            f"themselves or the other evidence. The first says: {first}"
        )
    if len(laws) == 1:
        return make(kept[0], False)
    return UnionOfConditioned(lambda known: make(known, True), kept, laws, dtype)


class _Region(NamedTuple):
    """Where a branch holds, in the dtype of draws."""

    matrix: Tensor
    """Shape (p, D)."""
    low: Tensor
    """Shape (entries, p)."""
    high: Tensor


def _try(
    make: Callable[[LinearEvidence], Branch], known: LinearEvidence
) -> tuple[Branch | None, ConflictError | None]:
    """The law given a branch, or why it cannot hold."""
    matrix, low, high = known.inequalities(known.batch_shape)
    if len(matrix) and bool((low >= high).any(-1).all()):
        return None, ConflictError("Expected inequalities that leave room, but two contradict.")
    try:
        return make(known), None
    except ConflictError as conflict:
        return None, conflict


def _intersections(
    make: Callable[[LinearEvidence], Branch], evidence: Sequence[LinearEvidence]
) -> Iterator[tuple[tuple[int, ...], Branch]]:
    """The laws within two branches and more at once, where that is possible."""
    level: set[tuple[int, ...]] = {(number,) for number in range(len(evidence))}
    while level:
        above: set[tuple[int, ...]] = set()
        for chosen in sorted(level):
            for number in range(chosen[-1] + 1, len(evidence)):
                wanted = (*chosen, number)
                # Every part of an intersection that is not empty is not empty.
                parts = (wanted[:i] + wanted[i + 1 :] for i in range(len(wanted)))
                if not all(part in level for part in parts):
                    continue
                first, *others = (evidence[i] for i in wanted)
                law, _ = _try(make, first.intersect(*others))
                if law is not None:
                    above.add(wanted)
                    yield wanted, law
        level = above
