# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # From averages to a distribution
#
# Often some averages are all that is known: a mean and a spread from a paper, how often something
# happens, the price of an option. A model needs a distribution. Of the many that have these
# averages, the one of largest entropy assumes nothing beyond them. `MaximumEntropy` finds it, as a
# flow or a mixture: a distribution with draws and a density, for use in Pyro. This page starts on
# the line, where the answers are known, goes on to systems that oscillate, whose averages leave
# two modes, and ends with such a law as a prior. It takes less than three minutes on one core.

# %%
import copy
import math
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import ClippedAdam
from torch import Tensor
from torch.distributions import biject_to, constraints

from pyromix import Flow, GaussianMixture, MaximumEntropy, MixtureOfNormals
from pyromix.maxent import InfeasibleError, spline_flow

OUT = Path("out")
OUT.mkdir(exist_ok=True)
torch.manual_seed(0)
plt.rcParams.update({"figure.dpi": 110, "font.size": 9, "axes.titlesize": 10})

# %% [markdown]
# ## One dimension
#
# A problem is a distribution to optimise, statistics, and their averages, the targets. Statistics
# are a function of draws, with a column for each. Three problems:
#
# - mean 0 and variance 2 are known. For MaximumEntropy the second is an average of squares;
# - the average of fourth powers is known as well: 5, where a normal law of variance 2 has 12;
# - the quantity is positive, and its mean is 1.
#
# `spline_flow` makes a mixture through splines, here of four components, onto a support. For the
# first a single normal is enough.


# %%
def powers(*exponents: int):
    """Statistics: powers of the only coordinate."""
    return lambda x: torch.cat([x**n for n in exponents], -1)


torch.manual_seed(0)
laws = {
    "variance 2": GaussianMixture(1, num_components=1),
    "... and fourth moment 5": spline_flow(1, num_components=4),
    "positive, mean 1": spline_flow(1, support=constraints.positive),
}
known = {
    "variance 2": (powers(1, 2), [0.0, 2.0], ["x", "x²"]),
    "... and fourth moment 5": (powers(1, 2, 4), [0.0, 2.0, 5.0], ["x", "x²", "x⁴"]),
    "positive, mean 1": (powers(1), [1.0], ["x"]),
}
results = {}
for name, law in laws.items():
    statistics, targets, names = known[name]
    problem = MaximumEntropy(law, statistics, targets, names=names)
    results[name] = problem.solve(steps=80, lr=0.02, seed=0, progress_bar=False)
    print(f"{name}: {results[name]}\n")

# %% [markdown]
# For each average the table has what was asked, what fresh draws of the law have, and the
# difference, beside its standard error and in standard deviations of the statistic. Every problem
# changed its distribution in place, so that it can be used at once.
#
# On the line one can check all this. The law of maximum entropy is
#
# $$q(x) \propto e^{-\lambda^\top T(x)}$$
#
# on the support, and on a grid of points the multipliers $\lambda$ are the minimum of a convex
# function, $\log \sum_i e^{-\lambda^\top T(x_i)} + \lambda^\top t$, which Newton's method finds.


# %%
def on_points(values: Tensor, targets: list, volume: float) -> tuple[Tensor, float, Tensor]:
    """Multipliers, entropy and weights of the law of maximum entropy on even points.

    `values` (N, m) are the statistics of points that fill a volume evenly.
    """
    values, levels = values.double(), torch.tensor(targets).double()

    def dual(multipliers: Tensor) -> Tensor:
        return (-values @ multipliers).logsumexp(0) + multipliers @ levels

    multipliers = torch.zeros_like(levels)
    for _ in range(60):
        weights = (-values @ multipliers).softmax(0)
        excess = weights @ values - levels
        centred = values - weights @ values
        step = torch.linalg.solve((weights * centred.T) @ centred, excess)
        while dual(multipliers + step) > dual(multipliers) and step.abs().max() > 1e-12:
            step = step / 2
        multipliers = multipliers + step
    entropy = dual(multipliers).item() + math.log(volume / len(values))
    return multipliers, entropy, weights


grids = {name: torch.linspace(-8.0, 8.0, 4001).unsqueeze(-1) for name in laws}
grids["positive, mean 1"] = torch.linspace(0.0, 40.0, 40001)[1:].unsqueeze(-1)
truth = {}
print(f"{'':24} {'entropy':>8} {'on a grid':>10}   multipliers, and those on the grid")
for name, grid in grids.items():
    statistics, targets, _ = known[name]
    volume = float(grid[1] - grid[0]) * len(grid)
    truth[name] = on_points(statistics(grid), targets, volume)
    multipliers, entropy, _ = truth[name]
    found = results[name].multipliers.numpy().round(2) + 0.0
    print(
        f"{name:24} {results[name].entropy:8.3f} {entropy:10.3f}   "
        f"{found} {multipliers.numpy().round(2) + 0.0}"
    )

# %%
figure, axes = plt.subplots(1, 3, figsize=(10, 3), layout="constrained")
for ax, (name, law) in zip(axes, laws.items(), strict=True):
    grid, weights = grids[name], truth[name][2]
    shown = (grid.squeeze(-1).abs() < 5).nonzero().squeeze(-1)
    density = weights / (grid[1] - grid[0])
    with torch.no_grad():
        x = law.sample((20_000,)).squeeze(-1)
        found = law.log_prob(grid[shown]).exp()
    span = (0.0, 5.0) if "positive" in name else (-5.0, 5.0)
    ax.hist(x.numpy(), bins=80, range=span, density=True, color="0.85", label="draws")
    ax.plot(grid[shown], found, color="C0", linewidth=2.5, alpha=0.6, label="found")
    ax.plot(grid[shown], density[shown], "k--", linewidth=0.9, label="on a grid")
    ax.set(title=name, xlabel="x", xlim=span)
axes[0].set_ylabel("density")
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
figure.savefig(OUT / "maxent_line.png")

# %% [markdown]
# On the left is the normal law, which follows from mean and variance alone. In the middle one more
# average leads to two modes: with a variance of 2, so small a fourth moment excludes a peak at
# zero. With more averages the entropy is smaller. On the right is the exponential law.
#
# There is a test that needs no grid, and works in any dimension: $\log q(x) + \lambda^\top T(x)$
# is a constant at the optimum. Its standard deviation over draws is `residual`; half its square,
# where it is small, is the divergence in nats.

# %%
figure, axes = plt.subplots(1, 3, figsize=(10, 3), layout="constrained")
for ax, (name, law) in zip(axes, laws.items(), strict=True):
    with torch.no_grad():
        x = law.sample((2000,))
        log_prob = law.log_prob(x)
    exponent = -known[name][0](x) @ results[name].multipliers
    ax.plot(exponent, log_prob, ".", markersize=2)
    center = (log_prob - exponent).mean()
    ends = torch.stack([exponent.min(), exponent.max()])
    ax.plot(ends, ends + center, "k--", linewidth=0.9)
    residual = results[name].residual
    ax.set(title=f"{name}\nresidual {residual:.3f}", xlabel=r"$-\lambda^\top T(x)$")
axes[0].set_ylabel(r"$\log q(x)$")
figure.savefig(OUT / "maxent_multipliers.png")

# %% [markdown]
# Draws lie on a line of slope one. In the middle they leave it a little where draws are rare, so
# that there is little to train on; on the right next to zero, where the support ends, and the
# density of a flow must tend to zero or to infinity.
#
# How the search went, for the problem in the middle:

# %%
figure = results["... and fourth moment 5"].plot()
figure.savefig(OUT / "maxent_search.png")

# %% [markdown]
# It starts from a law close to a normal one. Every round asks for averages that are half a
# standard deviation nearer to the targets than those of the law, so that violations stay small.
# Grey lines are rounds after which no test rejects a constraint; the search ends when there are
# three of them in a row at hardly different entropies.
#
# ## Systems that oscillate
#
# This problem is of another kind. A population of cells oscillates about once a second, and hardly
# grows or decays. Which linear systems $\dot x = A x$ with two variables do that? A system has
# four numbers, $a_{11}, a_{12}, a_{21}$ and $a_{22}$; from trace and determinant follow the growth
# rate, the largest real part of an eigenvalue, and the angular frequency, its imaginary part.
# Their means and deviations are known: growth $0 \pm 0.25$ per second, frequency
# $2\pi \pm \pi/5$. Nothing else is known, except a range of -10 to 10 for each number.
#
# Eigenvalues have a root in them, whose gradient is not finite at zero and below, not even where
# `torch.where` leaves its value out. So the argument is replaced there before the root is taken.


# %%
def root(x: Tensor) -> Tensor:
    """Square root of positive numbers, zero for others, with gradients that are finite."""
    return torch.where(x > 0, torch.where(x > 0, x, 1.0).sqrt(), 0.0)


def growth_and_frequency(a: Tensor) -> Tensor:
    """Statistics (n, 4) of systems (n, 4): growth and frequency, and squares of deviations."""
    trace, determinant = a[:, 0] + a[:, 3], a[:, 0] * a[:, 3] - a[:, 1] * a[:, 2]
    discriminant = trace**2 - 4 * determinant
    growth, frequency = trace / 2 + root(discriminant) / 2, root(-discriminant) / 2
    return torch.stack([growth, growth**2, frequency, (frequency - 2 * math.pi) ** 2], -1)


TARGETS = [0.0, 0.25**2, 2 * math.pi, (math.pi / 5) ** 2]
NAMES = ["growth", "growth²", "frequency", "(frequency - 2π)²"]
RANGE = constraints.interval(-10.0, 10.0)

# %% [markdown]
# What we do know is that a system may turn either way: $a_{12}$ and $a_{21}$ have opposite signs,
# and which is positive does not matter to growth and frequency. So the search starts from a law
# that is spread over both cases. We let a mixture of eight components through splines look for the
# law, and, as a peer, a single normal through the same splines. (A mixture of 32 with
# `rounds=40, steps=150, lr=0.005` ends still closer to the optimum, in three times the time.)

# %%
center = torch.tensor([[0.0, 1.4, -1.4, 0.0], [0.0, -1.4, 1.4, 0.0]])  # before the range
either = MixtureOfNormals(torch.zeros(2), center, torch.full((2, 4), 0.7))
start = Flow(either, [biject_to(RANGE)])

systems, found = {}, {}
for name, count in (("mixture", 8), ("normal", 1)):
    torch.manual_seed(0)
    systems[name] = spline_flow(4, num_components=count, support=RANGE)
    problem = MaximumEntropy(systems[name], growth_and_frequency, TARGETS, names=NAMES)
    found[name] = problem.solve(
        rounds=20, steps=100, lr=0.01, start=start, seed=0, progress_bar=False
    )
    systems[name].requires_grad_(False)
    print(f"{name} base: {found[name]}\n")

# %% [markdown]
# Both keep every average, and the tables show no fault of either. But the entropies differ, by
# about $\ln 2 = 0.693$, and so do the laws.

# %%
torch.manual_seed(1)
draws = {name: law.sample((4000,)) for name, law in systems.items()}
for name, x in draws.items():
    print(f"{name} base: {(x[:, 1] > x[:, 2]).float().mean():.3f} of draws turn clockwise")
print(f"difference of entropies: {found['mixture'].entropy - found['normal'].entropy:.3f}")

# %% [markdown]
# In four dimensions, a quarter of a million points still fill the range well enough to know
# the answer. (They would not in ten.)

# %%
points = 20 * torch.quasirandom.SobolEngine(4, scramble=True, seed=0).draw(2**18) - 10
multipliers, entropy, weights = on_points(growth_and_frequency(points), TARGETS, 20.0**4)
print(f"entropy {entropy:.3f}, multipliers {multipliers.numpy().round(2)}")
truth_draws = points[torch.multinomial(weights, 4000, replacement=True)]

figure, axes = plt.subplots(1, 3, figsize=(10, 3.5), layout="constrained")
shown = {
    "weighted points": truth_draws,
    "mixture base": draws["mixture"],
    "normal base": draws["normal"],
}
for ax, (title, x) in zip(axes, shown.items(), strict=True):
    clockwise = x[:, 1] > x[:, 2]
    for side, color in ((clockwise, "C0"), (~clockwise, "C1")):
        ax.plot(x[side, 1], x[side, 2], ".", markersize=1.5, color=color)
    ax.set(title=title, xlabel="$a_{12}$ (1/s)", aspect="equal", xlim=(-10, 10), ylim=(-10, 10))
axes[0].set_ylabel("$a_{21}$ (1/s)")
figure.savefig(OUT / "maxent_modes.png")

# %% [markdown]
# On the left the answer, from the points; blue systems turn clockwise, orange ones the other way.
# The mixture has both modes, and each as often as the other. The normal base has one: a continuous
# map would have to keep a bridge to the other one, which no average allows. It meets every
# average, but all its systems turn in one direction, which does not follow from the averages. No
# test of averages shows this, nor does the residual, which is computed from draws; the entropy
# does.
#
# Trajectories, from $x = (1, 0)$:


# %%
def trajectories(a: Tensor, times: int, step: float) -> Tensor:
    """States of systems (\\*B, 4) that start from (1, 0), shape (\\*B, times, 2)."""
    propagate = torch.matrix_exp(step * a.unflatten(-1, (2, 2)))
    x, states = torch.tensor([1.0, 0.0]).expand(*a.shape[:-1], 2), []
    for _ in range(times):
        x = (propagate @ x.unsqueeze(-1)).squeeze(-1)
        states.append(x)
    return torch.stack(states, -2)


figure, axes = plt.subplots(2, 2, figsize=(10, 4), layout="constrained", sharex=True, sharey="row")
time = 0.02 * torch.arange(1, 101)
for column, (name, x) in zip(axes.T, draws.items(), strict=True):
    x = x[:40]
    for system, states in zip(x, trajectories(x, 100, 0.02), strict=True):
        color = "C0" if system[1] > system[2] else "C1"
        for ax, coordinate in zip(column, states.T, strict=True):
            ax.plot(time, coordinate, color=color, linewidth=0.6, alpha=0.7)
    column[0].set(title=f"{name} base", ylim=(-4, 4))
    column[1].set(xlabel="time (s)", ylim=(-4, 4))
axes[0, 0].set_ylabel("$x_1$")
axes[1, 0].set_ylabel("$x_2$")
figure.savefig(OUT / "maxent_trajectories.png")

# %% [markdown]
# All oscillate about once a second, some grow and some decay. In $x_1$ the two columns are alike.
# In $x_2$ blue systems first go down and orange ones up.

# %% [markdown]
# ## A prior in Pyro
#
# The first variable of a cell is measured, twelve times in a second and a half, with noise. The
# law of systems is the prior: `pyro.sample("a", prior)`. The cell turns in the direction that the
# normal base has lost.

# %%
torch.manual_seed(4)
NOISE = 0.3
sign = -1.0 if draws["normal"][0, 1] > draws["normal"][0, 2] else 1.0
cell = torch.tensor([1.0, 7.5 * sign, -5.5 * sign, -1.0])
seen = trajectories(cell, 12, 0.125)
seen = seen + NOISE * torch.randn_like(seen)


def model(prior: Flow, data: Tensor) -> None:
    """Data (12, 1) are of the first variable, data (12, 2) of both."""
    a = pyro.sample("a", prior)
    states = trajectories(a, 12, 0.125)[..., : data.shape[-1]]
    pyro.sample("seen", dist.Normal(states, NOISE).to_event(2), obs=data)


# %% [markdown]
# As the prior can be drawn from, importance sampling is a reliable method: draws of the prior,
# weighted by the likelihood, with an effective sample size that says whether they were enough. A
# plate draws them all at once.


# %%
def weigh(prior: Flow, data: Tensor, count: int = 20_000) -> tuple[Tensor, float, float]:
    """Draws of the posterior, the logarithm of the evidence, and the effective sample size."""
    with torch.no_grad(), pyro.plate("draws", count):
        trace = pyro.poutine.trace(model).get_trace(prior, data)
        trace.compute_log_prob(site_filter=lambda name, _: name == "seen")
    log_weights, a = trace.nodes["seen"]["log_prob"], trace.nodes["a"]["value"]
    weights = log_weights.softmax(0)
    evidence = (log_weights.logsumexp(0) - math.log(count)).item()
    chosen = torch.multinomial(weights, 1000, replacement=True)
    return a[chosen], evidence, 1 / weights.square().sum().item()


cases = {
    "mixture base, $x_1$": ("mixture", 1),
    "normal base, $x_1$": ("normal", 1),
    "mixture base, both": ("mixture", 2),
    "normal base, both": ("normal", 2),
}
posteriors = {}
for name, (base, coordinates) in cases.items():
    a, evidence, size = weigh(systems[base], seen[:, :coordinates])
    posteriors[name] = a
    right = ((a[:, 1] > a[:, 2]) == (cell[1] > cell[2])).float().mean()
    print(
        f"{name:20} log evidence {evidence:8.1f}, effective size {size:6.0f}, "
        f"right direction {right:.2f}"
    )

# %% [markdown]
# The first variable does not tell the direction. The posterior of the prior with both modes shows
# this; that of the other prior has the wrong direction only, as the prior itself. Their evidence
# is the same: these data do not distinguish the priors. Once the second variable is measured as
# well, the first posterior has the right direction, while the evidence of the second prior becomes
# very small: it has no system that fits.
#
# The law has pathwise gradients, so that a copy of it is a guide for SVI. It starts at the prior,
# modes and range included, and has to move only as far as the data say.

# %%
torch.manual_seed(0)
pyro.clear_param_store()
copied = copy.deepcopy(systems["mixture"]).requires_grad_(True)


def guide(_prior: Flow, _data: Tensor) -> None:
    pyro.module("copied", copied)
    pyro.sample("a", copied)


elbo = Trace_ELBO(num_particles=64, vectorize_particles=True, max_plate_nesting=0)
svi = SVI(model, guide, ClippedAdam({"lr": 0.01, "lrd": 0.1 ** (1 / 250)}), elbo)
losses = [svi.step(systems["mixture"], seen[:, :1]) for _ in range(250)]
print(f"ELBO {-losses[0]:.1f} -> {-sum(losses[-20:]) / 20:.1f}")

with torch.no_grad():
    posteriors["mixture base, $x_1$, SVI"] = copied.sample((1000,))
print("mean and deviation of the frequency, 1/s, and share that turns clockwise")
for name in ("mixture base, $x_1$", "mixture base, $x_1$, SVI"):
    frequency = growth_and_frequency(posteriors[name])[:, 2]
    share = (posteriors[name][:, 1] > posteriors[name][:, 2]).float().mean()
    print(f"{name:25} {frequency.mean():.3f} {frequency.std():.3f} {share:.2f}")

# %%
columns = [
    "mixture base, $x_1$",
    "mixture base, $x_1$, SVI",
    "normal base, $x_1$",
    "mixture base, both",
]
time = 0.02 * torch.arange(1, 101)
figure, axes = plt.subplots(2, 4, figsize=(11, 5), layout="constrained", sharey="row")
for (top, bottom), name in zip(axes.T, columns, strict=True):
    a = posteriors[name]
    prior = draws["normal" if "normal" in name else "mixture"]
    top.plot(*prior[:, 1:3].T, ".", markersize=1, color="0.8")
    top.plot(*a[:, 1:3].T, ".", markersize=2, color="C2")
    top.plot(*cell[1:3], "k*", markersize=9)
    top.set(title=name, xlabel="$a_{12}$ (1/s)", aspect="equal", xlim=(-10, 10), ylim=(-10, 10))
    bottom.plot(time, trajectories(a[:60], 100, 0.02)[..., 1].T, color="C2", linewidth=0.4)
    bottom.plot(time, trajectories(cell, 100, 0.02)[:, 1], "k--", linewidth=1)
    if "both" in name:
        bottom.plot(0.125 * torch.arange(1, 13), seen[:, 1], "k.")
    bottom.set(xlabel="time (s)", ylim=(-3, 3))
axes[0, 0].set_ylabel("$a_{21}$ (1/s)")
axes[1, 0].set_ylabel("$x_2$")
figure.savefig(OUT / "maxent_posterior.png")

# %% [markdown]
# Above are prior (grey), posterior (green) and the cell (star); below are the law of the second
# variable, and its true course (dashed). The first variable tells the product of $a_{12}$ and
# $a_{21}$, so that posteriors are thin curves, one in each mode that the prior has. SVI finds
# both, but does not reach their ends; its ELBO is less than a nat below the logarithm of the
# evidence. On the right, all
# twelve points of both variables.
#
# ## What goes wrong
#
# - **Targets that nothing meets** are an error, which says what is farthest off.
# - **Directions left free** have no maximum: with a mean alone a law on the line gets ever wider.
#   A warning names the coordinate.

# %%
try:
    problem = MaximumEntropy(GaussianMixture(1, 1), powers(1, 2), [1.0, 0.5], names=["x", "x²"])
    problem.solve(steps=50, lr=0.02, seed=0, progress_bar=False)
except InfeasibleError as error:
    print(error)

with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    problem = MaximumEntropy(GaussianMixture(1, 1), powers(1), 0.0)
    problem.solve(rounds=10, steps=50, lr=0.02, seed=0, progress_bar=False)
for warning in caught:
    print(warning.message)

# %% [markdown]
# - **Modes that the search has lost** are seen by no test. Start in all of them, use a mixture
#   for base, and compare entropies over seeds.
# - **Statistics without gradients**, such as indicators, need smooth versions: `torch.sigmoid((x -
#   1) / 0.05)` for the probability of more than 1.
# - **Steps that are too few** for the law to follow its multipliers let averages swing about their
#   targets until the rounds are up; more `steps` or a larger `lr` help.
#
# The page on maximum entropy, `docs/maximum_entropy.md`, has more on all of this.
