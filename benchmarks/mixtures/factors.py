"""Mixtures of factor analysers against mixtures of other covariances, and factor analysis.

Trains, by expectation maximisation in float64, `GaussianMixture` with covariances of low rank and
others, scikit-learn's `GaussianMixture` and its `FactorAnalysis` (one component) on digits of 64
dimensions, MNIST of 784, and draws of a mixture of factor analysers of 3,072, as many as colour
images of 32 pixels a side have. Grey values are made continuous by noise of a quantum's width.
Prints for each: numbers of components and free parameters, how many iterations it took until the
mean log-likelihood rose by less than 1e-3 nats, or how many it was given, the median time of one,
and the mean log-density of held-out points. No variance is below 1e-3 of the largest column's:
scikit-learn adds as much. Matrices of 784 dimensions are many: methods that make them get fewer
iterations there, and none in 3,072 dimensions.

Then times the density, the density with its gradient in points and parameters, and draws, against
PyTorch's mixture of `LowRankMultivariateNormal` with the same parameters, in turns.

Draws means and samples of the low-rank mixture of MNIST, and lower halves of test images given
the upper ones, to out/mixtures/factors_<size>.png.

    python -m benchmarks.mixtures.factors [--quick] [--threads N]
"""

import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from sklearn.decomposition import FactorAnalysis
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture as SklearnMixture
from torch import Tensor
from torch.distributions import Categorical, LowRankMultivariateNormal, MixtureSameFamily

from benchmarks.common import cli
from benchmarks.common.figures import grid, save
from benchmarks.common.store import OUT
from benchmarks.common.timing import interleaved_medians, limit_threads
from pyromix import GaussianMixture, MixtureOfLowRankNormals, Observed, fit_em
from pyromix.datasets import digits, mnist

TOLERANCE = 1e-3
FEW = 3  # iterations with matrices of many dimensions


class Data(NamedTuple):
    """Points to train on, points to score, and the law that they are draws of, if known."""

    train: Tensor
    test: Tensor
    truth: MixtureOfLowRankNormals | None = None

    @property
    def floor(self) -> float:
        return 1e-3 * float(self.train.var(0).max())


class Result(NamedTuple):
    """How a method did."""

    components: int
    parameters: int
    losses: int
    """Number of iterations."""
    milliseconds: float
    """Median of an iteration."""
    held_out: float
    """Mean log-density of test points, in nats."""


Method = Callable[[Data], Result]


def continuous(images: Tensor, levels: int, train: int, test: int) -> Data:
    """Images with grey values from 0 to 1, flattened, with noise."""
    torch.manual_seed(0)
    x = images.flatten(1).double()[torch.randperm(len(images))[: train + test]]
    x = (x * (levels - 1) + torch.rand_like(x)) / levels
    return Data(x[:train], x[train:])


def synthetic(dim: int, train: int, test: int) -> Data:
    """Draws of five factor analysers with eight factors each."""
    torch.manual_seed(0)
    k, rank = 5, 8
    law = MixtureOfLowRankNormals(
        torch.zeros(k).double(),
        torch.randn(k, dim).double() / 4,
        0.1 + torch.rand(k, dim).double(),
        torch.randn(k, dim, rank).double() / 2,
    )
    return Data(law.sample((train,)), law.sample((test,)), law)


def pyromix_mixture(
    components: int, covariance: Any, rank: int = 1, steps: int = 200
) -> Callable[[Data], tuple[Result, GaussianMixture]]:
    """Trains a mixture of this library."""

    def run(data: Data) -> tuple[Result, GaussianMixture]:
        torch.manual_seed(1)
        model = GaussianMixture(
            data.train.shape[-1],
            components,
            covariance,
            rank=rank,
            variance_floor=data.floor,
            standardize=False,
        ).double()
        model.initialize(data.train)
        history = fit_em(
            model, data.train, steps=steps, tolerance=TOLERANCE, initialize=False,
            progress_bar=False,
        )  # fmt: skip
        seconds = torch.tensor(history.seconds)
        with torch.no_grad():
            held_out = float(model.log_prob(data.test).mean())
        milliseconds = 1e3 * float(seconds.diff().median())
        count = len(history.losses)
        return Result(components, model.num_free_parameters, count, milliseconds, held_out), model

    return run


class TimedSklearnMixture(SklearnMixture):
    """Notes when every E-step ends."""

    times: list[float]

    def _e_step(self, X: Any, **options: Any) -> Any:  # noqa: N803
        result = super()._e_step(X, **options)
        self.times.append(time.perf_counter())
        return result


def sklearn_mixture(components: int, kind: str, steps: int = 200) -> Method:
    """Trains scikit-learn's mixture, from its own k-means."""

    def run(data: Data) -> Result:
        peer = TimedSklearnMixture(
            components, covariance_type=kind, reg_covar=data.floor, tol=TOLERANCE,
            max_iter=steps, random_state=1,
        )  # fmt: skip
        peer.times = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            peer.fit(data.train.numpy())
        times = [b - a for a, b in zip(peer.times, peer.times[1:], strict=False)]
        held_out = float(peer.score(data.test.numpy()))
        milliseconds = 1e3 * statistics.median(times)
        return Result(components, peer._n_parameters(), len(peer.times), milliseconds, held_out)

    return run


def factor_analysis(rank: int) -> Method:
    """Trains scikit-learn's factor analysis, of one component."""

    def run(data: Data) -> Result:
        peer = FactorAnalysis(rank, tol=TOLERANCE * len(data.train), random_state=1)
        start = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            peer.fit(data.train.numpy())
        milliseconds = 1e3 * (time.perf_counter() - start) / peer.n_iter_
        dim = data.train.shape[-1]
        free = dim * (2 + rank) - rank * (rank - 1) // 2
        return Result(1, free, peer.n_iter_, milliseconds, float(peer.score(data.test.numpy())))

    return run


def table(title: str, data: Data, methods: dict[str, Any]) -> dict[str, GaussianMixture]:
    """Prints how methods do; returns the mixtures that are this library's."""
    n, dim = data.train.shape
    print(f"\n{title}: {n} points to train on, {len(data.test)} to test, {dim} dimensions")
    print(
        f"{'method':>40} {'K':>3} {'parameters':>11} {'iterations':>11} {'ms/iteration':>13} "
        f"{'held-out nats':>14}"
    )
    models = {}
    for name, method in methods.items():
        outcome = method(data)
        if isinstance(outcome, Result):
            result = outcome
        else:
            result, models[name] = outcome
        k, free, count, ms, nats = result
        print(f"{name:>40} {k:>3} {free:>11,} {count:>11} {ms:>13.1f} {nats:>14.2f}", flush=True)
    if data.truth is not None:
        print(f"{'the law itself':>40} {data.truth.num_components:>3} {'':>37} ", end="")
        print(f"{float(data.truth.log_prob(data.test).mean()):>14.2f}")
    return models


def speed(n: int, dim: int, k: int, rank: int, seconds: float) -> None:
    """Prints how many times as long as this library's law PyTorch's takes, in float32."""
    torch.manual_seed(0)
    tensors = torch.randn(k), torch.randn(k, dim), 0.5 + torch.rand(k, dim)
    leaves = [t.requires_grad_() for t in (*tensors, torch.randn(k, dim, rank))]

    def pyromix_law() -> Any:
        return MixtureOfLowRankNormals(*leaves, validate_args=False)

    def torch_law() -> Any:
        logits, loc, diag, factor = leaves
        parts = LowRankMultivariateNormal(loc, factor, diag, validate_args=False)
        return MixtureSameFamily(Categorical(logits=logits), parts, validate_args=False)

    x = pyromix_law().sample((n,)).requires_grad_()
    with torch.no_grad():
        exact = pyromix_law().map_tensors(torch.Tensor.double).log_prob(x.double())
        errors = [
            float((law().log_prob(x) - exact).abs().max()) for law in (pyromix_law, torch_law)
        ]

    def gradient(law: Callable[[], Any]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(law().log_prob(x).sum(), [x, *leaves])

    def density(law: Callable[[], Any]) -> Callable[[], object]:
        return torch.no_grad()(lambda: law().log_prob(x))

    print(
        f"\n{n} points, {dim} dimensions, K={k}, r={rank}; errors against float64, in nats: ",
        end="",
    )
    print("pyromix {:.0e}, torch {:.0e}".format(*errors))
    makers: dict[str, Any] = {
        "density": density,
        "density and gradient": gradient,
        "draws": lambda law: lambda: law().sample((n,)),
    }
    for title, make in makers.items():
        jobs = {"pyromix": make(pyromix_law), "torch": make(torch_law)}
        medians = interleaved_medians(jobs, seconds)
        own, other = (1e3 * medians[name] for name in jobs)
        print(f"{title:>22}: {own:9.2f} ms, torch {other:9.2f} ms, ratio {other / own:6.1f}")


def draw(model: GaussianMixture, images: Tensor, path: Any) -> None:
    """Means, samples, and lower halves of images given the upper ones."""
    torch.manual_seed(2)
    law, half = model.law, 392
    count = 10
    with torch.no_grad():
        means = law.loc[law.logits.argsort(descending=True)[:count]]
        samples = law.sample((count,))
        upper = {d: images[:count, d] for d in range(half)}
        given = law.condition(Observed(upper))
        rows = {
            "means": means,
            "samples": samples,
            "test images": images[:count],
            "mean given upper half": given.mean,
            "a draw given it": given.sample(),
        }
    figure, axes = grid(len(rows), count, size=0.9)
    for ax_row, (label, pictures) in zip(axes, rows.items(), strict=True):
        ax_row[0].set_ylabel(label, rotation=0, ha="right", va="center")
        for ax, picture in zip(ax_row, pictures, strict=False):
            ax.imshow(picture.reshape(28, 28), cmap="gray_r", vmin=0, vmax=1)
            ax.set(xticks=[], yticks=[])
        for ax in ax_row[len(pictures) :]:
            ax.set_axis_off()
    save(figure, path)


def main() -> None:
    parser = cli.make_parser(__doc__, quick="fewer points, components and iterations")
    arguments = cli.parse(parser)
    limit_threads(arguments.threads)
    quick = arguments.size == "quick"
    print(f"PyTorch {torch.__version__}, {arguments.threads} threads")

    images, _ = digits()
    methods: dict[str, Any] = {
        f"pyromix low_rank, r={r}": pyromix_mixture(10, "low_rank", r) for r in (2, 6, 12)
    }
    methods |= {
        "pyromix low_rank_precision, r=6": pyromix_mixture(10, "low_rank_precision", 6),
        "pyromix full": pyromix_mixture(10, "full"),
        "scikit-learn full": sklearn_mixture(10, "full"),
        "scikit-learn diag": sklearn_mixture(10, "diag"),
        "scikit-learn diag ": sklearn_mixture(60, "diag"),
        "scikit-learn FactorAnalysis, r=12": factor_analysis(12),
        "scikit-learn FactorAnalysis, r=30": factor_analysis(30),
    }
    table("digits", continuous(images, 17, 1500, 297), methods)

    train, test, k = (2000, 500, 5) if quick else (6000, 2000, 10)
    methods = {f"pyromix low_rank, r={r}": pyromix_mixture(k, "low_rank", r) for r in (4, 16)}
    best = list(methods)[-1]
    methods |= {
        "pyromix low_rank, r=2": pyromix_mixture(4 * k, "low_rank", 2),
        "pyromix full": pyromix_mixture(k, "full", steps=FEW),
        "scikit-learn full": sklearn_mixture(k, "full", steps=FEW),
        "scikit-learn diag": sklearn_mixture(k, "diag"),
        "scikit-learn diag ": sklearn_mixture(8 * k, "diag"),
        "scikit-learn FactorAnalysis, r=16": factor_analysis(16),
        "scikit-learn FactorAnalysis, r=100": factor_analysis(100),
    }
    pictures = continuous(mnist()[0], 256, train, test)
    model = table("MNIST", pictures, methods)[best]
    draw(model, pictures.test, OUT / "mixtures" / f"factors_{arguments.size}.png")

    dim, train = (1024, 500) if quick else (3072, 2000)
    methods = {
        "pyromix low_rank, r=8": pyromix_mixture(5, "low_rank", 8),
        "pyromix diagonal": pyromix_mixture(5, "diagonal"),
        "scikit-learn diag": sklearn_mixture(5, "diag"),
        "scikit-learn FactorAnalysis, r=8": factor_analysis(8),
        "scikit-learn FactorAnalysis, r=44": factor_analysis(44),
    }
    table("a mixture of factor analysers", synthetic(dim, train, 500), methods)

    for size in ((512, 64, 10, 4), (500, 784, 10, 8), (100, 3072, 5, 8)):
        speed(*size, seconds=2.0 if quick else 10.0)


if __name__ == "__main__":
    main()
