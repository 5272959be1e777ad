"""Arithmetic that mixed precision leaves alone."""

__all__ = ["in_full_precision"]

import functools
from collections.abc import Callable
from contextlib import ExitStack
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")

DEVICES = ("cpu", "cuda")


def in_full_precision(function: Callable[P, R]) -> Callable[P, R]:
    """Lets a function compute in the dtype of its arguments under `torch.autocast`, too.

    Autocasting rounds the factors of every matrix product to 8 or 11 bits. Networks are trained
    for that. Densities are not: they have differences and quotients of products, and laws are not
    defined for half-precision parameters.
    """

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        casting = [device for device in DEVICES if torch.is_autocast_enabled(device)]
        if not casting:
            return function(*args, **kwargs)
        with ExitStack() as stack:
            for device in casting:
                stack.enter_context(torch.autocast(device, enabled=False))
            return function(*args, **kwargs)

    return run
