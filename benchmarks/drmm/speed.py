"""What a step of training and a question cost a deep residual mixture of 3.03 million numbers.

K = 256 components, L = 10 layers, D = 30 columns, batches of 64. Nearly all its parameters are
tables of which codes go together. The yardstick, measured in the same run, is what any training
step must do with them: one fused step of Adam, and one log-softmax of all tables, forward and
backward. A question is 64 draws given four known columns, a box and two inequalities, from a
population of 1,024 codes.

    python -m benchmarks.drmm.speed [--quick]
"""

import math
import warnings
from collections.abc import Callable

import torch

from benchmarks.common import cli
from benchmarks.common.timing import block_medians
from pyromix import DRMM, Box, LinearInequality, Observed, fit

LAYERS, COMPONENTS, DIM, BATCH = 10, 256, 30, 64


def data(count: int) -> torch.Tensor:
    """A smooth nonlinear image of eight independent normals."""
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(DIM, 8, generator=generator) / math.sqrt(8)
    w = torch.randn(DIM, DIM, generator=generator) / math.sqrt(DIM)
    z = torch.randn(count, 8, generator=generator)
    return torch.tanh(z @ v.T) @ w.T


def milliseconds(tasks: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Median milliseconds of each task, in blocks of five as in a loop, that take turns."""
    medians = block_medians(tasks, rounds, block=5)
    return {name: 1e3 * median for name, median in medians.items()}


def training(rounds: int) -> None:
    x = data(BATCH)
    model = DRMM(DIM, LAYERS, COMPONENTS).train()
    model.initialize(data(2000))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)
    tables = model.link_logits.detach().clone().requires_grad_()
    weight = torch.randn_like(tables)

    def step(stage: str) -> Callable[[], None]:
        def run() -> None:
            model.curriculum = ((stage, 1.0),)
            optimizer.zero_grad()
            model.loss(x, 0.9).backward()
            optimizer.step()

        return run

    def log_softmax() -> None:
        tables.grad = None
        tables.log_softmax(-1).backward(weight)

    stages = {stage: step(stage) for stage in ("em", "joint", "likelihood")}
    stages["likelihood"]()  # there are gradients for Adam to step with
    tasks = {"adam": optimizer.step, "log-softmax": log_softmax, **stages}
    times = milliseconds(tasks, rounds)
    floor = times["adam"] + times["log-softmax"]
    print(f"{model.num_parameters:,} numbers, batch {BATCH}, {torch.get_num_threads()} threads")
    print(f"floor: Adam {times['adam']:.1f} + log-softmax {times['log-softmax']:.1f} ms")
    for stage in stages:
        print(
            f"  a step of {stage:12s} {times[stage]:6.1f} ms   {times[stage] / floor:4.1f} floors"
        )


def questions(steps: int, rounds: int) -> None:
    torch.manual_seed(0)
    x = data(20_000)
    model = DRMM(DIM, LAYERS, COMPONENTS)
    fit(model, x, steps=steps, batch_size=BATCH, lr=0.01, seed=0, progress_bar=False)
    model.requires_grad_(False)
    point = x[7]
    known = Observed({d: float(point[d]) for d in range(4)})
    bound = x.abs().amax()
    box = Box(-bound, bound)
    near = Box(*(torch.where(torch.arange(DIM) < 8, point + s, s * math.inf) for s in (-0.3, 0.3)))
    a = torch.zeros(2, DIM)
    a[0, 10], a[0, 11], a[1, 20], a[1, 21] = 1.0, -1.0, 1.0, 1.0
    inequalities = LinearInequality(a, 0.1 - a @ point)
    asked = {
        "four known columns": [known],
        "a box on eight columns": [near],
        "known, a box on eight, two inequalities": [known, near, inequalities],
        "known, a box on all, two inequalities": [known, box, inequalities],
    }
    sizes: dict[str, float] = {}

    def question(name: str) -> Callable[[], None]:
        def run() -> None:
            law = model.condition(*asked[name], num_particles=1024)
            law.sample((64,))
            sizes[name] = float(law.effective_sample_size)

        return run

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        times = milliseconds({name: question(name) for name in asked}, rounds)
    print(f"\n64 draws from 1,024 codes, after {steps} steps of training")
    for name, took in times.items():
        print(f"  {name:40s} {took:6.0f} ms   effective sample size {sizes[name]:4.0f}")


def main() -> None:
    parser = cli.make_parser(__doc__, quick="about a minute", threads=False)
    quick = cli.parse(parser).size == "quick"
    training(4 if quick else 12)
    questions(300 if quick else 2000, 2 if quick else 5)


if __name__ == "__main__":
    main()
