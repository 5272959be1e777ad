r"""Standard normals within any polytope, by exact Hamiltonian moves.

A move follows the Hamiltonian flow of the normal, a rotation, for a fixed time and is reflected
by the walls (Pakman and Paninski 2014, Exact Hamiltonian Monte Carlo for truncated multivariate
Gaussians): it leaves the law unchanged and rejects nothing.

The normaliser comes from a sequence of laws, each close to the next: N(s c, I) within
:math:`H z \le h + \gamma`, for a point c well inside. First gamma shrinks from infinity to zero
with s = 1, then s shrinks from one to zero. A population of points follows, is reweighed,
resampled and moved at every stage; the product of the mean weights is an unbiased estimate. A
pilot run chooses the stages such that half of the population survives each; the estimate comes
from independent populations on the same stages, and its error from their spread.
"""

__all__ = ["Population", "anneal", "move"]

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ...numerics.resampling import systematic

PILOT_SIZE = 512
NUM_GROUPS = 20
MIN_GROUP_SIZE = 100
MOVES_PER_STAGE = 2
MAX_STAGES = 2000
# A move that meets more walls than this is taken back, which keeps the law: its reverse meets as
# many.
MAX_BOUNCES = 2000
SURVIVAL = 0.5


@dataclass(frozen=True)
class Population:
    """Points from the law, and its normaliser."""

    points: Tensor
    """Shape (n, T)."""
    log_weight: Tensor
    """Of points, to start from, shape (n,): the estimate of the group that they come from."""
    log_normalizer: Tensor
    error: Tensor
    """Standard error of `log_normalizer`."""
    time: float
    """Duration of a move."""


@dataclass(frozen=True)
class _Stage:
    margin: float
    pull: float
    time: float


def move(
    z: Tensor, rows: Tensor, bounds: Tensor, centre: Tensor, time: float
) -> tuple[Tensor, float]:
    """One exact move of every point under N(centre, I) within rows z <= bounds.

    Args:
        z: Points inside, shape (n, T).
        rows: Shape (c, T).
        bounds: Shape (c,).
        centre: Mean of the normal, shape (T,).
        time: How long to follow the flow; a quarter turn (pi / 2) forgets the start.

    Returns:
        The moved points, and how many walls a point met on average.
    """
    position, speed = z - centre, torch.randn_like(z)
    walls = bounds - rows @ centre
    gram = rows @ rows.mT
    result = position.clone()
    active = torch.arange(len(z), device=z.device)
    left = torch.full_like(z[:, 0], time)
    p, q = position @ rows.mT, speed @ rows.mT
    bounces = 0
    for _ in range(MAX_BOUNCES):
        radius = torch.hypot(p, q)
        # The value of a row is radius * cos(t + phase); it crosses its wall upwards at -acos.
        phase = torch.atan2(-q, p)
        hit = torch.remainder(-phase - torch.acos((walls / radius).clamp(-1, 1)), 2 * math.pi)
        hit = torch.where(walls < radius, hit, math.inf)
        first, wall = hit.min(-1)
        done = first >= left
        duration = torch.minimum(first, left).unsqueeze(-1)
        cos, sin = duration.cos(), duration.sin()
        position, speed = cos * position + sin * speed, cos * speed - sin * position
        if bool(done.any()):
            result[active[done]] = position[done]
            going = ~done
            if not bool(going.any()):
                break
            active, position, speed = active[going], position[going], speed[going]
            p, q, cos, sin = p[going], q[going], cos[going], sin[going]
            left, first, wall = left[going], first[going], wall[going]
        p, q = cos * p + sin * q, cos * q - sin * p
        left = left - first
        inward = 2 * q.gather(1, wall.unsqueeze(-1)) / gram[wall, wall].unsqueeze(-1)
        speed = speed - inward * rows[wall]
        q = q - inward * gram[wall]
        bounces += len(active)
    moved = result + centre
    # Rounding may leave a point behind a wall, where the formulas above do not hold.
    inside = (moved @ rows.mT <= bounds).all(-1, keepdim=True)
    return torch.where(inside, moved, z), bounces / len(z)


def anneal(rows: Tensor, bounds: Tensor, centre: Tensor, num_points: int) -> Population:
    """Draws a population from N(0, I) within rows z <= bounds, and estimates its normaliser.

    Args:
        rows: Of unit length, shape (c, T), float64.
        bounds: Finite, shape (c,).
        centre: A point well inside, shape (T,).
        num_points: Size of the population.

    Raises:
        ValueError: If the stages do not come to an end.
    """
    stages = _plan(rows, bounds, centre)
    size = max(MIN_GROUP_SIZE, num_points // NUM_GROUPS)
    z = centre + torch.randn(NUM_GROUPS, size, len(centre), dtype=rows.dtype, device=rows.device)
    log_z = z.new_zeros(NUM_GROUPS)
    previous = _Stage(math.inf, 1.0, math.pi / 2)
    for stage in stages:
        log_weight = _log_weights(z, previous, stage, rows, bounds, centre)
        log_z = log_z + torch.logsumexp(log_weight, -1) - math.log(size)
        z = _resample(z, log_weight)
        for _ in range(MOVES_PER_STAGE):
            flat, _ = move(
                z.flatten(0, 1), rows, bounds + stage.margin, stage.pull * centre, stage.time
            )
            z = flat.view_as(z)
        previous = stage
    log_normalizer = torch.logsumexp(log_z, 0) - math.log(NUM_GROUPS)
    ratio = (log_z - log_normalizer).exp()
    error = ratio.std() / math.sqrt(NUM_GROUPS)
    alive = log_z > -math.inf  # a group may have died out; its estimate of zero counts
    return Population(
        z[alive].flatten(0, 1),
        log_z[alive].repeat_interleave(size),
        log_normalizer,
        error,
        previous.time,
    )


def _plan(rows: Tensor, bounds: Tensor, centre: Tensor) -> list[_Stage]:
    """Chooses stages by a pilot run."""
    z = centre + torch.randn(PILOT_SIZE, len(centre), dtype=rows.dtype, device=rows.device)
    current = _Stage(math.inf, 1.0, math.pi / 2)
    stages: list[_Stage] = []
    while current.margin > 0 or current.pull > 0:
        if len(stages) == MAX_STAGES:
            raise ValueError(
                f"Expected constraints that can be approached in {MAX_STAGES} stages, got a "
                f"polytope still {current.margin:.3g} standard deviations away. It is too thin "
                f"or too far: relax a constraint, or condition on equalities exactly."
            )
        if current.margin > 0:
            depth = (z @ rows.mT - bounds).amax(-1)
            margin = max(float(depth.quantile(SURVIVAL)), 0.0)
            proposed = _Stage(margin, 1.0, current.time)
        else:
            proposed = _Stage(0.0, _next_pull(z @ centre, current.pull), current.time)
        log_weight = _log_weights(z[None], current, proposed, rows, bounds, centre)
        z = _resample(z[None], log_weight)[0]
        time = current.time
        for _ in range(MOVES_PER_STAGE):
            z, bounces = move(z, rows, bounds + proposed.margin, proposed.pull * centre, time)
            # Walls that are met many times in a quarter turn make a shorter move as good.
            wanted = 20.0 + 2 * rows.shape[1]
            time = min(math.pi / 2, time * min(2.0, wanted / max(bounces, 1e-3)))
        current = _Stage(proposed.margin, proposed.pull, time)
        stages.append(current)
    return stages


def _next_pull(projection: Tensor, pull: float) -> float:
    """The least pull towards the centre that keeps half of the effective sample size."""
    low, high = 0.0, pull
    if _effective_share(-pull * projection) >= SURVIVAL:
        return 0.0
    for _ in range(40):
        middle = 0.5 * (low + high)
        if _effective_share((middle - pull) * projection) >= SURVIVAL:
            high = middle
        else:
            low = middle
    return high


def _effective_share(log_weight: Tensor) -> float:
    weight = (log_weight - log_weight.max()).exp()
    return float(weight.sum().square() / weight.square().sum() / len(weight))


def _log_weights(
    z: Tensor, before: _Stage, after: _Stage, rows: Tensor, bounds: Tensor, centre: Tensor
) -> Tensor:
    """Weights of points (groups, n, T) from one stage for the next, shape (groups, n)."""
    change = (after.pull - before.pull) * (z @ centre)
    change = change - 0.5 * (after.pull**2 - before.pull**2) * centre.square().sum()
    inside = (z @ rows.mT <= bounds + after.margin).all(-1)
    return torch.where(inside, change, -math.inf)


def _resample(z: Tensor, log_weight: Tensor) -> Tensor:
    """Systematic resampling within every group; a group without weight stays as it is."""
    pick = systematic(log_weight)
    return z.gather(1, pick.unsqueeze(-1).expand_as(z))
