"""A calm start for Pyro's transforms."""

__all__ = ["near_identity"]

import math
from typing import Any

import pyro.distributions.transforms as transforms
import torch
from torch import nn

# What Pyro's splines map to a slope of one: softplus, plus a smallest slope of 1e-3.
UNIT_SLOPE = math.log(math.expm1(1 - 1e-3))

_AFFINE = (
    transforms.AffineCoupling
    | transforms.ConditionalAffineCoupling
    | transforms.ConditionalAffineAutoregressive
)


@torch.no_grad()
def near_identity(transform: Any, strength: float = 0.1) -> Any:
    """Changes the parameters of one of Pyro's transforms such that it starts near the identity.

    Pyro starts splines from random shapes, several of which in a row tear data apart before
    training begins. Here the parameters that shape the transform are shrunk; the hidden layers
    of its network stay random, so that it can learn.

    Args:
        transform: An affine or spline transform of Pyro (elementwise, coupling or autoregressive,
            conditional or not), or a composition or list of such. Changed in place.
        strength: Factor by which the random shape is shrunk; zero gives the identity.

    Returns:
        The transform.

    Raises:
        ValueError: If the transform is of another kind.

    Example:
        >>> from pyro.distributions.transforms import spline_coupling
        >>> spline = near_identity(spline_coupling(4), strength=0.0)
        >>> x = torch.randn(5, 4)
        >>> torch.allclose(spline(x), x, atol=1e-4)
        True
    """
    if not 0 <= strength <= 1:
        raise ValueError(f"Expected a strength from 0 to 1, got {strength}.")
    if isinstance(transform, nn.ModuleList | list | tuple):
        for part in transform:
            near_identity(part, strength)
    elif isinstance(transform, transforms.SplineCoupling):
        near_identity(transform.lower_spline, strength)
        near_identity(transform.upper_spline, strength)
    elif isinstance(transform, transforms.SplineAutoregressive):
        near_identity(transform.spline, strength)
    elif isinstance(transform, transforms.Spline):
        for parameter in transform.parameters():
            parameter.mul_(strength)
        transform.unnormalized_derivatives.add_(UNIT_SLOPE)
    elif isinstance(
        transform, transforms.ConditionalSpline | transforms.ConditionalSplineAutoregressive
    ):
        _shrink_output(transform.nn, strength)
        _output_bias(transform.nn)[transform.nn.param_slices[2]] += UNIT_SLOPE
    elif isinstance(transform, _AFFINE):
        _shrink_output(transform.nn, strength)
    elif isinstance(transform, transforms.AffineAutoregressive) and not transform.stable:
        _shrink_output(transform.arn, strength)
    else:
        raise ValueError(
            f"Expected an affine or spline transform of Pyro, or a composition of them, got "
            f"{type(transform).__name__}. Others, and affine autoregressive transforms with "
            f"stable=True, have no identity to start from; of an inverse, pass the transform."
        )
    return transform


def _shrink_output(network: Any, strength: float) -> None:
    for layer in (network.layers[-1], getattr(network, "skip_layer", None)):
        if layer is not None:
            for parameter in layer.parameters():
                parameter.mul_(strength)


def _output_bias(network: Any) -> torch.Tensor:
    """The bias of the last layer, indexed by parameter first, as the network's slices are."""
    bias = network.layers[-1].bias
    is_autoregressive = hasattr(network, "permutation")
    return bias.view(-1, network.input_dim) if is_autoregressive else bias
