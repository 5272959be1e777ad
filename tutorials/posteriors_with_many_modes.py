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
# # Posteriors with many modes
#
# Variational inference in Pyro is one line: `AutoNormal(model)`. If the posterior has several
# modes it returns one of them, and nothing says so. This page shows that on two models, then
# lets a mixture find all modes, and asks whether to believe it. It takes a minute or two on two
# cores.

# %%
import math
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import MCMC, NUTS, SVI, Trace_ELBO, config_enumerate
from pyro.infer.autoguide import AutoNormal

from pyromix.guides import AutoMixture, evaluate_guide, fit_guide

OUT = Path("out")
OUT.mkdir(exist_ok=True)
pyro.set_rng_seed(0)
plt.rcParams.update({"figure.dpi": 110, "font.size": 9, "axes.titlesize": 10})

# %% [markdown]
# ## A signal of unknown frequency
#
# Fourteen noisy readings of a sine at irregular times. Frequency, amplitude and phase are unknown.
# Of such a model several frequencies explain the data, more or less, and a phase that is turned
# by half with the sign of the amplitude is the same signal.

# %%
generator = torch.Generator().manual_seed(4)
times = torch.rand(14, generator=generator).sort().values * 10
signal = 1.5 * torch.sin(2 * math.pi * 0.62 * times + 0.7)
readings = signal + 0.9 * torch.randn(14, generator=generator)


def oscillation(times, readings=None):
    frequency = pyro.sample("frequency", dist.Uniform(0.1, 1.5))
    swing = pyro.sample("swing", dist.Normal(torch.zeros(2), 2.0).to_event(1))
    with pyro.plate("readings", len(times)):
        angle = 2 * math.pi * frequency * times
        mean = swing[..., 0] * angle.sin() + swing[..., 1] * angle.cos()
        pyro.sample("reading", dist.Normal(mean, 0.9), obs=readings)


# %% [markdown]
# Sine and cosine parts take the place of amplitude and phase, so that the second symmetry is
# gone. The frequency is what has modes. First Pyro's own guide:

# %%
guide = AutoNormal(oscillation)
svi = SVI(
    oscillation, guide, pyro.optim.Adam({"lr": 0.02}), Trace_ELBO(16, vectorize_particles=True)
)
for _ in range(1500):
    svi.step(times, readings)
normal = evaluate_guide(oscillation, guide, times, readings, seed=0)
print(normal)

# %% [markdown]
# `evaluate_guide` draws from any guide, and weighs each draw by how much more likely it is
# under the model than under the guide. Pareto k is the shape of the tail of these weights:
# above 0.7 the guide is too thin somewhere that draws came near. Of a mode that none came near,
# no draw can tell. It takes a guide that looks for them.
#
# Now a mixture. `fit_guide` moves its components by natural gradients, adds some where draws
# that are moved from the prior to the posterior find it too thin, and drops those that are not
# needed.

# %%
pyro.clear_param_store()
guide = AutoMixture(oscillation, num_components=8)
result = fit_guide(oscillation, guide, times, readings, seed=0, progress_bar=False)
print(result)
for mode in result.modes[:5]:
    print(f"mass {mode.mass:.3f} +- {mode.error:.3f}: frequency {mode.mean['frequency']:.3f}")

# %%
figure = result.plot()
figure.savefig(OUT / "posterior_modes.png")

# %% [markdown]
# The areas are draws by their weights, and the line is the guide itself: where both agree,
# little is left to correct. Each colour is a mode. Here the frequency can be integrated on a
# grid, as all else is normal given it. So the answer is known:

# %%
grid = torch.linspace(0.1, 1.5, 6001)
angle = 2 * math.pi * grid.unsqueeze(-1) * times
design = torch.stack([angle.sin(), angle.cos()], -1)
covariance = 4.0 * design @ design.mT + 0.81 * torch.eye(len(times))
log_density = dist.MultivariateNormal(torch.zeros(len(times)), covariance).log_prob(readings)
log_density = log_density - math.log(1.4)
log_evidence = float(log_density.logsumexp(0) + (grid[1] - grid[0]).log())
print(f"log-evidence {log_evidence:.4f} on the grid, {result.log_evidence:.4f} by the guide")

figure, ax = plt.subplots(figsize=(7, 2.6), layout="constrained")
edges = np.linspace(0.1, 1.5, 281)
for drawn, name, color in (
    (normal.draws["frequency"], "AutoNormal", "C1"),
    (result.draws["frequency"], "AutoMixture", "C0"),
):
    ax.hist(drawn.numpy(), edges, density=True, alpha=0.5, color=color, label=name)
ax.plot(grid, (log_density - log_evidence).exp(), color="black", lw=0.8, label="exact")
ax.set(xlabel="frequency", yticks=[], ylim=(0, None))
ax.legend()
figure.savefig(OUT / "posterior_frequency.png")

# %% [markdown]
# ## Labels that can be exchanged
#
# Two groups, and which group each row belongs to is not known. The labels are discrete: Pyro
# sums over them, and the guide does not have them. Groups can be exchanged, so that each order
# is a mode. NUTS samples one of them.

# %%
y = torch.cat([torch.randn(20) - 1.6, 0.7 * torch.randn(12) + 1.6])


@config_enumerate
def groups(y):
    share = pyro.sample("share", dist.Beta(2.0, 2.0))
    loc = pyro.sample("loc", dist.Normal(torch.zeros(2), 3.0).to_event(1))
    scale = pyro.sample("scale", dist.LogNormal(torch.zeros(2), 0.5).to_event(1))
    with pyro.plate("rows", len(y)):
        group = pyro.sample("group", dist.Bernoulli(share)).long()
        second = group == 1
        mean = torch.where(second, loc[..., 1], loc[..., 0])
        spread = torch.where(second, scale[..., 1], scale[..., 0])
        pyro.sample("y", dist.Normal(mean, spread), obs=y)


pyro.clear_param_store()
guide = AutoMixture(groups, num_components=8)
result = fit_guide(groups, guide, y, seed=0, progress_bar=False)
print(result)

# %%
chain = MCMC(NUTS(groups), num_samples=300, warmup_steps=200, disable_progbar=True)
chain.run(y)
draws = result.resample(2000)
figure, ax = plt.subplots(figsize=(3.4, 3.2), layout="constrained")
ax.plot(*draws["loc"].T, ".", ms=2, alpha=0.5, label="AutoMixture")
ax.plot(*chain.get_samples()["loc"].T, ".", ms=3, label="NUTS, one chain")
ax.set(xlabel="first group's mean", ylabel="second group's mean")
ax.legend()
figure.savefig(OUT / "posterior_labels.png")

# %% [markdown]
# `resample` returns draws of the posterior as far as the guide covers it, in the order of the
# model's own sites; `guide` itself works with `Predictive`, `median` and `quantiles` as all
# guides of Pyro do. Where `result.reliable` is false, give it more components
# (`max_components`), more `steps`, or write the model in another way: a hierarchy in its non-
# centred form, for instance.

# %%
print(guide.quantiles([0.05, 0.5, 0.95], y)["share"])
print(f"reliable: {result.reliable}, {guide.num_components} components")
