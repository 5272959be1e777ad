"""Problems of maximum entropy whose answers are known, for known_answers.py.

The law with the most entropy among those with E[T(x)] = t is

    q*(x) = exp(-lambda . T(x) - log Z),    H* = lambda . t + log Z,

so that lambda and log Z are all there is to know. They are in closed form, or come from
quadrature: for given lambda the targets are integrals, and for given targets lambda minimises the
convex function log Z(lambda) + lambda . t, by Newton's method. Of any other law q

    KL(q || q*) = H* - H(q) + lambda . (E_q[T] - t) = E_q[log q(x) + lambda . T(x) + log Z],

which its draws estimate without knowing which constraints it breaks.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor
from torch.distributions import Dirichlet, MultivariateNormal, constraints

BASES = {
    "normal": "a normal, as most flows have",
    "relaxed": "the relaxed mixture, its temperature annealed",
    "stratified": "the exact mixture, gradients from stratified draws",
    "implicit": "the exact mixture, implicit gradients of plain draws",
}


# For small problems, whose rounds take seconds.
PRECISE: dict[str, Any] = {"tolerance": 0.003}
# About half a minute. Divergences fall to a hundredth or so, and to one where targets are far.
# With fewer steps a round, multipliers may run ahead of the law.
QUICK: dict[str, Any] = {"rounds": 11, "steps": 70, "start_steps": 100, "lr": 1e-2}


@dataclass(frozen=True)
class Truth:
    """The answer, in double precision."""

    entropy: float
    log_normalizer: float
    multipliers: Tensor  # (m,)
    deviations: Tensor  # (m,), of statistics under the answer
    draw: Callable[[int, int], Tensor]  # points, given how many and a seed


@dataclass(frozen=True)
class Problem:
    """Targets for statistics, the answer, and how to look for it."""

    name: str
    event_shape: tuple[int, ...]
    support: constraints.Constraint | None
    statistics: Callable[[Tensor], Tensor]  # (n, *event) -> (n, m)
    targets: Tensor  # (m,)
    names: tuple[str, ...]  # of the constraints
    truth: Truth
    flow: dict[str, Any]  # of spline_flow, for all bases
    mixture: dict[str, Any]  # in addition, for mixtures
    temperatures: Any  # of the relaxed mixture
    solve: dict[str, Any]
    quick: dict[str, Any]
    normal: dict[str, Any] = field(default_factory=dict)  # in addition, for a normal
    modes: Callable[[Tensor], Tensor] | None = None  # (n, *event) -> (n,), from 0
    num_modes: int = 1  # of equal mass

    @property
    def dim(self) -> int:
        """Coordinates that are free."""
        return self.event_shape[0] - (self.support is constraints.simplex)

    def flow_options(self, base: str) -> dict[str, Any]:
        options = {"dim": self.dim, "support": self.support} | self.flow
        if base == "normal":
            return options | {"num_components": 1} | self.normal
        options |= self.mixture
        return options | ({"temperatures": self.temperatures} if base == "relaxed" else {})

    def solve_options(self, base: str, quick: bool) -> dict[str, Any]:
        if not quick:
            return self.solve
        # The end of a round costs this one more than all steps of a short one.
        return self.quick | ({"rounds": 9} if base == "relaxed" else {})


# ---- integrals ----------------------------------------------------------------------------------


def nodes(breaks: Sequence[float], count: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights of Gauss and Legendre's rule on every interval between breaks."""
    x, w = (torch.from_numpy(part) for part in np.polynomial.legendre.leggauss(count))
    halves = [((b - a) / 2, (a + b) / 2) for a, b in pairwise(breaks)]
    return torch.cat([h * x + m for h, m in halves]), torch.cat([h * w for h, _ in halves])


def moments(t: Tensor, log_weights: Tensor, multipliers: Tensor) -> tuple[float, Tensor, Tensor]:
    """Log Z, and mean and covariance of statistics t (N, m), under exp(-lambda . T)."""
    scores = log_weights - t @ multipliers
    log_normalizer = scores.logsumexp(0)
    p = (scores - log_normalizer).exp()
    mean = p @ t
    centered = t - mean
    return float(log_normalizer), mean, (centered.mT * p) @ centered


def minimize_dual(t: Tensor, log_weights: Tensor, targets: Tensor, start: Tensor) -> Tensor:
    """Multipliers for targets, by Newton's method with halved steps."""

    def dual(multipliers: Tensor) -> float:
        return moments(t, log_weights, multipliers)[0] + float(multipliers @ targets)

    multipliers = start
    for _ in range(200):
        _, mean, covariance = moments(t, log_weights, multipliers)
        # Statistics may be of very different sizes.
        unit = covariance.diagonal().sqrt()
        step = torch.linalg.solve(covariance / unit.outer(unit), (mean - targets) / unit) / unit
        decrement = float(step @ covariance @ step)
        if decrement < 1e-22:
            return multipliers
        size = 1.0
        while dual(multipliers + size * step) > dual(multipliers) and size > 1e-8:
            size /= 2
        multipliers = multipliers + size * step
    raise RuntimeError(f"Newton's method has not converged: decrement {decrement:.1e}.")


def draw_on_line(x: Tensor, log_density: Tensor) -> Callable[[int, int], Tensor]:
    """Draws of a density on a fine, even grid, by the inverse of its distribution function."""
    density = log_density.exp()
    steps = (density[1:] + density[:-1]) / 2 * (x[1:] - x[:-1])
    cdf = torch.cat([x.new_zeros(1), steps.cumsum(0)])
    cdf = cdf / cdf[-1]

    def draw(num: int, seed: int) -> Tensor:
        u = torch.rand(num, dtype=x.dtype, generator=Generator().manual_seed(seed))
        return torch.from_numpy(np.interp(u.numpy(), cdf.numpy(), x.numpy())).unsqueeze(-1)

    return draw


# ---- one law after the other --------------------------------------------------------------------


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
        solve={}, quick=QUICK,
    )  # fmt: skip


def wells8() -> Problem:
    return wells(
        8, flow={}, mixture={"num_components": 256}, temperatures=(1.0, 0.1),
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


# ---- oscillation --------------------------------------------------------------------------------


SIDE = 10.0  # entries of the matrix are between -10 and 10
FREQUENCY = 2 * math.pi
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
        solve={"steps": 200}, quick=QUICK | {"rounds": 14, "steps": 50},
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


# ---- checks -------------------------------------------------------------------------------------


def comparisons() -> Iterator[tuple[str, float, float, float]]:
    """What is computed here, by another route or to fewer digits, and how far they may differ."""
    by_name = {name: make() for name, make in PROBLEMS.items()}
    truths = {name: problem.truth for name, problem in by_name.items()}

    alpha = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    laws = {"gaussian": MultivariateNormal(MEAN, COVARIANCE), "dirichlet": Dirichlet(alpha)}
    for name, law in laws.items():
        truth = truths[name]
        yield f"{name}: entropy", truth.entropy, float(law.entropy()), 1e-9
        x = truth.draw(1000, 0)
        scores = -by_name[name].statistics(x) @ truth.multipliers - truth.log_normalizer
        off = float((scores - law.log_prob(x)).abs().max())
        yield f"{name}: log-density", off, 0.0, 1e-9

    truth, problem = truths["dirichlet"], by_name["dirichlet"]
    yield "dirichlet: entropy, known", truth.entropy, -1.244345, 1e-6
    for name, t, known in zip(
        problem.names, problem.targets, (-2.283333, -1.283333, -0.783333), strict=True
    ):
        yield f"dirichlet: E {name}, known", float(t), known, 1e-6

    problem = by_name["well"]
    yield "well: entropy, known", problem.truth.entropy, 0.872318, 1e-6
    for name, t, known in zip(
        problem.names, problem.targets, (0.0, 1.835342, 3.920683), strict=True
    ):
        yield f"well: E {name}, known", float(t), known, 1e-6
    # The trapezoidal rule converges exponentially for what vanishes with all its derivatives.
    x = torch.linspace(*WELL_RANGE, 2001, dtype=torch.float64).unsqueeze(-1)
    steps = torch.full((len(x),), float(x[1] - x[0]), dtype=torch.float64)
    log_normalizer, mean, _ = moments(problem.statistics(x), steps.log(), WELL)
    yield "well: log Z, trapezoids", problem.truth.log_normalizer, log_normalizer, 1e-9
    yield "well: E x^4, trapezoids", float(problem.targets[2]), float(mean[2]), 1e-9
    # A derivative with mean zero: E[x g'(x)] = E[-1], with log q = g.
    yield "well: E 4x^4 - 8x^2", float(4 * mean[2] - 8 * mean[1]), 1.0, 1e-9
    for dim in (4, 8):
        entropy = dim * problem.truth.entropy
        yield f"wells{dim}: entropy", truths[f"wells{dim}"].entropy, entropy, 1e-9

    truth = truths["prices"]
    yield "prices: entropy, known", truth.entropy, 4.6201, 5e-5
    known_slopes = -0.09082, 0.09969, 0.01305, 0.03041
    for name, value, known in zip(
        by_name["prices"].names, truth.multipliers, known_slopes, strict=True
    ):
        # Prices of four digits leave the fifth one of these open.
        yield f"prices: multiplier of the {name}, known", float(value), known, 1e-5
    mass, mean_price = exponential_pieces(truth)
    yield "prices: mass, closed form", mass, 1.0, 1e-9
    yield "prices: forward, closed form", mean_price, 100.0, 1e-7

    answer = solve_oscillation()
    truth = truths["oscillation"]
    yield "oscillation: entropy, known", truth.entropy, 7.04, 5e-3
    yield "oscillation: sd(a11), known", answer.spread[0], 3.29, 5e-3
    yield "oscillation: sd(a12), known", answer.spread[1], 7.41, 5e-3
    yield "oscillation: mass left out", real_share(answer), 0.0, 1e-9
    yield from oscillation_by_points(answer)


def exponential_pieces(truth: Truth) -> tuple[float, float]:
    """Mass and mean of the law of prices, whose density is exponential between strikes."""
    ends = [0.0, *STRIKES, HIGHEST]
    mass = mean = height = 0.0
    slope = -float(truth.multipliers[0])
    height = -truth.log_normalizer  # log-density at the left end
    for i, (a, b) in enumerate(pairwise(ends)):
        if i:
            slope -= float(truth.multipliers[i])
        width = b - a
        area = math.exp(height) * math.expm1(slope * width) / slope
        right = math.exp(height + slope * width)
        mass += area
        mean += (b * right - a * math.exp(height) - area) / slope
        height += slope * width
    return mass, mean


def oscillation_by_points(answer: Oscillation) -> Iterator[tuple[str, float, float, float]]:
    """The same from a million points of the box: five standard errors over 16 scramblings."""
    expected = torch.tensor([*OSCILLATION, answer.spread[0] ** 2, answer.spread[1] ** 2])
    rows = []
    for seed in range(16):
        sobol = torch.quasirandom.SobolEngine(4, scramble=True, seed=seed)
        x = SIDE * (2 * sobol.draw(2**16, dtype=torch.float64) - 1)
        t = oscillation_statistics(x)
        weights = (-t @ answer.multipliers - answer.log_normalizer).exp() * (2 * SIDE) ** 4
        # Without the error that all have in common, that of the mass.
        changes = torch.cat([t, x[:, :2].square()], -1) - expected
        values = torch.cat([torch.ones(len(x), 1), changes], -1)
        rows.append((weights.unsqueeze(-1) * values).mean(0))
    table = torch.stack(rows)
    means, errors = table.mean(0), (5 * table.std(0) / len(rows) ** 0.5).tolist()
    found = [float(means[0]), *(expected + means[1:]).tolist()]
    what = "mass", "E re", "E re^2", "E im", "E (im - 2 pi)^2", "E a11^2", "E a12^2"
    for name, value, mean, error in zip(
        what, [1.0, *expected.tolist()], found, errors, strict=True
    ):
        yield f"oscillation: {name}, by points", value, mean, error
