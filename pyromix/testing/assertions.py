"""Comparisons that say what was expected, and what was found."""

__all__ = ["assert_close", "assert_equal"]

from typing import Any

import torch
from torch import Tensor


def assert_equal(got: Any, expected: Any, what: str) -> None:
    """Raises `AssertionError` unless two values are equal; sizes may be given as tuples."""
    expected = torch.Size(expected) if isinstance(got, torch.Size) else expected
    assert got == expected, f"Expected {what} {expected}, got {got}."


def assert_close(got: Tensor, expected: Tensor, what: str) -> None:
    """Raises `AssertionError` unless tensors agree up to rounding."""

    def message(text: str) -> str:
        return f"Wrong {what}: {text}"

    torch.testing.assert_close(got, expected, msg=message)
