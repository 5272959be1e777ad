"""What questions at scale cost a deep residual mixture: many rows, obstacles, a control loop.

Two models of a planar humanoid's poses (30 columns), one of triangular maps, 4 layers of 16
components, and one of means, 10 layers of 256; and one of handwritten digits (784 columns, means,
6 layers of 128). Asked:

    rows            1,000 rows at once of which both hands are known: time, memory, and the median
                    number of independent codes that a row's population is worth
    one row         one of them, with 64 draws
    obstacles       hands and feet keep out of rectangles around them: 64 draws
    inequalities    four columns known, a box on eight, two inequalities: 64 draws
    control loop    a hand follows a circle of 25 cm; each frame is a question: the hand's goal
                    and a prior around the last pose, the best of 32 draws by forward kinematics
    half            half of the pixels known, 16 draws; the same and all others in a box
    measurements    100 noisy linear measurements, 16 draws

    python -m benchmarks.drmm.questions [--quick]
"""

import math
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.common import cli
from benchmarks.common.memory import in_fresh_process, peak_of
from benchmarks.common.store import OUT
from benchmarks.common.timing import timed
from pyromix import (
    DRMM,
    AnyOf,
    Box,
    GaussianPrior,
    LinearGaussian,
    LinearInequality,
    Observed,
    fit,
    load,
    save,
)
from pyromix.datasets import PlanarHumanoid, mnist

BODY = PlanarHumanoid()
HANDS = [*BODY.INDEX["left_hand"], *BODY.INDEX["right_hand"]]
POINTS = ("left_hand", "right_hand", "left_foot", "right_foot")
STEPS = {"quick": 300, "default": 4000}
CLIP = 50.0


def grey(images: Tensor) -> Tensor:
    """Grey values from 0 to 1 with the noise of their 256 levels, shape (n, 784)."""
    x = images.flatten(1)
    return x + torch.rand_like(x) / 256


def folder(size: str) -> Path:
    """Where models are kept."""
    return OUT / "drmm" / f"questions_{size}"


def trained(size: str) -> tuple[dict[str, DRMM], Tensor, Tensor]:
    """The models, and poses and digits that they have not seen."""
    torch.manual_seed(0)
    poses = BODY.features(BODY.sample_poses(100_000))
    held_out = BODY.features(BODY.sample_poses(2000))
    digits = grey(mnist("test")[0][:2000])
    folder(size).mkdir(parents=True, exist_ok=True)
    steps, models = STEPS[size], {}
    for name in ("maps", "means", "digits"):
        path = folder(size) / f"{name}.safetensors"
        if not path.exists():
            if name == "maps":
                model, x = DRMM(30, 4, 16, maps="triangular"), poses
                options = {"steps": steps, "lr": 0.002, "gradient_clip": CLIP}
            elif name == "means":
                model, x = DRMM(30, 10, 256), poses
                options = {"steps": steps // 2, "lr": 0.003}
            else:
                model, x = DRMM(784, 6, 128), grey(mnist("train")[0][:20_000])
                options = {"steps": steps // 4, "lr": 0.01}
            fit(model, x, batch_size=64, seed=0, progress_bar=False, **options)
            save(model, path)
        models[name] = load(path).requires_grad_(False)
    return models, held_out, digits


def bound(columns: dict[int, tuple[float, float]]) -> Box:
    """A box that bounds some of the 30 columns."""
    low, high = torch.full((30,), -math.inf), torch.full((30,), math.inf)
    for d, (below, above) in columns.items():
        low[d], high[d] = below, above
    return Box(low, high)


def outside(point: str, pose: Tensor, reach: float = 0.2) -> AnyOf:
    """A point keeps out of a rectangle next to where it is in a pose."""
    sides = []
    for d in BODY.INDEX[point]:
        middle = float(pose[d]) + 0.15
        sides += [bound({d: (-math.inf, middle - reach)}), bound({d: (middle + reach, math.inf)})]
    return AnyOf(*sides)


def pose_questions(pose: Tensor) -> dict[str, list]:
    a = torch.zeros(2, 30)
    a[0, 10], a[0, 11], a[1, 20], a[1, 21] = 1.0, -1.0, 1.0, 1.0
    near = bound({d: (float(pose[d]) - 0.3, float(pose[d]) + 0.3) for d in range(8)})
    return {
        "one row": [Observed({d: float(pose[d]) for d in HANDS})],
        **{
            f"{count} obstacles": [outside(point, pose) for point in POINTS[:count]]
            for count in (1, 2, 3, 4)
        },
        "inequalities": [
            Observed({d: float(pose[d]) for d in range(4)}),
            near,
            LinearInequality(a, 0.1 - a @ pose),
        ],
    }


def digit_questions(digit: Tensor) -> dict[str, list]:
    half = Observed({d: float(digit[d]) for d in range(0, 784, 2)})
    matrix = torch.randn(100, 784) / 28
    return {
        "half of the pixels": [half],
        "half, others in a box": [half, Box(-1.0, 2.0)],
        "100 measurements": [LinearGaussian(matrix, matrix @ digit, 0.05)],
    }


def median_ms(task: Callable[[], object], rounds: int) -> float:
    task()
    return 1e3 * statistics.median(timed(task) for _ in range(rounds))


def ask(model: DRMM, evidence: list, draws: int, rounds: int) -> float:
    return median_ms(lambda: model.condition(*evidence).sample((draws,)), rounds)


def hands_of(poses: Tensor) -> Observed:
    return Observed({d: poses[:, d] for d in HANDS})


def memory_of_rows(path: Path, poses: Tensor) -> float:
    """Mebibytes that a question about all of these poses takes at its peak."""
    torch.set_num_threads(1)
    model = load(path).requires_grad_(False)
    model.condition(hands_of(poses[:2])).sample()  # loads what is loaded lazily
    return peak_of(lambda: model.condition(hands_of(poses)))


def rows(path: Path, model: DRMM, poses: Tensor) -> str:
    """Many questions at once."""
    model.condition(hands_of(poses[:100])).sample()
    start = time.perf_counter()
    law = model.condition(hands_of(poses))
    seconds = time.perf_counter() - start
    size = float(law.effective_sample_size.median())
    peak = in_fresh_process(memory_of_rows, path, poses)
    return f"{seconds:.2f} s, {peak:.0f} MiB, {size:.0f} effective codes a row"


def frames(count: int, pose: Tensor) -> Iterator[Tensor]:
    """Goals of the left hand: around a circle that starts where it is."""
    start = pose[list(BODY.INDEX["left_hand"])]
    for step in range(count):
        angle = torch.tensor(2 * math.pi * step / count)
        yield start + 0.25 * torch.stack([angle.cos() - 1, angle.sin()])


def control_loop(model: DRMM, pose: Tensor, count: int) -> str:
    """Each frame's pose from the last one's and the goal."""
    columns = list(BODY.INDEX["left_hand"])
    query = model.query(num_particles=16, memory=64)
    times, misses = [], []
    for goal in frames(count, pose):
        start = time.perf_counter()
        known = Observed(dict(zip(columns, goal, strict=True)))
        draws = query(known, GaussianPrior(pose, 0.15)).sample((32,))
        reached = BODY.features(draws[:, :18])[:, columns]
        miss = (reached - goal).norm(dim=-1)
        pose = draws[miss.argmin()]
        times.append(time.perf_counter() - start)
        misses.append(float(miss.min()))
    times, misses = sorted(times), sorted(misses)
    return (
        f"{1e3 * times[count // 2]:.1f} ms a frame (nine in ten below "
        f"{1e3 * times[int(0.9 * count)]:.1f}), goal missed by {100 * misses[count // 2]:.1f} cm "
        f"(median), {100 * misses[-1]:.1f} cm (worst)"
    )


def main() -> None:
    parser = cli.make_parser(__doc__, quick="about a minute")
    arguments = cli.parse(parser)
    quick = arguments.size == "quick"
    models, poses, digits = trained(arguments.size)
    rounds = 3 if quick else 7
    print(f"{torch.get_num_threads()} threads")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        for name in ("maps", "means"):
            model, path = models[name], folder(arguments.size) / f"{name}.safetensors"
            print(f"\nposes, {name}: {model.num_parameters:,} numbers")
            print(f"  {'1,000 rows':24s} {rows(path, model, poses[:1000])}")
            for asked, evidence in pose_questions(poses[7]).items():
                print(f"  {asked:24s} {ask(model, evidence, 64, rounds):7.0f} ms")
            print(f"  {'control loop':24s} {control_loop(model, poses[7], 100)}")
        model = models["digits"]
        print(f"\ndigits: {model.num_parameters:,} numbers")
        gaps = digits[3].clone()
        gaps[1::2] = math.nan
        print(
            f"  {'half imputed':24s} {median_ms(lambda: model.impute(gaps[None]), rounds):7.0f} ms"
        )
        for asked, evidence in digit_questions(digits[3]).items():
            print(f"  {asked:24s} {ask(model, evidence, 16, rounds):7.0f} ms")


if __name__ == "__main__":
    main()
