"""Checks of priors, parameters and simulations."""

__all__ = ["check_pairs", "check_parameters", "check_prior", "check_simulations", "within"]

from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution

from ..core.conversions import TensorLike, as_numbers, as_tensor

LEAST_SIMULATIONS = 50


def check_prior(prior: Any) -> Distribution:
    """Checks that a prior is a law of vectors that can be drawn from, and returns it.

    Raises:
        ValueError: If it is not.
    """
    missing = [name for name in ("sample", "log_prob") if not callable(getattr(prior, name, None))]
    if missing or not isinstance(prior, Distribution):
        lacks = f" without {' and '.join(missing)}" if missing else ""
        raise ValueError(
            f"Expected prior to be a distribution of PyTorch or Pyro, with sample and log_prob, "
            f"got {type(prior).__name__}{lacks}."
        )
    if not len(prior.batch_shape) and not len(prior.event_shape):
        raise ValueError(
            f"Expected a prior of event shape (D,), got a {type(prior).__name__} of numbers, of "
            f"event shape (). Make it a law of vectors of one parameter: "
            f"prior.expand([1]).to_event(1) in Pyro, or Independent(prior.expand([1]), 1)."
        )
    if len(prior.batch_shape) or len(prior.event_shape) != 1:
        raise ValueError(
            f"Expected a prior of event shape (D,) and no batch shape, got event shape "
            f"{tuple(prior.event_shape)} and batch shape {tuple(prior.batch_shape)}. Make the "
            f"last batch dimension one of the event: prior.to_event(1) in Pyro, or "
            f"Independent(prior, 1)."
        )
    try:
        prior.sample()
    except NotImplementedError as error:
        raise ValueError(
            f"Expected a prior that can be drawn from, got a {type(prior).__name__} whose sample "
            f"is not implemented."
        ) from error
    return prior


def check_pairs(prior: Distribution, theta: TensorLike, x: TensorLike) -> tuple[Tensor, Tensor]:
    """Checks parameters and their simulations, and returns them as matrices of one dtype.

    A vector is a matrix of one column.

    Raises:
        ValueError: If they do not fit each other and the prior, are not finite, or if a column
            of either is constant.
    """
    if isinstance(theta, Tensor) and not theta.is_floating_point():
        theta = as_numbers("theta", theta).to(torch.get_default_dtype())
    theta = as_tensor("theta", theta)
    x = _converted("x", x, theta)
    dim = prior.event_shape[0]
    theta = theta.unsqueeze(-1) if dim == 1 and theta.dim() == 1 else theta
    x = x.unsqueeze(-1) if x.dim() == 1 else x
    if theta.dim() != 2 or theta.shape[1] != dim:
        raise ValueError(
            f"Expected theta of shape (N, {dim}), as the prior has parameters, got "
            f"{tuple(theta.shape)}."
        )
    if x.dim() != 2 or x.shape[1] == 0:
        raise ValueError(
            f"Expected simulations x of shape (N, C), a row for each simulation, got "
            f"{tuple(x.shape)}. Flatten what a simulation returns."
        )
    if len(theta) != len(x):
        raise ValueError(
            f"Expected as many simulations as parameters, got {len(x)} and {len(theta)}."
        )
    if len(theta) < LEAST_SIMULATIONS:
        raise ValueError(
            f"Expected at least {LEAST_SIMULATIONS} simulations to learn from, got {len(theta)}."
        )
    for name, value in (("theta", theta), ("x", x)):
        bad = int((~value.isfinite()).any(-1).sum())
        if bad:
            raise ValueError(
                f"Expected finite numbers in {name}, got NaN or infinity in {bad} of {len(value)} "
                f"rows. Leave these simulations out, or have the simulator say what they mean."
            )
        constant = ((value == value[0]).all(0)).nonzero().squeeze(-1).tolist()
        if constant:
            raise ValueError(
                f"Expected columns of {name} that vary, but {constant} are constant. Leave them "
                f"out: they say nothing."
            )
    inside = within(prior, theta)
    if not bool(inside.all()):
        raise ValueError(
            f"Expected theta within the support of the prior, got {int((~inside).sum())} rows "
            f"outside."
        )
    return theta, x


def check_simulations(x: TensorLike, like: Tensor) -> Tensor:
    """Checks what was observed, (*B, C) with NaN where it is missing, and returns it as a tensor.

    Raises:
        ValueError: If it has another number of columns than the simulations, or is infinite.
    """
    x = _converted("x", x, like)
    x = x.unsqueeze(0) if x.dim() == 0 else x
    if x.shape[-1] != len(like):
        raise ValueError(
            f"Expected x of shape (..., {len(like)}), as the simulations are, got "
            f"{tuple(x.shape)}."
        )
    if bool(torch.isinf(x).any()):
        raise ValueError("Expected finite numbers in x, or NaN for what is missing, got infinity.")
    return x


def check_parameters(prior: Distribution, theta: TensorLike, like: Tensor) -> Tensor:
    r"""Checks parameters (\*B, D), or a number if D is one, and returns them as a tensor.

    Raises:
        ValueError: If they are not within the support of the prior.
    """
    theta = _converted("theta", theta, like)
    theta = theta.unsqueeze(0) if theta.dim() == 0 else theta
    dim = prior.event_shape[0]
    if theta.shape[-1] != dim:
        raise ValueError(f"Expected theta of shape (..., {dim}), got {tuple(theta.shape)}.")
    if not bool(within(prior, theta).all()):
        raise ValueError("Expected theta within the support of the prior, got other values.")
    return theta


def _converted(name: str, value: TensorLike, like: Tensor) -> Tensor:
    """Real numbers of any type as a tensor of the dtype of another one."""
    if isinstance(value, Tensor):
        value = as_numbers(name, value).to(like.dtype)
    return as_tensor(name, value, like=like)


def within(prior: Distribution, theta: Tensor) -> Tensor:
    """Whether parameters (*S, D) are in the support of their prior, (*S,)."""
    support: Any = prior.support
    inside: Tensor = support.check(theta)
    return inside
