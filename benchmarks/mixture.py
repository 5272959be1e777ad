"""Density, gradient and memory of MixtureOfNormals against PyTorch's and Pyro's mixtures.

Prints, from one run: time of a log-density with its gradient in values and parameters; peak
memory of the same in a process of its own; float32 error against float64; and cost and memory of
gradients through samples. Ratios above one are in pyromix's favour.

    python benchmarks/mixture.py [--quick]
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from pyromix import MixtureOfNormals

SIZES = [(256, 2, 16), (1024, 8, 32), (512, 64, 64), (512, 784, 128)]
Parameters = tuple[Tensor, Tensor, Tensor]


def build_pyromix(logits: Tensor, loc: Tensor, scale: Tensor) -> MixtureOfNormals:
    return MixtureOfNormals(logits, loc, scale)


def build_torch(logits: Tensor, loc: Tensor, scale: Tensor) -> MixtureSameFamily:
    return MixtureSameFamily(Categorical(logits=logits), Independent(Normal(loc, scale), 1))


def build_pyro(logits: Tensor, loc: Tensor, scale: Tensor) -> dist.MixtureOfDiagNormals:
    return dist.MixtureOfDiagNormals(loc, scale, logits)


METHODS = {
    "pyromix": build_pyromix,
    "torch MixtureSameFamily": build_torch,
    "Pyro MixtureOfDiagNormals": build_pyro,
}


def inputs(dim: int, k: int) -> Parameters:
    """Ordinary parameters: centres and scales of order one."""
    torch.manual_seed(0)
    scale = torch.exp(0.3 * torch.randn(k, dim))
    return torch.randn(k), torch.randn(k, dim), scale


def value_and_gradient(build: Callable, x: Tensor, parameters: Parameters) -> Callable[[], None]:
    leaves = [t.clone().requires_grad_() for t in (x, *parameters)]

    def run() -> None:
        log_prob = build(*leaves[1:]).log_prob(leaves[0])
        torch.autograd.grad(log_prob.sum(), leaves)

    return run


def sample_gradient(build: Callable, n: int, parameters: Parameters) -> Callable[[], None]:
    leaves = [t.clone().requires_grad_() for t in parameters]

    def run() -> None:
        torch.autograd.grad(build(*leaves).rsample((n,)).sin().sum(), leaves)

    return run


def interleaved_medians(runs: dict[str, Callable[[], None]], seconds: float) -> dict[str, float]:
    """Median seconds of every method; methods take turns, so that noise hits all alike."""
    for run in runs.values():
        run()
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times["pyromix"]) < 5:
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def peak_memory(task: str, method: str, n: int, dim: int, k: int) -> float:
    """Mebibytes that a task takes on top of its inputs, measured in a fresh process."""
    command = [sys.executable, __file__, "--measure", task, method, *map(str, (n, dim, k))]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(result.stdout)


def peak_of(job: Callable[[], None]) -> float:
    """Mebibytes that a job takes at its peak, in a process that has run a small one before."""

    def resident(field: str) -> float:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(field):
                return int(line.split()[1]) / 1024
        raise RuntimeError(f"no {field} in /proc/self/status")

    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = resident("VmRSS")
    job()
    return resident("VmHWM") - before


def measure_in_this_process(task: str, method: str, n: int, dim: int, k: int) -> float:
    def job(n: int, parameters: Parameters) -> None:
        if task == "density":
            x = build_pyromix(*parameters).sample((n,))
            value_and_gradient(METHODS[method], x, parameters)()
        else:
            sample_gradient(METHODS[method], n, parameters)()

    job(8, inputs(2, 2))  # loads what is loaded lazily
    parameters = inputs(dim, k)
    return peak_of(lambda: job(n, parameters))


def density_table(sizes: list[tuple[int, int, int]], seconds: float) -> None:
    print("\nlog_prob with gradient, float32, ms (ratio to pyromix)")
    print(f"{'N, D, K':>16} " + " ".join(f"{name:>28}" for name in METHODS))
    for n, dim, k in sizes:
        parameters = inputs(dim, k)
        x = build_pyromix(*parameters).sample((n,))
        runs = {name: value_and_gradient(b, x, parameters) for name, b in METHODS.items()}
        medians = interleaved_medians(runs, seconds)
        own = medians["pyromix"]
        cells = [f"{1e3 * t:>18.3f} ({t / own:6.1f})" for t in medians.values()]
        print(f"{f'{n}, {dim}, {k}':>16} " + "  ".join(f"{c:>27}" for c in cells))


def memory_table(sizes: list[tuple[int, int, int]]) -> None:
    print("\npeak memory of log_prob with gradient, MiB (ratio to pyromix)")
    for n, dim, k in sizes:
        peaks = {name: peak_memory("density", name, n, dim, k) for name in METHODS}
        own = peaks["pyromix"]
        cells = [f"{name}: {peak:.1f} ({peak / own:.1f})" for name, peak in peaks.items()]
        print(f"{f'{n}, {dim}, {k}':>16}  " + ";  ".join(cells))


def accuracy_table() -> None:
    print("\nlargest float32 error |a - b| / max(1, |b|) against float64")
    regimes = {
        "ordinary": lambda k, d: (torch.randn(k, d), torch.exp(0.3 * torch.randn(k, d))),
        "centred at 1e3": lambda k, d: (1e3 + torch.randn(k, d), torch.ones(k, d)),
        "scales 1e-3..1e3": lambda k, d: (torch.randn(k, d), 10 ** (6 * torch.rand(k, d) - 3)),
        "components 1e3 apart": lambda k, d: (1e3 * torch.randn(k, d), torch.ones(k, d)),
        "scales of 0.01": lambda k, d: (torch.randn(k, d), torch.full((k, d), 0.01)),
    }
    n, dim, k = 512, 784, 128
    for name, make in regimes.items():
        torch.manual_seed(0)
        parameters = (torch.randn(k), *make(k, dim))
        x = build_pyromix(*parameters).sample((n,))
        exact = build_torch(*(t.double() for t in parameters)).log_prob(x.double())
        errors = [
            float(((b(*parameters).log_prob(x) - exact).abs() / exact.abs().clamp(min=1)).max())
            for b in METHODS.values()
        ]
        ordinary = value_and_gradient(build_pyromix, x, parameters)
        speed = interleaved_medians({"pyromix": ordinary}, 0.5)["pyromix"]
        cells = ", ".join(f"{n} {e:.1e}" for n, e in zip(METHODS, errors, strict=True))
        print(f"{name:>22}: {cells}; pyromix {1e3 * speed:.1f} ms")


def sample_gradient_table(sizes: list[tuple[int, int, int]], seconds: float) -> None:
    print("\nrsample with gradient, float32: ms and peak MiB (Pyro's at D=784 does not fit)")
    for n, dim, k in sizes:
        parameters = inputs(dim, k)
        runs = {"pyromix": sample_gradient(build_pyromix, n, parameters)}
        if n * k * k * dim < 1e8 and dim > 1:
            name = "Pyro MixtureOfDiagNormals"
            runs[name] = sample_gradient(build_pyro, n, parameters)
        medians = interleaved_medians(runs, seconds)
        cells = [
            f"{name}: {1e3 * t:.1f} ms, {peak_memory('sample', name, n, dim, k):.0f} MiB"
            for name, t in medians.items()
        ]
        if len(medians) == 2:
            own, peer = medians.values()
            cells.append(f"ratio {peer / own:.1f}")
        print(f"{f'{n}, {dim}, {k}':>16}  " + ";  ".join(cells))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="shorter timings")
    parser.add_argument("--measure", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        task, method, *size = arguments.measure
        print(measure_in_this_process(task, method, *map(int, size)))
        return
    seconds = 1.0 if arguments.quick else 5.0
    print(f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads")
    density_table(SIZES, seconds)
    memory_table(SIZES[2:])
    accuracy_table()
    sample_gradient_table([(512, 2, 16), (512, 8, 16), (512, 64, 16), (512, 784, 128)], seconds)


if __name__ == "__main__":
    main()
