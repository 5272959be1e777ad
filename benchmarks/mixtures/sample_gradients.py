"""Gradients through samples of a mixture: bias and variance of four estimators.

For components on a line, a number of standard deviations apart, the gradient of E[f] in logits,
means and scales is known in closed form for f(x) = sum of x_d^2 / D + x_d. Each estimator's error
is split into bias and standard deviation, relative to the true gradient's norm:

- implicit: `MixtureOfNormals.rsample`;
- stratified: `MixtureOfNormals.rsample_weighted`;
- straight-through: Gumbel-softmax at temperature 0.5, `rsample_straight_through`;
- score function: `sample`, with the average of the other draws as baseline.

Writes out/mixtures/sample_gradients_<size>.png.

    python -m benchmarks.mixtures.sample_gradients [--quick]
"""

from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from benchmarks.common import cli
from benchmarks.common.figures import save
from benchmarks.common.store import OUT
from benchmarks.mixtures.estimators import implicit, score_function, straight_through, stratified
from pyromix import MixtureOfNormals

SEPARATIONS = (0.5, 1.0, 2.0, 4.0, 6.0, 8.0, 12.0, 20.0)
SETTINGS = (  # (separation, scale, K, D)
    (2.0, 0.1, 4, 2),
    (2.0, 1.0, 4, 2),
    (2.0, 10.0, 4, 2),
    (4.0, 1.0, 2, 1),
    (4.0, 1.0, 16, 1),
    (4.0, 1.0, 64, 1),
    (4.0, 1.0, 4, 32),
    (20.0, 1.0, 4, 2),
    (20.0, 1.0, 64, 2),
)
DRAWS = 256


def payoff(x: Tensor) -> Tensor:
    return (x.square() + x).mean(-1)


ESTIMATORS = {
    "implicit": implicit,
    "stratified": stratified,
    "straight-through": straight_through,
    "score function": score_function,
}


def parameters(separation: float, scale: float, k: int, dim: int) -> list[Tensor]:
    """Components on the first axis, with weights that differ, centred near the origin."""
    torch.manual_seed(0)
    loc = torch.zeros(k, dim)
    loc[:, 0] = separation * scale * (torch.arange(k) - 0.45 * k)
    return [0.5 * torch.randn(k), loc, torch.full((k, dim), scale)]


def study(separation: float, scale: float, k: int, dim: int, repeats: int) -> dict:
    """Relative bias, its standard error, and deviation, by estimator and part."""
    leaves = [t.requires_grad_() for t in parameters(separation, scale, k, dim)]
    mixture = MixtureOfNormals(*leaves)
    exact = (mixture.variance + mixture.mean.square() + mixture.mean).mean()
    truth = torch.autograd.grad(exact, leaves)
    result = {}
    for name, estimate in ESTIMATORS.items():
        total = [torch.zeros_like(t) for t in leaves]
        square = [torch.zeros_like(t) for t in leaves]
        for _ in range(repeats):
            for i, g in enumerate(torch.autograd.grad(estimate(mixture, DRAWS, payoff), leaves)):
                total[i] += g
                square[i] += g.square()
        for part, t, s, expected in zip(
            ("logits", "loc", "scale"), total, square, truth, strict=True
        ):
            mean = t / repeats
            variance = (s / repeats - mean.square()).clamp(min=0).sum()
            norm = expected.norm()
            result[name, part] = (
                float((mean - expected).norm() / norm),
                float((variance / repeats).sqrt() / norm),
                float(variance.sqrt() / norm),
            )
    return result


def describe(result: dict, part: str) -> str:
    """Bias (with its standard error) and deviation of every estimator."""
    cells = []
    for name in ESTIMATORS:
        bias, error, deviation = result[name, part]
        mark = "*" if bias > 4 * error else " "
        cells.append(f"{bias:8.3f}{mark}{deviation:9.3f}")
    return " ".join(f"{cell:>20}" for cell in cells)


def main() -> None:
    parser = cli.make_parser(__doc__, quick="fewer repetitions", threads=False)
    size = cli.parse(parser).size
    repeats = 100 if size == "quick" else 400
    torch.set_default_dtype(torch.float64)
    print(f"{DRAWS} draws, {repeats} repetitions; bias (* beyond 4 standard errors), deviation,")
    print("both relative to the norm of the true gradient\n")
    print(
        f"{'separation, scale, K, D':>26} {'part':>7} " + " ".join(f"{n:>20}" for n in ESTIMATORS)
    )
    lowest = []
    for setting in SETTINGS:
        result = study(*setting, repeats=repeats)
        for part in ("logits", "loc", "scale"):
            print(f"{setting!s:>26} {part:>7} {describe(result, part)}")
            unbiased = {n: result[n, part][2] for n in ESTIMATORS if n != "straight-through"}
            lowest.append(min(unbiased, key=unbiased.__getitem__) == "stratified")
    print(f"\nlowest variance of the unbiased: stratified in {sum(lowest)} of {len(lowest)} cases")
    curves = {s: study(s, 1.0, 2, 1, repeats) for s in SEPARATIONS}
    print("\ngradient in logits of two components, by separation")
    for separation, result in curves.items():
        print(f"{separation:>26} {'logits':>7} {describe(result, 'logits')}")
    plot(curves, OUT / "mixtures" / f"sample_gradients_{size}.png")


def plot(curves: dict, path: Path) -> None:
    """Bias and deviation of the gradient in logits against separation."""
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained", sharex=True)
    for i, name in enumerate(ESTIMATORS):
        bias, error, deviation = (
            [curves[s][name, "logits"][j] for s in SEPARATIONS] for j in range(3)
        )
        axes[0].errorbar(SEPARATIONS, bias, error, fmt="o-", ms=3, color=f"C{i}", label=name)
        axes[1].plot(SEPARATIONS, deviation, "o-", ms=3, color=f"C{i}", label=name)
    axes[0].set(xscale="log", ylabel="bias / norm of the gradient", title="bias")
    axes[1].set(xscale="log", yscale="log", ylabel="deviation / norm", title=f"{DRAWS} draws")
    for ax in axes:
        ax.set(xlabel="separation, standard deviations", xticks=SEPARATIONS)
        ax.set_xticklabels([f"{s:g}" for s in SEPARATIONS])
        ax.minorticks_off()
    axes[0].set_ylim(-0.05, 1.3)
    axes[0].legend(frameon=False)
    save(figure, path, dpi=150)


if __name__ == "__main__":
    main()
