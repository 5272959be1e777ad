"""Where the part is that does not belong: part of an image is pasted into another one.

Squares of 8 x 8 pixels (of 28 x 28) come from any place of any other image, with the contrast they
have, and go to any place but the margins. A method says for every pixel how odd it is; the score
is the area under the ROC curve over the pixels of an image, a mean over images.
"""

from functools import partial
from typing import Any, NamedTuple

import torch
from sklearn.decomposition import PCA
from torch import Generator, Tensor

from benchmarks.common.store import Numbers
from benchmarks.common.summary import plus_minus
from benchmarks.common.training import in_chunks
from benchmarks.dcgmm.data import INLIERS, Images
from benchmarks.dcgmm.models import FLATS
from benchmarks.dcgmm.trained import Trained
from pyromix.dcgmm.presets import PRESETS

PATCH, MARGIN = 8, 4  # pixels, of 28
TRIES = 20
VISIBLE = 0.15  # mean change of the pasted pixels: background on background is no task
PIXELS = "deviations of pixels from their mean"
PROJECTION = "error of PCA, 95%"


class Pasted(NamedTuple):
    """Images with a foreign part."""

    images: Tensor
    """Shape (N, 1, H, W)."""
    mask: Tensor
    """Where it is, shape (N, H, W)."""


def paste(images: Tensor, patch: int, margin: int, seed: int = 0) -> Pasted:
    """Pastes a part of some other image into each, at a place where that shows."""
    generator = Generator().manual_seed(seed)
    num, side = len(images), images.shape[-1]
    pasted, mask = images.clone(), torch.zeros(num, side, side, dtype=torch.bool)
    for i in range(num):
        best: tuple[float, Any, Any] = (-1.0, None, None)
        for _ in range(TRIES):
            other = (i + int(torch.randint(1, num, (), generator=generator))) % num
            places = torch.randint(margin, side - margin - patch + 1, (4,), generator=generator)
            top, left, from_top, from_left = places.tolist()
            target = (..., slice(top, top + patch), slice(left, left + patch))
            source = (..., slice(from_top, from_top + patch), slice(from_left, from_left + patch))
            part = images[other][source]
            change = float((part - images[i][target]).abs().mean())
            best = max(best, (change, target, part), key=lambda found: found[0])
            if change > VISIBLE:
                break
        _, target, part = best
        pasted[i][target] = part
        mask[i][target] = True
    return Pasted(pasted, mask)


def pixel_areas(maps: Tensor, mask: Tensor) -> Tensor:
    """Area under the ROC curve over the pixels of each image, shape (N,); ties count half."""
    areas = []
    for values, inside in zip(maps, mask, strict=True):
        odd, usual = values[inside].unsqueeze(-1), values[~inside]
        areas.append(((odd > usual).double() + 0.5 * (odd == usual)).mean())
    return torch.stack(areas)


# ---- maps: more where it is odd -----------------------------------------------------------------


def deviations(mixture: Any, images: Tensor) -> Tensor:
    """Deviations of pixels from the most responsible component, in its standard deviations."""

    def ask(x: Tensor) -> Tensor:
        x = x.flatten(1)
        component = mixture.responsibilities(x).argmax(-1)
        return (x - mixture.loc[component]).abs() / mixture.scale[component]

    return in_chunks(ask, images).view(len(images), *images.shape[-2:])


def simple_maps(data: Images, images: Tensor) -> dict[str, Tensor]:
    """By the mean and deviation of every pixel, and by what principal components leave."""
    train, x = data.train.flatten(1), images.flatten(1)
    pca = PCA(0.95, svd_solver="full").fit(train.numpy())
    back = torch.tensor(pca.inverse_transform(pca.transform(x.numpy())))
    found = {
        PIXELS: (x - train.mean(0)).abs() / train.std(0).clamp(min=0.05),
        PROJECTION: (x - back).abs(),
    }
    return {name: values.view_as(images[:, 0]) for name, values in found.items()}


def maps_of(name: str, model: Any, images: Tensor) -> dict[str, Tensor]:
    """Maps by a model: two for each layer, but for those that see the image as a whole.

    One tells how likely a place is by itself, the other how it agrees with the top layer.
    """
    if name in FLATS:
        return {f"deviations, {name}": deviations(model, images)}
    positions = [values.numel() for values in model.layer_log_likelihoods(images[:1])]
    found = {}
    for layer, count in enumerate(positions):
        if count > 1:
            title = f"{name}, layer {layer + 1}"
            found[title] = in_chunks(partial(model.outlier_map, layer=layer), images)
            if layer + 1 < len(positions):
                ask = partial(model.outlier_map, layer=layer, context=True)
                found[f"{title}, in context"] = in_chunks(ask, images)
    return found


# ---- scores -------------------------------------------------------------------------------------


def paste_into(data: Images, count: int) -> Pasted:
    inside = data.test[data.test_labels < len(INLIERS)][:count]
    return paste(inside, data.scaled(PATCH), data.scaled(MARGIN))


def localise(trained: Trained, count: int) -> dict[str, Tensor]:
    """Areas under the curve of every image, by map; of models, means over seeds."""
    data = trained.data
    pasted = paste_into(data, count)

    def measure(maps: dict[str, Tensor]) -> Numbers:
        return {name: pixel_areas(values, pasted.mask).tolist() for name, values in maps.items()}

    simple = trained.store.once(
        f"localisation_{count}_simple", lambda: measure(simple_maps(data, pasted.images))
    )
    found = {title: [areas] for title, areas in simple.items()}
    measured = trained.measure(
        f"localisation_{count}", lambda name, model: measure(maps_of(name, model, pasted.images))
    )
    for numbers in measured.values():
        for by_title in numbers:
            for title, areas in by_title.items():
                found.setdefault(title, []).append(areas)
    return {title: torch.tensor(areas).mean(0) for title, areas in found.items()}


def report_localisation(maps: dict[str, Tensor]) -> None:
    peers = [title for title in maps if not title.startswith(tuple(PRESETS))]
    best = max(peers, key=lambda title: float(maps[title].mean()))
    print(
        f"\nlocalisation of {PATCH} x {PATCH} of 28 x 28 pixels: area under the ROC curve over "
        f"pixels,\nmean over images and its standard error; above the best peer on the same images"
    )
    for title, areas in maps.items():
        gap = ""
        if title != best:
            gap = plus_minus(areas - maps[best], sign="+")
        print(f"{title:>38} {plus_minus(areas)} {gap:>16}")
    print(f"best peer: {best}")
