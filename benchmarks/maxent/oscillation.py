"""The problem of an oscillation: matrices A of dx/dt = A x with given eigenvalues."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from torch.distributions import constraints

from benchmarks.maxent.integrals import minimize_dual, moments, nodes
from benchmarks.maxent.problem import QUICK, SHORT, Problem, Truth

SIDE = 10.0  # entries of the matrix are between -10 and 10
FREQUENCY = 2 * math.pi
# Folds are stiff: with a third of the steps the entropy stays twice as far below the largest one.
LONGER = {"rounds": 30, "steps": 200, "lr": 0.01, "start_steps": 100}
OSCILLATION = torch.tensor([0.0, 0.0625, FREQUENCY, (math.pi / 5) ** 2], dtype=torch.float64)


def eigenvalue(x: Tensor) -> tuple[Tensor, Tensor]:
    """Real and imaginary part of the first eigenvalue of matrices (a11, a12, a21, a22)."""
    a11, a12, a21, a22 = x.unbind(-1)
    discriminant = (a11 - a22).square() + 4 * a12 * a21
    real = discriminant > 0
    # Inside as well, so that the root that is not taken has a finite derivative.
    root = torch.where(real, discriminant, -discriminant).clamp(min=1e-12).sqrt() / 2
    zero = torch.zeros_like(root)
    return (a11 + a22) / 2 + torch.where(real, root, zero), torch.where(real, zero, root)


def eigenvalue_statistics(real: Tensor, imaginary: Tensor) -> Tensor:
    return torch.stack([real, real.square(), imaginary, (imaginary - FREQUENCY).square()], -1)


def oscillation_statistics(x: Tensor) -> Tensor:
    return eigenvalue_statistics(*eigenvalue(x))


@dataclass(frozen=True)
class Oscillation:
    """The answer of the oscillation problem, and what else is known of it."""

    multipliers: Tensor
    log_normalizer: float
    deviations: Tensor
    spread: tuple[float, float]  # standard deviations of a11 and of a12

    @property
    def one_mode(self) -> float:
        """Entropy of one mode alone: they are mirror images."""
        entropy = float(self.multipliers @ OSCILLATION) + self.log_normalizer
        return entropy - math.log(2)


def solve_oscillation() -> Oscillation:
    """The multipliers, by quadrature over the eigenvalue r + i m and h = (a11 - a22) / 2.

    The statistics depend on the matrix by r = (a11 + a22) / 2 and m^2 = -a12 a21 - h^2 alone. As
    r and h are a rotated square, and the pairs (a12, a21) with product -p fill an area of
    2 log(100 / p) dp, the volume is 8 m log(100 / (m^2 + h^2)) dr dh dm, where |h| <= 10 - |r| and
    m^2 + h^2 <= 100. Matrices with real eigenvalues have m = 0, ten deviations off the target:
    `real_share` bounds what is left out.
    """
    r, r_weights = nodes((-10.0, -2.0, -1.0, 0.0, 1.0, 2.0, 10.0), 40)
    unit, unit_weights = nodes((0.0, 1.0), 60)
    # The bound of h has a corner in m, where both bounds meet: a break of the rule.
    corner = (20 * r.abs() - r.square()).clamp(max=SIDE**2).sqrt().unsqueeze(-1)
    m = torch.cat([corner * unit, corner + (SIDE - corner) * unit], -1)
    m_weights = torch.cat([corner * unit_weights, (SIDE - corner) * unit_weights], -1)
    most = torch.minimum(SIDE - r.abs().unsqueeze(-1), (SIDE**2 - m.square()).sqrt())
    h = most.unsqueeze(-1) * unit  # (r, m, h), half of them: the other half mirrors them
    product = (m.unsqueeze(-1).square() + h.square()).clamp(max=SIDE**2 * (1 - 1e-15))
    area = (SIDE**2 / product).log()
    h_weights = 2 * most.unsqueeze(-1) * unit_weights * area
    weights = 8 * m * m_weights * r_weights.unsqueeze(-1) * h_weights.sum(-1)

    t = eigenvalue_statistics(r.unsqueeze(-1).expand_as(m), m).flatten(0, 1)
    log_weights = weights.flatten().log()
    start = torch.tensor([0.0, 0.5 / 0.0625, 0.0, 0.5 / float(OSCILLATION[3])]).double()
    multipliers = minimize_dual(t, log_weights, OSCILLATION, start)
    log_normalizer, _, covariance = moments(t, log_weights, multipliers)

    p = (log_weights - t @ multipliers - log_normalizer).exp().view(m.shape)
    p = p.unsqueeze(-1) * h_weights / h_weights.sum(-1, keepdim=True)
    # Given the product, log |a12| is uniform between log(product / 10) and log 10.
    a12_square = (SIDE**2 - product.square() / SIDE**2) / 2 / area
    spread = (p * (r.view(-1, 1, 1).square() + h.square())).sum(), (p * a12_square).sum()
    return Oscillation(
        multipliers, log_normalizer, covariance.diagonal().sqrt(),
        (math.sqrt(float(spread[0])), math.sqrt(float(spread[1]))),
    )  # fmt: skip


def real_share(answer: Oscillation) -> float:
    """Bound of the mass of matrices with real eigenvalues, which the quadrature leaves out."""
    _, square, _, distance = answer.multipliers.tolist()
    slope = float(answer.multipliers[0])
    highest = slope**2 / (4 * square) - distance * FREQUENCY**2  # of -lambda . T at m = 0
    return math.exp(highest + math.log((2 * SIDE) ** 4) - answer.log_normalizer)


def proposals(num: int, generator: Generator) -> Iterator[Tensor]:
    """Uniform matrices, in chunks."""
    for _ in range(-(-num // 2**18)):
        yield SIDE * (2 * torch.rand(2**18, 4, dtype=torch.float64, generator=generator) - 1)


def oscillation() -> Problem:
    """A matrix A of dx/dt = A x, with eigenvalues about +-2 pi i."""
    answer = solve_oscillation()
    slope, square, linear, distance = answer.multipliers.tolist()
    # The largest -lambda . T, for draws by rejection.
    highest = slope**2 / (4 * square) + linear**2 / (4 * distance) - linear * FREQUENCY

    def draw(num: int, seed: int) -> Tensor:
        generator = Generator().manual_seed(seed)
        accepted: list[Tensor] = []
        while sum(map(len, accepted)) < num:
            for x in proposals(2**18, generator):
                score = -oscillation_statistics(x) @ answer.multipliers - highest
                u = torch.rand(len(x), dtype=x.dtype, generator=generator)
                accepted.append(x[u.log() < score])
        return torch.cat(accepted)[:num]

    entropy = answer.one_mode + math.log(2)
    return Problem(
        "oscillation", (4,), constraints.interval(-SIDE, SIDE), oscillation_statistics,
        OSCILLATION, ("re", "re^2", "im", "(im - 2 pi)^2"),
        Truth(entropy, answer.log_normalizer, answer.multipliers, answer.deviations, draw),
        modes=lambda x: (x[:, 1] > x[:, 2]).long(), num_modes=2,
        flow={}, mixture={"num_components": 32}, temperatures=(1.0, 0.1),
        own={
            "folds": {"num_layers": 6, "hidden_dims": (32,), "splines": False},
            "codes": {"num_layers": 2, "num_components": 6, "maps": "triangular"},
        },
        own_solve={"folds": SHORT | LONGER, "codes": SHORT},
        solve={"steps": 200}, quick=QUICK | {"rounds": 14, "steps": 50},
    )  # fmt: skip
