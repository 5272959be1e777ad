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
# # Complete anything
#
# A hierarchy of residual mixtures is a law of whole arrays: images, or sequences of vectors. Its
# lowest level describes small windows, the next one which windows go together, and so on up to a
# top that sees the whole. It is trained once. Then any part can be given: pixels, waypoints and
# obstacles, poses. This takes about three minutes on one core.

# %%
import math
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from pyromix import Box, HierarchicalDRMM, Level, Top, fit
from pyromix.datasets import digits, jump_trajectories
from pyromix.plotting import plot_images

OUT = Path("out")
OUT.mkdir(exist_ok=True)
torch.manual_seed(0)
plt.rcParams.update({"figure.dpi": 110, "font.size": 9, "axes.titlesize": 10})

# %% [markdown]
# ## Digits
#
# Scikit-learn's 1,797 digits have 8 x 8 pixels with 17 grey levels. The density of values on a
# grid has no bound, so the model is told how they were rounded: multiples of 1/16 from 0 to 1.
# Windows of 2 x 2 pixels lie under windows of 2 x 2 of these, under a top. All have one layer
# of components, so that sums over all codes are exact, and fast.

# %%
images = digits()[0][torch.randperm(1797)]
train, test = images[360:], images[:360]
levels = [
    Level(window=2, num_layers=1, num_components=32),
    Level(window=2, num_layers=1, num_components=64),
    Top(num_layers=1, num_components=128),
]
model = HierarchicalDRMM((1, 8, 8), levels, rounding=(1 / 16, 0.0, 1.0))
fit(model, train, steps=600, batch_size=64, lr=0.03, seed=0, progress_bar=False)
model.requires_grad_(False)
bits = -model.log_mass(test).mean() / (64 * math.log(2))
print(f"{bits:.2f} bits a pixel of held-out digits; without a model, {math.log2(17):.2f}")

# %% [markdown]
# `impute` fills in what is NaN: by the mean, which has the least squared error, or by draws, which
# look like digits. Here the lower half of every digit is hidden, then all but every fourth pixel.

# %%
known = torch.zeros(2, 8, 8, dtype=torch.bool)
known[0, :4] = True
known[1, ::2, ::2] = True
figure, axes = plt.subplots(2, 4, figsize=(10, 5.4), layout="constrained")
for row, mask in zip(axes, known, strict=True):
    shown = torch.where(mask, test[:25], torch.nan)
    parts = {
        "digits": test[:25],
        "known": shown.nan_to_num(0.5),
        "mean": model.impute(shown),
        "a draw": model.impute(shown, num_samples=1)[0].clamp(0, 1),
    }
    for ax, (name, x) in zip(row, parts.items(), strict=True):
        plot_images(x[:, 0], ax)
        ax.set_title(name)
    hidden = test[:, 0][:, ~mask]
    guess = model.impute(torch.where(mask, test, torch.nan))[:, 0][:, ~mask]
    mean = train.mean(0)[0][~mask]
    print(
        f"mean squared error {(guess - hidden).square().mean():.3f}; "
        f"of the mean digit, {(mean - hidden).square().mean():.3f}"
    )
figure.savefig(OUT / "hierarchy_digits.png", dpi=150)

# %% [markdown]
# ## A trajectory between obstacles
#
# A body falls, and jumps now and then: 32 heights and velocities. Windows of 7 steps overlap, and
# have triangular maps, so that each continues what those before it drew.

# %%
x = jump_trajectories(5000)
levels = [
    Level(window=7, stride=2, num_components=16, maps="triangular"),
    Level(window=2, num_components=16),
    Top(num_layers=2, num_components=16),
]
flight = HierarchicalDRMM((2, 32), levels)
fit(flight, x, steps=400, batch_size=64, gradient_clip=50.0, seed=0, progress_bar=False)
flight.requires_grad_(False)

# %% [markdown]
# It is asked for flights through three heights, over one obstacle and under another. Every draw
# meets all of that exactly. `log_evidence` says how rare such flights are, in nats.

# %%
low, high = torch.full((2, 32), -torch.inf), torch.full((2, 32), torch.inf)
low[0, 7:12], high[0, 20:25] = 0.5, 0.5
waypoints = {(0, 0): 0.3, (0, 16): 0.7, (0, 31): 0.5}
law = flight.condition(waypoints, Box(low, high), num_particles=256)
paths = law.sample((100,))
best = paths[flight.log_prob(paths).argsort()[-10:]]
evidence, error = law.log_evidence()
print(
    f"log evidence {evidence:.1f} ± {error:.1f}, {law.effective_sample_size:.0f} of 256 particles"
)
print("over the first:", bool((paths[:, 0, 7:12] >= 0.5).all()))
print("under the second:", bool((paths[:, 0, 20:25] <= 0.5).all()))

figure, ax = plt.subplots(figsize=(6, 3), layout="constrained")
ax.fill_between([7, 11], 0, 0.5, color="0.75")
ax.fill_between([20, 24], 0.5, 1, color="0.75")
ax.plot(best[:-1, 0].T, color="tab:blue", lw=0.8, alpha=0.6)
ax.plot(best[-1, 0], color="navy", lw=1.8)
ax.plot([0, 16, 31], [0.3, 0.7, 0.5], "o", color="tab:red")
ax.set(xlabel="step", ylabel="height", ylim=(0, 1), title="ten likely flights")
figure.savefig(OUT / "hierarchy_flights.png", dpi=150)

# %% [markdown]
# ## A walk between two poses
#
# A walker in the plane: angles of hips, knees and shoulders at 32 moments, made up here of a gait
# with its own pace, stride and lean. Windows of 8 moments, 6 apart, follow each other.


# %%
def walks(count: int) -> torch.Tensor:
    """Angles in radians, (count, 7, 32): lean, then hips, knees and shoulders of both sides."""
    pace = 0.15 + 0.15 * torch.rand(count, 1)
    stride = (0.3 + 0.3 * torch.rand(count, 1)) * (0.6 + 2 * pace)
    lean = 0.02 + 0.3 * pace + 0.02 * torch.randn(count, 1)
    phase = 2 * math.pi * torch.rand(count, 1) + pace * torch.arange(32)
    channels = [lean + 0.02 * (2 * phase).sin()]
    for side in (0.0, math.pi):
        channels.append(stride * (phase + side).sin())
        channels.append(-0.1 - 0.6 * stride * (1 - (phase + side - 0.5 * math.pi).cos()))
        channels.append(-0.8 * stride * (phase + side).sin())
    walk = torch.stack([c.expand(count, 32) for c in channels], 1)
    return walk + 0.01 * torch.randn(walk.shape)


def body(angles: torch.Tensor) -> list[torch.Tensor]:
    """Lines of a stick figure, of angles (7,): each (n, 2)."""

    def limb(start: torch.Tensor, *turns: torch.Tensor) -> torch.Tensor:
        points = [start]
        for turn in turns:
            points.append(points[-1] + 0.42 * torch.stack([turn.sin(), -turn.cos()]))
        return torch.stack(points)

    lean, hip, knee, arm, other_hip, other_knee, other_arm = angles
    pelvis = torch.zeros(2)
    neck = 0.55 * torch.stack([lean.sin(), lean.cos()])
    return [
        torch.stack([pelvis, neck, 1.4 * neck]),
        limb(pelvis, hip, hip + knee),
        limb(pelvis, other_hip, other_hip + other_knee),
        limb(neck, arm),
        limb(neck, other_arm),
    ]


levels = [
    Level(window=8, stride=6, num_layers=1, num_components=16, maps="triangular"),
    Top(num_layers=2, num_components=16),
]
walker = HierarchicalDRMM((7, 32), levels, scale_floor=0.01)
fit(walker, walks(4000), steps=200, batch_size=64, gradient_clip=50.0, seed=0, progress_bar=False)
walker.requires_grad_(False)

# %% [markdown]
# The first pose is that of one walk, the last that of another. What lies between has to get from
# one to the other in the time there is. Interpolated angles drag the legs.

# %%
one, other = walks(2)
pose = torch.full((7, 32), math.nan)
pose[:, 0], pose[:, -1] = one[:, 0], other[:, -1]
law = walker.condition(pose, num_particles=256)
drawn = law.sample((2,))
assert torch.equal(drawn[:, :, 0], one[:, 0].expand(2, -1))
share = torch.linspace(0, 1, 32)
even = (1 - share) * one[:, :1] + share * other[:, -1:]

figure, axes = plt.subplots(3, 1, figsize=(9, 5.2), layout="constrained")
for ax, (name, motion) in zip(
    axes, {"a draw": drawn[0], "another": drawn[1], "interpolated": even}.items(), strict=True
):
    for place, moment in enumerate([*range(0, 30, 3), 31]):
        for number, line in enumerate(body(motion[:, moment])):
            color = "tab:red" if moment in (0, 31) else f"C{[7, 0, 2, 0, 2][number]}"
            ax.plot(line[:, 0] + place, line[:, 1], color=color, lw=1.3)
    ax.set(title=name, aspect="equal")
    ax.axis("off")
figure.savefig(OUT / "hierarchy_walks.png", dpi=150)
