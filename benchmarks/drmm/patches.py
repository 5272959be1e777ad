"""Natural images by conditioning: noise taken out of patches, and missing pixels filled in.

Models are trained once, on clean patches of 8 x 8 pixels of BSDS300 in the 63 columns of density
estimation (`benchmarks.drmm.maps`): noise of a grey level added, over 256, less the patch's mean,
without the last pixel. They are then asked three questions, none of which training knew of. All
are linear evidence, given to `condition`.

A patch's mean is not among the columns, and nothing is assumed of it (its prior is flat, and
independent of them). What pixels tell of the columns is then in their differences alone. Of k
pixels that are seen, k - 1 orthonormal combinations are taken whose coefficients sum to zero. The
63 columns fix all pixels but for the mean, so that each combination is one of the columns, too. If
pixels have independent noise of standard deviation s, so have the combinations. Afterwards the
mean is that which fits the pixels that were seen best.

    denoise   all pixels are seen with noise of standard deviation 10/256 or 25/256:
              `LinearGaussian`, 63 combinations. The estimate is the conditional mean.
    complete  half of the pixels are missing, at random or the right half: `LinearEquality`, 31
              combinations without noise.
    image     a part of a held-out image with noise of 25/256; every pixel is the average of the
              estimates of all patches that hold it, whose corners lie 4 pixels apart.

Models: a deep residual mixture of triangular maps; a mixture of full covariances with as many
numbers, by EM on minibatches, which sees as many patches; and one normal, whose conditional mean
of noisy pixels is the Wiener filter. Others: the noisy pixels themselves; the mean of the pixels
that are seen; the mean of what the 20 nearest of 100,000 training patches have in place of the
missing pixels, nearest by the differences of those seen.

Printed: held-out nats a patch; peak signal-to-noise ratio in dB of means, over all pixels or over
missing ones, and how far it is from the mixture's, with the standard error of that; nats of what
is seen (`log_evidence`, noisy pixels) or of each missing pixel given the others (complete).

Writes out/drmm/patches_<size>_image.png and _completions.png, and keeps models in
out/drmm/patches_<size>/. Needs the images: --images grey.npz, two arrays "train" and "test" of
shape (n, height, width), 0 to 255.

    python -m benchmarks.drmm.patches --images FILE [--quick] [--models NAME ...] [--report]
"""

import math
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor

from benchmarks.common import cli
from benchmarks.common.figures import hide_sides, save
from benchmarks.common.store import OUT, Numbers, Store, beside
from benchmarks.common.summary import plus_minus, standard_error
from benchmarks.common.training import in_chunks
from benchmarks.drmm.maps import cut_patches
from pyromix import (
    DRMM,
    DistributionModule,
    GaussianMixture,
    LinearEquality,
    LinearGaussian,
    fit,
    fit_em,
)

SIDE = 8
COUNT = SIDE**2
DIM = COUNT - 1
# Pixels less their mean, from the 63 columns.
PIXELS = torch.cat([torch.eye(DIM), -torch.ones(1, DIM)])
TRAIN, TEST = 1_000_000, 20_000
PARTICLES = 64
IMAGE_PARTICLES = 32  # patches that overlap are averaged: each may be rougher
CHUNK = 200  # patches that are asked about at once
NOISES = (10 / 256, 25 / 256)
STRIDE = 4
IMAGE = 8  # of the test images
NEIGHBOURS, NEIGHBOUR_PATCHES = 20, 100_000
SHOWN, DRAWS = 4, 4
REFERENCE = "mixture"
TASKS = ("random half", "right half")


class Setting(NamedTuple):
    """How much is trained and asked."""

    layers: int
    components: int
    steps: int
    mixture: int
    em_steps: int
    em_batch: int
    patches: int
    masks: int
    corner: tuple[int, int]
    size: tuple[int, int]


SETTINGS = {
    "quick": Setting(2, 8, 200, 16, 5, 5000, 40, 2, (40, 260), (64, 96)),
    "default": Setting(4, 32, 7000, 128, 100, 20_000, 600, 6, (28, 216), (112, 160)),
}

# ---- training -----------------------------------------------------------------------------------


def train_deep(x: Tensor, setting: Setting) -> DistributionModule:
    model = DRMM(
        DIM, setting.layers, setting.components, maps="triangular", scale_floor=1e-4,
        standardize=True, training_beam=2,
    )  # fmt: skip
    fit(
        model, x, steps=setting.steps, batch_size=256, lr=0.0015, gradient_clip=200.0, seed=0,
        progress_bar=False,
    )  # fmt: skip
    return model


def train_mixture(x: Tensor, components: int, steps: int, batch_size: int) -> DistributionModule:
    model = GaussianMixture(DIM, components, "full")
    fit_em(model, x, steps=steps, batch_size=batch_size, seed=0, progress_bar=False)
    return model


TRAIN_BY_NAME: dict[str, Callable[[Tensor, Setting], DistributionModule]] = {
    "one normal": lambda x, setting: train_mixture(x, 1, 20, 50_000),  # noqa: ARG005
    "mixture": lambda x, s: train_mixture(x, s.mixture, s.em_steps, s.em_batch),
    "DRMM": train_deep,
}


def train(store: Store, names: Any, x: Tensor, test: Tensor, setting: Setting) -> None:
    def measure(model: Any) -> Numbers:
        scores = in_chunks(model.log_prob, test, 500)
        return {"nats": float(scores.mean()), "error": standard_error(scores)}

    store.train(names, lambda name: TRAIN_BY_NAME[name](x, setting), measure)


# ---- questions ----------------------------------------------------------------------------------


def combinations(seen: Tensor) -> Tensor:
    """Orthonormal combinations (k - 1, 64) of k pixels that are seen, whose coefficients sum to 0.

    Args:
        seen: Which are, shape (64,).
    """
    count = int(seen.sum())
    start = torch.cat([torch.ones(count, 1), torch.eye(count)[:, 1:]], 1).double()
    rows = torch.zeros(count - 1, COUNT)
    rows[:, seen] = torch.linalg.qr(start).Q[:, 1:].mT.float()
    return rows


def given(
    model: Any, pixels: Tensor, seen: Tensor, noise: float, particles: int = PARTICLES
) -> Any:
    """The law of the 63 columns, given pixels (N, 64) of which some are seen."""
    rows = combinations(seen)
    matrix, value = rows @ PIXELS, pixels @ rows.mT
    known = LinearGaussian(matrix, value, noise) if noise else LinearEquality(matrix, -value)
    options = {"num_particles": particles, "max_exact": 0} if isinstance(model, DRMM) else {}
    with torch.no_grad():
        return model.condition(known, **options)


def with_mean(x: Tensor, pixels: Tensor, seen: Tensor) -> Tensor:
    """All pixels (*S, N, 64) from columns (*S, N, 63), with the mean that fits those seen best."""
    estimate = x @ PIXELS.mT
    return estimate + ((pixels - estimate) * seen).sum(-1, keepdim=True) / seen.sum()


class Answer(NamedTuple):
    """What a model says of patches."""

    pixels: Tensor
    """Conditional means, shape (N, 64)."""
    log_evidence: Tensor
    """Log-density of the combinations that were seen, shape (N,)."""


def restore(
    model: Any, pixels: Tensor, seen: Tensor, noise: float, particles: int = PARTICLES
) -> Answer:
    answers = []
    for part in pixels.split(CHUNK):
        law = given(model, part, seen, noise, particles)
        answers.append((with_mean(law.mean, part, seen), law.log_evidence()[0]))
    return Answer(*(torch.cat(parts) for parts in zip(*answers, strict=True)))


def missing_nats(model: Any, pixels: Tensor, seen: Tensor, log_evidence: Tensor) -> Tensor:
    """Log-density of missing pixels given those seen, a pixel: shape (N,).

    The columns have 1/8 of the volume of the plane of pixels without mean. On it, the missing
    pixels less the mean of k seen ones have 8 / sqrt(k) of that of orthonormal coordinates.
    """
    columns = (pixels - pixels.mean(1, keepdim=True))[:, :-1]
    with torch.no_grad():
        log_prob = model.log_prob(columns)
    count = int(seen.sum())
    volume = -2 * math.log(SIDE) + 0.5 * math.log(count)
    return (log_prob - log_evidence + volume) / (COUNT - count)


def neighbours(train: Tensor, pixels: Tensor, seen: Tensor) -> Tensor:
    """Pixels with the mean of the nearest training patches in place of the missing ones."""
    rows = combinations(seen)
    distance = torch.cdist(pixels @ rows.mT, train @ (rows @ PIXELS).mT)
    nearest = distance.topk(NEIGHBOURS, largest=False).indices
    estimate = with_mean(train[nearest].mean(1), pixels, seen)
    return torch.where(seen, pixels, estimate)


def mean_of_seen(pixels: Tensor, seen: Tensor) -> Tensor:
    mean = (pixels * seen).sum(1, keepdim=True) / seen.sum()
    return torch.where(seen, pixels, mean)


def masks(task: str, count: int) -> list[Tensor]:
    """Which pixels are seen: a few masks of a random half, or the left half."""
    if task == "right half":
        return [(torch.arange(COUNT) % SIDE) < SIDE // 2]
    generator = torch.Generator().manual_seed(2)
    orders = [torch.randperm(COUNT, generator=generator) for _ in range(count)]
    return [order < COUNT // 2 for order in orders]


def denoise(store: Store, models: dict[str, Any], pixels: Tensor, noise: float) -> Numbers:
    """Squared errors of every patch, and log-evidence, by method."""
    seen = torch.ones(COUNT, dtype=torch.bool)
    generator = torch.Generator().manual_seed(1)
    noisy = pixels + noise * torch.randn(pixels.shape, generator=generator)
    results: Numbers = {"noisy": {"errors": (noisy - pixels).square().mean(1).tolist()}}
    for name, model in models.items():

        def ask(model: Any = model) -> Numbers:
            torch.manual_seed(0)
            start = time.perf_counter()
            answer = restore(model, noisy, seen, noise)
            return {
                "errors": (answer.pixels - pixels).square().mean(1).tolist(),
                "nats": answer.log_evidence.tolist(),
                "seconds": (time.perf_counter() - start) / len(pixels),
            }

        results[name] = store.once(f"denoise {256 * noise:.0f} {name}", ask)
    return results


def complete(
    store: Store, models: dict[str, Any], train: Tensor, pixels: Tensor, task: str, count: int
) -> Numbers:
    """Squared errors on the missing pixels of every patch, and nats of those, by method."""
    every = masks(task, count)
    parts = list(zip(every, pixels.chunk(len(every)), strict=True))

    def score(fill: Callable[[Tensor, Tensor], tuple[Tensor, Tensor | None]]) -> Numbers:
        torch.manual_seed(0)
        start = time.perf_counter()
        errors, nats = [], []
        for seen, part in parts:
            filled, log_density = fill(part, seen)
            errors += (filled - part)[:, ~seen].square().mean(1).tolist()
            nats += [] if log_density is None else log_density.tolist()
        seconds = (time.perf_counter() - start) / len(pixels)
        return {"errors": errors, "nats": nats, "seconds": seconds}

    def by(model: Any) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor | None]]:
        def fill(part: Tensor, seen: Tensor) -> tuple[Tensor, Tensor | None]:
            answer = restore(model, part, seen, 0.0)
            return answer.pixels, missing_nats(model, part, seen, answer.log_evidence)

        return fill

    near = train[:NEIGHBOUR_PATCHES]
    results = {
        "mean of seen pixels": score(lambda part, seen: (mean_of_seen(part, seen), None)),
        f"{NEIGHBOURS} neighbours": score(lambda part, seen: (neighbours(near, part, seen), None)),
    }
    for name, model in models.items():
        fill = by(model)
        results[name] = store.once(f"{task} {name}", lambda fill=fill: score(fill))
    return results


# ---- a whole image ------------------------------------------------------------------------------


def corners(length: int) -> list[int]:
    """Places of patches along a side, the last one at its end."""
    return sorted({*range(0, length - SIDE + 1, STRIDE), length - SIDE})


def cut(image: Tensor) -> Tensor:
    """Patches (N, 64) of an image (height, width)."""
    height, width = image.shape
    return torch.stack(
        [
            image[top : top + SIDE, left : left + SIDE].flatten()
            for top in corners(height)
            for left in corners(width)
        ]
    )


def average(patches: Tensor, height: int, width: int) -> Tensor:
    """The image whose pixels are means over all patches that hold them."""
    total, count = torch.zeros(height, width), torch.zeros(height, width)
    places = [(top, left) for top in corners(height) for left in corners(width)]
    for (top, left), patch in zip(places, patches, strict=True):
        window = slice(top, top + SIDE), slice(left, left + SIDE)
        total[window] += patch.reshape(SIDE, SIDE)
        count[window] += 1
    return total / count


def denoise_image(
    store: Store, models: dict[str, Any], image: Tensor, noise: float
) -> dict[str, Tensor]:
    """The image, with noise, and as models restore it."""
    seen = torch.ones(COUNT, dtype=torch.bool)
    generator = torch.Generator().manual_seed(3)
    noisy = image + noise * torch.randn(image.shape, generator=generator)
    images = {"clean": image, "noisy": noisy}
    for name, model in models.items():

        def ask(model: Any = model) -> Numbers:
            torch.manual_seed(0)
            start = time.perf_counter()
            patches = restore(model, cut(noisy), seen, noise, IMAGE_PARTICLES).pixels
            restored = average(patches, *image.shape)
            return {"image": restored.tolist(), "seconds": time.perf_counter() - start}

        images[name] = torch.tensor(store.once(f"image {name}", ask)["image"])
    return images


# ---- what is printed and drawn ------------------------------------------------------------------


def decibels(error: float) -> float:
    """Peak signal-to-noise ratio of a mean squared error, of values up to one."""
    return -10 * math.log10(error)


def report(title: str, results: Numbers, nats: str) -> None:
    print(f"\n{title}\n{'':>22} {'dB':>7} {'from the mixture':>19} {nats:>24} {'ms each':>8}")
    base = torch.tensor(results[REFERENCE]["errors"]) if REFERENCE in results else None
    for name, r in results.items():
        errors = torch.tensor(r["errors"])
        line = f"{name:>22} {decibels(float(errors.mean())):>7.2f}"
        if base is None or name == REFERENCE:
            line += f" {'':>19}"
        else:
            both = errors / errors.mean() - base / base.mean()
            apart = decibels(float(errors.mean())) - decibels(float(base.mean()))
            error = 10 / math.log(10) * standard_error(both)
            line += f" {f'{apart:+.2f} ± {error:.2f}':>19}"
        if r.get("nats"):
            values = torch.tensor(r["nats"])
            line += f" {plus_minus(values, 2):>24}"
            line += f" {1000 * r['seconds']:>8.0f}"
        print(line)


def draw_image(images: dict[str, Tensor], path: Any) -> None:
    """All of the images above, and a part of each, larger, below."""
    clean = images["clean"]
    height, width = clean.shape
    top, left = height // 3, width // 3
    window = slice(top, top + height // 3), slice(left, left + width // 3)
    figure, axes = plt.subplots(
        2,
        len(images),
        figsize=(2.9 * len(images), 0.3 + 5.8 * height / width),
        layout="constrained",
    )
    for column, (name, image) in zip(axes.T, images.items(), strict=True):
        error = float((image - clean).square().mean())
        title = name if name == "clean" else f"{name}, {decibels(error):.2f} dB"
        column[0].set_title(title, fontsize=10)
        for ax, shown in zip(column, (image, image[window]), strict=True):
            ax.imshow(shown.clamp(0, 1), cmap="gray", vmin=0, vmax=1)
            ax.set(xticks=[], yticks=[])
            hide_sides(ax)
    save(figure, path)


def draw_completions(models: dict[str, Any], train: Tensor, pixels: Tensor, path: Any) -> None:
    """Patches of which a half is missing, means of their completions, and draws of a model."""
    names, last = ["patch", "seen", f"{NEIGHBOURS} neighbours", *models], list(models)[-1]
    titles = [*names, f"draws of {last}", *([""] * (DRAWS - 1))]
    figure, axes = plt.subplots(
        2 * SHOWN, len(titles), figsize=(0.95 * len(titles), 1.9 * SHOWN), layout="constrained"
    )
    # The patches of most contrast among some.
    chosen = pixels[pixels.std(1).argsort(descending=True)[: 4 * SHOWN : 2]]
    for i, task in enumerate(TASKS):
        seen, own = masks(task, 1)[0], chosen[i * SHOWN : (i + 1) * SHOWN]
        columns = [own, torch.where(seen, own, math.nan)]
        columns.append(neighbours(train[:NEIGHBOUR_PATCHES], own, seen))
        torch.manual_seed(0)
        columns += [restore(model, own, seen, 0.0).pixels for model in models.values()]
        law = given(models[last], own, seen, 0.0)
        columns += list(with_mean(law.sample((DRAWS,)), own, seen))
        low, high = own.amin(1), own.amax(1)
        for j, column in enumerate(columns):
            for k, patch in enumerate(column):
                ax = axes[i * SHOWN + k, j]
                shown = (patch - low[k]) / (high[k] - low[k])
                shown = shown.clamp(0, 1).reshape(SIDE, SIDE, 1).expand(-1, -1, 3).clone()
                hole = patch.isnan().reshape(SIDE, SIDE)
                shown[hole] = torch.tensor([0.95, 0.75, 0.3])
                ax.imshow(shown)
                ax.set(xticks=[], yticks=[])
                hide_sides(ax)
    for ax, title in zip(axes[0], titles, strict=True):
        ax.set_title(title, fontsize=8, loc="left" if title.startswith("draws") else "center")
    save(figure, path, dpi=110)


def whole_patches(images: Tensor, count: int) -> Tensor:
    """Pixels (count, 64) of patches, less their mean: nothing that is asked depends on it."""
    return cut_patches(images, count) @ PIXELS.mT


def ask_all(
    store: Store, names: Iterable[str], setting: Setting, train: Tensor, images: Any
) -> None:
    models = {name: store.load_model(name) for name in names}
    torch.manual_seed(1)
    test = torch.from_numpy(images["test"])
    pixels = whole_patches(test, setting.patches)
    for noise in NOISES:
        results = denoise(store, models, pixels, noise)
        title = f"noise of {256 * noise:.0f}/256, {len(pixels)} patches"
        report(title, results, "nats of noisy pixels")
    for task in TASKS:
        results = complete(store, models, train, pixels, task, setting.masks)
        report(f"{task} missing, {len(pixels)} patches", results, "nats of a missing pixel")
    (top, left), (height, width) = setting.corner, setting.size
    image = test[IMAGE, top : top + height, left : left + width].float() / 256
    restored = denoise_image(store, models, image, NOISES[-1])
    for name, shown in restored.items():
        if name != "clean":
            error = float((shown - image).square().mean())
            print(f"image: {name:>22} {decibels(error):>7.2f} dB")
    draw_image(restored, beside(store.folder, "image.png"))
    draw_completions(models, train, pixels, beside(store.folder, "completions.png"))


def main() -> None:
    parser = cli.make_parser(__doc__, quick="small models, few patches: some minutes")
    cli.add_models(parser, TRAIN_BY_NAME)
    parser.add_argument("--images", required=True, help="file of natural images")
    arguments = cli.parse(parser)
    images = np.load(arguments.images)
    torch.manual_seed(0)
    x, test = (
        cut_patches(torch.from_numpy(images[name]), count)
        for name, count in (("train", TRAIN), ("test", TEST))
    )
    store = Store(OUT / "drmm" / f"patches_{arguments.size}")
    setting = SETTINGS[arguments.size]
    if not arguments.report:
        train(store, arguments.models or TRAIN_BY_NAME, x, test, setting)
    trained = store.numbers(TRAIN_BY_NAME)
    print(f"{'':>22} {'numbers':>9} {'nats':>16} {'seconds':>8}")
    for name, r in trained.items():
        nats = f"{r['nats']:.2f} ± {r['error']:.2f}"
        print(f"{name:>22} {r['parameters']:>9} {nats:>16} {60 * r['minutes']:>8.0f}")
    ask_all(store, trained, setting, x, images)


if __name__ == "__main__":
    main()
