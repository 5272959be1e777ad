"""Checks on what a user passes in: a ``ValueError`` says what was expected, given, and to do."""

__all__ = [
    "Check",
    "as_float_or_nan",
    "as_int",
    "as_items",
    "broadcastable",
    "check_arguments",
    "check_choice",
    "check_count",
    "check_dims",
    "check_expandable",
    "check_floor",
    "check_index",
    "check_integers",
    "check_positive_int",
    "check_reachable",
    "check_squares",
    "check_tensor",
    "check_value",
    "check_value_shape",
    "check_weights",
    "is_expandable",
    "is_traced",
    "number",
    "one_of",
    "optional",
]

import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Size, Tensor
from torch.distributions import Distribution

# A check takes the name and the value of an argument, and returns the value to keep.
Check = Callable[[str, Any], Any]

FLOAT_DTYPES = (torch.float32, torch.float64)


def check_tensor(name: str, value: object, *, like: Tensor | None = None) -> Tensor:
    """Checks that an argument is a float32 or float64 tensor, and matches a companion.

    Args:
        name: What to call the argument in the error.
        value: The argument.
        like: Another tensor whose dtype and device the argument must share.

    Returns:
        The argument itself.

    Raises:
        ValueError: If it is not a tensor, of another dtype, or on another device.
    """
    if not isinstance(value, Tensor):
        raise ValueError(
            f"Expected {name} to be a torch.Tensor, got {type(value).__name__}. "
            f"Convert it with torch.as_tensor(...)."
        )
    if value.dtype not in FLOAT_DTYPES:
        raise ValueError(
            f"Expected {name} to have dtype torch.float32 or torch.float64, got {value.dtype}. "
            f"Convert it with .to(torch.get_default_dtype())."
        )
    if like is None:
        return value
    if value.device != like.device:
        raise ValueError(
            f"Expected {name} on device {like.device}, got {value.device}. "
            f"Nothing is moved between devices silently: call .to({str(like.device)!r}) on it."
        )
    if value.dtype != like.dtype:
        raise ValueError(
            f"Expected {name} to have dtype {like.dtype}, got {value.dtype}. "
            f"Convert one of the two, for instance with .to({like.dtype})."
        )
    return value


def check_value(
    distribution: Distribution, value: object, *, like: Tensor | None = None
) -> Tensor:
    """Checks a value that is about to be scored by a distribution over real numbers.

    Type, dtype, device and shape are always checked; NaN and infinite entries, which cost a pass
    over the data, only if the distribution validates its arguments.

    Args:
        distribution: The distribution that will score the value.
        value: Tensor of shape ``sample_shape + batch_shape + event_shape``.
        like: A parameter of the distribution, whose dtype and device the value must share.

    Returns:
        The value itself.

    Raises:
        ValueError: If the value does not fit.
    """
    value = check_value_shape(distribution, value, like=like)
    # A sum is not finite if an entry is not: one pass over good values.
    if distribution._validate_args and not is_traced() and not math.isfinite(value.sum().item()):
        missing, infinite = int(value.isnan().sum()), int(value.isinf().sum())
        if missing:
            raise ValueError(
                f"Expected a value without NaN, got {missing} NaN among {value.numel()} entries. "
                f"Remove or impute them before scoring."
            )
        if infinite:
            raise ValueError(
                f"Expected a finite value, got {infinite} infinite among {value.numel()} entries. "
                f"They have no density over real numbers: remove them, or mark them as missing "
                f"by NaN where the model takes that."
            )
    return value


def check_value_shape(
    distribution: Distribution, value: object, *, like: Tensor | None = None
) -> Tensor:
    """Checks a value as `check_value` does, but not for NaN.

    Raises:
        ValueError: If type, dtype, device or shape do not fit.
    """
    value = check_tensor("value", value, like=like)
    event_shape, batch_shape = distribution.event_shape, distribution.batch_shape
    event_dim = len(event_shape)
    if value.dim() < event_dim or value.shape[value.dim() - event_dim :] != event_shape:
        raise ValueError(
            f"Expected a value whose last {event_dim} dimension(s) are the event shape "
            f"{tuple(event_shape)}, got shape {tuple(value.shape)}. "
            f"Values have shape sample_shape + batch_shape + event_shape."
        )
    leading = value.shape[: value.dim() - event_dim]
    if not broadcastable(leading, batch_shape):
        raise ValueError(
            f"Expected a value whose leading shape broadcasts with the batch shape "
            f"{tuple(batch_shape)}, got {tuple(leading)} (value of shape {tuple(value.shape)}). "
            f"To score one value under every distribution of the batch, insert dimensions of "
            f"size 1."
        )
    return value


def check_reachable(distribution: Distribution, scores: Tensor) -> Tensor:
    """Checks that of alternatives at least one has a density above zero.

    So far from all of them that every density is rounded to zero, nothing can tell them apart:
    their probabilities would be NaN.

    Args:
        distribution: The distribution, which may not validate its arguments.
        scores: Log-densities of K alternatives, shape (*B, K).

    Returns:
        The scores themselves.

    Raises:
        ValueError: If all are minus infinity, or NaN.
    """
    if distribution._validate_args and not is_traced():
        lost = int((~(scores > -math.inf).any(-1)).sum())
        if lost:
            raise ValueError(
                f"Expected values near enough to a component that its density is above zero in "
                f"{scores.dtype}, got {lost} that are not. Check their units, or use float64."
            )
    return scores


def check_squares(name: str, value: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Checks that numbers to learn from are not so large that their squares overflow.

    Variances would be infinite, and everything that is computed from them NaN.

    Args:
        name: What to call them in the error.
        value: A tensor; NaN in it counts as zero.
        dtype: The dtype to compute in; by default the tensor's own.

    Returns:
        The tensor itself.

    Raises:
        ValueError: If the sum of their squares is more than the dtype holds.
    """
    dtype = dtype or value.dtype
    finite = value.detach().to(dtype).nan_to_num(0.0, math.inf, -math.inf)
    if not is_traced() and not math.isfinite(finite.square().sum().item()):
        largest = finite.abs().max().item()
        raise ValueError(
            f"Expected {name} whose squares {dtype} can hold, got numbers up to {largest:g}. "
            f"Standardise them (subtract the mean, divide by the standard deviation), or use "
            f"float64."
        )
    return value


def check_arguments(checks: Mapping[str, Check], given: Mapping[str, Any]) -> dict[str, Any]:
    """Checks a constructor's arguments by a table.

    Args:
        checks: Name of an argument -> its check, which returns the value to keep. `one_of`,
            `number` and `optional` make checks; `check_positive_int` and its like are some.
        given: At least the arguments that the table names, such as ``locals()`` at the start of
            a constructor.

    Returns:
        The values to keep, in the order of the table.

    Raises:
        ValueError: If an argument does not pass.

    >>> check_arguments({"dim": check_positive_int, "rank": check_count}, {"dim": 2, "rank": 0})
    {'dim': 2, 'rank': 0}
    """
    return {name: check(name, given[name]) for name, check in checks.items()}


def one_of(*choices: str) -> Check:
    """A check that an argument is one of some names; see `check_choice`."""
    return partial(check_choice, choices=choices)


def optional(check: Check) -> Check:
    """A check that None passes, too."""
    return lambda name, value: None if value is None else check(name, value)


def number(low: float = -math.inf, high: float = math.inf) -> Check:
    """A check that an argument is a finite number from `low` to less than `high`, as a `float`.

    >>> number(0, 1)("share", 1)
    Traceback (most recent call last):
        ...
    ValueError: Expected share to be a finite number, at least 0 and less than 1, got 1.
    """

    def check(name: str, value: Any) -> float:
        as_float = as_float_or_nan(value)
        if not (low <= as_float < high and math.isfinite(as_float)):
            bounds = [f", at least {low:g}" if low > -math.inf else ""]
            bounds += [f" and less than {high:g}" if high < math.inf else ""]
            raise ValueError(
                f"Expected {name} to be a finite number{''.join(bounds)}, got {value!r}."
            )
        return as_float

    return check


def check_index(name: str, value: object, size: int) -> int:
    """Checks that an argument is an index of `size` entries, and returns it from zero.

    Negative indices count from the end, as in Python.

    Raises:
        ValueError: If it is not an integer, or out of range.

    >>> check_index("layer", -1, 3)
    2
    """
    index = as_int(value)
    if index is None or not -size <= index < size:
        raise ValueError(
            f"Expected {name} to be an integer from {-size} to {size - 1}, got {value!r}."
        )
    return index % size


def check_dims(dims: object, size: int) -> list[int]:
    """Checks that an argument names coordinates of `size`, each once, and returns them from zero.

    Args:
        dims: A coordinate, or several; negative ones count from the end.
        size: How many there are.

    Raises:
        ValueError: If one is no integer, out of range, or named twice.
    """
    single = as_int(dims)
    named = list(dims) if isinstance(dims, Iterable) and single is None else [dims]
    positive = [check_index("every coordinate", d, size) for d in named]
    if len(set(positive)) < len(positive):
        raise ValueError(f"Expected each coordinate once, got {named}.")
    return positive


def check_integers(
    name: str, value: Tensor, low: int, high: int, *, where: str = "", missing: bool = False
) -> Tensor:
    """Checks that all entries of a tensor are whole numbers in a range, and returns them.

    Under tracing, where values are not known, everything passes.

    Args:
        name: What to call them in the error.
        value: A tensor of integers, or of floats that hold whole numbers.
        low: The smallest that is allowed.
        high: The largest that is allowed.
        where: What to add to the error, such as ``" in column 3"``.
        missing: Whether NaN passes, too.

    Returns:
        The tensor itself.

    Raises:
        ValueError: If an entry is out of range, or no whole number.
    """
    if is_traced() or value.numel() == 0:
        return value
    good = (value >= low) & (value <= high)
    if value.is_floating_point():
        good &= value == value.round()
        if missing:
            good |= value.isnan()
    if not bool(good.all()):
        wrong = value[~good]
        got = (
            f"{wrong.min().item():g} to {wrong.max().item():g}" if len(wrong) > 1 else wrong.item()
        )
        raise ValueError(f"Expected {name} from {low} to {high}{where}, got {got}.")
    return value


def check_positive_int(name: str, value: object) -> int:
    """Checks that an argument is an integer of at least one, and returns it as an `int`.

    Raises:
        ValueError: If it is not.
    """
    return check_count(name, value, least=1)


def check_count(name: str, value: object, least: int = 0) -> int:
    """Checks that an argument is an integer of at least `least`, and returns it as an `int`.

    Raises:
        ValueError: If it is not.
    """
    count = as_int(value)
    if count is None or count < least:
        raise ValueError(f"Expected {name} to be an integer of at least {least}, got {value!r}.")
    return count


def check_choice(name: str, value: Any, choices: Iterable[str]) -> Any:
    """Checks that an argument is one of some names, and returns it.

    Raises:
        ValueError: If it is not.
    """
    if not isinstance(value, str) or value not in tuple(choices):
        raise ValueError(f"Expected {name} to be one of {tuple(choices)}, got {value!r}.")
    return value


def as_items(value: object) -> list[Any] | None:
    """The items of a sequence or another iterable; None for anything else, and for text.

    >>> as_items((1, 2)), as_items("12"), as_items(torch.tensor(3))
    ([1, 2], None, None)
    """
    if isinstance(value, str):
        return None
    try:  # a tensor without dimensions has an iterator, which fails
        return list(value)  # type: ignore[call-overload]
    except TypeError:
        return None


def check_floor(name: str, value: float) -> float:
    """Checks that the smallest scale or variance of a mixture is positive, and returns it.

    Raises:
        ValueError: If it is not a number, not positive or not finite.
    """
    floor = as_float_or_nan(value)
    if not 0 < floor < math.inf:
        raise ValueError(
            f"Expected a positive, finite {name}, got {value!r}. Without a floor the likelihood "
            f"of a mixture is unbounded."
        )
    return floor


def as_float_or_nan(value: Any) -> float:
    """A number of Python, NumPy or PyTorch as a `float`; NaN for anything else."""
    if isinstance(value, bool | str):
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return math.nan


def as_int(value: object) -> int | None:
    """An integer of Python, NumPy or PyTorch as an `int`; None for anything else.

    >>> as_int(torch.tensor(3)), as_int(3.0), as_int(True)
    (3, None, None)
    """
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None


def broadcastable(first: Sequence[int], second: Sequence[int]) -> bool:
    """Whether two shapes broadcast against each other.

    >>> broadcastable((5, 1), (3,))
    True
    >>> broadcastable((5, 2), (3,))
    False
    """
    return all(a == b or a == 1 or b == 1 for a, b in _last_pairs(first, second))


def is_expandable(shape: Sequence[int], target: Sequence[int]) -> bool:
    """Whether a tensor of one shape can be expanded to another.

    >>> is_expandable((1, 3), (5, 2, 3))
    True
    >>> is_expandable((2, 3), (3,))
    False
    """
    return len(shape) <= len(target) and all(a in (1, b) for a, b in _last_pairs(shape, target))


def _last_pairs(first: Sequence[int], second: Sequence[int]) -> list[tuple[int, int]]:
    """The sizes of dimensions that two shapes have in common, from the last one on.

    Without `zip`, whose `strict` torch.compile does not know before PyTorch 2.9.
    """
    common = min(len(first), len(second))
    return [(first[-i], second[-i]) for i in range(1, common + 1)]


def check_expandable(distribution: Distribution, batch_shape: Sequence[int]) -> Size:
    """Checks that a distribution can be expanded to a batch shape, and returns it as a `Size`.

    Raises:
        ValueError: If it cannot.
    """
    if not is_expandable(distribution.batch_shape, batch_shape):
        raise ValueError(
            f"Expected a batch shape that {tuple(distribution.batch_shape)} expands to, "
            f"got {tuple(batch_shape)}."
        )
    return Size(batch_shape)


def is_traced() -> bool:
    """Whether `torch.compile`, the JIT, `vmap` or another function transform is running.

    Control flow that depends on the values of tensors is impossible there.
    """
    return (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or torch.jit.is_tracing()
    )


def check_weights(weight: object, count: int) -> Tensor:
    """Checks the weights of rows of data.

    Args:
        weight: Weights: a tensor, an array or a list.
        count: Number of rows n.

    Returns:
        The weights in float64, shape (n,).

    Raises:
        ValueError: For another shape, or weights that are negative or not finite.
    """
    values = torch.as_tensor(weight).detach().double()
    if values.shape != (count,):
        raise ValueError(
            f"Expected sample_weight of shape ({count},), one for each row, got "
            f"{tuple(values.shape)}."
        )
    if not bool((values.isfinite() & (values >= 0)).all()):
        raise ValueError("Expected weights that are finite and not negative.")
    return values
