"""Minibatches for training: seeded, resumable at any step, and sharded over processes."""

__all__ = ["LoaderStream", "TensorStream", "list_tensors", "make_stream", "split"]

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, default_collate

from ..core.checks import check_weights
from ..core.random import draws_from, seeded
from ..numerics.resampling import systematic

Take = Callable[[Tensor], Any]

# Data-dependent initialisation needs no more points than this.
PREVIEW_SIZE = 10_000

# A resumed run is on the same data if the checksum of this many items says so.
CHECKED_ITEMS = 100


class TensorStream:
    """Minibatches from data that is indexed: tensors, or a dataset.

    Every epoch runs through a permutation that depends on the seed and on the epoch alone: the
    batch of any step can be had without going through those before. A last, smaller batch is
    left out; its items are in other epochs' batches.

    Args:
        take: Returns the batch of some items, given their indices.
        indices: The items to use.
        batch_size: Size of a batch over all processes.
        seed: Seed of the permutations.
        rank: Index of this process.
        world_size: Number of processes.
        checksum: Tells these data from others, where that can be told.
        log_weight: Logarithms of the weights of the items that are used: in an epoch each is met
            as often as its weight says, but for one time. By default all are met once.
    """

    def __init__(
        self,
        take: Take,
        indices: Tensor,
        batch_size: int,
        seed: int,
        rank: int,
        world_size: int,
        checksum: int | None = None,
        log_weight: Tensor | None = None,
    ) -> None:
        if len(indices) < world_size:
            raise ValueError(
                f"Expected at least one item for each of {world_size} process(es), got "
                f"{len(indices)} items of data."
            )
        self.take, self.indices, self.seed, self.checksum = take, indices, seed, checksum
        self.log_weight = log_weight
        self.batch_size = min(batch_size, len(indices) - len(indices) % world_size)
        self.rank, self.world_size = rank, world_size
        if self.batch_size % world_size:
            raise ValueError(
                f"Expected a batch_size that {world_size} processes can share equally, got "
                f"{batch_size}. Choose a multiple of {world_size}."
            )

    @property
    def description(self) -> dict[str, Any]:
        """What a resumed run must have in common with the first."""
        return {
            "items": len(self.indices),
            "batch_size": self.batch_size,
            "data checksum": self.checksum,
        }

    def batches(self, start: int) -> Iterator[Any]:
        """Yields this process's part of every batch from step `start` on, without end."""
        per_epoch = len(self.indices) // self.batch_size
        share = self.batch_size // self.world_size
        epoch, position = divmod(start, per_epoch)
        while True:
            order = self._order(epoch)
            for i in range(position, per_epoch):
                first = i * self.batch_size + self.rank * share
                yield self.take(order[first : first + share])
            epoch, position = epoch + 1, 0

    def once(self) -> Iterator[tuple[Any, int]]:
        """Yields this process's part of the data once, in batches, each with its size."""
        indices = self.indices if self.log_weight is None else self._order(-1)
        for i, part in enumerate(indices.split(self.batch_size)):
            if i % self.world_size == self.rank:
                yield self.take(part), len(part)

    def preview(self) -> Any:
        """A batch of up to 10,000 items to initialise from, the same in all processes."""
        return self.take(self._order(-1)[:PREVIEW_SIZE])

    def _order(self, epoch: int) -> Tensor:
        """The items of an epoch, in its order."""
        met = self.indices
        if self.log_weight is not None:
            with draws_from(*seeded(_mix(self.seed, epoch))):
                met = met[systematic(self.log_weight)]
        return met[_permutation(len(met), self.seed, epoch)]


class LoaderStream:
    """Minibatches from a DataLoader, which decides on their size and order.

    The loader's random numbers are seeded at the start of every epoch. Resuming goes through
    the batches that were already used, and then takes up PyTorch's random state where it was.

    Args:
        loader: The loader. Every process iterates over all of it, and works on its part.
        seed: Seed of the loader's shuffling.
        rank: Index of this process.
        world_size: Number of processes.
    """

    def __init__(self, loader: DataLoader, seed: int, rank: int, world_size: int) -> None:
        self.loader, self.seed = loader, seed
        self.rank, self.world_size = rank, world_size

    @property
    def description(self) -> dict[str, Any]:
        """What a resumed run must have in common with the first."""
        return {}

    def batches(self, start: int) -> Iterator[Any]:
        """Yields this process's part of every batch from step `start` on, without end."""
        step = epoch = 0
        random = torch.get_rng_state()
        while True:
            empty = True
            for batch in self._epoch(epoch):
                empty = False
                if step >= start:
                    yield self._share(batch)
                step += 1
                if step == start:  # a dataset may draw random numbers for its items
                    torch.set_rng_state(random)
            if empty:
                raise _no_batch()
            epoch += 1

    def once(self) -> Iterator[tuple[Any, int]]:
        """Yields this process's part of the data once, in batches, each with its size."""
        for i, batch in enumerate(self._epoch(-1)):
            if i % self.world_size == self.rank:
                yield batch, _batch_size(batch)

    def preview(self) -> Any:
        """A batch of up to 10,000 items to initialise from, the same in all processes."""
        batches, size = [], 0
        for batch in self._epoch(-1):
            batches.append(batch)
            size += _batch_size(batch)
            if size >= PREVIEW_SIZE:
                break
        if not batches:
            raise _no_batch()
        return _concatenate(batches)

    def _epoch(self, epoch: int) -> Iterator[Any]:
        # A loader draws its seeds from the global generator when its iterator is made and when
        # that is asked for the first batch, or from a generator of its own.
        with draws_from(*seeded(_mix(self.seed, epoch))):
            for part in (self.loader, self.loader.sampler, self.loader.batch_sampler):
                for owner in (part, getattr(part, "sampler", None)):
                    generator = getattr(owner, "generator", None)
                    if isinstance(generator, torch.Generator):
                        generator.manual_seed(_mix(self.seed, epoch))
            iterator = iter(self.loader)
            first = next(iterator, None)
        if first is not None:
            yield _detached(first)
            yield from map(_detached, iterator)

    def _share(self, batch: Any) -> Any:
        if self.world_size == 1:
            return batch
        size = _batch_size(batch)
        if size % self.world_size:
            raise ValueError(
                f"Expected batches that {self.world_size} processes can share equally, got one "
                f"of {size}. Choose a multiple of {self.world_size}, and drop_last=True."
            )
        share = size // self.world_size
        return _slice(batch, slice(self.rank * share, (self.rank + 1) * share))


def make_stream(
    data: Any,
    batch_size: int,
    seed: int,
    rank: int,
    world_size: int,
    name: str = "data",
    weight: Tensor | None = None,
) -> TensorStream | LoaderStream:
    """Makes a stream of minibatches of whatever a user passes as data.

    Args:
        data: A tensor; a tuple, list or dict of tensors with the same first dimension; a
            `Dataset`; or a `DataLoader`.
        batch_size: Size of a batch over all processes; a DataLoader's own is kept.
        seed: Seed of the order.
        rank: Index of this process.
        world_size: Number of processes.
        name: What to call the data in errors.
        weight: Weights of the items, (N,), not negative.

    Raises:
        ValueError: If the data is none of these, is empty, or has tensors of different lengths.
    """
    data = _detached(data)
    if isinstance(data, DataLoader):
        if weight is not None:
            raise ValueError(
                "Expected no sample_weight with a DataLoader, which decides itself which items "
                "are met: give it a torch.utils.data.WeightedRandomSampler."
            )
        return LoaderStream(data, seed, rank, world_size)
    if isinstance(data, IterableDataset):
        raise ValueError(
            f"Expected {name} with a length, got an IterableDataset. Wrap it in a DataLoader."
        )
    settings = batch_size, seed, rank, world_size
    if isinstance(data, TensorDataset):
        data = _detached(data.tensors)
    if isinstance(data, Tensor | Mapping) or _is_sequence_of_tensors(data):
        tensors = list_tensors(data)
        lengths = {len(t) if isinstance(t, Tensor) and t.dim() else None for t in tensors}
        if len(lengths) != 1 or None in lengths or 0 in lengths:
            raise ValueError(
                f"Expected {name} to be tensors with the same, positive number of items along "
                f"the first dimension, got {[getattr(t, 'shape', type(t)) for t in tensors]}."
            )
        items = torch.arange(len(tensors[0]))
        checksum, log_weight = _checksum(tensors), _log_weight(weight, len(items))
        return TensorStream(
            lambda index: _slice(data, index), items, *settings, checksum, log_weight
        )
    if isinstance(data, Dataset) and hasattr(data, "__len__"):

        def collate(index: Tensor) -> Any:
            return _detached(default_collate([data[i] for i in index.tolist()]))

        log_weight = _log_weight(weight, len(data))
        return TensorStream(collate, torch.arange(len(data)), *settings, None, log_weight)
    raise ValueError(
        f"Expected {name} to be a tensor, a tuple, list or dict of tensors, a Dataset or a "
        f"DataLoader, got {type(data).__name__}. Arrays of numbers can stand for tensors."
    )


def _detached(batch: Any) -> Any:
    """A batch whose tensors are plain values: no gradient passes through data.

    The graph of data that were computed by a network would be gone after the first step, and
    tensors made under ``torch.inference_mode()`` cannot be part of a graph at all.
    """
    if isinstance(batch, Tensor):
        batch = batch.detach()
        return batch.clone() if batch.is_inference() else batch
    if isinstance(batch, Mapping) and any(isinstance(t, Tensor) for t in batch.values()):
        return {key: _detached(part) for key, part in batch.items()}
    if isinstance(batch, list | tuple) and any(isinstance(t, Tensor) for t in batch):
        return tuple(_detached(part) for part in batch)
    return batch


def split(
    stream: TensorStream | LoaderStream, fraction: float
) -> tuple[TensorStream, TensorStream]:
    """Splits a random fraction off for validation.

    Raises:
        ValueError: If the fraction leaves either part empty, or the data is a DataLoader.
    """
    if isinstance(stream, LoaderStream):
        raise ValueError(
            "Expected validation data of its own with a DataLoader, got a fraction. Split the "
            "dataset with torch.utils.data.random_split."
        )
    count = len(stream.indices)
    held_out = round(fraction * count)
    if not 0 < held_out < count:
        raise ValueError(
            f"Expected validation to be a fraction between 0 and 1 that leaves items on both "
            f"sides, got {fraction} of {count} items."
        )
    order = stream.indices[_permutation(count, stream.seed, -2)]
    parts = order[held_out:], order[:held_out]
    common = stream.batch_size, stream.seed, stream.rank, stream.world_size, stream.checksum
    weight = stream.log_weight
    train, validation = (
        TensorStream(stream.take, part, *common, None if weight is None else weight[part])
        for part in parts
    )
    return train, validation


def _log_weight(weight: Tensor | None, count: int) -> Tensor | None:
    """Logarithms of the weights of so many items, checked."""
    return None if weight is None else check_weights(weight, count).log()


def _no_batch() -> ValueError:
    return ValueError("Expected a DataLoader with at least one batch, got none.")


def _checksum(tensors: list[Tensor]) -> int:
    checksum = 0
    for tensor in tensors:
        numbers = tensor[:CHECKED_ITEMS].detach().cpu().contiguous().flatten()
        checksum = zlib.crc32(numbers.view(torch.uint8).numpy().tobytes(), checksum)
    return checksum


def _permutation(count: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(_mix(seed, epoch)))


def _mix(seed: int, epoch: int) -> int:
    """A seed for an epoch that shares nothing with those of neighbouring seeds."""
    return (seed * 0x9E3779B97F4A7C15 + epoch * 0xBF58476D1CE4E5B9) % 2**63


def _is_sequence_of_tensors(data: Any) -> bool:
    return isinstance(data, Sequence) and bool(data) and all(isinstance(t, Tensor) for t in data)


def list_tensors(batch: Any) -> list[Any]:
    """The tensors that a batch consists of."""
    if isinstance(batch, Tensor):
        return [batch]
    return list(batch.values()) if isinstance(batch, Mapping) else list(batch)


def _batch_size(batch: Any) -> int:
    return len(list_tensors(batch)[0])


def _slice(batch: Any, index: Any) -> Any:
    """The items of a batch at some indices."""
    return _map(batch, lambda tensor: tensor[index])


def _concatenate(batches: list[Any]) -> Any:
    first = batches[0]
    if isinstance(first, Tensor):
        return torch.cat(batches)
    if isinstance(first, Mapping):
        return {key: torch.cat([b[key] for b in batches]) for key in first}
    return tuple(torch.cat(parts) for parts in zip(*batches, strict=True))


def _map(batch: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(batch, Tensor):
        return function(batch)
    if isinstance(batch, Mapping):
        return {key: function(value) for key, value in batch.items()}
    return tuple(function(value) for value in batch)
