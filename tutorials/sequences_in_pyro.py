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
# # Sequences in Pyro
#
# An autoregression with normal noise predicts one mean for the next value, with a spread around
# it. In a sequence that may jump or stay, the next value is near one of two values, and not
# between them. `FRMDN`, a recurrent mixture density network through a flow, gives every step a
# mixture of its own, in a space where a mixture fits well. It is one normalised law of whole
# sequences, which Pyro can use. This page trains it on ragged sequences, forecasts with it, infers
# what a sequence depends on by SVI, and ends with a controller. It takes about a minute on two
# cores.

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.transforms import Spline
from pyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal, init_to_median
from pyro.optim import ClippedAdam
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR

from pyromix import FRMDN, fit, near_identity
from pyromix.metrics import coverage, pit

OUT = Path("out")
OUT.mkdir(exist_ok=True)
torch.manual_seed(0)
plt.rcParams.update({"figure.dpi": 110, "font.size": 9, "axes.titlesize": 10})

# %% [markdown]
# ## A molecule that snaps
#
# A hairpin of DNA hangs between two beads. A laser trap pulls at it with a load that the
# operator sets, and measures its length every ten milliseconds. Unfolded it is 9 nm longer than
# folded, and it snaps from one to the other at random: the higher the load, the more often open.
# Of each molecule two numbers are known, the load at which both states are equally likely, and
# how fast it snaps there. Sooner or later the tether breaks, so that sequences have different
# lengths.
#
# The data are simulated by the textbook's law of such molecules, a hidden Markov chain of two
# states with rates exponential in the load. Noise is skewed: thermal motion shortens a taut chain
# more easily than it stretches it. As this law is known, it can be compared with that of a
# network, which has no information on states, rates or chains.

# %%
LONGER = 9.0  # nm
WIDTH = 1.3  # nm
THERMAL = 4.1  # energy of thermal motion, pN nm
LENGTH = 80  # steps of 10 ms


def transitions(load: Tensor, balance: Tensor, log_rate: Tensor) -> Tensor:
    """Probabilities from state to state in a step, shape (*B, 2, 2): folded, unfolded."""
    tilt = (load - balance) * LONGER / (2 * THERMAL)
    up, down = (log_rate + tilt).exp(), (log_rate - tilt).exp()
    moves = torch.stack([up, down], -1) * (-torch.expm1(-up - down) / (up + down)).unsqueeze(-1)
    return torch.stack(
        [1 - moves[..., 0], moves[..., 0], moves[..., 1], 1 - moves[..., 1]], -1
    ).unflatten(-1, (2, 2))


def exact_law(load: Tensor, static: Tensor, lengths: Tensor) -> dist.DiscreteHMM:
    """The law of lengths (*B, T), from loads (*B, T) and what is known of molecules (*B, 2)."""
    balance, log_rate = static.unsqueeze(-2).unbind(-1)
    present = torch.arange(load.shape[-1]) < lengths.unsqueeze(-1)
    noise = dist.Gumbel(torch.zeros(2), WIDTH)
    states = dist.TransformedDistribution(
        noise, dist.transforms.AffineTransform(torch.tensor([0.0, LONGER]), -1.0)
    )
    return dist.DiscreteHMM(
        torch.tensor([0.0, -1e9]),  # folded at first
        transitions(load, balance, log_rate).log(),
        states.expand([*present.shape, 2]).mask(present.unsqueeze(-1)),
    )


def next_extension(state: Tensor, load: Tensor, static: Tensor) -> tuple[Tensor, Tensor]:
    """Draws states (N,) and lengths (N,) one step after states (N,)."""
    probs = transitions(load, *static.unbind(-1))[torch.arange(len(state)), state]
    state = dist.Categorical(probs).sample()
    return state, LONGER * state - dist.Gumbel(0.0, WIDTH).sample(state.shape)


def simulate(static: Tensor, length: int = LENGTH) -> dict[str, Tensor]:
    """Sequences of molecules (N, 2) under loads that jump now and then."""
    count = len(static)
    jumps = (torch.rand(count, length) < 0.08).index_fill(1, torch.tensor(0), True)
    since = torch.where(jumps, torch.arange(length), 0).cummax(1).values
    load = (14 + 1.2 * torch.randn(count, length)).gather(1, since)
    state, steps = torch.zeros(count, dtype=torch.long), []
    for t in range(length):
        state, extension = next_extension(state, load[:, t], static)
        steps.append(extension)
    lengths = torch.randint(length // 2, length + 1, (count,))
    present = torch.arange(length) < lengths.unsqueeze(-1)
    return {
        "value": torch.where(present, torch.stack(steps, -1), 0.0).unsqueeze(-1),  # (N, T, 1), nm
        "context": load.unsqueeze(-1),  # (N, T, 1), pN
        "static": static,  # (N, 2): balance in pN, logarithm of the rate in 1/step
        "lengths": lengths,
    }


# Molecules differ: in the load of balance (pN), and in the logarithm of the rate there (1/step).
population = dist.Normal(torch.tensor([14.0, -2.3]), torch.tensor([0.6, 0.5])).to_event(1)
train, test = simulate(population.sample((4000,))), simulate(population.sample((1000,)))

# %%
SHOWN = [1, 6, 8]
figure, axes = plt.subplots(
    2, 3, figsize=(10, 3.6), layout="constrained", sharex=True, sharey="row", height_ratios=(2, 1)
)
for i, (top, bottom) in zip(SHOWN, axes.T, strict=True):
    n, (balance, log_rate) = int(test["lengths"][i]), test["static"][i]
    top.plot(test["value"][i, :n], color="C0", marker=".", markersize=3, linewidth=0.7)
    top.set_title(f"balance {balance:.1f} pN, {100 * log_rate.exp():.1f} snaps per s")
    bottom.step(range(n), test["context"][i, :n, 0], color="C1", where="mid")
    bottom.axhline(balance, color="0.6", linewidth=0.8, linestyle="--")
    bottom.set(xlabel="step (10 ms)")
axes[0, 0].set_ylabel("extension (nm)")
axes[1, 0].set_ylabel("load (pN)")
figure.savefig(OUT / "sequences_data.png")

# %% [markdown]
# Three molecules, their loads (orange) and the loads at which they are balanced (dashed). Above
# balance they spend more time unfolded. The two states overlap a little, so that one low value in
# the upper state need not mean that the molecule has snapped.
#
# ## Fit
#
# A batch is a dict. `value` is padded to equal `lengths`; `context` is an input of every step,
# known before the step's value, here the load; `static` is an input of the whole sequence. The
# flow is one spline, the same at all steps, and starts close to the identity. With it two
# components should do, one for each state.
#
# Two peers show what the spline adds: the same network with a single normal, and with two normals
# but no spline.


# %%
def spline() -> list:
    return [near_identity(Spline(1, count_bins=8, bound=4.0))]


models = {
    "one normal": FRMDN(1, LENGTH, 1, context_dim=1, static_dim=2, hidden_dim=32),
    "two normals": FRMDN(1, LENGTH, 2, context_dim=1, static_dim=2, hidden_dim=32),
    "two normals, spline": FRMDN(
        1, LENGTH, 2, context_dim=1, static_dim=2, hidden_dim=32, transforms=spline()
    ),
}
STEPS = 700
for model in models.values():
    fit(
        model,
        train,
        steps=STEPS,
        batch_size=100,
        lr=0.01,
        gradient_clip=5.0,
        scheduler=lambda optimizer: CosineAnnealingLR(optimizer, STEPS),
        seed=0,
        progress_bar=False,
    )
    model.requires_grad_(False)  # from here on models are used, not trained
hairpins = models["two normals, spline"]

# %% [markdown]
# The classical peer is a linear autoregression: the last three values, the load and the two
# numbers, by least squares. `log_prob_per_step` is zero where a sequence has ended, so that sums
# over steps need no mask.


# %%
def design(data: dict[str, Tensor], order: int = 3) -> tuple[Tensor, Tensor]:
    """Regressors and values of all steps before the ends of sequences."""
    value, count = data["value"], len(data["value"])
    past = [
        value.roll(lag, 1).index_fill(1, torch.arange(lag), 0.0) for lag in range(1, order + 1)
    ]
    columns = [torch.ones_like(value), *past, data["context"]]
    columns.append(data["static"].unsqueeze(1).expand(count, LENGTH, 2))
    present = torch.arange(LENGTH) < data["lengths"].unsqueeze(-1)
    return torch.cat(columns, -1)[present].double(), value[present].double()


rows, targets = design(train)
weights = torch.linalg.lstsq(rows, targets).solution
linear = dist.Normal(0.0, (targets - rows @ weights).std())
rows, targets = design(test)
print("held-out log-density, nats per step")
print(f"  {'linear, AR(3)':20} {linear.log_prob(targets - rows @ weights).mean():.3f}")

inputs = {name: test[name] for name in ("static", "lengths")}
for name, model in models.items():
    per_step = model.condition(test["context"], **inputs).log_prob_per_step(test["value"])
    print(f"  {name:20} {per_step.sum() / test['lengths'].sum():.3f}")
truth = exact_law(test["context"].squeeze(-1), **inputs)
log_prob = truth.log_prob(test["value"].squeeze(-1))
print(f"  {'the law itself':20} {log_prob.sum() / test['lengths'].sum():.3f}")

# %% [markdown]
# The network with one normal has as much information on the past as the others, but a third of a
# nat less in every step, because of the shape of its law. With a spline two components are nearly
# as good as the law itself; without one they miss the skew. (More components would correct that,
# too: a flow helps most where all states have the same shape.)
#
# Draws, for the three molecules from above and the loads that they were under:

# %%
drawn = {"observed": test["value"][SHOWN]}
for name in ("one normal", "two normals, spline"):
    law = models[name].condition(
        test["context"][SHOWN], static=test["static"][SHOWN], lengths=test["lengths"][SHOWN]
    )
    drawn[name] = law.sample()
figure, axes = plt.subplots(
    3, 3, figsize=(10, 4.6), layout="constrained", sharex=True, sharey=True
)
for row, (name, values) in zip(axes, drawn.items(), strict=True):
    row[0].set_ylabel("extension (nm)")
    for ax, value, n in zip(row, values[..., 0], test["lengths"][SHOWN], strict=True):
        ax.plot(
            value[:n],
            color="k" if name == "observed" else "C0",
            marker=".",
            markersize=3,
            linewidth=0.7,
        )
        ax.set_title(name)
for ax in axes[-1]:
    ax.set_xlabel("step (10 ms)")
figure.savefig(OUT / "sequences_draws.png")

# %% [markdown]
# Draws of the single normal have values in the gap between the states, those of the mixture snap
# across it. They need not snap when the molecule did: they are other molecules of the same kind,
# which share nothing with it but loads and the two numbers.
#
# To see where these nats are lost, follow a sequence step by step. `step` gives the law of the
# next value, and a state to go on from. Here it is given what was observed.


# %%
def densities(model: FRMDN, data: dict[str, Tensor], i: int, grid: Tensor) -> Tensor:
    """Density of each step of a sequence given those before, shape (grid, steps)."""
    state, y, columns = None, None, []
    for t in range(int(data["lengths"][i])):
        law, state = model.step(state, y, data["context"][i, t], static=data["static"][i])
        columns.append(law.log_prob(grid.unsqueeze(-1)).exp())
        y = data["value"][i, t]
    return torch.stack(columns, -1)


ONE, MOMENT = 6, 38
grid = torch.linspace(-10.0, 15.0, 251)
seen = test["value"][ONE, : test["lengths"][ONE], 0]
figure, axes = plt.subplots(
    1, 3, figsize=(10.5, 3.4), layout="constrained", width_ratios=(3, 3, 2)
)
for ax, name in zip(axes, ("one normal", "two normals, spline"), strict=False):
    density = densities(models[name], test, ONE, grid)
    image = ax.imshow(
        density,
        origin="lower",
        aspect="auto",
        extent=(-0.5, density.shape[1] - 0.5, -10, 15),
        cmap="Blues",
        vmax=0.3,
    )
    ax.plot(seen, "k.", markersize=2.5)
    ax.axvline(MOMENT, color="C3", linewidth=0.8)
    ax.set(title=f"next value, {name}", xlabel="step (10 ms)", ylabel="extension (nm)")
    axes[2].plot(density[:, MOMENT], grid, label=name)
figure.colorbar(image, ax=axes[1], label="density (1/nm)", extend="max")
figure.get_layout_engine().set(wspace=0.06)
past = seen[:MOMENT].expand(len(grid), -1)
law = exact_law(test["context"][ONE, : MOMENT + 1, 0], test["static"][ONE], torch.tensor(LENGTH))
density = law.log_prob(torch.cat([past, grid.unsqueeze(-1)], -1)).softmax(0) / (grid[1] - grid[0])
axes[2].plot(density, grid, "k--", linewidth=0.9, label="the law itself")
axes[2].set(title=f"at step {MOMENT} (red line)", xlabel="density (1/nm)", ylim=(-10, 15))
figure.legend(*axes[2].get_legend_handles_labels(), loc="outside lower right", ncols=3)
figure.savefig(OUT / "sequences_steps.png")

# %% [markdown]
# On the left is one broad band, in the middle are two narrow ones; colours show the density.
# Whenever the state is uncertain, the single normal has to cover both states, and with them the
# gap between them. At the red line, after two low values at a high load, the molecule may have
# stayed or snapped back. The law with a spline says so, with shapes close to those of the law
# itself.
#
# ## Continue a sequence
#
# `predict` draws what follows after a prefix, for as long as the loads to come are given. Here 40
# steps are observed, and 120 predicted: twice as many in all as in any sequence of the training.

# %%
PREFIX, HORIZON, DRAWS = 40, 120, 200
total = PREFIX + HORIZON
long = simulate(population.sample((200,)), length=2 * total)  # none ends before the total
observed = long["value"][:, PREFIX:total]
forecasts = {
    name: models[name].predict(
        long["value"][:, :PREFIX],
        HORIZON,
        DRAWS,
        context=long["context"][:, :total],
        static=long["static"],
    )
    for name in ("one normal", "two normals, spline")
}
print(f"draws of shape {tuple(forecasts['one normal'].shape)}")

# %%
ONE = 10
ahead = torch.arange(PREFIX, total)
figure, axes = plt.subplots(
    2, 2, figsize=(10, 4.2), layout="constrained", sharex=True, sharey="row", height_ratios=(3, 1)
)
for (top, bottom), (name, draws) in zip(axes.T, forecasts.items(), strict=True):
    levels = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95])
    low, lower, median, upper, high = draws[:, ONE, :, 0].quantile(levels, 0)
    top.fill_between(ahead, low, high, color="C0", alpha=0.2, linewidth=0, label="5% to 95%")
    top.fill_between(ahead, lower, upper, color="C0", alpha=0.4, linewidth=0, label="25% to 75%")
    top.plot(ahead, median, color="C0", linewidth=1, label="median")
    top.plot(long["value"][ONE, :total, 0], "k.", markersize=2.5, label="observed")
    for border, style in ((PREFIX, "-"), (LENGTH, ":")):
        top.axvline(border - 0.5, color="C3", linewidth=0.9, linestyle=style)
    top.set_title(f"forecast, {name}")
    bottom.step(range(total), long["context"][ONE, :total, 0], color="C1")
    bottom.axhline(long["static"][ONE, 0], color="0.6", linewidth=0.8, linestyle="--")
    bottom.set(xlabel="step (10 ms)")
figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
axes[0, 0].set_ylabel("extension (nm)")
axes[1, 0].set_ylabel("load (pN)")
figure.savefig(OUT / "sequences_forecast.png")

# %% [markdown]
# From the red line on nothing is observed; from the dotted one on, sequences are longer than in
# training. Where the load is far from balance (dashed) both know which state to expect. Where it
# is close, the bands of the mixture reach from one state to the other, with a median that may
# change sides: such a band gives the probabilities of the two states, not a range around the
# expected value. The band of the normal looks similar, but its draws do not.
#
# Whether a forecast can be believed is a question of calibration. If the observation is but one
# more draw, its rank among the draws is uniform. `pit` computes such ranks, `coverage` the share
# of observations inside central intervals.

# %%
figure, axes = plt.subplots(1, 3, figsize=(10, 2.9), layout="constrained")
spans = {
    f"steps {PREFIX + 1} to {LENGTH}": slice(0, LENGTH - PREFIX),
    f"steps {LENGTH + 1} to {total}": slice(LENGTH - PREFIX, HORIZON),
}
for ax, (title, span) in zip(axes, spans.items(), strict=False):
    for name, draws in forecasts.items():
        ranks = pit(draws[:, :, span], observed[:, span]).flatten()
        ax.hist(ranks.numpy(), bins=20, density=True, histtype="step", linewidth=1.4, label=name)
        share = coverage(draws[:, :, span], observed[:, span], level=0.9)
        print(f"{title}, {name}: {share:.1%} inside 90% intervals")
    ax.axhline(1.0, color="0.5", linewidth=0.8, linestyle="--")
    ax.set(title=title, xlabel="probability integral transform", ylabel="density", ylim=(0, 2.2))
axes[0].legend()
for name, draws in forecasts.items():
    axes[2].hist(
        draws.flatten().numpy(),
        bins=120,
        range=(-10, 17),
        density=True,
        histtype="step",
        linewidth=1.4,
        label=name,
    )
axes[2].hist(
    observed.flatten().numpy(), bins=120, range=(-10, 17), density=True, color="0.8", zorder=0
)
axes[2].set(title="all predicted values (grey: observed)", xlabel="extension (nm)")
axes[2].set_ylabel("density (1/nm)")
figure.savefig(OUT / "sequences_calibration.png")

# %% [markdown]
# The mixture's ranks are flat, also past the length of the training data. The normal's 90%
# intervals hold nearly 90% of the observations, so that coverage alone does not show the
# difference. Its ranks do: too many observations lie below nearly all draws, too few above. So do
# its draws on the right: far too many lie in the gap, and above what the molecule can reach.
#
# ## What does a sequence depend on?
#
# Now suppose that balance and rate of some molecules are not known. They are latent variables,
# with the population they come from as prior; the trained network is the likelihood. Gradients go
# through `condition` to whatever it is given, so that Pyro can do the inference. Each molecule was
# measured five times: one plate within another.

# %%
torch.manual_seed(2)
COUNT, REPEATS = 40, 5
truth = population.sample((COUNT,))
flat = simulate(truth.repeat(REPEATS, 1))
new = {name: part.unflatten(0, (REPEATS, COUNT)) for name, part in flat.items()}


def model(data: dict[str, Tensor]) -> None:
    repeats, count = data["lengths"].shape
    with pyro.plate("molecules", count, dim=-1):
        balance = pyro.sample("balance", dist.Normal(14.0, 0.6))
        log_rate = pyro.sample("log_rate", dist.Normal(-2.3, 0.5))
        static = torch.stack([balance, log_rate], -1)
        with pyro.plate("repeats", repeats, dim=-2):
            law = hairpins.condition(data["context"], static=static, lengths=data["lengths"])
            pyro.sample("extension", law, obs=data["value"])


# By default AutoNormal starts at zero: far from all loads that the network has seen.
guide = AutoNormal(model, init_loc_fn=init_to_median)
svi = SVI(model, guide, ClippedAdam({"lr": 0.05, "lrd": 0.1 ** (1 / 250)}), Trace_ELBO())
losses = [svi.step(new) for _ in range(250)]
print(f"ELBO per molecule: {-losses[0] / COUNT:.1f} -> {-sum(losses[-25:]) / 25 / COUNT:.1f}")

# %% [markdown]
# NUTS takes the same model, without a guide. One molecule is enough to see that both agree. As
# this law is known, so is the exact posterior: prior times likelihood, on a grid.

# %%
ONE = 0
one = {name: part[:, ONE : ONE + 1] for name, part in new.items()}
mcmc = MCMC(
    NUTS(model, init_strategy=init_to_median),
    num_samples=200,
    warmup_steps=100,
    disable_progbar=True,
)
mcmc.run(one)
chain = torch.cat([mcmc.get_samples()[name] for name in ("balance", "log_rate")], -1)

with pyro.plate("draws", 1000, dim=-3), torch.no_grad():
    drawn = guide(new)
drawn = torch.stack([drawn["balance"], drawn["log_rate"]], -1).reshape(1000, COUNT, 2)
print("balance and log rate of one molecule, mean and deviation")
for name, points in (("AutoNormal", drawn[:, ONE]), ("NUTS", chain)):
    print(f"  {name:10} {points.mean(0).numpy().round(2)} {points.std(0).numpy().round(2)}")
print(f"  {'truth':10} {truth[ONE].numpy().round(2)}")

# %%
center = truth[ONE]
balances = center[0] + torch.linspace(-0.9, 0.9, 81)
log_rates = center[1] + torch.linspace(-0.9, 0.9, 81)
candidates = torch.stack(torch.meshgrid(balances, log_rates, indexing="xy"), -1)  # (81, 81, 2)
log_joint = population.log_prob(candidates)
for i in range(REPEATS):
    load = one["context"][i, 0, :, 0].expand(81, 81, -1)
    log_joint += exact_law(load, candidates, one["lengths"][i]).log_prob(one["value"][i, 0, :, 0])

figure, axes = plt.subplots(1, 3, figsize=(10.2, 3.6), layout="constrained")
axes[0].contour(
    balances,
    log_rates,
    log_joint,
    levels=[log_joint.max() - drop for drop in (4.5, 2.0, 0.5)],
    colors="0.3",
    linewidths=1,
    linestyles="solid",
)
axes[0].plot([], [], color="0.3", label="exact (1, 2, 3 sd)")
axes[0].scatter(*drawn[:200, ONE].T, s=4, color="C0", alpha=0.6, label="AutoNormal")
axes[0].scatter(*chain.T, s=4, color="C1", alpha=0.6, label="NUTS")
axes[0].plot(*truth[ONE], "k*", markersize=10, label="truth")
axes[0].set(title="one molecule", xlabel="balance (pN)", ylabel="logarithm of the rate (1/step)")
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower left", ncols=4)
names = ("balance (pN)", "logarithm of the rate (1/step)")
for column, (ax, name) in enumerate(zip(axes[1:], names, strict=True)):
    center, spread = drawn[..., column].mean(0), drawn[..., column].std(0)
    ax.errorbar(
        truth[:, column], center, 2 * spread, fmt=".", markersize=4, linewidth=0.7, color="C0"
    )
    ends = [float(truth[:, column].min()), float(truth[:, column].max())]
    ax.plot(ends, ends, "k--", linewidth=0.8)
    ax.set(title=f"{COUNT} molecules", xlabel=f"true {name}", ylabel="posterior, +- 2 sd")
    inside = coverage(drawn[..., column], truth[:, column], level=0.9)
    print(f"{name}: {inside:.0%} of molecules inside their 90% interval")
figure.savefig(OUT / "sequences_posterior.png")

# %% [markdown]
# On the left, guide and NUTS find the posterior that the law of the data has: the network is as
# good as that law, here, too. On the right are intervals of the posteriors, given five
# measurements. AutoNormal's may be a little narrow, as posteriors of the rate are skewed.
#
# Both start at the prior's median on purpose. At zero, AutoNormal's own default, the load is one
# that the network was not trained on, and its output for such a load is meaningless.
#
# ## Steer
#
# A controller chooses the load before each step. It wants molecules unfolded, then folded, then
# unfolded again, and to stay as close to 14 pN as it can: it takes the load closest to that with
# which at least 90% of the law of the next extension is on the wanted side, or if there is none,
# the load with the most. `step` broadcasts, so that all loads are tried for all molecules in one
# call; indexing the state keeps those that were chosen.

# %%
torch.manual_seed(3)
CUT, TIMES = 4.5, 120
loads = torch.linspace(11.6, 16.4, 13)
effort = (loads - 14).abs().unsqueeze(-1)
molecules = population.sample((200,))
everyone = torch.arange(200)
unfold = (torch.arange(TIMES) // 40) % 2 == 0

hidden, state, y = torch.zeros(200, dtype=torch.long), None, None
extensions, chosen = [], []
for t in range(TIMES):
    law, states = hairpins.step(state, y, loads.view(13, 1, 1), static=molecules)
    share = ((law.sample((100,)).squeeze(-1) > CUT) == unfold[t]).float().mean(0)  # (13, 200)
    best = torch.where(share > 0.9, 2 - effort / 10, share).argmax(0)
    state = tuple(part[best, everyone] for part in states)
    hidden, extension = next_extension(hidden, loads[best], molecules)  # the world's part
    y = extension.unsqueeze(-1)
    extensions.append(extension)
    chosen.append(loads[best])
extensions, chosen = torch.stack(extensions, -1), torch.stack(chosen, -1)  # (200, 120)

# A peer that does not look back: as far to either side of each molecule's balance, on average.
hidden, blind = torch.zeros(200, dtype=torch.long), []
strength = (chosen - molecules[:, :1]).abs().mean()
for t in range(TIMES):
    load = molecules[:, 0] + (strength if unfold[t] else -strength)
    hidden, extension = next_extension(hidden, load, molecules)
    blind.append(extension)
reached = {
    "step by step": (extensions > CUT) == unfold,
    "square wave": (torch.stack(blind, -1) > CUT) == unfold,
}
for name, inside in reached.items():
    print(f"{name:12} {inside.float().mean():.1%} of steps on the wanted side")
print(f"mean distance of the load from balance: {strength:.2f} pN")

# %%
figure, axes = plt.subplot_mosaic(
    [["top", "right"], ["bottom", "right"]],
    figsize=(10, 3.8),
    layout="constrained",
    height_ratios=(2, 1),
)
top, bottom, right = axes["top"], axes["bottom"], axes["right"]
ONE = 0
for start in range(0, TIMES, 40):
    low, high = (CUT, 13) if unfold[start] else (-9, CUT)
    top.fill_between([start - 0.5, start + 39.5], low, high, color="C2", alpha=0.15, linewidth=0)
top.plot(extensions[ONE], "k.-", markersize=3, linewidth=0.5)
top.set(title="one molecule, its target shaded", ylabel="extension (nm)", ylim=(-9, 13))
bottom.step(range(TIMES), chosen[ONE], color="C1", where="mid")
bottom.axhline(molecules[ONE, 0], color="0.6", linewidth=0.8, linestyle="--")
bottom.set(xlabel="step (10 ms)", ylabel="load (pN)")
for name, inside in reached.items():
    right.plot(inside.float().mean(0), label=name)
right.set(title="200 molecules", xlabel="step (10 ms)", ylabel="share on the wanted side")
right.set_ylim(0, 1.05)
right.legend(loc="lower right")
figure.savefig(OUT / "sequences_control.png")

# %% [markdown]
# On the left, the loads are strong where a state is to be left, and after accidents, and weak in
# between. How long a molecule has to be pulled depends on what it does, which a load curve that is
# set in advance does not take into account. The rule asks for 90% on the wanted side, not for
# more.
#
# ## Padding
#
# What stands after a sequence's end is ignored, whatever it is, and draws have zeros there. So the
# result of a batch is that of its sequences one by one.

# %%
law = hairpins.condition(test["context"], static=test["static"], lengths=test["lengths"])
present = torch.arange(LENGTH) < test["lengths"].unsqueeze(-1)
spoilt = torch.where(present.unsqueeze(-1), test["value"], torch.nan)
print(
    "NaN as padding changes nothing:",
    torch.equal(law.log_prob(spoilt), law.log_prob(test["value"])),
)
alone = [
    hairpins.condition(
        test["context"][i], static=test["static"][i], lengths=test["lengths"][i]
    ).log_prob(test["value"][i])
    for i in range(20)
]
difference = (torch.stack(alone) - law.log_prob(test["value"])[:20]).abs().max()
print(f"largest difference between a batch and its sequences one by one: {difference:.0e} nats")
print("draws are zero after the end:", bool((law.sample()[~present] == 0).all()))

# %% [markdown]
# ## What it does not do
#
# - **Gaps.** A value that is missing inside a sequence is an error, as everything after it depends
#   on it. Fill gaps in, or make what was measured an input of its own.
# - **Ends.** Lengths are given, not predicted: when a tether breaks is not part of the law.
# - **The far future.** Forecasts feed on their own draws, and errors add up. Here they stayed
#   calibrated, as a molecule soon forgets. Check this on your data, as above, before you trust a
#   sequence that is longer than those of training.
# - **Inputs out of range.** A network knows nothing of loads that it has not seen. This holds for
#   latent inputs, too: give them priors that stay inside, and start inference there.
# - **Sequences as latent variables of HMC.** Whole ones work. The padding of ragged ones is a
#   direction along which nothing changes, in which a chain drifts without end: slice it off.

# %%
broken = test["value"].clone()
broken[0, 5] = torch.nan
try:
    law.log_prob(broken)
except ValueError as error:
    print(str(error)[:300])
