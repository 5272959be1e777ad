"""Cost by the number of cells: a step of training, a density, draws, and a question.

    images      windows of 2 x 2 pixels under 2 x 2 of these and a top, sums over all codes
    sequences   windows of 7 steps, 2 apart, of triangular maps, under pairs and a top

Printed for arrays of several sizes, in milliseconds, the median of three: a step of 16 arrays
with its gradients; the density of 16 arrays; 16 draws; and a question about one array of which
the first half is known, with 64 particles. Last, the power of the number of entries that each
grows with. Parameters are random.

    python -m benchmarks.hierarchy.speed [--quick]
"""

import math
import time
from collections.abc import Callable
from statistics import median

import torch

from benchmarks.common import cli
from pyromix import HierarchicalDRMM, Level, Top

COUNT, REPEATS = 16, 3


def make_images(side: int) -> HierarchicalDRMM:
    levels = [Level(2, None, 1, 64), Level(2, None, 1, 64), Top(1, 128)]
    return HierarchicalDRMM((1, side, side), levels)


def make_sequences(length: int) -> HierarchicalDRMM:
    levels = [Level(7, 2, 1, 16, "triangular"), Level(2, None, 2, 16), Top(2, 16)]
    return HierarchicalDRMM((2, length), levels)


def milliseconds(job: Callable[[], object]) -> float:
    job()
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        job()
        times.append(1000 * (time.perf_counter() - start))
    return median(times)


def measure(model: HierarchicalDRMM) -> dict[str, float]:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.codes.parameters():
            parameter.normal_()
        x = model.sample((COUNT,))
    half = x[0].clone()
    half[:, half.shape[1] // 2 :] = math.nan

    def step() -> None:
        model.train().loss(x).backward()
        model.zero_grad()

    def score() -> None:
        with torch.no_grad():
            model.eval().log_prob(x)

    return {
        "step": milliseconds(step),
        "density": milliseconds(score),
        "draws": milliseconds(lambda: model.sample((COUNT,))),
        "question": milliseconds(lambda: model.condition(half, num_particles=64).sample((16,))),
    }


def main() -> None:
    parser = cli.make_parser(__doc__, quick="two sizes each")
    arguments = cli.parse(parser)
    sizes = {"images": (make_images, (16, 32, 64)), "sequences": (make_sequences, (32, 64, 128))}
    for name, (make, sides) in sizes.items():
        results, entries = [], []
        for side in sides[:2] if arguments.size == "quick" else sides:
            model = make(side)
            results.append(measure(model))
            entries.append(model.event_shape.numel())
            told = "".join(f" {key} {value:>8.1f}" for key, value in results[-1].items())
            print(f"{name:>9} {entries[-1]:>5} entries:{told}", flush=True)
        growth = math.log(entries[-1] / entries[0])
        powers = {key: math.log(results[-1][key] / results[0][key]) / growth for key in results[0]}
        print(f"{'power':>24}:" + "".join(f" {key} {p:>8.2f}" for key, p in powers.items()))


if __name__ == "__main__":
    main()
