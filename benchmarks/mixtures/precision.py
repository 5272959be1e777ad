"""Low-rank precisions against dense ones, and against diagonal components.

A recurrent mixture density network scores every step under a mixture of its own: batch B, time
T, K components. Prints time and peak memory of a log-density with its gradient in all parameters
for `MixtureOfLowRankPrecisionNormals`, for PyTorch's mixture of `MultivariateNormal` with the same
precision matrices, and for `MixtureOfNormals`, whose ratio is what the rank costs.

    python -m benchmarks.mixtures.precision [--quick]
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from benchmarks.common import cli
from benchmarks.common.memory import in_fresh_process, peak_of
from benchmarks.common.timing import interleaved_medians, timed
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


def measure(method: str, size: tuple[int, int, int, int, int]) -> float:
    """Mebibytes on top of the inputs; for a process of its own."""
    task(method, 2, 2, 2, 4, 1)()  # loads what is loaded lazily
    return peak_of(task(method, *size))


def main() -> None:
    parser = cli.make_parser(__doc__, quick="shorter timings", threads=False)
    seconds = 1.0 if cli.parse(parser).size == "quick" else 10.0
    print(f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads, float32")
    print("log_prob with gradient: ms, MiB (ratios to pyromix)\n")
    print(f"{'B, T, K, D, r':>18} " + " ".join(f"{name:>38}" for name in METHODS))
    for size in SIZES:
        fast = {name: task(name, *size) for name in METHODS if name != "torch dense"}
        medians = interleaved_medians(fast, seconds)
        # Once: it takes seconds, of which none are warming up.
        medians["torch dense"] = timed(task("torch dense", *size))
        peaks = {name: in_fresh_process(measure, name, size) for name in METHODS}
        own = medians["pyromix"], peaks["pyromix"]
        cells = [
            f"{1e3 * medians[n]:.1f} ({medians[n] / own[0]:.2f}), "
            f"{peaks[n]:.0f} ({peaks[n] / own[1]:.2f})"
            for n in METHODS
        ]
        print(f"{', '.join(map(str, size)):>18} " + " ".join(f"{c:>38}" for c in cells))


if __name__ == "__main__":
    main()
