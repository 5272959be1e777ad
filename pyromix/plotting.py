"""Pictures of samples and densities; these functions know no model."""

__all__ = ["plot_density", "plot_images"]

from typing import TYPE_CHECKING, Any

import torch
from torch.distributions import Distribution

from .core.conversions import TensorLike, as_numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def plot_images(
    images: TensorLike, ax: "Axes", *, columns: int | None = None, **kwargs: Any
) -> "Axes":
    """Shows images side by side, in rows.

    Args:
        images: Shape (N, height, width), or with colours last, (N, height, width, 3), or first,
            (N, 1 or 3, height, width), as models have them: floating-point numbers, integers from
            0 to 255, or truth values, in a tensor, an array or lists.
        ax: Where to draw.
        columns: Images per row; by default the grid is nearly square.
        kwargs: Passed to `matplotlib.axes.Axes.imshow`; by default dark ink on white, from 0 to 1.

    Returns:
        The axes.

    Raises:
        ValueError: If the images have another number of dimensions.
    """
    images = as_numbers("images", images)
    if images.dim() == 4 and images.shape[-1] != 3 and images.shape[1] in (1, 3):
        images = images.movedim(1, -1)
    if images.dim() == 4 and images.shape[-1] == 1:
        images = images.squeeze(-1)
    if images.dim() != 3 and not (images.dim() == 4 and images.shape[-1] == 3):
        raise ValueError(
            f"Expected images of shape (N, height, width), (N, height, width, 3) or "
            f"(N, 1 or 3, height, width), got {tuple(images.shape)}. Reshape flat ones with "
            f"images.reshape(-1, height, width)."
        )
    images = images.detach().cpu()
    if images.dtype == torch.bool:
        images = images.float()
    if not images.is_floating_point():  # bytes, as files hold them
        images = images / 255
    count, height, width = images.shape[:3]
    columns = columns or max(1, round(count**0.5))
    rows = -(-count // columns)
    # One pixel of background between neighbours, not-a-number so that it stays white.
    canvas = images.new_full(
        (rows * (height + 1), columns * (width + 1), *images.shape[3:]), torch.nan
    )
    for i, image in enumerate(images):
        top, left = (i // columns) * (height + 1), (i % columns) * (width + 1)
        canvas[top : top + height, left : left + width] = image
    options: dict[str, Any] = {"cmap": "gray_r", "vmin": 0.0, "vmax": 1.0} | kwargs
    ax.imshow(canvas[:-1, :-1].numpy(), **options)
    ax.set_axis_off()
    return ax


def plot_density(
    distribution: Distribution,
    ax: "Axes",
    *,
    limits: tuple[float, float, float, float] | None = None,
    resolution: int = 200,
    **kwargs: Any,
) -> "Axes":
    """Shows a density over the plane, filled from white at zero.

    Args:
        distribution: A distribution over two real numbers, without batch.
        ax: Where to draw.
        limits: Left, right, bottom, top; by default where nearly all draws lie.
        resolution: Points along each axis.
        kwargs: Passed to `matplotlib.axes.Axes.pcolormesh`.

    Returns:
        The axes.

    Raises:
        ValueError: If the distribution is not over the plane.
    """
    if distribution.event_shape != (2,) or distribution.batch_shape:
        raise ValueError(
            f"Expected a distribution of event shape (2,) and no batch, got event shape "
            f"{tuple(distribution.event_shape)} and batch shape {tuple(distribution.batch_shape)}."
        )
    with torch.no_grad():
        draws = distribution.sample(torch.Size((1000,)))
        if limits is None:
            low, high = draws.quantile(0.01, 0), draws.quantile(0.99, 0)
            low, high = low - 0.3 * (high - low), high + 0.3 * (high - low)
            limits = (float(low[0]), float(high[0]), float(low[1]), float(high[1]))
        x = torch.linspace(limits[0], limits[1], resolution).to(draws)
        y = torch.linspace(limits[2], limits[3], resolution).to(draws)
        grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)
        density = distribution.log_prob(grid).exp()
    options: dict[str, Any] = {"cmap": "Blues", "shading": "auto", "rasterized": True} | kwargs
    ax.pcolormesh(*(t.cpu().numpy() for t in (x, y, density)), **options)
    ax.set(xlim=limits[:2], ylim=limits[2:])
    return ax
