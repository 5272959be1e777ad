"""Batches of points and of components, arranged for matrix products."""

__all__ = [
    "RowLayout",
    "by_pattern",
    "check_weight_and_mean_values",
    "check_weights_and_means",
    "choose",
    "common_batch_shape",
    "draw_components",
    "extremes",
    "flat_index",
    "grouped_products",
    "pick",
    "stack_observed",
]

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Size, Tensor
from torch.distributions import Categorical

from ..core.checks import check_tensor


def draw_components(weights: Categorical, sample_shape: Sequence[int]) -> Tensor:
    r"""Draws of which component, shape (\*S, \*B), given weights of batch shape B.

    There may be none to draw, which PyTorch's own draws refuse.
    """
    shape = Size((*sample_shape, *weights.batch_shape))
    if shape.numel() == 0:
        return torch.empty(shape, dtype=torch.long, device=weights.probs.device)
    return weights.sample(Size(sample_shape))


class RowLayout:
    """Splits leading dimensions into those in which components differ and all others.

    The others, and the samples, become the rows of one matrix product for each entry of the first.

    Args:
        leading: Shape of samples and batch together.
        own: Batch shape that the components' tensors really have; it expands to `leading`.
    """

    def __init__(self, leading: Sequence[int], own: Sequence[int]) -> None:
        self.leading = Size(leading)
        self.own = Size((*[1] * (len(leading) - len(own)), *own))
        self._kept = [i for i, size in enumerate(self.own) if size != 1]
        self._rows = [i for i, size in enumerate(self.own) if size == 1]
        self.batch = Size(self.own[i] for i in self._kept)

    def rows(self, t: Tensor, tail: int = 1) -> Tensor:
        """Reshapes (*leading, *T), or what broadcasts with it, to (*batch, rows, *T)."""
        shape = t.shape[t.dim() - tail :]
        t = t.expand(*self.leading, *shape)
        after = range(t.dim() - tail, t.dim())
        t = t.permute(*self._kept, *self._rows, *after)
        count = Size(self.leading[i] for i in self._rows).numel()
        return t.reshape(*self.batch, count, *shape)

    def components(self, t: Tensor, tail: int = 2) -> Tensor:
        """Reshapes (*own, *T), or what broadcasts with it, to (*batch, *T)."""
        shape = t.shape[t.dim() - tail :]
        return t.expand(*self.own, *shape).reshape(*self.batch, *shape)

    def restore(self, t: Tensor, tail: int = 1) -> Tensor:
        """Reshapes (*batch, rows, *T) back to (*leading, *T)."""
        shape = t.shape[t.dim() - tail :]
        t = t.reshape(*self.batch, *(self.leading[i] for i in self._rows), *shape)
        order = [*self._kept, *self._rows]
        inverse = sorted(range(len(order)), key=order.__getitem__)
        return t.permute(*inverse, *range(t.dim() - tail, t.dim()))


def pick(parameter: Tensor, component: Tensor, tail: int) -> Tensor:
    """Selects the parameters of components.

    Args:
        parameter: Shape (*B, K, *T), or (*B, 1, *T) if components share them.
        component: Indices, shape (*S, *B).
        tail: Number of dimensions of T.

    Returns:
        Tensor of shape (*S, *B, *T).
    """
    k = parameter.dim() - tail - 1
    if parameter.shape[k] == 1:  # shared by all components
        parameter = parameter.squeeze(k)
        return parameter.expand(Size((*component.shape, *parameter.shape[k:])))
    if k == 0:
        return parameter[component]
    index = component.reshape(*component.shape, *[1] * (tail + 1))
    parameter = parameter[(None,) * (index.dim() - parameter.dim())]
    return torch.take_along_dim(parameter, index, dim=-tail - 1).squeeze(-tail - 1)


def grouped_products(component: Tensor, vectors: Tensor, matrices: Tensor) -> Tensor:
    """Products of vectors and the matrices of their components, without a copy for each.

    Args:
        component: Indices, shape (*S).
        vectors: Shape (*S, q).
        matrices: Shape (K, p, q).

    Returns:
        Tensor of shape (*S, p).
    """
    label = component.flatten()
    rows = vectors.reshape(len(label), vectors.shape[-1])
    order = label.argsort()
    parts = rows[order].split(torch.bincount(label, minlength=len(matrices)).tolist())
    products = [part @ matrix.mT for part, matrix in zip(parts, matrices, strict=True)]
    return torch.cat(products)[order.argsort()].reshape(*component.shape, matrices.shape[-2])


def flat_index(own: Sequence[int], leading: Sequence[int], device: torch.device) -> Tensor:
    """Index into a flattened batch for every entry of a larger shape, flattened, too.

    Args:
        own: Shape of the batch, which expands to the larger shape.
        leading: The larger shape.
        device: The device of the result.

    Returns:
        Indices, one for every entry of `leading`.
    """
    own = Size(own)
    return torch.arange(own.numel(), device=device).reshape(own).expand(Size(leading)).flatten()


def choose(log_weight: Tensor, entry: Tensor) -> Tensor:
    """Draws a component for each of n points, at their entries of a batch.

    Args:
        log_weight: Unnormalised log-weights at the E entries, shape (E, K). Entries that are not
            asked for may have weights of zero throughout.
        entry: The entry of every point, shape (n,).

    Returns:
        Indices of components, shape (n,).
    """
    if len(entry) == 0:
        return entry
    counts = torch.bincount(entry, minlength=len(log_weight))
    asked = (counts > 0).nonzero().squeeze(-1)
    drawn = torch.multinomial(log_weight[asked].softmax(-1), int(counts.max()), replacement=True)
    # The i-th point of an entry takes its i-th draw.
    order = entry.argsort()
    first = (counts.cumsum(0) - counts)[entry[order]]
    row = torch.zeros_like(counts).index_put((asked,), torch.arange(len(asked)).to(asked))
    result = torch.empty_like(entry)
    position = torch.arange(len(entry), device=entry.device) - first
    result[order] = drawn[row[entry[order]], position]
    return result


def by_pattern(observed: Tensor) -> Iterator[tuple[list[int], list[int], Tensor]]:
    """Groups rows by which of their entries were observed.

    Args:
        observed: True for the observed entries, shape (N, D).

    Yields:
        Coordinates that were, coordinates that were not, and the indices of such rows.
    """
    patterns, label = observed.unique(dim=0, return_inverse=True)
    groups = label.argsort().split(torch.bincount(label).tolist())
    for pattern, rows in zip(patterns, groups, strict=True):
        yield pattern.nonzero().flatten().tolist(), (~pattern).nonzero().flatten().tolist(), rows


def check_weights_and_means(logits: object, loc: object, *, least_dim: int = 1) -> str:
    """Checks types and shapes of what every mixture has.

    Args:
        logits: Log-weights, of shape (*B, K) if they are right.
        loc: Means, of shape (*B, K, D) if they are right.
        least_dim: The smallest D.

    Returns:
        Both shapes as text, for errors about other parameters.

    Raises:
        ValueError: If they do not fit.
    """
    loc = check_tensor("loc", loc)
    logits = check_tensor("logits", logits, like=loc)
    got = f"logits {tuple(logits.shape)}, loc {tuple(loc.shape)}"
    if logits.dim() < 1 or loc.dim() < 2:
        raise ValueError(
            f"Expected logits of shape (*B, K) and loc of shape (*B, K, D), got {got}. For one "
            f"dimension, use loc.unsqueeze(-1)."
        )
    if logits.shape[-1] != loc.shape[-2]:
        raise ValueError(f"Expected logits (*B, K) and loc (*B, K, D) with the same K, got {got}.")
    if logits.shape[-1] == 0 or loc.shape[-1] < least_dim:
        raise ValueError(
            f"Expected at least one component and one dimension, got {got}. "
            f"An empty mixture has no density."
        )
    return got


def check_weight_and_mean_values(logits: Tensor, loc: Tensor) -> None:
    """Checks the values of what every mixture has.

    Raises:
        ValueError: If all weights of a mixture are zero, or for NaN and infinity.
    """
    # Sums and extremes are not finite if an entry is not: one pass over good values each.
    lowest, highest = extremes(logits.amax(-1))
    if not highest < math.inf:  # also if it is NaN
        raise ValueError("Expected logits without NaN and plus infinity.")
    if lowest == -math.inf:
        raise ValueError("Expected at least one logit above minus infinity in every mixture.")
    if not math.isfinite(loc.sum().item()) and not loc.isfinite().all():
        raise ValueError("Expected finite values of loc, got NaN or infinity.")


def extremes(values: Tensor) -> tuple[float, float]:
    """The smallest and the largest of numbers; NaN if one is.

    Of no numbers, as batches of no laws have them, infinity and minus infinity: every bound holds.
    """
    if values.numel() == 0:
        return math.inf, -math.inf
    smallest, largest = values.aminmax()
    return smallest.item(), largest.item()


def common_batch_shape(got: str, *shapes: Size) -> Size:
    """The batch shape that several tensors have together.

    Args:
        got: The shapes as text, for the error.
        shapes: The batch shape of every tensor.

    Raises:
        ValueError: If their batch shapes do not broadcast.
    """
    if not any(shapes):
        return Size()
    try:
        return torch.broadcast_shapes(*shapes)
    except RuntimeError:
        raise ValueError(f"Expected batch shapes that broadcast, got {got}.") from None


def stack_observed(values: Sequence[Tensor]) -> Tensor:
    """Stacks observed values, one tensor per coordinate: shape (*N, number of coordinates).

    Raises:
        ValueError: If their shapes do not broadcast.
    """
    try:
        return torch.stack(torch.broadcast_tensors(*values), -1)
    except RuntimeError:
        raise ValueError(
            f"Expected observed values whose shapes broadcast, got "
            f"{[tuple(v.shape) for v in values]}."
        ) from None
