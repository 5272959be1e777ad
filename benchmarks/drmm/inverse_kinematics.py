"""Inverse kinematics of a planar humanoid: train once on random poses, then ask for any goals.

A deep residual mixture learns the joint law of 30 numbers: the root's position and rotation, 15
joint angles, and where they put hands, feet, head and centre of mass. Afterwards it is conditioned
on positions and inequalities in any combination, and draws poses. Goals are positions of a
held-out pose, so that they can be met. What is measured, of 64 draws:

- how far hands, feet and head of the drawn *angles* are from their goals, by forward kinematics:
  the best draw, and the median one;
- how often draws break constraints: as drawn (never), and by forward kinematics;
- how far the six positions that are drawn with the angles are from where the angles put them;
- the time from the question to the draws, and the effective sample size.

A model with triangular maps, of a hundredth of the numbers, is asked the same ("maps"); and,
"exact", with forward kinematics of the angles as evidence of its own (`Nonlinear`, to 2 mm), next
to all else. The opponent is a full-covariance mixture of normals, conditioned on the same
evidence: it is linear around each of its components, and has them in memory one by one.

Writes models and a figure, out/drmm/inverse_kinematics_<size>.safetensors, _maps and .png.

    python -m benchmarks.drmm.inverse_kinematics [--quick | --paper] [--reuse]
"""

import math
import statistics
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from benchmarks.common import cli, figures
from benchmarks.common.store import OUT, beside
from pyromix import (
    DRMM,
    Box,
    GaussianMixture,
    LinearInequality,
    Nonlinear,
    Observed,
    fit,
    fit_em,
    load,
    save,
)
from pyromix.datasets import PlanarHumanoid

BODY = PlanarHumanoid()
NUM_DRAWS = 64
PRECISION = 0.002  # metres, of forward kinematics as evidence

# Steps, components of the opponent, points that it is fitted to, held-out poses per question.
SETTINGS = {
    "quick": (3_000, 32, 10_000, 5),
    "default": (10_000, 64, 20_000, 20),
    "paper": (100_000, 256, 100_000, 50),
}


class RandomPoses(IterableDataset):
    """Batches of random poses without end, each drawn when it is asked for."""

    def __iter__(self) -> Iterator[Tensor]:
        while True:
            yield BODY.features(BODY.sample_poses(64))


def column(point: str, axis: int) -> int:
    return BODY.INDEX[point][axis]


def goals(pose: Tensor, *points: str) -> Observed:
    return Observed({d: float(pose[d]) for point in points for d in BODY.INDEX[point]})


def above(pose: Tensor, upper: str, lower: str, margin: float = 0.1) -> LinearInequality:
    """One point stays above another, by about as much as in the pose."""
    a = torch.zeros(30)
    a[column(upper, 1)], a[column(lower, 1)] = 1.0, -1.0
    return LinearInequality(a, margin - float(a @ pose))


def within(pose: Tensor, point: str, axis: int, reach: float = 0.15) -> Box:
    """One coordinate stays near that of the pose."""
    low, high = torch.full((30,), -math.inf), torch.full((30,), math.inf)
    d = column(point, axis)
    low[d], high[d] = pose[d] - reach, pose[d] + reach
    return Box(low, high)


QUESTIONS = {
    "a hand": lambda p: [goals(p, "left_hand")],
    "both hands": lambda p: [goals(p, "left_hand", "right_hand")],
    "hands and feet": lambda p: [goals(p, "left_hand", "right_hand", "left_foot", "right_foot")],
    "hands, head high": lambda p: [
        goals(p, "left_hand", "right_hand"),
        above(p, "head", "left_foot"),
    ],
    "feet, hands in bounds": lambda p: [
        goals(p, "left_foot", "right_foot"),
        within(p, "left_hand", 1),
        within(p, "right_hand", 0),
    ],
    "hand and foot, box, two inequalities": lambda p: [
        goals(p, "left_hand", "right_foot"),
        within(p, "head", 1),
        above(p, "head", "left_foot"),
        above(p, "right_hand", "left_foot"),
    ],
}


def named_points(pieces: list) -> list[str]:
    """Points whose goals a question gives."""
    given = {d for piece in pieces if isinstance(piece, Observed) for d in piece.values}
    return [point for point, columns in BODY.INDEX.items() if set(columns) <= given and columns]


def broken(x: Tensor, pieces: list) -> Tensor:
    """Which rows break an inequality, or a box."""
    result = torch.zeros(len(x), dtype=torch.bool)
    for piece in pieces:
        if isinstance(piece, LinearInequality):
            result |= x @ piece.a + piece.b < 0
        elif isinstance(piece, Box):
            result |= ((x < piece.low) | (x > piece.high)).any(-1)
    return result


def kinematics(pieces: list) -> Nonlinear:
    """Goals as what the angles have to bring about."""
    known = {d: v for p in pieces if isinstance(p, Observed) for d, v in p.values.items()}
    columns = sorted(known)

    def positions(x: Tensor) -> Tensor:
        return BODY.features(x[:, :18])[:, columns]

    return Nonlinear(positions, torch.tensor([known[d] for d in columns]), PRECISION)


def ask(
    model: DRMM | GaussianMixture, pieces: list, *, exact: bool = False
) -> dict[str, float | Tensor]:
    start = time.perf_counter()
    pieces = [*pieces, kinematics(pieces)] if exact else pieces
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        law = model.condition(*pieces)
        x = law.sample((NUM_DRAWS,))
    seconds = time.perf_counter() - start
    moved = BODY.features(x[:, :18])  # where the angles really put everything
    points = named_points(pieces)
    errors = torch.stack(
        [(moved[:, list(BODY.INDEX[p])] - x[:, list(BODY.INDEX[p])]).norm(dim=-1) for p in points],
        -1,
    )
    worst = errors.amax(-1)
    missed = broken(moved, pieces)
    size = getattr(law, "effective_sample_size", None)
    return {
        "best": float((worst + 10.0 * missed).min().clamp(max=worst.max())),
        "median": float(errors.mean(-1).median()),
        "broken": float(broken(x, pieces).float().mean()),
        "broken by kinematics": float(missed.float().mean()),
        "consistency": float(BODY.consistency(x).mean(-1).median()),
        "seconds": seconds,
        "effective": math.nan if size is None else float(size),
        "draws": x,
    }


def compare(models: dict, poses: Tensor) -> None:
    print(
        f"\n{'question':38s} {'model':14s} {'best of 64':>10s} {'median':>8s} {'broken':>7s} "
        f"{'by FK':>6s} {'consist.':>8s} {'ms':>7s} {'ESS':>6s}   (metres)"
    )
    for name, question in QUESTIONS.items():
        for label, model in models.items():
            exact = label.endswith("exact")
            answers = [ask(model, question(pose), exact=exact) for pose in poses]
            mean = {
                key: statistics.fmean(answer[key] for answer in answers)
                for key in answers[0]
                if key not in ("draws", "seconds")
            }
            milliseconds = 1e3 * statistics.median(answer["seconds"] for answer in answers)
            print(
                f"{name:38s} {label:14s} {mean['best']:10.3f} {mean['median']:8.3f} "
                f"{mean['broken']:7.1%} {mean['broken by kinematics']:6.1%} "
                f"{mean['consistency']:8.3f} {milliseconds:7.0f} {mean['effective']:6.0f}",
                flush=True,
            )


def draw(model: DRMM, pose: Tensor, path: Path) -> None:
    """Poses given each kind of question, the best of 64 in the foreground."""
    figure, axes = plt.subplots(2, 3, figsize=(12, 8.5), layout="constrained")
    for ax, (name, question) in zip(axes.flat, QUESTIONS.items(), strict=True):
        pieces = question(pose)
        x = ask(model, pieces, exact=True)["draws"]
        points = named_points(pieces)
        moved = BODY.features(x[:, :18])
        error = sum(
            (moved[:, list(BODY.INDEX[p])] - pose[list(BODY.INDEX[p])]).norm(dim=-1)
            for p in points
        )
        best = int((error + 10.0 * broken(moved, pieces)).argmin())
        for other in x[:16, :18]:
            BODY.draw_skeleton(other, ax, color="0.8", linewidth=1, zorder=1)
        BODY.draw_skeleton(x[best, :18], ax, color="C0", linewidth=2.5, zorder=3)
        for p in points:
            ax.plot(*pose[list(BODY.INDEX[p])], "o", color="C3", zorder=4, markersize=7)
        _draw_constraints(ax, pieces)
        figures.frame(ax, (-2.2, 2.2, -2.2, 2.2), title=name)
    figure.suptitle("Poses given goals (red) and bounds (green); the best of 64 in blue")
    figures.save(figure, path, dpi=110)


def _draw_constraints(ax: Axes, pieces: list) -> None:
    for piece in pieces:
        if not isinstance(piece, Box):
            continue
        for columns in BODY.INDEX.values():
            for axis, d in enumerate(columns[:2]):
                if math.isfinite(float(piece.low[d])):
                    span = ax.axvspan if axis == 0 else ax.axhspan
                    span(float(piece.low[d]), float(piece.high[d]), color="C2", alpha=0.15)


def main() -> None:
    parser = cli.make_parser(
        __doc__, quick="minutes in all", paper="100,000 steps, as in the paper", threads=False
    )
    parser.add_argument("--reuse", action="store_true", help="take the last model from out/")
    arguments = cli.parse(parser)
    steps, components, points, questions = SETTINGS[arguments.size]
    path = OUT / "drmm" / f"inverse_kinematics_{arguments.size}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    held_out = BODY.features(BODY.sample_poses(2000))
    if arguments.reuse and path.exists():
        model, maps = load(path), load(beside(path.with_suffix(""), "maps.safetensors"))
    else:
        model = DRMM(dim=30, num_layers=10, num_components=256)
        loader = DataLoader(RandomPoses(), batch_size=None)
        print(fit(model, loader, steps=steps, lr=0.01, seed=0, progress_bar=False))
        maps = DRMM(dim=30, num_layers=8, num_components=8, maps="triangular")
        clip = 50.0
        print(
            fit(
                maps, loader, steps=steps, lr=0.002, gradient_clip=clip, seed=0, progress_bar=False
            )
        )
        save(model, path)
        save(maps, beside(path.with_suffix(""), "maps.safetensors"))
    opponent = GaussianMixture(30, components, "full", variance_floor=1e-6)
    start = time.perf_counter()
    fit_em(opponent, BODY.features(BODY.sample_poses(points)), seed=0, progress_bar=False)
    print(f"full-covariance mixture: {components} components, {time.perf_counter() - start:.0f} s")
    with torch.no_grad():
        print(
            f"held-out nats: residual mixture {model.log_prob(held_out).mean():.2f} "
            f"({model.num_parameters:,} numbers), by depth "
            f"{[round(v, 1) for v in model.layer_log_prob(held_out[:500]).mean(0).tolist()]}; "
            f"with maps {maps.log_prob(held_out).mean():.2f} ({maps.num_parameters:,}); "
            f"full-covariance mixture {opponent.log_prob(held_out).mean():.2f} "
            f"({opponent.num_free_parameters:,})"
        )
    for trained in (model, maps, opponent):
        trained.requires_grad_(False)
    models = {"DRMM": model, "maps": maps, "maps, exact": maps, "full mixture": opponent}
    compare(models, held_out[:questions])
    draw(maps, held_out[3], path.with_suffix(".png"))


if __name__ == "__main__":
    main()
