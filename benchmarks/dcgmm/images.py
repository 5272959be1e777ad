"""What deep convolutional mixtures can do with digits: draws, classes, clusters, completions.

Every architecture of the paper's Table I, and some with more components at the top, is trained on
all classes, with a classifier on top, which changes nothing below it. Prints

- draws (draws.py) of the first seed's models: how many differ, and how sharp they are, with
  the 1 to 10 most probable components, from the law, and sharpened; draws given a class, and how
  many of them a support vector machine recognises that was trained on real images, against flat
  mixtures; the classifier's own accuracy;
- clusters (clusters.py): Dunn and Davies-Bouldin indices (the paper's Table II), worst and
  mean over seeds, against k-means and a flat mixture;
- completions (inpainting.py) by the first seed's models: signal-to-noise ratios where half
  of an image or a square is hidden, with a mask and blind, against the mean image, nearest
  neighbours (the best number of them) and flat mixtures. An image takes 3L-a a second or more.

Figures under out/: dcgmm_images_<data>_<size>_models.png (the paper's Fig. 4), ..._diversity.png
(Fig. 6), ..._sharpening.png (Fig. 7), ..._classes.png and ..._completions.png. What was trained is
kept in out/dcgmm_images_<data>_<size>/: a run that was stopped goes on from there, and processes
may share the work with `--models`, after which a run without prints and draws all.

    python -m benchmarks.dcgmm.images [--quick | --paper] [--full]
        [--data mnist | fashion | digits] [--models NAME ...] [--parts PART ...] [--steps N]
        [--seeds N] [--report]
"""

import argparse
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.dcgmm.clusters import measure_clusters, report_clusters
from benchmarks.dcgmm.draws import measure_classes, measure_draws, report_classes, report_draws
from benchmarks.dcgmm.figures import (
    draw_classes,
    draw_completions,
    draw_diversity,
    draw_models,
    draw_sharpening,
)
from benchmarks.dcgmm.inpainting import (
    BLIND,
    COMPLETING,
    MASKED,
    TASKS,
    complete,
    complete_by_peers,
    make_task,
    measure_completions,
    report_completions,
)
from benchmarks.dcgmm.models import MODELS, OUT, Results, Trained, key, load_images, train_model

CLASSES = 10
PARTS = ("draws", "classes", "clusters", "completions", "figures")
DRAWN = ("1L", "2L-d", "2L-a", "2L-c", "2L-e")  # completions and classes of which are drawn
DIVERSE = "2L-c"  # the architecture of the paper's Figs. 6 and 7


class Setting(NamedTuple):
    """How much to train and to measure."""

    name: str
    data: str
    steps: int
    seeds: int
    sharpen: int  # steps, where draws are measured
    shown_sharpen: int  # steps, in the figure
    draws: int
    completed: int  # images
    models: tuple[str, ...] = MODELS


QUICK = ("1L", "2L-a", "2L-b", "2L-c", "2L-d", "3L-a", "2L-c, 100")
# The paper's 1,000 steps of sharpening are of a likelihood that is averaged over a batch, too: of
# one image's own, a tenth as many wear strokes away.
SETTINGS = {
    "quick": Setting("quick", "digits", 1_000, 1, 20, 20, 100, 50, QUICK),
    "default": Setting("default", "mnist", 3_000, 3, 20, 20, 500, 100),
    "paper": Setting("paper", "mnist", 15_000, 10, 20, 20, 1_000, 1_000),
}


def draw_figures(trained: Trained, setting: Setting, prefix: Path) -> None:
    """All figures, of the first seed's models."""

    def path(what: str) -> Path:
        return prefix.with_name(f"{prefix.name}_{what}.png")

    data, models = trained.data, trained.all()
    some = trained.only(DRAWN).all()
    draw_models(models, data, path("models"))
    draw_classes(some, CLASSES, path("classes"))
    if DIVERSE in models:
        draw_diversity(DIVERSE, models[DIVERSE], path("diversity"))
    sharpened = trained.only((DIVERSE, "2L-e")).all()
    draw_sharpening(sharpened, setting.shown_sharpen, path("sharpening"))

    columns: dict[str, dict[str, Tensor]] = {}
    flat = COMPLETING[-1]
    mixture = trained.train_flat(flat, 0, setting.steps)
    for name in TASKS:
        task = make_task(name, data, 9)
        peers = complete_by_peers(data, task, {flat: mixture})
        columns[name] = {"images": task.images, "known": task.empty}
        columns[name] |= {what: peers[what] for what in ("10 nearest", flat)}
        for label, model in some.items():
            for what, images in complete(model, task, blind=label == DIVERSE).items():
                if what in (MASKED, BLIND):
                    columns[name][label if what == MASKED else f"{label}, {what}"] = images
    draw_completions(columns, path("completions"))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="digits, 1,000 steps, one seed")
    size.add_argument("--paper", action="store_true", help="15,000 steps, ten seeds: hours")
    parser.add_argument("--data", choices=("mnist", "fashion", "digits"), help="by default MNIST")
    parser.add_argument("--full", action="store_true", help="all of MNIST, maybe downloaded")
    parser.add_argument("--models", nargs="+", choices=MODELS, help="by default all")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to report")
    parser.add_argument("--steps", type=int, help="of training, another number than usual")
    parser.add_argument("--seeds", type=int, help="number of them")
    parser.add_argument("--report", action="store_true", help="train nothing")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    setting = SETTINGS["quick" if arguments.quick else "paper" if arguments.paper else "default"]
    if arguments.steps:
        setting = setting._replace(name=f"{setting.name}_{arguments.steps}", steps=arguments.steps)
    models, seeds = arguments.models or setting.models, range(arguments.seeds or setting.seeds)
    name = (arguments.data or setting.data) + ("_full" if arguments.full else "")
    prefix = OUT / f"dcgmm_images_{name}_{setting.name}"
    store = Results(prefix)
    data = load_images(arguments.data or setting.data, arguments.full)
    print(f"{name}: {len(data.train)} images to train on, {setting.steps} steps", flush=True)

    if not arguments.report:
        for model_name in models:
            for seed in seeds:
                where = key(model_name, seed)
                if not store.has(where):
                    model, numbers = train_model(model_name, seed, data, setting.steps, CLASSES)
                    store.save(where, numbers, model)
                    print(
                        f"{model_name}, seed {seed}: {numbers['parameters']:,} parameters, "
                        f"{numbers['seconds']:.0f} s, least share {numbers['least share']:.2f}",
                        flush=True,
                    )

    trained = Trained(data, store, models, seeds, CLASSES)
    parts = arguments.parts
    if "draws" in parts:
        report_draws(measure_draws(trained, setting.draws, setting.sharpen), setting.draws)
    if "classes" in parts:
        each = setting.draws // CLASSES
        report_classes(measure_classes(trained, each, setting.sharpen), each)
    if "clusters" in parts:
        report_clusters(measure_clusters(trained))
    if "completions" in parts:
        report_completions(measure_completions(trained, setting.completed))
    if "figures" in parts and not arguments.models:
        draw_figures(trained, setting, prefix)


if __name__ == "__main__":
    main()
