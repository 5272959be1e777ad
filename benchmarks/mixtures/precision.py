"""Low-rank precisions against dense ones, and against diagonal components.

A recurrent mixture density network scores every step under a mixture of its own: batch B, time
T, K components. Prints time and peak memory of a log-density with its gradient in all parameters
for `MixtureOfLowRankPrecisionNormals`, for PyTorch's mixture of `MultivariateNormal` with the same
precision matrices, and for `MixtureOfNormals`, whose ratio is what the rank costs.

    python -m benchmarks.mixtures.precision [--quick]
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from benchmarks.mixtures.speed import interleaved_medians, peak_of
from pyromix import MixtureOfLowRankPrecisionNormals, MixtureOfNormals

SIZES = [(16, 20, 10, 200, 3), (16, 20, 10, 32, 2), (64, 20, 5, 32, 3)]  # B, T, K, D, r


def low_rank(logits: Tensor, loc: Tensor, diag: Tensor, factor: Tensor) -> object:
    return MixtureOfLowRankPrecisionNormals(logits, loc, diag, factor, validate_args=False)


def dense(logits: Tensor, loc: Tensor, diag: Tensor, factor: Tensor) -> object:
    precision = torch.diag_embed(diag) + factor @ factor.mT
    return MixtureSameFamily(
        Categorical(logits=logits, validate_args=False),
        MultivariateNormal(loc, precision_matrix=precision, validate_args=False),
        validate_args=False,
    )


def diagonal(logits: Tensor, loc: Tensor, diag: Tensor, factor: Tensor) -> object:  # noqa: ARG001
    return MixtureOfNormals(logits, loc, diag.rsqrt(), validate_args=False)


METHODS = {"pyromix": low_rank, "torch dense": dense, "diagonal": diagonal}


def task(method: str, b: int, t: int, k: int, dim: int, rank: int) -> Callable[[], None]:
    """A log-density with its gradient, on inputs that are the same for all methods."""
    torch.manual_seed(0)
    shape = (b, t, k)
    leaves = [
        torch.zeros(shape),
        torch.randn(*shape, dim),
        0.5 + torch.rand(*shape, dim),
        torch.randn(*shape, dim, rank),
    ]
    x = torch.randn(b, t, dim)
    for leaf in leaves:
        leaf.requires_grad_()

    def run() -> None:
        log_prob = METHODS[method](*leaves).log_prob(x)
        torch.autograd.grad(log_prob.sum(), leaves, allow_unused=True)

    return run


def peak_memory(method: str, size: tuple[int, ...]) -> float:
    """Mebibytes on top of the inputs, in a fresh process."""
    command = [sys.executable, "-m", __spec__.name, "--measure", method, *map(str, size)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(result.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="shorter timings")
    parser.add_argument("--measure", nargs=6, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        method, *size = arguments.measure
        task(method, 2, 2, 2, 4, 1)()  # loads what is loaded lazily
        print(peak_of(task(method, *map(int, size))))
        return
    seconds = 1.0 if arguments.quick else 10.0
    print(f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads, float32")
    print("log_prob with gradient: ms, MiB (ratios to pyromix)\n")
    print(f"{'B, T, K, D, r':>18} " + " ".join(f"{name:>38}" for name in METHODS))
    for size in SIZES:
        fast = {name: task(name, *size) for name in METHODS if name != "torch dense"}
        medians = interleaved_medians(fast, seconds)
        slow = task("torch dense", *size)
        start = time.perf_counter()
        slow()  # once: seconds, of which none are warming up
        medians["torch dense"] = time.perf_counter() - start
        peaks = {name: peak_memory(name, size) for name in METHODS}
        own = medians["pyromix"], peaks["pyromix"]
        cells = [
            f"{1e3 * medians[n]:.1f} ({medians[n] / own[0]:.2f}), "
            f"{peaks[n]:.0f} ({peaks[n] / own[1]:.2f})"
            for n in METHODS
        ]
        print(f"{', '.join(map(str, size)):>18} " + " ".join(f"{c:>38}" for c in cells))


if __name__ == "__main__":
    main()
