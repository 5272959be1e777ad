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
# # Complete and explain images
#
# A deep convolutional Gaussian mixture stacks mixtures as a convolutional network stacks filters:
# the first layer models patches, the next one which patches go together. It contains no neural
# network, and everything that it learns can be looked at. One model draws images, completes them,
# finds outliers and where in an image they are, clusters images, and is a likelihood in Pyro. It
# takes about a minute on one core.

# %%
import copy
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont
from pyro.infer import MCMC, NUTS
from torch.distributions import AffineTransform

from pyromix import DCGMM, fit, load, save
from pyromix.datasets import digits
from pyromix.dcgmm import GMM, Classifier, Folding
from pyromix.plotting import plot_images

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # announces its coming refactoring
    import arviz

OUT = Path("out")
OUT.mkdir(exist_ok=True)
torch.manual_seed(0)
plt.rcParams.update({"figure.dpi": 110, "font.size": 9, "axes.titlesize": 10})

# %% [markdown]
# ## Layers
#
# The data are scikit-learn's 1,797 digits of 8 x 8 pixels. Layers are listed from the image
# upwards. A `Folding` cuts what is below into windows, here four patches of 4 x 4 pixels. A `GMM`
# describes all of them by the same mixture, and passes on the responsibilities of its 36
# components. The second mixture sees these of all four patches at once. A `Classifier` on top is
# optional.

# %%
images, labels = digits()
order = torch.randperm(len(images))
train, test = images[order[360:]], images[order[:360]]
train_labels, test_labels = labels[order[360:]], labels[order[:360]]

layers = [Folding(4), GMM(36), Folding(2), GMM(100), Classifier(10)]
model = DCGMM((1, 8, 8), layers, max_precision=100.0)
print(model.summary())

# %% [markdown]
# `fit` trains all layers at once by plain SGD, from random centroids: neighbouring components get
# similar updates at first, so that every one is used. The largest precision of 100 means that no
# standard deviation of a pixel is below 0.1 of full ink.

# %%
history = fit(model, (train, train_labels), steps=2000, batch_size=100, seed=0, progress_bar=False)
model.requires_grad_(False).eval()  # from here on it is used, not trained
model.calibrate(train)  # notes what is usual, for outliers
print(history)
log_prob = model.log_prob(test)
print(f"exact: {model.exact}; held-out log-density {log_prob.mean():.1f} nats per image")

# %% [markdown]
# ## Look inside
#
# Centroids of the first mixture are patches: parts of strokes, and blank ones. A centroid of the
# second one holds four slices, one for each patch, with a probability for each of the 36. So a
# component of the top layer is a digit in a certain style, with probabilities for each part.

# %%
bottom, top = model.mixtures
slices = top.loc.reshape(100, 4, 36).clamp(min=1e-6)  # (component, patch, code below)
slices = slices / slices.sum(-1, keepdim=True)
likeliest = model.decode(slices.argmax(-1))

by_weight = top.log_weights.argsort(descending=True)[:8]
figure = plt.figure(figsize=(10, 2.9), layout="constrained")
left, right = figure.subfigures(1, 2, width_ratios=(1, 3.2))
left.suptitle("36 centroids: patches", fontsize=10)
plot_images(bottom.loc.reshape(36, 4, 4), left.subplots())
right.suptitle("8 of 100 centroids: likeliest patches, and probabilities of all", fontsize=10)
axes = right.subplots(2, 8)
for (upper, lower), k in zip(axes.T, by_weight, strict=True):
    plot_images(likeliest[k], upper)
    plot_images(slices[k].reshape(4, 6, 6).sqrt(), lower, columns=2, cmap="YlOrRd")
figure.savefig(OUT / "dcgmm_inside.png", dpi=150)

# %% [markdown]
# ## Draw
#
# `sample` goes from the top down: a top component, a code for each patch with the probabilities in
# its slices, then pixels with the noise of the chosen centroids. `log_prob` is the density of
# these draws, noise included. To look at images, leave the noise out (`noise=False`), and take the
# likeliest codes (`top_s`).
#
# The second model's patches overlap, and are averaged: it draws smoother images, and its
# `log_prob` is a lower bound. Averages blur. `sharpen_steps` takes gradient steps that increase
# the likelihood of each layer's result under the layer above it.

# %%
overlapping = DCGMM((1, 8, 8), [Folding(4, stride=2), GMM(25), Folding(3), GMM(49)])
fit(overlapping, train, steps=1500, batch_size=100, seed=0, progress_bar=False)
overlapping.requires_grad_(False).eval()
overlapping.calibrate(train)


# %%
def flat(x: torch.Tensor) -> torch.Tensor:
    return x.reshape(-1, 8, 8)


pictures = {
    "digits": train[:25],
    "draws from the law": model.sample((25,)),
    "without noise": model.sample((25,), noise=False),
    "top_s=1": model.sample((25,), noise=False, top_s=1),
}
for name, steps in (("overlapping, top_s=1", 0), ("the same, sharpened", 15)):
    torch.manual_seed(1)
    pictures[name] = overlapping.sample((25,), noise=False, top_s=1, sharpen_steps=steps)
figure, axes = plt.subplots(1, 6, figsize=(12, 2.3), layout="constrained")
for ax, (name, x) in zip(axes, pictures.items(), strict=True):
    plot_images(flat(x), ax)
    ax.set_title(name)
figure.savefig(OUT / "dcgmm_samples.png", dpi=150)

# %% [markdown]
# ## Classes
#
# The classifier reads a digit from the top layer's responsibilities. By Bayes' rule it also says
# which top components belong to a class: `condition(label)` is a distribution over images with a
# density of its own, and `sample_class` draws from it.

# %%
every = torch.arange(10)
prior = model.class_log_weights.logsumexp(-1)
by_class = model.condition(every).log_prob(test.unsqueeze(1)) + prior
for name, guess in (("classifier", model.classify(test)), ("densities", by_class.argmax(-1))):
    print(f"recognised by the {name}: {(guess == test_labels).float().mean():.0%}")
figure, ax = plt.subplots(figsize=(5, 2.2), layout="constrained")
plot_images(flat(model.sample_class(every, (4,), noise=False)), ax, columns=10)
ax.set_title("draws of each class")
figure.savefig(OUT / "dcgmm_classes.png", dpi=150)

# %% [markdown]
# ## Complete
#
# Given some of the pixels, codes are inferred, and the others follow from the codes. Here the
# lower half is hidden. The mean is one answer, draws are several.

# %%
mask = torch.zeros(1, 8, 8, dtype=torch.bool)
mask[:, :4] = True  # known
mean = model.inpaint(test, mask)
for name, guess in (("mean image", train.mean(0)), ("completed", mean)):
    error = (guess - test)[:, :, 4:].square().mean().sqrt()
    print(f"root mean squared error below, {name}: {error:.3f}")

shown = torch.stack([(test_labels == digit).nonzero()[1, 0] for digit in range(10)])
draws = model.inpaint(test[shown], mask, num_samples=3)
rows = {
    "digit": test[shown],
    "given": test[shown].where(mask, torch.nan),
    "mean": mean[shown],
    "draw": draws[0],
    "another": draws[1],
    "one more": draws[2],
}
figure, axes = plt.subplots(len(rows), 1, figsize=(6.5, 4.6), layout="constrained")
for ax, (title, x) in zip(axes, rows.items(), strict=True):
    plot_images(flat(x), ax, columns=10)
    ax.text(-2, 3.5, title, ha="right", va="center")
figure.savefig(OUT / "dcgmm_completion.png", dpi=150)

# %% [markdown]
# ## What does not belong
#
# Letters look much like digits, drawn in the same way. The top layer's log-likelihood, `score`,
# tells most of them apart. `is_outlier` compares it with the usual values, which `calibrate`
# found. Here `calibrate` was given the training images, which have the highest likelihoods, so
# that too many others are called outliers: calibrate on held-out images, if there are enough.


# %%
def letters(text: str) -> torch.Tensor:
    path = font_manager.findfont("DejaVu Sans:bold")
    drawn = []
    for size in (28, 31, 34):
        font = ImageFont.truetype(path, size)
        for letter in text:
            picture = Image.new("L", (32, 32))
            ImageDraw.Draw(picture).text((16, 16), letter, fill=255, font=font, anchor="mm")
            # As the digits were made: ink is counted in blocks of 4 x 4.
            ink = torch.tensor(bytearray(picture.tobytes())).reshape(8, 4, 8, 4) / 255
            drawn.append(ink.mean((1, 3)))
    return torch.stack(drawn).unsqueeze(1)


strange = letters("ACEFHJKLMNPRTUVWXY")
for name, m in (("disjoint", model), ("overlapping", overlapping)):
    area = (m.score(strange).unsqueeze(-1) < m.score(test)).float().mean()
    print(
        f"{name} patches: a digit scores higher than a letter in {area:.0%} of pairs; taken for "
        f"outliers: {m.is_outlier(strange).float().mean():.0%} of letters, "
        f"{m.is_outlier(test).float().mean():.0%} of held-out digits"
    )

# %% [markdown]
# `outlier_map` says where in an image an outlier is. Here the inverted patch of another digit is
# pasted into each digit. The map says for every pixel by how many standard deviations the patches
# there are less likely than usual, or, with `context=True`, agree less than usual with what the
# top layer expects from the whole image. And `inpaint` without a mask finds the corrupted part by
# itself, and replaces it. Given the mask it does better.

# %%
torch.manual_seed(2)
corrupted, pasted = test.clone(), torch.zeros(len(test), 8, 8, dtype=torch.bool)
for i in range(len(test)):
    row, column = (int(t) for t in torch.randint(0, 5, (2,)))
    window = slice(row, row + 4), slice(column, column + 4)
    corrupted[i, :, *window] = 1 - train[i, :, 2:6, 2:6]
    pasted[i, *window] = True
rows = {"digit": test[shown], "corrupted": corrupted[shown]}
for name, context in (("map by likelihood", False), ("map in context", True)):
    found = overlapping.outlier_map(corrupted, context=context)
    higher = [
        (x[p].unsqueeze(-1) > x[~p]).float().mean() for x, p in zip(found, pasted, strict=True)
    ]
    area = torch.stack(higher).mean()
    print(
        f"{name}: pasted pixels stand out more than others of their image in {area:.0%} of pairs"
    )
    rows[name] = found[shown]
rows["mended, blind"] = overlapping.inpaint(corrupted[shown])
rows["mended, with mask"] = overlapping.inpaint(corrupted[shown], ~pasted[shown].unsqueeze(1))
figure, axes = plt.subplots(len(rows), 1, figsize=(6.5, 4.6), layout="constrained")
for ax, (title, x) in zip(axes, rows.items(), strict=True):
    options = {"cmap": "Reds", "vmin": 0, "vmax": 4} if title.startswith("map") else {}
    plot_images(flat(x), ax, columns=10, **options)
    ax.text(-2, 3.5, title, ha="right", va="center")
figure.savefig(OUT / "dcgmm_corrupted.png", dpi=150)

# %% [markdown]
# ## Variants and clusters
#
# Variants of an image keep its codes in the upper layers, and draw the others anew. A cluster has
# the images for which one top component is responsible.

# %%
template = test[shown[[2, 5, 6]]]
figure, axes = plt.subplots(
    1, 5, figsize=(11, 1.5), layout="constrained", width_ratios=(1, 6, 6, 6, 6)
)
plot_images(flat(template), axes[0], columns=1)
axes[0].set_title("given")
for ax, similarity in zip(axes[1:4], (0, 1, 2), strict=True):
    torch.manual_seed(0)
    x = model.variants(template, similarity, num_samples=6)
    plot_images(flat(x.transpose(0, 1)), ax, columns=6)
    ax.set_title(f"similarity {similarity}")
cluster = model.cluster(train)
largest = cluster.bincount().argsort(descending=True)[:3]
members = torch.cat([train[cluster == k][:6] for k in largest])
plot_images(flat(members), axes[4], columns=6)
axes[4].set_title("three clusters")
figure.savefig(OUT / "dcgmm_variants.png", dpi=150)
used = cluster.unique()
agree = sum(int(train_labels[cluster == k].bincount().max()) for k in used)
print(f"{len(used)} clusters; {agree / len(train):.0%} of digits in one of their class")

# %% [markdown]
# ## Save and load

# %%
save(model, OUT / "digits_dcgmm.safetensors")
restored = load(OUT / "digits_dcgmm.safetensors")
assert torch.equal(restored.score(test), model.score(test))

# %% [markdown]
# ## A likelihood in Pyro
#
# Ten digits come from a scanner of unknown brightness and offset, with noise. It is not known
# which digits they are. Noise adds to the variance of every pixel: so the law of noisy digits is a
# copy of the model with larger variances. An affine transform of it is the law of the scans, with
# a density that is exact here, as patches do not overlap. (Leave the transform's `event_dim` at 0:
# at 3 PyTorch counts the slope of a single number once, not once a pixel.)

# %%
NOISE, BRIGHTNESS, OFFSET = 0.1, 0.6, 0.15
noisy = copy.deepcopy(model)
patches = noisy.mixtures[0]
patches.log_precision.copy_(-(patches.scale.square() + NOISE**2).log())


def scanner(digit: DCGMM, scans: torch.Tensor) -> None:
    brightness = pyro.sample("brightness", dist.LogNormal(0.0, 0.5))
    offset = pyro.sample("offset", dist.Normal(0.0, 0.5))
    law = dist.TransformedDistribution(digit, [AffineTransform(offset, brightness)])
    with pyro.plate("scans", len(scans)):
        pyro.sample("scan", law, obs=scans)


def infer(digit: DCGMM, scans: torch.Tensor) -> dict[str, torch.Tensor]:
    chains = []
    for seed in range(2):
        pyro.set_rng_seed(seed)
        kernel = NUTS(scanner, full_mass=True)
        sampler = MCMC(kernel, num_samples=200, warmup_steps=150, disable_progbar=True)
        sampler.run(digit, scans)
        chains.append(sampler.get_samples())
    return {name: torch.stack([chain[name] for chain in chains]) for name in chains[0]}


# %% [markdown]
# Three times NUTS draws brightness and offset: for digits that are draws of the model, so that all
# its assumptions hold; for real digits; and for the real digits again, with a model that leaves
# out the noise. ArviZ says whether two chains agree (`r_hat` near 1).

# %%
torch.manual_seed(3)
digit = test[torch.randperm(len(test))[:10]]
scanned = BRIGHTNESS * (digit + NOISE * torch.randn_like(digit)) + OFFSET
cases = {
    "draws of the model": (noisy, BRIGHTNESS * noisy.sample((10,)) + OFFSET),
    "real digits": (noisy, scanned),
    "noise forgotten": (model, scanned),
}
posteriors = {name: infer(law, scans) for name, (law, scans) in cases.items()}
print(f"truth: brightness {BRIGHTNESS}, offset {OFFSET}")
for name, posterior in posteriors.items():
    chains = arviz.convert_to_dataset({key: draws.numpy() for key, draws in posterior.items()})
    summary = arviz.summary(chains, round_to=3)[["mean", "sd", "ess_bulk", "r_hat"]]
    print(f"{name}\n{summary.to_string()}")

# %% [markdown]
# Once brightness and offset are known, the digits follow: apply the inverse of the affine
# transform, and look at the codes that the layers find. What they decode to has no noise.

# %%
found = {name: draws.mean() for name, draws in posteriors["real digits"].items()}
undone = (scanned - found["offset"]) / found["brightness"]
cleaned = noisy.decode(noisy.encode(undone)[0])
figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.2), layout="constrained", width_ratios=(1.6, 1))
plot_images(flat(torch.cat([digit, scanned, undone, cleaned])), axes[0], columns=10)
for row, name in enumerate(("digit", "scan", "taken back", "decoded")):
    axes[0].text(-2, 9 * row + 3.5, name, ha="right", va="center")
for color, (name, posterior) in zip(("C0", "C2", "C3"), posteriors.items(), strict=True):
    brightness, offset = (posterior[key].flatten() for key in ("brightness", "offset"))
    axes[1].plot(brightness, offset, ".", color=color, markersize=3, label=name)
axes[1].plot(BRIGHTNESS, OFFSET, "k+", markersize=14, label="truth")
axes[1].set(xlabel="brightness", ylabel="offset", title="posterior draws")
axes[1].legend(fontsize=7)
figure.savefig(OUT / "dcgmm_scanner.png", dpi=150)

# %% [markdown]
# What fails: a posterior is only as good as the law. For scans of the model's own draws it covers
# the truth. Real digits are no such draws, as patches are not independent given the top code: the
# posterior is too narrow, which shows with more images (with twenty, the truth was two standard
# deviations away). If the law leaves out the noise, the posterior explains it by contrast: it is
# narrow, and misses the truth. Chains may agree nevertheless, so that `r_hat` gives no warning.
# NUTS moves in two numbers here, as codes are summed out; over the pixels themselves a mixture has
# as many modes as there are kinds of images, and chains stay in one of them. There, draw from the
# law, or complete images with `inpaint`.
