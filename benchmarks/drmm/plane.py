"""Deep residual mixtures in the plane: what layers add, and what can be asked of a trained model.

The figures of Hämäläinen et al., Deep Residual Mixture Models, drawn anew in files
out/drmm/plane_<size>_*.png, with the numbers behind them printed:

- depth.png (Fig. 2): four laws, samples and density by depth, samples given an inequality
  and an equality; held-out nats by depth, precision and recall.
- evidence.png (Fig. 15): samples given every kind of evidence. Printed, for sums over
  all codes, and for populations of 1,024 and 64 of them: evidence that a sample breaks (there must
  be none), effective sample sizes, log-evidence with its error, and how many samples lie farther
  than 0.5 from the curve that the data were drawn around.
- rho.png (Fig. 5): the weight of earlier codes in the encoder, fixed and raised over time,
  from random means, as in the paper, and from clusters.
- line.png (Fig. 12): histograms on the line, for one to four layers.
- residuals.png (Fig. 4): what every layer sees of the data.

    python -m benchmarks.drmm.plane [--quick | --paper]
"""

import itertools
import time
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from torch import Tensor

from benchmarks.common import cli
from benchmarks.common.figures import BLUE, INK, RED, frame, save, scatter
from benchmarks.common.store import OUT, beside
from benchmarks.drmm.plane_evidence import study_evidence
from benchmarks.drmm.plane_laws import (
    FAR,
    LAWS,
    Law,
    archimedes,
    archimedes_nats,
    distance_from_curve,
    nats,
    nested_nats,
    sierpinski_nats,
    train,
)
from pyromix import DRMM, LinearEquality, LinearInequality
from pyromix.core.batch import Batch
from pyromix.datasets import mixture_1d
from pyromix.drmm.rows import Rows
from pyromix.drmm.stages import em_loss
from pyromix.metrics import precision_recall
from pyromix.plotting import plot_density

STEPS = {"quick": 800, "default": 8000, "paper": 16_000}


# ---- Fig. 2: depth ------------------------------------------------------------------------------


def study_depth(steps: int, num: int, path: Path) -> dict[str, tuple[DRMM, Tensor]]:
    models = {}
    sizes = (2000, num // 2)
    print("\n== layers (Fig. 2)")
    for name, law in LAWS.items():
        torch.manual_seed(0)
        data = law.draw(num)
        model = DRMM(2, law.num_layers, law.num_components)
        models[name] = train(model, data, round(law.longer * steps), name), data
    print(f"\n{'held-out nats by depth':>24} {'K':>3}  " + "".join(f"{d:>9}" for d in range(1, 6)))
    held_out = {name: law.draw(num // 2) for name, law in LAWS.items()}
    for name, (model, _) in models.items():
        cells = "".join(f"{value:>9.3f}" for value in nats(model, held_out[name]))
        print(f"{name:>24} {model.num_components:>3}  {cells}")
    print(f"{'(the spiral itself)':>24} {archimedes_nats():>13.3f}")
    print(f"{'(Sierpinski, depth 8)':>24} {sierpinski_nats():>13.3f}")
    print(f"{'(its moments at depth 5)':>24} {nested_nats(5):>13.3f}")
    print(
        f"\n{'':>24} {'points':>8} {'precision':>10} {'recall':>8} {'F1':>8} "
        f"{'F1 of the data':>16}   F1 by depth"
    )
    for (name, (model, _)), size in itertools.product(models.items(), sizes):
        real = LAWS[name].draw(size)
        score = precision_recall(real, model.sample((size,)))
        best = precision_recall(real, LAWS[name].draw(size)).f1
        by_depth = [
            precision_recall(real, model.shallow(depth).sample((size,))).f1
            for depth in range(1, model.num_layers)
        ]
        shallower = ", ".join(f"{f1:.3f}" for f1 in [*by_depth, score.f1])
        print(
            f"{name:>24} {size:>8} {score.precision:>10.3f} {score.recall:>8.3f} "
            f"{score.f1:>8.3f} {best:>16.3f}   {shallower}"
        )
    draw_depth(models, path)
    return models


def draw_depth(models: dict[str, tuple[DRMM, Tensor]], path: Path) -> None:
    columns = 8
    figure, axes = plt.subplots(
        len(models), columns, figsize=(2 * columns, 2.1 * len(models)), layout="constrained"
    )
    for row, (name, (model, data)) in zip(axes, models.items(), strict=True):
        law = LAWS[name]
        for ax in row:
            frame(ax, law.limits)
        scatter(row[0], data[:5000])
        row[0].set_title("data", fontsize=10)
        row[0].set_ylabel(f"{name}\nK = {model.num_components}, L = {model.num_layers}")
        for i in range(3):
            ink, shade = row[1 + i], row[4 + i]
            if i >= len(law.depths):
                ink.set_axis_off()
                shade.set_axis_off()
                continue
            depth = law.depths[i]
            shallow = model.shallow(depth)
            layers = "1 layer" if depth == 1 else f"{depth} layers"
            scatter(ink, shallow.sample((5000,)))
            ink.set_title(f"samples, {layers}", fontsize=10)
            # The root of the density, for peaks next to what is spread out.
            plot_density(shallow, shade, limits=law.limits, resolution=250, norm=PowerNorm(0.5))
            shade.set_title(f"density, {layers}", fontsize=10)
        draw_conditions(row[7], model, law)
    save(figure, path)


def draw_conditions(ax: Axes, model: DRMM, law: Law) -> None:
    a, b, c = law.half_plane
    above = model.condition(LinearInequality(torch.tensor([a, b]), c)).sample((3000,))
    beside = model.condition(LinearEquality(torch.tensor([1.0, 0.0]), -law.column)).sample((150,))
    assert bool((above @ torch.tensor([a, b]) + c > 0).all())
    scatter(ax, above)
    ax.axline((-a * c / (a * a + b * b), -b * c / (a * a + b * b)), (-a * c / (a * a + b * b) + b,
              -b * c / (a * a + b * b) - a), color=INK, linewidth=0.8)  # fmt: skip
    ax.axvline(law.column, color=RED, linewidth=0.6, alpha=0.6)
    scatter(ax, beside, RED, 6.0, alpha=0.35, zorder=3)
    ax.set_title("given a half-plane,\ngiven a line", fontsize=10)


# ---- Fig. 5: rho --------------------------------------------------------------------------------


class FixedRho(DRMM):
    """Trained by the paper's stage alone, where the weight of earlier codes can be fixed."""

    fixed_rho: float | None = None

    def loss(self, batch: Batch, progress: float = 1.0) -> Tensor:
        if not self.training or self.fixed_rho is None:
            return super().loss(batch, progress)
        assert isinstance(batch, Tensor)
        return em_loss(self.law, Rows(batch, None, ()), self.fixed_rho, self.orphans)


STARTS = {"drawn at random": False, "clusters": True}


def study_rho(steps: int, num: int, full: DRMM, path: Path) -> None:
    print("\n== weight of earlier codes in the encoder (Fig. 5), spiral")
    torch.manual_seed(0)
    data, held_out = archimedes(num), archimedes(num // 2)
    models: dict[tuple[str, str], DRMM] = {}
    for start, rho in itertools.product(STARTS, (0.0, 0.5, 1.0, None)):
        torch.manual_seed(0)
        model = FixedRho(2, 3, 16, curriculum=[("em", 1.0)])
        model.fixed_rho = rho
        name = "from 0 to 1" if rho is None else f"{rho:g}"
        what = f"rho {name}, {start}"
        models[start, name] = train(model, data, steps, what, initialize=STARTS[start])
    models["clusters", "and end to end"] = full
    print(
        f"\n{'start':>18} {'rho':>16} {'precision':>10} {'recall':>8} {'F1':>8} {'nats':>9} "
        f"{'> 0.5 away':>11}"
    )
    figure, axes = plt.subplots(2, 6, figsize=(14, 5.4), layout="constrained")
    for ax in axes.flat:
        frame(ax, LAWS["spiral"].limits)
    scatter(axes[1, 5], held_out[:5000])
    axes[1, 5].set_title("data", fontsize=10)
    places = [(0, i) for i in range(4)] + [(1, i) for i in range(5)]
    for (start, name), place in zip(models, places, strict=True):
        model = models[start, name]
        torch.manual_seed(1)
        draws = model.sample((len(held_out),))
        score = precision_recall(held_out, draws)
        far = float((distance_from_curve(draws) > FAR).float().mean())
        print(
            f"{start:>18} {name:>16} {score.precision:>10.3f} {score.recall:>8.3f} "
            f"{score.f1:>8.3f} {nats(model, held_out)[-1]:>9.3f} {far:>11.2%}"
        )
        ax = axes[place]
        scatter(ax, draws[:5000])
        ax.set_title(
            (name if name.startswith("and") else rf"$\rho$ {name}")
            + f"\nprecision {score.precision:.2f}, recall {score.recall:.2f}",
            fontsize=10,
        )
    best = precision_recall(held_out, archimedes(len(held_out)))
    print(
        f"{'(more data)':>18} {'':>16} {best.precision:>10.3f} {best.recall:>8.3f} {best.f1:>8.3f}"
    )
    for row, start in zip(axes, STARTS, strict=True):
        row[0].set_ylabel(f"start: {start}")
    for ax in axes[0, 4:]:
        ax.set_axis_off()
    save(figure, path)


# ---- Fig. 12: the line --------------------------------------------------------------------------


LINE = {
    "weights": (2.0, 1.0, 3.0, 1.0, 2.0, 1.0, 1.5, 3.0),
    "loc": (-3.4, -2.5, -1.6, -0.4, 0.3, 1.2, 2.0, 3.1),
    "scale": (0.2, 0.1, 0.4, 0.1, 0.3, 0.1, 0.15, 0.5),
}


def study_line(steps: int, num: int, path: Path) -> None:
    print("\n== the line (Fig. 12), K = 4")
    torch.manual_seed(0)
    data, held_out = mixture_1d(num, **LINE), mixture_1d(num, **LINE)
    weights, loc, scale = (torch.tensor(LINE[name]) for name in ("weights", "loc", "scale"))
    normal = torch.distributions.Normal(loc, scale)
    truth = (normal.log_prob(held_out) + (weights / weights.sum()).log()).logsumexp(-1).mean()
    edges = torch.linspace(-5, 5, 101)
    reference = torch.histogram(held_out[:, 0], edges).hist / len(held_out)
    figure, axes = plt.subplots(1, 5, figsize=(15, 2.8), layout="constrained", sharey=True)
    for ax in axes:
        ax.set(xlim=(-5, 5), yticks=[])
    axes[0].stairs(reference.numpy(), edges.numpy(), fill=True, color="0.6")
    axes[0].set_title("data", fontsize=10)
    rows = []
    for depth in range(1, 5):
        torch.manual_seed(0)
        model = train(DRMM(1, depth, 4), data, steps, f"depth {depth}")
        draws = model.sample((num,))
        own = torch.histogram(draws[:, 0], edges).hist / num
        variation = 0.5 * float((own - reference).abs().sum())
        rows.append((depth, nats(model, held_out)[-1], variation))
        ax = axes[depth]
        ax.stairs(own.numpy(), edges.numpy(), fill=True, color=BLUE, alpha=0.6)
        ax.stairs(reference.numpy(), edges.numpy(), color=INK, linewidth=0.7)
        ax.set_title("1 layer" if depth == 1 else f"{depth} layers", fontsize=10)
    second = torch.histogram(mixture_1d(num, **LINE)[:, 0], edges).hist / num
    floor = 0.5 * float((second - reference).abs().sum())
    print(f"\n{'layers':>14} {'held-out nats':>14} {'total variation of histograms':>32}")
    for depth, value, variation in rows:
        print(f"{depth:>14} {value:>14.3f} {variation:>32.3f}")
    print(f"{'(the law)':>14} {float(truth):>14.3f} {floor:>32.3f}")
    save(figure, path)


# ---- Fig. 4: residuals --------------------------------------------------------------------------


def draw_residuals(models: dict[str, tuple[DRMM, Tensor]], path: Path) -> None:
    """What every layer sees, coloured by its code; three points can be followed."""
    columns = max(model.num_layers for model, _ in models.values()) + 1
    figure, axes = plt.subplots(
        len(models), columns, figsize=(2.6 * columns, 2.8 * len(models)), layout="constrained"
    )
    print("\n== residuals (Fig. 4): root mean square of what is left before layer 1, 2, ...")
    for row, (name, (model, data)) in zip(axes, models.items(), strict=True):
        residual = data[:4000]
        codes = model.encode(residual)
        followed = [0, 1, 2]
        spreads = []
        for layer in range(model.num_layers + 1):
            ax = row[layer]
            spread = float(residual.square().mean().sqrt())
            spreads.append(spread)
            limit = LAWS[name].limit if layer == 0 else 4 * spread
            frame(ax, (-limit, limit, -limit, limit))
            if layer == model.num_layers:
                scatter(ax, residual, "0.5", 1.5)
                ax.set_title(f"left over, ± {limit:.2g}", fontsize=10)
            else:
                code = codes[:, layer]
                colors = plt.colormaps["tab20"](code.numpy() % 20)
                ax.scatter(*residual.T.tolist(), s=1.5, color=colors, linewidths=0)
                scatter(ax, model.loc[layer].detach(), INK, 14.0, marker="x", linewidths=0.8)
                ax.set_title(f"layer {layer + 1} sees, ± {limit:.2g}", fontsize=10)
            for i in followed:
                ax.annotate(
                    "ABC"[i], residual[i].tolist(), color="white", fontsize=7, ha="center",
                    va="center", annotation_clip=True,
                    bbox={"boxstyle": "circle,pad=0.15", "color": INK},
                )  # fmt: skip
            if layer < model.num_layers:
                residual = residual - model.loc[layer].detach()[codes[:, layer]]
        row[0].set_ylabel(name)
        for ax in row[model.num_layers + 1 :]:
            ax.set_axis_off()
        print(f"{name:>24} " + "".join(f"{spread:>9.3f}" for spread in spreads))
    save(figure, path)


# ---- all ----------------------------------------------------------------------------------------


def main() -> None:
    parser = cli.make_parser(
        __doc__, quick="a minute or two", paper="as many steps as in the paper", threads=False
    )
    size = cli.parse(parser).size
    quick = size == "quick"
    prefix = OUT / "drmm" / f"plane_{size}"
    steps, num = STEPS[size], 6000 if quick else 20_000
    start = time.perf_counter()
    models = study_depth(steps, num, beside(prefix, "depth.png"))
    spiral, _ = models["spiral"]
    study_evidence(spiral, 2000 if quick else 10_000, beside(prefix, "evidence.png"))
    # As many steps of the paper's stage as the whole model had: the other half was end to end.
    study_rho(steps // 2, num, spiral, beside(prefix, "rho.png"))
    study_line(max(500, steps // 4), num, beside(prefix, "line.png"))
    followed = {name: models[name] for name in ("spiral", "Sierpinski")}
    draw_residuals(followed, beside(prefix, "residuals.png"))
    print(f"\n{time.perf_counter() - start:.0f} s in all")


if __name__ == "__main__":
    main()
