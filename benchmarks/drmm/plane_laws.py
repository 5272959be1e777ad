"""Laws in the plane for plane.py, what is known of them, and the training of models."""

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.common.training import in_chunks
from pyromix import DRMM, fit
from pyromix.datasets import pinwheel, sierpinski, two_moons

NOISE = 0.1  # around the spiral
FAR = 0.5
LR = 0.005
BATCH = 256


# ---- data ---------------------------------------------------------------------------------------


def curve(angle: Tensor) -> Tensor:
    """The spiral of Archimedes with radius angle / 2."""
    return 0.5 * angle.unsqueeze(-1) * torch.stack([angle.cos(), angle.sin()], -1)


def archimedes(num: int) -> Tensor:
    """Points around two turns of it, uniform in the angle."""
    return curve(4 * math.pi * torch.rand(num)) + NOISE * torch.randn(num, 2)


def archimedes_nats(num: int = 2000) -> float:
    """Mean log-density of the spiral's own law, by quadrature over the angle."""
    grid = curve(torch.linspace(0, 4 * math.pi, 20_001, dtype=torch.float64))
    x = archimedes(num).double()
    log_normal = -0.5 * (torch.cdist(x, grid) / NOISE).square() - math.log(2 * math.pi * NOISE**2)
    return float((log_normal.logsumexp(-1) - math.log(len(grid))).mean())


def sierpinski_nats() -> float:
    """Log-density of the triangle after eight removals."""
    return 8 * math.log(4 / 3) - math.log(3 * math.sqrt(3))


def nested_nats(depth: int) -> float:
    """Mean log-density of the fractal under 3^depth equal normals, one for each part of it.

    Those have the moments of the parts, and do not overlap: variance 2/3 on the whole, on parts
    a quarter of it at each depth.
    """
    variance = 2 / 3 / 4**depth
    return -depth * math.log(3) - math.log(2 * math.pi * math.e * variance)


def distance_from_curve(x: Tensor) -> Tensor:
    grid = curve(torch.linspace(0, 4 * math.pi, 5000))
    return in_chunks(lambda part: torch.cdist(part, grid).amin(-1), x, 2000)


class Law(NamedTuple):
    """A law to learn, and the model for it."""

    draw: Callable[[int], Tensor]
    num_components: int
    num_layers: int
    depths: tuple[int, ...]  # that are drawn
    limit: float  # of both axes
    half_plane: tuple[float, float, float]  # a, b, c of a x + b y + c > 0
    column: float  # x is this
    longer: float = 1.0  # training, compared with others

    @property
    def limits(self) -> tuple[float, float, float, float]:
        """Left, right, bottom and top of the axes."""
        return -self.limit, self.limit, -self.limit, self.limit


LAWS = {
    "spiral": Law(archimedes, 16, 3, (1, 2, 3), 7.2, (1.0, 1.0, -2.0), -2.5),
    "Sierpinski": Law(sierpinski, 3, 5, (1, 3, 5), 2.3, (1.0, -1.0, -0.3), -0.6, 2.5),
    "moons": Law(two_moons, 8, 3, (1, 2, 3), 2.1, (0.5, 1.0, -0.1), -0.5),
    "pinwheel": Law(pinwheel, 10, 2, (1, 2), 4.2, (1.0, 0.3, -0.5), -1.0),
}


# ---- training -----------------------------------------------------------------------------------


def train(model: Any, data: Tensor, steps: int, what: str, **options: Any) -> Any:
    start = time.perf_counter()
    fit(model, data, steps=steps, batch_size=BATCH, lr=LR, seed=0, progress_bar=False, **options)
    seconds = time.perf_counter() - start
    print(f"  trained {what}: {steps} steps, {seconds:.0f} s", flush=True)
    return model


def nats(model: DRMM, x: Tensor) -> list[float]:
    """Mean log-density by depth."""
    with torch.no_grad():
        return model.layer_log_prob(x).mean(0).tolist()
