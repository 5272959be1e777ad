"""Flows for problems of maximum entropy: mixtures through splines, onto a support."""

__all__ = ["spline_flow"]

from collections.abc import Sequence
from typing import Any

import pyro.distributions.transforms as transforms
import torch
from torch.distributions import Distribution, biject_to, constraints

from ..core.checks import check_choice, check_count, check_positive_int, number
from ..core.networks import check_widths
from ..flows.flow import Flow
from ..flows.near_identity import near_identity
from ..flows.triangular import Triangular
from ..mixtures import GaussianMixture, RelaxedGaussianMixture
from ..mixtures.covariance import FAMILIES, STRUCTURES
from ..mixtures.learnable import Covariance


def spline_flow(
    dim: int,
    num_components: int = 1,
    *,
    base: Distribution | None = None,
    covariance: Covariance | None = None,
    temperatures: float | Sequence[float] | None = None,
    num_layers: int = 2,
    support: constraints.Constraint | None = None,
    bins: int = 16,
    hidden_dims: Sequence[int] = (64, 64),
    bound: float = 10.0,
) -> Flow:
    """A mixture of normals, or another base, through autoregressive splines, onto a support.

    Draws and their densities take one pass, whatever the dimension; the density of other values
    takes one pass for every dimension. The splines start near the identity.

    Args:
        dim: Number of unconstrained coordinates.
        num_components: Components of the base; with one it is a normal.
        base: A law of vectors of length `dim`, in place of these components, such as
            ``RAD(dim, 2)``: its folds make modes, which the splines shape.
        covariance: Of the base's components, see `GaussianMixture`; by default that of one
            component is full, and those of several are diagonal, with a `Triangular` map of all
            of them before the splines, as of another base: splines alone learn correlations
            slowly.
        temperatures: Makes the base a `RelaxedGaussianMixture`.
        num_layers: Number of splines, with the coordinates reversed between them.
        support: Where draws lie: a constraint of PyTorch, such as ``constraints.positive``,
            ``constraints.interval(0.0, 1.0)`` (for every coordinate) or ``constraints.simplex``
            (of one more entry than `dim`); by default all of space.
        bins: Pieces of every spline.
        hidden_dims: Widths of the networks' hidden layers.
        bound: The splines act between -bound and bound, and are the identity outside. On a
            bounded or positive support, laws may have heavy tails on the unconstrained scale:
            then choose it large.

    Returns:
        A `Flow` of event shape (dim,), or (dim + 1,) on the simplex.

    Raises:
        ValueError: If an argument is out of range, or PyTorch knows no bijection to the support.

    Example:
        >>> flow = spline_flow(2, num_components=3, support=constraints.simplex)
        >>> torch.allclose(flow.sample((5,)).sum(-1), torch.ones(5))
        True
    """
    dim = check_positive_int("dim", dim)
    bins = check_positive_int("bins", bins)
    hidden_dims = check_widths("hidden_dims", hidden_dims)
    if not hidden_dims:
        raise ValueError("Expected hidden_dims to have at least one width, got none.")
    if not number()("bound", bound) > 0:
        raise ValueError(f"Expected bound to be positive, got {bound}.")
    if covariance is not None:
        check_choice("covariance", covariance, (*STRUCTURES, *FAMILIES))
    if base is not None:
        _check_base(base, dim, (num_components, covariance, temperatures))
    if covariance is None:
        is_one = dim > 1 and num_components == 1 and temperatures is None and base is None
        covariance = "full" if is_one else "diagonal"
    parts: list[Any] = []
    if dim > 1 and covariance == "diagonal":
        parts.append(Triangular(dim))
    for i in range(check_count("num_layers", num_layers)):
        if dim == 1:
            parts.append(transforms.Spline(1, count_bins=bins, bound=bound))
            continue
        if i:
            parts.append(transforms.Permute(torch.arange(dim - 1, -1, -1)))
        widths = [max(dim, width) for width in hidden_dims]  # as autoregressive networks need
        parts.append(transforms.spline_autoregressive(dim, widths, count_bins=bins, bound=bound))
    for part in parts:
        if not isinstance(part, transforms.Permute | Triangular):
            near_identity(part)
    if support is not None:
        try:
            parts.append(biject_to(support))
        except NotImplementedError as error:
            raise ValueError(
                f"Expected a support that PyTorch has a bijection to, got {support}. Put a "
                f"transform of your own last in a Flow."
            ) from error
    if base is not None:
        return Flow(base, parts)
    if temperatures is None:
        base = GaussianMixture(dim, num_components, covariance)
    elif covariance != "diagonal":
        raise ValueError(f"Expected diagonal covariances with temperatures, got {covariance!r}.")
    else:
        base = RelaxedGaussianMixture(dim, num_components, temperatures)
    return Flow(base, parts)


def _check_base(base: Any, dim: int, others: tuple[Any, ...]) -> None:
    """Raises an error unless a base is a law of vectors, and given alone.

    Args:
        base: The base.
        dim: Length of the vectors.
        others: Number of components, covariance and temperatures, which make a base as well.
    """
    if others != (1, None, None):
        raise ValueError(
            f"Expected a base or what makes one, got base={type(base).__name__} with "
            f"num_components={others[0]}, covariance={others[1]!r} and temperatures={others[2]}. "
            f"Leave these out."
        )
    if base.batch_shape or base.event_shape != (dim,):
        raise ValueError(
            f"Expected a base on vectors of length {dim}, got batch shape "
            f"{tuple(base.batch_shape)} and event shape {tuple(base.event_shape)}."
        )
