"""The paper's backward sampling beside draws of the law.

As in Figs. 13 and 14 of Hämäläinen et al., Deep Residual Mixture Models: a residual mixture of 4
layers with 4 components on the line, and one of 4 layers with 16 on the Swiss roll. Trained in two
ways: by the paper's expectation maximisation alone, and for the likelihood. Besides, the Swiss
roll as an array of two entries, by a hierarchy of windows of one entry and a top of 4 layers.

Printed: how far draws are from held-out data, for the law, for backward sampling without a bias
correction and with one; sliced Wasserstein distances (on the line: the Wasserstein distance) and
total variation of histograms. "(data)" is another set of data.

Then, for the hierarchy: the first entry is given, as it is in held-out points, and the Wasserstein
distance of draws of the second from those of the law given it is printed, on average, by alpha_f,
without a bias correction and with one. "(law)" is another set of draws of the law.

Writes out/hierarchy/backward_<size>.png.

    python -m benchmarks.hierarchy.backward [--quick]
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Generator, Tensor

from benchmarks.common import cli
from benchmarks.common.figures import BLUE, INK, labelled_grid, save, scatter
from benchmarks.common.store import OUT
from benchmarks.drmm.plane import LINE
from pyromix import DRMM, HierarchicalDRMM, Level, Top, fit
from pyromix.datasets import mixture_1d, swiss_roll
from pyromix.hierarchy.backward import BackwardSettings, fit_bias_corrections, sample_backward
from pyromix.hierarchy.law import HierarchicalLaw
from pyromix.hierarchy.tiling import Tiling
from pyromix.hierarchy.window_law import WindowLaw

WAYS = ("law", "backward", "backward, with b")
SHARES = (0.0, 1 / 3, 1.0)  # alpha_f
DIRECTIONS = 64
LINE_LIMIT, ROLL_LIMIT = 5.0, 3.5  # of axes and histograms


class Study(NamedTuple):
    """Data, and a model of them."""

    draw: Callable[[int], Tensor]
    make: Callable[[], Any]
    limit: float
    bins: int


def line(num: int) -> Tensor:
    return mixture_1d(num, **LINE)


PAPER = (("em", 1.0),)  # the paper's training alone
LIKELIHOOD = (("likelihood", 1.0),)
STUDIES = {
    "line, paper's training": Study(
        line, lambda: DRMM(1, 4, 4, curriculum=PAPER, scale="scalar"), LINE_LIMIT, 100
    ),
    "line": Study(line, lambda: DRMM(1, 4, 4), LINE_LIMIT, 100),
    "roll, paper's training": Study(
        swiss_roll, lambda: DRMM(2, 4, 16, curriculum=PAPER, scale="scalar"), ROLL_LIMIT, 40
    ),
    "roll": Study(swiss_roll, lambda: DRMM(2, 4, 16), ROLL_LIMIT, 40),
    "roll, hierarchy": Study(
        lambda num: swiss_roll(num).unsqueeze(1),
        lambda: HierarchicalDRMM((1, 2), [Level(1, None, 1, 32), Top(4, 16)]),
        ROLL_LIMIT,
        40,
    ),
}


# ---- distances ----------------------------------------------------------------------------------


def wasserstein(x: Tensor, y: Tensor) -> float:
    """Mean over directions of the distance of two sets of points (n, D) of the same size."""
    if x.shape[1] == 1:
        direction = torch.ones(1, 1)
    else:
        direction = torch.randn(x.shape[1], DIRECTIONS, generator=Generator().manual_seed(0))
        direction = direction / direction.norm(dim=0)
    return float(((x @ direction).sort(0).values - (y @ direction).sort(0).values).abs().mean())


def variation(x: Tensor, y: Tensor, limit: float, bins: int) -> float:
    """Total variation of histograms of two sets of points (n, D)."""
    counts = []
    for points in (x, y):
        cell = ((points + limit) * bins / (2 * limit)).long().clamp(0, bins - 1)
        place = (cell * bins ** torch.arange(points.shape[1])).sum(-1)
        counts.append(place.bincount(minlength=bins ** points.shape[1]) / len(points))
    return 0.5 * float((counts[0] - counts[1]).abs().sum())


# ---- draws --------------------------------------------------------------------------------------


def law_of(model: Any) -> HierarchicalLaw:
    """The law of a hierarchy, or of a residual mixture as one of a single window."""
    if isinstance(model, HierarchicalDRMM):
        return model.law
    whole = Tiling((model.dim,), (model.dim,), (model.dim,))
    return HierarchicalLaw(WindowLaw(model.law, whole, 1), [])


def draws(model: Any, num: int) -> dict[str, Tensor]:
    """Points (n, D), by the way they are drawn."""
    law = law_of(model)
    unknown = torch.full((1, model.event_shape.numel(), 1), torch.nan)
    how, bias = BackwardSettings(), fit_bias_corrections(law, num)
    return {
        "law": model.sample((num,)).flatten(1),
        "backward": sample_backward(law, unknown, num, how).flatten(1),
        "backward, with b": sample_backward(law, unknown, num, how, bias).flatten(1),
    }


def given(model: HierarchicalDRMM, points: Tensor, num: int) -> dict[str, Tensor]:
    """Mean distances from draws of the law given first entries: without b and with it, (2,)."""
    ways = ("(law)", *(f"alpha_f = {share:.2f}" for share in SHARES))
    bias, total = model.bias_corrections(num), {way: torch.zeros(2) for way in ways}
    for x in points:
        known = x.clone()
        known[:, 1] = torch.nan
        exact, again = (model.impute(known, num)[:, 0, 1:] for _ in range(2))
        total["(law)"] += wasserstein(again, exact)
        for way, share in zip(ways[1:], SHARES, strict=True):
            for column, corrections in enumerate((None, bias)):
                own = model.sample_backward(
                    known, sample_shape=(num,), corrections=corrections, alpha_f=share
                )
                total[way][column] += wasserstein(own[:, 0, 1:], exact)
    return {way: distances / len(points) for way, distances in total.items()}


# ---- all ----------------------------------------------------------------------------------------


def draw_row(row: Any, study: Study, held_out: Tensor, own: dict[str, Tensor]) -> None:
    limits = (-study.limit, study.limit)
    for ax, points in zip(row, [held_out, *own.values()], strict=True):
        color = INK if points is held_out else BLUE
        if points.shape[1] == 1:
            ax.hist(points[:, 0].numpy(), study.bins, range=limits, color=color)
            ax.set(xlim=limits, xticks=[], yticks=[])
        else:
            scatter(ax, points[:4000], color)
            ax.set(xlim=limits, ylim=limits, xticks=[], yticks=[], aspect="equal")
    if held_out.shape[1] == 1:
        top = 1.3 * row[0].get_ylim()[1]
        for ax in row:
            ax.set_ylim(0, top)


def main() -> None:
    arguments = cli.parse(cli.make_parser(__doc__, quick="fewer steps of training and draws"))
    quick = arguments.size == "quick"
    steps, num = (400, 4000) if quick else (4000, 20_000)
    figure, axes = labelled_grid(STUDIES, ["data", *WAYS])
    for row, (name, study) in zip(axes, STUDIES.items(), strict=True):
        torch.manual_seed(0)
        data, held_out, again = (study.draw(num) for _ in range(3))
        model = study.make()
        fit(model, data, steps=steps, batch_size=256, lr=0.01, seed=0, progress_bar=False)
        model.requires_grad_(False)
        own = draws(model, num)
        held_out, again = held_out.flatten(1), again.flatten(1)
        print(f"\n{name:<24} {'distance':>10} {'variation':>10}")
        for way, points in {"(data)": again, **own}.items():
            far = wasserstein(points, held_out)
            off = variation(points, held_out, study.limit, study.bins)
            print(f"  {way:<22} {far:>10.3f} {off:>10.3f}", flush=True)
        draw_row(row, study, held_out, own)
        if isinstance(model, HierarchicalDRMM):
            print(f"\n{'given the first entry':<24} {'without b':>10} {'with b':>10}")
            some = study.draw(10 if quick else 40)
            for way, distances in given(model, some, num // 10).items():
                columns = "".join(f" {distance:>10.3f}" for distance in distances.tolist())
                print(f"  {way:<22}{columns}", flush=True)
    print()
    save(figure, OUT / "hierarchy" / f"backward_{arguments.size}.png")


if __name__ == "__main__":
    main()
