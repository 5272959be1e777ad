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
# # Quickstart: a mixture of handwritten digits
#
# This page fits an exact Gaussian mixture to real images, and then asks: how likely is a digit,
# what are its missing pixels, what else could they be? The same object goes on to be the base of a
# normalizing flow, the prior of a Pyro model, and the guide that approximates its posterior. It
# takes about a minute on two cores.

# %%
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as transforms
import torch
from pyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from pyro.optim import ClippedAdam
from sklearn.datasets import load_digits
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LinearRegression
from sklearn.mixture import GaussianMixture as SklearnMixture
from sklearn.neighbors import KNeighborsRegressor

from pyromix import Flow, GaussianMixture, Observed, fit, load, near_identity, save
from pyromix.plotting import plot_density, plot_images

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # announces its coming refactoring
    import arviz

OUT = Path("out")
OUT.mkdir(exist_ok=True)
torch.manual_seed(0)
plt.rcParams.update({"figure.dpi": 110, "font.size": 9, "axes.titlesize": 10})

# %% [markdown]
# ## Data
#
# Scikit-learn ships 1,797 digits of 8 x 8 pixels with 17 grey levels. A density needs continuous
# data: noise of a tenth of full ink makes the levels continuous, and keeps pixels that are nearly
# always blank from dominating the likelihood.

# %%
digits = load_digits()
clean = torch.as_tensor(digits.data, dtype=torch.float32) / 16
labels = torch.as_tensor(digits.target)
NOISE_VARIANCE = 0.01
images = clean + NOISE_VARIANCE**0.5 * torch.randn(clean.shape)

order = torch.randperm(len(images))
test_order, train_order = order[:360], order[360:]
test, train = images[test_order], images[train_order]
print(f"{len(train)} training images, {len(test)} held out, {train.shape[1]} pixels each")

# %% [markdown]
# ## Fit
#
# `GaussianMixture` is a `torch.distributions.Distribution` and an `nn.Module`. `fit` starts it
# from k-means clusters, holds a tenth of the data out for validation, and restores the weights
# that were best on it. The same validation loss decides on the number of components. No pixel can
# vary less than the noise that was added, so this is the floor of every variance.

# %%
by_loss = {}
for num_components in (20, 40, 60, 80):
    torch.manual_seed(0)
    candidate = GaussianMixture(64, num_components, variance_floor=NOISE_VARIANCE)
    history = fit(
        candidate,
        train,
        steps=600,
        lr=0.003,
        validation=0.1,
        validation_every=5,
        patience=30,
        seed=0,
    )
    loss = min(history.validation_losses)
    by_loss[loss] = candidate
    print(f"{num_components} components: validation loss {loss:.2f} at step {history.best_step}")
mixture = by_loss[min(by_loss)]

# %% [markdown]
# The baseline is scikit-learn's mixture of the same size and kind at its defaults: expectation
# maximisation on all of the training data, without early stopping and with a floor of 1e-6.


# %%
def held_out(log_prob: torch.Tensor) -> str:
    error = log_prob.std() / len(log_prob) ** 0.5
    return f"{log_prob.mean():7.2f} +- {error:.2f} nats per image"


baseline = SklearnMixture(mixture.num_components, covariance_type="diag", random_state=0)
baseline.fit(train.numpy())
single = dist.Normal(train.mean(0), train.std(0)).to_event(1)
mixture.requires_grad_(False)  # from here on it is used, not trained

print("held-out log-likelihood")
print("  one normal         ", held_out(single.log_prob(test)))
print("  scikit-learn, EM   ", held_out(torch.as_tensor(baseline.score_samples(test.numpy()))))
print("  pyromix, fit       ", held_out(mixture.log_prob(test)))

# %% [markdown]
# The components are prototypes of digits, and draws look like digits, within what independent
# pixels around a prototype allow.

# %%
by_weight = mixture.logits.argsort(descending=True)[:40]
figure, axes = plt.subplots(1, 3, figsize=(9.5, 2.2), layout="constrained")
for ax, title, flat in zip(
    axes,
    ("held-out digits", "component means, by weight", "samples"),
    (test[:40], mixture.loc[by_weight], mixture.sample((40,))),
    strict=True,
):
    plot_images(flat.reshape(-1, 8, 8), ax, columns=8)
    ax.set_title(title)
figure.get_layout_engine().set(wspace=0.08)
figure.savefig(OUT / "digits.png", dpi=150)

# %% [markdown]
# ## Complete what is missing
#
# Given some of the pixels, the law of the others is a mixture again, in closed form. `condition`
# takes any set of known coordinates, and a whole batch of values at once. It returns the law of
# all pixels; `free()` is the law of those that were not observed. Here half of every held-out
# digit is hidden, its lower half or 32 pixels at random. The baselines are a regression fitted for
# each mask, the mean image, and an average of the nearest neighbours.

# %%
masks = {"lower half": list(range(32)), "random half": sorted(torch.randperm(64)[:32].tolist())}
completions = {}
for name, given in masks.items():
    hidden = [pixel for pixel in range(64) if pixel not in given]
    law = mixture.condition(Observed({pixel: test[:, pixel] for pixel in given}))
    completion = law.free()
    completions[name] = completion
    linear = LinearRegression().fit(train[:, given], train[:, hidden])
    neighbours = KNeighborsRegressor(5).fit(train[:, given], train[:, hidden])
    predictions = {
        "mean image": train[:, hidden].mean(0),
        "linear regression": torch.as_tensor(linear.predict(test[:, given])),
        "five nearest neighbours": torch.as_tensor(neighbours.predict(test[:, given])),
        "mixture, mean": completion.mean,
    }
    print(f"hidden: {name}; root mean squared error against the clean pixels")
    for method, prediction in predictions.items():
        error = (prediction - clean[test_order][:, hidden]).square().mean().sqrt()
        print(f"  {method:24} {error:.3f}")
    unknowing = mixture.marginal(hidden).log_prob(test[:, hidden])
    knowing = completion.log_prob(test[:, hidden])
    print("  log-density, seeing nothing  ", held_out(unknowing))
    print("  log-density, seeing the rest ", held_out(knowing))
    share = (knowing > unknowing).float().mean()
    print(f"  higher when seeing the rest for {share:.0%} of the images")

# %% [markdown]
# A regression returns one answer. The mixture returns a law: its mean is blurred where two digits
# would fit, its samples are one or the other. Averaging neighbours gives the smaller squared
# error, but no law: nothing to sample from, no density. The density also shows where this mixture
# is too simple. Pixels are independent within a component, so that its density is too high at the
# prototype; if the upper half selects the wrong prototype, the lower half has a very low density.

# %%
shown = torch.stack([(labels[test_order] == digit).nonzero()[1, 0] for digit in range(10)])
upper, completion = test[shown, :32], completions["lower half"]
samples = completion.sample((3,))
rows = {
    "digit": test[shown],
    "given": torch.cat([upper, torch.full((10, 32), torch.nan)], -1),
    "mean": torch.cat([upper, completion.mean[shown]], -1),
    "sample": torch.cat([upper, samples[0, shown]], -1),
    "another": torch.cat([upper, samples[1, shown]], -1),
    "one more": torch.cat([upper, samples[2, shown]], -1),
}
figure, axes = plt.subplots(len(rows), 1, figsize=(6.5, 4.6), layout="constrained")
for ax, (title, flat) in zip(axes, rows.items(), strict=True):
    plot_images(flat.reshape(-1, 8, 8), ax, columns=10)
    ax.text(-2, 3.5, title, ha="right", va="center")
figure.savefig(OUT / "completion.png", dpi=150)

# %% [markdown]
# ## As base of a flow
#
# A flow from one normal has to stretch it to reach separate clusters, and leaves density between
# them. A mixture as base starts with clusters, and a flow of two layers changes their shapes. The
# data here are in the plane of the two directions that separate digits best.

# %%
plane = LinearDiscriminantAnalysis(n_components=2).fit(train, labels[train_order])
codes = torch.as_tensor(plane.transform(images), dtype=torch.float32)
codes = (codes - codes.mean(0)) / codes.std(0)
test_codes, train_codes = codes[test_order], codes[train_order]


def spline_flow(base: torch.distributions.Distribution) -> Flow:
    swap = transforms.permute(2, torch.tensor([1, 0]))
    layers = []
    for _ in range(2):
        spline = transforms.spline_coupling(2, hidden_dims=[32], bound=4.0)
        layers += [near_identity(spline), swap]
    return Flow(base, layers)


torch.manual_seed(0)
candidates = {
    "mixture": GaussianMixture(2, 6),
    "spline flow on a normal": spline_flow(dist.Normal(torch.zeros(2), torch.ones(2))),
    "spline flow on a mixture": spline_flow(GaussianMixture(2, 6)),
}
settings = {"steps": 1000, "lr": 0.002, "validation": 0.15, "validation_every": 20, "patience": 15}
for model in candidates.values():
    fit(model, train_codes, seed=0, **settings)
    model.requires_grad_(False)

window = (-3.2, 3.2, -3.2, 3.2)
figure, axes = plt.subplots(1, 4, figsize=(11, 3), layout="constrained", sharey=True)
axes[0].scatter(*test_codes.T, c=labels[test_order], cmap="tab10", s=4)
axes[0].set(title="held-out digits, coloured by class", xlim=window[:2], ylim=window[2:])
axes[0].set(xlabel="first discriminant", ylabel="second discriminant")
print("held-out log-likelihood in the plane")
for ax, (name, model) in zip(axes[1:], candidates.items(), strict=True):
    plot_density(model, ax, limits=window)
    ax.set(title=name, xlabel="first discriminant")
    log_prob = model.log_prob(test_codes)
    print(f"  {name:25}", held_out(log_prob))
figure.savefig(OUT / "flows.png", dpi=150)

# %% [markdown]
# ## As prior and as guide in Pyro
#
# The mixture over the plane is the prior of a code z; pixels are linear in z with noise, and the
# upper half of one digit is observed. NUTS draws from the posterior. So does SVI, with a second
# mixture as guide: its samples carry exact gradients, so it can follow two modes.

# %%
prior = candidates["mixture"]
design = torch.cat([codes, torch.ones(len(codes), 1)], -1)
weights = torch.linalg.lstsq(design[train_order], train).solution  # (3, 64)
noise = (train - design[train_order] @ weights).std(0)
observed = test[0, :32]


def render(z: torch.Tensor) -> torch.Tensor:
    return z @ weights[:2] + weights[2]


def model() -> None:
    z = pyro.sample("z", prior)
    pyro.sample("pixels", dist.Normal(render(z)[..., :32], noise[:32]).to_event(1), obs=observed)


chains = []
for seed in range(2):
    pyro.set_rng_seed(seed)
    mcmc = MCMC(NUTS(model), num_samples=500, warmup_steps=200)
    mcmc.run()
    chains.append(mcmc.get_samples()["z"])
draws = torch.stack(chains)
posterior = arviz.convert_to_dataset({"z": draws.numpy()})
print(arviz.summary(posterior).to_string())

# %%
pyro.set_rng_seed(0)
approximation = GaussianMixture(2, 3)
approximation.initialize(prior.sample((500,)))


def guide() -> None:
    pyro.module("approximation", approximation)
    pyro.sample("z", approximation)


elbo = Trace_ELBO(num_particles=32, vectorize_particles=True, max_plate_nesting=0)
svi = SVI(model, guide, ClippedAdam({"lr": 0.02}), elbo)
losses = [svi.step() for _ in range(500)]
approximation.requires_grad_(False)
print(f"negative ELBO {losses[0]:.1f} -> {sum(losses[-50:]) / 50:.1f}")
for name, values in (("NUTS", draws.flatten(0, 1)), ("SVI", approximation.sample((1000,)))):
    print(
        f"  {name:5} mean {values.mean(0).numpy().round(2)}, sd {values.std(0).numpy().round(2)}"
    )

# %% [markdown]
# In two dimensions the posterior can be computed on a grid: the contours. Draws and guide agree
# with it.

# %%
axis = torch.linspace(*window[:2], 120)
grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)
likelihood = dist.Normal(render(grid)[..., :32], noise[:32]).to_event(1)
exact = prior.log_prob(grid) + likelihood.log_prob(observed)
levels = [exact.max() - drop for drop in (4.5, 2.0, 0.5)]  # 3, 2 and 1 sd of a normal

figure, axes = plt.subplots(1, 3, figsize=(9, 3.2), layout="constrained", sharey=True)
plot_density(prior, axes[0], limits=window)
axes[0].set(title="prior", ylabel="second discriminant")
axes[1].plot(*draws.flatten(0, 1).T, ".", color="C0", markersize=2, alpha=0.5)
axes[1].set(title="posterior, draws by NUTS", xlim=window[:2])
plot_density(approximation, axes[2], limits=window)
axes[2].set_title("posterior, mixture guide by SVI")
for ax in axes:
    ax.set_xlabel("first discriminant")
for ax in axes[1:]:
    ax.contour(axis, axis, exact, levels=levels, colors="C1", linewidths=0.8, linestyles="solid")
figure.savefig(OUT / "posterior.png", dpi=150)

# %% [markdown]
# ## Save and load
#
# A file holds the parameters and how to build the model; nothing is pickled.

# %%
save(mixture, OUT / "digits.safetensors")
restored = load(OUT / "digits.safetensors")
assert torch.equal(restored.log_prob(test), mixture.log_prob(test))
print(restored)
