"""Walks between two poses: motion capture, completed along a known path of the pelvis.

Windows of 64 frames at 30 Hz, of clips that are held out whole. Known are the pelvis in every
frame, and either the first and the last pose ("ends"), or all but 30 frames in the middle
("second"). Bones get the lengths of the first pose. Arrays have 39 channels: the path of the
pelvis, and 36 principal components of the other joints seen from it; see
`benchmarks.hierarchy.clips`.

    hierarchy      windows of 16 frames, 12 apart, of triangular maps, and a top
    mixture        full covariances of whole windows, by expectation maximisation
    normal         one full covariance: the linear model
    interpolation  every bone turns at an even rate from its first direction to its last

Printed: parameters; minutes of training; held-out nats a window; and for both questions the mean
distance of joints from the clip in cm, over unknown frames, as the median of 16 draws, the best of
16, and of the mean; how far bones are from their lengths, as a share; how fast feet slide while on
the ground, in cm/s; the same of the clips, with the 90th percentile; seconds a question; and the
median by how fast the pelvis moves.

Writes out/hierarchy/motion_<size>_strip.png and .gif, and keeps models in
out/hierarchy/motion_<size>/. Needs motion/positions.npz in the folder of PYROMIX_DATA.

    python -m benchmarks.hierarchy.motion [--quick] [--models NAME ...] [--report]
"""

import math
import time
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import torch
from matplotlib.animation import FuncAnimation, PillowWriter
from torch import Tensor

from benchmarks.common import cli
from benchmarks.common.figures import save
from benchmarks.common.store import OUT, Numbers, Store, beside
from benchmarks.common.summary import standard_error
from benchmarks.common.training import in_chunks
from benchmarks.hierarchy.clips import FRAMES, PELVIS, RATE, Axes, Clips, Coordinates, load_clips
from pyromix import GaussianMixture, HierarchicalDRMM, Level, Observed, Top, fit, fit_em

DIM = 36
FLOOR = 2e-3  # metres
DRAWS = 16
GAP = slice(17, 47)
ANKLES, GROUND = (5, 11), 0.03  # metres above the lowest place of the ankle in a window
INTERPOLATION = "interpolation"
FAST = 1.0  # m/s


class Setting(NamedTuple):
    """How much is trained and asked."""

    components: int
    codes: int
    normals: int
    steps: int
    particles: int
    asked: int


SETTINGS = {
    "quick": Setting(2, 4, 1, 20, 64, 2),
    "default": Setting(8, 16, 4, 200, 128, 16),
}


class Data(NamedTuple):
    """Windows as joints and as arrays."""

    clips: Clips
    coordinates: Coordinates
    train: Tensor
    test: Tensor


def load() -> Data:
    clips = load_clips()
    coordinates = Coordinates.of(clips.skeleton, clips.train, DIM)
    order = torch.randperm(len(clips.test), generator=torch.Generator().manual_seed(0))
    clips = clips._replace(test=clips.test[order])
    arrays = coordinates.array(clips.train), coordinates.array(clips.test)
    return Data(clips, coordinates, *arrays)


# ---- models -------------------------------------------------------------------------------------


def train_hierarchy(data: Data, setting: Setting) -> Any:
    levels = [
        Level(16, 12, 1, setting.components, "triangular"),
        Top(2, setting.codes),
    ]
    model = HierarchicalDRMM((PELVIS + DIM, FRAMES), levels, scale_floor=FLOOR)
    fit(model, data.train, steps=setting.steps, batch_size=64, gradient_clip=200.0, seed=0,
        progress_bar=False)  # fmt: skip
    return model


def train_mixture(data: Data, count: int) -> Any:
    model = GaussianMixture(FRAMES * (PELVIS + DIM), count, "full", scale_floor=10 * FLOOR)
    fit_em(model, flat(data.train), steps=10 if count > 1 else 1, seed=0, progress_bar=False)
    return model


TRAIN_BY_NAME = {
    "hierarchy": train_hierarchy,
    "mixture": lambda data, setting: train_mixture(data, setting.normals),
    "normal": lambda data, _: train_mixture(data, 1),
}


def flat(x: Tensor) -> Tensor:
    """Arrays (N, C, F) as vectors, frame by frame."""
    return x.mT.flatten(1)


def is_hierarchy(model: Any) -> bool:
    return isinstance(model, HierarchicalDRMM)


def measure(model: Any, data: Data) -> Numbers:
    """Held-out nats a window."""
    scores = in_chunks(model.log_prob, data.test if is_hierarchy(model) else flat(data.test), 16)
    return {"nats": float(scores.mean()), "error": standard_error(scores)}


# ---- questions ----------------------------------------------------------------------------------


def hidden_frames(question: str) -> Tensor:
    """Which poses are unknown, (F,)."""
    hidden = torch.zeros(FRAMES, dtype=torch.bool)
    hidden[GAP if question == "second" else slice(1, FRAMES - 1)] = True
    return hidden


def answer(model: Any, array: Tensor, hidden: Tensor, setting: Setting) -> tuple[Tensor, Tensor]:
    """Draws (16, C, F) and the mean (C, F) of an array of which poses are hidden."""
    shown = array.clone()
    shown[PELVIS:, hidden] = math.nan
    if is_hierarchy(model):
        law = model.condition(shown, num_particles=setting.particles)
        return law.sample((DRAWS,)), law.mean
    value = shown.mT.flatten()
    known = {i: float(x) for i, x in enumerate(value) if not math.isnan(x)}
    law = model.condition(Observed(known))
    draws = law.sample((DRAWS,)).reshape(DRAWS, FRAMES, -1).mT
    return draws, law.mean.reshape(FRAMES, -1).mT


def interpolate(data: Data, x: Tensor, hidden: Tensor) -> Tensor:
    """Joints (F, 15, 3) of which bones turn evenly between the poses about a gap."""
    frames = hidden.nonzero().squeeze(-1)
    first, last = int(frames[0]) - 1, int(frames[-1]) + 1
    bones = data.clips.skeleton.bones(x)
    start, end = bones[first], bones[last]
    lengths = [bone.norm(dim=-1, keepdim=True) for bone in (start, end)]
    a, b = start / lengths[0], end / lengths[1]
    angle = (a * b).sum(-1, keepdim=True).clamp(-1 + 1e-6, 1 - 1e-6).acos()
    share = ((frames - first) / (last - first)).reshape(-1, 1, 1)
    turned = (((1 - share) * angle).sin() * a + (share * angle).sin() * b) / angle.sin()
    turned = turned * ((1 - share) * lengths[0] + share * lengths[1])
    result = x.clone()
    result[frames] = data.clips.skeleton.assemble(x[frames, 0], turned)
    return result


def slide(x: Tensor, ground: Tensor) -> Tensor:
    """How fast ankles move in the plane while near the ground, m/s, of motions (*S, F, 15, 3)."""
    total, count = x.new_zeros(x.shape[:-3]), x.new_zeros(x.shape[:-3])
    for ankle, lowest in zip(ANKLES, ground, strict=True):
        low = x[..., 1:, ankle, 1] < lowest + GROUND
        step = (x[..., 1:, ankle, :] - x[..., :-1, ankle, :])[..., [0, 2]].norm(dim=-1)
        total, count = total + (step * low).sum(-1), count + low.sum(-1)
    return RATE * total / count.clamp(min=1)


def score(data: Data, x: Tensor, drawn: Tensor, mean: Tensor, hidden: Tensor) -> Numbers:
    """Errors of motions drawn (S, F, 15, 3), and of their mean (F, 15, 3)."""
    away = (drawn[:, hidden, 1:] - x[hidden, 1:]).norm(dim=-1).mean((-2, -1))
    lengths = data.clips.skeleton.lengths(x)
    own = data.clips.skeleton.lengths(drawn[:, hidden])
    ground = x[:, ANKLES, 1].amin(0)
    return {
        "median": float(away.median()),
        "best": float(away.min()),
        "mean": float((mean[hidden, 1:] - x[hidden, 1:]).norm(dim=-1).mean()),
        "bones": float((own / lengths[hidden] - 1).abs().mean()),
        "slide": float(slide(drawn, ground).median()),
        "own slide": float(slide(x, ground)),
    }


def ask(models: dict[str, Any], data: Data, setting: Setting, question: str) -> Numbers:
    hidden, results = hidden_frames(question), {name: [] for name in [*models, INTERPOLATION]}
    for index in range(setting.asked):
        x, array = data.clips.test[index], data.test[index]
        axes = Axes.along(x)
        for name, model in models.items():
            torch.manual_seed(index)
            start = time.perf_counter()
            with torch.no_grad():
                answers = answer(model, array, hidden, setting)
            seconds = time.perf_counter() - start
            lengths = data.clips.skeleton.lengths(x[0])
            drawn, mean = (data.coordinates.joints(axes, part, lengths) for part in answers)
            told = score(data, x, drawn, mean, hidden)
            results[name].append(told | {"seconds": seconds})
        even = interpolate(data, x, hidden)
        results[INTERPOLATION].append(
            score(data, x, even.unsqueeze(0), even, hidden) | {"seconds": 0.0}
        )
        print(question, index, {k: round(v[-1]["median"], 4) for k, v in results.items()},
              flush=True)  # fmt: skip
    return results


def speeds(x: Tensor) -> Tensor:
    """Mean speed of the pelvis in the plane, m/s, of motions (N, F, 15, 3)."""
    step = x[:, 1:, 0][..., [0, 2]] - x[:, :-1, 0][..., [0, 2]]
    return RATE * step.norm(dim=-1).mean(-1)


def tell(question: str, results: dict[str, list[Numbers]], data: Data) -> None:
    """Mean scores of all windows, and errors of those that are faster and slower."""
    count = len(results[INTERPOLATION])
    fast = speeds(data.clips.test[:count]) > FAST
    print(
        f"\n{question:>13} {'median':>6} {'best':>6} {'mean':>6} {'bones':>7} {'slide':>6} "
        f"{'s':>5} | median, {int(fast.sum())} faster than {FAST} m/s; {int((~fast).sum())} slower"
    )
    for name, told in results.items():
        columns = {key: torch.tensor([r[key] for r in told]) for key in told[0]}
        line = f"{name:>13}"
        for key, factor, form in (
            ("median", 100, "6.2f"),
            ("best", 100, "6.2f"),
            ("mean", 100, "6.2f"),
            ("bones", 1, "7.4f"),
            ("slide", 100, "6.1f"),
            ("seconds", 1, "5.1f"),
        ):
            line += f" {float(factor * columns[key].mean()):>{form}}"
        parts = (100 * columns["median"][chosen].mean() for chosen in (fast, ~fast))
        print(line + " |" + "".join(f" {float(part):>6.2f}" for part in parts))
    own = torch.tensor([r["own slide"] for r in results[INTERPOLATION]])
    print(
        f"the clips themselves slide {100 * own.mean():.1f} cm/s, 90% of them less than "
        f"{100 * own.quantile(0.9):.1f}"
    )


# ---- pictures -----------------------------------------------------------------------------------


def draw_body(ax: Any, data: Data, pose: Tensor, color: Any, **options: Any) -> None:
    for joint, parent in enumerate(data.clips.skeleton.parents):
        if parent >= 0:
            line = pose[[joint, parent]]
            ax.plot(line[:, 0], line[:, 1], color=color, **options)


def draw(models: dict[str, Any], data: Data, setting: Setting, folder: Store) -> None:
    """A strip of bodies, and an animation, of one window."""
    hidden, index = hidden_frames("ends"), 0
    x, array = data.clips.test[index], data.test[index]
    axes = Axes.along(x)
    motions = {"clip": x}
    for name, model in models.items():
        torch.manual_seed(index)
        with torch.no_grad():
            drawn = answer(model, array, hidden, setting)[0][0]
        lengths = data.clips.skeleton.lengths(x[0])
        motions[name] = data.coordinates.joints(axes, drawn, lengths)
    motions[INTERPOLATION] = interpolate(data, x, hidden)

    def seen(motion: Tensor) -> Tensor:
        """From the side: along the way, and height."""
        way = x[-1, 0, [0, 2]] - x[0, 0, [0, 2]]
        way = way / way.norm().clamp(min=1e-6)
        return torch.stack([(motion[..., [0, 2]] - x[0, 0, [0, 2]]) @ way, motion[..., 1]], -1)

    figure, every = plt.subplots(len(motions), 1, figsize=(9, 1.7 * len(motions)), sharex=True,
                                 layout="constrained")  # fmt: skip
    for ax, (name, motion) in zip(every, motions.items(), strict=True):
        for frame in range(0, FRAMES, 7):
            shift = torch.tensor([0.07 * frame, 0.0])
            color = "tab:red" if not hidden[frame] else plt.get_cmap("viridis")(frame / FRAMES)
            draw_body(ax, data, seen(motion)[frame] + shift, color, lw=1.2)
        ax.set(title=name, aspect="equal")
        ax.axis("off")
    save(figure, beside(folder.folder, "strip.png"))
    figure, every = plt.subplots(1, len(motions), figsize=(2.4 * len(motions), 2.8),
                                 layout="constrained")  # fmt: skip

    def show(frame: int) -> None:
        for ax, (name, motion) in zip(every, motions.items(), strict=True):
            ax.clear()
            own = seen(motion)[frame]
            draw_body(ax, data, own, "0.1" if hidden[frame] else "tab:red", lw=1.5)
            centre = float(own[0, 0])
            ax.set(xlim=(centre - 0.9, centre + 0.9), ylim=(-0.1, 1.8), title=name)
            ax.set_aspect("equal")
            ax.axis("off")

    path = beside(folder.folder, "animation.gif")
    FuncAnimation(figure, show, frames=FRAMES).save(path, writer=PillowWriter(fps=RATE // 2))
    plt.close(figure)
    print(f"figure: {path}")


def main() -> None:
    parser = cli.make_parser(__doc__, quick="small models: a few minutes")
    cli.add_models(parser, TRAIN_BY_NAME)
    arguments = cli.parse(parser)
    setting = SETTINGS[arguments.size]
    store = Store(OUT / "hierarchy" / f"motion_{arguments.size}")
    data = load()
    if not arguments.report:
        names = arguments.models or TRAIN_BY_NAME
        store.train(
            names, lambda name: TRAIN_BY_NAME[name](data, setting), lambda m: measure(m, data)
        )
    names = [name for name in TRAIN_BY_NAME if store.has(name)]
    models = {name: store.load_model(name).eval() for name in names}
    for name, numbers in store.numbers(names).items():
        print(
            f"{name:>13} {numbers['parameters']:>10,} numbers, {numbers['minutes']:.1f} minutes, "
            f"{numbers['nats']:.0f} ± {numbers['error']:.0f} nats"
        )
    for question in ("ends", "second"):
        results = store.once(f"{question}", lambda q=question: ask(models, data, setting, q))
        tell(question, results, data)
    draw(models, data, setting, store)


if __name__ == "__main__":
    main()
