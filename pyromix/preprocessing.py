"""What data go through before a model sees them: integers and recordings as real sequences."""

__all__ = ["Frames", "LogitMap", "dequantize", "frames", "quantize"]

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Generator, Tensor
from torch.distributions import Transform, constraints
from torch.nn.functional import logsigmoid
from torch.nn.utils.rnn import pad_sequence

from .core.checks import as_float_or_nan, check_positive_int
from .core.constraints import open_interval
from .core.conversions import TensorLike, as_numbers
from .core.registry import register


class LogitMap(Transform):
    r"""From the real line to dequantised integers, by a sigmoid [1].

    .. math:: x = L \frac{\sigma(z) - m}{1 - 2 m}

    As the last transform of a `Flow` it makes a law on all of space one of integers from 0 to
    L - 1 plus noise in [0, 1), as `dequantize` returns them:

    .. code-block:: python

        images = Flow(model, [LogitMap()])
        images.log_prob(dequantize(pixels))

    Without a margin m, a pixel of 0 and a little noise would be far out on the real line, where
    it costs most of the likelihood. With it, the sigmoid reaches beyond [0, L), by
    ``L m / (1 - 2 m)`` on either side, and 0 is the image of ``logit(m)``: of -13.8 by default.
    What the law puts outside is lost to the integers, so that their total mass is a little below
    one, and never above: the margin can make a likelihood look worse than it is, not better. A
    larger margin makes the ends easier to learn, and loses more.

    Where floating-point numbers would round to an end of the sigmoid's range, the nearest ones
    inside are returned: every value has a finite inverse. Inverses and Jacobians are accurate up
    to both ends.

    Args:
        num_levels: Number L of integers, such as 256 for 8 bits.
        margin: m, how much of the sigmoid's range is left out on either side, between 0 and 1/2.
        cache_size: Whether to remember the last pair of values, as in PyTorch: 0 or 1.

    Raises:
        ValueError: If the number of levels is not positive, or the margin is out of its range.

    Example:
        >>> import pyro.distributions as dist
        >>> from pyromix import Flow
        >>> law = Flow(dist.Normal(torch.zeros(4), 1.0).to_event(1), [LogitMap()])
        >>> quantize(law.sample((2,))).shape
        torch.Size([2, 4])

    References:
        [1] Dinh, Sohl-Dickstein and Bengio, "Density estimation using Real NVP", 2017,
        section 4.1. https://arxiv.org/abs/1605.08803
    """

    domain = constraints.real
    bijective = True
    sign = 1

    def __init__(self, num_levels: int = 256, margin: float = 1e-6, cache_size: int = 0) -> None:
        super().__init__(cache_size=cache_size)
        self.num_levels = check_positive_int("num_levels", num_levels)
        share = as_float_or_nan(margin)
        if not 0 < share < 0.5:
            raise ValueError(
                f"Expected a margin between 0 and 0.5, both excluded, got {margin!r}. The default "
                f"is 1e-6; values up to 0.05 are in use."
            )
        self.margin = share
        self._scale = self.num_levels / (1 - 2 * self.margin)
        self._excess = self._scale * self.margin  # what the sigmoid reaches beyond [0, L)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, LogitMap)
            and self.num_levels == other.num_levels
            and self.margin == other.margin
        )

    def __repr__(self) -> str:
        return f"LogitMap(num_levels={self.num_levels}, margin={self.margin:g})"

    @constraints.dependent_property(is_discrete=False, event_dim=0)
    def codomain(self) -> constraints.Constraint:
        """The open interval that the sigmoid reaches."""
        return open_interval(-self._excess, self.num_levels + self._excess)

    def with_cache(self, cache_size: int = 1) -> "LogitMap":
        """Returns the transform with or without a cache."""
        if cache_size == self._cache_size:
            return self
        return LogitMap(self.num_levels, self.margin, cache_size)

    def _call(self, x: Tensor) -> Tensor:
        y = self._scale * x.sigmoid() - self._excess
        # At least one unit in the last place inside.
        inside = 1 - torch.finfo(y.dtype).eps
        return y.clamp(-self._excess * inside, (self.num_levels + self._excess) * inside)

    def _inverse(self, y: Tensor) -> Tensor:
        # The difference comes first: close to the upper end it is exact, unlike that end.
        return ((y + self._excess) / ((self.num_levels - y) + self._excess)).log()

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002
        r"""The logarithm of :math:`L \sigma(z) \sigma(-z) / (1 - 2 m)`, from z alone."""
        return math.log(self._scale) + logsigmoid(x) + logsigmoid(-x)


def dequantize(
    values: TensorLike, num_levels: int = 256, *, generator: Generator | None = None
) -> Tensor:
    r"""Adds uniform noise to integers, so that they can have a density.

    .. math:: x = v + u, \qquad u \sim \mathrm{Uniform}[0, 1)^D

    A density p fitted to integers as they are can be made arbitrarily large, by narrow peaks on
    them. With noise it says something about their probability. Every integer vector v has the
    probability P(v) that p puts on its cell, whose volume is one:

    .. math::

        \log P(v) = \log \int_{[0, 1)^D} p(v + u) \, du
        \ge \int_{[0, 1)^D} \log p(v + u) \, du = \mathbb{E}_u \log p(v + u)

    by Jensen's inequality, as the logarithm of a mean is at least the mean of the logarithms.
    So the log-density of dequantised integers is, in expectation over the noise, a lower bound
    of the log-probability of the integers, and training with fresh noise in every step maximises
    it. A single draw of noise may be above. The gap closes where p is flat within cells.

    Args:
        values: Integers from 0 to ``num_levels - 1``, of any integer dtype, or floats that hold
            such; a tensor, an array or lists of them, of any shape.
        num_levels: Number of levels L, such as 256 for 8 bits and 65,536 for 16.
        generator: Source of the noise, on the device of the values.

    Returns:
        Of torch's default dtype and the shape of the values; `quantize` returns these again, as
        no value is rounded up to the next integer.

    Raises:
        ValueError: If a value is no integer or out of range, or there are more levels than the
            default dtype can add noise to.

    Example:
        >>> pixels = torch.tensor([[0, 255], [17, 4]], dtype=torch.uint8)
        >>> torch.equal(quantize(dequantize(pixels)), pixels.long())
        True
    """
    num_levels = check_positive_int("num_levels", num_levels)
    dtype = torch.get_default_dtype()
    most = round(1 / torch.finfo(dtype).eps)
    if num_levels > most:
        raise ValueError(
            f"Expected at most {most} levels, beyond which {dtype} has no numbers between "
            f"integers, got {num_levels}. Call torch.set_default_dtype(torch.float64) before."
        )
    values = _check_codes(values, num_levels).to(dtype)
    noise = torch.rand(values.shape, generator=generator, dtype=dtype, device=values.device)
    # In float32, 255 + 0.99999999 is 256.
    return torch.minimum(values + noise, torch.nextafter(values + 1, values))


def quantize(x: TensorLike, num_levels: int = 256) -> Tensor:
    """The integers behind dequantised ones, by rounding down.

    Args:
        x: Real numbers in a tensor, an array or lists; any shape.
        num_levels: Number of levels L. What is out of [0, L) belongs to the nearest level.

    Returns:
        Integers from 0 to L - 1 of dtype int64, of the shape of x.

    Raises:
        ValueError: If x does not hold floats, or holds NaN.

    Example:
        >>> quantize(torch.tensor([-0.1, 0.7, 3.0, 256.0]))
        tensor([  0,   0,   3, 255])
    """
    num_levels = check_positive_int("num_levels", num_levels)
    x = as_numbers("x", x)
    if not x.is_floating_point():
        raise ValueError(f"Expected x to hold floats, got {x.dtype}.")
    missing = int(x.isnan().sum())
    if missing:
        raise ValueError(f"Expected x without NaN, got {missing} among {x.numel()} entries.")
    # Infinities first, which are no integers; then once more, as floats may round num_levels.
    codes = x.detach().floor().clamp(-1, num_levels).to(torch.int64)
    return codes.clamp(0, num_levels - 1)


class Frames(NamedTuple):
    """Sequences of frames, padded to equal length, as returned by `frames`."""

    values: Tensor
    """Shape (N, T, frame_length), zero after each sequence's end."""

    lengths: Tensor
    """How many frames each sequence has: shape (N,) and dtype int64."""


def frames(
    waves: Sequence[TensorLike] | Tensor | np.ndarray, frame_length: int, *, drop_last: bool = True
) -> Frames:
    """Cuts recordings of different lengths into frames that follow each other without overlap.

    Frames of consecutive samples are the vectors of a sequence; what is returned is a batch for
    models that take ``lengths``. Cut all recordings in one call and split them for training and
    tests afterwards, so that all have the same number T of frames after padding.

    Args:
        waves: N recordings of one dimension each: tensors of equal dtypes, or arrays or lists,
            of which those of floats are converted to PyTorch's default dtype.
        frame_length: Number of samples in a frame.
        drop_last: Whether to leave out what remains at the end of a recording and is shorter than
            a frame. If kept, it is filled up with zeros, which a model takes for silence that was
            recorded: a density then rewards it as such.

    Returns:
        Frames of the recordings' dtype and their number in each; T is the largest number.

    Raises:
        ValueError: If a recording is of another shape or dtype, or has no frame, or there is no
            recording.

    Example:
        >>> values, lengths = frames([torch.arange(7), torch.arange(3)], 3)
        >>> values.tolist(), lengths.tolist()
        ([[[0, 1, 2], [3, 4, 5]], [[0, 1, 2], [0, 0, 0]]], [2, 1])
        >>> frames([torch.arange(7)], 3, drop_last=False).values.tolist()
        [[[0, 1, 2], [3, 4, 5], [6, 0, 0]]]
    """
    frame_length = check_positive_int("frame_length", frame_length)
    recordings = _check_waves(waves)
    shortest = frame_length if drop_last else 1
    for i, wave in enumerate(recordings):
        if len(wave) < shortest:
            raise ValueError(
                f"Expected recordings of at least {shortest} sample(s), got {len(wave)} in "
                f"number {i}. Leave such recordings out"
                f"{', or keep incomplete frames with drop_last=False' if len(wave) else ''}."
            )
    lengths = torch.tensor([len(wave) for wave in recordings], device=recordings[0].device)
    if drop_last:
        lengths = lengths // frame_length
        recordings = [wave[: len(wave) // frame_length * frame_length] for wave in recordings]
    else:
        lengths = -(-lengths // frame_length)  # rounded up
    padded = pad_sequence(recordings, batch_first=True)
    missing = int(lengths.max()) * frame_length - padded.shape[1]
    padded = torch.nn.functional.pad(padded, (0, missing))
    return Frames(padded.unflatten(1, (-1, frame_length)), lengths)


def _check_codes(values: object, num_levels: int) -> Tensor:
    """Checks that values are integers of a range; those of integer dtypes become int64."""
    values = as_numbers("values", values)
    if values.dtype.is_floating_point:
        values = values.detach()
        fractions = int((values != values.floor()).sum())  # NaN as well
        if fractions:
            raise ValueError(
                f"Expected values to hold integers, got {fractions} others among "
                f"{values.numel()} entries. Integers divided by 255, say, must be multiplied back "
                f"and rounded."
            )
    else:
        values = values.to(torch.int64)  # PyTorch compares few of the unsigned dtypes
    outside = int(((values < 0) | (values >= num_levels)).sum())
    if outside:
        raise ValueError(
            f"Expected values from 0 to {num_levels - 1}, got {outside} out of range among "
            f"{values.numel()} entries, from {values.min().item():g} to "
            f"{values.max().item():g}. Shift them, or pass another num_levels."
        )
    return values


def _check_waves(waves: object) -> list[Tensor]:
    given = list(waves) if isinstance(waves, Sequence | Tensor | np.ndarray) else []
    if not given:
        raise ValueError("Expected a sequence of at least one recording.")
    recordings = [as_numbers(f"recording {i}", wave) for i, wave in enumerate(given)]
    if not any(isinstance(wave, Tensor) for wave in given):  # those have no dtype of PyTorch's
        floats = any(wave.is_floating_point() for wave in recordings)
        dtype = torch.get_default_dtype() if floats else recordings[0].dtype
        recordings = [wave.to(dtype) for wave in recordings]
    for i, wave in enumerate(recordings):
        if wave.dim() != 1:
            raise ValueError(
                f"Expected recordings of one dimension, got shape {tuple(wave.shape)} as number "
                f"{i}."
            )
        if wave.dtype != recordings[0].dtype or wave.device != recordings[0].device:
            raise ValueError(
                f"Expected recordings of one dtype on one device, got {wave.dtype} on "
                f"{wave.device} as number {i}, unlike number 0."
            )
    return recordings


register(LogitMap)
