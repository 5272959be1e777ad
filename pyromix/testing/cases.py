"""Laws to check, and the list of checks.

A module of checks beside this one decorates each of its functions with `check`, which adds it to
`CHECKS`. That is all that a new check needs.
"""

__all__ = [
    "CHECKS",
    "Case",
    "applicable_checks",
    "check",
    "default_settings",
    "is_module",
    "parametrize",
]

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch.distributions import Distribution

from ..core.module import DistributionModule

Check = Callable[["Case"], None]
Condition = Callable[["Case", Distribution], bool]


@dataclass(frozen=True)
class Case:
    """A distribution to check, and what may be asked of it."""

    make: Callable[[], Distribution]
    """Builds the distribution, one of Pyro's or a `DistributionModule`, with tensors of PyTorch's
    default dtype and device."""
    smooth: bool = True
    """Whether the density is differentiable everywhere and its support is all of space."""
    continuous: bool = True
    """Whether `log_prob` is a density on all coordinates: not so for discrete laws, nor for laws
    on a simplex or a sphere. Checks of samples against densities are left out without it."""
    nuts: bool = True
    """Whether Hamiltonian Monte Carlo can draw from it."""
    traceable: bool = True
    """Whether `log_prob` works under `vmap` and `torch.compile`."""
    rejects_nan: bool = True
    """Whether NaN is bad input, not a missing entry."""
    rejects_integers: bool = False
    """Whether an integer tensor is bad input to `log_prob`; PyTorch's own laws take it."""
    num_samples: int = 20_000
    """Number of draws in statistical checks."""
    seed: int = 0
    """Seed of construction and of all draws."""
    device: str = "cpu"
    """Device to build on."""

    def build(self, dtype: torch.dtype = torch.float64) -> Any:
        """Builds the distribution at a fixed seed."""
        with default_settings(dtype, self.device):
            torch.manual_seed(self.seed)
            distribution = self.make()
        if not isinstance(distribution, TorchDistributionMixin):
            raise TypeError(
                f"Expected one of Pyro's distributions or a DistributionModule, got a "
                f"{type(distribution).__name__} of {type(distribution).__module__}. PyTorch's are "
                f"found under the same names in pyro.distributions."
            )
        return distribution


CHECKS: dict[str, tuple[Check, Condition]] = {}
"""By name, every check and whether it applies to a case and its distribution."""


def applicable_checks(case: Case) -> dict[str, Check]:
    """The checks that apply to a case, by name."""
    with torch.random.fork_rng():
        distribution = case.build()
    return {name: run for name, (run, fits) in CHECKS.items() if fits(case, distribution)}


def parametrize(cases: Mapping[str, Case]) -> Any:
    """Decorates a test function ``test(check, case)`` with every check of every case."""
    import pytest

    return pytest.mark.parametrize(
        ("check", "case"),
        [
            pytest.param(run, case, id=f"{name}-{check_name}")
            for name, case in cases.items()
            for check_name, run in applicable_checks(case).items()
        ],
    )


def check(fits: Condition = lambda case, d: True) -> Callable[[Check], Check]:  # noqa: ARG005
    """Returns a decorator that adds a function ``check_name(case)`` to `CHECKS`, as ``"name"``.

    The check runs in float64, at the case's seed and device. Global state is restored afterwards.

    Args:
        fits: Whether the check applies to a case and the distribution that it builds.
    """

    def decorate(function: Check) -> Check:
        @functools.wraps(function)
        def run(case: Case) -> None:
            with torch.random.fork_rng(), default_settings(torch.float64, case.device):
                pyro.clear_param_store()
                torch.manual_seed(case.seed + 1)
                function(case)

        CHECKS[function.__name__.removeprefix("check_")] = run, fits
        return run

    return decorate


def is_module(case: Case, d: Distribution) -> bool:  # noqa: ARG001
    """Whether the distribution is a `DistributionModule`, as a condition of a check."""
    return isinstance(d, DistributionModule)


@contextmanager
def default_settings(dtype: torch.dtype, device: str) -> Iterator[None]:
    """Within it, a default dtype and device, and validation of arguments."""
    before = torch.get_default_dtype(), Distribution._validate_args
    torch.set_default_dtype(dtype)
    Distribution.set_default_validate_args(True)
    try:
        # On the CPU the context would only slow every call down.
        with nullcontext() if device == "cpu" else torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before[0])
        Distribution.set_default_validate_args(before[1])  # torch.compile switches it off
