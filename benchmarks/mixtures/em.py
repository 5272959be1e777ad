"""Expectation maximisation: fit_em against scikit-learn's and pomegranate's Gaussian mixtures.

All run the same number of iterations in float64 from the same weights, means and covariances.
Prints, from one run: median time of an iteration and held-out log-likelihood, where regularisation
has no part and all compute the same estimate; the same on digits with each library's own
regularisation at equal strength; and peak memory in a process of its own. Ratios above one are in
pyromix's favour. Shared covariances and those of low rank have no peer; pomegranate has neither
tied covariances nor a regularisation.

By default all run on one thread: on few cores the libraries' thread pools wait for each other and
for whatever else runs, and timings say little.

    python -m benchmarks.mixtures.em [--quick] [--threads N]
"""

import itertools
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from pomegranate.distributions import Normal
from pomegranate.gmm import GeneralMixtureModel
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture as SklearnMixture
from torch import Tensor

from benchmarks.common import cli
from benchmarks.common.memory import in_fresh_process, peak_of
from benchmarks.common.timing import limit_threads
from pyromix import GaussianMixture, fit_em

COMPONENTS = 10
NO_REGULARISATION = 1e-12  # against variances of 4e-5 and more in any direction
SKLEARN_NAMES = {"diagonal": "diag", "spherical": "spherical", "tied": "tied", "full": "full"}
POMEGRANATE_NAMES = {"diagonal": "diag", "spherical": "sphere", "full": "full"}
COVARIANCES = [
    *("diagonal", "spherical", "shared", "tied", "full", "low_rank", "low_rank_precision"),
]


class Data(NamedTuple):
    """Points to train on, and points to score."""

    train: Tensor
    test: Tensor


class Result(NamedTuple):
    """What a run took, and where it came."""

    seconds: list[float]
    """Of every iteration."""
    held_out: float
    """Mean log-density of the test points, in nats."""


def synthetic(train: int, test: int) -> Data:
    """Overlapping components, each with a few strong directions of its own."""
    torch.manual_seed(0)
    k, dim, directions = COMPONENTS, 64, 6
    loc = 0.7 * torch.randn(k, dim, dtype=torch.float64)
    mixing = torch.randn(k, dim, directions, dtype=torch.float64) / 2
    label = torch.randint(k, (train + test,))
    strong = torch.randn(train + test, directions, 1, dtype=torch.float64)
    x = loc[label] + 0.7 * torch.randn(train + test, dim, dtype=torch.float64)
    for component in range(k):
        rows = label == component
        x[rows] += (mixing[component] @ strong[rows]).squeeze(-1)
    return Data(x[:train], x[train:])


def digits(*, dequantised: bool) -> Data:
    """Grey values between 0 and 1. Uniform noise of a quantum's width makes them continuous."""
    torch.manual_seed(0)
    x = torch.tensor(load_digits().data, dtype=torch.float64)
    x = x[torch.randperm(len(x))]
    x = (x + torch.rand_like(x)) / 17 if dequantised else x / 16
    return Data(x[:1500], x[1500:])


def initialised(covariance: str, data: Tensor, regularisation: float) -> GaussianMixture:
    torch.manual_seed(1)
    model = GaussianMixture(
        data.shape[-1], COMPONENTS, covariance, rank=4, variance_floor=regularisation
    ).double()
    model.initialize(data)
    return model


def run_pyromix(start: GaussianMixture, data: Data, steps: int) -> Result:
    model = GaussianMixture(
        start.dim, COMPONENTS, start.covariance, rank=4, variance_floor=start.variance_floor
    ).double()
    model.load_state_dict(start.state_dict())
    history = fit_em(
        model, data.train, steps=steps, tolerance=0, initialize=False, progress_bar=False
    )
    if len(history.losses) < steps:
        rise = history.losses[-2] - history.losses[-1]
        print(
            f"  {start.covariance}: pyromix stopped after {len(history.losses)} iterations, ",
            end="",
        )
        print(f"where the likelihood rises by {rise:.0e}")
    with torch.no_grad():
        return Result(intervals(history.seconds), float(model.log_prob(data.test).mean()))


class TimedSklearnMixture(SklearnMixture):
    """Notes when every E-step ends."""

    times: list[float]

    def _e_step(self, X: Any, **options: Any) -> Any:  # noqa: N803
        result = super()._e_step(X, **options)
        self.times.append(time.perf_counter())
        return result


def run_sklearn(start: GaussianMixture, data: Data, steps: int) -> Result:
    law = start.distribution
    with torch.no_grad():
        if start.covariance in ("full", "tied"):
            precision = torch.linalg.inv(law.component_covariance)
            precision = precision[0] if start.covariance == "tied" else precision
        else:
            precision = 1 / law.component_variance
            precision = precision[:, 0] if start.covariance == "spherical" else precision
        weights = law.logits.exp()
    peer = TimedSklearnMixture(
        COMPONENTS,
        covariance_type=SKLEARN_NAMES[start.covariance],
        tol=0,
        reg_covar=start.variance_floor,
        max_iter=steps,
        weights_init=(weights / weights.sum()).numpy(),
        means_init=law.loc.detach().numpy(),
        precisions_init=precision.numpy(),
    )
    peer.times = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # so many steps were asked for
        peer.fit(data.train.numpy())
    return Result(intervals(peer.times[:steps]), float(peer.score(data.test.numpy())))


def run_pomegranate(start: GaussianMixture, data: Data, steps: int) -> Result:
    law = start.distribution
    with torch.no_grad():
        spread = law.component_covariance if start.covariance == "full" else law.component_variance
        parts = [
            Normal(m.clone(), c.clone(), covariance_type=POMEGRANATE_NAMES[start.covariance])
            for m, c in zip(law.loc, spread.expand(COMPONENTS, *spread.shape[1:]), strict=True)
        ]
        peer = GeneralMixtureModel(parts, priors=law.logits.exp())
        times = []
        for _ in range(steps):  # what its method fit does
            peer.summarize(data.train)
            times.append(time.perf_counter())
            peer.from_summaries()
        return Result(intervals(times), float(peer.log_probability(data.test).mean()))


RUNS: dict[str, Callable[[GaussianMixture, Data, int], Result]] = {
    "pyromix": run_pyromix,
    "scikit-learn": run_sklearn,
    "pomegranate": run_pomegranate,
}


def intervals(times: list[float]) -> list[float]:
    return [b - a for a, b in itertools.pairwise(times)]


def libraries(covariance: str, *, regularised: bool = False) -> list[str]:
    names = ["pyromix"]
    names += ["scikit-learn"] if covariance in SKLEARN_NAMES else []
    names += ["pomegranate"] if covariance in POMEGRANATE_NAMES and not regularised else []
    return names


def table(title: str, data: Data, regularisation: float, steps: int, rounds: int) -> None:
    n, dim = data.train.shape
    print(f"\n{title}: {n} x {dim}, K={COMPONENTS}, {steps} iterations, {rounds} rounds")
    print(
        f"{'covariance':>20} {'library':>14} {'ms/iteration':>13} {'ratio':>7} "
        f"{'held-out nats':>15} {'relative difference':>20}"
    )
    for covariance in COVARIANCES:
        start = initialised(covariance, data.train, regularisation)
        names = libraries(covariance, regularised=regularisation > NO_REGULARISATION)
        seconds: dict[str, list[float]] = {name: [] for name in names}
        held_out = {}
        for _ in range(rounds):  # libraries take turns, so that noise hits all alike
            for name in names:
                result = RUNS[name](start, data, steps)
                seconds[name] += result.seconds
                held_out[name] = result.held_out
        own, own_nats = statistics.median(seconds["pyromix"]), held_out["pyromix"]
        for name in names:
            median, nats = statistics.median(seconds[name]), held_out[name]
            cells = f"{1e3 * median:>13.2f} {median / own:>7.2f} {nats:>15.6f}"
            if name != "pyromix":
                cells += f" {(nats - own_nats) / abs(own_nats):>20.1e}"
            print(f"{covariance if name == 'pyromix' else '':>20} {name:>14} {cells}")


def measure(library: str, covariance: str, n: int, threads: int) -> float:
    """Mebibytes that EM takes on top of data and start; for a process of its own."""
    limit_threads(threads)

    def start_for(data: Data) -> GaussianMixture:
        return initialised(covariance, data.train[:2000], NO_REGULARISATION)

    small = synthetic(2000, 10)
    RUNS[library](start_for(small), small, 2)  # loads what is loaded lazily
    data = synthetic(n, 10)
    start = start_for(data)
    return peak_of(lambda: RUNS[library](start, data, 2))


def memory_table(n: int, threads: int) -> None:
    print(f"\npeak memory on {n} x 64 (data of {n * 64 * 8 / 2**20:.0f} MiB), MiB (ratio)")
    for covariance in COVARIANCES:
        peaks = {
            name: in_fresh_process(measure, name, covariance, n, threads)
            for name in libraries(covariance)
        }
        own = peaks["pyromix"]
        cells = [f"{name}: {peak:.0f} ({peak / own:.1f})" for name, peak in peaks.items()]
        print(f"{covariance:>20}  " + ";  ".join(cells))


def main() -> None:
    parser = cli.make_parser(__doc__, quick="fewer points and iterations")
    arguments = cli.parse(parser)
    limit_threads(arguments.threads)
    quick = arguments.size == "quick"
    n, steps, rounds = (10_000, 6, 1) if quick else (60_000, 8, 2)
    print(f"PyTorch {torch.__version__}, {arguments.threads} threads")
    table("digits with noise", digits(dequantised=True), NO_REGULARISATION, 3 * steps, rounds)
    for strength in (1e-2, 1e-3):
        data = digits(dequantised=False)
        title = f"digits as they are, reg_covar = variance_floor = {strength}"
        table(title, data, strength, 3 * steps, rounds)
    table("synthetic", synthetic(n, 10_000), NO_REGULARISATION, steps, rounds)
    memory_table(n, arguments.threads)


if __name__ == "__main__":
    main()
