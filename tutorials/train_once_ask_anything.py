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
# # Train once, ask anything
#
# A deep residual mixture learns the joint law of all columns of a table, once. Afterwards it
# predicts the other columns given some values, within bounds, or given a noisy measurement. The
# questions need not be known in training. This page shows it on curves in the plane, then finds
# poses of a humanoid that reach for goals, and ends with an inverse problem that Hamiltonian Monte
# Carlo gets wrong. It takes about a minute on two cores.

# %%
import math
from pathlib import Path

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import MCMC, NUTS

from pyromix import (
    DRMM,
    AnyOf,
    Box,
    GaussianPrior,
    LinearEquality,
    LinearGaussian,
    LinearInequality,
    Nonlinear,
    Observed,
    fit,
)
from pyromix.datasets import PlanarHumanoid

OUT = Path("out")
OUT.mkdir(exist_ok=True)
torch.manual_seed(0)
plt.rcParams.update({"figure.dpi": 110, "font.size": 9, "axes.titlesize": 10})

# %% [markdown]
# ## Layers of mixtures
#
# The data is a spiral. A mixture of normals would need some hundred components for it. A
# residual mixture has a few layers of 16: a point is the sum of one mean from each, plus noise,
# so that three layers stand for 16 x 16 x 16 normals. Which codes go together is learnt in
# tables between layers.


# %%
def spiral(count: int) -> torch.Tensor:
    angle = 4 * math.pi * torch.rand(count, 1)
    return 0.5 * angle * torch.cat([angle.sin(), angle.cos()], -1)


data, held_out = spiral(20_000), spiral(2_000)
model = DRMM(dim=2, num_layers=3, num_components=16, scale_floor=0.03)
history = fit(model, data, steps=2000, batch_size=128, lr=0.02, seed=0, progress_bar=False)
model.requires_grad_(False)
print(history)
print(f"{model.num_parameters} numbers for {16**3} normals")
depths = ", ".join(f"{nats:.2f}" for nats in model.layer_log_prob(held_out).mean(0))
print(f"held-out log-density with 1, 2 and 3 layers: {depths}")

# %% [markdown]
# `shallow` keeps the first layers. What they do not explain is their noise: every further layer
# explains more of it.

# %%
side = torch.linspace(-7, 7, 220)
grid = torch.cartesian_prod(side, side)
figure, axes = plt.subplots(1, 4, figsize=(10, 2.9), layout="constrained")
axes[0].scatter(*held_out.T, s=1, color="0.3")
axes[0].set(title="data", xlim=(-7, 7), ylim=(-7, 7))
for depth in (1, 2, 3):
    density = model.shallow(depth).requires_grad_(False).log_prob(grid).exp().reshape(220, 220)
    axes[depth].imshow(density.T.sqrt(), origin="lower", extent=(-7, 7, -7, 7), cmap="magma")
    axes[depth].set(title=f"density with {depth} layer{'s' * (depth > 1)}")
for ax in axes:
    ax.set(aspect="equal", xticks=[], yticks=[])
figure.savefig(OUT / "residual_depth.png")

# %% [markdown]
# ## Ask anything
#
# Evidence comes in pieces, any number of them in any combination. What `condition` returns is a
# distribution like any other: it has draws, a normalised density, and the log-probability of the
# evidence. No draw breaks a constraint, and observed values are kept exactly.

# %%
questions = {
    "x = 2.5": [Observed({0: 2.5})],
    "within a box": [Box(torch.tensor([-5.0, -4.0]), torch.tensor([3.0, 4.0]))],
    "between two lines": [
        LinearInequality(torch.tensor([[1.0, 0.2], [-1.0, -0.2]]), torch.tensor([2.0, 2.0]))
    ],
    "on a line": [LinearEquality(torch.tensor([1.0, 1.0]), -1.0)],
    "a normal prior": [GaussianPrior(torch.zeros(2), torch.tensor([3.0, 1.0]))],
    "far left or above a line": [
        AnyOf(
            Box(high=torch.tensor([-3.0, math.inf])),
            LinearInequality(torch.tensor([0.5, 1.0]), -3.0),
        )
    ],
}
figure, axes = plt.subplots(1, 6, figsize=(12, 2.4), layout="constrained")
for ax, (name, evidence) in zip(axes, questions.items(), strict=True):
    law = model.condition(*evidence)
    x = law.sample((400,))
    log_evidence, error = law.log_evidence()
    print(f"{name:26s} log evidence {log_evidence.item():6.2f} +- {error.item():.2f}")
    ax.scatter(*held_out.T, s=0.5, color="0.8")
    ax.scatter(*x.T, s=4, color="C3")
    ax.set(title=name, xlim=(-7, 7), ylim=(-7, 7), aspect="equal", xticks=[], yticks=[])
figure.savefig(OUT / "residual_questions.png")

# %% [markdown]
# With at most 4,096 codes, as here, these laws are exact: every code is summed over. The density
# of the conditional law integrates to one: along the line x = 2.5, for instance.

# %%
law = model.condition(Observed({0: 2.5}))
y = torch.linspace(-8, 8, 4001)
points = torch.stack([torch.full_like(y, 2.5), y], -1)
print(f"integral along the line: {torch.trapezoid(law.log_prob(points).exp(), y):.4f}")

# %% [markdown]
# ## Poses that reach
#
# A planar humanoid: 30 numbers are the root's position and rotation, 15 joint angles, and where
# they put hands, feet, head and centre of mass. The model sees random poses, all 30 columns alike.
# It has no kinematics but what it learned from the data: which joint angles go with which
# positions.
#
# Positions follow smoothly from angles. A sum of means cannot follow that, so that every layer
# here turns and stretches what it leaves, by a triangular matrix of the chosen component.

# %%
body = PlanarHumanoid()
poses = body.features(body.sample_poses(50_000))
humanoid = DRMM(dim=30, num_layers=6, num_components=8, maps="triangular")
history = fit(
    humanoid,
    poses,
    steps=1500,
    batch_size=128,
    lr=0.003,
    gradient_clip=50.0,
    seed=0,
    progress_bar=False,
)
humanoid.requires_grad_(False)
print(history)


# %%
def goals(target: torch.Tensor, *points: str) -> Observed:
    return Observed({d: float(target[d]) for point in points for d in body.INDEX[point]})


target = body.features(body.sample_poses(1))[0]
higher = torch.zeros(30)  # the head stays above the left foot by a metre
higher[body.INDEX["head"][1]], higher[body.INDEX["left_foot"][1]] = 1.0, -1.0
asked = {
    "left hand": [goals(target, "left_hand")],
    "both hands": [goals(target, "left_hand", "right_hand")],
    "hands and feet": [goals(target, "left_hand", "right_hand", "left_foot", "right_foot")],
    "both hands, head high": [
        goals(target, "left_hand", "right_hand"),
        LinearInequality(higher, -1.0),
    ],
}
figure, axes = plt.subplots(2, 4, figsize=(12, 6.6), layout="constrained")


def reach(row: int, evidence: dict[str, list], num_particles: int) -> None:
    """Draws poses given each kind of evidence, and says how far they are from their goals."""
    for ax, (name, pieces) in zip(axes[row], evidence.items(), strict=True):
        law = humanoid.condition(*pieces, num_particles=num_particles)
        x = law.sample((64,))
        given = [p for p in body.INDEX if body.INDEX[p][0] in pieces[0].values]
        reached = body.features(x[:, :18])  # by the joint angles, not as drawn with them
        miss = sum(
            (reached[:, list(body.INDEX[p])] - target[list(body.INDEX[p])]).norm(dim=-1)
            for p in given
        ) / len(given)
        best = int(miss.argmin())
        for other in x[:12, :18]:
            body.draw_skeleton(other, ax, color="0.8", linewidth=1)
        body.draw_skeleton(x[best, :18], ax, color="C0", linewidth=2)
        for p in given:
            ax.plot(*target[list(body.INDEX[p])], "o", color="C3")
        ax.set(title=name, xlim=(-1.7, 1.7), ylim=(-1.7, 1.7), xticks=[], yticks=[])
        print(
            f"{name:22s} goals missed by {100 * miss[best]:4.1f} cm (best of 64), "
            f"{100 * miss.median():4.1f} cm (median), worth {law.effective_sample_size:.0f} draws"
        )


reach(0, asked, num_particles=1024)

# %% [markdown]
# There are 8^6 codes: they are not summed over. A population of codes is chosen layer by layer,
# in agreement with the evidence, and `effective_sample_size` says how many independent ones it is
# worth. Draws differ where the evidence leaves several answers, and agree where it does not.
#
# What is missed are some centimetres: the model's own idea of kinematics is not exact. Where the
# function is known it can be observed itself. `Nonlinear` says that the angles' hands and feet are
# at the goals, to two millimetres; the positions as columns help to find the right codes.


# %%
def kinematics(observed: Observed) -> Nonlinear:
    columns = sorted(observed.values)
    value = torch.tensor([observed.values[d] for d in columns])
    return Nonlinear(lambda x: body.features(x[:, :18])[:, columns], value, noise=0.002)


exactly = {f"{name}, exactly": [*pieces, kinematics(pieces[0])] for name, pieces in asked.items()}
reach(1, exactly, num_particles=512)
figure.savefig(OUT / "residual_poses.png")

# %% [markdown]
# ## An inverse problem
#
# Of a point on the spiral only x + y is measured, with noise. The posterior has one mode for
# every arm that the line crosses. `LinearGaussian` is this observation as evidence: the
# posterior is exact. Hamiltonian Monte Carlo with the same model as prior stays in the modes it
# starts in.

# %%
A, observed, noise = torch.tensor([[1.0, 1.0]]), torch.tensor([0.5]), 0.3
exact = model.condition(LinearGaussian(A, observed, noise))


def measured() -> None:
    x = pyro.sample("x", model)
    pyro.sample("sum", dist.Normal(x.sum(), noise), obs=observed[0])


mcmc = MCMC(NUTS(measured), num_samples=150, warmup_steps=100, disable_progbar=True)
mcmc.run()
chain = mcmc.get_samples()["x"]
figure, axes = plt.subplots(1, 2, figsize=(6.4, 3.2), layout="constrained")
for ax, x, name in zip(
    axes, (exact.sample((500,)), chain), ("condition: exact", "NUTS: one chain"), strict=True
):
    ax.scatter(*held_out.T, s=0.5, color="0.8")
    ax.scatter(*x.T, s=5, color="C3")
    ax.set(title=name, xlim=(-7, 7), ylim=(-7, 7), aspect="equal", xticks=[], yticks=[])
figure.savefig(OUT / "residual_inverse_problem.png")
print(f"spread along the line: exact {exact.sample((2000,)).std(0)}, one chain {chain.std(0)}")

# %% [markdown]
# Where the prior is smooth the two agree. The rule: what is linear and Gaussian goes into
# `condition`, which is exact and fast, and functions with little noise as `Nonlinear`; the result
# is a prior for everything else.
