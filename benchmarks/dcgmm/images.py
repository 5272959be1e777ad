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

Figures out/dcgmm/images_<data>_<size>_*.png: models (the paper's Fig. 4), diversity (Fig. 6),
sharpening (Fig. 7), classes, completions. What was trained is kept in
out/dcgmm/images_<data>_<size>/: a run that was stopped goes on from there, and processes may share
the work with `--models`, after which a run without prints and draws all.

    python -m benchmarks.dcgmm.images [--quick | --paper] [--full]
        [--data mnist | fashion | digits] [--models NAME ...] [--parts PART ...] [--steps N]
        [--seeds N] [--report]
"""

from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from benchmarks.common import cli
from benchmarks.common.store import beside
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
from benchmarks.dcgmm.models import MODELS, train_model
from benchmarks.dcgmm.trained import Trained, begin, key, make_parser

CLASSES = 10
PARTS = ("draws", "classes", "clusters", "completions", "figures")
DRAWN = ("1L", "2L-d", "2L-a", "2L-c", "2L-e")  # completions and classes of which are drawn
DIVERSE = "2L-c"  # the architecture of the paper's Figs. 6 and 7


class Setting(NamedTuple):
    """How much to train and to measure."""

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
    "quick": Setting("digits", 1_000, 1, 20, 20, 100, 50, QUICK),
    "default": Setting("mnist", 3_000, 3, 20, 20, 500, 100),
    "paper": Setting("mnist", 15_000, 10, 20, 20, 1_000, 1_000),
}


def draw_figures(trained: Trained, setting: Setting, prefix: Path) -> None:
    """All figures, of the first seed's models."""
    data, models = trained.data, trained.all()
    some = trained.only(DRAWN).all()
    draw_models(models, data, beside(prefix, "models.png"))
    draw_classes(some, CLASSES, beside(prefix, "classes.png"))
    if DIVERSE in models:
        draw_diversity(DIVERSE, models[DIVERSE], beside(prefix, "diversity.png"))
    sharpened = trained.only((DIVERSE, "2L-e")).all()
    draw_sharpening(sharpened, setting.shown_sharpen, beside(prefix, "sharpening.png"))

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
    draw_completions(columns, beside(prefix, "completions.png"))


def main() -> None:
    parser = make_parser(__doc__, MODELS)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to report")
    arguments = cli.parse(parser)
    setting, seeds, data, prefix, store = begin("images", arguments, SETTINGS)
    models = arguments.models or setting.models
    if not arguments.report:
        for model_name in models:
            for seed in seeds:
                where = key(model_name, seed)
                if not store.has(where):
                    model, numbers = train_model(model_name, seed, data, setting.steps, CLASSES)
                    store.save(where, numbers, model.state_dict())
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
