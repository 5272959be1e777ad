"""Rows of data to sum over: in memory, mapped from a file, or from a loader; block by block.

Sums over all rows are all that expectation maximisation needs. Where the rows are many, no copy of
them is made: each block is brought into the units of the parameters when its turn comes.
"""

__all__ = [
    "SAMPLE_ROWS",
    "Rows",
    "Source",
    "Survey",
    "TensorSource",
    "gathered",
    "make_source",
    "split_rows",
    "survey",
]

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from ...core.checks import check_weights
from ...core.conversions import TensorLike, as_tensor

# Up to this many numbers (128 MiB of float64), a converted copy of all data is kept.
KEPT_NUMBERS = 2**24
# Numbers that are read and converted together.
CHUNK_NUMBERS = 2**20
# Rows of a sample, which starts are found from where data are not kept.
SAMPLE_ROWS = 20_000
# Rows of a batch of a dataset.
BATCH_ROWS = 4096

Weighted = tuple[Tensor, Tensor | None]


class Source(ABC):
    """Where rows come from, as the user has them; as many passes as are needed.

    Args:
        dim: Number of columns.
        device: Where rows are worked on.
    """

    def __init__(self, dim: int, device: torch.device) -> None:
        self.dim, self.device = dim, device

    @abstractmethod
    def chunks(self, rank: int = 0, world_size: int = 1) -> Iterator[Weighted]:
        """Rows (n, D) and their weights (n,), or None if all weigh one: a process's part."""

    @property
    def is_kept(self) -> bool:
        """Whether there are so few numbers, and in memory, that a converted copy is kept."""
        return False


class TensorSource(Source):
    """Rows of a tensor, or of whatever is sliced as an array is."""

    def __init__(self, data: Any, weight: Tensor | None, dim: int, device: torch.device) -> None:
        super().__init__(dim, device)
        self.data, self.weight = data, weight

    @property
    def is_kept(self) -> bool:
        """Whether there are so few numbers, and in memory, that a converted copy is kept."""
        return isinstance(self.data, Tensor) and self.data.numel() <= KEPT_NUMBERS

    def take(self, rows: Tensor) -> Weighted:
        """Some of the rows, by their indices, and their weights."""
        if isinstance(self.data, Tensor):
            x = self.data[rows]
        else:  # arrays in files want indices that rise, each once
            index, position = rows.cpu().unique(return_inverse=True)
            x = _as_rows(self.data[index.numpy()])[position]
        return x.to(self.device), None if self.weight is None else self.weight[rows]

    def chunks(self, rank: int = 0, world_size: int = 1) -> Iterator[Weighted]:
        """Rows and their weights: a process's part."""
        size = min(CHUNK_NUMBERS // self.dim, -(-len(self.data) // world_size))
        size = max(1, size)
        for i in range(rank * size, len(self.data), world_size * size):
            part = self.data[i : i + size]
            x = part if isinstance(part, Tensor) else _as_rows(part)
            yield x.to(self.device), None if self.weight is None else self.weight[i : i + size]


class LoaderSource(Source):
    """Batches of rows, or pairs of rows and weights, from anything that can be gone through again.

    Every process goes through all batches, and works on its part.
    """

    def __init__(self, batches: Iterable[Any], dim: int, device: torch.device) -> None:
        super().__init__(dim, device)
        self.batches = batches

    def chunks(self, rank: int = 0, world_size: int = 1) -> Iterator[Weighted]:
        """Batches and their weights: a process's part."""
        for i, batch in enumerate(self.batches):
            if i % world_size == rank:
                yield self._checked(batch)

    def _checked(self, batch: Any) -> Weighted:
        weight = None
        if isinstance(batch, tuple | list):
            batch, *others = batch
            if len(others) > 1:
                raise ValueError(
                    f"Expected batches of rows, or pairs of rows and weights, got "
                    f"{len(others) + 1} parts."
                )
            if others and not torch.as_tensor(others[0]).is_floating_point():
                raise ValueError(
                    "Expected pairs of rows and weights, got integers for weights. Leave labels "
                    "out; make counts of rows floating-point numbers."
                )
            weight = check_weights(others[0], len(batch)).to(self.device) if others else None
        x = batch if isinstance(batch, Tensor) else _as_rows(batch)
        if x.dim() != 2 or x.shape[-1] != self.dim:
            raise ValueError(f"Expected batches of shape (n, {self.dim}), got {tuple(x.shape)}.")
        return x.to(self.device), weight


def make_source(data: Any, sample_weight: TensorLike | None, *, dim: int, like: Tensor) -> Source:
    """The source of rows behind whatever a user passes as data.

    Args:
        data: A tensor, an array or nested lists of shape (N, D); a memory map, or anything else
            that has a shape and is sliced as an array; a dataset or `DataLoader`; or a list or
            other iterable of batches.
        sample_weight: Weights of the rows, (N,).
        dim: D.
        like: A parameter of the model.

    Raises:
        ValueError: If it is none of these.
    """
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset):
        data = DataLoader(data, batch_size=BATCH_ROWS)
    streams = (
        isinstance(data, DataLoader | IterableDataset)
        or _is_list_of_batches(data)
        or (
            isinstance(data, Iterable)
            and not isinstance(data, Tensor | np.ndarray | list | tuple | str)
            and not hasattr(data, "shape")
        )
    )
    if streams:
        if iter(data) is data:
            raise ValueError(
                "Expected data that can be gone through more than once, got an iterator. Pass a "
                "DataLoader or a list of batches, or, for a stream that comes but once, use "
                "pyromix.OnlineEM."
            )
        if sample_weight is not None:
            raise ValueError(
                "Expected no sample_weight with a loader: let its batches be pairs of rows and "
                "weights."
            )
        return LoaderSource(data, dim, like.device)
    if isinstance(data, tuple):
        raise ValueError("Expected points alone, got a tuple: leave labels out.")
    is_array = isinstance(data, np.ndarray) and not isinstance(data, np.memmap)
    in_file = hasattr(data, "shape") and not (isinstance(data, Tensor) or is_array)
    if not in_file or hasattr(data, "columns"):  # a table of pandas is an array like others
        data = data.detach() if isinstance(data, Tensor) else as_tensor("data", data, like=like)
        if data.device != like.device or not data.is_floating_point():
            raise ValueError(
                f"Expected floating-point data on {like.device}, got {data.dtype} on "
                f"{data.device}."
            )
    shape = tuple(data.shape)
    if len(shape) != 2 or shape[-1] != dim:
        raise ValueError(f"Expected data of shape (N, {dim}), got {shape}.")
    if not shape[0]:
        raise ValueError("Expected at least one point, got none.")
    weight = None
    if sample_weight is not None:
        weight = check_weights(sample_weight, shape[0]).to(like.device)
    return TensorSource(data, weight, dim, like.device)


class Survey(NamedTuple):
    """What one pass over all rows tells."""

    num_rows: int
    """Number of rows."""
    total: float
    """Sum of their weights."""
    mean: Tensor
    """Mean of the observed entries of every column, (D,), zero where there is none."""
    variance: Tensor
    """Variance of the observed entries of every column, (D,)."""
    observed: Tensor
    """Weight of the observed entries of every column, (D,)."""
    has_gaps: bool
    """Whether entries are missing."""
    sample: Tensor
    """All rows of data that are kept, others drawn at random: (n, D), by their weights."""


def survey(source: Source, missing: bool, dtype: torch.dtype) -> Survey:
    """Goes through all rows once, and checks them.

    Args:
        source: The rows.
        missing: Whether NaN marks missing entries, or is an error.
        dtype: That of the model, which has to hold the data's squares. Of sampled rows, too.

    Raises:
        ValueError: If there are none, or some are not finite or too large.
    """
    count, bad, total, largest, has_gaps = 0, 0, 0.0, 0.0, False
    sums = torch.zeros(4, source.dim, dtype=torch.float64, device=source.device)
    shift: Tensor | None = None  # near it squares cancel less
    reservoir = _Reservoir(dtype)
    for x, weight in source.chunks():
        x = x.double()
        gaps = x.isnan()
        has_gaps = has_gaps or bool(gaps.any())
        bad += int((x.isinf() if missing else ~x.isfinite()).sum())
        count += len(x)
        filled = x.nan_to_num(0.0)
        w = x.new_ones(len(x)) if weight is None else weight
        total += float(w.sum())
        shift = x.nanmean(0).nan_to_num(0.0) if shift is None else shift
        away = torch.where(gaps, 0.0, x - shift)
        parts = w @ away, w @ (~gaps).double(), w @ away.square(), filled.square().sum(0)
        sums += torch.stack(parts)
        largest = max(largest, float(filled.abs().amax())) if filled.numel() else largest
        if not source.is_kept:
            reservoir.add(x, w)
    if not count:
        raise ValueError("Expected at least one point, got none.")
    if bad:
        raise ValueError(
            f"Expected finite data, got {bad} entries that are not. Leave rows with infinities "
            f"out, which may be numbers that are too large for {dtype}; if NaN marks missing "
            f"entries, build the mixture with missing='marginalize'."
        )
    if not total > 0:
        raise ValueError("Expected weights of which some are positive, got zeros.")
    if not float(sums[3].sum()) <= torch.finfo(dtype).max:
        raise ValueError(
            f"Expected data whose squares {dtype} can hold, got numbers up to {largest:g}. "
            f"Standardise them (subtract the mean, divide by the standard deviation), or use "
            f"float64."
        )
    if source.is_kept:
        assert isinstance(source, TensorSource)
        sample, weights = source.data, source.weight
    else:
        sample, weights = reservoir.rows()
    if weights is not None and not bool((weights == weights[0]).all()):
        sample = sample[torch.multinomial(weights, len(sample), replacement=True)]
    assert shift is not None
    seen = sums[1].clamp(min=torch.finfo(sums.dtype).tiny)
    away = sums[0] / seen
    variance = (sums[2] / seen - away.square()).clamp(min=0)
    return Survey(count, total, shift + away, variance, sums[1], has_gaps, sample.to(dtype))


def gathered(
    data: Any, sample_weight: TensorLike | None, *, like: Tensor, missing: bool
) -> tuple[Tensor, Tensor]:
    """All rows and their weights, checked, in float64: for data that fit memory.

    Args:
        data: See `make_source`.
        sample_weight: Weights of the rows, (N,); by default all are one.
        like: Means of the model, (K, D).
        missing: Whether NaN marks missing entries, or is an error.

    Raises:
        ValueError: If the data do not fit, or are not finite.
    """
    source = make_source(data, sample_weight, dim=like.shape[-1], like=like)
    survey(source, missing, like.dtype)  # checks them
    rows = [(x.double(), w) for x, w in source.chunks()]
    x = torch.cat([part for part, _ in rows])
    weights = [x.new_ones(len(part)) if w is None else w for part, w in rows]
    return x, torch.cat(weights)


class _Reservoir:
    """Rows drawn at random from all that are added, without replacement, and their weights.

    Args:
        dtype: That the rows are kept in.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.parts: list[Tensor] = []

    def add(self, x: Tensor, weight: Tensor) -> None:
        """Adds rows (n, D) with weights (n,)."""
        # Those of the largest keys, which are drawn at random, are kept.
        key = torch.rand_like(weight)
        self.parts.append(torch.cat([torch.stack([key, weight], -1), x], -1).to(self.dtype))
        if sum(map(len, self.parts)) > SAMPLE_ROWS + SAMPLE_ROWS // 4:
            self.parts = [self._kept()]

    def rows(self) -> Weighted:
        """The rows, and their weights."""
        kept = self._kept()
        return kept[:, 2:], kept[:, 1].double()

    def _kept(self) -> Tensor:
        rows = torch.cat(self.parts)
        if len(rows) <= SAMPLE_ROWS:
            return rows
        return rows[rows[:, 0].topk(SAMPLE_ROWS).indices]


class Rows:
    """Rows of data in the units of a model, around their centre, in blocks to sum over.

    Args:
        source: The rows, as the user has them.
        loc: What is subtracted from each, (D,).
        scale: What the rest is divided by, (D,).
        mean_square: Mean squares of what comes out, of all processes, (D,).
        has_gaps: Whether entries are missing, in any process's part.
        rank: Index of this process.
        world_size: Number of processes, each of which sums over its part.
        keep: Whether to keep converted rows, however many they are.
    """

    def __init__(
        self,
        source: Source,
        loc: Tensor,
        scale: Tensor,
        mean_square: Tensor,
        has_gaps: bool,
        rank: int = 0,
        world_size: int = 1,
        *,
        keep: bool = False,
    ) -> None:
        self.source, self.loc, self.scale, self.has_gaps = source, loc, scale, has_gaps
        self.dim, self.mean_square = source.dim, mean_square
        self.place = rank, world_size
        self.all: Weighted | None = None  # of this process, if they are kept
        if keep or source.is_kept:
            parts = [(self._converted(x), w) for x, w in source.chunks(*self.place)]
            x = torch.cat([x for x, _ in parts]) if parts else loc.new_zeros(0, self.dim)
            weighted = bool(parts) and parts[0][1] is not None
            self.all = x, torch.cat([w for _, w in parts if w is not None]) if weighted else None

    @property
    def device(self) -> torch.device:
        """Where they are worked on."""
        return self.loc.device

    @classmethod
    def of(cls, x: Tensor, weight: Tensor | None = None) -> "Rows":
        """Rows (N, D) in float64 as they are, with weights (N,)."""
        source = TensorSource(x, weight, x.shape[-1], x.device)
        zero = x.new_zeros(x.shape[-1])
        square = x.square().nanmean(0).nan_to_num(0.0)
        return cls(source, zero, torch.ones_like(zero), square, bool(x.isnan().any()), keep=True)

    def take(self, rows: Tensor) -> "Rows":
        """Some of the rows, by their indices."""
        if self.all is not None:
            x, weight = self.all
            return Rows.of(x[rows], None if weight is None else weight[rows])
        assert isinstance(self.source, TensorSource)
        x, weight = self.source.take(rows)
        return Rows.of(self._converted(x), weight)

    def blocks(self, size: int, dtype: torch.dtype = torch.float64) -> Iterator[Weighted]:
        """This process's part, in blocks of at most so many rows, and their weights."""
        if self.all is not None:
            yield from split_rows(*self.all, size, dtype)
            return
        for x, weight in self.source.chunks(*self.place):
            yield from split_rows(self._converted(x), weight, size, dtype)

    def _converted(self, x: Tensor) -> Tensor:
        return (x.double() - self.loc) / self.scale


def split_rows(
    x: Tensor, weight: Tensor | None, size: int, dtype: torch.dtype = torch.float64
) -> Iterator[Weighted]:
    """Rows (n, D) and their weights (n,) in blocks of at most so many."""
    blocks = x.split(size)
    weights = [None] * len(blocks) if weight is None else weight.split(size)
    for block, w in zip(blocks, weights, strict=True):
        yield block.to(dtype), None if w is None else w.to(dtype)


def _is_list_of_batches(data: Any) -> bool:
    """Whether data are a list of matrices, rather than one matrix as nested lists."""
    return isinstance(data, list) and bool(data) and all(getattr(b, "ndim", 0) == 2 for b in data)


def _as_rows(part: Any) -> Tensor:
    """A tensor of what was read: floats keep their dtype."""
    array = np.array(part)  # a copy: files may be read-only, and closed before it is used
    return torch.from_numpy(array if array.dtype.kind == "f" else array.astype(np.float64))
