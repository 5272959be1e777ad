"""Numbers in tensors, arrays and lists as the tensors that laws work with."""

__all__ = [
    "TensorLike",
    "as_context",
    "as_integers",
    "as_labels",
    "as_mask",
    "as_numbers",
    "as_rows",
    "as_tensor",
    "as_tensors",
    "as_value",
]

import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Distribution

from .checks import check_integers, check_tensor, check_value

# What `as_tensor` takes: a tensor, or numbers in an array or in nested lists.
TensorLike = Tensor | np.ndarray | Sequence[Any] | float


def as_tensor(name: str, value: object, *, like: Tensor | None = None) -> Tensor:
    """Returns an argument as a tensor of floats: numbers, NumPy arrays and lists are converted.

    A tensor has said its dtype and device, and must match: see `check_tensor`. An array of
    numbers, or a list of them of any depth, takes those of `like`.

    Args:
        name: What to call the argument in the error.
        value: The argument.
        like: A tensor of the dtype and on the device that are wanted, such as a parameter.
            Without it, arrays of float32 and float64 keep their dtype, and other numbers take
            PyTorch's default one.

    Returns:
        A tensor of any shape. An array of that dtype is not copied.

    Raises:
        ValueError: For a tensor that does not match, and for anything but numbers.

    >>> as_tensor("value", [[1, 2], [3, float("nan")]], like=torch.zeros(1))
    tensor([[1., 2.],
            [3., nan]])
    """
    if isinstance(value, Tensor):
        return check_tensor(name, value, like=like)
    array = _as_real_array(name, value)
    if array.dtype.kind == "b":
        raise ValueError(
            f"Expected {name} to hold real numbers, got booleans. Convert them, such as "
            f"numpy.asarray(...).astype(float)."
        )
    if like is None:
        kept = isinstance(value, np.ndarray) and array.dtype in (np.float32, np.float64)
        like = _from_array(array[:0]) if kept else torch.empty(0)
    return _from_array(array, np.float32 if like.dtype == torch.float32 else np.float64).to(like)


def as_tensors(**values: object) -> list[Tensor]:
    """Returns several arguments as tensors of one dtype and on one device.

    Those that are no tensors take the dtype and device of the first one that is; if none is, of
    the first one, as `as_tensor` converts it alone.

    Args:
        values: The arguments by name.

    Raises:
        ValueError: If tensors do not match each other, or an argument is anything but numbers.

    >>> [x.dtype for x in as_tensors(x=[1, 2], y=torch.zeros(1, dtype=torch.float64))]
    [torch.float64, torch.float64]
    """
    # A tensor that cannot be converted to is refused in its turn.
    first = min(values, key=lambda name: not isinstance(values[name], Tensor))
    like = as_tensor(first, values[first])
    return [as_tensor(name, value, like=like) for name, value in values.items()]


def as_numbers(name: str, value: object) -> Tensor:
    """Returns an argument as a tensor of real numbers of any dtype.

    Integers and truth values keep their type, as do tensors and arrays of floats; lists of floats
    take PyTorch's default dtype.

    Args:
        name: What to call the argument in the error.
        value: A tensor, an array, a number or nested lists of them.

    Returns:
        A tensor of any shape. An array is not copied if it need not be.

    Raises:
        ValueError: For complex numbers, and for anything but numbers.

    >>> as_numbers("pixels", np.zeros(2, np.uint8)), as_numbers("labels", [1, 2])
    (tensor([0, 0], dtype=torch.uint8), tensor([1, 2]))
    """
    if isinstance(value, Tensor):
        if value.is_complex():
            raise ValueError(f"Expected {name} to hold real numbers, got {value.dtype}.")
        return value
    tensor = _from_array(_as_real_array(name, value))
    if tensor.is_floating_point() and not isinstance(value, np.ndarray):
        return tensor.to(torch.get_default_dtype())
    return tensor


def _as_real_array(name: str, value: Any) -> np.ndarray:
    """Real numbers or truth values as an array of any such type."""
    remedy = ""
    if isinstance(value, np.ma.MaskedArray):
        remedy = "Call .filled(numpy.nan), which marks missing entries by NaN."
    elif hasattr(value, "to_numpy"):  # a frame or a column of a table
        remedy = "Call .to_numpy(dtype=float) on its columns of numbers."
    elif not isinstance(value, np.ndarray | np.generic | Sequence | numbers.Number):
        remedy = "Convert it with numpy.asarray(...) or torch.as_tensor(...)."
    elif isinstance(value, str | bytes):
        remedy = "Give numbers."
    if remedy:
        raise ValueError(f"Expected {name} to be a tensor, got {type(value).__name__}. {remedy}")
    array = _as_array(name, value)
    if array.dtype.kind not in "fiub":
        kinds = {"O": "objects", "U": "strings", "c": "complex numbers"}
        raise ValueError(
            f"Expected {name} to hold real numbers, got "
            f"{kinds.get(array.dtype.kind, str(array.dtype))}. Write NaN for entries that are "
            f"missing, and convert others, such as numpy.asarray(...).astype(float)."
        )
    return array


def _from_array(array: np.ndarray, dtype: Any = None) -> Tensor:
    """An array as a tensor, which shares its memory where it can."""
    if dtype is None:  # PyTorch has no longer floats than these
        dtype = np.float64 if array.dtype.kind == "f" and array.itemsize > 8 else array.dtype
        dtype = np.dtype(dtype).newbyteorder("=")
    # Of the machine's byte order, contiguous and writable, as PyTorch needs it.
    return torch.from_numpy(np.require(array, dtype, ["C", "W", "E"]))


def _as_array(name: str, value: Any) -> np.ndarray:
    """A number, an array or a list as an array of any type.

    Raises:
        ValueError: For lists of different lengths, or of tensors.
    """
    first = value
    while isinstance(first, Sequence) and not isinstance(first, str | bytes) and len(first):
        first = first[0]
    if isinstance(first, Tensor):
        raise ValueError(
            f"Expected {name} to be a tensor, or a list of numbers, got a list of tensors. Call "
            f"torch.stack(...) on it."
        )
    try:
        return np.asarray(value)
    except ValueError:
        raise ValueError(
            f"Expected {name} to be a tensor, or lists of the same length, got lists of different "
            f"lengths."
        ) from None


def as_context(name: str, value: object, *, like: Tensor) -> Tensor:
    """Returns a context as a tensor of floats; see `as_tensor`.

    Tensors of integers and truth values are converted, too: a context may well be a code.

    Raises:
        ValueError: If it does not fit.
    """
    if isinstance(value, Tensor) and not value.is_floating_point() and not value.is_complex():
        value = value.to(like.dtype)
    return as_tensor(name, value, like=like)


def as_rows(name: str, value: object, width: int, *, like: Tensor) -> Tensor:
    r"""Returns a context as a tensor of shape (\*B, width); see `as_context`.

    Raises:
        ValueError: If it does not fit.
    """
    rows = as_context(name, value, like=like)
    if rows.dim() < 1 or rows.shape[-1] != width:
        raise ValueError(f"Expected {name} of shape (*B, {width}), got {tuple(rows.shape)}.")
    return rows


def as_integers(
    name: str, value: object, low: int, high: int, *, like: Tensor, where: str = ""
) -> Tensor:
    """Returns integers in a range as a tensor: a number, an array and a list are converted.

    Args:
        name: What to call them in the error.
        value: The integers.
        low: The smallest that is allowed.
        high: The largest that is allowed.
        like: A tensor on the device that is wanted.
        where: What to add to the error, such as ``" in column 3"``.

    Returns:
        Tensor of int64, of any shape.

    Raises:
        ValueError: If they are not integers, out of range, or a tensor on another device.
    """
    integers: Any = value
    if not isinstance(value, Tensor):
        array = _as_array(name, value)
        if array.dtype.kind not in "iu":
            raise ValueError(f"Expected {name} to be integers, got {array.dtype}.")
        integers = torch.as_tensor(array.astype(np.int64), device=like.device)
    if integers.is_floating_point() or integers.is_complex() or integers.dtype == torch.bool:
        raise ValueError(f"Expected {name} to be integers, got {integers.dtype}.")
    if integers.device != like.device:
        raise ValueError(
            f"Expected {name} on device {like.device}, got {integers.device}. Nothing is moved "
            f"between devices silently: call .to({str(like.device)!r}) on it."
        )
    return check_integers(name, integers.long(), low, high, where=where)


def as_mask(name: str, value: object, *, like: Tensor) -> Tensor:
    """Returns an argument as a boolean tensor of the shape and on the device of another one.

    Args:
        name: What to call the argument in the error.
        value: A tensor, an array or nested lists of True and False.
        like: The tensor whose entries it marks.

    Raises:
        ValueError: If it holds anything else, or is of another shape.
    """
    mask: Any = value if isinstance(value, Tensor) else _as_array(name, value)
    if isinstance(mask, np.ndarray) and mask.dtype == bool:
        mask = torch.from_numpy(mask.copy()).to(like.device)  # strides may be negative
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != like.shape:
        raise ValueError(
            f"Expected {name} to be a boolean tensor of shape {tuple(like.shape)}, got "
            f"{mask.dtype} of shape {tuple(mask.shape)}."
        )
    return mask


def as_labels(label: object, num_classes: int, device: torch.device) -> Tensor:
    r"""Returns labels of classes as int64 on a device: an integer, a list, an array or a tensor.

    Args:
        label: Integers from 0 to `num_classes` - 1, of any shape (\*B).
        num_classes: Number of classes.
        device: The device that is wanted.

    Returns:
        Tensor of shape (\*B).

    Raises:
        ValueError: If they are not integers, or out of range.
    """
    try:  # a copy of arrays, as PyTorch takes none with negative strides
        given = label.copy() if isinstance(label, np.ndarray) else label
        labels = torch.as_tensor(given, device=device)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(
            f"Expected integer labels of classes, got {type(label).__name__}. Number the classes "
            f"from 0 to {num_classes - 1}."
        ) from None
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise ValueError(
            f"Expected integer labels of classes, got {labels.dtype}. Convert numbers from 0 to "
            f"{num_classes - 1} to integers; of one-hot vectors take argmax(-1)."
        )
    return check_integers("labels", labels.long(), 0, num_classes - 1)


def as_value(distribution: Distribution, value: object, *, like: Tensor) -> Tensor:
    """Checks a value as `check_value` does, and takes what `as_tensor` takes.

    Raises:
        ValueError: If the value does not fit.
    """
    return check_value(distribution, as_tensor("value", value, like=like), like=like)
