"""From pieces of evidence to linear statements, and to combinations of alternatives."""

__all__ = [
    "MAX_ALTERNATIVES",
    "collect",
    "collect_alternatives",
    "collect_unions",
    "combine",
    "possible",
]

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Size

from .linear import LinearEvidence
from .pieces import AnyOf, Evidence, Number, Observed

# Branches are conditioned on one by one.
MAX_ALTERNATIVES = 128

SMALLER = "Join alternatives where one box or inequality covers several, or split the question."


def collect(
    evidence: Iterable[Evidence | Mapping[int, Number]],
    dim: int,
    device: torch.device,
    categories: Sequence[int] = (),
) -> LinearEvidence:
    """Puts all that is known together. A mapping is short for `Observed`.

    Raises:
        ValueError: If a piece is no evidence, or does not fit the dimension.
    """
    known = LinearEvidence(dim, device, tuple(categories))
    for piece in evidence:
        if isinstance(piece, Mapping):
            piece = Observed(piece)
        if not isinstance(piece, Evidence):
            raise ValueError(
                f"Expected pieces of evidence such as pyromix.Box(low, high), each an argument of "
                f"its own, got {type(piece).__name__}."
            )
        piece.add_to(known)
    return known


def collect_unions(
    evidence: Iterable[Evidence | Mapping[int, Number]],
    dim: int,
    device: torch.device,
    categories: Sequence[int] = (),
) -> tuple[LinearEvidence, list[list[LinearEvidence]]]:
    """Puts all that is certain together, and collects the alternatives of every union.

    Args:
        evidence: The pieces; a mapping is short for `Observed`.
        dim: Number of real columns.
        device: Where the tensors go.
        categories: Numbers of categories of the columns that follow.

    Returns:
        What is certain, and for every `AnyOf` its alternatives, whose batch shapes broadcast.

    Raises:
        ValueError: If a piece is no evidence or does not fit the dimension or the batch.
    """
    evidence = list(evidence)
    unions = list(dict.fromkeys(piece for piece in evidence if isinstance(piece, AnyOf)))
    certain = (piece for piece in evidence if not isinstance(piece, AnyOf))
    rest = collect(certain, dim, device, categories)
    if 0 in rest.batch_shape:
        raise ValueError(
            f"Expected evidence for at least one law, got a batch of shape "
            f"{tuple(rest.batch_shape)}."
        )
    collected = [
        [collect(pieces, dim, device) for pieces in union.alternatives] for union in unions
    ]
    _batch_shape(rest, collected)
    return rest, collected


def _batch_shape(rest: LinearEvidence, unions: Sequence[Sequence[LinearEvidence]]) -> Size:
    shapes = [rest.batch_shape, *(part.batch_shape for parts in unions for part in parts)]
    try:
        return torch.broadcast_shapes(*shapes) if any(shapes) else Size()
    except RuntimeError:
        raise ValueError(
            f"Expected alternatives whose batch shapes broadcast, got "
            f"{[tuple(shape) for shape in shapes]}."
        ) from None


def combine(
    rest: LinearEvidence, unions: Sequence[Sequence[LinearEvidence]], dtype: torch.dtype
) -> list[LinearEvidence]:
    """All that is known, once for every combination of alternatives.

    Branches differ in their inequalities alone, and have the same batch shape. Two kinds are left
    out: those that contradict themselves in all the batch, as their rows show, as long as there
    is another one; and those that lie within another one, which then says the same.

    Args:
        rest: What is certain.
        unions: The alternatives of every union, of which there is at least one.
        dtype: Of observed values in the law that is conditioned.

    Returns:
        At least one alternative.
    """
    batch_shape = _batch_shape(rest, unions)
    left = possible(rest, list(itertools.product(*unions)), dtype)
    if len(left) == 1:  # as if there were no alternatives
        return [rest.join(*left[0]).expand(batch_shape)]
    kept: list[LinearEvidence] = []
    for chosen in left:
        alternative = rest.intersect(*chosen).expand(batch_shape)
        if any(_lies_within(alternative, other) for other in kept):
            continue
        kept = [other for other in kept if not _lies_within(other, alternative)]
        kept.append(alternative)
    return kept


def collect_alternatives(
    evidence: Iterable[Evidence | Mapping[int, Number]],
    dim: int,
    device: torch.device,
    categories: Sequence[int] = (),
    dtype: torch.dtype = torch.float64,
) -> list[LinearEvidence]:
    """Puts all that is known together, once for every combination of alternatives.

    See `collect_unions` and `combine`.

    Returns:
        At least one alternative; without `AnyOf` exactly one.

    Raises:
        ValueError: If a piece is no evidence or does not fit the dimension, or if there are too
            many alternatives.
    """
    rest, unions = collect_unions(evidence, dim, device, categories)
    if not unions:
        return [rest]
    counts = [len(union) for union in unions]
    if math.prod(counts) > MAX_ALTERNATIVES:
        raise ValueError(
            f"Expected at most {MAX_ALTERNATIVES} combinations of alternatives, got "
            f"{describe_counts(counts)}. {SMALLER}"
        )
    return combine(rest, unions, dtype)


def describe_counts(counts: Sequence[int]) -> str:
    """Numbers of alternatives and of their combinations, as a formula."""
    return f"{' x '.join(map(str, counts))} = {math.prod(counts)}"


def possible(
    rest: LinearEvidence, choices: Sequence[tuple[LinearEvidence, ...]], dtype: torch.dtype
) -> list[tuple[LinearEvidence, ...]]:
    """The alternatives that do not contradict the rest, as far as that is quickly seen.

    If all others do, the last one is among them unseen: the law to be built will tell.
    """
    left = [chosen for chosen in choices[:-1] if not rest.excludes(chosen, dtype)]
    if not left or not rest.excludes(choices[-1], dtype):
        left.append(choices[-1])
    return left


def _lies_within(inner: LinearEvidence, outer: LinearEvidence) -> bool:
    """Whether bounds of one alternative imply those of another, row by row, in all the batch."""
    both = inner.intersect(outer)
    if both.matrix[0].shape != inner.matrix[0].shape:
        return False  # the other one has rows of its own
    return torch.equal(both.low[0], inner.low[0]) and torch.equal(both.high[0], inner.high[0])
