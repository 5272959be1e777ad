"""The problems of known_answers.py, by name: one law after the other."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor
from torch.distributions import Dirichlet, constraints

from benchmarks.maxent.integrals import draw_on_line, minimize_dual, moments, nodes
from benchmarks.maxent.oscillation import oscillation
from benchmarks.maxent.problem import PRECISE, QUICK, Problem, Truth

MEAN = torch.tensor([1.0, -0.5, 0.0], dtype=torch.float64)
COVARIANCE = torch.tensor(
    [[1.0, 0.6, -0.3], [0.6, 2.0, 0.5], [-0.3, 0.5, 0.8]], dtype=torch.float64
)


def gaussian() -> Problem:
    """All means and second moments in three dimensions."""
    first, second = torch.triu_indices(3, 3)

    def statistics(x: Tensor) -> Tensor:
        return torch.cat([x, x[:, first] * x[:, second]], -1)

    precision = COVARIANCE.inverse()
    # The products of different coordinates count twice in the quadratic form.
    square = precision[first, second] * torch.where(first == second, 0.5, 1.0)
    multipliers = torch.cat([-precision @ MEAN, square])
    mean, cov = MEAN.outer(MEAN), COVARIANCE
    targets = torch.cat([MEAN, (cov + mean)[first, second]])
    entropy = 0.5 * float(torch.logdet(2 * math.pi * math.e * cov))
    diag = cov.diagonal()
    products = (  # variances of x_i x_j
        diag.outer(diag) + cov.square() + 2 * mean * cov
        + MEAN.square().outer(diag) + diag.outer(MEAN.square())
    )  # fmt: skip
    factor = torch.linalg.cholesky(cov)

    def draw(num: int, seed: int) -> Tensor:
        generator = Generator().manual_seed(seed)
        return MEAN + torch.randn(num, 3, dtype=MEAN.dtype, generator=generator) @ factor.mT

    names = [f"x{i}" for i in (1, 2, 3)]
    return Problem(
        "gaussian", (3,), None, statistics, targets,
        (*names, *(f"x{i} x{j}" for i, j in zip(first + 1, second + 1, strict=True))),
        Truth(
            entropy, entropy - float(multipliers @ targets), multipliers,
            torch.cat([diag, products[first, second]]).sqrt(), draw,
        ),
        flow={}, mixture={"num_components": 2}, temperatures=(1.0, 0.1),
        normal={"covariance": "full"}, solve=PRECISE, quick=QUICK,
    )  # fmt: skip


def dirichlet() -> Problem:
    """Mean logarithms on the simplex; densities are of the first two coordinates."""
    alpha = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    total = alpha.sum()
    targets = alpha.digamma() - total.digamma()
    log_normalizer = float(alpha.lgamma().sum() - total.lgamma())
    multipliers = 1 - alpha

    def draw(num: int, seed: int) -> Tensor:
        with torch.random.fork_rng():
            torch.manual_seed(seed)  # gamma variates take no generator
            return Dirichlet(alpha).sample((num,))

    return Problem(
        "dirichlet", (3,), constraints.simplex, torch.log, targets,
        ("log x1", "log x2", "log x3"),
        Truth(
            log_normalizer + float(multipliers @ targets), log_normalizer, multipliers,
            (alpha.polygamma(1) - total.polygamma(1)).sqrt(), draw,
        ),
        flow={}, mixture={"num_components": 2}, temperatures=(1.0, 0.1),
        solve=PRECISE, quick=QUICK,
    )  # fmt: skip


WELL = torch.tensor([0.0, -4.0, 1.0], dtype=torch.float64)  # multipliers of x, x^2, x^4
WELL_RANGE = (-4.5, 4.5)  # beyond it lies less than 1e-100


def wells(dim: int, **settings: Any) -> Problem:
    """Independent double wells: a mode for every choice of signs."""

    def statistics(x: Tensor) -> Tensor:
        square = x.square()
        return torch.cat([x, square, square.square()], -1)

    def modes(x: Tensor) -> Tensor:
        return ((x > 0) * 2 ** torch.arange(dim)).sum(-1)

    x, weights = nodes(torch.linspace(*WELL_RANGE, 19).tolist(), 40)
    log_normalizer, mean, covariance = moments(statistics(x.unsqueeze(-1)), weights.log(), WELL)
    grid = torch.linspace(*WELL_RANGE, 200_001, dtype=torch.float64)
    draw_one = draw_on_line(grid, -statistics(grid.unsqueeze(-1)) @ WELL)

    def draw(num: int, seed: int) -> Tensor:
        return draw_one(num * dim, seed).reshape(num, dim)

    power = ("x", "x^2", "x^4")
    names = power if dim == 1 else [p.replace("x", f"x{i + 1}") for p in power for i in range(dim)]
    return Problem(
        "well" if dim == 1 else f"wells{dim}", (dim,), None, statistics,
        mean.repeat_interleave(dim), tuple(names),
        Truth(
            dim * (log_normalizer + float(WELL @ mean)), dim * log_normalizer,
            WELL.repeat_interleave(dim), covariance.diagonal().sqrt().repeat_interleave(dim), draw,
        ),
        modes=modes, num_modes=2**dim, **settings,
    )  # fmt: skip


def well() -> Problem:
    return wells(
        1, flow={}, mixture={"num_components": 4}, temperatures=(1.0, 0.1),
        solve=PRECISE, quick=QUICK,
    )  # fmt: skip


def wells4() -> Problem:
    return wells(
        4, flow={}, mixture={"num_components": 32}, temperatures=(1.0, 0.1),
        own={"separate": {"count_bins": 16, "bound": 4.0}},
        solve={}, quick=QUICK,
    )  # fmt: skip


def wells8() -> Problem:
    return wells(
        8, flow={}, mixture={"num_components": 256}, temperatures=(1.0, 0.1),
        own={"separate": {"count_bins": 16, "bound": 4.0}},
        own_solve={"separate": {"rounds": 40, "steps": 60, "lr": 1.5e-2}},
        solve={"rounds": 30}, quick=QUICK | {"rounds": 9, "steps": 20, "start_steps": 50},
    )  # fmt: skip


def exponential() -> Problem:
    """A mean, on the positive numbers."""

    def draw(num: int, seed: int) -> Tensor:
        u = torch.rand(num, 1, dtype=torch.float64, generator=Generator().manual_seed(seed))
        return -torch.log1p(-u)

    one = torch.ones(1, dtype=torch.float64)
    return Problem(
        "exponential", (1,), constraints.positive, lambda x: x, one, ("x",),
        Truth(1.0, 0.0, one, one, draw),
        flow={}, mixture={"num_components": 4}, temperatures=(1.0, 0.1),
        solve=PRECISE, quick=QUICK,
    )  # fmt: skip


HIGHEST = 400.0  # price
STRIKES = (80.0, 100.0, 120.0)
PRICES = torch.tensor([100.0, 22.2656, 9.9476, 3.7059], dtype=torch.float64)


def prices() -> Problem:
    """The law of a price with a given forward and given prices of calls."""

    def statistics(x: Tensor) -> Tensor:
        return torch.cat([x, *((x - strike).clamp(min=0) for strike in STRIKES)], -1)

    # Densities are exponential between strikes: the rule is exact to rounding.
    x, weights = nodes([0.0, 40.0, *STRIKES, 160.0, 240.0, HIGHEST], 40)
    t, log_weights = statistics(x.unsqueeze(-1)), weights.log()
    multipliers = minimize_dual(t, log_weights, PRICES, torch.zeros(4, dtype=torch.float64))
    log_normalizer, _, covariance = moments(t, log_weights, multipliers)
    grid = torch.linspace(0, HIGHEST, 400_001, dtype=torch.float64)
    log_density = -statistics(grid.unsqueeze(-1)) @ multipliers
    return Problem(
        "prices", (1,), constraints.interval(0.0, HIGHEST), statistics, PRICES,
        ("forward", *(f"call {strike:g}" for strike in STRIKES)),
        Truth(
            log_normalizer + float(multipliers @ PRICES), log_normalizer, multipliers,
            covariance.diagonal().sqrt(), draw_on_line(grid, log_density),
        ),
        flow={}, mixture={"num_components": 4}, temperatures=(1.0, 0.1),
        solve=PRECISE, quick=QUICK,
    )  # fmt: skip


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "gaussian": gaussian,
    "dirichlet": dirichlet,
    "exponential": exponential,
    "prices": prices,
    "well": well,
    "wells4": wells4,
    "wells8": wells8,
    "oscillation": oscillation,
}
