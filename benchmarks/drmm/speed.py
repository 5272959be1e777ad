"""What a step of training and a question cost a deep residual mixture of 3.03 million numbers.

K = 256 components, L = 10 layers, D = 30 columns, batches of 64. Nearly all its parameters are
tables of which codes go together. The yardstick, measured in the same run, is what any training
step must do with them: one fused step of Adam, and one log-softmax of all tables, forward and
backward. A question is 64 draws given four known columns, a box and two inequalities, from a
population of 1,024 codes.

With `--streams` instead: a model of 196 categorical columns of 64 categories each, 4 layers of
64 components, and one of half as many columns. A training step of 64 rows, and questions with half
of the columns observed, or with weights of their categories; and the same with scores that are
worked out as they are written, column by column, with a softmax for each pair of a prefix and a
component.

    python -m benchmarks.drmm.speed [--quick] [--streams]
"""

import math
import warnings
from collections.abc import Callable
from functools import partial, partialmethod
from unittest.mock import patch

import torch

from benchmarks.common import cli
from benchmarks.common.timing import block_medians, interleaved_medians
from pyromix import DRMM, Box, CategoricalPrior, LinearInequality, Observed, fit
from pyromix.drmm.columns import Columns
from pyromix.evidence.pieces import Evidence

LAYERS, COMPONENTS, DIM, BATCH = 10, 256, 30, 64
STREAMS, CATEGORIES = 196, 64


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


def by_column(
    columns: Columns,
    layer: int,
    logits: tuple[torch.Tensor, ...],
    values: tuple[torch.Tensor, ...],
    weights: bool = False,
) -> torch.Tensor:
    """`Columns.score` or, of log-weights, `expected_score`, column by column: (N, B, K)."""
    total = columns.zero
    for table, before, value in zip(columns.tables, logits, values, strict=True):
        for j in range(table.shape[2]):
            log_probs = (before[:, :, None, j] + table[layer, :, j]).log_softmax(-1)
            own = value[:, j]
            if weights:
                total = total + (log_probs + own[:, None, None]).logsumexp(-1)
                continue
            index = own[:, None, None, None].clamp(min=0)
            chosen = torch.take_along_dim(log_probs, index, -1).squeeze(-1)
            total = total + torch.where(own[:, None, None] < 0, 0.0, chosen)
    return total


def slowly(task: Callable[[], None]) -> Callable[[], None]:
    """The task with scores that are worked out column by column."""

    def run() -> None:
        expected = partialmethod(by_column, weights=True)
        with patch.multiple(Columns, score=by_column, expected_score=expected):
            task()

    return run


def train(model: DRMM, optimizer: torch.optim.Optimizer, batch: torch.Tensor) -> None:
    optimizer.zero_grad()
    model.loss(batch).backward()
    optimizer.step()


@torch.no_grad()
def ask(model: DRMM, evidence: Evidence) -> None:
    model.condition(evidence).sample((64,))


def streams(seconds: float) -> None:
    """Many categorical columns, at two numbers of them."""
    for count in (STREAMS // 2, STREAMS):
        torch.manual_seed(0)
        cluster = torch.randint(CATEGORIES, (2000, 1))
        shift = torch.randint(CATEGORIES, (1, count))
        noise = torch.randint(CATEGORIES, (2000, count))
        kept = torch.rand(2000, count) < 0.7
        x = torch.where(kept, (cluster + shift) % CATEGORIES, noise).float()
        model = DRMM(0, 4, 64, categories=(CATEGORIES,) * count)
        fit(model, x, steps=20, lr=0.02, seed=0, progress_bar=False)
        optimizer = torch.optim.Adam(model.train().parameters(), lr=1e-4, fused=True)
        batch, half = x[:BATCH], range(0, count, 2)
        observed = Observed({j: float(x[0, j]) for j in half})
        prior = CategoricalPrior(half, torch.rand(len(half), CATEGORIES))

        tasks = {
            "a training step of 64 rows": partial(train, model, optimizer, batch),
            "half of the columns observed": partial(ask, model, observed),
            "weights of half of the columns": partial(ask, model, prior),
        }
        both = tasks | {f"slow {name}": slowly(task) for name, task in tasks.items()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            times = interleaved_medians(both, seconds)
        threads = torch.get_num_threads()
        print(f"{count} columns, {model.num_parameters:,} numbers, {threads} threads")
        for name in tasks:
            fast, slow = times[name], times[f"slow {name}"]
            print(f"  {name:32s} {1e3 * fast:6.0f} ms   {slow / fast:5.1f} times faster")


def main() -> None:
    parser = cli.make_parser(__doc__, quick="about a minute", threads=False)
    parser.add_argument("--streams", action="store_true", help="many categorical columns")
    arguments = cli.parse(parser)
    quick = arguments.size == "quick"
    if arguments.streams:
        streams(10.0 if quick else 60.0)
        return
    training(4 if quick else 12)
    questions(300 if quick else 2000, 2 if quick else 5)


if __name__ == "__main__":
    main()
