"""Gaussian mixtures against every peer: time, memory and accuracy.

Peers are PyTorch's `MixtureSameFamily`, Pyro's two mixtures, and those of zuko, normflows,
pomegranate and scikit-learn. Prints, from one run: time of a log-density, of the same with its
gradient in points and parameters, of sampling, and of a gradient through samples; peak memory of
each in a process of its own; and float32 errors against float64. Ratios above one are in
pyromix's favour.

All compute in float32, scikit-learn too (its draws are float64). Before it is timed, a library's
log-density is compared with one in float64, and so is its gradient in the points. Where a
library's intermediate would take more than 4 GiB it gets the points in chunks that fit the cache,
which are its fastest; pyromix gets all at once.

By default all run on one thread, as in `em.py`.

    python -m benchmarks.mixtures.speed [--quick] [--threads N]
"""

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution

from benchmarks.common import cli
from benchmarks.common.memory import in_fresh_process, peak_of
from benchmarks.common.timing import interleaved_medians, limit_threads
from benchmarks.mixtures.peers import (
    BUDGET,
    DENSITY,
    DENSITY_GRADIENT,
    PEERS,
    SAMPLE,
    SAMPLE_GRADIENT,
    TASKS,
    Law,
    Peer,
    available,
    make_law,
    reference_log_prob,
)

Size = tuple[int, int, int]  # points N, dimensions D, components K
SIZES: dict[str, list[Size]] = {
    "diagonal": [
        (256, 2, 16),
        (512, 64, 64),
        (10_000, 64, 64),
        (512, 784, 128),
        (60_000, 784, 128),
    ],
    "shared": [(256, 2, 16), (10_000, 64, 64)],
    "full": [(256, 2, 16), (1797, 64, 10), (60_000, 64, 10)],
}
QUICK_SIZES: dict[str, list[Size]] = {
    "diagonal": [(256, 2, 16), (512, 64, 64)],
    "shared": [(256, 2, 16)],
    "full": [(256, 2, 16), (1797, 64, 10)],
}
MEMORY_SIZES: dict[str, list[Size]] = {
    "diagonal": [(10_000, 64, 64), (512, 784, 128), (60_000, 784, 128)],
    "full": [(60_000, 64, 10)],
}
QUICK_MEMORY_SIZES: dict[str, list[Size]] = {"diagonal": [(512, 784, 128)]}

TOLERANCE = 1e-5  # of a log-density, |a - b| / max(1, |b|), and of a gradient, by its norm
CHUNK_NUMBERS = 2**20  # that an operation on a chunk works on: they fit the cache
TIMED_CHUNKS = 16  # of those that all points make; the others take as long


class Job(NamedTuple):
    """A task of a library, or of as many chunks of it as are worth timing."""

    run: Callable[[], None]
    factor: float
    """By how much the whole takes longer than what is run."""
    chunk: int | None
    """Number of points in a chunk, if not all are given at once."""


def whole(peer: Peer, task: str, x: Tensor) -> Callable[[], None]:
    leaf = x.clone().requires_grad_()

    def density() -> None:
        with torch.no_grad():
            peer.log_prob(x)

    def density_gradient() -> None:
        torch.autograd.grad(peer.log_prob(leaf).sum(), [leaf, *peer.leaves])

    def sample() -> None:
        with torch.no_grad():
            peer.sample(len(x))

    def sample_gradient() -> None:
        torch.autograd.grad(peer.expectation(len(x)), peer.leaves, allow_unused=True)

    runs = {
        DENSITY: density,
        DENSITY_GRADIENT: density_gradient,
        SAMPLE: sample,
        SAMPLE_GRADIENT: sample_gradient,
    }
    return runs[task]


def fits(peer: Peer, task: str, n: int) -> bool:
    return 4 * peer.intermediate(task, n) <= BUDGET


def make_job(peer: Peer, task: str, x: Tensor) -> Job:
    if len(x) <= peer.most_points(task):
        return Job(whole(peer, task, x), 1.0, None)
    chunk = max(1, CHUNK_NUMBERS // peer.per_operation(task))
    timed = x[: chunk * TIMED_CHUNKS]
    runs = [whole(peer, task, part) for part in timed.split(chunk)]

    def run() -> None:
        for each in runs:
            each()

    return Job(run, len(x) / len(timed), chunk)


def density_errors(peer: Peer, law: Law, x: Tensor) -> list[float]:
    """Largest errors of the log-density and of its gradient in the points."""
    exact_x = x.double().requires_grad_()
    exact = reference_log_prob(law, exact_x)
    with torch.no_grad():
        error = (peer.log_prob(x) - exact).abs() / exact.abs().clamp(min=1)
    errors = [float(error.max())]
    if DENSITY_GRADIENT in peer.tasks:
        leaf = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(peer.log_prob(leaf).sum(), leaf)
        (exact_gradient,) = torch.autograd.grad(exact.sum(), exact_x)
        errors.append(float((gradient - exact_gradient).norm() / exact_gradient.norm()))
    return errors


def agreeing(law: Law, x: Tensor) -> dict[str, Peer]:
    """The libraries that compute the same density."""
    found = available(law)
    for name, peer in list(found.items()):
        if DENSITY in peer.tasks:
            errors = density_errors(peer, law, x)
            if not max(errors) <= TOLERANCE:
                print(f"{name} is not timed: errors of {errors}")
                del found[name]
    return found


def gradient_is_finite(peer: Peer, n: int) -> bool:
    n = min(n, 64, max(1, BUDGET // (32 * peer.intermediate(SAMPLE_GRADIENT, 1))))
    gradients = torch.autograd.grad(peer.expectation(n), peer.leaves, allow_unused=True)
    return all(bool(g.isfinite().all()) for g in gradients if g is not None)


def time_table(covariance: str, sizes: list[Size], seconds: float) -> None:
    print(f"\n{covariance} covariances, float32: ms (ratio to pyromix)")
    check_samples(covariance)
    for n, dim, k in sizes:
        law = make_law(covariance, dim, k)
        x = torch.as_tensor(PEERS["pyromix"](law).sample(n))
        peers = agreeing(law, x[:128])
        cells: dict[str, dict[str, str]] = {name: {} for name in peers}
        for task in TASKS:
            jobs = {name: make_job(p, task, x) for name, p in peers.items() if task in p.tasks}
            medians = interleaved_medians({name: job.run for name, job in jobs.items()}, seconds)
            for name, job in jobs.items():
                took = job.factor * medians[name]
                cell = f"{1e3 * took:,.2f}" if job.chunk is None else f"~{1e3 * took:,.0f}"
                if "pyromix" in medians:
                    cell += f" ({took / medians['pyromix']:.2f})"
                if task == SAMPLE_GRADIENT and not gradient_is_finite(peers[name], n):
                    cell += " NaN"
                if job.chunk is not None:
                    cell += f" [{job.chunk}]"
                cells[name][task] = cell
        print_block(f"{n}, {dim}, {k}", cells)


def print_block(title: str, cells: dict[str, dict[str, str]]) -> None:
    print(f"\n{f'N, D, K = {title}':>28} " + " ".join(f"{task:>25}" for task in TASKS))
    for name, row in cells.items():
        print(f"{name:>28} " + " ".join(f"{row.get(task, ''):>25}" for task in TASKS))
    sys.stdout.flush()


@torch.no_grad()
def check_samples(covariance: str) -> None:
    """Says which libraries' draws have another mean or variance than the mixture."""
    n = 50_000
    law = make_law(covariance, 2, 16)
    truth = PEERS["pyromix"](law).prepared
    for name, peer in available(law).items():
        x = torch.as_tensor(peer.sample(n)).double()
        mean = (x.mean(0) - truth.mean) / (truth.variance / n).sqrt()
        square = (x - truth.mean).square()
        variance = (square.mean(0) - truth.variance) / (square.var(0) / n).sqrt()
        worst = float(torch.cat([mean, variance]).abs().max())
        if worst > 6:
            ratio = float((square.mean(0) / truth.variance).mean())
            print(
                f"  {name} draws from another law: its mean or variance is {worst:.0f} standard "
                f"errors off, and the variance {ratio:.2f} of what it should be"
            )


def measure(name: str, task: str, covariance: str, size: Size, threads: int) -> float:
    """Mebibytes that a task takes on top of its inputs; for a process of its own."""
    prepare_libraries(threads)

    def prepared(n: int, dim: int, k: int) -> Callable[[], None]:
        law = make_law(covariance, dim, k)
        x = torch.as_tensor(PEERS["pyromix"](law).sample(n))
        return whole(PEERS[name](law), task, x)

    prepared(8, 2, 2)()  # loads what is loaded lazily
    return peak_of(prepared(*size))


def memory_table(covariance: str, sizes: list[Size], threads: int) -> None:
    print(f"\n{covariance} covariances, float32: peak MiB (ratio to pyromix)")
    for size in sizes:
        peers = available(make_law(covariance, *size[1:]))
        pairs = [(name, task) for name, peer in peers.items() for task in peer.tasks]
        measured = [pair for pair in pairs if fits(peers[pair[0]], pair[1], size[0])]

        def peak(pair: tuple[str, str], size: Size = size) -> float:
            return in_fresh_process(measure, *pair, covariance, size, threads)

        with ThreadPoolExecutor(2) as pool:
            peaks = dict(zip(measured, pool.map(peak, measured), strict=True))
        cells: dict[str, dict[str, str]] = {name: {} for name in peers}
        for name, task in pairs:
            own = peaks.get(("pyromix", task))
            if (name, task) in peaks:
                cell = f"{peaks[name, task]:,.1f}"
                cell += f" ({peaks[name, task] / own:.1f})" if own else ""
            else:
                gibibytes = 4 * peers[name].intermediate(task, size[0]) / 2**30
                cell = f"does not fit ({gibibytes:,.0f} GiB)"
            cells[name][task] = cell
        print_block(", ".join(map(str, size)), cells)


def accuracy_table(n: int, dim: int, k: int) -> None:
    print("\nlargest float32 error |a - b| / max(1, |b|) of a log-density against float64")
    regimes = {
        "ordinary": lambda k, d: (torch.randn(k, d), torch.exp(0.3 * torch.randn(k, d))),
        "centred at 1e3": lambda k, d: (1e3 + torch.randn(k, d), torch.ones(k, d)),
        "scales 1e-3..1e3": lambda k, d: (torch.randn(k, d), 10 ** (6 * torch.rand(k, d) - 3)),
        "components 1e3 apart": lambda k, d: (1e3 * torch.randn(k, d), torch.ones(k, d)),
        "scales of 0.01": lambda k, d: (torch.randn(k, d), torch.full((k, d), 0.01)),
    }
    for number, (regime, make) in enumerate(regimes.items()):
        torch.manual_seed(0)
        law = Law("diagonal", torch.randn(k), *make(k, dim))
        peers = {name: p for name, p in available(law).items() if DENSITY in p.tasks}
        if number == 0:
            print(f"{'':>22} " + " ".join(f"{name:>12}" for name in peers))
        x = torch.as_tensor(peers["pyromix"].sample(n))
        with torch.no_grad():
            exact = reference_log_prob(law, x)
            errors = [
                ((peer.log_prob(x) - exact).abs() / exact.abs().clamp(min=1)).max()
                for peer in peers.values()
            ]
        run = whole(peers["pyromix"], DENSITY_GRADIENT, x)
        took = interleaved_medians({"pyromix": run}, 0.5)["pyromix"]
        cells = " ".join(f"{float(e):>12.1e}" for e in errors)
        print(f"{regime:>22} {cells}; pyromix with gradient {1e3 * took:.1f} ms")


def prepare_libraries(threads: int) -> None:
    """Imports all, limits their threads, and switches checks of values off."""
    available(make_law("diagonal", 2, 2))  # limits are for pools of threads that are there
    limit_threads(threads)
    Distribution.set_default_validate_args(False)  # importing zuko does this for good


def main() -> None:
    parser = cli.make_parser(__doc__, quick="fewer sizes, shorter timings")
    arguments = cli.parse(parser)
    prepare_libraries(arguments.threads)
    quick = arguments.size == "quick"
    print(f"PyTorch {torch.__version__}, {arguments.threads} threads")
    print("~ [n]: in chunks of n points, of which some were timed, as all at once do not fit")
    print("(pomegranate's density would: it is faster so)")
    print("NaN: not all of the gradient is finite")
    print(
        "pomegranate has gradients in the points alone; normflows none in the weights by samples"
    )
    for covariance, sizes in (QUICK_SIZES if quick else SIZES).items():
        time_table(covariance, sizes, 0.3 if quick else 3.0)
    for covariance, sizes in (QUICK_MEMORY_SIZES if quick else MEMORY_SIZES).items():
        memory_table(covariance, sizes, arguments.threads)
    accuracy_table(*((256, 64, 64) if quick else (512, 784, 128)))


if __name__ == "__main__":
    main()
