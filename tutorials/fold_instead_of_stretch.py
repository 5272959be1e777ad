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
# # Fold instead of stretch
#
# A normalizing flow is a bijection: it stretches a normal until it covers the data. Where the data
# has gaps, some density stays in them. A folding flow (RAD, Dinh et al. 2019) maps several parts
# of the data onto the same part of space instead, and keeps as a discrete latent which part a
# point was on. This page looks at one fold, compares six of them with six affine couplings, reads
# the discrete latents as clusters, and ends with a guide for a posterior of two modes. It takes
# about a minute on one core.

# %%
from collections import Counter, defaultdict
from pathlib import Path

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.transforms import affine_coupling, permute
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.optim import ClippedAdam
from sklearn.metrics import adjusted_rand_score, completeness_score, homogeneity_score
from torch.distributions import AffineTransform
from torch.optim.lr_scheduler import CosineAnnealingLR

from pyromix import RAD, Flow, Fold, fit
from pyromix.datasets import gaussian_grid, mixture_1d

OUT = Path("out")
OUT.mkdir(exist_ok=True)
torch.manual_seed(2)
plt.rcParams.update({"figure.dpi": 110, "font.size": 9, "axes.titlesize": 10})
LEFT, MIDDLE, RIGHT = 0, 1, 2
COLORS = ("C3", "C2", "C0")  # of the three pieces

# %% [markdown]
# ## One fold
#
# `Fold` bends a line twice, so that three pieces lie over each other. From x to z it is an
# ordinary function. From z to x it draws a piece from p(k|z), and takes the preimage on that
# piece. With a normal base the law has two or three modes. The last transform sets location and
# unit.

# %%
x = mixture_1d(10_000).squeeze(-1)
base = dist.Normal(torch.nn.Parameter(torch.tensor(0.0)), torch.nn.Parameter(torch.tensor(1.0)))
fold = Fold()
bumps = Flow(base, [fold, AffineTransform(x.mean(), x.std())])
history = fit(bumps, x, steps=1000, batch_size=500, lr=0.01, seed=0, progress_bar=False)
bumps.requires_grad_(False)
print(f"loss {history.losses[0]:.2f} -> {sum(history.losses[-50:]) / 50:.2f}")

# %% [markdown]
# `encode` and `decode` are the two directions with the piece as a second latent. Outside of the
# fold z has one preimage: asked for another piece, `decode` returns the end of that piece, which
# does not lead back to z.


# %%
def preimage(fold: Fold, z: torch.Tensor, piece: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The x of z on a piece, and whether there is one."""
    x = fold.decode(z, torch.full((*z.shape, 1), piece))
    back, _ = fold.encode(x)
    return x, (back - z).abs() < 1e-3


u = torch.linspace(-3.0, 3.0, 1201)  # x before the last transform
z, piece = fold.encode(u)
figure, axes = plt.subplots(1, 3, figsize=(10, 2.9), layout="constrained")
for k, color in enumerate(COLORS):
    part = torch.where(piece.squeeze(-1) == k, z, torch.nan)
    axes[0].plot(u, part, color=color, label=f"k = {k}")
    line = torch.linspace(float(z.min()), float(z.max()), 1201)
    preimages, exists = preimage(fold, line, k)
    gate = fold.log_branch_prob(line, preimages).exp()
    axes[1].plot(line, torch.where(exists, gate, 0.0), color=color)
axes[0].set(title="from x to z: three pieces", xlabel="x (in units of the data)", ylabel="z")
axes[0].legend()
axes[1].set(title="p(k | z), drawn from z to x", xlabel="z")
line = torch.linspace(-4.0, 4.0, 1201)
_, (piece,) = bumps.encode(line)
density = bumps.log_prob(line).exp()
axes[2].hist(x.numpy(), bins=120, density=True, color="0.85", label="data")
for k, color in enumerate(COLORS):
    axes[2].plot(line, torch.where(piece.squeeze(-1) == k, density, torch.nan), color=color)
axes[2].set(title="the density, by pieces", xlabel="x")
axes[2].legend()
figure.savefig(OUT / "fold_line.png")

drawn, (pieces,) = bumps.encode(bumps.sample((10_000,)))
shares = [f"{(pieces == k).float().mean():.3f}" for k in (LEFT, MIDDLE, RIGHT)]
wide = torch.linspace(-9.0, 9.0, 9001)
integral = torch.trapezoid(bumps.log_prob(wide).exp(), wide)
print(f"integral of the density: {integral:.4f}")
print(f"shares of the pieces among draws: {', '.join(shares)}")

# %% [markdown]
# The gates make the density continuous: where two pieces meet they are in proportion to their
# slopes. Its gradient is discontinuous there. The probabilities of the pieces may vary with z, so
# that the modes need not have the same shape.
#
# ## Bridges
#
# The data is a grid of 25 normals. Six affine couplings with 56 hidden units each have 1,356
# parameters, six folding couplings with 8 have 780. Both are trained on the same batches, each
# with the best of several learning rates. The affine couplings are trained with clipped gradients,
# without which they end lower.

# %%
STEPS = 2000
torch.manual_seed(1)
centers = torch.cartesian_prod(torch.arange(-2.0, 3.0), torch.arange(-2.0, 3.0))
data, held_out = gaussian_grid(20_000), gaussian_grid(2_000)
parts = [affine_coupling(2, hidden_dims=[56]) for _ in range(6)]
swap = [permute(2, torch.tensor([1, 0])) for _ in range(6)]
affine = Flow(
    dist.Normal(torch.zeros(2), torch.ones(2)),
    [
        *(part for pair in zip(parts, swap, strict=True) for part in pair),
        AffineTransform(data.mean(0), data.std(0), event_dim=1),
    ],
)
rad = RAD(dim=2, num_layers=6, hidden_dims=(8,))
truth = dist.MixtureSameFamily(
    dist.Categorical(torch.ones(25)), dist.Normal(centers, 0.1).to_event(1)
)


def far(x: torch.Tensor) -> float:
    """The share of points farther than 4 standard deviations from every centre."""
    return float((torch.cdist(x, centers).amin(-1) > 0.4).float().mean())


print(f"truth: {truth.log_prob(held_out).mean():.2f} nats, {far(data):.2%} far from all modes")
for name, flow, lr, clip in (("affine", affine, 0.005, 1.0), ("RAD", rad, 0.01, None)):
    fit(
        flow,
        data,
        steps=STEPS,
        batch_size=500,
        lr=lr,
        gradient_clip=clip,
        scheduler=lambda optimizer: CosineAnnealingLR(optimizer, STEPS),
        seed=0,
        progress_bar=False,
    )
    flow.requires_grad_(False)
    print(
        f"{name}: {sum(p.numel() for p in flow.parameters())} parameters, "
        f"{flow.log_prob(held_out).mean():.2f} nats, "
        f"{far(flow.sample((20_000,))):.1%} of draws far from all modes"
    )

# %% [markdown]
# The affine flow is one connected surface: some of its draws lie between the modes, as its density
# (here on a logarithmic scale) shows. The folds leave few such points, but some, as creases and
# gates are learned as well. Over six seeds they were 0.1% to 3% of RAD's draws, over three 31% to
# 34% of the affine flow's.

# %%
side = torch.linspace(-2.8, 2.8, 240)
plane = torch.cartesian_prod(side, side)
figure, axes = plt.subplots(2, 3, figsize=(8.4, 5.7), layout="constrained")
for column, (name, law) in zip(
    axes.T, (("truth", truth), ("six affine couplings", affine), ("RAD", rad)), strict=True
):
    x = law.sample((4_000,))
    column[0].scatter(*x.T, s=0.6, color="0.2", linewidths=0)
    column[0].set(title=name)
    log_density = law.log_prob(plane).reshape(240, 240).T
    image = column[1].imshow(
        log_density, origin="lower", extent=(-2.8, 2.8, -2.8, 2.8), cmap="magma", vmin=-8, vmax=0
    )
    for ax in column:
        ax.set(xlim=(-2.8, 2.8), ylim=(-2.8, 2.8), aspect="equal", xticks=[], yticks=[])
figure.colorbar(image, ax=axes[1], shrink=0.9, label="log-density", extend="both")
figure.savefig(OUT / "fold_bridges.png")

# %% [markdown]
# ## Layer by layer
#
# From the data (left) to the base (right): points on entering each fold, and on leaving it.
# Colours are the pieces of that fold, left, middle and right as red, green and blue; where z has a
# single preimage, black. Points of different colours that leave in the same place come from
# different parts of space.

# %%
x = rad.transforms[-1].inv(held_out)
folds = list(rad.transforms[:-1])[::-1]
figure, axes = plt.subplots(2, 6, figsize=(12, 4.1), layout="constrained")
for number, (coupling, column) in enumerate(zip(folds, axes.T, strict=True), 1):
    z, piece = coupling.encode(x)
    back, _ = coupling.encode(coupling.decode(z, torch.full_like(piece, MIDDLE)))
    single = (back - z).abs().amax(-1) > 1e-3  # the middle piece does not reach such z
    colors = ["k" if one else COLORS[k] for one, k in zip(single, piece.squeeze(-1), strict=True)]
    column[0].scatter(*x.T, s=1.5, c=colors, linewidths=0)
    column[1].scatter(*z.T, s=1.5, c=colors, linewidths=0)
    column[0].set(title=f"fold {number}: coordinate {coupling.folded[0]}")
    x = z
axes[0, 0].set_ylabel("on entering")
axes[1, 0].set_ylabel("on leaving")
for ax in axes.flat:
    ax.set(xlim=(-3.2, 3.2), ylim=(-3.2, 3.2), aspect="equal", xticks=[], yticks=[])
figure.savefig(OUT / "fold_layers.png")
print(f"the latents have mean {x.mean(0).numpy()} and deviation {x.std(0).numpy()}")

# %% [markdown]
# ## The code
#
# The pieces of all layers together are a code. It was learned without knowledge of the 25
# components. Does it find them? Homogeneity is one if a code never mixes components, completeness
# is one if a component has one code.

# %%
_, branches = rad.encode(held_out)
pieces = torch.cat(branches, -1)  # (2000, 6), from the base to the data
component = torch.cdist(held_out, centers).argmin(-1)
print("folds  codes  homogeneity  completeness  adj. Rand")
for count in range(1, 7):  # of the folds next to the data
    _, code, sizes = pieces[:, -count:].unique(dim=0, return_inverse=True, return_counts=True)
    scores = (homogeneity_score, completeness_score, adjusted_rand_score)
    figures = "  ".join(f"{score(component, code):11.2f}" for score in scores)
    print(f"{count:5}  {len(sizes):5}  {figures}")
ranked = sizes.sort(descending=True).values
needed = int((ranked.cumsum(0) < 0.9 * len(held_out)).sum()) + 1
print(f"{needed} of {len(sizes)} codes hold 90% of the points")

# A code stands for the component of most of its points. Does it name those of new points?
votes = defaultdict(Counter)
for row, name in zip(pieces.tolist(), component.tolist(), strict=True):
    votes[tuple(row)][name] += 1
fresh = gaussian_grid(2_000)
rows = torch.cat(rad.encode(fresh)[1], -1).tolist()
names = torch.cdist(fresh, centers).argmin(-1).tolist()
right = [
    tuple(row) in votes and votes[tuple(row)].most_common(1)[0][0] == name
    for row, name in zip(rows, names, strict=True)
]
print(f"components of new points named by their codes: {sum(right) / len(right):.1%} right")

figure, axes = plt.subplots(1, 3, figsize=(10.5, 3.7), layout="constrained")
palette = torch.rand(3**6, 3, generator=torch.Generator().manual_seed(0)).numpy()
axes[0].scatter(*held_out.T, s=3, c=palette[component])
axes[0].set(title="by component")
for ax, count in zip(axes[1:], (4, 6), strict=True):
    codes, code = pieces[:, -count:].unique(dim=0, return_inverse=True)
    ax.scatter(*held_out.T, s=3, c=palette[code])
    ax.set(title=f"by code of {count} folds: {len(codes)} of {3**count}")
for ax in axes:
    ax.set(xlim=(-2.8, 2.8), ylim=(-2.8, 2.8), aspect="equal", xticks=[], yticks=[])
figure.savefig(OUT / "fold_codes.png")

# %% [markdown]
# It does, and divides the data further. The folds next to the data separate components, from
# coarse to fine. Those next to the base give what is left the shape of a normal, and divide modes
# into parts to do so: the codes of all layers are too many for clusters. Some creases lie within
# modes, too. For clusters take the first folds from the data, or merge codes that touch; for one
# component per mode take a `GaussianMixture`.
#
# ## As a guide
#
# The posterior below has two modes. The draws of RAD are not reparameterised, but in Pyro that
# needs no special code: there is a pathwise gradient given the pieces, and a score function
# accounts for the choice of pieces, and for the ends of folds.

# %%
Y = torch.tensor(2.0)


def model() -> None:
    x = pyro.sample("x", dist.Normal(torch.zeros(2), torch.ones(2)).to_event(1))
    pyro.sample("y", dist.Normal(x[..., 0] ** 2 + 0.5 * x[..., 1], 0.3), obs=Y)


approximation = RAD(dim=2, num_layers=4)


def guide() -> None:
    pyro.module("approximation", approximation)
    pyro.sample("x", approximation)


automatic = AutoNormal(model)
axis = torch.linspace(-5, 5, 401)
points = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)
log_joint = dist.Normal(0.0, 1.0).log_prob(points).sum(-1)
log_joint = log_joint + dist.Normal(points[..., 0] ** 2 + 0.5 * points[..., 1], 0.3).log_prob(Y)
evidence = log_joint.logsumexp((0, 1)) + 2 * (axis[1] - axis[0]).log()
print(f"log evidence {evidence:.2f}, by quadrature")
elbo = Trace_ELBO(num_particles=32, vectorize_particles=True, max_plate_nesting=0)
for name, chosen in (("AutoNormal", automatic), ("RAD", guide)):
    svi = SVI(model, chosen, ClippedAdam({"lr": 0.02, "lrd": 0.1 ** (1 / 600)}), elbo)
    losses = [svi.step() for _ in range(600)]
    print(f"ELBO of {name}: {-sum(losses[-50:]) / 50:.2f}")

draws = {
    "AutoNormal": dist.Normal(automatic.locs.x, automatic.scales.x).sample((1000,)),
    "RAD": approximation.sample((1000,)),
}
figure, axes = plt.subplots(1, 2, figsize=(7, 3.5), layout="constrained", sharey=True)
levels = [log_joint.max() - drop for drop in (4.5, 2.0, 0.5)]  # 3, 2 and 1 sd of a normal
for ax, (name, x) in zip(axes, draws.items(), strict=True):
    ax.scatter(*x.T, s=3, color="C0", alpha=0.5, linewidths=0)
    ax.contour(
        axis, axis, log_joint, levels=levels, colors="C1", linewidths=0.9, linestyles="solid"
    )
    ax.set(title=name, xlim=(-2.9, 2.9), ylim=(-2.9, 2.9), aspect="equal")
figure.savefig(OUT / "fold_guide.png")
print(f"share of RAD's draws on the right: {(draws['RAD'][:, 0] > 0).float().mean():.2f}")

# %% [markdown]
# AutoNormal settles in one mode, and its ELBO stays more than a nat below the evidence. RAD has
# both modes in nearly equal shares, as they should be, and most of that gap is closed.
