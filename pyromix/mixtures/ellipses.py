"""Pictures of mixtures over the plane: points, and an ellipse for every component."""

__all__ = ["ellipses", "plot_mixture"]

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..core.conversions import TensorLike, as_tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Points of an ellipse, and points that are drawn.
OUTLINE = 100
MOST_POINTS = 5000


@torch.no_grad()
def ellipses(law: Any, level: float) -> Tensor:
    r"""Outlines of the regions that hold so much of each component of a mixture over the plane.

    Args:
        law: A mixture over two coordinates, without batch, of normals or Student-t laws.
        level: The probability of each region under its component, between 0 and 1.

    Returns:
        Points in order, the first one again at the end, shape (K, 100, 2).

    Raises:
        ValueError: If the mixture is not over the plane, or for another level.
    """
    if law.event_shape != (2,) or law.batch_shape:
        raise ValueError(
            f"Expected a mixture over two coordinates and no batch, got event shape "
            f"{tuple(law.event_shape)} and batch shape {tuple(law.batch_shape)}. Take two with "
            f"marginal([0, 1])."
        )
    if not 0 < level < 1:
        raise ValueError(f"Expected a level between 0 and 1, got {level}.")
    df = torch.full_like(law.logits, math.inf) if law._has_normals else law.df
    shape = law if law._has_normals else law._normals
    covariance = shape.component_covariance.double().expand(law.num_components, 2, 2)
    angle = torch.linspace(0, 2 * math.pi, OUTLINE, dtype=torch.float64, device=covariance.device)
    circle = torch.stack([angle.cos(), angle.sin()])  # (2, n)
    # P(squared distance <= r^2) = 1 - (1 + r^2 / nu)^(-nu / 2), and 1 - exp(-r^2 / 2) at last.
    rate = -2 * math.log1p(-level)
    finite = torch.where(df.isinf(), 1.0, df.double())
    square = torch.where(df.isinf(), rate, finite * torch.expm1(rate / finite))
    outline = (torch.linalg.cholesky(covariance) @ circle).mT * square.sqrt()[:, None, None]
    return (law.loc.double().unsqueeze(1) + outline).to(law.loc.dtype)


def plot_mixture(
    law: Any, ax: "Axes | None", data: TensorLike | None, level: float, **kwargs: Any
) -> "Axes":
    """Draws points, coloured by component, and the components' ellipses, as dark as they weigh."""
    if ax is None:
        import matplotlib.pyplot as plt

        _, ax = plt.subplots(figsize=(4.5, 4), layout="constrained")
    outlines = ellipses(law, level)
    colours = [f"C{k % 10}" for k in range(len(outlines))]
    if data is not None:
        x = as_tensor("data", data, like=law.loc)
        x = x[torch.linspace(0, len(x) - 1, min(len(x), MOST_POINTS)).long()]
        x = x[~x.isnan().any(-1)]
        label = law.responsibilities(x).argmax(-1)
        shown: dict[str, Any] = {"s": 6, "alpha": 0.5, "linewidths": 0} | kwargs
        first, second = x.mT.cpu().numpy()
        ax.scatter(first, second, c=[colours[k] for k in label.tolist()], **shown)
    weight = law.logits.detach().exp()
    share = (weight / weight.max()).tolist()
    for outline, colour, w in zip(outlines.cpu().numpy(), colours, share, strict=True):
        ax.plot(*outline.T, color=colour, alpha=0.25 + 0.75 * w, linewidth=1.5)
        ax.fill(*outline.T, color=colour, alpha=0.05 + 0.1 * w, linewidth=0)
    return ax
